"""A gateway without a network: its keys, its replay set and its counts, for whatever carries the bytes.

Nothing here belongs to a reactor, and everything may be called from any thread. Who has no reactor calls all of it as
it comes; who has one calls what may wait (`upkeep`, `reload`, `rotate`, and `remember` unless `quick`) in a thread::

    gateway = Gateway.open(Settings(gateway="shop", authorities=["shop.example"], state="/var/lib/shop"))
    if gateway.due():                      # cheap; true about once a minute
        gateway.upkeep()                   # may wait
    exchange = gateway.exchange(content_type, now)      # None: answer 415
    if gateway.lacks(body[0]):             # the first byte of the body names a key that another worker may have made
        gateway.reload()                   # may wait
    exchange.received(body, now)
    for effect in exchange.effects():      # Send, Close, Tell(Reply | Remember | Call | Body | Whole | Broken | ...)
        if isinstance(effect, Tell) and isinstance(effect.what, Remember):
            exchange.remembered(gateway.remember(effect.what), now)        # may wait unless gateway.quick
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hmac import compare_digest
from threading import Lock
from typing import Any, Final

from attrs import frozen

from layer8.core.errors import ConfigError, StorageError, Unavailable
from layer8.crypto.keyfile import read_private
from layer8.crypto.keys import NodeKey
from layer8.tunnel import wire
from layer8.tunnel.bhttp import Fields
from layer8.tunnel.gateway_session import RANDOM, GatewayExchange, Remember, Reply, Rules
from layer8.tunnel.keys import CACHED, HOUR, OFFERED, OPENED, GatewayKey, Schedule, own_hour, pin_text
from layer8.tunnel.keystore import KeyRow, KeyStore, MemoryKeys, alone
from layer8.tunnel.limits import SOCKET_SESSIONS
from layer8.tunnel.replay import Verdict
from layer8.tunnel.replay_store import MemoryMarks, ReplayStore, TableMarks
from layer8.tunnel.settings import Settings, read_bearers
from layer8.tunnel.signed import read_signed, set_of
from layer8.tunnel.socket_session import GatewaySocket
from layer8.tunnel.wire import MEDIA

IDENTITY: Final = "identity.pem"  # in a state folder
UPKEEP: Final = 60.0  # seconds between two looks at what the other workers have done
SIGNED_MOST: Final = 1 << 20  # bytes of a `signed_file`
RELOAD: Final = 1.0  # seconds between two looks that requests under one id have given cause for


def seconds() -> float:
    """Give the time of day, in seconds since 1970."""
    return datetime.now(UTC).timestamp()


class Outcome(StrEnum):
    """What is counted; by the gateway itself where it says so, else by whoever carries the bytes (`count`)."""

    EXCHANGE = "exchange"  # begun; by the gateway
    MEDIA = "media"  # 415; by the gateway
    OPENED = "opened"  # opened, dated and new; by the gateway
    REPEAT = "repeat"  # 425 under seal; by the gateway
    DATE = "date"  # a date that does not count; by the gateway, where the replay set says so
    UNKNOWN_KEY = "unknown_key"  # by `refused`
    REFUSED = "refused"  # any other answer in the clear; by `refused`
    BROKEN = "broken"  # a request that did not become whole
    FAILED = "failed"  # the backend gave no answer
    ANSWERED = "answered"  # an answer was sealed to its end
    SOCKET = "socket"  # begun; by the gateway
    SOCKET_FULL = "socket_full"  # over SOCKET_SESSIONS; by the gateway
    DIRECT = "direct"  # a request past the tunnel to a path under `require`


@frozen
class KeyState:
    """A key that still opens requests, as operators see it; times are seconds since 1970."""

    epoch: int
    key_id: int
    offered: bool
    made: int
    offered_until: int
    good_until: int
    opened_until: int


class Gateway:
    """See the module; made by `open`."""

    def __init__(
        self,
        settings: Settings,
        identity: NodeKey | None,
        keys: KeyStore,
        marks: ReplayStore,
        wall: Callable[[], float] = seconds,
    ) -> None:
        """Put one together and look for its keys; raises `StorageError`."""
        self.settings = settings
        self.identity = identity
        self._keys = keys
        self._marks = marks
        self._wall = wall
        self._process = os.getpid() if isinstance(marks, MemoryMarks) else 0
        self._lock = Lock()  # of everything that changes keys
        self._schedule = Schedule(own_hour(settings.gateway))  # replaced, never changed
        self._loaded: dict[bytes, GatewayKey] = {}  # private keys by their bytes: loading one takes long
        self._documents: dict[int, bytes] = {}  # signed sets by epoch
        self._missed: dict[int, float] = {}  # when a request last named a key that was not here
        self._reads = 0
        self._due = 0.0
        self._counts: Counter[str] = Counter()
        self._counting = Lock()
        self._sockets = 0
        self._signed: bytes | None = None
        self._bearers: frozenset[str] = frozenset()
        if settings.bearer_file is not None:
            self._bearers = read_bearers(read_private(settings.bearer_file).decode("ascii", "replace"))
        self.rules = Rules(
            settings.allowed,
            lambda key_id, now: self._schedule.find(key_id, now),
            marks.window,
            settings.require_date,
            settings.chacha,
            settings.pad,
        )
        self.upkeep()

    @classmethod
    def of(cls, gateway: Gateway | str, **settings: Any) -> Gateway:
        """Give a gateway that is open already, or open the one of that name; raises what `open` does."""
        if not isinstance(gateway, Gateway):
            return cls.open(Settings(gateway=gateway, **settings))
        if settings:
            raise ConfigError("a gateway that is open has its settings")
        return gateway

    @classmethod
    def open(cls, settings: Settings, *, wall: Callable[[], float] = seconds) -> Gateway:
        """Open what is kept, and make what is missing; raises `ConfigError` or `StorageError`."""
        keys: KeyStore
        marks: ReplayStore
        database = settings.database
        if settings.database_file is not None:
            database = read_private(settings.database_file).decode("utf-8", "replace").strip()
        if database:
            from layer8.tunnel.gateway_pg import PgKeys, PgTables

            keys = pg_keys = PgKeys(database, settings.gateway)
            marks = TableMarks(PgTables(pg_keys.pool))
        elif settings.state is not None:
            from layer8.tunnel.gateway_sqlite import SqliteKeys, SqliteTables

            keys = own = SqliteKeys(settings.state, settings.gateway)
            marks = TableMarks(SqliteTables(own))
        else:
            keys, marks = MemoryKeys(), MemoryMarks()
        return cls(settings, _identity(settings), keys, marks, wall)

    def close(self) -> None:
        """Let go of what is kept."""
        self._keys.close()
        self._marks.close()

    @property
    def id(self) -> str:
        """Give the gateway's name."""
        return self.settings.gateway

    @property
    def pin(self) -> str:
        """Give the identity key as pages pin it; raises `Unavailable` if the identity is elsewhere."""
        if self.identity is None:
            raise Unavailable("the identity key is not here")
        return pin_text(self.identity.node_id)

    @property
    def quick(self) -> bool:
        """Whether `remember` takes so little time that a reactor may call it."""
        return self._marks.quick

    def exchange(self, content_type: str | bytes | None, now: float) -> GatewayExchange | None:
        """Begin an exchange by its outer Content-Type; None for a type that we do not know: answer 415."""
        if self._process and os.getpid() != self._process:
            raise ConfigError("keys in memory are for one process: give the gateway a state folder or a database")
        if isinstance(content_type, bytes):
            content_type = content_type.decode("latin-1")
        media = MEDIA.get((content_type or "").partition(";")[0].strip().lower())
        if media is None or (media.chunked and not self.settings.chunked):
            self.count(Outcome.MEDIA)
            return None
        self.count(Outcome.EXCHANGE)
        return GatewayExchange(media, self.rules, secrets.token_bytes(RANDOM), now, self._wall())

    def remember(self, asked: Remember) -> Verdict:
        """Ask the replay set; may wait unless `quick`. Raises `StorageError`: say `failed(now, 503)` then."""
        if asked.date is None:
            verdict = self._marks.add_dateless(asked.mark, asked.epoch)
        else:
            verdict = self._marks.add(asked.mark, asked.date, self._wall())
        self.count(_VERDICTS[verdict])
        return verdict

    def socket(self, now: float) -> GatewaySocket | None:
        """Begin a socket; None if there are SOCKET_SESSIONS already: refuse it with 503. Say `socket_over` at its end.

        Its owner stops reading while what it has sent to either side waits (BUFFER).
        """
        with self._counting:
            full = self._sockets >= SOCKET_SESSIONS
            self._counts[Outcome.SOCKET_FULL if full else Outcome.SOCKET] += 1
            if full:
                return None
            self._sockets += 1
        return GatewaySocket(self.id, self._schedule.live(self._wall()), self.settings.allowed, now)

    def socket_over(self) -> None:
        """Take that a socket that `socket` gave has ended."""
        with self._counting:
            self._sockets -= 1

    def lacks(self, key_id: int) -> bool:
        """Say whether to `reload`, since another worker may have made the key that a request begins with.

        It says so once in RELOAD seconds for each of the 256 ids that there can be, so nobody can keep us reading.
        """
        wall = self._wall()
        if self._schedule.find(key_id, wall) is not None:
            return False
        if self._lock.locked():  # somebody is looking; wait for it with `reload`
            return True
        if 0 <= wall - self._missed.get(key_id, 0.0) < RELOAD:
            return False
        self._missed[key_id] = wall
        return True

    def due(self) -> bool:
        """Say whether it is time for `upkeep`, also since the clock was put back."""
        return not 0 < self._due - self._wall() <= UPKEEP

    def reload(self) -> None:
        """Read the keys again; raises `StorageError`. Who asks while others wait for the same is served with them."""
        before = self._reads
        with self._lock:
            if self._reads == before:
                self._read()

    def upkeep(self) -> None:
        """Read, make and delete what it is time for; raises `StorageError`, and is due again soon after that."""
        with self._lock:
            wall = self._wall()
            self._due = wall + RELOAD
            self._take_signed()
            self._read()
            epoch = self._schedule.due(wall)
            if epoch is not None and self.identity is not None:
                self._keys.offer(KeyRow.of(GatewayKey.make(epoch)))
                self._read()
            for dead in self._schedule.dead(wall):
                self._keys.drop(dead)
                self._marks.forget(dead)
            self._marks.tidy(wall)
            self._due = min(self._schedule.wake(wall), wall + UPKEEP)

    def rotate(self, *, drop: bool = False) -> int:
        """Make a new key out of turn, and give its epoch; with `drop` the older ones open nothing from now on.

        Raises `Unavailable` if this hour has a key already, or the identity is elsewhere, or `StorageError`.
        """
        if self.identity is None:
            raise Unavailable("the identity key is not here, so nobody can sign a new set")
        with self._lock:
            wall = self._wall()
            self._read()
            epoch = self._schedule.emergency(wall)
            if epoch is None:
                raise Unavailable("this hour has its key already, and an id is never used twice")
            self._keys.offer(KeyRow.of(GatewayKey.make(epoch)))
            if drop:
                old = [key.epoch for key in self._schedule.live(wall)]
                self._keys.drop(*old)
                for one in old:
                    self._marks.forget(one)
            self._read()
            return epoch

    def keys_document(self) -> bytes:
        """Give the signed set, SET_TYPE; raises `Unavailable` where there is no key that may be offered."""
        key = self._current()
        document = self._documents.get(key.epoch)
        if document is None:
            if self.identity is None:
                raise Unavailable("nobody has signed a set for today")
            document = self._documents[key.epoch] = set_of(self.settings, key).sign(self.identity)
        return document

    def ohttp_keys(self) -> bytes:
        """Give the key configuration, KEYS_TYPE; raises `Unavailable`."""
        return self._current().config(chacha=self.settings.chacha).document()

    @property
    def ends(self) -> float | None:
        """Give the time at which the last signed set ends, if the identity is elsewhere."""
        if self.identity is not None:
            return None
        return max((epoch * HOUR + CACHED for epoch in self._documents), default=0)

    def keys(self) -> list[KeyState]:
        """Give the keys that still open something, newest first."""
        wall = self._wall()
        try:
            current = self._current()
        except Unavailable:
            current = None
        return [
            KeyState(
                key.epoch,
                key.key_id,
                key is current,
                key.made,
                key.made + OFFERED,
                key.made + CACHED,
                key.made + OPENED,
            )
            for key in self._schedule.live(wall)
        ]

    def admits(self, authorization: str | bytes | None) -> bool:
        """Say whether a relay's Authorization is one of the bearer tokens; everybody's is if there are none."""
        if not self._bearers:
            return True
        text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization or ""
        scheme, _, token = text.partition(" ")
        given = token.strip().encode()
        known = [compare_digest(given, one.encode()) for one in self._bearers]
        return scheme.lower() == "bearer" and any(known)

    def guards(self, path: str) -> bool:
        """Say whether a direct request to a path is to be answered with 403."""
        return self.settings.guards(path)

    def refused(self, reply: Reply) -> tuple[int, str, bytes]:
        """Count an answer in the clear; give its status, Content-Type and body."""
        self.count(Outcome.UNKNOWN_KEY if reply.problem == wire.OHTTP_KEY else Outcome.REFUSED)
        return reply.status, wire.PROBLEM_TYPE, wire.problem(reply.status, reply.problem)

    def event_padding(self, fields: Fields) -> bool:
        """Say whether the pieces of an answer with these fields are to go through `pad_event`."""
        if not self.settings.pad_events:
            return False
        return any(
            name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in fields
        )

    def count(self, outcome: Outcome, times: int = 1) -> None:
        """Count something."""
        with self._counting:
            self._counts[outcome] += times

    def counts(self) -> Mapping[str, int]:
        """Give what was counted since the start, and how many `sockets` there are now."""
        with self._counting:
            return {**{outcome.value: self._counts[outcome] for outcome in Outcome}, "sockets": self._sockets}

    def _current(self) -> GatewayKey:
        """Find the newest key that may be offered: that there is a set of, if the identity is elsewhere."""
        wall = self._wall()
        for key in self._schedule.live(wall):
            if key.made <= wall < key.made + CACHED and (self.identity is not None or key.epoch in self._documents):
                return key
        raise Unavailable("no key may be offered now")

    def _take_signed(self) -> None:
        """Take the sets that were signed in advance, if there are new ones."""
        path = self.settings.signed_file
        if path is None:
            return
        data = read_private(path, most=SIGNED_MOST)
        if data != self._signed:
            for row in read_signed(data, self.settings):
                self._keys.offer(row)
            self._signed = data

    def _read(self) -> None:
        """Take the table as it is; exchanges that have begun keep the keys that they have found."""
        self._reads += 1
        rows = self._keys.rows()
        loaded: dict[bytes, GatewayKey] = {}
        schedule = Schedule(own_hour(self.id))
        for row in rows:
            key = self._loaded.get(row.secret)
            if key is None:
                try:
                    key = GatewayKey.load(row.epoch, row.secret)
                except ValueError:
                    raise StorageError("a row of gateway keys that is damaged") from None
            loaded[row.secret] = key
            schedule.add(key)
        self._loaded = loaded
        self._documents = {row.epoch: row.document for row in rows if row.document}
        self._schedule = schedule


_VERDICTS: Final = {
    Verdict.NEW: Outcome.OPENED,
    Verdict.REPEAT: Outcome.REPEAT,
    Verdict.DATE: Outcome.DATE,
}


def _identity(settings: Settings) -> NodeKey | None:
    """Find the key that signs the sets, or make it; None if it stays elsewhere."""
    if settings.signed_file is not None or settings.identity is not None:
        return settings.identity
    if settings.identity_file is not None:
        return NodeKey.load(settings.identity_file)
    if settings.state is None:
        return NodeKey.make()
    with alone(settings.state):
        return NodeKey.load_or_make(settings.state / IDENTITY)


def pad_event(data: bytes) -> bytes:
    """Fill up events, if the piece ends one, with a comment line that readers of event streams pass over."""
    if not data.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
        return data
    size = len(data) + 2
    return data + b":" + b"0" * (wire.padded(size) - size) + b"\n"
