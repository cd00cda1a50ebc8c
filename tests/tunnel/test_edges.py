"""Edges that a change of one sign or one word would move: found by changing them."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, LocalProtocolError
from layer8.core.session import Close, Tell
from layer8.crypto.hpke_context import Aead
from layer8.tunnel import frames, integrity, passage, target
from layer8.tunnel.bhttp import Request, Response
from layer8.tunnel.client_keys import Ask, Changed, ClientKeys, State
from layer8.tunnel.client_session import Failure
from layer8.tunnel.gateway_session import Body, Broken, GatewayExchange, Leave, Remember, Whole
from layer8.tunnel.integrity import BadManifest
from layer8.tunnel.jar import Jar, Place, date
from layer8.tunnel.keys import CACHED, EARLY, HOUR, OPENED, GatewayKey, Schedule
from layer8.tunnel.limits import BUFFER, CHUNK_PLAIN, EXCHANGE_TIME, IDLE_TIME, KEYS_HURRY
from layer8.tunnel.passage import BINARY, PING, PONG
from layer8.tunnel.relay_session import EXPOSED, CutGateway
from layer8.tunnel.replay import ReplaySet, Verdict, Window
from layer8.tunnel.target import Allowed, normal
from layer8.tunnel.trip import Trip
from layer8.tunnel.wire import CHUNKED
from tests.tunnel.pair import EPOCH, NOW, WALL, Gateway, Pair, asked
from tests.tunnel.test_client_keys import ME, served
from tests.tunnel.test_client_keys import NOW as KEYS_NOW
from tests.tunnel.test_exchange import status
from tests.tunnel.test_integrity import ONE, OTHER
from tests.tunnel.test_jar import HERE
from tests.tunnel.test_jar import NOW as JAR_NOW
from tests.tunnel.test_passage import MASK, frame, through
from tests.tunnel.test_relay_session import Leg


class AnswerTests(SynchronousTestCase):
    """A gateway's exchange once its answer is there."""

    def begun(self) -> tuple[Pair, bytes]:
        """Answer a request of which the last chunk has not come; give that."""
        pair = Pair(Gateway(), asked(b"POST"), length=None)
        pair.client.write(bytes(CHUNK_PLAIN), NOW)
        pair.page.take(pair.client.effects())
        pair.give(pair.page.sent, whole=False)
        rest = pair.ask(bytes(2 * CHUNK_PLAIN))
        pair.serving.respond(Response(200), NOW + 1)
        pair.serving.write(b"early", NOW + 2)
        pair.serving.finish(NOW + 3)
        pair.settle()
        return pair, rest

    def test_an_answer_before_the_request_is_whole(self) -> None:
        """It is sent; its end waits for the request's, which the backend hears no more of."""
        pair, rest = self.begun()
        self.assertEqual((pair.there.closed, pair.serving.deadline()), ([], NOW + 3 + IDLE_TIME))
        heard = len(pair.there.told(Body))
        sent = len(pair.there.sent)
        pair.serving.write(b"more", NOW + 4)
        pair.serving.flush(NOW + 4)
        pair.serving.finish(NOW + 4)
        pair.serving.failed(NOW + 4)
        pair.settle()
        self.assertEqual((len(pair.there.sent), pair.there.closed), (sent, []))
        pair.give(rest)
        self.assertEqual(pair.there.closed, [Close("done")])
        self.assertEqual((len(pair.there.told(Body)), pair.there.told(Whole)), (heard, []))
        self.assertEqual((pair.there.told(Leave), pair.there.told(Broken)), ([], []))
        self.assertEqual(status(pair), 200)

    def test_a_request_that_breaks_behind_its_answer(self) -> None:
        pair, rest = self.begun()
        pair.give(rest[:-1] + bytes((rest[-1] ^ 1,)))
        self.assertEqual(pair.there.closed, [Close("done")])
        self.assertEqual((pair.there.told(Leave), pair.there.told(Broken)), ([], []))
        pair, _ = self.begun()
        pair.serving.wake(NOW + 3 + IDLE_TIME)
        pair.settle()
        self.assertEqual(pair.there.closed, [Close("timeout", abort=True)])
        self.assertEqual(pair.there.told(Leave), [])
        pair, _ = self.begun()
        pair.serving.lost(NOW + 5)
        pair.settle()
        self.assertEqual((pair.there.told(Leave), pair.serving.deadline()), ([], None))

    def test_whatever_comes_after_the_end(self) -> None:
        pair = Pair(Gateway())
        data = pair.ask()
        pair.give(data)
        pair.answer(Response(200), b"answer")
        self.assertEqual((pair.there.closed, pair.serving.deadline()), ([Close("done")], None))
        pair.serving.received(data, NOW)
        pair.serving.ended(NOW)
        pair.serving.remembered(Verdict.NEW, NOW)
        pair.serving.respond(Response(200), NOW)
        pair.serving.write(b"more", NOW)
        pair.serving.flush(NOW)
        pair.serving.finish(NOW)
        pair.serving.failed(NOW)
        pair.serving.lost(NOW)
        pair.serving.wake(NOW + 2 * EXCHANGE_TIME)
        self.assertEqual((list(pair.serving.effects()), pair.serving.deadline()), ([], None))

    def test_every_step_is_a_sign_of_life(self) -> None:
        pair = Pair(Gateway(), asked(b"POST"), length=None)
        data = pair.ask(bytes(3 * CHUNK_PLAIN))
        pair.serving.received(data[: CHUNK_PLAIN + 100], NOW + 2)
        self.assertEqual(pair.serving.deadline(), NOW + 2 + IDLE_TIME)
        pair.serving.remembered(Verdict.NEW, NOW + 4)
        self.assertEqual(pair.serving.deadline(), NOW + 4 + IDLE_TIME)
        pair.serving.received(data[CHUNK_PLAIN + 100 :], NOW + 6)
        self.assertEqual(pair.serving.deadline(), NOW + 6 + IDLE_TIME)
        pair.serving.ended(NOW + 8)
        self.assertEqual(pair.serving.deadline(), NOW + 8 + IDLE_TIME)
        pair.serving.respond(Response(200), NOW + 10)
        pair.serving.write(b"a", NOW + 12)
        self.assertEqual(pair.serving.deadline(), NOW + 12 + IDLE_TIME)
        pair.serving.flush(NOW + 14)
        self.assertEqual(pair.serving.deadline(), NOW + 14 + IDLE_TIME)

    def test_a_second_answer(self) -> None:
        pair = Pair(Gateway())
        data = pair.ask()
        self.assertRaises(LocalProtocolError, pair.serving.respond, Response(200), NOW)
        pair.give(data)
        pair.serving.respond(Response(200), NOW)
        self.assertRaises(LocalProtocolError, pair.serving.respond, Response(200), NOW)
        gateway = Gateway()
        for size in (31, 33):
            self.assertRaises(LocalProtocolError, GatewayExchange, CHUNKED, gateway.rules, bytes(size), NOW, WALL)

    def test_where_a_date_may_be_missing(self) -> None:
        """What changes something has one, and one that is there counts in any case."""
        for method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"POST", b"PUT", b"DELETE"):
            for require in (True, False):
                pair = Pair(
                    Gateway(require_date=require), Request(method, b"https", b"shop.example", b"/"), dress=False
                )
                pair.give(pair.ask())
                taken = not require and method not in (b"POST", b"PUT", b"DELETE")
                self.assertEqual(len(pair.called), taken, method)
        pair = Pair(Gateway(require_date=False), asked(b"GET"), date=WALL - 1000)
        pair.serving.received(pair.ask(), NOW)
        told = [one.what for one in pair.serving.effects() if isinstance(one, Tell)]
        self.assertFalse([one for one in told if isinstance(one, Remember)])


