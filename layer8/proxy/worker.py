"""One worker: a proxy server whose listeners, registrations and configuration come from the process that started it.

It is a node of its own, with a data port of its own, so that a dial-back reaches the process that waits for it. It is
started as `python -m layer8.proxy.worker_tap` with one end of a socket pair, on which it hears first what it is
(`Begin`) and then everything else; when that ends, it ends.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field, frozen
from twisted.internet.task import LoopingCall

from layer8.config.endpoint import server
from layer8.config.load import Loaded, as_options, load_text
from layer8.config.tree import Config
from layer8.control.access import EVERYTHING, Caller
from layer8.control.frame import Frame
from layer8.control.inside import Inside, read
from layer8.control.metrics import Family, Histogram
from layer8.net.courier import receive
from layer8.net.listen import Sockets
from layer8.net.service import HealthRow
from layer8.proxy.bans import Banned
from layer8.proxy.bus_unix import UnixBus
from layer8.proxy.orphans import Orphans
from layer8.proxy.place import Place
from layer8.proxy.remote import Plain
from layer8.proxy.service import Server
from layer8.proxy.store import Carried, Kept

DESCRIPTOR: Final = 3
"""Where a worker finds its end of the socket pair."""
START: Final = 30.0
"""Seconds that a worker waits to be told what it is."""
BEAT: Final = 1.0
"""Seconds between two reports of what a worker has counted."""
WAKE: Final = 0.25
"""Seconds between two looks at visitors that wait for an agent to come back."""
SOME: Final = 400
"""Hosts, or series, in one message."""


@frozen
class Begin:
    """What a worker is told first: which one of how many it is, its id, what it goes by, and what stands.

    `options` make its configuration (`layer8.config.load.as_options`); `snapshot` is what a bus is told.
    """

    number: int
    count: int
    node: str
    options: dict[str, Any]
    held: bool
    snapshot: tuple[tuple[str, dict[str, Any]], ...]
    bans: tuple[tuple[str, float], ...]


def to_file(value: object) -> int:
    """Write a JSON value, as long as it may be, where only those can read it who get the descriptor."""
    made = os.memfd_create("layer8", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(made), "w", encoding="utf-8") as file:
        json.dump(value, file)
    return made


def from_file(descriptor: int) -> Any:
    """Read it and close the descriptor."""
    with os.fdopen(descriptor, "r", encoding="utf-8") as file:
        file.seek(0)
        return json.load(file)


def begin(sock: socket.socket) -> tuple[Begin, Sockets]:
    """Wait for what there is to know before anything starts; raises `TimedOut` or `Unavailable`."""
    told, given = None, Sockets()
    while True:
        message, descriptors = receive(sock, START)
        what, params = read(message)
        match what:
            case "worker.begin":
                told = Begin(**from_file(descriptors[0]))
            case "worker.socket":
                keep(given, params, descriptors)
            case "worker.go":
                assert isinstance(told, Begin)
                return told, given


def keep(given: Sockets, params: Mapping[str, Any], descriptors: Iterable[int]) -> None:
    """Keep listening sockets for who will ask for them."""
    for descriptor in descriptors:
        given.put(params["option"], params["text"], socket.socket(fileno=descriptor))


def pack(family: Family) -> dict[str, Any]:
    """Give what was counted as a JSON value."""
    values = [
        [list(labels), [list(number.bounds), number.counts, number.total] if isinstance(number, Histogram) else number]
        for labels, number in family.values.items()
    ]
    return {"name": family.name, "help": family.help, "kind": family.kind, "labels": family.labels, "values": values}


@define(eq=False)
class _Source:
    """A configuration that somebody else has read and checked."""

    next: dict[str, Any]
    environ: Mapping[str, str]
    loaded: Loaded = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with the first."""
        self.loaded = self.reload()

    def reload(self) -> Loaded:
        """Give the one that came last; raises ConfigProblems."""
        return load_text("", self.environ, self.next, role="proxy")


