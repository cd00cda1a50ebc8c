"""`layer8 name`: what is pinned stays, and what is wrong is said in one line."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.rendezvous.address import address_text
from layer8.rendezvous.files import Magnet, ServiceFile, Tracker
from layer8.rendezvous.index import Entry, Index
from layer8.rendezvous.names import Layer, WrongKey
from layer8.rendezvous.shelf import PETNAMES_FILE, PINS_FILE, Shelf
from tests.cli.test_main import layer8
from tests.descriptors import key, node

A, B = address_text(node(1)), address_text(node(2))
NOW = int(datetime.now(UTC).timestamp())


class NameCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).resolve()
        self.home.mkdir(0o700)
        self.patch(os, "environ", {**os.environ, "LAYER8_HOME": str(self.home)})

    def petnames(self, text: str) -> None:
        path = self.home / PETNAMES_FILE
        path.write_text(text)
        path.chmod(0o644)

    def done(self, *words: str) -> str:
        code, out, err = layer8("name", *words)
        self.assertEqual((code, err), (0, ""))
        return out

    def told(self, *words: str) -> Any:
        return json.loads(self.done(*words, "--json"))

    def refused(self, *words: str) -> str:
        code, out, err = layer8("name", *words)
        self.assertEqual((code in (1, 2), out, len(err.splitlines())), (True, "", 1), err)
        return err

    def file(self, number: int = 1, expires: int = NOW + 3600) -> Path:
        path = self.home / f"{number}.l8"
        trackers = [Tracker(node(7), "tcp:192.0.2.7:9000")]
        path.write_bytes(ServiceFile.make(key(number), "theirs", 1, expires, trackers=trackers).raw)
        return path


class PinTests(NameCase):
    def test_address(self) -> None:
        for text in (A, A.upper(), f"{A}.l8.alt"):
            self.assertIn(f"to {A}.l8.alt", self.done("pin", "blog", text))
        self.assertEqual(self.told("pin", "blog", A)["new"], False)
        self.assertEqual(Shelf(self.home).book().pins["blog"].key, node(1))
        self.assertEqual(stat.S_IMODE((self.home / PINS_FILE).stat().st_mode), 0o600)
        self.assertFalse((self.home / PETNAMES_FILE).exists())

    def test_another_key_is_refused_and_nothing_changes(self) -> None:
        self.done("pin", "blog", A)
        before = (self.home / PINS_FILE).read_bytes()
        self.assertIn(f"blog is pinned to blog~{A[:4]}", self.refused("pin", "blog", B))
        self.assertIn("blog is pinned", self.refused("pin", "blog", str(self.file(2))))
        self.assertEqual((self.home / PINS_FILE).read_bytes(), before)
        self.assertFalse((self.home / PETNAMES_FILE).exists())

    def test_file(self) -> None:
        out = self.done("pin", "blog", str(self.file()))
        self.assertIn("it calls itself theirs", out)
        self.assertIn("tcp:192.0.2.7:9000", out)
        shelf = Shelf(self.home)
        self.assertEqual((shelf.book().pins["blog"].key, shelf.petnames()), (node(1), {"blog": node(1)}))

    def test_file_of_another_key_than_the_petname_s(self) -> None:
        self.petnames(f'blog = "{B}"\n')
        self.assertIn("the petname blog", self.refused("pin", "blog", str(self.file())))
        self.assertEqual(Shelf(self.home).book().pins, {})

    def test_index_page(self) -> None:
        path = self.home / "page"
        entries = [
            Entry(ServiceFile.make(key(number), name, 1, NOW + 3600)) for number, name in ((1, "blog"), (2, "shop"))
        ]
        path.write_bytes(Index.make(key(9), 1, 1, "all", entries))
        self.assertEqual(self.told("pin", "shop", str(path))["address"], B)
        self.assertIn("none of the 2 services", self.refused("pin", "more", str(path)))

    def test_magnet(self) -> None:
        found = self.told("pin", "blog", str(Magnet(node(1), "theirs", (Tracker(node(7), "tcp:192.0.2.7:9000"),))))
        self.assertEqual((found["address"], found["shown"], len(found["trackers"])), (A, f"blog~{A[:4]}", 1))

    def test_what_is_wrong_is_said(self) -> None:
        changed = self.file(3)
        raw = bytearray(changed.read_bytes())
        raw[-3] ^= 1
        changed.write_bytes(raw)
        huge = self.home / "huge.l8"
        huge.write_bytes(bytes(9000))
        for words, text in (
            (("blog", A[:-1]), "56 letters"),
            (("blog", A[:-4] + "aaab"), "check does not fit"),
            (("Blog", A), "a to z"),
            (("bl\u043eg", A), "look alike"),
            (("blog", "magnet:?xt=urn:btih:abc"), "something else"),
            (("blog", f"magnet:?xt=urn:l8:{A}&dn=blog~{B[:5]}"), "another key"),
            (("blog", str(changed)), "3.l8"),
            (("blog", str(huge)), "FILE_MAX"),
            (("blog", str(self.file(4, expires=2))), "expired"),
            (("blog", "missing.l8"), "No such file"),
        ):
            self.assertIn(text, self.refused("pin", *words))
        self.assertFalse((self.home / PINS_FILE).exists())

    def test_unpin(self) -> None:
        self.done("pin", "blog", str(self.file()))
        self.assertIn("still stands in petnames.toml", self.done("unpin", "blog"))
        self.assertIn("not pinned", self.refused("unpin", "blog"))
        self.done("pin", "shop", A)
        self.assertEqual(self.told("unpin", "shop"), {"name": "shop", "unpinned": True})

    def test_files_that_others_may_write_are_not_believed(self) -> None:
        self.done("pin", "blog", A)
        (self.home / PINS_FILE).chmod(0o662)
        self.assertIn("chmod", self.refused("list"))

    def test_files_that_are_wrong(self) -> None:
        for name, text in ((PINS_FILE, b"pin = 1"), (PETNAMES_FILE, b"blog = 1"), (PETNAMES_FILE, b"\xff")):
            (self.home / name).write_bytes(text)
            (self.home / name).chmod(0o600)
            self.assertIn(name, self.refused("list"))
            (self.home / name).unlink()


class ListTests(NameCase):
    def setUp(self) -> None:
        super().setUp()
        self.done("pin", "blog", A)
        self.petnames(f'shop = "{B}"\n')

    def test_empty(self) -> None:
        self.done("unpin", "blog")
        (self.home / PETNAMES_FILE).unlink()
        self.assertIn("no name is pinned", self.done("list"))
        self.assertEqual(self.told("list"), {"names": [], "flags": []})
        self.assertEqual(self.done("list", "--hosts"), "")

    def test_layers(self) -> None:
        out = self.done("list")
        self.assertIn(f"blog~{A[:4]}", out)
        rows = self.told("list")["names"]
        self.assertEqual(
            [(row["name"], row["layer"], row["address"]) for row in rows], [("blog", "pin", A), ("shop", "petname", B)]
        )

    def test_hosts(self) -> None:
        lines = [line.split("\t") for line in self.done("list", "--hosts").splitlines()]
        self.assertEqual(
            [line[1:] for line in lines], [["blog.l8.alt", f"# {A}.l8.alt"], ["shop.l8.alt", f"# {B}.l8.alt"]]
        )
        hosts = [line[0] for line in lines]
        self.assertEqual(len(set(hosts)), 2)
        for host in hosts:
            self.assertRegex(host, r"^127\.(6[4-9]|[789]\d|1[01]\d|12[0-7])\.\d+\.\d+$")
        self.done("pin", "aaa", A)
        self.assertEqual([line.split("\t")[0] for line in self.done("list", "--hosts").splitlines()][1:], hosts)

    def test_red_flags(self) -> None:
        shelf = Shelf(self.home)
        book = shelf.book()
        with self.assertRaises(WrongKey):
            book.meet("blog", node(2), Layer.CLAIM, NOW)
        shelf.save(book)
        self.petnames(f'blog = "{B}"\n')
        out = self.done("list")
        self.assertIn(f"red flag: petnames.toml says that blog is {B}", out)
        self.assertIn(f"red flag: blog was answered by {B} (claim, 1 times", out)
        told = self.told("list")
        self.assertEqual((told["names"][0]["address"], told["names"][0]["conflict"]), (A, B))
        self.assertEqual(told["flags"][0]["address"], B)
