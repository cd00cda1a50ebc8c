"""Python's own sources of randomness are such."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.chance import Chance


class ChanceTests(SynchronousTestCase):
    def test_both_of_python_s(self) -> None:
        sources: tuple[Chance, ...] = (random.Random(1), random.SystemRandom())
        for source in sources:
            self.assertTrue(
                0 <= source.random() < 1 and 0 <= source.randrange(3) < 3 and 1 <= source.uniform(1, 2) <= 2
            )
            self.assertEqual(sorted(source.sample(range(4), 4)), [0, 1, 2, 3])
