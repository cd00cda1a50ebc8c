"""How real nodes come to know others: by hand, by neighbours, by trackers, from memory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from layer8.control.service import wall_clock
from layer8.crypto.descriptor import Role, make
from layer8.crypto.keys import NodeKey, id_text
from layer8.net.sqlite import Database as File
from layer8.node.tracking import ask_trackers, serve_tracker
from layer8.relay import snapshot
from layer8.relay.client import Need, NoPath, Reason
from layer8.relay.limits import T_LINK
from layer8.relay.memory import SCHEMA, Memory
from layer8.relay.service import Relay
from layer8.relay.standing import Circuit
from layer8.testing.storage import InlineStorage
from layer8.tracker.service import Tracker
from layer8.tracker.wire import GetRelays, Track
from tests.relay.nodes import LOOPBACK, OPEN, NodesCase


def named(node: Relay) -> str:
    """Name a node as an option does."""
    return f"{id_text(node.key.node_id)}@{node.listening[0]}"


class FillingCase(NodesCase):
    def setUp(self) -> None:
        self.storages: list[InlineStorage] = []
        self.addCleanup(self.close)  # after everybody who writes there has stopped
        super().setUp()

    async def close(self) -> None:
        for storage in self.storages:
            await storage.close()

    def storage(self, path: Path | None = None) -> InlineStorage:
        self.storages.append(InlineStorage(File(path or self.path(), SCHEMA)))
        return self.storages[-1]

    def path(self) -> Path:
        return Path(self.mktemp())

    def tracker(self) -> tuple[Relay, Tracker]:
        relay = self.made(listen=LOOPBACK, links=1)
        tracker = serve_tracker(relay, self.storage())
        relay.startService()
        return relay, tracker

    def made(self, *, memory: Memory | None = None, key: NodeKey | None = None, **config: Any) -> Relay:
        """Put a node together that is not started."""
        return self.node(
            key or NodeKey.make(), {"network": "test-nodes", "links": 1} | config, start=False, memory=memory
        )

    def asking(self, trackers: tuple[Relay, ...], **more: Any) -> Relay:
        """Start a node that asks trackers."""
        node = self.made(trackers=tuple(map(named, trackers)), **({"listen": LOOPBACK} | more))
        ask_trackers(node, 3)
        node.startService()
        return node


class NeighbourTests(FillingCase):
    async def test_one_peer_by_hand_is_enough(self) -> None:
        hub = self.relay(links=4)
        others = [self.relay(peers=(named(hub),)) for _ in range(3)]
        await self.until(lambda: len(hub.database) == 3)
        client = self.client(peers=(named(hub),))
        await self.until(lambda: len(client.database) == 4)
        self.assertEqual(client.database.pins, {hub.key.node_id})
        circuit = await client.client.build(Need())
        self.assertEqual(len(circuit.path), 3)
        self.assertIsNone(hub.database.get(client.key.node_id))
        del others

    async def test_a_peer_that_says_nothing_holds_nobody_up(self) -> None:
        first, tracker = self.tracker()
        relays = [self.asking((first,)) for _ in range(3)]
        with socket.socket() as silent:  # takes connections, and says nothing
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            dead = f"{id_text(NodeKey.make().node_id)}@tcp:127.0.0.1:{silent.getsockname()[1]}"
            client = self.asking((first,), relay=False, peers=(dead,))
            begun = client.seconds()
            await self.until(lambda: len(client.database) == 4)
            self.assertLess(client.seconds() - begun, T_LINK)
            await client.stopService()
        del tracker, relays

    async def test_a_relay_keeps_as_many_links_as_it_wants(self) -> None:
        relays = [self.relay() for _ in range(4)]
        wanting = self.relay(links=3)
        self.introduce(wanting, *relays)
        await self.until(lambda: len(list(wanting.links)) >= 3)
        (lost, *_) = list(wanting.links)
        gone = next(node for node in relays if node.key.node_id == lost.peer)
        await gone.stopService()
        await self.until(lambda: len(list(wanting.links)) >= 3 and wanting.links.get(gone.key.node_id) is None)


class TrackerTests(FillingCase):
    async def listed(self, tracker: Tracker, count: int) -> None:
        """Wait until a tracker lists so many."""
        await self.until(lambda: len(tracker.index) == count)

    async def test_relays_are_listed_found_and_forgotten(self) -> None:
        pair = [self.tracker() for _ in range(2)]
        trackers = tuple(relay for relay, _ in pair)
        lists = [tracker.index for _, tracker in pair]
        relays = [self.asking(trackers, **(OPEN if number == 2 else {})) for number in range(3)]
        await self.until(lambda: all(len(one) == 3 for one in lists))
        client = self.asking(trackers, relay=False)
        await self.until(lambda: len(client.database) >= 5)
        self.assertEqual([len(one) for one in lists], [3, 3])  # whoever does not relay is on no list
        circuit = await client.client.build(Need(port=80))
        self.assertEqual(circuit.path[-1].identity, relays[2].key.node_id)
        peer = client.database.get(relays[2].key.node_id)
        assert peer is not None
        self.assertTrue({one.key.node_id for one in trackers} & peer.told)
        await relays[0].stopService()
        self.assertEqual([one.get(relays[0].key.node_id) for one in lists], [None, None])

    async def test_a_node_behind_gateways_is_listed_and_one_that_only_says_so_is_not(self) -> None:
        first, tracker = self.tracker()
        gateway = self.relay()
        self.introduce(first, gateway)
        for peers, lists in (((named(gateway),), 1), ((named(first),), 2)):
            dark = self.asking((first,), listen=(), peers=peers)
            await self.listed(tracker, lists)
            listed = tracker.index.get(dark.key.node_id)
            assert listed is not None and dark.descriptor is not None
            self.assertEqual(listed.endpoints, ())
        false = make(
            NodeKey.make(),
            first.network,
            onion_key=bytes(range(32)),
            endpoints=(),
            via=(gateway.key.node_id,),
            now=wall_clock(),
            serial=1,
        )
        self.assertFalse(await first.proves(false))

    async def test_a_change_is_published(self) -> None:
        first, tracker = self.tracker()
        relay = self.asking((first,))
        await self.until(lambda: tracker.index.get(relay.key.node_id))
        relay.roles |= Role.MIX
        relay.introduce()

        def told() -> bool:
            listed = tracker.index.get(relay.key.node_id)
            return listed is not None and bool(listed.roles & Role.MIX)

        await self.until(told)

    async def test_once_relays_are_known_a_tracker_does_not_see_who_asks(self) -> None:
        first, tracker = self.tracker()
        relays = [self.asking((first,)) for _ in range(4)]
        await self.until(lambda: len(tracker.index) == 4)
        client = self.made(relay=False, listen=(), trackers=(named(first),))
        ask_trackers(client, 3)
        now = wall_clock()
        for one in (first, *relays):
            assert one.descriptor is not None
            client.database.learn(one.descriptor, b"s" * 32, now)
        asked: list[bytes | None] = []
        role: Any = first.circuits.roles[Track.GET_RELAYS]
        real = role.asked

        def note(asker: Any, command: int, data: bytes, at: float) -> None:
            if command == Track.GET_RELAYS:
                asked.append(asker.neighbour)
            real(asker, command, data, at)

        role.asked = note
        client.startService()
        client.pool.spares = 0
        asked.clear()
        _, ask = client.trackers()[0]
        await ask(Track.GET_RELAYS, GetRelays(5, 0, 0).encode(), (Track.RELAY_LIST,))
        self.assertTrue(asked and None not in asked)


class MemoryTests(FillingCase):
    async def test_with_all_trackers_gone_circuits_are_built_from_memory(self) -> None:
        first, tracker = self.tracker()
        relays = [self.asking((first,), **(OPEN if number == 3 else {})) for number in range(4)]
        await self.until(lambda: len(tracker.index) == 4)
        path, key = self.path(), NodeKey.make()
        client = self.made(memory=Memory(self.storage(path)), key=key, relay=False, listen=(), trackers=(named(first),))
        ask_trackers(client, 3)
        client.startService()
        await self.until(lambda: len(client.database) == 5)
        await client.client.build(Need(port=80))
        guards = client.guards.ids()
        await client.stopService()
        await first.stopService()
        client = self.made(memory=Memory(self.storage(path)), key=key, relay=False, listen=(), trackers=(named(first),))
        ask_trackers(client, 3)
        client.startService()
        circuit = await client.client.build(Need(port=80))
        self.assertEqual((len(circuit.path), len(client.database)), (3, 5))
        self.assertTrue(guards <= client.guards.ids())
        self.assertNotIn(first.key.node_id, {one.identity for one in circuit.path})
        del relays

    async def test_a_network_with_no_tracker_at_all(self) -> None:
        hub = self.relay(links=5)
        leaving = self.exit(peers=(named(hub),))
        middle = self.relay(peers=(named(hub),))
        await self.until(lambda: len(hub.database) == 2)
        client = self.client(peers=(named(hub),))
        await self.until(lambda: len(client.database) == 3)
        self.assertEqual(len((await client.client.build(Need(port=80))).path), 3)
        del leaving, middle


class SnapshotTests(FillingCase):
    async def test_only_relays_on_the_signed_list_are_drawn(self) -> None:
        signer, home = NodeKey.make(), self.path()
        home.mkdir()
        relays = [*(self.relay() for _ in range(3)), self.exit()]
        ids = [one.key.node_id for one in relays[1:]]
        config = {"network": "test-nodes", "relay": False, "listen": (), "hops": 3}
        config |= {"snapshot_keys": (id_text(signer.node_id),), "snapshot_file": "list"}
        client = self.node(NodeKey.make(), config, start=False, home=home)
        client.startService()
        self.introduce(*relays, client)
        with self.assertRaises(NoPath):
            await client.client.build(Need(port=80))
        now = wall_clock()
        unsigned = snapshot.write(ids, client.network, now, now + 1000)
        (home / "list").write_bytes(snapshot.sign(unsigned, signer))
        client._read_list()
        for _ in range(6):
            circuit = await client.client.build(Need(port=80))
            self.assertEqual({one.identity for one in circuit.path}, set(ids))


class InboxTests(FillingCase):
    async def test_a_message_and_one_more_on_the_same_circuit(self) -> None:
        one, two, there, client = self.net()
        sent = await client.inbox.send(id_text(there.key.node_id)[:8], "hello")
        again = await client.inbox.send(id_text(there.key.node_id), "signed", client.key)
        self.assertTrue(sent.new and sent.ms > 0)
        self.assertEqual([letter.text for letter in there.inbox.letters], [b"hello", b"signed"])
        self.assertEqual([letter.sender for letter in there.inbox.letters], [b"", client.key.node_id])
        third = await client.inbox.send(id_text(there.key.node_id), "again", client.key)
        self.assertEqual((third.new, third.circuit), (False, again.circuit))
        self.assertEqual(one.inbox.letters + two.inbox.letters, [])
        circuit = client.pool.circuits[third.circuit]
        self.assertEqual(len(circuit.path), 3)
        circuit.close()
        self.assertTrue((await client.inbox.send(id_text(there.key.node_id), "anew", client.key)).new)
        self.assertEqual(len(there.inbox.letters), 4)

    async def test_it_survives_a_restart(self) -> None:
        path, key = self.path(), NodeKey.make()
        there = self.made(memory=Memory(self.storage(path)), key=key, listen=LOOPBACK)
        there.startService()
        others = [self.relay(), self.relay(), self.client()]
        self.introduce(there, *others)
        await others[2].inbox.send(id_text(key.node_id), "kept")
        await there.stopService()
        there = self.made(memory=Memory(self.storage(path)), key=key, listen=())
        there.startService()
        self.assertEqual([letter.text for letter in there.inbox.letters], [b"kept"])


class CreditTests(FillingCase):
    """G18: who carries more for us is served first."""

    async def drop(self, circuit: Circuit, end: Relay, cells: int) -> None:
        """Send cells that say nothing, and wait for them to be there."""
        (there,) = [one for one in end.circuits.all.values() if one.binding == circuit.origin.binding]
        before = there.cells_forward
        circuit.origin.drop(cells)
        await self.until(lambda: there.cells_forward >= before + cells)

    async def test_what_is_carried_is_counted_on_both_sides(self) -> None:
        one, two, leaving, client = self.net()
        other = self.relay()
        self.introduce(other, one, two, leaving)
        got = self.open(client.client, 1, one, two, leaving)
        await self.until(lambda: got.reason)
        self.assertEqual(got.reason, Reason.REFUSED)
        circuit = await self.circuit(other, one, two, leaving)
        await self.drop(circuit, leaving, 200)
        for node in (one, two, other):
            node._count()
        mine, theirs = other.credit.get(one.key.node_id), one.credit.get(other.key.node_id)
        assert mine is not None and theirs is not None
        # The other way goes what neighbours ask each other now and then: some cells.
        self.assertTrue(mine.for_me >= 200 * 2048 and mine.by_me < 50 * 2048, mine)
        self.assertTrue(theirs.by_me >= 200 * 2048 and theirs.for_me < 50 * 2048, theirs)
        for _ in range(10):
            await self.drop(circuit, leaving, 200)
        other._count()
        link = other.links.get(one.key.node_id)
        assert link is not None
        self.assertEqual(link.weight, 4.0)
        self.assertEqual([x.weight for x in one.links if x.peer == other.key.node_id], [1.0])
