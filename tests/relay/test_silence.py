"""Relays that hang: nothing is said any more, and the link of the first one still looks well."""

from __future__ import annotations

from typing import Any

from layer8.relay.client import Open, Proto, Reason
from layer8.relay.guards import State as Guard
from layer8.relay.limits import SHUNNED, T_HOP_LEAST, T_PROBE, T_SHUN, T_SILENT, T_STREAM
from layer8.relay.links import doubt
from layer8.relay.origin import NOWHERE, State
from layer8.relay.path import Want
from layer8.relay.standing import LOOK, Circuit, Need
from layer8.relay.stream import Stream
from layer8.testing.network import Heard, Node
from tests.relay.pools import EXIT
from tests.relay.test_client import ClientCase, Silent

TARGET = Open(Proto.TCP, *EXIT)


class HangTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.pool.doubt = lambda node, hangs: doubt(self.me.links[node], self.net.clock.seconds(), hangs)

        for number in range(4):  # then it is known how long a hop takes
            self.get(Need(key=number))

    def hang(self, circuit: Circuit, place: int) -> bytes:
        """Let a hop of a circuit read nothing and say nothing on any link that it has."""
        identity = circuit.path[place].identity
        (node,) = (one for one in self.nodes if one.identity == identity)
        del self.net.by_endpoint[node.endpoint]
        for carrier in node.carriers:
            carrier.hold(True)
            carrier.spoil = lambda data: b""
        return identity

    def heals(self, place: int) -> bytes:
        """Let a hop hang, open a stream, and see that it comes about on another circuit."""
        heard, stream = self.open()
        self.heard(heard)
        circuit = stream.circuit
        bad = self.hang(circuit, place)
        begun = self.net.clock.seconds()
        waiting, slow = self.open()
        self.net.settle(T_SILENT + LOOK)
        # Who comes now is not sent there any more.
        later, quick = self.open()
        self.heard(later)
        self.assertEqual(later.words, ["opened"])
        self.assertIsNot(quick.circuit, circuit)
        self.heard(waiting)
        self.assertEqual(waiting.words, ["opened"])
        self.assertLess(self.net.clock.seconds() - begun, T_SILENT + T_PROBE + 3 * LOOK + 2 * T_HOP_LEAST)
        self.assertIs(circuit.origin.state, State.CLOSED)
        self.assertEqual(heard.words[-1], "closed")
        self.assertNotIn(bad, {one.identity for one in slow.circuit.path})
        return bad

    def test_spares_with_a_hop_of_it_are_not_kept(self) -> None:
        self.pool.spares = 2
        self.pool.hurry()
        self.until(lambda: sum(one.need is None for one in self.pool.rows()) == 2)
        bad = self.heals(2)
        self.net.settle(T_PROBE)
        spares = [one for one in self.pool.rows() if one.need is None]
        self.assertEqual([bad in {hop.identity for hop in one.path} for one in spares], [False, False])

    def test_the_first_hop(self) -> None:
        bad = self.heals(0)
        self.assertEqual({Guard.UNREACHABLE}, {guard.state for guard in self.guards.rows if guard.identity == bad})

    def test_the_second_hop(self) -> None:
        self.heals(1)

    def test_the_exit(self) -> None:
        self.heals(2)

    def test_a_target_that_does_not_answer(self) -> None:
        """The circuit is asked, stands, and is left in peace for as long again."""
        asked: list[tuple[Node, Stream]] = []
        probes: list[Stream] = []
        for node in self.nodes[4:]:

            def ask(circuit: object, stream: Stream, target: Open, node: Node = node) -> None:
                if target == NOWHERE:
                    probes.append(stream)
                    stream.close(Reason.RESOLVE)
                else:
                    asked.append((node, stream))

            node.circuits.asked = ask
        heard, stream = self.open()
        self.until(lambda: asked)
        circuit = stream.circuit
        self.net.settle(T_STREAM - 2)
        self.assertEqual((len(asked), heard.words), (1, []))
        self.assertIs(circuit.origin.state, State.OPEN)
        self.assertGreater(len(probes), 1)
        self.assertLess(len(probes), T_STREAM / T_SILENT)
        # It takes new ones as well.
        other: Heard = self.open()[0]
        self.fill(asked, 2)
        self.assertEqual((len(asked), other.words), (2, []))
        self.assertIs(circuit.origin.state, State.OPEN)
        stream.close()
        self.assertEqual(len(circuit.waiting), 1)

    def test_a_stream_that_says_something_and_hears_nothing(self) -> None:
        """Nobody opens anything, and it is known all the same."""
        heard, stream = self.open()
        self.heard(heard)
        self.hang(stream.circuit, 1)
        stream.write(b"is anybody there?")
        self.net.settle(T_SILENT + T_PROBE + 3 * LOOK)
        self.assertEqual((heard.words, heard.reason), (["opened", "closed"], Reason.TIMEOUT))

    def test_a_stream_that_waits_for_news(self) -> None:
        """What was said is asked about while nothing has come after it, and what was answered never."""
        probes: list[Stream] = []
        for node in self.nodes[4:]:
            node.serve("slow.test", 80, Silent)
            asked = node.circuits.asked

            def ask(circuit: Any, stream: Stream, target: Open, asked: Any = asked) -> None:
                if target == NOWHERE:
                    probes.append(stream)
                    stream.close(Reason.RESOLVE)
                else:
                    asked(circuit, stream, target)

            node.circuits.asked = ask
        heard, stream = self.open()
        self.heard(heard)
        stream.write(b"an echo comes")
        self.net.settle(60)
        self.assertEqual(len(probes), 0)
        slow, other = self.open(Open(Proto.TCP, "slow.test", 80), key="slow")
        self.heard(slow)
        other.write(b"news, please")
        self.net.settle(60)
        self.assertEqual(len(probes), 1)  # its answer is later than what was said
        self.assertEqual((heard.all, heard.words, slow.words), (b"an echo comes", ["opened"], ["opened"]))

    def test_others_do_without_its_hops_for_a_minute(self) -> None:
        bad = self.heals(1)
        self.assertIn(bad, self.pool.shunned())
        for number in range(20):
            circuit = self.get(Need(key=("other", number)))
            self.assertNotIn(bad, {one.identity for one in circuit.path[1:]})
        self.net.settle(T_SHUN)
        self.assertEqual(self.pool.shunned(), frozenset())

    def test_where_there_is_nobody_else_they_are_taken(self) -> None:
        _, stream = self.open()
        self.until(lambda: stream.circuit)
        want = Want(shun=frozenset(one.identity for one in self.nodes))
        self.assertEqual(len(self.paths.choose(want, self.pool.wall())), 3)

    def test_so_many_are_shunned_and_no_more(self) -> None:
        nodes = [bytes((number,)) * 32 for number in range(SHUNNED + 3)]
        for node in (*nodes, nodes[4]):
            self.pool.shun([node], self.net.clock.seconds())
        self.assertEqual(self.pool.shunned(), frozenset(nodes[3:]))
