"""The relay: one list of gateways, four values of a request, its own words in every refusal, and both legs together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.session import Close, Dial
from layer8.tunnel import relay_session as relay
from layer8.tunnel import wire
from layer8.tunnel.limits import DIAL_TIME, EXCHANGE_TIME, HEAD_TIME, IDLE_TIME
from layer8.tunnel.relay_session import CutGateway, Explain, Forward, Pass, RelayExchange, Reply, Route
from layer8.tunnel.wire import CHUNKED, SINGLE
from tests.tunnel.pair import NOW, Seen

ROUTES = {
    "shop": Route("tls:shop.example:443", "shop.example"),
    "mall": Route("unix:/run/mall", "mall.example", "/ohttp", "secret word"),
}
KIND = ("content-type", CHUNKED.request)


class Leg:
    """A relay's exchange and what it has asked for so far."""

    def __init__(self) -> None:
        self.exchange = RelayExchange(ROUTES, NOW)
        self.seen = Seen()

    def do(self, call: Callable[..., None], *args: Any) -> Leg:
        call(*args, NOW)
        return self.take()

    def take(self) -> Leg:
        self.seen.take(self.exchange.effects())
        return self

    def ask(self, *fields: tuple[str, str], method: str = "POST", path: str = "/r/shop") -> Leg:
        return self.do(self.exchange.asked, method, path, fields or (KIND,))

    def sending(self, *fields: tuple[str, str], path: str = "/r/shop") -> Leg:
        return self.ask(*fields, path=path).do(self.exchange.dialled)

    def answering(self) -> Leg:
        return self.sending().do(self.exchange.answered, 200, CHUNKED.response)

    @property
    def reply(self) -> Reply:
        (reply,) = self.seen.told(Reply)
        return reply

    @property
    def ended(self) -> bool:
        return self.exchange.deadline() is None


class GoodTests(SynchronousTestCase):
    def test_whole(self) -> None:
        leg = Leg().ask(KIND, ("content-length", "568"), ("incremental", "?1"))
        self.assertEqual(leg.seen.effects, [Dial(0, "tls:shop.example:443")])
        leg.do(leg.exchange.dialled)
        wanted = (KIND, ("content-length", "568"), ("incremental", "?1"))
        self.assertEqual(leg.seen.told(Forward), [Forward("shop.example", "/.well-known/ohttp-gateway", wanted)])
        leg.do(leg.exchange.answered, 200, CHUNKED.response)
        (passed,) = leg.seen.told(Pass)
        self.assertEqual(
            dict(passed.fields),
            {
                "content-type": CHUNKED.response,
                "access-control-allow-origin": "*",
                "cache-control": "no-store",
                "incremental": "?1",
            },
        )
        leg.do(leg.exchange.ended)
        self.assertEqual((leg.seen.closed, leg.ended, leg.exchange.gateway), ([Close("done")], True, "shop"))

    def test_of_one_piece(self) -> None:
        leg = Leg().sending(("content-type", SINGLE.request), path="/r/mall")
        wanted = (
            ("content-type", SINGLE.request),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer secret word"),
        )
        self.assertEqual(leg.seen.told(Forward), [Forward("mall.example", "/ohttp", wanted)])
        leg.do(leg.exchange.answered, 200, CHUNKED.response)
        self.assertEqual(leg.reply.status, 502)
        self.assertNotIn("secret", repr(ROUTES))

    def test_forty_fields_that_tell_who_asks(self) -> None:
        names = (
            "user-agent",
            "accept",
            "accept-language",
            "accept-encoding",
            "accept-charset",
            "origin",
            "referer",
            "cookie",
            "cookie2",
            "authorization",
            "proxy-authorization",
            "from",
            "via",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-port",
            "x-real-ip",
            "x-client-ip",
            "x-cluster-client-ip",
            "true-client-ip",
            "cf-connecting-ip",
            "fastly-client-ip",
            "x-request-id",
            "x-correlation-id",
            "traceparent",
            "tracestate",
            "dnt",
            "sec-gpc",
            "sec-ch-ua",
            "sec-ch-ua-mobile",
            "sec-ch-ua-platform",
            "sec-fetch-site",
            "sec-fetch-mode",
            "sec-fetch-dest",
            "sec-fetch-user",
            "save-data",
            "upgrade-insecure-requests",
            "x-device-id",
            "if-none-match",
            "x-host",
            "x-original-url",
            "x-rewrite-url",
            "x-http-method-override",
            "priority",
            "te",
            "connection",
        )
        self.assertGreaterEqual(len(names), 40)
        leg = Leg().sending(KIND, ("host", "elsewhere.example"), *((name, "marker") for name in names))
        (forward,) = leg.seen.told(Forward)
        self.assertEqual(forward.fields, (KIND, ("transfer-encoding", "chunked")))
        self.assertNotIn("marker", repr(leg.seen.effects))
        self.assertNotIn("elsewhere", repr(leg.seen.effects))

    def test_before_a_browser_asks(self) -> None:
        leg = Leg().ask(method="OPTIONS")
        self.assertEqual((leg.reply.status, leg.reply.body, leg.seen.closed), (204, b"", [Close("done")]))
        self.assertEqual(
            dict(leg.reply.fields),
            {
                "access-control-allow-origin": "*",
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": "content-type, incremental, authorization",
                "access-control-max-age": "7200",
                "cache-control": "no-store",
            },
        )


