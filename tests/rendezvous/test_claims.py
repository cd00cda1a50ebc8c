"""Claims, attestations and certificates; and who gets a name, in twenty conflicts."""

from __future__ import annotations

import contextlib
from typing import Any

from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.crypto.items import RECORD_LIFE, Draft, Kind, Record
from layer8.crypto.keys import NodeKey
from layer8.rendezvous import claims
from layer8.rendezvous.address import WrongName
from layer8.rendezvous.claims import (
    ATTESTERS,
    CERTIFICATE_MAX,
    CLAIMS_SHOWN,
    CLOCK,
    DAY,
    Certificate,
    Claim,
    Flag,
    Seen,
    State,
    Verdict,
    Witness,
    claim_target,
    decide,
    make_claim,
    make_seen,
    read_claim,
    read_seen,
    seen_target,
)
from tests.descriptors import NOW, key, node
from tests.dht.test_items import paid

TODAY = int(NOW) // DAY
A, B, C = (node(number) for number in (1, 2, 3))
FOREVER = 1000  # days for which the nodes of these tests are known, where they are


@frozen
class Node:
    """A node that attests: its number, and what we know of it."""

    number: int
    known: int = FOREVER  # days
    network: str = ""
    source: int = 0
    stranger: bool = False

    @property
    def witness(self) -> Witness:
        network = self.network or f"10.0.{self.number}.0/24"
        return Witness(NOW - self.known * DAY, network, frozenset((node(5000 + (self.source or self.number)),)))


def nodes(first: int, count: int, **said: Any) -> list[Node]:
    return [Node(number, **said) for number in range(first, first + count)]


def weigh(*stories: tuple[bytes, int, list[Node], int], ruled: bool = True, **more: Any) -> Verdict:
    """Decide `blog`, each story being a key, how many days ago it was first seen, by whom, and with which flags."""
    told = [Claim("blog", story[0], int(NOW)) for story in stories]
    said = [
        Seen("blog", name, node(one.number), TODAY - days, TODAY, flags, 1, 1)
        for name, days, some, flags in stories
        for one in some
    ]
    known = {node(one.number): one.witness for _, _, some, _ in stories for one in some if not one.stranger}
    return decide("blog", told, said, known, NOW, ruled=ruled, **more)


def drafted(owner: NodeKey, target: bytes, kind: int, data: bytes, expires: int) -> Draft:
    return Draft.make(owner, target, kind, data, expires, 4)


