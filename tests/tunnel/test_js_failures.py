"""Everything that may go wrong has its own code in the page and its leg, and is sent again only where it may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import evolve

from layer8.crypto.keys import NodeKey
from layer8.testing.browser import Firefox
from layer8.tunnel import wire
from layer8.tunnel.bhttp import Response
from layer8.tunnel.keys import Flaw, GatewayKey
from layer8.tunnel.relay_session import EXPOSED
from tests.tunnel.browsers import BrowserCase
from tests.tunnel.crooked import Crooked, Outer, wall

How = Callable[[bytes, Outer], Outer | None]


def once(first: How) -> How:
    """Be crooked the first time only."""
    left = [first]
    return lambda request, answer: left.pop()(request, answer) if left else answer


def say(status: int, kind: str = "about:blank", **more: Any) -> How:
    return lambda request, answer: Outer.of(status, kind, **more)


def changed(request: bytes, answer: Outer) -> Outer:
    return evolve(answer, body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))


def short(request: bytes, answer: Outer) -> Outer:
    return evolve(answer, body=answer.body[:-20])


def cut(request: bytes, answer: Outer) -> Outer:
    return evolve(answer, body=answer.body[:-20], cut=True)


OUTER: dict[str, tuple[How, str, str, int]] = {
    # name: what the relay does, code, leg, requests that a GET is sent in
    "400": (say(400), "framing", "gateway", 1),
    "404": (say(404), "no-gateway", "relay", 1),
    "408": (say(408), "slow", "relay", 1),
    "413": (say(413), "too-large", "gateway", 1),
    "415": (say(415), "media", "gateway", 1),
    "422": (say(422), "unopened", "gateway", 1),
    "429": (say(429, wire.NOT_FORWARDED), "busy", "relay", 2),
    "429 that was forwarded": (say(429), "busy", "relay", 1),
    "503": (say(503, wire.NOT_FORWARDED), "busy", "relay", 2),
    "502": (say(502), "lost", "gateway", 1),
    "504": (say(504), "slow", "gateway", 1),
    "500": (say(500), "strange", "relay", 1),
    "a redirect": (say(302, fields=(("location", "/elsewhere"),)), "lost", "relay", 1),
    "another type": (lambda request, answer: evolve(answer, kind="text/html"), "media", "relay", 1),
    "a changed answer": (changed, "tampered", "relay", 1),
    "an answer without its end": (short, "tampered", "relay", 1),
    "a cut answer": (cut, "cut", "relay", 1),
    "no answer": (lambda request, answer: evolve(answer, body=b""), "cut", "relay", 1),
    "a nonce": (lambda request, answer: evolve(answer, body=answer.body[:16]), "cut", "relay", 1),
    "garbage": (lambda request, answer: evolve(answer, body=b"\x05garbage" * 100), "tampered", "relay", 1),
}


class CrookedCase(BrowserCase):
    """A page, and relays that a test tells what to do."""

    def relay(self, **more: Any) -> Crooked:
        from twisted.internet import reactor

        crooked = Crooked(reactor, **more)
        crooked.listen()
        self.addCleanup(crooked.close)
        return crooked

    async def connect(self, crooked: Crooked, **more: Any) -> None:
        await self.run_js("await L8.connect(options)", options=crooked.connect(**more))


class JsFailureTests(CrookedCase):
    """Failures."""

    async def test_answers(self) -> None:
        """What a relay may answer, and a gateway in the clear; POST is never sent twice."""
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        seen = []
        for name, (how, code, leg, times) in OUTER.items():
            crooked.how = how
            for method, most in (("GET", times), ("POST", 1)):
                crooked.posts.clear()
                crooked.calls.clear()
                expression = f"L8.fetch('/x', {{ method: '{method}' }}).then((answer) => answer.text())"
                said = await self.failure(expression)
                seen.append(code)
                self.assertEqual((said["name"], said["code"], said["leg"]), ("L8Error", code, leg), name)
                # Sealed anew each time; after 408 and cuts a browser may send the very same bytes again by itself.
                self.assertEqual(len({post[7:39] for post in crooked.posts}), most, f"{method} {name}")
                self.assertLessEqual(sum(call.method == "POST" for call in crooked.calls), 1)
                self.assertTrue(said["hint"])
        crooked.how = lambda request, answer: answer
        self.assertEqual(await self.run_js("return (await L8.fetch('/x')).status"), 200)
        self.assertGreaterEqual(len(set(seen)), 11)

    async def test_sent_again(self) -> None:
        """Once: what is safe, what has an Idempotency-Key, and what the gateway itself asks for."""
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        get, post = (
            "return (await L8.fetch('/x')).status",
            "return (await L8.fetch('/x', { method: 'POST', body: 'b' })).status",
        )
        keyed = (
            "return (await L8.fetch('/x', { method: 'POST', body: 'b', headers: { 'Idempotency-Key': '1' } })).status"
        )
        crooked.how = once(say(503, wire.NOT_FORWARDED, fields=(("retry-after", "1"), EXPOSED)))
        began = wall()
        self.assertEqual(await self.run_js(get), 200)
        self.assertGreater(wall() - began, 1)
        self.assertEqual(len(crooked.posts), 2)
        crooked.how = once(say(429, wire.NOT_FORWARDED))
        self.assertEqual(await self.run_js(keyed), 200)
        crooked.posts.clear()
        crooked.ahead = 1000.0  # the gateway asks under seal for another date: that is no lie of the relay's
        crooked.how = lambda request, answer: answer
        self.assertEqual(await self.run_js(post), 200)
        self.assertEqual(len(crooked.posts), 2)
        dates = [dict(call.fields)[b"date"] for call in crooked.calls]
        self.assertNotEqual(dates[-1], dates[0])
        self.assertEqual(await self.run_js(get), 200)  # for that request only
        self.assertEqual(len(crooked.posts), 4)

        def later(request: bytes, answer: Outer) -> Outer:
            crooked.ahead += 5000.0
            return answer

        crooked.how = later
        said = await self.failure("L8.fetch('/x')")
        self.assertEqual((said["code"], said["leg"]), ("date", "gateway"))

    async def test_a_lying_relay(self) -> None:
        """It has forwarded, and says that it has not: what changes something arrives once."""
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        for status in (429, 503):
            crooked.how = say(status, wire.NOT_FORWARDED)
            for method, most in (("POST", 1), ("PUT", 1), ("DELETE", 1), ("PATCH", 1), ("GET", 2)):
                crooked.calls.clear()
                said = await self.failure(f"L8.fetch('/x', {{ method: '{method}' }})")
                self.assertEqual(said["code"], "busy")
                self.assertEqual(len(crooked.calls), most, method)
        crooked.how = lambda request, answer: answer
        await self.run_js("await L8.fetch('/x', { method: 'POST' })")
        first = crooked.posts[-1]
        crooked.how = lambda request, answer: crooked.serve(wire.CHUNKED, first)  # the same message twice
        said = await self.failure("L8.fetch('/x', { method: 'POST' })")
        self.assertEqual(said["code"], "tampered")  # the answer to another request

    async def test_repeated(self) -> None:
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        crooked.how = lambda request, answer: crooked.serve(wire.CHUNKED, request)
        said = await self.failure("L8.fetch('/x', { method: 'POST' })")
        self.assertEqual((said["code"], said["leg"], said["retryable"]), ("repeated", "relay", False))
        self.assertEqual(len(crooked.calls), 1)

    async def test_problems_of_the_backend(self) -> None:
        """A backend's own 400 and 425 are answers like any other."""
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        problem = (b"content-type", wire.PROBLEM_TYPE.encode())
        for status, body in (
            (400, b'{"type": "about:blank"}'),
            (400, b"x" * 5000),
            (400, b"{"),
            (425, b'{"type": "urn:x"}'),
            (400, b""),
        ):
            crooked.answer = lambda asked, status=status, body=body: (Response(status, (problem,)), body)
            found = await self.run_js("const a = await L8.fetch('/x'); return [a.status, await a.text()]")
            self.assertEqual(found, [status, body.decode()])

    async def test_keys(self) -> None:
        """What a relay may try with key sets: refused, the tunnel has failed, and no request is sent (section 13)."""
        await self.open()
        crooked = self.relay()
        right = crooked.keys()
        older = GatewayKey.make(crooked.key.epoch - 1).key_set("shop", ["shop.test"])
        other = GatewayKey.make(crooked.key.epoch).key_set("shop", ["shop.test"])
        signed = right.sign(crooked.identity)
        told = json.loads(signed)
        twice = signed.replace(b'{"protected"', b'{"payload":"x","protected"', 1)
        tries = {
            "keys-signature": [
                right.sign(NodeKey.make()),
                json.dumps({**told, "payload": told["payload"][:-2] + "AA"}).encode(),
            ],
            "keys-gateway": [evolve(right, gateway="bank").sign(crooked.identity)],
            "keys-time": [evolve(right, not_before=1, not_after=2).sign(crooked.identity)],
            "keys-form": [b"", b"{}", b"<html>", twice, b"x" * 70_000, b'"' * 65_000, signed[:-1], b"[1]", b"null"],
        }
        codes = set()
        for code, documents in tries.items():
            for document in documents:
                crooked.document = document
                said = await self.failure("L8.connect(options)", options=crooked.connect())
                self.assertEqual((said["code"], said["leg"]), (code, "relay"), document[:80])
                again = await self.failure("L8.fetch('https://shop.test/x')")
                self.assertEqual(again["code"], code)
                states = await self.run_js("return (await L8.status()).tunnels.map((one) => [one.state, one.error])")
                self.assertEqual(states, [["failed", code]])
                codes.add(code)
        crooked.document = None
        await self.connect(crooked)  # leaves it
        self.assertEqual(await self.run_js("return (await L8.fetch('https://shop.test/x')).status"), 200)
        # An epoch that has been seen is remembered beyond the page.
        crooked.document = older.sign(crooked.identity)
        await self.run_js("const [t] = [await L8.connect(options)]; await t.close()", options=crooked.connect())
        said = await self.failure("L8.connect(options)", options=crooked.connect())
        self.assertEqual(said["code"], "keys-epoch")
        second = self.relay(identity=crooked.identity, key=crooked.key, document=other.sign(crooked.identity))
        crooked.document = None
        said = await self.failure("L8.connect(options)", options=crooked.connect(relay=[crooked.relay, second.relay]))
        self.assertEqual(said["code"], "keys-different")
        self.assertEqual(len(crooked.posts) + len(second.posts), 1)
        flaws = {f"keys-{flaw.value}" for flaw in Flaw}
        self.assertEqual(codes | {"keys-epoch", "keys-different"}, flaws)

    async def test_the_key_has_changed(self) -> None:
        """A gateway that does not know the key any more: newer ones are looked for, and what is safe is sent again."""
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        old, crooked.document = crooked.key, crooked.keys().sign(crooked.identity)
        crooked.key = GatewayKey.make(old.epoch + 1)  # an emergency; the relay's copy is the old one
        for method in ("GET", "POST"):
            said = await self.failure(f"L8.fetch('/x', {{ method: '{method}' }})")
            self.assertEqual((said["code"], said["leg"], said["retryable"]), ("keys", "gateway", True))
        self.assertEqual((len(crooked.posts), crooked.looks), (2, 2))  # it is believed every ten minutes
        await self.run_js(
            "const [t] = [await L8.connect(options)]; await t.close(); localStorage.clear()", options=crooked.connect()
        )
        crooked.key = old
        await self.connect(crooked)
        crooked.document, crooked.key = None, GatewayKey.make(old.epoch - 1)
        crooked.key = evolve(old, ohttp=GatewayKey.make(0).ohttp, epoch=old.epoch)
        said = await self.failure("L8.fetch('/x')")
        self.assertEqual(said["code"], "unopened")  # the same id, another key

    async def test_no_relay(self) -> None:
        """A relay is away: `never` fails, `direct` goes around it with a warning, but for what may have arrived."""
        await self.open()
        backend = self.stage.gateways["shop"].backend
        crooked = self.relay(authority=f"http://127.0.0.1:{backend.port}")
        await crooked.close()
        said = await self.failure("L8.connect(options)", options=crooked.connect())
        self.assertEqual((said["code"], said["leg"], said["retryable"]), ("unreachable", "relay", True))
        options = crooked.connect(fallback="direct", authority=crooked.authority)
        said = await self.failure("L8.connect(options)", options=options)
        self.assertEqual(said["code"], "unreachable")
        self.stage.gateways["shop"].backend.resource.isLeaf = True
        get = "L8.fetch('/echo').then((answer) => answer.status, (error) => error.code ?? error.name)"
        found = await self.run_js(f"return [await {get}, (await L8.status()).tunnels[0].direct]")
        self.assertEqual(found[1], 1)
        self.assertEqual([one.uri for one in backend.calls], ["/echo"])
        self.assertTrue([one for one in self.page.console if "directly" in one.text])
        crooked.listen()
        await self.connect(crooked, fallback="direct", authority=crooked.authority)
        self.assertEqual(await self.run_js(f"return {get}"), 200)
        await crooked.close()
        backend.clear()
        said = await self.failure("L8.fetch('/echo', { method: 'POST' })")
        self.assertEqual(said["code"], "lost")
        self.assertEqual(backend.calls, [])

    async def test_several_relays(self) -> None:
        """One is kept; when it fails another takes over."""
        await self.open()
        one = self.relay()
        two = self.relay(identity=one.identity, key=one.key)
        await self.connect(one, relay=[one.relay, two.relay])
        self.assertEqual((one.looks, two.looks), (1, 1))
        for _ in range(5):
            await self.run_js("await (await L8.fetch('/x')).text()")
        first, other = (one, two) if one.posts else (two, one)
        self.assertEqual((len(first.posts), len(other.posts)), (5, 0))
        await first.close()
        self.assertEqual(await self.run_js("return (await L8.fetch('/x')).status"), 200)
        self.assertEqual(await self.run_js("return (await L8.fetch('/x', { method: 'POST' })).status"), 200)
        self.assertEqual(len(other.calls), 2)

    async def test_silence(self) -> None:
        await self.open()
        crooked = self.relay()
        await self.connect(crooked, timeout=1500)
        crooked.how = lambda request, answer: None
        said = await self.failure("L8.fetch('/x')")
        self.assertEqual((said["code"], said["leg"]), ("slow", "relay"))

    async def test_one_piece(self) -> None:
        """A gateway that takes messages of one piece only gets those, for every request."""
        await self.open()
        crooked = self.relay(chunked=False)
        await self.connect(crooked)
        take = (
            "const a = await L8.fetch('/x', { method: 'POST', body: new Uint8Array(n) }); return (await a.json()).size"
        )
        for size in (0, 1000, 500_000):
            self.assertEqual(await self.run_js(take, n=size), size)
        said = await self.failure("L8.fetch('/x', { method: 'POST', body: new Uint8Array(2 ** 20) })")
        self.assertEqual((said["code"], said["leg"]), ("too-large", "page"))

    async def test_redirects(self) -> None:
        """Followed within what the gateway answers for, and no further."""
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        for location in (
            b"https://other.test/",
            b"http://shop.test/",
            b"//other.test/x",
            b"javascript:1",
            b"https://u:p@shop.test/",
        ):
            crooked.calls.clear()
            crooked.answer = lambda asked, location=location: (Response(302, ((b"location", location),)), b"")
            said = await self.failure("L8.fetch('/x')")
            self.assertEqual((said["code"], said["leg"]), ("redirect", "backend"), location)
            self.assertEqual(len(crooked.calls), 1)
        found = await self.run_js(
            "const a = await L8.fetch('/x', { redirect: 'manual' }); return [a.status, a.headers.get('location')]"
        )
        self.assertEqual(found, [302, "https://u:p@shop.test/"])

    async def test_closed(self) -> None:
        await self.open()
        crooked = self.relay()
        crooked.how = lambda request, answer: None
        found = await self.run_js(
            """
            const tunnel = await L8.connect(options);
            const states = [tunnel.state];
            tunnel.addEventListener("statechange", () => states.push(tunnel.state));
            const waiting = tunnel.fetch("/x").catch((error) => error.code);
            await new Promise((done) => setTimeout(done, 100));
            await tunnel.close();
            await tunnel.close();
            const after = await tunnel.fetch("/x").catch((error) => error.code);
            const last = await L8.fetch("/x").catch((error) => error.code);
            return [await waiting, after, states, (await L8.status()).tunnels, last];
            """,
            options=crooked.connect(authority="shop.test"),
        )
        self.assertEqual(found, ["closed", "closed", ["ready", "closed"], [], "config"])

    async def test_without_a_secure_context(self) -> None:
        """On a page of plain http there is no WebCrypto, and the failure says so."""
        await self.open()
        src = await self.run_js("return document.querySelector('script').src")
        backend = self.stage.gateways["shop"].backend
        self.page = await self.browser.page(f"http://plain.test:{backend.port}/page")
        await self.run_js("await import(src)", src=src)
        said = await self.failure("L8.connect(options)", options=self.stage.connect())
        self.assertEqual((said["code"], said["leg"]), ("unsupported", "page"))

    def hosts(self) -> dict[str, str]:
        return {**super().hosts(), "plain.test": "127.0.0.1"}


class FirefoxJsFailureTests(JsFailureTests):
    """The same."""

    kind = Firefox
    skip = Firefox.absent()
