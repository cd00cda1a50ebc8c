"""A web service for the tests of the tunnel: it says what it was asked, and answers in every way that a service may.

::

    ANY  /echo                          JSON: method, uri, fields, size, sha256 and body (base64, if at most KEPT)
    ANY  /status/N                      that status, with a short body where it may have one
    GET  /redirect/N                    302 to /redirect/N-1, and at last to /echo
    ANY  /redirect-to?url=U&status=N    N (302) with that Location
    GET  /cookies/set?a=1&b=2           one Set-Cookie each; /cookies says as JSON what has come back
    GET  /fields                        the same fields several times over, three Set-Cookie among them
    GET  /bytes/N                       N bytes of `pattern`, with a length, ranges and an ETag
    GET  /chunked/N                     the same, of unknown length, in pieces of 1000 bytes
    GET  /gzip                          JSON, compressed where `accept-encoding` asks for it
    GET  /events?n=N&gap=S              N (10) events with ids, S (0.1) seconds apart, after Last-Event-ID
    GET  /slow?s=S, /never, /break      later; not at all; half of what was promised
    GET, POST /notes                    JSON: all of them; the one that a form's `text` has made
    POST /upload                        JSON: size, sha256; the fields of a form with their sizes
    GET  /image.png, /style.css, /script.js, /page, /
    WS   /ws                            echoes text and binary; "close" closes with 4001
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import zlib
from base64 import b64encode
from email.parser import BytesParser
from typing import Any, Final

from attrs import define, field, frozen
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

KEPT: Final = 64 * 1024
"""Bytes of a body that are kept and given back."""
CALLS: Final = 20_000
"""Requests that are remembered."""
RED: Final = (0xD0, 0x30, 0x50)
"""The colour of the picture, 16 by 16."""

_NO_CONTENT: Final = frozenset((204, 205, 304))
_PAGE: Final = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><title>backend</title>'
    b'<link rel="icon" href="data:,"><p id="p">page</p></html>'
)


def pattern(size: int, start: int = 0) -> bytes:
    """Give bytes that say where in the whole they stand."""
    first = start // 8
    block = b"".join(number.to_bytes(8, "big") for number in range(first, (start + size) // 8 + 1))
    return block[start - first * 8 :][:size]


def png() -> bytes:
    """Give a picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(RED) * 16) * 16
    head = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@frozen
class Called:
    """A request as it has come."""

    method: str
    uri: str
    fields: tuple[tuple[str, str], ...]
    size: int
    sha256: str
    body: bytes  # its first KEPT
    peer: str

    def all(self, name: str) -> list[str]:
        """Give the values of a field."""
        return [value for found, value in self.fields if found == name]

    def document(self) -> dict[str, Any]:
        """Give what /echo says."""
        return {
            "method": self.method,
            "uri": self.uri,
            "fields": [list(pair) for pair in self.fields],
            "size": self.size,
            "sha256": self.sha256,
            "body": b64encode(self.body).decode() if self.size <= KEPT else None,
        }


