"""Ears on a leg: what passes between two parties is kept, and may be changed or cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from zope.interface import implementer

Meddle = Callable[[bool, bytes], bytes]
"""Takes whether bytes go up, and the bytes; gives what goes on instead."""


@define(eq=False)
class Link:
    """One connection: who has made it, and what went either way."""

    peer: tuple[str, int]
    up: bytearray = field(factory=bytearray)
    down: bytearray = field(factory=bytearray)
    sides: list[Any] = field(factory=list, repr=False)


@define(eq=False)
class Tap:
    """Listens on a port of loopback and joins who comes with `target`; dials from the address that they came from."""

    reactor: Any
    target: int | str  # a port of loopback or the path of a Unix socket
    links: list[Link] = field(factory=list)
    meddle: Meddle | None = None
    open: bool = True  # or nobody is let in
    keep: bool = True  # what passes; or it is only passed on
    source: str = ""  # the address to dial from, else that of whoever came
    port: int = field(default=0, init=False)
    _listening: Any = field(default=None, init=False)

    def listen(self, port: int = 0) -> None:
        """Begin, again on the port that it had."""
        self._listening = self.reactor.listenTCP(port or self.port, _Near(self), interface="127.0.0.1", backlog=512)
        self.port = self._listening.getHost().port

    @property
    def up(self) -> bytes:
        """Give all bytes to the target, connection by connection."""
        return b"".join(bytes(link.up) for link in self.links)

    @property
    def down(self) -> bytes:
        """Give all bytes from the target."""
        return b"".join(bytes(link.down) for link in self.links)

    def clear(self) -> None:
        """Forget what has passed; connections go on."""
        self.links = [link for link in self.links if any(side.connected for side in link.sides)]
        for link in self.links:
            link.up.clear()
            link.down.clear()

    def cut(self) -> None:
        """Cut every connection."""
        for link in self.links:
            for side in link.sides:
                if side.transport is not None:
                    side.transport.abortConnection()

    async def close(self) -> None:
        """Listen no more and cut everything."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await maybeDeferred(listening.stopListening)
        self.cut()


class _Near(Factory):
    noisy = False

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def buildProtocol(self, addr: Any) -> Protocol | None:
        if not self._tap.open:
            return None
        link = Link((addr.host, addr.port))
        self._tap.links.append(link)
        return _Side(self._tap, link, up=True)


class _Far(ClientFactory):
    noisy = False

    def __init__(self, near: _Side) -> None:
        self._near = near

    def buildProtocol(self, addr: Any) -> Protocol:
        side = _Side(self._near.tap, self._near.link, up=False)
        side.other, self._near.other = self._near, side
        return side

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        reason.trap(ConnectError, OSError)
        if self._near.transport is not None:
            self._near.transport.abortConnection()  # type: ignore[attr-defined]


@implementer(IHalfCloseableProtocol)
class _Side(Protocol):
    """One end; reads no faster than the other takes, and tells it when there is no more to read."""

    def __init__(self, tap: Tap, link: Link, *, up: bool) -> None:
        self.tap, self.link, self._up = tap, link, up
        self.other: _Side | None = None
        link.sides.append(self)

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        if self._up:
            transport.pauseProducing()
            reactor, target, far = self.tap.reactor, self.tap.target, _Far(self)
            if isinstance(target, str):
                reactor.connectUNIX(target, far)
            else:
                reactor.connectTCP("127.0.0.1", target, far, bindAddress=(self.tap.source or self.link.peer[0], 0))
        else:
            assert self.other is not None
            other: Any = self.other.transport
            transport.registerProducer(other, True)
            other.registerProducer(transport, True)
            other.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        if self.tap.keep:
            (self.link.up if self._up else self.link.down).extend(data)
        if self.tap.meddle is not None:
            data = self.tap.meddle(self._up, data)
        if self.other is not None and self.other.transport is not None and data:
            self.other.transport.write(data)

    def readConnectionLost(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.loseWriteConnection()  # type: ignore[attr-defined]
        elif self.transport is not None:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Any = None) -> None:
        if self.other is not None and self.other.transport is not None:
            transport: Any = self.other.transport
            transport.unregisterProducer()
            transport.loseConnection()
