"""The server of HTTP/1.1: what reaches a handler at every cut and in noise, who is slow, who talks too much."""

from __future__ import annotations

from typing import Any

import h11
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, LocalProtocolError, Unavailable
from layer8.core.http1 import FIELDS, HEAD
from layer8.net.http import HEAD_TIME, IDLE_TIME, KEEP_TIME, LAST_CALL, SLOWEST, SWEEP, Incoming, Server
from layer8.net.http_wire import BUFFER, field_lines

HOST = b"Host: a.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


class Transport(StringTransportWithDisconnection):
    """Takes all at once; `abortConnection` ends it too."""

    aborted = False

    def loseConnection(self) -> None:
        if self.connected:
            super().loseConnection()  # type: ignore[no-untyped-call]

    def abortConnection(self) -> None:
        self.aborted = True
        self.loseConnection()

    def unregisterProducer(self) -> None:
        self.producer = None


class Recorder:
    """A listener that remembers, and answers at the end if told so."""

    def __init__(self, exchange: Incoming, said: list[Any], *, answers: bool = True) -> None:
        self.exchange = exchange
        self.said = said
        self.body = b""
        self.answers = answers
        self.heard: list[str] = []

    def received(self, data: bytes) -> None:
        self.body += data

    def ended(self) -> None:
        self.heard.append("ended")
        self.said.append((self.exchange.method, self.exchange.target, self.body))
        if self.answers:
            self.exchange.answer(200, [("x-size", str(len(self.body)))], self.body)

    def lost(self) -> None:
        self.heard.append("lost")

    def full(self) -> None:
        self.heard.append("full")

    def room(self) -> None:
        self.heard.append("room")


class Rig:
    """A server, one connection to it, and what its handler has heard."""

    def __init__(self, handler: Any = None, **more: Any) -> None:
        self.clock = Clock()
        self.said: list[Any] = []
        self.exchanges: list[Incoming] = []
        self.listeners: list[Recorder] = []
        self.handler = handler or self.record
        self.server = Server(self.clock, self.take, **more)
        self.connect()

    def take(self, exchange: Incoming) -> None:
        self.exchanges.append(exchange)
        self.handler(exchange)

    def record(self, exchange: Incoming) -> None:
        listener = Recorder(exchange, self.said)
        self.listeners.append(listener)
        exchange.to(listener)

    def hold(self, exchange: Incoming) -> None:
        listener = Recorder(exchange, self.said, answers=False)
        self.listeners.append(listener)
        exchange.to(listener)

    def connect(self) -> None:
        self.transport = Transport()
        self.wire = self.server.buildProtocol(None)
        assert self.wire is not None
        self.transport.protocol = self.wire
        self.wire.makeConnection(self.transport)

    def say(self, data: bytes, size: int = 0) -> bytes:
        """Send in pieces of `size` bytes, and give what came back."""
        before = len(self.transport.value())
        assert self.wire is not None
        for at in range(0, len(data), size or len(data)):
            if not self.transport.connected:
                break
            self.wire.dataReceived(data[at : at + (size or len(data))])
        said: bytes = self.transport.value()[before:]
        return said

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)

    @property
    def open(self) -> bool:
        return self.transport.connected


def answers(data: bytes, methods: list[bytes]) -> list[tuple[int, bytes]]:
    """Read answers as h11 does, which stands for all clients."""
    found: list[tuple[int, bytes]] = []
    for method in methods:
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "a.test")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(data)
        status, body = 0, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(b"")
                continue
            if isinstance(event, h11.InformationalResponse):
                continue
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                assert isinstance(event, h11.EndOfMessage), event
                break
        found.append((status, body))
        data = connection.trailing_data[0]
        if not data:
            break
    return found


