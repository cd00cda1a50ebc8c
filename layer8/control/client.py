"""The dialling end of a control connection, for the command line and for an agent.

::

    client = await connect(reactor, "unix:/home/ann/.local/state/layer8/run/proxy.sock")
    status = await client.call("node.status")
    client.notified = lambda method, params: ...
    client.close()

URLs are `unix:/path`, `ws://host:port/path` and `wss://host:port/path`. A `wss:` server is known by `pin` (its key's
hash; neither name nor authority needed) or by an authority that vouches for its name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.config.endpoint import is_loopback
from layer8.control.conversation import NOBODY, PUBLIC, Conversation, Known, ignore
from layer8.control.http import OPEN_TIME
from layer8.control.jsonrpc import SUBPROTOCOL
from layer8.control.limits import CLIENT, MESSAGE
from layer8.control.table import Table
from layer8.control.websocket import ClientSocket, ConnectingRequest, Pulse
from layer8.core.errors import ConfigError, Layer8Error, Refused, RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.x509 import Identity, parse_pins
from layer8.net.tls import Named, Pinned, TlsClient, WrongPeer

Client = Conversation
"""What `connect` gives: `call`, `notify`, `notified`, `when_lost`, `close`, `reason`."""

Dial = Callable[[str, int], Awaitable[socket.socket]]
"""Opens a connected stream socket to a host and port in its own way, as through a proxy; the client takes it over."""

Notified = Callable[[str, dict[str, Any]], None]


@frozen
class Url:
    """Where a control listener is."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str, path: str) -> Url:
        """Read a URL; `path` is asked for if it names none. Raises ConfigError."""
        if text.startswith("unix:"):
            where = text.removeprefix("unix:")
            if not where.startswith("/"):
                raise ConfigError(f"{text!r}: write unix: and an absolute path")
            return cls("unix", where, 0, path)
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"{text!r}: {error}") from None
        if parts.scheme not in ("ws", "wss") or not host or parts.query or parts.fragment or parts.username:
            raise ConfigError(f"{text!r}: write unix:/path, ws://host:port/path or wss://host:port/path")
        default = 443 if parts.scheme == "wss" else 80
        asked = path if parts.path in ("", "/") else parts.path
        return cls(parts.scheme, host, default if port is None else port, asked)

    @property
    def private(self) -> bool:
        """Whether nobody on the way can read along."""
        return self.scheme != "ws" or is_loopback(self.host)


async def connect(
    reactor: Any,
    url: str,
    *,
    token: str | None = None,
    pin: str | None = None,
    trust: Path | None = None,
    identity: Identity | None = None,
    subprotocol: str | None = SUBPROTOCOL,
    path: str = "/ws",
    dial: Dial | None = None,
    notified: Notified | None = None,
    table: Table | None = None,
    roles: frozenset[str] = frozenset(),
    message: int = MESSAGE,
    timeout: float = OPEN_TIME,
    pulse: Pulse | None = None,
) -> Client:
    """Open a control connection and give it when messages can be sent.

    `token` is shown in the upgrade, `identity` to a server that asks for a certificate. `path` is asked for if the
    URL names none. With `table` the server may call its methods in `roles`. `message` caps what is sent, in bytes; what
    comes may be twice as long. `timeout` is for all of it, in seconds.
    Raises ConfigError for arguments that cannot work, else Unavailable, Refused, TimedOut or RemoteProtocolError.
    """
    where = Url.parse(url, path)
    if token is not None and not where.private:
        raise ConfigError(f"{url}: a token is not sent in the clear; use wss:")
    client = Conversation(
        pulse=pulse or Pulse(reactor),
        rules=evolve(CLIENT, message=2 * message, answer=message, serves=table is not None),
        table=table,
        who=Known("server", roles) if roles else NOBODY,
        ceiling=roles or PUBLIC,
        private=where.private,
        notified=notified or ignore,
    )
    request = ConnectingRequest(
        host=f"[{where.host}]" if ":" in where.host else "localhost" if where.scheme == "unix" else where.host,
        port=where.port or 80,
        resource=where.path,
        headers={} if token is None else {"Authorization": f"Bearer {token}"},
        protocols=[] if subprotocol is None else [subprotocol],
    )
    end = ClientSocket(client, client.pulse, message, request)
    ready: Deferred[None] = Deferred()
    client.on_open = lambda: _fire(ready)
    client.when_lost(lambda: _fail(ready, _why(url, end)))
    factory = _factory(where, end, pin, trust, identity)
    attempt = Deferred.fromCoroutine(_open(reactor, where, factory, dial, ready))
    attempt.addTimeout(timeout, client.pulse.clock)
    try:
        await attempt
        if end.websocket_protocol_in_use != subprotocol:
            raise RemoteProtocolError(f"{url}: the server does not speak {subprotocol}")
    except BaseException as error:
        if end.transport is not None:
            end.abort("going_away")
        if isinstance(error, TimeoutError):
            raise TimedOut(f"{url}: no answer within {timeout:g} s") from None
        if isinstance(error, ConnectError | DNSLookupError | OSError):
            raise Unavailable(f"{url}: cannot connect: {_plain(error)}") from None
        raise
    return client


