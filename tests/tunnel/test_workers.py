"""Four workers that share one replay set: whatever comes twice is answered once, whichever worker it comes to."""

from __future__ import annotations

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.hpke_context import Private
from layer8.crypto.keyfile import write_private
from layer8.crypto.keys import NodeKey
from layer8.tunnel import bhttp, wire
from layer8.tunnel.bhttp import Request, Response
from layer8.tunnel.client_session import dressed
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.keys import HOUR, KeySet, own_hour
from layer8.tunnel.settings import GATEWAY_PATH, Settings
from layer8.tunnel.wire import CHUNKED
from tests.proxy.postgres import no_postgres, shared
from tests.tunnel.sealed import AUTHORITY, Page, today
from tests.tunnel.workers import Backend

TWICE = 10  # every tenth is recorded and sent again
THREADS = 8


def raw(port: int, data: bytes) -> bytes:
    """Post a sealed request over a connection of its own; give the sealed answer."""
    head = (
        f"POST {GATEWAY_PATH} HTTP/1.1\r\nHost: gateway\r\nContent-Type: message/ohttp-chunked-req\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), 30) as link:
        link.sendall(head.encode() + data)
        heard = b""
        while more := link.recv(65_536):
            heard += more
    top, _, body = heard.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 200 "), top
    return body


class Sealed:
    """A request whose answers, however many, can be opened."""

    def __init__(self, keys: KeySet, method: bytes = b"GET", content: bytes = b"") -> None:
        asked = Request(method, b"https", AUTHORITY.encode(), b"/")
        text = bhttp.write(dressed(asked, f"https://{AUTHORITY}", today()), content)
        aead = keys.config.aeads[0]
        sealer, self._context = wire.seal_request(CHUNKED, keys.config, aead, Private.make())
        self._aead = aead
        self.data = sealer.finish(text.ljust(512, b"\0"))

    def open(self, body: bytes) -> tuple[int, bytes]:
        """Give status and content of an answer."""
        opener = wire.open_answer(CHUNKED, self._context, self._aead)
        text = b"".join(opener.feed(body)) + opener.end()
        events = bhttp.read(text, request=False)
        head = events[0]
        assert isinstance(head, Response)
        return head.status, b"".join(event for event in events if isinstance(event, bytes))


class Suite:
    """Ten thousand requests, every tenth of them twice."""

    kind = "tiny"
    requests = 10_000

    def setUp(self: Any) -> None:
        self.backend = Backend.start(self, self.kind, workers=4, environ=self.environ())
        self.keys = self.backend.page().keys

    def environ(self) -> dict[str, str]:
        return {}

    def test_repeats_are_caught_across_workers(self: Any) -> None:
        def one(number: int) -> list[tuple[int, bytes]]:
            request = Sealed(self.keys)
            return [request.open(raw(self.backend.port, request.data)) for _ in range(1 if number % TWICE else 2)]

        with ThreadPoolExecutor(THREADS) as threads:
            told = list(threads.map(one, range(self.requests)))
        self.assertEqual(Counter(said[0][0] for said in told), {200: self.requests})
        self.assertEqual(Counter(status for said in told for status, _ in said[1:]), {425: self.requests // TWICE})
        self.assertEqual(len({body for (_, body), *_ in told}), 4, "four processes have answered")

    def test_many_at_once(self: Any) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in range(50):
                request = Sealed(self.keys, b"POST", b"pay")
                bodies = threads.map(lambda data: raw(self.backend.port, data), [request.data] * THREADS)
                statuses = sorted(request.open(body)[0] for body in bodies)
                self.assertEqual(statuses, [200] + [425] * (THREADS - 1))

    def test_restart(self: Any) -> None:
        before = Sealed(self.keys)
        self.assertEqual(before.open(raw(self.backend.port, before.data))[0], 200)
        self.backend.program.stop()
        self.backend.again()
        self.assertEqual(before.open(raw(self.backend.port, before.data))[0], 425)
        after = Sealed(self.keys)
        self.assertEqual(after.open(raw(self.backend.port, after.data))[0], 200)
        self.assertEqual(self.backend.page().keys, self.keys)


class SqliteTests(Suite, SynchronousTestCase):
    """With SQLite, WSGI."""

    def test_emergency(self) -> None:
        """An operator makes a key in a shell: no worker is started anew, and none refuses a request under it."""
        here = int(today() // HOUR)
        name = next(f"shop-{n}" for n in range(99) if (own_hour(f"shop-{n}") - here) % 24 not in (0, 1, 23))
        home = Path(self.mktemp()).resolve()
        identity = NodeKey.load_or_make(home / "id.pem")
        told = Settings(gateway=name, authorities=AUTHORITY, state=home / "state", identity=identity)
        Gateway.open(told, wall=lambda: today() - HOUR).close()  # its key is an hour old
        backend = Backend.start(self, self.kind, workers=4, environ={"L8_GATEWAY": name}, home=home)
        page = Page(backend.port, identity.node_id, name)
        self.assertEqual(page.keys.epoch, here - 1)
        shell = Gateway.open(told)
        self.addCleanup(shell.close)
        shell.rotate()
        keys = KeySet.read(shell.keys_document(), [identity.node_id])
        with ThreadPoolExecutor(THREADS) as threads:
            for known in (keys, page.keys):
                made = [Sealed(known) for _ in range(200)]
                bodies = list(threads.map(lambda one: raw(backend.port, one.data), made))
                statuses = Counter(one.open(body)[0] for one, body in zip(made, bodies, strict=True))
                self.assertEqual(statuses, {200: 200})


class AsgiSqliteTests(Suite, SynchronousTestCase):
    """With SQLite, ASGI."""

    kind = "tiny-asgi"
    requests = 2000


class PostgresTests(Suite, SynchronousTestCase):
    """With PostgreSQL, WSGI."""

    skip = no_postgres()

    def environ(self: Any) -> dict[str, str]:
        path = Path(self.mktemp())
        write_private(path, shared().database().encode())
        return {"L8_DATABASE_FILE": str(path.resolve())}


class AsgiPostgresTests(PostgresTests):
    """With PostgreSQL, ASGI."""

    kind = "tiny-asgi"
    requests = 2000
