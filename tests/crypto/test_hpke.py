"""Sealed messages between nodes, and the library's HPKE against the numbers of RFC 9180 and RFC 9458."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.crypto.hpke import LEAST, WINDOW, Sealer, seal, unseal
from layer8.crypto.keys import NodeKey

# RFC 9180, A.1.1 (AES-128-GCM) and A.2.1 (ChaCha20-Poly1305), base setup
INFO = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
PRINTED: tuple[dict[str, Any], ...] = (
    {
        "aead": 1,
        "skRm": "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
        "enc": "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
        "key": "4531685d41d65f03dc48f6b8302c05b0",
        "nonce": "56d890e5accaaf011cff4b7d",
    },
    {
        "aead": 3,
        "skRm": "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
        "enc": "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
        "key": "ad2744de8e17f4ebba575b3f5f5a8fa1f69c2a07f6e7500bc60ca6e3e3ec1c91",
        "nonce": "5c4d98150661b848853b547f",
    },
)
# RFC 9458, appendix A: what is sealed there with no associated data, which the library's interface asks for
OBLIVIOUS = {
    "private": "3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a",
    "info": "6d6573736167652f626874747020726571756573740001002000010001",
    "text": "00034745540568747470730b6578616d706c652e636f6d012f",
    "request": "010020000100014b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b4726374e469135906992e1268"
    "c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525",
}


def extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.new(salt, b"HPKE-v1" + suite + label + ikm, hashlib.sha256).digest()


def expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hmac.new(
        prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info + b"\1", hashlib.sha256
    ).digest()[:length]


def schedule(aead: int, private: X25519PrivateKey, enc: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce as RFC 9180 says, written from its sections 4.1 and 5.1 and not from the library."""
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01" + aead.to_bytes(2, "big")
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    shared = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", enc + public, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", b"")
    size = 16 if aead == 1 else 32
    return expand(suite, secret, b"key", context, size), expand(suite, secret, b"base_nonce", context, 12)


class LibraryTests(SynchronousTestCase):
    """What cryptography calls HPKE is RFC 9180."""

    def test_the_schedule_is_the_printed_one(self) -> None:
        for row in PRINTED:
            private = X25519PrivateKey.from_private_bytes(bytes.fromhex(row["skRm"]))
            key, nonce = schedule(row["aead"], private, bytes.fromhex(row["enc"]), INFO)
            self.assertEqual((key.hex(), nonce.hex()), (row["key"], row["nonce"]))

    def test_the_library_goes_by_that_schedule(self) -> None:
        private = X25519PrivateKey.generate()
        sealed = seal(b"text", private.public_key(), INFO)
        key, nonce = schedule(3, private, sealed[:32], INFO)
        self.assertEqual(ChaCha20Poly1305(key).decrypt(nonce, sealed[32:], b""), b"text")
        aes = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
        sealed = aes.encrypt(b"text", private.public_key(), INFO)
        key, nonce = schedule(1, private, sealed[:32], INFO)
        self.assertEqual(AESGCM(key).decrypt(nonce, sealed[32:], b""), b"text")

    def test_the_request_printed_in_rfc_9458(self) -> None:
        aes = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(OBLIVIOUS["private"]))
        sealed, info = bytes.fromhex(OBLIVIOUS["request"])[7:], bytes.fromhex(OBLIVIOUS["info"])
        self.assertEqual(aes.decrypt(sealed, private, info).hex(), OBLIVIOUS["text"])
        self.assertRaises(InvalidTag, aes.decrypt, sealed, private, b"")


def pair() -> tuple[Sealer, Sealer]:
    one, other = Sealer(NodeKey.make()), Sealer(NodeKey.make())
    one.know(other.node, other.announcement)
    other.know(one.node, one.announcement)
    return one, other


