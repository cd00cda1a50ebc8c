r"""KRPC (BEP 5, 43, 44) with the marks of this network: one canonical bencoded dictionary in a datagram.

```
query    {t, y: "q", q: method, a: {id 20, ...}, l8: {v: 1, n: network 8 [, c: challenge 16] [, a: age]} [, ro: 1]}
answer   {t, y: "r", r: {id 20, ...}, l8: {v: 1, n: network 8 [, k: key 32, s: signature 64]}, ip: compact}
error    {t, y: "e", e: [code, text]}

ping       -> id
find_node  target 20 [, want ["n4", "n6"]]      -> nodes, nodes6
get        target 20 [, seq]                    -> token, nodes, nodes6 [, v] [, k 32, sig 64, seq]
put        token, v [, k 32, sig 64, seq, salt <= 64] [, cas]   -> id
l8_list    target 20                            -> token, nodes, nodes6, recs [record, ...]
l8_add     token, target 20, rec                -> id
```
`s` is Ed25519 over `"layer8/1 dht\0" | c | asker's compact address | id of who answers`, and that id is SHA1(k).
A compact address is IP and port, 6 or 18 bytes; a compact node has its id before that. `ip` is where the query is from.
`a` of `l8` is given by a holder that puts an item again: seconds since its owner did.

Reading takes canonical bencode only, and lets keys pass that it does not know.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.bencode import Read
from layer8.core.datagram import Peer
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.core.network import MARK
from layer8.crypto.items import TARGET
from layer8.crypto.keys import NODE_ID, SIGNATURE
from layer8.dht.limits import ANSWER_MAX, KRPC_MAX, TID_MAX

VERSION: Final = 1
CHALLENGE: Final = 16  # bytes
COMPACT: Final = {6: 4, 18: 6}  # bytes of an address, by its family
PROOF: Final = b"layer8/1 dht\0"
AGE_MOST: Final = 2**31

GENERIC: Final = 201
SERVER: Final = 202
PROTOCOL: Final = 203
UNKNOWN: Final = 204
TOO_BIG: Final = 205
BAD_SIGNATURE: Final = 206
SALT_TOO_BIG: Final = 207
CAS: Final = 301
OLD: Final = 302

TEXTS: Final[Mapping[int, str]] = {
    GENERIC: "generic error",
    SERVER: "no room",
    PROTOCOL: "protocol error",
    UNKNOWN: "method unknown",
    TOO_BIG: "message too big",
    BAD_SIGNATURE: "invalid signature",
    SALT_TOO_BIG: "salt too big",
    CAS: "cas mismatch",
    OLD: "sequence number less than current",
}


class Refusal(RemoteProtocolError):
    """What a query is answered with an error for."""

    def __init__(self, code: int, text: str = "") -> None:
        """Take a code of the table above."""
        super().__init__(text or TEXTS[code])
        self.code = code


@frozen
class Contact:
    """A node and where it is said to be."""

    id: bytes
    host: str
    port: int

    @property
    def peer(self) -> Peer:
        """Its address as datagrams have it."""
        return self.host, self.port

    @property
    def number(self) -> int:
        """Its id as a number, for distances."""
        return int.from_bytes(self.id, "big")


@frozen
class Mark:
    """The key `l8`: which network, and a proof that is asked for or given."""

    network: bytes
    challenge: bytes = b""
    key: bytes = field(default=b"", repr=False)
    signature: bytes = field(default=b"", repr=False)
    age: int = 0

    def value(self) -> dict[bytes, bencode.Value]:
        """Give it as bencode has it."""
        told: dict[bytes, bencode.Value] = {b"n": self.network, b"v": VERSION}
        optional = {b"c": self.challenge, b"k": self.key, b"s": self.signature}
        told.update((name, value) for name, value in optional.items() if value)
        if self.age:
            told[b"a"] = self.age
        return told


@frozen
class Query:
    """A question, ours or somebody's."""

    tid: bytes
    method: bytes
    args: Mapping[bytes, bencode.Value | Read]
    mark: Mark | None = None
    read_only: bool = False

    def encode(self) -> bytes:
        """Give the datagram."""
        told: dict[bytes, bencode.Value] = {b"t": self.tid, b"y": b"q", b"q": self.method, b"a": self.args}
        if self.mark is not None:
            told[b"l8"] = self.mark.value()
        if self.read_only:
            told[b"ro"] = 1
        return bencode.encode(told)


@frozen
class Answer:
    """What somebody says to a question."""

    tid: bytes
    values: Mapping[bytes, bencode.Value | Read]
    mark: Mark | None = None
    outside: bytes = b""  # the compact address that the question came from

    def encode(self) -> bytes:
        """Give the datagram; nodes are left out as far as it would be longer than ANSWER_MAX."""
        values = dict(self.values)
        told: dict[bytes, bencode.Value] = {b"t": self.tid, b"y": b"r", b"r": values}
        if self.mark is not None:
            told[b"l8"] = self.mark.value()
        if self.outside:
            told[b"ip"] = self.outside
        text = bencode.encode(told)
        for name, size in ((b"nodes6", TARGET + 18), (b"nodes", TARGET + 6)):
            while len(text) > ANSWER_MAX and values.get(name):
                nodes = values[name]
                assert isinstance(nodes, bytes)
                values[name] = nodes[:-size]
                text = bencode.encode(told)
        return text


