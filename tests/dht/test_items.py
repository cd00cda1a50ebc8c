"""Items and records: BEP 44's published vectors, RFC 8032, and what is refused."""

from __future__ import annotations

import contextlib
import struct
from hashlib import sha1

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.crypto.items import (
    RECORD_EFFORT,
    RECORD_LIFE,
    RECORD_MAX,
    VALUE_MAX,
    Draft,
    Immutable,
    Kind,
    Mutable,
    Record,
    part_count,
    parts,
    signed_text,
    whole,
)
from layer8.crypto.keys import NodeKey, verify
from layer8.dht.store import read_item, write_item
from tests.dht.nets import key

KEY = bytes.fromhex("77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548")
HELLO = b"12:Hello World!"
PLAIN = (
    "305ac8aeb6c9c151fa120f120ea2cfb923564e11552d06a5d856091e5e853cff"
    "1260d3f39e4999684aa92eb73ffd136e6f4f3ecbfda0ce53a1608ecd7ae21f01"
)
SALTED = (
    "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17d"
    "df9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08"
)
NOW = 1_800_000_000.0


def paid(draft: Draft) -> Record:
    """Do the work of a record."""
    nonce, start = None, bytes(16)
    while nonce is None:
        nonce, start = draft.search(start, 64)
    return draft.record(nonce)


class VectorTests(SynchronousTestCase):
    """BEP 44: its private key is an expanded one, so these are read and not made."""

    def test_mutable(self) -> None:
        item = Mutable(KEY, 1, bytes.fromhex(PLAIN), HELLO)
        self.assertEqual(signed_text(b"", 1, HELLO), b"3:seqi1e1:v12:Hello World!")
        self.assertEqual(item.target.hex(), "4a533d47ec9c7d95b1ad75f576cffc641853b750")
        self.assertTrue(item.good())

    def test_mutable_with_a_salt(self) -> None:
        item = Mutable(KEY, 1, bytes.fromhex(SALTED), HELLO, b"foobar")
        self.assertEqual(signed_text(b"foobar", 1, HELLO), b"4:salt6:foobar3:seqi1e1:v12:Hello World!")
        self.assertEqual(item.target.hex(), "411eba73b6f087ca51a3795d9c8c938d365e32c1")
        self.assertTrue(item.good())
        self.assertFalse(Mutable(KEY, 1, bytes.fromhex(SALTED), HELLO).good())

    def test_immutable(self) -> None:
        item = Immutable.of(b"Hello World!")
        self.assertEqual(item.value, HELLO)
        self.assertEqual(item.target.hex(), "e5f96f6f38320f0f33959cb4d3d656452117aadb")

    def test_rfc_8032(self) -> None:
        """Section 7.1, tests 1 and 2."""
        for seed, public, message, signature in (
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
                "d25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
                "387b2eaeb4302aeeb00d291612bb0c00",
            ),
        ):
            made = NodeKey.from_seed(bytes.fromhex(seed))
            self.assertEqual(made.node_id.hex(), public)
            self.assertEqual(made.sign(bytes.fromhex(message)).hex(), signature)
            self.assertTrue(verify(made.node_id, bytes.fromhex(signature), bytes.fromhex(message)))


class ItemTests(SynchronousTestCase):
    def test_what_is_not_good(self) -> None:
        good = Mutable.make(key(1).node_id, key(1).sign, 7, b"word", b"salt")
        self.assertTrue(good.good())
        self.assertEqual(good.data, b"word")
        for bad in (
            Mutable(good.key, 8, good.signature, good.value, good.salt),
            Mutable(good.key, 7, good.signature, b"4:worm", good.salt),
            Mutable(good.key, 7, good.signature, good.value, b"tlas"),
            Mutable(key(2).node_id, 7, good.signature, good.value, good.salt),
            Mutable(good.key, 7, good.signature, b"no bencode", good.salt),
            Immutable(b"3:too much"),
            Immutable(b"1001:" + bytes(1001)),
        ):
            self.assertFalse(bad.good(), bad)

    def test_limits(self) -> None:
        for seq, data, salt in ((1, bytes(1000), b""), (1, b"", bytes(65)), (-1, b"", b""), (2**63, b"", b"")):
            self.assertRaises(ValueError, Mutable.make, key(1).node_id, key(1).sign, seq, data, salt)
        Mutable.make(key(1).node_id, key(1).sign, 2**63 - 1, bytes(996), bytes(64))

    def test_check(self) -> None:
        """Whoever got an item from somebody sees that it is good, and that it is what was asked for."""
        one = Mutable.make(key(1).node_id, key(1).sign, 7, b"word", b"d")
        one.check(sha1(key(1).node_id + b"d").digest())
        with self.assertRaises(RemoteProtocolError):
            one.check(sha1(key(1).node_id).digest())
        large = b"1000:" + bytes(1000)
        for other in (
            Mutable(one.key, 7, one.signature, one.value, b"e"),
            Mutable(one.key, 8, one.signature, one.value, b"d"),
            Mutable(one.key, 7, one.signature, b"4:worm", b"d"),
            Mutable(KEY, 7, one.signature, one.value, b"d"),
            Mutable(one.key, 7, b"", one.value, b"d"),
            Mutable(one.key, 7, key(1).sign(signed_text(b"d", 7, large)), large, b"d"),
        ):
            with self.assertRaises(RemoteProtocolError):
                other.check(other.target)

    def test_values_of_every_kind(self) -> None:
        one = Mutable.make(key(1).node_id, key(1).sign, 1, {b"i": [1, 2]})
        one.check(sha1(key(1).node_id).digest())
        self.assertEqual(signed_text(b"", 1, one.value), b"3:seqi1e1:vd1:ili1ei2eee")
        with self.assertRaises(RemoteProtocolError):
            one.data  # noqa: B018

    @given(
        st.binary(max_size=40), st.integers(), st.binary(max_size=70), st.binary(max_size=1100), st.binary(max_size=70)
    )
    def test_any_noise(self, public: bytes, seq: int, signature: bytes, value: bytes, salt: bytes) -> None:
        noise = Mutable(public, seq, signature, value, salt)
        with self.assertRaises(RemoteProtocolError):
            noise.check(noise.target)

    def test_a_value_in_parts(self) -> None:
        """G33."""
        for size in (0, 1, 990, 991, VALUE_MAX):
            data = bytes(range(256)) * 16
            cut = parts(key(1).node_id, key(1).sign, b"name", 3, data[:size])
            self.assertTrue(all(one.good() for one in cut))
            self.assertEqual(part_count(cut[0]), len(cut))
            self.assertEqual([one.salt for one in cut], [b"name/%d" % number for number in range(len(cut))])
            self.assertEqual(whole(cut), data[:size])
        self.assertEqual(len(cut), 5)
        self.assertRaises(ValueError, parts, key(1).node_id, key(1).sign, b"name", 3, bytes(VALUE_MAX + 1))
        later = parts(key(1).node_id, key(1).sign, b"name", 4, data)
        self.assertRaises(RemoteProtocolError, whole, [later[0], *cut[1:]])
        self.assertRaises(RemoteProtocolError, whole, cut[:2])
        self.assertRaises(RemoteProtocolError, whole, [])

    @given(st.integers(1, 3), st.binary(max_size=400))
    def test_any_item_by_a_circuit(self, kind: int, text: bytes) -> None:
        try:
            item = read_item(kind, text)
        except RemoteProtocolError:
            return
        self.assertEqual(write_item(item), (kind, text))


