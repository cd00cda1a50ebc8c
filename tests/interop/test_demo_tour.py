"""A stranger's first hour with `layer8 demo`: what it recommends and more, by the programs that people have."""

import hashlib
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.cli.ask import ask
from layer8.socks.wire import read_datagram
from layer8.testing.browser import Chromium, Firefox
from tests.cli.test_main import LAYER8
from tests.interop.daemons import RUN, Program, folder, found, free_port, missing, until
from tests.interop.stage import MIB, Nginx, pattern, sha256
from tests.interop.test_socks_browsers import PAGE, SCRIPT, TRAP, Trap, mounted, trapped
from tests.interop.test_socks_ssh import ssh_words, start_sshd
from tests.socks.test_datagrams import named, question

PATIENCE = 60
CROWD = 500
ROOT = None if os.geteuid() == 0 else "needs root, for names and a resolver of its own"
RESOLVER = "127.77.7.8"
"""Whom the demo's exit asks for names, where root runs the tests; there is no other way to have names lead here."""


class Names(Trap):
    """A DNS server for which every name is this machine, and which writes down what it is asked."""

    transport: Any

    def datagramReceived(self, data: bytes, addr: tuple[str, int]) -> None:
        super().datagramReceived(data, addr)
        self.transport.write(answered(data, "127.0.0.1"), addr)


def answered(data: bytes, address: str) -> bytes:
    """Answer a question for an address."""
    message = dns.Message()
    message.fromStr(data)
    message.answer = 1
    (asked,) = message.queries
    if asked.type == dns.A:
        message.answers = [dns.RRHeader(asked.name.name, dns.A, ttl=60, payload=dns.Record_A(address))]
    text: bytes = message.toStr()
    return text


