"""The control listeners of one daemon: a Unix socket, TCP or TLS ports, and sites for those who open their own.

::

    control = ControlService(reactor, "proxy", config.control, home, table, metrics, health.reasons)
    agents = control.site("agents", frozenset({"agent", "owner"}), paths=("/agent",), rules=AGENTS, ...)

Started, it leaves two files in the run folder: NAME.sock, on which our own user and root are admin, and NAME.token,
the cookie for everything that has to come by TCP; both are new at each start and private.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, cast

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.web.resource import IResource

from layer8.config.endpoint import UNIX_PATH, is_loopback, quote
from layer8.config.endpoint import server as read_endpoint
from layer8.config.sections import ControlConfig
from layer8.control.access import EVERYTHING, effective
from layer8.control.conversation import NOBODY, Conversation, Counts, Known
from layer8.control.errors import RateLimited
from layer8.control.http import (
    OPEN_TIME,
    Page,
    Refusal,
    Request,
    Site,
    Watchdog,
    health_page,
    metrics_page,
    ready_page,
)
from layer8.control.jsonrpc import SUBPROTOCOL
from layer8.control.keyring import ADMIN, Keyring, peer_is_us
from layer8.control.limits import SERVER, Rules
from layer8.control.metrics import Family, Metrics
from layer8.control.table import Table
from layer8.control.upgrade import UpgradePage
from layer8.control.websocket import Owner, Pulse
from layer8.core.errors import ConfigError, Unavailable
from layer8.crypto.keyfile import make_private_folder, write_private
from layer8.crypto.x509 import Identity
from layer8.net.factory import Places
from layer8.net.listen import Sockets, serve
from layer8.net.tls import TlsServer, peer_pin

CONNECTIONS = 256
"""Control connections of one listener."""

PER_SOURCE = 16
"""Of these, from one /24 or /56."""

FAREWELL = 1.0
"""Seconds that peers have to answer our close when the service stops."""

OPTION = "--control"
_SOCKET = "socket"


def wall_clock() -> float:
    """Give the seconds since 1970, for dates that people and other processes see."""
    return datetime.now(UTC).timestamp()


@frozen
class _Kind:
    """What all connections of one site share."""

    name: str
    ceiling: frozenset[str]
    rules: Rules
    counts: Counts = field(factory=Counts)
    crowd: set[Conversation] = field(factory=set)


@define(eq=False)
class _Open:
    """A port that listens, what it says about itself, and who shows its certificate if it speaks TLS."""

    port: IListeningPort
    text: str
    tls: TlsServer | None = None


class Binding(Protocol):
    """Another way to the same table, with conversations of its own."""

    crowd: set[Conversation]

    def drain(self, draining: bool) -> None:
        """Take no new calls but `node.*` from those who come next, or take them again."""


class ControlService(Service):
    """See the module."""

    def __init__(
        self,
        reactor: Any,
        name: str,
        config: ControlConfig,
        home: Path,
        table: Table,
        metrics: Metrics,
        not_ready: Callable[[], Sequence[str]],
        *,
        identity: Callable[[], Identity] | None = None,
        certificates: dict[str, Known] | None = None,
        seconds: Callable[[], float] = monotonic,
        wall: Callable[[], float] = wall_clock,
    ) -> None:
        """Take the daemon's name, its section of the configuration, its state folder, and what there is to serve.

        `not_ready` gives the reasons that `/readyz` shows. `identity` is asked for a certificate if a listener speaks
        TLS. `certificates` are callers by the pin of their key.
        """
        self.name = name
        self.config = config
        self.table = table
        self.metrics = metrics
        self.not_ready = not_ready
        self.run = home / "run"
        self.pulse = Pulse(reactor, seconds)
        self.keyring = Keyring(home, seconds, wall, certificates)
        self.watchdog = Watchdog(reactor)
        self._reactor = reactor
        self._identity = identity
        self._kinds: list[_Kind] = []
        self._sites: list[tuple[_Kind, Site]] = []
        self._ports: dict[str, _Open] = {}
        self._site: Site | None = None
        self._pages: dict[str, Page] = {}
        self._files: list[Path] = []
        self._draining = False
        self.given: Sockets | None = None
        """Listening sockets that another process has opened for us."""
        self.beside: list[Binding] = []

    @property
    def socket_path(self) -> Path:
        """Where the Unix socket is."""
        return self.run / f"{self.name}.sock"

    @property
    def cookie_path(self) -> Path:
        """Where the cookie is."""
        return self.run / f"{self.name}.token"

    @property
    def listening(self) -> tuple[str, ...]:
        """What listens, as endpoint strings with the ports that were really taken."""
        return tuple(_told(open_) for open_ in self._ports.values())

    @property
    def port(self) -> int:
        """The port of the first TCP or TLS listener, 0 if there is none."""
        for open_ in self._ports.values():
            port = getattr(open_.port.getHost(), "port", None)
            if port is not None:
                return int(port)
        return 0

    def site(
        self,
        kind: str,
        ceiling: frozenset[str] = EVERYTHING,
        *,
        paths: Iterable[str] = ("/ws",),
        rules: Rules = SERVER,
        subprotocol: str | None = SUBPROTOCOL,
        connections: int = CONNECTIONS,
        per_source: int = PER_SOURCE,
        names: Collection[str] | None = None,
        open_time: float = OPEN_TIME,
        pages: bool = False,
        owner: Callable[[Request], Owner] | None = None,
    ) -> Site:
        """Make a factory that speaks control over whatever transport it is given, adopted sockets included.

        `kind` is a word for metrics. Nobody may do more than `ceiling` there. `names` are the host names it answers
        to besides loopback and addresses; None for all, which a public listener without cookies can afford. `pages`
        adds health, readiness and metrics. `owner` makes another conversation than our own speak over the sockets.
        """
        shared = _Kind(kind, ceiling, rules)
        site = Site(self._reactor, names, Places(connections, per_source), open_time)
        speaks = owner or (lambda request: self._converse(shared, request))
        page = UpgradePage(self.pulse, rules.message, speaks, subprotocol)
        for path in paths:
            site.hang(path, page.page())
        if pages:
            site.hang("/healthz", health_page(self.watchdog))
            site.hang("/readyz", ready_page(self.not_ready))
            site.hang("/metrics", metrics_page(self.metrics.render, self._may_read_metrics))
        self._sites.append((shared, site))
        return site

    def hang(self, path: str, resource: IResource, methods: Iterable[bytes], *, tree: bool = False) -> None:
        """Add somebody else's page to the daemon's own listeners, for `methods`; with `tree` for all below it too."""
        self._pages[path] = Page(resource, frozenset(methods), tree)
        if self._site is not None:
            self._site.hang(path, self._pages[path])

    def startService(self) -> None:
        """Open everything; raises ConfigError or Unavailable, with nothing left open."""
        Service.startService(self)
        try:
            self._start()
        except BaseException:
            self.running = 0
            self._close()
            raise

    def stopService(self) -> Deferred[None]:
        """Close everything; fires when the ports are closed and the peers have taken leave, or had FAREWELL seconds."""
        Service.stopService(self)
        leaving: list[Deferred[None]] = []
        for conversation in self.conversations():
            left: Deferred[None] = Deferred()
            conversation.when_lost(partial(left.callback, None))
            leaving.append(left)
        closing = self._close()
        farewell: Deferred[Any] = DeferredList(leaving)
        farewell.addTimeout(FAREWELL, self._reactor)
        ended: Deferred[Any] = DeferredList([closing, farewell], consumeErrors=True)
        return ended.addCallback(lambda _: None)

    def prepare(self, config: ControlConfig) -> Callable[[bool], None]:
        """Make ready for another configuration: what it adds is open when this returns.

        Call the function given back, once: with True the new configuration counts from then on and what it lacks is
        closed, with False everything is as before. Named tokens and certificates are read again too.
        Raises ConfigError or Unavailable, and then nothing has changed.
        """
        assert self._site is not None
        wanted = _wanted(config)
        tokens = self.keyring.read()
        identity = self._identity() if self._identity is not None and self._speaks_tls(wanted) else None
        fresh: dict[str, _Open] = {}
        try:
            for text in wanted:
                if text not in self._ports:
                    fresh[text] = self._listen(text, self._site)
        except BaseException:
            _stop(fresh.values())
            raise

        def settle(keep: bool) -> None:
            if not keep:
                _stop(fresh.values())
                return
            _stop(open_ for text, open_ in self._ports.items() if text not in wanted)
            self._ports = {text: fresh.get(text) or self._ports[text] for text in wanted}
            for open_ in self._ports.values():
                if open_.tls is not None and identity is not None and open_.tls.identity.pin != identity.pin:
                    open_.tls.replace(identity)
            if self._site is not None:
                self._site.names = config.names
            self.keyring.tokens = tokens
            self.config = config

        return settle

    async def lend(self) -> list[tuple[str, str, socket.socket]]:
        """Give our listening TCP sockets to another process, and leave it our names in the file system."""
        named = [text for text, open_ in self._ports.items() if not _has_port(open_)]
        await _stop([self._ports.pop(text) for text in named])
        files, self._files = self._files, []
        for path in files:
            path.unlink(missing_ok=True)
        return [(OPTION, text, open_.port.socket) for text, open_ in self._ports.items()]  # type: ignore[attr-defined]

    def take_back(self) -> None:
        """Go on with everything: the other process has not come."""
        assert self._site is not None
        self._write_cookie()
        for text in _wanted(self.config):
            if text not in self._ports:
                self._ports[text] = self._listen(text, self._site)

    def accept_no_more(self) -> None:
        """Leave those who come to another process; who is here stays."""
        ports, self._ports = self._ports, {}
        _stop(ports.values())

    def set_draining(self, draining: bool) -> None:
        """Take no new calls but `node.*` on any connection, or take them again."""
        self._draining = draining
        for binding in self.beside:
            binding.drain(draining)
        for conversation in self.conversations():
            conversation.drain(draining)

    def conversations(self) -> list[Conversation]:
        """Give every connection that is open."""
        crowds = [kind.crowd for kind, _ in self._sites] + [binding.crowd for binding in self.beside]
        return [conversation for crowd in crowds for conversation in crowd]

    def families(self) -> Iterable[Family]:
        """Count connections and calls by kind of listener."""
        rows = self._sites
        yield Family(
            "layer8_control_connections",
            "Control connections that are open.",
            "gauge",
            _summed((kind.name, len(kind.crowd)) for kind, _ in rows),
            ("listener",),
        )
        for name, meaning, values in (
            ("opened", "Control connections that were opened.", ((kind.name, kind.counts.opened) for kind, _ in rows)),
            ("calls", "Calls that were run.", ((kind.name, kind.counts.calls) for kind, _ in rows)),
            ("failures", "Calls that had an error for an answer.", ((k.name, k.counts.failures) for k, _ in rows)),
            ("notifications", "Notifications sent.", ((kind.name, kind.counts.notifications) for kind, _ in rows)),
            ("requests", "HTTP requests.", ((kind.name, site.stats.requests) for kind, site in rows)),
            ("refused", "HTTP requests refused.", ((kind.name, site.stats.refused) for kind, site in rows)),
            ("turned_away", "Connections over a cap.", ((kind.name, site.places.refused) for kind, site in rows)),
        ):
            yield Family(f"layer8_control_{name}_total", meaning, "counter", _summed(values), ("listener",))

    def who(self, request: Request) -> Known:
        """Find out who sends a request, by uid, certificate or token; raises Refusal for a wrong proof."""
        transport: Any = request.channel.transport
        address = _address(request)
        if address is None and not request.isSecure():
            if not peer_is_us(transport.socket):
                raise Refusal(403, "this socket is its owner's")
            return Known("local", ADMIN)
        if request.isSecure() and self.keyring.knows_certificates:
            known = self.keyring.by_certificate(peer_pin(transport.getHandle()))
            if known is not None:
                return known
        token = request.bearer()
        if token is None:
            return NOBODY
        try:
            known = self.keyring.by_token(token, address)
        except RateLimited as wait:
            seconds = b"%d" % (wait.data["retry_after_ms"] // 1000 + 1)
            raise Refusal(429, "too many wrong tokens", (b"Retry-After", seconds)) from None
        if known is None:
            raise Refusal(401, "this token is not known", (b"WWW-Authenticate", b"Bearer"))
        return known

    def _converse(self, kind: _Kind, request: Request) -> Conversation:
        """Make the conversation for a request that asks for a WebSocket."""
        address = _address(request)
        conversation = Conversation(
            pulse=self.pulse,
            rules=kind.rules,
            table=self.table,
            who=self.who(request),
            ceiling=kind.ceiling,
            private=request.isSecure() or address is None or is_loopback(address),
            address=address,
            counts=kind.counts,
            crowd=kind.crowd,
        )
        if self._draining:
            conversation.on_open = lambda: conversation.drain(True)
        return conversation

    def _may_read_metrics(self, request: Request) -> bool:
        address = _address(request)
        if self.config.metrics_open and (address is None or is_loopback(address)):
            return True
        return "read" in effective(self.who(request).roles, EVERYTHING)

    def _start(self) -> None:
        make_private_folder(self.run)
        self.watchdog.start()
        self.metrics.add(self)
        self._write_cookie()
        self._site = self.site("local", pages=True, names=self.config.names)
        for path, page in self._pages.items():
            self._site.hang(path, page)
        for text in _wanted(self.config):
            self._ports[text] = self._listen(text, self._site)

    def _write_cookie(self) -> None:
        if _wanted(self.config):
            write_private(self.cookie_path, self.keyring.cookie.encode() + b"\n")
            self._files.append(self.cookie_path)

    def _speaks_tls(self, texts: Iterable[str]) -> bool:
        return any(text != _SOCKET and read_endpoint(text).tls for text in texts)

    def _listen(self, text: str, site: Site) -> _Open:
        """Open one endpoint; C3: beyond this machine only with TLS."""
        if text == _SOCKET:
            return self._listen_unix(self.socket_path, site)
        endpoint = read_endpoint(text)
        if endpoint.kind == "unix":
            return self._listen_unix(Path(endpoint.words["address"]), site)
        if not (endpoint.tls or endpoint.loopback):
            raise ConfigError(f"control.listen: {text} would speak plain text beyond this machine; write tls:")
        creator = self._creator(text) if endpoint.tls else None
        (port,) = serve(self._reactor, text, OPTION, site, self.given, creator)
        return _Open(port, "tcp" if creator is None else "tls", creator)

    def _creator(self, text: str) -> TlsServer:
        if self._identity is None:
            raise ConfigError(f"control.listen: {text} needs a certificate; run layer8 init")
        return TlsServer(self._identity(), alpn=("http/1.1",), ask=self.keyring.knows_certificates)

    def _listen_unix(self, path: Path, site: Site) -> _Open:
        """Open a Unix socket, in place of one that a dead process left."""
        if len(os.fsencode(path)) > UNIX_PATH:
            raise ConfigError(f"{path}: the path of a Unix socket has at most {UNIX_PATH} bytes; shorten LAYER8_HOME")
        if path.is_socket():
            if _answers(path):
                raise Unavailable(f"{path}: another {self.name} is running with this state folder")
            path.unlink()
        try:
            port = self._reactor.listenUNIX(os.fspath(path), site, mode=0o600, wantPID=False)
        except CannotListenError as error:
            raise Unavailable(f"{path}: {os.strerror(error.socketError.errno or 0).lower()}") from None
        return _Open(port, f"unix:{path}")

    def _close(self) -> Deferred[None]:
        for conversation in self.conversations():
            conversation.close("going_away")
        ports, self._ports = self._ports, {}
        closing = _stop(ports.values())
        files, self._files = self._files, []
        for path in files:
            path.unlink(missing_ok=True)
        self.watchdog.stop()
        self.metrics.remove(self)
        self._sites = [(kind, site) for kind, site in self._sites if site is not self._site]
        self._site = None
        return closing


def _stop(ports: Iterable[_Open]) -> Deferred[None]:
    """Close ports; fires when they are closed."""
    return DeferredList([maybeDeferred(open_.port.stopListening) for open_ in ports]).addCallback(lambda _: None)


def _has_port(open_: _Open) -> bool:
    return hasattr(open_.port.getHost(), "port")


def _wanted(config: ControlConfig) -> tuple[str, ...]:
    """Give what has to listen, once each."""
    return tuple(dict.fromkeys(((_SOCKET,) if config.socket else ()) + config.listen))


def _answers(path: Path) -> bool:
    """Say whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) not in (errno.ECONNREFUSED, errno.ENOENT)


def _address(request: Request) -> str | None:
    """Give the peer's address, None on a Unix socket."""
    return cast("str | None", getattr(request.channel.getPeer(), "host", None))


def _told(open_: _Open) -> str:
    address: Any = open_.port.getHost()
    port = getattr(address, "port", None)
    return open_.text if port is None else f"{open_.text}:{port}:interface={quote(address.host)}"


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[tuple[str, ...], float]:
    """Add up the counts of sites of the same kind."""
    totals: dict[tuple[str, ...], float] = {}
    for name, count in pairs:
        totals[(name,)] = totals.get((name,), 0) + count
    return totals
