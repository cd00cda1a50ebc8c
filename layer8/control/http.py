"""HTTP on a control listener: health, readiness, metrics, the WebSocket upgrade, and a place for more pages.

HTTP/1.1 only, one request per connection (so there is nothing to smuggle a second one into), GET and HEAD unless a page
says otherwise, no chunked bodies, no `Server` header, no traceback pages, and the same strict headers on every answer.
A request whose `Host` or `Origin` is not ours is refused before any page sees it (`layer8.control.origin`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from io import BytesIO
from typing import Any

from attrs import define, frozen
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.resource import IResource
from zope.interface import implementer

from layer8.control.origin import host_allowed, origin_allowed
from layer8.net.factory import Places

HTTP_HEAD = 16 * 1024
"""Bytes of request line and headers."""

HTTP_BODY = 64 * 1024
"""Bytes of a request body, where a page takes one at all."""

OPEN_TIME = 5.0
"""Seconds for the whole request, or the whole upgrade, counted from the accept; trickling bytes do not extend it."""

LEAVE_TIME = 15
"""Seconds in which a client must have read its answer."""

TURN_TIME = 5.0
"""Seconds without a turn of the reactor after which it counts as stalled."""

HEADERS = (
    (
        b"Content-Security-Policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"Referrer-Policy", b"no-referrer"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Cache-Control", b"no-store"),
)
"""What every answer carries."""

READ_ONLY = frozenset({b"GET", b"HEAD"})

_TEXT = b"text/plain; charset=utf-8"


@define
class Stats:
    """What the HTTP side of one listener has counted."""

    requests: int = 0
    refused: int = 0


@frozen
class Answer:
    """A short text answer: what all our own pages give."""

    code: int
    body: bytes
    kind: bytes = _TEXT
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refusal(Exception):
    """A request that gets an error answer instead of its page; raised while looking at it, caught in one place."""

    def __init__(self, code: int, why: str, *headers: tuple[bytes, bytes]) -> None:
        """Take the status code and one plain sentence (never a part of the request)."""
        super().__init__(why)
        self.answer = Answer(code, why.encode() + b"\n", headers=headers)


@implementer(IResource)
class TextPage:
    """A page that is one function from the request to an `Answer`."""

    isLeaf = True

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        """Take the function; it may raise `Refusal`."""
        self._answer = answer

    def render(self, request: Request) -> bytes:
        """Answer the request."""
        return request.say(self._answer(request))

    def getChildWithDefault(self, name: bytes, request: Request) -> TextPage:
        """Twisted never asks a leaf for children."""
        raise LookupError(name)

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse children."""
        raise LookupError(path)


@frozen
class Page:
    """Something that answers at one path, and at everything below it if `tree`."""

    resource: IResource
    methods: frozenset[bytes] = READ_ONLY
    tree: bool = False


class Channel(HTTPChannel):
    """One connection until its only request is answered, or until a WebSocket takes it over."""

    totalHeadersSize = HTTP_HEAD
    MAX_LENGTH = HTTP_HEAD
    maxHeaders = 100
    abortTimeout = LEAVE_TIME

    site: Site
    leave: Callable[[], None]
    _successor: IProtocol | None = None

    def resetTimeout(self) -> None:
        """Keep the first deadline: `OPEN_TIME` is for the whole request, however slowly it trickles in."""

    def timeoutConnection(self) -> None:
        """Drop a connection that did not finish its request in time; nothing is logged about who it was."""
        self.site.stats.refused += 1
        self._abort()

    def forceAbortClient(self) -> None:
        """Drop a client that does not read its answer."""
        self._abortingCall = None
        self._abort()

    def _abort(self) -> None:
        transport: Any = self.transport  # the interface has no `abortConnection`; every stream transport does
        transport.abortConnection()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Answer one request per connection, and say so."""
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def requestDone(self, request: Request) -> None:
        """Close after the answer, in `LEAVE_TIME` at the latest."""
        HTTPChannel.requestDone(self, request)
        self._abortingCall = self.callLater(LEAVE_TIME, self.forceAbortClient)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Free the seat."""
        HTTPChannel.connectionLost(self, reason)
        self.leave()

    def rawDataReceived(self, data: bytes) -> None:
        """Pass what came in one segment with an upgrade request on to whoever took the connection over."""
        if self._successor is not None:
            self._successor.dataReceived(data)
        else:
            super().rawDataReceived(data)

    def hand_over(self, successor: IProtocol) -> None:
        """Give the transport to `successor`, which from now on is the connection's protocol.

        The successor inherits `leave` and calls it when the connection is lost.
        """
        transport: Any = self.transport
        self.setTimeout(None)
        transport.unregisterProducer()
        self._successor = successor
        for request in self.requests:
            request.channel = None
        self.requests = []
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = successor
        else:
            transport.protocol = successor
        successor.makeConnection(transport)


