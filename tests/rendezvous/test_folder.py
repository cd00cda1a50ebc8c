"""A folder behind a hidden service: what it shows, what it never shows, and what it does not tell."""

from __future__ import annotations

import hashlib
import os
from os import urandom
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.task import Clock
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.network import SocksConfig
from layer8.core.errors import ConfigError
from layer8.relay.client import Reason
from layer8.rendezvous.folder import IDLE, Folder, Visitor
from layer8.rendezvous.resource import of
from layer8.socks.server import SocksServer
from tests.interop.daemons import found
from tests.rendezvous.test_visits import HERE, NAME, VisitsCase


@define(eq=False)
class Said:
    """A stream that keeps what it is told."""

    pieces: list[bytes] = field(factory=list)
    reason: Reason | None = None
    paused: bool = False

    @property
    def all(self) -> bytes:
        return b"".join(self.pieces)

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self, reason: Reason = Reason.DONE) -> None:
        self.reason = self.reason or reason

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class FolderCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.above = Path(self.mktemp())
        self.folder = self.above / "site"
        (self.folder / "sub").mkdir(parents=True)
        (self.above / "secret.txt").write_text("secret")
        (self.above / "site-2").mkdir()
        (self.above / "site-2" / "other").write_text("secret")
        (self.folder / "page.html").write_text("<p>hello")
        (self.folder / "sub" / "inner.txt").write_text("inner")
        (self.folder / "sub" / "of the same").symlink_to("../page.html")
        (self.folder / "out").symlink_to("../secret.txt")
        (self.folder / "out2").symlink_to(self.above.resolve() / "site-2")
        (self.folder / "loop").symlink_to("loop")
        os.mkfifo(self.folder / "pipe")
        for name in (".git", ".well-known"):
            (self.folder / name).mkdir()
            (self.folder / name / "config").write_text("of mine")
        (self.folder / "sub" / "inside").symlink_to("../.git/config")
        self.clock = Clock()
        self.target = self.shown(self.folder)

    def shown(self, folder: Path) -> Any:
        made: Any = of(f"dir:{folder}")
        made.clock = self.clock
        return made

    def visit(self, *requests: bytes, end: bool = False) -> tuple[Said, Visitor]:
        said: Any = Said()
        visitor = self.target(said)
        visitor.begin()
        for request in requests:
            visitor.data([request])
        if end:
            visitor.ended()
        return said, visitor

    def get(self, path: str, *headers: str, method: str = "GET") -> bytes:
        """Give the whole answer; those of files come by and by in a real reactor and are tested there."""
        lines = (f"{method} {path} HTTP/1.1", "Host: a", *headers, "Connection: close", "", "")
        said, _ = self.visit("\r\n".join(lines).encode("latin-1"))
        return bytes(said.all)

    def status(self, path: str, **more: Any) -> int:
        return int(self.get(path, **more).split(b" ")[1])


class ShownTests(FolderCase):
    def test_lists(self) -> None:
        page = self.get("/")
        self.assertEqual(page.split(b" ")[1], b"200")
        for name in (b"page.html", b"sub/"):
            self.assertIn(name, page)
        for name in (b"out", b"out2", b"loop", b"pipe", b"secret", b".git"):
            self.assertNotIn(b'"' + name, page)
        self.assertIn(b"inner.txt", self.get("/sub/"))
        self.assertIn(b"of%20the%20same", self.get("/sub/"))

    def test_heads(self) -> None:
        for path, status in (
            ("/page.html", 200),
            ("/sub/inner.txt", 200),
            ("/sub/of%20the%20same", 200),
            ("/sub", 302),
            ("/.well-known/config", 200),
        ):
            self.assertEqual(self.status(path, method="HEAD"), status)

    def test_an_index(self) -> None:
        (self.folder / "index.html").symlink_to("../secret.txt")
        self.assertEqual(self.status("/", method="HEAD"), 404)
        (self.folder / "index.html").unlink()
        (self.folder / "index.html").write_text("welcome")
        self.assertIn(b"text/html", self.get("/", method="HEAD"))

    def test_nothing_outside(self) -> None:
        for path in (
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "/sub/../../secret.txt",
            "/sub/..%2f..%2fsecret.txt",
            "//etc/passwd",
            "/%2fetc%2fpasswd",
            "/out",
            "/out2",
            "/out2/",
            "/out2/other",
            "/../site-2/other",
            "/loop",
            "/.git",
            "/.git/config",
            "/sub/inside",
            "/pipe",
            "/nothing",
            "/page.html/more",
            "/%00",
            "/page.html%00",
            "/%ff",
            "/" + "a" * 5000,
        ):
            self.assertEqual(self.status(path), 404, path)

    def test_a_root_that_is_a_link(self) -> None:
        link = self.above / "link"
        link.symlink_to("site")
        self.target = self.shown(link)
        self.assertEqual(self.status("/page.html", method="HEAD"), 200)
        self.assertEqual(self.status("/out", method="HEAD"), 404)

    def test_a_folder_that_has_gone(self) -> None:
        self.folder.rename(self.above / "elsewhere")
        self.assertEqual(self.status("/"), 404)

    def test_no_such_folder(self) -> None:
        for text in ("dir:", "dir:/nowhere/at/all", f"dir:{self.folder}/page.html"):
            with self.assertRaises(ConfigError):
                of(text) if text != "dir:" else Folder(Path("/nowhere"))


