"""The bus of a cluster: registrations in a database that all nodes share, presence and messages over a router."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from attrs import define, field

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.hpke import Sealer
from layer8.proxy.bus import Change, Lease, Presence, Stop
from layer8.proxy.registration import Registration


class Book(Protocol):
    """The durable half of a bus; see `layer8.proxy.bus.Bus`."""

    async def register(self, row: Registration) -> None:
        """Write a registration or a claim down."""

    async def remove(self, row: Registration) -> None:
        """Strike a registration or a claim out."""

    async def registrations(self, since: int = 0) -> tuple[Registration, ...]:
        """Give what stands and is newer than `since`."""

    def watch(self, told: Callable[[Change], None]) -> Stop:
        """Tell every change from now on."""


class Present(Protocol):
    """The ephemeral half."""

    async def lease(self, presence: Presence) -> Lease:
        """Announce a subscription of this node."""

    async def renew(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        """Prolong leases, and give those that are over or fenced out."""

    async def release(self, lease: Lease) -> None:
        """End a lease now."""

    def lookup(self, host: str) -> tuple[Presence, ...]:
        """Give who holds subscriptions for a registered name."""

    async def notify(self, node: bytes, sealed: bytes) -> None:
        """Hand a sealed message to a node."""

    def listen(self, told: Callable[[bytes], None]) -> Stop:
        """Take the sealed messages for this node."""

    def renewed(self, node: bytes) -> None:
        """Take that a node has a new key."""


@define(eq=False)
class ClusterBus:
    """Both halves as one `layer8.proxy.bus.Bus`."""

    book: Book
    present: Present
    sealer: Sealer
    _keys: dict[bytes, bytes] = field(factory=dict, init=False, repr=False)

    def members(self, nodes: Mapping[bytes, bytes]) -> None:
        """Take who belongs to the cluster, with their announced keys; the book's word counts, not the router's."""
        for node in self.sealer.nodes - nodes.keys():
            self.sealer.forget(node)
            self._keys.pop(node, None)
        for node, key in nodes.items():
            if node == self.sealer.node or self._keys.get(node) == key:
                continue
            try:
                self.sealer.know(node, key)
            except RemoteProtocolError:
                continue
            self._keys[node] = key
            self.present.renewed(node)

    async def register(self, row: Registration) -> None:
        """Write a registration or a claim down; see `Bus`."""
        await self.book.register(row)

    async def remove(self, row: Registration) -> None:
        """Strike a registration or a claim out; see `Bus`."""
        await self.book.remove(row)

    async def registrations(self, since: int = 0) -> tuple[Registration, ...]:
        """Give what stands and is newer than `since`."""
        return await self.book.registrations(since)

    def watch(self, told: Callable[[Change], None]) -> Stop:
        """Tell every change from now on."""
        return self.book.watch(told)

    async def lease(self, presence: Presence) -> Lease:
        """Announce a subscription."""
        return await self.present.lease(presence)

    async def renew(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        """Prolong leases and give those that cannot be."""
        return await self.present.renew(leases)

    async def release(self, lease: Lease) -> None:
        """End a lease now."""
        await self.present.release(lease)

    def lookup(self, host: str) -> tuple[Presence, ...]:
        """Give who is present for a registered name."""
        return self.present.lookup(host)

    async def notify(self, node: bytes, sealed: bytes) -> None:
        """Hand a sealed message to a node."""
        await self.present.notify(node, sealed)

    def listen(self, told: Callable[[bytes], None]) -> Stop:
        """Take the sealed messages for this node."""
        return self.present.listen(told)