class Request(server.Request):
    """One request, looked at before any page sees it."""

    channel: Channel
    site: Site

    length: int | None = 0

    def gotLength(self, length: int | None) -> None:
        """Note how long the body will be; None if it is chunked."""
        self.content = BytesIO()
        self.length = length

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a part of the body, or drop it if the request will be refused for its body anyway."""
        if self.length is not None and self.length <= HTTP_BODY:
            server.Request.handleContentChunk(self, data)

    def process(self) -> None:
        """Check the request, find its page and let it answer."""
        self.site = self.channel.site
        self.site.stats.requests += 1
        self.setHeader(b"Date", datetimeToString())
        for name, value in HEADERS:
            self.setHeader(name, value)
        try:
            page = self.site.page(self)
            self.prepath, self.postpath = [], self.path.split(b"/")[1:]
            self.render(page.resource)
        except Refusal as refusal:
            self.site.stats.refused += 1
            self.write(self.say(refusal.answer))
            self.finish()
        except Exception:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> Failure:
        """Log our own bug and show none of it."""
        self.site.failures.failure("a page failed", reason, event="control.page_failed")
        if not self.startedWriting:
            self.write(self.say(Answer(500, b"internal error\n")))
        self.finish()
        return reason

    def say(self, answer: Answer) -> bytes:
        """Set the status and headers of `answer` and give its body (nothing for HEAD)."""
        self.setResponseCode(answer.code)
        self.setHeader(b"Content-Type", answer.kind)
        self.setHeader(b"Content-Length", b"%d" % len(answer.body))
        for name, value in answer.headers:
            self.setHeader(name, value)
        return b"" if self.method == b"HEAD" else answer.body

    def only(self, name: bytes) -> str | None:
        """Give the value of a header that may appear once; more than one, or one that is not ASCII, is refused."""
        values = self.requestHeaders.getRawHeaders(name)
        if not values:
            return None
        if len(values) > 1:
            raise Refusal(400, "a header is repeated")
        try:
            return values[0].decode("ascii")
        except UnicodeDecodeError:
            raise Refusal(400, "a header is not ASCII") from None

    def bearer(self) -> str | None:
        """Give the token of `Authorization: Bearer`, if there is one."""
        scheme, _, token = (self.only(b"Authorization") or "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" and token.strip() else None


class Site(server.Site):
    """The factory behind one control listener: its pages, and how many connections it lets in."""

    protocol = Channel  # type: ignore[assignment]  # not the one that may turn into HTTP/2
    requestFactory = Request
    displayTracebacks = False
    noisy = False
    failures = Logger(namespace="layer8.control.http")

    def __init__(
        self,
        reactor: IReactorTime,
        names: Collection[str] | None,
        places: Places,
        open_time: float = OPEN_TIME,
    ) -> None:
        """Take the clock, the host names that are ours (None: any), and the caps on connections.

        `open_time` is the seconds that a client has to finish its request or upgrade.
        """
        server.Site.__init__(self, None, timeout=open_time, reactor=reactor, parsePOSTFormSubmission=False)
        self.names = names
        self.places = places
        self.stats = Stats()
        self._pages: dict[bytes, Page] = {}

    def hang(self, path: str, page: Page) -> None:
        """Answer at `path` with `page`."""
        self._pages[path.encode()] = page

    def page(self, request: Request) -> Page:
        """Find the page for a request that is fit to be answered, else raise `Refusal`."""
        host = request.only(b"Host")
        if request.clientproto not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise Refusal(505, "HTTP/1.1 only")
        if host is None:
            raise Refusal(400, "a Host is needed")
        if not host_allowed(host, self.names):
            raise Refusal(403, "this is not a host of this listener")
        origin = request.only(b"Origin")
        if origin is not None and not origin_allowed(origin, host):
            raise Refusal(403, "this origin may not ask here")
        if request.length is None or request.requestHeaders.hasHeader(b"Transfer-Encoding"):
            raise Refusal(400, "a body needs a Content-Length")
        if request.length > HTTP_BODY:
            raise Refusal(413, "the body is too long")
        page = self._find(request.path)
        if request.method not in page.methods:
            allowed = b", ".join(sorted(page.methods))
            raise Refusal(405, "this method is not answered here", (b"Allow", allowed))
        if request.method in READ_ONLY and request.length:
            raise Refusal(400, "this method takes no body")
        return page

    def _find(self, path: bytes) -> Page:
        """Find the page at a path, or the tree above it."""
        page = self._pages.get(path)
        if page is not None:
            return page
        while b"/" in path[1:]:
            path = path.rpartition(b"/")[0]
            page = self._pages.get(path)
            if page is not None and page.tree:
                return page
        raise Refusal(404, "there is nothing at this path")

    def buildProtocol(self, addr: IAddress | None) -> Channel | None:  # type: ignore[override]
        """Seat a new connection, or turn it away by returning None, which closes it at once."""
        place = self.places.take(getattr(addr, "host", None) or "")  # a Unix socket's address has no host
        if place is None:
            return None
        channel: Channel = server.Site.buildProtocol(self, addr)
        channel.leave = lambda: self.places.give(place)
        return channel

    def startFactory(self) -> None:
        """Keep no access log: it would hold addresses."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def log(self, request: object) -> None:
        """Keep no access log."""

    def acceptableProtocols(self) -> list[bytes]:
        """Speak HTTP/1.1 and nothing else under TLS."""
        return [b"http/1.1"]