class SealerTests(SynchronousTestCase):
    """Who can read, who can write, and how often."""

    def setUp(self) -> None:
        self.one, self.other = pair()

    def refused(self, sealed: bytes, by: Sealer | None = None) -> None:
        self.assertRaises(RemoteProtocolError, (by or self.other).open, sealed)

    @given(st.binary(max_size=2000))
    def test_round_trip(self, message: bytes) -> None:
        one, other = pair()
        self.assertEqual(other.open(one.seal(other.node, message)), (one.node, message))

    def test_nothing_of_it_shows(self) -> None:
        sealed = self.one.seal(self.other.node, b"app.example.com" * 3)
        self.assertNotIn(b"example", sealed)
        self.assertNotEqual(sealed, self.one.seal(self.other.node, b"app.example.com" * 3))

    def test_every_flipped_bit(self) -> None:
        sealed = self.one.seal(self.other.node, b"message")
        for place in range(len(sealed)):
            self.refused(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
        for length in range(len(sealed)):
            self.refused(sealed[:length])
        self.assertEqual(self.other.open(sealed)[1], b"message")

    @given(st.binary(max_size=LEAST + 64))
    def test_any_noise(self, noise: bytes) -> None:
        _, other = pair()
        self.assertRaises(RemoteProtocolError, other.open, noise)

    def test_a_third_node(self) -> None:
        third = Sealer(NodeKey.make())
        sealed = self.one.seal(self.other.node, b"message")
        third.know(self.one.node, self.one.announcement)
        self.refused(sealed, third)
        third.know(self.other.node, self.other.announcement)
        self.refused(third.seal(self.other.node, b"a stranger"))
        self.refused(self.one.node + third.seal(self.other.node, b"in another's name")[32:])

    def test_an_impostor_with_the_receivers_key_alone(self) -> None:
        """Base mode lets anybody seal; without the sender's signature it is worth nothing."""
        from layer8.crypto.hpke import LABEL

        key = X25519PublicKey.from_public_bytes(self.other.announcement[:32])
        ends = LABEL + self.one.node + self.other.node + self.one.announcement[:32]
        forged = seal(NodeKey.make().sign(ends + bytes(8) + b"forged") + bytes(8) + b"forged", key, ends)
        self.refused(self.one.node + forged)

    def test_a_message_counts_once(self) -> None:
        first, second = (self.one.seal(self.other.node, text) for text in (b"first", b"second"))
        self.assertEqual(self.other.open(second)[1], b"second")
        self.assertEqual(self.other.open(first)[1], b"first")
        self.refused(first)
        self.refused(second)

    def test_very_late_is_too_late(self) -> None:
        sealed = [self.one.seal(self.other.node, b"%d" % number) for number in range(WINDOW + 1)]
        self.other.open(sealed[-1])
        self.refused(sealed[0])
        self.other.open(sealed[1])

    def test_a_restart_makes_the_past_old(self) -> None:
        recorded = [self.one.seal(self.other.node, b"before") for _ in range(3)]
        self.other.open(recorded[0])
        again = Sealer(self.one.key)
        again.know(self.other.node, self.other.announcement)
        self.other.know(again.node, again.announcement)
        self.assertEqual(self.other.open(again.seal(self.other.node, b"after")), (self.one.node, b"after"))
        for sealed in recorded:
            self.refused(sealed)

    def test_announcements(self) -> None:
        wrong = bytearray(self.one.announcement)
        wrong[0] ^= 1
        for said in (bytes(wrong), b"", self.one.announcement[:-1], Sealer(NodeKey.make()).announcement):
            self.assertRaises(RemoteProtocolError, self.other.know, self.one.node, said)
        self.other.forget(self.one.node)
        self.assertRaises(Unavailable, self.other.seal, self.one.node, b"")
        self.refused(self.one.seal(self.other.node, b""))

    def test_a_key_for_another_purpose(self) -> None:
        private = X25519PrivateKey.generate()
        self.assertRaises(RemoteProtocolError, unseal, seal(b"", private.public_key(), b"one"), private, b"other")

    def test_repr_shows_no_key(self) -> None:
        self.assertNotIn("X25519", repr(self.one))
