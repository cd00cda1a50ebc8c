"""A node that nobody reaches notices: it asks, and is listed nowhere."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.datagram import Peer, SendTo
from layer8.crypto.items import Mutable
from layer8.dht.limits import DHT_K
from layer8.dht.reach import AGAIN, ENOUGH, KEPT, PATIENCE, SPOKEN, Reach
from tests.dht.nets import Net, key


class ReachTests(SynchronousTestCase):
    def test_a_query_of_a_stranger(self) -> None:
        reach = Reach()
        for minute in range(600):
            if minute % 20 == 0:
                reach.came("stranger", 60.0 * minute)
            self.assertFalse(reach.hidden(60.0 * minute, ENOUGH))

    def test_queries_of_those_we_have_just_spoken_to(self) -> None:
        """A NAT lets them in as well, so they show nothing; after a while they do."""
        for after, hidden in ((KEPT, True), (KEPT + 1, False)):
            reach = Reach()
            reach.hidden(0.0, ENOUGH)
            reach.spoke("node", PATIENCE - after)
            reach.came("node", PATIENCE)
            self.assertEqual(reach.hidden(PATIENCE + 1, ENOUGH), hidden)

    def test_few_nodes_say_nothing(self) -> None:
        reach = Reach()
        for hour in range(50):
            self.assertFalse(reach.hidden(3600.0 * hour, ENOUGH - 1))
        self.assertFalse(reach.hidden(3600.0 * 49 + PATIENCE, ENOUGH))
        self.assertTrue(reach.hidden(3600.0 * 49 + PATIENCE + 1, ENOUGH))

    def test_once_more_after_an_hour(self) -> None:
        reach = Reach()
        reach.hidden(0.0, ENOUGH)
        begun = PATIENCE + 1
        self.assertTrue(reach.hidden(begun, ENOUGH))
        self.assertTrue(reach.hidden(begun + AGAIN - 1, 0))
        self.assertFalse(reach.hidden(begun + AGAIN, ENOUGH))
        self.assertTrue(reach.hidden(begun + AGAIN + PATIENCE + 1, ENOUGH))
        reach.came("stranger", begun + AGAIN + PATIENCE + 2)
        self.assertFalse(reach.hidden(begun + AGAIN + PATIENCE + 3, ENOUGH))

    def test_as_many_as_are_remembered(self) -> None:
        reach = Reach()
        for number in range(SPOKEN + 10):
            reach.spoke(str(number), 0.0)
        self.assertEqual(len(reach._spoken), SPOKEN)


@define(eq=False)
class Behind:
    """A session behind a router that lets in whom it has spoken to in the last minute, and nobody else."""

    inner: Any
    _clock: Any
    _spoken: dict[Peer, float] = field(factory=dict)
    kept_out: int = 0

    def received(self, data: bytes, peer: Peer, now: float) -> None:
        if now - self._spoken.get(peer, -1000.0) < 60.0:
            self.inner.received(data, peer, now)
        else:
            self.kept_out += 1

    def wake(self, now: float) -> None:
        self.inner.wake(now)

    def effects(self) -> Any:
        effects = self.inner.effects()
        self._spoken.update({one.peer: self._clock.now for one in effects if isinstance(one, SendTo)})
        return effects

    def deadline(self) -> float | None:
        deadline: float | None = self.inner.deadline()
        return deadline


class NetTests(SynchronousTestCase):
    def test_behind_a_router(self) -> None:
        """One of thirty nodes is: it notices within the hour, leaves all tables, and still finds what it looks for."""
        net = Net(30, name="main", warm=5.0)
        hidden = net.join(30)
        net.swarm.nodes[net.peers[30]] = behind = Behind(hidden, net.swarm)
        net.swarm.run(seconds=PATIENCE + 600.0)
        self.assertGreater(behind.kept_out, 0)
        self.assertTrue(hidden.stats().read_only)
        self.assertEqual([node.stats().read_only for node in net.all[:30]], [False] * 30)
        net.swarm.run(seconds=AGAIN / 2)
        self.assertEqual([one for one in net.all[:30] if one.table.get(hidden.id) is not None], [])
        owner = key(77)
        item = Mutable.make(owner.node_id, owner.sign, 1, b"value")
        self.assertEqual(net.put(30, item).stored, DHT_K)
        self.assertEqual(net.get(30, item.target).item, item)

    def test_networks_of_tests(self) -> None:
        """There every node is a minute old, and of this machine."""
        net = Net(12, warm=5.0)
        net.swarm.run(seconds=2 * PATIENCE)
        self.assertEqual([node.stats().read_only for node in net.all], [False] * 12)
