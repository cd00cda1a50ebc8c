"""The proxy server, put together from its parts.

::

    Frame ── control, health, log, reload          Store ── proxy.db
      │                                              │
    Server ── Ledger ── Registry   Seats   Bans ◀────┘
      │          (who registered)  (who subscribed)
      ├── Traffic ── Pump          visitors, accept to end
      └── Door                     listeners of visitors, agents and dial-backs
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.names.client import createResolver

from layer8.config import files
from layer8.config.endpoint import client as read_target
from layer8.config.endpoint import server as read_endpoint
from layer8.config.proxy import ProxyConfig, ProxyHostConfig
from layer8.config.tree import Config
from layer8.control.limits import AGENTS, LEGACY
from layer8.control.service import wall_clock
from layer8.core.errors import ConfigError
from layer8.core.guesses import Guesses
from layer8.crypto.secret import HostSecret
from layer8.crypto.x509 import Identity
from layer8.net.dial import Dialer
from layer8.net.pipes import affordable
from layer8.net.pump import Pump
from layer8.net.tasks import TaskSet
from layer8.proxy.accesslog import AccessLog
from layer8.proxy.accounts import Accounts
from layer8.proxy.bans import Bans
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.counting import Carrying, ProxyMetrics
from layer8.proxy.door import Door
from layer8.proxy.ground import Ground
from layer8.proxy.ledger import Ledger
from layer8.proxy.legacy_listen import METHODS, PATH, LegacyApi, LegacyPage, LegacySocket
from layer8.proxy.methods import AgentRows, OwnerRows
from layer8.proxy.modes import Modes
from layer8.proxy.neighbours import Neighbours
from layer8.proxy.operate import BanRows, OperatorRows
from layer8.proxy.orders import Policy
from layer8.proxy.place import Books, Place, alone
from layer8.proxy.pooling import Pooling
from layer8.proxy.prove import NetworkProver, Prover
from layer8.proxy.registration import Registration
from layer8.proxy.registry import Registry, static
from layer8.proxy.store import Carried
from layer8.proxy.subscriber import House
from layer8.proxy.terminate import Certificates, Terminator
from layer8.proxy.traffic import Traffic
from layer8.proxy.upkeep import Presences, Upkeep
from layer8.proxy.wire import AGENT_PATH, NONCE_SIZE

GIVE_WAY = 2.0
"""Seconds that visitors get to say their name and reach their agent before the agents go."""
CEILING = frozenset({"agent", "owner"})
"""What anybody may be at most on the public listener for agents."""
AGENTS_PER_SOURCE = 256
"""Agents behind one /24 or /56."""


class SystemResolver:
    """The resolvers that the system names, asked for the first time when a proof is looked for."""

    def __init__(self) -> None:
        self._resolver: Any = None

    def lookupText(self, name: str, timeout: Any = None) -> Deferred[Any]:
        """Ask for a name's TXT records."""
        if self._resolver is None:
            self._resolver = createResolver()
        found: Deferred[Any] = self._resolver.lookupText(name, timeout)
        return found


