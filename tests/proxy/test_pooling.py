"""Visitors on connections that were dialled ahead: server and agent in one process, on real sockets."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from layer8.crypto.secret import HostSecret
from layer8.net.dial import Where
from layer8.proxy.agent import Agent
from layer8.proxy.pooling import TURN
from layer8.proxy.reserve import Reserve
from layer8.proxy.uplink import ANY_PORT, Published, Uplink
from layer8.proxy.wire import Reason
from tests import opened
from tests.accepting import Accepting
from tests.proxy import pair
from tests.proxy.hellos import hello, records, sni
from tests.proxy.pair import Echo, PairCase, get, visit

SIZE = 3_000_000


def post(host: str, body: bytes = b"x") -> bytes:
    """A request that should not be said twice."""
    return f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def mill(sock: socket.socket) -> None:
    """A service that reads to the end and then answers as many bytes, each after its own; half-closes are needed."""
    got = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    sock.sendall(hashlib.sha256(got).digest() + got[::-1])


class PoolCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)

    def start(self, more: str = "", host: str = "") -> tuple[Any, HostSecret]:
        secret, path = self.secret()
        return self.serve(more, f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n{host}'), secret

    def host(self, secret: HostSecret, pool: int = 2, port: int = 0, **more: Any) -> Published:
        targets = {ANY_PORT: Where("127.0.0.1", port or self.echo.port)}
        return Published("app.test", secret.key, targets, pool=pool, **more)

    async def full(self, server: Any, count: int = 2) -> None:
        """Wait until so many connections are idle, and no more are on their way."""
        pools = server.ahead.pools
        await self.until(lambda: (pools.idle, pools.held) == (count, count))

    async def get(self, server: Any) -> bytes:
        got: bytes = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        return got

    async def second(self, server: Any, one: Published) -> Agent:
        """One more agent of the same host."""
        before, self.told = self.told, []
        agent = await self.publish(server, one)
        self.told += before
        return agent


class CarriedTests(PoolCase):
    async def test_whole(self) -> None:
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        await self.full(server)
        self.assertEqual(len(_reserve(agent)), 2)
        got = await self.get(server)
        self.assertTrue(got.endswith(get("app.test")), got)
        self.assertEqual(self.echo.got, [get("app.test")])
        self.assertEqual(server.ahead.pools.hits, 1)
        await self.full(server)
        await self.until(lambda: not server.traffic.visits)
        tally = server.traffic.tallies["app.test"]
        self.assertEqual((tally.open, tally.calling, tally.bytes_in), (0, 0, len(get("app.test"))))
        self.assertEqual(tally.bytes_out, len(got))
        await self.until(lambda: not agent.carrier.open)
        totals = agent.carrier.totals
        self.assertEqual((totals.bytes_in, totals.bytes_out), (len(get("app.test")), len(got)))
        self.assertEqual(server.ahead.given, {})
        families = {family.name: family for family in server.metrics.families()}
        self.assertEqual(families["layer8_proxy_pool_idle"].values[()], 2)
        self.assertEqual(families["layer8_proxy_pool_hits_total"].values[()], 1)

    async def test_access_log(self) -> None:
        path = self.folder / "access.log"
        self.patch(pair, "BASE", pair.BASE.replace('access_log = ""', f'access_log = "{path}"'))
        server, secret = self.start()
        await self.publish(server, self.host(secret, pool=1))
        await self.full(server, 1)
        await self.get(server)
        await self.until(lambda: not server.traffic.visits)
        server.ahead.rest()
        await self.get(server)
        await self.until(lambda: not server.traffic.visits)
        await self.stop_server()
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        self.assertEqual([row["pooled"] for row in rows], [True, False])
        self.assertEqual([row["reason"] for row in rows], ["done", "done"])

    async def test_burst(self) -> None:
        """200 at once with two connections ahead: everybody is served, and nothing stays open."""
        server, secret = self.start()
        await self.publish(server, self.host(secret))
        await self.full(server)
        before = len(opened.descriptors())
        got = await gatherResults([Deferred.fromCoroutine(self.get(server)) for _ in range(200)])
        self.assertEqual([one for one in got if not one.endswith(get("app.test"))], [])
        self.assertEqual(len(self.echo.got), 200)
        await self.until(lambda: not server.traffic.visits)
        pools = server.ahead.pools
        self.assertGreaterEqual(pools.hits, 2)
        self.assertLessEqual(pools.held, 32)
        await self.until(lambda: len(opened.descriptors()) <= before + 2 * (pools.held - 2) + 20)

    async def test_burst_inside_tls(self) -> None:
        """All at once from one agent, with handshakes that take a while: they are not taken for a scan."""
        server, secret = self.start('data_tls = "always"')
        await self.publish(server, self.host(secret))
        await self.full(server)
        pool = self.reactor.getThreadPool()
        self.addCleanup(pool.adjustPoolsize, pool.min, pool.max)
        pool.adjustPoolsize(pool.min, 200)
        got = await gatherResults([Deferred.fromCoroutine(self.get(server)) for _ in range(200)])
        self.assertEqual([one for one in got if not one.endswith(get("app.test"))], [])
        self.assertEqual(server.door.data.refused, 0)

    async def test_nothing_leaks(self) -> None:
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        await self.full(server)
        await self.get(server)
        await self.until(lambda: not server.traffic.visits and not agent.carrier.open)
        await self.full(server)
        before = len(opened.descriptors())
        for _ in range(50):
            await self.get(server)
        await self.until(lambda: not server.traffic.visits and not agent.carrier.open)
        await self.full(server)
        await self.until(lambda: len(opened.descriptors()) == before)

    async def test_first_bytes_in_pieces(self) -> None:
        server, secret = self.start()
        await self.publish(server, self.host(secret))
        await self.full(server)
        request = get("app.test")

        def slowly() -> bytes:
            with socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(len(request)):
                    sock.sendall(request[at : at + 1])
                return b"".join(iter(lambda: sock.recv(65536), b""))

        self.assertTrue((await self.thread(slowly)).endswith(request))
        self.assertEqual(server.ahead.pools.hits, 1)

    async def test_a_target_that_says_nothing_for_long(self) -> None:
        """The nod comes alone, and the visitor is left where it is."""
        milling = Accepting(mill)
        self.addCleanup(milling.close)
        server, secret = self.start("[proxy.limits]\ncall_step = 1", 'mode = "raw"')
        agent = await self.publish(server, self.host(secret, port=milling.port))
        await self.full(server)
        sock = socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10)
        self.addCleanup(sock.close)
        sock.sendall(get("app.test"))
        await self.until(lambda: server.ahead.pools.hits == 1)
        await self.until(lambda: not server.ahead.given)
        (visitor,) = server.traffic.visits
        self.assertIsNone(visitor.link.down.care, "what follows is not looked at")
        (carried,) = agent.carrier.open
        assert carried.link is not None
        self.assertIsNone(carried.link.up.care)
        sock.shutdown(socket.SHUT_WR)
        got = await self.thread(lambda: b"".join(iter(lambda: sock.recv(65536), b"")))
        self.assertEqual(got, hashlib.sha256(get("app.test")).digest() + get("app.test")[::-1])
        self.assertEqual(server.traffic.totals.joined, 1)

    async def carries(self, more: str, scheme: str, secure: bool) -> None:
        """Megabytes both ways, with half-closes, and not one of them wrong."""
        milling = Accepting(mill)
        self.addCleanup(milling.close)
        server, secret = self.start(more, 'mode = "raw"')
        target = Where("127.0.0.1", milling.port)
        targets = {ANY_PORT: target, server.door.port_of("https"): target}
        agent = await self.publish(server, Published("app.test", secret.key, targets))
        await self.full(server)
        first = get("app.test") if scheme == "http" else records(hello(sni(b"app.test")))
        data = first + os.urandom(SIZE)
        hits = 0
        for _ in range(2):  # of a kind that nobody has asked for before there is none ahead
            got = await self.thread(visit, server.door.port_of(scheme), data, half=True)
            self.assertEqual(hashlib.sha256(got).digest(), hashlib.sha256(_answer(data)).digest())
            hits = server.ahead.pools.hits
            await self.until(lambda: server.ahead.pools.idle >= 2)
        self.assertGreaterEqual(hits, 1)
        kinds = {is_secure: waiting for _, waiting in _waiting(server) for is_secure in (waiting.secure is not None,)}
        self.assertIn(secure, kinds)
        await self.until(lambda: not agent.carrier.open)
        self.assertEqual(agent.carrier.totals.bytes_in, 2 * len(data))

    async def test_whole_files(self) -> None:
        await self.carries("", "http", False)

    async def test_whole_files_inside_tls(self) -> None:
        await self.carries('data_tls = "always"', "http", True)

    async def test_whole_files_of_tls_visitors(self) -> None:
        await self.carries("", "https", False)


def _reserve(agent: Agent) -> Reserve:
    (uplink,) = agent.uplinks
    assert isinstance(uplink, Uplink)
    return uplink.reserve


def _answer(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() + data[::-1]


def _waiting(server: Any) -> list[tuple[float, Any]]:
    return [entry for kinds in server.ahead._by_seat.values() for pool in kinds.values() for entry in pool.idle]


class FailoverTests(PoolCase):
    async def test_a_target_that_is_down(self) -> None:
        """Its agent says no, and every visitor is served by the other one: also those who must not be sent twice."""
        server, secret = self.start()
        dead = Echo()
        dead.close()
        await self.publish(server, self.host(secret, port=dead.port))
        await self.second(server, self.host(secret))
        await self.full(server, 4)
        for number in range(10):
            data = post("app.test", b"%d" % number)
            got = await self.thread(visit, server.door.port_of("http"), data, half=True)
            self.assertTrue(got.endswith(data), got)
        self.assertEqual(len(self.echo.got), 10)
        self.assertEqual(server.traffic.totals.ended[Reason.DONE], 10)
        self.assertEqual(server.traffic.totals.rejects_ignored, 0)
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual([(seat.open, seat.calling) for seat in server.seats], [(0, 0)] * 2)
        tally = server.traffic.tallies["app.test"]
        self.assertEqual((tally.open, tally.calling), (0, 0))

    async def test_every_target_is_down(self) -> None:
        server, secret = self.start('unknown = "answer"')
        self.echo.close()
        await self.publish(server, self.host(secret))
        await self.full(server)
        got = await self.get(server)
        self.assertTrue(got.startswith(b"HTTP/1.1 502 "), got)
        self.assertEqual(server.traffic.totals.ended[Reason.REJECTED], 1)

    async def test_no_target_for_the_port(self) -> None:
        server, secret = self.start()
        await self.publish(server, self.host(secret))
        await self.full(server)
        data = records(hello(sni(b"app.test")))
        self.assertEqual(await self.thread(visit, server.door.port_of("https"), data), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.REJECTED], 1)

    async def test_two_agents_share(self) -> None:
        server, secret = self.start()
        first = await self.publish(server, self.host(secret))
        second = await self.second(server, self.host(secret))
        for _ in range(6):
            await self.full(server, 4)
            await self.get(server)
        self.assertEqual((first.carrier.totals.joined, second.carrier.totals.joined), (3, 3))
        self.assertEqual(server.ahead.pools.hits, 6)


class LifeTests(PoolCase):
    async def test_an_agent_that_leaves(self) -> None:
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        await self.full(server)
        await agent.stopService()
        await self.until(lambda: server.ahead.pools.held == 0 and not len(server.seats))
        self.assertEqual(await self.get(server), b"")
        self.assertEqual((server.ahead._by_seat, server.ahead._whose, len(server.ahead.pools)), ({}, {}, 0))

    async def test_down_and_up(self) -> None:
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        await self.full(server)
        (seat,) = server.seats
        server.seats.turned(seat, "down")
        self.assertEqual(server.ahead.pools.held, 0)
        await self.until(lambda: len(_reserve(agent)) == 0)
        server.seats.turned(seat, "up")
        await self.full(server)
        server.seats.turned(seat, "drain")
        self.assertEqual(server.ahead.pools.held, 0)

    async def test_unsubscribed(self) -> None:
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        await self.full(server)
        await agent.withdraw("app.test")
        await self.until(lambda: len(_reserve(agent)) == 0 and server.ahead.pools.held == 0)

    async def test_drain(self) -> None:
        self.patch(pair, "BASE", pair.BASE.replace("drain_s = 0", "drain_s = 30"))
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        await self.full(server)
        server.door.drain(None, ())
        await self.until(lambda: len(_reserve(agent)) == 0)
        self.assertEqual(server.ahead.pools.held, 0)
        server.door.undrain()
        await self.full(server)
        self.assertTrue((await self.get(server)).endswith(get("app.test")))

    async def test_renewed(self) -> None:
        server, secret = self.start("[proxy.limits]\npool_time = 0.5")
        agent = await self.publish(server, self.host(secret))
        await self.full(server)
        before = {waiting for _, waiting in _waiting(server)}
        await self.until(lambda: not before & {waiting for _, waiting in _waiting(server)}, 5 * TURN)
        await self.until(lambda: server.ahead.pools.idle == 2)
        self.assertTrue((await self.get(server)).endswith(get("app.test")))
        self.assertLessEqual(len(_reserve(agent)), 4)

    async def test_none_wished(self) -> None:
        server, secret = self.start()
        await self.publish(server, self.host(secret, pool=0))
        await self.get(server)
        self.assertEqual((len(server.ahead.pools), server.ahead.pools.held), (0, 0))

    async def test_limits(self) -> None:
        server, secret = self.start("[proxy.limits]\npool = 3\npools = 4")
        await self.publish(server, self.host(secret, pool=9))
        await self.full(server, 3)
        await self.second(server, self.host(secret, pool=9))
        await self.full(server, 4)
        self.assertTrue((await self.get(server)).endswith(get("app.test")))

    async def test_a_reload_with_other_limits(self) -> None:
        server, secret = self.start()
        await self.publish(server, self.host(secret, pool=4))
        await self.full(server, 4)
        self.source.text = self.source.text.replace("drain_s = 0", 'drain_s = 0\ndata_tls = "always"')
        await server.apply(self.source.reload().config)
        await self.full(server, 4)
        self.assertTrue(all(waiting.secure is not None for _, waiting in _waiting(server)))
        self.assertTrue((await self.get(server)).endswith(get("app.test")))
        self.assertEqual(server.ahead.pools.hits, 1)

    async def test_rotated_data_ports(self) -> None:
        server, secret = self.start()
        await self.publish(server, self.host(secret))
        await self.full(server)
        server.door.rotate()
        for _ in range(4):
            self.assertTrue((await self.get(server)).endswith(get("app.test")))
            await self.full(server)
        self.assertEqual(server.ahead.pools.hits, 4)
