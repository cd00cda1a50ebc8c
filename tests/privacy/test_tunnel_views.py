"""Who learns what in the browser tunnel: marks go in at both ends, and what each party holds is searched for them.

::

    client ── front, from 127.1.2.3 ──▶ twistd layer8-tunnel ──▶ back ──▶ twistd layer8-gateway ──▶ a backend

Each search also looks for something that has to be there, so that one that finds nothing by mistake fails.
"""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.crypto import hpke_context
from layer8.crypto.hpke_context import Aead, Private
from layer8.net.http_client import fetch
from layer8.tunnel import bhttp, wire
from layer8.tunnel.bhttp import Request, Response
from layer8.tunnel.client_session import dressed
from layer8.tunnel.keys import KeySet, read_pin
from layer8.tunnel.outgoing import Outgoing
from layer8.tunnel.wire import CHUNKED, SINGLE, KeyConfig
from tests.interop.tunnels import Tunnel
from tests.resilience.rig import memory
from tests.tunnel import by_hand
from tests.tunnel.by_hand import Hand, wall
from tests.tunnel.taps import Tap

VISITOR = "127.1.2.3"
NUMBER = bytes((127, 1, 2, 3))
SPELLINGS = (
    VISITOR.encode(),
    NUMBER,
    NUMBER[::-1],
    b"7f010203",
    b"7F010203",
    b"2130772483",
    b"7f01:203",
    b"7f01:0203",
    b"127-1-2-3",
    b64encode(NUMBER).rstrip(b"="),
)
MARKS = {
    "method": b"MARKEDMETHOD4701",
    "path": b"/MARK-of-a-path-4702",
    "query": b"MARK-of-a-query-4703",
    "header": b"MARK-of-a-header-4704",
    "cookie": b"MARK-of-a-cookie-4705",
    "body": b"MARK-of-a-body-4706",
    "answer": b"MARK-of-an-answer-4707",
}


class ViewCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.tunnel = Tunnel.start(self, relays=0)
        self.back = Tap(reactor, self.tunnel.gateway_port)
        self.back.listen()
        self.addCleanup(self.back.close)
        self.relay = self.tunnel.add_relay(f"tcp:127.0.0.1:{self.back.port}")
        self.front = Tap(reactor, self.tunnel.relay_ports[0], source=VISITOR)
        self.front.listen()
        self.addCleanup(self.front.close)
        self.hands: list[Hand] = []

    async def hand(self) -> Hand:
        """Make a client with nothing of its own, by way of the relay."""
        hand = Hand(self.reactor, self.front.port, (read_pin(self.tunnel.pin),), "/r/shop", "relay.test")
        self.addCleanup(hand.close)
        answer = await fetch(hand.pool, "GET", "/r/shop/keys", "relay.test", most=65_536)
        hand.config = KeySet.read(answer.body, hand.pins).config
        return hand

    def request(self, **more: Any) -> Request:
        """Make a request that is full of marks."""
        fields = (
            (b"x-marked", MARKS["header"]),
            (b"cookie", b"session=" + MARKS["cookie"]),
            (b"x-answer", MARKS["answer"]),
        )
        told: dict[str, Any] = {"method": b"POST", "path": MARKS["path"] + b"?q=" + MARKS["query"], "fields": fields}
        return by_hand.asked(**(told | more))

    def absent(self, marks: dict[str, bytes], where: str, held: bytes, present: bytes) -> None:
        """Hold that none of these is there, while something is."""
        self.assertIn(present, held, f"{where}: the search itself does not work")
        for name, mark in marks.items():
            for text in (mark, mark.lower(), mark.hex().encode(), b64encode(mark)[:-4]):
                self.assertNotIn(text, held, f"{where} holds the {name}")


def files(home: Path) -> bytes:
    """Give all that a part has on its disk, its log among it."""
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


