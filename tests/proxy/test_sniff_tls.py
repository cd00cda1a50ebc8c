"""The TLS port's sniffer: every row of the table at every cut, and noise."""

import tracemalloc
from collections.abc import Callable
from time import perf_counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.proxy.sniff import UNKNOWN, Reason
from layer8.proxy.sniff_http import SNIFF_HTTP, HttpSniffer
from layer8.proxy.sniff_tls import SNIFF_TLS, TlsSniffer
from tests.proxy.cuts import at_every_cut, mutated, pieces, run, shown, summary, typed
from tests.proxy.hellos import PSK, TICKET, USUAL, hello, padding, record, records, sni
from tests.proxy.rows import Row
from tests.proxy.rows_tls import ACME, LONGEST, PLAIN, POST_QUANTUM, TLS_ROWS, WHOLE

# Rows of the page that need what is not built yet; they pass when it is, and not before.
LATER = {
    "acme-tls/1 ALPN, ours if terminating": "termination is a later issue; the row below holds for passthrough",
}


def strip() -> TlsSniffer:
    return TlsSniffer(strip_dot=True)


class TlsRowTests(SynchronousTestCase):
    """One test for each row, named after it: the same outcome in one piece, at every split, and byte by byte."""


def _test_of(row: Row) -> Callable[[TlsRowTests], None]:
    def test(self: TlsRowTests) -> None:
        wanted = f"A {row.host}" if row.outcome == "A" else row.outcome
        self.assertEqual(shown(at_every_cut(TlsSniffer, row.data, SNIFF_TLS)), wanted)
        self.assertEqual(shown(run(TlsSniffer, row.pieces, SNIFF_TLS)), wanted)

    return test


for _row in TLS_ROWS:
    setattr(TlsRowTests, f"test_{_row.slug}", _test_of(_row))


class OutcomeTests(SynchronousTestCase):
    def test_alpn_in_its_order(self) -> None:
        self.assertEqual(summary(TlsSniffer().feed(WHOLE)), ("https", "www.example.com", (b"h2", b"http/1.1")))
        self.assertEqual(summary(TlsSniffer().feed(records(ACME))), ("https", "www.example.com", (b"acme-tls/1",)))

    def test_trailing_dot_stripped_if_so_configured(self) -> None:
        data = records(hello(sni(b"www.example.com."), *USUAL))
        self.assertEqual(shown(at_every_cut(strip, data, SNIFF_TLS)), "A www.example.com")
        twice = records(hello(sni(b"www.example.com.."), *USUAL))
        self.assertEqual(shown(at_every_cut(strip, twice, SNIFF_TLS)), "X")

    def test_early_data_is_left_to_the_owner_once(self) -> None:
        sniffer = TlsSniffer()
        self.assertEqual(shown(sniffer.feed(WHOLE + b"early")), "A www.example.com")
        self.assertEqual(sniffer.data, WHOLE + b"early")

    def test_one_octet_of_another_protocol_is_enough(self) -> None:
        for first in (b"G", b"\x80", b"P", b"\r", b"\x15", b"\x17", b"\x00"):
            self.assertEqual(summary(TlsSniffer().feed(first)), (Reason.NOT_TLS, b""))

    def test_a_length_over_the_limit_is_refused_before_it_is_waited_for(self) -> None:
        self.assertEqual(summary(TlsSniffer().feed(record(b"\x01\xff\xff\xff"))), (Reason.LONG_HELLO, b""))

    def test_the_limit_is_in_bytes_on_the_wire(self) -> None:
        # The hello itself is below the limit, and so are its records but for the last few.
        data = records(LONGEST, range(3000, len(LONGEST), 3000))
        self.assertGreater(len(data), SNIFF_TLS)
        self.assertEqual(summary(TlsSniffer().feed(data)), (Reason.LONG_HELLO, b""))

    def test_late_is_silent(self) -> None:
        sniffer = TlsSniffer()
        sniffer.feed(WHOLE[:100])
        self.assertEqual(summary(sniffer.late()), (Reason.SLOW, b""))

    def test_fed_again_is_our_own_mistake(self) -> None:
        sniffer = TlsSniffer()
        sniffer.feed(WHOLE)
        self.assertRaises(LocalProtocolError, sniffer.feed, b"more")

    def test_the_answer_to_an_unknown_name(self) -> None:
        self.assertEqual(UNKNOWN["https"], bytes.fromhex("15030300020270"))

    def test_idle_visitors_do_not_slow_a_good_one(self) -> None:
        for count in (200, 2000):
            idle = [TlsSniffer() for _ in range(count)]
            for sniffer in idle:
                self.assertIsNone(sniffer.feed(WHOLE[:-1]))
            seconds = []
            for _ in range(200):
                start = perf_counter()
                outcome = TlsSniffer().feed(WHOLE)
                seconds.append(perf_counter() - start)
                self.assertEqual(shown(outcome), "A www.example.com")
            self.assertLess(sorted(seconds)[197], 0.05)
            self.assertEqual({shown(sniffer.feed(WHOLE[-1:])) for sniffer in idle}, {"A www.example.com"})


