"""What one circuit gets of an exit: connections, bytes, datagrams."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded
from layer8.relay.exit import Account
from layer8.relay.limits import (
    CIRC_BYTES,
    EXIT_CONNECTS,
    EXIT_CONNECTS_BURST,
    EXIT_SAME_DEST,
    UDP_DESTS,
    UDP_IDLE,
    UDP_UNANSWERED,
)


class AccountCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.account = Account(0.0)

    def refused(self, limit: str, call: object, *args: object) -> None:
        self.assertEqual(self.assertRaises(LimitExceeded, call, *args).limit, limit)


class Connections(AccountCase):
    def test_a_burst_and_then_so_many_a_second(self) -> None:
        for now, count in ((0.0, EXIT_CONNECTS_BURST), (1.0, int(EXIT_CONNECTS)), (1000.0, EXIT_CONNECTS_BURST)):
            for _ in range(count):
                self.account.begin(now)
            self.refused("EXIT_CONNECTS", self.account.begin, now)

    def test_to_one_address_at_once(self) -> None:
        for _ in range(EXIT_SAME_DEST):
            self.account.connect("a")
        self.refused("EXIT_SAME_DEST", self.account.connect, "a")
        self.account.connect("b")
        self.account.closed("a")
        self.account.connect("a")
        self.refused("EXIT_SAME_DEST", self.account.connect, "a")

    def test_what_is_over_leaves_nothing(self) -> None:
        for _ in range(3):
            self.account.connect("a")
            self.account.closed("a")
        self.assertEqual(self.account._open, {})

    def test_a_clock_that_goes_back_gives_nothing(self) -> None:
        for _ in range(EXIT_CONNECTS_BURST):
            self.account.begin(10.0)
        self.refused("EXIT_CONNECTS", self.account.begin, 5.0)
        self.refused("EXIT_CONNECTS", self.account.begin, 10.0)

    def test_bytes(self) -> None:
        self.assertTrue(self.account.move(CIRC_BYTES - 1))
        self.assertTrue(self.account.move(1))
        self.assertFalse(self.account.move(1))


class Datagrams(AccountCase):
    def test_destinations(self) -> None:
        for number in range(UDP_DESTS):
            self.account.ask(number % 3, f"a{number}", 53, 0.0)
        self.refused("UDP_DESTS", self.account.ask, 0, "b", 53, UDP_IDLE)
        self.account.ask(0, "a0", 53, UDP_IDLE)
        self.account.ask(0, "b", 53, UDP_IDLE + 1)
        self.account.forget(0)
        self.assertFalse(self.account.knows(0, "b", 53, UDP_IDLE + 1))
        for number in range(UDP_DESTS):
            self.account.ask(4, f"c{number}", 53, UDP_IDLE + 1)

    def test_unanswered(self) -> None:
        for _ in range(UDP_UNANSWERED):
            self.account.ask(1, "a", 53, 0.0)
        self.refused("UDP_UNANSWERED", self.account.ask, 1, "a", 53, UDP_IDLE)
        self.assertTrue(self.account.answer(1, "a", 53, UDP_IDLE))
        for _ in range(100):
            self.account.ask(1, "a", 53, UDP_IDLE)
        self.account.ask(1, "a", 53, 3 * UDP_IDLE)  # forgotten meanwhile: it begins anew
        self.account.ask(1, "a", 53, 3 * UDP_IDLE)
        self.account.ask(1, "a", 53, 3 * UDP_IDLE)
        self.refused("UDP_UNANSWERED", self.account.ask, 1, "a", 53, 3 * UDP_IDLE)

    def test_only_the_asked_answer(self) -> None:
        self.account.ask(1, "a", 53, 0.0)
        self.assertTrue(self.account.knows(1, "a", 53, 0.0))
        for stream, address, port in ((2, "a", 53), (1, "b", 53), (1, "a", 54)):
            self.assertFalse(self.account.answer(stream, address, port, 0.0))
            self.assertFalse(self.account.knows(stream, address, port, 0.0))
        self.assertTrue(self.account.answer(1, "a", 53, UDP_IDLE))
        self.assertTrue(self.account.answer(1, "a", 53, 2 * UDP_IDLE))
        self.assertFalse(self.account.answer(1, "a", 53, 3 * UDP_IDLE + 1))

    def test_a_destination_counts_as_a_stream(self) -> None:
        for _ in range(EXIT_CONNECTS_BURST):
            self.account.begin(0.0)
        self.refused("EXIT_CONNECTS", self.account.ask, 1, "b", 53, 0.0)
        self.assertFalse(self.account.knows(1, "b", 53, 0.0))
