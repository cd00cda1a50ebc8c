"""Local listeners whose far end is fixed: `LISTEN>HOP>...>TARGET`, as many as wished, kept over restarts if asked.

::

    tunnels = Tunnels(reactor, config.socks, node.client, wall=wall, keeper=memory)
    tunnels.restore(kept.tunnels)
    tunnels.startService()
    row = await tunnels.open("2222>NODEID>192.168.0.2:22", keep=True)

Behind the last hop stands a host that it reaches, or `internet`: that is a SOCKS5 port with this path. A hidden service
stands there alone with a port behind it (`80>ADDRESS.l8.alt>80`), and a resource by its hash (`9100>HASH`). The
circuits of a tunnel are its own. The host is what the user has written, so a last hop that he has named is told who we
are if the host is on its local network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, Final, Protocol

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from layer8.config.endpoint import server
from layer8.config.network import SocksConfig
from layer8.core.errors import ConfigError, Layer8Error, LimitExceeded, Unavailable
from layer8.net.factory import CountingFactory
from layer8.net.listen import serve
from layer8.relay.client import (
    Client,
    Hidden,
    Host,
    Internet,
    Open,
    Port,
    Proto,
    Reason,
    Resource,
    StreamLike,
    Tunnel,
    parse_tunnel,
)
from layer8.socks.program import Program
from layer8.socks.server import Door, Table, Ways, stop, where
from layer8.socks.server import Hidden as Services
from layer8.socks.wire import Code

TUNNELS: Final = 256
RESOURCE_PORT: Final = 1  # the one port of a resource, unless it says otherwise
KINDS: Final = ("tcp", "tcp6", "unix", "systemd")


class Keeper(Protocol):
    """Where tunnels are written down; `layer8.relay.memory.Memory` is one. Raises `StorageError`."""

    async def keep_tunnel(self, path: str, now: float) -> None:
        """Remember one."""

    async def drop_tunnel(self, path: str) -> None:
        """Forget one."""


@define(eq=False)
class Opened:
    """A tunnel; `listening` says where, with the ports that were really taken; empty if a kept one could not open."""

    number: int
    path: str
    listening: tuple[str, ...]
    kept: bool
    since: float
    _entry: Entry | Door | None = None
    _ports: list[IListeningPort] = field(factory=list)

    def close(self) -> Deferred[None]:
        """Leave the port, and end what came in there."""
        if self._entry is not None:
            self._entry.close()
        return stop(self._ports)


class Entry(Factory):
    """The listener of a tunnel to one target."""

    noisy = False

    def __init__(self, reactor: Any, name: str, tunnel: Tunnel, ways: Ways, table: Table) -> None:
        """Lead everybody to the tunnel's target."""
        self._reactor = reactor
        self._name = name
        self._tunnel = tunnel
        self._ways = ways
        self._table = table

    def buildProtocol(self, addr: IAddress | None) -> Program:
        """Open a stream for a program."""
        program = Program(self._reactor, self._way, self._table.drop, answers=False)
        self._table.add(self._name, addr, "tunnel", program)
        return program

    def close(self) -> None:
        """End everything that came in here."""
        for row in self._table:
            if row.listener == self._name:
                row.program.abort(Reason.RESET)

    def _way(self, program: Program) -> StreamLike | None:
        key = (self._name,)
        match self._tunnel.target:
            case Host(host=host, port=port):
                return self._ways.open(Open(Proto.TCP, host, port), program, key, known=True)
            case Port(port=port) if isinstance(hop := self._tunnel.route.hops[-1], Hidden):
                return self._ways.inside(hop.name, port, program, key)
            case Resource(name=name):
                return self._ways.inside(name.hex(), RESOURCE_PORT, program, key)
        program.refused(Code.FAILED)
        return None


