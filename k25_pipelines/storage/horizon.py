"""Which files of a cache its processes use next, and when: told in files that die with their writers."""

import fcntl
import os
import struct
import weakref
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from k25_pipelines.keys import DIGEST_BYTES

FOLDER = "horizons"
_ENTRY = struct.Struct(f"<{DIGEST_BYTES}sq")
"""Name, and uses ahead of the writer's next."""


class Horizon:
    """What one process says of its next uses, for the others that may drop a file. Best effort: it only saves bytes.

    The writer holds a lock on its file as long as it lives, so what a dead one said does not count.
    """

    def __init__(self, folder: Path) -> None:
        """Open a horizon of this process in the cache's folder. Raises OSError: it cannot be written."""
        (folder / FOLDER).mkdir(exist_ok=True)
        self._path = folder / FOLDER / uuid4().hex
        self._file: int | None = None

    def publish(self, uses: Mapping[str, int]) -> None:
        """Replace what was said. A name is hexadecimal; a use is an increasing number such as a step."""
        now = min(uses.values(), default=0)
        body = b"".join(_ENTRY.pack(bytes.fromhex(name), use - now) for name, use in uses.items())
        with suppress(OSError):  # a full disk
            file = self._file = self._opened() if self._file is None else self._file
            data = zlib.crc32(body).to_bytes(4, "little") + body
            os.pwrite(file, data, 0)
            os.ftruncate(file, len(data))

    def _opened(self) -> int:
        hidden = self._path.with_name(f".{self._path.name}")  # until it is locked, it would look like a dead one's
        file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, _removed, file, self._path)
        fcntl.flock(file, fcntl.LOCK_EX)
        os.rename(hidden, self._path)
        return file


def _removed(file: int, path: Path) -> None:
    with suppress(OSError):
        path.unlink()
    os.close(file)


def known_uses(folder: Path) -> dict[str, int]:
    """Return how far ahead each name's next use is, the nearest over the processes that live."""
    nearest: dict[str, int] = {}
    for path in (folder / FOLDER).glob("[0-9a-f]*"):
        with suppress(OSError):
            for name, ahead in _said(path):
                nearest[name] = min(ahead, nearest.get(name, ahead))
    return nearest


def _said(path: Path) -> list[tuple[str, int]]:
    """Return what a process said; nothing if it is dead, or was about to say something else."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            data = file.read()
        else:  # its writer is dead
            path.unlink(missing_ok=True)
            return []
    body = data[4:]
    if zlib.crc32(body).to_bytes(4, "little") != data[:4] or len(body) % _ENTRY.size:
        return []
    return [(name.hex(), ahead) for name, ahead in _ENTRY.iter_unpack(body)]
