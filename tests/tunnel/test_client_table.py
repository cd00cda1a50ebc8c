"""What a backend hears and its client gets is the same with L8Client as with a browser's own `fetch`: the table."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from layer8.testing.browser import Chromium
from layer8.tunnel.client import REDIRECTS, L8Client, L8Error
from tests.tunnel.stage import Stage
from tests.tunnel.table import ROWS, Row, answered, heard
from tests.tunnel.test_js_table import ASK


class ClientTableTests(TestCase):
    """A page asks plainly at the backend's own origin, the client through the tunnel."""

    timeout = 100
    skip = Chromium.absent()
    kind = "sidecar"

    async def asked(self, client: L8Client, row: Row) -> dict[str, Any]:
        content = row.content()
        fields = [*row.fields, *([("content-type", content[1])] if content and content[1] else [])]
        if any(name.lower() == "content-type" for name, _ in row.fields):
            fields = list(row.fields)
        try:
            follows = 0 if row.redirect == "error" else REDIRECTS
            data = content[0] if content else None
            answer = await client.request(row.method, row.path, headers=fields, data=data, redirects=follows)
            if row.redirect == "error" and 300 <= answer.status < 400:
                return {"failed": True}
            found = await answer.content()
        except L8Error as error:
            return {"failed": True, "error": str(error)}
        parts = urlsplit(answer.url)
        mark = "?" if parts.query else ""
        return {
            "status": answer.status,
            "fields": [[name, answer.header(name)] for name in dict.fromkeys(name for name, _ in answer.headers)],
            "size": len(found),
            "sha256": hashlib.sha256(found).hexdigest(),
            "path": f"{parts.path}{mark}{parts.query}",
            "redirected": answer.redirected,
        }

    async def test_table(self) -> None:
        from twisted.internet import reactor

        stage = await Stage.start(reactor, kind=self.kind)
        self.addCleanup(stage.close)
        browser = await Chromium.start(reactor, hosts=stage.hosts)
        self.addCleanup(browser.close)
        backend = stage.gateways["shop"].backend
        page = await browser.page(f"{backend.origin}/page")
        client = L8Client(reactor, **stage.connect())
        self.assertGreaterEqual(len(ROWS), 60)
        wrong = []
        for row in ROWS:
            backend.clear()
            given = json.dumps([{"path": row.path, "init": row.init()}])
            [plain] = await page.evaluate(f"(async (ask, rows) => {{ {ASK} }})(fetch, {given})")
            plainly = [heard(one) for one in backend.calls if one.uri != "/favicon.ico"]
            backend.clear()
            told = await self.asked(client, row)
            inside = [heard(one) for one in backend.calls]
            if row.fails:
                plainly = inside = []
                self.assertTrue(plain.get("failed"), row.name)
            if (answered(row, plain), plainly) != (answered(row, told), inside):
                wrong.append((row.name, plain, told, plainly, inside))
        for one in wrong:
            print(json.dumps(one)[:1500], "\n")
        await client.close()
        self.assertEqual([one[0] for one in wrong], [])

    async def test_nobody_sees_that_it_is_no_page(self) -> None:
        """Inside the same fields in the same order, outside the same lengths, as `L8.fetch` has them."""
        from twisted.internet import reactor

        stage = await Stage.start(reactor)
        self.addCleanup(stage.close)
        browser = await Chromium.start(reactor, hosts=stage.hosts)
        self.addCleanup(browser.close)
        page = await stage.page(browser)
        await page.evaluate(f"L8.connect({json.dumps(stage.connect())}).then(() => 1)")
        client = L8Client(reactor, **stage.connect())
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        calls = stage.gateways["shop"].backend.calls

        def seen() -> tuple[Any, Any]:
            [called] = calls
            fields = [pair for pair in called.fields if pair[0] != "date"]
            sizes = re.findall(rb"content-length: *(\d+)", stage.front[0].up, re.IGNORECASE)
            calls.clear()
            stage.front[0].clear()
            return (called.method, called.uri, fields, called.size), [int(size) for size in sizes if int(size)]

        for number, row in enumerate((ROWS[0], *(row for row in ROWS if row.path == "/echo" and row.fields))):
            calls.clear()
            stage.front[0].clear()
            given = json.dumps([{"path": row.path, "init": row.init()}])
            [told] = await page.evaluate(f"(async (ask, rows) => {{ {ASK} }})(L8.fetch, {given})")
            self.assertEqual(told["status"], 200)
            by_page = seen()
            self.assertNotIn("failed", await self.asked(client, row))
            by_client = seen()
            self.assertEqual(by_client[0], by_page[0], row.name)
            if number:  # the first has asked for the keys before
                self.assertEqual(by_client[1], by_page[1], row.name)


class ResourceTableTests(ClientTableTests):
    """The same with the gateway in twisted.web."""

    kind = "resource"
