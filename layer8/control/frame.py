"""What stands around a protocol in every daemon: identity, control, health, log, reload, drain and signals.

A daemon is put together in its `tap.py`::

    frame = Frame(reactor, "proxy", options, environ)
    server = Server(frame, ...)
    frame.run(server)            # parts start in this order, control last
    return frame.process         # what twistd runs
"""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from layer8.config import files
from layer8.config.home import home
from layer8.config.load import Loaded, load_text
from layer8.config.sections import WampConfig
from layer8.config.state import identity, node_key
from layer8.config.tree import Config
from layer8.control.callers import Callers
from layer8.control.debugport import DebugPort
from layer8.control.metrics import Metrics
from layer8.control.node import Node
from layer8.control.service import ControlService, wall_clock
from layer8.control.settings import Configuration, Settings
from layer8.control.table import Table
from layer8.core.errors import Layer8Error
from layer8.crypto.keyfile import make_private_folder, read_private
from layer8.crypto.keys import NodeKey
from layer8.crypto.x509 import Identity
from layer8.net.logs import Logs
from layer8.net.process import Process
from layer8.net.service import Daemon


class Source(Protocol):
    """Where the configuration came from, so that it can be read again."""

    loaded: Loaded

    def reload(self) -> Loaded:
        """Read every source anew; raises ConfigProblems."""


class Role(Protocol):
    """A protocol's side of its daemon."""

    def apply(self, config: Config) -> Awaitable[None]:
        """Go by another configuration; if it raises, nothing has changed."""

    def listening(self) -> Sequence[str]:
        """Say in words where what listens."""

    def connections(self) -> int:
        """Count what is under way."""

    @property
    def drain_s(self) -> float:
        """Seconds that what is under way has when the process is told to end."""

    def wind_down(self, seconds: float) -> None:
        """Take nothing new; what is under way has `seconds`."""

    def resume(self) -> None:
        """Take work again."""


class RouterLike(Protocol):
    """What `layer8.net.wamp.Link` offers to those who share the session with a router."""

    session: Any

    def use(self, user: Any) -> None:
        """Let somebody use each session from now on."""

    def call(self, procedure: str, params: Mapping[str, Any], timeout: float) -> Deferred[Any]:
        """Call a procedure."""

    def publish(self, topic: str, params: Mapping[str, Any]) -> bool:
        """Publish an event."""


