"""Deadlines by the thousand without a timer each: one queue per duration.

Everything in one lane waits equally long, so the oldest entry is always the next to expire: adding is an append,
and a sweep looks only at the front. Cancelling is forgetting: the owner says at expiry whether the entry still counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Lane(Generic[T]):
    """Entries that all expire `seconds` after they were added, by the monotonic clock their owner passes in."""

    __slots__ = ("_waiting", "seconds")

    def __init__(self, seconds: float) -> None:
        """Fix the duration of this lane, in seconds."""
        self.seconds = seconds
        self._waiting: deque[tuple[float, T]] = deque()

    def __len__(self) -> int:
        """Count the entries, those already forgotten by their owner included."""
        return len(self._waiting)

    def add(self, entry: T, now: float) -> None:
        """Let `entry` expire at `now + seconds`."""
        self._waiting.append((now + self.seconds, entry))

    def expired(self, now: float) -> Iterator[T]:
        """Take every entry whose time has come, oldest first."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            yield waiting.popleft()[1]
