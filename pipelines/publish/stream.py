"""A file of a store as a stream that can be sought, without a copy of it."""

from __future__ import annotations

import io

from pipelines.store.location import Location, retry_remote

BLOCK_BYTES = 8_000_000  # read at a time, and held of a file that is being read


class Stream(io.BufferedIOBase):
    """Reads a file of `size` bytes a block at a time, over interruptions. Nothing is held open, nor at its end: a set has thousands."""

    def __init__(self, place: Location, size: int) -> None:
        self.place = place
        self.size = size
        self._position = 0
        self._block = b""
        self._start = 0  # of the block

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        at = self._position - self._start
        if not 0 <= at <= at + wanted <= len(self._block):
            self._start, self._block = self._position, self._fetch(max(wanted, min(left, BLOCK_BYTES)))
            at = 0
        data = self._block[at : at + wanted]
        self._position += wanted
        if self._position >= self.size:
            self._block = b""
        return data

    def _fetch(self, size: int) -> bytes:
        start = self._position
        data = bytes(retry_remote(self.place, lambda: self.place.fs.cat_file(self.place.path, start=start, end=start + size)))
        if len(data) != size:
            raise OSError(
                f"{self.place.url}: got {len(data)} bytes from {start} on, where {size} were expected; it was changed"
            )
        return data
