"""The visitors of a server: accepted, sniffed, routed, joined, counted.

Everything here is on the path of each connection. A visitor is never a Twisted transport: its descriptor is watched by
the pump, its conversation is a `Visitor` session, and a `Visit` carries out what the session asks for::

    accepted ──read──▶ Visitor ──Found──▶ lookup ──static target──▶ dial ───────────▶ join
                                             └─────subscribers────▶ notify an agent,
                                                                    wait for the secret ▶ join
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from itertools import count
from sys import intern
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.config.proxy import ProxyConfig
from layer8.core.lanes import Lane
from layer8.core.session import Close, Send, Tell
from layer8.net.dial import Dialer, Where
from layer8.net.factory import Places
from layer8.net.flow import Secure
from layer8.net.linger import answer_and_close
from layer8.net.pump import Pump
from layer8.proxy.accounts import Accounts
from layer8.proxy.bans import Bans
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.orders import Policy
from layer8.proxy.registration import gate
from layer8.proxy.registry import Registry
from layer8.proxy.sniff import UNKNOWN, Found, Sniffer, answer
from layer8.proxy.sniff_http import HttpSniffer
from layer8.proxy.sniff_tls import TlsSniffer
from layer8.proxy.visit import Visit
from layer8.proxy.visitor import Ask, State, Times, Visitor, reason_for
from layer8.proxy.wire import SECRET_SIZE, Reason

FIRST_READ = 16384
"""Bytes of a visitor's first read: a whole request head or ClientHello, nearly always."""
TICK = 0.25
"""Seconds between two looks at deadlines, and between two writes of the access log."""
EVERYBODY = 1 << 31
"""No limit on all visitors together but the descriptors of the process."""

# A visitor who could not be carried to a host that is registered: told so only with `unknown = "answer"`.
_UNSERVED = {
    Reason.NO_SUBSCRIBER: answer(503),
    Reason.PENDING_LIMIT: answer(503),
    Reason.HOST_LIMIT: answer(503),
    Reason.DRAINING: answer(503),
    Reason.REJECTED: answer(502),
    Reason.CALL_TIME: answer(502),
    Reason.TARGET_REFUSED: answer(502),
}


class Caller(Protocol):
    """Tells an agent that a visitor waits."""

    def call(self, visit: Visit, seat: Seat, secret: bytes) -> bool:
        """Notify the agent of `seat`; False when it cannot be told now."""


