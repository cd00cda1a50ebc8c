"""WebSocket frames: cut anywhere, full of noise, too big, too many, too slow, and gone."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Callable
from secrets import token_bytes
from threading import Event, Thread
from typing import Any

from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.config.sections import ControlConfig
from layer8.control.client import connect
from layer8.control.conversation import Conversation
from layer8.control.limits import DEAD, MESSAGE, SERVER
from layer8.control.table import Table
from layer8.control.websocket import (
    CLOSE_TIME,
    PING,
    PULSE,
    WRITE_BUFFER,
    ClientSocket,
    ConnectingRequest,
    Pulse,
    ServerSocket,
    Socket,
)
from layer8.core.errors import ConfigError, Refused, RemoteProtocolError, TimedOut, Unavailable
from tests.control.rig import Raw, Rows, Told, pause, raises, rig, until
from tests.control.test_http import UPGRADE

WAIT = 30.0
"""Seconds for what is there at once, but on a busy machine."""
HELLO = UPGRADE.replace(b"/ws", b"/") + b"\r\n"


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, mask: bytes | None = None, rsv: int = 0) -> bytes:
    """Write one frame as RFC 6455 section 5.2 draws it, the mask being a client's."""
    size = len(payload)
    first = (fin << 7) | (rsv << 4) | opcode
    bit = 0x80 if mask is not None else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if mask is None:
        return head + payload
    return head + mask + bytes(octet ^ mask[place % 4] for place, octet in enumerate(payload))


