"""The rows `proxy.*` that agents and owners call: hello and subscriptions, registrations and proof of ownership."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from layer8.control.access import Caller, Peer
from layer8.control.errors import Conflict, InvalidRequest
from layer8.control.shape import to_json
from layer8.control.table import method
from layer8.proxy.choose import Seat
from layer8.proxy.errors import (
    AlreadyRegistered,
    Draining,
    ForbiddenByPolicy,
    InvalidHost,
    LeaseExpired,
    NoCommonVersion,
    NoRoom,
    NotProven,
    Quota,
    TooManyTries,
    WrongSecret,
    answering,
)
from layer8.proxy.ledger import Ledger
from layer8.proxy.limits import PROVE_TIME
from layer8.proxy.orders import HostName, HostRow, HostRows, Page, Register, Rotate, Unregister, Update
from layer8.proxy.paging import fit
from layer8.proxy.registration import Registration, shown
from layer8.proxy.registry import inside
from layer8.proxy.subscriber import Agent, House, Origin
from layer8.proxy.wire import (
    DataAddress,
    Empty,
    Health,
    Hello,
    HelloResult,
    Nodes,
    Reject,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
)
from layer8.proxy.wire import Draining as DrainingNote

SLOT: Final = "proxy"  # where a connection keeps its `Agent`
ADMIN: Final = "admin"
CHANGES: Final = (AlreadyRegistered, ForbiddenByPolicy, InvalidHost, NoRoom, Quota, WrongSecret)

Rejected = Callable[[Seat, int], None]
"""Takes the seat and the number of the visitor that its agent will not carry."""


class AgentRows:
    """What agents call, on listeners whose ceiling has the role agent."""

    owns = ("proxy",)

    def __init__(self, house: House, clock: IReactorTime, nonce: Callable[[], bytes], rejected: Rejected) -> None:
        """Take what all agents share, the clock, a source of 32 random bytes, and who has the visitors."""
        self._house = house
        self._clock = clock
        self._nonce = nonce
        self._rejected = rejected
        self.settled: Callable[[], Awaitable[None]] | None = None
        """Waited for before a subscription is confirmed: whoever else has to know of it."""
        self._peers: set[Peer] = set()

    def __len__(self) -> int:
        """Count the agents that have said hello."""
        return len(self._peers)

    def welcome(self, public: dict[str, int]) -> None:
        """Tell agents from now on where visitors come, by scheme."""
        self._house.public = public

    def announce(self, data: tuple[DataAddress, ...]) -> None:
        """Let agents dial back to these addresses from now on."""
        self._house.data = data
        self._tell("proxy.nodes", to_json(Nodes(data)))

    def drain(self, alternatives: tuple[str, ...], deadline_ms: int) -> None:
        """Take no new subscriptions, and ask agents to subscribe elsewhere."""
        self._house.draining = alternatives
        self._tell("proxy.drain", to_json(DrainingNote(deadline_ms, alternatives)))

    def undrain(self) -> None:
        """Take subscriptions again; agents come back by themselves."""
        self._house.draining = None

    @method("proxy.hello", role="public", within="agent", errors=(NoCommonVersion, InvalidRequest))
    async def hello(self, caller: Caller, params: Hello) -> HelloResult:
        """Begin an agent's conversation: agree on a version, get the nonce for proofs and where to dial back."""
        with answering():
            agent = caller.peer.slots.get(SLOT)
            if not isinstance(agent, Agent):
                agent = Agent(self._house, caller.peer, Origin(caller.address, caller.private), self._nonce())
                caller.peer.slots[SLOT] = agent
            result = agent.hello(params)
        if caller.peer not in self._peers:
            self._peers.add(caller.peer)
            caller.peer.when_lost(lambda: self._lost(caller.peer, agent))
        return result

    @method(
        "proxy.subscribe",
        role="public",
        within="agent",
        errors=(WrongSecret, NotProven, TooManyTries, NoRoom, Draining, ForbiddenByPolicy, InvalidRequest),
    )
    async def subscribe(self, caller: Caller, params: Subscribe) -> SubscribeResult:
        """Get the visitors of a host, by proof that its secret is known; a right proof gives the role agent."""
        with answering():
            result = _agent(caller).subscribe(params, self._clock.seconds())
        caller.peer.grant("agent")
        if self.settled is not None:
            await self.settled()
        return result

    @method("proxy.unsubscribe", role="agent", errors=(LeaseExpired,))
    async def unsubscribe(self, caller: Caller, params: Unsubscribe) -> Empty:
        """Get no more visitors; joined connections go on unless `kill` is set."""
        with answering():
            _agent(caller).unsubscribe(params)
        return Empty()

    @method("proxy.health", role="agent")
    async def health(self, caller: Caller, params: Health) -> Empty:
        """Say whether the agent's target answers; a notification."""
        with answering():
            _agent(caller).health(params)
        return Empty()

    @method("proxy.reject", role="agent")
    async def reject(self, caller: Caller, params: Reject) -> Empty:
        """Turn one visitor away, so that the next subscriber is asked at once; a notification."""
        with answering():
            seat = _agent(caller).rejects(params)
        if seat is not None:
            self._rejected(seat, params.conn)
        return Empty()

    def _tell(self, name: str, params: Mapping[str, Any]) -> None:
        for peer in list(self._peers):
            if not peer.notify(name, params):
                peer.close("slow_reader")

    def _lost(self, peer: Peer, agent: Agent) -> None:
        self._peers.discard(peer)
        agent.lost()


