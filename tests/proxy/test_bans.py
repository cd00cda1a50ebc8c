"""Networks that are kept out."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.proxy import limits
from layer8.proxy.bans import Banned, Bans, network
from layer8.proxy.wire import Code, Denied


class BanTests(SynchronousTestCase):
    def test_in_and_out(self) -> None:
        bans = Bans([Banned("192.0.2.0/24", 50.0)])
        self.assertIn("192.0.2.9", bans)
        self.assertIn("::ffff:192.0.2.9", bans)
        self.assertNotIn("198.51.100.1", bans)
        bans.add(Banned("2001:db8::/32", 100.0))
        self.assertIn("2001:db8:1::1", bans)
        self.assertTrue(bans.remove("192.0.2.0/24"))
        self.assertFalse(bans.remove("192.0.2.0/24"))
        self.assertNotIn("192.0.2.9", bans)

    def test_over(self) -> None:
        bans = Bans([Banned("192.0.2.0/24", 50.0), Banned("198.51.100.1", 60.0)])
        self.assertEqual(bans.ended(49.9), [])
        self.assertEqual(bans.ended(50.0), ["192.0.2.0/24"])
        self.assertNotIn("192.0.2.9", bans)
        self.assertIn("198.51.100.1", bans)

    def test_one_text_for_a_network(self) -> None:
        self.assertEqual(network("2001:0DB8:0:0::/32"), "2001:db8::/32")
        self.assertEqual(network("192.0.2.1"), "192.0.2.1")
        for wrong in ("", "x", "192.0.2.1/33", "192.0.2.1/24", "192.0.2.1/", "fe80::1%eth0", "1/2/3", "a" * 49):
            error = self.assertRaises(Denied, network, wrong)
            self.assertIs(error.code, Code.FORBIDDEN_BY_POLICY)

    def test_no_more_than_so_many(self) -> None:
        bans = Bans(Banned(f"10.{number >> 8}.{number & 255}.0/24", 1.0) for number in range(limits.SOURCES))
        error = self.assertRaises(Denied, bans.add, Banned("192.0.2.0/24", 1.0))
        self.assertIs(error.code, Code.NO_CAPACITY)
        bans.add(Banned("10.0.0.0/24", 2.0))
