"""A proxy server inside another program: no daemon, no control port, no signals, and no files unless it may.

See `layer8.proxy` for an example. What `twistd layer8-proxy` has beyond it stands in `layer8.control.frame`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from layer8.config.field import keys
from layer8.config.load import Loaded, load_text
from layer8.config.proxy import ProxyConfig
from layer8.config.sections import ControlConfig, LogConfig
from layer8.config.state import identity, node_key
from layer8.control.metrics import Metrics
from layer8.control.service import ControlService, wall_clock
from layer8.control.table import Table
from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import make_private_folder
from layer8.crypto.keys import NodeKey
from layer8.crypto.secret import HostSecret
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.logs import Logs
from layer8.net.service import Daemon
from layer8.proxy.bans import Banned
from layer8.proxy.bus import Bus
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.orders import EVERYBODY, Mode, Policy, Register
from layer8.proxy.place import Place, alone
from layer8.proxy.prove import Prover
from layer8.proxy.registration import Registration
from layer8.proxy.remote import Plain, Sealer
from layer8.proxy.service import Server
from layer8.proxy.store import Carried, Kept

OWNER: Final = "program"
"""Who owns what the program registers."""
NOWHERE: Final = Path(os.devnull)
"""A state folder in which nothing can be found or made."""
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class Gateway(Service):
    """One proxy server; `server` is what a daemon would run, for whoever needs more than stands here."""

    _log = Logger(namespace="layer8.proxy.gateway")

    def __init__(
        self,
        reactor: Any,
        config: ProxyConfig | None = None,
        bus: Bus | None = None,
        *,
        key: NodeKey | None = None,
        sealer: Sealer | None = None,
        state: Path | None = None,
        prover: Prover | None = None,
    ) -> None:
        """Put it together, listening nowhere yet; raises ConfigError or StorageError.

        `config` is checked as a file would be; by default it listens as `twistd layer8-proxy` does, without an access
        log. `bus` makes it one of several nodes, `key` the one that the bus knows, and `sealer` keeps what nodes tell
        each other to themselves where the bus does not. `state` is a private folder for what survives a restart;
        without it everything is in memory. `prover` looks at ownership, by default in the real DNS.
        """
        loaded = _checked(config or ProxyConfig(access_log=""), state)
        self._ground = ground = _Ground(reactor, loaded, state, key)
        if state is not None:
            place = alone(ground)
        else:
            node = ground.key.node_id
            place = Place(node, LocalBus(reactor, _Forgetful(), node), _Forgetful(), Kept((), (), {}))
        if bus is not None:
            place.bus, place.sealer = bus, sealer or Plain(place.node)
        self.server = Server(ground, prover, place)
        self.server.setServiceParent(ground.daemon)  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Listen everywhere; raises `Unavailable` with nothing left open."""
        Service.startService(self)
        try:
            self._ground.daemon.startService()
        except BaseException:
            self.running = 0
            raise

    def stopService(self) -> Deferred[None]:
        """Take leave of the agents, then close everything."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._ground.control.stopService()
        await self._ground.daemon.stopService()

    @property
    def config(self) -> ProxyConfig:
        """What it goes by."""
        return self.server.config

    @property
    def url(self) -> str:
        """The address for agents on this machine, with the pin of the key if it speaks TLS; empty while it does not."""
        port = self.server.door.agents_port()
        if not port:
            return ""
        if self.config.agents[0].startswith("tls:"):
            return f"wss://127.0.0.1:{port}?pin={self.server.identity().pin}"
        return f"ws://127.0.0.1:{port}"

    def port(self, scheme: str = "http") -> int:
        """Give the first port for visitors by `http` or `https`, 0 for none."""
        return self.server.door.port_of(scheme)

    async def register(
        self,
        host: str,
        secret: HostSecret | None = None,
        *,
        ports: Iterable[int] = (),
        mode: Mode | None = None,
        policy: Policy = EVERYBODY,
    ) -> HostSecret:
        """Register a host and give its secret, a new one unless it is given; raises `Denied` if it cannot be.

        It is owned by the program, so nothing has to be proven.
        """
        secret = secret or HostSecret.make()
        asked = Register(host, secret.key.hex(), tuple(ports), mode, policy)
        await self.server.ledger.register(asked, OWNER, True)
        return secret

    async def unregister(self, host: str) -> None:
        """Take a host away and close its visitors; raises `Denied` if there is none of the program's."""
        gone = await self.server.ledger.unregister(host, OWNER)
        self.server.traffic.kill(None, gone.host)


@frozen
class _Source:
    loaded: Loaded


class _Ground:
    """See `layer8.proxy.ground`; nothing here listens, but for the factory that speaks to agents."""

    _log = Logger(namespace="layer8.proxy.gateway")

    def __init__(self, reactor: Any, loaded: Loaded, state: Path | None, key: NodeKey | None) -> None:
        self.reactor = reactor
        self.source = _Source(loaded)
        self.environ: Mapping[str, str] = {}
        self.home = state or NOWHERE
        if state is not None:
            make_private_folder(state)
        self.key = key or (NodeKey.make() if state is None else node_key(state))
        self.logs = Logs(LogConfig(), {})
        self.daemon = Daemon(reactor, self._log)
        self.health = self.daemon.health
        self.table = Table(wall_clock)
        self.metrics = Metrics(time.monotonic)
        self.control = ControlService(
            reactor,
            "proxy",
            ControlConfig(listen=(), socket=False),
            self.home,
            self.table,
            self.metrics,
            self.health.reasons,
        )
        self._in_memory: Identity | None = None

    def identity(self, name: str = "", cert_file: str = "", key_file: str = "") -> Identity:
        """Give the certificate of TLS listeners."""
        if key_file or self.home != NOWHERE:
            return identity(self.home, self.environ, name=name, cert_file=cert_file, key_file=key_file)
        if self._in_memory is None:
            self._in_memory = Identity.from_pem(*self_signed([*([name] if name else []), *LOOPBACK]))
        return self._in_memory


class _Forgetful:
    """A store that keeps nothing."""

    async def save(self, row: Registration) -> None:
        """Write nothing."""

    async def drop(self, row: Registration) -> None:
        """Strike nothing out."""

    async def ban(self, ban: Banned) -> None:
        """Write nothing."""

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Strike nothing out."""

    async def carry(self, carried: Mapping[str, Carried]) -> None:
        """Write nothing."""


def _checked(config: ProxyConfig, state: Path | None) -> Loaded:
    """Check a configuration that a program has made as if it were a file; raises ConfigError."""
    for key, usual, why in (
        ("workers", 1, "a gateway is one process"),
        ("takeover", "", "a gateway takes no listeners over"),
        ("bus", "local", "give the gateway a bus as an argument"),
        *([("acme", "", "certificates of an authority need a state folder")] if state is None else []),
    ):
        if getattr(config, key) != usual:
            raise ConfigError(f"{key}: {why}")
    return load_text("", {}, {"proxy": _plain(config)}, role="proxy")


def _plain(section: Any) -> Any:
    """Give a section as TOML would, without what is as usual."""
    found = {}
    for key in keys(type(section)):
        value = getattr(section, key.name)
        if key.section is not None:
            inner = [_plain(item) for item in value] if key.repeated else _plain(value)
            if inner:
                found[key.name] = inner
        elif value != key.default:
            found[key.name] = list(value) if isinstance(value, tuple) else value
    return found
