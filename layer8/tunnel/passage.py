"""One direction of a WebSocket (RFC 6455) that a relay passes on: frames are looked at, never opened.

What a page sends is masked already, as it has to be on the next leg, and what a gateway sends is not: so data frames
go on as they are, by the byte. Control frames end here: a ping is answered on its own leg, of a close only the code
goes on. A message is one Noise message, so it is binary and has at most MESSAGE_MOST bytes.

    FIN 1 bit | RSV 3 bits | opcode 4 bits | MASK 1 bit | length 7, 7+16 or 7+64 bits | mask 4 bytes | payload
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha1
from typing import Final

from attrs import frozen

from layer8.core.errors import RemoteProtocolError

MESSAGE_MOST: Final = 65_535  # bytes: what Noise has at most
CONTROL_MOST: Final = 125  # bytes of a control frame
PROTOCOL: Final = "l8.noise.v1"
VERSION: Final = "13"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
BROKEN: Final = 1002
WRONG_KIND: Final = 1003
NO_CODE: Final = 1005
TOO_LONG: Final = 1009

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Breach(RemoteProtocolError):
    """Frames that are not passed on; `code` is what the sender is told."""

    def __init__(self, code: int, why: str) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.code = code


@frozen
class Control:
    """A control frame, unmasked."""

    opcode: int
    data: bytes

    @property
    def code(self) -> int:
        """Give the code of a close frame, as it may be sent on."""
        code = int.from_bytes(self.data[:2], "big") if len(self.data) >= 2 else NORMAL
        return code if 1000 <= code <= 4999 and code not in (1004, 1005, 1006, 1015) else BROKEN


class Passage:
    """See the module."""

    __slots__ = ("_control", "_head", "_left", "_mask", "_masked", "_message", "_shut", "frames")

    def __init__(self, *, masked: bool) -> None:
        """`masked`: from a page, else from a gateway."""
        self._masked = masked
        self._head = bytearray()
        self._left = 0  # bytes of the payload that are still to come
        self._message = -1  # bytes of the message that is under way, -1 between messages
        self._control: bytearray | None = None
        self._mask = b""
        self._shut = False
        self.frames = 0  # data frames that have gone on

    def feed(self, data: bytes) -> tuple[bytes, Sequence[Control]]:
        """Give what goes on, and the control frames that are whole; raises `Breach` and passes nothing on later."""
        out: list[bytes] = []
        controls: list[Control] = []
        at, end = 0, len(data)
        while not self._shut and (at < end or (self._control is not None and not self._left)):
            if self._left or self._control is not None:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._control is None:
                    out.append(piece)
                    continue
                self._control += piece
                if not self._left:
                    controls.append(self._take())
                continue
            wanted = self._wanted()
            taken = data[at : at + wanted - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) == self._wanted():
                try:
                    out.append(self._begin())
                except Breach:
                    self._shut = True
                    raise
        return b"".join(out), controls

    def _wanted(self) -> int:
        """Give the bytes of the present frame's head, as far as it is known."""
        if len(self._head) < 2:
            return 2
        size = self._head[1] & 0x7F
        return 2 + (2 if size == 126 else 8 if size == 127 else 0) + (4 if self._head[1] & 0x80 else 0)

    def _begin(self) -> bytes:
        """Look at a head that is whole; give it if it goes on."""
        head = bytes(self._head)
        self._head.clear()
        final, opcode = head[0] & 0x80, head[0] & 0x0F
        size = head[1] & 0x7F
        if size >= 126:
            start, least = (4, 126) if size == 126 else (10, 1 << 16)
            size = int.from_bytes(head[2:start], "big")
            if size < least:
                raise Breach(BROKEN, "a length that is written too long")
        if head[0] & 0x70 or bool(head[1] & 0x80) is not self._masked:
            raise Breach(BROKEN, "a frame of a form that was not agreed on")
        if opcode >= CLOSE:
            if opcode > PONG or not final or size > CONTROL_MOST:
                raise Breach(BROKEN, "a control frame of a wrong form")
            self._control = bytearray((opcode,))
            self._mask = head[-4:] if self._masked else b""
            self._left = size
            return b""
        if opcode == TEXT:
            raise Breach(WRONG_KIND, "a message that is text")
        if opcode != (BINARY if self._message < 0 else CONTINUATION):
            raise Breach(BROKEN, "a frame out of turn")
        self._message = max(0, self._message) + size
        if self._message > MESSAGE_MOST:
            raise Breach(TOO_LONG, "a message longer than MESSAGE_MOST")
        if final:
            self._message = -1
        self._left = size
        self.frames += 1
        return head

    def _take(self) -> Control:
        """Give the control frame that is whole now."""
        assert self._control is not None
        opcode, data = self._control[0], bytes(self._control[1:])
        self._control = None
        if self._masked:
            data = bytes(byte ^ self._mask[place % 4] for place, byte in enumerate(data))
        self._shut = opcode == CLOSE
        return Control(opcode, data)


def control(opcode: int, data: bytes, mask: bytes = b"") -> bytes:
    """Write a control frame, masked if it goes to a gateway."""
    if not mask:
        return bytes((0x80 | opcode, len(data))) + data
    return bytes((0x80 | opcode, 0x80 | len(data))) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))


def close(code: int, mask: bytes = b"") -> bytes:
    """Write a close frame without a reason."""
    return control(CLOSE, code.to_bytes(2, "big"), mask)


def accept(key: str) -> str:
    """Give the answer to a handshake's key."""
    return b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def offered(fields: Iterable[tuple[str, str]]) -> str | None:
    """Give the key of a page's handshake, names in lower case; None if it is none that is taken here."""
    told: dict[str, list[str]] = {}
    for name, value in fields:
        told.setdefault(name, []).append(value)
    keys = told.get("sec-websocket-key", [])
    if len(keys) != 1 or len(keys[0]) != 24 or not keys[0].isascii():
        return None
    if _words(told, "upgrade") != ["websocket"] or "upgrade" not in _words(told, "connection"):
        return None
    if told.get("sec-websocket-version") != [VERSION]:
        return None
    return keys[0] if PROTOCOL in _words(told, "sec-websocket-protocol") else None


def agreed(status: int, fields: Iterable[tuple[str, str]], key: str) -> bool:
    """Say whether a gateway's answer to our handshake is a yes to what was asked for, and nothing else."""
    told: dict[str, list[str]] = {}
    for name, value in fields:
        told.setdefault(name, []).append(value)
    return (
        status == 101
        and _words(told, "upgrade") == ["websocket"]
        and "upgrade" in _words(told, "connection")
        and told.get("sec-websocket-accept") == [accept(key)]
        and told.get("sec-websocket-protocol") == [PROTOCOL]
        and "sec-websocket-extensions" not in told
    )


def _words(told: dict[str, list[str]], name: str) -> list[str]:
    return [word.strip().lower() for value in told.get(name, ()) for word in value.split(",")]
