"""Introductions to hidden services: who can open one, who can answer it, and what is said of anything else."""

from __future__ import annotations

from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.crypto import introduction
from layer8.crypto.introduction import BLOB, ENDPOINT_MOST, Door, Introduced, Meeting, introduced, knock
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import HandshakeFailed, OnionKey, SeenX

MEETING = Meeting(1, 1_700_000_000, b"c" * 32, b"n" * 32, b"o" * 32, "tcp:10.0.0.1:9000")


class IntroductionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.key = OnionKey.make()
        self.door = Door(b"network.", b"A" * 32, b"a" * 32, self.key.public)
        self.seen = SeenX()

    def open(self, blob: bytes, **more: bytes) -> Introduced:
        return introduced(self.door, self.key, blob, self.seen, **more)


class AgreementTests(IntroductionCase):
    def test_both_ends_agree(self) -> None:
        knocked = knock(self.door, MEETING)
        self.assertEqual(len(knocked.blob), BLOB)
        there = self.open(knocked.blob)
        self.assertEqual(there.meeting, MEETING)
        self.assertIsNone(there.login)
        reply, keys = there.reply(b"terms")
        self.assertEqual(knocked.finish(reply), keys)
        self.assertEqual(keys.sm, b"terms")

    def test_login(self) -> None:
        key = NodeKey.make()
        self.assertEqual(self.open(knock(self.door, MEETING, login=key).blob).login, key.node_id)

    def test_cookie_of_known_clients(self) -> None:
        blob = knock(self.door, MEETING, cookie=b"k" * 32).blob
        for wrong in (b"", b"j" * 32):
            with self.assertRaises(HandshakeFailed):
                self.open(blob, cookie=wrong)
        self.assertEqual(self.open(blob, cookie=b"k" * 32).meeting, MEETING)

    def test_longest_endpoint(self) -> None:
        meeting = evolve(MEETING, endpoint="e" * ENDPOINT_MOST)
        self.assertEqual(self.open(knock(self.door, meeting, login=NodeKey.make()).blob).meeting, meeting)
        for wrong in (evolve(MEETING, endpoint="e" * (ENDPOINT_MOST + 1)), evolve(MEETING, cookie=b"short")):
            with self.assertRaises(LocalProtocolError):
                knock(self.door, wrong)

    def test_nothing_of_it_can_be_read_on_the_way(self) -> None:
        blob = knock(self.door, MEETING, login=NodeKey.from_seed(bytes(32))).blob
        for part in (MEETING.cookie, MEETING.node, self.door.service, NodeKey.from_seed(bytes(32)).node_id, b"10.0"):
            self.assertNotIn(part, blob)


class HostileTests(IntroductionCase):
    """What somebody writes into a blob who does not keep to its form; its encryption is right."""

    def forged(self, endpoint: bytes, more: int = 0, size: int | None = None, who: bytes = b"") -> bytes:
        x, text = OnionKey.make(), len(endpoint) if size is None else size
        head = introduction._HEAD.pack(1, 0, b"c" * 32, b"n" * 32, b"o" * 32, text)
        ek = MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
        plain = (head + endpoint + ek + who).ljust(introduction._PLAIN + more, b"\0")
        key = introduction._key(x.agree(self.door.enc_key), self.door, x.public, b"")
        return x.public + AESGCM(key).encrypt(bytes(12), plain, self.door.auth_key + x.public)

    def test_the_form_itself(self) -> None:
        self.assertEqual(self.open(self.forged(b"tcp:10.0.0.1:9000")).meeting.endpoint, "tcp:10.0.0.1:9000")

    def test_endpoints_and_lengths(self) -> None:
        wrong = {
            "no ASCII": self.forged(b"tcp:\xff"),
            "an endpoint over the limit": self.forged(b"e" * (ENDPOINT_MOST + 1)),
            "one that reaches over the end": self.forged(b"", size=255),
            "longer than a blob": self.forged(b"e", more=16),
            "shorter than a blob": self.forged(b"e", more=-16),
            "a key that has signed nothing": self.forged(b"e", who=b"k" * 32),
        }
        for name, blob in wrong.items():
            with self.assertRaises(HandshakeFailed, msg=name):
                self.open(blob)

    def test_keys_for_the_answer_that_are_none(self) -> None:
        """They are noticed when it is answered, and cost no more than the answer."""
        x = OnionKey.make()
        head = introduction._HEAD.pack(1, 0, b"c" * 32, b"n" * 32, b"o" * 32, 0)
        plain = (head + b"\xff" * 1184).ljust(introduction._PLAIN, b"\0")
        key = introduction._key(x.agree(self.door.enc_key), self.door, x.public, b"")
        there = self.open(x.public + AESGCM(key).encrypt(bytes(12), plain, self.door.auth_key + x.public))
        with self.assertRaises(HandshakeFailed):
            there.reply(b"terms")

    def test_parts_of_a_door(self) -> None:
        for wrong in (evolve(self.door, network=b"short"), evolve(self.door, auth_key=b"a" * 31)):
            with self.assertRaises(LocalProtocolError):
                knock(wrong, MEETING)
        for bad in (evolve(MEETING, node=b"n" * 31), evolve(MEETING, onion_key=b"o" * 33)):
            with self.assertRaises(LocalProtocolError):
                knock(self.door, bad)


