"""`twistd layer8-gateway`: the sidecar with what stands around it in a daemon.

::

    Frame -- control, health, log, reload
      |
    GatewayServer -- Sidecar -- Gate -- Gateway     keys, replay set
                        |--------------- Pool       the backend
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamClientEndpoint
from twisted.logger import Logger

from layer8.config.endpoint import client as read_client
from layer8.config.endpoint import server as read_server
from layer8.config.endpoint import split
from layer8.config.gateway import GatewayConfig
from layer8.config.tree import Config
from layer8.control.frame import Frame
from layer8.control.metrics import Family, counter, gauge
from layer8.core.errors import ConfigError
from layer8.net.http_client import Pool
from layer8.net.listen import serve
from layer8.net.tls import TlsServer
from layer8.net.ways import connector
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.operate_gateway import GatewayRows
from layer8.tunnel.settings import Settings
from layer8.tunnel.sidecar import Sidecar

BACKEND: Final = 1024  # connections to the backend: as many as a relay lets through, for streams keep theirs
FOLDER = "gateway"
"""Where keys are, in the state folder."""


def settings_of(config: GatewayConfig, home: Path) -> Settings:
    """Give the settings of a configuration; raises `ConfigError`."""
    if not config.gateway or not config.authorities:
        raise ConfigError("a gateway needs a name and what it answers for: --gateway shop --authorities shop.example")
    state = None if config.database_file else home / (config.state or FOLDER)
    return Settings(
        gateway=config.gateway,
        authorities=config.authorities,
        identity_file=config.identity_file or None,
        signed_file=config.signed_file or None,
        state=state,
        database_file=config.database_file or None,
        bearer_file=config.bearer_file or None,
        next_identity=config.next_identity,
        require=config.require,
        require_date=config.require_date,
        pad=config.pad,
        pad_events=config.pad_events,
        chacha=config.chacha,
        chunked=config.chunked,
    )


def dialler(reactor: Any, text: str) -> Callable[[IProtocolFactory], Deferred[Any]]:
    """Give what dials a backend; raises `ConfigError`."""
    if split(text)[0][:1] in (["tcp"], ["unix"]):
        dialled: IStreamClientEndpoint = clientFromString(reactor, read_client(text).twisted())
        return dialled.connect
    return connector(reactor, text)


class GatewayServer(Service):
    """The sidecar as a part of its daemon; also what its frame calls a role."""

    _log = Logger(namespace="layer8.gateway")

    def __init__(self, frame: Frame) -> None:
        """Open keys and replay set, listening nowhere yet; raises `ConfigError` or `StorageError`."""
        config = frame.source.loaded.config.gateway
        self._frame = frame
        self.config = config
        self._reactor = frame.reactor
        self.gateway = Gateway.open(settings_of(config, frame.home))
        pool = Pool(frame.reactor, dialler(frame.reactor, config.backend), most=BACKEND)
        self.sidecar = Sidecar(frame.reactor, self.gateway, pool, told=self._told)
        self._ports: list[tuple[IListeningPort, str]] = []
        self._tls: TlsServer | None = None
        self.metrics = GatewayMetrics(self.sidecar)
        gate = self.sidecar.gate
        rows = GatewayRows(self.gateway, gate.threads, self.sidecar.traffic, lambda: len(gate.under_way), frame.table)
        frame.table.add(rows)

    def _told(self, check: str, ok: bool, why: str) -> None:
        """Keys that cannot be read are a reason to send no work here; a backend that is away is told by 502."""
        self._frame.health.set(check, ok, why, needed=check == "keys")

    # As a service.

    def startService(self) -> None:
        """Listen everywhere; raises `Unavailable` with nothing left open."""
        Service.startService(self)
        self._told("keys", True, "")
        try:
            self._listen()
        except BaseException:
            self.running = 0
            for port, _ in self._ports:
                port.stopListening()
            self._ports.clear()
            raise
        self.sidecar.start()
        self._frame.metrics.add(self.metrics)
        pin = "elsewhere" if self.gateway.identity is None else self.gateway.pin
        self._log.info("keys are here", event="gateway.ready", gateway=self.gateway.id, pin=pin)

    def _listen(self) -> None:
        for text in self.config.listen:
            tls = None
            if read_server(text).tls:
                tls = self._tls = self._tls or TlsServer(self._identity(self.config), ("http/1.1",))
            for port in serve(self._reactor, text, "--listen", self.sidecar.server, tls=tls):
                self._ports.append((port, text))

    def _identity(self, config: GatewayConfig) -> Any:
        name = config.authorities[0].rpartition("://")[2].partition(":")[0]
        return self._frame.identity(name, config.tls_cert_file, config.tls_key_file)

    def stopService(self) -> Deferred[None]:
        """Cut what is left, and let go of the keys."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._frame.metrics.remove(self.metrics)
        await self._stop_listening()
        self.sidecar.stop()
        await self.sidecar.gate.threads(self.gateway.close)

    async def _stop_listening(self) -> None:
        ports, self._ports = self._ports, []
        await DeferredList([maybeDeferred(port.stopListening) for port, _ in ports], consumeErrors=True)

    # As a role of its frame.

    async def apply(self, config: Config) -> None:
        """Go by another configuration; what needs a restart stays as it was."""
        fresh = config.gateway
        if self._tls is not None:
            self._tls.replace(self._identity(fresh))
        self.config = fresh

    def listening(self) -> Sequence[str]:
        """Say where relays may come."""
        return [f"relays on {_where(port)}" for port, _ in self._ports]

    def connections(self) -> int:
        """Count what is under way."""
        return len(self.sidecar.gate.under_way) + len(self.sidecar.sockets.open)

    @property
    def drain_s(self) -> float:
        """Seconds that requests have when the process is told to end."""
        return self.config.drain_s

    def wind_down(self, seconds: float) -> None:
        """Take nothing new; what is under way has `seconds`."""
        self._frame.daemon.tasks.start("drain", self.drain())

    async def drain(self) -> None:
        """Take nothing new, and finish when the last exchange has ended."""
        await self._stop_listening()
        await self.sidecar.drain()

    def resume(self) -> None:
        """Take work again."""
        self.sidecar.resume()
        if self.running and not self._ports:
            self._listen()


