"""What a proxy server does by the clock: expiry, daily proofs, leases on the bus, ends of bans."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.core.errors import Unavailable
from layer8.net.tasks import TaskSet
from layer8.proxy.bans import Bans
from layer8.proxy.bus import Bus, Lease, Presence
from layer8.proxy.choose import Seats
from layer8.proxy.ledger import Ledger
from layer8.proxy.limits import BUS_RENEW

TURN: Final = 1.0  # seconds between two looks
AGAIN: Final = 60.0  # seconds between tries to write down what did not want to be written


class Written(Protocol):
    """Where bans are written down; raises `StorageError`."""

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Strike bans out."""


@define(eq=False)
class Presences:
    """Keeps a lease on the bus for every live subscription of this node."""

    bus: Bus
    seats: Seats
    node: bytes
    _leases: dict[int, Lease] = field(factory=dict, init=False)
    _lock: DeferredLock = field(factory=DeferredLock, init=False)
    _renewed: float = field(default=0.0, init=False)

    async def turn(self, now: float) -> None:
        """Lease what is new, release what is gone, renew the rest every BUS_RENEW; `now` is monotonic seconds."""
        await self._lock.run(lambda: Deferred.fromCoroutine(self._turn(now)))

    async def settle(self) -> None:
        """Lease what is new, before somebody is told that it is there; a bus that fails is tried again by `turn`."""
        try:
            await self._lock.run(lambda: Deferred.fromCoroutine(self._lease_new()))
        except Unavailable:
            return

    async def _turn(self, now: float) -> None:
        live = {seat.number for seat in self.seats if seat.state == "up"}
        for number in [number for number in self._leases if number not in live]:
            await self.bus.release(self._leases.pop(number))
        if now - self._renewed >= BUS_RENEW:
            self._renewed = now
            for lost in await self.bus.renew(tuple(self._leases.values())):
                self._leases.pop(lost.presence.subscription, None)
        await self._lease_new()

    async def _lease_new(self) -> None:
        for seat in [seat for seat in self.seats if seat.number not in self._leases]:
            if seat.state == "up" and not seat.gone:
                pool = 0 if seat.max_conns else seat.pool  # who counts its visitors has to be asked for each
                presence = Presence(seat.host, self.node, seat.number, seat.weight, seat.priority, pool)
                self._leases[seat.number] = await self.bus.lease(presence)

    async def leave(self) -> None:
        """Release everything: this node stops."""
        while self._leases:
            await self.bus.release(self._leases.popitem()[1])


class Upkeep(Service):
    """Turns once a second, one turn at a time; what cannot be written is tried again later."""

    def __init__(
        self,
        clock: IReactorTime,
        log: Logger,
        ledger: Ledger,
        presences: Presences,
        bans: Bans,
        written: Written,
        wall: Callable[[], float],
        *,
        looks_again: bool = True,
    ) -> None:
        """Take what has to be kept up; `looks_again` says whether proofs of ownership are."""
        self._clock = clock
        self._ledger = ledger
        self._presences = presences
        self._bans = bans
        self._written = written
        self._wall = wall
        self._tasks = TaskSet(log)
        self._struck = clock.seconds()
        self._over: list[str] = []
        self._looking = not looks_again
        self._loop = LoopingCall(self._turn)
        self._loop.clock = clock

    def startService(self) -> None:
        """Begin."""
        Service.startService(self)
        self._tasks.restart()
        self._loop.start(TURN, now=False)

    def stopService(self) -> Deferred[None]:
        """Finish the turn under way and leave the bus."""
        Service.stopService(self)
        self._loop.stop()
        return Deferred.fromCoroutine(self._stop())

    async def turn(self) -> None:
        """Do everything that is due."""
        now = self._clock.seconds()
        await self._presences.turn(now)
        await self._ledger.turn()
        if not self._looking:
            self._tasks.start("proofs", self._look_again())
        self._over += self._bans.ended(self._wall())
        if self._over and now - self._struck >= AGAIN:
            self._struck = now
            await self._written.unban(self._over)
            self._over = []

    async def _look_again(self) -> None:
        self._looking = True
        try:
            await self._ledger.look_again()
        finally:
            self._looking = False

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
            await self._presences.leave()
        except Unavailable:
            return  # a lease lapses by itself
