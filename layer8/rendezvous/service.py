"""A hidden service: it listens at access points, and comes to where clients wait for it.

::

    off -> picking points -> listening(n) -> published -> listening ... -> stopping

    service = HiddenService(ways, tasks, key, asked, publish)
    service.start()                   `publish(points)` is called whenever the access points have changed
    asked(stream, port, login)        takes the streams that clients open; `stream.close(Reason.NO_PORT)` refuses one

A point is another node's, at the end of a circuit of our own, with two keys that are used there and nowhere else. It is
replaced when its circuit is lost, after POINT_LIFE, and after POINT_INTROS introductions, which bounds what has to be
remembered against replays. What is no introduction for us is dropped without a word, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError

from layer8.core.errors import Layer8Error, LocalProtocolError, RemoteProtocolError, Unavailable
from layer8.crypto.introduction import Door, Introduced, introduced
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import HandshakeFailed, OnionKey, SeenX
from layer8.net.tasks import TaskSet
from layer8.relay.client import OFFER, Hop, Open, Origin, Proto, Reason, Stream
from layer8.rendezvous.descriptor import Point, Price
from layer8.rendezvous.limits import (
    BAD_PORTS,
    BLOB_AGE,
    INTRO_AGE,
    INTRO_QUEUE,
    MAX_EFFORT,
    POINT_INTROS,
    POINT_LIFE,
    POINTS,
    SEED_LIFE,
    SESSIONS_PER_SERVICE,
    STREAMS_PER_SESSION,
    T_INTRO,
)
from layer8.rendezvous.price import LOOK, Pricing
from layer8.rendezvous.ways import Ways, ask, even
from layer8.rendezvous.wire import Join, Knock, Listen, Renzv, Tune, listen_text

BEFORE_POINT: Final = 3  # hops before an access point of ours, and before a rendezvous hop that a client names
AT_ONCE: Final = 16  # introductions that are answered at a time
AGAIN: Final = 2.0  # seconds until a point is picked again after a failure, doubled each time
AGAIN_MOST: Final = 300.0

Asked = Callable[[Stream, int, bytes | None], None]
"""`asked(stream, port, login)`: a client wants this virtual port; `login` is its key if it has said who it is."""


@define(eq=False)
class Held:
    """An access point that we have."""

    hop: Hop
    auth: NodeKey
    enc: OnionKey
    since: float
    origin: Origin | None = field(default=None, init=False, repr=False)
    introductions: int = field(default=0, init=False)
    seen: SeenX = field(factory=SeenX, init=False, repr=False)

    @property
    def told(self) -> Point:
        """Give what clients have to know of it."""
        hop = self.hop
        return Point(hop.identity, hop.onion_key, self.auth.node_id, self.enc.public, hop.endpoints[0])


@define(eq=False)
class Session:
    """A client that was met."""

    origin: Origin = field(repr=False)
    login: bytes | None
    since: float
    bad_ports: int = field(default=0, init=False)


@define(eq=False)
class HiddenService:
    """See the module. `allow(login)` says whether a client may come; `cookie` is what known clients have."""

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
    points: dict[bytes, Held] = field(factory=dict, init=False)  # by auth key, those that listen
    sessions: dict[Origin, Session] = field(factory=dict, init=False)
    counted: Counter[str] = field(factory=Counter, init=False)  # what has become of knocks
    running: bool = field(default=False, init=False)
    pricing: Pricing = field(init=False, repr=False)
    _picking: int = field(default=0, init=False)
    _again: float = field(default=AGAIN, init=False)
    _queue: list[tuple[int, int, float, Held, bytes]] = field(factory=list, init=False, repr=False)
    _number: int = field(default=0, init=False)
    _busy: int = field(default=0, init=False)
    _timers: dict[int, Any] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Ask for no work yet."""
        self.pricing = Pricing(self.ways.random, self.max_effort)

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
        self._fill()
        self._soon(LOOK, self._look)

    def stop(self) -> None:
        """End all points and sessions."""
        self.running = False
        self._queue.clear()
        timers, self._timers = self._timers, {}
        for timer in timers.values():
            timer.cancel()
        for point in list(self.points.values()):
            self._drop(point)
        for origin in list(self.sessions):
            origin.close()

    def _soon(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something later, unless we stop before."""
        self._number += 1
        number = self._number

        def due() -> None:
            del self._timers[number]
            what()

        if self.running:
            self._timers[number] = self.later(seconds, due)

    # Access points.

    def _fill(self) -> None:
        missing = self.wanted - len(self.points) - self._picking
        if not self.running or missing <= 0:
            return
        for hop in self.ways.places(missing, {point.hop.identity for point in self.points.values()}):
            self._picking += 1
            self.tasks.start("access point", self._listen(hop))
        if self._picking < self.wanted - len(self.points):
            self._retry()

    def _retry(self) -> None:
        self._soon(self._again, self._fill)
        self._again = min(self._again * 2, AGAIN_MOST)

    async def _listen(self, hop: Hop) -> None:
        point = Held(hop, NodeKey.make(), OnionKey.make(), self.ways.seconds())
        good = False
        try:
            origin = point.origin = await self.ways.to(hop, BEFORE_POINT, layer2=True, kept=True)
            even(origin)
            origin.heard[Renzv.CONNECT] = lambda data: self._knocked(point, data)
            said = Listen(point.auth.node_id, point.auth.sign(listen_text(origin.binding))).encode()
            await ask(self.ways, origin, Renzv.RES_LISTEN, said, Renzv.RES_LISTEN_OK, T_INTRO)
            good = True
        except CancelledError:
            raise
        except Layer8Error:
            self.counted["no point"] += 1
        finally:
            self._picking -= 1
            if not good and point.origin is not None:
                point.origin.close()
        if not good or not self.running:
            self._drop(point)
            self._retry()
            return
        self._again = AGAIN
        self.points[point.auth.node_id] = point
        origin.at_end = lambda reason: self._lost(point)
        if self.pricing.seeds.effort:
            self._tune(point)
        self._soon(self.life, lambda: self._drop(point))
        self._changed()

    def _lost(self, point: Held) -> None:
        if self.points.pop(point.auth.node_id, None) is not None:
            self._changed()
            self._fill()

    def _drop(self, point: Held) -> None:
        if point.origin is not None:
            point.origin.close()

    def _changed(self) -> None:
        if self.running:
            self.publish(tuple(point.told for point in self.points.values()))

    def _look(self) -> None:
        """Ask for more work, or less."""
        self._soon(LOOK, self._look)
        if self.pricing.look([-one[0] for one in self._queue], self.ways.seconds()):
            for point in self.points.values():
                self._tune(point)
            self._changed()

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
            self._drop(point)
            return
        point.introductions += 1
        if knock.auth_key != point.auth.node_id or worth is None:
            self.counted["no work"] += 1
        elif len(self._queue) >= INTRO_QUEUE:
            self.counted["dropped"] += 1
            self.pricing.dropped(worth)
        else:
            self._number += 1
            heappush(self._queue, (-worth, self._number, self.ways.seconds(), point, knock.blob))
            self._next()
        if point.introductions >= POINT_INTROS:
            self._drop(point)

    def _next(self) -> None:
        while self._queue and self._busy < AT_ONCE and self.running:
            minus, _, since, point, blob = heappop(self._queue)
            if self.ways.seconds() - since > INTRO_AGE:
                self.counted["late"] += 1
                self.pricing.dropped(-minus)
                continue
            self.pricing.handled(-minus)
            self._busy += 1
            self.tasks.start("introduction", self._answer(point, blob))

    async def _answer(self, point: Held, blob: bytes) -> None:
        origin: Origin | None = None
        try:
            door = Door(self.ways.network, self.key.node_id, point.auth.node_id, point.enc.public)
            come = await self.ways.work(lambda: introduced(door, point.enc, blob, point.seen, cookie=self.cookie))
            if not self._good(come):
                return
            meeting = come.meeting
            hop = Hop(meeting.node, meeting.onion_key, (meeting.endpoint,))
            origin = await self.ways.to(hop, BEFORE_POINT, layer2=True, kept=True)
            reply, keys = await self.ways.work(lambda: come.reply(OFFER.to_bytes()))
            if not self.running:
                return
            even(origin)
            origin.tell(Renzv.JOIN, Join(meeting.cookie, reply).encode())
            session = Session(origin, come.login, self.ways.seconds())
            origin.host(keys, lambda stream, target: self._opens(session, stream, target))
            self._met(session)
            origin = None
        except HandshakeFailed:
            self.counted["not for us"] += 1
        except (Unavailable, LocalProtocolError):
            self.counted["no way"] += 1
        finally:
            self._busy -= 1
            if origin is not None:
                origin.close()
        self._next()

    def _good(self, come: Introduced) -> bool:
        if come.meeting.mode != 1 or abs(come.meeting.time - self.ways.wall()) > BLOB_AGE:
            self.counted["old"] += 1
        elif not come.meeting.endpoint or not self.allow(come.login):
            self.counted["refused"] += 1
        else:
            return True
        return False

    # Sessions.

    def _met(self, session: Session) -> None:
        self.counted["met"] += 1
        self.sessions[session.origin] = session
        session.origin.at_end = lambda reason: self._left(session)
        if len(self.sessions) > SESSIONS_PER_SERVICE:
            next(iter(self.sessions)).close()

    def _left(self, session: Session) -> None:
        del self.sessions[session.origin]

    def _opens(self, session: Session, stream: Stream, target: Open) -> None:
        if len(session.origin.streams.live) > STREAMS_PER_SESSION:
            stream.close(Reason.LIMIT)
        elif target.host or target.proto is not Proto.TCP:
            stream.close(Reason.POLICY)
        else:
            self.asked(stream, target.port, session.login)
        if stream.last is Reason.NO_PORT:
            session.bad_ports += 1
            if session.bad_ports >= BAD_PORTS:
                session.origin.close()