class RelayTests(SynchronousTestCase):
    def test_a_second_head(self) -> None:
        leg = Leg().sending()
        before = list(leg.seen.effects)
        leg.ask().ask(path="/r/none")
        self.assertEqual(leg.seen.effects, before)

    def test_a_page_that_may_read_when_to_come_back(self) -> None:
        leg = Leg().ask()
        leg.do(leg.exchange.unreachable)
        self.assertIn(("access-control-expose-headers", "retry-after"), leg.reply.fields)
        self.assertEqual(EXPOSED, ("access-control-expose-headers", "retry-after"))

    def test_a_head_is_a_sign_of_life(self) -> None:
        for code, kind in ((200, CHUNKED.response), (422, "")):
            leg = Leg().sending()
            leg.exchange.answered(code, kind, NOW + 30)
            self.assertEqual(leg.exchange.deadline(), NOW + 30 + IDLE_TIME)

    def test_the_end_is_the_end(self) -> None:
        leg = Leg().answering()
        leg.do(leg.exchange.lost)
        self.assertEqual(len(leg.seen.told(CutGateway)), 1)
        before = list(leg.seen.effects)
        for call in (leg.exchange.lost, leg.exchange.ended, leg.exchange.gateway_lost, leg.exchange.unreachable):
            leg.do(call)
        leg.do(leg.exchange.answered, 200, CHUNKED.response)
        self.assertEqual(leg.seen.effects, before)
        leg.do(leg.exchange.dialled)  # a connection that comes late is cut
        self.assertEqual(len(leg.seen.told(CutGateway)), 2)


