"""Nodes on real ports of loopback: searches, restarts; and a client that asks them by real circuits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import urandom
from pathlib import Path
from random import SystemRandom
from time import monotonic
from typing import Any

from attrs import define
from twisted.internet.defer import gatherResults

from layer8.config.network import DhtConfig
from layer8.control.service import wall_clock
from layer8.control.table import Table
from layer8.core.datagram import DatagramEffect, Peer
from layer8.core.errors import Layer8Error, Unavailable
from layer8.core.network import Network
from layer8.crypto.items import Draft, Immutable, Mutable, sha1
from layer8.crypto.keys import NodeKey
from layer8.dht.asking import Asking
from layer8.dht.message import Command, Retrieve, Store
from layer8.dht.operate import HoldingRows
from layer8.dht.service import SCHEMA, DhtService
from layer8.dht.session import Dht
from layer8.net.sqlite import Database
from layer8.node.counting import DhtMetrics
from layer8.node.holding import Stating, ask_dht, serve_dht
from layer8.relay.service import Relay
from layer8.testing.storage import InlineStorage
from tests.control.callers import caller
from tests.dht.nets import key
from tests.relay.nodes import LOOPBACK, NodesCase

ANY = "udp:0:interface=127.0.0.1"


def about(command: int, data: bytes) -> bytes:
    """Give the target that is asked for, or the key of what is put."""
    if command == Command.RETR:
        return Retrieve.read(data).target
    item = Store.read(data).item
    assert isinstance(item, Mutable)
    return item.key


@define(eq=False)
class Heard:
    """A session whose datagrams somebody else sees first."""

    _session: Dht
    _hear: Callable[[bytes, Peer], None]

    def received(self, data: bytes, peer: Peer, now: float) -> None:
        self._hear(data, peer)
        self._session.received(data, peer, now)

    def wake(self, now: float) -> None:
        self._session.wake(now)

    def effects(self) -> Sequence[DatagramEffect]:
        return self._session.effects()

    def deadline(self) -> float | None:
        return self._session.deadline()


class ServiceTests(NodesCase):
    def setUp(self) -> None:
        super().setUp()
        self.services: list[DhtService] = []
        self.addCleanup(self.end)

    async def end(self) -> None:
        for one in self.services:
            if one.running:
                await one.stopService()

    def service(self, number: int, path: Path | None = None, *, alone: bool = False, **more: Any) -> DhtService:
        storage = None if path is None else InlineStorage(Database(path, SCHEMA))
        known = [] if alone else [one.session.bound for one in self.services if one.session.bound is not None]
        made = DhtService(
            self.reactor,
            key(number),
            Network("test-dht"),
            ANY,
            SystemRandom(),
            urandom,
            wall_clock,
            monotonic,
            storage,
            peers=lambda: known[:3],
            **more,
        )
        made.startService()
        self.services.append(made)
        if storage is not None:
            self.addCleanup(storage.close)
        return made

    async def many(self, count: int) -> None:
        for number in range(count):
            self.service(number)
        await self.until(lambda: all(len(one.entries()) >= min(count - 1, 5) for one in self.services))

    async def test_put_and_get(self) -> None:
        await self.many(10)
        mine = Mutable.make(key(90).node_id, key(90).sign, 1, b"value")
        tag = Draft.make(key(91), bytes(20), 2, b"tag", int(wall_clock()) + 900, 1).record()
        for one in (mine, Immutable.of(b"value"), tag):
            self.assertGreaterEqual((await self.services[3].put(one)).stored, 6)
        self.assertEqual((await self.services[7].get(mine.target)).item, mine)
        self.assertEqual((await self.services[8].records(bytes(20))).records, (tag,))
        self.assertIsNone((await self.services[7].get(bytes(20))).item)
        self.assertGreaterEqual(len((await self.services[1].find(bytes(20))).nodes), 6)
        self.assertTrue(self.services[1].listening.startswith("udp:"))

    async def test_peers_that_are_heard_of_later(self) -> None:
        """A node that has just joined knows nobody until trackers have answered; then it does not wait."""
        await self.many(2)
        found: list[Peer] = []
        late = DhtService(
            self.reactor, key(50), Network("test-dht"), ANY, SystemRandom(), urandom, wall_clock, monotonic,
            peers=lambda: found,
        )  # fmt: skip
        late.startService()
        self.services.append(late)
        self.assertEqual(late.entries(), [])
        begun = monotonic()
        assert self.services[1].session.bound is not None
        found.append(self.services[1].session.bound)
        await self.until(late.entries)
        self.assertLess(monotonic() - begun, 5.0)

    async def test_restart(self) -> None:
        """Section 14: items, sets and nodes are there again, and nobody is asked for an address."""
        await self.many(3)
        path = Path(self.mktemp())
        path.mkdir()
        first = self.service(10, path / "dht.db")
        await self.until(lambda: len(first.entries()) == 3)
        mine = Mutable.make(key(90).node_id, key(90).sign, 1, b"value")
        await self.services[0].put(mine)
        self.assertIsNotNone(first.session.store.get(mine.target, wall_clock()))
        await first.stopService()
        again = self.service(10, path / "dht.db", alone=True)
        self.assertEqual(again.session.store.get(mine.target, wall_clock()), mine)
        await self.until(lambda: len(again.entries()) == 3)

    async def test_what_is_counted(self) -> None:
        """The families `layer8_dht_*`; no label says who it was."""
        await self.many(4)
        await self.services[0].put(Immutable.of(b"value"))
        families: dict[str, Any] = {one.name: dict(one.values) for one in DhtMetrics(self.services[1]).families()}
        self.assertEqual(families["layer8_dht_nodes"], {(): 3})
        self.assertEqual(families["layer8_dht_items"], {(): 1})
        self.assertEqual(families["layer8_dht_reader"], {(): 0})
        self.assertGreater(families["layer8_dht_bytes"][()], 5)
        self.assertGreater(families["layer8_dht_queries_total"]["answered",], 2)
        self.assertEqual(set(families["layer8_dht_queries_total"]), {("answered",), ("refused",), ("dropped",)})

    async def test_stopping_ends_searches(self) -> None:
        one = self.service(1)
        found = await one.get(bytes(20))
        self.assertEqual((found.item, found.nodes), (None, ()))
        await one.stopService()
        with self.assertRaises(Unavailable):
            await one.get(bytes(20))


class CircuitTests(NodesCase):
    """The whole way: client, three hops, a node of the DHT, eight holders."""

    def holder(self) -> Relay:
        node = self.node(NodeKey.make(), {"network": "test-nodes", "listen": LOOPBACK}, start=False)
        known = [one.session.bound for one in self.held if one.session.bound is not None]
        boot = tuple(f"{host}:{port}" for host, port in known[:3])
        service = serve_dht(node, DhtConfig(listen=ANY, bootstrap=boot), None, Table(wall_clock))
        service.startService()
        node.startService()
        self.held.append(service)
        return node

    async def begun(self, count: int = 6) -> tuple[list[Relay], Relay, Asking, Table]:
        self.held: list[DhtService] = []
        self.addCleanup(lambda: gatherResults([one.stopService() for one in self.held if one.running]))
        holders = [self.holder() for _ in range(count)]
        client = self.client()
        table = Table(wall_clock)
        asking = ask_dht(client, table)
        await self.until(lambda: all(len(one.entries()) >= count - 1 for one in self.held))
        self.introduce(*holders, client)
        return holders, client, asking, table

    def watch(self) -> None:
        """Remember every datagram that a node of the DHT gets, and see where it came from."""
        self.heard: list[bytes] = []
        for service in self.held:
            service.port.session = Heard(service.session, self.hear)

    def hear(self, data: bytes, peer: Peer) -> None:
        self.heard.append(data)
        self.assertIn(peer, {one.session.bound for one in self.held})

    async def test_put_and_get_by_circuits(self) -> None:
        """G33, G35: the holders see a last hop's address and never the client."""
        _, client, asking, _ = await self.begun()
        self.watch()
        data = bytes(range(256)) * 16
        self.assertGreaterEqual(await asking.put_value(key(1), b"name", 5, data), 4)
        self.assertEqual(await asking.get_value(key(1).node_id, b"name"), data)
        self.assertIsNone(await asking.get(bytes(20)))
        heard = b"".join(self.heard)
        self.assertIn(Mutable.make(key(1).node_id, key(1).sign, 1, b"", b"name/0").target, heard)
        self.assertNotIn(client.key.node_id, heard)
        self.assertNotIn(sha1(client.key.node_id), heard)
        own = {one.session.bound for one in self.held}
        for service in self.held:
            self.assertLessEqual({one.contact.peer for one in service.entries()}, own)
            self.assertTrue(len(service.session.store))
            self.assertEqual({held.source for held in service.session.store}, {"127.0.0.0/24"})

    async def test_each_item_by_a_circuit_of_its_own(self) -> None:
        """No last hop hears by one circuit that somebody wants two things, or what two keys sign."""
        holders, _, asking, _ = await self.begun(5)
        asked: dict[tuple[int, bytes], set[bytes]] = {}

        def watch(number: int, role: Any) -> Callable[..., None]:
            def heard(asker: Any, command: int, data: bytes, now: float) -> None:
                asked.setdefault((number, asker.binding), set()).add(about(command, data))
                type(role).asked(role, asker, command, data, now)

            return heard

        for number, holder in enumerate(holders):
            role = holder.circuits.roles[Command.RETR]
            self.patch(role, "asked", watch(number, role))
        for turn in range(2):  # what is about the same goes by the same
            for owner in (1, 2):
                item = Mutable.make(key(owner).node_id, key(owner).sign, 5 + turn, b"value", b"d")
                await asking.put(item)
                await asking.get(item.target, b"d")
            await asking.fetch(Immutable.of(b"value").target)
        self.assertEqual({len(one) for one in asked.values()}, {1})
        self.assertGreaterEqual(len(asked), 10)

    async def test_a_put_goes_by_second_hops_that_are_kept(self) -> None:
        """Nobody at the last hop gets to a service's guard by waiting for the next middle of a circuit."""
        _, client, asking, _ = await self.begun()
        for number in range(3):
            one = key(number)
            await asking.put(Mutable.make(one.node_id, one.sign, 5, b"value", b"d"))
            await asking.get(sha1(one.node_id, b"d"), b"d")
        paths: dict[bool, list[tuple[bytes, ...]]] = {False: [], True: []}
        for circuit in client.client.pool.rows():
            if circuit.need is not None and circuit.need.last:
                paths[circuit.need.layer2].append(tuple(one.identity for one in circuit.path))
        kept = {hop.identity for hop in client.layer2.rows}
        self.assertEqual({len(path) for path in paths[True]}, {4})
        self.assertEqual({len(path) for path in paths[False]}, {3})
        self.assertLessEqual({path[1] for path in paths[True]}, kept)

    async def test_a_node_states_what_it_is(self) -> None:
        """G36."""
        holders, _, asking, _ = await self.begun(4)
        stating = Stating(holders[0], asking, self.held[0])
        stating.start()
        self.addCleanup(stating.stop)
        wanted = holders[0].key.node_id

        async def there() -> bool:
            found = await asking.descriptor(wanted)
            return found is not None and found.identity == wanted

        for _ in range(50):
            if await there():
                break
            await self.sleep(0.05)
        else:
            self.fail("it is not there")
        listed = await asking.nodes(bytes(20))
        self.assertIn(wanted, {one.identity for one in listed})

    async def test_the_rows(self) -> None:
        _, client, _, table = await self.begun()
        table.add(HoldingRows(self.held[0]))

        async def call(name: str, **params: Any) -> Any:
            return await table.call(caller("operate"), name, params)

        stored = await call("dht.put", value="aGVsbG8")
        self.assertEqual(stored["target"], Immutable.of(b"hello").target.hex())
        self.assertGreaterEqual(stored["nodes"], 4)
        got = await call("dht.get", target=stored["target"])
        self.assertEqual((got["found"], got["value"]), (True, "NTpoZWxsbw"))
        stored = await call("dht.put", value="aGVsbG8", salt="word", seq=7)
        got = await call("dht.get", key=client.key.text, salt="word")
        self.assertEqual((got["target"], got["seq"], got["key"]), (stored["target"], 7, client.key.text))
        self.assertFalse((await call("dht.get", target="00" * 20))["found"])
        await call("dht.add", target="11" * 20, kind=2, data="dGFn")
        (row,) = (await call("dht.list", target="11" * 20))["records"]
        self.assertEqual((row["kind"], row["data"]), (2, "dGFn"))
        self.assertNotEqual(row["key"], client.key.text)
        self.assertGreaterEqual(len((await call("dht.nodes"))["nodes"]), 5)
        self.assertEqual((await call("dht.stats"))["nodes"], 5)
        for name, params in {"dht.get": {}, "dht.list": {}, "dht.put": {"value": "AAAA", "salt": "x" * 65}}.items():
            with self.assertRaises(Layer8Error):
                await call(name, **params)
