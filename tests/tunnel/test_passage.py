"""Frames of a WebSocket as a relay passes them on."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel import passage
from layer8.tunnel.passage import BINARY, CLOSE, CONTINUATION, MESSAGE_MOST, PING, PONG, TEXT, Breach, Control, Passage

MASK = b"\x37\xfa\x21\x3d"
SHAKE = [
    ("host", "relay.example"),
    ("upgrade", "websocket"),
    ("connection", "keep-alive, Upgrade"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("sec-websocket-version", "13"),
    ("sec-websocket-protocol", "chat, l8.noise.v1"),
    ("sec-websocket-extensions", "permessage-deflate"),
    ("origin", "https://app.example"),
]
YES = [
    ("upgrade", "websocket"),
    ("connection", "Upgrade"),
    ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ("sec-websocket-protocol", "l8.noise.v1"),
]


def frame(opcode: int, data: bytes, *, fin: bool = True, mask: bytes = MASK, first: int = 0) -> bytes:
    """Write one frame; `first` is or-ed to its first byte."""
    size = len(data)
    head = bytes(((0x80 if fin else 0) | opcode | first,))
    flag = 0x80 if mask else 0
    if size < 126:
        head += bytes((flag | size,))
    elif size < 1 << 16:
        head += bytes((flag | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((flag | 127,)) + size.to_bytes(8, "big")
    return head + mask + (bytes(b ^ mask[i % 4] for i, b in enumerate(data)) if mask else data)


def through(data: bytes, *, masked: bool = True, cuts: Sequence[int] = ()) -> tuple[bytes, list[Control]]:
    """Feed it in pieces; give what goes on and the control frames."""
    one = Passage(masked=masked)
    out = b""
    controls: list[Control] = []
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        went, more = one.feed(data[start:end])
        out += went
        controls += more
    return out, controls


class GoodTests(SynchronousTestCase):
    def test_data_goes_on_by_the_byte(self) -> None:
        for mask in (MASK, b""):
            for size in (0, 1, 125, 126, 65_535):
                text = frame(BINARY, bytes(size), mask=mask)
                self.assertEqual(through(text, masked=bool(mask)), (text, []))
            parts = frame(BINARY, b"ab", fin=False, mask=mask) + frame(CONTINUATION, b"cd", mask=mask)
            self.assertEqual(through(parts, masked=bool(mask)), (parts, []))

    def test_control_frames_end_here(self) -> None:
        data = [frame(BINARY, b"a", fin=False), frame(PING, b"there?"), frame(CONTINUATION, b"b"), frame(PONG, b"")]
        out, controls = through(b"".join(data))
        self.assertEqual(out, data[0] + data[2])
        self.assertEqual(controls, [Control(PING, b"there?"), Control(PONG, b"")])

    def test_of_a_close_only_the_code_goes_on(self) -> None:
        out, controls = through(frame(CLOSE, (4001).to_bytes(2, "big") + b"who I am") + frame(BINARY, b"late"))
        self.assertEqual((out, controls[0].code), (b"", 4001))
        self.assertEqual(passage.close(4001), b"\x88\x02\x0f\xa1")
        self.assertEqual(through(passage.close(4001, MASK))[1], [Control(CLOSE, b"\x0f\xa1")])
        codes = {b"": 1000, b"\x03\xe8": 1000, b"\x03\xed": 1002, b"\0\0": 1002, b"\xff\xff": 1002}
        for data, code in codes.items():
            self.assertEqual(Control(CLOSE, data).code, code)

    @given(st.data())
    def test_any_cut(self, draw: st.DataObject) -> None:
        pieces = st.tuples(st.sampled_from((BINARY, PING)), st.binary(max_size=125))
        data = b"".join(frame(*one) for one in draw.draw(st.lists(pieces, max_size=6)))
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
        self.assertEqual(through(data, cuts=cuts), through(data))

    def test_handshakes(self) -> None:
        self.assertEqual(passage.offered(SHAKE), "dGhlIHNhbXBsZSBub25jZQ==")
        self.assertEqual(passage.accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")  # RFC 6455, 1.3
        self.assertTrue(passage.agreed(101, YES, "dGhlIHNhbXBsZSBub25jZQ=="))


class BadTests(SynchronousTestCase):
    def refused(self, code: int, data: bytes, *, masked: bool = True) -> None:
        for cuts in ((), range(1, min(len(data), 20))):
            error = self.assertRaises(Breach, through, data, masked=masked, cuts=tuple(cuts))
            self.assertEqual(error.code, code)

    def test_text_is_1003(self) -> None:
        self.refused(1003, frame(TEXT, b"hello"))
        self.refused(1003, frame(TEXT, b"hello", mask=b""), masked=False)

    def test_long_messages_are_1009(self) -> None:
        self.refused(1009, frame(BINARY, bytes(MESSAGE_MOST + 1))[:14])
        self.refused(1009, frame(BINARY, bytes(40_000), fin=False) + frame(CONTINUATION, bytes(40_000))[:14])
        self.refused(1009, bytes((0x82, 0xFF)) + b"\x7f" + bytes(7) + MASK)

    def test_other_forms_are_1002(self) -> None:
        self.refused(1002, frame(BINARY, b"", mask=b""))
        self.refused(1002, frame(BINARY, b""), masked=False)
        self.refused(1002, frame(CONTINUATION, b""))
        self.refused(1002, frame(BINARY, b"", fin=False) + frame(BINARY, b""))
        self.refused(1002, frame(PING, bytes(126)))
        self.refused(1002, frame(PING, b"", fin=False))
        for opcode in (3, 7, 11, 15):
            self.refused(1002, frame(opcode, b""))
        for bit in (0x40, 0x20, 0x10):
            self.refused(1002, frame(BINARY, b"", first=bit))
        self.refused(1002, b"\x82\xfe\x00\x7d" + MASK)
        self.refused(1002, b"\x82\xff" + bytes(6) + b"\xff\xff" + MASK)

    def test_nothing_goes_on_afterwards(self) -> None:
        one = Passage(masked=True)
        self.assertRaises(Breach, one.feed, frame(TEXT, b""))
        self.assertEqual(one.feed(frame(BINARY, b"a")), (b"", []))

    @given(st.binary(max_size=400), st.booleans())
    def test_any_noise(self, data: bytes, masked: bool) -> None:
        one = Passage(masked=masked)
        try:
            out, _ = one.feed(data)
            self.assertLessEqual(len(out), len(data))
        except Breach as breach:
            self.assertIn(breach.code, (1002, 1003, 1009))
        self.assertLessEqual(len(one._head), 14)

    def test_handshakes(self) -> None:
        for number, wrong in {3: "short", 4: "8", 5: "chat", 1: "h2c", 2: "close"}.items():
            other = [*SHAKE]
            other[number] = (other[number][0], wrong)
            self.assertIsNone(passage.offered(other))
            self.assertIsNone(passage.offered([one for one in SHAKE if one is not SHAKE[number]]))
        self.assertIsNone(passage.offered([*SHAKE, SHAKE[3]]))
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        self.assertFalse(passage.agreed(200, YES, key))
        self.assertFalse(passage.agreed(101, YES, key[::-1]))
        self.assertFalse(passage.agreed(101, [*YES, ("sec-websocket-extensions", "permessage-deflate")], key))
        for line in YES:
            self.assertFalse(passage.agreed(101, [one for one in YES if one is not line], key))
