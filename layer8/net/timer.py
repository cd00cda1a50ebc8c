"""One delayed call for a session's deadline, however often the deadline moves."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

SOONEST = 0.001  # seconds; a session whose deadline never moves must not spin the reactor


@define(eq=False)
class Timer:
    """Calls `due` at or soon after the second it was set to, by the monotonic clock `seconds`.

    Moving the deadline away costs nothing: the call stays where it is and is made again when it comes too early.
    """

    _clock: IReactorTime
    seconds: Callable[[], float]
    _due: Callable[[], None]
    _call: IDelayedCall | None = field(default=None, init=False)
    _call_at: float = field(default=0.0, init=False)
    _at: float | None = field(default=None, init=False)

    def set(self, at: float | None) -> None:
        """Ask for the call at this second, or for none."""
        self._at = at
        if at is None:
            self.stop()
        elif self._call is None or self._call_at > at:
            self.stop()
            self._at = self._call_at = at
            self._call = self._clock.callLater(max(at - self.seconds(), SOONEST), self._fire)

    def stop(self) -> None:
        """Ask for no call."""
        call, self._call, self._at = self._call, None, None
        if call is not None and call.active():
            call.cancel()

    def _fire(self) -> None:
        self._call = None
        at = self._at
        if at is not None and at > self.seconds():
            self.set(at)
        else:
            self._due()
