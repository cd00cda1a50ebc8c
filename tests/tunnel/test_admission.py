"""Whom a relay lets in, and that its table forgets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel import admission
from layer8.tunnel.admission import BURST, FORGOTTEN, IN_FLIGHT, IN_FLIGHT_NETWORK, RATE, Admission, Pass, Wait


class AdmissionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.door = Admission(b"secret")

    def through(self, address: str, now: float, gateway: str = "shop") -> Pass | Wait:
        """Come in and leave at once."""
        found = self.door.enter(gateway, address, now)
        if isinstance(found, Pass):
            self.door.leave(found)
        return found

    def test_a_rate_for_each_network(self) -> None:
        for number in range(int(BURST)):
            self.assertIsInstance(self.through(f"192.0.2.{number}", 0.0), Pass)
        wait = self.through("192.0.2.250", 0.0)
        self.assertEqual(wait, Wait(429, 1 / RATE))
        self.assertIsInstance(self.through("198.51.100.1", 0.0), Pass)
        self.assertIsInstance(self.through("192.0.2.1", 1.0 / RATE), Pass)
        self.assertIsInstance(self.through("192.0.2.1", 1.0 / RATE), Wait)
        let = sum(isinstance(self.through("192.0.2.1", 1.0), Pass) for _ in range(100))
        self.assertEqual(let, RATE - 1)

    def test_at_once_of_a_network(self) -> None:
        inside = [self.door.enter("shop", "2001:db8:0:1::1", 0.0) for _ in range(IN_FLIGHT_NETWORK)]
        self.assertEqual(self.door.enter("mall", "2001:db8:0:ff::1", 0.0), Wait(429, 1.0))
        self.assertIsInstance(self.door.enter("shop", "2001:db8:0:100::1", 0.0), Pass)
        assert isinstance(inside[0], Pass)
        self.door.leave(inside[0])
        self.assertIsInstance(self.door.enter("shop", "2001:db8:0:1::1", 0.0), Pass)

    def test_at_once_of_a_gateway(self) -> None:
        inside = [self.door.enter("shop", f"10.{number >> 8}.{number & 255}.1", 0.0) for number in range(IN_FLIGHT)]
        self.assertEqual(self.door.enter("shop", "192.0.2.1", 0.0), Wait(503, 1.0))
        self.assertIsInstance(self.door.enter("mall", "192.0.2.1", 0.0), Pass)
        self.assertEqual(self.door.in_flight("shop"), IN_FLIGHT)
        for one in inside:
            assert isinstance(one, Pass)
            self.door.leave(one)
        self.assertEqual(self.door.in_flight("shop"), 0)
        self.assertIsInstance(self.door.enter("shop", "192.0.2.1", 0.0), Pass)

    def test_it_forgets(self) -> None:
        self.through("192.0.2.1", 0.0)
        inside = self.door.enter("shop", "198.51.100.1", 0.0)
        self.through("203.0.113.1", FORGOTTEN)
        self.assertEqual(len(self.door), 2)
        assert isinstance(inside, Pass)
        self.door.leave(inside)
        self.through("203.0.113.1", 2 * FORGOTTEN - 1)
        self.assertEqual(len(self.door), 2)
        self.through("203.0.113.1", 2 * FORGOTTEN)
        self.assertEqual(len(self.door), 1)

    def test_a_full_table(self) -> None:
        self.patch(admission, "NETWORKS", 3)
        inside = self.door.enter("shop", "10.0.0.1", 0.0)
        for number in range(1, 20):
            self.through(f"10.0.{number}.1", float(number))
            self.assertLessEqual(len(self.door), 3)
        assert isinstance(inside, Pass)
        self.assertIn(inside.network, self.door._networks)

    def test_nobody_can_read_the_table(self) -> None:
        self.through("192.0.2.77", 0.0)
        other = Admission(b"another")
        other.enter("shop", "192.0.2.77", 0.0)
        self.assertFalse(set(self.door._networks) & set(other._networks))
        self.assertNotIn("192.0.2", repr(self.door._networks))

    def test_no_address(self) -> None:
        self.assertIsInstance(self.through("", 0.0), Pass)
