"""The tunnel's demo without hands: everything that its page has a button for, by a browser or by the Python client."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from attrs import define, field, frozen

from layer8.core.errors import Layer8Error
from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel.client import L8Client, L8Error
from layer8.tunnel.demo_stage import AUTHORITY, ID, Stage

NOTE: Final = "Meet me at noon, by the old oak"
START_TIME: Final = 20.0
"""Seconds until the page stands."""
PLAY_TIME: Final = 60.0
"""Seconds until a browser has pressed every button; it takes a twentieth of that."""

_STANDS: Final = """
new Promise((resolve, reject) => {
  const late = setTimeout(() => reject(new Error("the page does not stand")), %d);
  const look = () => globalThis.demo ? (clearTimeout(late), resolve(true)) : setTimeout(look, 10);
  look();
})
"""


@frozen
class Ask:
    """What somebody has asked, as they see it."""

    title: str
    line: str
    said: str
    answer: str
    ms: float


@frozen
class Deed:
    """What a bad relay has tried, and who noticed."""

    name: str
    good: bool
    verdict: str


@define
class Played:
    """What was asked and tried; `by` did it, and `words` are what the relay must not learn."""

    by: str
    asks: list[Ask] = field(factory=list)
    deeds: list[Deed] = field(factory=list)
    words: list[str] = field(factory=list)


def browser() -> Any:
    """Give the class of a browser that is installed, None if there is none."""
    return next((one for one in (Chromium, Firefox) if one.absent() is None), None)


async def by_browser(reactor: Any, stage: Stage, kind: Any) -> Played:
    """Let a headless browser open the page and press every button."""
    async with await kind.start(reactor, hosts={f"{ID}.localhost": "127.0.0.1"}) as running:
        page = await running.page(stage.url)
        await page.evaluate(_STANDS % (START_TIME * 1000))
        told = await page.evaluate("globalThis.demo.all()")
        return Played(
            f"a headless {kind.__name__}",
            [Ask(one["title"], one["line"], one["said"], one["answer"], one["ms"]) for one in told["asks"]],
            [Deed(one["name"], one["good"], one["verdict"]) for one in told["deeds"]],
            told["words"],
        )


async def by_client(reactor: Any, stage: Stage, *, briefly: bool = False) -> Played:
    """Do the same with the Python client, but for the chat; `briefly` with a note only."""
    played = Played("the Python client", words=[NOTE])
    hands = _Hands(reactor, stage, played)
    async with hands.client() as client:
        await hands.write(client)
        if not briefly:
            await hands.ask(client)
        await hands.replay()
        await hands.keys()
        await hands.change(client)
    told = await stage.front.do("read", {"words": [NOTE, hands.note]})
    good = not told["found"] and not told["opened"]
    hands.deed("read", good, "There is nothing to read.", "It could be read!")
    return played


@define(eq=False)
class _Hands:
    """Presses the buttons."""

    reactor: Any
    stage: Stage
    played: Played
    note: str = ""

    def client(self) -> L8Client:
        told = self.stage.connect()
        relay = f"http://127.0.0.1:{self.stage.port}"
        return L8Client(self.reactor, relay=relay, gateway=ID, authority=AUTHORITY, pin=told["pin"])

    def deed(self, name: str, good: bool, yes: str, no: str) -> None:
        self.played.deeds.append(Deed(name, good, yes if good else no))

    async def one(self, title: str, line: str, said: str, asking: Callable[[], Awaitable[Any]]) -> bytes:
        began = self.reactor.seconds()
        answer = await asking()
        content: bytes = await answer.content()
        spent = (self.reactor.seconds() - began) * 1000
        self.played.asks.append(Ask(title, line, said, str(answer.status), spent))
        return content

    async def write(self, client: L8Client) -> None:
        wrote = await self.one(
            "You write a note", "POST /notes", NOTE, lambda: client.post("/notes", json={"text": NOTE})
        )
        self.note = str(json.loads(wrote)["path"])
        await self.one("You read your note", f"GET {self.note}", "", lambda: client.get(self.note))

    async def ask(self, client: L8Client) -> None:
        picture, edge = secrets.token_bytes(12_000), secrets.token_hex(16)
        form = (
            f'--{edge}\r\nContent-Disposition: form-data; name="picture"; filename="holiday.png"\r\n'
            f"Content-Type: image/png\r\n\r\n"
        ).encode()
        body = form + picture + f"\r\n--{edge}--\r\n".encode()
        kind = {"content-type": f"multipart/form-data; boundary={edge}"}
        wrote = await self.one(
            "You upload a picture",
            "POST /pictures",
            f"holiday.png, {len(picture):,} bytes",
            lambda: client.post("/pictures", body, headers=kind),
        )
        place = str(json.loads(wrote)["path"])
        await self.one("Your page shows it", f"GET {place}", "", lambda: client.get(place))
        await self.one("You watch a stream", "GET /stream", "", lambda: client.get("/stream"))

    async def replay(self) -> None:
        told = await self.stage.front.do("replay", {})
        good = told["noticed"] == "repeat" and told["calls_before"] == told["calls_after"] and told["status"] == 200
        self.deed("replay", good, "The gateway noticed.", "Nobody noticed!")

    async def keys(self) -> None:
        before = await self.stage.front.do("keys", {"on": True})
        code = ""
        try:
            async with self.client() as fresh:
                await fresh.get(self.note)
        except L8Error as error:
            code = error.code
        after = await self.stage.front.do("keys", {"on": False})
        good = code == "keys-signature" and after["posts"] == before["posts"] and after["given"] > before["given"]
        self.deed("keys", good, "Your page noticed.", "Nobody noticed!")

    async def change(self, client: L8Client) -> None:
        before = await self.stage.front.do("change", {})
        code = ""
        try:
            await client.get(self.note)
        except Layer8Error as error:
            code = str(getattr(error, "code", ""))
        self.played.asks.append(Ask("You read it, and the relay changes a byte", f"GET {self.note}", "", code, 0.0))
        after = await self.stage.front.do("counts", {})
        good = code == "unopened" and after["calls"] == before["calls"] and after["changed"] > before["changed"]
        self.deed("change", good, "The gateway noticed, and so your page did.", "Nobody noticed!")
