"""A byte buffer with a named cap, for everything that has to wait for more bytes."""

from __future__ import annotations

from layer8.core.errors import LimitExceeded


class CappedBuffer:
    """Bytes in arrival order, never more than `most` of them.

    Appending past the cap raises `LimitExceeded` and leaves the buffer as it was.
    """

    __slots__ = ("_data", "limit", "most")

    def __init__(self, limit: str, most: int) -> None:
        """Name the limit and its size in bytes."""
        self.limit = limit
        self.most = most
        self._data = bytearray()

    def __len__(self) -> int:
        """Count the bytes that wait."""
        return len(self._data)

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        if len(self._data) + len(data) > self.most:
            raise LimitExceeded(self.limit, self.most)
        self._data += data

    def peek(self, size: int, start: int = 0) -> bytes:
        """Copy up to `size` bytes from `start` without taking them."""
        return bytes(self._data[start : start + size])

    def find(self, what: bytes, start: int = 0) -> int:
        """Give the index of `what` at or after `start`, or -1; callers pass `start` so nothing is scanned twice."""
        return self._data.find(what, start)

    def take(self, size: int) -> bytes | None:
        """Take exactly `size` bytes, or None and nothing if there are fewer."""
        if len(self._data) < size:
            return None
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def take_all(self) -> bytes:
        """Take everything."""
        taken = bytes(self._data)
        self._data.clear()
        return taken
