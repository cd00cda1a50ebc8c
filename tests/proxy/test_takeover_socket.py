"""The takeover's socket: whose it is, what is never put in its place, and what is told of bytes."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.core.errors import Unavailable
from layer8.proxy.store import Carried
from layer8.proxy.takeover import Differences, Takeover, take_over


class TakeoverSocketTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "x.sock"

    def listen(self) -> Takeover:
        takeover = Takeover(MemoryReactor(), self.path, object(), lambda: None)
        takeover.startService()
        self.addCleanup(takeover.stopService)
        return takeover

    def test_it_is_its_users_alone(self) -> None:
        self.listen()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_a_stale_one_is_replaced(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
            stale.bind(os.fspath(self.path))
        self.assertIsNone(take_over(self.path))
        self.listen()

    def test_another_kind_of_file_is_not(self) -> None:
        self.path.write_text("a registration database, say")
        takeover = Takeover(MemoryReactor(), self.path, object(), lambda: None)
        self.assertRaises(Unavailable, takeover.startService)
        self.assertEqual(self.path.read_text(), "a registration database, say")

    def test_what_cannot_be_asked_is_said(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(os.fspath(self.path))
            other.listen()
            self.assertRaises(Unavailable, take_over, self.path)
        self.assertRaises(Unavailable, take_over, self.folder / ("x" * 200))


class DifferencesTests(TestCase):
    async def test_what_is_counted_twice_is_told_once(self) -> None:
        told: list[Mapping[str, Sequence[int]]] = []
        books = Differences({"a.test": Carried(10, 100)}, told.append)
        await books.carry({"a.test": Carried(11, 120), "b.test": Carried(1, 2)})
        await books.carry({"a.test": Carried(11, 120)})
        await books.carry({"a.test": Carried(15, 121)})
        self.assertEqual(told, [{"a.test": [1, 20], "b.test": [1, 2]}, {"a.test": [0, 0]}, {"a.test": [4, 1]}])
