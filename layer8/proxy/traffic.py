"""The visitors of a server: accepted, sniffed, routed, joined, counted.

Everything here is on the path of each connection. A visitor is never a Twisted transport: its descriptor is watched by
the pump, its conversation is a `Visitor` session, and a `Visit` carries out what the session asks for::

    accepted ──read──▶ Visitor ──Found──▶ route ──▶ Reach: dial a target, or call an agent ──▶ join ──▶ books
     └─ PROXY header first: Balancers    └─ TLS ends here: Terminator ──▶ HTTP head ─┘
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from itertools import count, takewhile
from sys import intern
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.config.proxy import ProxyConfig
from layer8.core.lanes import Lane
from layer8.core.session import Close, Send, Tell
from layer8.net.dial import Dialer
from layer8.net.factory import Places
from layer8.net.flow import Secure
from layer8.net.leg import Leg
from layer8.net.pump import Pump
from layer8.proxy.accounts import Accounts
from layer8.proxy.allowances import Allowances
from layer8.proxy.balancers import Balancers
from layer8.proxy.bans import Bans
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.hooks import Modes, Own, Terminator
from layer8.proxy.orders import Policy
from layer8.proxy.orphans import Orphans
from layer8.proxy.pp import Header
from layer8.proxy.reach import Reach
from layer8.proxy.registration import Registration, gate
from layer8.proxy.registry import Registry
from layer8.proxy.sniff import UNKNOWN, Found, Sniffer, answer
from layer8.proxy.sniff_http import HttpSniffer
from layer8.proxy.sniff_tls import TlsSniffer
from layer8.proxy.visit import Visit
from layer8.proxy.visitor import UNSERVED, Ask, State, Times, Visitor, reason_for
from layer8.proxy.wire import Reason

FIRST_READ = 16384
"""Bytes of a visitor's first read: a whole request head or ClientHello, nearly always."""
TICK = 0.25
"""Seconds between two looks at deadlines, and between two writes of the access log."""
EVERYBODY = 1 << 31
"""No limit on all visitors together but the descriptors of the process."""


