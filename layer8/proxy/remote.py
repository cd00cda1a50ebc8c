"""Subscriptions that other nodes hold: one message asks their holder to call the agent, and nothing else crosses.

::

    visitor ──▶ node A ──tell {proxy.connection, A's data address}──▶ node B ──proxy.connection──▶ agent
                  │ ◀────────────────── dials A, 32 bytes of secret ─────────────────────────────────┤
                  │ ◀──reject── node B ◀───────────────────── proxy.reject ──────────────────────────┘

A seat of another node looks like one of ours: its `voice` packs what an agent is told, and the holder unpacks it.
Agents know connections by number and numbers of several nodes collide, so the holder gives its own, above every
number that visitors here can have, and remembers for CALL_LIFE whose it was. Agents dial announced addresses only:
each message says where its sender is dialled, and the holder announces what is new before it passes the message on.

Tokens for connections dialled ahead go the same way, so these wait at the node where the visitors arrive. Who claims
one is not said to the holder but on the connection itself, under a number that leads back to the node all the same:

::

    2^52 .. 2^52 + 2^51    given by the holder to a visitor of another node
    2^52 + 2^51 + mark x 2^32 + (number of the visitor at its node modulo 2^32)

A node's mark is the beginning of a hash of its id. A second node with the mark of another one gets no tokens passed on,
and calls.

Nodes trust each other; what keeps strangers out of their talk is the `Sealer`. Source: proxy.md section 13.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Any, Final, Protocol

from attrs import define, field, frozen

from layer8.control.shape import ShapeError, from_json, to_json
from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.core.lanes import Lane
from layer8.proxy.bus import Presence
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.limits import CALL_LIFE
from layer8.proxy.wire import Code, DataAddress, Number

FIRST_NUMBER: Final = 2**52
"""The lowest number that we give to a visitor of another node; visitors here are counted from 1."""
AHEAD_NUMBER: Final = FIRST_NUMBER + 2**51
"""The lowest number under which nodes claim connections of agents of other nodes."""
OWN_BITS: Final = 32
"""Bits of such a number that are the node's own; above them is its mark."""
MARK_BITS: Final = 19
CALLS: Final = 20_000
"""Visitors of other nodes that agents of ours are called for at the same time."""
NODES: Final = 256
"""Nodes whose data addresses are announced to our agents; the one that was silent longest is forgotten."""
CONNECTION: Final = "proxy.connection"
POOL: Final = "proxy.pool"
TOLD: Final = frozenset({CONNECTION, POOL})
"""What may be passed on to an agent."""


def mark(node: bytes) -> int:
    """Give the part of a number that says whose visitor it is."""
    return int.from_bytes(sha256(node).digest()[:4], "big") >> (32 - MARK_BITS)


def ahead_numbers(node: bytes) -> int:
    """Give the number under which a node claims its visitor 0 from agents of other nodes; its own bits are added."""
    return AHEAD_NUMBER + (mark(node) << OWN_BITS)


class Sealer(Protocol):
    """Keeps what nodes tell each other to themselves, and says who told it."""

    def seal(self, node: bytes, message: bytes) -> bytes:
        """Close a message for one node; raises `Unavailable` if its key is not known."""

    def open(self, sealed: bytes) -> tuple[bytes, bytes]:
        """Give the sender's id and the message; raises `RemoteProtocolError`."""


@frozen
class Plain:
    """For a bus that nobody else can reach: messages only say who sent them."""

    node: bytes

    def seal(self, node: bytes, message: bytes) -> bytes:
        """Put our id before a message."""
        return self.node + message

    def open(self, sealed: bytes) -> tuple[bytes, bytes]:
        """Take the sender's id off a message."""
        if len(sealed) < len(self.node):
            raise RemoteProtocolError("a message without a sender")
        return sealed[: len(self.node)], sealed[len(self.node) :]


@frozen
class Tell:
    """Pass a notification on to the agent of a subscription; `data` is where the sender is dialled back."""

    subscription: Number
    method: str
    params: dict[str, Any]
    data: tuple[DataAddress, ...]


@frozen
class Rejected:
    """The agent, or the node that holds its subscription, will not carry the receiver's visitor `conn`.

    0 is no visitor: the agent will not dial with the tokens that it was to be told.
    """

    subscription: Number
    conn: Number
    code: int


@frozen
class Message:
    """What one node says to another: exactly one of these."""

    tell: Tell | None = None
    reject: Rejected | None = None


