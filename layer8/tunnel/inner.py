"""An opened request on its way through twisted.web: as if it had come over a connection of its own, from nobody.

A resource sees an ordinary request: method, path, fields, content, in `request.content`. In the place of an address is
NOBODY, and `L8-Encapsulated: ?1` says how it has come; `request.l8` is the exchange.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import Site
from zope.interface import implementer

from layer8.tunnel.bhttp import Fields
from layer8.tunnel.driving import Driven
from layer8.tunnel.gateway_session import Call
from layer8.tunnel.target import ENCAPSULATED

PORTS: Final = {"https": 443, "http": 80}


@implementer(IAddress)
class Nobody:
    """Where a request through the tunnel comes from."""

    def __repr__(self) -> str:
        """Say so."""
        return "nobody"


NOBODY: Final = Nobody()


class Inner:
    """One request: to twisted.web the channel that it has come by, to the exchange the backend's work."""

    log = Logger()
    transport = None  # there is none
    factory = None  # a Site would log the request with its path

    def __init__(self, call: Call, driven: Driven, site: Site, reactor: Any) -> None:
        """Make the request; its content follows."""
        self.site = site
        self._call = call
        self._driven = driven
        self._reactor = reactor
        self._producer: Any = None
        self._pull: IDelayedCall | None = None
        self._streaming = self._resting = self._over = self._dispatched = False
        request: Any = site.requestFactory(self, False)
        self._request = request
        request.l8 = driven
        target = call.target
        for name, value in call.fields:
            request.requestHeaders.addRawHeader(name, value)
        request.requestHeaders.setRawHeaders(b"host", [target.authority.encode()])
        request.requestHeaders.setRawHeaders(ENCAPSULATED, [b"?1"])
        if call.length is not None and (call.length or call.request.method not in (b"GET", b"HEAD")):
            request.requestHeaders.setRawHeaders(b"content-length", [b"%d" % call.length])
        request.gotLength(call.length)
        request.parseCookies()

    # What the exchange says.

    def body(self, data: bytes) -> None:
        """Take a piece of the content."""
        self._request.handleContentChunk(data)

    def whole(self, trailers: Fields) -> None:
        """Take the end: only now a resource is asked."""
        self._dispatched = True
        target = self._call.target
        path = target.path.encode() + (b"?" + target.query.encode() if target.query else b"")
        self._request.requestReceived(self._call.request.method, path, b"HTTP/2")  # HTTP/1.1 would be framed

    def broken(self) -> None:
        """Drop it: no resource has been asked."""
        self.leave()

    def leave(self) -> None:
        """Tell the resource that nobody waits."""
        if self._over:
            return
        self._over = True
        self.unregisterProducer()
        self._request.connectionLost(Failure(ConnectionDone()))

    def rest(self, wanted: bool) -> None:
        """Let a producer rest."""
        if wanted == self._resting:
            return
        self._resting = wanted
        if self._producer is None:
            return
        if not self._streaming:
            self._go_on()
        elif wanted:
            self._producer.pauseProducing()
        else:
            self._producer.resumeProducing()

    # What twisted.web says.

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Take the head of the answer."""
        fields = tuple((name.lower(), value) for name, values in headers.getAllRawHeaders() for value in values)
        said = headers.getRawHeaders(b"content-length") or []
        length = int(said[0]) if len(said) == 1 and said[0].isdigit() else None
        self._driven.respond(int(code), fields, length)

    def write(self, data: bytes) -> None:
        """Take a piece of it."""
        if not self._over:
            self._driven.write(data)

    def writeSequence(self, pieces: list[bytes]) -> None:
        """Take pieces."""
        self.write(b"".join(pieces))

    def requestDone(self, request: object) -> None:
        """Take its end."""
        if not self._over:
            self._over = True
            self._driven.finish()

    def loseConnection(self) -> None:
        """Take that the resource gives up."""
        if not self._over:
            self._over = True
            self._driven.failed()

    abortConnection = loseConnection

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Take that a form cannot be read."""
        if not self._over:
            self._over = True
            self._driven.respond(400, (), 0)
            self._driven.finish()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take who writes, if it likes to be told when."""
        if self._producer is not None:
            raise RuntimeError("a second producer")
        self._producer, self._streaming = producer, streaming
        if not streaming:
            self._go_on()
        elif self._resting:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Take that nobody needs to be told."""
        self._producer = None
        if self._pull is not None and self._pull.active():
            self._pull.cancel()
        self._pull = None

    def _go_on(self) -> None:
        """Ask a producer that waits for it, once for each turn."""
        if self._pull is None and not self._resting:
            self._pull = self._reactor.callLater(0, self._ask)

    def _ask(self) -> None:
        self._pull = None
        if self._producer is None:
            return
        try:
            self._producer.resumeProducing()
        except Exception:
            self.log.failure("a resource failed", event="gateway.bug")
            self.loseConnection()
            return
        if self._producer is not None:
            self._go_on()

    def getPeer(self) -> Nobody:
        """Give nobody's address."""
        return NOBODY

    def getHost(self) -> IPv4Address:
        """Give the port that the authority stands for, by which resources make links."""
        target = self._call.target
        port = target.authority.rpartition(":")[2]
        return IPv4Address("TCP", "127.0.0.1", int(port) if port.isdigit() else PORTS[target.scheme])

    def isSecure(self) -> bool:
        """Say whether the page asked by https."""
        return self._call.target.scheme == "https"
