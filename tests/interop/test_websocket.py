"""A WebSocket through the proxy, between Autobahn's two ends."""

import os
from typing import Any

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.interop.stage import WAYS, pair

SIZES = (0, 1, 125, 126, 65535, 65536, 3 << 20)


class Echo(WebSocketServerProtocol):
    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


class Asker(WebSocketClientProtocol):
    def onOpen(self) -> None:
        self.factory.heard = []
        self.sendPing(b"are you there")
        for message in self.factory.messages:
            self.sendMessage(message, True)

    def onPong(self, payload: bytes) -> None:
        self.factory.pongs.append(payload)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.factory.heard.append(payload)
        if len(self.factory.heard) == len(self.factory.messages):
            self.sendClose(1000, "thanks")

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.factory.closed.callback((wasClean, code))


class WebSocketTests(TestCase):
    timeout = 60

    async def talk(self, text: str = "") -> None:
        """Send messages of every size each way, and have them back."""
        from twisted.internet import reactor

        loop: Any = reactor
        backend = WebSocketServerFactory()
        backend.protocol = Echo
        listening = loop.listenTCP(0, backend, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        server, agent = pair(self, plain=listening.getHost().port, text=text)
        for way in WAYS:
            visitor: Any = WebSocketClientFactory(f"ws://web.{way}.test:{server.http}/chat")
            visitor.protocol = Asker
            visitor.messages = [os.urandom(size) for size in SIZES]
            visitor.pongs = []
            visitor.closed = Deferred()
            loop.connectTCP("127.0.0.1", server.http, visitor)
            self.assertEqual(await visitor.closed, (True, 1000))
            self.assertEqual(visitor.heard, visitor.messages)
            self.assertEqual(visitor.pongs, [b"are you there"])
        self.assertEqual([*server.defects(), *agent.defects()], [])

    async def test_messages_of_every_size(self) -> None:
        await self.talk()

    async def test_in_mode_proxy(self) -> None:
        await self.talk('mode = "proxy"\n')
