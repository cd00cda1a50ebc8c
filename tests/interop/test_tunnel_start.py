"""docs/tunnel.md as somebody reads it for the first time: its files and commands as they are, on other ports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

import layer8
from layer8.testing.browser import Chromium
from layer8.tunnel.client import L8Client
from tests.interop.daemons import Program, answers, folder, free_port
from tests.names import ROOT

PAGE = (ROOT / "docs" / "tunnel.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """Give the page's blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


class FiveMinutesTests(TestCase):
    skip = Chromium.absent()
    timeout = 100

    async def test_it_says_hello(self) -> None:
        from twisted.internet import reactor

        self.backend, self.gateway, self.relay = free_port(), free_port(), free_port()
        home = folder(self)
        pin = await deferToThread(self.follow, home)
        async with await Chromium.start(reactor, hosts={"notes.localhost": "127.0.0.1"}) as browser:
            page = await browser.page(f"http://notes.localhost:{self.relay}/")
            there = "document.body.textContent.trim()"
            await page.evaluate(f"(async () => {{ while (!{there}) await new Promise((r) => setTimeout(r, 10)); }})()")
            self.assertEqual((await page.evaluate("document.body.textContent")).strip(), "hello from the backend")
        self.assertIn("GET /hello.txt", (home / "sh.log").read_text())
        [python] = blocks("python")
        self.assertIn('L8Client(reactor, relay="http://127.0.0.1:5000", gateway="notes", pin="PIN")', python)
        async with L8Client(reactor, relay=f"http://127.0.0.1:{self.relay}", gateway="notes", pin=pin) as client:
            answer = await client.get("/hello.txt")
            self.assertEqual((answer.status, await answer.text()), (200, "hello from the backend\n"))

    def here(self, text: str) -> str:
        """Put our ports in the place of the page's."""
        for theirs, ours in ((8000, self.backend), (5002, self.gateway)):
            text = re.sub(rf"\b{theirs}\b", str(ours), text)
        return text

    def follow(self, home: Path) -> str:
        """Do what the page says, and give the pin."""
        environ = {"LAYER8_HOME": str(home / "state"), "PATH": f"{BIN}:/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
        site, init, run = blocks("sh")
        words = ["sh", "-c", f"{self.here(site)}wait"]
        Program.start(self, "sh", words, home, environ, lambda _: answers(self.backend))
        [toml] = blocks("toml")
        listen = f'[tunnel]\nlisten = ["tcp:{self.relay}:interface=127.0.0.1"]\n[[tunnel.gateway]]'
        text = self.here(toml).replace("[[tunnel.gateway]]", listen)
        text = text.replace("[gateway]\n", f'[gateway]\nlisten = ["tcp:{self.gateway}:interface=127.0.0.1"]\n', 1)
        (home / "layer8.toml").write_text(f'{text}\n[control]\nlisten = ["tcp:0:interface=127.0.0.1"]\n')
        told = subprocess.run(
            ["sh", "-c", init], cwd=home, env=environ, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        found = re.search(r"(?m)^pin +([\w-]{43})$", told)
        assert found is not None, told
        [page] = blocks("html")
        self.assertIn(f"/l8/{layer8.__version__}/l8.js", page)
        (home / "app" / "index.html").write_text(page.replace("PIN", found[1]))
        [script] = blocks("js")
        (home / "app" / "app.js").write_text(script)
        for line, port in zip(run.splitlines(), (self.gateway, self.relay), strict=True):
            name = line.split()[3]
            Program.start(self, name, line.split(), home, environ, lambda _, port=port: answers(port))  # type: ignore[misc]
        return found[1]


class ContainerTests(SynchronousTestCase):
    def test_it_runs_what_is_there(self) -> None:
        text = (ROOT / "docs" / "examples" / "tunnel" / "Containerfile").read_text()
        plugins = {path.stem.replace("_", "-") for path in (ROOT / "twisted" / "plugins").glob("layer8_*.py")}
        named: Any = set(re.findall(r"\blayer8-[a-z]+\b", text)) | set(
            re.findall(r" layer8 (layer8-[a-z]+)$", PAGE, re.M)
        )
        self.assertEqual(named, {"layer8-tunnel", "layer8-gateway"})
        self.assertLessEqual(named, plugins)
        self.assertIn('ENTRYPOINT ["twistd", "-n", "--pidfile="]', text)
        self.assertIn("docs/examples/tunnel/Containerfile", PAGE)
