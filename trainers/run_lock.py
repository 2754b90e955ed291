"""One trainer to a run's work folder: a lock that the system frees with the process, however that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k25_pipelines.errors import RunError

LOCK = "run.lock"
"""In the work folder; it holds the number of the process that has it, or of the last that had it."""


@contextmanager
def locked(work: Path, *, run: str) -> Iterator[None]:
    """Keep a run's work folder to this process: of its ranks the first takes it, for as long as it lives.

    Args:
        work: the folder; made where it is not there.
        run: its name, for the message.

    Raises:
        RunError: another process has it, named by its number; or the folder cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = os.open(work / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise RunError(f"work folder {work} cannot be used: {error.strerror}; choose another") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 32).decode(errors="replace").strip() or "another"
            raise RunError(
                f"run {run} is being trained already, by process {holder}, which holds {work / LOCK}; wait for it, or "
                f"end it: kill {holder}"
            ) from None
        except OSError as error:
            raise RunError(
                f"{work / LOCK} cannot be locked: {error.strerror}; put the work folder on a local disk"
            ) from error
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(file)


def check_unlocked(work: Path, *, run: str) -> None:
    """Raise RunError where a process holds a run's work folder: before its run file and logs are written anew."""
    with locked(work, run=run):
        pass
