"""The circuits of one client: built when they are needed or a little before, kept apart, retired in time.

```
 get(need) -- one that fits --> done(circuit)
           -- a spare --------> it is the need's from now on; another spare is built
           -- none -----------> a build; who needs the same meanwhile waits for it
```
Two needs share a circuit only with the same `key`, route and last node, and only if its exit says that it reaches the
port. A build that fails at a hop goes on from the hop before with another one, twice; one that falls as a whole begins
again with others, BUILD_TRIES times in all. A circuit takes no new need CIRC_DIRTY after its first, and closes when
nothing stands on it any more, after CIRC_IDLE, after CIRC_LIFE, or when its onion layers have carried CIRC_CELLS.

Relays that hang say nothing, and the link of the first one looks well for PING_DEAD. So whenever an opening has had no
answer for T_SILENT, or data has left and nothing at all has come for as long, the circuit is asked for what the last
hop refuses without asking anybody; others are not, or exits could see at the same time which circuits are one client's.
If it says nothing at all, it is given to nobody meanwhile and closed after T_PROBE; the openings on it try another one,
and for T_SHUN its hops are taken where there is no other. The first hop is asked by its link: it alone may be said to
hang, since a later one could make us leave our guards by saying nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Final

from attrs import define, evolve, field

from layer8.core.errors import LocalProtocolError, Unavailable
from layer8.crypto.descriptor import Descriptor
from layer8.crypto.keys import id_text
from layer8.crypto.onion import CELLS_MAX
from layer8.relay.circuit import Reach, Way
from layer8.relay.database import Database
from layer8.relay.guards import Guards
from layer8.relay.limits import (
    BUILD_AT_ONCE,
    CIRC_DIRTY,
    CIRC_IDLE,
    CIRC_LIFE,
    SHUNNED,
    SPARE_CIRCS,
    STREAMS_PER_CIRC,
    T_HOP_LEAST,
    T_HOP_MOST,
    T_PROBE,
    T_SHUN,
)
from layer8.relay.origin import Hop, Origin, State
from layer8.relay.path import NoPath, Paths, Stranger, Want, allows
from layer8.relay.route import At, Named, Rand, Route
from layer8.relay.standing import LOOK, Circuit, Need
from layer8.relay.stream import Cancels, Means, Worker
from layer8.relay.wire import Destroy, Reason

BUILD_TRIES: Final = 3  # whole circuits
HOP_TRIES: Final = 2  # other nodes for one hop of a circuit that stands up to the one before
WAITING: Final = 1024  # needs that wait for a build
TIMES: Final = 100  # hops whose times are remembered
PAUSE: Final = (1.0, 60.0)  # seconds until spares are tried again after a failure, doubled each time
CELLS_ROOM: Final = 65_536  # cells that a circuit's last streams may still need
SPEED_LEAST: Final = 64.0 * 1024  # bytes a second, below which nobody knows whether the circuit could have done more
USUAL_PORT: Final = 443  # what spares reach before anybody has asked for anything


class NoCircuit(Unavailable):
    """No circuit could be built; `reason` is what a stream would hear."""

    def __init__(self, text: str, reason: Reason) -> None:
        """Say why in words, and as a stream's reason."""
        super().__init__(text)
        self.reason = reason


Done = Callable[[Circuit | Exception], None]
Meet = Callable[[At, Callable[[bytes | Reason], None]], None]
"""`meet(at, done)` dials an address and gives the id that was shown there."""
Doubt = Callable[[bytes, Callable[[], None]], None]
"""`doubt(node, hangs)` asks a neighbour whether it is there; if not, `hangs` is called, and the link is closed."""


