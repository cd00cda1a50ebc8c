"""One link: HELLO, then cells of any number of circuits, both ways alike, over whatever carries bytes in order.

```
 carrier ----received(data, now)----> Link --cells, created, gone, room--> Taker of a slot
 carrier <---Wire.write once a turn-- Link <--create, created, send, close- Slot
             resume, pause, lost           --met, opened, on_create, ...--> Owner
             secured(now, ...)
```
States: securing -> hello -> met -> open -> draining -> closed.

* Whoever has a carrier makes a `Link(ground, owner, wire, dialled=...)` and calls `secured(now, ...)` when the carrier
  is up: the dialling side says HELLO now, the other one when it has been let in. Then `received(data, now)` takes bytes
  cut anywhere, `pause()` and `resume()` are the transport's producer contract, `lost(now)` its end. `wake(now)` is due
  at `deadline()`, and when the wire was told so. `told(link, why)` comes once: None when it is open, else why not.
* `slot = link.slot(taker)` makes a circuit that this side begins: `slot.create(kind, handshake)`, and the answer is
  `taker.created(kind, handshake, now)`, or `taker.gone(reason, now)`. Raises `Unavailable` where there is no room.
* A circuit that the peer begins comes as `owner.on_create(link, slot, kind, handshake, now)`. Before that returns the
  owner sets `slot.taker`, or closes the slot. `slot.created(kind, handshake)` answers, now or later; until then no cell
  reaches the taker.
* `slot.send(cmd, bodies)` is written at the end of the turn (`Turn.end`, which a carrier calls after `received`), or
  queued while `slot.full`. Who has seen `full` is told `taker.room(now)`. `slot.payer = link` names the neighbour
  whose credit (`link.weight`, 1 to 4) the cells of this slot are sent on.
* `slot.close(reason)` ends a circuit from this side, `taker.gone` from the other. `link.close(why, now)` ends all of
  them, `link.drain(now)` once the last circuit has gone.
* `link.peer` is the neighbour's node id or None, `link.named` whether this side has shown one, `link.seen` the address
  that the peer sees us at, `link.rtt` seconds of the last PING.

Two in memory, for tests: `Wire.write` of each appends to a list that somebody hands to the other's `received`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Final, Protocol

from attrs import field, frozen

from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.crypto.vouch import check
from layer8.relay.limits import (
    BAD_CELLS,
    BAD_TIME,
    CIRCS_NAMELESS,
    CIRCS_PER_LINK,
    CLOCK_APART,
    CLOSED_KEPT,
    T_LINK,
)
from layer8.relay.pulse import TOKEN, Pulse
from layer8.relay.slots import Backlog, Out, Place
from layer8.relay.turn import Taker, Turn
from layer8.relay.wire import (
    BODY,
    CELL,
    DIALLER,
    HEAD,
    VERSION,
    Address,
    Cell,
    Destroy,
    Hello,
    Notice,
    cell,
    read_handshake,
)

NUMBERS: Final = DIALLER - 1  # of circuits, for each side

_HELLO: Final = bytes((0, 0, 0, 0, Cell.HELLO))
_NOTICE: Final = bytes((0, 0, 0, 0, Cell.NOTICE))


class State(IntEnum):
    """How far a link has come."""

    SECURING = 0
    HELLO = 1
    MET = 2
    OPEN = 3
    DRAINING = 4
    CLOSED = 5


class Why(StrEnum):
    """Why a link has ended."""

    LOST = "lost"  # the carrier says so
    PROTOCOL = "protocol"
    INSECURE = "insecure"  # the carrier could not be secured, or the peer had to show an identity and did not
    VERSION = "version"
    NETWORK = "network"
    IDENTITY = "identity"  # somebody else than was wanted
    TIMEOUT = "timeout"  # not open after T_LINK
    DEAD = "dead"  # nothing heard for PING_DEAD
    SLOW = "slow"  # it asks and does not read the answers
    IN_USE = "in use"  # another link of the same identity is alive
    REPLACED = "replaced"  # by a newer link of the same identity
    LIMIT = "limit"
    ASKED = "asked"
    DOWN = "going down"


_REASONS: Final = {
    Why.PROTOCOL: Destroy.PROTOCOL,
    Why.VERSION: Destroy.PROTOCOL,
    Why.NETWORK: Destroy.PROTOCOL,
    Why.IDENTITY: Destroy.WRONG_IDENTITY,
    Why.TIMEOUT: Destroy.TIMEOUT,
    Why.LIMIT: Destroy.LIMIT,
    Why.DOWN: Destroy.GOING_DOWN,
}


def destroy_reason(why: Why) -> Destroy:
    """Give the reason that circuits on a link are told when it ends, or could not be opened."""
    return _REASONS.get(why, Destroy.LINK_LOST)


class Wire(Protocol):
    """What carries a link's bytes."""

    def write(self, data: bytes) -> None:
        """Send; may call `Link.pause` at once."""

    def hold(self, held: bool) -> None:
        """Stop reading, or go on; what comes all the same is kept."""

    def due(self, at: float | None) -> None:
        """Call `Link.wake` at this second and not later, if there is one."""

    def hang_up(self, abort: bool) -> None:
        """End the connection after what was written, or at once; `Link.lost` may follow."""


