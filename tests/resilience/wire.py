"""A control connection by hand, with blocking sockets: an agent that does exactly what a test wants, and no more."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from typing import Any

from layer8.crypto.keys import parse_id
from layer8.crypto.proof import subscribe_proof

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Refused(Exception):
    """The server's answer was an error; `code` is its number."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("message"))
        self.error = error
        self.code: int = error["code"]


class Closed(Exception):
    """The server closed the connection; `code` is the WebSocket close code, 0 for none."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class Line:
    """One WebSocket to a listener for agents, or with another path to any control listener."""

    def __init__(
        self,
        port: int,
        *,
        path: str = "/agent",
        token: str = "",
        source: str = "127.0.0.1",
        protocol: str = "jsonrpc.layer8.v1",
        seconds: float = 10.0,
    ) -> None:
        """Connect; raises Closed if there is no room, or whatever else the answer is."""
        self.heard: list[dict[str, Any]] = []
        self._kept = b""
        self._last = 0
        self._nonce = b""
        self._node = b""
        self.sock = socket.create_connection(("127.0.0.1", port), seconds, (source, 0))
        fields = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade"]
        fields += [f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}", "Sec-WebSocket-Version: 13"]
        fields += [f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []
        fields += [f"Authorization: Bearer {token}"] if token else []
        try:
            self.sock.sendall("\r\n".join([*fields, "", ""]).encode())
            while b"\r\n\r\n" not in self._kept:
                self._more()
        except BaseException:
            self.sock.close()
            raise
        head, _, self._kept = self._kept.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            self.sock.close()
            raise Closed(int(head.split(b" ")[1]))

    def close(self) -> None:
        """Leave without a word."""
        self.sock.close()

    def _more(self) -> None:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Closed
        self._kept += data

    def _take(self, size: int) -> bytes:
        while len(self._kept) < size:
            self._more()
        taken, self._kept = self._kept[:size], self._kept[size:]
        return taken

    def frame(self, opcode: int, data: bytes) -> None:
        """Send one frame; the mask is zero."""
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        else:
            head = struct.pack("!BBH", 0x80 | opcode, 0xFE, size)
        self.sock.sendall(head + bytes(4) + data)

    def say(self, method: str, params: dict[str, Any], ident: int | None = None) -> None:
        """Send a call, or a notification."""
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if ident is not None:
            message["id"] = ident
        self.frame(TEXT, json.dumps(message).encode())

    def _message(self) -> dict[str, Any]:
        while True:
            first, size = struct.unpack("!BB", self._take(2))
            if size == 126:
                (size,) = struct.unpack("!H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._take(8))
            data = self._take(size)
            if first & 15 == PING:
                self.frame(PONG, data)
            elif first & 15 == CLOSE:
                raise Closed(int.from_bytes(data[:2], "big"))
            elif first & 15 == TEXT:
                message: dict[str, Any] = json.loads(data)
                return message

    def call(self, method: str, **params: Any) -> Any:
        """Call and give the result; raises Refused. What is told meanwhile is kept in `heard`."""
        self._last += 1
        self.say(method, params, self._last)
        while True:
            message = self._message()
            if "method" in message:
                self.heard.append(message)
            elif message.get("id") == self._last:
                if "error" in message:
                    raise Refused(message["error"])
                return message["result"]

    def hear(self, method: str = "proxy.connection", seconds: float = 10.0) -> dict[str, Any]:
        """Wait for a notification and give its parameters; raises TimeoutError."""
        end = time.monotonic() + seconds
        while True:
            for at, message in enumerate(self.heard):
                if message["method"] == method:
                    del self.heard[at]
                    params: dict[str, Any] = message["params"]
                    return params
            self.sock.settimeout(max(0.01, end - time.monotonic()))
            self.heard.append(self._message())

    # As an agent.

    def hello(self, instance: str = "made by hand", features: tuple[str, ...] = ()) -> Any:
        """Say hello, and keep what proofs are made of."""
        result = self.call("proxy.hello", versions=[1], instance=instance, features=features)
        self._nonce, self._node = bytes.fromhex(result["nonce"]), parse_id(result["node"])
        return result

    def proof(self, host: str, key: bytes) -> str:
        """Prove a host's secret, whose hash is `key`."""
        return subscribe_proof(key, self._nonce, self._node, host)

    def subscribe(self, host: str, key: bytes, **more: Any) -> int:
        """Subscribe and give the subscription's number."""
        result = self.call("proxy.subscribe", host=host, proof=self.proof(host, key), **more)
        return int(result["subscription"])

    def ended(self, seconds: float = 10.0) -> int:
        """Wait until the server closes, and give its close code."""
        self.sock.settimeout(seconds)
        try:
            while True:
                self.heard.append(self._message())
        except Closed as closed:
            return closed.code