class RecordTests(SynchronousTestCase):
    target = sha1(b"target").digest()

    def draft(self, data: bytes = b"word", expires: int = int(NOW) + 1000, effort: int = 64) -> Draft:
        return Draft.make(key(1), self.target, Kind.TAG, data, expires, effort)

    def test_round_trip(self) -> None:
        record = paid(self.draft())
        self.assertEqual(Record.parse(self.target, record.raw), record)
        self.assertEqual((record.kind, record.data, record.key), (Kind.TAG, b"word", key(1).node_id))
        self.assertTrue(record.good(NOW, least=64))

    def test_work(self) -> None:
        record = paid(self.draft())
        self.assertFalse(record.good(NOW, least=65))
        self.assertFalse(record.good(NOW))
        lazy = self.draft(effort=RECORD_EFFORT).record(bytes(16))
        self.assertFalse(lazy.good(NOW))
        self.assertTrue(lazy.good(NOW, least=0))

    def test_time(self) -> None:
        for expires in (NOW, NOW - 1, NOW + RECORD_LIFE + 1):
            self.assertFalse(self.draft(expires=int(expires)).record().good(NOW, least=0))

    def test_it_belongs_to_its_target(self) -> None:
        record = paid(self.draft())
        moved = Record.parse(sha1(b"another").digest(), record.raw)
        self.assertFalse(moved.good(NOW, least=0))
        self.assertFalse(moved.good(NOW, least=64))

    def test_every_byte_counts(self) -> None:
        raw = paid(self.draft()).raw
        for at in range(len(raw)):
            changed = raw[:at] + bytes((raw[at] ^ 0x80,)) + raw[at + 1 :]
            least = 1 << 20 if at >= len(raw) - 20 else 64
            try:
                self.assertFalse(Record.parse(self.target, changed).good(NOW, least=least), at)
            except RemoteProtocolError:
                continue

    def test_layout(self) -> None:
        raw = paid(self.draft()).raw
        head = struct.pack("!IBH", int(NOW) + 1000, Kind.TAG, 4) + b"word" + key(1).node_id
        self.assertEqual(raw[: len(head)], head)
        self.assertEqual(raw[len(head) : len(head) + 64], key(1).sign(b"layer8/1 record\0" + self.target + head))
        self.assertEqual((raw[-4:], len(raw)), (struct.pack("!I", 64), len(head) + 64 + 16 + 4))

    def test_work_is_of_this_record(self) -> None:
        good, other = paid(self.draft(b"one", effort=4096)), self.draft(b"two", effort=4096)
        self.assertTrue(good.good(NOW, least=4096))
        self.assertFalse(other.record(good.nonce).good(NOW, least=4096))

    def test_lengths(self) -> None:
        raw = self.draft().record().raw
        for wrong in (b"", raw[:-1], raw[1:], raw + b".", raw[:5] + b"\0\5" + raw[7:]):
            self.assertRaises(RemoteProtocolError, Record.parse, self.target, wrong)

    def test_sizes(self) -> None:
        self.assertEqual(len(self.draft(bytes(197)).record().raw), RECORD_MAX)
        self.assertRaises(ValueError, self.draft, bytes(198))
        self.assertRaises(LimitExceeded, Record.parse, self.target, bytes(RECORD_MAX + 1))

    @given(st.binary(max_size=RECORD_MAX + 1))
    def test_any_noise(self, raw: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            self.assertEqual(Record.parse(self.target, raw).raw, raw)
