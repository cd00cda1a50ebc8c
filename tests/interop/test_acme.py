"""Certificates from pebble, by both challenges, for the hosts that want them and for nobody else."""

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.testing.browser import Chromium
from layer8.testing.browser_wire import BrowserError
from tests.interop.backend import serve
from tests.interop.daemons import Agent, Proxy, Scope, folder, free_port, missing, until
from tests.interop.pebble import Pebble
from tests.interop.stage import CURL
from tests.proxy.test_certs import put

TERMINATE = 'tls = "terminate"\n'
PEERS = {"pebble": "pebble", "pebble-challtestsrv": "pebble"}
TOKEN = "/.well-known/acme-challenge/abcdefghijklmnopqrstuvwxyz"


def talk(connection: socket.socket) -> None:
    """Answer every request with a page that shows its first line."""
    while head := connection.recv(65536):
        first = head.split(b"\r\n", 1)[0]
        page = b"<!doctype html><title>layer8 behind TLS</title>" + first
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page)
        )


def certificates(server: Proxy, wanted: int) -> bool:
    """Say whether so many stand in a server's folder."""
    return len(list(server.home.glob("acme/*/certs/*.pem"))) == wanted


class AcmeCase(SynchronousTestCase):
    """A server whose ports pebble looks at."""

    skip = missing(**PEERS, curl="curl")

    def begin(
        self,
        hosts: Mapping[str, str],
        *,
        by: str = "http",
        text: str = "",
        agents: tuple[str, ...] = (),
        pebble_http: int = 0,
        life: int = 90 * 86400,
    ) -> tuple[Proxy, Pebble]:
        """Start pebble and a server with static `hosts` and what their tables say more; `by` names its listeners."""
        return begin(self, hosts, by=by, text=text, agents=agents, pebble_http=pebble_http, life=life)

    def curl(self, server: Proxy, host: str, trust: Path, path: str = "/") -> bytes:
        port = server.https
        words = ("--resolve", f"{host}:{port}:127.0.0.1", "--cacert", str(trust), f"https://{host}:{port}{path}")
        return subprocess.run([*CURL, *words], check=True, capture_output=True).stdout

    def health(self, server: Proxy, check: str) -> tuple[bool, str]:
        rows = {row["check"]: row for row in server.ask("node.health")}
        return (rows[check]["ok"], rows[check]["why"]) if check in rows else (False, "absent")


def begin(
    scope: Scope,
    hosts: Mapping[str, str],
    *,
    by: str = "http",
    text: str = "",
    agents: tuple[str, ...] = (),
    pebble_http: int = 0,
    life: int = 90 * 86400,
) -> tuple[Proxy, Pebble]:
    """See `AcmeCase.begin`."""
    http, https = free_port(), free_port()
    pebble = Pebble.start(scope, pebble_http or http, https, life)
    target = serve(scope, talk)
    server = Proxy("proxy", folder(scope), scope, ())
    tables = "".join(
        f'[[proxy.host]]\nhost = "{host}"\ntarget = "tcp:127.0.0.1:{target}"\n{more}' for host, more in hosts.items()
    )
    tables += "".join(server.host(host) + TERMINATE for host in agents)
    listeners = f'http = ["tcp:{http}:interface=127.0.0.1"]' if by == "http" else "http = []"
    server.write(
        f'{listeners}\nhttps = ["tcp:{https}:interface=127.0.0.1"]\nacme = "{pebble.url}"\n'
        f'acme_email = "admin@shop.test"\nacme_ca_file = "{pebble.trust}"\n{text}\n{tables}'
    )
    server.again()
    if agents:
        ports = dict.fromkeys((http, https), f"tcp:127.0.0.1:{target}")
        Agent.start(scope, server, dict.fromkeys(agents, ports))
    return server, pebble


