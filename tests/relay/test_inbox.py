"""The inbox at the end of circuits: whose word is taken, how often, and how much is kept."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.core.roles import Answers
from layer8.crypto.keys import NodeKey
from layer8.relay.inbox import LETTER_BURST, LETTER_RATE, LETTERS, Inbox
from layer8.relay.memory import INBOX, Letter
from layer8.relay.wire import TEXT_MOST, Command, Text
from tests.descriptors import FakeAsker

NETWORK = b"networks"
HERE = NodeKey.from_seed(bytes(32)).node_id
NOW = 1_800_000_000.0


class InboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        nobody: Any = None
        self.kept: list[Letter] = []
        self.now = 0.0
        self.inbox = Inbox(HERE, NETWORK, nobody, lambda: NOW, lambda: 0.0, bytes, self.kept.append)

    def take(self, text: Text, circuit: int = 1) -> list[tuple[int, bytes]]:
        asker = FakeAsker(circuit=circuit)
        self.inbox.asked(asker, Command.MESSAGE, text.encode(), self.now)
        return asker.got

    def signed(self, key: NodeKey, text: bytes, *, number: bytes = b"n" * 16, to: bytes = HERE) -> Text:
        inbox = Inbox(to, NETWORK, self.inbox._client, lambda: NOW, lambda: 0.0, bytes)
        return Text(number, text, key.node_id, key.sign(inbox._signed(to, number, text)))

    def test_it_is_a_role(self) -> None:
        role: Answers = self.inbox
        self.assertEqual(role.commands, {7})

    def test_one_that_is_signed_and_one_that_is_not(self) -> None:
        key = NodeKey.make()
        self.assertEqual(self.take(Text(b"a" * 16, b"hello")), [(8, b"a" * 16)])
        self.assertEqual(self.take(self.signed(key, b"it is me")), [(8, b"n" * 16)])
        said = [(letter.sender, letter.text) for letter in self.inbox.letters]
        self.assertEqual(said, [(b"", b"hello"), (key.node_id, b"it is me")])
        self.assertEqual(self.kept, self.inbox.letters)

    def test_the_same_one_is_kept_once_and_acknowledged_again(self) -> None:
        for _ in range(2):
            self.assertEqual(self.take(Text(b"a" * 16, b"hello")), [(8, b"a" * 16)])
        self.assertEqual(len(self.inbox.letters), 1)

    def test_words_of_somebody_else(self) -> None:
        key = NodeKey.make()
        good = self.signed(key, b"yes")
        for bad in (
            Text(good.number, b"no", good.sender, good.signature),
            Text(b"m" * 16, good.text, good.sender, good.signature),
            Text(good.number, good.text, NodeKey.make().node_id, good.signature),
            self.signed(key, b"yes", to=NodeKey.make().node_id),  # said to another node, and passed on
        ):
            with self.assertRaises(RemoteProtocolError):
                self.take(bad)
        self.assertEqual(self.inbox.letters, [])

    def test_so_many_by_one_circuit(self) -> None:
        for number in range(LETTERS):
            self.take(Text(b"%016d" % number, b""))
        with self.assertRaises(LimitExceeded):
            self.take(Text(b"x" * 16, b""))
        self.assertEqual(len(self.take(Text(b"y" * 16, b""), circuit=2)), 1)
        self.inbox.gone(1)
        self.assertEqual(len(self.take(Text(b"z" * 16, b""))), 1)

    def test_so_many_a_second_whoever_brings_them(self) -> None:
        for number in range(LETTER_BURST):
            self.take(Text(b"%016d" % number, b""), circuit=number)
        with self.assertRaises(LimitExceeded):
            self.take(Text(b"x" * 16, b""), circuit=LETTER_BURST)
        self.now += 2.5 / LETTER_RATE
        for number in (1, 2):
            self.take(Text(b"%016d" % number, b""), circuit=LETTER_BURST + number)
        with self.assertRaises(LimitExceeded):
            self.take(Text(b"x" * 16, b""), circuit=LETTER_BURST + 3)

    def test_so_many_are_kept(self) -> None:
        for number in range(INBOX + 3):
            self.now += 1
            self.take(Text(b"%016d" % number, b""), circuit=number)
        numbers = [letter.number for letter in self.inbox.letters]
        self.assertEqual((len(numbers), numbers[0], numbers[-1]), (INBOX, b"%016d" % 3, b"%016d" % (INBOX + 2)))
        self.take(Text(b"%016d" % 0, b"once more"), circuit=9999)  # nobody remembers that it was here
        self.assertEqual(self.inbox.letters[-1].text, b"once more")

    def test_a_text_that_is_too_long_is_not_sent(self) -> None:
        sent = Deferred.fromCoroutine(self.inbox.send("somebody", "ä" * (TEXT_MOST // 2 + 1)))
        self.failureResultOf(sent, LimitExceeded)
