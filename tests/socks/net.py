"""A whole network on loopback in the test's own process: relays, an exit, and a client with a SOCKS port.

::

    class MyTests(TestCase):
        async def test_page(self) -> None:
            net = await Net.start(self, names={"web.example.org": "127.0.0.1"})
            answer = await net.curl("http://web.example.org:8000/")

`net.relays` are nodes that only carry, `net.exit` is the one node with a way out, to loopback; it looks names up in
`names` and nowhere else, and writes down in `net.asked` which. `net.client` is a node that does not relay; it knows the
others by their descriptors. `net.socks` is its SOCKS server, at `net.port`, `net.tunnels` its tunnels. Everything ends
with the test. `run` starts a real program beside it and waits for its end, `until` polls.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import define, field
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from layer8.config.network import RelayConfig, SocksConfig
from layer8.crypto.keys import NodeKey, id_text
from layer8.net.lookup import Lookups
from layer8.relay.service import Relay
from layer8.relay.standing import Circuit
from layer8.socks.server import SocksServer
from layer8.socks.tunnels import Keeper, Tunnels
from tests.interop.daemons import found

NETWORK = "test-socks"
HERE = "tcp:0:interface=127.0.0.1"
STEP = 0.01
SECONDS = 60.0
"""How long anything may take; a test that needs this much has failed, on the slowest machine too."""


def wall() -> float:
    """Give seconds since 1970."""
    return datetime.now(UTC).timestamp()


class Names:
    """The reactor with a resolver that knows what it was given."""

    def __init__(self, reactor: Any, names: Mapping[str, str], asked: list[str]) -> None:
        self._reactor = reactor
        self._names = names
        self._asked = asked
        self.nameResolver = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(self, receiver: Any, host: str, port: int) -> None:
        self._asked.append(host.rstrip("."))
        receiver.resolutionBegan(None)
        address = self._names.get(host.rstrip("."))
        if address is not None:
            kind = IPv6Address if ":" in address else IPv4Address
            receiver.addressResolved(kind("TCP", address, port))
        receiver.resolutionComplete()


@define(eq=False)
class Ran:
    """How a program ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """What it said, for people."""
        return f"{self.code}: {self.out[-500:]!r} {self.err[-500:]!r}"


class _Program(ProcessProtocol):
    transport: Any

    def __init__(self, said: bytes) -> None:
        self.out: list[bytes] = []
        self.err: list[bytes] = []
        self.said = said
        self.done: Deferred[Ran] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self.said)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self.out.append(data)

    def errReceived(self, data: bytes) -> None:
        self.err.append(data)

    def processEnded(self, reason: Failure) -> None:
        code = 0 if reason.check(ProcessDone) else getattr(reason.value, "exitCode", None)
        self.done.callback(Ran(-1 if code is None else code, b"".join(self.out), b"".join(self.err)))


@define(eq=False)
class Net:
    """See the module."""

    case: TestCase
    reactor: Any
    relays: list[Relay]
    exit: Relay
    client: Relay
    socks: SocksServer
    tunnels: Tunnels
    asked: list[str] = field(factory=list)

    @classmethod
    async def start(
        cls,
        case: TestCase,
        *,
        names: Mapping[str, str] | None = None,
        relays: int = 4,
        rules: Sequence[str] = ("accept *:*",),
        hops: int = 3,
        link: str = "tls",
        socks: SocksConfig | None = None,
        hidden: Any = None,
        keeper: Keeper | None = None,
        lan: str = "",
    ) -> "Net":
        """Start everything; `lan` is what the first relay opens on its local network, to the client alone."""
        from twisted.internet import reactor

        asked: list[str] = []
        key = NodeKey.make()
        nodes: list[Relay] = []
        for number in range(relays + 1):
            last = number == relays
            config = RelayConfig(
                network=NETWORK,
                listen=(f"{HERE}:link={link}",),
                exit=tuple(rules) if last else ("off",),
                allow_loopback=True,
                lan_targets={id_text(key.node_id): lan} if lan and number == 0 else {},
            )
            node = Relay(reactor, NodeKey.make(), config, wall=wall)
            node.outward.lookups = Lookups(Names(reactor, names or {}, asked))
            nodes.append(node)
        client = Relay(reactor, key, RelayConfig(network=NETWORK, relay=False, listen=(), hops=hops), wall=wall)
        settings = socks or SocksConfig(listen=(HERE,))
        server = SocksServer(reactor, settings, client.client, hidden=hidden)
        tunnels = Tunnels(reactor, settings, client.client, wall=wall, hidden=hidden, keeper=keeper)
        net = cls(case, reactor, nodes[:-1], nodes[-1], client, server, tunnels, asked)
        case.addCleanup(net._stop)
        for node in nodes:
            node.startService()
            assert node.descriptor is not None
            client.database.learn(node.descriptor, b"u" * 32, wall())
        client.startService()
        server.startService()
        tunnels.startService()
        return net

    async def _stop(self) -> None:
        for service in (self.tunnels, self.socks, self.client, *self.relays, self.exit):
            await service.stopService()
        await self.until(lambda: not len(self.socks.clients) and not len(self.tunnels.clients))

    @property
    def port(self) -> int:
        """Where the SOCKS server listens first."""
        return int(self.socks.listening[0].split(":")[1])

    @property
    def circuits(self) -> list[Circuit]:
        """Circuits that somebody has used."""
        return [circuit for circuit in self.client.pool.rows() if circuit.need is not None]

    @property
    def keys(self) -> list[tuple[Any, int]]:
        """What keeps their users apart, the listener aside, and how many streams each has had."""
        needs: list[tuple[Any, int]] = [(one.need.key, one.opened) for one in self.circuits if one.need is not None]
        return sorted((key[1:], opened) for key, opened in needs)

    async def until(self, so: Callable[[], Any]) -> Any:
        """Wait for something to be so, and give it."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if value := so():
                return value
            waiting: Deferred[None] = Deferred()
            self.reactor.callLater(STEP, waiting.callback, None)
            await waiting
        self.case.fail("it has not come about")

    async def run(self, *words: str, said: bytes = b"", environ: Mapping[str, str] | None = None) -> Ran:
        """Run a program to its end, with `said` as its input."""
        program = _Program(said)
        path = found(words[0]) or words[0]
        process = self.reactor.spawnProcess(program, path, words, env={**os.environ, **(environ or {})})

        def kill() -> None:
            with contextlib.suppress(ProcessExitedAlready):
                process.signalProcess("KILL")

        killer = self.reactor.callLater(SECONDS, kill)
        ran: Ran = await program.done
        if killer.active():
            killer.cancel()
        return ran

    async def curl(self, *words: str, user: str = "", port: int = 0) -> Ran:
        """Run curl through the SOCKS port, with names for the exit to look up."""
        login = ("--proxy-user", user) if user else ()
        proxy = f"127.0.0.1:{port or self.port}"
        return await self.run("curl", "-sS", "--noproxy", "", "--socks5-hostname", proxy, *login, *words)
