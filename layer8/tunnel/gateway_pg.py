"""A gateway's keys and marks in PostgreSQL, for workers of several machines; psycopg is the extra `postgres`.

The tables are in the schema `layer8`. Keys have a row for each gateway and epoch; marks are in unlogged tables, one a
minute, of all gateways that use the database. An unlogged row says that they are whole: PostgreSQL empties unlogged
tables when it has crashed, and then their marks count as lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, Final

import psycopg
from psycopg import sql

from layer8.core.errors import StorageError
from layer8.tunnel.keystore import KeyRow
from layer8.tunnel.replay import MINUTE
from layer8.tunnel.replay_store import dropped, risen

CONNECT_TIME: Final = 5  # seconds
STATEMENT_TIME: Final = 5  # seconds
IDLE: Final = 8  # connections that are kept
REASON: Final = 200  # characters of the database's words that we show
LOCK: Final = 0x6C61796572380006

_SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS layer8;
CREATE TABLE IF NOT EXISTS layer8.gateway_key (
    gateway text NOT NULL, epoch bigint NOT NULL, secret bytea NOT NULL, document bytea NOT NULL,
    PRIMARY KEY (gateway, epoch)
);
CREATE TABLE IF NOT EXISTS layer8.replay (
    one integer PRIMARY KEY CHECK (one = 1), since bigint NOT NULL, latest bigint NOT NULL, lost_epoch bigint NOT NULL
);
INSERT INTO layer8.replay VALUES (1, 0, 0, 0) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS layer8.replay_minute (of bigint PRIMARY KEY, size bigint NOT NULL);
CREATE UNLOGGED TABLE IF NOT EXISTS layer8.replay_whole (one integer PRIMARY KEY CHECK (one = 1));
"""


class Pool:
    """A few connections, each used by one thread at a time."""

    def __init__(self, conninfo: str) -> None:
        """Connect, and make what is missing; raises `StorageError`."""
        self._conninfo = conninfo
        self._lock = Lock()
        self._process = os.getpid()
        self._idle: list[Any] = []
        self._closed = False
        with self.use(write=True) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            connection.execute(_SCHEMA)
        self._check()

    @contextlib.contextmanager
    def use(self, *, write: bool = False) -> Iterator[Any]:
        """Give a connection, inside of a transaction for `write`; raises `StorageError`."""
        try:
            connection = self._take()
            try:
                if write:
                    with connection.transaction():
                        yield connection
                else:
                    yield connection
            except psycopg.Error:
                if connection.broken:
                    self._forget()  # the others are broken as well
                else:
                    self._give(connection)
                raise
            except BaseException:
                connection.close()
                raise
            self._give(connection)
        except psycopg.Error as error:
            words = " ".join(str(error).split())[:REASON]
            raise StorageError(f"PostgreSQL: {words or type(error).__name__}") from error

    def close(self) -> None:
        """Close all that are idle, and each of the others once it is."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        if self._process == os.getpid():
            for connection in idle:
                connection.close()

    def _take(self) -> Any:
        with self._lock:
            if self._process != os.getpid():  # what is inherited is its owner's
                _abandoned.extend(self._idle)
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        options = f"-c statement_timeout={STATEMENT_TIME}s -c synchronous_commit=on"
        try:
            made = psycopg.connect(
                self._conninfo,
                autocommit=True,
                connect_timeout=CONNECT_TIME,
                options=options,
                keepalives_idle=CONNECT_TIME,
                tcp_user_timeout=2000 * STATEMENT_TIME,
            )
        except psycopg.ProgrammingError:  # its words have a part of the string in them, and that may be the password
            raise StorageError("PostgreSQL: the connection string cannot be read") from None
        if made.execute("SELECT to_regclass('layer8.replay_whole')").fetchone() != (None,):
            _look(made)
        return made

    def _give(self, connection: Any) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < IDLE and not connection.broken:
                self._idle.append(connection)
                return
        connection.close()

    def _forget(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _check(self) -> None:
        with self.use() as connection:
            _look(connection)


class PgKeys:
    """The keys."""

    def __init__(self, conninfo: str, gateway: str) -> None:
        """Connect; raises `StorageError`."""
        self.pool = Pool(conninfo)
        self._gateway = gateway

    def rows(self) -> list[KeyRow]:
        """Give all rows."""
        with self.pool.use() as connection:
            found = connection.execute(
                "SELECT epoch, secret, document FROM layer8.gateway_key WHERE gateway = %s", (self._gateway,)
            )
            return [KeyRow(*row) for row in found.fetchall()]

    def offer(self, row: KeyRow) -> KeyRow:
        """Insert a row unless its epoch has one."""
        with self.pool.use(write=True) as connection:
            connection.execute(
                "INSERT INTO layer8.gateway_key VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (self._gateway, row.epoch, row.secret, row.document),
            )
        with self.pool.use() as connection:
            found = connection.execute(
                "SELECT epoch, secret, document FROM layer8.gateway_key WHERE gateway = %s AND epoch = %s",
                (self._gateway, row.epoch),
            ).fetchone()
        if found is None:
            raise StorageError("PostgreSQL: a key that was deleted at once")
        return KeyRow(*found)

    def drop(self, *epochs: int) -> None:
        """Overwrite and delete rows, and have the database let go of their old versions."""
        if not epochs:
            return
        with self.pool.use(write=True) as connection:
            where = "WHERE gateway = %s AND epoch = ANY(%s)"
            words = (self._gateway, list(epochs))
            connection.execute(f"UPDATE layer8.gateway_key SET secret = '' {where}", words)
            connection.execute(f"DELETE FROM layer8.gateway_key {where}", words)
        with self.pool.use() as connection:
            connection.execute("VACUUM layer8.gateway_key")

    def close(self) -> None:
        """Close the connections, also those of the marks."""
        self.pool.close()


class PgTables:
    """The marks, one table a minute."""

    quick = False

    def __init__(self, pool: Pool) -> None:
        """Share the connections of the keys."""
        self._pool = pool

    def since(self) -> int:
        """Give the first minute from which on nothing is missing."""
        with self._pool.use() as connection:
            return _since(connection)

    def insert(self, table: str, mark: bytes) -> bool | None:
        """Insert a mark."""
        statement = sql.SQL("INSERT INTO layer8.{} VALUES (%s) ON CONFLICT DO NOTHING").format(_name(table))
        with self._pool.use() as connection:
            try:
                return bool(connection.execute(statement, (mark,)).rowcount == 1)
            except psycopg.errors.UndefinedTable:
                return None

    def begin(self, of: int) -> int:
        """Make a minute's table."""
        with self._pool.use(write=True) as connection:
            since = _since(connection, lock=True)
            if of >= since:
                _make(connection, f"minute_{of}")
                connection.execute("INSERT INTO layer8.replay_minute VALUES (%s, 0) ON CONFLICT DO NOTHING", (of,))
                connection.execute("UPDATE layer8.replay SET latest = greatest(latest, %s)", (of,))
            return since

    def begin_key(self, epoch: int) -> bool:
        """Make a key's table."""
        with self._pool.use(write=True) as connection:
            _since(connection, lock=True)
            (lost,) = connection.execute("SELECT lost_epoch FROM layer8.replay").fetchone()
            if epoch > lost:
                _make(connection, f"key_{epoch}")
            return bool(epoch > lost)

    def grew(self, sizes: Mapping[int, int], most: int, over: int) -> int:
        """Add to the sizes, and drop."""
        with self._pool.use(write=True) as connection:
            since = _since(connection, lock=True)
            for of, size in sizes.items():
                connection.execute("UPDATE layer8.replay_minute SET size = size + %s WHERE of = %s", (size, of))
            found = dict(connection.execute("SELECT of, size FROM layer8.replay_minute").fetchall())
            gone = dropped(found, most, over)
            if gone:
                since = risen(gone, since)
                connection.execute("UPDATE layer8.replay SET since = %s", (since,))
                connection.execute("DELETE FROM layer8.replay_minute WHERE of = ANY(%s)", (gone,))
            for of in gone:
                connection.execute(sql.SQL("DROP TABLE IF EXISTS layer8.{}").format(_name(f"minute_{of}")))
            return since

    def key_marks(self) -> int:
        """Count the marks without dates."""
        with self._pool.use() as connection:
            tables = [table for table in _tables(connection) if table.startswith("replay_key_")]
            return sum(
                connection.execute(sql.SQL("SELECT count(*) FROM layer8.{}").format(sql.Identifier(table))).fetchone()[
                    0
                ]
                for table in tables
            )

    def drop_key(self, epoch: int) -> None:
        """Leave a key's table, which may be another gateway's too, until its time is over for all of them."""
        with self._pool.use(write=True) as connection:
            _since(connection, lock=True)
            used = connection.execute("SELECT 1 FROM layer8.gateway_key WHERE epoch = %s", (epoch,)).fetchone()
            if used is None:
                connection.execute(sql.SQL("DROP TABLE IF EXISTS layer8.{}").format(_name(f"key_{epoch}")))

    def close(self) -> None:
        """The keys have the connections."""


