"""Messages of WebSockets, both ways, however they are cut; and transports that are joined within a process."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel.inner import NOBODY
from layer8.tunnel.joined import HELD, connector
from layer8.tunnel.messages import Found, Messages, frame, masked, read_close, write_close
from layer8.tunnel.passage import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Breach

MASK = b"\x01\x02\x03\x04"


def part(opcode: int, data: bytes, *, last: bool, mask: bytes = b"") -> bytes:
    """Write a frame that may not be the last of its message."""
    whole = bytearray(frame(opcode, data, mask))
    whole[0] = (0x80 if last else 0) | opcode
    return bytes(whole)


def hear(messages: Messages, data: bytes, cut: int) -> list[Found]:
    found: list[Found] = []
    for at in range(0, len(data), cut):
        found += messages.feed(data[at : at + cut])
    return found


class MessagesTests(SynchronousTestCase):
    """One direction."""

    @given(
        st.lists(st.tuples(st.sampled_from((BINARY, PING, PONG)), st.binary(max_size=120)), max_size=5),
        st.booleans(),
        st.integers(1, 50),
    )
    def test_any_cut(self, said: list[Found], client: bool, cut: int) -> None:
        data = b"".join(frame(opcode, text, MASK if client else b"") for opcode, text in said)
        self.assertEqual(hear(Messages(masked=client, most=1000), data, cut), said)

    def test_lengths(self) -> None:
        for size in (0, 1, 125, 126, 65_535, 65_536, 100_000):
            for mask in (b"", MASK):
                data = frame(BINARY, bytes(size), mask)
                self.assertEqual(hear(Messages(masked=bool(mask), most=100_000), data, 7777), [(BINARY, bytes(size))])

    def test_parts(self) -> None:
        data = part(TEXT, "gr\u00fc".encode()[:3], last=False) + frame(PING, b"?")
        data += part(CONTINUATION, "gr\u00fc".encode()[3:], last=False) + part(CONTINUATION, b"\xc3\x9fe", last=True)
        found = hear(Messages(masked=False, most=100), data, 3)
        self.assertEqual(found, [(PING, b"?"), (TEXT, "gr\u00fc\u00dfe".encode())])

    def test_breaches(self) -> None:
        for data, code in (
            (b"\xc2\x00", 1002),  # a reserved bit
            (b"\x83\x00", 1002),  # a kind that is none
            (b"\x8b\x00", 1002),
            (b"\x80\x00", 1002),  # goes on with nothing
            (part(TEXT, b"a", last=False) + frame(TEXT, b"b"), 1002),
            (b"\x82\x80" + MASK, 1002),  # masked by a server
            (b"\x89\x7e\x00\x7e" + bytes(126), 1002),  # a long ping
            (b"\x09\x00", 1002),  # a ping in parts
            (b"\x82\x7e\x00\x01a", 1002),  # a length that is written too long
            (b"\x82\x7f" + (5).to_bytes(8, "big") + b"hello", 1002),
            (b"\x82\x7f" + (1 << 62).to_bytes(8, "big"), 1009),
            (frame(BINARY, bytes(101 + 125)), 1009),
            (part(BINARY, bytes(60), last=False) + part(CONTINUATION, bytes(60), last=False), 1009),
            (frame(TEXT, b"\xff"), 1007),
        ):
            messages = Messages(masked=False, most=100)
            with self.assertRaises(Breach) as caught:
                messages.feed(data)
            self.assertEqual(caught.exception.code, code, data[:20])
            self.assertEqual(messages.feed(frame(BINARY, b"more")), [])

    def test_nothing_follows_a_close(self) -> None:
        messages = Messages(masked=False, most=100)
        data = frame(CLOSE, write_close(1000, "bye")) + frame(BINARY, b"more")
        self.assertEqual(messages.feed(data), [(CLOSE, write_close(1000, "bye"))])

    def test_closes(self) -> None:
        self.assertEqual(read_close(b""), (1005, ""))
        self.assertEqual(read_close(write_close(3001, "gr\u00fc\u00dfe")), (3001, "gr\u00fc\u00dfe"))
        self.assertEqual(write_close(1005), b"")
        self.assertLessEqual(len(write_close(1000, "\u00fc" * 200)), 125)
        for payload in (b"\x03", b"\x03\xed", b"\x03\xee", b"\x13\x88", b"\x03\xe8\xff"):
            with self.assertRaises(Breach):
                read_close(payload)

    @given(st.binary(max_size=300), st.booleans(), st.integers(1, 20))
    def test_any_noise(self, data: bytes, client: bool, cut: int) -> None:
        messages = Messages(masked=client, most=200)
        try:
            hear(messages, data, cut)
        except Breach as error:
            self.assertIn(error.code, (1002, 1007, 1009))
        self.assertLess(len(messages._held) + len(messages._parts), 1000)

    @given(st.binary(max_size=50), st.binary(min_size=4, max_size=4))
    def test_masks(self, data: bytes, key: bytes) -> None:
        self.assertEqual(masked(data, key), bytes(byte ^ key[place % 4] for place, byte in enumerate(data)))


class End(Protocol):
    """What comes at one end."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class Producer:
    """Who writes, and is told when."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("rest")

    def resumeProducing(self) -> None:
        self.told.append("go on")


class JoinedTests(SynchronousTestCase):
    """Both ends of a connection that is none."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = End()
        self.client: Any = self.successResultOf(
            connector(self.clock, Factory.forProtocol(lambda: self.server), NOBODY)(Factory.forProtocol(End))
        )

    def test_both_ways(self) -> None:
        self.client.transport.write(b"a")
        self.client.transport.writeSequence([b"b", b"c"])
        self.server.transport.write(b"d")
        self.assertEqual(self.server.data, b"")  # never within the call
        self.clock.pump([0, 0])
        self.assertEqual((self.server.data, self.client.data), (b"abc", b"d"))
        self.assertIs(self.server.transport.getPeer(), NOBODY)

    def test_an_end_in_order(self) -> None:
        self.client.transport.write(b"last")
        self.client.transport.loseConnection()
        self.client.transport.write(b"too late")
        self.clock.pump([0, 0])
        self.assertEqual(self.server.data, b"last")
        self.assertIsNotNone(self.server.lost)
        self.assertIsNotNone(self.client.lost)

    def test_an_end_at_once(self) -> None:
        self.client.transport.write(b"last")
        self.server.transport.abortConnection()
        self.clock.pump([0, 0])
        self.assertEqual(self.server.data, b"")
        self.assertTrue(self.server.lost and self.client.lost)

    def test_rests(self) -> None:
        producer = Producer()
        self.client.transport.registerProducer(producer, True)
        self.server.transport.pauseProducing()
        self.client.transport.write(bytes(HELD + 1))
        self.clock.pump([0, 0])
        self.assertEqual((producer.told, self.server.data), (["rest"], b""))
        self.server.transport.resumeProducing()
        self.clock.pump([0, 0])
        self.assertEqual((producer.told, len(self.server.data)), (["rest", "go on"], HELD + 1))

    def test_a_paused_end_hears_the_end(self) -> None:
        self.server.transport.pauseProducing()
        self.client.transport.write(b"last")
        self.client.transport.loseConnection()
        self.clock.pump([0, 0])
        self.assertEqual(self.server.data, b"")
        self.server.transport.resumeProducing()
        self.clock.pump([0, 0])
        self.assertEqual(self.server.data, b"last")
        self.assertIsNotNone(self.server.lost)