class ConflictTests(SynchronousTestCase):
    """Twenty conflicts: who claims, who has seen it since when, and what is shown."""

    def check(self, verdict: Verdict, state: State, *order: bytes) -> None:
        self.assertEqual((verdict.state, tuple(one.key for one in verdict.candidates)[: len(order)]), (state, order))
        self.assertEqual(verdict.winner is not None, state is State.DECIDED)

    def test_01_nobody_claims_it(self) -> None:
        self.check(weigh(), State.UNKNOWN)

    def test_02_one_claim_that_nobody_has_seen(self) -> None:
        self.check(weigh((A, 0, [], 0)), State.CLAIMED, A)

    def test_03_one_claim_seen_by_two(self) -> None:
        self.check(weigh((A, 50, nodes(10, 2), 0)), State.CLAIMED, A)

    def test_04_one_claim_seen_by_three(self) -> None:
        self.check(weigh((A, 50, nodes(10, 3), 0)), State.DECIDED, A)

    def test_05_the_older_one_of_two_that_are_alike(self) -> None:
        self.check(weigh((A, 50, nodes(10, 5), 0), (B, 40, nodes(20, 5), 0)), State.AMBIGUOUS, A, B)

    def test_06_the_older_one_with_more_than_three_times_the_support(self) -> None:
        self.check(weigh((A, 50, nodes(10, 10), 0), (B, 40, nodes(20, 3), 0)), State.DECIDED, A, B)

    def test_07_exactly_a_third(self) -> None:
        self.check(weigh((A, 50, nodes(10, 9), 0), (B, 40, nodes(20, 3), 0)), State.AMBIGUOUS, A, B)

    def test_08_a_crowd_for_the_younger_one_does_not_win(self) -> None:
        self.check(weigh((A, 50, nodes(10, 3), 0), (B, 2, nodes(20, 40), 0)), State.AMBIGUOUS, A, B)

    def test_09_the_younger_one_with_too_few_to_count(self) -> None:
        self.check(weigh((A, 50, nodes(10, 3), 0), (B, 40, nodes(20, 2), 0)), State.DECIDED, A, B)

    def test_10_the_older_one_with_too_few_to_count(self) -> None:
        self.check(weigh((A, 900, nodes(10, 2), 0), (B, 40, nodes(20, 3), 0)), State.DECIDED, B, A)

    def test_11_many_attesters_of_one_network_are_one(self) -> None:
        crowd = nodes(20, 30, network="10.9.9.0/24")
        self.check(weigh((A, 900, crowd, 0)), State.CLAIMED, A)

    def test_12_many_attesters_told_of_by_one_source_are_one(self) -> None:
        crowd = nodes(20, 30, source=77)
        self.check(weigh((A, 900, crowd, 0), (B, 40, nodes(10, 3), 0)), State.DECIDED, B, A)

    def test_13_many_networks_and_sources_that_do_not_pair(self) -> None:
        """Three networks and three sources, but all of them through one network or one source."""
        crowd = [Node(20, network="a", source=number) for number in (1, 2, 3)]
        crowd = [evolve(one, number=20 + at) for at, one in enumerate(crowd)]
        crowd += [Node(30, network="b", source=1), Node(31, network="c", source=1)]
        verdict = weigh((A, 900, crowd, 0))
        self.check(verdict, State.CLAIMED, A)
        self.assertEqual(verdict.candidates[0].support, 2)

    def test_14_attesters_that_nobody_knows(self) -> None:
        verdict = weigh((A, 900, nodes(20, 50, stranger=True), 0), (B, 40, nodes(10, 3), 0))
        self.check(verdict, State.DECIDED, B, A)
        self.assertEqual([(one.attesters, one.strangers) for one in verdict.candidates], [(3, 0), (0, 50)])

    def test_15_attesters_that_are_known_for_less_than_a_week(self) -> None:
        self.check(weigh((A, 900, nodes(20, 50, known=6), 0), (B, 40, nodes(10, 3), 0)), State.DECIDED, B, A)
        self.check(weigh((A, 900, nodes(20, 3, known=7), 0)), State.DECIDED, A)

    def test_16_old_age_that_no_acquaintance_bears_out(self) -> None:
        """Nodes that came ten days ago say they saw it three years ago: it is as old as they are."""
        verdict = weigh((A, 1000, nodes(20, 9, known=10), 0), (B, 40, nodes(10, 3), 0))
        self.check(verdict, State.AMBIGUOUS, B, A)
        self.assertEqual([one.day for one in verdict.candidates], [TODAY - 40, TODAY - 10])

    def test_17_one_liar_does_not_move_the_median(self) -> None:
        said = [(A, 50, nodes(10, 4), 0), (A, 999, nodes(14, 1), 0), (A, 1, nodes(15, 1), 0)]
        verdict = weigh(*said)
        self.check(verdict, State.DECIDED, A)
        self.assertEqual(verdict.candidates[0].day, TODAY - 50)

    def test_18_attesters_that_met_a_wrong_key_do_not_count(self) -> None:
        verdict = weigh((A, 900, nodes(20, 5), Flag.WRONG_KEY), (B, 40, nodes(10, 3), 0))
        self.check(verdict, State.DECIDED, B, A)
        self.assertEqual(verdict.candidates[1].flags, {Flag.WRONG_KEY: 5})

    def test_19_silence_is_shown_and_takes_nothing_away(self) -> None:
        verdict = weigh((A, 50, nodes(10, 4), Flag.SILENT | Flag.NO_DESCRIPTOR))
        self.check(verdict, State.DECIDED, A)
        self.assertEqual(verdict.candidates[0].flags, {Flag.SILENT: 4, Flag.NO_DESCRIPTOR: 4})

    def test_20_three_of_like_standing(self) -> None:
        stories = [(one, 50 - at, nodes(10 * at + 10, 4), 0) for at, one in enumerate((A, B, C))]
        self.check(weigh(*stories), State.AMBIGUOUS, A, B, C)

    def test_a_network_without_rules_knows_no_acquaintance(self) -> None:
        crowd = nodes(20, 3, stranger=True)
        self.check(weigh((A, 0, crowd, 0), ruled=False), State.DECIDED, A)
        self.check(weigh((A, 0, crowd, 0)), State.CLAIMED, A)


