r"""What a DHT keeps: immutable and mutable items (BEP 44), and signed records of which a set holds many.

```
immutable   v                                    target = SHA1(v)
mutable     k 32, seq, sig 64, salt, v           target = SHA1(k | salt)
            sig = Ed25519 over ["4:salt" length ":" salt] "3:seqi" seq "e1:v" v
record      expires u32 | kind u8 | len u16 | data | key 32 | signature 64 | nonce 16 | effort u32, <= 320 B
            signature = Ed25519 over "layer8/1 record\0" | target 20 | expires .. key
            work: label "layer8 set", context SHA-256(record without nonce and effort), seed = target | 12 zeros
```
`v` is canonical bencode, 1000 bytes at most, and is kept as those bytes. Items are what rendezvous and names hand to a
DHT, which is why they stand here.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, id_text, verify
from layer8.crypto.work import NONCE, SEED, check, following, search

TARGET: Final = 20  # bytes, a SHA-1
V_MAX: Final = 1000  # bytes of bencode
SALT_MAX: Final = 64  # bytes
SEQ_MOST: Final = 2**63 - 1
RECORD_MAX: Final = 320  # bytes
RECORD_EFFORT: Final = 2**16  # the least work of a record, in networks with rules; about 30 ms
RECORD_LIFE: Final = 30 * 86_400  # seconds ahead that a record may expire at
ITEMS_PER_VALUE: Final = 5
VALUE_MAX: Final = 4096  # bytes, in parts
PART: Final = 990  # bytes of one part

_RECORD: Final = b"layer8/1 record\0"
_LABEL: Final = b"layer8 set"
_HEAD: Final = struct.Struct(">IBH")
_TAIL: Final = NODE_ID + SIGNATURE + NONCE + 4


class Kind(IntEnum):
    """What a record says; other numbers are kept too."""

    MIRROR = 1
    TAG = 2
    REFERENCE = 3
    AUTHOR = 4
    CLAIM = 5
    ATTESTATION = 6
    MESSAGE = 7


def sha1(*parts: bytes) -> bytes:
    """Make a key of the DHT."""
    return hashlib.sha1(b"".join(parts), usedforsecurity=False).digest()


def signed_text(salt: bytes, seq: int, value: bytes) -> bytes:
    """Give what the signature of a mutable item covers."""
    head = b"4:salt%d:%b" % (len(salt), salt) if salt else b""
    return head + b"3:seqi%de1:v%b" % (seq, value)


@frozen
class Immutable:
    """A value under its own hash; `value` is its bencode."""

    value: bytes = field(repr=False)

    @classmethod
    def of(cls, data: bytes) -> Immutable:
        """Make one of a byte string."""
        return cls(bencode.encode(data))

    @property
    def target(self) -> bytes:
        """Its key."""
        return sha1(self.value)

    @property
    def data(self) -> bytes:
        """The byte string that it holds; raises `RemoteProtocolError` for another kind of value."""
        return _data(self.value)

    def good(self) -> bool:
        """Say whether it keeps the rules; whether it is what was asked for is seen by `target`."""
        return len(self.value) <= V_MAX and _canonical(self.value)


@frozen
class Mutable:
    """A value that the holder of `key` has signed; a higher `seq` replaces a lower one."""

    key: bytes = field(repr=id_text)
    seq: int
    signature: bytes = field(repr=False)
    value: bytes = field(repr=False)
    salt: bytes = b""

    @classmethod
    def make(
        cls, key: bytes, sign: Callable[[bytes], bytes], seq: int, data: bencode.Value, salt: bytes = b""
    ) -> Mutable:
        """Sign one with whatever signs for the public key `key`; raises `ValueError` past the limits."""
        value = bencode.encode(data)
        if len(value) > V_MAX or len(salt) > SALT_MAX or not 0 <= seq <= SEQ_MOST:
            raise ValueError("an item past the limits V_MAX, SALT_MAX or SEQ_MOST")
        return cls(key, seq, sign(signed_text(salt, seq, value)), value, salt)

    @property
    def target(self) -> bytes:
        """Its key in the DHT."""
        return sha1(self.key, self.salt)

    @property
    def data(self) -> bytes:
        """The byte string that it holds; raises `RemoteProtocolError` for another kind of value."""
        return _data(self.value)

    def signed(self) -> bool:
        """Check the signature; about 0.1 ms."""
        return verify(self.key, self.signature, signed_text(self.salt, self.seq, self.value))

    def good(self) -> bool:
        """Say whether it keeps the rules and is signed."""
        fits = len(self.value) <= V_MAX and len(self.salt) <= SALT_MAX and 0 <= self.seq <= SEQ_MOST
        return fits and _canonical(self.value) and self.signed()

    def check(self, target: bytes) -> None:
        """Raise `RemoteProtocolError` unless it is good, and is what stands under this target."""
        if self.target != target:
            raise RemoteProtocolError("an item of another target")
        if not self.good():
            raise RemoteProtocolError("an item over the limits V_MAX, SALT_MAX or SEQ_MOST, or with a wrong signature")


@frozen
class Record:
    """One of many that stand under `target`; `raw` is all of it, and what two are equal by."""

    target: bytes = field(repr=False)
    raw: bytes = field(repr=False)
    expires: int = field(eq=False)
    kind: int = field(eq=False)
    data: bytes = field(eq=False, repr=False)
    key: bytes = field(eq=False, repr=id_text)
    signature: bytes = field(eq=False, repr=False)
    nonce: bytes = field(eq=False, repr=False)
    effort: int = field(eq=False)

    @classmethod
    def parse(cls, target: bytes, raw: bytes) -> Record:
        """Read one, without its signature and its work; raises `RemoteProtocolError`."""
        if len(raw) > RECORD_MAX:
            raise LimitExceeded("RECORD_MAX", RECORD_MAX)
        if len(raw) < _HEAD.size + _TAIL or len(target) != TARGET:
            raise RemoteProtocolError("a record that ends too early")
        expires, kind, size = _HEAD.unpack_from(raw)
        at = _HEAD.size + size
        if len(raw) != at + _TAIL:
            raise RemoteProtocolError("a record of another length than it says")
        key, signature = raw[at : at + NODE_ID], raw[at + NODE_ID : at + NODE_ID + SIGNATURE]
        nonce, effort = raw[-NONCE - 4 : -4], int.from_bytes(raw[-4:], "big")
        return cls(target, bytes(raw), expires, kind, bytes(raw[_HEAD.size : at]), key, signature, nonce, effort)

    @property
    def name(self) -> tuple[int, bytes, bytes]:
        """What a later record takes the place of: the same kind and data by the same key.

        Claims and attestations say anew how things stand: of a key, the last one counts.
        """
        return self.kind, b"" if self.kind in (Kind.CLAIM, Kind.ATTESTATION) else self.data, self.key

    def good(self, now: float, *, least: int = RECORD_EFFORT) -> bool:
        """Check time, work and signature; `least` is 0 in networks without rules. `now` is seconds since 1970."""
        if not now < self.expires <= now + RECORD_LIFE:
            return False
        if least and self.effort < least:
            return False
        if least and not check(_LABEL, *_work(self.target, self.raw), self.effort, self.nonce):
            return False
        end = _HEAD.size + len(self.data) + NODE_ID
        return verify(self.key, self.signature, _RECORD + self.target + self.raw[:end])


@frozen
class Draft:
    """A record that is signed and waits for its work: `search` in slices, in a thread, until `record` gives it."""

    target: bytes
    text: bytes = field(repr=False)
    effort: int = RECORD_EFFORT

    @classmethod
    def make(
        cls,
        key: NodeKey,
        target: bytes,
        kind: int,
        data: bytes,
        expires: int,
        effort: int = RECORD_EFFORT,
    ) -> Draft:
        """Sign one; raises `ValueError` where it would be longer than RECORD_MAX."""
        if _HEAD.size + len(data) + _TAIL > RECORD_MAX:
            raise ValueError("a record longer than RECORD_MAX")
        text = _HEAD.pack(expires, kind, len(data)) + data + key.node_id
        return cls(target, text + key.sign(_RECORD + target + text), effort)

    def search(self, start: bytes, tries: int) -> tuple[bytes | None, bytes]:
        """Try so many nonces from `start` (16 random bytes) on: the one, and where to go on."""
        return search(_LABEL, *_work(self.target, self.text, 0), self.effort, start, tries), following(start, tries)

    def record(self, nonce: bytes = bytes(NONCE)) -> Record:
        """Give the record; without work it is good in networks without rules only."""
        return Record.parse(self.target, self.text + nonce + self.effort.to_bytes(4, "big"))


Item: TypeAlias = Immutable | Mutable | Record


class Items(Protocol):
    """A DHT as its users have it, by circuits; every call raises `Unavailable` or `TimedOut` where nobody answers."""

    async def get(self, target: bytes, salt: bytes = b"", least: int = 0) -> Mutable | None:
        """Give the mutable item of a target with the highest `seq`, checked; None where two say that there is none.

        Raises `RemoteProtocolError` where two with this `seq` are not the same.
        """

    async def fetch(self, target: bytes) -> Immutable | None:
        """Give an immutable item, checked."""

    async def records(self, target: bytes) -> tuple[Record, ...]:
        """Give some records of a set, checked."""

    async def put(self, item: Item) -> int:
        """Store an item or a record, and say at how many nodes; raises `Refused` where it is not taken."""


def parts(key: bytes, sign: Callable[[bytes], bytes], name: bytes, seq: int, data: bytes) -> list[Mutable]:
    """Cut a value of up to 4096 bytes into items under the salts `name/0` to `name/4`; raises `ValueError`."""
    if len(data) > VALUE_MAX:
        raise ValueError("a value longer than VALUE_MAX")
    cut = [data[at : at + PART] for at in range(0, max(len(data), 1), PART)]
    cut[0] = bytes((len(cut),)) + cut[0]
    return [Mutable.make(key, sign, seq, one, part_salt(name, number)) for number, one in enumerate(cut)]


def part_salt(name: bytes, number: int) -> bytes:
    """Give the salt of a part."""
    return b"%b/%d" % (name, number)


def part_count(first: Mutable) -> int:
    """Say how many parts there are; raises `RemoteProtocolError`."""
    data = first.data
    if not data or not 1 <= data[0] <= ITEMS_PER_VALUE:
        raise RemoteProtocolError("a value of an unknown number of parts")
    return data[0]


def whole(found: Iterable[Mutable]) -> bytes:
    """Put parts together again, in order; raises `RemoteProtocolError` where they are not of one value."""
    listed = list(found)
    if not listed or part_count(listed[0]) != len(listed) or len({one.seq for one in listed}) != 1:
        raise RemoteProtocolError("parts of different values")
    return listed[0].data[1:] + b"".join(one.data for one in listed[1:])


def _work(target: bytes, text: bytes, tail: int = NONCE + 4) -> tuple[bytes, bytes]:
    body = text[: len(text) - tail]
    return hashlib.sha256(body).digest(), target + bytes(SEED - TARGET)


def _canonical(value: bytes) -> bool:
    try:
        bencode.decode(value)
    except RemoteProtocolError:
        return False
    return True


def _data(value: bytes) -> bytes:
    data = bencode.decode(value)
    if not isinstance(data, bytes):
        raise RemoteProtocolError("an item that holds no byte string")
    return data
