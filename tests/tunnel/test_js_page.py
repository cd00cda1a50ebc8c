"""What pages take for granted, through the tunnel: events, blob: URLs, plain `fetch`, axios, strict policies, types."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.server import NOT_DONE_YET

from layer8.testing.browser import Chromium, Firefox
from tests.interop.daemons import no_npm, npm
from tests.tunnel.backend import RED
from tests.tunnel.browsers import BrowserCase

EVENTS = """
globalThis.events = (url, wanted) => new Promise((done) => {
  const source = new L8.EventSource(url);
  const told = { states: [source.readyState], heard: [], ids: [], errors: 0, opened: 0, times: [] };
  const began = performance.now();
  const end = () => { source.close(); done({ ...told, last: source.readyState, url: source.url }); };
  source.onopen = () => { told.opened++; told.states.push(source.readyState); };
  source.onerror = ({ error }) => {
    told.errors++;
    told.code = error?.code;
    if (source.readyState === 2) end();
  };
  const take = ({ data, lastEventId, origin, type }) => {
    told.heard.push(type === "message" ? data : [type, data]);
    told.ids.push(lastEventId);
    told.times.push(performance.now() - began);
    told.origin = origin;
    if (told.heard.length === wanted) end();
  };
  for (const type of ["message", "tick", "add"]) source.addEventListener(type, take);
});
"""
COLOUR = """
const colour = async (src) => {
  const image = new Image();
  image.src = src;
  await image.decode();
  const context = new OffscreenCanvas(16, 16).getContext("2d");
  context.drawImage(image, 0, 0);
  return [image.naturalWidth, ...context.getImageData(3, 3, 1, 1).data];
};
"""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' {relay} "
    "{socket}; worker-src 'self'; base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'; "
    "trusted-types l8"
)
FORMAT = (
    "﻿: a comment\r\n\r\ndata\r\n\r\ndata: one\rdata:  two\r\rid: 7\nevent: add\ndata:x:y\n\n"
    "id:bad\0\nretry: 5\ndata: three\n\n"
    "event: add\n\nunknown: x\nretry: 1x\nid\ndata: é\n\ndata: never"
)


class JsPageTests(BrowserCase):
    skip = Chromium.absent()

    async def test_a_page(self) -> None:
        """One page for all of them."""
        await self.open()
        await self.run_js("await L8.connect(o); " + EVENTS, o=self.stage.connect())
        for check in (self.events, self.the_format, self.what_is_no_stream, self.blobs, self.plain_fetch):
            await check()

    async def events(self) -> None:
        """The first comes before the last is made; a source that is cut goes on where it was."""
        told = await self.run_js("return events('/events?n=10&gap=0.1', 10)")
        self.assertEqual(told["heard"], [["tick", str(number)] for number in range(1, 11)])
        self.assertEqual((told["ids"], told["states"]), ([str(number) for number in range(1, 11)], [0, 1]))
        self.assertEqual((told["origin"], told["last"], told["errors"]), ("https://shop.test", 2, 0))
        self.assertGreater(told["times"][9] - told["times"][0], 500)
        calls = self.stage.gateways["shop"].backend.calls
        (call,) = calls
        self.assertEqual((call.all("accept"), call.all("last-event-id")), (["text/event-stream"], []))
        calls.clear()
        told = await self.run_js(
            """
            const source = new L8.EventSource("https://shop.test/events?n=3&gap=0");
            const ids = [];
            source.addEventListener("tick", ({ lastEventId }) => ids.push(lastEventId));
            await new Promise((done) => (source.onerror = done));
            const between = source.readyState;
            await new Promise((done) => (source.onerror = done));
            source.close();
            return [ids, between, source.readyState];
            """
        )
        self.assertEqual(told, [["1", "2", "3"], 0, 2])
        self.assertEqual([call.all("last-event-id") for call in calls][:2], [[], ["3"]])

    async def the_format(self) -> None:
        """https://html.spec.whatwg.org/multipage/server-sent-events.html, cut anywhere."""
        backend = self.stage.gateways["shop"].backend

        def pieces(request: Any, called: Any, rest: str) -> int:
            data, step = FORMAT.encode(), int(rest)
            request.setHeader("content-type", "text/event-stream; charset=utf-8")

            def write(at: int) -> None:
                if at < len(data) and not request._disconnected:
                    request.write(data[at : at + step])
                    backend.reactor.callLater(0, write, at + step)
                elif not request._disconnected:
                    request.finish()

            write(0)
            return NOT_DONE_YET

        backend.resource._pieces = pieces  # type: ignore[attr-defined]
        for step in (1, 2, 1000):
            told = await self.run_js("return events(`/pieces/${step}`, 5)", step=step)
            self.assertEqual(told["heard"], ["", "one\n two", ["add", "x:y"], "three", "é"])
            self.assertEqual(told["ids"], ["", "", "7", "7", ""])

    async def what_is_no_stream(self) -> None:
        for url, code in (
            ("/echo", "no-events"),
            ("/status/204", "no-events"),
            ("/status/500", "no-events"),
            ("https://other.test/", "unknown"),
            ("https://", "argument"),
        ):
            told = await self.run_js("return events(url, 1)", url=url)
            self.assertEqual((told["code"], told["errors"], told["last"], told["opened"]), (code, 1, 2, 0), url)

    async def blobs(self) -> None:
        found = await self.run_js(COLOUR + "return colour(await L8.static('https://shop.test/image.png'))")
        self.assertEqual(found, [16, *RED, 255])
        found = await self.run_js(
            """
            const answer = await fetch(await L8.static("/style.css"));
            return [answer.headers.get("content-type"), await answer.text()];
            """
        )
        self.assertEqual(found, ["text/css", "p { color: rgb(208, 48, 80) }\n"])
        failed = await self.failure("L8.static('/status/404')")
        self.assertEqual((failed["code"], failed["leg"]), ("no-file", "backend"))
        for wrong in ("undefined", "{}", "'https://other.test/a.png'", "'https://'", "Symbol.iterator"):
            self.assertIn((await self.failure(f"L8.static({wrong})"))["code"], ("no-file", "unknown", "argument"))

    async def plain_fetch(self) -> None:
        end = self.stage.gateways["shop"]
        self.stage.app_files["/local"] = ("text/plain", b"local")
        found = await self.run_js(
            """
            const before = fetch;
            const off = await L8.install({ origins });
            const text = async (...args) => (await fetch(...args)).text();
            const out = [JSON.parse(await text(`${origins[0]}/echo?a=1`)).uri];
            out.push(JSON.parse(await text(new Request(`${origins[0]}/echo`, { method: "PUT", body: "x" }))).method);
            out.push(await text("/local"), await text(new URL("/local", location.href)));
            off();
            out.push(fetch === before, await text(`${origins[0]}/echo`).then(() => "there", () => "nobody there"));
            return out;
            """,
            origins=[end.origin],
        )
        self.assertEqual(found, ["/echo?a=1", "PUT", "local", "local", True, "nobody there"])
        for wrong in ("", "null", "{}", "{origins: 'https://a.test'}", "{origins: ['no url']}", "{origins: [1]}"):
            self.assertEqual((await self.failure(f"L8.install({wrong})"))["code"], "argument", wrong)

    async def test_axios(self) -> None:
        """Its fetch adapter, unchanged, as npm has it."""
        await self.open()
        await self.run_js("await L8.connect(o)", o=self.stage.connect())
        end = self.stage.gateways["shop"]
        folder = npm()
        assert folder is not None
        source = folder / "node_modules" / "axios" / "dist" / "esm" / "axios.js"
        self.stage.app_files["/axios.js"] = ("text/javascript", source.read_bytes())
        found = await self.run_js(
            """
            await L8.install({ origins: [origin] });
            const { default: axios } = await import("/axios.js");
            const shop = axios.create({ adapter: "fetch", baseURL: origin });
            const out = [];
            let answer = await shop.get("/echo", { params: { a: "b c" }, headers: { "X-One": "1" } });
            out.push(answer.status, answer.data.uri, answer.data.fields.find(([name]) => name === "x-one")[1]);
            answer = await shop.post("/echo", { note: "é" });
            out.push(answer.data.method, answer.data.body);
            const form = new FormData();
            form.append("file", new Blob(["12345"]), "five.txt");
            answer = await shop.post("/upload", form);
            out.push(answer.data.parts[0].filename, answer.data.parts[0].size);
            answer = await shop.get("/bytes/5000", { responseType: "arraybuffer" });
            out.push(answer.data.byteLength);
            out.push(await shop.get("/status/404").catch((error) => [error.name, error.response.status]));
            const stop = new AbortController();
            setTimeout(() => stop.abort(), 50);
            out.push(await shop.get("/never", { signal: stop.signal }).catch((error) => error.code));
            return out;
            """,
            origin=end.origin,
        )
        wanted = [
            200,
            "/echo?a=b+c",
            "1",
            "POST",
            b64encode('{"note":"é"}'.encode()).decode(),
            "five.txt",
            5,
            5000,
            ["AxiosError", 404],
            "ERR_CANCELED",
        ]
        self.assertEqual(found, wanted)
        await deferLater(self.stage.reactor, 0.2)  # for the one that was given up

    test_axios.skip = no_npm()  # type: ignore[attr-defined]

    async def test_a_strict_page(self) -> None:
        """Under the policy that apps are served with nothing of the module is refused."""
        await self.open()
        relay = self.stage.relay
        policy = POLICY.format(relay=relay, socket=relay.replace("http", "ws"))
        page = f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{policy}"><title>strict</title>'
        page += '<script type="module" src="/l8/0/l8.js"></script><script src="/watch.js"></script><p id="p">x</p>'
        watch = (
            "globalThis.broken = []; "
            "addEventListener('securitypolicyviolation', (e) => broken.push(e.violatedDirective));"
        )
        self.stage.app_files["/strict.html"] = ("text/html", page.encode())
        self.stage.app_files["/watch.js"] = ("text/javascript", watch.encode())
        await self.page.goto(self.stage.app + "strict.html")
        found = await self.run_js(
            COLOUR
            + """
            await L8.connect(o);
            const out = [(await L8.fetch("/echo")).status, await colour(await L8.static("/image.png"))];
            await L8.serviceWorker({ paths: ["/api/"] });
            await new Promise((done) => setTimeout(done, 100));
            const direct = await fetch("https://shop.test/echo").then(() => "there", () => "refused");
            await new Promise((done) => setTimeout(done, 100));
            return [...out, direct, broken];
            """,
            o=self.stage.connect(),
        )
        self.assertEqual(found, [200, [16, *RED, 255], "refused", ["connect-src"]])