@define(eq=False)
class _Build:
    """A circuit on its way; the `told` of its Origin."""

    pool: Pool
    need: Need | None
    want: Want
    waiting: list[tuple[Need, Done]]
    path: tuple[Descriptor, ...] = ()
    origin: Origin | None = None
    tries: int = 0
    again: int = 0  # other nodes tried for the present hop
    circuit: Circuit | None = None  # when it stands
    without: set[bytes] = field(factory=set)
    ended: bool = False  # by us
    full: bool = False  # a link to a first hop takes no more, and who wants this one circuit can wait or make room

    def begin(self) -> None:
        pool = self.pool
        self.tries += 1
        self.again = 0
        try:
            want = evolve(self.want, without=frozenset(self.without), shun=pool.shunned())
            self.path = pool.paths.choose(want, pool.wall())
        except Stranger as stranger:
            pool.meet(stranger.at, self._met)
            return
        except NoPath as error:
            pool.gave_up(self, error)
            return
        first = self.path[0]
        if self.full and first.identity not in pool.guards.primary:  # a crowd must not lead us on to other guards
            pool.gave_up(self, NoCircuit("the links to our guards take no more circuits", Reason.LIMIT))
            return
        pool.reach(first.identity, first.endpoints, self._linked)

    def _met(self, who: bytes | Reason) -> None:
        """Go on with whoever was found at the address of the first hop."""
        if self.pool.stopped:
            return
        if isinstance(who, Reason) or self.pool.database.get(who) is None:
            reason = who if isinstance(who, Reason) else Reason.UNREACHABLE
            self.pool.gave_up(self, NoCircuit("there is no relay at the address of the first hop", reason))
            return
        rest = self.want.route.hops[1:]
        self.want = evolve(self.want, route=Route((Named(id_text(who)), *rest)))
        self.begin()

    def _linked(self, way: Way | Reason) -> None:
        first = self.path[0]
        if self.pool.stopped:
            return
        if isinstance(way, Reason):
            self.pool.guards.failed(first.identity, self.pool.wall())
            self._fell(first.identity, way)
            return
        self.origin = self.pool.new(self)
        try:
            self.origin.begin(way, Hop(first.identity, first.onion_key, first.endpoints))
        except Unavailable:
            self.full = self.need is not None and self.need.alone
            self._fell(first.identity, Reason.LIMIT)

    def built(self, circuit: Origin) -> None:
        if self.circuit is not None:
            self.circuit.went(None)
            return
        at = len(circuit.hops)
        self.again = 0
        if at == len(self.path):
            self.pool.finished(self)
            return
        try:
            self._extend(circuit, self.path[at])
        except LocalProtocolError:  # a hop has done something to it
            self._end(circuit)

    def failed(self, circuit: Origin, reason: Reason) -> None:
        """Go on from the hop before with another node, if the user has not named this one."""
        if self.circuit is not None:
            self.circuit.went(reason)
            return
        at = len(circuit.hops)
        bad = self.path[at].identity
        self.without.add(bad)
        self.pool.database.failed(bad)
        self.again += 1
        if self.again <= HOP_TRIES:
            try:
                self.path = self._other(at)
                self._extend(circuit, self.path[at])
                return
            except (NoPath, LocalProtocolError):
                pass
        self._end(circuit)

    def _end(self, circuit: Origin) -> None:
        """End it for what has been noted already."""
        self.ended = True
        circuit.close(Destroy.NONE)

    def closed(self, circuit: Origin, reason: Destroy) -> None:
        if self.circuit is not None:
            self.pool.ended(self.circuit)
            self.circuit.went(Reason.RESET)
        elif circuit is self.origin:
            self._broke(circuit, reason)

    def _broke(self, circuit: Origin, reason: Destroy) -> None:
        self.origin = None
        at = len(circuit.hops)
        if not self.ended:
            # Hops that stand may end a circuit, or keep the question to the next one: what they do must not be said of
            # somebody else, or one of them could speak ill of all that it does not like.
            first = max(at - 1, 0) if reason is Destroy.TIMEOUT else 0
            for one in self.path[first : at + 1 if reason is Destroy.TIMEOUT else max(at, 1)]:
                self.pool.database.failed(one.identity)
        if not at and reason is Destroy.TIMEOUT:
            self.pool.guards.failed(self.path[0].identity, self.pool.wall())
        self.ended = False
        self._fell(self.path[min(at, len(self.path) - 1)].identity, Reason.UNREACHABLE)

    def _extend(self, circuit: Origin, node: Descriptor) -> None:
        circuit.extend(Hop(node.identity, node.onion_key, node.endpoints or _via(node)))

    def _other(self, at: int) -> tuple[Descriptor, ...]:
        """Choose the rest anew: the hops that stand are named, those that the user has named stay."""
        stand = tuple(Named(id_text(one.identity)) for one in self.path[:at])
        wanted = self.want.route.hops
        if wanted and len(wanted) != len(self.path):
            raise NoPath("a path with gateways is built as a whole")
        rest = wanted[at:] if wanted else (Rand(),) * (len(self.path) - at)
        want = evolve(self.want, route=Route(stand + rest), without=frozenset(self.without), shun=self.pool.shunned())
        path = self.pool.paths.choose(want, self.pool.wall())
        if path[at].identity in self.without:
            raise NoPath("the node that is wanted there does not answer")
        return path

    def _fell(self, bad: bytes, reason: Reason) -> None:
        self.without.add(bad)
        if self.tries < BUILD_TRIES and not self.pool.stopped:
            self.begin()
        else:
            self.pool.gave_up(self, NoCircuit("no circuit could be built: the nodes did not answer", reason))


