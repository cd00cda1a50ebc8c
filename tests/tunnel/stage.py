"""Relays, gateways and their backends on loopback, with ears on every leg, for the tests of what talks to them.

::

    async with await Stage.start(reactor) as stage:
        page = await stage.page(browser)
        text = await page.evaluate(f"L8.connect({json.dumps(stage.connect())}).then(t => t.fetch('/echo')).then(r => r.text())")
        self.assertEqual(stage.gateways["shop"].backend.calls[0].uri, "/echo")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from attrs import define, field

from layer8.crypto.keys import NodeKey
from layer8.tunnel.keys import pin_text
from tests.tunnel.backend import Backend
from tests.tunnel.stand_in import StandIn
from tests.tunnel.taps import Tap


@define(eq=False)
class End:
    """A gateway with what is behind it."""

    id: str
    backend: Backend
    identity: NodeKey = field(factory=NodeKey.make)
    held: Any = None

    @property
    def pin(self) -> str:
        """Give its identity as pages pin it."""
        return pin_text(self.identity.node_id)

    @property
    def authority(self) -> str:
        """Give the name that it answers for."""
        return f"{self.id}.test"

    @property
    def origin(self) -> str:
        """Give the origin of that name."""
        return f"https://{self.authority}"

    def rotate(self) -> None:
        """Make a new key, out of turn."""
        self.held.rotate()


@define(eq=False)
class Stage:
    """See the module."""

    reactor: Any
    gateways: dict[str, End]
    front: list[Tap] = field(factory=list)
    back: dict[str, Tap] = field(factory=dict)
    app_files: dict[str, tuple[str, bytes]] = field(factory=dict)
    _parts: list[Any] = field(factory=list)

    @classmethod
    async def start(
        cls, reactor: Any, *, gateways: Sequence[str] = ("shop",), relays: int = 1, kind: str = "resource"
    ) -> Stage:
        """Start everything."""
        stage = cls(reactor, {name: End(name, Backend(reactor)) for name in gateways})
        for end in stage.gateways.values():
            end.backend.open()
        stand = StandIn(reactor, stage.gateways, stage.app_files)
        stage._parts.append(stand)
        for name, held in stand.held.items():
            stage.gateways[name].held = held
        for _ in range(relays):
            tap = Tap(reactor, stand.port.getHost().port)
            tap.listen()
            stage.front.append(tap)
        return stage

    @property
    def relays(self) -> list[str]:
        """Give the relays' own origins."""
        return [f"http://127.0.0.1:{tap.port}" for tap in self.front]

    @property
    def relay(self) -> str:
        """Give the first of them."""
        return self.relays[0]

    @property
    def app(self) -> str:
        """Give the address of a page that has loaded l8.js."""
        return f"http://app.localhost:{self.front[0].port}/"

    @property
    def hosts(self) -> dict[str, str]:
        """Give what browsers are to know of names."""
        return {"app.localhost": "127.0.0.1"}

    def connect(self, gateway: str = "shop", **more: Any) -> dict[str, Any]:
        """Give what a client connects with."""
        end = self.gateways[gateway]
        relays = self.relays
        found = {"gateway": end.id, "authority": end.authority, "pin": end.pin}
        return {"relay": relays if len(relays) > 1 else relays[0], **found, **more}

    async def page(self, browser: Any) -> Any:
        """Open the page, and wait until it has L8."""
        page = await browser.page(self.app)
        wait = (
            "new Promise(r => { const t = setInterval(() => { if (globalThis.L8) { clearInterval(t); r(true) } }, 5) })"
        )
        await page.evaluate(wait)
        return page

    async def close(self) -> None:
        """Stop everything."""
        for tap in [*self.front, *self.back.values()]:
            await tap.close()
        for part in self._parts:
            await part.close()
        for end in self.gateways.values():
            await end.backend.close()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()
