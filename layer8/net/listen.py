"""Listening sockets: opened by Twisted's endpoint strings, or by another process, for the pump or for a factory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from layer8.config.endpoint import Endpoint, is_loopback, server
from layer8.core.errors import Unavailable
from layer8.net.entries import BACKLOG, listening
from layer8.net.process import listening as one_line
from layer8.net.tls import TlsServer

FIRST_DESCRIPTOR = 3
"""Where descriptors begin that systemd has opened (sd_listen_fds(3))."""


@define(eq=False)
class Taken:
    """A listening socket that belongs to nobody's reactor, and how it was asked for.

    A `local` one is out of reach for other machines.
    """

    sock: socket.socket
    endpoint: Endpoint
    port: int
    asked: str = ""
    local: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Look once where it listens."""
        where = self.sock.getsockname()
        self.local = not isinstance(where, tuple) or is_loopback(where[0])

    @property
    def text(self) -> str:
        """Say where it listens, with the port that was really taken."""
        where = self.sock.getsockname()
        if not isinstance(where, tuple):
            return f"unix:{where}"
        return f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"


@define(eq=False)
class Sockets:
    """Listening sockets that another process has opened, by the option and the endpoint string that want them."""

    _kept: dict[tuple[str, str], list[socket.socket]] = field(factory=dict)

    def put(self, option: str, text: str, sock: socket.socket) -> None:
        """Keep a socket until it is taken."""
        self._kept.setdefault((option, text), []).append(sock)

    def take(self, option: str, text: str) -> list[socket.socket]:
        """Give the sockets for an endpoint; they are the taker's. None at all means that it has to be opened."""
        return self._kept.pop((option, text), [])

    def __iter__(self) -> Iterator[tuple[str, str, socket.socket]]:
        """Give what is still here."""
        return ((option, text, sock) for (option, text), socks in self._kept.items() for sock in socks)

    def close(self) -> None:
        """Close what nobody has taken."""
        for _, _, sock in self:
            sock.close()
        self._kept.clear()


def take(reactor: Any, text: str, option: str, *, defer: int = 0, given: Sockets | None = None) -> list[Taken]:
    """Listen on an endpoint string that the configuration has checked; raises `Unavailable` that names `option`.

    There may be several sockets if another process has opened them. `defer` is how many seconds the kernel keeps a
    connection until its first byte is there.
    """
    endpoint = server(text)
    socks = [] if given is None else given.take(option, text)
    if not socks:
        with one_line(option, text):
            socks = [_detached(now(serverFromString(reactor, endpoint.twisted()).listen(Factory())))]
    for sock in socks:
        listening(sock, defer=defer)
    return [Taken(sock, endpoint, number(sock), text) for sock in socks]


def serve(
    reactor: Any,
    text: str,
    option: str,
    factory: IProtocolFactory,
    given: Sockets | None = None,
    tls: TlsServer | None = None,
) -> list[IListeningPort]:
    """Let a factory serve an endpoint string, behind TLS with `tls`; raises `Unavailable` that names `option`.

    The configuration has checked where plain text may go. A port that stops leaves its connections alone.
    """
    endpoint = server(text)
    if tls is not None:
        factory = TLSMemoryBIOFactory(tls, False, factory)
    socks = [] if given is None else given.take(option, text)
    with one_line(option, text):
        if not socks:
            port = now(serverFromString(reactor, endpoint.twisted()).listen(factory))
            if endpoint.kind not in ("tcp", "tcp6", "tls") or not isinstance(port, tcp.Port):
                return [port]
            # A port that Twisted has opened itself shuts its socket down at the end, for all who have a duplicate.
            socks = [_detached(port)]
        for sock in socks:
            listening(sock)  # Twisted lets 50 wait, which drops SYNs at 10,000 connections a second
        return [adopt(reactor, sock, factory) for sock in socks]


def _detached(port: IListeningPort) -> socket.socket:
    """Take the socket of a port that has just been opened: somebody else accepts from here on."""
    port.stopReading()  # type: ignore[attr-defined]  # a tcp.Port
    held = port.socket  # type: ignore[attr-defined]
    return socket.socket(held.family, socket.SOCK_STREAM, 0, held.detach())


