"""A circuit that stands, what it is wanted for, and whether it still says anything."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

from attrs import define, field, frozen

from layer8.crypto.descriptor import Descriptor
from layer8.crypto.keys import id_text
from layer8.relay.limits import T_SILENT
from layer8.relay.origin import Hop, Origin
from layer8.relay.route import Route
from layer8.relay.wire import DATA, Reason

LOOK: Final = 1.0  # seconds between looks at what is old, idle or missing


@frozen
class Need:
    """What a circuit is wanted for.

    `key` keeps needs apart: those with different ones never share a circuit. `port` wants an exit that says it reaches
    it, `last` a certain node at the end. `alone` wants a circuit that nobody else ever uses. A `kept` one is not closed
    because it is old or idle, before CIRC_LIFE. `without` are nodes that it must not have.
    """

    key: Hashable = field(default=None, repr=False)  # of SOCKS it holds a password
    route: Route = field(factory=Route)
    port: int = 0
    last: bytes = b""
    hops: int = 3
    alone: bool = False
    layer2: bool = False
    kept: bool = False
    without: frozenset[bytes] = frozenset()


@define(eq=False)
class Circuit:
    """A circuit that stands, with its nodes in order; `need` is None while it is a spare."""

    number: int
    origin: Origin = field(repr=False)
    path: tuple[Descriptor, ...] = field(repr=False)
    need: Need | None
    since: float
    first: float = field(default=0.0, init=False)  # when somebody used it first
    last: float = field(default=0.0, init=False)  # when something was opened on it last
    opened: int = field(default=0, init=False)
    speed: float = field(default=0.0, init=False)  # bytes in the best second
    _bytes: int = field(default=0, init=False)  # at the last look
    _cells: int = field(default=0, init=False)  # that `fresh` has told of
    known: bool = field(default=False, init=False)  # its last hop has been told who we are
    further: Callable[[Reason | None], None] | None = field(default=None, init=False)  # waits for one more hop
    waiting: dict[object, float] = field(factory=dict, init=False)  # openings without an answer, and since when
    _came: int = field(default=0, init=False)  # when it was asked whether it stands
    _probed: float | None = field(default=None, init=False)  # when that was, until it says something
    _spoke: float = field(default=0.0, init=False)  # when it had said something the last time that it was asked
    _owed: tuple[float, int] | None = field(default=None, init=False)  # since when data waits, and what had come then

    def wait_for(self, opening: object, now: float) -> None:
        """Note that the far end has been asked for something."""
        self.waiting[opening] = now

    def waits(self, now: float) -> bool:
        """Say whether an opening or data has had no answer for so long that one should ask."""
        # Where it is joined, what the last hop refuses itself would be a port of somebody's.
        if not self.origin.takes or self.origin.joined or self.silent(now) is not None:
            return False
        since = [*self.waiting.values(), *(() if self._owed is None else self._owed[:1])]
        return bool(since) and now - max(min(since), self._spoke) >= T_SILENT

    def probe(self, now: float) -> None:
        """Ask whether it still stands."""
        self._probed, self._came = now, self.origin.came
        self.origin.probe()

    def silent(self, now: float) -> float | None:
        """Give how long ago it was asked, if it has not said a word since."""
        if self._probed is not None and self.origin.came != self._came:
            self._probed, self._spoke = None, now
        return None if self._probed is None else now - self._probed

    @property
    def ms(self) -> tuple[float, ...]:
        """Milliseconds that each hop took to build."""
        return tuple(round(seconds * 1000, 3) for seconds in self.origin.times)

    @property
    def hops(self) -> tuple[str, ...]:
        """Short ids of its nodes, also of one that it was extended to."""
        return tuple(id_text(one.identity)[:8] for one in self.origin.hops)

    def fresh(self) -> int:
        """Count the cells that have gone through it since this was asked last."""
        cells = self.origin.sent + self.origin.streams.received
        before, self._cells = self._cells, cells
        return cells - before

    def look(self, now: float) -> None:
        """Note how fast it has been since the last look, and whether data has left that nothing has come after."""
        origin = self.origin
        if not origin.streams.live or origin.streams.sent == origin.before:
            self._owed = None
        elif self._owed is None or self._owed[1] != origin.came:
            self._owed = now, origin.came
        moved = (origin.streams.received + origin.streams.sent) * DATA
        self.speed = max(self.speed, (moved - self._bytes) / LOOK)
        self._bytes = moved

    def extend(self, hop: Hop, done: Callable[[Reason | None], None]) -> None:
        """Build one more hop, whoever that is; `done` hears None, or why not. Raises `LocalProtocolError`."""
        self.origin.extend(hop)
        self.further = done

    def went(self, reason: Reason | None) -> None:
        """Tell who waits for one more hop."""
        done, self.further = self.further, None
        if done is not None:
            done(reason)

    def close(self) -> None:
        """End it and its streams."""
        self.origin.close()
