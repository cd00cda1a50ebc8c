"""One node of the network: its links, the circuits it carries, and those it builds itself.

::

    node = Relay(reactor, key, config.relay, network, keys=OnionKeys(path), memory=memory, wall=wall)
    node.startService()          listens; `node.client` is the API for whoever wants streams
    node.serve(role)             a tracker, peer exchange, an inbox: `layer8.core.roles.Answers`

A node with `relay = false` is a client alone: it listens nowhere, shows no identity and has no descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from os import urandom
from random import SystemRandom
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.config.network import RelayConfig
from layer8.core.network import Network
from layer8.core.roles import Answers
from layer8.crypto.descriptor import Descriptor, Role, find_work, make
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import SeenX, relay_answer
from layer8.crypto.work import NONCE
from layer8.net.tasks import TaskSet
from layer8.relay.carrier import Carriers
from layer8.relay.circuit import Circuit, Circuits, choose_terms
from layer8.relay.client import Client
from layer8.relay.database import Database
from layer8.relay.exit import Account, Guard, LanTargets, Policy
from layer8.relay.guards import Guards, SecondHops
from layer8.relay.limits import LINKS, PAD_LEAST, PAD_MOST
from layer8.relay.link import Ground, Why
from layer8.relay.links import Links
from layer8.relay.neighbours import Neighbours
from layer8.relay.onionkeys import OnionKeys
from layer8.relay.outward import LocalAddresses, Outward
from layer8.relay.path import Paths
from layer8.relay.pex import SAME, Exchange
from layer8.relay.pool import Pool
from layer8.relay.securing import Security
from layer8.relay.stream import Means, Stream
from layer8.relay.turn import Turn
from layer8.relay.wire import Destroy, Open, Reason

OPTION: Final = "relay.listen"
HUB: Final = 4  # times as many links as others want
TRIES: Final = 65_536  # of the work for a descriptor, in one go of a thread: 40 ms
DAY: Final = 86_400


class Relay(Service):
    """See the module. `wall` gives seconds since 1970."""

    _log = Logger(namespace="layer8.relay")

    def __init__(
        self,
        reactor: Any,
        key: NodeKey,
        config: RelayConfig,
        *,
        wall: Callable[[], float],
        keys: OnionKeys | None = None,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        """Put the parts together; nothing listens yet."""
        self.reactor = reactor
        self.key = key
        self.config = config
        self.network = Network(config.network)
        self.keys = keys or OnionKeys(None)
        self.wall = wall
        self.seconds = seconds
        self.chance = SystemRandom()
        self.roles = 0
        self.tasks = TaskSet(self._log)
        self.listening: tuple[str, ...] = ()
        self.ports: set[int] = set()
        self.descriptor: Descriptor | None = None
        turn = Turn(lambda end: reactor.callLater(0, end))
        self.means = Means(turn, seconds, reactor.callLater, urandom)
        guard = Guard(LocalAddresses(), self.ports, config.allow_loopback)
        lan = LanTargets.parse(config.lan_targets)
        self.outward = Outward(reactor, Policy.parse(config.exit), guard, lan, seconds=seconds)
        self.database = Database(self.network, key.node_id)
        self.guards = Guards(self.database, self.chance, config.guards)
        self.layer2 = SecondHops(self.database, self.chance)
        self.aliases: dict[str, bytes] = {}
        self.paths = Paths(self.database, self.guards, self.chance, layer2=self.layer2, aliases=self.aliases)
        self.neighbours = Neighbours(self.tasks, self._addresses, learn=self._learn)
        self.links = Links(key.node_id, self.neighbours, prefixes=self.network.ruled, most=LINKS)
        ground = Ground(
            self.network.mark,
            turn,
            seconds,
            wall,
            urandom,
            lambda: self.chance.uniform(PAD_LEAST, PAD_MOST),
            descriptor=lambda: b"" if self.descriptor is None else self.descriptor.raw,
        )
        shown = key if config.relay else None
        security = Security(shown, self.network.mark, datetime.fromtimestamp(wall(), UTC))
        self.carriers = Carriers(reactor, ground, security, self.links, config.link)
        self.neighbours.links, self.neighbours.carriers = self.links, self.carriers
        self.pool = Pool(
            self.means,
            self._work,
            self.network.mark,
            self.paths,
            self.database,
            self.guards,
            self.neighbours.reach,
            wall,
            config.hops,
        )
        self.client = Client(self.pool, config.hops)
        self._seen = SeenX()
        self._accounts: WeakKeyDictionary[Circuit, Account] = WeakKeyDictionary()
        self.circuits = Circuits(
            key.node_id, self.means, self._work, self._answer, self.neighbours.reach_for, self._asked
        )
        if config.relay:
            self.neighbours.circuits = self.circuits
            self.circuits.serve(
                Exchange(
                    self.database,
                    self.chance,
                    wall,
                    lambda node: self.links.get(node) is not None,
                    self.guards.ids,
                    SAME if self.network.ruled else 0.0,  # networks of tests are a minute old
                )
            )

    def serve(self, role: Answers, flag: int = 0) -> None:
        """Let a role answer at the end of circuits, and say in the descriptor that it is here."""
        self.circuits.serve(role)
        self.roles |= flag

    def startService(self) -> None:
        """Listen, and begin to keep circuits ready; raises Unavailable."""
        Service.startService(self)
        self.keys.load(self.wall())
        if self.config.relay:
            self._listen()
            if self.network.ruled:
                self.tasks.start("introduction", self.introduce())
            else:
                self.renew()
        self.pool.start()

    async def _stop(self) -> None:
        self.pool.stop()
        now = self.seconds()
        await self.carriers.stop()
        self.circuits.close(Destroy.GOING_DOWN)
        self.links.close(Why.DOWN, now)
        self.means.turn.end()
        await self.tasks.stop()

    def stopService(self) -> Deferred[None]:
        """End every circuit and link."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def introduce(self) -> Descriptor | None:
        """Make a new descriptor with the work that its network wants; None: there is no address to publish."""
        if not self.network.ruled:
            return self.renew()
        if not (self.config.relay and self.config.advertise):
            return None
        start = urandom(NONCE)
        while True:
            now = self.wall()
            look = partial(find_work, self.key.node_id, now, start, TRIES)
            work, start = await deferToThreadPool(self.reactor, self.reactor.getThreadPool(), look)
            if work is not None and now // DAY == self.wall() // DAY:
                return self.renew(work)

    def renew(self, work: bytes = b"") -> Descriptor:
        """Make a new descriptor: what others need to build through this node."""
        now = int(self.wall())
        self.keys.turn(now)
        roles = Role.RELAY | self.roles
        if self.outward.policy:
            roles |= Role.EXIT
        if self.config.peer_hub:
            roles |= Role.HUB
        serial = max(now, 0 if self.descriptor is None else self.descriptor.serial + 1)
        self.descriptor = make(
            self.key,
            self.network,
            onion_key=self.keys.public,
            endpoints=self.config.advertise or self._own(),
            now=now,
            serial=serial,
            roles=roles,
            exits=self.outward.policy.summary(loopback=self.config.allow_loopback),
            work=work,
        )
        return self.descriptor

    def _own(self) -> Sequence[str]:
        """In a network of tests, where we listen is where we are reached."""
        return () if self.network.ruled else self.listening

    def _listen(self) -> None:
        told = []
        for text in self.config.listen:
            for port in self.carriers.listen(text, OPTION):
                address: Any = port.getHost()
                self.ports.add(address.port)
                noise = ":link=noise" if text.endswith(":link=noise") else ""
                host = address.host.replace(":", "\\:")
                told.append(f"tcp:{host}:{address.port}{noise}")
        self.listening = tuple(told)

    def _answer(self, handshake: bytes) -> Any:
        return relay_answer(
            self.key.node_id, self.keys.by_public, self.network.mark, handshake, self._seen, choose_terms
        )

    def _work(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run something off the reactor; nothing of it is heard after the service has stopped."""

        def tell(result: Any) -> None:
            if self.running:
                done(result.value if isinstance(result, Failure) else result)
                self.means.turn.end()

        deferToThreadPool(self.reactor, self.reactor.getThreadPool(), work).addBoth(tell)

    def _learn(self, peer: bytes, descriptor: bytes) -> None:
        """Take what a neighbour says of itself."""
        self.database.took(peer, [descriptor], self.wall())

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Give where a stranger's endpoint leads; in a network of tests it may be anywhere."""
        if not self.network.ruled:
            return [host]
        return await self.outward.addresses(host, port)

    def _asked(self, circuit: Circuit, stream: Stream, target: Open) -> None:
        """Serve what a client wants to reach from here."""
        if target.delegate:
            stream.close(Reason.POLICY)
        elif not target.host and not target.port:
            stream.close(Reason.PROTOCOL)
        elif circuit.link.peer is None and not self.config.allow_single_hop:
            stream.close(Reason.POLICY)
        else:
            account = self._accounts.get(circuit)
            if account is None:
                account = self._accounts[circuit] = self.outward.account()
            self.tasks.start("exit", self.outward.serve(stream, account))
