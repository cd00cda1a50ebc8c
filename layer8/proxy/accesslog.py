"""The access log: one JSON line per visitor of a registered host, written when the connection ends.

Made by hand instead of by `json`, since it is on the path of every connection: all texts in it are our own words or
host names that passed the sniffer, so there is nothing to escape.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

from layer8.core.blur import blur_bytes, blur_time
from layer8.net.lines import LineWriter
from layer8.proxy.wire import Reason


class AccessLog:
    """Writes ended connections; `blur` gives seconds, 0 writes exact times, sizes and durations."""

    def __init__(self, lines: LineWriter, blur: Callable[[], float], wall: Callable[[], float]) -> None:
        """Write to `lines`, which somebody else flushes."""
        self.lines = lines
        self._blur = blur
        self._wall = wall
        self._start = ""
        self._exact = False
        self.tick()

    def tick(self) -> None:
        """Write what waits, and look at the clock: lines carry the time of the last look."""
        self.lines.flush()
        blur = self._blur()
        self._exact = blur <= 0
        shown = datetime.datetime.fromtimestamp(blur_time(self._wall() // 1, blur), datetime.UTC)
        self._start = (
            f'{self.lines.prefix.decode()}{{"t":"{shown.strftime("%Y-%m-%dT%H:%M:%SZ")}","level":"info",'
            '"ns":"layer8.proxy","event":"proxy.closed",'
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
        """Append one line; times in milliseconds are None for what never happened."""
        if self._exact:
            seconds = round(seconds, 3)
        else:
            bytes_in, bytes_out, seconds = blur_bytes(bytes_in), blur_bytes(bytes_out), int(seconds)
        shown = "" if address is None else f',"address":"{address}"'
        self.lines.append(
            (
                f'{self._start}"conn":"c{conn}","host":"{host}","port":{port},"scheme":"{scheme}","mode":"{mode}",'
                f'"subscriber":{"null" if subscriber is None else subscriber},"pooled":{"true" if pooled else "false"},'
                f'"reason":"{reason}",'
                f'"sniff_ms":{"null" if sniff_ms is None else sniff_ms},'
                f'"call_ms":{"null" if call_ms is None else call_ms},'
                f'"ttfb_ms":{"null" if ttfb_ms is None else ttfb_ms},'
                f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},"seconds":{seconds}{shown}}}\n'
            ).encode("ascii", "backslashreplace")
        )
