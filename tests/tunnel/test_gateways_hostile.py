"""What hostile and broken peers send to the gateways on Twisted, over real sockets: refused in one word, once."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from layer8.core.errors import Unavailable
from layer8.crypto.hpke_context import Aead
from layer8.net.http_client import Answer, fetch
from layer8.tunnel import bhttp, gateway_session, wire
from layer8.tunnel.bhttp import varint
from layer8.tunnel.limits import CHUNK_SEALED
from layer8.tunnel.settings import GATEWAY_PATH
from layer8.tunnel.wire import CHUNKED, SINGLE
from tests.tunnel.by_hand import Sealed, asked, begin, seal, seal_text, wall
from tests.tunnel.test_gateways import Rig, until
from tests.tunnel.test_target import DOTS


def eight(size: int) -> bytes:
    """Write a number in the longest form that there is."""
    return (3 << 62 | size).to_bytes(8, "big")


class Raw(Protocol):
    """A connection that says what a test says."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True


class HostileTests(TestCase):
    """The same for every gateway."""

    kind = ""
    rig: Rig

    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        from twisted.internet import reactor

        self.rig = Rig(reactor, self.kind)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.rig.close()))
        return Deferred.fromCoroutine(self.rig.hand.keys()).addCallback(lambda _: None)

    @property
    def config(self) -> wire.KeyConfig:
        return self.rig.hand.config

    async def refused(self, body: bytes, status: int, problem: str = wire.ABOUT_BLANK, media: Any = CHUNKED) -> None:
        """Post bytes that nobody can open, or not as they are."""
        answer = await self.rig.hand.post(body, media.request)
        self.assertEqual(answer.status, status)
        self.assertEqual(answer.only("content-type"), wire.PROBLEM_TYPE)
        self.assertEqual(wire.read_problem(answer.body), problem)
        self.assertEqual(self.rig.backend.calls, [])

    async def sealed_status(self, sealed: Sealed) -> int:
        return (await self.rig.hand.send(sealed)).status

    async def raw(self, *pieces: bytes) -> Any:
        end = TCP4ClientEndpoint(self.rig.reactor, "127.0.0.1", self.rig.hand.port)
        raw: Any = await end.connect(Factory.forProtocol(Raw))
        for piece in pieces:
            raw.transport.write(piece)
        return raw

    async def test_heads(self) -> None:
        good = seal(self.config, asked()).body
        for media in (CHUNKED, SINGLE):
            await self.refused(b"", 400, media=media)
            await self.refused(good[:38], 400, media=media)
            strange = begin(self.config, media, key_id=(self.config.key_id + 1) % 256)
            await self.refused(strange.head + b"\0" + bytes(17), 400, wire.OHTTP_KEY, media)
            for place in (1, 3, 5):  # KEM, KDF, AEAD
                other = good[:place] + b"\0\x63" + good[place + 2 :]
                await self.refused(other, 400, wire.OHTTP_KEY, media)
            chacha = begin(self.config, media, aead=Aead.CHACHA20_POLY1305)
            await self.refused(chacha.head + b"\0" + bytes(17), 400, wire.OHTTP_KEY, media)  # known, and not offered
            low = good[:7] + bytes(32) + good[39:]
            await self.refused(low, 422, media=media)

    async def test_types(self) -> None:
        for kind in ("message/bhttp", "text/plain", "message/ohttp-res", "application/ohttp-keys"):
            answer = await self.rig.hand.post(seal(self.config, asked()).body, kind)
            self.assertEqual(answer.status, 415)
        none = await fetch(self.rig.hand.pool, "POST", GATEWAY_PATH, "x", body=b"x", most=1000)
        self.assertEqual(none.status, 415)
        # a chunked type with what is no chunk, as a client on PyPI sends it
        for whole in (seal(self.config, asked(), b"", SINGLE).body, bytes(100)):
            answer = await self.rig.hand.post(whole)
            self.assertIn(answer.status, (400, 422))
        self.assertEqual(self.rig.backend.calls, [])

    async def test_chunks(self) -> None:
        text = bhttp.write(asked())
        for size in (1, 15, 16, CHUNK_SEALED + 1, 1 << 20):
            sealed = begin(self.config)
            await self.refused(sealed.head + varint(size) + bytes(min(size, 20_000)), 400)
        long = begin(self.config)
        long.body = long.head + long.chunk(text, length=eight) + long.chunk(b"", last=True)
        self.assertEqual(await self.sealed_status(long), 200)
        self.rig.backend.clear()
        empty = begin(self.config)
        await self.refused(empty.head + empty.chunk(b""), 400)
        behind = seal(self.config, asked())
        await self.refused(behind.body + b"x", 422)
        turned = begin(self.config)
        first, second = turned.chunk(text[:20]), turned.chunk(text[20:40])
        await self.refused(turned.head + second + first + turned.chunk(text[40:], last=True), 422)
        twice = begin(self.config)
        first = twice.chunk(text[:40])
        twice.body = twice.head + first + first + twice.chunk(text[40:], last=True)
        self.assertEqual(await self.sealed_status(twice), 400)  # it had begun to open, so this is said under seal
        self.assertEqual(self.rig.backend.calls, [])

    async def test_a_request_without_its_end(self) -> None:
        """Whatever is cut off, nothing is done that is not whole."""
        content = bytes(40_000)
        body = seal(self.config, asked(b"POST", b"/upload"), content).body
        for keep in (0, 38, 45, 1000, 17_000, len(body) - 1):
            with contextlib.suppress(Unavailable):
                answer = await self.rig.hand.post(body[:keep])
                self.assertIn(answer.status, (200, 400, 422, 502))
        self.assertEqual([call for call in self.rig.backend.calls if call.size == len(content)], [])
        self.assertEqual([call for call in self.rig.backend.calls if self.kind != "sidecar"], [])
        await until(self.rig.reactor, lambda: not self.rig.gate.under_way)

    async def test_a_request_that_waits_for_its_last_chunk(self) -> None:
        """All of its content is there, and its length is known; yet the backend gets no whole request."""
        content = bytes(40_000)
        text = bhttp.write(asked(b"POST", b"/upload"), content).ljust(65_536, b"\0")
        sealed = begin(self.config)
        pieces = [text[at : at + 16_384] for at in range(0, len(text), 16_384)]
        body = sealed.head + b"".join(sealed.chunk(piece) for piece in pieces[:-1])
        last = sealed.chunk(pieces[-1], last=True)
        head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
        raw = await self.raw(
            head % (GATEWAY_PATH.encode(), CHUNKED.request.encode(), len(body) + len(last)), body, last[:-1]
        )
        await deferLater(self.rig.reactor, 0.3, lambda: None)
        self.assertEqual(self.rig.backend.calls, [])
        raw.transport.write(last[-1:])
        await until(self.rig.reactor, lambda: raw.data and not self.rig.gate.under_way)
        self.assertEqual([call.size for call in self.rig.backend.calls], [40_000])
        raw.transport.abortConnection()
        await until(self.rig.reactor, lambda: raw.ended)

    async def test_binary_http(self) -> None:
        def line(name: bytes, value: bytes) -> bytes:
            return varint(len(name)) + name + varint(len(value)) + value

        def head(fields: bytes, *, framing: int = 0, path: bytes = b"/echo") -> bytes:
            texts = b"".join(varint(len(text)) + text for text in (b"GET", b"https", b"shop.test", path))
            return bytes((framing,)) + texts + varint(len(fields)) + fields

        from layer8.tunnel import dates

        date = line(b"date", dates.write(wall() // 60 * 60))
        whole = bhttp.write(asked())
        bad = [
            head(date, framing=4),
            head(date, framing=1),
            head(date + b"\0\x01x"),  # a field without a name
            head(date + line(b":method", b"GET")),
            head(date + line(b"x-a", b"1\r\nx-b: 2")),
            head(date + line(b"x-a", b"a\0b")),
            head(date + line(b"x a", b"1")),
            head(date + line(b"host", b"shop.test") + line(b"host", b"shop.test")),
            head(date + line(b"host", b"other.test")),
            head(date)[:-3],
            whole + b"\0\0\x01",  # padding of other bytes
            whole[:10],
            head(date + line(b"expect", b"100-continue")),
            head(date + line(b"upgrade", b"websocket")),
            head(date + line(b"content-length", b"5")),
            head(date + date),
            head(line(b"date", b"yesterday")),
            b"",
        ]
        for text in bad:
            self.assertEqual(await self.sealed_status(seal_text(self.config, text)), 400, text)
        many = head(b"".join(line(b"x-%d" % number, b"1") for number in range(200)))
        self.assertEqual(await self.sealed_status(seal_text(self.config, many)), 431)
        self.assertEqual(await self.sealed_status(seal_text(self.config, head(date, path=b"/" + b"a" * 9000))), 414)
        self.assertEqual(self.rig.backend.calls, [])

    async def test_targets(self) -> None:
        paths = (
            b"@169.254.169.254/",
            b"//host/",
            b"\\\\host",
            b"http://host/",
            b"/a\r\nb",
            b"/%00",
            b"/a#b",
            b"*",
            b"",
        )
        for path in paths:
            if path == b"/a\r\nb":
                continue  # binary HTTP does not carry it: `test_binary_http`
            self.assertEqual(await self.sealed_status(seal(self.config, asked(path=path))), 400, path)
        for authority in (b"other.test", b"user@shop.test", b"shop.test:8443", b"[fe80::1%eth0]", b"169.254.169.254"):
            self.assertEqual(await self.sealed_status(seal(self.config, asked(authority=authority))), 400, authority)
        self.assertEqual(await self.sealed_status(seal(self.config, asked(scheme=b"http"))), 400)
        self.assertEqual(await self.sealed_status(seal(self.config, asked(b"CONNECT"))), 400)
        self.assertEqual(self.rig.backend.calls, [])

    async def test_dots(self) -> None:
        for path, read in DOTS:
            self.rig.backend.clear()
            sealed = seal(self.config, asked(path=path.encode()))
            status = await self.sealed_status(sealed)
            if read is None:
                self.assertEqual((status, self.rig.backend.calls), (400, []), path)
            else:
                self.assertEqual([call.uri for call in self.rig.backend.calls], [read], path)

    async def test_fields_outside_of_the_seal_change_nothing(self) -> None:
        spoofs: dict[str, Any] = {
            "x_forwarded_host": "evil.test",
            "x_forwarded_proto": "http",
            "x_original_url": "/admin",
            "x_rewrite_url": "/admin",
            "x_http_method_override": "DELETE",
            "forwarded": "host=evil.test",
            "x_forwarded_for": "1.2.3.4",
            "l8_token": "me",
            "cookie": "a=1",
            "authorization": "Bearer x",
            "referer": "https://evil.test/",
            "origin": "https://evil.test",
        }
        for name, value in spoofs.items():
            sealed = seal(self.config, asked())
            answer = await self.rig.hand.post(sealed.body, **{name: value})
            said = json.loads(sealed.open(answer.body).body)
            self.assertEqual(said["uri"], "/echo")
            values = [text for field, text in said["fields"] if field == name.replace("_", "-")]
            self.assertNotIn(value, values)

    async def test_a_head_that_dribbles(self) -> None:
        self.patch(gateway_session, "HEAD_TIME", 0.4)
        body = seal(self.config, asked()).body
        raw = await self.raw(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
            % (GATEWAY_PATH.encode(), CHUNKED.request.encode(), len(body))
        )
        if self.kind != "kept":
            for at in range(60):
                if raw.data:
                    break
                raw.transport.write(body[at : at + 1])
                await deferLater(self.rig.reactor, 0.02, lambda: None)
            await until(self.rig.reactor, lambda: raw.data)
            self.assertTrue(raw.data.startswith(b"HTTP/1.1 408 "), raw.data[:100])
        raw.transport.abortConnection()
        await until(self.rig.reactor, lambda: not self.rig.gate.under_way and raw.ended)
        self.assertEqual(self.rig.backend.calls, [])

    async def test_a_backend_that_never_answers(self) -> None:
        self.patch(gateway_session, "IDLE_TIME", 0.3)
        self.assertEqual(await self.sealed_status(seal(self.config, asked(path=b"/never"))), 504)
        await until(self.rig.reactor, lambda: not self.rig.gate.under_way)

    async def test_a_reader_that_does_not_read(self) -> None:
        """A backend rests with it; when it has gone, both legs are."""
        sealed = seal(self.config, asked(path=b"/bytes/%d" % (64 << 20)))
        raw = await self.raw()
        raw.transport.pauseProducing()
        raw.transport.write(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (GATEWAY_PATH.encode(), CHUNKED.request.encode(), len(sealed.body), sealed.body)
        )
        await until(self.rig.reactor, lambda: self.rig.backend.calls)
        await deferLater(self.rig.reactor, 0.3, lambda: None)
        self.assertEqual(len(self.rig.gate.under_way), 1)
        raw.transport.abortConnection()
        await until(self.rig.reactor, lambda: not self.rig.gate.under_way)

    async def test_noise(self) -> None:
        """Whatever comes, it is answered with a status."""
        for size in (1, 39, 40, 56, 300, 20_000):
            for start in (b"", self.config.encode()[:1]):
                answer: Answer = await self.rig.hand.post((start + bytes(range(256)) * 100)[:size])
                self.assertIn(answer.status, (400, 422))


class SidecarHostileTests(HostileTests):
    kind = "sidecar"


class ResourceHostileTests(HostileTests):
    kind = "resource"


class KeptHostileTests(HostileTests):
    kind = "kept"


del HostileTests  # it is no test by itself
