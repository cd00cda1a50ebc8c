"""The books of a server: what is counted and logged when a visitor's connection ends."""

from __future__ import annotations

from collections.abc import Callable

from layer8.proxy.accesslog import AccessLog
from layer8.proxy.choose import Seats
from layer8.proxy.tally import HostTally, Totals
from layer8.proxy.visit import Visit
from layer8.proxy.wire import Reason

_SOMEBODY = "192.0.2.1"  # an address of RFC 5737 that stands for any


class Accounts:
    """Counts for all and by host, and the access log.

    Without a `log` nothing is written. `show(address, now)` gives what the log may say of an address.
    """

    def __init__(self, seats: Seats, log: AccessLog | None, show: Callable[[str, float], str | None]) -> None:
        """Open the books."""
        self.totals = Totals()
        self.tallies: dict[str, HostTally] = {}
        self._seats = seats
        self._log = log
        self._show = show

    def tally(self, host: str) -> HostTally:
        """Give a registered name its row."""
        return self.tallies.setdefault(host, HostTally(host))

    def close(self, visit: Visit, reason: Reason, now: float) -> None:
        """Count and log the end of a visitor; `now` is monotonic seconds."""
        totals, link, seat = self.totals, visit.link, visit.seat
        totals.ended[reason] += 1
        up = down = 0
        ttfb: int | None = None
        if link is not None:
            up, down = max(0, link.up.count - visit.head), link.down.count
            totals.bytes_in += up
            totals.bytes_out += down
            tally = visit.tally
            if tally is not None:
                tally.open -= 1
                tally.bytes_in += up
                tally.bytes_out += down
            if seat is not None:
                self._seats.left(seat)
            if link.first is not None:
                ttfb = int((link.first - visit.opened) * 1000)
                totals.ttfb_ms += ttfb
                totals.ttfb_count += 1
        log, row = self._log, visit.row
        if log is not None and (row is not None or self._shows_all):
            log.write(
                visit.conn,
                visit.host or "",
                visit.port,
                visit.scheme,
                "raw" if row is None else row.mode,
                None if seat is None else seat.number,
                reason,
                visit.sniff_ms,
                visit.call_ms,
                ttfb,
                up,
                down,
                now - visit.opened,
                self._show(visit.address, now),
                visit.pooled,
            )

    @property
    def _shows_all(self) -> bool:
        """With addresses in clear the log also serves programs that ban those who scan."""
        return self._show(_SOMEBODY, 0.0) == _SOMEBODY

    def tick(self) -> None:
        """Write the lines that wait."""
        if self._log is not None:
            self._log.tick()
