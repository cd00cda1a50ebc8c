r"""A session's conversation written down line by line, and checked while it is read.

::

    with Playbook(session) as book:
        book >> Received(b"HELLO\n") << Send(b"WELCOME\n")
        book >> Wait(10.0) << Tell(Idle()) << Close("idle")
        book >> Lost()

What goes in stands after ``>>``, what has to come out after ``<<``, in order. An effect that nobody wrote down fails at
the next ``>>`` or at the end of the block, so nothing passes unseen. ``Playbook(session, cut=1)`` feeds every byte by
itself: the same book has to hold. Sends in a row count as one, because a stream has no borders.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from attrs import define, field, frozen

from layer8.core.session import Effect, Send, Session


@frozen
class Received:
    """Bytes come from the peer."""

    data: bytes


@frozen
class Lost:
    """The connection is gone."""


@frozen
class Wait:
    """Time passes; the session is woken at each of its deadlines on the way."""

    seconds: float


@frozen
class Do:
    """Somebody on our side says something to the session: `words(session, now)`."""

    words: Callable[[Any, float], object]


@define(eq=False)
class Some:
    """Stands for any effect of a kind, and keeps it: ``tell = Some(Tell)`` and later ``tell.effect``."""

    kind: type
    effect: Any = field(default=None, init=False)


@define(eq=False)
class Playbook:
    """One session on a clock of its own; `cut` is the most bytes it gets at once."""

    session: Session
    cut: int | None = None
    now: float = 1000.0
    _out: list[Effect] = field(factory=list, init=False)

    def __enter__(self) -> Playbook:
        """Take what the session wants to do before anything has happened."""
        self._collect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Fail if effects are left, unless something has failed already."""
        if kind is None:
            self._nothing_left()

    def __rshift__(self, what: Received | Lost | Wait | Do) -> Playbook:
        """Let something happen."""
        self._nothing_left()
        match what:
            case Received(data=data):
                size = self.cut or max(len(data), 1)
                for start in range(0, len(data), size):
                    self.session.received(data[start : start + size], self.now)
                    self._collect()
            case Lost():
                self.session.lost(self.now)
            case Wait(seconds=seconds):
                self._wait(seconds)
            case Do(words=words):
                words(self.session, self.now)
        self._collect()
        return self

    def __lshift__(self, wanted: Effect | Some) -> Playbook:
        """Expect the next effect."""
        if not self._out:
            raise AssertionError(f"expected {wanted}, but the session asks for nothing")
        found = self._out.pop(0)
        if isinstance(wanted, Some):
            if not isinstance(found, wanted.kind):
                raise AssertionError(f"expected some {wanted.kind.__name__}, but the session asks for {found}")
            wanted.effect = found
        elif found != wanted:
            raise AssertionError(f"expected {wanted}, but the session asks for {found}")
        return self

    def _wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.session.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.session.wake(self.now)
            self._collect()
            again = self.session.deadline()
            if again is not None and again <= due:
                raise AssertionError(f"woken at {due}, the session wants to be woken at {again} again")
        self.now = until

    def _collect(self) -> None:
        for effect in self.session.effects():
            last = self._out[-1] if self._out else None
            if isinstance(effect, Send) and isinstance(last, Send):
                self._out[-1] = Send(last.data + effect.data)
            else:
                self._out.append(effect)

    def _nothing_left(self) -> None:
        if self._out:
            raise AssertionError(f"the session also asks for {', '.join(map(str, self._out))}")