class IssueTests(AcmeCase):
    def test_by_http(self) -> None:
        hosts = {"shop.test": TERMINATE, "pass.test": "", "*.wild.test": TERMINATE, "own.test": TERMINATE}
        certs = folder(self)
        put(certs, "own", ["own.test"])
        server, pebble = self.begin(hosts, text=f'certs = "{certs}"', agents=("agent.test",))
        until("both have certificates", lambda: pebble.issued() == 2)
        root = pebble.root()
        until("they are served", lambda: len(list((server.home / "acme").glob("*/certs/*.pem"))) == 2)
        for host in ("shop.test", "agent.test"):
            self.assertIn(b"GET / HTTP/1.1", self.curl(server, host, root))
        self.assertIn(b"behind TLS", self.curl(server, "own.test", certs / "own.pem"))
        self.assertEqual(pebble.orders(), 2)  # nobody else's: not of a wildcard, nor where the folder has one
        self.assertIn("validate w/ HTTP: http://shop.test", pebble.program.said())
        self.assertEqual(self.health(server, "acme"), (True, ""))
        # Whoever asks now gets what the host says, not us.
        for host in ("shop.test", "pass.test"):
            words = ("--resolve", f"{host}:{server.http}:127.0.0.1", f"http://{host}:{server.http}{TOKEN}")
            said = subprocess.run([*CURL, *words], check=True, capture_output=True).stdout
            self.assertIn(TOKEN.encode(), said)
        # Unknown names make nobody ask for anything.
        for host in ("nobody.test", "a.wild.test", "pass.test"):
            subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{server.https}", "-servername", host],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
            )
        self.assertEqual(pebble.orders(), 2)
        for path in [server.home / "acme", *(server.home / "acme").rglob("*")]:
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o700 if path.is_dir() else 0o600, path)
        self.assertEqual(list((server.home / "acme").glob("*/challenges/*")), [])
        events = [line["event"] for line in server.lines() if str(line.get("event", "")).startswith("acme.")]
        self.assertEqual(events, ["acme.issued"] * 2)
        self.assertNotIn("PRIVATE", server.program.said())
        self.assertEqual(server.defects(), [])
        # The next process has them, and asks for nothing.
        server.stop()
        server.again()
        self.assertIn(b"GET / HTTP/1.1", self.curl(server, "shop.test", root))
        self.assertEqual(pebble.orders(), 2)

    def test_by_tls(self) -> None:
        server, pebble = self.begin({"shop.test": TERMINATE}, by="https")
        until("it has a certificate", lambda: list((server.home / "acme").glob("*/certs/*.pem")))
        self.assertNotIn("validate w/ HTTP", pebble.program.said())
        self.assertIn(b"behind TLS", self.curl(server, "shop.test", pebble.root()))
        until("the log says so", lambda: "challenged" in [line["reason"] for line in server.access()])
        self.assertEqual(self.health(server, "acme"), (True, ""))
        self.assertEqual(server.defects(), [])

    def test_a_host_that_comes_by_reload(self) -> None:
        server, pebble = self.begin({"shop.test": TERMINATE})
        until("it has a certificate", lambda: pebble.issued() == 1)
        text = (server.home / "test.toml").read_text()
        server.reload(text.replace('host = "shop.test"', 'host = "new.test"'))
        until("the other one has as well", lambda: pebble.issued() == 2)
        until("it is served", lambda: list((server.home / "acme").glob("*/certs/new.test.pem")))
        self.assertIn(b"behind TLS", self.curl(server, "new.test", pebble.root()))
        server.reload(text.replace('acme = "', f'certs = "{folder(self)}"\nacme = ""\n# "'))
        until("nobody asks any more", lambda: self.health(server, "acme") == (False, "absent"))
        self.assertEqual(server.defects(), [])


