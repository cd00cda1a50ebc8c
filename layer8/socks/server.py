"""The SOCKS5 port: what programs ask for becomes streams of the network.

::

    server = SocksServer(reactor, config.socks, node.client)
    server.startService()        listens; `server.clients` are the programs that have asked for something

Streams share a circuit only if listener, user and password are the same; with `isolate = "dest"` also the host, with
`isolate = "stream"` none do. A name is never looked up here: it goes to the exit as it stands. Names below `.l8.alt`,
and the 40 hex digits of a resource, go to a `Hidden` object, and to nobody else; without one they are answered F0, no
descriptor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from time import monotonic
from typing import Any, Final, Protocol

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory

from layer8.config.network import SocksConfig
from layer8.core.errors import ConfigError
from layer8.net.factory import CountingFactory, Places
from layer8.net.listen import serve
from layer8.net.stream import Stream
from layer8.relay.client import (
    Client,
    Internet,
    Open,
    Proto,
    Reason,
    Route,
    Sink,
    StreamLike,
    check_route,
    parse_way,
)
from layer8.socks.datagrams import Association
from layer8.socks.program import Caller, Program
from layer8.socks.session import Socks, Wanted
from layer8.socks.wire import Ask, Code, Login, reply

OPTION: Final = "socks.listen"
SOCKS_CONNS: Final = 1024  # programs at a time, at all listeners together
_INSIDE: Final = re.compile(r"(\A|\.)l8\.alt(\Z|[^a-z0-9._-])")  # outside the DNS (RFC 9476), also with :80 or / behind
_RESOURCE: Final = re.compile(r"[0-9a-f]{40}\Z")  # the SHA-1 of a resource's key, in hexadecimal


class Hidden(Protocol):
    """Who reaches hidden services by address or petname, and resources by their hash."""

    def open(self, name: str, port: int, caller: Caller, key: Hashable) -> StreamLike:
        """Open a stream to a service; `caller.refused(code)` says why not."""


@frozen
class Ways:
    """How streams leave: by `route`, kept apart by `isolate`."""

    client: Client
    route: Route = field(factory=Route)
    isolate: str = "user"
    hidden: Hidden | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse a route that cannot be, with ConfigError."""
        check_route(self.route)

    def open(self, target: Open, sink: Sink, key: tuple[Hashable, ...], *, known: bool = False) -> StreamLike:
        """Open a stream to a host outside; with `known` a last hop that the user has named may learn who we are."""
        if self.isolate == "dest":
            key = (*key, target.host)
        alone = self.isolate == "stream"
        return self.client.open(target, sink, route=self.route, key=key, alone=alone, known=known)

    def inside(self, name: str, port: int, caller: Caller, key: Hashable) -> StreamLike | None:
        """Open a stream to a hidden service; None if the caller has been refused because nobody here can."""
        if self.hidden is None:
            caller.refused(Code.NO_DESCRIPTOR)
            return None
        if self.isolate == "stream":
            key = (key, object())
        return self.hidden.open(name, port, caller, key)


def is_inside(host: str) -> bool:
    """Say whether a name, in lower case, belongs to this network and not to the DNS; no exit is ever asked for one."""
    return _INSIDE.search(host) is not None or _RESOURCE.match(host) is not None


@define(eq=False)
class Row:
    """A program at a listener, as an operator may see it."""

    number: int
    listener: str
    address: str  # of the program, empty at a Unix socket
    target: str
    since: float
    program: Program | Association


@define(eq=False)
class Table:
    """The programs of all listeners that share it."""

    seconds: Callable[[], float] = monotonic
    places: Places = field(factory=lambda: Places(SOCKS_CONNS, SOCKS_CONNS))
    _rows: dict[Program | Association, Row] = field(factory=dict, init=False)
    _next: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Row]:
        """Give every program, in the order in which they came."""
        return iter(list(self._rows.values()))

    def __len__(self) -> int:
        """Count them."""
        return len(self._rows)

    def add(self, listener: str, peer: Any, target: str, program: Program | Association) -> None:
        """Take one."""
        self._next += 1
        address = getattr(peer, "host", "")
        self._rows[program] = Row(self._next, listener, address, target, self.seconds(), program)

    def drop(self, program: Program | Association) -> None:
        """Forget one whose connection is gone."""
        self._rows.pop(program, None)


