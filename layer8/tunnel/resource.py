"""A gateway in a twisted.web server: what comes sealed is opened and given to an ordinary resource.

    from layer8.tunnel.resource import L8Resource

    settings = {"authorities": ["shop.example"], "state": "/var/lib/shop", "require": ["/api"]}
    guarded = L8Resource(root, reactor=reactor, gateway="shop", **settings)
    endpoint.listen(guarded.site())

`Site(guarded)` works too, and then keeps whole requests, as twisted.web does; `site()` opens them as they come. Other
requests go to the resource as before, but for those to a path under `require`: 403. A resource is asked when the
request is whole, and nothing but `L8-Encapsulated: ?1` tells it how that came; a page cannot set that field.
"""

from __future__ import annotations

from typing import Any, Final, cast

from twisted.internet.interfaces import IDelayedCall
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from layer8.core.errors import Unavailable
from layer8.core.http1 import plain
from layer8.net.http_client import Pool
from layer8.tunnel.driving import Driven, Gate, Work
from layer8.tunnel.gateway import Gateway, Outcome
from layer8.tunnel.gateway_session import Call
from layer8.tunnel.gateway_sockets import Sockets, Wire
from layer8.tunnel.inner import NOBODY, Inner
from layer8.tunnel.joined import connector
from layer8.tunnel.keys import SET_TYPE
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH, SOCKET_PATH
from layer8.tunnel.target import ENCAPSULATED, OURS
from layer8.tunnel.wire import KEYS_TYPE

PIECE: Final = 64 * 1024  # bytes of a request that was kept, that are opened at a time
LINGER: Final = 2.0  # seconds, and
LINGER_BYTES: Final = 256 * 1024  # bytes, that a request may go on when its answer is complete

_GATEWAY = GATEWAY_PATH.encode().lstrip(b"/")
_KEYS = KEYS_PATH.encode().lstrip(b"/")
_SOCKET = SOCKET_PATH.encode().lstrip(b"/")


@implementer(IResource)
class L8Resource:
    """See the module; `settings` are those of `layer8.tunnel.settings.Settings`."""

    isLeaf = False

    def __init__(self, inner: IResource, *, reactor: Any, gateway: Gateway | str, **settings: Any) -> None:
        """Put a gateway before a resource: one that is open, or the name of one that the settings open.

        Raises `ConfigError` or `StorageError`. It keeps its keys from now on, until `close`.
        """
        self.gateway = gateway = Gateway.of(gateway, **settings)
        self.inner = inner
        self._reactor = reactor
        self._site = _Quiet(inner)  # type: ignore[no-untyped-call]
        self.gate = Gate(reactor, gateway, self._call)
        pool = Pool(reactor, connector(reactor, self._site, NOBODY))
        self.sockets = Sockets(self.gate, pool, (ENCAPSULATED.decode(), "?1"))
        self.gate.start()

    def close(self) -> None:
        """Cut what is under way, and let go of the keys."""
        self.stop()
        self.gateway.close()

    def stop(self) -> None:
        """Cut what is under way."""
        self.sockets.stop()
        self.gate.stop()
        self.sockets.pool.abort()

    def site(self, **options: Any) -> Site:
        """Make a site with this at its root, which opens sealed requests as they come; `options` are Site's."""
        site = Site(self, **options)

        def make(channel: Any, queued: object = False) -> _Streaming:
            return _Streaming(channel, self)

        site.requestFactory = make  # type: ignore[assignment]
        return site

    def _call(self, call: Call, driven: Driven) -> Work:
        return Inner(call, driven, self._site, self._reactor)

    # As a resource.

    def getChildWithDefault(self, name: bytes, request: Request) -> IResource:
        """Find what answers a request that came in the clear, or the sealed one of a page."""
        behind: list[bytes] = request.postpath or []
        path = b"/".join([name, *behind])
        if path in (_GATEWAY, _KEYS, _SOCKET):
            return _Page(self)
        for field, _ in list(request.requestHeaders.getAllRawHeaders()):
            if plain(field) in OURS:  # in any spelling: in WSGI's variables `_` is `-`
                request.requestHeaders.removeHeader(field)
        if any(self.gateway.guards(text.decode("latin-1")) for text in (request.uri, b"/" + path)):
            self.gateway.count(Outcome.DIRECT)
            return _Page(self)
        if self.inner.isLeaf:
            behind.insert(0, cast("list[bytes]", request.prepath).pop())
            return self.inner
        found: IResource = self.inner.getChildWithDefault(name, request)
        return found

    def putChild(self, path: bytes, child: IResource) -> None:
        """Add a child to the resource behind."""
        self.inner.putChild(path, child)

    def render(self, request: Request) -> Any:
        """Answer as the resource behind does."""
        return self.inner.render(request)

    def answer(self, request: Request) -> Any:
        """Answer at one of our own paths, or refuse."""
        path = b"/" + b"/".join([*(request.prepath or ()), *(request.postpath or ())])
        asks = request.method in (b"GET", b"HEAD")
        request.setHeader(b"cache-control", b"no-store")
        try:
            if path.endswith(_KEYS) and asks:
                request.setHeader(b"content-type", SET_TYPE.encode())
                return self.gateway.keys_document()
            if path.endswith(_GATEWAY) and asks:
                request.setHeader(b"content-type", KEYS_TYPE.encode())
                return self.gateway.ohttp_keys()
        except Unavailable:
            request.setResponseCode(503)
            return b""
        if path.endswith(_GATEWAY) and request.method == b"POST":
            _Kept(request, self.gate, self._reactor)
            return NOT_DONE_YET
        if path.endswith(_SOCKET) and request.method == b"GET":
            return self._enter(request)
        known = path.endswith((_KEYS, _GATEWAY))
        if known:
            request.setHeader(b"allow", b"GET, HEAD" if path.endswith(_KEYS) else b"GET, HEAD, POST")
        request.setResponseCode(405 if known else 403)
        return b""

    def _enter(self, request: Request) -> Any:
        """Let a relay's WebSocket in."""
        found = request.requestHeaders.getAllRawHeaders()
        fields = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, values in found for v in values]
        if request.transport is None:  # HTTP/2
            status: int | None = 400
        else:
            status = self.sockets.enter(fields, lambda wire: _hand_over(request, wire))
        if status is None:
            return NOT_DONE_YET
        request.setResponseCode(status)
        return b""


