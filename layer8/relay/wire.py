"""Cells, handshake layouts and relay messages: bytes <-> frozen values. All integers are big-endian.

```
 link    | circ u32 | cmd u8 | body 2043                                  CELL = 2048, always, on every link
 body    | tag 16 | 2027 under one onion layer a hop                      layer8.crypto.onion
 message | cmd u8 | stream u16 | len u16 | data <= 2022 | pad             inside the last layer

 client            hop 1                hop 2                hop 3              target
   |---CREATE-------->|                    |                    |                  |
   |<--CREATED--------|                    |                    |                  |
   |---CONNECT INTERNAL (EARLY)----------->|                    |                  |
   |                  |---CREATE---------->|                    |                  |
   |                  |<--CREATED----------|                    |                  |
   |<--CONNECT_OK------------------------- |                    |                  |
   |---CONNECT TCP (RELAY) ------------------------------------>|----SYN---------->|
   |<--CONNECT_OK, DATA ----------------------------------------|<-----------------|
   |---ACK, DATA, DISCONNECT----------------------------------->|
```
`circ` 0 is the link itself; the side that dialled sets the top bit of the ids that it makes. The top bit of `len` says
that more fragments of a control message follow.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from attrs import field, frozen

from layer8.core.errors import LimitExceeded, RemoteProtocolError

CELL: Final = 2048  # bytes
HEAD: Final = 5  # bytes before the body
BODY: Final = CELL - HEAD
TAG: Final = 16
MESSAGE: Final = BODY - TAG
MESSAGE_HEAD: Final = 5
DATA: Final = MESSAGE - MESSAGE_HEAD  # bytes of data in one cell
DATA_TAGGED: Final = DATA - TAG  # of every 32nd data cell of a direction, which has TAG random bytes behind them
MORE: Final = 0x8000  # top bit of `len`
DIALLER: Final = 0x8000_0000  # top bit of `circ`
VERSION: Final = 1
ALPN: Final = b"layer8/1"
HANDSHAKE: Final = BODY - 4  # most bytes of a CREATE or CREATED handshake
L8_NTOR: Final = 1  # the one kind of handshake
IDENTITY: Final = 32
ENDPOINTS: Final = 8
ENDPOINT_MOST: Final = 128  # bytes
HOST_MOST: Final = 255  # bytes
MESSAGE_MAX: Final = 32 * 1024  # bytes of one message in fragments
REASSEMBLY: Final = 64 * 1024  # bytes of unfinished messages of one circuit
UNFINISHED: Final = 256  # bytes that each of them counts for besides what it holds
TEXT_MOST: Final = 4096  # bytes of a RELAY_MESSAGE


class Cell(IntEnum):
    """Commands of cells."""

    PAD = 0
    HELLO = 1
    CREATE = 2
    CREATED = 3
    RELAY = 4
    EARLY = 5
    DESTROY = 6
    PING = 7
    PONG = 8
    NOTICE = 9


class Destroy(IntEnum):
    """Why a circuit ends."""

    NONE = 0
    PROTOCOL = 1
    INTERNAL = 2
    ASKED = 3
    LIMIT = 4
    LINK_LOST = 5
    UNREACHABLE = 6
    WRONG_IDENTITY = 7
    TIMEOUT = 8
    GOING_DOWN = 9


class Notice(IntEnum):
    """What a link says before it goes on or ends."""

    IN_USE = 1
    TRIED = 2
    CLOCK = 3


class Command(IntEnum):
    """Commands of relay messages; 16 to 22 belong to trackers, 32 to 63 to the DHT and hidden services."""

    CONNECT = 1
    CONNECT_OK = 2
    DATA = 3
    DISCONNECT = 4
    ACK = 5
    DROP = 6
    MESSAGE = 7
    MESSAGE_OK = 8
    PUNCH = 9
    LOGIN = 10  # layer8.relay.login


class Proto(IntEnum):
    """What RELAY_CONNECT asks for."""

    INTERNAL = 0
    TCP = 1
    UDP = 2


class Reason(IntEnum):
    """Why a stream ends, or an extension failed."""

    DONE = 1
    POLICY = 2
    RESOLVE = 3
    REFUSED = 4
    UNREACHABLE = 5
    TIMEOUT = 6
    RESET = 7
    LIMIT = 8
    NO_PORT = 9
    PROTOCOL = 10
    INTERNAL = 11


HALF: Final = 1  # flag of RELAY_DISCONNECT: this direction only
DELEGATE: Final = 1  # flag of RELAY_CONNECT: go on through peers of yours

_HEAD = struct.Struct(">IB")
_MESSAGE_HEAD = struct.Struct(">BHH")
_PAIR = struct.Struct(">HH")
_ZERO = bytes(CELL)


def cell(circ: int, cmd: int, body: bytes = b"") -> bytes:
    """Make a whole cell; a body shorter than BODY is filled with zeros."""
    if len(body) > BODY:
        raise ValueError("a body longer than its cell")
    return _HEAD.pack(circ, cmd) + body + _ZERO[: BODY - len(body)]


def message(command: int, stream: int, data: bytes = b"", *, more: bool = False) -> bytes:
    """Make one message of MESSAGE bytes, filled with zeros; `data` has at most DATA bytes."""
    size = len(data)
    if size > DATA:
        raise ValueError("data longer than its message")
    return _MESSAGE_HEAD.pack(command, stream, size | MORE if more else size) + data + _ZERO[: DATA - size]


def tagged(stream: int, data: bytes, tag: bytes) -> bytes:
    """Make a data message whose onion tag nobody can compute from `data`: at most DATA_TAGGED bytes, then `tag`."""
    size = len(data)
    if size > DATA_TAGGED or len(tag) != TAG:
        raise ValueError("data longer than its tagged message")
    return _MESSAGE_HEAD.pack(Command.DATA, stream, size) + data + tag + _ZERO[: DATA_TAGGED - size]


def fragments(command: int, stream: int, data: bytes) -> list[bytes]:
    """Make the messages of one control message of any size up to MESSAGE_MAX."""
    if len(data) > MESSAGE_MAX:
        raise ValueError("a message longer than MESSAGE_MAX")
    cuts = range(0, max(len(data), 1), DATA)
    return [message(command, stream, data[at : at + DATA], more=at + DATA < len(data)) for at in cuts]


def read_head(text: bytes) -> tuple[int, int, int, bool]:
    """Give command, stream, length and whether more fragments follow; raises `RemoteProtocolError`."""
    command, stream, size = _MESSAGE_HEAD.unpack_from(text)
    more = size >= MORE
    size &= MORE - 1
    if size > DATA:
        raise RemoteProtocolError("a message longer than its cell")
    return command, stream, size, more


class Reassembly:
    """The unfinished control messages of one direction of a circuit, REASSEMBLY bytes in all."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        """Start with none."""
        self._parts: dict[tuple[int, int], bytearray] = {}
        self._size = 0

    def add(self, command: int, stream: int, data: bytes, more: bool) -> bytes | None:
        """Take a fragment; give the message when it is whole. Raises `LimitExceeded`."""
        key = (command, stream)
        begun = self._parts.get(key)
        if begun is None and not more:
            return data
        if begun is None:
            begun = self._parts[key] = bytearray()
            self._size += UNFINISHED
        self._size += len(data)
        if len(begun) + len(data) > MESSAGE_MAX:
            raise LimitExceeded("MESSAGE_MAX", MESSAGE_MAX)
        if self._size > REASSEMBLY:
            raise LimitExceeded("REASSEMBLY", REASSEMBLY)
        begun += data
        if more:
            return None
        del self._parts[key]
        self._size -= len(begun) + UNFINISHED
        return bytes(begun)


def handshake_body(kind: int, data: bytes) -> bytes:
    """Make the body of CREATE or CREATED, and the end of RELAY_CONNECT INTERNAL: `kind u16 | len u16 | handshake`."""
    if len(data) > HANDSHAKE:
        raise ValueError("a handshake longer than its cell")
    return _PAIR.pack(kind, len(data)) + data


def read_handshake(body: bytes) -> tuple[int, bytes]:
    """Give kind and handshake; raises `RemoteProtocolError`."""
    read = _Reader(body)
    kind, size = read.u16(), read.u16()
    return kind, read.take(size)


@frozen
class Address:
    """An IP address with a port, as `type u8 (4 or 6) | 4 or 16 bytes | port u16`; type 0 is none."""

    host: str
    port: int = 0

    def encode(self, *, port: bool = True) -> bytes:
        """Give its bytes, without the port if asked."""
        if not self.host:
            text = b"\0"
        else:
            ip = ipaddress.ip_address(self.host)
            text = bytes((ip.version,)) + ip.packed
        return text + self.port.to_bytes(2, "big") if port else text


@frozen
class Hello:
    """The first cell of either side.

    `seen` is the address that the sender sees its peer at. `identity` and `signature` are empty where the carrier has
    certified the sender already. `descriptor` is the sender's own, if it relays: so a node that knows nobody but an
    address learns how to build through whoever is there.
    """

    versions: tuple[int, ...]
    cell_len: int
    network: bytes  # first 8 bytes of the SHA-256 of the network's name
    flags: int
    time: int  # seconds since 1970
    seen: Address
    identity: bytes = b""
    signature: bytes = b""
    descriptor: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        """Give the body of the cell."""
        versions = b"".join(v.to_bytes(2, "big") for v in self.versions)
        host = ipaddress.ip_address(self.seen.host) if self.seen.host else None
        kind, packed = (0, b"") if host is None else (host.version, host.packed)
        return b"".join(
            (
                bytes((len(self.versions),)),
                versions,
                struct.pack(">H8sHQ", self.cell_len, self.network, self.flags, self.time),
                struct.pack(">B16sH", kind, packed, self.seen.port),
                self.identity or bytes(IDENTITY),
                self.signature or bytes(64),
                len(self.descriptor).to_bytes(2, "big"),
                self.descriptor,
            )
        )

    @classmethod
    def read(cls, body: bytes) -> Hello:
        """Read the body of the cell; raises `RemoteProtocolError`."""
        read = _Reader(body)
        versions = tuple(read.u16() for _ in range(read.u8()))
        cell_len, network, flags, time = read.u16(), read.take(8), read.u16(), read.u64()
        kind, packed, port = read.u8(), read.take(16), read.u16()
        if kind not in (0, 4, 6):
            raise RemoteProtocolError("an address of unknown type")
        host = str(ipaddress.ip_address(packed[:4] if kind == 4 else packed)) if kind else ""
        identity, signature = read.take(IDENTITY), read.take(64)
        if not any(identity):
            identity = signature = b""
        descriptor = read.take(read.u16())
        return cls(versions, cell_len, network, flags, time, Address(host, port), identity, signature, descriptor)


@frozen
class Extend:
    """RELAY_CONNECT INTERNAL: let the circuit go on to `node`, at one of `endpoints`."""

    node: bytes
    endpoints: tuple[str, ...]
    kind: int
    handshake: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give the data of the message."""
        ends = b"".join(bytes((len(e.encode()),)) + e.encode() for e in self.endpoints)
        head = bytes((Proto.INTERNAL, 0)) + self.node + bytes((len(self.endpoints),))
        return head + ends + handshake_body(self.kind, self.handshake)


