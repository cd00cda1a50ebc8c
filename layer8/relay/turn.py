"""What links, circuits and streams are to each other, and when what they have to say is written.

```
 socket -> Link.received -> Taker.cells -> layer8.crypto.onion -> Slot.send -> Link.flush -> socket
                            one call a run: neighbouring cells of one circuit with one command
```
One reactor turn reads, transforms and writes once per link: everything that has something to say notes itself in the
`Turn`, and whoever has begun the turn ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import define, field

from layer8.relay.wire import Opened, Reason


class Flushes(Protocol):
    """What writes once per turn."""

    def flush(self) -> None:
        """Write what has gathered, in one piece."""


@define(eq=False)
class Turn:
    """The links that have something to write; `later` is asked once to call `end` soon, where nobody else will."""

    later: Callable[[Callable[[], None]], None]
    _noted: list[Flushes] = field(factory=list, init=False)
    _asked: bool = field(default=False, init=False)
    _ending: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Promise to call `end` in this same turn."""
        self._asked = True

    def note(self, one: Flushes) -> None:
        """Let `one` write at the end of this turn; it says so once, when it begins to have something."""
        self._noted.append(one)
        if not self._asked:
            self._asked = True
            self.later(self.end)

    def end(self) -> None:
        """Write everything that has gathered; whatever does so while others write, writes too."""
        if self._ending:
            return
        noted, done = self._noted, 0
        self._ending = True
        try:
            while done < len(noted):  # it grows meanwhile
                done += 1
                noted[done - 1].flush()
        finally:
            del noted[:done]
            self._asked = self._ending = False


class Slot(Protocol):
    """A circuit's place on a link: its number there, and its queue."""

    circ: int
    queued: int  # cells

    @property
    def full(self) -> bool:
        """Whether the link has as much as it takes; whoever has seen that is told `Taker.room`, and waits for it."""

    def create(self, kind: int, handshake: bytes) -> None:
        """Send CREATE on a slot that `Link.slot` gave; the answer comes as `Taker.created`."""

    def created(self, kind: int, handshake: bytes) -> None:
        """Send CREATED on a slot that the peer began."""

    def send(self, cmd: int, bodies: Sequence[bytes | memoryview]) -> None:
        """Queue bodies of BODY bytes each (shorter ones are filled with zeros), all under one cell command."""

    def close(self, reason: int) -> None:
        """Send DESTROY, unless `reason` came from there, and give the number back."""


class Taker(Protocol):
    """What a link hands a circuit's cells to."""

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        """Take the peer's answer to `Slot.create`; cells follow. Never called for a circuit that the peer began."""

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        """Take a run of bodies; they are views of a buffer that is gone when this returns."""

    def gone(self, reason: int, now: float) -> None:
        """Take the circuit's end on this side: DESTROY came, or the link is lost."""

    def room(self, now: float) -> None:
        """Go on: the link takes cells again."""


class Sink(Protocol):
    """Who uses a stream: an exit's connection, a SOCKS client, a program."""

    def opened(self, opened: Opened) -> None:
        """Take the far end's yes; only the side that asked hears it."""

    def data(self, pieces: list[bytes]) -> None:
        """Take bytes in order; of a UDP stream each piece is one datagram as in RELAY_DATA."""

    def ended(self) -> None:
        """Take the end of what the far side says; this side may go on."""

    def closed(self, reason: Reason) -> None:
        """Take the end of the stream; nothing follows."""

    def hold(self) -> None:
        """Write no more for now."""

    def go_on(self) -> None:
        """Write again."""


class Nothing:
    """A sink for the answer that a circuit still stands."""

    def opened(self, opened: Opened) -> None:
        """Hear nothing."""

    def data(self, pieces: list[bytes]) -> None:
        """Hear nothing."""

    def ended(self) -> None:
        """Hear nothing."""

    def closed(self, reason: Reason) -> None:
        """Hear nothing."""

    def hold(self) -> None:
        """Hear nothing."""

    def go_on(self) -> None:
        """Hear nothing."""


class StreamLike(Protocol):
    """A stream as its sink sees it."""

    number: int

    def write(self, data: bytes) -> None:
        """Say bytes of any size; of a UDP stream one datagram. What is said during `hold` is kept."""

    def end(self) -> None:
        """Say no more; the other direction goes on."""

    def close(self, reason: Reason = Reason.DONE) -> None:
        """End both directions."""

    def pause(self) -> None:
        """Give the far end no more credit: the sink is full."""

    def resume(self) -> None:
        """Give credit again."""
