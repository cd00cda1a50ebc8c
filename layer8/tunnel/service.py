"""The relay of the browser tunnel, put together from its parts.

::

    Frame ── control, health, log, reload
      │
    Relay ── Server :5000 ─┬─ /r/{gw}        Relaying ── Pool ──> gateway
      │                    ├─ /r/{gw}/keys   Keeping  ── Pool ──> gateway, hourly other relays
      │                    ├─ /ws/{gw}       Piping   ── Pool ──> gateway
      │                    ├─ /l8/...        Scripts of the wheel
      │                    └─ {app}.host/... App: files of a folder
      └── Admission ── who has how much under way
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger

from layer8.config import files
from layer8.config.endpoint import server as read_endpoint
from layer8.config.endpoint import way
from layer8.config.tree import Config
from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.control.metrics import Metrics
from layer8.control.service import wall_clock
from layer8.control.table import Table
from layer8.core.address import Networks, is_address
from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import read_private
from layer8.crypto.x509 import Identity
from layer8.net.http import Incoming
from layer8.net.http_client import Pool
from layer8.net.http_wire import BUFFER, Deaf
from layer8.net.listen import serve
from layer8.net.service import Health
from layer8.net.tls import TlsServer
from layer8.net.ways import connector
from layer8.tunnel import mirror, wire
from layer8.tunnel.admission import IN_FLIGHT, Admission
from layer8.tunnel.door import HERE, Door
from layer8.tunnel.keeping import Keeping, Kept, Source
from layer8.tunnel.keys import read_pin
from layer8.tunnel.limits import DIAL_TIME
from layer8.tunnel.mirror import NOT_FOUND, App, Scripts, Shown
from layer8.tunnel.operate import Bytes, GatewayRow, RelayMetrics, RelayRows, RelayStats
from layer8.tunnel.piping import Piping
from layer8.tunnel.relay_session import COMMON, Route
from layer8.tunnel.relaying import Relaying
from layer8.tunnel.wire import PROBLEM_TYPE

PATIENCE: Final = 30.0  # seconds for a connection by way of a proxy, which builds a circuit first
FAREWELL: Final = 0.1  # seconds for the last words to those whose requests are cut at the end
SETTLE: Final = 0.05  # seconds between two looks whether everybody has left


@frozen(eq=False)
class _Gateways:
    """What one configuration says of gateways."""

    routes: Mapping[str, Route]
    sockets: Mapping[str, Route]
    sources: Mapping[str, tuple[Source, tuple[bytes, ...]]]
    apps: Mapping[str, App]


class Ground(Protocol):
    """What a relay stands on: a daemon's `layer8.control.frame.Frame`, or what `alone` makes."""

    reactor: Any
    environ: Mapping[str, str]
    table: Table
    metrics: Metrics

    @property
    def health(self) -> Health:
        """The checks of this process."""

    def identity(self, name: str = "", cert_file: str = "", key_file: str = "") -> Identity:
        """Give the certificate of TLS listeners."""


@define(eq=False)
class _Alone:
    """The ground of a relay that is no daemon."""

    reactor: Any
    environ: Mapping[str, str] = field(factory=dict)
    table: Table = field(factory=lambda: Table(wall_clock))
    metrics: Metrics = field(factory=lambda: Metrics(time.monotonic))
    health: Health = field(factory=Health)

    def identity(self, name: str = "", cert_file: str = "", key_file: str = "") -> Identity:
        """Refuse: there is no state folder to keep one in."""
        raise ConfigError("a relay that is no daemon has no certificate")


def alone(reactor: Any, config: TunnelConfig) -> Relay:
    """Make a relay that is no daemon, for tests and demonstrations; start and stop it as a service."""
    return Relay(_Alone(reactor), config)


