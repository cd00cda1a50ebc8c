"""WebSockets through a relay, over real sockets."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from layer8.net.http import Incoming
from layer8.tunnel import admission, passage, piping
from layer8.tunnel.admission import Admission
from layer8.tunnel.passage import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Control, Passage
from layer8.tunnel.piping import SWEEP, Piping
from tests.tunnel.test_passage import frame
from tests.tunnel.test_relay import Client, Gateway, RelayCase

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SHAKE = (
    "GET /ws/shop HTTP/1.1\r\nhost: relay.test\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    f"sec-websocket-key: {KEY}\r\nsec-websocket-version: 13\r\nsec-websocket-protocol: l8.noise.v1\r\n"
    "sec-websocket-extensions: permessage-deflate\r\norigin: https://app.test\r\ncookie: a=b\r\nuser-agent: me\r\n\r\n"
)


class End(Protocol):
    """The gateway's end of a socket: it repeats what it hears."""

    def __init__(self, first: bytes) -> None:
        self.first = first
        self.heard = b""
        self.echo = True
        self.gone = False
        self.incoming = Passage(masked=True)
        self.controls: list[Control] = []

    def connectionMade(self) -> None:
        self.transport.write(self.first)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        out, controls = self.incoming.feed(data)
        self.heard += out
        self.controls += controls
        if out and self.echo:
            self.transport.write(frame(BINARY, out[-4:], mask=b""))  # type: ignore[union-attr]

    def connectionLost(self, reason: Any = None) -> None:
        self.gone = True


