"""What this node keeps for others: items and records of sets, each until two hours after somebody has put it last.

An item is replaced by one with a higher `seq` and never changed, merged or voted on. Times are seconds since 1970 here:
what is kept survives a restart.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from hmac import compare_digest
from typing import Final, TypeAlias

from attrs import define, field, frozen

from layer8.core.errors import RemoteProtocolError
from layer8.core.place import networks
from layer8.crypto.items import RECORD_EFFORT, RECORD_MAX, SALT_MAX, V_MAX, Immutable, Item, Mutable, Record
from layer8.dht.limits import (
    ANSWER_MAX,
    HELD_LIFE,
    ITEM_BYTES,
    ITEM_LIFE,
    ITEMS,
    PER_SOURCE,
    REPUT,
    SET_ANSWER,
    SET_HOUR,
    SET_RECORDS,
    TOKEN_LIFE,
)
from layer8.dht.wire import BAD_SIGNATURE, CAS, OLD, PROTOCOL, SALT_TOO_BIG, SERVER, TOO_BIG, Refusal

TOKEN: Final = 8  # bytes
RECORDS: Final = ANSWER_MAX - 350  # bytes of an answer that records may take; the rest are nodes, token and marks

Name: TypeAlias = bytes  # the target of an item; target and SHA-256 of a record


@frozen
class Held:
    """One thing that is kept. `born` is when its owner put it last, as far as anybody says."""

    item: Item = field(repr=False)
    put: float
    born: float
    source: str = field(repr=False)  # /24 or /48

    @property
    def name(self) -> Name:
        """Its key in the store."""
        return name(self.item)

    @property
    def expires(self) -> float:
        """When it is dropped."""
        late = self.put + ITEM_LIFE
        return min(late, self.item.expires) if isinstance(self.item, Record) else late

    @property
    def size(self) -> int:
        """How much it counts."""
        return len(self.item.raw) if isinstance(self.item, Record) else len(self.item.value) + 200


def name(item: Item) -> Name:
    """Give the key of an item in the store: of records many have one target."""
    if isinstance(item, Record):
        return item.target + hashlib.sha256(item.raw).digest()
    return item.target


@define(eq=False)
class Tokens:
    """Proofs that whoever puts has asked before, from the same address."""

    _secret: bytes = field(repr=False)

    def make(self, host: str, now: float) -> bytes:
        """Give the token of an address."""
        return self._token(host, int(now // (TOKEN_LIFE / 2)))

    def good(self, host: str, token: bytes, now: float) -> bool:
        """Check one; it is good for 5 to 10 minutes."""
        turn = int(now // (TOKEN_LIFE / 2))
        return any(compare_digest(token, self._token(host, one)) for one in (turn, turn - 1))

    def _token(self, host: str, turn: int) -> bytes:
        return hashlib.blake2b(b"%d %b" % (turn, host.encode()), key=self._secret, digest_size=TOKEN).digest()


@define(eq=False)
class Store:
    """See the module; `secret` is 32 random bytes. `ruled` networks ask for work, and count sources."""

    _secret: bytes = field(repr=False)
    ruled: bool = True
    tokens: Tokens = field(init=False, repr=False)
    size: int = field(default=0, init=False)
    changed: set[Name] = field(factory=set, init=False, repr=False)  # since somebody has written it down
    _items: dict[Name, Held] = field(factory=dict, init=False, repr=False)  # the one that was put first is first
    _sets: dict[Name, dict[Name, Held]] = field(factory=dict, init=False, repr=False)
    _sources: Counter[str] = field(factory=Counter, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Make the tokens of this run."""
        self.tokens = Tokens(self._secret)

    def __len__(self) -> int:
        """Count items and records."""
        return len(self._items)

    def __iter__(self) -> Iterator[Held]:
        """Give all of it."""
        return iter(tuple(self._items.values()))

    def get(self, target: Name, now: float) -> Immutable | Mutable | None:
        """Give the item of a target."""
        held = self._items.get(target)
        if held is None or held.expires <= now or isinstance(held.item, Record):
            return None
        return held.item

    def held(self, key: Name) -> Held | None:
        """Give what stands under a key of the store."""
        return self._items.get(key)

    def records(self, target: Name, now: float) -> list[Record]:
        """Give some records of a set: whoever asks, and however often, for an hour the same ones."""
        some = (one for one in self._sets.get(target, {}).values() if one.expires > now)
        chosen: list[Record] = []
        left = RECORDS
        for record in same_for_an_hour((one.item for one in some if isinstance(one.item, Record)), self._secret, now):
            if len(record.raw) + 5 <= left:
                left -= len(record.raw) + 5
                chosen.append(record)
        return chosen

    def put(self, item: Item, host: str, token: bytes, now: float, *, cas: int | None = None, age: int = 0) -> Held:
        """Take an item that somebody puts, or raise the `Refusal` that he gets; checks in the order of BEP 44."""
        self._sizes(item)
        if not self.tokens.good(host, token, now):
            raise Refusal(PROTOCOL, "invalid token")
        known = self._items.get(name(item))
        same = known is not None and known.item == item  # what is here has been checked
        if not same and not self._signed(item, now):
            raise Refusal(BAD_SIGNATURE)
        if isinstance(item, Mutable):
            self._later(item, known, cas)
        source = networks(host)[0]
        held = Held(item, now, now - age if not same or known is None else max(known.born, now - age), source)
        self._enter(held, known, now)
        return held

    def restore(self, held: Held, now: float) -> None:
        """Take what was written down, as it was."""
        if held.expires > now and len(self._items) < ITEMS:
            self._place(held, self._items.get(held.name))
            self.changed.discard(held.name)

    def prune(self, now: float) -> None:
        """Drop what has expired."""
        for held in [one for one in self._items.values() if one.expires <= now]:
            self._drop(held)

    def due(self, now: float) -> list[Held]:
        """Give what nobody has put again for an hour, though its owner is not long gone."""
        found = []
        for held in self._items.values():
            if held.put > now - REPUT:
                break  # they stand in the order in which they were put
            if now - held.born < HELD_LIFE and held.expires > now:
                found.append(held)
        return found

    def refresh(self, held: Held, now: float) -> None:
        """Let what this node has put again live on here too."""
        if self._items.get(held.name) is held:
            self._place(Held(held.item, now, held.born, held.source), held)

    def _sizes(self, item: Item) -> None:
        if isinstance(item, Record):
            if len(item.raw) > RECORD_MAX:
                raise Refusal(TOO_BIG)
            return
        if len(item.value) > V_MAX:
            raise Refusal(TOO_BIG)
        if isinstance(item, Mutable) and len(item.salt) > SALT_MAX:
            raise Refusal(SALT_TOO_BIG)

    def _signed(self, item: Item, now: float) -> bool:
        if isinstance(item, Record):
            return item.good(now, least=RECORD_EFFORT if self.ruled else 0)
        return item.good()

    def _later(self, item: Mutable, known: Held | None, cas: int | None) -> None:
        old = known.item if known is not None else None
        if not isinstance(old, Mutable):
            return
        if item.seq < old.seq or (item.seq == old.seq and item.value != old.value):
            raise Refusal(OLD)
        if cas is not None and cas != old.seq:
            raise Refusal(CAS)

    def _enter(self, held: Held, known: Held | None, now: float) -> None:
        if isinstance(held.item, Record) and known is None:
            known = self._room_in_set(held.item)
        fresh = known is None or known.source != held.source
        if self.ruled and fresh and self._sources[held.source] >= PER_SOURCE:
            raise Refusal(SERVER)
        size = self.size + held.size - (0 if known is None else known.size)
        if (known is None and len(self._items) >= ITEMS) or size > ITEM_BYTES:
            self.prune(now)
            if len(self._items) >= ITEMS or size > ITEM_BYTES:
                raise Refusal(SERVER)
        self._place(held, known)

    def _room_in_set(self, record: Record) -> Held | None:
        """Give the record that a new one takes the place of; None where there is room, a `Refusal` where none is."""
        there = self._sets.get(record.target, {})
        for held in there.values():
            assert isinstance(held.item, Record)
            if held.item.name == record.name:
                if held.item.expires > record.expires:
                    raise Refusal(OLD)
                return held
        if len(there) < SET_RECORDS:
            return None
        least = min(there.values(), key=_effort)
        if _effort(least) >= record.effort:
            raise Refusal(SERVER, "no room in this set for so little work")
        return least

    def _place(self, held: Held, known: Held | None) -> None:
        if known is not None and self._items.get(known.name) is known:
            self._drop(known)
        self._items[held.name] = held
        if isinstance(held.item, Record):
            self._sets.setdefault(held.item.target, {})[held.name] = held
        self.size += held.size
        self._sources[held.source] += 1
        self.changed.add(held.name)

    def _drop(self, held: Held) -> None:
        del self._items[held.name]
        if isinstance(held.item, Record):
            there = self._sets[held.item.target]
            del there[held.name]
            if not there:
                del self._sets[held.item.target]
        self.size -= held.size
        self._sources[held.source] -= 1
        if not self._sources[held.source]:
            del self._sources[held.source]
        self.changed.add(held.name)


