"""The ways from a visitor to whoever serves its host: a static target is dialled, an agent is called.

A visitor whose agent has dialled ahead is joined at once (`layer8.proxy.pooling`). Else the agent is told a secret, and
the data connection that shows it is the visitor's. Until then the visitor's
`Visitor` session decides when the next subscriber is asked; here is what it decides about.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Protocol

from layer8.core.lanes import Lane
from layer8.net.dial import Dialer, Where
from layer8.net.flow import Secure
from layer8.net.pump import Pump
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.orphans import Orphans
from layer8.proxy.pp import introduction
from layer8.proxy.tally import Totals
from layer8.proxy.visit import Visit
from layer8.proxy.visitor import Ask, Visitor
from layer8.proxy.wire import SECRET_SIZE, Reason


class Caller(Protocol):
    """Tells an agent that a visitor waits."""

    def call(self, visit: Visit, seat: Seat, secret: bytes) -> bool:
        """Notify the agent of `seat`; False when it cannot be told now."""


class Ahead(Protocol):
    """Has connections of agents that were dialled ahead."""

    def carry(self, visit: Visit, session: Visitor, seat: Seat) -> bool:
        """Join a visitor with one of them, or let it wait for the next; False if neither can be."""

    def arrived(self, secret: bytes, fd: int, rest: bytes, secure: Secure | None) -> bool:
        """Take a data connection that showed `secret`; False, and `fd` stays the caller's, if it is none of them."""

    def expected(self) -> int:
        """Count those that are on their way."""

    def rejected(self, seat: Seat, conn: int) -> bool:
        """Take an agent's no to a visitor that was carried so; False if there is none."""

    def changed(self, seat: Seat) -> None:
        """Take that a subscription is gone."""

    def over(self, visit: Visit) -> None:
        """Forget a visitor that was carried so."""

    def rest(self) -> None:
        """Close all of them: the server drains."""

    def go_on(self) -> None:
        """Have them again."""

    def tick(self, now: float) -> None:
        """Look at the clock; monotonic seconds."""

    def stop(self) -> None:
        """Close all of them for good."""


class Keeper(Protocol):
    """Who keeps the visitors."""

    orphans: Orphans | None
    """Keeps those whose agent was with a node that has died: it may come back to another one."""

    def join(self, visit: Visit, first: bytes, fd: int, rest: bytes, secure: Secure | None, head: bytes = b"") -> None:
        """Join a visitor with `fd`, which gets `head` and `first`; `rest` has come from it already.

        If it raises, both connections are closed.
        """

    def perform(self, visit: Visit, session: Visitor) -> None:
        """Carry out what a visitor's session asks for."""

    def close(self, visit: Visit, reason: Reason) -> None:
        """End a visitor that was never joined."""


