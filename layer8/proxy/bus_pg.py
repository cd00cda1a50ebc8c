"""Registrations in PostgreSQL, which several nodes share: written in its transactions, served from memory.

Writes are made one after the other (an advisory lock), and each gives what it touches the next serial, so that whoever
reads everything above the last serial he knows has missed nothing. A node overwrites only what it has seen: its last
version of a row has to stand there still. A name belongs to one owner because a unique index says so.

A connection of its own listens: a notification carries a serial, and what changed is read. While the database is gone
reading goes on from memory, writes fail with the reason, and it is tried again until it is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import psycopg
from attrs import define, field, frozen
from psycopg.conninfo import make_conninfo
from twisted.application.service import Service
from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.control.errors import Conflict
from layer8.core.errors import ConfigError, Layer8Error, StorageError
from layer8.net.tasks import TaskSet
from layer8.proxy.bus import Change, Gone, Put, Stop
from layer8.proxy.packed import pack, unpack
from layer8.proxy.registration import Ownership, Registration
from layer8.proxy.wire import Code, Denied

CHANNEL: Final = "layer8"
CONNECT_TIME: Final = 5  # seconds
STATEMENT_TIME: Final = 5  # seconds
ANSWER_TIME: Final = 10.0  # seconds for a transaction, however it fares
RETRY_LEAST, RETRY_MOST = 0.5, 10.0  # seconds between tries to connect
NODE_LIFE: Final = 86_400  # seconds after which a node that was not seen does not count
GONE_LIFE: Final = 7 * 86_400  # seconds that it is kept that a registration is gone
SEEN_AGAIN: Final = 3600.0  # seconds between signs of our own life
REASON: Final = 200  # characters of the database's words that we show
LOCK: Final = 0x6C61796572380001
SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS layer8;
CREATE SEQUENCE IF NOT EXISTS layer8.serial;
CREATE TABLE IF NOT EXISTS layer8.registration (
    host text NOT NULL, owner text NOT NULL, state text NOT NULL, version bigint NOT NULL, body jsonb NOT NULL,
    serial bigint NOT NULL, gone boolean NOT NULL DEFAULT false, at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, owner)
);
CREATE UNIQUE INDEX IF NOT EXISTS registration_taken ON layer8.registration (host)
    WHERE state <> 'pending' AND NOT gone;
CREATE UNIQUE INDEX IF NOT EXISTS registration_serial ON layer8.registration (serial);
CREATE TABLE IF NOT EXISTS layer8.node (
    id bytea PRIMARY KEY, key bytea NOT NULL, agents text NOT NULL DEFAULT '',
    seen timestamptz NOT NULL DEFAULT now()
);
"""

T = TypeVar("T")
Row = tuple[int, str, str, bool, Any]
"""A serial, host and owner, whether the registration is gone, and its JSON value."""


@frozen
class _Told:
    """What a transaction found: everything after the serial that was known, and why nothing was written."""

    rows: list[Row]
    error: Layer8Error | None = None


