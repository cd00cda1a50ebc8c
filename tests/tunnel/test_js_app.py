"""An app as it is served: built and signed, from a relay's mirror, under its policy, with pins from its manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater

import layer8
from layer8.crypto.keys import NodeKey
from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel import manifest
from layer8.tunnel.integrity import AppGateway
from layer8.tunnel.manifest import App
from tests.tunnel.backend import RED
from tests.tunnel.browsers import BrowserCase
from tests.tunnel.test_js_page import COLOUR

INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>app</title><link rel="icon" href="data:,">
<meta name="l8" content='{{"session": "memory"}}'>
<script type="module" src="/l8/{version}/l8.js"></script><script src="/app.js"></script></html>
"""
WATCH = (
    "globalThis.said = '{said}'; globalThis.broken = []; "
    "addEventListener('securitypolicyviolation', (e) => broken.push(e.violatedDirective + ' ' + e.blockedURI));"
)


class JsAppTests(BrowserCase):
    skip = Chromium.absent()

    async def begin(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        await self.open(apps={"shop": self.folder})
        self.key = NodeKey.make()
        (self.folder / "index.html").write_text(INDEX.format(version=layer8.__version__))
        self.publish("one")
        await self.load()

    def publish(self, said: str, key: NodeKey | None = None) -> None:
        """Write the app's script and sign it."""
        (self.folder / "app.js").write_text(WATCH.format(said=said))
        end = self.stage.gateways["shop"]
        gateway = AppGateway((self.stage.relay,), (end.authority,), (end.identity.node_id,))
        manifest.build(self.folder, App("shop", self.stage.mirror(), {"shop": gateway}), key or self.key)

    async def load(self) -> Any:
        """Load the app anew; give what its script says."""
        if self.page is not None:
            await self.page.close()
        self.page = await self.stage.page(self.browser, self.stage.mirror())
        return await self.run_js("return globalThis.said ?? null")

    async def test_pins_of_the_manifest(self) -> None:
        """A page that says nothing of relays, gateways and keys gets its answer; nothing goes around the tunnel."""
        await self.begin()
        found = await self.run_js(
            """
            await L8.fetch("/cookies/set?a=1");
            const { cookie } = await (await L8.fetch("/cookies")).json();
            const [{ gateway, session, relay }] = (await L8.status()).tunnels;
            return [cookie, gateway, session, relay];
            """
        )
        self.assertEqual(found, [["a=1"], "shop", "memory", self.stage.relay])
        path = self.folder / ".well-known" / "l8" / "manifest.json"
        good = path.read_bytes()
        path.write_bytes(good.replace(b'"signature":"', b'"signature":"A', 1)[:-3] + good[-2:])
        await self.load()
        failed = await self.failure("L8.fetch('/echo')")
        self.assertEqual((failed["code"], failed["leg"]), ("manifest", "page"))
        path.unlink()
        await self.load()
        self.assertEqual((await self.failure("L8.fetch('/echo')"))["code"], "config")

    async def test_the_worker_under_the_policy(self) -> None:
        await self.begin()
        await self.run_js("await L8.fetch('/echo'); await L8.serviceWorker()")
        self.assertEqual(await self.load(), "one")
        found = await self.run_js(
            COLOUR
            + """
            const socket = new L8.WebSocket("/ws");
            await new Promise((done) => (socket.onopen = done));
            socket.send("hello");
            const { data } = await new Promise((done) => (socket.onmessage = done));
            socket.close();
            return [await colour("/image.png"), (await (await fetch("/echo?x")).json()).uri, data, broken];
            """
        )
        self.assertEqual(found, [[16, *RED, 255], "/echo?x", "hello", []])
        await self.careless()
        script = self.folder / "app.js"
        script.write_text(WATCH.format(said="evil"))
        self.assertEqual(await self.load(), None)
        (kept,) = await self.run_js("return L8.evidence()")
        self.assertTrue(kept["url"].endswith("/app.js"))
        self.publish("two")
        self.assertEqual(await self.load(), "two")
        # Whoever has another key publishes nothing here.
        good = self.folder.with_name("good")
        shutil.copytree(self.folder, good)
        (self.folder / ".well-known" / "l8" / "manifest.json").unlink()
        self.publish("evil", NodeKey.make())
        await self.page.goto(self.stage.mirror())
        self.assertIn("/index.html is not what", await self.run_js("return document.body.textContent"))
        shutil.rmtree(self.folder)
        shutil.move(good, self.folder)
        self.assertEqual(await self.load(), "two")
        whys = await self.run_js("return (await L8.evidence()).map(({ why, url }) => [why, new URL(url).pathname])")
        self.assertEqual([path for _, path in whys], ["/app.js", "/.well-known/l8/manifest.json", "/"])
        self.assertIn("none of the pinned keys", whys[1][0])

    async def careless(self) -> None:
        """Try every way by which a page could speak to its provider's own host: nothing arrives there."""
        backend = self.stage.gateways["shop"].backend
        backend.clear()
        await self.run_js(LEAKS, url=f"{backend.origin}/echo?direct", app=self.stage.mirror())
        await deferLater(self.stage.reactor, 0.5)
        self.assertEqual([call.uri for call in backend.calls if "direct" in call.uri], [])
        broken = set(await self.run_js("return broken.map((one) => one.split(' ')[0])"))
        self.assertLessEqual({"connect-src", "img-src", "style-src-elem", "script-src-elem", "form-action"}, broken)
        # The ear is not deaf: who is under no policy is heard.
        other = await self.browser.page(self.stage.app)
        await other.evaluate(
            f"fetch({json.dumps(backend.origin + '/echo?direct')}, {{ mode: 'no-cors' }}).then(() => 1)"
        )
        self.assertEqual(len([call for call in backend.calls if "direct" in call.uri]), 1)


LEAKS = """
const add = (name, more) => document.body.appendChild(Object.assign(document.createElement(name), more));
const tries = [
  () => fetch(url),
  () => fetch(url, { mode: "no-cors", keepalive: true }),
  () => navigator.sendBeacon(url),
  () => new WebSocket(url.replace("http", "ws")),
  () => new EventSource(url),
  () => add("a", { href: "#x", ping: url }).click(),

  () => { const x = new XMLHttpRequest(); x.open("GET", url); x.send(); },
  () => { new Image().src = url; },
  () => add("video", { src: url }),
  () => add("iframe", { src: url }),
  () => add("object", { data: url }),
  () => add("embed", { src: url }),
  () => add("script", { src: url }),
  () => add("link", { rel: "stylesheet", href: url }),
  () => add("link", { rel: "prefetch", href: url }),
  () => add("link", { rel: "preload", as: "image", href: url }),
  () => add("link", { rel: "modulepreload", href: url }),
  () => add("link", { rel: "icon", href: url }),
  () => add("link", { rel: "manifest", href: url }),
  () => new FontFace("f", `url(${url})`).load(),
  () => new Worker(url),
  () => import(url),
  () => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(`body { background: url(${url}) }`);
    document.adoptedStyleSheets = [sheet];
  },
  () => add("form", { action: url, method: "POST" }).submit(),
];
for (const one of tries) {
  try { await Promise.race([one(), new Promise((done) => setTimeout(done, 200))]); } catch {}
}
"""


class JsAppFirefoxTests(JsAppTests):
    kind = Firefox
    skip = Firefox.absent()
