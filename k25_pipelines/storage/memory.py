"""A store in this process's memory, for tests: objects by key, gone with the process."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError
from k25_pipelines.storage.store import ObjectInfo, checked_etag, checked_key, checked_length


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryStore:
    """Objects below `prefix` of one named space; two stores of one space see each other's objects."""

    url: str
    """`memory://name[/prefix]`."""
    prefix: str = ""
    """What stands before every key in the space: empty, or ending in a slash."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """The space: whole name -> bytes."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> bytes:
        """Return a whole object. Raises ObjectNotFoundError."""
        data = self.objects.get(self.prefix + checked_key(key))
        if data is None:
            raise ObjectNotFoundError(f"{self.url}/{key}: no such object")
        return data

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        """Return exactly `num_bytes` bytes from `offset`, of the object of that etag alone if one is given."""
        whole = self.get(key)
        if etag is not None:
            checked_etag(_info(key, whole).etag, etag, where=f"{self.url}/{key}")
        data = whole[offset : offset + num_bytes]
        return checked_length(data, num_bytes, where=f"{self.url}/{key} from byte {offset}")

    def head(self, key: str) -> ObjectInfo:
        """Return size and etag (MD5, as S3's) of an object."""
        return _info(key, self.get(key))

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what stood there."""
        with self.lock:
            self.objects[self.prefix + checked_key(key)] = bytes(data)

    def put_new(self, key: str, data: bytes) -> None:
        """Write an object once. Raises ObjectExistsError where other bytes stand."""
        with self.lock:
            if self.objects.setdefault(self.prefix + checked_key(key), bytes(data)) != data:
                raise ObjectExistsError(f"{self.url}/{key} stands already, with other bytes; it is written once")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix`, in the order of their keys."""
        start = self.prefix + prefix
        with self.lock:
            found = sorted(item for item in self.objects.items() if item[0].startswith(start))
        for name, data in found:
            yield _info(name[len(self.prefix) :], data)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        with self.lock:
            self.objects.pop(self.prefix + checked_key(key), None)


_SPACES: dict[str, MemoryStore] = {}
_SPACES_LOCK = threading.Lock()


def memory_store(url: str) -> MemoryStore:
    """Return the store of `memory://name[/prefix]`: one space per name and process, empty at first."""
    space_name, _, prefix = url.removeprefix("memory://").rstrip("/").partition("/")
    with _SPACES_LOCK:
        space = _SPACES.setdefault(space_name, MemoryStore(url=f"memory://{space_name}"))
    if not prefix:
        return space
    return MemoryStore(url=f"{space.url}/{prefix}", prefix=f"{prefix}/", objects=space.objects, lock=space.lock)


def _info(key: str, data: bytes) -> ObjectInfo:
    return ObjectInfo(key=key, num_bytes=len(data), etag=hashlib.md5(data, usedforsecurity=False).hexdigest())
