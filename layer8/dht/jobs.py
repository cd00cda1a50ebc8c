"""What a node wants from the others: find nodes, get or list, put or add; each is a lookup and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import define, field, frozen

from layer8.core import bencode
from layer8.core.bencode import Read
from layer8.core.datagram import Peer
from layer8.core.errors import RemoteProtocolError
from layer8.crypto.items import RECORD_EFFORT, SEQ_MOST, Immutable, Item, Mutable, Record
from layer8.crypto.keys import NODE_ID, SIGNATURE
from layer8.dht.limits import SET_ANSWER
from layer8.dht.lookup import Lookup
from layer8.dht.wire import Contact, number, text

TOKEN_MOST = 64  # bytes of somebody's token


class Aim(Enum):
    """What a lookup is for."""

    NODES = b"find_node"
    ITEM = b"get"
    RECORDS = b"l8_list"


@frozen
class Done:
    """A job is over. `nodes` are the nearest that answered, `stored` how many of them took the item."""

    number: int
    nodes: tuple[Contact, ...] = ()
    item: Immutable | Mutable | None = None
    records: tuple[Record, ...] = ()
    stored: int = 0
    refused: int = 0  # the code of the last refusal
    seconds: float = 0.0
    asked: int = 0


@define(eq=False)
class Job:
    """One of them while it runs; `put` is what is to be stored at the end, `salt` that of the item looked for."""

    number: int
    aim: Aim
    lookup: Lookup
    salt: bytes = b""
    put: Item | None = None
    age: int = 0
    cas: int | None = None
    least: int = RECORD_EFFORT
    quick: bool = False  # an immutable item is what it is: the first one found ends the search
    item: Immutable | Mutable | None = None
    records: dict[tuple[int, bytes, bytes], Record] = field(factory=dict)
    tokens: dict[bytes, bytes] = field(factory=dict, repr=False)
    storing: set[bytes] | None = None  # ids that have not said yet what they did with it
    stored: int = 0
    refused: int = 0
    own: bool = False  # of this node's upkeep: nobody is told

    def args(self) -> dict[bytes, bencode.Value]:
        """Give the arguments of its queries, but for our id."""
        return {b"target": self.lookup.target}

    def heard(self, contact: Contact, values: Mapping[bytes, object], now: float) -> None:
        """Take an answer of the search; raises `RemoteProtocolError` for one that is a lie. `now`: since 1970."""
        if self.aim is Aim.NODES:
            return
        if b"token" in values:
            self.tokens[contact.id] = text(values, b"token", 0, TOKEN_MOST)
        if self.aim is Aim.RECORDS:
            self._records(values, now)
        elif b"v" in values:
            self._item(values)

    def arguments(self, contact: Contact) -> tuple[bytes, dict[bytes, bencode.Value]]:
        """Give method and arguments of the query that stores."""
        token = self.tokens[contact.id]
        match self.put:
            case Record(target=target, raw=raw):
                return b"l8_add", {b"target": target, b"rec": raw, b"token": token}
            case Immutable(value=value):
                return b"put", {b"v": bencode.decode(value), b"token": token}
            case Mutable(key=key, seq=seq, signature=signature, value=value, salt=salt):
                args: dict[bytes, bencode.Value] = {
                    b"v": bencode.decode(value),
                    b"k": key,
                    b"seq": seq,
                    b"sig": signature,
                    b"token": token,
                }
                if salt:
                    args[b"salt"] = salt
                if self.cas is not None:
                    args[b"cas"] = self.cas
                return b"put", args
        raise ValueError("nothing to put")

    def found(self, item: Item | None) -> None:
        """Take an item that is good: a higher `seq` wins."""
        if isinstance(item, Immutable) or (
            isinstance(item, Mutable) and (not isinstance(self.item, Mutable) or item.seq > self.item.seq)
        ):
            self.item = item

    def _item(self, values: Mapping[bytes, object]) -> None:
        value = bencode.encode(_read(values[b"v"]))
        item: Immutable | Mutable = Immutable(value)
        if b"k" in values:
            key, signature = text(values, b"k", NODE_ID), text(values, b"sig", SIGNATURE)
            item = Mutable(key, number(values, b"seq", SEQ_MOST), signature, value, self.salt)
        if item.target != self.lookup.target:
            raise RemoteProtocolError("an item of another target")
        if item == self.item:
            return
        if not item.good():
            raise RemoteProtocolError("an item that is not signed")
        self.found(item)

    def _records(self, values: Mapping[bytes, object], now: float) -> None:
        listed = values.get(b"recs")
        for raw in listed[:SET_ANSWER] if isinstance(listed, list) else ():
            record = Record.parse(self.lookup.target, raw if isinstance(raw, bytes) else b"")
            known = self.records.get(record.name)
            if known is not None and known.expires >= record.expires:
                continue
            if record.expires <= now:
                continue  # it was good when it was sent
            if not record.good(now, least=self.least):
                raise RemoteProtocolError("a record that is not good")
            self.records[record.name] = record


@define(eq=False)
class Pending:
    """A query of ours: to whom, what for, and when it was sent."""

    peer: Peer
    contact: Contact | None  # None: whoever is there
    job: Job | None
    sent: float
    challenge: bytes = b""
    storing: bool = False
    slow: bool = False


@frozen
class Stats:
    """Counts for people and metrics."""

    nodes: int
    items: int
    bytes: int
    lookups: int
    queries: int
    answered: int
    refused: int
    dropped: int
    read_only: bool


def _read(value: object) -> Read:
    if isinstance(value, int | bytes | list | dict):
        return value
    raise RemoteProtocolError("an item that is none")
