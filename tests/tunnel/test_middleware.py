"""The middlewares in this process: what applications see, what they can do wrong, and who hears of a cut."""

from __future__ import annotations

import asyncio  # noqa: TID251, the middleware runs in servers that have it
import contextlib
import errno
import io
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.crypto import hpke_context
from layer8.crypto.hpke_context import Private
from layer8.crypto.keys import NodeKey
from layer8.tunnel import asgi, bhttp, gateway_session, wire
from layer8.tunnel.asgi import L8Middleware as AsgiMiddleware
from layer8.tunnel.bhttp import Fields, Request, Response
from layer8.tunnel.client_session import ClientExchange, dressed
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.keys import KeySet
from layer8.tunnel.limits import CHUNK_PLAIN
from layer8.tunnel.outgoing import PADDING
from layer8.tunnel.serving import READ
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH, SOCKET_PATH, Settings
from layer8.tunnel.wire import CHUNKED, SINGLE
from layer8.tunnel.wsgi import L8Middleware
from tests.proxy.postgres import Postgres, no_postgres
from tests.tunnel.sealed import AUTHORITY, Failed, Page, Told, sealed, today

IDENTITY = NodeKey.make()
LIMIT_S = 10.0
MEBIBYTE = bytes(1 << 20)
SPOOFS = (
    *((b"x-forwarded-for", b"6.6.6.6"), (b"x_forwarded_for", b"6.6.6.6"), (b"forwarded", b"for=6.6.6.6")),
    *((b"l8-token", b"spoofed"), (b"l8_token", b"spoofed"), (b"l8-encapsulated", b"?0"), (b"via", b"1.1 spoofed")),
    *((b"x-real-ip", b"6.6.6.6"), (b"remote_addr", b"6.6.6.6"), (b"connection", b"x-mine"), (b"x-mine", b"spoofed")),
)


def gateway(**more: Any) -> Gateway:
    return Gateway.open(Settings(gateway="shop", authorities=[AUTHORITY], identity=IDENTITY, **more))


class Answer(io.BytesIO):
    """The sealed answer, as `http.client` would give it."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        super().__init__(body)
        self.status = status
        self.fields = {name.lower(): value for name, value in headers}
        self.headers = self

    def getheaders(self) -> list[tuple[str, str]]:
        return list(self.fields.items())

    def getheader(self, name: str, default: str = "") -> str:
        return self.fields.get(name.lower(), default)

    def get_content_type(self) -> str:
        return self.fields["content-type"]


class Input(io.BytesIO):
    """A request that is cut after what is here."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not data:
            raise ConnectionResetError("cut")
        return data


class Base(SynchronousTestCase):
    """A gateway, and requests for it."""

    def setUp(self) -> None:
        self.gateway = gateway()
        self.keys = KeySet.read(self.gateway.keys_document(), [IDENTITY.node_id])

    def seal(
        self, method: str = "GET", path: str = "/", content: bytes = b"", **more: Any
    ) -> tuple[ClientExchange, bytes]:
        more.setdefault("length", len(content))
        exchange, out = sealed(self.keys, method, path, (content,) if content else (), **more)
        return exchange, b"".join(out)

    def again(self, **more: Any) -> None:
        """Take another gateway."""
        self.gateway = gateway(**more)
        self.keys = KeySet.read(self.gateway.keys_document(), [IDENTITY.node_id])

    def in_two(self, method: bytes, content: bytes) -> tuple[bytes, bytes]:
        """Seal a request with all of its content before the last chunk, which is padding."""
        asked = Request(method, b"https", AUTHORITY.encode(), b"/")
        text = bhttp.write(dressed(asked, f"https://{AUTHORITY}", today()), content)
        sealer, _ = wire.seal_request(CHUNKED, self.keys.config, self.keys.config.aeads[0], Private.make())
        return sealer.seal(text), sealer.finish(bytes(100))


Environ = dict[str, Any]


