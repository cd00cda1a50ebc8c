"""A circuit at its client: built hop by hop, then it carries streams and questions.

::

    circuit = Origin(means, worker, network, told)
    circuit.begin(link, Hop(identity, onion_key))          CREATE; told.built(circuit)
    circuit.extend(Hop(identity, onion_key, endpoints))    EARLY; told.built, or told.failed and it ends where it did
    circuit.open(Open(Proto.TCP, "example.org", 80), sink) -> Stream
    circuit.ask(command, data, answers, timeout, done)     a question to whatever role the last hop has

 building(k) -> open -> dirty -> closed
                 '-- meet, host: joined to somebody's circuit at its last hop --'

After a join the last hop passes cells on as all others do, and the two clients share one more layer, in which the one
that hosts takes a relay's part: it reads what the other one opens. Both still count, end and close as before.

A dirty circuit takes no new stream and closes with its last one. Nothing is said on a circuit while it is extended: a
cell that the old last hop does not read would be a stranger to the new one. There is no object of a hop: a circuit has
one list of onion layers for each direction.

A cell that is not recognised ends the circuit at once. The guard hears DESTROY 0 for this and for every other reason:
what goes wrong between the client and a later hop is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from enum import Enum
from typing import Final, Protocol

from attrs import define, field, frozen

from layer8.core.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from layer8.crypto.ntor import Begun, Keys, Terms, client_begin, client_finish
from layer8.crypto.onion import (
    RATCHET,
    Layer,
    client_away,
    client_backward,
    client_forward,
    client_home,
    layer,
    relay_receive,
    relay_send,
)
from layer8.relay.limits import CIRC_WINDOW, EARLY_CELLS, MAX_HOPS, T_HOP_MOST
from layer8.relay.stream import ENDS, Cancels, Means, Stream, Streams, Worker
from layer8.relay.turn import Nothing, Sink, Slot, Taker
from layer8.relay.wire import (
    DATA,
    ENDPOINTS,
    L8_NTOR,
    VERSION,
    Cell,
    Command,
    Destroy,
    Extend,
    Open,
    Proto,
    Reason,
    Reassembly,
    fragments,
    message,
    read_disconnect,
    read_extended,
)

NOWHERE: Final = Open(Proto.TCP, "", 9)  # what every last hop refuses itself
OFFER: Final = Terms(CIRC_WINDOW, RATCHET, (VERSION,), 0)
"""What both ends of a circuit say in their handshake: there is one set of terms so far."""


@frozen
class Hop:
    """A relay to build through; the endpoints are for the hop before it, and none are needed of the first one."""

    identity: bytes
    onion_key: bytes
    endpoints: tuple[str, ...] = ()


class Way(Protocol):
    """A link to the first hop."""

    def slot(self, taker: Taker) -> Slot:
        """Make a place for a circuit; raises `Unavailable`."""


class Told(Protocol):
    """Who has asked for the circuit."""

    def built(self, circuit: Origin) -> None:
        """Hear that one more hop stands."""

    def failed(self, circuit: Origin, reason: Reason) -> None:
        """Hear that the next hop was not to be had; the circuit ends where it ended before, and can try another."""

    def closed(self, circuit: Origin, reason: Destroy) -> None:
        """Hear of the end; once, whoever has ended it."""


class State(Enum):
    """How far a circuit is."""

    BUILDING = "building"
    OPEN = "open"
    DIRTY = "dirty"
    CLOSED = "closed"


Answer = Callable[[tuple[int, bytes] | Reason], None]


@define(eq=False)
class Ask:
    """A question that waits for its answer."""

    answers: Container[int]
    done: Answer
    timer: Cancels


@define(eq=False)
class Origin:
    """One circuit of ours; `hop_time` are the seconds that each hop may take."""

    _means: Means
    _worker: Worker
    _network: bytes  # its 8 bytes
    _told: Told
    hop_time: float = T_HOP_MOST
    hops: list[Hop] = field(factory=list, init=False)
    times: list[float] = field(factory=list, init=False)  # seconds that each hop took
    binding: bytes = field(default=b"", init=False, repr=False)  # with the last hop
    state: State = field(default=State.BUILDING, init=False)
    since: float = field(init=False)
    streams: Streams = field(init=False)
    sent: int = field(default=0, init=False)  # cells that left
    came: int = field(default=0, init=False)  # cells that the last hop has sent
    before: int = field(default=0, init=False)  # data cells that had left when the last of them came
    _slot: Slot | None = field(default=None, init=False)
    _forward: list[Layer] = field(factory=list, init=False)
    _backward: list[Layer] = field(factory=list, init=False)
    _early: int = field(default=0, init=False)
    _next: Hop | None = field(default=None, init=False)
    _begun: Begun | None = field(default=None, init=False)
    _asked_at: float = field(default=0.0, init=False)
    _timer: Cancels | None = field(default=None, init=False)
    _unfinished: Reassembly = field(factory=Reassembly, init=False)
    _asks: dict[int, Ask] = field(factory=dict, init=False)
    heard: dict[int, Callable[[bytes], None]] = field(factory=dict, init=False)  # takes messages unasked, by command
    at_end: Callable[[Destroy], None] | None = field(default=None, init=False)  # called once, after `told`
    joined: bool = field(default=False, init=False)
    _host: tuple[Layer, Layer] | None = field(default=None, init=False, repr=False)  # what we read, what we send

    def __attrs_post_init__(self) -> None:
        """Begin with no hop."""
        self.since = self._means.clock()
        self.streams = Streams(self, self._means)
        self.streams.drained = self._drained

    @property
    def slot(self) -> Slot:
        """Give the place on the link to the first hop; raises `LocalProtocolError` before there is one."""
        if self._slot is None:
            raise LocalProtocolError("this circuit has no link yet")
        return self._slot

    @property
    def used(self) -> int:
        """Count the cells of the busier direction, of which onion layers allow CIRC_CELLS."""
        return max((one.cells for one in (*self._forward[:1], *self._backward[:1])), default=0)

    @property
    def takes(self) -> bool:
        """Say whether it takes new streams."""
        return self.state is State.OPEN

    def begin(self, link: Way, hop: Hop) -> None:
        """Build the first hop over `link`; raises `Unavailable` if that takes no more circuits."""
        if self._slot is not None or self.state is State.CLOSED:
            raise LocalProtocolError("a circuit has one first hop")
        self._slot = link.slot(self)
        self._ask_hop(hop)

    def extend(self, hop: Hop) -> None:
        """Build one more hop; raises `LocalProtocolError` if it is building, in use, or as long as may be."""
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"a circuit that is {self.state.value} is not extended")
        if self._busy:
            raise LocalProtocolError("a circuit that is in use is not extended")
        if len(self.hops) >= MAX_HOPS or self._early >= EARLY_CELLS:
            raise LocalProtocolError("a circuit has at most eight hops, and as many tries")
        if not hop.endpoints:
            raise LocalProtocolError("a hop behind the first needs endpoints")
        self.state = State.BUILDING
        self._ask_hop(hop)

    def meet(self, keys: Keys) -> None:
        """Share one more layer with whoever hosts behind the last hop; raises `LocalProtocolError` if it is in use."""
        self._join()
        self._forward.append(layer(keys.forward))
        self._backward.append(layer(keys.backward))

    def host(self, keys: Keys, asked: Callable[[Stream, Open], None]) -> None:
        """Take a relay's part in one more layer, for streams that the other client opens; may raise as `meet` does."""
        self._join()
        self._host = layer(keys.forward), layer(keys.backward)
        self.streams.asked = asked

    def open(self, target: Open, sink: Sink) -> Stream:
        """Open a stream at the last hop; raises `LocalProtocolError` if the circuit takes none."""
        self._ready()
        return self.streams.open(target, sink)

    def ask(self, command: int, data: bytes, answers: Container[int], timeout: float, done: Answer) -> Ask:
        """Send a message of a role; `done` takes the first answer whose command is in `answers`, or why none came."""
        self._ready()
        number = self.streams.number()
        ask = Ask(answers, done, self._means.later(timeout, lambda: self._answered(number, Reason.TIMEOUT)))
        self._asks[number] = ask
        self.streams.push(fragments(command, number, data))
        return ask

    def tell(self, command: int, data: bytes) -> None:
        """Send a message of a role that has no answer."""
        self._ready()
        self.streams.push(fragments(command, 0, data))

    def add(self, command: int, data: bytes) -> None:
        """Send a message of a role also where nothing new is taken; on a circuit that is gone nobody hears it."""
        if self.state in (State.OPEN, State.DIRTY):
            self.streams.push(fragments(command, 0, data))

    def drop(self, count: int = 1) -> None:
        """Send cells to the last hop that say nothing."""
        self._ready()
        self.streams.push([message(Command.DROP, 0)] * count)

    def probe(self) -> None:
        """Ask whether the circuit still stands: what the last hop refuses, it has answered."""
        self.open(NOWHERE, Nothing())

    def pad(self, cells: int) -> None:
        """Make this circuit's set-up look like every other one: say nothing until `cells` cells have left in all."""
        self.streams.flush()
        if self.sent < cells:
            self.drop(cells - self.sent)

    def retire(self) -> None:
        """Take no new stream, and close with the last one."""
        if self.state is State.BUILDING:
            self.close(Destroy.NONE)
        elif self.state is State.OPEN:
            self.state = State.DIRTY
            self._drained()

    def close(self, reason: Destroy = Destroy.ASKED) -> None:
        """End the circuit and its streams, after what was said."""
        if self.state in (State.OPEN, State.DIRTY):
            self.streams.flush()
        self._end(reason)

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        """Take the first hop's answer."""
        if kind == L8_NTOR and self._begun is not None and not self.hops:
            self._finish(handshake)
        else:
            self._end(Destroy.PROTOCOL)

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        """Take cells of the last hop."""
        if self.state is State.CLOSED:
            return
        tags: list[bytes] = []
        try:
            if cmd != Cell.RELAY or not self.hops:
                raise RemoteProtocolError("cells that cannot be")
            if self._host is None:
                messages = client_backward(self._backward, cmd, bodies, tags)
            else:
                messages = relay_receive(self._host[0], cmd, client_home(self._backward, cmd, bodies), tags)
            self.before = self.streams.sent
            self.streams.took(messages, tags)
            self.came += len(bodies)
            if self.state is State.BUILDING and self.streams.received:
                raise RemoteProtocolError("data that would count for the next hop")
        except RemoteProtocolError:
            self._end(Destroy.PROTOCOL)

    def gone(self, reason: int, now: float) -> None:
        """Take the circuit's end: a hop has ended it, or its link is lost."""
        self._end(Destroy(reason) if reason in Destroy._value2member_map_ else Destroy.INTERNAL)

    def room(self, now: float) -> None:
        """Go on: the link takes cells again."""
        self.streams.room()

    def seal(self, messages: list[bytes], tags: list[bytes]) -> bool:
        """Send messages to the last hop."""
        try:
            if self._host is None:
                bodies = client_forward(self._forward, Cell.RELAY, messages, tags)
            else:
                bodies = client_away(self._forward, Cell.RELAY, relay_send(self._host[1], Cell.RELAY, messages, tags))
        except LimitExceeded:
            self._end(Destroy.LIMIT)
            return False
        self.sent += len(bodies)
        self.slot.send(Cell.RELAY, bodies)
        return True

    def control(self, command: int, stream: int, data: bytes, more: bool, early: bool) -> None:
        """Take what is no stream's: answers to questions and to extensions."""
        if command > Command.DROP:
            whole = self._unfinished.add(command, stream, data, more)
            if whole is not None:
                self._role_said(command, stream, whole)
        elif self._begun is None or more:
            raise RemoteProtocolError("an answer that nobody has asked for")
        elif command == Command.CONNECT_OK:
            self._finish(read_extended(data))
        elif command == Command.DISCONNECT:
            self._fail(read_disconnect(data)[0])
        else:
            raise RemoteProtocolError("a message that is not for clients")

    @property
    def _busy(self) -> bool:
        """Say whether anything is or was said on it that another last hop would count, or know nothing of."""
        streams = self.streams
        return bool(self.joined or streams.live or streams.sent or streams.received or self._asks)

    def _join(self) -> None:
        if self.state is not State.OPEN or self._busy:
            raise LocalProtocolError("only a circuit that stands and is not in use is joined to another one")
        self.streams.flush()
        self.joined = True
        self.heard.clear()

    def _ready(self) -> None:
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"a circuit that is {self.state.value} takes nothing new")

    def _ask_hop(self, hop: Hop) -> None:
        self._next = hop
        self._asked_at = self._means.clock()
        self._timer = self._means.later(self.hop_time, self._late)
        self._worker(lambda: client_begin(hop.identity, hop.onion_key, self._network, OFFER.to_bytes()), self._began)

    def _began(self, result: tuple[Begun, bytes] | Exception) -> None:
        hop = self._next
        if self.state is State.CLOSED or hop is None:
            return
        if isinstance(result, Exception):
            self._fail(Reason.PROTOCOL)
            self._reraise(result)
            return
        self._begun, handshake = result
        if not self.hops:
            self.slot.create(L8_NTOR, handshake)
            return
        ends = hop.endpoints[:ENDPOINTS]
        while len(data := Extend(hop.identity, ends, L8_NTOR, handshake).encode()) > DATA:
            ends = ends[:-1]
        self.streams.flush()
        bodies = client_forward(self._forward, Cell.EARLY, [message(Command.CONNECT, 0, data)])
        self._early += 1
        self.sent += 1
        self.slot.send(Cell.EARLY, bodies)

    def _finish(self, reply: bytes) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            self._worker(lambda: client_finish(begun, reply), self._finished)

    def _finished(self, result: Keys | Exception) -> None:
        if self.state is State.CLOSED or self._next is None:
            return
        if isinstance(result, Exception):
            self._end(Destroy.PROTOCOL)
            self._reraise(result)
            return
        try:
            agreed = Terms.from_bytes(result.sm)
        except RemoteProtocolError:
            agreed = None
        if agreed != OFFER:
            self._end(Destroy.PROTOCOL)
            return
        self._forward.append(layer(result.forward))
        self._backward.append(layer(result.backward))
        self.binding = result.binding
        self.hops.append(self._next)
        self.times.append(self._means.clock() - self._asked_at)
        self._settle()
        self._told.built(self)

    def _fail(self, reason: Reason) -> None:
        if not self.hops:
            self._end(Destroy.PROTOCOL)
            return
        self._settle()
        self._told.failed(self, reason)

    def _settle(self) -> None:
        """Be open, with the hops that there are."""
        self.state = State.OPEN
        self._next = self._begun = None
        self._quiet()

    def _quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._end(Destroy.TIMEOUT)

    def _reraise(self, error: Exception) -> None:
        """Let bugs be seen; what a peer has done is none."""
        if not isinstance(error, RemoteProtocolError):
            raise error

    def _role_said(self, command: int, stream: int, data: bytes) -> None:
        ask = self._asks.get(stream)
        unasked = self.heard.get(command)
        if ask is not None and command in ask.answers:
            self._answered(stream, (command, data))
        elif unasked is not None:
            unasked(data)
        elif ask is not None or not self.streams.lately(stream):
            raise RemoteProtocolError("an answer that nobody has asked for")

    def _answered(self, stream: int, answer: tuple[int, bytes] | Reason) -> None:
        ask = self._asks.pop(stream)
        if answer is not Reason.TIMEOUT:
            ask.timer.cancel()
        self.streams.forget(stream)
        ask.done(answer)
        self._drained()

    def _drained(self) -> None:
        if self.state is State.DIRTY and not self.streams.live and not self._asks:
            self.close(Destroy.NONE)

    def _end(self, reason: Destroy) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._next = self._begun = None
        self._quiet()
        if self._slot is not None:
            self._slot.close(Destroy.NONE)
        asks, self._asks = self._asks, {}
        self.streams.lost(reason)
        for ask in asks.values():
            ask.timer.cancel()
            ask.done(ENDS.get(reason, Reason.RESET))
        self._forward, self._backward, self._host = [], [], None
        self._told.closed(self, reason)
        at_end, self.at_end = self.at_end, None
        self.heard.clear()
        if at_end is not None:
            at_end(reason)
