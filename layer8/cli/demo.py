"""`layer8 demo`: relays, a browser tunnel, a proxy server with an agent, in one process, used as anybody would."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import click
from attrs import define, field, frozen

from layer8.cli.demo_hidden import NAME, HiddenFacts, HiddenPage
from layer8.cli.demo_network import Network, NetworkFacts
from layer8.cli.demo_tunnel import Tunnel, TunnelFacts
from layer8.cli.output import json_option
from layer8.core.errors import Layer8Error, TimedOut, Unavailable

HOST = "hello.test"
"""What the page is published as; .test is nobody's (RFC 2606)."""
RELAYS = 6
"""Relays of the network, the exit among them."""
START_TIME = 10.0
"""Seconds until the agent has subscribed; it takes a hundredth of that."""
LOG_TIME = 3.0
"""Seconds until a connection that has ended stands in the access log."""


class Service(Protocol):
    """The web service that is published; tests hand in broken ones."""

    answered: int
    http_port: int
    https_port: int
    identity: Any

    def open(self) -> None:
        """Listen."""

    async def close(self) -> None:
        """Listen no more."""

    def page(self, scheme: str) -> bytes:
        """Give the page as it is sent."""

    def digest(self, scheme: str) -> str:
        """Give its SHA-256 in hex."""


MakeService = Callable[[Any, str], Service]


@frozen
class Journey:
    """One fetch: what the visitor saw, and what the server's access log says about it; times in milliseconds."""

    scheme: str
    url: str
    port: int
    program: str
    status: int
    size: int
    right: bool
    connected_ms: float
    first_ms: float
    total_ms: float
    sniff_ms: int
    call_ms: int
    bytes_in: int
    bytes_out: int


@frozen
class Facts:
    """What a run of the demo found out."""

    host: str
    folder: str
    trust: str
    ready_ms: int
    http: int
    https: int
    agents: int
    data: str
    control: str
    service: tuple[int, int]
    journeys: tuple[Journey, ...]


@click.command()
@click.option("--once", is_flag=True, help="Leave after the fetches: 0 if both were right, else 1.")
@click.option(
    "--relays", type=click.IntRange(3, 32), default=RELAYS, show_default=True, help="Relays, the exit included."
)
@json_option
@click.pass_context
def demo(ctx: click.Context, once: bool, relays: int, as_json: bool) -> int:
    """Run a network of relays on loopback and use it; then a browser tunnel, then a proxy server.

    A page comes through three relays, a hidden one from both ends; a note goes through the tunnel; a third page is
    published.

    Everything is in this process and on 127.0.0.1, and gone when it ends.
    """
    from layer8.cli.demo_web import WebService

    verbose = ctx.ensure_object(dict).get("verbose", False)
    return play(WebService, once=once, as_json=as_json, verbose=verbose, relays=relays)


def play(serve: MakeService, *, once: bool, as_json: bool, verbose: bool = False, relays: int = RELAYS) -> int:
    """Play the demo with a web service and give the exit code; raises Layer8Error if a fetch failed."""
    from layer8.cli.run import on_reactor, show_log

    if not verbose:
        show_log("error")
    with tempfile.TemporaryDirectory(prefix="layer8-demo-") as folder:
        return on_reactor(lambda reactor: _main(reactor, Path(folder), serve, relays, once, as_json))


async def _main(reactor: Any, folder: Path, serve: MakeService, relays: int, once: bool, as_json: bool) -> int:
    from twisted.internet.defer import CancelledError, Deferred

    from layer8.cli.demo_show import show, show_hidden, show_network, show_tunnel, waiting

    network = Network(reactor, folder, relays)
    page = HiddenPage(network, folder / "hidden")
    tunnel = Tunnel(reactor, folder / "tunnel")
    stage = Stage(reactor, folder, serve)
    try:
        with waiting("starting a network" if not as_json else ""):
            await network.open()
            failure = await network.fetch()
        route = network.facts()
        if not as_json:
            show_network(route)
        if failure is not None:
            raise failure
        with waiting("hiding a page" if not as_json else ""):
            await page.open()
            failure = await page.fetch()
        hidden = page.facts()
        if not as_json:
            show_hidden(route, hidden)
        if failure is not None:
            raise failure
        with waiting("starting a browser tunnel" if not as_json else ""):
            await tunnel.open()
            failure = await tunnel.ask()
        browser = tunnel.facts()
        if not as_json:
            show_tunnel(browser)
        if failure is not None:
            raise failure
        with waiting("starting a proxy server" if not as_json else ""):
            await stage.open()
            # Daemons would read their configuration again on SIGHUP. Here it means that the terminal is gone.
            signal.signal(signal.SIGHUP, lambda _number, _frame: reactor.callFromThread(reactor.stop))
            failure = await stage.fetch()
        facts = stage.facts()
        if as_json:
            click.echo(json.dumps(_document(facts, route, hidden, browser, failure)))
        else:
            show(facts, route, hidden, browser, once or failure is not None)
        sys.stdout.flush()
        if failure is not None:
            raise failure
        if not once:
            with suppress(CancelledError):  # Ctrl-C is how this is meant to end
                await Deferred()
        return 0
    finally:
        await stage.close()
        await tunnel.close()
        await page.close()
        await network.close()


