"""Mode `proxy` on a visitor's link: the filters around a `Forward`, and the checks of credentials.

Whatever ends a link here waits until everything for the visitor has been written: the host's flow is finished, and the
pump asks its filter for last words when nothing is left before them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.guesses import Guesses
from layer8.net.flow import Link
from layer8.proxy.forward import Forward, Leave, Terms
from layer8.proxy.parting import Keeper, begin_anew, break_off, see_off
from layer8.proxy.registration import Registration
from layer8.proxy.users import Known, credentials, good
from layer8.proxy.visit import Visit
from layer8.proxy.wire import Reason

CHECKS: Final = 2
"""Passwords checked at the same time: each takes 16 MiB and a core."""
CHECKS_WAITING: Final = 64
"""Requests that wait for such a check; more get 503."""

_REASONS = {401: Reason.DENIED, 502: Reason.AGENT_RESET, 503: Reason.PENDING_LIMIT}


class Checks:
    """Checks credentials off the reactor, and remembers good ones; a source that guesses has to wait."""

    _log = Logger(namespace="layer8.proxy")

    def __init__(self, reactor: Any, key: bytes) -> None:
        """`key` are random bytes."""
        self.known = Known(key)
        self._reactor = reactor
        self._guesses = Guesses()
        self._turns = DeferredSemaphore(CHECKS)

    def ask(
        self, users: Collection[str], authorization: bytes, address: str, now: float, done: Callable[[int | None], None]
    ) -> None:
        """Tell `done` the status of a refusal, or None; maybe before this returns. `now` is monotonic seconds."""
        found = credentials(authorization)
        if found is None or self._guesses.wait(address, now):
            done(401)
        elif len(self._turns.waiting) >= CHECKS_WAITING:
            done(503)
        else:
            asked = self._turns.run(self._check, users, *found)

            def told(yes: bool) -> None:
                if yes:
                    self.known.add(users, authorization)
                else:
                    self._guesses.wrong(address, now)
                done(None if yes else 401)

            def failed(failure: Failure) -> None:
                self._log.failure("a check failed", failure, event="task.failed")
                done(503)  # or the visitor would wait for as long as it may be idle

            asked.addCallbacks(told, failed)
            asked.addErrback(lambda failure: self._log.failure("a check failed", failure, event="task.failed"))

    def _check(self, users: Collection[str], name: str, password: bytes) -> Deferred[bool]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), good, users, name, password)


class Forwarding:
    """One visitor's link in mode `proxy`."""

    __slots__ = ("_asked", "_checks", "_keeper", "_leaving", "down", "forward", "up", "users", "visit")

    def __init__(self, keeper: Keeper, checks: Checks, visit: Visit, row: Registration) -> None:
        """Begin before the first byte."""
        remote = visit.remote
        terms = Terms(
            visit.host or row.host,
            visit.scheme.encode("ascii"),
            b"" if remote is None else remote.host.encode("ascii"),
            bool(row.policy.users),
        )
        self.visit = visit
        self.users = row.policy.users
        self.forward = Forward(terms)
        self.up = FromVisitor(self)
        self.down = FromHost(self)
        self._keeper = keeper
        self._checks = checks
        self._leaving = False
        self._asked: Link | None = None  # where the answer to a check belongs: it may have been parted meanwhile

    def _look(self) -> None:
        """Go by who may come in now: a visitor may keep its connection for longer than its password is good."""
        host = self.forward.terms.host
        row, old = self._keeper.registry.lookup(host), self.visit.row
        if row is None or row is old or old is None or row.host != old.host or row.policy.users == self.users:
            return
        self.users = row.policy.users
        self.forward.terms = evolve(self.forward.terms, locked=bool(self.users))

    def said(self, data: bytes) -> bytes:
        """Take what the visitor says; gives what goes to the host."""
        self._look()
        return self._known(self.forward.said(data))

    def _known(self, passed: bytes) -> bytes:
        """Add to what goes on the request that asks next, if its credentials are known: they cost it no time."""
        asks = self.forward.asks
        if asks is not None and self._checks.known.has(self.users, asks):
            passed += self.forward.admitted()
        return passed

    def settle(self) -> None:
        """Let the link follow what the forward has come to."""
        forward, link, pump = self.forward, self.visit.link, self._keeper.pump
        if link is None or link.up.link is None:
            return
        if link.down.care is not None and link.down.care.lost is None:
            link.down.care.lost = self.reset
        if forward.leave is not None:
            self._leave()
        elif forward.asks is not None:
            pump.pause(link.up)
            if self._asked is None:
                self._asked = link
                self._checks.ask(self.users, forward.asks, self.visit.address, pump.now, self._checked)
        elif forward.held:
            pump.pause(link.up)
        elif forward.waiting:
            self._look()
            pump.go_on(link.up, self._known(forward.take()))
            self._hold()

    def _hold(self) -> None:
        """Settle again, if what has just gone on leads to the next wait."""
        if self.forward.held:
            self.settle()

    def _checked(self, refusal: int | None) -> None:
        link, self._asked = self._asked, None
        passed = self.forward.admitted(refusal)
        if link is not None and link is self.visit.link and link.up.link is not None:
            self._keeper.pump.go_on(link.up, passed)
            self.settle()

    def _leave(self) -> None:
        link, pump = self.visit.link, self._keeper.pump
        if link is None or self._leaving:
            return
        self._leaving = True
        if self.forward.leave is Leave.BREAK:
            break_off(link)
        else:
            pump.pause(link.up)
            pump.finish(link.down)

    def reset(self) -> None:
        """Take that the host has gone: its visitor need not."""
        self.ended(reset=True)

    def ended(self, *, reset: bool = False) -> None:
        """Part: the host says no more, or is to say no more, and the visitor has everything."""
        forward, visit, keeper = self.forward, self.visit, self._keeper
        forward.ended(reset=reset)
        match forward.leave:
            case Leave.ANEW:
                begin_anew(keeper, visit, forward.rest())
            case Leave.REPLY:
                see_off(keeper, visit, _REASONS.get(forward.status, Reason.BAD_HTTP), forward.reply)
            case Leave.CLOSE:
                see_off(keeper, visit, Reason.DONE, b"")
            case Leave.BREAK if visit.link is not None:
                break_off(visit.link)


