"""Descriptors and databases for the tests of choices, made quickly: keys from numbers, one signature each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.network import Network
from layer8.crypto import descriptor
from layer8.crypto.descriptor import DAY, Descriptor, Role, find_work, make
from layer8.crypto.keys import NodeKey
from layer8.relay.database import VETTED, Database

NOW = 1_800_000_000.0
TEST = Network("test")
MAIN = Network("main")


@lru_cache(maxsize=10_000)
def key(number: int) -> NodeKey:
    """Give the key of a node."""
    return NodeKey.from_seed(number.to_bytes(32, "big"))


def node(number: int) -> bytes:
    """Give the id of a node."""
    return key(number).node_id


@lru_cache(maxsize=10_000)
def work(number: int, day: int, effort: int) -> bytes:
    """Find the work of a node for a day; `effort` tells tests apart that ask for different ones."""
    found, start = None, bytes(16)
    while found is None:
        found, start = find_work(node(number), day * DAY, start, 64)
    return found


def told(number: int, network: Network = MAIN, *, now: float = NOW, **changed: Any) -> Descriptor:
    """Make the descriptor of a node, with an address in a /16 of its own."""
    given: dict[str, Any] = {
        "onion_key": bytes(32),
        "endpoints": (f"tcp:{60 + number // 200}.{number % 200}.0.1:9000",),
        "serial": 1,
        "roles": Role.RELAY,
    } | changed
    if network.ruled:
        given["work"] = work(number, int(now) // DAY, descriptor.EFFORT)
    return make(key(number), network, now=now, **given)


def vetted(
    numbers: Iterable[int], sources: Callable[[int], Iterable[int]] = lambda number: (9001, 9002), **changed: Any
) -> Database:
    """Make a database of nodes that have carried circuits, known for two days from two sources."""
    network = changed.pop("network", MAIN)
    known = Database(network)
    for number in numbers:
        one = told(number, network, **changed)
        for source in sources(number):
            known.learn(one, node(source), NOW)
        for _ in range(VETTED):
            known.worked(one.identity, NOW)
        peer = known.get(one.identity)
        assert peer is not None
        peer.first -= 2 * DAY
    return known


class EasyWork(SynchronousTestCase):
    """Tests in networks with rules, where proof of work takes a few tries only."""

    def setUp(self) -> None:
        """Ask for little."""
        self.patch(descriptor, "EFFORT", 4)
