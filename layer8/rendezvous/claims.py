r"""Who says that a name is theirs, who has seen it, and which of them is believed (docs/names.md).

```
claim        record of kind 5 in the set SHA-1("layer8/1 name" | name), signed by the service's own key, work 2^22
             data: time u32 | name
attestation  record of kind 6 in the set SHA-1("layer8/1 seen" | name | key), signed by a node with the role names,
             work 2^18; data: first day u16 | last day u16 | flags u16 | times asked u16 | times answered u16
listing      record of kind 3 in the set SHA-1("layer8/1 claims" | shard u8), signed by the service's own key,
             work 2^18; data: name; shard = first byte of the claim's target % SHARDS: there attesters find names
certificate  signature 64 | canonical bencode {e: expiry, k: key, n: name, s: signer}, 256 bytes at most
             Ed25519 by the signer over "layer8/1 name certificate\0" | bencode
```
Days are counted since 1970. Nobody's clock or work decides alone: a claim is a candidate when NEED nodes attest it
that we have known for KNOWN seconds, in different networks and told of by different sources; the oldest candidate wins
unless another one has a third of its support. A node's word that it saw a name before we knew the node itself counts
from that day on only, so old age cannot be bought with addresses alone.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum, IntFlag
from typing import Final

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.crypto.blind import valid
from layer8.crypto.items import RECORD_LIFE, Draft, Kind, Record, sha1
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, id_text, verify
from layer8.rendezvous.address import address_text, check_name

CLAIM_EFFORT: Final = 2**22
SEEN_EFFORT: Final = 2**18
SHARDS: Final = 64  # sets of listings
CLOCK: Final = 3600  # seconds that two honest clocks may differ by
NEED: Final = 3  # attesters that make a claim a candidate
KNOWN: Final = 7 * 86_400  # seconds for which an attester has to be known
SHARE: Final = 3  # another candidate with 1 / SHARE of the support makes it ambiguous
CLAIMS_SHOWN: Final = 16
ATTESTERS: Final = 256  # of one claim that are weighed, those that we know longest
CERTIFICATE_MAX: Final = 256  # bytes
DAY: Final = 86_400

_CLAIM: Final = struct.Struct("!I")
_SEEN: Final = struct.Struct("!5H")
_CERTIFICATE: Final = b"layer8/1 name certificate\0"
_MOST: Final = 2**16 - 1


class Flag(IntFlag):
    """What an attester found wrong; unknown bits are kept."""

    SILENT = 1
    WRONG_KEY = 2
    ERRORS = 4
    NO_DESCRIPTOR = 8


@frozen
class Claim:
    """A service's word that a name is its own."""

    name: str
    key: bytes = field(repr=address_text)
    time: int  # its own word, which decides nothing


@frozen
class Seen:
    """A node's word that it has seen a claim, and how it found the service."""

    name: str
    key: bytes = field(repr=address_text)
    attester: bytes = field(repr=id_text)
    first: int  # day
    last: int
    flags: int = 0
    asked: int = 0
    answered: int = 0


@frozen
class Witness:
    """What we know ourselves of a node that attests."""

    known: float  # seconds since 1970: when we first heard of it
    network: str  # the /16, /32, name or gateway that it is counted under
    sources: frozenset[bytes]  # who told us of it


class State(Enum):
    """How far the network agrees on a name."""

    UNKNOWN = "unknown"  # nobody claims it
    CLAIMED = "claimed"  # not enough that count have seen any claim
    AMBIGUOUS = "ambiguous"
    DECIDED = "decided"


@frozen
class Candidate:
    """One key that claims a name, with what is shown beside it."""

    key: bytes = field(repr=address_text)
    support: int  # attesters that count: no two of one network or one source
    day: int | None  # the median of the days on which they saw it first
    attesters: int  # all that attest it and that we know
    strangers: int  # attestations by keys that we do not know: shown, never counted
    flags: Mapping[Flag, int]  # how many of those that we know say so
    rumours: Mapping[Flag, int] = field(factory=dict)  # how many of the others

    @property
    def good(self) -> bool:
        """Say whether it may win."""
        return self.support >= NEED


@frozen
class Verdict:
    """What claims and attestations say of a name; `candidates` are the best CLAIMS_SHOWN, the winner first."""

    name: str
    state: State
    candidates: tuple[Candidate, ...]
    others: int = 0  # claims that are not among them

    @property
    def winner(self) -> Candidate | None:
        """Give the one that the name stands for, where that is decided."""
        return self.candidates[0] if self.state is State.DECIDED else None


def claim_target(name: str) -> bytes:
    """Give the set where a name is claimed."""
    return sha1(b"layer8/1 name", name.encode())


