"""Circuits at a relay: begun by a neighbour, extended, then cells pass through; or they end here.

```
 CREATE --> created --> ended ---------EXTEND--> extending --> forwarding      cells pass: ENC, nothing is read
 worker                  |  ^                        |
                         |  '---DISCONNECT, stream 0-'  the next hop was not to be had
                         '-- messages of the client: streams -> asked, everything from RELAY_MESSAGE on -> Answers

 ended + another one that is ended --a role joins them--> joined    cells go over to the other circuit, backward there
```
`Circuits` are those of one node. It is the part of a link's owner that takes CREATE (`on_create`), and has the owner's
`reach(node, endpoints, done)` give it a link to the next hop.

A circuit is two takers of cells: itself on the client's side, `Back` on the other. Whatever it hands on to has a
`send` and a `close`: the next hop's slot, or, for circuits that are joined, what passes cells back on another circuit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final, Protocol

from attrs import define, field

from layer8.core.errors import LimitExceeded, RemoteProtocolError, Unavailable
from layer8.core.roles import Answers
from layer8.crypto.ntor import Keys, Terms
from layer8.crypto.onion import ENDED, RATCHET, Layer, layer, relay_backward, relay_forward, relay_receive, relay_send
from layer8.relay.limits import (
    CIRC_LIFE,
    CIRC_WINDOW,
    CIRCUITS,
    EARLY_CELLS,
    HANDSHAKE_BURST,
    HANDSHAKE_RATE,
    HANDSHAKES,
    T_HOP_MOST,
)
from layer8.relay.stream import ENDS, Cancels, Means, Stream, Streams, Worker
from layer8.relay.turn import Slot, Taker
from layer8.relay.wire import (
    DATA,
    L8_NTOR,
    VERSION,
    Cell,
    Command,
    Destroy,
    Extend,
    Open,
    Reason,
    Reassembly,
    disconnect,
    extended,
    fragments,
    message,
    read_connect,
)

AT_ONCE: Final = 2  # handshakes that the worker has at a time
AGE_STEP: Final = 60.0
"""Seconds between looks for circuits that are older than CIRC_LIFE."""
TERMS: Final = Terms(CIRC_WINDOW, RATCHET, (VERSION,), 0)
"""What a relay answers to any client that speaks this version."""


class Place(Slot, Protocol):
    """A slot that a neighbour has begun, or a link given."""

    taker: Taker | None
    payer: Any  # the link whose credit the cells are sent on: both ways that of whoever began the circuit


class Way(Protocol):
    """A link, as far as circuits care."""

    @property
    def peer(self) -> bytes | None:
        """Whose link it is; None for a nameless one."""

    def slot(self, taker: Taker) -> Place:
        """Make a place for a circuit that this side begins; raises `Unavailable`."""


class Onward(Protocol):
    """What a circuit hands cells on to."""

    def send(self, cmd: int, bodies: Sequence[bytes | memoryview]) -> None:
        """Take cells that go away from the client."""

    def close(self, reason: int) -> None:
        """Take the circuit's end."""


Reach = Callable[[bytes, tuple[str, ...], Callable[[Way | Reason], None]], None]
"""`reach(node, endpoints, done)`: `done` gets a link to that node, or why there is none; now or later."""
Answer = Callable[[bytes], tuple[bytes, Keys, bytes]]
"""The relay's side of `layer8.crypto.ntor`: a client's message in, what to send, keys and CM out."""


class State(Enum):
    """How far a circuit is."""

    CREATED = "created"
    ENDED = "ended"
    EXTENDING = "extending"
    FORWARDING = "forwarding"
    JOINED = "joined"
    CLOSED = "closed"


def choose_terms(cm: bytes) -> bytes:
    """Answer a client's terms with ours; raises `RemoteProtocolError` if it speaks another version."""
    if VERSION not in Terms.from_bytes(cm).versions:
        raise RemoteProtocolError("a client of another version")
    return TERMS.to_bytes()


