"""The rows `relay.*` that look at a node and steer it: links, circuits, streams, peers, guards, and what it counts.

Addresses and what streams lead to are for administrators who ask for them (`full`); everybody else sees networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred

from layer8.config.network import RelayConfig, parse_peer
from layer8.control.access import Caller
from layer8.control.errors import Forbidden, InvalidParams, NotFound
from layer8.control.table import Event, Table, method
from layer8.core.blur import AddressBlur
from layer8.core.errors import ConfigError, Unavailable
from layer8.core.members import member
from layer8.core.place import place
from layer8.crypto.descriptor import Role
from layer8.crypto.keys import SHORT, NodeKey, id_text
from layer8.relay.circuit import Circuits as Carried
from layer8.relay.database import Database, Peer
from layer8.relay.exit import Rule
from layer8.relay.guards import Guards
from layer8.relay.inbox import Inbox
from layer8.relay.link import Link
from layer8.relay.links import Links
from layer8.relay.neighbours import Neighbours
from layer8.relay.outward import Outward
from layer8.relay.pool import Pool
from layer8.relay.route import MAX_HOPS, Internet, Route, parse_route, parse_way
from layer8.relay.standing import Circuit, Need
from layer8.relay.wire import TEXT_MOST, Reason

PAGE: Final = 200  # rows
BUILD_TIME: Final = 90.0  # seconds: three circuits of several hops may be tried
ADMIN: Final = "admin"

T = TypeVar("T")


@frozen
class Look:
    """Which rows: from `cursor` on. `full`: with addresses and targets, for administrators."""

    full: bool = False
    cursor: str = member("", most=16)
    limit: int = member(PAGE, least=1, most=PAGE)


@frozen
class LinkRow:
    """A link with a neighbour; `node` is empty for one that shows no identity."""

    node: str
    address: str
    dialled: bool
    circuits: int
    cells_in: int
    cells_out: int
    queued: int
    ms: float
    age: int


@frozen
class LinkRows:
    """Links; `next` is the cursor of the next page if there is one."""

    links: tuple[LinkRow, ...]
    next: str | None = None


@frozen
class CircuitRow:
    """A circuit that this node has built: its hops by the first letters of their ids, and what each took to build."""

    circuit: int
    state: str
    path: str
    ms: tuple[float, ...]
    streams: int
    age: int
    purpose: str


@frozen
class CircuitRows:
    """Circuits; `next` is the cursor of the next page if there is one."""

    circuits: tuple[CircuitRow, ...]
    next: str | None = None


@frozen
class StreamRow:
    """A stream of a program on this machine."""

    circuit: int
    stream: int
    protocol: str
    target: str
    state: str


@frozen
class StreamRows:
    """Streams; `next` is the cursor of the next page if there is one."""

    streams: tuple[StreamRow, ...]
    next: str | None = None


@frozen
class PeerRow:
    """A node that this one knows."""

    node: str
    roles: tuple[str, ...]
    address: str
    linked: bool
    vetted: bool
    live: bool
    good: int
    bad: int
    seen: int


@frozen
class PeerRows:
    """Peers; `next` is the cursor of the next page if there is one."""

    peers: tuple[PeerRow, ...]
    next: str | None = None


@frozen
class GuardRow:
    """A first hop that is kept; days until it is replaced."""

    node: str
    state: str
    days: float
    failures: int


@frozen
class GuardRows:
    """The guards, those first that are used first."""

    guards: tuple[GuardRow, ...]


@frozen
class Way:
    """The hops of a circuit: `rand>rand>NODE`."""

    path: str = member(most=2048)


@frozen
class Number:
    """A circuit of this node, by its number."""

    circuit: int = member(least=1, most=2**53)


@frozen
class Address:
    """A node and where it is: ID@ENDPOINT."""

    peer: str = member(most=512)


@frozen
class Linked:
    """The neighbour that a link leads to."""

    node: str


@frozen
class Rules:
    """What circuits may reach from here."""

    exit: bool
    rules: tuple[str, ...]
    loopback: bool
    single_hop: bool


@frozen
class Stats:
    """What there is now, and what was counted since the start."""

    links: int
    circuits: int
    spare: int
    building: int
    carried: int
    streams: int
    peers: int
    guards: int
    built: int
    failed: int
    cells_in: int
    cells_out: int
    exit_dialled: int
    exit_refused: int
    exit_failed: int


@frozen
class Message:
    """A line of text for a node, by its id, letters of it, or an alias; `signed` by our own key or by nobody's."""

    to: str = member(least=1, most=64)
    text: str = member(least=1, most=TEXT_MOST)
    signed: bool = False


