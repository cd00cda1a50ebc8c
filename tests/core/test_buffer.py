"""The capped buffer against a plain bytes object."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.buffer import CappedBuffer
from layer8.core.errors import LimitExceeded


class Buffer(SynchronousTestCase):
    def test_cap(self) -> None:
        buffer = CappedBuffer("SNIFF", 4)
        buffer.append(b"abcd")
        error = self.assertRaises(LimitExceeded, buffer.append, b"e")
        self.assertEqual((error.limit, error.most), ("SNIFF", 4))
        self.assertEqual(buffer.take_all(), b"abcd")
        self.assertEqual(len(buffer), 0)
        buffer.append(b"efgh")  # room again
        buffer.append(b"")

    def test_peek_and_find(self) -> None:
        buffer = CappedBuffer("SNIFF", 16)
        buffer.append(b"ab\r\ncd\r\n")
        self.assertEqual(buffer.peek(2), b"ab")
        self.assertEqual(buffer.peek(100, 6), b"\r\n")
        self.assertEqual(buffer.peek(3, 99), b"")
        self.assertEqual((buffer.find(b"\r\n"), buffer.find(b"\r\n", 3), buffer.find(b"x")), (2, 6, -1))
        self.assertEqual(len(buffer), 8)

    @given(st.lists(st.binary(max_size=9) | st.integers(0, 12), max_size=40))
    def test_like_bytes(self, steps: list[bytes | int]) -> None:
        buffer, model = CappedBuffer("SNIFF", 20), b""
        for step in steps:
            if isinstance(step, int):
                taken = buffer.take(step)
                self.assertEqual(taken, model[:step] if len(model) >= step else None)
                model = model[len(taken or b"") :]
            elif len(model) + len(step) > 20:
                self.assertRaises(LimitExceeded, buffer.append, step)
            else:
                buffer.append(step)
                model += step
            self.assertEqual((len(buffer), buffer.peek(20)), (len(model), model))
