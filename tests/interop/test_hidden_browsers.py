"""Chromium and Firefox at a hidden service, by its address and by names for it; no DNS server hears of any of them."""

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.testing.browser import Chromium, Firefox
from tests.interop.daemons import folder, missing
from tests.interop.hideout import offered
from tests.interop.test_demo_tour import demo, layer8
from tests.interop.test_socks_browsers import PAGE, SCRIPT, TRAP, Trap, trapped

SIZE = 16 << 20


class BrowserTests(TestCase):
    skip = missing(nginx="nginx", sshd="openssh-server", unshare="util-linux") or (
        None if os.geteuid() == 0 else "needs root, for port 53 and a resolv.conf of its own"
    )
    timeout = 120

    async def everything(self, start: Callable[..., Any], name: str) -> None:
        from twisted.internet import reactor

        wheel: Any = reactor
        web = await deferToThread(offered)
        address = web.hide.address
        (web.nginx.files / "script.js").write_text(SCRIPT)
        (web.nginx.files / "page.html").write_text(PAGE.format(other=f"http://{name}.l8.alt"))
        await deferToThread(layer8, "name", "pin", name, address)
        await deferToThread(layer8, "name", "pin", f"{name}-link", web.hide.told["magnet"])
        trap = Trap()
        self.addCleanup(wheel.listenUDP(53, trap, interface=TRAP).stopListening)
        async with await start(wheel, socks=demo().socks, prefix=trapped(folder(self))) as browser:
            # The page takes its script from the same service under its petname.
            page = await browser.page(f"http://{address}/page.html")
            self.assertEqual(await page.evaluate("document.querySelector('h1').textContent"), "it loads")
            self.assertEqual(await page.evaluate("fetched('/16m')"), [200, SIZE])
            for host in (f"{name}.l8.alt", f"{name}-link.l8.alt"):
                page = await browser.page(f"http://{host}/page.html")
                self.assertEqual(await page.evaluate("document.querySelector('h1').textContent"), "it loads")
                self.assertEqual(await page.evaluate("location.host"), host)
                six = await page.evaluate("Promise.all([1, 2, 3, 4, 5, 6].map(_ => fetched('/1k')))")
                self.assertEqual(six, [[200, 1024]] * 6)
        self.assertEqual([one for one in trap.asked if "l8" in one], [])

    async def test_chromium(self) -> None:
        await self.everything(Chromium.start, "chromium")

    test_chromium.skip = Chromium.absent()  # type: ignore[attr-defined]

    async def test_firefox(self) -> None:
        await self.everything(Firefox.start, "firefox")

    test_firefox.skip = Firefox.absent()  # type: ignore[attr-defined]