class BadTests(SynchronousTestCase):
    def refused(self, leg: Leg, status: int, problem: str = wire.ABOUT_BLANK) -> None:
        self.assertEqual((leg.reply.status, wire.read_problem(leg.reply.body)), (status, problem))
        fields = dict(leg.reply.fields)
        self.assertEqual(fields["content-type"], wire.PROBLEM_TYPE)
        self.assertEqual(fields["access-control-allow-origin"], "*")
        self.assertTrue(leg.ended)
        self.assertEqual(len(leg.seen.closed), 1)

    def test_there_is_no_other_way_to_name_a_target(self) -> None:
        for path in (
            "/r/other",
            "/r/",
            "/r",
            "/",
            "/r/shop/",
            "/r/shop?x",
            "/r/SHOP",
            "/r/shop%2e",
            "/r/../r/shop",
            "//r/shop",
            "/r/shop/keys",
            "/r/https://evil.example/",
            "/r/@evil.example",
            "/r/shop\n",
            "/r/" + "a" * 64,
            "http://evil.example/r/shop",
            "",
        ):
            self.refused(Leg().ask(path=path), 404)
        for name in ("host", "x-forwarded-host", "forwarded", "x-original-url", "x-host", "l8-gateway"):
            leg = Leg().ask(KIND, (name, "evil.example"))
            self.assertEqual(leg.seen.effects, [Dial(0, "tls:shop.example:443")])

    def test_methods(self) -> None:
        for method in ("GET", "HEAD", "PUT", "DELETE", "CONNECT", "TRACE", "post", ""):
            leg = Leg().ask(method=method)
            self.refused(leg, 405)
            self.assertEqual(dict(leg.reply.fields)["allow"], "POST, OPTIONS")

    def test_types(self) -> None:
        for fields in (
            (("content-length", "100"),),
            (("content-type", "text/plain"),),
            (("content-type", CHUNKED.response),),
            (("content-type", CHUNKED.request + "; a=b"),),
            (("content-type", CHUNKED.request.upper()),),
            (KIND, KIND),
        ):
            self.refused(Leg().ask(*fields), 415)

    def test_lengths(self) -> None:
        for length, status in (
            ("0", 400),
            ("38", 400),
            ("54", 400),
            ("-1", 400),
            ("+100", 400),
            ("1e3", 400),
            ("0100", 400),
            ("", 400),
            ("\u0663\u0663\u0663", 400),
            ("9" * 12, 413),
            ("9" * 40, 400),
        ):
            self.refused(Leg().ask(KIND, ("content-length", length)), status)
        self.refused(Leg().ask(KIND, ("content-length", "100"), ("content-length", "100")), 400)
        for size in (relay.BODY_LEAST, relay.BODY_MOST):
            self.assertEqual(len(Leg().ask(KIND, ("content-length", str(size))).seen.effects), 1)

    def test_what_a_gateway_says_is_said_anew(self) -> None:
        for status in (400, 422, 429, 503):
            for body, known in (
                (wire.problem(400, wire.OHTTP_KEY), True),
                (wire.problem(503, wire.NOT_FORWARDED), False),
                (b"<h1>secret text</h1>", False),
                (bytes(5000), False),
            ):
                leg = Leg().sending()
                leg.do(leg.exchange.answered, status, "text/html")
                self.assertEqual(len(leg.seen.told(Explain)), 1)
                leg.do(leg.exchange.explained, body)
                self.refused(leg, status, wire.OHTTP_KEY if known and status == 400 else wire.ABOUT_BLANK)
                self.assertEqual(len(leg.seen.told(CutGateway)), 1)
                self.assertNotIn("secret", repr(leg.seen.effects))
                self.assertNotIn("retry-after", dict(leg.reply.fields))

    def test_anything_else_of_a_gateway_s(self) -> None:
        for status, kind in (
            (200, "text/html"),
            (200, SINGLE.response),
            (201, CHUNKED.response),
            (302, ""),
            (404, ""),
            (413, ""),
            (415, ""),
            (500, ""),
            (504, ""),
            (99, ""),
        ):
            leg = Leg().sending()
            leg.do(leg.exchange.answered, status, kind)
            self.refused(leg, 502)

    def test_no_connection(self) -> None:
        for call in ("unreachable", "gateway_lost"):
            leg = Leg().ask()
            leg.do(getattr(leg.exchange, call))
            self.refused(leg, 503, wire.NOT_FORWARDED)
            self.assertEqual(dict(leg.reply.fields)["retry-after"], "1")

    def test_turned_away(self) -> None:
        for status, after, said in ((429, 0.3, "1"), (503, 7.4, "7")):
            leg = Leg()
            leg.exchange.turned_away(status, after, NOW)
            self.refused(leg.take(), status, wire.NOT_FORWARDED)
            self.assertEqual(dict(leg.reply.fields)["retry-after"], said)

    def test_a_gateway_that_goes(self) -> None:
        leg = Leg().sending()
        self.refused(leg.do(leg.exchange.gateway_lost), 502)
        leg = Leg().answering()
        leg.do(leg.exchange.gateway_lost)
        self.assertEqual((leg.seen.told(Reply), leg.seen.closed, leg.ended), ([], [Close("gateway", abort=True)], True))
        leg = Leg().sending()
        leg.do(leg.exchange.answered, 422, "")
        self.refused(leg.do(leg.exchange.gateway_lost), 502)
        leg = Leg().sending()
        leg.do(leg.exchange.answered, 422, "")
        self.refused(leg.do(leg.exchange.ended), 422)

    def test_a_page_that_goes(self) -> None:
        """The gateway's leg is cut before the last chunk has gone, so nothing there passes for whole."""
        for begin, cuts in ((Leg(), 0), (Leg().ask(), 1), (Leg().sending(), 1), (Leg().answering(), 1)):
            begin.do(begin.exchange.lost)
            self.assertEqual(len(begin.seen.told(CutGateway)), cuts)
            self.assertEqual((begin.seen.closed, begin.ended), ([], True))
        leg = Leg().ask()
        leg.do(leg.exchange.lost).do(leg.exchange.dialled)
        self.assertEqual((leg.seen.told(Forward), len(leg.seen.told(CutGateway))), ([], 2))

    def test_more_than_any_message(self) -> None:
        leg = Leg().answering()
        leg.do(leg.exchange.moved, 2 * relay.BODY_MOST)
        self.assertEqual(leg.seen.closed, [])
        leg.do(leg.exchange.moved, 1)
        self.assertEqual((leg.seen.closed, len(leg.seen.told(CutGateway))), ([Close("limit", abort=True)], 1))

    CALLS = (
        "asked",
        "dialled",
        "unreachable",
        "moved",
        "answered",
        "explained",
        "ended",
        "lost",
        "gateway_lost",
        "wake",
        "turned",
    )

    @given(st.lists(st.sampled_from(CALLS), max_size=12), st.integers(100, 599), st.binary(max_size=20))
    def test_any_order(self, calls: list[str], status: int, body: bytes) -> None:
        """Every input in every state: one reply at most, one end at most, and nothing after it but cuts."""
        leg, now = Leg(), NOW
        for call in calls:
            now += 7
            match call:
                case "asked":
                    leg.exchange.asked("POST", "/r/shop", (KIND,), now)
                case "moved":
                    leg.exchange.moved(10, now)
                case "answered":
                    leg.exchange.answered(status, CHUNKED.response, now)
                case "explained":
                    leg.exchange.explained(body, now)
                case "turned":
                    leg.exchange.turned_away(429, 1, now)
                case _:
                    getattr(leg.exchange, call)(now)
            leg.take()
        self.assertLessEqual(len(leg.seen.told(Reply)) + len(leg.seen.told(Pass)), 2)
        self.assertLessEqual(len(leg.seen.told(Reply)), 1)
        self.assertLessEqual(len(leg.seen.closed), 1)


