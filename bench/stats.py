"""Medians, ranges and how figures are written."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from attrs import frozen


@frozen
class Summary:
    """What the kept samples of one figure say; `noisy` of the `n` were taken while others used the machine."""

    median: float
    least: float
    most: float
    n: int
    noisy: int = 0

    @classmethod
    def of(cls, values: Sequence[float], noisy: int = 0) -> Summary | None:
        """Sum up `values`; None if there are none."""
        return cls(median(values), min(values), max(values), len(values), noisy) if values else None

    def text(self, digits: int = 3) -> str:
        """The median and the range, for example `5.87 (5.71-6.02)`; a tilde marks medians of mostly noisy samples."""
        mark = "~" if self.noisy * 2 > self.n else ""
        if self.n == 1:
            return f"{mark}{short(self.median, digits)}"
        return f"{mark}{short(self.median, digits)} ({short(self.least, digits)}-{short(self.most, digits)})"


def short(value: float, digits: int = 3) -> str:
    """Write a number with about `digits` significant ones, and never in powers of ten."""
    if value == 0:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - whole)}f}" if whole else f"{value:.{digits - 1}f}"


def ratio(ours: Summary | None, theirs: Summary | None) -> float | None:
    """One median over another; None if either is missing or nothing."""
    if ours is None or theirs is None or not theirs.median:
        return None
    return ours.median / theirs.median
