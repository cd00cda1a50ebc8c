r"""What a hidden service says to those who know its address: where to knock (docs/names.md).

```
text    canonical bencode, 964 bytes at most, of
        e  expiry      i  list of points, 5 at most      m  list of modes (0, 1)      v  version 1
        p  [seed 32, effort, expiry] of the work that knocking costs; left out where it costs none
point   node id 32 | onion key 32 | auth key 32 | enc key 32 | endpoint, 40 bytes at most
item    key A' of the period, salt `d`, seq = second of publication, value as in `layer8.crypto.curtain`
lists   where only known clients are let in: salts `a0` to `a7`, the same key and seq
public  of a resource: key A itself, no salt, value = text as it is; found by SHA-1(A) alone
```
Times are seconds since 1970. Unknown keys are left alone, so that later versions can say more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.errors import ConfigError, LimitExceeded, LocalProtocolError, RemoteProtocolError
from layer8.core.place import place
from layer8.crypto.blind import BlindKey, blinded, valid
from layer8.crypto.curtain import (
    AUTH_CLIENTS,
    LISTS,
    TEXT_MAX,
    ClientKey,
    client_lists,
    good_client,
    seal,
    unseal,
)
from layer8.crypto.items import Mutable, sha1
from layer8.crypto.keys import NODE_ID, NodeKey, id_text, parse_id
from layer8.crypto.work import EFFORT_MOST, SEED
from layer8.rendezvous.address import OVERLAP, PERIOD

POINTS: Final = 5  # six of usual length would not fit
ENDPOINT: Final = 40  # bytes
LIFE: Final = PERIOD + OVERLAP  # seconds that one may live
CLOCK: Final = 3600  # seconds that two honest clocks may differ by
KEYS: Final = 16  # of the dictionary, unknown ones included
SALT: Final = b"d"
VERSION: Final = 1
CLIENT_NAME: Final = 32  # letters
_KEY: Final = 32
_POINT: Final = NODE_ID + 3 * _KEY
_MOST: Final = 2**63 - 1
LIST_SALTS: Final = tuple(b"a%d" % number for number in range(LISTS))


@frozen
class Point:
    """One node that takes knocks for the service."""

    node: bytes = field(repr=id_text)
    onion_key: bytes = field(repr=False)
    auth_key: bytes = field(repr=False)
    enc_key: bytes = field(repr=False)
    endpoint: str

    def encode(self) -> bytes:
        """Write it."""
        return self.node + self.onion_key + self.auth_key + self.enc_key + self.endpoint.encode("ascii")

    @classmethod
    def read(cls, raw: bencode.Read) -> Point:
        """Read one; raises `RemoteProtocolError`."""
        if not isinstance(raw, bytes) or not _POINT < len(raw) <= _POINT + ENDPOINT or not raw[_POINT:].isascii():
            raise RemoteProtocolError("a service's descriptor with a wrong point")
        endpoint = raw[_POINT:].decode("ascii")
        place(endpoint)
        node, onion_key, auth_key, enc_key = (raw[at : at + _KEY] for at in range(0, _POINT, _KEY))
        return cls(node, onion_key, auth_key, enc_key, endpoint)


@frozen
class Price:
    """The work that knocking costs: the seed that is good until `expires`, and the effort that is suggested."""

    seed: bytes = field(repr=False)
    effort: int
    expires: int


@frozen
class ServiceDescriptor:
    """Everything that a client has to know."""

    expires: int
    points: tuple[Point, ...]
    modes: tuple[int, ...] = (1,)
    price: Price | None = None

    def encode(self) -> bytes:
        """Write it; raises `ConfigError` for what no client would take."""
        told: dict[bytes, bencode.Value] = {
            b"e": self.expires,
            b"i": [point.encode() for point in self.points],
            b"m": list(self.modes),
            b"v": VERSION,
        }
        if self.price is not None:
            told[b"p"] = [self.price.seed, self.price.effort, self.price.expires]
        text = bencode.encode(told)
        try:
            self.parse(text)
        except RemoteProtocolError as error:
            raise ConfigError(f"this service's descriptor of {len(text)} bytes would be refused: {error}") from error
        return text

    @classmethod
    def parse(cls, text: bytes) -> ServiceDescriptor:
        """Read one; raises `RemoteProtocolError`."""
        if len(text) > TEXT_MAX:
            raise LimitExceeded("TEXT_MAX", TEXT_MAX)
        told = bencode.decode(text)
        if not isinstance(told, dict) or len(told) > KEYS:
            raise RemoteProtocolError("a service's descriptor that is no dictionary")
        if told.get(b"v") != VERSION:
            raise RemoteProtocolError("a service's descriptor of an unknown version")
        points, modes = told.get(b"i"), told.get(b"m")
        if not isinstance(points, list) or not points:
            raise RemoteProtocolError("a service's descriptor without a point")
        if len(points) > POINTS:
            raise LimitExceeded("POINTS", POINTS)
        read = tuple(Point.read(one) for one in points)
        if len({point.auth_key for point in read}) != len(read):
            raise RemoteProtocolError("a service's descriptor that names a point twice")
        if not isinstance(modes, list) or not 0 < len(modes) <= 2 or not all(mode in (0, 1) for mode in modes):
            raise RemoteProtocolError("a service's descriptor with wrong modes")
        kept = tuple(mode for mode in modes if isinstance(mode, int))
        if len(set(kept)) != len(kept):
            raise RemoteProtocolError("a service's descriptor with a mode twice")
        price = _price(told[b"p"]) if b"p" in told else None
        return cls(_number(told.get(b"e"), _MOST), read, kept, price)

    def check(self, now: float) -> None:
        """Raise `RemoteProtocolError` unless it is good at this time."""
        if self.expires <= now:
            raise RemoteProtocolError("a service's descriptor that has expired")
        if self.expires > now + LIFE + CLOCK:
            raise RemoteProtocolError("a service's descriptor from the future")


def publish(
    key: NodeKey,
    period: int,
    descriptor: ServiceDescriptor,
    seq: int,
    *,
    cookie: bytes = b"",
    clients: Iterable[bytes] = (),
) -> list[Mutable]:
    """Give the items of one period: the descriptor, and the lists of `clients` where a cookie is needed.

    `seq` is the second of publication, above the last one. Without a cookie everybody who knows the address may come.
    Raises `ConfigError` and `LocalProtocolError`.
    """
    known = list(clients)
    if known and not cookie:
        raise LocalProtocolError("clients without a cookie would shut out nobody")
    blind = BlindKey.of(key, period)
    sealed = seal(key.node_id, blind.public, cookie, seq, descriptor.encode())
    items = [Mutable.make(blind.public, blind.sign, seq, sealed, SALT)]
    for number, one in enumerate(client_lists(blind.public, cookie, known) if known else ()):
        items.append(Mutable.make(blind.public, blind.sign, seq, one, LIST_SALTS[number]))
    return items


def publish_public(key: NodeKey, descriptor: ServiceDescriptor, seq: int) -> Mutable:
    """Give the item of a resource, which whoever has the SHA-1 of its key finds and reads; raises `ConfigError`."""
    return Mutable.make(key.node_id, key.sign, seq, descriptor.encode())


def read_public(target: bytes, item: Mutable, now: float) -> ServiceDescriptor:
    """Check and read what somebody gave for a resource's descriptor: `item.key` is its key, and hashes to `target`.

    Raises `RemoteProtocolError`.
    """
    if item.salt or sha1(item.key) != target:
        raise RemoteProtocolError("a resource's descriptor by another key than the one that was asked for")
    item.check(target)
    if not valid(item.key):
        raise RemoteProtocolError("a resource's key that is no point of prime order: nobody can have that key")
    found = ServiceDescriptor.parse(item.data)
    found.check(now)
    return found


def targets(key: bytes, period: int) -> tuple[bytes, tuple[bytes, ...]]:
    """Give where the descriptor of a service is stored, and where its lists of clients are."""
    public = blinded(key, period)
    return sha1(public, SALT), tuple(sha1(public, salt) for salt in LIST_SALTS)


def find_cookie(key: bytes, period: int, lists: Sequence[Mutable], client: ClientKey) -> bytes:
    """Give the cookie that a service left for a client in those of its lists that were found.

    Raises `RemoteProtocolError`, and `NotAuthorised` where it is in none of them.
    """
    public = blinded(key, period)
    for item in lists[:LISTS]:
        if item.salt not in LIST_SALTS:
            raise RemoteProtocolError("a list of clients under another salt")
        item.check(sha1(public, item.salt))
    return client.find(public, [item.data for item in lists])


def read_item(key: bytes, period: int, item: Mutable, now: float, *, cookie: bytes = b"") -> ServiceDescriptor:
    """Check and open what somebody gave for a service's descriptor; raises `RemoteProtocolError`."""
    public = blinded(key, period)
    item.check(sha1(public, SALT))
    found = ServiceDescriptor.parse(unseal(key, public, cookie, item.seq, item.data))
    found.check(now)
    return found


