"""Sources that guess secrets: so many wrong ones within a minute, and the source has to wait, longer each time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from attrs import define

from layer8.core.address import source_key

FAILS: Final = 20  # per WINDOW and source
WINDOW: Final = 60.0  # seconds in which wrong secrets are counted together
SHORTEST: Final = 60.0  # seconds of the first ban; each further one is twice as long
LONGEST: Final = 3600.0  # seconds that no ban exceeds
SOURCES: Final = 10_000  # remembered at once; the one that failed longest ago is forgotten first: memory


@define(eq=False)
class _Source:
    started: float  # of the window
    until: float  # of the latest ban
    wrong: int = 0
    bans: int = 0


class Guesses:
    """Wrong secrets by source, which is a network of `layer8.core.address`; times are monotonic seconds.

    A source that was good for a minute, and for as long again as its last ban, starts anew.
    """

    def __init__(self, fails: int = FAILS, shortest: float = SHORTEST, longest: float = LONGEST) -> None:
        """Start with no suspicion."""
        self.allow(fails, shortest, longest)
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def __len__(self) -> int:
        """Count the sources that are remembered."""
        return len(self._sources)

    def allow(self, fails: int, shortest: float, longest: float) -> None:
        """Ban at the `fails`th wrong secret within a minute, for `shortest` to `longest` seconds."""
        self.fails = fails
        self.shortest = shortest
        self.longest = longest

    def wait(self, address: str | None, now: float) -> float:
        """Give the seconds that an address has to wait before it may try again."""
        source = self._sources.get(source_key(address)) if address else None
        return 0.0 if source is None else max(0.0, source.until - now)

    def wrong(self, address: str | None, now: float) -> None:
        """Count a wrong secret; whoever comes by a Unix socket has no address and is not counted."""
        if not address:
            return
        key = source_key(address)
        source = self._sources.pop(key, None)
        if source is None or now > source.until + self._length(source) + WINDOW:
            source = _Source(now, now)
        self._sources[key] = source
        if now >= source.started + WINDOW:
            source.started, source.wrong = now, 0
        source.wrong += 1
        if source.wrong >= self.fails:
            source.bans += 1
            source.until = now + self._length(source)
            source.started, source.wrong = source.until, 0
        if len(self._sources) > SOURCES:
            self._sources.popitem(last=False)

    def _length(self, source: _Source) -> float:
        """Give the seconds of a source's latest ban."""
        if not source.bans:
            return 0.0
        return min(self.longest, self.shortest * float(2 ** min(source.bans - 1, 16)))