class Frame:
    """See the module; raises ConfigError or StorageError when the state folder cannot be used."""

    _log = Logger(namespace="layer8.control.frame")

    def __init__(
        self, reactor: Any, role: str, source: Source, environ: Mapping[str, str], *, key: NodeKey | None = None
    ) -> None:
        """Prepare the daemon `role`; nothing listens yet. `key` None: the one in the state folder."""
        config = source.loaded.config
        self.reactor = reactor
        self.role = role
        self.environ = environ
        self.source = source
        self.home: Path = home(environ)
        make_private_folder(self.home)
        self.logs = Logs(config.log, environ)
        self.key = key or node_key(self.home)
        self.daemon = Daemon(reactor, self._log)
        self.health = self.daemon.health
        self.table = Table(wall_clock)
        self.metrics = Metrics(time.monotonic)
        self._identities: dict[tuple[str, str, str], Identity] = {}
        self._roles: list[Role] = []
        self.control = ControlService(
            reactor,
            role,
            config.control,
            self.home,
            self.table,
            self.metrics,
            self.health.reasons,
            identity=self.identity,
        )
        self.debug = DebugPort(
            reactor, self.table, self.control.keyring, config.debug.listen, self.control.run / f"{role}.debug"
        )
        self.node = Node(
            reactor,
            self.table,
            self.metrics,
            self.health,
            self,
            ident=self.key.short,
            roles=lambda: (role,),
            listening=self.listening,
            drain_control=self.control.set_draining,
            notes=self._notes,
        )
        self.configuration = Configuration(source.loaded, source.reload, self._check, self._apply)
        self.settings = Settings(self.table, self.configuration, self.logs)
        self.process = Process(
            reactor, f"layer8-{role}", self.logs, environ, reload=self._hangup, ready=lambda: self.health.ready
        )
        self.router: RouterLike | None = None
        if config.control.wamp.url:
            self.router = self._join_router(config.control.wamp)
        for module in (self.node, self.settings, Callers(self.control.keyring, self.control.conversations)):
            self.table.add(module)

    def run(self, role: Role, *parts: IService) -> None:
        """Let the process run these parts, in this order, and the control listeners after them."""
        self._roles.append(role)
        self._be_patient()
        router = () if self.router is None else (self.router,)
        for part in (*router, *parts, self.control, self.debug, _Rows(self)):
            part.setServiceParent(self.daemon)
        self.daemon.setServiceParent(self.process)  # type: ignore[no-untyped-call]

    def _join_router(self, config: WampConfig) -> RouterLike:
        """Serve the table over a router too; only now is anything of WAMP imported."""
        from layer8.control.wamp import WampBinding
        from layer8.net.wamp import Link

        path = Path(config.secret_file)
        ticket = read_private(path, forbidden=files.forbidden(path, self.environ)).decode("utf-8", "replace").strip()
        link = Link(
            self.reactor,
            config,
            config.auth_id or self.key.short,
            ticket,
            lambda ok, why: self.health.set("router", ok, why, needed=False),
        )
        binding = WampBinding(self.control.pulse, self.table, self.key.short, config.roles)
        self.control.beside.append(binding)
        link.use(binding)
        return link

    def identity(self, name: str = "", cert_file: str = "", key_file: str = "") -> Identity:
        """Give the certificate of this daemon's TLS listeners: the configured pair, else a self-signed one."""
        asked = (name, cert_file, key_file)
        if asked not in self._identities:
            found = identity(self.home, self.environ, name=name, cert_file=cert_file, key_file=key_file)
            self._identities[asked] = found
        return self._identities[asked]

    def forget_identities(self) -> None:
        """Read certificates again when they are asked for next."""
        self._identities.clear()

    def listening(self) -> tuple[str, ...]:
        """Say where everything listens."""
        told = [line for role in self._roles for line in role.listening()]
        debug = (f"debug port on {text}" for text in self.debug.listening)
        return (*told, *(f"control on {text}" for text in self.control.listening), *debug)

    # What the rows `node.*` ask of a process.

    def drain(self, seconds: float) -> None:
        """Take no new work; what is under way has `seconds` to end."""
        for role in self._roles:
            role.wind_down(seconds)
        self.daemon.drain(seconds)

    def resume(self) -> None:
        """Take work again."""
        self.health.draining = False
        for role in self._roles:
            role.resume()

    def stop(self, seconds: float) -> None:
        """Drain for at most `seconds`, then end the process."""
        self.drain(seconds)
        self.daemon.drain(seconds).addBoth(lambda _: self.reactor.stop())

    def connections(self) -> int:
        """Count what is under way."""
        return sum(role.connections() for role in self._roles)

    def ready(self) -> None:
        """Tell whoever watches that everything listens, and watch for signals."""
        for line in self.listening():
            self._log.info("listening", event="listen.opened", what=line)
        self.node.start()
        self.settings.start()
        self.reactor.callWhenRunning(self._watch_end)

    def ended(self) -> None:
        """Tell no more."""
        self.node.stop()
        self.settings.stop()

    def _be_patient(self) -> None:
        self.daemon.drain_seconds = max(role.drain_s for role in self._roles)

    def _watch_end(self) -> None:
        """A second SIGTERM or SIGINT ends a drain at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            usual = signal.getsignal(number)

            def end(received: int, frame: Any, usual: Any = usual) -> None:
                if self.process.running:
                    usual(received, frame)
                else:
                    self.reactor.callFromThread(self.daemon.hurry)

            if callable(usual):
                signal.signal(number, end)

    def _notes(self) -> tuple[str, ...]:
        clear = self.configuration.loaded.config.log.addresses == "clear"
        pins = sorted({f"TLS key: pin={identity.pin}" for identity in self._identities.values()})
        return (*pins, "the log shows addresses as they are") if clear else tuple(pins)

    def _check(self, text: str) -> Loaded:
        return load_text(text, self.environ, {}, role=self.role)

    def _hangup(self) -> None:
        Deferred.fromCoroutine(self._reload())

    async def _reload(self) -> None:
        try:
            await self.settings.reload()
            self._log.info("the configuration was read again", event="config.reloaded")
        except Layer8Error as error:
            self._log.error("the old configuration stands", event="config.refused", reason=str(error))

    async def _apply(self, fresh: Loaded) -> None:
        known = dict(self._identities)
        self.forget_identities()
        try:
            settle = self.control.prepare(fresh.config.control)
        except BaseException:
            self._identities = known
            raise
        try:
            for role in self._roles:
                await role.apply(fresh.config)
            self.logs.apply(fresh.config.log)
        except BaseException:
            # What was read from files that changed on disk must not be announced while the old one is shown.
            self._identities = known
            settle(False)
            raise
        settle(True)
        self._be_patient()


class _Rows(Service):
    """Starts last and stops first: everything before it listens."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def startService(self) -> None:
        """Say that everything listens."""
        Service.startService(self)
        self._frame.ready()

    def stopService(self) -> None:
        """Say no more."""
        Service.stopService(self)
        self._frame.ended()
