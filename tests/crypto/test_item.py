"""Items of the DHT: BEP 44's own vectors, and what is no item."""

from __future__ import annotations

import hashlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.item import SALT_MAX, SEQ_MOST, V_MAX, Item, item_target, signed_text
from layer8.crypto.keys import NodeKey

KEY = NodeKey.from_seed(bytes(range(32)))
BEP_KEY = bytes.fromhex("77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548")
BEP = (  # salt, signature, target; the value is "Hello World!" and seq 1 (bep_0044.rst, "test vectors")
    (
        b"",
        "305ac8aeb6c9c151fa120f120ea2cfb923564e11552d06a5d856091e5e853cff"
        "1260d3f39e4999684aa92eb73ffd136e6f4f3ecbfda0ce53a1608ecd7ae21f01",
        "4a533d47ec9c7d95b1ad75f576cffc641853b750",
    ),
    (
        b"foobar",
        "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17d"
        "df9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08",
        "411eba73b6f087ca51a3795d9c8c938d365e32c1",
    ),
)


def made(salt: Any = b"d", seq: Any = 1, value: Any = b"v") -> Item:
    return Item.make(KEY.node_id, KEY.sign, salt, seq, value)


class PublishedTests(SynchronousTestCase):
    def test_mutable_items(self) -> None:
        for salt, signature, target in BEP:
            item = Item(BEP_KEY, salt, 1, b"Hello World!", bytes.fromhex(signature))
            self.assertEqual(item.target.hex(), target)
            item.check(bytes.fromhex(target))

    def test_signed_text(self) -> None:
        self.assertEqual(signed_text(b"", 1, b"Hello World!"), b"3:seqi1e1:v12:Hello World!")
        self.assertEqual(signed_text(b"foobar", 1, b"Hello World!"), b"4:salt6:foobar3:seqi1e1:v12:Hello World!")

    def test_without_salt_it_is_the_hash_of_the_key(self) -> None:
        self.assertEqual(item_target(KEY.node_id), hashlib.sha1(KEY.node_id).digest())


class ItemTests(SynchronousTestCase):
    def test_every_part_is_signed_and_in_its_place(self) -> None:
        one = made()
        one.check(item_target(KEY.node_id, b"d"))
        for other in (
            Item(one.key, b"e", 1, b"v", one.signature),
            Item(one.key, b"d", 2, b"v", one.signature),
            Item(one.key, b"d", 1, b"w", one.signature),
            Item(BEP_KEY, b"d", 1, b"v", one.signature),
            Item(one.key, b"d", 1, b"v", bytes(64)),
            Item(one.key, b"d", 1, b"v", b""),
        ):
            with self.assertRaises(RemoteProtocolError):
                other.check(other.target)
        with self.assertRaises(RemoteProtocolError):
            one.check(item_target(KEY.node_id, b"e"))

    def test_values_of_every_kind(self) -> None:
        one = made(value={b"i": b"x", b"t": [1, 2]})
        one.check(one.target)
        self.assertEqual(signed_text(b"", 1, {b"i": 2}), b"3:seqi1e1:vd1:ii2ee")
        with self.assertRaises(RemoteProtocolError):
            one.text  # noqa: B018
        self.assertEqual(made().text, b"v")

    def test_limits(self) -> None:
        made(salt=b"s" * SALT_MAX, seq=SEQ_MOST, value=b"v" * (V_MAX - 4))
        for wrong in (
            {"salt": b"s" * (SALT_MAX + 1)},
            {"value": b"v" * (V_MAX - 3)},
            {"seq": -1},
            {"seq": SEQ_MOST + 1},
        ):
            with self.assertRaises(LocalProtocolError):
                made(**wrong)
        large = signed_text(b"d", 1, b"v" * V_MAX)
        with self.assertRaises(RemoteProtocolError):
            Item(KEY.node_id, b"d", 1, b"v" * V_MAX, KEY.sign(large)).check(item_target(KEY.node_id, b"d"))

    @given(
        st.binary(max_size=40), st.binary(max_size=70), st.integers(), st.binary(max_size=1100), st.binary(max_size=70)
    )
    def test_any_noise(self, key: bytes, salt: bytes, seq: int, value: bytes, signature: bytes) -> None:
        item = Item(key, salt, seq, value, signature)
        with self.assertRaises(RemoteProtocolError):
            item.check(item.target)
