"""Both browsers against a small site on loopback: what every browser test of this package builds on."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from layer8.testing.browser import Chromium, Firefox
from layer8.testing.browser_wire import BrowserError, Wire

PAGE = b"""<!doctype html><title>Bench of trees</title><script>
console.log("hello", 7); console.warn("careful");
setTimeout(() => { throw new Error("thrown later") }, 0);
</script><p>text"""

FETCH = """(async () => {
    const body = await (await fetch("/blob")).arrayBuffer();
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", body));
    return {length: body.byteLength, hash: Array.from(hash, byte => byte.toString(16).padStart(2, "0")).join("")};
})()"""


class WireTests(SynchronousTestCase):
    """The matching of answers, errors and events, with no browser."""

    def test_gone_browser_fails_every_waiter(self) -> None:
        sent: list[bytes] = []

        class Socket:
            def sendMessage(self, payload: bytes) -> None:
                sent.append(payload)

        wire = Wire(Clock())
        wire._socket = Socket()
        first = Deferred.fromCoroutine(wire.call("A.one", x=1))
        second = Deferred.fromCoroutine(wire.call("B.two"))
        self.assertEqual(len(sent), 2)
        wire.received(b'{"id": 2, "error": "no such frame", "message": "gone"}')
        self.assertIn("no such frame: gone", str(self.failureResultOf(second, BrowserError).value))
        wire.lost("reset")
        self.failureResultOf(first, BrowserError)
        self.failureResultOf(wire.opened, BrowserError)
        self.failureResultOf(Deferred.fromCoroutine(wire.call("C.three")), BrowserError)


class ChromiumTests(TestCase):
    """Chromium by DevTools."""

    browser: Any = Chromium
    skip = Chromium.absent()
    timeout = 120

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.blob = os.urandom(1 << 20)
        root = Resource()
        root.putChild(b"", Data(PAGE, "text/html"))
        root.putChild(b"blob", Data(self.blob, "application/octet-stream"))
        site: Any = Site(root)
        port = self.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        address: Any = port.getHost()
        self.port = address.port
        self.url = f"http://localhost:{self.port}/"

    async def start(self, **options: Any) -> Any:
        browser = await self.browser.start(self.reactor, **options)
        self.addCleanup(browser.close)
        return browser

    async def test_page(self) -> None:
        """A page is loaded, its scripts reach the site and SubtleCrypto, and the bytes are the served ones."""
        browser = await self.start()
        page = await browser.page(self.url)
        self.assertEqual(await page.evaluate("document.title"), "Bench of trees")
        want = {"length": len(self.blob), "hash": hashlib.sha256(self.blob).hexdigest()}
        self.assertEqual(await page.evaluate(FETCH), want)
        self.assertIsNone(await page.evaluate("undefined"))
        picture = Path(self.mktemp())
        await page.screenshot(picture)
        data = picture.read_bytes()
        self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
        self.assertGreater(min(struct.unpack(">II", data[16:24])), 100)
        for _ in range(100):
            if len(page.console) >= 3:
                break
            await deferLater(self.reactor, 0.05)
        said = [(message.level, message.text) for message in page.console]
        self.assertEqual(said[0], ("log", "hello 7"))
        self.assertIn(said[1][0], ("warn", "warning"))
        self.assertTrue(any(level == "error" and "thrown later" in text for level, text in said), said)

    async def test_names_and_errors(self) -> None:
        """A mapped name reaches this machine, any other fails; a throwing script is an error with its text."""
        browser = await self.start(hosts={"shop.test": "127.0.0.1"})
        page = await browser.page(f"http://shop.test:{self.port}/")
        self.assertEqual(await page.evaluate("location.host"), f"shop.test:{self.port}")
        with self.assertRaises(BrowserError):
            await page.goto(f"http://elsewhere.test:{self.port}/")
        await page.goto(self.url)
        with self.assertRaisesRegex(BrowserError, "on purpose"):
            await page.evaluate("Promise.reject(new Error('on purpose'))")
        with self.assertRaises(BrowserError):
            await page.evaluate("this is no JavaScript")
        await page.close()

    async def test_leaves_nothing(self) -> None:
        """After close the process and its profile are gone."""
        before = set(Path(tempfile.gettempdir()).glob("layer8-*"))
        browser = await self.start()
        pid = browser.pid
        self.assertTrue(Path(f"/proc/{pid}").exists())
        profile = browser._running.process.profile
        self.assertNotIn(profile, before)
        await browser.close()
        self.assertFalse(Path(f"/proc/{pid}").exists())
        self.assertFalse(profile.exists())
        with self.assertRaises(BrowserError):
            await browser.page(self.url)


class FirefoxTests(ChromiumTests):
    """The same by WebDriver BiDi."""

    browser = Firefox
    skip = Firefox.absent()
