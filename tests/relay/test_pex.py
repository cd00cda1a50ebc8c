"""Peer exchange: what one asker gets, and what many never get together."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from layer8.core.errors import RemoteProtocolError
from layer8.core.roles import Answers
from layer8.crypto.descriptor import DAY, LISTED, Descriptor, pack
from layer8.relay import pex
from layer8.relay.database import Database
from layer8.relay.pex import LATELY, PEX_GET, PEX_MOST, PEX_PEERS, SAME, Exchange, get, read_get, read_peers
from tests.descriptors import NOW, EasyWork, FakeAsker, node, told
from tests.relay.peers import vetted


class ExchangeTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.known = vetted(range(60))
        for peer in self.known:  # 30 were used within the hour
            peer.last_good = NOW if peer.identity in {node(number) for number in range(30)} else NOW - LATELY
        self.exchange = Exchange(self.known, random.Random(1), lambda: NOW)

    def ask(self, who: bytes | None, now: float = 5.0, count: int = PEX_MOST) -> list[bytes]:
        asker = FakeAsker(who)
        self.exchange.asked(asker, PEX_GET, get(count), now)
        ((command, data),) = asker.got
        self.assertEqual(command, PEX_PEERS)
        return [Descriptor.read(raw).identity for raw in read_peers(data)]

    def test_it_is_a_role(self) -> None:
        role: Answers = self.exchange
        self.assertEqual(role.commands, {21})

    def test_ten_half_live_half_remembered(self) -> None:
        got = self.ask(node(500))
        self.assertEqual((len(got), len(set(got))), (10, 10))
        self.assertEqual(len(set(got) & {node(number) for number in range(30)}), 5)

    def test_a_hundred_times_within_an_hour_yields_ten(self) -> None:
        """G12."""
        found = {one for at in range(100) for one in self.ask(node(500), 5.0 + at * SAME / 101)}
        self.assertEqual(len(found), 10)
        self.assertNotEqual(set(self.ask(node(500), 5.0 + SAME)), found)

    def test_all_without_a_name_are_one(self) -> None:
        self.assertEqual(len({one for _ in range(20) for one in self.ask(None)}), 10)
        self.assertGreater(len({one for who in range(20) for one in self.ask(node(who))}), 30)

    def test_names_that_cost_nothing_are_one_too(self) -> None:
        self.assertEqual(len({one for who in range(20) for one in self.ask(node(500 + who))}), 10)

    def test_no_more_than_was_asked_for(self) -> None:
        self.assertEqual(self.ask(node(500), count=3), self.ask(node(500))[:3])

    def test_never_more_than_25(self) -> None:
        """G1."""
        self.assertLessEqual(PEX_MOST, LISTED)
        with self.assertRaises(RemoteProtocolError):
            read_peers(pack([b"x"] * 11))

    def test_whatever_there_is(self) -> None:
        for live, old in ((3, 20), (20, 2), (2, 2), (0, 20), (0, 0)):
            self.known = vetted(range(live + old))
            for peer in self.known:
                peer.last_good = NOW if peer.identity in {node(number) for number in range(live)} else 0.0
            self.exchange = Exchange(self.known, random.Random(1), lambda: NOW)
            self.assertEqual(len(self.ask(node(500))), min(live + old, PEX_MOST))

    def test_linked_ones_are_live(self) -> None:
        for peer in self.known:
            peer.last_good = 0.0
        linked = {node(number) for number in range(6)}
        self.exchange = Exchange(self.known, random.Random(1), lambda: NOW, linked.__contains__)
        self.assertEqual(len(set(self.ask(node(500))) & linked), 5)

    def test_no_guards_nothing_expired_and_not_the_asker(self) -> None:
        known = vetted(range(8))
        known.learn(told(20, now=NOW - DAY), node(9001), NOW)
        known.learn(told(21, endpoints=(), via=(node(1),)), node(9001), NOW)
        guards = frozenset((node(1), node(2)))
        self.exchange = Exchange(known, random.Random(1), lambda: NOW, hidden=lambda: guards)
        self.assertEqual(set(self.ask(node(3))), {node(number) for number in (0, 4, 5, 6, 7)})

    def test_answers_are_kept_to_a_limit(self) -> None:
        self.patch(pex, "ASKERS", 5)
        for number in range(20):
            self.ask(node(number))
        self.assertEqual(len(self.exchange._answers), 5)
        self.exchange.gone(1)

    def test_what_is_no_question(self) -> None:
        for data in (b"", b"\0", b"\x0b", b"\1\1"):
            with self.assertRaises(RemoteProtocolError):
                self.exchange.asked(FakeAsker(None), PEX_GET, data, 5.0)

    def test_a_node_that_knows_one_peer_and_no_tracker_fills_its_places(self) -> None:
        """G17's place until there is a DHT: each peer that was learned is asked in turn."""
        everybody = {number: vetted(range(40)) for number in range(40)}
        fresh = Database(self.known.network, own=node(99))
        fresh.learn(told(0), b"", NOW)
        asked: set[int] = set()
        while len(fresh) < 20:
            number = next(one for one in range(40) if fresh.get(node(one)) is not None and one not in asked)
            asked.add(number)
            answers = Exchange(everybody[number], random.Random(number), lambda: NOW)
            asker = FakeAsker(node(99))
            answers.asked(asker, PEX_GET, get(), 1.0)
            fresh.took(node(number), read_peers(asker.got[0][1]), NOW)
        self.assertLess(len(asked), 8)

    @given(st.binary(max_size=60))
    def test_any_noise(self, data: bytes) -> None:
        for reader in (read_get, read_peers):
            try:
                reader(data)
            except RemoteProtocolError:
                continue
