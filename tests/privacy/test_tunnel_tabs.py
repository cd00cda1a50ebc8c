"""What browsers say to the relay for two visitors who do the same is one text, but for what is sealed.

Each visitor has a browser of their own with a fresh profile. What goes up on both legs is taken apart: request lines,
fields with their order and values, the frames of sockets, the lengths of chunks. All of that has to be equal, and of
the rest hardly a byte.
"""

from __future__ import annotations

import json
from itertools import combinations
from operator import eq
from pathlib import Path
from typing import Any, ClassVar

from attrs import field, frozen
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

import layer8
from layer8.crypto.keys import NodeKey
from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel import manifest
from layer8.tunnel.client import L8Client
from layer8.tunnel.integrity import AppGateway
from layer8.tunnel.manifest import App
from tests.tunnel.stage import PAGE, Stage
from tests.tunnel.taps import Link, Tap

ACTION = """(async (options) => {
  const tunnel = await L8.connect({ ...options, session: "memory" });
  const out = [await (await L8.fetch("/cookies/set?visit=MARK-of-a-visit")).text()];
  out.push((await (await L8.fetch("/echo?q=MARK-of-a-query", { headers: { "X-One": "1" } })).json()).method);
  out.push((await (await L8.fetch("/echo", { method: "POST", body: "MARK-of-a-body".repeat(5000) })).json()).size);
  out.push((await L8.fetch("/bytes/70000", { method: "HEAD" })).status);
  const socket = new L8.WebSocket("/ws", "chat");
  await new Promise((done, failed) => { socket.onopen = done; socket.onerror = failed; });
  socket.send("MARK-of-a-message");
  out.push((await new Promise((done) => (socket.onmessage = done))).data);
  const closed = new Promise((done) => (socket.onclose = done));
  socket.close();
  await closed;
  await tunnel.close();
  return out;
})"""
DONE = ["{}", "GET", 70_000, 200, "MARK-of-a-message"]
MARKS = ("MARK", "X-One", "x-one", "cookies", "echo")
REQUESTS = 4
PATIENCE = 30  # seconds until a socket has closed on every leg
CLOSE = 0x88  # the last frame of a socket
CLOSES = (b"", b"\x03\xe8")  # what it may say, for everybody: 1000, or nothing if the other side was faster
HEAD = 7  # bytes of a sealed request that name key and algorithms
ENC = 32
FRESH = frozenset(("sec-websocket-key",))
"""A number that browsers, and the relay, throw anew for each socket (RFC 6455)."""


@frozen
class Message:
    """A request, or what a socket says: the text that everybody may read, and the bytes that nobody can."""

    line: str
    fields: tuple[tuple[str, str], ...]
    shape: tuple[object, ...]  # what is open of the body
    sealed: bytes = field(eq=False, repr=False)


def number(data: bytes, at: int) -> tuple[int, int]:
    """Read an integer of variable length (RFC 9000, section 16), and give where it ends."""
    size = 1 << (data[at] >> 6)
    return int.from_bytes(data[at : at + size]) & (1 << (8 * size - 2)) - 1, at + size


def chunks(body: bytes) -> tuple[tuple[object, ...], bytes]:
    """Give what is open of a sealed request in chunks, and the rest."""
    shape: list[object] = [body[:HEAD].hex()]
    sealed, at = body[HEAD : HEAD + ENC], HEAD + ENC
    while at < len(body):
        size, at = number(body, at)
        end = at + size if size else len(body)
        shape.append((size, end - at))
        sealed, at = sealed + body[at:end], end
    return tuple(shape), sealed


def frames(data: bytes) -> tuple[tuple[object, ...], bytes]:
    """Give what is open of a socket's whole frames, from the side that masks, and the rest without the masks."""
    shape: list[object] = []
    sealed, at = b"", 0
    while len(data) - at >= 6:
        first, size = data[at], data[at + 1] & 127
        assert data[at + 1] & 128, "a frame without a mask"
        width = {126: 2, 127: 8}.get(size, 0)
        at += 2
        size = int.from_bytes(data[at : at + width]) if width else size
        mask, at = data[at + width :][:4], at + width + 4
        content = bytes(one ^ mask[place % 4] for place, one in enumerate(data[at : at + size]))
        at += size
        if at > len(data):
            break  # the rest is still to come
        if first == CLOSE:
            assert content in CLOSES, content
            shape.append((first,))
        else:
            shape.append((first, size))
            sealed += content
    return tuple(shape), sealed


