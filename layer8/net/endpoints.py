"""Listening on an endpoint string, now or with a reason: what every stream listener of a daemon goes through.

* A port that is taken is an `Unavailable` that names the option to change, raised before anything else happens.
* `tls:` speaks TLS with the creator given; plain text leaves this machine only where the caller says so.
* 4,096 connections may wait to be accepted: Twisted's 50 drops SYNs at 10,000 connections a second.
* A Unix socket is its owner's alone (0600), where Twisted's strings say 0666.
"""

from __future__ import annotations

from typing import Any

from attrs import define, evolve, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory

from layer8.config.endpoint import Endpoint, quote, server
from layer8.core.errors import ConfigError
from layer8.net.factory import CountingFactory, Places
from layer8.net.listen import now
from layer8.net.process import listening
from layer8.net.tls import TlsServer

BACKLOG = 4096  # connections; the kernel's own limit, net.core.somaxconn, is 4096 too
UNIX_MODE = "600"


@define(eq=False)
class Listening:
    """A port that is open, and the string it was asked for with."""

    port: IListeningPort
    endpoint: Endpoint

    @property
    def number(self) -> int:
        """The port number that was really taken, 0 for a Unix socket."""
        return int(getattr(self.port.getHost(), "port", 0))

    @property
    def text(self) -> str:
        """The endpoint string with the port that was really taken."""
        where: Any = self.port.getHost()
        if not self.number:
            return f"unix:{quote(self.endpoint.words.get('address', ''))}"
        kind = "tls" if self.endpoint.tls else "tcp"
        return f"{kind}:{self.number}:interface={quote(where.host)}"

    def stop(self) -> Deferred[None]:
        """Accept nothing more; fires when the port is free. Connections go on."""
        return maybeDeferred(self.port.stopListening).addCallback(lambda _: None)


def listen(
    reactor: Any,
    text: str,
    factory: IProtocolFactory,
    option: str,
    *,
    tls: TlsServer | None = None,
    plain: bool = False,
    places: Places | None = None,
) -> Listening:
    """Listen on an endpoint string that `option` gave; connections are capped by `places`, before TLS.

    `plain` allows plain text beyond this machine: for what visitors speak, and for listeners that are public by name.
    Raises `ConfigError` for what cannot work, `Unavailable` for a port that cannot be had.
    """
    endpoint = server(text)
    local = endpoint.loopback or endpoint.words.get("domain") == "UNIX"
    if endpoint.kind == "tls" or (endpoint.kind == "systemd" and not (plain or local)):
        if tls is None:
            raise ConfigError(f"{option}: {text} needs a certificate; run layer8 init")
        factory = TLSMemoryBIOFactory(tls, False, factory)
    elif not (plain or local or endpoint.kind == "ssl"):
        raise ConfigError(f"{option}: {text} would speak plain text beyond this machine; write tls:")
    if places is not None:
        factory = CountingFactory(factory, places)
    with listening(option, text):
        return Listening(now(serverFromString(reactor, _usual(endpoint).twisted()).listen(factory)), endpoint)


@define(eq=False)
class ListenService(Service):
    """Listens while it runs: `listen` with the arguments kept, as a part of a daemon."""

    _reactor: Any
    _text: str
    _factory: IProtocolFactory
    _option: str
    _tls: TlsServer | None = None
    _plain: bool = False
    _places: Places | None = None
    listening: Listening | None = field(default=None, init=False)

    def startService(self) -> None:
        """Open the port now, or raise why not."""
        self.listening = listen(
            self._reactor,
            self._text,
            self._factory,
            self._option,
            tls=self._tls,
            plain=self._plain,
            places=self._places,
        )
        Service.startService(self)

    def stopService(self) -> Deferred[None]:
        """Close the port; fires when it is free."""
        Service.stopService(self)
        open_, self.listening = self.listening, None
        return maybeDeferred(open_.stop if open_ is not None else lambda: None)


def _usual(endpoint: Endpoint) -> Endpoint:
    """Fill in what the string leaves open."""
    words = dict(endpoint.words)
    if endpoint.kind != "systemd":
        words.setdefault("backlog", str(BACKLOG))
    if endpoint.kind == "unix":
        words.setdefault("mode", UNIX_MODE)
    return evolve(endpoint, words=words)