class RelayTests(ViewCase):
    async def test_nothing_of_what_is_asked_and_answered(self) -> None:
        """Method, path, query, header, cookie, body, answer: not in the relay's memory, log or files, on no leg."""
        hand = await self.hand()
        sealed = by_hand.seal(hand.config, self.request(), MARKS["body"] * 20_000)
        told = await hand.send(sealed)
        self.assertEqual(told.status, 200)
        for name in ("path", "query", "header", "cookie", "body", "answer"):
            self.assertIn(MARKS[name], told.body)
        put = self.request(method=MARKS["method"])
        self.assertEqual((await hand.ask(put)).status, 501)
        for _ in range(20):
            await hand.ask(self.request(), MARKS["body"])
        held = memory(self.relay.pid)
        self.absent(MARKS, "the relay's memory", held, b"/.well-known/ohttp-gateway")
        self.assertIn(sealed.head[-32:], self.front.up)
        self.absent(MARKS, "the relay's files and log", files(self.relay.home), b"shop.test")
        legs = {"client to relay": self.front.up, "relay to client": self.front.down}
        legs |= {"relay to gateway": self.back.up, "gateway to relay": self.back.down}
        for where, data in legs.items():
            self.absent(MARKS, where, data, b"message/ohttp-chunked-")
        self.assertIn(MARKS["path"], files(self.tunnel.home), "the backend has heard it")

    async def test_no_key_of_either_end(self) -> None:
        """The keys that both ends derive are in the relay's memory and on its wires as little as what they seal."""
        made: list[Any] = []
        real = hpke_context.schedule

        def schedule(*words: Any) -> Any:
            made.append(real(*words))
            return made[-1]

        self.patch(hpke_context, "schedule", schedule)
        hand = await self.hand()
        sealed = by_hand.seal(hand.config, self.request(), MARKS["body"])
        answer = await hand.post(sealed.body)
        self.assertEqual(sealed.open(answer.body).status, 200)
        (secrets,) = made
        keys = wire.answer_keys(CHUNKED, sealed.context, Aead.AES_128_GCM, answer.body[:16])
        marks = {
            "key of the request": secrets.key,
            "nonce of the request": secrets.base_nonce,
            "exporter": secrets.exporter_secret,
            "secret of the answer": keys.secret,
            "key of the answer": keys.key,
            "base nonce of the answer": keys.nonce,
        }
        self.assertEqual([len(mark) for mark in marks.values()], [16, 12, 32, 16, 16, 12])
        self.absent(marks, "the relay's memory", memory(self.relay.pid), b"/.well-known/ohttp-gateway")
        legs = self.front.up + self.front.down + self.back.up + self.back.down
        self.absent(marks, "a leg", legs, sealed.head[-32:])

    async def test_nothing_of_a_socket(self) -> None:
        """A socket's path, cookie and answers: in no memory of the relay, on neither leg."""
        self.patch(by_hand, "SOCKET_PATH", "/ws/shop")
        hand = await self.hand()
        answer = await fetch(hand.pool, "GET", "/r/shop/keys", "relay.test", most=65_536)
        keys = KeySet.read(answer.body, hand.pins)
        for _ in range(5):
            page = by_hand.Page(hand, keys, self.request(method=b"GET"))
            await page.open()
            self.assertEqual(page.status, 101)
            await page.until(lambda page=page: page.told or page.ends, 20)  # type: ignore[misc]
            page.close()
        self.absent(MARKS, "the relay's memory", memory(self.relay.pid), b"/.well-known/l8/ws")
        for data in (self.front.up, self.front.down, self.back.up, self.back.down):
            self.absent(MARKS, "a leg", data, b"l8.noise.v1")
        self.assertIn(MARKS["path"], files(self.tunnel.home), "the backend has heard it")

    async def test_no_token_or_id_on_its_wire(self) -> None:
        """Nothing on the relay's legs names a client, a session or a tunnel: every field has a value that all have."""
        for _ in range(2):
            hand = await self.hand()
            await hand.ask(self.request(), MARKS["body"])
        self.assertEqual(self.back.up.count(b"POST /.well-known/ohttp-gateway HTTP/1.1\r\n"), 2)
        names = {
            line.split(b":")[0].lower()
            for link in self.back.links
            for head in bytes(link.up).split(b"\r\n\r\n")
            if head.startswith((b"POST", b"GET"))
            for line in head.split(b"\r\n")[1:]
        }
        self.assertLessEqual(names, {b"host", b"content-type", b"content-length", b"transfer-encoding", b"incremental"})
        down = self.front.down.lower()
        for word in (b"set-cookie", b"etag", b"x-request-id", b"traceparent", b"server-timing", b"via:"):
            self.assertNotIn(word, down)

    async def test_its_log_and_metrics_name_nobody(self) -> None:
        hand = await self.hand()
        await hand.ask(self.request())
        for text in (self.relay.program.said(), json.dumps(self.relay.ask("ohttp.stats"))):
            for word in (VISITOR, "127.1.2", "/r/shop", "ohttp-gateway"):
                self.assertNotIn(word, text)
        self.assertEqual(self.relay.ask("ohttp.stats")["exchanges"], {"answered": 1})


