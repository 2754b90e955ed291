"""A read-only file over an object: ranged GETs of whole blocks, the last few of which are kept."""

import io
from collections import OrderedDict

from k25_pipelines.storage.store import ObjectInfo, Store

BLOCK_BYTES = 4 * 2**20
KEPT_BLOCKS = 2


class RangedFile(io.RawIOBase):
    """What tar, Parquet and line readers want of a file; nothing is fetched that they do not read."""

    def __init__(self, store: Store, info: ObjectInfo, *, block_bytes: int = BLOCK_BYTES) -> None:
        """Open an object as a listing showed it; one overwritten since is refused. Used by one thread at a time."""
        super().__init__()
        self._store, self._info, self._block_bytes = store, info, block_bytes
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position [bytes]."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.num_bytes}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer) -> int:
        """Fill `buffer` from the position, to the end of one block at most."""
        view = memoryview(buffer).cast("B")
        number, start = divmod(self._position, self._block_bytes)
        if self._position >= self._info.num_bytes:
            return 0
        found = memoryview(self._block(number))[start : start + len(view)]
        view[: len(found)] = found
        self._position += len(found)
        return len(found)

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer only at the end of the object."""
        left = self._info.num_bytes - self._position
        return self.read_at(self._position, left if size is None or size < 0 else min(size, left), move=True)

    def read_at(self, offset: int, num_bytes: int, *, move: bool = False) -> bytes:
        """Return bytes from `offset`; the position stays where it was unless `move`."""
        number, start = divmod(offset, self._block_bytes)
        if num_bytes <= 0:
            return b""
        data = self._block(number)[start : start + num_bytes]
        while len(data) < num_bytes:
            number += 1
            data += self._block(number)[: num_bytes - len(data)]
        if move:
            self._position = offset + num_bytes
        return data

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        offset = number * self._block_bytes
        size = min(self._block_bytes, self._info.num_bytes - offset)
        self._blocks[number] = data = self._store.get_range(self._info.key, offset, size, etag=self._info.etag)
        if len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return data
