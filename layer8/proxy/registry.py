"""Every registered host, found by one or two dict look-ups, and the check of a subscriber's secret.

Changes come in two steps, because they are written down between them: `plan_*` says what the new registration would be
or raises `Denied`, and `put` or `drop` makes it so. Whoever changes things does so one change at a time.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from attrs import evolve, field, frozen

from layer8.core import names
from layer8.crypto.proof import same, subscribe_proof
from layer8.proxy.limits import (
    CLAIMS,
    HASHES,
    HOST_CLAIMS,
    OWNER_HOSTS,
    PROVE_AGAIN,
    RegistryLimits,
)
from layer8.proxy.orders import Mode, Policy, Register, Rotate, Update
from layer8.proxy.pp import Kind
from layer8.proxy.registration import Ownership, Registration, StoredSecret, gate, rotated
from layer8.proxy.wire import Code, Denied

NOBODY = "nobody.invalid"  # stands in for what is no host name, so that checking it takes the same work
STATIC_OWNER = "config"  # who owns what stands in the configuration file


@frozen
class Shown:
    """What a right secret opens, and the hash that it was right for."""

    row: Registration
    key: bytes = field(repr=False)


class Registry:
    """The table of hosts.

    `dummy` is 32 random bytes that stand in for the hash of a host that is not there. `own` are the server's names.
    `hashed` counts hash computations, so that a test can see that they are the same for every answer.
    """

    def __init__(self, limits: RegistryLimits, dummy: bytes, own: Collection[str] = ()) -> None:
        """Start empty."""
        self.limits = limits
        self.own = tuple(own)
        self.version = 0
        self.hashed = 0
        self._dummy = dummy
        self._rows: dict[str, Registration] = {}
        self._exact: dict[str, Registration] = {}  # what visitors find
        self._wild: dict[str, Registration] = {}  # the same for wildcards, by what follows the star's dot
        self._claims: dict[str, dict[str, Registration]] = {}  # pending, by host and owner
        self._owned: Counter[str] = Counter()
        self._claimed: Counter[str] = Counter()
        self._ends: list[tuple[float, str, str]] = []  # heap of second, host, owner; entries may be out of date
        self._retire: list[tuple[float, str]] = []  # heap of second and host; the same
        self._looked: dict[str, float] = {}  # hosts to be looked at again, longest not looked at first

    def __len__(self) -> int:
        """Count registrations and claims."""
        return len(self._rows) + sum(self._claimed.values())

    def lookup(self, host: str) -> Registration | None:
        """Find what a visitor of `host` gets: the exact name, else the wildcard one label up; None is unknown."""
        found = self._exact.get(host)
        if found is None and self._wild:
            return self._wild.get(host.partition(".")[2])
        return found

    def suspended(self, host: str) -> bool:
        """Say whether a host that `lookup` does not find is only suspended."""
        row = self._rows.get(host)
        return row is not None and row.state is Ownership.SUSPENDED

    def row(self, host: str) -> Registration | None:
        """Give a registration by its own name, whatever its state, but no claim."""
        return self._rows.get(host)

    def claim(self, host: str, owner: str) -> Registration | None:
        """Give an owner's unproven claim."""
        return self._claims.get(host, {}).get(owner)

    def of(self, host: str, owner: str | None) -> Registration:
        """Give what `owner` has under `host`, a claim included; None is an admin, who sees all.

        Raises `Denied` with WRONG_SECRET's own words for what is not there and for what is another's: the same answer.
        """
        row = self._rows.get(host)
        if row is not None and (owner is None or row.owner == owner):
            return row
        claims = self._claims.get(host, {})
        claim = claims.get(owner) if owner is not None else next(iter(claims.values()), None)
        if claim is None:
            raise Denied(Code.WRONG_SECRET, "no such registration of yours")
        return claim

    def page(self, owner: str | None, cursor: str | None, limit: int) -> list[tuple[str, Registration]]:
        """Give the first `limit` + 1 registrations after `cursor` by name, each with its place; None is everybody's."""
        after = cursor or ""
        places = ((f"{row.host} {row.owner}", row) for row in self._everything() if owner is None or row.owner == owner)
        return heapq.nsmallest(
            limit + 1, (placed for placed in places if placed[0] > after), key=lambda placed: placed[0]
        )

    def hosts(self) -> Iterator[Registration]:
        """Give all registrations without the claims."""
        return iter(self._rows.values())

    def plan_register(self, asked: Register, *, owner: str, free: bool, mode: Mode, now: float) -> Registration:
        """Say what registering would make; `free` means that the owner need not prove the name.

        Raises `Denied`: the name cannot be published, is taken, or there is no room for it.
        """
        host = self.name(asked.host)
        standing = self._rows.get(host)
        if standing is not None and (free or standing.owner == owner):
            raise Denied(Code.ALREADY_REGISTERED, f"{host} is registered already")
        if len(self) >= self.limits.hosts:
            raise Denied(Code.NO_CAPACITY, "the server has as many hosts as it may", limit="HOSTS")
        if self._owned[owner] >= OWNER_HOSTS:
            raise Denied(Code.QUOTA, f"{owner} has {OWNER_HOSTS} hosts, the most there may be", limit="OWNER_HOSTS")
        if not free and self._claimed[owner] >= CLAIMS and self.claim(host, owner) is None:
            raise Denied(Code.QUOTA, f"{owner} has {CLAIMS} unproven hosts: prove or drop some", limit="CLAIMS")
        return Registration(
            host=host,
            owner=owner,
            secrets=(StoredSecret(bytes.fromhex(asked.secret_hash)),),
            ports=_sorted(asked.ports),
            mode=_asking(asked.mode or mode, asked.policy),
            policy=asked.policy,
            state=Ownership.OWNED if free else Ownership.PENDING,
            created=now,
            expires=None if asked.ttl_s is None else now + asked.ttl_s,
            version=self.version + 1,
            gate=gate(asked.policy, self.limits.policy_rules),
        )

    def plan_update(self, row: Registration, asked: Update, now: float) -> Registration:
        """Say what an update would make; raises `Denied` for a rule that cannot be, or for a host of the file."""
        changeable(row)
        policy = row.policy if asked.policy is None else asked.policy
        return evolve(
            row,
            ports=row.ports if asked.ports is None else _sorted(asked.ports),
            mode=_asking(asked.mode or row.mode, policy),
            policy=policy,
            gate=gate(policy, self.limits.policy_rules),
            expires=row.expires if asked.ttl_s is None else now + asked.ttl_s,
            version=self.version + 1,
        )

    def plan_rotate(self, row: Registration, asked: Rotate, now: float) -> Registration:
        """Say what a rotation would make; raises `Denied`."""
        changeable(row)
        return rotated(row, bytes.fromhex(asked.secret_hash), float(asked.grace_s), self.version + 1, now)

    def plan_proven(self, row: Registration) -> None:
        """Raise `Denied` if a proven claim cannot become a registration because the name is another's."""
        standing = self._rows.get(row.host)
        if standing is not None and standing.owner != row.owner and standing.state is not Ownership.SUSPENDED:
            raise Denied(Code.ALREADY_REGISTERED, f"{row.host} is registered already")

    def put(self, row: Registration) -> None:
        """Make `row` what stands under its host; a claim stands beside others. Never raises for a planned one."""
        self.version = max(self.version, row.version)
        if row.ends is not None:
            heapq.heappush(self._ends, (row.ends, row.host, row.owner))
        for secret in row.secrets:
            if secret.retires is not None:
                heapq.heappush(self._retire, (secret.retires, row.host))
        if row.state is Ownership.PENDING:
            self._put_claim(row)
            return
        self._drop_claim(row.host, row.owner)
        standing = self._rows.get(row.host)
        if standing is not None:
            self._owned[standing.owner] -= 1
        self._rows[row.host] = row
        self._owned[row.owner] += 1
        live = row.state is not Ownership.SUSPENDED
        parent = row.host[2:] if row.host.startswith("*.") else ""
        table, key = (self._wild, parent) if parent else (self._exact, row.host)
        if live:
            table[key] = row
        else:
            table.pop(key, None)
        if row.state is Ownership.OWNED:
            self._looked.pop(row.host, None)
        elif row.host not in self._looked:
            self._looked[row.host] = row.proven

    def drop(self, row: Registration) -> None:
        """Forget a registration or a claim; forgetting twice does nothing."""
        if row.state is Ownership.PENDING:
            self._drop_claim(row.host, row.owner)
            return
        standing = self._rows.get(row.host)
        if standing is None or standing.owner != row.owner:
            return
        del self._rows[row.host]
        self._owned[row.owner] -= 1
        if not self._owned[row.owner]:
            del self._owned[row.owner]
        self._exact.pop(row.host, None)
        self._wild.pop(row.host[2:], None) if row.host.startswith("*.") else None
        self._looked.pop(row.host, None)

    def put_static(self, rows: Iterable[Registration]) -> list[Registration]:
        """Replace what the configuration file registers; gives the registrations that this took away."""
        new = {row.host: evolve(row, static=True, owner=STATIC_OWNER) for row in rows}
        gone = [row for row in self._rows.values() if row.static and row.host not in new]
        for row in gone:
            self.drop(row)
        for row in new.values():
            self.version += 1
            self.put(evolve(row, version=self.version))
        return gone

    def ended(self, now: float) -> list[Registration]:
        """Take away what has expired, and give it."""
        gone = []
        while self._ends and self._ends[0][0] <= now:
            _, host, owner = heapq.heappop(self._ends)
            for row in (self._rows.get(host), self.claim(host, owner)):
                if row is not None and row.owner == owner and row.ends is not None and row.ends <= now:
                    self.drop(row)
                    gone.append(row)
        return gone

    def retired(self, now: float) -> list[Registration]:
        """Give the registrations of which a secret has retired since this was asked last."""
        hosts = set()
        while self._retire and self._retire[0][0] <= now:
            hosts.add(heapq.heappop(self._retire)[1])
        return [self._rows[host] for host in hosts if host in self._rows]

    def to_look_at(self, now: float, most: int) -> list[Registration]:
        """Give up to `most` hosts whose proof was not looked at for a day; they count as looked at from here on."""
        due: list[str] = []
        for host, when in self._looked.items():
            if len(due) == most or when + PROVE_AGAIN > now:
                break
            due.append(host)
        for host in due:
            del self._looked[host]
            self._looked[host] = now
        return [self._rows[host] for host in due]

    def by_proof(self, host: str, proof: str, nonce: bytes, node_id: bytes, now: float) -> Shown | None:
        """Give the registration, or claim, whose secret made this proof; the work is the same whatever the answer."""
        host = self._subscribable(host)
        found: Shown | None = None
        for key, row in self._candidates(host, now):
            self.hashed += 1
            if same(subscribe_proof(key, nonce, node_id, host), proof) and row is not None:
                found = found or Shown(row, key)
        return found

    def by_secret(self, host: str, secret: bytes, now: float) -> Shown | None:
        """Give the registration, or claim, with this secret; the work is the same whatever the answer."""
        key = hashlib.sha256(secret).digest()
        self.hashed += 1
        found: Shown | None = None
        for good, row in self._candidates(self._subscribable(host), now):
            if same(good, key) and row is not None:
                found = found or Shown(row, good)
        return found

    def name(self, host: str) -> str:
        """Give the form under which `host` is registered; raises `Denied` with INVALID_HOST."""
        try:
            return names.encode(host, self.own)
        except names.InvalidName as error:
            raise Denied(Code.INVALID_HOST, str(error)) from error

    def _subscribable(self, host: str) -> str:
        """Give the host in lower case, or a stand-in that nobody can register for what is no name."""
        bare = host[2:] if host.startswith("*.") else host
        return host.lower() if names.from_wire(bare.encode("utf-8", "replace")) is not None else NOBODY

    def _candidates(self, host: str, now: float) -> list[tuple[bytes, Registration | None]]:
        """Give all hashes that may serve `host`, filled up with the dummy to the same number always."""
        found: list[tuple[bytes, Registration | None]] = []
        row = self._rows.get(host)
        if row is not None:
            found += [(key, row) for key in row.good_keys(now)[:HASHES]]
        for claim in self._claims.get(host, {}).values():
            found += [(key, claim) for key in claim.good_keys(now)[-1:]]
        return found + [(self._dummy, None)] * (HASHES + HOST_CLAIMS - len(found))

    def _everything(self) -> Iterator[Registration]:
        yield from self._rows.values()
        for claims in self._claims.values():
            yield from claims.values()

    def _put_claim(self, row: Registration) -> None:
        claims = self._claims.setdefault(row.host, {})
        if row.owner not in claims:
            self._claimed[row.owner] += 1
        claims[row.owner] = row
        while len(claims) > HOST_CLAIMS:
            self._drop_claim(row.host, next(iter(claims)))

    def _drop_claim(self, host: str, owner: str) -> None:
        claims = self._claims.get(host)
        if claims is None or claims.pop(owner, None) is None:
            return
        self._claimed[owner] -= 1
        if not self._claimed[owner]:
            del self._claimed[owner]
        if not claims:
            del self._claims[host]


