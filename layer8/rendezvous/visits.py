"""Streams to hidden services for programs: one circuit for each service and user, opened when it is needed.

::

    visits = Visits(ways, tasks, find)
    SocksServer(..., hidden=visits)

`find(name, fresh)` gives the service that a name means, with its descriptor, and one that was not kept if `fresh`; it
raises `NotFound`, whose code says why not. A service that is not met by what was kept is looked for once more.
What a program says before the service has answered is kept, up to EARLY bytes. Streams of users with different keys
never share a circuit: the service would know that they are one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError

from layer8.core.errors import Layer8Error, LocalProtocolError
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.relay.client import Open, Origin, Proto, Reason, Sink, Stream, StreamLike
from layer8.rendezvous.client import NotMet, Step, meet
from layer8.rendezvous.ways import Told, Ways

EARLY: Final = 512 * 1024  # bytes that are kept until there is a circuit; then the program has to wait

NO_DESCRIPTOR: Final = 0xF0
BAD_DESCRIPTOR: Final = 0xF1
INTRODUCTION_FAILED: Final = 0xF2
RENDEZVOUS_FAILED: Final = 0xF3
BAD_ADDRESS: Final = 0xF6
INTRODUCTION_TIMED_OUT: Final = 0xF7
CODES: Final = {
    Step.INTRODUCTION: INTRODUCTION_FAILED,
    Step.RENDEZVOUS: RENDEZVOUS_FAILED,
    Step.LATE: INTRODUCTION_TIMED_OUT,
}
"""What a program at a SOCKS port is answered, as Tor's extension numbers it."""


class NotFound(Layer8Error):
    """A name leads to no service; `code` is what a program is answered."""

    def __init__(self, text: str, code: int = NO_DESCRIPTOR) -> None:
        """Say why in words and as a code."""
        super().__init__(text)
        self.code = code


@frozen
class Found:
    """A service: its key, its descriptor, and what its known clients have."""

    service: bytes
    told: Told
    cookie: bytes = field(default=b"", repr=False)
    login: NodeKey | None = None


class Caller(Sink, Protocol):
    """A sink that can be refused in more detail."""

    def refused(self, code: int) -> None:
        """Take the end before there was a beginning."""


Find = Callable[[str, bool], Awaitable[Found]]
Circuit = Origin | NotMet | NotFound


@define(eq=False)
class Call:
    """A program's stream: first it waits for a circuit, then it is a stream on one."""

    caller: Caller = field(repr=False)
    port: int
    number: int = 0
    over: bool = field(default=False, init=False)
    _stream: Stream | None = field(default=None, init=False)
    _early: list[bytes] = field(factory=list, init=False, repr=False)
    _size: int = field(default=0, init=False)
    _held: bool = field(default=False, init=False)
    _ending: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)

    def write(self, data: bytes) -> None:
        """Say bytes."""
        if self._stream is not None:
            self._stream.write(data)
            return
        self._early.append(data)
        self._size += len(data)
        if self._size >= EARLY and not self._held:
            self._held = True
            self.caller.hold()

    def end(self) -> None:
        """Say no more; the other direction goes on."""
        self._ending = True
        if self._stream is not None:
            self._stream.end()

    def close(self, reason: Reason = Reason.DONE) -> None:
        """End both directions."""
        self.over = True
        self._early.clear()
        if self._stream is not None:
            self._stream.close(reason)

    def pause(self) -> None:
        """Give the far end no more credit."""
        self._paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        """Give credit again."""
        self._paused = False
        if self._stream is not None:
            self._stream.resume()

    def got(self, circuit: Circuit) -> None:
        """Open the stream, or say why not."""
        if self.over:
            return
        if isinstance(circuit, NotFound):
            self._refuse(circuit.code)
            return
        if isinstance(circuit, NotMet):
            self._refuse(CODES[circuit.step])
            return
        try:
            stream = circuit.open(Open(Proto.TCP, "", self.port), self.caller)
        except LocalProtocolError:
            self._refuse(RENDEZVOUS_FAILED)
            return
        self._stream, self.number = stream, stream.number
        if self._paused:
            stream.pause()
        early, self._early = self._early, []
        for data in early:
            stream.write(data)
        if self._ending:
            stream.end()
        if self._held and not stream.held:
            self.caller.go_on()
        self._held = False

    def _refuse(self, code: int) -> None:
        self.over = True
        self._early.clear()
        self.caller.refused(code)


@define(eq=False)
class Visits:
    """See the module: `layer8.socks.server.Hidden`."""

    _ways: Ways
    _tasks: TaskSet
    _find: Find
    _circuits: dict[Hashable, Origin] = field(factory=dict, init=False, repr=False)
    _waiting: dict[Hashable, list[Call]] = field(factory=dict, init=False, repr=False)

    def open(self, name: str, port: int, caller: Caller, key: Hashable) -> StreamLike:
        """Open a stream to a virtual port of a service; `caller.refused(code)` says why not."""
        call = Call(caller, port)
        place = (name, key)
        origin = self._circuits.get(place)
        if origin is not None and origin.takes:
            call.got(origin)
        elif place in self._waiting:
            self._waiting[place].append(call)
        else:
            self._waiting[place] = [call]
            self._tasks.start("visit", self._visit(place, name))
        return call

    def close(self) -> None:
        """Leave all services."""
        for origin in list(self._circuits.values()):
            origin.close()

    async def _visit(self, place: Hashable, name: str) -> None:
        circuit: Circuit = NotMet("this client is stopping", Step.RENDEZVOUS)
        try:
            found = await self._find(name, False)
            try:
                circuit = await self._meet(found)
            except NotMet as error:
                circuit = error
                again = await self._find(name, True)
                if again != found:
                    circuit = await self._meet(again)
        except CancelledError:
            raise
        except (NotFound, NotMet) as error:
            circuit = error
        finally:
            waiting = self._waiting.pop(place)
            if isinstance(circuit, Origin):
                self._keep(place, circuit)
            for call in waiting:
                call.got(circuit)

    async def _meet(self, found: Found) -> Origin:
        return await meet(self._ways, found.service, found.told, cookie=found.cookie, login=found.login)

    def _keep(self, place: Hashable, origin: Origin) -> None:
        self._circuits[place] = origin

        def ended(reason: object) -> None:
            if self._circuits.get(place) is origin:
                del self._circuits[place]

        origin.at_end = ended
