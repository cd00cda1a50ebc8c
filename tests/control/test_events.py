"""Events: bounded queues, coalescing, filters, and nothing computed for nobody."""

from __future__ import annotations

import resource
from typing import Any

from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.errors import Forbidden, NoCapacity, NotFound
from layer8.control.events import EVENT_QUEUE, SUBSCRIPTIONS, Delivery, Subscriber
from layer8.control.jsonrpc import encode_event, parse
from layer8.control.table import Event, Table
from tests.control.callers import caller

NOW = 1_790_000_000.5


@frozen
class Circuit:
    """A circuit changed."""

    circuit: int
    state: str
    hops: int | None = None


@frozen
class Line:
    """A line of text."""

    text: str


class Relay:
    owns = ("relay", "log")
    events = (
        Event("relay.circuit", Circuit, key="circuit"),
        Event("relay.link", Circuit),
        Event("log.line", Line, role="operate"),
    )


class Stall:
    """A table with one module, and subscribers whose `ready` is counted."""

    def __init__(self) -> None:
        self.readies = 0
        self.table = Table(lambda: NOW)
        self.table.add(Relay())

    def ready(self) -> None:
        self.readies += 1

    def subscriber(self, message: int = 65536) -> Subscriber:
        return Subscriber(self.ready, message)

    def subscribe(self, subscriber: Subscriber, *names: str, every_ms: int = 0, **match: Any) -> int:
        return self.table.subscribe(caller("operate"), subscriber, names, every_ms, match)


def told(deliveries: list[Delivery]) -> list[tuple[int, int, str, Any]]:
    return [(sub, seq, note.name, dict(note.data)) for sub, seq, note in deliveries]


class Subscribing(SynchronousTestCase):
    """Who hears what."""

    def setUp(self) -> None:
        self.stall = Stall()
        self.table = self.stall.table

    def test_only_what_was_subscribed(self) -> None:
        subscriber = self.stall.subscriber()
        number = self.stall.subscribe(subscriber, "relay.circuit")
        self.table.publish("relay.circuit", Circuit(1, "up"))
        self.table.publish("relay.link", Circuit(2, "up"))
        self.assertEqual(told(subscriber.take(0.0)), [(number, 1, "relay.circuit", {"circuit": 1, "state": "up"})])
        self.assertEqual(subscriber.take(0.0), [])

    def test_as_a_message(self) -> None:
        subscriber = self.stall.subscriber()
        self.stall.subscribe(subscriber, "log.line")
        self.table.publish("log.line", Line("ä \x1b[31m"))
        message = parse(encode_event(subscriber.take(0.0)[0]))
        self.assertEqual(message.method, "event")  # type: ignore[union-attr]
        self.assertEqual(
            message.params,  # type: ignore[union-attr]
            {
                "subscription": 1,
                "seq": 1,
                "name": "log.line",
                "at": "2026-09-21T14:13:20.500Z",
                "data": {"text": "ä \x1b[31m"},
            },
        )

    def test_nothing_is_computed_for_nobody(self) -> None:
        self.table.publish("relay.circuit", object())  # would be a TypeError if it were looked at
        self.assertFalse(self.table.wanted("relay.circuit"))
        subscriber = self.stall.subscriber()
        number = self.stall.subscribe(subscriber, "relay.circuit", "relay.link")
        self.assertTrue(self.table.wanted("relay.circuit"))
        with self.assertRaises(TypeError):
            self.table.publish("relay.circuit", object())
        self.table.unsubscribe(subscriber, number)
        self.assertFalse(self.table.wanted("relay.circuit"))
        self.assertFalse(self.table.wanted("relay.link"))

    def test_the_filter(self) -> None:
        subscriber = self.stall.subscriber()
        self.stall.subscribe(subscriber, "relay.circuit", circuit=2, state="up")
        for circuit, state in ((1, "up"), (2, "down"), (2, "up")):
            self.table.publish("relay.circuit", Circuit(circuit, state))
        self.assertEqual([note.data["circuit"] for _, _, note in subscriber.take(0.0)], [2])

    def test_a_filter_is_exact_about_types(self) -> None:
        for value in (True, 1.0, "1", None):
            subscriber = self.stall.subscriber()
            self.stall.subscribe(subscriber, "relay.circuit", circuit=value)
            self.table.publish("relay.circuit", Circuit(1, "up"))
            self.assertEqual(len(subscriber), 0, value)

    def test_the_role_of_each_event(self) -> None:
        subscriber = self.stall.subscriber()
        with self.assertRaises(Forbidden) as raised:
            self.table.subscribe(caller("read"), subscriber, ["relay.circuit", "log.line"])
        self.assertEqual(raised.exception.data, {"need": "operate"})
        self.assertFalse(self.table.wanted("relay.circuit"))
        with self.assertRaises(NotFound):
            self.table.subscribe(caller("admin"), subscriber, ["no.such"])

    def test_as_many_subscriptions_as_the_limit(self) -> None:
        subscriber = self.stall.subscriber()
        for _ in range(SUBSCRIPTIONS):
            self.stall.subscribe(subscriber, "relay.link")
        with self.assertRaises(NoCapacity) as raised:
            self.stall.subscribe(subscriber, "relay.link")
        self.assertEqual(raised.exception.data, {"limit": "SUBSCRIPTIONS"})
        self.table.leave(subscriber)
        self.assertFalse(self.table.wanted("relay.link"))

    def test_another_connections_subscription_cannot_be_ended(self) -> None:
        mine, other = self.stall.subscriber(), self.stall.subscriber()
        self.stall.subscribe(mine, "relay.link")
        self.assertRaises(NotFound, self.table.unsubscribe, other, 1)
        self.assertRaises(NotFound, self.table.unsubscribe, mine, 2)

    def test_ending_one_forgets_what_waits_for_it(self) -> None:
        subscriber = self.stall.subscriber()
        first = self.stall.subscribe(subscriber, "relay.link")
        second = self.stall.subscribe(subscriber, "relay.link")
        self.table.publish("relay.link", Circuit(1, "up"))
        self.table.unsubscribe(subscriber, first)
        self.assertEqual([delivery.subscription for delivery in subscriber.take(0.0)], [second])

    def test_an_event_that_goes_away_and_comes_back(self) -> None:
        subscriber, module = self.stall.subscriber(), Relay()
        self.stall.subscribe(subscriber, "relay.link")
        self.table.remove(module)
        self.table.publish("relay.link", Circuit(1, "up"))
        self.assertEqual(len(subscriber), 0)
        self.table.add(module)
        self.table.publish("relay.link", Circuit(1, "up"))
        self.assertEqual(len(subscriber), 1)