@define(eq=False)
class Bucket:
    """`rate` tokens a second, `most` at once."""

    rate: float
    most: float
    _left: float = field(init=False)
    _at: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin full."""
        self._left = self.most

    def take(self, now: float) -> bool:
        """Take one if there is one."""
        self._left = min(self.most, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@define(eq=False)
class Circuits:
    """The circuits of one relay.

    `asked(circuit, stream, open)` takes what a client wants to reach; None: nothing can be reached from here.
    """

    identity: bytes
    means: Means
    _worker: Worker
    _answer: Answer
    reach: Reach
    asked: Callable[[Circuit, Stream, Open], None] | None = None
    roles: dict[int, Answers] = field(factory=dict, init=False)  # by command
    all: dict[int, Circuit] = field(factory=dict, init=False)
    _number: int = field(default=0, init=False)
    _of: dict[Way, dict[int, Circuit]] = field(factory=dict, init=False)  # by the link that they came by
    _buckets: dict[Way, Bucket] = field(factory=dict, init=False)
    _queue: deque[tuple[Circuit, bytes]] = field(factory=deque, init=False)
    _busy: int = field(default=0, init=False)
    _alarm: Cancels | None = field(default=None, init=False)

    def serve(self, role: Answers) -> None:
        """Let a role answer its commands at the end of circuits."""
        self.roles.update(dict.fromkeys(role.commands, role))

    def on_create(self, link: Way, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        """Take a circuit that a neighbour begins, or close its slot."""
        bucket = self._buckets.get(link)
        if bucket is None:
            bucket = self._buckets[link] = Bucket(HANDSHAKE_RATE, HANDSHAKE_BURST)
        if kind != L8_NTOR:
            slot.close(Destroy.PROTOCOL)
            return
        if not bucket.take(now):
            slot.close(Destroy.LIMIT)
            return
        self._number += 1
        circuit = self.all[self._number] = Circuit(self, self._number, link, slot, now)
        self._of.setdefault(link, {})[circuit.number] = circuit
        slot.taker = circuit
        if len(self.all) > CIRCUITS:
            most = max(self._of.values(), key=len)
            next(iter(most.values())).close(Destroy.LIMIT)
        if self._alarm is None:
            self._alarm = self.means.later(AGE_STEP, self._age)
        if len(self._queue) >= HANDSHAKES:
            self._drop()
        self._queue.append((circuit, handshake))
        self._work()

    def forget(self, circuit: Circuit) -> None:
        """Take out a circuit that has ended."""
        del self.all[circuit.number]
        rest = self._of[circuit.link]
        del rest[circuit.number]
        if not rest:
            del self._of[circuit.link]

    def join(self, number: int, other: int) -> bool:
        """Let two circuits that end here go over into each other; False, and nothing has changed, if one cannot.

        What a role has answered before leaves first, and nothing can be answered after it.
        """
        one, two = self.all.get(number), self.all.get(other)
        if one is None or two is None or one is two or not (one.joinable and two.joinable):
            return False
        one.joined(two)
        two.joined(one)
        return True

    def lost(self, link: Way) -> None:
        """Forget a link; its circuits are told by their slots."""
        self._buckets.pop(link, None)

    def close(self, reason: Destroy = Destroy.GOING_DOWN) -> None:
        """End all circuits."""
        for circuit in list(self.all.values()):
            circuit.close(reason)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _drop(self) -> None:
        """Drop the oldest handshake of the link that has most of them waiting."""
        ((most, _),) = Counter(circuit.link for circuit, _ in self._queue).most_common(1)
        at = next(at for at, (circuit, _) in enumerate(self._queue) if circuit.link is most)
        oldest = self._queue[at][0]
        del self._queue[at]
        oldest.close(Destroy.LIMIT)

    def _work(self) -> None:
        while self._queue and self._busy < AT_ONCE:
            circuit, handshake = self._queue.popleft()
            if circuit.state is State.CREATED:
                self._busy += 1
                self._begin(circuit, handshake)

    def _begin(self, circuit: Circuit, handshake: bytes) -> None:
        def done(result: tuple[bytes, Keys, bytes] | Exception) -> None:
            self._busy -= 1
            circuit.answered(result)
            self._work()

        self._worker(lambda: self._answer(handshake), done)

    def _age(self) -> None:
        self._alarm = None
        born = self.means.clock() - CIRC_LIFE
        for circuit in list(self.all.values()):  # the oldest first
            if circuit.since > born:
                break
            circuit.close(Destroy.TIMEOUT)
        if self.all:
            self._alarm = self.means.later(AGE_STEP, self._age)


@define(eq=False)
class Asked:
    """Who has asked a role something: `layer8.core.roles.Asker`."""

    _circuit: Circuit
    _stream: int

    @property
    def circuit(self) -> int:
        """Give the circuit's number in this process."""
        return self._circuit.number

    @property
    def neighbour(self) -> bytes | None:
        """Say whose link the circuit came by."""
        return self._circuit.link.peer

    @property
    def binding(self) -> bytes:
        """Give what only the two ends of this circuit know."""
        return self._circuit.binding

    @property
    def alive(self) -> bool:
        """Say whether an answer would get there."""
        return self._circuit.streams is not None

    def answer(self, command: int, data: bytes) -> None:
        """Send a message back on the stream that was asked on."""
        if self._circuit.streams is not None:
            self._circuit.streams.push(fragments(command, self._stream, data))

    def destroy(self) -> None:
        """End the circuit: it has broken the protocol."""
        self._circuit.close(Destroy.PROTOCOL)


