"""Circuits that stand up to the hop before the last, so that whoever is met next waits for one hop and not for four.

::

    circuit = ready.take(need)      one that fits, or None: then it has to be built
    ready.prepare(need)             build more of this kind, now that one was needed

Nothing is built of a kind that nobody has needed, and not before whoever has just needed one has had time to use it:
where the network is fast, a meeting waits for processors. One that nobody takes ends like any idle circuit (CIRC_IDLE);
those of a service (`kept`) stay as long as its circuits do. The last hop is whoever somebody else has named: it must
not be on the way already, so there is more than one to choose from.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from attrs import define, evolve, field

from layer8.relay.client import Circuit, Client, Need, Origin

READY: Final = 2  # of each kind
LATER: Final = 0.05  # seconds


@define(eq=False)
class Ready:
    """See the module."""

    _client: Client
    _circuits: dict[Need, list[Circuit]] = field(factory=dict, init=False, repr=False)  # by kind
    _building: dict[Need, int] = field(factory=dict, init=False)
    _due: dict[Need, Any] = field(factory=dict, init=False, repr=False)  # timers
    _stopped: bool = field(default=False, init=False)

    def take(self, need: Need) -> Circuit | None:
        """Give a circuit of this kind that has none of those nodes which must not be on it; it is the need's own."""
        there = self._there(_kind(need))
        fitting = (one for one in there if not any(node.identity in need.without for node in one.path))
        circuit = next(fitting, None)
        if circuit is not None:
            there.remove(circuit)
            now = self._client.pool.means.clock()
            circuit.need, circuit.first, circuit.last = need, now, now
        return circuit

    def prepare(self, need: Need) -> None:
        """Build what is missing of this kind, a little later."""
        kind = _kind(need)
        if kind not in self._due and not self._stopped:
            self._due[kind] = self._client.pool.means.later(LATER, partial(self._build, kind))

    def stop(self) -> None:
        """Build no more."""
        self._stopped = True
        due, self._due = self._due, {}
        for timer in due.values():
            timer.cancel()

    def _build(self, kind: Need) -> None:
        del self._due[kind]
        missing = READY - len(self._there(kind)) - self._building.get(kind, 0)
        for _ in range(missing):
            self._building[kind] = self._building.get(kind, 0) + 1
            self._client.pool.build(kind, partial(self._built, kind))

    def _there(self, kind: Need) -> list[Circuit]:
        """Forget those that have ended, or do not answer."""
        there = self._circuits.setdefault(kind, [])
        there[:] = [one for one in there if _good(one.origin)]
        return there

    def _built(self, kind: Need, circuit: Circuit | Exception) -> None:
        self._building[kind] -= 1
        if isinstance(circuit, Circuit):
            self._circuits.setdefault(kind, []).append(circuit)


def _kind(need: Need) -> Need:
    return evolve(need, without=frozenset())


def _good(origin: Origin) -> bool:
    return bool(origin.takes)
