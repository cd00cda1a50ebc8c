"""A network in memory with hidden services in it: `layer8.rendezvous.ways.Ways` over `layer8.testing.network`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Unavailable
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.relay.origin import Hop, Origin, State
from layer8.relay.stream import Stream
from layer8.relay.wire import Address, Opened, Reason
from layer8.rendezvous.access import Access
from layer8.rendezvous.client import meet
from layer8.rendezvous.descriptor import Point
from layer8.rendezvous.meeting import Meeting
from layer8.rendezvous.service import HiddenService
from layer8.rendezvous.ways import Gone, limited, worked
from layer8.testing.network import WALL, Building, Echo, Network, Node

T = TypeVar("T")


@frozen
class Told:
    """A descriptor as the DHT would give it."""

    points: tuple[Point, ...]
    price: Any = None
    modes: tuple[int, ...] = (1,)


@define(eq=False)
class MemoryWays:
    """The ways of one node of a network in memory."""

    net: Network
    node: Node
    relays: list[Node]  # that carry
    offering: list[Node]  # that are access points and rendezvous hops
    built: list[Building] = field(factory=list)
    paths: list[tuple[str, ...]] = field(factory=list)
    behind: float = 0.0  # seconds that its clock is

    @property
    def network(self) -> bytes:
        return self.net.mark

    def wall(self) -> float:
        return WALL + self.net.clock.seconds() - self.behind

    def seconds(self) -> float:
        return self.net.clock.seconds()

    def random(self, size: int) -> bytes:
        return self.net.chance.randbytes(size)

    def later(self, seconds: float, what: Callable[[], None]) -> Any:
        return self.net.clock.callLater(seconds, what)

    def limited(self, waiting: Deferred[T], seconds: float) -> Deferred[T]:
        return limited(self.net.clock, waiting, seconds)

    def places(self, count: int, without: Collection[bytes] = ()) -> list[Hop]:
        fitting = [node.hop for node in self.offering if node.identity not in without]
        return self.net.chance.sample(fitting, min(count, len(fitting)))

    def circuits(self) -> list[Origin]:
        """Give those that stand."""
        return [one.circuit for one in self.built if one.circuit.state is not State.CLOSED]

    async def work(self, what: Callable[[], T]) -> T:
        return await worked(self.net.worker, what)

    async def to(self, last: Hop, before: int, *, layer2: bool = False, kept: bool = False) -> Origin:
        there = [one for one in self.relays if one.identity != last.identity and one.endpoint in self.net.by_endpoint]
        hops = self.net.chance.sample(there, before)
        hops.append(next(one for one in self.relays if one.identity == last.identity))
        self.paths.append(tuple(one.name for one in hops))
        building = self.net.begin(self.node, *hops)
        self.built.append(building)
        waiting: Deferred[None] = Deferred()

        def look() -> None:
            if building.ended is not None or building.failures:
                last = building.failures and len(building.circuit.hops) == before
                waiting.errback(Gone("no last hop") if last else Unavailable("no circuit"))
                building.circuit.close()
            elif building.stands:
                waiting.callback(None)
            else:
                self.net.clock.callLater(0.001, look)

        look()
        await waiting
        return building.circuit


class HiddenCase(SynchronousTestCase):
    """Eight relays, four of them with both roles, a service with an echo at port 80, and a client."""

    recording = False

    def setUp(self) -> None:
        self.net = Network(recording=self.recording)
        self.relays = [self.net.relay(f"relay {number}") for number in range(8)]
        self.access = [Access() for _ in range(4)]
        self.meetings = [Meeting(node.circuits.join) for node in self.relays[:4]]
        for node, access, meeting in zip(self.relays, self.access, self.meetings, strict=False):
            node.circuits.serve(access)
            node.circuits.serve(meeting)
        self.key = NodeKey.make()
        self.there = self.ways("service")
        self.here = self.ways("client")
        self.told = Told(())
        self.published: list[tuple[Point, ...]] = []
        self.logins: list[bytes | None] = []
        self.service = self.serve(self.key)

    def ways(self, name: str) -> MemoryWays:
        return MemoryWays(self.net, self.net.client(name), self.relays, self.relays[:4])

    def serve(self, key: NodeKey, **more: Any) -> HiddenService:
        return HiddenService(
            self.there, TaskSet(Logger()), key, self.asked, self.publish, self.net.clock.callLater, **more
        )

    def publish(self, points: tuple[Point, ...]) -> None:
        self.published.append(points)
        self.told = Told(points, self.service.price)

    def asked(self, stream: Stream, port: int, login: bytes | None) -> None:
        self.logins.append(login)
        if port != 80:
            stream.close(Reason.NO_PORT)
        else:
            stream.sink = Echo(stream)
            stream.accept(Opened(Address(""), 0))

    def kill(self, node: Node) -> None:
        """Let a relay be gone: its links end, and nobody reaches it."""
        self.net.by_endpoint.pop(node.endpoint, None)
        for carrier in list(node.carriers):
            if not carrier.closed:
                carrier.cut()

    def hang(self, node: Node) -> None:
        """Let a node read nothing and say nothing on any link."""
        for carrier in node.carriers:
            carrier.hold(True)
            carrier.spoil = lambda data: b""

    def node_of(self, point: Point) -> Node:
        """Give the relay that is this access point."""
        return next(node for node in self.relays if node.identity == point.node)

    def start(self) -> None:
        self.service.start()
        self.net.run(lambda: len(self.told.points) == self.service.wanted)

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the clock run until this has come to an end; raises what it raises."""
        done: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(done.append)
        self.net.run(lambda: bool(done))
        if isinstance(done[0], Failure):
            done[0].raiseException()
        result: T = done[0]
        return result

    def meet(self, **more: Any) -> Origin:
        return self.result(meet(self.here, self.key.node_id, self.told, **more))
