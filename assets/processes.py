"""Which processes work for whom: trainers are found by a mark in their environment, runs by a record of their process.

A process group is not enough: torchrun gives each rank a session of its own. The mark is inherited by all.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from k25_pipelines.errors import K25Error

RUN_FILE_MARK = "K25_RUN_FILE"
"""Environment variable of a trainer and all its children: the absolute path of its run file."""


class TrainerBusyError(K25Error):
    """Another live process trains the same run."""


def marked_processes(run_file: Path) -> list[psutil.Process]:
    """Return the live processes, of this user, that carry the mark of `run_file`."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue
        if alive and process.pid != os.getpid() and environment.get(RUN_FILE_MARK) == str(run_file):
            found.append(process)
    return found


def stop_marked(run_file: Path, *, grace_seconds: float) -> list[int]:
    """Stop every process that carries the mark of `run_file`: ask first, kill after the grace.

    Processes are looked for, not waited for: who started one still gets its exit code.

    Args:
        run_file: absolute path of the trainer's run file.
        grace_seconds: how long a trainer may take to leave by itself [s]; 0 kills at once.

    Returns:
        The process ids that were stopped, in order.
    """
    stopped = marked_processes(run_file)
    if grace_seconds > 0:
        _signal_all(stopped, psutil.Process.terminate)
        wait_until(lambda: not marked_processes(run_file), timeout_seconds=grace_seconds)
    for _ in range(20):  # a killed torchrun may have started a rank a moment before
        alive = marked_processes(run_file)
        if not alive:
            break
        _signal_all(alive, psutil.Process.kill)
        wait_until(lambda: not marked_processes(run_file), timeout_seconds=1)
    return sorted(process.pid for process in stopped)


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Hold the run's work folder alone while inside; the kernel frees it when this process dies.

    Raises:
        TrainerBusyError: another live process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "owner.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise TrainerBusyError(
                f"run {folder.name} is being trained by process {lock.read().strip()}; wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def records_folder(instance_root: str) -> Path:
    """Return the folder, below a Dagster instance's, where each run's process is written down."""
    return Path(instance_root) / "k25_runs"


def record_process(folder: Path, run_id: str) -> None:
    """Write down that this process executes the Dagster run `run_id`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    partial = folder / f".{run_id}.{os.getpid()}"
    partial.write_text(json.dumps(record))
    partial.rename(folder / f"{run_id}.json")


def recorded_runs(folder: Path) -> dict[str, bool]:
    """Return run id -> whether the process that executes it still lives."""
    return {path.stem: _is_alive(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))}


def forget_process(folder: Path, run_id: str) -> None:
    """Remove the record of a run that has ended."""
    (folder / f"{run_id}.json").unlink(missing_ok=True)


def wait_until(condition: Callable[[], bool], *, timeout_seconds: float, every_seconds: float = 0.1) -> bool:
    """Return whether `condition()` became true within the time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_seconds)
    return True


def _is_alive(record: dict) -> bool:
    try:
        process = psutil.Process(record["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - record["started"]) < 1
    except psutil.NoSuchProcess:
        return False


def _signal_all(processes: list[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            send(process)
        except psutil.NoSuchProcess:
            continue
