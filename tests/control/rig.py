"""A whole control service on real loopback sockets, with every row that a daemon has and a module that misbehaves."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.trial.unittest import TestCase

from layer8.config.load import Loaded, load_text
from layer8.config.sections import ControlConfig
from layer8.control.access import Caller
from layer8.control.callers import Callers
from layer8.control.client import Client, connect
from layer8.control.errors import CallRefused
from layer8.control.metrics import Metrics
from layer8.control.node import Node
from layer8.control.service import ControlService, wall_clock
from layer8.control.settings import Configuration, Settings
from layer8.control.shape import member
from layer8.control.table import Event, Table, method
from layer8.core.errors import RemoteProtocolError
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.service import Health

T = TypeVar("T")

HOST_SECRET = "5ec1e7" + "ab" * 29  # what C5 looks for, where a host's secret would be
BUG = "the text of a bug, which quotes what a peer sent"


@frozen
class Number:
    """A number to add to."""

    number: int = member(least=-1000, most=1000)


@frozen
class Text:
    """A text."""

    text: str


@frozen
class Size:
    """How long an answer is wanted."""

    size: int = member(least=0, most=1_000_000)


@frozen
class Told:
    """What an event says."""

    key: str
    count: int


class Rows:
    """Methods that do what a test wants."""

    owns = ("test",)
    events = (Event("test.read", Told, role="read", key="key"), Event("test.public", Told, role="public"))

    def __init__(self) -> None:
        self.waiting: list[Deferred[None]] = []
        self.cancelled = 0
        self.ran: list[str] = []

    @method("test.echo", role="public")
    async def echo(self, caller: Caller, params: Text) -> Text:
        """Give back what was given."""
        return Text(params.text)

    @method("test.add", role="read")
    async def add(self, caller: Caller, params: Number) -> Number:
        """Add one."""
        return Number(params.number + 1)

    @method("test.wait", role="public")
    async def wait(self, caller: Caller) -> None:
        """Wait until the test goes on."""
        self.ran.append("wait")
        waiting: Deferred[None] = Deferred()
        self.waiting.append(waiting)
        try:
            await waiting
        except BaseException:
            self.cancelled += 1
            raise

    @method("test.short", role="public", timeout=0.05)
    async def short(self, caller: Caller) -> None:
        """Wait for longer than its time."""
        await self.wait(caller)

    @method("test.bug", role="public")
    async def bug(self, caller: Caller) -> None:
        """Fail as no method should."""
        raise KeyError(BUG)

    @method("test.odd", role="public")
    async def odd(self, caller: Caller) -> Any:
        """Give what JSON does not have."""
        return {"set": {1, 2}}

    @method("test.refused", role="public")
    async def refused(self, caller: Caller) -> None:
        """Say no."""
        raise CallRefused("the policy says no")

    @method("test.peer", role="public")
    async def peer(self, caller: Caller) -> None:
        """Meet somebody else's nonsense."""
        raise RemoteProtocolError("the other side broke the protocol")

    @method("test.long", role="public")
    async def long(self, caller: Caller, params: Size) -> Text:
        """Give a text of some length."""
        return Text("x" * params.size)

    @method("test.grant", role="public")
    async def grant(self, caller: Caller) -> None:
        """Make the caller an agent."""
        caller.peer.grant("agent")

    @method("test.agent", role="agent")
    async def agent(self, caller: Caller) -> None:
        """Do something for agents."""

    @method("test.tell", role="public")
    async def tell(self, caller: Caller, params: Text) -> None:
        """Send a notification back."""
        caller.peer.notify("told", {"text": params.text})


@define(eq=False)
class Steered:
    """A daemon that notes what it was asked."""

    asked: list[str] = field(factory=list)

    def drain(self, seconds: float) -> None:
        self.asked.append(f"drain {seconds:g}")

    def resume(self) -> None:
        self.asked.append("resume")

    def stop(self, seconds: float) -> None:
        self.asked.append(f"stop {seconds:g}")

    def connections(self) -> int:
        return 3


