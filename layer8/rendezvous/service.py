"""A hidden service: it listens at access points, and comes to where clients wait for it.

::

    off -> picking points -> listening(n) -> published -> listening ... -> stopping

    service = HiddenService(ways, tasks, key, asked, publish, later)
    service.start()                   `publish(points)` is called whenever the access points or the price have changed
    asked(stream, port, login)        takes the streams that clients open; `stream.close(Reason.NO_PORT)` refuses one

What is no introduction for us is dropped without a word, and counted. Two may not come with one login at a time: while
the first one is there and says so, the second is not let in, and the first is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import Deferred

from layer8.core.errors import LocalProtocolError, RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.introduction import Door, Introduced, introduced
from layer8.crypto.keys import NodeKey, id_text
from layer8.crypto.ntor import HandshakeFailed
from layer8.net.tasks import TaskSet
from layer8.relay.client import OFFER, Destroy, Hop, NoCircuit, Open, Origin, Proto, Reason, Stream
from layer8.rendezvous.descriptor import Point, Price
from layer8.rendezvous.limits import (
    BAD_PORTS,
    BLOB_AGE,
    INTRO_AGE,
    INTRO_QUEUE,
    INTRO_RATE,
    MAX_EFFORT,
    POINT_INTROS,
    POINT_LIFE,
    POINTS,
    SEED_LIFE,
    SESSIONS_PER_SERVICE,
    STREAM_BURST,
    STREAM_RATE,
    STREAMS_PER_SESSION,
    T_PING,
)
from layer8.rendezvous.memory import ServiceMemory
from layer8.rendezvous.points import BEFORE_POINT, Held, Points
from layer8.rendezvous.price import LOOK, Pricing
from layer8.rendezvous.ways import Ways, even
from layer8.rendezvous.wire import Alert, Join, Knock, Renzv, Tune

AT_ONCE: Final = 16  # introductions that are answered at a time, those left out that take longer than SLOT
SLOT: Final = 0.25  # seconds
MEETINGS: Final = 1024  # those included
CROWD_TIME: Final = 600.0  # seconds that a stranger's streams are left to him where others wait for his place
WATCH: Final = 10.0  # seconds between looks whether points pass on as much as they do at most
TELL_AGAIN: Final = 600.0  # seconds until a client is told again that somebody else has its login
RUSH: Final = 0.8  # of that, from which on others find them busy

Asked = Callable[[Stream, int, bytes | None], None]
"""`asked(stream, port, login)`: a client wants this virtual port; `login` is its key if it has said who it is."""


@define(eq=False)
class Session:
    """A client that was met."""

    number: int  # in this process
    origin: Origin = field(repr=False)
    login: bytes | None
    since: float
    mode: int = 1
    used: float = field(init=False)  # when it had a stream, as far as anybody has looked
    bad_ports: int = field(default=0, init=False)
    told: float | None = field(default=None, init=False)  # when it was, that somebody else has its login
    _room: float = field(default=float(STREAM_BURST), init=False)  # for streams
    _asking: list[Deferred[bool]] = field(factory=list, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Begin as one that was just used."""
        self.used = self.since

    def look(self, now: float) -> None:
        """Note that it has a stream."""
        self._room = min(float(STREAM_BURST), self._room + (now - self.used) * STREAM_RATE)
        self.used = now

    def take(self, now: float) -> bool:
        """Take one more stream, if there are not too many a second."""
        self.look(now)
        if self._room < 1:
            return False
        self._room -= 1
        return True

    def ask(self) -> Deferred[bool]:
        """Ask whether the client is there; fires with False if it has gone before it answers."""
        waiting: Deferred[bool] = Deferred()
        self._asking.append(waiting)
        self.origin.add(Renzv.PING, b"")
        return waiting

    def there(self, is_there: bool) -> None:
        """Take the answer, or the end."""
        asking, self._asking = self._asking, []
        for waiting in asking:
            if not waiting.called:
                waiting.callback(is_there)


