"""Where the marks of opened requests are kept: in memory, in an SQLite file of their own, or in PostgreSQL.

Whoever inserts a mark first has the request; the others are told that it is a repeat. Calls come from any thread.
"""

from __future__ import annotations

from threading import Lock
from typing import Protocol

from layer8.tunnel.replay import ReplaySet, Verdict, Window


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
