"""The rows `gateway.*`: its keys, a new one out of turn, and what was counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import frozen

from layer8.control.access import Caller
from layer8.control.errors import CallUnavailable
from layer8.control.table import Event, Table, method
from layer8.core.blur import blur_bytes
from layer8.core.errors import Unavailable
from layer8.core.members import member
from layer8.tunnel.driving import Threads
from layer8.tunnel.gateway import Gateway, KeyState

ADMIN = "admin"


@frozen
class KeyRows:
    """The keys of this gateway; `pin` is what pages pin, null if the identity key is kept elsewhere."""

    gateway: str
    pin: str | None
    keys: tuple[KeyState, ...]


@frozen
class Rotate:
    """A new key now; with `drop` the older ones open nothing any more, since somebody else has them."""

    drop: bool = member(False)


@frozen
class Rotated:
    """The epoch of the new key."""

    epoch: int


@frozen
class GatewayStats:
    """What was counted since the start, and how many there are now."""

    outcomes: dict[str, int]
    open: int
    sockets: int
    relay_in: int
    relay_out: int
    backend_in: int
    backend_out: int


class GatewayRows:
    """What people and programs call that look after a gateway."""

    owns = ("gateway",)
    events = (Event("gateway.rotated", Rotated, role="read"),)

    def __init__(
        self,
        gateway: Gateway,
        threads: Threads[Any],
        traffic: Callable[[], tuple[int, int, int, int]],
        open_now: Callable[[], int],
        table: Table,
    ) -> None:
        """`traffic` gives the bytes in and out of both legs."""
        self._gateway = gateway
        self._threads = threads
        self._traffic = traffic
        self._open = open_now
        self._table = table

    @method("gateway.keys", role="read")
    async def keys(self, caller: Caller) -> KeyRows:
        """List the keys that still open requests, newest first."""
        gateway = self._gateway
        pin = None if gateway.identity is None else gateway.pin
        return KeyRows(gateway.id, pin, tuple(gateway.keys()))

    @method("gateway.rotate", role="operate", errors=(CallUnavailable,))
    async def rotate(self, caller: Caller, params: Rotate) -> Rotated:
        """Make a new key out of turn; there is at most one for each hour."""
        try:
            epoch = await self._threads(partial(self._gateway.rotate, drop=params.drop))
        except Unavailable as error:
            raise CallUnavailable(str(error)) from None
        told = Rotated(epoch)
        self._table.publish("gateway.rotated", told)
        return told

    @method("gateway.stats", role="read")
    async def stats(self, caller: Caller) -> GatewayStats:
        """Give what was counted; bytes are exact for administrators."""
        counts = dict(self._gateway.counts())
        sockets = counts.pop("sockets")
        exact = caller.may(ADMIN)
        said = [count if exact else blur_bytes(count) for count in self._traffic()]
        return GatewayStats(dict(sorted(counts.items())), self._open(), sockets, *said)
