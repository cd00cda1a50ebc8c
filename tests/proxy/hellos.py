"""Builds ClientHellos (RFC 8446, 4.1.2), right ones and wrong ones, from their parts."""

from collections.abc import Sequence
from itertools import pairwise

HOST = b"www.example.com"

RANDOM = bytes(range(32))
SESSION_ID = bytes(range(32, 64))
SUITES = bytes.fromhex("130113021303c02bc02fc02cc030cca9cca8c013c014009c009d002f0035")


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def vector8(data: bytes) -> bytes:
    return bytes([len(data)]) + data


def vector16(data: bytes) -> bytes:
    return u16(len(data)) + data


def extension(kind: int, data: bytes) -> bytes:
    return u16(kind) + vector16(data)


def entry(name: bytes, kind: int = 0) -> bytes:
    """One element of a server_name list."""
    return bytes([kind]) + vector16(name)


def server_name(*entries: bytes) -> bytes:
    return extension(0, vector16(b"".join(entries)))


def sni(name: bytes = HOST) -> bytes:
    return server_name(entry(name))


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector16(b"".join(map(vector8, protocols))))


def key_share(*shares: tuple[int, bytes]) -> bytes:
    return extension(51, vector16(b"".join(u16(group) + vector16(key) for group, key in shares)))


GROUPS = extension(10, vector16(bytes.fromhex("11ec001d00170018")))
POINTS = extension(11, vector8(b"\x00"))
SIGNATURES = extension(13, vector16(bytes.fromhex("040308040401050308050501080606010201")))
VERSIONS = extension(43, vector8(bytes.fromhex("03040303")))
PSK_MODES = extension(45, vector8(b"\x01"))
X25519 = key_share((0x001D, bytes(32)))
X25519_MLKEM768 = key_share((0x11EC, bytes(1216)), (0x001D, bytes(32)))
TICKET = extension(35, bytes(192))
PSK = extension(41, vector16(vector16(bytes(176)) + bytes(4)) + vector16(vector8(bytes(32))))
ECH = extension(0xFE0D, b"\x00" + bytes.fromhex("00010001") + b"\x2a" + vector16(bytes(32)) + vector16(bytes(176)))
GREASE_FIRST = extension(0x3A3A, b"")
GREASE_LAST = extension(0x7A7A, b"\x00")

USUAL = (GROUPS, POINTS, SIGNATURES, alpn(b"h2", b"http/1.1"), VERSIONS, PSK_MODES, X25519)


def padding(size: int) -> bytes:
    """A padding extension (RFC 7685) of `size` octets in all."""
    return extension(21, bytes(size - 4))


def filler(size: int) -> list[bytes]:
    """Extensions of no meaning, `size` octets in all."""
    parts: list[bytes] = []
    while size > 60004:
        parts.append(extension(0xFAFA - len(parts), bytes(60000)))
        size -= 60004
    return [*parts, extension(0xFA00, bytes(size - 4))]


def hello(
    *extensions: bytes,
    kind: int = 1,
    version: bytes = b"\x03\x03",
    session_id: bytes = SESSION_ID,
    suites: bytes = SUITES,
    compression: bytes = b"\x00",
    length_off: int = 0,
) -> bytes:
    """One handshake message; the extension block's length is wrong by `length_off`."""
    block = b"".join(extensions)
    body = version + RANDOM + vector8(session_id) + vector16(suites) + vector8(compression)
    body += u16(len(block) + length_off) + block
    return message(body, kind)


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def hello_of(size: int, *extensions: bytes) -> bytes:
    """A handshake message of exactly `size` octets, its first extensions given."""
    least = len(hello(*extensions))
    return hello(*filler(size - least), *extensions)


def record(fragment: bytes, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes([kind]) + version + vector16(fragment)


def records(handshake: bytes, cuts: Sequence[int] = (), version: bytes = b"\x03\x01") -> bytes:
    """Records of a handshake message cut at `cuts`."""
    borders = [0, *cuts, len(handshake)]
    return b"".join(record(handshake[start:end], version=version) for start, end in pairwise(borders))


EARLY_DATA = record(bytes(range(256)) * 3, kind=23, version=b"\x03\x03")
CHANGE_CIPHER_SPEC = record(b"\x01", kind=20, version=b"\x03\x03")
ALERT = record(b"\x01\x00", kind=21)
SSLV2_HELLO = b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes.fromhex("0100800300800700c0") + bytes(28)