class Door(Factory):
    """One listener: programs come in with a session each, and leave it with a stream."""

    noisy = False

    def __init__(self, reactor: Any, name: str, ways: Ways, table: Table, password: str = "") -> None:
        """Let programs in that know the password, if there is one."""
        self._reactor = reactor
        self._name = name
        self._ways = ways
        self._table = table
        self._password = password
        self._asking: dict[Stream, None] = {}

    def buildProtocol(self, addr: IAddress | None) -> Stream:
        """Begin a session."""
        session = Socks(self._table.seconds(), self._password)
        stream = Stream(session, self, self._reactor, self._table.seconds)
        self._asking[stream] = None
        return stream

    def close(self) -> None:
        """End everything that came in here."""
        for stream in list(self._asking):
            stream.close("down", abort=True)
        for row in self._table:
            if row.listener == self._name:
                row.program.abort(Reason.RESET)

    # What sessions say.

    def told(self, stream: Stream, what: object) -> None:
        """Take a request."""
        if isinstance(what, Wanted):
            if what.request.ask == Ask.CONNECT:
                self._connect(stream, what)
            else:
                self._associate(stream, what)

    def dial(self, stream: Stream, key: int, address: str) -> None:
        """Never asked for."""

    def join(self, stream: Stream, key: int, first: bytes) -> None:
        """Never asked for."""

    def ended(self, stream: Stream, reason: str) -> None:
        """Forget a program that has not got as far as asking."""
        self._asking.pop(stream, None)

    def _key(self, login: Login) -> tuple[Hashable, ...]:
        return (self._name, login.user, login.password)

    def _connect(self, stream: Stream, what: Wanted) -> None:
        self._asking.pop(stream)
        host, port, key = what.request.host, what.request.port, self._key(what.login)

        def way(program: Program) -> StreamLike | None:
            if not port:
                program.refused(Code.FAILED)
                return None
            if is_inside(host):
                return self._ways.inside(host, port, program, key)
            return self._ways.open(Open(Proto.TCP, host, port), program, key)

        program = Program(self._reactor, way, self._table.drop, early=what.early)
        self._table.add(self._name, stream.transport.getPeer(), f"{host}:{port}", program)
        stream.become(program)

    def _associate(self, stream: Stream, what: Wanted) -> None:
        if isinstance(stream.transport.getHost(), UNIXAddress):
            # There is no address whose datagrams would be this program's and nobody else's.
            stream.transport.write(reply(Code.UNKNOWN_COMMAND))
            stream.close("refused")
            return
        self._asking.pop(stream)
        key = self._key(what.login)

        def way(host: str, port: int, sink: Sink) -> StreamLike | None:
            return None if is_inside(host) else self._ways.open(Open(Proto.UDP, host, port), sink, key)

        association = Association(self._reactor, way, self._table.drop, what.request.port)
        self._table.add(self._name, stream.transport.getPeer(), "udp", association)
        stream.become(association)


class SocksServer(Service):
    """See the module; raises ConfigError for a path that does not end in `internet`."""

    def __init__(
        self,
        reactor: Any,
        config: SocksConfig,
        client: Client,
        *,
        hidden: Hidden | None = None,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        """Put the parts together; nothing listens yet."""
        self.config = config
        self.clients = Table(seconds)
        self.listening: tuple[str, ...] = ()
        self.ways = Ways(client, _route(config.path), config.isolate, hidden)
        self._reactor = reactor
        self._doors: list[Door] = []
        self._ports: list[IListeningPort] = []

    def startService(self) -> None:
        """Listen; raises Unavailable."""
        Service.startService(self)
        told = []
        for text in self.config.listen:
            door = Door(self._reactor, text, self.ways, self.clients, self.config.password)
            ports = serve(self._reactor, text, OPTION, CountingFactory(door, self.clients.places))
            self._doors.append(door)
            self._ports += ports
            told += [where(port) for port in ports]
        self.listening = tuple(told)

    def stopService(self) -> Deferred[None]:
        """Leave the ports, and end what came in there."""
        Service.stopService(self)
        doors, self._doors = self._doors, []
        ports, self._ports = self._ports, []
        self.listening = ()
        for door in doors:
            door.close()
        return stop(ports)


def where(port: IListeningPort) -> str:
    """Say where a port listens, as an endpoint string."""
    address: Any = port.getHost()
    if isinstance(address, UNIXAddress):
        name = address.name
        return f"unix:{name.decode(errors='replace') if name else ''}"
    kind, host = ("tcp6", address.host.replace(":", "\\:")) if ":" in address.host else ("tcp", address.host)
    return f"{kind}:{address.port}:interface={host}"


def stop(ports: list[IListeningPort]) -> Deferred[None]:
    """Fire when nobody listens any more."""
    stopped: Deferred[None] = Deferred()
    DeferredList([maybeDeferred(port.stopListening) for port in ports]).addBoth(lambda _: stopped.callback(None))
    return stopped


def _route(path: str) -> Route:
    if not path:
        return Route()
    route, target = parse_way(path)
    if not isinstance(target, Internet):
        raise ConfigError(f"{path!r}: the way of a SOCKS port ends in internet")
    return route
