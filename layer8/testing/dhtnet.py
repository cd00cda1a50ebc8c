"""Networks of DHT nodes on one clock, some of whom lie: for the tests of `layer8.dht` and for its bench."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

from attrs import define, field

from layer8.core.datagram import Peer
from layer8.core.network import Network
from layer8.crypto.items import Item
from layer8.crypto.keys import NodeKey
from layer8.dht.jobs import Done
from layer8.dht.session import Dht
from layer8.dht.wire import Contact, Query, nodes
from layer8.testing.swarm import Swarm

EPOCH = 1_800_000_000.0


@lru_cache(maxsize=10_000)
def key(number: int) -> NodeKey:
    """Give the key of a node."""
    return NodeKey.from_seed(number.to_bytes(32, "big"))


@define(eq=False)
class LyingReplies:
    """Says that there is nothing, takes everything, and knows nobody but its friends."""

    _own: bytes
    _friends: list[Contact]
    _store: Any

    def to(self, query: Query, peer: Peer, now: float) -> dict[bytes, Any]:
        """Answer one query, with a lie."""
        target = query.args.get(b"target", b"")
        values: dict[bytes, Any] = {b"id": self._own, b"token": b"whatever"}
        if isinstance(target, bytes) and target:
            wanted = int.from_bytes(target, "big")
            near = sorted(self._friends, key=lambda one: one.number ^ wanted)[:4]
            # and four that are not there at all, right beside the target
            fake = [Contact(target[:-1] + bytes((n,)), *one.peer) for n, one in enumerate(near)]
            values |= nodes([*fake, *near])
        if query.method == b"l8_list":
            values[b"recs"] = []
        return values


@define(eq=False)
class Net:
    """So many nodes that know each other; the share `liars` of them lies."""

    count: int
    liars: float = 0.0
    seed: int = 1
    name: str = "test"
    warm: float = 30.0
    chance: Random = field(init=False)
    swarm: Swarm = field(init=False)
    all: list[Dht] = field(factory=list, init=False)
    peers: list[Peer] = field(factory=list, init=False)
    lying: set[int] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        """Let them come one after the other, and begin to lie when they are known."""
        self.chance = Random(self.seed)
        self.swarm = Swarm(self.chance)
        for number in range(self.count):
            self.join(number)
            self.swarm.run(seconds=0.02)
        self.swarm.run(seconds=self.warm)
        self.lie()

    def join(self, number: int, host: str = "") -> Dht:
        """Let one more come, who knows some of those that are here."""
        peer = (host or f"{20 + number // 65536}.{number // 256 % 256}.{number % 256}.1", 9000)
        node = Dht(key(number), Network(self.name), self.chance, self.chance.randbytes, EPOCH, bound=peer)
        if self.peers:
            node.bootstrap = self.chance.sample(self.peers, min(3, len(self.peers)))
        self.all.append(node)
        self.peers.append(peer)
        self.swarm.add(peer, node)
        return node

    def lie(self) -> None:
        """Let some begin to lie, now that they stand in everybody's table."""
        self.lying = set(self.chance.sample(range(1, self.count), int(self.count * self.liars)))
        self.lie_now([self.all[one] for one in self.lying])

    def lie_now(self, nodes: Sequence[Dht]) -> None:
        """Let these lie, as friends of each other."""
        friends = [Contact(one.id, *one.bound) for one in nodes if one.bound is not None]
        for node in nodes:
            node._replies = LyingReplies(node.id, friends, node.store)  # type: ignore[assignment]

    def honest(self) -> list[int]:
        """Give those that live and do not lie."""
        return [one for one in range(self.count) if one not in self.lying and self.peers[one] in self.swarm.nodes]

    def kill(self, number: int) -> None:
        """Switch one off."""
        self.swarm.kill(self.peers[number])

    def wait(self, number: int, job: int) -> Done:
        """Wait for a job of a node."""
        peer = self.peers[number]
        self.swarm.carry_out(peer)

        def over() -> Done | None:
            found = [what for who, what in self.swarm.told if who == peer and what.number == job]
            return found[0] if found else None

        self.swarm.run(lambda: over() is not None, 20.0)
        done = over()
        assert done is not None
        self.swarm.told.clear()
        return done

    def put(self, number: int, item: Item, **more: Any) -> Done:
        """Let a node put an item."""
        return self.wait(number, self.all[number].put(item, self.swarm.now, **more))

    def get(self, number: int, target: bytes, salt: bytes = b"") -> Done:
        """Let a node search an item."""
        return self.wait(number, self.all[number].get(target, self.swarm.now, salt=salt))

    def listed(self, number: int, target: bytes) -> Done:
        """Let a node search records."""
        return self.wait(number, self.all[number].records(target, self.swarm.now))

    def holders(self, target: bytes) -> list[int]:
        """Give the living nodes that hold an item."""
        wall = self.swarm.now + EPOCH
        alive = [one for one in range(self.count) if self.peers[one] in self.swarm.nodes]
        return [one for one in alive if self.all[one].store.get(target, wall) is not None]