@define(eq=False)
class Stage:
    """The three parties and what they need; `folder` is the server's state folder."""

    reactor: Any
    folder: Path
    serve: MakeService
    journeys: list[Journey] = field(factory=list, init=False)
    ready_ms: int = field(default=0, init=False)
    _begun: float = field(default=0.0, init=False)
    _service: Any = field(default=None, init=False)
    _frame: Any = field(default=None, init=False)
    _server: Any = field(default=None, init=False)
    _agent: Any = field(default=None, init=False)

    @property
    def trust(self) -> Path:
        """The certificate of the web service, for its visitors."""
        return self.folder / "page.pem"

    async def open(self) -> None:
        """Start all three and wait until the server may call the agent."""
        self._begun = time.monotonic()
        self._service = self.serve(self.reactor, HOST)
        self._service.open()
        self.trust.write_bytes(self._service.identity.chain_pem)
        self._open_server()
        key = await self._register()
        await self._open_agent(key)
        self.ready_ms = int((time.monotonic() - self._begun) * 1000)

    def _open_server(self) -> None:
        from layer8.config.load import Loaded, load
        from layer8.control.frame import Frame
        from layer8.proxy.service import Server

        environ = {"LAYER8_HOME": str(self.folder)}
        anywhere = "tcp:0:interface=127.0.0.1"
        said: dict[str, object] = {f"proxy.{key}": anywhere for key in ("http", "https", "agents", "data")}
        said |= {"control.listen": anywhere, "log.blur": 0, "proxy.access_log": str(self.folder / "access.log")}

        @define
        class Options:
            loaded: Loaded

            def reload(self) -> Loaded:
                return self.loaded

        frame = Frame(self.reactor, "proxy", Options(load(None, environ, said, role="proxy")), environ)
        self._frame = frame
        self._server = Server(frame)
        frame.run(self._server, self._server)
        frame.process.privilegedStartService()
        frame.process.startService()

    async def _register(self) -> bytes:
        """Register the host as an administrator of the server would; its secret stays here, the server gets a hash."""
        from layer8.control.client import connect
        from layer8.crypto.secret import HostSecret

        secret = HostSecret.make()
        client = await connect(self.reactor, f"unix:{self.folder}/run/proxy.sock")
        try:
            await client.call("proxy.register", {"host": HOST, "secret_hash": secret.key.hex()})
        finally:
            client.close()
        return secret.key

    async def _open_agent(self, key: bytes) -> None:
        from twisted.internet.defer import Deferred, TimeoutError

        from layer8.config.proxy import AgentConfig
        from layer8.net.dial import Where
        from layer8.proxy.agent import Agent
        from layer8.proxy.uplink import ANY_PORT, Published, ServerLink

        subscribed: Deferred[None] = Deferred()

        def told(what: str, uplink: ServerLink, word: str) -> None:
            if subscribed.called:
                return
            if what == "subscribed":
                subscribed.callback(None)
            elif what in ("refused", "lost"):
                subscribed.errback(Unavailable(f"the agent could not subscribe: {word}"))

        door, service = self._server.door, self._service
        targets = {
            ANY_PORT: Where("127.0.0.1", service.http_port),
            door.port_of("https"): Where("127.0.0.1", service.https_port),
        }
        config = AgentConfig(servers=(f"ws://127.0.0.1:{door.agents_port()}",))
        self._agent = Agent(self.reactor, config, [Published(HOST, key, targets)], told)
        self._agent.startService()
        subscribed.addTimeout(START_TIME, self.reactor)
        try:
            await subscribed
        except TimeoutError:
            raise TimedOut(f"the agent has not subscribed within {START_TIME:g} s") from None

    async def fetch(self) -> Layer8Error | None:
        """Visit the page over HTTP, then over HTTPS; gives the first failure."""
        for scheme in ("http", "https"):
            try:
                journey = await self._visit(scheme)
            except Layer8Error as error:
                return error
            self.journeys.append(journey)
            if not journey.right:
                return Unavailable(
                    f"{journey.url}: status {journey.status} and {journey.size} bytes, which are not the service's page"
                )
        return None

    async def _visit(self, scheme: str) -> Journey:
        from layer8.cli.demo_visit import visit

        port = self._server.door.port_of(scheme)
        url = f"{scheme}://{HOST}:{port}/"
        seen = await visit(self.reactor, shutil.which("curl"), self.folder, url, HOST, port, self.trust)
        logged = await self._logged(scheme)
        return Journey(
            scheme=scheme,
            url=url,
            port=port,
            program=seen.program,
            status=seen.status,
            size=seen.size,
            right=seen.status == 200 and seen.digest == self._service.digest(scheme),
            connected_ms=seen.connected_ms,
            first_ms=seen.first_ms,
            total_ms=seen.total_ms,
            sniff_ms=logged["sniff_ms"],
            call_ms=logged["call_ms"],
            bytes_in=logged["bytes_in"],
            bytes_out=logged["bytes_out"],
        )

    async def _logged(self, scheme: str) -> Mapping[str, Any]:
        """Wait for the server's own record of the connection."""
        from twisted.internet.task import deferLater

        until = time.monotonic() + LOG_TIME
        while time.monotonic() < until:
            self._frame.logs.flush()
            for line in (self.folder / "access.log").read_text().splitlines():
                row: Mapping[str, Any] = json.loads(line)
                if row["scheme"] == scheme and row["host"] == HOST:
                    return row
            await deferLater(self.reactor, 0.01)
        raise TimedOut(f"the server has not logged the {scheme} connection within {LOG_TIME:g} s")

    def facts(self) -> Facts:
        """Say what was found out."""
        door, service = self._server.door, self._service
        return Facts(
            host=HOST,
            folder=str(self.folder),
            trust=str(self.trust),
            ready_ms=self.ready_ms,
            http=door.port_of("http"),
            https=door.port_of("https"),
            agents=door.agents_port(),
            data=next((line.rpartition(":")[2] for line in door.listening() if line.startswith("data ")), ""),
            control=f"unix:{self.folder}/run/proxy.sock",
            service=(service.http_port, service.https_port),
            journeys=tuple(self.journeys),
        )

    async def close(self) -> None:
        """Stop whatever has started, the agent first."""
        if self._agent is not None:
            await self._agent.stopService()
        if self._frame is not None and self._frame.process.running:
            await self._frame.process.stopService()
        if self._service is not None:
            await self._service.close()


