"""Asking by circuits: two last hops, neither believed; and the role that answers them."""

from __future__ import annotations

from collections.abc import Container, Coroutine
from hashlib import sha1
from random import Random
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Refused, RemoteProtocolError, Unavailable
from layer8.core.network import Network
from layer8.core.roles import Answers
from layer8.crypto.descriptor import Descriptor
from layer8.crypto.items import Draft, Immutable, Item, Items, Mutable, Record
from layer8.dht.answering import Answering
from layer8.dht.asking import PAIR, ROUNDS, SILENT, Asking, Source
from layer8.dht.jobs import Done
from layer8.dht.limits import ASK_TIME, DHT_PER_CIRC, DHT_PER_MINUTE
from layer8.dht.message import Command, Data, Nodes, Retrieve, Status, Store
from layer8.dht.store import write_item
from tests.descriptors import FakeAsker, told
from tests.descriptors import key as descriptor_key
from tests.dht.nets import key

NOW = 1_800_000_000.0
NET = Network("test")
TARGET = sha1(b"set").digest()


def item(seq: int = 1, data: bytes = b"value", salt: bytes = b"", owner: int = 1) -> Mutable:
    return Mutable.make(key(owner).node_id, key(owner).sign, seq, data, salt)


def record(number: int) -> Record:
    return Draft.make(key(number), TARGET, 2, b"tag", int(NOW) + 900, 1).record()


