"""What a launcher is asked to run: words after an interpreter's name in; ranks, nodes and a node's command out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RANKS = "trainers.ranks"
PORT = 29500
LOCAL_ONLY = ("K25_PARENT_PID",)
"""Variables that mean something on this machine alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A module on so many ranks of so many nodes."""

    num_ranks: int
    num_nodes: int
    words: tuple[str, ...]
    """The module and its arguments."""

    @property
    def ranks_per_node(self) -> int:
        """Ranks of a node, all alike."""
        return self.num_ranks // self.num_nodes

    def command(self, python: str, *, node: str, head: str) -> list[str]:
        """Return what each node runs: torchrun where there are several ranks.

        Args:
            python: the interpreter there.
            node: the node's number, perhaps a shell variable.
            head: name of node 0, perhaps a shell variable.
        """
        if self.num_ranks == 1:
            return [python, "-m", *self.words]
        group = [f"--nnodes={self.num_nodes}", f"--nproc-per-node={self.ranks_per_node}", f"--node-rank={node}"]
        meeting = [f"--master-addr={head}", f"--master-port={PORT}"]
        return [python, "-m", "torch.distributed.run", *group, *meeting, "-m", *self.words]


def asked(words: Sequence[str], environment: Mapping[str, str]) -> Asked:
    """Return what the words of an interpreter ask for; K25_NODES says over how many nodes ranks are spread.

    Raises:
        ValueError: they start no module, or the ranks do not spread evenly.
    """
    if len(words) < 2 or words[0] != "-m":
        raise ValueError(f"expected `-m MODULE ...`, as the Dagster assets start trainers; got {' '.join(words)!r}")
    module, *rest = words[1:]
    num_ranks, inner = 1, (module, *rest)
    if module == RANKS:
        if rest[:1] != ["--logs"] or len(rest) < 4 or not rest[2].isdecimal():
            raise ValueError(f"expected `-m {RANKS} --logs FOLDER RANKS MODULE ...`; got {' '.join(words)!r}")
        num_ranks, inner = int(rest[2]), tuple(rest[3:])
    num_nodes = int(environment.get("K25_NODES", "1")) if num_ranks > 1 else 1
    if num_nodes < 1 or num_ranks % num_nodes:
        raise ValueError(f"{num_ranks} ranks (K25_RANKS) do not spread evenly over {num_nodes} nodes (K25_NODES)")
    return Asked(num_ranks=num_ranks, num_nodes=num_nodes, words=inner)
