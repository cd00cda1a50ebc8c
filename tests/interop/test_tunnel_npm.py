"""Oblivious HTTP by `hpke` and `bhttp-js` from npm, written from docs/tunnel-wire.md: as page, and as gateway."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from twisted.internet import threads
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel import dates
from layer8.tunnel.client import L8Client
from layer8.tunnel.service import alone
from layer8.tunnel.settings import GATEWAY_PATH
from tests.interop.daemons import Program, Scope, answers, folder, found, free_port, no_npm, npm
from tests.tunnel.browsers import BrowserCase
from tests.tunnel.by_hand import wall
from tests.tunnel.test_gateways import Rig

ASK = """
const { readKeys, sealRequest, types } = await import("/ohttp.js");
const keys = await readKeys(new Uint8Array(await (await fetch(relay + "/keys?raw")).arrayBuffer()));
const told = [];
for (const chunked of [true, false]) {
  // a page may set no date in a Request
  const request = new Request("https://shop.test/echo", { method: "POST", body: "hello ".repeat(5000) });
  const headers = new Headers([...request.headers, ["date", date]]);
  const { method, url } = request;
  const dressed = { method, url, headers, arrayBuffer: () => request.arrayBuffer() };
  const { body, open } = await sealRequest(keys, dressed, chunked);
  const [ask, answer] = types(chunked);
  const outer = await fetch(relay, { method: "POST", body, headers: { "content-type": ask }, credentials: "omit" });
  if (outer.status !== 200 || outer.headers.get("content-type") !== answer) throw new Error(`outer ${outer.status}`);
  const inner = await open(new Uint8Array(await outer.arrayBuffer()));
  told.push({ status: inner.status, body: await inner.text() });
}
return told;
"""

HERE = Path(__file__).parent / "npm"


def scripts(scope: Scope) -> Path:
    """Give a folder in which Node finds the peers."""
    where, modules = folder(scope), npm()
    assert modules is not None
    for path in HERE.glob("*.mjs"):
        shutil.copy(path, where)
    (where / "node_modules").symlink_to(modules / "node_modules")
    return where


def relay_of(reactor: Any, port: int, pin: str) -> Any:
    """Start a relay before a gateway on a port of loopback."""
    gateway = TunnelGatewayConfig(id="shop", endpoint=f"tcp:127.0.0.1:{port}", host="shop.test", identity=(pin,))
    relay = alone(reactor, TunnelConfig(listen=("tcp:0:interface=127.0.0.1",), gateway=(gateway,)))
    relay.startService()
    return relay


class PageTests(TestCase):
    """The page is Node's."""

    skip = no_npm()
    kind = "sidecar"

    def setUp(self) -> None:
        """Start a backend, a gateway and a relay."""
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.rig = Rig(reactor, self.kind)
        self.relay = relay_of(reactor, self.rig.hand.port, self.rig.gateway.pin)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.rig.close()))
        self.addCleanup(self.relay.stopService)
        self.where = scripts(self)

    async def ask(self, keys: str, post: str) -> None:
        """Ask in both forms, without content and with."""
        date = dates.write(wall() // 60 * 60).decode()
        node = found("node")
        assert node is not None
        words = [str(self.where / "client.mjs"), keys, post, "shop.test", date]
        out, err, code = await getProcessOutputAndValue(node, words, os.environ, str(self.where))
        self.assertEqual(code, 0, err[-2000:])
        told = json.loads(out)
        self.assertEqual(
            [(one["chunked"], one["status"]) for one in told], [(c, 200) for c in (True, True, False, False)]
        )
        content = b"hello " * 5000
        for one in told:
            said = json.loads(one["body"])
            fields = dict(said["fields"])
            self.assertEqual((fields["host"], fields["x-one"], fields["l8-encapsulated"]), ("shop.test", "1", "?1"))
            expected = content if said["method"] == "POST" else b""
            self.assertEqual(said["sha256"], hashlib.sha256(expected).hexdigest())

    async def test_to_the_gateway(self) -> None:
        gateway = f"http://127.0.0.1:{self.rig.hand.port}{GATEWAY_PATH}"
        await self.ask(gateway, gateway)

    async def test_through_the_relay(self) -> None:
        relay = f"http://127.0.0.1:{self.relay.ports[0]}/r/shop"
        await self.ask(f"{relay}/keys?raw", relay)


class ResourcePageTests(PageTests):
    """The same, with the gateway in twisted.web."""

    kind = "resource"


class GatewayTests(TestCase):
    """The gateway is Node's."""

    skip = no_npm()

    async def test_our_client_through_our_relay(self) -> None:
        from twisted.internet import reactor

        where, port = scripts(self), free_port()
        words = ["node", str(where / "gateway.mjs"), str(port), "shop", "shop.test"]
        program = await threads.deferToThread(
            Program.start, self, "gateway", words, where, {}, lambda program: answers(port) and program.said()
        )
        pin = program.said().split()[0]
        relay = relay_of(reactor, port, pin)
        self.addCleanup(relay.stopService)
        ours: dict[str, Any] = {
            "relay": f"http://127.0.0.1:{relay.ports[0]}",
            "gateway": "shop",
            "authority": "shop.test",
            "pin": pin,
        }
        async with L8Client(reactor, **ours) as client:
            answer = await client.get("/notes/7?a=1")
            told = await answer.json()
            self.assertEqual((answer.status, answer.header("x-of")), (201, "node"))
            self.assertEqual(
                (told["method"], told["url"], told["agent"]), ("GET", "https://shop.test/notes/7?a=1", "L8")
            )
            content = b"x" * 60_000
            answer = await client.post("/notes", content, headers={"content-type": "text/plain"})
            told = await answer.json()
            self.assertEqual((told["method"], told["body"]), ("POST", content.decode()))
            allowed = {"host", "content-type", "content-length", "transfer-encoding", "incremental", "connection"}
            self.assertLessEqual(set(told["outer"]), allowed)


class BrowserTests(BrowserCase):
    """The page is `hpke` and `bhttp-js` in a browser."""

    skip = no_npm() or Chromium.absent()

    async def test_through_the_relay(self) -> None:
        await self.open()
        modules = npm()
        assert modules is not None
        peers = {"hpke": "hpke/index.js", "bhttp-js": "bhttp-js/esm/mod.js"}
        text = (HERE / "ohttp.mjs").read_text()
        for name, path in peers.items():
            text = text.replace(f'from "{name}"', f'from "/npm/{path}"')
            folder_of = modules / "node_modules" / name
            for file in folder_of.rglob("*.js"):
                where = f"/npm/{name}/{file.relative_to(folder_of)}"
                self.stage.app_files[where] = ("text/javascript", file.read_bytes())
        self.stage.app_files["/ohttp.js"] = ("text/javascript", text.encode())
        told = await self.run_js(ASK, relay=f"{self.stage.relay}/r/shop", date=dates.write(wall() // 60 * 60).decode())
        self.assertEqual([one["status"] for one in told], [200, 200])
        for one in told:
            said = json.loads(one["body"])
            self.assertEqual((said["method"], said["size"]), ("POST", 30_000))


class FirefoxTests(BrowserTests):
    """The same in Firefox."""

    kind = Firefox
    skip = no_npm() or Firefox.absent()