@define(eq=False)
class Hop:
    """A last hop: what it has, and how it behaves."""

    number: int
    items: dict[bytes, Item] = field(factory=dict)
    records: list[Record] = field(factory=list)
    lie: Data | None = None
    silent: bool = False
    asked: int = 0
    descriptors: list[bytes] = field(factory=list)
    about: list[bytes] = field(factory=list)  # which circuits it was asked by

    async def ask(self, about: bytes, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
        self.asked += 1
        self.about.append(about)
        assert Command.DATA in answers
        if self.silent:
            await Deferred()
        request = int.from_bytes(data[:4], "big")
        return Command.DATA, self.answer(request, command, data).encode()

    def answer(self, request: int, command: int, data: bytes) -> Data:
        if self.lie is not None:
            return Data(request, self.lie.status, self.lie.items, self.lie.stored)
        if command == Command.STORE:
            stored = Store.read(data).item
            self.items[stored.target] = stored
            return Data(request, Status.STORED, stored=8)
        if command == Command.NODES:
            return Data(request, Status.FOUND, self.descriptors)
        asked = Retrieve.read(data)
        if asked.kind == 3:
            found = [one.raw for one in self.records]
        else:
            there = self.items.get(asked.target)
            found = [write_item(there)[1]] if there is not None and write_item(there)[0] == asked.kind else []
        return Data(request, Status.FOUND if found else Status.NONE, found)


class AskingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.hops = [Hop(n) for n in range(2)]
        self.clock = Clock()
        self.learned: list[bytes] = []

    def asking(self) -> Asking:
        def sources() -> list[Source]:
            return [Source(bytes((hop.number,)) * 32, hop.ask) for hop in self.hops]

        return Asking(sources, NET, Random(1), self.clock, lambda: NOW, lambda source, raws: self.learned.extend(raws))

    def run_(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def fails(self, work: Coroutine[Any, Any, Any], *errors: type[Exception]) -> None:
        self.failureResultOf(Deferred.fromCoroutine(work), *errors)

    def test_it_is_what_others_are_handed(self) -> None:
        items: Items = self.asking()
        for one in (item(), item(salt=b"d"), Immutable.of(b"x")):
            self.assertEqual(self.run_(items.put(one)), 8)
        self.assertEqual(self.run_(items.get(item().target)), item())
        self.assertEqual(self.run_(items.get(item(salt=b"d").target, b"d")), item(salt=b"d"))
        self.assertEqual(self.run_(items.fetch(Immutable.of(b"x").target)), Immutable.of(b"x"))
        self.assertIsNone(self.run_(items.get(bytes(20))))
        self.assertEqual([hop.asked for hop in self.hops], [7, 7])

    def test_one_hop_says_none_and_the_other_wins(self) -> None:
        """G35."""
        self.hops[0].items[item().target] = item()
        self.assertEqual(self.run_(self.asking().get(item().target)), item())

    def test_the_highest_seq_wins_and_two_more_are_asked(self) -> None:
        self.hops = [Hop(n) for n in range(4)]
        for seq, hop in enumerate(self.hops, 1):
            hop.items[item().target] = item(seq)
        self.assertEqual(self.run_(self.asking().get(item().target)).seq, 4)
        self.assertEqual([hop.asked for hop in self.hops], [1] * 4)

    def test_each_by_a_circuit_of_its_own(self) -> None:
        """Or a last hop would know that whoever asks for one wants the other too, and which node puts it."""
        asking = self.asking()
        node, service, value = item(), item(owner=2), Immutable.of(b"x")
        for one in (node, service, value, record(3), record(4)):
            self.run_(asking.put(one))
        for one in (node, service, value):
            self.run_(asking.get(one.target))
        self.run_(asking.fetch(value.target))
        keys = [node.key, service.key, value.target, record(3).key, record(4).key]
        wanted = [*keys, node.target, service.target, value.target, value.target]
        for hop in self.hops:
            self.assertEqual(hop.about, wanted)
            self.assertEqual(len(set(keys)), len(keys))

    def test_two_with_one_seq(self) -> None:
        """Both are signed, so two hold the key: neither is given, unless there is a later one."""
        self.hops = [Hop(n) for n in range(4)]
        for number, hop in enumerate(self.hops):
            hop.items[item().target] = item(2, b"one" if number % 2 else b"other")
        self.fails(self.asking().get(item().target), RemoteProtocolError)
        for hop in self.hops[:3]:  # whichever two are asked first, one of them has it
            hop.items[item().target] = item(3)
        self.assertEqual(self.run_(self.asking().get(item().target)), item(3))

    def test_lies(self) -> None:
        """An item of another key, target or salt, an unsigned one, noise: as if that hop had said nothing."""
        good = item()
        bad = Mutable(good.key, 9, good.signature, good.value)
        for lie in (bad, item(9, salt=b"salt"), Mutable.make(key(2).node_id, key(2).sign, 9, b"x")):
            self.hops = [Hop(n) for n in range(2)]
            self.hops[0].lie = Data(0, Status.FOUND, (write_item(lie)[1],))
            self.hops[1].items[good.target] = good
            self.assertEqual(self.run_(self.asking().get(good.target)), good)
        self.hops[0].lie = Data(0, Status.FOUND, (b"noise",))
        self.hops[1].lie = Data(0, Status.NONE)
        self.fails(self.asking().get(good.target), Unavailable)

    def test_answers_that_are_none(self) -> None:
        """Found without an item, and an item with another word than found: that hop has said nothing."""
        good = item()
        for lie in (Data(0, Status.FOUND), Data(0, Status.STORED, (write_item(item(9))[1],))):
            self.hops = [Hop(n) for n in range(2)]
            self.hops[0].lie = lie
            self.hops[1].items[good.target] = good
            self.assertEqual(self.run_(self.asking().get(good.target)), good)
            self.hops[1].lie = Data(0, Status.NONE)
            self.fails(self.asking().get(good.target), Unavailable)

    def test_no_more_are_asked_than_it_takes(self) -> None:
        """However many differ, or say nothing."""
        self.hops = [Hop(n) for n in range(40)]
        for seq, hop in enumerate(self.hops, 1):
            hop.items[item().target] = item(seq)
        self.assertIsNotNone(self.run_(self.asking().get(item().target)))
        self.assertEqual(sum(hop.asked for hop in self.hops), PAIR * ROUNDS)
        for hop in self.hops:
            hop.asked, hop.lie = 0, Data(0, Status.BUSY)
        self.fails(self.asking().get(item().target), Unavailable)
        self.assertEqual(sum(hop.asked for hop in self.hops), PAIR * SILENT)

    def test_nobody_answers_for_nodes(self) -> None:
        for hop in self.hops:
            hop.silent = True
        found = Deferred.fromCoroutine(self.asking().nodes(bytes(20)))
        self.clock.advance(ASK_TIME)
        self.failureResultOf(found, Unavailable)

    def test_nothing_is_believed_from_two_only(self) -> None:
        self.hops[0].lie = Data(0, Status.BUSY)
        self.fails(self.asking().get(item().target), Unavailable)
        self.hops = [Hop(0)]
        self.fails(self.asking().get(item().target), Unavailable)
        self.hops = []
        self.fails(self.asking().get(item().target), Unavailable)

    def test_an_old_one_is_not_what_is_wanted(self) -> None:
        for hop in self.hops:
            hop.items[item().target] = item(3)
        self.fails(self.asking().get(item().target, least=4), Unavailable)
        self.assertEqual(self.run_(self.asking().get(item().target, least=3)), item(3))

    def test_silence(self) -> None:
        self.hops[0].silent = True
        self.hops[1].items[item().target] = item()
        found = Deferred.fromCoroutine(self.asking().get(item().target))
        self.assertNoResult(found)
        self.clock.advance(ASK_TIME)
        self.assertEqual(self.successResultOf(found), item())

    def test_nobody_is_known_yet(self) -> None:
        """Who asks in the first moments of a node waits until it knows somebody, and not longer than that."""
        there, self.hops = self.hops[1], []  # one is enough where it has what is asked for
        there.items[item().target] = item()
        asking = Asking(
            lambda: [Source(bytes((hop.number,)) * 32, hop.ask) for hop in self.hops],
            NET, Random(1), self.clock, lambda: NOW, patience=5.0,
        )  # fmt: skip
        found = Deferred.fromCoroutine(asking.get(item().target))
        self.clock.pump([0.1] * 20)
        self.assertNoResult(found)
        self.hops = [there]
        self.clock.pump([0.1] * 2)
        self.assertEqual(self.successResultOf(found), item())
        self.hops = []
        missing = Deferred.fromCoroutine(asking.get(item().target))
        self.clock.pump([0.1] * 40)
        self.failureResultOf(missing, Unavailable)
        # Later on nobody waits.
        self.failureResultOf(Deferred.fromCoroutine(asking.get(item().target)), Unavailable)

    def test_most_are_gone(self) -> None:
        """One of eight answers: the others are asked until it is found, for an item and for a place to put one."""
        self.hops += [Hop(number) for number in range(len(self.hops), 8)]
        gone = Data(0, Status.BUSY)  # what an answer is that cannot be used
        for hop in self.hops[1:]:
            hop.lie = gone
        self.hops[0].items[item().target] = item()
        for _ in range(20):
            self.assertEqual(self.run_(self.asking().get(item().target)), item())
            self.assertGreater(self.run_(self.asking().put(item())), 0)
        for hop in self.hops:
            hop.lie = gone
        self.fails(self.asking().put(item()), Unavailable)
        self.fails(self.asking().get(item().target), Unavailable)

    def test_cancelled(self) -> None:
        self.hops[0].silent = True
        found = Deferred.fromCoroutine(self.asking().get(item().target))
        found.cancel()
        self.failureResultOf(found)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_sets_are_mixed(self) -> None:
        self.hops[0].records = [record(1), record(2)]
        self.hops[1].records = [record(2), record(3)]
        found = self.run_(self.asking().records(TARGET))
        self.assertEqual({one.key for one in found}, {key(n).node_id for n in (1, 2, 3)})
        self.hops[0].records = [Record.parse(TARGET, record(1).raw[:-84] + bytes(84))]
        self.assertEqual(len(self.run_(self.asking().records(TARGET))), 2)

    def test_refused(self) -> None:
        for hop in self.hops:
            hop.lie = Data(0, Status.REFUSED)
        self.fails(self.asking().put(item()), Refused)
        for hop in self.hops:
            hop.lie = Data(0, Status.NONE)
        self.fails(self.asking().put(item()), Unavailable)

    def test_4096_bytes(self) -> None:
        """G33."""
        asking, data = self.asking(), bytes(range(256)) * 16
        self.assertEqual(self.run_(asking.put_value(key(1), b"name", 3, data)), 8)
        self.assertEqual(len(self.hops[0].items), 5)
        self.assertEqual(self.run_(asking.get_value(key(1).node_id, b"name")), data)
        self.assertIsNone(self.run_(asking.get_value(key(2).node_id, b"name")))

    def test_nodes(self) -> None:
        """G17: descriptors, checked, and learned as others are."""
        now = {"now": NOW}
        good = [told(n, NET, **now).raw for n in range(3)]
        self.hops[0].descriptors, self.hops[1].descriptors = good[:2], [good[1], good[2], b"noise"]
        found = self.run_(self.asking().nodes(bytes(20)))
        self.assertEqual({one.raw for one in found}, set(good))
        self.assertEqual(len(self.learned), 5)

    def test_descriptors_of_others_and_old_ones(self) -> None:
        """Nodes of another network, and those of last week, are not given."""
        good, other, old = told(1, NET, now=NOW), told(2, Network("another"), now=NOW), told(3, NET, now=NOW - 604_800)
        for hop in self.hops:
            hop.descriptors = [good.raw, other.raw, old.raw]
        self.assertEqual([one.raw for one in self.run_(self.asking().nodes(bytes(20)))], [good.raw])
        for number, one in ((2, other), (3, old)):
            owner = descriptor_key(number)
            self.run_(self.asking().put(Mutable.make(owner.node_id, owner.sign, one.serial, one.raw)))
            self.assertIsNone(self.run_(self.asking().descriptor(owner.node_id)))

    def test_a_dark_node_gives_its_gateway(self) -> None:
        """G36."""
        gateway = descriptor_key(9).node_id
        dark = told(5, NET, endpoints=(), via=(gateway,))
        owner = descriptor_key(5)
        self.run_(self.asking().put(Mutable.make(owner.node_id, owner.sign, dark.serial, dark.raw)))
        found = self.run_(self.asking().descriptor(owner.node_id))
        self.assertIsInstance(found, Descriptor)
        self.assertEqual((found.endpoints, found.via), ((), (gateway,)))
        self.assertIsNone(self.run_(self.asking().descriptor(gateway)))


@define(eq=False)
class FakeNode:
    """What does the work of a role: searches wait for `done`."""

    waiting: list[Deferred[Done]] = field(factory=list)

    async def _later(self) -> Done:
        self.waiting.append(Deferred())
        return await self.waiting[-1]

    async def find(self, target: bytes) -> Done:
        return await self._later()

    async def get(self, target: bytes, salt: bytes = b"") -> Done:
        return await self._later()

    async def records(self, target: bytes) -> Done:
        return await self._later()

    async def put(self, item: Item) -> Done:
        return await self._later()

    def good(self, item: Item) -> bool:
        return isinstance(item, Record) or item.good()


class AnsweringTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = FakeNode()
        self.running: list[Deferred[None]] = []

        def start(name: str, work: Coroutine[Any, Any, None]) -> None:
            self.running.append(Deferred.fromCoroutine(work))

        self.role = Answering(self.node, start, lambda node: None, bytes(32), lambda: NOW)
        self.asker = FakeAsker()

    def ask(self, message: Store | Retrieve | Nodes, now: float = 0.0, asker: FakeAsker | None = None) -> None:
        command = {Store: Command.STORE, Retrieve: Command.RETR, Nodes: Command.NODES}[type(message)]
        self.role.asked(asker or self.asker, command, message.encode(), now)

    def answers(self) -> list[Data]:
        got, self.asker.got = self.asker.got, []
        self.assertTrue(all(command == Command.DATA for command, _ in got))
        return [Data.read(data) for _, data in got]

    def test_it_is_a_role(self) -> None:
        role: Answers = self.role
        self.assertEqual(role.commands, {32, 33, 35})

    def test_answers(self) -> None:
        self.ask(Retrieve(7, 1, item().target))
        self.node.waiting.pop().callback(Done(1, item=item(4)))
        self.assertEqual(self.answers(), [Data(7, Status.FOUND, (write_item(item(4))[1],))])
        for kind, found, least in ((1, None, 0), (2, item(4), 0), (1, item(4), 5)):
            self.ask(Retrieve(8, kind, item().target, least))
            self.node.waiting.pop().callback(Done(1, item=found))
            self.assertEqual(self.answers(), [Data(8, Status.NONE)])
        self.ask(Store(9, item()))
        self.node.waiting.pop().callback(Done(1, stored=5))
        self.assertEqual(self.answers(), [Data(9, Status.STORED, (), 5)])
        self.ask(Store(9, item()))
        self.node.waiting.pop().callback(Done(1, refused=302))
        self.assertEqual(self.answers(), [Data(9, Status.REFUSED)])

    def test_bad_items_cost_nobody_else_a_thing(self) -> None:
        self.ask(Store(9, Mutable(item().key, 8, item().signature, item().value)))
        self.assertEqual((self.answers(), self.node.waiting), ([Data(9, Status.REFUSED)], []))

    def test_nonsense_costs_the_circuit(self) -> None:
        for command in self.role.commands:
            self.assertRaises(RemoteProtocolError, self.role.asked, self.asker, command, b"\0\0\0\0\7", 0.0)

    def test_a_strangers_set_is_a_handful_for_an_hour(self) -> None:
        found = []
        for _ in range(2):
            self.ask(Retrieve(1, 3, TARGET))
            self.node.waiting.pop().callback(Done(1, records=tuple(map(record, range(1, 30)))))
            found += self.answers()
        self.assertEqual(len(found[0].items), 10)
        self.assertEqual(found[0], found[1])

    def test_limits_of_a_circuit(self) -> None:
        for _ in range(DHT_PER_CIRC + 1):
            self.ask(Retrieve(1, 1, bytes(20)))
        self.assertEqual(self.answers(), [Data(1, Status.BUSY)])
        other = FakeAsker(circuit=2)
        self.ask(Retrieve(1, 1, bytes(20)), asker=other)
        self.assertEqual(other.got, [])
        while self.node.waiting:
            self.node.waiting.pop().callback(Done(1))
        for _ in range(DHT_PER_MINUTE):
            self.ask(Retrieve(2, 1, bytes(20)))
            if self.node.waiting:
                self.node.waiting.pop().callback(Done(1))
        busy = [one for one in self.answers() if one.status is Status.BUSY]
        self.assertEqual(len(busy), DHT_PER_CIRC)
        self.ask(Retrieve(3, 1, bytes(20)), now=60.0)
        self.assertEqual(self.answers(), [])

    def test_an_asker_that_has_gone(self) -> None:
        self.ask(Retrieve(1, 1, bytes(20)))
        self.asker.alive = False
        self.role.gone(self.asker.circuit)
        self.node.waiting.pop().callback(Done(1))
        self.assertEqual(self.asker.got, [])
