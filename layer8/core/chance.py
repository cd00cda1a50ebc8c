"""Randomness as pure modules are handed it: `random.SystemRandom()` in a node, `random.Random(seed)` in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Chance(Protocol):
    """As much of `random.Random` as choices need."""

    def random(self) -> float:
        """Give a number from 0 to 1, 1 excluded."""

    def randrange(self, stop: int, /) -> int:
        """Give a whole number from 0 to `stop`, `stop` excluded."""

    def uniform(self, a: float, b: float, /) -> float:
        """Give a number between two."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """Give `k` different elements in random order."""
