"""Sources that guess secrets."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.guesses import SOURCES, Guesses


class GuessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.guesses = Guesses()

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
        for number in range(SOURCES + 10):
            self.guesses.wrong(f"10.{number >> 8}.{number & 255}.1", 0.0)
        self.assertEqual(len(self.guesses), SOURCES)

    def test_other_limits(self) -> None:
        self.guesses.allow(3, 1.0, 1.5)
        self.fail(3, 0.0)
        self.assertEqual(self.guesses.wait("192.0.2.1", 0.0), 1.0)
        self.fail(3, 1.0)
        self.assertEqual(self.guesses.wait("192.0.2.1", 1.0), 1.5)

    def test_one_a_minute_is_let_alone(self) -> None:
        for turn in range(1000):
            self.fail(1, 10.0 * turn)
        self.assertEqual(self.guesses.wait("192.0.2.1", 10_000.0), 0.0)
