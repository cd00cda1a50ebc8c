"""Networks of nodes on one clock: liars, dead ones, holders that go; `layer8 bench dht` does the same with 1,000."""

from __future__ import annotations

from statistics import median

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.items import Draft, Immutable, Mutable, sha1
from layer8.dht.limits import DHT_K, LOOKUP_TIME, REPUT
from tests.dht.nets import EPOCH, Net, key


def item(number: int, seq: int = 1, salt: bytes = b"") -> Mutable:
    owner = key(1_000_000 + number)
    return Mutable.make(owner.node_id, owner.sign, seq, b"value %d" % number, salt)


class NetTests(SynchronousTestCase):
    def test_items_of_every_kind(self) -> None:
        net = Net(30)
        for one in (item(1), item(2, salt=b"salt"), Immutable.of(b"value")):
            self.assertEqual(net.put(3, one).stored, DHT_K)
            self.assertEqual(len(net.holders(one.target)), DHT_K)
            salt = one.salt if isinstance(one, Mutable) else b""
            self.assertEqual(net.get(17, one.target, salt).item, one)
        self.assertIsNone(net.get(5, bytes(20)).item)
        self.assertEqual(net.put(4, item(1, seq=2)).stored, DHT_K)
        self.assertEqual(net.get(9, item(1).target).item, item(1, seq=2))
        refused = net.put(4, item(1))
        self.assertEqual((refused.stored, refused.refused), (0, 302))
        self.assertEqual(net.put(4, item(1, seq=3), cas=1).refused, 301)

    def test_sets(self) -> None:
        net, target = Net(30), bytes(20)
        for number in range(12):
            expires = int(EPOCH + net.swarm.now) + 5000
            record = Draft.make(key(number), target, 2, b"tag", expires, 1).record()
            self.assertEqual(net.put(number, record).stored, DHT_K)
        found = net.listed(20, target).records
        self.assertGreaterEqual(len(found), 10)
        self.assertEqual(set(net.listed(20, target).records), set(found))

    def test_one_in_five_lies(self) -> None:
        """They name only each other and nodes that are not there, have nothing, and take everything."""
        net = Net(100, liars=0.2, name="main")
        self.assertTrue(all(len(node.table) for node in net.all))
        right, honest = 0, net.honest()
        for number in range(50):
            net.put(net.chance.choice(honest), item(number))
            right += net.get(net.chance.choice(honest), item(number).target).item == item(number)
        self.assertEqual(right, 50)

    def test_one_in_five_is_dead(self) -> None:
        net = Net(50)
        net.swarm.delay = (0.0005, 0.005)  # that of a loaded loopback, for which the 300 ms are meant
        for number in range(40):
            net.put(number, item(number))
        for number in net.chance.sample(range(50), 10):
            net.kill(number)
        times = []
        for number in range(40):
            done = net.get(net.chance.choice(net.honest()), item(number).target)
            self.assertEqual(done.item, item(number))
            times.append(done.seconds)
        self.assertLessEqual(median(times), 0.3)
        self.assertLessEqual(max(times), 1.5)

    def test_lookups_end_whoever_is_there(self) -> None:
        net = Net(60, liars=0.3, name="main")
        for number in net.honest()[::3][1:]:
            net.kill(number)
        for _ in range(10):
            done = net.get(0, net.chance.randbytes(20))
            self.assertIsNone(done.item)
            self.assertLessEqual(done.seconds, LOOKUP_TIME)
        alone = Net(1)
        self.assertIsNone(alone.get(0, bytes(20)).item)

    def test_all_the_nearest_are_of_one_network(self) -> None:
        """Somebody has made keys until sixteen stand beside the target, in the /24 that he has; they take and tell
        nothing. They get two of eight places, and the item is found."""
        net = Net(60, name="main")
        wanted = int.from_bytes(item(1).target, "big")
        numbers = sorted(range(2000, 4000), key=lambda n: int.from_bytes(sha1(key(n).node_id), "big") ^ wanted)[:16]
        near = [net.join(number, f"66.6.6.{place}") for place, number in enumerate(numbers, 1)]
        net.swarm.run(seconds=60.0)
        net.lie_now(near)
        known = [sum(one.contact.host.startswith("66.6.6.") for one in node.table) for node in net.all[:60]]
        self.assertTrue(any(known) and max(known) <= 8)
        self.assertEqual(net.put(5, item(1)).stored, DHT_K)
        self.assertGreaterEqual(len(net.holders(item(1).target)), DHT_K - 2)
        for number in range(10, 30):
            self.assertEqual(net.get(number, item(1).target).item, item(1))

    def test_seven_of_eight_holders_go(self) -> None:
        """G34: an hour later there are eight again, and nobody has asked the owner."""
        net = Net(40)
        net.put(3, item(1))
        holders = net.holders(item(1).target)
        self.assertEqual(len(holders), DHT_K)
        for number in holders[:-1]:
            net.kill(number)
        self.assertEqual(len(net.holders(item(1).target)), 1)
        net.swarm.run(seconds=REPUT + 600.0)
        self.assertGreaterEqual(len(net.holders(item(1).target)), DHT_K)

    def test_nobody_keeps_an_item_for_ever(self) -> None:
        net = Net(12, warm=10.0)
        net.put(3, item(1))
        net.swarm.run(seconds=5 * REPUT)
        self.assertTrue(net.holders(item(1).target))
        for number in range(12):
            for held in net.all[number].store:
                self.assertGreater(net.swarm.now + EPOCH - held.born, 5 * REPUT - 60.0)

    def test_an_owner_puts_again(self) -> None:
        net = Net(12, warm=10.0)
        net.all[3].offer(item(1), net.swarm.now)
        net.swarm.carry_out(net.peers[3])
        net.swarm.run(seconds=3 * REPUT)
        born = max(held.born for number in net.holders(item(1).target) for held in net.all[number].store)
        self.assertLess(net.swarm.now + EPOCH - born, REPUT)
