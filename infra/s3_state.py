"""What the embedded S3 server leaves in its state folder: exports to source (`env`) and its process (`s3.pid`)."""

import json
import os
import secrets
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

BUCKET = "lake"
REGION = "us-east-1"
START_TIME_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Who may use the server."""

    access_key: str
    secret_key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerProcess:
    """The process that serves, told from a later one under the same number by its start."""

    pid: int
    start_time: float
    """Start of the process, as the operating system tells it [seconds since 1970]."""


def data_folder(state_folder: Path) -> Path:
    """Return the folder that holds the objects; each folder in it is a bucket."""
    return state_folder / "s3"


def environment(endpoint: str, credentials: Credentials) -> dict[str, str]:
    """Return the variables with which every program of this project finds the lake."""
    return {
        "K25_LAKE": f"s3://{BUCKET}",
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": REGION,
    }


def read_environment(state_folder: Path) -> dict[str, str]:
    """Return the variables in `env`; empty where there is none or it is damaged."""
    try:
        lines = (state_folder / "env").read_text().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return {}
    words = [line.removeprefix("export ").partition("=") for line in lines if line.startswith("export ")]
    return {name: value.strip("'") for name, _, value in words}


def write_environment(state_folder: Path, variables: dict[str, str]) -> None:
    """Write `env`, readable by the owner alone, whole or not at all."""
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    _write_private(state_folder / "env", text)


def saved_credentials(state_folder: Path) -> Credentials:
    """Return the credentials of earlier starts, so that shells stay valid; new ones the first time."""
    variables = read_environment(state_folder)
    access_key, secret_key = variables.get("AWS_ACCESS_KEY_ID", ""), variables.get("AWS_SECRET_ACCESS_KEY", "")
    if len(access_key) >= 16 and len(secret_key) >= 32:
        return Credentials(access_key=access_key, secret_key=secret_key)
    return Credentials(access_key=f"K25{secrets.token_hex(10).upper()}", secret_key=secrets.token_hex(20))


def running_process(state_folder: Path) -> ServerProcess | None:
    """Return the process that serves this state folder, None where none is alive.

    The process file says which; where it is missing or stale (a killed run, a number that now belongs
    to another program), the machine's processes are searched for one that serves our data folder.
    """
    written = _read_process(state_folder)
    if written is not None and _is_alive(written):
        return written
    needle = str(data_folder(state_folder).resolve())
    for process in psutil.process_iter(["pid", "create_time", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if words[1:3] == ["serve", "s3"] and needle in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            return ServerProcess(pid=process.info["pid"], start_time=process.info["create_time"])
    return None


def write_process(state_folder: Path, pid: int) -> ServerProcess:
    """Write `s3.pid` for the living process `pid` and return what stands in it."""
    process = ServerProcess(pid=pid, start_time=psutil.Process(pid).create_time())
    _write_private(state_folder / "s3.pid", json.dumps(asdict(process)) + "\n")
    return process


def forget_process(state_folder: Path) -> None:
    """Remove `s3.pid`; the exports stay, for the next start."""
    (state_folder / "s3.pid").unlink(missing_ok=True)


def _read_process(state_folder: Path) -> ServerProcess | None:
    try:
        return ServerProcess(**json.loads((state_folder / "s3.pid").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _is_alive(written: ServerProcess) -> bool:
    try:
        process = psutil.Process(written.pid)
        same = abs(process.create_time() - written.start_time) < START_TIME_TOLERANCE_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, TypeError):
        return False


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
