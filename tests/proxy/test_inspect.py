"""The record of what an agent carries: bytes go on as they are; what is understood of them is kept, within limits."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.http1 import ENDLESS
from layer8.proxy import record
from layer8.proxy.inspect import PIPELINED, Watch
from layer8.proxy.record import BODY, EXCHANGES, MEMORY, Exchange, Record

GET = (
    b"GET /a?b=c HTTP/1.1\r\nHost: app.test:8080\r\nAuthorization: Bearer tell-nobody\r\nCookie: id=tell-nobody\r\n\r\n"
)
POST = b"POST /form HTTP/1.1\r\nhost: app.test\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = b"PUT /c HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: u\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: app.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nSet-Cookie: id=tell-nobody; Secure\r\n\r\nabc"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 10.0
        self.record = Record()
        self.changes = 0
        self.record.changed = self.changed

    def changed(self) -> None:
        self.changes += 1

    def watch(self) -> Watch:
        return Watch(self.record, lambda: self.now, lambda: 1e9 + self.now, "app.test", "127.0.0.1:3000")

    def talk(self, *turns: bytes) -> Watch:
        """Let visitor and target speak by turns."""
        watch = self.watch()
        for number, data in enumerate(turns):
            side = watch.answers if number % 2 else watch.requests
            self.assertEqual(side.feed(data), data)
            self.now += 0.25
        return watch

    def kept(self) -> list[Exchange]:
        found = [self.record.get(number) for number in self.record.kept]
        return [exchange for exchange in found if exchange is not None]


class WatchTests(Case):
    def test_a_request_and_its_answer(self) -> None:
        self.talk(GET, OK)
        (row,) = self.record.rows(0)
        self.assertEqual((row["method"], row["path"], row["version"]), ("GET", "/a?b=c", "HTTP/1.1"))
        self.assertEqual((row["host"], row["target"]), ("app.test:8080", "127.0.0.1:3000"))
        self.assertEqual((row["status"], row["reason"], row["answer_size"], row["state"]), (200, "OK", 3, "done"))
        self.assertEqual((row["wait_ms"], row["total_ms"], row["at"]), (250.0, 250.0, 1_000_000_010_000))
        self.assertEqual(row["no_replay"], "")

    def test_what_is_secret_stays_inside_and_is_there_to_be_sent_again(self) -> None:
        self.talk(GET.replace(b"Cookie", b"cOOKIE") + b"", OK)
        shown = json.dumps(self.record.rows(0)) + repr(self.kept())
        self.assertNotIn("tell-nobody", shown)
        (row,) = self.record.rows(0)
        self.assertIn(("cOOKIE", None), row["request"])
        self.assertIn(("Set-Cookie", None), row["answer"])
        self.assertEqual(self.kept()[0].head.count(b"tell-nobody"), 2)

    def test_bodies_are_kept_as_they_came_and_shown_to_nobody(self) -> None:
        self.talk(POST, OK)
        self.talk(CHUNKS, OK)
        first, second = self.kept()
        self.assertEqual(first.head + first.body, POST)
        self.assertEqual(second.head + second.body, CHUNKS)
        self.assertNotIn("hello", json.dumps(self.record.rows(0)))

    def test_many_on_one_connection_also_before_their_answers(self) -> None:
        self.talk(GET + POST + HEAD + CHUNKS, CONTINUE + OK + OK + OK.replace(b"abc", b"") + OK)
        self.assertEqual([exchange.method for exchange in self.kept()], ["GET", "POST", "HEAD", "PUT"])
        self.assertEqual([exchange.answer_size for exchange in self.kept()], [3, 3, 0, 3])
        self.assertEqual({exchange.state for exchange in self.kept()}, {"done"})

    def test_an_answer_that_ends_with_its_connection(self) -> None:
        watch = self.talk(GET, b"HTTP/1.0 200 OK\r\n\r\nabcdef")
        self.assertEqual(self.kept()[0].state, "answering")
        self.assertEqual(watch.answers.free, ENDLESS)
        watch.answers.skipped(1000)
        self.assertEqual(watch.answers.ended(), b"")
        self.assertEqual((self.kept()[0].state, self.kept()[0].answer_size), ("done", 1006))

    def test_what_is_cut_short(self) -> None:
        for turns in ((GET,), (GET, OK[:-1]), (GET, OK[:20]), (GET, CONTINUE), (POST[:-1],)):
            watch = self.talk(*turns)
            watch.answers.ended()
            watch.closed()
            self.assertEqual(self.kept()[-1].state, "cut")
            self.assertEqual(self.kept()[-1].ended, self.now)

    def test_an_upgrade_ends_the_look(self) -> None:
        watch = self.talk(
            b"GET /ws HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x01a",
            GET,
        )
        self.assertEqual((watch.requests.free, watch.answers.free), (ENDLESS, ENDLESS))
        (exchange,) = self.kept()
        self.assertEqual((exchange.state, exchange.status), ("upgraded", 101))
        self.assertIn("protocol", exchange.no_replay)

    def test_what_is_not_http_goes_by(self) -> None:
        for data in (
            b"\x16\x03\x01\x02\x00\x01",
            b"SSH-2.0-x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n\r\n\r\n",
        ):
            watch = self.talk(data, b"\x00anything", data)
            self.assertEqual(watch.requests.free, ENDLESS, data)
            self.assertEqual(watch.requests.ended() + watch.answers.ended(), b"")
        self.assertEqual(self.kept(), [])

    def test_a_strange_request_after_a_good_one(self) -> None:
        watch = self.talk(GET + b"what is\r\n\r\n", OK, GET)
        self.assertEqual(len(self.kept()), 1)
        self.assertEqual((self.kept()[0].state, watch.answers.free), ("done", ENDLESS))

    def test_answers_that_nobody_asked_for(self) -> None:
        watch = self.watch()
        watch.answers.feed(OK)
        watch.requests.feed(GET)
        self.assertEqual((self.kept(), watch.requests.free), ([], ENDLESS))

    def test_a_strange_answer(self) -> None:
        watch = self.talk(GET, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        self.assertEqual((self.kept()[0].state, watch.answers.free), ("cut", ENDLESS))

    def test_long_bodies_are_free_to_pass_unseen(self) -> None:
        head = b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n"
        watch = self.talk(head, b"", b"x" * 1000)
        self.assertEqual(watch.requests.free, 999_000)
        watch.requests.skipped(999_000)
        self.assertEqual(watch.requests.free, 0)
        (exchange,) = self.kept()
        self.assertEqual((exchange.request_size, len(exchange.body), exchange.request_ended), (1_000_000, 0, True))
        self.assertIn("64 KiB", exchange.no_replay)
        watch.answers.feed(OK[:-3])
        self.assertEqual(watch.answers.free, 3)
        watch.answers.skipped(3)
        self.assertEqual((exchange.state, exchange.answer_size), ("done", 3))

    def test_a_body_in_chunks_that_becomes_too_long(self) -> None:
        watch = self.talk(b"PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            watch.requests.feed(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        (exchange,) = self.kept()
        self.assertEqual((exchange.whole, len(exchange.body)), (False, 0))
        self.assertLess(self.record.weight, BODY)

    def test_too_many_that_wait(self) -> None:
        watch = self.talk(GET * (PIPELINED + 1))
        self.assertEqual((watch.requests.free, watch.answers.free), (ENDLESS, ENDLESS))

    @given(st.data())
    def test_any_cut(self, data: st.DataObject) -> None:
        self.setUp()
        asked, said = GET + POST + HEAD + CHUNKS, CONTINUE + OK + OK + OK[:-3] + OK
        watch = self.watch()
        for side, text in ((watch.requests, asked), (watch.answers, said)):
            places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)) | {0, len(text)})
            for start, end in pairwise(places):
                self.assertEqual(side.feed(text[start:end]), text[start:end])
        self.assertEqual([one.state for one in self.kept()], ["done"] * 4)
        self.assertEqual([one.head + bytes(one.body) for one in self.kept()], [GET, POST, HEAD, CHUNKS])

    @given(st.lists(st.tuples(st.booleans(), st.binary(max_size=200)), max_size=12))
    def test_any_noise(self, turns: list[tuple[bool, bytes]]) -> None:
        watch = self.watch()
        watch.requests.feed(GET)
        for up, data in turns:
            side = watch.answers if up else watch.requests
            self.assertEqual(side.feed(data), data)
        watch.answers.ended()
        watch.closed()
        self.assertEqual(watch.requests.free, ENDLESS)


class RecordTests(Case):
    def test_the_last_ones_are_kept(self) -> None:
        for _ in range(EXCHANGES + 5):
            self.talk(GET, OK)
        self.assertEqual(self.record.kept, tuple(range(6, EXCHANGES + 6)))
        self.assertEqual(len(self.record.rows(0)), EXCHANGES)

    def test_memory_is_limited(self) -> None:
        body = b"x" * BODY
        words = b"PUT / HTTP/1.1\r\nHost: a.test\r\nA: %s\r\nContent-Length: %d\r\n\r\n" % (b"y" * 30_000, BODY) + body
        for _ in range(EXCHANGES):
            self.talk(words, OK)
            self.assertLess(self.record.weight, MEMORY + len(words) * 3)
        self.assertGreater(len(self.record.kept), 20)
        self.assertLess(len(self.record.kept), EXCHANGES)
        self.record.clear()
        self.assertEqual((self.record.weight, self.record.kept), (0, ()))

    def test_what_was_forgotten_fills_nothing(self) -> None:
        watch = self.talk(POST[:-3])
        self.record.clear()
        watch.requests.feed(POST[-3:])
        watch.answers.feed(OK)
        self.assertEqual((self.record.weight, self.record.kept), (0, ()))

    def test_only_what_has_changed(self) -> None:
        self.talk(GET, OK)
        serial = self.record.serial
        self.assertEqual(self.record.rows(serial), [])
        watch = self.talk(POST)
        self.assertEqual([row["id"] for row in self.record.rows(serial)], [2])
        changes = self.changes
        watch.answers.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(10):
            watch.answers.feed(b"x" * 1000)
        self.assertEqual(self.changes, changes + 1, "parts of a body are no news")

    def test_every_hidden_field_by_any_spelling(self) -> None:
        for name in record.SECRET_FIELDS:
            self.assertEqual(record.shown([(name.title(), "x"), (name.upper(), "y")])[0][1], None)
        self.assertEqual(record.shown([("Accept", "x")]), [("Accept", "x")])
