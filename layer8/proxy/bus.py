"""What several nodes of one proxy share: who registered what, and which node holds which subscription.

Registrations are durable; presence is a lease that its node renews and that lapses with it. A bus knows no secret of a
visitor: what it carries between nodes is sealed. `layer8.proxy.bus_local` is a bus of one node, and whoever writes
another holds it against `tests/proxy/bus_suite.py`. Source: proxy.md section 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from attrs import field, frozen

from layer8.proxy.registration import Registration


@frozen
class Put:
    """A registration or a claim is now like this."""

    row: Registration


@frozen
class Gone:
    """A registration or a claim is no more; `row` is how it was last."""

    row: Registration


Change = Put | Gone
Stop = Callable[[], None]


@frozen
class Presence:
    """A subscription for `host`, held by a node; `node` is its 32-byte id.

    `pool` is how many connections its agent would dial ahead to each node that has visitors for it.
    """

    host: str
    node: bytes
    subscription: int
    weight: int = 1
    priority: int = 0
    pool: int = 0


@frozen
class Lease:
    """A presence for BUS_LEASE seconds; of two leases for one presence only the higher generation counts."""

    presence: Presence
    generation: int = field(kw_only=True)


class Bus(Protocol):
    """See the module. What fails because of storage or network raises `StorageError` or `Unavailable`."""

    async def register(self, row: Registration) -> None:
        """Write a registration or a claim down; watchers on all nodes are told, ours before this returns.

        Raises `Denied` with ALREADY_REGISTERED if the name is another owner's, and not just claimed or suspended, and
        `layer8.control.errors.Conflict` if another node has changed it meanwhile.
        """

    async def remove(self, row: Registration) -> None:
        """Strike a registration or a claim out, and tell the watchers; twice does nothing."""

    async def registrations(self, since: int = 0) -> tuple[Registration, ...]:
        """Give what stands and has a version above `since`, lowest version first."""

    def watch(self, told: Callable[[Change], None]) -> Stop:
        """Tell every change from now on, whichever node made it, until the function given back is called."""

    async def lease(self, presence: Presence) -> Lease:
        """Announce a subscription of this node for BUS_LEASE seconds; the same one again fences the older lease out."""

    async def renew(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        """Prolong leases, and give those that are over or fenced out: they have to be made again."""

    async def release(self, lease: Lease) -> None:
        """End a lease now; one that is over or fenced out already is left alone."""

    def lookup(self, host: str) -> tuple[Presence, ...]:
        """Give who holds subscriptions for a registered name, on all nodes, without waiting."""

    async def notify(self, node: bytes, sealed: bytes) -> None:
        """Hand a sealed message to a node; raises `Unavailable` if it cannot be reached."""

    def listen(self, told: Callable[[bytes], None]) -> Stop:
        """Take the sealed messages for this node, until the function given back is called."""
