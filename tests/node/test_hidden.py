"""Hidden services on whole nodes: offered by a configuration or by a call, visited by SOCKS and by a tunnel."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest
from twisted.web.server import Site
from twisted.web.static import Data

from layer8.node.service import Node
from tests.node.test_service import NodeCase

RELAY = """
[control]
listen = []
[relay]
network = "test-hidden"
listen = ["tcp:0:interface=127.0.0.1"]
links = 1
drain_s = 0
peers = {peers}
[dht]
enabled = true
listen = "udp:0:interface=127.0.0.1"
bootstrap = {bootstrap}
[socks]
listen = []
"""
CLIENT = """
[control]
listen = []
[relay]
network = "test-hidden"
listen = []
relay = false
drain_s = 0
peers = {peers}
[socks]
listen = {socks}
{more}
"""
HERE = '["tcp:0:interface=127.0.0.1"]'
RELAYS = 7
PAGE = b"It came a long way.\n"


def listed(words: list[str]) -> str:
    return str(words).replace("'", '"')


class HiddenNodeCase(NodeCase):
    """Relays that keep the DHT, and nodes that know them."""

    async def network(self) -> None:
        first = self.start(RELAY.format(peers=[], bootstrap=[]), dht=True)
        assert first.dht is not None
        port = first.dht.listening.split(":")[1]
        known = RELAY.format(peers=listed([self.where(first)]), bootstrap=listed([f"127.0.0.1:{port}"]))
        self.relays = [first, *(self.start(known, dht=True) for _ in range(RELAYS - 1))]
        await self.until(lambda: all(len(one.relay.database) == RELAYS - 1 for one in self.relays))

    async def member(self, more: str = "", socks: str = "[]") -> Node:
        """Start a node that carries nothing, and wait until it knows the others."""
        node = self.start(CLIENT.format(peers=listed([self.where(self.relays[0])]), socks=socks, more=more))
        await self.until(lambda: len(node.relay.database) == RELAYS)
        return node

    def page(self, text: bytes = PAGE) -> int:
        page = Data(text, "text/plain")
        page.isLeaf = True
        port = self.clock.listenTCP(0, Site(page), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def published(self, node: Node, name: str) -> Any:
        hosting = node.hosts.get(name)
        assert hosting is not None
        await self.until(lambda: hosting.state == "published")
        return hosting

    async def curl(self, node: Node, url: str, *words: str) -> bytes:
        assert node.socks is not None
        return await self.run_curl(
            "--socks5-hostname", f"127.0.0.1:{node.socks.listening[0].split(':')[1]}", url, *words
        )

    async def run_curl(self, *words: str) -> bytes:
        program = shutil.which("curl")
        if program is None:
            raise SkipTest("needs the package curl")
        out, err, code = await getProcessOutputAndValue(
            program, ["-sS", "--noproxy", "", "--max-time", "40", *words], reactor=self.clock
        )
        if code:
            raise AssertionError(err.decode())
        return bytes(out)


class VisitTests(HiddenNodeCase):
    async def test_a_page(self) -> None:
        """G37: offered by a configuration, visited with curl by SOCKS and by a tunnel."""
        await self.network()
        text = Random(3).randbytes(1 << 20)
        there = await self.member(f'[service.blog]\nports = {{ 80 = "127.0.0.1:{self.page(text)}" }}')
        here = await self.member(socks=HERE)
        hosting = await self.published(there, "blog")
        found = await self.curl(here, f"http://www.{hosting.address}/")
        self.assertEqual(hashlib.sha256(found).digest(), hashlib.sha256(text).digest())
        row = await here.tunnels.open(f"127.0.0.42:0>{hosting.address}>80")
        at = row.listening[0]
        self.assertIn("interface=127.0.0.42", at)
        self.assertEqual(await self.run_curl(f"http://127.0.0.42:{at.split(':')[1]}/"), text)
        # One key, and a file that is for its owner alone.
        path = Path(there._frame.home / "services" / "blog.pem")
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