@define(eq=False)
class PgBook(Service):
    """The durable half of a bus; `report(ok, why)` fills a health row.

    `node`, `announcement` and `agents`, where agents connect, are ours. `members` is told all nodes with their keys
    whenever they change, and `urls` holds where the agents of each connect.
    """

    _log = Logger(namespace="layer8.proxy.bus")

    reactor: Any
    conninfo: str = field(repr=False)
    node: bytes = b""
    announcement: bytes = field(default=b"", repr=False)
    agents: str = ""
    members: Callable[[Mapping[bytes, bytes]], None] = field(default=lambda nodes: None)
    report: Callable[[bool, str], None] = field(default=lambda ok, why: None)
    urls: dict[bytes, str] = field(factory=dict, init=False)
    _rows: dict[tuple[str, str], Registration] = field(factory=dict, init=False)
    _serial: int = field(default=0, init=False)
    _watching: list[Callable[[Change], None]] = field(factory=list, init=False)
    _pool: Any = field(default=None, init=False)
    _ear: _Ear | None = field(default=None, init=False)
    _tasks: TaskSet = field(init=False)
    _again: IDelayedCall | None = field(default=None, init=False)
    _pause: float = field(default=RETRY_LEAST, init=False)
    _seen: IDelayedCall | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Read the connection string; raises `ConfigError`."""
        try:
            self.conninfo = make_conninfo(
                self.conninfo,
                connect_timeout=CONNECT_TIME,
                application_name="layer8",
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=15_000,
            )
        except psycopg.ProgrammingError:  # its words would quote the password
            raise ConfigError("proxy.database_file: it holds no PostgreSQL connection string") from None
        self._tasks = TaskSet(self._log)

    def open(self) -> None:
        """Make what is missing and read everything; waits for the database, so it is for the start.

        Raises `StorageError`.
        """
        try:
            with psycopg.connect(self.conninfo) as connection, connection.cursor() as cursor:
                _lock(cursor)
                cursor.execute("SELECT to_regclass('layer8.node')")
                if cursor.fetchone() == (None,):
                    cursor.execute(SCHEMA)
                if self.node:
                    _announce(cursor, self.node, self.announcement, self.agents)
                told, nodes = _since(cursor, 0), _nodes(cursor)
        except psycopg.Error as error:
            raise StorageError(f"PostgreSQL: {_words(error)}") from error
        self._take(_Told(told))
        self._take_nodes(nodes)

    def startService(self) -> None:
        """Begin to listen."""
        Service.startService(self)
        self._tasks.restart()
        self._pool = adbapi.ConnectionPool(
            "psycopg", self.conninfo, cp_min=1, cp_max=1, cp_noisy=False, cp_reactor=self.reactor, cp_openfun=_prepare
        )
        self._pool.connectionFactory = _Connection
        self._pool.start()
        self._listen()

    def stopService(self) -> Deferred[None]:
        """Let go of the database."""
        Service.stopService(self)
        for call in (self._again, self._seen):
            if call is not None and call.active():
                call.cancel()
        if self._ear is not None:
            self._ear.close()
            self._ear = None

        def close(_: None) -> None:
            self._cut()  # closing waits for the thread
            pool, self._pool = self._pool, None
            pool.close()

        return self._tasks.stop().addCallback(close)

    # As a part of a bus.

    async def register(self, row: Registration) -> None:
        """Write a registration or a claim; also raises `Conflict` if what we know of it is not what stands."""
        known = self._rows.get((row.host, row.owner))
        await self._write(_register, row, None if known is None else known.version)

    async def remove(self, row: Registration) -> None:
        """Strike a registration or a claim out; raises `Conflict` likewise."""
        known = self._rows.get((row.host, row.owner))
        await self._write(_remove, row, None if known is None else known.version)

    async def registrations(self, since: int = 0) -> tuple[Registration, ...]:
        """Give what stands and is newer than `since`."""
        return tuple(sorted((row for row in self._rows.values() if row.version > since), key=lambda row: row.version))

    def watch(self, told: Callable[[Change], None]) -> Stop:
        """Tell every change from now on."""
        self._watching.append(told)
        return lambda: self._watching.remove(told)

    def look_for_nodes(self) -> None:
        """Read the nodes again: somebody speaks whom we do not know."""
        self._tasks.start("nodes of the cluster", self._read_nodes())

    # The database.

    async def _run(self, what: Callable[..., T], *words: Any) -> T:
        """Run a transaction in the pool's thread; raises `StorageError`."""
        if self._pool is None:
            raise StorageError("PostgreSQL: not connected")
        given_up = False

        def run(cursor: Any) -> T:
            if given_up:
                raise psycopg.OperationalError("given up")
            return what(cursor, *words)

        try:
            running: Deferred[T] = self._pool.runInteraction(run)
            found = await running.addTimeout(ANSWER_TIME, self.reactor)
        except psycopg.Error as error:
            self.report(False, _words(error))
            raise StorageError(f"PostgreSQL: {_words(error)}") from error
        except TimeoutError:
            why, given_up = f"no answer within {ANSWER_TIME:g} s", True
            self._cut()
            self.report(False, why)
            raise StorageError(f"PostgreSQL: {why}") from None
        self.report(True, "")
        return found

    def _cut(self) -> None:
        """End the pooled connection, whose thread would wait for as long as the server says nothing."""
        for connection in list(self._pool.connections.values()):
            with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    async def _write(self, what: Callable[..., _Told], row: Registration, known: int | None) -> None:
        told = await self._run(what, row, known, self._serial)
        self._take(told)
        if told.error is not None:
            raise told.error

    def _take(self, told: _Told) -> None:
        """Let everything that a transaction found be true here, in its order."""
        for serial, host, owner, gone, body in told.rows:
            if serial <= self._serial:
                continue
            self._serial = serial
            if not gone:
                row = self._rows[host, owner] = unpack(body)
                self._tell(Put(row))
            elif (host, owner) in self._rows:
                self._tell(Gone(self._rows.pop((host, owner))))

    def _tell(self, change: Change) -> None:
        for told in list(self._watching):
            told(change)

    async def _read_news(self) -> None:
        self._take(_Told(await self._run(_since, self._serial)))

    async def _read_nodes(self) -> None:
        self._take_nodes(await self._run(_nodes))

    def _take_nodes(self, nodes: Mapping[bytes, tuple[bytes, str]]) -> None:
        self.urls = {node: url for node, (_, url) in nodes.items() if url and node != self.node}
        self.members({node: key for node, (key, _) in nodes.items()})

    async def _live(self) -> None:
        """Say that we are here, and hear who else is."""
        if self.node:
            await self._run(_announce, self.node, self.announcement, self.agents)
        await self._read_nodes()

    # The connection that listens.

    def _listen(self) -> None:
        self._again = None
        self._tasks.start("listening to PostgreSQL", self._start_listening())

    async def _start_listening(self) -> None:
        try:
            connection = await deferToThreadPool(self.reactor, self._pool.threadpool, self._connect)
        except psycopg.Error as error:
            self._lost(_words(error))
            return
        self._ear = _Ear(self.reactor, connection, self._heard, self._lost)
        try:  # what came before we could hear it
            await self._read_news()
            await self._live()
        except StorageError as error:
            if self._ear is not None:
                self._ear.close()
            self._lost(str(error))
            return
        self._pause = RETRY_LEAST
        self.report(True, "")
        self._live_again()

    def _connect(self) -> Any:
        connection = psycopg.connect(self.conninfo, autocommit=True)
        if not self.running:  # nobody waits for it any more
            connection.close()
            raise psycopg.OperationalError("stopped")
        connection.execute(f"LISTEN {CHANNEL}")
        return connection

    def _live_again(self) -> None:
        if self._seen is not None and self._seen.active():
            self._seen.cancel()
        self._seen = self.reactor.callLater(SEEN_AGAIN, self._alive)

    def _alive(self) -> None:
        self._tasks.start("a sign of life", self._live())
        self._live_again()

    def _heard(self, payloads: list[str]) -> None:
        if any(payload == "node" for payload in payloads):
            self.look_for_nodes()
        if any(payload.isdigit() and int(payload) > self._serial for payload in payloads):
            self._tasks.start("news from PostgreSQL", self._read_news())

    def _lost(self, why: str) -> None:
        self._ear = None
        if not self.running:
            return
        self.report(False, why)
        self._log.info("no database: {why}", event="database.lost", why=why)
        if self._again is None:
            self._again = self.reactor.callLater(self._pause, self._listen)
            self._pause = min(self._pause * 2, RETRY_MOST)


