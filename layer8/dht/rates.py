"""How many queries are answered, so many a second of one address, of its network, and in all; and where we are seen."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from attrs import define, field

from layer8.core.place import networks
from layer8.dht.limits import ERRORS, KRPC_IN, KRPC_IN_ALL, KRPC_IN_NEAR

VOTES: Final = 64  # networks that have said where we are seen


@define(eq=False)
class Votes:
    """Where we are, as others see us: each of their networks has one vote, its last one."""

    _by: OrderedDict[str, bytes] = field(factory=OrderedDict, init=False, repr=False)

    def add(self, host: str, outside: bytes) -> None:
        """Take the compact address that somebody says we have."""
        near = networks(host)[0]
        self._by[near] = outside
        self._by.move_to_end(near)
        while len(self._by) > VOTES:
            self._by.popitem(last=False)

    @property
    def most(self) -> bytes:
        """The address that most say; empty while nobody does."""
        votes = Counter(self._by.values())
        return votes.most_common(1)[0][0] if votes else b""


@define(eq=False)
class Rates:
    """Counts of the present second; `ruled` False: addresses do not count, since all are of one machine."""

    ruled: bool = True
    dropped: int = field(default=0, init=False)
    _second: int = field(default=0, init=False)
    _all: int = field(default=0, init=False)
    _by: Counter[str] = field(factory=Counter, init=False, repr=False)
    _errors: Counter[str] = field(factory=Counter, init=False, repr=False)

    def query(self, host: str, now: float) -> bool:
        """Count a query; False: it is dropped."""
        self._turn(now)
        near = networks(host)[0] if self.ruled else ""
        if self._all >= KRPC_IN_ALL or (self.ruled and (self._by[host] >= KRPC_IN or self._by[near] >= KRPC_IN_NEAR)):
            self.dropped += 1
            return False
        self._all += 1
        if self.ruled:
            self._by[host] += 1
            self._by[near] += 1
        return True

    def error(self, host: str, now: float) -> bool:
        """Count an error that would be told for what cannot be read; False: it is not."""
        self._turn(now)
        if self._errors[host] >= ERRORS or not self.query(host, now):
            return False
        self._errors[host] += 1
        return True

    def _turn(self, now: float) -> None:
        if int(now) != self._second:
            self._second, self._all = int(now), 0
            self._by.clear()
            self._errors.clear()
