"""What knocking costs: when a service asks for more work and when for less, and when clients hear of it."""

from __future__ import annotations

from random import Random

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.work import search
from layer8.rendezvous.limits import SEED_LIFE
from layer8.rendezvous.price import FEW, RUSH_LEAST, Pricing
from layer8.rendezvous.wire import NO_WORK, WORK_LABEL, Work

KEY = b"k" * 32


@frozen
class Before:
    """A seed as it was written down."""

    seed: bytes
    until: float
    nonces: tuple[bytes, ...] = ()


class PricingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pricing = Pricing(Random(1).randbytes)
        self.pricing.look((), SEED_LIFE)  # the first seed is as old as the clock

    def test_nothing_happens_while_nobody_waits(self) -> None:
        self.assertFalse(self.pricing.look((), SEED_LIFE))
        self.assertEqual(self.pricing.effort, 0)

    def test_more_when_somebody_was_dropped(self) -> None:
        self.pricing.dropped(0)
        self.assertTrue(self.pricing.look((), SEED_LIFE))
        self.assertEqual(self.pricing.effort, 1)

    def test_as_much_as_those_had_done_who_were_answered(self) -> None:
        for effort in (100, 300):
            self.pricing.handled(effort)
        self.pricing.dropped(50)
        self.assertTrue(self.pricing.look((), SEED_LIFE))
        self.assertEqual(self.pricing.effort, 200)

    def test_those_who_did_too_little_change_nothing(self) -> None:
        self.pricing.effort = 100
        self.pricing.dropped(99)
        self.pricing.look([99] * FEW, SEED_LIFE)
        self.assertEqual(self.pricing.effort, 100)

    def test_many_who_wait(self) -> None:
        self.pricing.look([0] * (FEW - 1), SEED_LIFE)
        self.assertEqual(self.pricing.effort, 0)
        self.pricing.look([0] * FEW, SEED_LIFE)
        self.assertEqual(self.pricing.effort, 1)

    def test_less_when_nobody_waits(self) -> None:
        self.pricing.effort = 90
        heard = [self.pricing.look((), SEED_LIFE) for _ in range(3)]
        self.assertEqual((self.pricing.effort, heard), (26, [True, True, True]))
        for _ in range(20):
            self.pricing.look((), SEED_LIFE)
        self.assertEqual((self.pricing.effort, self.pricing.seeds.effort), (0, 0))

    def test_clients_need_not_hear_of_little(self) -> None:
        self.pricing.handled(1000)
        self.pricing.dropped(0)
        self.assertTrue(self.pricing.look((), SEED_LIFE))
        self.pricing.handled(1100)
        self.pricing.dropped(1000)
        self.assertFalse(self.pricing.look((), SEED_LIFE))
        self.assertEqual((self.pricing.effort, self.pricing.seeds.effort), (1100, 1000))

    def test_no_more_than_clients_do(self) -> None:
        self.pricing.most = 500
        self.pricing.handled(1000)
        self.pricing.dropped(0)
        self.pricing.look((), SEED_LIFE)
        self.assertEqual(self.pricing.effort, 500)

    def test_new_seeds(self) -> None:
        before = self.pricing.seed
        self.pricing.dropped(0)
        self.pricing.look((), SEED_LIFE)
        self.assertEqual(self.pricing.seed, before)
        self.pricing.dropped(1)
        self.assertTrue(self.pricing.look((), 2 * SEED_LIFE))
        self.assertNotEqual(self.pricing.seed, before)

    def test_what_a_knock_is_worth(self) -> None:
        self.assertEqual(self.pricing.worth(KEY, NO_WORK, 0.0), 0)
        self.pricing.handled(60)
        self.pricing.dropped(0)
        self.pricing.look((), SEED_LIFE)
        seed = self.pricing.seed
        nonce = search(WORK_LABEL, KEY, seed, 70, bytes(16), 100_000)
        assert nonce is not None
        work = Work(nonce, 70, seed[:4]).encode()
        self.assertIsNone(self.pricing.worth(b"j" * 32, work, SEED_LIFE))
        self.assertEqual(self.pricing.worth(KEY, work, SEED_LIFE), 70)
        self.assertIsNone(self.pricing.worth(KEY, work, SEED_LIFE))
        self.assertIsNone(self.pricing.worth(KEY, NO_WORK, SEED_LIFE))
        self.assertIsNone(self.pricing.worth(KEY, Work(nonce, 2**31, seed[:4]).encode(), SEED_LIFE))
        little = search(WORK_LABEL, KEY, seed, 59, bytes(16), 100_000)
        assert little is not None
        self.assertIsNone(self.pricing.worth(KEY, Work(little, 59, seed[:4]).encode(), SEED_LIFE))
        enough = search(WORK_LABEL, KEY, seed, 60, b"x" * 16, 100_000)
        assert enough is not None
        self.assertEqual(self.pricing.worth(KEY, Work(enough, 60, seed[:4]).encode(), SEED_LIFE), 60)

    def test_one_drop_counts_once(self) -> None:
        self.pricing.dropped(0)
        self.assertTrue(self.pricing.look((), SEED_LIFE))
        self.assertTrue(self.pricing.look((), SEED_LIFE + 1))
        self.assertEqual(self.pricing.effort, 0)

    def test_in_a_rush(self) -> None:
        """Twice as much each time, up to what clients do; a look that changes little tells nobody."""
        self.pricing.most = 4 * RUSH_LEAST
        told = [self.pricing.rush(SEED_LIFE) for _ in range(4)]
        self.assertEqual((told, self.pricing.effort), ([True] * 3 + [False], 4 * RUSH_LEAST))
        self.pricing.handled(4 * RUSH_LEAST)
        self.pricing.dropped(4 * RUSH_LEAST)
        self.assertFalse(self.pricing.look((), SEED_LIFE))

    def test_after_a_restart(self) -> None:
        """The same seed until it is as old as seeds become, the same price, and no solution twice."""
        self.pricing.rush(SEED_LIFE)
        (row,) = self.pricing.seeds.rows(1000.0)
        nonce = search(WORK_LABEL, KEY, self.pricing.seed, RUSH_LEAST, bytes(16), 10**6)
        assert nonce is not None
        work = Work(nonce, RUSH_LEAST, self.pricing.seed[:4]).encode()
        again = Pricing(Random(2).randbytes)
        again.restore(RUSH_LEAST, [Before(*row, (nonce,))], 500.0, SEED_LIFE + 1500.0)
        self.assertEqual((again.seed, again.effort, again.seeds.effort), (self.pricing.seed, RUSH_LEAST, RUSH_LEAST))
        self.assertIsNone(again.worth(KEY, work, 500.0))
        self.assertEqual(self.pricing.worth(KEY, work, SEED_LIFE), RUSH_LEAST)
        again.handled(RUSH_LEAST)
        again.dropped(RUSH_LEAST)
        self.assertFalse(again.look((), SEED_LIFE - 501.0))  # the seed is as old as it was, and nothing has changed
        self.assertEqual(again.seed, self.pricing.seed)
        again.look((), SEED_LIFE)
        self.assertNotEqual(again.seed, self.pricing.seed)

    def test_seeds_that_are_too_old(self) -> None:
        again = Pricing(Random(2).randbytes)
        again.restore(500, [Before(b"s" * 32, 1000.0)], 0.0, 1000.0)
        self.assertEqual((again.effort, again.seeds.effort), (0, 0))
        self.assertEqual(again.worth(KEY, NO_WORK, 0.0), 0)
