"""A network in memory with everything that a hidden service has to do with, and what each party of it has seen.

::

    client ── guard c ── middle ── R ── (joined) ── middle ── second ── guard s ── service
       │                            P ───────────────────────────────────┘
       └── guard c ── middle ── hop of the DHT ~~ datagrams ~~ eight nodes that store

Every node keeps all bytes of its links (there is no TLS here), the addresses that it was shown, what it could read at
the end of a circuit, and of the DHT every datagram with its sender.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Coroutine
from typing import Any, Final, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.datagram import Peer, SendTo
from layer8.core.network import Network as Name
from layer8.core.roles import Asker
from layer8.core.session import Tell
from layer8.crypto.keys import NodeKey
from layer8.dht.answering import Answering
from layer8.dht.asking import Asking, Source
from layer8.dht.jobs import Done
from layer8.dht.session import Dht
from layer8.dht.wire import compact
from layer8.net.tasks import TaskSet
from layer8.relay.origin import Hop, Origin
from layer8.relay.stream import Stream
from layer8.relay.wire import CELL, Address, Opened, Reason
from layer8.rendezvous.access import Access
from layer8.rendezvous.descriptor import Point, Price
from layer8.rendezvous.meeting import Meeting
from layer8.rendezvous.publishing import Publishing
from layer8.rendezvous.service import HiddenService
from layer8.rendezvous.ways import ask
from layer8.testing.network import WALL, Building, Echo, Network, Node, View, Watched
from tests.rendezvous.net import MemoryWays

T = TypeVar("T")
LATER: Final = 40_000.0  # seconds: the next period is published too at this time of the day
DHT_HOPS: Final = 4
HOLDERS: Final = 12
MEETINGS: Final = 5


class Read:
    """A role, and everything that it reads and says, in its node's view."""

    def __init__(self, view: View, role: Any) -> None:
        self.view, self._role = view, role
        self.heard: list[tuple[int, bytes]] = []
        self.commands: frozenset[int] = role.commands

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        self.view.add(data, asker.neighbour or b"nameless")
        self.heard.append((command, data))
        self._role.asked(Said(self.view, asker), command, data, now)

    def gone(self, circuit: int) -> None:
        self._role.gone(circuit)


@define(eq=False)
class Said:
    """The end of a circuit; what is said there is seen."""

    _view: View
    _asker: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self._asker, name)

    def answer(self, command: int, data: bytes) -> None:
        self._view.add(data)
        self._asker.answer(command, data)


@define(eq=False)
class Order(View):
    """A view of one end of a link that knows in which order both ends have spoken."""

    way: str = ">"
    log: list[tuple[str, bytes]] = field(factory=list)

    def add(self, *seen: bytes | str) -> None:
        for one in seen:
            assert isinstance(one, bytes)
            self.log.append((self.way, one))
            self.pieces.append(one)


@define(eq=False)
class Kept:
    """A node of the DHT on the network's clock: `layer8.dht.answering.Node`."""

    net: Network
    key: NodeKey
    peer: Peer
    view: View
    there: dict[Peer, Kept]
    session: Dht = field(init=False)
    _waiting: dict[int, Deferred[Done]] = field(factory=dict, init=False)
    _call: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        chance = self.net.chance
        self.session = Dht(
            self.key, Name("test"), chance, chance.randbytes, WALL + LATER, bound=self.peer, bootstrap=[*self.there][:3]
        )
        self.there[self.peer] = self
        self.carry_out()

    def good(self, item: Any) -> bool:
        return bool(item.good())

    async def find(self, target: bytes) -> Done:
        return await self._wait(self.session.find(target, self.net.clock.seconds()))

    async def get(self, target: bytes, salt: bytes = b"") -> Done:
        return await self._wait(self.session.get(target, self.net.clock.seconds(), salt=salt))

    async def records(self, target: bytes) -> Done:
        return await self._wait(self.session.records(target, self.net.clock.seconds()))

    async def put(self, item: Any) -> Done:
        return await self._wait(self.session.put(item, self.net.clock.seconds()))

    async def _wait(self, number: int) -> Done:
        waiting = self._waiting[number] = Deferred()
        self.carry_out()
        return await waiting

    def carry_out(self) -> None:
        """Send what is to be sent, and wake it in time."""
        clock = self.net.clock
        for effect in self.session.effects():
            if isinstance(effect, SendTo) and effect.peer in self.there:
                self.view.add(effect.data)
                clock.callLater(self.net.delay, self.there[effect.peer].hear, effect.data, self.peer)
            elif isinstance(effect, Tell) and isinstance(effect.what, Done):
                waiting = self._waiting.pop(effect.what.number, None)
                if waiting is not None:
                    waiting.callback(effect.what)
        if self._call is not None and self._call.active():
            self._call.cancel()
        at = self.session.deadline()
        assert at is not None
        self._call = clock.callLater(max(at - clock.seconds(), 0.0), self._wake)

    def hear(self, data: bytes, peer: Peer) -> None:
        self.view.add(data, peer[0], compact(*peer))
        self.session.received(data, peer, self.net.clock.seconds())
        self.carry_out()

    def _wake(self) -> None:
        self.session.wake(self.net.clock.seconds())
        self.carry_out()


