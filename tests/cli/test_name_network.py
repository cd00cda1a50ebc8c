"""`layer8 name` where a node runs: claims, what names lead to, files from the Web; and what it says where none runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.cli.fetch import fetch
from layer8.cli.name_show import lines
from layer8.core.errors import Layer8Error, TimedOut, Unavailable
from layer8.node.service import Node
from layer8.rendezvous.address import address_text
from layer8.rendezvous.claims import shard_of
from layer8.rendezvous.files import Magnet, ServiceFile
from layer8.rendezvous.index import Entry, Index
from tests.cli.test_main import LAYER8
from tests.cli.test_name import NOW, A, B, NameCase
from tests.descriptors import key, node
from tests.node.test_hidden import HERE, HiddenNodeCase


class RunningTests(HiddenNodeCase):
    async def name(self, node: Node, *words: str) -> tuple[int, str, str]:
        """Run `layer8 name` as the user of a node."""
        environ = {**os.environ, "LAYER8_HOME": str(node._frame.home)}
        found = await getProcessOutputAndValue(LAYER8[0], [*LAYER8[1:], "name", *words], environ, reactor=self.clock)
        out, err, code = found
        return code, out.decode(), err.decode()

    async def test_claim_resolve_and_pin_from_a_url(self) -> None:
        """G53, G61: a service's own file is fetched from the service itself, through the node's SOCKS port."""
        await self.network()
        there = await self.member(f'[service.blog]\nports = {{ 80 = "127.0.0.1:{self.page()}" }}')
        attester = await self.member("[names]\nenabled = true")
        here = await self.member(f'[names]\nname_signers = ["{attester.relay.key.text}"]', HERE)
        hosting = await self.published(there, "blog")
        letters = hosting.address.removesuffix(".l8.alt")
        code, out, err = await self.name(there, "claim", "blog", "--json")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(json.loads(out)["address"], letters)
        code, out, err = await self.name(attester, "certify", "shop", hosting.address)
        self.assertEqual((code, err), (0, ""))
        self.assertIn("certified for 365 days", out)
        code, out, err = await self.name(there, "claim", "nobody")
        self.assertEqual((code, len(err.splitlines())), (1, 1))
        self.assertIn("layer8 hide makes one", err)
        code, out, err = await self.name(here, "resolve", "blog")
        self.assertEqual(code, 1)
        self.assertIn(f"claimed by blog~{letters[:4]}", out)
        self.assertIn("choose one by its suffix", err)
        assert attester.names.attesting is not None
        await attester.names.attesting.look(shard_of("blog"))
        (row,) = attester.names.archive.probed.values()
        await attester.names.attesting.probe(row)
        code, out, _ = await self.name(here, "resolve", f"blog~{letters[:4]}", "--json")
        told = json.loads(out)
        self.assertEqual((code, told["address"], told["claims"][0]["attesters"]), (0, letters, 1))
        file = ServiceFile.make(key(1), "theirs", 1, NOW + 3600)
        more = await self.member(f'[service.files]\nports = {{ 80 = "127.0.0.1:{self.page(file.raw)}" }}')
        where = await self.published(more, "files")
        code, out, err = await self.name(here, "pin", "mine", f"http://{where.address}/theirs.l8")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(here.names.naming.names().book.pins["mine"].key, node(1))
        code, out, _ = await self.name(here, "resolve", "shop", "--json")
        told = json.loads(out)
        self.assertEqual((code, told["address"], told["layer"]), (0, letters, "certificate"))
        code, _, err = await self.name(here, "pin", "other", "http://nobody-at-all.l8.alt/x.l8")
        self.assertEqual((code, len(err.splitlines())), (1, 1))
        self.assertIn("nobody claims that name", err)
        code, out, _ = await self.name(here, "list", "--hosts")
        self.assertRegex(out, rf"127\.\d+\.\d+\.\d+\tmine\.l8\.alt\t# {address_text(node(1))}")


class AloneTests(NameCase):
    """No node runs."""

    def test_names_of_one_s_own(self) -> None:
        self.done("pin", "blog", A)
        out = self.done("resolve", "blog")
        self.assertIn(f"blog~{A[:4]} is {A}.l8.alt", out)
        self.assertIn("the network was not asked", out)
        told = self.told("resolve", "blog")
        self.assertEqual((told["layer"], told["verified"], told["asked"]), ("pin", True, False))

    def test_addresses_links_and_files(self) -> None:
        self.done("pin", "mine", A)
        for what in (A, f"{A}.l8.alt", Magnet(node(1), "blog").__str__(), str(self.file())):
            told = self.told("resolve", what)
            self.assertEqual((told["address"], told["known"]), (A, [f"mine~{A[:4]}"]), what)
        out = self.done("resolve", str(self.file()))
        self.assertIn("its own signed file says so", out)
        self.assertIn("tracker ", out)

    def test_a_file_whose_name_leads_elsewhere(self) -> None:
        self.done("pin", "theirs", B)
        out = self.done("resolve", str(self.file()))
        self.assertIn(f"red flag: here theirs leads to {B}", out)

    def test_what_is_wrong_is_said(self) -> None:
        for words, why in (
            (("resolve", "blog"), "layer8 up starts one"),
            (("resolve", "Bl\u043eg"), "no two look alike"),
            (("resolve", "a" + A[1:]), "check does not fit"),
            (("resolve", "/nowhere.l8"), "No such file"),
            (("resolve", "magnet:?xt=urn:btih:1"), "magnet"),
            (("claim", "blog"), "layer8 up starts one"),
            (("pin", "blog", "http://blog.l8.alt/x.l8"), "layer8 up starts one"),
            (("pin", "blog", "https://", "--direct"), "a host"),
            (("pin", "blog", "http://127.0.0.1:1/x.l8"), "no node with a SOCKS port runs here"),
            (("resolve", "http://127.0.0.1:1/x.l8"), "no node with a SOCKS port runs here"),
            (("pin", "blog", "http://127.0.0.1:1/x.l8", "--direct"), "onnection refused"),
        ):
            self.assertIn(why, self.refused(*words), words)

    def test_petnames_in_another_file(self) -> None:
        (self.home / "layer8.toml").write_text('[names]\npetnames = "mine.toml"\n')
        self.done("pin", "blog", str(self.file()))
        self.assertIn("blog = ", (self.home / "mine.toml").read_text())

    def test_an_index_page(self) -> None:
        path = self.home / "page.l8"
        entries = [
            Entry(ServiceFile.make(key(number), name, 1, NOW + 3600)) for number, name in ((1, "blog"), (2, "shop"))
        ]
        path.write_bytes(Index.make(key(9), 1, NOW, "good ones", entries))
        self.assertIn("one of blog, shop", self.refused("resolve", str(path)))

    def test_a_window_that_would_close(self) -> None:
        self.done("pin", "blog", A)
        self.assertIn(A, self.done("resolve", "--wait", "blog"))

    def test_a_handler_of_links(self) -> None:
        """G52: what a desktop needs; asked with its own program where there is one."""
        folder = self.home / "share"
        self.patch(os, "environ", {**os.environ, "XDG_DATA_HOME": str(folder)})
        self.assertIn("MimeType=x-scheme-handler/magnet;\n", self.done("handler"))
        self.assertFalse(folder.exists())
        out = self.done("handler", "--install")
        self.assertIn("xdg-mime default layer8-magnet.desktop x-scheme-handler/magnet", out)
        path = folder / "applications" / "layer8-magnet.desktop"
        self.assertEqual(path.read_text(), self.done("handler"))
        if shutil.which("xdg-mime") is None:
            raise SkipTest("needs the package xdg-utils")
        environ = {**os.environ, "XDG_CONFIG_HOME": str(self.home / "config"), "HOME": str(self.home)}
        (self.home / "config").mkdir()
        for words in (("default", path.name), ("query", "default")):
            said = subprocess.run(
                ["xdg-mime", *words, "x-scheme-handler/magnet"], env=environ, capture_output=True, text=True, timeout=30
            )
        self.assertEqual(said.stdout.strip(), path.name, said.stderr)


class ShownTests(SynchronousTestCase):
    def test_claims_flags_and_conflicts(self) -> None:
        counts = {"silent": 0, "wrong_key": 2, "errors": 0, "no_descriptor": 0}
        nothing = dict.fromkeys(counts, 0)
        claim = {
            "shown": "blog~aaaa",
            "address": B,
            "since": 1_700_000_000,
            "support": 3,
            "attesters": 5,
            "strangers": 1,
            "flags": counts,
            "rumours": {**nothing, "silent": 1},
        }
        told = {
            "name": "blog", "shown": "blog~aoqq", "address": A, "layer": "pin", "why": "", "claims": [claim],
            "others": 2, "conflicts": [{"layer": "claim", "address": B}], "asked": True,
        }  # fmt: skip
        text = "\n".join(lines(told))
        for word in (
            f"blog~aoqq is {A}.l8.alt",
            "you have pinned it",
            "first seen 2023-11-14, 3 attesters that count of 5 known, and 1 strangers",
            "answered with a wrong key: 2 of those that are known",
            "does not answer: 0 of those that are known, 1 strangers",
            "and 2 more",
            f"red flag: by claim it would be {B}",
        ):
            self.assertIn(word, text)


class FetchTests(SynchronousTestCase):
    """A server that says what it is told to."""

    def serve(self, *answers: bytes | Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def run() -> None:
            for answer in answers:
                line, _ = listener.accept()
                with line:
                    line.settimeout(10)
                    if callable(answer):
                        answer(line)
                        continue
                    self.heard = line.recv(65536)
                    line.sendall(answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def test_a_file(self) -> None:
        where = self.serve(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
        self.assertEqual(fetch(f"http://{where}/a?b", 3, None), b"abc")
        self.assertTrue(self.heard.startswith(f"GET /a?b HTTP/1.1\r\nHost: {where}\r\n".encode()))

    def test_too_long(self) -> None:
        for head in (b"Content-Length: 4\r\n", b"", b"Transfer-Encoding: chunked\r\n"):
            body = b"4\r\nabcd\r\n0\r\n\r\n" if b"chunked" in head else b"abcd"
            where = self.serve(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
            with self.assertRaisesRegex(Layer8Error, "longer than 3"):
                fetch(f"http://{where}/", 3, None)

    def test_redirections(self) -> None:
        where = self.serve(
            b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
        )
        self.assertEqual(fetch(f"http://{where}/", 9, None), b"x")
        where = self.serve(*[b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n"] * 4)
        with self.assertRaisesRegex(Layer8Error, "on and on"):
            fetch(f"http://{where}/", 9, None)
        for further in (b"ftp://x/", b"http://\xff/", b"file:///etc/passwd"):
            where = self.serve(b"HTTP/1.1 302 Found\r\nLocation: " + further + b"\r\n\r\n")
            with self.assertRaises(Layer8Error):
                fetch(f"http://{where}/", 9, None)

    def test_what_is_no_answer(self) -> None:
        for answer in (b"HTTP/1.1 404 No\r\n\r\n", b"nonsense\r\n\r\n", b""):
            with self.assertRaises(Unavailable):
                fetch(f"http://{self.serve(answer)}/", 9, None)

    def test_silence(self) -> None:
        def wait(line: socket.socket) -> None:
            while line.recv(64):
                pass

        where = self.serve(wait)
        with self.assertRaises(TimedOut):
            fetch(f"http://{where}/", 9, None, seconds=0.3)

    def test_by_socks(self) -> None:
        self.logins: list[bytes] = []

        def proxy(reply: bytes, choice: bytes = b"\5\0") -> Callable[[socket.socket], None]:
            def talk(line: socket.socket) -> None:
                self.assertEqual(line.recv(4), b"\5\2\0\2")
                line.sendall(choice[:2])
                if choice[1:2] == b"\2":
                    self.logins.append(line.recv(512))
                    line.sendall(choice[2:])
                if choice not in (b"\5\0", b"\5\2\1\0"):
                    return
                self.asked = line.recv(64)
                line.sendall(reply)
                if reply[1:2] == b"\0":
                    line.recv(65536)
                    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

            return talk

        def through(talk: Callable[[socket.socket], None]) -> bytes:
            host, _, port = self.serve(talk).partition(":")
            return fetch("http://blog.l8.alt/a", 9, (host, int(port)))

        self.assertEqual(through(proxy(b"\5\0\0\1" + bytes(6))), b"x")
        self.assertEqual(self.asked, b"\5\1\0\3\x0bblog.l8.alt\0\x50")
        self.assertEqual(through(proxy(b"\5\0\0\3\1a\0\0")), b"x")
        for reply, why in ((b"\5\xf0\0\1" + bytes(6), "nobody claims"), (b"\5\x63\0\1" + bytes(6), "says 99")):
            with self.assertRaisesRegex(Unavailable, why):
                through(proxy(reply))
        for choice in (b"\5\xff", b"\5\2\1\1"):
            with self.assertRaisesRegex(Unavailable, "password"):
                through(proxy(b"", choice))
        for _ in range(2):
            self.assertEqual(through(proxy(b"\5\0\0\1" + bytes(6), b"\5\2\1\0")), b"x")
        self.assertEqual(len(set(self.logins)), 3)  # each time somebody else: no circuit is shared with other programs
        with self.assertRaisesRegex(Unavailable, "closed"):
            through(proxy(b""))