class WsgiTests(Base):
    """PEP 3333, both sides."""

    def environ(self, data: bytes = b"", **more: Any) -> Environ:
        return {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": GATEWAY_PATH,
            "QUERY_STRING": "",
            "CONTENT_TYPE": "message/ohttp-chunked-req",
            "CONTENT_LENGTH": str(len(data)),
            "SERVER_NAME": "relay.example",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.0.2.1",
            "REMOTE_PORT": "1234",
            "HTTP_HOST": "gateway.internal",
            "HTTP_X_FORWARDED_FOR": "192.0.2.2",
            "HTTP_COOKIE": "relay=1",
            "gunicorn.socket": "192.0.2.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(data),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        } | more

    def run_app(self, app: Any, environ: Environ) -> Answer:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        answer = L8Middleware(app, self.gateway)(environ, lambda status, headers: started.append((status, headers)))
        body = b"".join(answer)
        self.assertEqual(len(started), 1)
        return Answer(int(started[0][0][:3]), started[0][1], body)

    def ask(self, app: Any, *words: Any, **more: Any) -> Told:
        exchange, data = self.seal(*words, **more)
        return Page.hear(exchange, self.run_app(app, self.environ(data)))

    def test_what_the_application_sees(self) -> None:
        seen: Environ = {}

        def app(environ: Environ, start_response: Any) -> list[bytes]:
            seen.update(environ)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [environ["wsgi.input"].read(100)]

        fields: Fields = (
            *((b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-two", b"1"), (b"x-two", b"2"), (b"content-type", b"a/b")),
            *SPOOFS,
        )
        told = self.ask(validator(app), "POST", "/n%C3%B6te/a%2fb?q=%20&r", b"content", fields=fields)
        self.assertEqual(told.body, b"content")
        self.assertEqual(seen["PATH_INFO"].encode("latin-1").decode(), "/nöte/a/b")
        self.assertEqual((seen["QUERY_STRING"], seen["REQUEST_METHOD"]), ("q=%20&r", "POST"))
        self.assertEqual((seen["CONTENT_LENGTH"], seen["CONTENT_TYPE"]), ("7", "a/b"))
        self.assertEqual((seen["HTTP_COOKIE"], seen["HTTP_X_TWO"]), ("a=1; b=2", "1, 2"))
        self.assertEqual((seen["REMOTE_ADDR"], seen["l8.encapsulated"], seen["l8.token"]), ("", True, None))
        self.assertEqual((seen["SERVER_NAME"], seen["SERVER_PORT"]), (AUTHORITY, "443"))
        self.assertEqual((seen["HTTP_HOST"], seen["wsgi.url_scheme"]), (AUTHORITY, "https"))
        self.assertEqual((seen["HTTP_ORIGIN"], seen["HTTP_USER_AGENT"]), (f"https://{AUTHORITY}", "L8"))
        text = repr({name: value for name, value in seen.items() if name not in ("wsgi.input", "wsgi.errors")})
        for word in ("192.0.2.", "6.6.6.6", "spoofed", "relay", "gunicorn", "gateway.internal", "1234"):
            self.assertNotIn(word, text)

    def test_answers(self) -> None:
        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            status, *headers = {
                "/cookies": ("200 OK", ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Connection", "close")),
                "/none": ("204 No Content",),
                "/same": ("304 Not Modified", ("ETag", '"x"')),
                "/head": ("200 OK", ("Content-Length", "5")),
            }[environ["PATH_INFO"]]
            start_response(status, headers)
            yield b"" if environ["PATH_INFO"] in ("/none", "/same") else b"hello"

        told = self.ask(app, "GET", "/cookies")
        self.assertEqual(
            (told.status, told.body, told.fields), (200, b"hello", ((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")))
        )
        self.assertNotIn("set-cookie", dict(told.outer))
        self.assertEqual(set(dict(told.outer)), {"content-type", "cache-control"})
        self.assertEqual(self.ask(app, "GET", "/none").status, 204)
        self.assertEqual(self.ask(app, "GET", "/same").field(b"etag"), [b'"x"'])
        told = self.ask(app, "HEAD", "/head")
        self.assertEqual((told.body, told.field(b"content-length")), (b"", [b"5"]))

    def test_whole_answer_has_an_outer_length(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"x" * 100_000]

        told = self.ask(app)
        self.assertEqual(len(told.body), 100_000)
        self.assertIn("content-length", dict(told.outer))

    def test_padding_of_a_long_answer(self) -> None:
        """The server takes it in small pieces, as fast as it can send them."""

        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield from [MEBIBYTE] * 33

        exchange, data = self.seal()
        pieces = list(L8Middleware(app, self.gateway)(self.environ(data), lambda status, headers: None))
        self.assertGreater(len(pieces), 40)
        self.assertLess(max(map(len, pieces[33:])), PADDING + 2 * CHUNK_PLAIN)
        told = Page.hear(exchange, Answer(200, [("content-type", "message/ohttp-chunked-res")], b"".join(pieces)))
        self.assertEqual(len(told.body), 33 << 20)

    def test_write(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            write = start_response("200 OK", [("Content-Type", "text/plain")])
            write(b"first ")
            write(b"second ")
            return [b"third"]

        self.assertEqual(self.ask(validator(app)).body, b"first second third")

    def test_change_of_mind(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            try:
                raise KeyError("late")
            except KeyError as error:
                start_response("503 Sorry", [], (KeyError, error, None))
            return [b"sorry"]

        self.assertEqual(self.ask(app).status, 503)

    def test_applications_that_fail(self) -> None:
        closed: list[int] = []

        class Pieces:
            def __iter__(self) -> Iterator[bytes]:
                raise ValueError("no pieces")

            def close(self) -> None:
                closed.append(1)

        def raising(environ: Environ, start_response: Any) -> list[bytes]:
            raise ValueError("no answer")

        def later(environ: Environ, start_response: Any) -> Pieces:
            start_response("200 OK", [])
            return Pieces()

        def unstarted(environ: Environ, start_response: Any) -> list[bytes]:
            return [b"hello"]

        def strange(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("X", "a\r\nb")])
            return [b"hello"]

        def nothing(environ: Environ, start_response: Any) -> list[bytes]:
            return []

        for app in (raising, later, unstarted, strange, nothing):
            with self.assertLogs("layer8.gateway", "ERROR"):
                self.assertEqual(self.ask(app).status, 500, app)
        self.assertEqual(closed, [1])
        self.assertEqual(self.gateway.counts()["failed"], 5)

    def test_answer_that_breaks_off(self) -> None:
        def short(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Length", "100000")])
            return [b"x" * 50_000]

        def broken(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"some"
            raise ValueError("no more")

        def longer(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Length", "3")])
            return [b"hello"]

        for app in (short, broken, longer):
            exchange, data = self.seal()
            heard: list[bytes] = []
            answer = L8Middleware(app, self.gateway)(self.environ(data), lambda status, headers: None)
            with self.assertLogs("layer8.gateway", "ERROR"), self.assertRaises(ConnectionResetError) as reset:
                heard.extend(answer)
            self.assertEqual(reset.exception.errno, errno.ECONNRESET, "or servers log a traceback for whoever leaves")
            if heard:
                with self.assertRaises(Failed) as caught:
                    headers = [("content-type", exchange.media.response)]
                    Page.hear(exchange, Answer(200, headers, b"".join(heard)))
                self.assertEqual(caught.exception.failure.code, "cut")

    def test_request_that_is_cut(self) -> None:
        """At no cut is a request taken for a whole one, and the application's read says so."""
        said: list[object] = []

        def app(environ: Environ, start_response: Any) -> list[bytes]:
            try:
                said.append(environ["wsgi.input"].read())
            except OSError as error:
                said.append(type(error))
                raise
            start_response("200 OK", [])
            return [b"done"]

        content = bytes(100_000)
        size = len(self.seal("POST", "/", content)[1])
        for cut in (0, 38, 39, 500, 20_000, 60_000, size - 1):
            for source in (io.BytesIO, Input):
                said.clear()
                _, data = self.seal("POST", "/", content)
                environ = self.environ(data, **{"wsgi.input": source(data[:cut])})
                with self.assertRaises(ConnectionResetError):
                    b"".join(L8Middleware(app, self.gateway)(environ, lambda status, headers: None))
                self.assertEqual(said, [] if cut < 20_000 else [ConnectionResetError])
        for cut in (500, 20_000, 60_000, size - 1):  # ended properly, without its last chunk
            said.clear()
            exchange, sealed_now = self.seal("POST", "/", content)
            answer = self.run_app(app, self.environ(sealed_now[:cut]))
            if cut == 500:  # nothing has opened
                self.assertEqual(answer.status, 400)
                continue
            self.assertEqual(Page.hear(exchange, answer).status, 400, cut)
            self.assertEqual(said, [ConnectionResetError] if cut > READ else [], cut)

    def test_content_that_is_there_before_its_last_chunk(self) -> None:
        said: list[object] = []

        def app(environ: Environ, start_response: Any) -> list[bytes]:
            said.append(environ["REQUEST_METHOD"])
            try:
                said.append(len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH", 0)))))
            except OSError as error:
                said.append(type(error))
                raise
            start_response("200 OK", [])
            return [b"done"]

        for method, content in ((b"POST", bytes(100_000)), (b"DELETE", b""), (b"POST", b"short")):
            begun, rest = self.in_two(method, content)
            source = Input(begun)
            environ = self.environ(begun + rest, **{"wsgi.input": source})
            with self.assertRaises(ConnectionResetError):
                b"".join(L8Middleware(app, self.gateway)(environ, lambda status, headers: None))
            self.assertNotIn(len(content), said)
            said.clear()
            begun, rest = self.in_two(method, content)
            self.run_app(app, self.environ(begun + rest))
            self.assertEqual(said, [method.decode(), len(content)])
            said.clear()

    def test_server_that_closes(self) -> None:
        closed: list[int] = []

        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [])
            try:
                while True:
                    yield b"more"
            finally:
                closed.append(1)

        _, data = self.seal()
        answer: Any = L8Middleware(app, self.gateway)(self.environ(data), lambda status, headers: None)
        next(answer)
        answer.close()
        self.assertEqual(closed, [1])

    def test_request_that_nobody_reads(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("413 Too Large", [])
            return [b"no"]

        exchange, data = self.seal("POST", "/", bytes(500_000))
        environ = self.environ(data)
        self.assertEqual(Page.hear(exchange, self.run_app(app, environ)).status, 413)
        self.assertEqual(environ["wsgi.input"].read(), b"", "the server may use the connection again")

    def test_targets_that_are_refused(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            raise AssertionError("called")

        for path in (
            "@host/",
            "//host/",
            "/\\host",
            "http://host/",
            "/%00",
            "/../x",
            "/%2e%2e/x",
            "",
        ):
            self.assertEqual(self.ask(app, "GET", path).status, 400, path)

    def test_requests_in_one_piece(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [environ["wsgi.input"].read()]

        self.again(chunked=False)
        for size, status in ((0, 200), (500_000, 200), (1 << 20, 413)):
            content = bytes(size)
            try:
                exchange, data = self.seal("POST", "/", content)
            except LocalProtocolError:  # more than the page itself would seal
                asked = bhttp.write(Request(b"POST", b"https", AUTHORITY.encode(), b"/"), content)
                aead = self.keys.config.aeads[0]
                ephemeral = Private.make()
                context = hpke_context.sender(
                    aead, self.keys.config.public, wire.info(SINGLE, self.keys.config.key_id, aead), ephemeral
                )
                head = wire.Head(self.keys.config.key_id, aead, context.enc)
                data = head.encode() + context.messages.seal(asked)
            answer = self.run_app(app, self.environ(data, CONTENT_TYPE="message/ohttp-req"))
            self.assertEqual(answer.status, status)
            if status == 200:
                self.assertEqual(answer.fields["content-type"], "message/ohttp-res")
                self.assertEqual(Page.hear(exchange, answer).body, content)

    def test_requests_without_dates(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [environ["REQUEST_METHOD"].encode()]

        def ask(method: bytes) -> list[int]:
            text = bhttp.write(Request(method, b"https", AUTHORITY.encode(), b"/")).ljust(512, b"\0")
            aead = self.keys.config.aeads[0]
            sealer, context = wire.seal_request(CHUNKED, self.keys.config, aead, Private.make())
            data, found = sealer.finish(text), []
            for _ in range(2):
                opener = wire.open_answer(CHUNKED, context, aead)
                body = self.run_app(app, self.environ(data)).read()
                head = bhttp.read(b"".join(opener.feed(body)) + opener.end(), request=False)[0]
                assert isinstance(head, Response)
                found.append(head.status)
            return found

        self.assertEqual(ask(b"GET"), [400, 400])
        for more in ({}, {"state": self.mktemp()}):
            self.again(require_date=False, **more)
            self.assertEqual(ask(b"GET"), [200, 425])
            self.assertEqual(ask(b"POST"), [400, 400])

    def test_own_paths(self) -> None:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b"direct %d" % environ["l8.encapsulated"]]

        for path, method, status in (
            (GATEWAY_PATH, "GET", 200),
            (KEYS_PATH, "GET", 200),
            (KEYS_PATH, "POST", 405),
            (GATEWAY_PATH, "DELETE", 405),
            (SOCKET_PATH, "GET", 501),
            ("/", "GET", 200),
        ):
            environ = self.environ(PATH_INFO=path, REQUEST_METHOD=method, HTTP_L8_ENCAPSULATED="?1")
            answer = self.run_app(app, environ)
            self.assertEqual(answer.status, status, path)
        self.assertEqual(answer.read(), b"direct 0")
        self.assertEqual(self.run_app(app, self.environ(CONTENT_TYPE="text/plain")).status, 415)

    def test_gateway_without_its_storage(self) -> None:
        """What cannot be remembered is not let in."""
        self.gateway = gateway(state=self.mktemp())
        self.gateway.close()
        self.gateway._marks._tables._file._path = self.gateway.settings.state  # type: ignore[attr-defined]
        self.gateway._marks._tables._file._connection = None  # type: ignore[attr-defined]
        self.keys = KeySet.read(self.gateway.keys_document(), [IDENTITY.node_id])
        with self.assertLogs("layer8.gateway", "ERROR"):
            self.assertEqual(self.ask(None).status, 503)


Event = dict[str, Any]


class Server:
    """An ASGI server of one connection: what it is given to say, and what it has heard."""

    def __init__(self, events: Iterable[Event], *, hang: bool = False) -> None:
        self._events = iter(events)
        self._hang = hang
        self.heard: list[Event] = []
        self.taken = 0

    async def receive(self) -> Event:
        await asyncio.sleep(0)
        for event in self._events:
            self.taken += 1
            if event["type"] == "wait":
                await asyncio.sleep(event["seconds"])
                continue
            return event
        await asyncio.sleep(LIMIT_S)
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.heard.append(event)

    @property
    def whole(self) -> bool:
        return bool(self.heard) and not self.heard[-1].get("more_body", False)

    def answer(self) -> Answer:
        start = self.heard[0]
        headers = [(name.decode(), value.decode()) for name, value in start["headers"]]
        return Answer(start["status"], headers, b"".join(event.get("body", b"") for event in self.heard[1:]))


def request(data: bytes, size: int = 1 << 30) -> list[Event]:
    events: list[Event] = [
        {"type": "http.request", "body": data[at : at + size], "more_body": True} for at in range(0, len(data), size)
    ]
    events.append({"type": "http.request", "body": b"", "more_body": False})
    return events


class AsgiTests(Base):
    """ASGI 3, both sides."""

    def serve(self, app: Any, events: Iterable[Event], **scope: Any) -> Server:
        server = Server(events)
        told: Event = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": GATEWAY_PATH,
            "raw_path": GATEWAY_PATH.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"message/ohttp-chunked-req"), (b"x-forwarded-for", b"192.0.2.2")],
            "client": ("192.0.2.1", 1234),
            "server": ("192.0.2.3", 8000),
        } | scope

        async def main() -> None:
            async with asyncio.timeout(LIMIT_S):
                await AsgiMiddleware(app, self.gateway)(told, server.receive, server.send)

        asyncio.run(main())
        return server

    def ask(self, app: Any, *words: Any, **more: Any) -> Told:
        exchange, data = self.seal(*words, **more)
        return Page.hear(exchange, self.serve(app, request(data, 1000)).answer())

    def test_what_the_application_sees(self) -> None:
        seen: Event = {}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.update(scope)
            event, body = {"more_body": True}, b""
            while event["more_body"]:
                event = await receive()
                body += event["body"]
            await send({"type": "http.response.start", "status": 200, "headers": [(b"Set-Cookie", b"a=1")] * 2})
            await send({"type": "http.response.body", "body": body})

        fields: Fields = ((b"cookie", b"a=1"), (b"x-two", b"1"), (b"x-two", b"2"), *SPOOFS)
        told = self.ask(app, "POST", "/n%C3%B6te/a%2fb?q=%20&r", b"content", fields=fields)
        self.assertEqual((told.body, told.fields), (b"content", ((b"set-cookie", b"a=1"),) * 2))
        self.assertEqual((seen["path"], seen["raw_path"]), ("/nöte/a/b", b"/n%C3%B6te/a%2fb"))
        self.assertEqual((seen["query_string"], seen["method"], seen["scheme"]), (b"q=%20&r", "POST", "https"))
        self.assertEqual((seen["client"], seen["server"]), (None, (AUTHORITY, 443)))
        self.assertEqual((seen["l8.encapsulated"], seen["l8.token"]), (True, None))
        names = [name for name, _ in seen["headers"]]
        self.assertEqual(
            names,
            [b"host", b"date", b"origin", b"user-agent", b"accept", b"cookie", b"x-two", b"x-two", b"content-length"],
        )
        for word in ("192.0.2.", "6.6.6.6", "spoofed"):
            self.assertNotIn(word, repr(seen))
        self.assertEqual(set(dict(told.outer)), {"content-type", "cache-control", "content-length"})

    def test_padding_of_a_long_answer(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for left in reversed(range(33)):
                await send({"type": "http.response.body", "body": MEBIBYTE, "more_body": left > 0})

        exchange, data = self.seal()
        server = self.serve(app, request(data))
        pieces = [event["body"] for event in server.heard[1:]]
        self.assertGreater(len(pieces), 40)
        self.assertLess(max(map(len, pieces[33:])), PADDING + 2 * CHUNK_PLAIN)
        self.assertTrue(server.whole)
        self.assertEqual(len(Page.hear(exchange, server.answer()).body), 33 << 20)

    def test_upload_waits_for_the_application(self) -> None:
        taken: list[int] = []
        server: list[Server] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await asyncio.sleep(0.05)
            taken.append(server[0].taken)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"enough"})

        exchange, data = self.seal("POST", "/", bytes(1_000_000))
        made = Server(request(data, 16_384))
        server.append(made)

        async def main() -> None:
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "method": "POST",
                "path": GATEWAY_PATH,
                "headers": [(b"content-type", b"message/ohttp-chunked-req")],
            }
            await AsgiMiddleware(app, self.gateway)(scope, made.receive, made.send)

        asyncio.run(main())
        self.assertEqual(Page.hear(exchange, made.answer()).body, b"enough")
        self.assertLess(taken[0], 5)
        self.assertGreater(made.taken, 60, "what nobody has read is passed over, so that the connection can go on")

    def test_backend_that_never_answers(self) -> None:
        self.patch(gateway_session, "IDLE_TIME", 0.1)
        cancelled: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await asyncio.sleep(LIMIT_S)
            except asyncio.CancelledError:
                cancelled.append(1)
                raise

        self.assertEqual(self.ask(app).status, 504)
        self.assertEqual(cancelled, [1])

    def test_page_that_falls_silent(self) -> None:
        self.patch(gateway_session, "IDLE_TIME", 0.1)
        self.patch(gateway_session, "HEAD_TIME", 0.1)
        said: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while (event := await receive())["type"] == "http.request" and event["more_body"]:
                pass
            said.append(event["type"])

        exchange, data = self.seal("POST", "/", bytes(100_000))
        for cut, status in ((0, 408), (300, 408)):
            server = self.serve(app, [{"type": "http.request", "body": data[:cut], "more_body": True}])
            self.assertEqual(server.answer().status, status)
        self.assertEqual(said, [])
        server = self.serve(app, [{"type": "http.request", "body": data[:50_000], "more_body": True}])
        self.assertEqual(Page.hear(exchange, server.answer()).status, 408)
        self.assertEqual(said, ["http.disconnect"])

    def test_content_that_is_there_before_its_last_chunk(self) -> None:
        self.patch(gateway_session, "IDLE_TIME", 0.1)
        said: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while (event := await receive())["type"] == "http.request" and event["more_body"]:
                pass
            said.append(event["type"])

        for method, content in ((b"POST", bytes(100_000)), (b"DELETE", b""), (b"POST", b"short")):
            begun, _ = self.in_two(method, content)
            self.serve(app, [{"type": "http.request", "body": begun, "more_body": True}])
        self.assertEqual(said, ["http.disconnect"] * 2)

    def test_page_that_closes(self) -> None:
        said: list[object] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
            said.append((await receive())["type"])
            try:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
            except OSError:
                said.append(OSError)

        _, data = self.seal()
        server = self.serve(app, [*request(data), {"type": "wait", "seconds": 0.05}, {"type": "http.disconnect"}])
        self.assertEqual(said, ["http.disconnect", OSError])
        self.assertFalse(server.whole)

    def test_applications_that_fail(self) -> None:
        async def raising(scope: Any, receive: Any, send: Any) -> None:
            raise ValueError("no answer")

        async def nothing(scope: Any, receive: Any, send: Any) -> None:
            pass

        async def unfinished(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def strange(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb")]})
            await send({"type": "http.response.body", "body": b""})

        for app in (raising, nothing, unfinished, strange):
            with self.assertLogs("layer8.gateway", "ERROR"):
                self.assertEqual(self.ask(app).status, 500, app)

    def test_answer_that_breaks_off(self) -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
            raise ValueError("no more")

        async def short(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100000")]})
            await send({"type": "http.response.body", "body": b"x" * 50_000})

        async def unended(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})

        for app in (broken, short, unended):
            _, data = self.seal()
            log = contextlib.nullcontext() if app is not broken else self.assertLogs("layer8.gateway", "ERROR")
            with log:
                self.assertFalse(self.serve(app, request(data)).whole, app)

    def test_own_paths(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.assertNotIn((b"l8-encapsulated", b"?1"), scope["headers"])
            self.assertIs(scope["l8.encapsulated"], False)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"direct"})

        for path, method, status in (
            (GATEWAY_PATH, "GET", 200),
            (KEYS_PATH, "GET", 200),
            (KEYS_PATH, "PUT", 405),
            (GATEWAY_PATH, "POST", 415),
            ("/", "GET", 200),
        ):
            headers = [(b"L8-Encapsulated".lower(), b"?1"), (b"content-type", b"text/plain")]
            server = self.serve(app, [], path=path, method=method, headers=headers)
            self.assertEqual(server.heard[0]["status"], status, path)

    def test_lifespan_is_the_applications(self) -> None:
        seen: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])

        self.serve(app, [], type="lifespan")
        self.assertEqual(seen, ["lifespan"])

    def test_database_that_hangs(self) -> None:
        """Whoever cannot be remembered is told so, and the others wait no longer for it."""
        self.patch(asgi, "STORAGE_TIME", 0.5)
        server = Postgres.start(self)
        self.gateway = gateway(database=server.database())
        self.addCleanup(self.gateway.close)
        self.keys = KeySet.read(self.gateway.keys_document(), [IDENTITY.node_id])

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

        self.assertEqual(self.ask(app).status, 200)
        exchange, data = self.seal()
        made = Server(request(data))

        async def main() -> None:
            scope: Event = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "method": "POST",
                "path": GATEWAY_PATH,
                "headers": [(b"content-type", b"message/ohttp-chunked-req")],
            }
            with server.frozen(), self.assertLogs("layer8.gateway", "ERROR"):
                await AsgiMiddleware(app, self.gateway)(scope, made.receive, made.send)

        asyncio.run(main())
        self.assertEqual(Page.hear(exchange, made.answer()).status, 503)
        self.assertEqual(self.ask(app).status, 200)

    test_database_that_hangs.skip = no_postgres()  # type: ignore[attr-defined]
