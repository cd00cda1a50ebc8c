r"""What a node says of itself to everybody: `signature 64 | canonical bencode`, 960 bytes at most.

```
a    list of endpoints, 8 of 128 B each, or `via:` and the id of the gateway to it      b  onion key 32
e    expiry, seconds since 1970                  f    roles, a sum of `Role`            fam  list of <= 16 ids 32
i    identity 32                                 n    mark of the network 8             p    exit summary <= 256 B
s    serial: a later one replaces this           t    when it was made                  v    list of link versions
w    proof of work: `version u8 = 1 | nonce 16`
```
The signature is Ed25519 over `"layer8/1 node\0" | bencode`. `fam`, `p` and `w` are left out when they are empty; other
keys are allowed, kept and signed, so that later versions can say more. Work has the label `layer8 node`, the identity
as its context, the day of `t` (days since 1970, u256) as its seed, and the effort 2^20. Source: network.md section 8.

What breaks the form is a `RemoteProtocolError` from `read`; what is not good here and now, from `check`. Lists of them
travel as `(len u16 | descriptor) * n`, 25 at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntFlag
from functools import cached_property
from typing import Final

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.address import Scope, scope
from layer8.core.errors import ConfigError, LimitExceeded, RemoteProtocolError
from layer8.core.network import MARK, Network
from layer8.core.place import Place, networks, place
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, id_text, parse_id, verify
from layer8.crypto.work import NONCE, SEED, check, following, search

DESC_MAX: Final = 960  # bytes: one cell, one DHT item
DESC_LIFE: Final = 18 * 3600  # seconds
CLOCK: Final = 3600  # seconds that two honest clocks may differ by
DAY: Final = 86_400  # seconds
ENDPOINTS: Final = 8
ENDPOINT: Final = 128  # bytes
FAMILY: Final = 16  # ids
SUMMARY: Final = 256  # bytes
VERSIONS: Final = 8
KEYS: Final = 32  # of the dictionary, unknown ones included
ONION_KEY: Final = 32  # bytes
EFFORT: Final = 2**20
LISTED: Final = 25  # descriptors in one answer: no answer holds more (G1)
VIA: Final = "via:"

_SIGNED: Final = b"layer8/1 node\0"
_LABEL: Final = b"layer8 node"
_WORK: Final = b"\x01"  # version of the proof of work
_MOST: Final = 2**63 - 1


class Role(IntFlag):
    """What a node offers; unknown bits are kept."""

    RELAY = 1
    EXIT = 2
    TRACKER = 4
    DHT = 8
    RENDEZVOUS = 16
    HUB = 32
    MIX = 64


@frozen(slots=False)
class Descriptor:
    """One descriptor, equal to another when its bytes are; made by `make`, `read` or `parse` only."""

    raw: bytes = field(repr=False)
    identity: bytes = field(eq=False, repr=id_text)
    onion_key: bytes = field(eq=False, repr=False)
    endpoints: tuple[str, ...] = field(eq=False)  # that can be dialled
    via: tuple[bytes, ...] = field(eq=False)  # gateways to it
    roles: int = field(eq=False)
    family: frozenset[bytes] = field(eq=False, repr=False)
    network: bytes = field(eq=False, repr=False)
    exits: bytes = field(eq=False, repr=False)  # read by `layer8.relay.exit.parse_summary`
    serial: int = field(eq=False)
    made: int = field(eq=False)
    expires: int = field(eq=False)
    versions: tuple[int, ...] = field(eq=False)
    work: bytes = field(eq=False, repr=False)  # the nonce

    @classmethod
    def read(cls, raw: bytes) -> Descriptor:
        """Read what a peer gave and check its signature; raises `RemoteProtocolError`. About 0.1 ms."""
        found = cls.parse(raw)
        if not verify(found.identity, found.raw[:SIGNATURE], _SIGNED + found.raw[SIGNATURE:]):
            raise RemoteProtocolError("a descriptor with a wrong signature")
        return found

    @classmethod
    def parse(cls, raw: bytes) -> Descriptor:
        """Read what we have checked before, without its signature; raises `RemoteProtocolError`."""
        if len(raw) > DESC_MAX:
            raise LimitExceeded("DESC_MAX", DESC_MAX)
        told = bencode.decode(raw[SIGNATURE:])
        if not isinstance(told, dict) or len(told) > KEYS:
            raise RemoteProtocolError("a descriptor that is no dictionary")
        endpoints = [_endpoint(one) for one in _some(told, b"a", ENDPOINTS)]
        family = _some(told, b"fam", FAMILY) if b"fam" in told else []
        if (b"fam" in told and not family) or len(set(map(_id, family))) != len(family):
            raise RemoteProtocolError("a descriptor with a family that is none")
        if len(set(endpoints)) != len(endpoints):
            raise RemoteProtocolError("a descriptor that says an address twice")
        work = _text(told, b"w", 1 + NONCE, 1 + NONCE)[1:] if b"w" in told else b""
        if work and told[b"w"] != _WORK + work:
            raise RemoteProtocolError("a descriptor with work of an unknown kind")
        made, expires = _number(told, b"t"), _number(told, b"e")
        if not made < expires <= made + DESC_LIFE:
            raise RemoteProtocolError("a descriptor that lives too long or not at all")
        return cls(
            raw=bytes(raw),
            identity=_text(told, b"i", NODE_ID, NODE_ID),
            onion_key=_text(told, b"b", ONION_KEY, ONION_KEY),
            endpoints=tuple(one for one in endpoints if not one.startswith(VIA)),
            via=tuple(parse_id(one.removeprefix(VIA)) for one in endpoints if one.startswith(VIA)),
            roles=_number(told, b"f"),
            family=frozenset(map(_id, family)),
            network=_text(told, b"n", MARK, MARK),
            exits=_text(told, b"p", 1, SUMMARY) if b"p" in told else b"",
            serial=_number(told, b"s"),
            made=made,
            expires=expires,
            versions=tuple(_version(one) for one in _some(told, b"v", VERSIONS)),
            work=work,
        )

    def check(self, network: Network, now: float) -> None:
        """Raise `RemoteProtocolError` unless it is good in this network at this time (seconds since 1970)."""
        if self.network != network.mark:
            raise RemoteProtocolError("a descriptor of another network")
        if self.expires <= now:
            raise RemoteProtocolError("a descriptor that has expired")
        if self.made > now + CLOCK or self.expires > now + DESC_LIFE + CLOCK:
            raise RemoteProtocolError("a descriptor from the future")
        if not network.ruled:
            return
        if any(scope(address) is Scope.MACHINE for address in self.addresses):
            raise RemoteProtocolError("a descriptor with an address of the reader's own machine")
        if not check(_LABEL, self.identity, _seed(self.made), EFFORT, self.work):
            raise RemoteProtocolError("a descriptor without its work")

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where its endpoints lead."""
        return tuple(map(place, self.endpoints))

    @cached_property
    def addresses(self) -> tuple[str, ...]:
        """Every IP address in its endpoints."""
        return tuple(dict.fromkeys(one.host for one in self.places if one.address))

    @cached_property
    def near(self) -> frozenset[str]:
        """The /24 and /48 networks that it is counted under; for a name, that name; for a gateway's, the gateway."""
        return frozenset(networks(one)[0] for one in self.addresses) or self._nowhere

    @cached_property
    def far(self) -> frozenset[str]:
        """The /16 and /32 networks, of which no two hops of a path may share one; for a name, its last two labels."""
        far = frozenset(networks(one)[1] for one in self.addresses)
        return far or frozenset(".".join(one.split(".")[-2:]) for one in self._nowhere)

    def related(self, other: Descriptor) -> bool:
        """Say whether both name each other as family."""
        return other.identity in self.family and self.identity in other.family

    @property
    def _nowhere(self) -> frozenset[str]:
        names = frozenset(one.host for one in self.places if one.host)
        return names or frozenset(map(id_text, self.via)) or frozenset((id_text(self.identity),))


