"""The access log: one JSON line per visitor of a registered host, written when the connection ends.

Made by hand instead of by `json`, since it is on the path of every connection: all texts in it are our own words or
host names that passed the sniffer, so there is nothing to escape.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

from attrs import define

from layer8.core.blur import blur_bytes, blur_time
from layer8.net.lines import LineWriter
from layer8.proxy.wire import Reason


@define
class Ended:
    """What is known of a connection at its end; times in milliseconds, None for what never happened."""

    conn: int
    host: str
    port: int
    scheme: str
    mode: str
    reason: Reason
    subscriber: int | None
    sniff_ms: int | None
    call_ms: int | None
    ttfb_ms: int | None
    bytes_in: int
    bytes_out: int
    seconds: float
    address: str | None


class AccessLog:
    """Writes ended connections; `blur` is in seconds, 0 writes exact times, sizes and durations."""

    def __init__(self, lines: LineWriter, blur: float, wall: Callable[[], float]) -> None:
        """Write to `lines`, which somebody else flushes."""
        self.lines = lines
        self._blur = blur
        self._wall = wall
        self._second = -1.0
        self._stamp = ""

    def write(self, ended: Ended) -> None:
        """Append one line."""
        blur = self._blur
        seconds: float
        if blur > 0:
            into, out, seconds = blur_bytes(ended.bytes_in), blur_bytes(ended.bytes_out), int(ended.seconds)
        else:
            into, out, seconds = ended.bytes_in, ended.bytes_out, round(ended.seconds, 3)
        address = "" if ended.address is None else f',"address":"{ended.address}"'
        text = (
            f'{{"t":"{self._time()}","level":"info","ns":"layer8.proxy","event":"proxy.closed","conn":"c{ended.conn}",'
            f'"host":"{ended.host}","port":{ended.port},"scheme":"{ended.scheme}","mode":"{ended.mode}",'
            f'"subscriber":{_number(ended.subscriber)},"pooled":false,"reason":"{ended.reason.value}",'
            f'"sniff_ms":{_number(ended.sniff_ms)},"call_ms":{_number(ended.call_ms)},'
            f'"ttfb_ms":{_number(ended.ttfb_ms)},"bytes_in":{into},"bytes_out":{out},"seconds":{seconds}{address}}}\n'
        )
        self.lines.append(self.lines.prefix + text.encode("ascii", "backslashreplace"))

    def _time(self) -> str:
        second = self._wall() // 1
        if second != self._second:
            self._second = second
            shown = datetime.datetime.fromtimestamp(blur_time(second, self._blur), datetime.UTC)
            self._stamp = shown.strftime("%Y-%m-%dT%H:%M:%SZ")
        return self._stamp


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)
