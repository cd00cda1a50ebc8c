"""The server's side of pools: tokens are told to agents, what comes with them waits, and visitors take it.

::

    proxy.pool {tokens} ──▶ agent dials ──32 bytes of token──▶ Waiting ──a visitor──▶ PROXY v2 header, first bytes,
                                                                 │                    and both ways from there
                                                                 └── said or ended: closed

A visitor that finds none waits for the next one, like one whose agent was called: after `call_step` it is the next
agent's.

An agent that another node holds dials ahead to this one too, from the first visitor until none has come for `QUIET`
seconds: its node passes the tokens on.

A visitor on such a connection is joined before its agent has answered, so its session is kept until the agent nods.
With a `proxy.reject`, if nothing but the first bytes has gone there, the link is parted and the next subscriber is
asked: whoever serves gets every byte exactly once. An agent that dies, hangs or vanishes before its nod leaves that in
doubt. Then only those are given to the next one whose first bytes may be said twice: requests by safe methods alone
(RFC 9110 section 9.2.1), or a ClientHello, which by itself does nothing (what a client says early it says knowing that
it may arrive twice, RFC 8446 section 8). Others wait `CALL_LIFE` for the nod.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from functools import partial
from struct import Struct
from typing import Any, Protocol

from attrs import define

from layer8.core.http1 import repeatable
from layer8.core.lanes import Lane
from layer8.net.flow import Link, Secure
from layer8.net.pump import Pump
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.limits import CALL_LIFE
from layer8.proxy.nod import Awaiting
from layer8.proxy.orphans import Orphans
from layer8.proxy.pool import Pool, Pools
from layer8.proxy.pp import Claim, claim
from layer8.proxy.remote import OWN_BITS
from layer8.proxy.visit import Visit
from layer8.proxy.visitor import State, Visitor
from layer8.proxy.wire import LARGEST_ID, SECRET_SIZE

TURN = 1.0
"""Seconds between two looks at what is too old and what is missing."""
QUIET = 60.0
"""Seconds without a visitor after which agents of other nodes dial ahead no more."""
TOKENS = 256
"""Tokens told at once: what nodes tell each other has to fit in a message."""
HEADS = 1000
"""Beginnings of headers kept, by what they say."""
_NUMBER = Struct(">Q")


class PoolLimits(Protocol):
    """What an operator sets of pools."""

    @property
    def pool(self) -> int:
        """Connections of one subscription and kind."""

    @property
    def pools(self) -> int:
        """Of all."""

    @property
    def pool_time(self) -> float:
        """Seconds that one may wait."""

    @property
    def call_step(self) -> float:
        """Seconds that an agent has until it nods."""


class Asker(Protocol):
    """Tells agents to dial ahead."""

    def first_kind(self) -> bool:
        """Say whether the connections that are needed first have TLS."""

    def secures(self, visit: Visit) -> bool:
        """Say whether a visitor is carried inside TLS on its way to the agent."""

    def ask_ahead(self, seat: Seat, secure: bool, secrets: list[bytes]) -> bool:
        """Let the agent of `seat` dial with each of these; False when it cannot be told now."""


class Keeper(Protocol):
    """Who keeps the visitors."""

    orphans: Orphans | None
    """Keeps those whose agent is expected back."""

    def join(self, visit: Visit, first: bytes, fd: int, rest: bytes, secure: Secure | None, head: bytes = b"") -> None:
        """Join a visitor with `fd`, which gets `head` and `first`; if it raises, both connections are closed."""

    def perform(self, visit: Visit, session: Visitor) -> None:
        """Carry out what a visitor's session asks for."""

    def part(self, visit: Visit, session: Visitor) -> None:
        """Take a visitor back from the agent that it is joined with, and ask the next one."""


@define(eq=False)
class Given:
    """A visitor whose agent has not nodded. `said` counts what had been sent or stood ready when it was joined."""

    pooling: Pooling
    visit: Visit
    session: Visitor
    seat: Seat
    link: Link
    said: int
    number: int
    """How the agent knows the visitor."""

    def heard(self) -> None:
        """Take the nod: the agent's it is."""
        self.pooling.over(self.visit)

    def lost(self) -> None:
        """Take that the agent has gone without a nod, or has not nodded for too long."""
        if _repeatable(self.visit, self.session.data) and self.untouched():
            self.pooling.over(self.visit)
            self.pooling.keeper.part(self.visit, self.session)

    def untouched(self) -> bool:
        """Say whether nothing has moved since, but what the visitor had said before."""
        up, down = self.link.up, self.link.down
        if up.link is None or down.count or down.pending or down.held:
            return False
        if up.ended and not up.eof and up.count >= self.said:
            return False  # what could not be written was more
        if up.care is not None and up.care.through:
            return False  # nobody has counted
        read = up.care.read if up.care is not None else up.count + len(up.pending or b"") + up.held - self.said
        return read <= 0