def make(
    key: NodeKey,
    network: Network,
    *,
    onion_key: bytes,
    endpoints: Sequence[str],
    now: float,
    serial: int,
    roles: int = Role.RELAY,
    via: Sequence[bytes] = (),
    family: Iterable[bytes] = (),
    exits: bytes = b"",
    versions: Sequence[int] = (1,),
    work: bytes = b"",
    life: int = DESC_LIFE,
) -> Descriptor:
    """Make and sign a descriptor of `key`; raises `ConfigError` for what nobody would take.

    `work` is the nonce for the day of `now`, from `find_work`; networks without rules need none.
    """
    told: dict[bytes, bencode.Value] = {
        b"a": [*(one.encode() for one in endpoints), *((VIA + id_text(one)).encode() for one in via)],
        b"b": onion_key,
        b"e": int(now) + life,
        b"f": int(roles),
        b"i": key.node_id,
        b"n": network.mark,
        b"s": serial,
        b"t": int(now),
        b"v": list(versions),
    }
    optional: dict[bytes, bencode.Value] = {
        b"fam": sorted(set(family)),
        b"p": exits,
        b"w": _WORK + work if work else b"",
    }
    told.update((name, value) for name, value in optional.items() if value)
    text = bencode.encode(told)
    raw = key.sign(_SIGNED + text) + text
    try:
        made = Descriptor.parse(raw)
        made.check(network, now)
    except RemoteProtocolError as error:
        raise ConfigError(f"this node's descriptor of {len(raw)} bytes would be refused: {error}") from error
    return made


