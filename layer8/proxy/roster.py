"""Who is present on all nodes, as one of them knows it: our leases, what others told of theirs, and what to tell them.

Every node tells all others what changes among its own leases, numbered without a gap. Whoever misses a number asks for
the whole, which comes in parts. A message is one JSON object::

    {"start": S, "seq": N, "add": [LEASE, ...], "gone": [GENERATION, ...], "renew": true | [GENERATION, ...]}
    {"start": S, "seq": N, "whole": [LEASE, ...], "part": 0, "of": 2}
    {"ask": true}
    LEASE = [host, subscription, weight, priority, generation, pool]

`start` is when the node began, in ms since 1970: what is older than what is known is ignored, and generations are
counted from it, so they rise over restarts too. Source: proxy.md section 13.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from attrs import define, field

from layer8.core.errors import RemoteProtocolError
from layer8.proxy.bus import Lease, Presence
from layer8.proxy.limits import BUS_LEASE, BUS_RENEW

STALE: Final = 60.0  # seconds that routes to other nodes are kept while nothing can be heard of them
PART: Final = 500  # leases in one message
PARTS: Final = 2000
NODES: Final = 64  # whose leases are kept
LEASES: Final = 100_000  # of one node

_Key = tuple[str, int]


@define(eq=False)
class _View:
    """What another node has told."""

    start: int = -1
    seq: int = 0
    leases: dict[int, tuple[Presence, float]] = field(factory=dict)  # by generation: until when
    parts: dict[int, list[Any]] = field(factory=dict)
    asked: float = -math.inf
    heard: float = -math.inf


class Roster:
    """See the module; `now` is always monotonic seconds."""

    def __init__(self, node: bytes, start: int) -> None:
        """Take our own id, and the time in ms since 1970."""
        self.node = node
        self.start = start
        self._seq = 0
        self._generation = start
        self._ours: dict[_Key, tuple[Lease, float]] = {}
        self._others: dict[bytes, _View] = {}
        self._present: dict[str, dict[tuple[bytes, int], tuple[Presence, int]]] = {}
        self._add: dict[int, Lease] = {}
        self._gone: list[int] = []
        self._renewed: set[int] = set()
        self._told = True
        self._cut: float | None = None

    # Our leases.

    def lease(self, presence: Presence, now: float) -> Lease:
        """Make a lease; an older one for the same subscription is fenced out."""
        self._generation += 1
        lease = Lease(presence, generation=self._generation)
        self._end(presence)
        self._ours[presence.host, presence.subscription] = lease, now + BUS_LEASE
        self._place(presence, lease.generation)
        self._add[lease.generation] = lease
        self._told = False
        return lease

    def renew(self, leases: Iterable[Lease], now: float) -> tuple[Lease, ...]:
        """Prolong leases, and give those that cannot be: they are over or fenced out."""
        lost = []
        self._lapse(now)
        for lease in leases:
            key = lease.presence.host, lease.presence.subscription
            standing = self._ours.get(key)
            if standing is None or standing[0] != lease:
                lost.append(lease)
            else:
                self._ours[key] = lease, now + BUS_LEASE
                self._renewed.add(lease.generation)
        self._told = False
        return tuple(lost)

    def release(self, lease: Lease) -> None:
        """End a lease; nothing happens to one that is over."""
        standing = self._ours.get((lease.presence.host, lease.presence.subscription))
        if standing is not None and standing[0] == lease:
            self._end(lease.presence)

    # What is to be told.

    def news(self) -> dict[str, Any] | None:
        """Give what the others do not know yet, once; None if there is nothing."""
        if self._told:
            return None
        self._told = True
        self._seq += 1
        every = len(self._renewed) == len(self._ours)
        told = {
            "start": self.start,
            "seq": self._seq,
            "add": [_line(lease) for lease in self._add.values()],
            "gone": self._gone,
            "renew": True if every else sorted(self._renewed),
        }
        self._add, self._gone, self._renewed = {}, [], set()
        return told

    def whole(self) -> Iterator[dict[str, Any]]:
        """Give all our leases, as of the last news."""
        lines = [_line(lease) for lease, _ in self._ours.values() if lease.generation not in self._add]
        parts = [lines[place : place + PART] for place in range(0, len(lines), PART)] or [[]]
        for place, part in enumerate(parts):
            yield {"start": self.start, "seq": self._seq, "whole": part, "part": place, "of": len(parts)}

    # What others tell.

    def heard(self, node: bytes, said: Mapping[str, Any], now: float) -> bool:
        """Take what a node tells of its leases; True if it has to be asked for the whole.

        Raises RemoteProtocolError for what is no such message.
        """
        try:
            start, seq = _number(said["start"]), _number(said["seq"])
            view = self._others.get(node)
            if view is None:
                if len(self._others) >= NODES:
                    raise RemoteProtocolError("too many nodes")
                view = self._others[node] = _View()
            if start < view.start:
                return False
            view.heard = now
            if "whole" in said:
                self._whole(node, view, start, seq, said, now)
                return False
            return self._news(node, view, start, seq, said, now)
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError("a node tells what is no news of leases") from error

    def _news(self, node: bytes, view: _View, start: int, seq: int, said: Mapping[str, Any], now: float) -> bool:
        if start == view.start and seq <= view.seq:
            return False
        if start != view.start or seq != view.seq + 1:
            missed = start != view.start and seq == 1
            if not missed:
                if now - view.asked < BUS_RENEW:
                    return False
                view.asked = now
                return True
            self._forget(node, view)
            view.start = start
        view.seq = seq
        until = now + BUS_LEASE
        renewed, gone = said["renew"], {_number(number) for number in said["gone"]}
        for number in gone:
            self._drop(node, view, number)
        for number in list(view.leases) if renewed is True else {_number(one) for one in renewed} & view.leases.keys():
            view.leases[number] = view.leases[number][0], until
        for line in said["add"]:
            self._put(node, view, line, until)
        for number in [number for number, (_, end) in view.leases.items() if end <= now]:
            self._drop(node, view, number)
        return False

    def _whole(self, node: bytes, view: _View, start: int, seq: int, said: Mapping[str, Any], now: float) -> None:
        part, of = _number(said["part"]), _number(said["of"])
        if not part < of <= PARTS or (start == view.start and seq < view.seq):
            return
        if part == 0:
            view.parts.clear()
        view.parts[part] = list(said["whole"])
        if len(view.parts) < of:
            return
        parts, view.parts = view.parts, {}
        self._forget(node, view)
        view.start, view.seq, view.asked = start, seq, -math.inf
        for place in range(of):
            for line in parts.get(place, ()):
                self._put(node, view, line, now + BUS_LEASE)

    def lost(self, node: bytes) -> None:
        """Take that a node is gone; it tells the whole when it is back."""
        view = self._others.pop(node, None)
        if view is not None:
            self._forget(node, view)

    def alive(self, now: float) -> frozenset[bytes]:
        """Give the other nodes that have spoken lately."""
        return frozenset(node for node, view in self._others.items() if now - view.heard < BUS_LEASE)

    def cut(self, now: float) -> None:
        """Take that nothing can be heard from now on: routes are kept for STALE."""
        if self._cut is None:
            self._cut = now

    def joined(self, now: float) -> None:
        """Take that news can be heard again; what is known counts as just told until it is told anew."""
        for view in self._others.values():
            view.asked = -math.inf
            for number, (presence, until) in list(view.leases.items()):
                if self._lives(until, now):
                    view.leases[number] = presence, max(until, now + BUS_LEASE)
        self._cut = None

    def lookup(self, host: str, now: float) -> tuple[Presence, ...]:
        """Give who is present for a host, on all nodes."""
        found = self._present.get(host)
        if found is None:
            return ()
        live = []
        for presence, generation in found.values():
            if presence.node == self.node:
                if self._ours[host, presence.subscription][1] > now:
                    live.append(presence)
            elif self._lives(self._others[presence.node].leases[generation][1], now):
                live.append(presence)
        return tuple(live)

    def _lives(self, until: float, now: float) -> bool:
        return until > now or (self._cut is not None and until > self._cut and now < self._cut + STALE)

    def _lapse(self, now: float) -> None:
        for lease, until in list(self._ours.values()):
            if until <= now:
                self._end(lease.presence)

    def _end(self, presence: Presence) -> None:
        standing = self._ours.pop((presence.host, presence.subscription), None)
        if standing is None:
            return
        self._unplace(presence)
        generation = standing[0].generation
        self._renewed.discard(generation)
        if self._add.pop(generation, None) is None:
            self._gone.append(generation)
        self._told = False

    def _put(self, node: bytes, view: _View, line: Any, until: float) -> None:
        host, subscription, weight, priority, generation, pool = line
        for number in (subscription, weight, priority, generation, pool):
            _number(number)
        if not isinstance(host, str) or len(view.leases) >= LEASES:
            raise ValueError(host)
        presence = Presence(host, node, subscription, weight, priority, pool)
        standing = self._present.get(host, {}).get((node, subscription))
        if standing is not None:
            if standing[1] > generation:
                return  # fenced out
            self._drop(node, view, standing[1])
        self._drop(node, view, generation)  # one lease of a number
        view.leases[generation] = presence, until
        self._place(presence, generation)

    def _drop(self, node: bytes, view: _View, generation: int) -> None:
        dropped = view.leases.pop(generation, None)
        if dropped is not None:
            self._unplace(dropped[0])

    def _forget(self, node: bytes, view: _View) -> None:
        for generation in list(view.leases):
            self._drop(node, view, generation)

    def _place(self, presence: Presence, generation: int) -> None:
        self._present.setdefault(presence.host, {})[presence.node, presence.subscription] = presence, generation

    def _unplace(self, presence: Presence) -> None:
        of_host = self._present[presence.host]
        del of_host[presence.node, presence.subscription]
        if not of_host:
            del self._present[presence.host]


def _line(lease: Lease) -> list[Any]:
    one = lease.presence
    return [one.host, one.subscription, one.weight, one.priority, lease.generation, one.pool]


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value