@frozen
class Open:
    """RELAY_CONNECT TCP or UDP: open a stream to `host`; `delegate` asks for so many more hops, chosen by the relay."""

    proto: Proto
    host: str  # a name, an IP address, or empty for a port of the circuit's own end
    port: int
    delegate: int = 0

    def encode(self) -> bytes:
        """Give the data of the message."""
        head = bytes((self.proto, DELEGATE, self.delegate)) if self.delegate else bytes((self.proto, 0))
        host = self.host.encode()
        return head + struct.pack(">HB", self.port, len(host)) + host


def read_connect(data: bytes) -> Extend | Open:
    """Read RELAY_CONNECT; raises `RemoteProtocolError`."""
    read = _Reader(data)
    proto, flags = read.u8(), read.u8()
    if proto == Proto.INTERNAL:
        node, count = read.take(IDENTITY), read.u8()
        if not 1 <= count <= ENDPOINTS:
            raise LimitExceeded("ENDPOINTS", ENDPOINTS)
        ends = tuple(read.text(read.u8(), ENDPOINT_MOST) for _ in range(count))
        kind, size = read.u16(), read.u16()
        return Extend(node, ends, kind, read.take(size))
    if proto not in (Proto.TCP, Proto.UDP):
        raise RemoteProtocolError("RELAY_CONNECT of an unknown kind")
    delegate = read.u8() if flags & DELEGATE else 0
    port, size = read.u16(), read.u8()
    return Open(Proto(proto), read.text(size, HOST_MOST), port, delegate)