@frozen
class Failure:
    """An error."""

    tid: bytes
    code: int
    text: str = ""

    def encode(self) -> bytes:
        """Give the datagram."""
        return bencode.encode({b"t": self.tid, b"y": b"e", b"e": [self.code, (self.text or TEXTS[self.code]).encode()]})


Message: TypeAlias = Query | Answer | Failure


def read(data: bytes) -> Message:
    """Read a datagram; raises `RemoteProtocolError`, a `Refusal` where it was a query that names itself."""
    if len(data) > KRPC_MAX:
        raise LimitExceeded("KRPC_MAX", KRPC_MAX)
    told = bencode.decode(data)
    if not isinstance(told, dict):
        raise RemoteProtocolError("a message that is no dictionary")
    tid, kind = told.get(b"t"), told.get(b"y")
    if not isinstance(tid, bytes) or len(tid) > TID_MAX:
        raise RemoteProtocolError("a message without a name")
    mark = _mark(told.get(b"l8"))
    if kind == b"q":
        method, args = told.get(b"q"), told.get(b"a")
        if not isinstance(method, bytes) or not isinstance(args, dict):
            raise RemoteProtocolError("a query that asks nothing")
        return Query(tid, method, args, mark, told.get(b"ro") == 1)
    if kind == b"r":
        values, outside = told.get(b"r"), told.get(b"ip", b"")
        if not isinstance(values, dict):
            raise RemoteProtocolError("an answer that says nothing")
        return Answer(tid, values, mark, outside if isinstance(outside, bytes) and len(outside) in COMPACT else b"")
    if kind == b"e":
        match told.get(b"e"):
            case [int(code), bytes(text), *_]:
                return Failure(tid, code, text.decode("ascii", "replace"))
    raise RemoteProtocolError("a message of no known kind")


def text(values: Mapping[bytes, object], key: bytes, least: int, most: int | None = None) -> bytes:
    """Give a byte string of a message; raises `Refusal`."""
    value = values.get(key)
    if not isinstance(value, bytes) or not least <= len(value) <= (least if most is None else most):
        raise Refusal(PROTOCOL, f"a wrong {key.decode()}")
    return value


def number(values: Mapping[bytes, object], key: bytes, most: int) -> int:
    """Give a number of a message; raises `Refusal`."""
    value = values.get(key)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise Refusal(PROTOCOL, f"a wrong {key.decode()}")
    return value


@lru_cache(maxsize=4096)
def compact(host: str, port: int) -> bytes:
    """Write an address in 6 or 18 bytes; an IPv4 one inside IPv6 in 6."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.packed + port.to_bytes(2, "big")


def read_compact(data: bytes) -> Peer:
    """Read one."""
    return str(ipaddress.ip_address(data[:-2])), int.from_bytes(data[-2:], "big")


def nodes(contacts: Iterable[Contact]) -> dict[bytes, bencode.Value]:
    """Write nodes as answers have them, by family."""
    found: dict[bytes, list[bytes]] = {}
    for one in contacts:
        address = compact(one.host, one.port)
        found.setdefault(b"nodes" if len(address) == 6 else b"nodes6", []).append(one.id + address)
    return {name: b"".join(listed) for name, listed in found.items()}


def read_nodes(values: Mapping[bytes, object], most: int) -> list[Contact]:
    """Read the nodes of an answer, `most` of each family; raises `RemoteProtocolError`."""
    found: list[Contact] = []
    for name, size in ((b"nodes", TARGET + 6), (b"nodes6", TARGET + 18)):
        listed = values.get(name, b"")
        if not isinstance(listed, bytes) or len(listed) % size:
            raise RemoteProtocolError("nodes that are none")
        for at in range(0, min(len(listed), most * size), size):
            host, port = read_compact(listed[at + TARGET : at + size])
            if port:
                found.append(Contact(listed[at : at + TARGET], host, port))
    return found


def proof_text(challenge: bytes, asker: bytes, node: bytes) -> bytes:
    """Give what the signature of a proof covers; `asker` is a compact address."""
    return PROOF + challenge + asker + node


def _mark(told: Read | None) -> Mark | None:
    """Read the key `l8`; whatever is wrong with it is another network's."""
    if not isinstance(told, dict) or told.get(b"v") != VERSION:
        return None
    network = told.get(b"n")
    if not isinstance(network, bytes) or len(network) != MARK:
        return None
    sizes = {b"c": CHALLENGE, b"k": NODE_ID, b"s": SIGNATURE}
    found = {}
    for name, size in sizes.items():
        value = told.get(name, b"")
        if not isinstance(value, bytes) or len(value) not in (0, size):
            return None
        found[name] = value
    age = told.get(b"a", 0)
    if not isinstance(age, int) or not 0 <= age <= AGE_MOST:
        return None
    return Mark(network, found[b"c"], found[b"k"], found[b"s"], age)
