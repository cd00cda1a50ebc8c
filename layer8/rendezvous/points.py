"""The access points of a hidden service: other nodes, each at the end of a circuit of ours, with two keys of its own.

::

 picking -> listening -> lost: by another circuit at the same node, with the same keys -> listening
                |                 '- the node is gone -> another node
                '------ POINT_LIFE, POINT_INTROS -------> another node

A point that is kept over a loss or a restart needs no new descriptor. The node may still hold the old circuit, and
refuses then; it is asked again for RESUME_TIME. It could also end circuits only to see how they are built again, so a
point is taken up RESUMES times at most. Links look well for a minute when a relay on the way hangs, so each circuit is
asked now and then whether it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError

from layer8.core.errors import Layer8Error
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import OnionKey, SeenX
from layer8.net.tasks import TaskSet
from layer8.relay.client import Hop, NoCircuit, Origin, Reason
from layer8.rendezvous.descriptor import Point
from layer8.rendezvous.limits import POINT_INTROS, POINT_LIFE, POINTS, T_INTRO, T_PING
from layer8.rendezvous.memory import KeptPoint, ServiceMemory
from layer8.rendezvous.ways import Gone, Ways, ask, even
from layer8.rendezvous.wire import Listen, Listening, Renzv, listen_text

BEFORE_POINT: Final = 3  # hops before an access point of ours, and before a rendezvous hop that a client names
AGAIN: Final = 2.0  # seconds until a point is picked again after a failure, doubled each time
AGAIN_MOST: Final = 300.0
LOOK: Final = 0.5  # seconds between looks while fewer nodes are known than are wanted
RESUME_AGAIN: Final = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds between tries to come back to one, then as long as the last
RESUME_TIME: Final = 100.0  # seconds: the links of a circuit that is gone are given up in less
GONE_TRIES: Final = 2  # times that a node is found gone, until another one is picked
GONE_TRIES_START: Final = 4  # the same after a restart: others may be starting as well
BAD_TIME: Final = 600.0  # seconds that a node which could not be had is only picked where there is no other
ASK_EVERY: Final = (10.0, 20.0)  # seconds between questions whether the circuit to a point stands
RESUMES: Final = 8  # times that a point is taken up again after a loss


@define(eq=False)
class Held:
    """An access point that we have."""

    hop: Hop
    auth: NodeKey
    enc: OnionKey
    since: float  # seconds since 1970
    kept: bool = False  # it stood before a restart
    origin: Origin | None = field(default=None, init=False, repr=False)
    introductions: int = field(default=0, init=False)
    lately: int = field(default=0, init=False)  # introductions since somebody looked last
    rate: int = field(default=0, init=False)  # knocks a second that it passes on
    seen: SeenX = field(factory=SeenX, init=False, repr=False)
    resumes: int = field(default=0, init=False)
    left: bool = field(default=False, init=False)  # by us
    timed: bool = field(default=False, init=False)  # its end is on a clock

    @property
    def told(self) -> Point:
        """Give what clients have to know of it."""
        hop = self.hop
        return Point(hop.identity, hop.onion_key, self.auth.node_id, self.enc.public, hop.endpoints[0])

    @property
    def row(self) -> KeptPoint:
        """Give what is remembered of it."""
        return KeptPoint(self.hop, self.auth, self.enc, self.since, self.introductions)

    @classmethod
    def of(cls, kept: KeptPoint) -> Held:
        """Make one of what is remembered."""
        made = cls(kept.hop, kept.auth, kept.enc, kept.since, True)
        made.introductions = kept.introductions
        for mark in kept.blobs:
            made.seen.fresh(kept.enc.public, mark)
        return made


@define(eq=False)
class Points:
    """See the module. `knocked(point, data)` takes introductions, `listens(point)` hears of each that stands."""

    ways: Ways
    tasks: TaskSet
    knocked: Callable[[Held, bytes], None]
    listens: Callable[[Held], None]
    publish: Callable[[tuple[Point, ...]], None]
    soon: Callable[[float, Callable[[], None]], Any]  # does it later, unless the service stops before
    wanted: int = POINTS
    life: float = POINT_LIFE  # seconds that a point is used
    memory: ServiceMemory | None = None
    all: dict[bytes, Held] = field(factory=dict, init=False)  # by auth key, those that listen
    running: bool = field(default=False, init=False)
    crowded: Callable[[], object] = field(default=lambda: None, repr=False)  # makes room for a circuit
    counted: Callable[[str], None] = field(default=lambda what: None, repr=False)
    _picking: list[Held] = field(factory=list, init=False, repr=False)  # new ones, and those that we come back to
    _told: tuple[Point, ...] = field(default=(), init=False, repr=False)
    _bad: dict[bytes, float] = field(factory=dict, init=False, repr=False)
    _again: float = field(default=AGAIN, init=False)
    _looking: bool = field(default=False, init=False)

    def start(self) -> None:
        """Come back to the points that were, and pick others for those that are missing."""
        self.running, self._looking = True, False
        now = self.ways.wall()
        for kept in self.memory.points if self.memory is not None else ():
            good = now - self.life < kept.since <= now and kept.introductions < POINT_INTROS
            if good and len(self._picking) < self.wanted:
                self._pick(Held.of(kept))
            elif self.memory is not None:
                self.memory.drop_point(kept.auth.node_id)
        self._fill()

    def stop(self) -> None:
        """Listen nowhere; what is remembered stays so."""
        self.running = False
        for point in (*self.all.values(), *self._picking):
            if point.origin is not None:
                point.origin.close()

    def drop(self, point: Held) -> None:
        """Leave a point for ever."""
        point.left = True
        if point.origin is not None:
            point.origin.close()

    @property
    def told(self) -> tuple[Point, ...]:
        """Give the points that clients are told: those that listen, and those that we come back to."""
        back = (point for point in self._picking if point.kept or point.resumes)
        return tuple(point.told for point in (*self.all.values(), *back))

    def changed(self) -> None:
        """Publish the points if they are others than before."""
        told = self.told
        if self.running and set(told) != set(self._told):
            self._told = told
            self.publish(told)

    def _pick(self, point: Held) -> None:
        self._picking.append(point)
        self.tasks.start("access point", self._listen(point, 0, 0, self.ways.seconds()))

    def _fill(self) -> None:
        missing = self.wanted - len(self.all) - len(self._picking)
        if not self.running or missing <= 0:
            return
        now = self.ways.seconds()
        self._bad = {node: until for node, until in self._bad.items() if until > now}
        there = {point.hop.identity for point in (*self.all.values(), *self._picking)}
        hops = self.ways.places(missing, there | set(self._bad))
        if len(hops) < missing:
            hops += self.ways.places(missing - len(hops), there | {hop.identity for hop in hops})
        for hop in hops:
            self._pick(Held(hop, NodeKey.make(), OnionKey.make(), self.ways.wall()))
        if len(hops) < missing and not self._looking:
            self._looking = True
            self.soon(LOOK, self._look)

    def _look(self) -> None:
        """See whether more nodes are known by now: there are few when a node has just joined."""
        self._looking = False
        self._fill()

    def _retry(self) -> None:
        self.soon(self._again, self._fill)
        self._again = min(self._again * 2, AGAIN_MOST)

    async def _listen(self, point: Held, tries: int, gone: int, begun: float) -> None:
        """Begin to listen at a node; what fails at one that we had is tried again."""
        good = False
        try:
            origin = point.origin = await self.ways.to(point.hop, BEFORE_POINT, layer2=True, kept=True)
            even(origin)
            origin.heard[Renzv.CONNECT] = partial(self.knocked, point)
            origin.heard[Renzv.PING] = partial(_here, origin)
            said = Listen(point.auth.node_id, point.auth.sign(listen_text(origin.binding))).encode()
            answer = await ask(self.ways, origin, Renzv.RES_LISTEN, said, Renzv.RES_LISTEN_OK, T_INTRO)
            point.rate = Listening.read(answer).rate
            good = self.running and not point.left and origin.takes
        except CancelledError:
            raise
        except Gone:
            gone += 1
        except NoCircuit as error:
            if error.reason is Reason.LIMIT:
                self.crowded()
        except Layer8Error:
            pass
        finally:
            if not good and point.origin is not None:
                point.origin.close()
                point.origin = None
        if good:
            self._stands(point)
        elif self.running:
            self._failed(point, tries, gone, begun)

    def _stands(self, point: Held) -> None:
        auth_key = point.auth.node_id
        assert point.origin is not None
        self._picking.remove(point)
        self._again = AGAIN
        point.kept = False
        self.all[auth_key] = point
        point.origin.at_end = lambda reason: self._lost(point)
        if self.memory is not None:
            self.memory.keep_point(point.row)
        if not point.timed:
            point.timed = True
            self.soon(self.life - (self.ways.wall() - point.since), lambda: self.drop(point))
        self._ask_later(point, point.origin)
        self.listens(point)
        self.changed()

    def _ask_later(self, point: Held, origin: Origin) -> None:
        least, most = ASK_EVERY
        wait = least + (most - least) * int.from_bytes(self.ways.random(2), "big") / 65536
        self.soon(wait, lambda: self._ask(point, origin))

    def _ask(self, point: Held, origin: Origin) -> None:
        """Ask whether the circuit to a point stands."""
        if point.origin is origin and origin.takes:
            came = origin.came
            origin.probe()
            self.soon(T_PING, lambda: self._said(point, origin, came))

    def _said(self, point: Held, origin: Origin, came: int) -> None:
        """Leave a circuit on which nothing has come since it was asked."""
        if point.origin is not origin:
            return
        if origin.came == came:
            self.counted("silent point")
            origin.close()
        else:
            self._ask_later(point, origin)

    def _failed(self, point: Held, tries: int, gone: int, begun: float) -> None:
        self.counted("no point")
        self._bad[point.hop.identity] = self.ways.seconds() + BAD_TIME
        late = self.ways.seconds() - begun > RESUME_TIME
        most = GONE_TRIES_START if point.kept else GONE_TRIES
        if (point.kept or point.resumes) and not (point.left or late or gone >= most):
            wait = RESUME_AGAIN[min(tries + 1, len(RESUME_AGAIN) - 1)]
            again = self._listen
            self.soon(wait, lambda: self.tasks.start("access point", again(point, tries + 1, gone, begun)))
            return
        self._picking.remove(point)
        if point.kept or point.resumes:
            self._forget(point)
            self._fill()
        else:
            self._retry()

    def _lost(self, point: Held) -> None:
        point.origin = None
        if self.all.pop(point.auth.node_id, None) is None or not self.running:
            return
        if point.left or point.resumes >= RESUMES:
            self._forget(point)
            self._fill()
        else:
            point.resumes += 1
            self._pick(point)

    def _forget(self, point: Held) -> None:
        if self.memory is not None:
            self.memory.drop_point(point.auth.node_id)
        self.changed()


def _here(origin: Origin, data: bytes) -> None:
    """Answer a node that asks whether we listen still."""
    origin.add(Renzv.PING_OK, b"")
