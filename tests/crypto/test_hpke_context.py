"""HPKE with a context: every number of RFC 9180's base-mode appendices, and what must not open."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto import hpke_context as hpke
from layer8.crypto.hpke import unseal
from layer8.crypto.hpke_context import Aead, Private, Sequence, receiver, sender

SHARED = Path(__file__).parents[3] / "shared" / "vectors"
FOLDER = Path(os.environ.get("LAYER8_VECTORS", SHARED))
# RFC 5869, appendices A.1 and A.2
HKDF = (
    (
        bytes([11]) * 22,
        bytes(range(13)),
        bytes(range(0xF0, 0xFA)),
        42,
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        82,
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
)
LOW_ORDER = (
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
)


def unhex(row: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(row[name]) for name in names]


class PublishedTests(SynchronousTestCase):
    skip = None if FOLDER.is_dir() else "neither LAYER8_VECTORS nor ../shared/vectors is there"

    def setUp(self) -> None:
        self.rows = json.loads((FOLDER / "ohttp.json").read_text())["hpke_base"]
        self.assertEqual([row["aead_id"] for row in self.rows], list(Aead))

    def test_every_value(self) -> None:
        for row in self.rows:
            self.assertEqual((row["mode"], row["kem_id"], row["kdf_id"]), (0, hpke.KEM, hpke.KDF))
            aead, info = Aead(row["aead_id"]), bytes.fromhex(row["info"])
            for ikm, secret, public in (("ikmE", "skEm", "pkEm"), ("ikmR", "skRm", "pkRm")):
                pair = Private.derive(bytes.fromhex(row[ikm]))
                self.assertEqual((pair.dump().hex(), pair.public.hex()), (row[secret], row[public]))
            ours, theirs = (Private.load(secret) for secret in unhex(row, "skEm", "skRm"))
            shared = hpke.encapsulate(theirs.public, ours)
            self.assertEqual(shared.hex(), row["shared_secret"])
            self.assertEqual(hpke.decapsulate(bytes.fromhex(row["enc"]), theirs), shared)
            made = hpke.schedule(aead, shared, info)
            self.assertEqual(
                [made.context, made.secret, made.key, made.base_nonce, made.exporter_secret],
                unhex(row, "key_schedule_context", "secret", "key", "base_nonce", "exporter_secret"),
            )
            one = sender(aead, theirs.public, info, ours)
            other = receiver(aead, one.enc, theirs, info)
            self.assertEqual(one.enc.hex(), row["enc"])
            for number, export in enumerate(row["exports"]):
                value = one.export(bytes.fromhex(export["exporter_context"]), export["L"])
                self.assertEqual(value.hex(), export["exported_value"], number)
                self.assertEqual(value, other.export(bytes.fromhex(export["exporter_context"]), export["L"]))
            wanted = {message["seq"]: unhex(message, "pt", "aad", "nonce", "ct") for message in row["encryptions"]}
            for number in range(257):
                text, associated, nonce, sealed = wanted.get(number, [b"", b"", one.messages.nonce, b""])
                self.assertEqual(one.messages.nonce, nonce)
                made_here = one.messages.seal(text, associated)
                if number in wanted:
                    self.assertEqual(made_here, sealed)
                self.assertEqual(other.messages.open(made_here, associated), text)


class HkdfTests(SynchronousTestCase):
    def test_the_printed_ones(self) -> None:
        for secret, salt, info, length, wanted in HKDF:
            self.assertEqual(hpke.expand(hpke.extract(salt, secret), info, length).hex(), wanted)

    def test_no_more_than_there_is(self) -> None:
        self.assertEqual(len(hpke.expand(bytes(32), b"", hpke.EXPANDED)), hpke.EXPANDED)
        self.assertRaises(LocalProtocolError, hpke.expand, bytes(32), b"", hpke.EXPANDED + 1)


class ContextTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.key = Private.make()
        self.one = sender(Aead.AES_128_GCM, self.key.public, b"info", Private.make())
        self.other = receiver(Aead.AES_128_GCM, self.one.enc, self.key, b"info")

    def test_the_library_opens_the_first_message(self) -> None:
        one = sender(Aead.CHACHA20_POLY1305, self.key.public, b"info", Private.make())
        self.assertEqual(unseal(one.enc + one.messages.seal(b"text"), self.key.key, b"info"), b"text")

    def test_order_counts(self) -> None:
        first, second = self.one.messages.seal(b"1"), self.one.messages.seal(b"2")
        self.assertRaises(RemoteProtocolError, self.other.messages.open, second)
        self.assertEqual(self.other.messages.open(first), b"1")
        self.assertRaises(RemoteProtocolError, self.other.messages.open, first)
        self.assertEqual(self.other.messages.open(second), b"2")

    def test_associated_data_info_and_key_count(self) -> None:
        sealed = self.one.messages.seal(b"text", b"final")
        self.assertRaises(RemoteProtocolError, self.other.messages.open, sealed)
        for key, info, aead in (
            (self.key, b"else", Aead.AES_128_GCM),
            (Private.make(), b"info", Aead.AES_128_GCM),
            (self.key, b"info", Aead.CHACHA20_POLY1305),
        ):
            other = receiver(aead, self.one.enc, key, info)
            self.assertRaises(RemoteProtocolError, other.messages.open, sealed, b"final")

    def test_keys_of_low_order(self) -> None:
        for public in (*LOW_ORDER, b"", bytes(31), bytes(33)):
            self.assertRaises(RemoteProtocolError, receiver, Aead.AES_128_GCM, public, self.key, b"")
            self.assertRaises(RemoteProtocolError, sender, Aead.AES_128_GCM, public, b"", Private.make())

    def test_too_little_to_derive_from(self) -> None:
        self.assertRaises(ValueError, Private.derive, bytes(31))

    def test_the_end_of_a_sequence(self) -> None:
        messages = Sequence(Aead.AES_128_GCM, bytes(16), bytes(12))
        messages._next = (1 << 96) - 1
        self.assertRaises(LocalProtocolError, messages.seal, b"")

    def test_nothing_secret_shows(self) -> None:
        made = hpke.schedule(Aead.AES_128_GCM, bytes(32), b"")
        shown = repr((self.key, self.one, self.one.messages, made))
        for secret in (self.key.dump(), made.key, made.exporter_secret, made.base_nonce, made.secret):
            self.assertNotIn(secret.hex(), shown)
            self.assertNotIn(repr(secret), shown)

    @given(st.binary(max_size=200), st.binary(max_size=40))
    def test_any_noise(self, sealed: bytes, associated: bytes) -> None:
        self.assertRaises(RemoteProtocolError, self.other.messages.open, sealed, associated)
