"""Asking a proxy on the way for a connection: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928).

Pure conversations: `opening()` is what to send first, `received` gives what to send next, or None once the way is
open. Names are handed to the proxy as they are, so nothing is looked up on this side.
"""

from __future__ import annotations

import ipaddress
from typing import Protocol

from layer8.core.buffer import CappedBuffer
from layer8.core.errors import ConfigError, RemoteProtocolError, Unavailable

CONNECT_HEAD = 8192
"""Bytes of a proxy's answer to CONNECT."""
SOCKS_REPLY = 512
"""Bytes of a SOCKS5 proxy's answers."""

_SOCKS_ERRORS = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "address type not supported",
}


class Conversation(Protocol):
    """One request for a connection through a proxy."""

    def opening(self) -> bytes:
        """Give what to send first."""

    def received(self, data: bytes) -> bytes | None:
        """Give what to send next (b"" for nothing yet), or None once the way is open.

        Raises `Unavailable` when the proxy says no, `RemoteProtocolError` when it speaks nonsense.
        """


class HttpConnect:
    """A CONNECT request to an HTTP proxy."""

    def __init__(self, host: str, port: int) -> None:
        """Ask for `host`:`port`."""
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._head = CappedBuffer("CONNECT_HEAD", CONNECT_HEAD)

    def opening(self) -> bytes:
        """Give the request."""
        return f"CONNECT {self._authority} HTTP/1.1\r\nHost: {self._authority}\r\n\r\n".encode("ascii")

    def received(self, data: bytes) -> bytes | None:
        """Read the answer's head; nothing may follow it, since the far end does not speak first."""
        seen = max(0, len(self._head) - 3)
        self._head.append(data)
        end = self._head.find(b"\r\n\r\n", seen)
        if end < 0:
            return b""
        head = self._head.take_all()
        status = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(status) < 2 or not status[0].startswith(b"HTTP/1.") or not status[1].isdigit():
            raise RemoteProtocolError("the proxy's answer to CONNECT is not HTTP")
        if not status[1].startswith(b"2"):
            raise Unavailable(f"the proxy answered CONNECT with {int(status[1][:3])}")
        if len(head) > end + 4:
            raise RemoteProtocolError("the proxy sent bytes before the connection was used")
        return None


class Socks5:
    """A CONNECT command to a SOCKS5 proxy without authentication."""

    def __init__(self, host: str, port: int) -> None:
        """Ask for `host`:`port`; a name goes as a name."""
        self._request = b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big")
        self._reply = CappedBuffer("SOCKS_REPLY", SOCKS_REPLY)
        self._greeted = False

    def opening(self) -> bytes:
        """Give the greeting: version 5, one method, no authentication."""
        return b"\x05\x01\x00"

    def received(self, data: bytes) -> bytes | None:
        """Read the two replies."""
        self._reply.append(data)
        if not self._greeted:
            reply = self._reply.take(2)
            if reply is None:
                return b""
            if reply != b"\x05\x00":
                raise RemoteProtocolError("the SOCKS proxy wants a login or is none")
            self._greeted = True
            return self._request
        head = self._reply.peek(5)
        if len(head) < 5:
            return b""
        if head[0] != 5:
            raise RemoteProtocolError("the proxy's answer is not SOCKS5")
        if head[1]:
            raise Unavailable(f"the SOCKS proxy says: {_SOCKS_ERRORS.get(head[1], f'error {head[1]}')}")
        sizes = {1: 10, 3: 7 + head[4], 4: 22}  # whole reply by address type
        if head[3] not in sizes:
            raise RemoteProtocolError("the SOCKS proxy named an unknown address type")
        if self._reply.take(sizes[head[3]]) is None:
            return b""
        if len(self._reply):
            raise RemoteProtocolError("the proxy sent bytes before the connection was used")
        return None


def conversation(kind: str, host: str, port: int) -> Conversation:
    """Make the conversation for a `via` of kind `connect` or `socks5`; raises `ConfigError` for another."""
    match kind:
        case "connect":
            return HttpConnect(host, port)
        case "socks5":
            return Socks5(host, port)
    raise ConfigError(f"via = {kind!r}: choose connect:HOST:PORT, socks5:HOST:PORT or tor:")


def _socks_address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna" if not host.isascii() else "ascii")
        if not 0 < len(name) < 256:
            raise ConfigError(f"{host!r} is too long for SOCKS5") from None
        return b"\x03" + bytes((len(name),)) + name
    return (b"\x01" if address.version == 4 else b"\x04") + address.packed
