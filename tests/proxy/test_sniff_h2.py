"""HTTP/2 by prior knowledge on the HTTP port, as far as its first `:authority`."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.proxy.sniff import Reason, Refused
from layer8.proxy.sniff_h2 import PREFACE, SNIFF_H2, H2Sniffer
from layer8.proxy.sniff_http import SNIFF_HTTP, HttpSniffer
from tests.proxy.cuts import at_every_cut, mutated, pieces, shown, summary, typed
from tests.proxy.rows_http import H2, REQUEST, SETTINGS, WINDOW_UPDATE, block, frame, h2

END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 0x20
WHOLE = END_HEADERS | END_STREAM
WEIGHT = b"\x00\x00\x00\x00\x10"


def request(*changes: tuple[bytes, bytes | None], more: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """The usual request with fields replaced, or left out if None, and more after them."""
    changed = dict(changes)
    fields = [(name, changed.get(name, value)) for name, value in REQUEST]
    kept = [(name, value) for name, value in fields if value is not None]
    return h2(frame(1, WHOLE, 1, block([*kept, *more])))


class RequestTests(SynchronousTestCase):
    def outcome(self, data: bytes) -> str:
        """The outcome at every cut, of the sniffer itself and behind the one for the HTTP port."""
        outcome = at_every_cut(HttpSniffer, data, SNIFF_HTTP)
        self.assertEqual(summary(at_every_cut(H2Sniffer, data, SNIFF_H2)), summary(outcome))
        return outcome.reason.value if isinstance(outcome, Refused) else shown(outcome)

    def test_curl(self) -> None:
        self.assertEqual(self.outcome(H2), "A www.example.com")

    def test_without_huffman(self) -> None:
        self.assertEqual(self.outcome(h2(frame(1, WHOLE, 1, block(huffman=False)))), "A www.example.com")

    def test_authority_is_read_like_a_host_field(self) -> None:
        self.assertEqual(self.outcome(request((b":authority", b"WWW.Example.com.:8080"))), "A www.example.com")
        for bad in (b"", b"u@www.example.com", b"a,b", b"a b", b"a\x00", b"a/b"):
            self.assertEqual(self.outcome(request((b":authority", bad))), "bad_name", bad)

    def test_continuation_at_any_place(self) -> None:
        whole = block()
        for at in range(len(whole) + 1):
            data = h2(frame(1, 0, 1, whole[:at]), frame(9, END_HEADERS, 1, whole[at:]))
            self.assertEqual(shown(HttpSniffer().feed(data)), "A www.example.com")
        data = h2(frame(1, 0, 1, whole[:7]), *(frame(9, 0, 1, whole[i : i + 1]) for i in range(7, len(whole))))
        self.assertEqual(self.outcome(data + frame(9, END_HEADERS, 1, b"")), "A www.example.com")

    def test_padding_and_priority(self) -> None:
        padded = frame(1, WHOLE | PADDED, 1, b"\x07" + block() + bytes(7))
        both = frame(1, WHOLE | PADDED | PRIORITY, 1, b"\x07" + WEIGHT + block() + bytes(7))
        heavy = frame(1, WHOLE | PRIORITY, 1, WEIGHT + block())
        for headers in (padded, both, heavy):
            self.assertEqual(self.outcome(h2(headers)), "A www.example.com")
        first = frame(1, PADDED | PRIORITY, 1, b"\x02" + WEIGHT + block()[:9] + bytes(2))
        # Flags of a CONTINUATION other than its end mean nothing.
        self.assertEqual(self.outcome(h2(first, frame(9, END_HEADERS | PADDED, 1, block()[9:]))), "A www.example.com")

    def test_padding_longer_than_the_frame(self) -> None:
        for payload in (b"", b"\x01", b"\x05abcd"):
            self.assertEqual(self.outcome(h2(frame(1, WHOLE | PADDED, 1, payload))), "bad_h2")
        self.assertEqual(self.outcome(h2(frame(1, WHOLE | PRIORITY, 1, b"1234"))), "bad_h2")

    def test_frames_before_the_request_are_skipped(self) -> None:
        priority = frame(2, 0, 3, WEIGHT)
        ping = frame(6, 0, 0, bytes(8))
        unknown = frame(0xBE, 0xFF, 7, b"grease")
        data = h2(WINDOW_UPDATE, priority, ping, unknown, SETTINGS, frame(4, 1, 0, b""), frame(1, WHOLE, 1, block()))
        self.assertEqual(self.outcome(data), "A www.example.com")

    def test_what_follows_the_request_is_left_alone(self) -> None:
        self.assertEqual(self.outcome(H2 + frame(0, 0, 0, b"anything")), "A www.example.com")
        sniffer = HttpSniffer()
        sniffer.feed(H2 + b"rest")
        self.assertEqual(sniffer.data, H2 + b"rest")

    def test_host_field_instead_of_authority(self) -> None:
        self.assertEqual(self.outcome(request((b":authority", None), more=((b"host", b"a.example"),))), "A a.example")

    def test_host_field_beside_authority(self) -> None:
        same = request(more=((b"host", b"www.example.com:80"),))
        self.assertEqual(self.outcome(same), "A www.example.com")
        self.assertEqual(self.outcome(request(more=((b"host", b"evil.example.net"),))), "other_host")

    def test_refused_requests(self) -> None:
        for data, reason in (
            (request((b":authority", None)), "no_host"),
            (request(more=((b"host", b"www.example.com"), (b"host", b"www.example.com"))), "many_names"),
            (h2(frame(1, WHOLE, 1, block([*REQUEST[:4], REQUEST[3]]))), "many_names"),
            (h2(frame(1, WHOLE, 1, block([*REQUEST[:4], REQUEST[0]]))), "bad_h2"),
            (request(more=((b":path", b"/"),)), "bad_h2"),
            (request(more=((b"Host", b"evil.example.net"),)), "bad_h2"),
            (h2(frame(1, WHOLE, 1, block([*REQUEST[:4], (b":evil", b"a")]))), "bad_h2"),
            (request((b":method", b"CONNECT")), "bad_method"),
            (request((b":method", None)), "bad_h2"),
            (request((b":scheme", b"https")), "bad_target"),
            (request((b":path", None)), "bad_target"),
        ):
            self.assertEqual(self.outcome(data), reason)

    def test_refused_frames(self) -> None:
        good = frame(1, WHOLE, 1, block())
        for data in (
            PREFACE + good,  # no SETTINGS first
            PREFACE + frame(4, 1, 0, b"") + good,
            PREFACE + frame(4, 0, 1, b"") + good,
            PREFACE + frame(4, 0, 0, b"12345") + good,
            h2(frame(1, WHOLE, 2, block())),
            h2(frame(1, WHOLE, 0, block())),
            h2(frame(0, 0, 1, b"data"), good),
            h2(frame(3, 0, 1, bytes(4)), good),
            h2(frame(5, 4, 1, bytes(4)), good),
            h2(frame(7, 0, 0, bytes(8)), good),
            h2(frame(9, END_HEADERS, 1, block())),
            h2(frame(1, 0, 1, block()[:5]), WINDOW_UPDATE, frame(9, END_HEADERS, 1, block()[5:])),
            h2(frame(1, 0, 1, block()[:5]), frame(9, END_HEADERS, 3, block()[5:])),
            h2(b"\x00\x40\x01\x08\x00\x00\x00\x00\x00" + bytes(16385)),
            h2(frame(1, WHOLE, 1, b"")),
            h2(frame(1, WHOLE, 1, b"\xff\xff\xff\xff\xff\xff")),  # an index without end
            h2(frame(1, WHOLE, 1, b"\x3f\xe2\x1f" + block())),  # a table of 4,097
            h2(frame(1, WHOLE, 1, b"\x80")),  # index 0
        ):
            self.assertEqual(shown(HttpSniffer().feed(data)), "X", data)
            self.assertEqual(summary(H2Sniffer().feed(data)), (Reason.BAD_H2, b""), data)

    def test_preface_that_is_none(self) -> None:
        data = b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"
        self.assertEqual(self.outcome(data), "bad_h2")

    def test_header_bomb(self) -> None:
        big = block([*REQUEST, (b"x", b"y" * 3900)], huffman=False)
        self.assertEqual(self.outcome(h2(frame(1, WHOLE, 1, big + b"\xbe" * 20))), "long_head")

    def test_many_fields(self) -> None:
        fields = [*REQUEST, *((b"x", b"y") for _ in range(95))]
        self.assertEqual(self.outcome(h2(frame(1, WHOLE, 1, block(fields)))), "many_fields")
        self.assertEqual(self.outcome(h2(frame(1, WHOLE, 1, block(fields[:-1])))), "A www.example.com")

    def test_frames_without_a_request(self) -> None:
        data = h2(*(frame(6, 0, 0, bytes(8)) for _ in range(2000)))
        self.assertEqual(shown(HttpSniffer().feed(data)), "X")
        self.assertEqual(summary(H2Sniffer().feed(data)), (Reason.LONG_HEAD, b""))

    def test_late(self) -> None:
        sniffer = HttpSniffer()
        self.assertIsNone(sniffer.feed(H2[:-1]))
        self.assertEqual(summary(sniffer.late()), (Reason.SLOW, b""))

    def test_fed_again_is_our_own_mistake(self) -> None:
        sniffer = H2Sniffer()
        sniffer.feed(H2)
        self.assertRaises(LocalProtocolError, sniffer.feed, b"more")


class NoiseTests(SynchronousTestCase):
    @given(st.data(), st.binary(max_size=300))
    def test_any_bytes(self, data: st.DataObject, raw: bytes) -> None:
        typed(H2Sniffer, data.draw(pieces(raw)), SNIFF_H2)
        typed(H2Sniffer, data.draw(pieces(PREFACE + SETTINGS + raw)), SNIFF_H2)

    @given(st.data(), st.binary(max_size=200))
    def test_any_field_block(self, data: st.DataObject, raw: bytes) -> None:
        for noisy in (h2(frame(1, WHOLE, 1, raw)), h2(frame(1, WHOLE, 1, block() + raw))):
            self.assertIsNotNone(typed(HttpSniffer, data.draw(pieces(noisy)), SNIFF_HTTP))

    @given(st.data(), mutated([H2, h2(frame(1, 0, 1, block()[:9]), frame(9, END_HEADERS, 1, block()[9:]))]))
    def test_any_mutation(self, data: st.DataObject, raw: bytes) -> None:
        typed(HttpSniffer, data.draw(pieces(raw)), SNIFF_HTTP)
        typed(H2Sniffer, data.draw(pieces(raw)), SNIFF_H2)