def adopt(reactor: Any, sock: socket.socket, factory: IProtocolFactory) -> IListeningPort:
    """Let a reactor listen on a socket."""
    sock.setblocking(False)
    with sock:  # the reactor takes a duplicate
        port: IListeningPort = reactor.adoptStreamPort(sock.fileno(), sock.family, factory)
    return port


def open_shared(text: str, option: str, count: int, environ: Mapping[str, str]) -> list[socket.socket]:
    """Open `count` sockets for processes that share an endpoint; raises `Unavailable` that names `option`.

    Of TCP each has a queue of its own, among which the kernel deals connections out (SO_REUSEPORT, socket(7)). What
    systemd has opened is one queue for all of them.
    """
    endpoint = server(text)
    with one_line(option, text):
        if endpoint.kind == "systemd":
            found = of_systemd(endpoint, environ)
            return more_of(found, count, further=False)
        family = socket.AF_INET6 if ":" in endpoint.interface else socket.AF_INET
        where = endpoint.interface
        backlog = int(endpoint.words.get("backlog", BACKLOG))
        port = endpoint.port
        opened: list[socket.socket] = []
        try:
            with _bound(family, where, port, shared=False) as first:
                port = number(first)  # free: with SO_REUSEPORT alone a second server would go unnoticed
            for _ in range(count):
                opened.append(_bound(family, where, port, shared=True))
            for sock in opened:
                sock.listen(backlog)
        except OSError:
            for sock in opened:
                sock.close()
            raise
        return opened


def more_of(socks: list[socket.socket], count: int, *, further: bool = True) -> list[socket.socket]:
    """Give `count` sockets or more where these listen: further queues if they share, else the same ones again."""
    made = list(socks)
    shares = further and socks[0].family != socket.AF_UNIX
    shares = shares and bool(socks[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    while len(made) < count:
        if not shares:
            # Not `socket.dup`, which would make it blocking, for the process too that accepts from it now.
            made.append(socket.socket(fileno=os.dup(socks[len(made) % len(socks)].fileno())))
            continue
        where = socks[0].getsockname()
        sock = _bound(socks[0].family, where[0], where[1], shared=True)
        sock.listen(BACKLOG)
        made.append(sock)
    return made


def _bound(family: int, where: str, port: int, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((where, port))
    except BaseException:
        sock.close()
        raise
    return sock


def of_systemd(endpoint: Endpoint, environ: Mapping[str, str]) -> list[socket.socket]:
    """Give every socket that systemd has opened under the endpoint's name, or the one at its index."""
    if "LISTEN_FDS" not in environ:
        environ = _born_with()
    count = int(environ.get("LISTEN_FDS", "0")) if environ.get("LISTEN_PID") == str(os.getpid()) else 0
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if "index" in endpoint.words:
        wanted = [int(endpoint.words["index"])]
    else:
        wanted = [place for place in range(count) if names[place : place + 1] == [endpoint.words["name"]]]
    found = [socket.socket(fileno=os.dup(FIRST_DESCRIPTOR + place)) for place in wanted if place < count]
    if not found:
        raise Unavailable(f"systemd has opened no socket for {endpoint.twisted()}")
    return found


def _born_with() -> dict[str, str]:
    """Give the environment that this process began with: Twisted takes what is systemd's out of the present one."""
    try:
        pairs = Path("/proc/self/environ").read_text(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def number(sock: socket.socket) -> int:
    """Give the port on which a socket listens, 0 for one that has none."""
    where = sock.getsockname()
    return where[1] if isinstance(where, tuple) else 0


def now(opening: Deferred[IListeningPort]) -> IListeningPort:
    """Give the port that a server endpoint opens at once, or raise why it cannot."""
    ports: list[IListeningPort] = []
    failures: list[BaseException] = []
    opening.addCallbacks(ports.append, lambda failure: failures.append(failure.value))
    if failures:
        raise failures[0]
    return ports[0]
