"""Addresses, names, hosts and periods."""

from __future__ import annotations

import base64
import contextlib
import hashlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.rendezvous.address import (
    DOMAIN,
    LETTERS,
    NAME_MOST,
    OVERLAP,
    PERIOD,
    Address,
    Named,
    WrongName,
    address_text,
    check_name,
    fits,
    parse_address,
    parse_host,
    period,
    period_start,
    published,
    shown,
)
from tests.descriptors import node

ONE = node(1)
TEXT = address_text(ONE)
LABELS = st.lists(st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True), max_size=3).map(".".join)
NAMES = st.from_regex(r"[a-z0-9]{1,10}(-[a-z0-9]{1,10})?", fullmatch=True).filter(lambda name: len(name) > 1)


def written(key: bytes, check: bytes | None = None, version: int = 1) -> str:
    """Write an address by hand."""
    check = check or hashlib.sha256(b"layer8 address" + key + bytes((version,))).digest()[:2]
    return base64.b32encode(key + check + bytes((version,))).decode().lower()


class AddressTests(SynchronousTestCase):
    def test_frozen(self) -> None:
        self.assertEqual(TEXT, "js22x5vnph57lk54zl6me2oyltjgkhwuxcc3lbu7eqno34ffxiu3eyib")

    def test_round_trip(self) -> None:
        self.assertEqual((len(TEXT), TEXT), (LETTERS, written(ONE)))
        for text in (TEXT, TEXT.upper(), TEXT + DOMAIN, TEXT.upper() + ".L8.ALT"):
            self.assertEqual(parse_address(text), ONE)
        self.assertEqual(Address(ONE).host, TEXT + DOMAIN)
        self.assertEqual(Address(ONE, "www.a").host, f"www.a.{TEXT}{DOMAIN}")

    def test_every_wrong_letter_is_noticed_or_another_key(self) -> None:
        """The check has 16 bits: of 56 times 31 changes one in 65,536 gets by, and none of these does."""
        for at in range(LETTERS):
            for letter in "abcdefghijklmnopqrstuvwxyz234567":
                if letter != TEXT[at]:
                    with self.assertRaises(WrongName):
                        parse_address(TEXT[:at] + letter + TEXT[at + 1 :])

    def test_what_is_wrong_is_said(self) -> None:
        small = (1).to_bytes(32, "little")
        for text, word in (
            (TEXT[:-1], "56 letters"),
            (TEXT + "a", "56 letters"),
            (TEXT[:-1] + "ä", "56 letters"),
            (TEXT[:-1] + "1", "base32"),
            (TEXT[:-1] + "=", "base32"),
            (written(ONE, version=2), "version 2"),
            (written(ONE, check=b"\0\0"), "check does not fit"),
            (written(small), "prime order"),
            ("", "56 letters"),
        ):
            error = self.assertRaises(WrongName, parse_address, text)
            self.assertIn(word, str(error))
            self.assertEqual(len(str(error).splitlines()), 1)

    @given(st.text(max_size=70) | st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=56, max_size=56))
    def test_any_noise(self, text: str) -> None:
        for reader in (parse_address, parse_host, check_name):
            with contextlib.suppress(RemoteProtocolError):
                reader(text)


class HostTests(SynchronousTestCase):
    def test_forms(self) -> None:
        for text, found in (
            ("blog.l8.alt", Named("blog")),
            ("BLOG.L8.ALT.", Named("blog")),
            ("blog~k3f7.l8.alt", Named("blog", "k3f7")),
            ("blog--k3f7.l8.alt", Named("blog", "k3f7")),
            ("my-blog--k3f7.l8.alt", Named("my-blog", "k3f7")),
            ("www.blog~k.l8.alt", Named("blog", "k", "www")),
            (f"{TEXT}.l8.alt", Address(ONE)),
            (f"a.b.{TEXT}.l8.alt", Address(ONE, "a.b")),
            (f"blog~{TEXT}.l8.alt", Named("blog", TEXT)),
        ):
            self.assertEqual(parse_host(text), found)

    def test_wrong_ones(self) -> None:
        for text in (
            "", ".", "l8.alt", ".l8.alt", "blog.example", "blog.l8.alt.example", "blog~.l8.alt", "blog--.l8.alt",
            "blog~k3f9.l8.alt", "~abc.l8.alt", "--abc.l8.alt", "a~b~c.l8.alt", "..blog.l8.alt", ".blog.l8.alt",
            "blog .l8.alt", "bl\u043eg.l8.alt", "blo\u0261.l8.alt", "blog\n.l8.alt", "b.l8.alt", "-b.l8.alt",
            "a" * 33 + ".l8.alt", TEXT[:-1] + "c.l8.alt", "x." * 130 + "blog.l8.alt",
        ):  # fmt: skip
            with self.assertRaises(WrongName, msg=text):
                parse_host(text)

    def test_a_suffix_of_our_own_alphabet(self) -> None:
        """Base32 has no 0, 1, 8 and 9: `blog~k3f9` of the design pages is an example of the form only."""
        self.assertIn("2 to 7", str(self.assertRaises(WrongName, parse_host, "blog~k3f9.l8.alt")))

    @given(NAMES, LABELS, st.integers(1, 20), st.integers(0, LETTERS), st.sampled_from(("~", "--")))
    def test_every_name_that_is_shown_can_be_asked_for(
        self, name: str, labels: str, number: int, size: int, mark: str
    ) -> None:
        suffix = address_text(node(number))[:size]
        host = ".".join(filter(None, (labels, name + (mark + suffix if suffix else "")))) + DOMAIN
        self.assertEqual(parse_host(host), Named(name, suffix, labels))
        self.assertTrue(fits(node(number), suffix))


class NameTests(SynchronousTestCase):
    def test_good_and_bad(self) -> None:
        for name in ("ab", "a1", "1-2", "a-b-c", "x" * NAME_MOST):
            self.assertEqual(check_name(name), name)
        for name in (
            "", "a", "x" * (NAME_MOST + 1), "-a", "a-", "a--b", "A-b", "a_b", "a.b", "a b", "a\n",
            "bl\u043eg", "caf\u00e9", "\uff42log", "xn--blg-fmc",
        ):  # fmt: skip
            self.assertRaises(WrongName, check_name, name)

    def test_shown_with_as_much_of_the_address_as_is_needed(self) -> None:
        self.assertEqual(shown("blog", ONE), f"blog~{TEXT[:4]}")
        self.assertEqual(shown("blog", ONE, (ONE, node(2))), f"blog~{TEXT[:4]}")
        found: dict[str, int] = {}
        for number in range(1, 3000):
            two = found.setdefault(address_text(node(number))[:4], number)
            if two != number:
                one, other = node(two), node(number)
                longer = shown("blog", one, (other,))
                self.assertGreater(len(longer), len("blog~") + 4)
                self.assertFalse(fits(other, longer.partition("~")[2]))
                return
        self.fail("no two addresses begin alike")


class PeriodTests(SynchronousTestCase):
    def test_days_change_at_noon(self) -> None:
        noon = 20_000 * PERIOD + 43_200
        self.assertEqual((period(noon - 1), period(noon)), (19_999, 20_000))
        self.assertEqual(period_start(20_000), noon)

    def test_the_next_one_is_published_three_hours_before(self) -> None:
        change = period_start(20_001)
        self.assertEqual(published(change - OVERLAP - 1), (20_000,))
        self.assertEqual(published(change - OVERLAP), (20_000, 20_001))
        self.assertEqual(published(change - 1), (20_000, 20_001))
        self.assertEqual(published(change), (20_001,))
