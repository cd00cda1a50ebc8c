"""The two gateways on Twisted, before a real backend, asked over real sockets."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from layer8.crypto.keys import NodeKey
from layer8.net.http_client import Pool, fetch
from layer8.net.ways import connector
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.resource import L8Resource
from layer8.tunnel.settings import Settings
from layer8.tunnel.sidecar import Sidecar
from layer8.tunnel.wire import CHUNKED, SINGLE
from tests.tunnel.backend import Backend, pattern
from tests.tunnel.by_hand import Hand, asked


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
            self.stops.append(self.resource.gate.stop)
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


class SidecarTests(GatewayTests, TestCase):
    kind = "sidecar"


class ResourceTests(GatewayTests, TestCase):
    kind = "resource"


class KeptResourceTests(GatewayTests, TestCase):
    kind = "kept"
