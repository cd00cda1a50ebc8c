"""The modes of HTTP: what stands between a visitor and its host once they are joined.

`raw` is nothing at all. `guard` (`layer8.proxy.guard`) reads requests and changes none, `proxy`
(`layer8.proxy.forward`) reads everything but bodies. Each gives the pump a filter for either direction of a visitor's
link; what `guard` decides about the link itself is carried out here::

    a request that may not go on ──▶ the host hears the end, answers what it still owes ──▶ last words, closed
                                                                    or after GIVE_UP s ──▶ closed
    an upgrade on a used connection ──▶ the same, and then the visitor begins anew, with that request as its first
    a host that says what nobody asked for ──▶ closed, without that
"""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IDelayedCall

from layer8.proxy.forwarding import Checks, Forwarding
from layer8.proxy.guard import Answer, Guard, Verdict, Why, doubt, plain
from layer8.proxy.hooks import Filters
from layer8.proxy.parting import Keeper, begin_anew, break_off, see_off
from layer8.proxy.registration import Registration
from layer8.proxy.sniff import answer
from layer8.proxy.visit import Visit
from layer8.proxy.wire import Reason

GIVE_UP: Final = 5.0
"""Seconds that a host has to end its side when its visitor may say no more."""


class Modes:
    """Gives visitors the filters of their host's mode."""

    def __init__(self, keeper: Keeper, key: bytes) -> None:
        """Serve `keeper`'s visitors; `key` are random bytes."""
        self.keeper = keeper
        self.checks = Checks(keeper.reactor, key)
        self.stopping: set[Upward] = set()

    def stop(self) -> None:
        """Give up all that hosts are waited for."""
        for up in list(self.stopping):
            up.give_up()

    def doubt(self, visit: Visit, first: bytes) -> int | None:
        """Give the status for a visitor whose first request is refused before anybody is called; 0 is silence."""
        visit.spelled = plain(first)
        return None if visit.spelled else doubt(first)

    def filters(self, visit: Visit, row: Registration, first: bytes, rest: bytes) -> Filters | None:
        """Give the filters for a visitor that is about to be joined, with what they make of what was said already."""
        if row.mode == "proxy":
            forwarding = Forwarding(self.keeper, self.checks, visit, row)
            first = forwarding.said(first)
            if forwarding.forward.leave is not None or forwarding.forward.asks is not None:
                self.keeper.pump.clock.callLater(0, forwarding.settle)  # when there is a link
            back = forwarding.forward.heard(rest) if rest else b""
            return Filters(first, back, forwarding.up, forwarding.down)
        up = Upward(self, visit)
        if visit.spelled:
            up.guard.begin(first, visit.spelled)
        else:
            first = up.guard.feed(first)
        down = Downward(up, Answer() if up.guard.upgrading else None)
        rest = down.feed(rest) if rest else b""
        if up.guard.over is not None:
            self.keeper.pump.clock.callLater(0, up.stop)  # when there is a link to stop
        return Filters(first, rest, up, down)


