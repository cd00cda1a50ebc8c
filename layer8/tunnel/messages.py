"""Whole messages of a WebSocket (RFC 6455), at the ends where somebody opens them: no extensions, one size at most.

See `layer8.tunnel.passage` for the form of a frame.
"""

from __future__ import annotations

from typing import Final

from layer8.tunnel.passage import (
    BINARY,
    BROKEN,
    CLOSE,
    CONTINUATION,
    CONTROL_MOST,
    NO_CODE,
    PONG,
    TEXT,
    TOO_LONG,
    Breach,
)

NOT_TEXT: Final = 1007
CODES: Final = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))  # that may be said

Found = tuple[int, bytes]
"""An opcode and what is said with it."""


class Messages:
    """One direction: bytes in, messages and control frames out; `masked` is what a server hears."""

    __slots__ = ("_held", "_kind", "_masked", "_most", "_parts", "_shut")

    def __init__(self, *, masked: bool, most: int) -> None:
        """Take messages of at most `most` bytes."""
        self._masked = masked
        self._most = most
        self._held = bytearray()
        self._kind = 0  # of the message that is under way
        self._parts = bytearray()
        self._shut = False

    def feed(self, data: bytes) -> list[Found]:
        """Give what is whole now; raises `Breach`, and hears nothing afterwards."""
        if self._shut:
            return []
        self._held += data
        found: list[Found] = []
        try:
            while (frame := self._frame()) is not None:
                if (message := self._take(*frame)) is not None:
                    found.append(message)
        except Breach:
            self._shut = True
            self._held.clear()
            raise
        return found

    def _frame(self) -> tuple[int, bytes] | None:
        """Take a whole frame: its first byte, and its payload."""
        held = self._held
        if self._shut or len(held) < 2:
            return None
        first, size, start = held[0], held[1] & 0x7F, 2
        if first & 0x70 or bool(held[1] & 0x80) is not self._masked:
            raise Breach(BROKEN, "a frame of a form that was not agreed on")
        if first & 0x0F >= CLOSE and (size > CONTROL_MOST or not first & 0x80 or first & 0x0F > PONG):
            raise Breach(BROKEN, "a control frame of a wrong form")
        if size >= 126:
            start, least = (4, 126) if size == 126 else (10, 1 << 16)
            if len(held) < start:
                return None
            size = int.from_bytes(held[2:start], "big")
            if size < least:
                raise Breach(BROKEN, "a length that is written too long")
        if len(self._parts) + size > self._most + CONTROL_MOST:
            raise Breach(TOO_LONG, "a message that is too long")
        start += 4 if self._masked else 0
        if len(held) < start + size:
            return None
        payload = bytes(held[start : start + size])
        if self._masked:
            payload = masked(payload, bytes(held[start - 4 : start]))
        del held[: start + size]
        return first, payload

    def _take(self, first: int, payload: bytes) -> Found | None:
        opcode = first & 0x0F
        if opcode >= CLOSE:
            self._shut = opcode == CLOSE
            return opcode, payload
        if opcode > BINARY or (opcode == CONTINUATION) != bool(self._kind):
            raise Breach(BROKEN, "a frame out of turn")
        self._kind = self._kind or opcode
        self._parts += payload
        if len(self._parts) > self._most:
            raise Breach(TOO_LONG, "a message that is too long")
        if not first & 0x80:
            return None
        kind, text = self._kind, bytes(self._parts)
        self._kind = 0
        self._parts.clear()
        if kind == TEXT:
            _text(text)
        return kind, text


def masked(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask, as one exclusive-or of two long integers."""
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


def frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """Write one frame, masked if it goes to a server."""
    size, bit = len(payload), 0x80 if mask else 0
    if size < 126:
        head = bytes((0x80 | opcode, bit | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, bit | 127)) + size.to_bytes(8, "big")
    return head + mask + masked(payload, mask) if mask else head + payload


def read_close(payload: bytes) -> tuple[int, str]:
    """Give code and reason of a close frame; raises `Breach`."""
    if not payload:
        return NO_CODE, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or code not in CODES:
        raise Breach(BROKEN, "a close with a code that is none")
    return code, _text(payload[2:])


def write_close(code: int, reason: str = "") -> bytes:
    """Give the payload of a close frame; none for a code that may not be said."""
    if code not in CODES:
        return b""
    return code.to_bytes(2, "big") + reason.encode()[: CONTROL_MOST - 2].decode(errors="ignore").encode()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Breach(NOT_TEXT, "text that is not UTF-8") from None
