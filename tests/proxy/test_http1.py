"""Message framing: what is a message and what is refused, at every cut, in noise, and against h11."""

import itertools
from collections.abc import Callable, Iterable

import h11
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.http1 import (
    CHUNK_LINE,
    CHUNKED,
    END,
    ENDLESS,
    HEAD,
    UNTIL_END,
    Malformed,
    Reader,
    Request,
    Response,
    read_request,
    read_response,
    repeatable,
)
from layer8.core.names import from_authority
from layer8.proxy.sniff import Found
from layer8.proxy.sniff_http import HttpSniffer
from tests.proxy.cuts import mutated, pieces
from tests.proxy.rows_http import HTTP_ROWS

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5;x=y\r\n body\r\n0\r\n"
OK = b"HTTP/1.1 200 OK\r\n"

Told = list[tuple[object, ...]]


def told(data: Iterable[bytes], response: bool = False, bare: bool = False) -> Told:
    """What a reader says of pieces that arrive one by one, with the body's pieces joined; the last may be a refusal."""
    reader: Reader[Request] | Reader[Response] = Reader(read_response) if response else Reader(read_request)
    reader.bare = bare
    said: Told = []
    body = b""
    try:
        for piece in data:
            reader.feed(piece)
            while (what := reader.next()) is not None:
                if isinstance(what, bytes):
                    body += what
                    continue
                if what is END:
                    said.append(("body", body))
                    body = b""
                else:
                    said.append(("head", what.raw))
    except Malformed as error:
        said.append(("refused", error.status))
        return said
    if body or not reader.whole:
        said.append(("open", body))
    return said


def every_way(data: bytes, response: bool = False, bare: bool = False) -> Told:
    """The same at every cut and byte by byte; an open message may have given less of its body."""
    whole = told([data], response, bare)
    ways = [[data[:at], data[at:]] for at in range(1, len(data))]
    for way in [*ways, [data[at : at + 1] for at in range(len(data))]]:
        cut = told(way, response, bare)
        if cut != whole:
            raise AssertionError(f"{way}: {cut} and not {whole}")
    return whole


