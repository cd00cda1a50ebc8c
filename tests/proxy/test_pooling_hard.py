"""Pools and agents that do what they should not: by hand on one side, a real server on the other."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from typing import Any

from twisted.internet.defer import Deferred

from layer8.crypto.secret import HostSecret
from layer8.proxy import pooling
from layer8.proxy.pp import Claim, Header, Reader, read_claim
from layer8.proxy.wire import NOD, Code, Reason
from tests.proxy.pair import get, visit
from tests.proxy.test_pooling import PoolCase, post
from tests.resilience.wire import Line

RESET = struct.pack("ii", 1, 0)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class ByHand:
    """An agent by hand: subscribed, and asked to dial ahead."""

    def __init__(self, port: int, secret: HostSecret, pool: int = 1, features: tuple[str, ...] = ("pool",)) -> None:
        self.line = Line(port)
        self.line.hello(f"by hand {id(self)}", features)
        self.number = self.line.subscribe("app.test", secret.key, pool=pool)
        self.open: list[socket.socket] = []

    def tokens(self) -> list[dict[str, Any]]:
        """Wait for the next notification."""
        told = self.line.hear("proxy.pool", 5)
        assert told["subscription"] == self.number
        tokens: list[dict[str, Any]] = told["tokens"]
        return tokens

    def show(self, token: dict[str, Any], more: bytes = b"") -> socket.socket:
        """Dial with a token."""
        sock = socket.create_connection(("127.0.0.1", token["serverListeningPort"]), 5)
        sock.sendall(bytes.fromhex(token["secret"]) + more)
        self.open.append(sock)
        return sock

    def ahead(self) -> socket.socket:
        """Dial with the one token."""
        (token,) = self.tokens()
        return self.show(token)

    def reject(self, conn: int) -> None:
        self.line.say("proxy.reject", {"subscription": self.number, "conn": conn, "code": int(Code.AGENT_REFUSED)})

    def close(self) -> None:
        self.line.close()
        for sock in self.open:
            sock.close()


def claimed(sock: socket.socket) -> tuple[Claim, bytes]:
    """Read what a visitor's connection begins with, which comes in one piece."""
    reader = Reader()
    header = reader.feed(sock.recv(65536))
    assert isinstance(header, Header)
    found = read_claim(header)
    assert found is not None
    return found, reader.data


