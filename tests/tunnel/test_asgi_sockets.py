"""Sockets of ASGI applications: a page against FastAPI under uvicorn, over WebSockets of the `websockets` library."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from layer8.core.session import Send, Tell
from layer8.tunnel.bhttp import Request
from layer8.tunnel.frames import PROTOCOL, Kind, Message
from layer8.tunnel.settings import SOCKET_PATH
from layer8.tunnel.socket_session import Closed, Opened, PageSocket, Refused
from tests.interop.daemons import RUN
from tests.tunnel.sealed import AUTHORITY, Page
from tests.tunnel.workers import Backend

NOISE = Subprotocol(PROTOCOL)
_started: list[Backend] = []


class Socket:
    """A page's end, which waits."""

    def __init__(self, page: Page, path: str = "/chat", protocols: str = "") -> None:
        self.link: ClientConnection = connect(
            f"ws://127.0.0.1:{page.port}{SOCKET_PATH}", subprotocols=[NOISE], compression=None, max_size=None
        )
        fields = ((b"sec-websocket-protocol", protocols.encode()),) if protocols else ()
        asked = Request(b"GET", b"https", AUTHORITY.encode(), path.encode(), fields)
        self.session = PageSocket(page.keys, asked, monotonic())
        self.told: deque[Any] = deque()
        self.carry()

    def carry(self) -> None:
        for effect in self.session.effects():
            match effect:
                case Send(data):
                    self.link.send(data)
                case Tell(what):
                    self.told.append(what)
                case _:
                    pass

    def hear(self) -> Any:
        """Wait for the next thing that is told."""
        while not self.told:
            data = self.link.recv(10)
            assert isinstance(data, bytes)
            self.session.received(data, monotonic())
            self.carry()
        return self.told.popleft()

    def say(self, message: Message) -> None:
        self.session.send(message)
        self.carry()


class SocketTests(SynchronousTestCase):
    """FastAPI's `websocket` as it is."""

    def setUp(self) -> None:
        if not _started:
            _started.append(Backend.start(RUN, "fastapi"))
        self.page = _started[0].page()

    def socket(self, **more: Any) -> Socket:
        made = Socket(self.page, **more)
        self.addCleanup(made.link.close)
        return made

    def test_chat(self) -> None:
        socket = self.socket(protocols="soap, chat")
        self.assertEqual(socket.hear(), Opened("chat"))
        for text in ("hello", "", "x" * 100_000):
            socket.say(Message(Kind.TEXT, text.encode()))
            self.assertEqual(socket.hear(), Message(Kind.TEXT, f"you said {text}".encode()))
        socket.session.close(1000, "bye", monotonic())
        socket.carry()
        self.assertEqual(socket.hear(), Closed(1000, "bye"))
        with self.assertRaises(ConnectionClosed):
            socket.link.recv(10)

    def test_no_such_socket(self) -> None:
        socket = self.socket(path="/nowhere")
        told = socket.hear()
        self.assertIsInstance(told, Closed)
        self.assertNotEqual(told.code, 1006)

    def test_path_that_is_none(self) -> None:
        self.assertEqual(self.socket(path="//chat").hear(), Refused(400))

    def test_many(self) -> None:
        sockets = [self.socket() for _ in range(20)]
        for socket in sockets:
            self.assertEqual(socket.hear(), Opened(""))
        for number, socket in enumerate(sockets):
            socket.say(Message(Kind.TEXT, b"%d" % number))
        for number, socket in enumerate(sockets):
            self.assertEqual(socket.hear(), Message(Kind.TEXT, b"you said %d" % number))

    def test_application_that_fails(self) -> None:
        socket = self.socket()
        socket.hear()
        socket.say(Message(Kind.BINARY, b"no text"))  # the example's receive_text raises
        self.assertEqual(socket.hear().code, 1011)

    def test_recording_opens_nothing(self) -> None:
        socket = self.socket()
        first: list[bytes] = []
        made = PageSocket(self.page.keys, Request(b"GET", b"https", AUTHORITY.encode(), b"/chat"), 0.0)
        first += [effect.data for effect in made.effects() if isinstance(effect, Send)]
        for _ in range(2):
            link = connect(f"ws://127.0.0.1:{self.page.port}{SOCKET_PATH}", subprotocols=[NOISE], compression=None)
            self.addCleanup(link.close)
            link.send(first[0])
            self.assertEqual(len(link.recv(10)), 304)  # and no more: the application is not called
            with self.assertRaises(TimeoutError):
                link.recv(0.3)
        self.assertEqual(socket.hear(), Opened(""))

    def test_nonsense(self) -> None:
        for data in (b"", b"x" * 560, b"x" * 304, "text"):
            link = connect(f"ws://127.0.0.1:{self.page.port}{SOCKET_PATH}", subprotocols=[NOISE], compression=None)
            self.addCleanup(link.close)
            link.send(data)
            with self.assertRaises(ConnectionClosed):
                link.recv(10)
        for protocols in (None, [Subprotocol("chat")]):
            with self.assertRaises(InvalidStatus):
                connect(f"ws://127.0.0.1:{self.page.port}{SOCKET_PATH}", subprotocols=protocols)

    def test_direct(self) -> None:
        link = connect(f"ws://127.0.0.1:{self.page.port}/chat", compression=None)
        self.addCleanup(link.close)
        link.send("past the tunnel")
        self.assertEqual(link.recv(10), "you said past the tunnel")
        with self.assertRaises(InvalidStatus):
            connect(f"ws://127.0.0.1:{self.page.port}/me/socket")