def same_for_an_hour(records: Iterator[Record], secret: bytes, now: float, most: int = SET_ANSWER) -> list[Record]:
    """Draw records so that the next draw out of the same ones, within the hour, is the same."""
    hour = b"%d" % int(now // SET_HOUR)

    def place(record: Record) -> bytes:
        return hashlib.blake2b(hour + record.raw, key=secret, digest_size=16).digest()

    return sorted(records, key=place)[:most]


def read_item(kind: int, text: bytes) -> Item:
    """Read what `write_item` has written; raises `RemoteProtocolError`."""
    if kind == 1 and len(text) >= 105 and len(text) >= 105 + text[104]:
        at = 105 + text[104]
        return Mutable(text[:32], int.from_bytes(text[32:40], "big"), text[40:104], text[at:], text[105:at])
    if kind == 2:
        return Immutable(text)
    if kind == 3 and len(text) >= 20:
        return Record.parse(text[:20], text[20:])
    raise RemoteProtocolError("an item of no known kind, or cut off")


def write_item(item: Item) -> tuple[int, bytes]:
    """Give kind and text of an item: 1 mutable, 2 immutable, 3 a record of a set, as DHT_STORE has them."""
    if isinstance(item, Mutable):
        head = item.key + item.seq.to_bytes(8, "big") + item.signature + bytes((len(item.salt),))
        return 1, head + item.salt + item.value
    if isinstance(item, Immutable):
        return 2, item.value
    return 3, item.target + item.raw


def _effort(held: Held) -> int:
    return held.item.effort if isinstance(held.item, Record) else 0
