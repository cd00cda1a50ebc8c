"""The way out of the network: TCP connections and UDP sockets of an exit, each the sink of one stream.

```
 RELAY_CONNECT -> Outward.dial / associate -> Connection | Association <--Sink, StreamLike--> stream
           serve: target -> rules -> one look-up -> guard, every answer -> rules -> account -> the checked address
```
What was checked is what is dialled, and the peer's address is compared once more when it is there: a name that leads
elsewhere the second time, or a rewritten packet, gains nothing. Nothing here is logged: it would be somebody's traffic.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Coroutine, Iterable
from time import monotonic
from typing import Any, Final, TypeVar

from attrs import define, field
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from layer8.core.address import canonical, is_address
from layer8.core.errors import LimitExceeded
from layer8.net.lookup import KEPT, Asking, Lookups
from layer8.relay.exit import EXIT_TIME, Account, Guard, LanTargets, NoWay, Policy, Sockets, resolvable, target
from layer8.relay.flow import Stream
from layer8.relay.limits import EXIT_OPEN
from layer8.relay.outward_tcp import Connection, Once, reason_of
from layer8.relay.outward_udp import Association
from layer8.relay.wire import Address, Opened, Proto, Reason

ADDRESSES: Final = 4  # addresses of a name that are tried, one after the other
EACH_TIME: Final = 5.0  # seconds for each of them while there are more
TTL: Final = int(KEPT)  # seconds that an address is good for, as RELAY_CONNECT_OK says

_T = TypeVar("_T")


@define(eq=False)
class Counts:
    """Plain integers for metrics."""

    dialled: int = 0  # connections
    refused: int = 0  # by rules or the guard
    failed: int = 0  # in any other way
    sent: int = 0  # datagrams
    received: int = 0
    dropped: int = 0  # datagrams in either direction


@define(eq=False)
class Outward:
    """The exit of one node; `interfaces` are where its UDP sockets are bound, for IPv4 and IPv6."""

    reactor: Any  # IReactorTCP, IReactorUDP and IReactorPluggableNameResolver in one
    policy: Policy
    guard: Guard
    targets: LanTargets = field(factory=LanTargets)
    lookups: Lookups = field()
    clock: IReactorTime = field()
    seconds: Callable[[], float] = monotonic
    interfaces: tuple[str, str] = ("0.0.0.0", "::")
    counts: Counts = field(factory=Counts, init=False)
    sockets: Sockets = field(factory=lambda: Sockets(_descriptors()), init=False)

    @lookups.default
    def _lookups(self) -> Lookups:
        return Lookups(self.reactor)

    @clock.default
    def _clock(self) -> Any:
        return self.reactor

    def account(self) -> Account:
        """Open the account of a new circuit."""
        return Account(self.seconds(), self.sockets)

    async def dial(self, host: str, port: int, account: Account, identity: bytes | None = None) -> Connection:
        """Connect to what a circuit asked for; it reads nothing before `Connection.start`. Raises `NoWay`.

        `identity` is who has proven to have built the circuit, None if nobody has. The neighbour that cells come from
        is somebody else on longer paths, and gives no right to what is listed for it.
        """
        return await self._counted(self._dial(host, port, account, identity))

    async def associate(self, host: str, port: int, account: Account, identity: bytes | None = None) -> Association:
        """Give a circuit a UDP socket; `host`, if not empty, is where datagrams without an address go.

        Raises `NoWay` if that host may not be had.
        """
        return await self._counted(self._associate(host, port, account, identity))

    async def serve(self, stream: Stream, account: Account, identity: bytes | None = None) -> None:
        """Answer RELAY_CONNECT: carry a stream to what it asks for, or close it with the reason why not."""
        want = stream.target
        way = self.dial if want.proto is Proto.TCP else self.associate
        try:
            made = await way(want.host, want.port, account, identity)
        except NoWay as no:
            stream.close(no.reason)
            return
        if stream.closed:
            made.closed(Reason.RESET)
            return
        stream.sink = made
        made.start(stream)
        stream.accept(Opened(Address(made.address), TTL))

    async def addresses(self, host: str, port: int) -> list[str]:
        """Give where another peer's endpoint leads, for a link: rules do not count, the guard does. Raises `NoWay`."""
        return await self._counted(self._addresses(host, port))

    def judge(self, host: str, port: int, found: Iterable[str], identity: bytes | None = None) -> list[str]:
        """Give those of the addresses of `host` that may be dialled, none of which is private; raises `NoWay`."""
        listed = self.targets.opens(identity, host, port)
        allowed = []
        for address in dict.fromkeys(map(canonical, found)):
            if not self.guard.listens(address, port) and (listed or self.targets.opens(identity, address, port)):
                allowed.append(address)
            elif self.guard.refusal(address, port) is not None:
                raise NoWay(Reason.POLICY, "it leads where nobody may be led")
            elif self.policy.allows(host, address, port):
                allowed.append(address)
        if not allowed:
            raise NoWay(Reason.POLICY, "the rules of this exit refuse it")
        return allowed

    async def _counted(self, way: Coroutine[Deferred[Any], Any, _T]) -> _T:
        """Give a way EXIT_TIME, and count how it ends."""
        try:
            return await Deferred.fromCoroutine(way).addTimeout(EXIT_TIME, self.clock)
        except TimeoutError:
            self.counts.failed += 1
            raise NoWay(Reason.TIMEOUT, "it took too long") from None
        except LimitExceeded as limit:
            self.counts.failed += 1
            raise NoWay(Reason.LIMIT, str(limit)) from None
        except NoWay as no:
            if no.reason is Reason.POLICY:
                self.counts.refused += 1
            else:
                self.counts.failed += 1
            raise

    async def _dial(self, host: str, port: int, account: Account, identity: bytes | None) -> Connection:
        account.begin(self.seconds())
        addresses = (await self._checked(host, port, identity))[:ADDRESSES]
        failed: NoWay | None = None
        for address in addresses:
            account.connect(address)
            made = Connection(account, address, port, self.clock)
            good = False
            try:
                await self._connected(made, EXIT_TIME if address is addresses[-1] else EACH_TIME)
                good = True
            except NoWay as no:
                failed = failed or no
            finally:
                if not good:
                    made.give_up()
            if good:
                self.counts.dialled += 1
                return made
        raise failed or NoWay(Reason.INTERNAL, "there was nothing to dial")

    async def _connected(self, made: Connection, seconds: float) -> None:
        try:
            await Once.connect(self.reactor, made, seconds)
            peer = made.transport.getHandle().getpeername()
        except CancelledError:
            raise
        except (error.ConnectError, OSError) as failure:
            raise NoWay(reason_of(failure), "it cannot be reached") from None
        if (canonical(peer[0]), peer[1]) != (made.address, made.port):
            raise NoWay(Reason.POLICY, "another address has answered than the one that was asked")

    async def _associate(self, host: str, port: int, account: Account, identity: bytes | None) -> Association:
        account.begin(self.seconds())
        if not host:
            if not (self.policy or identity in self.targets):
                raise NoWay(Reason.POLICY, "the rules of this exit refuse it")
            return Association(self, account, identity)
        (address, *_) = await self._checked(host, port, identity)
        return Association(self, account, identity, target(host), address, port)

    async def _addresses(self, host: str, port: int) -> list[str]:
        name = target(host)
        found = [canonical(address) for address in await self._found(name, listed=False)]
        if any(self.guard.refusal(address, port) is not None for address in found):
            raise NoWay(Reason.POLICY, "it leads where nobody may be led")
        return list(dict.fromkeys(found))

    async def _checked(self, host: str, port: int, identity: bytes | None) -> list[str]:
        name = target(host)
        listed = self.targets.opens(identity, name, port)
        if not listed and not self.policy.may(name, port):
            raise NoWay(Reason.POLICY, "the rules of this exit refuse it")
        return self.judge(name, port, await self._found(name, listed=listed), identity)

    async def _found(self, name: str, *, listed: bool) -> list[str]:
        """Look a name up, once; with a last dot, so that neither the hosts file nor a search list has a say."""
        if is_address(name):
            return [name]
        here = self.guard.allow_loopback and (name == "localhost" or name.endswith(".localhost"))
        if not (listed or here or resolvable(name)):
            raise NoWay(Reason.RESOLVE, "such names are not looked up for others")
        asking: list[Asking | None] = []
        found: Deferred[list[str]] = Deferred(lambda _: _forget(asking))
        asking.append(
            self.lookups.find(
                name if listed or here else f"{name}.",
                lambda told: found.callback([str(where[0]) for _, where in told]),
            )
        )
        addresses = await found
        if not addresses:
            raise NoWay(Reason.RESOLVE, "the name has no address")
        return addresses


