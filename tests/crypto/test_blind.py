"""Blinded keys: Tor's published table, our own frozen ones, and what no signature or key may get past."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.crypto import blind
from layer8.crypto.blind import BlindKey, blinded, clamped, factor, multiplied, signed, valid
from layer8.crypto.keys import SMALL_ORDER, NodeKey, verify

PUBLISHED = json.loads((Path(__file__).parent.parent / "vectors" / "blind-tor.json").read_text())["cases"]
KEY = NodeKey.from_seed(bytes(range(32)))
FROZEN = (
    "ef5a6ec7f8c716f1875bd5a996c1219c13483199a161f0ad0babfb539d4272fa",
    "311e2e2435987a8d8c2fda7790ec317ed2262aacb7ac01763bfb7caec0692899",
    "063bc06c3ddd549cdae8b769cd1e8f0f8d097b211e33a43d3d43ab834ccae796"
    "f0fd78223610472d63128e884e8d487a0364e47183a3e32d5d6457350fe32c0b",
)
ORDER = 2**252 + 27742317777372353535851937790883648493


def tweak(case: dict[str, str]) -> bytes:
    """Give what Tor clamps: its table's parameters stand before this hash (src/ext/ed25519/ref10/blinding.c)."""
    return hashlib.sha512(b"Derive temporary signing key" + bytes.fromhex(case["parameter"])).digest()[:32]


class PublishedTests(SynchronousTestCase):
    """`seed` is Tor's secret key before SHA-512."""

    def test_public_keys(self) -> None:
        self.assertEqual(len(PUBLISHED), 8)
        for case in PUBLISHED:
            made = multiplied(bytes.fromhex(case["public"]), tweak(case))
            self.assertEqual(made.hex(), case["blinded"])

    def test_secret_scalars(self) -> None:
        for case in PUBLISHED:
            key = NodeKey.from_seed(bytes.fromhex(case["seed"]))
            self.assertEqual(key.node_id.hex(), case["public"])
            self.patch(blind, "factor", lambda public, period, case=case: tweak(case))
            made = BlindKey.of(key, 0)
            self.assertEqual((made.public.hex(), made._scalar.hex()), (case["blinded"], case["scalar"]))
            self.assertTrue(verify(made.public, made.sign(b"text"), b"text"))


class OwnTests(SynchronousTestCase):
    def test_frozen(self) -> None:
        """What others have to make of the same key and day; the page holds the same."""
        made = BlindKey.of(KEY, 20_000)
        self.assertEqual(factor(KEY.node_id, 20_000).hex(), FROZEN[0])
        self.assertEqual(made.public.hex(), FROZEN[1])
        self.assertEqual(made.sign(b"layer8").hex(), FROZEN[2])

    def test_factor_by_hand(self) -> None:
        text = b"layer8/1 blind\0" + KEY.node_id + bytes(6) + b"\x4e\x20"
        h = bytearray(hashlib.sha512(text).digest()[:32])
        self.assertEqual(factor(KEY.node_id, 20_000), bytes(h))
        h[0] &= 0xF8
        h[31] = (h[31] & 0x7F) | 0x40
        self.assertEqual(clamped(factor(KEY.node_id, 20_000)), bytes(h))

    def test_scalar_by_plain_arithmetic(self) -> None:
        made = BlindKey.of(KEY, 7)
        h = int.from_bytes(clamped(factor(KEY.node_id, 7)), "little")
        a = int.from_bytes(KEY.expanded()[0], "little")
        self.assertEqual(int.from_bytes(made._scalar, "little"), h * a % ORDER)
        self.assertEqual(bindings.crypto_scalarmult_ed25519_base_noclamp(made._scalar), blinded(KEY.node_id, 7))

    def test_each_period_has_its_own_key_and_nonces(self) -> None:
        made = [BlindKey.of(KEY, period) for period in range(8)]
        self.assertEqual(len({one.public for one in made} | {KEY.node_id}), 9)
        self.assertEqual(len({one.sign(b"same")[:32] for one in made}), 8)
        self.assertEqual(made[0].sign(b"same"), BlindKey.of(KEY, 0).sign(b"same"))
        self.assertNotEqual(made[0].sign(b"one")[:32], made[0].sign(b"two")[:32])

    def test_nothing_secret_is_shown(self) -> None:
        made = BlindKey.of(KEY, 0)
        for secret in (made._scalar, made._prefix):
            self.assertNotIn(repr(secret)[2:20], repr(made))

    @given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1), st.binary(max_size=200))
    def test_every_signature_is_good_for_its_period_only(self, seed: bytes, period: int, text: bytes) -> None:
        key = NodeKey.from_seed(seed)
        made = BlindKey.of(key, period)
        signature = made.sign(text)
        self.assertEqual(made.public, blinded(key.node_id, period))
        self.assertTrue(signed(key.node_id, period, signature, text))
        self.assertLess(int.from_bytes(signature[32:], "little"), ORDER)
        self.assertFalse(signed(key.node_id, period ^ 1, signature, text))
        self.assertFalse(signed(key.node_id, period, signature, text + b"."))
        self.assertFalse(verify(key.node_id, signature, text))


class BadKeyTests(SynchronousTestCase):
    def test_points_of_small_order(self) -> None:
        for point in SMALL_ORDER:
            self.refused(point)
            self.refused(point[:31] + bytes((point[31] | 0x80,)))

    def test_points_that_are_mixed_with_small_order(self) -> None:
        """A + T of order 8 has the same multiples by 8 h as A: it would be a second address of one service."""
        torsion = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
        mixed = bindings.crypto_core_ed25519_add(KEY.node_id, torsion)
        self.assertTrue(valid(KEY.node_id))
        self.refused(mixed)

    def test_no_points_and_other_forms(self) -> None:
        for point in (
            b"",
            bytes(31),
            bytes(33),
            b"\xff" * 32,
            b"\x02" + bytes(31),
            (2**255 - 18).to_bytes(32, "little"),
        ):
            self.refused(point)

    def test_periods(self) -> None:
        for period in (-1, 2**64):
            with self.assertRaises(ValueError):
                blinded(KEY.node_id, period)

    @given(st.binary(max_size=40))
    def test_any_noise(self, data: bytes) -> None:
        if not valid(data):
            self.refused(data)

    def refused(self, point: bytes) -> None:
        self.assertFalse(valid(point))
        with self.assertRaises(RemoteProtocolError):
            blinded(point, 1)
        self.assertFalse(signed(point, 1, bytes(64), b""))
