"""The two gateways on Twisted, before a real backend, asked over real sockets."""

from __future__ import annotations

import gc
import hashlib
import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from layer8.core.errors import StorageError, Unavailable
from layer8.crypto.keys import NodeKey
from layer8.net.http_client import Pool, fetch
from layer8.net.ways import connector
from layer8.tunnel import dates, gateway, socket_session, wire
from layer8.tunnel.bhttp import Fields, Request
from layer8.tunnel.driving import Driven
from layer8.tunnel.frames import Kind, Message
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.gateway_session import GatewayExchange
from layer8.tunnel.resource import L8Resource
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH, Settings
from layer8.tunnel.sidecar import Sidecar, Upstream
from layer8.tunnel.socket_session import Closed, Opened, Refused
from layer8.tunnel.wire import CHUNKED, SINGLE, KeyConfig
from tests.tunnel.backend import Backend, pattern
from tests.tunnel.by_hand import Hand, Page, asked, seal, wall


async def until(reactor: Any, condition: Any, seconds: float = 5.0, *, fail: bool = True) -> None:
    end = reactor.seconds() + seconds
    while not condition():
        if reactor.seconds() > end:
            if fail:
                raise AssertionError("nothing happened")
            return
        await deferLater(reactor, 0.005, lambda: None)


