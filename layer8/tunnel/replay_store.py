"""Where the marks of opened requests are kept: in memory, in an SQLite file of their own, or in PostgreSQL.

Whoever inserts a mark first has the request; the others are told that it is a repeat. Calls come from any thread.

On disk each minute has a table of its own, and `since` says from which minute on none is missing. A table that was
dropped is never made again: first `since` rises, then the table goes. So a worker that is slow to hear of it finds no
table, asks, and refuses the date. What a crash may have lost is treated the same way: the latest minute that ever had
a table is kept durably, and `since` rises above it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import Final, Protocol

from layer8.tunnel.limits import REPLAY_ENTRIES, REPLAY_WINDOW
from layer8.tunnel.replay import MINUTE, ReplaySet, Verdict, Window, minute

TOGETHER: Final = 256  # marks that a worker inserts between two looks at how many there are


class ReplayStore(Protocol):
    """The set; every call can fail with `StorageError`, and then the request does not count."""

    window: Window
    """Which minutes count: for a first look at a date, before anything is asked."""

    quick: bool
    """Whether `add` takes so little time that a reactor may call it."""

    def add(self, mark: bytes, date: float, now: float) -> Verdict:
        """Remember the mark of a dated request; both times in seconds since 1970."""

    def add_dateless(self, mark: bytes, epoch: int) -> Verdict:
        """Remember the mark of a request without a date, as long as its key lives."""

    def forget(self, epoch: int) -> None:
        """Let go of what a dead key's requests have left."""

    def tidy(self, now: float) -> None:
        """Let go of minutes that are over; called about once a minute."""

    def close(self) -> None:
        """Let go of everything."""


class MemoryMarks:
    """Marks that end with the process, as its keys do."""

    quick = True

    def __init__(self, window: Window | None = None) -> None:
        """Begin with none."""
        self._set = ReplaySet(window)
        self.window = self._set.window
        self._lock = Lock()

    def add(self, mark: bytes, date: float, now: float) -> Verdict:
        """Remember the mark of a dated request."""
        with self._lock:
            return self._set.add(mark, date, now)

    def add_dateless(self, mark: bytes, epoch: int) -> Verdict:
        """Remember the mark of a request without a date."""
        with self._lock:
            return self._set.add_dateless(mark, epoch)

    def forget(self, epoch: int) -> None:
        """Let go of a dead key's marks."""
        with self._lock:
            self._set.forget(epoch)

    def tidy(self, now: float) -> None:
        """`add` does it."""

    def close(self) -> None:
        """Nothing is held."""


class Tables(Protocol):
    """The tables behind `TableMarks`; every call can fail with `StorageError`."""

    quick: bool

    def since(self) -> int:
        """Give the first minute from which on nothing is missing."""

    def insert(self, table: str, mark: bytes) -> bool | None:
        """Insert a mark; false if it is there already, None if the table is not."""

    def begin(self, of: int) -> int:
        """Make a minute's table unless it is below `since`, and keep that it was made; give `since`."""

    def begin_key(self, epoch: int) -> bool:
        """Make the table of a key, for requests without dates; false if marks of that key may be lost."""

    def grew(self, sizes: Mapping[int, int], most: int, over: int) -> int:
        """Add to the sizes of minutes, drop those before `over` and the oldest if there are too many; give `since`."""

    def key_marks(self) -> int:
        """Count the marks without dates."""

    def drop_key(self, epoch: int) -> None:
        """Drop the table of a key."""

    def close(self) -> None:
        """Let go."""


class TableMarks:
    """Marks in tables that several workers share."""

    def __init__(self, tables: Tables, most: int = REPLAY_ENTRIES) -> None:
        """Take what is there."""
        self._tables = tables
        self.quick = tables.quick
        self.window = Window(most, tables.since())
        self._lock = Lock()
        self._grown: Counter[int] = Counter()  # marks by minute that the tables have not been told of
        self._dateless: int | None = None  # marks without dates, as far as we know
        self._dateless_grown = 0

    def add(self, mark: bytes, date: float, now: float) -> Verdict:
        """Remember the mark of a dated request."""
        if not self.window.judge(date, now):
            return Verdict.DATE
        of = minute(date)
        table = f"minute_{of}"
        new = self._tables.insert(table, mark)
        if new is None:
            self._rise(since := self._tables.begin(of))
            new = self._tables.insert(table, mark) if of >= since else None
        if new is None:
            return Verdict.DATE
        if not new:
            return Verdict.REPEAT
        with self._lock:
            self._grown[of] += 1
            many = self._grown.total() >= TOGETHER
        if many:
            self.tidy(now)
        return Verdict.NEW

    def add_dateless(self, mark: bytes, epoch: int) -> Verdict:
        """Remember the mark of a request without a date."""
        table = f"key_{epoch}"
        if self._dateless is None or self._dateless_grown >= TOGETHER:
            self._dateless, self._dateless_grown = self._tables.key_marks(), 0
        if self._dateless + self._dateless_grown >= self.window.most:
            return Verdict.DATE
        new = self._tables.insert(table, mark)
        if new is None and self._tables.begin_key(epoch):
            new = self._tables.insert(table, mark)
        if new is None:
            return Verdict.DATE
        self._dateless_grown += new
        return Verdict.NEW if new else Verdict.REPEAT

    def forget(self, epoch: int) -> None:
        """Let go of a dead key's marks."""
        self._tables.drop_key(epoch)
        self._dateless = None

    def tidy(self, now: float) -> None:
        """Let go of minutes that are over, or too many."""
        with self._lock:
            grown, self._grown = self._grown, Counter()
        self._rise(self._tables.grew(grown, self.window.most, minute(now) - REPLAY_WINDOW))

    def close(self) -> None:
        """Let go."""
        self._tables.close()

    def _rise(self, since: int) -> None:
        self.window.since = max(self.window.since, since)


def dropped(sizes: Mapping[int, int], most: int, over: int) -> list[int]:
    """Give the minutes whose tables go: those before `over`, and the oldest while there are more than `most` marks."""
    gone = sorted(of for of in sizes if of < over)
    kept = sorted(of for of in sizes if of >= over)
    total = sum(sizes[of] for of in kept)
    while kept and total > most:
        total -= sizes[kept[0]]
        gone.append(kept.pop(0))
    return gone


def risen(gone: list[int], since: int) -> int:
    """Give `since` once the tables of these minutes are dropped."""
    return max([since, *(of + MINUTE for of in gone)])
