"""Connections that agents dial ahead to nodes which do not hold them: three servers in one process, on real sockets."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from layer8.control.frame import Frame
from layer8.core.errors import Unavailable
from layer8.net.dial import Where
from layer8.proxy import pooling
from layer8.proxy.agent import Agent
from layer8.proxy.bus import Lease, Presence, Stop
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.place import Place, open_store
from layer8.proxy.remote import Plain
from layer8.proxy.service import Server
from layer8.proxy.uplink import ANY_PORT, Published, Uplink
from tests.proxy.pair import BASE, Echo, PairCase, Text, get, visit


@define(eq=False)
class Net:
    """What the nodes share: who is present, and a way from each to each that can be cut."""

    reactor: Any
    present: LocalBus
    ends: dict[bytes, End] = field(factory=dict)
    told: int = 0


class End(LocalBus):
    """One node's end: its own registrations, everybody's presence."""

    def __init__(self, net: Net, store: Any, node: bytes) -> None:
        super().__init__(net.reactor, store, node)
        self.net = net
        self.takers: list[Callable[[bytes], None]] = []
        net.ends[node] = self

    async def lease(self, presence: Presence) -> Lease:
        await deferLater(self.net.reactor, 0.05, lambda: None)
        return await self.net.present.lease(presence)

    async def renew(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        return await self.net.present.renew(leases)

    async def release(self, lease: Lease) -> None:
        await self.net.present.release(lease)

    def lookup(self, host: str) -> tuple[Presence, ...]:
        return self.net.present.lookup(host)

    async def notify(self, node: bytes, sealed: bytes) -> None:
        end = self.net.ends.get(node)
        if end is None or not end.takers:
            raise Unavailable("no such node")
        self.net.told += 1
        for told in end.takers:
            self.net.reactor.callLater(0.001, told, sealed)

    def listen(self, told: Callable[[bytes], None]) -> Stop:
        self.takers.append(told)
        return lambda: self.takers.remove(told)


class NodesCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)
        self.key, self.path = self.secret()
        self.net: Any = None
        self.holder, self.other, self.third = (self.node(number) for number in (1, 2, 3))

    def node(self, number: int) -> Server:
        rest = f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{self.path}"\n'
        home = Path(tempfile.mkdtemp(prefix="node", dir=self.folder))
        frame = Frame(
            self.reactor, "proxy", Text.of(BASE.format(proxy="", rest=rest), "proxy"), {"LAYER8_HOME": str(home)}
        )
        store, close = open_store(frame)
        ident = bytes([number]) * 32
        if self.net is None:
            self.net = Net(self.reactor, LocalBus(self.reactor, store, ident))
        place = Place(ident, End(self.net, store, ident), store, store.load(), close, sealer=Plain(ident))
        server = Server(frame, place=place)
        frame.run(server, server)
        frame.daemon.startService()
        self.addCleanup(frame.daemon.stopService)
        return server

    def host(self, port: int = 0, **more: Any) -> Published:
        targets = {ANY_PORT: Where("127.0.0.1", port or self.echo.port)}
        return Published("app.test", self.key.key, targets, **{"pool": 2, **more})

    async def get(self, server: Server) -> bytes:
        got: bytes = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        return got

    async def served(self, server: Server) -> None:
        got = await self.get(server)
        self.assertTrue(got.endswith(get("app.test")), got)

    async def full(self, server: Server, count: int = 2) -> None:
        """Wait until so many connections are idle, and no more are on their way."""
        pools = server.ahead.pools
        await self.until(lambda: (pools.idle, pools.held) == (count, count))

    async def agent(self, server: Server, published: Published) -> Agent:
        before, self.told = self.told, []
        agent = await self.publish(server, published)
        self.told += before
        return agent

    async def begin(self, **more: Any) -> Agent:
        """An agent at the holder, and a first visitor at the other node."""
        agent = await self.agent(self.holder, self.host(**more))
        await self.until(lambda: bool(self.net.present.lookup("app.test")))
        await self.served(self.other)
        return agent


def uplink(agent: Agent) -> Uplink:
    (found,) = agent.uplinks
    assert isinstance(found, Uplink)
    return found


class NodesTests(NodesCase):
    async def test_the_agent_dials_where_visitors_are(self) -> None:
        agent = await self.begin()
        await self.full(self.other)
        await self.full(self.holder)
        self.assertEqual(uplink(agent).calls_ignored, 0, "it knew what the tokens were for")
        self.assertEqual(len(self.third.ahead.pools), 0, "nobody came there")
        told = self.net.told
        for _ in range(2):
            await self.served(self.other)
        self.assertEqual(self.other.ahead.pools.hits, 2)
        await self.full(self.other)
        self.assertLessEqual(self.net.told, told + 2, "what is used up is renewed")
        await self.served(self.third)
        await self.full(self.third)
        await self.until(lambda: not self.other.traffic.visits)
        self.assertEqual((self.other.ahead.given, self.other.ahead._numbered), ({}, {}))

    async def test_a_burst(self) -> None:
        agent = await self.begin()
        got = await gatherResults([Deferred.fromCoroutine(self.get(self.other)) for _ in range(100)])
        self.assertEqual([one for one in got if not one.endswith(get("app.test"))], [])
        self.assertEqual(len(self.echo.got), 101)
        self.assertLess(self.net.told, 100, "fewer messages than visitors")
        await self.until(lambda: not self.other.traffic.visits and not agent.carrier.open)

    async def test_who_refuses_is_known_at_the_right_node(self) -> None:
        """Both nodes have a visitor of the same number; the target is gone for one of them."""
        agent = await self.begin()
        await self.full(self.other)
        await self.full(self.holder)
        await self.agent(self.third, self.host(priority=1))
        await self.until(lambda: len(self.net.present.lookup("app.test")) == 2)
        nobody = socket.socket()
        nobody.bind(("127.0.0.1", 0))
        self.addCleanup(nobody.close)
        uplink(agent).replace(self.host(nobody.getsockname()[1]))
        await self.served(self.other)
        self.assertEqual(self.other.ahead.pools.hits, 1)
        self.assertEqual(self.holder.traffic.totals.rejects_ignored, 0)
        self.assertEqual(self.other.traffic.totals.rejects_ignored, 0)
        self.assertEqual(self.holder.neighbours.remote.nonsense if self.holder.neighbours else 0, 0)

    async def test_it_ends_with_the_subscription(self) -> None:
        agent = await self.begin()
        await self.full(self.other)
        await uplink(agent).unsubscribe("app.test")
        await self.until(lambda: len(self.other.ahead.pools) == 0 and self.other.ahead.pools.held == 0)
        await self.until(lambda: len(uplink(agent).reserve) == 0)

    async def test_it_ends_with_the_target(self) -> None:
        agent = await self.begin()
        await self.full(self.other)
        uplink(agent).tell_health("app.test", False)
        await self.until(lambda: len(self.other.ahead.pools) == 0)
        uplink(agent).tell_health("app.test", True)
        await self.until(lambda: bool(self.net.present.lookup("app.test")))
        await self.served(self.other)
        await self.full(self.other)

    async def test_it_ends_when_nobody_comes(self) -> None:
        await self.begin()
        await self.full(self.other)
        self.patch(pooling, "QUIET", 0.5)
        await self.until(lambda: len(self.other.ahead.pools) == 0)
        self.assertEqual(len(self.holder.ahead.pools), 1, "its own agents' stay")
        await self.served(self.other)
        self.assertEqual(len(self.other.ahead.pools), 1)

    async def test_it_ends_with_the_node(self) -> None:
        await self.begin()
        await self.full(self.other)
        self.other.door.drain(5, ())
        self.assertEqual(self.other.ahead.pools.held, 0)
        self.assertNotIn(get("app.test"), await self.get(self.other))
        self.assertEqual(len(self.other.ahead.pools), 0)
        self.other.door.undrain()
        await self.served(self.other)

    async def test_who_does_not_dial_ahead_is_called(self) -> None:
        """An agent that wishes no pool, and one whose visitors are counted."""
        for more in ({"pool": 0}, {"max_conns": 5}):
            agent = await self.begin(**more)
            await self.served(self.other)
            self.assertEqual(len(self.other.ahead.pools), 0)
            await agent.stopService()
            await self.until(lambda: not self.net.present.lookup("app.test"))

    async def test_a_holder_out_of_reach(self) -> None:
        """Visitors go on at once, and the next ones are called for."""
        await self.begin()
        await self.agent(self.third, self.host(priority=1))
        await self.until(lambda: len(self.net.present.lookup("app.test")) == 2)
        self.other.ahead.rest()
        self.other.ahead.go_on()
        takers, self.net.ends[bytes([1]) * 32].takers = self.net.ends[bytes([1]) * 32].takers, []
        before = self.reactor.seconds()
        await self.served(self.other)
        await self.served(self.other)
        self.assertLess(self.reactor.seconds() - before, 1.0)
        self.net.ends[bytes([1]) * 32].takers = takers

    async def test_an_agent_that_loses_its_node(self) -> None:
        """Until the other node hears of it, visitors are carried on what waits there; then all is as new."""
        agent = await self.begin()
        await self.full(self.other)
        before = set(self.holder.seats)
        for seat in before:
            seat.voice.close("killed")
        await self.until(lambda: not uplink(agent).connected)
        self.assertEqual(len(uplink(agent).reserve), 2, "those at the other node")
        await self.until(lambda: bool(set(self.holder.seats) - before))
        (now,) = set(self.holder.seats) - before
        await self.until(lambda: [one.subscription for one in self.net.present.lookup("app.test")] == [now.number])
        await self.until(lambda: all(seat.number == now.number for seat in self.other.ahead._by_seat))
        await self.served(self.other)
        await self.full(self.other)
        await self.until(lambda: len(uplink(agent).reserve) == 4)
