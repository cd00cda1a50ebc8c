"""When certificates are asked for: no order of failures, successes and restarts is too much for an authority."""

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.proxy import renewal
from layer8.proxy.renewal import NEVER, ORDERS_AT_ONCE, Patience, Tries, renew_at

HOUR, DAY = 3600.0, 86400.0
CHANCES = st.floats(0, 1, exclude_max=True)


class TimeTests(SynchronousTestCase):
    @given(CHANCES, st.floats(1, 400))
    def test_at_two_thirds_of_the_life(self, chance: float, days: float) -> None:
        at = renew_at(1000.0, 1000.0 + days * DAY, chance)
        self.assertLessEqual(at, 1000.0 + days * DAY * 2 / 3 + 1)
        self.assertGreaterEqual(at, 1000.0 + days * DAY * 0.6)

    @given(CHANCES)
    def test_waits_grow_to_a_day(self, chance: float) -> None:
        tries, now, waits = NEVER, 0.0, []
        for _ in range(40):
            tries = tries.begun(now, chance)
            waits.append(round(tries.again - now))
            now = tries.again
        self.assertEqual(waits, sorted(waits))
        self.assertGreaterEqual(waits[0], 900)
        self.assertLessEqual(waits[-1], DAY * 1.25)
        self.assertGreaterEqual(waits[-1], DAY)


class LimitTests(SynchronousTestCase):
    """Let's Encrypt's limits, with tries as fast as they are let."""

    @given(st.lists(st.sampled_from(("fail", "restart", "die", "silent")), min_size=1, max_size=30), CHANCES)
    def test_five_failed_validations_an_hour(self, fates: list[str], chance: float) -> None:
        patience, now = Patience(), 1e9
        tried: list[float] = []
        for fate in fates:
            while not (patience.ready(now) and patience.may("a.test", now)):
                now += 60
            before = patience.begin("a.test", now, chance)
            kept = json.dumps(patience.record())
            if fate == "silent":
                patience.silent("a.test", before, now, chance)
            else:
                tried.append(now)
            if fate in ("restart", "die"):
                patience = Patience.of(json.loads(kept), now)
        for start in tried:
            self.assertLessEqual(sum(1 for at in tried if start <= at < start + HOUR), 5)

    def test_300_orders_in_three_hours(self) -> None:
        patience, now = Patience(), 1e9
        orders: list[float] = []
        while now < 1e9 + DAY:
            if patience.ready(now):
                patience.begin(f"{len(orders)}.test", now, 0.0)
                orders.append(now)
            else:
                now += 5
        for start in orders[::50]:
            self.assertLessEqual(sum(1 for at in orders if start <= at < start + 3 * HOUR), 300)
        self.assertGreater(len(orders), DAY / renewal.ORDER_EVERY - 2)

    def test_five_certificates_for_the_same_name_a_week(self) -> None:
        patience, now = Patience(), 1e9
        issued: list[float] = []
        while now < 1e9 + 30 * DAY:
            if patience.ready(now) and patience.may("a.test", now):
                patience.begin("a.test", now, 0.0)
                issued.append(now)
                patience.lost("a.test", now)
            now += 60
        for start in issued:
            self.assertLess(sum(1 for at in issued if start <= at < start + 7 * DAY), 5)

    def test_silence_when_told_so(self) -> None:
        patience = Patience()
        patience.limited("a.test", 1e9)
        self.assertFalse(patience.ready(1e9 + renewal.AUTHORITY_LIMITED - 1))
        self.assertTrue(patience.ready(1e9 + renewal.AUTHORITY_LIMITED))
        self.assertFalse(patience.may("a.test", 1e9 + DAY - 1))
        self.assertTrue(patience.may("b.test", 1e9))

    def test_every_owner_has_a_turn(self) -> None:
        patience = Patience()
        for number in range(5):
            patience.begin(f"{number}.test", 1e9, 0.0, "many")
        self.assertGreater(patience.turn("many"), patience.turn("few"))
        patience.ready(1e9 + 2 * DAY)
        self.assertEqual(patience.turn("many"), patience.turn("few"))


class RecordTests(SynchronousTestCase):
    def test_an_authority_that_is_away_costs_the_host_nothing(self) -> None:
        patience = Patience()
        for number, seconds in enumerate((60, 120, 240, 480, 960, 1920, 3600, 3600), 1):
            before = patience.begin("a.test", 1e9, 0.0)
            patience.silent("a.test", before, 1e9, 0.0)
            self.assertEqual((patience.silences, patience.quiet_until - 1e9), (number, seconds))
            self.assertTrue(patience.may("a.test", 1e9))
        patience.done("a.test")
        self.assertEqual(patience.silences, 0)

    def test_survives(self) -> None:
        patience = Patience()
        patience.begin("a.test", 1e9, 0.5)
        patience.limited("b.test", 1e9)
        again = Patience.of(json.loads(json.dumps(patience.record())), 1e9)
        self.assertEqual((again.hosts, again.quiet_until), (patience.hosts, patience.quiet_until))
        self.assertEqual(again.orders, ORDERS_AT_ONCE)

    def test_a_clock_that_was_wrong(self) -> None:
        again = Patience.of({"quiet_until": 1e12, "hosts": {"a.test": [3, 1e12]}}, 1e9)
        self.assertLessEqual(again.quiet_until, 1e9 + renewal.AUTHORITY_LIMITED)
        self.assertLessEqual(again.hosts["a.test"].again, 1e9 + 3 * DAY)

    @given(
        st.recursive(
            st.none() | st.integers() | st.text() | st.floats(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(("hosts", "quiet_until", "a.test")), inner),
        )
    )
    def test_noise(self, record: object) -> None:
        patience = Patience.of(record, 1e9)
        patience.record()
        patience.ready(1e9)

    def test_forgets_hosts_that_are_gone(self) -> None:
        patience = Patience(hosts={"a.test": Tries(1, 100.0), "b.test": Tries(1, 100.0), "c.test": Tries(1, 300.0)})
        patience.keep(frozenset(["a.test"]), 200.0)
        self.assertEqual(patience.hosts.keys(), {"a.test", "c.test"})
