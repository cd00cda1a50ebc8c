"""The service worker in Chromium and Firefox: plain URLs through the tunnel, and files that are not what was signed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater

from layer8.crypto.keys import NodeKey
from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel.integrity import AppGateway, File, Manifest, csp
from tests.tunnel.backend import RED, pattern
from tests.tunnel.browsers import BrowserCase
from tests.tunnel.test_js_page import COLOUR

LOOK = """
globalThis.styled = async (href) => {
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href });
  const loaded = new Promise((done, fail) => Object.assign(link, { onload: done, onerror: fail }));
  document.head.append(link);
  await loaded;
  const p = document.body.appendChild(document.createElement("p"));
  return getComputedStyle(p).color;
};
globalThis.scripted = (src) => new Promise((done) => {
  const ends = { onload: () => done("ran"), onerror: () => done("refused") };
  const script = Object.assign(document.createElement("script"), { src, ...ends });
  document.head.append(script);
});
"""
INDEX = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><title>app</title>'
    b'<script type="module" src="/l8/0/l8.js"></script><script src="/app.js"></script><p>app</p></html>'
)
READY = "new Promise(r => { const t = setInterval(() => { if (globalThis.L8) { clearInterval(t); r(true) } }, 5) })"


class Publisher:
    """Signs an app, version after version."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.key = NodeKey.make()
        self.last = b""
        self.version = 0

    def manifest(self, **more: Any) -> Manifest:
        files = {path: File.of(data) for path, (_, data) in self.stage.app_files.items() if "/." not in path}
        files["/index.html"] = files.pop("/")
        end = self.stage.gateways["shop"]
        told: dict[str, Any] = {
            "app": "app",
            "publisher": self.key.node_id,
            "version": self.version + 1,
            "files": files,
            "csp": csp([self.stage.relay]),
            "gateways": {"shop": AppGateway(tuple(self.stage.relays), (end.authority,), (end.identity.node_id,))},
            "prev": hashlib.sha256(self.last).digest() if self.last else b"",
        }
        return Manifest(**(told | more))

    def publish(self, key: NodeKey | None = None, **more: Any) -> None:
        """Serve what there is with a manifest; what is not honest does not count as the last."""
        made = self.manifest(**more)
        data = made.sign(key or self.key)
        self.stage.app_files["/.well-known/l8/manifest.json"] = ("application/jose+json", data)
        if not more or "next" in more:
            self.last, self.version = data, made.version
            self.stage.app_files[f"/.well-known/l8/manifests/{made.version}.json"] = ("application/jose+json", data)

    def write(self, text: str) -> None:
        """Change the app's script."""
        self.stage.app_files["/app.js"] = ("text/javascript", f"globalThis.said = {json.dumps(text)};".encode())


