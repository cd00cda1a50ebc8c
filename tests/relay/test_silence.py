"""Relays that hang: nothing is said any more, and the link of the first one still looks well."""

from __future__ import annotations

from layer8.relay.client import Open, Proto, Reason
from layer8.relay.guards import State as Guard
from layer8.relay.limits import T_HOP_LEAST, T_PROBE, T_SILENT, T_STREAM
from layer8.relay.links import doubt
from layer8.relay.origin import NOWHERE, State
from layer8.relay.pool import LOOK, Circuit, Need
from layer8.relay.stream import Stream
from layer8.testing.network import Heard, Node
from tests.relay.pools import EXIT
from tests.relay.test_client import ClientCase

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
