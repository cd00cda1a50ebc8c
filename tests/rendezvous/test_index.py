"""Index pages and ratings: round trips, sums, and everything that is refused."""

from __future__ import annotations

import contextlib
from hashlib import sha256
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.errors import ConfigError, LimitExceeded, RemoteProtocolError
from layer8.rendezvous import index
from layer8.rendezvous.address import WrongName
from layer8.rendezvous.files import ServiceFile
from layer8.rendezvous.index import BEST, INDEX_MAX, RATING_MAX, Entry, Index, Rating, is_index, tally
from tests.descriptors import NOW, key, node

AUTHOR = key(9)


def entry(number: int, name: str = "blog", expires: int = int(NOW) + 60, **changed: Any) -> Entry:
    return Entry(ServiceFile.make(key(number), name, 1, expires), **changed)


GOOD = (entry(1, "blog", title="A blog \u00fc", tags=("news", "tech"), sum=9, count=2), entry(2, "shop"))


def page(*entries: Entry) -> bytes:
    return Index.make(AUTHOR, 3, int(NOW), "All of it", entries or GOOD)


def signed(raw: bytes, **changed: Any) -> bytes:
    """Sign whatever: a page or rating with some parts changed, or left out where None is given."""
    told: dict[bytes, Any] = dict(bencode.decode(raw[64:]))  # type: ignore[arg-type]
    told.update((name.encode(), value) for name, value in changed.items())
    body = bencode.encode({name: value for name, value in told.items() if value is not None})
    return AUTHOR.sign(b"layer8/1 pack\0" + sha256(body).digest()) + body


def rating(author: int, service: int, value: int, time: int = 1) -> Rating:
    return Rating.read(Rating.make(key(author), node(service), value, time))


class IndexTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        found = Index.read(page())
        self.assertEqual((found.author, found.serial, found.title), (AUTHOR.node_id, 3, "All of it"))
        self.assertEqual(found.entries, GOOD)
        self.assertEqual(Index.read(signed(page(), later=1)), found)

    def test_signature_is_that_of_a_pack(self) -> None:
        self.assertEqual(signed(page()), page())

    def test_every_byte_counts(self) -> None:
        raw = page()
        for at in range(0, len(raw), 5):
            wrong = bytearray(raw)
            wrong[at] ^= 1
            with self.assertRaises(RemoteProtocolError, msg=str(at)):
                Index.read(bytes(wrong))

    def test_a_wrong_file_inside_is_noticed(self) -> None:
        raw = bytearray(GOOD[0].file.raw)
        raw[70] ^= 1
        with self.assertRaises(RemoteProtocolError):
            Index.read(signed(page(), entries=[{b"c": 0, b"f": bytes(raw), b"g": [], b"s": 0, b"t": b""}]))

    def test_what_is_refused(self) -> None:
        changed: dict[str, Any]
        one: dict[bytes, Any] = {b"c": 1, b"f": GOOD[0].file.raw, b"g": [], b"s": 3, b"t": b""}
        Index.read(signed(page(), entries=[one]))
        for changed in (
            {"kind": b"post"}, {"v": 2}, {"author": b"x"}, {"author": node(8)}, {"entries": None}, {"entries": [1]},
            {"entries": [one, one]}, {"serial": None}, {"serial": -1}, {"time": b""}, {"title": b"t" * 257},
            {"title": 1},
            {"title": b"\xff"}, {str(number): 1 for number in range(40)},
        ):  # fmt: skip
            with self.assertRaises(RemoteProtocolError, msg=str(changed)):
                Index.read(signed(page(), **changed))
        for wrong in (
            {b"c": None}, {b"c": 4}, {b"c": 0}, {b"s": BEST + 1}, {b"s": -1}, {b"f": b""}, {b"f": 1}, {b"g": 1},
            {b"g": [1]},
            {b"g": [b"X"]}, {b"g": [b"\xff\xff"]}, {b"g": [b"ab"] * 17}, {b"t": 1},
        ):  # fmt: skip
            changed_one = {word: value for word, value in {**one, **wrong}.items() if value is not None}
            with self.assertRaises(RemoteProtocolError, msg=str(wrong)):
                Index.read(signed(page(), entries=[changed_one]))

    def test_limits(self) -> None:
        error = self.assertRaises(LimitExceeded, Index.read, page() + bytes(INDEX_MAX))
        self.assertEqual(error.limit, "INDEX_MAX")
        self.patch(index, "ENTRIES", 1)
        self.assertRaises(ConfigError, page)

    def test_find(self) -> None:
        found = Index.read(page(entry(1), entry(2, "shop"), entry(3, "shop"), entry(4, "old", expires=int(NOW))))
        self.assertEqual(found.find("blog", NOW).file.key, node(1))
        for name, word in (("shop", "2 of"), ("old", "none of"), ("more", "none of")):
            self.assertIn(word, str(self.assertRaises(WrongName, found.find, name, NOW)))

    def test_which_it_is(self) -> None:
        self.assertEqual(
            [is_index(raw) for raw in (page(), GOOD[0].file.raw, b"", bytes(99))], [True, False, False, False]
        )

    @given(st.binary(max_size=200) | st.dictionaries(
        st.sampled_from(("entries", "serial", "time", "title", "x")),
        st.integers(-9, 2**62) | st.binary() | st.lists(st.dictionaries(st.sampled_from((b"c", b"f")), st.binary())),
    ).map(lambda changed: signed(page(), **changed)))  # fmt: skip
    def test_any_noise(self, data: bytes) -> None:
        for reader in (Index.read, Rating.read, is_index):
            with contextlib.suppress(RemoteProtocolError):
                reader(data)


class RatingTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        self.assertEqual(rating(9, 1, 4, 7), Rating(node(9), node(1), 4, 7))

    def test_what_is_refused(self) -> None:
        changed: dict[str, Any]
        raw = Rating.make(AUTHOR, node(1), 4, 7)
        for changed in (
            {"value": 0}, {"value": BEST + 1}, {"value": None}, {"key": b"x"}, {"time": -1}, {"kind": b"index"},
            {"v": None},
            {"author": node(8)}, {"x": b"x" * RATING_MAX},
        ):  # fmt: skip
            with self.assertRaises(RemoteProtocolError, msg=str(changed)):
                Rating.read(signed(raw, **changed))
        self.assertRaises(ConfigError, Rating.make, AUTHOR, node(1), 6, 7)

    def test_sums(self) -> None:
        """One vote for each key, the last one; nobody's own."""
        votes = [rating(20, 1, 5), rating(21, 1, 1, 1), rating(21, 1, 4, 2), rating(1, 1, 5), rating(20, 2, 2)]
        self.assertEqual(tally(votes), {node(1): (9, 2), node(2): (2, 1)})
        self.assertEqual(tally(votes[::-1]), tally(votes))

    def test_a_page_that_makes_its_sums_up(self) -> None:
        votes = [rating(20, 1, 5), rating(21, 1, 4)]
        self.assertEqual(Index.read(page()).unproven(votes), ())
        better = Index.read(page(evolve(GOOD[0], sum=10), evolve(GOOD[1], sum=5, count=1)))
        self.assertEqual([one.file.name for one in better.unproven(votes)], ["blog", "shop"])