@implementer(IReadDescriptor)
class _Ear:
    """A connection that only listens, read by the reactor."""

    def __init__(
        self, reactor: Any, connection: Any, heard: Callable[[list[str]], None], lost: Callable[[str], None]
    ) -> None:
        self._reactor = reactor
        self._connection = connection
        self._heard = heard
        self._lost = lost
        self._fd = os.dup(connection.fileno())  # libpq closes its own when the server is gone, and tells nobody
        self._why = "the connection was lost"
        reactor.addReader(self)

    def fileno(self) -> int:
        """Give the socket."""
        return int(self._fd)

    def logPrefix(self) -> str:
        """Say who reads."""
        return "postgresql"

    def doRead(self) -> Any:
        """Take notifications; an error is the end of the connection."""
        raw, payloads = self._connection.pgconn, []
        try:
            raw.consume_input()
            while note := raw.notifies():
                payloads.append(note.extra.decode("utf-8", "replace"))
        except psycopg.Error as error:
            self._why = _words(error)
            return CONNECTION_LOST
        if payloads:
            self._heard(payloads)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """End: it broke, or the reactor stops."""
        if self._fd >= 0:
            self.close()
            self._lost(self._why)

    def close(self) -> None:
        """Let go."""
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1
            self._connection.close()


class _Connection(adbapi.Connection):
    """A pooled connection that is looked at before it is used, and given up in silence when it is gone."""

    def __init__(self, pool: Any) -> None:
        """Take the thread's connection, or open one."""
        self._pool: Any = pool
        self._connection: Any = None
        self._connection = pool.connect()
        try:
            self._connection.execute("SELECT 1")
        except psycopg.OperationalError:  # the server was restarted meanwhile
            self._pool.disconnect(self._connection)
            self._connection = self._pool.connect()

    def rollback(self) -> None:
        """Undo; a connection that cannot is opened anew next time."""
        try:
            self._connection.rollback()
        except psycopg.Error:
            self._pool.disconnect(self._connection)


