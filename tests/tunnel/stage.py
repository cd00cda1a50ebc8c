"""Relays, gateways and their backends on loopback, with ears on every leg, for the tests of what talks to them.

::

    async with await Stage.start(reactor) as stage:
        page = await stage.page(browser)
        text = await page.evaluate(f"L8.connect({json.dumps(stage.connect())}).then(t => t.fetch('/echo')).then(...)")
        self.assertEqual(stage.gateways["shop"].backend.calls[0].uri, "/echo")

The parts are the real ones. Between each two of them stands a `Tap`::

    page ── front[0] ── relay ── back["shop"] ── gateway ── backend
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Self

from attrs import define, field
from twisted.internet.defer import maybeDeferred

import layer8
from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.core.errors import LimitExceeded
from layer8.crypto.keys import NodeKey
from layer8.net.http import Incoming, Server
from layer8.net.http_client import Pool
from layer8.net.ways import connector
from layer8.tunnel import gateway as gateways
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.keys import HOUR, pin_text
from layer8.tunnel.mirror import KINDS
from layer8.tunnel.resource import L8Resource
from layer8.tunnel.service import Relay, alone
from layer8.tunnel.settings import Settings
from layer8.tunnel.sidecar import Sidecar
from tests.tunnel.backend import Backend
from tests.tunnel.taps import Tap

ROTATIONS: Final = 10
"""Times that a gateway of the stage can make a new key out of turn; each needs an hour of its own."""
OWN_HOUR: Final = "own_hour"
PAGE: Final = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><title>app</title><link rel="icon" href="data:,">'
    b'<script type="module" src="/l8/0/l8.js"></script></html>'
)
LOADED: Final = (
    "new Promise((done) => { const look = () => (globalThis.L8 ? done(true) : setTimeout(look, 5)); look(); })"
)


@define(eq=False)
class End:
    """A gateway with what is behind it; `kind` is the way it is put before the backend."""

    reactor: Any
    id: str
    kind: str
    backend: Backend
    settings: dict[str, Any] = field(factory=dict)
    identity: NodeKey = field(factory=NodeKey.make)
    port: int = 0
    gateway: Gateway = field(init=False)
    served: L8Resource | Sidecar | None = field(default=None, init=False)
    _ahead: float = field(default=-ROTATIONS * HOUR, init=False)  # seconds that its clock is ahead
    _at: int = field(default=-ROTATIONS, init=False)  # hours, of its newest key
    _listening: Any = field(default=None, init=False)

    @property
    def pin(self) -> str:
        """Give its identity as pages pin it."""
        return pin_text(self.identity.node_id)

    @property
    def authority(self) -> str:
        """Give the name that it answers for."""
        return f"{self.id}.test"

    @property
    def origin(self) -> str:
        """Give the origin of that name."""
        return f"https://{self.authority}"

    def open(self) -> None:
        """Make the gateway, with keys that are some hours old."""
        told: dict[str, Any] = {"gateway": self.id, "authorities": [self.authority], "identity": self.identity}
        self.gateway = Gateway.open(Settings(**told | self.settings), wall=self.wall)
        self._ahead = 0.0
        self.start()

    def wall(self) -> float:
        """Give its time of day."""
        return datetime.now(UTC).timestamp() + self._ahead

    def start(self) -> None:
        """Listen, again on the port that it had, with the keys that it had."""
        if self.kind == "resource":
            resource = L8Resource(self.backend.resource, gateway=self.gateway, reactor=self.reactor)
            factory: Any = resource.site()
            factory.noisy = False
            factory.log = lambda request: None
            self.served = resource
        else:
            way = connector(self.reactor, f"tcp:127.0.0.1:{self.backend.port}")
            sidecar = Sidecar(self.reactor, self.gateway, Pool(self.reactor, way))
            sidecar.start()
            factory = sidecar.server
            self.served = sidecar
        self._listening = self.reactor.listenTCP(self.port, factory, interface="127.0.0.1", backlog=512)
        self.port = self._listening.getHost().port

    async def stop(self) -> None:
        """Listen no more, and cut what is under way; keys and marks stay."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await maybeDeferred(listening.stopListening)
        served, self.served = self.served, None
        if served is not None:
            served.stop()

    def rotate(self, *, drop: bool = False) -> None:
        """Make a new key, out of turn."""
        if self._at == 0:
            raise LimitExceeded("ROTATIONS", ROTATIONS)
        self._at += 1
        self._ahead = self._at * HOUR
        self.gateway.rotate(drop=drop)
        self._ahead = 0.0


@define(eq=False)
class AppHost:
    """Somebody's web server with a page that has l8.js, and what tests add; without any of the mirror's headers."""

    reactor: Any
    files: dict[str, tuple[str, bytes]]
    _server: Server = field(init=False)
    _listening: Any = field(init=False)

    def open(self) -> int:
        """Listen, and give the port."""
        self._server = Server(self.reactor, self._answer)
        self._listening = self.reactor.listenTCP(0, self._server, interface="127.0.0.1")
        port: int = self._listening.getHost().port
        return port

    async def close(self) -> None:
        """Listen no more."""
        await maybeDeferred(self._listening.stopListening)
        self._server.abort()

    def _answer(self, exchange: Incoming) -> None:
        path = exchange.path
        kind, data = self.files.get(path, ("", b""))
        if path.startswith("/l8/"):
            file = files("layer8.web") / "tunnel" / path.rpartition("/")[2]
            if file.is_file():
                kind, data = KINDS[path.rpartition(".")[2]], file.read_bytes()
        elif path == "/" and not kind:
            kind, data = KINDS["html"], PAGE
        fields = [("content-type", kind), ("access-control-allow-origin", "*"), ("service-worker-allowed", "/")]
        exchange.answer(200 if kind else 404, fields if kind else (), data)


