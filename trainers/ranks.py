"""Ranks on one machine: a number and a module in, as many processes out, and one error back.

Run: python -m trainers.ranks --logs folder 2 trainers.pretrain run.json

They find each other by the variables that torchrun sets, at a store that this process holds, as torchrun's agent does:
so a port is never guessed. Over several machines torchrun starts the same module. Rank 0 speaks here, the others into
`rank-<n>.log`; when one fails, the rest are stopped, since they would wait for it.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from trainers.lifetime import PARENT, end_with_parent

ROOT = Path(__file__).resolve().parent.parent
BAD_INPUT = 2
LOST = 3
"""Exit code of a rank that another one left alone."""
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 3.0
"""How long the others may take to end by themselves, once one has failed."""
LINES = 20
"""Of a failed rank's log, so many are shown."""


def run_ranks(num_ranks: int, words: Sequence[str], *, logs: Path, environment: Mapping[str, str]) -> int:
    """Run a module as a group of processes and return 0, or the exit code of the rank that failed.

    Args:
        num_ranks: how many.
        words: the module and its arguments.
        logs: folder of what ranks above 0 say.
        environment: of every rank, but for what tells it which it is.
    """
    store, found = meeting_place(num_ranks)
    logs.mkdir(parents=True, exist_ok=True)
    ranks = [_start(rank, words, logs=logs, environment={**environment, **found}) for rank in range(num_ranks)]
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            time.sleep(POLL_SECONDS)
        failed = _failed(ranks)
    finally:
        _stop(ranks)
        del store  # it must outlive the ranks
    if failed is None:
        return 0
    code = ranks[failed].returncode
    log = logs / f"rank-{failed}.log"
    if code < 0:
        way_out = "the same command goes on from the newest checkpoint"
        sys.stderr.write(f"rank {failed} of {num_ranks} was killed ({signal.Signals(-code).name}); {way_out}\n")
    elif failed > 0:
        said = _last_lines(log)
        told = f"its last lines:\n{said}" if said else f"it said nothing in {log}"
        sys.stderr.write(f"rank {failed} of {num_ranks} ended with code {code}; {told}\n")
    return code if code > 0 else 128 - code


def main() -> int:
    """Run a module's ranks as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m trainers.ranks", description=__doc__)
    parser.add_argument("num_ranks", type=int)
    parser.add_argument("--logs", type=Path, required=True, help="folder of what ranks above 0 say")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="a module and its arguments")
    options = parser.parse_args()
    if options.num_ranks < 1 or not options.words:
        parser.error("give a number of ranks above 0, then a module and its arguments")
    return run_ranks(options.num_ranks, options.words, logs=options.logs, environment=os.environ)


def meeting_place(num_ranks: int) -> tuple[object, dict[str, str]]:
    """Return a store that ranks find by the variables beside it; its port is the system's choice."""
    from torch._C._distributed_c10d import TCPStore  # so that the help does not wait for torch

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store, {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that another rank is gone, as gloo and the store of ranks word it."""
    said = str(error).lower()
    return any(word in said for word in ("gloo", "connection closed by peer", "connection reset", "broken pipe"))


def note_lost(error: BaseException, log: Path, *, rank: int) -> str:
    """Append an error with its traceback to a rank's log, and return in a line what happened."""
    with suppress(OSError), log.open("a") as file:
        traceback.print_exception(error, file=file)
    return f"rank {rank} lost another rank, and ends; its traceback: {log}"


def _start(rank: int, words: Sequence[str], *, logs: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), PARENT: str(os.getpid())}
    command = [sys.executable, "-m", *words]
    if rank == 0:
        return subprocess.Popen(command, cwd=ROOT, env=own)
    with (logs / f"rank-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)


def _failed(ranks: Sequence[subprocess.Popen]) -> int | None:
    """Return the rank to blame, None if none failed.

    One with bad input comes before one that was killed, that before others, and last are those that lost a partner.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    codes = [(_blame(code), number) for number, rank in enumerate(ranks) if (code := rank.poll())]
    return min(codes)[1] if codes else None


def _blame(code: int) -> int:
    """Return a failed rank's place among those to blame, by its exit code; 0 is the first."""
    return 0 if code == BAD_INPUT else 1 if code < 0 else 3 if code == LOST else 2


def _stop(ranks: Sequence[subprocess.Popen]) -> None:
    """End what still runs at once: a rank saves nothing when it leaves, and one in a collective hears no signal."""
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.wait()


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LINES:])


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