@frozen
class Taken:
    """How long the answer took, and by which circuit; whether that was built for it."""

    ms: float
    circuit: int
    new: bool


@frozen
class LetterRow:
    """A message that has come; `sender` is empty where nobody has signed it."""

    at: int
    sender: str
    text: str


@frozen
class LetterRows:
    """Messages, the newest last; `next` is the cursor of the next page if there is one."""

    letters: tuple[LetterRow, ...]
    next: str | None = None


@frozen
class LinkEvent:
    """A link was opened, or is closed."""

    node: str
    state: str


@frozen
class CircuitEvent:
    """A circuit of this node stands, or is closed."""

    circuit: int
    state: str
    path: str


@frozen
class StreamEvent:
    """A program's stream is open, or has failed; `circuit` is 0 where there was none for it."""

    circuit: int
    state: str


@frozen
class Alert:
    """Something that whoever looks after this node should know."""

    what: str
    node: str


class Parts(Protocol):
    """What the rows look at: a `layer8.relay.service.Relay`."""

    links: Links
    neighbours: Neighbours
    pool: Pool
    circuits: Carried
    database: Database
    guards: Guards
    outward: Outward
    config: RelayConfig
    wall: Callable[[], float]
    seconds: Callable[[], float]


class Counted:
    """Cells of links that are gone; asked for all, it adds those that are there."""

    def __init__(self, links: Links) -> None:
        """Begin at zero."""
        self._links = links
        self._in = self._out = 0

    def closed(self, link: Link) -> None:
        """Keep what a link has carried."""
        self._in += link.cells_in
        self._out += link.cells_out

    @property
    def cells(self) -> tuple[int, int]:
        """Give the cells of circuits that came in, and that went out."""
        links = list(self._links)
        return self._in + sum(one.cells_in for one in links), self._out + sum(one.cells_out for one in links)


