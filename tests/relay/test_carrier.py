"""Links over real loopback, with TLS and with Noise, and peers that are none of ours."""

from __future__ import annotations

import datetime
import hashlib
import socket
import time
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from layer8.core.errors import ConfigError, Unavailable
from layer8.crypto.keys import NodeKey
from layer8.relay.carrier import Carriers, NoLink
from layer8.relay.limits import LINK_HIGH, T_LINK
from layer8.relay.link import Ground, Link, State, Why
from layer8.relay.links import Links
from layer8.relay.securing import NOISE, TLS, Security
from layer8.relay.turn import Turn
from layer8.relay.wire import BODY, Cell, Destroy, Notice
from tests.accepting import Accepting
from tests.relay.links import Taken, Watch

WALL = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def network(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:8]


class User(Watch):
    """A watch that hears of refused newcomers too."""

    def refused(self, link: Link, now: float) -> None:
        self.events.append(("refused", link.peer))


class Node:
    """A node's links, on real loopback."""

    def __init__(self, name: str = "test", *, key: NodeKey | None = None, nameless: bool = False) -> None:
        from twisted.internet import reactor

        self.key = key or NodeKey.make()
        self.user = User()
        loop: Any = reactor
        turn = Turn(lambda end: loop.callLater(0, end))
        self.ground = Ground(network(name), turn, time.monotonic, WALL.timestamp, lambda size: bytes(size), lambda: 3.0)
        self.links = Links(self.key.node_id, self.user, prefixes=False)
        security = Security(None if nameless else self.key, network(name), WALL)
        self.carriers = Carriers(loop, self.ground, security, self.links)
        self.port = 0

    def listen(self, kind: str) -> str:
        (port,) = self.carriers.listen(f"tcp:0:interface=127.0.0.1:link={kind}", "relay.listen")
        where: Any = port.getHost()
        self.port = where.port
        return f"tcp:127.0.0.1:{self.port}:link={kind}"

    async def stop(self) -> None:
        await self.carriers.stop()
        self.links.close(Why.DOWN, time.monotonic())


async def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError("it never came")
        await pause(0.005)


async def pause(seconds: float) -> None:
    """Let the reactor go on for a while."""
    from twisted.internet import reactor

    await deferLater(cast(Any, reactor), seconds)


class CarrierCase(TestCase):
    kind = TLS
    timeout = 30

    def setUp(self) -> None:
        self.alice, self.bob = self.node(), self.node()
        self.where = self.bob.listen(self.kind)

    def node(self, name: str = "test", *, key: NodeKey | None = None, nameless: bool = False) -> Node:
        node = Node(name, key=key, nameless=nameless)
        self.addCleanup(lambda: Deferred.fromCoroutine(self._stop(node)))
        return node

    async def refusal(self, node: Node, wanted: bytes | None = None) -> NoLink:
        """Dial in vain."""
        try:
            await node.carriers.dial(self.where, wanted)
        except NoLink as error:
            return error
        raise AssertionError("there is a link")

    async def _stop(self, node: Node) -> None:
        await node.stop()
        await until(lambda: not len(node.links))


