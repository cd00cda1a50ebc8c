"""What hidden services and their clients need of the network: circuits to a given last hop, and nodes to choose from.

`NetworkWays` is that over `layer8.relay.client`. All circuits are built alike: so many hops of one's own choice, then
one more to whom somebody has named; it is told how to reach it, and nobody has to know its descriptor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Protocol, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred

from layer8.core.chance import Chance
from layer8.core.errors import LocalProtocolError, TimedOut, Unavailable
from layer8.crypto.descriptor import Role
from layer8.relay.client import Circuit, Client, Hop, Need, NoCircuit, Origin, Reason
from layer8.rendezvous.descriptor import ENDPOINT, Point, Price
from layer8.rendezvous.limits import SETUP_CELLS
from layer8.rendezvous.ready import Ready

T = TypeVar("T")
BAD_TIME: Final = 60.0  # seconds that a node which could not be had is only chosen where there is no other


class Told(Protocol):
    """A service's descriptor, as far as knocking needs it: `layer8.rendezvous.descriptor.ServiceDescriptor`."""

    @property
    def points(self) -> Sequence[Point]:
        """Give the access points."""

    @property
    def price(self) -> Price | None:
        """Say what knocking costs; None if nothing."""

    @property
    def modes(self) -> Sequence[int]:
        """Give the ways by which it comes, the one that it likes best first."""


class Gone(Unavailable):
    """The last hop of a circuit was not to be had, and those before it stood."""


class Ways(Protocol):
    """See the module."""

    @property
    def network(self) -> bytes:
        """Give the network's 8 bytes."""

    def wall(self) -> float:
        """Give the seconds since 1970."""

    def seconds(self) -> float:
        """Give monotonic seconds."""

    def random(self, size: int) -> bytes:
        """Give random bytes."""

    def later(self, seconds: float, what: Callable[[], None]) -> Any:
        """Do something later, unless what this gives is cancelled."""

    def limited(self, waiting: Deferred[T], seconds: float) -> Deferred[T]:
        """Let what is awaited fail with `TimedOut` after so many seconds."""

    def places(self, count: int, without: Collection[bytes] = ()) -> list[Hop]:
        """Choose as many nodes that are access points and rendezvous hops, or fewer if there are no more."""

    async def work(self, what: Callable[[], T]) -> T:
        """Do what takes long where the reactor does not wait."""

    async def to(self, last: Hop, before: int, *, layer2: bool = False, kept: bool = False) -> Origin:
        """Build a circuit of so many hops and then this one; raises Unavailable, `Gone` if only this one is missing."""


async def ask(ways: Ways, origin: Origin, command: int, data: bytes, answer: int, timeout: float) -> bytes:
    """Ask the last hop of a circuit; raises TimedOut or Unavailable."""
    waiting: Deferred[tuple[int, bytes] | Reason] = Deferred()
    try:
        origin.ask(command, data, (answer,), timeout, waiting.callback)
    except LocalProtocolError as error:
        raise Unavailable(f"the circuit is gone: {error}") from None
    said = await waiting
    if said is Reason.TIMEOUT:
        raise TimedOut(f"no answer in {timeout:g} s")
    if isinstance(said, Reason):
        raise Unavailable(f"the circuit ended before the answer: {said.name.lower()}")
    return said[1]


def even(origin: Origin, before: int = 1) -> None:
    """Let SETUP_CELLS have left on this circuit once `before` more are said, like on every other one of its kinds."""
    try:
        origin.pad(SETUP_CELLS - before)
    except LocalProtocolError as error:
        raise Unavailable(f"the circuit is gone: {error}") from None


@define(eq=False)
class NetworkWays:
    """`Ways` over a node's client."""

    client: Client
    reactor: Any
    wall: Callable[[], float]
    random: Callable[[int], bytes]
    chance: Chance
    known: Callable[[], Collection[Any]] = field(repr=False)  # the descriptors of the nodes that are known and live
    _ready: Ready = field(init=False, repr=False)
    _bad: dict[bytes, float] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Keep circuits for those who are met next."""
        self._ready = Ready(self.client)

    @property
    def network(self) -> bytes:
        """Give the network's 8 bytes."""
        return self.client.pool.network

    def seconds(self) -> float:
        """Give monotonic seconds."""
        return float(self.reactor.seconds())

    def later(self, seconds: float, what: Callable[[], None]) -> Any:
        """Call the reactor's `callLater`."""
        return self.reactor.callLater(seconds, what)

    def limited(self, waiting: Deferred[T], seconds: float) -> Deferred[T]:
        """Let what is awaited fail with `TimedOut` after so many seconds."""
        return limited(self.reactor, waiting, seconds)

    def places(self, count: int, without: Collection[bytes] = ()) -> list[Hop]:
        """Choose nodes that say they are access points and rendezvous hops; each counts alike.

        One that could not be had lately is chosen where there is no other.
        """
        now = self.seconds()
        self._bad = {node: until for node, until in self._bad.items() if until > now}
        fitting = [
            Hop(one.identity, one.onion_key, one.endpoints)
            for one in self.known()
            if one.roles & Role.RENDEZVOUS
            and one.identity not in without
            and one.endpoints
            and len(one.endpoints[0]) <= ENDPOINT
        ]
        chosen: list[Hop] = []
        while fitting and len(chosen) < count:
            good = [place for place, hop in enumerate(fitting) if hop.identity not in self._bad] or range(len(fitting))
            chosen.append(fitting.pop(good[self.chance.randrange(len(good))]))
        return chosen

    async def work(self, what: Callable[[], T]) -> T:
        """Do it where circuit handshakes are made."""
        return await worked(self.client.pool.worker, what)

    async def to(self, last: Hop, before: int, *, layer2: bool = False, kept: bool = False) -> Origin:
        """Build a circuit; raises Unavailable, or `Gone`."""
        need = Need(hops=before, alone=True, layer2=layer2, kept=kept, without=frozenset((last.identity,)))
        ready = self._ready.take(need)
        self._ready.prepare(need)
        if ready is not None:
            with contextlib.suppress(NoCircuit):
                return await self._end_at(ready, last)
        return await self._end_at(await self.client.build(need), last)

    async def _end_at(self, circuit: Circuit, last: Hop) -> Origin:
        try:
            await self.client.extend(circuit, last)
        except NoCircuit as error:
            self._bad[last.identity] = self.seconds() + BAD_TIME
            if error.reason is Reason.RESET:  # it has ended before the last hop was known to be gone
                raise
            raise Gone(str(error)) from None
        return circuit.origin

    def stop(self) -> None:
        """Build nothing for later any more."""
        self._ready.stop()


async def worked(worker: Callable[[Callable[[], Any], Callable[[Any], None]], None], what: Callable[[], T]) -> T:
    """Await what a worker makes; raises what it raises."""
    waiting: Deferred[T] = Deferred()
    worker(what, lambda made: waiting.errback(made) if isinstance(made, Exception) else waiting.callback(made))
    return await waiting


def limited(clock: Any, waiting: Deferred[T], seconds: float) -> Deferred[T]:
    """Let what is awaited fail with `TimedOut` after so many seconds."""
    return waiting.addTimeout(seconds, clock, onTimeoutCancel=lambda result, after: _late(after))


def _late(after: float) -> Any:
    raise TimedOut(f"nothing in {after:g} s")