class RelayRows:
    """The rows of one node; it also tells the events, so it takes the hooks of links and circuits."""

    owns = ("relay",)
    events = (
        Event("relay.link", LinkEvent),
        Event("relay.circuit", CircuitEvent),
        Event("relay.stream", StreamEvent),
        Event("relay.alert", Alert),
    )

    def __init__(self, parts: Parts, table: Table) -> None:
        """Look at a node, and tell its events to a table."""
        self._parts = parts
        self._table = table
        self._blur = AddressBlur("prefix", bytes)
        self.counted = Counted(parts.links)
        parts.neighbours.changed = self._link
        parts.neighbours.alert = self._alert
        parts.pool.changed = self._circuit
        parts.pool.streamed = self._stream

    @method("relay.links", role="read")
    async def links(self, caller: Caller, params: Look) -> LinkRows:
        """List the links with neighbours."""
        full, now = _full(caller, params), self._parts.seconds()
        rows = [
            LinkRow(
                node="" if link.peer is None else short(link.peer),
                address=self._address(link.address.host, link.address.port, full),
                dialled=link.dialled,
                circuits=link.circuits,
                cells_in=link.cells_in,
                cells_out=link.cells_out,
                queued=link.queued,
                ms=round(link.rtt * 1000, 3),
                age=int(now - link.opened_at),
            )
            for link in self._parts.links
        ]
        return LinkRows(*_page(rows, params))

    @method("relay.circuits", role="read")
    async def circuits(self, caller: Caller, params: Look) -> CircuitRows:
        """List the circuits that this node has built."""
        _full(caller, params)
        all_of_it = caller.may("operate")
        return CircuitRows(*_page([self._row(one, all_of_it) for one in self._parts.pool.rows()], params))

    @method("relay.streams", role="read")
    async def streams(self, caller: Caller, params: Look) -> StreamRows:
        """List the streams of this machine's programs."""
        full = _full(caller, params)
        rows = [
            StreamRow(
                circuit=circuit.number,
                stream=number,
                protocol=stream.target.proto.name.lower(),
                target=f"{stream.target.host}:{stream.target.port}" if full else "",
                state=stream.state.value,
            )
            for circuit in self._parts.pool.rows()
            for number, stream in sorted(circuit.origin.streams.live.items())
        ]
        return StreamRows(*_page(rows, params))

    @method("relay.peers", role="read")
    async def peers(self, caller: Caller, params: Look) -> PeerRows:
        """List the nodes that this one knows."""
        full, now = _full(caller, params), self._parts.wall()
        at = _start(params)
        known = list(self._parts.database)
        rows = tuple(self._peer(peer, full, now) for peer in known[at : at + params.limit])
        return PeerRows(rows, str(at + params.limit) if at + params.limit < len(known) else None)

    @method("relay.guards", role="operate")
    async def guards(self, caller: Caller) -> GuardRows:
        """List the first hops that this node keeps."""
        now = self._parts.wall()
        return GuardRows(
            tuple(
                GuardRow(
                    short(one.identity), one.state.value, round(max(0.0, one.expires - now) / 86400, 1), one.failures
                )
                for one in (*self._parts.guards.rows, *self._parts.guards.past)
            )
        )

    @method("relay.build", role="operate", timeout=BUILD_TIME)
    async def build(self, caller: Caller, params: Way) -> CircuitRow:
        """Build a circuit by hand, for this call alone: rand>rand>NODE."""
        return self._row(await self._built(read_route(params.path)))

    @method("relay.test", role="operate", timeout=BUILD_TIME)
    async def test(self, caller: Caller) -> CircuitRow:
        """Build a circuit of the usual length, say how long each hop took, and close it."""
        circuit = await self._built(Route())
        row = self._row(circuit)
        circuit.close()
        return row

    @method("relay.close", role="operate", errors=(NotFound,))
    async def close(self, caller: Caller, params: Number) -> None:
        """Close a circuit of this node with its streams."""
        circuit = self._parts.pool.circuits.get(params.circuit)
        if circuit is None:
            raise NotFound("circuit")
        circuit.close()

    @method("relay.dial", role="operate")
    async def dial(self, caller: Caller, params: Address) -> Linked:
        """Open a link to a node, by hand; from now on it needs no vetting."""
        try:
            identity, endpoint = parse_peer(params.peer)
        except ConfigError as error:
            raise InvalidParams("peer", str(error)) from None
        waiting: Deferred[object] = Deferred()
        self._parts.neighbours.reach(identity, (endpoint,), waiting.callback)
        found = await waiting
        if isinstance(found, Reason):
            raise Unavailable(f"there is no link to that node: {found.name.lower()}")
        self._parts.database.pin(identity)
        return Linked(id_text(identity))

    @method("relay.policy", role="read")
    async def policy(self, caller: Caller) -> Rules:
        """Say what circuits may reach from here."""
        outward = self._parts.outward
        return Rules(
            exit=bool(outward.policy),
            rules=tuple(_text(rule) for rule in outward.policy.rules),
            loopback=outward.guard.allow_loopback,
            single_hop=self._parts.config.allow_single_hop,
        )

    @method("relay.stats", role="read")
    async def stats(self, caller: Caller) -> Stats:
        """Give what there is, and what was counted since the start."""
        return self.stand()

    def stand(self) -> Stats:
        """Give the same to metrics."""
        parts = self._parts
        circuits = parts.pool.rows()
        cells_in, cells_out = self.counted.cells
        counts = parts.outward.counts
        return Stats(
            links=sum(1 for _ in parts.links),
            circuits=len(circuits),
            spare=sum(1 for one in circuits if one.need is None),
            building=parts.pool.building,
            carried=len(parts.circuits.all),
            streams=sum(len(one.origin.streams.live) for one in circuits),
            peers=len(parts.database),
            guards=len(parts.guards.rows),
            built=parts.pool.built,
            failed=parts.pool.failures,
            cells_in=cells_in,
            cells_out=cells_out,
            exit_dialled=counts.dialled,
            exit_refused=counts.refused,
            exit_failed=counts.failed,
        )

    async def _built(self, route: Route) -> Circuit:
        waiting: Deferred[Circuit | Exception] = Deferred()
        pool = self._parts.pool
        pool.build(Need(route=route, hops=len(route.hops) or pool.hops, alone=True), waiting.callback)
        found = await waiting
        if isinstance(found, Exception):
            raise found
        return found

    def _row(self, circuit: Circuit, all_of_it: bool = True) -> CircuitRow:
        return CircuitRow(
            circuit=circuit.number,
            state=circuit.origin.state.value,
            path=">".join(circuit.hops) if all_of_it else _own_hops(circuit),
            ms=circuit.ms,
            streams=len(circuit.origin.streams.live),
            age=int(self._parts.seconds() - circuit.since),
            purpose=purpose(circuit.need),
        )

    def _peer(self, peer: Peer, full: bool, now: float) -> PeerRow:
        there = [place(one) for one in peer.descriptor.endpoints]
        return PeerRow(
            node=id_text(peer.identity) if full else short(peer.identity),
            roles=tuple(role.name.lower() for role in Role if role.name and peer.descriptor.roles & role),
            address=next((self._address(one.host, one.port, full) for one in there), ""),
            linked=self._parts.links.get(peer.identity) is not None,
            vetted=self._parts.database.vetted(peer),
            live=self._parts.database.live(peer, now),
            good=peer.good,
            bad=peer.bad,
            seen=max(0, int(now - peer.seen)),
        )

    def _address(self, host: str, port: int, full: bool) -> str:
        if full:
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return self._blur.word(host, 0.0) or ""

    # What links and circuits tell.

    def _link(self, link: Link, state: str) -> None:
        if state == "closed":
            self.counted.closed(link)
        self._table.publish("relay.link", LinkEvent("" if link.peer is None else short(link.peer), state))

    def _circuit(self, circuit: Circuit, state: str) -> None:
        self._table.publish("relay.circuit", CircuitEvent(circuit.number, state, _own_hops(circuit)))

    def _alert(self, what: str, peer: bytes | None) -> None:
        self._table.publish("relay.alert", Alert(what, "" if peer is None else short(peer)))

    def _stream(self, circuit: Circuit | None, state: str) -> None:
        self._table.publish("relay.stream", StreamEvent(0 if circuit is None else circuit.number, state))