class MergeTests(SynchronousTestCase):
    """Two networks become one, and in both somebody has the same name."""

    def test_each_had_its_own_and_now_both_are_shown(self) -> None:
        one, two = (A, 300, nodes(10, 6), 0), (B, 200, nodes(30, 4), 0)
        for net, owner in ((one, A), (two, B)):
            alone = weigh(net)
            self.assertEqual((alone.state, alone.candidates[0].key), (State.DECIDED, owner))
        merged = weigh(one, two)
        self.assertEqual((merged.state, merged.winner), (State.AMBIGUOUS, None))
        self.assertEqual([found.key for found in merged.candidates], [A, B])

    def test_order_of_arrival_changes_nothing(self) -> None:
        stories = [(A, 300, nodes(10, 6), 0), (B, 200, nodes(30, 4), 0), (C, 100, nodes(50, 2), 1)]
        self.assertEqual(weigh(*stories), weigh(*stories[::-1]))


class WeighTests(SynchronousTestCase):
    def test_one_attester_is_one_however_often_it_says_so(self) -> None:
        again = [Node(10)] * 9
        self.assertEqual(weigh((A, 50, again, 0)).candidates[0].support, 1)

    def test_the_last_word_of_an_attester_counts(self) -> None:
        said = [Seen("blog", A, node(number), TODAY - 50, TODAY - 1) for number in (10, 11, 12)]
        said.append(evolve(said[0], last=TODAY, flags=Flag.WRONG_KEY))
        known = {node(number): Node(number).witness for number in (10, 11, 12)}
        verdict = decide("blog", [Claim("blog", A, 0)], said, known, NOW)
        self.assertEqual((verdict.state, verdict.candidates[0].support), (State.CLAIMED, 2))

    def test_what_belongs_to_other_names_is_left_out(self) -> None:
        said = [Seen("blog", A, node(number), TODAY, TODAY) for number in (10, 11, 12)]
        known = {node(number): Node(number).witness for number in (10, 11, 12)}
        self.assertEqual(decide("shop", [Claim("blog", A, 0)], said, known, NOW).state, State.UNKNOWN)
        self.assertEqual(decide("blog", [Claim("blog", B, 0)], said, known, NOW).state, State.CLAIMED)

    def test_so_many_attesters_are_weighed_and_no_more(self) -> None:
        """Those that we know longest: a crowd that came later pushes nobody out."""
        crowd = nodes(1000, 400, known=8)
        verdict = weigh((A, 50, [*crowd, *nodes(10, 3)], 0))
        self.assertEqual((verdict.candidates[0].support, verdict.candidates[0].attesters), (ATTESTERS, 403))
        self.patch(claims, "ATTESTERS", 3)
        self.assertEqual(weigh((A, 50, [*crowd, *nodes(10, 3)], 0)).candidates[0].day, TODAY - 50)

    def test_a_handful_is_shown(self) -> None:
        verdict = weigh(*((node(number), 50, [], 0) for number in range(100, 100 + CLAIMS_SHOWN + 4)))
        self.assertEqual((len(verdict.candidates), verdict.others), (CLAIMS_SHOWN, 4))

    @given(st.data())
    def test_more_attestations_from_one_network_change_no_support(self, data: st.DataObject) -> None:
        crowd = data.draw(st.lists(st.builds(
            Node, st.integers(10, 40), st.just(FOREVER), st.sampled_from(("a", "b", "c", "d")), st.integers(1, 5)
        ), max_size=12, unique_by=lambda one: one.number))  # fmt: skip
        support = weigh((A, 50, crowd, 0)).candidates[0].support
        self.assertLessEqual(support, min(len({one.network for one in crowd}), len({one.source for one in crowd})))
        more = weigh((A, 50, [*crowd, *(evolve(one, number=one.number + 100) for one in crowd)], 0))
        self.assertEqual(more.candidates[0].support, support)


class RecordTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(claims, "CLAIM_EFFORT", 4)
        self.patch(claims, "SEEN_EFFORT", 4)

    def seen(self, **changed: Any) -> Seen:
        return evolve(Seen("blog", A, node(9), TODAY - 3, TODAY, 5, 7, 6), **changed)

    def test_claim(self) -> None:
        record = paid(make_claim(key(1), "blog", NOW))
        self.assertEqual((record.kind, record.data), (Kind.CLAIM, int(NOW).to_bytes(4, "big") + b"blog"))
        self.assertEqual(read_claim(Record.parse(record.target, record.raw), "blog", NOW), Claim("blog", A, int(NOW)))
        self.assertRaises(WrongName, make_claim, key(1), "-blog", NOW)

    def test_claims_that_are_refused(self) -> None:
        good = paid(make_claim(key(1), "blog", NOW))
        longer = drafted(key(1), claim_target("blog"), Kind.CLAIM, good.data, int(NOW) + RECORD_LIFE + 1)
        other = drafted(key(1), claim_target("blog"), Kind.CLAIM, good.data[:4] + b"shop", int(NOW) + 60)
        short = drafted(key(1), claim_target("blog"), Kind.CLAIM, b"x", int(NOW) + 60)
        kind = drafted(key(1), claim_target("blog"), Kind.TAG, good.data, int(NOW) + 60)
        for record, name in (
            (good, "shop"),
            (make_claim(key(1), "blog", NOW).record(), "blog"),
            *((paid(one), "blog") for one in (longer, other, short, kind)),
        ):
            with self.assertRaises(RemoteProtocolError):
                read_claim(record, name, NOW)

    def test_a_network_without_rules_asks_for_no_work(self) -> None:
        free = make_claim(key(1), "blog", NOW, ruled=False).record()
        self.assertEqual((read_claim(free, "blog", NOW, ruled=False).key, free.effort), (A, 1))
        self.assertEqual(
            read_seen(make_seen(key(9), self.seen(), NOW, ruled=False).record(), "blog", A, NOW, ruled=False),
            self.seen(),
        )

    def test_the_last_word_takes_the_place_of_the_first(self) -> None:
        before, after = (paid(make_claim(key(1), "blog", at)) for at in (NOW, NOW + DAY))
        self.assertEqual(before.name, after.name)
        self.assertNotEqual(before.name, paid(make_claim(key(2), "blog", NOW)).name)
        today, tomorrow = (paid(make_seen(key(9), self.seen(asked=asked), NOW)) for asked in (7, 8))
        self.assertEqual(today.name, tomorrow.name)

    def test_they_are_good_for_a_clock_that_is_an_hour_behind(self) -> None:
        read_claim(paid(make_claim(key(1), "blog", NOW)), "blog", NOW - CLOCK)

    def test_claims_of_keys_that_no_service_may_have(self) -> None:
        good = paid(make_claim(key(1), "blog", NOW))
        self.patch(claims, "valid", lambda public: public != A)
        with self.assertRaises(RemoteProtocolError):
            read_claim(good, "blog", NOW)

    def test_attestation(self) -> None:
        record = paid(make_seen(key(9), self.seen(), NOW))
        self.assertEqual(len(record.data), 10)
        self.assertEqual(read_seen(Record.parse(record.target, record.raw), "blog", A, NOW), self.seen())

    def test_attestations_that_are_refused(self) -> None:
        good = paid(make_seen(key(9), self.seen(), NOW))
        for name, service in (("shop", A), ("blog", B)):
            with self.assertRaises(RemoteProtocolError):
                read_seen(good, name, service, NOW)
        for changed in ({"first": TODAY + 2, "last": TODAY + 2}, {"first": TODAY, "last": TODAY - 1}, {"answered": 8}):
            with self.assertRaises(RemoteProtocolError, msg=str(changed)):
                read_seen(paid(make_seen(key(9), self.seen(**changed), NOW)), "blog", A, NOW)
        short = drafted(key(9), seen_target("blog", A), Kind.ATTESTATION, b"short", int(NOW) + 60)
        with self.assertRaises(RemoteProtocolError):
            read_seen(paid(short), "blog", A, NOW)

    def test_what_they_cost(self) -> None:
        claim, seen = paid(make_claim(key(1), "blog", NOW)), paid(make_seen(key(9), self.seen(), NOW))
        self.patch(claims, "CLAIM_EFFORT", 8)
        self.patch(claims, "SEEN_EFFORT", 8)
        with self.assertRaises(RemoteProtocolError):
            read_claim(claim, "blog", NOW)
        with self.assertRaises(RemoteProtocolError):
            read_seen(seen, "blog", A, NOW)

    def test_attestations_name_no_visitor(self) -> None:
        """A record holds days, flags and counts of a node that asks by itself, and nothing else: 10 bytes."""
        data = paid(make_seen(key(9), self.seen(), NOW)).data
        self.assertEqual(data.hex(), "515e5161000500070006")

    @given(st.binary(max_size=20))
    def test_any_noise(self, data: bytes) -> None:
        for number, target, reader in (
            (1, claim_target("blog"), lambda one: read_claim(one, "blog", NOW)),
            (9, seen_target("blog", A), lambda one: read_seen(one, "blog", A, NOW)),
        ):
            record = drafted(key(number), target, Kind.CLAIM if number == 1 else Kind.ATTESTATION, data, int(NOW) + 60)
            with contextlib.suppress(RemoteProtocolError):
                reader(paid(record))


