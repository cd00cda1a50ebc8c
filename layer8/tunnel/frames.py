"""What goes through a socket of the tunnel: frames inside of Noise messages, all of a few sizes.

The conversation is `Noise_NK_25519_AESGCM_SHA256` under the subprotocol PROTOCOL; each WebSocket message is one Noise
message. The page is nobody, the gateway's key comes with its key set::

  page                                relay                              gateway
   |--e 32, AEAD(request, 512)-------->|------ unchanged ---------------->|   route checked, nothing opened
   |<-e 32, AEAD(status, 256)----------|<---------------------------------|
   |--AEAD(open)---------------------->|--------------------------------->|   only who is live can say this
   |<-AEAD(opened)---------------------|<---------------------------------|   the backend's socket stands
   |--AEAD(frame)----... ------------->|--------------------------------->|

  prologue   "l8.noise.v1" | 00 | gateway id | 00 | epoch u32
  request    binary HTTP of a GET, with zeros to 512 bytes;  status: of a response, with zeros to 256
  frame      kind u8 (80: last of its message) | length u16 | data | zeros         256 ... 65519 bytes, see SIZES

  kind  0 continuation, 1 text, 2 binary, 8 close (code u16 | reason), 9 ping, a pong, b open, c opened (subprotocol)

Kinds, fragments and codes are WebSocket's (RFC 6455). Each direction has a key of its own, which is replaced by Noise's
REKEY after SOCKET_REKEY frames.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import IntEnum
from typing import Final

from attrs import frozen

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.tunnel.limits import SOCKET_MESSAGE

PROTOCOL: Final = "l8.noise.v1"
FIRST: Final = 512  # bytes of the request in step 1
SECOND: Final = 256  # bytes of the status in step 2
FIRST_SIZE: Final = 32 + FIRST + 16
SECOND_SIZE: Final = 32 + SECOND + 16
SIZES: Final = (256, 512, 1024, 2048, 4096, 16_384, 65_519)  # bytes of a frame: the last fills a Noise message
HEAD: Final = 3
LAST: Final = 0x80
DATA: Final = SIZES[-1] - HEAD  # bytes that one frame carries
CONTROL: Final = 125  # bytes that a frame carries which is no part of a message

CODES: Final = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014))
_OWN: Final = range(3000, 5000)  # codes that applications make up


class Kind(IntEnum):
    """What a frame is."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA
    OPEN = 0xB
    OPENED = 0xC


class BadFrame(RemoteProtocolError):
    """A frame that breaks the rules; `code` is what its sender is told as it is left."""

    def __init__(self, why: str, code: int = 1002) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.code = code


@frozen
class Message:
    """A whole message, or a frame that is no part of one."""

    kind: Kind
    data: bytes = b""


def prologue(gateway: str, epoch: int) -> bytes:
    """Give what both sides of a handshake agree on before it."""
    return PROTOCOL.encode() + b"\0" + gateway.encode() + b"\0" + epoch.to_bytes(4, "big")


def fill(text: bytes, size: int) -> bytes:
    """Add zeros; raises `LocalProtocolError` where there is no room."""
    if len(text) > size:
        raise LocalProtocolError(f"more than {size} bytes")
    return text.ljust(size, b"\0")


def frame(kind: Kind, data: bytes = b"", *, last: bool = True) -> bytes:
    """Write one frame of at most DATA bytes."""
    size = len(data)
    if size > (DATA if kind < Kind.CLOSE else CONTROL):
        raise LocalProtocolError("more data than one frame carries")
    text = bytes((kind | (LAST if last else 0),)) + size.to_bytes(2, "big") + data
    return text.ljust(SIZES[bisect_left(SIZES, len(text))], b"\0")


def frames(message: Message) -> list[bytes]:
    """Write a message, in as many frames as it needs."""
    data, kind = message.data, message.kind
    if kind >= Kind.CLOSE or len(data) <= DATA:
        return [frame(kind, data)]
    cuts = range(0, len(data), DATA)
    return [frame(Kind.CONTINUATION if at else kind, data[at : at + DATA], last=at + DATA >= len(data)) for at in cuts]


def close(code: int, reason: str = "") -> Message:
    """Make a close frame; a reason that is too long is cut, between letters."""
    text = reason.encode()[: CONTROL - 2].decode(errors="ignore").encode()
    return Message(Kind.CLOSE, code.to_bytes(2, "big") + text)


def read_close(data: bytes) -> tuple[int, str]:
    """Give code and reason, 1005 where there is none; raises `BadFrame`."""
    if not data:
        return 1005, ""
    code = int.from_bytes(data[:2], "big")
    if len(data) < 2 or (code not in CODES and code not in _OWN):
        raise BadFrame("a close frame with a code that is none")
    return code, _text(data[2:])


class Assembly:
    """The frames of one direction, and the message of which some have come."""

    __slots__ = ("_kind", "_parts")

    def __init__(self) -> None:
        """Start with none."""
        self._kind: Kind | None = None
        self._parts = bytearray()

    def take(self, text: bytes) -> Message | None:
        """Take a frame; give the message that it ends, or itself if it is none's part. Raises `BadFrame`."""
        if len(text) not in SIZES:
            raise BadFrame("a frame of an unusual size")
        size = int.from_bytes(text[1:3], "big")
        end = HEAD + size
        if end > len(text) or text.count(0, end) != len(text) - end:
            raise BadFrame("a frame that leaves its size, or is filled with more than zeros")
        number, last, data = text[0] & ~LAST, bool(text[0] & LAST), text[HEAD:end]
        if number not in Kind._value2member_map_:
            raise BadFrame("a frame of an unknown kind")
        kind = Kind(number)
        if kind >= Kind.CLOSE:
            if not last or size > CONTROL:
                raise BadFrame("a control frame in parts, or too long")
            return Message(kind, data)
        return self._add(kind, data, last)

    def _add(self, kind: Kind, data: bytes, last: bool) -> Message | None:
        if (kind is Kind.CONTINUATION) != (self._kind is not None):
            raise BadFrame("a message that begins or goes on out of turn")
        if len(self._parts) + len(data) > SOCKET_MESSAGE:
            raise BadFrame(f"over the limit SOCKET_MESSAGE of {SOCKET_MESSAGE}", 1009)
        if not last and not data:
            raise BadFrame("a part of a message with nothing in it")
        self._kind = self._kind or kind
        self._parts += data
        if not last:
            return None
        message = Message(self._kind, bytes(self._parts))
        self._kind = None
        self._parts.clear()
        if message.kind is Kind.TEXT:
            _text(message.data)
        return message


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadFrame("text that is not UTF-8", 1007) from None
