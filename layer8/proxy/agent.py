"""The agent: publishes local ports through proxy servers, dialling out only.

::

    Agent ── Uplink (one per server): control connection, subscriptions
      └───── Carrier ── Pump: dials target and server for each visitor, and joins them
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.config import files
from layer8.config.endpoint import client as read_target
from layer8.config.home import secret_path
from layer8.config.proxy import AgentConfig, AgentHostConfig
from layer8.config.tree import Config
from layer8.control.access import Caller
from layer8.control.client import Client
from layer8.control.errors import Conflict, NotFound
from layer8.control.metrics import Family, Metrics, counter, gauge
from layer8.control.table import Table, method
from layer8.core.address import Networks
from layer8.core.errors import ConfigError, Refused
from layer8.core.members import member
from layer8.core.names import InvalidName, encode
from layer8.crypto.secret import HostSecret
from layer8.net.dial import Dialer, Via, Where
from layer8.net.pump import Pump
from layer8.net.tasks import TaskSet
from layer8.proxy.carry import Carrier
from layer8.proxy.exposed import Exposed
from layer8.proxy.health import PATIENCE, Checks
from layer8.proxy.legacy_uplink import LegacyUplink
from layer8.proxy.uplink import ANY_PORT, Address, Errand, Published, ServerLink, Told, Uplink
from layer8.proxy.wire import Empty, Host

TICK = 0.25
"""Seconds between two looks at visitors that are on their way."""
FAREWELL = 1.0
"""Seconds that servers have to answer our close when the agent stops."""


class Agent(Service):
    """One agent; `told` hears of everything that happens, for those who show it."""

    _log = Logger(namespace="layer8.proxy.agent")

    def __init__(
        self,
        reactor: Any,
        config: AgentConfig,
        published: Iterable[Published] = (),
        told: Told | None = None,
        served: Table | None = None,
    ):
        """Prepare to publish; raises ConfigError. Nothing is dialled before the start.

        With `served`, servers may call that table's methods of role read.
        """
        self.config = config
        self._served = served
        self.hosts: dict[str, Published] = {one.host: one for one in published}
        self.pump = Pump(reactor)
        outward = Dialer(reactor, self.pump, Via.parse(config.via))
        self.carrier = Carrier(self.pump, Dialer(reactor, self.pump), outward)
        self.uplinks: list[Uplink | LegacyUplink] = []
        self.tasks = TaskSet(self._log)
        self._reactor = reactor
        self._outward = outward
        self._told = told
        self.checks = Checks(reactor, self.pump, self.carrier.local, self.hosts, self._turned)
        self._exposed: dict[str, Exposed] = {}
        self._running: dict[str, Deferred[None]] = {}
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor
        self._waiting: list[Deferred[None]] = []
        self._deadline: IDelayedCall | None = None
        for url in config.servers:
            self.uplinks.append(self._uplink(url))

    def _uplink(self, url: str) -> Uplink | LegacyUplink:
        config = self.config
        address = Address.parse(url)
        retry = (config.retry_min, config.retry_max)
        near = Networks.parse(config.data_networks)
        errand = Errand(self._reactor, self.carrier, self._outward, self.hosts, retry, self._happened, near)
        return LegacyUplink(address, errand) if config.legacy else Uplink(address, errand, self._served)

    # As a service.

    def startService(self) -> None:
        """Dial every server, and go on dialling."""
        Service.startService(self)
        self.pump.start()
        self._ticker.start(TICK, now=False)
        self.checks.start()
        for uplink in self.uplinks:
            self._begin(uplink)

    def _begin(self, uplink: Uplink | LegacyUplink) -> None:
        self._running[uplink.address.url] = self.tasks.run("uplink", uplink.run())
        self._running[uplink.address.url].addErrback(lambda _: None)

    def stopService(self) -> Deferred[None]:
        """Close everything."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stay()
        self.checks.stop()
        for exposed in list(self._exposed.values()):
            exposed.end()
        leaving = [_left(link.client) for link in self.uplinks if isinstance(link, Uplink) and link.client is not None]
        await self.tasks.stop()
        self.carrier.close_all()
        if self._ticker.running:
            self._ticker.stop()
        farewell: Deferred[Any] = DeferredList(leaving)
        farewell.addTimeout(FAREWELL, self._reactor)
        await farewell
        self.pump.stop()

    def _tick(self) -> None:
        self.carrier.tick(self.pump.look_at_clock())

    def _happened(self, what: str, uplink: ServerLink, word: str) -> None:
        where = uplink.address.host
        if what == "connected":
            self._log.info("connected", event="agent.connected", server=where)
        elif what == "lost":
            self._log.info("not connected", event="agent.lost", server=where, reason=word)
        elif what == "refused":
            # The word holds a host's name and the server's own text, which are for agent.status and not for a log.
            self._log.warn("not subscribed, agent.status says why", event="agent.refused", server=where)
        elif what == "rejected":
            host, _, why = word.partition(": ")
            self._log.info("a visitor was turned away", event="agent.rejected", reason=why)
            self.checks.doubt(host)
        elif what == "subscribed":
            if word in self.checks.down and isinstance(uplink, Uplink):
                uplink.tell_health(word, False)
        elif what == "fenced":
            self._log.warn("asked to dial back where it may not be", event="agent.fenced", server=where)
        elif what == "draining":
            self._log.info("the server drains", event="agent.draining", server=where)
        if self._told is not None:
            self._told(what, uplink, word)
        for exposed in list(self._exposed.values()):
            exposed.look()
        self._tell_idle()

    def _turned(self, host: str, up: bool) -> None:
        """Tell every server that a host is down, or up again."""
        if up:
            self._log.info("the targets of a host answer again", event="agent.up")
        else:
            self._log.warn("no target of a host answers", event="agent.down")
        for uplink in self.uplinks:
            if isinstance(uplink, Uplink):
                uplink.tell_health(host, up)

    def _tell_idle(self) -> None:
        if not self.carrier.open:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.callback(None)

    # As a role of its frame.

    async def apply(self, config: Config) -> None:
        """Publish what another configuration says; connections to servers that stay are kept."""
        fresh = config.agent
        published = {one.host: one for one in read_hosts(fresh, {})}
        published |= {host: exposed.published for host, exposed in self._exposed.items()}
        addresses = {url: Address.parse(url) for url in fresh.servers}
        old = dict(self.hosts)
        self.config = fresh
        self.hosts.clear()
        self.hosts.update(published)
        for uplink in [uplink for uplink in self.uplinks if uplink.address not in addresses.values()]:
            self.uplinks.remove(uplink)
            self._running.pop(uplink.address.url).cancel()
        for uplink in self.uplinks:
            for host in old.keys() - published.keys():
                self.tasks.start("unsubscribe", uplink.unsubscribe(host))
            for host, one in published.items():
                uplink.replace(one)
                before, served = old.get(host), {had.host for had in uplink.subscriptions.values()}
                if before is None or host not in served or not one.asks_the_same(before):
                    self.tasks.start("subscribe", uplink.subscribe(one))
        standing = [uplink.address for uplink in self.uplinks]
        for url, address in addresses.items():
            if address not in standing:
                uplink = self._uplink(url)
                self.uplinks.append(uplink)
                self._begin(uplink)

    async def publish(self, one: Published) -> None:
        """Publish one more host on every server."""
        self.hosts[one.host] = one
        for uplink in self.uplinks:
            await uplink.subscribe(one)

    def expose(
        self, host: str, target: str | int | Mapping[int, str | int], secret: HostSecret | None = None
    ) -> Exposed:
        """Publish a host for a program; raises ConfigError, and Refused if it is published already.

        `target` is a port of this machine, HOST:PORT or an endpoint string, for plain HTTP on any public port; or one
        for each public port, of which 443 is for TLS as it comes. Without a `secret` it is read from the state folder,
        as `layer8 expose` does.
        """
        try:
            name = encode(host)
        except InvalidName as error:
            raise ConfigError(str(error)) from None
        if name in self.hosts:
            raise Refused(f"{name} is published already")
        if secret is None:
            secret = HostSecret.load(secret_path(name, os.environ))
        ports = target if isinstance(target, Mapping) else {ANY_PORT: target}
        published = Published(
            name, secret.key, {port: Where.read(str(text)) for port, text in ports.items()}, secret=secret.value
        )

        async def withdraw() -> None:
            self._exposed.pop(name, None)
            if name in self.hosts:
                await self.withdraw(name)

        self._exposed[name] = exposed = Exposed(self._reactor, published, self.uplinks, withdraw)
        self.hosts[name] = published
        if self.running:
            self.tasks.start("expose", self.publish(published))
        return exposed

    async def withdraw(self, host: str) -> None:
        """Publish a host no longer; what is joined goes on."""
        del self.hosts[host]
        for uplink in self.uplinks:
            await uplink.unsubscribe(host)

    def listening(self) -> Sequence[str]:
        """Say which servers are dialled: an agent listens nowhere."""
        return tuple(f"nowhere; dials {uplink.address.host}:{uplink.address.port}" for uplink in self.uplinks)

    def connections(self) -> int:
        """Count the visitors that are carried."""
        return len(self.carrier.open)

    @property
    def drain_s(self) -> float:
        """Seconds that visitors have when the process is told to end."""
        return self.config.drain_s

    def wind_down(self, seconds: float) -> None:
        """Ask for no new visitors; those who are here have `seconds`."""
        self._stay()
        self._deadline = self._reactor.callLater(seconds, self._close_all)
        for uplink in self.uplinks:
            for host in list(self.hosts):
                self.tasks.start("unsubscribe", uplink.unsubscribe(host))

    async def drain(self) -> None:
        """Ask for no new visitors, and finish when the last one has left."""
        if self._deadline is None:
            self.wind_down(self.config.drain_s)
        await self.idle()

    def _close_all(self) -> None:
        self.carrier.close_all()
        self._tell_idle()

    def _stay(self) -> None:
        """Forget when what is carried was to be closed."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def resume(self) -> None:
        """Ask for visitors again."""
        self._stay()
        for uplink in self.uplinks:
            for one in self.hosts.values():
                self.tasks.start("subscribe", uplink.subscribe(one))

    def idle(self) -> Deferred[None]:
        """Fire when no visitor is carried."""
        waiter: Deferred[None] = Deferred()
        if self.carrier.open:
            self._waiting.append(waiter)
        else:
            waiter.callback(None)
        return waiter

    def families(self) -> Iterable[Family]:
        """Count what was carried."""
        totals = self.carrier.totals
        yield gauge("layer8_agent_open", "Visitors that are carried or on their way.", len(self.carrier.open))
        yield gauge(
            "layer8_agent_servers", "Servers that have taken our hello.", sum(u.connected for u in self.uplinks)
        )
        yield gauge("layer8_agent_down", "Hosts whose every target is down.", len(self.checks.down))
        yield counter("layer8_agent_called_total", "Visitors that servers called us for.", totals.called)
        yield counter("layer8_agent_joined_total", "Visitors that reached their target.", totals.joined)
        yield counter("layer8_agent_rejected_total", "Visitors that were turned away.", totals.rejected)
        yield Family(
            "layer8_agent_bytes_total",
            "Bytes of ended connections, from visitors (in) and to visitors (out).",
            "counter",
            {("in",): totals.bytes_in, ("out",): totals.bytes_out},
            ("direction",),
        )

    def show(self, table: Table, metrics: Metrics) -> None:
        """Add our rows and counts to a daemon's."""
        table.add(AgentCommands(self))
        metrics.add(self)


