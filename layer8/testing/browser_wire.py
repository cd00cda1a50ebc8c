"""Commands to a browser, their answers and its events: JSON over one WebSocket, the same shape in DevTools and BiDi."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from attrs import define, field
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint

from layer8.core.errors import Layer8Error, TimedOut

OPEN_S = 30.0
"""Seconds the WebSocket may take to open."""
CALL_S = 60.0
"""Seconds one command may take, a navigation or an awaited script included."""
MESSAGE = 256 << 20
"""Bytes of the largest message taken from a browser (a screenshot of a long page, a script's large result)."""


class BrowserError(Layer8Error):
    """The browser refused a command, a page's script threw, or the browser ended; the text is what it said."""


class _Socket(WebSocketClientProtocol):
    """The WebSocket to the browser; hands everything to its `Wire`."""

    wire: Wire

    def onOpen(self) -> None:
        self.wire.opened.callback(None)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.wire.received(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.wire.lost(reason or "connection closed")


@define(eq=False)
class Wire:
    """Commands to a browser and their answers, matched by number, and its events."""

    reactor: Any
    opened: Deferred[None] = field(factory=Deferred)
    _socket: Any = None
    _numbers: Any = field(factory=lambda: itertools.count(1))
    _waiting: dict[int, Deferred[dict[str, Any]]] = field(factory=dict)
    _listeners: list[Callable[[str, dict[str, Any], str | None], None]] = field(factory=list)
    _gone: str | None = None

    @classmethod
    async def connect(cls, reactor: Any, url: str) -> Wire:
        """A wire to the WebSocket at `url`, which is on this machine."""
        wire = cls(reactor)
        factory = WebSocketClientFactory(url, reactor=reactor)
        factory.protocol = _Socket
        factory.setProtocolOptions(
            maxFramePayloadSize=MESSAGE, maxMessagePayloadSize=MESSAGE, openHandshakeTimeout=OPEN_S, tcpNoDelay=True
        )
        wire._socket = await TCP4ClientEndpoint(reactor, factory.host, factory.port).connect(factory)
        wire._socket.wire = wire
        await wire.opened.addTimeout(OPEN_S, reactor)
        return wire

    async def call(self, method: str, session: str | None = None, /, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; `session` is Chromium's id of an attached tab."""
        if self._gone is not None:
            raise BrowserError(f"{method}: {self._gone}")
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session

        def forget(_: object) -> None:
            self._waiting.pop(number, None)

        answer = self._waiting[number] = Deferred[dict[str, Any]](forget)
        self._socket.sendMessage(json.dumps(message).encode())
        answer.addTimeout(CALL_S, self.reactor)
        try:
            result = await answer
        except TimeoutError:
            raise TimedOut(f"{method}: no answer from the browser in {CALL_S:g} s") from None
        if "error" in result:
            error = result["error"]
            text = error.get("message") if isinstance(error, dict) else f"{error}: {result.get('message')}"
            raise BrowserError(f"{method}: {text}")
        return dict(result.get("result", {}))

    def listen(self, listener: Callable[[str, dict[str, Any], str | None], None]) -> Callable[[], None]:
        """Call `listener(method, params, session)` at every event, until the returned function is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def event(self, method: str, wanted: Callable[[dict[str, Any]], bool]) -> Deferred[dict[str, Any]]:
        """The next event `method` whose parameters are `wanted`; fails after CALL_S seconds."""
        found: Deferred[dict[str, Any]] = Deferred()

        def look(name: str, params: dict[str, Any], session: str | None) -> None:
            if name == method and not found.called and wanted(params):
                found.callback(params)

        stop = self.listen(look)
        found.addTimeout(CALL_S, self.reactor)

        def done(result: Any) -> Any:
            stop()
            return result

        return found.addBoth(done)

    def received(self, payload: bytes) -> None:
        """Take one message from the browser."""
        message = json.loads(payload)
        if "id" in message and message["id"] is not None:
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None:
                waiting.callback(message)
        elif "method" in message:
            for listener in list(self._listeners):
                listener(message["method"], message.get("params", {}), message.get("sessionId"))

    def lost(self, reason: str) -> None:
        """The socket is gone: every waiting command fails."""
        self._gone = f"the browser is gone: {reason}"
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.errback(BrowserError(self._gone))
        if not self.opened.called:
            self.opened.errback(BrowserError(self._gone))

    def drop(self) -> None:
        """Close the socket at once."""
        self._socket.dropConnection(abort=True)