class TimeTests(SynchronousTestCase):
    def woken(self, leg: Leg, at: float) -> Leg:
        self.assertEqual(leg.exchange.deadline(), at)
        leg.exchange.wake(at - 0.1)
        self.assertEqual(list(leg.exchange.effects()), [])
        leg.exchange.wake(at)
        return leg.take()

    def test_every_state(self) -> None:
        self.assertEqual(self.woken(Leg(), NOW + HEAD_TIME).reply.status, 408)
        self.assertEqual(self.woken(Leg().ask(), NOW + DIAL_TIME).reply.status, 503)
        leg = self.woken(Leg().sending(), NOW + IDLE_TIME)
        self.assertEqual((leg.reply.status, len(leg.seen.told(CutGateway))), (504, 1))
        leg = self.woken(Leg().answering(), NOW + IDLE_TIME)
        self.assertEqual((leg.seen.closed, len(leg.seen.told(CutGateway))), ([Close("timeout", abort=True)], 1))

    def test_what_moves_lives_on_for_an_hour(self) -> None:
        leg, now = Leg().answering(), NOW
        while now < NOW + EXCHANGE_TIME - IDLE_TIME:
            leg.exchange.moved(1, now)
            self.assertEqual(leg.exchange.deadline(), now + IDLE_TIME)
            now += 30
        leg.exchange.moved(1, now + 30)
        self.assertEqual(leg.exchange.deadline(), NOW + EXCHANGE_TIME)