class Coalescing(SynchronousTestCase):
    """`every_ms`: the latest state of each key, not each change."""

    def setUp(self) -> None:
        self.stall = Stall()
        self.subscriber = self.stall.subscriber()
        self.stall.subscribe(self.subscriber, "relay.circuit", every_ms=500)

    def publish(self, circuit: int, state: str) -> None:
        self.stall.table.publish("relay.circuit", Circuit(circuit, state))

    def take(self, now: float) -> list[tuple[int, str]]:
        return [(note.data["circuit"], note.data["state"]) for _, _, note in self.subscriber.take(now)]

    def test_the_latest_of_each_key(self) -> None:
        for circuit, state in ((1, "a"), (2, "a"), (1, "b"), (2, "b"), (1, "c")):
            self.publish(circuit, state)
        self.assertEqual(self.take(10.0), [(1, "c"), (2, "b")])

    def test_not_before_its_time(self) -> None:
        self.publish(1, "a")
        self.assertEqual(self.take(10.0), [(1, "a")])
        self.assertIsNone(self.subscriber.deadline())
        self.publish(1, "b")
        self.assertEqual(self.subscriber.deadline(), 10.5)
        self.assertEqual(self.take(10.4), [])
        self.publish(1, "c")
        self.assertEqual(self.take(10.5), [(1, "c")])

    def test_others_are_not_held_up(self) -> None:
        self.stall.subscribe(self.subscriber, "relay.link")
        self.publish(1, "a")
        self.take(10.0)
        self.publish(1, "b")
        self.stall.table.publish("relay.link", Circuit(9, "x"))
        self.assertEqual(self.take(10.1), [(9, "x")])
        self.assertEqual(self.subscriber.deadline(), 10.5)


