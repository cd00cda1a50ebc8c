"""A whole network in memory on one clock: real links, circuits and streams, and what each node has seen of them.

::

    net = Network()
    guard, middle, leaving, client = net.relay("guard"), net.relay("middle"), net.relay("exit"), net.client("client")
    leaving.serve("echo.test", 7, Echo)
    circuit = net.build(client, guard, middle, leaving)
    sink = Heard()
    stream = circuit.open(Open(Proto.TCP, "echo.test", 7), sink)
    stream.write(b"hello")
    net.run(lambda: sink.all == b"hello")

Carriers are lists of bytes with a delay: what TLS would hide from an observer is plain here, and its lengths are true.
A carrier holds no more than LINK_HIGH bytes of somebody who does not read. `View` keeps every byte that a node has got
or sent on any link, every address and identity that it was shown, and whatever it could read at a circuit's end.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

from attrs import define, field
from twisted.internet.base import DelayedCall
from twisted.internet.task import Clock

from layer8.core.errors import TimedOut
from layer8.crypto.ntor import OnionKey, SeenX, relay_answer
from layer8.relay.circuit import Circuit, Circuits, Way, choose_terms
from layer8.relay.limits import LINK_HIGH, LINK_LOW
from layer8.relay.link import Ground, Link, State, Why
from layer8.relay.origin import Hop, Origin
from layer8.relay.slots import Place
from layer8.relay.stream import Means, Stream
from layer8.relay.turn import Sink, Turn
from layer8.relay.wire import Address, Destroy, Open, Opened, Reason

WALL: Final = 1_700_000_000.0
"""The date at which every network begins, in seconds since 1970."""
STEPS: Final = 10_000_000
"""Most things that `run` lets happen before it gives up."""


class Ticks(Clock):
    """A `Clock` that thousands of calls may wait on."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> DelayedCall:
        """Put a call in its place; the others stay where they are."""
        call = DelayedCall(self.seconds() + delay, callable, args, kw, self.calls.remove, self._moved, self.seconds)
        insort(self.calls, call, key=DelayedCall.getTime)
        return call

    def step(self) -> bool:
        """Go to the next call and let it happen; False if none waits."""
        if not self.calls:
            return False
        self.advance(max(self.calls[0].getTime() - self.seconds(), 0.0))
        return True

    def _moved(self, call: object) -> None:
        self.calls.sort(key=DelayedCall.getTime)


@define(eq=False)
class View:
    """What one party has seen."""

    pieces: list[bytes] = field(factory=list)

    def add(self, *seen: bytes | str) -> None:
        """Keep it."""
        self.pieces += [one.encode() if isinstance(one, str) else bytes(one) for one in seen]

    def has(self, what: bytes | str) -> bool:
        """Search all of it, also where one piece goes over into the next."""
        return (what.encode() if isinstance(what, str) else what) in b"".join(self.pieces)


@define(eq=False)
class Carrier:
    """One end of a carrier: `layer8.relay.link.Wire`. `spoil` may change what goes to the other end, or swallow it."""

    _net: Network
    node: Node
    link: Link = field(init=False)
    other: Carrier = field(init=False)
    view: View = field(factory=View)  # of somebody who listens here
    spoil: Callable[[bytes], bytes] | None = field(default=None)
    lengths: list[int] = field(factory=list, init=False)  # of what was written
    waiting: deque[bytes] = field(factory=deque, init=False)  # for the other end to read
    size: int = field(default=0, init=False)
    most: int = field(default=0, init=False)  # bytes that have ever waited
    closed: bool = field(default=False, init=False)
    _held: bool = field(default=False, init=False)
    _full: bool = field(default=False, init=False)
    _planned: bool = field(default=False, init=False)
    _alarm: DelayedCall | None = field(default=None, init=False)

    def write(self, data: bytes) -> None:
        """Send."""
        if self.closed:
            return
        self.lengths.append(len(data))
        if self._net.recording:
            self.view.add(data)
            self.node.view.add(data)
        if self.spoil is not None:
            data = self.spoil(data)
            if not data:
                return
        self.waiting.append(data)
        self.size += len(data)
        self.most = max(self.most, self.size)
        if self.size > LINK_HIGH and not self._full:
            self._full = True
            self.link.pause()
        self._plan()

    def hold(self, held: bool) -> None:
        """Read no more, or go on."""
        self._held = held
        if not held:
            self.other._plan()

    def due(self, at: float | None) -> None:
        """Wake the link at this second, and at no other."""
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        clock = self._net.clock
        self._alarm = None if at is None else clock.callLater(max(at - clock.seconds(), 0.0), self._wake)

    def hang_up(self, abort: bool) -> None:
        """End the connection; what was written before still arrives, unless `abort`."""
        if self.closed:
            return
        self.closed = True
        if abort:
            self.waiting.clear()
        self._plan()

    def cut(self) -> None:
        """Cut the cable: both ends notice at once."""
        for end in (self, self.other):
            end.closed = True
            end.waiting.clear()
        for end in (self, self.other):
            end.link.lost(end._net.clock.seconds())

    def _wake(self) -> None:
        self.link.wake(self._net.clock.seconds())

    def _plan(self) -> None:
        if not self._planned and (self.waiting or self.closed):
            self._planned = True
            self._net.clock.callLater(self._net.delay, self._arrive)

    def _arrive(self) -> None:
        self._planned = False
        other, now, meter = self.other, self._net.clock.seconds(), self._net.meter
        turn = other.node.means.turn
        begun = meter() if meter is not None else 0.0
        turn.begin()
        if self.waiting and not other._held:
            data = b"".join(self.waiting)
            self.waiting.clear()
            self.size = 0
            if self._net.recording:
                other.node.view.add(data)
            other.link.received(data, now)
        turn.end()
        if meter is not None:
            other.node.spent += meter() - begun
        if self.size <= LINK_LOW and self._full:
            self._full = False
            self.node.means.turn.begin()
            self.link.resume()
            self.node.means.turn.end()
        if self.closed and not self.waiting and not other.closed:
            other.closed = True
            other.link.lost(now)
        elif self.waiting and not other._held:
            self._plan()


