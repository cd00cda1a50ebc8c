"""The whole configuration of one daemon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from layer8.config import endpoint
from layer8.config.field import named, section
from layer8.config.gateway import GatewayConfig
from layer8.config.network import DhtConfig, NamesConfig, RelayConfig, RendezvousConfig, SocksConfig, TrackerConfig
from layer8.config.proxy import AgentConfig, ProxyConfig
from layer8.config.sections import ControlConfig, DebugConfig, LogConfig
from layer8.config.services import ServiceConfig, VisitConfig
from layer8.config.tunnel import TunnelConfig


@frozen
class Config:
    """Every section; a daemon reads those of its roles and the shared ones."""

    control: ControlConfig = section(ControlConfig, doc="Who may look at and steer a running daemon, and where.")
    log: LogConfig = section(LogConfig, doc="What is written down, and what is left out.")
    debug: DebugConfig = section(DebugConfig, doc="The port for netcat.")
    proxy: ProxyConfig = section(ProxyConfig, doc="The public server of the socket proxy: twistd layer8-proxy.")
    agent: AgentConfig = section(AgentConfig, doc="The agent of the socket proxy: twistd layer8-agent.")

    relay: RelayConfig = section(RelayConfig, doc="Links and circuits: twistd layer8-relay, layer8-node, layer8 up.")
    tracker: TrackerConfig = section(TrackerConfig, doc="Lists of relays: twistd layer8-tracker.")
    dht: DhtConfig = section(DhtConfig, doc="Signed items under keys: twistd layer8-dht.")
    socks: SocksConfig = section(SocksConfig, doc="SOCKS5 for the programs of this machine: layer8 up, layer8 socks.")

    rendezvous: RendezvousConfig = section(
        RendezvousConfig, doc="Hidden services of others and of our own: twistd layer8-rendezvous."
    )
    names: NamesConfig = section(NamesConfig, doc="Names of hidden services: whose word counts, and our own word.")
    service: Mapping[str, ServiceConfig] = named(ServiceConfig, doc="A hidden service that this node offers.")
    visit: Mapping[str, VisitConfig] = named(VisitConfig, doc="How this node shows itself to one hidden service.")

    tunnel: TunnelConfig = section(
        TunnelConfig, doc="The browser tunnel's relay and mirror of apps: twistd layer8-tunnel."
    )
    gateway: GatewayConfig = section(
        GatewayConfig, doc="The browser tunnel's gateway before a backend: twistd layer8-gateway."
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if self.proxy.legacy_open and not all(endpoint.server(text).loopback for text in self.control.listen):
            yield "proxy.legacy_open", "it needs a control API that only this machine can reach: see control.listen"
        if self.proxy.bus == "wamp" and not self.control.wamp.url:
            yield "control.wamp.url", "the wamp bus needs a router"
        if self.proxy.bus == "wamp" and not self.proxy.database_file:
            yield "proxy.database_file", "the wamp bus needs a database that all nodes share"
