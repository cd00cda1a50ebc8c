"""Hosts whose agents were with a node that has died: their visitors wait a moment, for agents come back to another one.

An agent whose connection breaks dials again after half a second. Until then its host has nobody here, but that is no
reason to send visitors away who have only just come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from attrs import define, field

GRACE: Final = 8.0
"""Seconds that agents have to come back.

An agent's first wait is short, but its new connection may be in the queue of the worker that has died, and is taken
from there when that worker has been started again: a few seconds on a busy machine.
"""
WAITING: Final = 10_000
"""Visitors of all such hosts that may wait."""

Go = Callable[[], None]


@define(eq=False)
class Orphans:
    """See the module; `served` says whether a host has an agent now. Times are monotonic seconds."""

    served: Callable[[str], bool]
    _until: dict[str, float] = field(factory=dict, init=False)
    _waiting: dict[str, list[Go]] = field(factory=dict, init=False)
    _count: int = field(default=0, init=False)

    def __len__(self) -> int:
        """Count the visitors that wait."""
        return self._count

    def lost(self, hosts: Iterable[str], now: float, seconds: float = GRACE) -> None:
        """Take that a node has died that held subscriptions for these registered names."""
        for host in hosts:
            self._until[host] = now + seconds

    def keeps(self, host: str, go: Go) -> bool:
        """Keep a visitor if its host's agents may be on their way: `go` is called once, then or when it is too late."""
        if host not in self._until or self._count >= WAITING or self.served(host):
            return False
        self._waiting.setdefault(host, []).append(go)
        self._count += 1
        return True

    def found(self, host: str) -> None:
        """Take that a host has an agent again."""
        self._until.pop(host, None)
        waiting = self._waiting.pop(host, [])
        self._count -= len(waiting)
        for go in waiting:
            go()

    def tick(self, now: float) -> None:
        """Give up on those who have not come back."""
        for host in [host for host, until in self._until.items() if until <= now]:
            self.found(host)
