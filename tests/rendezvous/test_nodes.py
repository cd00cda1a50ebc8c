"""A hidden service and a client on real nodes on loopback."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

from attrs import evolve
from twisted.logger import Logger

from layer8.core.errors import Unavailable
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.node.hidden import hidden_ways, serve_rendezvous
from layer8.relay.client import Address, Open, Opened, Origin, Proto, Stream
from layer8.relay.service import Relay
from layer8.rendezvous.client import meet
from layer8.rendezvous.descriptor import Point
from layer8.rendezvous.service import HiddenService
from layer8.rendezvous.ways import NetworkWays
from layer8.testing.network import Echo
from tests.relay.nodes import LOOPBACK, Heard, NodesCase
from tests.rendezvous.net import Told

PORT = Open(Proto.TCP, "", 80)


class HiddenNodesCase(NodesCase):
    """Eight relays with both roles, a service with an echo, and a client."""

    def setUp(self) -> None:
        super().setUp()
        self.tasks = TaskSet(Logger())
        self.key = NodeKey.make()
        self.told = Told(())

    def ways(self, node: Relay) -> NetworkWays:
        made = hidden_ways(node)
        self.addCleanup(made.stop)
        return made

    def offer(self) -> Relay:
        config = {"network": "test-nodes", "listen": LOOPBACK, "links": 1}
        node = self.node(NodeKey.make(), config, start=False)
        serve_rendezvous(node)
        node.startService()
        return node

    async def start(self) -> None:
        self.relays = [self.offer() for _ in range(8)]
        self.here, self.there = self.client(), self.client()
        self.introduce(*self.relays, self.here, self.there)
        self.service = HiddenService(
            self.ways(self.there), self.tasks, self.key, self.asked, self.publish, self.reactor.callLater
        )
        self.addCleanup(self.tasks.stop)
        self.addCleanup(self.service.stop)
        self.service.start()
        await self.until(lambda: len(self.told.points) == 3)

    def publish(self, points: tuple[Point, ...]) -> None:
        self.told = Told(points)

    def asked(self, stream: Stream, port: int, login: bytes | None) -> None:
        stream.sink = Echo(stream)
        stream.accept(Opened(Address(""), 0))

    async def meet(self, **more: Any) -> Origin:
        return await meet(self.ways(self.here), self.key.node_id, self.told, **more)


class LoopbackTests(HiddenNodesCase):
    async def test_sixteen_mebibytes(self) -> None:
        """G38: over real links between a client and a service, SHA-256 equal."""
        await self.start()
        origin = await self.meet()
        heard = Heard()
        stream = origin.open(PORT, heard)
        heard.stream = stream
        text = Random(2).randbytes(16 * 2**20)
        stream.write(text)
        stream.end()
        await self.until(lambda: "ended" in heard.words or heard.reason is not None)
        self.assertEqual(hashlib.sha256(heard.all).digest(), hashlib.sha256(text).digest())
        self.assertEqual(len(self.service.sessions), 1)

    async def test_nodes_that_could_not_be_had(self) -> None:
        """They are not chosen again soon, if there are others."""
        await self.start()
        ways = self.ways(self.here)
        bad, other = ways.places(2)
        with self.assertRaises(Unavailable):
            await ways.to(evolve(bad, onion_key=other.onion_key), 2)
        for _ in range(20):
            self.assertNotIn(bad.identity, {hop.identity for hop in ways.places(7)})
        self.assertEqual(len(ways.places(8)), 8)

    async def test_the_service_goes(self) -> None:
        await self.start()
        origin = await self.meet()
        heard = Heard()
        origin.open(PORT, heard)
        await self.until(lambda: "opened" in heard.words)
        self.service.stop()
        await self.until(lambda: "closed" in heard.words)
