"""Noise: published transcripts of XX, a frozen one of ours with ML-KEM, and what may go wrong."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto import noise
from layer8.crypto.noise import CLASSIC, LINK, NAMELESS, RECORD, Cipher, Handshake, Keys, Records

FROZEN = Path(__file__).parent.parent / "vectors" / "noise-xxhfs-1.json"
KNOWN = FROZEN.with_name("noise-nk.json")
PUBLISHED = "noise-xx-25519-chachapoly-sha256.json"
SHARED = Path(__file__).parents[3] / "shared" / "vectors"
FOLDER = Path(os.environ.get("LAYER8_VECTORS", SHARED))


def x25519(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def sides(vector: dict[str, Any], suite: noise.Suite, alice: Keys, bob: Keys) -> tuple[Handshake, Handshake]:
    return (
        Handshake(suite, alice, bytes.fromhex(vector["init_prologue"]), initiator=True),
        Handshake(suite, bob, bytes.fromhex(vector["resp_prologue"]), initiator=False),
    )


def met(suite: noise.Suite = LINK) -> tuple[Handshake, Handshake]:
    """Finish a handshake between fresh keys."""
    alice = Handshake(suite, Keys(X25519PrivateKey.generate()), b"p", initiator=True)
    bob = Handshake(suite, Keys(X25519PrivateKey.generate()), b"p", initiator=False)
    bob.read(alice.write())
    alice.read(bob.write())
    bob.read(alice.write())
    return alice, bob


class TranscriptMixin:
    """Go through a vector's messages: those of the handshake, then transport, in turn."""

    def follow(self, vector: dict[str, Any], alice: Handshake, bob: Handshake) -> None:
        assert isinstance(self, SynchronousTestCase)
        ends = [alice, bob]
        ciphers: list[tuple[Cipher, Cipher]] = []
        for number, message in enumerate(vector["messages"]):
            payload, text = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
            says, hears = number % 2, 1 - number % 2
            if not alice.done or not bob.done:
                self.assertEqual(ends[says].write(payload), text)
                self.assertEqual(ends[hears].read(text), payload)
                continue
            ciphers = ciphers or [alice.split(), bob.split()]
            self.assertEqual(ciphers[says][0].seal(payload), text)
            self.assertEqual(ciphers[hears][1].open(text), payload)
        self.assertTrue(alice.done and bob.done)
        self.assertEqual(alice.hash, bob.hash)
        if "handshake_hash" in vector:
            self.assertEqual(alice.hash.hex(), vector["handshake_hash"])


class PublishedTests(TranscriptMixin, SynchronousTestCase):
    skip = None if FOLDER.is_dir() else "neither LAYER8_VECTORS nor ../shared/vectors is there"

    def test_xx(self) -> None:
        for vector in json.loads((FOLDER / PUBLISHED).read_text())["vectors"]:
            alice = Keys(x25519(vector["init_static"]), x25519(vector["init_ephemeral"]))
            bob = Keys(x25519(vector["resp_static"]), x25519(vector["resp_ephemeral"]))
            self.follow(vector, *sides(vector, CLASSIC, alice, bob))


class FrozenTests(TranscriptMixin, SynchronousTestCase):
    def test_xxhfs(self) -> None:
        vector = json.loads(FROZEN.read_text())
        kem = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["init_kem_seed"]))
        text = bytes.fromhex(vector["kem_ciphertext"])
        secret = kem.decapsulate(text)
        alice = Keys(x25519(vector["init_static"]), x25519(vector["init_ephemeral"]), kem)
        bob = Keys(
            x25519(vector["resp_static"]), x25519(vector["resp_ephemeral"]), encapsulate=lambda ek: (secret, text)
        )
        self.follow(vector, *sides(vector, LINK, alice, bob))

    def test_both_learn_the_others_static_key(self) -> None:
        for suite in (LINK, CLASSIC):
            alice, bob = met(suite)
            self.assertEqual(alice.remote, bob._keys.lasting.public_key().public_bytes_raw())
            self.assertEqual(bob.remote, alice._keys.lasting.public_key().public_bytes_raw())

    def test_the_kem_counts(self) -> None:
        """With another KEM secret nothing opens: X25519 alone is not enough."""
        alice = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"", initiator=True)
        bob = Handshake(
            LINK,
            Keys(X25519PrivateKey.generate(), encapsulate=lambda ek: (bytes(32), bytes(noise.CT))),
            b"",
            initiator=False,
        )
        bob.read(alice.write())
        self.assertRaises(RemoteProtocolError, alice.read, bob.write())