class FromVisitor:
    """The filter of what a visitor says."""

    __slots__ = ("_forwarding",)

    def __init__(self, forwarding: Forwarding) -> None:
        """Serve one link."""
        self._forwarding = forwarding

    @property
    def free(self) -> int:
        """What belongs to a body."""
        return self._forwarding.forward.up_free

    def feed(self, data: bytes) -> bytes:
        """Give what goes to the host."""
        passed = self._forwarding.said(data)
        self._forwarding.settle()
        return passed

    def skipped(self, count: int) -> None:
        """Take that some of a body has passed."""
        self._forwarding.forward.said_unseen(count)
        self._forwarding.settle()

    def ended(self) -> bytes:
        """The visitor says no more."""
        return b""


class FromHost:
    """The filter of what a host says."""

    __slots__ = ("_forwarding",)

    def __init__(self, forwarding: Forwarding) -> None:
        """Serve one link."""
        self._forwarding = forwarding

    @property
    def free(self) -> int:
        """What belongs to a body."""
        return self._forwarding.forward.down_free

    def feed(self, data: bytes) -> bytes:
        """Give what goes to the visitor."""
        passed = self._forwarding.forward.heard(data)
        self._forwarding.settle()
        return passed

    def skipped(self, count: int) -> None:
        """Take that some of a body has passed."""
        self._forwarding.forward.heard_unseen(count)
        self._forwarding.settle()

    def ended(self) -> bytes:
        """Part, now that nothing is left before it."""
        self._forwarding.ended()
        return b""
