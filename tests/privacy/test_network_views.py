"""Who learns what of a circuit: everything that each node of a network in memory has seen is searched.

::

    client 10.x ── guard ── middle ── exit ── target.marked.test

Each search also looks for something that has to be there, so that one that finds nothing by mistake fails.
"""

from __future__ import annotations

from functools import cache

from attrs import define
from twisted.trial.unittest import SynchronousTestCase

from layer8.relay.limits import PAD_MOST
from layer8.relay.origin import Origin
from layer8.relay.wire import CELL, Open, Proto
from layer8.testing.network import Echo, Heard, Network, Node, View

TARGET = "target.marked.test"
PLAINTEXT = b"MARK-of-what-is-said-4711"
OTHER = b"MARK-of-another-client-4712"


@define(eq=False)
class Scene:
    """A client with a circuit of three hops, another client with another guard, and what all of them have seen."""

    net: Network
    client: Node
    other: Node
    guard: Node
    middle: Node
    exit: Node
    second: Node  # guard of the other client
    circuit: Origin


@cache
def scene() -> Scene:
    """Let two clients fetch something, and some time pass."""
    net = Network()
    client, other = net.client("client"), net.client("other client")
    guard, second, middle, leaving = (net.relay(name) for name in ("guard", "second", "middle", "exit"))
    leaving.serve(TARGET, 443, Echo)
    circuits = [net.build(client, guard, middle, leaving), net.build(other, second, middle, leaving)]
    for circuit, mark in zip(circuits, (PLAINTEXT, OTHER), strict=True):
        sink = Heard()
        stream = circuit.open(Open(Proto.TCP, TARGET, 443), sink)
        stream.write(mark * 500)
        net.run(lambda sink=sink: len(sink.all) == len(mark) * 500)  # type: ignore[misc] # noqa: B023
        stream.end()
    net.settle(100)
    return Scene(net, client, other, guard, middle, leaving, second, circuits[0])


class ViewCase(SynchronousTestCase):
    """Searches of one party's view, for raw bytes, hexadecimal digits and addresses."""

    def setUp(self) -> None:
        self.scene = scene()

    def sees(self, view: View, *what: bytes | str) -> None:
        for one in what:
            self.assertTrue(self.found(view, one), f"{one!r} has to be there")

    def sees_no(self, view: View, *what: bytes | str) -> None:
        for one in what:
            self.assertFalse(self.found(view, one), f"{one!r} is there")

    def found(self, view: View, what: bytes | str) -> bool:
        if isinstance(what, str):
            return view.has(what)
        return view.has(what) or view.has(what.hex())

    def addresses(self, node: Node) -> tuple[bytes | str, ...]:
        """Give everything that names a node."""
        return node.identity, node.address.host, node.endpoint


class HopTests(ViewCase):
    def test_guard(self) -> None:
        """The client's address and the second hop; no target, no content, no exit."""
        scene = self.scene
        self.sees(scene.guard.view, scene.client.address.host, scene.middle.identity, scene.middle.endpoint)
        self.sees_no(scene.guard.view, TARGET, PLAINTEXT, *self.addresses(scene.exit), scene.circuit.binding)

    def test_middle(self) -> None:
        """The hops beside it; neither the client nor the target. G23: none of what the last hop reads."""
        scene = self.scene
        self.sees(scene.middle.view, scene.guard.identity, scene.exit.identity, scene.exit.endpoint)
        self.sees_no(scene.middle.view, scene.client.address.host, scene.other.address.host)
        self.sees_no(scene.middle.view, TARGET, PLAINTEXT, OTHER)

    def test_exit(self) -> None:
        """The hop before it, the target and what is said to it; no client and no guard."""
        scene = self.scene
        self.sees(scene.exit.view, scene.middle.identity, TARGET, PLAINTEXT)
        self.sees_no(scene.exit.view, *self.addresses(scene.client), *self.addresses(scene.guard))

    def test_clients(self) -> None:
        """Nobody ever hears a client's identity, since it has none; and clients hear nothing of each other."""
        scene = self.scene
        for node in scene.net.nodes.values():
            self.sees_no(node.view, scene.client.identity, scene.other.identity)
        self.sees(scene.client.view, scene.guard.address.host)
        self.sees_no(scene.client.view, OTHER, scene.other.address.host)

    def test_each_client_s_hops(self) -> None:
        """A guard hears nothing of circuits that do not pass it."""
        scene = self.scene
        self.sees_no(scene.second.view, scene.client.address.host, *self.addresses(scene.guard))
        self.sees_no(scene.guard.view, scene.other.address.host, *self.addresses(scene.second))


class ObserverTests(ViewCase):
    """Somebody who listens on one cable; under TLS, which the carriers in memory leave away, so he sees more here."""

    def test_lengths(self) -> None:
        """All that is ever sent on any link is cells of 2048 bytes, the first and the last one and padding too."""
        lengths = [n for node in self.scene.net.nodes.values() for one in node.carriers for n in one.lengths]
        self.assertGreater(len(lengths), 100)
        self.assertEqual([length for length in lengths if length % CELL or not length], [])

    def test_content(self) -> None:
        """Not even without TLS is there anything of the streams on any cable."""
        for node in self.scene.net.nodes.values():
            for carrier in node.carriers:
                self.assertGreater(len(carrier.view.pieces), 1)
                self.sees_no(carrier.view, PLAINTEXT, TARGET)

    def test_padding(self) -> None:
        """A link on which nobody says anything is never silent for long, whatever asks and answers seldom there."""
        scene = self.scene
        carriers = [one for node in scene.net.nodes.values() for one in node.carriers]
        self.assertGreater(len(carriers), 5)
        for _ in range(6):
            before = [len(one.lengths) + len(one.other.lengths) for one in carriers]
            scene.net.settle(PAD_MOST + 0.5)
            for carrier, count in zip(carriers, before, strict=True):
                self.assertGreater(len(carrier.lengths) + len(carrier.other.lengths), count)

    def test_the_same_said_twice_looks_different(self) -> None:
        """No cell of a circuit is ever like another one, on any link and on both sides of a hop."""
        for node in self.scene.net.nodes.values():
            ends = [end for one in node.carriers for end in (one, one.other)]
            text = b"".join(piece for end in ends for piece in end.view.pieces)
            cells = [text[at + 5 : at + CELL] for at in range(0, len(text), CELL) if text[at + 4] in (4, 5)]
            self.assertEqual(len(set(cells)), len(cells))
            if node.relays:
                self.assertGreater(len(cells), 10)
