"""What a proxy server does by the clock: expiry, daily proofs, leases on the bus, ends of bans, byte counts to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.core.errors import StorageError, Unavailable
from layer8.net.tasks import TaskSet
from layer8.proxy.bans import Bans
from layer8.proxy.bus import Bus, Lease, Presence
from layer8.proxy.choose import Seats
from layer8.proxy.ledger import Ledger
from layer8.proxy.limits import BUS_RENEW, BYTES_FLUSH
from layer8.proxy.store import Carried
from layer8.proxy.tally import HostTally

TURN: Final = 1.0  # seconds between two looks
NOTHING: Final = Carried()


class Written(Protocol):
    """Where it goes; raises `StorageError`."""

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Strike bans out."""

    async def carry(self, carried: Mapping[str, Carried]) -> None:
        """Write the byte counts of these hosts."""


@define(eq=False)
class Counts:
    """Bytes per registered name over all restarts: what was written down, and what came since this start."""

    before: Mapping[str, Carried]
    tallies: Mapping[str, HostTally]
    _written: dict[str, Carried] = field(factory=dict, init=False)

    def __call__(self, host: str) -> tuple[int, int]:
        """Give the bytes in and out of a host."""
        carried = self._of(host)
        return carried.bytes_in, carried.bytes_out

    def unwritten(self) -> dict[str, Carried]:
        """Give the hosts whose counts are not those that were written last."""
        now = {host: self._of(host) for host in self.tallies}
        return {
            host: carried for host, carried in now.items() if carried != self._written.get(host, self._before(host))
        }

    def wrote(self, carried: Mapping[str, Carried]) -> None:
        """Take that these were written."""
        self._written.update(carried)

    def _before(self, host: str) -> Carried:
        return self.before.get(host, NOTHING)

    def _of(self, host: str) -> Carried:
        before, tally = self._before(host), self.tallies.get(host)
        if tally is None:
            return before
        return Carried(before.bytes_in + tally.bytes_in, before.bytes_out + tally.bytes_out)


@define(eq=False)
class Presences:
    """Keeps a lease on the bus for every live subscription of this node."""

    bus: Bus
    seats: Seats
    node: bytes
    _leases: dict[int, Lease] = field(factory=dict, init=False)
    _renewed: float = field(default=0.0, init=False)

    async def turn(self, now: float) -> None:
        """Lease what is new, release what is gone, renew the rest every BUS_RENEW; `now` is monotonic seconds."""
        live = {seat.number: seat for seat in self.seats}
        for number in [number for number in self._leases if number not in live]:
            await self.bus.release(self._leases.pop(number))
        if now - self._renewed >= BUS_RENEW:
            self._renewed = now
            for lost in await self.bus.renew(tuple(self._leases.values())):
                self._leases.pop(lost.presence.subscription, None)
        for number, seat in live.items():
            if number not in self._leases and not seat.gone:
                presence = Presence(seat.host, self.node, number, seat.weight, seat.priority)
                self._leases[number] = await self.bus.lease(presence)

    async def leave(self) -> None:
        """Release everything: this node stops."""
        while self._leases:
            await self.bus.release(self._leases.popitem()[1])


class Upkeep(Service):
    """Turns once a second, one turn at a time; what cannot be written is tried again, and the health row says so."""

    def __init__(
        self,
        clock: IReactorTime,
        log: Logger,
        ledger: Ledger,
        presences: Presences,
        bans: Bans,
        counts: Counts,
        written: Written,
        wall: Callable[[], float],
    ) -> None:
        """Take what has to be kept up."""
        self._clock = clock
        self._ledger = ledger
        self._presences = presences
        self._bans = bans
        self._counts = counts
        self._written = written
        self._wall = wall
        self._tasks = TaskSet(log)
        self._flushed = clock.seconds()
        self._over: list[str] = []
        self._loop = LoopingCall(self._turn)
        self._loop.clock = clock

    def startService(self) -> None:
        """Begin."""
        Service.startService(self)
        self._tasks.restart()
        self._loop.start(TURN, now=False)

    def stopService(self) -> Deferred[None]:
        """Finish the turn under way, write the byte counts, leave the bus."""
        Service.stopService(self)
        self._loop.stop()
        return Deferred.fromCoroutine(self._stop())

    async def turn(self) -> None:
        """Do everything that is due."""
        now = self._clock.seconds()
        await self._presences.turn(now)
        await self._ledger.turn()
        self._over += self._bans.ended(self._wall())
        if now - self._flushed >= BYTES_FLUSH:
            self._flushed = now
            await self._flush()

    async def _flush(self) -> None:
        if self._over:
            await self._written.unban(self._over)
            self._over = []
        unwritten = self._counts.unwritten()
        if unwritten:
            await self._written.carry(unwritten)
            self._counts.wrote(unwritten)

    def _turn(self) -> Deferred[None]:
        # `LoopingCall` waits for this, so turns never overlap; errors on purpose are logged and do not end the loop.
        ended: Deferred[None] = Deferred()
        self._tasks.start("upkeep", self._turned(ended))
        return ended

    async def _turned(self, ended: Deferred[None]) -> None:
        try:
            await self.turn()
        finally:
            ended.callback(None)

    async def _stop(self) -> None:
        await self._tasks.stop()
        try:
            await self._flush()
            await self._presences.leave()
        except (StorageError, Unavailable):
            return  # the writes that failed before have said so, and a lease lapses by itself
