"""curl at the SOCKS port of a whole network: pages, bulk both ways, crowds, users kept apart."""

import hashlib
import os
from functools import cache
from typing import Any

from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from layer8.config.network import SocksConfig
from tests.interop.daemons import RUN, folder, missing
from tests.interop.stage import MIB, Nginx, pattern, sha256
from tests.socks.net import Net

SIZE = 16 * MIB
NAMES = {"web.example.org": "127.0.0.1", "other.example.org": "127.0.0.1", "v6.example.org": "::1"}


@cache
def site() -> tuple[Nginx, dict[str, str]]:
    """Start the one nginx of this module, and give the hashes of its files."""
    nginx = Nginx.start(RUN, ["web.example.org"])
    return nginx, {name: pattern(nginx.files / name, size) for name, size in {"1k": 1024, "16m": SIZE}.items()}


class Summed(Resource):
    """Answers a POST with the hash of what came."""

    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        return hashlib.sha256(request.content.read()).hexdigest().encode()


class CurlTests(TestCase):
    skip = missing(curl="curl", nginx="nginx")
    timeout = 120

    async def begin(self) -> None:
        self.nginx, self.sums = site()
        self.net = await Net.start(self, names=NAMES)
        self.web = f"http://web.example.org:{self.nginx.plain}"

    async def test_page_by_name(self) -> None:
        await self.begin()
        ran = await self.net.curl("--fail", f"{self.web}/1k")
        self.assertEqual((ran.code, hashlib.sha256(ran.out).hexdigest()), (0, self.sums["1k"]), ran.text)
        self.assertEqual(self.net.asked, ["web.example.org"])
        (circuit,) = self.net.circuits
        self.assertEqual(len(circuit.hops), 3)
        self.assertEqual(circuit.path[-1].identity, self.net.exit.key.node_id)

    async def test_tls(self) -> None:
        await self.begin()
        ran = await self.net.curl(
            "--fail", "--cacert", str(self.nginx.certificate), f"https://web.example.org:{self.nginx.secure}/1k"
        )
        self.assertEqual((ran.code, hashlib.sha256(ran.out).hexdigest()), (0, self.sums["1k"]), ran.text)

    async def test_bulk_both_ways(self) -> None:
        await self.begin()
        home = folder(self)
        ran = await self.net.curl("--fail", "-o", str(home / "got"), f"{self.web}/16m")
        self.assertEqual((ran.code, sha256(home / "got")), (0, self.sums["16m"]), ran.text)
        ran = await self.net.curl("--fail", "-T", str(self.nginx.files / "16m"), f"{self.web}/up/socks")
        arrived = self.nginx.uploads / "socks"
        self.assertEqual((ran.code, sha256(arrived)), (0, self.sums["16m"]), ran.text)
        arrived.unlink()

    async def test_post(self) -> None:
        await self.begin()
        site = self.net.reactor.listenTCP(0, Site(Summed()), interface="127.0.0.1")
        self.addCleanup(site.stopListening)
        body = os.urandom(3 * MIB)
        file = folder(self) / "body"
        file.write_bytes(body)
        url = f"http://web.example.org:{site.getHost().port}/"
        ran = await self.net.curl("--fail", "-H", "Expect:", "--data-binary", f"@{file}", url)
        self.assertEqual((ran.code, ran.out), (0, hashlib.sha256(body).hexdigest().encode()), ran.text)

    async def test_a_crowd(self) -> None:
        await self.begin()
        home = folder(self)
        ran = await self.net.curl(
            "--fail", "--parallel", "--parallel-immediate", "--parallel-max", "50", "-o", f"{home}/#1",
            f"{self.web}/1k?[1-100]",
        )  # fmt: skip
        self.assertEqual(ran.code, 0, ran.text)
        self.assertEqual([sha256(home / str(n)) for n in range(1, 101)], [self.sums["1k"]] * 100)
        self.assertEqual(len(self.net.circuits), 1)

    async def test_addresses_and_names_that_lead_nowhere(self) -> None:
        await self.begin()
        ran = await self.net.curl("--fail", f"http://127.0.0.1:{self.nginx.plain}/1k")
        self.assertEqual((ran.code, len(ran.out), self.net.asked), (0, 1024, []), ran.text)
        ran = await self.net.curl(f"http://nowhere.example.org:{self.nginx.plain}/")
        self.assertEqual((ran.code, b"(4)" in ran.err), (97, True), ran.text)  # CURLE_PROXY: host unreachable
        ran = await self.net.curl("http://blog.l8.alt/")
        self.assertEqual((ran.code, b"(240)" in ran.err), (97, True), ran.text)
        self.assertEqual(self.net.asked, ["nowhere.example.org"])

    async def test_proxies_that_it_is_not(self) -> None:
        await self.begin()
        for kind, code, said in (("http", 0, b"501"), ("socks4a", 97, b"000")):
            ran = await self.net.run(
                "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-x", f"{kind}://127.0.0.1:{self.net.port}",
                f"{self.web}/1k",
            )  # fmt: skip
            self.assertEqual((ran.code, ran.out), (code, said), ran.text)

    async def test_unix_socket(self) -> None:
        path = folder(self) / "socks"
        self.nginx, self.sums = site()
        self.net = await Net.start(self, names=NAMES, socks=SocksConfig(listen=(f"unix:{path}",)))
        url = f"http://web.example.org:{self.nginx.plain}/1k"
        ran = await self.net.run("curl", "-sS", "--fail", "-x", f"socks5h://localhost{path}", url)
        self.assertEqual((ran.code, len(ran.out)), (0, 1024), ran.text)

    async def test_users_never_share_a_circuit(self) -> None:
        await self.begin()
        for user in ("alice:1", "bob:1", "alice:2"):
            ran = await self.net.curl("--fail", f"{self.web}/1k?[1-20]", user=user)
            self.assertEqual((ran.code, len(ran.out)), (0, 20 * 1024), ran.text)
        ran = await self.net.curl("--fail", "-H", "Connection: close", f"{self.web}/1k?[1-20]", user="alice:1")
        self.assertEqual((ran.code, len(ran.out)), (0, 20 * 1024), ran.text)
        self.assertEqual(self.net.keys, [((b"alice", b"1"), 21), ((b"alice", b"2"), 1), ((b"bob", b"1"), 1)])
