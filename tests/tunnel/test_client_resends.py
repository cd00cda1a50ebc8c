"""A relay that lies: it passes a request on, and says that it has not. What changes something is never sent twice."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater

from layer8.net.http import Incoming, Server
from layer8.net.http_client import Pool, fetch
from layer8.net.site import Site
from layer8.tunnel import wire
from layer8.tunnel.client import CODES, L8Client, L8Error
from tests.tunnel.test_client import ClientCase

Lie = Callable[[Incoming, bytes], None]
"""What is answered instead, given the true answer's body."""


def status(number: int, kind: str = wire.ABOUT_BLANK, *fields: tuple[str, str]) -> Lie:
    """Answer with a problem."""

    def lie(page: Incoming, body: bytes) -> None:
        page.answer(number, [("content-type", wire.PROBLEM_TYPE), *fields], wire.problem(number, kind))

    return lie


def half(page: Incoming, body: bytes) -> None:
    page.begin(200, [("content-type", wire.CHUNKED.response)], length=len(body))
    page.write(body[: len(body) // 2])
    from twisted.internet import reactor

    deferLater(reactor, 0.02, page.abort)


def changed(page: Incoming, body: bytes) -> None:
    page.answer(200, [("content-type", wire.CHUNKED.response)], body[:40] + bytes([body[40] ^ 1]) + body[41:])


def short(page: Incoming, body: bytes) -> None:
    page.answer(200, [("content-type", wire.CHUNKED.response)], body[:-1])


def cut(page: Incoming, body: bytes) -> None:
    page.abort()


LIES: dict[str, tuple[Lie, str]] = {
    "not forwarded, 503": (status(503, wire.NOT_FORWARDED), "busy"),
    "not forwarded, 429": (status(429, wire.NOT_FORWARDED, ("retry-after", "0")), "busy"),
    "another key": (status(400, wire.OHTTP_KEY), "keys"),
    "lost": (status(502), "lost"),
    "slow": (status(504), "slow"),
    "it did not open": (status(422), "unopened"),
    "something strange": (status(418), "strange"),
    "cut": (cut, "lost"),
    "cut in the middle": (half, "cut"),
    "without its end": (short, "tampered"),
    "changed": (changed, "tampered"),
}
RESENT = ("not forwarded, 503", "not forwarded, 429", "another key")


class LyingRelayTests(ClientCase):
    async def lying(self) -> L8Client:
        """Start a relay that passes everything on and answers `self.lie`."""
        from twisted.internet import reactor as running

        reactor: Any = running
        await self.client()
        pool: Pool = Site.of(self.stage.relay).pool(reactor)
        self.lie: Lie | None = None
        self.keys: bytes | None = None

        async def answer(page: Incoming) -> None:
            body = await page.read(1 << 20)
            kind = [("content-type", page.only("content-type") or "text/plain")]
            if page.method == "GET" and self.keys is not None:
                page.answer(200, [], self.keys)
                return
            found = await fetch(pool, page.method, page.target, "relay.test", kind, body, most=1 << 20)
            if self.lie is None or page.method == "GET":
                page.answer(found.status, [("content-type", found.only("content-type") or "")], found.body)
            else:
                self.lie(page, found.body)

        def begin(page: Incoming) -> None:
            Deferred.fromCoroutine(answer(page)).addErrback(lambda why: None)

        server = Server(reactor, begin)
        port = reactor.listenTCP(0, server, interface="127.0.0.1")
        self.addCleanup(pool.abort)
        self.addCleanup(server.abort)
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        return self.another(relay=f"http://127.0.0.1:{port.getHost().port}", chance=_Quick())

    async def outcome(self, asked: Any) -> str:
        try:
            await (await asked).content()
        except L8Error as error:
            return error.code
        return "answered"

    async def test_what_changes_something_is_sent_once(self) -> None:
        client = await self.lying()
        self.assertEqual(await self.outcome(client.post("/echo", b"x")), "answered")
        for name, (lie, code) in LIES.items():
            self.lie = lie
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                before = len(self.calls)
                self.assertEqual(await self.outcome(client.request(method, "/echo", data=b"x")), code, name)
                self.assertEqual(len(self.calls) - before, 1, f"{name}: {method}")

    async def test_what_may_come_twice_is_sent_twice_and_not_three_times(self) -> None:
        client = await self.lying()
        await self.outcome(client.get("/echo"))
        for name, (lie, code) in LIES.items():
            self.lie = lie
            wanted = 2 if name in RESENT else 1
            before = len(self.calls)
            self.assertEqual(await self.outcome(client.get("/echo")), code, name)
            self.assertEqual(len(self.calls) - before, wanted, name)
            before = len(self.calls)
            named = {"Idempotency-Key": name}
            self.assertEqual(await self.outcome(client.post("/echo", b"x", headers=named)), code, name)
            self.assertEqual(len(self.calls) - before, wanted, name)

    async def test_a_stream_is_gone_once_it_was_sent(self) -> None:
        client = await self.lying()
        await self.outcome(client.get("/echo"))
        self.lie = status(503, wire.NOT_FORWARDED)

        async def pieces() -> Any:
            yield b"x"

        before = len(self.calls)
        asked = client.post("/echo", pieces(), headers={"Idempotency-Key": "1"})
        self.assertEqual(await self.outcome(asked), "busy")
        self.assertEqual(len(self.calls) - before, 1)

    async def test_any_noise(self) -> None:
        """Whatever a relay answers, it is a word of the list, and the next request goes."""
        client = await self.lying()
        await self.outcome(client.get("/echo"))
        chance = Random(8)
        kinds = (wire.CHUNKED.response, wire.SINGLE.response, wire.PROBLEM_TYPE, "text/html", "")
        found = set()
        for number in range(60):
            told = (chance.choice((200, 200, 400, 403, 429, 500, 503)), chance.choice(kinds))
            noise = chance.randbytes(chance.choice((0, 1, 15, 16, 17, 100, 5000)))

            def lie(page: Incoming, body: bytes, told: tuple[int, str] = told, noise: bytes = noise) -> None:
                page.answer(told[0], [("content-type", told[1])], body[: len(noise) // 2] + noise)

            self.lie = lie
            found.add(await self.outcome(client.post("/echo", b"%d" % number)))
        self.assertLessEqual(found, set(CODES))
        self.assertGreaterEqual(len(found), 4)
        self.lie = None
        self.assertEqual(await self.outcome(client.post("/echo", b"x")), "answered")

    async def test_noise_for_keys(self) -> None:
        client = await self.lying()
        for noise in (b"", b"{}", b"[]", b"\xff" * 100, b'{"protected": 1, "payload": "", "signature": ""}'):
            self.keys = noise
            self.assertIn(await self.outcome(client.get("/echo")), ("keys-form", "keys-signature"))
            self.assertEqual(client.state, "failed")
        self.keys = bytes(100_000)
        await self.fails("unreachable", client.connect())
        self.keys = None
        await client.connect()
        self.assertEqual(await self.outcome(client.get("/echo")), "answered")

    async def test_a_clock_that_is_wrong(self) -> None:
        """The gateway's sealed word is believed: once more with its date, for this request only."""
        await self.client()
        minutes = 0.0

        def wall() -> float:
            from datetime import UTC, datetime

            return datetime.now(UTC).timestamp() + 60 * minutes

        client = self.another(wall=wall, chance=_Quick())
        await self.outcome(client.get("/echo"))
        before = len(self.calls)
        minutes = 20.0
        self.assertEqual(await self.outcome(client.post("/echo", b"x")), "answered")
        self.assertEqual(await self.outcome(client.post("/echo", b"x")), "answered")
        self.assertEqual(len(self.calls) - before, 2)


class _Quick:
    """Waits no longer than it has to."""

    def random(self) -> float:
        return 0.0

    def uniform(self, a: float, b: float, /) -> float:
        return a

    def randrange(self, stop: int, /) -> int:
        return 0

    def sample(self, population: Any, k: int) -> list[Any]:
        return list(population)[:k]