def _where(port: IListeningPort) -> str:
    where: Any = port.getHost()
    host = getattr(where, "host", None)
    return f"{host}:{where.port}" if host is not None else f"unix:{getattr(where, 'name', b'')!s}"


class GatewayMetrics:
    """The families `layer8_gateway_*`: counts, and nothing by which requests could be told apart."""

    def __init__(self, sidecar: Sidecar) -> None:
        """Take what counts."""
        self._sidecar = sidecar

    def families(self) -> Iterable[Family]:
        """Give the present values."""
        sidecar = self._sidecar
        counts = dict(sidecar.gateway.counts())
        sockets = counts.pop("sockets")
        rows: Mapping[tuple[str, ...], float] = {(outcome,): count for outcome, count in counts.items()}
        yield Family("layer8_gateway_outcomes_total", "What became of requests.", "counter", rows, ("outcome",))
        yield gauge("layer8_gateway_open", "Exchanges under way.", len(sidecar.gate.under_way))
        yield gauge("layer8_gateway_sockets", "Sockets that are open.", sockets)
        yield gauge("layer8_gateway_connections", "Connections from relays and others.", len(sidecar.server))
        yield gauge("layer8_gateway_backend_connections", "Connections to the backend.", sidecar.pool.open)
        traffic = sidecar.traffic()
        labels = (("relay", "in"), ("relay", "out"), ("backend", "in"), ("backend", "out"))
        labelled: Mapping[tuple[str, ...], float] = dict(zip(labels, traffic, strict=True))
        yield Family("layer8_gateway_bytes_total", "Bytes at the sockets.", "counter", labelled, ("leg", "direction"))
        keys = sidecar.gateway.keys()
        yield gauge("layer8_gateway_keys", "Keys that open something.", len(keys))
        made = max((key.made for key in keys), default=0)
        yield gauge("layer8_gateway_key_made_seconds", "When the newest key was made, since 1970.", made)
        yield counter("layer8_gateway_retries_total", "Requests that were asked again.", sidecar.retries)
