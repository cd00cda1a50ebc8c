"""The browser tunnel with every part a process of its own: through the network to its gateway, and restarted.

The way from the relay to the gateway goes through the circuits of `layer8 demo`, to a port and to a hidden service.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.crypto.keyfile import write_private
from layer8.crypto.x509 import self_signed
from layer8.tunnel.client import L8Client, L8Error
from layer8.tunnel.verify import verify
from tests.interop.hideout import Hide
from tests.interop.test_demo_tour import demo
from tests.interop.tunnels import Tunnel


class TunnelCase(TestCase):
    timeout = 110

    def client(self, tunnel: Tunnel, **more: Any) -> L8Client:
        from twisted.internet import reactor

        client = L8Client(reactor, **tunnel.connect(**more))
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    async def ask(self, client: L8Client, body: str = "words") -> dict[str, Any]:
        answer = await client.post("/notes?x=1", body, timeout=60)
        told: dict[str, Any] = await answer.json()
        self.assertEqual((answer.status, told["method"], told["uri"], told["body"]), (200, "POST", "/notes?x=1", body))
        return told


class CircuitTests(TunnelCase):
    """L36."""

    async def check(self, tunnel: Tunnel) -> None:
        client = self.client(tunnel, session=True)
        told = await self.ask(client)
        self.assertIn(["l8-encapsulated", "?1"], told["fields"])
        answer = await client.get("/big/1000000", timeout=60)
        self.assertEqual(await answer.content(), b"x" * 1_000_000)
        for number in range(10):
            await self.ask(client, f"word {number}")

    async def test_through_a_circuit(self) -> None:
        """The relay dials the gateway's port by way of a SOCKS port of the network."""
        tunnel = await deferToThread(Tunnel.start, self)
        before = tunnel.gateway.ask("gateway.stats")
        way = f"socks5:127.0.0.1:{tunnel.gateway_port}:proxy={demo().socks}"
        tunnel.relay_ports.clear()
        await deferToThread(tunnel.add_relay, way)
        await self.check(tunnel)
        self.assertNotEqual(tunnel.gateway.ask("gateway.stats"), before)

    async def test_to_a_hidden_service(self) -> None:
        """The gateway has no address at all: it is a hidden service of the network."""
        tunnel = await deferToThread(Tunnel.start, self, relays=0)
        web = await deferToThread(Hide.start, self, f"localhost:{tunnel.gateway_port}")
        way = f"socks5:{web.address}:80:proxy={demo().socks}"
        await deferToThread(tunnel.add_relay, way)
        await self.check(tunnel)

    async def test_the_client_s_own_way_to_the_relay(self) -> None:
        """Then the relay does not know who asks, either."""
        tunnel = await deferToThread(Tunnel.start, self)
        client = self.client(tunnel, via=f"socks5:{demo().socks}")
        await self.ask(client)


class RestartTests(TunnelCase):
    """L32: each part ends, and starts again, between two requests of one client."""

    async def test_each_part(self) -> None:
        tunnel = await deferToThread(Tunnel.start, self)
        client = self.client(tunnel)
        await self.ask(client)
        epoch = client.epoch
        await deferToThread(tunnel.relay.again)
        await self.ask(client)
        await deferToThread(tunnel.gateway.again)
        await self.ask(client)
        await deferToThread(tunnel.gateway.again, kill=True)
        await self.ask(client)
        await deferToThread(tunnel.relay.again, kill=True)
        await self.ask(client)
        await deferToThread(tunnel.backend.stop)
        await deferToThread(tunnel.start_backend)
        await self.ask(client)
        self.assertEqual(client.epoch, epoch)
        await self.ask(self.client(tunnel))

    async def test_two_relays_in_turn(self) -> None:
        """L15, L16: nothing but what is under way may fail while relays end and start, and a drain lets that end."""
        tunnel = await deferToThread(Tunnel.start, self, relays=2)
        client = self.client(tunnel)
        await self.ask(client)
        done: list[bool] = []

        async def restart() -> None:
            for relay in tunnel.relays:
                await deferToThread(relay.again)
            done.append(True)

        restarting = Deferred.fromCoroutine(restart())
        count = 0
        while not done:
            await self.ask(client, f"{count}")
            count += 1
        await restarting
        self.assertGreater(count, 20)
        heard = [line for line in tunnel.backend.said().splitlines() if line.startswith("POST")]
        self.assertEqual(len(heard), count + 1)


class TlsTests(TunnelCase):
    async def test_a_relay_with_a_certificate(self) -> None:
        """It is known by its name, and by an authority that the caller names."""
        tunnel = await deferToThread(Tunnel.start, self, relays=0)
        key, chain = self_signed("relay.localhost")
        write_private(tunnel.home / "key.pem", key)
        ca = tunnel.home / "chain.pem"
        ca.write_bytes(chain)
        await deferToThread(tunnel.add_relay, certificate=ca)
        [port] = tunnel.relay_ports
        await self.ask(self.client(tunnel, relay=f"https://relay.localhost:{port}", ca=str(ca)), "x" * 100_000)
        for host, believed in (("relay", ""), ("other", str(ca))):
            client = self.client(tunnel, relay=f"https://{host}.localhost:{port}", ca=believed)
            error: Any = await self.assertFailure(Deferred.fromCoroutine(client.get("/x")), L8Error)
            self.assertEqual(error.code, "unreachable")


class VerifyTests(TunnelCase):
    async def test_a_proxy_is_a_place_to_look_from(self) -> None:
        """`--via socks5:` sees the same as directly, through three relays."""
        from datetime import UTC, datetime
        from pathlib import Path

        from twisted.internet import reactor

        from tests.tunnel.mirrors import Mirrors

        mirrors = Mirrors(reactor, Path(self.mktemp()).absolute())
        self.addCleanup(mirrors.stop)
        await mirrors.start()
        via = f"socks5:{demo().socks}"
        now = datetime.now(UTC).timestamp()
        report = await verify(reactor, mirrors.url, now=now, vias=[via], publisher=mirrors.publisher.node_id)
        self.assertEqual({one.verdict.value for one in report.checks}, {"good", "open"}, report.checks)
        self.assertEqual(report.places, ["directly", f"by {via}"])
        [keys] = [one.text for one in report.checks if one.name == "keys notes"]
        self.assertIn("the same from 4 looks", keys)
