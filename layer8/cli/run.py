"""Running a coroutine on a reactor for the length of one command."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal, TypeVar

from layer8.core.errors import Layer8Error

T = TypeVar("T")


def show_log(level: Literal["debug", "info", "warn", "error"] = "debug") -> None:
    """Write this process's log, from that level on, to standard error."""
    from twisted.logger import globalLogBeginner

    from layer8.config.sections import LogConfig
    from layer8.net.logs import Logs

    globalLogBeginner.beginLoggingTo([Logs(LogConfig(level=level), os.environ)], redirectStandardIO=False)


def on_reactor(main: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run `main(reactor)` to its end and give its result or raise its error.

    Ctrl-C and SIGTERM cancel it and wait until it has cleaned up; then KeyboardInterrupt is raised. Once per process.
    """
    from twisted.internet import reactor
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    outcome: list[T | Failure] = []
    running: list[Deferred[T]] = []
    wheel: Any = reactor

    def end(result: T | Failure) -> None:
        outcome.append(result)
        with suppress(ReactorNotRunning):  # it stops already when this is the end of a cancelled task
            wheel.stop()

    def begin() -> None:
        task = Deferred.fromCoroutine(main(wheel))
        running.append(task)
        task.addBoth(end)

    def leave() -> Awaitable[object] | None:
        if outcome or not running:
            return None
        running[0].cancel()
        return running[0]

    wheel.addSystemEventTrigger("before", "shutdown", leave)
    wheel.callWhenRunning(begin)
    wheel.run()
    if not outcome:
        raise KeyboardInterrupt
    result = outcome[0]
    if not isinstance(result, Failure):
        return result
    if result.check(CancelledError):
        raise KeyboardInterrupt
    if isinstance(result.value, Layer8Error):
        raise result.value
    result.raiseException()
    raise AssertionError("raiseException raises")
