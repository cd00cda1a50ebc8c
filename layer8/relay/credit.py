"""What neighbours have relayed for us and we for them: whoever carries more for us is served first, and nobody else.

Credit is between two neighbours. It cannot be passed on, and nobody is told of it. A link's weight goes from 1 to 4:
how many times as much was carried for us as by us. Bytes count half after HALF, so that old merits fade.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from attrs import define, field, frozen

from layer8.relay.limits import LINKS
from layer8.relay.wire import CELL

WEIGHT_MOST: Final = 4.0
LEAST: Final = 1 << 20  # bytes that count as carried by us in any case: a few cells earn nothing
HALF: Final = 7 * 86_400.0  # seconds


@frozen
class Owed:
    """Bytes that a neighbour has relayed for us, and we for it, at a date in seconds since 1970."""

    for_me: int
    by_me: int
    at: float


@define(eq=False)
class Credit:
    """The accounts with all neighbours, 4 * LINKS at most; whoever was heard of longest ago goes first."""

    _owed: dict[bytes, Owed] = field(factory=dict, init=False)
    _changed: set[bytes] = field(factory=set, init=False)
    _gone: set[bytes] = field(factory=set, init=False)

    def restore(self, owed: Mapping[bytes, Owed]) -> None:
        """Take back what was kept."""
        self._owed.update(sorted(owed.items(), key=lambda one: one[1].at))

    def count(self, neighbour: bytes, now: float, *, for_me: int = 0, by_me: int = 0) -> None:
        """Note cells; `now` is in seconds since 1970."""
        old = self._owed.pop(neighbour, None) or Owed(0, 0, now)
        share = 0.5 ** (max(now - old.at, 0.0) / HALF)
        self._owed[neighbour] = Owed(
            round(old.for_me * share) + for_me * CELL, round(old.by_me * share) + by_me * CELL, now
        )
        self._changed.add(neighbour)
        while len(self._owed) > 4 * LINKS:
            first = next(iter(self._owed))
            del self._owed[first]
            self._changed.discard(first)
            self._gone.add(first)

    def weight(self, neighbour: bytes) -> float:
        """Give the weight of a link, 1 for a stranger."""
        owed = self._owed.get(neighbour)
        if owed is None:
            return 1.0
        return min(max(owed.for_me / max(owed.by_me, LEAST), 1.0), WEIGHT_MOST)

    def get(self, neighbour: bytes) -> Owed | None:
        """Give the account with a neighbour."""
        return self._owed.get(neighbour)

    def changes(self) -> tuple[dict[bytes, Owed], Iterable[bytes]]:
        """Give the accounts that have changed since the last time, and those that were dropped."""
        changed = {one: self._owed[one] for one in self._changed}
        gone = self._gone - self._owed.keys()
        self._changed, self._gone = set(), set()
        return changed, gone
