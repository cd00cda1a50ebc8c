"""A limit on how often something may happen per second: new connections of one host."""

from __future__ import annotations

from typing import Final

BURST: Final = 1.0  # seconds of the rate that may come at once after a pause: a page fetches a dozen things


class Rate:
    """A token bucket; `rate` is per second, below 1 too. Times are monotonic seconds."""

    __slots__ = ("_at", "_room", "rate")

    def __init__(self, rate: float, now: float) -> None:
        """Start full."""
        self.rate = rate
        self._at = now
        self._room = self.burst

    @property
    def burst(self) -> float:
        """How many may come at once: what a second brings, and never less than one."""
        return max(1.0, self.rate * BURST)

    def change(self, rate: float, now: float) -> None:
        """Go by another rate from now on; what was saved up stays, up to the new burst."""
        self._fill(now)
        self.rate = rate
        self._room = min(self._room, self.burst)

    def take(self, now: float) -> bool:
        """Say whether one more may come now, and count it if so: who is refused costs nothing."""
        self._fill(now)
        if self._room < 1.0:
            return False
        self._room -= 1.0
        return True

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._room = min(self.burst, self._room + (now - self._at) * self.rate)
            self._at = now