class Tunnels(Service):
    """See the module. A kept tunnel that cannot be opened again is logged and stays kept."""

    _log = Logger(namespace="layer8.tunnels")

    def __init__(
        self,
        reactor: Any,
        config: SocksConfig,
        client: Client,
        *,
        wall: Callable[[], float],
        keeper: Keeper | None = None,
        hidden: Services | None = None,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        """Put the parts together; nothing listens yet."""
        self.clients = Table(seconds)
        self._reactor = reactor
        self._config = config
        self._client = client
        self._wall = wall
        self._keeper = keeper
        self._kept: tuple[str, ...] = ()
        self._hidden = hidden
        self._open: dict[int, Opened] = {}
        self._next = 0

    def __iter__(self) -> Iterator[Opened]:
        """Give those that are open, the oldest first."""
        return iter(list(self._open.values()))

    def restore(self, paths: Iterable[str]) -> None:
        """Take the paths that were kept, before the start."""
        self._kept = tuple(paths)

    def startService(self) -> None:
        """Open what was kept."""
        Service.startService(self)
        for path in self._kept:
            try:
                self._listen(path, kept=True)
            except Layer8Error as error:
                self._log.warn("a tunnel cannot be opened: {why}", event="tunnel.refused", why=type(error).__name__)
                self._add(Opened(self._next + 1, path, (), True, self._wall()))

    async def _stop(self) -> None:
        rows, self._open = list(self._open.values()), {}
        for row in rows:
            await row.close()

    def stopService(self) -> Deferred[None]:
        """Close all; those that are kept come back at the next start."""
        Service.stopService(self)
        self._kept = tuple(row.path for row in self._open.values() if row.kept)
        return Deferred.fromCoroutine(self._stop())

    async def open(self, path: str, *, keep: bool = False) -> Opened:
        """Open a tunnel; raises ConfigError, Unavailable, LimitExceeded or StorageError."""
        row = self._listen(path, kept=False)
        if keep and self._keeper is not None:
            try:
                await self._keeper.keep_tunnel(path, self._wall())
            except (Layer8Error, CancelledError):
                await self._drop(row)
                raise
            row.kept = True
        return row

    async def close(self, number: int) -> bool:
        """Close a tunnel and forget it; False if there is none with this number. Raises StorageError."""
        row = self._open.get(number)
        if row is None:
            return False
        await self._drop(row)
        if row.kept and self._keeper is not None:
            await self._keeper.drop_tunnel(row.path)
        return True

    async def _drop(self, row: Opened) -> None:
        self._open.pop(row.number, None)
        await row.close()

    def _listen(self, path: str, *, kept: bool) -> Opened:
        if not self.running:
            raise Unavailable("tunnels are not served now")
        if len(self._open) >= TUNNELS:
            raise LimitExceeded("TUNNELS", TUNNELS)
        tunnel = parse_tunnel(path)
        self._check(tunnel)
        number = self._next + 1
        name = f"tunnel {number}"
        ways = Ways(self._client, tunnel.route, self._config.isolate, self._hidden)
        entry: Entry | Door
        if isinstance(tunnel.target, Internet):
            entry = Door(self._reactor, name, ways, self.clients, self._config.password)
        else:
            entry = Entry(self._reactor, name, tunnel, ways, self.clients)
        ports = serve(self._reactor, tunnel.listen, path, CountingFactory(entry, self.clients.places))
        return self._add(Opened(number, path, tuple(map(where, ports)), kept, self._wall(), entry, ports))

    def _add(self, row: Opened) -> Opened:
        self._next = row.number
        self._open[row.number] = row
        return row

    def _check(self, tunnel: Tunnel) -> None:
        """Refuse what would fail for everybody who comes."""
        found = server(tunnel.listen)
        if found.kind not in KINDS:
            raise ConfigError(f"{found.kind}: cannot be used here")
        last = tunnel.route.hops[-1] if tunnel.route.hops else None
        if isinstance(tunnel.target, Resource) and self._hidden is None:
            raise Unavailable("this node does not reach resources")
        if isinstance(last, Hidden) and self._hidden is None:
            raise Unavailable("this node does not reach hidden services")
        if isinstance(tunnel.target, Port) and not isinstance(last, Hidden):
            raise Unavailable("nodes have no ports of their own: write NODE>127.0.0.1:PORT for what is beside one")
        if isinstance(tunnel.target, Internet) and not found.loopback and not self._config.password:
            raise ConfigError("a SOCKS port beyond this machine needs [socks] password")
