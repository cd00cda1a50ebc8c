"""Changes to registrations: planned by the registry, written through the bus, then true for visitors and agents.

One change at a time. A change that was begun is finished even if its caller has gone: what is written down and what is
served must not part.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

from layer8.control.errors import Conflict
from layer8.core.errors import StorageError, Unavailable
from layer8.proxy.bus import Bus, Change, Gone
from layer8.proxy.choose import Seats
from layer8.proxy.limits import PROVING
from layer8.proxy.orders import Mode, Register, Rotate, Update
from layer8.proxy.prove import Prover
from layer8.proxy.registration import Ownership, Registration, looked, proof_wanted
from layer8.proxy.registry import Registry, changeable
from layer8.proxy.wire import Code, Denied

LOOKED_AT_ONCE = 8  # proofs looked at again one after the other

T = TypeVar("T")


@define(eq=False)
class Ledger:
    """See the module; `wall` gives seconds since 1970. All methods raise `Denied`, `StorageError` or `Unavailable`."""

    registry: Registry
    bus: Bus
    seats: Seats
    prover: Prover
    wall: Callable[[], float]
    mode: Mode = "raw"
    frozen: bool = field(default=False, init=False)
    """Whether another process is to go on with the registrations: nothing is changed any more."""
    _lock: DeferredLock = field(factory=DeferredLock, init=False)
    _proving: int = field(default=0, init=False)
    _over: list[Registration] = field(factory=list, init=False)  # expired, and not yet struck out

    def __attrs_post_init__(self) -> None:
        """Follow the bus from here on."""
        self.bus.watch(self._changed)

    async def start(self) -> None:
        """Take what was registered before."""
        for row in await self.bus.registrations():
            self.registry.put(row)

    async def set_static(self, rows: Iterable[Registration]) -> None:
        """Let exactly these be the hosts of the configuration file; one that stood before them comes back after."""
        gone = {row.host for row in self.registry.put_static(rows)}
        for row in await self.bus.registrations():
            if row.host in gone and row.state is not Ownership.PENDING:
                self.registry.put(row)
        for host in gone | {row.host for row in self.registry.hosts() if row.static}:
            standing = self.registry.row(host)
            self.seats.keep_keys(host, [] if standing is None else standing.good_keys(self.wall()))

    async def register(self, asked: Register, owner: str, free: bool) -> Registration:
        """Register a host, or claim it if its owner has to show that it is theirs."""

        async def change() -> Registration:
            row = self.registry.plan_register(asked, owner=owner, free=free, mode=self.mode, now=self.wall())
            await self.bus.register(row)
            return row

        return await self._finish(change)

    async def update(self, asked: Update, owner: str | None) -> Registration:
        """Change ports, policy, mode or expiry; `owner` None is an admin.

        Raises `Conflict` if the registration is not the one that the caller looked at.
        """

        async def change() -> Registration:
            row = self.registry.of(self.registry.name(asked.host), owner)
            if asked.version is not None and asked.version != row.version:
                raise Conflict(row.version)
            new = self.registry.plan_update(row, asked, self.wall())
            await self.bus.register(new)
            return new

        return await self._finish(change)

    async def rotate(self, asked: Rotate, owner: str | None) -> Registration:
        """Add a secret and let the older ones retire."""

        async def change() -> Registration:
            row = self.registry.of(self.registry.name(asked.host), owner)
            new = self.registry.plan_rotate(row, asked, self.wall())
            await self.bus.register(new)
            return new

        return await self._finish(change)

    async def unregister(self, host: str, owner: str | None) -> Registration:
        """Take a host or a claim away."""

        async def change() -> Registration:
            row = self.registry.of(self.registry.name(host), owner)
            changeable(row)
            await self.bus.remove(row)
            return row

        return await self._finish(change)

    async def prove(self, host: str, owner: str | None) -> Registration:
        """Look for the proof of ownership now; a claim whose proof is there becomes a registration."""
        row = self.registry.of(self.registry.name(host), owner)
        if row.state in (Ownership.OWNED, Ownership.PROVEN):
            return row
        if self._proving >= PROVING:
            raise Denied(Code.NO_CAPACITY, "too many proofs are looked for at this moment", limit="PROVING")
        wanted = proof_wanted(row.host, row.owner)
        self._proving += 1
        try:
            found = await self.prover.look(wanted)
        finally:
            self._proving -= 1
        if not found:
            words = f"found neither {wanted.txt_value} at {wanted.txt_name}" + (
                f" nor {wanted.url}" if wanted.url else ""
            )
            raise Denied(Code.NOT_PROVEN, words, txt_name=wanted.txt_name, txt_value=wanted.txt_value, url=wanted.url)
        proven = await self._finish(partial(self._looked, row, True))
        if proven is None:
            raise Denied(Code.LEASE_EXPIRED, "the registration is gone meanwhile")
        return proven

    async def turn(self) -> None:
        """Do what time asks for: end what has expired, part with those whose secrets have retired.

        What has expired is over at once; where that cannot be written down it is tried again next time.
        """
        if self.frozen:
            return
        now = self.wall()
        for row in self.registry.ended(now):
            self._changed(Gone(row))
            self._over.append(row)
        await self._finish(self._strike_out)
        for row in self.registry.retired(now):
            self.seats.keep_keys(row.host, row.good_keys(now))

    async def look_again(self) -> None:
        """Look at old proofs again, a few each time; this takes as long as DNS and web servers take."""
        for row in self.registry.to_look_at(self.wall(), LOOKED_AT_ONCE):
            found = await self.prover.look(proof_wanted(row.host, row.owner))
            await self._finish(partial(self._looked, row, found))

    async def _strike_out(self) -> None:
        while self._over:
            row = self._over[-1]
            if self.registry.row(row.host) is None:
                try:
                    await self.bus.remove(row)
                except (StorageError, Unavailable):
                    return
            self._over.pop()

    async def _looked(self, row: Registration, found: bool) -> Registration | None:
        """Write down what a look at a proof has changed, unless the registration is gone meanwhile."""
        standing = self.registry.claim(row.host, row.owner) or self.registry.row(row.host)
        if standing is None or standing.owner != row.owner:
            return None
        new = looked(standing, found, self.registry.version + 1, self.wall())
        if new is None:
            return standing
        if found:
            self.registry.plan_proven(standing)
        await self.bus.register(new)
        return new

    def _changed(self, change: Change) -> None:
        """Let a change be true here, whichever node made it."""
        row = change.row
        if isinstance(change, Gone):
            self.registry.drop(row)
            if row.state is not Ownership.PENDING:
                self.seats.drop_host(row.host)
            return
        self.registry.put(row)
        if row.state is Ownership.SUSPENDED:
            self.seats.drop_host(row.host)
        elif row.state is not Ownership.PENDING:
            self.seats.keep_keys(row.host, row.good_keys(self.wall()))

    async def _finish(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make one change when those before it are made; cancelling forgets its result, never the change."""
        if self.frozen:
            raise Unavailable("another process is taking over; try again")
        result: Deferred[T] = Deferred(lambda _: None)

        def give(outcome: T | Failure) -> None:
            if not result.called:
                result.callback(outcome)

        made: Deferred[T] = self._lock.run(lambda: Deferred.fromCoroutine(change()))
        made.addBoth(give)
        return await result
