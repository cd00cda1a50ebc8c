"""Several processes for one server: this one starts them, keeps their listeners and what all share, and carries nobody.

::

                    ┌─ SO_REUSEPORT sockets ─▶ worker 1 ── visitors, agents, data port 1
    supervisor ─────┼─ SO_REUSEPORT sockets ─▶ worker 2 ── visitors, agents, data port 2
    store, hub,     └─ ...
    control API          each over a socket pair (`layer8.control.inside`), as a node of a bus (`layer8.proxy.bus_unix`)

Each worker has a listening socket of its own for every endpoint, and this process keeps it open: whoever is in the
queue of a worker that has died is served by the one started in its place. Source: proxy.md section 9.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.config.tree import Config
from layer8.control.frame import Frame
from layer8.control.inside import Inside
from layer8.control.metrics import Family, counter
from layer8.control.service import wall_clock
from layer8.core.errors import Layer8Error, StorageError, Unavailable
from layer8.net.courier import pair
from layer8.net.listen import Sockets
from layer8.net.tasks import TaskSet
from layer8.proxy.bans import Bans
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.bus_unix import Hub
from layer8.proxy.choose import Seats
from layer8.proxy.fanout import Counted, FanoutRows, unpack
from layer8.proxy.ledger import Ledger
from layer8.proxy.legacy_listen import METHODS, PATH, LegacyApi, LegacyPage
from layer8.proxy.limits import BYTES_FLUSH
from layer8.proxy.methods import OwnerRows
from layer8.proxy.operate import BanRows
from layer8.proxy.place import Books, open_store
from layer8.proxy.prove import NetworkProver, Prover
from layer8.proxy.queues import Key, Queues, drop
from layer8.proxy.registry import Registry
from layer8.proxy.service import SystemResolver, static_rows
from layer8.proxy.store import Carried
from layer8.proxy.upkeep import Presences, Upkeep
from layer8.proxy.worker import DESCRIPTOR, options_for, to_file

FIRST_WAIT: Final = 0.1
"""Seconds until a worker that has died is started again; twice as long each time, up to `LONGEST_WAIT`."""
LONGEST_WAIT: Final = 10.0
WELL: Final = 30.0
"""Seconds after which a worker's death is taken for the first again."""
SILENT: Final = 40.0
"""Seconds without a report after which a worker is taken for stuck, and killed."""
LEAVE: Final = 5.0
"""Seconds that a worker has to end once it is told to, when nobody is left; then it is killed."""
LOOK: Final = 1.0
ASK: Final = 10.0
"""Seconds for a worker's answer to an operator's question."""
_OWN_WORDS: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@define(eq=False)
class Child:
    """One worker's place: the process that is in it, and what became of those before."""

    number: int
    node: bytes
    pid: int = 0
    inside: Inside | None = None
    leave: Callable[[], None] | None = None
    transport: Any = None
    ready: bool = False
    begun: float = 0.0
    heard: float = 0.0
    restarts: int = 0
    failures: int = 0
    again: IDelayedCall | None = None
    ended: Deferred[None] | None = None
    open: int = 0
    agents: int = 0
    subscribers: int = 0
    listening: tuple[str, ...] = ()
    carried: dict[str, Carried] = field(factory=dict)
    health: dict[str, tuple[bool, str]] = field(factory=dict)


