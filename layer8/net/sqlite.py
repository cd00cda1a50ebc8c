"""One SQLite file: opened privately, brought to its schema, written in whole transactions.

WAL with ``synchronous=FULL``: what a finished `apply` wrote is there after a crash of the process or the machine.
Every failure is a `StorageFailed` with one of a closed list of reasons, and leaves the file as it was before the call.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from layer8.core.errors import StorageError
from layer8.crypto.keyfile import OTHERS, make_private_folder
from layer8.net.storage import Change, Drop, Put, Row, Value

BUSY_SECONDS = 2.0  # how long another process may hold the file before a write fails as "locked"
LEAST_VERSION = (3, 35)  # of the library: an upsert that names no key

Reason = Literal["locked", "disk full", "read-only", "damaged", "disk error", "cannot be opened", "newer", "refused"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_REASONS: dict[int, Reason] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_FULL: "disk full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_PERM: "read-only",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_IOERR: "disk error",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
}


class StorageFailed(StorageError):
    """The file could not be read or written; `reason` is from a closed list."""

    def __init__(self, path: Path, reason: Reason, detail: str) -> None:
        """Say which file, why, and what SQLite or the system said."""
        super().__init__(f"{path}: {reason}: {detail}")
        self.reason = reason


class Database:
    """An open file at the schema that `migrations` lead to; an engine for `ThreadedStorage`."""

    def __init__(self, path: Path, migrations: Sequence[str], busy_seconds: float = BUSY_SECONDS) -> None:
        """Open or make the file; raises `StorageFailed`.

        `migrations` are SQL scripts, each run once and in order, whole or not at all; how many have run is the file's
        `user_version`. A script that was ever released is never changed: another one follows it.
        """
        self.path = path
        if sqlite3.sqlite_version_info < LEAST_VERSION:
            raise StorageFailed(path, "cannot be opened", f"SQLite {sqlite3.sqlite_version} is too old")
        _claim(path)
        with self._explained():
            self._connection = _connect(path, busy_seconds)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute("PRAGMA foreign_keys = ON")
                self._connection.execute("PRAGMA trusted_schema = OFF")
                self._connection.execute("PRAGMA secure_delete = ON")  # a dropped hash is gone from the file
                self._migrate(migrations)
                self._reader = _connect(path, busy_seconds)  # sees what is committed, never half a transaction
            except BaseException:
                self._connection.close()
                raise

    def rows(self, table: str) -> list[dict[str, Value]]:
        """Read a whole table."""
        with self._explained():
            cursor = self._reader.execute(f"SELECT * FROM {_name(table)}")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def apply(self, changes: Sequence[Change]) -> None:
        """Make all the changes, in order, or none of them; they are on the disk when this returns."""
        with self._explained(), self._transaction():
            for change in changes:
                match change:
                    case Put(table=table, row=row):
                        self._put(table, row)
                    case Drop(table=table, where=where):
                        clause = " AND ".join(f"{_name(column)} IS ?" for column in where) or "TRUE"
                        self._connection.execute(f"DELETE FROM {_name(table)} WHERE {clause}", tuple(where.values()))

    def backup(self, target: Path) -> None:
        """Write a compact copy to a new private file, which appears when it is complete."""
        make_private_folder(target.parent)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            if target.exists():
                raise FileExistsError(17, "File exists")
            _claim(draft)
            with self._explained():
                self._connection.execute("VACUUM INTO ?", (str(draft),))
            os.link(draft, target)  # unlike a rename, never replaces what somebody put there meanwhile
        except OSError as error:
            raise StorageFailed(target, "cannot be opened", error.strerror or str(error)) from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()

    def close(self) -> None:
        """Fold the WAL into the file and let it go."""
        with self._explained():
            self._reader.close()
            self._connection.close()

    def _put(self, table: str, row: Row) -> None:
        columns = [_name(column) for column in row]
        self._connection.execute(
            f"INSERT INTO {_name(table)} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            f" ON CONFLICT DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in columns)}",
            tuple(row.values()),
        )

    def _migrate(self, migrations: Sequence[str]) -> None:
        (done,) = self._connection.execute("PRAGMA user_version").fetchone()
        if done > len(migrations):
            raise StorageFailed(self.path, "newer", f"it was written by a newer version (schema {done})")
        for number, script in enumerate(migrations[done:], done + 1):
            try:
                self._connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT")
            except BaseException:
                self._roll_back()
                raise

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite ends it by itself when the disk is full
            self._connection.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0)
            raise StorageFailed(self.path, _REASONS.get(code & 0xFF, "refused"), str(error)) from error


def _name(name: str) -> str:
    """Pass a table's or column's name: ours are plain words, and nothing else gets into a statement."""
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is no name of a table or column")
    return name


def _connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    # opened at start by one thread, then written by another and by no other
    return sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)


def _claim(path: Path) -> None:
    """Make sure that the file exists and is ours alone; SQLite gives its WAL the same permissions."""
    make_private_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageFailed(path, "cannot be opened", error.strerror or str(error)) from error
    if mode & OTHERS:
        raise StorageFailed(path, "cannot be opened", f"others may read it (mode {mode:04o}); run: chmod 600 {path}")
