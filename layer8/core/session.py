"""The contract of every protocol session: bytes and time in, effects out.

A session is a pure object. Its owner hands it what happened and then carries out what it asks for::

    session.received(data, now)      bytes arrived (an empty `data` never means the end)
    session.lost(now)                the connection is gone, for whatever reason
    session.wake(now)                the time of `deadline()` has come
    session.effects()                what to do now, in order; each effect is handed out once
    session.deadline()               when to call `wake`, or None

`now` is monotonic seconds. A session never raises for anything a peer can send: it asks for a `Close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen


@frozen
class Send:
    """Write these bytes to the peer, after all that was sent before."""

    data: bytes


@frozen
class Close:
    """End the connection: after what was sent has left, or at once with a reset if `abort`.

    `reason` is a word from the protocol's closed list; it is logged, never sent.
    """

    reason: str
    abort: bool = False


@frozen
class Dial:
    """Open a connection to an endpoint string; the answer comes back under `key`."""

    key: int
    address: str


@frozen
class Join:
    """Connect this connection's bytes with those of `key`; the session's work is done.

    `first` are the bytes that this session has read and that belong to the other side.
    """

    key: int
    first: bytes = b""


@frozen
class Tell:
    """Something the owner wants to know; `what` is one of the protocol's own frozen events."""

    what: object


Effect = Send | Close | Dial | Join | Tell


class Session(Protocol):
    """One conversation's state; see the module for the meaning of the five words."""

    def received(self, data: bytes, now: float) -> None:
        """Take bytes from the peer, cut anywhere."""

    def lost(self, now: float) -> None:
        """Take the end of the connection; nothing is sent afterwards."""

    def wake(self, now: float) -> None:
        """Take the arrival of `deadline()`; early or repeated calls do nothing."""

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done and forget it."""

    def deadline(self) -> float | None:
        """Give the monotonic second at which `wake` wants to be called."""


class Outbox:
    """The effects that a session has asked for and that nobody has taken yet."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._waiting: list[Effect] = []

    def add(self, *effects: Effect) -> None:
        """Ask for more, after what was asked for before."""
        self._waiting.extend(effects)

    def take(self) -> Sequence[Effect]:
        """Give all of it, in order, and forget it."""
        taken, self._waiting = self._waiting, []
        return taken
