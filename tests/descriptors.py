"""Descriptors for tests, made quickly: keys from numbers, one signature each, and hardly any work."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.network import Network
from layer8.crypto import descriptor
from layer8.crypto.descriptor import DAY, Descriptor, Role, find_work, make
from layer8.crypto.keys import NodeKey

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


@define(eq=False)
class FakeAsker:
    """The far end of a circuit, as a role sees it."""

    neighbour: bytes | None = None
    circuit: int = 1
    binding: bytes = bytes(32)
    alive: bool = True
    got: list[tuple[int, bytes]] = field(factory=list)

    def answer(self, command: int, data: bytes) -> None:
        """Keep the answer."""
        self.got.append((command, data))

    def destroy(self) -> None:
        """Be gone."""
        self.alive = False


class EasyWork(SynchronousTestCase):
    """Tests in networks with rules, where proof of work takes a few tries only."""

    def setUp(self) -> None:
        """Ask for little."""
        self.patch(descriptor, "EFFORT", 4)