class AnswerTests(SynchronousTestCase):
    def test_at_once(self) -> None:
        rig = Rig(lambda exchange: exchange.answer(200, [("content-type", "text/plain")], b"hello"))
        self.assertEqual(answers(rig.say(GET), [b"GET"]), [(200, b"hello")])
        self.assertTrue(rig.open)

    def test_in_chunks(self) -> None:
        rig = Rig(rig_stream)
        said = rig.say(GET)
        self.assertIn(b"transfer-encoding: chunked\r\n", said)
        self.assertEqual(answers(said, [b"GET"]), [(200, b"onetwo")])

    def test_head_has_no_body(self) -> None:
        head = GET.replace(b"GET", b"HEAD")
        for handler, framing in ((rig_stream, b"transfer-encoding"), (whole, b"content-length: 5")):
            said = Rig(handler).say(head)
            self.assertIn(framing, said)
            self.assertTrue(said.endswith(b"\r\n\r\n"))

    def test_statuses_without_body(self) -> None:
        for status in (204, 304):
            rig = Rig(lambda exchange, status=status: exchange.answer(status))
            said = rig.say(GET)
            self.assertNotIn(b"content-length", said)
            self.assertTrue(said.endswith(b"\r\n\r\n"))
            self.assertTrue(rig.open)

    def test_old_clients_hear_no_chunks(self) -> None:
        rig = Rig(rig_stream)
        said = rig.say(b"GET / HTTP/1.0\r\n\r\n")
        self.assertNotIn(b"chunked", said)
        self.assertTrue(said.endswith(b"\r\n\r\nonetwo"))
        self.assertFalse(rig.open)

    def test_close_is_asked_for(self) -> None:
        rig = Rig(whole)
        self.assertIn(b"connection: close\r\n", rig.say(GET.replace(b"\r\n\r\n", b"\r\nConnection: x, Close\r\n\r\n")))
        self.assertFalse(rig.open)

    def test_promises_are_kept(self) -> None:
        rig = Rig(rig_silent)
        rig.say(GET)
        exchange = rig.exchanges[0]
        exchange.begin(200, length=3)
        with self.assertRaises(LocalProtocolError):
            exchange.write(b"four")
        exchange.write(b"tw")
        with self.assertRaises(LocalProtocolError):
            exchange.finish()
        self.assertTrue(rig.transport.aborted)

    def test_no_field_becomes_two(self) -> None:
        for name, value in (("a", "b\r\nc: d"), ("a", "b\n"), ("a", "\rb"), ("a\r\n", "b"), ("a", "b\0")):
            with self.assertRaises(LocalProtocolError):
                field_lines([(name, value)])

    def test_what_a_handler_raises_is_500(self) -> None:
        def broken(exchange: Incoming) -> None:
            raise KeyError("secret")

        rig = Rig(broken)
        said = rig.say(GET)
        self.assertEqual(answers(said, [b"GET"]), [(500, b"")])
        self.assertNotIn(b"secret", said)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_what_a_handler_raises_later_cuts(self) -> None:
        def broken(exchange: Incoming) -> None:
            exchange.begin(200)
            exchange.write(b"some")
            raise KeyError

        rig = Rig(broken)
        rig.say(GET)
        self.assertTrue(rig.transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_an_answer_is_one_write(self) -> None:
        rig = Rig(rig_stream)
        written: list[bytes] = []
        self.patch(rig.transport, "write", written.append)
        rig.say(GET + GET)
        self.assertEqual(len(written), 1)

    def test_an_early_answer_closes_and_waits_for_the_client(self) -> None:
        rig = Rig(lambda exchange: exchange.answer(413))
        said = rig.say(b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n" + HOST + b"\r\nabc")
        self.assertIn(b"connection: close", said)
        self.assertFalse(rig.open)  # this transport has no half-close; see test_http_client

    def test_an_early_answer_to_what_is_there_closes_nothing(self) -> None:
        rig = Rig(whole)
        post = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n" + HOST + b"\r\nabc"
        self.assertEqual(answers(rig.say(post + post), [b"POST", b"POST"]), [(200, b"whole")] * 2)
        self.assertTrue(rig.open)

    def test_who_has_gone_is_told_nothing(self) -> None:
        rig = Rig(rig_silent)
        rig.say(GET)
        rig.transport.loseConnection()
        exchange = rig.exchanges[0]
        exchange.begin(200)
        exchange.write(b"x")
        exchange.finish()
        exchange.answer(200)
        exchange.abort()
        self.assertFalse(exchange.open)


def whole(exchange: Incoming) -> None:
    exchange.answer(200, [], b"whole")


def rig_stream(exchange: Incoming) -> None:
    exchange.begin(200, [("a", "b")])
    exchange.write(b"one")
    exchange.write(b"")
    exchange.write(b"two")
    exchange.finish()


def rig_silent(exchange: Incoming) -> None:
    """Answer later."""


class RequestTests(SynchronousTestCase):
    def test_what_a_handler_sees(self) -> None:
        rig = Rig()
        rig.say(
            b"POST /a/b?c=d?e HTTP/1.1\r\nHost: A.test:81\r\nX-One: 1\r\nx-one: \xff\r\nContent-Length: 2\r\n\r\nhi"
        )
        exchange = rig.exchanges[0]
        self.assertEqual((exchange.method, exchange.target, exchange.path), ("POST", "/a/b?c=d?e", "/a/b"))
        self.assertEqual((exchange.query, exchange.host, exchange.length), ("c=d?e", "a.test", 2))
        self.assertEqual((exchange.values("x-one"), exchange.only("x-one")), (["1", "\xff"], None))
        self.assertEqual((exchange.only("content-length"), exchange.only("none")), ("2", None))
        self.assertFalse(exchange.secure)
        self.assertIn(("host", "A.test:81"), exchange.fields)

    def test_expectations(self) -> None:
        head = b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n" + HOST + b"\r\n"
        rig = Rig()
        self.assertEqual(rig.say(head), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(answers(rig.say(b"hi"), [b"POST"]), [(200, b"hi")])
        self.assertNotIn(b"100 Continue", Rig().say(head + b"hi"))
        self.assertNotIn(b"100 Continue", Rig(whole).say(head))
        self.assertIn(b" 417 ", Rig().say(head.replace(b"100-C", b"200-C")))

    def test_nobody_is_told_to_go_on_within_an_answer(self) -> None:
        def early(exchange: Incoming) -> None:
            exchange.begin(200)
            exchange.to(Recorder(exchange, [], answers=False))

        said = Rig(early).say(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n" + HOST + b"\r\n")
        self.assertTrue(said.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertNotIn(b"100 Continue", said)

    def test_small_bodies_whole(self) -> None:
        said: list[object] = []

        def small(exchange: Incoming) -> None:
            done: Deferred[bytes] = Deferred.fromCoroutine(exchange.read(4))
            done.addBoth(said.append)

        post = b"POST / HTTP/1.1\r\n%b" + HOST + b"\r\n%b"
        Rig(small).say(post % (b"Content-Length: 4\r\n", b"four"), 3)
        Rig(small).say(GET)
        Rig(small).say(post % (b"Content-Length: 5\r\n", b"fives"))
        Rig(small).say(post % (b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
        cut = Rig(small)
        cut.say(post % (b"Content-Length: 4\r\n", b"f"))
        cut.transport.loseConnection()
        self.assertEqual(said[:2], [b"four", b""])
        kinds = [LimitExceeded, LimitExceeded, Unavailable]
        self.assertEqual([failure.type for failure in said[2:]], kinds)  # type: ignore[attr-defined]

    def test_upgrades_are_handed_over(self) -> None:
        class Other(Protocol):
            heard = b""

            def dataReceived(self, data: bytes) -> None:
                self.heard += data

        others = [Other(), Other()]
        for other, said in zip(others, (None, b"GET said"), strict=True):
            rig = Rig(lambda exchange, other=other, said=said: exchange.hand_over(other, said))
            upgrade = b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + HOST + b"\r\n"
            rig.say(upgrade + b"\x81\x00")
            self.assertEqual(other.heard, (said or upgrade) + b"\x81\x00")
            self.assertEqual((len(rig.server), rig.transport.protocol), (0, other))
            self.assertEqual(rig.clock.getDelayedCalls(), [])


POSTS = st.lists(
    st.tuples(
        st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE"]),
        st.sampled_from([b"/", b"/a?b", b"/%2e"]),
        st.binary(max_size=40),
        st.sampled_from(["length", "chunks", "none"]),
        st.integers(1, 17),
    ),
    min_size=1,
    max_size=5,
)


def written(method: bytes, target: bytes, body: bytes, how: str, size: int) -> bytes:
    head = b"%b %b HTTP/1.1\r\n%b" % (method, target, HOST)
    if how == "none":
        return head + b"\r\n"
    if how == "length":
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


class CutTests(SynchronousTestCase):
    @given(POSTS, st.integers(1, 400), st.booleans())
    def test_any_cut(self, posts: list[tuple[bytes, bytes, bytes, str, int]], size: int, later: bool) -> None:
        """A pipeline is heard whole and in order, however it is cut, and answered in that order."""
        rig = Rig()
        if later:
            rig.handler = rig.hold
        rig.say(b"".join(written(*post) for post in posts), size)
        if later:
            done = 0
            while done < len(rig.exchanges):
                exchange, listener = rig.exchanges[done], rig.listeners[done]
                exchange.answer(200, [], listener.body)
                done += 1
        bodies = [body if how != "none" else b"" for _, _, body, how, _ in posts]
        wanted = [
            (method.decode(), target.decode(), body) for (method, target, *_), body in zip(posts, bodies, strict=True)
        ]
        self.assertEqual(rig.said, wanted)
        methods = [method for method, *_ in posts]
        self.assertEqual(answers(rig.transport.value(), methods), [(200, body) for body in bodies])
        self.assertTrue(rig.open)

    @given(st.data())
    def test_any_noise(self, data: st.DataObject) -> None:
        """Nothing is raised, little is kept, what is answered is HTTP, and h11 has heard the same of it."""
        posts = b"".join(written(*post) for post in data.draw(POSTS))
        noise = data.draw(
            st.one_of(
                st.binary(max_size=300),
                st.lists(
                    st.tuples(st.integers(0, len(posts)), st.sampled_from(NOISE), st.integers(0, 4)), max_size=3
                ).map(lambda places: noisy(posts, places)),
            )
        )
        rig = Rig()
        rig.say(noise, data.draw(st.integers(1, 400)))
        theirs = by_h11(noise)
        for ours in rig.said:
            if theirs:
                self.assertEqual(ours, theirs.pop(0))
        if rig.said or not rig.open:
            methods = [said[0].encode() for said in rig.said] + [b"GET"]
            if rig.transport.value():
                found = answers(rig.transport.value(), methods)
                self.assertEqual([status for status, _ in found][: len(rig.said)], [200] * len(rig.said))


NOISE = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\0",
    b":",
    b"0",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"f",
]


def noisy(data: bytes, places: list[tuple[int, bytes, int]]) -> bytes:
    for at, what, drop in sorted(places, reverse=True):
        data = data[:at] + what + data[at + drop :]
    return data


def by_h11(data: bytes) -> list[tuple[str, str, bytes]]:
    """What h11 hears before it refuses anything."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    found: list[tuple[str, str, bytes]] = []
    head, body = ("", ""), b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = (event.method.decode(), event.target.decode("latin-1")), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((*head, body))
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return found
                connection.start_next_cycle()
            else:
                return found
    except h11.ProtocolError:
        return found


class SmugglingTests(SynchronousTestCase):
    """Whoever sits before us and reads a message in another way finds no request of ours in it."""

    ROWS = (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: 4\r\nContent-Length: 4\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 4_0\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 04\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length : 4\r\n",
        b"Content-Length: 4\n",
        b" Content-Length: 4\r\n",
        b"X: y\r\n Content-Length: 4\r\n",
        b"X: y\0\r\nContent-Length: 4\r\n",
        b"X: y\rContent-Length: 4\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding\x0b: chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding: chunked;a=b\r\n",
        b"Host: b.test\r\n",
        b": empty\r\n",
        b"no colon\r\n",
    )
    CHUNKS = (
        b"g\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"-1\r\nabc\r\n0\r\n\r\n",
        b"\r\n3\r\nabc\r\n0\r\n\r\n",
        b"3;\0\r\nabc\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\n bad\r\n\r\n",
    )

    def test_heads(self) -> None:
        for row in self.ROWS:
            rig = Rig()
            said = rig.say(b"POST / HTTP/1.1\r\n" + HOST + row + b"\r\n" + GET + GET)
            self.assertEqual((rig.said, rig.exchanges), ([], []), row)
            self.assertTrue(said.startswith(b"HTTP/1.1 400 "), row)
            self.assertFalse(rig.open, row)

    def test_chunks(self) -> None:
        for row in self.CHUNKS:
            rig = Rig()
            rig.say(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"\r\n" + row + GET)
            self.assertEqual(rig.said, [], row)
            self.assertEqual(rig.listeners[0].heard, ["lost"], row)
            self.assertFalse(rig.open, row)

    def test_lines(self) -> None:
        for line, status in (
            (b"GET  / HTTP/1.1\r\n", 400),
            (b"GET / HTTP/1.1 \r\n", 400),
            (b"GET\t/ HTTP/1.1\r\n", 400),
            (b"GET / HTTP/2.0\r\n", 505),
            (b"GET / HTTP/1.2\r\n", 505),
            (b"GET /\r\n", 400),
            (b"GET a.test HTTP/1.1\r\n", 400),
            (b"GET http://b.test/ HTTP/1.1\r\n", 400),
            (b"GET http://u@a.test/ HTTP/1.1\r\n", 400),
            (b"CONNECT a.test:80 HTTP/1.1\r\n", 405),
            (b"PRI * HTTP/2.0\r\n", 0),
        ):
            rig = Rig()
            said = rig.say(line + HOST + b"\r\n" + GET)
            self.assertEqual((rig.said, rig.open), ([], False), line)
            self.assertTrue(said.startswith(b"HTTP/1.1 %d " % status) if status else not said, (line, said))


class LimitTests(SynchronousTestCase):
    def test_head(self) -> None:
        rig = Rig()
        self.assertIn(b" 431 ", rig.say(b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD, 1000))
        self.assertIn(b" 431 ", Rig().say(b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * FIELDS + b"\r\n"))

    def test_connections(self) -> None:
        rig = Rig(connections=2)
        rig.connect()
        self.assertIsNone(rig.server.buildProtocol(None))
        rig.transport.loseConnection()
        self.assertIsNotNone(rig.server.buildProtocol(None))

    def test_slow_head(self) -> None:
        rig = Rig()
        for _ in range(int(HEAD_TIME) + 3):
            rig.say(b"G")
            rig.clock.advance(1)
        self.assertIn(b" 408 ", rig.transport.value())
        self.assertFalse(rig.open)

    def test_slow_head_of_a_later_request(self) -> None:
        rig = Rig(whole)
        rig.say(GET)
        rig.wait(KEEP_TIME - 5)
        rig.say(b"GET /")
        rig.wait(HEAD_TIME + 2)
        self.assertIn(b" 408 ", rig.transport.value())

    def test_silence(self) -> None:
        rig = Rig()
        rig.wait(HEAD_TIME + 2)
        self.assertEqual((rig.open, rig.transport.value()), (False, b""))

    def test_kept_alive(self) -> None:
        rig = Rig(whole)
        for _ in range(3):
            rig.say(GET)
            rig.wait(KEEP_TIME - 3)
            self.assertTrue(rig.open)
        rig.wait(5)
        self.assertFalse(rig.open)
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_slow_body(self) -> None:
        rig = Rig()
        rig.say(b"POST / HTTP/1.1\r\nContent-Length: 9999\r\n" + HOST + b"\r\n")
        for _ in range(int(IDLE_TIME) + 3):
            rig.say(b"x")
            rig.clock.advance(1)
        self.assertIn(b" 408 ", rig.transport.value())
        self.assertEqual(rig.listeners[0].heard, ["lost"])

    def test_a_body_that_is_fast_enough(self) -> None:
        rig = Rig()
        rig.say(b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n" + HOST + b"\r\n")
        for _ in range(3 * int(IDLE_TIME)):
            rig.say(b"x" * 2 * SLOWEST)
            rig.clock.advance(1)
        self.assertTrue(rig.open)

    def test_nobody_takes_the_body(self) -> None:
        """Neither a handler that thinks nor a listener that rests makes a client slow, and little of it waits."""
        rig = Rig(rig_silent)
        rig.say(b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n" + HOST + b"\r\n" + b"x" * 2 * BUFFER, 4096)
        self.assertEqual(rig.transport.producerState, "paused")
        rig.wait(3 * IDLE_TIME)
        self.assertTrue(rig.open)
        listener = Recorder(rig.exchanges[0], rig.said)
        rig.exchanges[0].to(listener)
        self.assertEqual(rig.transport.producerState, "producing")
        self.assertEqual(len(listener.body), 2 * BUFFER)

    def test_a_listener_rests(self) -> None:
        rig = Rig()
        rig.say(b"POST / HTTP/1.1\r\nContent-Length: 6\r\n" + HOST + b"\r\n" + b"one")
        rig.exchanges[0].pause()
        self.assertEqual(rig.transport.producerState, "paused")
        rig.say(b"two" + GET)
        self.assertEqual((len(rig.exchanges), rig.said), (1, []))
        rig.exchanges[0].resume()
        self.assertEqual(rig.said, [("POST", "/", b"onetwo"), ("GET", "/", b"")])

    def test_who_reads_nothing_is_heard_no_more(self) -> None:
        rig = Rig()
        rig.wire.pauseProducing()  # type: ignore[union-attr]
        rig.say(GET * 4000, 4096)
        self.assertEqual((len(rig.exchanges), rig.transport.producerState), (0, "paused"))
        rig.wire.resumeProducing()  # type: ignore[union-attr]
        self.assertEqual((len(rig.said) > 1000, rig.transport.producerState), (True, "producing"))

    def test_who_reads_nothing_of_an_answer_is_cut(self) -> None:
        rig = Rig(rig_silent)
        rig.say(GET)
        listener = Recorder(rig.exchanges[0], rig.said, answers=False)
        rig.exchanges[0].to(listener)
        rig.exchanges[0].begin(200)
        rig.wire.pauseProducing()  # type: ignore[union-attr]
        rig.wait(IDLE_TIME + 2)
        self.assertTrue(rig.transport.aborted)
        self.assertEqual(listener.heard, ["ended", "full", "lost"])

    def test_pipelined_noise_is_bounded(self) -> None:
        rig = Rig(rig_silent)
        rig.say(GET + b"x" * (4 * BUFFER), 4096)
        self.assertEqual(rig.transport.producerState, "paused")
        self.assertLessEqual(rig.wire._reader.held, 4 * BUFFER)  # type: ignore[union-attr]


class DrainTests(SynchronousTestCase):
    def test_idle_connections_close_and_open_ones_end(self) -> None:
        rig = Rig(rig_silent)
        busy = rig.transport
        rig.say(GET)
        exchange = rig.exchanges[0]
        rig.connect()
        idle = rig.transport
        done = rig.server.stop()
        rig.clock.pump([SWEEP] * int(LAST_CALL / SWEEP + 1))
        self.assertEqual((idle.connected, busy.connected, done.called), (False, True, False))
        self.assertIsNone(rig.server.buildProtocol(None))
        exchange.answer(200, [], b"bye")
        self.assertIn(b"connection: close", busy.value())
        self.assertEqual(answers(busy.value(), [b"GET"]), [(200, b"bye")])
        self.assertEqual((busy.connected, done.called, len(rig.server)), (False, True, 0))
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_who_asks_at_this_moment_is_answered(self) -> None:
        rig = Rig(whole)
        rig.say(GET)
        done = rig.server.stop()
        self.assertEqual((rig.open, done.called), (True, False))
        rig.say(GET)
        self.assertEqual([status for status, _ in answers(rig.transport.value(), [b"GET", b"GET"])], [200, 200])
        self.assertIn(b"connection: close", rig.transport.value())
        self.assertEqual((rig.open, done.called), (False, True))

    def test_at_once(self) -> None:
        rig = Rig(rig_silent)
        rig.say(GET)
        listener = Recorder(rig.exchanges[0], rig.said, answers=False)
        rig.exchanges[0].to(listener)
        rig.server.abort()
        self.assertEqual((listener.heard, rig.open), (["ended", "lost"], False))
        self.assertTrue(rig.server.stop().called)

    def test_bytes_are_counted(self) -> None:
        rig = Rig(whole)
        rig.say(GET, 3)
        self.assertEqual(rig.server.tally.heard, len(GET))
        self.assertEqual(rig.server.tally.sent, len(rig.transport.value()))