class InboxRows:
    """Messages to other nodes, and those that have come."""

    owns = ("relay",)

    def __init__(self, inbox: Inbox, key: NodeKey) -> None:
        """Send as the node with this key, where that is wanted."""
        self._inbox = inbox
        self._key = key

    @method("relay.send", role="operate", timeout=BUILD_TIME)
    async def send(self, caller: Caller, params: Message) -> Taken:
        """Send a line of text by a circuit that ends at a node; the circuit of the last time is used if it stands."""
        sent = await self._inbox.send(params.to, params.text, self._key if params.signed else None)
        return Taken(sent.ms, sent.circuit, sent.new)

    @method("relay.inbox", role="operate")
    async def inbox(self, caller: Caller, params: Look) -> LetterRows:
        """List the messages that have come to this node."""
        rows = [
            LetterRow(
                int(letter.at), id_text(letter.sender) if letter.sender else "", letter.text.decode("utf-8", "replace")
            )
            for letter in self._inbox.letters
        ]
        return LetterRows(*_page(rows, params))


def short(identity: bytes) -> str:
    """Give the letters by which people know a node."""
    return id_text(identity)[:SHORT]


def purpose(need: Need | None) -> str:
    """Say in a word what a circuit is for."""
    if need is None:
        return "spare"
    if need.last:
        return "question"
    if need.route.hops:
        return "by hand"
    return "alone" if need.alone else "streams"


def _own_hops(circuit: Circuit) -> str:
    """Give the hops that we have chosen: one behind them is where a hidden service of ours, or of others, is met."""
    return ">".join(circuit.hops[: len(circuit.path)])


def read_route(text: str) -> Route:
    """Read a path with or without its target; raises InvalidParams."""
    try:
        if text.rpartition(">")[2].strip() == "internet":
            route, target = parse_way(text)
            assert isinstance(target, Internet)
        else:
            route = parse_route(text)
    except ConfigError as error:
        raise InvalidParams("path", str(error)) from None
    if not 0 < len(route.hops) <= MAX_HOPS:
        raise InvalidParams("path", "a path has at least one hop")
    return route


def _full(caller: Caller, params: Look) -> bool:
    if params.full and not caller.may(ADMIN):
        raise Forbidden(ADMIN)
    return params.full


def _start(params: Look) -> int:
    return int(params.cursor) if params.cursor.isascii() and params.cursor.isdigit() else 0


def _page(rows: Sequence[T], params: Look) -> tuple[tuple[T, ...], str | None]:
    at = _start(params)
    end = at + params.limit
    return tuple(rows[at:end]), str(end) if end < len(rows) else None


def _text(rule: Rule) -> str:
    ports = str(rule.low) if rule.low == rule.high else f"{rule.low}-{rule.high}"
    return f"{'accept' if rule.accept else 'reject'} {rule.host}:{ports}"
