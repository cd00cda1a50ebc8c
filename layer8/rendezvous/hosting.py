"""The hidden services that this node offers: each listens, publishes where, and leads to what answers at its ports.

::

    hosts = Hosts(ground)
    hosts.take(config.service)()        those of the configuration, now and whenever it has changed
    hosting = hosts.hide(name, config)  one more, until `hosts.unhide(name)`

    HiddenService --points--> Publishing --items--> the DHT
          |--streams--> Ports --> programs, files, folders
          '-- ServiceMemory: points and their keys, seq, cookie, what was used once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen
from twisted.logger import Logger

from layer8.config.services import ServiceConfig
from layer8.core.chance import Chance
from layer8.core.errors import ConfigError, LimitExceeded
from layer8.crypto.curtain import AUTH_CLIENTS
from layer8.crypto.items import Items
from layer8.crypto.keyfile import WRITTEN, read_private, write_private
from layer8.crypto.keys import NodeKey, id_text, parse_id
from layer8.net.listening import open_ports
from layer8.net.tasks import TaskSet
from layer8.rendezvous.address import DOMAIN, WrongName, address_text, check_name
from layer8.rendezvous.descriptor import Point, parse_clients
from layer8.rendezvous.files import Magnet, ServiceFile, Tracker
from layer8.rendezvous.memory import ServiceMemory
from layer8.rendezvous.publishing import Publishing
from layer8.rendezvous.resource import of, resource_name
from layer8.rendezvous.service import HiddenService, Session
from layer8.rendezvous.target import Ports
from layer8.rendezvous.ways import Ways

SERVICES: Final = 64  # of one node
FOLDER: Final = "services"
FILE_LIFE: Final = 365 * 86_400  # seconds for which NAME.l8 is good
CLIENTS_MOST: Final = 64 * 1024  # bytes of a file of clients
USUAL: Final = {21: "ftp", 22: "ssh", 25: "smtp", 80: "http", 143: "imap", 443: "https", 9418: "git"}


@frozen
class Told:
    """Who hears that a service was published at so many nodes, of its clients, and what its owner should know."""

    published: Callable[[Hosting, int, int], None] = lambda hosting, seq, nodes: None
    session: Callable[[Hosting, str, Session], None] = lambda hosting, state, session: None
    alert: Callable[[Hosting, str], None] = lambda hosting, text: None


@define(eq=False)
class Ground:
    """What all services of a node stand on; `home` is the state folder, `trackers` are named in files and links."""

    reactor: Any
    ways: Ways
    tasks: TaskSet
    items: Items
    chance: Chance
    home: Path
    trackers: Callable[[], tuple[Tracker, ...]]
    remember: Callable[[bytes], ServiceMemory]
    points: int = 3
    max_effort: int = 50_000_000
    told: Told = field(factory=Told)


@define(eq=False)
class Hosting:
    """One service; raises `ConfigError` or `StorageError` for a key, a file or a target that cannot be used."""

    ground: Ground
    name: str
    config: ServiceConfig
    clients: dict[str, bytes] = field(factory=dict, repr=False)
    key: NodeKey = field(init=False)
    made: bool = field(init=False)  # the key is a new one
    memory: ServiceMemory = field(init=False)
    service: HiddenService = field(init=False)
    publishing: Publishing = field(init=False)
    ports: Ports = field(init=False)
    running: bool = field(default=False, init=False)
    _log = Logger(namespace="layer8.rendezvous")

    def __attrs_post_init__(self) -> None:
        """Read everything that the configuration names."""
        ground, config = self.ground, self.config
        try:
            check_name(self.name)
        except WrongName as error:
            raise ConfigError(f"{self.name}: {error}") from None
        path = ground.home / (config.key or f"{FOLDER}/{self.name}.pem")
        self.made = not path.exists()
        if config.client_auth and not self.clients:
            self.clients = read_clients(Path(config.client_auth))
        self.ports = Ports(ground.reactor, ground.tasks, {port: of(text) for port, text in config.ports.items()})
        self.key = NodeKey.load_or_make(path)
        self.memory = ground.remember(self.key.node_id)
        modes = (0, 1) if config.data_through_access_point else (1,)
        cookie = self.memory.cookie_for(self.clients.values()) if self.closed else b""
        self.service = HiddenService(
            ground.ways,
            ground.tasks,
            self.key,
            self.ports.asked,
            self._points,
            ground.reactor.callLater,
            allow=_rule(config),
            cookie=cookie,
            max_effort=ground.max_effort,
            wanted=ground.points,
            modes=modes,
            memory=self.memory,
            noted=lambda state, session: ground.told.session(self, state, session),
            alert=self._alert,
        )
        self.publishing = Publishing(
            ground.items,
            self.key,
            ground.tasks,
            ground.reactor.callLater,
            ground.ways.wall,
            chance=ground.chance,
            clients=dict(self.clients),
            cookie=cookie,
            public=config.public,
            modes=modes,
            seq=self.memory.seq,
            kept=self.memory.keep_seq,
            alert=self._alert,
            said=lambda seq, nodes: ground.told.published(self, seq, nodes),
        )

    @property
    def closed(self) -> bool:
        """Say whether only known clients are let in: also if there are none yet."""
        return bool(self.config.client_auth)

    @property
    def address(self) -> str:
        """Give what a program asks for."""
        return address_text(self.key.node_id) + DOMAIN

    @property
    def resource(self) -> str:
        """Give the 40 hex digits by which it is found, if that is wanted."""
        return resource_name(self.key.node_id).hex() if self.config.public else ""

    @property
    def magnet(self) -> str:
        """Give the link."""
        return str(Magnet(self.key.node_id, self.name, self.ground.trackers()))

    def file(self) -> bytes:
        """Write NAME.l8, which says nothing of where its programs are."""
        now = int(self.ground.ways.wall())
        ports = {port: _what(port, text) for port, text in self.config.ports.items()}
        made = ServiceFile.make(self.key, self.name, now, now + FILE_LIFE, trackers=self.ground.trackers(), ports=ports)
        return made.raw

    @property
    def state(self) -> str:
        """Say how it is: off, picking points, listening, published."""
        if not self.running:
            return "off"
        if not self.service.points:
            return "picking points"
        return "published" if self.publishing.stands else "listening"

    def exposed(self) -> tuple[str, ...]:
        """Give targets on this machine that can be reached without us, each with the address where (G40)."""
        found = []
        for text in self.config.ports.values():
            target = of(text)
            words = target.split(":") if isinstance(target, str) else []
            if len(words) > 2 and words[0] == "tcp" and words[1] in ("localhost", "127.0.0.1") and words[2].isdecimal():
                found += [f"{text} also listens on {where}" for where in open_ports(int(words[2]))]
        return tuple(found)

    def start(self) -> None:
        """Begin."""
        self.running = True
        if self.exposed():
            self._log.warn("a service can be reached without its address too", event="rendezvous.exposed")
        self.service.start()

    def stop(self) -> None:
        """End everything; what was published runs out by itself."""
        self.running = False
        self.publishing.stop()
        self.service.stop()
        self.ports.close()

    def admit(self, name: str, key: bytes) -> None:
        """Let one more client in; raises `ConfigError`, `LimitExceeded` or `StorageError`."""
        self._known()
        if name in self.clients or key in self.clients.values():
            raise ConfigError(f"{name}, or its key, may come already")
        if len(self.clients) >= AUTH_CLIENTS:
            raise LimitExceeded("AUTH_CLIENTS", AUTH_CLIENTS)
        self._keep({**self.clients, name: key})

    def shut_out(self, name: str) -> bool:
        """Let a client in no more, and say whether it was known: there is a new cookie, and all sessions end."""
        self._known()
        if name not in self.clients:
            return False
        self._keep({one: key for one, key in self.clients.items() if one != name})
        return True

    def goes_on(self, config: ServiceConfig) -> bool:
        """Say whether it need not be stopped for another configuration: only who may come has changed, if anything."""
        return evolve(self.config, allow=config.allow, deny=config.deny) == config

    def read(self, config: ServiceConfig) -> Callable[[], None]:
        """Read anew who may come; calling the result lets in those, and ends the sessions of others."""
        clients = read_clients(Path(config.client_auth)) if self.closed else {}

        def settle() -> None:
            self.config = config
            self.service.allow = _rule(config)
            self.service.review()
            if clients != self.clients:
                self._let_in(clients)

        return settle

    def _known(self) -> None:
        if not self.closed:
            raise ConfigError(f"{self.name} lets everybody in who knows its address: give it client_auth first")

    def _keep(self, clients: dict[str, bytes]) -> None:
        text = "".join(f"{name} = {id_text(key)}\n" for name, key in clients.items())
        parse_clients(text)
        write_private(Path(self.config.client_auth), text.encode())
        self._let_in(clients)

    def _let_in(self, clients: dict[str, bytes]) -> None:
        self.clients = clients
        cookie = self.memory.cookie_for(clients.values())
        self.publishing.admit(clients, cookie)
        self.service.change_cookie(cookie)

    def _points(self, points: tuple[Point, ...]) -> None:
        self.publishing.changed(points, self.service.price)

    def _alert(self, text: str) -> None:
        self._log.warn("something is wrong with a hidden service", event="rendezvous.alert")  # the text names it
        self.ground.told.alert(self, text)


@define(eq=False)
class Hosts:
    """The services of one node, by name."""

    ground: Ground
    _all: dict[str, Hosting] = field(factory=dict, init=False)
    _configured: set[str] = field(factory=set, init=False)
    _running: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[Hosting]:
        """Give them all."""
        return iter(list(self._all.values()))

    def get(self, name: str) -> Hosting | None:
        """Give one."""
        return self._all.get(name)

    def start(self) -> None:
        """Begin with those that there are."""
        self._running = True
        for one in self:
            one.start()

    def stop(self) -> None:
        """End all."""
        self._running = False
        for one in self:
            one.stop()

    def take(self, configs: Mapping[str, ServiceConfig]) -> Callable[[], None]:
        """Read what the configuration names; calling the result offers that, and no more what was named before."""
        before = {name: one for name, one in self._all.items() if name in self._configured}
        same = {name for name, one in before.items() if name in configs and one.goes_on(configs[name])}
        others = {name: one for name, one in self._all.items() if name not in before}
        fresh: dict[str, Hosting] = {}
        for name, config in configs.items():
            if name not in same:
                if name in others:
                    raise ConfigError(f"service.{name}: a service of this name is hidden already")
                fresh[name] = Hosting(self.ground, name, config)
        again = {name: before[name].read(configs[name]) for name in same}
        after = {**others, **{name: before[name] for name in same}, **fresh}
        _once(after.values())
        if len(after) > SERVICES:
            raise ConfigError(f"over the limit SERVICES of {SERVICES}")

        def settle() -> None:
            for name, one in before.items():
                if name not in same and self._running:
                    one.stop()
            since = {name: one for name, one in self._all.items() if name not in before}
            self._all, self._configured = {**after, **since}, set(configs)
            for change in again.values():
                change()
            if self._running:
                for one in fresh.values():
                    one.start()

        return settle

    def hide(self, name: str, config: ServiceConfig) -> Hosting:
        """Offer one more; raises `ConfigError`, `LimitExceeded` or `StorageError`."""
        if name in self._all:
            raise ConfigError(f"a service called {name} is hidden already: layer8 hide --end {name} ends it")
        if len(self._all) >= SERVICES:
            raise LimitExceeded("SERVICES", SERVICES)
        made = Hosting(self.ground, name, config)
        _once((*self, made))
        self._all[name] = made
        if self._running:
            made.start()
        return made

    def unhide(self, name: str) -> bool:
        """Offer one no more, and say whether there was one; one of the configuration comes back with the next start."""
        found = self._all.pop(name, None)
        self._configured.discard(name)
        if found is not None and found.running:
            found.stop()
        return found is not None


def read_clients(path: Path) -> dict[str, bytes]:
    """Read a file of clients, which nobody else may write; raises `ConfigError` with its path."""
    text = read_private(path, most=CLIENTS_MOST, forbidden=WRITTEN)
    try:
        return parse_clients(text.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _rule(config: ServiceConfig) -> Callable[[bytes | None], bool]:
    allow, deny = frozenset(map(parse_id, config.allow)), frozenset(map(parse_id, config.deny))

    def may(login: bytes | None) -> bool:
        return login not in deny and (not allow or login in allow)

    return may


def _once(services: Any) -> None:
    keys: dict[bytes, str] = {}
    for one in services:
        other = keys.setdefault(one.key.node_id, one.name)
        if other != one.name:
            raise ConfigError(f"{one.name} and {other} have one key: each service needs its own")


def _what(port: int, text: str) -> str:
    kind = text.partition(":")[0]
    return {"file": "file", "dir": "folder"}.get(kind) or USUAL.get(port, "tcp")
