"""A proxy server and an agent in one process, for the tests of programs that publish something.

::

    async def test_page(self) -> None:
        async with proxy_pair(reactor) as pair:
            app = await pair.publish("app.test", my_port)
            answer = await deferToThread(visit, pair.port(), get("app.test"))

Both are the real ones, on real sockets of 127.0.0.1 with ports of the kernel's choice: the pump moves bytes between
descriptors, so there is nothing to put on a `Clock`. State is in memory, nothing is logged, and no file is written.
"""

from __future__ import annotations

import socket
from typing import Any, Final, Self

from attrs import define, evolve, field
from twisted.internet.defer import maybeDeferred

from layer8.config.proxy import AgentConfig, ProxyConfig
from layer8.proxy.agent import Agent
from layer8.proxy.exposed import Exposed
from layer8.proxy.gateway import Gateway
from layer8.proxy.uplink import Told

ANYWHERE: Final = ("tcp:0:interface=127.0.0.1",)
"""A port of loopback that the kernel chooses."""
VISIT: Final = 10.0
"""Seconds that `visit` waits for bytes."""


@define(eq=False)
class ProxyPair:
    """A `Gateway` and an `Agent` that knows it, both started."""

    gateway: Gateway
    agent: Agent
    exposed: list[Exposed] = field(factory=list)

    async def publish(self, host: str, target: str | int | dict[int, str | int]) -> Exposed:
        """Register a host with a secret of its own, publish it, and give it when visitors may come."""
        secret = await self.gateway.register(host)
        exposed = self.agent.expose(host, target, secret)
        self.exposed.append(exposed)
        await exposed.ready()
        return exposed

    def port(self, scheme: str = "http") -> int:
        """Give the port for visitors, by `http` or `https`."""
        return self.gateway.port(scheme)

    async def close(self) -> None:
        """Stop both; twice does nothing."""
        for service in (self.agent, self.gateway):
            if service.running:
                await maybeDeferred(service.stopService)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()


def proxy_pair(
    reactor: Any, proxy: ProxyConfig | None = None, agent: AgentConfig | None = None, told: Told | None = None
) -> ProxyPair:
    """Start a server and an agent.

    `proxy` and `agent` are configurations with other settings than the usual ones; where they listen and whom they
    dial is decided here. `told` hears what happens to the agent.
    """
    config = evolve(
        proxy or ProxyConfig(),
        http=ANYWHERE,
        https=ANYWHERE,
        agents=ANYWHERE,
        data=ANYWHERE,
        access_log="",
    )
    gateway = Gateway(reactor, config)
    gateway.startService()
    client = Agent(reactor, evolve(agent or AgentConfig(), servers=(gateway.url,)), told=told)
    client.startService()
    return ProxyPair(gateway, client)


def visit(port: int, data: bytes, *, half: bool = False, source: str = "127.0.0.1") -> bytes:
    """Send `data` to a port of this machine as a visitor and give everything that comes back; waits, so in a thread."""
    with socket.create_connection(("127.0.0.1", port), VISIT, (source, 0)) as sock:
        sock.settimeout(VISIT)
        sock.sendall(data)
        if half:
            sock.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while part := sock.recv(65536):
                got += part
        except ConnectionResetError:
            got += b"(reset)"
        return got


def get(host: str, path: str = "/") -> bytes:
    """A request that wants to be answered and closed."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
