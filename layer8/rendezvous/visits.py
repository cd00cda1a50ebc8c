"""Streams to hidden services for programs: one circuit for each service and user, opened when it is needed.

::

    visits = Visits(ways, tasks, find)
    SocksServer(..., hidden=visits)

`find(name, fresh)` gives the service that a name means, with its descriptor, and one that was not kept if `fresh`; it
raises `NotFound`, whose code says why not. It is asked for every stream, since a name may mean another key by then, and
keeps what it has found. A service that is not met by what was kept is looked for once more.
What a program says before the service has answered is kept, up to EARLY bytes. Streams of users with different keys
never share a circuit: the service would know that they are one. Names of one service do share it, and where we log in
there is one circuit for all users: the service knows anyway, and takes a login once.

A circuit that stands looks well for a minute after its rendezvous hop or the service hangs. So a service that has said
nothing for T_SILENT after we spoke is asked whether it is there; if it does not answer in T_PING the circuit is closed,
its streams hear TIMEOUT, and the next one meets the service anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Any, Final, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError

from layer8.core.errors import Layer8Error, LocalProtocolError
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.relay.client import Destroy, Early, Open, Origin, Proto, Reason, Sink, StreamLike
from layer8.rendezvous.client import NotMet, Step, meet
from layer8.rendezvous.limits import MAX_EFFORT, STREAMS_PER_SESSION, T_PING
from layer8.rendezvous.ways import Told, Ways
from layer8.rendezvous.wire import Renzv

LOOK: Final = 1.0  # seconds between looks at circuits
T_SILENT: Final = 3.0  # seconds without a word, after which a service is asked whether it is there
IDLE: Final = 600.0  # seconds without a stream, after which a circuit on which we have logged in is closed
VISITS: Final = 256  # that are begun and have not come to anything
KEPT: Final = 32  # circuits that stand, beyond which one goes that nobody uses: a link takes 64 of one user
STALE: Final = 1024  # services whose circuits others have ended

NO_DESCRIPTOR: Final = 0xF0
BAD_DESCRIPTOR: Final = 0xF1
INTRODUCTION_FAILED: Final = 0xF2
RENDEZVOUS_FAILED: Final = 0xF3
CLIENT_MISSING: Final = 0xF4
CLIENT_WRONG: Final = 0xF5
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
class Call(Early):
    """A program's stream: first it waits for a circuit, then it is a stream on one."""

    sink: Caller = field(repr=False)
    port: int

    def close(self, reason: Reason = Reason.DONE) -> None:
        """End both directions."""
        self.settle()
        if self._stream is not None:
            self._stream.close(reason)

    def got(self, circuit: Circuit) -> None:
        """Open the stream, or say why not."""
        if self.settled:
            return
        if isinstance(circuit, NotFound):
            self._refuse(circuit.code)
            return
        if isinstance(circuit, NotMet):
            self._refuse(CODES[circuit.step])
            return
        try:
            stream = circuit.open(Open(Proto.TCP, "", self.port), self.sink)
        except LocalProtocolError:
            self._refuse(RENDEZVOUS_FAILED)
            return
        self.begun(stream)
        self.settle()
        self.release()

    def _refuse(self, code: int) -> None:
        self.settle()
        self.sink.refused(code)


@define(eq=False)
class Standing:
    """A circuit to a service, and whether it still stands."""

    origin: Origin
    known: bool  # we have logged in
    _quiet: float  # since when we wait for a word, or wait for nothing
    used: float = field(init=False)  # when there was a stream last
    _came: int = field(default=0, init=False)
    _sent: int = field(default=0, init=False)
    _owed: bool = field(default=False, init=False)  # we have said something since the last word
    _asked: float | None = field(default=None, init=False)  # when it was asked, until it says something
    _own: int = field(default=0, init=False)  # cells of the question that have not left

    def __attrs_post_init__(self) -> None:
        """Begin where the circuit stands."""
        self.used = self._quiet
        self._came, self._sent = self.origin.came, self.origin.sent

    @property
    def takes(self) -> bool:
        """Say whether one more stream has a place on it; where we log in there is no other one."""
        return self.origin.takes and (self.known or len(self.origin.streams.live) < STREAMS_PER_SESSION)

    def look(self, now: float) -> None:
        """Ask whether it stands, if there is reason to doubt it, and close it if it does not, or is idle."""
        origin = self.origin
        heard, said = origin.came - self._came, origin.sent - self._sent
        self._came, self._sent = origin.came, origin.sent
        if said and self._own:
            said, self._own = said - self._own, 0
        if heard:
            # What we said before it spoke may be answered or not; the answer to our question alone settles it.
            self._owed = said > 0 if self._asked is not None and heard == 1 else True
            self._quiet, self._asked = now, None
        elif said and not self._owed:
            self._owed = True
            if self._asked is None:
                self._quiet = now
        if self._asked is not None:
            if now - self._asked >= T_PING:
                origin.close(Destroy.TIMEOUT)
        elif self._owed and now - self._quiet >= T_SILENT:
            self._asked, self._own, self._owed = now, 1, False
            origin.add(Renzv.PING, b"")
        if origin.streams.live:
            self.used = now
        elif self.known and now - self.used >= IDLE:
            origin.close()