class JsPageFirefoxTests(JsPageTests):
    kind = Firefox
    skip = Firefox.absent()


USE = """
import L8, { L8Error, type ConnectOptions, type Evidence, type Tunnel } from "./l8.js";
const shop = { gateway: "shop", pin: "x" };
const options: ConnectOptions = { ...shop, relay: ["https://relay.test"], session: "memory", compress: "gzip" };
async function use(): Promise<number> {
  const tunnel: Tunnel = await L8.connect(options);
  tunnel.addEventListener("statechange", () => tunnel.state === "ready");
  const onprogress = (sent: number, total: number) => sent / total;
  const answer: Response = await L8.fetch("/a", { method: "POST", body: new FormData(), onprogress });
  const socket: WebSocket = new L8.WebSocket("wss://shop.test/ws", ["chat"]);
  socket.onmessage = (event) => event.data;
  const source: EventSource = new globalThis.L8.EventSource("/events");
  const off: () => void = await L8.install({ origins: ["https://shop.test"] });
  const found: Evidence[] = await L8.evidence();
  const registration: ServiceWorkerRegistration = await L8.serviceWorker({ scope: "/" });
  try { await tunnel.close() } catch (error) { if (error instanceof L8Error) return error.hint.length; }
  off();
  const times: number = (await L8.measure(3)).relay.median + (await L8.status()).tunnels[0].requests;
  return found.length + times + source.readyState + answer.status + registration.scope.length;
}
export default use;
"""
WRONG = {
    "L8.connect({ relay: 1, gateway: 'a', pin: 'b' })": "TS2322",
    "L8.connect({ relay: 'a', gateway: 'a', pin: 'b', session: 'forever' })": "TS2322",
    "L8.login()": "TS2339",
    "L8.install({})": "TS2345",
    "L8.fetch('/a').status": "TS2339",
}


