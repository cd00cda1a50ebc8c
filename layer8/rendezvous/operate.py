"""The rows `rendezvous.*`: services of this node, who knocks at them, and visits to others'.

Addresses are shown to those who may steer the node; nobody is shown who a client is, but for the login key that it has
shown by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Protocol

from attrs import frozen

from layer8.config.services import PORTS, TARGET_MOST, ServiceConfig
from layer8.control.access import Caller
from layer8.control.errors import CallUnavailable, InvalidParams, NoCapacity, NotFound
from layer8.control.table import Event, Nothing, Table, method
from layer8.core.errors import ConfigError, Layer8Error, LimitExceeded, RemoteProtocolError
from layer8.core.members import Bounds, member
from layer8.crypto.keys import id_text, parse_id
from layer8.relay.client import Origin
from layer8.rendezvous.address import NAME_MOST, address_text
from layer8.rendezvous.hosting import Hosting, Hosts
from layer8.rendezvous.service import Session

OPERATE: Final = "operate"
ADMIN: Final = "admin"
SESSIONS: Final = 200  # rows that are listed
VISIT_TIME: Final = 150.0  # seconds: two descriptors, and at three points each a knock and a wait
HOST_MOST: Final = 253

Name = Annotated[str, Bounds(1, NAME_MOST)]
Path = Annotated[str, Bounds(0, 4096)]
Id = Annotated[str, Bounds(52, 52)]


@frozen
class PortTarget:
    """A port of a service, and what answers there: HOST:PORT, unix:PATH, file:PATH or dir:PATH."""

    port: int = member(least=1, most=65535)
    target: str = member(least=1, most=TARGET_MOST)


@frozen
class Knocks:
    """How many knocks came to an end, and to which."""

    result: str
    count: int


@frozen
class Hide:
    """A service, as `[service.NAME]` has it; it is offered until `rendezvous.unhide`, or until the process ends."""

    name: Name
    ports: Annotated[tuple[PortTarget, ...], Bounds(1, PORTS)]
    key: Path = ""
    client_auth: Path = ""
    allow: tuple[Id, ...] = ()
    deny: tuple[Id, ...] = ()
    data_through_access_point: bool = False
    public: bool = False


@frozen
class Called:
    """One service of this node."""

    name: Name


@frozen
class ServiceRow:
    """A service: `off`, `picking points`, `listening`, `published`; `clients` is null if everybody may come.

    `knocks` counts what has become of knocks. For those who may only look everything is empty by which they could find
    out whose service it is: `address`, `resource`, `magnet`, `seq`, which stands in the DHT too, `sessions`, `knocks`.
    """

    name: str
    state: str
    points: int
    sessions: int
    seq: int
    effort: int
    clients: int | None
    ports: tuple[int, ...]
    knocks: tuple[Knocks, ...]
    address: str
    resource: str
    magnet: str


@frozen
class ServiceRows:
    """The services of this node."""

    services: tuple[ServiceRow, ...]


@frozen
class HiddenRow:
    """A service that is offered now: `file` is NAME.l8; `made`: its key is a new one; `exposed`: see G40."""

    service: ServiceRow
    file: bytes
    made: bool
    exposed: tuple[str, ...]


@frozen
class SessionRow:
    """A client that was met: `login` is the key that it has shown, if any."""

    service: str
    streams: int
    age: int
    login: str


@frozen
class SessionRows:
    """Clients that were met, at most 200 of them, of `all`."""

    sessions: tuple[SessionRow, ...]
    all: int


@frozen
class PointRow:
    """An access point of a service of ours, by the first letters of its id."""

    service: str
    node: str
    age: int
    introductions: int


@frozen
class PointRows:
    """The access points of our services; and how many services of others listen here, and clients wait here."""

    points: tuple[PointRow, ...]
    listening: int
    waiting: int
    joined: int


@frozen
class Visit:
    """A hidden service by address or name, or a resource by its hash."""

    address: str = member(least=1, most=HOST_MOST)


@frozen
class Met:
    """A service was met, with a circuit that is closed again: milliseconds until it was found, and until it was met."""

    address: str
    points: int
    effort: int
    found_ms: float
    met_ms: float


@frozen
class Client:
    """A client of a service that lets in known ones only; `key` (X25519) is 52 letters of base32."""

    service: Name
    name: Annotated[str, Bounds(1, 32)]
    key: Id


@frozen
class ClientName:
    """A client of a service that lets in known ones only."""

    service: Name
    name: Annotated[str, Bounds(1, 32)]


@frozen
class ClientNames:
    """The clients that may come."""

    clients: tuple[str, ...]


@frozen
class ResourceRow:
    """A service that anybody finds by a hash."""

    name: str
    resource: str
    address: str
    state: str


@frozen
class ResourceRows:
    """The resources of this node."""

    resources: tuple[ResourceRow, ...]


@frozen
class Published:
    """A descriptor stands in the DHT, at so many nodes."""

    service: str
    seq: int
    nodes: int


@frozen
class SessionEvent:
    """A client was met (`opened`), or has left (`closed`)."""

    service: str
    state: str
    sessions: int


@frozen
class Alert:
    """Somebody else has the service's key, or a login key is used twice; `service` is empty where it is a visit."""

    service: str
    text: str


