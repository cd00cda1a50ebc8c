"""One registered host: its secrets, ports, policy and owner, and the steps from each state of it to the next.

A registration never changes; every step gives a new one. Its times are seconds since 1970, because they outlive the
process: nothing here is about less than a minute.
"""

from __future__ import annotations

import base64
import hashlib
from enum import StrEnum

from attrs import evolve, field, frozen

from layer8.core.address import Networks, is_address
from layer8.core.errors import ConfigError
from layer8.proxy.limits import CLAIM_TIME, HASHES, PROVE_LOST
from layer8.proxy.orders import EVERYBODY, HostRow, Mode, Policy, ProofWanted, SecretRow
from layer8.proxy.pp import Kind
from layer8.proxy.wire import Code, Denied

SHOWN = 8  # hex digits of a hash that lists show


class Ownership(StrEnum):
    """Whether the name is its owner's."""

    OWNED = "owned"  # inside the patterns of the owner's token, or given by an admin
    PENDING = "pending"  # claimed; nothing is routed and nobody may subscribe
    PROVEN = "proven"  # shown by DNS or HTTP, looked at again every day
    SUSPENDED = "suspended"  # was proven, and has not been for a week


@frozen
class StoredSecret:
    """K, the SHA-256 of a host secret, and the second at which it stops to be good, if it does."""

    key: bytes = field(repr=False)
    retires: float | None = None

    def good(self, now: float) -> bool:
        """Say whether it still proves anything."""
        return self.retires is None or now < self.retires


@frozen
class Gate:
    """Who may visit: `deny` beats `allow`, and an empty `allow` lets everybody in."""

    allow: Networks
    deny: Networks

    def admits(self, visitor: str) -> bool:
        """Say whether an address may come in; with any rule at all, what is no address may not."""
        if self.deny and (visitor in self.deny or not is_address(visitor)):
            return False
        return not self.allow or visitor in self.allow


def gate(policy: Policy, most: int) -> Gate | None:
    """Compile a policy's rules, None if there are none; raises `Denied` for more than `most` or a wrong one."""
    if not policy.allow and not policy.deny:
        return None
    if len(policy.allow) + len(policy.deny) > most:
        raise Denied(Code.QUOTA, f"a host has at most {most} rules", limit="POLICY_RULES")
    try:
        return Gate(Networks.parse(policy.allow), Networks.parse(policy.deny))
    except ConfigError as error:
        raise Denied(Code.FORBIDDEN_BY_POLICY, str(error)) from error


@frozen
class Registration:
    """A host and everything that was said about it.

    `ports` are public ports, none means all. `proven` is the last second at which ownership was seen. A host with a
    `target` (an endpoint string) is dialled by the server itself, without an agent, and begun with a PROXY header if
    `introduction` says so.
    """

    host: str
    owner: str
    secrets: tuple[StoredSecret, ...] = ()
    ports: tuple[int, ...] = ()
    mode: Mode = "raw"
    policy: Policy = EVERYBODY
    state: Ownership = Ownership.OWNED
    created: float = 0.0
    proven: float = 0.0
    expires: float | None = None
    version: int = 0
    target: str | None = None
    static: bool = False
    introduction: Kind = "none"
    gate: Gate | None = field(default=None, eq=False, repr=False)

    def serves(self, port: int) -> bool:
        """Say whether the host is published on a public port."""
        return not self.ports or port in self.ports

    @property
    def ends(self) -> float | None:
        """The second at which the registration is over: when it expires, or a claim that nobody proved."""
        if self.state is not Ownership.PENDING:
            return self.expires
        claim = self.created + CLAIM_TIME
        return claim if self.expires is None else min(claim, self.expires)

    def good_keys(self, now: float) -> list[bytes]:
        """Give the hashes that still prove something."""
        return [secret.key for secret in self.secrets if secret.good(now)]


def rotated(row: Registration, key: bytes, grace: float, version: int, now: float) -> Registration:
    """Add a secret; those before it retire after `grace` seconds unless they do so sooner.

    Raises `Denied` when more than HASHES would be good at the same time, or when the secret is one of them already:
    then the old ones would retire and the caller believes that a new one has come.
    """
    kept = [secret for secret in row.secrets if secret.good(now)]
    if any(secret.key == key for secret in kept):
        raise Denied(Code.FORBIDDEN_BY_POLICY, "this secret is already in use")
    ends = now + grace
    retiring = [
        evolve(secret, retires=ends if secret.retires is None else min(ends, secret.retires)) for secret in kept
    ]
    secrets = [secret for secret in retiring if secret.good(now)] + [StoredSecret(key)]
    if len(secrets) > HASHES:
        raise Denied(Code.QUOTA, f"{HASHES} secrets are in use; wait until one retires", limit="HASHES")
    return evolve(row, secrets=tuple(secrets), version=version)


def looked(row: Registration, found: bool, version: int, now: float) -> Registration | None:
    """Give what a look at the proof of ownership makes of a registration, or None if it makes no difference."""
    if found:
        return evolve(row, state=Ownership.PROVEN, proven=now, version=version)
    if row.state is Ownership.PROVEN and now - row.proven > PROVE_LOST:
        return evolve(row, state=Ownership.SUSPENDED, version=version)
    return None


def proof_wanted(host: str, owner: str) -> ProofWanted:
    """Say what has to be found for `owner` to have `host`; for a wildcard, at the name below its star."""
    digest = hashlib.sha256(owner.encode("utf-8") + host.encode("ascii")).digest()[:20]
    token = base64.b32encode(digest).decode("ascii").lower()
    name = host.removeprefix("*.")
    # A wildcard has no name that could answer, and the parent's web site need not belong to the zone's holder.
    url = "" if host.startswith("*.") else f"http://{name}/.well-known/layer8/{token}"
    return ProofWanted(f"_layer8.{name}", f"l8={token}", url, token if url else "")


def shown(row: Registration, now: float) -> HostRow:
    """Give a registration as its owner may see it: no secret, and of each hash only the first digits."""
    return HostRow(
        host=row.host,
        owner=row.owner,
        state=row.state.value,
        ports=row.ports,
        mode=row.mode,
        policy=row.policy,
        secrets=tuple(
            SecretRow(secret.key.hex()[:SHOWN], None if secret.retires is None else int(secret.retires))
            for secret in row.secrets
            if secret.good(now)
        ),
        version=row.version,
        expires_at=None if row.ends is None else int(row.ends),
        static=row.static,
        proof=None if row.state in (Ownership.OWNED, Ownership.PROVEN) else proof_wanted(row.host, row.owner),
    )