class Server(Service):
    """One proxy server; also what its frame calls a role."""

    _log = Logger(namespace="layer8.proxy")

    def __init__(self, frame: Ground, prover: Prover | None = None, place: Place | None = None) -> None:
        """Put it together, listening nowhere yet; `prover` None looks ownership up in the real DNS.

        `place` is what it stands on, by default a store and a bus of its own. Raises ConfigError or StorageError.
        """
        self._place = place = place or alone(frame)
        config = frame.source.loaded.config.proxy
        reactor = frame.reactor
        self._frame = frame
        self.config = config
        self.tasks = TaskSet(self._log)
        health = frame.health
        own = [config.name] if config.name else []
        self.registry = Registry(config.limits, secrets.token_bytes(32), own)
        self.bans = Bans(place.kept.bans)
        self.seats = Seats(self._seat_gone)
        self.ledger = Ledger(
            self.registry,
            place.bus,
            self.seats,
            prover or NetworkProver(reactor, SystemResolver()),
            wall_clock,
            config.mode,
        )
        self.guesses = Guesses(config.limits.subscribe_fails, config.limits.ban_shortest, config.limits.ban_longest)
        self._house = house = House(
            self.registry,
            self.seats,
            self.guesses,
            config.limits,
            place.node,
            wall_clock,
            lambda: secrets.token_urlsafe(16),
            step=place.step,
            guessed=place.guessed,
        )
        house.last = place.first - place.step
        self.pump = Pump(
            reactor, idle=config.limits.idle, half_closed=config.limits.half_closed, pipes=config.limits.pipes
        )
        writer = frame.logs.access_writer(config.access_log)
        accounts = Accounts(
            self.seats,
            None if writer is None else AccessLog(writer, lambda: frame.logs.config.blur, wall_clock),
            lambda address, now: frame.logs.addresses.word(address, now),  # another one after a reload
        )
        self.traffic = Traffic(
            reactor,
            self.pump,
            Dialer(reactor, self.pump),
            config,
            self.registry,
            self.seats,
            self.bans,
            accounts,
            (place.first, place.step),
        )
        self.certificates = Certificates(reactor, frame.home, health, self.registry, time.monotonic, wall_clock)
        self.certificates.prepare(config)()
        self.traffic.terminator = Terminator(self.certificates, self.traffic)
        self._agent_rows = AgentRows(house, reactor, lambda: secrets.token_bytes(NONCE_SIZE), self._rejected)
        agents = frame.control.site(
            "agents",
            CEILING,
            paths=(AGENT_PATH,),
            rules=evolve(AGENTS, message=config.limits.control_message),
            connections=config.limits.agents,
            per_source=AGENTS_PER_SOURCE,
        )
        legacy = frame.control.site(
            "legacy",
            frozenset(),
            paths=("/",),
            rules=evolve(LEGACY, message=config.limits.legacy_message),
            subprotocol=None,
            connections=config.limits.agents,
            per_source=AGENTS_PER_SOURCE,
            owner=lambda request: LegacySocket(house, reactor, getattr(request.getClientAddress(), "host", None)),
        )
        self.door = Door(
            reactor, self.pump, self.traffic, self._agent_rows, config, self.identity, agents, legacy, place.given
        )
        self.ahead = Pooling(reactor, self.pump, self.seats, self.traffic, self.door, config.limits)
        self.traffic.reach.ahead = self.ahead
        self.traffic.modes = self.modes = Modes(self.traffic, secrets.token_bytes(32))
        self.seats.changed = self.ahead.changed
        self.carrying = Carrying(reactor, self.traffic, place.books, place.kept.carried, self.tasks)
        place.bus.watch(self.carrying.changed)
        if config.legacy or config.legacy_open:
            api = LegacyApi(self.ledger, self.carrying.of)
            page = LegacyPage(api, frame.control.who, config.legacy_open)
            frame.control.hang(PATH, page, METHODS, tree=True)
        self.metrics = ProxyMetrics(
            self.traffic,
            self.pump,
            self.seats,
            self.door.data,
            by_host=config.host_label,
            pools=self.ahead.pools,
        )
        operator_rows = OperatorRows(
            self.registry,
            self.seats,
            self.bans,
            self.traffic,
            self.door,
            self.carrying.of,
            reactor.seconds,
        )
        ban_rows = BanRows(self.bans, place.books, wall_clock)
        for rows in (self._agent_rows, OwnerRows(self.ledger, self._kill_host), operator_rows, ban_rows):
            frame.table.add(rows)
        presences = Presences(place.bus, self.seats, place.node)
        self.upkeep = Upkeep(
            reactor,
            self._log,
            self.ledger,
            presences,
            self.bans,
            place.books,
            wall_clock,
            looks_again=place.looks_again,
        )
        self.neighbours: Neighbours | None = None
        if place.sealer is not None:
            self.neighbours = Neighbours(
                reactor,
                place.node,
                place.bus,
                place.sealer,
                self.seats,
                self.traffic.reach,
                self.ahead,
                self.door,
                place.host,
            )
            self._agent_rows.settled = presences.settle
            self.seats.changed = partial(self._seat_changed, presences)
            self.door.others = place.others

    def identity(self) -> Identity:
        """Give the certificate for agents and dial-backs."""
        return self._identity_of(self.config)

    def _identity_of(self, config: ProxyConfig) -> Identity:
        return self._frame.identity(config.name, config.tls_cert_file, config.tls_key_file)

    # As a service.

    def startService(self) -> None:
        """Listen everywhere; raises `Unavailable` with nothing left open."""
        Service.startService(self)
        self._restore()
        self.pump.start()
        try:
            self.door.open()
            self._place.opened(self.door.agents_port())
        except BaseException:
            self.running = 0
            self.pump.stop()
            raise
        self.traffic.start()
        self.carrying.start()
        self.upkeep.startService()
        if self.neighbours is not None:
            self.neighbours.startService()
        self.certificates.startService()
        self._frame.metrics.add(self.metrics)

    def stopService(self) -> Deferred[None]:
        """Close everything, the store last."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._frame.metrics.remove(self.metrics)
        if self.certificates.running:
            await self.certificates.stopService()
        if self.upkeep.running:
            await self.upkeep.stopService()
        if self.neighbours is not None and self.neighbours.running:
            await self.neighbours.stopService()
        await self.door.close()
        self.modes.stop()
        self.traffic.stop()
        self.pump.stop()
        await self.carrying.stop()
        await self.tasks.stop()
        await self._place.close()

    def _restore(self) -> None:
        """Take what was registered before, and what the configuration file registers."""
        restored = Deferred.fromCoroutine(self._load_hosts(self.config))
        failures: list[Any] = []
        restored.addErrback(failures.append)
        if failures:
            failures[0].raiseException()

    async def _load_hosts(self, config: ProxyConfig) -> None:
        await self.ledger.start()
        await self.ledger.set_static(static_rows(config, self._frame.environ))

    def _kill_host(self, host: str) -> int:
        self._place.killed(host)
        return self.traffic.kill(None, host)

    # Another process in our place: see `layer8.proxy.takeover`.

    async def freeze(self) -> list[tuple[str, str, socket.socket]]:
        """Change nothing durable any more, and give every listener by option and endpoint string."""
        await self.carrying.write()
        self.ledger.frozen = True
        return self.door.sockets() + await self._frame.control.lend()

    def thaw(self) -> None:
        """Go on: nobody comes in our place."""
        self.ledger.frozen = False
        self._frame.control.take_back()

    def standing(self) -> dict[str, Carried]:
        """Give the bytes of every host, as they were written last."""
        return self.carrying.standing()

    def write_to(self, books: Books) -> None:
        """Write byte counts elsewhere from now on."""
        self.carrying.books = books

    def serves(self) -> bool:
        """Say whether everything listens."""
        return bool(self.running)

    def hold(self, on: bool, *, data: bool) -> None:
        """Leave visitors in the kernel's queue, or take them; with `data` dial-backs too."""
        self.door.hold(on, data=data)

    def has_agents(self, hosts: Sequence[str]) -> bool:
        """Say whether each of these hosts has an agent."""
        return all(self.seats.of(host) for host in hosts)

    def add_carried(self, carried: Mapping[str, Sequence[int]]) -> None:
        """Count bytes that another process has carried."""
        for host, (into, out) in carried.items():
            self.carrying.add(host, Carried(into, out))

    async def give_way(self) -> list[str]:
        """Let nobody in any more and send agents away; gives the hosts that had some."""
        await self.settle()
        return self.send_away()

    async def settle(self) -> None:
        """Let nobody in any more, and wait until those who are here are joined or refused.

        Visitors stay in the kernel's queue, for the process that comes.
        """
        reactor = self._frame.reactor
        self.door.hold(True)
        self._frame.control.accept_no_more()
        await self.door.close_agents()
        end = reactor.seconds() + GIVE_WAY
        while reactor.seconds() < end and self._unsettled():
            await deferLater(reactor, GIVE_WAY / 200, lambda: None)

    def _unsettled(self) -> bool:
        """Say whether anybody's way could still change: without a name, called for, or not nodded for yet."""
        traffic, given = self.traffic, self.ahead.given
        return bool(traffic.waiting or given or any(visit.session is not None for visit in traffic.visits))

    def send_away(self) -> list[str]:
        """Let agents come again, where they then arrive; gives the hosts that had some."""
        hosts = sorted({seat.host for seat in self.seats})
        for seat in list(self.seats):
            seat.voice.close("going_away")
        return hosts

    def _seat_changed(self, presences: Presences, seat: Seat) -> None:
        if seat.state == "up":
            self.tasks.start("a lease", self._present(presences, seat))  # webgw's agents have no row to wait in
        else:
            self.ahead.changed(seat)

    async def _present(self, presences: Presences, seat: Seat) -> None:
        """Announce a subscription; the agent is told to dial ahead for it when it has been told its number."""
        await presences.settle()
        self.ahead.changed(seat)

    def _seat_gone(self, seat: Seat, kill: bool) -> None:
        self.traffic.seat_gone(seat, kill)
        if self.neighbours is not None:
            self.neighbours.remote.left(seat)

    def _rejected(self, seat: Seat, conn: int) -> None:
        (self.traffic.reach if self.neighbours is None else self.neighbours).rejected(seat, conn)

    # As a role of its frame.

    async def apply(self, config: Config) -> None:
        """Go by another configuration; what needs a restart stays as it was."""
        fresh = evolve(config.proxy, name=self.config.name)
        rows = static_rows(fresh, self._frame.environ)
        if fresh.tls_cert_file:
            self._identity_of(fresh)  # raises if it cannot be used
        certify = self.certificates.prepare(fresh)
        settle = self.door.prepare(fresh)
        try:
            await self.ledger.set_static(rows)
        except BaseException:
            settle(False)
            raise
        self.config = fresh
        self.ledger.mode = fresh.mode
        settle(True)
        certify()
        self.traffic.configure(fresh)
        self.ahead.configure(fresh.limits)
        limits = fresh.limits
        self.pump.idle, self.pump.half_closed = limits.idle, limits.half_closed
        self.pump.pipes.most = affordable(limits.pipes)
        self.registry.limits = self._house.limits = limits
        self.guesses.allow(limits.subscribe_fails, limits.ban_shortest, limits.ban_longest)

    def listening(self) -> Sequence[str]:
        """Say where visitors, agents and dial-backs may come."""
        return self.door.listening()

    def connections(self) -> int:
        """Count the visitors."""
        return len(self.traffic.visits)

    @property
    def drain_s(self) -> float:
        """Seconds that visitors have when the process is told to end."""
        return self.config.drain_s

    def wind_down(self, seconds: float) -> None:
        """Take no more visitors; those who are here have `seconds`."""
        self.door.drain(int(seconds), ())

    async def drain(self) -> None:
        """Take no more visitors, and finish when the last one has left."""
        if not self.door.draining:
            self.door.drain(None, ())
        await self.traffic.idle()

    def resume(self) -> None:
        """Take visitors again."""
        self.door.undrain()