def _via(node: Descriptor) -> tuple[str, ...]:
    """Give what a gateway is told to dial: the node's own id, by which it finds the link that the node keeps."""
    return (f"via:{id_text(node.identity)}",)


@define(eq=False)
class Pool:
    """See the module. `reach` gives links to first hops; `stopped` pools build nothing."""

    means: Means
    worker: Worker
    network: bytes
    paths: Paths
    database: Database
    guards: Guards
    reach: Reach
    meet: Meet
    wall: Callable[[], float]  # seconds since 1970, by which descriptors and guards go
    hops: int = 3
    spares: int = SPARE_CIRCS
    changed: Callable[[Circuit, str], None] = lambda circuit, state: None
    streamed: Callable[[Circuit | None, str], None] = lambda circuit, state: None
    doubt: Doubt = lambda node, hangs: None
    stopped: bool = field(default=True, init=False)
    circuits: dict[int, Circuit] = field(factory=dict, init=False)
    failures: int = field(default=0, init=False)
    built: int = field(default=0, init=False)
    _builds: list[_Build] = field(factory=list, init=False)
    _queue: deque[_Build] = field(factory=deque, init=False)
    _times: deque[float] = field(factory=lambda: deque(maxlen=TIMES), init=False)
    _ports: list[int] = field(factory=lambda: [USUAL_PORT], init=False)  # asked for lately, the last one first
    _timer: Cancels | None = field(default=None, init=False)
    _next: int = field(default=0, init=False)
    _pause: float = field(default=PAUSE[0], init=False)
    _spares_from: float = field(default=0.0, init=False)
    _filling: bool = field(default=False, init=False)
    _shunned: dict[bytes, float] = field(factory=dict, init=False)  # until when, the oldest first

    def start(self) -> None:
        """Begin to keep spares."""
        self.stopped = False
        self._look()

    def stop(self) -> None:
        """End everything."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        builds, self._builds = [*self._builds, *self._queue], []
        self._queue.clear()
        for build in builds:
            if build.origin is not None:
                origin, build.origin = build.origin, None
                origin.close(Destroy.NONE)
            self._tell(build, NoCircuit("this client is stopping", Reason.INTERNAL))
        for circuit in list(self.circuits.values()):
            circuit.origin.close(Destroy.NONE)

    def get(self, need: Need, done: Done) -> None:
        """Give a circuit that fits, now or when one is built, or the NoPath or NoCircuit that says why not."""
        if self.stopped:
            done(NoCircuit("this client is not running", Reason.INTERNAL))
            return
        if need.port:
            self._ports = [need.port, *(port for port in self._ports if port != need.port)][:4]
        found = self._fitting(need)
        if found is not None:
            self._take(found, need)
            done(found)
            self._fill()
            return
        if not need.alone:
            for build in (*self._builds, *self._queue):
                theirs = build.need
                if theirs is not None and not theirs.alone and _same(theirs, need) and theirs.port == need.port:
                    build.waiting.append((need, done))
                    return
        if sum(len(build.waiting) for build in self._queue) >= WAITING:
            done(NoCircuit("too many wait for a circuit", Reason.LIMIT))
            return
        want = Want(need.route, need.hops, need.port, need.last, layer2=need.layer2)
        self._enter(_Build(self, need, want, [(need, done)], without=set(need.without)))

    def build(self, need: Need, done: Done) -> None:
        """Build a circuit whatever there is, for somebody who wants this very one."""
        if self.stopped:
            done(NoCircuit("this client is not running", Reason.INTERNAL))
            return
        need = evolve(need, alone=True)
        want = Want(need.route, need.hops, need.port, need.last, layer2=need.layer2)
        self._enter(_Build(self, need, want, [(need, done)], without=set(need.without)))

    def hurry(self) -> None:
        """Try spares again at once: there is more to choose from."""
        self._pause, self._spares_from = PAUSE[0], 0.0
        if not self.stopped:
            self._fill()

    def rows(self) -> list[Circuit]:
        """Give every circuit."""
        return list(self.circuits.values())

    @property
    def building(self) -> int:
        """Count the circuits on their way."""
        return len(self._builds) + len(self._queue)

    # What builds say.

    def new(self, build: _Build) -> Origin:
        """Make a circuit without hops."""
        return Origin(self.means, self.worker, self.network, build, self._hop_time())

    def finished(self, build: _Build) -> None:
        """Take a circuit that stands."""
        origin = build.origin
        assert origin is not None
        now = self.means.clock()
        self._next += 1
        self._builds.remove(build)
        circuit = Circuit(self._next, origin, build.path, None, now)
        build.circuit = circuit
        self.circuits[circuit.number] = circuit
        self.built += 1
        self._pause = PAUSE[0]
        self._times.extend(origin.times)
        self.guards.worked(build.path[0].identity, self.wall())
        for node in build.path:
            self.database.worked(node.identity, self.wall())
        self.changed(circuit, "open")
        waiting, build.waiting = build.waiting, []
        for need, done in waiting:
            if circuit.origin.state is State.OPEN and self._room(circuit) and (circuit.need is None or not need.alone):
                self._take(circuit, need)
                done(circuit)
            else:
                self.get(need, done)
        self._fill()

    def gave_up(self, build: _Build, error: Exception) -> None:
        """Take the end of a build."""
        self.failures += 1
        if build in self._builds:
            self._builds.remove(build)
        if build.need is None:
            self._spares_from = self.means.clock() + self._pause
            self._pause = min(self._pause * 2, PAUSE[1])
        self._tell(build, error)
        self._fill()

    def ended(self, circuit: Circuit) -> None:
        """Forget a circuit that is closed."""
        if self.circuits.pop(circuit.number, None) is not None:
            if circuit.speed >= SPEED_LEAST:
                for node in circuit.path:
                    self.database.measured(node.identity, circuit.speed)
            self.changed(circuit, "closed")
        if not self.stopped:
            self._fill()

    def _tell(self, build: _Build, error: Exception) -> None:
        waiting, build.waiting = build.waiting, []
        for _, done in waiting:
            done(error)

    def _take(self, circuit: Circuit, need: Need) -> None:
        now = self.means.clock()
        if circuit.need is None:
            circuit.need = need
            circuit.first = now
        circuit.last = now
        circuit.opened += 1

    def _fitting(self, need: Need) -> Circuit | None:
        spare, now = None, self.means.clock()
        for circuit in self.circuits.values():
            if (
                circuit.origin.state is not State.OPEN
                or circuit.silent(now) is not None
                or (need.port and not allows(circuit.path[-1], need.port))
            ):
                continue
            if circuit.need is None:
                if not need.route.hops and not need.last and not need.layer2 and need.hops == self.hops:
                    spare = spare or circuit
            elif not (need.alone or circuit.need.alone) and _same(circuit.need, need) and self._room(circuit):
                return circuit
        return spare

    def _room(self, circuit: Circuit) -> bool:
        return len(circuit.origin.streams.live) < STREAMS_PER_CIRC

    def _enter(self, build: _Build) -> None:
        self._queue.append(build)
        self._fill()

    def _fill(self) -> None:
        """Begin what waits, then spares while they are missing."""
        if self._filling:
            return  # a build has failed at once; whoever has begun it goes on
        self._filling = True
        while len(self._builds) < BUILD_AT_ONCE and not self.stopped:
            if self._queue:
                build = self._queue.popleft()
            elif self._wants_spare():
                build = _Build(self, None, Want(hops=self.hops, port=self._ports[0]), [])
            else:
                break
            self._builds.append(build)
            build.begin()
        self._filling = False

    def _wants_spare(self) -> bool:
        if self.means.clock() < self._spares_from:
            return False
        there = sum(1 for circuit in self.circuits.values() if circuit.need is None)
        return there + sum(1 for build in self._builds if build.need is None) < self.spares

    def _look(self) -> None:
        self._timer = self.means.later(LOOK, self._look)
        now = self.means.clock()
        for circuit in list(self.circuits.values()):
            origin = circuit.origin
            circuit.look(now)
            if circuit.waits(now):
                circuit.probe(now)
                self.doubt(circuit.path[0].identity, partial(self._hangs, circuit.path[0].identity))
            if (circuit.silent(now) or 0.0) >= T_PROBE:
                behind = [one.identity for one in circuit.path[1:]]
                self.shun(behind, now)
                self._spoil(behind)
                origin.close(Destroy.TIMEOUT)
            elif now - circuit.since >= CIRC_LIFE or origin.used >= CELLS_MAX - CELLS_ROOM:
                origin.retire()
            elif circuit.need is None:
                if now - circuit.since >= CIRC_IDLE:
                    origin.close(Destroy.NONE)
            elif circuit.need.kept:
                continue
            elif now - circuit.first >= CIRC_DIRTY and origin.state is State.OPEN:
                origin.retire()
            elif not origin.streams.live and now - circuit.last >= CIRC_IDLE:
                origin.close(Destroy.NONE)
        self._fill()

    def _hangs(self, first: bytes) -> None:
        self.guards.failed(first, self.wall())
        self._spoil((first,))

    def shunned(self) -> frozenset[bytes]:
        """Give the nodes that other circuits do without, where they can."""
        now = self.means.clock()
        return frozenset(node for node, until in self._shunned.items() if until > now)

    def shun(self, nodes: Iterable[bytes], now: float) -> None:
        """Let other circuits do without some for T_SHUN; SHUNNED at a time, the last ones."""
        for node in nodes:
            self._shunned.pop(node, None)
            self._shunned[node] = now + T_SHUN
        while len(self._shunned) > SHUNNED:
            del self._shunned[next(iter(self._shunned))]

    def _spoil(self, nodes: Collection[bytes]) -> None:
        """Close spares with one of these: who was left waiting by a circuit should not get the next such."""
        for circuit in list(self.circuits.values()):
            if circuit.need is None and any(one.identity in nodes for one in circuit.path):
                circuit.origin.close(Destroy.NONE)

    def _hop_time(self) -> float:
        """Give 1.5 times what four hops of five took, within its limits."""
        if len(self._times) < 10:
            return T_HOP_MOST
        times = sorted(self._times)
        return min(max(1.5 * times[len(times) * 4 // 5], T_HOP_LEAST), T_HOP_MOST)


def _same(one: Need, other: Need) -> bool:
    return (one.key, one.route, one.last, one.layer2, one.hops, one.kept, one.without) == (
        other.key,
        other.route,
        other.last,
        other.layer2,
        other.hops,
        other.kept,
        other.without,
    )