def rest(sock: socket.socket) -> bytes:
    """Read to the end, which may be a reset."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            got += part
    return got


class HandCase(PoolCase):
    async def by_hand(self, server: Any, secret: HostSecret, **more: Any) -> ByHand:
        agent: ByHand = await self.thread(ByHand, server.door.agents_port(), secret, **more)
        self.addCleanup(agent.close)
        return agent

    async def waiting(self, server: Any, agent: ByHand, count: int = 1) -> socket.socket:
        """One connection that waits at the server."""
        before = server.ahead.pools.idle
        sock: socket.socket = await self.thread(agent.ahead)
        await self.until(lambda: server.ahead.pools.idle == before + 1)
        return sock

    def visitor(self, server: Any, data: bytes = get("app.test")) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10)
        sock.sendall(data)
        self.addCleanup(sock.close)
        return sock

    async def is_closed(self, sock: socket.socket) -> None:
        self.assertEqual(await self.thread(rest, sock), b"")


class WireTests(HandCase):
    async def test_what_an_agent_sees(self) -> None:
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        (token,) = await self.thread(agent.tokens)
        self.assertEqual(sorted(token), ["expires_ms", "secret", "serverListeningPort", "tls"])
        self.assertEqual((len(token["secret"]), token["expires_ms"], token["tls"]), (64, 5000, False))
        sock = agent.show(token)
        await self.until(lambda: server.ahead.pools.idle == 1)
        visitor = self.visitor(server)
        found, first = await self.thread(claimed, sock)
        self.assertEqual(found, Claim(server.door.port_of("http"), 1, "app.test", "http"))
        self.assertEqual(first, get("app.test"))
        sock.sendall(NOD + ANSWER)
        sock.close()
        self.assertEqual(await self.thread(rest, visitor), ANSWER)
        self.assertEqual(len(await self.thread(agent.tokens)), 1, "and another one is wanted")

    async def test_without_the_feature_there_are_no_pools(self) -> None:
        server, secret = self.start()
        await self.by_hand(server, secret, features=())
        await self.by_hand(server, secret, pool=0)
        self.assertEqual((len(server.seats), len(server.ahead.pools)), (2, 0))

    async def test_a_token_is_good_for_one_connection_that_says_nothing_more(self) -> None:
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        (token,) = await self.thread(agent.tokens)
        await self.is_closed(agent.show(token, b"x"))
        self.assertEqual(server.ahead.pools.held, 1, "it was not used")
        agent.show(token)
        await self.until(lambda: server.ahead.pools.idle == 1)
        await self.is_closed(agent.show(token))
        await self.is_closed(agent.show({**token, "secret": "00" * 32}))
        self.assertEqual(server.ahead.pools.held, 1)

    async def test_one_that_speaks_or_leaves_before_its_visitor(self) -> None:
        """It is dropped, and its agent is left alone for a while."""
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        speaks = await self.waiting(server, agent)
        speaks.sendall(b"x")
        await self.is_closed(speaks)
        self.assertEqual(server.ahead.pools.held, 0)
        (pool,) = server.ahead._whose
        self.assertGreater(pool.resting, server.pump.now)
        leaves = await self.waiting(server, agent)
        leaves.close()
        await self.until(lambda: server.ahead.pools.held == 0)
        self.assertGreater(pool.resting, server.pump.now + 1, "longer each time")

    async def test_the_end_that_was_not_seen_yet(self) -> None:
        """A visitor is not given one whose FIN waits to be read."""
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        sock = await self.waiting(server, agent)
        visitor = self.visitor(server)  # neither is looked at before this turn of the reactor is over
        sock.close()
        call = await self.thread(agent.line.hear)
        self.assertEqual(call["result"]["host"], "app.test")
        self.assertEqual(server.ahead.pools.hits, 0)
        visitor.close()


class QueueTests(HandCase):
    """Visitors that find a pool empty."""

    async def test_what_comes_next_is_theirs(self) -> None:
        """Nobody is called: tokens for all of them come in one message, and the first connection is the first one's."""
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        (spare,) = await self.thread(agent.tokens)
        visitors = [self.visitor(server) for _ in range(3)]
        await self.until(lambda: len(server.traffic.visits) == 3)
        tokens = [spare]
        while len(tokens) < 4:
            tokens += await self.thread(agent.tokens)
        self.assertEqual(server.traffic.totals.joined, 0)
        numbers = []
        for token in tokens[:3]:
            sock = agent.show(token)
            found, first = await self.thread(claimed, sock)
            numbers.append(found.conn)
            self.assertEqual(first, get("app.test"))
            sock.sendall(NOD + ANSWER)
            sock.close()
        self.assertEqual(numbers, [1, 2, 3])
        agent.show(tokens[3])
        await self.until(lambda: server.ahead.pools.idle == 1)
        for visitor in visitors:
            self.assertEqual(await self.thread(rest, visitor), ANSWER)
        self.assertEqual(server.ahead.pools.hits, 0)
        self.assertEqual([message["method"] for message in agent.line.heard], [])

    async def test_an_agent_that_does_not_dial(self) -> None:
        server, secret = self.start("[proxy.limits]\ncall_step = 0.3")
        agent = await self.by_hand(server, secret)
        await self.publish(server, self.host(secret, pool=0, priority=1))
        (spare,) = await self.thread(agent.tokens)
        self.assertTrue((await self.get(server)).endswith(get("app.test")))
        agent.show(spare)
        await self.until(lambda: server.ahead.pools.idle == 1)
        self.assertEqual(len(self.echo.got), 1, "what comes too late waits for the next visitor")

    async def test_an_agent_that_leaves(self) -> None:
        server, secret = self.start("[proxy.limits]\ncall_step = 5")
        agent = await self.by_hand(server, secret)
        await self.publish(server, self.host(secret, pool=0, priority=1))
        visitor = self.visitor(server)
        await self.until(lambda: bool(server.traffic.visits))
        begun = time.monotonic()
        agent.line.close()
        self.assertTrue((await self.thread(rest, visitor)).endswith(get("app.test")))
        self.assertLess(time.monotonic() - begun, 3, "no need to wait")

    async def test_a_visitor_that_leaves(self) -> None:
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        (spare,) = await self.thread(agent.tokens)
        visitor = self.visitor(server)
        await self.until(lambda: bool(server.traffic.visits))
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        visitor.close()
        await self.until(lambda: not server.traffic.visits)
        sock = agent.show(spare)
        await self.until(lambda: server.ahead.pools.idle == 1)
        second = self.visitor(server)
        found, _ = await self.thread(claimed, sock)
        self.assertEqual(found.conn, 2)
        sock.sendall(NOD + ANSWER)
        sock.close()
        self.assertEqual(await self.thread(rest, second), ANSWER)
        second.close()
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual([(seat.open, seat.calling) for seat in server.seats], [(0, 0)])