class Reach:
    """See the module."""

    def __init__(self, pump: Pump, dialer: Dialer, seats: Seats, keeper: Keeper, totals: Totals, step: float) -> None:
        """`step` is how many seconds one agent has to dial back."""
        self.pump = pump
        self.seats = seats
        self.pending: dict[bytes, Visit] = {}
        self._called: dict[int, Visit] = {}  # the same by their numbers: an agent may say no as often as it likes
        self.caller: Caller | None = None
        self.ahead: Ahead | None = None
        self.lane: Lane[Visit] = Lane(step)
        self.dials: Lane[Visit] = Lane(step)
        self._totals = totals
        self._dialer = dialer
        self._keeper = keeper
        self._targets: dict[str, Where] = {}

    # A target that the server dials itself.

    def serve(self, visit: Visit, target: str, first: bytes) -> None:
        """Dial the target of a static host; `first` is what its visitor has said."""
        visit.session = None
        visit.first = first
        where = self._targets.get(target)
        if where is None:
            where = self._targets[target] = Where.of(target)
        attempt = self._dialer.dial(where, visit.dialled)
        if attempt is not None:
            visit.attempt = attempt
            self.dials.add(visit, self.pump.now)
            self.pump.watch(visit.fd, visit)

    def late(self, visit: Visit) -> None:
        """Give up a static host's target that does not answer."""
        if visit.attempt is not None and not visit.over:
            self._keeper.close(visit, Reason.TARGET_REFUSED)

    def dialled(self, visit: Visit, fd: int, error: Exception | None) -> None:
        """Take the end of dialling a static host's target."""
        visit.attempt = None
        if visit.over:
            if fd >= 0:
                self.pump.close_fd(fd)
        elif error is not None:
            self._keeper.close(visit, Reason.TARGET_REFUSED)
        else:
            first, visit.first = visit.first, b""
            kind = "none" if visit.row is None else visit.row.introduction
            head = b"" if kind == "none" else introduction(kind, visit.remote, visit.came_to)
            self._keeper.join(visit, first, fd, b"", None, head)

    # An agent that is called.

    def ask(self, visit: Visit, session: Visitor, ask: Ask) -> None:
        """Call the agent of a subscription, and let no other one answer."""
        self.uncall(visit)
        seat = ask.seat
        visit.seat = seat
        self.seats.called(seat)
        if self.ahead is not None and self.ahead.carry(visit, session, seat):
            if visit.link is None:
                self.lane.add(visit, self.pump.now)
            return
        visit.secret = secret = os.urandom(SECRET_SIZE)
        self.pending[secret] = self._called[visit.conn] = visit
        if self.caller is None or not self.caller.call(visit, seat, secret):
            session.rejected(seat, self.pump.now)
            return
        self.lane.add(visit, self.pump.now)

    def uncall(self, visit: Visit) -> None:
        """Make what an agent was told void."""
        if visit.secret is not None:
            self.pending.pop(visit.secret, None)
            self._called.pop(visit.conn, None)
            visit.secret = None
        seat, visit.seat = visit.seat, None
        if seat is not None:
            self.seats.uncalled(seat)

    def expected(self) -> int:
        """Count the data connections that agents were asked for and have not made yet."""
        return len(self.pending) + (0 if self.ahead is None else self.ahead.expected())

    def answered(self, secret: bytes, fd: int, rest: bytes, secure: Secure | None) -> bool:
        """Take a data connection that showed `secret`; False, and `fd` stays the caller's, if nobody waits for it."""
        visit = self.pending.pop(secret, None)
        if visit is not None:
            self._called.pop(visit.conn, None)
        if visit is None or visit.session is None:
            return self.ahead is not None and self.ahead.arrived(secret, fd, rest, secure)
        visit.secret = None  # good for one connection
        self._keeper.join(visit, visit.session.data, fd, rest, secure)
        return True

    def rejected(self, seat: Seat, conn: int) -> None:
        """Take an agent's no for one visitor; one that it was not called for is ignored and counted."""
        visit = self._called.get(conn)
        if visit is not None and visit.seat is seat and visit.session is not None:
            self._next(visit, visit.session, seat)
            return
        if self.ahead is None or not self.ahead.rejected(seat, conn):
            self._totals.rejects_ignored += 1

    def seat_gone(self, seat: Seat) -> None:
        """Fail over what waits for an agent that is gone."""
        if self.ahead is not None:
            self.ahead.changed(seat)
        called = [visit for visit in self.pending.values() if visit.seat is seat] if seat.calling else ()
        for visit in called:
            if visit.session is not None:
                self._next(visit, visit.session, seat)

    def wake(self, visit: Visit, session: Visitor) -> None:
        """Let a visitor's time pass; one whose agent may be on its way back still waits for it."""
        go = partial(self._woken, visit, session)
        seat = visit.seat
        orphans = self._keeper.orphans
        if seat is None or orphans is None or not orphans.keeps(seat.host, go):
            go()

    def _woken(self, visit: Visit, session: Visitor) -> None:
        session.wake(self.pump.now)
        self._keeper.perform(visit, session)

    def _next(self, visit: Visit, session: Visitor, seat: Seat) -> None:
        go = partial(self._go_on, visit, session, seat)
        orphans = self._keeper.orphans
        if orphans is None or not orphans.keeps(seat.host, go):
            go()

    def _go_on(self, visit: Visit, session: Visitor, seat: Seat) -> None:
        session.rejected(seat, self.pump.now)
        self._keeper.perform(visit, session)