class Stream:
    """An answer piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes | None] = []
        self.status = 0
        self.broken = False
        self.line: Any = None
        self.reactor: Any = None

    @classmethod
    async def post(cls, hand: Hand, body: bytes, *, wait: bool = True) -> Stream:
        stream = cls()
        stream.reactor = hand.reactor
        stream.line = await hand.pool.take()
        fields = [("content-type", CHUNKED.request)]
        stream.line.request("POST", GATEWAY_PATH, hand.host, fields, stream, len(body))
        stream.line.write(body)
        stream.line.finish()
        if wait:
            await until(hand.reactor, lambda: stream.status)
        return stream

    async def __aiter__(self) -> Any:
        while True:
            await until(self.reactor, lambda: self.pieces)
            piece = self.pieces.pop(0)
            if piece is None:
                return
            yield piece

    def cut(self) -> None:
        self.line.cut()

    def answered(self, status: int, fields: Any, length: int | None) -> None:
        self.status = status

    def received(self, data: bytes) -> None:
        self.pieces.append(data)

    def ended(self) -> None:
        self.pieces.append(None)

    def lost(self) -> None:
        self.broken = True
        self.pieces.append(None)

    def full(self) -> None:
        pass

    def room(self) -> None:
        pass


class Rig:
    """A backend, a gateway of one kind before it, and a hand that seals."""

    def __init__(self, reactor: Any, kind: str, backend: int = 0, **settings: Any) -> None:
        self.reactor = reactor
        self.identity = NodeKey.make()
        self.backend = Backend(reactor)
        self.clock = Clock()  # the time of day
        self.clock.advance(wall())
        self.gateway = Gateway.open(
            Settings(gateway="shop", authorities=["shop.test"], identity=self.identity, **settings),
            wall=self.clock.seconds,
        )
        self.stops: list[Any] = []
        if kind == "sidecar":
            if not backend:
                self.backend.open()
            pool = Pool(reactor, connector(reactor, f"tcp:127.0.0.1:{backend or self.backend.port}"))
            self.sidecar = Sidecar(reactor, self.gateway, pool)
            self.sidecar.start()
            self.gate = self.sidecar.gate
            self.stops.append(self.sidecar.stop)
            factory: Any = self.sidecar.server
        else:
            self.resource = L8Resource(self.backend.resource, gateway=self.gateway, reactor=reactor)
            self.stops.append(self.resource.stop)
            self.gate = self.resource.gate
            if kind == "kept":
                from twisted.web.server import Site

                factory = Site(self.resource)
            else:
                factory = self.resource.site()
            factory.noisy = False
            factory.log = lambda request: None
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.hand = Hand(reactor, self.port.getHost().port, [self.identity.node_id])

    async def close(self) -> None:
        self.hand.close()
        for stop in self.stops:
            stop()
        await self.port.stopListening()
        await self.backend.close()
        self.gateway.close()


class GatewayTests(TestCase):
    kind = ""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.rig = Rig(reactor, self.kind)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.rig.close()))

    async def test_a_sealed_post(self) -> None:
        content = pattern(1000)
        told = await self.rig.hand.ask(asked(b"POST", b"/echo?a=%20b&c", fields=((b"x-one", b"1"),)), content)
        self.assertEqual(told.status, 200)
        said = json.loads(told.body)
        self.assertEqual((said["method"], said["uri"], said["size"]), ("POST", "/echo?a=%20b&c", 1000))
        self.assertEqual(said["sha256"], hashlib.sha256(content).hexdigest())
        fields = {name.lower(): value for name, value in said["fields"]}
        self.assertEqual(fields["host"], "shop.test")
        self.assertEqual(fields["l8-encapsulated"], "?1")
        self.assertEqual(fields["x-one"], "1")
        self.assertEqual(fields["origin"], "https://shop.test")

    async def test_both_media(self) -> None:
        for media in (CHUNKED, SINGLE):
            told = await self.rig.hand.ask(asked(), media=media)
            self.assertEqual(json.loads(told.body)["method"], "GET")

    async def test_fields_of_who_asks_never_reach_the_backend(self) -> None:
        said: Fields = ((b"forwarded", b"for=1.2.3.4"), (b"via", b"1.1 x"), (b"x-forwarded-for", b"1.2.3.4"))
        said += ((b"x-real-ip", b"1.2.3.4"), (b"l8-token", b"me"), (b"l8-encapsulated", b"?0"), (b"te", b"trailers"))
        await self.rig.hand.ask(asked(fields=said))
        [called] = self.rig.backend.calls
        self.assertEqual(called.all("l8-encapsulated"), ["?1"])
        names = {name for name, _ in called.fields}
        self.assertEqual(names & {"forwarded", "via", "x-forwarded-for", "x-real-ip", "l8-token", "te"}, set())
        if self.kind != "sidecar":
            self.assertEqual(called.peer, "")

    async def test_fields_that_come_several_times(self) -> None:
        fields = ((b"x-two", b"1"), (b"x-two", b"2"), (b"cookie", b"a=1; b=2"))
        told = await self.rig.hand.ask(asked(b"GET", b"/fields", fields=fields))
        self.assertEqual(told.all(b"x-many"), [b"one", b"two", b"three"])
        self.assertEqual(told.all(b"set-cookie"), [b"one=one", b"two=two", b"three=three"])
        self.assertEqual(told.all(b"x-latin"), [b"caf\xe9"])
        self.assertEqual(self.rig.backend.calls[0].all("x-two"), ["1", "2"])
        self.assertEqual(self.rig.backend.calls[0].all("cookie"), ["a=1; b=2"])

    async def test_answers_of_every_form(self) -> None:
        ask = self.rig.hand.ask
        for status in (200, 204, 205, 304, 400, 404, 418, 500, 503):
            self.assertEqual((await ask(asked(b"GET", b"/status/%d" % status))).status, status)
        head = await ask(asked(b"HEAD", b"/bytes/1000"))
        self.assertEqual((head.status, head.body, head.all(b"content-length")), (200, b"", [b"1000"]))
        part = await ask(asked(b"GET", b"/bytes/1000", fields=((b"range", b"bytes=100-199"),)))
        self.assertEqual((part.status, part.body), (206, pattern(100, 100)))
        tag = (await ask(asked(b"GET", b"/bytes/10"))).all(b"etag")[0]
        again = await ask(asked(b"GET", b"/bytes/10", fields=((b"if-none-match", tag),)))
        self.assertEqual((again.status, again.body), (304, b""))
        self.assertEqual((await ask(asked(b"GET", b"/chunked/70000"))).body, pattern(70_000))
        for method in (b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"REPORT"):
            told = await ask(asked(method), b"x" if method != b"OPTIONS" else b"")
            self.assertEqual(json.loads(told.body)["method"], method.decode())
        self.assertTrue(all(call.all("connection") in ([], ["keep-alive"]) for call in self.rig.backend.calls))

    async def test_content_of_unknown_length(self) -> None:
        told = await self.rig.hand.ask(asked(b"POST"), pattern(200_000), known=False)
        self.assertEqual(json.loads(told.body)["sha256"], hashlib.sha256(pattern(200_000)).hexdigest())
        told = await self.rig.hand.ask(asked(), b"", known=False)
        self.assertEqual(json.loads(told.body)["size"], 0)
        self.assertEqual(self.rig.backend.calls[-1].all("transfer-encoding"), [])

    async def test_sizes_are_a_few(self) -> None:
        sizes = set()
        for size in (0, 100, 300, 1000, 3000):
            told = await self.rig.hand.ask(asked(b"GET", b"/bytes/%d" % size))
            assert told.outer is not None
            sizes.add(len(told.outer.body))
        self.assertLessEqual(sizes, {step + 33 for step in (512, 1024, 2048, 4096)})

    async def test_a_large_body_each_way(self) -> None:
        size = 2 << 20
        told = await self.rig.hand.ask(asked(b"POST", b"/upload"), pattern(size))
        self.assertEqual(json.loads(told.body)["sha256"], hashlib.sha256(pattern(size)).hexdigest())
        told = await self.rig.hand.ask(asked(b"GET", b"/bytes/%d" % size))
        self.assertEqual(told.body, pattern(size))

    async def test_events_come_while_they_are_made(self) -> None:
        await self.rig.hand.keys()
        sealed = seal(self.rig.hand.config, asked(b"GET", b"/events?n=4&gap=0.2"))
        stream = await Stream.post(self.rig.hand, sealed.body)
        opener = wire.open_answer(CHUNKED, sealed.context, sealed.aead)
        times, text = [], b""
        async for data in stream:
            for piece in opener.feed(data):
                text += piece
                times.append(self.rig.reactor.seconds())
        text += opener.end()
        self.assertGreater(times[-1] - times[0], 0.2)
        self.assertEqual(text.count(b"event: tick"), 4)

    async def test_events_that_are_filled_up(self) -> None:
        """A relay cannot tell a short event from a long one; a reader of events passes over what was added."""
        rig = Rig(self.rig.reactor, self.kind, pad_events=True)
        self.addCleanup(lambda: Deferred.fromCoroutine(rig.close()))
        await rig.hand.keys()
        sealed = seal(rig.hand.config, asked(b"GET", b"/events?n=12&gap=0.05"))
        stream = await Stream.post(rig.hand, sealed.body)
        opener = wire.open_answer(CHUNKED, sealed.context, sealed.aead)
        pieces = []
        async for data in stream:
            pieces += opener.feed(data)
        sizes = {len(piece) for piece in pieces[1:]}
        self.assertLessEqual(sizes, {514, 1026, 2050, 4098})  # one or more at a time, with the length before each
        text = b"".join(pieces) + opener.end()
        self.assertEqual(text.count(b"event: tick"), 12)

    async def test_a_repeat(self) -> None:
        """The same bytes a second time are refused under seal, whatever the method."""
        for method in (b"GET", b"POST", b"DELETE"):
            await self.rig.hand.keys()
            sealed = seal(self.rig.hand.config, asked(method))
            self.assertEqual((await self.rig.hand.send(sealed)).status, 200)
            self.assertEqual((await self.rig.hand.send(sealed)).status, 425)
        self.assertEqual(len(self.rig.backend.calls), 3)

    async def test_keys(self) -> None:
        hand = self.rig.hand
        found = await hand.keys()
        found.check("shop", wall())
        raw = await fetch(hand.pool, "GET", GATEWAY_PATH, hand.host, most=100)
        self.assertEqual(raw.body, found.config.document())
        self.assertEqual(raw.only("content-type"), "application/ohttp-keys")
        self.assertEqual((await fetch(hand.pool, "PUT", KEYS_PATH, hand.host, most=100)).status, 405)
        self.assertEqual((await fetch(hand.pool, "PUT", GATEWAY_PATH, hand.host, most=100)).status, 405)

    async def test_after_a_rotation(self) -> None:
        hand = self.rig.hand
        await hand.keys()
        old = hand.config
        self.rig.clock.advance(3600)
        self.rig.gateway.rotate()
        new = await hand.keys()
        self.assertNotEqual(new.config, old)
        for config in (old, new.config):
            told = await hand.send(seal(config, asked(date=self.rig.clock.seconds())))
            self.assertEqual(told.status, 200)

    async def test_a_key_of_another_worker(self) -> None:
        """Two gateways share a folder; what one of them has made a moment ago, the other opens."""
        folder = self.mktemp()
        rig = Rig(self.rig.reactor, self.kind, state=folder)
        self.addCleanup(lambda: Deferred.fromCoroutine(rig.close()))
        await rig.hand.keys()
        rig.clock.advance(3600)
        settings = Settings(gateway="shop", authorities=["shop.test"], identity=rig.identity, state=folder)
        other = Gateway.open(settings, wall=rig.clock.seconds)
        other.rotate()
        config = KeyConfig.read_document(other.ohttp_keys())
        other.close()
        self.assertNotEqual(config, rig.hand.config)
        for content in (b"", bytes(100_000)):
            told = await rig.hand.send(seal(config, asked(b"POST", date=rig.clock.seconds()), content))
            self.assertEqual(json.loads(told.body)["size"], len(content))

    async def test_a_replay_set_that_cannot_be_asked(self) -> None:
        def fail(asked: object) -> None:
            raise StorageError("the disk is full")

        remember = Gateway.remember
        for quick in (True, False):
            self.patch(Gateway, "quick", quick)
            self.assertEqual((await self.rig.hand.ask(asked())).status, 200)
            self.patch(Gateway, "remember", lambda gateway, one: fail(one))
            self.assertEqual((await self.rig.hand.ask(asked())).status, 503)
            self.patch(Gateway, "remember", remember)
        self.assertEqual(len(self.rig.backend.calls), 2)

    async def test_a_date_that_is_off(self) -> None:
        told = await self.rig.hand.ask(asked(date=wall() - 1000))
        self.assertEqual(told.status, 400)
        self.assertIn(b"#date", told.body)
        self.assertLess(abs((dates.read(told.all(b"date")[0]) or 0) - wall()), 3)
        self.assertEqual(self.rig.backend.calls, [])

    async def test_a_backend_that_breaks_its_answer(self) -> None:
        await self.rig.hand.keys()
        sealed = seal(self.rig.hand.config, asked(b"GET", b"/break"))
        try:
            answer = await self.rig.hand.post(sealed.body)
        except Unavailable:
            return
        if answer.status == 200:
            told = sealed.open(answer.body)
            self.assertEqual(told.status, 502)
        else:
            self.assertEqual(answer.status, 502)

    async def test_whoever_leaves_takes_the_request_along(self) -> None:
        await self.rig.hand.keys()
        stream = await Stream.post(self.rig.hand, seal(self.rig.hand.config, asked(b"GET", b"/never")).body, wait=False)
        await until(self.rig.reactor, lambda: self.rig.backend.calls)
        self.assertEqual(len(self.rig.gate.under_way), 1)
        stream.cut()
        await until(self.rig.reactor, lambda: not self.rig.gate.under_way)

    async def test_requests_past_the_tunnel(self) -> None:
        hand = self.rig.hand
        fields = [("l8-encapsulated", "?1"), ("l8-token", "x"), ("x-one", "1")]
        answer = await fetch(hand.pool, "POST", "/echo?a=1", "shop.test", fields, b"hello", most=10_000)
        said = json.loads(answer.body)
        told = dict(said["fields"])
        self.assertEqual((said["method"], said["uri"], said["size"], told["x-one"]), ("POST", "/echo?a=1", 5, "1"))
        self.assertEqual(told.keys() & {"l8-encapsulated", "l8-token"}, set())
        answer = await fetch(hand.pool, "GET", "/chunked/70000", "shop.test", most=100_000)
        self.assertEqual(answer.body, pattern(70_000))

    async def page(self, path: bytes = b"/ws", fields: Any = ()) -> Page:
        keys = await self.rig.hand.keys()
        request = Request(b"GET", b"https", b"shop.test", path, ((b"origin", b"https://shop.test"), *fields))
        return await Page(self.rig.hand, keys, request).open()

    async def test_a_socket(self) -> None:
        page = await self.page(fields=((b"sec-websocket-protocol", b"chat"), (b"cookie", b"a=1")))
        [opened] = await page.find(Opened)
        self.assertEqual(opened.protocol, "chat")
        big = Message(Kind.BINARY, pattern(300_000))
        for message in (Message(Kind.TEXT, "grüße".encode()), big, Message(Kind.BINARY, b"")):
            page.say(message)
        self.assertEqual(await page.find(Message, 3), [Message(Kind.TEXT, "grüße".encode()), big, Message(Kind.BINARY)])
        page.say(Message(Kind.TEXT, b"close"))
        [closed] = await page.find(Closed)
        self.assertEqual(closed.code, 4001)
        await page.until(lambda: self.rig.gateway.counts()["sockets"] == 0)

    async def test_sockets_rest_with_whoever_does_not_read(self) -> None:
        page = await self.page()
        await page.find(Opened)
        [backend] = self.rig.backend.sockets
        assert page.wire is not None
        page.wire.rest(True)
        for _ in range(60):
            backend.sendMessage(bytes(200_000), True)
        await until(self.rig.reactor, lambda: False, 0.3, fail=False)
        self.assertLess(len(page.all(Message)), 60)
        page.wire.rest(False)
        self.assertEqual(len(await page.find(Message, 60)), 60)

    async def test_too_many_sockets(self) -> None:
        self.patch(gateway, "SOCKET_SESSIONS", 1)
        first = await self.page()
        await first.find(Opened)
        keys = await self.rig.hand.keys()
        second = await Page(self.rig.hand, keys, Request(b"GET", b"https", b"shop.test", b"/ws")).open()
        self.assertEqual(second.status, 503)
        first.close()
        await until(self.rig.reactor, lambda: not self.rig.gateway.counts()["sockets"])

    async def test_sockets_that_talk_nonsense(self) -> None:
        """A first message under no key, one of a wrong length, and a frame that does not open."""
        for first in (bytes(560), bytes(100), b""):
            page = await self.page()
            await page.find(Opened)
            assert page.wire is not None
            page.wire.send(2, first or bytes(272))
            await until(self.rig.reactor, lambda page=page: page.ends)
        keys = await self.rig.hand.keys()
        for first in (bytes(560), bytes(100)):
            page = Page(self.rig.hand, keys, Request(b"GET", b"https", b"shop.test", b"/ws"))
            page.session.effects()
            await page.open()
            assert page.wire is not None
            page.wire.send(2, first)
            await until(self.rig.reactor, lambda page=page: page.ends)
        await until(self.rig.reactor, lambda: not self.rig.gateway.counts()["sockets"])
        await until(self.rig.reactor, lambda: not self.rig.backend.sockets)

    async def test_a_silent_page_is_asked_and_left(self) -> None:
        self.patch(socket_session, "SOCKET_PING", 0.2)
        self.patch(socket_session, "SOCKET_DEAD", 0.5)
        page = await self.page()
        await page.find(Opened)
        heard: list[bytes] = []
        page.session.received = lambda data, now: heard.append(data)  # type: ignore[method-assign]
        await until(self.rig.reactor, lambda: page.ends)
        self.assertEqual(len(heard), 1)  # the ping
        await until(self.rig.reactor, lambda: not self.rig.gateway.counts()["sockets"])

    async def test_a_page_that_closes(self) -> None:
        page = await self.page()
        await page.find(Opened)
        self.assertEqual(len(self.rig.backend.sockets), 1)
        page.close(3001, "bye")
        await page.until(lambda: not self.rig.backend.sockets)
        await page.until(lambda: self.rig.gateway.counts()["sockets"] == 0)

    async def test_no_such_socket(self) -> None:
        page = await self.page(b"/echo")
        [closed] = await page.find(Closed)
        self.assertEqual(closed.code, 1014)
        await page.until(lambda: self.rig.gateway.counts()["sockets"] == 0)

    async def test_a_socket_to_somebody_else(self) -> None:
        keys = await self.rig.hand.keys()
        page = await Page(self.rig.hand, keys, Request(b"GET", b"https", b"other.test", b"/ws")).open()
        [refused] = await page.find(Refused)
        self.assertEqual(refused.status, 400)


class SidecarTests(GatewayTests):
    kind = "sidecar"

    async def test_nothing_of_a_request_waits_for_the_collector(self) -> None:
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        await self.rig.hand.ask(asked(b"POST", b"/echo"), b"hello")
        left = [one for one in gc.get_objects() if isinstance(one, (Driven, GatewayExchange, Upstream))]
        self.assertEqual(left, [])


class ResourceTests(GatewayTests):
    kind = "resource"


class KeptResourceTests(GatewayTests):
    kind = "kept"


del GatewayTests  # it is no test by itself
