"""Basic authentication against kept hashes."""

import base64

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.shape import ShapeError, from_json
from layer8.core.errors import LocalProtocolError
from layer8.crypto.password import fits, hashed, is_hash
from layer8.proxy import users
from layer8.proxy.orders import Policy
from layer8.proxy.users import Known, credentials, good, is_user

ALICE = "alice:" + hashed("correct horse")
BOB = "bob:" + hashed("pässword:x")


def basic(name: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


class PasswordTests(SynchronousTestCase):
    def test_fits(self) -> None:
        kept = hashed("secret")
        self.assertTrue(fits(b"secret", kept))
        self.assertFalse(fits(b"Secret", kept))
        self.assertFalse(fits(b"", kept))
        self.assertNotEqual(hashed("secret"), kept)
        self.assertNotIn("secret", kept)

    def test_a_vector(self) -> None:
        """What Python's own scrypt gives, written down once: the form must not change under stored hashes."""
        kept = "$scrypt$ln=4,r=8,p=1$MDEyMzQ1Njc4OWFiY2RlZg$gEeb/KeWbm5g+kBQOFr1yJbkjBxxxDOkhSmrSXFFwOg"
        self.assertTrue(fits(b"secret", kept))
        self.assertFalse(fits(b"other", kept))

    def test_what_is_no_hash(self) -> None:
        kept = hashed("secret")
        for text in ("", "secret", kept + "A", kept[:-1], kept.replace("ln=14", "ln=16"), kept.replace("r=8", "r=9")):
            self.assertFalse(is_hash(text), text)
            self.assertRaises(LocalProtocolError, fits, b"secret", text)


class CredentialsTests(SynchronousTestCase):
    def test_who_comes_in(self) -> None:
        for value, wanted in (
            (basic("alice", "correct horse"), True),
            (basic("bob", "pässword:x"), True),
            (basic("alice", "pässword:x"), False),
            (basic("bob", ""), False),
            (basic("eve", "correct horse"), False),
            (basic("", ""), False),
        ):
            found = credentials(value)
            assert found is not None
            self.assertEqual(good((ALICE, BOB), *found), wanted, value)

    def test_one_name_costs_no_more_than_two_checks(self) -> None:
        """An owner's sixty lines of one name would be sixty checks for each guess of a visitor."""
        asked: list[str] = []

        def counts(password: bytes, kept: str) -> bool:
            asked.append(kept)
            return False

        self.patch(users, "fits", counts)
        for lines, checks in (([ALICE, BOB], 1), ([ALICE] * 64, 2), ([], 1)):
            self.assertFalse(good(lines, "alice", b"x"))
            self.assertEqual(len(asked), checks)
            asked.clear()

    def test_what_are_no_credentials(self) -> None:
        for value in (
            b"",
            b"Basic",
            b"Basic !!!",
            b"Bearer abc",
            b"Basic " + base64.b64encode(b"nocolon"),
            b"Basic /w==",
        ):
            self.assertIsNone(credentials(value), value)
        self.assertIsNone(credentials(basic("a", "x" * 2000)))
        self.assertEqual(credentials(b"bAsIc " + base64.b64encode(b"a:b")), ("a", b"b"))

    @given(st.binary(max_size=60))
    def test_any_noise(self, value: bytes) -> None:
        for prefix in (b"", b"Basic "):
            found = credentials(prefix + value)
            self.assertTrue(found is None or isinstance(found[0], str))

    def test_lines(self) -> None:
        self.assertTrue(is_user(ALICE))
        for line in ("", "alice", ":" + ALICE.partition(":")[2], "alice:secret", "a\nb:" + ALICE.partition(":")[2]):
            self.assertFalse(is_user(line), line)

    def test_a_policy_takes_nothing_else(self) -> None:
        self.assertEqual(from_json(Policy, {"users": [ALICE]}).users, (ALICE,))
        self.assertRaises(ShapeError, from_json, Policy, {"users": ["alice:secret"]})


class KnownTests(SynchronousTestCase):
    def test_only_these_users(self) -> None:
        known = Known(b"key")
        known.add((ALICE,), b"Basic x")
        self.assertTrue(known.has((ALICE,), b"Basic x"))
        self.assertFalse(known.has((ALICE, BOB), b"Basic x"))
        self.assertFalse(known.has((ALICE,), b"Basic y"))
        self.assertFalse(Known(b"other").has((ALICE,), b"Basic x"))

    def test_the_oldest_is_forgotten(self) -> None:
        self.patch(users, "KNOWN", 3)
        known = Known(b"key")
        for value in (b"1", b"2", b"3"):
            known.add((ALICE,), value)
        self.assertTrue(known.has((ALICE,), b"1"))
        known.add((ALICE,), b"4")
        self.assertEqual([known.has((ALICE,), value) for value in (b"1", b"2", b"3", b"4")], [True, False, True, True])
        self.assertEqual(len(known), 3)
