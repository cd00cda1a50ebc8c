"""Counting what is accepted: a total, and a share per network, so that one source cannot take every place."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from layer8.core.address import source_key


@define(eq=False)
class Places:
    """How many connections there are, in all and per source (/24, /56); used by factories and by raw listeners."""

    most: int
    most_per_source: int
    open: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    _sources: dict[str, int] = field(factory=dict, init=False, repr=False)

    def take(self, address: str, expected: int = 0) -> str | None:
        """Take a place for an address: the key to give it back with, or None if it is refused.

        An empty address is a peer without one, as behind a Unix socket: only the total counts for it. Of those who
        are `expected`, any number may come from one source, beyond the limits for everybody.
        """
        source = source_key(address)
        there = self._sources.get(source, 0)
        if self.open >= self.most + expected or (source and there >= self.most_per_source + expected):
            self.refused += 1
            return None
        self._sources[source] = there + 1
        self.open += 1
        self.accepted += 1
        return source

    def take_again(self, source: str) -> None:
        """Take one more place for a source that is about to give one back, whatever the limits say."""
        self._sources[source] = self._sources.get(source, 0) + 1
        self.open += 1

    def give(self, source: str) -> None:
        """Give a place back by its key, once."""
        left = self._sources[source] - 1
        if left:
            self._sources[source] = left
        else:
            del self._sources[source]
        self.open -= 1

    def of(self, address: str) -> int:
        """Count the places that the source of an address has."""
        return self._sources.get(source_key(address), 0)


@implementer(IProtocolFactory)
@define(eq=False)
class CountingFactory:
    """A factory in front of another one: within the caps its protocols are built, beyond them nothing is.

    It stands outermost, in front of TLS, so that a refused peer costs no handshake.
    """

    inner: IProtocolFactory
    places: Places

    def buildProtocol(self, addr: IAddress) -> IProtocol:
        """Build the inner protocol, or one that resets the connection."""
        source = self.places.take(getattr(addr, "host", None) or "")
        if source is None:
            return _Refusal()
        try:
            built = self.inner.buildProtocol(addr)
        except BaseException:
            self.places.give(source)
            raise
        if built is None:
            self.places.give(source)
            return _Refusal()
        return _Counted(built, self.places, source)

    def doStart(self) -> None:
        """Pass it on."""
        self.inner.doStart()

    def doStop(self) -> None:
        """Pass it on."""
        self.inner.doStop()


@implementer(IProtocol)
class _Refusal:
    """A connection that ends at once."""

    def makeConnection(self, transport: ITransport) -> None:
        """Reset it: a refused peer leaves nothing behind, not even TIME_WAIT."""
        if ITCPTransport.providedBy(transport):
            transport.abortConnection()
        else:
            transport.loseConnection()

    def connectionMade(self) -> None:
        """Never called: `makeConnection` does not pass it on."""

    def dataReceived(self, data: bytes) -> None:
        """Drop it."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Expected."""


@implementer(IProtocol)
class _Counted:
    """The inner protocol with a count; the inner one talks to the transport itself."""

    def __init__(self, inner: IProtocol, places: Places, source: str) -> None:
        self._inner = inner
        self._places = places
        self._source: str | None = source
        if IHalfCloseableProtocol.providedBy(inner):
            self.readConnectionLost = inner.readConnectionLost
            self.writeConnectionLost = inner.writeConnectionLost
            alsoProvides(self, IHalfCloseableProtocol)

    def makeConnection(self, transport: ITransport) -> None:
        self._inner.makeConnection(transport)

    def connectionMade(self) -> None:
        self._inner.connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._source is not None:
            self._places.give(self._source)
            self._source = None
        self._inner.connectionLost(reason)