def inside(host: str, patterns: Iterable[str]) -> bool:
    """Say whether an owner token's patterns hold `host`: equal to one, or one label in place of its star."""
    return any(names.covers(pattern.lower(), host) for pattern in patterns)


def static(
    host: str,
    *,
    key: bytes | None,
    target: str | None,
    ports: tuple[int, ...],
    mode: Mode,
    policy: Policy,
    rules: int,
    introduction: Kind = "none",
) -> Registration:
    """Make the registration of a host that stands in the configuration file; raises `Denied`."""
    return Registration(
        host=host,
        owner=STATIC_OWNER,
        secrets=() if key is None else (StoredSecret(key),),
        ports=_sorted(ports),
        mode=mode,
        policy=policy,
        target=target,
        static=True,
        introduction=introduction,
        gate=gate(policy, rules),
    )


def _asking(mode: Mode, policy: Policy) -> Mode:
    """Give the mode; raises `Denied` if the policy has users whom nobody could ask in it."""
    if policy.users and mode != "proxy":
        raise Denied(Code.FORBIDDEN_BY_POLICY, "only mode proxy can ask users for their passwords")
    return mode


def changeable(row: Registration) -> None:
    """Raise `Denied` for a host that only the configuration file can change."""
    if row.static:
        raise Denied(Code.FORBIDDEN_BY_POLICY, f"{row.host} stands in the server's configuration file: change it there")


def _sorted(ports: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(ports)))
