"""The access log: one JSON line per visitor of a registered host, written when the connection ends.

Made by hand instead of by `json`, and a few at a time, since it is on the path of every connection: all texts in it are
our own words or host names that passed the sniffer, so there is nothing to escape.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Final

from layer8.core.blur import blur_bytes, blur_time
from layer8.net.lines import LineWriter
from layer8.proxy.wire import Reason

TOGETHER: Final = 32  # lines made at once: one by one, each would cost twice as much

_LINE = (
    '"conn":"c%d","host":"%s","port":%d,"scheme":"%s","mode":"%s","subscriber":%s,"pooled":%s,"reason":"%s",'
    '"sniff_ms":%s,"call_ms":%s,"ttfb_ms":%s,"bytes_in":%d,"bytes_out":%d,"seconds":%s%s}\n'
)


class AccessLog:
    """Writes ended connections; `blur` gives seconds, 0 writes exact times, sizes and durations."""

    def __init__(self, lines: LineWriter, blur: Callable[[], float], wall: Callable[[], float]) -> None:
        """Write to `lines`, which somebody else flushes."""
        self.lines = lines
        self._blur = blur
        self._wall = wall
        self._form = ""
        self._exact = False
        self._ended: list[tuple[Any, ...]] = []
        self.tick()

    def tick(self) -> None:
        """Write what waits, and look at the clock: lines carry the time of the last look."""
        self._make()
        self.lines.flush()
        blur = self._blur()
        self._exact = blur <= 0
        shown = datetime.datetime.fromtimestamp(blur_time(self._wall() // 1, blur), datetime.UTC)
        self._form = (
            f'{self.lines.prefix.decode()}{{"t":"{shown.strftime("%Y-%m-%dT%H:%M:%SZ")}","level":"info",'
            f'"ns":"layer8.proxy","event":"proxy.closed",{_LINE}'
        )

    def write(
        self,
        conn: int,
        host: str,
        port: int,
        scheme: str,
        mode: str,
        subscriber: int | None,
        reason: Reason,
        sniff_ms: int | None,
        call_ms: int | None,
        ttfb_ms: int | None,
        bytes_in: int,
        bytes_out: int,
        seconds: float,
        address: str | None,
        pooled: bool = False,
    ) -> None:
        """Take one line; times in milliseconds are None for what never happened."""
        self._ended.append(
            (
                conn,
                host,
                port,
                scheme,
                mode,
                "null" if subscriber is None else subscriber,
                "true" if pooled else "false",
                reason,
                "null" if sniff_ms is None else sniff_ms,
                "null" if call_ms is None else call_ms,
                "null" if ttfb_ms is None else ttfb_ms,
                bytes_in if self._exact else blur_bytes(bytes_in),
                bytes_out if self._exact else blur_bytes(bytes_out),
                round(seconds, 3) if self._exact else int(seconds),
                "" if address is None else f',"address":"{address}"',
            )
        )
        if len(self._ended) >= TOGETHER:
            self._make()

    def _make(self) -> None:
        """Make the lines of what has ended."""
        ended, self._ended = self._ended, []
        append, form = self.lines.append, self._form
        for one in ended:
            append((form % one).encode("ascii", "backslashreplace"))
