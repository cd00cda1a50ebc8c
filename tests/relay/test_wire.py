"""Cells and messages: bytes there and back, and any noise."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable

from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.relay import wire
from layer8.relay.wire import (
    BODY,
    CELL,
    DATA,
    DATA_TAGGED,
    ENDPOINT_MOST,
    ENDPOINTS,
    HANDSHAKE,
    HEAD,
    HOST_MOST,
    MESSAGE,
    MESSAGE_HEAD,
    MESSAGE_MAX,
    REASSEMBLY,
    TAG,
    TEXT_MOST,
    UNFINISHED,
    Address,
    Cell,
    Command,
    Extend,
    Hello,
    Open,
    Opened,
    Proto,
    Punch,
    Reason,
    Reassembly,
    Text,
)

U8, U16, U32 = st.integers(0, 255), st.integers(0, 65_535), st.integers(0, 2**32 - 1)
ADDRESSES = st.builds(Address, st.ip_addresses().map(str), U16)
ANY_ADDRESS = st.one_of(ADDRESSES, st.just(Address("")))
ENDS = st.lists(st.text("abc:/.é", min_size=1, max_size=40), min_size=1, max_size=ENDPOINTS).map(tuple)
NODES = st.binary(min_size=32, max_size=32)
HELLOS = st.builds(
    Hello,
    st.lists(U16, max_size=4).map(tuple),
    U16,
    st.binary(min_size=8, max_size=8),
    U16,
    st.integers(0, 2**64 - 1),
    ANY_ADDRESS,
    st.one_of(st.just(b""), NODES.filter(any)),
    st.binary(min_size=64, max_size=64),
)
EXTENDS = st.builds(Extend, NODES, ENDS, U16, st.binary(max_size=100))
OPENS = st.builds(Open, st.sampled_from([Proto.TCP, Proto.UDP]), st.text("abc.é", max_size=60), U16, U8)
TEXTS = st.one_of(
    st.builds(Text, st.binary(min_size=16, max_size=16), st.binary(max_size=200)),
    st.builds(
        Text,
        st.binary(min_size=16, max_size=16),
        st.binary(max_size=200),
        NODES,
        st.binary(min_size=64, max_size=64),
    ),
)
PUNCHES = st.builds(Punch, NODES, st.lists(ADDRESSES, max_size=ENDPOINTS).map(tuple), U16)
READERS: tuple[Callable[[bytes], object], ...] = (
    Hello.read,
    Opened.read,
    Text.read,
    Punch.read,
    wire.read_connect,
    wire.read_datagram,
    wire.read_disconnect,
    wire.read_extended,
    wire.read_handshake,
)


def whole(address: Address) -> Address:
    """Give an address as it is read: IPv6 in its short form."""
    return Address(str(ipaddress.ip_address(address.host)), address.port)


class LayoutTests(SynchronousTestCase):
    """The lengths of network.md, and where things stand."""

    def test_lengths(self) -> None:
        self.assertEqual((CELL, HEAD, BODY, MESSAGE, DATA, DATA_TAGGED), (2048, 5, 2043, 2027, 2022, 2006))
        self.assertEqual((len(wire.cell(1, Cell.PAD)), len(wire.message(1, 1))), (CELL, MESSAGE))

    def test_a_cell(self) -> None:
        made = wire.cell(0x8000_0001, Cell.DESTROY, b"\3")
        self.assertEqual(made[:7], b"\x80\0\0\1\6\3\0")
        self.assertRaises(ValueError, wire.cell, 1, Cell.RELAY, bytes(BODY + 1))

    def test_a_message(self) -> None:
        self.assertEqual(wire.message(3, 0x1234, b"abc")[:9], b"\3\x12\x34\0\3abc\0")
        self.assertEqual(wire.message(3, 1, b"abc", more=True)[3:5], b"\x80\3")
        self.assertRaises(ValueError, wire.message, 3, 1, bytes(DATA + 1))

    def test_a_tagged_message(self) -> None:
        tag = bytes(range(TAG))
        for size in (0, 1, DATA_TAGGED):
            made = wire.tagged(9, b"x" * size, tag)
            self.assertEqual(len(made), MESSAGE)
            self.assertEqual(wire.read_head(made), (Command.DATA, 9, size, False))
            self.assertEqual(made[MESSAGE_HEAD + size : MESSAGE_HEAD + size + TAG], tag)
            self.assertFalse(any(made[MESSAGE_HEAD + size + TAG :]))
        self.assertRaises(ValueError, wire.tagged, 9, bytes(DATA_TAGGED + 1), tag)
        self.assertRaises(ValueError, wire.tagged, 9, b"", tag[1:])

    def test_runs(self) -> None:
        text = wire.cell(1, Cell.RELAY, b"one") + wire.cell(2, Cell.EARLY, b"two") + b"rest"
        cut = [(circ, cmd, bytes(body[:3])) for circ, cmd, body in wire.runs(memoryview(text))]
        self.assertEqual(cut, [(1, 4, b"one"), (2, 5, b"two")])

    def test_an_extension_fits_one_cell(self) -> None:
        """With a handshake of l8-ntor and its terms, and an endpoint of the longest."""
        self.assertLess(len(Extend(bytes(32), ("e" * ENDPOINT_MOST,), 1, bytes(1311)).encode()), DATA)
        self.assertLess(1311, HANDSHAKE)


class RoundTripTests(SynchronousTestCase):
    @given(U32, U8, st.binary(max_size=BODY))
    def test_cells(self, circ: int, cmd: int, body: bytes) -> None:
        ((found, command, text),) = wire.runs(memoryview(wire.cell(circ, cmd, body)))
        self.assertEqual((found, command, bytes(text[: len(body)])), (circ, cmd, body))
        self.assertFalse(any(text[len(body) :]))

    @given(U8, U16, st.binary(max_size=DATA), st.booleans())
    def test_messages(self, command: int, stream: int, data: bytes, more: bool) -> None:
        made = wire.message(command, stream, data, more=more)
        self.assertEqual(wire.read_head(made), (command, stream, len(data), more))
        self.assertEqual(made[MESSAGE_HEAD : MESSAGE_HEAD + len(data)], data)

    @given(HELLOS)
    def test_hello(self, hello: Hello) -> None:
        read = Hello.read(hello.encode() + bytes(100))
        if not hello.identity:
            hello = evolve(hello, signature=b"")
        self.assertEqual(read.seen.host, whole(hello.seen).host if hello.seen.host else "")
        for name in ("versions", "cell_len", "network", "flags", "time", "identity", "signature"):
            self.assertEqual(getattr(read, name), getattr(hello, name))

    @given(st.one_of(EXTENDS, OPENS))
    def test_connect(self, wanted: Extend | Open) -> None:
        self.assertEqual(wire.read_connect(wanted.encode()), wanted)

    @given(ADDRESSES, U32)
    def test_opened(self, address: Address, ttl: int) -> None:
        self.assertEqual(Opened.read(Opened(address, ttl).encode()), Opened(Address(whole(address).host), ttl))

    @given(ANY_ADDRESS, st.binary(max_size=100))
    def test_datagrams(self, address: Address, payload: bytes) -> None:
        read, text = wire.read_datagram(wire.datagram(address, payload))
        self.assertEqual(text, payload)
        self.assertEqual(read, whole(address) if address.host else Address("", address.port))

    @given(st.sampled_from(Reason), st.booleans())
    def test_disconnect(self, reason: Reason, half: bool) -> None:
        self.assertEqual(wire.read_disconnect(wire.disconnect(reason, half=half)), (reason, half))

    @given(TEXTS)
    def test_texts(self, text: Text) -> None:
        self.assertEqual(Text.read(text.encode()), text)

    @given(PUNCHES)
    def test_punch(self, punch: Punch) -> None:
        read = Punch.read(punch.encode())
        self.assertEqual(read, Punch(punch.node, tuple(map(whole, punch.addresses)), punch.delay))

    @given(U16, st.binary(max_size=HANDSHAKE))
    def test_handshakes(self, kind: int, text: bytes) -> None:
        self.assertEqual(wire.read_handshake(wire.handshake_body(kind, text) + b"pad"), (kind, text))
        self.assertEqual(wire.read_extended(wire.extended(text) + b"pad"), text)

    @given(st.integers(0, MESSAGE_MAX), U8, U16)
    @example(0, 20, 1)
    @example(DATA, 20, 1)
    @example(DATA + 1, 20, 1)
    @example(MESSAGE_MAX, 20, 1)
    def test_fragments(self, size: int, command: int, stream: int) -> None:
        data = bytes(number % 251 for number in range(size))
        reassembly = Reassembly()
        found: list[bytes] = []
        for text in wire.fragments(command, stream, data):
            self.assertEqual(found, [])
            read, where, length, more = wire.read_head(text)
            self.assertEqual((read, where), (command, stream))
            message = reassembly.add(read, where, text[MESSAGE_HEAD : MESSAGE_HEAD + length], more)
            found += [message] if message is not None else []
        self.assertEqual(found, [data])
        self.assertEqual((reassembly._size, reassembly._parts), (0, {}))


class LimitTests(SynchronousTestCase):
    def test_messages(self) -> None:
        self.assertRaises(ValueError, wire.fragments, 20, 1, bytes(MESSAGE_MAX + 1))
        reassembly = Reassembly()
        for _ in range(MESSAGE_MAX // DATA):
            reassembly.add(20, 1, bytes(DATA), True)
        with self.assertRaises(LimitExceeded) as caught:
            reassembly.add(20, 1, bytes(DATA), False)
        self.assertEqual(caught.exception.limit, "MESSAGE_MAX")

    def test_unfinished_messages_of_a_circuit(self) -> None:
        reassembly = Reassembly()
        with self.assertRaises(LimitExceeded) as caught:
            for stream in range(REASSEMBLY // DATA + 1):
                reassembly.add(20, stream, bytes(DATA), True)
        self.assertEqual(caught.exception.limit, "REASSEMBLY")

    def test_very_many_empty_beginnings(self) -> None:
        reassembly = Reassembly()
        with self.assertRaises(LimitExceeded):
            for stream in range(1000):
                reassembly.add(20, stream, b"", True)
        self.assertLessEqual(len(reassembly._parts), REASSEMBLY // UNFINISHED + 1)

    def test_messages_between_each_other(self) -> None:
        reassembly = Reassembly()
        self.assertIsNone(reassembly.add(20, 1, b"one ", True))
        self.assertIsNone(reassembly.add(20, 2, b"another ", True))
        self.assertEqual(reassembly.add(20, 3, b"whole", False), b"whole")
        self.assertEqual(reassembly.add(20, 1, b"two", False), b"one two")
        self.assertEqual(reassembly.add(20, 2, b"end", False), b"another end")

    def test_names_and_lists(self) -> None:
        many = Extend(bytes(32), ("a",) * (ENDPOINTS + 1), 1, b"")
        for text in (
            many.encode(),
            Extend(bytes(32), (), 1, b"").encode(),
            Extend(bytes(32), ("e" * (ENDPOINT_MOST + 1),), 1, b"").encode(),
            b"\3\0\0\1\0",
            b"\1\0\0\1\2\xff\xfe",
        ):
            self.assertRaises(RemoteProtocolError, wire.read_connect, text)
        self.assertEqual(wire.read_connect(Open(Proto.TCP, "h" * HOST_MOST, 1).encode()), Open(Proto.TCP, "h" * 255, 1))
        self.assertRaises(RemoteProtocolError, Punch.read, bytes(32) + bytes((ENDPOINTS + 1,)))
        self.assertRaises(RemoteProtocolError, Text.read, Text(bytes(16), bytes(TEXT_MOST + 1)).encode())
        self.assertRaises(ValueError, wire.handshake_body, 1, bytes(HANDSHAKE + 1))

    def test_a_length_beyond_the_cell(self) -> None:
        for size in (DATA + 1, 0x7FFF, 0xFFFF):
            self.assertRaises(RemoteProtocolError, wire.read_head, b"\3\0\1" + size.to_bytes(2, "big"))

    def test_addresses_of_no_kind(self) -> None:
        self.assertRaises(RemoteProtocolError, wire.read_datagram, b"\5" + bytes(20))
        hello = bytearray(Hello((1,), CELL, bytes(8), 0, 0, Address("")).encode())
        hello[1 + 2 + 20] = 7
        self.assertRaises(RemoteProtocolError, Hello.read, bytes(hello))

    def test_an_unknown_reason(self) -> None:
        self.assertEqual(wire.read_disconnect(b"\xc8\0"), (Reason.INTERNAL, False))


class NoiseTests(SynchronousTestCase):
    @given(st.sampled_from(READERS), st.binary(max_size=300))
    def test_any_bytes(self, read: Callable[[bytes], object], noise: bytes) -> None:
        """A value, or a typed error."""
        with contextlib.suppress(RemoteProtocolError):
            read(noise)

    @given(st.one_of(EXTENDS, OPENS).map(lambda one: one.encode()), st.data())
    def test_cut_short(self, text: bytes, data: st.DataObject) -> None:
        """Whatever is left of a message that was cut is refused."""
        end = data.draw(st.integers(0, len(text) - 1))
        self.assertRaises(RemoteProtocolError, wire.read_connect, text[:end])

    @given(st.lists(st.tuples(U8, st.integers(0, 3), st.binary(max_size=DATA), st.booleans()), max_size=60))
    def test_any_fragments(self, noise: list[tuple[int, int, bytes, bool]]) -> None:
        reassembly = Reassembly()
        try:
            for fragment in noise:
                reassembly.add(*fragment)
        except LimitExceeded:
            pass
        self.assertLessEqual(reassembly._size, REASSEMBLY + DATA)