def find_work(identity: bytes, now: float, start: bytes, tries: int) -> tuple[bytes | None, bytes]:
    """Search for the work of a day, so many tries from `start` on (16 random bytes): the nonce, and where to go on.

    About 2^20 tries of 0.6 us are needed: it is for a worker thread, in slices.
    """
    return search(_LABEL, identity, _seed(now), EFFORT, start, tries), following(start, tries)


def pack(raws: Iterable[bytes]) -> bytes:
    """Write a list of descriptors."""
    listed = list(raws)
    if len(listed) > LISTED:
        raise ValueError("a list of more descriptors than LISTED")
    return b"".join(len(raw).to_bytes(2, "big") + raw for raw in listed)


def unpack(data: bytes) -> list[bytes]:
    """Cut a list of descriptors, without reading them; raises `RemoteProtocolError`."""
    raws: list[bytes] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        raw = bytes(data[at + 2 : at + 2 + size])
        if at + 2 > len(data) or len(raw) != size:
            raise RemoteProtocolError("a list of descriptors that ends too early")
        if len(raws) == LISTED:
            raise LimitExceeded("LISTED", LISTED)
        raws.append(raw)
        at += 2 + size
    return raws


def _seed(made: float) -> bytes:
    return (int(made) // DAY).to_bytes(SEED, "big")


def _number(told: dict[bytes, bencode.Read], key: bytes) -> int:
    value = told.get(key)
    if not isinstance(value, int) or not 0 <= value <= _MOST:
        raise RemoteProtocolError(f"a descriptor with a wrong {key.decode()}")
    return value


def _text(told: dict[bytes, bencode.Read], key: bytes, least: int, most: int) -> bytes:
    value = told.get(key)
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise RemoteProtocolError(f"a descriptor with a wrong {key.decode()}")
    return value


def _some(told: dict[bytes, bencode.Read], key: bytes, most: int) -> list[bencode.Read]:
    value = told.get(key)
    if not isinstance(value, list) or len(value) > most:
        raise RemoteProtocolError(f"a descriptor with a wrong {key.decode()}")
    return value


def _endpoint(one: bencode.Read) -> str:
    if not isinstance(one, bytes) or not 0 < len(one) <= ENDPOINT or not one.isascii():
        raise RemoteProtocolError("a descriptor with a wrong address")
    text = one.decode()
    if text.startswith(VIA):
        if id_text(parse_id(text.removeprefix(VIA))) != text.removeprefix(VIA):
            raise RemoteProtocolError("a descriptor with an id in capitals")
    else:
        place(text)
    return text


def _id(one: bencode.Read) -> bytes:
    if not isinstance(one, bytes) or len(one) != NODE_ID:
        raise RemoteProtocolError("a descriptor with a wrong id")
    return one


def _version(one: bencode.Read) -> int:
    if not isinstance(one, int) or not 0 < one < 1 << 16:
        raise RemoteProtocolError("a descriptor with a wrong version")
    return one
