"""Peers of the tunnel from PyPI: `noiseprotocol` as the other end of a socket, and `ohttpy`, which mislabels."""

from __future__ import annotations

import os
import sys
from typing import Any

from noise.connection import Keypair, NoiseConnection
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from layer8.net.http import Incoming, Server
from layer8.tunnel import bhttp, socket_session
from layer8.tunnel.bhttp import Request, Response
from layer8.tunnel.settings import SOCKET_PATH
from layer8.tunnel.wire import CHUNKED, SINGLE
from tests.tunnel.test_gateways import Rig

ASK = """
import sys
from ohttpy.ohttpy import Client
answer = Client().send_request(
    method="POST", url=sys.argv[1], headers={"x-one": "1"}, body=b"hello", key_config=bytes.fromhex(sys.argv[2])
)
print(answer.status_code())
"""


class Kept:
    """Listens to what a client sends, and refuses it."""

    def __init__(self) -> None:
        self.found: list[tuple[str | None, bytes]] = []

    def __call__(self, asked: Incoming) -> None:
        Deferred.fromCoroutine(self.keep(asked))

    async def keep(self, asked: Incoming) -> None:
        self.found.append((asked.only("content-type"), await asked.read(100_000)))
        asked.answer(422)


class OhttpyTests(TestCase):
    """It calls an unchunked message chunked."""

    async def test_its_body_opens_under_its_true_name_only(self) -> None:
        from twisted.internet import reactor

        loop: Any = reactor
        kept = Kept()
        server = Server(loop, kept)
        port = loop.listenTCP(0, server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(server.abort)
        where = f"http://127.0.0.1:{port.getHost().port}"
        rig = Rig(reactor, "sidecar")
        self.addCleanup(lambda: Deferred.fromCoroutine(rig.close()))
        await rig.hand.keys()
        document = rig.hand.config.document().hex()
        out, err, _ = await getProcessOutputAndValue(sys.executable, ["-c", ASK, f"{where}/echo", document], os.environ)
        self.assertTrue(kept.found, (out, err))
        [(kind, body)] = kept.found
        self.assertEqual(kind, CHUNKED.request)
        answer = await rig.hand.post(body)
        self.assertIn(answer.status, (400, 422))
        self.assertEqual(self.flushLoggedErrors(), [])
        answer = await rig.hand.post(body, SINGLE.request)  # for somebody else, and without a date: said under seal
        self.assertEqual((answer.status, answer.only("content-type")), (200, SINGLE.response))
        self.assertEqual(rig.backend.calls, [])


class Page:
    """A page's end of a socket, of `noiseprotocol` and `websockets` and the pages of docs/tunnel-wire.md."""

    def __init__(
        self,
        port: int,
        noise: bytes,
        epoch: int,
        fields: Any = (),
        *,
        authority: str = "shop.test",
        path: str = "/ws",
    ) -> None:
        self.socket: ClientConnection = connect(
            f"ws://127.0.0.1:{port}{SOCKET_PATH}", subprotocols=[Subprotocol("l8.noise.v1")], compression=None
        )
        self.noise = NoiseConnection.from_name(b"Noise_NK_25519_AESGCM_SHA256")
        self.noise.set_as_initiator()
        self.noise.set_prologue(b"l8.noise.v1\0shop\0" + epoch.to_bytes(4, "big"))
        self.noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, noise)
        self.noise.start_handshake()
        asked = bhttp.write(Request(b"GET", b"https", authority.encode(), path.encode(), fields))
        self.socket.send(bytes(self.noise.write_message(asked.ljust(512, b"\0"))))
        second = self.noise.read_message(self.hear())
        assert len(second) == 256
        head = bhttp.read(bytes(second), request=False)[0]
        assert isinstance(head, Response)
        self.status = head.status
        self.said = self.heard = 0

    def hear(self) -> bytes:
        data = self.socket.recv(10)
        assert isinstance(data, bytes)
        return data

    def say(self, kind: int, data: bytes = b"", rekey: int = 0) -> None:
        text = bytes((kind,)) + len(data).to_bytes(2, "big") + data
        size = next(size for size in (256, 512, 1024, 2048, 4096, 16_384, 65_519) if size >= len(text))
        self.socket.send(bytes(self.noise.encrypt(text.ljust(size, b"\0"))))
        self.said += 1
        if rekey and self.said % rekey == 0:
            self.noise.rekey_outbound_cipher()

    def next(self, rekey: int = 0) -> tuple[int, bytes]:
        text = bytes(self.noise.decrypt(self.hear()))
        self.heard += 1
        if rekey and self.heard % rekey == 0:
            self.noise.rekey_inbound_cipher()
        return text[0], text[3 : 3 + int.from_bytes(text[1:3], "big")]


class NoiseTests(TestCase):
    """Our gateway talks to a page that is not ours."""

    def setUp(self) -> None:
        """Start a gateway and its backend."""
        from twisted.internet import reactor

        self.rig = Rig(reactor, "sidecar")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.rig.close()))

    async def test_a_conversation(self) -> None:
        keys = await self.rig.hand.keys()

        def talk() -> None:
            page = Page(self.rig.hand.port, keys.noise, keys.epoch, ((b"sec-websocket-protocol", b"chat"),))
            self.assertEqual(page.status, 200)
            page.say(0x8B)
            self.assertEqual(page.next(), (0x8C, b"chat"))
            page.say(0x81, b"hello")
            self.assertEqual(page.next(), (0x81, b"hello"))
            page.say(0x02, b"a" * 65_000)
            page.say(0x80, b"b" * 65_000)
            parts = [page.next() for _ in range(2)]
            self.assertEqual([kind for kind, _ in parts], [0x02, 0x80])
            self.assertEqual(b"".join(data for _, data in parts), b"a" * 65_000 + b"b" * 65_000)
            page.say(0x89, b"?")
            self.assertEqual(page.next(), (0x8A, b"?"))
            page.say(0x88, (1000).to_bytes(2, "big") + b"bye")
            self.assertEqual(page.next()[0], 0x88)
            with self.assertRaises(ConnectionClosed):
                page.hear()

        await deferToThread(talk)

    async def test_across_new_keys(self) -> None:
        self.patch(socket_session, "SOCKET_REKEY", 8)
        keys = await self.rig.hand.keys()

        def talk() -> None:
            page = Page(self.rig.hand.port, keys.noise, keys.epoch)
            page.say(0x8B, rekey=8)
            self.assertEqual(page.next(8), (0x8C, b""))
            for number in range(100):
                page.say(0x81, b"%d" % number, rekey=8)
                self.assertEqual(page.next(8), (0x81, b"%d" % number))
            page.socket.close()

        await deferToThread(talk)

    async def test_text_is_no_message(self) -> None:
        keys = await self.rig.hand.keys()

        def talk() -> None:
            page = Page(self.rig.hand.port, keys.noise, keys.epoch)
            page.socket.send("text")
            with self.assertRaises(ConnectionClosed):
                page.hear()
            self.assertEqual(page.socket.close_code, 1003)

        await deferToThread(talk)
        self.assertEqual(self.rig.gateway.counts()["sockets"], 0)

    async def test_a_repeated_first_message_opens_nothing(self) -> None:
        keys = await self.rig.hand.keys()

        def talk() -> None:
            page = Page(self.rig.hand.port, keys.noise, keys.epoch)
            self.assertEqual(page.status, 200)
            page.socket.close()

        await deferToThread(talk)
        self.assertEqual((self.rig.backend.calls, self.rig.backend.sockets), ([], []))
