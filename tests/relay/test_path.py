"""The choice of hops: its rules, routes by hand, gateways, and a simulation of what comes out of many choices."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from layer8.crypto.descriptor import DAY, DESC_LIFE, Descriptor, Role
from layer8.crypto.keys import id_text, parse_id
from layer8.relay.database import USER, Database, Peer
from layer8.relay.guards import Guards, SecondHops
from layer8.relay.path import WEIGHT_MOST, NoPath, Paths, Stranger, Want, allows, fair, weigh
from layer8.relay.route import At, Named, Rand, Route, Via, parse_route
from tests.descriptors import MAIN, NOW, TEST, EasyWork, node, told
from tests.relay.peers import vetted

EXIT = Role.RELAY | Role.EXIT


def paths(known: Database, seed: int = 1, **more: Any) -> Paths:
    """Make the choice over a database, with guards of its own."""
    chance = random.Random(seed)
    return Paths(known, Guards(known, chance), chance, **more)


def ids(chosen: tuple[Descriptor, ...]) -> list[bytes]:
    """Name the hops."""
    return [one.identity for one in chosen]


def peer_of(known: Database, number: int) -> Peer:
    """Give a peer that is there."""
    peer = known.get(node(number))
    assert peer is not None
    return peer


def add(known: Database, number: int, known_as: str = "", **changed: Any) -> None:
    """Put a vetted node that two have told of into a database."""
    if known_as:
        changed["endpoints"] = (f"tcp:{known_as}:9000",)
    one = told(number, **changed)
    for source in (9001, 9002):
        known.learn(one, node(source), NOW)
    for _ in range(3):
        known.worked(one.identity, NOW)
    peer_of(known, number).first -= 2 * DAY


class RuleTests(EasyWork):
    def test_three_hops_by_default_and_one_to_eight_by_hand(self) -> None:
        chosen = paths(vetted(range(30)))
        self.assertEqual(len(chosen.choose(Want(), NOW)), 3)
        for hops in range(1, 9):
            self.assertEqual(len(set(ids(chosen.choose(Want(hops=hops), NOW)))), hops)
        for hops in (0, 9):
            with self.assertRaises(NoPath):
                chosen.choose(Want(hops=hops), NOW)

    def test_nobody_who_is_not_vetted(self) -> None:
        """G19: a fresh descriptor is chosen after 3 good circuits and not before."""
        known = vetted(range(2))
        for source in (9001, 9002):
            known.learn(told(5), node(source), NOW)
        chosen = paths(known)
        for _ in range(3):
            with self.assertRaises(NoPath):
                chosen.choose(Want(), NOW)
            self.assertEqual(chosen.vetting(NOW)[-1].identity, node(5))
            known.worked(node(5), NOW)
        self.assertIn(node(5), ids(chosen.choose(Want(), NOW)))
        with self.assertRaises(NoPath):
            chosen.vetting(NOW)

    def test_no_two_of_one_family(self) -> None:
        family = (node(1), node(2), node(3))
        known = vetted((1, 2, 3), family=family)
        for number in (10, 11):
            add(known, number)
        chosen = paths(known)
        for _ in range(60):
            self.assertEqual(len({node(1), node(2), node(3)} & set(ids(chosen.choose(Want(), NOW)))), 1)

    def test_family_that_only_one_of_two_claims_keeps_nobody_out(self) -> None:
        known = vetted((2, 3))
        add(known, 1, family=(node(2), node(3)))
        self.assertEqual(set(ids(paths(known).choose(Want(), NOW))), {node(1), node(2), node(3)})

    def test_no_two_of_one_16_or_32(self) -> None:
        known = Database(MAIN)
        for number, address in enumerate(("60.0.1.1", "60.0.2.1", r"2a01\:1\:2\:\:1", r"2a01\:1\:3\:\:1", "61.1.1.1")):
            add(known, number, known_as=address)
        chosen = paths(known)
        for _ in range(60):
            found = set(ids(chosen.choose(Want(), NOW)))
            self.assertEqual(len(found & {node(0), node(1)}), 1)
            self.assertEqual(len(found & {node(2), node(3)}), 1)
        with self.assertRaises(NoPath):
            chosen.choose(Want(hops=4), NOW)

    def test_no_rules_of_prefixes_in_a_network_for_tries(self) -> None:
        known = Database(TEST)
        for number in range(3):
            known.learn(told(number, TEST, endpoints=(f"tcp:127.0.0.1:{number + 1}",)), node(number), NOW)
        self.assertEqual(len(set(ids(paths(known).choose(Want(), NOW)))), 3)

    def test_only_relays_that_can_be_dialled(self) -> None:
        known = vetted(range(3))
        add(known, 5)
        known.learn(told(5, serial=2, roles=Role.TRACKER), node(9001), NOW)
        add(known, 6, endpoints=(), via=(node(1),))
        with self.assertRaises(NoPath):
            paths(known).choose(Want(hops=4), NOW)

    def test_those_that_have_just_failed(self) -> None:
        chosen = paths(vetted(range(6)))
        for _ in range(30):
            self.assertNotIn(node(3), ids(chosen.choose(Want(without=frozenset((node(3),))), NOW)))

    def test_an_exit_that_says_it_reaches_the_port(self) -> None:
        known = vetted(range(10))
        add(known, 20, roles=EXIT, exits=b"80,443")
        add(known, 21, roles=EXIT, exits=b"22,6000-6999")
        add(known, 22, roles=EXIT, exits=b"x")
        add(known, 23, exits=b"80")  # not in the role
        chosen = paths(known)
        for port, exits in ((80, 20), (443, 20), (22, 21), (6500, 21)):
            for _ in range(5):
                self.assertEqual(chosen.choose(Want(port=port), NOW)[-1].identity, node(exits))
        self.assertEqual(ids(chosen.choose(Want(port=80, hops=1), NOW)), [node(20)])
        with self.assertRaisesRegex(NoPath, "no exit for port 25"):
            chosen.choose(Want(port=25), NOW)
        self.assertFalse(allows(told(22, exits=b"x", roles=EXIT), 80))

    def test_memory_is_enough(self) -> None:
        """G11: with every tracker dead and every descriptor expired, circuits are still made from memory."""
        known = vetted(range(6))
        later = NOW + DESC_LIFE + 10 * DAY
        guards = Guards(known, random.Random(1))
        chosen = Paths(known, guards, random.Random(1))
        chosen.choose(Want(), NOW)
        self.assertEqual(len(chosen.choose(Want(), later)), 3)

    def test_the_living_come_before_the_remembered(self) -> None:
        known = vetted(range(20))
        later = NOW + DESC_LIFE
        for number in range(12):
            for source in (9001, 9002):
                known.learn(told(number, now=later, serial=2), node(source), later)
        chosen = paths(known)
        live = {node(number) for number in range(12)}
        for _ in range(50):
            self.assertLessEqual(set(ids(chosen.choose(Want(), later))), live)

    def test_where_few_live_the_remembered_are_used_rarely(self) -> None:
        known = vetted(range(26))
        later = NOW + DESC_LIFE
        for number in range(6):
            for source in (9001, 9002):
                known.learn(told(number, now=later, serial=2), node(source), later)
        chosen = paths(known)
        live = {node(number) for number in range(6)}
        ends = [chosen.choose(Want(hops=2), later)[1].identity in live for _ in range(400)]
        self.assertTrue(0.5 < sum(ends) / len(ends) < 0.95, sum(ends))

    def test_a_co_signed_list(self) -> None:
        known = vetted(range(20))
        listed = frozenset(node(number) for number in range(5))
        chosen = paths(known, snapshot=lambda: listed)
        for _ in range(30):
            self.assertLessEqual(set(ids(chosen.choose(Want(), NOW))), listed)


class VettingTests(EasyWork):
    """Circuits that try nodes, built by somebody for whom some nodes are dead."""

    def tried(self, known: Database, tries: int, *dead: int) -> list[list[bytes]]:
        """Build so many, or until there is nobody left to try; note every node as a pool does."""
        chosen, gone = paths(known), set(map(node, dead))
        circuits: list[list[bytes]] = []
        for _ in range(tries):
            try:
                path = ids(chosen.vetting(NOW))
            except NoPath:
                break
            circuits.append(path)
            self.assertEqual(len(set(path)), len(path))
            bad = next((identity for identity in path if identity in gone), None)
            if bad is not None:
                known.failed(bad)
                continue
            for identity in path:
                known.worked(identity, NOW)
        return circuits

    def fresh(self, count: int) -> Database:
        known = Database(MAIN)
        for number in range(count):
            for source in (9001, 9002):
                known.learn(told(number), node(source), NOW)
        return known

    def test_a_node_that_has_just_begun(self) -> None:
        """Nobody is vetted, and soon everybody is."""
        known = self.fresh(12)
        self.assertLess(len(self.tried(known, 100)), 40)
        self.assertTrue(all(known.vetted(peer) for peer in known))

    def test_one_node_is_enough_to_begin(self) -> None:
        self.assertEqual(self.tried(self.fresh(1), 10), [[node(0)]] * 3)

    def test_the_dead_do_not_hold_up_the_others(self) -> None:
        known = self.fresh(6)
        circuits = self.tried(known, 80, 0, 1)
        found = {peer.identity for peer in known if known.vetted(peer)}
        self.assertEqual(found, {node(number) for number in range(2, 6)})
        self.assertEqual({path[-1] for path in circuits[-10:]}, {node(0), node(1)})  # tried on and on

    def test_the_others_of_the_circuit_are_vetted_where_there_are_enough(self) -> None:
        known = vetted(range(25))
        known.learn(told(60), node(9001), NOW)
        circuits = self.tried(known, 10)
        self.assertEqual([(path[-1], len(path)) for path in circuits], [(node(60), 3)] * 3)

    def test_nothing_to_try_where_there_are_no_rules(self) -> None:
        known = Database(TEST)
        known.learn(told(1, TEST), node(9001), NOW)
        self.assertEqual(self.tried(known, 1), [])


class HandTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.known = vetted(range(12))
        self.chosen = paths(self.known, aliases={"home": node(7)})

    def hops(self, text: str, **more: Any) -> list[bytes]:
        """Choose by a route as it is written."""
        return ids(self.chosen.choose(Want(route=parse_route(text), **more), NOW))

    def test_exactly_these(self) -> None:
        """G3."""
        text = ">".join(id_text(node(number)) for number in (3, 4, 5))
        self.assertEqual(self.hops(text), [node(3), node(4), node(5)])
        self.assertEqual(self.hops(f"{id_text(node(3))[:8].upper()}>home>60.5.0.1"), [node(3), node(7), node(5)])
        self.assertEqual(self.hops("60.5.0.1:9000>rand>home")[::2], [node(5), node(7)])

    def test_random_ones_in_between_keep_the_rules(self) -> None:
        self.known.learn(told(50, endpoints=("tcp:60.7.9.9:1",)), node(9001), NOW)
        for _ in range(3):
            self.known.worked(node(50), NOW)
        for _ in range(40):
            found = self.hops("rand>*>home")
            self.assertEqual(len(set(found)), 3)
            self.assertNotIn(node(50), found)  # the same /16 as home

    def test_without_vetting_but_not_twice(self) -> None:
        self.known.learn(told(60), node(9001), NOW)
        self.assertEqual(self.hops("60.60.0.1>rand")[0], node(60))
        with self.assertRaisesRegex(NoPath, "twice"):
            self.hops("home>rand>home")

    def test_an_end_that_is_wanted(self) -> None:
        self.assertEqual(ids(self.chosen.choose(Want(last=node(4)), NOW))[-1], node(4))
        self.assertEqual(ids(self.chosen.choose(Want(last=node(4), hops=1), NOW)), [node(4)])
        with self.assertRaises(NoPath):
            self.chosen.choose(Want(last=node(99)), NOW)
        with self.assertRaises(NoPath):
            self.hops("rand>home", last=node(4))

    def test_names_of_nobody_and_of_many(self) -> None:
        for text in ("abcdefgh", "short", "rand>192.0.2.1:9000", "abc.l8.alt"):
            with self.assertRaises(NoPath, msg=text):
                self.hops(text)
        for number in (30, 31):
            self.known.learn(told(number, endpoints=("tcp:relay.example:9000",)), node(9001), NOW)
        with self.assertRaisesRegex(NoPath, "more than one"):
            self.hops("relay.example:9000")

    def test_an_unknown_address_is_dialled_only_as_the_first_hop(self) -> None:
        with self.assertRaises(Stranger) as caught:
            self.hops("192.0.2.1:9000>rand")
        self.assertEqual(caught.exception.at, At("192.0.2.1", 9000))
        with self.assertRaises(NoPath) as other:
            self.hops("rand>192.0.2.1:9000")
        self.assertNotIsInstance(other.exception, Stranger)

    def test_a_hop_that_goes_on_by_itself_is_any(self) -> None:
        chosen = self.chosen.choose(Want(route=Route((Rand(), Via(2)))), NOW)
        self.assertEqual(len(chosen), 2)


class GatewayTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.known = vetted(range(8))
        self.known.learn(told(50, endpoints=(), via=(node(70), node(3))), node(9001), NOW)
        self.chosen = paths(self.known)

    def test_a_gateway_comes_before(self) -> None:
        """G16."""
        dark = Named(id_text(node(50)))
        found = ids(self.chosen.choose(Want(route=Route((Rand(), dark))), NOW))
        self.assertEqual(found[-2:], [node(3), node(50)])
        self.assertLessEqual(len(found), 3)
        self.assertEqual(ids(self.chosen.choose(Want(route=Route((dark,))), NOW)), [node(3), node(50)])

    def test_a_gateway_that_is_there_already(self) -> None:
        route = Route((Named(id_text(node(3))), Named(id_text(node(50)))))
        self.assertEqual(ids(self.chosen.choose(Want(route=route), NOW)), [node(3), node(50)])

    def test_no_gateway(self) -> None:
        self.known.pin(node(51))
        self.known.learn(told(51, endpoints=(), via=(node(70),)), node(9001), NOW)
        with self.assertRaisesRegex(NoPath, "gateway"):
            self.chosen.choose(Want(last=node(51)), NOW)
        used = Route((Named(id_text(node(3))), Rand(), Named(id_text(node(50)))))
        with self.assertRaisesRegex(NoPath, "gateway"):
            for _ in range(50):
                self.chosen.choose(Want(route=used), NOW)

    def test_eight_hops_with_them(self) -> None:
        with self.assertRaisesRegex(NoPath, "8 hops"):
            self.chosen.choose(Want(hops=8, last=node(50)), NOW)


class FairTests(EasyWork):
    def peers(self, *sources: tuple[int, ...]) -> list[Peer]:
        """Make peers, each with the numbers of its sources; its own number stands for itself."""
        made = []
        for number, mine in enumerate(sources):
            made.append(Peer(told(number), NOW, NOW, {node(one) if one else USER: NOW for one in mine}))
        return made

    def left(self, peers: list[Peer], *pins: int) -> Counter[frozenset[bytes]]:
        kept = fair(peers, random.Random(3), {node(number) for number in pins})
        return Counter(peer.told for peer in kept)

    def test_one_source_has_at_most_half(self) -> None:
        many = self.peers(*((500,),) * 9, (501,), (502,), (503, 500))
        kept = self.left(many)
        self.assertEqual(kept[frozenset((node(500),))], 3)
        self.assertEqual(sum(kept.values()), 6)

    def test_a_source_alone_supplies_nobody(self) -> None:
        self.assertEqual(sum(self.left(self.peers(*((500,),) * 5)).values()), 0)

    def test_what_two_have_told_depends_on_neither(self) -> None:
        self.assertEqual(sum(self.left(self.peers(*((500, 501),) * 5)).values()), 5)

    def test_nodes_that_speak_for_themselves_are_one_source(self) -> None:
        kept = self.left(self.peers((0, 0), *((number,) for number in range(1, 9)), (500, 501), (500, 501)))
        self.assertEqual(kept[frozenset()], 3)

    def test_what_the_user_has_named_is_from_no_source(self) -> None:
        self.assertEqual(sum(self.left(self.peers(*((0,),) * 5)).values()), 5)
        self.assertEqual(sum(self.left(self.peers(*((500,),) * 4), 0, 1).values()), 4)

    @given(st.lists(st.lists(st.integers(500, 503), max_size=2).map(tuple), max_size=12), st.integers())
    @settings(max_examples=40)
    def test_always(self, sources: list[tuple[int, ...]], seed: int) -> None:
        kept = fair(self.peers(*sources), random.Random(seed))
        only = Counter(next(iter(peer.told), b"") for peer in kept if len(peer.told) <= 1)
        self.assertTrue(all(2 * count <= len(kept) for count in only.values()))


class WeightTests(EasyWork):
    def test_our_measurements_capped_at_four_times_the_median(self) -> None:
        known = vetted(range(9))
        for number in range(1, 9):
            known.measured(node(number), 100.0 if number < 8 else 1e9)
        weights = dict(zip((peer.identity for peer in known), weigh(list(known)), strict=True))
        self.assertEqual(weights[node(8)], WEIGHT_MOST * weights[node(1)])
        self.assertEqual(weights[node(0)], weights[node(1)])  # not measured yet: the median
        for _ in range(96):
            known.failed(node(2))
        self.assertLess(weigh([peer_of(known, 2), peer_of(known, 3)])[0], weights[node(1)] / 10)
        self.assertEqual(weigh([]), [])

    def test_claims_carry_no_weight(self) -> None:
        known = vetted(range(4))
        known.learn(told(1, serial=2, roles=Role.RELAY | Role.HUB), node(9001), NOW)
        self.assertEqual(len(set(weigh(list(known)))), 1)


HOPS = st.one_of(st.just(Rand()), st.integers(0, 12).map(lambda number: Named(id_text(node(number)))))


class AnyTests(EasyWork):
    """Whatever is known and wanted: a path that keeps every rule, or none."""

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 9), max_size=2), st.booleans()), max_size=10),
        st.lists(HOPS, max_size=5),
        st.integers(0, 8),
        st.sampled_from([0, 80]),
        st.integers(0, 99),
    )
    def test_any_network(
        self, nodes: list[tuple[int, set[int], bool]], hops: list[Rand | Named], count: int, port: int, seed: int
    ) -> None:
        known = Database(MAIN)
        for number, (network, family, is_exit) in enumerate(nodes):
            told_of: dict[str, Any] = {"endpoints": (f"tcp:60.{network}.{number}.1:9000",) if number != 9 else ()}
            told_of |= {"via": (node(number - 1),) if number == 9 else (), "family": tuple(map(node, family))}
            told_of |= {"roles": EXIT if is_exit else Role.RELAY, "exits": b"80" if is_exit else b""}
            add(known, number, **told_of)
        want = Want(Route(tuple(hops)), hops=count, port=port)
        try:
            chosen = paths(known, seed).choose(want, NOW)
        except NoPath:
            return
        self.assertEqual(len(set(ids(chosen))), len(chosen))
        self.assertLessEqual(len(chosen), 8)
        named = {hop.name for hop in hops if isinstance(hop, Named)}
        by_hand = [id_text(one.identity) in named or one.identity == node(8) for one in chosen]
        for at, one in enumerate(chosen):
            for before in range(at):
                if not (by_hand[at] and by_hand[before]):
                    self.assertFalse(known.alike(one, chosen[before]))
        if port and not by_hand[-1]:
            self.assertTrue(allows(chosen[-1], port))
        at = 0
        for hop in hops:  # in the order in which they were written, gateways between them
            if isinstance(hop, Named):
                at += ids(chosen)[at:].index(parse_id(hop.name))
            at += 1


class SimulationTests(EasyWork):
    """A network of 120 nodes, of which one source invented a third; 1,500 circuits of one client."""

    def test_what_comes_out(self) -> None:
        def sources(number: int) -> tuple[int, ...]:
            return (500,) if number < 40 else (501, 502) if number % 2 else (503,)

        known = vetted(range(120), sources, roles=EXIT, exits=b"80")
        chance = random.Random(7)
        for peer in known:
            known.measured(peer.identity, chance.uniform(50.0, 150.0))
        fast = node(119)
        known.measured(fast, 1e12)
        guards = Guards(known, chance)
        chosen = Paths(known, guards, chance, layer2=SecondHops(known, chance))
        firsts: Counter[bytes] = Counter()
        others: Counter[bytes] = Counter()
        for _ in range(1500):
            circuit = chosen.choose(Want(port=80), NOW)
            for at, one in enumerate(circuit):
                self.assertFalse(any(known.alike(one, other) for other in circuit[:at]))
            firsts[circuit[0].identity] += 1
            others.update(ids(circuit[1:]))
        self.assertEqual(len(firsts), 2)  # two guards, both used
        self.assertGreater(min(firsts.values()), 600)
        invented = sum(others[node(number)] for number in range(40)) / sum(others.values())
        self.assertLess(invented, 0.42)
        mean = sum(others.values()) / len(others)
        self.assertEqual(others.most_common(1)[0][0], fast)
        self.assertLess(others[fast], 6 * mean)
        self.assertGreater(len(others), 110)
        self.assertLess(others.most_common(2)[1][1], 3 * mean)

    def test_a_source_that_floods(self) -> None:
        """A hundred nodes that one source alone knows are half of the candidates at most."""
        known = vetted(range(120), lambda number: (500,) if number >= 20 else (501, 502))
        chosen = paths(known)
        others: Counter[bool] = Counter()
        for _ in range(400):
            circuit = chosen.choose(Want(), NOW)
            others.update(one.identity in {node(number) for number in range(20)} for one in circuit[1:])
        self.assertGreater(others[True] / (others[True] + others[False]), 0.4)

    def test_second_hops_are_few(self) -> None:
        known = vetted(range(40))
        chance = random.Random(2)
        chosen = Paths(known, Guards(known, chance), chance, layer2=SecondHops(known, chance))
        seconds = {chosen.choose(Want(layer2=True), NOW)[1].identity for _ in range(100)}
        self.assertLessEqual(len(seconds), 4)
        self.assertGreater(len({chosen.choose(Want(), NOW)[1].identity for _ in range(100)}), 15)

    def test_whoever_is_shunned_is_left_out_behind_guards_only(self) -> None:
        known = vetted(range(40))
        chance = random.Random(3)
        guards = Guards(known, chance)
        chosen = Paths(known, guards, chance, layer2=SecondHops(known, chance))
        before = [ids(chosen.choose(Want(layer2=True), NOW)) for _ in range(50)]
        firsts, seconds = {one[0] for one in before}, {one[1] for one in before}
        shun = frozenset((*firsts, *seconds, *(node(number) for number in range(20))))
        after = [ids(chosen.choose(Want(layer2=True, shun=shun), NOW)) for _ in range(50)]
        self.assertEqual({one[0] for one in after}, firsts)
        self.assertLessEqual({one[1] for one in after}, seconds)
        self.assertEqual({one[2] for one in after} & shun, set())
        plain = [ids(chosen.choose(Want(shun=shun), NOW)) for _ in range(50)]
        self.assertEqual({one[0] for one in plain}, firsts)
        self.assertEqual({hop for one in plain for hop in one[1:]} & shun, set())
