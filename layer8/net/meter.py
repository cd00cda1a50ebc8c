"""A limit on bytes per second that several joined connections share, kept by resting their flows.

Nothing is queued to be slow: a flow that has used up what there is reads no more until there is something again, and
the kernel stops its sender. Times are monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from layer8.net.flow import Flow

BURST: Final = 0.25  # seconds of the rate that may be moved at once after a rest
LEAST: Final = 1 << 12  # bytes: a smaller room is not worth a look, and a smaller burst would cost more than it moves
REST: Final = 0.005  # seconds: the shortest rest


class Meter:
    """A token bucket of bytes; `rate` is bytes per second, `waiting` the flows that rest, the longest first."""

    __slots__ = ("_at", "_room", "burst", "rate", "waiting")

    def __init__(self, rate: float, now: float) -> None:
        """Start full."""
        self.rate = rate
        self.burst = max(rate * BURST, float(2 * LEAST))
        self._room = self.burst
        self._at = now
        self.waiting: deque[Flow] = deque()

    def change(self, rate: float) -> None:
        """Go by another rate from now on."""
        self.rate = rate
        self.burst = max(rate * BURST, float(2 * LEAST))
        self._room = min(self._room, self.burst)

    def room(self, now: float) -> int:
        """Give how many bytes may move now; 0 means that a rest is due."""
        if now > self._at:
            self._room = min(self.burst, self._room + (now - self._at) * self.rate)
            self._at = now
        return int(self._room) if self._room >= LEAST else 0

    def spend(self, count: int) -> None:
        """Take that `count` bytes have moved; more than there was room for is paid for by a longer rest."""
        self._room -= count

    def wait(self) -> float:
        """Give how many seconds it takes until there is room again."""
        return max(REST, (LEAST - self._room) / self.rate)