@define(eq=False)
class Node:
    """A node: a client, and a relay too if it has `circuits`. It owns its links."""

    net: Network = field(repr=False)
    name: str
    relays: bool
    identity: bytes = field(init=False, repr=False)
    address: Address = field(init=False)
    endpoint: str = field(init=False)
    onion: OnionKey = field(init=False, repr=False)
    means: Means = field(init=False, repr=False)
    circuits: Circuits = field(init=False, repr=False)
    view: View = field(factory=View, repr=False)
    links: dict[bytes, Link] = field(factory=dict, init=False, repr=False)  # by the neighbour's identity
    carriers: list[Carrier] = field(factory=list, init=False, repr=False)
    services: dict[tuple[str, int], Callable[[Stream], Sink]] = field(factory=dict, init=False)
    streams: list[Stream] = field(factory=list, init=False)  # that were asked for here
    choose: Callable[[bytes], bytes] = field(default=choose_terms, init=False)  # what it answers to a client's terms
    spent: float = field(default=0.0, init=False)  # seconds of work on what came by links, where they are measured
    _ground: Ground = field(init=False, repr=False)
    _seen: SeenX = field(factory=SeenX, init=False, repr=False)
    _waiting: list[tuple[Link, Callable[[Link | Reason], None]]] = field(factory=list, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Take what belongs to this name."""
        net = self.net
        digest = hashlib.sha256(self.name.encode()).digest()
        self.identity = digest
        self.address = Address(f"10.{digest[0]}.{digest[1]}.{digest[2]}", 9000)
        self.endpoint = f"tcp:{self.address.host}:9000"
        self.onion = OnionKey.make()
        turn = Turn(self._later)
        self.means = Means(turn, net.clock.seconds, net.clock.callLater, net.chance.randbytes)
        self._ground = Ground(
            net.mark,
            turn,
            net.clock.seconds,
            lambda: WALL + net.clock.seconds(),
            net.chance.randbytes,
            lambda: net.chance.uniform(1.5, 9.5),
        )
        self.circuits = Circuits(self.identity, self.means, net.worker, self._answer, self._reach, self._asked)

    @property
    def hop(self) -> Hop:
        """Give what a client has to know of it."""
        return Hop(self.identity, self.onion.public, (self.endpoint,))

    def serve(self, host: str, port: int, service: Callable[[Stream], Sink]) -> None:
        """Let streams of circuits that end here reach a service, whose sinks `service` makes."""
        self.services[host, port] = service

    def dial(self, other: Node) -> Link:
        """Make a link, or give the one that there is; a client shows no identity."""
        there = self.links.get(other.identity)
        if there is not None and not there.ended:
            return there
        near, far = Carrier(self.net, self), Carrier(self.net, other)
        near.other, far.other = far, near
        self.carriers.append(near)
        other.carriers.append(far)
        near.link = Link(self._ground, self, near, dialled=True, wanted=other.identity, address=other.address)
        far.link = Link(other._ground, other, far, dialled=False, address=self.address)
        now = self.net.clock.seconds()
        if self.net.recording:
            self.view.add(other.address.host, other.identity)
            other.view.add(self.address.host)
        mine = self.identity if self.relays else None
        far.link.secured(now, peer=mine, binding=bytes(32), named=True)
        near.link.secured(now, peer=other.identity, binding=bytes(32), named=self.relays)
        self.links[other.identity] = near.link
        return near.link

    def met(self, link: Link, now: float) -> None:
        """Let everybody in."""
        if link.peer is not None:
            self.links.setdefault(link.peer, link)
            if self.net.recording:
                self.view.add(link.peer)
        link.admit(now)

    def opened(self, link: Link, now: float) -> None:
        """Tell those who wait for this link."""
        waiting, self._waiting = self._waiting, []
        for wanted, done in waiting:
            if wanted is link:
                done(link)
            else:
                self._waiting.append((wanted, done))

    def on_create(self, link: Link, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        """Take a circuit, or refuse it at a client."""
        if self.relays:
            self.circuits.on_create(link, slot, kind, handshake, now)
        else:
            slot.close(Destroy.PROTOCOL)

    def noticed(self, link: Link, notice: int, now: float) -> None:
        """Nothing is done about notices."""

    def closed(self, link: Link, why: Why, now: float) -> None:
        """Forget a link."""
        self.circuits.lost(link)
        if link.peer is not None and self.links.get(link.peer) is link:
            del self.links[link.peer]
        waiting, self._waiting = self._waiting, []
        for wanted, done in waiting:
            if wanted is link:
                done(Reason.UNREACHABLE)
            else:
                self._waiting.append((wanted, done))

    def when_open(self, link: Link, done: Callable[[Link | Reason], None]) -> None:
        """Call `done` when a link that was dialled is open, or is not going to be."""
        if link.state is State.OPEN:
            done(link)
        elif link.ended:
            done(Reason.UNREACHABLE)
        else:
            self._waiting.append((link, done))

    def _later(self, end: Callable[[], None]) -> None:
        self.net.clock.callLater(0, end)

    def _answer(self, handshake: bytes) -> Any:
        keys = {self.onion.public: self.onion}
        return relay_answer(self.identity, keys, self.net.mark, handshake, self._seen, self.choose)

    def _reach(self, node: bytes, endpoints: tuple[str, ...], done: Callable[[Way | Reason], None]) -> None:
        if self.net.recording:
            self.view.add(node, *endpoints)
        other = self.net.by_endpoint.get(endpoints[0])
        if other is None or other.identity != node:
            done(Reason.UNREACHABLE)
        else:
            self.when_open(self.dial(other), done)

    def _asked(self, circuit: Circuit, stream: Stream, target: Open) -> None:
        service = self.services.get((target.host, target.port))
        self.streams.append(stream)
        if self.net.recording:
            self.view.add(target.host)
        if service is None:
            stream.close(Reason.REFUSED)
            return
        sink = service(stream)
        stream.sink = Watched(self.view, sink) if self.net.recording else sink
        stream.accept(Opened(Address("198.51.100.7"), 60))


@define(eq=False)
class Network:
    """All nodes of one network; `delay` are seconds of every link in each direction."""

    delay: float = 0.001
    recording: bool = True
    seed: int = 1
    meter: Callable[[], float] | None = None  # a processor's clock, to know who works how long
    clock: Ticks = field(factory=Ticks, init=False)
    chance: Random = field(init=False)
    mark: bytes = field(default=hashlib.sha256(b"test").digest()[:8], init=False)
    nodes: dict[str, Node] = field(factory=dict, init=False)
    by_endpoint: dict[str, Node] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with nobody."""
        self.chance = Random(self.seed)

    def relay(self, name: str) -> Node:
        """Put a relay into the network."""
        return self._node(name, True)

    def client(self, name: str) -> Node:
        """Put somebody into the network who only asks."""
        return self._node(name, False)

    def begin(self, client: Node, *hops: Node) -> Building:
        """Begin a circuit; it builds itself while the clock goes on."""
        building = Building(self, client, list(hops))
        building.circuit = Origin(client.means, self.worker, self.mark, building)
        client.when_open(client.dial(hops[0]), building.dialled)
        return building

    def build(self, client: Node, *hops: Node) -> Origin:
        """Build a circuit; raises `TimedOut` if it does not come to stand."""
        building = self.begin(client, *hops)
        self.run(lambda: building.stands or building.ended is not None)
        if not building.stands:
            raise TimedOut(f"no circuit: {building.ended}")
        return building.circuit

    def run(self, until: Callable[[], bool], seconds: float = 120.0) -> None:
        """Let things happen until `until` says so; raises `TimedOut` if they never come to that."""
        end = self.clock.seconds() + seconds
        for _ in range(STEPS):
            if until():
                return
            if self.clock.seconds() > end or not self.clock.step():
                break
        raise TimedOut("the network has come to rest, and this has not happened")

    def settle(self, seconds: float = 1.0) -> None:
        """Let this much time pass."""
        self.clock.callLater(seconds, list)
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end and self.clock.step():
            pass

    def worker(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Work a turn later."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                result = error
            done(result)

        self.clock.callLater(0, run)

    def _node(self, name: str, relays: bool) -> Node:
        node = self.nodes[name] = Node(self, name, relays)
        self.by_endpoint[node.endpoint] = node
        return node


@define(eq=False)
class Building:
    """A circuit that is being built: `layer8.relay.origin.Told`."""

    net: Network
    client: Node
    left: list[Node]
    circuit: Origin = field(init=False)
    stands: bool = field(default=False, init=False)
    failures: list[Reason] = field(factory=list, init=False)
    ended: Destroy | None = field(default=None, init=False)

    def dialled(self, link: Link | Reason) -> None:
        """Begin on the link, if there is one."""
        if isinstance(link, Reason):
            self.ended = Destroy.LINK_LOST
        elif self.ended is None:
            self.circuit.begin(link, self.left.pop(0).hop)

    def built(self, circuit: Origin) -> None:
        """Go on to the next hop."""
        if self.left:
            circuit.extend(self.left.pop(0).hop)
        else:
            self.stands = True

    def failed(self, circuit: Origin, reason: Reason) -> None:
        """Try no other."""
        self.failures.append(reason)

    def closed(self, circuit: Origin, reason: Destroy) -> None:
        """Remember why."""
        self.ended = reason


@define(eq=False)
class Heard:
    """A sink that keeps what it hears; with `slow` it pauses its stream after every piece."""

    slow: bool = False
    stream: Stream | None = None
    pieces: list[bytes] = field(factory=list, init=False)
    words: list[str] = field(factory=list, init=False)
    reason: Reason | None = field(default=None, init=False)
    answer: Opened | None = field(default=None, init=False)

    @property
    def all(self) -> bytes:
        """Give all data in one."""
        return b"".join(self.pieces)

    def opened(self, opened: Opened) -> None:
        """Keep the answer."""
        self.answer = opened
        self.words.append("opened")

    def data(self, pieces: list[bytes]) -> None:
        """Keep the data."""
        self.pieces += pieces
        if self.slow and self.stream is not None:
            self.stream.pause()

    def ended(self) -> None:
        """Keep the word."""
        self.words.append("ended")

    def closed(self, reason: Reason) -> None:
        """Keep the reason."""
        self.reason = reason
        self.words.append("closed")

    def hold(self) -> None:
        """Keep the word."""
        self.words.append("hold")

    def go_on(self) -> None:
        """Keep the word."""
        self.words.append("go on")


@define(eq=False)
class Echo:
    """A service that says again what it hears, as fast as that is taken."""

    stream: Stream

    def opened(self, opened: Opened) -> None:
        """Never called where a stream was asked for."""

    def data(self, pieces: list[bytes]) -> None:
        """Say it again."""
        for piece in pieces:
            self.stream.write(piece)

    def ended(self) -> None:
        """End too."""
        self.stream.end()

    def closed(self, reason: Reason) -> None:
        """Nothing is left to do."""

    def hold(self) -> None:
        """Hear no more until what was said has left."""
        self.stream.pause()

    def go_on(self) -> None:
        """Hear again."""
        self.stream.resume()


@define(eq=False)
class Watched:
    """A sink whose data goes into a view first."""

    _view: View
    _sink: Sink

    def opened(self, opened: Opened) -> None:
        """Pass it on."""
        self._sink.opened(opened)

    def data(self, pieces: list[bytes]) -> None:
        """Keep it and pass it on."""
        self._view.add(*pieces)
        self._sink.data(pieces)

    def ended(self) -> None:
        """Pass it on."""
        self._sink.ended()

    def closed(self, reason: Reason) -> None:
        """Pass it on."""
        self._sink.closed(reason)

    def hold(self) -> None:
        """Pass it on."""
        self._sink.hold()

    def go_on(self) -> None:
        """Pass it on."""
        self._sink.go_on()
