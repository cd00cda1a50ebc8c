"""Connections along the endpoint strings that `config.endpoint.way` reads, as Twisted endpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.config.endpoint import TOR_PROXY, Endpoint, way
from layer8.core.errors import Layer8Error, TimedOut, Unavailable
from layer8.net.tls import Named, TlsClient
from layer8.net.via import Conversation, conversation

DIAL_TIME: Final = 10  # seconds for a connection, if the string says nothing else
VIA_TIME: Final = 30.0  # seconds for a proxy's answer: it builds a circuit meanwhile


def endpoint(reactor: Any, text: str) -> IStreamClientEndpoint:
    """Give what dials `text`; raises `ConfigError`, also for an authority's file that cannot be read."""
    found = way(text)
    words = found.words
    patience = int(words.get("timeout", DIAL_TIME))
    dialled: IStreamClientEndpoint
    if found.kind == "unix":
        dialled = UNIXClientEndpoint(reactor, words["path"], patience)
    elif found.kind in ("tor", "socks5"):
        host, _, port = words.get("proxy", TOR_PROXY).rpartition(":")
        dialled = _Socks(_tcp(reactor, host, int(port), patience), reactor, words["host"], found.port)
    else:
        dialled = _tcp(reactor, words["host"], found.port, patience)
    expected = _named(found)
    return dialled if expected is None else wrapClientTLS(TlsClient(expected, ("http/1.1",)), dialled)


def connector(reactor: Any, text: str) -> Callable[[IProtocolFactory], Deferred[IProtocol]]:
    """Give what a `http_client.Pool` connects with; raises `ConfigError`."""
    return endpoint(reactor, text).connect


def _named(found: Endpoint) -> Named | None:
    words = found.words
    if found.kind == "tls":
        return Named(words.get("name", words["host"]), Path(words["ca"]) if "ca" in words else None)
    return Named(words["tls"]) if words.get("tls") else None


def _tcp(reactor: Any, host: str, port: int, patience: int) -> IStreamClientEndpoint:
    host = host.strip("[]")
    if host.count(".") == 3 and host.replace(".", "").isdigit():
        return TCP4ClientEndpoint(reactor, host, port, patience)
    return HostnameEndpoint(reactor, host, port, patience)


@implementer(IStreamClientEndpoint)
@define(eq=False)
class _Socks:
    """An endpoint behind a SOCKS5 proxy."""

    _proxy: IStreamClientEndpoint
    _clock: Any
    _host: str
    _port: int

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Ask the proxy for a connection; fires with the protocol when it stands."""
        talk = _Talk(conversation("socks5", self._host, self._port), protocolFactory)
        dial = self._proxy.connect(Factory.forProtocol(lambda: talk))
        done: Deferred[IProtocol] = dial.addCallback(lambda _: talk.begin(self._clock))
        return done


class _Talk(Protocol):
    """The talk with a proxy; then the connection is its factory's."""

    transport: Any

    def __init__(self, words: Conversation, factory: IProtocolFactory) -> None:
        """Speak `words`, then let `factory` make the protocol."""
        self._conversation = words
        self._factory = factory
        self._done: Deferred[IProtocol] | None = None
        self._timer: IDelayedCall | None = None

    def begin(self, clock: Any) -> Deferred[IProtocol]:
        """Ask."""
        self._done = Deferred(lambda _: self._fail(None))
        self._timer = clock.callLater(VIA_TIME, self._fail, TimedOut("the proxy on the way does not answer"))
        self.transport.write(self._conversation.opening())
        return self._done

    def dataReceived(self, data: bytes) -> None:
        """Hear the proxy."""
        if self._done is None:
            return
        try:
            answer = self._conversation.received(data)
        except Layer8Error as error:
            self._fail(error)
            return
        if answer is None:
            self._stand()
        elif answer:
            self.transport.write(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the end."""
        self._fail(Unavailable("the proxy on the way closed the connection"))

    def _stand(self) -> None:
        transport = self.transport
        successor = self._factory.buildProtocol(transport.getPeer())
        done = self._finish()
        if successor is None or done is None:
            transport.abortConnection()
            return
        transport.protocol = successor
        successor.makeConnection(transport)
        done.callback(successor)

    def _fail(self, error: Layer8Error | None) -> None:
        done = self._finish()
        if done is None:
            return
        transport = self.transport
        transport.abortConnection()
        if error is not None:
            done.errback(error)

    def _finish(self) -> Deferred[IProtocol] | None:
        done, self._done = self._done, None
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        return done