@define(eq=False)
class _Called:
    """A visitor of another node, for whom an agent of ours was called."""

    node: bytes
    conn: int
    seat: Seat


@define(eq=False)
class RemoteVoice:
    """An agent's control connection that ends at another node; implements `layer8.proxy.choose.Voice`."""

    remote: Remote
    node: bytes
    subscription: int

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        """Let the other node tell its agent; False if that node is known to be out of reach."""
        return self.remote.tell(self.node, self.subscription, method, params)

    def close(self, reason: str) -> None:
        """Leave the connection to the node that has it."""


Post = Callable[[bytes, bytes, Callable[[], None]], None]
"""Sends a sealed message to a node; the function given with it is called if that cannot be done."""


@define(eq=False)
class Remote:
    """Both ends: our visitors at agents of other nodes, and visitors of other nodes at our agents."""

    node: bytes
    """Our own id."""
    lookup: Callable[[str], Collection[Presence]]
    sealer: Sealer
    post: Post
    seats: Seats
    where: Callable[[], tuple[DataAddress, ...]]
    """Gives where agents dial us back."""
    rejected: Callable[[Seat, int], None]
    """Takes that an agent will not carry a visitor of ours."""
    refused: Callable[[Seat], None]
    """Takes that an agent was not told our tokens."""
    seat_gone: Callable[[Seat], None]
    """Takes that a subscription of another node is over."""
    announce: Callable[[], None]
    """Told when `addresses` has changed, before an agent is told of a visitor there."""
    nonsense: int = field(default=0, init=False)
    relayed: int = field(default=0, init=False)
    _away: dict[tuple[bytes, int], Seat] = field(factory=dict, init=False)
    _called: dict[int, _Called] = field(factory=dict, init=False)
    _lane: Lane[int] = field(factory=lambda: Lane(CALL_LIFE), init=False)
    _nodes: dict[bytes, tuple[DataAddress, ...]] = field(factory=dict, init=False)
    _marks: dict[int, bytes] = field(factory=dict, init=False)
    _last: int = field(default=FIRST_NUMBER, init=False)
    _now: float = field(default=0.0, init=False)

    # Our visitors, agents of other nodes.

    def of(self, host: str) -> Collection[Seat]:
        """Give the subscriptions that other nodes hold for a registered name."""
        return [self._seat(presence) for presence in self.lookup(host) if presence.node != self.node]

    def _seat(self, presence: Presence) -> Seat:
        key = presence.node, presence.subscription
        seat = self._away.get(key)
        if seat is None:
            seat = self._away[key] = Seat(
                number=presence.subscription,
                host=presence.host,
                voice=RemoteVoice(self, presence.node, presence.subscription),
                instance="",
                address=None,
                key=b"",
                resume="",
                weight=presence.weight,
                priority=presence.priority,
                max_conns=0,  # only the holder knows, and says no when it is reached
                since=self._now,
                remote=True,
            )
        seat.weight, seat.priority, seat.pool = presence.weight, presence.priority, presence.pool
        return seat

    def tell(self, node: bytes, subscription: int, method: str, params: Mapping[str, Any]) -> bool:
        """Ask the holder of a subscription to pass something on to its agent."""
        data = self.where()
        conn = params["result"]["conn"] if method == CONNECTION else None
        message = Message(tell=Tell(subscription, method, _located(params, data), data))

        def failed() -> None:
            seat = self._away.get((node, subscription))
            if seat is not None:
                self._no(seat, conn or 0)

        return self._send(node, message, failed)

    def _send(self, node: bytes, message: Message, failed: Callable[[], None]) -> bool:
        text = json.dumps(to_json(message), separators=(",", ":")).encode()
        try:
            sealed = self.sealer.seal(node, text)
        except Unavailable:
            return False
        self.post(node, sealed, failed)
        return True

    # What other nodes say.

    def received(self, sealed: bytes) -> None:
        """Take a message of another node; one that makes no sense is counted and changes nothing."""
        try:
            sender, text = self.sealer.open(sealed)
            message = from_json(Message, json.loads(text))
        except (RemoteProtocolError, ShapeError, ValueError):
            self.nonsense += 1
            return
        if message.tell is not None:
            self._asked(sender, message.tell)
        elif message.reject is not None:
            seat = self._away.get((sender, message.reject.subscription))
            if seat is None:
                self.nonsense += 1
            else:
                self._no(seat, message.reject.conn)

    def _no(self, seat: Seat, conn: int) -> None:
        if conn:
            self.rejected(seat, conn)
        else:
            self.refused(seat)

    def _asked(self, node: bytes, told: Tell) -> None:
        """Pass on what another node wants an agent of ours to be told."""
        params, conn = dict(told.params), 0
        if told.method == CONNECTION:
            call = told.params.get("result")
            if not isinstance(call, dict) or type(call.get("conn")) is not int:
                self.nonsense += 1
                return
            conn = call["conn"]
        elif told.method not in TOLD:
            self.nonsense += 1
            return
        seat = self.seats.by_number(told.subscription)
        if seat is None or not seat.free() or len(self._called) >= CALLS:
            self._say_no(node, told.subscription, conn, Code.LEASE_EXPIRED if seat is None else Code.NO_CAPACITY)
            return
        self._learn(node, told.data)
        if told.method == POOL and (not seat.pool or self._marks.get(mark(node)) != node):
            self._say_no(node, seat.number, conn, Code.NO_CAPACITY)
            return
        params["subscription"] = seat.number
        number = 0
        if conn:
            self._last = number = self._last + 1 if self._last < AHEAD_NUMBER - 1 else FIRST_NUMBER
            params["result"] = told.params["result"] | {"conn": number}
            self._called[number] = _Called(node, conn, seat)
            self._lane.add(number, self._now)
        if seat.voice.notify(told.method, params):
            self.relayed += 1
            return
        seat.voice.close("slow_reader")
        if not number or self._called.pop(number, None) is not None:
            self._say_no(node, seat.number, conn, Code.NO_CAPACITY)

    def _say_no(self, node: bytes, subscription: int, conn: int, code: int) -> None:
        self._send(node, Message(reject=Rejected(subscription, conn, int(code))), lambda: None)

    # Our agents, visitors of other nodes.

    def rejects(self, seat: Seat, conn: int, code: int) -> bool:
        """Pass an agent's no on to the node whose visitor it is; False if it is one of ours."""
        if conn < FIRST_NUMBER:
            return False
        if conn >= AHEAD_NUMBER:
            node = self._marks.get((conn - AHEAD_NUMBER) >> OWN_BITS)
            if node is None:
                self.nonsense += 1
            else:
                self._say_no(node, seat.number, conn, code)
            return True
        called = self._called.get(conn)
        if called is None or called.seat is not seat:
            self.nonsense += 1
            return True
        del self._called[conn]
        self._say_no(called.node, seat.number, called.conn, code)
        return True

    def left(self, seat: Seat) -> None:
        """Take that an agent of ours is gone: nodes that wait for it learn it now."""
        for number, called in [one for one in self._called.items() if one[1].seat is seat]:
            del self._called[number]
            self._say_no(called.node, seat.number, called.conn, Code.LEASE_EXPIRED)

    # Where agents may dial.

    @property
    def addresses(self) -> tuple[DataAddress, ...]:
        """Give where the other nodes are dialled back, each address once."""
        return tuple(dict.fromkeys(address for known in self._nodes.values() for address in known))

    def _learn(self, node: bytes, data: tuple[DataAddress, ...]) -> None:
        before = self._nodes.pop(node, ())
        self._nodes[node] = data  # the last of them is who spoke last
        self._marks.setdefault(mark(node), node)
        if len(self._nodes) > NODES:
            silent = next(iter(self._nodes))
            del self._nodes[silent]
            if self._marks.get(mark(silent)) == silent:
                del self._marks[mark(silent)]
        if before != data:
            self.announce()

    # Time.

    def tick(self, now: float) -> None:
        """Forget calls that are over and seats whose lease is; `now` is monotonic seconds."""
        self._now = now
        for number in self._lane.expired(now):
            self._called.pop(number, None)
        for (node, number), seat in list(self._away.items()):
            standing = self.lookup(seat.host)
            if not any(one.node == node and one.subscription == number for one in standing):
                del self._away[node, number]
                seat.gone = True
                self.seat_gone(seat)


def _located(params: Mapping[str, Any], data: tuple[DataAddress, ...]) -> dict[str, Any]:
    """Name the host that is to be dialled where the agent would take the holder's, which is another."""
    hosts = {address.port: address.host for address in data if address.host}

    def located(told: Mapping[str, Any]) -> Mapping[str, Any]:
        host = hosts.get(told["serverListeningPort"])
        return told if host is None else {"serverListeningHost": host, **told}

    named = dict(params)
    if "result" in named:
        named["result"] = located(named["result"])
    if "tokens" in named:
        named["tokens"] = [located(token) for token in named["tokens"]]
    return named