@define(eq=False)
class Circuit:
    """One circuit, and its taker on the client's side."""

    owner: Circuits = field(repr=False)
    number: int  # in this process
    link: Way
    slot: Place
    since: float
    state: State = field(default=State.CREATED, init=False)
    binding: bytes = field(default=b"", init=False, repr=False)
    streams: Streams | None = field(default=None, init=False)  # where it ends here
    onward: Onward | None = field(default=None, init=False)  # where it goes on
    next: bytes | None = field(default=None, init=False)  # node id of the next hop
    cells_forward: int = field(default=0, init=False)
    cells_backward: int = field(default=0, init=False)
    _forward: Layer = field(init=False, repr=False)
    _backward: Layer = field(init=False, repr=False)
    _early: int = field(default=0, init=False)
    _back: Back | None = field(default=None, init=False)
    _unfinished: Reassembly = field(factory=Reassembly, init=False)
    _roles: set[Answers] = field(factory=set, init=False)  # that have been asked
    _timer: Cancels | None = field(default=None, init=False)

    def answered(self, result: tuple[bytes, Keys, bytes] | Exception) -> None:
        """Take what the worker has made of the handshake."""
        if self.state is not State.CREATED:
            return
        if isinstance(result, Exception):
            self.close(Destroy.PROTOCOL)
            if not isinstance(result, RemoteProtocolError):
                raise result
            return
        reply, keys, _ = result
        self._forward = layer(keys.forward)
        self._backward = layer(keys.backward)
        self.binding = keys.binding
        self.streams = Streams(self, self.owner.means, self._asked)
        self.state = State.ENDED
        self.slot.created(L8_NTOR, reply)

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        """Never called: the neighbour has begun this circuit."""

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        """Take cells of the client, and pass them on or read them."""
        try:
            if cmd != Cell.RELAY:
                self._early += len(bodies)
                if self._early > EARLY_CELLS:
                    raise LimitExceeded("EARLY_CELLS", EARLY_CELLS)
            if self.onward is not None:
                self.onward.send(cmd, relay_forward(self._forward, cmd, bodies))
                self.cells_forward += len(bodies)
            elif self.streams is not None:
                self.cells_forward += len(bodies)
                tags: list[bytes] = []
                self.streams.took(relay_receive(self._forward, cmd, bodies, tags), tags, cmd != Cell.RELAY)
        except RemoteProtocolError as error:
            self.broke(error)

    def gone(self, reason: int, now: float) -> None:
        """Take the circuit's end from the client's side."""
        self.close(reason)

    def room(self, now: float) -> None:
        """Go on: the link to the client takes cells again."""
        if self.streams is not None:
            self.streams.room()

    def back(self, cmd: int, bodies: Sequence[bytes | memoryview]) -> None:
        """Pass cells of the next hop on to the client."""
        try:
            if cmd != Cell.RELAY:
                raise RemoteProtocolError("a cell that only clients send")
            self.slot.send(cmd, relay_backward(self._backward, cmd, bodies))
            self.cells_backward += len(bodies)
        except RemoteProtocolError as error:
            self.broke(error)

    def seal(self, messages: list[bytes], tags: list[bytes]) -> bool:
        """Send messages to the client."""
        try:
            bodies = relay_send(self._backward, Cell.RELAY, messages, tags)
        except LimitExceeded as error:
            self.broke(error)
            return False
        self.cells_backward += len(bodies)
        self.slot.send(Cell.RELAY, bodies)
        return True

    def control(self, command: int, stream: int, data: bytes, more: bool, early: bool) -> None:
        """Take a message that is not a stream's: an extension, or a role's."""
        if command > Command.DROP:
            whole = self._unfinished.add(command, stream, data, more)
            if whole is not None:
                self._ask_role(command, stream, whole)
            return
        if command != Command.CONNECT or more or not early:
            raise RemoteProtocolError("a message that relays do not take")
        wanted = read_connect(data)
        if not isinstance(wanted, Extend):
            raise RemoteProtocolError("a stream without a number")
        self._extend(wanted)

    def broke(self, error: RemoteProtocolError) -> None:
        """End the circuit for what a side of it has done."""
        limit = isinstance(error, LimitExceeded) and error.limit == "CIRC_CELLS"
        self.close(Destroy.LIMIT if limit else Destroy.PROTOCOL)

    def close(self, reason: int) -> None:
        """End the circuit on both sides; each hears it from its slot.

        The client hears a reason that there is, those behind nothing: other numbers would be marks for whoever works
        with somebody at the other end.
        """
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._forward = self._backward = ENDED  # most of what a circuit takes, and its keys
        self.owner.forget(self)
        self._quiet()
        self.slot.close(_known(reason))
        if self.onward is not None:
            self.onward.close(Destroy.NONE)
        elif self._back is not None:
            self._back.give_up(Destroy.NONE)
        streams, self.streams = self.streams, None
        if streams is not None:
            streams.lost(_known(reason))
        for role in self._roles:
            role.gone(self.number)

    def go_on(self, slot: Place, handshake: bytes) -> None:
        """Tell the client that the next hop is there, then only forward; nothing of that hop may leave before."""
        self._say_now(Command.CONNECT_OK, extended(handshake))
        streams, self.streams = self.streams, None
        if self.state is State.EXTENDING and streams is not None:
            self.onward = slot
            self.state = State.FORWARDING
            slot.payer = self.link
            self._quiet()
            streams.lost(Destroy.NONE)

    @property
    def joinable(self) -> bool:
        """Say whether it ends here and has carried no data that the other end of a joined circuit would count."""
        streams = self.streams
        return self.state is State.ENDED and streams is not None and not (streams.live or streams.received)

    @property
    def across(self) -> Circuit | None:
        """Give the circuit that this one is joined to."""
        return self.onward.other if isinstance(self.onward, Across) else None

    def joined(self, other: Circuit) -> None:
        """Send what was said, then say and read nothing any more: from here on this is a hop on the way."""
        streams = self.streams
        assert streams is not None
        streams.flush()
        if self.state is State.ENDED:
            self.streams = None
            self.onward = Across(other)
            self.state = State.JOINED
            streams.lost(Destroy.NONE)

    def not_extended(self, reason: Reason) -> None:
        """Tell the client that the next hop was not to be had; this hop stays the last one."""
        if self.state is State.EXTENDING:
            self.state = State.ENDED
            self._back = self.next = None
            self._quiet()
            self._say_now(Command.DISCONNECT, disconnect(reason))

    def _say_now(self, command: int, data: bytes) -> None:
        if self.streams is not None:
            self.streams.push([message(command, 0, data)])
            self.streams.flush()

    def _asked(self, stream: Stream, target: Open) -> None:
        if self.owner.asked is None:
            stream.close(Reason.POLICY)
        else:
            self.owner.asked(self, stream, target)

    def _ask_role(self, command: int, stream: int, data: bytes) -> None:
        role = self.owner.roles.get(command)
        if role is None:
            raise RemoteProtocolError("a message that nobody here understands")
        self._roles.add(role)
        role.asked(Asked(self, stream), command, data, self.owner.means.clock())

    def _extend(self, wanted: Extend) -> None:
        if self.state is not State.ENDED or (self.streams is not None and self.streams.live):
            raise RemoteProtocolError("an extension of a circuit that is in use")
        if wanted.node == self.owner.identity or wanted.node == self.link.peer:
            raise RemoteProtocolError("an extension to a hop that the circuit has")
        self.state = State.EXTENDING
        self.next = wanted.node
        back = self._back = Back(self)
        self._timer = self.owner.means.later(2 * T_HOP_MOST, self._late)
        self.owner.reach(wanted.node, wanted.endpoints, lambda link: back.reached(link, wanted))

    def _late(self) -> None:
        self._timer = None
        if self._back is not None:
            self._back.give_up(Destroy.TIMEOUT)
        self.not_extended(Reason.TIMEOUT)

    def _quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@define(eq=False)
