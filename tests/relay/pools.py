"""A pool of circuits on a whole network in memory, and descriptors of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.network import Network as Name
from layer8.crypto.descriptor import DESC_LIFE, Descriptor, Role
from layer8.relay.client import Client
from layer8.relay.database import Database
from layer8.relay.guards import Guards
from layer8.relay.path import Paths
from layer8.relay.pool import Pool
from layer8.relay.standing import Circuit, Need
from layer8.relay.wire import Reason
from layer8.testing.network import WALL, Echo, Heard, Network, Node

EXIT = ("echo.test", 80)


def said(node: Node, *, leaving: bool = False, endpoint: str = "", via: bytes = b"") -> Descriptor:
    """Make what a node of the network in memory would say of itself; its identity is no key, so nobody signs it."""
    told: dict[bytes, Any] = {
        b"a": [(endpoint or node.endpoint).encode()],
        b"b": node.onion.public,
        b"e": int(WALL) + DESC_LIFE,
        b"f": int(Role.RELAY | (Role.EXIT if leaving else 0)),
        b"i": node.identity,
        b"n": Name("test").mark,
        b"s": 1,
        b"t": int(WALL),
        b"v": [1],
    }
    if leaving:
        told[b"p"] = b"80,443"
    return Descriptor.parse(bytes(64) + bencode.encode(told))


class PoolCase(SynchronousTestCase):
    """One client, whose pool is not started yet."""

    DELAY = 0.001

    def setUp(self) -> None:
        self.net = Network(self.DELAY, recording=False)
        self.me = self.net.client("client")
        self.database = Database(Name("test"), self.me.identity)
        self.guards = Guards(self.database, self.net.chance, 2)
        self.paths = Paths(self.database, self.guards, self.net.chance)
        self.dialled: list[bytes] = []
        self.changes: list[tuple[int, str]] = []
        self.pool = Pool(
            self.me.means,
            self.net.worker,
            self.net.mark,
            self.paths,
            self.database,
            self.guards,
            self.reach,
            self.meet,
            self.wall,
            spares=0,
            changed=lambda circuit, state: self.changes.append((circuit.number, state)),
        )
        self.client = Client(self.pool)

    def until(self, so: Callable[[], object]) -> None:
        self.net.run(lambda: bool(so()))

    def fill(self, things: Sized, count: int = 1) -> None:
        """Let things happen until there are so many of these."""
        self.net.run(lambda: len(things) >= count)

    def heard(self, heard: Heard) -> None:
        """Let things happen until a stream is open, or will not be."""
        self.net.run(lambda: bool(heard.words))

    def wall(self) -> float:
        return WALL + self.net.clock.seconds()

    def reach(self, node: bytes, endpoints: Any, done: Callable[[Any], None]) -> None:
        self.dialled.append(node)
        other = self.net.by_endpoint.get(endpoints[0])
        if other is None:
            done(Reason.UNREACHABLE)
        else:
            self.me.when_open(self.me.dial(other), done)

    def meet(self, at: Any, done: Callable[[Any], None]) -> None:
        other = self.net.by_endpoint.get(f"tcp:{at.host}:{at.port}")
        if other is None:
            done(Reason.UNREACHABLE)
        else:
            self.database.learn(said(other), other.identity, self.wall())
            done(other.identity)

    def relay(self, name: str, *, leaving: bool = False, known: bool = True) -> Node:
        node = self.net.relay(name)
        node.serve(*EXIT, Echo)
        if known:
            self.database.learn(said(node, leaving=leaving), b"s" * 32, self.wall())
        return node

    def dead(self, name: str, *, leaving: bool = False) -> Node:
        """Put a node into the database that nobody can reach."""
        node = self.relay(name, leaving=leaving)
        del self.net.by_endpoint[node.endpoint]
        return node

    def small(self) -> list[Node]:
        """Put four relays there, and two exits."""
        return [
            *(self.relay(f"relay {number}") for number in range(4)),
            *(self.relay(f"exit {number}", leaving=True) for number in range(2)),
        ]

    def want(self, need: Need) -> list[Any]:
        """Ask for a circuit; what comes is put into the list."""
        got: list[Any] = []
        self.pool.get(need, got.append)
        return got

    def get(self, need: Need) -> Circuit:
        """Ask for a circuit and wait."""
        got = self.want(need)
        self.until(lambda: got)
        if isinstance(got[0], Exception):
            raise got[0]
        circuit: Circuit = got[0]
        return circuit
