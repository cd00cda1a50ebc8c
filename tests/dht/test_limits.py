"""Limits of the DHT that no ordinary day reaches: each is driven to its end here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.datagram import Peer, SendTo
from layer8.core.errors import LimitExceeded
from layer8.core.network import Network
from layer8.crypto.items import Immutable
from layer8.dht import answering, rates, service, session
from layer8.dht.answering import Answering
from layer8.dht.limits import (
    BOOTSTRAP,
    KRPC_IN_ALL,
    LATE,
    LOOKUP_TIME,
    LOOKUPS,
    PATH_NODES,
    PROOFS,
    REFRESH,
    REPUT,
    REPUTS,
    RTT_TIMES,
    SAVED_NODES,
    TID_MAX,
    TIMEOUT_LEAST,
    TIMEOUT_MOST,
)
from layer8.dht.lookup import Lookup, State
from layer8.dht.message import Command, Retrieve
from layer8.dht.service import SCHEMA, DhtService
from layer8.dht.session import UPKEEP, Dht
from layer8.dht.table import Entry
from layer8.dht.wire import Contact, Mark, Query, read
from layer8.net.sqlite import Database
from layer8.testing.storage import InlineStorage
from tests.dht.nets import EPOCH, key
from tests.relay.nodes import NodesCase
from tests.rendezvous.askers import FakeAsker

NOW = 1000.0
THEM: Peer = ("30.0.0.1", 9000)


def contact(number: int) -> Contact:
    """Give a node of a network of its own."""
    host = f"{40 + number // 65536}.{number // 256 % 256}.{number % 256}.1"
    return Contact(Random(number).randbytes(20), host, 9000)


class SessionTests(SynchronousTestCase):
    def made(self, name: str = "main", **more: Any) -> Dht:
        chance = Random(1)
        node = Dht(key(1), Network(name), chance, chance.randbytes, EPOCH, bound=("20.0.0.1", 9000), **more)
        node.wake(NOW)
        node.effects()
        return node

    def sent(self, node: Dht) -> list[Any]:
        return [read(one.data) for one in node.effects() if isinstance(one, SendTo)]

    def know(self, node: Dht, count: int, rtt: float = 0.0) -> list[Contact]:
        for number in range(count):
            node.table.add(Entry(contact(number), b"k" * 32, since=NOW, seen=NOW, rtt=rtt))
        return [one.contact for one in node.table]

    def test_long_transactions(self) -> None:
        """Nobody has us send back more than it has said."""
        node = self.made()
        for size in (0, TID_MAX, TID_MAX + 1):
            query = Query(b"t" * size, b"ping", {b"id": bytes(20)})
            node.received(query.encode(), THEM, NOW)
            (answer,) = self.sent(node)
            self.assertEqual(answer.tid, b"t" * size if size <= TID_MAX else b"")

    def test_queries_of_everybody(self) -> None:
        """From however many addresses they come; also where addresses do not count."""
        query = Query(b"t", b"ping", {b"id": bytes(20)}, read_only=True).encode()
        for name in ("main", "test"):
            node = self.made(name)
            answers = 0
            for number in range(KRPC_IN_ALL + 50):
                node.received(query, contact(number).peer, NOW)
                answers += len(node.effects())
            self.assertEqual(answers, KRPC_IN_ALL)
            self.assertEqual(node.stats().dropped, 50)
            node.received(query, THEM, NOW + 1)
            self.assertEqual(len(node.effects()), 1)

    def test_votes_of_many_networks(self) -> None:
        votes = rates.Votes()
        for number in range(3 * rates.VOTES):
            votes.add(contact(number).host, b"%d" % (number % 2))
        self.assertEqual(len(votes._by), rates.VOTES)

    def test_searches_at_a_time(self) -> None:
        node = self.made()
        self.know(node, 8)
        for _ in range(LOOKUPS):
            node.get(bytes(20), NOW)
        self.assertRaises(LimitExceeded, node.get, bytes(20), NOW)
        for after in (0.0, LOOKUP_TIME, LOOKUP_TIME + LATE):
            node.wake(NOW + after)
        node.get(bytes(20), NOW + LOOKUP_TIME)

    def test_queries_in_flight(self) -> None:
        """What is over the limit fails at once; nothing is sent for it."""
        node = self.made()
        self.know(node, 8)
        self.patch(session, "PENDING", 10)
        for _ in range(10):
            node.find(bytes(20), NOW)
        self.assertEqual(len(node._pending), 10)
        self.assertEqual(len(self.sent(node)), 10)

    def test_proofs_at_a_time(self) -> None:
        node = self.made()
        query = Query(b"t", b"ping", {b"id": b""}, Mark(node.network.mark))
        for number in range(PROOFS + 50):
            other = contact(number)
            args: dict[bytes, bencode.Value] = {b"id": other.id}
            node.received(Query(b"t", b"ping", args, query.mark).encode(), other.peer, NOW + number // 50)
        asked = [one for one in self.sent(node) if isinstance(one, Query)]
        self.assertEqual(len(asked), PROOFS)
        for after in (TIMEOUT_MOST, LATE, 60.0):
            node.wake(NOW + 10 + after)
        self.assertEqual(node._proving, set())

    def test_proofs_that_are_remembered(self) -> None:
        node = self.made("test")
        self.patch(session, "PROVED", 5)
        for number in range(9):
            node.know([contact(number)], NOW)
            (ping,) = self.sent(node)
            node._alive(node._pending[ping.tid], contact(number), b"k" * 32, NOW)
        self.assertEqual(list(node._proved), [contact(number) for number in range(4, 9)])

    def test_how_long_an_answer_is_waited_for(self) -> None:
        """Four times as long as one takes, a tenth of a second at least and one at most."""
        node = self.made()
        for rtt, wanted in ((0.001, TIMEOUT_LEAST), (0.1, 0.1 * RTT_TIMES), (10.0, TIMEOUT_MOST)):
            self.know(node, 1)[0]
            (entry,) = node.table
            entry.rtt = rtt
            self.assertAlmostEqual(node._patience(entry.contact), wanted)
            node.find(bytes(20), NOW)
            self.assertAlmostEqual(min(at for at, tid in node._times if not tid.startswith(b"search")), NOW + wanted)
            node._times.clear()

    def test_random_targets_now_and_then(self) -> None:
        """Every quarter of an hour or so, and for the first time as soon as somebody is known."""
        node = self.made("test")
        self.know(node, 3)
        begun: list[tuple[float, bytes]] = []
        find = node.find

        def watch(target: bytes, now: float) -> int:
            begun.append((now, target))
            return find(target, now)

        self.patch(Dht, "find", lambda node, target, now: watch(target, now))
        for step in range(1, int(3 * REFRESH / UPKEEP)):
            for one in node.table:
                one.seen, one.failures = NOW + step * UPKEEP, 0
            node.wake(NOW + step * UPKEEP)
            self.know(node, 3)
        self.assertEqual(begun[0][1], node.id)
        times = sorted({at for at, _ in begun})
        self.assertGreaterEqual(len(times), 3)
        for before, after in pairwise(times):
            self.assertTrue(0.8 * REFRESH <= after - before <= 1.2 * REFRESH + UPKEEP)
        self.assertEqual(len({target for _, target in begun}), len(begun))

    def test_nobody_is_known(self) -> None:
        node = self.made(bootstrap=(THEM,))
        times = []
        node._boot = 0.0
        for step in range(100):
            node.wake(NOW + step)
            if any(isinstance(one, Query) for one in self.sent(node)):
                times.append(step)
        self.assertGreaterEqual(len(times), 4)
        for before, after in pairwise(times):
            self.assertGreaterEqual(after - before, BOOTSTRAP)

    def test_what_is_put_again_at_a_time(self) -> None:
        node = self.made("test")
        self.know(node, 8)
        wall = NOW + EPOCH
        for number in range(500):
            item = Immutable.of(b"%d" % number)
            node.store.put(item, "20.0.0.9", node.store.tokens.make("20.0.0.9", wall), wall)
        node._refresh = NOW + 2 * REPUT
        for one in node.table:
            one.seen = NOW + REPUT
        node.wake(NOW + REPUT + UPKEEP)
        self.assertEqual(sum(job.put is not None for job in node._jobs.values()), REPUTS)


class LookupTests(SynchronousTestCase):
    def test_candidates_of_a_path(self) -> None:
        """The nearest are kept; however many are named, no more are remembered."""
        lookup = Lookup(bytes(20), b"\xff" * 20, 0.0)
        lookup.seed([Contact(b"\xfe" * 20, "30.0.0.1", 1)])
        for turn in range(20):
            asked = lookup.next(0.0)[0]
            near = [(1000 - 16 * turn - number, contact(16 * turn + number).host) for number in range(16)]
            lookup.answered(asked, [Contact(number.to_bytes(20, "big"), host, 1) for number, host in near])
        new = [one for one in lookup.found.values() if one.state is State.NEW]
        self.assertLessEqual(len(lookup.found), PATH_NODES)
        self.assertEqual(min(one.contact.number for one in lookup.found.values()), 1000 - 16 * 19 - 15)
        self.assertTrue(new)


class AnsweringTests(SynchronousTestCase):
    def test_circuits_that_are_counted(self) -> None:
        waiting: Deferred[None] = Deferred()

        class Node:
            async def get(self, target: bytes, salt: bytes = b"") -> Any:
                await waiting

        def start(name: str, work: Any) -> None:
            Deferred.fromCoroutine(work).addErrback(lambda failure: None)

        role = Answering(Node(), start, lambda node: None, bytes(32), lambda: 0.0)  # type: ignore[arg-type]
        self.patch(answering, "CIRCUITS", 10)
        for number in range(25):
            role.asked(FakeAsker(number), Command.RETR, Retrieve(1, 1, bytes(20)).encode(), 0.0)
        self.assertEqual(list(role._accounts), list(range(15, 25)))
        for number in range(25):
            role.gone(number)
        self.assertEqual(role._accounts, {})


class ServiceTests(NodesCase):
    async def test_nodes_that_are_written_down(self) -> None:
        """The oldest ones: they are most likely to be there tomorrow."""
        seconds: Callable[[], float] = self.reactor.seconds
        path = Path(self.mktemp())
        path.mkdir()
        storage = InlineStorage(Database(path / "dht.db", SCHEMA))
        self.addCleanup(storage.close)
        chance = Random(1)
        made = DhtService(
            self.reactor,
            key(1),
            Network("test"),
            "udp:0:interface=127.0.0.1",
            chance,
            chance.randbytes,
            lambda: EPOCH,
            seconds,
            storage,
        )
        entries = [Entry(contact(number), since=float(number)) for number in range(5000)]
        taken = [one for one in reversed(entries) if made.session.table.add(one)]
        self.patch(service, "SAVED_NODES", 20)
        await made._save()
        self.assertGreater(len(taken), 20)
        rows = {row["id"] for row in storage.rows("nodes")}
        self.assertEqual(rows, {one.contact.id for one in sorted(taken, key=lambda one: one.since)[:20]})
        self.assertEqual(SAVED_NODES, 200)