class NamelessTests(TranscriptMixin, SynchronousTestCase):
    """NK: the initiator is nobody and knows whom it talks to."""

    def pair(self, remote: bytes = b"") -> tuple[Handshake, Handshake]:
        bob = Handshake(NAMELESS, Keys(X25519PrivateKey.generate()), b"p", initiator=False)
        remote = remote or bob._keys.lasting.public_key().public_bytes_raw()
        return Handshake(NAMELESS, Keys(), b"p", initiator=True, remote=remote), bob

    def test_published(self) -> None:
        vector = json.loads(KNOWN.read_text())
        self.assertEqual(vector["protocol_name"].encode(), NAMELESS.name)
        static, prologue = x25519(vector["resp_static"]), bytes.fromhex(vector["init_prologue"])
        remote = bytes.fromhex(vector["init_remote_static"])
        alice = Handshake(
            NAMELESS, Keys(ephemeral=x25519(vector["init_ephemeral"])), prologue, initiator=True, remote=remote
        )
        bob = Handshake(NAMELESS, Keys(static, x25519(vector["resp_ephemeral"])), prologue, initiator=False)
        self.follow(vector, alice, bob)

    def test_sizes(self) -> None:
        alice, bob = self.pair()
        for says, hears in ((alice, bob), (bob, alice)):
            self.assertEqual((says.size, hears.size), (48, 48))
            hears.read(says.write())

    def test_another_responder_cannot_read(self) -> None:
        alice, bob = self.pair(X25519PrivateKey.generate().public_key().public_bytes_raw())
        self.assertRaises(RemoteProtocolError, bob.read, alice.write(b"who is there"))

    def test_a_responder_without_a_key(self) -> None:
        self.assertRaises(LocalProtocolError, Handshake, NAMELESS, Keys(), b"", initiator=False)


class BadTests(SynchronousTestCase):
    def test_another_prologue(self) -> None:
        alice = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"one", initiator=True)
        bob = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"two", initiator=False)
        bob.read(alice.write())
        self.assertRaises(RemoteProtocolError, alice.read, bob.write())

    def test_any_changed_byte_of_any_message(self) -> None:
        keys = [Keys(X25519PrivateKey.generate()) for _ in range(2)]
        for number in range(3):
            for at in (0, 31, 32, 500, -17, -1):
                alice, bob = (Handshake(LINK, keys[n], b"", initiator=n == 0) for n in range(2))
                ends = [alice, bob]
                failed = False
                for step in range(3):
                    message = bytearray(ends[step % 2].write())
                    if step == number:
                        message[at % len(message)] ^= 1
                    try:
                        ends[1 - step % 2].read(bytes(message))
                    except RemoteProtocolError:
                        failed = True
                        break
                self.assertTrue(failed, (number, at))

    def test_a_key_of_low_order(self) -> None:
        bob = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"", initiator=False)
        alice = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"", initiator=True)
        bob.read(bytes(32) + alice.write()[32:])
        self.assertRaises(RemoteProtocolError, bob.write)

    def test_a_kem_key_that_is_none(self) -> None:
        bob = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"", initiator=False)
        alice = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"", initiator=True)
        bob.read(alice.write()[:32] + b"\xff" * noise.EK)
        self.assertRaises(RemoteProtocolError, bob.write)

    def test_out_of_turn(self) -> None:
        alice = Handshake(LINK, Keys(X25519PrivateKey.generate()), b"", initiator=True)
        self.assertRaises(LocalProtocolError, alice.read, bytes(2000))
        self.assertRaises(LocalProtocolError, alice.split)
        alice.write()
        self.assertRaises(LocalProtocolError, alice.write)

    @given(st.binary(max_size=1500))
    def test_any_noise(self, data: bytes) -> None:
        bob = Handshake(CLASSIC, Keys(X25519PrivateKey.generate()), b"", initiator=False)
        with contextlib.suppress(RemoteProtocolError):
            bob.read(data)
            bob.write()


class RecordsTests(SynchronousTestCase):
    def pair(self) -> tuple[Records, Records]:
        alice, bob = met()
        return Records(alice.split()), Records(bob.split())

    def test_any_cut(self) -> None:
        said = [b"a", b"b" * 2048, bytes(RECORD), bytes(3 * RECORD + 5)]
        near, far = self.pair()
        text = b"".join(near.seal(data) for data in said)
        for cut in (1, 2, 3, 1000, 70_000, len(text)):
            near, far = self.pair()
            text = b"".join(near.seal(data) for data in said)
            got = b"".join(far.open(text[at : at + cut]) for at in range(0, len(text), cut))
            self.assertEqual(got, b"".join(said))
            if cut == 1:
                said = said[:2]  # the rest takes a while byte by byte

    def test_new_keys(self) -> None:
        self.patch(noise, "REKEY_AFTER", 3)
        near, far = self.pair()
        for number in range(10):
            self.assertEqual(far.open(near.seal(bytes((number,)))), bytes((number,)))
        text = b"".join(near.seal(b"x") for _ in range(4))
        self.patch(noise, "REKEY_AFTER", 100)
        self.assertRaises(RemoteProtocolError, far.open, text)

    def test_repeated_dropped_swapped(self) -> None:
        near, far = self.pair()
        first, second = near.seal(b"one"), near.seal(b"two")
        far.open(first)
        self.assertRaises(RemoteProtocolError, far.open, first)
        _, other = self.pair()
        self.assertRaises(RemoteProtocolError, other.open, second)
        self.assertRaises(RemoteProtocolError, self.pair()[1].open, b"\0\x0f" + bytes(15))

    @given(st.binary(max_size=200))
    def test_any_noise(self, data: bytes) -> None:
        _, far = RecordsTests.kept
        with contextlib.suppress(RemoteProtocolError):
            self.assertEqual(Records((far, far)).open(data), b"")

    kept = met()[0].split()