class Own(Protocol):
    """Takes connections to the server's own name: its agents' control and data connections on the public port."""

    def adopt(self, fd: int, peer: Any, first: bytes, alpn: tuple[bytes, ...]) -> None:
        """Take over a descriptor whose ClientHello, `first`, has been read."""


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
    ) -> None:
        """Take what visitors need on their way, and where they are counted when it ends."""
        self.reactor = reactor
        self.pump = pump
        self.registry = registry
        self.accounts = accounts
        self.totals = accounts.totals
        self.tallies = accounts.tallies
        self.pending: dict[bytes, Visit] = {}
        self.waiting: dict[Visit, None] = {}
        self.visits: set[Visit] = set()
        self.caller: Caller | None = None
        self.own: Own | None = None
        self.own_names: frozenset[str] = frozenset()
        self.bans = bans
        self.draining = False
        self._dialer = dialer
        self._seats = seats
        self._numbers = count(1)
        self._targets: dict[str, Where] = {}
        self._drained: list[Deferred[None]] = []
        self._ticker = LoopingCall(self.tick)
        self._ticker.clock = reactor
        self.open = Places(EVERYBODY, config.limits.per_source_open)
        self.sniffing = Places(config.limits.sniffing, config.limits.per_source_sniffing)
        self._sniff_lane: Lane[Visit] = Lane(config.limits.sniff_time)
        self._call_lane: Lane[Visit] = Lane(config.limits.call_step)
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
        self._call_lane.seconds = limits.call_step

    def start(self) -> None:
        """Begin to look at deadlines."""
        self._ticker.start(TICK, now=False)

    def stop(self) -> None:
        """Close every visitor that is left."""
        if self._ticker.running:
            self._ticker.stop()
        self.close_all()
        self.accounts.tick()

    def close_all(self) -> None:
        """Close every visitor there is, because the time for draining is over."""
        for visit in list(self.visits):
            if visit.link is not None:
                visit.link.close("shutdown")
            else:
                self._refuse(visit, Reason.DRAINING)

    # From accept to a name.

    def accepted(self, fd: int, address: str, port: int, scheme: str) -> None:
        """Take a new visitor on the public port `port`; `scheme` says which of the two kinds of port it is."""
        totals = self.totals
        totals.accepted += 1
        if self.draining:
            self._turn_away(fd, Reason.DRAINING)
            return
        if address in self.bans:
            self._turn_away(fd, Reason.BANNED)
            return
        if self._gate is not None and not self._gate.admits(address):
            self._turn_away(fd, Reason.DENIED)
            return
        source = self.open.take(address)
        if source is None:
            self._turn_away(fd, Reason.SOURCE_LIMIT)
            return
        visit = Visit(self, fd, next(self._numbers), intern(address), source, port, scheme)
        sniffer: Sniffer = HttpSniffer() if scheme == "http" else TlsSniffer(strip_dot=self._strip_dot)
        self.visits.add(visit)
        try:
            self._enter(visit, sniffer)
        except Exception:
            self.abandon(visit)  # nobody else knows of it yet
            raise

    def _enter(self, visit: Visit, sniffer: Sniffer) -> None:
        """Read what is there already, which nearly always is all that is needed."""
        try:
            data = os.read(visit.fd, FIRST_READ)
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
            visit.session = Visitor(sniffer, visit.scheme, self._times, visit.opened)
            self._wait_for_name(visit)

    def _wait_for_name(self, visit: Visit) -> None:
        limits = self.config.limits
        if visit.source and self.sniffing.of(visit.address) >= limits.per_source_sniffing:
            self._refuse(visit, Reason.SOURCE_LIMIT)
            return
        while len(self.waiting) >= limits.sniffing:
            oldest = next(iter(self.waiting))
            self._named_late(oldest)
            self._refuse(oldest, Reason.CROWDED_OUT)
        self.waiting[visit] = None
        self.sniffing.take(visit.address)
        self._sniff_lane.add(visit, visit.opened)
        self.pump.watch(visit.fd, visit)

    def readable(self, visit: Visit, events: int) -> None:
        """Go on sniffing, or notice a visitor who has gone while its other side is reached."""
        session = visit.session
        while session is not None and session.state is State.SNIFFING:
            try:
                data = os.read(visit.fd, FIRST_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                session.received(data, self.pump.now)
            else:
                session.lost(self.pump.now)
            self._perform(visit, session)
        # A half-closed visitor may still want its answer; one that was reset or has closed both ways does not.
        if events & _GONE and visit.link is None and not visit.over:
            self._refuse(visit, Reason.VISITOR_LEFT)

    def _refuse(self, visit: Visit, reason: Reason, answer: bytes = b"") -> None:
        """Send a visitor away that is not joined; one that has left meanwhile is left alone."""
        session = visit.session
        if visit.over:
            return
        if session is None:
            self._close(visit, reason, answer)
        else:
            session.refuse(reason, answer)
            self._perform(visit, session)

    def _turn_away(self, fd: int, reason: Reason) -> None:
        self.totals.ended[reason] += 1
        os.close(fd)

    # What sessions ask for.

    def _perform(self, visit: Visit, session: Visitor) -> None:
        farewell = b""
        while effects := session.effects():
            for effect in effects:
                if isinstance(effect, Tell):
                    if isinstance(effect.what, Found):
                        self._named(visit, effect.what, session.sniffer)
                    elif isinstance(effect.what, Ask):
                        self._ask(visit, session, effect.what)
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
        host = found.host or self.config.default_host
        if not host:
            self._refuse(visit, Reason.NO_NAME)
            return
        row = self.registry.lookup(host)
        if row is None:
            if host in self.own_names and self.own is not None and scheme == "https":
                self._hand_over(visit, sniffer.data, found)
                return
            reason = Reason.SUSPENDED if self.registry.suspended(host) else Reason.UNKNOWN_HOST
            self._refuse(visit, reason, UNKNOWN[scheme] if self._answers else b"")
            return
        visit.row = row
        visit.host = host if row.host != host else row.host
        if row.ports and visit.port not in row.ports:
            self._refuse(visit, Reason.WRONG_PORT, UNKNOWN[scheme] if self._answers else b"")
            return
        if row.gate is not None and not row.gate.admits(visit.address):
            self._refuse(visit, Reason.DENIED)
            return
        tally = self.tallies.get(row.host) or self.accounts.tally(row.host)
        limits = self.config.limits
        most = row.policy.max_conns or limits.host_conns
        if most and tally.open + tally.calling >= most:
            self._refuse(visit, Reason.HOST_LIMIT)
        elif row.target is not None:
            visit.tally = tally
            tally.calling += 1
            self._serve(visit, row.target, sniffer.data)
        elif tally.calling >= limits.pending_per_host or len(self.pending) >= limits.pending:
            self._refuse(visit, Reason.PENDING_LIMIT)
        else:
            visit.tally = tally
            tally.calling += 1
            session = visit.session
            if session is None:
                session = visit.session = Visitor(sniffer, scheme, self._times, visit.opened, State.ROUTED)
            name = row.host
            pump.watch(visit.fd, visit)
            session.call(lambda tried: self._seats.best(name, tried), pump.now)
            self._perform(visit, session)

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

    def _serve(self, visit: Visit, target: str, first: bytes) -> None:
        """Dial the target of a static host."""
        visit.session = None
        visit.first = first
        where = self._targets.get(target)
        if where is None:
            where = self._targets[target] = Where.of(target)
        attempt = self._dialer.dial(where, visit.dialled)
        if attempt is not None:
            visit.attempt = attempt
            self.pump.watch(visit.fd, visit)

    def dialled(self, visit: Visit, fd: int, error: Exception | None) -> None:
        """Take the end of dialling a static host's target."""
        visit.attempt = None
        if visit.over:
            if fd >= 0:
                self.pump.close_fd(fd)
        elif error is not None:
            self._close(visit, Reason.TARGET_REFUSED, b"")
        else:
            first, visit.first = visit.first, b""
            self._join(visit, first, fd, b"", None)

    def _ask(self, visit: Visit, session: Visitor, ask: Ask) -> None:
        """Call the agent of a subscription, and let no other one answer."""
        self._uncall(visit)
        seat = ask.seat
        visit.seat = seat
        visit.secret = secret = os.urandom(SECRET_SIZE)
        self.pending[secret] = visit
        self._seats.called(seat)
        if self.caller is None or not self.caller.call(visit, seat, secret):
            session.rejected(seat, self.pump.now)
            return
        self._call_lane.add(visit, self.pump.now)

    def _uncall(self, visit: Visit) -> None:
        """Make what an agent was told void."""
        if visit.secret is not None:
            self.pending.pop(visit.secret, None)
            visit.secret = None
        seat, visit.seat = visit.seat, None
        if seat is not None:
            self._seats.uncalled(seat)

    # From outside: agents.

    def answered(self, secret: bytes, fd: int, rest: bytes, secure: Secure | None) -> bool:
        """Take a data connection that showed `secret`; False, and `fd` stays the caller's, if nobody waits for it."""
        visit = self.pending.pop(secret, None)
        if visit is None or visit.session is None:
            return False
        visit.secret = None  # good for one connection
        self._join(visit, visit.session.data, fd, rest, secure)
        return True

    def rejected(self, seat: Seat, conn: int) -> None:
        """Take an agent's no for one visitor; one that it was not called for is ignored and counted."""
        for visit in self.pending.values() if seat.calling else ():
            if visit.conn == conn and visit.seat is seat and visit.session is not None:
                self._next(visit, visit.session, seat)
                return
        self.totals.rejects_ignored += 1

    def seat_gone(self, seat: Seat, kill: bool) -> None:
        """Fail over what waits for an agent that is gone; close what it carries only with `kill`."""
        called = [visit for visit in self.pending.values() if visit.seat is seat] if seat.calling else ()
        for visit in called:
            if visit.session is not None:
                self._next(visit, visit.session, seat)
        if kill:
            for visit in [visit for visit in self.visits if visit.seat is seat and visit.link is not None]:
                self._kill(visit)

    def _next(self, visit: Visit, session: Visitor, seat: Seat) -> None:
        session.rejected(seat, self.pump.now)
        self._perform(visit, session)

    # Joined, and the end.

    def _join(self, visit: Visit, first: bytes, fd: int, rest: bytes, secure: Secure | None) -> None:
        pump = self.pump
        try:
            visit.link = pump.join(visit.fd, fd, visit, up=first, down=rest, second_tls=secure)
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

    def _close(self, visit: Visit, reason: str, farewell: bytes) -> None:
        """End a visitor that was never joined, once: whatever went wrong, no number is closed twice."""
        why = Reason(reason)
        if not farewell and self._answers and visit.scheme == "http":
            farewell = _UNSERVED.get(why, b"")
        fd, visit.fd = visit.fd, -1
        if fd >= 0:
            if farewell:
                # It keeps its place until it is closed, or a scanner could have any number of these.
                self.open.take_again(visit.source)
                answer_and_close(self.reactor, self.pump, fd, farewell, partial(self.open.give, visit.source))
            else:
                self.pump.close_fd(fd)
        if visit.attempt is not None:
            visit.attempt.cancel()
            visit.attempt = None
        self._uncall(visit)
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
        visit.session = visit.link = visit.attempt = None
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
        for lane in (self._sniff_lane, self._call_lane):
            for visit in lane.expired(now):
                try:
                    self._wake(visit, now)
                except Exception:
                    # An exception that left here would end all looks at deadlines, for everybody.
                    self._fault.failure("a visitor's deadline failed", event="pump.failed")
                    self.abandon(visit)
        limits = self.config.limits
        if len(self.waiting) * 2 > limits.sniffing:
            self._drop_silent(now - limits.first_byte)
        self.accounts.tick()

    def _wake(self, visit: Visit, now: float) -> None:
        if visit.session is not None:
            visit.session.wake(now)
            self._perform(visit, visit.session)

    def _drop_silent(self, before: float) -> None:
        """Under pressure, those who have said nothing at all for `first_byte` seconds make room."""
        silent = []
        for visit in self.waiting:
            if visit.opened > before:
                break
            if visit.session is not None and visit.session.silent:
                silent.append(visit)
        for visit in silent:
            self._refuse(visit, Reason.FIRST_BYTE)

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
            self._refuse(visit, Reason.KILLED)

    def idle(self) -> Deferred[None]:
        """Fire when there is no visitor left."""
        waiter: Deferred[None] = Deferred()
        if self.visits:
            self._drained.append(waiter)
        else:
            waiter.callback(None)
        return waiter


_GONE = 0x8 | 0x10  # EPOLLERR, EPOLLHUP