@frozen
class Visited:
    """A service that was met: its key, what its descriptor says, seconds until it was found, then until it was met."""

    key: bytes
    points: int
    effort: int
    found: float
    met: float
    origin: Origin


class Parts(Protocol):
    """What the rows look at: `layer8.node.hidden.HiddenServices`."""

    hosts: Hosts

    def counts(self) -> tuple[int, int, int]:
        """Count services of others that listen here, clients that wait here, and circuits that were joined."""

    async def visit(self, name: str) -> Visited:
        """Meet a service; raises a `Layer8Error`."""


class RendezvousRows:
    """What an operator may ask; it also tells the events."""

    owns = ("rendezvous",)
    events = (
        Event("rendezvous.published", Published, role=OPERATE),
        Event("rendezvous.session", SessionEvent, role=OPERATE),
        Event("rendezvous.alert", Alert, role=OPERATE),
    )

    def __init__(self, parts: Parts, table: Table, seconds: Callable[[], float]) -> None:
        """Look at a node's services, and tell their events to a table."""
        self._parts = parts
        self._table = table
        self._seconds = seconds

    @method("rendezvous.hide", role=ADMIN, errors=(NoCapacity,))
    async def hide(self, caller: Caller, params: Hide) -> HiddenRow:
        """Offer a hidden service; it reads files of this machine and dials its ports, so it is for administrators."""
        config = read_hide(params)
        try:
            made = self._parts.hosts.hide(params.name, config)
        except (ConfigError, RemoteProtocolError) as error:
            if isinstance(error, LimitExceeded):
                raise NoCapacity("SERVICES") from None
            raise InvalidParams("", str(error)) from None
        return hidden_row(made)

    @method("rendezvous.unhide", role=ADMIN, errors=(NotFound,))
    async def unhide(self, caller: Caller, params: Called) -> Nothing:
        """Offer a service no more; one of the configuration comes back when it is read again."""
        if not self._parts.hosts.unhide(params.name):
            raise NotFound("service")
        return Nothing()

    @method("rendezvous.services", role="read")
    async def services(self, caller: Caller) -> ServiceRows:
        """List the hidden services of this node; their addresses, to those who may steer it."""
        full = caller.may(OPERATE)
        return ServiceRows(tuple(_service(one, full) for one in self._parts.hosts))

    @method("rendezvous.sessions", role=OPERATE)
    async def sessions(self, caller: Caller) -> SessionRows:
        """List the clients that have been met, without any word of where they are: nobody here knows."""
        now = self._seconds()
        rows = [
            SessionRow(
                one.name,
                len(session.origin.streams.live),
                int(now - session.since),
                "" if session.login is None else id_text(session.login),
            )
            for one in self._parts.hosts
            for session in one.service.sessions.values()
        ]
        return SessionRows(tuple(rows[:SESSIONS]), len(rows))

    @method("rendezvous.points", role=OPERATE)
    async def points(self, caller: Caller) -> PointRows:
        """List the access points of our services, and count what this node does for others'."""
        rows = [
            PointRow(
                one.name,
                id_text(held.hop.identity)[:8],
                max(0, int(one.ground.ways.wall() - held.since)),
                held.introductions,
            )
            for one in self._parts.hosts
            for held in one.service.points.values()
        ]
        return PointRows(tuple(rows), *self._parts.counts())

    @method("rendezvous.connect", role=OPERATE, timeout=VISIT_TIME)
    async def connect(self, caller: Caller, params: Visit) -> Met:
        """Find a hidden service and meet it, say how long both took, and leave it again."""
        try:
            one = await self._parts.visit(params.address)
        except Layer8Error as error:
            raise CallUnavailable(str(error)) from None
        one.origin.close()
        return Met(address_text(one.key), one.points, one.effort, _ms(one.found), _ms(one.met))

    @method("rendezvous.auth_add", role=ADMIN, errors=(NotFound, NoCapacity))
    async def auth_add(self, caller: Caller, params: Client) -> ClientNames:
        """Let one more client in, and write it into the service's file of clients."""
        one = self._one(params.service)
        try:
            one.admit(params.name, parse_id(params.key))
        except LimitExceeded as error:
            raise NoCapacity(error.limit) from None
        except (ConfigError, RemoteProtocolError) as error:
            raise InvalidParams("key", str(error)) from None
        return ClientNames(tuple(one.clients))

    @method("rendezvous.auth_remove", role=ADMIN, errors=(NotFound,))
    async def auth_remove(self, caller: Caller, params: ClientName) -> ClientNames:
        """Let a client in no more: the others get a new cookie, and all sessions end."""
        one = self._one(params.service)
        try:
            if not one.shut_out(params.name):
                raise NotFound("client")
        except ConfigError as error:
            raise InvalidParams("service", str(error)) from None
        return ClientNames(tuple(one.clients))

    @method("rendezvous.resources", role=OPERATE)
    async def resources(self, caller: Caller) -> ResourceRows:
        """List the services of this node that anybody finds by a hash."""
        rows = (ResourceRow(one.name, one.resource, one.address, one.state) for one in self._parts.hosts)
        return ResourceRows(tuple(row for row in rows if row.resource))

    def _one(self, name: str) -> Hosting:
        found = self._parts.hosts.get(name)
        if found is None:
            raise NotFound("service")
        return found

    # What services tell: `layer8.rendezvous.hosting.Told`.

    def published(self, one: Hosting, seq: int, nodes: int) -> None:
        """Tell that a descriptor stands."""
        self._table.publish("rendezvous.published", Published(one.name, seq, nodes))

    def session(self, one: Hosting, state: str, session: Session) -> None:
        """Tell that a client has come or gone."""
        self._table.publish("rendezvous.session", SessionEvent(one.name, state, len(one.service.sessions)))

    def alert(self, name: str, text: str) -> None:
        """Tell what somebody should look at."""
        self._table.publish("rendezvous.alert", Alert(name, text))


