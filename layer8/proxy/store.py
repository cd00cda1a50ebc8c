"""What a proxy server writes down: registrations with the hashes of their secrets, bans, bytes carried per host.

Everything is read once at the start and served from memory afterwards. K, the hash, is as good as the secret towards
this server, so the file is private (0600) and never leaves the machine unsealed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import evolve, frozen

from layer8.control.shape import ShapeError, from_json, to_json
from layer8.core.errors import StorageError
from layer8.net.storage import Drop, Put, Storage, Value
from layer8.proxy.bans import Banned
from layer8.proxy.orders import Mode, Policy
from layer8.proxy.registration import Ownership, Registration, StoredSecret, gate
from layer8.proxy.wire import Denied

SCHEMA: Final = (
    """
    CREATE TABLE registration (
        host TEXT NOT NULL, owner TEXT NOT NULL, ports TEXT NOT NULL, mode TEXT NOT NULL, policy TEXT NOT NULL,
        state TEXT NOT NULL, created REAL NOT NULL, proven REAL NOT NULL, expires REAL, version INTEGER NOT NULL,
        PRIMARY KEY (host, owner)
    ) WITHOUT ROWID;
    CREATE TABLE secret (
        host TEXT NOT NULL, owner TEXT NOT NULL, place INTEGER NOT NULL, key BLOB NOT NULL, retires REAL,
        PRIMARY KEY (host, owner, place)
    ) WITHOUT ROWID;
    CREATE TABLE ban (cidr TEXT NOT NULL PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE carried (
        host TEXT NOT NULL PRIMARY KEY, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
)  # one script for each version of the schema


@frozen
class Carried:
    """Bytes of a host from visitors and to visitors, all restarts together."""

    bytes_in: int = 0
    bytes_out: int = 0

    def plus(self, other: Carried) -> Carried:
        """Give both together."""
        return Carried(self.bytes_in + other.bytes_in, self.bytes_out + other.bytes_out)


@frozen
class Kept:
    """What stood in the store at the start."""

    rows: tuple[Registration, ...]
    bans: tuple[Banned, ...]
    carried: Mapping[str, Carried]


class Store:
    """The proxy's tables in a storage; everything here raises `StorageError` with the reason."""

    def __init__(self, storage: Storage, rules: int) -> None:
        """Take the storage, opened with SCHEMA, and the most rules that a policy may have."""
        self._storage = storage
        self._rules = rules

    def load(self) -> Kept:
        """Read everything; waits for the disk, so it is for the start."""
        secrets: dict[tuple[Value, Value], list[tuple[Value, StoredSecret]]] = {}
        for found in self._storage.rows("secret"):
            secret = StoredSecret(_bytes(found["key"]), _maybe(found["retires"]))
            secrets.setdefault((found["host"], found["owner"]), []).append((found["place"], secret))
        rows = []
        for found in self._storage.rows("registration"):
            mine = secrets.get((found["host"], found["owner"]), [])
            keys = tuple(secret for _, secret in sorted(mine, key=lambda placed: _number(placed[0])))
            rows.append(evolve(self._registration(found), secrets=keys))
        bans = self._storage.rows("ban")
        carried = self._storage.rows("carried")
        return Kept(
            tuple(rows),
            tuple(Banned(str(ban["cidr"]), _number(ban["until"])) for ban in bans),
            {
                str(one["host"]): Carried(int(_number(one["bytes_in"])), int(_number(one["bytes_out"])))
                for one in carried
            },
        )

    async def save(self, row: Registration) -> None:
        """Write a registration or a claim, in place of what stood under its host and owner."""
        key = {"host": row.host, "owner": row.owner}
        policy = json.dumps(to_json(row.policy), separators=(",", ":"))
        registration = key | {
            "ports": json.dumps(row.ports),
            "mode": row.mode,
            "policy": policy,
            "state": row.state.value,
            "created": row.created,
            "proven": row.proven,
            "expires": row.expires,
            "version": row.version,
        }
        await self._storage.write(
            Put("registration", registration),
            Drop("secret", key),
            *(
                Put("secret", key | {"place": place, "key": secret.key, "retires": secret.retires})
                for place, secret in enumerate(row.secrets)
            ),
        )

    async def drop(self, row: Registration) -> None:
        """Strike a registration or a claim out."""
        key = {"host": row.host, "owner": row.owner}
        changes = [Drop("registration", key), Drop("secret", key)]
        if row.state is not Ownership.PENDING:
            changes.append(Drop("carried", {"host": row.host}))
        await self._storage.write(*changes)

    async def ban(self, ban: Banned) -> None:
        """Write a ban down, in place of one for the same network."""
        await self._storage.write(Put("ban", {"cidr": ban.cidr, "until": ban.until}))

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Strike bans out."""
        await self._storage.write(*(Drop("ban", {"cidr": cidr}) for cidr in cidrs))

    async def carry(self, carried: Mapping[str, Carried]) -> None:
        """Write the byte counts of these hosts, in place of what stood there."""
        await self._storage.write(
            *(
                Put("carried", {"host": host, "bytes_in": count.bytes_in, "bytes_out": count.bytes_out})
                for host, count in carried.items()
            )
        )

    def _registration(self, found: Mapping[str, Value]) -> Registration:
        host = str(found["host"])
        try:
            policy = from_json(Policy, json.loads(str(found["policy"])))
            read = from_json(_Said, {"ports": json.loads(str(found["ports"])), "mode": found["mode"]})
            return Registration(
                host=host,
                owner=str(found["owner"]),
                ports=read.ports,
                mode=read.mode,
                policy=policy,
                state=Ownership(str(found["state"])),
                created=_number(found["created"]),
                proven=_number(found["proven"]),
                expires=_maybe(found["expires"]),
                version=int(_number(found["version"])),
                gate=gate(policy, self._rules),
            )
        except (ValueError, ShapeError, Denied) as error:
            raise StorageError(f"the registration of {host} cannot be read: {error}") from error


@frozen
class _Said:
    ports: tuple[int, ...]
    mode: Mode


def _number(value: Value) -> float:
    if not isinstance(value, int | float):
        raise StorageError("a number is missing in the proxy's store")
    return value


def _maybe(value: Value) -> float | None:
    return None if value is None else _number(value)


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise StorageError("a secret's hash is missing in the proxy's store")
    return value
