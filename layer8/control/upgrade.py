"""The page of a control listener that turns an HTTP request into a WebSocket."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable
from typing import cast

from twisted.internet.interfaces import IProtocol
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from layer8.control.http import Page, Refusal, Request
from layer8.control.jsonrpc import SUBPROTOCOL
from layer8.control.websocket import Owner, Pulse, ServerSocket


@implementer(IResource)
class UpgradePage:
    """The page that turns a request into a WebSocket."""

    isLeaf = True

    def __init__(
        self, pulse: Pulse, message: int, owner: Callable[[Request], Owner], subprotocol: str | None = SUBPROTOCOL
    ) -> None:
        """Take the largest message in bytes, and who will speak over each new socket.

        With `subprotocol` None a client need not name one (the legacy listener); otherwise it must offer this one.
        """
        self._pulse = pulse
        self._message = message
        self._owner = owner
        self._subprotocol = subprotocol

    def page(self) -> Page:
        """Make the page; only GET upgrades."""
        return Page(self, frozenset({b"GET"}))

    def render(self, request: Request) -> int:
        """Check what is the WebSocket's own about the request, and hand the connection over."""
        key = self._asked(request)
        offered = [name.strip() for name in (request.only(b"Sec-WebSocket-Protocol") or "").split(",")]
        if self._subprotocol is not None and self._subprotocol not in offered:
            raise Refusal(400, f"this speaks the subprotocol {self._subprotocol}")
        channel = request.channel
        socket = ServerSocket(self._owner(request), self._pulse, self._message, self._subprotocol)
        socket.leave = channel.leave
        channel.hand_over(cast(IProtocol, socket))
        named = f"Sec-WebSocket-Protocol: {self._subprotocol}\r\n" if self._subprotocol is not None else ""
        # only what was looked at goes on to the second parser
        socket.dataReceived(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n" % (key.encode(), named.encode())
        )
        return NOT_DONE_YET

    def _asked(self, request: Request) -> str:
        """Give the key of a request that asks for a WebSocket of RFC 6455; else raise Refusal."""
        upgrade = (request.only(b"Upgrade") or "").lower()
        connection = [word.strip().lower() for word in (request.only(b"Connection") or "").split(",")]
        if request.clientproto != b"HTTP/1.1" or upgrade != "websocket" or "upgrade" not in connection:
            raise Refusal(426, "this path speaks WebSocket", (b"Upgrade", b"websocket"))
        if request.only(b"Sec-WebSocket-Version") != "13":
            raise Refusal(426, "this speaks version 13", (b"Sec-WebSocket-Version", b"13"))
        key = request.only(b"Sec-WebSocket-Key") or ""
        try:
            if len(b64decode(key, validate=True)) != 16:
                raise Refusal(400, "the WebSocket key has 16 bytes")
        except binascii.Error:
            raise Refusal(400, "the WebSocket key is base64") from None
        return key

    def getChildWithDefault(self, name: bytes, request: Request) -> UpgradePage:
        """Twisted never asks a leaf for children."""
        raise LookupError(name)

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse children."""
        raise LookupError(path)
