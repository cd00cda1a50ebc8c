"""One node of the DHT as others see it: what it answers, whom it lists, whom it believes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.datagram import Peer, SendTo
from layer8.core.network import Network
from layer8.crypto.items import Draft, Immutable, Mutable, sha1
from layer8.dht.limits import ANSWER_MAX, KRPC_IN, KRPC_IN_NEAR
from layer8.dht.session import Dht
from layer8.dht.wire import Answer, Contact, Failure, Mark, Query, compact, proof_text, read
from tests.dht.nets import EPOCH, key

US: Peer = ("20.0.0.1", 9000)
THEM: Peer = ("30.0.0.1", 9000)
NET = Network("main")
OTHER = Network("another")
NOW = 1000.0
SHAPED: st.SearchStrategy[Any] = st.dictionaries(
    st.sampled_from([b"t", b"y", b"q", b"a", b"r", b"e", b"l8"]),
    st.sampled_from([b"q", b"r", b"e", b"get", b"put", {}, {b"id": bytes(20)}, [1, b"x"], 7, b""]),
)


def made(**more: Any) -> Dht:
    chance = Random(1)
    network = more.pop("network", NET)
    node = Dht(key(1), network, chance, chance.randbytes, EPOCH, bound=US, **more)
    node.wake(NOW)
    node.effects()
    return node


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = made()
        self.now = NOW

    def sent(self) -> list[tuple[Any, Peer]]:
        return [(read(one.data), one.peer) for one in self.node.effects() if isinstance(one, SendTo)]

    def say(self, message: Query | Answer | Failure, peer: Peer = THEM) -> list[tuple[Any, Peer]]:
        self.node.received(message.encode(), peer, self.now)
        return self.sent()

    def ask(self, method: bytes, args: dict[bytes, bencode.Value] | None = None, peer: Peer = THEM, **more: Any) -> Any:
        args = {b"id": sha1(key(2).node_id)} | (args or {})
        (answer, to), *self.rest = self.say(Query(b"tt", method, args, **more), peer)
        self.assertEqual((answer.tid, to), (b"tt", peer))
        return answer

    def code(self, *args: Any, **more: Any) -> int:
        answer = self.ask(*args, **more)
        self.assertIsInstance(answer, Failure)
        return int(answer.code)


class AnswerTests(Case):
    def test_ping(self) -> None:
        answer = self.ask(b"ping")
        self.assertEqual(answer, Answer(b"tt", {b"id": sha1(key(1).node_id)}, Mark(NET.mark), compact(*THEM)))

    def test_proof(self) -> None:
        answer = self.ask(b"ping", mark=Mark(NET.mark, challenge=b"c" * 16))
        signed = proof_text(b"c" * 16, compact(*THEM), self.node.id)
        self.assertEqual(answer.mark, Mark(NET.mark, key=key(1).node_id, signature=key(1).sign(signed)))

    def test_no_proof_for_another_network(self) -> None:
        self.assertEqual(self.ask(b"ping", mark=Mark(OTHER.mark, challenge=b"c" * 16)).mark, Mark(NET.mark))

    def test_items(self) -> None:
        item = Mutable.make(key(3).node_id, key(3).sign, 4, b"value", b"salt")
        token = self.ask(b"get", {b"target": item.target}).values[b"token"]
        args: dict[bytes, bencode.Value] = {b"k": item.key, b"sig": item.signature, b"seq": 4, b"salt": b"salt"}
        args |= {b"v": b"value", b"token": token}
        self.ask(b"put", args)
        values = self.ask(b"get", {b"target": item.target}).values
        self.assertEqual(
            [values[name] for name in (b"k", b"sig", b"seq", b"v")], [item.key, item.signature, 4, b"value"]
        )
        self.assertNotIn(b"v", self.ask(b"get", {b"target": item.target, b"seq": 4}).values)
        self.assertEqual(self.code(b"put", args | {b"seq": 3}), 206)
        self.assertEqual(self.code(b"put", args | {b"cas": 3}), 301)
        self.assertEqual(self.code(b"put", args | {b"token": b"none"}), 203)
        self.assertEqual(self.code(b"put", args | {b"salt": bytes(65)}), 207)
        self.assertEqual(self.code(b"put", args | {b"v": bytes(1000)}), 205)
        older = Mutable.make(key(3).node_id, key(3).sign, 3, b"value", b"salt")
        self.assertEqual(self.code(b"put", args | {b"sig": older.signature, b"seq": 3}), 302)

    def test_immutable_values_of_any_kind(self) -> None:
        token = self.ask(b"get", {b"target": bytes(20)}).values[b"token"]
        value: bencode.Value = {b"a": [1, b"two", {}]}
        self.ask(b"put", {b"v": value, b"token": token})
        target = Immutable(bencode.encode(value)).target
        self.assertEqual(self.ask(b"get", {b"target": target}).values[b"v"], value)

    def test_sets(self) -> None:
        self.node = made(network=Network("test"))
        target = bytes(20)
        token = self.ask(b"l8_list", {b"target": target}).values[b"token"]
        for n in range(20):
            record = Draft.make(key(n), target, 2, bytes(150), int(EPOCH + NOW) + 900, 1).record()
            self.ask(b"l8_add", {b"target": target, b"rec": record.raw, b"token": token})
        (answer, _), *_ = self.say(Query(b"tt", b"l8_list", {b"id": bytes(20), b"target": target}))
        self.assertTrue(3 <= len(answer.values[b"recs"]) <= 10)
        self.assertLessEqual(len(answer.encode()), ANSWER_MAX)
        self.assertEqual(self.code(b"l8_add", {b"target": target, b"rec": bytes(321), b"token": token}), 205)
        self.assertEqual(self.code(b"l8_add", {b"target": target, b"rec": bytes(99), b"token": token}), 203)

    def test_what_nobody_answers(self) -> None:
        self.assertEqual(self.code(b"get_peers"), 204)
        self.assertEqual(self.code(b"find_node"), 203)
        self.assertEqual(self.code(b"find_node", {b"target": bytes(19)}), 203)
        self.assertEqual(self.code(b"get", {b"target": 5}), 203)
        self.assertEqual(self.code(b"put", {b"token": b""}), 203)
        self.assertEqual(self.code(b"ping", {b"id": b"short"}), 203)

    def test_nonsense_gets_one_error_a_second(self) -> None:
        told = 0
        for _ in range(5):
            self.node.received(b"d1:q", THEM, self.now)
            told += len(self.sent())
        self.now += 1.0
        self.node.received(bytes(3000), THEM, self.now)
        self.assertEqual((told, [one.code for one, _ in self.sent()]), (1, [203]))

    def test_errors_are_never_answered(self) -> None:
        self.assertEqual(self.say(Failure(b"x", 203)), [])
        self.assertEqual(self.say(Answer(b"x", {b"id": bytes(20)})), [])

    def test_rates(self) -> None:
        query = Query(b"tt", b"ping", {b"id": bytes(20)})
        answers = sum(len(self.say(query)) for _ in range(2 * KRPC_IN))
        self.assertEqual(answers, KRPC_IN)
        near = sum(len(self.say(query, (f"30.0.1.{n}", 1))) for n in range(2 * KRPC_IN_NEAR))
        self.assertEqual(near, KRPC_IN_NEAR)
        self.now += 1.0
        self.assertEqual(len(self.say(query)), 1)

    @given(st.binary(max_size=300) | SHAPED.map(bencode.encode))
    def test_any_noise(self, data: bytes) -> None:
        """Not a traceback, and not more than one answer."""
        node = made(network=Network("test"))
        node.received(data, THEM, NOW)
        self.assertLessEqual(len(node.effects()), 2)


class ListedTests(Case):
    """Who comes into the table."""

    def query(self, mark: Mark | None, peer: Peer = THEM, **more: Any) -> list[tuple[Any, Peer]]:
        return self.say(Query(b"tt", b"ping", {b"id": sha1(key(2).node_id)}, mark, **more), peer)[1:]

    def proved(self, challenge: bytes, asker: Peer = US, number: int = 2) -> Mark:
        signed = proof_text(challenge, compact(*asker), sha1(key(number).node_id))
        return Mark(NET.mark, key=key(number).node_id, signature=key(number).sign(signed))

    def test_who_proves_its_key(self) -> None:
        ((ping, to),) = self.query(Mark(NET.mark))
        self.assertEqual((ping.method, to, len(ping.mark.challenge)), (b"ping", THEM, 16))
        self.say(Answer(ping.tid, {b"id": sha1(key(2).node_id)}, self.proved(ping.mark.challenge)))
        (entry,) = self.node.table
        self.assertEqual((entry.contact, entry.key), (Contact(sha1(key(2).node_id), *THEM), key(2).node_id))

    def test_others_are_answered_and_never_asked(self) -> None:
        for mark in (None, Mark(OTHER.mark)):
            self.assertEqual(self.query(mark), [])
        self.assertEqual(self.query(Mark(NET.mark), read_only=True), [])
        self.assertEqual(self.query(Mark(NET.mark), ("192.168.0.9", 9000)), [], "not from the internet")

    def test_wrong_proofs(self) -> None:
        other = Random(9).randbytes(16)
        marks: dict[str, Callable[[bytes], Mark | None]] = {
            "none": lambda c: Mark(NET.mark),
            "another challenge": lambda c: self.proved(other),
            "for another asker": lambda c: self.proved(c, ("20.0.0.2", 9000)),
            "another key": lambda c: self.proved(c, number=3),
            "no mark": lambda c: None,
        }
        for name, mark in marks.items():
            self.node = made()
            ((ping, _),) = self.query(Mark(NET.mark))
            self.say(Answer(ping.tid, {b"id": sha1(key(2).node_id)}, mark(ping.mark.challenge)))
            self.assertEqual(len(self.node.table), 0, name)

    def test_answers_from_elsewhere(self) -> None:
        """From an address or with an id that was not asked: ignored."""
        ((ping, _),) = self.query(Mark(NET.mark))
        proof = self.proved(ping.mark.challenge)
        self.say(Answer(ping.tid, {b"id": sha1(key(2).node_id)}, proof), ("30.0.0.2", 9000))
        self.say(Answer(b"none", {b"id": sha1(key(2).node_id)}, proof))
        self.assertEqual(len(self.node.table), 0)
        self.say(Answer(ping.tid, {b"id": sha1(key(3).node_id)}, self.proved(ping.mark.challenge, number=3)))
        self.assertEqual(len(self.node.table), 0)

    def test_open_nodes_know_others_too(self) -> None:
        self.node = made(open=True)
        ((ping, _),) = self.query(None)
        self.say(Answer(ping.tid, {b"id": sha1(key(2).node_id)}))
        self.assertEqual([one.key for one in self.node.table], [b""])

    def test_readers_say_so(self) -> None:
        self.node = made(read_only=True, bootstrap=(THEM,))
        self.node.wake(NOW + 100.0)
        ((query, _),) = self.sent()
        self.assertTrue(query.read_only)
        self.assertTrue(self.node.stats().read_only)

    def test_a_node_that_lies_leaves(self) -> None:
        """An item that is not that of its target costs its sender the place in the table."""
        self.test_who_proves_its_key()
        lies: tuple[dict[bytes, bencode.Value], ...] = (
            {b"v": b"wrong"},
            {b"v": b"x", b"k": bytes(32), b"sig": bytes(64), b"seq": 1},
            {b"nodes": b"x"},
        )
        for values in lies:
            self.node.get(bytes(20), self.now)
            ((query, _),) = self.sent()
            self.say(Answer(query.tid, {b"id": sha1(key(2).node_id), b"token": b"t", **values}))
            self.assertEqual(len(self.node.table), 0)
            self.setUp()
            self.test_who_proves_its_key()

    def test_a_late_answer_of_a_stranger_to_nothing(self) -> None:
        ((ping, _),) = self.query(Mark(NET.mark))
        for after in (1.1, 2.1, 60.0):
            self.node.wake(self.now + after)
        self.say(Answer(ping.tid, {b"id": sha1(key(2).node_id)}, self.proved(ping.mark.challenge)))
        self.assertEqual(len(self.node.table), 0)
        self.assertFalse(self.node._pending or self.node._proving)
