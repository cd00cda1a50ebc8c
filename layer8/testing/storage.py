"""Storage for tests with no reactor: the same engines, written at once on the caller's thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import define
from twisted.internet.defer import Deferred, execute

from layer8.core.errors import StorageError
from layer8.net.storage import Change, Engine, Value


@define(eq=False)
class InlineStorage:
    """A `Storage` whose answers are there when its calls return; the storage tests run over it too."""

    _engine: Engine
    _closed: bool = False

    def rows(self, table: str) -> list[dict[str, Value]]:
        """Read every row of a table."""
        return self._engine.rows(table)

    def write(self, *changes: Change) -> Deferred[None]:
        """Make all the changes or none."""
        return self._now(lambda: self._engine.apply(changes))

    def backup(self, target: Path) -> Deferred[None]:
        """Write a consistent copy to a new private file."""
        return self._now(lambda: self._engine.backup(target))

    def close(self) -> Deferred[None]:
        """Let go; later calls fail."""
        done = self._now(self._engine.close)
        self._closed = True
        return done

    def _now(self, job: Callable[[], None]) -> Deferred[None]:
        def run() -> None:
            if self._closed:
                raise StorageError("storage is closed")
            job()

        return execute(run)
