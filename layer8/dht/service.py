"""A node of the DHT on a UDP port: its session, what it keeps on disk, and its searches as coroutines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.address import is_address
from layer8.core.chance import Chance
from layer8.core.errors import LimitExceeded, RemoteProtocolError, StorageError, Unavailable
from layer8.core.network import Network
from layer8.crypto.items import Item, Record
from layer8.crypto.keys import NodeKey
from layer8.dht.jobs import Done, Stats
from layer8.dht.limits import SAVED_NODES
from layer8.dht.session import Dht
from layer8.dht.store import Held, Name, read_item, write_item
from layer8.dht.table import Entry
from layer8.dht.wire import Contact
from layer8.net.datagram import Datagrams, DatagramService, UdpEndpoint
from layer8.net.storage import Change, Drop, Put, Storage, Value

OPTION: Final = "dht.listen"
SAVE: Final = 60.0  # seconds between writes of what has changed
LOOK: Final = 1.0  # seconds between looks for nodes while none is known
BATCH: Final = 500  # rows of one transaction
EVERYWHERE: Final = ("0.0.0.0", "::")

SCHEMA: Final = (
    """
    CREATE TABLE items (
        name BLOB NOT NULL PRIMARY KEY, kind INTEGER NOT NULL, item BLOB NOT NULL, put REAL NOT NULL,
        born REAL NOT NULL, source TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE nodes (
        id BLOB NOT NULL PRIMARY KEY, host TEXT NOT NULL, port INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
)  # one script for each version of the schema


class DhtService(Service):
    """See the module. `wall` gives seconds since 1970, `peers` where nodes may be while none is known."""

    _log = Logger(namespace="layer8.dht")

    def __init__(
        self,
        reactor: Any,
        key: NodeKey,
        network: Network,
        listen: str,
        chance: Chance,
        randbytes: Callable[[int], bytes],
        wall: Callable[[], float],
        seconds: Callable[[], float],
        storage: Storage | None = None,
        *,
        open: bool = False,
        read_only: bool = False,
        peers: Callable[[], Iterable[tuple[str, int]]] = tuple,
    ) -> None:
        """Put it together, listening nowhere yet; raises `ConfigError` for a wrong `listen`."""
        endpoint = UdpEndpoint.parse(listen)
        self.reactor = reactor
        self.seconds = seconds
        self.wall = wall
        self._storage = storage
        self._peers = peers
        self._interface = endpoint.interface
        only = read_only or (network.ruled and endpoint.loopback)
        self.session = Dht(key, network, chance, randbytes, wall() - seconds(), open=open, read_only=only)
        self.port = Datagrams(self.session, self, reactor, seconds)
        self._service = DatagramService(reactor, endpoint, self.port, OPTION)
        self._waiting: dict[int, Deferred[Done]] = {}
        self._books = LoopingCall(self._save)
        self._books.clock = reactor
        self._look = LoopingCall(self._renew)
        self._look.clock = reactor

    # As a service.

    def startService(self) -> None:
        """Listen; raises `Unavailable`. What was kept is read first."""
        Service.startService(self)
        known = self._load()
        self.session.bootstrap = tuple(self._peers())
        self._service.startService()
        if self._interface not in EVERYWHERE:
            self.session.bound = self._interface, UdpEndpoint.parse(self._service.text).port
        self.session.know(known, self.seconds())
        self.port.carry_out()
        self._books.start(SAVE, now=False)
        self._look.start(LOOK, now=False)

    def stopService(self) -> Deferred[None]:
        """Write everything down, and leave the port."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for loop in (self._books, self._look):
            if loop.running:
                loop.stop()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.errback(Failure(Unavailable("the DHT is stopping")))
        await self._service.stopService()
        await self._save()

    @property
    def listening(self) -> str:
        """Where it listens, with the port that was really taken."""
        return self._service.text

    # Searches.

    async def find(self, target: bytes) -> Done:
        """Find the nodes nearest to a target."""
        return await self._wait(lambda now: self.session.find(target, now))

    async def get(self, target: bytes, salt: bytes = b"") -> Done:
        """Search an item."""
        return await self._wait(lambda now: self.session.get(target, now, salt=salt))

    async def records(self, target: bytes) -> Done:
        """Search records of a set."""
        return await self._wait(lambda now: self.session.records(target, now))

    async def put(self, item: Item) -> Done:
        """Store an item or a record."""
        return await self._wait(lambda now: self.session.put(item, now))

    def good(self, item: Item) -> bool:
        """Say whether others would take an item."""
        if isinstance(item, Record):
            return item.good(self.wall(), least=self.session.least)
        return item.good()

    def offer(self, item: Item) -> None:
        """Put an item of this node, and every hour again."""
        self.session.offer(item, self.seconds())
        self.port.carry_out()

    def take_back(self, name: Name) -> None:
        """Do so no more."""
        self.session.take_back(name)

    def stats(self) -> Stats:
        """Give the counts of now."""
        return self.session.stats()

    def entries(self) -> list[Entry]:
        """Give the nodes of the table."""
        return list(self.session.table)

    async def _wait(self, begin: Callable[[float], int]) -> Done:
        if not self.running:
            raise Unavailable("the DHT is not running")
        try:
            number = begin(self.seconds())
        except LimitExceeded as error:
            raise Unavailable(f"too many searches: {error}") from None
        waiting: Deferred[Done] = Deferred()
        self._waiting[number] = waiting
        self.port.carry_out()
        try:
            return await waiting
        except CancelledError:
            self.session.cancel(number)
            raise
        finally:
            self._waiting.pop(number, None)

    # What the port says: `layer8.net.datagram.DatagramOwner`.

    def told(self, port: Datagrams, what: object) -> None:
        """Give a result to who waits for it."""
        if isinstance(what, Done):
            waiting = self._waiting.pop(what.number, None)
            if waiting is not None:
                waiting.callback(what)

    def ended(self, port: Datagrams, reason: str) -> None:
        """Leave the port: a bug of ours, which is logged already."""
        self._service.stopService()

    # The disk.

    def _load(self) -> list[Contact]:
        if self._storage is None:
            return []
        now, store = self.wall(), self.session.store
        found, gone = [], []
        for row in self._storage.rows("items"):
            held = _held(row)
            if held is None or held.expires <= now:
                gone.append(Drop("items", {"name": row["name"]}))
            else:
                found.append(held)
        for held in sorted(found, key=lambda one: one.put):
            store.restore(held, now)
        self._write(gone)
        return [
            Contact(row["id"], row["host"], int(row["port"]))
            for row in self._storage.rows("nodes")
            if isinstance(row["id"], bytes) and isinstance(row["host"], str) and isinstance(row["port"], int)
        ]

    def _renew(self) -> None:
        """Hear who has come to be known; a node that has just joined knows nobody before trackers have answered."""
        if not len(self.session.table):
            self.session.seed(tuple(self._peers()), self.seconds())
            self.port.carry_out()

    async def _save(self) -> None:
        """Write what has changed; what cannot be written is tried again with what changes next."""
        store = self.session.store
        names, store.changed = store.changed, set()
        changes: list[Change] = []
        for name in names:
            held = store.held(name)
            changes.append(Drop("items", {"name": name}) if held is None else _row(held))
        entries = sorted(self.session.table, key=lambda one: one.since)[:SAVED_NODES]
        changes.append(Drop("nodes", {}))
        for entry in entries:
            at: dict[str, Value] = {"id": entry.contact.id, "host": entry.contact.host, "port": entry.contact.port}
            changes.append(Put("nodes", at))
        if self._storage is None:
            return
        try:
            for start in range(0, len(changes), BATCH):
                await self._storage.write(*changes[start : start + BATCH])
        except StorageError as error:
            store.changed |= names
            self._log.warn("the DHT's items were not written: {why}", event="dht.not_saved", why=str(error))

    def _write(self, changes: list[Drop]) -> None:
        if self._storage is not None and changes:
            self._storage.write(*changes).addErrback(lambda reason: reason.trap(StorageError) and None)


def resolved(texts: Iterable[str]) -> list[tuple[str, int]]:
    """Read addresses of nodes, `HOST:PORT` with an IP address as the host."""
    found = []
    for text in texts:
        host, _, port = text.rpartition(":")
        found.append((host.strip("[]"), int(port)))
    return [(host, port) for host, port in found if is_address(host)]


def _held(row: dict[str, Value]) -> Held | None:
    kind, item, put, born, source = (row[name] for name in ("kind", "item", "put", "born", "source"))
    if not isinstance(kind, int) or not isinstance(item, bytes) or not isinstance(source, str):
        return None
    if not isinstance(put, float) or not isinstance(born, float):
        return None
    try:
        return Held(read_item(kind, item), put, born, source)
    except RemoteProtocolError:
        return None  # written by another version


def _row(held: Held) -> Put:
    kind, item = write_item(held.item)
    return Put(
        "items",
        {
            "name": held.name,
            "kind": kind,
            "item": item,
            "put": float(held.put),
            "born": float(held.born),
            "source": held.source,
        },
    )