class Line:
    """A connection to a relay that writes down what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.sent = b""

    def request(self, *words: object) -> None:
        self.done.append("request")

    def write(self, data: bytes) -> None:
        self.sent += data

    def finish(self) -> None:
        self.done.append("finish")

    def cut(self) -> None:
        self.done.append("cut")

    def pause(self) -> None:
        self.done.append("pause")

    def resume(self) -> None:
        self.done.append("resume")


class TripTests(SynchronousTestCase):
    """A client's request over one connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.pair = Pair(Gateway())
        self.trip = Trip(self.clock, self.pair.client)
        self.line = Line()
        line: Any = self.line
        self.asked = Deferred.fromCoroutine(self.trip.send(line, "/r/shop", "relay.test", b""))

    def test_a_failure_cuts(self) -> None:
        self.trip.answered(200, (("content-type", "text/html"),), None)
        self.assertEqual(self.successResultOf(self.asked), self.trip.failure)
        self.assertEqual(self.line.done, ["request", "finish", "cut"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.trip.cut()
        self.assertEqual(self.line.done.count("cut"), 1)

    def test_silence_cuts(self) -> None:
        self.clock.advance(IDLE_TIME - 1)
        self.assertNoResult(self.asked)
        self.clock.advance(1)
        found = self.successResultOf(self.asked)
        assert isinstance(found, Failure)
        self.assertEqual((found.code, self.line.done), ("slow", ["request", "finish", "cut"]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_gives_up_cuts(self) -> None:
        self.trip.cut()
        found = self.successResultOf(self.asked)
        assert isinstance(found, Failure)
        self.assertEqual((found.code, self.line.done), ("cut", ["request", "finish", "cut"]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_reader_that_rests(self) -> None:
        """Nothing more is taken than waits, and whoever rests for an hour has lost nothing."""
        self.pair.give(self.line.sent)
        self.pair.answer(Response(200), bytes(4 * BUFFER))
        data = self.pair.there.sent
        self.trip.answered(200, (("content-type", CHUNKED.response),), None)
        at = 0
        while "pause" not in self.line.done:
            self.trip.received(data[at : at + 1000])
            at += 1000
        self.assertEqual(self.successResultOf(self.asked), self.trip.head)
        self.assertLess(at, BUFFER + CHUNK_PLAIN + 2000)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(3600)
        read = b""
        while "resume" not in self.line.done:
            read += self.successResultOf(Deferred.fromCoroutine(self.trip.read()))
        self.assertGreater(len(read), BUFFER // 2)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.trip.received(data[at:])
        self.trip.ended()
        while piece := self.successResultOf(Deferred.fromCoroutine(self.trip.read())):
            read += piece
        self.assertEqual((len(read), self.trip.done, self.trip.failure), (4 * BUFFER, True, None))
        self.assertEqual((self.line.done.count("cut"), self.clock.getDelayedCalls()), (0, []))


class KeyTests(SynchronousTestCase):
    def test_keys_that_are_over_while_nobody_asked(self) -> None:
        client = ClientKeys("shop", [ME.node_id])
        client.wanted(KEYS_NOW)
        client.came([served()], KEYS_NOW)
        assert client.keys is not None
        over = client.keys.not_after
        list(client.effects())
        client._asked = over  # as if somebody had asked a moment ago
        self.assertIsNotNone(client.wanted(over))
        self.assertIsNone(client.wanted(over + 1))
        told = [one.what for one in client.effects() if isinstance(one, Tell)]
        self.assertEqual(told, [Changed(State.IDLE), Changed(State.KEYS), Ask()])
        client.came([served()], KEYS_NOW)
        self.assertIsNotNone(client.keys)
        client.close()
        self.assertIsNone(client.keys)

    def test_relays_that_are_silent_during_a_refresh(self) -> None:
        client = ClientKeys("shop", [ME.node_id])
        client.wanted(KEYS_NOW)
        client.came([served()], KEYS_NOW)
        soon = KEYS_NOW + 36 * HOUR
        client.wanted(soon)
        self.assertEqual(client.state, State.REFRESHING)
        client.missing(soon)
        self.assertEqual(client.state, State.READY)
        list(client.effects())
        client.wanted(soon + KEYS_HURRY)
        self.assertEqual([one.what for one in client.effects() if isinstance(one, Tell)][-1], Ask())

    def test_the_moments_of_a_key(self) -> None:
        schedule, key = Schedule(0), GatewayKey.make(EPOCH)
        schedule.add(key)
        for moment, opens in ((-EARLY - 1, False), (-EARLY, True), (OPENED - 1, True), (OPENED, False)):
            now = key.made + moment
            self.assertEqual(schedule.find(key.key_id, now) is key, opens, moment)
            self.assertEqual(schedule.for_socket(EPOCH, now) is key, opens, moment)
            self.assertEqual(schedule.live(now) == [key], opens, moment)
        for moment, offered in ((-1, False), (0, True), (CACHED - 1, True), (CACHED, False)):
            self.assertEqual(schedule.current(key.made + moment) is key, offered, moment)
        self.assertIsNone(schedule.for_socket(EPOCH + 1, key.made))
        self.assertEqual(key.config().aeads, (Aead.AES_128_GCM,))

    def test_a_date_that_does_not_count_leaves_nothing(self) -> None:
        marks = ReplaySet()
        self.assertIs(marks.add(bytes(16), WALL - 1000, WALL), Verdict.DATE)
        self.assertEqual((len(marks), marks._marks), (0, {}))
        window = Window(most=2)
        self.assertEqual((window.added(60), window.added(120), window.added(120)), ([], [], [60]))


class TargetTests(SynchronousTestCase):
    def test_fields_of_a_hop(self) -> None:
        """All of them, as a stranger would list them, both ways."""
        names = "connection keep-alive proxy-connection transfer-encoding te trailer upgrade proxy-authenticate"
        names += " proxy-authorization http2-settings"
        lines = tuple((name.encode(), b"x") for name in (*names.split(), "accept"))
        self.assertEqual(target.told(lines), ((b"accept", b"x"),))
        self.assertEqual(target.answered(lines), ((b"accept", b"x"),))
        ours = "forwarded via x-real-ip l8-encapsulated l8-token x-forwarded-for x-forwarded-anything"
        lines = tuple((name.encode(), b"x") for name in (*ours.split(), "accept"))
        self.assertEqual(target.told(lines), ((b"accept", b"x"),))

    def test_as_many_names_as_may_be(self) -> None:
        self.assertEqual(len(Allowed.of(f"a{number}" for number in range(64)).pairs), 64)
        self.assertEqual(len(Allowed.of(["a:65535"]).pairs), 1)
        self.assertEqual(len(Allowed.of(["https://a"]).pairs), 1)
        self.assertRaises(ConfigError, Allowed.of, ["a:65536"])

    def test_dots_that_lead_to_the_root(self) -> None:
        for path in ("/.", "/a/..", "/a/../", "/%2e"):
            self.assertEqual(normal(path), "/", path)


class FrameTests(SynchronousTestCase):
    def test_codes(self) -> None:
        """Those that RFC 6455 and its registry let be said, and applications' own."""
        good = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
        for code in (*range(990, 1020), 2999, 3000, 4999, 5000):
            data = code.to_bytes(2, "big")
            if code in good:
                self.assertEqual(frames.read_close(data), (code, ""))
            else:
                self.assertRaises(frames.BadFrame, frames.read_close, data)
        for code in (1004, 1005, 1006, 1015, 999, 5000):
            self.assertEqual(passage.Control(8, code.to_bytes(2, "big")).code, 1002)
        for code in (1000, 1007, 1014, 1016, 4999):
            self.assertEqual(passage.Control(8, code.to_bytes(2, "big")).code, code)

    def test_sizes(self) -> None:
        data = bytes(frames.DATA)
        message = frames.Message(frames.Kind.BINARY, data)
        self.assertEqual([len(one) for one in frames.frames(message)], [65_519])
        message = frames.Message(frames.Kind.BINARY, data + b"a")
        self.assertEqual([len(one) for one in frames.frames(message)], [65_519, 256])
        self.assertEqual(frames.SIZES, (256, 512, 1024, 2048, 4096, 16_384, 65_519))
        self.assertEqual({int(kind) for kind in frames.Kind}, {0, 1, 2, 8, 9, 10, 11, 12})
        assembly = frames.Assembly()
        text = bytes((frames.Kind.PING | 0x80, 0, 125)) + b"p" * 125
        self.assertEqual(assembly.take(text.ljust(256, b"\0")), frames.Message(frames.Kind.PING, b"p" * 125))

    def test_control_frames_under_a_mask(self) -> None:
        data = bytes(range(125))
        self.assertEqual(passage.control(PONG, data, MASK), frame(PONG, data, mask=MASK))
        self.assertEqual(through(frame(PING, data))[1], [passage.Control(PING, data)])
        one = passage.Passage(masked=True)
        one.feed(frame(BINARY, b"a") + frame(PING, b"") + frame(BINARY, b"b"))
        self.assertEqual(one.frames, 2)


class CookieTests(SynchronousTestCase):
    plain = Place("http", "shop.example", "/")

    def test_what_plain_http_may_not_do(self) -> None:
        jar = Jar()
        jar.store([b"x=1; Secure; Path=/"], self.plain, JAR_NOW)
        self.assertEqual(jar.header(HERE, JAR_NOW), b"")
        for old, new, there in (
            (b"x=1; Secure; Path=/a", b"x=2; Path=/", b"x=1; x=2"),  # not below the old one
            (b"x=1; Secure; Path=/", b"y=2; Path=/", b"x=1; y=2"),  # another name
            (b"x=1; Path=/a", b"x=2; Path=/a/b", b"x=2; x=1"),  # the old one is not secure
            (b"x=1; Secure; Path=/", b"x=2; Path=/a/b", b"x=1"),  # would come before it
            (b"x=1; Secure; Path=/; Domain=shop.example", b"x=2; Path=/", b"x=1"),
        ):
            jar = Jar()
            jar.store([old], HERE, JAR_NOW)
            jar.store([new], self.plain, JAR_NOW)
            self.assertEqual(jar.header(HERE, JAR_NOW), there, (old, new))

    def test_names_near_one_of_https(self) -> None:
        """A cookie of http does not lie over one of https, from below or from above; one of https does."""
        for old_host, old, new_host, new, kept in (
            ("shop.example", b"x=1; Secure; Path=/", "www.shop.example", b"x=2; Path=/", 1),
            ("www.shop.example", b"x=1; Secure; Path=/", "www.shop.example", b"x=2; Path=/; Domain=shop.example", 1),
            ("shop.example", b"x=1; Secure; Path=/", "other.example", b"x=2; Path=/", 2),
        ):
            jar = Jar()
            jar.store([old], Place("https", old_host, "/"), JAR_NOW)
            jar.store([new], Place("http", new_host, "/"), JAR_NOW)
            self.assertEqual(len(jar), kept, (old_host, new_host))
        jar = Jar()
        jar.store([b"x=1; Secure; Path=/", b"x=2; Path=/", b"=", b""], HERE, JAR_NOW)
        self.assertEqual(jar.header(HERE, JAR_NOW), b"x=2")

    def test_whose_domain(self) -> None:
        below = Place("https", "www.shop.example", "/")
        for domain, sent in ((b"shop.example", b"x=1"), (b"example", b""), (b"www.shop.example", b"x=1")):
            jar = Jar()
            jar.store([b"x=1; Domain=" + domain], below, JAR_NOW)
            self.assertEqual(jar.header(below, JAR_NOW), sent, domain)
        alone = Place("https", "localhost", "/")
        jar = Jar()
        jar.store([b"x=1; Domain=localhost"], alone, JAR_NOW)
        self.assertEqual(jar.header(alone, JAR_NOW), b"x=1")

    def test_which_places_are_as_good_as_secure(self) -> None:
        for host, secure in (
            ("localhost", True),
            ("a.localhost", True),
            ("127.0.0.1", True),
            ("::1", True),
            ("shop.example", False),
            ("128.0.0.1", False),
            ("notlocalhost", False),
        ):
            self.assertEqual(Place("http", host, "/").secure, secure, host)

    def test_letters_that_nobody_writes(self) -> None:
        for byte in (*range(9), *range(10, 32), 127):
            jar = Jar()
            jar.store([b"x=a" + bytes((byte,)) + b"b"], HERE, JAR_NOW)
            self.assertEqual(jar.header(HERE, JAR_NOW), b"", byte)
        jar = Jar()
        jar.store([b" \tx =\t1 "], HERE, JAR_NOW)
        self.assertEqual(jar.header(HERE, JAR_NOW), b"x=1")

    def test_cookies_that_are_over_are_not_kept(self) -> None:
        jar = Jar()
        jar.store([b"x=1", b"x=1; Max-Age=0", b"y=1; Max-Age=-1"], HERE, JAR_NOW)
        self.assertEqual(len(jar), 0)

    def test_every_month(self) -> None:
        for month in range(1, 13):
            wanted = datetime(2030, month, 7, 1, 2, 3, tzinfo=UTC).timestamp()
            self.assertEqual(date(f"Mon, 07 {calendar.month_abbr[month]} 2030 01:02:03 GMT"), wanted)
        for year, full in ((69, 2069), (70, 1970), (99, 1999)):
            self.assertEqual(date(f"07 Jan {year:02} 01:02:03"), datetime(full, 1, 7, 1, 2, 3, tzinfo=UTC).timestamp())
        self.assertIsNotNone(date("07 Jan 1601 01:02:03"))
        for text in ("07 Jan 1600 01:02:03", "07 Jan 2030", "Jan 2030 01:02:03", "07 2030 01:02:03", "07 Jan 01:02:03"):
            self.assertIsNone(date(text), text)


class ManifestTests(SynchronousTestCase):
    def test_only_the_publisher_signs(self) -> None:
        self.assertRaises(BadManifest, ONE.sign, OTHER)

    def test_fields_of_every_file(self) -> None:
        fields = dict(integrity.BESIDE)
        self.assertIn(fields.pop("referrer-policy"), ("no-referrer", "same-origin"))  # nobody else hears of a page
        self.assertEqual(
            fields,
            {
                "cross-origin-opener-policy": "same-origin-allow-popups",
                "x-content-type-options": "nosniff",
                "x-dns-prefetch-control": "off",
            },
        )
        self.assertEqual(
            (integrity.PATH, integrity.MANIFEST_TYPE), ("/.well-known/l8/manifest.json", "application/jose+json")
        )
        for words in (
            "default-src 'none'",
            "frame-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types l8",
        ):
            self.assertIn(words, integrity.csp(["https://relay.example"]).split("; "))