class NodTests(HandCase):
    def quick(self, life: float = 1.0) -> None:
        self.patch(pooling, "CALL_LIFE", life)

    async def other(self, server: Any, secret: HostSecret) -> None:
        """One more agent, that does what it should."""
        await self.publish(server, self.host(secret, pool=0, priority=1))

    async def test_a_hanging_agent(self) -> None:
        """It takes its visitor and does nothing: what may be said twice goes to the next one in time."""
        server, secret = self.start("[proxy.limits]\ncall_step = 0.4")
        agent = await self.by_hand(server, secret)
        await self.other(server, secret)
        sock = await self.waiting(server, agent)
        begun = time.monotonic()
        self.assertTrue((await self.get(server)).endswith(get("app.test")))
        self.assertLess(time.monotonic() - begun, 2)
        self.assertEqual((await self.thread(claimed, sock))[1], get("app.test"))
        await self.is_closed(sock)
        self.assertEqual(server.traffic.totals.ended[Reason.DONE], 1)
        self.assertEqual(server.ahead.given, {})

    async def test_a_hanging_agent_and_a_request_that_must_not_be_sent_twice(self) -> None:
        self.quick()
        server, secret = self.start("[proxy.limits]\ncall_step = 0.3")
        agent = await self.by_hand(server, secret)
        await self.other(server, secret)
        await self.waiting(server, agent)
        self.assertEqual(await self.thread(visit, server.door.port_of("http"), post("app.test")), b"")
        self.assertEqual(self.echo.got, [])
        self.assertEqual(server.traffic.totals.ended[Reason.AGENT_RESET], 1)

    async def test_a_nod_in_time_and_nothing_for_long(self) -> None:
        self.quick(0.5)
        server, secret = self.start("[proxy.limits]\ncall_step = 0.3")
        agent = await self.by_hand(server, secret)
        await self.other(server, secret)
        sock = await self.waiting(server, agent)
        visitor = self.visitor(server)
        await self.thread(claimed, sock)
        sock.sendall(NOD)
        await self.until(lambda: not server.ahead.given)
        await self.sleep(1.5)
        sock.sendall(ANSWER)
        sock.close()
        self.assertEqual(await self.thread(rest, visitor), ANSWER)
        self.assertEqual(self.echo.got, [])

    async def sleep(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, waiting.callback, None)
        await waiting

    async def dies(self, data: bytes, *, reset: bool) -> bytes:
        """An agent that has taken its visitor ends without a nod."""
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        await self.other(server, secret)
        sock = await self.waiting(server, agent)
        visitor = self.visitor(server, data)
        await self.thread(claimed, sock)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        visitor.settimeout(5)
        got: bytes = await self.thread(rest, visitor)
        visitor.close()
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual([(seat.open, seat.calling) for seat in server.seats], [(0, 0)] * 2)
        self.assertEqual(server.pump.failures, 0)
        return got

    async def test_an_agent_that_ends(self) -> None:
        self.assertTrue((await self.dies(get("app.test"), reset=False)).endswith(get("app.test")))

    async def test_an_agent_that_is_killed(self) -> None:
        self.assertTrue((await self.dies(get("app.test"), reset=True)).endswith(get("app.test")))

    async def test_an_agent_that_ends_with_what_must_not_be_sent_twice(self) -> None:
        self.assertEqual(await self.dies(post("app.test"), reset=False), b"")
        self.assertEqual(self.echo.got, [])

    async def test_an_agent_that_is_killed_with_what_must_not_be_sent_twice(self) -> None:
        self.assertEqual(await self.dies(post("app.test"), reset=True), b"")
        self.assertEqual(self.echo.got, [])

    async def test_something_else_than_a_nod(self) -> None:
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        sock = await self.waiting(server, agent)
        visitor = self.visitor(server)
        await self.thread(claimed, sock)
        sock.sendall(ANSWER)
        self.assertEqual(await self.thread(rest, visitor), b"")
        await self.until(lambda: not server.traffic.visits)