class RequestTests(SynchronousTestCase):
    def refused(self, data: bytes) -> int:
        said = every_way(data)
        self.assertEqual(said[-1][0], "refused", data)
        status = said[-1][1]
        assert isinstance(status, int)
        return status

    def test_no_body(self) -> None:
        self.assertEqual(every_way(GET), [("head", GET), ("body", b"")])

    def test_length(self) -> None:
        head = POST + b"Content-Length: 5\r\n\r\n"
        self.assertEqual(every_way(head + b"hello"), [("head", head), ("body", b"hello")])
        self.assertEqual(every_way(head + b"hel"), [("head", head), ("open", b"hel")])

    def test_chunks(self) -> None:
        for trailers in (b"\r\n", b"Digest: x\r\nB:\r\n\r\n"):
            head, _, body = (POST + CHUNKS + trailers).partition(b"\r\n\r\n")
            self.assertEqual(
                every_way(POST + CHUNKS + trailers), [("head", head + b"\r\n\r\n"), ("body", body)], trailers
            )

    def test_trailers_that_would_add_to_a_head(self) -> None:
        for bad in (
            b"Host",
            b"X-Forwarded-For",
            b"x_forwarded.proto",
            b"X-Real-IP",
            b"Authorization",
            b"Cookie",
            b"Forwarded",
        ):
            self.assertEqual(self.refused(POST + CHUNKS + bad + b": x\r\n\r\n"), 400, bad)

    def test_what_may_be_said_twice(self) -> None:
        options = GET.replace(b"GET", b"OPTIONS")
        for said, yes in (
            (GET, True),
            (options + GET.replace(b"GET", b"HEAD"), True),
            (GET + POST[:-3], True),
            (GET + POST + b"\r\n", False),
            (GET + POST + b"Content-Length: 5\r\n\r\nhe", False),
            (POST + b"Content-Length: 0\r\n\r\n" + GET, False),
            (b"GET / HTTP/1.1\r\n\r\n", False),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False),
        ):
            self.assertEqual(repeatable(said), yes, said)

    def test_pipeline(self) -> None:
        said = every_way(GET + POST + CHUNKS + b"\r\n" + GET)
        self.assertEqual([what for what, _ in said], ["head", "body"] * 3)

    def test_one_empty_line_before_a_request(self) -> None:
        self.assertEqual(every_way(GET + b"\r\n" + GET)[2], ("head", b"\r\n" + GET))
        self.assertEqual(self.refused(GET + b"\r\n\r\n" + GET), 400)

    def test_line_feeds_alone(self) -> None:
        self.assertEqual(every_way(GET.replace(b"\r\n", b"\n"))[-1], ("body", b""))
        for at in range(GET.count(b"\r\n")):
            parts = GET.split(b"\r\n")
            mixed = b"\r\n".join(parts[: at + 1]) + b"\n" + b"\r\n".join(parts[at + 1 :])
            self.assertEqual(self.refused(mixed + GET), 400, mixed)

    def test_what_a_head_says(self) -> None:
        request = read_request(
            b"PUT http://A.test:80?q#f HTTP/1.1\r\nHost: a.test\r\nContent-Length: 7\r\n"
            b"Connection: Keep-Alive, upgrade,\r\nUpgrade: WebSocket\r\nX:  y \t\r\n\r\n"
        )
        self.assertEqual((request.method, request.path, request.minor, request.body), (b"PUT", b"/?q", 1, 7))
        self.assertEqual((request.host, request.authority), (("a.test", None), b"a.test"))
        self.assertEqual((request.options, request.upgrade), ({b"keep-alive", b"upgrade"}, b"websocket"))
        self.assertEqual(request.fields[-1], (b"x", b"X", b"y"))

    def test_paths(self) -> None:
        for line, path in (
            (b"GET /a?b", b"/a?b"),
            (b"OPTIONS *", b"*"),
            (b"OPTIONS http://a.test", b"*"),
            (b"GET http://a.test", b"/"),
            (b"GET http://a.test/a#b", b"/a"),
        ):
            self.assertEqual(read_request(line + b" HTTP/1.1\r\nHost: a.test\r\n\r\n").path, path)

    def test_old_requests(self) -> None:
        self.assertIsNone(read_request(b"GET / HTTP/1.0\r\n\r\n").host)
        self.assertEqual(read_request(b"GET http://b.test/ HTTP/1.0\r\n\r\n").host, ("b.test", None))

    def test_lengths_that_leave_doubt(self) -> None:
        for fields in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            b"Content-Length: 5, 5\r\n",
            b"Content-Length: +5\r\n",
            b"Content-Length: -5\r\n",
            b"Content-Length: 0x5\r\n",
            b"Content-Length: 05\r\n",
            b"Content-Length: 5 5\r\n",
            b"Content-Length:\r\n",
            b"Content-Length: 1000000000000000000\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"Transfer-Encoding: chunked, identity\r\n",
            b"Transfer-Encoding: xchunked\r\n",
            b"Transfer-Encoding: \x0bchunked\r\n",
            b"Transfer-Encoding:\r\n",
            b"Transfer-Encoding : chunked\r\n",
            b"Transfer-Encoding\r\n : chunked\r\n",
            b"Content-Length: 5\r\n 5\r\n",
            b"X: y\rContent-Length: 5\r\n",
            b"X: y\nContent-Length: 5\r\n",
            b"X: \x00\r\n",
            b" X: y\r\n",
            b": y\r\n",
            b"X\r\n",
        ):
            self.assertEqual(self.refused(POST + fields + b"\r\n" + b"5\r\nhello\r\n0\r\n\r\n"), 400, fields)
        old = b"POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(self.refused(old), 400)

    def test_chunks_that_leave_doubt(self) -> None:
        start = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        for chunks in (
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello!0\r\n\r\n",
            b"5\r\nhelloo\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"5_\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b";x\r\nhello\r\n0\r\n\r\n",
            b"5;\rx\r\nhello\r\n0\r\n\r\n",
            b"5;\nx\r\nhello\r\n0\r\n\r\n",
            b"g\r\n",
            b"1000000000000000\r\n",
            b"0\r\n\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\n X: y\r\n\r\n",
            b"0\r\nHost: b.test\r\n\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"0\r\nX: y\n\r\n",
        ):
            self.assertEqual(self.refused(start + chunks), 400, chunks)

    def test_limits(self) -> None:
        filler = b"X: " + b"y" * (HEAD - len(GET) - 5) + b"\r\n\r\n"
        fits = GET[:-2] + filler
        self.assertEqual(len(fits), HEAD)
        self.assertEqual(told([fits])[-1][0], "body")
        self.assertEqual(told([GET[:-2] + b"X" + filler]), [("refused", 431)])
        self.assertEqual(told([b"G" * HEAD]), [("refused", 431)])
        many = GET[:-2] + b"X: y\r\n" * 99 + b"\r\n"
        self.assertEqual(told([many])[-1][0], "body")
        self.assertEqual(told([GET[:-2] + b"X: y\r\n" * 100 + b"\r\n"]), [("refused", 431)])
        start = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(told([start + b"5;" + b"x" * CHUNK_LINE])[-1], ("refused", 400))
        self.assertEqual(told([start + b"0\r\n" + b"X: y\r\n" * 101])[-1], ("refused", 400))
        self.assertEqual(told([start + b"0\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 34])[-1], ("refused", 400))

    def test_no_requests_at_all(self) -> None:
        for data, status in (
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0),
            (b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", 405),
            (b"GET / HTTP/3.0\r\nHost: a.test\r\n\r\n", 505),
            (b"GET / HTTP/1.2\r\nHost: a.test\r\n\r\n", 505),
            (b"GET / HTTP/0.9\r\nHost: a.test\r\n\r\n", 400),
            (b"GET /\r\n\r\n", 400),
            (b"GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n", 400),
            (b"GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
            (b"GET a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
        ):
            self.assertEqual(self.refused(data), status, data)

    def test_free_bytes_need_not_be_fed(self) -> None:
        reader = Reader(read_request)
        reader.feed(POST + b"Content-Length: 1000\r\n\r\n" + b"x")
        self.assertIsInstance(reader.next(), Request)
        self.assertEqual(reader.free, 0)
        self.assertEqual(reader.next(), b"x")
        self.assertEqual(reader.free, 999)
        reader.skipped(900)
        self.assertEqual((reader.free, reader.whole), (99, False))
        reader.skipped(99)
        self.assertEqual((reader.free, reader.next(), reader.whole), (0, END, True))
        reader.feed(POST + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n")
        self.assertIsInstance(reader.next(), Request)
        self.assertEqual(reader.next(), b"fff\r\n")
        self.assertEqual(reader.free, 0xFFF)
        reader.skipped(0xFFF)
        self.assertEqual(reader.free, 0)
        reader.feed(b"\r\n0\r\n\r\nGET")
        self.assertEqual([reader.next(), reader.next(), reader.next()], [b"\r\n0\r\n\r\n", END, None])
        self.assertEqual((reader.rest(), reader.whole), (b"GET", True))

    def test_work_does_not_grow_with_the_number_of_pieces(self) -> None:
        """A head of 30,000 bytes in as many pieces takes no longer than a few times what it takes in one hundred."""
        from time import perf_counter

        data = GET[:-2] + b"X: " + b"y" * 30_000
        seconds = []
        for size in (300, 1):
            reader = Reader(read_request)
            start = perf_counter()
            for at in range(0, len(data), size):
                reader.feed(data[at : at + size])
                self.assertIsNone(reader.next())
            seconds.append(perf_counter() - start)
        self.assertLess(seconds[1], 1.0, seconds)


class ResponseTests(SynchronousTestCase):
    def test_lengths(self) -> None:
        for fields, body, length in (
            (b"Content-Length: 5\r\n\r\n", b"hello", 5),
            (CHUNKS.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", CHUNKS.partition(b"\r\n\r\n")[2] + b"\r\n", CHUNKED),
        ):
            self.assertEqual(every_way(OK + fields + body, response=True), [("head", OK + fields), ("body", body)])
            self.assertEqual(read_response(OK + fields).body, length)

    def test_until_the_end(self) -> None:
        self.assertEqual(
            every_way(OK + b"\r\nanything", response=True), [("head", OK + b"\r\n"), ("open", b"anything")]
        )
        self.assertEqual(read_response(OK + b"\r\n").body, UNTIL_END)
        reader = Reader(read_response)
        reader.feed(OK + b"\r\n")
        reader.next()
        self.assertEqual((reader.free, reader.whole), (ENDLESS, True))
        reader.skipped(1 << 40)
        self.assertEqual((reader.free, reader.whole), (ENDLESS, True))

    def test_without_body(self) -> None:
        for status in (b"100 Continue", b"101 Switching Protocols", b"103", b"204 No Content", b"304 Not Modified"):
            head = b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n"
            self.assertEqual(every_way(head + head, response=True), [("head", head), ("body", b"")] * 2)
        head = OK + b"Content-Length: 5\r\n\r\n"
        self.assertEqual(every_way(head, response=True, bare=True), [("head", head), ("body", b"")])

    def test_interim_then_final(self) -> None:
        data = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi"
        self.assertEqual([what for what, _ in every_way(data, response=True)], ["head", "body"] * 2)

    def test_status_lines(self) -> None:
        for line in (b"HTTP/1.0 200 ", b"HTTP/1.1 200", b"HTTP/1.1 299 x\xff"):
            self.assertEqual(every_way(line + b"\r\nContent-Length: 0\r\n\r\n", response=True)[-1], ("body", b""), line)
        for line in (b"HTTP/2 200", b"HTTP/1.1 20", b"HTTP/1.1 000 x", b"ICY 200 OK", b"HTTP/1.1  200 OK", b""):
            self.assertEqual(told([line + b"\r\n\r\n"], response=True)[-1][0], "refused", line)

    def test_doubt(self) -> None:
        for fields in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"X: a\r\n b\r\n",
            b"X: a\rb\r\n",
        ):
            self.assertEqual(every_way(OK + fields + b"\r\n", response=True)[-1][0], "refused", fields)


class NoiseTests(SynchronousTestCase):
    bases = (
        GET + GET,
        POST + CHUNKS + b"X: y\r\n\r\n" + GET,
        POST + b"Content-Length: 5\r\n\r\nhello" + GET,
    )

    @given(st.data())
    def test_any_cut(self, data: st.DataObject) -> None:
        base = data.draw(st.sampled_from(self.bases))
        self.assertEqual(told(data.draw(pieces(base))), told([base]))

    @given(st.data())
    def test_any_noise(self, data: st.DataObject) -> None:
        """However the bytes are changed, every cut says the same of every message that was complete."""
        base = data.draw(st.one_of(mutated(self.bases), st.binary(max_size=200)))
        for response in (False, True):
            whole, cut = told([base], response), told(data.draw(pieces(base)), response)
            for one, other in itertools.zip_longest(whole, cut):
                if one is not None and one[0] == "open":
                    break  # how much of an unfinished body is known depends on the cut
                self.assertEqual(one, other)

    def test_the_sniffer_reads_no_other_host(self) -> None:
        """Of two readings of one head, the reader's may be stricter, never different."""
        refused = []
        for row in HTTP_ROWS:
            sniffed = HttpSniffer().feed(row.data)
            if not isinstance(sniffed, Found):
                continue
            said = told([row.data])
            if said[0][0] == "refused":
                refused.append(row.name)
                continue
            raw = said[0][1]
            assert isinstance(raw, bytes)
            host = read_request(raw).host
            self.assertEqual(None if host is None else host[0], sniffed.host, row.name)
        self.assertEqual([name for name in refused if "PRI" not in name], ["both Content-Length and chunked"])

    @given(st.data())
    def test_the_sniffer_reads_no_other_host_in_noise(self, data: st.DataObject) -> None:
        base = data.draw(mutated((GET, *(row.data for row in HTTP_ROWS if len(row.data) < 300))))
        sniffed = HttpSniffer().feed(base)
        said = told([base])
        if said and said[0][0] == "head":
            raw = said[0][1]
            assert isinstance(raw, bytes) and isinstance(sniffed, Found)
            host = read_request(raw).host
            self.assertEqual(None if host is None else host[0], sniffed.host)


def by_h11(data: bytes, server: bool) -> list[tuple[object, ...]] | None:
    """What h11 says of the same bytes: bodies decoded, None if it refuses them."""
    connection = h11.Connection(h11.SERVER if server else h11.CLIENT, max_incomplete_event_size=1 << 20)
    if not server:
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a.test")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    said: list[tuple[object, ...]] = []
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
                what = event.target if isinstance(event, h11.Request) else event.status_code
                said.append((what, [(name, value) for name, value in event.headers]))
                body = b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return [*said, (body,)]
            else:
                return said
    except h11.RemoteProtocolError:
        return None


def decoded(raw: bytes, body: int) -> bytes:
    """The content of a body: chunks joined."""
    if body != CHUNKED:
        return raw
    content = b""
    while True:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            return content
        content, raw = content + raw[:size], raw[size + 2 :]


class DifferentialTests(SynchronousTestCase):
    """h11 reads the same bytes: what we take as one message, it takes as the same message."""

    requests = NoiseTests.bases
    responses = (
        OK + b"Content-Length: 5\r\nX: y\r\n\r\nhello",
        OK + CHUNKS + b"X: y\r\n\r\n",
        b"HTTP/1.1 204 None\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi",
    )

    def compare(self, data: bytes, server: bool, read: Callable[[bytes], Request | Response]) -> bool:
        """Compare the first message; True if both have it whole."""
        ours = told([data], response=not server)
        if len(ours) < 2 or ours[1][0] != "body":
            return False
        raw, body = ours[0][1], ours[1][1]
        assert isinstance(raw, bytes) and isinstance(body, bytes)
        head = read(raw)
        theirs = by_h11(data, server)
        if isinstance(head, Response) and head.status < 200:
            return False
        if theirs is None:
            return False  # it is stricter about what fields may hold
        fields = [(name, value) for name, _, value in head.fields]
        self.assertEqual(theirs[0][1], fields)
        self.assertEqual(theirs[-1], (decoded(body, head.body),), data)
        return True

    def test_what_is_sent_every_day(self) -> None:
        for data in self.requests:
            self.assertTrue(self.compare(data, True, read_request), data)
        for data in self.responses[:3]:
            self.assertTrue(self.compare(data, False, read_response), data)

    @given(mutated(requests))
    def test_requests_with_noise(self, data: bytes) -> None:
        self.compare(data, True, read_request)

    @given(mutated(responses))
    def test_responses_with_noise(self, data: bytes) -> None:
        self.compare(data, False, read_response)


class AuthorityTests(SynchronousTestCase):
    def test_what_the_reader_calls_a_host(self) -> None:
        for value in (b"a.test", b"A.test:80", b"a.test.", b"[::1]:8080"):
            request = read_request(b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n")
            self.assertEqual((request.host, request.authority), (from_authority(value), value))