class LinkMixin:
    """What holds for both securities."""

    async def test_both_know_each_other(self) -> None:
        assert isinstance(self, CarrierCase)
        link = await self.alice.carriers.dial(self.where, self.bob.key.node_id)
        self.assertEqual((link.peer, link.state), (self.bob.key.node_id, State.OPEN))
        await until(lambda: self.bob.links.get(self.alice.key.node_id))
        self.assertEqual(link.seen.host, "127.0.0.1")
        self.assertIs(await self.alice.carriers.dial(self.where, self.bob.key.node_id), link)

    async def test_a_nameless_client(self) -> None:
        assert isinstance(self, CarrierCase)
        client = self.node(nameless=True)
        link = await client.carriers.dial(self.where)
        self.assertEqual(link.peer, self.bob.key.node_id)
        await until(lambda: self.bob.user.events)
        self.assertEqual(self.bob.user.events, [("opened", None)])

    async def test_circuits_and_much_data(self) -> None:
        assert isinstance(self, CarrierCase)
        link = await self.alice.carriers.dial(self.where, self.bob.key.node_id)
        taker = Taken()
        slot = link.slot(taker)
        slot.create(1, b"hello")
        await until(lambda: taker.answers)
        self.assertEqual(taker.answers, [(1, b"olleh")])
        (far,) = self.bob.user.takers
        bodies = [number.to_bytes(4, "big") * (BODY // 4) + b"end" for number in range(500)]
        slot.send(Cell.RELAY, bodies)
        assert far.slot is not None
        far.slot.send(Cell.EARLY, bodies[:300])
        await until(lambda: len(far.bodies) == 500 and len(taker.bodies) == 300)
        self.assertEqual(far.bodies, bodies)
        self.assertEqual(taker.bodies, bodies[:300])
        slot.close(Destroy.ASKED)
        await until(lambda: far.ends)
        self.assertEqual(far.ends, [Destroy.ASKED])

    async def test_a_slow_reader_holds_what_is_sent_to_it(self) -> None:
        assert isinstance(self, CarrierCase)
        link = await self.alice.carriers.dial(self.where, self.bob.key.node_id)
        taker = Taken()
        slot = link.slot(taker)
        slot.create(1, b"")
        await until(lambda: taker.answers)
        (far,) = self.bob.user.takers
        (theirs,) = self.bob.links
        theirs._wire.hold(True)
        sent = 0
        while not slot.full:
            slot.send(Cell.RELAY, [bytes(BODY)] * 32)
            sent += 32
            if sent > 32 * 1024:
                raise AssertionError("nothing ever fills the link")
            await pause(0)
        self.assertEqual(taker.rooms, 0)
        wire: Any = link._wire
        waits = len(wire.transport.dataBuffer) + sum(map(len, wire.transport._tempDataBuffer))
        self.assertLess(waits, 2 * LINK_HIGH)  # more would stand in no order any more
        theirs._wire.hold(False)
        await until(lambda: taker.rooms and len(far.bodies) == sent)

    async def test_another_identity(self) -> None:
        assert isinstance(self, CarrierCase)
        error = await self.refusal(self.alice, NodeKey.make().node_id)
        self.assertEqual((error.why, error.reason), (Why.IDENTITY, Destroy.WRONG_IDENTITY))
        await until(lambda: not len(self.bob.links))
        self.assertEqual(self.alice.user.events, [])

    async def test_another_network(self) -> None:
        assert isinstance(self, CarrierCase)
        stranger = self.node("test-2")
        error = await self.refusal(stranger)
        self.assertIn(error.reason, (Destroy.WRONG_IDENTITY, Destroy.UNREACHABLE, Destroy.TIMEOUT))

    async def test_a_cut_ends_circuits_at_once(self) -> None:
        assert isinstance(self, CarrierCase)
        link = await self.alice.carriers.dial(self.where, self.bob.key.node_id)
        taker = Taken()
        link.slot(taker).create(1, b"")
        await until(lambda: taker.answers)
        (theirs,) = self.bob.links
        theirs.close(Why.ASKED, time.monotonic(), abort=True)
        await until(lambda: taker.ends)
        self.assertEqual(taker.ends, [Destroy.LINK_LOST])

    async def test_garbage_hears_nothing(self) -> None:
        assert isinstance(self, CarrierCase)
        with socket.create_connection(("127.0.0.1", self.bob.port)) as sock:
            sock.settimeout(0)
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(3000))
            await until(lambda: len(self.bob.links))
            await pause(0.2)
            self.assertRaises(BlockingIOError, sock.recv, 1)
            (link,) = self.bob.links._all
            link.wake(time.monotonic() + 11)
            await until(lambda: not len(self.bob.links))


class TlsTests(LinkMixin, CarrierCase):
    kind = TLS

    async def test_the_group(self) -> None:
        link = await self.alice.carriers.dial(self.where, self.bob.key.node_id)
        self.assertEqual(link._wire._secure.group, "X25519MLKEM768")  # type: ignore[attr-defined]


class DialTests(CarrierCase):
    """What dialling comes to."""

    async def test_nobody_there(self) -> None:
        node = self.node()
        where = node.listen(TLS)
        await node.carriers.stop()
        await self.assertFailure(Deferred.fromCoroutine(self.alice.carriers.dial(where)), Unavailable)
        await self.assertFailure(Deferred.fromCoroutine(self.alice.carriers.dial("tcp:-x-:1")), Unavailable)
        await self.assertFailure(Deferred.fromCoroutine(self.alice.carriers.dial("unix:/x")), ConfigError)

    async def test_as_many_as_there_may_be(self) -> None:
        self.alice.links._most = 0
        await self.assertFailure(Deferred.fromCoroutine(self.alice.carriers.dial(self.where)), Unavailable)
        self.alice.links._most, self.bob.links._most = 5, 0
        error = await self.refusal(self.alice)
        self.assertEqual((error.why, error.reason), (Why.LOST, Destroy.UNREACHABLE))

    async def test_both_at_once(self) -> None:
        other = self.alice.listen(self.kind)
        both = [
            Deferred.fromCoroutine(self.alice.carriers.dial(self.where, self.bob.key.node_id)),
            Deferred.fromCoroutine(self.bob.carriers.dial(other, self.alice.key.node_id)),
        ]
        links = [await one for one in both]
        await until(lambda: len(self.alice.links) == len(self.bob.links) == 1)
        smaller = min(self.alice, self.bob, key=lambda node: node.key.node_id)
        (kept,) = smaller.links
        self.assertTrue(kept.dialled)
        self.assertEqual({link.peer for link in links}, {self.alice.key.node_id, self.bob.key.node_id})

    async def test_given_up(self) -> None:
        server = Accepting(silent)
        self.addCleanup(server.close)
        dialling = Deferred.fromCoroutine(self.alice.carriers.dial(f"tcp:127.0.0.1:{server.port}"))
        await until(lambda: len(self.alice.links))
        dialling.cancel()
        await self.assertFailure(dialling, CancelledError)
        self.assertEqual(len(self.alice.links), 0)

    async def test_a_silent_peer(self) -> None:
        server = Accepting(silent)
        self.addCleanup(server.close)
        dialling = Deferred.fromCoroutine(self.alice.carriers.dial(f"tcp:127.0.0.1:{server.port}"))
        await until(lambda: len(self.alice.links))
        (link,) = self.alice.links._all
        link.wake(time.monotonic() + T_LINK)
        error = await self.assertFailure(dialling, NoLink)
        self.assertEqual(cast(Any, error).reason, Destroy.TIMEOUT)

    async def test_new_certificates_of_one_identity(self) -> None:
        """After a restart the identity is the same, and the old link that is dead gives way."""
        first = await self.alice.carriers.dial(self.where, self.bob.key.node_id)
        again = self.node(key=self.alice.key)
        error = await self.refusal(again)
        self.assertEqual(error.why, Why.IN_USE)
        await until(lambda: ("noticed", Notice.TRIED) in self.alice.user.events)
        self.assertEqual(first.state, State.OPEN)
        self.assertIn(("refused", self.alice.key.node_id), self.bob.user.events)


def silent(sock: socket.socket) -> None:
    """Read to the end and say nothing."""
    while sock.recv(65536):
        pass


class NoiseTests(LinkMixin, CarrierCase):
    kind = NOISE