async def _open(reactor: Any, where: Url, factory: IProtocolFactory, dial: Dial | None, ready: Deferred[None]) -> None:
    """Connect, and wait for the upgrade."""
    if dial is not None:
        taken = await dial(where.host, where.port)
        with taken:  # the reactor takes a duplicate
            taken.setblocking(False)
            reactor.adoptStreamConnection(taken.fileno(), taken.family, factory)
    elif where.scheme == "unix":
        await UNIXClientEndpoint(reactor, where.host).connect(factory)
    else:
        await HostnameEndpoint(reactor, where.host, where.port).connect(factory)
    await ready


def _factory(
    where: Url, end: ClientSocket, pin: str | None, trust: Path | None, identity: Identity | None
) -> IProtocolFactory:
    """Make what the transport asks for its protocol, with TLS in between for `wss:`."""
    once = _Once(end)
    if where.scheme != "wss":
        return once
    expected = Named(where.host, trust) if pin is None else Pinned(parse_pins(pin))
    creator = TlsClient(expected, alpn=("http/1.1",), server_name=where.host, identity=identity)
    return TLSMemoryBIOFactory(creator, True, once)


@implementer(IProtocolFactory)
@frozen
class _Once:
    """A factory that has its one protocol ready."""

    end: ClientSocket

    def doStart(self) -> None:
        """Nothing is shared between connections."""

    def doStop(self) -> None:
        """Nothing is shared between connections."""

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:
        """Give the protocol."""
        return cast(IProtocol, self.end)


def _fire(ready: Deferred[None]) -> None:
    if not ready.called:
        ready.callback(None)


def _fail(ready: Deferred[None], error: Layer8Error) -> None:
    if not ready.called:
        ready.errback(Failure(error))


def _why(url: str, end: ClientSocket) -> Layer8Error:
    """Say why a connection was lost before it was open."""
    if isinstance(end.error, WrongPeer):
        return end.error
    words = end.http_status_line.split()
    code = words[1] if len(words) > 1 and words[1].isdigit() else ""
    if code == "401":
        return Refused(f"{url}: the server does not know this token")
    if code == "403":
        return Refused(f"{url}: the server does not answer under this name")
    if code not in ("", "101"):
        return Unavailable(f"{url}: the server answered {code[:3]}")
    return Unavailable(f"{url}: the connection was closed during the handshake")


def _plain(error: BaseException) -> str:
    """Give the system's words for why a connection cannot be made, in one line."""
    reason = getattr(error, "osError", None)
    if isinstance(error, DNSLookupError):
        return "the name is not known"
    if isinstance(reason, int):
        return os.strerror(reason).lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).split("\n")[0].lower()
