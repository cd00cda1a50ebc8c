"""Messages and descriptors between processes: whole or not at all, and nothing is left open."""

import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from layer8.core.errors import TimedOut, Unavailable
from layer8.net.courier import DESCRIPTORS, MESSAGE, WAITING, Courier, pair, peer_uid, receive, send_now


class CourierTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.heard: list[tuple[bytes, list[int]]] = []
        self.ended = 0
        self.ours, self.theirs = pair()
        self.courier = Courier(reactor, self.ours, lambda message, fds: self.heard.append((message, fds)), self.lost)
        self.addCleanup(self.courier.close)
        self.addCleanup(self.theirs.close)

    def lost(self) -> None:
        self.ended += 1

    async def until(self, true: Any) -> None:
        while not true():
            waiting: Deferred[None] = Deferred()
            self.reactor.callLater(0.005, waiting.callback, None)
            await waiting

    async def test_messages_keep_their_borders(self) -> None:
        for size in (1, 2, MESSAGE):
            send_now(self.theirs, b"x" * size)
        await self.until(lambda: len(self.heard) == 3)
        self.assertEqual([len(message) for message, _ in self.heard], [1, 2, MESSAGE])
        self.assertTrue(self.courier.send(b"hello"))
        self.assertEqual(receive(self.theirs, 1), (b"hello", []))

    async def test_descriptors(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.courier.send(b"a listener", [listener.fileno()])
        _, (number,) = receive(self.theirs, 1)
        listener.close()
        with socket.socket(fileno=number) as taken:
            self.assertTrue(taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            self.assertFalse(os.get_inheritable(number))
            send_now(self.theirs, b"and back", [number])
        await self.until(lambda: self.heard)
        self.assertEqual(self.heard[0][0], b"and back")
        os.close(self.heard[0][1][0])

    async def test_one_that_does_not_read(self) -> None:
        """What waits is sent later, with descriptors that are closed here meanwhile; too much of it is the end."""
        read, write = os.pipe()
        sent = 0
        while self.courier.send(b"x" * 1000) and not self.courier._queue:
            sent += 1
        self.courier.send(b"last", [write])
        os.close(write)
        got: list[tuple[bytes, list[int]]] = []

        def take() -> bool:
            try:
                got.append(receive(self.theirs, 0))
            except TimedOut:
                return False
            return got[-1][0] == b"last"

        await self.until(take)
        self.assertEqual(len(got), sent + 2)
        os.write(got[-1][1][0], b"!")
        self.assertEqual(os.read(read, 2), b"!")
        for number in (read, got[-1][1][0]):
            os.close(number)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(WAITING * 4):
            if not self.courier.send(b"x" * 1000, [0]):
                break
        self.assertFalse(self.courier.open)
        self.assertEqual(self.ended, 1)
        self.assertFalse(self.courier.send(b"x"))
        self.assertLess(len(os.listdir("/proc/self/fd")), before)

    async def test_the_end(self) -> None:
        self.theirs.close()
        await self.until(lambda: self.ended)
        self.assertFalse(self.courier.open)
        self.assertEqual(self.courier.fileno(), -1)
        ours, theirs = pair()
        theirs.close()
        self.assertRaises(Unavailable, send_now, ours, b"x")
        self.assertRaises(Unavailable, receive, ours, 1)
        ours.close()

    async def test_last_words(self) -> None:
        """What was said before the end is heard, also by somebody who learns of the end in another way first."""
        for number in range(150):
            send_now(self.theirs, b"%d" % number)
        self.theirs.close()
        self.courier.finish()
        self.assertEqual([message for message, _ in self.heard], [b"%d" % number for number in range(150)])
        self.assertEqual((self.courier.open, self.ended), (False, 0))

    def test_limits(self) -> None:
        for message, numbers in ((b"", []), (b"x" * (MESSAGE + 1), []), (b"x", [0] * (DESCRIPTORS + 1))):
            self.assertRaises(ValueError, self.courier.send, message, numbers)
        self.assertRaises(TimedOut, receive, self.theirs, 0.01)
        self.assertEqual(peer_uid(self.theirs), os.getuid())

    async def test_too_much_is_no_message(self) -> None:
        """Whoever sends what does not fit is no courier of ours; what came with it is closed."""
        self.theirs.send(b"x" * (MESSAGE + 100))
        await self.until(lambda: self.ended)
        self.assertEqual(self.heard, [])