@frozen
class Opened:
    """RELAY_CONNECT_OK of a stream: the address that the exit has dialled, and for how long its name is good (s)."""

    address: Address
    ttl: int

    def encode(self) -> bytes:
        """Give the data of the message."""
        return self.address.encode(port=False) + self.ttl.to_bytes(4, "big")

    @classmethod
    def read(cls, data: bytes) -> Opened:
        """Read the data; raises `RemoteProtocolError`."""
        read = _Reader(data)
        return cls(read.address(port=False), read.u32())


def extended(handshake: bytes) -> bytes:
    """Give the data of RELAY_CONNECT_OK for an extension: `len u16 | handshake`."""
    return len(handshake).to_bytes(2, "big") + handshake


def read_extended(data: bytes) -> bytes:
    """Give the handshake; raises `RemoteProtocolError`."""
    read = _Reader(data)
    return read.take(read.u16())


def disconnect(reason: int, *, half: bool = False) -> bytes:
    """Give the data of RELAY_DISCONNECT."""
    return bytes((reason, HALF if half else 0))


def read_disconnect(data: bytes) -> tuple[Reason, bool]:
    """Give the reason (an unknown one is INTERNAL) and whether only this direction ends; may raise."""
    read = _Reader(data)
    reason, flags = read.u8(), read.u8()
    return Reason(reason) if reason in Reason._value2member_map_ else Reason.INTERNAL, bool(flags & HALF)


