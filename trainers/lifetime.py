"""How a trainer ends: on SIGTERM at once and tidily, and with the process that started it, so that none is orphaned."""

import os
import signal
import threading
import time
from types import FrameType

import psutil

LOOK_EVERY_SECONDS = 1.0
PARENT = "K25_PARENT_PID"
"""Environment variable: the process without which this one has nothing to do."""
EXIT_CODE = 128 + signal.SIGTERM


def end_with_parent() -> None:
    """Leave on SIGTERM, and when the process named by K25_PARENT_PID is gone. Nothing is saved: resume finds the last.

    For mains only: it changes the process's signal handler and starts a thread.
    """
    signal.signal(signal.SIGTERM, _leave)
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_watch, args=(int(parent),), name="parent", daemon=True).start()


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended, or its number now names another."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_CODE)


def _watch(pid: int) -> None:
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(EXIT_CODE)
    while not is_gone(parent):
        time.sleep(LOOK_EVERY_SECONDS)
    os._exit(EXIT_CODE)  # the main thread may sit in a collective that no exception reaches
