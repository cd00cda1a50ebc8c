"""Trying nodes before they are used: circuits through those that are not vetted yet, which carry nothing.

One at a time and without haste where enough nodes are known; fast where hardly any may be used. In networks without
rules everything counts as vetted, so there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from attrs import define
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from layer8.core.errors import Layer8Error
from layer8.crypto.keys import id_text
from layer8.relay.database import Database
from layer8.relay.path import NoPath, Paths
from layer8.relay.route import Named, Route

VET_EVERY: Final = 30.0  # seconds between two tries
VET_SOON: Final = 0.5  # the same while fewer than VET_ENOUGH nodes may be used
VET_ENOUGH: Final = 20
VET_IDLE: Final = 60.0  # seconds after a look that has found nobody to try


class Closes(Protocol):
    """A circuit that was built for nothing."""

    def close(self) -> None:
        """End it."""


Build = Callable[[Route], Awaitable[Closes]]
"""Build a circuit through exactly these nodes; every node of one that stands is noted in the database as good."""


@define(eq=False)
class Vetting:
    """The tries of one node."""

    _paths: Paths
    _database: Database
    _build: Build
    _clock: IReactorTime
    _wall: Callable[[], float]

    async def run(self) -> None:
        """Try nodes for ever."""
        while True:
            tried = await self.once()
            await deferLater(self._clock, self._pause(tried))

    async def once(self) -> bool:
        """Try one node; False if there is none to try."""
        try:
            path = self._paths.vetting(self._wall())
        except NoPath:
            return False
        try:
            circuit = await self._build(Route(tuple(Named(id_text(one.identity)) for one in path)))
        except CancelledError:
            raise
        except Layer8Error:
            self._database.failed(path[-1].identity)  # so that others have their turn before it
        else:
            circuit.close()
        return True

    def _pause(self, tried: bool) -> float:
        if not tried:
            return VET_IDLE
        usable = sum(1 for peer in self._database if self._database.vetted(peer))
        return VET_EVERY if usable >= VET_ENOUGH else VET_SOON