class Relay(Service):
    """One relay; also what its frame calls a role."""

    _log = Logger(namespace="layer8.tunnel")

    def __init__(self, ground: Ground, config: TunnelConfig) -> None:
        """Put it together, listening nowhere yet; raises ConfigError."""
        self._ground = ground
        reactor = self._reactor = ground.reactor
        self.config = config
        self._role, self._where = config.role, config.listen  # these need a restart
        self.server = Door(reactor, self._asked, log=self._log)
        self.admission = Admission(secrets.token_bytes(32))
        self.doors = Admission(secrets.token_bytes(32))  # the same for sockets
        self.keeping = Keeping(reactor, wall_clock, self._log, self._looked)
        self.relaying = Relaying(reactor, self.admission, self._address, self.keeping.hurry)
        self.piping = Piping(reactor, self.doors, self._address, secrets.token_bytes, tally=self.server.tally)
        self._pools: dict[str, Pool] = {}
        self._socket_pools: dict[str, Pool] = {}
        self._spent = Bytes()  # of pools that are no more
        self._tls: TlsServer | None = None
        self._ports: list[IListeningPort] = []
        self._fronts = Networks.parse(())
        self._hosts: Mapping[str, App] = {}
        self._scripts = Scripts()
        self.metrics = RelayMetrics(self)
        self._use(self.config, self._read(self.config))
        ground.table.add(RelayRows(self))

    # As a service.

    def startService(self) -> None:
        """Listen everywhere; raises `Unavailable` with nothing left open."""
        Service.startService(self)
        try:
            self._listen()
        except BaseException:
            self.running = 0
            for port in self._ports:
                port.stopListening()
            self._ports = []
            raise
        self.keeping.start()
        self._ground.metrics.add(self.metrics)

    def stopService(self) -> Deferred[None]:
        """Close everything."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._ground.metrics.remove(self.metrics)
        await self._close()
        self.piping.abort()
        cut = len(self.relaying)
        self.relaying.abort()
        if cut:
            self.server.stop()
            await deferLater(self._reactor, FAREWELL, lambda: None)
        self.server.abort()
        await self.keeping.stop()
        for pool in (*self._pools.values(), *self._socket_pools.values()):
            pool.abort()

    def _listen(self) -> None:
        for text in self._where:
            tls = None
            if read_endpoint(text).tls:
                if self._tls is None:
                    self._tls = TlsServer(self._identity(self.config), ("http/1.1",))
                tls = self._tls
            self._ports += serve(self._reactor, text, "--listen", self.server, tls=tls)

    async def _close(self) -> None:
        ports, self._ports = self._ports, []
        await gatherResults([maybeDeferred(port.stopListening) for port in ports])

    # As a role of its frame.

    async def apply(self, config: Config) -> None:
        """Go by another configuration; where it listens and its role need a restart."""
        fresh = config.tunnel
        found = self._read(fresh)
        if self._tls is not None:
            self._tls.replace(self._identity(fresh))
        self._use(fresh, found)

    def listening(self) -> Sequence[str]:
        """Say where pages may come."""
        return tuple(f"{self._word} on {_where(port)}" for port in self._ports)

    def connections(self) -> int:
        """Count what is under way."""
        return len(self.relaying) + len(self.piping)

    @property
    def drain_s(self) -> float:
        """Seconds that requests have when the process is told to end."""
        return self.config.drain_s

    def wind_down(self, seconds: float) -> None:
        """Take no more pages: sockets are told to go elsewhere, requests go on."""
        for port in self._ports:
            port.stopListening()
        self._ports = []
        self.piping.drain()
        self.server.stop()

    async def drain(self) -> None:
        """Take no more pages, and finish when nothing is under way."""
        self.wind_down(0.0)
        while self.connections() or len(self.server):
            await deferLater(self._reactor, SETTLE, lambda: None)

    def resume(self) -> None:
        """Take pages again."""
        self.server.stopping = self.piping.draining = False
        if not self._ports:
            self._listen()

    # What the rows and metrics ask.

    def rows(self) -> Iterable[GatewayRow]:
        """Give the gateways, by id."""
        for gateway, kept in sorted(self.keeping.kept.items()):
            pools = self._pools[gateway], self._socket_pools[gateway]
            yield GatewayRow(
                gateway=gateway,
                epoch=kept.epoch,
                age=self.keeping.age(kept),
                exchanges=self.admission.in_flight(gateway),
                sockets=self.doors.in_flight(gateway),
                connections=sum(pool.open for pool in pools),
                apart=kept.apart,
            )

    def stats(self) -> RelayStats:
        """Give the counts since the start."""
        pools = (*self._pools.values(), *self._socket_pools.values())
        return RelayStats(
            exchanges=dict(self.relaying.outcomes),
            sockets=dict(self.piping.outcomes),
            under_way=len(self.relaying),
            open_sockets=len(self.piping),
            connections=len(self.server),
            networks=len(self.admission),
            bytes=Bytes(
                self.server.tally.heard,
                self.server.tally.sent,
                self._spent.gateway_in + sum(pool.tally.heard for pool in pools),
                self._spent.gateway_out + sum(pool.tally.sent for pool in pools),
            ),
        )

    # Requests.

    def _asked(self, page: Incoming) -> None:
        path = page.path
        relays = self._role != "mirror"
        if path.startswith("/r/") and relays:
            gateway, _, rest = path[3:].partition("/")
            if rest == "keys":
                self.keeping.show(page, gateway)
            else:
                self.relaying.take(page)
        elif path.startswith("/ws/") and relays:
            self.piping.take(page, "" if page.query else path[4:])
        elif path.startswith("/l8/"):
            self._show(page, self._scripts.find(path))
        elif page.host in self._hosts:
            self._show(page, self._hosts[page.host].find(path, page.only("if-none-match") or ""))
        else:
            page.answer(404, (*COMMON, ("content-type", PROBLEM_TYPE)), wire.problem(404, wire.ABOUT_BLANK))

    @staticmethod
    def _show(page: Incoming, shown: Shown) -> None:
        if page.method not in ("GET", "HEAD"):
            page.answer(405, (("allow", "GET, HEAD"),))
        elif shown.path is None:
            page.answer(shown.status, shown.fields, shown.body)
        else:
            try:
                file = shown.path.open("rb")
            except OSError:
                page.answer(NOT_FOUND.status, NOT_FOUND.fields, NOT_FOUND.body)
                return
            page.begin(shown.status, shown.fields, shown.size)
            page.to(_Sending(page, file, 0 if page.method == "HEAD" else shown.size))

    def _address(self, page: Incoming) -> str:
        """Give whom the limits count a request for: "" for this machine."""
        address = str(getattr(page.peer, "host", "") or "")
        if not address or address in self._fronts:  # none: by a Unix socket, whose other end is of this machine
            told = [word.strip() for value in page.values("x-forwarded-for") for word in value.split(",")]
            address = told[-1] if told and is_address(told[-1]) else address
        return "" if address in HERE else address

    # Configuration.

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports on which it listens."""
        return tuple(getattr(port.getHost(), "port", 0) for port in self._ports)

    @property
    def _word(self) -> str:
        return {"relay": "relay", "mirror": "mirror of apps", "both": "relay and mirror of apps"}[self._role]

    def _identity(self, config: TunnelConfig) -> Any:
        return self._ground.identity(config.name, config.tls_cert_file, config.tls_key_file)

    def _read(self, config: TunnelConfig) -> _Gateways:
        """Make what is needed of every gateway; raises ConfigError, and changes nothing."""
        routes, sockets, sources = {}, {}, {}
        apps = {one.id: App(Path(one.app)) for one in config.gateway if one.app}
        ours = f"https://{config.name}"
        for one in config.gateway:
            if not one.endpoint or self._role == "mirror":
                continue
            bearer = self._bearer(one)
            found = way(one.endpoint)
            connector(self._reactor, one.endpoint)  # raises for an authority's file that cannot be read
            patience = PATIENCE if found.kind in ("tor", "socks5") else DIAL_TIME
            host = one.host or _host(one)
            routes[one.id] = Route(one.endpoint, host, one.path, bearer, patience)
            sockets[one.id] = Route(one.endpoint, host, one.socket_path, bearer, patience)
            named = apps[one.id].relays(one.id) if one.id in apps else ()
            others = tuple(dict.fromkeys(relay for relay in (*one.compare, *named) if relay != ours))
            sources[one.id] = Source(one.keys_path, host, bearer, others), tuple(map(read_pin, one.identity))
        return _Gateways(routes, sockets, sources, apps if self._role != "relay" else {})

    def _bearer(self, gateway: TunnelGatewayConfig) -> str:
        if not gateway.bearer_file:
            return ""
        path = Path(gateway.bearer_file)
        text = (
            read_private(path, forbidden=files.forbidden(path, self._ground.environ)).decode("ascii", "replace").strip()
        )
        if not text or not all("!" <= letter <= "~" for letter in text):
            raise ConfigError(f"{path}: a token has visible letters of ASCII and no space")
        return text

    def _use(self, config: TunnelConfig, found: _Gateways) -> None:
        for pools in (self._pools, self._socket_pools):
            for gateway in list(pools):
                if (
                    gateway not in found.routes
                    or self.relaying.routes[gateway].endpoint != found.routes[gateway].endpoint
                ):
                    self._retire(pools.pop(gateway))
            for gateway, route in found.routes.items():
                if gateway not in pools:
                    # as many as are let in: with fewer, those of one network could be all that there are
                    pools[gateway] = Pool(self._reactor, connector(self._reactor, route.endpoint), most=IN_FLIGHT)
        self.config = config
        self._fronts = Networks.parse(config.forwarded_from)
        self.relaying.routes, self.relaying.pools = found.routes, self._pools
        self.piping.routes, self.piping.pools = found.sockets, self._socket_pools
        self._hosts = {host: found.apps[app] for host, app in mirror.origins(found.apps, config.name).items()}
        self.keeping.configure(
            {gateway: (source, self._pools[gateway], pins) for gateway, (source, pins) in found.sources.items()}
        )

    def _retire(self, pool: Pool) -> None:
        """Let a pool end with what is under way in it; what it has counted counts on, up to here."""
        pool.close()
        tally, spent = pool.tally, self._spent
        self._spent = Bytes(0, 0, spent.gateway_in + tally.heard, spent.gateway_out + tally.sent)

    def _looked(self, _: Kept) -> None:
        """Tell of gateways without keys, and of those with other keys elsewhere."""
        kept = self.keeping.kept.values()
        keyless = sum(one.document is None for one in kept)
        apart = sum(bool(one.apart) for one in kept)
        health = self._ground.health
        health.set("keys", not keyless, f"{keyless} of {len(kept)} gateways give no key set", needed=False)
        why = f"{apart} of {len(kept)} gateways have other keys at other relays"
        health.set("keys elsewhere", not apart, why, needed=False)


