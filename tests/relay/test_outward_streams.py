"""The way out under real streams: two ends of a circuit joined by nothing, and a target on loopback."""

import hashlib
import os
import socket
from time import monotonic
from typing import Any

from twisted.internet.defer import Deferred

from layer8.relay.flow import Stream
from layer8.relay.outward import TTL
from layer8.relay.stream import Means, Streams
from layer8.relay.turn import Turn
from layer8.relay.wire import Address, Destroy, Open, Opened, Proto, Reason, datagram, read_datagram
from tests.relay.exit_peers import ExitCase
from tests.relay.test_outward_udp import Far


class Slot:
    """A link that always has room."""

    circ = 1
    queued = 0
    full = False

    def send(self, cmd: int, bodies: Any) -> None:
        raise AssertionError("the ends below seal for themselves")

    def close(self, reason: int) -> None:
        raise AssertionError("nobody closes it")


class End:
    """One end of a circuit whose cells arrive at the other in the next turn."""

    def __init__(self, reactor: Any) -> None:
        self.slot: Any = Slot()
        self.far: Streams | None = None
        self._reactor = reactor

    def seal(self, messages: list[bytes], tags: list[bytes]) -> bool:
        made = [os.urandom(16) for _ in messages]
        tags += made
        self._reactor.callLater(0, self._arrive, list(messages), made)
        return True

    def control(self, command: int, stream: int, data: bytes, more: bool, early: bool) -> None:
        raise AssertionError("streams only")

    def close(self, reason: Destroy) -> None:
        raise AssertionError("nothing is kept that long here")

    def _arrive(self, messages: list[bytes], tags: list[bytes]) -> None:
        if self.far is not None and not self.far.dead:
            self.far.took(messages, tags)


