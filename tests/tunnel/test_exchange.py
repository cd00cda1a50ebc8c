"""A sealed request and its answer, page and gateway together: what arrives, what is refused, and by whom it is said."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.core.session import Close, Send, Tell
from layer8.crypto.hpke_context import Aead, Private
from layer8.tunnel import bhttp, dates, wire
from layer8.tunnel.bhttp import Fields, Informational, Request, Response, varint
from layer8.tunnel.client_session import (
    CODES,
    Answer,
    ClientExchange,
    Done,
    Early,
    Failure,
    Leg,
    Piece,
    Resend,
    dressed,
)
from layer8.tunnel.gateway_session import Body, Broken, Call, GatewayExchange, Leave, Remember, Reply, Whole
from layer8.tunnel.limits import CHUNK_PLAIN, EXCHANGE_TIME, HEAD_TIME, IDLE_TIME, MAX_SINGLE
from layer8.tunnel.outgoing import PADDING
from layer8.tunnel.replay import Verdict, minute
from layer8.tunnel.wire import CHUNKED, HEAD, SINGLE, Media
from tests.tunnel.pair import EPOCH, NOW, WALL, Gateway, Pair, Seen, asked

TEXT = (b"content-type", b"text/plain")


def content(seen: Seen, kind: type[Body] | type[Piece]) -> bytes:
    return b"".join(one.data for one in seen.told(kind))


def status(pair: Pair) -> int:
    """The status of a sealed answer, opened by its page."""
    pair.hear()
    heads = pair.page.told(Answer)
    return heads[0].response.status if heads else 0


class RoundTripTests(SynchronousTestCase):
    @given(
        st.booleans(),
        st.binary(max_size=3000),
        st.binary(max_size=3000),
        st.integers(1, 4000),
        st.booleans(),
        st.booleans(),
    )
    def test_any_cut(self, chunked: bool, up: bytes, down: bytes, cut: int, known: bool, pad: bool) -> None:
        pair = Pair(Gateway(pad=pad), asked(b"POST"), chunked=chunked, length=len(up) if known else None, pad=pad)
        pair.give(pair.ask(up), cut)
        (call,) = pair.called
        self.assertEqual((call.target.path, call.target.query), ("/notes", "q=1"))
        self.assertEqual(call.length, len(up) if known else None)
        self.assertEqual((content(pair.there, Body), pair.there.told(Whole)), (up, [Whole()]))
        pair.answer(Response(201, (TEXT,)), down, known=known)
        pair.hear(cut)
        self.assertEqual(pair.page.told(Answer), [Answer(Response(201, (TEXT,)))])
        self.assertEqual((content(pair.page, Piece), pair.page.told(Done)), (down, [Done()]))
        for seen in (pair.page, pair.there):
            self.assertEqual(seen.closed, [Close("done")])
        self.assertEqual((pair.client.deadline(), pair.serving.deadline()), (None, None))

    def test_what_the_backend_hears(self) -> None:
        """The fields that every request has, and those that the page has set; none of a browser's own."""
        pair = Pair(Gateway(), asked(fields=((b"User-Agent", b"Firefox"), (b"x-mine", b"1"), (b"via", b"me"))))
        pair.give(pair.ask())
        date = dates.write(minute(WALL))
        self.assertEqual(
            pair.called[0].fields,
            (
                (b"date", date),
                (b"origin", b"https://shop.example"),
                (b"user-agent", b"L8"),
                (b"accept", b"*/*"),
                (b"x-mine", b"1"),
            ),
        )
        self.assertTrue(date.endswith(b":00 GMT"))
        self.assertEqual(
            dressed(asked(fields=((b"accept", b"text/css"),)), "https://a", WALL).fields[3:],
            ((b"accept", b"text/css"),),
        )

    def test_repeated_fields_stay_apart(self) -> None:
        pair = Pair(Gateway())
        pair.give(pair.ask())
        cookies = tuple((b"set-cookie", b"%d=1" % number) for number in range(3))
        pair.answer(Response(200, cookies))
        pair.hear()
        self.assertEqual(pair.page.told(Answer)[0].response.fields, cookies)

    def test_as_it_comes(self) -> None:
        """The first piece of either body is there before the last is made."""
        pair = Pair(Gateway(), asked(b"POST"), length=None)
        pair.client.write(bytes(CHUNK_PLAIN), NOW)
        pair.page.take(pair.client.effects())
        pair.give(pair.page.sent, whole=False)
        self.assertGreater(len(content(pair.there, Body)), CHUNK_PLAIN - 500)
        self.assertEqual(pair.there.told(Whole), [])
        pair.give(pair.ask(b"the rest"))
        self.assertEqual(content(pair.there, Body)[-8:], b"the rest")
        pair.serving.respond(Response(200), NOW)
        pair.serving.write(b"data: one\n\n", NOW)
        pair.serving.flush(NOW)
        pair.settle()
        pair.client.answered(200, CHUNKED.response, NOW)
        pair.client.received(pair.there.sent, NOW)
        pair.page.take(pair.client.effects())
        self.assertEqual(content(pair.page, Piece), b"data: one\n\n")
        self.assertEqual(pair.page.told(Done), [])

    def test_a_stream_is_never_held(self) -> None:
        """32 MiB each way, in pieces: nobody keeps more than a chunk of it, and what it costs is exact."""
        piece, count = bytes(65_536), 512
        pair = Pair(Gateway(pad=False), asked(b"POST"), length=None, pad=False)
        up = down = 0
        for number in range(count):
            pair.client.write(piece, NOW)
            sent = b"".join(effect.data for effect in pair.client.effects() if isinstance(effect, Send))
            pair.serving.received(sent, NOW)
            if not number:
                pair.settle()
                pair.there.effects.clear()
            up += sum(
                len(e.what.data) for e in pair.serving.effects() if isinstance(e, Tell) and isinstance(e.what, Body)
            )
            assert pair.client._writing is not None
            self.assertLess(len(pair.client._writing._text), CHUNK_PLAIN)
            self.assertLess(len(pair.serving._held) + sum(map(len, pair.serving._texts)), CHUNK_PLAIN)
            self.assertLess(len(pair.serving._reader._data), CHUNK_PLAIN)
        pair.serving.respond(Response(200), NOW, length=len(piece) * count)
        pair.client.finish(NOW)
        pair.client.effects()
        pair.client.answered(200, CHUNKED.response, NOW)
        outer = 0
        for _ in range(count):
            pair.serving.write(piece, NOW)
            sent = b"".join(effect.data for effect in pair.serving.effects() if isinstance(effect, Send))
            outer += len(sent)
            pair.client.received(sent, NOW)
            for effect in pair.client.effects():
                if isinstance(effect, Tell) and isinstance(effect.what, Piece):
                    down += len(effect.what.data)
        self.assertGreater(up, len(piece) * (count - 2))
        self.assertGreater(down, len(piece) * count - CHUNK_PLAIN)
        self.assertEqual((outer - 16) % (CHUNK_PLAIN + 20), 0)

    def test_sizes_on_the_wire(self) -> None:
        """One of eight, however long the message is; and exactly what it costs without padding."""
        seen = {len(Pair(Gateway(), asked(b"POST"), length=size).ask(bytes(size))) for size in range(1, 15_000, 501)}
        self.assertLessEqual(seen, {wire.padded(512 << step) + 56 for step in range(6)})
        for size in (0, 100, 5 * CHUNK_PLAIN):
            pair = Pair(Gateway(pad=False), asked(b"POST"), length=size, pad=False)
            up = pair.ask(bytes(size))
            inner = len(bhttp.write(pair.client._request, bytes(size)))
            self.assertEqual(len(up), inner + 56 + 20 * ((inner - 1) // CHUNK_PLAIN))
            pair.give(up)
            pair.answer(Response(200), bytes(size))
            inner = len(bhttp.write(Response(200), bytes(size)))
            self.assertEqual(len(pair.there.sent), inner + 33 + 20 * ((inner - 1) // CHUNK_PLAIN))

    def test_answers_are_padded(self) -> None:
        sizes = set()
        for size in (0, 1, 200, 400):
            pair = Pair(Gateway())
            pair.give(pair.ask())
            pair.answer(Response(200, (TEXT,)), bytes(size), known=bool(size % 200))
            sizes.add(len(pair.there.sent))
            pair.hear()
            self.assertEqual(content(pair.page, Piece), bytes(size))
        self.assertEqual(sizes, {512 + 33})

    def test_answers_without_content(self) -> None:
        for method, number in ((b"HEAD", 200), (b"GET", 204), (b"GET", 205), (b"GET", 304)):
            pair = Pair(Gateway(), asked(method))
            pair.give(pair.ask())
            pair.serving.respond(Response(number, ((b"content-length", b"7"),)), NOW, length=7)
            pair.serving.write(b"content", NOW)
            pair.serving.finish(NOW)
            pair.settle()
            pair.hear()
            self.assertEqual(pair.page.told(Answer)[0].response.fields, ((b"content-length", b"7"),))
            self.assertEqual((content(pair.page, Piece), len(pair.page.told(Done))), (b"", 1))

    def test_early_responses_and_trailers(self) -> None:
        pair = Pair(Gateway(), asked(b"POST"), length=None)
        pair.client.finish(NOW, ((b"sum", b"1"),))
        pair.page.take(pair.client.effects())
        pair.give(pair.page.sent)
        self.assertEqual(pair.there.told(Whole), [Whole(((b"sum", b"1"),))])
        hint = Informational(103, ((b"link", b"</a>"),))
        pair.serving.respond(Response(200), NOW, early=[hint])
        pair.serving.write(b"x", NOW)
        pair.serving.finish(NOW, ((b"sum", b"2"),))
        pair.settle()
        pair.hear()
        self.assertEqual(pair.page.told(Early), [Early(hint)])
        self.assertEqual(pair.page.told(Done), [Done(((b"sum", b"2"),))])

    def test_chacha(self) -> None:
        """Opened where it is offered, and nowhere else."""
        for chacha in (True, False):
            pair = Pair(Gateway(chacha=chacha))
            aead, keys = Aead.CHACHA20_POLY1305, pair.gateway.keys(chacha=True)
            sealer, context = wire.seal_request(CHUNKED, keys.config, aead, Private.make())
            pair.give(sealer.finish(bhttp.write(dressed(asked(), "https://shop.example", WALL))))
            self.assertEqual(len(pair.called), int(chacha))
            if chacha:
                pair.answer(Response(200))
                opener = wire.open_answer(CHUNKED, context, aead)
                opener.feed(pair.there.sent)
                self.assertEqual(bhttp.read(opener.end(), request=False)[0], Response(200))
            else:
                self.assertEqual(pair.there.told(Reply), [Reply(400, wire.OHTTP_KEY)])

    def test_two_requests_have_nothing_in_common(self) -> None:
        """Only `enc`, ciphertext and time differ between two pages; the first seven bytes are the same for all."""
        gateway = Gateway()
        one, other = (Pair(gateway).ask() for _ in range(2))
        self.assertEqual((one[:7], len(one)), (other[:7], len(other)))
        common = sum(a == b for a, b in zip(one[7:], other[7:], strict=True))
        self.assertLess(common, 40)


class PaddingTests(SynchronousTestCase):
    """Of a long message there may be a mebibyte of padding: it is made as there is room for it."""

    LONG = bytes(33 << 20)
    STEP = PADDING + 2 * CHUNK_PLAIN

    def answering(self, *, whole: bool = True) -> Pair:
        """Let the backend have said everything."""
        pair = Pair(Gateway(), asked(b"POST"), length=None)
        pair.client.write(bytes(2 * CHUNK_PLAIN), NOW)
        pair.page.take(pair.client.effects())
        pair.give(pair.page.sent, whole=False)
        if whole:
            pair.give(pair.ask())
        pair.serving.respond(Response(200, (TEXT,)), NOW, length=len(self.LONG))
        pair.serving.write(self.LONG, NOW)
        pair.settle()
        before = len(pair.there.sent)
        pair.serving.finish(NOW)
        pair.settle()
        self.assertLess(len(pair.there.sent) - before, self.STEP)
        self.assertTrue(pair.serving.padding)
        return pair

    def pad(self, pair: Pair, most: int = 100) -> int:
        """Give it room, `most` times; how often it took any."""
        for count in range(most):
            if not pair.serving.padding:
                return count
            before = len(pair.there.sent)
            pair.serving.pad(NOW)
            pair.settle()
            self.assertTrue(0 < len(pair.there.sent) - before < self.STEP)
        return most

    def test_of_an_answer(self) -> None:
        pair = self.answering()
        self.assertEqual(pair.there.closed, [])
        self.assertGreater(self.pad(pair), 5)
        self.assertEqual(pair.there.closed, [Close("done")])
        inner = len(bhttp.write(Response(200, (TEXT,)), self.LONG))
        chunks = -(-wire.padded(inner) // CHUNK_PLAIN)
        self.assertEqual(len(pair.there.sent), wire.padded(inner) + 33 + 20 * (chunks - 1))
        pair.hear()
        self.assertEqual((len(content(pair.page, Piece)), len(pair.page.told(Done))), (len(self.LONG), 1))
        pair.serving.pad(NOW)
        self.assertEqual(list(pair.serving.effects()), [])

    def test_of_a_request(self) -> None:
        pair = Pair(Gateway(), asked(b"POST"), length=len(self.LONG))
        pair.client.write(self.LONG, NOW)
        pair.client.finish(NOW)
        pair.page.take(pair.client.effects())
        pair.give(pair.page.sent, whole=False)
        self.assertTrue(pair.client.padding)
        self.assertEqual(pair.there.told(Whole), [])
        while pair.client.padding:
            before = len(pair.page.sent)
            pair.client.pad(NOW)
            pair.page.take(pair.client.effects())
            self.assertTrue(0 < len(pair.page.sent) - before < self.STEP)
            pair.give(pair.page.sent[before:], whole=False)
        pair.client.pad(NOW)
        self.assertEqual(list(pair.client.effects()), [])
        pair.give(b"")
        self.assertEqual((len(content(pair.there, Body)), pair.there.told(Whole)), (len(self.LONG), [Whole()]))

    def test_a_request_that_ends_meanwhile(self) -> None:
        pair = self.answering(whole=False)
        pair.give(pair.ask())
        self.assertEqual(pair.there.closed, [])
        self.pad(pair)
        self.assertEqual(pair.there.closed, [Close("done")])

    def test_a_request_that_ends_afterwards(self) -> None:
        pair = self.answering(whole=False)
        self.pad(pair)
        self.assertEqual(pair.there.closed, [])
        pair.give(pair.ask())
        self.assertEqual(pair.there.closed, [Close("done")])

    def test_a_request_that_breaks_meanwhile(self) -> None:
        pair = self.answering(whole=False)
        pair.serving.ended(NOW)
        pair.settle()
        self.assertEqual((pair.there.closed, pair.there.told(Leave)), ([], []))
        self.pad(pair)
        self.assertEqual(pair.there.closed, [Close("done")])

    def test_nobody_takes_it(self) -> None:
        pair = self.answering()
        self.assertEqual(self.pad(pair, 2), 2)
        self.assertEqual(pair.serving.deadline(), NOW + IDLE_TIME)
        pair.serving.wake(NOW + IDLE_TIME)
        pair.settle()
        self.assertEqual(pair.there.closed, [Close("timeout", abort=True)])

    def test_the_page_has_gone(self) -> None:
        pair = self.answering()
        pair.serving.lost(NOW)
        pair.settle()
        self.assertEqual((pair.serving.padding, pair.there.told(Leave), pair.serving.deadline()), (False, [], None))


class RefusalTests(SynchronousTestCase):
    """Before anything opens: in the clear. After that: sealed, in an outer 200. The backend hears of neither."""

    def plain(self, data: bytes, wanted: Reply, media: Media = CHUNKED, gateway: Gateway | None = None) -> None:
        for cut in (len(data) or 1, 1):
            exchange, seen = (gateway or Gateway()).exchange(media), Seen()
            for at in range(0, len(data), cut):
                exchange.received(data[at : at + cut], NOW)
            exchange.ended(NOW)
            seen.take(exchange.effects())
            self.assertEqual(seen.told(Reply), [wanted])
            self.assertEqual((seen.told(Call), seen.sent, seen.closed), ([], b"", [Close("refused")]))

    def sealed(self, request: Request | bytes, wanted: int, gateway: Gateway | None = None) -> None:
        for chunked in (True, False):
            pair = Pair(gateway or Gateway(), chunked=chunked)
            if isinstance(request, Request):
                pair.client._writing = None
                request = bhttp.write(dressed(request, "https://shop.example", WALL))
            keys, media = pair.gateway.keys(), CHUNKED if chunked else SINGLE
            sealer, context = wire.seal_request(media, keys.config, keys.config.aeads[0], Private.make())
            pair.client._opener = wire.open_answer(media, context, keys.config.aeads[0])
            pair.give(sealer.finish(request))
            self.assertEqual((pair.there.told(Reply), pair.called), ([], []))
            self.assertEqual(status(pair), wanted)
            self.assertEqual(pair.there.closed, [Close("done")])

    def test_short_bodies(self) -> None:
        gateway = Gateway()
        data = Pair(gateway).ask()
        for size in (0, 1, 38):
            self.plain(data[:size], Reply(400), gateway=gateway)
            self.plain(data[:size], Reply(400), SINGLE, gateway)

    def test_keys_and_algorithms(self) -> None:
        gateway = Gateway()
        data = Pair(gateway).ask()
        unknown = Reply(400, wire.OHTTP_KEY)
        self.plain(bytes(((data[0] + 1) % 256,)) + data[1:], unknown, gateway=gateway)
        for at, number in ((1, 0x10), (3, 3), (5, 2), (5, 3)):
            self.plain(data[:at] + number.to_bytes(2, "big") + data[at + 2 :], unknown, gateway=gateway)
        for late in (72 * 3600, 300 * 3600):
            exchange, seen = gateway.exchange(wall=WALL + late), Seen()
            exchange.received(data, NOW)
            seen.take(exchange.effects())
            self.assertEqual(seen.told(Reply), [unknown])

    def test_what_does_not_open(self) -> None:
        gateway = Gateway()
        data = Pair(gateway).ask()
        self.plain(data[:7] + bytes(32) + data[HEAD:], Reply(422), gateway=gateway)
        self.plain(data[:-1], Reply(422), gateway=gateway)
        self.plain(data + b"\0", Reply(422), gateway=gateway)
        for at in (8, HEAD + 1, len(data) - 1):
            self.plain(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :], Reply(422), gateway=gateway)

    def test_chunks_that_are_wrong(self) -> None:
        gateway = Gateway()
        head = Pair(gateway).ask()[:HEAD]
        for size in (1, 16, 16_401):
            self.plain(head + varint(size) + bytes(20), Reply(400), gateway=gateway)
        self.plain(head, Reply(400), gateway=gateway)
        self.plain(head + varint(100) + bytes(50), Reply(400), gateway=gateway)

    def test_a_chunked_type_with_a_body_of_one_piece(self) -> None:
        gateway = Gateway()
        data = Pair(gateway, chunked=False).ask()
        exchange, seen = gateway.exchange(CHUNKED), Seen()
        exchange.received(data, NOW)
        exchange.ended(NOW)
        seen.take(exchange.effects())
        self.assertIn(seen.told(Reply)[0].status, (400, 422))
        pair = Pair(gateway, chunked=False)
        pair.give(pair.ask())
        self.assertEqual(len(pair.called), 1)

    def test_too_large_for_one_piece(self) -> None:
        gateway = Gateway()
        data = Pair(gateway, chunked=False).ask()
        exchange, seen = gateway.exchange(SINGLE), Seen()
        exchange.received(data[:HEAD] + bytes(MAX_SINGLE + 17), NOW)
        seen.take(exchange.effects())
        self.assertEqual(seen.told(Reply), [Reply(413)])

    def test_messages_that_are_none(self) -> None:
        good = bhttp.write(dressed(asked(), "https://shop.example", WALL))
        for bad in (
            b"",
            b"\x04" + good[1:],
            b"\x01\x40\xc8",
            good[:-10],
            good + b"\x01",
            good + bytes(100) + b"\x01",
            good.replace(b"\x06accept\x03*/*", b"\x06accept\x03*\r\n"),
            good.replace(b"\x06accept\x03*/*", b"\x06accept\x03*\0/"),
            good.replace(b"\x06accept", b"\x06:metho"),
            good.replace(b"\x06accept", b"\x06acc pt"),
        ):
            self.assertNotEqual(bad, good)
            self.sealed(bad, 400)
        self.sealed(good.replace(b"\x06accept\x03*/*", b"\x00" + b"accept*/*"[:9] + b"a"), 400)

    def test_requests_that_go_nowhere(self) -> None:
        twice: Fields = ((b"host", b"shop.example"), (b"host", b"shop.example"))
        for path in (b"@host/", b"//host/", b"/\\host", b"http://host/", b"/a%00", b"/../a", b"/a#b"):
            self.sealed(asked(path=path), 400)
        self.sealed(Request(b"GET", b"https", b"other.example", b"/"), 400)
        self.sealed(Request(b"GET", b"https", b"[fe80::1%25eth0]", b"/"), 400)
        self.sealed(asked(b"CONNECT"), 400)
        self.sealed(asked(fields=((b"expect", b"100-continue"),)), 400)
        self.sealed(bhttp.write(asked(fields=((b"date", dates.write(WALL)), *twice))), 400)

    def test_limits_of_a_head(self) -> None:
        good = bhttp.write(dressed(asked(), "https://shop.example", WALL))
        self.sealed(good.replace(b"\x0a/notes?q=1", varint(8193) + b"/" + b"a" * 8192), 414)
        begin = good[: good.index(b"/notes?q=1") + 10]
        self.sealed(begin + varint(40_000) + bytes(40_000), 431)
        self.sealed(b"\x02" + begin[1:] + b"\x01a\x01b" * 129 + b"\0", 431)

    def test_lengths_that_lie(self) -> None:
        for said in (b"1", b"-1", b"x"):
            self.sealed(asked(fields=((b"content-length", said),)), 400)
        self.sealed(asked(fields=((b"content-length", b"0"), (b"content-length", b"0"))), 400)
        pair = Pair(Gateway(), asked(fields=((b"content-length", b"0"),)))
        pair.give(pair.ask())
        self.assertEqual(len(pair.called), 1)

    def test_dates(self) -> None:
        for offset, good in ((0, True), (-299, True), (300, True), (-400, False), (400, False)):
            pair = Pair(Gateway(), date=minute(WALL) + offset)
            pair.give(pair.ask())
            self.assertEqual(len(pair.called), int(good), offset)
            if not good:
                pair.hear()
                self.assertEqual(pair.page.told(Failure), [Failure("date", Leg.GATEWAY, Resend.DATE, 0.1, int(WALL))])
        self.sealed(bhttp.write(asked(fields=((b"date", b"yesterday"),))), 400)
        self.sealed(bhttp.write(asked(fields=((b"date", dates.write(WALL)),) * 2)), 400)

    def test_no_date(self) -> None:
        for require, method, good in ((True, b"GET", False), (False, b"GET", True), (False, b"POST", False)):
            gateway = Gateway(require_date=require)
            data = b""
            for turn in range(2):
                pair = Pair(gateway, asked(method), dress=False)
                data = data or pair.ask()
                pair.give(data)
                self.assertEqual(len(pair.called), int(good and not turn), (require, method))

    def test_a_repeat(self) -> None:
        """Of any method, chunked or not, it is answered under seal, and the backend hears it once."""
        for chunked in (True, False):
            for method in (b"GET", b"POST", b"DELETE"):
                gateway = Gateway()
                first = Pair(gateway, asked(method), chunked=chunked)
                data = first.ask()
                first.give(data)
                for _ in range(3):
                    again = Pair(gateway, chunked=chunked)
                    again.client = first.client
                    again.give(data)
                    self.assertEqual((again.called, again.there.told(Reply)), ([], []))
                again.hear()
                self.assertEqual(again.page.told(Failure), [Failure("repeated", Leg.RELAY)])
                self.assertEqual(len(first.called), 1)

    def test_garbage_does_not_fill_the_replay_set(self) -> None:
        gateway = Gateway()
        data = Pair(gateway).ask()
        for number in range(50):
            exchange = gateway.exchange()
            exchange.received(data[:10] + bytes((number,)) + data[11:], NOW)
            exchange.ended(NOW)
        self.assertEqual(len(gateway.marks), 0)

    @given(st.binary(max_size=300), st.integers(1, 100), st.booleans())
    def test_any_noise(self, noise: bytes, cut: int, known: bool) -> None:
        gateway = NOISY
        exchange, seen = gateway.exchange(), Seen()
        data = bytes((EPOCH % 256,)) + bytes.fromhex("002000010001") + noise if known else noise
        for at in range(0, len(data), cut):
            exchange.received(data[at : at + cut], NOW)
        exchange.ended(NOW)
        seen.take(exchange.effects())
        self.assertEqual((len(seen.told(Reply)), seen.told(Call), seen.sent), (1, [], b""))

    @given(st.binary(max_size=300), st.integers(1, 100))
    def test_any_noise_under_the_seal(self, noise: bytes, cut: int) -> None:
        config = NOISY.keys().config
        sealer, _ = wire.seal_request(CHUNKED, config, config.aeads[0], Private.make())
        pair = Pair(NOISY)
        pair.give(sealer.finish(noise), cut)
        self.assertEqual((pair.there.told(Reply), pair.called, pair.there.closed), ([], [], [Close("done")]))


NOISY = Gateway()


class BrokenTests(SynchronousTestCase):
    """Requests and answers that end in their middle."""

    def begun(self, **more: Any) -> Pair:
        pair = Pair(Gateway(), asked(b"POST"), length=None, **more)
        pair.client.write(bytes(2 * CHUNK_PLAIN), NOW)
        pair.page.take(pair.client.effects())
        pair.give(pair.page.sent, whole=False)
        self.assertEqual(len(pair.called), 1)
        return pair

    def test_no_last_chunk(self) -> None:
        pair = self.begun()
        pair.serving.ended(NOW)
        pair.settle()
        self.assertEqual(
            (pair.there.told(Whole), len(pair.there.told(Broken)), len(pair.there.told(Leave))), ([], 1, 1)
        )
        self.assertEqual(status(pair), 400)

    def test_a_chunk_that_is_changed_dropped_or_repeated(self) -> None:
        for change in range(3):
            pair = self.begun()
            rest = pair.ask(bytes(2 * CHUNK_PLAIN))
            first = len(varint(16_400)) + 16_400
            data = (bytes((rest[0], rest[1] ^ 1)) + rest[2:], rest[first:], rest[:first] + rest)[change]
            pair.give(data)
            self.assertEqual((pair.there.told(Whole), len(pair.there.told(Broken))), ([], 1), change)
            self.assertEqual(status(pair), 400)

    @given(st.integers(0, 700), st.integers(1, 255), st.integers(1, 300), st.booleans())
    def test_any_cut_of_a_changed_message(self, at: int, change: int, cut: int, whole: bool) -> None:
        """What a gateway does with it does not depend on how the bytes came."""
        gateway = Gateway()
        pair = Pair(gateway, asked(b"POST"), length=None, pad=False)
        client, parts = pair.client, []
        for text in (b"", b"first", b"second"):
            client.write(text, NOW)
            assert client._writing is not None
            parts.append(client._writing.flush())
        data = bytearray(b"".join(parts) + pair.ask())
        at %= len(data)
        data[at] ^= change
        seen = []
        for size in (cut, len(data)):
            again = Pair(gateway)
            gateway.marks = type(gateway.marks)(gateway.rules.window)
            again.give(bytes(data), size, whole=whole)
            told = again.there.told
            seen.append((told(Reply), content(again.there, Body), told(Whole), told(Broken), again.there.closed))
            self.assertEqual(told(Whole), [])
        self.assertEqual(*seen)

    def test_a_broken_request_whose_answer_has_begun(self) -> None:
        """The backend's answer stands; its read of the request fails."""
        pair = self.begun()
        pair.serving.respond(Response(200), NOW)
        pair.serving.write(b"so far", NOW)
        pair.serving.ended(NOW)
        pair.settle()
        self.assertEqual((len(pair.there.told(Broken)), pair.there.told(Leave)), (1, []))
        pair.serving.finish(NOW)
        pair.settle()
        self.assertEqual(status(pair), 200)

    def test_the_page_has_gone(self) -> None:
        pair = self.begun()
        pair.serving.lost(NOW)
        pair.settle()
        self.assertEqual((len(pair.there.told(Broken)), len(pair.there.told(Leave))), (1, 1))
        self.assertEqual((pair.serving.deadline(), pair.there.sent), (None, b""))
        pair.serving.respond(Response(200), NOW)
        pair.serving.write(b"x", NOW)
        pair.serving.flush(NOW)
        pair.serving.finish(NOW)
        pair.serving.failed(NOW)
        pair.serving.received(b"x", NOW)
        pair.serving.ended(NOW)
        pair.serving.lost(NOW)
        self.assertEqual(list(pair.serving.effects()), [])

    def test_the_backend_fails(self) -> None:
        pair = Pair(Gateway())
        pair.give(pair.ask())
        pair.serving.failed(NOW)
        pair.settle()
        self.assertEqual(pair.there.told(Leave), [])
        self.assertEqual(status(pair), 502)
        pair = Pair(Gateway())
        pair.give(pair.ask())
        pair.serving.respond(Response(200), NOW, length=10)
        pair.serving.failed(NOW)
        pair.settle()
        self.assertEqual(pair.there.closed, [Close("backend", abort=True)])

    def test_a_backend_that_breaks_its_word(self) -> None:
        pair = Pair(Gateway())
        pair.give(pair.ask())
        self.assertRaises(LocalProtocolError, pair.serving.write, b"x", NOW)
        self.assertRaises(LocalProtocolError, pair.serving.finish, NOW)
        pair.serving.respond(Response(200), NOW, length=3)
        self.assertRaises(LocalProtocolError, pair.serving.respond, Response(200), NOW)
        self.assertRaises(LocalProtocolError, pair.serving.write, b"four", NOW)
        pair.serving.write(b"tw", NOW)
        pair.serving.finish(NOW)
        pair.settle()
        self.assertEqual(pair.there.closed, [Close("backend", abort=True)])

    def test_fields_that_cannot_be_written(self) -> None:
        pair = Pair(Gateway())
        pair.give(pair.ask())
        for fields in (((b"a", b"b\r\nc: d"),), ((b"a b", b""),), ((b"a", b"b"),) * 129):
            self.assertRaises(LocalProtocolError, pair.serving.respond, Response(200, fields), NOW)
        pair.serving.failed(NOW)
        pair.settle()
        self.assertEqual(status(pair), 502)

    def test_an_answer_too_long_for_one_piece(self) -> None:
        pair = Pair(Gateway(), chunked=False)
        pair.give(pair.ask())
        pair.serving.respond(Response(200), NOW)
        for _ in range(64):
            pair.serving.write(bytes(CHUNK_PLAIN), NOW)
        pair.settle()
        self.assertEqual((pair.there.sent, pair.there.closed), (b"", [Close("limit", abort=True)]))
        self.assertEqual(len(pair.there.told(Leave)), 1)
        pair = Pair(Gateway(), chunked=False)
        pair.give(pair.ask())
        pair.answer(Response(200), bytes(1_000_000))
        self.assertEqual(status(pair), 200)

    def test_an_answer_that_is_cut_or_changed(self) -> None:
        for end, wrong, code in ((-1, b"", "tampered"), (20, b"", "cut"), (10, b"", "cut"), (30, b"x", "tampered")):
            pair = Pair(Gateway())
            pair.give(pair.ask())
            pair.answer(Response(200), bytes(3 * CHUNK_PLAIN))
            data = pair.there.sent
            pair.client.answered(200, CHUNKED.response, NOW)
            pair.client.received(data[:end] + wrong + (data[end + 1 :] if wrong else b""), NOW)
            pair.client.ended(NOW)
            pair.page.take(pair.client.effects())
            self.assertEqual(pair.page.told(Failure), [Failure(code, Leg.RELAY)])
            self.assertEqual(pair.page.told(Done), [])

    def test_the_answer_to_another_request(self) -> None:
        gateway = Gateway()
        pairs = [Pair(gateway) for _ in range(2)]
        for pair in pairs:
            pair.give(pair.ask())
            pair.answer(Response(200))
        pairs[0].there, pairs[1].there = pairs[1].there, pairs[0].there
        for pair in pairs:
            pair.hear()
            self.assertEqual(pair.page.told(Failure), [Failure("tampered", Leg.RELAY)])


class TimeTests(SynchronousTestCase):
    def woken(self, exchange: GatewayExchange | ClientExchange, at: float) -> None:
        """It asks to be woken at that time, and does nothing before."""
        self.assertEqual(exchange.deadline(), at)
        list(exchange.effects())
        exchange.wake(at - 0.1)
        self.assertEqual(list(exchange.effects()), [])
        exchange.wake(at)

    def test_one_byte_a_second(self) -> None:
        gateway = Gateway()
        data = Pair(gateway).ask()
        exchange, seen, now = gateway.exchange(), Seen(), NOW
        for byte in data:
            now += 1
            if exchange.deadline() is not None and now >= (exchange.deadline() or 0):
                break
            exchange.received(bytes((byte,)), now)
        self.assertEqual(now, NOW + HEAD_TIME)
        exchange.wake(now)
        seen.take(exchange.effects())
        self.assertEqual((seen.told(Reply), seen.closed), ([Reply(408)], [Close("timeout")]))

    def test_one_byte_a_second_later_on(self) -> None:
        """Only a chunk that opens is a sign of life."""
        pair = Pair(Gateway(), asked(b"POST"), length=None)
        pair.client.write(bytes(CHUNK_PLAIN), NOW)
        pair.page.take(pair.client.effects())
        pair.give(pair.page.sent, whole=False)
        rest = pair.ask(bytes(CHUNK_PLAIN))
        for second in range(60):
            self.assertEqual(pair.serving.deadline(), NOW + IDLE_TIME)
            pair.serving.received(rest[second : second + 1], NOW + second)
        pair.serving.wake(NOW + 60)
        pair.settle()
        self.assertEqual((len(pair.there.told(Broken)), len(pair.there.told(Leave))), (1, 1))
        self.assertEqual(status(pair), 408)

    def test_a_backend_that_never_answers(self) -> None:
        pair = Pair(Gateway())
        pair.give(pair.ask())
        self.woken(pair.serving, NOW + IDLE_TIME)
        pair.settle()
        self.assertEqual(len(pair.there.told(Leave)), 1)
        self.assertEqual(status(pair), 504)

    def test_a_backend_that_stops(self) -> None:
        pair = Pair(Gateway())
        pair.give(pair.ask())
        pair.serving.respond(Response(200), NOW + 30)
        self.woken(pair.serving, NOW + 30 + IDLE_TIME)
        pair.settle()
        self.assertEqual(pair.there.closed, [Close("timeout", abort=True)])
        self.assertEqual(len(pair.there.told(Leave)), 1)

    def test_a_replay_set_that_never_answers(self) -> None:
        pair = Pair(Gateway())
        self.assertFalse(pair.serving.paused)
        pair.serving.received(pair.ask(), NOW)
        pair.serving.ended(NOW)
        self.assertTrue(pair.serving.paused)
        effects = pair.serving.effects()
        self.assertEqual([type(effect.what) for effect in effects], [Remember])  # type: ignore[union-attr]
        pair.serving.wake(NOW + IDLE_TIME)
        pair.settle()
        pair.serving.remembered(Verdict.NEW, NOW + IDLE_TIME)
        pair.settle()
        self.assertEqual(pair.called, [])
        self.assertEqual(status(pair), 503)

    def test_an_endless_stream_ends(self) -> None:
        pair = Pair(Gateway())
        pair.give(pair.ask())
        pair.serving.respond(Response(200), NOW)
        now = NOW
        while now < NOW + EXCHANGE_TIME:
            deadline = pair.serving.deadline()
            assert deadline is not None
            if now >= deadline:
                break
            pair.serving.write(b"event", now)
            pair.serving.flush(now)
            now += 30
        self.assertEqual(pair.serving.deadline(), NOW + EXCHANGE_TIME)
        pair.serving.wake(now)
        pair.settle()
        self.assertEqual(pair.there.closed, [Close("timeout", abort=True)])

    def test_a_relay_that_says_nothing(self) -> None:
        pair = Pair(Gateway())
        pair.ask()
        self.woken(pair.client, NOW + IDLE_TIME)
        pair.page.take(pair.client.effects())
        self.assertEqual(pair.page.told(Failure), [Failure("slow", Leg.RELAY)])


class FailureTests(SynchronousTestCase):
    """What the page makes of what the relay says in the clear."""

    def failure(
        self,
        code: int,
        kind: str = wire.ABOUT_BLANK,
        *,
        method: bytes = b"GET",
        after: str = "",
        key: bool = False,
        resent: bool = False,
    ) -> Failure:
        fields: Fields = ((b"Idempotency-Key", b"1"),) if key else ()
        pair = Pair(Gateway(), asked(method, fields=fields), resent=resent)
        pair.ask()
        pair.client.answered(code, wire.PROBLEM_TYPE, NOW, after)
        pair.client.received(wire.problem(code, kind), NOW)
        pair.client.ended(NOW)
        pair.page.take(pair.client.effects())
        (failure,) = pair.page.told(Failure)
        self.assertIn(failure.code, CODES)
        self.assertTrue(pair.page.closed[0].abort)
        return failure

    def test_new_keys(self) -> None:
        for method, key, resent, again in (
            (b"GET", False, False, Resend.KEYS),
            (b"HEAD", False, False, Resend.KEYS),
            (b"POST", False, False, None),
            (b"POST", True, False, Resend.KEYS),
            (b"GET", False, True, None),
        ):
            failure = self.failure(400, wire.OHTTP_KEY, method=method, key=key, resent=resent)
            self.assertEqual(failure, Failure("keys", Leg.GATEWAY, again))

    def test_busy(self) -> None:
        for code in (429, 503):
            failure = self.failure(code, wire.NOT_FORWARDED, after="3")
            self.assertEqual(failure, Failure("busy", Leg.RELAY, Resend.LATER, 3.0))
            self.assertEqual(self.failure(code, wire.NOT_FORWARDED, method=b"POST").resend, None)
            self.assertEqual(self.failure(code).resend, None)
        self.assertEqual(self.failure(503, wire.NOT_FORWARDED, after="999999999").after, 60.0)
        self.assertEqual(self.failure(503, wire.NOT_FORWARDED, after="\u0663").after, 0.0)

    def test_nothing_else_is_sent_again(self) -> None:
        for code in (400, 404, 408, 413, 415, 422, 500, 502, 504, 201, 302):
            for kind in (wire.ABOUT_BLANK, wire.NOT_FORWARDED, wire.DATE):
                self.assertIsNone(self.failure(code, kind).resend)

    def test_a_lying_relay_gets_one_more_request_at_most(self) -> None:
        """What changes something is sent once, whatever the relay says."""
        for code in (400, 408, 422, 429, 500, 502, 503, 504):
            for kind in (wire.OHTTP_KEY, wire.NOT_FORWARDED, wire.DATE, wire.ABOUT_BLANK):
                self.assertIsNone(self.failure(code, kind, method=b"POST", after="1").resend)
                self.assertIsNone(self.failure(code, kind, resent=True).resend)

    def test_a_date_is_the_gateway_s_own_word(self) -> None:
        for resent, again in ((False, Resend.DATE), (True, None)):
            pair = Pair(Gateway(), asked(b"POST"), date=WALL - 3600, resent=resent)
            pair.give(pair.ask())
            pair.hear()
            (failure,) = pair.page.told(Failure)
            self.assertEqual(failure.resend, again)
            assert failure.date is not None
            second = Pair(pair.gateway, asked(b"POST"), date=failure.date)
            second.give(second.ask())
            self.assertEqual(len(second.called), 1)

    def test_the_backend_s_own_problems_pass(self) -> None:
        for code, body in ((400, wire.problem(400)), (425, wire.problem(425, "urn:a")), (400, bytes(5000)), (400, b"")):
            pair = Pair(Gateway())
            pair.give(pair.ask())
            fields = ((b"content-type", wire.PROBLEM_TYPE.encode()),)
            pair.answer(Response(code, fields), body)
            pair.hear()
            self.assertEqual(pair.page.told(Failure), [])
            self.assertEqual(pair.page.told(Answer), [Answer(Response(code, fields))])
            self.assertEqual((content(pair.page, Piece), len(pair.page.told(Done))), (body, 1))

    def test_strange_answers(self) -> None:
        pair = Pair(Gateway())
        pair.ask()
        pair.client.answered(200, "text/html", NOW)
        pair.page.take(pair.client.effects())
        self.assertEqual(pair.page.told(Failure), [Failure("media", Leg.RELAY)])
        self.assertRaises(LocalProtocolError, pair.client.answered, 200, "", NOW)

    def test_lost_connections(self) -> None:
        pair = Pair(Gateway())
        pair.ask()
        pair.client.lost(NOW)
        pair.client.lost(NOW)
        pair.page.take(pair.client.effects())
        self.assertEqual(pair.page.told(Failure), [Failure("lost", Leg.RELAY)])
        pair = Pair(Gateway())
        pair.give(pair.ask())
        pair.answer(Response(200), bytes(100_000))
        pair.client.answered(200, CHUNKED.response, NOW)
        pair.client.received(pair.there.sent[:50_000], NOW)
        pair.client.lost(NOW)
        pair.page.take(pair.client.effects())
        self.assertEqual(pair.page.told(Failure), [Failure("cut", Leg.RELAY)])

    @given(st.integers(100, 999), st.text(max_size=20), st.binary(max_size=300), st.text(max_size=10))
    def test_any_noise(self, code: int, kind: str, body: bytes, after: str) -> None:
        for said in (kind, CHUNKED.response, wire.PROBLEM_TYPE):
            pair = Pair(NOISY)
            pair.ask()
            pair.client.answered(code, said, NOW, after)
            pair.client.received(body, NOW)
            pair.client.ended(NOW)
            pair.page.take(pair.client.effects())
            self.assertEqual((len(pair.page.told(Failure)), pair.page.told(Answer)), (1, []))


class DateTests(SynchronousTestCase):
    def test_rfc_9110(self) -> None:
        self.assertEqual(dates.read(b"Sun, 06 Nov 1994 08:49:37 GMT"), 784_111_777)
        self.assertEqual(dates.write(784_111_777.9), b"Sun, 06 Nov 1994 08:49:37 GMT")

    @given(st.integers(0, 4_102_444_800))
    def test_both_ways(self, seconds: int) -> None:
        self.assertEqual(dates.read(dates.write(seconds)), seconds)

    def test_what_is_none(self) -> None:
        for text in (
            b"",
            b"Mon, 06 Nov 1994 08:49:37 GMT",
            b"Sunday, 06-Nov-94 08:49:37 GMT",
            b"Sun Nov  6 08:49:37 1994",
            b"Sun, 06 Nov 1994 08:49:37 UTC",
            b"Sun, 31 Feb 1994 08:49:37 GMT",
            b"Sun, 06 Nov 1994 24:49:37 GMT",
            b"Sun, 06 Nov 0000 08:49:37 GMT",
            b" Sun, 06 Nov 1994 08:49:37 GMT",
        ):
            self.assertIsNone(dates.read(text), text)

    @given(st.binary(max_size=40))
    def test_any_noise(self, text: bytes) -> None:
        dates.read(text)
