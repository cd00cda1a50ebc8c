"""Our own calls to a peer: ids, answers matched to them, and the time after which no answer is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from layer8.control.errors import NoCapacity
from layer8.control.jsonrpc import Id, encode_call

CALLS_OUT: Final = 64  # a peer runs no more at once


class Calls:
    """Calls that wait for an answer, at most CALLS_OUT; ids are integers from 1, never used twice."""

    __slots__ = ("_deadlines", "_next")

    def __init__(self) -> None:
        """Start with none."""
        self._next = 1
        self._deadlines: dict[Id, float] = {}

    def __len__(self) -> int:
        """Count those that wait."""
        return len(self._deadlines)

    def start(self, method: str, params: Mapping[str, Any], deadline: float, most: int) -> tuple[int, bytes]:
        """Give the id and the message of a new call that waits until `deadline` (monotonic seconds).

        Raises NoCapacity when too many wait, or when the message would be over `most` bytes.
        """
        if len(self._deadlines) >= CALLS_OUT:
            raise NoCapacity("CALLS_OPEN")
        ident = self._next
        message = encode_call(ident, method, params)
        if len(message) > most:
            raise NoCapacity("MESSAGE")
        self._next += 1
        self._deadlines[ident] = deadline
        return ident, message

    def answered(self, ident: Id) -> bool:
        """Take an answer's id; False if no call waits for it: it is late, or made up."""
        return self._deadlines.pop(ident, None) is not None

    def expired(self, now: float) -> list[Id]:
        """Take the ids of the calls whose time is over."""
        over = [ident for ident, deadline in self._deadlines.items() if deadline <= now]
        for ident in over:
            del self._deadlines[ident]
        return over

    def end(self) -> list[Id]:
        """Take all ids: there will be no answers."""
        left = list(self._deadlines)
        self._deadlines.clear()
        return left

    def deadline(self) -> float | None:
        """Give the time of the call that expires first."""
        return min(self._deadlines.values(), default=None)