def _hand_over(request: Request, wire: Wire) -> None:
    """Give the connection of a request away, with what follows its head."""
    channel: Any = request.channel
    transport = channel.transport
    channel.setTimeout(None)
    transport.unregisterProducer()
    channel.rawDataReceived = wire.dataReceived  # what is in its hands already
    for one in channel.requests:
        one.channel = None
    channel.requests = []
    if isinstance(transport, ProtocolWrapper):
        transport.wrappedProtocol = wire
    else:
        transport.protocol = wire
    wire.makeConnection(transport)  # type: ignore[no-untyped-call]
    transport.resumeProducing()


class _Quiet(Site):
    """Where opened requests go; it writes no log."""

    noisy = False

    def log(self, request: object) -> None:
        """Write nothing."""


@implementer(IResource)
class _Page:
    """What answers at our own paths."""

    isLeaf = True

    def __init__(self, owner: L8Resource) -> None:
        self._owner = owner

    def render(self, request: Request) -> Any:
        return self._owner.answer(request)

    def getChildWithDefault(self, name: bytes, request: Request) -> IResource:
        raise LookupError(name)

    def putChild(self, path: bytes, child: IResource) -> None:
        raise LookupError(path)


class _Front:
    """The outer request of twisted.web, as an exchange sees it."""

    def __init__(self, request: Request, gate: Gate, reactor: Any, *, whole: bool) -> None:
        self._request = request
        self._reactor = reactor
        self._gone = self._done = False
        self._whole = whole  # the request has been read to its end
        self._late: IDelayedCall | None = None
        self._after = 0  # bytes that came when all was said
        request.notifyFinish().addErrback(self._lost)
        kinds = request.requestHeaders.getRawHeaders(b"content-type") or []
        self.driven = gate.exchange(kinds[0] if len(kinds) == 1 else None, request.getHeader(b"authorization"), self)

    def reply(self, status: int, kind: str, body: bytes) -> None:
        self._begin(status, kind)
        self._request.setHeader(b"content-length", b"%d" % len(body))
        self._request.write(body)
        self.finish()

    def begin(self, kind: str) -> None:
        self._begin(200, kind)
        self._request.registerProducer(self, True)

    def _begin(self, status: int, kind: str) -> None:
        self._request.setResponseCode(status)
        self._request.setHeader(b"content-type", kind.encode())
        self._request.setHeader(b"cache-control", b"no-store")
        if not self._whole:
            self._request.setHeader(b"connection", b"close")

    def write(self, data: bytes) -> None:
        if not self._gone:
            self._request.write(data)

    def finish(self) -> None:
        self._done = True
        if self._gone:
            return
        if self._request.producer is not None:
            self._request.unregisterProducer()
        if self._whole:
            self._request.finish()
        elif self._late is None:
            # a connection that is closed with unread bytes loses the answer
            self._late = self._reactor.callLater(LINGER, self.cut)

    def cut(self) -> None:
        self._done = True
        if self._late is not None and self._late.active():
            self._late.cancel()
        if self._gone:
            return
        if self._request.producer is not None:
            self._request.unregisterProducer()
        transport: Any = self._request.transport or self._request.channel
        transport.abortConnection()

    def rest(self, wanted: bool) -> None:
        """Do nothing: the request is here already."""

    def _lost(self, failure: Failure) -> None:
        self._gone = True
        if self._late is not None and self._late.active():
            self._late.cancel()
        if self.driven is not None:
            self.driven.lost()

    # As a producer for the connection.

    def pauseProducing(self) -> None:
        if self.driven is not None:
            self.driven.full()

    def resumeProducing(self) -> None:
        if self.driven is not None:
            self.driven.room()

    def stopProducing(self) -> None:
        self.pauseProducing()