class GatewayTests(ViewCase):
    async def test_not_who_asks(self) -> None:
        """The client's address is nowhere behind the relay, in no spelling: on no leg, not at gateway or backend."""
        hand = await self.hand()
        told = await hand.ask(self.request(), b"")
        self.assertIn(MARKS["answer"], told.body)
        for _ in range(20):
            told = await hand.ask(self.request(), b"")
        legs = self.back.up + self.back.down
        self.assertIn(b"message/ohttp-chunked-req", legs)
        places = {
            "what the backend tells": told.body,
            "the gateway's files and log": files(self.tunnel.gateway.home),
            "the backend's log": self.tunnel.backend.said().encode(),
        }
        for text in SPELLINGS:
            if len(text) > 4:
                self.assertNotIn(text, legs)
            for where, data in places.items():
                if len(text) > 4:
                    self.assertNotIn(text, data, where)
        self.assertNotIn(VISITOR.encode(), memory(self.tunnel.gateway.pid))
        self.assertNotIn(VISITOR.encode(), memory(self.tunnel.backend.pid))
        self.assertEqual({link.peer[0] for link in self.back.links}, {"127.0.0.1"})

    async def test_two_tabs_look_alike(self) -> None:
        """What the gateway hears of two fresh clients with one request differs in `enc`, ciphertext and time only."""
        now = wall()
        seen = []
        await self.hand()  # the relay has the keys now
        for _ in range(2):
            self.back.clear()
            hand = await self.hand()
            await hand.ask(self.request(date=now), MARKS["body"])
            (link,) = (link for link in self.back.links if link.up)
            head, _, body = bytes(link.up).partition(b"\r\n\r\n")
            seen.append((head, body[:7], len(body), body))
        self.assertEqual(seen[0][:3], seen[1][:3])
        same = sum(a == b for a, b in zip(seen[0][3][7:], seen[1][3][7:], strict=True))
        self.assertLess(same, len(seen[0][3]) // 20)


class SizeTests(SynchronousTestCase):
    """Lengths are those of a few steps, and tell nothing of names."""

    def sealed(self, message: Request | Response, content: bytes) -> int:
        """Give how many bytes go out for a message."""
        key = Private.make()
        config = KeyConfig(1, key.public)
        sealer, _ = wire.seal_request(CHUNKED, config, Aead.AES_128_GCM, Private.make())
        out = Outgoing(sealer, message, length=len(content), pad=True)
        return len(out.write(content)) + len(out.finish())

    def test_a_thousand_random_messages(self) -> None:
        """Below 64 KiB there are eight lengths; above it Padme's, at most 3.2 percent more than the message."""
        random = Random(4711)
        cost = {size: 56 + 20 * ((size - 1) // 16_384) for size in (512 << step for step in range(8))}
        steps = {size + more for size, more in cost.items()}
        found = set()
        for _ in range(1000):
            size = random.randrange(1 << random.randrange(1, 18))
            fields = tuple(
                (b"x-%d" % number, random.randbytes(4).hex().encode()) for number in range(random.randrange(9))
            )
            asked = dressed(Request(b"POST", b"https", b"shop.test", b"/", fields), "https://shop.test", 1e9)
            plain = len(bhttp.write(asked, bytes(size)))
            out = self.sealed(asked, bytes(size))
            if plain <= 65_536:
                self.assertIn(out, steps)
                found.add(out)
            else:
                self.assertLessEqual(out, plain * 1.032 + 20 * (plain // 16_384 + 2) + 56)
        self.assertEqual(found, steps)

    def test_which_of_two_providers_behind_one_gateway(self) -> None:
        lengths = set()
        for authority in (b"a.test", b"a-provider-with-a-long-name.example.test"):
            asked = dressed(Request(b"GET", b"https", authority, b"/", ()), f"https://{authority.decode()}", 1e9)
            lengths.add(self.sealed(asked, b""))
        self.assertEqual(len(lengths), 1)

    def test_one_piece_costs_what_the_page_says(self) -> None:
        asked = dressed(Request(b"GET", b"https", b"a.test", b"/", ()), "https://a.test", 1e9)
        key = Private.make()
        config = KeyConfig(1, key.public)
        for media, cost in ((CHUNKED, 56), (SINGLE, 55)):
            sealer, _ = wire.seal_request(media, config, Aead.AES_128_GCM, Private.make())
            out = Outgoing(sealer, asked, length=0, pad=True)
            self.assertEqual(len(out.write(b"")) + len(out.finish()), 512 + cost)
