r"""Circuits' places on a link and what the link has to say, in one order: least recent volume first.

```
Slot.send --> gathered ------------------------- flush --> write(bytes), once a turn
        \-- full? --> the slot's queue --------- flush, resume: QUANTUM cells of the slot with the least volume, again
```
A queue is used only while the carrier takes no more, or after LINK_HIGH bytes of one turn. Volume is in cells, halves
in EWMA_HALF seconds, and is divided by the credit weight of the link that the slot's cells come from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from layer8.core.errors import LocalProtocolError
from layer8.relay.limits import CIRC_QUEUE, CONTROL_MOST, EWMA_HALF, LINK_HIGH, PROCESS_QUEUE, QUANTUM
from layer8.relay.turn import Taker, Turn
from layer8.relay.wire import BODY, CELL, Cell, Destroy, cell, handshake_body

if TYPE_CHECKING:
    from layer8.relay.link import Link

_SCALE_MOST: Final = 2.0**20  # then all volumes are divided: floats keep their digits
_SCALE_STEP: Final = 0.5  # seconds between two looks at the clock for it
_ZERO: Final = bytes(BODY)
_VOLUME = attrgetter("volume")
_QUEUED = attrgetter("queued")


class Backlog:
    """The cells that wait in all queues of a process, PROCESS_QUEUE at most; the fullest circuit dies for more."""

    __slots__ = ("cells", "waiting")

    def __init__(self) -> None:
        """Start with nothing."""
        self.cells = 0
        self.waiting: set[Place] = set()

    def add(self, place: Place, cells: int) -> None:
        """Count what has come to wait."""
        self.cells += cells
        self.waiting.add(place)
        if place.queued > CIRC_QUEUE:
            place.overflow()
        while self.cells > PROCESS_QUEUE and self.waiting:
            max(self.waiting, key=_QUEUED).overflow()

    def take(self, place: Place, cells: int) -> None:
        """Count what waits no more."""
        self.cells -= cells
        if not place.queued:
            self.waiting.discard(place)


class Place:
    """A circuit's place on a link: `layer8.relay.turn.Slot`.

    `begun` says whether the peer knows the number; `waits` whether CREATED is still to come, from whichever side.
    `payer` is the link that the cells come from, whose credit they are sent on: its own one until somebody says so.
    """

    __slots__ = (
        "_out",
        "begun",
        "circ",
        "heads",
        "link",
        "open",
        "ours",
        "payer",
        "queue",
        "queued",
        "taker",
        "volume",
        "waits",
    )

    def __init__(self, link: Link, out: Out, circ: int, taker: Taker | None, *, ours: bool) -> None:
        """Take the number `circ`; `ours` if this side has made it."""
        number = circ.to_bytes(4, "big")
        self.heads = tuple(number + bytes((cmd,)) for cmd in (Cell.RELAY, Cell.EARLY))
        self._out = out
        self.link = link
        self.circ = circ
        self.taker = taker
        self.ours = ours
        self.open = True
        self.begun = not ours
        self.waits = True
        self.payer = link
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.volume = 0.0

    @property
    def full(self) -> bool:
        """Whether the link takes no more; who has seen that it does not is told `room` later."""
        full = self._out.full
        if full:
            self._out.held.add(self)
        return full

    def create(self, kind: int, handshake: bytes) -> None:
        """Send CREATE; the answer comes as `Taker.created`. For a slot that this side has made, once."""
        if not self.ours or self.begun:
            raise LocalProtocolError("CREATE on a circuit that is there already")
        if self.open:
            self.begun = True
            self._out.say(cell(self.circ, Cell.CREATE, handshake_body(kind, handshake)))

    def created(self, kind: int, handshake: bytes) -> None:
        """Send CREATED; for a slot that the peer has made, once."""
        if self.ours or (self.open and not self.waits):
            raise LocalProtocolError("CREATED on a circuit that is not to be answered")
        if self.taker is None:
            raise LocalProtocolError("CREATED on a circuit whose cells nobody takes")
        if self.open:
            self.link.begin(self)
            self._out.say(cell(self.circ, Cell.CREATED, handshake_body(kind, handshake)))

    def send(self, cmd: int, bodies: Sequence[bytes | memoryview]) -> None:
        """Send RELAY or EARLY cells, or queue them; on a closed slot nothing happens."""
        if not self.open:
            return
        head = self.heads[cmd - 4]
        cells = len(bodies)
        text = head + bodies[0] if cells == 1 else head.join((b"", *bodies))
        if len(text) != cells * CELL:
            text = b"".join(part for body in bodies for part in (head, body, _ZERO[len(body) :]))
        out = self._out
        if out.full:
            self.queue.append(text)
            waited, self.queued = self.queued, self.queued + cells
            if not waited:
                out.wait(self)
            out.backlog.add(self, cells)
            return
        self.volume += cells * out.scale / self.payer.weight
        self.link.cells_out += cells
        out.gathered.append(text)
        out.size += len(text)
        if out.size >= LINK_HIGH:
            out.full = True
        if not out.noted:
            out.note()

    def close(self, reason: int) -> None:
        """Send DESTROY unless the circuit has ended already, and give the number back."""
        if not self.open:
            return
        self.link.forget(self)
        if self.begun:
            self._out.say(cell(self.circ, Cell.DESTROY, bytes((reason,))))

    def overflow(self) -> None:
        """End the circuit: more waits than may."""
        taker = self.taker
        self.close(Destroy.LIMIT)
        if taker is not None:
            taker.gone(Destroy.LIMIT, self._out.now())

    def ended(self) -> None:
        """Drop what waits; the number is gone."""
        self.open = False
        self._out.held.discard(self)
        waited, self.queued = self.queued, 0
        self.queue.clear()
        self._out.backlog.take(self, waited)


class Out:
    """What one link has to say; see the drawing above. `overrun` is called once if the peer reads no answers."""

    __slots__ = (
        "_count",
        "_epoch",
        "_heap",
        "_looked",
        "_overrun",
        "_owed",
        "_places",
        "_stopped",
        "_turn",
        "_write",
        "backlog",
        "full",
        "gathered",
        "held",
        "noted",
        "now",
        "padding",
        "scale",
        "size",
        "wrote",
    )

    def __init__(
        self,
        write: Callable[[bytes], None],
        turn: Turn,
        backlog: Backlog,
        now: Callable[[], float],
        places: dict[int, Place],
        overrun: Callable[[], None],
    ) -> None:
        """Start empty; `places` are the link's, by number."""
        self._write = write
        self._turn = turn
        self._places = places
        self._overrun = overrun
        self._count = count()
        self._heap: list[tuple[float, int, Place]] = []
        self._stopped = False
        self._owed = 0
        self.backlog = backlog
        self.now = now
        self._epoch = self._looked = now()
        self.scale = 1.0
        self.full = False
        self.gathered: list[bytes] = []
        self.size = 0
        self.padding = 0  # bytes of `size` that are PAD
        self.noted = False
        self.held: set[Place] = set()
        self.wrote = self._epoch

    def say(self, text: bytes) -> None:
        """Send a cell that waits in no queue: one of the link, or of a circuit's beginning or end."""
        self.gathered.append(text)
        self.size += CELL
        if not self.noted:
            self.note()
        if self._stopped:
            self._owed += 1
            if self._owed == CONTROL_MOST:
                self._overrun()

    def pad(self, text: bytes) -> None:
        """Send a cell that does not count as traffic."""
        self.padding += CELL
        self.say(text)

    def note(self) -> None:
        """Have `flush` called at the end of the turn."""
        self.noted = True
        self._turn.note(self)

    def wait(self, place: Place) -> None:
        """Let a place that has a queue now have its turn."""
        heappush(self._heap, (place.volume, next(self._count), place))
        if not self.noted:
            self.note()

    def flush(self) -> None:
        """Write what has gathered in one piece, then what waits, as long as the carrier takes it."""
        self.noted = False
        gathered, self.gathered = self.gathered, []
        if gathered:
            if self.size != self.padding:
                self.wrote = self.now()
            self.size = self.padding = 0
            self._write(gathered[0] if len(gathered) == 1 else b"".join(gathered))
        if self._heap:
            self.age(self.now())
        while self._heap and not self._stopped:
            self._write(self._serve())
        self.full = self._stopped or bool(self._heap)
        if self.held and not self.full:
            self._make_room()

    def stop(self) -> None:
        """The carrier takes no more for now."""
        self._stopped = self.full = True

    def go_on(self) -> None:
        """The carrier takes bytes again."""
        self._stopped = False
        self._owed = 0
        self.flush()

    def end(self) -> None:
        """Forget everything."""
        self.gathered.clear()
        self._heap.clear()
        self.held.clear()
        self.size = 0
        self._write = _nowhere

    def age(self, now: float) -> None:
        """Let volumes halve: what is added later counts more, until all are divided."""
        if now - self._looked < _SCALE_STEP:
            return
        self._looked = now
        self.scale = 2.0 ** ((now - self._epoch) / EWMA_HALF)
        if self.scale > _SCALE_MOST:
            for place in self._places.values():
                place.volume /= self.scale
            self._heap = [(place.volume, number, place) for _, number, place in self._heap]
            heapify(self._heap)
            self._epoch, self.scale = now, 1.0

    def _serve(self) -> bytes:
        """Take up to LINK_HIGH bytes from the queues."""
        taken: list[bytes] = []
        size = 0
        heap, scale = self._heap, self.scale
        while heap and size < LINK_HIGH:
            place = heappop(heap)[2]
            if not place.queued:
                continue
            cells = 0
            while place.queue and cells < QUANTUM:
                text = place.queue.popleft()
                most = (QUANTUM - cells) * CELL
                if len(text) > most:
                    place.queue.appendleft(text[most:])
                    text = text[:most]
                taken.append(text)
                cells += len(text) // CELL
            size += cells * CELL
            place.queued -= cells
            place.volume += cells * scale / place.payer.weight
            place.link.cells_out += cells
            self.backlog.take(place, cells)
            if place.queued:
                heappush(heap, (place.volume, next(self._count), place))
        return b"".join(taken)

    def _make_room(self) -> None:
        """Tell those who wait for room, least volume first, until there is none."""
        now = self.now()
        for place in sorted(self.held, key=_VOLUME):
            if self.full:
                return
            self.held.discard(place)
            if place.open and place.taker is not None:
                place.taker.room(now)


def _nowhere(data: bytes) -> None:
    """Write nothing: the link is gone."""
