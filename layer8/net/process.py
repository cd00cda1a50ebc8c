"""One daemon process: what `makeService` gives to twistd.

twistd asks the application for its log observer right after the service was attached to it, so `Process` puts ours
there: no line ever has twistd's own form, and nothing is written twice. An error on the way up ends the process with
one line on standard error and exit code 1. systemd is told what happens, SIGHUP reloads.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

from twisted.application.service import MultiService
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from layer8.core.errors import Layer8Error, Unavailable
from layer8.net.logs import Logs
from layer8.net.systemd import Notifier

_FLUSH = 1.0
"""Seconds between two flushes of the access log."""


@contextmanager
def listening(option: str, text: str) -> Iterator[None]:
    """Turn the failure to listen on `text` into one line that names the option, for example `--http`."""
    try:
        yield
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        raise Unavailable(f"cannot listen on {text}: {reason.lower()}; choose another with {option}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unavailable(f"cannot listen on {text}: {reason.lower()}; choose another with {option}") from error


@contextmanager
def or_exit(program: str) -> Iterator[None]:
    """End the process with one line and exit code 1 for what cannot work, while a service is put together."""
    try:
        yield
    except (Layer8Error, OSError) as error:
        complain(program, error)
        raise SystemExit(1) from None


def settle() -> None:
    """Keep what stands now from the garbage collector for good: a daemon has started, and all of it is needed.

    For a process of our own only; a library must not decide this for its host.
    """
    gc.collect()
    gc.freeze()


class Process(MultiService):
    """The outermost service: log, signals and systemd around one daemon's service."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        logs: Logs,
        environ: Mapping[str, str],
        *,
        reload: Callable[[], object] | None = None,
        ready: Callable[[], bool] = lambda: True,
        signals: bool = True,
    ) -> None:
        """Run as `name`; `reload` is called on SIGHUP and may give a Deferred, and READY is sent once `ready` says so.

        Without `signals`, SIGHUP is left alone.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.logs = logs
        self.program = name
        self._reactor = reactor
        self._notifier = Notifier(environ)
        self._reload = reload
        self._ready = ready
        self._signals = signals
        self._told = False
        self._loops: list[LoopingCall] = []

    def setServiceParent(self, parent: Any) -> None:
        """Become part of twistd's application, and its log observer."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.logs)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def privilegedStartService(self) -> None:
        """Start what needs rights; an error ends the process with one line."""
        with self._one_line():
            super().privilegedStartService()  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Start everything; an error ends the process with one line."""
        self.logs.announce()
        with self._one_line():
            super().startService()  # type: ignore[no-untyped-call]
        if self._signals:
            signal.signal(signal.SIGHUP, lambda _number, _frame: self._reactor.callFromThread(self.hangup))
        self._loop(_FLUSH, self._turn)
        if self._notifier.watchdog:
            self._loop(self._notifier.watchdog / 2, self._notifier.alive)
        self._reactor.callWhenRunning(self._turn)

    def _loop(self, seconds: float, what: Callable[[], None]) -> None:
        loop = LoopingCall(what)
        loop.clock = self._reactor
        loop.start(seconds, now=False)
        self._loops.append(loop)

    def _turn(self) -> None:
        self.logs.flush()
        if not self._told and self._ready():
            self._told = True
            self._notifier.ready()
            self._log.info("everything listens", event="process.ready")

    def stopService(self) -> Any:
        """Say that the end has begun, and stop everything."""
        self._notifier.stopping()
        self._log.info("stopping", event="process.stopping")
        for loop in self._loops:
            loop.stop()
        self._loops.clear()
        stopped = super().stopService()  # type: ignore[no-untyped-call]
        self.logs.flush()
        return stopped

    def hangup(self) -> None:
        """Open the log files anew and reload, as SIGHUP asks; the reload may end later."""
        self.logs.reopen()
        if self._reload is not None:
            self._notifier.reloading()
            maybeDeferred(self._reload).addErrback(self._reload_failed).addBoth(lambda _: self._notifier.ready())

    def _reload_failed(self, reason: Failure) -> None:
        self._log.failure("a reload failed", reason, event="process.reload_failed")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._notifier.status(text)

    def fail(self, error: BaseException) -> None:
        """End a running process with one line on standard error and exit code 1, for errors that come late."""
        self.logs.flush()
        complain(self.program, error)
        # twistd itself always ends with 0 after a run; this is the last thing the interpreter does.
        atexit.register(_exit_failed)
        self._reactor.stop()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (Layer8Error, CannotListenError, OSError) as error:
            # twistd removes its pid file and passes the exception on; the interpreter then asks this hook to show it.
            known = error
            usual = sys.excepthook

            def show(kind: type[BaseException], shown: BaseException, trace: TracebackType | None) -> None:
                if shown is known:
                    complain(self.program, shown)
                else:
                    usual(kind, shown, trace)

            sys.excepthook = show
            raise


def complain(program: str, error: BaseException) -> None:
    """Write what went wrong as lines on the real standard error, which twistd hides."""
    if isinstance(error, OSError) and not isinstance(error, CannotListenError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    else:
        text = str(error)
    lines = "".join(f"{program}: {line}\n" for line in text.splitlines())
    os.write(2, lines.encode(errors="backslashreplace"))


def _exit_failed() -> NoReturn:
    os._exit(1)
