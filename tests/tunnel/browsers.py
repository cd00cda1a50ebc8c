"""A stage, a browser and a page that has run l8.js: what every test of the script begins with."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, ClassVar

from twisted.trial.unittest import TestCase

from layer8.testing.browser import Chromium
from tests.tunnel.stage import Stage

INSIDE = (
    *("hpke", "pair", "sealRequest", "seal", "opener", "Sequence", "Input", "whole", "readResponse", "readStatus"),
    *("writeHead", "padded", "MEDIA", "join", "letters", "varint", "number", "readKeys", "chooseKeys", "addCookies"),
    *("cookieField", "CODES", "minute", "checkOptions", "problemType"),
)
"""Names of l8.js that its users do not see."""


def script() -> str:
    """Give the text of l8.js."""
    return (files("layer8") / "web" / "tunnel" / "l8.js").read_text()


def probe(*more: str) -> bytes:
    """Give l8.js with what is inside of it shown as `globalThis.inside`."""
    return f"{script()}\nglobalThis.inside = {{ {', '.join((*INSIDE, *more))} }};\n".encode()


HEX = """
globalThis.unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (two) => parseInt(two, 16));
globalThis.hex = (bytes) => Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).join("");
"""


class BrowserCase(TestCase):
    """One test of a page; `kind` is the browser."""

    kind: ClassVar[Any] = Chromium
    timeout = 100

    async def open(self, *, inside: bool = False, **stage: Any) -> Any:
        """Start everything and give the page; with `inside`, `inside.NAME` gives what l8.js hides."""
        from twisted.internet import reactor

        self.stage = await Stage.start(reactor, **stage)
        self.addCleanup(self.stage.close)
        self.stage.app_files["/probe.js"] = ("text/javascript", probe())
        self.browser = await self.kind.start(reactor, hosts=self.hosts())
        self.addCleanup(self.browser.close)
        self.page = await self.stage.page(self.browser)
        if inside:
            await self.page.evaluate(f"(async () => {{ await import('/probe.js'); {HEX} }})()")
        return self.page

    def hosts(self) -> dict[str, str]:
        """Give the names that the browser knows."""
        return self.stage.hosts

    async def run_js(self, body: str, **values: Any) -> Any:
        """Run the body of an async function in the page, with these values as its names."""
        names = ", ".join(values)
        given = ", ".join(json.dumps(value) for value in values.values())
        return await self.page.evaluate(f"(async ({names}) => {{ {body} }})({given})")

    async def failure(self, expression: str, **values: Any) -> dict[str, Any]:
        """Give what a promise is rejected with, as an L8Error has it."""
        body = (
            f"try {{ await ({expression}); return null }} catch (error) {{"
            "const { name, code, leg, retryable, hint, message } = error;"
            "return { name, code, leg, retryable, hint, message }; }"
        )
        found: dict[str, Any] = await self.run_js(body, **values)
        self.assertIsNotNone(found, "it has not failed")
        return found
