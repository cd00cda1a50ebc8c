"""Frames of a socket: a few sizes on the wire, the same messages at the other end, and nothing else taken."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.crypto.noise import MESSAGE_MOST, TAG
from layer8.tunnel import frames
from layer8.tunnel.frames import DATA, SIZES, Assembly, BadFrame, Kind, Message, frame
from layer8.tunnel.limits import SOCKET_MESSAGE


def taken(message: Message) -> list[Message]:
    assembly = Assembly()
    return [one for text in frames.frames(message) if (one := assembly.take(text)) is not None]


class RoundTripTests(SynchronousTestCase):
    def test_sizes(self) -> None:
        self.assertEqual(SIZES[-1] + TAG, MESSAGE_MOST)
        for size, wanted in (
            (0, 256),
            (253, 256),
            (254, 512),
            (509, 512),
            (4094, 16_384),
            (16_381, 16_384),
            (16_382, 65_519),
            (DATA, 65_519),
        ):
            self.assertEqual(len(frame(Kind.BINARY, bytes(size))), wanted)

    def test_the_layout(self) -> None:
        self.assertEqual(frame(Kind.TEXT, b"hi"), b"\x81\x00\x02hi" + bytes(251))
        self.assertEqual(frame(Kind.BINARY, b"", last=False)[:3], b"\x02\x00\x00")
        self.assertEqual(frames.prologue("shop", 500_000), b"l8.noise.v1\0shop\0\x00\x07\xa1\x20")
        self.assertEqual((frames.FIRST_SIZE, frames.SECOND_SIZE), (560, 304))

    @given(st.sampled_from((Kind.BINARY, Kind.TEXT)), st.integers(0, 3 * DATA))
    def test_messages(self, kind: Kind, size: int) -> None:
        message = Message(kind, b"x" * size)
        self.assertEqual(taken(message), [message])

    def test_the_largest_message(self) -> None:
        self.assertEqual(
            taken(Message(Kind.BINARY, bytes(SOCKET_MESSAGE))), [Message(Kind.BINARY, bytes(SOCKET_MESSAGE))]
        )
        error = self.assertRaises(BadFrame, taken, Message(Kind.BINARY, bytes(SOCKET_MESSAGE + 1)))
        self.assertEqual(error.code, 1009)

    def test_control_between_parts(self) -> None:
        assembly = Assembly()
        self.assertIsNone(assembly.take(frame(Kind.TEXT, b"a\xc3", last=False)))
        for kind in (Kind.PING, Kind.PONG, Kind.OPEN, Kind.OPENED, Kind.CLOSE):
            self.assertEqual(assembly.take(frame(kind, b"12")), Message(kind, b"12"))
        self.assertEqual(assembly.take(frame(Kind.CONTINUATION, b"\xa9")), Message(Kind.TEXT, "aé".encode()))

    def test_closing(self) -> None:
        self.assertEqual(frames.read_close(frames.close(1000, "bye").data), (1000, "bye"))
        self.assertEqual(frames.read_close(b""), (1005, ""))
        long = frames.close(4000, "é" * 100)
        self.assertEqual(len(taken(long)[0].data), 124)
        self.assertEqual(frames.read_close(long.data), (4000, "é" * 61))

    def test_filling(self) -> None:
        self.assertEqual(frames.fill(b"a", 4), b"a\0\0\0")
        self.assertRaises(LocalProtocolError, frames.fill, b"abc", 2)


class BadTests(SynchronousTestCase):
    def refused(self, *texts: bytes, code: int = 1002) -> None:
        assembly = Assembly()
        for text in texts[:-1]:
            assembly.take(text)
        self.assertEqual(self.assertRaises(BadFrame, assembly.take, texts[-1]).code, code)

    def test_sizes(self) -> None:
        for size in (0, 1, 3, 255, 257, 65_520):
            self.refused((b"\x81\0\0" + bytes(size))[:size])

    def test_lengths_and_padding(self) -> None:
        self.refused(b"\x81\x00\xfe" + b"a" * 253)
        self.refused(b"\x81\xff\xff" + bytes(253))
        self.refused(b"\x81\0\2hi" + bytes(250) + b"\x01")
        self.refused(b"\x81\0\2hi!" + bytes(250))

    def test_kinds(self) -> None:
        for kind in (3, 7, 13, 15, 16, 0x7F):
            self.refused(bytes((kind | 0x80,)) + bytes(255))

    def test_control_frames(self) -> None:
        for kind in (Kind.CLOSE, Kind.PING, Kind.PONG, Kind.OPEN, Kind.OPENED):
            self.refused(bytes((kind,)) + bytes(255))
            self.refused(bytes((kind | 0x80, 0, 126)) + bytes(253))
            self.assertRaises(LocalProtocolError, frame, kind, bytes(126))

    def test_out_of_turn(self) -> None:
        self.refused(frame(Kind.CONTINUATION, b"a"))
        self.refused(frame(Kind.TEXT, b"a", last=False), frame(Kind.TEXT, b"b"))
        self.refused(frame(Kind.TEXT, b"", last=False))
        self.refused(frame(Kind.TEXT, b"a"), frame(Kind.CONTINUATION, b"b"))

    def test_text(self) -> None:
        self.refused(frame(Kind.TEXT, b"\xff"), code=1007)
        self.refused(frame(Kind.TEXT, b"\xc3", last=False), frame(Kind.CONTINUATION, b"x"), code=1007)

    def test_codes(self) -> None:
        for data in (b"\x03", b"\x03\xe7", b"\x03\xed", b"\x03\xee", b"\x13\x88", b"\0\0"):
            self.assertRaises(BadFrame, frames.read_close, data)
        self.assertEqual(self.assertRaises(BadFrame, frames.read_close, b"\x03\xe8\xff").code, 1007)

    def test_too_much_for_one_frame(self) -> None:
        self.assertRaises(LocalProtocolError, frame, Kind.BINARY, bytes(DATA + 1))

    @given(
        st.lists(
            st.sampled_from(SIZES[:3]).flatmap(lambda size: st.binary(max_size=40).map(lambda b: b.ljust(size, b"\0"))),
            max_size=6,
        )
    )
    def test_any_noise(self, texts: list[bytes]) -> None:
        assembly = Assembly()
        with contextlib.suppress(BadFrame):
            for text in texts:
                assembly.take(text)

    def test_bounded_memory(self) -> None:
        assembly = Assembly()
        assembly.take(frame(Kind.BINARY, bytes(DATA), last=False))
        with self.assertRaises(BadFrame):
            for _ in range(100):
                assembly.take(frame(Kind.CONTINUATION, bytes(DATA), last=False))
                self.assertLessEqual(len(assembly._parts), SOCKET_MESSAGE)
