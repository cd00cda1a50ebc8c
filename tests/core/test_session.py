"""The session contract: effects are handed out once, in order, and the error tree is one tree."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.core import errors
from layer8.core.session import Close, Dial, Join, Outbox, Send, Tell


class Effects(SynchronousTestCase):
    def test_once_and_in_order(self) -> None:
        box = Outbox()
        self.assertEqual(box.take(), [])
        box.add(Send(b"a"), Dial(1, "tcp:192.0.2.1:80"))
        box.add(Join(1, b"b"), Tell("c"), Close("done"))
        first = box.take()
        self.assertEqual(first, [Send(b"a"), Dial(1, "tcp:192.0.2.1:80"), Join(1, b"b"), Tell("c"), Close("done")])
        box.add(Close("done", abort=True))
        self.assertEqual(box.take(), [Close("done", abort=True)])
        self.assertEqual(len(first), 5)
        self.assertEqual(box.take(), [])

    def test_defaults(self) -> None:
        self.assertFalse(Close("done").abort)
        self.assertEqual(Join(1).first, b"")


class Errors(SynchronousTestCase):
    def test_one_tree(self) -> None:
        for name in vars(errors):
            found = getattr(errors, name)
            if isinstance(found, type):
                self.assertTrue(issubclass(found, errors.Layer8Error), name)

    def test_limit_names_itself(self) -> None:
        error = errors.LimitExceeded("SNIFF_TLS", 65536)
        self.assertIsInstance(error, errors.RemoteProtocolError)
        self.assertIn("SNIFF_TLS", str(error))
        self.assertIn("65536", str(error))
