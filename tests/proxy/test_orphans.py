"""Visitors wait for agents that are on their way back, and for nobody else."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.proxy.orphans import GRACE, WAITING, Orphans


class OrphansTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.served: set[str] = set()
        self.gone: list[int] = []
        self.orphans = Orphans(self.served.__contains__)

    def keep(self, host: str, number: int) -> bool:
        return self.orphans.keeps(host, lambda: self.gone.append(number))

    def test_waits_until_somebody_is_back(self) -> None:
        self.orphans.lost(["a.test"], 10.0)
        self.assertTrue(self.keep("a.test", 1))
        self.assertTrue(self.keep("a.test", 2))
        self.assertFalse(self.keep("b.test", 3), "nobody was lost there")
        self.assertEqual((len(self.orphans), self.gone), (2, []))
        self.orphans.found("b.test")
        self.orphans.found("a.test")
        self.assertEqual((len(self.orphans), self.gone), (0, [1, 2]))
        self.assertFalse(self.keep("a.test", 4), "nobody is missed any more")

    def test_not_for_ever(self) -> None:
        self.orphans.lost(["a.test"], 10.0)
        self.assertTrue(self.keep("a.test", 1))
        self.orphans.tick(10.0 + GRACE - 0.1)
        self.assertEqual(self.gone, [])
        self.orphans.tick(10.0 + GRACE)
        self.assertEqual(self.gone, [1])
        self.assertFalse(self.keep("a.test", 2))

    def test_who_has_an_agent_does_not_wait(self) -> None:
        self.orphans.lost(["a.test"], 10.0)
        self.served.add("a.test")
        self.assertFalse(self.keep("a.test", 1))

    def test_limit(self) -> None:
        self.orphans.lost(["a.test"], 10.0)
        for number in range(WAITING):
            self.assertTrue(self.keep("a.test", number))
        self.assertFalse(self.keep("a.test", WAITING))
        self.orphans.tick(99.0)
        self.assertEqual((len(self.gone), len(self.orphans)), (WAITING, 0))
