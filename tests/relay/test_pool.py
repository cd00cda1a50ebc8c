"""Circuits of a client: who shares them, how many there are, how long they last, and what is done when a hop fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from layer8.core.errors import Unavailable
from layer8.crypto.keys import id_text
from layer8.crypto.onion import CELLS_MAX
from layer8.relay import pool
from layer8.relay.guards import Guard, State
from layer8.relay.limits import (
    BUILD_AT_ONCE,
    CIRC_DIRTY,
    CIRC_IDLE,
    CIRC_LIFE,
    SPARE_CIRCS,
    STREAMS_PER_CIRC,
    T_HOP_LEAST,
    T_HOP_MOST,
)
from layer8.relay.origin import State as Origin
from layer8.relay.path import NoPath
from layer8.relay.pool import BUILD_TRIES, CELLS_ROOM, PAUSE, WAITING, NoCircuit
from layer8.relay.route import At, Named, Rand, Route
from layer8.relay.standing import LOOK, Need
from layer8.relay.wire import Open, Proto, Reason
from layer8.testing.network import Heard, Node
from tests.relay.pools import EXIT, PoolCase

PLAIN = Need(port=80)


def named(*nodes: Node) -> Route:
    return Route(tuple(Named(id_text(node.identity)) for node in nodes))


class SharingTests(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.nodes = self.small()
        self.pool.start()

    def test_only_equal_keys_share_a_circuit(self) -> None:
        one = self.get(Need(key="one", port=80))
        self.assertIs(self.get(Need(key="one", port=80)), one)
        other = self.get(Need(key="other", port=80))
        self.assertIsNot(other, one)
        self.assertIsNot(self.get(Need(key=None, port=80)), one)
        self.assertEqual((one.opened, other.opened), (2, 1))

    def test_nobody_joins_a_circuit_that_is_one_needs_alone(self) -> None:
        circuits = {self.get(Need(port=80, alone=alone)).number for alone in (True, True, False, True)}
        self.assertEqual(len(circuits), 4)

    def test_another_route_node_or_length_is_another_circuit(self) -> None:
        needs = [
            PLAIN,
            Need(route=named(self.nodes[0], self.nodes[4])),
            Need(last=self.nodes[1].identity),
            Need(port=80, hops=2),
            Need(port=80, layer2=True),
        ]
        circuits = [self.get(need) for need in needs]
        self.assertEqual(len({one.number for one in circuits}), 5)
        self.assertEqual([len(one.path) for one in circuits], [3, 2, 3, 2, 3])
        self.assertEqual(circuits[2].path[-1].identity, self.nodes[1].identity)
        self.assertEqual([self.get(need) for need in needs], circuits)

    def test_a_port_that_the_exit_does_not_reach_has_no_circuit(self) -> None:
        self.get(PLAIN)
        with self.assertRaises(NoPath):
            self.get(Need(port=22))

    def test_who_needs_the_same_waits_for_the_same_build(self) -> None:
        first, second, other = self.want(PLAIN), self.want(PLAIN), self.want(Need(key="other", port=80))
        self.assertEqual(self.pool.building, 2)
        self.until(lambda: first and second and other)
        self.assertIs(first[0], second[0])
        self.assertEqual(self.pool.built, 2)

    def test_a_full_circuit_takes_no_more(self) -> None:
        one = self.get(PLAIN)
        for _ in range(STREAMS_PER_CIRC):
            one.origin.open(Open(Proto.TCP, *EXIT), Heard())
        self.assertIsNot(self.get(PLAIN), one)


class SpareTests(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.nodes = self.small()
        self.pool.spares = SPARE_CIRCS

    def test_spares_are_built_before_anybody_asks_and_replaced(self) -> None:
        self.pool.start()
        self.until(lambda: self.pool.built == SPARE_CIRCS)
        got = self.want(Need(port=80, key=1))
        self.assertEqual([one.number for one in got], [1])  # at once
        self.until(lambda: self.pool.built == SPARE_CIRCS + 1)
        self.net.settle(5)
        self.assertEqual([one.need for one in self.pool.rows()], [Need(port=80, key=1), None, None])

    def test_a_spare_is_nobodys_who_wants_a_certain_way(self) -> None:
        self.pool.start()
        self.until(lambda: self.pool.built == SPARE_CIRCS)
        for need in (Need(route=named(*self.nodes[:2])), Need(last=self.nodes[0].identity), Need(port=80, hops=2)):
            self.assertGreater(self.get(need).number, SPARE_CIRCS)

    def test_one_that_is_never_used_is_replaced(self) -> None:
        self.pool.start()
        self.until(lambda: self.pool.built == SPARE_CIRCS)
        self.net.settle(CIRC_IDLE + 2 * LOOK)
        self.assertEqual([one.number for one in self.pool.rows()], [3, 4])

    def test_they_are_tried_again_with_pauses_and_at_once_in_a_hurry(self) -> None:
        for node in self.nodes:
            del self.net.by_endpoint[node.endpoint]
        self.pool.start()
        self.net.settle(100)
        few = self.pool.failures
        self.assertTrue(3 <= few <= 20, few)
        for node in self.nodes:
            self.net.by_endpoint[node.endpoint] = node
        self.pool.hurry()
        self.net.settle(PAUSE[0])
        self.assertEqual(len(self.pool.rows()), SPARE_CIRCS)


class AgeTests(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.small()
        self.pool.start()

    def test_a_dirty_circuit_takes_no_need_and_closes_with_its_last_stream(self) -> None:
        one = self.get(PLAIN)
        heard = Heard()
        stream = one.origin.open(Open(Proto.TCP, *EXIT), heard)
        self.net.settle(CIRC_DIRTY - 2)
        self.assertIs(self.get(PLAIN), one)
        self.net.settle(4)
        self.assertEqual(one.origin.state, Origin.DIRTY)
        self.assertIsNot(self.get(PLAIN), one)
        stream.write(b"still")
        self.until(lambda: heard.all == b"still")
        stream.close(Reason.DONE)
        self.until(lambda: one.origin.state is Origin.CLOSED)
        self.assertEqual(self.changes[-1], (one.number, "closed"))

    def test_an_idle_one_closes(self) -> None:
        one = self.get(PLAIN)
        self.net.settle(CIRC_IDLE + 2 * LOOK)
        self.assertEqual((one.origin.state, self.pool.rows()), (Origin.CLOSED, []))

    def test_a_kept_one_stays(self) -> None:
        """Whoever listens on a circuit has nothing else to say there for hours."""
        one = self.get(evolve(PLAIN, alone=True, kept=True))
        self.net.settle(2 * CIRC_IDLE + 2 * LOOK)
        self.assertEqual(one.origin.state, Origin.OPEN)

    def test_idle_is_counted_from_the_last_use(self) -> None:
        self.patch(pool, "CIRC_DIRTY", 10 * CIRC_IDLE)  # or it would close for that, in the same second
        one = self.get(PLAIN)
        self.net.settle(CIRC_IDLE / 2)
        self.assertIs(self.get(PLAIN), one)
        self.net.settle(CIRC_IDLE - 2 * LOOK)
        self.assertEqual(one.origin.state, Origin.OPEN)
        self.net.settle(4 * LOOK)
        self.assertEqual((one.origin.state, self.pool.rows()), (Origin.CLOSED, []))

    def test_one_whose_layers_have_carried_nearly_all_they_may(self) -> None:
        """It takes nothing new while there are still cells for what stands on it."""
        one = self.get(PLAIN)
        heard = Heard()
        stream = one.origin.open(Open(Proto.TCP, *EXIT), heard)
        self.heard(heard)
        one.origin._backward[0].cells = CELLS_MAX - CELLS_ROOM
        self.net.settle(2 * LOOK)
        self.assertEqual(one.origin.state, Origin.DIRTY)
        self.assertIsNot(self.get(PLAIN), one)
        stream.write(b"still")
        self.until(lambda: heard.all == b"still")

    def test_one_that_is_used_closes_after_a_day(self) -> None:
        one = self.get(PLAIN)
        heard = Heard()
        one.origin.open(Open(Proto.TCP, *EXIT), heard)
        one.since -= CIRC_LIFE
        self.net.settle(2 * LOOK)
        self.assertEqual(one.origin.state, Origin.DIRTY)
        self.assertIsNone(heard.reason)


class SpeedTests(PoolCase):
    def test_what_a_circuit_has_carried_is_what_its_nodes_are_weighed_by(self) -> None:
        self.small()
        self.pool.start()
        quick, slow = self.get(PLAIN), self.get(Need(key="slow", port=80))
        heard = Heard()
        quick.origin.open(Open(Proto.TCP, *EXIT), heard).write(bytes(1 << 20))
        slow.origin.open(Open(Proto.TCP, *EXIT), Heard()).write(b"few")
        self.fill(heard.pieces)
        self.net.settle(3)
        quick.close()
        slow.close()
        speeds = {peer.identity: peer.speed for peer in self.database}
        for node in quick.path:
            self.assertTrue(1 << 18 < speeds[node.identity] < 1 << 23, speeds[node.identity])
        only = {node.identity for node in slow.path} - {node.identity for node in quick.path}
        self.assertEqual({speeds[one] for one in only} - {0.0}, set())


class LimitTests(PoolCase):
    def test_so_many_are_built_at_a_time(self) -> None:
        self.small()
        self.pool.start()
        got = [self.want(Need(key=key, port=80)) for key in range(3 * BUILD_AT_ONCE)]
        most = 0
        while not all(got):
            most = max(most, sum(len(node.circuits.all) for node in (self.net.nodes[one] for one in self.net.nodes)))
            self.assertLessEqual(len(self.pool._builds), BUILD_AT_ONCE)
            self.assertTrue(self.net.clock.step())
        self.assertEqual(len({one[0].number for one in got}), 3 * BUILD_AT_ONCE)

    def test_full_links_lead_to_no_other_guard(self) -> None:
        """Whoever fills the links to our guards, by meeting a service of ours too often, brings us to no other one."""
        self.small()
        self.pool.start()
        self.get(PLAIN)
        guards = self.guards.primary
        self.assertEqual(len(guards), 2)
        full: list[bytes] = []

        class Full:
            def slot(self, taker: object) -> None:
                raise Unavailable("the link has as many circuits as it may")

        def reach(node: bytes, endpoints: object, done: Callable[[Any], None]) -> None:
            full.append(node)
            done(Full())

        self.pool.reach = reach
        for key in range(10):
            (error,) = self.want(Need(key=key, port=80, alone=True))
            self.assertEqual(error.reason, Reason.LIMIT)
        self.assertEqual(set(full), guards)
        self.assertEqual(self.guards.primary, guards)

    def test_so_many_wait(self) -> None:
        self.small()
        self.pool.start()
        got = [self.want(Need(key=key, port=80)) for key in range(WAITING + BUILD_AT_ONCE + 1)]
        self.assertEqual([len(one) for one in got[-2:]], [0, 1])
        self.assertEqual(got[-1][0].reason, Reason.LIMIT)
        self.pool.stop()
        self.assertEqual({len(one) for one in got}, {1})

    def test_a_hop_has_time_by_what_four_of_five_took(self) -> None:
        self.net.delay = 0.5
        self.small()
        self.pool.start()
        first = self.get(Need(key=0, port=80))
        self.assertEqual(first.origin.hop_time, T_HOP_MOST)
        for key in range(1, 5):
            self.get(Need(key=key, port=80))
        times = sorted(self.pool._times)
        last = self.get(Need(key="last", port=80))
        self.assertAlmostEqual(last.origin.hop_time, 1.5 * times[len(times) * 4 // 5])
        self.assertTrue(1.5 < last.origin.hop_time < T_HOP_MOST, last.origin.hop_time)

    def test_a_hop_has_a_second_and_a_half_at_least_and_ten_at_most(self) -> None:
        self.small()
        self.pool.start()
        for key in range(5):
            self.get(Need(key=key, port=80))
        self.assertEqual(self.get(Need(key="quick", port=80)).origin.hop_time, T_HOP_LEAST)
        self.pool._times.clear()
        self.net.delay = 1.15  # the third hop takes 6.9 s, and 2.3 s more where there is no link yet
        for key in range(5, 10):
            self.get(Need(key=key, port=80))
        self.assertEqual(self.get(Need(key="slow", port=80)).origin.hop_time, T_HOP_MOST)


class FailureTests(PoolCase):
    def test_a_hop_that_fails_is_replaced_and_the_circuit_goes_on_from_the_one_before(self) -> None:
        one, two, leaving = self.relay("one"), self.relay("two"), self.relay("exit", leaving=True)
        for name in ("dead 1", "dead 2"):
            self.dead(name)
        self.pool.start()
        seen = set()
        for key in range(20):
            need = Need(key=key, port=80, route=Route((Named(id_text(one.identity)), Rand(), Rand())))
            circuit = self.get(need)
            self.assertEqual([node.identity for node in circuit.path], [one.identity, two.identity, leaving.identity])
            seen.add(len(circuit.origin.times))
        self.assertEqual(one.circuits._number, 20)  # never begun anew
        self.assertGreater(sum(peer.bad for peer in self.database), 5)
        self.assertEqual(self.pool.failures, 0)

    def test_after_two_others_it_begins_again(self) -> None:
        one = self.relay("one")
        self.relay("exit", leaving=True)
        for number in range(12):
            self.dead(f"dead {number}")
        self.pool.start()
        need = Need(port=80, route=Route((Named(id_text(one.identity)), Rand(), Rand())))
        with self.assertRaises(NoCircuit) as caught:
            self.get(need)
        self.assertEqual(caught.exception.reason, Reason.UNREACHABLE)
        self.assertEqual(one.circuits._number, BUILD_TRIES)
        tried = sum(peer.bad for peer in self.database)
        self.assertEqual(tried, BUILD_TRIES * 3)
        self.assertEqual(self.pool.failures, 1)

    def test_a_hop_that_the_user_has_named_is_not_replaced(self) -> None:
        one, leaving, dead = self.relay("one"), self.relay("exit", leaving=True), self.dead("dead")
        self.relay("other")
        self.pool.start()
        with self.assertRaises(NoCircuit):
            self.get(Need(route=named(one, dead, leaving)))

    def test_a_guard_that_is_not_there_is_passed_over_and_remembered(self) -> None:
        dead = self.dead("dead")
        nodes = self.small()
        wall = self.wall()
        self.guards.restore(
            Guard(node.identity, since=wall, expires=wall + 1e7, state=State.VETTED, confirmed=wall - place)
            for place, node in ((9, dead), (8, dead), (1, nodes[0]))
        )
        self.guards.restore(self.guards.rows[1:])
        self.pool.start()
        keys = [self.get(Need(key=key, port=80)).path[0].identity for key in range(8)]
        self.assertNotIn(dead.identity, keys)
        self.assertIn(dead.identity, self.dialled)
        self.assertEqual(self.dialled.count(dead.identity), 1)
        (row,) = [row for row in self.guards.rows if row.identity == dead.identity]
        self.assertEqual(row.state, State.UNREACHABLE)

    def test_a_circuit_that_falls_while_it_is_built_begins_again_with_others(self) -> None:
        self.small()
        self.pool.start()
        got = self.want(PLAIN)
        self.until(lambda: any(build.origin and build.origin.hops for build in self.pool._builds))
        (build,) = self.pool._builds
        first = build.path[0].identity
        self.me.carriers[0].cut()
        self.until(lambda: got)
        self.assertNotIn(got[0], (None, first))
        self.assertEqual(build.tries, 2)
        self.assertEqual(got[0].origin.state, Origin.OPEN)

    def test_an_exit_that_falls_leaves_the_pool(self) -> None:
        self.small()
        self.pool.start()
        one = self.get(PLAIN)
        self.me.carriers[0].cut()
        self.assertEqual((one.origin.state, self.pool.rows()), (Origin.CLOSED, []))
        self.assertIsNot(self.get(PLAIN), one)


class AddressTests(PoolCase):
    def test_a_first_hop_by_its_address_alone(self) -> None:
        stranger, leaving = self.relay("stranger", known=False), self.relay("exit", leaving=True)
        self.pool.start()
        at = At(stranger.address.host, 9000)
        circuit = self.get(Need(route=Route((at, Named(id_text(leaving.identity))))))
        self.assertEqual([one.identity for one in circuit.path], [stranger.identity, leaving.identity])

    def test_nobody_there(self) -> None:
        self.pool.start()
        with self.assertRaises(NoCircuit) as caught:
            self.get(Need(route=Route((At("10.9.9.9", 9000),))))
        self.assertEqual(caught.exception.reason, Reason.UNREACHABLE)


class StopTests(PoolCase):
    def test_everything_ends_and_nothing_begins(self) -> None:
        nodes = self.small()
        with self.assertRaises(NoCircuit):
            self.get(PLAIN)  # not running yet
        self.pool.start()
        one = self.get(PLAIN)
        heard = Heard()
        one.origin.open(Open(Proto.TCP, *EXIT), heard)
        waiting = self.want(Need(key="other", port=80))
        self.pool.stop()
        self.assertEqual(heard.reason, Reason.RESET)
        self.assertEqual(waiting[0].reason, Reason.INTERNAL)
        self.assertEqual((self.pool.rows(), self.pool.building), ([], 0))
        self.net.settle(30)
        self.assertEqual([len(node.circuits.all) for node in nodes], [0] * 6)
        with self.assertRaises(NoCircuit):
            self.get(PLAIN)
