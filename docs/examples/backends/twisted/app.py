"""Notes behind the tunnel, with twisted.web: `python app.py 8000` in this folder, with L8_STATE in the environment."""

import hashlib
import json
import os
import sys
from email import message_from_bytes
from typing import Any

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.task import LoopingCall
from twisted.web.resource import NoResource, Resource
from twisted.web.server import NOT_DONE_YET

from layer8.tunnel.resource import L8Resource

notes = {7: "Buy milk"}


def say(request: Any, told: object) -> bytes:
    """Answer with JSON."""
    request.setHeader(b"content-type", b"application/json")
    return json.dumps(told).encode()


class Page(Resource):
    """Anything below the root."""

    def __init__(self) -> None:
        """Begin without children."""
        super().__init__()  # type: ignore[no-untyped-call]


class Note(Page):
    """One note; `l8-encapsulated` says that it was asked for through the tunnel."""

    isLeaf = True

    def __init__(self, number: int) -> None:
        """Show a note."""
        super().__init__()
        self.number = number

    def render_GET(self, request: Any) -> bytes:
        """Read it."""
        tunnel = request.getHeader(b"l8-encapsulated") == b"?1"
        address = getattr(request.getClientAddress(), "host", None)
        return say(request, {"note": notes[self.number], "tunnel": tunnel, "address": address})


class Notes(Page):
    """All of them."""

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Find one."""
        number = int(path) if path.isdigit() else 0
        return Note(number) if number in notes else NoResource()

    def render_POST(self, request: Any) -> bytes:
        """Write one, from a form or JSON."""
        kind = request.getHeader(b"content-type") or b""
        text = json.load(request.content)["text"] if b"json" in kind else request.args[b"text"][0].decode()
        number = len(notes) + 7
        notes[number] = text
        return say(request, {"number": number})


class Upload(Page):
    """Takes files: nothing about the tunnel here."""

    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        """Read a form."""
        kind = request.getHeader(b"content-type") or b""
        form: Any = message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + request.content.read())
        told = {}
        for part in form.get_payload():
            data = part.get_payload(decode=True)
            name = part.get_param("name", header="content-disposition")
            told[name] = {
                "filename": part.get_filename(),
                "size": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        return say(request, told)


class Echo(Page):
    """Gives content back."""

    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        """Say the same."""
        request.setHeader(b"content-type", request.getHeader(b"content-type") or b"application/octet-stream")
        content: bytes = request.content.read()
        return content


class Events(Page):
    """Tells things as they happen."""

    isLeaf = True

    def render_GET(self, request: Any) -> int:
        """Begin to tell."""
        request.setHeader(b"content-type", b"text/event-stream")
        numbers = iter(range(int(request.args.get(b"n", [b"10"])[0])))

        def tick() -> None:
            number = next(numbers, None)
            if number is None:
                loop.stop()
                request.finish()
            else:
                request.write(b"id: %d\ndata: tick %d\n\n" % (number, number))

        def left(_: object) -> None:
            if loop.running:
                loop.stop()

        loop = LoopingCall(tick)
        request.notifyFinish().addErrback(left)
        loop.start(float(request.args.get(b"gap", [b"0.1"])[0]))
        return NOT_DONE_YET


class Login(Page):
    """Begins a session; its cookie stays inside of the tunnel."""

    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        """Take a name."""
        request.getSession().user = request.args[b"user"][0].decode()
        request.redirect(b"/me")
        return b""


class Me(Page):
    """Says who is logged in."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        """Look."""
        return say(request, {"user": getattr(request.getSession(), "user", None)})


class Chat(WebSocketServerProtocol):
    """Says everything back."""

    def onConnect(self, request: Any) -> str | None:
        """Agree on a subprotocol."""
        return "chat" if "chat" in request.protocols else None

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Say it back."""
        self.sendMessage(b"you said " + payload, isBinary)  # type: ignore[no-untyped-call]


def root() -> Resource:
    """Put the pages together."""
    made = Page()
    for name, page in (("notes", Notes()), ("upload", Upload()), ("echo", Echo()), ("events", Events())):
        made.putChild(name.encode(), page)
    made.putChild(b"login", Login())
    made.putChild(b"me", Me())
    chat = WebSocketServerFactory(protocols=["chat"])
    chat.protocol = Chat
    made.putChild(b"chat", WebSocketResource(chat))
    return made


def main() -> None:
    """Serve them on a port of this machine."""
    from twisted.internet import reactor as global_reactor

    reactor: Any = global_reactor
    guarded = L8Resource(
        root(),
        reactor=reactor,
        gateway=os.environ.get("L8_GATEWAY", "shop"),
        authorities=[os.environ.get("L8_AUTHORITY", "shop.example")],
        state=os.environ.get("L8_STATE"),
        identity_file=os.environ.get("L8_IDENTITY_FILE"),
        require=["/me"],
    )
    reactor.listenTCP(int(sys.argv[1]), guarded.site(), interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
