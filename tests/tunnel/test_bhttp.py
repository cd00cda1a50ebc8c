"""Binary HTTP: what RFC 9292 prints, any cut of it, any noise, and each thing that no message may be."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.tunnel import bhttp
from layer8.tunnel.bhttp import END, Event, Informational, Malformed, Reader, Request, Response, Trailers, read, varint
from layer8.tunnel.limits import MAX_FIELD_BYTES, MAX_FIELDS, MAX_INFORMATIONAL, MAX_PATH
from tests.tunnel.vectors import ABSENT, rows

GET = Request(b"GET", b"https", b"shop.example", b"/notes?q=1", ((b"accept", b"*/*"), (b"cookie", b"a=1")))
OK = Response(200, ((b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")))


def joined(events: list[Event]) -> list[Event]:
    """Put pieces of content together."""
    out: list[Event] = []
    for event in events:
        if isinstance(event, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += event
        else:
            out.append(event)
    return out


def in_pieces(data: bytes, size: int, *, request: bool) -> list[Event]:
    reader = Reader(request=request)
    events: list[Event] = []
    for at in range(0, len(data), size):
        events += reader.feed(data[at : at + size])
    return joined([*events, *reader.end()])


def fields(listed: list[list[str]]) -> bhttp.Fields:
    return tuple((name.encode(), value.encode()) for name, value in listed)


class PublishedTests(SynchronousTestCase):
    skip = ABSENT

    def wanted(self, told: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        if told["framing"] in (0, 2):
            method, scheme, authority, path = (
                told[name].encode() for name in ("method", "scheme", "authority", "path")
            )
            events.append(Request(method, scheme, authority, path, fields(told["headers"])))
        else:
            events += (Informational(one["status"], fields(one["headers"])) for one in told["informational"])
            events.append(Response(told["status"], fields(told["headers"])))
        if told["content"]:
            events.append(bytes.fromhex(told["content"]))
        if told["trailers"]:
            events.append(Trailers(fields(told["trailers"])))
        return [*events, END]

    def test_every_message_both_ways_at_every_cut(self) -> None:
        for row in rows("bhttp"):
            told, data = row["decoded"], bytes.fromhex(row["hex"])
            request = told["framing"] in (0, 2)
            for size in (1, 2, 3, 7, 64, len(data)):
                self.assertEqual(in_pieces(data, size, request=request), self.wanted(told))
            head = next(event for event in self.wanted(told) if isinstance(event, Request | Response))
            written = bhttp.write(
                head,
                bytes.fromhex(told["content"]),
                fields(told["trailers"]),
                early=[event for event in self.wanted(told) if isinstance(event, Informational)],
                known=told["framing"] < 2,
            )
            self.assertEqual(written + bytes(told["padding"]), data)

    def test_what_may_be_cut_off(self) -> None:
        for row, most in zip(rows("bhttp")[:2], (2, 12), strict=True):
            data, wanted = bytes.fromhex(row["hex"]), self.wanted(row["decoded"])
            for less in range(most + 1):
                self.assertEqual(read(data[: len(data) - less], request=True), wanted)
            self.assertRaises(Malformed, read, data[: len(data) - most - 2], request=True)

    def test_messages_of_oblivious_http(self) -> None:
        """Those leave out even the empty section of fields."""
        wanted: list[Event] = [Request(b"GET", b"https", b"example.com", b"/"), END]
        for row in (*rows("ohttp"), *rows("chunked_ohttp")):
            self.assertEqual(read(bytes.fromhex(row["bhttp_request"]), request=True), wanted)
            self.assertEqual(read(bytes.fromhex(row["bhttp_response"]), request=False), [Response(200), END])


NAMES = st.from_regex(rb"\A[a-z][a-z0-9-]{0,20}\Z")
VALUES = st.from_regex(rb"\A([!-~]([ -~]{0,30}[!-~])?)?\Z")
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple)


class RoundTripTests(SynchronousTestCase):
    @given(FIELDS, st.binary(max_size=300), FIELDS, st.booleans(), st.integers(0, 50), st.integers(1, 60))
    def test_requests(
        self, some: bhttp.Fields, content: bytes, more: bhttp.Fields, known: bool, padding: int, cut: int
    ) -> None:
        head = Request(b"POST", b"https", b"shop.example", b"/a", some)
        data = bhttp.write(head, content, more, known=known) + bytes(padding)
        wanted: list[Event] = [head, *([content] if content else []), *([Trailers(more)] if more else []), END]
        self.assertEqual(in_pieces(data, cut, request=True), wanted)

    @given(
        st.lists(FIELDS, max_size=MAX_INFORMATIONAL), st.integers(200, 599), FIELDS, st.booleans(), st.integers(1, 60)
    )
    def test_responses(self, early: list[bhttp.Fields], status: int, some: bhttp.Fields, known: bool, cut: int) -> None:
        before = [Informational(103, one) for one in early]
        data = bhttp.write(Response(status, some), b"content", early=before, known=known)
        wanted: list[Event] = [*before, Response(status, some), b"content", END]
        self.assertEqual(in_pieces(data, cut, request=False), wanted)

    def test_the_length_of_the_content(self) -> None:
        for known in (True, False):
            for data in (bhttp.write(GET, b"12345", known=known), bhttp.write(GET, known=known)[:-2]):
                head = in_pieces(data, 1, request=True)[0]
                assert isinstance(head, Request)
                self.assertEqual(head.length, (5 if b"12345" in data else 0) if known else None)

    def test_in_a_stream(self) -> None:
        reader = Reader(request=False)
        self.assertEqual(reader.feed(bhttp.head(OK, length=None)), [OK])
        self.assertEqual(reader.feed(bhttp.piece(b"one") + bhttp.piece(b"")), [b"one"])
        self.assertEqual(reader.feed(bhttp.piece(b"two")[:2]), [b"t"])
        self.assertEqual(reader.feed(b"wo"), [b"wo"])
        self.assertEqual(reader.feed(bhttp.tail(((b"sum", b"3"),), known=False)), [Trailers(((b"sum", b"3"),))])
        self.assertEqual(reader.feed(bytes(100)) + reader.end(), [END])

    @given(st.integers(0, bhttp.VARINT_MOST))
    def test_numbers(self, number: int) -> None:
        text = varint(number)
        self.assertEqual(bhttp.read_varint(text), (number, len(text)))
        for size in range(len(text)):
            self.assertIsNone(bhttp.read_varint(text[:size]))

    def test_numbers_of_rfc_9000(self) -> None:
        """Appendix A.1, with the two-byte form of 37."""
        for text, number in (
            ("c2197c5eff14e88c", 151_288_809_941_952_652),
            ("9d7f3e7d", 494_878_333),
            ("7bbd", 15_293),
            ("25", 37),
            ("4025", 37),
        ):
            self.assertEqual(bhttp.read_varint(bytes.fromhex(text)), (number, len(text) // 2))
        self.assertRaises(LocalProtocolError, varint, 1 << 62)

    def test_capitals_are_lowered(self) -> None:
        data = bhttp.write(GET).replace(b"accept", b"ACcepT")
        self.assertEqual(read(data, request=True), [GET, END])
        self.assertEqual(bhttp.write(Response(200, ((b"ETag", b"1"),))), bhttp.write(Response(200, ((b"etag", b"1"),))))


def raw(name: bytes, value: bytes, *, known: bool = True) -> bytes:
    """A request with one field, whatever it is."""
    line = varint(len(name)) + name + varint(len(value)) + value
    begin = b"\x00" if known else b"\x02"
    texts = b"\x03GET\x05https\x01a\x01/"
    return begin + texts + (varint(len(line)) + line if known else line + b"\0")


class BadTests(SynchronousTestCase):
    def refused(self, data: bytes, status: int = 400, *, request: bool = True) -> None:
        for size in (len(data) or 1, 1):
            error = self.assertRaises(Malformed, in_pieces, data, size, request=request)
            self.assertEqual(error.status, status)

    def test_the_raw_form_is_good(self) -> None:
        for known in (True, False):
            self.assertEqual(read(raw(b"a", b"b", known=known), request=True)[0].fields, ((b"a", b"b"),))  # type: ignore[union-attr]

    def test_framing(self) -> None:
        for framing in (4, 5, 63, 64, 1 << 40):
            self.refused(varint(framing) + b"\x03GET\x05https\x01a\x01/")
        self.refused(b"\x01" + bhttp.write(GET)[1:])
        self.refused(b"\x00\x40\xc8", request=False)
        self.refused(b"")

    def test_status(self) -> None:
        for status in (0, 99, 600, 1000):
            self.refused(b"\x01" + varint(status), request=False)
        early = b"".join(varint(103) + b"\0" for _ in range(MAX_INFORMATIONAL + 1))
        self.refused(b"\x01" + early + varint(200), request=False)
        self.refused(b"\x01" + varint(103), request=False)
        self.refused(b"\x01" + varint(103) + b"\0", request=False)

    def test_names(self) -> None:
        names = (b"", b":method", b":path", b":status", b":protocol", b"a b", b"a\r", b"a\0", b"a:", b"\xe9", b"(a)")
        for name in names:
            for known in (True, False):
                if known or name:  # a name of no bytes is the end of such a section
                    self.refused(raw(name, b"x", known=known))

    def test_values(self) -> None:
        for value in (b"a\r\nb: c", b"a\n", b"\r", b"a\0b", b"\0", b" a", b"a ", b"\ta", b"a\x01", b"\x7f"):
            for known in (True, False):
                self.refused(raw(b"a", value, known=known))

    def test_request_lines(self) -> None:
        for old, new in (
            (b"\x03GET", b"\x00"),
            (b"\x03GET", b"\x03G T"),
            (b"\x03GET", b"\x03G\r\n"),
            (b"\x03GET", b"\x03G\0T"),
            (b"\x05https", b"\x05http\n"),
            (b"\x01a", b"\x01\xff"),
            (b"\x01/", b"\x02/ "),
            (b"\x01/", b"\x02/\x7f"),
        ):
            self.refused(raw(b"a", b"b").replace(old, new, 1))

    def test_cut_in_the_middle(self) -> None:
        for known in (True, False):
            data = bhttp.write(GET, b"content", ((b"sum", b"1"),), known=known)
            whole = 0
            for size in range(len(data)):
                try:
                    read(data[:size], request=True)
                    whole += 1
                except Malformed:
                    pass
            # Where an empty section might stand: behind the request line, the fields, and the content.
            self.assertEqual(whole, 3)

    def test_padding(self) -> None:
        for known in (True, False):
            data = bhttp.write(GET, known=known)
            self.refused(data + b"\x01")
            self.refused(data + bytes(500) + b"\x01" + bytes(20))

    def test_limits(self) -> None:
        longer = bhttp.write(GET).replace(
            varint(len(GET.path)) + GET.path, varint(MAX_PATH + 1) + b"/" * (MAX_PATH + 1)
        )
        self.refused(longer, 414)
        self.refused(b"\x00\x03GET\x05https\x01a" + varint(1 << 50), 414)
        self.refused(b"\x00" + varint(1 << 50))
        self.refused(b"\x00\x03GET\x05https\x01a\x01/" + varint(MAX_FIELD_BYTES + 1), 431)
        for known in (True, False):
            lines = b"\x01a\x01b" * (MAX_FIELDS + 1)
            section = varint(len(lines)) + lines if known else lines + b"\0"
            self.refused((b"\x00" if known else b"\x02") + b"\x03GET\x05https\x01a\x01/" + section, 431)
        for size in (MAX_FIELD_BYTES + 1, 1 << 60):
            self.refused(b"\x02\x03GET\x05https\x01a\x01/" + varint(size), 431)
            self.refused(b"\x02\x03GET\x05https\x01a\x01/\x01a" + varint(size), 431)
        many = b"".join(b"\x01a" + varint(16_000) + b"b" * 16_000 for _ in range(3))
        self.refused(b"\x02\x03GET\x05https\x01a\x01/" + many, 431)

    def test_a_field_that_leaves_its_section(self) -> None:
        self.refused(b"\x00\x03GET\x05https\x01a\x01/" + b"\x03" + b"\x01a\x05" + b"bbbbb")
        self.refused(b"\x00\x03GET\x05https\x01a\x01/" + b"\x01" + b"\x05")

    def test_nothing_after_a_refusal(self) -> None:
        reader = Reader(request=True)
        self.assertRaises(Malformed, reader.feed, b"\x09")
        self.assertRaises(Malformed, reader.feed, b"\x00")
        self.assertRaises(Malformed, reader.end)

    def test_what_cannot_be_written(self) -> None:
        for name, value in ((b"", b"a"), (b":a", b"a"), (b"a b", b"a"), (b"a", b"a\n"), (b"a", b" a")):
            self.assertRaises(LocalProtocolError, bhttp.write, Response(200, ((name, value),)))
        for status in (99, 100, 199, 600):
            self.assertRaises(LocalProtocolError, bhttp.write, Response(status))
        self.assertRaises(LocalProtocolError, bhttp.write, OK, early=[Informational(200)])
        self.assertRaises(LocalProtocolError, bhttp.write, Request(b"GET", b"https", b"a", b"/" * (MAX_PATH + 1)))
        self.assertRaises(LocalProtocolError, bhttp.write, Request(b"GET", b"https", b"a", b"/ "))
        self.assertRaises(LocalProtocolError, bhttp.write, Response(200, ((b"a", b"b"),) * (MAX_FIELDS + 1)))
        self.assertRaises(LocalProtocolError, bhttp.write, Response(200, ((b"a", b"b" * MAX_FIELD_BYTES),)))

    @given(st.binary(max_size=400), st.booleans(), st.integers(1, 50))
    def test_any_noise(self, data: bytes, request: bool, cut: int) -> None:
        with contextlib.suppress(Malformed):
            in_pieces(data, cut, request=request)

    @given(st.binary(max_size=200), st.sampled_from((b"\x00", b"\x02")), st.integers(1, 50))
    def test_any_noise_behind_a_request_line(self, data: bytes, framing: bytes, cut: int) -> None:
        with contextlib.suppress(Malformed):
            in_pieces(framing + b"\x03GET\x05https\x01a\x01/" + data, cut, request=True)

    @given(st.lists(st.binary(max_size=4000), max_size=60), st.booleans())
    def test_bounded_memory(self, data: list[bytes], request: bool) -> None:
        reader = Reader(request=request)
        with contextlib.suppress(Malformed):
            for one in data:
                reader.feed(one)
                self.assertLess(len(reader._data), 2 * MAX_FIELD_BYTES + 32 + 4000)
