"""The two gateways on Twisted, before a real backend, asked over real sockets."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from layer8.crypto.keys import NodeKey
from layer8.net.http_client import Pool
from layer8.net.ways import connector
from layer8.tunnel.bhttp import Request
from layer8.tunnel.frames import Kind, Message
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.resource import L8Resource
from layer8.tunnel.settings import Settings
from layer8.tunnel.sidecar import Sidecar
from layer8.tunnel.socket_session import Closed, Opened, Refused
from layer8.tunnel.wire import CHUNKED, SINGLE
from tests.tunnel.backend import Backend, pattern
from tests.tunnel.by_hand import Hand, Page, asked


class Rig:
    """A backend, a gateway of one kind before it, and a hand that seals."""

    def __init__(self, reactor: Any, kind: str, **settings: Any) -> None:
        self.reactor = reactor
        self.identity = NodeKey.make()
        self.backend = Backend(reactor)
        self.gateway = Gateway.open(
            Settings(gateway="shop", authorities=["shop.test"], identity=self.identity, **settings)
        )
        self.stops: list[Any] = []
        if kind == "sidecar":
            self.backend.open()
            pool = Pool(reactor, connector(reactor, f"tcp:127.0.0.1:{self.backend.port}"))
            self.sidecar = Sidecar(reactor, self.gateway, pool)
            self.sidecar.start()
            self.stops.append(self.sidecar.stop)
            factory: Any = self.sidecar.server
        else:
            self.resource = L8Resource(self.backend.resource, gateway=self.gateway, reactor=reactor)
            self.stops.append(self.resource.stop)
            if kind == "kept":
                from twisted.web.server import Site

                factory = Site(self.resource)
            else:
                factory = self.resource.site()
            factory.noisy = False
            factory.log = lambda request: None
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.hand = Hand(reactor, self.port.getHost().port, [self.identity.node_id])

    async def close(self) -> None:
        self.hand.close()
        for stop in self.stops:
            stop()
        await self.port.stopListening()
        await self.backend.close()


class GatewayTests:
    kind = ""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.rig = Rig(reactor, self.kind)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.rig.close()))  # type: ignore[attr-defined]

    async def test_a_sealed_post(self) -> None:
        content = pattern(1000)
        told = await self.rig.hand.ask(asked(b"POST", b"/echo?a=%20b&c", fields=((b"x-one", b"1"),)), content)
        self.assertEqual(told.status, 200)
        said = json.loads(told.body)
        self.assertEqual((said["method"], said["uri"], said["size"]), ("POST", "/echo?a=%20b&c", 1000))
        self.assertEqual(said["sha256"], hashlib.sha256(content).hexdigest())
        fields = {name.lower(): value for name, value in said["fields"]}
        self.assertEqual(fields["host"], "shop.test")
        self.assertEqual(fields["l8-encapsulated"], "?1")
        self.assertEqual(fields["x-one"], "1")
        self.assertEqual(fields["origin"], "https://shop.test")

    async def test_both_media(self) -> None:
        for media in (CHUNKED, SINGLE):
            told = await self.rig.hand.ask(asked(), media=media)
            self.assertEqual(json.loads(told.body)["method"], "GET")

    async def page(self, path: bytes = b"/ws", fields: Any = ()) -> Page:
        keys = await self.rig.hand.keys()
        request = Request(b"GET", b"https", b"shop.test", path, ((b"origin", b"https://shop.test"), *fields))
        return await Page(self.rig.hand, keys, request).open()

    async def test_a_socket(self) -> None:
        page = await self.page(fields=((b"sec-websocket-protocol", b"chat"), (b"cookie", b"a=1")))
        [opened] = await page.find(Opened)
        self.assertEqual(opened.protocol, "chat")
        big = Message(Kind.BINARY, pattern(300_000))
        for message in (Message(Kind.TEXT, "grüße".encode()), big, Message(Kind.BINARY, b"")):
            page.say(message)
        self.assertEqual(await page.find(Message, 3), [Message(Kind.TEXT, "grüße".encode()), big, Message(Kind.BINARY)])
        page.say(Message(Kind.TEXT, b"close"))
        [closed] = await page.find(Closed)
        self.assertEqual(closed.code, 4001)
        await page.until(lambda: self.rig.gateway.counts()["sockets"] == 0)

    async def test_a_page_that_closes(self) -> None:
        page = await self.page()
        await page.find(Opened)
        self.assertEqual(len(self.rig.backend.sockets), 1)
        page.close(3001, "bye")
        await page.until(lambda: not self.rig.backend.sockets)
        await page.until(lambda: self.rig.gateway.counts()["sockets"] == 0)

    async def test_no_such_socket(self) -> None:
        page = await self.page(b"/echo")
        [closed] = await page.find(Closed)
        self.assertEqual(closed.code, 1014)
        await page.until(lambda: self.rig.gateway.counts()["sockets"] == 0)

    async def test_a_socket_to_somebody_else(self) -> None:
        keys = await self.rig.hand.keys()
        page = await Page(self.rig.hand, keys, Request(b"GET", b"https", b"other.test", b"/ws")).open()
        [refused] = await page.find(Refused)
        self.assertEqual(refused.status, 400)


class SidecarTests(GatewayTests, TestCase):
    kind = "sidecar"


class ResourceTests(GatewayTests, TestCase):
    kind = "resource"


class KeptResourceTests(GatewayTests, TestCase):
    kind = "kept"
