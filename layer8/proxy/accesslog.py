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
    """Writes ended connections; `blur` is in seconds, 0 writes exact times, sizes and durations."""

    def __init__(self, lines: LineWriter, blur: float, wall: Callable[[], float]) -> None:
        """Write to `lines`, which somebody else flushes."""
        self.lines = lines
        self._blur = blur
        self._wall = wall
        self._second = -1.0
        self._start = ""

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
    ) -> None:
        """Append one line; times in milliseconds are None for what never happened."""
        if self._blur > 0:
            bytes_in, bytes_out, seconds = blur_bytes(bytes_in), blur_bytes(bytes_out), int(seconds)
        else:
            seconds = round(seconds, 3)
        shown = "" if address is None else f',"address":"{address}"'
        self.lines.append(
            (
                f'{self._head()}"conn":"c{conn}","host":"{host}","port":{port},"scheme":"{scheme}","mode":"{mode}",'
                f'"subscriber":{"null" if subscriber is None else subscriber},"pooled":false,"reason":"{reason}",'
                f'"sniff_ms":{"null" if sniff_ms is None else sniff_ms},'
                f'"call_ms":{"null" if call_ms is None else call_ms},'
                f'"ttfb_ms":{"null" if ttfb_ms is None else ttfb_ms},'
                f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},"seconds":{seconds}{shown}}}\n'
            ).encode("ascii", "backslashreplace")
        )

    def _head(self) -> str:
        second = self._wall() // 1
        if second != self._second:
            self._second = second
            shown = datetime.datetime.fromtimestamp(blur_time(second, self._blur), datetime.UTC)
            self._start = (
                f'{self.lines.prefix.decode()}{{"t":"{shown.strftime("%Y-%m-%dT%H:%M:%SZ")}","level":"info",'
                '"ns":"layer8.proxy","event":"proxy.closed",'
            )
        return self._start
