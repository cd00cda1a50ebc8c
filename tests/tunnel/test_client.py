"""L8Client: what Python programs ask through the tunnel, against relay, gateway and backend on loopback."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from layer8.core.errors import ConfigError
from layer8.crypto.keys import NodeKey
from layer8.net.http_client import POOL
from layer8.tunnel.client import CODES, UNPACKED, L8Answer, L8Client, L8Error, _Ask, _onward
from layer8.tunnel.jar import Jar
from layer8.tunnel.keys import pin_text
from layer8.tunnel.urls import Url
from tests.tunnel.backend import pattern
from tests.tunnel.stage import Stage


class ClientCase(TestCase):
    """A stage and its client."""

    timeout = 60

    async def client(self, stage: dict[str, Any] | None = None, **more: Any) -> L8Client:
        from twisted.internet import reactor

        self.stage = await Stage.start(reactor, **stage or {})
        self.addCleanup(self.stage.close)
        return self.another(**more)

    def another(self, gateway: str = "shop", **more: Any) -> L8Client:
        from twisted.internet import reactor

        client = L8Client(reactor, **self.stage.connect(gateway, **more))
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    async def fails(self, code: str, asked: Any) -> L8Error:
        error = await self.assertFailure(Deferred.fromCoroutine(asked), L8Error)
        assert isinstance(error, L8Error)
        self.assertEqual(error.code, code, str(error))
        return error

    @property
    def calls(self) -> list[Any]:
        return self.stage.gateways["shop"].backend.calls


class AskingTests(ClientCase):
    async def test_ask(self) -> None:
        client = await self.client()
        self.assertEqual((client.state, client.epoch), ("idle", None))
        answer = await client.get("/echo?a=1")
        told = await answer.json()
        self.assertEqual((answer.status, told["method"], told["uri"]), (200, "GET", "/echo?a=1"))
        self.assertEqual((answer.url, answer.redirected), ("https://shop.test/echo?a=1", False))
        self.assertEqual(answer.header("Content-Type"), "application/json")
        self.assertIsNone(answer.header("x-nothing"))
        self.assertEqual(client.state, "ready")
        self.assertIsNotNone(client.epoch)
        fields = dict(told["fields"])
        self.assertEqual((fields["origin"], fields["user-agent"], fields["accept"]), ("https://shop.test", "L8", "*/*"))
        for tap in self.stage.front:
            self.assertNotIn(b"echo", tap.up)

    async def test_what_may_be_sent(self) -> None:
        client = await self.client()

        async def told(asked: Any) -> tuple[str, str, bytes]:
            answer = await asked
            called = self.calls[-1]
            self.assertEqual(answer.status, 200)
            return called.method, (called.all("content-type") or [""])[0], called.body

        self.assertEqual(await told(client.post("/echo", b"\0\1")), ("POST", "", b"\0\1"))
        self.assertEqual(await told(client.post("/echo", "é")), ("POST", "text/plain;charset=UTF-8", "é".encode()))
        form = "application/x-www-form-urlencoded;charset=UTF-8"
        self.assertEqual(await told(client.put("/echo", {"a": "1 2", "b": "&"})), ("PUT", form, b"a=1+2&b=%26"))
        self.assertEqual(await told(client.patch("/echo", json={"a": 1})), ("PATCH", "application/json", b'{"a": 1}'))
        self.assertEqual(await told(client.delete("/echo")), ("DELETE", "", b""))
        typed = client.post("/echo", "x", headers={"Content-Type": "text/css"})
        self.assertEqual(await told(typed), ("POST", "text/css", b"x"))
        answer = await client.get("/echo", params={"a": "1", "b": "c d"})
        self.assertEqual((await answer.json())["uri"], "/echo?a=1&b=c+d")
        answer = await client.head("/bytes/100")
        self.assertEqual((answer.header("content-length"), await answer.content()), ("100", b""))

    async def test_a_stream_up_and_down(self) -> None:
        client = await self.client()

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(64):
                yield bytes([number]) * 50_000

        answer = await client.post("/upload", pieces())
        self.assertEqual((await answer.json())["size"], 64 * 50_000)
        answer = await client.get("/chunked/3000000")
        sizes = [len(piece) async for piece in answer]
        self.assertEqual(sum(sizes), 3_000_000)
        self.assertGreater(len(sizes), 50)
        whole = await (await client.get("/bytes/3000000")).content()
        self.assertEqual(whole, pattern(3_000_000))
        whole = await (await client.post("/echo", bytes(2_000_000))).json()
        self.assertEqual(whole["size"], 2_000_000)

    async def test_the_first_event_comes_before_the_last(self) -> None:
        from twisted.internet import reactor

        client = await self.client()
        begun = reactor.seconds()
        answer = await client.get("/events?n=5&gap=0.2")
        async for piece in answer:
            self.assertIn(b"data:", piece)
            break
        self.assertLess(reactor.seconds() - begun, 0.7)

    async def test_a_slow_reader_holds_the_backend_up(self) -> None:
        from twisted.internet import reactor

        client = await self.client()
        answer = await client.get("/bytes/20000000")
        await deferLater(reactor, 0.5, lambda: None)
        self.assertLess(sum(len(tap.down) for tap in self.stage.front), 12_000_000)
        self.assertEqual(len(await answer.content()), 20_000_000)

    async def test_an_answer_that_nobody_wants(self) -> None:
        client = await self.client()
        answer = await client.get("/bytes/20000000")
        answer.close()
        await self.fails("cut", answer.content())
        self.assertEqual((await client.get("/echo")).status, 200)

    async def test_less_than_was_promised(self) -> None:
        client = await self.client()

        async def whole() -> bytes:
            return await (await client.get("/break")).content()

        error: Any = await self.assertFailure(Deferred.fromCoroutine(whole()), L8Error)
        self.assertIn(error.code, ("cut", "lost"))  # the head may have been on its way

    async def test_redirects(self) -> None:
        client = await self.client()
        answer = await client.get("/redirect/3")
        self.assertEqual((answer.status, answer.url, answer.redirected), (200, "https://shop.test/echo", True))
        answer = await client.get("/redirect/3", redirects=0)
        self.assertEqual((answer.status, answer.header("location")), (302, "/redirect/2"))
        await self.fails("redirect", client.get("/redirect/3", redirects=2))
        for elsewhere in ("https://other.example/", "http://shop.test/", "//other.example/x", "ftp://shop.test/"):
            await self.fails("redirect", client.get("/redirect-to", params={"url": elsewhere}))
        answer = await client.post("/redirect-to?url=/echo&status=307", b"kept")
        self.assertEqual((self.calls[-1].method, self.calls[-1].body), ("POST", b"kept"))

        async def once() -> AsyncIterator[bytes]:
            yield b"once"

        await self.fails("redirect", client.post("/redirect-to?url=/echo&status=307", once()))
        answer = await client.post("/redirect-to?url=/echo&status=303", once())
        self.assertEqual((self.calls[-1].method, self.calls[-1].size), ("GET", 0))

    def test_a_redirect_to_another_host(self) -> None:
        """Who else answers behind the gateway is not told what was meant for the first (Fetch, section 4.4)."""
        url = Url("https", "shop.test", "/", None)
        told = [("accept", "*/*"), ("authorization", "Bearer x")]
        asked = _Ask("GET", url, told, b"", frozenset((("https", "shop.test"), ("https", "mall.test"))))
        self.assertEqual(_onward(asked, 302, "/x").headers, told)
        self.assertEqual(_onward(asked, 302, "https://mall.test/x").headers, told[:1])

    async def test_much_in_little(self) -> None:
        """A few bytes that unpack to many come in pieces of a size that somebody can hold."""
        packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
        packed = packer.compress(bytes(10_000_000)) + packer.flush()
        pieces = [packed, b""]

        async def read() -> bytes:
            return pieces.pop(0)

        trip: Any = SimpleNamespace(read=read, done=True, failure=None)
        answer = L8Answer(200, (), "", False, trip, zlib.decompressobj(wbits=16 + zlib.MAX_WBITS))
        sizes = [len(piece) async for piece in answer]
        self.assertEqual((sum(sizes), max(sizes)), (10_000_000, UNPACKED))

    async def test_compression_is_asked_for(self) -> None:
        client = await self.client()
        plain = await client.get("/gzip")
        self.assertIsNone(plain.header("content-encoding"))
        self.assertEqual(self.calls[-1].all("accept-encoding"), [])
        packed = await self.another(compress="gzip").get("/gzip")
        self.assertEqual(packed.header("content-encoding"), "gzip")
        unpacked, told = await packed.json(), await plain.json()
        self.assertEqual((unpacked["asked"], told["asked"]), (["gzip"], []))
        self.assertEqual(unpacked["text"], told["text"])

    async def test_padding(self) -> None:
        """Outer sizes are of a few steps; `pad=False` shows them as they are."""

        def sizes() -> list[int]:
            found = [int(line.split(b":")[1]) for line in self.stage.front[0].up.split(b"\r\n") if b"ength:" in line]
            self.stage.front[0].clear()
            return [size for size in found if size]

        client = await self.client()
        for size in (0, 100, 200):
            await (await client.post("/echo", bytes(size))).content()
        self.assertEqual(set(sizes()), {512 + 56})
        bare = self.another(pad=False)
        for size in (0, 1, 2):
            await (await bare.post("/echo", bytes(size))).content()
        first, second, third = sizes()
        self.assertEqual((second - first, third - first), (1, 2))

    async def test_two_gateways_and_their_cookies(self) -> None:
        shop = await self.client({"gateways": ("shop", "mall")}, session=True)
        mall = self.another("mall", session=True)
        await shop.get("/cookies/set?a=1&b=2")
        self.assertEqual(await (await shop.get("/cookies")).json(), {"cookie": ["a=1; b=2"]})
        self.assertEqual(await (await mall.get("/cookies")).json(), {"cookie": []})
        answer = await shop.get("/fields")
        self.assertEqual(len([name for name, _ in answer.headers if name == "set-cookie"]), 3)
        for tap in self.stage.front:
            self.assertNotIn(b"ookie", tap.up + tap.down)
        self.assertEqual(await (await self.another().get("/cookies")).json(), {"cookie": []})
        assert shop.jar is not None
        kept = json.dumps(shop.jar.dump())
        again = self.another(session=Jar.load(json.loads(kept)))
        told = await (await again.get("/cookies")).json()
        self.assertEqual(told, {"cookie": ["a=1; b=2; one=one; two=two; three=three"]})

    async def test_many_at_once(self) -> None:
        client = await self.client()

        async def one(number: int) -> int:
            answer = await client.get(f"/bytes/{number}")
            return len(await answer.content())

        found = await gatherResults([Deferred.fromCoroutine(one(number)) for number in range(60)])
        self.assertEqual(found, list(range(60)))

    async def test_more_than_go_at_once(self) -> None:
        """The rest wait their turn."""
        client = await self.client()

        async def one() -> int:
            answer = await client.get("/slow?s=1.2")
            await answer.content()
            return answer.status

        found = await gatherResults([Deferred.fromCoroutine(one()) for _ in range(POOL + 20)])
        self.assertEqual(set(found), {200})


class FailureTests(ClientCase):
    async def test_arguments(self) -> None:
        from twisted.internet import reactor

        client = await self.client()
        rows: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("GET", "ftp://shop.test/", {}),
            ("GET", "https://u:p@shop.test/", {}),
            ("GET", "https://[/", {}),
            ("CONNECT", "/", {}),
            ("BAD METHOD", "/", {}),
            ("GET", "/" + "x" * 9000, {}),
            ("GET", "/", {"headers": {"a b": "c"}}),
            ("GET", "/", {"headers": {"a": "b\r\nc: d"}}),
            ("GET", "/", {"headers": {"cookie": "a=1"}}),
            ("GET", "/", {"headers": {"Host": "other"}}),
        )
        for method, url, more in rows:
            await self.fails("argument", client.request(method, url, **more))
        await self.fails("unknown", client.get("https://other.example/"))
        await self.fails("unknown", client.get("https://shop.test:8443/"))
        self.assertEqual(self.calls, [])
        good = self.stage.connect()
        changes: tuple[dict[str, Any], ...] = (
            {"relay": []},
            {"relay": "http://relay.example"},
            {"relay": "relay.example"},
            {"relay": "https://relay.example/?x"},
            {"gateway": "NO"},
            {"pin": "A"},
            {"compress": "br"},
            {"via": "nonsense:1"},
        )
        for change in changes:
            self.assertRaises(ConfigError, L8Client, reactor, **{**good, **change})

    async def test_keys_of_somebody_else(self) -> None:
        client = await self.client(pin=pin_text(NodeKey.make().node_id))
        error = await self.fails("keys-signature", client.get("/echo"))
        self.assertFalse(error.retryable)
        self.assertEqual(client.state, "failed")
        await self.fails("keys-signature", client.get("/echo"))
        await self.fails("keys-signature", client.connect())
        self.assertEqual(self.calls, [])
        self.assertNotIn(b"POST", self.stage.front[0].up)

    async def test_another_gateway_s_keys(self) -> None:
        """The relay gives a set of one provider for the other's; both are pinned, as while a pin changes."""
        await self.client({"gateways": ("shop", "mall")})
        pins = [self.stage.gateways[name].pin for name in ("shop", "mall")]
        self.stage.front[0].meddle = lambda up, data: data.replace(b"/r/shop/keys", b"/r/mall/keys") if up else data
        await self.fails("keys-gateway", self.another(pin=pins).get("/echo"))

    async def test_relays_that_differ(self) -> None:
        client = await self.client({"relays": 2})
        self.assertEqual((await client.get("/echo")).status, 200)
        self.stage.front[1].meddle = lambda up, data: data if up else data.replace(b'"signature":"', b'"signature":"A')
        await self.fails("keys-form", self.another().get("/echo"))

    async def test_no_relay(self) -> None:
        client = await self.client()
        await self.stage.front[0].close()
        error = await self.fails("unreachable", client.get("/echo"))
        self.assertTrue(error.retryable)
        self.stage.front[0].listen()
        self.assertEqual((await client.get("/echo")).status, 200)

    async def test_the_other_relay_takes_over(self) -> None:
        from twisted.internet import reactor

        client = await self.client({"relays": 2})
        self.assertEqual((await client.get("/echo")).status, 200)
        used = next(tap for tap in self.stage.front if b"POST" in tap.up)
        await used.close()
        await deferLater(reactor, 0.1, lambda: None)
        for _ in range(3):
            answer = await client.post("/echo", b"x")
            self.assertEqual(answer.status, 200)
            await answer.content()
        self.assertEqual(len(self.calls), 4)

    async def test_a_gateway_that_the_relay_does_not_know(self) -> None:
        client = await self.client()
        self.assertEqual((await client.get("/echo")).status, 200)
        self.stage.front[0].meddle = lambda up, data: data.replace(b"/r/shop", b"/r/shap") if up else data
        await self.fails("no-gateway", client.get("/echo"))

    async def test_a_changed_answer(self) -> None:
        client = await self.client()
        await (await client.get("/echo")).content()

        def meddle(up: bool, data: bytes) -> bytes:
            return data if up else data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]

        async def whole() -> bytes:
            return await (await client.get("/echo")).content()

        self.stage.front[0].meddle = meddle
        await self.fails("tampered", whole())

    async def test_a_changed_request(self) -> None:
        client = await self.client()
        await (await client.get("/echo")).content()
        self.stage.front[0].meddle = lambda up, data: data[:-1] + bytes([data[-1] ^ 1]) if up else data
        await self.fails("unopened", client.get("/echo"))
        self.assertEqual(len(self.calls), 1)

    async def test_a_connection_that_is_cut(self) -> None:
        client = await self.client()
        asked = Deferred.fromCoroutine(client.get("/never"))
        from twisted.internet import reactor

        await deferLater(reactor, 0.3, lambda: None)
        self.stage.front[0].cut()
        error: Any = await self.assertFailure(asked, L8Error)
        self.assertEqual(error.code, "lost")

    async def test_too_late(self) -> None:
        client = await self.client(timeout=0.3)
        await self.fails("slow", client.get("/never"))
        await self.fails("slow", client.get("/never", timeout=0.1))
        self.assertEqual((await client.get("/echo")).status, 200)

    async def test_closed(self) -> None:
        client = await self.client()
        await client.get("/echo")
        asked = Deferred.fromCoroutine(client.get("/never"))
        await client.close()
        await self.assertFailure(asked, L8Error)
        await self.fails("closed", client.get("/echo"))
        self.assertEqual(client.state, "closed")

    async def test_a_rotation(self) -> None:
        """What was sealed to the old key still opens; when it is forgotten, newer keys are looked for."""
        client = await self.client()
        await (await client.get("/echo")).content()
        self.stage.gateways["shop"].rotate()
        self.assertEqual((await client.get("/echo")).status, 200)

    def test_every_code_has_words(self) -> None:
        self.assertTrue(all(CODES.values()))
