"""A large file goes up without being held: sealed piece by piece into what the browser keeps outside (L19)."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from layer8.testing.browser import Firefox
from tests.tunnel.backend import pattern
from tests.tunnel.browsers import BrowserCase


def digest(size: int) -> str:
    """Give the hash of what /bytes/SIZE gives."""
    whole = hashlib.sha256()
    for at in range(0, size, 1 << 20):
        whole.update(pattern(min(1 << 20, size - at), at))
    return whole.hexdigest()


class JsUploadTests(BrowserCase):
    """The page is the backend's own, so that it has a file to send."""

    size = 256 << 20
    most = 64 << 20  # bytes in memory

    async def beside(self) -> None:
        await self.open()
        for tap in (*self.stage.front, *self.stage.back.values()):
            tap.keep = False
        self.page = await self.browser.page(f"{self.stage.gateways['shop'].backend.origin}/page")
        await self.run_js("await import(src); await L8.connect(o)", src=self.stage.script, o=self.stage.connect())

    async def heap(self) -> int:
        """Give the bytes that the page holds."""
        told: dict[str, Any] = await self.page.call("Runtime.getHeapUsage")
        return int(told["usedSize"] + told["embedderHeapUsedSize"] + told["backingStorageSize"])

    async def test_upload(self) -> None:
        await self.beside()
        await self.run_js("globalThis.file = await (await fetch(url)).blob()", url=f"/bytes/{self.size}")
        before = await self.heap()
        going: Deferred[Any] = Deferred.fromCoroutine(
            self.run_js(
                """
                const seen = [];
                const onprogress = (sent, total) => seen.push([sent, total]);
                const init = { method: "POST", body: file, onprogress };
                const answer = await L8.fetch("https://shop.test/upload", init);
                return [await answer.json(), seen];
                """
            )
        )
        from twisted.internet import reactor

        most = 0
        while not going.called:
            await deferLater(reactor, 0.1)
            most = max(most, await self.heap() - before)
        told, seen = await going
        self.assertEqual((told["size"], told["sha256"]), (self.size, digest(self.size)))
        self.assertEqual(seen[-1], [self.size, self.size])
        self.assertGreater(len(seen), 100)
        self.assertEqual(seen, sorted(seen))
        self.assertLess(most, self.most)


class FirefoxJsUploadTests(JsUploadTests):
    """The same; Firefox does not tell its heap, so what its tab's process takes is looked at, which is more."""

    kind = Firefox
    skip = Firefox.absent()

    size = 128 << 20
    most = 96 << 20

    async def heap(self) -> int:
        held = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_text().replace("\0", " ").split(" ")
                if "-isForBrowser" in words and str(self.browser.pid) in words:
                    told = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                    held.append(int(told["RssAnon"].split()[0]) << 10)
        self.assertTrue(held)
        return sum(held)
