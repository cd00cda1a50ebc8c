"""KRPC: round trips, what is not canonical, noise; and the relay messages."""

from __future__ import annotations

import contextlib
import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.datagram import SendTo
from layer8.core.errors import RemoteProtocolError
from layer8.core.network import Network
from layer8.crypto.items import Immutable, Mutable
from layer8.crypto.keys import NodeKey
from layer8.dht import message
from layer8.dht.limits import ANSWER_MAX, KRPC_MAX
from layer8.dht.message import Data, Nodes, Retrieve, Status
from layer8.dht.session import Dht
from layer8.dht.wire import TEXTS, Answer, Contact, Failure, Mark, Query, compact, nodes, read, read_compact, read_nodes
from tests.dht.nets import key
from tests.names import ROOT

MARK = Mark(b"12345678", challenge=bytes(16))
VALUES = st.recursive(
    st.integers(-(2**63), 2**63) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.binary(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ARGS = st.dictionaries(st.binary(max_size=8), VALUES, max_size=5)


class KrpcTests(SynchronousTestCase):
    def test_bep_5_examples(self) -> None:
        ping = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"
        self.assertEqual(read(ping), Query(b"aa", b"ping", {b"id": b"abcdefghij0123456789"}))
        self.assertEqual(Query(b"aa", b"ping", {b"id": b"abcdefghij0123456789"}).encode(), ping)
        pong = b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re"
        self.assertEqual(read(pong), Answer(b"aa", {b"id": b"mnopqrstuvwxyz123456"}))
        error = b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee"
        self.assertEqual(read(error), Failure(b"aa", 201, "A Generic Error Ocurred"))

    @given(st.binary(max_size=8), st.binary(max_size=8), ARGS, st.booleans())
    def test_queries(self, tid: bytes, method: bytes, args: dict[bytes, bencode.Value], only: bool) -> None:
        for mark in (None, MARK, Mark(b"87654321", age=7)):
            query = Query(tid, method, args, mark, only)
            self.assertEqual(read(query.encode()), query)

    @given(st.binary(max_size=8), ARGS, st.sampled_from([b"", bytes(6), bytes(18)]))
    def test_answers(self, tid: bytes, values: dict[bytes, bencode.Value], outside: bytes) -> None:
        mark = Mark(b"12345678", key=bytes(32), signature=bytes(64))
        answer = Answer(tid, values, mark, outside)
        self.assertEqual(read(answer.encode()), answer)

    @given(st.binary(max_size=200) | ARGS.map(bencode.encode))
    def test_any_noise(self, data: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            read(data)

    def test_what_is_not_canonical(self) -> None:
        for bad in (
            b"",
            b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qex",
            b"d1:q4:ping1:ad2:id20:abcdefghij0123456789e1:t2:aa1:y1:qe",
            b"d1:ade1:q04:ping1:t2:aa1:y1:qe",
            b"d1:ade1:t2:aa1:y1:qe",
            b"d1:q4:ping1:t2:aa1:y1:qe",
            b"d1:t2:aa1:y1:re",
            b"d1:ei201e1:t2:aa1:y1:ee",
            b"d1:rde1:t33:" + bytes(33) + b"1:y1:re",
            b"li1ee",
            bencode.encode({b"t": b"aa", b"y": b"r", b"r": {b"x": bytes(KRPC_MAX)}}),
        ):
            self.assertRaises(RemoteProtocolError, read, bad)

    def test_marks_of_others_are_none(self) -> None:
        bads: tuple[bencode.Value, ...] = (
            1,
            {b"v": 2, b"n": bytes(8)},
            {b"v": 1, b"n": bytes(7)},
            {b"v": 1, b"n": bytes(8), b"c": bytes(15)},
            {b"v": 1, b"n": bytes(8), b"s": 5},
            {b"v": 1, b"n": bytes(8), b"a": -1},
        )
        for bad in bads:
            text = bencode.encode({b"t": b"a", b"y": b"q", b"q": b"ping", b"a": {}, b"l8": bad})
            self.assertEqual(read(text), Query(b"a", b"ping", {}))

    def test_compact(self) -> None:
        contacts = [Contact(bytes((n,)) * 20, host, 9000) for n, host in enumerate(("10.0.0.1", "2001:db8::1"))]
        told = nodes(contacts)
        self.assertEqual([len(told[name]) for name in (b"nodes", b"nodes6")], [26, 38])  # type: ignore[arg-type]
        self.assertEqual(read_nodes(told, 8), contacts)
        self.assertEqual(read_compact(compact("::ffff:10.0.0.1", 5)), ("10.0.0.1", 5))
        self.assertRaises(RemoteProtocolError, read_nodes, {b"nodes": bytes(27)}, 8)
        self.assertEqual(len(read_nodes({b"nodes": (bytes(25) + b"\1") * 20}, 8)), 8)
        self.assertEqual(read_nodes({b"nodes": bytes(26)}, 8), [])

    def test_no_answer_is_longer_than_it_may_be(self) -> None:
        contacts = [Contact(bytes(20), f"10.0.0.{n}", 9000) for n in range(8)]
        sixes = [Contact(bytes(20), f"2001:db8::{n}", 9000) for n in range(8)]
        values = {b"v": bytes(995), b"k": bytes(32), b"sig": bytes(64), **nodes([*contacts, *sixes])}
        mark = Mark(bytes(8), key=bytes(32), signature=bytes(64))
        text = Answer(bytes(4), values, mark, bytes(18)).encode()
        self.assertLessEqual(len(text), ANSWER_MAX)
        answer = read(text)
        assert isinstance(answer, Answer)
        self.assertEqual(answer.values[b"v"], bytes(995))


class MessageTests(SynchronousTestCase):
    def test_round_trips(self) -> None:
        item = Mutable.make(key(1).node_id, key(1).sign, 5, b"value", b"salt")
        for asked in (message.Store(7, item), message.Store(8, Immutable.of(b"value"))):
            self.assertEqual(message.Store.read(asked.encode()), asked)
        for retrieve in (Retrieve(1, 1, bytes(20)), Retrieve(1, 1, bytes(20), 5), Retrieve(1, 3, bytes(20), 0, b"d")):
            self.assertEqual(Retrieve.read(retrieve.encode()), retrieve)
        self.assertEqual(Nodes.read(Nodes(9, bytes(20)).encode()), Nodes(9, bytes(20)))
        for data in (Data(1, Status.FOUND, (b"a", b"bc")), Data(2, Status.NONE), Data(3, Status.STORED, (), 8)):
            self.assertEqual(Data.read(data.encode()), data)

    @given(st.binary(max_size=80))
    def test_any_noise(self, data: bytes) -> None:
        for kind in (message.Store, Retrieve, Nodes, Data):
            try:
                found = kind.read(data)
            except RemoteProtocolError:
                continue
            self.assertEqual(kind.read(found.encode()), found)


class PageTests(SynchronousTestCase):
    def test_the_vector_of_the_proof(self) -> None:
        text = (ROOT / "docs" / "dht.md").read_text()
        blocks = [bytes.fromhex(one) for one in re.findall(r"```text\n([0-9a-f\n]+)```", text)]
        asked, told = map(read, blocks)
        assert isinstance(asked, Query) and isinstance(told, Answer)
        node = Dht(NodeKey.from_seed(bytes(range(32))), Network("test"), Random(1), Random(1).randbytes)
        self.assertIn(node.id.hex(), text)
        node.received(blocks[0], ("192.0.2.1", 9000), 1000.0)
        sent = node.effects()[0]
        self.assertEqual(sent, SendTo(blocks[1], ("192.0.2.1", 9000)))

    def test_every_error(self) -> None:
        text = (ROOT / "docs" / "dht.md").read_text()
        for code in TEXTS:
            self.assertIn(f"{code} ", text)