@define(eq=False)
class SeeingWays(MemoryWays):
    """Ways by one guard; whatever its owner could read on them is in the view of its node."""

    guard: Node = field(kw_only=True)
    origins: list[Origin] = field(factory=list, init=False)

    def wall(self) -> float:
        return WALL + LATER + self.net.clock.seconds()

    async def to(self, last: Hop, before: int, *, layer2: bool = False, kept: bool = False) -> Origin:
        between = [one for one in self.relays if one.identity != last.identity]
        path = [self.guard, *self.net.chance.sample(between, before - 1), self.net.by_endpoint[last.endpoints[0]]]
        self.node.view.add(*(one.identity for one in path))
        building: Building = self.net.begin(self.node, *path)
        self.built.append(building)
        self.paths.append(tuple(one.name for one in path))
        while not building.stands:
            assert building.ended is None and not building.failures, "no circuit"
            turn: Deferred[None] = Deferred()
            self.net.clock.callLater(0.001, turn.callback, None)
            await turn
        self.origins.append(building.circuit)
        return building.circuit

    async def work(self, what: Callable[[], T]) -> T:
        made = await super().work(what)
        self.see(made)
        return made

    def see(self, made: object) -> None:
        """Keep what was made or opened, whatever it is made of."""
        if isinstance(made, bytes | str):
            self.node.view.add(made)
        elif isinstance(made, tuple):
            for one in made:
                self.see(one)
        else:
            for name in getattr(type(made), "__attrs_attrs__", ()):
                self.see(getattr(made, name.name, None))


