"""The bus between the workers of one machine: a hub in the process that started them, an end in each.

The hub has the store and a `LocalBus`; it does what an end asks for, tells all ends what has changed, in one order, and
hands messages on. An end answers from what it was told, so asking who is present costs nothing. What a process holds
ends with it: the hub releases the leases of one that is gone at once.

::

    end ──call bus.register, remove, lease, renew, release──▶ hub ──▶ LocalBus, Store
    end ◀──tell bus.put, gone, present, absent, joined────── hub
    end ──raw 0 │ number u32 │ node 32 │ message──▶ hub ──raw 1 │ message──▶ end of that node
    end ◀──raw 2 │ number u32 │ delivered u8─────── hub

Ends trust the hub and each other: all are one program of one user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Final, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from layer8.control.errors import Conflict, ControlError, MethodNotFound
from layer8.core.errors import StorageError, Unavailable
from layer8.proxy.bus import Change, Gone, Lease, Presence, Put, Stop
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.errors import answering
from layer8.proxy.limits import BUS_LEASE
from layer8.proxy.orphans import GRACE
from layer8.proxy.packed import pack, unpack
from layer8.proxy.registration import Registration
from layer8.proxy.wire import Code, Denied

RENEWED: Final = 500
"""Leases in one message; the rest go in the next."""
NODE: Final = 32
_SEND, _HEAR, _DONE = b"\x00", b"\x01", b"\x02"
_CODES = frozenset(int(code) for code in Code)


class Talk(Protocol):
    """What hub and ends want of the connection between them; see `layer8.control.inside.Inside`."""

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Call the other side; raises ControlError."""

    def tell(self, method: str, params: Mapping[str, Any]) -> bool:
        """Tell the other side; False if it is gone."""

    def carry(self, message: bytes) -> bool:
        """Send raw bytes; False if the other side is gone."""


def _presence(value: Mapping[str, Any]) -> Presence:
    node = bytes.fromhex(value["node"])
    return Presence(value["host"], node, value["sub"], value["weight"], value["priority"], value["pool"])


def _lease(value: Mapping[str, Any]) -> Lease:
    return Lease(_presence(value), generation=value["generation"])


def _plain(presence: Presence, generation: int = 0) -> dict[str, Any]:
    return {
        "host": presence.host,
        "node": presence.node.hex(),
        "sub": presence.subscription,
        "weight": presence.weight,
        "priority": presence.priority,
        "pool": presence.pool,
        "generation": generation,
    }


@define(eq=False)
class _Member:
    """One end, as the hub sees it."""

    node: bytes
    talk: Talk
    listens: bool = False
    leases: dict[tuple[str, int], Lease] = field(factory=dict)


