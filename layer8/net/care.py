"""Flows that are looked at on their way: a filter sees their bytes, a meter makes them rest.

Everything here is called by the pump for flows that have a `Care`; the others never come here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from layer8.net.flow import CHUNK, SPLICE, SPLICE_GATHER, SPLICE_HOW, SPLICE_LEAST, Filter, Flow
from layer8.net.meter import LEAST, Meter

if TYPE_CHECKING:
    from layer8.net.pump import Pump


UNSEEN = 1 << 62
"""Free bytes that never end: a filter that gives so many has to give as many ever after."""


class Care:
    """What a flow needs beyond being carried: a filter, a meter, or both.

    `paused` is the filter's wish, `resting` the meter's, `share` what it granted after a rest, `read` counts the bytes
    of the source. `lost` is told that the source was reset, and may part the link. `through` is set once the filter
    needs to see nothing more but the end: from there on the flow is read like any other, and `read` stands still.
    """

    __slots__ = ("filter", "lost", "meter", "paused", "read", "resting", "share", "through")

    def __init__(self, seen: Filter | None = None, meter: Meter | None = None) -> None:
        """Begin without a pause."""
        self.filter = seen
        self.meter = meter
        self.paused = False
        self.resting = False
        self.share = 0
        self.through = False
        self.read = 0
        self.lost: Callable[[], None] | None = None


def read_with_care(pump: Pump, flow: Flow, care: Care) -> bool:
    """Read some of a flow, as much as filter and meter allow; False when it must wait."""
    if care.paused or care.resting:
        pump.empty_pipe(flow)
        return False
    meter, seen = care.meter, care.filter
    most = SPLICE
    if meter is not None:
        most = min(SPLICE, meter.room(pump.now))
        if care.share:
            most, care.share = min(most, care.share), 0
        elif meter.waiting:
            most = 0  # those who rest already come first
        if not most:
            _rest(pump, flow, care, meter)
            return False
    free = most if seen is None else seen.free
    if free >= UNSEEN and meter is None:
        care.through = True
        return True
    try:
        if flow.bulk and (free := min(most, free)) >= SPLICE_LEAST and pump.has_pipe(flow):
            size = os.splice(flow.src, flow.pipe.write, free, flags=SPLICE_HOW)  # type: ignore[union-attr]
            flow.held = size
            if not size:
                flow.eof = True
            elif size < min(SPLICE_GATHER, free):
                flow.rearm = True
                flow.bulk = size >= SPLICE_LEAST
            care.read += size
            if seen is not None:
                seen.skipped(size)
            if meter is not None:
                meter.spend(size)
            return True
        asked = CHUNK if most >= CHUNK else most
        secure = flow.secure_src
        data = os.read(flow.src, asked) if secure is None else secure.recv(asked)
    except BlockingIOError:
        flow.readable = flow.ending = False
        return False
    except OSError:
        flow.eof = flow.reset = True
        return True
    if not data:
        flow.eof = True
        return True
    if secure is None:
        if len(data) == asked:
            flow.bulk = pump.splices and flow.secure_dst is None
        elif not flow.ending:
            flow.readable = False
    care.read += len(data)
    if meter is not None:
        meter.spend(len(data))
    if seen is not None:
        data = seen.feed(data)
        if flow.link is None:
            return False  # the filter has ended or parted the link
    if data:
        flow.pending = data if flow.pending is None else flow.pending + data
    return True


def last_words(flow: Flow, care: Care) -> bool:
    """Ask a filter for what it still has to say at the end; False if nothing."""
    if flow.reset and care.lost is not None:
        lost, care.lost = care.lost, None
        lost()
    if care.filter is None or flow.reset:
        return False
    seen, care.filter = care.filter, None
    words = seen.ended()
    if flow.link is None:
        return False
    flow.pending = words or None
    return bool(words)


def _rest(pump: Pump, flow: Flow, care: Care, meter: Meter) -> None:
    """Let a flow wait until its meter has room again and all that wait longer have had some."""
    care.resting = True
    pump.empty_pipe(flow)
    meter.waiting.append(flow)
    if len(meter.waiting) == 1:
        pump.later(meter.wait(), _go_on, pump, meter)


def _go_on(pump: Pump, meter: Meter) -> None:
    """Let as many flows go on as there is room for, and share it among them: one timer for all that wait."""
    now = pump.look_at_clock()
    waiting = meter.waiting
    room = meter.room(now)
    chosen = [waiting.popleft() for _ in range(min(len(waiting), room // LEAST))]
    for flow in chosen:
        care = flow.care
        if flow.link is not None and care is not None and care.resting:
            care.resting = False
            care.share = room // len(chosen)
            flow.link.last = now  # it was made to wait, so it was not idle
            pump.soon(flow)
    if waiting:
        pump.later(meter.wait(), _go_on, pump, meter)
