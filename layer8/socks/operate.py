"""The rows `socks.*` and `tunnel.*`: who uses the network through this node, and by which listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

from attrs import evolve, frozen

from layer8.control.access import Caller
from layer8.control.errors import Forbidden, InvalidParams, NoCapacity, NotFound
from layer8.control.table import Nothing, method
from layer8.core.blur import blur_bytes
from layer8.core.errors import ConfigError, LimitExceeded
from layer8.core.members import Bounds, member
from layer8.socks.datagrams import Association
from layer8.socks.server import Row, Table
from layer8.socks.tunnels import Opened, Tunnels

OPERATE = "operate"
ADMIN = "admin"
PATH_MOST = 2048  # characters


@frozen
class Shown:
    """`full` shows addresses, targets and exact counts, to administrators."""

    full: bool = False


@frozen
class ClientRow:
    """A program at a SOCKS port or a tunnel.

    `circuit` is the number of its circuit as `relay.circuits` has it, 0 while there is none. User names and passwords
    are shown to nobody.
    """

    client: int
    listener: str
    state: str
    seconds: int
    circuit: int
    bytes_in: int
    bytes_out: int
    address: str | None
    target: str | None


@frozen
class ClientRows:
    """The programs there are."""

    clients: tuple[ClientRow, ...]


@frozen
class OpenTunnel:
    """A path `LISTEN>HOP>...>TARGET`; `keep` opens it again after every restart."""

    path: Annotated[str, Bounds(3, PATH_MOST)]
    keep: bool = False


@frozen
class TunnelRow:
    """A tunnel that is open; `listening` are endpoint strings with the ports that were really taken."""

    tunnel: int
    path: str
    listening: tuple[str, ...]
    kept: bool
    since: int


@frozen
class TunnelRows:
    """The tunnels there are."""

    tunnels: tuple[TunnelRow, ...]


@frozen
class TunnelNumber:
    """One tunnel."""

    tunnel: int = member(least=1, most=2**53)


class SocksRows:
    """What an operator may ask of SOCKS ports and tunnels."""

    owns = ("socks", "tunnel")

    def __init__(self, clients: Iterable[Table], tunnels: Tunnels, seconds: Callable[[], float]) -> None:
        """`seconds` is the clock that the tables of `clients` use."""
        self._clients = tuple(clients)
        self._tunnels = tunnels
        self._seconds = seconds

    @method("socks.clients", role="read")
    async def clients(self, caller: Caller, params: Shown) -> ClientRows:
        """List the programs that use SOCKS ports and tunnels."""
        if params.full and not caller.may(ADMIN):
            raise Forbidden(ADMIN)
        now = self._seconds()
        return ClientRows(tuple(_client(row, now, params.full) for table in self._clients for row in table))

    @method("tunnel.open", role=OPERATE, errors=(NoCapacity,))
    async def open(self, caller: Caller, params: OpenTunnel) -> TunnelRow:
        """Open a local listener whose far end is fixed."""
        try:
            return _tunnel(await self._tunnels.open(params.path, keep=params.keep))
        except ConfigError as error:
            raise InvalidParams("path", str(error)) from None
        except LimitExceeded:
            raise NoCapacity("TUNNELS") from None

    @method("tunnel.list", role="read")
    async def tunnels(self, caller: Caller) -> TunnelRows:
        """List the tunnels that are open; where they lead, to those who may open some."""
        rows = map(_tunnel, self._tunnels)
        return TunnelRows(tuple(rows if caller.may(OPERATE) else (evolve(row, path="") for row in rows)))

    @method("tunnel.close", role=OPERATE, errors=(NotFound,))
    async def close(self, caller: Caller, params: TunnelNumber) -> Nothing:
        """Close a tunnel with everything in it, and do not open it again."""
        if not await self._tunnels.close(params.tunnel):
            raise NotFound("tunnel")
        return Nothing()


def _client(row: Row, now: float, full: bool) -> ClientRow:
    program = row.program
    circuit = 0
    if not isinstance(program, Association):
        there = getattr(program.stream, "circuit", None)
        circuit = 0 if there is None else there.number
    exact = (lambda count: count) if full else blur_bytes
    return ClientRow(
        client=row.number,
        listener=row.listener,
        state=program.state,
        seconds=int(now - row.since),
        circuit=circuit,
        bytes_in=exact(program.sent),
        bytes_out=exact(program.received),
        address=row.address if full else None,
        target=row.target if full else None,
    )


def _tunnel(row: Opened) -> TunnelRow:
    return TunnelRow(row.number, row.path, row.listening, row.kept, int(row.since))