def _look(connection: Any) -> None:
    """See whether the marks are whole; after a crash of the database they are not, and none before now counts."""
    if connection.execute("SELECT 1 FROM layer8.replay_whole").fetchone() is not None:
        return
    with connection.transaction():
        _since(connection, lock=True)
        if connection.execute("SELECT 1 FROM layer8.replay_whole").fetchone() is not None:
            return
        connection.execute(
            "UPDATE layer8.replay SET since = greatest(since, CASE latest WHEN 0 THEN 0 ELSE latest + %s END),"
            " lost_epoch = (SELECT coalesce(max(epoch), 0) FROM layer8.gateway_key)",
            (MINUTE,),
        )
        for table in _tables(connection):
            connection.execute(sql.SQL("DROP TABLE layer8.{}").format(sql.Identifier(table)))
        connection.execute("DELETE FROM layer8.replay_minute")
        connection.execute("INSERT INTO layer8.replay_whole VALUES (1)")


def _since(connection: Any, *, lock: bool = False) -> int:
    (since,) = connection.execute(f"SELECT since FROM layer8.replay{' FOR UPDATE' if lock else ''}").fetchone()
    return int(since)


def _tables(connection: Any) -> list[str]:
    """Give the names of the tables of marks: a word and a number."""
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'layer8'").fetchall()
    starts = ("replay_minute_", "replay_key_")
    return [name for (name,) in found if any(name.removeprefix(start).isdigit() for start in starts)]


def _name(table: str) -> sql.Identifier:
    return sql.Identifier(f"replay_{table}")


def _make(connection: Any, table: str) -> None:
    connection.execute(
        sql.SQL("CREATE UNLOGGED TABLE IF NOT EXISTS layer8.{} (mark bytea PRIMARY KEY)").format(_name(table))
    )


_abandoned: Final[list[Any]] = []
