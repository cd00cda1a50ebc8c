"""An app as it was built, in browsers: what its integrity and its policy stop, swapped at the mirror that serves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from layer8.testing.browser import Chromium, Firefox
from tests.tunnel.mirrors import Mirrors

STATE = """(async () => {
  await new Promise(done => document.readyState === "complete" ? done() : addEventListener("load", done));
  await new Promise(done => setTimeout(done, 100));
  return { out: document.getElementById("out").textContent, l8: typeof globalThis.L8,
    colour: getComputedStyle(document.getElementById("out")).color, inline: globalThis.inline ?? false };
})()"""
SIGNED = {"out": "signed", "l8": "object", "colour": "rgb(1, 2, 3)", "inline": False}
WAYS = """(async () => {
  const there = %s;
  const told = {};
  const note = (name, promise) => promise.then(() => { told[name] = "through"; }, () => { told[name] = "blocked"; });
  const element = (name, make) => note(name, new Promise((yes, no) => {
    const one = make();
    one.onload = yes;
    one.onerror = no;
    document.head.append(one);
    setTimeout(no, 700);
  }));
  const set = (tag, values) => Object.assign(document.createElement(tag), values);
  await Promise.all([
    note("fetch", fetch(`${there}/fetch`, { mode: "no-cors" })),
    element("image", () => set("img", { src: `${there}/image` })),
    note("beacon", new Promise((yes, no) => navigator.sendBeacon(`${there}/beacon`, "x") ? setTimeout(no, 500) : no())),
    note("socket", new Promise((yes, no) => { try { const one = new WebSocket(there.replace("http", "ws") + "/socket");
      one.onopen = yes; one.onerror = no; } catch (error) { no(error); } })),
    element("prefetch", () => set("link", { rel: "prefetch", href: `${there}/prefetch` })),
    element("preload", () => set("link", { rel: "preload", as: "image", href: `${there}/preload` })),
    element("style", () => set("link", { rel: "stylesheet", href: `${there}/style` })),
    element("script", () => { const one = set("script", {}); one.src = `${there}/script`; return one; }),
    element("frame", () => set("iframe", { src: `${there}/frame` })),
    note("font", new FontFace("x", `url(${there}/font)`).load()),
    note("events", new Promise((yes, no) => { const one = new EventSource(`${there}/events`);
      one.onopen = yes; one.onerror = () => { one.close(); no(); }; })),
    note("worker", new Promise((yes, no) => { try { const one = new Worker(`${there}/worker`); one.onerror = no;
      one.onmessage = yes; setTimeout(no, 500); } catch (error) { no(error); } })),
  ]);
  const form = set("form", { method: "post", action: `${there}/form`, target: "_self" });
  document.body.append(form);
  try { form.submit(); } catch { told.form = "blocked"; }  // Firefox throws, Chromium does nothing
  const ping = set("a", { href: "#", ping: `${there}/ping` });
  document.body.append(ping);
  ping.click();
  await new Promise(done => setTimeout(done, 500));
  delete told.frame;  // an empty one is shown instead, and that is loaded
  told.here = location.origin;
  return told;
})()"""


class _Ears(Resource):
    """The provider's own host: whoever comes to it has leaked an address."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heard: list[str] = []

    def render(self, request: Request) -> bytes:
        self.heard.append(request.uri.decode())
        request.setHeader("access-control-allow-origin", "*")
        return b""