def datagram(address: Address, payload: bytes) -> bytes:
    """Give the data of RELAY_DATA on a UDP stream."""
    return address.encode() + payload


def read_datagram(data: bytes) -> tuple[Address, bytes]:
    """Give the far address and the payload; raises `RemoteProtocolError`."""
    read = _Reader(data)
    return read.address(), read.rest()


@frozen
class Text:
    """RELAY_MESSAGE: a line for the node at the end of the circuit, signed by `sender` or by nobody."""

    number: bytes  # 16 bytes, which RELAY_MESSAGE_OK repeats
    text: bytes
    sender: bytes = b""
    signature: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        """Give the data of the message."""
        return self.number + bytes((1 if self.sender else 0,)) + self.sender + self.signature + self.text

    @classmethod
    def read(cls, data: bytes) -> Text:
        """Read the data; raises `RemoteProtocolError`."""
        read = _Reader(data)
        number, flags = read.take(16), read.u8()
        sender, signature = (read.take(IDENTITY), read.take(64)) if flags & 1 else (b"", b"")
        text = read.rest()
        if len(text) > TEXT_MOST:
            raise LimitExceeded("TEXT_MOST", TEXT_MOST)
        return cls(number, text, sender, signature)


@frozen
class Punch:
    """RELAY_PUNCH: `node` is behind a NAT and will send to us from `addresses` after `delay` milliseconds."""

    node: bytes
    addresses: tuple[Address, ...]
    delay: int

    def encode(self) -> bytes:
        """Give the data of the message."""
        ends = b"".join(address.encode() for address in self.addresses)
        return self.node + bytes((len(self.addresses),)) + ends + self.delay.to_bytes(2, "big")

    @classmethod
    def read(cls, data: bytes) -> Punch:
        """Read the data; raises `RemoteProtocolError`."""
        read = _Reader(data)
        node, count = read.take(IDENTITY), read.u8()
        if count > ENDPOINTS:
            raise LimitExceeded("ENDPOINTS", ENDPOINTS)
        return cls(node, tuple(read.address() for _ in range(count)), read.u16())


class _Reader:
    """Bytes taken from the front; every method raises `RemoteProtocolError` when there are too few."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise RemoteProtocolError("a message that ends too early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def text(self, size: int, most: int) -> str:
        if size > most:
            raise RemoteProtocolError("a name longer than its limit")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError("a name that is not UTF-8") from error

    def address(self, *, port: bool = True) -> Address:
        kind = self.u8()
        if kind not in (0, 4, 6):
            raise RemoteProtocolError("an address of unknown type")
        host = str(ipaddress.ip_address(self.take(4 if kind == 4 else 16))) if kind else ""
        return Address(host, self.u16() if port else 0)


def runs(text: memoryview, start: int = 0) -> Sequence[tuple[int, int, memoryview]]:
    """Cut whole cells into (circ, cmd, body); for tests and tools, the links have a loop of their own."""
    cut = range(start, len(text) - CELL + 1, CELL)
    return [(*_HEAD.unpack_from(text, at), text[at + HEAD : at + CELL]) for at in cut]
