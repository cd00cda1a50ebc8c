"""Proofs against RFC 4231 and against an independent writing of the formula."""

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.crypto.proof import same, secret_key, subscribe_proof

KEY = hashlib.sha256(b"secret").digest()
NONCE = bytes(range(32))
NODE = bytes(range(32, 64))


class Vectors(SynchronousTestCase):
    def test_rfc_4231(self) -> None:
        """The HMAC underneath is the one of RFC 4231 (cases 1 and 2), which the proof's own lengths never reach."""
        for key, data, wanted in (
            (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
        ):
            self.assertEqual(hmac.new(key, data, hashlib.sha256).hexdigest(), wanted)
            self.assertEqual(_hmac_by_hand(key, data), wanted)

    def test_formula(self) -> None:
        wanted = _hmac_by_hand(secret_key(b"secret"), NONCE + NODE + b"app.example")
        self.assertEqual(subscribe_proof(KEY, NONCE, NODE, "app.example"), wanted)

    def test_frozen(self) -> None:
        """The value that `openssl dgst -mac HMAC` gives: an agent of another version computes the same."""
        self.assertEqual(
            subscribe_proof(KEY, NONCE, NODE, "app.example"),
            "01e7d34f343297cd2f5e405cf6dbedbf1e6606507e0807e787ed9ca659c146e8",
        )


class Proofs(SynchronousTestCase):
    def test_every_part_counts(self) -> None:
        base = subscribe_proof(KEY, NONCE, NODE, "app.example")
        others = {
            subscribe_proof(bytes(32), NONCE, NODE, "app.example"),
            subscribe_proof(KEY, NODE, NODE, "app.example"),
            subscribe_proof(KEY, NONCE, NONCE, "app.example"),
            subscribe_proof(KEY, NONCE, NODE, "app.exampl"),
            subscribe_proof(KEY, NONCE, NODE, "*.app.example"),
        }
        self.assertEqual(len(others), 5)
        self.assertNotIn(base, others)

    def test_wrong_lengths(self) -> None:
        for arguments in (
            (b"secret", NONCE, NODE, "a.example"),
            (KEY, NONCE[:-1], NODE, "a.example"),
            (KEY, NONCE, NODE + b"a", "a.example"),
            (KEY, NONCE, NODE, ""),
            (KEY, NONCE, NODE, "b\u00fccher.example"),
        ):
            with self.assertRaises(LocalProtocolError):
                subscribe_proof(*arguments)

    @given(st.text(), st.text())
    def test_same(self, one: str, other: str) -> None:
        self.assertTrue(same(one, one))
        self.assertEqual(same(one, other), one == other)
        self.assertTrue(same(one.encode("utf-8", "surrogatepass"), one))


def _hmac_by_hand(key: bytes, data: bytes) -> str:
    """RFC 2104 with SHA-256, for keys of at most 64 bytes."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + data).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()