class AppTests(TestCase):
    kind: ClassVar[Any] = Chromium
    skip = Chromium.absent()
    timeout = 90
    unnamed: ClassVar[str] = "nothing"  # what is run of a module that nothing but another module names

    async def open(self) -> Mirrors:
        from twisted.internet import reactor as running

        reactor: Any = running
        mirrors = Mirrors(reactor, Path(self.mktemp()).absolute())
        self.addCleanup(mirrors.stop)
        await mirrors.start()
        self.browser = await self.kind.start(reactor, hosts={"notes.localhost": "127.0.0.1", "notes.test": "127.0.0.1"})
        self.addCleanup(self.browser.close)
        return mirrors

    async def state(self, mirrors: Mirrors) -> Any:
        page = await self.browser.page(f"{mirrors.url}/")
        found = await page.evaluate(STATE)
        await page.close()
        return found

    async def test_swaps(self) -> None:
        """The file itself, a module that it imports, a style, the script of the wheel: none is run."""
        mirrors = await self.open()
        folder = mirrors.folders[0]
        self.assertEqual(await self.state(mirrors), SIGNED)
        for name, swapped, wanted in (
            ("js/main.js", 'document.getElementById("out").textContent = "swapped";', {"out": "nothing"}),
            ("js/word.js", 'export const word = "swapped";', {"out": "nothing"}),
            ("style.css", "p { color: rgb(9, 9, 9) }", {"colour": "rgb(0, 0, 0)"}),
        ):
            before = (folder / name).read_bytes()
            (folder / name).write_text(swapped)
            self.assertEqual(await self.state(mirrors), {**SIGNED, **wanted}, name)
            (folder / name).write_bytes(before)
        page = folder / "index.html"
        before = page.read_bytes()
        page.write_bytes(before.replace(b"</head>", b"<script>globalThis.inline = true</script></head>"))
        self.assertEqual(await self.state(mirrors), SIGNED)
        page.write_bytes(before.replace(b"<p id", b'<img src="x" onerror="globalThis.inline = true"><p id'))
        self.assertEqual(await self.state(mirrors), SIGNED)
        mark = b'l8.js" integrity="sha384-'
        page.write_bytes(before.replace(mark, mark + b"A"))
        self.assertEqual(await self.state(mirrors), {**SIGNED, "l8": "undefined"})

    async def test_integrity_policy(self) -> None:
        """With `block`, what a page loads without integrity is not run, though it is nowhere else wrong."""
        mirrors = await self.open()
        mirrors.build(evolve(mirrors.app, block=True))
        self.assertEqual(await self.state(mirrors), SIGNED)
        page = mirrors.folders[0] / "index.html"
        text = page.read_text()
        page.write_text(text.replace('src="js/main.js" integrity=', 'src="js/main.js" data-x='))
        self.assertEqual(await self.state(mirrors), {**SIGNED, "out": "nothing"})
        page.write_text(text.replace('href="/js/word.js" integrity=', 'href="/js/other.js" integrity='))
        self.assertEqual((await self.state(mirrors))["out"], self.unnamed)

    async def test_one_line(self) -> None:
        """L1: the page says whom to ask for what, and nothing else; relays and pins are in the manifest."""
        mirrors = await self.open()
        line = 'document.getElementById("out").textContent = await (await L8.fetch("/word")).text();\n'
        (mirrors.folders[0] / "js/main.js").write_text(line)
        mirrors.build()
        page = await self.browser.page(f"{mirrors.url}/")
        for _ in range(20):
            found = await page.evaluate(STATE)
            if found["out"] != "nothing":
                break
        self.assertEqual(found, {**SIGNED, "out": "from the backend"})

    async def test_no_way_to_the_provider(self) -> None:
        """A careless page, or one that was told to, tries what browsers have; the provider hears nothing."""
        from twisted.internet import reactor as running

        reactor: Any = running
        mirrors = await self.open()
        ears = _Ears()
        site = Site(ears)
        site.noisy = False
        port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        there = f"http://notes.test:{port.getHost().port}"
        free = await self.browser.page(f"{there}/")
        self.assertEqual(await free.evaluate(f"fetch('{there}/fetch').then(() => 1)"), 1)
        await free.close()
        self.assertIn("/fetch", ears.heard)
        ears.heard.clear()
        page = await self.browser.page(f"{mirrors.url}/")
        told = await page.evaluate(WAYS % json.dumps(there))
        await deferLater(reactor, 0.3, lambda: None)
        self.assertEqual(set(ears.heard) - {"/favicon.ico"}, set())  # of its own page, which may ask late
        self.assertEqual(told.pop("here"), mirrors.url)
        self.assertEqual(set(told.values()), {"blocked"}, told)
        self.assertGreaterEqual(len(told), 11)


class FirefoxAppTests(AppTests):
    """The same."""

    kind = Firefox
    skip = Firefox.absent()
