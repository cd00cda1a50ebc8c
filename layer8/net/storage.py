"""Durable state: whole tables read at start, rows written as they change, everything else served from memory.

The interface is small on purpose. It knows tables, rows and keys, and no SQL: callers keep what they need in memory,
ask for each table once, and write rows in transactions. So a failing disk costs writes and never an answer, and
another database can stand behind the same four calls. The schema is the implementation's: for SQLite, scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from layer8.core.errors import StorageError

WRITES_WAITING = 1000  # transactions; past it writes are refused: a slow disk cannot fill the memory

Value = int | float | str | bytes | None
Row = Mapping[str, Value]


@frozen
class Put:
    """Insert a row, or update the one with the same key; columns that are not named keep their value or default."""

    table: str
    row: Row


@frozen
class Drop:
    """Delete every row whose columns have these values; an empty `where` empties the table."""

    table: str
    where: Row


Change = Put | Drop


class Storage(Protocol):
    """Where a daemon keeps what survives a restart. Every call can fail with `StorageError`."""

    def rows(self, table: str) -> list[dict[str, Value]]:
        """Read every row of a table, in no order. This waits for the disk: it is for the start, before listening."""

    def write(self, *changes: Change) -> Deferred[None]:
        """Make all the changes or none; calls take effect in order. Durable when this fires."""

    def backup(self, target: Path) -> Deferred[None]:
        """Write a consistent copy to a new private file."""

    def close(self) -> Deferred[None]:
        """Finish what was asked before, and let go; later calls fail."""


class Engine(Protocol):
    """A database whose calls wait: `rows` may be called in another thread than the others."""

    def rows(self, table: str) -> list[dict[str, Value]]:
        """Read every row of a table."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Make all the changes or none, durably."""

    def backup(self, target: Path) -> None:
        """Write a consistent copy."""

    def close(self) -> None:
        """Let go."""


@define(eq=False)
class ThreadedStorage:
    """A `Storage` that writes in one thread of its own, so that the reactor never waits for a disk.

    `report(ok, why)` hears on the reactor's thread how each write went: it fills the health row.
    """

    _reactor: IReactorFromThreads
    _engine: Engine
    _report: Callable[[bool, str], None] = field(default=lambda ok, why: None)
    _waiting: int = field(default=0, init=False)
    _closed: bool = field(default=False, init=False)
    _jobs: SimpleQueue[Callable[[], None] | None] = field(factory=SimpleQueue, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Start the thread; it is a daemon, because a transaction that is cut short does no harm."""
        Thread(target=self._work, name="storage", daemon=True).start()

    def rows(self, table: str) -> list[dict[str, Value]]:
        """Read every row of a table, waiting for the disk."""
        return self._engine.rows(table)

    def write(self, *changes: Change) -> Deferred[None]:
        """Make all the changes or none; they are durable when this fires."""
        return self._later(lambda: self._engine.apply(changes)).addCallbacks(self._wrote, self._did_not_write)

    def backup(self, target: Path) -> Deferred[None]:
        """Write a consistent copy to a new private file; writes wait meanwhile."""
        return self._later(lambda: self._engine.backup(target))

    def close(self) -> Deferred[None]:
        """Finish what was asked before, and end the thread."""
        done = self._later(self._engine.close)
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        return done

    def _later(self, job: Callable[[], None]) -> Deferred[None]:
        if self._closed or self._waiting >= WRITES_WAITING:
            why = "storage is closed" if self._closed else f"{WRITES_WAITING} writes wait for the disk already"
            return fail(StorageError(why))
        done: Deferred[None] = Deferred()  # cancelling forgets the answer, not the write

        def finished(error: Exception | None) -> None:
            self._waiting -= 1
            if error is None:
                done.callback(None)
            else:
                done.errback(error)

        def run() -> None:
            error = None
            try:
                job()
            except Exception as caught:  # whatever it is, it belongs to the one who waits
                error = caught
            self._reactor.callFromThread(finished, error)

        self._waiting += 1
        self._jobs.put(run)
        return done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _wrote(self, _: None) -> None:
        self._report(True, "")

    def _did_not_write(self, reason: Failure) -> Failure:
        if reason.check(StorageError):
            self._report(False, str(reason.value))
        return reason
