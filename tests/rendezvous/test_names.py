"""Pins, petnames and the order in which they count."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, Refused
from layer8.rendezvous import names
from layer8.rendezvous.address import Address, Named, address_text, parse_host
from layer8.rendezvous.claims import Candidate, Certificate, State, Verdict
from layer8.rendezvous.names import Answer, Book, Layer, Names, Pin, RedFlag, WrongKey, add_petname, parse_petnames
from tests.descriptors import NOW, key, node

A, B, C = (node(number) for number in (1, 2, 3))
SIGNER = key(50)
BLOG = Named("blog")


def verdict(state: State, *keys: bytes) -> Verdict:
    return Verdict("blog", state, tuple(Candidate(one, 3, 20_000, 3, 0, {}) for one in keys))


def certificate(service: bytes, *, signer: int = 50, expires: float = NOW + 60, name: str = "blog") -> Certificate:
    return Certificate.read(Certificate.make(key(signer), name, service, int(expires)))


def suffixed(service: bytes, size: int = 6) -> Named:
    return Named("blog", address_text(service)[:size])


class LayerTests(SynchronousTestCase):
    """What wins over what."""

    def resolve(self, *, pin: bytes = b"", petname: bytes = b"", asked: Address | Named = BLOG, **told: Any) -> Answer:
        book = Book({"blog": Pin(pin, 1)} if pin else {})
        self.names = Names(book, {"blog": petname} if petname else {}, frozenset((SIGNER.node_id,)))
        return self.names.resolve(asked, NOW, **told)

    def test_an_address_needs_nobody(self) -> None:
        found = self.resolve(asked=Address(C), pin=A, petname=B)
        self.assertEqual((found.key, found.layer, found.verified), (C, Layer.ADDRESS, True))

    def test_order(self) -> None:
        told: dict[str, Any] = {"verdict": verdict(State.DECIDED, C), "certificates": [certificate(B)]}
        for given_, layer, service in (
            ({"pin": A, "petname": B, **told}, Layer.PIN, A),
            ({"petname": A, **told}, Layer.PETNAME, A),
            (told, Layer.CERTIFICATE, B),
            ({"verdict": verdict(State.DECIDED, C)}, Layer.CLAIM, C),
        ):
            found = self.resolve(**given_)
            self.assertEqual((found.layer, found.key), (layer, service))
            self.assertEqual(found.verified, layer is not Layer.CLAIM)

    def test_other_keys_are_shown_and_the_name_told_from_them(self) -> None:
        found = self.resolve(petname=A, verdict=verdict(State.DECIDED, C), certificates=[certificate(B)])
        self.assertEqual(found.conflicts, ((Layer.CERTIFICATE, B), (Layer.CLAIM, C)))
        self.assertTrue(parse_host(f"{found.shown}.l8.alt"))
        self.assertEqual(self.resolve(petname=A, certificates=[certificate(A)]).conflicts, ())

    def test_nothing(self) -> None:
        for told, word in (
            (None, "nobody claims"),
            (verdict(State.UNKNOWN), "nobody claims"),
            (verdict(State.CLAIMED, A), "seen by enough"),
            (verdict(State.AMBIGUOUS, A, B), "several keys"),
        ):
            found = self.resolve(verdict=told)
            self.assertEqual((found.key, found.layer, found.verified, found.shown), (None, None, False, "blog"))
            self.assertIn(word, found.why)

    def test_a_suffix_chooses_among_claims(self) -> None:
        for state in (State.AMBIGUOUS, State.CLAIMED, State.DECIDED):
            found = self.resolve(asked=suffixed(B), verdict=verdict(state, A, B))
            self.assertEqual((found.key, found.layer, found.verified), (B, Layer.CLAIM, False), state)
        self.assertIsNone(self.resolve(asked=suffixed(C), verdict=verdict(State.DECIDED, A, B)).key)

    def test_a_suffix_that_fits_several_chooses_none(self) -> None:
        alike = [node(number) for number in range(1, 200) if address_text(node(number))[0] == address_text(A)[0]][:2]
        found = self.resolve(asked=suffixed(A, 1), verdict=verdict(State.AMBIGUOUS, *alike))
        self.assertEqual((found.key, "write more of it" in found.why), (None, True))

    def test_a_suffix_that_is_not_the_petname_s(self) -> None:
        found = self.resolve(asked=suffixed(B), petname=A)
        self.assertEqual((found.key, found.conflicts), (None, ((Layer.PETNAME, A),)))

    def test_certificates(self) -> None:
        """Only of signers that the user has named, for this name, in time, and if they agree."""
        for wrong in (
            certificate(A, signer=51),
            certificate(A, expires=NOW),
            certificate(A, name="shop"),
        ):
            self.assertIsNone(self.resolve(certificates=[wrong]).key)
        self.assertIsNone(Names().resolve(BLOG, NOW, certificates=[certificate(A)]).key)
        twice = self.resolve(certificates=[certificate(A), certificate(B)])
        self.assertEqual((twice.key, "2 keys" in twice.why, len(twice.conflicts)), (None, True, 2))


class PinTests(SynchronousTestCase):
    """A pinned name leads to its key or nowhere."""

    def setUp(self) -> None:
        self.book = Book()
        self.assertTrue(self.book.pin("blog", A, NOW))
        self.names = Names(self.book)

    def test_pinned_once(self) -> None:
        self.assertFalse(self.book.pin("blog", A, NOW + 9))
        self.assertEqual(self.book.pins, {"blog": Pin(A, int(NOW))})
        error = self.assertRaises(WrongKey, self.book.pin, "blog", B, NOW)
        self.assertIn("blog~" + address_text(A)[:4], str(error))
        self.assertEqual(self.book.pins["blog"].key, A)
        self.assertTrue(self.book.unpin("blog"))
        self.assertFalse(self.book.unpin("blog"))
        self.assertTrue(self.book.pin("blog", B, NOW))

    def test_answered_by_another_key(self) -> None:
        """It is refused before anything could be sent, and kept."""
        self.book.meet("blog", A, Layer.CLAIM, NOW)
        self.assertEqual(self.book.flags, {})
        for at in (0, 5):
            error = self.assertRaises(WrongKey, self.book.meet, "blog", B, Layer.CLAIM, NOW + at)
            self.assertIn("not opened", str(error))
        self.assertIsInstance(error, Refused)
        (flag,) = self.book.flags.values()
        self.assertEqual(flag, RedFlag("blog", B, Layer.CLAIM, int(NOW) + 5, 2))
        self.book.meet("shop", B, Layer.CLAIM, NOW)
        self.assertEqual(len(self.book.flags), 1)

    def test_whatever_the_network_says_it_leads_to_the_pin(self) -> None:
        names = Names(self.book, {"blog": B}, frozenset((SIGNER.node_id,)))
        found = names.resolve(BLOG, NOW, verdict(State.DECIDED, C), [certificate(B)])
        self.assertEqual((found.key, found.layer), (A, Layer.PIN))
        self.assertEqual({key for _, key in found.conflicts}, {B, C})
        self.assertEqual({flag.key for flag in self.book.flags.values()}, {B, C})

    def test_with_the_suffix_of_another_it_leads_nowhere(self) -> None:
        self.assertEqual(self.names.resolve(suffixed(A), NOW).key, A)
        error = self.assertRaises(WrongKey, self.names.resolve, suffixed(B), NOW, verdict(State.DECIDED, B))
        self.assertIn("is another key", str(error))

    def test_after_two_networks_have_merged(self) -> None:
        """Who pinned the name in one of them goes on there; everybody else is shown both."""
        merged = verdict(State.AMBIGUOUS, A, B)
        self.assertEqual(self.names.resolve(BLOG, NOW, merged).key, A)
        stranger = Names().resolve(BLOG, NOW, merged)
        self.assertEqual((stranger.key, stranger.verdict), (None, merged))

    def test_limits(self) -> None:
        self.patch(names, "PINS", 2)
        self.book.pin("shop", A, NOW)
        with self.assertRaises(Refused):
            self.book.pin("more", A, NOW)
        self.patch(names, "FLAGS", 3)
        for number in range(10, 15):
            with self.assertRaises(WrongKey):
                self.book.meet("blog", node(number), Layer.CLAIM, NOW)
        self.assertEqual([flag.key for flag in self.book.flags.values()], [node(12), node(13), node(14)])


class FileTests(SynchronousTestCase):
    def test_pins_round_trip(self) -> None:
        book = Book()
        for name, service in (("blog", A), ("a-1", B), ("99", A)):
            book.pin(name, service, NOW)
        with contextlib.suppress(WrongKey):
            book.meet("blog", C, Layer.CERTIFICATE, NOW)
        again = Book.parse(book.dump())
        self.assertEqual((again.pins, again.flags), (book.pins, book.flags))
        self.assertEqual(Book.parse("").pins, {})

    def test_wrong_pins(self) -> None:
        good = f'[pin.blog]\nkey = "{address_text(A)}"\nat = 1\n'
        Book.parse(good)
        for text in (
            "x", "pin = 1", "flag = 1", good.replace("blog", "Blog"), good.replace("at = 1", ""),
            good.replace("at = 1", "at = true"),
            good.replace(address_text(A), "x"), good.replace("key =", "keys ="), "[[flag]]", "[pin]\nblog = 1",
            f'[[flag]]\nname = "blog"\nkey = "{address_text(A)}"\nby = "x"\nat = 1\ntimes = 1\n',
            "x = " + "[" * 5000, "x = " + "9" * 5000,
        ):  # fmt: skip
            with self.assertRaises(ConfigError, msg=text[:60]):
                Book.parse(text)
        self.patch(names, "PINS", 0)
        self.assertRaises(ConfigError, Book.parse, good)

    def test_petnames(self) -> None:
        text = f'# mine\nblog = "{address_text(A)}"\nshop = "{address_text(B).upper()}.l8.alt"'
        self.assertEqual(parse_petnames(text), {"blog": A, "shop": B})
        more = add_petname(text, "more", C)
        self.assertTrue(more.startswith(text))
        self.assertEqual(parse_petnames(more), {"blog": A, "shop": B, "more": C})
        self.assertEqual(add_petname(text, "blog", A), text)
        self.assertRaises(WrongKey, add_petname, text, "blog", B)
        self.assertEqual(parse_petnames(add_petname("", "blog", A)), {"blog": A})

    def test_wrong_petnames(self) -> None:
        for text, word in (
            ("blog = 1", "write blog"),
            ("[blog]", "write blog"),
            ('blog = "abc"', "56 letters"),
            (f'Blog = "{address_text(A)}"', "a to z"),
            (f'"bl\u043eg" = "{address_text(A)}"', "look alike"),
            (f'blog = "{address_text(A)}"\nblog = "{address_text(A)}"', "TOML"),
            ("#" * (names.TEXT_MAX + 1), "TEXT_MAX"),
        ):
            self.assertIn(word, str(self.assertRaises(ConfigError, parse_petnames, text)))

    def test_ten_thousand_petnames_and_no_more(self) -> None:
        text = "".join(f'n{number} = "{address_text(A)}"\n' for number in range(names.PETNAMES))
        self.assertEqual(len(parse_petnames(text)), names.PETNAMES)
        self.assertIn("PETNAMES", str(self.assertRaises(ConfigError, add_petname, text, "more", A)))
        more = text + f'more = "{address_text(A)}"\n'
        self.assertIn("PETNAMES", str(self.assertRaises(ConfigError, parse_petnames, more)))

    @given(st.text() | st.text("[]pin.=\"\nfagblo'{}1 "))
    def test_any_text(self, text: str) -> None:
        for reader in (parse_petnames, Book.parse):
            with contextlib.suppress(ConfigError):
                reader(text)
