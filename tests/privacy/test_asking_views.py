"""Who learns what of a node that asks for others: what a tracker and a neighbour have seen is searched."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.network import Network as Name
from layer8.core.roles import Asker
from layer8.crypto.descriptor import unpack
from layer8.relay.database import Database
from layer8.relay.path import allows
from layer8.relay.pex import PEX_GET, PEX_PEERS, Exchange, get
from layer8.relay.wire import Open, Proto
from layer8.testing.network import WALL, Echo, Heard, Network, Node
from layer8.tracker.index import Index
from layer8.tracker.service import Tracker
from layer8.tracker.wire import GetRelays, Track
from tests.relay.pools import said

TARGET = "target.marked.test"
PLAINTEXT = b"MARK-of-what-is-said-4713"


@define(eq=False)
class Read:
    """A role, and everything that it could read, in its node's view."""

    _node: Node
    _role: Any
    commands: frozenset[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.commands = self._role.commands

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        self._node.view.add(data, asker.binding, asker.neighbour or b"nameless")
        self._role.asked(asker, command, data, now)

    def gone(self, circuit: int) -> None:
        self._role.gone(circuit)


class AskingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.net = Network()
        self.client = self.net.client("client")
        self.guard, self.middle, self.last = (self.net.relay(name) for name in ("guard", "middle", "last"))
        self.others = [self.net.relay(f"other {number}") for number in range(4)]
        self.last.serve(TARGET, 443, Echo)

    def fetch(self, *hops: Node) -> None:
        """Let the client fetch something through these."""
        heard = Heard()
        self.net.build(self.client, *hops).open(Open(Proto.TCP, TARGET, 443), heard).write(PLAINTEXT)
        self.net.run(lambda: heard.all == PLAINTEXT)

    def answer(self, hops: tuple[Node, ...], command: int, data: bytes, wanted: int) -> bytes:
        got: list[Any] = []
        self.net.build(self.client, *hops).ask(command, data, (wanted,), 20.0, got.append)
        self.net.run(lambda: bool(got))
        told: bytes = got[0][1]
        return told

    def names(self, node: Node) -> tuple[bytes | str, ...]:
        return node.identity, node.identity.hex(), node.address.host


class TrackerTests(AskingCase):
    def test_who_asks(self) -> None:
        """That somebody behind a last hop asks for relays; no client, no guard."""
        index = Index(Name("test"), self.net.chance, allows)
        for node in self.others:
            index.enlist(said(node), WALL)
        none: Any = None
        tracker = Tracker(index, none, none, none, none, lambda: WALL)
        self.last.circuits.serve(Read(self.last, tracker))
        request = GetRelays(25, 0, 0).encode()
        told = self.answer((self.guard, self.middle, self.last), Track.GET_RELAYS, request, Track.RELAY_LIST)
        self.assertEqual(len(unpack(told)), 4)
        view = self.last.view
        for there in (request, self.middle.identity):
            self.assertTrue(view.has(there))
        for absent in (*self.names(self.client), *self.names(self.guard)):
            self.assertFalse(view.has(absent), absent)
        self.assertTrue(self.guard.view.has(self.client.address.host))  # the search finds it where it is


class PeerTests(AskingCase):
    def test_what_for(self) -> None:
        """That its neighbour wants peers; neither which of them it uses nor what for."""
        known = Database(Name("test"), self.guard.identity)
        for node in (*self.others, self.middle, self.last):
            known.learn(said(node), b"s" * 32, WALL)
        self.guard.circuits.serve(Read(self.guard, Exchange(known, self.net.chance, lambda: WALL)))
        told = self.answer((self.guard,), PEX_GET, get(), PEX_PEERS)
        self.assertEqual(len(unpack(told)), 6)
        self.assertTrue(self.guard.view.has(get()) and self.guard.view.has(self.client.address.host))
        before = len(self.guard.view.pieces)
        self.fetch(self.guard, self.middle, self.last)
        later = type(self.guard.view)(self.guard.view.pieces[before:])
        self.assertTrue(later.has(self.middle.identity))
        for absent in (*self.names(self.last), TARGET, PLAINTEXT):
            self.assertFalse(later.has(absent), absent)
        self.fetch(self.others[0], self.middle, self.last)
        self.assertFalse(self.guard.view.has(TARGET) or self.guard.view.has(PLAINTEXT))