def read_hide(params: Hide) -> ServiceConfig:
    """Read a service's configuration; raises InvalidParams."""
    ports = {one.port: one.target for one in params.ports}
    if len(ports) != len(params.ports):
        raise InvalidParams("ports", "a port is named twice")
    config = ServiceConfig(
        key=params.key,
        ports=ports,
        client_auth=params.client_auth,
        allow=params.allow,
        deny=params.deny,
        data_through_access_point=params.data_through_access_point,
        public=params.public,
    )
    for name in ("allow", "deny"):
        for text in getattr(params, name):
            try:
                parse_id(text)
            except RemoteProtocolError as error:
                raise InvalidParams(name, str(error)) from None
    for name, why in config.conflicts():
        raise InvalidParams(name, why)
    return config


def hidden_row(one: Hosting) -> HiddenRow:
    """Say everything of a service of ours."""
    return HiddenRow(_service(one, True), one.file(), one.made, one.exposed())


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _service(one: Hosting, full: bool) -> ServiceRow:
    service = one.service
    return ServiceRow(
        name=one.name,
        state=one.state,
        points=len(service.points),
        sessions=len(service.sessions) if full else 0,
        seq=one.publishing.published if full else 0,
        effort=service.price.effort if service.price is not None else 0,
        clients=len(one.clients) if one.closed else None,
        ports=tuple(one.config.ports),
        knocks=tuple(Knocks(word, count) for word, count in sorted(service.counted.items()) if full),
        address=one.address if full else "",
        resource=one.resource if full else "",
        magnet=one.magnet if full else "",
    )