def seen_target(name: str, key: bytes) -> bytes:
    """Give the set where a claim is attested."""
    return sha1(b"layer8/1 seen", name.encode(), key)


def shard_of(name: str) -> int:
    """Give the part of the list of names that this one stands in."""
    return claim_target(name)[0] % SHARDS


def listing_target(shard: int) -> bytes:
    """Give the set of one part of the list of names."""
    return sha1(b"layer8/1 claims", bytes((shard,)))


def make_claim(key: NodeKey, name: str, now: float, *, ruled: bool = True, more: int = 1) -> Draft:
    """Give the claim of a service, still without its work, `more` times what it has to be; raises `WrongName`."""
    data = _CLAIM.pack(int(now)) + check_name(name).encode()
    return _draft(key, claim_target(name), Kind.CLAIM, data, now, CLAIM_EFFORT * more if ruled else 1)


def read_claim(record: Record, name: str, now: float, *, ruled: bool = True) -> Claim:
    """Check what stood in a name's set; raises `RemoteProtocolError`."""
    _check(record, Kind.CLAIM, claim_target(name), CLAIM_EFFORT if ruled else 0, now)
    if record.data[_CLAIM.size :] != name.encode() or not valid(record.key):
        raise RemoteProtocolError("a claim of another name, or of no service")
    return Claim(name, record.key, _CLAIM.unpack_from(record.data)[0])


def make_listing(key: NodeKey, name: str, now: float, *, ruled: bool = True, more: int = 1) -> Draft:
    """Give what has a name found by nodes that attest, still without its work; raises `WrongName`."""
    data = check_name(name).encode()
    return _draft(key, listing_target(shard_of(name)), Kind.REFERENCE, data, now, SEEN_EFFORT * more if ruled else 1)


def read_listing(record: Record, shard: int, now: float, *, ruled: bool = True) -> str:
    """Give the name that stood in a part of the list; raises `RemoteProtocolError`."""
    _check(record, Kind.REFERENCE, listing_target(shard), SEEN_EFFORT if ruled else 0, now)
    name = check_name(record.data.decode("ascii", "replace"))
    if shard_of(name) != shard:
        raise RemoteProtocolError("a name in a part of the list where nobody looks for it")
    return name


def make_seen(node: NodeKey, seen: Seen, now: float, *, ruled: bool = True) -> Draft:
    """Give an attestation of a node, still without its work."""
    counts = (min(number, _MOST) for number in (seen.asked, seen.answered))
    data = _SEEN.pack(seen.first, seen.last, seen.flags, *counts)
    effort = SEEN_EFFORT if ruled else 1
    return _draft(node, seen_target(seen.name, seen.key), Kind.ATTESTATION, data, now, effort)


def read_seen(record: Record, name: str, key: bytes, now: float, *, ruled: bool = True) -> Seen:
    """Check what stood in the set of a claim; raises `RemoteProtocolError`."""
    _check(record, Kind.ATTESTATION, seen_target(name, key), SEEN_EFFORT if ruled else 0, now)
    if len(record.data) != _SEEN.size:
        raise RemoteProtocolError("an attestation of another length")
    first, last, flags, asked, answered = _SEEN.unpack(record.data)
    if not first <= last <= (now + CLOCK) // DAY or answered > asked:
        raise RemoteProtocolError("an attestation that cannot be true")
    return Seen(name, key, record.key, first, last, flags, asked, answered)


def decide(
    name: str,
    claims: Iterable[Claim],
    seen: Iterable[Seen],
    witnesses: Mapping[bytes, Witness],
    now: float,
    *,
    ruled: bool = True,
) -> Verdict:
    """Weigh claims that were read by what the nodes say that we know.

    Where a network has no rules (`ruled` False: every node is of one machine and a minute old) each attester counts,
    whoever it is.
    """
    keys = {claim.key for claim in claims if claim.name == name}
    latest: dict[tuple[bytes, bytes], Seen] = {}
    for one in seen:
        if one.name == name and one.key in keys:
            place = one.key, one.attester
            latest[place] = max(latest.get(place, one), one, key=lambda said: (said.last, -said.first, said.flags))
    by_key: dict[bytes, list[Seen]] = {key: [] for key in keys}
    for (key, _), one in latest.items():
        by_key[key].append(one)
    ranked = sorted((_candidate(key, by_key[key], witnesses, now, ruled) for key in keys), key=_rank)
    good = [one for one in ranked if one.good]
    if not ranked:
        state = State.UNKNOWN
    elif not good:
        state = State.CLAIMED
    else:
        state = State.DECIDED if all(one.support * SHARE < good[0].support for one in good[1:]) else State.AMBIGUOUS
    return Verdict(name, state, tuple(ranked[:CLAIMS_SHOWN]), max(0, len(ranked) - CLAIMS_SHOWN))


