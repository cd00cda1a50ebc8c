"""The rows `dht.*`: what a node asks the DHT by its circuits, and on a node of the DHT, how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from attrs import frozen

from layer8.control.access import Caller
from layer8.control.table import method
from layer8.core.chance import Chance
from layer8.core.errors import Refused, RemoteProtocolError
from layer8.core.members import Bounds, member
from layer8.crypto.descriptor import Descriptor
from layer8.crypto.items import (
    RECORD_EFFORT,
    SALT_MAX,
    SEQ_MOST,
    TARGET,
    V_MAX,
    Draft,
    Immutable,
    Mutable,
    Record,
    sha1,
)
from layer8.crypto.keys import NodeKey, id_text, parse_id
from layer8.dht.asking import Asking
from layer8.dht.jobs import Stats
from layer8.dht.service import DhtService

HEX: Final = Bounds(0, 2 * TARGET, "([0-9a-f]{40})?")
DAY: Final = 86_400

Work = Callable[[Draft], Awaitable[Record]]
"""Do the work of a record, in a thread."""


@frozen
class Get:
    """`dht.get`: by a node id or another public key, with a salt if there is one; or by a target in hexadecimal."""

    key: Annotated[str, Bounds(0, 52)] = ""
    salt: Annotated[str, Bounds(0, SALT_MAX)] = ""
    target: Annotated[str, HEX] = ""


@frozen
class Got:
    """An item, if there is one; `value` is its bencode."""

    target: str
    found: bool
    key: str = ""
    seq: int = 0
    value: bytes = b""


@frozen
class Put:
    """`dht.put`: without a salt under its own hash, with one under this node's key; `seq` 0 is the time."""

    value: Annotated[bytes, Bounds(0, V_MAX - 5)]
    salt: Annotated[str, Bounds(0, SALT_MAX)] = ""
    seq: int = member(0, least=0, most=2**53)


@frozen
class Stored:
    """Where it is, and how many nodes have it."""

    target: str
    nodes: int


@frozen
class Target:
    """A target in hexadecimal; `dht.nodes` takes a random one if there is none."""

    target: Annotated[str, HEX] = ""


@frozen
class RecordRow:
    """One record of a set."""

    kind: int
    data: bytes
    key: str
    expires: int
    effort: int


@frozen
class Records:
    """Some of the records that stand under a target."""

    records: tuple[RecordRow, ...]


@frozen
class Add:
    """`dht.add`: a record under a target, signed by a key that is made for it, or by this node's if `known`."""

    target: Annotated[str, Bounds(2 * TARGET, 2 * TARGET, "[0-9a-f]{40}")]
    kind: int = member(least=0, most=255)
    data: Annotated[bytes, Bounds(0, 197)] = b""
    days: int = member(7, least=1, most=30)
    known: bool = False


@frozen
class NodeRow:
    """A node near the target, as it describes itself; endpoints of a dark node are its gateways."""

    node: str
    endpoints: tuple[str, ...]


@frozen
class Near:
    """Nodes, the nearest first."""

    nodes: tuple[NodeRow, ...]


class AskingRows:
    """Asking the DHT, for every node of the network."""

    owns = ("dht",)

    def __init__(
        self, asking: Asking, key: NodeKey, chance: Chance, wall: Callable[[], float], work: Work, ruled: bool
    ) -> None:
        """`ruled`: whether records need work."""
        self._asking = asking
        self._key = key
        self._chance = chance
        self._wall = wall
        self._work = work
        self._ruled = ruled

    @method("dht.get", role="operate")
    async def get(self, caller: Caller, params: Get) -> Got:
        """Look an item up, by two circuits."""
        salt = params.salt.encode()
        if params.key:
            target = sha1(_key(params.key), salt)
        elif params.target:
            target = bytes.fromhex(params.target)
        else:
            raise Refused("a key or a target is needed")
        item: Mutable | Immutable | None = await self._asking.get(target, salt)
        if item is None and not params.key:
            item = await self._asking.fetch(target)
        if item is None:
            return Got(target.hex(), False)
        if isinstance(item, Mutable):
            return Got(target.hex(), True, id_text(item.key), min(item.seq, 2**53), item.value)
        return Got(target.hex(), True, value=item.value)

    @method("dht.put", role="operate")
    async def put(self, caller: Caller, params: Put) -> Stored:
        """Store a value, by two circuits; it is forgotten two hours after somebody has put it last."""
        item: Immutable | Mutable = Immutable.of(params.value)
        if params.salt:
            seq = min(params.seq or int(self._wall()), SEQ_MOST)
            item = Mutable.make(self._key.node_id, self._key.sign, seq, params.value, params.salt.encode())
        return Stored(item.target.hex(), await self._asking.put(item))

    @method("dht.list", role="operate")
    async def list(self, caller: Caller, params: Target) -> Records:
        """Give some of the records under a target, by two circuits."""
        found = await self._asking.records(self._target(params))
        rows = (RecordRow(one.kind, one.data, id_text(one.key), one.expires, one.effort) for one in found)
        return Records(tuple(rows))

    @method("dht.add", role="operate")
    async def add(self, caller: Caller, params: Add) -> Stored:
        """Add a record to the set of a target."""
        key = self._key if params.known else NodeKey.make()
        target, expires = bytes.fromhex(params.target), int(self._wall()) + params.days * DAY - 60
        draft = Draft.make(key, target, params.kind, params.data, expires, RECORD_EFFORT if self._ruled else 1)
        record = await self._work(draft) if self._ruled else draft.record()
        return Stored(params.target, await self._asking.put(record))

    @method("dht.nodes", role="operate")
    async def nodes(self, caller: Caller, params: Target) -> Near:
        """Give nodes near a target; this node knows them from then on as it knows others."""
        target = self._target(params) if params.target else self._chance.randrange(1 << 160).to_bytes(TARGET, "big")
        found = await self._asking.nodes(target)
        wanted = int.from_bytes(target, "big")
        found.sort(key=lambda one: int.from_bytes(sha1(one.identity), "big") ^ wanted)
        return Near(tuple(map(_row, found)))

    def _target(self, params: Target) -> bytes:
        if not params.target:
            raise Refused("a target is needed")
        return bytes.fromhex(params.target)


class HoldingRows:
    """How a node of the DHT is, for those who look after it."""

    owns = ("dht",)

    def __init__(self, service: DhtService) -> None:
        """Take the node."""
        self._service = service

    @method("dht.stats", role="read")
    async def stats(self, caller: Caller) -> Stats:
        """Count nodes, items and queries of this node of the DHT."""
        return self._service.stats()


def _key(text: str) -> bytes:
    try:
        return parse_id(text)
    except RemoteProtocolError as error:
        raise Refused(str(error)) from None


def _row(one: Descriptor) -> NodeRow:
    return NodeRow(id_text(one.identity), (*one.endpoints, *(f"via:{id_text(gate)}" for gate in one.via)))