def taken(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Read the unmasked frames that are whole as (opcode, payload), and give the bytes behind them."""
    found, start = [], 0
    while start + 2 <= len(data):
        size, at = data[start + 1] & 0x7F, start + 2
        longer = {126: 2, 127: 8}.get(size, 0)
        if longer:
            size, at = int.from_bytes(data[at : at + longer], "big"), at + longer
        if at + size > len(data):
            break
        found.append((data[start] & 15, data[at : at + size]))
        start = at + size
    return found, data[start:]


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Read unmasked frames as (opcode, payload)."""
    found, rest = taken(data)
    assert not rest, rest
    return found


def heard(end: socket.socket, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Read messages until there are enough."""
    came: list[Any] = []
    rest = b""
    while not enough(came):
        part = end.recv(1 << 18)
        if not part:
            break
        found, rest = taken(rest + part)
        came += [json.loads(payload) for opcode, payload in found if opcode == 1]
    return came


def counted(came: list[Any]) -> int:
    """Count the events among messages, those too that were dropped."""
    told = [message["params"] for message in came if "params" in message]
    return sum(event["data"]["count"] if event["name"] == "event.lost" else 1 for event in told)


@define(eq=False)
class Kept:
    """An owner that keeps what it was told."""

    messages: list[bytes] = field(factory=list)
    socket: Socket | None = None
    why: list[str] = field(factory=list)
    writables: int = 0

    def opened(self, socket: Socket) -> None:
        self.socket = socket

    def received(self, message: bytes) -> None:
        self.messages.append(message)

    def writable(self) -> None:
        self.writables += 1

    def lost(self, reason: str) -> None:
        self.why.append(reason)


class Transport(StringTransport):
    """A transport in memory that can be dropped."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


def opened(owner: Any, clock: Clock | None = None, message: int = MESSAGE) -> tuple[ServerSocket, Transport]:
    """Make the accepting end of a connection whose upgrade is done."""
    clock = clock or Clock()
    end = ServerSocket(owner, Pulse(clock, clock.seconds), message, None)
    transport = Transport()
    made: Any = end
    made.makeConnection(transport)
    end.dataReceived(HELLO)
    transport.clear()
    return end, transport


MASK = b"\x01\x80\xff\x7e"
ODD = st.sampled_from([0, 1, 2, 124, 125, 126, 127, 500, 3000])
PIECES = st.lists(
    st.one_of(
        ODD.map(lambda size: [("text", b"t" * size)]),
        st.lists(ODD, min_size=2, max_size=4).map(lambda sizes: [("part", b"p" * size) for size in sizes]),
        st.just([("ping", b"are you there")]),
        st.just([("pong", b"")]),
    ),
    max_size=8,
)


def written(pieces: list[list[tuple[str, bytes]]]) -> tuple[bytes, list[bytes]]:
    """Write what a client sends, and say which messages these are; control frames stand between fragments too."""
    data, messages = b"", []
    for piece in pieces:
        for place, (kind, payload) in enumerate(piece):
            if kind == "part":
                fin = place == len(piece) - 1
                data += frame(payload, 0 if place else 1, fin=fin, mask=MASK) + frame(b"", 10, mask=MASK)
            else:
                data += frame(payload, {"text": 1, "ping": 9, "pong": 10}[kind], mask=MASK)
        if piece[0][0] in ("text", "part"):
            messages.append(b"".join(payload for _, payload in piece))
    return data, messages


class FrameTests(SynchronousTestCase):
    """One socket in memory."""

    @given(PIECES, st.lists(st.integers(min_value=0, max_value=12_000), max_size=12))
    def test_any_cut(self, pieces: list[list[tuple[str, bytes]]], cuts: list[int]) -> None:
        data, messages = written(pieces)
        kept = Kept()
        end, transport = opened(kept)
        at = 0
        for cut in [*sorted(cuts), len(data)]:
            if cut > at:
                end.dataReceived(data[at:cut])
                at = cut
        self.assertEqual(kept.messages, messages)
        pongs = [payload for opcode, payload in frames(transport.value()) if opcode == 10]
        self.assertEqual(pongs, [b"are you there"] * sum(piece[0][0] == "ping" for piece in pieces))

    @given(st.lists(st.binary(max_size=300), max_size=6))
    def test_any_noise(self, noise: list[bytes]) -> None:
        kept = Kept()
        end, _ = opened(kept, message=256)
        for part in noise:
            end.dataReceived(part)
        self.assertLess(len(end.data), 400)
        self.assertTrue(all(len(message) <= 256 for message in kept.messages))
        end.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(len(kept.why), 1)

    @given(st.binary(max_size=400))
    def test_noise_instead_of_a_servers_answer(self, noise: bytes) -> None:
        clock, kept = Clock(), Kept()
        end = ClientSocket(kept, Pulse(clock, clock.seconds), MESSAGE, ConnectingRequest("localhost", 80, "/"))
        made: Any = end
        transport = Transport()
        made.makeConnection(transport)
        end.dataReceived(noise)
        end.dataReceived(b"\r\n\r\n")
        self.assertIsNone(kept.socket)
        self.assertTrue(transport.aborted or transport.disconnecting)

    def test_a_head_without_an_end(self) -> None:
        clock, kept = Clock(), Kept()
        end = ClientSocket(kept, Pulse(clock, clock.seconds), MESSAGE, ConnectingRequest("localhost", 80, "/"))
        made: Any = end
        transport = Transport()
        made.makeConnection(transport)
        for _ in range(40):
            end.dataReceived(b"X: " + b"x" * 1000 + b"\r\n")
        self.assertTrue(transport.aborted)

    def closes(self, data: bytes, *, owner: Any = None) -> int:
        end, transport = opened(owner or Kept())
        end.dataReceived(data)
        opcode, payload = frames(transport.value())[-1]
        self.assertEqual(opcode, 8)
        return int(struct.unpack("!H", payload[:2])[0])

    def conversation(self) -> Conversation:
        table = Table(lambda: 0.0)
        table.add(Rows())
        clock = Clock()
        return Conversation(pulse=Pulse(clock, clock.seconds), rules=SERVER, table=table)

    def test_why_a_connection_is_closed(self) -> None:
        for data, code in (
            (frame(b"x", 2, mask=MASK), 1003),
            (frame(b"x" * (MESSAGE + 1), mask=MASK), 1009),
            (frame(b"x" * MESSAGE, fin=False, mask=MASK) + frame(b"x", 0, mask=MASK), 1009),
            (frame(b"x"), 1002),
            (frame(b"x", 3, mask=MASK), 1002),
            (frame(b"x", 0, mask=MASK), 1002),
            (frame(b"x", rsv=4, mask=MASK), 1002),
            (frame(b"x" * 126, 9, mask=MASK), 1002),
            (frame(b"", 8, mask=MASK), 1000),
            (b"\x81\xfe\x00\x05" + MASK + b"xxxxx", 1002),
        ):
            self.assertEqual(self.closes(data), code, data[:20])

    def test_text_that_is_no_utf_8(self) -> None:
        for text in (b"\xff", b'{"x":"\xed\xa0\x80"}', b"\xc0\xaf", b"\xf5\x80\x80\x80"):
            self.assertEqual(self.closes(frame(text, mask=MASK), owner=self.conversation()), 1007)

    def test_twenty_unreadable_messages_in_a_row(self) -> None:
        self.assertEqual(self.closes(frame(b"x", mask=MASK) * 20, owner=self.conversation()), 1008)
        end, transport = opened(self.conversation())
        end.dataReceived((frame(b"[", mask=MASK) * 19 + frame(b'{"jsonrpc":"2.0","method":"x"}', mask=MASK)) * 3)
        answers = [json.loads(payload) for opcode, payload in frames(transport.value()) if opcode == 1]
        self.assertEqual([answer["error"]["code"] for answer in answers], [-32700] * 57)

    def test_nothing_is_taken_after_our_close(self) -> None:
        kept = Kept()
        end, _ = opened(kept)
        end.dataReceived(frame(b"one", mask=MASK))
        end.end("done")
        end.dataReceived(frame(b"two", mask=MASK) + frame(b"three", 9, mask=MASK))
        self.assertEqual(kept.messages, [b"one"])
        self.assertFalse(end.send(b"late"))

    def test_a_peer_that_does_not_answer_our_close(self) -> None:
        clock, kept = Clock(), Kept()
        end, transport = opened(kept, clock)
        end.end("done")
        self.assertFalse(transport.aborted)
        clock.advance(CLOSE_TIME)
        self.assertTrue(transport.aborted)
        end.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((kept.why, clock.getDelayedCalls()), (["done"], []))

    def test_sizes_of_what_is_sent(self) -> None:
        end, transport = opened(Kept())
        for size in (0, 125, 126, 65535, 65536, 70_000):
            transport.clear()
            self.assertTrue(end.send(b"x" * size))
            self.assertEqual(transport.value(), frame(b"x" * size))

    def test_what_a_client_sends_is_masked(self) -> None:
        clock, kept = Clock(), Kept()
        end = ClientSocket(kept, Pulse(clock, clock.seconds), MESSAGE, ConnectingRequest("localhost", 80, "/"))
        made: Any = end
        transport = Transport()
        made.makeConnection(transport)
        end.state = 3  # open
        seen = set()
        for _ in range(4):
            transport.clear()
            end.send(b"hello " * 50)
            data = transport.value()
            mask = data[4:8]
            seen.add(mask)
            self.assertEqual(data, frame(b"hello " * 50, mask=mask))
        self.assertGreater(len(seen), 1)

    def test_pings_and_the_end_of_silence(self) -> None:
        clock = Clock()
        owner = self.conversation()
        owner.pulse = Pulse(clock, clock.seconds)
        end, transport = opened(owner, clock)
        end.pulse = owner.pulse
        owner.pulse.add(end)
        pings = []
        for _ in range(80):
            clock.advance(1.0)
            pings += [clock.seconds() for opcode, _ in frames(transport.value()) if opcode == 9]
            transport.clear()
            if clock.seconds() == 22:
                end.dataReceived(frame(b"", 10, mask=MASK))
            if transport.aborted:
                break
        self.assertEqual((owner.reason, clock.seconds()), ("silent", 22 + DEAD))
        self.assertTrue(PING <= pings[0] <= PING + PULSE + 1, pings)
        self.assertEqual(len(pings), 3)

    def test_an_owner_without_a_session_loses_a_dead_peer_too(self) -> None:
        clock, kept = Clock(), Kept()
        end, transport = opened(kept, clock)
        end.dataReceived(frame(b"hello", mask=MASK))
        for _ in range(int(DEAD + PULSE) + 2):
            clock.advance(1.0)
        self.assertTrue(transport.aborted)
        end.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((kept.why, clock.getDelayedCalls()), (["silent"], []))

    def test_a_conversation_with_a_talkative_peer_lives(self) -> None:
        clock = Clock()
        owner = self.conversation()
        owner.pulse = Pulse(clock, clock.seconds)
        end, transport = opened(owner, clock)
        for _ in range(20):
            clock.advance(10)
            end.dataReceived(frame(b"", 9, mask=MASK))
        self.assertEqual((owner.reason, transport.aborted), ("", False))


class SlowReaderTests(TestCase):
    """A peer that does not read."""

    async def stalled(self, made: Any) -> tuple[socket.socket, Conversation]:
        """Open a connection whose other end never reads, and give both ends."""

        def open_it() -> socket.socket:
            end = socket.socket()
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            end.connect(("127.0.0.1", made.port("tcp")))
            end.sendall(UPGRADE + f"Authorization: Bearer {made.service.keyring.cookie}\r\n\r\n".encode())
            end.settimeout(WAIT)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += end.recv(1)
            return end

        end = await deferToThread(open_it)
        self.addCleanup(end.close)
        return end, made.service.conversations()[0]

    async def test_one_mebibyte_and_no_more(self) -> None:
        made = rig(self)
        _, served = await self.stalled(made)
        sent = 0
        while served.notify("x", {"x": "y" * 10_000}):
            sent += 10_000
            if sent % 100_000 == 0:
                await pause(made.reactor, 0)
        await until(made.reactor, lambda: served.reason)
        self.assertEqual(served.reason, "slow_reader")
        self.assertTrue(WRITE_BUFFER // 2 < sent < WRITE_BUFFER + 8_000_000, sent)

    async def test_what_waits_in_us_is_what_counts(self) -> None:
        made = rig(self)
        _, served = await self.stalled(made)
        transport: Any = served._socket.transport  # type: ignore[union-attr]
        most = 0
        while served.notify("x", {"x": "y" * 1000}):
            most = max(most, len(transport.dataBuffer) - transport.offset + transport._tempDataLen)
        self.assertTrue(WRITE_BUFFER - 70_000 < most <= WRITE_BUFFER + 2000, most)

    async def test_events_are_dropped_and_counted(self) -> None:
        """While nothing is read nothing grows, and the reader is told what it missed."""
        made = rig(self)
        end, served = await self.stalled(made)
        call = {"jsonrpc": "2.0", "id": 1, "method": "events.subscribe", "params": {"names": ["test.read"]}}
        end.sendall(frame(json.dumps(call).encode(), mask=token_bytes(4)))
        await until(made.reactor, lambda: made.table.wanted("test.read"))
        for turn in range(200):
            for count in range(60):
                made.table.publish("test.read", Told("x" * 500, turn * 60 + count))
            await pause(made.reactor, 0)
        self.assertEqual(served.reason, "")
        self.assertLessEqual(len(served.subscriber()), 256)
        transport: Any = served._socket.transport  # type: ignore[union-attr]
        self.assertLess(len(transport.dataBuffer) - transport.offset + transport._tempDataLen, WRITE_BUFFER / 2)
        came_in = await deferToThread(heard, end, lambda came: counted(came) >= 200 * 60)
        self.assertEqual(came_in[0]["result"], {"subscription": 1})
        told = [message["params"] for message in came_in[1:]]
        lost = sum(event["data"]["count"] for event in told if event["name"] == "event.lost")
        came = [event["data"]["count"] for event in told if event["name"] == "test.read"]
        self.assertGreater(lost, 0)
        self.assertEqual(lost + len(came), 200 * 60)
        self.assertEqual(came, sorted(came))
        self.assertEqual([event["seq"] for event in told], list(range(1, len(told) + 1)))


class FloodTests(TestCase):
    """One caller that wants everything."""

    async def test_ten_thousand_calls_at_once(self) -> None:
        """Another caller's ping is answered within as many turns of the reactor as without the flood, give or take."""
        made = rig(self)
        calm = await made.client("tcp")
        turns = 0
        counting = True

        def turn() -> None:
            nonlocal turns
            turns += 1
            if counting:
                made.reactor.callLater(0, turn)

        async def ping() -> int:
            before = turns
            await calm.call("rpc.ping")
            return turns - before

        def still() -> None:
            nonlocal counting
            counting = False

        turn()
        self.addCleanup(still)
        quiet = max([await ping() for _ in range(20)])
        call = b'{"jsonrpc":"2.0","id":%d,"method":"test.wait","params":{}}'
        flood = b"".join(frame(call % number, mask=b"\0\0\0\0") for number in range(10_000))

        def pour() -> list[dict[str, Any]]:
            end = Raw(made.port("tcp")).socket
            end.sendall(UPGRADE + b"\r\n")
            data = b""
            while not data.endswith(b"\r\n\r\n"):
                data += end.recv(1)
            pouring = Thread(target=end.sendall, args=(flood,))
            pouring.start()
            answers = heard(end, lambda came: len(came) >= 10_000 - 64)
            pouring.join()
            end.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                answers += heard(end, bool)
            end.close()
            return answers

        pouring = deferToThread(pour)
        loud = []
        while not pouring.called:
            loud.append(await ping())
            await pause(made.reactor, 0.01)
        answers = await pouring
        self.assertEqual(len(made.rows.waiting), 64)
        self.assertEqual(len(answers), 10_000 - 64)
        self.assertEqual({answer["error"]["code"] for answer in answers}, {-32005})
        self.assertLessEqual(max(loud), quiet + 3, (quiet, loud))


class ClientTests(TestCase):
    """What a client makes of servers that are none."""

    async def server(self, *answers: bytes, close: bool = True) -> int:
        """Listen for one connection and answer with these bytes."""
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.addCleanup(listening.close)

        def serve() -> None:
            listening.settimeout(WAIT)
            end, _ = listening.accept()
            with end, contextlib.suppress(ConnectionError):
                end.settimeout(WAIT)
                end.recv(65536)
                self.asked.set()
                for answer in answers:
                    end.sendall(answer)
                if close:
                    end.shutdown(socket.SHUT_WR)
                while end.recv(65536):
                    pass  # until the client has closed

        self.asked = Event()
        self._serving = serving = deferToThread(serve)
        self.addCleanup(lambda: serving)
        return int(listening.getsockname()[1])

    async def failing(self, kind: type[Exception], *answers: bytes, close: bool = True, timeout: float = WAIT) -> str:
        from twisted.internet import reactor

        port = await self.server(*answers, close=close)
        error = await raises(kind, connect(reactor, f"ws://127.0.0.1:{port}", timeout=timeout))
        await self._serving
        self.assertNotIn("\n", str(error))
        return str(error)

    async def test_refusals(self) -> None:
        for code, kind in ((401, Refused), (403, Refused), (404, Unavailable), (500, Unavailable), (302, Unavailable)):
            text = await self.failing(kind, b"HTTP/1.1 %d Nonsense\x1b[31m\r\n\r\n" % code)
            self.assertNotIn("Nonsense", text)

    async def test_no_http_at_all(self) -> None:
        await self.failing(Unavailable, b"SSH-2.0-OpenSSH\r\n\r\n")
        await self.failing(Unavailable, b"\xff\xfe\r\n\r\n")
        await self.failing(Unavailable)

    async def test_a_wrong_accept(self) -> None:
        await self.failing(
            Unavailable,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        )

    async def test_silence(self) -> None:
        text = await self.failing(TimedOut, close=False, timeout=0.2)
        self.assertIn("0.2 s", text)

    async def test_nobody_listens(self) -> None:
        from twisted.internet import reactor

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            error = await raises(Unavailable, connect(reactor, f"ws://127.0.0.1:{port}"))
        self.assertIn("connection refused", str(error))
        error = await raises(Unavailable, connect(reactor, "unix:/nowhere/at/all.sock"))
        self.assertIn("no such file", str(error))

    async def test_a_server_without_our_subprotocol(self) -> None:
        made = rig(self)
        site = made.service.site("legacy", subprotocol=None, paths=("/legacy",))
        port = made.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"ws://127.0.0.1:{port.getHost().port}/legacy"
        await raises(RemoteProtocolError, connect(made.reactor, url))
        client = await connect(made.reactor, url, subprotocol=None)
        made.clients.append(client)
        self.assertEqual(await client.call("rpc.ping"), {})

    async def test_a_token_does_not_go_out_in_the_clear(self) -> None:
        from twisted.internet import reactor

        for url in ("ws://192.0.2.1", "ws://example.org:80/ws"):
            await raises(ConfigError, connect(reactor, url, token="secret"))

    async def test_urls(self) -> None:
        from twisted.internet import reactor

        for url in ("http://localhost", "unix:relative", "ws://", "ws://host:port", "wss://a@b", "ws://x/?y", ""):
            await raises(ConfigError, connect(reactor, url))

    async def test_a_connection_that_somebody_else_dialled(self) -> None:
        made = rig(self, config=ControlConfig(listen=("tls:0:interface=127.0.0.1",), names=("node.example",)))
        dialled = []

        async def dial(host: str, port: int) -> socket.socket:
            dialled.append((host, port))
            return await deferToThread(socket.create_connection, ("127.0.0.1", made.port("tls")))

        client = await connect(made.reactor, "wss://node.example:443", pin=made.identity.pin, dial=dial)
        made.clients.append(client)
        self.assertEqual((await client.call("rpc.ping"), dialled), ({}, [("node.example", 443)]))

    async def test_a_cancelled_connect_leaves_nothing(self) -> None:
        from twisted.internet import reactor

        port = await self.server(close=False)
        trying = Deferred.fromCoroutine(connect(reactor, f"ws://127.0.0.1:{port}"))
        await until(reactor, self.asked.is_set)
        trying.cancel()
        await raises(CancelledError, trying)
        await self._serving