@define(eq=False)
class Visits:
    """See the module: `layer8.socks.server.Hidden`. `alert` hears what services tell unasked, in words."""

    _ways: Ways
    _tasks: TaskSet
    _find: Find
    max_effort: int = MAX_EFFORT
    alert: Callable[[str], None] = field(default=lambda text: None, repr=False)
    _circuits: dict[Hashable, Standing] = field(factory=dict, init=False, repr=False)  # by service and user, or login
    _standing: dict[Origin, Standing] = field(factory=dict, init=False, repr=False)  # all, also those that take no more
    _stale: set[Hashable] = field(factory=set, init=False, repr=False)  # others have ended the circuit
    _waiting: dict[Hashable, list[Call]] = field(factory=dict, init=False, repr=False)
    _timer: Any = field(default=None, init=False, repr=False)

    def open(self, name: str, port: int, caller: Caller, key: Hashable) -> StreamLike:
        """Open a stream to a virtual port of a service; `caller.refused(code)` says why not."""
        call = Call(caller, port)
        asked = (name, key)
        if asked in self._waiting:
            self._waiting[asked].append(call)
        elif len(self._waiting) >= VISITS:
            caller.refused(INTRODUCTION_FAILED)
        else:
            self._waiting[asked] = [call]
            self._tasks.start("visit", self._visit(name, key))
        return call

    def close(self) -> None:
        """Leave all services."""
        for origin in list(self._standing):
            origin.close()
        self._rest()

    async def _visit(self, name: str, key: Hashable) -> None:
        place: Hashable = (name, key)
        circuit: Circuit = NotMet("this client is stopping", Step.RENDEZVOUS)
        try:
            found = await self._find(name, False)
            place, there = self._share((name, key), found)
            if there is not None:
                circuit = there
            elif place is not None:
                if place in self._stale:  # it may have let everybody go, for another descriptor
                    self._stale.discard(place)
                    found = await self._fresh(name, found)
                circuit = await self._reach(name, found)
                self._keep(place, circuit, found.login is not None)
        except CancelledError:
            raise
        except (NotFound, NotMet) as error:
            circuit = error
        finally:
            for call in self._waiting.pop(place, ()):
                call.got(circuit)

    def _share(self, asked: Hashable, found: Found) -> tuple[Hashable, Origin | None]:
        """Give the place of a service for a user, whatever he has called it, and the circuit if there is one.

        There is one for all users where we log in. No place where another visit is building the circuit already.
        """
        login = found.login
        place = (found.service, asked[1] if login is None else login.node_id)  # type: ignore[index]
        there = self._circuits.get(place)
        if there is not None and there.takes:
            return asked, there.origin
        if place in self._waiting:
            self._waiting[place] += self._waiting.pop(asked)
            return None, None
        if there is not None and login is not None:  # the old one would answer when the service asks for it
            there.origin.close()
        self._waiting[place] = self._waiting.pop(asked)
        return place, None

    async def _reach(self, name: str, found: Found) -> Origin:
        """Meet a service; if it was told of us and has not come, its descriptor may be an old one."""
        try:
            return await self._meet(found, patient=False)
        except NotMet as error:
            again = await self._fresh(name, found)
            if again == found and error.step is not Step.LATE:
                raise
            return await self._meet(again, error.tried if again == found else ())

    async def _fresh(self, name: str, found: Found) -> Found:
        """Look for a later descriptor of the same service: whoever has the name by now gets a place of his own."""
        again = await self._find(name, True)
        if again.service != found.service:
            raise NotMet("the name leads to another service by now", Step.INTRODUCTION)
        return again

    async def _meet(self, found: Found, without: Collection[bytes] = (), *, patient: bool = True) -> Origin:
        return await meet(
            self._ways,
            found.service,
            found.told,
            cookie=found.cookie,
            login=found.login,
            max_effort=self.max_effort,
            kept=found.login is not None,
            alert=self.alert,
            without=without,
            patient=patient,
        )

    def _keep(self, place: Hashable, circuit: Origin, known: bool) -> None:
        if len(self._standing) >= KEPT:
            idle = [one for one in self._standing.values() if not one.origin.streams.live]
            if idle:
                min(idle, key=lambda one: one.used).origin.close()
        there = Standing(circuit, known, self._ways.seconds())
        self._circuits[place] = self._standing[circuit] = there

        def ended(reason: object) -> None:
            if self._circuits.get(place) is there:
                del self._circuits[place]
                if len(self._stale) < STALE:
                    self._stale.add(place)
            del self._standing[circuit]
            if not self._standing:
                self._rest()

        circuit.at_end = ended
        if self._timer is None:
            self._timer = self._ways.later(LOOK, self._look)

    def _look(self) -> None:
        self._timer = self._ways.later(LOOK, self._look)
        now = self._ways.seconds()
        for there in list(self._standing.values()):
            there.look(now)

    def _rest(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