class Slow(SynchronousTestCase):
    """A subscriber that does not read: bounded, and told what it missed."""

    def test_the_oldest_go_and_are_counted(self) -> None:
        stall = Stall()
        subscriber = stall.subscriber()
        number = stall.subscribe(subscriber, "relay.link")
        for circuit in range(1000):
            stall.table.publish("relay.link", Circuit(circuit, "up"))
        self.assertEqual(len(subscriber), EVENT_QUEUE)
        first, *rest = told(subscriber.take(0.0, EVENT_QUEUE + 1))
        self.assertEqual(first, (number, 1, "event.lost", {"subscription": number, "count": 1000 - EVENT_QUEUE}))
        self.assertEqual([data["circuit"] for *_, data in rest], list(range(1000 - EVENT_QUEUE, 1000)))
        self.assertEqual([seq for _, seq, _, _ in rest], list(range(2, EVENT_QUEUE + 2)))
        self.assertEqual(subscriber.take(0.0), [])

    def test_loss_is_told_even_when_nothing_waits(self) -> None:
        stall = Stall()
        subscriber = stall.subscriber(message=1024)
        number = stall.subscribe(subscriber, "log.line")
        stall.table.publish("log.line", Line("x" * 2000))
        self.assertEqual(len(subscriber), 0)
        self.assertIsNotNone(subscriber.deadline())
        deliveries = subscriber.take(0.0)
        self.assertEqual(told(deliveries), [(number, 1, "event.lost", {"subscription": number, "count": 1})])
        self.assertEqual(deliveries[0].note.at, "2026-09-21T14:13:20.500Z")
        self.assertIsNone(subscriber.deadline())

    def test_messages_stay_below_the_cap(self) -> None:
        stall = Stall()
        subscriber = stall.subscriber(message=1024)
        stall.subscribe(subscriber, "log.line")
        for size in range(400, 1100):
            stall.table.publish("log.line", Line("ä" * (size // 2)))
        for delivery in subscriber.take(0.0):
            self.assertLessEqual(len(encode_event(delivery)), 1024)

    def test_ten_minutes_of_a_stalled_subscriber_cost_no_memory(self) -> None:
        stall = Stall()
        subscriber = stall.subscriber()
        number = stall.subscribe(subscriber, "log.line")
        publish, text = stall.table.publish, "x" * 1000
        for _ in range(2 * EVENT_QUEUE):
            publish("log.line", Line(text))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(60_000):  # 100 a second
            publish("log.line", Line(text))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        self.assertLess(grown, 2048, "kB")
        self.assertEqual(len(subscriber), EVENT_QUEUE)
        lost = told(subscriber.take(0.0))[0]
        self.assertEqual(lost[3], {"subscription": number, "count": 60_000 + EVENT_QUEUE})

    @given(
        st.lists(st.tuples(st.sampled_from(["publish", "coalesced", "take", "time"]), st.integers(0, 400)), max_size=40)
    )
    def test_each_event_is_delivered_or_counted(self, steps: list[tuple[str, int]]) -> None:
        stall = Stall()
        subscriber = stall.subscriber()
        stall.subscribe(subscriber, "relay.link")
        stall.subscribe(subscriber, "relay.circuit", every_ms=1000)
        now, published, delivered, lost, seen = 0.0, 0, 0, 0, [0, 0]
        for step, count in [*steps, ("time", 400), ("take", 400), ("take", 400), ("take", 400)]:
            if step == "publish":
                for _ in range(count):
                    stall.table.publish("relay.link", Circuit(published, "up"))
                    published += 1
            elif step == "coalesced":
                stall.table.publish("relay.circuit", Circuit(count, "up"))
            elif step == "time":
                now += count / 100
            else:
                for subscription, seq, note in subscriber.take(now, count + 1):
                    self.assertEqual(seq, seen[subscription - 1] + 1)
                    seen[subscription - 1] = seq
                    if note.name == "event.lost" and subscription == 1:
                        lost += note.data["count"]
                    delivered += note.name == "relay.link"
            self.assertLessEqual(len(subscriber), EVENT_QUEUE)
        self.assertEqual(delivered + lost, published)
