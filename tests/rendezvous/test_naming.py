"""Names by the DHT: what counts before what, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Unavailable
from layer8.crypto.items import Mutable
from layer8.rendezvous import claims
from layer8.rendezvous.address import WrongName, address_text
from layer8.rendezvous.claims import (
    DAY,
    Certificate,
    Flag,
    Seen,
    State,
    Witness,
    claim_target,
    make_claim,
    make_seen,
)
from layer8.rendezvous.names import Layer, RedFlag, WrongKey
from layer8.rendezvous.naming import FRESH, NAMES_KEPT, Naming
from layer8.rendezvous.shelf import Shelf
from layer8.rendezvous.visits import BAD_ADDRESS, NO_DESCRIPTOR, NotFound
from tests.descriptors import NOW, key, node
from tests.rendezvous.sets import MemorySets

A, B = key(1), key(2)
TODAY = int(NOW) // DAY


class NamingCase(SynchronousTestCase):
    """A user with a folder, and a DHT; ten attesters that are known for long, each in a network of its own."""

    def setUp(self) -> None:
        self.now = NOW
        self.items = MemorySets()
        self.folder = Path(self.mktemp())
        self.folder.mkdir(mode=0o700)
        self.shelf = Shelf(self.folder)
        self.flags: list[RedFlag] = []
        self.naming = self.naming_of(self.shelf)

    def naming_of(self, shelf: Shelf, **more: Any) -> Naming:
        """Make what looks names up."""
        more = {"ruled": False, "flagged": self.flags.append, **more}
        return Naming(self.items, lambda: self.now, shelf, self.witness, **more)

    def witness(self, identity: bytes) -> Witness | None:
        """Know ten nodes."""
        known = {node(number): number for number in range(10, 20)}
        if identity not in known:
            return None
        number = known[identity]
        return Witness(NOW - 1000 * DAY, f"10.{number}.0.0/16", frozenset((node(5000 + number),)))

    def claim(self, owner: Any, *attesters: int, name: str = "blog", days: int = 50, flags: int = 0) -> None:
        """Have a service claim a name, and nodes attest it."""
        self.items.add(make_claim(owner, name, NOW, ruled=False))
        for number in attesters:
            seen = Seen(name, owner.node_id, node(number), TODAY - days, TODAY, flags, 1, 1)
            self.items.add(make_seen(key(number), seen, NOW, ruled=False))

    def run_(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Give what is there at once."""
        return self.successResultOf(Deferred.fromCoroutine(work))

    def fails(self, work: Coroutine[Any, Any, Any], *errors: type[Exception]) -> Any:
        """Give the error."""
        return self.failureResultOf(Deferred.fromCoroutine(work), *errors).value

    def files(self) -> dict[str, bytes]:
        """Read everything that is on disk."""
        return {path.name: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


class ResolveTests(NamingCase):
    """What people are shown."""

    def test_a_claim_that_three_have_seen(self) -> None:
        self.claim(A, 10, 11, 12)
        answer = self.run_(self.naming.resolve("blog"))
        self.assertEqual((answer.key, answer.layer, answer.verified), (A.node_id, Layer.CLAIM, False))
        (best,) = answer.verdict.candidates
        self.assertEqual((best.support, best.attesters, best.strangers, best.day), (3, 3, 0, TODAY - 50))

    def test_in_a_network_with_rules(self) -> None:
        self.claim(A, 10, 11, 12, 99, flags=Flag.SILENT)
        for name in ("CLAIM_EFFORT", "SEEN_EFFORT"):
            self.patch(claims, name, 0)
        answer = self.run_(self.naming_of(self.shelf, ruled=True).resolve("blog"))
        (best,) = answer.verdict.candidates
        self.assertEqual((best.support, best.attesters, best.strangers), (3, 3, 1))
        self.assertEqual((best.flags, best.rumours), ({Flag.SILENT: 3}, {Flag.SILENT: 1}))

    def test_two_of_like_standing(self) -> None:
        """G57, G59: nobody gets it, both are shown; a suffix chooses."""
        self.claim(A, 10, 11, 12)
        self.claim(B, 13, 14, 15)
        answer = self.run_(self.naming.resolve("blog"))
        self.assertEqual((answer.key, answer.verdict.state), (None, State.AMBIGUOUS))
        self.assertEqual(len(answer.verdict.candidates), 2)
        chosen = self.run_(self.naming.resolve("blog~" + address_text(B.node_id)[:6]))
        self.assertEqual(chosen.key, B.node_id)

    def test_an_address_asks_nobody(self) -> None:
        for text in (address_text(A.node_id), f"www.{address_text(A.node_id)}.l8.alt"):
            self.assertEqual(self.run_(self.naming.resolve(text)).key, A.node_id)
        self.assertEqual(self.items.asked, [])

    def test_what_is_no_name(self) -> None:
        for text in ("Bl\u043eg", "-a", "blog..l8.alt", address_text(A.node_id)[:-1] + "a"):
            self.fails(self.naming.resolve(text), WrongName)

    def test_records_that_are_none_are_left_out(self) -> None:
        self.claim(A, 10, 11, 12)
        other = make_claim(B, "shop", NOW, ruled=False)
        self.items.sets[claim_target("blog")][5, b"x", b"x"] = other.record()
        self.assertEqual(self.run_(self.naming.resolve("blog")).key, A.node_id)

    def test_sets_that_cannot_be_had(self) -> None:
        self.claim(A, 10, 11, 12)
        self.items.silent = True
        self.fails(self.naming.resolve("blog"), Unavailable)


class MergeTests(NamingCase):
    """G59: two networks whose nodes come to know each other, and in both somebody has claimed `blog`."""

    def test_both_are_shown_and_pins_stay(self) -> None:
        self.claim(A, 10, 11, 12, 13)
        one, self.items.sets = self.items.sets, {}
        self.claim(B, 14, 15, 16, days=20)
        two = self.items.sets
        for sets, owner in ((one, A), (two, B)):
            self.items.sets = sets
            self.naming.forget()
            self.assertEqual(self.run_(self.naming.key("blog.l8.alt")), owner.node_id)
        book = self.shelf.book()
        book.pin("shop", A.node_id, NOW)
        self.shelf.save(book)
        self.items.sets = {target: {**one.get(target, {}), **two.get(target, {})} for target in {*one, *two}}
        self.naming.forget()
        answer = self.run_(self.naming.resolve("blog"))
        self.assertEqual([found.key for found in answer.verdict.candidates], [A.node_id, B.node_id])
        self.assertIn("choose one by its suffix", str(self.fails(self.naming.key("blog.l8.alt"), NotFound)))
        for owner in (A, B):
            short = address_text(owner.node_id)[:4]
            self.assertEqual(self.run_(self.naming.key(f"blog~{short}.l8.alt")), owner.node_id)
        book.pin("blog", B.node_id, NOW)
        self.shelf.save(book)
        self.assertEqual(self.run_(self.naming.key("blog.l8.alt")), B.node_id)


class CertificateTests(NamingCase):
    """G60: a signer's word, where the user has named the signer."""

    def certify(self, signer: Any, owner: Any, by: Any = None) -> None:
        raw = Certificate.make(by or signer, "blog", owner.node_id, int(NOW) + DAY)
        item = Mutable.make(signer.node_id, signer.sign, 1, raw, b"blog")
        self.items.items[item.target] = item

    def test_of_a_signer_that_is_named(self) -> None:
        self.certify(key(7), A)
        self.claim(B, 10, 11, 12)
        naming = self.naming_of(self.shelf, signers=(node(7),))
        answer = self.run_(naming.resolve("blog"))
        self.assertEqual((answer.key, answer.layer), (A.node_id, Layer.CERTIFICATE))
        self.assertEqual(answer.conflicts, ((Layer.CLAIM, B.node_id),))

    def test_of_others(self) -> None:
        self.certify(key(7), A)
        self.assertIsNone(self.run_(self.naming.resolve("blog")).key)
        naming = self.naming_of(self.shelf, signers=(node(8),))
        self.assertIsNone(self.run_(naming.resolve("blog")).key)

    def test_handed_on_under_another_key(self) -> None:
        self.certify(key(8), A, by=key(7))
        naming = self.naming_of(self.shelf, signers=(node(7), node(8)))
        self.assertIsNone(self.run_(naming.resolve("blog")).key)


class KeyTests(NamingCase):
    """What `Finding` asks."""

    def pin(self, owner: Any, name: str = "blog") -> None:
        book = self.shelf.book()
        book.pin(name, owner.node_id, NOW)
        self.shelf.save(book)

    def test_pins_and_petnames_ask_nobody(self) -> None:
        self.pin(A)
        self.shelf.add_petname("shop", B.node_id)
        self.assertEqual(self.run_(self.naming.key("www.blog.l8.alt")), A.node_id)
        self.assertEqual(self.run_(self.naming.key("shop.l8.alt")), B.node_id)
        self.assertEqual(self.items.asked, [])

    def test_claims(self) -> None:
        self.claim(A, 10, 11, 12)
        self.assertEqual(self.run_(self.naming.key("blog.l8.alt")), A.node_id)
        asked = len(self.items.asked)
        self.assertEqual(self.run_(self.naming.key("blog")), A.node_id)
        self.assertEqual(len(self.items.asked), asked)
        self.now += FRESH
        self.run_(self.naming.key("blog"))
        self.assertGreater(len(self.items.asked), asked)

    def test_why_not(self) -> None:
        self.assertEqual(self.fails(self.naming.key("blog.l8.alt"), NotFound).code, NO_DESCRIPTOR)
        self.naming.forget()
        self.claim(A, 10, 11)
        error = self.fails(self.naming.key("blog.l8.alt"), NotFound)
        self.assertEqual((error.code, "suffix" in str(error)), (BAD_ADDRESS, True))
        self.naming.forget()
        self.items.silent = True
        self.assertIn("blog", str(self.fails(self.naming.key("blog.l8.alt"), NotFound)))
        self.fails(self.naming.key("b.l8.alt"), WrongName)

    def test_a_pin_with_the_suffix_of_another(self) -> None:
        self.pin(A)
        self.fails(self.naming.key(f"blog~{address_text(B.node_id)[:5]}.l8.alt"), WrongKey)

    def test_a_pinned_name_is_answered_by_another_key(self) -> None:
        """Section 12: never opened, and a red flag is kept; the event is told once."""
        self.pin(A)
        self.claim(B, 10, 11, 12)
        for _ in range(2):
            answer = self.run_(self.naming.resolve("blog"))
            self.assertEqual((answer.key, answer.layer), (A.node_id, Layer.PIN))
            self.assertEqual(self.run_(self.naming.key("blog.l8.alt")), A.node_id)
        self.assertEqual([(flag.name, flag.key) for flag in self.flags], [("blog", B.node_id)])
        self.assertEqual(set(Shelf(self.folder).book().flags), {("blog", B.node_id)})

    def test_files_that_change_while_it_runs(self) -> None:
        self.pin(A)
        self.assertEqual(self.run_(self.naming.key("blog")), A.node_id)
        book = Shelf(self.folder).book()
        book.unpin("blog")
        book.pin("blog", B.node_id, NOW + 1000)
        book.pin("shop", B.node_id, NOW)
        Shelf(self.folder).save(book)
        self.assertEqual(self.run_(self.naming.key("blog")), B.node_id)

    def test_no_trace_of_what_was_looked_up(self) -> None:
        """A hundred names later there is nothing on disk, nothing put, and 64 names in memory until it stops."""
        for number in range(100):
            self.claim(key(100 + number), 10, 11, 12, name=f"name{number}")
        before = self.items.state()
        for number in range(100):
            self.run_(self.naming.key(f"name{number}.l8.alt"))
        self.assertEqual((self.files(), self.items.puts, self.items.state() == before), ({}, 0, True))
        self.assertEqual(len(self.naming._kept), NAMES_KEPT)
        self.naming.forget()
        self.assertEqual(len(self.naming._kept), 0)