@define(eq=False)
class _Nobody:
    """The peer of calls that come from our own supervisor."""

    slots: dict[str, object] = field(factory=dict)

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        """Tell nothing: it is asked for what it wants to know."""
        return False

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Never be lost: the worker ends first."""

    def grant(self, role: str) -> None:
        """Be admin already."""

    def become(self, name: str, roles: frozenset[str], hosts: tuple[str, ...]) -> None:
        """Stay what it is."""

    def close(self, reason: str) -> None:
        """Stay."""


class Worker:
    """See the module; `stop` ends the process."""

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        told: Begin,
        given: Sockets,
        environ: Mapping[str, str],
        stop: Callable[[], None],
    ) -> None:
        """Put the server together; raises ConfigError or StorageError."""
        self._source = _Source(told.options, environ)
        self._given = given
        self._held = told.held
        self._stop = stop
        node = bytes.fromhex(told.node)
        self.frame = Frame(reactor, "proxy", self._source, environ)
        self._bus = UnixBus(reactor, node)
        self._inside = Inside(reactor, sock, serve=self._serve, told=self._told, raw=self._bus.raw, lost=self._lost)
        self._bus.connect(self._inside)
        place = Place(
            node,
            self._bus,
            self,
            Kept((), tuple(Banned(*ban) for ban in told.bans), {}),
            sealer=Plain(node),
            given=given,
            first=told.number,
            step=told.count,
            looks_again=False,
            guessed=lambda address: self._say("worker.guessed", address=address),
            killed=lambda host: self._say("worker.killed", host=host),
        )
        self.server = Server(self.frame, place=place)
        self.frame.run(self.server, self.server)
        traffic = self.server.traffic
        orphans = traffic.orphans = Orphans(self._served)
        self._bus.orphans = lambda hosts, seconds: orphans.lost(hosts, reactor.seconds(), seconds)
        self._bus.found = orphans.found
        self._waking = LoopingCall(lambda: orphans.tick(reactor.seconds()))
        self._waking.clock = reactor
        for what, params in told.snapshot:
            self._bus.told(what, params)
        self._caller = Caller("supervisor", frozenset({"admin"}), EVERYTHING, True, None, (), _Nobody())
        self._beat = LoopingCall(self._report)
        self._beat.clock = reactor

    def start(self) -> None:
        """Listen, and say so; raises `Unavailable`."""
        self.frame.process.startService()
        self._given.close()
        if self._held:
            self.server.door.hold(True, data=True)
        for row in self.frame.health.rows():
            self._tell_health(row)
        self.frame.health.watch(self._tell_health)
        self._say("worker.ready", listening=list(self.server.listening()))
        self._beat.start(BEAT)
        self._waking.start(WAKE, now=False)

    def _served(self, host: str) -> bool:
        return bool(self.server.seats.of(host)) or bool(self._bus.lookup(host))

    def _lost(self) -> None:
        self._bus.lost()
        self._stop()

    def _say(self, what: str, **params: Any) -> None:
        self._inside.tell(what, params)

    # What the supervisor says.

    async def _serve(self, method: str, params: dict[str, Any]) -> Any:
        if method == "worker.idle":
            await self.server.traffic.idle()
            return {}
        if method == "worker.settle":
            await self.server.settle()
            return {}
        if method == "worker.send_away":
            return {"hosts": self.server.send_away()}
        return await self.frame.table.call(self._caller, method, params)

    def _told(self, what: str, params: dict[str, Any], descriptors: list[int]) -> None:
        server = self.server
        match what:
            case "worker.config":
                self._source.next = from_file(descriptors[0])
            case "worker.socket":
                keep(self._given, params, descriptors)
            case "worker.forget":
                self._given.close()
            case "worker.ban":
                server.bans.add(Banned(params["cidr"], params["until"]))
            case "worker.unban":
                server.bans.remove(params["cidr"])
            case "worker.guessed":
                server.guesses.wrong(params["address"], self.frame.reactor.seconds())
            case "worker.killed":
                server.traffic.kill(None, params["host"])
            case "worker.tokens":
                self._take_tokens()
            case "worker.drain":
                self.frame.health.draining = True
                server.door.drain(params["seconds"], tuple(params["alternatives"]))
            case "worker.undrain":
                self.frame.health.draining = False
                server.door.undrain()
            case "worker.hold":
                server.door.hold(params["on"], data=params["data"])
            case "worker.stop":
                server.carrying.flush()  # at once: whoever takes too long to end is killed
                self.frame.daemon.drain_seconds = 0
                self._stop()
            case _:
                self._bus.told(what, params)

    def _take_tokens(self) -> None:
        """Read the named tokens again; whoever came with one that is gone has to leave."""
        control = self.frame.control
        before, control.keyring.tokens = control.keyring.tokens, control.keyring.read()
        gone = {token.name for token in before} - {token.name for token in control.keyring.tokens}
        for conversation in control.conversations():
            if conversation.who.name in gone:
                conversation.close("revoked")

    # What it says.

    def _tell_health(self, row: HealthRow) -> None:
        self._say("worker.health", check=row.check, ok=row.ok, why=row.why)

    def _report(self) -> None:
        server = self.server
        self._say(
            "worker.beat",
            open=len(server.traffic.visits),
            agents=server.door.agents,
            subscribers=len(server.seats),
            listening=list(server.listening()),
        )
        families = [pack(family) for family in self.frame.metrics.families()]
        part: list[Any] = []
        size = 0
        for family in families:
            part.append(family)
            size += len(family["values"])
            if size > SOME:
                self._say("worker.counted", families=part)
                part, size = [], 0
        self._say("worker.counted", families=part)

    # As the books of its server: they are kept elsewhere.

    async def ban(self, ban: Banned) -> None:
        """Leave bans to the supervisor, who has told us of this one."""

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Leave the ends of bans to it too."""

    async def carry(self, carried: Mapping[str, Carried]) -> None:
        """Say how much was carried since this process began, by host."""
        rows: Sequence[tuple[str, Carried]] = list(carried.items())
        for place in range(0, len(rows), SOME):
            some = {host: [count.bytes_in, count.bytes_out] for host, count in rows[place : place + SOME]}
            self._say("worker.carried", hosts=some)


def options_for(config: Config, number: int) -> dict[str, object]:
    """Give the options of worker `number`, counted from 1: nothing listens there but for visitors and agents.

    A data port that is fixed is the first one's; the others have those behind it.
    """
    data = tuple(_shifted(text, number - 1) for text in config.proxy.data)
    control = evolve(config.control, listen=(), socket=False, wamp=evolve(config.control.wamp, url=""))
    proxy = evolve(config.proxy, data=data, workers=1, takeover="")
    return as_options(evolve(config, control=control, proxy=proxy))


def _shifted(text: str, by: int) -> str:
    endpoint = server(text)
    if not endpoint.port:
        return text
    return evolve(endpoint, words={**endpoint.words, "port": str(endpoint.port + by)}).twisted()
