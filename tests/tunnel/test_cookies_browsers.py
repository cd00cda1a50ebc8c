"""Browsers make of Set-Cookie what the jar makes of it: its rows, given to both."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from layer8.testing.browser import Chromium, Firefox
from tests.tunnel.browsers import BrowserCase
from tests.tunnel.cookies import ROWS

ASK = """(async (count) => {
  const found = [];
  for (let row = 0; row < count; row++) {
    const answer = await fetch(`/a/b?row=${row}`, { credentials: "same-origin" });
    await answer.text();
    found.push(await (await fetch("/a/b", { credentials: "same-origin" })).text());
    await fetch("/clear");
  }
  return found;
})(%d)"""


class _Cookies(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        request.setHeader("cache-control", "no-store")
        if request.path == b"/clear":
            request.setHeader("clear-site-data", '"cookies"')
            for path in (b"/", b"/a", b"/a/", b"/a/b", b"/x"):
                for name in (b"a", b"b", b"c", b"__Secure-a", b"__Host-a", b""):
                    request.responseHeaders.addRawHeader(
                        b"set-cookie", b"%s=; Max-Age=0; Path=%s; Secure" % (name, path)
                    )
                    request.responseHeaders.addRawHeader(b"set-cookie", b"%s=; Max-Age=0; Path=%s" % (name, path))
            return b""
        if b"row" in request.args:
            for line in ROWS[int(request.args[b"row"][0])][0]:
                request.responseHeaders.addRawHeader(b"set-cookie", line.encode())
        found = request.requestHeaders.getRawHeaders(b"cookie") or [b""]
        return bytes(found[0])


class CookieTests(TestCase):
    kind: ClassVar[Any] = Chromium
    skip = Chromium.absent()
    timeout = 60
    unlike: ClassVar[dict[str, str]] = {}  # rows of one line that this browser takes otherwise

    async def test_rows(self) -> None:
        from twisted.internet import reactor as running

        reactor: Any = running
        site = Site(_Cookies())
        site.noisy = False
        port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        async with await self.kind.start(reactor, hosts={"shop.localhost": "127.0.0.1"}) as browser:
            page = await browser.page(f"http://shop.localhost:{port.getHost().port}/a/b")
            found = await page.evaluate(ASK % len(ROWS))
        wanted = [self.unlike.get(lines[0], wanted) for lines, wanted in ROWS]
        wrong = [(row[0], told) for row, told, right in zip(ROWS, found, wanted, strict=True) if told != right]
        self.assertEqual(wrong, [])


class FirefoxCookieTests(CookieTests):
    """The same, but for cookies without a name, which the revision of RFC 6265 takes and Firefox does not."""

    kind = Firefox
    skip = Firefox.absent()
    unlike: ClassVar[dict[str, str]] = {"a": "a=", "=a": ""}


class JarOfPagesTests(BrowserCase):
    """The jar of l8.js makes the same of them."""

    async def test_rows(self) -> None:
        await self.open(inside=True)
        body = """
            const url = new URL("https://shop.example/a/b");
            return rows.map((lines) => inside.cookieField(inside.addCookies([], lines, url, 1e12), url, 1e12));
        """
        found = await self.run_js(body, rows=[lines for lines, _ in ROWS])
        wrong = [(row, told) for row, told in zip(ROWS, found, strict=True) if told != row[1]]
        self.assertEqual(wrong, [])
