"""The circuit handshake: frozen messages, an own reading of its description, every change of a bit, equal failures."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto import ntor
from layer8.crypto.ntor import (
    ANSWER_LEAST,
    BEGIN_LEAST,
    SEEN_X,
    Begun,
    HandshakeFailed,
    Keys,
    OnionKey,
    SeenX,
    Terms,
    client_begin,
    client_finish,
    encapsulate,
    relay_answer,
)
from tests.names import ROOT

FILE = ROOT / "tests" / "vectors" / "ntor-1.json"
IDENTITY, NETWORK = bytes(range(32)), b"network1"
ONION, OLD = OnionKey.from_private(bytes(range(1, 33))), OnionKey.from_private(bytes(range(2, 34)))
KEYS = {key.public: key for key in (ONION, OLD)}
CM, SM = Terms(512, 64, (1,), 1).to_bytes(), Terms(256, 64, (1,)).to_bytes()
# All values of X25519's u that a factor of the cofactor makes zero: RFC 7748 section 7, without the high bit.
LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    *((2**255 - 19 + step).to_bytes(32, "little") for step in (-1, 0, 1)),
]


def begin(key: OnionKey = ONION, **more: Any) -> tuple[Begun, bytes]:
    return client_begin(IDENTITY, key.public, NETWORK, CM, **more)


def answer(message: bytes, seen: SeenX | None = None, **more: Any) -> tuple[bytes, Keys, bytes]:
    return relay_answer(IDENTITY, KEYS, NETWORK, message, SeenX() if seen is None else seen, lambda cm: SM, **more)


def expand(secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand as RFC 5869 writes it."""
    made, block = b"", b""
    while len(made) < length:
        block = hmac.new(secret, block + info + bytes([len(made) // 32 + 1]), hashlib.sha256).digest()
        made += block
    return made[:length]


def extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.new(salt, secret, hashlib.sha256).digest()


class FrozenTests(SynchronousTestCase):
    """One conversation with all that is secret in it, as hex; ML-KEM's part was made once, by the library."""

    def setUp(self) -> None:
        file = json.loads(FILE.read_text())
        self.bytes = {name: bytes.fromhex(text) for name, text in file.items() if name != "about"}

    def test_both_sides(self) -> None:
        said = self.bytes
        x, y, b = (OnionKey.from_private(said[name]) for name in "xyb")
        dk = MLKEM768PrivateKey.from_seed_bytes(said["dk"])
        self.assertEqual(dk.decapsulate(said["ct"]), said["ss"])
        begun, message = client_begin(said["ID"], b.public, said["network"], said["CM"], x=x, dk=dk)
        self.assertEqual(message, said["message"])
        reply, keys, cm = relay_answer(
            said["ID"],
            {b.public: b},
            said["network"],
            message,
            SeenX(),
            lambda cm: said["SM"],
            y=y,
            kem=lambda ek: (said["ss"], said["ct"]),
        )
        self.assertEqual((reply, cm), (said["reply"], said["CM"]))
        self.assertEqual((keys.forward + keys.backward + keys.binding, keys.sm), (said["keys"], said["SM"]))
        self.assertEqual(client_finish(begun, said["reply"]), keys)

    def test_the_description_read_once_more(self) -> None:
        said = self.bytes
        x, y, b = (X25519PrivateKey.from_private_bytes(said[name]) for name in "xyb")
        big_x, big_y, big_b = (key.public_key().public_bytes_raw() for key in (x, y, b))
        ek = MLKEM768PrivateKey.from_seed_bytes(said["dk"]).public_key().public_bytes_raw()
        place = b"layer8/1 ntor x25519 mlkem768 sha256" + said["network"]
        e1 = b.exchange(X25519PublicKey.from_public_bytes(big_x))
        e2 = x.exchange(X25519PublicKey.from_public_bytes(big_y))
        info = b"msg" + said["ID"] + big_b + big_x + hashlib.sha256(ek).digest()
        head = said["ID"] + big_b + big_x + ek
        k1 = expand(extract(place, e1), info, 32)
        message = head + AESGCM(k1).encrypt(bytes(12), said["CM"], head)
        self.assertEqual(message, said["message"])
        transcript = hashlib.sha256(place + message + big_y + said["ct"]).digest()
        secret = extract(transcript, e1 + e2 + said["ss"])
        auth = expand(secret, b"auth", 32)
        sealed = AESGCM(expand(secret, b"enc", 32)).encrypt(bytes(12), said["SM"], auth)
        self.assertEqual(big_y + said["ct"] + auth + sealed, said["reply"])
        self.assertEqual(expand(secret, b"keys", 320), said["keys"])


class HandshakeTests(SynchronousTestCase):
    def test_both_agree(self) -> None:
        for key in (ONION, OLD):
            begun, message = begin(key)
            reply, keys, cm = relay_answer(IDENTITY, KEYS, NETWORK, message, SeenX(), lambda cm: SM + cm)
            self.assertEqual(client_finish(begun, reply), keys)
            self.assertEqual((cm, keys.sm), (CM, SM + CM))
            self.assertEqual([len(part) for part in (keys.forward, keys.backward, keys.binding)], [144, 144, 32])
            self.assertEqual((len(message), len(reply)), (1296 + len(CM), 1168 + len(SM + CM)))
        self.assertEqual((BEGIN_LEAST, ANSWER_LEAST), (1296, 1168))

    def test_nothing_comes_twice(self) -> None:
        message = begin()[1]
        made = [answer(message)[1] for _ in range(2)]  # two relays that know nothing of each other
        parts = {part for keys in made for part in (keys.forward, keys.backward, keys.binding)}
        self.assertEqual(len(parts), 6)
        self.assertNotEqual(begin()[1], message)

    def test_text_forms_show_no_secret(self) -> None:
        begun, message = begin()
        _, keys, _ = answer(message)
        shown = f"{begun!r} {keys!r} {ONION!r}"
        self.assertIn(ONION.public.hex(), shown)
        for secret in (ONION.private, keys.forward, keys.backward[:16], keys.binding, begun._e1):
            self.assertNotIn(secret.hex(), shown)
            self.assertNotIn(repr(secret)[2:-1], shown)

    def test_onion_key_out_and_in(self) -> None:
        key = OnionKey.make()
        self.assertEqual(OnionKey.from_private(key.private).public, key.public)
        for length in (0, 31, 33):
            self.assertRaises(LocalProtocolError, OnionKey.from_private, bytes(length))

    def test_our_own_mistakes(self) -> None:
        for wrong in ((b"", ONION.public, NETWORK), (IDENTITY, b"", NETWORK), (IDENTITY, ONION.public, b"main")):
            self.assertRaises(LocalProtocolError, client_begin, *wrong, CM)
        for point in LOW_ORDER:
            self.assertRaises(HandshakeFailed, client_begin, IDENTITY, point, NETWORK, CM)


class ClientTests(SynchronousTestCase):
    """A client takes nothing but the answer of the relay that it meant."""

    def setUp(self) -> None:
        self.begun, self.message = begin()
        self.reply, self.keys, _ = answer(self.message)

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, 8 * (ANSWER_LEAST + len(SM)) - 1))
    def test_any_bit(self, bit: int) -> None:
        changed = bytearray(self.reply)
        changed[bit // 8] ^= 1 << bit % 8
        self.assertRaises(HandshakeFailed, client_finish, self.begun, bytes(changed))

    @given(st.integers(0, ANSWER_LEAST + len(SM) - 1))
    @example(ANSWER_LEAST)
    def test_any_length(self, length: int) -> None:
        self.assertRaises(HandshakeFailed, client_finish, self.begun, self.reply[:length])
        self.assertRaises(HandshakeFailed, client_finish, self.begun, self.reply + bytes(1))

    def test_low_order(self) -> None:
        for point in LOW_ORDER:
            self.assertRaises(HandshakeFailed, client_finish, self.begun, point + self.reply[32:])

    def test_the_answer_to_another(self) -> None:
        self.assertRaises(HandshakeFailed, client_finish, begin()[0], self.reply)

    def test_another_relay(self) -> None:
        """One that has the identity and not the onion key, or the onion key and not the identity, cannot answer."""
        thief = OnionKey.make()
        self.assertRaises(
            HandshakeFailed,
            relay_answer,
            IDENTITY,
            {ONION.public: thief},
            NETWORK,
            self.message,
            SeenX(),
            lambda cm: SM,
        )
        liar = bytes(32) + self.message[32:]
        self.assertRaises(HandshakeFailed, relay_answer, bytes(32), KEYS, NETWORK, liar, SeenX(), lambda cm: SM)

    def test_both_kinds_of_secret_are_needed(self) -> None:
        """Who breaks X25519 alone, or ML-KEM alone, has other keys."""
        x, y = OnionKey.make(), OnionKey.make()
        dk = MLKEM768PrivateKey.generate()
        begun, message = begin(x=x, dk=dk)
        ss, ct = encapsulate(dk.public_key().public_bytes_raw())
        _, keys, _ = answer(message, y=y, kem=lambda ek: (ss, ct))
        _, without_kem, _ = answer(message, y=y, kem=lambda ek: (bytes(32), ct))
        self.assertEqual(len({keys.forward, without_kem.forward}), 2)
        blind = Begun(x, dk, bytes(32), begun._before)
        reply, _, _ = answer(message, y=y, kem=lambda ek: (ss, ct))
        self.assertRaises(HandshakeFailed, client_finish, blind, reply)


class RelayTests(SynchronousTestCase):
    """All that can be wrong with a client's message fails alike, and after the same work."""

    def failures(self) -> dict[str, Callable[[SeenX], bytes]]:
        good = begin()[1]

        def repeated(seen: SeenX) -> bytes:
            answer(good, seen)
            return good

        def forged(part: slice, value: bytes) -> Callable[[SeenX], bytes]:
            changed = bytearray(good)
            changed[part] = value
            return lambda seen: bytes(changed)

        def meant(x: bytes, ek: bytes, e1: bytes) -> bytes:
            """Seal what is wrong as somebody does who knows what the relay will compute."""
            head = IDENTITY + ONION.public + x + ek
            key = ntor._first_key(b"layer8/1 ntor x25519 mlkem768 sha256" + NETWORK, e1, head)
            return head + AESGCM(key).encrypt(bytes(12), CM, head)

        x, ek = OnionKey.make(), good[96:1280]
        bad_ek = meant(x.public, b"\xff" * 1184, x.agree(ONION.public))  # 0xfff is no number below 3329
        low = {point[:2].hex(): meant(point, ek, bytes(32)) for point in LOW_ORDER}  # DH gives zeros, for anybody
        return {
            "another identity": forged(slice(0, 32), bytes(32)),
            "another identity, and meant": lambda seen: client_begin(bytes(32), ONION.public, NETWORK, CM)[1],
            "an unknown onion key": lambda seen: begin(OnionKey.make())[1],
            "a repeated X": repeated,
            "another X": forged(slice(64, 96), OnionKey.make().public),
            "an open CM": forged(slice(1280, None), CM),
            "a changed CM": forged(slice(1280, None), bytes(len(CM) + 16)),
            "no ML-KEM key": lambda seen: bad_ek,
            "nothing": lambda seen: b"",
            "too little": lambda seen: good[: BEGIN_LEAST - 1],
            "another network": lambda seen: client_begin(IDENTITY, ONION.public, b"network2", CM)[1],
            **{f"low order {point[:2].hex()}": forged(slice(64, 96), point) for point in LOW_ORDER},
            **{f"low order {name}, and meant": lambda seen, bad=bad: bad for name, bad in low.items()},  # type: ignore[misc]
        }

    def test_all_fail_alike(self) -> None:
        for name, make in self.failures().items():
            seen = SeenX()
            error = self.assertRaises(HandshakeFailed, answer, make(seen), seen)
            self.assertEqual(str(error), str(HandshakeFailed()), name)

    def test_all_fail_after_the_same_work(self) -> None:
        """Counted in the calls that take time: two DH, one encapsulation, all of HKDF, both AEADs."""
        done: Counter[str] = Counter()

        def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                done[name] += 1
                return function(*args)

            return call

        def kem(ek: bytes) -> tuple[bytes, bytes]:
            made = encapsulate(ek)
            done["kem"] += 1
            return made

        message, failing = begin()[1], self.failures()
        self.patch(OnionKey, "agree", counted("agree", OnionKey.agree))
        for name in ("_expand", "_extract", "AESGCM"):
            self.patch(ntor, name, counted(name, getattr(ntor, name)))
        answer(message, kem=kem)
        work = dict(done)
        self.assertEqual(work, {"agree": 2, "kem": 1, "_expand": 4, "_extract": 2, "AESGCM": 2})
        for name, make in failing.items():
            seen = SeenX()
            made = make(seen)
            done.clear()
            self.assertRaises(HandshakeFailed, answer, made, seen, kem=kem)
            self.assertEqual(dict(done), work, name)

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 8 * (BEGIN_LEAST + len(CM)) - 1))
    @example(8 * 96 - 1)  # the bit of X that X25519 does not look at
    def test_any_bit(self, bit: int) -> None:
        changed = bytearray(begin()[1])
        changed[bit // 8] ^= 1 << bit % 8
        self.assertRaises(HandshakeFailed, answer, bytes(changed))

    @given(st.binary(max_size=2 * BEGIN_LEAST))
    @settings(max_examples=30, deadline=None)
    def test_any_noise(self, message: bytes) -> None:
        self.assertRaises(HandshakeFailed, answer, message)

    def test_terms_that_are_not_liked(self) -> None:
        def refuse(cm: bytes) -> bytes:
            raise RemoteProtocolError("no such window")

        self.assertRaises(HandshakeFailed, relay_answer, IDENTITY, KEYS, NETWORK, begin()[1], SeenX(), refuse)

    def test_every_word_is_in_the_transcript(self) -> None:
        """The answer to another CM is none to ours, though all secrets are ours and nobody knows the type."""
        begun, _ = begin()
        other = client_begin(IDENTITY, ONION.public, NETWORK, CM + b"\x09\x00", x=begun._x, dk=begun._dk)[1]
        self.assertRaises(HandshakeFailed, client_finish, begun, answer(other)[0])


class SeenTests(SynchronousTestCase):
    def test_once_under_each_key(self) -> None:
        seen, message = SeenX(), begin()[1]
        answer(message, seen)
        self.assertRaises(HandshakeFailed, answer, message, seen)
        answer(begin(OLD, x=OnionKey.from_private(bytes(range(3, 35))))[1], seen)
        answer(begin(x=OnionKey.from_private(bytes(range(3, 35))))[1], seen)

    def test_a_forger_fills_nothing(self) -> None:
        """Only what opens is kept: whoever makes up X uses up no place, and cannot take one before its owner comes."""
        seen, message = SeenX(), begin()[1]
        self.assertRaises(HandshakeFailed, answer, message[:-1] + bytes([message[-1] ^ 1]), seen)
        answer(message, seen)

    def test_a_limit_for_each_key(self) -> None:
        self.patch(ntor, "SEEN_X", 3)
        seen = SeenX()
        texts = [bytes([number]) * 32 for number in range(5)]
        self.assertEqual([seen.fresh(b"a", text) for text in texts[:4]], [True] * 4)
        self.assertEqual([seen.fresh(b"a", text) for text in texts[1:4]], [False] * 3)
        self.assertEqual((seen.fresh(b"a", texts[0]), seen.fresh(b"b", texts[0])), (True, True))
        self.assertEqual([len(each) for each in (*seen._known.values(), *seen._order.values())], [3, 1, 3, 1])
        seen.forget(b"a")
        seen.forget(b"none")
        self.assertTrue(seen.fresh(b"a", texts[3]))

    def test_one_of_many_threads(self) -> None:
        """Handshakes run on worker threads; however they meet, a key is fresh once."""
        seen, texts = SeenX(), [number.to_bytes(8, "big") * 4 for number in range(500)]
        with ThreadPoolExecutor(4) as pool:
            told = list(pool.map(lambda _: [seen.fresh(b"a", text) for text in texts], range(4)))
        self.assertEqual([sum(answers) for answers in zip(*told, strict=True)], [1] * len(texts))

    def test_the_number_of_the_page(self) -> None:
        self.assertEqual(SEEN_X, 65_536)


class TermsTests(SynchronousTestCase):
    @given(
        st.builds(
            Terms,
            st.none() | st.integers(0, 65535),
            st.none() | st.integers(0, 65535),
            st.lists(st.integers(0, 65535), max_size=127).map(tuple),
            st.none() | st.integers(0, 255),
        )
    )
    def test_round_trip(self, terms: Terms) -> None:
        self.assertEqual(Terms.from_bytes(terms.to_bytes()), terms)

    def test_layout(self) -> None:
        self.assertEqual(Terms(512, 64, (1, 2), 1).to_bytes().hex(), "01020200020200400304000100020401" + "01")
        self.assertEqual(Terms().to_bytes(), b"")

    def test_unknown_types_are_skipped(self) -> None:
        self.assertEqual(Terms.from_bytes(b"\x09\x02ab" + CM + b"\xff\x00"), Terms(512, 64, (1,), 1))
        self.assertEqual(Terms.from_bytes(b"\x09\x00"), Terms())

    def test_bad_lists(self) -> None:
        for bad in (
            "01",
            "0102",
            "010200",
            "0101aa",
            "0103000000",
            "0203000000",
            "0401",
            "04020000",
            "030100",
            "0900" * 2,
        ):
            self.assertRaises(RemoteProtocolError, Terms.from_bytes, bytes.fromhex(bad))

    @given(st.binary(max_size=40))
    def test_any_noise(self, text: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            Terms.from_bytes(text)
