"""What a node writes down of names: those that it claims, and as an attester, whom it has met and the sets it has seen.

Nothing that the user of this node looks up ever comes here: `layer8.rendezvous.naming` does not know this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from attrs import define, evolve, field, frozen

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.items import TARGET, Record
from layer8.net.storage import Change, Drop, Put, Storage, Value
from layer8.rendezvous.address import address_text

ARCHIVED: Final = 20_000  # records that are kept, the oldest dropped

SCHEMA: Final = (
    """
    CREATE TABLE claims (
        name TEXT NOT NULL PRIMARY KEY, file TEXT NOT NULL, claim BLOB NOT NULL, listing BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE certificates (name TEXT NOT NULL PRIMARY KEY, seq INTEGER NOT NULL, raw BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE probed (
        name TEXT NOT NULL, key BLOB NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, flags INTEGER NOT NULL,
        asked INTEGER NOT NULL, answered INTEGER NOT NULL, expires REAL NOT NULL, next REAL NOT NULL,
        put REAL NOT NULL, record BLOB NOT NULL, PRIMARY KEY (name, key)
    ) WITHOUT ROWID;
    CREATE TABLE records (id BLOB NOT NULL PRIMARY KEY, target BLOB NOT NULL, raw BLOB NOT NULL, at REAL NOT NULL)
    WITHOUT ROWID;
    """,
)  # one script for each version of the schema


@frozen
class Own:
    """A name that this node claims for a service of its own; `file` holds the service's key."""

    name: str
    file: str
    claim: Record = field(repr=False)
    listing: Record = field(repr=False)


@frozen
class Certified:
    """A name that this node certifies; `seq` is that of the item in the DHT."""

    name: str
    seq: int
    raw: bytes = field(repr=False)


@frozen
class Probed:
    """A claim that this node knocks at; times are seconds since 1970, `first` and `last` days since then."""

    name: str
    key: bytes = field(repr=address_text)
    first: int
    expires: float  # when its claim does
    next: float  # when it is knocked at again
    last: int = 0  # 0: never yet
    flags: int = 0
    asked: int = 0
    answered: int = 0
    put: float = 0.0  # when our word was put last
    record: bytes = field(default=b"", repr=False)  # our word


@define(eq=False)
class Archive:
    """The tables in memory, and in a storage that was opened with SCHEMA; what writes raises `StorageError`."""

    _storage: Storage
    claims: dict[str, Own] = field(factory=dict, init=False)
    certificates: dict[str, Certified] = field(factory=dict, init=False)
    probed: dict[tuple[str, bytes], Probed] = field(factory=dict, init=False)
    records: dict[bytes, Record] = field(factory=dict, init=False, repr=False)  # the oldest first

    def load(self) -> None:
        """Read everything; waits for the disk, once at the start."""
        for row in self._storage.rows("claims"):
            with suppress(RemoteProtocolError):  # of another version
                own = _own(row)
                self.claims[own.name] = own
        for row in self._storage.rows("certificates"):
            certified = Certified(str(row["name"]), int(_real(row["seq"])), _blob(row["raw"]))
            self.certificates[certified.name] = certified
        for row in self._storage.rows("probed"):
            one = _probed(row)
            self.probed[one.name, one.key] = one
        for row in sorted(self._storage.rows("records"), key=lambda one: _real(one["at"])):
            with suppress(RemoteProtocolError):
                self.records[_blob(row["id"])] = Record.parse(_blob(row["target"]), _blob(row["raw"]))

    async def claim(self, own: Own) -> None:
        """Remember a claim of this node."""
        self.claims[own.name] = own
        claim, listing = own.claim, own.listing
        row: dict[str, Value] = {"name": own.name, "file": own.file}
        row |= {"claim": claim.target + claim.raw, "listing": listing.target + listing.raw}
        await self._storage.write(Put("claims", row))

    async def certify(self, one: Certified) -> None:
        """Remember a certificate of this node."""
        self.certificates[one.name] = one
        await self._storage.write(Put("certificates", {"name": one.name, "seq": one.seq, "raw": one.raw}))

    async def uncertify(self, name: str) -> None:
        """Forget a certificate that has expired."""
        self.certificates.pop(name, None)
        await self._storage.write(Drop("certificates", {"name": name}))

    async def probe(self, one: Probed) -> None:
        """Remember how a claim stands."""
        self.probed[one.name, one.key] = one
        await self._storage.write(Put("probed", {name: getattr(one, name) for name in _COLUMNS}))

    async def forget(self, one: Probed) -> None:
        """Forget a claim that nobody renews."""
        self.probed.pop((one.name, one.key), None)
        await self._storage.write(Drop("probed", {"name": one.name, "key": one.key}))

    async def keep(self, records: Iterable[Record], now: float) -> None:
        """Keep a set that was seen."""
        changes: list[Change] = []
        for record in records:
            ident = hashlib.sha256(record.target + record.raw).digest()
            if ident not in self.records:
                self.records[ident] = record
                changes.append(Put("records", {"id": ident, "target": record.target, "raw": record.raw, "at": now}))
        while len(self.records) > ARCHIVED:
            oldest = next(iter(self.records))
            del self.records[oldest]
            changes.append(Drop("records", {"id": oldest}))
        if changes:
            await self._storage.write(*changes)

    def postponed(self, one: Probed, until: float) -> Probed:
        """Have a claim wait, as long as this process runs."""
        later = self.probed[one.name, one.key] = evolve(one, next=until)
        return later


_COLUMNS = ("name", "key", "first", "last", "flags", "asked", "answered", "expires", "next", "put", "record")


def _own(row: dict[str, Value]) -> Own:
    claim, listing = _blob(row["claim"]), _blob(row["listing"])
    return Own(
        str(row["name"]),
        str(row["file"]),
        Record.parse(claim[:TARGET], claim[TARGET:]),
        Record.parse(listing[:TARGET], listing[TARGET:]),
    )


def _probed(row: dict[str, Value]) -> Probed:
    return Probed(
        name=str(row["name"]),
        key=_blob(row["key"]),
        first=int(_real(row["first"])),
        expires=_real(row["expires"]),
        next=_real(row["next"]),
        last=int(_real(row["last"])),
        flags=int(_real(row["flags"])),
        asked=int(_real(row["asked"])),
        answered=int(_real(row["answered"])),
        put=_real(row["put"]),
        record=_blob(row["record"]),
    )


def _blob(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""


def _real(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
