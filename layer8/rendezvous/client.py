"""A client of hidden services: from a service's descriptor to a circuit on which its ports can be opened.

::

    have descriptor -> waiting (rendezvous hop) -> introduced (access point) -> joined -> closed
                             |                           |
                             '--------- next point <-----'

    origin = await meet(ways, service, told)          raises NotMet, whose `step` says how far it came
    origin.open(Open(Proto.TCP, "", 80), sink)        a virtual port of the service

The circuit to the rendezvous hop and the one to the access point are built at the same time. In mode 0, which a service
may ask for, the access point is the rendezvous hop too, and there is one circuit; it sees volume and time then. The
service has to answer the very knock that we made with the key that we have read under its address: there is no byte of
data before that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from layer8.core.errors import Layer8Error, LocalProtocolError, RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.introduction import Door, Meeting, knock
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import HandshakeFailed, Keys
from layer8.crypto.work import following, search
from layer8.relay.client import OFFER, Hop, Origin
from layer8.rendezvous.descriptor import Point
from layer8.rendezvous.limits import BLOB_AGE, MAX_EFFORT, T_INTRO, T_RENDEZVOUS
from layer8.rendezvous.price import RUSH_LEAST
from layer8.rendezvous.ways import Told, Ways, ask, even
from layer8.rendezvous.wire import NO_WORK, SEED_HEAD, WORK_LABEL, Alert, Answer, Connect, Renzv, Status, Work

BEFORE_MEETING: Final = 2  # hops before a rendezvous hop of ours
BEFORE_POINT: Final = 3  # hops before somebody else's access point
POINTS_TRIED: Final = 3
KNOCKS: Final = 4  # with more and more work, at one point
EFFORT_LEAST: Final = 8
CLOCK: Final = 60  # seconds that a service is told the time by
ABOVE: Final = 16  # times the service's own price that an access point may ask for: it may have risen meanwhile
SLICE: Final = 100_000  # tries of work at a time


class Step(Enum):
    """How far a client came."""

    INTRODUCTION = "introduction"
    RENDEZVOUS = "rendezvous"
    LATE = "late"  # introduced, and the service has not come


class NotMet(Layer8Error):
    """A service could not be met."""

    def __init__(self, text: str, step: Step) -> None:
        """Say why in words, and at which step."""
        super().__init__(text)
        self.step = step
        self.tried: frozenset[bytes] = frozenset()  # auth keys of access points


async def meet(
    ways: Ways,
    service: bytes,
    told: Told,
    *,
    cookie: bytes = b"",
    login: NodeKey | None = None,
    max_effort: int = MAX_EFFORT,
    kept: bool = False,
    alert: Callable[[str], None] = lambda text: None,
    without: Collection[bytes] = (),
    patient: bool = True,
) -> Origin:
    """Meet the service with this key; `told` is its descriptor, `cookie` what known clients have. Raises NotMet.

    A `kept` circuit is not closed because it is old or idle. `alert` hears what the service tells unasked, in words.
    `without` are auth keys of points that were tried before. Who is not `patient` tries no other point when the service
    was told at one and has not come.
    """
    points = sorted((one for one in told.points if one.auth_key not in without), key=lambda _: ways.random(8))
    tried: list[bytes] = []
    last = NotMet("the service names no access point", Step.INTRODUCTION)
    for point in points[:POINTS_TRIED]:
        try:
            return await Attempt(ways, service, point, told, cookie, login, max_effort, kept, alert).run()
        except NotMet as error:
            last = error
            tried.append(point.auth_key)
            if error.step is Step.LATE and not patient:
                break
    last.tried = frozenset(tried)
    raise last


@define(eq=False)
class Attempt:
    """One try by one access point."""

    _ways: Ways
    _service: bytes
    _point: Point
    _told: Told
    _cookie: bytes = field(repr=False)
    _login: NodeKey | None
    _max_effort: int
    _kept: bool
    _alert: Callable[[str], None] = field(repr=False)
    _token: bytes = field(init=False, repr=False)
    _answered: Deferred[bytes] = field(factory=Deferred, init=False)
    _over: bool = field(default=False, init=False)

    @property
    def _mode(self) -> int:
        """Give the way that the service likes best."""
        return next(iter(self._told.modes), 1)

    async def run(self) -> Origin:
        """Build both circuits, knock, and wait; raises NotMet."""
        self._token = self._ways.random(32)
        origins: list[Origin] = []
        met: Origin | None = None
        try:
            near, far, place = await self._reach(origins)
            near.meet(await self._introduce(far, place))
            met = near
            self._listen(near)
            return near
        except (LocalProtocolError, Unavailable) as error:
            raise NotMet(str(error), Step.RENDEZVOUS) from None
        finally:
            self._over = True
            self._answered.addErrback(lambda failure: None)  # nobody waits for it any more
            for origin in origins:
                if origin is not met:
                    origin.close()

    async def _reach(self, origins: list[Origin]) -> tuple[Origin, Origin, Hop]:
        """Give the circuits by which the service comes and by which we knock, and the rendezvous hop."""
        ways, point = self._ways, self._point
        hop = Hop(point.node, point.onion_key, (point.endpoint,))
        if self._mode == 0:
            try:
                origins.append(await self._wait(hop, BEFORE_POINT, 2))
            except Layer8Error as error:
                raise NotMet(str(error), Step.INTRODUCTION) from None
            return origins[0], origins[0], hop
        places = ways.places(1, (point.node,))
        if not places:
            raise NotMet("no rendezvous hop is known", Step.RENDEZVOUS)
        both: Any = await DeferredList(
            [
                Deferred.fromCoroutine(self._wait(places[0], BEFORE_MEETING, 1)),
                Deferred.fromCoroutine(ways.to(hop, BEFORE_POINT)),
            ],
            consumeErrors=True,
        )
        origins += [made for good, made in both if good]
        for (good, made), step in zip(both, (Step.RENDEZVOUS, Step.INTRODUCTION), strict=True):
            if not good and isinstance(made, Failure):
                made.trap(Layer8Error)
                raise NotMet(str(made.value), step)
        even(origins[1])
        return origins[0], origins[1], places[0]

    async def _wait(self, hop: Hop, before: int, left: int) -> Origin:
        """Wait at a rendezvous hop; `left` messages are to be said by this circuit before the service comes."""
        origin = await self._ways.to(hop, before, kept=self._kept)
        origin.heard[Renzv.CONNECT_OK] = self._heard
        origin.at_end = lambda reason: self._lost()
        even(origin, left)
        try:
            await ask(self._ways, origin, Renzv.LISTEN, self._token, Renzv.LISTEN_OK, T_INTRO)
        except Layer8Error:
            origin.close()
            raise
        return origin

    def _listen(self, origin: Origin) -> None:
        """Answer when the service asks whether we are there, and pass on what it tells."""
        alert = self._alert

        def told(data: bytes) -> None:
            if data == bytes((Alert.LOGIN_TWICE,)):
                origin.heard[Renzv.ALERT] = lambda data: None
                alert("somebody else has come with the same login, and was not let in")

        origin.heard[Renzv.PING] = lambda data: origin.add(Renzv.PING_OK, b"")
        origin.heard[Renzv.PING_OK] = lambda data: None
        origin.heard[Renzv.ALERT] = told if self._login is not None else lambda data: None

    def _heard(self, data: bytes) -> None:
        if not self._answered.called:
            self._answered.callback(data)

    def _lost(self) -> None:
        if not (self._over or self._answered.called):
            self._answered.errback(Unavailable("the rendezvous hop has gone"))

    async def _introduce(self, far: Origin, place: Hop) -> Keys:
        ways, point = self._ways, self._point
        door = Door(ways.network, self._service, point.auth_key, point.enc_key)
        now = int(ways.wall()) // CLOCK * CLOCK  # a second would be a mark of this machine
        meeting = Meeting(self._mode, now, self._token, place.identity, place.onion_key, place.endpoints[0])
        try:
            knocked = await ways.work(lambda: knock(door, meeting, cookie=self._cookie, login=self._login))
            await self._knock(far, knocked.blob)
        except (TimedOut, Unavailable, RemoteProtocolError) as error:
            raise NotMet(str(error), Step.INTRODUCTION) from None
        try:
            reply = await ways.limited(self._answered, T_RENDEZVOUS)
            keys = await ways.work(lambda: knocked.finish(reply))
        except TimedOut as error:
            raise NotMet("the service was told, and has not come", Step.LATE) from error
        except HandshakeFailed as error:
            raise NotMet("somebody else than the service has come", Step.RENDEZVOUS) from error
        if keys.sm != OFFER.to_bytes():
            raise NotMet("the service speaks another version", Step.RENDEZVOUS)
        return keys

    async def _knock(self, far: Origin, blob: bytes) -> None:
        """Have the knock passed on, with as much work as it takes; raises NotMet."""
        price = self._told.price
        if price is not None and price.expires + BLOB_AGE < self._ways.wall():
            raise NotMet("the descriptor asks for work that nobody takes any more", Step.INTRODUCTION)
        effort = price.effort if price is not None else 0
        for _ in range(KNOCKS):
            if effort > self._max_effort:
                raise NotMet(f"knocking costs more work than {self._max_effort}", Step.INTRODUCTION)
            work = await self._solve(price.seed, effort) if price is not None and effort else NO_WORK
            said = Connect(self._point.auth_key, work, blob).encode()
            answer = Answer.read(await ask(self._ways, far, Renzv.RES_CONNECT, said, Renzv.RES_CONNECT_OK, T_INTRO))
            if answer.status is Status.PASSED:
                return
            if answer.status not in (Status.WORK, Status.BUSY) or price is None:
                raise NotMet(f"the access point says: {answer.status.name.lower()}", Step.INTRODUCTION)
            if answer.effort > ABOVE * max(price.effort, RUSH_LEAST):
                raise NotMet("the access point asks for far more work than the service", Step.INTRODUCTION)
            effort = max(answer.effort, effort * 2 if effort < 1000 else effort * 3 // 2, EFFORT_LEAST)
        raise NotMet("more and more work is asked for", Step.INTRODUCTION)

    async def _solve(self, seed: bytes, effort: int) -> bytes:
        start = self._ways.random(16)
        auth_key = self._point.auth_key
        while True:
            begin = start
            nonce = await self._ways.work(lambda: search(WORK_LABEL, auth_key, seed, effort, begin, SLICE))  # noqa: B023
            if nonce is not None:
                return Work(nonce, effort, seed[:SEED_HEAD]).encode()
            start = following(start, SLICE)
