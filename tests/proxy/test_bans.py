"""Networks that are kept out, and sources that guess secrets."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.config.proxy import ProxyLimits
from layer8.proxy import limits
from layer8.proxy.bans import Banned, Bans, Guesses, network
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


class GuessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.guesses = Guesses(ProxyLimits())

    def fail(self, times: int, now: float, address: str = "192.0.2.1") -> None:  # type: ignore[override]
        for _ in range(times):
            self.guesses.wrong(address, now)

    def test_twenty_a_minute(self) -> None:
        self.fail(19, 0.0)
        self.assertEqual(self.guesses.wait("192.0.2.1", 0.0), 0.0)
        self.fail(1, 59.0)
        self.assertEqual(self.guesses.wait("192.0.2.1", 59.0), 60.0)
        self.assertEqual(self.guesses.wait("192.0.2.1", 118.0), 1.0)
        self.assertEqual(self.guesses.wait("192.0.2.1", 119.0), 0.0)

    def test_slowly_is_not_guessing(self) -> None:
        for minute in range(10):
            self.fail(19, minute * 60.1)
        self.assertEqual(self.guesses.wait("192.0.2.1", 541.0), 0.0)

    def test_each_ban_is_twice_as_long_up_to_an_hour(self) -> None:
        now, lengths = 0.0, []
        for _ in range(9):
            self.fail(20, now)
            lengths.append(self.guesses.wait("192.0.2.1", now) / 60)
            now += lengths[-1] * 60
        self.assertEqual(lengths, [1, 2, 4, 8, 16, 32, 60, 60, 60])

    def test_good_for_long_enough(self) -> None:
        self.fail(20, 0.0)
        self.fail(20, 60.0)
        self.fail(20, 1000.0)
        self.assertEqual(self.guesses.wait("192.0.2.1", 1000.0), 60.0)

    def test_a_network_is_one_source(self) -> None:
        for number in range(20):
            self.guesses.wrong(f"192.0.2.{number}", 0.0)
        self.assertEqual(self.guesses.wait("192.0.2.200", 0.0), 60.0)
        self.assertEqual(self.guesses.wait("192.0.3.200", 0.0), 0.0)

    def test_this_machine_is_not_counted(self) -> None:
        for _ in range(30):
            self.guesses.wrong(None, 0.0)
        self.assertEqual((self.guesses.wait(None, 0.0), len(self.guesses)), (0.0, 0))

    def test_memory(self) -> None:
        for number in range(limits.SOURCES + 10):
            self.guesses.wrong(f"10.{number >> 8}.{number & 255}.1", 0.0)
        self.assertEqual(len(self.guesses), limits.SOURCES)
