"""Sealed descriptors and the cookies of clients."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.blind import blinded
from layer8.crypto.curtain import (
    AUTH_CLIENTS,
    ITEM,
    LIST,
    LISTS,
    SLOTS,
    TEXT_MAX,
    ClientKey,
    NotAuthorised,
    client_lists,
    good_client,
    seal,
    unseal,
)
from layer8.crypto.keys import NodeKey

KEY = NodeKey.from_seed(bytes(range(32))).node_id
BLIND = blinded(KEY, 20_000)
COOKIE = b"c" * 32


def client(number: int) -> ClientKey:
    return ClientKey.from_bytes(hashlib.sha256(b"%d" % number).digest())


class ItemTests(SynchronousTestCase):
    def test_frozen(self) -> None:
        """The page holds the same; nobody changes it by accident."""
        self.assertEqual(
            seal(KEY, BLIND, b"", 7, b"text", bytes(12))[13:45].hex(),
            "c34a5390c24f813c61540f52bd890432c32065e10d1301296d85b1be5e7d6b65",
        )
        self.assertEqual(
            seal(KEY, BLIND, COOKIE, 7, b"text", bytes(12))[13:45].hex(),
            "27473a66725e7f152ece0d230aa12092694088ce7d3ae7ebb50fdcd62abe86db",
        )

    @given(st.binary(max_size=TEXT_MAX), st.sampled_from((b"", COOKIE)), st.integers(0, 2**63 - 1))
    def test_round_trip_in_one_length(self, text: bytes, cookie: bytes, seq: int) -> None:
        item = seal(KEY, BLIND, cookie, seq, text)
        self.assertEqual((len(item), unseal(KEY, BLIND, cookie, seq, item)), (ITEM, text))

    def test_nobody_else_opens_it(self) -> None:
        item = seal(KEY, BLIND, COOKIE, 7, b"text")
        for key, public, cookie, seq in (
            (BLIND, BLIND, COOKIE, 7),
            (KEY, blinded(KEY, 20_001), COOKIE, 7),
            (KEY, BLIND, b"", 7),
            (KEY, BLIND, b"d" * 32, 7),
            (KEY, BLIND, COOKIE, 8),
        ):
            with self.assertRaises(NotAuthorised):
                unseal(key, public, cookie, seq, item)

    def test_every_byte_counts(self) -> None:
        item = seal(KEY, BLIND, b"", 7, b"text")
        for at in range(ITEM):
            wrong = bytearray(item)
            wrong[at] ^= 1
            with self.assertRaises(RemoteProtocolError):
                unseal(KEY, BLIND, b"", 7, bytes(wrong))

    def test_two_of_the_same_text_share_nothing(self) -> None:
        one, two = (seal(KEY, BLIND, b"", 7, b"text") for _ in range(2))
        self.assertEqual(
            {one[at : at + 8] for at in range(1, ITEM - 8)} & {two[at : at + 8] for at in range(1, ITEM)}, set()
        )

    def test_limits(self) -> None:
        with self.assertRaises(LocalProtocolError):
            seal(KEY, BLIND, b"", 7, b"t" * (TEXT_MAX + 1))
        with self.assertRaises(LocalProtocolError):
            seal(KEY, BLIND, b"short", 7, b"")

    @given(
        st.binary(max_size=ITEM + 2) | st.binary(min_size=ITEM - 1, max_size=ITEM - 1).map(lambda rest: b"\1" + rest)
    )
    def test_any_noise(self, data: bytes) -> None:
        with self.assertRaises(RemoteProtocolError):
            unseal(KEY, BLIND, b"", 7, data)


class ClientTests(SynchronousTestCase):
    def test_each_client_finds_the_cookie_and_nobody_else(self) -> None:
        for count in (1, SLOTS, SLOTS + 1, AUTH_CLIENTS):
            known = [client(number) for number in range(1, count + 1)]
            lists = client_lists(BLIND, COOKIE, [one.public for one in known])
            self.assertEqual((len(lists), {len(one) for one in lists}), (-(-count // SLOTS), {LIST}))
            for one in known[:: max(1, count // 5)]:
                self.assertEqual(one.find(BLIND, lists), COOKIE)
            with self.assertRaises(NotAuthorised):
                client(count + 1).find(BLIND, lists)
            with self.assertRaises(NotAuthorised):
                known[0].find(blinded(KEY, 20_001), lists)

    def test_lists_tell_nothing(self) -> None:
        """Neither who is in them, nor how many of a list's 16, nor that two are of one service."""
        keys = [client(number).public for number in range(1, 5)]
        one, two = (client_lists(BLIND, COOKIE, keys)[0] for _ in range(2))
        self.assertEqual({one[at : at + 8] for at in range(LIST - 8)} & {two[at : at + 8] for at in range(LIST)}, set())
        for secret in (COOKIE, *keys):
            self.assertNotIn(secret[:8], one)
        self.assertEqual(len(client_lists(BLIND, COOKIE, keys[:1])[0]), len(one))

    def test_changed_lists(self) -> None:
        own = client(1)
        (good,) = client_lists(BLIND, COOKIE, [own.public])
        for at in range(0, LIST, 3):
            wrong = bytearray(good)
            wrong[at] ^= 1
            try:
                self.assertEqual(own.find(BLIND, [bytes(wrong)]), COOKIE, "a slot of noise was changed")
            except RemoteProtocolError:
                continue

    def test_limits(self) -> None:
        with self.assertRaises(LocalProtocolError):
            client_lists(BLIND, COOKIE, [client(number).public for number in range(1, AUTH_CLIENTS + 2)])
        with self.assertRaises(LocalProtocolError):
            client_lists(BLIND, b"short", [])
        with self.assertRaises(LocalProtocolError):
            client_lists(BLIND, COOKIE, [bytes(32)])
        own = client(1)
        (good,) = client_lists(BLIND, COOKIE, [own.public])
        with self.assertRaises(NotAuthorised):
            own.find(BLIND, [client_lists(BLIND, COOKIE, [client(2).public])[0]] * LISTS + [good])

    def test_keys_that_anybody_has(self) -> None:
        self.assertEqual(
            [good_client(key) for key in (client(1).public, bytes(32), b"\1" + bytes(31), b"x")], [True] + [False] * 3
        )

    def test_nothing_secret_is_shown(self) -> None:
        self.assertNotIn("private", repr(client(1)).lower())

    @given(st.lists(st.binary(max_size=20) | st.binary(min_size=LIST, max_size=LIST), max_size=3))
    def test_any_noise(self, lists: list[bytes]) -> None:
        with self.assertRaises(RemoteProtocolError):
            client(1).find(BLIND, lists)
