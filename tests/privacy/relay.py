"""Somebody on the path between agent and server: an HTTP CONNECT proxy that keeps every byte of both directions."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from attrs import define, field

from tests.accepting import Accepting, pass_on
from tests.interop.daemons import Scope


@define(eq=False)
class Recorded:
    """One connection through the relay."""

    port: int
    sent: bytearray = field(factory=bytearray)
    got: bytearray = field(factory=bytearray)

    def texts(self) -> list[bytes]:
        """Give what was said both ways on a WebSocket, unmasked, whole messages and control frames alike."""
        return _frames(bytes(self.sent)) + _frames(bytes(self.got))

    def messages(self) -> list[dict[str, Any]]:
        """Give the JSON among it."""
        found = []
        for text in self.texts():
            with contextlib.suppress(ValueError):
                found.append(json.loads(text))
        return found


class Relay:
    """Listens on 127.0.0.1; `source` is the address from which the server sees the agent."""

    def __init__(self, scope: Scope, source: str) -> None:
        self.connections: list[Recorded] = []
        self._source = source
        accepting = Accepting(self._talk)
        self.port = accepting.port
        scope.addCleanup(accepting.close)

    def to(self, port: int) -> list[Recorded]:
        """Give the connections that went to a port."""
        return [one for one in self.connections if one.port == port]

    def _talk(self, sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            part = sock.recv(4096)
            if not part:
                return
            head += part
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        onward = socket.create_connection((host, int(port)), 10, (self._source, 0))
        recorded = Recorded(int(port))
        self.connections.append(recorded)
        sock.sendall(b"HTTP/1.1 200 there\r\n\r\n")
        pass_on(sock, onward, recorded.sent, recorded.got)


def _frames(data: bytes) -> list[bytes]:
    """Take the frames after the opening handshake apart (RFC 6455 section 5.2)."""
    data = data.partition(b"\r\n\r\n")[2]
    found = []
    while len(data) >= 2:
        masked, size = data[1] & 0x80, data[1] & 0x7F
        at = 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
        mask = data[at : at + 4] if masked else bytes(4)
        at += 4 if masked else 0
        body = data[at : at + size]
        found.append(bytes(byte ^ mask[number % 4] for number, byte in enumerate(body)))
        data = data[at + size :]
    return found