class TypeTests(TestCase):
    """l8.d.ts, as TypeScript's own compiler reads it."""

    skip = no_npm()
    timeout = 60

    async def compiled(self, source: str) -> tuple[int, str]:
        folder, tools = Path(self.mktemp()), npm()
        assert tools is not None
        folder.mkdir()
        (folder / "l8.d.ts").write_text((files("layer8") / "web" / "tunnel" / "l8.d.ts").read_text())
        (folder / "use.ts").write_text(source)
        tsc = ["node", str(tools / "node_modules" / "typescript" / "bin" / "tsc")]
        flags = ["--noEmit", "--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"]
        flags += ["--lib", "es2022,dom,dom.iterable"]
        done = await deferToThread(
            subprocess.run, [*tsc, *flags, "use.ts"], cwd=folder, capture_output=True, text=True, timeout=50
        )
        return done.returncode, done.stdout

    async def test_right(self) -> None:
        self.assertEqual(await self.compiled(USE), (0, ""))

    async def test_wrong(self) -> None:
        lines = "\n".join(WRONG)
        _, said = await self.compiled(f'import L8 from "./l8.js";\n{lines}\n')
        for number, code in enumerate(WRONG.values(), 2):
            self.assertIn(f"use.ts({number},", said)
            self.assertIn(code, next(line for line in said.splitlines() if line.startswith(f"use.ts({number},")))

    async def test_names(self) -> None:
        """What the module has and what its types say are the same names."""
        source = (files("layer8") / "web" / "tunnel" / "l8.js").read_text()
        made = source.partition("const L8 = Object.freeze({")[2].partition("});")[0]
        names = {line.strip().split(":")[0].rstrip(",") for line in made.splitlines() if line.strip()}
        listed = " | ".join(map(json.dumps, sorted(names)))
        source = f"""import L8 from "./l8.js";
const all: Record<{listed}, unknown> = L8;
const more: Exclude<keyof typeof L8, {listed}>[] = [];
const none: never[] = more;
export {{ all, none }};
"""
        self.assertEqual(await self.compiled(source), (0, ""))
