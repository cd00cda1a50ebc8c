"""One node of the network: its links, the circuits it carries, and those it builds itself.

::

    node = Relay(reactor, key, config.relay, wall=wall, keys=OnionKeys(path), memory=memory)
    node.startService()          listens; `node.client` is the API for whoever wants streams
    node.serve(role)             a tracker, peer exchange, an inbox: `layer8.core.roles.Answers`

A node with `relay = false` is a client alone: it listens nowhere, shows no identity and has no descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from os import urandom
from pathlib import Path
from random import SystemRandom
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.config.network import RelayConfig, dialled
from layer8.core.address import is_address
from layer8.core.errors import Layer8Error, RemoteProtocolError, StorageError
from layer8.core.network import Network
from layer8.core.roles import Answers
from layer8.crypto.descriptor import Descriptor, Role
from layer8.crypto.keys import NodeKey, id_text, parse_id
from layer8.crypto.ntor import SeenX, relay_answer
from layer8.net.tasks import TaskSet
from layer8.relay import snapshot
from layer8.relay.beacon import Beacon
from layer8.relay.carrier import Carriers, kind
from layer8.relay.circuit import Circuit, Circuits, State, Way, choose_terms
from layer8.relay.client import Client
from layer8.relay.credit import Credit
from layer8.relay.database import Database
from layer8.relay.delegate import Delegates
from layer8.relay.exit import Account, Guard, LanTargets, Policy
from layer8.relay.filling import Ask, Filling
from layer8.relay.guards import Guards, SecondHops
from layer8.relay.inbox import Inbox
from layer8.relay.limits import LINKS, PAD_LEAST, PAD_MOST
from layer8.relay.link import Ground, Why
from layer8.relay.links import Links, doubt
from layer8.relay.login import Logins
from layer8.relay.memory import Kept, Letter, Memory
from layer8.relay.nearby import Lan
from layer8.relay.neighbours import Neighbours
from layer8.relay.onionkeys import OnionKeys
from layer8.relay.outward import LocalAddresses, Outward
from layer8.relay.path import Paths
from layer8.relay.pex import SAME, Exchange
from layer8.relay.pool import Pool
from layer8.relay.publishing import Lists, Publishing
from layer8.relay.route import Named, Route
from layer8.relay.securing import TLS, Security
from layer8.relay.standing import Need
from layer8.relay.stream import Means, Stream
from layer8.relay.turn import Turn
from layer8.relay.wire import Destroy, Open, Proto, Reason

OPTION: Final = "relay.listen"
COUNT: Final = 5.0  # seconds between looks at who has carried how much
SAVE: Final = 60.0  # seconds between writes of what is known
GATEWAYS: Final = 3  # that a descriptor names


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
        memory: Memory | None = None,
        home: Path | None = None,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        """Put the parts together; nothing listens yet. `home` is where files are that options name."""
        self.reactor = reactor
        self.key = key
        self.config = config
        self.network = Network(config.network)
        self.keys = keys or OnionKeys(None)
        self.memory = memory
        self._home = home or Path()
        self._listed: frozenset[bytes] | None = None  # relays on a signed list, if the user wants one
        self.wall = wall
        self.seconds = seconds
        self.chance = SystemRandom()
        self.roles = 0
        self.tasks = TaskSet(self._log)
        self.listening: tuple[str, ...] = ()
        self.ports: set[int] = set()
        turn = Turn(lambda end: reactor.callLater(0, end))
        self.means = Means(turn, seconds, reactor.callLater, urandom)
        # Behind a router our own address leads back to us, or to the router as seen from inside.
        own = LocalAddresses(host for text in config.advertise if is_address(host := dialled(text).words["host"]))
        guard = Guard(own, self.ports, config.allow_loopback and not self.network.ruled)
        lan = LanTargets.parse(config.lan_targets)
        self.outward = Outward(reactor, Policy.parse(config.exit), guard, lan, seconds=seconds)
        self.database = Database(self.network, key.node_id)
        self.guards = Guards(self.database, self.chance, config.guards)
        self.layer2 = SecondHops(self.database, self.chance)
        self.aliases: dict[str, bytes] = {}
        self.paths = Paths(
            self.database,
            self.guards,
            self.chance,
            layer2=self.layer2,
            aliases=self.aliases,
            snapshot=lambda: self._listed,
        )
        self.neighbours = Neighbours(self.tasks, self._addresses, learn=self._learn, pin=self._pin)
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
            self._reach,
            self.neighbours.meet,
            wall,
            config.hops,
            doubt=self._doubt,
        )
        self.client = Client(self.pool, config.hops, key)
        self.logins = Logins(self.network.mark)
        self.delegates = Delegates(self.client)
        self.inbox = Inbox(key.node_id, self.network.mark, self.client, wall, seconds, urandom, keep=self._keep_letter)
        self.credit = Credit()
        self.tunnels: tuple[str, ...] = ()  # that were kept
        self.publishing = Publishing(
            reactor,
            key,
            self.network,
            self.keys,
            self.chance,
            wall,
            self._says,
            self._endpoints,
            self._gateways,
        )
        self.filling = Filling(
            reactor,
            lambda: self.config,
            key.node_id,
            self.database,
            self.client,
            self.links,
            self.neighbours,
            self.chance,
            wall,
            seconds,
        )
        beacon = Beacon(key, self.network.mark, self._lan_port, wall, self.chance.uniform)
        self.lan = Lan(reactor, beacon, self.neighbours, seconds) if config.lan else None
        self._counted: dict[Circuit, int] = {}  # cells of others' circuits
        self._alive = False
        self._working = False  # a handshake waits for the next turn
        self._seen = SeenX()
        self._accounts: WeakKeyDictionary[Circuit, Account] = WeakKeyDictionary()
        self.circuits = Circuits(
            key.node_id, self.means, self._work, self._answer, self.neighbours.reach_for, self._asked
        )
        if config.relay:
            self.neighbours.circuits = self.circuits
            self.neighbours.moved = self._moved
            self.circuits.serve(self.logins)
            self.circuits.serve(self.inbox)
            self.circuits.serve(
                Exchange(
                    self.database,
                    self.chance,
                    wall,
                    lambda node: self.links.get(node) is not None,
                    # Networks of tests are a minute old, and so small that guards are half of all that is known.
                    self.guards.ids if self.network.ruled else frozenset,
                    SAME if self.network.ruled else 0.0,
                )
            )

    def serve(self, role: Answers, flag: int = 0) -> None:
        """Let a role answer at the end of circuits, and say in the descriptor that it is here."""
        self.circuits.serve(role)
        self.roles |= flag

    def ask_lists(self, lists: Lists) -> None:
        """Publish this node by these trackers, and ask them for relays; before the service starts."""
        self.publishing.lists = self.filling.lists = lists

    @property
    def descriptor(self) -> Descriptor | None:
        """What others need to build through this node; None where it does not relay, or nobody could."""
        return self.publishing.descriptor

    def trackers(self) -> list[tuple[bytes, Ask]]:
        """Give the trackers that are known, and how to ask each."""
        return self.filling.trackers()

    async def proves(self, descriptor: Descriptor) -> bool:
        """Say whether a stranger is where it says: at an address that an exit would dial, or behind a gateway."""
        identity = descriptor.identity
        if descriptor.endpoints:
            return await self.neighbours.prove(identity, descriptor.endpoints)
        if self.key.node_id in descriptor.via and self.links.get(identity) is not None:
            return True
        self.database.took(identity, [descriptor.raw], self.wall())
        for gateway in descriptor.via:
            if gateway != self.key.node_id and self.database.get(gateway) is not None:
                try:
                    circuit = await self.client.build(
                        Need(route=Route((Named(id_text(gateway)), Named(id_text(identity)))))
                    )
                except Layer8Error:
                    continue
                circuit.close()
                return True
        return False

    def startService(self) -> None:
        """Listen, and begin to keep circuits ready; raises Unavailable."""
        Service.startService(self)
        self._alive = True
        self.keys.load(self.wall())
        if self.memory is not None:
            self._remember(self.memory.load(self.database, self.guards, self.layer2, self.wall()))
        self._read_list()
        if self.config.relay:
            self._listen()
            if not self.network.ruled:
                self.publishing.renew()
            self.tasks.start("publishing", self.publishing.keep())
        if self.lan is not None:
            self.lan.startService()
        self.pool.start()
        self.tasks.start("filling", self.filling.keep())
        self.tasks.start("saving", self._keep_books())

    async def _stop(self) -> None:
        if self.lan is not None:
            await self.lan.stopService()
        await self.publishing.withdraw()
        self._alive = False
        self.pool.stop()
        now = self.seconds()
        await self.carriers.stop()
        self.circuits.close(Destroy.GOING_DOWN)
        self.links.close(Why.DOWN, now)
        self.means.turn.end()
        await self.tasks.stop()
        await self._save()

    def stopService(self) -> Deferred[None]:
        """End every circuit and link."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    def introduce(self) -> None:
        """Make a new descriptor soon: what it says has changed."""
        self.publishing.changed()

    def _remember(self, kept: Kept) -> None:
        self.aliases.update(kept.aliases)
        self.tunnels = kept.tunnels
        self.inbox.restore(kept.inbox)
        self.credit.restore(kept.credit)

    async def _keep_books(self) -> None:
        """Count credit, and write down what is known, for ever."""
        while True:
            for _ in range(round(SAVE / COUNT)):
                await deferLater(self.reactor, COUNT)
                self._count()
            self._read_list()
            await self._save()

    def _read_list(self) -> None:
        """Read the list that chosen people have signed; while there is no good one, no relay is drawn."""
        config, before = self.config, self._listed
        self._listed = frozenset() if config.snapshot_keys else None
        if config.snapshot_keys:
            keys = [parse_id(text) for text in config.snapshot_keys]
            try:
                file = (self._home / config.snapshot_file).read_bytes()
                self._listed = snapshot.read(file, keys, config.snapshot_need, self.network, self.wall())
            except (OSError, RemoteProtocolError) as error:
                self._log.warn("no good list of relays: {why}", event="relay.no_list", why=str(error))
        if self._listed != before:
            self.database.version += 1

    async def _save(self) -> None:
        if self.memory is None:
            return
        try:
            await self.memory.save(self.database, self.guards, self.layer2)
            await self.memory.save_credit(*self.credit.changes())
        except StorageError:
            self._log.info("what is known of the network could not be written", event="relay.not_saved")

    def _count(self) -> None:
        """Note who has carried how much for whom, and weigh links by it."""
        now = self.wall()
        for circuit in self.circuits.all.values():
            self._counted[circuit] = self._counted.get(circuit, 0)
        for carried, before in list(self._counted.items()):
            cells = carried.cells_forward + carried.cells_backward
            if carried.link.peer is not None and cells > before:
                self.credit.count(carried.link.peer, now, by_me=cells - before)
            self._counted[carried] = cells
            if carried.state is State.CLOSED:
                del self._counted[carried]
        for own in self.pool.rows():
            self.credit.count(own.path[0].identity, now, for_me=own.fresh())
        for link in self.links:
            if link.peer is not None:
                link.weight = self.credit.weight(link.peer) if self.config.credit else 1.0

    def _pin(self, peer: bytes, address: str) -> None:
        """Remember a node that the user has named by its address."""
        self.database.pin(peer)
        if self.memory is not None:
            self.tasks.start("saving", self.memory.pin(peer, address))

    def _keep_letter(self, letter: Letter) -> None:
        if self.memory is not None:
            self.tasks.start("saving", self.memory.keep_letter(letter))

    def _says(self) -> tuple[int, bytes]:
        """Give what the descriptor says of us besides keys and addresses."""
        roles = Role.RELAY | self.roles
        if self.outward.policy:
            roles |= Role.EXIT
        if self.config.peer_hub:
            roles |= Role.HUB
        return roles, self.outward.policy.summary(loopback=self.config.allow_loopback)

    def _endpoints(self) -> Sequence[str]:
        """Give our addresses; in a network of tests, where we listen is where we are reached."""
        advertised = tuple(_said(text, kind(text, self.config.link)) for text in self.config.advertise)
        return advertised or (() if self.network.ruled else self.listening)

    def _gateways(self) -> Sequence[bytes]:
        """Give those whom we have dialled, by whom others reach us if they cannot dial us; guards if nobody else."""
        guards = self.guards.ids()
        dialled = [link.peer for link in self.links if link.dialled and link.peer is not None]
        others = [one for one in dialled if one not in guards]
        return sorted(others or dialled)[:GATEWAYS]

    def _moved(self) -> None:
        """Say by whom we are reached now, if we are reached by others."""
        there = () if self.descriptor is None else self.descriptor.via
        if self.running and not self._endpoints() and tuple(self._gateways()) != there:
            self.publishing.changed()

    def _lan_port(self) -> int:
        """Give the port that the local network can dial, 0 if links are taken on this machine only."""
        for text in self.listening:
            where = dialled(text)
            if not (self.network.ruled and where.loopback):
                return where.port
        return 0

    def _listen(self) -> None:
        told = []
        for text in self.config.listen:
            for port in self.carriers.listen(text, OPTION):
                address: Any = port.getHost()
                self.ports.add(address.port)
                host = address.host.replace(":", "\\:")
                told.append(_said(f"tcp:{host}:{address.port}", kind(text, self.config.link)))
        self.listening = tuple(told)

    def _answer(self, handshake: bytes) -> Any:
        return relay_answer(
            self.key.node_id, self.keys.by_public, self.network.mark, handshake, self._seen, choose_terms
        )

    def _work(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run a handshake; nothing of it is heard after the service has stopped.

        The first one of a turn is run in the next turn, before anything is read: it costs a quarter of a millisecond,
        as much as handing it to a thread, and a circuit is built a fifth sooner. All others of that turn go to threads.
        """
        if self._working:
            worked = deferToThreadPool(self.reactor, self.reactor.getThreadPool(), work)
            worked.addBoth(lambda result: self._worked(result.value if isinstance(result, Failure) else result, done))
        else:
            self._working = True
            self.reactor.callLater(0, self._work_now, work, done)

    def _work_now(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self._working = False
        try:
            result = work()
        except Exception as error:
            result = error
        self._worked(result, done)

    def _worked(self, result: Any, done: Callable[[Any], None]) -> None:
        if self._alive:
            done(result)
            self.means.turn.end()

    def _doubt(self, node: bytes, hangs: Callable[[], None]) -> None:
        link = self.links.get(node)
        if link is not None:
            doubt(link, self.seconds(), hangs)

    def _reach(self, node: bytes, endpoints: tuple[str, ...], done: Callable[[Way | Reason], None]) -> None:
        """Give a link to the first hop of a circuit; what strangers say of themselves leads nowhere private."""
        reach = self.neighbours.reach if node in self.database.pins else self.neighbours.reach_said
        reach(node, endpoints, done)

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
        identity = self.logins.of(circuit.number)
        if not target.host and not target.port:
            stream.close(Reason.PROTOCOL)
        elif not target.host and target.proto is Proto.TCP:
            stream.close(Reason.NO_PORT)  # of this node itself, which opens none
        elif not (
            circuit.link.peer is not None
            or self.config.allow_single_hop
            or self.outward.targets.opens(identity, target.host, target.port)
        ):
            stream.close(Reason.POLICY)
        elif target.delegate and self.config.delegate:
            self.delegates.serve(stream, circuit.number)
        elif target.delegate:
            stream.close(Reason.POLICY)
        else:
            account = self._accounts.get(circuit)
            if account is None:
                account = self._accounts[circuit] = self.outward.account()
            self.tasks.start("exit", self.outward.serve(stream, account, identity))


def _said(text: str, security: str) -> str:
    """Give an address as others are told it: without a word it is TLS."""
    plain = text.removesuffix(f":link={security}")
    return plain if security == TLS else f"{plain}:link={security}"
