"""Callers for tests of methods: a peer that keeps what it was told, and a way to run a method without a reactor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from attrs import define, field

from layer8.control.access import EVERYTHING, Caller, Peer

T = TypeVar("T")


@define(eq=False)
class KeptPeer:
    """A connection whose notifications are kept; `full` is its write buffer."""

    slots: dict[str, object] = field(factory=dict)
    told: list[tuple[str, Mapping[str, Any]]] = field(factory=list)
    full: bool = False
    roles: set[str] = field(factory=set)
    name: str = ""
    closed: str | None = None
    _callbacks: list[Callable[[], None]] = field(factory=list)

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        if self.full or self.closed is not None:
            return False
        self.told.append((method, params))
        return True

    def when_lost(self, callback: Callable[[], None]) -> None:
        if self.closed is not None:
            callback()
        else:
            self._callbacks.append(callback)

    def grant(self, role: str) -> None:
        self.roles.add(role)

    def become(self, name: str, roles: frozenset[str], hosts: tuple[str, ...]) -> None:
        self.name = name
        self.roles = set(roles)

    def close(self, reason: str) -> None:
        self.closed = reason
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def caller(*roles: str, ceiling: frozenset[str] = EVERYTHING, private: bool = True, peer: Peer | None = None) -> Caller:
    """A caller whose proof gave these roles."""
    return Caller(
        name="tester",
        roles=frozenset(roles),
        ceiling=ceiling,
        private=private,
        address="192.0.2.1",
        hosts=(),
        peer=KeptPeer() if peer is None else peer,
    )


def run(method: Coroutine[Any, Any, T]) -> T:
    """Run a method that waits for nothing, and give its result."""
    try:
        method.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    method.close()
    raise AssertionError("the method waits for something")