class LocalAddresses:
    """The addresses of this machine, asked of the kernel each time: they come and go; `also` more that lead here."""

    def __init__(self, also: Iterable[str] = ()) -> None:
        """Keep the addresses that a router outside maps to this machine, for example."""
        self._also = frozenset(map(canonical, also))
        self._any = _can_bind("192.0.2.1")  # ip_nonlocal_bind: everything can be bound, nobody has this one

    def __contains__(self, address: object) -> bool:
        """Tell whether an address is one of them."""
        if not isinstance(address, str) or not is_address(address):
            return False
        return address in self._also or (_is_source(address) if self._any else _can_bind(address))


def _descriptors() -> int:
    """Give EXIT_OPEN, or half of the descriptors that this process may have: links need some, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return EXIT_OPEN if soft == resource.RLIM_INFINITY else min(EXIT_OPEN, soft // 2)


def _forget(asking: list[Asking | None]) -> None:
    for one in asking:
        if one is not None:
            one.cancel()


def _can_bind(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.bind((address, 0))
        except OSError:
            return False
    return True


def _is_source(address: str) -> bool:
    """Tell whether the kernel would send to an address from that same address: no packet leaves."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.connect((address, 9))
        except OSError:
            return False
        return canonical(one.getsockname()[0]) == canonical(address)