class RenewalTests(AcmeCase):
    def test_before_it_ends(self) -> None:
        server, pebble = self.begin({"shop.test": TERMINATE}, life=15)
        until("it has a certificate", partial(certificates, server, 1))
        first = next(server.home.glob("acme/*/certs/*.pem")).read_bytes()
        root = pebble.root()
        while pebble.issued() < 2:
            self.assertIn(b"behind TLS", self.curl(server, "shop.test", root))  # curl checks the dates
        until("it is another one", lambda: next(server.home.glob("acme/*/certs/*.pem")).read_bytes() != first)
        self.assertIn(b"behind TLS", self.curl(server, "shop.test", root))
        self.assertEqual(self.health(server, "acme"), (True, ""))
        self.assertEqual(server.defects(), [])


class WorkerTests(AcmeCase):
    def test_one_asks_and_all_of_them_answer(self) -> None:
        for by in ("http", "https"):
            server, pebble = self.begin({"shop.test": TERMINATE}, by=by, text="workers = 3", agents=("agent.test",))
            until("both have certificates", partial(certificates, server, 2))
            self.assertEqual(pebble.orders(), 2)
            root = pebble.root()
            for host in ("shop.test", "agent.test"):
                for _ in range(12):  # the kernel shares these out
                    self.assertIn(b"behind TLS", self.curl(server, host, root))
            self.assertEqual(server.defects(), [])


class FailureTests(AcmeCase):
    def test_a_host_that_cannot_be_proven(self) -> None:
        server, pebble = self.begin({"shop.test": TERMINATE}, pebble_http=free_port())
        until("it is told", lambda: self.health(server, "acme")[1] not in ("", "absent"))
        self.assertIn("shop.test: connection: ", self.health(server, "acme")[1])
        self.assertEqual([row for row in server.ask("node.health") if row["needed"] and not row["ok"]], [])
        failed = [line for line in server.lines() if line.get("event") == "acme.failed"]
        self.assertEqual([(line["host"], line["reason"]) for line in failed], [("shop.test", "connection")])
        for _ in range(3):  # whoever starts it again and again asks no more often
            os.kill(server.pid, signal.SIGKILL)
            server.program.process.wait()
            server.again()
        self.assertEqual(pebble.orders(), 1)
        tries = json.loads(next((server.home / "acme").glob("*/tries.json")).read_text())
        self.assertEqual(tries["hosts"]["shop.test"][0], 1)
        self.assertEqual(server.defects(), [])

    def test_an_authority_that_is_away(self) -> None:
        server, pebble = self.begin({"shop.test": TERMINATE})
        until("it has a certificate", lambda: list((server.home / "acme").glob("*/certs/*.pem")))
        pebble.program.stop()
        server.reload((server.home / "test.toml").read_text().replace('"shop.test"', '"new.test"'))
        until("it is told", lambda: "unreachable" in self.health(server, "acme")[1])
        self.assertEqual(json.loads(next((server.home / "acme").glob("*/tries.json")).read_text())["hosts"], {})
        self.assertEqual(server.defects(), [])


class BrowserTests(TestCase):
    skip = missing(**PEERS, certutil="libnss3-tools") or Chromium.absent()

    async def test_chromium_believes_the_authority_or_not(self) -> None:
        from twisted.internet import reactor

        server, pebble = begin(self, {"shop.test": TERMINATE})
        until("it has a certificate", lambda: list((server.home / "acme").glob("*/certs/*.pem")))
        hosts = {"shop.test": "127.0.0.1"}
        url = f"https://shop.test:{server.https}/"
        async with await Chromium.start(reactor, hosts=hosts, insecure=False, authorities=[pebble.root()]) as browser:
            page = await browser.page(url)
            self.assertEqual(await page.evaluate("document.title"), "layer8 behind TLS")
            self.assertEqual(await page.evaluate("isSecureContext"), True)
        async with await Chromium.start(reactor, hosts=hosts, insecure=False) as browser:
            page = await browser.page()
            with self.assertRaises(BrowserError) as caught:
                await page.goto(url)
            self.assertIn("ERR_CERT_AUTHORITY_INVALID", str(caught.exception))
