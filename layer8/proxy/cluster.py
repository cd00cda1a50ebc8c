"""The place of a server that is one node of several: a database and a router that they share, a store of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from layer8.config import files
from layer8.config.endpoint import is_loopback
from layer8.config.endpoint import server as read_endpoint
from layer8.config.proxy import ProxyConfig
from layer8.control.frame import Frame
from layer8.control.service import wall_clock
from layer8.core.address import HostPort
from layer8.core.errors import ConfigError
from layer8.crypto.hpke import Sealer
from layer8.crypto.keyfile import read_private
from layer8.net.listen import Sockets
from layer8.proxy.bus_cluster import ClusterBus
from layer8.proxy.bus_pg import PgBook
from layer8.proxy.bus_wamp import WampPresence
from layer8.proxy.place import Place, open_store
from layer8.proxy.wire import AGENT_PATH

ALTERNATIVES = 16
"""Other nodes that agents of one that drains are told."""


def clustered(frame: Frame, given: Sockets | None = None) -> Place:
    """Give a server its place among others; waits for the database. Raises ConfigError or StorageError."""
    config = frame.source.loaded.config.proxy
    assert frame.router is not None  # the configuration says so
    path = Path(config.database_file)
    conninfo = read_private(path, forbidden=files.forbidden(path, frame.environ)).decode("utf-8", "replace").strip()
    host = reached_as(config)
    sealer = Sealer(frame.key)
    reactor: Any = frame.reactor
    present = WampPresence(reactor, frame.router, sealer, int(wall_clock() * 1000))
    book = PgBook(
        reactor,
        conninfo,
        sealer.node,
        sealer.announcement,
        report=lambda ok, why: frame.health.set("database", ok, why, needed=False),
    )
    bus = ClusterBus(book, present, sealer)
    present.unknown = book.look_for_nodes
    book.members = bus.members
    book.open()
    store, close_store = open_store(frame)

    def opened(port: int) -> None:
        book.agents = agents_url(config, host, port, lambda: frame.identity(config.name).pin)

    def others() -> tuple[str, ...]:
        alive = present.alive()
        return tuple(sorted(url for node, url in book.urls.items() if node in alive))[:ALTERNATIVES]

    async def close() -> None:
        present.leave()
        await close_store()

    return Place(
        sealer.node,
        bus,
        store,
        store.load(),
        close,
        sealer=sealer,
        given=given or Sockets(),
        host=host,
        parts=(book,),
        opened=opened,
        others=others,
    )


def agents_url(config: ProxyConfig, host: str, port: int, pin: Callable[[], str]) -> str:
    """Give where agents connect to this node, "" if nobody but a program before it knows."""
    kinds = {read_endpoint(text).tls for text in config.agents if read_endpoint(text).kind in ("tcp", "tls")}
    if not port or len(kinds) != 1:
        return ""
    where = f"{quote(host)}:{port}{AGENT_PATH}"
    if kinds == {False}:
        return f"ws://{where}" if is_loopback(host) else ""
    return f"wss://{where}" if config.tls_cert_file else f"wss://{where}?pin={pin()}"


def quote(host: str) -> str:
    """Write a host as URLs want it."""
    return f"[{host}]" if ":" in host else host


def reached_as(config: ProxyConfig) -> str:
    """Give the host at which agents of other nodes dial this one back; raises ConfigError if nothing says which."""
    if config.data_public:
        return HostPort.parse(config.data_public).host
    if config.name:
        return config.name
    interfaces = {read_endpoint(text).interface for text in config.data}
    if len(interfaces) == 1 and (only := interfaces.pop()) not in ("", "0.0.0.0", "::"):
        return only
    raise ConfigError("proxy.name: agents of other nodes dial this one back: give it a name, or set data_public")
