"""A bus of one node: durable registrations in a store, presence in a dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from layer8.core.errors import Unavailable
from layer8.proxy.bus import Change, Gone, Lease, Presence, Put, Stop
from layer8.proxy.limits import BUS_LEASE
from layer8.proxy.registration import Ownership, Registration
from layer8.proxy.wire import Code, Denied


class Rows(Protocol):
    """Where registrations are written down; all of it raises `StorageError`."""

    async def save(self, row: Registration) -> None:
        """Write one, in place of what stood under its host and owner."""

    async def drop(self, row: Registration) -> None:
        """Strike one out."""


class LocalBus:
    """See `layer8.proxy.bus.Bus`; `node` is our own 32-byte id and `rows` what stood in the store at the start."""

    def __init__(self, clock: IReactorTime, store: Rows, node: bytes, rows: Iterable[Registration] = ()) -> None:
        """Start with what was written down, and nobody present."""
        self._clock = clock
        self._store = store
        self._node = node
        self._rows = {(row.host, row.owner): row for row in rows}
        self._taken = {row.host: row.owner for row in self._rows.values() if row.state is not Ownership.PENDING}
        self._watching: list[Callable[[Change], None]] = []
        self._listening: list[Callable[[bytes], None]] = []
        self._leases: dict[tuple[str, bytes, int], tuple[Lease, float]] = {}
        self._present: dict[str, dict[tuple[bytes, int], Presence]] = {}
        self._generation = 0

    @property
    def rows(self) -> tuple[Registration, ...]:
        """What stands."""
        return tuple(self._rows.values())

    async def register(self, row: Registration) -> None:
        """Write a registration or a claim down and tell the watchers; see `Bus`."""
        before: Registration | None = None
        if row.state is not Ownership.PENDING:
            before = self._rows.get((row.host, self._taken.get(row.host, row.owner)))
            if before is not None and before.owner != row.owner and before.state is not Ownership.SUSPENDED:
                raise Denied(Code.ALREADY_REGISTERED, f"{row.host} is registered already")
        if before is not None and before.owner != row.owner:
            await self.remove(before)
        await self._store.save(row)
        self._rows[row.host, row.owner] = row
        if row.state is not Ownership.PENDING:
            self._taken[row.host] = row.owner
        self._tell(Put(row))

    async def remove(self, row: Registration) -> None:
        """Strike a registration or a claim out; see `Bus`."""
        if (row.host, row.owner) not in self._rows:
            return
        await self._store.drop(row)
        gone = self._rows.pop((row.host, row.owner), None)
        if gone is None:
            return
        if self._taken.get(row.host) == row.owner:
            del self._taken[row.host]
        self._tell(Gone(gone))

    def standing(self, host: str, owner: str) -> int | None:
        """Give the version of what stands under a host and an owner, None if nothing does."""
        row = self._rows.get((host, owner))
        return None if row is None else row.version

    async def registrations(self, since: int = 0) -> tuple[Registration, ...]:
        """Give what stands and is newer than `since`."""
        return tuple(sorted((row for row in self._rows.values() if row.version > since), key=lambda row: row.version))

    def watch(self, told: Callable[[Change], None]) -> Stop:
        """Tell every change from now on."""
        self._watching.append(told)
        return lambda: self._watching.remove(told)

    async def lease(self, presence: Presence) -> Lease:
        """Announce a subscription."""
        self._generation += 1
        lease = Lease(presence, generation=self._generation)
        self._leases[_key(presence)] = lease, self._clock.seconds() + BUS_LEASE
        self._present.setdefault(presence.host, {})[presence.node, presence.subscription] = presence
        return lease

    async def renew(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        """Prolong leases and give those that cannot be."""
        now = self._clock.seconds()
        self._lapse(now)
        lost = []
        for lease in leases:
            key = _key(lease.presence)
            standing = self._leases.get(key)
            if standing is None or standing[0] != lease:
                lost.append(lease)
            else:
                self._leases[key] = lease, now + BUS_LEASE
        return tuple(lost)

    async def release(self, lease: Lease) -> None:
        """End a lease now."""
        self.end(lease)

    def end(self, lease: Lease) -> None:
        """End a lease now; one that is over or fenced out already is left alone."""
        standing = self._leases.get(_key(lease.presence))
        if standing is not None and standing[0] == lease:
            self._forget(lease.presence)

    def lookup(self, host: str) -> tuple[Presence, ...]:
        """Give who is present for a registered name."""
        found = self._present.get(host)
        if found is None:
            return ()
        now = self._clock.seconds()
        return tuple(presence for presence in found.values() if self._leases[_key(presence)][1] > now)

    async def notify(self, node: bytes, sealed: bytes) -> None:
        """Hand a message to ourselves; there is nobody else."""
        if node != self._node or not self._listening:
            raise Unavailable("no such node")
        for told in list(self._listening):
            told(sealed)

    def listen(self, told: Callable[[bytes], None]) -> Stop:
        """Take the messages for this node."""
        self._listening.append(told)
        return lambda: self._listening.remove(told)

    def _tell(self, change: Change) -> None:
        for told in list(self._watching):
            told(change)

    def _lapse(self, now: float) -> None:
        for lease, until in list(self._leases.values()):
            if until <= now:
                self._forget(lease.presence)

    def _forget(self, presence: Presence) -> None:
        del self._leases[_key(presence)]
        of_host = self._present[presence.host]
        del of_host[presence.node, presence.subscription]
        if not of_host:
            del self._present[presence.host]


def _key(presence: Presence) -> tuple[str, bytes, int]:
    return presence.host, presence.node, presence.subscription
