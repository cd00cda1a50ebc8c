"""The coroutines of one service: kept while they run, cancelled when the service stops, never lost in silence."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.errors import Layer8Error, Unavailable

T = TypeVar("T")


@define(eq=False)
class TaskSet:
    """Coroutines by name; the one place where `Deferred.fromCoroutine` is called for a service."""

    log: Logger
    _running: dict[Deferred[Any], str] = field(factory=dict, init=False, repr=False)
    _empty: Deferred[None] | None = field(default=None, init=False, repr=False)
    _stopped: bool = field(default=False, init=False)

    def __len__(self) -> int:
        """Count the coroutines that run."""
        return len(self._running)

    def start(self, name: str, work: Coroutine[Any, Any, object]) -> None:
        """Run `work` until it ends or the set stops.

        An error on purpose (`Layer8Error`) is logged as a fact, any other with its traceback. After `stop`, `work` is
        closed without having begun.
        """
        if self._stopped:
            work.close()
            return
        task = self._keep(name, work)
        task.addErrback(self._failed, name)

    def run(self, name: str, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Run `work` and give its result to exactly one waiter, who also gets its errors.

        Cancelling what this returns cancels the work. After `stop` it fails with `Unavailable`.
        """
        if self._stopped:
            work.close()
            refused: Deferred[T] = Deferred()
            refused.errback(Failure(Unavailable(f"{name}: the service is stopping")))
            return refused
        return self._keep(name, work)

    def stop(self) -> Deferred[None]:
        """Cancel everything, and fire when the last coroutine has ended; what comes later is not begun."""
        self._stopped = True
        if self._empty is None:
            self._empty = Deferred()
            for task in list(self._running):
                task.cancel()
            self._check_empty()
        waiter: Deferred[None] = Deferred()
        self._empty.addCallback(lambda _: waiter.callback(None))
        return waiter

    def restart(self) -> None:
        """Take new work again, for a service that is started a second time; `stop` must have finished."""
        self._stopped, self._empty = False, None

    def _keep(self, name: str, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        task: Deferred[T] = Deferred.fromCoroutine(work)
        if not task.called:
            self._running[task] = name

            def ended(result: T) -> T:
                self._running.pop(task, None)
                self._check_empty()
                return result

            task.addBoth(ended)
        return task

    def _check_empty(self) -> None:
        if self._empty is not None and not self._running and not self._empty.called:
            self._empty.callback(None)

    def _failed(self, reason: Failure, name: str) -> None:
        if self._stopped and reason.check(CancelledError):
            return
        if reason.check(Layer8Error):
            self.log.info("task ended: {task}: {why}", event="task.ended", task=name, why=str(reason.value))
        else:
            self.log.failure("task failed: {task}", reason, event="task.failed", task=name)
