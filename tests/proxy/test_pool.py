"""Pools of data connections by a clock set by hand: size, tokens, what is taken, caps that always hold."""

from __future__ import annotations

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from layer8.proxy.pool import BATCH, MEAN, PATIENCE, QUEUE, REST, REST_MOST, Pool, Pools


def made(each: int = 32, most: int = 5000) -> Pools[str]:
    """Pools of connections that are words."""
    return Pools(each, most, 60.0, 5.0)


class SizeTests(SynchronousTestCase):
    def busy(self, per_second: int, latency: float, wish: int = 2) -> int:
        """The size after a minute of steady visitors."""
        pool: Pool[str] = Pool(wish, 32)
        pool.took(latency)
        for step in range(60 * per_second):
            pool.visited(step / per_second)
        return pool.size(60.0)

    def test_the_wish_while_nothing_is_known(self) -> None:
        pool: Pool[str] = Pool(3, 32)
        for _ in range(1000):
            pool.visited(1.0)
        self.assertEqual(pool.size(1.0), 3)

    def test_by_arrivals_and_latency(self) -> None:
        """100 visitors a second and 80 ms until a replacement is there: 8 are used up meanwhile, and half as many."""
        self.assertEqual(self.busy(100, 0.08), 12)
        self.assertEqual(self.busy(100, 0.01), 2)
        self.assertEqual(self.busy(10, 0.2), 3)

    def test_never_less_than_the_wish_or_more_than_the_most(self) -> None:
        self.assertEqual(self.busy(1, 0.001, wish=5), 5)
        self.assertEqual(self.busy(1000, 0.5), 32)
        self.assertEqual(self.busy(1, 0.001, wish=40), 32)

    def test_forgets(self) -> None:
        pool: Pool[str] = Pool(1, 32)
        pool.took(0.1)
        for step in range(6000):
            pool.visited(step / 100)
        self.assertEqual(pool.size(60.0), 15)
        self.assertEqual(pool.size(60.0 + MEAN), 6)
        self.assertEqual(pool.size(60.0 + 10 * MEAN), 1)

    def test_latency_is_a_mean(self) -> None:
        pool: Pool[str] = Pool(1, 32)
        pool.took(0.1)
        pool.took(0.9)
        self.assertAlmostEqual(pool.latency or 0, 0.2)


class PoolsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pools = made()
        self.numbers = count(1)

    def issue(self, pool: Pool[str], now: float) -> list[bytes]:
        """Issue what is short."""
        secrets = [b"token %d" % next(self.numbers) for _ in range(self.pools.short(pool, now))]
        self.pools.issue(pool, secrets, now)
        return secrets

    def full(self, wish: int, now: float = 0.0) -> Pool[str]:
        """A pool whose connections are c1, c2, ... in the order in which they came."""
        pool = self.pools.open(wish)
        for number, secret in enumerate(self.issue(pool, now), 1):
            self.assertIs(self.pools.arrived(secret, f"c{number}", now, 1.0), pool)
        return pool

    def counted(self) -> tuple[int, int]:
        return self.pools.held, self.pools.idle

    def test_tokens_become_idle_connections(self) -> None:
        pool = self.pools.open(2)
        self.assertEqual(self.pools.lacking(0.0), [pool])
        first, second = self.issue(pool, 0.0)
        self.assertEqual((self.pools.short(pool, 0.0), self.pools.lacking(0.0)), (0, []))
        self.assertEqual(self.counted(), (2, 0))
        self.assertIs(self.pools.arrived(first, "a", 0.25, 0.5), pool)
        self.assertEqual(pool.latency, 0.25)
        self.assertEqual(self.counted(), (2, 1))
        self.assertIs(self.pools.arrived(second, "b", 0.25, 0.5), pool)
        self.assertEqual(self.counted(), (2, 2))

    def test_a_token_is_good_for_one(self) -> None:
        pool = self.pools.open(1)
        (secret,) = self.issue(pool, 0.0)
        self.assertIsNotNone(self.pools.arrived(secret, "a", 0.0, 0.5))
        self.assertIsNone(self.pools.arrived(secret, "b", 0.0, 0.5))
        self.assertIsNone(self.pools.arrived(b"no token", "c", 0.0, 0.5))
        self.assertEqual(self.counted(), (1, 1))

    def test_a_late_token(self) -> None:
        """Also when nobody has looked at the clock since it lapsed."""
        pool = self.pools.open(1)
        (secret,) = self.issue(pool, 0.0)
        self.assertIsNone(self.pools.arrived(secret, "a", 5.0, 0.5))
        self.assertEqual(self.counted(), (0, 0))

    def test_lapsed_tokens_are_void(self) -> None:
        pool = self.pools.open(2)
        first, _ = self.issue(pool, 0.0)
        self.assertEqual(self.pools.expired(4.9), [])
        self.assertEqual(pool.held, 2)
        self.assertEqual(self.pools.expired(5.0), [])
        self.assertEqual((pool.held, *self.counted()), (0, 0, 0))
        self.assertIsNone(self.pools.arrived(first, "a", 5.0, 0.5))

    def test_the_newest_is_taken(self) -> None:
        pool = self.full(3)
        self.assertEqual([self.pools.take(pool, 1.0) for _ in range(4)], ["c3", "c2", "c1", None])
        self.assertEqual(self.counted(), (0, 0))
        self.assertEqual(self.pools.hits, 3)
        self.assertAlmostEqual(pool.rate(1.0), 0.4)

    def test_refilled_after_use(self) -> None:
        pool = self.full(2)
        self.pools.take(pool, 1.0)
        self.assertEqual(self.pools.short(pool, 1.0), 1)

    def test_a_large_pool_is_refilled_in_batches(self) -> None:
        pool = self.full(32)
        for _ in range(32 // BATCH - 1):
            self.pools.take(pool, 1.0)
        self.assertEqual(self.pools.short(pool, 1.0), 0)
        self.pools.take(pool, 1.0)
        self.assertEqual(self.pools.short(pool, 1.0), 32 // BATCH)

    def test_one_that_turns_out_to_have_ended(self) -> None:
        pool = self.full(2)
        self.assertEqual(self.pools.take(pool, 1.0), "c2")
        self.assertEqual(self.pools.instead(pool, 1.0), "c1")
        self.assertEqual((self.pools.hits, self.counted()), (1, (0, 0)))
        self.assertIsNone(self.pools.instead(pool, 1.0))
        self.assertEqual((self.pools.hits, self.pools.short(pool, 1.0)), (0, 0))
        self.assertAlmostEqual(pool.rate(1.0), 0.1, msg="it is one visitor")

    def test_visitors_that_wait(self) -> None:
        """One token more for each, at once; what comes is theirs, and the pool is as full as before."""
        pool = self.full(8)
        for _ in range(8):
            self.pools.take(pool, 0.0)
        self.assertTrue(self.pools.promises(pool, 0.0))
        pool.waiting = 3
        secrets = self.issue(pool, 0.0)
        self.assertEqual(len(secrets), 11)
        pool.waiting += 1
        self.assertEqual(self.pools.short(pool, 0.0), 1, "nobody waits for a batch")
        hits = self.pools.hits
        self.assertIs(self.pools.owner(secrets[0]), pool)
        self.assertTrue(self.pools.spend(pool, secrets[0], 0.5))
        self.assertIsNone(self.pools.owner(secrets[0]))
        self.assertEqual((self.pools.hits, pool.held, self.counted()), (hits, 10, (10, 0)))
        self.assertAlmostEqual(pool.latency or 0, 0.5 / 8)
        self.assertFalse(self.pools.spend(pool, secrets[1], 5.0), "too old")
        self.assertEqual((pool.held, self.counted()), (9, (9, 0)))

    def test_patience(self) -> None:
        """What is missing while the first of what was asked for is on its way is asked for when that is there."""
        pool = self.pools.open(4, patient=True)
        secrets = [bytes([number]) * 32 for number in range(9)]
        self.assertEqual(self.pools.short(pool, 0.0), 4)
        self.pools.issue(pool, secrets[:4], 0.0)
        pool.waiting = 3
        self.assertEqual(self.pools.short(pool, 0.05), 0)
        self.pools.arrived(secrets[0], "first", 0.05, 0.5)
        self.assertEqual(self.pools.short(pool, 0.05), 3, "together")
        self.pools.issue(pool, secrets[4:7], 0.05)
        pool.waiting += 1
        self.assertEqual(self.pools.short(pool, 0.06), 0)
        self.assertEqual(self.pools.short(pool, 0.05 + PATIENCE), 1, "nothing came")
        for _ in range(100):
            pool.visited(1.0)
        other = self.pools.open(4)
        other.latency = pool.latency = 0.5
        for _ in range(100):
            other.visited(1.0)
        self.assertEqual((other.size(1.0), pool.size(1.0)), (8, 15))

    def test_how_many_may_wait(self) -> None:
        self.pools = made(each=4, most=20)
        pool, other = self.pools.open(2), self.pools.open(4)
        pool.waiting = 4 * QUEUE - 1
        self.assertTrue(self.pools.promises(pool, 0.0))
        pool.waiting += 1
        self.assertFalse(self.pools.promises(pool, 0.0))
        self.issue(pool, 0.0)
        self.issue(other, 0.0)
        self.assertEqual(self.pools.held, 20)
        self.assertFalse(self.pools.promises(other, 0.0), "no tokens are left")
        self.pools.close(pool)
        self.assertFalse(self.pools.promises(pool, 0.0))
        self.assertTrue(self.pools.promises(other, 0.0))
        other.failed(0.0)
        self.assertFalse(self.pools.promises(other, 0.0), "no tokens are issued for a while")

    def test_other_limits(self) -> None:
        pool = self.full(4)
        self.pools.limit(2, 100, 10.0)
        self.assertEqual((pool.size(0.0), self.pools.short(pool, 0.0), pool.held), (2, 0, 4))
        for _ in range(3):
            self.pools.take(pool, 0.0)
        (secret,) = self.issue(pool, 0.0)
        self.pools.arrived(secret, "new", 0.0, 1.0)
        self.assertEqual(self.pools.expired(10.0), ["new"])

    def test_gone(self) -> None:
        pool = self.full(2)
        oldest = pool.idle[0][1]
        self.assertTrue(self.pools.gone(pool, oldest, 1.0))
        self.assertFalse(self.pools.gone(pool, oldest, 1.0))
        self.assertEqual(self.counted(), (1, 1))
        self.assertEqual(self.pools.take(pool, 1.0), "c2")
        self.assertFalse(self.pools.gone(pool, "c2", 1.0), "a visitor's by now")

    def test_expired_are_renewed(self) -> None:
        pool = self.pools.open(2)
        first, second = self.issue(pool, 0.0)
        self.pools.arrived(first, "long", 0.0, 1.0)
        self.pools.arrived(second, "short", 0.0, 0.0)
        self.assertEqual(self.pools.expired(44.9), [])
        self.assertEqual(self.pools.expired(45.0), ["short"])
        self.assertEqual(self.pools.short(pool, 45.0), 1)
        self.assertEqual(self.pools.expired(60.0), ["long"])
        self.assertEqual(self.counted(), (0, 0))
        self.assertEqual(self.pools.short(pool, 60.0), 2, "their time was over, which is no failure")

    def test_what_is_not_needed_any_more_is_not_renewed(self) -> None:
        pool = self.pools.open(1)
        pool.took(0.1)
        for step in range(6000):
            pool.visited(step / 100)
        for number, secret in enumerate(self.issue(pool, 60.0)):
            self.pools.arrived(secret, f"c{number}", 60.0, 1.0)
        self.assertEqual(pool.held, 15)
        self.assertEqual(len(self.pools.expired(120.0)), 15)
        self.assertEqual(self.pools.short(pool, 120.0), 1)

    def test_failures_make_it_rest_longer_each_time(self) -> None:
        pool, now, rests = self.pools.open(2), 0.0, []
        for _ in range(9):
            secrets = self.issue(pool, now)
            for secret in secrets:
                self.pools.arrived(secret, "x", now, 0.5)
                self.pools.gone(pool, "x", now)
            self.assertEqual(self.pools.short(pool, now), 0)
            rests.append(pool.resting - now)
            now = pool.resting
        self.assertEqual(rests, [REST, 2, 4, 8, 16, 32, REST_MOST, REST_MOST, REST_MOST])
        (secret, _) = self.issue(pool, now)
        self.pools.arrived(secret, "good", now, 0.5)
        self.pools.take(pool, now)
        self.assertEqual(self.pools.short(pool, now), 1, "one that was of use ends the rest")

    def test_tokens_that_were_not_told(self) -> None:
        pool = self.pools.open(2)
        self.pools.withdraw(pool, self.issue(pool, 0.0), 0.0)
        self.assertEqual((self.counted(), self.pools.short(pool, 0.0)), ((0, 0), 0))
        self.assertEqual(self.pools.short(pool, REST), 2)

    def test_in_all(self) -> None:
        self.pools = made(most=5)
        first, second, third = (self.pools.open(3) for _ in range(3))
        self.assertEqual([len(self.issue(pool, 0.0)) for pool in (first, second, third)], [3, 2, 0])
        self.assertEqual(self.counted(), (5, 0))
        self.pools.close(first)
        self.assertEqual(len(self.issue(third, 0.0)), 3)

    def test_closed(self) -> None:
        pool = self.full(2)
        self.pools.take(pool, 0.0)
        (secret,) = self.issue(pool, 0.0)
        self.assertEqual(self.pools.close(pool), ["c1"])
        self.assertEqual(self.pools.close(pool), [])
        self.assertIsNone(self.pools.arrived(secret, "late", 0.0, 0.5))
        self.assertIsNone(self.pools.take(pool, 0.0))
        self.assertEqual((self.counted(), len(self.pools), self.pools.short(pool, 0.0)), ((0, 0), 0, 0))

    def test_all_closed(self) -> None:
        self.full(1)
        self.full(2)
        self.assertEqual(sorted(self.pools.close_all()), ["c1", "c1", "c2"])
        self.assertEqual((self.counted(), len(self.pools)), ((0, 0), 0))

    def test_none_wished(self) -> None:
        pool = self.pools.open(0)
        self.assertEqual(self.pools.short(pool, 0.0), 0)


class Books(RuleBasedStateMachine):
    """Anything may happen in any order: the caps hold, and the counts are those of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: Pools[str] = Pools(6, 15, 60.0, 5.0)
        self.open: list[Pool[str]] = []
        self.tokens: list[bytes] = []
        self.known: dict[str, Pool[str]] = {}
        self.now = 0.0
        self.numbers = count()

    def pick(self, which: int) -> Pool[str]:
        return self.open[which % len(self.open)]

    @rule(wish=st.integers(0, 9))
    def begin(self, wish: int) -> None:
        self.open.append(self.pools.open(wish))

    @rule(seconds=st.sampled_from((0.0, 0.01, 1.0, 5.0, 30.0, 60.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99), told=st.booleans())
    def issue(self, which: int, told: bool) -> None:
        pool = self.pick(which)
        secrets = [b"%d" % next(self.numbers) for _ in range(self.pools.short(pool, self.now))]
        self.pools.issue(pool, secrets, self.now)
        if told:
            self.tokens += secrets
        else:
            self.pools.withdraw(pool, secrets, self.now)

    @precondition(lambda self: self.tokens)
    @rule(which=st.integers(0, 99), chance=st.floats(0, 1))
    def arrive(self, which: int, chance: float) -> None:
        secret = self.tokens.pop(which % len(self.tokens))
        name = f"c{next(self.numbers)}"
        pool = self.pools.arrived(secret, name, self.now, chance)
        if pool is not None:
            assert not pool.closed
            self.known[name] = pool

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99), visitors=st.integers(1, 9))
    def visit(self, which: int, visitors: int) -> None:
        pool = self.pick(which)
        for _ in range(visitors):
            taken = self.pools.take(pool, self.now)
            if taken is not None:
                assert self.known.pop(taken) is pool

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99))
    def queue(self, which: int) -> None:
        pool = self.pick(which)
        if self.pools.promises(pool, self.now):
            pool.waiting += 1

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99))
    def spend(self, which: int) -> None:
        if self.tokens:
            secret = self.tokens.pop(which % len(self.tokens))
            pool = self.pools.owner(secret)
            if pool is not None and pool.waiting:
                pool.waiting -= 1
                self.pools.spend(pool, secret, self.now)

    @precondition(lambda self: self.known)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        name = sorted(self.known)[which % len(self.known)]
        assert self.pools.gone(self.known.pop(name), name, self.now)

    @rule()
    def look(self) -> None:
        for name in self.pools.expired(self.now):
            del self.known[name]

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99))
    def end(self, which: int) -> None:
        pool = self.pick(which)
        for name in self.pools.close(pool):
            assert self.known.pop(name) is pool
        assert pool not in self.known.values()

    @invariant()
    def caps(self) -> None:
        assert self.pools.held <= 15
        for pool in self.open:
            assert pool.waiting <= QUEUE * 6
            assert pool.held <= (QUEUE + 1) * 6
            assert not (pool.closed and pool.held)

    @invariant()
    def books(self) -> None:
        live = [pool for pool in self.open if not pool.closed]
        assert len(self.pools) == len(live)
        assert self.pools.held == sum(pool.held for pool in live)
        assert self.pools.idle == sum(len(pool.idle) for pool in live) == len(self.known)
        tokens = {secret for pool in live for secret in pool.tokens}
        assert tokens == set(self.pools._by_token)


class BooksTests(SynchronousTestCase):
    def test_whatever_happens(self) -> None:
        run_state_machine_as_test(Books, settings=settings(max_examples=120, stateful_step_count=40, deadline=None))
