"""Flows with filters and meters: what is seen, what stays in the kernel, pauses, ends and partings."""

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.net.flow import Link
from layer8.net.meter import LEAST, Meter
from layer8.net.pump import HAVE_SPLICE, Pump
from tests.net.test_pump import Ended, read_all, send_all


def send_and_end(sock: socket.socket, data: bytes) -> None:
    send_all(sock, data)
    sock.shutdown(socket.SHUT_WR)


class Seeing:
    """A filter that remembers what it saw and lets `free` bytes go unseen."""

    def __init__(self, free: int = 0, last: bytes = b"") -> None:
        self.free = free
        self.seen = b""
        self.unseen = 0
        self.last = last
        self.link: Link | None = None
        self.pump: Pump | None = None
        self.then: Any = None

    def feed(self, data: bytes) -> bytes:
        self.seen += data
        self.free = max(0, self.free - len(data))
        return data if self.then is None else self.then(data)

    def skipped(self, count: int) -> None:
        self.unseen += count
        self.free -= count

    def ended(self) -> bytes:
        return self.last


class CareCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.pump = Pump(reactor)
        self.pump.start()
        self.addCleanup(self.pump.stop)

    def joined(self, **how: Any) -> tuple[socket.socket, socket.socket, Link, Ended]:
        """Join two pairs of sockets; gives the outer ends, the link and its owner."""
        (client, first), (second, backend) = socket.socketpair(), socket.socketpair()
        for sock in (first, second):
            sock.setblocking(False)
        for sock in (client, backend):
            sock.settimeout(20)
            self.addCleanup(sock.close)
        owner = Ended()
        link = self.pump.join(first.detach(), second.detach(), owner, **how)
        return client, backend, link, owner

    def thread(self, call: Any, *arguments: Any) -> Deferred[Any]:
        return deferToThread(call, *arguments)

    async def pause(self, seconds: float = 0.05) -> None:
        waiting: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, waiting.callback, None)
        await waiting


