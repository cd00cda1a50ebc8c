"""One question to one daemon over its Unix socket, with nothing but the standard library.

Starting Twisted takes longer than the answer, and `layer8 status` has 300 ms. It speaks JSON-RPC over WebSocket
(RFC 6455) as every other client does; the daemon knows its user by the socket (SO_PEERCRED).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from layer8.core.errors import Layer8Error, RemoteProtocolError, TimedOut, Unavailable

ANSWER = 1 << 20
"""Most bytes of an answer."""
_HEAD = 16384
_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


def ask(path: Path, method: str, params: dict[str, Any] | None = None, *, seconds: float = 5.0) -> Any:
    """Call one method and give its result.

    Raises Unavailable if no daemon listens there, TimedOut, RemoteProtocolError, or Layer8Error with the daemon's own
    words if it refuses.
    """
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        talk = _Talk(line, deadline)
        try:
            line.settimeout(seconds)
            line.connect(str(path))
            talk.open()
            request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
            talk.send(_TEXT, json.dumps(request).encode())
            return _answer(talk)
        except TimeoutError:
            raise TimedOut(f"{path}: no answer within {seconds:g} s") from None
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror or error}") from None


def _answer(talk: _Talk) -> Any:
    while True:
        try:
            message = json.loads(talk.message())
        except (ValueError, RecursionError):
            raise RemoteProtocolError("the daemon's answer is not JSON") from None
        if not isinstance(message, dict) or message.get("id") != 1:
            continue
        if "result" in message:
            return message["result"]
        error = message.get("error")
        text = error.get("message") if isinstance(error, dict) else None
        raise Layer8Error(str(text or "the daemon refused"))


def accept_word(key: bytes) -> bytes:
    """Give what a server answers to a handshake's key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _ACCEPT, usedforsecurity=False).digest())


class _Talk:
    """The client's side of one WebSocket."""

    def __init__(self, line: socket.socket, deadline: float) -> None:
        self._line = line
        self._deadline = deadline
        self._waiting = b""

    def _more(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._line.settimeout(left)
        data = self._line.recv(65536)
        if not data:
            raise RemoteProtocolError("the daemon closed the connection")
        self._waiting += data

    def open(self) -> None:
        """Do the opening handshake."""
        key = base64.b64encode(os.urandom(16))
        self._line.sendall(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: " + key + b"\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: jsonrpc.layer8.v1\r\n\r\n"
        )
        while b"\r\n\r\n" not in self._waiting:
            if len(self._waiting) > _HEAD:
                raise RemoteProtocolError("the daemon's handshake does not end")
            self._more()
        head, _, self._waiting = self._waiting.partition(b"\r\n\r\n")
        status, *fields = head.split(b"\r\n")
        if status.split(b" ")[1:2] != [b"101"]:
            raise Unavailable(f"the daemon refused the connection: {status.decode('ascii', 'replace')[:80]}")
        names = {name.strip().lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        if names.get(b"sec-websocket-accept") != accept_word(key):
            raise RemoteProtocolError("what listens there is no WebSocket server")

    def send(self, opcode: int, data: bytes) -> None:
        """Send one frame, masked with zeros: there is no proxy on a Unix socket to be fooled by its content."""
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        self._line.sendall(head + bytes(4) + data)

    def message(self) -> bytes:
        """Give the next whole text message."""
        parts = b""
        while True:
            first, data = self._frame()
            opcode = first & 0x0F
            if opcode == _CLOSE:
                raise RemoteProtocolError("the daemon closed the connection")
            if opcode == _PING:
                self.send(_PONG, data)
            elif opcode in (0, _TEXT):
                parts += data
                if len(parts) > ANSWER:
                    raise RemoteProtocolError(f"the daemon's answer is larger than {ANSWER} bytes")
                if first & 0x80:
                    return parts

    def _frame(self) -> tuple[int, bytes]:
        first, size = struct.unpack("!BB", self._take(2))
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        if size > ANSWER:
            raise RemoteProtocolError(f"the daemon's answer is larger than {ANSWER} bytes")
        return first, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._waiting) < size:
            self._more()
        taken, self._waiting = self._waiting[:size], self._waiting[size:]
        return taken
