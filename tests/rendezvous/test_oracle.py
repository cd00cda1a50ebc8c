"""A client may name any node as the place to meet: whether the service comes must not depend on which one it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from layer8.relay.client import Hop, Open, Origin, Proto
from layer8.rendezvous.client import NotMet, meet
from layer8.rendezvous.descriptor import Point
from layer8.rendezvous.limits import SETUP_CELLS
from layer8.rendezvous.service import HiddenService
from layer8.rendezvous.ways import NetworkWays
from layer8.rendezvous.wire import Renzv
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

    async def come(self, place: bytes) -> str:
        """Say what becomes of a visit at a place; a point that is this place is not knocked at."""
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
        except NotMet as error:
            return str(error)
        heard = Heard()
        stream = origin.open(PORT, heard)
        stream.write(b"hello")
        await self.until(lambda: heard.all == b"hello" or heard.reason is not None)
        origin.close()
        return heard.all.decode()

    async def test_every_node_is_a_place_to_meet(self) -> None:
        """Its own one, its guards and second hops too: else who asks for all of them in turn would find it."""
        await self.start()
        come: dict[str, str] = {}
        for number, relay in reversed(list(enumerate(self.relays))):
            for _ in range(3):  # a machine with much to do loses a circuit now and then, and at any of them
                come[f"relay {number}"] = said = await self.come(relay.key.node_id)
                if said == "hello":
                    break
        self.assertEqual(come, dict.fromkeys(come, "hello"))
        self.assertNotIn(self.there.key.node_id, {point.node for point in self.told.points})

    async def test_circuits_that_stood_ready_look_like_others(self) -> None:
        """As many cells have left on each when the first word of its own is said, at a service and at a client."""
        await self.start()
        said: list[tuple[str, int]] = []
        tell, ask = Origin.tell, Origin.ask

        def told(origin: Origin, command: int, data: bytes) -> None:
            tell(origin, command, data)
            note(origin, command)

        def asked(origin: Origin, command: int, *more: Any) -> Any:
            made = ask(origin, command, *more)
            note(origin, command)
            return made

        def note(origin: Origin, command: int) -> None:
            if command in (Renzv.RES_LISTEN, Renzv.RES_CONNECT, Renzv.LISTEN, Renzv.JOIN):
                origin.streams.flush()
                said.append((Renzv(command).name, origin.sent))

        self.patch(Origin, "tell", told)
        self.patch(Origin, "ask", asked)
        ways = self.ways(self.here)
        for _ in range(3):  # from the second time on circuits stand ready
            origin = await meet(ways, self.key.node_id, self.told)
            await self.until(lambda: len(self.service.sessions) > 0)
            origin.close()
            await self.until(lambda: not self.service.sessions)
        next(iter(self.service.points.values())).origin.close()  # type: ignore[union-attr]
        await self.until(lambda: any(name == "RES_LISTEN" for name, _ in said))
        self.assertEqual({name for name, _ in said}, {"RES_LISTEN", "RES_CONNECT", "LISTEN", "JOIN"})
        self.assertEqual({sent for _, sent in said}, {SETUP_CELLS})
