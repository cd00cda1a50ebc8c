"""Datagram sessions by the thousand on one clock: a network with delay, loss, and nodes that go.

::

    swarm = Swarm(Random(1))
    swarm.add(("10.0.0.1", 9000), session)
    swarm.run(lambda: bool(swarm.told), 60.0)

Time goes from one event to the next. What sessions `Tell` stands in `told`, with who told it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from attrs import define, field

from layer8.core.datagram import DatagramSession, Peer, SendTo
from layer8.core.session import Tell


@define(eq=False)
class Swarm:
    """See the module. `delay` are the least and the most seconds that a datagram is under way."""

    chance: Random
    delay: tuple[float, float] = (0.005, 0.05)
    loss: float = 0.0
    now: float = 1000.0
    nodes: dict[Peer, Any] = field(factory=dict, init=False)
    told: list[tuple[Peer, Any]] = field(factory=list, init=False)
    sent: int = field(default=0, init=False)
    watch: Callable[[Peer, Peer, bytes], None] | None = None  # sees every datagram
    _events: list[tuple[float, int, Peer, tuple[bytes, Peer] | None]] = field(factory=list, init=False)
    _wakes: dict[Peer, float] = field(factory=dict, init=False)
    _count: Any = field(factory=count, init=False)

    def add(self, peer: Peer, session: DatagramSession) -> None:
        """Put a session at an address and let it begin."""
        self.nodes[peer] = session
        self.carry_out(peer)

    def kill(self, peer: Peer) -> None:
        """Take one away, as a machine goes that is switched off."""
        del self.nodes[peer]
        self._wakes.pop(peer, None)

    def carry_out(self, peer: Peer) -> None:
        """Do what a session asks for; to be called after anything else has talked to it."""
        session = self.nodes[peer]
        for effect in session.effects():
            if isinstance(effect, SendTo):
                self._send(peer, effect)
            elif isinstance(effect, Tell):
                self.told.append((peer, effect.what))
        deadline = session.deadline()
        known = self._wakes.get(peer)
        if deadline is not None and (known is None or deadline < known):
            at = max(deadline, self.now)
            self._wakes[peer] = at
            heapq.heappush(self._events, (at, next(self._count), peer, None))

    def run(self, until: Callable[[], bool] = lambda: False, seconds: float = 60.0) -> bool:
        """Let things happen until `until` says so, or so much time has passed; gives what it said last."""
        end = self.now + seconds
        while not until():
            if not self._events or self._events[0][0] > end:
                self.now = end
                return until()
            self.now, _, peer, datagram = heapq.heappop(self._events)
            session = self.nodes.get(peer)
            if session is None:
                continue
            if datagram is not None:
                session.received(datagram[0], datagram[1], self.now)
            elif self._wakes.get(peer) == self.now:
                del self._wakes[peer]
                session.wake(self.now)
            else:
                continue  # that call has moved
            self.carry_out(peer)
        return True

    def _send(self, source: Peer, effect: SendTo) -> None:
        self.sent += 1
        if self.watch is not None:
            self.watch(source, effect.peer, effect.data)
        if self.loss and self.chance.random() < self.loss:
            return
        at = self.now + self.chance.uniform(*self.delay)
        heapq.heappush(self._events, (at, next(self._count), effect.peer, (effect.data, source)))