class RejectTests(HandCase):
    async def both(self) -> tuple[Any, ByHand, socket.socket]:
        """An agent by hand that is asked first, and another one."""
        server, secret = self.start()
        agent = await self.by_hand(server, secret)
        await self.publish(server, self.host(secret, pool=0, priority=1))
        return server, agent, await self.waiting(server, agent)

    async def test_the_next_one_gets_every_byte_once(self) -> None:
        server, agent, sock = await self.both()
        visitor = self.visitor(server, post("app.test"))
        visitor.shutdown(socket.SHUT_WR)
        found, first = await self.thread(claimed, sock)
        self.assertEqual(first, post("app.test"))
        agent.reject(found.conn)
        self.assertTrue((await self.thread(rest, visitor)).endswith(post("app.test")))
        self.assertEqual(self.echo.got, [post("app.test")])
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.assertIn(error, (errno.ECONNRESET, errno.EPIPE), "the agent sees at once that it need not keep this one")

    async def test_too_late(self) -> None:
        """More than the first bytes has gone: nobody else can have them, and the visitor is let go."""
        server, agent, sock = await self.both()
        visitor = self.visitor(server, b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 9\r\n\r\nmore")
        found, _ = await self.thread(claimed, sock)
        visitor.sendall(b" more")
        self.assertEqual(await self.thread(sock.recv, 100), b" more")
        agent.reject(found.conn)
        self.assertEqual(await self.thread(rest, visitor), b"")
        self.assertEqual(self.echo.got, [])

    async def test_after_the_nod(self) -> None:
        server, agent, sock = await self.both()
        visitor = self.visitor(server)
        found, _ = await self.thread(claimed, sock)
        sock.sendall(NOD)
        await self.until(lambda: not server.ahead.given)
        agent.reject(found.conn)
        await self.until(lambda: server.traffic.totals.rejects_ignored == 1)
        sock.sendall(ANSWER)
        sock.close()
        self.assertEqual(await self.thread(rest, visitor), ANSWER)

    async def test_somebody_elses_visitor(self) -> None:
        server, secret = self.start()
        agent, other = await self.by_hand(server, secret), await self.by_hand(server, secret)
        sock = await self.waiting(server, agent)
        visitor = self.visitor(server)
        found, _ = await self.thread(claimed, sock)
        other.reject(found.conn)
        agent.reject(found.conn + 1)
        await self.until(lambda: server.traffic.totals.rejects_ignored == 2)
        sock.sendall(NOD + ANSWER)
        sock.close()
        self.assertEqual(await self.thread(rest, visitor), ANSWER)

    async def test_the_visitor_has_left(self) -> None:
        server, agent, sock = await self.both()
        visitor = self.visitor(server)
        found, _ = await self.thread(claimed, sock)
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        visitor.close()
        await self.until(lambda: not server.traffic.visits)
        agent.reject(found.conn)
        await self.until(lambda: server.traffic.totals.rejects_ignored == 1)
        self.assertEqual((self.echo.got, server.ahead.given), ([], {}))