@frozen
class ServerRow:
    """One server of an agent."""

    url: str
    connected: bool
    hosts: tuple[str, ...]
    refused: dict[str, str]


@frozen
class AgentStatus:
    """What an agent publishes, where, and what it has carried."""

    servers: tuple[ServerRow, ...]
    hosts: tuple[str, ...]
    open: int
    called: int
    joined: int
    rejected: int


@frozen
class AddHost:
    """`agent.add`: publish one more host until the agent stops; `secret` is hex and is not shown again."""

    host: Host
    target: str = member(most=512)
    secret: str = member(pattern="(?:[0-9a-fA-F]{2}){32,256}", secret=True)


@frozen
class RemoveHost:
    """`agent.remove`."""

    host: Host


@frozen
class TargetRow:
    """One target of a host, and what a look at it has shown; `why` is empty if all is well."""

    port: int
    target: str
    up: bool
    why: str
    ms: int


@frozen
class CheckRow:
    """One host: `up` is what its servers are told."""

    host: str
    check: str
    up: bool
    targets: tuple[TargetRow, ...]


@frozen
class CheckRows:
    """`agent.check`: every host, or the one that was asked for."""

    hosts: tuple[CheckRow, ...]


@frozen
class CheckHost:
    """`agent.check`: look at one host's targets now, or at those of all."""

    host: Host | None = None


