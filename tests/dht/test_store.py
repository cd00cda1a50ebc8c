"""What is kept: the checks in their order, time, room, and sets that give a handful."""

from __future__ import annotations

from hashlib import sha1
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.items import Draft, Immutable, Item, Mutable, Record
from layer8.dht import store as stores
from layer8.dht.limits import HELD_LIFE, ITEM_LIFE, PER_SOURCE, REPUT, SET_ANSWER, SET_HOUR, SET_RECORDS, TOKEN_LIFE
from layer8.dht.store import Store
from layer8.dht.wire import Refusal
from tests.dht.nets import key

NOW = 1_800_000_000.0
HOST = "20.0.0.1"
TARGET = sha1(b"set").digest()


def mutable(seq: int = 1, data: bytes = b"value", salt: bytes = b"") -> Mutable:
    return Mutable.make(key(1).node_id, key(1).sign, seq, data, salt)


def record(number: int, effort: int = 1, expires: int = int(NOW) + 100_000) -> Record:
    return Draft.make(key(number), TARGET, 2, b"tag", expires, effort).record()


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store(bytes(32), ruled=False)

    def put(self, item: Item, host: str = HOST, now: float = NOW, **more: Any) -> Any:
        token = self.store.tokens.make(host, now)
        return self.store.put(item, host, more.pop("token", token), now, **more)

    def refused(self, item: Item, **more: Any) -> int:
        with self.assertRaises(Refusal) as caught:
            self.put(item, **more)
        return int(caught.exception.code)

    def test_put_and_get(self) -> None:
        for item in (mutable(), mutable(salt=b"s"), Immutable.of(b"value")):
            self.put(item)
            self.assertEqual(self.store.get(item.target, NOW), item)
        self.assertEqual(len(self.store), 3)

    def test_codes(self) -> None:
        """Section 12: nothing that is refused leaves a trace."""
        good = mutable(5)
        self.put(good)
        bad = Mutable(good.key, 6, good.signature, good.value)
        self.assertEqual(self.refused(Immutable(b"1000:" + bytes(1000))), 205)
        self.assertEqual(self.refused(Mutable(good.key, 6, good.signature, good.value, bytes(65))), 207)
        self.assertEqual(self.refused(bad), 206)
        self.assertEqual(self.refused(mutable(4)), 302)
        self.assertEqual(self.refused(mutable(5, b"another")), 302)
        self.assertEqual(self.refused(mutable(6), cas=4), 301)
        self.assertEqual(self.refused(mutable(6), token=bytes(8)), 203)
        self.assertEqual(self.store.get(good.target, NOW), good)
        self.put(mutable(6), cas=5)

    def test_the_order_of_the_checks(self) -> None:
        self.put(mutable(5))
        old = mutable(4, b"x")
        bad = Mutable(old.key, 4, bytes(64), b"1001:" + bytes(1001))
        self.assertEqual(self.refused(bad, token=bytes(8), cas=9), 205)
        bad = Mutable(old.key, 4, bytes(64), old.value)
        self.assertEqual(self.refused(bad, token=bytes(8), cas=9), 203)
        self.assertEqual(self.refused(bad, cas=9), 206)
        self.assertEqual(self.refused(old, cas=9), 302)

    def test_tokens(self) -> None:
        token = self.store.tokens.make(HOST, NOW)
        self.assertEqual(self.refused(mutable(), host="20.0.0.2", token=token), 203)
        self.assertEqual(self.refused(mutable(), token=token, now=NOW + TOKEN_LIFE), 203)
        self.put(mutable(), token=token, now=NOW + TOKEN_LIFE / 2 - 1)

    def test_expiry_and_a_put_that_resets_it(self) -> None:
        item = mutable()
        self.put(item)
        self.put(item, now=NOW + 3600)
        self.assertEqual(self.store.get(item.target, NOW + ITEM_LIFE + 3599), item)
        self.assertIsNone(self.store.get(item.target, NOW + ITEM_LIFE + 3600))
        self.store.prune(NOW + ITEM_LIFE + 3600)
        self.assertEqual((len(self.store), self.store.size, self.store._sources), (0, 0, {}))

    def test_due(self) -> None:
        """Holders put again what nobody has put for an hour, while its owner is not a day away."""
        self.put(mutable())
        self.put(mutable(salt=b"old"), age=int(HELD_LIFE))
        self.assertEqual(self.store.due(NOW + REPUT - 1), [])
        (due,) = self.store.due(NOW + REPUT)
        self.assertEqual(due.item, mutable())
        self.store.refresh(due, NOW + REPUT)
        self.assertEqual(self.store.due(NOW + REPUT), [])
        self.assertEqual(self.store.get(mutable().target, NOW + REPUT + ITEM_LIFE - 1), mutable())

    def test_holders_cannot_keep_each_other_s_items_for_ever(self) -> None:
        now = NOW
        for _ in range(100):
            self.put(mutable(), now=now, age=int(now - NOW))
            if not self.store.due(now + REPUT):
                break
            now += REPUT
        self.assertLess(now, NOW + HELD_LIFE + REPUT)

    def test_a_source_has_so_much_room(self) -> None:
        self.store = Store(bytes(32))
        for n in range(PER_SOURCE):
            self.put(Immutable.of(b"%d" % n), host=f"20.0.0.{n % 250}")
        self.assertEqual(self.refused(Immutable.of(b"more"), host="20.0.0.251"), 202)
        self.put(Immutable.of(b"0"), host="20.0.0.251")
        self.put(Immutable.of(b"more"), host="20.0.1.1")

    def test_room(self) -> None:
        self.patch(stores, "ITEMS", 2)
        self.put(Immutable.of(b"1"))
        self.put(Immutable.of(b"2"), now=NOW + 10)
        self.assertEqual(self.refused(Immutable.of(b"3"), now=NOW + 20), 202)
        self.put(Immutable.of(b"3"), now=NOW + ITEM_LIFE)
        self.patch(stores, "ITEM_BYTES", self.store.size)
        self.patch(stores, "ITEMS", 50)
        self.assertEqual(self.refused(Immutable.of(b"4"), now=NOW + ITEM_LIFE), 202)

    def test_sets(self) -> None:
        """G66: a handful, and asking again gives no more within the hour."""
        for n in range(40):
            self.put(record(n))
        first = self.store.records(TARGET, NOW)
        self.assertTrue(0 < len(first) <= SET_ANSWER)
        self.assertEqual(self.store.records(TARGET, NOW + 1), first)
        later = self.store.records(TARGET, NOW + SET_HOUR)
        self.assertNotEqual(later, first)
        self.assertNotEqual(set(later), set(first))
        self.assertIsNone(self.store.get(TARGET, NOW))

    def test_room_in_a_set_is_for_those_who_work(self) -> None:
        for n in range(SET_RECORDS):
            self.put(record(n, effort=10))
        self.assertEqual(self.refused(record(99, effort=10)), 202)
        self.put(record(99, effort=11))
        self.assertEqual(len(self.store), SET_RECORDS)

    def test_a_later_record_takes_the_place_of_an_earlier_one(self) -> None:
        self.put(record(1))
        self.put(record(1, expires=int(NOW) + 100_001))
        self.assertEqual(len(self.store), 1)
        self.assertEqual(self.refused(record(1)), 302)

    def test_records_without_work(self) -> None:
        self.store = Store(bytes(32))
        self.assertEqual(self.refused(record(1)), 206)

    def test_restart(self) -> None:
        for item in (mutable(), record(1), record(2)):
            self.put(item)
        again = Store(b"2" * 32)
        for held in self.store:
            again.restore(held, NOW + 10)
        self.assertEqual(again.get(mutable().target, NOW + 10), mutable())
        self.assertEqual(len(again.records(TARGET, NOW)), 2)
        self.assertEqual((again.size, again.changed), (self.store.size, set()))
        late = Store(b"2" * 32)
        for held in self.store:
            late.restore(held, NOW + ITEM_LIFE)
        self.assertEqual(len(late), 0)
