"""What one proxy server stands on: its id, its bus, its store, and listeners that somebody else has opened for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from attrs import define, field
from twisted.application.service import IService

from layer8.net.listen import Sockets
from layer8.net.sqlite import Database
from layer8.net.storage import ThreadedStorage
from layer8.proxy.bans import Banned
from layer8.proxy.bus import Bus
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.ground import Ground
from layer8.proxy.remote import Sealer
from layer8.proxy.store import SCHEMA, Carried, Kept, Store

DATABASE = "proxy.db"


class Books(Protocol):
    """Where a server writes down what its bus does not; all of it raises `StorageError`."""

    async def ban(self, ban: Banned) -> None:
        """Write a ban down."""

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Strike bans out."""

    async def carry(self, carried: Mapping[str, Carried]) -> None:
        """Write the byte counts of these hosts."""


async def nothing() -> None:
    """Have nothing to close."""


@define(eq=False)
class Place:
    """See the module. `kept` is what stood in the store at the start, `close` closes it.

    `sealer` is None where there are no other nodes. `first` and `step` number visitors and subscriptions, so that no
    two processes of one machine use the same. `looks_again`: proofs of ownership are looked at again from here.
    `host` is where agents of other nodes dial this one back; `parts` start before the server and stop after it.
    `opened` is told the port for agents once it listens, `others` gives where they may connect instead.
    `guessed` is told who has shown a wrong secret, `killed` that the visitors of a host are to be closed everywhere.
    """

    node: bytes
    bus: Bus
    books: Books
    kept: Kept
    close: Callable[[], Awaitable[None]] = nothing
    sealer: Sealer | None = None
    given: Sockets = field(factory=Sockets)
    first: int = 1
    step: int = 1
    looks_again: bool = True
    host: str = ""
    parts: tuple[IService, ...] = ()
    opened: Callable[[int], None] = lambda port: None
    others: Callable[[], tuple[str, ...]] = lambda: ()
    guessed: Callable[[str], None] = lambda address: None
    killed: Callable[[str], None] = lambda host: None


def open_store(frame: Ground) -> tuple[Store, Callable[[], Awaitable[None]]]:
    """Open the store in the state folder, and say how it is closed; raises StorageError."""
    reactor: Any = frame.reactor
    storage = ThreadedStorage(
        reactor,
        Database(frame.home / DATABASE, SCHEMA),
        lambda ok, why: frame.health.set("storage", ok, why, needed=False),
    )
    return Store(storage, frame.source.loaded.config.proxy.limits.policy_rules), storage.close


def alone(frame: Ground, given: Sockets | None = None) -> Place:
    """Give a server the place of the only node there is; raises StorageError."""
    store, close = open_store(frame)
    kept = store.load()
    bus = LocalBus(frame.reactor, store, frame.key.node_id, kept.rows)
    return Place(frame.key.node_id, bus, store, kept, close, given=given or Sockets())
