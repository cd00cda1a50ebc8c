"""Certificates of a folder: by the names inside, exact before wildcard, and what happens when files change."""

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.x509 import Identity, self_signed
from layer8.proxy import certs
from layer8.proxy.certs import CHECK, PAIRS, Folder, Sources, pairs


def put(folder: Path, name: str, names: list[str], days: int = 30) -> str:
    """Write a pair and give its pin."""
    key, chain = self_signed(names, lifetime=datetime.timedelta(days=days))
    (folder / f"{name}.key").touch(0o600)
    (folder / f"{name}.key").write_bytes(key)
    (folder / f"{name}.pem").write_bytes(chain)
    return Identity.from_pem(key, chain).pin


class FolderCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.told: list[tuple[bool, str]] = []
        self.certs = Folder(self.folder, lambda: self.now, lambda ok, why: self.told.append((ok, why)))

    def names(self, host: str) -> tuple[str, ...]:
        found = self.certs.pair(host)
        return () if found is None else found.names

    def later(self) -> None:
        self.now += CHECK


class NameTests(FolderCase):
    def test_exact_before_wildcard(self) -> None:
        put(self.folder, "a", ["*.example.org"])
        put(self.folder, "z", ["www.example.org", "example.org"])
        self.assertEqual(self.names("www.example.org"), ("www.example.org", "example.org"))
        self.assertEqual(self.names("other.example.org"), ("*.example.org",))
        self.assertEqual(self.names("*.example.org"), ("*.example.org",))
        self.assertEqual(self.names("example.org"), ("www.example.org", "example.org"))
        for none in ("a.b.example.org", "org", "", "*.org", "example.com"):
            self.assertEqual(self.names(none), ())
        self.assertEqual(self.told, [(True, "")])

    def test_the_one_that_ends_last(self) -> None:
        put(self.folder, "a", ["a.test"], 10)
        put(self.folder, "b", ["a.test", "b.test"], 90)
        put(self.folder, "c", ["a.test", "c.test"], 20)
        self.assertEqual(self.names("a.test"), ("a.test", "b.test"))

    def test_as_certbot_lays_them_out(self) -> None:
        archive, live = self.folder.parent / "archive", self.folder / "shop.test"
        archive.mkdir()
        live.mkdir()
        put(archive, "x", ["shop.test"])
        (live / "fullchain.pem").symlink_to(archive.absolute() / "x.pem")
        (live / "privkey.pem").symlink_to(archive.absolute() / "x.key")
        (self.folder / "README").write_text("This directory contains your keys and certificates.")
        self.assertEqual(self.names("shop.test"), ("shop.test",))
        self.assertEqual(len(list(pairs(self.folder))), 1)
        put(archive, "y", ["shop.test", "new.test"])
        for name, target in (("fullchain.pem", "y.pem"), ("privkey.pem", "y.key")):
            (live / name).unlink()
            (live / name).symlink_to(archive.absolute() / target)
        self.later()
        self.assertEqual(self.names("new.test"), ("shop.test", "new.test"))

    def test_both_in_one_file(self) -> None:
        key, chain = self_signed("a.test")
        (self.folder / "a.pem").touch(0o600)
        (self.folder / "a.pem").write_bytes(key + chain)
        self.assertEqual(self.names("a.test"), ("a.test",))

    def test_several_sources(self) -> None:
        put(self.folder, "a", ["a.test"])
        other = Folder(self.folder / "none", lambda: self.now, lambda ok, why: None)
        both = Sources((other, self.certs))
        self.assertIsInstance(both.context("a.test"), SSL.Context)
        self.assertIsNone(both.context("b.test"))


