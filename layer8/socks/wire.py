"""SOCKS5 (RFC 1928) with user and password (RFC 1929): bytes <-> frozen values, the server's side.

```
program                                           server
  | 05 n methods*n ------------------------------> |  greeting
  | <----------------------------------- 05 method |  00 none, 02 password, FF no
  | [01 len user len password -------------------> |  RFC 1929
  | <------------------------------------ 01 00|01]|
  | 05 command 00 address port ------------------> |  request; bytes behind it are data sent early
  | <------------------------ 05 code 00 address port
  UDP: 00 00 fragment address port data            |  each way, one datagram
```
An address is `01 IPv4 4`, `03 len name` or `04 IPv6 16`.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from typing import Final

from attrs import field, frozen

from layer8.core.errors import RemoteProtocolError

VERSION: Final = 5
NO_AUTH: Final = 0
PASSWORD: Final = 2
NOTHING_FITS: Final = 0xFF
REQUEST_MOST: Final = 512  # bytes until the request is whole, early data aside


class Ask(IntEnum):
    """What a program asks for."""

    CONNECT = 1
    BIND = 2
    ASSOCIATE = 3


class Code(IntEnum):
    """What a program is answered; from F0 on as Tor's extension for hidden services numbers them."""

    GRANTED = 0
    FAILED = 1
    POLICY = 2
    NET_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6
    UNKNOWN_COMMAND = 7
    UNKNOWN_ADDRESS = 8
    NO_DESCRIPTOR = 0xF0
    BAD_DESCRIPTOR = 0xF1
    INTRODUCTION_FAILED = 0xF2
    RENDEZVOUS_FAILED = 0xF3
    AUTH_MISSING = 0xF4
    AUTH_WRONG = 0xF5
    BAD_ADDRESS = 0xF6
    INTRODUCTION_TIMED_OUT = 0xF7


@frozen
class Login:
    """A user with a password; here a token that keeps circuits apart."""

    user: bytes
    password: bytes = field(repr=False)


@frozen
class Request:
    """What a program wants, and where: a name as it stands, or an address."""

    ask: int
    host: str
    port: int
    size: int  # bytes that it took


def greeting(data: bytes) -> tuple[frozenset[int], int] | None:
    """Give the offered methods and the bytes that they took; None for too few. Raises RemoteProtocolError."""
    if data[:1] and data[0] != VERSION:
        raise RemoteProtocolError("this is not SOCKS5")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    return frozenset(data[2 : 2 + data[1]]), 2 + data[1]


def login(data: bytes) -> tuple[Login, int] | None:
    """Give user and password and the bytes that they took; None for too few. Raises RemoteProtocolError."""
    if data[:1] and data[0] != 1:
        raise RemoteProtocolError("a login of an unknown version")
    if len(data) < 2:
        return None
    at = 2 + data[1]
    if len(data) <= at or len(data) < at + 1 + data[at]:
        return None
    end = at + 1 + data[at]
    return Login(data[2:at], data[at + 1 : end]), end


def request(data: bytes) -> Request | None:
    """Give the request; None for too few bytes. Raises RemoteProtocolError, or UnknownAddress."""
    if data[:1] and data[0] != VERSION:
        raise RemoteProtocolError("this is not SOCKS5")
    if len(data) < 4:
        return None
    found = _address(data, 3)
    if found is None:
        return None
    host, port, end = found
    return Request(data[1], host, port, end)


class UnknownAddress(RemoteProtocolError):
    """An address of a type that nobody has defined, or a name that is none."""


def _address(data: bytes, at: int) -> tuple[str, int, int] | None:
    kind = data[at]
    if kind == 3:
        if len(data) < at + 2:
            return None
        start, size = at + 2, data[at + 1]
    elif kind in (1, 4):
        start, size = at + 1, 4 if kind == 1 else 16
    else:
        raise UnknownAddress("an address of an unknown type")
    end = start + size + 2
    if len(data) < end:
        return None
    raw = data[start : start + size]
    host = _name(raw) if kind == 3 else str(ipaddress.ip_address(raw))
    return host, int.from_bytes(data[end - 2 : end], "big"), end


def _name(raw: bytes) -> str:
    """Read a name; programs also send addresses as text, in brackets or not."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise UnknownAddress("a host name that is not ASCII") from None
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not bare or not all("!" <= letter <= "~" for letter in bare):
        raise UnknownAddress("a host name with letters that no name has")
    return bare.lower().rstrip(".") if bare.rstrip(".") else bare


def reply(code: int, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """Give the answer to a request."""
    return bytes((VERSION, code, 0)) + _packed(host) + port.to_bytes(2, "big")


def datagram(host: str, port: int, payload: bytes) -> bytes:
    """Give a datagram for the program."""
    return b"\0\0\0" + _packed(host) + port.to_bytes(2, "big") + payload


def read_datagram(data: bytes) -> tuple[str, int, bytes]:
    """Give host, port and payload of a program's datagram; raises RemoteProtocolError, also for fragments."""
    if len(data) < 5 or data[:2] != b"\0\0":
        raise RemoteProtocolError("a datagram without its header")
    if data[2]:
        raise RemoteProtocolError("a fragment of a datagram")
    found = _address(data, 3)
    if found is None:
        raise RemoteProtocolError("a datagram that ends in its header")
    host, port, end = found
    return host, port, data[end:]


def _packed(host: str) -> bytes:
    ip = ipaddress.ip_address(host)
    return bytes((1 if ip.version == 4 else 4,)) + ip.packed
