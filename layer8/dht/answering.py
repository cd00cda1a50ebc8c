"""The role `dht` at the end of circuits: it searches and stores for those who must not be seen doing so themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred

from layer8.core.errors import Layer8Error, RemoteProtocolError
from layer8.core.roles import Asker
from layer8.crypto.items import Immutable, Item, Mutable, Record
from layer8.dht.jobs import Done
from layer8.dht.limits import CIRCUITS, DHT_K, DHT_PER_CIRC, DHT_PER_MINUTE
from layer8.dht.message import Command, Data, Kind, Nodes, Retrieve, Status, Store
from layer8.dht.store import same_for_an_hour, write_item

MINUTE = 60.0  # seconds


class Node(Protocol):
    """The node of the DHT that does the work: `layer8.dht.service.DhtService`."""

    async def find(self, target: bytes) -> Done:
        """Find the nodes nearest to a target."""

    async def get(self, target: bytes, salt: bytes = b"") -> Done:
        """Search an item."""

    async def records(self, target: bytes) -> Done:
        """Search records."""

    async def put(self, item: Item) -> Done:
        """Store something."""

    def good(self, item: Item) -> bool:
        """Say whether others would take an item."""


@define(eq=False)
class Account:
    """What one circuit has asked for."""

    running: int = 0
    times: deque[float] = field(factory=lambda: deque(maxlen=DHT_PER_MINUTE))


class Answering:
    """See the module; for the relay's table of roles (`layer8.core.roles.Answers`)."""

    commands: frozenset[int] = frozenset((Command.STORE, Command.RETR, Command.NODES))

    def __init__(
        self,
        node: Node,
        start: Callable[[str, Coroutine[Any, Any, None]], object],
        descriptor: Callable[[bytes], bytes | None],
        secret: bytes,
        wall: Callable[[], float],
    ) -> None:
        """`start` runs a coroutine; `descriptor` gives that of the node whose id in the DHT is this, if it is known."""
        self._node = node
        self._start = start
        self._descriptor = descriptor
        self._secret = secret
        self._wall = wall
        self._accounts: dict[int, Account] = {}

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Take a message; raises `RemoteProtocolError` for nonsense."""
        question = _READERS[command](data)
        account = self._account(asker.circuit)
        while account.times and account.times[0] <= now - MINUTE:
            account.times.popleft()
        if account.running >= DHT_PER_CIRC or len(account.times) >= DHT_PER_MINUTE:
            asker.answer(Command.DATA, Data(question.request, Status.BUSY).encode())
            return
        account.times.append(now)
        if isinstance(question, Store) and not self._node.good(question.item):
            asker.answer(Command.DATA, Data(question.request, Status.REFUSED).encode())
            return
        account.running += 1
        self._start("dht", self._answer(asker, account, question))

    def gone(self, circuit: int) -> None:
        """Forget a circuit that has ended."""
        self._accounts.pop(circuit, None)

    def _account(self, circuit: int) -> Account:
        account = self._accounts.pop(circuit, None) or Account()
        self._accounts[circuit] = account
        while len(self._accounts) > CIRCUITS:
            del self._accounts[next(iter(self._accounts))]
        return account

    async def _answer(self, asker: Asker, account: Account, question: Store | Retrieve | Nodes) -> None:
        try:
            match question:
                case Store():
                    data = await self._store(question)
                case Retrieve():
                    data = await self._retrieve(question)
                case Nodes():
                    data = await self._nodes(question)
        except Layer8Error:
            data = Data(question.request, Status.BUSY)
        finally:
            account.running -= 1
        if asker.alive:
            asker.answer(Command.DATA, data.encode())

    async def _store(self, asked: Store) -> Data:
        done = await self._node.put(asked.item)
        if done.stored:
            return Data(asked.request, Status.STORED, stored=done.stored)
        return Data(asked.request, Status.REFUSED if done.refused else Status.NONE)

    async def _retrieve(self, asked: Retrieve) -> Data:
        found: list[bytes] = []
        if asked.kind == Kind.RECORD:
            listed = await self._node.records(asked.target)
            found = [one.raw for one in same_for_an_hour(iter(listed.records), self._secret, self._wall())]
        else:
            item = (await self._node.get(asked.target, asked.salt)).item
            wanted = Mutable if asked.kind == Kind.MUTABLE else Immutable
            if isinstance(item, wanted) and not (isinstance(item, Mutable) and item.seq < asked.least):
                found = [write_item(item)[1]]
        return Data(asked.request, Status.FOUND if found else Status.NONE, found)

    async def _nodes(self, asked: Nodes) -> Data:
        near = (await self._node.find(asked.target)).nodes[:DHT_K]
        searches = [Deferred.fromCoroutine(self._found(one.id)) for one in near]
        try:
            found = [raw for raw in [await one for one in searches] if raw is not None]
        except CancelledError:
            for one in searches:
                one.addErrback(lambda failure: failure.trap(CancelledError) and None)
                one.cancel()
            raise
        return Data(asked.request, Status.FOUND if found else Status.NONE, found)

    async def _found(self, node: bytes) -> bytes | None:
        """Give the descriptor of a node of the DHT, whose own item has the node's id as its target."""
        known = self._descriptor(node)
        if known is not None:
            return known
        try:
            item = (await self._node.get(node)).item
            return item.data if isinstance(item, Mutable) else None
        except CancelledError:
            raise
        except Layer8Error:
            return None


_READERS: Final[Mapping[int, Callable[[bytes], Store | Retrieve | Nodes]]] = {
    Command.STORE: Store.read,
    Command.RETR: Retrieve.read,
    Command.NODES: Nodes.read,
}


def read_answer(kind: Kind, target: bytes, salt: bytes, raw: bytes) -> Mutable | Immutable | Record:
    """Read an item of DHT_DATA; raises `RemoteProtocolError` where it is not what was asked for."""
    item: Mutable | Immutable | Record
    if kind is Kind.RECORD:
        item = Record.parse(target, raw)
    elif kind is Kind.IMMUTABLE:
        item = Immutable(raw)
    else:
        item = Store.read(bytes(4) + bytes((kind,)) + raw).item
        if not isinstance(item, Mutable) or item.salt != salt:
            raise RemoteProtocolError("an item with another salt")
    if item.target != target:
        raise RemoteProtocolError("an item of another target")
    return item
