"""What a hidden service knows again after a restart: its points with their keys, and whatever must not be good twice.

::

    storage = ThreadedStorage(reactor, Database(folder / "hidden.db", SCHEMA))     one for all services of a node
    memory = ServiceMemory(storage, key.node_id)
    HiddenService(..., memory=memory)

Sessions and half-done introductions are not written: a crash loses those and nothing else. An introduction is answered
once it is known here that its blob and its work have come, so whoever kept them cannot use them after a crash. A disk
that fails costs that promise and no answer; who has opened the storage is told of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from os import urandom
from typing import Final

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from layer8.core.errors import StorageError
from layer8.crypto.curtain import COOKIE
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import OnionKey
from layer8.net.storage import Change, Drop, Put, Storage, Value
from layer8.relay.client import Hop

MARK: Final = 8  # bytes of a blob that tell it from others
CLIENT: Final = 32  # bytes of a client's key

SCHEMA: Final = (
    """
    CREATE TABLE services (
        service BLOB NOT NULL PRIMARY KEY, seq INTEGER NOT NULL, cookie BLOB NOT NULL, clients BLOB NOT NULL,
        effort INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE points (
        auth_key BLOB NOT NULL PRIMARY KEY, service BLOB NOT NULL, auth BLOB NOT NULL, enc BLOB NOT NULL,
        node BLOB NOT NULL, onion_key BLOB NOT NULL, endpoint TEXT NOT NULL, since REAL NOT NULL,
        introductions INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE blobs (auth_key BLOB NOT NULL, mark BLOB NOT NULL, PRIMARY KEY (auth_key, mark)) WITHOUT ROWID;
    CREATE TABLE seeds (
        service BLOB NOT NULL, seed BLOB NOT NULL, until REAL NOT NULL, PRIMARY KEY (service, seed)
    ) WITHOUT ROWID;
    CREATE TABLE nonces (seed BLOB NOT NULL, nonce BLOB NOT NULL, PRIMARY KEY (seed, nonce)) WITHOUT ROWID;
    """,
)  # one script for each version of the schema


@frozen
class KeptPoint:
    """An access point that a service had; `since` are seconds since 1970."""

    hop: Hop
    auth: NodeKey
    enc: OnionKey
    since: float
    introductions: int
    blobs: tuple[bytes, ...] = field(default=(), repr=False)  # the marks of those that have come


@frozen
class KeptSeed:
    """A seed of work, and the solutions that were brought; `until` are seconds since 1970."""

    seed: bytes = field(repr=False)
    until: float
    nonces: tuple[bytes, ...] = field(default=(), repr=False)


@define(eq=False)
class ServiceMemory:
    """One service's part of a storage that was opened with SCHEMA; making it waits for the disk, and may raise."""

    _storage: Storage
    _service: bytes
    seq: int = field(default=0, init=False)  # of what was published last
    effort: int = field(default=0, init=False)
    points: tuple[KeptPoint, ...] = field(default=(), init=False)
    seeds: tuple[KeptSeed, ...] = field(default=(), init=False)  # the newest first
    failed: int = field(default=0, init=False)  # writes
    _cookie: bytes = field(default=b"", init=False, repr=False)
    _clients: frozenset[bytes] = field(default=frozenset(), init=False, repr=False)
    _held: set[bytes] = field(factory=set, init=False, repr=False)  # auth keys of points that are remembered
    _batch: list[Change] = field(factory=list, init=False, repr=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False, repr=False)
    _writing: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        """Read what belongs to this service."""
        rows = self._storage.rows
        for row in _of(rows("services"), self._service):
            self.seq, self.effort = int(_real(row["seq"])), int(_real(row["effort"]))
            self._cookie, keys = _blob(row["cookie"]), _blob(row["clients"])
            self._clients = frozenset(keys[at : at + CLIENT] for at in range(0, len(keys), CLIENT))
        blobs, nonces = _grouped(rows("blobs"), "auth_key", "mark"), _grouped(rows("nonces"), "seed", "nonce")
        self.points = tuple(
            KeptPoint(
                Hop(_blob(row["node"]), _blob(row["onion_key"]), (str(row["endpoint"]),)),
                NodeKey.from_seed(_blob(row["auth"])),
                OnionKey.from_private(_blob(row["enc"])),
                _real(row["since"]),
                int(_real(row["introductions"])),
                tuple(blobs.get(_blob(row["auth_key"]), ())),
            )
            for row in sorted(_of(rows("points"), self._service), key=lambda one: _real(one["since"]))
        )
        self._held.update(one.auth.node_id for one in self.points)
        self.seeds = tuple(
            KeptSeed(_blob(row["seed"]), _real(row["until"]), tuple(nonces.get(_blob(row["seed"]), ())))
            for row in sorted(_of(rows("seeds"), self._service), key=lambda one: -_real(one["until"]))
        )

    def keep_seq(self, seq: int) -> None:
        """Remember what is published now."""
        self.seq = seq
        self._write(self._row())

    def cookie_for(self, clients: Collection[bytes]) -> bytes:
        """Give the cookie of these clients: the old one, unless one of those who had it is not to come any more."""
        wanted = frozenset(clients)
        fresh = not self._cookie or bool(self._clients - wanted)
        if fresh:
            self._cookie = urandom(COOKIE)
        if fresh or wanted != self._clients:
            self._clients = wanted
            self._write(self._row())
        return self._cookie

    def keep_point(self, point: KeptPoint) -> None:
        """Remember a point, or how often somebody has come by it."""
        self._held.add(point.auth.node_id)
        self._write(self._point(point))

    def drop_point(self, auth_key: bytes) -> None:
        """Forget a point: its keys are of no use any more."""
        self._held.discard(auth_key)
        self._write(Drop("points", {"auth_key": auth_key}), Drop("blobs", {"auth_key": auth_key}))

    def keep_seeds(self, effort: int, seeds: Iterable[tuple[bytes, float]]) -> None:
        """Remember what work is asked for, and the seeds that it is good for, each until a second since 1970."""
        before = {one.seed for one in self.seeds}
        self.seeds = tuple(KeptSeed(seed, until) for seed, until in seeds)
        changes: list[Change] = [
            Put("seeds", {"service": self._service, "seed": one.seed, "until": one.until}) for one in self.seeds
        ]
        for seed in before - {one.seed for one in self.seeds}:
            changes += [Drop("seeds", {"service": self._service, "seed": seed}), Drop("nonces", {"seed": seed})]
        self.effort = effort
        self._write(self._row(), *changes)

    def came(self, point: KeptPoint, mark: bytes, solved: tuple[bytes, bytes] | None) -> Deferred[None]:
        """Remember a blob, and a seed and nonce that came with it; fires when that is written, or could not be."""
        auth_key = point.auth.node_id
        if auth_key in self._held:
            self._batch += [self._point(point), Put("blobs", {"auth_key": auth_key, "mark": mark[:MARK]})]
        if solved is not None:
            self._batch.append(Put("nonces", {"seed": solved[0], "nonce": solved[1]}))
        waiting: Deferred[None] = Deferred()
        if not self._batch:
            waiting.callback(None)
            return waiting
        self._waiting.append(waiting)
        self._flush()
        return waiting

    def forget(self) -> None:
        """Forget everything of this service."""
        changes: list[Change] = [Drop(table, {"service": self._service}) for table in ("services", "points", "seeds")]
        changes += [Drop("blobs", {"auth_key": auth_key}) for auth_key in self._held]
        self._held.clear()
        changes += [Drop("nonces", {"seed": one.seed}) for one in self.seeds]
        self._write(*changes)

    def _row(self) -> Put:
        clients = b"".join(sorted(self._clients))
        row: dict[str, Value] = {"service": self._service, "seq": self.seq, "cookie": self._cookie, "clients": clients}
        return Put("services", {**row, "effort": self.effort})

    def _point(self, point: KeptPoint) -> Put:
        hop = point.hop
        return Put(
            "points",
            {
                "auth_key": point.auth.node_id,
                "service": self._service,
                "auth": point.auth.seed,
                "enc": point.enc.private,
                "node": hop.identity,
                "onion_key": hop.onion_key,
                "endpoint": hop.endpoints[0],
                "since": point.since,
                "introductions": point.introductions,
            },
        )

    def _flush(self) -> None:
        """Write what has gathered while the last was written: many at once cost what one does."""
        if self._writing or not self._batch:
            return
        self._writing = True
        changes, self._batch = self._batch, []
        waiting, self._waiting = self._waiting, []

        def done(_: object) -> None:
            self._writing = False
            for one in waiting:
                if not one.called:
                    one.callback(None)
            self._flush()

        self._write(*changes).addBoth(done)

    def _write(self, *changes: Change) -> Deferred[None]:
        return self._storage.write(*changes).addErrback(self._did_not)

    def _did_not(self, reason: Failure) -> None:
        reason.trap(StorageError)
        self.failed += 1


def _of(rows: Iterable[dict[str, Value]], service: bytes) -> list[dict[str, Value]]:
    return [row for row in rows if row["service"] == service]


def _grouped(rows: Iterable[Mapping[str, Value]], key: str, value: str) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for row in rows:
        found.setdefault(_blob(row[key]), []).append(_blob(row[value]))
    return found


def _blob(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""


def _real(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