@frozen
class Certificate:
    """A signer's word that a name is a key's."""

    name: str
    key: bytes = field(repr=address_text)
    signer: bytes = field(repr=id_text)
    expires: int

    @classmethod
    def make(cls, signer: NodeKey, name: str, key: bytes, expires: int) -> bytes:
        """Write and sign one."""
        body = bencode.encode({b"e": expires, b"k": key, b"n": check_name(name).encode(), b"s": signer.node_id})
        return signer.sign(_CERTIFICATE + body) + body

    @classmethod
    def read(cls, raw: bytes) -> Certificate:
        """Read one and check its signature, not whether anybody trusts the signer; raises `RemoteProtocolError`."""
        if len(raw) > CERTIFICATE_MAX:
            raise LimitExceeded("CERTIFICATE_MAX", CERTIFICATE_MAX)
        told = bencode.decode(raw[SIGNATURE:])
        if not isinstance(told, dict):
            raise RemoteProtocolError("a certificate that is no dictionary")
        expires, key, name, signer = (told.get(word) for word in (b"e", b"k", b"n", b"s"))
        if not isinstance(expires, int) or not isinstance(name, bytes) or not name.isascii():
            raise RemoteProtocolError("a certificate with a wrong name or expiry")
        if not isinstance(key, bytes) or not valid(key) or not isinstance(signer, bytes) or len(signer) != NODE_ID:
            raise RemoteProtocolError("a certificate with a wrong key")
        if not verify(signer, raw[:SIGNATURE], _CERTIFICATE + raw[SIGNATURE:]):
            raise RemoteProtocolError("a certificate with a wrong signature")
        return cls(check_name(name.decode("ascii")), key, signer, expires)


def _draft(key: NodeKey, target: bytes, kind: Kind, data: bytes, now: float, effort: int) -> Draft:
    return Draft.make(key, target, kind, data, int(now) + RECORD_LIFE - CLOCK, effort)


def _check(record: Record, kind: Kind, target: bytes, effort: int, now: float) -> None:
    if record.kind != kind or record.target != target:
        raise RemoteProtocolError("a record of another kind or set")
    if not record.good(now, least=effort):
        raise RemoteProtocolError("a record that has expired, lives too long, cost too little, or is not signed")


def _candidate(key: bytes, said: list[Seen], witnesses: Mapping[bytes, Witness], now: float, ruled: bool) -> Candidate:
    known = [one for one in said if not ruled or one.attester in witnesses]
    known.sort(key=lambda one: (witnesses[one.attester].known if ruled else 0.0, one.attester))
    others = [one for one in said if ruled and one.attester not in witnesses]
    days: dict[str, list[int]] = {}
    ways: dict[str, set[bytes]] = {}
    for one in known[:ATTESTERS]:
        if one.flags & Flag.WRONG_KEY:
            continue
        if not ruled:
            network, sources, day = id_text(one.attester), frozenset((one.attester,)), one.first
        else:
            witness = witnesses[one.attester]
            if now - witness.known < KNOWN:
                continue
            network, sources, day = witness.network, witness.sources, max(one.first, int(witness.known // DAY))
        days.setdefault(network, []).append(day)
        ways.setdefault(network, set()).update(sources)
    return Candidate(
        key,
        support=_pairs(ways),
        day=_middle(map(_middle, days.values())) if days else None,
        attesters=len(known),
        strangers=len(said) - len(known),
        flags=_flags(known),
        rumours=_flags(others),
    )


def _flags(said: Iterable[Seen]) -> dict[Flag, int]:
    return dict(Counter(flag for one in said for flag in Flag if one.flags & flag))


def _middle(days: Iterable[int]) -> int:
    """Give the median, the later one of two."""
    ordered = sorted(days)
    return ordered[len(ordered) // 2]


def _rank(one: Candidate) -> tuple[bool, int, int, int, bytes]:
    return not one.good, one.day if one.good and one.day is not None else 0, -one.support, -one.attesters, one.key


def _pairs(ways: Mapping[str, Iterable[bytes]]) -> int:
    """Count how many networks can each be given a source of their own: the largest matching."""
    given: dict[bytes, str] = {}

    def give(network: str, tried: set[bytes]) -> bool:
        for source in sorted(ways[network]):
            if source not in tried:
                tried.add(source)
                if source not in given or give(given[source], tried):
                    given[source] = network
                    return True
        return False

    return sum(give(network, set()) for network in sorted(ways))