def clash(one: Mutable, other: Mutable) -> bool:
    """Tell whether two good items show that two services hold one key: the same place and `seq`, not the same word."""
    return one.target == other.target and one.seq == other.seq and one.value != other.value


def parse_clients(text: str) -> dict[str, bytes]:
    """Read a file of clients, `name = key` a line, the key as 52 letters, # for remarks; raises `ConfigError`."""
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        name, equals, key = (word.strip() for word in words.partition("="))
        if not equals or not 0 < len(name) <= CLIENT_NAME or not name.isprintable():
            raise ConfigError(f"line {number}: write `name = key`, a name of {CLIENT_NAME} letters at most")
        try:
            public = parse_id(key)
        except RemoteProtocolError:
            raise ConfigError(f"line {number}: the key of {name} has to be 52 letters of base32") from None
        if not good_client(public):
            raise ConfigError(f"line {number}: the key of {name} is one that anybody has")
        if name in found or public in found.values():
            raise ConfigError(f"line {number}: {name} or its key stands there twice")
        found[name] = public
        if len(found) > AUTH_CLIENTS:
            raise ConfigError(f"line {number}: over the limit AUTH_CLIENTS of {AUTH_CLIENTS}")
    return found


def _price(value: bencode.Read) -> Price:
    if not isinstance(value, list) or len(value) != 3:
        raise RemoteProtocolError("a service's descriptor with a wrong price")
    seed, effort, expires = value
    if not isinstance(seed, bytes) or len(seed) != SEED:
        raise RemoteProtocolError("a service's descriptor with a wrong seed")
    return Price(seed, _number(effort, EFFORT_MOST), _number(expires, _MOST))


def _number(value: bencode.Read | None, most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise RemoteProtocolError("a service's descriptor with a wrong number")
    return value
