"""A node and the DHT: it asks by its circuits, says there what it is, and may be one of those who keep it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterator
from os import urandom
from typing import Any, Final

from attrs import define, field
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool

from layer8.config.network import DhtConfig, parse_peer
from layer8.control.service import wall_clock
from layer8.control.table import Table
from layer8.core.errors import Layer8Error, RemoteProtocolError
from layer8.core.place import place
from layer8.crypto.descriptor import Role
from layer8.crypto.items import Draft, Mutable, Record, sha1
from layer8.crypto.work import NONCE
from layer8.dht.answering import Answering
from layer8.dht.asking import Ask, Asking, Source
from layer8.dht.limits import ASK_TIME, REPUT
from layer8.dht.message import Command
from layer8.dht.operate import AskingRows, HoldingRows
from layer8.dht.service import DhtService, resolved
from layer8.net.storage import Storage
from layer8.relay.client import Need
from layer8.relay.service import Relay

SLICE: Final = 20_000  # tries in a thread at a time
STATE: Final = 30.0  # seconds between looks whether the descriptor has changed
BOOT: Final = 32  # addresses that are tried while no node is known
PATIENCE: Final = 10.0  # seconds from the start in which a question waits until somebody is known
ASKS: Final = 8  # questions of one circuit, of those about nothing in particular


def serve_dht(relay: Relay, config: DhtConfig, storage: Storage | None, table: Table | None = None) -> DhtService:
    """Let a node keep items and search for those who ask by a circuit; raises `ConfigError`."""

    def peers() -> Iterator[tuple[str, int]]:
        yield from resolved(config.bootstrap)
        found = _addresses(relay)
        for _, one in zip(range(BOOT), found, strict=False):
            yield one

    service = DhtService(
        relay.reactor,
        relay.key,
        relay.network,
        config.listen,
        relay.chance,
        urandom,
        wall_clock,
        relay.seconds,
        storage,
        open=config.open,
        read_only=config.read_only or not relay.config.relay,
        peers=peers,
    )
    ids: dict[bytes, bytes] = {}

    def descriptor(node: bytes) -> bytes | None:
        if node not in ids:
            ids.clear()
            ids.update((sha1(peer.identity), peer.identity) for peer in relay.database)
        peer = relay.database.get(ids.get(node, b""))
        return None if peer is None or not relay.database.live(peer, wall_clock()) else peer.descriptor.raw

    answering = Answering(service, relay.tasks.start, descriptor, urandom(32), wall_clock)
    relay.serve(answering, Role.DHT)
    if table is not None:
        table.add(HoldingRows(service))
    return service


def ask_dht(relay: Relay, table: Table | None = None) -> Asking:
    """Let a node ask those who keep the DHT, by its circuits."""
    asks = 0

    def sources() -> list[Source]:
        now = wall_clock()
        live = (peer for peer in relay.database if relay.database.live(peer, now))
        return [Source(one.identity, asking(one.identity)) for one in live if one.descriptor.roles & Role.DHT]

    def asking(identity: bytes) -> Ask:
        async def ask(about: bytes, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
            nonlocal asks
            asks += not about
            # Whoever knows whose item it is may hold the last hop, and looks for our guard beside it.
            far = command == Command.STORE and about != relay.key.node_id
            key = ("dht", about or asks // ASKS)
            need = Need(key=key, last=identity, hops=relay.client.hops + far, layer2=far)
            return await relay.client.ask(need, command, data, answers, ASK_TIME)

        return ask

    def learn(source: bytes, raws: list[bytes]) -> object:
        return relay.database.took(source, raws, wall_clock())

    asked = Asking(sources, relay.network, relay.chance, relay.reactor, wall_clock, learn, patience=PATIENCE)
    if table is not None:
        work = worker(relay.reactor)
        table.add(AskingRows(asked, relay.key, relay.chance, wall_clock, work, relay.network.ruled))
    return asked


@define(eq=False)
class Stating:
    """Keeps the node's own descriptor in the DHT, under its own key, so that who has the key finds it (G36)."""

    _relay: Relay
    _asking: Asking
    _service: DhtService | None
    _said: bytes = field(default=b"", init=False)
    _at: float = field(default=0.0, init=False)
    _loop: LoopingCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Look now and then."""
        self._loop = LoopingCall(lambda: self._relay.tasks.start("dht descriptor", self._look()))
        self._loop.clock = self._relay.reactor

    def start(self) -> None:
        """Begin."""
        self._loop.start(STATE)

    def stop(self) -> None:
        """End."""
        if self._loop.running:
            self._loop.stop()

    async def _look(self) -> None:
        own, now = self._relay.descriptor, self._relay.seconds()
        if own is None or (own.raw == self._said and now - self._at < REPUT):
            return
        key = self._relay.key
        item = Mutable.make(key.node_id, key.sign, own.serial, own.raw)
        before, self._said, self._at = (self._said, self._at), own.raw, now
        if self._service is not None:
            if own.raw != before[0]:
                self._service.offer(item)  # every hour from now on
            return
        try:
            await self._asking.put(item)
        except Layer8Error:
            self._said, self._at = before  # nobody to ask yet


def _addresses(relay: Relay) -> Iterator[tuple[str, int]]:
    """Give where nodes of the DHT are: UDP at the port of their links."""
    for text in relay.config.peers:
        try:
            at = place(parse_peer(text)[1])
        except RemoteProtocolError:
            continue
        if at.address:
            yield at.host, at.port
    for peer in relay.database:
        if peer.descriptor.roles & Role.DHT and peer.identity != relay.key.node_id:
            yield from ((at.host, at.port) for at in peer.descriptor.places if at.address and at.port)


def worker(reactor: Any) -> Callable[[Draft], Awaitable[Record]]:
    """Give what does the work of a record, in a thread and in slices."""

    async def work(draft: Draft) -> Record:
        nonce, start = None, urandom(NONCE)
        while nonce is None:
            nonce, start = await deferToThreadPool(reactor, reactor.getThreadPool(), draft.search, start, SLICE)
        return draft.record(nonce)

    return work
