"""Which sealed requests have come before: a mark of each, by the minute that it says it was made in.

A request counts if its date is at most REPLAY_WINDOW off, either way, and its mark is new. A mark is kept as long as a
request of its minute would count, so a repeat never does: neither later, nor after so many requests that marks had to
be let go, for then their minute does not count any more (the window shrinks to what fits), nor after a restart, for
the marks are on disk or `since` says from when on they are known.

`Window` decides about minutes and is what a table on disk is used with; `ReplaySet` is the table in memory.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum, auto
from hashlib import sha256
from typing import Final

from attrs import define, field

from layer8.tunnel.limits import REPLAY_ENTRIES, REPLAY_WINDOW

MARK: Final = 16  # bytes
MINUTE: Final = 60  # seconds
GENERATIONS: Final = 2 * REPLAY_WINDOW // MINUTE + 1  # minutes that count at one time: 11


class Verdict(Enum):
    """What a replay set says of a request."""

    NEW = auto()
    REPEAT = auto()  # it has come before
    DATE = auto()  # its date does not count (any more)


def mark(enc: bytes) -> bytes:
    """Give what is remembered of a request: the start of the SHA-256 of its `enc`."""
    return sha256(enc).digest()[:MARK]


def minute(date: float) -> int:
    """Give the minute of a date, in seconds since 1970 rounded down: the one that pages write."""
    return int(date // MINUTE) * MINUTE


@define(eq=False)
class Window:
    """Which minutes count, and how many marks each has; `most` is how many there may be in all.

    `since` is the first minute from whose requests on nothing has been forgotten.
    """

    most: int = REPLAY_ENTRIES
    since: int = 0
    _counts: Counter[int] = field(factory=Counter, init=False)

    def judge(self, date: float, now: float) -> bool:
        """Say whether a request of that date may count now; both in seconds since 1970."""
        of, here = minute(date), minute(now)
        return max(self.since, here - REPLAY_WINDOW) <= of <= here + REPLAY_WINDOW

    def added(self, of: int) -> list[int]:
        """Count a mark of a minute; give the minutes whose marks are to be forgotten, since there are too many."""
        self._counts[of] += 1
        gone = []
        while self._counts.total() > self.most:
            oldest = min(self._counts)
            del self._counts[oldest]
            self.since = max(self.since, oldest + MINUTE)
            gone.append(oldest)
        return gone

    def outlived(self, now: float) -> list[int]:
        """Give the minutes that are over, whose marks are to be forgotten; each is given once."""
        gone = sorted(of for of in self._counts if of < minute(now) - REPLAY_WINDOW)
        for of in gone:
            del self._counts[of]
            self.since = max(self.since, of + MINUTE)  # should the clock be put back
        return gone

    def __len__(self) -> int:
        """Count the marks."""
        return self._counts.total()


class ReplaySet:
    """The marks, in memory.

    Requests without a date are remembered by their key's epoch, until the key is `forget`-ed.
    """

    __slots__ = ("_by_key", "_marks", "window")

    def __init__(self, window: Window | None = None) -> None:
        """Begin with nothing."""
        self.window = Window() if window is None else window
        self._marks: dict[int, set[bytes]] = {}
        self._by_key: dict[int, set[bytes]] = {}

    def add(self, one: bytes, date: float, now: float) -> Verdict:
        """Remember a mark, and say whether its request counts; both times in seconds since 1970."""
        for gone in self.window.outlived(now):
            self._marks.pop(gone, None)
        if not self.window.judge(date, now):
            return Verdict.DATE
        of = minute(date)
        marks = self._marks.setdefault(of, set())
        if one in marks:
            return Verdict.REPEAT
        marks.add(one)
        for gone in self.window.added(of):
            self._marks.pop(gone, None)
        return Verdict.NEW if self.window.judge(date, now) else Verdict.DATE

    def add_dateless(self, one: bytes, epoch: int) -> Verdict:
        """Remember the mark of a request without a date; with too many of those, only dated ones count."""
        marks = self._by_key.setdefault(epoch, set())
        if one in marks:
            return Verdict.REPEAT
        if sum(map(len, self._by_key.values())) >= self.window.most:
            return Verdict.DATE
        marks.add(one)
        return Verdict.NEW

    def forget(self, epoch: int) -> None:
        """Let go of what a dead key's requests have left."""
        self._by_key.pop(epoch, None)

    def __len__(self) -> int:
        """Count the marks."""
        return sum(map(len, self._marks.values())) + sum(map(len, self._by_key.values()))
