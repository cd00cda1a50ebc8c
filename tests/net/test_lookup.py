"""Names to addresses: asked once, a few at the same time, and nobody waits for long."""

import socket
import time
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.net import lookup
from layer8.net.lookup import AT_ONCE, TIME, Asking, Lookups, literal


class Resolver(Clock):
    """A clock whose resolver answers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = self
        self.running: dict[str, Any] = {}
        self.asked: list[str] = []

    def resolveHostName(self, receiver: Any, host: str, port: int) -> None:
        self.asked.append(host)
        self.running[host] = receiver

    def answer(self, host: str, *found: str) -> None:
        receiver = self.running.pop(host)
        receiver.resolutionBegan(None)
        for address in found:
            kind = IPv6Address if ":" in address else IPv4Address
            receiver.addressResolved(kind("TCP", address, 0))
        receiver.resolutionComplete()


class LookupTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.resolver = Resolver()
        self.lookups = Lookups(self.resolver)
        self.told: list[tuple[str, list[Any]]] = []
        self.now = 100.0
        self.patch(time, "monotonic", lambda: self.now)

    def find(self, host: str) -> Asking | None:
        return self.lookups.find(host, lambda found: self.told.append((host, [where[0] for _, where in found])))

    def test_those_who_ask_for_the_same_wait_together(self) -> None:
        for _ in range(3):
            self.find("a.test")
        self.assertEqual((self.resolver.asked, self.told), (["a.test"], []))
        self.resolver.answer("a.test", "2001:db8::1", "192.0.2.1")
        self.assertEqual(self.told, [("a.test", ["192.0.2.1", "2001:db8::1"])] * 3)
        self.assertEqual(self.resolver.getDelayedCalls(), [])

    def test_an_answer_is_kept_for_a_while(self) -> None:
        self.find("a.test")
        self.resolver.answer("a.test", "192.0.2.1")
        self.now += 29
        self.find("a.test")
        self.assertEqual((len(self.told), self.resolver.asked), (2, ["a.test"]))
        self.now += 2
        self.find("a.test")
        self.assertEqual(self.resolver.asked, ["a.test"] * 2)

    def test_nothing_found_is_kept_for_a_moment(self) -> None:
        self.find("a.test")
        self.resolver.answer("a.test")
        self.find("a.test")
        self.assertEqual((self.told, self.resolver.asked), ([("a.test", [])] * 2, ["a.test"]))
        self.now += 1.1
        self.find("a.test")
        self.assertEqual(self.resolver.asked, ["a.test"] * 2)

    def test_a_few_at_the_same_time(self) -> None:
        for number in range(AT_ONCE + 3):
            self.find(f"{number}.test")
        self.assertEqual(len(self.resolver.running), AT_ONCE)
        self.resolver.answer("0.test", "192.0.2.1")
        self.assertEqual(self.resolver.asked[-1], f"{AT_ONCE}.test")
        self.assertEqual(len(self.resolver.running), AT_ONCE)

    def test_nobody_waits_for_long(self) -> None:
        for number in range(AT_ONCE + 1):
            self.find(f"{number}.test")
        self.resolver.advance(TIME)
        self.assertEqual(len(self.told), AT_ONCE + 1)
        self.assertEqual({tuple(found) for _, found in self.told}, {()})
        self.resolver.answer("0.test", "192.0.2.1")
        self.assertEqual(len(self.resolver.running), AT_ONCE - 1, "who is not waited for is not looked up")
        self.find("0.test")
        self.assertEqual(self.told[-1], ("0.test", ["192.0.2.1"]), "what came late is good for the next")

    def test_a_name_that_hangs_is_asked_for_once(self) -> None:
        for _ in range(5):
            self.find("dead.test")
            self.resolver.advance(TIME)
        self.assertEqual(self.resolver.asked, ["dead.test"])
        self.find("dead.test")
        self.resolver.answer("dead.test", "192.0.2.1")
        self.assertEqual(self.told, [("dead.test", [])] * 5 + [("dead.test", ["192.0.2.1"])])

    def test_who_is_gone_is_told_nothing(self) -> None:
        first, second = self.find("a.test"), self.find("a.test")
        assert first is not None
        assert second is not None
        first.cancel()
        first.cancel()
        self.resolver.answer("a.test", "192.0.2.1")
        self.assertEqual(len(self.told), 1)
        second.cancel()
        third = self.find("b.test")
        assert third is not None
        third.cancel()
        self.assertEqual(self.resolver.getDelayedCalls(), [])
        self.resolver.answer("b.test", "192.0.2.1")
        self.assertEqual((len(self.told), self.lookups._waiting), (1, 0))

    def test_how_many_may_wait(self) -> None:
        self.patch(lookup, "WAITING", 3)
        for _ in range(5):
            self.find("a.test")
        self.assertEqual(self.told, [("a.test", [])] * 2)
        self.resolver.answer("a.test", "192.0.2.1")
        self.assertEqual(self.told[2:], [("a.test", ["192.0.2.1"])] * 3)
        for _ in range(3):
            self.find("b.test")
        self.assertEqual(len(self.told), 5)

    def test_memory(self) -> None:
        for number in range(lookup.NAMES + 10):
            self.find(f"{number}.test")
            self.resolver.answer(f"{number}.test", "192.0.2.1")
        self.assertLessEqual(len(self.lookups._kept), lookup.NAMES)

    def test_literals(self) -> None:
        self.assertEqual(literal("192.0.2.1", 80), (socket.AF_INET, ("192.0.2.1", 80)))
        self.assertEqual(literal("2001:db8::1", 80), (socket.AF_INET6, ("2001:db8::1", 80)))
        self.assertIsNone(literal("a.test", 80))
