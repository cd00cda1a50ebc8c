"""Events for those who asked: a bounded queue per subscriber, the oldest dropped and counted, coalescing by key.

Nothing here has a clock or a socket. `publish` puts a note into the queues of those who want it and calls their
`ready`; the owner of a queue takes what is due as fast as its peer reads, and comes back at `deadline()` for events
that were held back by `every_ms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from attrs import define, field, frozen

from layer8.control.errors import NoCapacity, NotFound

EVENT_QUEUE: Final = 256  # notes that wait for one subscriber
SUBSCRIPTIONS: Final = 32  # per subscriber
ENVELOPE: Final = 512  # bytes of a message around an event's data, at most


@frozen
class EventLost:
    """How many events of a subscription were dropped because they were not taken in time."""

    subscription: int
    count: int


class Note(NamedTuple):
    """One event as it happened; `key` is what `every_ms` coalesces by, `text` its data as JSON, encoded once."""

    name: str
    at: str
    data: Mapping[str, Any]
    text: bytes
    key: object


class Delivery(NamedTuple):
    """One event on its way to one subscription; `seq` counts what was sent to it, from 1."""

    subscription: int
    seq: int
    note: Note


@define(eq=False)
class _Subscription:
    number: int
    names: frozenset[str]
    every: float
    match: tuple[tuple[str, Any], ...]
    seq: int = 0
    lost: int = 0
    lost_at: str = ""
    due: float = field(default=float("-inf"))

    def lose(self, note: Note) -> None:
        self.lost += 1
        self.lost_at = note.at

    def wants(self, note: Note) -> bool:
        data = note.data
        return all(type(data.get(name)) is type(value) and data.get(name) == value for name, value in self.match)


class Subscriber:
    """One connection's subscriptions and the events that wait for it, never more than EVENT_QUEUE."""

    def __init__(self, ready: Callable[[], None], message: int) -> None:
        """Take what to call when something came to wait, and the largest message its peer takes, in bytes."""
        self._ready = ready
        self._message = message
        self._next = 1
        self._subscriptions: dict[int, _Subscription] = {}
        self._waiting: dict[object, tuple[_Subscription, Note]] = {}
        self._serial = 0

    def __len__(self) -> int:
        """Count the events that wait."""
        return len(self._waiting)

    @property
    def names(self) -> frozenset[str]:
        """The events that any of the subscriptions wants."""
        return frozenset(name for subscription in self._subscriptions.values() for name in subscription.names)

    def deadline(self) -> float | None:
        """Give the monotonic second at which `take` will give something, or None; in the past means now."""
        times = [subscription.due for subscription, _ in self._waiting.values()]
        times += [0.0 for subscription in self._subscriptions.values() if subscription.lost]
        return min(times, default=None)

    def take(self, now: float, most: int = EVENT_QUEUE) -> list[Delivery]:
        """Take up to `most` events that are due, in order, what was lost before first."""
        taken: list[Delivery] = []
        for subscription in self._subscriptions.values():
            if subscription.lost and len(taken) < most:
                taken.append(self._lost(subscription))
        for token in list(self._waiting):
            if len(taken) >= most:
                break
            subscription, note = self._waiting[token]
            if subscription.due > now:
                continue
            del self._waiting[token]
            subscription.seq += 1
            taken.append(Delivery(subscription.number, subscription.seq, note))
        for delivery in taken:
            served = self._subscriptions[delivery.subscription]
            if served.every and delivery.note.name != "event.lost":
                served.due = now + served.every
        return taken

    def _lost(self, subscription: _Subscription) -> Delivery:
        count, subscription.lost = subscription.lost, 0
        subscription.seq += 1
        data = {"subscription": subscription.number, "count": count}
        text = f'{{"subscription":{subscription.number},"count":{count}}}'.encode()
        note = Note("event.lost", subscription.lost_at, data, text, None)
        return Delivery(subscription.number, subscription.seq, note)

    def _add(self, names: Iterable[str], every: float, match: Mapping[str, Any]) -> _Subscription:
        if len(self._subscriptions) >= SUBSCRIPTIONS:
            raise NoCapacity("SUBSCRIPTIONS")
        added = _Subscription(self._next, frozenset(names), every, tuple(match.items()))
        self._subscriptions[added.number] = added
        self._next += 1
        return added

    def _remove(self, number: int) -> _Subscription:
        removed = self._subscriptions.pop(number, None)
        if removed is None:
            raise NotFound("subscription")
        self._waiting = {token: entry for token, entry in self._waiting.items() if entry[0] is not removed}
        return removed

    def _offer(self, subscription: _Subscription, note: Note) -> None:
        if not subscription.wants(note):
            return
        if len(note.text) + ENVELOPE > self._message:
            subscription.lose(note)
            self._ready()
            return
        if subscription.every:
            token: object = (subscription.number, note.name, note.key)
        else:
            self._serial += 1
            token = self._serial
        if token not in self._waiting and len(self._waiting) >= EVENT_QUEUE:
            dropped, oldest = self._waiting.pop(next(iter(self._waiting)))
            dropped.lose(oldest)
        self._waiting[token] = (subscription, note)
        self._ready()


class Hub:
    """Which subscriptions want which event."""

    def __init__(self) -> None:
        """Start with nobody."""
        self._wanting: dict[str, list[tuple[Subscriber, _Subscription]]] = {}

    def wanted(self, name: str) -> bool:
        """Say whether anybody has subscribed to this event."""
        return name in self._wanting

    def publish(self, note: Note) -> None:
        """Put a note into the queue of everybody who wants it."""
        for subscriber, subscription in tuple(self._wanting.get(note.name, ())):
            subscriber._offer(subscription, note)

    def subscribe(self, subscriber: Subscriber, names: Iterable[str], every: float, match: Mapping[str, Any]) -> int:
        """Add a subscription and give its number; `every` is the least time between deliveries, in seconds."""
        added = subscriber._add(names, every, match)
        for name in added.names:
            self._wanting.setdefault(name, []).append((subscriber, added))
        return added.number

    def unsubscribe(self, subscriber: Subscriber, number: int) -> None:
        """Remove one subscription with all that waits for it; raises NotFound."""
        removed = subscriber._remove(number)
        for name in removed.names:
            left = [entry for entry in self._wanting[name] if entry[1] is not removed]
            if left:
                self._wanting[name] = left
            else:
                del self._wanting[name]

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a subscriber whose connection is gone."""
        for number in tuple(subscriber._subscriptions):
            self.unsubscribe(subscriber, number)
