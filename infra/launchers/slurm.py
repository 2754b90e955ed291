"""A trainer as a Slurm job step: waits in the queue, speaks here, ends with its code; stopped here, it is cancelled.

K25_TRAINER_PYTHON=infra/launchers/slurm-python K25_NODES=4 K25_RANKS=32 K25_SLURM="--partition=gpu --gpus-per-node=8"
"""

import os
import shlex
import sys
from collections.abc import Mapping

from infra.launchers.words import LOCAL_ONLY, Asked, asked

HEAD = "$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"


def srun_command(ask: Asked, environment: Mapping[str, str]) -> list[str]:
    """Return the srun command: a task a node, which runs torchrun there."""
    python = environment.get("K25_REMOTE_PYTHON", "python")
    words = ask.command(python, node="$SLURM_NODEID", head=HEAD if ask.num_nodes > 1 else "127.0.0.1")
    shell = " ".join(word if "$" in word else shlex.quote(word) for word in words)
    own = shlex.split(environment.get("K25_SLURM", ""))
    shape = [f"--nodes={ask.num_nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--export=ALL", "--unbuffered"]
    return ["srun", f"--job-name=k25-{ask.words[0].rpartition('.')[2]}", *shape, *own, "bash", "-c", f"exec {shell}"]


def main() -> None:
    """Become srun: its exit code is the trainer's, and a signal sent here reaches every task."""
    try:
        command = srun_command(asked(sys.argv[1:], os.environ), os.environ)
        own = {name: value for name, value in os.environ.items() if name not in LOCAL_ONLY}
        os.execvpe(command[0], command, own)
    except (ValueError, FileNotFoundError) as error:
        missing = "srun is not on this machine; run Dagster on a login node" if isinstance(error, OSError) else error
        sys.stderr.write(f"error: {missing}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
