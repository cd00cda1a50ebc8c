"""Mode `proxy` without sockets: what goes on, what comes back, and how a visitor and a host part."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.http1 import ENDLESS, Malformed, read_request, read_response
from layer8.proxy.forward import Forward, Leave, Terms, page, sent_back, sent_on
from tests.proxy.cuts import mutated, pieces

GET = b"GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"PUT /c HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
OTHER = GET.replace(b"a.test", b"b.test")
UPGRADE = b"GET /w HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
TERMS = Terms("a.test")


def fields(head: bytes) -> list[bytes]:
    return head.rstrip(b"\r\n").split(b"\r\n")[1:]


class HeadTests(SynchronousTestCase):
    def sent(self, *lines: bytes, terms: Terms = TERMS, start: bytes = b"GET / HTTP/1.1") -> list[bytes]:
        return fields(sent_on(read_request(b"\r\n".join([start, b"Host: a.test", *lines, b"", b""])), terms))

    def test_what_every_host_gets(self) -> None:
        ours = [b"X-Forwarded-Proto: http", b"X-Forwarded-Host: a.test"]
        self.assertEqual(self.sent(b"Accept:  */* "), [b"Host: a.test", b"Accept: */*", *ours])

    def test_forwarding_fields_are_ours(self) -> None:
        terms = Terms("a.test", b"https", b"192.0.2.1")
        for lie in (
            b"X-Forwarded-For: 1.2.3.4",
            b"x-forwarded-proto: gopher",
            b"X_Forwarded_For: 1.2.3.4",
            b"X-Forwarded_Host: b.test",
            b"X-Forwarded-Port: 1",
            b"Forwarded: for=1.2.3.4",
            b"X-Real-IP: 1.2.3.4",
            b"X_Real_IP: 1.2.3.4",
            b"X.Forwarded.For: 1.2.3.4",
            b"x-forwarded+proto: gopher",
            b"X~Real^IP: 1.2.3.4",
        ):
            self.assertEqual(
                self.sent(lie, terms=terms),
                [
                    b"Host: a.test",
                    b"X-Forwarded-For: 192.0.2.1",
                    b"X-Forwarded-Proto: https",
                    b"X-Forwarded-Host: a.test",
                ],
            )
            self.assertNotIn(b"For:", b"".join(self.sent(lie)))

    def test_connection_and_what_it_names_go_no_further(self) -> None:
        kept = self.sent(
            b"Connection: keep-alive, X-Secret, X-Forwarded-Proto",
            b"X-Secret: 1",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"Proxy-Authorization: Basic x",
            b"TE: trailers",
            b"Upgrade: websocket",
            b"HTTP2-Settings: AAA",
            b"Trailer: X",
            b"Authorization: Basic x",
            b"Expect: 100-continue",
        )
        self.assertEqual(kept[1:-2], [b"Trailer: X", b"Authorization: Basic x", b"Expect: 100-continue"])
        self.assertEqual(kept[-2:], [b"X-Forwarded-Proto: http", b"X-Forwarded-Host: a.test"])

    def test_connection_may_not_name_what_frames_or_routes(self) -> None:
        for name in (b"Host", b"content-length", b"Transfer-Encoding"):
            self.assertRaises(Malformed, self.sent, b"Connection: close, " + name)

    def test_passwords_for_us_stay_here(self) -> None:
        kept = self.sent(b"Authorization: Basic x", terms=Terms("a.test", locked=True))
        self.assertNotIn(b"Authorization: Basic x", kept)

    def test_upgrades(self) -> None:
        asked = (b"Connection: Upgrade", b"Upgrade: websocket")
        self.assertEqual(self.sent(*asked)[-2:], [b"Connection: upgrade", b"Upgrade: websocket"])
        for lines in ((b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), (b"Upgrade: websocket",)):
            self.assertNotIn(b"pgrade", b"".join(self.sent(*lines)))

    def test_targets_are_in_origin_form(self) -> None:
        head = sent_on(read_request(b"GET http://a.test/x?y HTTP/1.1\r\nHost: a.test\r\n\r\n"), TERMS)
        self.assertTrue(head.startswith(b"GET /x?y HTTP/1.1\r\nHost: a.test\r\n"))

    def test_old_requests_get_a_host(self) -> None:
        self.assertEqual(fields(sent_on(read_request(b"GET / HTTP/1.0\r\n\r\n"), TERMS))[0], b"Host: a.test")
        head = sent_on(read_request(b"GET http://a.test/ HTTP/1.0\r\n\r\n"), TERMS)
        self.assertEqual(fields(head)[0], b"Host: a.test")

    def test_responses(self) -> None:
        response = read_response(
            b"HTTP/1.0 404 Not\xc3 Found\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
            b"Upgrade: h2\r\nServer: x\r\nContent-Length: 0\r\n\r\n"
        )
        self.assertEqual(
            sent_back(response, False), b"HTTP/1.1 404 Not\xc3 Found\r\nServer: x\r\nContent-Length: 0\r\n\r\n"
        )
        self.assertEqual(fields(sent_back(response, True))[-1], b"Connection: close")

    def test_pages(self) -> None:
        self.assertEqual(page(502, bare=True) + b"502 Bad Gateway\n", page(502))
        self.assertEqual(read_response(page(401)[: page(401).index(b"\r\n\r\n") + 4]).body, 17)


class ForwardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.forward = Forward(TERMS)

    def on(self, *requests: bytes) -> bytes:
        """What the host gets of requests."""
        out = b""
        for request in requests:
            head, blank, body = request.partition(b"\r\n\r\n")
            out += sent_on(read_request(head + blank), TERMS) + body
        return out

    def test_one_after_the_other(self) -> None:
        forward = self.forward
        self.assertEqual(forward.said(GET + POST + CHUNKED), self.on(GET))
        self.assertTrue(forward.held and forward.waiting)
        self.assertEqual(forward.heard(OK), OK)
        self.assertFalse(forward.held)
        self.assertEqual(forward.take(), self.on(POST))
        self.assertEqual(forward.heard(OK), OK)
        self.assertEqual(forward.take(), self.on(CHUNKED))
        self.assertEqual((forward.heard(OK), forward.take(), forward.leave, forward.exchanges), (OK, b"", None, 3))

    @given(st.data())
    def test_any_cut(self, data: st.DataObject) -> None:
        forward = Forward(TERMS)
        up = b"".join(forward.said(piece) for piece in data.draw(pieces(POST)))
        down = b"".join(forward.heard(piece) for piece in data.draw(pieces(OK)))
        self.assertEqual((up, down, forward.exchanges), (self.on(POST), OK, 1))

    @given(mutated((GET + POST, CHUNKED + GET)), mutated((OK + OK, SWITCHED, CLOSING)))
    def test_any_noise(self, up: bytes, down: bytes) -> None:
        """Nothing raises, and once it is over nothing more goes on."""
        forward = Forward(TERMS)
        forward.said(up)
        forward.heard(down)
        forward.take()
        over = forward.leave is not None
        forward.ended()
        if over:
            self.assertEqual((forward.said(GET), forward.heard(OK), forward.take()), (b"", b"", b""))
            self.assertTrue(forward.held)

    def test_bodies_pass_unseen(self) -> None:
        forward = self.forward
        forward.said(b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\n")
        self.assertEqual(forward.up_free, 1000)
        forward.said_unseen(1000)
        self.assertTrue(forward.held)
        forward.heard(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        self.assertEqual((forward.up_free, forward.down_free), (0, 1000))
        forward.heard_unseen(1000)
        self.assertEqual((forward.exchanges, forward.held), (1, False))

    def test_another_host_begins_anew(self) -> None:
        forward = self.forward
        forward.said(GET)
        forward.heard(OK)
        self.assertEqual((forward.said(OTHER + POST), forward.leave, forward.rest()), (b"", Leave.ANEW, OTHER + POST))

    def test_a_host_that_closes_is_left(self) -> None:
        for last in (CLOSING, OK.replace(b"1.1", b"1.0")):
            forward = Forward(TERMS)
            forward.said(GET + POST)
            self.assertNotIn(b"close", forward.heard(last))
            self.assertEqual((forward.leave, forward.take(), forward.rest()), (Leave.ANEW, b"", POST))
        forward = Forward(TERMS)
        forward.said(GET)
        forward.heard(OK)
        forward.ended()
        self.assertEqual((forward.leave, forward.rest()), (Leave.ANEW, b""))

    def test_a_host_that_keeps_the_connection_of_http_1_0(self) -> None:
        forward = self.forward
        forward.said(GET)
        forward.heard(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual((forward.leave, forward.said(GET)), (None, self.on(GET)))

    def test_a_visitor_that_closes(self) -> None:
        for last in (GET[:-2] + b"Connection: close\r\n\r\n", GET.replace(b"1.1", b"1.0")):
            forward = Forward(TERMS)
            forward.said(last + GET)
            self.assertIn(b"Connection: close\r\n", forward.heard(OK))
            self.assertEqual((forward.leave, forward.take()), (Leave.CLOSE, b""))

    def test_a_body_that_ends_with_the_connection(self) -> None:
        forward = self.forward
        forward.said(GET)
        self.assertIn(b"Connection: close\r\n", forward.heard(b"HTTP/1.1 200 OK\r\n\r\nany"))
        self.assertEqual(forward.down_free, ENDLESS)
        forward.ended()
        self.assertEqual(forward.leave, Leave.CLOSE)

    def test_a_body_without_a_length_that_a_reset_ends(self) -> None:
        forward = self.forward
        forward.said(GET)
        forward.heard(b"HTTP/1.1 200 OK\r\n\r\nany")
        forward.ended(reset=True)
        self.assertEqual(forward.leave, Leave.BREAK)

    def test_a_request_that_met_a_closing_connection_is_said_again(self) -> None:
        for request, wanted in ((GET, Leave.ANEW), (POST, Leave.REPLY), (CHUNKED, Leave.REPLY)):
            forward = Forward(TERMS)
            forward.said(GET)
            forward.heard(OK)
            forward.said(request)
            forward.ended()
            self.assertEqual(forward.leave, wanted, request)
            if wanted is Leave.ANEW:
                self.assertEqual(forward.rest(), request)
            else:
                self.assertEqual((forward.status, forward.reply), (502, page(502)))
        forward = Forward(TERMS)
        forward.said(GET)
        forward.ended()
        self.assertEqual(forward.leave, Leave.REPLY, "a first request is not said twice")

    def test_a_response_cut_short(self) -> None:
        for part in (OK[:-1], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"):
            forward = Forward(TERMS)
            forward.said(GET)
            forward.heard(part)
            forward.ended()
            self.assertEqual(forward.leave, Leave.BREAK)

    def test_a_response_that_leaves_doubt(self) -> None:
        forward = self.forward
        forward.said(GET)
        self.assertEqual(forward.heard(OK.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")), b"")
        self.assertEqual((forward.leave, forward.reply), (Leave.REPLY, page(502)))

    def test_a_response_to_nothing(self) -> None:
        self.assertEqual((self.forward.heard(OK), self.forward.leave), (b"", Leave.BREAK))
        forward = Forward(TERMS)
        forward.said(GET)
        self.assertEqual(forward.heard(OK + OK), OK)
        self.assertEqual(forward.leave, Leave.CLOSE)
        forward = Forward(TERMS)
        forward.said(POST[:-1])
        self.assertEqual((forward.heard(OK + OK), forward.leave), (OK, Leave.BREAK))

    def test_interim_responses(self) -> None:
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        forward = self.forward
        forward.said(POST[:-5])
        self.assertEqual(forward.heard(interim), interim)
        self.assertEqual(forward.said(b"hello"), b"hello")
        self.assertEqual((forward.heard(OK), forward.exchanges), (OK, 1))
        old = Forward(TERMS)
        old.said(GET.replace(b"1.1", b"1.0"))
        self.assertEqual(old.heard(interim), b"")

    def test_head_and_interim(self) -> None:
        forward = self.forward
        forward.said(GET.replace(b"GET", b"HEAD"))
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        self.assertEqual(forward.heard(b"HTTP/1.1 103 Early\r\n\r\n" + head), b"HTTP/1.1 103 Early\r\n\r\n" + head)
        self.assertEqual((forward.exchanges, forward.leave), (1, None))
        forward.said(GET)
        self.assertEqual((forward.heard(OK), forward.exchanges), (OK, 2))

    def test_an_early_response(self) -> None:
        forward = self.forward
        forward.said(POST[:-2])
        self.assertEqual(forward.heard(OK), OK)
        self.assertEqual((forward.held, forward.said(b"lo")), (False, b"lo"))
        self.assertEqual((forward.exchanges, forward.leave), (1, None))
        forward = Forward(TERMS)
        forward.said(POST[:-2])
        forward.heard(CLOSING)
        self.assertEqual(forward.leave, Leave.CLOSE)

    def test_upgrade(self) -> None:
        forward = self.forward
        self.assertEqual(forward.said(UPGRADE + b"frames"), self.on(UPGRADE))
        self.assertEqual(forward.heard(SWITCHED + b"frames back"), SWITCHED + b"frames back")
        self.assertEqual((forward.take(), forward.up_free, forward.down_free), (b"frames", ENDLESS, ENDLESS))
        self.assertEqual((forward.said(b"x"), forward.heard(b"y"), forward.held), (b"x", b"y", False))

    def test_upgrade_declined(self) -> None:
        forward = self.forward
        forward.said(UPGRADE + GET)
        self.assertEqual(forward.heard(OK), OK)
        self.assertEqual(forward.take(), self.on(GET))

    def test_upgrades_nobody_asked_for(self) -> None:
        for request, response in ((GET, SWITCHED), (UPGRADE, SWITCHED.replace(b"Upgrade: websocket\r\n", b""))):
            forward = Forward(TERMS)
            forward.said(request)
            self.assertEqual((forward.heard(response), forward.leave), (b"", Leave.REPLY), response)

    def test_doubt_in_a_request(self) -> None:
        bad = GET[:-2] + b"Host: a.test\r\n\r\n"
        forward = self.forward
        self.assertEqual(forward.said(GET + bad), self.on(GET))
        self.assertEqual((forward.heard(OK), forward.take()), (OK, b""))
        self.assertEqual((forward.leave, forward.reply), (Leave.REPLY, page(400)))
        forward = Forward(TERMS)
        forward.said(CHUNKED[: CHUNKED.index(b"3\r\n")] + b"x\r\n")
        self.assertEqual(forward.leave, Leave.BREAK)

    def test_chunks_for_a_visitor_of_http_1_0(self) -> None:
        forward = self.forward
        forward.said(GET.replace(b"1.1", b"1.0"))
        forward.heard(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertEqual((forward.leave, forward.status), (Leave.REPLY, 502))


class LockedTests(SynchronousTestCase):
    def test_every_request_asks(self) -> None:
        forward = Forward(Terms("a.test", locked=True))
        request = GET[:-2] + b"Authorization: Basic x\r\n\r\n"
        self.assertEqual((forward.said(request + GET), forward.asks, forward.held), (b"", b"Basic x", True))
        self.assertNotIn(b"Authorization", forward.admitted())
        self.assertEqual((forward.heard(OK), forward.take(), forward.asks), (OK, b"", b""))
        self.assertEqual((forward.admitted(401), forward.leave), (b"", Leave.REPLY))
        self.assertIn(b'\r\nWWW-Authenticate: Basic realm="layer8"', forward.reply)
        self.assertTrue(forward.reply.endswith(b"401 Unauthorized\n"))

    def test_two_fields_are_none(self) -> None:
        forward = Forward(Terms("a.test", locked=True))
        forward.said(GET[:-2] + b"Authorization: Basic x\r\nAuthorization: Basic y\r\n\r\n")
        self.assertEqual(forward.asks, b"")

    def test_nothing_goes_on_before_the_answer(self) -> None:
        forward = Forward(Terms("a.test", locked=True))
        forward.said(POST)
        self.assertEqual((forward.said(b"more"), forward.take(), forward.up_free), (b"", b"", 0))
        head = GET.replace(b"GET", b"HEAD")
        forward = Forward(Terms("a.test", locked=True))
        forward.said(head)
        forward.admitted(401)
        self.assertTrue(forward.reply.endswith(b"\r\n\r\n"))
