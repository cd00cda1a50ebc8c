"""Chromium and Firefox as visitors: by Host over HTTP, by the SNI of their real ClientHellos over TLS."""

import hashlib
from collections.abc import Callable
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.trial.unittest import TestCase

from layer8.testing.browser import Chromium, Firefox, Page
from tests.interop.daemons import missing
from tests.interop.stage import MIB, WAYS, pair, pattern, sha256, stage

PAGE = """<!doctype html><title>layer8 {kind}</title><script src="/script.js"></script><h1>it loads</h1>"""
SCRIPT = """
async function sum(bytes) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return [...digest].map(byte => byte.toString(16).padStart(2, "0")).join("");
}
async function fetched(path) {
    const answer = await fetch(path, {cache: "no-store"});
    const bytes = await answer.arrayBuffer();
    return [answer.status, bytes.byteLength, await sum(bytes)];
}
async function uploaded(path, size) {
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
    const answer = await fetch(path, {method: "PUT", body: bytes});
    return [answer.status, await sum(bytes)];
}
function echoed(url, size) {
    return new Promise((resolve, reject) => {
        const socket = new WebSocket(url);
        const text = "x".repeat(size);
        socket.onopen = () => { socket.send("first"); socket.send(text); };
        const heard = [];
        socket.onmessage = event => {
            heard.push(event.data);
            if (heard.length == 2) socket.close(1000, "thanks");
        };
        socket.onclose = event => resolve([heard[0], heard[1] === text, event.code, event.wasClean]);
        socket.onerror = () => reject(new Error("no WebSocket"));
    });
}
"""
SIZE = 10 * MIB


class Echo(WebSocketServerProtocol):
    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


async def chromium(hosts: list[str], origins: list[str]) -> Chromium:
    """Start Chromium; `origins` may use crypto.subtle though they are plain HTTP."""
    from twisted.internet import reactor

    return await Chromium.start(
        reactor,
        hosts=dict.fromkeys(hosts, "127.0.0.1"),
        arguments=[f"--unsafely-treat-insecure-origin-as-secure={','.join(origins)}"],
    )


async def firefox(hosts: list[str], origins: list[str]) -> Firefox:
    """Start Firefox in the same way."""
    from twisted.internet import reactor

    return await Firefox.start(
        reactor, hosts=dict.fromkeys(hosts, "127.0.0.1"), preferences={"dom.securecontext.allowlist": ",".join(hosts)}
    )


class BrowserTests(TestCase):
    skip = missing(nginx="nginx")
    timeout = 180

    async def everything(self, start: Callable[[list[str], list[str]], Any]) -> None:
        here = stage()
        for name, text in (("page.html", PAGE), ("script.js", SCRIPT)):
            (here.nginx.files / name).write_text(text)
        expected = pattern(here.nginx.files / "10m", SIZE)
        echo, _ = pair(self, plain=self.echo())
        hosts = [f"{kind}.{way}.test" for way in WAYS for kind in ("web", "tls")]
        origins = [f"http://web.{way}.test:{here.server.http}" for way in WAYS]
        async with await start(hosts, origins) as browser:
            page = await browser.page()
            for way in WAYS:
                for origin in (
                    f"http://web.{way}.test:{here.server.http}",
                    f"https://tls.{way}.test:{here.server.https}",
                ):
                    await self.one_origin(page, origin, expected)
                await page.goto(f"http://web.{way}.test:{here.server.http}/page.html")
                got = await page.evaluate(f"echoed('ws://web.{way}.test:{echo.http}/', {MIB})")
                self.assertEqual(got, ["first", True, 1000, True])
        self.assertEqual([*here.server.defects(), *here.agent.defects(), *echo.defects()], [])

    async def one_origin(self, page: Page, origin: str, expected: str) -> None:
        uploads = stage().nginx.uploads
        await page.goto(f"{origin}/page.html")
        self.assertEqual(await page.evaluate("document.querySelector('h1').textContent"), "it loads")
        self.assertEqual(await page.evaluate("fetched('/10m')"), [200, SIZE, expected])
        six = await page.evaluate("Promise.all([1, 2, 3, 4, 5, 6].map(_ => fetched('/1m')))")
        self.assertEqual(six, [[200, MIB, stage().sums["1m"]]] * 6)
        status, digest = await page.evaluate(f"uploaded('/up/browser', {SIZE})")
        arrived = uploads / "browser"
        self.assertEqual((status, digest), (201, sha256(arrived)))
        self.assertEqual(arrived.stat().st_size, SIZE)
        self.assertNotEqual(digest, hashlib.sha256(bytes(SIZE)).hexdigest())
        arrived.unlink()

    def echo(self) -> int:
        """Listen for WebSockets, and send back what comes."""
        from twisted.internet import reactor

        loop: Any = reactor
        factory = WebSocketServerFactory()
        factory.protocol = Echo
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def test_chromium(self) -> None:
        await self.everything(chromium)

    test_chromium.skip = Chromium.absent()  # type: ignore[attr-defined]

    async def test_firefox(self) -> None:
        await self.everything(firefox)

    test_firefox.skip = Firefox.absent()  # type: ignore[attr-defined]
