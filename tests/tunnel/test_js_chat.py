"""Sockets, events and pictures of a page through a real relay and gateway, in both browsers."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.web.client import Agent, readBody

from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel import socket_session
from tests.tunnel.backend import RED
from tests.tunnel.browsers import HEX, BrowserCase, probe
from tests.tunnel.test_js_page import COLOUR, EVENTS
from tests.tunnel.test_js_sockets import TALK

CHAT = """
globalThis.chat = (L8, count, size) => new Promise((done, fail) => {
  const socket = new L8.WebSocket("wss://shop.test/ws", "chat");
  socket.binaryType = "arraybuffer";
  const text = "x".repeat(size);
  let said = 0;
  let heard = 0;
  const more = () => { for (; said < count && said - heard < 256; said++) socket.send(`${said} ${text}`); };
  const began = performance.now();
  socket.onopen = more;
  socket.onmessage = ({ data }) => {
    if (data !== `${heard} ${text}`) fail(new Error(`${data} and not ${heard}`));
    if (++heard === count) socket.close(1000);
    else more();
  };
  socket.onerror = ({ error }) => fail(error);
  socket.onclose = ({ code }) => done([heard, code, performance.now() - began]);
});
"""


class JsChatTests(BrowserCase):
    skip = Chromium.absent()
    front: ClassVar[str] = "sidecar"

    async def begin(self, **settings: Any) -> Any:
        await self.open(kind=self.front, settings=settings)
        await self.run_js(f"{TALK} {CHAT} {EVENTS} await L8.connect(o)", o=self.stage.connect(session="memory"))
        return self.stage.gateways["shop"].backend

    async def test_chat(self) -> None:
        backend = await self.begin()
        await self.run_js("await L8.fetch('/cookies/set?seen=marker-cookie')")
        told = await self.run_js(
            """
            const said = ["marker-text", new Uint8Array(70000), ""];
            return talk(L8, "wss://shop.test/ws?room=marker-room", said, ["chat", "other"]);
            """
        )
        self.assertEqual(told["heard"], ["marker-text", [0] * 20, ""])
        self.assertEqual((told["protocol"], told["code"], told["clean"]), ("chat", 1000, True))
        call = next(one for one in backend.calls if one.uri.startswith("/ws"))
        self.assertEqual((call.uri, call.all("cookie")), ("/ws?room=marker-room", ["seen=marker-cookie"]))
        self.assertEqual(call.all("origin"), ["https://shop.test"])
        told = await self.run_js("return talk(L8, '/ws', ['close'])")
        self.assertEqual((told["code"], told["reason"], told["clean"]), (4001, "as asked", True))
        told = await self.run_js("return talk(L8, '/echo', ['never'])")
        self.assertEqual((told["heard"], told["error"], told["code"]), ([], "no-socket", 1006))

        for tap in (self.stage.front[0], self.stage.back["shop"]):
            self.assertNotIn(b"marker", tap.up + tap.down)

    async def test_across_keys(self) -> None:
        """Both sides change their keys after the same frames, again and again."""
        await self.begin()
        self.patch(socket_session, "SOCKET_REKEY", 64)
        source = probe().decode().replace("const SOCKET_REKEY = 1 << 20;", "const SOCKET_REKEY = 64;")
        self.stage.app_files["/probe.js"] = ("text/javascript", source.encode())
        await self.run_js(
            f"globalThis.made = (await import('/probe.js')).default; {HEX} await made.connect(o)",
            o=self.stage.connect(),
        )
        heard, code, _ = await self.run_js("return chat(made, 1000, 10)")
        self.assertEqual((heard, code), (1000, 1000))

    async def test_a_gateway_that_comes_back(self) -> None:
        await self.begin()
        end = self.stage.gateways["shop"]
        await self.run_js(
            """
            globalThis.closed = 0;
            globalThis.socket = new L8.WebSocket("/ws");
            globalThis.source = new L8.EventSource("/events?n=1000&gap=0.05");
            globalThis.ids = [];
            source.addEventListener("tick", ({ lastEventId }) => ids.push(Number(lastEventId)));
            globalThis.ended = new Promise((done) => (socket.onclose = ({ code }) => done(code)));
            await new Promise((done) => (socket.onopen = done));
            while (ids.length < 3) await new Promise((done) => setTimeout(done, 10));
            """
        )
        await end.stop()
        self.assertEqual(await self.run_js("return ended"), 1006)
        end.start()
        found = await self.run_js(
            """
            const before = ids.length;
            while (ids.length < before + 3) await new Promise((done) => setTimeout(done, 10));
            source.close();
            return [ids, (await talk(L8, "/ws", ["again"])).heard];
            """
        )
        self.assertEqual(found, [list(range(1, len(found[0]) + 1)), ["again"]])

    async def test_another_relay_and_newer_keys(self) -> None:
        """A socket takes the next relay, and a gateway that has thrown its keys away is asked for newer ones."""
        await self.open(kind=self.front, relays=3)
        await self.run_js(f"{TALK} await L8.connect(o)", o=self.stage.connect())
        for tap in self.stage.front[:2]:
            await tap.close()
        for _ in range(4):
            self.assertEqual((await self.run_js("return talk(L8, '/ws', ['hello'])"))["heard"], ["hello"])
        end = self.stage.gateways["shop"]
        end.rotate(drop=True)
        for relay in self.stage.relay_services:
            await relay.keeping._ask(relay.keeping.kept["shop"])
        told = await self.run_js("return [await talk(L8, '/ws', ['again']), (await L8.status()).tunnels[0].epoch]")
        self.assertEqual((told[0]["heard"], told[0]["code"]), (["again"], 1000))
        self.assertEqual(told[1], end.gateway.keys()[0].epoch)

    async def test_a_picture_that_is_for_the_tunnel_only(self) -> None:
        """Plain `<img>` shows it, by a blob: URL and by the worker; whoever asks without the tunnel is refused."""
        await self.begin(require=["/image.png"])
        end = self.stage.gateways["shop"]
        await self.run_js("await L8.serviceWorker({ paths: '/image.png' })")
        found = await self.run_js(
            COLOUR + "return [await colour(await L8.static('/image.png')), await colour('/image.png')]"
        )
        self.assertEqual(found, [[16, *RED, 255]] * 2)
        plain = await self.run_js(
            "return fetch(url, { mode: 'no-cors' }).then((answer) => answer.type)",
            url=f"http://127.0.0.1:{end.port}/image.png",
        )
        self.assertEqual(plain, "opaque")
        self.assertEqual(await self.directly(end.port, "/image.png"), 403)
        self.assertEqual(await self.directly(end.port, "/echo"), 200)

    async def directly(self, port: int, path: str) -> int:
        """Ask a gateway as anybody would; give the status."""
        agent = Agent(self.stage.reactor)
        answer = await agent.request(b"GET", f"http://127.0.0.1:{port}{path}".encode())
        await readBody(answer)
        return int(answer.code)


class JsChatFirefoxTests(JsChatTests):
    kind = Firefox
    front = "resource"
    skip = Firefox.absent()
