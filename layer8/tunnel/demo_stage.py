"""The parties of the tunnel's demo, in one process and on loopback: relay, gateway, backend, and the page's files."""

from __future__ import annotations

import html
import json
import socket
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha384
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, cast

from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.web.server import Request

import layer8
from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.core.errors import Unavailable
from layer8.net.http_client import Pool
from layer8.net.ways import connector
from layer8.tunnel import demo_backend
from layer8.tunnel.demo_front import Front, again
from layer8.tunnel.demo_record import Opened, Recorder
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.gateway_session import Remember
from layer8.tunnel.replay import Verdict, mark
from layer8.tunnel.resource import L8Resource
from layer8.tunnel.service import alone
from layer8.tunnel.settings import GATEWAY_PATH, Settings
from layer8.tunnel.wire import ALGORITHMS, HEAD

ID: Final = "demo"
"""The gateway's name; its app is at demo.localhost."""
AUTHORITY: Final = "backend.example"
"""The name that the gateway answers for; nobody has it (RFC 2606)."""
PORT: Final = 5000
"""Where the relay is, or the next free port."""
PORTS: Final = 20
FILES: Final = ("index.html", "demo.js", "demo.css", "icon.svg")


class _Gateway(Gateway):
    """A gateway that says what its replay set has said."""

    recorder: Recorder

    def remember(self, asked: Remember) -> Verdict:
        """Ask, and write down."""
        verdict = super().remember(asked)
        self.recorder.judged(asked.mark, verdict)
        return verdict


class _Guarded(L8Resource):
    """A gateway in front of the backend that says what the relay has told it."""

    recorder: Recorder

    def answer(self, request: Request) -> Any:
        """Answer, and write down the fields of a sealed request."""
        if request.method == b"POST" and request.content is not None:
            head = request.content.read(HEAD)
            request.content.seek(0)
            row = self.recorder.find(mark(head[ALGORITHMS:]))
            if row is not None:
                found = request.requestHeaders.getAllRawHeaders()
                row.passed = sorted((n.decode("latin-1").lower(), v.decode("latin-1")) for n, vs in found for v in vs)
        return super().answer(request)


@define(eq=False)
class Stage:
    """All of it; `folder` is the state folder of the relay."""

    reactor: Any
    folder: Path
    port: int = 0  # of the relay; 0: PORT, or the next free one
    recorder: Recorder = field(factory=Recorder, init=False)
    pin: str = field(default="", init=False)
    _front: Front = field(init=False)
    _ports: list[IListeningPort] = field(factory=list, init=False)
    _closing: list[Callable[[], Any]] = field(factory=list, init=False)

    async def open(self) -> None:
        """Start everything, the backend first."""
        reactor, recorder = self.reactor, self.recorder
        gateway = cast(_Gateway, _Gateway.open(Settings(gateway=ID, authorities=[AUTHORITY])))
        gateway.recorder = recorder
        self.pin = gateway.pin
        guarded = _Guarded(demo_backend.Service(reactor, self._told), gateway=gateway, reactor=reactor)
        guarded.recorder = recorder
        self._closing.append(guarded.close)
        way = f"tcp:127.0.0.1:{self._listen(demo_backend.quiet(guarded))}"
        pool = Pool(reactor, connector(reactor, way))
        self._closing.append(pool.abort)
        self._open_relay(way)
        self._front.replay = lambda row: Deferred.fromCoroutine(again(pool, GATEWAY_PATH, AUTHORITY, row))

    def _open_relay(self, way: str) -> None:
        """Start the relay: the real one, but for the pen in its hand."""
        app = self.folder / "app"
        app.mkdir()
        self.port = self.port or _free()
        write_page(app, self.connect())
        config = TunnelConfig(
            listen=(f"tcp:{self.port}:interface=127.0.0.1",),
            gateway=(TunnelGatewayConfig(id=ID, endpoint=way, host=AUTHORITY, identity=(self.pin,), app=str(app)),),
        )
        relay = alone(self.reactor, config)
        self._front = Front(self.recorder, relay.server.handler, ID, AUTHORITY)
        relay.server.handler = self._front.take
        relay.startService()
        self._closing += [relay.stopService, self._front.close]

    @property
    def front(self) -> Front:
        """The relay, as one may make it cheat."""
        return self._front

    @property
    def relay(self) -> str:
        """Where the relay is."""
        return f"http://{ID}.localhost:{self.port}"

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"{self.relay}/"

    def connect(self) -> dict[str, str]:
        """Give what a client connects with."""
        return {"relay": self.relay, "gateway": ID, "authority": AUTHORITY, "pin": self.pin}

    async def close(self) -> None:
        """Stop everything."""
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)
        while self._closing:
            await maybeDeferred(self._closing.pop())

    def _listen(self, factory: Any) -> int:
        port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        self._ports.append(port)
        return cast(IPv4Address, port.getHost()).port

    def _told(self, opened: Opened, of: bytes) -> None:
        """Take what the backend has been asked, or that it has answered; a socket has no mark, and is the last one."""
        row = self.recorder.find(of)
        if row is None:
            row = next((one for one in reversed(self.recorder.rows) if one.kind == "socket"), None)
        if row is not None and row.opened is opened:
            self.recorder.tell(row)
        elif not opened.status:
            self.recorder.opened(row, opened)


def write_page(folder: Path, connect: dict[str, str]) -> None:
    """Put the page's files where the relay shows them from; `connect` stands in it, the key to believe among it."""
    page = files("layer8.web") / "demo"
    script = (files("layer8.web") / "tunnel" / "l8.js").read_bytes()
    words = {
        "@CONNECT@": html.escape(json.dumps(connect)),
        "@L8@": f"/l8/{layer8.__version__}/l8.js",
        "@L8SRI@": "sha384-" + b64encode(sha384(script).digest()).decode(),
    }
    for name in FILES:
        data = (page / name).read_bytes()
        if name == "index.html":
            text = data.decode()
            for word, value in words.items():
                text = text.replace(word, value)
            data = text.encode()
        (folder / name).write_bytes(data)


def _free() -> int:
    """Give PORT, or the next port that is free."""
    for port in range(PORT, PORT + PORTS):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Unavailable(f"no free port for the relay (tried {PORT} to {PORT + PORTS - 1})")
