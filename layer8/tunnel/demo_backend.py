"""The small web service of the tunnel's demo: notes, pictures, a stream and a chat, in ordinary twisted.web.

::

    POST /notes      {"text": ...} -> 201 {"path": "/notes/1"}
    GET  /notes/1    {"text": ...}
    POST /pictures   a form with a file -> 201 {"path": "/pictures/1"}
    GET  /pictures/1
    GET  /stream     lines, one after the other
    WS   /chat       answers each line

It knows nothing of tunnels, and writes down what it gets: `told` hears of each request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from email.parser import BytesParser
from typing import Any, Final

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from layer8.tunnel.demo_record import Opened

KEPT: Final = 200
"""Notes, and pictures."""
LINES: Final = 8
GAP: Final = 0.2
"""Seconds between two lines of the stream."""
TEXT: Final = 300
"""Characters of a content that are written down."""
BODY: Final = 4 << 20
"""Bytes of a request that is taken."""

Told = Callable[[Opened, bytes], None]
"""Hears of a request, with the gateway's mark of it; later of the same one again, when it is answered."""


def quiet(root: Any) -> Site:
    """Make a site that logs nothing."""
    site = Site(root)
    site.noisy = False
    site.log = lambda request: None  # type: ignore[method-assign]
    return site


class Service(Resource):
    """All of it."""

    isLeaf = True

    def __init__(self, reactor: Any, told: Told) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self._told = told
        self._notes: list[str] = []
        self._pictures: list[tuple[str, bytes]] = []
        factory = WebSocketServerFactory()
        factory.setProtocolOptions(maxMessagePayloadSize=4096)
        factory.protocol = _chat(told)
        self._sockets = WebSocketResource(factory)

    def render(self, request: Request) -> Any:
        """Answer, and write down what was asked."""
        path = request.path.decode("latin-1")
        if path == "/chat":
            return self._sockets.render(request)
        opened = _opened(request)
        of = bytes(request.l8.mark) if hasattr(request, "l8") else b""
        self._told(opened, of)

        def answered(_: object) -> None:
            opened.status, opened.size = int(request.code), request.sentLength
            self._told(opened, of)

        request.notifyFinish().addBoth(answered)
        words = (request.method.decode(), *path.strip("/").split("/"))
        match words:
            case ("POST", "notes"):
                return self._write(request, opened)
            case ("GET", "notes", number) if _known(number, self._notes):
                return _json(request, 200, {"text": self._notes[int(number) - 1]})
            case ("POST", "pictures"):
                return self._keep(request, opened)
            case ("GET", "pictures", number) if _known(number, self._pictures):
                kind, data = self._pictures[int(number) - 1]
                request.setHeader("content-type", kind)
                return data
            case ("GET", "stream"):
                return self._stream(request)
        return _json(request, 404, {"why": "there is no such thing"})

    def _write(self, request: Request, opened: Opened) -> bytes:
        try:
            text = json.loads(_content(request))["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str) or len(self._notes) >= KEPT:
            return _json(request, 400, {"why": "a note is {text: ...}, and there is room for some"})
        opened.text = text[:TEXT]
        self._notes.append(text)
        return _json(request, 201, {"path": f"/notes/{len(self._notes)}"})

    def _keep(self, request: Request, opened: Opened) -> bytes:
        kind = request.getHeader("content-type") or ""
        message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + _content(request))
        parts = message.get_payload() if message.is_multipart() else []
        found: list[Any] = [part for part in parts if not isinstance(part, str) and part.get_filename()]
        if not found or len(self._pictures) >= KEPT:
            return _json(request, 400, {"why": "a form with a file is wanted, and there is room for some"})
        picture: bytes = found[0].get_payload(decode=True)
        opened.text = f"{found[0].get_filename()}: {len(picture):,} bytes of {found[0].get_content_type()}"
        self._pictures.append((str(found[0].get_content_type()), picture))
        return _json(request, 201, {"path": f"/pictures/{len(self._pictures)}"})

    def _stream(self, request: Request) -> Any:
        request.setHeader("content-type", "text/plain; charset=utf-8")
        lines = iter(f"line {number}\n" for number in range(1, LINES + 1))

        def one() -> None:
            line = next(lines, None)
            if line is None:
                calling.stop()
                request.finish()
            else:
                request.write(line.encode())

        calling = LoopingCall(one)
        calling.clock = self._reactor

        def left(_: object) -> None:
            if calling.running:
                calling.stop()

        request.notifyFinish().addErrback(left)
        calling.start(GAP)
        return NOT_DONE_YET


def _chat(told: Told) -> type[WebSocketServerProtocol]:
    class Chat(WebSocketServerProtocol):
        """Answers each line."""

        opened: Opened

        def onConnect(self, request: Any) -> None:
            shown = sorted((str(name), str(value)) for name, value in request.headers.items())
            self.opened = Opened(f"GET {request.path}", shown, _host(str(request.peer)))
            told(self.opened, b"")

        def onMessage(self, payload: bytes, isBinary: bool) -> None:
            line = payload.decode("utf-8", "replace")
            answer = f"You said {line[::-1]!r}, backwards." if line else "?"
            self.opened.frames += [(True, line[:TEXT]), (False, answer[:TEXT])]
            self.sendMessage(answer.encode())  # type: ignore[no-untyped-call]
            told(self.opened, b"")

    return Chat


def _opened(request: Request) -> Opened:
    fields = [
        (name.decode("latin-1").lower(), value.decode("latin-1"))
        for name, values in request.requestHeaders.getAllRawHeaders()
        for value in values
    ]
    client = str(getattr(request.getClientAddress(), "host", ""))
    return Opened(f"{request.method.decode()} {request.uri.decode('latin-1')}", sorted(fields), client)


def _host(peer: str) -> str:
    """Give the address in what Autobahn calls a peer, if there is one."""
    kind, _, where = peer.partition(":")
    return where.rpartition(":")[0] if kind.startswith("tcp") else ""


def _number(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 10 else 0


def _known(number: str, kept: list[Any]) -> bool:
    return 0 < _number(number) <= len(kept)


def _content(request: Request) -> bytes:
    return request.content.read(BODY) if request.content is not None else b""


def _json(request: Request, status: int, value: object) -> bytes:
    request.setResponseCode(status)
    request.setHeader("content-type", "application/json")
    return json.dumps(value).encode()
