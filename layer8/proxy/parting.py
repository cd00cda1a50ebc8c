"""How a visitor and its host part before either has ended: what was said has arrived, and no descriptor is lost."""

from __future__ import annotations

from typing import Any, Protocol

from layer8.net.flow import Link
from layer8.net.leg import Leg
from layer8.net.pump import Pump
from layer8.proxy.pp import Header
from layer8.proxy.registration import Registration
from layer8.proxy.registry import Registry
from layer8.proxy.visit import Visit
from layer8.proxy.wire import Reason


class Keeper(Protocol):
    """Who keeps the visitors."""

    pump: Pump
    reactor: Any
    draining: bool
    registry: Registry

    def enter(
        self,
        fd: int,
        address: str,
        port: int,
        scheme: str,
        header: Header | None = None,
        first: bytes = b"",
        leg: Leg | None = None,
        row: Registration | None = None,
    ) -> None:
        """Take a visitor, which has said `first`."""

    def finish(self, visit: Visit, reason: Reason) -> None:
        """Count and log the end of a visitor."""


def begin_anew(keeper: Keeper, visit: Visit, first: bytes) -> None:
    """Part a visitor from its host, as if it had just come and said `first`."""
    link, leg, row = visit.link, visit.leg, visit.row
    if link is None:
        return
    if keeper.draining:
        see_off(keeper, visit, Reason.DRAINED, b"")
        return
    fd, other = keeper.pump.part(link)
    keeper.pump.close_fd(other)
    visit.fd = -1
    keeper.finish(visit, Reason.DONE)
    keeper.enter(
        fd, visit.address, visit.port, visit.scheme, visit.header, first, leg, row if leg is not None else None
    )


def see_off(keeper: Keeper, visit: Visit, reason: Reason, words: bytes) -> None:
    """Part a visitor from its host and close it, after some last words and the time to read what it was sent."""
    if visit.link is None:
        return
    _, other = keeper.pump.part(visit.link)
    keeper.pump.close_fd(other)
    visit.see_off(words, linger=True)
    keeper.finish(visit, reason)


def break_off(link: Link) -> None:
    """Close a link in the middle of a message, so that its visitor cannot take what it has for all of it."""
    link.down.reset = True
    link.close("reset")
