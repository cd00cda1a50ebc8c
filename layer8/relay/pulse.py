"""Whether a link's peer is still there, and what an idle link says: PING, probes, and padding after silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from attrs import define

from layer8.relay.limits import PING_DEAD, PING_EVERY, PROBE_TIME
from layer8.relay.slots import Out
from layer8.relay.wire import Cell, cell

if TYPE_CHECKING:
    from layer8.relay.link import Ground

TOKEN: Final = 8  # bytes of a PING


@define(eq=False)
class _Asked:
    """A PING that is out; `done` is told about a probe, until `due`."""

    sent: float
    due: float
    done: Callable[[bool, float], None] | None


class Pulse:
    """One link's; `heard` is when the peer last said anything, `rtt` seconds of the last PING that was answered."""

    def __init__(self, ground: Ground, out: Out, now: float) -> None:
        """Begin to listen; nothing is said before `begin`."""
        self._ground = ground
        self._out = out
        self._asked: dict[bytes, _Asked] = {}
        self._ping_at = self._pad_from = now
        self._pad_wait = 0.0
        self.heard = now
        self.rtt = 0.0

    def begin(self, now: float) -> None:
        """Be due at once for a PING: the link is open."""
        self._ping_at = now
        self._plan_pad(now)

    def tend(self, now: float) -> bool:
        """Do what is due; False if the peer is dead."""
        if now - self.heard >= PING_DEAD:
            return False
        for token, asked in list(self._asked.items()):
            if now >= asked.due:
                del self._asked[token]
                if asked.done is not None:
                    asked.done(False, now)
        if now >= self._ping_at:
            self._ping_at = now + PING_EVERY
            self._ping(now, PING_DEAD, None)
        self._pad(now)
        return True

    def deadline(self) -> float:
        """Give the second at which `tend` is due."""
        soon = min(self._pad_from + self._pad_wait, self._ping_at, self.heard + PING_DEAD)
        return min(soon, *(asked.due for asked in self._asked.values())) if self._asked else soon

    def probe(self, now: float, done: Callable[[bool, float], None]) -> None:
        """Ask whether the peer is still there; `done(alive, now)` comes within PROBE_TIME."""
        self._ping(now, PROBE_TIME, done)

    def pong(self, token: bytes, now: float) -> bool:
        """Take an answer; False if nobody has asked."""
        asked = self._asked.pop(token, None)
        if asked is None:
            return False
        self.rtt = now - asked.sent
        if asked.done is not None:
            asked.done(True, now)
        return True

    def end(self, now: float) -> None:
        """Tell those who wait that nobody answers any more."""
        waiting, self._asked = self._asked, {}
        for asked in waiting.values():
            if asked.done is not None:
                asked.done(False, now)

    def _ping(self, now: float, seconds: float, done: Callable[[bool, float], None] | None) -> None:
        token = self._ground.random(TOKEN)
        self._asked[token] = _Asked(now, now + seconds, done)
        self._out.say(cell(0, Cell.PING, token + int(self._ground.wall()).to_bytes(8, "big")))

    def _plan_pad(self, now: float) -> None:
        self._pad_from = now
        self._pad_wait = max(self._ground.pad(), self._ground.pad())

    def _pad(self, now: float) -> None:
        """Send PAD after silence; any traffic puts it off."""
        last = max(self.heard, self._out.wrote)
        if last > self._pad_from:
            self._plan_pad(last)
        if now >= self._pad_from + self._pad_wait:
            self._out.pad(cell(0, Cell.PAD))
            self._plan_pad(now)