def commands(facts: Facts, route: NetworkFacts, hidden: HiddenFacts, tunnel: TunnelFacts) -> list[tuple[str, str]]:
    """Give what to try next: a word about it, and the command."""
    here = f"LAYER8_HOME={shlex.quote(facts.folder)} {shlex.quote(_program())}"
    http, https = facts.http, facts.https
    host, _, port = route.debug.rpartition(":")
    return [
        ("that page, or any of this machine, by the network", f"curl --socks5-hostname {route.socks} {route.page}"),
        ("the hidden page", f"curl --socks5-hostname {route.socks} http://{hidden.host}/"),
        ("a name for it, that only you use", f"{here} name pin {NAME} {hidden.address}"),
        ("the hidden page by that name", f"curl --socks5-hostname {route.socks} http://{NAME}.l8.alt/"),
        ("its debug port", f"printf 'list circuits\\ntest\\nhelp\\n' | nc -N {host} {port}"),
        ("its circuits", f"{here} circuits"),
        ("the page of the browser tunnel, which is one for a browser", f"curl {tunnel.page}"),
        ("the page over HTTP", f"curl --resolve {facts.host}:{http}:127.0.0.1 http://{facts.host}:{http}/"),
        (
            "the page over HTTPS",
            f"curl --resolve {facts.host}:{https}:127.0.0.1 --cacert {facts.trust} https://{facts.host}:{https}/",
        ),
        ("something of yours", "python3 -m http.server 8000 --bind 127.0.0.1 &"),
        ("published here", f"{here} expose 8000 --host app.test --server ws://127.0.0.1:{facts.agents}"),
        ("and visited", f"curl --resolve app.test:{http}:127.0.0.1 http://app.test:{http}/"),
        ("how the server is", f"{here} status"),
        ("what it has counted", f"curl --unix-socket {facts.folder}/run/proxy.sock http://localhost/metrics"),
        ("one line per visitor", f"tail -f {facts.folder}/access.log"),
    ]


def _program() -> str:
    """Give how this program is called again."""
    found = shutil.which("layer8")
    called = Path(sys.argv[0])
    if called.name == "layer8" and (found is None or not called.exists() or not called.samefile(found)):
        return str(called)
    return "layer8"


def _document(
    facts: Facts, route: NetworkFacts, hidden: HiddenFacts, tunnel: TunnelFacts, failure: Layer8Error | None
) -> dict[str, Any]:
    from attrs import asdict

    from layer8.cli.demo_show import learned

    found = asdict(facts)
    fetches = found.pop("journeys")
    return {
        "ok": failure is None,
        "error": None if failure is None else str(failure),
        "network": asdict(route),
        "hidden": asdict(hidden),
        "tunnel": asdict(tunnel),
        **found,
        "fetches": fetches,
        "learned": [{"who": who, "learned": what, "not": hidden} for who, what, hidden in learned(facts)],
        "next": [{"what": what, "command": command} for what, command in commands(facts, route, hidden, tunnel)],
    }
