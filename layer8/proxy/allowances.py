"""What hosts may use: new connections per second, and bytes per second of all their connections together.

A registration says how much, or else the server's limits do; 0 is as much as there is. Each process counts for itself.
"""

from __future__ import annotations

from layer8.config.proxy import ProxyLimits
from layer8.net.meter import Meter
from layer8.proxy.rates import Rate
from layer8.proxy.registration import Registration

UNLIMITED = 1e15
"""Bytes per second for connections that were joined under a limit which is there no more."""


class Allowances:
    """The rate and the meter of every host that has a limit and was visited; times are monotonic seconds."""

    def __init__(self, limits: ProxyLimits) -> None:
        """Start with nothing used."""
        self.limits = limits
        self._rates: dict[str, Rate] = {}
        self._meters: dict[str, Meter] = {}

    def admits(self, row: Registration, now: float) -> bool:
        """Count one more connection of a host; False if that is one too many."""
        wanted = row.policy.rate or self.limits.host_rate
        if not wanted:
            return True
        rate = self._rates.get(row.host)
        if rate is None:
            rate = self._rates[row.host] = Rate(wanted, now)
        elif rate.rate != wanted:
            rate.change(wanted, now)
        return rate.take(now)

    def meter(self, row: Registration, now: float) -> Meter | None:
        """Give what the connections of a host share, None if nothing limits them."""
        wanted = row.policy.bandwidth or self.limits.bandwidth
        meter = self._meters.get(row.host)
        if meter is None:
            if wanted:
                meter = self._meters[row.host] = Meter(wanted, now)
        elif meter.rate != (wanted or UNLIMITED):
            meter.change(wanted or UNLIMITED)
        return meter if wanted else None

    def changed(self, row: Registration, now: float) -> None:
        """Let what a host has joined under a limit go by its new one."""
        if row.host in self._meters:
            self.meter(row, now)

    def forget(self, host: str) -> None:
        """Forget a host; what it has joined goes on as it is."""
        self._rates.pop(host, None)
        self._meters.pop(host, None)

    @property
    def hosts(self) -> set[str]:
        """The hosts that are remembered."""
        return self._rates.keys() | self._meters.keys()