class FilterTests(CareCase):
    async def test_everything_is_seen_in_order(self) -> None:
        up, down = Seeing(), Seeing()
        client, backend, _, owner = self.joined(up_filter=up, down_filter=down)
        client.sendall(b"question")
        self.assertEqual(await self.thread(backend.recv, 100), b"question")
        backend.sendall(b"answer")
        self.assertEqual(await self.thread(client.recv, 100), b"answer")
        client.close()
        backend.close()
        self.assertIn((await owner.wait())[0], ("done", "reset"))
        self.assertEqual((up.seen, down.seen), (b"question", b"answer"))

    async def test_free_bytes_stay_in_the_kernel(self) -> None:
        if not HAVE_SPLICE:
            self.skipTest("this system has no os.splice")
        size = 32 << 20
        content = os.urandom(1 << 20) * 32
        up = Seeing(free=size - 5)
        client, backend, _, owner = self.joined(up_filter=up)
        sending = self.thread(send_all, client, content)
        got = self.thread(read_all, backend)
        await sending
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(hashlib.sha256(await got).digest(), hashlib.sha256(content).digest())
        backend.close()
        await owner.wait()
        self.assertEqual(len(up.seen) + up.unseen, size)
        self.assertGreater(up.unseen, size // 2)
        self.assertGreater(self.pump.spliced, size // 2)
        self.assertTrue(up.seen.endswith(content[-5:]), up.seen[-9:])

    async def test_a_filter_rewrites_and_has_the_last_word(self) -> None:
        up = Seeing(last=b"!")
        up.then = lambda data: data.upper()
        client, backend, _, _ = self.joined(up_filter=up)
        client.sendall(b"quiet")
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(await self.thread(read_all, backend), b"QUIET!")

    async def test_a_paused_flow_reads_nothing_until_it_goes_on(self) -> None:
        up = Seeing()
        client, backend, link, _ = self.joined(up_filter=up)

        def pause(data: bytes) -> bytes:
            self.pump.pause(link.up)
            return b""

        up.then = pause
        client.sendall(b"one")
        await self.pause()
        client.sendall(b"two")
        await self.pause()
        self.assertEqual(up.seen, b"one")
        up.then = None
        self.pump.go_on(link.up, b"first ")
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(await self.thread(read_all, backend), b"first two")

    async def test_finish_ends_one_direction_after_what_waits(self) -> None:
        up = Seeing()
        client, backend, link, owner = self.joined(up_filter=up, down_filter=Seeing(last=b"sorry"))

        def refuse(data: bytes) -> bytes:
            self.pump.finish(link.up)
            return data[:3]

        up.then = refuse
        client.sendall(b"yes-no")
        self.assertEqual(await self.thread(read_all, backend), b"yes")
        backend.sendall(b"late answer, ")
        backend.close()
        self.assertEqual(await self.thread(read_all, client), b"late answer, sorry")
        await owner.wait()

    async def test_a_filter_may_close_its_link(self) -> None:
        up = Seeing()
        client, _, link, owner = self.joined(up_filter=up)

        def close(data: bytes) -> bytes:
            link.close("killed")
            return data

        up.then = close
        client.sendall(b"x")
        self.assertEqual((await owner.wait())[0], "killed")
        await self.pause()
        self.assertEqual(self.pump.failures, 0)

    async def test_the_last_word_may_close_the_link(self) -> None:
        up = Seeing()
        client, _, link, owner = self.joined(up_filter=up)

        def close() -> bytes:
            link.close("killed")
            return b"x"

        up.ended = close  # type: ignore[method-assign]
        client.shutdown(socket.SHUT_WR)
        self.assertEqual((await owner.wait())[0], "killed")
        self.assertEqual(self.pump.failures, 0)

    async def test_parting_gives_both_ends_back(self) -> None:
        up = Seeing()
        client, backend, link, owner = self.joined(up_filter=up)
        parted: list[int] = []

        def part(data: bytes) -> bytes:
            parted.extend(self.pump.part(link))
            return data

        up.then = part
        client.sendall(b"x")
        await self.pause()
        first, second = (socket.socket(fileno=fd) for fd in parted)
        self.addCleanup(first.close)
        self.addCleanup(second.close)
        first.send(b"still here")
        second.send(b"and here")
        self.assertEqual(client.recv(100), b"still here")
        self.assertEqual(backend.recv(100), b"and here")
        self.assertEqual((owner.reasons, self.pump.links), ([], 0))
        self.assertRaises(ValueError, self.pump.part, link)


class MeterTests(CareCase):
    async def test_two_links_share_a_rate(self) -> None:
        rate, size = 4 << 20, 2 << 20
        meter = Meter(rate, self.pump.look_at_clock())
        pairs = [self.joined(meter=meter) for _ in range(2)]
        began = time.monotonic()
        for client, _, _, _ in pairs:
            self.thread(send_and_end, client, bytes(size))
        got = [await waiting for waiting in [self.thread(read_all, backend) for _, backend, _, _ in pairs]]
        took = time.monotonic() - began
        self.assertEqual([len(one) for one in got], [size, size])
        least = (2 * size - meter.burst) / rate
        self.assertGreater(took, least * 0.95)
        self.assertLess(took, least * 1.6 + 0.5)

    async def test_many_links_get_the_same_by_one_timer(self) -> None:
        """Who waits longest comes first: nobody takes all there is, and nobody is looked at in vain."""
        meter = Meter(400_000, self.pump.look_at_clock())
        meter.spend(int(meter.burst))
        looks = []
        call_later = self.pump.clock.callLater

        def counted(seconds: float, function: Callable[..., object], *args: object) -> object:
            if args[-1:] == (meter,):
                looks.append(seconds)
            return call_later(seconds, function, *args)

        self.patch(self.pump, "clock", SimpleNamespace(callLater=counted))
        pairs = [self.joined(meter=meter) for _ in range(20)]
        for client, backend, _, _ in pairs:
            client.setblocking(False)
            backend.setblocking(False)
        got = [0] * len(pairs)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for number, (client, backend, _, _) in enumerate(pairs):
                with contextlib.suppress(BlockingIOError):
                    client.send(bytes(65536))
                with contextlib.suppress(BlockingIOError):
                    got[number] += len(backend.recv(65536))
            await self.pause(0.005)
        for _, _, link, _ in pairs:
            link.close()
        while meter.waiting:
            await self.pause()
        self.assertLess(sum(got), 2.2 * 400_000)
        self.assertGreater(sum(got), 400_000)
        self.assertGreater(min(got) * 2, max(got), got)
        self.assertLess(len(looks), 2.5 / 0.005)

    async def test_small_requests_are_not_slowed(self) -> None:
        meter = Meter(1 << 20, self.pump.look_at_clock())
        client, backend, _, _ = self.joined(meter=meter)
        began = time.monotonic()
        for _ in range(20):
            client.sendall(b"ping")
            self.assertEqual(await self.thread(backend.recv, 100), b"ping")
        self.assertLess(time.monotonic() - began, 1.0)


class BucketTests(SynchronousTestCase):
    def test_it_starts_full_and_fills_by_time(self) -> None:
        meter = Meter(100_000, 0.0)
        self.assertEqual(meter.room(0.0), 25_000)
        meter.spend(25_000)
        self.assertEqual(meter.room(0.01), 0)
        self.assertEqual(meter.room(0.1), 10_000)
        self.assertEqual(meter.room(100.0), 25_000)

    def test_debt_is_paid_by_a_longer_rest(self) -> None:
        meter = Meter(100_000, 0.0)
        meter.spend(125_000)
        self.assertEqual(meter.room(0.5), 0)
        self.assertAlmostEqual(meter.wait(), (LEAST + 50_000) / 100_000)
        self.assertGreater(meter.room(0.5 + meter.wait() + 0.001), 0)

    def test_a_clock_that_stands_still_gives_nothing(self) -> None:
        meter = Meter(100_000, 5.0)
        meter.spend(meter.room(5.0))
        self.assertEqual(meter.room(4.0), 0)

    def test_another_rate_counts_from_now_on(self) -> None:
        meter = Meter(1_000_000, 0.0)
        meter.change(40_000)
        self.assertEqual(meter.room(0.0), 10_000)