class _Sending(Deaf):
    """A file on its way to a page."""

    def __init__(self, page: Incoming, file: BinaryIO, left: int) -> None:
        self._page = page
        self._file = file
        self._left = left
        self._over = False

    def ended(self) -> None:
        """Begin, once all of the request is here."""
        self.room()

    def room(self) -> None:
        while not self._over and not self._page.crowded:
            data = self._file.read(min(BUFFER, self._left)) if self._left else b""
            if not data:
                self._end()
                return
            self._left -= len(data)
            self._page.write(data)

    def lost(self) -> None:
        self._over = True
        self._file.close()

    def _end(self) -> None:
        self._over = True
        self._file.close()
        if self._left:
            self._page.abort()  # the file has become shorter
        else:
            self._page.finish()


def _host(gateway: TunnelGatewayConfig) -> str:
    """Give the Host for a gateway that names none."""
    found = way(gateway.endpoint)
    name = found.words.get("name") or found.words.get("tls") or found.words.get("host", "")
    if not name:
        return "localhost"
    if ":" in name:
        name = f"[{name}]"
    usual = 443 if found.kind == "tls" or found.words.get("tls") else 80
    return name if found.port == usual else f"{name}:{found.port}"


def _where(port: IListeningPort) -> str:
    host: Any = port.getHost()
    if hasattr(host, "port"):
        return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"
    return f"unix:{getattr(host, 'name', '')}"