class CertificateTests(SynchronousTestCase):
    SIGNER = NodeKey.from_seed(b"s" * 32)

    def test_round_trip(self) -> None:
        raw = Certificate.make(self.SIGNER, "blog", A, int(NOW))
        self.assertEqual(Certificate.read(raw), Certificate("blog", A, self.SIGNER.node_id, int(NOW)))
        self.assertLessEqual(len(Certificate.make(self.SIGNER, "x" * 32, A, 2**62)), CERTIFICATE_MAX)

    def test_every_byte_counts(self) -> None:
        raw = Certificate.make(self.SIGNER, "blog", A, int(NOW))
        for at in range(len(raw)):
            wrong = bytearray(raw)
            wrong[at] ^= 1
            with self.assertRaises(RemoteProtocolError):
                Certificate.read(bytes(wrong))
        with self.assertRaises(LimitExceeded):
            Certificate.read(raw + bytes(CERTIFICATE_MAX))

    def test_bad_parts(self) -> None:
        good: dict[bytes, Any] = {b"e": 1, b"k": A, b"n": b"blog", b"s": self.SIGNER.node_id}
        for word, value in (
            (b"e", b""), (b"k", b"k" * 32), (b"k", 1), (b"n", b"B"), (b"n", b"\xff\xff"), (b"n", 1),
            (b"s", b""), (b"s", A),
        ):  # fmt: skip
            body = bencode.encode({**good, word: value})
            with self.assertRaises(RemoteProtocolError):
                Certificate.read(self.SIGNER.sign(b"layer8/1 name certificate\0" + body) + body)

    @given(st.binary(max_size=CERTIFICATE_MAX + 1))
    def test_any_noise(self, data: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            Certificate.read(data)
