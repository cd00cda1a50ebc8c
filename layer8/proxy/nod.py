"""The nod: the one byte by which an agent says that a visitor it was given has reached its target.

It comes first on what a claimed connection brings back, with the target's first bytes, or alone when the target has
said nothing for `NOD_TIME`. A server that hears none knows that the visitor waits for nothing. Both filters step aside
after that byte, so that what follows can stay in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from layer8.net.care import Care
from layer8.net.flow import Filter, Flow
from layer8.net.meter import Meter
from layer8.proxy.wire import NOD


class Nodding:
    """Puts the nod before what the target says; an agent's."""

    __slots__ = ("_flow", "_inner")

    free = 0

    def __init__(self, flow: Flow) -> None:
        """Stand before whatever filter the flow has."""
        self._flow = flow
        self._inner = _stand_before(flow, self)

    def feed(self, data: bytes) -> bytes:
        """Nod, and step aside."""
        _step_aside(self._flow, self, self._inner)
        return NOD + (data if self._inner is None else self._inner.feed(data))

    def skipped(self, count: int) -> None:
        """Nothing goes on unseen."""

    def ended(self) -> bytes:
        """Nod to a target that has nothing to say."""
        return NOD + (b"" if self._inner is None else self._inner.ended())

    def late(self) -> None:
        """Nod now, if the target has said nothing so far."""
        flow = self._flow
        if flow.link is not None and _step_aside(flow, self, self._inner):
            flow.link.pump.say(flow, NOD)


class Awaiting:
    """Takes the nod off what an agent says; a server's. `heard` is told, or `lost` if the connection ends before.

    A host's limit on bytes must not keep it from being heard in time: the flow's meter begins to count with it.
    """

    __slots__ = ("_flow", "_heard", "_inner", "_lost", "_meter")

    free = 0

    def __init__(self, flow: Flow, heard: Callable[[], None], lost: Callable[[], None]) -> None:
        """Stand before whatever filter the flow has."""
        self._flow = flow
        self._inner = _stand_before(flow, self)
        self._heard = heard
        self._lost = lost
        self._meter: Meter | None = None
        if flow.care is not None:
            flow.care.lost = lost
            self._meter, flow.care.meter = flow.care.meter, None

    def feed(self, data: bytes) -> bytes:
        """Take the nod off and step aside; anything else ends the link."""
        flow, inner = self._flow, self._inner
        if not data.startswith(NOD):
            if flow.link is not None:
                flow.link.close("reset")
            return b""
        if flow.care is not None and self._meter is not None:
            flow.care.meter = self._meter
            self._meter.spend(len(data))
        _step_aside(flow, self, inner)
        self._heard()
        rest = data[1:]
        return inner.feed(rest) if inner is not None and rest else rest

    def skipped(self, count: int) -> None:
        """Nothing goes on unseen."""

    def ended(self) -> bytes:
        """Take that the agent has gone without a nod."""
        self._lost()
        return b"" if self._inner is None or self._flow.link is None else self._inner.ended()


def _stand_before(flow: Flow, first: Filter) -> Filter | None:
    """Let `first` see a flow before the filter that it has, which is given."""
    if flow.care is None:
        flow.care = Care(first)
        return None
    inner, flow.care.filter = flow.care.filter, first
    flow.care.through = False
    return inner


def _step_aside(flow: Flow, first: Filter, inner: Filter | None) -> bool:
    """Leave a flow to the filter behind; False if that was so already."""
    care = flow.care
    if care is None or care.filter is not first:
        return False
    care.filter, care.lost = inner, None
    if inner is None and care.meter is None:
        flow.care = None
    return True