@define(eq=False)
class KeptLog:
    """A log in memory."""

    rows: list[dict[str, Any]] = field(factory=list)
    levels: list[tuple[str, str, float]] = field(factory=list)
    watchers: list[Callable[[dict[str, Any]], None]] = field(factory=list)

    def tail(self, level: str, namespace: str, lines: int) -> list[dict[str, Any]]:
        return self.rows[-lines:]

    def set_level(self, namespace: str, level: str, ttl: float) -> None:
        self.levels.append((namespace, level, ttl))

    def watch(self, watcher: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        for watcher in tuple(self.watchers):
            watcher(row)


@define(eq=False)
class Rig:
    """One daemon's control side, and the clients that a test opened."""

    reactor: Any
    home: Path
    service: ControlService
    table: Table
    metrics: Metrics
    health: Health
    node: Node
    settings: Settings
    configuration: Configuration
    rows: Rows
    process: Steered
    logs: KeptLog
    identity: Identity
    text: list[str]
    clients: list[Client] = field(factory=list)

    def port(self, kind: str) -> int:
        """Give the TCP port of the listener that speaks `tcp` or `tls`."""
        return next(int(told.split(":")[1]) for told in self.service.listening if told.startswith(f"{kind}:"))

    def url(self, kind: str) -> str:
        """Give the URL of a listener."""
        if kind == "unix":
            return f"unix:{self.service.socket_path}"
        return f"{'wss' if kind == 'tls' else 'ws'}://127.0.0.1:{self.port(kind)}"

    async def client(self, kind: str = "tcp", token: str | None = None, **more: Any) -> Client:
        """Open a client of a listener."""
        if kind == "tls":
            more.setdefault("pin", self.identity.pin)
        client = await connect(self.reactor, self.url(kind), token=token, **more)
        self.clients.append(client)
        return client

    async def admin(self, kind: str = "tcp") -> Client:
        """Open a client that may do everything."""
        return await self.client(kind, None if kind == "unix" else self.service.keyring.cookie)

    async def close(self) -> None:
        """End everything, and wait until the sockets are gone."""
        self.node.stop()
        self.settings.stop()
        for client in self.clients:
            client.close()
        await self.service.stopService()
        for waiting in self.rows.waiting:
            if not waiting.called:
                waiting.callback(None)
        await until(self.reactor, lambda: not self.service.pulse.open and all(client.reason for client in self.clients))
        await pause(self.reactor, 0.02)
        rmtree(self.home)


def rig(case: TestCase, *listen: str, **more: Any) -> Rig:
    """Start a service with every row; it ends with the test."""
    from twisted.internet import reactor as global_reactor

    reactor: Any = global_reactor
    home = Path(mkdtemp(prefix="l8"))
    identity = Identity.from_pem(*self_signed("127.0.0.1"))
    config = ControlConfig(listen=listen or ("tcp:0:interface=127.0.0.1", "tls:0:interface=127.0.0.1"))
    config = more.pop("config", config)
    table = Table(wall_clock)
    metrics = Metrics(reactor.seconds)
    health = Health()
    health.started = True
    process, logs, rows = Steered(), KeptLog(), Rows()
    service = ControlService(
        reactor, "test", config, home, table, metrics, health.reasons, identity=lambda: identity, **more
    )
    text = [f'[log]\nlevel = "info"\n# secret_file = "{HOST_SECRET}"\n']

    def read() -> Loaded:
        return load_text(text[0], {}, {}, role="proxy")

    async def apply(fresh: Loaded) -> None:
        await pause(reactor, 0.0)

    configuration = Configuration(read(), read, lambda given: load_text(given, {}, {}, role="proxy"), apply)
    settings = Settings(table, configuration, logs)
    node = Node(
        reactor,
        table,
        metrics,
        health,
        process,
        ident="abcdefgh",
        roles=lambda: ("proxy",),
        listening=lambda: service.listening,
        drain_control=service.set_draining,
    )
    for module in (node, Callers(service.keyring, service.conversations), settings, rows):
        table.add(module)
    service.startService()
    node.start()
    settings.start()
    made = Rig(
        reactor,
        home,
        service,
        table,
        metrics,
        health,
        node,
        settings,
        configuration,
        rows,
        process,
        logs,
        identity,
        text,
    )
    case.addCleanup(lambda: Deferred.fromCoroutine(made.close()))
    return made


async def pause(clock: IReactorTime, seconds: float) -> None:
    """Let the reactor turn."""
    waiting: Deferred[None] = Deferred()
    clock.callLater(seconds, waiting.callback, None)
    await waiting


async def until(clock: IReactorTime, true: Callable[[], object], seconds: float = 30.0) -> None:
    """Let the reactor turn until something is true; AssertionError if it takes longer than `seconds`."""
    end = clock.seconds() + seconds
    while not true():
        if clock.seconds() > end:
            raise AssertionError("it did not come true")
        await pause(clock, 0.005)


async def raises(kind: type[Exception], waited: Awaitable[object]) -> Any:
    """Give the error that a call has to end in."""
    try:
        result = await waited
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {result!r}")


async def in_time(clock: IReactorTime, work: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
    """Wait no longer than `seconds`."""
    waiting = Deferred.fromCoroutine(work)
    waiting.addTimeout(seconds, clock)
    return await waiting


class Raw:
    """A socket of our own, with blocking calls for a thread, that says what it wants and tells what came back."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)

    def exchange(self, *parts: bytes) -> bytes:
        """Send, and give everything until the other side closes."""
        came = b""
        try:
            for part in parts:
                self.socket.sendall(part)
            while data := self.socket.recv(65536):
                came += data
        except (ConnectionError, TimeoutError):
            came += b"<broken>"
        finally:
            self.socket.close()
        return came
