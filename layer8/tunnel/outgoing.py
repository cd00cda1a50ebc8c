"""A message on its way out: binary HTTP as its content comes, in full chunks, filled up with zeros at its end.

A thirtieth of a long message is padding, so it is made as it can be sent, by `pad`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from layer8.core.errors import LocalProtocolError
from layer8.tunnel import bhttp, wire
from layer8.tunnel.bhttp import Fields, Informational, Request, Response
from layer8.tunnel.limits import CHUNK_PLAIN
from layer8.tunnel.wire import Sealer

PADDING: Final = 64 * 1024  # bytes of it that are made at a time


class Outgoing:
    """One message, known length or not; each method gives the sealed bytes that go out now, perhaps none.

    Everything that cannot be written raises `LocalProtocolError`: it is our own side's.
    """

    __slots__ = ("_known", "_left", "_padded", "_sealer", "_text", "_written", "owed")

    def __init__(
        self,
        sealer: Sealer,
        message: Request | Response,
        *,
        length: int | None,
        pad: bool,
        early: Iterable[Informational] = (),
    ) -> None:
        """Begin with the head; nothing goes out before there is a chunk of it, or a `flush`."""
        self._sealer = sealer
        self._padded = pad
        self.owed = 0  # bytes of padding that are still to be made
        self._left = length or 0  # bytes of content that were promised and have not come
        self._known = length is not None
        self._text = bytearray()
        self._written = 0  # bytes of plaintext, sealed or not
        self._add(bhttp.head(message, length=length, early=early))

    @property
    def size(self) -> int:
        """How many bytes of plaintext there are so far."""
        return self._written

    @property
    def short(self) -> bool:
        """Whether content is missing that was promised."""
        return bool(self._left)

    def write(self, data: bytes) -> bytes:
        """Add content."""
        if self._known:
            if len(data) > self._left:
                raise LocalProtocolError("more content than was promised")
            self._left -= len(data)
        self._add(data if self._known else bhttp.piece(data))
        full = len(self._text) // CHUNK_PLAIN * CHUNK_PLAIN
        return self._seal(full) if full else b""

    def flush(self) -> bytes:
        """Let out what waits for a full chunk."""
        return self._seal(len(self._text)) if self._text else b""

    def finish(self, trailers: Fields = ()) -> bytes:
        """End the message; nothing may follow but the rest of its padding, while some is `owed`."""
        if self._left:
            raise LocalProtocolError("less content than was promised")
        self._add(bhttp.tail(trailers, known=self._known))
        if self._padded:
            self.owed = wire.padded(self._written) - self._written
        return self.pad()

    def pad(self) -> bytes:
        """Add some of what is `owed`; the last of it ends the message."""
        size = min(self.owed, PADDING)
        self.owed -= size
        self._text += bytes(size)
        if self.owed:
            return self._seal(len(self._text) // CHUNK_PLAIN * CHUNK_PLAIN)
        return self._sealer.finish(bytes(self._text))

    def _add(self, text: bytes) -> None:
        self._text += text
        self._written += len(text)

    def _seal(self, size: int) -> bytes:
        with memoryview(self._text) as view, view[:size] as text:
            sealed = self._sealer.seal(text)
        del self._text[:size]
        return sealed
