"""What a node of the network writes down, so that it comes back without asking anybody: `node.db`.

Peers with who told of them and how they did, guards, second hops, pins, aliases, tunnels, the inbox, credit, and what a
tracker lists. All of it is read once, at the start, and served from memory afterwards. Links, circuits and streams are
not written: a crash loses those and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from attrs import define, field, frozen

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.descriptor import Descriptor
from layer8.net.storage import Change, Drop, Put, Storage, Value
from layer8.relay.credit import Owed
from layer8.relay.database import Database, Peer
from layer8.relay.guards import Guard, Guards, Second, SecondHops, State

BATCH: Final = 500  # peers in one transaction
INBOX: Final = 1000  # messages that are kept, the oldest dropped

SCHEMA: Final = (
    """
    CREATE TABLE peers (
        id BLOB NOT NULL PRIMARY KEY, descriptor BLOB NOT NULL, first REAL NOT NULL, seen REAL NOT NULL,
        good INTEGER NOT NULL, bad INTEGER NOT NULL, speed REAL NOT NULL, last_good REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE sources (
        id BLOB NOT NULL, source BLOB NOT NULL, first REAL NOT NULL, PRIMARY KEY (id, source)
    ) WITHOUT ROWID;
    CREATE TABLE guards (
        id BLOB NOT NULL PRIMARY KEY, place INTEGER NOT NULL, since REAL NOT NULL, expires REAL NOT NULL,
        state TEXT NOT NULL, confirmed REAL NOT NULL, failures INTEGER NOT NULL, retry REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE layer2 (
        id BLOB NOT NULL PRIMARY KEY, since REAL NOT NULL, expires REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE pins (id BLOB NOT NULL PRIMARY KEY, address TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE aliases (name TEXT NOT NULL PRIMARY KEY, id BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE tunnels (path TEXT NOT NULL PRIMARY KEY, added REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE inbox (
        number BLOB NOT NULL PRIMARY KEY, at REAL NOT NULL, sender BLOB NOT NULL, text BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE credit (
        id BLOB NOT NULL PRIMARY KEY, for_me INTEGER NOT NULL, by_me INTEGER NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE tracked (
        id BLOB NOT NULL PRIMARY KEY, descriptor BLOB NOT NULL, expires REAL NOT NULL
    ) WITHOUT ROWID;
    """,
)  # one script for each version of the schema


@frozen
class Letter:
    """One message of the inbox; `sender` is empty where nobody has signed it."""

    number: bytes
    at: float
    sender: bytes
    text: bytes = field(repr=False)


@frozen
class Kept:
    """What stood in the file besides peers and guards."""

    pins: Mapping[bytes, str]
    aliases: Mapping[str, bytes]
    tunnels: tuple[str, ...]
    inbox: tuple[Letter, ...]
    credit: Mapping[bytes, Owed]


@define(eq=False)
class Memory:
    """The tables, in a storage that was opened with SCHEMA; everything here raises `StorageError`."""

    _storage: Storage
    _guards: tuple[Mapping[str, Value], ...] = field(default=(), init=False)
    _layer2: tuple[Mapping[str, Value], ...] = field(default=(), init=False)
    _letters: list[bytes] = field(factory=list, init=False)

    def load(self, database: Database, guards: Guards, layer2: SecondHops, now: float) -> Kept:
        """Read everything, and give peers and guards to those who hold them; waits for the disk, once at the start."""
        rows = self._storage.rows
        sources: dict[bytes, dict[bytes, float]] = {}
        for row in sorted(rows("sources"), key=lambda one: _real(one["first"])):
            sources.setdefault(_blob(row["id"]), {})[_blob(row["source"])] = _real(row["first"])
        pins = {_blob(row["id"]): str(row["address"]) for row in rows("pins")}
        peers = (_peer(row, sources.get(_blob(row["id"]), {})) for row in rows("peers"))
        kept = sorted((peer for peer in peers if peer is not None), key=lambda peer: peer.first)
        database.restore(kept, pins, now)
        guards.restore(_guard(row) for row in sorted(rows("guards"), key=lambda one: _real(one["place"])))
        layer2.restore(
            Second(_blob(row["id"]), _real(row["since"]), _real(row["expires"]))
            for row in sorted(rows("layer2"), key=lambda one: _real(one["since"]))
        )
        self._guards, self._layer2 = _guard_rows(guards), _layer2_rows(layer2)
        inbox = sorted((_letter(row) for row in rows("inbox")), key=lambda letter: letter.at)
        self._letters = [letter.number for letter in inbox]
        return Kept(
            pins=pins,
            aliases={str(row["name"]): _blob(row["id"]) for row in rows("aliases")},
            tunnels=tuple(str(row["path"]) for row in sorted(rows("tunnels"), key=lambda one: _real(one["added"]))),
            inbox=tuple(inbox),
            credit={
                _blob(row["id"]): Owed(int(_real(row["for_me"])), int(_real(row["by_me"])), _real(row["at"]))
                for row in rows("credit")
            },
        )

    async def save(self, database: Database, guards: Guards, layer2: SecondHops) -> None:
        """Write what has changed since the last time: every minute or so, and at the end."""
        changed, dropped = database.changes()
        changes: list[Change] = []
        for identity in dropped:
            changes += [Drop("peers", {"id": identity}), Drop("sources", {"id": identity})]
        for peer in changed:
            changes += _peer_changes(peer)
        first, second = _guard_rows(guards), _layer2_rows(layer2)
        if first != self._guards:
            changes += [Drop("guards", {}), *(Put("guards", row) for row in first)]
        if second != self._layer2:
            changes += [Drop("layer2", {}), *(Put("layer2", row) for row in second)]
        try:
            for at in range(0, len(changes), BATCH):
                await self._storage.write(*changes[at : at + BATCH])
        except BaseException:
            database.changed(peer.identity for peer in changed)
            raise
        self._guards, self._layer2 = first, second

    async def pin(self, identity: bytes, address: str) -> None:
        """Remember a node that the user has named, with the address where its identity was seen."""
        await self._storage.write(Put("pins", {"id": identity, "address": address}))

    async def unpin(self, identity: bytes) -> None:
        """Forget that."""
        await self._storage.write(Drop("pins", {"id": identity}))

    async def alias(self, name: str, identity: bytes) -> None:
        """Remember the user's name for a node."""
        await self._storage.write(Put("aliases", {"name": name, "id": identity}))

    async def unalias(self, name: str) -> None:
        """Forget a name."""
        await self._storage.write(Drop("aliases", {"name": name}))

    async def keep_tunnel(self, path: str, now: float) -> None:
        """Remember a tunnel, by its whole text."""
        await self._storage.write(Put("tunnels", {"path": path, "added": now}))

    async def drop_tunnel(self, path: str) -> None:
        """Forget a tunnel."""
        await self._storage.write(Drop("tunnels", {"path": path}))

    async def keep_letter(self, letter: Letter) -> None:
        """Keep a message, and INBOX of them."""
        self._letters = [number for number in self._letters if number != letter.number] + [letter.number]
        gone, self._letters = self._letters[:-INBOX], self._letters[-INBOX:]
        row: dict[str, Value] = {"number": letter.number, "at": letter.at, "sender": letter.sender, "text": letter.text}
        await self._storage.write(Put("inbox", row), *(Drop("inbox", {"number": number}) for number in gone))

    async def save_credit(self, owed: Mapping[bytes, Owed], gone: Iterable[bytes] = ()) -> None:
        """Write how much neighbours have relayed for us and we for them."""
        changes: list[Change] = [Drop("credit", {"id": identity}) for identity in gone]
        changes += [
            Put("credit", {"id": identity, "for_me": one.for_me, "by_me": one.by_me, "at": one.at})
            for identity, one in owed.items()
        ]
        if changes:
            await self._storage.write(*changes)


def _peer(row: Mapping[str, Value], sources: dict[bytes, float]) -> Peer | None:
    """Make a peer of its row; one that an earlier version wrote in another form is left out."""
    try:
        descriptor = Descriptor.parse(_blob(row["descriptor"]))
    except RemoteProtocolError:
        return None
    return Peer(
        descriptor,
        first=_real(row["first"]),
        seen=_real(row["seen"]),
        sources=sources,
        good=int(_real(row["good"])),
        bad=int(_real(row["bad"])),
        speed=_real(row["speed"]),
        last_good=_real(row["last_good"]),
    )


def _peer_changes(peer: Peer) -> list[Change]:
    row: dict[str, Value] = {
        "id": peer.identity,
        "descriptor": peer.descriptor.raw,
        "first": peer.first,
        "seen": peer.seen,
        "good": peer.good,
        "bad": peer.bad,
        "speed": peer.speed,
        "last_good": peer.last_good,
    }
    told = peer.sources.items()
    return [
        Put("peers", row),
        *(Put("sources", {"id": peer.identity, "source": source, "first": first}) for source, first in told),
    ]


def _guard(row: Mapping[str, Value]) -> Guard:
    return Guard(
        _blob(row["id"]),
        since=_real(row["since"]),
        expires=_real(row["expires"]),
        state=State(row["state"]),
        confirmed=_real(row["confirmed"]),
        failures=int(_real(row["failures"])),
        retry=_real(row["retry"]),
    )


def _guard_rows(guards: Guards) -> tuple[Mapping[str, Value], ...]:
    return tuple(
        {
            "id": guard.identity,
            "place": place,
            "since": guard.since,
            "expires": guard.expires,
            "state": guard.state.value,
            "confirmed": guard.confirmed,
            "failures": guard.failures,
            "retry": guard.retry,
        }
        for place, guard in enumerate(guards.rows)
    )


def _layer2_rows(layer2: SecondHops) -> tuple[Mapping[str, Value], ...]:
    return tuple({"id": hop.identity, "since": hop.since, "expires": hop.expires} for hop in layer2.rows)


def _letter(row: Mapping[str, Value]) -> Letter:
    return Letter(_blob(row["number"]), _real(row["at"]), _blob(row["sender"]), _blob(row["text"]))


def _blob(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""


def _real(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
