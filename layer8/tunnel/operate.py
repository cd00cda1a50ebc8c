"""The rows `ohttp.*` and the metrics of a relay: how many and how much, never who, what or when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from attrs import frozen

from layer8.control.access import Caller
from layer8.control.metrics import Family, counter, gauge
from layer8.control.table import method
from layer8.core.members import member

PAGE: Final = 200  # rows


@frozen
class Bytes:
    """Bytes since the start, counted at the sockets: of pages' connections and of gateways'."""

    page_in: int = 0
    page_out: int = 0
    gateway_in: int = 0
    gateway_out: int = 0


@frozen
class GatewayRow:
    """A gateway: what is under way to it, the age of its key set (s), and relays that have another one.

    `epoch` is None while there is no key set; `apart` names relays whose set of that epoch is another one.
    """

    gateway: str
    epoch: int | None
    age: int
    exchanges: int
    sockets: int
    connections: int
    apart: tuple[str, ...] = ()


@frozen
class GatewayRows:
    """Gateways; `next` is the cursor of the next page if there is one."""

    gateways: tuple[GatewayRow, ...]
    next: str | None = None


@frozen
class After:
    """`ohttp.gateways`: the rows after `cursor`, a gateway's id."""

    cursor: str | None = member(None, most=64)
    limit: int = member(PAGE, least=1, most=PAGE)


@frozen
class RelayStats:
    """Counts since the start: how exchanges and sockets have ended, how many there are, and bytes.

    Outcomes are `answered`, statuses of our own (`404`, `503`, ...), and who was gone: `page`, `gateway`, `timeout`,
    `limit`, `cut`; of sockets also `closed`, `refused`, `silent`, `drained`.
    """

    exchanges: dict[str, int]
    sockets: dict[str, int]
    under_way: int
    open_sockets: int
    connections: int
    networks: int
    bytes: Bytes


class Relayed(Protocol):
    """What a relay tells of itself."""

    def rows(self) -> Iterable[GatewayRow]:
        """Give its gateways, by id."""

    def stats(self) -> RelayStats:
        """Give its counts."""


class RelayRows:
    """Looking at a relay of the browser tunnel."""

    owns = ("ohttp",)

    def __init__(self, relay: Relayed) -> None:
        """Take the relay."""
        self._relay = relay

    @method("ohttp.gateways", role="read")
    async def gateways(self, caller: Caller, params: After) -> GatewayRows:
        """List the gateways that pages may name."""
        rows = [row for row in self._relay.rows() if row.gateway > (params.cursor or "")]
        page = tuple(rows[: params.limit])
        return GatewayRows(page, page[-1].gateway if len(rows) > len(page) else None)

    @method("ohttp.stats", role="read")
    async def stats(self, caller: Caller) -> RelayStats:
        """Give what the relay has counted since the start."""
        return self._relay.stats()


class RelayMetrics:
    """The families `layer8_tunnel_*`."""

    def __init__(self, relay: Relayed) -> None:
        """Take the relay."""
        self._relay = relay

    def families(self) -> Iterator[Family]:
        """Give the present values."""
        told = self._relay.stats()
        rows = list(self._relay.rows())
        for name, meaning, ends in (
            ("exchanges", "Sealed requests that have ended, by how.", told.exchanges),
            ("sockets", "WebSockets that have ended, by how.", told.sockets),
        ):
            values: dict[tuple[str, ...], float] = {(outcome,): count for outcome, count in ends.items()}
            yield Family(f"layer8_tunnel_{name}_total", meaning, "counter", values, ("outcome",))
        yield gauge("layer8_tunnel_exchanges_under_way", "Sealed requests that are under way.", told.under_way)
        yield gauge("layer8_tunnel_sockets_open", "WebSockets that are open.", told.open_sockets)
        yield gauge("layer8_tunnel_connections_open", "Connections of pages.", told.connections)
        yield gauge("layer8_tunnel_networks_known", "Networks in the table of limits.", told.networks)
        for leg, way, value in (
            ("page", "in", told.bytes.page_in),
            ("page", "out", told.bytes.page_out),
            ("gateway", "in", told.bytes.gateway_in),
            ("gateway", "out", told.bytes.gateway_out),
        ):
            meaning = f"Bytes {way} on the legs of {leg}s, counted at the socket."
            yield counter(f"layer8_tunnel_{leg}_{way}_bytes_total", meaning, value)
        keyless = sum(row.epoch is None for row in rows)
        yield gauge("layer8_tunnel_gateways_known", "Gateways that pages may name.", len(rows))
        yield gauge("layer8_tunnel_gateways_keyless", "Of these without a key set.", keyless)
        yield gauge(
            "layer8_tunnel_gateways_apart",
            "Of these with other keys at other relays.",
            sum(bool(row.apart) for row in rows),
        )
