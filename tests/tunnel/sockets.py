"""A relay and a gateway for sockets alone, in one: pages talk to a `GatewaySocket` that a test may misuse."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from attrs import define, field
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from layer8.core.session import Close, Send, Tell
from layer8.crypto.keys import NodeKey
from layer8.tunnel import frames
from layer8.tunnel.frames import Kind, Message
from layer8.tunnel.keys import GatewayKey, pin_text
from layer8.tunnel.socket_session import Closed, GatewaySocket, Open, Routed
from layer8.tunnel.target import Allowed


def echo(session: GatewaySocket, message: Message, now: float) -> None:
    """Say the same; "close" closes."""
    if message.data == b"close":
        session.close(4001, "as asked", now)
    else:
        session.send(message)


@define(eq=False)
class SocketRelay:
    """Listens on loopback until `close`; give pages `connect`."""

    reactor: Any
    status: int = 200
    protocol: str = ""
    answer: Callable[[GatewaySocket, Message, float], None] = echo
    mute: bool = False  # says nothing that the page could hear
    routed: list[Routed] = field(factory=list)
    closed: list[Closed] = field(factory=list)
    carried: list[tuple[bool, bytes]] = field(factory=list)  # up?, each message
    open: list[Any] = field(factory=list)
    _identity: NodeKey = field(factory=NodeKey.make)
    key: GatewayKey = field(factory=lambda: GatewayKey.make(int(datetime.now(UTC).timestamp() // 3600)))
    _port: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Listen."""
        factory = WebSocketServerFactory(protocols=[frames.PROTOCOL])
        factory.protocol = _protocol(self)
        # Its timers would outlive a test.
        factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0)
        root, keys, ws = Resource(), Resource(), Resource()
        root.putChild(b"r", keys)
        keys.putChild(b"shop", shop := Resource())
        shop.putChild(b"keys", _Keys(self))
        root.putChild(b"ws", ws)
        ws.putChild(b"shop", WebSocketResource(factory))
        site = Site(root)
        site.noisy = False
        site.log = lambda request: None  # type: ignore[method-assign]
        self._port = self.reactor.listenTCP(0, site, interface="127.0.0.1")

    @property
    def connect(self) -> dict[str, Any]:
        """Give what L8.connect takes."""
        relay = f"http://127.0.0.1:{self._port.getHost().port}"
        return {"relay": relay, "gateway": "shop", "authority": "shop.test", "pin": pin_text(self._identity.node_id)}

    def document(self) -> bytes:
        """Give the key set."""
        return self.key.key_set("shop", ["shop.test"]).sign(self._identity)

    async def ended(self) -> None:
        """Wait until every socket has ended."""
        while self.open:
            await deferLater(self.reactor, 0.01)

    async def close(self) -> None:
        """End everything."""
        for one in list(self.open):
            one.transport.abortConnection()
        await self.ended()
        await maybeDeferred(self._port.stopListening)


class _Keys(Resource):
    isLeaf = True

    def __init__(self, relay: SocketRelay) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._relay = relay

    def render_GET(self, request: Request) -> bytes:
        request.setHeader("access-control-allow-origin", "*")
        request.setHeader("content-type", "application/jose+json")
        return self._relay.document()


def _protocol(relay: SocketRelay) -> type[WebSocketServerProtocol]:
    class Pipe(WebSocketServerProtocol):
        def onConnect(self, request: Any) -> str:
            assert request.protocols == [frames.PROTOCOL]
            return frames.PROTOCOL

        def onOpen(self) -> None:
            relay.open.append(self)
            self.session = GatewaySocket("shop", [relay.key], Allowed.of(["shop.test"]), self.now())

        def now(self) -> float:
            return relay.reactor.seconds()  # type: ignore[no-any-return]

        def onMessage(self, payload: bytes, isBinary: bool) -> None:
            assert isBinary
            relay.carried.append((True, payload))
            self.session.received(payload, self.now())
            self.settle()

        def settle(self) -> None:
            for effect in self.session.effects():
                match effect:
                    case Send(data):
                        if not relay.mute and self.state == self.STATE_OPEN:
                            relay.carried.append((False, bytes(data)))
                            self.sendMessage(bytes(data), True)
                    case Close():
                        self.sendClose(1000)
                    case Tell(Routed() as routed):
                        relay.routed.append(routed)
                        self.session.status(relay.status, self.now())
                        self.settle()
                    case Tell(Open()):
                        self.session.opened(self.now(), relay.protocol)
                        self.settle()
                    case Tell(Closed() as closed):
                        relay.closed.append(closed)
                    case Tell(Message(kind=Kind.TEXT | Kind.BINARY) as message):
                        relay.answer(self.session, message, self.now())
                        self.settle()

        def onClose(self, wasClean: bool, code: int, reason: str) -> None:
            if self in relay.open:
                relay.open.remove(self)
                self.session.lost(self.now())
                self.settle()

    return Pipe
