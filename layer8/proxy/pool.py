"""How many connections wait ahead of their visitors, and which of them is taken: states, no sockets.

::

    token issued ──arrived──▶ idle ──take──▶ a visitor's
         │                     │ └─expired──▶ closed by the server, another token in its place
         └─lapsed              └─gone: the agent closed it, or its machine is no more

A pool belongs to one subscription and one kind of data connection (with TLS or without). Its size is

    clamp(ceil(arrivals per second x refill latency x 1.5), wish, most of each)

with arrivals as a mean over `MEAN` seconds and the latency from a token's issue to its connection: what is used up
while a replacement is on its way. Visitors that find a pool empty may wait for what comes next, and one token more is
issued for each: tokens go out many at a time, so that is less work than to call the agent for each, and takes no
longer. Tokens and idle connections together never exceed the size and those who wait, nor `most` in all.

Where asking is dear, because another node has to pass it on, a pool is `patient`: it asks once, and again when the
first of what it asked for is there. What is needed meanwhile goes out together then, and the size is twice as large.

The newest idle connection is taken first: it is the least likely to have died unseen behind a NAT, and those that a
quiet pool does not need are left to expire by themselves. The server ends idle connections, never the agent, so none
is closed at the moment when it is taken. What comes to nothing (a token that nobody shows, a connection that ends
unused) makes the pool wait, twice as long each time, or an agent could keep us busy with nothing.

Times are monotonic seconds. Source: proxy.md section 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil, exp
from typing import Final, Generic, TypeVar

from attrs import define, field

MEAN: Final = 10.0  # seconds over which arrivals are averaged
MARGIN: Final = 1.5  # more than the mean is wanted: visitors come in bursts
SMOOTH: Final = 8  # refill latencies that count in their mean
BATCH: Final = 4  # a refill is asked for once this part of the size is missing, so that several share a notification
QUEUE: Final = 4  # visitors that may wait, as a multiple of the most that a pool holds: the agent is called for others
YOUNGEST: Final = 0.75  # an idle connection lives from this part of its time to all of it: not all end together
PATIENCE: Final = 0.1  # seconds after which a patient pool asks again even so
REST: Final = 1.0  # seconds without a token after the first one that came to nothing
REST_MOST: Final = 60.0  # and after the last of many

T = TypeVar("T")


@define(eq=False)
class Pool(Generic[T]):
    """The pool of one subscription for one kind of connection; `wish` is what its agent asked for.

    `waiting` visitors have found it empty and take what comes next; whoever has them counts them here.
    """

    wish: int
    most: int
    patient: bool = False
    tokens: dict[bytes, float] = field(factory=dict, init=False, repr=False)
    idle: deque[tuple[float, T]] = field(factory=deque, init=False, repr=False)
    waiting: int = field(default=0, init=False)
    closed: bool = field(default=False, init=False)
    latency: float | None = field(default=None, init=False)
    asking: float = field(default=0.0, init=False)
    resting: float = field(default=0.0, init=False)
    _rate: float = field(default=0.0, init=False)
    _counted: float = field(default=0.0, init=False)
    _failures: int = field(default=0, init=False)

    @property
    def held(self) -> int:
        """Tokens that may still be shown and connections that wait."""
        return len(self.tokens) + len(self.idle)

    def rate(self, now: float) -> float:
        """Give the visitors per second, as a mean that forgets what is long ago."""
        return self._rate * exp((self._counted - now) / MEAN)

    def quiet(self, now: float) -> float:
        """Say how many seconds ago the last visitor came."""
        return now - self._counted

    def visited(self, now: float) -> None:
        """Count a visitor, whether or not a connection was there for it."""
        self._rate = self._rate * exp((self._counted - now) / MEAN) + 1 / MEAN
        self._counted = now

    def size(self, now: float) -> int:
        """Say how many tokens and connections there should be."""
        wanted = self.wish
        if self.latency is not None:
            wanted = max(wanted, ceil(self.rate(now) * self.latency * (2 * MARGIN if self.patient else MARGIN)))
        return min(wanted, self.most)

    def failed(self, now: float) -> None:
        """Take that a token or a connection came to nothing."""
        if now >= self.resting:  # those that fail together are one failure
            self.resting = now + min(REST_MOST, REST * 2.0 ** min(self._failures, 10))
            self._failures += 1

    def served(self) -> None:
        """Take that a connection was of use, or would have been to the end of its time."""
        self._failures = 0
        self.resting = 0.0

    def took(self, seconds: float) -> None:
        """Learn from one refill how long they take."""
        self.asking = 0.0
        known = self.latency
        self.latency = seconds if known is None else known + (seconds - known) / SMOOTH


class Pools(Generic[T]):
    """All pools of one server, and the tokens that lead to them.

    `each` is the most of one pool, `most` of all together, tokens included; a token is good for `token_life` seconds,
    an idle connection for at most `life`.
    """

    def __init__(self, each: int, most: int, life: float, token_life: float) -> None:
        """Start with none."""
        self.each = each
        self.most = most
        self.life = life
        self.token_life = token_life
        self.held = 0
        self.idle = 0
        self.hits = 0
        self._pools: dict[Pool[T], None] = {}
        self._by_token: dict[bytes, Pool[T]] = {}

    def __len__(self) -> int:
        """Count the pools."""
        return len(self._pools)

    def limit(self, each: int, most: int, life: float) -> None:
        """Go by other limits; what is too much by them is not renewed."""
        self.each, self.most, self.life = each, most, life
        for pool in self._pools:
            pool.most = each

    def open(self, wish: int, patient: bool = False) -> Pool[T]:
        """Begin a pool; it is empty until tokens are issued."""
        pool: Pool[T] = Pool(wish, self.each, patient)
        self._pools[pool] = None
        return pool

    def short(self, pool: Pool[T], now: float) -> int:
        """Say how many tokens should be issued now; 0 also when so few are missing that it is better to wait."""
        if pool.closed or now < pool.resting or now < pool.asking:
            return 0
        size = pool.size(now)
        missing = min(size + pool.waiting - pool.held, self.most - self.held)
        return missing if missing > 0 and (pool.waiting or missing >= size // BATCH) else 0

    def promises(self, pool: Pool[T], now: float) -> bool:
        """Say whether one more visitor may wait for what comes next: tokens can be issued for it."""
        return not pool.closed and now >= pool.resting and pool.waiting < QUEUE * pool.most and self.held < self.most

    def issue(self, pool: Pool[T], secrets: Iterable[bytes], now: float) -> None:
        """Let connections come with these tokens, no more of them than `short` said."""
        if pool.patient:
            pool.asking = now + PATIENCE
        for secret in secrets:
            pool.tokens[secret] = now
            self._by_token[secret] = pool
            self.held += 1

    def withdraw(self, pool: Pool[T], secrets: Iterable[bytes], now: float) -> None:
        """Take tokens back that could not be told to the agent."""
        for secret in secrets:
            if pool.tokens.pop(secret, None) is not None:
                del self._by_token[secret]
                self.held -= 1
        pool.failed(now)

    def owner(self, secret: bytes) -> Pool[T] | None:
        """Give the pool whose token `secret` is."""
        return self._by_token.get(secret)

    def spend(self, pool: Pool[T], secret: bytes, now: float) -> bool:
        """Take the token of a connection that a waiting visitor gets at once; False if it is too old."""
        del self._by_token[secret]
        issued = pool.tokens.pop(secret)
        self.held -= 1
        if now - issued >= self.token_life:
            pool.failed(now)
            return False
        pool.took(now - issued)
        pool.served()
        return True

    def arrived(self, secret: bytes, connection: T, now: float, chance: float) -> Pool[T] | None:
        """Keep a connection that showed `secret`, which is good for one; None if it is no token of ours.

        `chance` is a random number from 0 to 1: how long the connection lives.
        """
        pool = self._by_token.pop(secret, None)
        if pool is None:
            return None
        issued = pool.tokens.pop(secret)
        if now - issued >= self.token_life:
            self.held -= 1
            pool.failed(now)
            return None
        pool.took(now - issued)
        pool.idle.append((now + self.life * (YOUNGEST + (1 - YOUNGEST) * chance), connection))
        self.idle += 1
        return pool

    def take(self, pool: Pool[T], now: float) -> T | None:
        """Give a visitor the newest idle connection, or None if there is none."""
        pool.visited(now)
        return self._newest(pool)

    def instead(self, pool: Pool[T], now: float) -> T | None:
        """Give another one for one that was taken and turned out to have ended."""
        self.hits -= 1
        pool.failed(now)
        return self._newest(pool)

    def _newest(self, pool: Pool[T]) -> T | None:
        if not pool.idle:
            return None
        pool.served()
        self.held -= 1
        self.idle -= 1
        self.hits += 1
        return pool.idle.pop()[1]

    def gone(self, pool: Pool[T], connection: T, now: float) -> bool:
        """Forget an idle connection that has ended; False if it is not idle."""
        for entry in pool.idle:
            if entry[1] is connection:
                pool.idle.remove(entry)
                self.held -= 1
                self.idle -= 1
                pool.failed(now)
                return True
        return False

    def expired(self, now: float) -> list[T]:
        """Give the idle connections whose time is over, for the owner to close; tokens that are too old are void."""
        over: list[T] = []
        for pool in self._pools:
            self._lapse(pool, now)
            idle = pool.idle
            if idle and any(until <= now for until, _ in idle):
                pool.served()
                over += [connection for until, connection in idle if until <= now]
                pool.idle = deque(entry for entry in idle if entry[0] > now)
        self.held -= len(over)
        self.idle -= len(over)
        return over

    def _lapse(self, pool: Pool[T], now: float) -> None:
        lapsed = []
        for secret, issued in pool.tokens.items():  # oldest first
            if now - issued < self.token_life:
                break
            lapsed.append(secret)
        if lapsed:
            self.withdraw(pool, lapsed, now)

    def lacking(self, now: float) -> list[Pool[T]]:
        """Give the pools for which tokens should be issued."""
        return [pool for pool in self._pools if self.short(pool, now)]

    def close(self, pool: Pool[T]) -> list[T]:
        """End a pool, once: its tokens are void, and its idle connections are the owner's to close."""
        if pool.closed:
            return []
        pool.closed = True
        del self._pools[pool]
        for secret in pool.tokens:
            del self._by_token[secret]
        self.held -= pool.held
        self.idle -= len(pool.idle)
        left = [connection for _, connection in pool.idle]
        pool.tokens.clear()
        pool.idle.clear()
        return left

    def close_all(self) -> list[T]:
        """End all pools."""
        return [connection for pool in list(self._pools) for connection in self.close(pool)]
