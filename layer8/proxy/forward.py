"""Mode `proxy`: each request is read, cleaned and sent on, one after the other, and so is each response.

A `Forward` is one visitor joined with one host::

    said ──▶ head: hop-by-hop fields out, forwarding fields ours ──▶ host
      │      body: as it came, most of it unseen
      │ the next request waits until the response to this one is complete
      ▼
    for another host, or the host has closed ──▶ leave ANEW: the visitor is as if it had just come
    no credentials ──▶ leave with a REPLY               doubt ──▶ leave with a REPLY, or BREAK in the middle

Dropped on the way to the host (RFC 9110, 7.6.1): Connection and what it names, Keep-Alive, Proxy-Connection, TE,
Upgrade, Proxy-Authorization; and whatever a visitor says about forwarding (Forwarded, X-Forwarded-*, X-Real-IP), in
any spelling that a program might take for it. X-Forwarded-For is there only if the host may learn addresses. Bodies
keep their chunks, which `layer8.core.http1` has found to be unmistakable. An upgrade is passed on, but for those to
HTTP/2; after its 101 nothing is read any more.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from layer8.core.http1 import (
    AGAIN,
    CHUNKED,
    END,
    ENDLESS,
    UNTIL_END,
    Malformed,
    Reader,
    Request,
    Response,
    plain,
    read_request,
    read_response,
)
from layer8.proxy.sniff import TEXTS

REALM = b'WWW-Authenticate: Basic realm="layer8", charset="UTF-8"\r\n'

_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade"))
_VISITOR = _HOP | {b"proxy-authorization", b"http2-settings", b"forwarded", b"x-real-ip"}
_HOST = _HOP | {b"proxy-authenticate"}
_NEEDED = frozenset((b"host", b"content-length", b"transfer-encoding"))


@frozen
class Terms:
    """What is said of a visitor to its host: the name it asked for, its scheme, and its address or b"".

    With `locked`, every request needs credentials.
    """

    host: str
    scheme: bytes = b"http"
    remote: bytes = b""
    locked: bool = False


class Leave(Enum):
    """How a visitor and its host part, once what was said has arrived."""

    ANEW = "the visitor begins anew"
    REPLY = "the visitor gets our own answer and is closed"
    CLOSE = "the answer was the last one"
    BREAK = "a message is cut short, and nothing can be said any more"


def page(status: int, *, bare: bool = False, fields: bytes = b"") -> bytes:
    """Give a small answer of our own, after which the connection is closed; `bare` for HEAD."""
    text = TEXTS[status]
    body = f"{status} {text}\n".encode("ascii")
    head = f"HTTP/1.1 {status} {text}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n".encode("ascii")
    return head + fields + b"Cache-Control: no-store\r\nConnection: close\r\n\r\n" + (b"" if bare else body)


def is_upgrade(request: Request) -> bool:
    """Say whether a request asks for an upgrade that we pass on."""
    return (
        bool(request.upgrade)
        and request.minor == 1
        and b"upgrade" in request.options
        and not any(word.strip().startswith(b"h2") for word in request.upgrade.split(b","))
    )


def sent_on(request: Request, terms: Terms) -> bytes:
    """Give a request's head as its host gets it; raises `Malformed` if Connection names what a message needs."""
    if not _NEEDED.isdisjoint(request.options):
        raise Malformed("Connection names a field that is not its own")
    dropped = request.options
    lines = [b"%b %b HTTP/1.%d" % (request.method, request.path, request.minor)]
    for name, spelled, value in request.fields:
        same = plain(name)
        if same in _VISITOR or name in dropped or same.startswith(b"x-forwarded-"):
            continue
        if terms.locked and same == b"authorization":
            continue  # it was for us
        lines.append(b"%b: %b" % (spelled, value))
    authority = request.authority
    if not authority:
        authority = terms.host.encode("ascii")
        lines.append(b"Host: " + authority)
    elif request.minor == 0 and not any(name == b"host" for name, _, _ in request.fields):
        lines.append(b"Host: " + authority)
    if terms.remote:
        lines.append(b"X-Forwarded-For: " + terms.remote)
    lines.append(b"X-Forwarded-Proto: " + terms.scheme)
    lines.append(b"X-Forwarded-Host: " + authority)
    if is_upgrade(request):
        lines.append(b"Connection: upgrade\r\nUpgrade: " + request.upgrade)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def sent_back(response: Response, close: bool) -> bytes:
    """Give a response's head as the visitor gets it; `close` says that it is the last one."""
    lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    for name, spelled, value in response.fields:
        if name not in _HOST and (name in _NEEDED or name not in response.options):
            lines.append(b"%b: %b" % (spelled, value))
    if close:
        lines.append(b"Connection: close")
    elif response.status == 101:
        lines.append(b"Connection: upgrade\r\nUpgrade: " + response.upgrade)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


