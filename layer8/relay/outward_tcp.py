"""A target's TCP connection as the sink of a stream: half closes and back-pressure go both ways."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IConnector, IReactorTime
from twisted.internet.protocol import ClientFactory
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure

from layer8.relay.carried import Carried
from layer8.relay.exit import Account
from layer8.relay.limits import ACK_EVERY, BURST, T_LINGER
from layer8.relay.turn import StreamLike
from layer8.relay.wire import DATA, DATA_TAGGED, Reason

READ: Final = BURST // ACK_EVERY * ((ACK_EVERY - 1) * DATA + DATA_TAGGED)  # bytes that fill BURST cells

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


class Connection(Carried):
    """A TCP connection to a target, as the `Sink` of a stream: BURST full cells a read, each half ends by itself."""

    LEAVE_TIME = T_LINGER

    def __init__(self, account: Account, address: str, port: int, clock: IReactorTime) -> None:
        """Stand for a connection to `address` that `account` has counted."""
        super().__init__(clock)
        self.address = address
        self.port = port
        self._account = account
        self._lost: Reason | None = None
        self._made = self._given_back = False
        self.tell: Callable[[Failure | None], None] = _nobody

    def start(self, stream: StreamLike) -> None:
        """Carry bytes between the target and `stream` from now on; before it is accepted, for what came early."""
        self.stream = stream
        if self._lost is not None:
            stream.close(self._lost)
        elif not self._over:
            self.transport.registerProducer(self, True)
            self.transport.resumeProducing()

    def connectionMade(self) -> None:
        """Wait for `start`."""
        self._made = True
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self.transport.bufferSize = READ
        self.transport.pauseProducing()
        self.tell(None)

    def moved(self, size: int) -> bool:
        """Count what a circuit may move."""
        return self._account.move(size)

    def lost(self, reason: Failure) -> None:
        """Say how it went, now or when there is a stream."""
        self.gone()
        if self.stream is None:
            self._lost = reason_of(reason.value)
        else:
            self.stream.close(reason_of(reason.value))

    def gone(self) -> None:
        """Give everything back."""
        if not self._given_back:
            self._given_back = True
            self._account.closed(self.address)

    def give_up(self) -> None:
        """Let the account forget a connection that did not come about, or is not what was wanted."""
        if self._made:
            self.closed(Reason.INTERNAL)
        else:
            self.gone()


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
