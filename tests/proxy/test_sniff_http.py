"""The HTTP port's sniffer: every row of the table at every cut, the two ways of parsing against each other, noise."""

from collections.abc import Callable
from time import perf_counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.core.names import encode
from layer8.proxy.sniff import TEXTS, UNKNOWN, Found, Outcome, Reason, Refused, answer
from layer8.proxy.sniff_http import SNIFF_HTTP, HttpSniffer
from layer8.proxy.sniff_tls import TlsSniffer
from tests.proxy.cuts import at_every_cut, mutated, pieces, run, shown, summary, typed
from tests.proxy.rows import Row
from tests.proxy.rows_http import BODY, GET, HOST, HTTP_ROWS, PLAIN, cookie, head, hosted
from tests.proxy.rows_tls import TLS_ROWS

BROWSER = head(
    HOST[:-2],
    b"Connection: keep-alive",
    b"Upgrade-Insecure-Requests: 1",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0",
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    b"Accept-Language: en-US,en;q=0.9",
    "Cookie: name=Jürgen".encode("latin-1"),
)


def line_by_line(data: bytes) -> Outcome | None:
    """What the sniffer says when it cannot use the regular expression for usual requests."""
    sniffer = HttpSniffer()
    outcome = sniffer.feed(data[:1])
    return sniffer.feed(data[1:]) if outcome is None else outcome


class HttpRowTests(SynchronousTestCase):
    """One test for each row, named after it: the same outcome in one piece, at every split, and byte by byte."""


def _test_of(row: Row) -> Callable[[HttpRowTests], None]:
    def test(self: HttpRowTests) -> None:
        wanted = f"A {row.host}" if row.outcome == "A" else row.outcome
        self.assertEqual(shown(at_every_cut(HttpSniffer, row.data, SNIFF_HTTP)), wanted)
        self.assertEqual(shown(run(HttpSniffer, row.pieces, SNIFF_HTTP)), wanted)

    return test


for _row in HTTP_ROWS:
    setattr(HttpRowTests, f"test_{_row.slug}", _test_of(_row))


