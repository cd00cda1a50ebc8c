"""The rows about how a daemon is set up and what it writes down: `config.*` and `log.*`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from layer8.config.load import Changes, Loaded, diff, show
from layer8.config.problem import ConfigProblems
from layer8.control.access import Caller
from layer8.control.errors import CallRefused
from layer8.control.shape import member
from layer8.control.table import Event, Table, method
from layer8.core.errors import Layer8Error

TAIL_SIZE = 48 * 1024
"""Bytes of log lines in one answer: with the rest of the message they stay under MESSAGE."""

Level = Literal["debug", "info", "warn", "error", "critical"]


class LogLike(Protocol):
    """What `layer8.net.logs.Logs` offers."""

    def tail(self, level: str, namespace: str, lines: int) -> Sequence[Mapping[str, Any]]:
        """Give the last lines from that level on and at or below that namespace, oldest first."""

    def set_level(self, namespace: str, level: str, ttl: float) -> None:
        """Log a namespace from another level on for `ttl` seconds; 0 ends that."""

    def watch(self, watcher: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Call `watcher` with every line, until the function given back is called."""


class Configuration:
    """The configuration that runs, and how another one comes to run in its place."""

    def __init__(
        self,
        loaded: Loaded,
        read: Callable[[], Loaded],
        check: Callable[[str], Loaded],
        apply: Callable[[Loaded], Awaitable[None]],
    ) -> None:
        """Take what runs; `read` loads the same sources again, `check` a text, both raising ConfigProblems.

        `apply` opens what is new, switches over, and drops what is old; if it raises, nothing has changed.
        """
        self.loaded = loaded
        self.check = check
        self._read = read
        self._apply = apply
        self._waiting: list[Deferred[Changes]] = []
        self._running = False

    async def reload(self) -> Changes:
        """Read everything again and switch to it; one at a time, and a request that comes meanwhile starts another.

        Raises what went wrong; then the old configuration stands.
        """
        waiter: Deferred[Changes] = Deferred()
        self._waiting.append(waiter)
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._reload_all())
        return await waiter

    async def _reload_all(self) -> None:
        try:
            while self._waiting:
                waiters, self._waiting = self._waiting, []
                try:
                    fresh = self._read()
                    changes = diff(self.loaded.config, fresh.config)
                    await self._apply(fresh)
                    self.loaded = fresh
                except CancelledError:
                    raise
                except Exception:  # told to everybody who asked, as their answer
                    failure = Failure()
                    for waiter in waiters:
                        if not waiter.called:
                            waiter.errback(failure)
                else:
                    for waiter in waiters:
                        if not waiter.called:
                            waiter.callback(changes)
        finally:
            self._running = False


@frozen
class Value:
    """One key: its value, the kind of source that won, and where in it."""

    value: Any
    origin: str
    where: str


@frozen
class Values:
    """Every key by its dotted name, secrets hidden."""

    values: dict[str, Value]


@frozen
class Text:
    """A configuration file's text."""

    toml: str = member(most=32 * 1024)


@frozen
class Problem:
    """One thing to put right."""

    where: str
    key: str
    value: str
    reason: str


@frozen
class Reloaded:
    """Keys that changed, and those of them that wait for a restart."""

    changed: tuple[str, ...]
    restart_needed: tuple[str, ...]


@frozen
class Keys:
    """Dotted names of keys."""

    changed: tuple[str, ...]


@frozen
class Tail:
    """Which lines of the log: from a level on, at or below a namespace, at most so many."""

    level: Level = "info"
    namespace: str = member("", most=128)
    lines: int = member(100, least=1, most=1000)


@frozen
class Lines:
    """Log lines, oldest first, the newest being the last that there is; `cut` if older ones did not fit."""

    lines: tuple[Any, ...]
    cut: bool


@frozen
class SetLevel:
    """From which level on a namespace is logged, and for how long; 0 ends it."""

    namespace: str = member(least=1, most=128)
    level: Level = "info"
    ttl_s: float = member(600.0, least=0, most=86_400)


@frozen
class Line:
    """One line of the log."""

    line: dict[str, Any]


class Settings:
    """How this daemon is set up."""

    owns = ("config", "log")
    events = (Event("config.reloaded", Keys, role="operate"), Event("log.line", Line, role="operate"))

    def __init__(self, table: Table, configuration: Configuration, logs: LogLike) -> None:
        """Take the configuration and the log."""
        self._table = table
        self._configuration = configuration
        self._logs = logs
        self._unwatch: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to tell log lines to whoever subscribes."""
        self._unwatch = self._logs.watch(self._logged)

    def stop(self) -> None:
        """Tell no more."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    async def reload(self) -> Changes:
        """Reload for whatever asks for it, SIGHUP included, and tell which keys changed."""
        changes = await self._configuration.reload()
        self._table.publish("config.reloaded", Keys(changes.changed))
        return changes

    @method("config.show", role="admin")
    async def show(self, caller: Caller) -> Values:
        """Give every value and which source it came from; what is secret is hidden."""
        rows = show(self._configuration.loaded)
        return Values({key: Value(row["value"], str(row["origin"]), str(row["where"])) for key, row in rows.items()})

    @method("config.check", role="admin")
    async def check(self, caller: Caller, params: Text) -> tuple[Problem, ...]:
        """Check a configuration file's text as if it were read at a start; an empty list means it would do."""
        try:
            self._configuration.check(params.toml)
        except ConfigProblems as problems:
            found = problems.problems[:100]
            return tuple(Problem(row.origin.where, row.key, row.value, row.reason) for row in found)
        return ()

    @method("config.reload", role="admin")
    async def config_reload(self, caller: Caller) -> Reloaded:
        """Read the configuration again and switch to it, all of it or nothing."""
        changes = await self.reload()
        return Reloaded(changes.changed, changes.restart_needed)

    @method("log.tail", role="operate")
    async def tail(self, caller: Caller, params: Tail) -> Lines:
        """Give the last lines of the log."""
        kept: list[Mapping[str, Any]] = []
        size = 0
        rows = self._logs.tail(params.level, params.namespace, params.lines)
        for row in reversed(rows):
            size += len(json.dumps(row, default=str))
            if size > TAIL_SIZE:
                break
            kept.append(row)
        return Lines(tuple(reversed(kept)), len(kept) < len(rows))

    @method("log.level", role="operate")
    async def level(self, caller: Caller, params: SetLevel) -> None:
        """Log a namespace from another level on, for a while."""
        try:
            self._logs.set_level(params.namespace, params.level, params.ttl_s)
        except Layer8Error as error:
            raise CallRefused(str(error)) from None

    def _logged(self, row: dict[str, Any]) -> None:
        if self._table.wanted("log.line"):
            self._table.publish("log.line", Line(row))
