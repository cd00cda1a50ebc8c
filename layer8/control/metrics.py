"""What this process counts: plain integers on the hot path, collected only when somebody asks.

A part of the program that counts keeps ordinary attributes (`self.accepted += 1`) and offers them as `Family` values
by a `families()` method; nothing of `prometheus_client` is touched until a scrape. The same numbers go out as
Prometheus text (`GET /metrics`) and as the result of `metrics.snapshot`.

Names are `layer8_<module>_<what>_<unit>`. Label values come from closed sets; an address, an id or a host is never one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from attrs import field, frozen
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

METRIC_SERIES = 2_000
"""Series that one process may show; a family that would go past it is left out and counted."""

METRICS_FRESH = 1.0
"""Seconds for which a rendered scrape is given again, so that a flood of scrapes costs one."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds that suit waits, in seconds."""

_NAME = re.compile(r"layer8(_[a-z0-9]+){2,}\Z")


class Histogram:
    """Observations counted into buckets; `observe` is one bisection and three additions."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """Fix the upper bounds, ascending, in the unit of the family's name."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulated(self) -> list[tuple[str, float]]:
        """Give (upper bound, values up to it), the last bound being `+Inf`."""
        running = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, running))
        return rows


def _named(_instance: object, _attribute: object, value: str) -> None:
    if _NAME.match(value) is None:
        raise ValueError(f"{value!r} is not layer8_<module>_<what>_<unit>")


@frozen
class Family:
    """One metric: its name, what it means, and a value for each combination of its labels.

    A counter's name ends in `_total`. With no labels the one key of `values` is the empty tuple.
    """

    name: str = field(validator=_named)
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    values: Mapping[tuple[str, ...], float | Histogram]
    labels: tuple[str, ...] = ()


class Source(Protocol):
    """A part of the program that counts something."""

    def families(self) -> Iterable[Family]:
        """Give the present values; called at most once per scrape, on the reactor."""


def gauge(name: str, meaning: str, value: float) -> Family:
    """Make a gauge without labels."""
    return Family(name, meaning, "gauge", {(): value})


def counter(name: str, meaning: str, value: float) -> Family:
    """Make a counter without labels; its name ends in `_total`."""
    return Family(name, meaning, "counter", {(): value})


class Metrics:
    """Every source of one process behind a registry of its own (never the global one)."""

    __slots__ = ("_fresh_until", "_seconds", "_sources", "_text", "dropped", "merge", "registry")

    def __init__(self, seconds: Callable[[], float]) -> None:
        """Take the monotonic clock's `seconds`; a scrape is rendered at most once per `METRICS_FRESH`."""
        self._seconds = seconds
        self._sources: list[Source] = []
        self._text = b""
        self._fresh_until = float("-inf")
        self.dropped = 0
        self.merge: Callable[[Iterable[Family]], Iterable[Family]] = _as_they_are
        """Makes of our own families those that are shown: where other processes count too."""
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Sources(self))

    def add(self, source: Source) -> None:
        """Show what `source` counts from now on."""
        self._sources.append(source)

    def remove(self, source: Source) -> None:
        """Show it no longer; one that was not shown is fine."""
        if source in self._sources:
            self._sources.remove(source)

    def render(self) -> bytes:
        """Give the Prometheus text format, at most `METRICS_FRESH` seconds old."""
        now = self._seconds()
        if now >= self._fresh_until:
            self._text = generate_latest(self.registry)
            self._fresh_until = now + METRICS_FRESH
        return self._text

    def snapshot(self) -> dict[str, float]:
        """Give every series as `name{label="value"}` to value, as the text format spells them."""
        series: dict[str, float] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                series[f"{sample.name}{{{labels}}}" if labels else sample.name] = float(sample.value)
        return series

    def counters(self) -> dict[str, float]:
        """Give only the counters of our own sources: what `stats.tick` subtracts from second to second."""
        totals: dict[str, float] = {}
        for family in self.families():
            if family.kind != "counter":
                continue
            for values, number in family.values.items():
                assert not isinstance(number, Histogram), family.name
                labels = ",".join(f'{name}="{value}"' for name, value in zip(family.labels, values, strict=True))
                totals[f"{family.name}{{{labels}}}" if labels else family.name] = number
        return totals

    def families(self) -> Iterator[Family]:
        """Give the families of all sources, whole ones, as long as the process stays under `METRIC_SERIES`."""
        left = METRIC_SERIES
        self.dropped = 0
        for family in self.merge(family for source in self._sources for family in source.families()):
            size = sum(
                len(number.bounds) + 3 if isinstance(number, Histogram) else 1 for number in family.values.values()
            )
            if size > left:
                self.dropped += size
                continue
            left -= size
            yield family


def _as_they_are(families: Iterable[Family]) -> Iterable[Family]:
    return families


class _Sources(Collector):
    """What the registry asks: turns our families into the library's, at scrape time only."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Give every family as the library's own kind."""
        for family in self._metrics.families():
            yield _as_metric(family)
        yield GaugeMetricFamily(
            "layer8_metrics_dropped_series", "Series left out because of METRIC_SERIES.", self._metrics.dropped
        )


def _as_metric(family: Family) -> Metric:
    """Turn one family into what `generate_latest` reads."""
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for values, number in family.values.items():
            assert isinstance(number, Histogram), family.name
            histogram.add_metric(values, number.cumulated(), number.total)
        return histogram
    metric = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        family.name, family.help, labels=family.labels
    )
    for values, number in family.values.items():
        assert not isinstance(number, Histogram), family.name
        metric.add_metric(values, number)
    return metric
