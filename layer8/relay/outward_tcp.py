"""A target's TCP connection as the sink of a stream: half closes and back-pressure go both ways."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.relay.exit import Account
from layer8.relay.limits import ACK_EVERY, BURST, T_LINGER
from layer8.relay.turn import StreamLike
from layer8.relay.wire import DATA, DATA_TAGGED, Reason

READ: Final = BURST // ACK_EVERY * ((ACK_EVERY - 1) * DATA + DATA_TAGGED)  # bytes that fill BURST cells
WRITE_MOST: Final = 1 << 20  # bytes that may wait for a slow target, beyond the transport's own READ

_UNREACHABLE = frozenset(
    (
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
        errno.EACCES,
        errno.EPERM,
    )
)


@implementer(IHalfCloseableProtocol, IPushProducer)
class Connection(TwistedProtocol):
    """A TCP connection to a target, as the `Sink` of a stream: BURST full cells a read, each half ends by itself."""

    transport: Any  # ITCPTransport

    def __init__(self, account: Account, address: str, port: int, clock: IReactorTime) -> None:
        """Stand for a connection to `address` that `account` has counted."""
        self.address = address
        self.port = port
        self._account = account
        self._clock = clock
        self._stream: StreamLike | None = None
        self._lost: Reason | None = None
        self._made = self._over = self._given_back = False
        self._in_ended = self._out_ended = self._shut = self._full = False
        self._unsent = 0
        self._linger: IDelayedCall | None = None
        self.tell: Callable[[Failure | None], None] = _nobody

    def start(self, stream: StreamLike) -> None:
        """Carry bytes between the target and `stream` from now on; before it is accepted, for what came early."""
        self._stream = stream
        if self._lost is not None:
            stream.close(self._lost)
        elif not self._over:
            self.transport.registerProducer(self, True)
            self.transport.resumeProducing()

    # What the stream says.

    def data(self, pieces: list[bytes]) -> None:
        """Send bytes to the target."""
        if self._over or self._out_ended:
            return
        size = sum(map(len, pieces))
        if not self._account.move(size):
            self._fail(Reason.LIMIT)
            return
        if self._full:
            self._unsent += size
            if self._unsent > WRITE_MOST:
                self._fail(Reason.LIMIT)
                return
        self.transport.writeSequence(pieces)

    def ended(self) -> None:
        """Say no more to the target, once everything has left."""
        if not self._over and not self._out_ended:
            self._out_ended = True
            self.transport.unregisterProducer()  # a paused one would keep the end back
            self.transport.loseWriteConnection()

    def closed(self, reason: Reason) -> None:
        """End both halves: after the last bytes if the stream was done, else at once."""
        if self._over:
            return
        self._over = True
        if reason is Reason.DONE and self._stream is not None:
            self._leave()
        else:
            self.transport.abortConnection()

    def hold(self) -> None:
        """Read no more for now."""
        if not self._over:
            self.transport.pauseProducing()

    def go_on(self) -> None:
        """Read again."""
        if not self._over and not self._in_ended:
            self.transport.resumeProducing()

    def opened(self, opened: object) -> None:
        """Hear what only the other end of a stream does."""

    # What Twisted says.

    def connectionMade(self) -> None:
        """Wait for `start`."""
        self._made = True
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self.transport.bufferSize = READ
        self.transport.pauseProducing()
        self.tell(None)

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on."""
        if self._over or self._stream is None:
            return
        if self._account.move(len(data)):
            self._stream.write(data)
        else:
            self._fail(Reason.LIMIT)

    def pauseProducing(self) -> None:
        """Let the stream wait: the target takes no more for now."""
        self._full = True
        if self._stream is not None:
            self._stream.pause()

    def resumeProducing(self) -> None:
        """Let the stream go on."""
        self._full, self._unsent = False, 0
        if self._stream is not None and not self._over:
            self._stream.resume()

    def stopProducing(self) -> None:
        """Hear that the transport is going; `connectionLost` follows."""

    def readConnectionLost(self) -> None:
        """Pass the target's end on."""
        self._in_ended = True
        if self._stream is not None and not self._over:
            self._stream.end()
        if self._shut and not self._over:
            self._over = True
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Close, if the target has ended too."""
        self._shut = True
        if self._in_ended and not self._over:
            self._over = True
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Give everything back, and say how it went unless that is known."""
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._give_back()
        if self._over:
            return
        self._over = True
        if self._stream is None:
            self._lost = reason_of(reason.value)
        else:
            self._stream.close(reason_of(reason.value))

    def give_up(self) -> None:
        """Let the account forget a connection that did not come about, or is not what was wanted."""
        if self._made:
            self.closed(Reason.INTERNAL)
        else:
            self._give_back()

    def _give_back(self) -> None:
        if not self._given_back:
            self._given_back = True
            self._account.closed(self.address)

    def _fail(self, reason: Reason) -> None:
        self._over = True
        self.transport.abortConnection()
        if self._stream is not None:
            self._stream.close(reason)

    def _leave(self) -> None:
        if not self._out_ended:
            self.transport.unregisterProducer()
        self._linger = self._clock.callLater(T_LINGER, self.transport.abortConnection)
        self.transport.loseConnection()


class Once(ClientFactory):
    """Makes one connection of a protocol that exists."""

    noisy = False

    def __init__(self, made: Connection) -> None:
        self._made = made
        self._connector: Any = None
        self._done: Deferred[None] | None = Deferred(self._cancel)

    @classmethod
    def connect(cls, reactor: Any, made: Connection, seconds: float) -> Deferred[None]:
        """Fire when it is there; cancelling gives it up."""
        once = cls(made)
        done = once._done
        assert done is not None
        reactor.connectTCP(made.address, made.port, once, seconds)
        return done

    def startedConnecting(self, connector: IConnector) -> None:
        """Keep what can be stopped."""
        self._connector = connector

    def buildProtocol(self, addr: IAddress | None) -> TwistedProtocol:
        """Hand over the one, which tells when it knows its transport."""
        self._made.tell = self.tell
        return self._made

    def tell(self, failure: Failure | None) -> None:
        """Tell the end once."""
        done, self._done = self._done, None
        if done is not None:
            if failure is None:
                done.callback(None)
            else:
                done.errback(failure)

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        """Tell why."""
        self.tell(reason)

    def _cancel(self, _: object) -> None:
        self._done = None
        self._connector.disconnect()


def reason_of(failure: BaseException | None) -> Reason:
    """Give what RELAY_DISCONNECT says about the end of a connection, or of trying to make one."""
    number = getattr(failure, "osError", None) or getattr(failure, "errno", None)
    match failure:
        case error.ConnectionRefusedError():
            return Reason.REFUSED
        case error.TimeoutError():
            return Reason.TIMEOUT
        case error.NoRouteError():
            return Reason.UNREACHABLE
        case error.ConnectionDone():
            return Reason.DONE
        case error.ConnectionLost() | error.ConnectionAborted():
            return Reason.RESET
    if number in _UNREACHABLE:
        return Reason.UNREACHABLE
    return Reason.RESET if number in (errno.ECONNRESET, errno.ENOTCONN) else Reason.INTERNAL


def _nobody(failure: Failure | None) -> None:
    """Hear that a connection is there while nobody waits for it."""
