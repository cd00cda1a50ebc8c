"""The pump between real sockets: whole, in order, half-closed, reset, idle, and nothing left behind."""

import hashlib
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from layer8.crypto.x509 import self_signed
from layer8.net.entries import listening
from layer8.net.flow import CHUNK, Link
from layer8.net.leg import Leg
from layer8.net.pipes import PipePool
from layer8.net.pump import HAVE_SPLICE, Pump
from tests import opened

P = ParamSpec("P")
T = TypeVar("T")
End = tuple[str, int, int]
"""Why a link ended, and the bytes it carried up and down."""

LONG = 20.0
RESET = struct.pack("ii", 1, 0)


def listener() -> socket.socket:
    """A listening socket on loopback."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


class Ended:
    """An owner that remembers how its link ended."""

    def __init__(self) -> None:
        self.reasons: list[End] = []
        self.waiting: Deferred[End] | None = None

    def ended(self, link: Link, reason: str) -> None:
        self.reasons.append((reason, link.bytes_up, link.bytes_down))
        if self.waiting is not None:
            waiting, self.waiting = self.waiting, None
            waiting.callback(self.reasons[-1])

    def wait(self) -> Deferred[End]:
        self.waiting = Deferred()
        if self.reasons:
            self.waiting.callback(self.reasons[-1])
        return self.waiting


def send_all(sock: socket.socket, data: bytes, pace: int | None = None) -> None:
    view = memoryview(data)
    while view:
        sent = sock.send(view[:pace] if pace else view)
        view = view[sent:]
        if pace:
            time.sleep(0.0005)


def read_all(sock: socket.socket, pace: int | None = None) -> bytes:
    parts: list[bytes] = []
    while True:
        data = sock.recv(pace or 1 << 18)
        if not data:
            return b"".join(parts)
        parts.append(data)
        if pace:
            time.sleep(0.0005)


def in_thread(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Deferred[T]:
    return deferToThread(call, *arguments, **named)


class RelayCase(TestCase):
    """A relay of one pump; `pair()` gives a client and a backend socket that it joins."""

    splice = HAVE_SPLICE
    timeout = 60

    def setUp(self) -> None:
        if self.splice and not HAVE_SPLICE:
            raise SkipTest("this system has no os.splice")
        from twisted.internet import reactor

        self.before = opened.descriptors()
        self.pump = Pump(reactor, splice=self.splice)
        self.pump.start()
        self.front = listener()
        listening(self.front)
        self.back = listener()
        self.back.settimeout(LONG)
        self.target = (socket.AF_INET, self.back.getsockname())
        self.owners: list[Ended] = []
        self.links: list[Link] = []
        self.accepting = self.pump.listen(self.front, self.accepted)
        self.open: list[socket.socket] = []

    def tearDown(self) -> None:
        self.accepting.close()
        self.pump.stop()
        self.back.close()
        for sock in self.open:
            sock.close()
        self.assertEqual(opened.left(self.before), [], "descriptors left open")
        self.assertEqual(self.pump.failures, 0)
        self.assertEqual(self.pump.links, 0)
        self.assertEqual(self.pump.pipes.used, 0)

    def accepted(self, fd: int, peer: object) -> None:
        self.pump.dial(self.target, lambda new, error: self.joined(fd, new, error))

    def joined(self, fd: int, new: int, error: OSError | None) -> None:
        if error is not None:
            self.pump.close_fd(fd)
            return
        owner = Ended()
        self.owners.append(owner)
        self.links.append(self.pump.join(fd, new, owner))

    def dial(self) -> tuple[socket.socket, Any]:
        client = socket.create_connection(self.front.getsockname(), LONG)
        client.settimeout(LONG)
        backend, _ = self.back.accept()
        backend.settimeout(LONG)
        self.open += [client, backend]
        return client, backend

    async def pair(self) -> tuple[socket.socket, Any]:
        client, backend = await in_thread(self.dial)
        while not self.owners:
            await in_thread(time.sleep, 0.001)
        return client, backend

    async def both_ways(
        self, size_up: int, size_down: int, *, pace_up: int | None = None, pace_down: int | None = None
    ) -> End:
        """Send both ways at once and compare; ends with both halves closed."""
        client, backend = await self.pair()
        up = random.Random(size_up).randbytes(size_up)
        down = random.Random(size_down + 1).randbytes(size_down)

        def send(sock: socket.socket, data: bytes, pace: int | None) -> None:
            send_all(sock, data, pace)
            sock.shutdown(socket.SHUT_WR)

        sending = [in_thread(send, client, up, pace_up), in_thread(send, backend, down, pace_down)]
        got_up, got_down = await gatherResults(
            [
                in_thread(read_all, backend, pace_up and pace_up * 2),
                in_thread(read_all, client, pace_down and pace_down * 2),
            ]
        )
        await gatherResults(sending)
        self.assertEqual(hashlib.sha256(got_up).digest(), hashlib.sha256(up).digest())
        self.assertEqual(hashlib.sha256(got_down).digest(), hashlib.sha256(down).digest())
        return await self.owners[-1].wait()


class PumpTests(RelayCase):
    async def test_duplex_fast(self) -> None:
        ended = await self.both_ways(24 << 20, 17 << 20)
        self.assertEqual(ended, ("done", 24 << 20, 17 << 20))
        if self.splice:
            self.assertGreater(self.pump.spliced, 20 << 20)
        else:
            self.assertEqual(self.pump.spliced, 0)

    async def test_duplex_slow_one_way(self) -> None:
        await self.both_ways(6 << 20, 300_000, pace_down=1000)

    async def test_duplex_tiny(self) -> None:
        await self.both_ways(997, 1, pace_up=1, pace_down=1)

    async def test_sizes_about_the_chunk(self) -> None:
        for size in (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, (1 << 20) - 1, (1 << 20) + 1):
            ended = await self.both_ways(size, size + 1)
            self.assertEqual(ended[1:], (size, size + 1))
            self.owners.clear()

    async def test_many_at_once(self) -> None:
        def one(number: int) -> bool:
            data = random.Random(number).randbytes(1 << 20)
            client = socket.create_connection(self.front.getsockname(), LONG)
            client.settimeout(LONG)
            with client:
                sender = threading.Thread(target=send_all, args=(client, data))
                sender.start()
                got = b""
                while len(got) < len(data):
                    part = client.recv(1 << 16)
                    if not part:
                        break
                    got += part
                sender.join()
            return got == data

        def echo(sock: socket.socket) -> None:
            with sock:
                while data := sock.recv(1 << 16):
                    sock.sendall(data)

        def serve() -> None:
            threads = []
            for _ in range(16):
                sock, _ = self.back.accept()
                threads.append(threading.Thread(target=echo, args=(sock,)))
                threads[-1].start()
            for thread in threads:
                thread.join()

        serving = in_thread(serve)
        results = await gatherResults([in_thread(one, number) for number in range(16)])
        await serving
        self.assertEqual(results, [True] * 16)

    async def test_half_close_by_the_client(self) -> None:
        """A request that ends with its half of the connection still gets its whole answer."""
        client, backend = await self.pair()

        def ask() -> bytes:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            return read_all(client)

        def answer() -> None:
            question = read_all(backend)
            time.sleep(0.05)
            backend.sendall(b"answer to " + question)
            backend.close()

        asking = in_thread(ask)
        await in_thread(answer)
        self.assertEqual(await asking, b"answer to question")
        self.assertEqual(await self.owners[0].wait(), ("done", 8, 18))

    async def test_half_close_by_the_backend(self) -> None:
        client, backend = await self.pair()

        def serve() -> bytes:
            backend.sendall(b"greeting")
            backend.shutdown(socket.SHUT_WR)
            return read_all(backend)

        def visit() -> bytes:
            greeting = read_all(client)
            time.sleep(0.05)
            client.sendall(b"x" * 300_000)
            client.close()
            return greeting

        serving = in_thread(serve)
        self.assertEqual(await in_thread(visit), b"greeting")
        self.assertEqual(await serving, b"x" * 300_000)

    async def test_tails(self) -> None:
        """The last bytes before a close arrive, however the turns fall."""
        for number in range(20):
            client, backend = await self.pair()
            data = random.Random(number).randbytes(300_000 + number * 7919)

            def serve(backend: socket.socket = backend, data: bytes = data) -> None:
                backend.sendall(data)
                backend.close()

            serving = in_thread(serve)
            got = await in_thread(read_all, client)
            await serving
            client.close()
            self.assertEqual(len(got), len(data))
            self.assertEqual(got, data)
            await self.owners[-1].wait()
            self.owners.clear()

    async def test_reset_passes_as_reset(self) -> None:
        client, backend = await self.pair()

        def reset() -> None:
            backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            backend.close()

        await in_thread(reset)
        with self.assertRaises(ConnectionResetError):
            await in_thread(client.recv, 10)
        self.assertEqual((await self.owners[0].wait())[0], "reset")

    async def test_reset_by_the_client_with_bytes_stuck(self) -> None:
        """A client that resets while its download is stuck frees everything."""
        client, backend = await self.pair()

        def flood() -> None:
            backend.settimeout(0.5)
            try:
                while True:
                    backend.send(b"z" * 65536)
            except (TimeoutError, OSError):
                return

        await in_thread(flood)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        self.assertEqual((await self.owners[0].wait())[0], "reset")
        self.assertEqual(self.pump.pipes.used, 0)

    async def test_bytes_before_a_reset_are_delivered(self) -> None:
        client, backend = await self.pair()

        def serve() -> None:
            backend.sendall(b"y" * 100_000)
            time.sleep(0.1)
            backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            backend.close()

        def visit() -> tuple[int, bool]:
            got = 0
            try:
                while data := client.recv(65536):
                    got += len(data)
            except ConnectionResetError:
                return got, True
            return got, False

        serving = in_thread(serve)
        self.assertEqual(await in_thread(visit), (100_000, True))
        await serving

    async def test_early_answer_to_a_long_upload(self) -> None:
        """A backend that answers and stops reading: the answer arrives although the upload cannot."""
        client, backend = await self.pair()

        def serve() -> None:
            backend.recv(10)
            backend.sendall(b"413")
            backend.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            backend.close()

        def visit() -> bytes:
            got = b""
            try:
                client.sendall(b"u" * 10)
                got = client.recv(3)
                client.sendall(b"u" * 200_000)
            except OSError:
                pass
            return got

        serving = in_thread(serve)
        self.assertEqual(await in_thread(visit), b"413")
        await serving
        client.close()
        await self.owners[0].wait()

    async def test_slow_reader_stops_the_sender(self) -> None:
        """Nothing grows: what a stuck direction holds is one chunk or one pipe."""
        client, backend = await self.pair()

        def flood() -> int:
            backend.settimeout(1.0)
            sent = 0
            try:
                while True:
                    sent += backend.send(b"z" * 65536)
            except TimeoutError:
                return sent

        sent = await in_thread(flood)
        self.assertLess(sent, 64 << 20)
        flow = self.links[0].down
        self.assertLessEqual(flow.held + len(flow.pending or b""), 1 << 20)
        backend.close()
        got = await in_thread(read_all, client)
        self.assertEqual(len(got), sent)
        client.close()

    async def test_no_spin_when_idle(self) -> None:
        """A joined pair that waits costs no processor time, in each of its states."""
        client, backend = await self.pair()
        states: list[Callable[[], None]] = [
            lambda: None,
            lambda: client.sendall(b"q"),
            lambda: client.shutdown(socket.SHUT_WR),
        ]
        for step in states:
            await in_thread(step)
            await in_thread(time.sleep, 0.05)
            before = time.thread_time()
            await in_thread(time.sleep, 0.3)
            self.assertLess(time.thread_time() - before, 0.05)
        backend.close()
        client.close()
        await self.owners[0].wait()

    async def test_no_spin_when_stuck(self) -> None:
        client, backend = await self.pair()
        backend.setblocking(False)

        def fill() -> None:
            for _ in range(300):
                try:
                    while True:
                        backend.send(b"z" * 65536)
                except BlockingIOError:
                    time.sleep(0.001)

        await in_thread(fill)
        before = time.thread_time()
        await in_thread(time.sleep, 0.3)
        self.assertLess(time.thread_time() - before, 0.05)
        backend.close()
        client.close()
        await self.owners[0].wait()

    async def test_refused_backend(self) -> None:
        self.back.close()
        client = await in_thread(socket.create_connection, self.front.getsockname(), LONG)
        self.open.append(client)
        client.settimeout(LONG)
        self.assertEqual(await in_thread(client.recv, 1), b"")

    async def test_idle_and_half_closed_are_swept(self) -> None:
        now = [1000.0]
        self.pump._clock = lambda: now[0]
        client, backend = await self.pair()
        first = self.owners[0]
        now[0] += self.pump.idle - 1
        self.pump.sweep()
        self.assertEqual(first.reasons, [])
        now[0] += 2
        self.pump.sweep()
        self.assertEqual(first.reasons[0][0], "idle")
        self.owners.clear()
        client, backend = await self.pair()
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(backend.recv, 1), b"")
        self.pump.sweep()
        self.assertEqual(self.owners[0].reasons, [])
        now[0] += self.pump.half_closed + 1
        self.pump.sweep()
        self.assertEqual(self.owners[0].reasons[0][0], "half_closed")

    async def test_kill_resets_both(self) -> None:
        client, backend = await self.pair()
        self.links[0].close()
        self.links[0].close()
        for sock in (client, backend):
            with self.assertRaises(ConnectionResetError):
                await in_thread(sock.recv, 1)
        self.assertEqual([reason for reason, _, _ in self.owners[0].reasons], ["killed"])

    async def test_stale_events_do_no_harm(self) -> None:
        """Descriptor numbers are used again at once; nothing may be lost or mixed up."""

        def burst(count: int) -> int | None:
            for number in range(count):
                client = socket.create_connection(self.front.getsockname(), LONG)
                client.settimeout(LONG)
                with client:
                    client.sendall(b"%d" % number)
                    if client.recv(100) != b"%d" % number:
                        return number
            return None

        def serve(count: int) -> None:
            for _ in range(count):
                sock, _ = self.back.accept()
                with sock:
                    sock.sendall(sock.recv(100))

        serving = in_thread(serve, 900)
        self.assertEqual(await gatherResults([in_thread(burst, 300) for _ in range(3)]), [None] * 3)
        await serving


class CopyTests(PumpTests):
    """The same without splice, as on other systems."""

    splice = False


class StarvedPoolTests(RelayCase):
    """When every pipe is lent, bytes are copied."""

    async def test_copies_when_the_pool_is_empty(self) -> None:
        self.pump.pipes.most = 0
        ended = await self.both_ways(5 << 20, 5 << 20)
        self.assertEqual(ended[0], "done")
        self.assertEqual(self.pump.spliced, 0)


class PoolTests(TestCase):
    def test_lends_no_more_than_it_may(self) -> None:
        pool = PipePool(2)
        lent = [pipe for pipe in (pool.borrow(), pool.borrow(), pool.borrow()) if pipe is not None]
        self.assertEqual(len(lent), 2)
        pool.give_back(lent[0])
        self.assertIs(pool.borrow(), lent[0])
        os.write(lent[1].write, b"left")
        pool.give_back(lent[1], empty=False)
        with self.assertRaises(OSError):
            os.fstat(lent[1].read)
        pool.give_back(lent[0])
        pool.close()
        self.assertEqual(pool.used, 0)


class LegTests(RelayCase):
    """The same relay with TLS towards the backend."""

    def setUp(self) -> None:
        super().setUp()
        key, certificate = self_signed(("localhost",))
        self.server = SSL.Context(SSL.TLS_METHOD)
        from OpenSSL import crypto

        self.server.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, key))
        self.server.use_certificate(crypto.load_certificate(crypto.FILETYPE_PEM, certificate))
        self.client = SSL.Context(SSL.TLS_METHOD)
        self.errors: list[Exception] = []

    def joined(self, fd: int, new: int, error: OSError | None) -> None:
        def shaken(leg: Leg, error: Exception | None) -> None:
            if error is not None:
                self.errors.append(error)
                self.pump.close_fd(fd)
                return
            owner = Ended()
            self.owners.append(owner)
            self.links.append(self.pump.join(fd, new, owner, second_tls=leg))

        Leg(self.pump, new, self.client, client=True, done=shaken).start()

    def dial(self) -> tuple[socket.socket, Any]:
        client = socket.create_connection(self.front.getsockname(), LONG)
        client.settimeout(LONG)
        raw, _ = self.back.accept()
        raw.setblocking(True)
        secure = Blocking(self.server, raw)
        self.open += [client, raw]
        return client, secure

    async def test_duplex(self) -> None:
        client, backend = await self.pair()
        up, down = random.Random(1).randbytes(3 << 20), random.Random(2).randbytes(5 << 20)

        def upload() -> None:
            client.sendall(up)
            client.shutdown(socket.SHUT_WR)

        def visit() -> bytes:
            sender = threading.Thread(target=upload)
            sender.start()
            got = read_all(client)
            sender.join()
            return got

        visiting = in_thread(visit)
        got_up = await in_thread(backend.exchange, down)
        self.assertEqual(await visiting, down)
        self.assertEqual(got_up, up)
        self.assertEqual(await self.owners[0].wait(), ("done", len(up), len(down)))

    async def test_half_close_crosses_tls(self) -> None:
        client, backend = await self.pair()

        def ask() -> bytes:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            return read_all(client)

        asking = in_thread(ask)
        self.assertEqual(await in_thread(backend.read_to_end), b"question")
        await in_thread(time.sleep, 0.05)
        await in_thread(backend.finish, b"late answer")
        self.assertEqual(await asking, b"late answer")

    async def test_truncation_is_a_reset(self) -> None:
        client, backend = await self.pair()
        await in_thread(backend.tls.sendall, b"first half")
        self.assertEqual(await in_thread(client.recv, 100), b"first half")
        backend.raw.shutdown(socket.SHUT_RDWR)
        with self.assertRaises(ConnectionResetError):
            await in_thread(client.recv, 1)

    async def test_not_tls_at_all(self) -> None:
        client = await in_thread(socket.create_connection, self.front.getsockname(), LONG)
        self.open.append(client)
        raw, _ = await in_thread(self.back.accept)
        self.open.append(raw)
        raw.sendall(b"HTTP/1.0 400 no\r\n\r\n")
        client.settimeout(LONG)
        self.assertEqual(await in_thread(client.recv, 1), b"")
        self.assertEqual(len(self.errors), 1)


class Blocking:
    """A blocking TLS server on a socket that can send and receive at the same time."""

    def __init__(self, context: SSL.Context, raw: socket.socket) -> None:
        self.raw = raw
        self.tls = SSL.Connection(context, raw)
        self.tls.set_accept_state()
        self.tls.do_handshake()

    def read_to_end(self) -> bytes:
        got = b""
        while True:
            try:
                got += self.tls.recv(65536)
            except SSL.ZeroReturnError:
                return got

    def finish(self, data: bytes) -> None:
        self.tls.sendall(data)
        self.tls.shutdown()

    def exchange(self, data: bytes) -> bytes:
        """Send `data` and receive to the end at once, in one thread."""
        self.raw.setblocking(False)
        got, view, closed, done = b"", memoryview(data), False, False
        while not (done and closed):
            select.select([self.raw], [] if done else [self.raw], [], 1.0)
            if not done:
                try:
                    if view:
                        view = view[self.tls.send(view[:16384]) :]
                    else:
                        self.tls.shutdown()
                        done = True
                except (SSL.WantReadError, SSL.WantWriteError):
                    pass
            if not closed:
                try:
                    got += self.tls.recv(65536)
                except SSL.ZeroReturnError:
                    closed = True
                except SSL.WantReadError:
                    pass
        return got
