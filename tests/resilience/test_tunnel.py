"""Relays of the browser tunnel as processes: they drain, restart in turn, and carry much without keeping it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.core.errors import Unavailable
from layer8.net.http import Incoming
from layer8.net.http_client import Line, Pool, fetch
from layer8.net.http_wire import Deaf
from layer8.net.ways import connector
from layer8.tunnel.wire import CHUNKED
from tests.interop.daemons import folder, free_port, resident
from tests.interop.tunnels import Part
from tests.tunnel.test_relay import HOST, SEALED, Gateway

MANY = 128 << 20
"""Bytes each way: eight times what a relay may grow by."""
ROOM = 16 << 20
"""Bytes by which a relay may grow meanwhile."""
KIND = [("content-type", CHUNKED.request)]


class Flow(Deaf):
    """A body that is written as fast as it is taken, and one that is counted."""

    def __init__(self, write: Callable[[bytes], None], finish: Callable[[], None], size: int) -> None:
        self._write, self._finish = write, finish
        self.left = size
        self.heard = 0
        self.crowded: Callable[[], bool] = lambda: False
        self.over: Deferred[int] = Deferred()
        self.status = 0

    def go(self) -> None:
        data = bytes(1 << 16)
        while self.left and not self.crowded():
            self._write(data)
            self.left -= len(data)
        if not self.left:
            self.left = -1
            self._finish()

    def room(self) -> None:
        if self.left > 0:
            self.go()

    def answered(self, status: int, fields: Any, length: int | None) -> None:
        self.status = status

    def received(self, data: bytes) -> None:
        self.heard += len(data)

    def ended(self) -> None:
        self.over.callback(self.heard)

    def lost(self) -> None:
        self.over.errback(Unavailable("cut"))


class ProcessCase(TestCase):
    timeout = 90

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.gateway = Gateway(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.gateway.close()))
        self.relays: list[Part] = []

    async def relay(self) -> Pool:
        """Start a relay, and give connections to it."""
        port, home = free_port(), folder(self)
        (home / "test.toml").write_text(
            f'[control]\nlisten = []\n[log]\nformat = "json"\n[tunnel]\nlisten = ["tcp:{port}:interface=127.0.0.1"]\n'
            f'[[tunnel.gateway]]\nid = "shop"\nendpoint = "tcp:127.0.0.1:{self.gateway.port}"\nhost = "{HOST}"\n'
        )
        part = Part("tunnel", home, self, (), ports=(port,))
        await deferToThread(part.start)
        self.relays.append(part)
        pool = Pool(self.reactor, connector(self.reactor, f"tcp:127.0.0.1:{port}"))
        self.addCleanup(pool.abort)
        return pool

    async def post(self, pool: Pool) -> bytes:
        answer = await fetch(pool, "POST", "/r/shop", "relay.test", KIND, SEALED, most=1 << 16)
        self.assertEqual(answer.status, 200)
        return answer.body

    async def ended(self, part: Part, seconds: float = 30.0) -> int | None:
        """Wait until a process has ended, and give its code."""
        process = part.program.process
        for _ in range(int(seconds / 0.05)):
            if process.poll() is not None:
                return process.returncode
            await deferLater(self.reactor, 0.05, lambda: None)
        return None


class DrainTests(ProcessCase):
    async def test_what_is_under_way_ends_and_the_new_goes_elsewhere(self) -> None:
        held: list[Incoming] = []
        self.gateway.how = lambda one, body: held.append(one)
        pool = await self.relay()
        going = Deferred.fromCoroutine(self.post(pool))
        while not held:
            await deferLater(self.reactor, 0.02, lambda: None)
        (part,) = self.relays
        os.kill(part.pid, signal.SIGTERM)
        for _ in range(200):
            other = Pool(self.reactor, connector(self.reactor, f"tcp:127.0.0.1:{part.ports[0]}"))
            try:
                await other.take()
            except Unavailable:
                break
            finally:
                other.abort()
            await deferLater(self.reactor, 0.02, lambda: None)
        else:
            self.fail("it goes on taking connections")
        self.assertIsNone(part.program.process.poll())
        held[0].answer(200, [("content-type", CHUNKED.response)], b"done")
        self.assertEqual(await going, b"done")
        self.assertEqual(await self.ended(part), -signal.SIGTERM, "143 in a shell, as the reference says")
        self.assertEqual(part.defects(), [])

    async def test_two_relays_that_restart_in_turn(self) -> None:
        """Whoever goes to the other relay when one lets nobody in loses nothing."""
        pools = [await self.relay(), await self.relay()]
        self.gateway.how = lambda one, body: one.answer(200, [("content-type", CHUNKED.response)], body)
        going, told = [True], {"answered": 0, "moved": 0}

        async def page(first: int) -> None:
            at = first
            while going[0]:
                try:
                    self.assertEqual(await self.post(pools[at]), SEALED)
                    told["answered"] += 1
                except Unavailable:
                    told["moved"] += 1
                    at = 1 - at
                await deferLater(self.reactor, 0.002, lambda: None)

        pages = [Deferred.fromCoroutine(page(number % 2)) for number in range(8)]
        for part in self.relays:
            before = told["answered"]
            await deferToThread(part.again)
            while told["answered"] < before + 50:
                await deferLater(self.reactor, 0.02, lambda: None)
        going[0] = False
        for one in pages:
            await one
        self.assertGreater(told["answered"], 100)
        self.assertEqual(len(self.gateway.bodies), told["answered"], "none was sent twice, none was lost")
        for part in self.relays:
            self.assertEqual(part.defects(), [])


class MemoryTests(ProcessCase):
    async def test_much_either_way(self) -> None:
        """What goes through is not kept: the relay's memory stays flat, either way."""
        pool = await self.relay()
        self.gateway.how = lambda one, body: one.answer(200, [("content-type", CHUNKED.response)], body)
        for _ in range(50):
            await self.post(pool)
        counted: list[int] = []

        def take(one: Incoming) -> None:
            if one.method != "POST":
                one.answer(200, (), self.gateway.keys())
                return
            flow = Flow(one.write, one.finish, MANY)
            flow.crowded = lambda: one.crowded

            def whole(size: int) -> None:
                counted.append(size)
                one.begin(200, [("content-type", CHUNKED.response)])
                flow.go()

            flow.over.addCallback(whole)
            one.to(flow)

        self.gateway.server.handler = take
        (part,) = self.relays
        before, most = resident(part.pid), 0
        line: Line = await pool.take()
        flow = Flow(line.write, line.finish, MANY)
        flow.crowded = lambda: line.crowded
        line.request("POST", "/r/shop", "relay.test", KIND, flow, None)
        flow.go()
        while not flow.over.called:
            await deferLater(self.reactor, 0.05, lambda: None)
            most = max(most, resident(part.pid))
        self.assertEqual((flow.status, counted, await flow.over), (200, [MANY], MANY))
        self.assertLess(most - before, ROOM)
        told = part.ask("ohttp.stats")["bytes"]
        for name in ("page_in", "page_out", "gateway_in", "gateway_out"):
            self.assertGreater(told[name], MANY)