@define(eq=False)
class Queued:
    """A visitor that waits for the next connection of a subscription."""

    visit: Visit
    session: Visitor
    seat: Seat

    def stands(self) -> bool:
        """Say whether it still waits, and for this one."""
        return self.session.state is State.REACHING and self.visit.seat is self.seat and not self.visit.over


class Pooling:
    """See the module; implements what `Reach` asks of a pool."""

    def __init__(self, clock: Any, pump: Pump, seats: Seats, keeper: Keeper, asker: Asker, limits: PoolLimits) -> None:
        """`clock` calls later; nothing is opened before the first subscription."""
        self.pools: Pools[Waiting] = Pools(limits.pool, limits.pools, limits.pool_time, CALL_LIFE)
        self.resting = False
        self._clock = clock
        self.pump = pump
        self._seats = seats
        self.keeper = keeper
        self._asker = asker
        self._by_seat: dict[Seat, dict[bool, Pool[Waiting]]] = {}
        self._whose: dict[Pool[Waiting], tuple[Seat, bool]] = {}
        self.numbers = 0
        """Added to the lower bits of our visitors' numbers, where the agent of another node is to know them."""
        self.given: dict[int, Given] = {}
        """Visitors who have a connection whose agent has not nodded yet, by their numbers."""
        self._numbered: dict[int, Given] = {}
        self._steps: Lane[int] = Lane(limits.call_step)
        self._ends: Lane[int] = Lane(CALL_LIFE)
        self._heads: dict[tuple[str, int, str], tuple[bytes, bytes]] = {}
        self._short: dict[Pool[Waiting], None] = {}
        self._queues: dict[Pool[Waiting], deque[Queued]] = {}
        self._soon: Any = None
        self._turned = 0.0

    def configure(self, limits: PoolLimits) -> None:
        """Go by other limits; what is too much is not renewed."""
        self._steps.seconds = limits.call_step
        self.pools.limit(limits.pool, limits.pools, limits.pool_time)
        self._again()

    # Subscriptions.

    def changed(self, seat: Seat) -> None:
        """Take that a subscription is new, gone, or of another state: only one that gets visitors has a pool."""
        if seat.state != "up" or seat.gone or self.resting:
            self._close(seat)
        elif seat.pool and not seat.remote and seat not in self._by_seat:
            self._open(seat, self._asker.first_kind())

    def _open(self, seat: Seat, secure: bool) -> Pool[Waiting]:
        pool = self._by_seat.setdefault(seat, {})[secure] = self.pools.open(seat.pool, patient=seat.remote)
        self._whose[pool] = seat, secure
        self._refill_soon(pool)
        return pool

    def _close(self, seat: Seat) -> None:
        for pool in self._by_seat.pop(seat, {}).values():
            del self._whose[pool]
            self._short.pop(pool, None)
            for waiting in self.pools.close(pool):
                waiting.close()
            self._disappoint(self._queues.pop(pool, ()))

    def _disappoint(self, queue: Iterable[Queued]) -> None:
        """Give visitors who wait to the next agent, or let them wait for theirs if it is on its way to us."""
        orphans = self.keeper.orphans
        for queued in queue:
            if queued.stands():
                go = partial(self._go_on, queued)
                if orphans is None or not orphans.keeps(queued.seat.host, go):
                    go()

    def _go_on(self, queued: Queued) -> None:
        if queued.stands():
            queued.session.rejected(queued.seat, self.pump.now)
            self.keeper.perform(queued.visit, queued.session)

    def refused(self, seat: Seat) -> None:
        """Take that the agent of another node was not told our tokens: who waits for it goes on, to be called."""
        for pool in list(self._by_seat.get(seat, {}).values()):
            self.pools.withdraw(pool, list(pool.tokens), self.pump.now)
            pool.waiting = 0
            self._disappoint(self._queues.pop(pool, ()))

    def rest(self) -> None:
        """Close all pools: no visitors will come."""
        self.resting = True
        for seat in list(self._by_seat):
            self._close(seat)

    def go_on(self) -> None:
        """Have pools again."""
        self.resting = False
        for seat in list(self._seats):
            self.changed(seat)

    def _again(self) -> None:
        """Begin anew if other kinds of connections are wanted now."""
        kind = self._asker.first_kind()
        ours = [kinds for seat, kinds in self._by_seat.items() if not seat.remote]
        if not self.resting and any(kind not in kinds for kinds in ours):
            self.rest()
            self.go_on()

    def stop(self) -> None:
        """Close everything and do nothing any more."""
        self.rest()
        self.given.clear()
        self._numbered.clear()
        if self._soon is not None and self._soon.active():
            self._soon.cancel()

    # Connections that wait.

    def arrived(self, secret: bytes, fd: int, rest: bytes, secure: Secure | None) -> bool:
        """Keep a connection that showed one of our tokens and nothing else; False, and `fd` stays the caller's."""
        pool = self.pools.owner(secret)
        if rest or pool is None:
            return False
        now = self.pump.now
        queued = self._next(pool) if pool.waiting else None
        if queued is not None:
            if self.pools.spend(pool, secret, now):
                self._go_on_asking(pool, now)
                self._join(queued.visit, queued.session, queued.seat, secure, fd)
                return True
            pool.waiting += 1
            self._queues[pool].appendleft(queued)
            return False
        waiting = Waiting(self, fd, secure, pool)
        # The token is as random as anything: its first byte says how long the connection may wait.
        if self.pools.arrived(secret, waiting, now, secret[0] / 255) is None:
            return False
        self.pump.watch(fd, waiting)
        self._go_on_asking(pool, now)
        return True

    def _go_on_asking(self, pool: Pool[Waiting], now: float) -> None:
        if pool.patient and self.pools.short(pool, now):
            self._refill_soon(pool)

    def _next(self, pool: Pool[Waiting]) -> Queued | None:
        """Give the visitor that has waited longest, if one is still there."""
        queue = self._queues.get(pool)
        while queue:
            queued = queue.popleft()
            pool.waiting -= 1
            if queued.stands():
                return queued
        return None

    def expected(self) -> int:
        """Count the tokens that nobody has shown yet."""
        return self.pools.held - self.pools.idle

    def gone(self, waiting: Waiting) -> None:
        """Forget a connection that has ended before anybody needed it."""
        self.pools.gone(waiting.pool, waiting, self.pump.now)

    # Visitors.

    def carry(self, visit: Visit, session: Visitor, seat: Seat) -> bool:
        """Join a visitor with a connection of `seat` that waits, or let it wait for one; False if neither can be."""
        kinds = self._by_seat.get(seat)
        if kinds is None:
            if not seat.remote or not seat.pool or self.resting:
                return False
            kinds = {}
        secure = self._asker.secures(visit)
        pool = kinds.get(secure) or self._open(seat, secure)
        now = self.pump.now
        waiting = self.pools.take(pool, now)
        while waiting is not None and (fd := waiting.take()) < 0:
            waiting = self.pools.instead(pool, now)
        queued = waiting is None and self.pools.promises(pool, now)
        if queued:
            pool.waiting += 1
            self._queues.setdefault(pool, deque()).append(Queued(visit, session, seat))
        if self.pools.short(pool, now):
            self._refill_soon(pool)
        if waiting is not None:
            self._join(visit, session, seat, waiting.secure, fd)
        return queued or waiting is not None

    def _join(self, visit: Visit, session: Visitor, seat: Seat, secure: Secure | None, fd: int) -> None:
        visit.pooled = True
        number = self.numbers + visit.conn % 2**OWN_BITS if seat.remote else visit.conn
        self.keeper.join(visit, session.data, fd, b"", secure, self._head(visit, number))
        link = visit.link
        if link is not None:
            up = link.up
            said = up.count + len(up.pending or b"")
            given = self.given[visit.conn] = Given(self, visit, session, seat, link, said, number)
            self._numbered[number] = given
            self._steps.add(visit.conn, self.pump.now)
            Awaiting(link.down, given.heard, given.lost)

    def _head(self, visit: Visit, number: int) -> bytes:
        """Give the header that claims a connection for a visitor."""
        host, scheme = visit.host or "", visit.carried
        remote = visit.remote
        if remote is not None:
            return claim(Claim(visit.port, number, host, "http" if scheme == "http" else "https", remote))
        key = host, visit.port, scheme
        parts = self._heads.get(key)
        if parts is None:
            if len(self._heads) >= HEADS:
                self._heads.clear()
            whole = claim(Claim(visit.port, LARGEST_ID, host, "http" if scheme == "http" else "https"))
            before, _, after = whole.partition(_NUMBER.pack(LARGEST_ID))
            parts = self._heads[key] = before, after
        return parts[0] + _NUMBER.pack(number) + parts[1]

    def rejected(self, seat: Seat, conn: int) -> bool:
        """Take an agent's no to a visitor that it was given; False if it was not given to it."""
        given = self._numbered.get(conn)
        if given is None or given.seat is not seat:
            return False
        self.over(given.visit)
        if given.untouched():
            self.keeper.part(given.visit, given.session)
        else:
            given.link.close("reset")
        return True

    def over(self, visit: Visit) -> None:
        """Forget a visitor whose connection has ended."""
        given = self.given.pop(visit.conn, None)
        if given is not None:
            self._numbered.pop(given.number, None)

    # Refilling, and time.

    def _refill_soon(self, pool: Pool[Waiting]) -> None:
        """Ask for more once this turn of the reactor is over: several visitors share a notification."""
        self._short[pool] = None
        if self._soon is None or not self._soon.active():
            self._soon = self._clock.callLater(0, self._refill)

    def _refill(self) -> None:
        short, self._short = self._short, {}
        now = self.pump.now
        for pool in short:
            wanted = self.pools.short(pool, now)
            if not wanted:
                continue
            missing = min(wanted, TOKENS)
            random = os.urandom(missing * SECRET_SIZE)
            secrets = [random[at : at + SECRET_SIZE] for at in range(0, len(random), SECRET_SIZE)]
            self.pools.issue(pool, secrets, now)
            seat, secure = self._whose[pool]
            if not self._asker.ask_ahead(seat, secure, secrets):
                self.pools.withdraw(pool, secrets, now)
                if seat.remote:
                    self.refused(seat)
            elif missing < wanted:
                self._refill_soon(pool)

    def tick(self, now: float) -> None:
        """Renew what has waited long enough, and look at those who have had no nod; monotonic seconds."""
        for conn in self._steps.expired(now):
            if (given := self.given.get(conn)) is not None:
                self._ends.add(conn, now)
                given.lost()
        for conn in self._ends.expired(now):
            if (given := self.given.get(conn)) is not None:
                self.over(given.visit)
                given.link.close("reset")
        if now - self._turned < TURN:
            return
        self._turned = now
        for waiting in self.pools.expired(now):
            waiting.close()
        for seat, kinds in list(self._by_seat.items()):
            if seat.remote and all(not pool.waiting and pool.quiet(now) >= QUIET for pool in kinds.values()):
                self._close(seat)
        for pool in self.pools.lacking(now):
            self._refill_soon(pool)


def _repeatable(visit: Visit, first: bytes) -> bool:
    return visit.carried == "https" or repeatable(first)


class Waiting:
    """A connection without a visitor; an entry of the pump until it is taken."""

    __slots__ = ("_pooling", "fd", "pool", "secure")

    def __init__(self, pooling: Pooling, fd: int, secure: Secure | None, pool: Pool[Waiting]) -> None:
        """Wait on `fd`."""
        self._pooling = pooling
        self.fd = fd
        self.secure = secure
        self.pool = pool

    def _alive(self) -> bool:
        """Say whether the agent has neither left nor said anything, which it may not."""
        try:
            if self.secure is None:
                os.read(self.fd, 1)
            else:
                self.secure.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def ready(self, fd: int, events: int) -> None:
        """Notice that the agent has left."""
        if self.fd >= 0 and not self._alive():
            self._pooling.gone(self)
            self.close()

    def take(self) -> int:
        """Give the descriptor to a visitor; -1, and it is closed, if its end has not been noticed yet."""
        if not self._alive():
            self.close()
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close it, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._pooling.pump.close_fd(fd)

    def abandon(self) -> None:
        """Close it, unless a visitor has it."""
        self._pooling.gone(self)
        self.close()
