"""What neighbours owe each other, and the weight of a link that comes of it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from layer8.relay.credit import HALF, LEAST, WEIGHT_MOST, Credit, Owed
from layer8.relay.limits import LINKS
from layer8.relay.wire import CELL

ONE, OTHER = b"1" * 32, b"2" * 32
MIB_CELLS = LEAST // CELL


class CreditTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.credit = Credit()

    def test_strangers_and_debtors_weigh_one(self) -> None:
        self.assertEqual(self.credit.weight(ONE), 1.0)
        self.credit.count(ONE, 0.0, by_me=100 * MIB_CELLS)
        self.assertEqual(self.credit.weight(ONE), 1.0)

    def test_the_weight_is_how_much_more_was_carried_for_us(self) -> None:
        for for_me, by_me, weight in ((1, 0, 1.0), (3, 0, 3.0), (6, 2, 3.0), (2, 6, 1.0), (50, 1, WEIGHT_MOST)):
            credit = Credit()
            credit.count(ONE, 0.0, for_me=for_me * MIB_CELLS, by_me=by_me * MIB_CELLS)
            self.assertEqual(credit.weight(ONE), weight, (for_me, by_me))
            self.assertEqual(credit.weight(OTHER), 1.0)

    def test_few_cells_earn_nothing(self) -> None:
        self.credit.count(ONE, 0.0, for_me=100)
        self.assertEqual(self.credit.weight(ONE), 1.0)

    def test_old_merits_fade(self) -> None:
        self.credit.count(ONE, 0.0, for_me=8 * MIB_CELLS)
        self.credit.count(ONE, HALF)
        self.assertEqual(self.credit.get(ONE), Owed(4 * LEAST, 0, HALF))
        self.credit.count(ONE, HALF - 5.0, for_me=1)  # a clock that was set back changes nothing
        self.assertEqual(self.credit.get(ONE), Owed(4 * LEAST + CELL, 0, HALF - 5.0))

    def test_what_is_kept_comes_back(self) -> None:
        self.credit.count(ONE, 1.0, for_me=2 * MIB_CELLS)
        changed, gone = self.credit.changes()
        self.assertEqual((changed, set(gone)), ({ONE: Owed(2 * LEAST, 0, 1.0)}, set()))
        self.assertEqual(self.credit.changes()[0], {})
        again = Credit()
        again.restore(changed)
        self.assertEqual(again.weight(ONE), 2.0)

    def test_the_table_has_an_end(self) -> None:
        for number in range(4 * LINKS + 1):
            self.credit.count(number.to_bytes(32, "big"), 0.0, by_me=1)
        changed, gone = self.credit.changes()
        self.assertEqual((len(changed), list(gone)), (4 * LINKS, [bytes(32)]))