class Hub:
    """The side with the store; `join` each process that has an end."""

    def __init__(self, bus: LocalBus, clock: IReactorTime) -> None:
        """Take the bus of this process, which others may use beside the hub."""
        self._clock = clock
        self._lost: list[tuple[list[str], float]] = []
        self._bus = bus
        self._members: dict[bytes, _Member] = {}
        self._lock = DeferredLock()
        bus.watch(self._changed)

    @property
    def nodes(self) -> tuple[bytes, ...]:
        """The ids of those that have joined."""
        return tuple(self._members)

    def snapshot(self, rows: Iterable[Registration]) -> Iterable[tuple[str, dict[str, Any]]]:
        """Give what a new end has to be told first: what stands, who is present, and that this was all."""
        for row in rows:
            yield "bus.put", pack(row)
        for member in self._members.values():
            for lease in member.leases.values():
                if lease.presence in self._bus.lookup(lease.presence.host):
                    yield "bus.present", _plain(lease.presence, lease.generation)
        for hosts, when in self._lost:
            left = when + GRACE - self._clock.seconds()
            if left > 0:
                yield "bus.orphans", {"hosts": hosts, "seconds": left}
        yield "bus.joined", {}

    def join(self, node: bytes, talk: Talk) -> Stop:
        """Tell a process everything from now on; call the function given back when it is gone."""
        member = self._members[node] = _Member(node, talk)

        def leave() -> None:
            if self._members.get(node) is not member:
                return
            del self._members[node]
            for lease in member.leases.values():
                self._bus.end(lease)
                self._tell("bus.absent", _plain(lease.presence))
            hosts = sorted({lease.presence.host for lease in member.leases.values()})
            self._lost = [(hosts, self._clock.seconds())]
            for place in range(0, len(hosts), RENEWED):
                self._tell("bus.orphans", {"hosts": hosts[place : place + RENEWED], "seconds": GRACE})

        return leave

    async def serve(self, node: bytes, method: str, params: Mapping[str, Any]) -> Any:
        """Do what an end asks for; raises ControlError, StorageError or Unavailable."""
        member = self._members.get(node)
        if member is None:
            raise Unavailable("this process is being replaced")
        with answering():
            match method:
                case "bus.register" | "bus.remove":
                    await self._lock.run(lambda: Deferred.fromCoroutine(self._change(method, params)))
                case "bus.lease":
                    return await self._leased(member, _presence(params))
                case "bus.renew":
                    return await self._renewed(member, [_lease(value) for value in params["leases"]])
                case "bus.release":
                    await self._released(member, _lease(params))
                case _:
                    raise MethodNotFound(method)
        return {}

    async def _change(self, method: str, params: Mapping[str, Any]) -> None:
        """Make one change after the other, and none by somebody who has not seen what stands."""
        row = unpack(params)
        standing, new = self._bus.standing(row.host, row.owner), method == "bus.register"
        if standing != params["known"] or (new and standing is not None and row.version <= standing):
            raise Conflict(standing or 0)
        await (self._bus.register(row) if new else self._bus.remove(row))

    async def _leased(self, member: _Member, presence: Presence) -> dict[str, Any]:
        lease = await self._bus.lease(presence)
        member.leases[presence.host, presence.subscription] = lease
        told = _plain(presence, lease.generation)
        self._tell("bus.present", told)
        return told

    async def _renewed(self, member: _Member, leases: list[Lease]) -> list[dict[str, Any]]:
        lost = await self._bus.renew(leases)
        over = set(lost)
        self._tell("bus.renewed", {"leases": [_plain(one.presence) for one in leases if one not in over]})
        for lease in lost:
            held = member.leases.get((lease.presence.host, lease.presence.subscription))
            if held == lease:
                del member.leases[lease.presence.host, lease.presence.subscription]
        return [_plain(lease.presence, lease.generation) for lease in lost]

    async def _released(self, member: _Member, lease: Lease) -> None:
        key = lease.presence.host, lease.presence.subscription
        await self._bus.release(lease)
        if member.leases.get(key) == lease:
            del member.leases[key]
            self._tell("bus.absent", _plain(lease.presence))

    def told(self, node: bytes, what: str, params: Mapping[str, Any]) -> None:
        """Take what an end tells: whether it takes messages."""
        member = self._members.get(node)
        if member is not None and what == "bus.listen":
            member.listens = params["on"]

    def raw(self, node: bytes, message: bytes) -> None:
        """Hand a message of an end on, and tell the sender whether there was anybody to take it."""
        number, target = message[1:5], message[5 : 5 + NODE]
        sender, member = self._members.get(node), self._members.get(target)
        delivered = member is not None and member.listens and member.talk.carry(_HEAR + message[5 + NODE :])
        if sender is not None:
            sender.talk.carry(_DONE + number + bytes([delivered]))

    def _changed(self, change: Change) -> None:
        self._tell("bus.put" if isinstance(change, Put) else "bus.gone", pack(change.row))

    def _tell(self, what: str, params: Mapping[str, Any]) -> None:
        for member in list(self._members.values()):
            member.talk.tell(what, params)


@frozen
class _Present:
    presence: Presence
    until: float