class JsWorkerTests(BrowserCase):
    skip = Chromium.absent()

    async def test_plain_urls(self) -> None:
        await self.open()
        backend = self.stage.gateways["shop"].backend
        paths = ["/image.png", "/style.css", "/page", "/script.js", "/echo", "/bytes/", "/redirect/", "/status/"]
        await self.run_js(
            LOOK + "await L8.connect(o); globalThis.r = await L8.serviceWorker({ paths });",
            o=self.stage.connect(),
            paths=paths,
        )
        self.assertEqual(await self.run_js(COLOUR + "return colour('/image.png')"), [16, *RED, 255])
        wide = "const i = new Image(); i.src = 'https://shop.test/image.png?2'; await i.decode(); return i.naturalWidth"
        self.assertEqual(await self.run_js(wide), 16)

        self.assertEqual(await self.run_js("return styled('/style.css')"), "rgb(208, 48, 80)")
        self.assertEqual(
            await self.run_js("return [await scripted('/script.js'), globalThis.ran ?? null]"), ["refused", None]
        )
        told = await self.run_js(
            """
            const answer = await fetch("/echo?q=1", { method: "POST", body: "note", headers: { "x-mine": "1" } });
            const part = await fetch("/bytes/1000", { headers: { range: "bytes=8-15" } });
            const bytes = [...new Uint8Array(await part.arrayBuffer())];
            return [await answer.json(), part.status, bytes, (await fetch("/other")).status];
            """
        )
        self.assertEqual((told[0]["method"], told[0]["uri"], told[0]["size"]), ("POST", "/echo?q=1", 4))
        self.assertEqual((told[1], told[2], told[3]), (206, [0, 0, 0, 0, 0, 0, 0, 1], 404))
        for call in backend.calls:
            names = {name for name, _ in call.fields}
            self.assertEqual({name for name in names if name.startswith(("sec-", "upgrade", "referer", "dnt"))}, set())
            self.assertEqual((call.all("user-agent"), call.all("accept-language")), (["L8"], []))
        self.assertEqual(
            next(call for call in backend.calls if call.uri == "/image.png").all("accept"), ["image/*,*/*;q=0.8"]
        )
        # Navigation, and a page of the backend's that can do nothing in the app's origin.
        page = await self.browser.page(self.stage.app + "page")
        self.assertEqual(await page.evaluate("document.querySelector('#p').textContent"), "page")
        await page.goto(self.stage.app + "redirect/2")
        self.assertEqual(await page.evaluate("location.pathname"), "/echo")
        backend.resource._evil = evil  # type: ignore[attr-defined]
        await self.run_js("await L8.serviceWorker({ paths: [...paths, '/evil'] })", paths=paths)
        await page.goto(self.stage.app + "evil")
        self.assertEqual(await page.evaluate("[document.title, globalThis.ran ?? null]"), ["evil", None])
        await page.goto(self.stage.app + "status/404")
        self.assertEqual(await page.evaluate("document.body.textContent"), "status 404\n")
        for end in self.stage.front:
            self.assertNotIn(b"/image.png", end.up)

    async def test_forms_and_downloads(self) -> None:
        await self.open()
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        backend = self.stage.gateways["shop"].backend
        backend.resource._saved = saved  # type: ignore[attr-defined]
        paths = ["/redirect-to", "/page", "/saved", "/cookies"]
        await self.run_js(
            "await L8.connect(o); await L8.serviceWorker({ paths });",
            o=self.stage.connect(session="persistent"),
            paths=paths,
        )
        # One jar for page and worker, if it is kept where both find it.
        cookies = await self.run_js(
            """
            await L8.fetch("/cookies/set?a=page");
            await fetch("/cookies/set?b=worker");
            const both = [await fetch("/cookies"), await L8.fetch("/cookies")];
            return Promise.all(both.map(async (answer) => (await answer.json()).cookie));
            """
        )
        self.assertEqual(cookies, [["a=page; b=worker"]] * 2)
        await self.downloads(folder)
        await self.run_js(
            "const link = Object.assign(document.createElement('a'), { href: '/saved' });"
            "document.body.appendChild(link).click()"
        )
        while not (found := [path for path in folder.iterdir() if path.name == "notes.bin"]):
            await deferLater(self.stage.reactor, 0.05)
        while found[0].stat().st_size < 100_000:
            await deferLater(self.stage.reactor, 0.05)
        self.assertEqual(found[0].read_bytes(), pattern(100_000))
        # A form is sent, and its answer leads on to a page with its own address.
        await self.run_js(
            """
            const action = "/redirect-to?url=/page&status=303";
            const form = Object.assign(document.createElement("form"), { method: "POST", action });
            form.append(Object.assign(document.createElement("input"), { name: "note", value: "é" }));
            document.body.append(form);
            setTimeout(() => form.submit());
            """
        )
        while not await self.page.evaluate("location.pathname === '/page' && document.readyState === 'complete'"):
            await deferLater(self.stage.reactor, 0.05)
        self.assertEqual(await self.page.evaluate("document.querySelector('#p').textContent"), "page")
        (call,) = [call for call in backend.calls if call.method == "POST"]
        self.assertEqual(call.body, b"note=%C3%A9")
        self.assertEqual(call.all("content-type"), ["application/x-www-form-urlencoded"])

    async def downloads(self, folder: Path) -> None:
        """Let the browser put downloads into a folder."""
        await self.browser.wire.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    async def test_wrong_words(self) -> None:
        await self.open()
        for wrong in ("{scope: 1}", "{paths: [1]}", "{publisher: {}}"):
            self.assertEqual((await self.failure(f"L8.serviceWorker({wrong})"))["code"], "argument", wrong)
        self.assertEqual((await self.failure("L8.serviceWorker({scope: 'https://other.test/'})"))["code"], "no-worker")
        self.assertEqual(await self.run_js("return L8.evidence()"), [])

    async def test_an_app(self) -> None:
        """What its publisher signs is served, later versions too; everything else is stopped, and kept as evidence."""
        await self.open()
        files = self.stage.app_files
        files.pop("/probe.js")
        files["/"] = ("text/html", INDEX)
        files["/data.json"] = ("text/html", b"{}")
        shop = Publisher(self.stage)
        shop.write("one")
        shop.publish()
        await self.load()
        await self.run_js("await L8.connect(o); await L8.serviceWorker()", o=self.stage.connect())
        self.assertEqual(await self.load(), ["one", []])
        # Types go by names, the policy is the manifest's, and what is not listed is the backend's.
        found = await self.run_js(
            """
            const own = await fetch("/data.json");
            const head = await fetch("/data.json?x", { method: "HEAD" });
            const theirs = await fetch("/echo?app");
            const policy = own.headers.get("content-security-policy");
            const texts = [await own.text(), await head.text()];
            return [own.headers.get("content-type"), policy, (await theirs.json()).uri, ...texts];
            """
        )
        self.assertEqual(found, ["application/json", csp([self.stage.relay]), "/echo?app", "{}", ""])
        # A file that was changed, and a worker that has been ended in between: it knows its manifest still.
        await self.end_worker()
        shop.write("evil")
        said, kept = await self.load()
        self.assertEqual((said, len(kept)), (None, 1))
        self.assertEqual((kept[0]["url"], kept[0]["manifests"][1]), (f"{self.stage.app}app.js", None))
        self.assertEqual(kept[0]["manifests"][0].encode(), shop.last)
        self.assertIn("signed", kept[0]["why"])
        # The same, in a manifest that somebody else has signed; an older one; one that follows another.
        other = NodeKey.make()
        shop.publish(key=other, publisher=other.node_id, version=2)
        self.assertEqual((await self.load())[0], None)
        shop.publish(prev=bytes(32), version=2)
        self.assertEqual((await self.load())[0], None)
        shop.publish(version=1)
        self.assertEqual((await self.load())[0], None)
        shop.publish(version=2, app="mall")
        said, kept = await self.load()
        self.assertEqual(said, None)
        whys = {one["why"] for one in kept if one["manifests"][1]}
        self.assertEqual(len(whys), 4, whys)
        # A later version, and one after others that this browser has never seen.
        shop.write("two")
        shop.publish()
        self.assertEqual((await self.load())[0], "two")
        for text in ("three", "four", "five"):
            shop.write(text)
            shop.publish()
        self.assertEqual((await self.load())[0], "five")
        # Another key, which the one before has named.
        after = NodeKey.make()
        shop.publish(next=after.node_id)
        shop.key = after
        shop.write("six")
        shop.publish()
        self.assertEqual((await self.load())[0], "six")
        # Without a manifest the last one counts; a page that is gone is not the host's to make up.
        files.pop("/.well-known/l8/manifest.json")
        self.assertEqual((await self.load())[0], "six")
        shop.write("evil")
        self.assertEqual((await self.load())[0], None)

    async def end_worker(self) -> None:
        """End the worker's process, as browsers do with one that has nothing to do."""
        await self.page.call("ServiceWorker.enable")
        await self.page.call("ServiceWorker.stopAllWorkers")

    async def load(self) -> list[Any]:
        """Load the app anew; give what its script says, and the evidence there is."""
        await self.page.goto(self.stage.app)
        await self.page.evaluate(READY)
        return await self.run_js("return [globalThis.said ?? null, await L8.evidence()]")  # type: ignore[no-any-return]


def evil(request: Any, called: Any, rest: str) -> bytes:
    """A page that would like to be the app."""
    request.setHeader("content-type", "text/html")
    scripts = b"<script>globalThis.ran = 1</script><script src='/script.js'></script>"
    return b"<title>evil</title>" + scripts + b"<meta http-equiv=refresh content='0;url=/page'>"


def saved(request: Any, called: Any, rest: str) -> bytes:
    """A file to keep."""
    request.setHeader("content-type", "application/octet-stream")
    request.setHeader("content-disposition", 'attachment; filename="notes.bin"')
    return pattern(100_000)


class JsWorkerFirefoxTests(JsWorkerTests):
    kind = Firefox
    skip = Firefox.absent()

    async def end_worker(self) -> None:
        """Do nothing: WebDriver BiDi has no word for it."""

    async def downloads(self, folder: Path) -> None:
        allowed = {"type": "allowed", "destinationFolder": str(folder)}
        await self.browser.wire.call("browser.setDownloadBehavior", downloadBehavior=allowed)