def static_rows(config: ProxyConfig, environ: Mapping[str, str]) -> list[Registration]:
    """Make the registrations of the configuration file; raises ConfigError."""
    rows = [_registration(host, environ, config) for host in config.host]
    ours = {read_endpoint(text).port for text in (*config.http, *config.https)} - {0}
    for row in rows:
        if row.target is not None:
            target = read_target(row.target)
            if target.kind == "tcp" and target.loopback and target.port in ours:
                raise ConfigError(f"proxy.host: the target of {row.host} is this server itself")
    return rows


def _registration(host: ProxyHostConfig, environ: Mapping[str, str], config: ProxyConfig) -> Registration:
    """Make the registration of a host of the configuration file."""
    key = None
    if host.secret_file:
        path = Path(host.secret_file)
        key = HostSecret.load(path, forbidden=files.forbidden(path, environ)).key
    return static(
        host.host,
        key=key,
        target=host.target or None,
        ports=host.ports,
        mode=host.mode or config.mode,
        policy=Policy(
            allow=host.allow,
            deny=host.deny,
            max_conns=host.max_conns,
            rate=host.rate,
            bandwidth=host.bandwidth,
            visitor=host.visitor,
            tls=host.tls,
            users=host.users,
        ),
        rules=config.limits.policy_rules,
        introduction=host.proxy_protocol,
    )