class UnixBus:
    """An end; see `layer8.proxy.bus.Bus`."""

    def __init__(self, clock: IReactorTime, node: bytes) -> None:
        """Start knowing nothing; `connect` before anything is asked for."""
        self._clock = clock
        self._node = node
        self._talk: Talk | None = None
        self._rows: dict[tuple[str, str], Registration] = {}
        self._present: dict[str, dict[tuple[bytes, int], _Present]] = {}
        self._watching: list[Callable[[Change], None]] = []
        self._listening: list[Callable[[bytes], None]] = []
        self._sent: dict[int, Deferred[None]] = {}
        self._numbers = count(1)
        self.orphans: Callable[[Sequence[str], float], None] = lambda hosts, seconds: None
        """Told of hosts whose agents were with a process that has died, and how long they may take to come back."""
        self.found: Callable[[str], None] = lambda host: None
        """Told of hosts that have an agent."""
        self._joined = False
        self._waiting: list[Deferred[None]] = []

    def connect(self, talk: Talk) -> None:
        """Take the connection to the hub, which hands on what it hears to `told` and `raw`."""
        self._talk = talk

    def lost(self) -> None:
        """Take the end of the hub: what waits for it fails, and what is known stays true as long as its leases."""
        self._talk = None
        waiting, self._sent = self._sent, {}
        for one in waiting.values():
            one.errback(Failure(Unavailable("the hub is gone")))

    # What the hub says.

    def told(self, what: str, params: Mapping[str, Any]) -> bool:
        """Take something told; False if it is not about the bus."""
        match what:
            case "bus.put":
                self._put(unpack(params))
            case "bus.gone":
                self._gone(unpack(params))
            case "bus.present":
                self._is_present(_presence(params))
            case "bus.absent":
                self._is_absent(_presence(params))
            case "bus.renewed":
                for value in params["leases"]:
                    self._is_present(_presence(value))
            case "bus.orphans":
                self.orphans(params["hosts"], params["seconds"])
            case "bus.joined":
                self._joined = True
                waiting, self._waiting = self._waiting, []
                for one in waiting:
                    one.callback(None)
            case _:
                return False
        return True

    def raw(self, message: bytes) -> None:
        """Take a message of another end, or what became of one of ours."""
        if message.startswith(_HEAR):
            for told in list(self._listening):
                told(message[1:])
        elif message.startswith(_DONE):
            waiting = self._sent.pop(int.from_bytes(message[1:5], "big"), None)
            if waiting is None:
                return
            if message[5]:
                waiting.callback(None)
            else:
                waiting.errback(Failure(Unavailable("that node is not there")))

    def _known(self, row: Registration) -> dict[str, int | None]:
        known = self._rows.get((row.host, row.owner))
        return {"known": None if known is None else known.version}

    def _put(self, row: Registration) -> None:
        self._rows[row.host, row.owner] = row
        self._tell(Put(row))

    def _gone(self, row: Registration) -> None:
        self._rows.pop((row.host, row.owner), None)
        self._tell(Gone(row))

    def _tell(self, change: Change) -> None:
        if self._joined:
            for told in list(self._watching):
                told(change)

    def _is_present(self, presence: Presence) -> None:
        of_host = self._present.setdefault(presence.host, {})
        of_host[presence.node, presence.subscription] = _Present(presence, self._clock.seconds() + BUS_LEASE)
        self.found(presence.host)

    def _is_absent(self, presence: Presence) -> None:
        of_host = self._present.get(presence.host)
        if of_host is not None:
            of_host.pop((presence.node, presence.subscription), None)
            if not of_host:
                del self._present[presence.host]

    # As a bus.

    async def register(self, row: Registration) -> None:
        """Let the hub write it down; watchers here are told before its answer comes."""
        await self._call("bus.register", pack(row) | self._known(row))

    async def remove(self, row: Registration) -> None:
        """Let the hub strike it out."""
        if (row.host, row.owner) in self._rows:
            await self._call("bus.remove", pack(row) | self._known(row))

    async def registrations(self, since: int = 0) -> tuple[Registration, ...]:
        """Give what stands, as soon as all of it was told."""
        if not self._joined:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting
        return tuple(sorted((row for row in self._rows.values() if row.version > since), key=lambda row: row.version))

    def watch(self, told: Callable[[Change], None]) -> Stop:
        """Tell every change from now on."""
        self._watching.append(told)
        return lambda: self._watching.remove(told)

    async def lease(self, presence: Presence) -> Lease:
        """Announce a subscription."""
        return _lease(await self._call("bus.lease", _plain(presence)))

    async def renew(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        """Prolong leases, some hundreds at a time, and give those that cannot be."""
        left, lost = list(leases), []
        while left:
            some, left = left[:RENEWED], left[RENEWED:]
            plain = [_plain(lease.presence, lease.generation) for lease in some]
            lost += [_lease(value) for value in await self._call("bus.renew", {"leases": plain})]
        return tuple(lost)

    async def release(self, lease: Lease) -> None:
        """End a lease now."""
        await self._call("bus.release", _plain(lease.presence, lease.generation))

    def lookup(self, host: str) -> tuple[Presence, ...]:
        """Give who is present for a registered name."""
        found = self._present.get(host)
        if found is None:
            return ()
        now = self._clock.seconds()
        return tuple(one.presence for one in found.values() if one.until > now)

    async def notify(self, node: bytes, sealed: bytes) -> None:
        """Hand a message to a node; done when the hub has passed it on."""
        number = next(self._numbers) & 0xFFFFFFFF
        waiting: Deferred[None] = Deferred()
        self._sent[number] = waiting
        if self._talk is None or not self._talk.carry(_SEND + number.to_bytes(4, "big") + node + sealed):
            del self._sent[number]
            raise Unavailable("the hub is gone")
        await waiting

    def listen(self, told: Callable[[bytes], None]) -> Stop:
        """Take the messages for this node."""
        if not self._listening:
            self._listens(True)
        self._listening.append(told)

        def stop() -> None:
            self._listening.remove(told)
            if not self._listening:
                self._listens(False)

        return stop

    def _listens(self, on: bool) -> None:
        if self._talk is not None:
            self._talk.tell("bus.listen", {"on": on})

    async def _call(self, method: str, params: Mapping[str, Any]) -> Any:
        if self._talk is None:
            raise Unavailable("the hub is gone")
        try:
            return await self._talk.call(method, params)
        except ControlError as error:
            if error.code in _CODES:
                raise Denied(Code(error.code), error.message, **error.data) from None
            if isinstance(error, Conflict):
                raise
            raise (StorageError if error.name == "storage" else Unavailable)(error.message) from None