class OwnerRows:
    """What those who publish hosts call."""

    owns = ("proxy",)

    def __init__(self, ledger: Ledger, kill: Callable[[str], int]) -> None:
        """Take the ledger, and what closes the visitors of a registered name."""
        self._ledger = ledger
        self._kill = kill

    @method("proxy.register", role=("owner", ADMIN), errors=CHANGES, anywhere=True)
    async def register(self, caller: Caller, params: Register) -> HostRow:
        """Register a host by the hash of its secret; outside the caller's patterns it is a claim to be proven."""
        admin = caller.may(ADMIN)
        if params.owner not in (None, caller.name) and not admin:
            raise ForbiddenByPolicy("only an admin may register for another owner")
        with answering():
            host = self._ledger.registry.name(params.host)
            free = admin or inside(host, caller.hosts)
            return self._row(await self._ledger.register(params, params.owner or caller.name, free))

    @method("proxy.update", role=("owner", ADMIN), errors=(*CHANGES, Conflict), anywhere=True)
    async def update(self, caller: Caller, params: Update) -> HostRow:
        """Change the ports, policy, mode or expiry of a host."""
        with answering():
            return self._row(await self._ledger.update(params, _owner(caller)))

    @method("proxy.rotate", role=("owner", ADMIN), errors=CHANGES, anywhere=True)
    async def rotate(self, caller: Caller, params: Rotate) -> HostRow:
        """Add a secret to a host; those before it retire after `grace_s`."""
        with answering():
            return self._row(await self._ledger.rotate(params, _owner(caller)))

    @method(
        "proxy.unregister", role=("owner", ADMIN), errors=(WrongSecret, ForbiddenByPolicy, InvalidHost), anywhere=True
    )
    async def unregister(self, caller: Caller, params: Unregister) -> Empty:
        """Take a host away from visitors and agents; `kill` closes what is joined as well."""
        with answering():
            gone = await self._ledger.unregister(params.host, _owner(caller))
        if params.kill:
            self._kill(gone.host)
        return Empty()

    @method("proxy.get", role=("owner", ADMIN), errors=(WrongSecret, InvalidHost), anywhere=True)
    async def get(self, caller: Caller, params: HostName) -> HostRow:
        """Show one host of the caller's, or any to an admin."""
        with answering():
            registry = self._ledger.registry
            return self._row(registry.of(registry.name(params.host), _owner(caller)))

    @method("proxy.list", role=("owner", ADMIN), anywhere=True)
    async def list(self, caller: Caller, params: Page) -> HostRows:
        """List the caller's hosts and claims by name, or everybody's to an admin."""
        rows = self._ledger.registry.page(_owner(caller), params.cursor, params.limit)
        return HostRows(*fit(((place, self._row(row)) for place, row in rows), params.limit))

    @method(
        "proxy.prove",
        role=("owner", ADMIN),
        errors=(NotProven, AlreadyRegistered, NoRoom, WrongSecret, InvalidHost),
        timeout=2 * PROVE_TIME + 5,
        anywhere=True,
    )
    async def prove(self, caller: Caller, params: HostName) -> HostRow:
        """Look for the proof that a claimed host is the caller's, and publish it if it is there."""
        with answering():
            return self._row(await self._ledger.prove(params.host, _owner(caller)))

    def _row(self, row: Registration) -> HostRow:
        return shown(row, self._ledger.wall())


def _agent(caller: Caller) -> Agent:
    """Find the conversation of a connection; raises InvalidRequest before hello."""
    agent = caller.peer.slots.get(SLOT)
    if not isinstance(agent, Agent):
        raise InvalidRequest("proxy.hello comes first")
    return agent


def _owner(caller: Caller) -> str | None:
    """Give whose registrations a caller may see and change: None, an admin, sees all."""
    return None if caller.may(ADMIN) else caller.name
