"""A client may name any node as the place to meet: whether the service comes must not depend on which one it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from layer8.relay.client import Hop, Open, Origin, Proto
from layer8.rendezvous.client import NotMet, meet
from layer8.rendezvous.descriptor import Point
from layer8.rendezvous.service import HiddenService
from layer8.rendezvous.ways import NetworkWays
from tests.relay.nodes import Heard
from tests.rendezvous.net import Told
from tests.rendezvous.test_nodes import HiddenNodesCase

PORT = Open(Proto.TCP, "", 80)


class OracleTests(HiddenNodesCase):
    """The service is on a relay that is a place to meet too."""

    def publish(self, points: tuple[Point, ...]) -> None:
        self.told = Told(points)

    async def start(self) -> None:
        self.relays = [self.offer() for _ in range(8)]
        self.here, self.there = self.client(), self.relays[0]
        self.introduce(*self.relays, self.here)
        self.service = HiddenService(
            self.ways(self.there), self.tasks, self.key, self.asked, self.publish, self.reactor.callLater
        )
        self.addCleanup(self.tasks.stop)
        self.addCleanup(self.service.stop)
        self.service.start()
        await self.until(lambda: len(self.told.points) == 3)

    async def come(self, place: bytes) -> bool:
        """Say whether the service comes to a place; a point that is this place is not knocked at."""
        points = tuple(point for point in self.told.points if point.node != place)
        ways = self.ways(self.here)
        choose = NetworkWays.places

        def places(asking: NetworkWays, count: int, without: Collection[bytes] = ()) -> list[Hop]:
            if asking is not ways:
                return choose(asking, count, without)
            return [hop for hop in choose(asking, 100) if hop.identity == place]

        self.patch(NetworkWays, "places", places)
        try:
            origin: Origin = await meet(ways, self.key.node_id, Told(points[:1]), patient=False)
        except NotMet:
            return False
        heard = Heard()
        stream = origin.open(PORT, heard)
        stream.write(b"hello")
        await self.until(lambda: heard.all == b"hello" or heard.reason is not None)
        origin.close()
        return heard.all == b"hello"

    async def test_every_node_is_a_place_to_meet(self) -> None:
        """Its own one, its guards and second hops too: else who asks for all of them in turn would find it."""
        await self.start()
        come: dict[str, Any] = {}
        for number, relay in enumerate(self.relays):
            come[f"relay {number}"] = await self.come(relay.key.node_id)
        self.assertEqual(come, dict.fromkeys(come, True))
        self.assertNotIn(self.there.key.node_id, {point.node for point in self.told.points})
