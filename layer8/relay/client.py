"""The one API of the network for what stands on circuits: `socks`, and whoever publishes or visits hidden services.

::

    stream = client.open(Open(Proto.TCP, "example.org", 443), sink, key=user)   writes are kept until there is a circuit
    command, data = await client.ask(Need(last=node), 18, data, {19}, 20.0)     a question to a role of the last hop
    circuit = await client.build(Need(route=parse_route("rand>ID")))            a circuit of one's own

Nothing is raised for what the network does: a stream's sink is told `closed(reason)`. A stream that falls with its
circuit before the far end has answered is tried on other circuits, OPEN_TRIES in all, with what was said on it so far;
one that was open is never repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable
from typing import Any, Final

from attrs import define, evolve, field
from twisted.internet.defer import Deferred

from layer8.core.errors import ConfigError, LocalProtocolError, TimedOut, Unavailable
from layer8.crypto.keys import NodeKey
from layer8.relay.carried import Carried
from layer8.relay.early import EARLY, Early
from layer8.relay.login import local, login
from layer8.relay.origin import OFFER, Hop, Origin
from layer8.relay.path import NoPath
from layer8.relay.pool import NoCircuit, Pool
from layer8.relay.route import (
    At,
    Hidden,
    Host,
    Internet,
    Named,
    Port,
    Rand,
    Resource,
    Route,
    Target,
    Tunnel,
    Via,
    parse_route,
    parse_tunnel,
    parse_way,
)
from layer8.relay.standing import Circuit, Need
from layer8.relay.stream import Stream
from layer8.relay.turn import Sink, StreamLike
from layer8.relay.wire import Address, Command, Destroy, Open, Opened, Proto, Reason, datagram, read_datagram

__all__ = [
    "OFFER",
    "Address",
    "At",
    "Carried",
    "Circuit",
    "Client",
    "Destroy",
    "Early",
    "Hidden",
    "Hop",
    "Host",
    "Internet",
    "Named",
    "Need",
    "NoCircuit",
    "NoPath",
    "Open",
    "Opened",
    "Origin",
    "Port",
    "Proto",
    "Rand",
    "Reason",
    "Resource",
    "Route",
    "Sink",
    "Stream",
    "StreamLike",
    "Target",
    "Tunnel",
    "Via",
    "check_route",
    "datagram",
    "parse_route",
    "parse_tunnel",
    "parse_way",
    "read_datagram",
]

OPEN_TRIES: Final = 3
AGAIN_TIME: Final = 20.0  # seconds after which nobody waits for one more try
AGAIN: Final = frozenset((Reason.RESET, Reason.TIMEOUT, Reason.LIMIT, Reason.INTERNAL))
"""What may be the circuit's fault, or its last hop's."""


@define(eq=False)
class Opening(Early):
    """A stream as its user has it: first it waits for a circuit, then it is a stream on one."""

    target: Open
    _pool: Pool
    _need: Need
    _key: NodeKey | None = field(default=None, repr=False)  # who we say that we are, at the end of the circuit
    circuit: Circuit | None = field(default=None, init=False)
    _tries: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """Ask for a circuit."""
        if not self._tries:
            self._since = self._pool.means.clock()
        self._tries += 1
        self._pool.get(self._need, self._got)

    def close(self, reason: Reason = Reason.DONE) -> None:
        """End both directions; the sink hears no more."""
        self.settle()
        self._answered()
        if self._stream is not None:
            self._stream.close(reason)

    def _got(self, circuit: Circuit | Exception) -> None:
        if self.settled:
            return
        if isinstance(circuit, Exception):
            self.settle()
            self._pool.streamed(None, "failed")
            self.sink.closed(circuit.reason if isinstance(circuit, NoCircuit) else Reason.UNREACHABLE)
            return
        try:
            if self._key is not None and not circuit.known:
                circuit.known = True
                proof = login(self._key, self._pool.network, circuit.origin.binding)
                circuit.origin.tell(Command.LOGIN, proof)
            stream = circuit.origin.open(self.target, self)
        except LocalProtocolError:
            self.closed(Reason.RESET)
            return
        self.circuit = circuit
        circuit.wait_for(self, self._pool.means.clock())
        self.begun(stream)

    # What the stream says until it is open; then its sink is the user's.

    def opened(self, opened: Opened) -> None:
        """Leave the rest to the user."""
        assert self._stream is not None
        self.settle()
        self._answered()
        self._pool.streamed(self.circuit, "open")
        self._stream.sink = self.sink
        self.sink.opened(opened)
        self.release()

    def data(self, pieces: list[bytes]) -> None:
        """Pass data on that comes before the answer; there is none."""
        self.sink.data(pieces)

    def ended(self) -> None:
        """Pass it on."""
        self.sink.ended()

    def closed(self, reason: Reason) -> None:
        """Try another circuit, if that may help; nobody else is sent to this one."""
        self._answered()
        circuit, self._stream, self.circuit = self.circuit, None, None
        if self.settled:
            return
        if circuit is not None and reason in AGAIN:
            circuit.origin.retire()
        if reason in AGAIN and self._tries < OPEN_TRIES and self._pool.means.clock() - self._since < AGAIN_TIME:
            self.begin()
        else:
            self.settle()
            self._pool.streamed(circuit, "failed")
            self.sink.closed(reason)

    def _answered(self) -> None:
        if self.circuit is not None:
            self.circuit.waiting.pop(self, None)

    def hold(self) -> None:
        """Let the user wait."""
        if not self._held:
            self._held = True
            self.sink.hold()

    def go_on(self) -> None:
        """Let the user write again, unless as much is kept as may be."""
        if self._held and self._size < EARLY:
            self._held = False
            self.sink.go_on()


@define(eq=False)
class Client:
    """See the module. `hops` is the length of a circuit where nobody says otherwise; `key` is this node's."""

    pool: Pool
    hops: int = 3
    key: NodeKey | None = field(default=None, repr=False)

    def open(
        self,
        target: Open,
        sink: Sink,
        *,
        route: Route | None = None,
        key: Hashable = None,
        alone: bool = False,
        known: bool = False,
    ) -> Opening:
        """Open a stream at the end of a circuit that only streams with the same `key` use; `alone`: only this one.

        A target without a host is a port of the last hop itself. With `known` a last hop that the route names is told
        who we are, if the target is on some local network: it may have opened it to us (`lan_targets`). That is for
        targets that the user has written down himself; what a web page asks for must never say who he is. Raises
        `ConfigError` for a route that cannot be.
        """
        route, delegate = _delegated(route or Route())
        if delegate:
            target = evolve(target, delegate=delegate)
        port = target.port if target.host and not delegate and not _ends_at_node(route) else 0
        named = self.key if known and not delegate and _ends_at_node(route) and local(target.host) else None
        kept = ("known", key) if named is not None else key
        need = Need(key=kept, route=route, port=port, hops=self.hops, alone=alone)
        opening = Opening(sink, target, self.pool, need, named)
        opening.begin()
        return opening

    async def ask(
        self, need: Need, command: int, data: bytes, answers: Container[int], timeout: float
    ) -> tuple[int, bytes]:
        """Send a message to a role of the last hop and give the first answer; raises TimedOut or Unavailable."""
        return await self.ask_on(await self._circuit(self.pool.get, need), command, data, answers, timeout)

    async def ask_on(
        self, circuit: Circuit, command: int, data: bytes, answers: Container[int], timeout: float
    ) -> tuple[int, bytes]:
        """Do the same on a circuit that one has."""
        waiting: Deferred[tuple[int, bytes] | Reason] = Deferred()
        try:
            circuit.origin.ask(command, data, answers, timeout, waiting.callback)
        except LocalProtocolError as error:
            raise Unavailable(f"the circuit is gone: {error}") from None
        answer = await waiting
        if isinstance(answer, Reason):
            if answer == Reason.TIMEOUT:
                raise TimedOut(f"no answer in {timeout:g} s")
            raise Unavailable(f"the circuit ended before the answer: {answer.name.lower()}")
        return answer

    async def build(self, need: Need) -> Circuit:
        """Build a circuit for one's own use; raises NoPath or NoCircuit."""
        return await self._circuit(self.pool.build, need)

    async def extend(self, circuit: Circuit, hop: Hop) -> None:
        """Build one more hop on a circuit of one's own, by what somebody else has said of it; raises NoCircuit."""
        waiting: Deferred[Reason | None] = Deferred()
        try:
            circuit.extend(hop, waiting.callback)
        except LocalProtocolError as error:
            raise NoCircuit(f"the circuit is gone: {error}", Reason.RESET) from None
        reason = await waiting
        if reason is not None:
            circuit.close()
            raise NoCircuit("the last hop was not to be had", reason)

    async def circuit(self, need: Need) -> Circuit:
        """Give a circuit, a new one or one that is there; raises NoPath or NoCircuit."""
        return await self._circuit(self.pool.get, need)

    async def _circuit(self, get: Callable[[Need, Callable[[Circuit | Exception], None]], None], need: Need) -> Circuit:
        waiting: Deferred[Any] = Deferred()

        def done(result: Circuit | Exception) -> None:
            if waiting.called:
                return
            if isinstance(result, Exception):
                waiting.errback(result)
            else:
                waiting.callback(result)

        get(need, done)
        found: Circuit = await waiting
        return found


def check_route(route: Route) -> None:
    """Raise `ConfigError` for a route that `Client.open` would not take."""
    _delegated(route)


def _delegated(route: Route) -> tuple[Route, int]:
    """Take `via:N` from the end of a route: the hop before it is asked to go on through N peers of its own."""
    *before, last = route.hops or (None,)
    if any(isinstance(hop, Via) for hop in before) or (isinstance(last, Via) and not before):
        raise ConfigError("via:N is the last hop of a path, behind the one that goes on")
    return (Route(route.hops[:-1]), last.count) if isinstance(last, Via) else (route, 0)


def _ends_at_node(route: Route) -> bool:
    """Say whether the user has named the last hop: then it is his business whether it is an exit."""
    return bool(route.hops) and not isinstance(route.hops[-1], Rand)
