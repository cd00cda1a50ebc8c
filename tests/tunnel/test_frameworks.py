"""Django, Flask and FastAPI with nothing changed but one line, under the servers that people run them with."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel.settings import GATEWAY_PATH
from tests.interop.daemons import RUN
from tests.tunnel.sealed import Failed, Page, sealed
from tests.tunnel.workers import Backend

_started: dict[tuple[str, str], Backend] = {}


def multipart(**files: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    edge = b"edge-" + os.urandom(8).hex().encode()
    body = b""
    for name, data in files.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}.bin"\r\n'
        body += b"--" + edge + b"\r\n" + head.encode() + b"Content-Type: application/x\r\n\r\n" + data + b"\r\n"
    return body + b"--" + edge + b"--\r\n", ((b"content-type", b"multipart/form-data; boundary=" + edge),)


class Suite:
    """What each framework is asked."""

    kind = ""
    workers = 1
    worker = ""
    csrf = False

    def setUp(self) -> None:
        what = self.kind, self.worker
        if what not in _started:
            _started[what] = Backend.start(RUN, self.kind, workers=self.workers, worker=self.worker)
        self.page = _started[what].page()

    def token(self: Any) -> tuple[tuple[bytes, bytes], ...]:
        """Give what Django asks for against forged requests, out of its own form."""
        if not self.csrf:
            return ()
        found = re.search(rb"value=(\w+)", self.page.ask("GET", "/login").body)
        assert found is not None
        return ((b"x-csrftoken", found[1]),)

    def test_note(self: Any) -> None:
        page: Page = self.page
        told = page.ask("GET", "/notes/7")
        self.assertEqual((told.status, told.json()["note"], told.json()["tunnel"]), (200, "Buy milk", True))
        self.assertFalse(told.json()["address"])
        self.assertEqual(page.ask("GET", "/notes/8").status, 404)
        self.assertEqual(page.ask("HEAD", "/notes/7").body, b"")

    def test_direct(self: Any) -> None:
        page: Page = self.page
        status, _, body = page.plain("GET", "/notes/7", L8_Encapsulated="?1", L8_Token="x")
        self.assertEqual(status, 200)
        self.assertIn(b"false", body)
        for path in ("/me", "/%6de", "//me", "/x/../me", "/ME/", "/me;x"):
            self.assertEqual(page.plain("GET", path)[0], 403, path)
        self.assertEqual(page.ask("GET", "/me").status, 200)

    def test_upload(self: Any) -> None:
        page: Page = self.page
        for size in (0, 10, 300_000, 5_000_000):
            data = os.urandom(size)
            body, fields = multipart(picture=data)
            told = page.ask("POST", "/upload", body, fields=fields + self.token())
            self.assertEqual(told.status, 200, told.body[:500])
            found = told.json()["picture"]
            expected = {"filename": "picture.bin", "size": size, "sha256": hashlib.sha256(data).hexdigest()}
            self.assertEqual(found, expected)

    def test_upload_of_unknown_length(self: Any) -> None:
        page: Page = self.page
        data = os.urandom(3_000_000)
        body, fields = multipart(picture=data)
        pieces: Iterator[bytes] = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
        told = page.ask("POST", "/upload", pieces, fields=fields + self.token())
        self.assertEqual(told.json()["picture"]["sha256"], hashlib.sha256(data).hexdigest())

    def test_echo(self: Any) -> None:
        page: Page = self.page
        data = os.urandom(200_000)
        told = page.ask("POST", "/echo", data, fields=((b"content-type", b"application/octet-stream"), *self.token()))
        self.assertEqual(told.body, data)
        self.assertEqual(told.field(b"content-type"), [b"application/octet-stream"])

    def test_events_come_as_they_happen(self: Any) -> None:
        page: Page = self.page
        told = page.ask("GET", "/events?n=5&gap=0.2")
        self.assertEqual(told.body.count(b"data: tick"), 5)
        self.assertGreater(told.times[-1] - told.times[0], 0.5)

    def test_login(self: Any) -> None:
        page: Page = self.page
        values = {"user": "ada"}
        if self.csrf:
            self.assertEqual(Page(page.port, page.pin).form("/login", user="eve").status, 403)
            values["csrfmiddlewaretoken"] = self.token()[0][1].decode()
        told = page.form("/login", **values)
        self.assertEqual((told.status, told.field(b"location")), (302, [b"/me"]))
        self.assertEqual(page.ask("GET", "/me").json(), {"user": "ada"})
        self.assertNotIn("set-cookie", {name.lower() for name, _ in told.outer})
        self.assertEqual(Page(page.port, page.pin).ask("GET", "/me").json(), {"user": None})

    def test_repeat(self: Any) -> None:
        page: Page = self.page
        exchange, out = sealed(page.keys, "GET", "/notes/7")
        data = b"".join(out)
        self.assertEqual(page.hear(exchange, page.post(data)).status, 200)
        exchange, _ = sealed(page.keys, "GET", "/notes/7")
        again = page.post(data)
        self.assertEqual(again.status, 200)
        self.assertEqual(len(again.read()), 33 + 512)  # sealed: a relay cannot tell it from an answer

    def test_refusals(self: Any) -> None:
        page: Page = self.page
        _, out = sealed(page.keys, "GET", "/notes/7")
        data = b"".join(out)
        for bad, kind, status in (
            (b"", "message/ohttp-chunked-req", 400),
            (data[:38], "message/ohttp-chunked-req", 400),
            (bytes((data[0] ^ 128,)) + data[1:], "message/ohttp-chunked-req", 400),
            (data[:-1] + bytes((data[-1] ^ 1,)), "message/ohttp-chunked-req", 422),
            (data, "text/plain", 415),
            (data, "message/ohttp-req", 422),
        ):
            answer = page.post(bad, kind)
            self.assertEqual(answer.status, status, (len(bad), kind))
            self.assertEqual(answer.headers.get_content_type(), "application/problem+json")
        self.assertEqual(page.plain("PUT", GATEWAY_PATH, b"")[0], 405)
        with self.assertRaises(Failed) as caught:
            page.ask("GET", "/notes/7", date=1e9)
        self.assertEqual(caught.exception.failure.code, "date")


class DjangoTests(Suite, SynchronousTestCase):
    """Django under gunicorn."""

    kind = "django"
    csrf = True


class FlaskTests(Suite, SynchronousTestCase):
    """Flask under gunicorn with threads."""

    kind = "flask"
    worker = "--threads 4"


class FastApiTests(Suite, SynchronousTestCase):
    """FastAPI under uvicorn."""

    kind = "fastapi"


class DjangoAsgiTests(Suite, SynchronousTestCase):
    """Django's ASGI under uvicorn."""

    kind = "django-asgi"
    csrf = True

    def test_upload_of_unknown_length(self) -> None:
        """Django reads no form without a length under ASGI, sealed or not; other content it takes."""
        data = os.urandom(300_000)
        kind = ((b"content-type", b"application/octet-stream"), *self.token())
        self.assertEqual(self.page.ask("POST", "/echo", iter((data[:100], data[100:])), fields=kind).body, data)

    def test_events_come_as_they_happen(self) -> None:
        """Django itself collects what a plain generator gives, under ASGI."""
        self.assertEqual(self.page.ask("GET", "/events?n=5&gap=0").body.count(b"data: tick"), 5)


class FastApiGunicornTests(Suite, SynchronousTestCase):
    """FastAPI under gunicorn's own ASGI worker."""

    kind = "fastapi"
    worker = "-k asgi"
