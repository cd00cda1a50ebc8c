"""What the server counts: plain integers on the path of every connection, read by metrics, lists and storage."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from layer8.proxy.wire import Reason


@define(eq=False)
class HostTally:
    """One host's connections: those that wait for an agent, those that are joined, and the bytes of ended ones."""

    host: str
    calling: int = 0
    open: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@define(eq=False)
class Totals:
    """The whole server's counts since its start; sums of seconds go with their counts."""

    accepted: int = 0
    joined: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    sniff_ms: int = 0
    call_ms: int = 0
    ttfb_ms: int = 0
    ttfb_count: int = 0
    strangers: int = 0
    rejects_ignored: int = 0
    ended: Counter[Reason] = field(factory=Counter)
