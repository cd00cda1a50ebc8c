"""A gateway's keys and marks in two SQLite files of one folder, which the workers of one machine share.

`keys.sqlite3` is written as durably as SQLite can: it holds the private keys, and the latest minute that had marks.
`replay.sqlite3` is written without waiting for the disk. It survives the end of every process; after the machine has
started anew, or if the file is damaged, its marks count as lost.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import RLock
from typing import Final

from layer8.core.errors import ConfigError, StorageError
from layer8.crypto.keyfile import OTHERS, make_private_folder
from layer8.tunnel.keystore import KeyRow, alone
from layer8.tunnel.replay import MINUTE
from layer8.tunnel.replay_store import dropped, risen

BUSY: Final = 2.0  # seconds that another worker may hold a file
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
KEYS: Final = "keys.sqlite3"
MARKS: Final = "replay.sqlite3"

_KEYS: Final = """
CREATE TABLE IF NOT EXISTS gateway (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS key (epoch INTEGER PRIMARY KEY, secret BLOB NOT NULL, document BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS replay
    (one INTEGER PRIMARY KEY CHECK (one = 1), latest INTEGER NOT NULL, lost_epoch INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO replay VALUES (1, 0, 0);
"""
_MARKS: Final = """
CREATE TABLE IF NOT EXISTS state
    (one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL, since INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS minute (of INTEGER PRIMARY KEY, size INTEGER NOT NULL) STRICT;
"""
_abandoned: Final[list[sqlite3.Connection]] = []
"""What a process has inherited: closing it here could end it for its owner."""


class _File:
    """One file, used by one thread at a time, opened anew in a forked process."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._path = path
        self._synchronous = synchronous
        self._lock = RLock()
        self._process = 0
        self._connection: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def use(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Give the connection, inside of a transaction for `write`; raises `StorageError`."""
        with self._lock, _explained(self._path):
            connection = self._opened()
            if not write:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def execute(self, statement: str, words: tuple[bytes, ...]) -> int:
        """Run one statement, as every request does; give how many rows it has changed. Raises `sqlite3.Error`."""
        with self._lock:
            return self._opened().execute(statement, words).rowcount

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        if self._connection is not None:
            _abandoned.append(self._connection)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if self._path.stat().st_mode & OTHERS:
            raise ConfigError(f"{self._path}: others may read it; run: chmod 600 {self._path}")
        made = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        made.execute("PRAGMA journal_mode = WAL")
        made.execute(f"PRAGMA synchronous = {self._synchronous}")
        made.execute("PRAGMA trusted_schema = OFF")
        made.execute("PRAGMA secure_delete = ON")
        self._connection, self._process = made, os.getpid()
        return made


class SqliteKeys:
    """The keys, and what of the marks has to be durable."""

    def __init__(self, folder: Path, gateway: str) -> None:
        """Open or make the file; raises `ConfigError` if it is another gateway's, or `StorageError`."""
        make_private_folder(folder)
        self.folder = folder
        self._file = _File(folder / KEYS, "FULL")
        with self._file.use() as connection:
            connection.executescript(_KEYS)
            connection.execute("INSERT OR IGNORE INTO gateway VALUES (1, ?)", (gateway,))
            (found,) = connection.execute("SELECT id FROM gateway").fetchone()
        if found != gateway:
            raise ConfigError(f"{folder}: holds the keys of another gateway, {found!r}: each has a folder of its own")

    def rows(self) -> list[KeyRow]:
        """Give all rows."""
        with self._file.use() as connection:
            return [KeyRow(*row) for row in connection.execute("SELECT epoch, secret, document FROM key")]

    def offer(self, row: KeyRow) -> KeyRow:
        """Insert a row unless its epoch has one."""
        with self._file.use(write=True) as connection:
            connection.execute("INSERT OR IGNORE INTO key VALUES (?, ?, ?)", (row.epoch, row.secret, row.document))
            found = connection.execute("SELECT epoch, secret, document FROM key WHERE epoch = ?", (row.epoch,))
            return KeyRow(*found.fetchone())

    def drop(self, *epochs: int) -> None:
        """Overwrite and delete rows, in the file and in its journal."""
        if not epochs:
            return
        with self._file.use(write=True) as connection:
            for epoch in epochs:
                connection.execute("UPDATE key SET secret = zeroblob(length(secret)) WHERE epoch = ?", (epoch,))
                connection.execute("DELETE FROM key WHERE epoch = ?", (epoch,))
        with self._file.use() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def latest(self) -> tuple[int, int]:
        """Give the latest minute that had marks, and the latest epoch of which marks without dates may be lost."""
        with self._file.use() as connection:
            latest, lost = connection.execute("SELECT latest, lost_epoch FROM replay").fetchone()
            return latest, lost

    def reached(self, minute: int) -> None:
        """Keep, durably, that a minute has marks."""
        with self._file.use(write=True) as connection:
            connection.execute("UPDATE replay SET latest = max(latest, ?)", (minute,))

    def lose(self) -> int:
        """Keep that marks may be lost; give the minute from which on none are."""
        with self._file.use(write=True) as connection:
            connection.execute(
                "UPDATE replay SET lost_epoch = max(lost_epoch, (SELECT ifnull(max(epoch), 0) FROM key))"
            )
        latest, _ = self.latest()
        return latest + MINUTE if latest else 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SqliteTables:
    """The marks, one table a minute."""

    quick = True

    def __init__(self, keys: SqliteKeys) -> None:
        """Open or make the file beside the keys'; raises `StorageError`."""
        self._keys = keys
        self._path = keys.folder / MARKS
        self._file = _File(self._path, "OFF")
        with alone(keys.folder):
            try:
                self._prepare()
            except StorageError:
                if not _damaged(self._path):
                    raise
                self._file.close()
                for name in (MARKS, f"{MARKS}-wal", f"{MARKS}-shm"):
                    (keys.folder / name).unlink(missing_ok=True)
                self._prepare()

    def since(self) -> int:
        """Give the first minute from which on nothing is missing."""
        with self._file.use() as connection:
            return _since(connection)

    def insert(self, table: str, mark: bytes) -> bool | None:
        """Insert a mark."""
        try:
            return self._file.execute(f"INSERT OR IGNORE INTO {table} VALUES (?)", (mark,)) == 1
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.OperationalError) and "no such table" in str(error):
                return None
            raise StorageError(f"{self._path}: {error}") from error

    def begin(self, of: int) -> int:
        """Make a minute's table."""
        self._keys.reached(of)
        with self._file.use(write=True) as connection:
            since = _since(connection)
            if of >= since:
                _make(connection, f"minute_{of}")
                connection.execute("INSERT OR IGNORE INTO minute VALUES (?, 0)", (of,))
            return since

    def begin_key(self, epoch: int) -> bool:
        """Make a key's table."""
        _, lost = self._keys.latest()
        if epoch <= lost:
            return False
        with self._file.use(write=True) as connection:
            _make(connection, f"key_{epoch}")
        return True

    def grew(self, sizes: Mapping[int, int], most: int, over: int) -> int:
        """Add to the sizes, and drop."""
        with self._file.use(write=True) as connection:
            for of, size in sizes.items():
                connection.execute("UPDATE minute SET size = size + ? WHERE of = ?", (size, of))
            found = dict(connection.execute("SELECT of, size FROM minute").fetchall())
            gone = dropped(found, most, over)
            since = risen(gone, _since(connection))
            if gone:
                connection.execute("UPDATE state SET since = ?", (since,))
            for of in gone:
                connection.execute(f"DROP TABLE IF EXISTS minute_{of}")
                connection.execute("DELETE FROM minute WHERE of = ?", (of,))
            return since

    def key_marks(self) -> int:
        """Count the marks without dates."""
        with self._file.use() as connection:
            tables = _tables(connection, "key_")
            return sum(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)

    def drop_key(self, epoch: int) -> None:
        """Drop a key's table."""
        with self._file.use(write=True) as connection:
            connection.execute(f"DROP TABLE IF EXISTS key_{epoch}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _prepare(self) -> None:
        """Make what is missing; after a new start of the machine nothing that is there counts."""
        boot = BOOT.read_text().strip() if BOOT.exists() else ""
        with self._file.use() as connection:
            connection.executescript(_MARKS)
            found = connection.execute("SELECT boot FROM state").fetchone()
            connection.execute("SELECT count(*) FROM minute").fetchone()
        if found is not None and found[0] == boot:
            return
        since = self._keys.lose()
        with self._file.use(write=True) as connection:
            for table in (*_tables(connection, "minute_"), *_tables(connection, "key_")):
                connection.execute(f"DROP TABLE {table}")
            connection.execute("DELETE FROM minute")
            connection.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?)", (boot, since))


def _make(connection: sqlite3.Connection, table: str) -> None:
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (mark BLOB PRIMARY KEY) WITHOUT ROWID, STRICT")


def _since(connection: sqlite3.Connection) -> int:
    (since,) = connection.execute("SELECT since FROM state").fetchone()
    return int(since)


def _tables(connection: sqlite3.Connection, start: str) -> list[str]:
    """Give the names of the tables that begin so, all of which are ours: a word and a number."""
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    return [name for (name,) in found if name.startswith(start) and name.removeprefix(start).isdigit()]


def _damaged(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone() != ("ok",))
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{path}: {error}") from error