class ToldTests(FolderCase):
    def test_neither_program_nor_clock(self) -> None:
        for answer in (self.get("/"), self.get("/nothing"), self.get("/page.html", method="HEAD")):
            head = answer.lower().partition(b"\r\n\r\n")[0]
            self.assertNotIn(b"\r\nserver:", head)
            self.assertNotIn(b"\r\ndate:", head)
            self.assertNotIn(b"twisted", answer.lower())
            self.assertNotIn(str(self.above).encode(), answer)

    def test_only_questions(self) -> None:
        self.assertEqual(self.status("/page.html", method="PUT"), 501)
        self.assertEqual(self.status("/page.html", method="POST"), 405)
        said, visitor = self.visit(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\n\r\n")
        for _ in range(100):
            visitor.data([bytes(2**20)])
        self.assertEqual(visitor._channel.requests[0].content.getvalue(), b"")
        self.assertEqual(said.all, b"")

    def test_noise(self) -> None:
        for text in (
            b"\r\n\r\n",
            b"\xff" * 70_000,
            b"GET\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"X" * 20_000 + b"\r\n",
        ):
            said, _ = self.visit(text, end=True)
            self.assertIsNotNone(said.reason)
        self.flushLoggedErrors()


class StreamTests(FolderCase):
    def test_one_question_after_another(self) -> None:
        ask = b"HEAD /page.html HTTP/1.1\r\nHost: a\r\n\r\n"
        said, _visitor = self.visit(ask, ask[:10], ask[10:])
        self.assertEqual(said.all.count(b" 200 "), 2)
        self.assertIsNone(said.reason)

    def test_nobody_asks(self) -> None:
        said, _ = self.visit()
        self.clock.advance(IDLE + 1)
        self.assertEqual(said.reason, Reason.DONE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_ends_at_once(self) -> None:
        said, _ = self.visit(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", end=True)
        self.assertIn(b" 200 ", said.all)
        self.assertEqual(said.reason, Reason.DONE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_leaves(self) -> None:
        said, visitor = self.visit(b"GET /page.html HTTP/1.1\r\nHost: a\r\n\r\n")
        visitor.hold()
        visitor.closed(Reason.RESET)
        before = said.all
        visitor.go_on()
        visitor.data([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
        self.assertEqual((said.all, self.clock.getDelayedCalls()), (before, []))


class CurlTests(VisitsCase):
    skip = None if found("curl") else "curl is not installed (package curl)"

    async def test_a_folder(self) -> None:
        """Through a SOCKS port and a hidden service: a large file, a part of it, a list."""
        folder = Path(self.mktemp())
        folder.mkdir()
        large = urandom(4 * 2**20 + 5)
        (folder / "large").write_bytes(large)
        (folder / "small").write_text("hello")
        await self.begin({80: of(f"dir:{folder}")})
        server = SocksServer(self.reactor, SocksConfig(listen=(HERE,)), self.here.client, hidden=self.visits)
        server.startService()
        self.addCleanup(self.leave, server)
        got = await self.curl(server, f"http://{NAME}/large")
        self.assertEqual(hashlib.sha256(got).digest(), hashlib.sha256(large).digest())
        self.assertEqual(await self.curl(server, f"http://{NAME}/large", "-r", "100-199"), large[100:200])
        for wrong in ("0-1,3-4", "0-1, 2-3", "nonsense"):
            whole = await self.curl(server, f"http://{NAME}/small", "-i", "-H", f"Range: bytes={wrong}")
            self.assertEqual((whole.split(b" ")[1], whole[-5:]), (b"200", b"hello"))
            self.assertNotIn(b"boundary", whole)
        self.assertIn(b'href="large"', await self.curl(server, f"http://{NAME}/"))
        self.assertEqual(await self.curl(server, f"http://{NAME}/large", "--http1.0", "-r", "-5"), large[-5:])

    async def leave(self, server: SocksServer) -> None:
        await server.stopService()
        await self.until(lambda: not len(server.clients))

    async def curl(self, server: SocksServer, url: str, *more: str) -> bytes:
        proxy = "127.0.0.1:" + server.listening[0].split(":")[1]
        words = ("-sS", "--max-time", "30", "--noproxy", "", "--socks5-hostname", proxy, *more, url)
        out, err, code = await getProcessOutputAndValue(found("curl") or "curl", words, reactor=self.reactor)
        self.assertEqual((err, code), (b"", 0))
        return bytes(out)
