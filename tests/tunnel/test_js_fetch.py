"""`L8.fetch` and what is around it, as a page uses them; in both browsers."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from typing import Any

import layer8
from layer8.testing.browser import Firefox
from tests.tunnel.backend import pattern
from tests.tunnel.browsers import BrowserCase, script

WRONG = """
const circle = {};
circle.self = circle;
const wrong = [undefined, null, 0, NaN, "", "http://[", {}, [], Symbol("x"), () => {}, circle, new Date(NaN)];
const urls = [
  "http://[", Symbol("x"), "https://user:password@shop.test/", "https://other.test/", "data:,x", "ftp://shop.test/",
  "about:blank", "javascript:1", "https://", "blob:https://shop.test/1", "https://shop.test:1/",
  { toString: () => { throw new Error("no") } },
];
const calls = {
  connect: (value) => L8.connect(value),
  "connect's relay": (value) => L8.connect({ ...good, relay: value }),
  "connect's gateway": (value) => L8.connect({ ...good, gateway: value }),
  "connect's pin": (value) => L8.connect({ ...good, pin: value }),
  registerCitizenship: (value) => L8.registerCitizenship(value),
  fetch: (_, at) => L8.fetch(urls[at]),
  "fetch's init": (value) => L8.fetch("https://nowhere.test/", value),
  "fetch's headers": (value) => L8.fetch("/echo", { headers: { "x y": value } }),
  "fetch's method": (value) => L8.fetch("/echo", { method: typeof value === "symbol" ? value : ` ${String(value)}` }),
  "fetch's signal": (value) => L8.fetch("/echo", { signal: value ?? 1 }),
  "fetch's onprogress": (value) => L8.fetch("/echo", { onprogress: typeof value === "function" ? 1 : (value ?? 1) }),
  debug: (value) => L8.debug(value),
  measure: (value) => L8.measure(value === undefined ? -1 : value),
};
const out = [];
for (const [name, call] of Object.entries(calls)) {
  for (const [at, value] of wrong.entries()) {
    let promise;
    try {
      promise = call(value, at);
    } catch (error) {
      out.push([name, at, "thrown", String(error)]);
      continue;
    }
    if (!(promise instanceof Promise)) out.push([name, at, "no promise"]);
    const said = await promise.then(() => "nothing", (error) => error);
    const right = said.name === "L8Error" && said.code && said.leg === "page" && said.hint && said.retryable === false;
    if (!right) out.push([name, at, `${said} ${said.stack ?? ""}`]);
  }
}
return out;
"""

BODIES = """
const bytes = Uint8Array.from({ length: 300 }, (_, at) => at);
const form = () => {
  const data = new FormData();
  data.append("title", "Grüße");
  data.append("file", new File([bytes], "f ü\\".bin", { type: "application/x-thing" }));
  data.append("file", new Blob(["two"]), "second.txt");
  return data;
};
const stream = () => new ReadableStream({
  start(controller) {
    controller.enqueue(bytes);
    controller.enqueue(bytes);
    controller.close();
  },
});
const buffer = bytes.buffer;
const bodies = {
  string: () => "text ü",
  URLSearchParams: () => new URLSearchParams([["a", "1 2"], ["b", "ü"]]),
  FormData: form,
  Blob: () => new Blob([bytes, "x"], { type: "Text/Mine" }),
  "Blob without a type": () => new Blob([bytes]),
  File: () => new File([bytes], "name.bin", { type: "image/png" }),
  ArrayBuffer: () => buffer,
  Uint8Array: () => bytes.subarray(3, 99),
  Uint8ClampedArray: () => new Uint8ClampedArray(buffer, 1, 7),
  Int16Array: () => new Int16Array(buffer, 2, 9),
  Float64Array: () => new Float64Array(buffer, 8, 4),
  BigUint64Array: () => new BigUint64Array(buffer, 8, 4),
  DataView: () => new DataView(buffer, 5, 50),
  object: () => ({ toString: () => "said" }),
  stream,
  null: () => null,
};
return { bodies, form };
"""


class JsFetchTests(BrowserCase):
    """A page with a tunnel."""

    async def connected(self, **more: Any) -> Any:
        page = await self.open()
        await self.run_js("await L8.connect(options)", options=self.stage.connect(**more))
        return page

    async def test_one_line(self) -> None:
        """The first fetch builds the tunnel by what the page says of it (L1); the function is in a global (L7)."""
        await self.open()
        meta = json.dumps(self.stage.connect())
        found = await self.run_js(
            """
            const none = await L8.fetch("/echo").catch((error) => error.code);
            document.head.append(Object.assign(document.createElement("meta"), { name: "l8", content: meta }));
            const { L8: module } = await import(document.querySelector("script").src);
            const { status } = await L8.fetch("/echo?a=1");
            return [none, module === L8, status, (await L8.status()).tunnels[0].state, L8.version];
            """,
            meta=meta,
        )
        self.assertEqual(found, ["config", True, 200, "ready", layer8.__version__])
        self.assertEqual(self.stage.gateways["shop"].backend.calls[0].uri, "/echo?a=1")

    async def test_integrity_of_the_script(self) -> None:
        """A page of another origin runs the script with `integrity`, and one with one changed byte not (L7)."""
        page = await self.open()
        src = f"{self.stage.relay}/l8/{layer8.__version__}/l8.js"
        told = await self.run_js("return (await fetch(url)).json()", url=f"{self.stage.relay}/l8/sri.json")
        integrity = "sha384-" + b64encode(hashlib.sha384(script().encode()).digest()).decode()
        self.assertEqual((told["version"], told["integrity"]["l8.js"]), (layer8.__version__, integrity))
        load = """
        const script = Object.assign(document.createElement("script"), { type: "module", src, integrity });
        script.crossOrigin = "anonymous";
        const done = new Promise((resolve) => {
          Object.assign(script, { onload: () => resolve("run"), onerror: () => resolve("not run") });
        });
        document.head.append(script);
        return [await done, typeof globalThis.L8];
        """
        for byte, expected in ((b"L", ["not run", "undefined"]), (b"l", ["run", "object"])):
            self.stage.front[0].meddle = lambda up, data, byte=byte: data.replace(
                b"// layer8's", b"// %bayer8's" % byte
            )
            await page.goto(f"{self.stage.gateways['shop'].backend.origin}/page")
            found = await self.run_js(load, src=f"{src}?{byte.decode()}", integrity=integrity)
            self.assertEqual(found, expected)

    async def test_wrong_arguments(self) -> None:
        """Whatever a function is given, it gives a promise, and rejects with an L8Error (L3)."""
        await self.connected()
        self.assertEqual(await self.run_js(WRONG, good=self.stage.connect()), [])
        self.assertTrue(await self.run_js("return L8.registerCitizenship === L8.connect"))
        self.assertEqual(self.stage.gateways["shop"].backend.calls, [])

    async def test_bodies(self) -> None:
        """Each kind of body arrives as plain `fetch` sends it (L17)."""
        page = await self.connected()
        backend = self.stage.gateways["shop"].backend
        beside = await self.browser.page(f"{backend.origin}/page")
        ask = (
            f"const {{ bodies }} = (() => {{ {BODIES} }})();"
            + """
        const out = {};
        for (const [name, body] of Object.entries(bodies)) {
          if (name === "stream" && plain) continue;
          const init = { method: "POST", body: body(), ...(name === "stream" ? { duplex: "half" } : {}) };
          const path = name === "FormData" ? "/upload" : "/echo";
          const told = await (await (plain ? fetch : L8.fetch)(path, init)).json();
          const type = (told.fields ?? []).filter(([name]) => name === "content-type").map(([, value]) => value);
          out[name] = told.parts ? told.parts : [told.size, told.sha256, type];
        }
        return out;
        """
        )
        given = "(async (plain) => {" + ask + "})"
        plain = await beside.evaluate(f"{given}(true)")
        inside = await page.evaluate(f"{given}(false)")
        stream = inside.pop("stream")
        data = bytes(number % 256 for number in range(300)) * 2
        self.assertEqual(stream, [600, hashlib.sha256(data).hexdigest(), []])
        self.assertGreaterEqual(len(plain), 14)
        self.assertEqual(inside, plain)

    async def test_requests(self) -> None:
        """A string, a URL or a Request, with any init; the Response is a genuine one with `url` and `redirected`."""
        await self.connected()
        found = await self.run_js(
            """
            const say = async (promise) => {
              const answer = await promise;
              const copy = answer.clone();
              const { method, uri } = await answer.json();
              const again = (await copy.json()).uri === uri;
              return [answer instanceof Response, method, uri, answer.url, answer.redirected, copy.url, again];
            };
            const init = { method: "PUT", body: "x", headers: { "X-A": "1" } };
            const request = new Request("https://shop.test/echo?r", init);
            const object = { toString: () => "/echo?o" };
            return [
              await say(L8.fetch("/echo?s")),
              await say(L8.fetch(new URL("https://shop.test/echo?u#f"))),
              await say(L8.fetch(request)),
              await say(L8.fetch(new Request("https://shop.test/echo?i"), { method: "DELETE" })),
              await say(L8.fetch(object)),
              await say(L8.fetch("/redirect/2#f")),
              request.bodyUsed,
            ];
            """
        )
        origin = "https://shop.test"
        for one, (method, uri, redirected) in zip(
            found,
            (
                *(("GET", "/echo?s", False), ("GET", "/echo?u", False), ("PUT", "/echo?r", False)),
                *(("DELETE", "/echo?i", False), ("GET", "/echo?o", False), ("GET", "/echo", True)),
            ),
            strict=False,
        ):
            self.assertEqual(one, [True, method, uri, f"{origin}{uri}", redirected, f"{origin}{uri}", True])
        self.assertTrue(found[-1])
        fields = dict(self.stage.gateways["shop"].backend.calls[2].fields)
        self.assertEqual((fields["x-a"], fields["origin"], fields["user-agent"]), ("1", origin, "L8"))

    async def test_streams(self) -> None:
        """The first piece arrives before the last is produced; who has left is not waited for (L23)."""
        await self.connected()
        backend = self.stage.gateways["shop"].backend
        found = await self.run_js(
            """
            const answer = await L8.fetch("/events?n=5&gap=0.2");
            const times = [];
            const began = performance.now();
            const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
            let text = "";
            for (;;) {
              const { value, done } = await reader.read();
              if (done) break;
              text += value;
              if (value.includes("data")) times.push(performance.now() - began);
            }
            const whole = performance.now();
            const same = await (await L8.fetch("/events?n=5&gap=0.1", { stream: false })).text();
            const waited = performance.now() - whole;
            const left = await L8.fetch("/events?n=100&gap=0.05");
            const other = left.body.getReader();
            await other.read();
            await other.cancel();
            const stop = new AbortController();
            const aborted = await L8.fetch("/events?n=100&gap=0.05", { signal: stop.signal });
            stop.abort();
            const why = await aborted.text().catch((error) => error.name);
            const signal = AbortSignal.timeout(200);
            const early = await L8.fetch("/slow?s=9", { signal }).catch((error) => error.name);
            const before = await L8.fetch("/echo", { signal: AbortSignal.abort() }).catch((error) => error.name);
            const { status, body } = await L8.fetch("/status/204");
            return { times, text, same, waited, why, early, before, status, body };
            """
        )
        times = found["times"]
        self.assertGreaterEqual(len(times), 4, times)
        self.assertLess(times[0], times[-1] - 500)
        self.assertEqual(found["text"].count("data: "), 5)
        self.assertEqual(found["same"], found["text"])
        self.assertGreater(found["waited"], 350)
        self.assertEqual(
            [found[name] for name in ("why", "early", "before")], ["AbortError", "TimeoutError", "AbortError"]
        )
        self.assertEqual((found["status"], found["body"]), (204, None))
        self.assertNotIn("/echo", [one.uri for one in backend.calls])

    async def test_compression(self) -> None:
        """Off by default, since sizes tell of content; `compress` asks for it and undoes it (L24)."""
        await self.open()
        take = """
        const answer = await (await L8.connect(o)).fetch("/gzip");
        return [answer.headers.get("content-encoding"), await answer.json()];
        """
        plain = await self.run_js(take, o=self.stage.connect())
        before = len(self.stage.front[0].down)
        packed = await self.run_js(take, o=self.stage.connect(compress="gzip"))
        self.assertEqual([plain[0], plain[1]["asked"]], [None, []])
        self.assertEqual([packed[0], packed[1]["asked"]], ["gzip", ["gzip"]])
        self.assertEqual(plain[1]["text"], packed[1]["text"])
        self.assertLess(len(self.stage.front[0].down) - before, 8000)

    async def test_integrity_of_an_answer(self) -> None:
        await self.connected()
        right = b64encode(hashlib.sha256(pattern(5000)).digest()).decode()
        get = "return (await L8.fetch('/bytes/5000', { integrity })).arrayBuffer().then((data) => data.byteLength)"
        self.assertEqual(await self.run_js(get, integrity=f"sha256-{right}"), 5000)
        said = await self.failure("L8.fetch('/bytes/5001', { integrity })", integrity=f"sha256-{right}")
        self.assertEqual((said["code"], said["leg"]), ("integrity", "backend"))

    async def test_cookies(self) -> None:
        """None by default; with `session` one jar for each gateway, kept or not, inside only (L21)."""
        await self.open(gateways=("shop", "bank"))
        shop, bank = (self.stage.connect(name, session="memory") for name in ("shop", "bank"))
        say = "const say = async (url, init) => (await (await L8.fetch(url, init)).json()).cookie;"
        none = await self.run_js(
            say + "await L8.connect(o); await L8.fetch('/cookies/set?a=1'); return say('/cookies')",
            o=self.stage.connect(),
        )
        self.assertEqual(none, [])
        found = await self.run_js(
            say
            + """
            const [t] = [await L8.connect(shop), await L8.connect(bank)];
            await L8.fetch("https://shop.test/cookies/set?m4rker=h1dden&b=2");
            const out = [await say("https://shop.test/cookies"), await say("https://bank.test/cookies")];
            out.push(await say("https://shop.test/cookies", { credentials: "omit" }), document.cookie);
            await t.clearSession();
            out.push(await say("https://shop.test/cookies"));
            return out;
            """,
            shop=shop,
            bank=bank,
        )
        self.assertEqual(found, [["m4rker=h1dden; b=2"], [], [], "", []])
        kept = self.stage.connect(session="persistent")
        await self.run_js("await L8.connect(o); await L8.fetch('/cookies/set?kept=1')", o=kept)
        await self.page.goto(self.stage.app)
        again = """
        while (!globalThis.L8) await new Promise((done) => setTimeout(done, 5));
        await L8.connect(o);
        return say("/cookies");
        """
        self.assertEqual(await self.run_js(say + again, o=kept), ["kept=1"])
        await self.run_js("const t = await L8.connect(o); await t.clearSession()", o=kept)
        self.assertEqual(await self.run_js(say + again, o=kept), [])
        legs = self.stage.front[0].up + self.stage.front[0].down
        for marker in (b"m4rker", b"h1dden", b"\r\nset-cookie", b"\r\ncookie"):
            self.assertNotIn(marker, legs.lower())

    async def test_two_gateways(self) -> None:
        """Two providers at once: each request goes to whose host it names, a relative one to the first (L25)."""
        await self.open(gateways=("shop", "bank"))
        shop, bank = self.stage.connect("shop"), self.stage.connect("bank")
        found = await self.run_js(
            """
            await Promise.all([L8.connect(shop), L8.connect(bank)]);
            const hosts = ["https://shop.test/echo", "https://bank.test/echo"];
            const asked = Array.from({ length: 40 }, (_, at) => L8.fetch(`${hosts[at % 2]}?${at}`));
            const answers = await Promise.all(asked);
            const relative = await L8.fetch("/echo?relative");
            const { tunnels } = await L8.status();
            const said = tunnels.map((one) => [one.gateway, one.state, one.requests]);
            return [answers.map((one) => one.status), relative.url, said];
            """,
            shop=shop,
            bank=bank,
        )
        self.assertEqual(found[0], [200] * 40)
        self.assertEqual(found[1], "https://shop.test/echo?relative")
        self.assertEqual(sorted(found[2]), [["bank", "ready", 20], ["shop", "ready", 21]])
        for name, rest in (("shop", 0), ("bank", 1)):
            uris = {call.uri for call in self.stage.gateways[name].backend.calls} - {"/echo?relative"}
            self.assertEqual(uris, {f"/echo?{number}" for number in range(40) if number % 2 == rest})

    async def test_debug_and_measure(self) -> None:
        """Off by default; shows sizes, times and heads, but no cookies; `measure` says what a page sees (L30)."""
        await self.connected(session="memory")
        await self.run_js(
            """
            await L8.fetch("/cookies/set?secret=1234567890");
            await L8.debug(true);
            await L8.fetch("/echo?seen", { headers: { authorization: "Bearer topsecret" } });
            await L8.debug(false);
            await L8.fetch("/echo?unseen");
            """
        )
        lines = [one.text for one in self.page.console]
        self.assertEqual(len([one for one in lines if "L8 shop: GET https://shop.test/echo?seen -> 200" in one]), 1)
        self.assertNotIn("unseen", "".join(lines))
        for secret in ("1234567890", "topsecret"):
            self.assertNotIn(secret, "".join(lines))
        for _ in range(5):  # other tests may run beside this one
            mine, theirs = await self.run_js(
                """
                const mine = [];
                const time = async () => {
                  const began = performance.now();
                  await L8.fetch("/", { method: "HEAD" });
                  mine.push(performance.now() - began);
                };
                for (let i = 0; i < 30; i++) await time();
                const theirs = await L8.measure(60);
                for (let i = 0; i < 30; i++) await time();
                return [mine.sort((a, b) => a - b)[30], theirs];
                """
            )
            if abs(theirs["total"]["median"] - mine) <= max(0.1 * mine, 0.2):
                break
        else:
            self.fail(f"{mine} {theirs}")
        self.assertEqual(list(theirs), ["n", "total", "page", "relay", "gateway", "backend"])
        for name in ("page", "relay", "gateway", "backend"):
            self.assertLessEqual(theirs[name]["median"], theirs["total"]["median"])


class FirefoxJsFetchTests(JsFetchTests):
    """The same."""

    kind = Firefox
    skip = Firefox.absent()