class _Watcher(ProcessProtocol):
    """Hears of the end of one process."""

    def __init__(self, ended: Callable[[Failure], None]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:
        """Tell."""
        self._ended(reason)


class Supervisor(Service):
    """The server of which workers are the parts; also what its frame calls a role."""

    _log = Logger(namespace="layer8.proxy.workers")

    def __init__(self, frame: Frame, prover: Prover | None = None, given: Sockets | None = None) -> None:
        """Put it together, listening nowhere yet; raises ConfigError or StorageError."""
        config = frame.source.loaded.config.proxy
        reactor = frame.reactor
        self._frame = frame
        self._reactor = reactor
        self.config = config
        self._whole = frame.source.loaded.config
        self.tasks = TaskSet(self._log)
        store, self._close_store = open_store(frame)
        self._books: Books = store
        kept = store.load()
        self.registry = Registry(config.limits, os.urandom(32), [config.name] if config.name else [])
        self.bans = Bans(kept.bans)
        self._before = dict(kept.carried)
        bus = LocalBus(reactor, store, frame.key.node_id, kept.rows)
        self._hub = Hub(bus, reactor)
        self._bus = bus
        seats = Seats(lambda seat, kill: None)
        resolver = prover or NetworkProver(reactor, SystemResolver())
        self.ledger = Ledger(self.registry, bus, seats, resolver, wall_clock)
        presences = Presences(bus, seats, frame.key.node_id)
        self.upkeep = Upkeep(reactor, self._log, self.ledger, presences, self.bans, store, wall_clock)
        self.children = tuple(
            Child(place + 1, hashlib.sha256(b"layer8 worker %d" % place + frame.key.node_id).digest())
            for place in range(config.workers)
        )
        self.draining = False
        self._held = given is not None  # until whoever opened them is ready for us
        self._stopping = False
        self._queues = Queues(config.workers, frame.environ, given or Sockets())
        self._looking = LoopingCall(self._look)
        self._flushing = LoopingCall(lambda: self.tasks.start("byte counts", self._flush()))
        self._looking.clock = self._flushing.clock = reactor
        self.counted = Counted.nothing()
        frame.metrics.merge = self.counted.merge
        frame.node.workers = self.lines
        frame.control.keyring.changed = lambda: self.tell("worker.tokens")
        if config.legacy or config.legacy_open:
            page = LegacyPage(LegacyApi(self.ledger, self._carried), frame.control.who, config.legacy_open)
            frame.control.hang(PATH, page, METHODS, tree=True)
        for module in (
            OwnerRows(self.ledger, self._kill_host),
            FanoutRows(self.registry, self.bans, self),
            BanRows(self.bans, store, wall_clock, self._banned),
        ):
            frame.table.add(module)

    # As a service.

    def startService(self) -> None:
        """Open every listener and start the workers; raises `Unavailable` with nothing left open."""
        Service.startService(self)
        started: list[Any] = []
        Deferred.fromCoroutine(self._load()).addErrback(started.append)
        if started:
            started[0].raiseException()
        try:
            self._queues.open(self.config)
        except BaseException:
            self.running = 0
            raise
        self._frame.health.set("workers", False, "they are starting")
        self._frame.metrics.add(self)
        for child in self.children:
            self._start(child)
        self._looking.start(LOOK, now=False)
        self._flushing.start(BYTES_FLUSH, now=False)
        self.upkeep.startService()

    def stopService(self) -> Deferred[None]:
        """End every worker, the store last."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _load(self) -> None:
        await self.ledger.start()
        await self.ledger.set_static(static_rows(self.config, self._frame.environ))

    async def _stop(self) -> None:
        self._stopping = True
        self._frame.metrics.remove(self)
        for loop in (self._looking, self._flushing):
            if loop.running:
                loop.stop()
        await self.upkeep.stopService()
        waiting = []
        for child in self.children:
            if child.again is not None and child.again.active():
                child.again.cancel()
            if child.pid:
                child.ended = Deferred()
                waiting.append(child.ended)
                self._tell(child, "worker.stop")
                child.again = self._reactor.callLater(LEAVE, self._kill, child)
        await DeferredList(waiting)
        for child in self.children:
            if child.again is not None and child.again.active():
                child.again.cancel()
        self._queues.close()
        await self.tasks.stop()
        await self._flush()
        await self._close_store()

    # Workers.

    def _start(self, child: Child) -> None:
        child.again = None
        ours, theirs = pair()
        with theirs:
            child.transport = self._reactor.spawnProcess(
                _Watcher(partial(self._ended, child)),
                sys.executable,
                [sys.executable, "-P", "-m", "layer8.proxy.worker_tap", str(os.getpid())],
                env=self._environ(),
                childFDs={0: 0, 1: 1, 2: 2, DESCRIPTOR: theirs.fileno()},
            )
        child.pid = child.transport.pid
        child.begun = child.heard = self._reactor.seconds()
        child.ready = False
        child.inside = inside = Inside(
            self._reactor,
            ours,
            serve=partial(self._hub.serve, child.node),
            told=partial(self._heard, child),
            raw=partial(self._hub.raw, child.node),
        )
        self._begin(child, inside)
        child.leave = self._hub.join(child.node, inside)

    def _begin(self, child: Child, inside: Inside) -> None:
        """Say everything that it has to know, before anything that happens from now on."""
        rows = self._bus.rows
        begin = to_file(
            {
                "number": child.number,
                "count": len(self.children),
                "node": child.node.hex(),
                "held": self._held,
                "options": options_for(self._whole, child.number),
                "snapshot": list(self._hub.snapshot(rows)),
                "bans": [[ban.cidr, ban.until] for ban in self.bans],
            }
        )
        inside.tell("worker.begin", {}, [begin])
        os.close(begin)
        for (option, text), descriptor in self._queues.share(child.number - 1):
            inside.tell("worker.socket", {"option": option, "text": text}, [descriptor])
        inside.tell("worker.go", {})
        if self.draining:
            inside.tell("worker.drain", {"seconds": self.config.drain_s, "alternatives": []})

    def _environ(self) -> dict[str, str]:
        """Give what a worker may know of the environment: the configuration is told, systemd is ours to talk to."""
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in _OWN_WORDS and not (name.startswith("LAYER8_") and "__" in name)
        }
        return environ | {"LAYER8_HOME": str(self._frame.home)}

    def _ended(self, child: Child, reason: Failure) -> None:
        well = self._reactor.seconds() - child.begun >= WELL
        code = getattr(reason.value, "exitCode", None)
        by_signal = getattr(reason.value, "signal", None)
        if child.inside is not None:
            child.inside.finish()
        if child.leave is not None:
            child.leave()
        was_ready = child.ready
        child.inside = child.leave = child.transport = None
        child.pid, child.ready, child.open, child.agents, child.subscribers = 0, False, 0, 0, 0
        self.counted.end(child.number)
        for host, count in child.carried.items():
            self._before[host] = self._before.get(host, Carried()).plus(count)
        child.carried = {}
        checks, child.health = child.health, {}
        for check in checks:
            self._join_health(check)
        if child.ended is not None:
            ended, child.ended = child.ended, None
            ended.callback(None)
        if self._stopping:
            return
        if not was_ready and not any(other.ready for other in self.children) and not child.restarts:
            self._stopping = True
            self._frame.process.fail(Unavailable(f"worker {child.number} cannot start; it has said why"))
            return
        child.failures = 0 if well else child.failures + 1
        child.restarts += 1
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(child.failures, 10))
        self._log.error(
            "a worker ended and is started again",
            event="worker.ended",
            worker=child.number,
            code=code,
            signal=by_signal,
            wait=wait,
        )
        self._say_health()
        child.again = self._reactor.callLater(wait, self._start, child)

    def _kill(self, child: Child) -> None:
        if child.transport is not None and child.pid:
            child.transport.signalProcess("KILL")

    def _look(self) -> None:
        """Kill what is stuck: it is started again."""
        now = self._reactor.seconds()
        for child in self.children:
            if child.pid and now - child.heard > SILENT:
                self._log.error("a worker says nothing and is killed", event="worker.stuck", worker=child.number)
                self._kill(child)

    def _say_health(self) -> None:
        up = sum(child.ready for child in self.children)
        why = "" if up == len(self.children) else f"{up} of {len(self.children)} serve"
        self._frame.health.set("workers", not why, why, needed=not up or not self._frame.health.ready)

    def _join_health(self, check: str) -> None:
        """Show a check of workers as one: what is wrong with any of them is wrong."""
        wrong = [why for child in self.children for ok, why in [child.health.get(check, (True, ""))] if not ok]
        self._frame.health.set(check, not wrong, wrong[0] if wrong else "", needed=False)

    # What workers say.

    def _heard(self, child: Child, what: str, params: dict[str, Any], descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        child.heard = self._reactor.seconds()
        match what:
            case "worker.ready":
                child.ready, child.listening = True, tuple(params["listening"])
                self._log.info("a worker serves", event="worker.ready", worker=child.number, pid=child.pid)
                self._say_health()
            case "worker.health":
                child.health[params["check"]] = params["ok"], params["why"]
                self._join_health(params["check"])
            case "worker.beat":
                child.open, child.agents = params["open"], params["agents"]
                child.subscribers, child.listening = params["subscribers"], tuple(params["listening"])
            case "worker.counted":
                self.counted.take(child.number, [unpack(family) for family in params["families"]])
            case "worker.carried":
                child.carried.update((host, Carried(*count)) for host, count in params["hosts"].items())
            case "worker.guessed" | "worker.killed":
                for other in self.children:
                    if other is not child:
                        self._tell(other, what, **params)
            case _:
                self._hub.told(child.node, what, params)

    # What rows and frame ask for: see `layer8.proxy.fanout.Crew` and `layer8.control.frame.Role`.

    def ask(self, method: str, params: Mapping[str, Any]) -> Awaitable[Sequence[Any]]:
        """Ask every worker that is there, and give the answers of those that gave one."""
        return self._ask(method, params)

    async def _ask(self, method: str, params: Mapping[str, Any], seconds: float = ASK) -> list[Any]:
        calls = [
            Deferred.fromCoroutine(child.inside.call(method, params, seconds))
            for child in self.children
            if child.inside is not None and child.ready
        ]
        answers = []
        for call in calls:
            try:
                answers.append(await call)
            except Layer8Error:
                continue  # it has ended, or has nothing of that number
        return answers

    def tell(self, what: str, **params: Any) -> None:
        """Tell every worker something."""
        for child in self.children:
            self._tell(child, what, **params)

    def _tell(self, child: Child, what: str, **params: Any) -> None:
        if child.inside is not None:
            child.inside.tell(what, params)

    def _banned(self, cidr: str, until: float | None) -> None:
        if until is None:
            self.tell("worker.unban", cidr=cidr)
        else:
            self.tell("worker.ban", cidr=cidr, until=until)

    def _kill_host(self, host: str) -> int:
        self.tell("worker.killed", host=host)
        return 0

    def carried(self, host: str) -> tuple[int, int]:
        """Give the bytes in and out of a registered name that no living worker counts."""
        found = self._before.get(host, Carried())
        return found.bytes_in, found.bytes_out

    def _carried(self, host: str) -> tuple[int, int]:
        found = self._sum(host)
        return found.bytes_in, found.bytes_out

    def _sum(self, host: str) -> Carried:
        total = self._before.get(host, Carried())
        for child in self.children:
            total = total.plus(child.carried.get(host, Carried()))
        return total

    async def _flush(self) -> None:
        """Write the byte counts down; a disk that is full loses only the counts."""
        try:
            if standing := self.standing():
                await self._books.carry(standing)
        except StorageError as error:
            self._log.warn("byte counts were not written", event="proxy.counts_kept", reason=str(error))

    def families(self) -> list[Family]:
        """Count the workers themselves."""
        states: dict[tuple[str, ...], float] = {(str(child.number),): child.ready for child in self.children}
        restarts = sum(child.restarts for child in self.children)
        return [
            Family("layer8_proxy_worker_up", "Whether a worker serves.", "gauge", states, ("worker",)),
            counter("layer8_proxy_worker_restarts_total", "Workers that died and were started again.", restarts),
        ]

    def lines(self) -> tuple[str, ...]:
        """Say of each worker in words how it is."""
        now = self._reactor.seconds()
        return tuple(
            f"{child.number}: pid {child.pid}, {'serves' if child.ready else 'starts'}, {int(now - child.begun)} s, "
            f"{child.open} open, {child.agents} agents, {child.restarts} restarts"
            if child.pid
            else f"{child.number}: waits to be started again, {child.restarts} restarts"
            for child in self.children
        )

    async def apply(self, config: Config) -> None:
        """Go by another configuration, all workers or none."""
        fresh = config.proxy
        rows = static_rows(fresh, self._frame.environ)
        old = self._whole
        opened = self._queues.prepare(fresh)
        followed: list[Child] = []
        try:
            for child in [child for child in self.children if child.ready]:
                followed.append(child)
                await self._reload(child, config, opened)
        except BaseException:
            for child in followed:
                self.tasks.start("the old configuration", self._back(child, old))
            drop(opened)
            raise
        self._queues.settle(fresh, opened)
        await self.ledger.set_static(rows)
        self.config, self._whole = fresh, config
        for child in self.children:
            if child.pid and child not in followed:
                self._kill(child)  # it has begun with the old one, and is started again
        self.registry.limits = fresh.limits

    async def _reload(self, child: Child, config: Config, opened: Mapping[Key, Sequence[socket.socket]]) -> None:
        inside = child.inside
        if inside is None:
            return
        options = to_file(options_for(config, child.number))
        inside.tell("worker.config", {}, [options])
        os.close(options)
        for (option, text), descriptor in self._queues.share(child.number - 1, opened):
            inside.tell("worker.socket", {"option": option, "text": text}, [descriptor])
        await inside.call("config.reload")
        inside.tell("worker.forget", {})

    async def _back(self, child: Child, config: Config) -> None:
        try:
            await self._reload(child, config, {})
        except Layer8Error:
            self._kill(child)  # what is started in its place goes by the old one

    def listening(self) -> Sequence[str]:
        """Say where visitors, agents and dial-backs may come."""
        data = [line for child in self.children for line in child.listening if line.startswith("data on ")]
        return tuple(dict.fromkeys(self._queues.words() + data))

    def connections(self) -> int:
        """Count the visitors, as of a second ago."""
        return sum(child.open for child in self.children)

    @property
    def drain_s(self) -> float:
        """Seconds that visitors have when the process is told to end."""
        return self.config.drain_s

    def drain_for(self, seconds: float | None, alternatives: tuple[str, ...]) -> None:
        """Take nothing new; None is the configured time."""
        self.draining = True
        self.tell(
            "worker.drain", seconds=self.config.drain_s if seconds is None else int(seconds), alternatives=alternatives
        )

    def undrain(self) -> None:
        """Take visitors and agents again."""
        self.draining = False
        self.tell("worker.undrain")

    # Another process in our place: see `layer8.proxy.takeover`.

    async def freeze(self) -> list[tuple[str, str, socket.socket]]:
        """Change nothing durable any more, and give every listener by option and endpoint string."""
        await self._flush()
        self.ledger.frozen = True
        return self._queues.sockets() + await self._frame.control.lend()

    def thaw(self) -> None:
        """Go on: nobody comes in our place."""
        self.ledger.frozen = False
        self._frame.control.take_back()

    def standing(self) -> dict[str, Carried]:
        """Give the bytes of every host, as they were written last."""
        hosts = {host for child in self.children for host in child.carried} | set(self._before)
        return {host: self._sum(host) for host in hosts}

    def write_to(self, books: Books) -> None:
        """Write byte counts elsewhere from now on."""
        self._books = books

    async def give_way(self) -> list[str]:
        """Let nobody in any more and send agents away; gives the hosts that had some."""
        self._frame.control.accept_no_more()
        await self._ask("worker.settle", {})  # all of them, since each may wait for agents of the others
        answers = await self._ask("worker.send_away", {})
        return sorted({host for answer in answers for host in answer["hosts"]})

    def serves(self) -> bool:
        """Say whether every worker serves."""
        return all(child.ready for child in self.children)

    def hold(self, on: bool, *, data: bool) -> None:
        """Leave visitors in the kernel's queue, or take them; with `data` dial-backs too."""
        self._held = on
        self.tell("worker.hold", on=on, data=data)

    def has_agents(self, hosts: Sequence[str]) -> bool:
        """Say whether each of these hosts has an agent."""
        return all(self._bus.lookup(host) for host in hosts)

    def add_carried(self, carried: Mapping[str, Sequence[int]]) -> None:
        """Count bytes that another process has carried."""
        for host, (into, out) in carried.items():
            self._before[host] = self._before.get(host, Carried()).plus(Carried(into, out))

    def wind_down(self, seconds: float) -> None:
        """Take no more visitors; those who are here have `seconds`."""
        self.drain_for(seconds, ())

    async def drain(self) -> None:
        """Take no more visitors, and finish when the last one has left."""
        if not self.draining:
            self.drain_for(None, ())
        await self._ask("worker.idle", {}, self.config.drain_s + ASK)

    def resume(self) -> None:
        """Take visitors again."""
        self.undrain()
