"""From the Python client through a real relay to Django, Flask and FastAPI, while their workers are replaced."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.tunnel.client import L8Client
from layer8.tunnel.keys import pin_text
from layer8.tunnel.service import alone
from tests.interop.daemons import resident, until
from tests.tunnel.sealed import AUTHORITY
from tests.tunnel.taps import Tap
from tests.tunnel.workers import Backend

MIB = 1 << 20
STREAM = 64 * MIB
GROWTH = 16 * MIB
ASKED = 160
LANES = 4


class RelayTests(TestCase):
    """A relay in this reactor, backends in processes of their own."""

    timeout = 120

    async def through(self, kind: str, **more: Any) -> tuple[L8Client, Backend]:
        from twisted.internet import reactor

        backend: Backend = await deferToThread(lambda: Backend.start(self, kind, **more))
        pin = pin_text(backend.identity.node_id)
        self.back = Tap(reactor, backend.port)
        self.back.listen()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.back.close()))
        row = TunnelGatewayConfig(
            id="shop", endpoint=f"tcp:127.0.0.1:{self.back.port}", host=AUTHORITY, identity=(pin,)
        )
        relay = alone(reactor, TunnelConfig(listen=("tcp:0:interface=127.0.0.1",), gateway=(row,)))
        relay.startService()
        self.addCleanup(relay.stopService)
        self.front = Tap(reactor, int(relay.listening()[0].rpartition(":")[2]))
        self.front.listen()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.front.close()))
        client = L8Client(
            reactor,
            relay=f"http://127.0.0.1:{self.front.port}",
            gateway="shop",
            pin=pin,
            authority=AUTHORITY,
            session=True,
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client, backend

    async def everything(self, kind: str) -> None:
        client, _ = await self.through(kind)
        told = await (await client.get("/notes/7")).json()
        self.assertEqual((told["note"], told["tunnel"]), ("Buy milk", True))
        headers = {}
        data = {"user": "ada lovelace"}
        if kind == "django":
            page = await (await client.get("/login")).text()
            token = page.partition("value=")[2].partition(">")[0]
            data["csrfmiddlewaretoken"] = headers["x-csrftoken"] = token
        answer = await client.post("/login", data)
        self.assertEqual((await answer.json(), answer.url), ({"user": "ada lovelace"}, f"https://{AUTHORITY}/me"))
        for leg in (self.front, self.back):
            heard = (leg.up + leg.down).lower()
            self.assertGreater(len(heard), 4000)
            for word in (b"cookie", b"session", b"csrf", b"lovelace", b"/login", b"/notes", b"buy milk"):
                self.assertNotIn(word, heard)
        picture = os.urandom(MIB)
        edge = "edge-of-a-part"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="picture"; filename="p.png"\r\n\r\n'
        headers["content-type"] = f"multipart/form-data; boundary={edge}"
        body = head.encode() + picture + f"\r\n--{edge}--\r\n".encode()
        told = await (await client.post("/upload", body, headers=headers)).json()
        self.assertEqual(told["picture"]["sha256"], hashlib.sha256(picture).hexdigest())
        headers["content-type"] = "application/octet-stream"
        echoed = await (await client.post("/echo", 2 * picture, headers=headers)).content()
        self.assertEqual(echoed, 2 * picture)
        pieces = [piece async for piece in await client.get("/events?n=3&gap=0.1")]
        self.assertGreaterEqual(len(pieces), 3)
        self.assertEqual(b"".join(pieces).count(b"data: tick"), 3)

    async def test_django(self) -> None:
        await self.everything("django")

    async def test_flask(self) -> None:
        await self.everything("flask")

    async def test_fastapi(self) -> None:
        await self.everything("fastapi")

    async def test_workers_that_are_replaced(self) -> None:
        """`gunicorn` changes all four while pages ask: none of them fails, and all see the same keys."""
        from twisted.internet import reactor

        client, backend = await self.through("tiny", workers=4, worker="--threads 2 --graceful-timeout 3")
        before = {await (await client.get("/")).text() for _ in range(20)}
        seen: set[str] = set()

        async def ask() -> None:
            for _ in range(ASKED // LANES):
                answer = await client.get("/")
                self.assertEqual(answer.status, 200)
                seen.add(await answer.text())
                await deferLater(reactor, 0.03, lambda: None)

        asking = gatherResults([Deferred.fromCoroutine(ask()) for _ in range(LANES)], consumeErrors=True)
        os.kill(backend.program.pid, signal.SIGHUP)
        await asking
        self.assertTrue(seen - before, "new workers have answered")
        await deferToThread(until, "the old workers are gone", lambda: not any(map(_lives, map(int, before))))
        self.assertEqual((await client.get("/")).status, 200)

    async def stream(self, kind: str) -> None:
        client, _ = await self.through(kind)
        self.front.keep = self.back.keep = False
        pid = int(await (await client.get("/")).text())
        before = resident(pid, "VmHWM")
        size, digest = 0, hashlib.sha256()
        async for piece in await client.get(f"/bytes/{STREAM}"):
            size += len(piece)
            digest.update(piece)
        self.assertEqual(size, STREAM)
        told = await (await client.post("/sink", _pieces())).text()
        self.assertEqual(told, f"{STREAM} {_digest()}")
        self.assertLess(resident(pid, "VmHWM") - before, GROWTH)

    async def test_wsgi_streams_without_keeping(self) -> None:
        await self.stream("tiny")

    async def test_asgi_streams_without_keeping(self) -> None:
        await self.stream("tiny-asgi")


async def _pieces() -> Any:
    for number in range(STREAM // 65_536):
        yield number.to_bytes(4, "big") * 16_384


def _digest() -> str:
    digest = hashlib.sha256()
    for number in range(STREAM // 65_536):
        digest.update(number.to_bytes(4, "big") * 16_384)
    return digest.hexdigest()


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
