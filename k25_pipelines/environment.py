"""What the command line finds around it: the lake, the embedded server, and the repository's other programs.

For entry points only: it reads and sets environment variables.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k25_pipelines.errors import K25Error
from k25_pipelines.storage.store import Store, open_store

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".k25"
"""What runs write on this machine: the embedded server's data, caches, Dagster's instance, pages."""
BORROWED = STATE / "s3.borrowed"
"""Names the process for whose time alone the server was started."""


@contextmanager
def served_lake() -> Iterator[None]:
    """Serve the embedded lake while the body runs, unless K25_LAKE names another or it is served already."""
    if os.environ.get("K25_LAKE"):
        yield
        return
    was_up = run_child("infra.s3_server", "status", quiet=True) == 0 and not _is_left_over()
    if not was_up:
        STATE.mkdir(exist_ok=True)
        BORROWED.write_text(str(os.getpid()))
    try:
        if code := run_child("infra.s3_server", "up", "--background"):
            raise SystemExit(code)
        _load_server_environment()
        yield
    finally:
        if not was_up:
            run_child("infra.s3_server", "down")
            BORROWED.unlink(missing_ok=True)


def keep_server() -> None:
    """Let the server run on, though a command that was killed may have started it for itself alone."""
    BORROWED.unlink(missing_ok=True)


def _is_left_over() -> bool:
    """Whether the server was started for the time of a command that was killed since."""
    try:
        os.kill(int(BORROWED.read_text()), 0)
    except (ProcessLookupError, ValueError):
        return True
    except OSError:  # no such file, or another user's process
        return False
    return False


def run_child(module: str, *words: str, quiet: bool = False) -> int:
    """Run a module of the repository as a process of its own and return its exit code."""
    if not (ROOT / "trainers").is_dir():
        raise K25Error(f"{module} runs from the repository, and {ROOT} holds the library alone; clone the repository")
    output = subprocess.DEVNULL if quiet else None
    lake = {"K25_LAKE": open_store(os.environ["K25_LAKE"]).url} if os.environ.get("K25_LAKE") else {}  # cwd is another
    command = [sys.executable, "-m", module, *words]
    return subprocess.call(command, cwd=ROOT, env={**os.environ, **lake}, stdout=output, stderr=output)


def _load_server_environment() -> None:
    """Take K25_LAKE and AWS_* from the embedded server's file where the environment has none."""
    for line in (STATE / "env").read_text().splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        if name:
            os.environ.setdefault(name, "".join(shlex.split(value)))


def open_lake() -> Store:
    """Return the store of the lake; say how to name one where none is named."""
    if not os.environ.get("K25_LAKE") and (STATE / "env").exists():
        _load_server_environment()
    url = os.environ.get("K25_LAKE")
    if not url:
        raise K25Error(
            "no lake: set K25_LAKE to s3://bucket/prefix or a folder, or start the embedded one with `k25 up`"
        )
    return open_store(url)
