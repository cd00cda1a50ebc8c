from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.blur import DAY, AddressBlur, AddressPolicy, blur_bytes, blur_time


class Draws:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return bytes([self.count]) * size


class NumberTests(SynchronousTestCase):
    def test_times_go_down(self) -> None:
        self.assertEqual([blur_time(at, 60) for at in (0, 59.9, 60, 121.5)], [0, 0, 60, 120])
        self.assertEqual(blur_time(59.9, 0), 59.9)

    def test_sizes(self) -> None:
        self.assertEqual(
            [blur_bytes(size) for size in (-1, 0, 1, 2, 3, 4, 5, 6, 7, 9, 1000, 1024, 1025, 1 << 40)],
            [0, 0, 1, 2, 3, 4, 6, 6, 8, 12, 1024, 1024, 1536, 1 << 40],
        )

    @given(st.integers(1, 1 << 60))
    def test_sizes_go_up_by_less_than_half_and_keep_two_digits(self, size: int) -> None:
        blurred = blur_bytes(size)
        self.assertLessEqual(size, blurred)
        self.assertLess(2 * blurred, 3 * size + 2)  # in integers: a float cannot tell such sizes apart
        self.assertLessEqual(bin(blurred).count("1"), 2)
        self.assertEqual(blur_bytes(blurred), blurred)


class AddressTests(SynchronousTestCase):
    def blur(self, policy: AddressPolicy) -> AddressBlur:
        return AddressBlur(policy, Draws())

    def test_none(self) -> None:
        self.assertIsNone(self.blur("none").word("192.0.2.77", 0))

    def test_clear(self) -> None:
        self.assertEqual(self.blur("clear").word("192.0.2.77", 0), "192.0.2.77")
        self.assertEqual(self.blur("clear").word("::ffff:192.0.2.77", 0), "192.0.2.77")

    def test_prefix(self) -> None:
        blur = self.blur("prefix")
        self.assertEqual(blur.word("192.0.2.77", 0), "192.0.2.0/24")
        self.assertEqual(blur.word("::ffff:192.0.2.77", 0), "192.0.2.0/24")
        self.assertEqual(blur.word("2001:db8:1:2:3:4:5:6%eth0", 0), "2001:db8:1::/48")

    def test_keyed(self) -> None:
        blur = self.blur("keyed")
        word = blur.word("192.0.2.77", 0)
        self.assertRegex(word or "", r"\A[0-9a-f]{8}\Z")
        self.assertEqual(blur.word("192.0.2.77", DAY - 1), word)
        self.assertEqual(blur.word("::ffff:192.0.2.77", 1), word)
        self.assertNotEqual(blur.word("192.0.2.78", 1), word)
        self.assertNotEqual(blur.word("192.0.2.77", DAY), word)
        self.assertNotEqual(AddressBlur("keyed", lambda size: bytes(size)).word("192.0.2.77", 0), word)

    def test_the_key_is_not_shown(self) -> None:
        blur = self.blur("keyed")
        blur.word("192.0.2.77", 0)
        self.assertEqual(repr(blur), "AddressBlur('keyed')")

    @given(st.sampled_from(["prefix", "keyed", "clear"]), st.text(max_size=20))
    def test_what_is_no_address_gives_nothing_of_itself(self, policy: AddressPolicy, text: str) -> None:
        word = self.blur(policy).word("x" + text, 0)
        self.assertIsNone(word)