class Watchdog:
    """Notices that the reactor does not turn, by one delayed call a second; `/healthz` and systemd's watchdog look."""

    __slots__ = ("_call", "_clock", "_turned")

    def __init__(self, clock: IReactorTime) -> None:
        """Take the clock; nothing runs before `start`."""
        self._clock = clock
        self._call: IDelayedCall | None = None
        self._turned = clock.seconds()

    def start(self) -> None:
        """Begin to count turns."""
        self._turned = self._clock.seconds()
        self._call = self._clock.callLater(1.0, self.start)

    def stop(self) -> None:
        """Count no more."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def alive(self) -> bool:
        """Say whether the reactor turned within the last `TURN_TIME` seconds."""
        return self._clock.seconds() - self._turned <= TURN_TIME


def health_page(watchdog: Watchdog) -> Page:
    """Make `/healthz`: 200 while the reactor turns."""

    def answer(_request: Request) -> Answer:
        return Answer(200, b"ok\n") if watchdog.alive() else Answer(503, b"the reactor does not turn\n")

    return Page(TextPage(answer))


def ready_page(not_ready: Callable[[], Sequence[str]]) -> Page:
    """Make `/readyz`: 200 when all roles listen and none drains, else 503 with one reason per line.

    The reasons name no address and no host: anybody may read them.
    """

    def answer(_request: Request) -> Answer:
        text = "".join(f"{reason}\n" for reason in not_ready())
        return Answer(503, text.encode()) if text else Answer(200, b"ready\n")

    return Page(TextPage(answer))


def metrics_page(render: Callable[[], bytes], may_read: Callable[[Request], bool]) -> Page:
    """Make `/metrics`: Prometheus text for whoever `may_read`."""

    def answer(request: Request) -> Answer:
        if not may_read(request):
            raise Refusal(401, "this needs a token of role read", (b"WWW-Authenticate", b"Bearer"))
        return Answer(200, render(), b"text/plain; version=0.0.4; charset=utf-8")

    return Page(TextPage(answer))