@define(eq=False)
class Party:
    """A client or a service: its node and guard, its ways, and its questions to the DHT."""

    net: HiddenNet
    name: str
    offering: list[Node]
    node: Node = field(init=False)
    guard: Node = field(init=False)
    ways: SeeingWays = field(init=False)
    items: Asking = field(init=False)
    wire: list[tuple[str, bytes]] = field(factory=list, init=False)  # what goes between it and its guard, in order

    def __attrs_post_init__(self) -> None:
        world, net = self.net, self.net.net
        self.node, self.guard = net.client(self.name), net.relay(f"guard of {self.name}")
        self.ways = SeeingWays(net, self.node, world.middles, self.offering, guard=self.guard)
        self.node.dial(self.guard)
        near = self.node.carriers[0]
        near.view, near.other.view = Order([], ">", self.wire), Order([], "<", self.wire)
        self.items = Asking(self._sources, Name("test"), net.chance, net.clock, self.ways.wall)

    def _sources(self) -> list[Source]:
        return [Source(one.identity, self._asking(one)) for one in self.net.hops]

    def _asking(self, last: Node) -> Any:
        async def ask_(about: bytes, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
            origin = await self.ways.to(last.hop, 2)
            assert isinstance(answers, tuple)
            (answer,) = answers
            said = await ask(self.ways, origin, command, data, answer, 20.0)
            self.node.view.add(said)
            origin.close()
            return answer, said

        return ask_

    def cells(self) -> dict[bytes, list[tuple[str, int]]]:
        """Give way and command of the cells of each circuit, as its guard sees them."""
        found: dict[bytes, list[tuple[str, int]]] = {}
        for way, piece in self.wire:
            for at in range(0, len(piece), CELL):
                number, command = piece[at : at + 4], piece[at + 4]
                if any(number):
                    found.setdefault(number, []).append((way, command))
        return found


@define(eq=False)
class Hosted:
    """A hidden service with an echo at port 80, published as a node does it."""

    party: Party
    key: NodeKey
    more: dict[str, Any]
    clients: dict[str, bytes] = field(factory=dict)
    service: HiddenService = field(init=False)
    publishing: Publishing = field(init=False)
    points: tuple[Point, ...] = field(default=(), init=False)
    logins: list[bytes | None] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        ways, clock, tasks = self.party.ways, self.party.net.net.clock, TaskSet(Logger())
        cookie = self.more.get("cookie", b"")
        self.publishing = Publishing(
            self.party.items,
            self.key,
            tasks,
            clock.callLater,
            ways.wall,
            chance=self.party.net.net.chance,
            clients=self.clients,
            cookie=cookie,
            modes=self.more.get("modes", (1,)),
        )
        self.service = HiddenService(ways, tasks, self.key, self.asked, self.publish, clock.callLater, **self.more)

    def publish(self, points: tuple[Point, ...]) -> None:
        self.points = points
        price: Price | None = self.service.price
        if len(points) == self.service.wanted:
            self.publishing.changed(points, price)

    def asked(self, stream: Stream, port: int, login: bytes | None) -> None:
        self.logins.append(login)
        if port != 80:
            stream.close(Reason.NO_PORT)
            return
        stream.sink = Watched(self.party.node.view, Echo(stream))
        stream.accept(Opened(Address(""), 0))

    def start(self) -> None:
        self.service.start()
        self.party.net.net.run(lambda: self.publishing.published > 0)


@define(eq=False)
class HiddenNet:
    """See the module."""

    net: Network = field(factory=Network, init=False)
    middles: list[Node] = field(init=False)
    meetings: list[Node] = field(init=False)
    hops: list[Node] = field(init=False)  # of the DHT, which search for others
    holders: list[Kept] = field(init=False)  # which only store
    access: dict[str, Access] = field(factory=dict, init=False)
    meeting: dict[str, Meeting] = field(factory=dict, init=False)
    reads: dict[str, list[Read]] = field(factory=dict, init=False)  # what roles have read at each node
    kept: dict[Peer, Kept] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        net = self.net
        self.middles = [net.relay(f"middle {number}") for number in range(6)]
        self.meetings = [net.relay(f"meeting {number}") for number in range(MEETINGS)]
        for node in self.meetings:
            access, meeting = Access(), Meeting(node.circuits.join)
            self.access[node.name], self.meeting[node.name] = access, meeting
            self._serve(node, access, meeting)
        self.hops = [net.relay(f"DHT hop {number}") for number in range(DHT_HOPS)]
        self.holders = [self._keep((f"45.0.{number}.1", 9000), View()) for number in range(HOLDERS)]
        tasks = TaskSet(Logger())
        for node in self.hops:
            kept = self._keep((node.address.host, 9000), node.view)
            role = Answering(kept, tasks.start, lambda node: None, net.chance.randbytes(32), lambda: WALL + LATER)
            self._serve(node, role)
        net.settle(60.0)

    def _serve(self, node: Node, *roles: Any) -> None:
        self.reads[node.name] = [Read(node.view, role) for role in roles]
        for one in self.reads[node.name]:
            node.circuits.serve(one)

    def _keep(self, peer: Peer, view: View) -> Kept:
        key = NodeKey.from_seed(self.net.chance.randbytes(32))
        made = Kept(self.net, key, peer, view, self.kept)
        self.net.settle(0.2)
        return made

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the clock run until this has come to an end; raises what it raises."""
        done: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(done.append)
        self.net.run(lambda: bool(done))
        if isinstance(done[0], Failure):
            done[0].raiseException()
        result: T = done[0]
        return result