class Owner(Protocol):
    """Who has put a link on its carrier."""

    def met(self, link: Link, now: float) -> None:
        """Decide on a peer whose HELLO is good: `link.admit(now)` or `link.close(why, now)`, now or soon."""

    def opened(self, link: Link, now: float) -> None:
        """Use the link."""

    def on_create(self, link: Link, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        """Take a circuit that the peer begins: set `slot.taker`, or close the slot."""

    def noticed(self, link: Link, notice: int, now: float) -> None:
        """Hear what the peer says of the link (`Notice`)."""

    def closed(self, link: Link, why: Why, now: float) -> None:
        """Forget the link; its circuits have been told. Comes once, for links that were never open too."""


@frozen(eq=False)
class Ground:
    """What all links of a node share: its network, and where time and randomness come from."""

    network: bytes  # first 8 bytes of the SHA-256 of the network's name
    turn: Turn
    seconds: Callable[[], float]  # monotonic
    wall: Callable[[], float]  # since 1970
    random: Callable[[int], bytes]
    pad: Callable[[], float]  # one draw of seconds for padding, PAD_LEAST to PAD_MOST
    backlog: Backlog = field(factory=Backlog)
    descriptor: Callable[[], bytes] = bytes  # our own, for HELLO; empty where this node does not relay


class Link:
    """See the module. `wanted` is the only identity that a dialling side takes; `address` is where the peer is."""

    def __init__(
        self,
        ground: Ground,
        owner: Owner,
        wire: Wire,
        *,
        dialled: bool,
        wanted: bytes | None = None,
        address: Address | None = None,
        told: Callable[[Link, Why | None], None] | None = None,
    ) -> None:
        """Begin to wait for `secured`, T_LINK at most until it is open."""
        now = ground.seconds()
        self._ground = ground
        self._owner = owner
        self._wire = wire
        self._told = told
        self._wanted = wanted
        self._binding = b""
        self._proof = (b"", b"")
        self._rest = b""
        self._deaf = self._clock_apart = False
        self._until = now + T_LINK
        self._slots: dict[int, Place] = {}
        self._ready: dict[bytes, Place] = {}  # by the head of their cells
        self._out = Out(wire.write, ground.turn, ground.backlog, ground.seconds, self._slots, self._overrun)
        self._next = int.from_bytes(ground.random(4), "big") % NUMBERS
        self._closed: set[int] = set()
        self._closed_before: set[int] = set()
        self._bad = 0
        self._bad_since = self._turned = now
        self._pulse = Pulse(ground, self._out, now)
        self.address = address or Address("")
        self.cells_in = self.cells_out = 0  # of circuits
        self.descriptor = b""  # as the peer has sent it
        self.dialled = dialled
        self.named = False
        self.opened_at = now
        self.peer: bytes | None = None
        self.seen = Address("")
        self.state = State.SECURING
        self.was_open = False
        self.weight = 1.0

    # What carriers call.

    def secured(
        self,
        now: float,
        *,
        peer: bytes | None,
        binding: bytes = b"",
        named: bool,
        proof: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        """Begin: the carrier is up and has certified `peer`, or leaves that to HELLO, with the peer's `binding`.

        `named` says whether this side has shown who it is, there or in HELLO by `proof`, its identity and signature.
        """
        if self.state is not State.SECURING:
            return
        self.state = State.HELLO
        self.peer = peer
        self.named = named
        self._binding = binding
        self._proof = proof
        if peer is not None and self._wanted not in (None, peer):
            self.close(Why.IDENTITY, now)
        elif self.dialled:
            if peer is None and not binding:
                self.close(Why.INSECURE, now)
            else:
                self._say_hello()

    def received(self, data: bytes, now: float) -> None:
        """Take bytes, cut anywhere."""
        if self.ended:
            return  # the peer still talks while our last words leave
        self._pulse.heard = now
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self.state < State.OPEN:
            if self.state is State.HELLO and not self._deaf:
                data = self._greet(data, now)
            elif self._deaf or self.state is State.SECURING:
                return
        if self.state < State.OPEN:
            self._rest = data
            return
        self._out.age(now)
        whole = len(data) // CELL * CELL
        if whole < len(data):
            self._rest = data[whole:]
            data = data[:whole]
        self._cells(data, now)

    def pause(self) -> None:
        """Write no more for now: the carrier has LINK_HIGH bytes."""
        self._out.stop()

    def resume(self) -> None:
        """Write again."""
        self._out.go_on()

    def lost(self, now: float) -> None:
        """Take the carrier's end."""
        self._end(Why.LOST, now)

    def wake(self, now: float) -> None:
        """Do what is due; early calls do nothing."""
        if self.ended:
            return
        if self.state >= State.OPEN:
            self._tend(now)
        elif now >= self._until:
            self.close(Why.TIMEOUT, now, abort=True)
        self._wire.due(self.deadline())

    def deadline(self) -> float | None:
        """Give the second at which `wake` is due."""
        if self.state is State.CLOSED:
            return None
        if self.state < State.OPEN:
            return self._until
        return self._pulse.deadline()

    # What owners call.

    def admit(self, now: float) -> None:
        """Let the peer in that was met."""
        if self.state is not State.MET:
            return
        self.state = State.OPEN
        self.was_open = True
        if not self.dialled:
            self._say_hello()
        if self._clock_apart:
            self.notice(Notice.CLOCK)
        self.opened_at = self._turned = now
        self._pulse.begin(now)
        self._wire.hold(False)
        self._wire.due(self.deadline())
        self._owner.opened(self, now)
        self._tell(None)
        rest, self._rest = self._rest, b""
        if rest and self.state >= State.OPEN:
            self.received(rest, now)

    def slot(self, taker: Taker) -> Place:
        """Make a place for a circuit that this side begins; raises `Unavailable`."""
        if self.state is not State.OPEN:
            raise Unavailable("the link takes no new circuits")
        if len(self._slots) >= self._most:
            raise Unavailable("the link has as many circuits as it may")
        side = DIALLER if self.dialled else 0
        while True:
            self._next = self._next % NUMBERS + 1
            circ = self._next | side
            if circ not in self._slots and circ not in self._closed and circ not in self._closed_before:
                break
        place = self._slots[circ] = Place(self, self._out, circ, taker, ours=True)
        return place

    def notice(self, kind: Notice) -> None:
        """Tell the peer something about the link."""
        self._out.say(cell(0, Cell.NOTICE, bytes((kind,))))

    def probe(self, now: float, done: Callable[[bool, float], None]) -> None:
        """Ask whether the peer is still there; `done(alive, now)` comes within PROBE_TIME."""
        self._pulse.probe(now, done)
        self._wire.due(self.deadline())

    def drain(self, now: float) -> None:
        """Take no new circuits, and close when the last one has ended."""
        if self.state is State.OPEN:
            self.state = State.DRAINING
            self._drained(now)
        elif self.state < State.OPEN:
            self.close(Why.DOWN, now)

    def close(self, why: Why, now: float, *, abort: bool = False) -> None:
        """End the link with all its circuits; what was said before still leaves, unless `abort`."""
        if self.state is State.CLOSED:
            return
        if not abort:
            self._out.flush()
        self._end(why, now)
        self._wire.hang_up(abort)

    @property
    def ended(self) -> bool:
        """Whether the link is closed."""
        return self.state is State.CLOSED

    @property
    def rtt(self) -> float:
        """Seconds that the last PING took."""
        return self._pulse.rtt

    @property
    def circuits(self) -> int:
        """How many circuits the link carries."""
        return len(self._slots)

    @property
    def queued(self) -> int:
        """How many cells wait in its queues."""
        return sum(place.queued for place in self._slots.values())

    # What slots call.

    def begin(self, place: Place) -> None:
        """Let cells pass: the circuit is made."""
        place.waits = False
        for head in place.heads:
            self._ready[head] = place

    def forget(self, place: Place) -> None:
        """Give a number back; cells for it may still be on their way, and are no offence."""
        if self._slots.get(place.circ) is place:
            del self._slots[place.circ]
            for head in place.heads:
                self._ready.pop(head, None)
            if place.begun and len(self._closed) < CLOSED_KEPT:
                self._closed.add(place.circ)
        place.ended()
        if self.state is State.DRAINING:
            self._drained(self._ground.seconds())

    # The inside.

    @property
    def _most(self) -> int:
        nameless = self.peer is None or not self.named
        return CIRCS_NAMELESS if nameless else CIRCS_PER_LINK

    def _tend(self, now: float) -> None:
        self._out.age(now)
        if not self._pulse.tend(now):
            self.close(Why.DEAD, now, abort=True)
            return
        if now - self._turned >= BAD_TIME:
            self._turned = now
            self._closed_before, self._closed = self._closed, set()

    def _drained(self, now: float) -> None:
        if not self._slots:
            self.close(Why.DOWN, now)

    def _overrun(self) -> None:
        self.close(Why.SLOW, self._ground.seconds(), abort=True)

    def _say_hello(self) -> None:
        our = self._ground
        hello = Hello((VERSION,), CELL, our.network, 0, int(our.wall()), self.address, *self._proof, our.descriptor())
        self._out.say(cell(0, Cell.HELLO, hello.encode()))

    def _greet(self, data: bytes, now: float) -> bytes:
        """Read HELLO, the first cell; give what follows it."""
        head = data[:HEAD]
        notice = self.dialled and _NOTICE.startswith(head)
        if not (_HELLO.startswith(head) or notice):
            self._refuse(Why.PROTOCOL, now)
            return b""
        if len(data) < CELL:
            return data
        if head == _NOTICE:
            self.close(Why.IN_USE if data[HEAD] == Notice.IN_USE else Why.PROTOCOL, now)
            return b""
        try:
            why = self._judge(Hello.read(data[HEAD:CELL]))
        except RemoteProtocolError:
            why = Why.PROTOCOL
        if why is not None:
            self._refuse(why, now)
            return b""
        self.state = State.MET
        self._rest = data[CELL:]
        self._wire.hold(True)
        self._owner.met(self, now)
        rest, self._rest = self._rest, b""
        return rest

    def _judge(self, hello: Hello) -> Why | None:
        """Say what is wrong with a HELLO, or take over what it says; may raise `RemoteProtocolError`."""
        if VERSION not in hello.versions or hello.cell_len != CELL:
            return Why.VERSION
        if hello.network != self._ground.network:
            return Why.NETWORK
        if hello.identity:
            if self.peer is None:
                check(hello.identity, hello.signature, self._binding)
                self.peer = hello.identity
            elif hello.identity != self.peer:
                raise RemoteProtocolError("an identity that the carrier has not certified")
        if self.dialled:
            if self.peer is None:
                return Why.INSECURE
            if self._wanted not in (None, self.peer):
                return Why.IDENTITY
        self.seen = hello.seen
        self.descriptor = hello.descriptor
        self._clock_apart = abs(hello.time - self._ground.wall()) > CLOCK_APART
        return None

    def _refuse(self, why: Why, now: float) -> None:
        """End what did not begin well: a dialling side knows at once, another peer hears nothing until T_LINK."""
        if self.dialled or why is not Why.PROTOCOL:
            self.close(why, now)
        else:
            self._deaf = True
            self._wire.hold(True)

    def _cells(self, data: bytes, now: float) -> None:
        """Hand out whole cells, neighbouring ones of one circuit and command in one run."""
        view = memoryview(data)
        find = self._ready.get
        at, end = 0, len(data)
        head = data[:HEAD]
        while at < end:
            following = at + CELL
            ahead = data[following : following + HEAD]
            place = find(head)
            if place is None:
                self._control(int.from_bytes(head[:4], "big"), head[4], data[at + HEAD : following], now)
                if self.ended:
                    return
            elif ahead != head:
                self.cells_in += 1
                place.taker.cells(head[4], (view[at + HEAD : following],), now)  # type: ignore[union-attr]
            else:
                while ahead == head:
                    following += CELL
                    ahead = data[following : following + HEAD]
                bodies = [view[begin : begin + BODY] for begin in range(at + HEAD, following, CELL)]
                self.cells_in += len(bodies)
                place.taker.cells(head[4], bodies, now)  # type: ignore[union-attr]
            at, head = following, ahead

    def _control(self, circ: int, cmd: int, body: bytes, now: float) -> None:
        """Take a cell that is seldom."""
        match cmd:
            case Cell.RELAY | Cell.EARLY:
                self._stray(circ, now)
            case Cell.CREATE:
                self._create(circ, body, now)
            case Cell.CREATED:
                self._created(circ, body, now)
            case Cell.DESTROY:
                slot = self._slots.get(circ)
                if slot is None:
                    self._stray(circ, now)
                    return
                self.forget(slot)
                if slot.taker is not None:
                    slot.taker.gone(body[0], now)
            case Cell.PAD if circ == 0:
                pass
            case Cell.PING if circ == 0:
                answer = body[:TOKEN] + int(self._ground.wall()).to_bytes(8, "big")
                self._out.say(cell(0, Cell.PONG, answer))
            case Cell.PONG if circ == 0:
                if not self._pulse.pong(body[:TOKEN], now):
                    self._offence(now)
            case Cell.NOTICE if circ == 0:
                self._offence(now)  # a few are good, as many as there are bad cells are none
                if not self.ended and body[0] in Notice._value2member_map_:
                    self._owner.noticed(self, body[0], now)
            case _:
                self._offence(now)

    def _create(self, circ: int, body: bytes, now: float) -> None:
        theirs = 0 if self.dialled else DIALLER
        if circ & DIALLER != theirs or not circ & NUMBERS or circ in self._slots:
            self._offence(now)
            return
        refusal = None
        try:
            kind, handshake = read_handshake(body)
        except RemoteProtocolError:
            refusal = Destroy.PROTOCOL
        if self.state is State.DRAINING:
            refusal = Destroy.GOING_DOWN
        elif len(self._slots) >= self._most:
            refusal = Destroy.LIMIT
        if refusal is not None:
            self._out.say(cell(circ, Cell.DESTROY, bytes((refusal,))))
            return
        place = self._slots[circ] = Place(self, self._out, circ, None, ours=False)
        self._owner.on_create(self, place, kind, handshake, now)

    def _created(self, circ: int, body: bytes, now: float) -> None:
        slot = self._slots.get(circ)
        if slot is None:
            self._stray(circ, now)
        elif not (slot.ours and slot.begun and slot.waits) or slot.taker is None:
            self._offence(now)
        else:
            try:
                kind, handshake = read_handshake(body)
            except RemoteProtocolError:
                slot.close(Destroy.PROTOCOL)
                slot.taker.gone(Destroy.PROTOCOL, now)
                return
            self.begin(slot)
            slot.taker.created(kind, handshake, now)

    def _stray(self, circ: int, now: float) -> None:
        """Take cells for no circuit: those that crossed our DESTROY are no offence, nor may be after too many."""
        if max(len(self._closed), len(self._closed_before)) >= CLOSED_KEPT:
            return
        if circ not in self._closed and circ not in self._closed_before:
            self._offence(now)

    def _offence(self, now: float) -> None:
        """Ignore a cell that should not be; BAD_CELLS within BAD_TIME end the link."""
        if now - self._bad_since >= BAD_TIME:
            self._bad, self._bad_since = 0, now
        self._bad += 1
        if self._bad > BAD_CELLS:
            self.close(Why.PROTOCOL, now, abort=True)

    def _end(self, why: Why, now: float) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._out.end()
        places = list(self._slots.values())
        self._slots.clear()
        self._ready.clear()
        reason = destroy_reason(why)
        for place in places:
            place.ended()
        for place in places:
            if place.taker is not None:
                place.taker.gone(reason, now)
        self._pulse.end(now)
        self._owner.closed(self, why, now)
        self._tell(why)

    def _tell(self, why: Why | None) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(self, why)