class RefusalTests(IntroductionCase):
    def test_a_blob_is_good_once(self) -> None:
        blob = knock(self.door, MEETING).blob
        self.open(blob)
        with self.assertRaises(HandshakeFailed):
            self.open(blob)

    def test_another_door(self) -> None:
        """What was made for one access point opens at no other, nor under another key."""
        blob = knock(self.door, MEETING).blob
        other = OnionKey.make()
        for door, key in (
            (evolve(self.door, auth_key=b"b" * 32), self.key),
            (evolve(self.door, enc_key=other.public), other),
        ):
            with self.assertRaises(HandshakeFailed):
                introduced(door, key, blob, self.seen)

    def test_another_service(self) -> None:
        """Whoever holds the enc key and publishes it under another address is not taken for the first one."""
        knocked = knock(self.door, MEETING)
        reply, _ = introduced(evolve(self.door, service=b"B" * 32), self.key, knocked.blob, self.seen).reply(b"")
        with self.assertRaises(HandshakeFailed):
            knocked.finish(reply)

    def test_a_login_for_another_service(self) -> None:
        blob = knock(self.door, MEETING, login=NodeKey.make()).blob
        with self.assertRaises(HandshakeFailed):
            introduced(evolve(self.door, service=b"B" * 32), self.key, blob, self.seen)

    def test_another_network(self) -> None:
        knocked = knock(self.door, MEETING)
        reply, _ = introduced(
            evolve(
                self.door,
                network=b"other...",
            ),
            self.key,
            knocked.blob,
            self.seen,
        ).reply(b"")
        with self.assertRaises(HandshakeFailed):
            knocked.finish(reply)

    def test_every_changed_byte_of_a_reply(self) -> None:
        knocked = knock(self.door, MEETING)
        reply, _ = self.open(knocked.blob).reply(b"terms")
        for at in (*range(0, 1120, 97), *range(1120, len(reply))):
            changed = reply[:at] + bytes((reply[at] ^ 1,)) + reply[at + 1 :]
            with self.assertRaises(HandshakeFailed):
                knocked.finish(changed)
        with self.assertRaises(HandshakeFailed):
            knocked.finish(reply[:-1])

    def test_low_order(self) -> None:
        with self.assertRaises(HandshakeFailed):
            knock(evolve(self.door, enc_key=bytes(32)), MEETING)
        with self.assertRaises(HandshakeFailed):
            self.open(bytes(BLOB))

    def test_wrong_lengths_of_a_door(self) -> None:
        with self.assertRaises(LocalProtocolError):
            knock(evolve(self.door, service=b"A"), MEETING)

    @settings(max_examples=50, deadline=None)
    @given(st.binary(max_size=BLOB) | st.binary(min_size=BLOB, max_size=BLOB))
    def test_any_noise(self, blob: bytes) -> None:
        with self.assertRaises(HandshakeFailed):
            self.open(blob)

    @settings(max_examples=50, deadline=None)
    @given(st.binary(max_size=1300))
    def test_any_noise_as_reply(self, reply: bytes) -> None:
        with self.assertRaises(HandshakeFailed):
            knock(self.door, MEETING).finish(reply)
