"""What stands behind a virtual port of a hidden service: a program at an endpoint, or a function of ours.

::

    ports = Ports(reactor, tasks, {80: "tcp:localhost:8000", 7: Echo})
    HiddenService(..., asked=ports.asked, ...)

 stream --Sink.data--> transport.write      while the program takes no more, the far end gets no credit
 program --dataReceived--> Stream.write     while the far end takes no more, the program is not read

A program is dialled for a stream of a client that was met, and for nobody else. It hears no address of him: there is
none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, runtime_checkable

from attrs import define, field
from twisted.internet import error
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory

from layer8.core.errors import ConfigError
from layer8.net.tasks import TaskSet
from layer8.relay.client import Address, Carried, Opened, Reason, Sink, Stream

DIAL_TIME: Final = 10.0  # seconds that a program has to answer
LEAVE_TIME: Final = 15.0  # seconds that a slow program has to take the last bytes
YES: Final = Opened(Address(""), 0)

Function = Callable[[Stream], Sink]
"""Makes the sink of a stream that a client has opened."""


@runtime_checkable
class Begins(Protocol):
    """A sink that has something to say before it is asked."""

    def begin(self) -> None:
        """Say it: the stream has been accepted."""


@runtime_checkable
class Timed(Protocol):
    """A function whose sinks wait no longer than they have to."""

    clock: Any  # a reactor


@define(eq=False)
class Ports:
    """The virtual ports of one service, each with an endpoint string or a function; may raise ConfigError."""

    _reactor: Any
    _tasks: TaskSet
    _targets: Mapping[int, str | Function]
    _open: set[Connection] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        """Read every endpoint now, so that a wrong one is heard of at once."""
        for port, target in self._targets.items():
            if not 0 < port < 65536:
                raise ConfigError(f"{port}: a port is 1 to 65535")
            if isinstance(target, str):
                try:
                    clientFromString(self._reactor, target)
                except (ValueError, TypeError) as problem:
                    raise ConfigError(f"{target!r}: no endpoint to dial: {problem}") from None
                continue
            made: object = target
            if isinstance(made, Timed):
                made.clock = self._reactor

    def asked(self, stream: Stream, port: int, login: bytes | None) -> None:
        """Take a stream that a client opens, or refuse it."""
        target = self._targets.get(port)
        if target is None:
            stream.close(Reason.NO_PORT)
        elif isinstance(target, str):
            self._tasks.start("hidden port", self._dial(stream, target))
        else:
            sink = stream.sink = target(stream)
            stream.accept(YES)
            if isinstance(sink, Begins):
                sink.begin()

    def close(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            connection.closed(Reason.RESET)

    async def _dial(self, stream: Stream, target: str) -> None:
        made = Connection(self._reactor, self._open.discard)
        dialled = clientFromString(self._reactor, target).connect(Factory.forProtocol(lambda: made))
        dialled.addTimeout(DIAL_TIME, self._reactor)
        stream.sink = Dialling(dialled)
        try:
            await dialled
        except CancelledError:
            if stream.closed or stream.last is not None:
                return
            raise
        except (error.ConnectError, error.ConnectingCancelledError, error.DNSLookupError, TimeoutError) as problem:
            stream.close(Reason.REFUSED if isinstance(problem, error.ConnectionRefusedError) else Reason.UNREACHABLE)
            return
        except error.UserError:
            stream.close(Reason.UNREACHABLE)
            return
        if stream.closed or stream.last is not None:
            made.closed(Reason.RESET)
            return
        self._open.add(made)
        made.start(stream)


@define(eq=False)
class Dialling:
    """The sink of a stream whose program is being dialled: if it ends before, nobody waits for the program."""

    _dialled: Deferred[Any]

    def opened(self, opened: Opened) -> None:
        """Hear what only the other end of a stream does."""

    def data(self, pieces: list[bytes]) -> None:
        """Hear nothing: what is said early is kept."""

    def ended(self) -> None:
        """Hear nothing: it is said again."""

    def closed(self, reason: Reason) -> None:
        """Dial no more."""
        self._dialled.cancel()

    def hold(self) -> None:
        """Hear nothing: nothing is said yet."""

    def go_on(self) -> None:
        """Hear nothing."""


class Connection(Carried):
    """A connection to a program, as the sink of a stream; each half ends by itself."""

    LEAVE_TIME = LEAVE_TIME

    def __init__(self, clock: IReactorTime, gone: Callable[[Connection], None]) -> None:
        """Wait for a connection."""
        super().__init__(clock)
        self._tell = gone

    def start(self, stream: Stream) -> None:
        """Say yes, and carry bytes from now on."""
        if self._over:
            stream.close(Reason.RESET)
            return
        self.stream = stream
        stream.sink = self
        self.transport.registerProducer(self, True)
        stream.accept(YES)
        self.transport.resumeProducing()

    def connectionMade(self) -> None:
        """Wait for `start`."""
        if not isinstance(self.transport.getPeer(), UNIXAddress):
            self.transport.setTcpNoDelay(True)
        self.transport.pauseProducing()

    def gone(self) -> None:
        """Tell that the connection is over."""
        self._tell(self)
