"""What a page gets and its backend hears is the same with `L8.fetch` as with `fetch`: the table, in both browsers."""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

from layer8.testing.browser import Firefox
from tests.tunnel.browsers import BrowserCase
from tests.tunnel.table import BODY_JS, ROWS, Row, answered, heard

ASK = (
    BODY_JS
    + """
const hex = (bytes) => Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).join("");
const sha256 = async (data) => hex(new Uint8Array(await crypto.subtle.digest("SHA-256", data)));
const out = [];
for (const { path, init } of rows) {
  try {
    const more = { body: bodyOf(init.body), credentials: "omit", cache: "no-store" };
    const answer = await ask(path, { ...init, ...more });
    const data = new Uint8Array(await answer.arrayBuffer());
    const { pathname, search } = new URL(answer.url);
    out.push({ status: answer.status, fields: [...answer.headers], size: data.length, sha256: await sha256(data),
      path: pathname + search, redirected: answer.redirected });
  } catch (error) {
    out.push({ failed: true, error: `${error.name} ${error.code ?? ""} ${error.message}` });
  }
}
return out;
"""
)


class JsTableTests(BrowserCase):
    """One page asks plainly at the backend's own origin, one through the tunnel."""

    async def asked(self, page: Any, how: str, rows: list[Row]) -> list[dict[str, Any]]:
        given = json.dumps([{"path": row.path, "init": row.init()} for row in rows])
        found: list[dict[str, Any]] = await page.evaluate(f"(async (ask, rows) => {{ {ASK} }})({how}, {given})")
        return found

    async def test_table(self) -> None:
        page = await self.open()
        backend = self.stage.gateways["shop"].backend
        beside = await self.browser.page(f"{backend.origin}/page")
        await self.run_js("await L8.connect(options)", options=self.stage.connect())
        self.assertGreaterEqual(len(ROWS), 60)
        wrong = []
        for row in ROWS:
            backend.clear()
            [plain] = await self.asked(beside, "fetch", [row])
            plainly = [heard(one) for one in backend.calls if one.uri != "/favicon.ico"]
            backend.clear()
            [tunnelled] = await self.asked(page, "L8.fetch", [row])
            inside = [heard(one) for one in backend.calls]
            if row.fails:
                plainly = inside = []
                self.assertTrue(plain.get("failed"), row.name)
            expected, found = [answered(row, plain), *plainly], [answered(row, tunnelled), *inside]
            wrong += [(row.name, one, other) for one, other in zip_longest(expected, found) if one != other]
            if row.fails is False and tunnelled.get("failed"):
                wrong.append((row.name, plain.get("error"), tunnelled["error"]))
        for one in wrong:
            print(json.dumps(one)[:700], "\n")
        self.assertEqual([one[0] for one in wrong], [])


class FirefoxJsTableTests(JsTableTests):
    """The same."""

    kind = Firefox
    skip = Firefox.absent()
