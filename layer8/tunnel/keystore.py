"""Where a gateway's private keys are kept: in memory, in an SQLite file, or in PostgreSQL.

Workers share the table. Each offers a key for an epoch that has none; the first one that is inserted stays, and is
what `offer` gives to all of them. Calls may wait, and come from any thread and from forked processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Protocol

from attrs import field, frozen

from layer8.core.errors import StorageError
from layer8.crypto.keyfile import make_private_folder
from layer8.tunnel.keys import GatewayKey


@frozen
class KeyRow:
    """The keys of an epoch, `GatewayKey.dump`, and the signed set if the identity is elsewhere."""

    epoch: int
    secret: bytes = field(repr=False)
    document: bytes = b""

    @classmethod
    def of(cls, key: GatewayKey) -> KeyRow:
        """Take a key whose set is signed when it is asked for."""
        return cls(key.epoch, key.dump())


class KeyStore(Protocol):
    """The table; every call can fail with `StorageError`."""

    def rows(self) -> list[KeyRow]:
        """Give all rows, in no order."""

    def offer(self, row: KeyRow) -> KeyRow:
        """Insert a row unless its epoch has one; give the one that stands there now."""

    def drop(self, *epochs: int) -> None:
        """Overwrite and delete rows."""

    def close(self) -> None:
        """Let go."""


class MemoryKeys:
    """Keys that end with the process."""

    def __init__(self) -> None:
        """Begin with none."""
        self._rows: dict[int, KeyRow] = {}
        self._lock = Lock()

    def rows(self) -> list[KeyRow]:
        """Give all rows."""
        with self._lock:
            return list(self._rows.values())

    def offer(self, row: KeyRow) -> KeyRow:
        """Insert a row unless its epoch has one."""
        with self._lock:
            return self._rows.setdefault(row.epoch, row)

    def drop(self, *epochs: int) -> None:
        """Delete rows."""
        with self._lock:
            for epoch in epochs:
                self._rows.pop(epoch, None)

    def close(self) -> None:
        """Nothing is held."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time make what is missing in a folder; raises `StorageError`."""
    make_private_folder(folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
