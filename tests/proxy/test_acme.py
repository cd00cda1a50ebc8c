"""What we show an authority, for whom it is asked, and what stands in its folder; pebble is in `interop.test_acme`."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve
from OpenSSL import SSL
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.config.proxy import ProxyConfig, ProxyLimits
from layer8.control.service import wall_clock
from layer8.core.errors import ConfigError, StorageError
from layer8.crypto.keyfile import write_private
from layer8.crypto.x509 import self_signed
from layer8.net.service import Health
from layer8.net.tls import open_client, open_server
from layer8.proxy import acme
from layer8.proxy.acme import Acme, Settings
from layer8.proxy.acme_ca import Order, Refused, Wanted
from layer8.proxy.orders import Policy
from layer8.proxy.registration import Ownership
from layer8.proxy.registry import Registry, static
from layer8.proxy.terminate import Certificates, Terminator
from tests.proxy.test_certs import put

TOKEN = "abcdefghijklmnopqrstuvwxyz012345"
PROOF = f"{TOKEN}.thumbprint"
SETTINGS = Settings("https://ca.test:14000/dir")


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp())
        self.hosts: dict[str, str] = {}
        self.told: list[tuple[bool, str]] = []
        self.acme = self.made()
        self.folder = self.home / "acme" / SETTINGS.folder

    def made(self) -> Acme:
        """Another process of the same server."""
        made = Acme(
            Clock(),
            self.home,
            SETTINGS,
            lambda: self.hosts,
            lambda: (),
            lambda ok, why: self.told.append((ok, why)),
            time.monotonic,
            wall_clock,
        )
        self.addCleanup(lambda: self.successResultOf(made.stopService()) if made.running else None)
        return made

    def show(self, name: str, host: str) -> None:
        """Put up a challenge, as the process that asks does."""
        write_private(self.folder / "challenges" / name, f"{host}\n{PROOF}".encode())


class AnswerTests(Case):
    def test_only_what_was_put_up_and_for_its_host(self) -> None:
        self.show(TOKEN, "shop.test")
        path = f"/.well-known/acme-challenge/{TOKEN}".encode()
        self.assertEqual(self.acme.answer("shop.test", path), PROOF.encode())
        for host, target in (
            ("other.test", path),
            ("shop.test", path + b"x"),
            ("shop.test", path + b"/"),
            ("shop.test", path + b"?"),
            ("shop.test", b"/x" + path),
            ("shop.test", b"/.well-known/acme-challenge/"),
            ("shop.test", b"/.well-known/acme-challenge/../account.key"),
            ("shop.test", b"/.well-known/acme-challenge/..%2faccount.key"),
            ("shop.test", b"/.well-known/acme-challenge/" + b"A" * 5000),
            ("shop.test", b"/"),
        ):
            self.assertIsNone(self.acme.answer(host, target))

    def test_as_a_response(self) -> None:
        self.show(TOKEN, "shop.test")
        config = ProxyConfig(acme=SETTINGS.directory)
        certificates = Certificates(
            Clock(), self.home, Health(), Registry(ProxyLimits(), bytes(32)), time.monotonic, wall_clock
        )
        certificates.prepare(config)()
        terminator = Terminator(certificates, None)  # type: ignore[arg-type]  # nobody shakes hands here
        line = f"GET /.well-known/acme-challenge/{TOKEN} HTTP/1.1\r\nHost: shop.test\r\n\r\n".encode()
        said = terminator.answer("shop.test", line)
        self.assertTrue(said.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertTrue(said.endswith(b"\r\n\r\n" + PROOF.encode()))
        self.assertIn(b"Content-Length: %d\r\n" % len(PROOF), said)
        for other in (
            line.replace(b"GET", b"POST"),
            line.replace(b"GET /", b"GET /x/"),
            b"GET / HTTP/1.1\r\nX: /.well-known/acme-challenge/" + TOKEN.encode() + b"\r\n\r\n",
            b"GET /.well-known/acme-challenge/",
        ):
            self.assertEqual(terminator.answer("shop.test", other), b"")

    def test_in_tls(self) -> None:
        self.assertIsNone(self.acme.challenge("shop.test"))
        self.show("tls.shop.test", "shop.test")
        self.assertIsNone(self.acme.challenge("other.test"))
        context = self.acme.challenge("shop.test")
        assert context is not None
        asking = SSL.Context(SSL.TLS_CLIENT_METHOD)
        asking.set_alpn_protos([b"acme-tls/1"])
        client, server = open_client(asking, None, "shop.test"), open_server(context, None)
        for _ in range(3):
            for one, other in ((client, server), (server, client)):
                with contextlib.suppress(SSL.WantReadError):
                    one.do_handshake()
                with contextlib.suppress(SSL.WantReadError):
                    other.bio_write(one.bio_read(65536))
        self.assertEqual(client.get_alpn_proto_negotiated(), b"acme-tls/1")
        shown = client.get_peer_certificate(as_cryptography=True)
        assert shown is not None
        found = next(one for one in shown.extensions if one.oid.dotted_string == "1.3.6.1.5.5.7.1.31")
        self.assertTrue(found.critical)
        self.assertEqual(found.value.public_bytes(), b"\x04\x20" + hashlib.sha256(PROOF.encode()).digest())

    def test_a_name_that_is_no_file(self) -> None:
        for host in ("../account.key", "*.wild.test", "[::1]", ""):
            self.assertRaises(ConfigError, self.acme.challenge, host)
        self.assertIsNone(self.acme.challenge("a." * 120 + "test"))


class FolderTests(Case):
    def test_one_process_asks(self) -> None:
        other = self.made()
        self.acme.startService()
        other.startService()
        self.assertEqual((self.acme._lock >= 0, other._lock >= 0), (True, False))
        self.show(TOKEN, "shop.test")  # by the first; the second answers as well
        self.assertIsNotNone(other.answer("shop.test", f"/.well-known/acme-challenge/{TOKEN}".encode()))
        self.successResultOf(self.acme.stopService())
        other.turn()
        self.assertGreaterEqual(other._lock, 0)
        self.assertEqual(list((self.folder / "challenges").iterdir()), [])  # what the first has left behind
        lock = os.open(self.folder / "lock", os.O_RDWR)
        self.addCleanup(os.close, lock)
        self.assertRaises(OSError, fcntl.flock, lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_it_is_private(self) -> None:
        self.acme.startService()
        for path in (self.home / "acme", *(self.home / "acme").rglob("*")):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o700 if path.is_dir() else 0o600)

    def test_one_folder_for_each_authority(self) -> None:
        urls = ("https://ca.test/dir", "https://ca.test/dir2", "https://ca.test:1/dir", "https://../x", "")
        names = [Settings(url).folder for url in urls]
        self.assertEqual(len(set(names)), len(names))
        for name in names:
            self.assertRegex(name, r"\A[a-z0-9._-]+-[0-9a-f]{8}\Z")

    def test_without_the_extra(self) -> None:
        name = "layer8.proxy.acme_ca"
        known = sys.modules[name]
        self.addCleanup(sys.modules.__setitem__, name, known)
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own sign of what cannot be imported
        self.assertIn("layer8[acme]", str(self.assertRaises(ConfigError, self.made)))


class WantedTests(Case):
    def test_only_hosts_that_are_owned_and_end_their_tls_here(self) -> None:
        registry = Registry(ProxyLimits(), bytes(32))
        ends = Policy(tls="terminate")

        def row(host: str, policy: Policy = ends) -> None:
            registry.put(
                static(host, key=None, target="tcp:127.0.0.1:1", ports=(), mode="raw", policy=policy, rules=64)
            )

        for host in ("shop.test", "own.test", "lost.test", "*.wild.test", "localhost"):
            row(host)
        row("pass.test", Policy())
        lost = registry.row("lost.test")
        assert lost is not None
        registry.put(evolve(lost, state=Ownership.SUSPENDED))
        certs = Path(self.mktemp())
        certs.mkdir()
        put(certs, "own", ["own.test"])
        health = Health()
        certificates = Certificates(Clock(), self.home, health, registry, time.monotonic, wall_clock)
        certificates.prepare(ProxyConfig(certs=str(certs)))()
        self.assertEqual(list(certificates.wanted()), ["shop.test"])
        self.assertIsNotNone(certificates.context("own.test"))
        self.assertIsNone(certificates.context("shop.test"))
        (certs / "bad.pem").write_bytes(self_signed("bad.test")[1])
        certificates.prepare(ProxyConfig(certs=str(certs)))()
        self.assertEqual([(row.check, row.ok, row.needed) for row in health.rows()], [("certificates", False, False)])
        certificates.prepare(ProxyConfig())()
        self.assertEqual(health.rows(), ())
        self.assertIsNone(certificates.context("own.test"))


class Authority:
    """An authority that does what a test tells it to, by the name of a step."""

    steps: ClassVar[dict[str, Any]] = {}

    def __init__(self, *settings: object) -> None:
        """Take what a real one takes."""

    def order(self, host: str, key: bytes, kinds: object) -> Order:
        """Want the proof that the test wants."""
        self.key = key
        self.steps.get("order", lambda: None)()
        return Order(None, None, None, self.steps["wanted"])  # type: ignore[arg-type]

    def answer(self, order: Order) -> None:
        """Look, or not."""
        self.steps.get("answer", lambda: None)()

    def proven(self, order: Order) -> bool:
        """Say what was seen."""
        return bool(self.steps.get("proven", lambda: True)())

    def finish(self, order: Order) -> None:
        """Do nothing."""

    def certificate(self, order: Order) -> bytes | None:
        """Give what the test gives."""
        found: bytes | None = self.steps["certificate"](self.key)
        return found


class OrderTests(TestCase):
    """What goes wrong on the way to a certificate."""

    timeout = 20

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.home = Path(self.mktemp())
        self.told: list[tuple[bool, str]] = []
        self.folder = self.home / "acme" / SETTINGS.folder
        Authority.steps = {"wanted": Wanted("http-01", TOKEN, PROOF), "certificate": lambda key: b""}
        self.acme = Acme(
            self.reactor,
            self.home,
            SETTINGS,
            lambda: {"shop.test": "somebody"},
            lambda: ("http-01", "tls-alpn-01"),
            lambda ok, why: self.told.append((ok, why)),
            time.monotonic,
            wall_clock,
        )
        self.patch(self.acme, "_authority", Authority)
        self.addCleanup(lambda: self.acme.stopService() if self.acme.running else None)

    async def once(self) -> None:
        """Let it ask once, as if for the first time."""
        (self.folder / "tries.json").unlink(missing_ok=True)
        self.told.clear()
        self.acme.startService()
        self.assertIn("shop.test", self.acme._patience.hosts)  # it has begun
        for _ in range(400):
            if not self.acme._busy:
                return
            await deferLater(self.reactor, 0.02)

    def tries(self) -> Any:
        return json.loads((self.folder / "tries.json").read_text())

    async def test_a_certificate_for_somebody_else_is_not_kept(self) -> None:
        for names, lifetime in ((["other.test"], 30), (["shop.test"], -0.5)):
            key, chain = self_signed(names, lifetime=datetime.timedelta(days=lifetime))
            Authority.steps["certificate"] = lambda _, chain=chain: chain
            self.patch(acme, "new_key", lambda key=key: key)
            await self.once()
            self.assertIn("not for this host", self.told[-1][1])
            self.assertEqual(list((self.folder / "certs").iterdir()), [])
            self.assertGreater(self.tries()["hosts"]["shop.test"][1], wall_clock() + 1.9 * 86400)
            await self.acme.stopService()

    async def test_a_certificate_for_another_key(self) -> None:
        Authority.steps["certificate"] = lambda key: self_signed("shop.test")[1]
        await self.once()
        self.assertIn("does not belong", self.told[-1][1])

    async def test_asked_too_often(self) -> None:
        def refuse() -> None:
            raise Refused("rateLimited", "too many certificates", authority=True)

        Authority.steps["order"] = refuse
        await self.once()
        self.assertEqual(self.told[-1], (False, "shop.test: rateLimited: too many certificates"))
        self.assertGreater(self.tries()["quiet_until"], wall_clock() + 890)
        self.assertGreater(self.tries()["hosts"]["shop.test"][1], wall_clock() + 86_000)

    async def test_not_proven(self) -> None:
        def refuse() -> None:
            shown.append(self.acme.answer("shop.test", f"/.well-known/acme-challenge/{TOKEN}".encode()))
            raise Refused("connection", "nobody there\n\x1b[31m")

        shown: list[bytes | None] = []
        Authority.steps["proven"] = refuse
        await self.once()
        self.assertEqual(shown, [PROOF.encode()])
        self.assertEqual(self.told[-1], (False, "shop.test: connection: nobody there\\n\\x1b[31m"))
        self.assertEqual(list((self.folder / "challenges").iterdir()), [])
        self.assertEqual(self.tries()["hosts"]["shop.test"][0], 1)

    async def test_tokens_that_are_none(self) -> None:
        for token in ("../../control.pem", "short", "a/b" * 20, ""):
            Authority.steps["wanted"] = Wanted("http-01", token, PROOF)
            await self.once()
            self.assertIn("token", self.told[-1][1])
            self.assertEqual(list((self.folder / "challenges").iterdir()), [])
            await self.acme.stopService()

    async def test_nothing_can_be_written(self) -> None:
        asked: list[None] = []
        Authority.steps["order"] = lambda: asked.append(None)

        def full(path: Path, data: bytes) -> None:
            raise StorageError("no space left")

        self.patch(acme, "write_private", full)
        await self.once()
        self.assertEqual(asked, [])
        self.assertIn("no space left", self.told[-1][1])

    async def test_a_stop_in_the_middle(self) -> None:
        Authority.steps["proven"] = lambda: False
        self.acme.startService()
        await deferLater(self.reactor, 0.3)
        self.assertTrue(self.acme._busy)
        await self.acme.stopService()
        self.assertFalse(self.acme._busy)
        self.assertEqual(list((self.folder / "challenges").iterdir()), [])
        self.assertEqual(self.tries()["hosts"]["shop.test"][0], 1)  # and so the next process will not hurry