@define(eq=False)
class HiddenService:
    """See the module. `allow(login)` says whether a client may come; `cookie` is what known clients have.

    `modes` are those by which clients may come, as in its descriptor. `noted(state, session)` hears of sessions that
    are opened and closed, `alert(text)` of what its owner should look at.
    """

    ways: Ways
    tasks: TaskSet
    key: NodeKey
    asked: Asked
    publish: Callable[[tuple[Point, ...]], None]
    later: Callable[[float, Callable[[], None]], Any]  # a reactor's `callLater`
    allow: Callable[[bytes | None], bool] = lambda login: True
    cookie: bytes = field(default=b"", repr=False)
    max_effort: int = MAX_EFFORT
    wanted: int = POINTS
    life: float = POINT_LIFE  # seconds that a point is used
    modes: tuple[int, ...] = (1,)
    memory: ServiceMemory | None = None
    noted: Callable[[str, Session], None] = field(default=lambda state, session: None, repr=False)
    alert: Callable[[str], None] = field(default=lambda text: None, repr=False)
    sessions: dict[Origin, Session] = field(factory=dict, init=False)
    counted: Counter[str] = field(factory=Counter, init=False)  # what has become of knocks
    running: bool = field(default=False, init=False)
    pricing: Pricing = field(init=False, repr=False)
    _places: Points = field(init=False, repr=False)
    _queue: list[tuple[int, int, float, Held, Knock]] = field(factory=list, init=False, repr=False)
    _logins: set[bytes] = field(factory=set, init=False, repr=False)  # whose introduction is being answered
    _coming: int = field(default=0, init=False)  # introductions that are being answered
    _number: int = field(default=0, init=False)
    _busy: int = field(default=0, init=False)
    _timers: dict[int, Any] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Ask for the work that was asked for before a restart, or for none yet."""
        self.pricing = Pricing(self.ways.random, self.max_effort)
        if self.memory is not None and self.memory.seeds:
            self.pricing.restore(self.memory.effort, self.memory.seeds, self.ways.seconds(), self.ways.wall())
        self._places = Points(
            self.ways,
            self.tasks,
            self._knocked,
            self._listens,
            lambda points: self.publish(points),
            self._soon,
            self.wanted,
            self.life,
            self.memory,
            counted=self._count,
            crowded=self._crowded,
        )

    @property
    def points(self) -> dict[bytes, Held]:
        """Give the access points that listen, by auth key."""
        return self._places.all

    @property
    def price(self) -> Price | None:
        """Say what knocking costs; None if nothing."""
        pricing = self.pricing
        if not pricing.seeds.effort:
            return None
        return Price(pricing.seed, pricing.seeds.effort, int(self.ways.wall() + SEED_LIFE))

    def start(self) -> None:
        """Begin to listen."""
        self.running = True
        self._soon(LOOK, self._look)
        self._soon(WATCH, self._watch)
        self._places.start()

    def stop(self) -> None:
        """End all points and sessions."""
        self.running = False
        self._queue.clear()
        timers, self._timers = self._timers, {}
        for timer in timers.values():
            timer.cancel()
        self._places.stop()
        for origin in list(self.sessions):
            origin.close()

    def change_cookie(self, cookie: bytes) -> None:
        """Let in those who have this cookie; whoever came with another one has to come again."""
        if cookie != self.cookie:
            self.cookie = cookie
            for origin in list(self.sessions):
                origin.close()

    def review(self) -> None:
        """End the sessions of those whom `allow` lets in no more."""
        for session in list(self.sessions.values()):
            if not self.allow(session.login):
                session.origin.close()

    def _soon(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something later, unless we stop before."""
        self._number += 1
        number = self._number

        def due() -> None:
            del self._timers[number]
            what()

        if self.running:
            self._timers[number] = self.later(seconds, due)

    def _count(self, what: str) -> None:
        self.counted[what] += 1

    # Work.

    def _listens(self, point: Held) -> None:
        if self.pricing.seeds.effort:
            self._tune(point)

    def _watch(self) -> None:
        """Ask for work, or for twice as much, where points pass on what they may: others find those busy."""
        self._soon(WATCH, self._watch)
        now = self.ways.seconds()
        for session in self.sessions.values():
            if session.origin.streams.live:
                session.look(now)
        rushed = False
        for point in self.points.values():
            rushed |= point.lately >= RUSH * max(point.rate, INTRO_RATE) * WATCH
            point.lately = 0
        if rushed and self.pricing.rush(now):
            self._priced()

    def _look(self) -> None:
        """Ask for more work, or less."""
        self._soon(LOOK, self._look)
        if self.pricing.look([-one[0] for one in self._queue], self.ways.seconds()):
            self._priced()

    def _priced(self) -> None:
        for point in self.points.values():
            self._tune(point)
        if self.memory is not None:
            apart = self.ways.wall() - self.ways.seconds()
            self.memory.keep_seeds(self.pricing.seeds.effort, self.pricing.seeds.rows(apart))
        self.publish(self._places.told)

    def _tune(self, point: Held) -> None:
        pricing = self.pricing
        said = Tune(point.auth.node_id, pricing.seed, pricing.seeds.effort, int(self.ways.wall() + SEED_LIFE))
        if point.origin is not None and point.origin.takes:
            point.origin.tell(Renzv.RES_TUNE, said.encode())

    # Introductions.

    def _knocked(self, point: Held, data: bytes) -> None:
        """Take a knock that an access point has passed on: those with most work come first."""
        try:
            knock = Knock.read(data)
            worth = self.pricing.worth(point.auth.node_id, knock.work, self.ways.seconds())
        except RemoteProtocolError:
            self._places.drop(point)
            return
        point.introductions += 1
        point.lately += worth is not None
        if knock.auth_key != point.auth.node_id or worth is None:
            self.counted["no work"] += 1
        else:
            self._number += 1
            heappush(self._queue, (-worth, self._number, self.ways.seconds(), point, knock))
            if len(self._queue) > INTRO_QUEUE:
                self._drop_least()
            self._next()
        if point.introductions >= POINT_INTROS:
            self._places.drop(point)

    def _drop_least(self) -> None:
        """Let go of the last of those who have done least."""
        least = max(range(len(self._queue)), key=lambda place: self._queue[place][:2])
        minus = self._queue[least][0]
        self._queue[least] = self._queue[-1]
        self._queue.pop()
        heapify(self._queue)
        self.counted["dropped"] += 1
        self.pricing.dropped(-minus)

    def _next(self) -> None:
        while self._queue and self._busy < AT_ONCE and self._coming < MEETINGS and self.running:
            minus, _, since, point, knock = heappop(self._queue)
            if self.ways.seconds() - since > INTRO_AGE:
                self.counted["late"] += 1
                self.pricing.dropped(-minus)
                continue
            self.pricing.handled(-minus)
            self._begin(point, knock)

    def _begin(self, point: Held, knock: Knock) -> None:
        """Answer one, who is in nobody's way for longer than SLOT: the hop that he names may hang."""
        self._busy += 1
        self._coming += 1
        free: list[int] = [1]

        def leave() -> None:
            if free:
                free.pop()
                self._busy -= 1
                self._next()

        self._soon(SLOT, leave)
        self.tasks.start("introduction", self._answer(point, knock, leave))

    async def _answer(self, point: Held, knock: Knock, leave: Callable[[], None]) -> None:
        origin: Origin | None = None
        login: bytes | None = None
        cookie = self.cookie
        try:
            door = Door(self.ways.network, self.key.node_id, point.auth.node_id, point.enc.public)
            blob = knock.blob
            come = await self.ways.work(lambda: introduced(door, point.enc, blob, point.seen, cookie=cookie))
            written = self._remember(point, knock)
            if not self._good(point, come):
                return
            if come.login is not None:
                if come.login in self._logins:
                    self.counted["twice"] += 1
                    return
                login = come.login
                self._logins.add(login)
                if not await self._first(login):
                    self.counted["twice"] += 1
                    return
            meeting = come.meeting
            hop = Hop(meeting.node, meeting.onion_key, (meeting.endpoint,))
            origin = await self._to(hop)
            reply, keys = await self.ways.work(lambda: come.reply(OFFER.to_bytes()))
            await written
            if not self.running or cookie != self.cookie or not self._good(point, come):
                return
            even(origin)
            origin.tell(Renzv.JOIN, Join(meeting.cookie, reply).encode())
            self._number += 1
            session = Session(self._number, origin, come.login, self.ways.seconds(), meeting.mode)
            origin.host(keys, lambda stream, target: self._opens(session, stream, target))
            self._met(session)
            origin = None
        except HandshakeFailed:
            self.counted["not for us"] += 1
        except (Unavailable, LocalProtocolError):
            self.counted["no way"] += 1
        finally:
            self._coming -= 1
            if login is not None:
                self._logins.discard(login)
            if origin is not None:
                origin.close()
            leave()
            self._next()

    async def _to(self, hop: Hop) -> Origin:
        """Build a circuit, if need be in the place of a session that nobody uses; raises Unavailable."""
        try:
            return await self.ways.to(hop, BEFORE_POINT, layer2=True, kept=True)
        except NoCircuit as error:
            if error.reason is not Reason.LIMIT or not self._crowded():
                raise
        return await self.ways.to(hop, BEFORE_POINT, layer2=True, kept=True)

    def _remember(self, point: Held, knock: Knock) -> Deferred[None]:
        """Have it written that this has come, so that it is not good again after a restart either."""
        if self.memory is None:
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done
        return self.memory.came(point.row, knock.blob, self.pricing.seeds.solution(knock.work))

    async def _first(self, login: bytes) -> bool:
        """Say whether nobody else is here with this login who says so; whoever does is told of the second one."""
        there = next((one for one in self.sessions.values() if one.login == login), None)
        if there is None:
            return True
        try:
            answers = await self.ways.limited(there.ask(), T_PING)
        except TimedOut:
            answers = False
        if not answers:
            there.origin.close(Destroy.TIMEOUT)
            return True
        now = self.ways.seconds()
        if there.told is not None and now - there.told < TELL_AGAIN:
            return False
        there.told = now
        there.origin.add(Renzv.ALERT, bytes((Alert.LOGIN_TWICE,)))
        self.alert(f"the login {id_text(login)} has come twice at a time; the second was not let in")
        return False

    def _good(self, point: Held, come: Introduced) -> bool:
        meeting = come.meeting
        if meeting.mode not in self.modes or (meeting.mode == 0 and meeting.node != point.hop.identity):
            self.counted["another mode"] += 1
        elif abs(meeting.time - self.ways.wall()) > BLOB_AGE:
            self.counted["old"] += 1
        elif not meeting.endpoint or not self.allow(come.login):
            self.counted["refused"] += 1
        elif len(self.sessions) >= SESSIONS_PER_SERVICE and self._idle() is None:
            self.counted["full"] += 1
        else:
            return True
        return False

    # Sessions.

    def _met(self, session: Session) -> None:
        self.counted["met"] += 1
        crowd = self._idle() if len(self.sessions) >= SESSIONS_PER_SERVICE else None
        if crowd is not None:
            self.counted["crowded out"] += 1
            crowd.origin.close()
        self.sessions[session.origin] = session
        origin = session.origin
        origin.at_end = lambda reason: self._left(session)
        origin.heard[Renzv.PING] = lambda data: origin.add(Renzv.PING_OK, b"")
        origin.heard[Renzv.PING_OK] = lambda data: session.there(True)
        self.noted("opened", session)

    def _idle(self) -> Session | None:
        """Give the stranger without a stream who has had none for longest, else who has been here for long enough."""
        strangers = [one for one in self.sessions.values() if one.login is None]
        idle = min((one for one in strangers if not one.origin.streams.live), key=lambda one: one.used, default=None)
        until = self.ways.seconds() - CROWD_TIME
        return idle or min((one for one in strangers if one.since <= until), key=lambda one: one.since, default=None)

    def _crowded(self) -> bool:
        """Make room for a circuit: a link takes so many, and no more guards are to be seen for it."""
        idle = self._idle()
        if idle is not None:
            self.counted["crowded out"] += 1
            idle.origin.close()
        return idle is not None

    def _left(self, session: Session) -> None:
        del self.sessions[session.origin]
        session.there(False)
        self.noted("closed", session)

    def _opens(self, session: Session, stream: Stream, target: Open) -> None:
        if not session.take(self.ways.seconds()) or len(session.origin.streams.live) > STREAMS_PER_SESSION:
            stream.close(Reason.LIMIT)
        elif target.host or target.proto is not Proto.TCP:
            stream.close(Reason.POLICY)
        else:
            self.asked(stream, target.port, session.login)
        if stream.last is Reason.NO_PORT:
            session.bad_ports += 1
            if session.bad_ports >= BAD_PORTS:
                session.origin.close()
