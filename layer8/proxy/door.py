"""The server's listeners: visitors, agents, their dial-backs, and all of these on one public port.

Visitors and dial-backs are accepted by the pump. Agents speak WebSocket, so theirs are Twisted's. A ClientHello that
names the server itself, on a visitors' TLS port, is an agent that can only reach that port: its ALPN says which of its
two kinds of connection it is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory

from layer8.config.endpoint import server as read_endpoint
from layer8.config.proxy import ProxyConfig
from layer8.core.address import HostPort
from layer8.core.errors import Layer8Error
from layer8.crypto.x509 import Identity
from layer8.net.entries import Listener
from layer8.net.factory import Places
from layer8.net.listen import Sockets, Taken, serve, take
from layer8.net.pump import Pump
from layer8.net.tls import TlsServer, server_context
from layer8.proxy.choose import Seat
from layer8.proxy.data import DataPort
from layer8.proxy.limits import CALL_LIFE
from layer8.proxy.methods import AgentRows
from layer8.proxy.orders import ConnectionRow
from layer8.proxy.traffic import TICK, Traffic
from layer8.proxy.visit import Visit
from layer8.proxy.wire import DATA_ALPN, DataAddress

DEFER = 10
"""Seconds that the kernel keeps a visitor who says nothing, before we hear of it."""


class Door:
    """Opens and closes listeners; implements what `operate` and `traffic` ask of a door."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        pump: Pump,
        traffic: Traffic,
        rows: AgentRows,
        config: ProxyConfig,
        identity: Callable[[], Identity],
        agents: IProtocolFactory,
        legacy: IProtocolFactory | None,
        given: Sockets | None = None,
    ) -> None:
        """`agents` speaks control to agents, `legacy` to webgw's; `identity` is asked for when TLS is first spoken.

        What `given` holds is not opened again.
        """
        self._reactor = reactor
        self._pump = pump
        self._traffic = traffic
        self._rows = rows
        self._identity = identity
        self._agents = agents
        self._legacy = legacy
        self._given = given
        self.elsewhere: Callable[[], tuple[DataAddress, ...]] = tuple
        self.others: Callable[[], tuple[str, ...]] = lambda: ()
        """Gives where other nodes are dialled back, for whose visitors agents of ours are called."""
        self._visitors: list[tuple[Taken, Listener, str, str]] = []
        self._ports: list[tuple[IListeningPort, str, str, str]] = []
        self._data: list[tuple[Taken, Listener]] = []
        self._closing: list[tuple[IDelayedCall, list[tuple[Taken, Listener]]]] = []
        self._secure_agents: IProtocolFactory | None = None
        self._shown: TlsServer | None = None
        self._data_context: SSL.Context | None = None
        self._deadline: IDelayedCall | None = None
        self._ticker = LoopingCall(self._tick)
        self._rotor = LoopingCall(self._rotate)
        self._ticker.clock = self._rotor.clock = reactor
        self.config = config
        self._public = {"http": config.public_http, "https": config.public_https}
        self.draining = False
        limits = config.limits
        places = Places(limits.data_unauthenticated, limits.data_unauthenticated_per_source)
        reach = traffic.reach
        self.data = DataPort(pump, places, reach.answered, limits.secret_time, self._context, reach.expected)
        traffic.reach.caller = self
        traffic.own = self
        traffic.own_names = frozenset([config.name] if config.name else [])

    # Opening and closing.

    def open(self) -> None:
        """Listen everywhere; raises `Unavailable` with nothing left open."""
        try:
            self._open_data(self.config.data)
            for scheme, texts in (("http", self.config.http), ("https", self.config.https)):
                for text in texts:
                    self._open_visitors(scheme, text)
            for text in self.config.agents:
                self._open_agents(text, "--agents", self._agents)
            for text in self.config.legacy if self._legacy is not None else ():
                self._open_agents(text, "--legacy", self._legacy)
        except BaseException:
            self.close()
            raise
        self._rows.welcome(self.public())
        self.announce()
        self._ticker.start(TICK, now=False)
        self._keep_rotating()

    def _keep_rotating(self) -> None:
        if self._rotor.running:
            self._rotor.stop()
        if self.config.data_rotate:
            self._rotor.start(self.config.data_rotate, now=False)

    def _open_visitors(self, scheme: str, text: str) -> None:
        accepted, public = self._traffic.accepted, self._public
        for taken in take(self._reactor, text, f"--{scheme}", defer=DEFER, given=self._given):

            def enter(fd: int, peer: Any, own: int = taken.port) -> None:
                # A peer at a Unix socket, as systemd may hand one over, has no address.
                accepted(fd, peer[0] if isinstance(peer, tuple) else "", public[scheme] or own, scheme)

            self._visitors.append((taken, self._pump.listen(taken.sock, enter), scheme, text))

    def _open_data(self, texts: tuple[str, ...]) -> None:
        for text in texts:
            wait = int(self.config.limits.secret_time) + 1
            for taken in take(self._reactor, text, "--data", defer=wait, given=self._given):
                self._data.append((taken, self._pump.listen(taken.sock, self.data.take)))

    def _open_agents(self, text: str, option: str, factory: IProtocolFactory | None) -> None:
        endpoint = read_endpoint(text)
        if endpoint.tls:
            factory = self._with_tls()
        assert factory is not None
        for port in serve(self._reactor, text, option, factory, self._given):
            self._ports.append((port, endpoint.kind, option, text))

    def prepare(self, config: ProxyConfig) -> Callable[[bool], None]:
        """Open the visitors' listeners that are new; raises `Unavailable`, and then nothing has changed.

        Call the function given back, once: with True the other configuration counts from then on and listeners that
        it lacks are closed, with False everything is as before.
        """
        wanted = [("http", text) for text in config.http] + [("https", text) for text in config.https]
        standing = [(scheme, text) for _, _, scheme, text in self._visitors]
        before = len(self._visitors)

        def settle(keep: bool) -> None:
            if keep:
                self._go_by(config, wanted)
                return
            for _, listener, _, _ in self._visitors[before:]:
                listener.close()
            del self._visitors[before:]

        try:
            for scheme, text in wanted:
                if (scheme, text) not in standing:
                    self._open_visitors(scheme, text)
        except BaseException:
            settle(False)
            raise
        return settle

    def _go_by(self, config: ProxyConfig, wanted: Collection[tuple[str, str]]) -> None:
        old, self.config = self.config, config
        self._public.update(http=config.public_http, https=config.public_https)
        for entry in [entry for entry in self._visitors if (entry[2], entry[3]) not in wanted]:
            entry[1].close()
            self._visitors.remove(entry)
        limits = config.limits
        self.data.places.most = limits.data_unauthenticated
        self.data.places.most_per_source = limits.data_unauthenticated_per_source
        self.data.wait(limits.secret_time)
        if config.data_rotate != old.data_rotate:
            self._keep_rotating()
        self._data_context = None
        if self._shown is not None:
            self._shown.replace(self._identity())
        self._rows.welcome(self.public())
        self.announce()

    def close(self) -> Deferred[None]:
        """Listen nowhere any more; fires when that is so."""
        self.stop_accepting()
        for loop in (self._ticker, self._rotor):
            if loop.running:
                loop.stop()
        for call in [*(call for call, _ in self._closing), *([self._deadline] if self._deadline else [])]:
            if call.active():
                call.cancel()
        for _, listener in [*self._data, *(one for _, old in self._closing for one in old)]:
            listener.close()
        self._data.clear()
        self._closing.clear()
        ports, self._ports = self._ports, []
        closed: Deferred[None] = Deferred()
        left = [maybeDeferred(port.stopListening) for port, *_ in ports]
        done = Deferred.fromCoroutine(_all(left))
        done.addCallback(lambda _: closed.callback(None))
        return closed

    def stop_accepting(self) -> None:
        """Let no more visitors in."""
        for _, listener, _, _ in self._visitors:
            listener.close()
        self._visitors.clear()

    def hold(self, on: bool, *, data: bool = False) -> None:
        """Leave visitors in the kernel's queue, or take them again; with `data` dial-backs too."""
        for listener in [listener for _, listener, _, _ in self._visitors]:
            if on:
                listener.pause()
            else:
                listener.resume()
        for listener in [listener for _, listener in self._data]:
            if on and data:
                listener.pause()
            else:
                listener.resume()

    def sockets(self) -> list[tuple[str, str, socket.socket]]:
        """Give every listening socket by option and endpoint string."""
        found = [(f"--{scheme}", text, taken.sock) for taken, _, scheme, text in self._visitors]
        found += [("--data", taken.asked, taken.sock) for taken, _ in self._data]
        ports: list[tuple[Any, str, str]] = [(port, option, text) for port, _, option, text in self._ports]
        return found + [(option, text, port.socket) for port, option, text in ports]

    async def close_agents(self) -> None:
        """Let no more agents in; those who are here stay."""
        ports, self._ports = self._ports, []
        await _all([maybeDeferred(port.stopListening) for port, *_ in ports])

    def listening(self) -> tuple[str, ...]:
        """Say in words where what listens, with the ports that were really taken."""
        told = [f"{scheme} on {taken.text}" for taken, _, scheme, _ in self._visitors]
        told += [f"agents on {_host(port)} ({kind})" for port, kind, *_ in self._ports]
        return tuple(dict.fromkeys((*told, *(f"data on {taken.text}" for taken, _ in self._data))))

    def port_of(self, scheme: str) -> int:
        """Give the first listening port for visitors of that kind, 0 for none."""
        return next((taken.port for taken, _, kind, _ in self._visitors if kind == scheme), 0)

    def public(self) -> dict[str, int]:
        """Give the first public port of each kind."""
        found = {scheme: port or self.port_of(scheme) for scheme, port in self._public.items()}
        return {scheme: port for scheme, port in found.items() if port}

    def agents_port(self, *, legacy: bool = False) -> int:
        """Give the first listening port for agents, or for webgw's agents; 0 for none."""
        wanted = "--legacy" if legacy else "--agents"
        return next((int(getattr(port.getHost(), "port", 0)) for port, _, name, _ in self._ports if name == wanted), 0)

    def _tick(self) -> None:
        self.data.tick(self._pump.look_at_clock())

    # Dial-backs.

    def addresses(self) -> tuple[DataAddress, ...]:
        """Give where agents may dial back now."""
        pin = self._identity().pin if self.encrypts("http") else None
        if self.config.data_public:
            public = HostPort.parse(self.config.data_public)
            return (DataAddress(public.host, public.port, True, pin or self._identity().pin),)
        return tuple(DataAddress("", taken.port, pin is not None, pin) for taken, _ in self._data)

    def announce(self) -> None:
        """Tell every agent where it may dial back now."""
        self._rows.announce(tuple(dict.fromkeys((*self.addresses(), *self.elsewhere()))))

    def rotate(self) -> None:
        """Open new data ports, tell every agent, and let the old ones finish."""
        old, self._data = self._data, []
        interfaces = [taken.endpoint.interface for taken, _ in old]
        try:
            self._open_data(
                tuple(f"tcp:0:interface={interface.replace(':', chr(92) + ':')}" for interface in interfaces)
            )
        except BaseException:
            for _, listener in self._data:
                listener.close()
            self._data = old
            raise
        self.announce()

        def finish() -> None:
            for _, listener in old:
                listener.close()

        self._closing = [(call, listeners) for call, listeners in self._closing if call.active()]
        late = self._reactor.callLater(CALL_LIFE + self.config.limits.secret_time, finish)
        self._closing.append((late, old))

    def _rotate(self) -> None:
        try:
            self.rotate()
        except Layer8Error as error:  # no port or no descriptor left, perhaps not next time
            self._log.warn("the data port stays as it is", event="proxy.data_kept", reason=str(error))

    def _context(self) -> SSL.Context:
        if self._data_context is None:
            self._data_context = server_context(self._identity(), (DATA_ALPN,), resume=True)
        return self._data_context

    def encrypts(self, scheme: str) -> bool:
        """Say whether a visitor of this kind is carried inside TLS on its way to the agent."""
        if self._shares_port():
            return True  # the visitors' TLS port is told apart by the name that agents ask for
        if self.config.data_tls != "auto":
            return self.config.data_tls == "always"
        return scheme == "http" and not all(taken.local for taken, _ in self._data)

    def _shares_port(self) -> bool:
        """Say whether agents are told to dial back to the visitors' TLS port, under the server's own name."""
        if not self.config.data_public or not self.config.name:
            return False
        public = HostPort.parse(self.config.data_public)
        return public.host == self.config.name and public.port == self.public().get("https")

    def call(self, visit: Visit, seat: Seat, secret: bytes) -> bool:
        """Tell the agent of `seat` that a visitor waits; one that reads too slowly to be told is sent away."""
        port = self._data_port(visit.conn)
        if not port:
            return False  # nowhere to dial back to: we are being stopped
        result = {
            "secret": secret.hex(),
            "port": visit.port,
            "serverListeningPort": port,
            "tls": self.encrypts(visit.carried),
            "conn": visit.conn,
            "host": visit.host,
            "scheme": visit.carried,
            "expires_ms": int(CALL_LIFE * 1000),
        }
        remote = visit.remote
        if remote is not None:
            result["remote"] = str(remote)
        told = seat.voice.notify("proxy.connection", {"subscription": seat.number, "result": result})
        if not told:
            seat.voice.close("slow_reader")
        return told

    def _data_port(self, number: int) -> int:
        """Give the port that agents dial, a different one for each number if there are several; 0 for none."""
        if not self._data:
            return 0
        if self.config.data_public:
            return HostPort.parse(self.config.data_public).port
        return self._data[number % len(self._data)][0].port

    def secures(self, visit: Visit) -> bool:
        """Say whether a visitor is carried inside TLS on its way to the agent."""
        return self.encrypts(visit.carried)

    def first_kind(self) -> bool:
        """Say whether connections that agents dial ahead begin with TLS, before anybody knows who comes."""
        return self.encrypts("http" if self.port_of("http") or not self.port_of("https") else "https")

    def ask_ahead(self, seat: Seat, secure: bool, secrets: list[bytes]) -> bool:
        """Let the agent of `seat` dial now with each of these; one that reads too slowly is sent away."""
        port = self._data_port(seat.number)
        if not port:
            return False
        life = int(CALL_LIFE * 1000)
        tokens = [
            {"secret": secret.hex(), "expires_ms": life, "serverListeningPort": port, "tls": secure}
            for secret in secrets
        ]
        told = seat.voice.notify("proxy.pool", {"subscription": seat.number, "tokens": tokens})
        if not told:
            seat.voice.close("slow_reader")
        return told

    # One public port.

    def adopt(self, fd: int, peer: Any, first: bytes, alpn: tuple[bytes, ...]) -> None:
        """Take a connection to the server's own name: a dial-back by its ALPN, else an agent's control connection."""
        if DATA_ALPN.encode() in alpn:
            self.data.take(fd, (peer, 0), first)
            return
        once = _Fed(self._with_tls(), peer)
        held = socket.socket(fileno=fd)
        try:
            transport = self._reactor.adoptStreamConnection(fd, held.family, once)  # takes a duplicate
        except OSError:
            return  # gone already
        finally:
            held.close()
        if transport is not None:
            transport.client = (peer, 0)  # a balancer may have said who it is
        once.feed(first)

    def _with_tls(self) -> IProtocolFactory:
        if self._secure_agents is None:
            self._shown = TlsServer(self._identity(), alpn=("http/1.1",))
            self._secure_agents = TLSMemoryBIOFactory(self._shown, False, self._agents)
        return self._secure_agents

    # What operators see and do.

    @property
    def agents(self) -> int:
        """Agents that have said hello."""
        return len(self._rows)

    def rows(self) -> Iterator[ConnectionRow]:
        """Give a row for every visitor, by rising number."""
        moment = self._pump.look_at_clock()
        for visit in sorted(self._traffic.visits, key=lambda visit: visit.conn):
            link = visit.link
            yield ConnectionRow(
                conn=visit.conn,
                host=visit.host or "",
                port=visit.port,
                scheme=visit.scheme,
                state=visit.state.value,
                subscription=None if visit.seat is None else visit.seat.number,
                seconds=int(moment - visit.opened),
                bytes_in=0 if link is None else max(0, link.bytes_up - visit.head),
                bytes_out=0 if link is None else link.bytes_down,
                address=visit.address,
            )

    def drain(self, deadline_s: int | None, alternatives: tuple[str, ...]) -> None:
        """Take nothing new; close what is left after `deadline_s`, None is the configured time."""
        seconds = self.config.drain_s if deadline_s is None else deadline_s
        alternatives = alternatives or self.others()
        self.draining = self._traffic.draining = True
        for taken, listener, _, _ in self._visitors:
            if taken.endpoint.kind == "systemd":
                listener.pause()  # the next process finds them in the queue; without one nobody would
        if self._traffic.reach.ahead is not None:
            self._traffic.reach.ahead.rest()
        self._rows.drain(alternatives, seconds * 1000)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = self._reactor.callLater(seconds, self._traffic.close_all)
        self._log.info("draining", event="proxy.draining", open=len(self._traffic.visits))

    def undrain(self) -> None:
        """Take visitors and agents again."""
        self.draining = self._traffic.draining = False
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._rows.undrain()
        if self._traffic.reach.ahead is not None:
            self._traffic.reach.ahead.go_on()
        for _, listener, _, _ in self._visitors:
            listener.resume()


class _Fed(Factory):
    """Builds one protocol and feeds it what somebody else has read."""

    noisy = False

    def __init__(self, inner: IProtocolFactory, peer: str) -> None:
        self._inner = inner
        self._peer = peer
        self._built: IProtocol | None = None

    def buildProtocol(self, addr: IAddress | None) -> IProtocol | None:  # type: ignore[override]
        """Give the inner factory's protocol, or None if it has no place."""
        kind = IPv6Address if ":" in self._peer else IPv4Address
        self._built = self._inner.buildProtocol(kind("TCP", self._peer, 0))
        return self._built

    def feed(self, first: bytes) -> None:
        """Hand over the first bytes."""
        if self._built is not None:
            self._built.dataReceived(first)


async def _all(waiting: list[Deferred[Any]]) -> None:
    for one in waiting:
        await one


def _host(port: IListeningPort) -> str:
    where = port.getHost()
    host, number = getattr(where, "host", "?"), getattr(where, "port", 0)
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