class _Kept(_Front):
    """A request that twisted.web has kept until it was whole."""

    def __init__(self, request: Request, gate: Gate, reactor: Any) -> None:
        self._resting = self._feeding = False
        super().__init__(request, gate, reactor, whole=True)
        self._feed()

    def rest(self, wanted: bool) -> None:
        self._resting = wanted
        if not wanted:
            self._feed()

    def _feed(self) -> None:
        if self._feeding or self.driven is None:
            return
        self._feeding = True
        while not (self._resting or self._gone or self._done):
            assert self._request.content is not None
            piece = self._request.content.read(PIECE)
            if not piece:
                self.driven.ended()
                break
            self.driven.received(piece)
        self._feeding = False


class _Streaming(Request):
    """A request that is opened while it comes, if it is a sealed one."""

    def __init__(self, channel: Any, owner: L8Resource) -> None:
        super().__init__(channel, False)  # type: ignore[no-untyped-call]
        self._owner = owner
        self._front: _Arriving | None = None

    def gotLength(self, length: int | None) -> None:
        """Begin: no more of the head is known to twisted.web yet than the channel has read."""
        channel: Any = self.channel
        method: Any = getattr(channel, "command", None)
        path: Any = getattr(channel, "path", None)
        if method is None:
            method, path = channel._command, channel._path
        sealed = method == b"POST" and path == b"/" + _GATEWAY
        super().gotLength(0 if sealed else length)  # type: ignore[no-untyped-call]
        if sealed:
            self.method, self.uri, self.path = method, path, path
            self.clientproto = getattr(channel, "_version", b"HTTP/2")
            self._front = _Arriving(self, self._owner.gate, self._owner._reactor, whole=False)

    def handleContentChunk(self, data: bytes) -> None:
        """Open what comes."""
        if self._front is None:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]
        else:
            self._front.received(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Take the end."""
        if self._front is None:
            super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]
        else:
            self._front.ended()


class _Arriving(_Front):
    """The outer request while it comes."""

    def received(self, data: bytes) -> None:
        """Take a piece."""
        if not self._done and self.driven is not None:
            self.driven.received(data)
            return
        self._after += len(data)
        if self._after > LINGER_BYTES:
            self.cut()

    def ended(self) -> None:
        """Take the end."""
        self._whole = True
        if self._late is not None:
            if self._late.active():
                self._late.cancel()
            self._request.finish()
        elif not self._done and self.driven is not None:
            self.driven.ended()

    def rest(self, wanted: bool) -> None:
        """Read on, or not."""
        if self._gone:
            return
        source: Any = self._request.transport or self._request.channel
        if wanted:
            source.pauseProducing()
        else:
            source.resumeProducing()
