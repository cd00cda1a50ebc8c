"""A server among others: its remote seats on a real bus, by a real clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.core.errors import Layer8Error
from layer8.net.tasks import TaskSet
from layer8.proxy.bus import Bus, Stop
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.door import Door
from layer8.proxy.reach import Reach
from layer8.proxy.remote import Remote, Sealer, ahead_numbers
from layer8.proxy.wire import Code, DataAddress

TURN: Final = 0.5
"""Seconds between two looks at what is over."""


class Ahead(Protocol):
    """Has connections that agents of other nodes dial ahead to us."""

    numbers: int
    """What is added to our visitors' numbers, where the agent of another node may say them."""

    def refused(self, seat: Seat) -> None:
        """Take that an agent was not told to dial."""


class Neighbours(Service):
    """See `layer8.proxy.remote`."""

    _log = Logger(namespace="layer8.proxy.neighbours")

    def __init__(
        self,
        reactor: Any,
        node: bytes,
        bus: Bus,
        sealer: Sealer,
        seats: Seats,
        reach: Reach,
        ahead: Ahead,
        door: Door,
        host: str,
    ) -> None:
        """Let the visitors of this server have the agents of all nodes, and the other way round.

        `host` is where agents of other nodes dial us back; "" if that is where they dial their own.
        """
        self._bus = bus
        self._reach = reach
        self._door = door
        self._host = host
        self._tasks = TaskSet(self._log)
        self._unlisten: Stop | None = None
        self.remote = Remote(
            node,
            bus.lookup,
            sealer,
            self._post,
            seats,
            self._where,
            reach.rejected,
            ahead.refused,
            reach.seat_gone,
            door.announce,
        )
        ahead.numbers = ahead_numbers(node)
        seats.elsewhere = self.remote.of
        door.elsewhere = lambda: self.remote.addresses
        self._loop = LoopingCall(lambda: self.remote.tick(reactor.seconds()))
        self._loop.clock = reactor

    def _where(self) -> tuple[DataAddress, ...]:
        return tuple(evolve(known, host=known.host or self._host) for known in self._door.addresses())

    def startService(self) -> None:
        """Take messages."""
        Service.startService(self)
        self._tasks.restart()
        self._unlisten = self._bus.listen(self.remote.received)
        self._loop.start(TURN, now=False)

    def stopService(self) -> Deferred[None]:
        """Take no more, and finish nothing."""
        Service.stopService(self)
        self._loop.stop()
        if self._unlisten is not None:
            self._unlisten()
        return self._tasks.stop()

    def rejected(self, seat: Seat, conn: int) -> None:
        """Take an agent's no, for a visitor of ours or of another node."""
        if not self.remote.rejects(seat, conn, Code.AGENT_REFUSED):
            self._reach.rejected(seat, conn)

    def _post(self, node: bytes, sealed: bytes, failed: Callable[[], None]) -> None:
        self._tasks.start("a message to a node", self._send(node, sealed, failed))

    async def _send(self, node: bytes, sealed: bytes, failed: Callable[[], None]) -> None:
        try:
            await self._bus.notify(node, sealed)
        except Layer8Error:
            failed()