def _prepare(connection: Any) -> None:
    connection.execute(f"SET statement_timeout = '{STATEMENT_TIME}s'")
    connection.commit()


def _lock(cursor: Any) -> None:
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))


def _since(cursor: Any, serial: int) -> list[Row]:
    cursor.execute(
        "SELECT serial, host, owner, gone, body FROM layer8.registration"
        " WHERE serial > %s AND (NOT gone OR %s > 0) ORDER BY serial",
        (serial, serial),
    )
    return list(cursor.fetchall())


def _nodes(cursor: Any) -> dict[bytes, tuple[bytes, str]]:
    cursor.execute(
        "SELECT id, key, agents FROM layer8.node WHERE seen > now() - make_interval(secs => %s)", (NODE_LIFE,)
    )
    return {bytes(node): (bytes(key), str(url)) for node, key, url in cursor.fetchall()}


def _announce(cursor: Any, node: bytes, key: bytes, agents: str) -> None:
    cursor.execute(
        "INSERT INTO layer8.node (id, key, agents) VALUES (%s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET key = excluded.key, agents = excluded.agents, seen = now()",
        (node, key, agents),
    )
    cursor.execute("SELECT pg_notify(%s, 'node')", (CHANNEL,))
    cursor.execute(
        "DELETE FROM layer8.registration WHERE gone AND at < now() - make_interval(secs => %s)", (GONE_LIFE,)
    )


def _standing(cursor: Any, row: Registration) -> int | None:
    cursor.execute(
        "SELECT version FROM layer8.registration WHERE host = %s AND owner = %s AND NOT gone", (row.host, row.owner)
    )
    found = cursor.fetchone()
    return None if found is None else int(found[0])


def _strike(cursor: Any, host: str, owner: str) -> None:
    cursor.execute(
        "UPDATE layer8.registration SET gone = true, body = '{}', at = now(), serial = nextval('layer8.serial')"
        " WHERE host = %s AND owner = %s",
        (host, owner),
    )


def _register(cursor: Any, row: Registration, known: int | None, serial: int) -> _Told:
    """Write a row in one transaction; see `PgBook.register`."""
    _lock(cursor)
    standing = _standing(cursor, row)
    if standing != known or (standing is not None and row.version <= standing):
        return _Told(_since(cursor, serial), Conflict(standing or 0))
    if row.state is not Ownership.PENDING:
        cursor.execute(
            "SELECT owner, state FROM layer8.registration WHERE host = %s AND state <> 'pending' AND NOT gone",
            (row.host,),
        )
        taken = cursor.fetchone()
        if taken is not None and taken[0] != row.owner:
            if taken[1] != Ownership.SUSPENDED.value:
                error = Denied(Code.ALREADY_REGISTERED, f"{row.host} is registered already")
                return _Told(_since(cursor, serial), error)
            _strike(cursor, row.host, taken[0])
    cursor.execute(
        "INSERT INTO layer8.registration (host, owner, state, version, body, serial)"
        " VALUES (%s, %s, %s, %s, %s, nextval('layer8.serial'))"
        " ON CONFLICT (host, owner) DO UPDATE SET state = excluded.state, version = excluded.version,"
        " body = excluded.body, serial = excluded.serial, gone = false, at = now()",
        (row.host, row.owner, row.state.value, row.version, json.dumps(pack(row))),
    )
    return _written(cursor, serial)


def _remove(cursor: Any, row: Registration, known: int | None, serial: int) -> _Told:
    """Strike a row out in one transaction; see `PgBook.remove`."""
    _lock(cursor)
    standing = _standing(cursor, row)
    if standing is None:
        return _Told(_since(cursor, serial))
    if standing != known:
        return _Told(_since(cursor, serial), Conflict(standing))
    _strike(cursor, row.host, row.owner)
    return _written(cursor, serial)


def _written(cursor: Any, serial: int) -> _Told:
    rows = _since(cursor, serial)
    cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(rows[-1][0])))
    return _Told(rows)


def _words(error: Exception) -> str:
    """Give the first line of what the database says; it never holds a password, which libpq keeps to itself."""
    return str(error).strip().partition("\n")[0][:REASON] or type(error).__name__