class AgentCommands:
    """The rows `agent.*`, on the agent's own control socket."""

    owns = ("agent",)

    def __init__(self, agent: Agent) -> None:
        """Take the agent."""
        self._agent = agent

    @method("agent.status", role="read")
    async def status(self, caller: Caller) -> AgentStatus:
        """Say what is published where, and what has been carried."""
        agent = self._agent
        totals = agent.carrier.totals
        return AgentStatus(
            tuple(
                ServerRow(
                    uplink.address.url,
                    uplink.connected,
                    tuple(sorted(one.host for one in uplink.subscriptions.values())),
                    dict(uplink.refusals),
                )
                for uplink in agent.uplinks
            ),
            tuple(sorted(agent.hosts)),
            len(agent.carrier.open),
            totals.called,
            totals.joined,
            totals.rejected,
        )

    @method("agent.check", role="operate", errors=(NotFound,), timeout=2 * PATIENCE)
    async def check(self, caller: Caller, params: CheckHost) -> CheckRows:
        """Look at targets now, and say how they are; a host that is not looked after is looked at by tcp."""
        agent = self._agent
        if params.host is not None and params.host not in agent.hosts:
            raise NotFound("host")
        chosen = [one for name, one in agent.hosts.items() if params.host in (None, name)]
        looks = [agent.checks.now(one) for one in chosen]
        rows = []
        for one, look in zip(chosen, looks, strict=True):
            targets = tuple(TargetRow(h.port, h.where.words, not h.why, h.why, h.ms) for h in await look)
            rows.append(CheckRow(one.host, one.check, one.host not in agent.checks.down, targets))
        return CheckRows(tuple(rows))

    @method("agent.add", role="admin", errors=(Conflict,))
    async def add(self, caller: Caller, params: AddHost) -> Empty:
        """Publish one more host, on every server, until the agent stops."""
        if params.host in self._agent.hosts:
            raise Conflict(0)
        secret = HostSecret(bytes.fromhex(params.secret))
        await self._agent.publish(
            Published(params.host, secret.key, {ANY_PORT: Where.of(params.target)}, secret=secret.value)
        )
        return Empty()

    @method("agent.remove", role="admin", errors=(NotFound,))
    async def remove(self, caller: Caller, params: RemoveHost) -> Empty:
        """Publish a host no longer; what is joined goes on."""
        if params.host not in self._agent.hosts:
            raise NotFound("host")
        await self._agent.withdraw(params.host)
        return Empty()


def read_hosts(config: AgentConfig, environ: Mapping[str, str]) -> list[Published]:
    """Read the secrets and targets of an agent's hosts; raises ConfigError."""
    return [_published(host, environ) for host in config.host]


def _published(host: AgentHostConfig, environ: Mapping[str, str]) -> Published:
    path = Path(host.secret_file)
    secret = HostSecret.load(path, forbidden=files.forbidden(path, environ))
    targets = {int(port): _where(text) for port, text in host.targets.items()}
    return Published(
        host.host,
        secret.key,
        targets,
        host.weight,
        host.priority,
        host.max_conns,
        secret.value,
        host.proxy_protocol,
        host.pool,
        host.check,
        host.check_path,
    )


def _left(client: Client) -> Deferred[None]:
    """Fire when a connection to a server is lost."""
    lost: Deferred[None] = Deferred()
    client.when_lost(lambda: lost.callback(None) if not lost.called else None)
    return lost


def _where(text: str) -> Where:
    endpoint = read_target(text)
    if endpoint.kind not in ("tcp", "unix"):
        raise ConfigError(f"{text!r} cannot be a target: write tcp:HOST:PORT or unix:PATH")
    return Where.of(text)