class Program:
    """A client's sink that remembers."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.pieces: list[bytes] = []
        self.answer: Opened | None = None
        self.told: list[object] = []

    def opened(self, opened: Opened) -> None:
        self.answer = opened

    def data(self, pieces: list[bytes]) -> None:
        self.pieces += pieces
        for piece in pieces:
            self.got += piece

    def ended(self) -> None:
        self.told.append("ended")

    def closed(self, reason: Reason) -> None:
        self.told.append(reason)

    def hold(self) -> None:
        self.told.append("hold")

    def go_on(self) -> None:
        self.told.append("go on")

    def without_waits(self) -> list[object]:
        return [what for what in self.told if what not in ("hold", "go on")]


class StreamsCase(ExitCase):
    def setUp(self) -> None:
        super().setUp()
        turn = Turn(lambda end: self.reactor.callLater(0, end))
        means = Means(turn, monotonic, self.reactor.callLater, os.urandom)
        near, far = End(self.reactor), End(self.reactor)
        self.client = Streams(near, means)
        self.served = Streams(far, means, asked=self.asked)
        near.far, far.far = self.served, self.client
        self.program = Program()
        self.ways: list[Deferred[None]] = []
        for streams in (self.client, self.served):
            self.addCleanup(lambda streams=streams: streams.lost(Destroy.NONE))  # type: ignore[misc]

    def asked(self, stream: Stream, target: Open) -> None:
        self.ways.append(Deferred.fromCoroutine(self.exit.serve(stream, self.account)))

    def open(self, port: int, host: str = "127.0.0.1", proto: Proto = Proto.TCP) -> Stream:
        return self.client.open(Open(proto, host, port), self.program)


class TcpTests(StreamsCase):
    async def test_much_both_ways_with_half_closes(self) -> None:
        target = self.target()
        up, down = os.urandom(6 << 20), os.urandom(5 << 20)

        def serve() -> bytes:
            target.sock.setblocking(True)
            target.sock.settimeout(20)
            far, _ = target.sock.accept()
            target.accepted.append(far)
            got = bytearray()
            while data := far.recv(1 << 16):  # all of it, and its end, before a word is said
                got += data
            far.sendall(down)
            far.shutdown(socket.SHUT_WR)
            return bytes(got)

        serving = Deferred.fromCoroutine(self.threaded(serve))
        stream = self.open(target.port)
        for at in range(0, len(up), 1 << 18):
            stream.write(up[at : at + (1 << 18)])
        stream.end()
        got = await serving
        self.assertEqual(hashlib.sha256(got).digest(), hashlib.sha256(up).digest())
        await self.until(lambda: self.program.without_waits())
        self.assertEqual(hashlib.sha256(self.program.got).digest(), hashlib.sha256(down).digest())
        await self.until(lambda: self.program.without_waits() == ["ended", Reason.DONE])
        self.assertEqual(self.program.answer, Opened(Address("127.0.0.1"), TTL))
        await self.until(lambda: not self.account._open)
        self.assertEqual((self.client.live, self.served.live), ({}, {}))
        self.assertEqual(self.account.moved, len(up) + len(down))

    async def test_a_program_that_is_full_holds_the_target_back(self) -> None:
        target = self.target()
        stream = self.open(target.port)
        await self.until(lambda: self.program.answer)
        await self.until(target.accept)
        stream.pause()
        far = target.accepted[0]
        sent, still = 0, 0
        while still < 20:
            try:
                sent += far.send(bytes(1 << 16))
                still = 0
            except BlockingIOError:
                still += 1
            await self.sleep()
        (served,) = self.served.live.values()
        self.assertTrue(served.held)
        self.assertLess(len(self.program.got), 1 << 20)
        self.assertLess(served.waits, 1 << 20)
        stream.resume()
        await self.until(lambda: len(self.program.got) == sent)
        stream.close()
        await self.until(lambda: not self.account._open)

    async def test_reasons(self) -> None:
        target = self.target()
        target.close()
        for host, port, wanted in (
            ("127.0.0.1", target.port, Reason.REFUSED),
            ("10.0.0.1", 80, Reason.POLICY),
            ("printer", 80, Reason.RESOLVE),
            ("", 80, Reason.RESOLVE),
        ):
            self.program = Program()
            self.open(port, host)
            await self.until(lambda: self.program.told)
            self.assertEqual(self.program.told, [wanted])
            self.assertIsNone(self.program.answer)
        await self.until(lambda: not self.served.live)

    async def test_a_target_that_breaks_off(self) -> None:
        target = self.target()
        self.open(target.port)
        await self.until(target.accept)
        await self.until(lambda: self.program.answer)
        target.accepted[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        target.accepted[0].close()
        await self.until(lambda: self.program.told == [Reason.RESET])

    async def test_a_stream_that_is_gone_when_the_connection_is_there(self) -> None:
        target = self.target()
        stream = self.open(target.port, "a.test")
        await self.until(lambda: self.named.receivers)
        stream.close(Reason.RESET)
        await self.until(lambda: not self.served.live)
        self.named.answer("127.0.0.1")
        await self.ways[0]
        await self.until(lambda: not self.account._open)
        self.assertEqual(self.program.told, [])

    async def test_the_circuit_ends(self) -> None:
        target = self.target()
        self.open(target.port)
        await self.until(target.accept)
        await self.until(lambda: self.program.answer)
        self.served.lost(Destroy.NONE)
        await self.until(lambda: not self.account._open)
        self.assertRaises(ConnectionResetError, target.accepted[0].recv, 1)


class UdpTests(StreamsCase):
    async def test_what_is_said_with_the_question_arrives(self) -> None:
        far = Far()
        self.addCleanup(far.sock.close)
        stream = self.open(far.port, proto=Proto.UDP)
        stream.write(datagram(Address(""), b"early"))
        await self.until(far.hear)
        self.assertEqual(far.got, [b"early"])
        far.answer(b"answer")
        await self.until(lambda: self.program.pieces)
        self.assertEqual(read_datagram(self.program.pieces[0]), (far.at, b"answer"))
        self.assertEqual(self.program.answer, Opened(Address("127.0.0.1"), TTL))
        stream.end()
        await self.until(lambda: self.program.told == [Reason.DONE])
        self.assertEqual(self.account._far, {})

    async def test_without_a_host(self) -> None:
        far = Far()
        self.addCleanup(far.sock.close)
        stream = self.open(0, "", Proto.UDP)
        stream.write(datagram(far.at, b"one"))
        await self.until(far.hear)
        self.assertEqual(self.program.answer, Opened(Address(""), TTL))
        stream.close()
        await self.until(lambda: not self.served.live)