class Traffic:
    """All visitors of one server."""

    _fault = Logger(namespace="layer8.proxy")

    def __init__(
        self,
        reactor: Any,
        pump: Pump,
        dialer: Dialer,
        config: ProxyConfig,
        registry: Registry,
        seats: Seats,
        bans: Bans,
        accounts: Accounts,
        numbers: tuple[int, int] = (1, 1),
    ) -> None:
        """Take what visitors need on their way, and where they are counted when it ends.

        `numbers` are a visitor's first number and the step to the next.
        """
        self.reactor = reactor
        self.pump = pump
        self.registry = registry
        self.accounts = accounts
        self.totals = accounts.totals
        self.tallies = accounts.tallies
        self.waiting: dict[Visit, None] = {}
        self.visits: set[Visit] = set()
        self.reach = Reach(pump, dialer, seats, self, accounts.totals, config.limits.call_step)
        self.balancers = Balancers(pump, self)
        self.allowances = Allowances(config.limits)
        self.terminator: Terminator | None = None
        self.modes: Modes | None = None
        self.own: Own | None = None
        self.orphans: Orphans | None = None
        self.own_names: frozenset[str] = frozenset()
        self.bans = bans
        self.draining = False
        self._seats = seats
        self._numbers = count(*numbers)
        self._drained: list[Deferred[None]] = []
        self._ticker = LoopingCall(self.tick)
        self._ticker.clock = reactor
        self.open = Places(EVERYBODY, config.limits.per_source_open)
        self.sniffing = Places(config.limits.sniffing, config.limits.per_source_sniffing)
        self._sniff_lane: Lane[Visit] = Lane(config.limits.sniff_time)
        self.configure(config)

    def configure(self, config: ProxyConfig) -> None:
        """Go by another configuration from the next visitor on."""
        self.config = config
        limits = config.limits
        self.open.most_per_source = limits.per_source_open
        self.sniffing.most = limits.sniffing
        self.sniffing.most_per_source = limits.per_source_sniffing
        self._times = Times(limits.sniff_time, limits.call_step, limits.call_time)
        self._gate = gate(Policy(allow=config.allow, deny=config.deny), limits.policy_rules)
        self._strip_dot = config.sni_dot == "strip"
        self._answers = config.unknown == "answer"
        self._sniff_lane.seconds = limits.sniff_time
        self.reach.lane.seconds = limits.call_step
        self.reach.dials.seconds = limits.call_time
        self.balancers.configure(config.proxy_from, limits.sniff_time, limits.sniffing)
        self.allowances.limits = limits

    @property
    def pending(self) -> Collection[object]:
        """Give those who wait for an agent."""
        return self.reach.pending

    def start(self) -> None:
        """Begin to look at deadlines."""
        self._ticker.start(TICK, now=False)

    def stop(self) -> None:
        """Close every visitor that is left."""
        if self._ticker.running:
            self._ticker.stop()
        if self.reach.ahead is not None:
            self.reach.ahead.stop()
        self.close_all()
        self.accounts.tick()

    def close_all(self) -> None:
        """Close every visitor there is, because the time for draining is over."""
        self.balancers.close()
        for visit in list(self.visits):
            if visit.link is not None:
                visit.link.close("shutdown")
            else:
                self.refuse(visit, Reason.DRAINING)

    # From accept to a name.

    def accepted(self, fd: int, address: str, port: int, scheme: str) -> None:
        """Take a new visitor on the public port `port`; `scheme` says which of the two kinds of port it is."""
        self.totals.accepted += 1
        if self.draining:
            self.turn_away(fd, Reason.DRAINING)
        elif address in self.balancers:
            self.balancers.take(fd, address, port, scheme)
        else:
            self.enter(fd, address, port, scheme)

    def enter(
        self,
        fd: int,
        address: str,
        port: int,
        scheme: str,
        header: Header | None = None,
        first: bytes = b"",
        leg: Leg | None = None,
        row: Registration | None = None,
    ) -> None:
        """Take a visitor from `address`; a balancer may have said so in a `header`, behind which stood `first`.

        One that comes back from its host may have a `leg`, whose certificate is that of `row`.
        """
        if address in self.bans:
            self.turn_away(fd, Reason.BANNED)
            return
        if self._gate is not None and not self._gate.admits(address):
            self.turn_away(fd, Reason.DENIED)
            return
        source = self.open.take(address)
        if source is None:
            self.turn_away(fd, Reason.SOURCE_LIMIT)
            return
        visit = Visit(self, fd, next(self._numbers), intern(address), source, port, scheme)
        visit.header, visit.leg, visit.row = header, leg, row
        sniffer: Sniffer = HttpSniffer() if visit.speaks_http else TlsSniffer(strip_dot=self._strip_dot)
        self.visits.add(visit)
        try:
            self._enter(visit, sniffer, first)
        except Exception:
            self.abandon(visit)  # nobody else knows of it yet
            raise

    def _enter(self, visit: Visit, sniffer: Sniffer, first: bytes = b"") -> None:
        """Read what is there already, which nearly always is all that is needed; `first` somebody has read."""
        try:
            data = first or (os.read(visit.fd, FIRST_READ) if visit.leg is None else visit.leg.recv(FIRST_READ))
        except BlockingIOError:
            outcome = None
        except OSError:
            self._close(visit, Reason.VISITOR_LEFT, b"")
            return
        else:
            if not data:
                self._close(visit, Reason.VISITOR_LEFT, b"")
                return
            outcome = sniffer.feed(data)
        if isinstance(outcome, Found):
            self._named(visit, outcome, sniffer)
        elif outcome is not None:
            self._close(visit, reason_for(outcome, visit.scheme), outcome.answer)
        else:
            began = visit.opened if visit.leg is None else self.pump.now
            visit.session = Visitor(sniffer, visit.scheme, self._times, began)
            self._wait_for_name(visit, began)

    def _wait_for_name(self, visit: Visit, began: float) -> None:
        if self._wait(visit, began):
            self.pump.watch(visit.fd, visit)

    def _wait(self, visit: Visit, began: float) -> bool:
        """Give a visitor a place and its time among those who are not named yet; False if there is no place."""
        limits = self.config.limits
        if visit.source and self.sniffing.of(visit.address) >= limits.per_source_sniffing:
            self.refuse(visit, Reason.SOURCE_LIMIT)
            return False
        while len(self.waiting) >= limits.sniffing:
            oldest = next(iter(self.waiting))
            self._named_late(oldest)
            self.refuse(oldest, Reason.CROWDED_OUT)
        self.waiting[visit] = None
        self.sniffing.take(visit.address)
        self._sniff_lane.add(visit, began)
        return True

    def readable(self, visit: Visit, events: int) -> None:
        """Go on sniffing, or notice a visitor who has gone while its other side is reached."""
        session = visit.session
        while session is not None and session.state is State.SNIFFING:
            try:
                data = os.read(visit.fd, FIRST_READ) if visit.leg is None else visit.leg.recv(FIRST_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                session.received(data, self.pump.now)
            else:
                session.lost(self.pump.now)
            self.perform(visit, session)
        # A half-closed visitor may still want its answer; one that was reset or has closed both ways does not.
        if events & _GONE and visit.link is None and not visit.over:
            self.refuse(visit, Reason.VISITOR_LEFT)

    def refuse(self, visit: Visit, reason: Reason, answer: bytes = b"") -> None:
        """Send a visitor away that is not joined; one that has left meanwhile is left alone."""
        session = visit.session
        if visit.over:
            return
        if session is None:
            self._close(visit, reason, answer)
        else:
            session.refuse(reason, answer)
            self.perform(visit, session)

    def turn_away(self, fd: int, reason: Reason) -> None:
        """Close a connection that nobody watches and that is no visitor yet."""
        self.totals.ended[reason] += 1
        os.close(fd)

    # What sessions ask for.

    def perform(self, visit: Visit, session: Visitor) -> None:
        """Carry out what a visitor's session asks for."""
        farewell = b""
        while effects := session.effects():
            for effect in effects:
                if isinstance(effect, Tell):
                    if isinstance(effect.what, Found):
                        self._named(visit, effect.what, session.sniffer)
                    elif isinstance(effect.what, Ask):
                        self.reach.ask(visit, session, effect.what)
                elif isinstance(effect, Send):
                    farewell = effect.data
                elif isinstance(effect, Close):
                    self._close(visit, effect.reason, farewell)

    def _named(self, visit: Visit, found: Found, sniffer: Sniffer) -> None:
        """Decide once where the visitor goes; everything later uses this decision."""
        pump, scheme = self.pump, visit.scheme
        visit.sniff_ms = int((pump.now - visit.opened) * 1000)
        if visit.session is not None:
            self._named_late(visit)
        host = found.host or (visit.host if visit.leg is not None else None) or self.config.default_host
        if not host:
            self.refuse(visit, Reason.NO_NAME)
            return
        row = self.registry.lookup(host)
        if visit.leg is not None and (row is None or visit.row is None or row.host != visit.row.host):
            self.refuse(visit, Reason.MISDIRECTED, answer(421))  # it has shown a certificate for another one
            return
        if row is None:
            if host in self.own_names and self.own is not None and scheme == "https":
                self._hand_over(visit, sniffer.data, found)
                return
            reason = Reason.SUSPENDED if self.registry.suspended(host) else Reason.UNKNOWN_HOST
            self.refuse(visit, reason, UNKNOWN[scheme] if self._answers else b"")
            return
        visit.row = row
        visit.host = host if row.host != host else row.host
        terminator = self.terminator if row.policy.tls == "terminate" else None
        if terminator is not None and scheme == "http" and (words := terminator.answer(host, sniffer.data)):
            self.refuse(visit, Reason.CHALLENGED, words)  # whoever else may come, and wherever
            return
        if row.ports and visit.port not in row.ports:
            self.refuse(visit, Reason.WRONG_PORT, UNKNOWN[visit.carried] if self._answers else b"")
            return
        if row.gate is not None and not row.gate.admits(visit.address):
            self.refuse(visit, Reason.DENIED)
            return
        if terminator is not None and scheme == "https" and visit.leg is None:
            visit.session = None
            terminator.begin(visit, row, sniffer.data, found.alpn)
            return
        if row.policy.users and not (row.mode == "proxy" and visit.speaks_http):
            self.refuse(visit, Reason.DENIED)  # nobody here could ask for the password
            return
        if self.modes is not None and row.mode != "raw" and visit.speaks_http:
            status = self.modes.doubt(visit, sniffer.data)
            if status is not None:
                self.refuse(visit, Reason.BAD_HTTP, answer(status) if status else b"")
                return
        tally = self.tallies.get(row.host) or self.accounts.tally(row.host)
        limits = self.config.limits
        most = row.policy.max_conns or limits.host_conns
        if (most and tally.open + tally.calling >= most) or not (visit.leg or self.allowances.admits(row, pump.now)):
            self.refuse(visit, Reason.HOST_LIMIT)
        elif row.target is not None:
            visit.tally = tally
            tally.calling += 1
            self.reach.serve(visit, row.target, sniffer.data)
        elif tally.calling >= limits.pending_per_host or len(self.reach.pending) >= limits.pending:
            self.refuse(visit, Reason.PENDING_LIMIT)
        else:
            visit.tally = tally
            tally.calling += 1
            session = visit.session
            if session is None:
                session = visit.session = Visitor(sniffer, scheme, self._times, visit.opened, State.ROUTED)
            pump.watch(visit.fd, visit)
            if self.orphans is None or not self.orphans.keeps(row.host, partial(self._call, visit, session, row.host)):
                self._call(visit, session, row.host)

    def _call(self, visit: Visit, session: Visitor, name: str) -> None:
        """Let agents be called for a visitor that is still here."""
        if session.state is State.ROUTED:
            session.call(lambda tried: self._seats.best(name, tried), self.pump.now)
            self.perform(visit, session)

    def shaking(self, visit: Visit) -> bool:
        """Let a visitor shake hands for as long as it may look for a name; False if it was sent away."""
        return self._wait(visit, visit.opened)

    def shaken(self, visit: Visit) -> None:
        """Take the end of a handshake."""
        if visit in self.waiting:
            self._named_late(visit)

    def secured(self, visit: Visit, leg: Leg) -> None:
        """Take a visitor whose TLS ends here: what it says inside is plain HTTP."""
        visit.leg = leg
        self._enter(visit, HttpSniffer())

    def _named_late(self, visit: Visit) -> None:
        del self.waiting[visit]
        self.sniffing.give(visit.source)

    def _hand_over(self, visit: Visit, first: bytes, found: Found) -> None:
        """Give a connection to the server's own name away; it is no visitor any more."""
        fd, address = visit.fd, visit.address
        self.pump.unregister(fd)
        self._forget(visit)
        if self.own is not None:
            self.own.adopt(fd, address, first, found.alpn)

    # From outside: agents.

    def seat_gone(self, seat: Seat, kill: bool) -> None:
        """Fail over what waits for an agent that is gone; close what it carries only with `kill`."""
        self.reach.seat_gone(seat)
        if kill:
            for visit in [visit for visit in self.visits if visit.seat is seat and visit.link is not None]:
                self._kill(visit)

    # Joined, and the end.

    def join(self, visit: Visit, first: bytes, fd: int, rest: bytes, secure: Secure | None, head: bytes = b"") -> None:
        """Join a visitor with `fd`, which gets `head` and then `first`; `rest` has come from it already."""
        pump, row, modes = self.pump, visit.row, self.modes
        up = down = None
        try:
            if modes is not None and row is not None and row.mode != "raw" and visit.speaks_http:
                filters = modes.filters(visit, row, first, rest)
                if filters is not None:
                    first, rest, up, down = filters.first, filters.rest, filters.up, filters.down
            visit.head = len(head)
            visit.link = pump.join(
                visit.fd,
                fd,
                visit,
                up=head + first if head else first,
                down=rest,
                first_tls=visit.leg,
                second_tls=secure,
                up_filter=up,
                down_filter=down,
                meter=None if row is None else self.allowances.meter(row, pump.now),
            )
        except Exception:
            pump.close_fd(fd)
            self.abandon(visit)
            raise
        session, visit.session = visit.session, None
        if session is not None:
            session.reached()
        visit.call_ms = int((pump.now - visit.opened) * 1000) - (visit.sniff_ms or 0)
        tally = visit.tally
        if tally is not None:
            tally.calling -= 1
            tally.open += 1
        if visit.seat is not None:
            self._seats.joined(visit.seat)
        totals = self.totals
        totals.joined += 1
        totals.sniff_ms += visit.sniff_ms or 0
        totals.call_ms += visit.call_ms

    def part(self, visit: Visit, session: Visitor) -> None:
        """Take a visitor back from an agent that will not carry it after all, and ask the next one."""
        link, seat, tally = visit.link, visit.seat, visit.tally
        if link is None:
            return
        _, fd = self.pump.part(link)
        self.pump.close_fd(fd, abort=True)  # the agent keeps it open for as long as we might want the visitor back
        visit.link, visit.head, visit.pooled, visit.session = None, 0, False, session
        if tally is not None:
            tally.open -= 1
            tally.calling += 1
        visit.seat = None
        if seat is not None:
            self._seats.left(seat)
        self.pump.watch(visit.fd, visit)
        session.returned(self.pump.now)
        self.perform(visit, session)

    def close(self, visit: Visit, reason: Reason) -> None:
        """End a visitor that was never joined, without an answer but the one that `unknown` says."""
        self._close(visit, reason, b"")

    def _close(self, visit: Visit, reason: str, farewell: bytes) -> None:
        """End a visitor that was never joined, once: whatever went wrong, no number is closed twice."""
        why = Reason(reason)
        pages = self._answers or (visit.row is not None and visit.row.mode == "proxy")
        if not farewell and pages and visit.speaks_http:
            farewell = UNSERVED.get(why, b"")
        visit.see_off(farewell)
        if visit.attempt is not None:
            visit.attempt.cancel()
            visit.attempt = None
        self.reach.uncall(visit)
        tally, visit.tally = visit.tally, None
        if tally is not None:
            tally.calling -= 1
        self.finish(visit, why)

    def abandon(self, visit: Visit) -> None:
        """End a visitor in whose handling something of ours went wrong, wherever it stands."""
        if visit.link is not None:
            visit.link.close("killed")
        elif not visit.over:
            self._close(visit, Reason.INTERNAL, b"")

    def finish(self, visit: Visit, reason: Reason) -> None:
        """Count and log the end of a visitor; its descriptor is closed already."""
        try:
            self.accounts.close(visit, reason, self.pump.now)
        finally:
            self._forget(visit)

    def _forget(self, visit: Visit) -> None:
        if visit.over:
            return
        visit.over = True
        if visit.pooled and self.reach.ahead is not None:
            self.reach.ahead.over(visit)
        visit.session = visit.link = visit.attempt = visit.leg = None
        visit.first = b""
        self.visits.discard(visit)
        self.open.give(visit.source)
        if visit in self.waiting:
            self._named_late(visit)
        if self._drained and not self.visits:
            drained, self._drained = self._drained, []
            for waiter in drained:
                waiter.callback(None)

    # Time.

    def tick(self) -> None:
        """Look at deadlines and write the access log."""
        now = self.pump.look_at_clock()
        self.balancers.tick(now)
        for visit in self.reach.dials.expired(now):
            self.reach.late(visit)
        for lane in (self._sniff_lane, self.reach.lane):
            for visit in lane.expired(now):
                try:
                    self._wake(visit, now)
                except Exception:
                    # An exception that left here would end all looks at deadlines, for everybody.
                    self._fault.failure("a visitor's deadline failed", event="pump.failed")
                    self.abandon(visit)
        if self.reach.ahead is not None:
            self.reach.ahead.tick(now)
        limits = self.config.limits
        if len(self.waiting) * 2 > limits.sniffing:
            self._drop_silent(now - limits.first_byte)
        self.accounts.tick()

    def _wake(self, visit: Visit, now: float) -> None:
        if visit.session is not None:
            self.reach.wake(visit, visit.session)
        elif visit in self.waiting and visit.fd < 0:
            self.refuse(visit, Reason.SNIFF_TIME)  # its handshake has not ended

    def _drop_silent(self, before: float) -> None:
        """Under pressure, those who have said nothing at all for `first_byte` seconds make room."""
        old = takewhile(lambda visit: visit.opened <= before, self.waiting)
        for visit in [visit for visit in old if visit.session is not None and visit.session.silent]:
            self.refuse(visit, Reason.FIRST_BYTE)

    # Operators.

    def kill(self, conns: Collection[int] | None, host: str | None) -> int:
        """Close connections by number or by registered host; gives how many."""
        chosen = [
            visit
            for visit in self.visits
            if (conns is not None and visit.conn in conns)
            or (host is not None and visit.row is not None and visit.row.host == host)
        ]
        for visit in chosen:
            self._kill(visit)
        return len(chosen)

    def _kill(self, visit: Visit) -> None:
        if visit.link is not None:
            visit.link.close("killed")
        else:
            self.refuse(visit, Reason.KILLED)

    def idle(self) -> Deferred[None]:
        """Fire when there is no visitor left."""
        waiter: Deferred[None] = Deferred()
        if self.visits:
            self._drained.append(waiter)
        else:
            waiter.callback(None)
        return waiter


_GONE = 0x8 | 0x10  # EPOLLERR, EPOLLHUP
