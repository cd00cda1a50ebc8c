"""The browser tunnel behind Caddy, with the very file that docs/tunnel-relay.md names, under other names and ports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import subprocess
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.server import NOT_DONE_YET

import layer8
from layer8.testing.browser import Chromium
from layer8.tunnel import admission
from layer8.tunnel.client import L8Client
from tests.interop.daemons import Program, folder, found, free_port, missing, until
from tests.names import ROOT
from tests.tunnel.backend import pattern
from tests.tunnel.browsers import script
from tests.tunnel.stage import LOADED, Stage
from tests.tunnel.test_js_sockets import TALK

FILE = ROOT / "docs" / "examples" / "tunnel" / "Caddyfile"
RELAY, APP = "relay.localhost", "shop.relay.localhost"
ALONE = """{
	admin off
	auto_https disable_redirects
	default_bind 127.0.0.1
	http_port %d
	local_certs
	skip_install_trust
	storage file_system kept
"""
"""What keeps Caddy to this machine: an authority of its own in a folder of its own, and no other listener."""
INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>app</title><link rel="icon" href="data:,">
<meta name="l8" content='{l8}'><script type="module" src="/l8/{version}/l8.js"></script></html>
"""
MIB = 1 << 20
UPLOAD = 8 * MIB
PIECE = 16_384
"""Bytes that are sealed at once."""
HEARD = "while (heard.length < n) await new Promise((done) => setTimeout(done, 10)); return heard;"


class CaddyTests(TestCase):
    """L35."""

    timeout = 100
    skip = missing(caddy="caddy", curl="curl", certutil="libnss3-tools") or Chromium.absent()

    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return Deferred.fromCoroutine(self.begin())

    async def begin(self) -> None:
        from twisted.internet import reactor as running

        self.reactor: Any = running
        self.home, app = folder(self), folder(self)
        told = {"name": RELAY, "forwarded_from": ("127.0.0.1",)}
        self.stage = await Stage.start(self.reactor, apps={"shop": app}, tunnel=told)
        self.addCleanup(self.stage.close)
        connect = {**self.stage.connect(), "relay": "/"}
        (app / "index.html").write_text(INDEX.format(l8=json.dumps(connect), version=layer8.__version__))
        self.port = free_port()
        await deferToThread(self.start)

    def start(self) -> None:
        """Start Caddy, and have its authority."""
        text = FILE.read_text()
        self.assertIn(f"```\n{text[text.index('{') :]}```", (ROOT / "docs" / "tunnel-relay.md").read_text())
        for said, here in (
            ("\n{\n", f"\n{ALONE % free_port()}"),
            ("relay.example, shop.relay.example {", f"{RELAY}:{self.port}, {APP}:{self.port} {{"),
            ("127.0.0.1:5000", f"127.0.0.1:{self.stage.front[0].port}"),
        ):
            self.assertEqual(text.count(said), 1, said)
            text = text.replace(said, here)
        (self.home / "Caddyfile").write_text(text)
        environ = {"HOME": str(self.home), "XDG_DATA_HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home)}
        words = ["caddy", "run", "--config", "Caddyfile"]
        self.root = self.home / "kept" / "pki" / "authorities" / "local" / "root.crt"
        self.caddy = Program.start(
            self, "caddy", words, self.home, environ, lambda _: self.stands(RELAY) and self.stands(APP)
        )

    def stands(self, name: str) -> bool:
        """Say whether Caddy has a certificate for a name."""
        if not self.root.exists():
            return False
        context = ssl.create_default_context(cafile=self.root)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as link:
            context.wrap_socket(link, server_hostname=name).close()
            return True
        return False

    def curl(self, *words: str, source: str = "127.0.0.1") -> int:
        """Post what no gateway can open, from one of this machine's addresses; give the status, or 0."""
        url = f"https://{RELAY}:{self.port}/r/shop"
        line = [str(found("curl")), "-sS", "--max-time", "20", "--cacert", str(self.root), "--interface", source]
        line += ["--resolve", f"{RELAY}:{self.port}:127.0.0.1", "-o", "/dev/null", "-w", "%{http_code}"]
        line += ["-H", "content-type: message/ohttp-chunked-req", "--data-binary", "x" * 60, *words, url]
        return int(subprocess.run(line, check=False, capture_output=True, timeout=30).stdout)

    async def js(self, body: str, **values: Any) -> Any:
        """Run the body of an async function in the page, with these values as its names."""
        given = ", ".join(json.dumps(value) for value in values.values())
        return await self.page.evaluate(f"(async ({', '.join(values)}) => {{ {body} }})({given})")

    async def test_a_page(self) -> None:
        """The page, its script, an upload, events as they happen, and a socket; nothing but Caddy's own authority."""
        hosts = {RELAY: "127.0.0.1", APP: "127.0.0.1"}
        browser = await Chromium.start(self.reactor, hosts=hosts, insecure=False, authorities=[self.root])
        self.addCleanup(browser.close)
        origin = f"https://{APP}:{self.port}"
        self.page = await browser.page(f"{origin}/")
        await self.page.evaluate(LOADED)
        source = f"{origin}/l8/{layer8.__version__}/l8.js"
        self.assertEqual(await self.js("return (await fetch(source)).text()", source=source), script())
        protocol = "return performance.getEntriesByName(source)[0].nextHopProtocol"
        self.assertEqual(await self.js(protocol, source=source), "h2")

        upload = "const body = new Blob([new Uint8Array(size)]); const init = { method: 'POST', body };"
        told = await self.js(f"{upload} return (await L8.fetch('/upload', init)).json()", size=UPLOAD)
        self.assertEqual((told["size"], told["sha256"]), (UPLOAD, hashlib.sha256(bytes(UPLOAD)).hexdigest()))
        big = "return [...new Uint8Array(await (await L8.fetch(`/bytes/${size}`)).arrayBuffer()).slice(-16)]"
        self.assertEqual(bytes(await self.js(big, size=UPLOAD)), pattern(UPLOAD)[-16:])
        await self.events()
        await self.parts()

        told = await self.js(f"{TALK} return talk(L8, '/ws', ['one', 'two'], [])")
        self.assertEqual((told["heard"], told["code"], told["clean"]), (["one", "two"], 1000, True))
        self.assertIn(f"wss://{self.stage.gateways['shop'].authority}", told["url"])
        self.assertEqual([line for line in self.page.console if line.level == "error"], [])

    async def events(self) -> None:
        """The second is made when the first was heard; and a page that hears no more takes the request along."""
        held: list[Any] = []
        left: Deferred[None] = Deferred()

        def hold(request: Any, called: Any, rest: str) -> int:
            request.setHeader("content-type", "text/event-stream")
            request.notifyFinish().addErrback(lambda _: left.callback(None))
            request.write(b"data: first\n\n")
            held.append(request)
            return NOT_DONE_YET

        self.stage.gateways["shop"].backend.resource._hold = hold  # type: ignore[attr-defined]
        await self.js(
            "globalThis.heard = []; globalThis.source = new L8.EventSource('/hold');"
            "source.onmessage = ({ data }) => heard.push(data);"
        )
        self.assertEqual(await self.js(HEARD, n=1), ["first"])
        held[0].write(b"data: second\n\n")
        self.assertEqual(await self.js(HEARD, n=2), ["first", "second"])
        await self.js("source.close()")
        await left.addTimeout(20, self.reactor)

    async def parts(self) -> None:
        """An answer of a known length comes as it is made, too."""
        held: list[Any] = []

        def part(request: Any, called: Any, rest: str) -> int:
            request.setHeader("content-length", str(4 * PIECE))
            request.notifyFinish().addErrback(lambda _: None)
            request.write(bytes(2 * PIECE))
            held.append(request)
            return NOT_DONE_YET

        self.stage.gateways["shop"].backend.resource._part = part  # type: ignore[attr-defined]
        await self.js(
            "globalThis.reader = (await L8.fetch('/part')).body.getReader();"
            "for (let size = 0; size < n; ) size += (await reader.read()).value.length;",
            n=PIECE,
        )
        held[0].write(bytes(2 * PIECE))
        held[0].finish()
        await self.js("while (!(await reader.read()).done);")

    async def test_a_stream_up(self) -> None:
        """What has been sent is at the gateway before the rest is."""
        relay = f"https://{RELAY}:{self.port}"
        client = L8Client(self.reactor, **{**self.stage.connect(), "relay": relay, "ca": str(self.root)})
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))

        async def content() -> Any:
            yield bytes(MIB)
            while len(self.stage.back["shop"].up) < MIB // 2:
                await deferLater(self.reactor, 0.02, lambda: None)
            yield bytes(MIB)

        told = await (await client.post("/upload", content(), timeout=60)).json()
        self.assertEqual((told["size"], told["sha256"]), (2 * MIB, hashlib.sha256(bytes(2 * MIB)).hexdigest()))

    async def test_who_asks(self) -> None:
        """The relay counts by the address that Caddy has seen, whatever was said to it; the gateway hears none."""
        self.patch(admission, "BURST", 3.0)
        self.patch(admission, "RATE", 0.001)
        here, there = "127.9.9.9", "127.8.8.8"
        seen = []
        for number, source in enumerate((here, here, here, here, "127.9.9.10", there)):
            said = ("-H", f"X-Forwarded-For: 198.51.{number}.1")
            seen.append(await deferToThread(self.curl, *said, source=source))
        self.assertEqual([status == 429 for status in seen], [False, False, False, True, True, False], seen)
        front, back = self.stage.front[0].up.lower(), self.stage.back["shop"].up.lower()
        self.assertEqual(front.count(b"x-forwarded-for: 127.9.9.9\r\n"), 4)
        self.assertNotIn(b"198.51.", front)
        self.assertIn(b"post /.well-known/ohttp-gateway", back)
        for word in (b"forwarded", b"127.9.9.9", b"127.8.8.8", b"198.51.", b"curl"):
            self.assertNotIn(word, back)

    async def test_it_writes_down_nobody(self) -> None:
        """Neither who is answered, nor who finds the relay away."""
        source = "127.9.9.9"
        self.assertEqual(await deferToThread(self.curl, source=source), 400, "no gateway opens that")
        await self.stage.front[0].close()
        away = partial(self.curl, source=source)
        await deferToThread(until, "nobody listens", lambda: away() == 502)
        await deferToThread(self.caddy.stop)
        kept = [self.caddy.log, *(path for path in self.home.rglob("*") if path.is_file())]
        said = "".join(path.read_text(errors="replace") for path in kept if path.name != "Caddyfile")
        self.assertIn("shutdown complete", said)
        self.assertEqual([word for word in (source, "/r/shop", "ohttp", "curl/") if word in said], [])
