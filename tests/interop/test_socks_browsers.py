"""Chromium and Firefox through the SOCKS port, with a DNS server of our own that must never hear of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.protocol import DatagramProtocol
from twisted.names import dns
from twisted.trial.unittest import TestCase

from layer8.testing.browser import Chromium, Firefox
from tests.interop.daemons import folder, missing
from tests.interop.test_socks import site
from tests.socks.net import Net

PAGE = """<!doctype html><title>through layer8</title><h1>it loads</h1><script src="{other}/script.js"></script>"""
SCRIPT = """
async function fetched(path) {
    const answer = await fetch(path, {cache: "no-store"});
    return [answer.status, (await answer.arrayBuffer()).byteLength];
}
"""
TRAP = "127.77.7.7"
"""Where the machine's resolver sends its questions, as far as the browsers can see."""


class Trap(DatagramProtocol):
    """Writes down what is asked, and answers nothing."""

    noisy = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def datagramReceived(self, data: bytes, addr: tuple[str, int]) -> None:
        message = dns.Message()
        message.fromStr(data)
        self.asked += [str(query.name) for query in message.queries]


def trapped(home: Path) -> tuple[str, ...]:
    """Give the command that runs a program with the trap as its resolver."""
    (home / "resolv.conf").write_text(f"nameserver {TRAP}\noptions timeout:1 attempts:1\n")
    (home / "nsswitch.conf").write_text("hosts: files dns\n")
    return mounted(home, "resolv.conf", "nsswitch.conf")


def mounted(home: Path, *names: str) -> tuple[str, ...]:
    """Give the command that runs a program with files of `home` in the place of those in /etc."""
    mounts = " && ".join(f"mount --bind {home / name} {Path('/etc', name).resolve()}" for name in names)
    return ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")


class BrowserTests(TestCase):
    skip = missing(nginx="nginx", unshare="util-linux") or (
        None if os.geteuid() == 0 else "needs root, for port 53 and a resolv.conf of its own"
    )
    timeout = 120

    async def begin(self) -> tuple[str, ...]:
        """Start everything, and give the command that runs a program with the trap as its resolver."""
        nginx, _ = site()
        self.web = f"http://web.example.org:{nginx.plain}"
        other = f"http://other.example.org:{nginx.plain}"
        (nginx.files / "page.html").write_text(PAGE.format(other=other))
        (nginx.files / "script.js").write_text(SCRIPT)
        self.net = await Net.start(self, names={"web.example.org": "127.0.0.1", "other.example.org": "127.0.0.1"})
        self.trap = Trap()
        port = self.net.reactor.listenUDP(53, self.trap, interface=TRAP)
        self.addCleanup(port.stopListening)
        return trapped(folder(self))

    async def everything(self, start: Callable[..., Any]) -> None:
        prefix = await self.begin()
        ran = await self.net.run(*prefix, "getent", "ahostsv4", "trap.example.org")
        self.assertEqual((ran.code, ran.out), (2, b""), ran.text)
        self.assertEqual(set(self.trap.asked), {"trap.example.org"})  # whoever looks names up here is caught
        self.trap.asked.clear()
        async with await start(self.net.reactor, socks=f"127.0.0.1:{self.net.port}", prefix=prefix) as browser:
            page = await browser.page(f"{self.web}/page.html")
            self.assertEqual(await page.evaluate("document.querySelector('h1').textContent"), "it loads")
            six = await page.evaluate("Promise.all([1, 2, 3, 4, 5, 6].map(_ => fetched('/1k')))")
            self.assertEqual(six, [[200, 1024]] * 6)
            self.assertEqual(await page.evaluate("fetched('/16m')"), [200, 1 << 24])
        # Browsers also call home; so does that, if it wants a name, through the exit.
        self.assertLessEqual({"web.example.org", "other.example.org"}, set(self.net.asked))
        self.assertEqual(self.trap.asked, [])

    async def test_chromium(self) -> None:
        await self.everything(Chromium.start)

    test_chromium.skip = Chromium.absent()  # type: ignore[attr-defined]

    async def test_firefox(self) -> None:
        await self.everything(Firefox.start)

    test_firefox.skip = Firefox.absent()  # type: ignore[attr-defined]