class SocketGateway(Gateway):
    """A gateway that says yes to sockets."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.ends: list[End] = []
        self.say = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n%b\r\n"
        self.early = b""

    def take(self, one: Incoming) -> None:
        if one.path != "/.well-known/l8/ws":
            super().take(one)
            return
        self.heads.append(one.head.raw)
        key = passage.accept(one.only("sec-websocket-key") or "").encode()
        lines = b"sec-websocket-accept: %b\r\nsec-websocket-protocol: l8.noise.v1\r\n" % key
        self.ends.append(End(self.say % lines + self.early if b"%b" in self.say else self.say))
        one.hand_over(self.ends[-1], b"")


class PipeCase(RelayCase):
    kind = SocketGateway
    gateway: SocketGateway

    def setUp(self) -> None:
        super().setUp()
        self.patch(piping, "LINGER", 0.05)

    async def open(self, early: bytes = b"") -> Client:
        """Open a socket."""
        client = await self.client()
        client.transport.write(SHAKE.encode() + early)  # type: ignore[union-attr]
        head = (await client.until(lambda data: b"\r\n\r\n" in data)).partition(b"\r\n\r\n")[0]
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        self.assertEqual(head.count(b"sec-websocket"), 2)
        self.assertIn(f"sec-websocket-accept: {passage.accept(KEY)}".encode(), head)
        client.heard = client.heard.partition(b"\r\n\r\n")[2]
        return client


class PipeTests(PipeCase):
    async def test_frames_both_ways(self) -> None:
        self.gateway.early = frame(BINARY, b"early", mask=b"")
        relay = self.start()
        client = await self.open(frame(BINARY, b"hello"))
        await client.until(lambda data: len(data) >= 7 + 6)
        text = frame(BINARY, bytes(65_535))
        client.transport.write(text)  # type: ignore[union-attr]
        await client.until(lambda data: len(data) >= 7 + 6 + 6)
        self.assertEqual(self.gateway.ends[0].heard, frame(BINARY, b"hello") + text)
        self.assertEqual(client.heard[:7], self.gateway.early)
        self.assertEqual((relay.stats().open_sockets, relay.stats().connections), (1, 0))
        self.assertEqual([row.sockets for row in relay.rows()], [1])

    async def test_bytes_are_counted_at_the_sockets(self) -> None:
        relay = self.start()
        await self.settle(lambda: bool(relay.keeping.kept["shop"].document))
        before = relay.stats().bytes
        self.gateway.early = frame(BINARY, b"early", mask=b"")
        client = await self.open(frame(BINARY, b"hello"))
        await client.until(lambda data: len(data) >= 7 + 6)
        head = (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            f"sec-websocket-accept: {passage.accept(KEY)}\r\nsec-websocket-protocol: l8.noise.v1\r\n\r\n"
        )
        told, end = relay.stats().bytes, self.gateway.ends[0]
        self.assertEqual(told.page_in - before.page_in, len(SHAKE) + 11)
        self.assertEqual(told.page_out - before.page_out, len(head) + 7 + 6)
        self.assertEqual(told.gateway_in - before.gateway_in, len(end.first) + 6)
        self.assertEqual(told.gateway_out - before.gateway_out, len(self.gateway.heads[-1]) + 11)

    async def test_nothing_of_the_handshake_goes_on(self) -> None:
        self.start()
        await self.open()
        head = self.gateway.heads[-1]
        self.assertTrue(head.startswith(b"GET /.well-known/l8/ws HTTP/1.1\r\nhost: shop.test\r\n"), head)
        for word in (b"origin", b"cookie", b"user-agent", b"extensions", KEY.encode(), b"relay.test"):
            self.assertNotIn(word, head.lower())

    async def test_pings_end_at_each_leg(self) -> None:
        self.start()
        client = await self.open()
        client.transport.write(frame(PING, b"there?"))  # type: ignore[union-attr]
        await client.until(lambda data: data == frame(PONG, b"there?", mask=b""))
        self.gateway.ends[0].transport.write(frame(PING, b"you?", mask=b""))  # type: ignore[union-attr]
        await self.settle(lambda: bool(self.gateway.ends[0].controls))
        self.assertEqual(self.gateway.ends[0].controls, [Control(PONG, b"you?")])
        self.assertEqual(self.gateway.ends[0].heard, b"")

    async def test_a_close_goes_on_without_its_reason(self) -> None:
        relay = self.start()
        client = await self.open()
        client.transport.write(frame(CLOSE, (4001).to_bytes(2, "big") + b"I am ann"))  # type: ignore[union-attr]
        await client.gone
        end = self.gateway.ends[0]
        await self.settle(lambda: end.gone)
        self.assertEqual([(one.opcode, one.data) for one in end.controls], [(CLOSE, b"\x0f\xa1")])
        self.assertEqual(client.heard, b"\x88\x02\x0f\xa1")
        await self.settle(lambda: relay.stats().open_sockets == 0)
        self.assertEqual(relay.stats().sockets, {"closed": 1})
        client = await self.open()
        self.gateway.ends[1].transport.write(frame(CLOSE, b"\x03\xe8who", mask=b""))  # type: ignore[union-attr]
        await client.gone
        self.assertEqual(client.heard, b"\x88\x02\x03\xe8")

    async def test_text_is_closed_with_1003(self) -> None:
        relay = self.start()
        client = await self.open()
        client.transport.write(frame(TEXT, b"hello"))  # type: ignore[union-attr]
        await client.gone
        self.assertEqual(client.heard, b"\x88\x02\x03\xeb")
        await self.settle(lambda: self.gateway.ends[0].gone)
        self.assertEqual(self.gateway.ends[0].controls[0].code, 1001)
        self.assertEqual(relay.stats().sockets, {"refused": 1})

    async def test_a_long_message_is_closed_with_1009(self) -> None:
        self.start()
        client = await self.open()
        text = frame(BINARY, bytes(60_000), fin=False) + frame(CONTINUATION, bytes(60_000))
        client.transport.write(text)  # type: ignore[union-attr]
        await client.gone
        self.assertEqual(client.heard[-4:], b"\x88\x02\x03\xf1")

    async def test_either_side_goes(self) -> None:
        relay = self.start()
        client = await self.open()
        client.transport.abortConnection()  # type: ignore[union-attr]
        await self.settle(lambda: self.gateway.ends[0].gone)
        client = await self.open()
        self.gateway.ends[1].transport.abortConnection()  # type: ignore[union-attr]
        await client.gone
        self.assertEqual(client.heard, b"\x88\x02\x03\xe9")
        await self.settle(lambda: len(relay.piping) == 0)
        self.assertEqual(relay.stats().sockets, {"page": 1, "gateway": 1})
        self.assertEqual([row.sockets for row in relay.rows()], [0])

    async def test_back_pressure(self) -> None:
        self.start()
        client = await self.open()
        end = self.gateway.ends[0]
        end.echo = False
        end.transport.pauseProducing()  # type: ignore[union-attr]
        text = frame(BINARY, bytes(65_535)) * 400
        client.transport.write(text)  # type: ignore[union-attr]
        leg = next(iter(self.relay.piping._live))._legs[0]  # type: ignore[union-attr, index]
        await self.settle(lambda: leg.other.full_since > 0)
        self.assertLess(len(leg.other.transport.dataBuffer), 1 << 20)
        end.transport.resumeProducing()  # type: ignore[union-attr]
        await self.settle(lambda: len(end.heard) == len(text))

    async def test_a_side_that_takes_nothing(self) -> None:
        """What waits for it is bounded, pings are not answered any more, and it is dropped in the end."""
        relay = self.start()
        client = await self.open()
        client.transport.pauseProducing()  # type: ignore[union-attr]
        (pipe,) = relay.piping._live
        assert pipe._legs is not None
        leg = pipe._legs[0]
        end = self.gateway.ends[0]
        end.transport.write(frame(BINARY, bytes(65_535), mask=b"") * 400)  # type: ignore[union-attr]
        await self.settle(lambda: leg.full_since > 0)
        before = len(leg.transport.dataBuffer) + leg.transport._tempDataLen
        client.transport.write(frame(PING, bytes(125)) * 20_000)  # type: ignore[union-attr]
        await self.settle(lambda: relay.stats().bytes.page_in > 20_000 * 131)
        self.assertLessEqual(len(leg.transport.dataBuffer) + leg.transport._tempDataLen, before)
        self.assertLess(before, 1 << 20)
        pipe.look(leg.full_since + 59)
        self.assertEqual(len(relay.piping), 1)
        pipe.look(leg.full_since + 60)
        await self.settle(lambda: len(relay.piping) == 0)
        self.assertEqual(relay.stats().sockets, {"silent": 1})

    async def test_a_drain_sends_them_elsewhere(self) -> None:
        relay = self.start()
        client = await self.open()
        await relay.drain()
        self.assertEqual(client.heard, b"\x88\x02\x03\xe9")
        self.assertEqual(relay.stats().sockets, {"drained": 1})


class RefusalTests(PipeCase):
    async def refused(self, text: str, status: int) -> dict[str, str]:
        got = await (await self.client()).ask(text.encode())
        self.assertEqual(got[0], status)
        self.assertEqual(self.gateway.ends, [])
        return got[1]

    async def test_what_is_no_handshake(self) -> None:
        self.start()
        await self.refused(SHAKE.replace("/ws/shop", "/ws/mall"), 404)
        await self.refused(SHAKE.replace("/ws/shop", "/ws/shop?x"), 404)
        await self.refused(SHAKE.replace("/ws/shop", "/ws/shop/x"), 404)
        await self.refused(SHAKE.replace("GET", "POST"), 405)
        fields = await self.refused(SHAKE.replace("l8.noise.v1", "chat"), 426)
        self.assertEqual((fields["upgrade"], fields["sec-websocket-version"]), ("websocket", "13"))
        await self.refused(SHAKE.replace("version: 13", "version: 8"), 426)
        await self.refused(SHAKE.replace("upgrade: websocket\r\n", ""), 426)

    async def test_a_gateway_that_says_no(self) -> None:
        relay = self.start()
        no = b"HTTP/1.1 %d No\r\ncontent-length: 2\r\nset-cookie: a=b\r\n\r\nno"
        for said, status in (
            (no % 403, 502),
            (no % 503, 503),
            (b"HTTP/1.1 101 Yes\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 502),
            (b"nonsense\r\n\r\n", 502),
            (b"", 502),
        ):
            self.gateway.say = said
            client = await self.client()
            client.transport.write(SHAKE.encode())  # type: ignore[union-attr]
            if not said:
                await self.settle(lambda: bool(self.gateway.ends) and not self.gateway.ends[-1].gone)
                self.gateway.ends[-1].transport.loseConnection()  # type: ignore[union-attr]
            got = await client.answer()
            self.assertEqual(got[0], status, said)
            self.assertNotIn("set-cookie", got[1])
        self.assertEqual(len(relay.piping), 0)

    async def test_a_gateway_that_is_away(self) -> None:
        self.start()
        await self.gateway.close()
        fields = await self.refused(SHAKE, 503)
        self.assertEqual(fields["retry-after"], "1")

    async def test_too_many(self) -> None:
        self.patch(admission, "IN_FLIGHT", 1)
        self.start()
        await self.open()
        got = await (await self.client()).ask(SHAKE.encode())
        self.assertEqual((got[0], got[1]["retry-after"]), (503, "1"))


class TimeTests(PipeCase):
    async def test_idle_but_pinged_for_a_while(self) -> None:
        """There is no limit to how long a socket lives, only to how long nothing is heard of it."""
        relay = self.start()
        client = await self.open()
        (pipe,) = relay.piping._live
        clock = Clock()
        clock.advance(pipe._heard)
        other = Piping(clock, Admission(b""), lambda _: "", lambda size: bytes(size))
        pipe._piping, other._live = other, {pipe}
        other._look()
        for _ in range(int(120 / SWEEP)):
            clock.advance(SWEEP)
            heard = len(client.heard)
            client.transport.write(frame(PING, b""))  # type: ignore[union-attr]
            await client.until(lambda data, heard=heard: len(data) > heard)  # type: ignore[misc]
        self.assertEqual(set(client.heard), {0x8A, 0})
        client.heard = b""
        for _ in range(int(65 / SWEEP)):
            clock.advance(SWEEP)
        await client.until(lambda data: data == passage.close(1001))
        clock.advance(1)
        await client.gone
        await self.settle(lambda: not other._live)
        relay.piping._live.clear()