class Back:
    """A circuit's taker on the side of the next hop."""

    _circuit: Circuit
    _slot: Place | None = field(default=None, init=False)
    _given_up: bool = field(default=False, init=False)

    def reached(self, link: Way | Reason, wanted: Extend) -> None:
        """Begin a circuit on the link that was asked for."""
        if self._given_up:
            return
        if isinstance(link, Reason):
            self._circuit.not_extended(link)
            return
        try:
            self._slot = link.slot(self)
        except Unavailable:
            self._circuit.not_extended(Reason.LIMIT)
            return
        self._slot.create(wanted.kind, wanted.handshake)

    def give_up(self, reason: int) -> None:
        """Want no next hop any more."""
        self._given_up = True
        if self._slot is not None:
            self._slot.close(reason)

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        """Take the next hop's answer to CREATE."""
        if self._slot is None or self._given_up:
            return
        if kind != L8_NTOR or len(handshake) > DATA - 2:
            self.give_up(Destroy.PROTOCOL)
            self._circuit.not_extended(Reason.PROTOCOL)
            return
        self._circuit.go_on(self._slot, handshake)

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        """Take cells of the next hop."""
        self._circuit.back(cmd, bodies)

    def gone(self, reason: int, now: float) -> None:
        """Take the end from the next hop's side."""
        if self._given_up:
            return
        self._given_up = True
        if self._circuit.state is State.EXTENDING:
            self._circuit.not_extended(ENDS.get(_known(reason), Reason.UNREACHABLE))
        else:
            self._circuit.close(reason)

    def room(self, now: float) -> None:
        """Nothing is made here that could wait."""


@define(eq=False)
class Across:
    """What a joined circuit hands cells on to: the other one, on which they go toward its client."""

    other: Circuit

    def send(self, cmd: int, bodies: Sequence[bytes | memoryview]) -> None:
        """Pass cells over; raises `RemoteProtocolError` for those that would be a mark on the other side."""
        if cmd != Cell.RELAY:
            raise RemoteProtocolError("an extension of a circuit that is joined to another one")
        self.other.back(cmd, bodies)

    def close(self, reason: int) -> None:
        """End the other one too."""
        self.other.close(reason)


def _known(reason: int) -> Destroy:
    return Destroy(reason) if reason in Destroy._value2member_map_ else Destroy.INTERNAL