class Upward:
    """Sees what a guarded visitor says; `stopped` once it may say no more."""

    __slots__ = ("_keeper", "_modes", "_timer", "guard", "stopped", "visit")

    def __init__(self, modes: Modes, visit: Visit) -> None:
        """Begin before the first byte."""
        self._modes = modes
        self._keeper = modes.keeper
        self._timer: IDelayedCall | None = None
        self.stopped = False
        self.visit = visit
        self.guard = Guard()

    @property
    def free(self) -> int:
        """What belongs to bodies."""
        return self.guard.free

    def feed(self, data: bytes) -> bytes:
        """Let through what is for the host."""
        guard = self.guard
        passed = guard.feed(data)
        if guard.over is not None:
            self.stop()
        elif guard.asks:
            self._pause()
        return passed

    def skipped(self, count: int) -> None:
        """Take that some of a body has passed."""
        self.guard.skipped(count)
        if self.guard.asks:
            self._pause()

    def ended(self) -> bytes:
        """Nothing more is to be said to the host."""
        return b""

    def _pause(self) -> None:
        if self.visit.link is not None:
            self._keeper.pump.pause(self.visit.link.up)

    def decided(self, verdict: Verdict) -> None:
        """Take what the answer to an upgrade means."""
        link, guard = self.visit.link, self.guard
        if verdict is Verdict.BROKEN:
            if link is not None:
                break_off(link)
            return
        waiting = guard.opened() if verdict is Verdict.OPENED else guard.declined()
        if link is not None:
            self._keeper.pump.go_on(link.up, waiting)
        if guard.over is not None:
            self.stop()

    def stop(self) -> None:
        """Let the host finish, and then do what `guard.over` says."""
        visit, pump, over = self.visit, self._keeper.pump, self.guard.over
        link = visit.link
        if self.stopped or link is None or over is None or link.up.link is None:
            return
        self.stopped = True
        if over.why is not Why.ANEW:
            visit.verdict = Reason.MISDIRECTED if over.why is Why.MISDIRECTED else Reason.BAD_HTTP
        if not self.guard.owed.known:
            # Where its answers end is the host's secret, and what it says now could pass for the answer to what it
            # was not asked.
            break_off(link)
            return
        if link.down.care is not None and link.down.care.lost is None:
            link.down.care.lost = self.reset  # a host may end like that
        if self.guard.owed:
            pump.finish(link.up)
        else:
            self.cut()
        self._timer = pump.clock.callLater(GIVE_UP, self.give_up)
        self._modes.stopping.add(self)

    def heard(self) -> None:
        """Take that the host has said what nobody asked for, or perhaps the last answer that it owed."""
        owed = self.guard.owed
        if owed.extra or (owed.known and not owed):
            self.cut()

    def cut(self) -> None:
        """Let the visitor have what it was answered, and the host say nothing more."""
        link = self.visit.link
        if link is not None and link.up.link is not None:
            self._keeper.pump.pause(link.up)
            self._keeper.pump.finish(link.down)

    def give_up(self) -> None:
        """Wait no longer for the host."""
        self.settled()
        if self.visit.link is not None:
            self.visit.link.close("half_closed")

    def settled(self) -> None:
        """Forget the time."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self._modes.stopping.discard(self)

    def reset(self) -> None:
        """Take that the host has gone."""
        self.finished(reset=True)

    def finished(self, *, reset: bool = False) -> None:
        """Take that the host has ended, after everything that it had to say."""
        visit, over, owed = self.visit, self.guard.over, self.guard.owed
        if owed.extra and not self.stopped:
            see_off(self._keeper, visit, Reason.AGENT_RESET, b"")
            return
        if not self.stopped or over is None:
            return
        self.settled()
        if not owed.between:
            if owed.endless and not reset:
                see_off(self._keeper, visit, visit.verdict or Reason.DONE, b"")  # its end was the end of the answer
            elif visit.link is not None:
                break_off(visit.link)  # in the middle of an answer
        elif over.why is Why.ANEW:
            begin_anew(self._keeper, visit, over.rest)
        else:
            see_off(self._keeper, visit, visit.verdict or Reason.DONE, answer(over.status) if over.status else b"")


class Downward:
    """Sees what a guarded visitor is answered: where answers end, and what an upgrade is answered."""

    __slots__ = ("_answer", "_owed", "_up")

    def __init__(self, up: Upward, asked: Answer | None) -> None:
        """`asked` is the answer to wait for, if the first request was for an upgrade."""
        self._up = up
        self._owed = up.guard.owed
        self._answer = asked

    @property
    def free(self) -> int:
        """What belongs to bodies."""
        return self._owed.free if self._answer is None else 0

    def feed(self, data: bytes) -> bytes:
        """Give what the visitor is to have."""
        owed, asked = self._owed, self._answer
        passed = owed.feed(data)
        if asked is not None:
            unasked = len(data) - len(passed)
            passed = asked.feed(data)
            passed = passed[: len(passed) - unasked] if asked.verdict is Verdict.DECLINED else passed
            if asked.verdict is not None:
                self._answer = None
                self._up.decided(asked.verdict)
        elif owed.switched:
            self._up.decided(Verdict.BROKEN)
            return b""
        if owed.extra or self._up.stopped:
            self._up.heard()
        return passed

    def skipped(self, count: int) -> None:
        """Take that some of a body has passed."""
        self._owed.skipped(count)
        if self._owed.extra or self._up.stopped:
            self._up.heard()

    def ended(self) -> bytes:
        """Take the end of what the host says."""
        self._up.finished()
        return b""