class MemoryTests(SynchronousTestCase):
    def test_what_waits_is_kept_once(self) -> None:
        """At every cut up to the limit, a sniffer is little more than the bytes it was given."""
        for make, data, most in (
            (TlsSniffer, records(LONGEST, range(16384, len(LONGEST), 16384))[:-1], SNIFF_TLS),
            (TlsSniffer, records(POST_QUANTUM, range(1, len(POST_QUANTUM)))[:-1], SNIFF_TLS),
            (HttpSniffer, (b"GET / HTTP/1.1\r\nCookie: " + b"x" * SNIFF_HTTP)[: SNIFF_HTTP - 1], SNIFF_HTTP),
        ):
            parts = [data[at : at + 500] for at in range(0, len(data), 500)]
            tracemalloc.start()
            try:
                sniffer = make()
                before, _ = tracemalloc.get_traced_memory()
                for part in parts:
                    self.assertIsNone(sniffer.feed(part))
                after, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            self.assertLessEqual(after - before, most * 9 // 8 + 2000)  # a bytearray grows an eighth ahead

    def test_feeding_past_the_limit_decides(self) -> None:
        for make, most in ((TlsSniffer, SNIFF_TLS), (HttpSniffer, SNIFF_HTTP)):
            sniffer = make()
            first = record(hello())[:40] if make is TlsSniffer else b"GET / HTTP/1.1\r\nA: "
            self.assertIsNone(sniffer.feed(first))
            self.assertIsNotNone(sniffer.feed(first[-1:] * most))


class NoiseTests(SynchronousTestCase):
    @given(st.data(), st.lists(st.integers(1, len(POST_QUANTUM) - 1), max_size=20))
    def test_any_records_and_any_cut(self, data: st.DataObject, borders: list[int]) -> None:
        raw = records(POST_QUANTUM, sorted(set(borders)))
        outcome = run(TlsSniffer, data.draw(pieces(raw)), SNIFF_TLS)
        self.assertEqual(summary(outcome), ("https", "www.example.com", (b"h2", b"http/1.1")))

    @given(st.data(), st.binary(max_size=400))
    def test_any_bytes(self, data: st.DataObject, raw: bytes) -> None:
        typed(TlsSniffer, data.draw(pieces(raw)), SNIFF_TLS)

    @given(st.data(), st.binary(max_size=400))
    def test_any_hello(self, data: st.DataObject, body: bytes) -> None:
        raw = record(b"\x01" + len(body).to_bytes(3, "big") + body)
        self.assertIsNotNone(typed(TlsSniffer, data.draw(pieces(raw)), SNIFF_TLS))

    @given(st.data(), mutated([WHOLE, records(PLAIN, [1, 5, 60, 61]), records(hello(sni(), TICKET, *USUAL, PSK))]))
    def test_any_mutation(self, data: st.DataObject, raw: bytes) -> None:
        typed(TlsSniffer, data.draw(pieces(raw)), SNIFF_TLS)

    @given(st.data(), mutated([PLAIN]))
    def test_any_mutation_of_a_whole_hello(self, data: st.DataObject, raw: bytes) -> None:
        """The framing stays right, so that what is wrong is always inside."""
        handshake = b"\x01" + (len(raw) - 4).to_bytes(3, "big") + raw[4:] if len(raw) > 4 else raw
        typed(TlsSniffer, data.draw(pieces(records(handshake))), SNIFF_TLS)

    @given(st.integers(0, 40), st.binary(min_size=1, max_size=20))
    def test_what_follows_the_hello_does_not_matter(self, size: int, tail: bytes) -> None:
        raw = records(hello(sni(), *USUAL, padding(4 + size)))
        self.assertEqual(summary(TlsSniffer().feed(raw + tail)), summary(TlsSniffer().feed(raw)))