class ChangeTests(FolderCase):
    def test_looks_at_a_bounded_rate(self) -> None:
        put(self.folder, "a", ["a.test"])
        first = self.certs.context("a.test")
        self.assertIsNotNone(first)
        put(self.folder, "a", ["a.test"])
        put(self.folder, "b", ["b.test"])
        self.now += CHECK - 0.1
        self.assertIs(self.certs.context("a.test"), first)
        self.assertEqual(self.names("b.test"), ())
        self.now += 0.1
        second = self.certs.context("a.test")
        self.assertIsNot(second, first)
        self.assertEqual(self.names("b.test"), ("b.test",))
        self.later()
        self.assertIs(self.certs.context("a.test"), second)  # nothing changed: tickets stay good
        (self.folder / "b.pem").unlink()
        self.certs.look()  # as a reload of the configuration does, at once
        self.assertEqual(self.names("b.test"), ())

    def test_a_look_that_takes_long_is_taken_rarely(self) -> None:
        put(self.folder, "a", ["a.test"])
        self.certs.clock = lambda: self.now + len(list(self.folder.glob("slow*")))

        def slow(folder: Path) -> Iterator[tuple[Path, Path]]:
            (folder / f"slow{len(looks)}").touch()
            looks.append(self.now)
            return pairs(folder)

        looks: list[float] = []
        self.patch(certs, "pairs", slow)
        for _ in range(40):
            self.certs.context("a.test")
            self.now += CHECK
        self.assertEqual(len(looks), 2)

    def test_a_key_for_tickets_lasts_half_a_day(self) -> None:
        put(self.folder, "a", ["a.test"])
        first = self.certs.context("a.test")
        self.now += certs.TICKET_KEY - 1
        self.assertIs(self.certs.context("a.test"), first)
        self.now += 1
        second = self.certs.context("a.test")
        self.assertIsNot(second, first)
        self.assertIs(self.certs.context("a.test"), second)

    def test_one_that_has_expired_is_shown_and_told(self) -> None:
        put(self.folder, "a", ["a.test"], 0)
        self.assertEqual(self.names("a.test"), ("a.test",))
        self.assertEqual(self.told, [(False, "a.test: the certificate has expired")])
        put(self.folder, "b", ["a.test"])
        self.later()
        self.assertIsNotNone(self.certs.context("a.test"))
        self.assertEqual(self.told[-1], (True, ""))

    def test_bad_files_change_nothing(self) -> None:
        put(self.folder, "a", ["a.test"])
        first = self.certs.context("a.test")
        whole = (self.folder / "a.pem").read_bytes()
        for bad in (b"", whole[: len(whole) // 2], self_signed("a.test")[1]):
            (self.folder / "a.pem").write_bytes(bad)
            self.later()
            self.assertIs(self.certs.context("a.test"), first)
            self.assertFalse(self.told[-1][0])
            self.assertIn("a.pem", self.told[-1][1])
            self.assertNotIn("\n", self.told[-1][1])
        pin = put(self.folder, "a", ["a.test"])
        self.later()
        self.assertIsNot(self.certs.context("a.test"), first)
        self.assertEqual(self.told[-1], (True, ""))
        self.assertEqual(Identity.load(self.folder / "a.key", self.folder / "a.pem").pin, pin)

    def test_each_kind_of_bad_file_is_named(self) -> None:
        _, chain = self_signed("a.test")
        cases = {
            "open": "chmod 600",
            "alone": "no alone.key beside it",
            "nameless": "no host name",
            "swapped": "private key",
        }
        put(self.folder, "open", ["o.test"])
        (self.folder / "open.key").chmod(0o644)
        (self.folder / "alone.pem").write_bytes(chain)
        put(self.folder, "nameless", ["127.0.0.1"])
        put(self.folder, "swapped", ["s.test"])
        (self.folder / "swapped.key").write_bytes(chain)
        for name, words in cases.items():
            for other in cases.keys() - {name}:
                for file in self.folder.glob(f"{other}.*"):
                    file.rename(file.with_name(f".{file.name}"))
            self.certs.look()
            self.assertIn(words, self.told[-1][1])
            for file in list(self.folder.iterdir()):
                if file.name.startswith("."):
                    file.rename(file.with_name(file.name[1:]))
        self.certs.look()
        self.assertEqual(
            [name in self.told[-1][1] for name in sorted(cases)], [True, True, True, False]
        )  # three are named

    def test_a_folder_that_is_away(self) -> None:
        put(self.folder, "a", ["a.test"])
        first = self.certs.context("a.test")
        away = self.folder.with_name("away")
        self.folder.rename(away)
        self.later()
        self.assertIs(self.certs.context("a.test"), first)
        self.assertIn("cannot be read", self.told[-1][1])
        shutil.move(away, self.folder)
        self.later()
        self.assertIsNotNone(self.certs.context("a.test"))
        self.assertEqual(self.told[-1], (True, ""))

    def test_no_more_than_so_many(self) -> None:
        for number in range(3):
            put(self.folder, f"{number}", [f"{number}.test"])
        self.patch(certs, "PAIRS", 2)
        self.assertEqual(self.names("1.test"), ("1.test",))
        self.assertEqual(self.names("2.test"), ())
        self.assertIn("more than 2", self.told[-1][1])
        self.assertGreater(PAIRS, 1000)