def messages(link: Link) -> list[Message]:
    """Take apart what went up on a connection."""
    found, data = [], bytes(link.up)
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        line, *lines = head.decode("latin-1").split("\r\n")
        pairs = [(name, value.strip()) for name, _, value in (one.partition(":") for one in lines)]
        told = {name.lower(): value for name, value in pairs}
        fields = tuple((name, "" if name.lower() in FRESH else value) for name, value in pairs)
        if told.get("upgrade", "").lower() == "websocket":
            shape, sealed = frames(data)
            data = b""
        else:
            size = int(told.get("content-length", "0"))
            body, data = data[:size], data[size:]
            shape, sealed = chunks(body) if body else ((), b"")
        found.append(Message(line, fields, shape, sealed))
    return found


def heard(tap: Tap) -> list[Message]:
    """Give all that went up, whatever connections it was on, sorted by what is open."""
    return sorted((one for link in tap.links for one in messages(link)), key=str)


def closed(said: list[Message]) -> bool:
    """Say whether the socket is among it, to its end: nothing comes after that."""
    return any(isinstance(part, tuple) and part[0] == CLOSE for one in said for part in one.shape)


class TabTests(TestCase):
    kind: ClassVar[Any] = Chromium
    skip = Chromium.absent()
    timeout = 100

    async def begin(self, app: Path | None = None) -> Stage:
        """Start everything; the relay has the gateway's keys already, from somebody else."""
        from twisted.internet import reactor

        stage = await Stage.start(reactor, apps={"shop": app} if app is not None else None)
        self.addCleanup(stage.close)
        async with L8Client(reactor, **stage.connect()) as client:
            self.assertEqual((await client.get("/echo")).status, 200)
        return stage

    async def visit(self, stage: Stage, url: str) -> dict[str, list[Message]]:
        """Let somebody new come, do what is done, and leave; give what was heard on each leg."""
        async with await self.kind.start(stage.reactor, hosts=stage.hosts) as browser:
            return await self.act(stage, browser, url)

    async def act(self, stage: Stage, browser: Any, url: str) -> dict[str, list[Message]]:
        """Do it in a new tab."""
        legs = {"to the relay": stage.front[0], "to the gateway": stage.back["shop"]}
        for tap in legs.values():
            tap.clear()
        page = await stage.page(browser, url)
        self.assertEqual(await page.evaluate(f"{ACTION}({json.dumps(stage.connect())})"), DONE)
        for _ in range(PATIENCE * 50):
            said = {name: heard(tap) for name, tap in legs.items()}
            if all(map(closed, said.values())):
                break
            await deferLater(stage.reactor, 0.02)
        await page.close()
        return said

    def alike(self, first: dict[str, list[Message]], second: dict[str, list[Message]]) -> None:
        """Hold that they are one text, of so many messages, and that what is sealed has nothing in common."""
        self.assertEqual(first, second)
        for leg, least in (("to the relay", 5), ("to the gateway", 5)):
            sealed = [one.sealed for one in (*first[leg], *second[leg]) if one.sealed]
            self.assertEqual(len(sealed), 2 * least, leg)
            self.assertTrue(all(closed(said[leg]) for said in (first, second)))
            for one, other in combinations(sealed, 2):
                same = sum(map(eq, one, other))
                self.assertLess(same, min(len(one), len(other)) // 20, leg)
            for mark in MARKS:
                self.assertNotIn(mark, str(first[leg]))

    async def test_two_fresh_ones(self) -> None:
        """Two browsers, each for the first time, with a page of another host than the relay's."""
        stage = await self.begin()
        self.alike(await self.visit(stage, stage.app), await self.visit(stage, stage.app))

    async def test_two_fresh_ones_with_a_mirrored_page(self) -> None:
        """The same with an app that the relay itself shows: what it is asked for as a mirror is one text, too."""
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "index.html").write_bytes(PAGE.replace(b"/l8/0/", f"/l8/{layer8.__version__}/".encode()))
        stage = await self.begin(folder)
        end = stage.gateways["shop"]
        gateway = AppGateway((stage.relay,), (end.authority,), (end.identity.node_id,))
        manifest.build(folder, App("shop", stage.mirror(), {"shop": gateway}), NodeKey.make())
        first, second = await self.visit(stage, stage.mirror()), await self.visit(stage, stage.mirror())
        self.assertIn("GET / HTTP/1.1", [one.line for one in first["to the relay"]])
        self.alike(first, second)

    async def test_two_tabs_of_one(self) -> None:
        """A second tab says the same, though the first has left something: that it need not ask whether it may ask."""
        stage = await self.begin()
        async with await self.kind.start(stage.reactor, hosts=stage.hosts) as browser:
            first, second = [await self.act(stage, browser, stage.app) for _ in range(2)]
        asked = [one for one in first["to the relay"] if one.line.startswith("OPTIONS")]
        self.assertTrue(0 < len(asked) < REQUESTS, "a round trip more for each request")
        for said in (first, second):
            said["to the relay"] = [one for one in said["to the relay"] if not one.line.startswith("OPTIONS")]
        self.alike(first, second)


class FirefoxTabTests(TabTests):
    """The same."""

    kind = Firefox
    skip = Firefox.absent()
