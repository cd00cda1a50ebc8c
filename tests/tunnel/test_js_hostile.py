"""What other sites, other gateways, backends and relays may try with a page and its service worker."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.web.server import NOT_DONE_YET

from layer8.testing.browser import Chromium, Firefox
from tests.tunnel.test_js_failures import CrookedCase

FORM = (
    b'<!doctype html><meta charset="utf-8"><title>form</title><link rel="icon" href="data:,">'
    b'<form method="POST" action="%s"><input name="to" value="them"></form>'
)


class JsHostileTests(CrookedCase):
    """One browser."""

    skip = Chromium.absent()

    async def until(self, what: Any) -> bool:
        """Wait until something is so; 5 seconds at most."""
        for _ in range(100):
            if what():
                return True
            await deferLater(self.stage.reactor, 0.05)
        return False

    async def test_forms_of_other_sites(self) -> None:
        """The worker sends no form that another site has made: it would have the visitor's cookies, and our origin."""
        await self.open()
        backend = self.stage.gateways["shop"].backend
        files = self.stage.app_files
        files["/evil"] = ("text/html", FORM % f"{self.stage.app}cookies?evil".encode())
        backend.resource._theirs = lambda request, called, rest: (  # type: ignore[attr-defined]
            request.setHeader("content-type", "text/html") or FORM % b"/cookies?theirs"
        )
        files["/own"] = ("text/html", FORM % b"/cookies?own")
        await self.run_js(
            """
            await L8.connect(o);
            await L8.fetch("/cookies/set?a=1");
            await L8.serviceWorker({ paths: ["/cookies", "/theirs"] });
            """,
            o=self.stage.connect(session="persistent"),
        )
        app = self.stage.app
        for address in (f"http://127.0.0.1:{self.stage.app_port}/evil", f"{app}own", f"{app}theirs"):
            page = await self.browser.page(address)
            await page.evaluate("document.forms[0].submit()")
            name = address.rpartition("/")[2]
            await self.until(lambda name=name: any(call.uri == f"/cookies?{name}" for call in backend.calls))
        self.assertEqual(
            [call.uri for call in backend.calls if call.method == "POST"], ["/cookies?own", "/cookies?theirs"]
        )

    async def test_pages_of_a_backend_call_nobody(self) -> None:
        """No hint in a backend's page makes the browser connect to somebody else, who would see the visitor."""
        await self.open()
        heard: list[str] = []
        port = self.stage.reactor.listenTCP(0, _Ear(heard), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        to = f"http://127.0.0.1:{port.getHost().port}"
        hints = "".join(
            f'<link rel="{rel}" href="{to}/{rel}">'
            for rel in (
                "preconnect",
                "dns-prefetch",
                "prefetch",
                "prerender",
                "preload",
                "icon",
                "stylesheet",
                "manifest",
            )
        )

        def page(request: Any, called: Any, rest: str) -> bytes:
            request.setHeader("content-type", "text/html; charset=iso-8859-1")
            request.setHeader("link", f"<{to}/link>; rel=preconnect")
            hidden = hints.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
            more = f'<LINK/rel=preconnect href="{to}/slash"><link title=">" rel="&#112;reconnect" href="{to}/entity">'
            inner = f'<iframe srcdoc="{hidden}"></iframe>'
            plain = '<link rel="stylesheet" href="/theirs.css"><link rel=icon href=/icon.svg>'
            return f"<!doctype html><title>theirs</title>{plain}{hints}{more}{inner}<p>th\xebirs".encode("latin-1")

        self.stage.gateways["shop"].backend.resource._theirs = page  # type: ignore[attr-defined]
        await self.run_js("await L8.connect(o); await L8.serviceWorker({ paths: ['/theirs'] })", o=self.stage.connect())
        shown = await self.browser.page(f"{self.stage.app}theirs")
        told = "[document.title, document.querySelector('p').textContent, document.querySelectorAll('link').length]"
        self.assertEqual(await shown.evaluate(told), ["theirs", "th\xebirs", 4])
        await deferLater(self.stage.reactor, 2)
        self.assertEqual(heard, [])

    async def test_a_gateway_that_claims_another_s_host(self) -> None:
        """A host belongs to the gateway for which the page has configured it, in pages and in the worker."""
        await self.open(gateways=("shop", "bank"), settings={"authorities": ["shop.test", "bank.test"]})
        shop, bank = (self.stage.gateways[name].backend for name in ("shop", "bank"))
        await self.run_js(
            "for (const one of all) await L8.connect(one);",
            all=[self.stage.connect("shop"), self.stage.connect("bank")],
        )
        for host, right, wrong in (("bank", bank, shop), ("shop", shop, bank)):
            await self.run_js("await (await L8.fetch(`https://${host}.test/echo?page`)).text()", host=host)
            self.assertEqual((len(right.calls), len(wrong.calls)), (1, 0), host)
            right.clear()
        await self.run_js("await L8.serviceWorker({ paths: ['/echo'] })")
        for host, right, wrong in (("bank", bank, shop), ("shop", shop, bank)):
            await self.run_js("await (await fetch(`https://${host}.test/echo?worker`)).text()", host=host)
            self.assertEqual((len(right.calls), len(wrong.calls)), (1, 0), host)
            right.clear()
        # Nor does an answer lead there by the wrong tunnel.
        failed = await self.failure("L8.fetch('https://shop.test/redirect-to?url=https://bank.test/echo')")
        self.assertEqual((failed["code"], len(bank.calls)), ("redirect", 0))

    async def test_aborts_at_once(self) -> None:
        """While keys are asked of a relay that is silent, and while a stream is read that has no end."""
        await self.open()
        crooked = self.relay()
        await self.connect(crooked)
        took = await self.run_js(
            """
            const began = performance.now();
            let cancelled = null;
            const body = new ReadableStream({ cancel: (reason) => { cancelled = reason; } });
            const signal = AbortSignal.timeout(200);
            const name = await L8.fetch("/x", { method: "POST", body, duplex: "half", signal }).catch((e) => e.name);
            await new Promise((done) => setTimeout(done, 50));
            return [name, cancelled?.name ?? null, performance.now() - began < 5000];
            """
        )
        self.assertEqual(took, ["TimeoutError", "TimeoutError", True])
        silent = self.stage.reactor.listenTCP(0, _Ear([], silent=True), interface="127.0.0.1")
        self.addCleanup(silent.stopListening)
        took = await self.run_js(
            """
            const began = performance.now();
            L8.connect(o).catch(() => {});
            const reason = new Error("mine");
            const stop = new AbortController();
            setTimeout(() => stop.abort(reason), 200);
            const asked = L8.fetch("https://other.test/x", { signal: stop.signal });
            const found = await asked.catch((error) => error === reason);
            return [found, performance.now() - began < 5000];
            """,
            o=crooked.connect(
                relay=f"http://127.0.0.1:{silent.getHost().port}", gateway="other", authority="other.test"
            ),
        )
        self.assertEqual(took, [True, True])

    async def test_cookies_that_have_no_name(self) -> None:
        """They are not taken for those with a prefix."""
        await self.open(inside=True)
        lines = [["=__Host-a=1"], ["=__Secure-b=2; Path=/"], ["__Host-c"], ["=d=3"], ["__secure-e=5; Path=/"]]
        found = await self.run_js(
            """
            const url = new URL("https://shop.test/");
            return lines.map((one) => inside.cookieField(inside.addCookies([], one, url, 1), url, 1));
            """,
            lines=lines,
        )
        self.assertEqual(found, ["", "", "", "d=3", ""])

    async def test_integrity_without_a_relay(self) -> None:
        """`integrity` counts on the direct way, too."""
        await self.open()
        origin = f"http://app.localhost:{self.stage.app_port}"
        options = self.stage.connect(relay="http://127.0.0.1:9", authority=origin, fallback="direct")
        asked = "L8.fetch(`${origin}/l8/0/l8.js`, { integrity: 'sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=' })"
        await self.run_js("await L8.connect(o).catch(() => {})", o=options)
        found = await self.run_js(
            f"return {asked}.then((answer) => answer.text()).then(() => 'got', () => 'refused')", origin=origin
        )
        self.assertEqual(found, "refused")

    async def test_the_worker_heeds_what_fetch_is_told(self) -> None:
        await self.open()
        await self.run_js(
            """
            await L8.connect(o);
            await L8.fetch("/cookies/set?a=1");
            await L8.serviceWorker({ paths: ["/cookies", "/redirect"] });
            """,
            o=self.stage.connect(session="persistent"),
        )
        found = await self.run_js(
            """
            const { cookie } = await (await fetch("/cookies", { credentials: "omit" })).json();
            const error = await fetch("/redirect/1", { redirect: "error" }).then(() => "got", () => "refused");
            return [cookie, error];
            """
        )
        self.assertEqual(found, [[], "refused"])

    async def test_static_pages(self) -> None:
        """A backend's page is no page of the app's origin when it is got as a blob."""
        await self.open()

        def page(request: Any, called: Any, rest: str) -> bytes:
            request.setHeader("content-type", "text/html")
            return b"<script>parent.ran = true</script>"

        self.stage.gateways["shop"].backend.resource._theirs = page  # type: ignore[attr-defined]
        found = await self.run_js(
            """
            await L8.connect(o);
            const src = await L8.static("/theirs");
            const type = (await (await fetch(src)).blob()).type;
            document.body.append(Object.assign(document.createElement("iframe"), { src }));
            await new Promise((done) => setTimeout(done, 500));
            return [type, globalThis.ran ?? null];
            """,
            o=self.stage.connect(),
        )
        self.assertEqual(found, ["application/octet-stream", None])

    async def test_a_relay_that_says_a_number(self) -> None:
        """Text from a relay is nothing, and no length of an array; no subprotocol but those that were asked for."""
        await self.open()
        found = await self.run_js(
            """
            globalThis.WebSocket = class {
              constructor() {
                setTimeout(() => (this.onopen(), setTimeout(() => this.onmessage({ data: "1000000000" }))));
              }
              send() {}
              close() {}
            };
            const { L8 } = await import("/probe.js?fake");
            await L8.connect(o);
            const socket = new L8.WebSocket("/ws");
            const error = await new Promise((done) => (socket.onerror = (event) => done(event.error)));
            return [error.code, error.message.includes("text")];
            """,
            o=self.stage.connect(),
        )
        self.assertEqual(found, ["socket", True])

    async def test_events_that_are_odd(self) -> None:
        """Line ends of all kinds in pieces, an id beyond Latin-1, and a backend that wants no pause."""
        await self.open()
        backend = self.stage.gateways["shop"].backend

        def odd(request: Any, called: Any, rest: str) -> Any:
            request.setHeader("content-type", "text/event-stream")
            pieces = ["retry: 0\nid: \u2192\ndata: 1\r", "\n", "\ndata: 2\n\n"]
            later = [
                self.stage.reactor.callLater(number * 0.2, request.write, piece.encode())
                for number, piece in enumerate(pieces)
            ]
            later.append(self.stage.reactor.callLater(0.7, request.finish))
            request.notifyFinish().addErrback(lambda _: [one.cancel() for one in later if one.active()])
            return NOT_DONE_YET

        backend.resource._odd = odd  # type: ignore[attr-defined]
        found = await self.run_js(
            """
            await L8.connect(o);
            const events = new L8.EventSource("/odd");
            const heard = [];
            await new Promise((done) => {
              events.onmessage = ({ data }) => heard.push(data) > 3 && done();
              events.onerror = () => events.readyState === 2 && done();
            });
            events.close();
            return heard;
            """,
            o=self.stage.connect(),
        )
        self.assertEqual(found, ["1", "2", "1", "2"])
        self.assertEqual(backend.calls[1].all("last-event-id"), ["\u2192".encode().decode("latin-1")])

    async def test_an_empty_answer_that_says_it_is_compressed(self) -> None:
        """It is empty, as plain fetch has it."""
        await self.open()

        def empty(request: Any, called: Any, rest: str) -> bytes:
            request.setHeader("content-encoding", "gzip")
            return b""

        backend = self.stage.gateways["shop"].backend
        backend.resource._empty = empty  # type: ignore[attr-defined]
        found = await self.run_js(
            """
            await L8.connect(o);
            return [await (await L8.fetch("/empty")).text(), (await L8.fetch("/empty", { stream: false })).status];
            """,
            o=self.stage.connect(),
        )
        self.assertEqual(found, ["", 200])

    async def test_a_jar_that_cannot_be_opened(self) -> None:
        """A browser that keeps nothing fails as all else does, with a code, before anything is sent."""
        await self.open()
        await self.run_js("await L8.connect(o)", o=self.stage.connect(session="persistent"))
        await self.run_js(
            "IDBFactory.prototype.open = () => { throw new DOMException('not here', 'InvalidStateError'); }"
        )
        failed = await self.failure("L8.fetch('/echo')")
        self.assertEqual((failed["name"], failed["code"]), ("L8Error", "unsupported"))
        self.assertEqual(self.stage.gateways["shop"].backend.calls, [])


class JsHostileFirefoxTests(JsHostileTests):
    kind = Firefox
    skip = Firefox.absent()


class _Ear(Factory):
    noisy = False

    def __init__(self, heard: list[str], *, silent: bool = False) -> None:
        self.heard = heard

    def buildProtocol(self, addr: Any) -> Any:
        self.heard.append("connected")
        made = Protocol()
        made.dataReceived = lambda data: self.heard.append(data.decode("latin-1").split("\r\n")[0])  # type: ignore[method-assign]
        return made