@define(eq=False)
class Demo:
    """`layer8 demo`, which stays up."""

    program: Program
    home: str
    network: str
    socks: str
    debug: tuple[str, str]
    page: str

    @classmethod
    def start(cls) -> "Demo":
        """Start it, and read what it says."""
        home = folder(RUN)
        prefix: tuple[str, ...] = ()
        if ROOT is None:
            (home / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
            (home / "nsswitch.conf").write_text("hosts: dns\n")
            prefix = mounted(home, "resolv.conf", "nsswitch.conf")
        environ = {"TMPDIR": str(home), "LAYER8_HOME": str(home / "not-used")}
        words = [*prefix, *LAYER8, "demo"]
        program = Program.start(RUN, "demo", words, home, environ, lambda one: "Ctrl-C" in one.said())
        said = program.said()

        def read(shape: str) -> Any:
            match = re.search(shape, said)
            assert match is not None, said
            return match.groups() if len(match.groups()) > 1 else match[1]

        return cls(
            program,
            read(r"LAYER8_HOME=(\S+) "),
            read(r"Network (demo-\w+):"),
            read(r"--socks5-hostname (\S+) "),
            read(r"nc -N (\S+) (\d+)"),
            read(r"--socks5-hostname \S+ (\S+)"),
        )


@cache
def demo() -> Demo:
    """Start the one demo of this module."""
    return Demo.start()


@cache
def web() -> tuple[Nginx, str]:
    """Start the one nginx of this module, with a file of 64 MiB, and give its hash."""
    nginx = Nginx.start(RUN, ["web.example.org"])
    return nginx, pattern(nginx.files / "64m", 64 * MIB)


def run(*words: str, said: bytes = b"", home: str = "") -> bytes:
    """Run a program to its good end, and give what it has said."""
    environ = {**os.environ, **({"LAYER8_HOME": home} if home else {})}
    path = found(words[0]) or words[0]
    ran = subprocess.run([path, *words[1:]], input=said, env=environ, capture_output=True, timeout=PATIENCE)
    if ran.returncode:
        raise AssertionError(f"{words[0]}: {ran.returncode}: {ran.stderr[-500:]!r} {ran.stdout[-500:]!r}")
    return ran.stdout


def layer8(*words: str, home: str = "") -> str:
    """Run a command of ours beside the demo, or in another state folder."""
    return run(*LAYER8, *words, home=home or demo().home).decode()


def curl(*words: str) -> bytes:
    """Run curl through the demo."""
    return run("curl", "-q", "-sS", "--fail", "--noproxy", "", "--socks5-hostname", demo().socks, *words)


class CurlTests(SynchronousTestCase):
    skip = missing(curl="curl", nginx="nginx")

    def test_page(self) -> None:
        self.assertIn(b"It came a long way", curl(demo().page))

    def test_64_mib_down_and_up(self) -> None:
        nginx, digest = web()
        home = folder(self)
        url = f"http://127.0.0.1:{nginx.plain}"
        curl("-o", str(home / "got"), f"{url}/64m")
        self.assertEqual(sha256(home / "got"), digest)
        curl("-T", str(nginx.files / "64m"), f"{url}/up/tour")
        self.assertEqual(sha256(nginx.uploads / "tour"), digest)

    def test_a_crowd(self) -> None:
        nginx, _ = web()
        digest = pattern(nginx.files / "1k", 1024)
        home = folder(self)
        curl(
            "--no-progress-meter", "--parallel", "--parallel-immediate", "--parallel-max", "50", "-o", f"{home}/#1",
            f"http://127.0.0.1:{nginx.plain}/1k?[1-{CROWD}]",
        )  # fmt: skip
        self.assertEqual([sha256(home / str(n)) for n in range(1, CROWD + 1)], [digest] * CROWD)


class SshTests(SynchronousTestCase):
    skip = missing(sshd="openssh-server", ssh="openssh-client", nc="netcat-openbsd")

    def test_through_netcat(self) -> None:
        port = free_port()
        home = start_sshd(self, port)
        body = os.urandom(MIB)
        way = f"ProxyCommand={found('nc')} -X 5 -x {demo().socks} %h %p"
        answer = run(*ssh_words(home), "-o", way, "-p", str(port), "127.0.0.1", "sha256sum", said=body)
        self.assertEqual(answer.split()[0].decode(), hashlib.sha256(body).hexdigest())


class DnsTests(SynchronousTestCase):
    def test_a_question_over_udp(self) -> None:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(server.close)
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)

        def answer() -> None:
            data, where = server.recvfrom(512)
            server.sendto(answered(data, "192.0.2.80"), where)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        host, _, port = demo().socks.rpartition(":")
        with (
            socket.create_connection((host, int(port)), PATIENCE) as control,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program,
        ):
            control.sendall(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6))
            granted = control.recv(12, socket.MSG_WAITALL)
            self.assertEqual(granted[:6], b"\x05\x00\x05\x00\x00\x01")
            program.settimeout(PATIENCE)
            program.bind(("127.0.0.1", 0))
            there = int(server.getsockname()[1])
            program.sendto(named("127.0.0.1", there, question(7)), (host, int.from_bytes(granted[10:], "big")))
            come = program.recv(2048)
        thread.join(PATIENCE)
        message = dns.Message()
        message.fromStr(read_datagram(come)[2])
        record: Any = message.answers[0].payload
        self.assertEqual((message.id, record.dottedQuad()), (7, "192.0.2.80"))