@define(eq=False)
class Backend:
    """The service on a port of loopback; `site` may also be served by something else."""

    reactor: Any
    calls: list[Called] = field(factory=list)
    sockets: list[Any] = field(factory=list)  # protocols of /ws that are open
    notes: list[dict[str, Any]] = field(factory=lambda: [{"number": 7, "text": "Buy milk"}])
    site: Site = field(init=False)
    resource: Resource = field(init=False)
    port: int = field(default=0, init=False)
    _listening: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Hang everything up."""
        self.resource = _Root(self)
        self.site = Site(self.resource)
        self.site.noisy = False
        self.site.log = lambda request: None  # type: ignore[method-assign]

    @property
    def origin(self) -> str:
        """Give its own origin, for comparisons."""
        return f"http://127.0.0.1:{self.port}"

    def clear(self) -> None:
        """Forget the calls."""
        self.calls.clear()

    def open(self) -> None:
        """Listen, again on the port that it had."""
        self._listening = self.reactor.listenTCP(self.port, self.site, interface="127.0.0.1", backlog=256)
        self.port = self._listening.getHost().port

    async def close(self) -> None:
        """Listen no more, and end the sockets."""
        listening, self._listening = self._listening, None
        for socket in list(self.sockets):
            socket.transport.abortConnection()
        if listening is not None:
            await maybeDeferred(listening.stopListening)

    def note(self, request: Request) -> Called:
        """Remember a request."""
        digest, size, kept = hashlib.sha256(), 0, b""
        if request.content is not None:
            request.content.seek(0)
            while piece := request.content.read(1 << 20):
                digest.update(piece)
                size += len(piece)
                kept += piece[: KEPT - len(kept)]
            request.content.seek(0)
        fields = [
            (name.decode().lower(), value.decode("latin-1"))
            for name, values in request.requestHeaders.getAllRawHeaders()
            for value in values
        ]
        peer = str(getattr(request.getClientAddress(), "host", ""))
        uri = request.uri.decode("latin-1")
        called = Called(request.method.decode(), uri, tuple(sorted(fields)), size, digest.hexdigest(), kept, peer)
        if len(self.calls) < CALLS:
            self.calls.append(called)
        return called


class _Root(Resource):
    """Everything; the first part of the path chooses."""

    isLeaf = True

    def __init__(self, backend: Backend) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._backend = backend
        factory = WebSocketServerFactory(protocols=["chat"])
        factory.protocol = _echo(backend)
        factory.setProtocolOptions(maxMessagePayloadSize=1 << 20, openHandshakeTimeout=0, closeHandshakeTimeout=0)
        self._sockets = WebSocketResource(factory)

    def render(self, request: Request) -> Any:
        called = self._backend.note(request)
        path = request.path.decode("latin-1")
        first, _, rest = path.lstrip("/").partition("/")
        if first == "ws":
            return self._sockets.render(request)
        answer = getattr(self, f"_{first.replace('.', '_').replace('-', '_') or 'page'}", None)
        if answer is None:
            return _say(request, 404, b"there is no such page\n")
        return answer(request, called, rest)

    def _echo(self, request: Request, called: Called, rest: str) -> bytes:
        return _json(request, called.document())

    def _status(self, request: Request, called: Called, rest: str) -> bytes:
        return _say(request, int(rest), b"" if int(rest) in _NO_CONTENT else f"status {rest}\n".encode())

    def _redirect(self, request: Request, called: Called, rest: str) -> bytes:
        request.setHeader("location", f"/redirect/{int(rest) - 1}" if int(rest) > 1 else "/echo")
        return _say(request, 302)

    def _redirect_to(self, request: Request, called: Called, rest: str) -> bytes:
        request.setHeader("location", _argument(request, "url", "/echo"))
        return _say(request, int(_argument(request, "status", "302")))

    def _cookies(self, request: Request, called: Called, rest: str) -> bytes:
        if rest == "set":
            for name, values in (request.args or {}).items():
                request.responseHeaders.addRawHeader(b"set-cookie", name + b"=" + values[0] + b"; Path=/; HttpOnly")
            return _json(request, {})
        return _json(request, {"cookie": called.all("cookie")})

    def _fields(self, request: Request, called: Called, rest: str) -> bytes:
        for value in (b"one", b"two", b"three"):
            request.responseHeaders.addRawHeader(b"x-many", value)
            request.responseHeaders.addRawHeader(b"set-cookie", value + b"=" + value)
        request.setHeader("x-latin", b"caf\xe9")
        request.setHeader("x-empty", b"")
        return _json(request, {})

    def _bytes(self, request: Request, called: Called, rest: str) -> bytes:
        request.setHeader("content-type", "application/octet-stream")
        request.setHeader("accept-ranges", "bytes")
        if request.setETag(f'"{rest}"'.encode()) is not None:  # a 304
            return b""
        size, first, last = int(rest), 0, int(rest) - 1
        asked = (called.all("range") or [""])[0]
        if asked.startswith("bytes="):
            begin, _, end = asked[6:].partition("-")
            first = int(begin) if begin else size - int(end)
            last = min(int(end), last) if begin and end else last
            if first > last:
                request.setHeader("content-range", f"bytes */{size}")
                return _say(request, 416)
            request.setResponseCode(206)
            request.setHeader("content-range", f"bytes {first}-{last}/{size}")
        count = last - first + 1
        request.setHeader("content-length", str(count))
        if request.method == b"HEAD":
            return b""
        if count <= 1 << 20:
            return pattern(count, first)
        _Pushing(request, first, count)
        return NOT_DONE_YET  # type: ignore[return-value]

    def _chunked(self, request: Request, called: Called, rest: str) -> Any:
        request.setHeader("content-type", "application/octet-stream")
        data = pattern(int(rest))
        for at in range(0, len(data), 1000):
            request.write(data[at : at + 1000])
        request.finish()
        return NOT_DONE_YET

    def _gzip(self, request: Request, called: Called, rest: str) -> bytes:
        request.setHeader("content-type", "application/json")
        body = json.dumps({"text": "layer8 " * 1000, "asked": called.all("accept-encoding")}).encode()
        if any("gzip" in value for value in called.all("accept-encoding")):
            request.setHeader("content-encoding", "gzip")
            request.setHeader("vary", "accept-encoding")
            return gzip.compress(body)
        return body

    def _events(self, request: Request, called: Called, rest: str) -> Any:
        request.setHeader("content-type", "text/event-stream")
        request.setHeader("cache-control", "no-store")
        last = (called.all("last-event-id") or ["0"])[0]
        first = int(last) + 1
        numbers = iter(range(first, int(_argument(request, "n", "10")) + 1))

        def one() -> None:
            number = next(numbers, None)
            if number is None:
                calling.stop()
                request.finish()
            else:
                begin = "retry: 50\n\n" if number == first else ""
                request.write(f"{begin}id: {number}\nevent: tick\ndata: {number}\n\n".encode())

        calling = LoopingCall(one)
        calling.clock = self._backend.reactor

        def left(_: object) -> None:
            if calling.running:
                calling.stop()

        request.notifyFinish().addErrback(left)
        calling.start(float(_argument(request, "gap", "0.1")))
        return NOT_DONE_YET

    def _slow(self, request: Request, called: Called, rest: str) -> Any:
        def late() -> None:
            request.write(_json(request, {}))
            request.finish()

        later = self._backend.reactor.callLater(float(_argument(request, "s", "1")), late)
        request.notifyFinish().addErrback(lambda _: later.active() and later.cancel())
        return NOT_DONE_YET

    def _never(self, request: Request, called: Called, rest: str) -> Any:
        request.notifyFinish().addErrback(lambda _: None)
        return NOT_DONE_YET

    def _break(self, request: Request, called: Called, rest: str) -> Any:
        request.setHeader("content-length", "1000")
        request.write(bytes(500))
        assert request.channel is not None
        request.channel.loseConnection()
        return NOT_DONE_YET

    def _notes(self, request: Request, called: Called, rest: str) -> bytes:
        notes = self._backend.notes
        if request.method != b"POST":
            return _json(request, notes)
        notes.append({"number": notes[-1]["number"] + 1, "text": _argument(request, "text", "")})
        return _json(request, notes[-1])

    def _upload(self, request: Request, called: Called, rest: str) -> bytes:
        told: dict[str, Any] = {"size": called.size, "sha256": called.sha256, "parts": []}
        kind = (called.all("content-type") or [""])[0]
        if kind.startswith("multipart/form-data") and request.content is not None:
            message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + request.content.read())
            for part in message.get_payload():
                data = part.get_payload(decode=True)  # type: ignore[union-attr]
                told["parts"].append(
                    {
                        "name": part.get_param("name", header="content-disposition"),  # type: ignore[union-attr]
                        "filename": part.get_filename(),  # type: ignore[union-attr]
                        "type": part.get_content_type(),  # type: ignore[union-attr]
                        "size": len(data),
                        "sha256": hashlib.sha256(data).hexdigest(),  # type: ignore[arg-type]
                    }
                )
        return _json(request, told)

    def _image_png(self, request: Request, called: Called, rest: str) -> bytes:
        return _file(request, "image/png", png())

    def _style_css(self, request: Request, called: Called, rest: str) -> bytes:
        return _file(request, "text/css", b"p { color: rgb(208, 48, 80) }\n")

    def _script_js(self, request: Request, called: Called, rest: str) -> bytes:
        return _file(request, "text/javascript", b"globalThis.ran = true;\n")

    def _page(self, request: Request, called: Called, rest: str) -> bytes:
        return _file(request, "text/html; charset=utf-8", _PAGE)


class _Pushing:
    """Writes a long answer as fast as it is taken."""

    def __init__(self, request: Request, start: int, count: int) -> None:
        self._request, self._at, self._left = request, start, count
        request.registerProducer(self, False)

    def resumeProducing(self) -> None:
        size = min(self._left, 1 << 16)
        self._request.write(pattern(size, self._at))
        self._at, self._left = self._at + size, self._left - size
        if not self._left:
            self._request.unregisterProducer()
            self._request.finish()

    def pauseProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        self._left = 0


def _echo(backend: Backend) -> type[WebSocketServerProtocol]:
    class Echo(WebSocketServerProtocol):
        def onConnect(self, request: Any) -> str | None:
            return "chat" if "chat" in request.protocols else None

        def onOpen(self) -> None:
            backend.sockets.append(self)

        def onMessage(self, payload: bytes, isBinary: bool) -> None:
            if payload == b"close":
                self.sendClose(4001, "as asked")
            else:
                self.sendMessage(payload, isBinary)

        def onClose(self, wasClean: bool, code: int, reason: str) -> None:
            if self in backend.sockets:
                backend.sockets.remove(self)

    return Echo


def _argument(request: Request, name: str, usual: str) -> str:
    found = (request.args or {}).get(name.encode())
    return found[0].decode() if found else usual


def _say(request: Request, status: int, body: bytes = b"") -> bytes:
    request.setResponseCode(status)
    if body:
        request.setHeader("content-type", "text/plain")
    return body


def _json(request: Request, value: object) -> bytes:
    request.setHeader("content-type", "application/json")
    return json.dumps(value).encode()


def _file(request: Request, kind: str, data: bytes) -> bytes:
    request.setHeader("content-type", kind)
    if request.setETag(f'"{hashlib.sha256(data).hexdigest()[:16]}"'.encode()) is not None:
        return b""
    return data


def repeated(fields: Headers) -> dict[str, list[str]]:
    """Give the fields of an answer that came more than once, for comparisons."""
    return {
        name.decode().lower(): [value.decode("latin-1") for value in values]
        for name, values in fields.getAllRawHeaders()
        if len(values) > 1
    }