class OutcomeTests(SynchronousTestCase):
    def outcome(self, data: bytes) -> str:
        return shown(at_every_cut(HttpSniffer, data, SNIFF_HTTP))

    def reason(self, data: bytes) -> Reason:
        outcome = at_every_cut(HttpSniffer, data, SNIFF_HTTP)
        assert isinstance(outcome, Refused)
        return outcome.reason

    def test_partial_header_then_idle(self) -> None:
        for size in range(1, len(PLAIN)):
            sniffer = HttpSniffer()
            self.assertIsNone(sniffer.feed(PLAIN[:size]))
            self.assertEqual(shown(sniffer.late()), "408")

    def test_nothing_then_idle(self) -> None:
        self.assertEqual(summary(HttpSniffer().late()), (Reason.SLOW, b""))

    def test_ipv6_literal_is_the_key_of_its_registration(self) -> None:
        outcome = HttpSniffer().feed(hosted(b"[2001:DB8:0:0::1]:80"))
        assert isinstance(outcome, Found)
        self.assertEqual(outcome.host, encode("2001:db8::1", literal=True))

    def test_idle_visitors_do_not_slow_a_good_one(self) -> None:
        for count in (200, 2000):
            idle = [HttpSniffer() for _ in range(count)]
            for sniffer in idle:
                self.assertIsNone(sniffer.feed(PLAIN[:-1]))
            seconds = []
            for _ in range(200):
                start = perf_counter()
                outcome = HttpSniffer().feed(PLAIN)
                seconds.append(perf_counter() - start)
                self.assertEqual(shown(outcome), "A www.example.com")
            self.assertLess(sorted(seconds)[197], 0.05)
            self.assertEqual({shown(sniffer.feed(b"\n")) for sniffer in idle}, {"A www.example.com"})

    def test_body_is_left_to_the_owner(self) -> None:
        sniffer = HttpSniffer()
        data = BODY + b"Content-Length: 70000\r\n\r\n" + bytes(70000)
        self.assertEqual(shown(sniffer.feed(data)), "A www.example.com")
        self.assertEqual(sniffer.data, data)

    def test_one_octet_of_another_protocol_is_enough(self) -> None:
        self.assertEqual(summary(HttpSniffer().feed(b"\x16")), (Reason.NOT_HTTP, b""))
        for first in (b"\x00", b"\x80", b" ", b"/", b"\x05"):
            self.assertEqual(summary(HttpSniffer().feed(first)), (Reason.BAD_REQUEST, answer(400)))

    def test_fed_again_is_our_own_mistake(self) -> None:
        sniffer = HttpSniffer()
        sniffer.feed(PLAIN)
        self.assertRaises(LocalProtocolError, sniffer.feed, b"more")

    def test_options_star(self) -> None:
        self.assertEqual(self.outcome(head(HOST[:-2], start=b"OPTIONS * HTTP/1.1\r\n")), "A www.example.com")
        self.assertEqual(self.reason(head(HOST[:-2], start=b"GET * HTTP/1.1\r\n")), Reason.BAD_TARGET)

    def test_targets(self) -> None:
        for target, wanted in (
            ("/ü".encode(), "A www.example.com"),
            (b"http://WWW.example.com", "A www.example.com"),
            (b"HTTP://www.example.com:80?a", "A www.example.com"),
            (b"http://www.example.com:81/", "400"),
            (b"http:///a", "400"),
            (b"http://www.example.com\\@evil.example.net/", "400"),
            (b"ftp://www.example.com/", "400"),
            (b"www.example.com", "400"),
            (b"www.example.com:80", "400"),
        ):
            data = head(HOST[:-2], start=b"GET " + target + b" HTTP/1.1\r\n")
            self.assertEqual(self.outcome(data), wanted, target)

    def test_absolute_form_of_1_0_without_host(self) -> None:
        self.assertEqual(self.outcome(b"GET http://www.example.com/ HTTP/1.0\r\n\r\n"), "A www.example.com")

    def test_request_lines(self) -> None:
        for line in (
            b"GET  / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b"GET /a b HTTP/1.1",
            b"GET\t/ HTTP/1.1",
            b"GET / http/1.1",
            b"GET / HTTP/11",
            b"GET / HTTP/1.10",
            b"GET /\x00 HTTP/1.1",
            b"GET /\x7f HTTP/1.1",
            b"GET /\r HTTP/1.1",
            b" GET / HTTP/1.1",
        ):
            self.assertEqual(self.reason(line + b"\r\n" + HOST + b"\r\n"), Reason.BAD_REQUEST, line)

    def test_versions(self) -> None:
        for version in (b"1.2", b"2.0", b"9.9"):
            self.assertEqual(self.reason(b"GET / HTTP/" + version + b"\r\n" + HOST + b"\r\n"), Reason.BAD_VERSION)
        self.assertEqual(self.reason(b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Reason.BAD_VERSION)
        self.assertEqual(self.outcome(b"GET / HTTP/1.0\r\n" + HOST + b"\r\n"), "A www.example.com")

    def test_field_lines(self) -> None:
        for line in (b"novalue", b": x", b"a b: c", b"a\t: c", b"a: \x01", b"a: \x7f", b"\xc3\xbc: a", b"a(b: c"):
            self.assertEqual(self.reason(head(HOST[:-2], line)), Reason.BAD_FIELD, line)
        self.assertEqual(self.outcome(head(HOST[:-2], b"A:", b"B:\t \xff x \t")), "A www.example.com")

    def test_white_space_around_host(self) -> None:
        self.assertEqual(self.outcome(hosted(b"\t  www.example.com \t")), "A www.example.com")

    def test_names_that_begin_like_host(self) -> None:
        self.assertEqual(
            self.outcome(head(b"Hosts: evil", b"Hos: evil", HOST[:-2], b"X-Host: evil")), "A www.example.com"
        )

    def test_long_request_line(self) -> None:
        self.assertEqual(shown(HttpSniffer().feed(b"GET /" + b"a" * SNIFF_HTTP)), "414")

    def test_longest_head(self) -> None:
        rest = SNIFF_HTTP - len(GET + HOST + b"\r\n")
        self.assertEqual(shown(line_by_line(GET + HOST + cookie(rest) + b"\r\n")), "A www.example.com")
        self.assertEqual(shown(HttpSniffer().feed(GET + HOST + cookie(rest) + b"\r\n")), "A www.example.com")
        self.assertEqual(shown(HttpSniffer().feed(GET + HOST + cookie(rest + 1) + b"\r\n")), "431")

    def test_port_out_of_range(self) -> None:
        self.assertEqual(self.outcome(hosted(b"www.example.com:65535")), "A www.example.com")
        self.assertEqual(self.outcome(hosted(b"www.example.com:65536")), "400")

    def test_answers_are_complete_responses(self) -> None:
        for status, text in TEXTS.items():
            top, _, body = answer(status).partition(b"\r\n\r\n")
            lines = top.split(b"\r\n")
            self.assertEqual(lines[0], f"HTTP/1.1 {status} {text}".encode())
            self.assertIn(b"Content-Length: %d" % len(body), lines)
            self.assertIn(b"Connection: close", lines)
        self.assertIn(b"\r\nAllow: ", answer(405))
        self.assertEqual(UNKNOWN["http"], answer(404))

    def test_every_reason_but_those_of_http_2_is_some_row(self) -> None:
        seen = set()
        for rows, make in ((HTTP_ROWS, HttpSniffer), (TLS_ROWS, TlsSniffer)):
            for row in rows:
                outcome = make().feed(row.data)
                if isinstance(outcome, Refused):
                    seen.add(outcome.reason)
        self.assertEqual(set(Reason) - seen, {Reason.BAD_H2, Reason.SLOW})


class TwoWaysTests(SynchronousTestCase):
    """What the regular expression decides must be what the line parser says."""

    def test_usual_requests_are_looked_at_once(self) -> None:
        for data in (PLAIN, BROWSER, hosted(b"www.example.com:8080"), BODY + b"Content-Length: 5\r\n\r\nhello"):
            sniffer = HttpSniffer()
            self.assertEqual(shown(sniffer.feed(data)), "A www.example.com")
            self.assertEqual(sniffer.work, data.index(b"\r\n\r\n") + 4)
            self.assertEqual(summary(line_by_line(data)), ("http", "www.example.com", ()))

    @given(
        st.sampled_from(
            (
                b"GET / HTTP/1.1",
                b"POST /a HTTP/1.0",
                b"CONNECT /a HTTP/1.1",
                b"GET http://a.example/ HTTP/1.1",
                b"G / HTTP/1.2",
            )
        ),
        st.lists(
            st.one_of(
                st.sampled_from(
                    (
                        b"Host: a.example",
                        b"hOsT:a.example:80",
                        b"Host: A.Example.",
                        b"Host: a.example:99999",
                        b"Host: 192.0.2.1",
                        b"Host: a..b",
                        b"Host : a.example",
                        b"Host",
                        b"Hosts: b",
                        b"Accept: */*",
                        b" folded",
                        b"A: \x00",
                        b"",
                    )
                ),
                st.binary(max_size=12),
            ),
            max_size=5,
        ),
        st.sampled_from((b"\r\n", b"\n", b"\r\r\n")),
        st.binary(max_size=20),
    )
    def test_composed_heads(self, line: bytes, fields: list[bytes], newline: bytes, tail: bytes) -> None:
        data = newline.join([line, *fields, b"", b""]) + tail
        self.assertEqual(summary(HttpSniffer().feed(data)), summary(line_by_line(data)))

    @given(mutated([PLAIN, BROWSER, hosted(b"www.example.com:8080")]))
    def test_mutated_heads(self, data: bytes) -> None:
        self.assertEqual(summary(HttpSniffer().feed(data)), summary(line_by_line(data)))

    @given(st.integers(0, 110), st.integers(0, 110))
    def test_any_number_of_fields(self, before: int, after: int) -> None:
        data = head(*[b"A: b"] * before, HOST[:-2], *[b"A: b"] * after)
        wanted = "A www.example.com" if before + after < 100 else "431"
        self.assertEqual(shown(HttpSniffer().feed(data)), wanted)
        self.assertEqual(shown(line_by_line(data)), wanted)


class NoiseTests(SynchronousTestCase):
    @given(st.data(), st.binary(max_size=300))
    def test_any_bytes(self, data: st.DataObject, raw: bytes) -> None:
        typed(HttpSniffer, data.draw(pieces(raw)), SNIFF_HTTP)

    @given(st.data(), mutated([row.data for row in HTTP_ROWS if len(row.data) < 1000]))
    def test_any_mutation(self, data: st.DataObject, raw: bytes) -> None:
        typed(HttpSniffer, data.draw(pieces(raw)), SNIFF_HTTP)

    @given(
        st.data(), st.lists(st.sampled_from((b"\r\n", b"\n", b":", b" ", b"Host", b"a.b", b"GET", b"HTTP/1.1", b"/")))
    )
    def test_any_tokens(self, data: st.DataObject, tokens: list[bytes]) -> None:
        typed(HttpSniffer, data.draw(pieces(b"GET / HTTP/1.1\r\n" + b"".join(tokens) + b"\r\n\r\n")), SNIFF_HTTP)