class CommandTests(SynchronousTestCase):
    def test_debug_port(self) -> None:
        """The line of the proposal, with a netcat that ends with its input and with one that stays."""
        if (why := missing(nc="netcat-openbsd")) is not None:
            self.skipTest(why)
        host, port = demo().debug
        rows = run("nc", "-N", host, port, said=b"list circuits\n").decode().splitlines()
        self.assertEqual(rows[-1], "ok")
        self.assertTrue([row for row in rows if re.match(r"\d+ +open +\w{8}>\w{8}>\w{8} ", row)], rows)
        with subprocess.Popen(
            [str(found("nc")), host, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as staying:
            told = staying.stdout
            assert staying.stdin is not None and told is not None
            try:
                staying.stdin.write("list circuits\n")
                staying.stdin.close()
                until("the answer is there", lambda: told.readline() == "ok\n")
            finally:
                staying.kill()

    def test_circuits_and_relays(self) -> None:
        rows = json.loads(layer8("circuits", "--json"))["circuits"]
        known = {row["node"] for row in json.loads(layer8("relays", "--json"))["relays"]}
        self.assertGreaterEqual(len(known), 8)
        for row in rows:
            if row["state"] == "open":
                self.assertLessEqual(set(row["path"].split(">")), known)
        self.assertRegex(layer8("circuits"), r"(?m)^\d+ +open +\w{8}>\w{8}>\w{8} ")
        self.assertRegex(layer8("relays"), r"(?m)^\w{8} +relay,exit,dht,rendezvous +127\.0\.0\.0/24 ")

    def test_a_node_that_joins_and_is_written_to(self) -> None:
        """`layer8 up` in the demo's network: it is heard of by trackers, and has an inbox."""
        full = json.loads(layer8("relays", "--full", "--json"))["relays"]
        peer = next(f"{row['node']}@tcp:{row['address']}" for row in full if "tracker" in row["roles"])
        home = folder(self)
        (home / "layer8.toml").write_text("[control]\nlisten = []\n[socks]\nlisten = []\n")
        words = [*LAYER8, "up", "--network", demo().network, "--listen", "tcp:0:interface=127.0.0.1", "--peer", peer]
        words += ["--config", str(home / "layer8.toml")]
        Program.start(self, "up", words, home, {"LAYER8_HOME": str(home)}, lambda one: "Ctrl-C" in one.said())
        node = re.search(r"links on (\w+)@", layer8("status", home=str(home)))
        assert node is not None

        def heard_of() -> bool:
            ask(Path(demo().home, "run", "node.sock"), "tracker.relays", {}, seconds=PATIENCE)
            known = json.loads(layer8("relays", "--full", "--json"))["relays"]
            return any(row["node"] == node[1] for row in known)

        until("the demo has heard of the node", heard_of, PATIENCE, 0.2)
        self.assertRegex(layer8("send", node[1], "good morning"), r"^taken after [\d.]+ ms, by circuit \d+, a new one")
        self.assertIn("good morning", layer8("inbox", home=str(home)))


class BrowserTests(TestCase):
    skip = missing(nginx="nginx", unshare="util-linux") or ROOT
    timeout = 120

    async def everything(self, start: Callable[..., Any], host: str) -> None:
        """Show a page with parts from two hosts; the resolver of the browser's machine is asked for no name."""
        from twisted.internet import reactor

        nginx, _ = await deferToThread(web)
        socks = (await deferToThread(demo)).socks
        other = f"other.{host}"
        (nginx.files / "page.html").write_text(PAGE.format(other=f"http://{other}:{nginx.plain}"))
        (nginx.files / "script.js").write_text(SCRIPT)
        pattern(nginx.files / "1k", 1024)
        wheel: Any = reactor
        trap, names = Trap(), Names()
        for one, where in ((trap, TRAP), (names, RESOLVER)):
            self.addCleanup(wheel.listenUDP(53, one, interface=where).stopListening)
        prefix = trapped(folder(self))
        caught = await deferToThread(subprocess.run, [*prefix, "getent", "ahostsv4", "trap.example.org"], timeout=30)
        self.assertEqual((caught.returncode, set(trap.asked)), (2, {"trap.example.org"}))
        trap.asked.clear()
        async with await start(wheel, socks=socks, prefix=prefix) as browser:
            page = await browser.page(f"http://{host}:{nginx.plain}/page.html")
            self.assertEqual(await page.evaluate("document.querySelector('h1').textContent"), "it loads")
            self.assertEqual(await page.evaluate("fetched('/1k')"), [200, 1024])
        self.assertLessEqual({host, other}, set(names.asked))  # by the exit
        self.assertEqual(trap.asked, [])

    def test_chromium(self) -> "Deferred[None]":
        return Deferred.fromCoroutine(self.everything(Chromium.start, "chromium.example.org"))

    test_chromium.skip = Chromium.absent()  # type: ignore[attr-defined]

    def test_firefox(self) -> "Deferred[None]":
        return Deferred.fromCoroutine(self.everything(Firefox.start, "firefox.example.org"))

    test_firefox.skip = Firefox.absent()  # type: ignore[attr-defined]