@define(eq=False)
class Stage:
    """See the module."""

    reactor: Any
    gateways: dict[str, End]
    front: list[Tap] = field(factory=list)
    back: dict[str, Tap] = field(factory=dict)
    relay_services: list[Relay] = field(factory=list)
    app_files: dict[str, tuple[str, bytes]] = field(factory=dict)
    app_port: int = 0
    _app: AppHost | None = None
    _hour: Any = None

    @classmethod
    async def start(
        cls,
        reactor: Any,
        *,
        gateways: Sequence[str] = ("shop",),
        relays: int = 1,
        kind: str = "sidecar",
        settings: dict[str, Any] | None = None,
        apps: dict[str, Path] | None = None,
        tunnel: dict[str, Any] | None = None,
    ) -> Stage:
        """Start everything: `kind` of gateway is resource or sidecar, with further `settings`.

        `apps` are folders that the relays mirror, by gateway, `tunnel` further keys of their configuration.
        """
        ends = {name: End(reactor, name, kind, Backend(reactor), dict(settings or {})) for name in gateways}
        stage = cls(reactor, ends)
        stage._keep_hours()
        try:
            for name, end in ends.items():
                end.backend.open()
                end.open()
                stage.back[name] = Tap(reactor, end.port)
                stage.back[name].listen()
            for _ in range(relays):
                stage._open_relay(apps or {}, tunnel or {})
            stage._app = AppHost(reactor, stage.app_files)
            stage.app_port = stage._app.open()
        except BaseException:
            await stage.close()
            raise
        return stage

    def _keep_hours(self) -> None:
        """Let no gateway change its key by itself: it would do so at an hour of the day that tests do not choose."""
        self._hour = getattr(gateways, OWN_HOUR)
        here = int(datetime.now(UTC).timestamp() // HOUR)
        setattr(gateways, OWN_HOUR, lambda gateway: (here + 1) % 24)

    def _open_relay(self, apps: dict[str, Path], tunnel: dict[str, Any]) -> None:
        rows = tuple(
            TunnelGatewayConfig(
                id=name,
                endpoint=f"tcp:127.0.0.1:{self.back[name].port}",
                host=end.authority,
                app=str(apps.get(name, "")),
            )
            for name, end in self.gateways.items()
        )
        relay = alone(self.reactor, TunnelConfig(listen=("tcp:0:interface=127.0.0.1",), gateway=rows, **tunnel))
        relay.startService()
        self.relay_services.append(relay)
        tap = Tap(self.reactor, int(relay.listening()[0].rpartition(":")[2]))
        tap.listen()
        self.front.append(tap)

    @property
    def relays(self) -> list[str]:
        """Give the relays' own origins."""
        return [f"http://127.0.0.1:{tap.port}" for tap in self.front]

    @property
    def relay(self) -> str:
        """Give the first of them."""
        return self.relays[0]

    @property
    def script(self) -> str:
        """Give where that relay has l8.js."""
        return f"{self.relay}/l8/{layer8.__version__}/l8.js"

    @property
    def app(self) -> str:
        """Give the address of a page that has loaded l8.js, from a host that is no relay."""
        return f"http://app.localhost:{self.app_port}/"

    def mirror(self, gateway: str = "shop") -> str:
        """Give the address of an app that the first relay mirrors."""
        return f"http://{gateway}.localhost:{self.front[0].port}/"

    @property
    def hosts(self) -> dict[str, str]:
        """Give what browsers are to know of names."""
        return {f"{name}.localhost": "127.0.0.1" for name in ("app", *self.gateways)}

    def connect(self, gateway: str = "shop", **more: Any) -> dict[str, Any]:
        """Give what a client connects with."""
        end = self.gateways[gateway]
        relays = self.relays
        found = {"gateway": end.id, "authority": end.authority, "pin": end.pin}
        return {"relay": relays if len(relays) > 1 else relays[0], **found, **more}

    async def page(self, browser: Any, url: str = "") -> Any:
        """Open the page, and wait until it has L8."""
        page = await browser.page(url or self.app)
        await page.evaluate(LOADED)
        return page

    async def close(self) -> None:
        """Stop everything."""
        for tap in [*self.front, *self.back.values()]:
            await tap.close()
        for relay in self.relay_services:
            await maybeDeferred(relay.stopService)
        if self._app is not None:
            await self._app.close()
        for end in self.gateways.values():
            await end.stop()
            await end.backend.close()
            if hasattr(end, "gateway"):
                end.gateway.close()
        if self._hour is not None:
            setattr(gateways, OWN_HOUR, self._hour)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()