class Forward:
    """One visitor and one host.

    `held` says that the visitor is to be read no further for now, `waiting` that `take` may have more once it is not.
    `asks` are the credentials (the value of Authorization) of a request that waits for `admitted`. `leave` says that
    this is over, `reply` (of that `status`) with which words.
    """

    __slots__ = (
        "_answered",
        "_back",
        "_closing",
        "_forth",
        "_head",
        "_opened",
        "_request",
        "_sent",
        "_told",
        "asks",
        "exchanges",
        "leave",
        "reply",
        "status",
        "terms",
        "waiting",
    )

    def __init__(self, terms: Terms) -> None:
        """Begin before the first request."""
        self.terms = terms
        self._forth = Reader(read_request)
        self._back = Reader(read_response)
        self._request: Request | None = None  # the one that is not answered yet
        self._head: Request | None = None  # one that was read and not sent on
        self._sent = False  # all of it
        self._told = False  # the visitor has the head of its answer
        self._answered = False  # all of the answer
        self._closing = False  # no further request goes to this host
        self._opened = False
        self.exchanges = 0  # complete ones
        self.asks: bytes | None = None
        self.leave: Leave | None = None
        self.reply = b""
        self.status = 0
        self.waiting = False

    @property
    def up_free(self) -> int:
        """Bytes of the visitor that need not be seen."""
        return ENDLESS if self._opened else 0 if self.held else self._forth.free

    @property
    def down_free(self) -> int:
        """Bytes of the host that need not be seen."""
        return ENDLESS if self._opened else self._back.free

    @property
    def held(self) -> bool:
        """Whether what the visitor says has to wait."""
        if self._opened:
            return False
        return self.leave is not None or self.asks is not None or (self._request is not None and self._sent)

    def said(self, data: bytes) -> bytes:
        """Take what the visitor says; gives what goes to the host."""
        if self._opened:
            return data
        self._forth.feed(data)
        return self.take()

    def said_unseen(self, count: int) -> None:
        """Take that `count` bytes of the visitor have passed."""
        if not self._opened:
            self._forth.skipped(count)
            self.take()

    def take(self) -> bytes:
        """Give what goes to the host of what was said before."""
        if self._opened:
            self.waiting = False
            return self._forth.rest()
        passed: list[bytes] = []
        try:
            while not self.held and (what := self._forth.next()) is not None:
                if isinstance(what, bytes):
                    passed.append(what)
                elif what is END:
                    self._sent = True
                    self._complete()
                else:
                    passed.append(self._begin(what))
            self.waiting = self.held
        except Malformed as doubt:
            if self._request is not None:
                self.leave = Leave.BREAK
            else:
                self._answer(doubt.status)
        return b"".join(passed)

    def _begin(self, request: Request) -> bytes:
        """Give the head of a request that may go to this host, nothing otherwise."""
        if request.host is not None and self.exchanges and request.host[0] != self.terms.host:
            self._head, self.leave = request, Leave.ANEW
        elif self.terms.locked:
            self._head = request
            given = [value for name, _, value in request.fields if name == b"authorization"]
            self.asks = given[0] if len(given) == 1 else b""
        else:
            return self._go(request)
        return b""

    def _go(self, request: Request) -> bytes:
        head = sent_on(request, self.terms)
        self._request, self._head = request, None
        self._sent = self._told = self._answered = False
        self._back.bare = request.method == b"HEAD"
        return head

    def admitted(self, refusal: int | None = None) -> bytes:
        """Take that the credentials are good, or the status of a refusal; gives what goes to the host."""
        request, self.asks = self._head, None
        if request is None:
            return b""
        if refusal is not None:
            self._answer(refusal, request)
            return b""
        try:
            return self._go(request) + self.take()
        except Malformed as doubt:
            self._answer(doubt.status, request)
            return b""

    def heard(self, data: bytes) -> bytes:
        """Take what the host says; gives what goes to the visitor."""
        if self._opened:
            return data
        self._back.feed(data)
        return self._heard()

    def heard_unseen(self, count: int) -> None:
        """Take that `count` bytes of the host have passed."""
        if not self._opened:
            self._back.skipped(count)
            self._heard()

    def _heard(self) -> bytes:
        passed: list[bytes] = []
        try:
            while self.leave is None and (what := self._back.next()) is not None:
                if isinstance(what, bytes):
                    passed.append(what)
                elif what is END:
                    if self._told:
                        self._answered = True
                        self._complete()
                else:
                    passed.append(self._respond(what))
                    if self._opened:
                        passed.append(self._back.rest())
                        break
        except Malformed:
            self._fail()
        return b"".join(passed)

    def _respond(self, response: Response) -> bytes:
        """Give the head of a response as the visitor gets it."""
        request = self._request
        if request is None or self._answered:
            raise Malformed("a response to nothing", 502)
        status = response.status
        if status == 101:
            if not is_upgrade(request) or not self._sent or not response.upgrade:
                raise Malformed("an upgrade that nobody asked for", 502)
            self._opened = self._told = True
            return sent_back(response, False)
        if status < 200:
            return response.raw if request.minor == 1 else b""
        if request.minor == 0 and response.body == CHUNKED:
            raise Malformed("chunks for an HTTP/1.0 visitor", 502)
        endless = response.body == UNTIL_END and not self._back.bare
        lasts = b"keep-alive" in response.options if response.minor == 0 else b"close" not in response.options
        self._closing = endless or not lasts
        self._told = True
        return sent_back(response, endless or request.minor == 0 or b"close" in request.options)

    def _complete(self) -> None:
        """Take the end of a request or a response; both have to come to theirs."""
        request = self._request
        if request is None or not self._answered:
            return
        if not self._sent:
            if self._closing:
                self.leave = Leave.CLOSE  # the host wants no more of a body
            return
        self._request = None
        self.exchanges += 1
        if request.minor == 0 or b"close" in request.options:
            self.leave = Leave.CLOSE
        elif self._closing:
            self.leave = Leave.ANEW

    def _answer(self, status: int, request: Request | None = None) -> None:
        """End with an answer of our own; status 0 is none."""
        bare = request is not None and request.method == b"HEAD"
        self.status = status
        self.reply = page(status, bare=bare, fields=REALM if status == 401 else b"") if status else b""
        self.leave = Leave.REPLY

    def _fail(self) -> None:
        """Give up on the host: with an answer of our own if the visitor has had none of its."""
        if self._request is None and self.exchanges:
            self.leave = Leave.CLOSE  # what nobody asked for came behind a whole answer, and goes nowhere
        elif self._told or self._request is None:
            self.leave = Leave.BREAK
        else:
            self._answer(502, self._request)

    def ended(self, *, reset: bool = False) -> None:
        """Take that the host says no more: `leave` is how to go on, None if its end is the visitor's."""
        if self.leave is not None or self._opened:
            return
        request = self._request
        if request is None:
            self.leave = Leave.ANEW
        elif not self._told and self._sent and self.exchanges and request.method in AGAIN and not request.body:
            # It closed a connection that was kept, as the request was on its way.
            self._request, self._head, self.leave = None, request, Leave.ANEW
        elif self._told and self._back.whole and (self._answered or not reset):
            self.leave = Leave.CLOSE
        else:
            self._fail()

    def rest(self) -> bytes:
        """Give what the visitor has said that no host has answered."""
        head, self._head = self._head, None
        return (b"" if head is None else head.raw) + self._forth.rest()
