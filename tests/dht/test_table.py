"""Who gets a place in the table, who keeps it, and who waits."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.dht.limits import DHT_K, FAILURES, FRESH, PER_TABLE_NEAR, REPLACEMENTS
from layer8.dht.table import Entry, Table
from layer8.dht.wire import Contact

OWN = bytes(20)


def contact(number: int, *, prefix: int = 0x80, host: str = "") -> Contact:
    """Give a contact whose id begins with a byte."""
    place = host or f"{20 + number // 65536}.{number // 256 % 256}.{number % 256}.1"
    return Contact(bytes((prefix,)) + number.to_bytes(19, "big"), place, 9000)


def entry(number: int, *, prefix: int = 0x80, host: str = "", now: float = 0.0) -> Entry:
    """Give an entry of one."""
    return Entry(contact(number, prefix=prefix, host=host), since=now, seen=now)


class TableTests(SynchronousTestCase):
    def test_a_bucket_holds_eight_and_the_oldest_stay(self) -> None:
        table = Table(OWN)
        self.assertEqual([table.add(entry(n)) for n in range(10)], [True] * DHT_K + [False] * 2)
        self.assertEqual([one.contact for one in table], [contact(n) for n in range(DHT_K)])
        self.assertTrue(table.add(entry(11, prefix=0x40)))
        self.assertEqual(len(table), DHT_K + 1)

    def test_a_place_is_free_when_somebody_fails(self) -> None:
        table = Table(OWN)
        for n in range(10):
            table.add(entry(n))
        for _ in range(FAILURES - 1):
            table.failed(contact(3))
        self.assertIsNotNone(table.get(contact(3).id))
        table.failed(contact(3))
        self.assertIsNone(table.get(contact(3).id))
        self.assertIsNotNone(table.get(contact(9).id), "the youngest of those who wait")
        self.assertIsNone(table.get(contact(8).id))

    def test_an_answer_forgives(self) -> None:
        table = Table(OWN)
        table.add(entry(1))
        for _ in range(FAILURES * 3):
            table.failed(contact(1))
            table.add(entry(1))
            self.assertIsNotNone(table.answered(contact(1), 1.0, 0.1))

    def test_no_more_wait_than_may(self) -> None:
        table = Table(OWN)
        for n in range(DHT_K + REPLACEMENTS):
            self.assertTrue(table.wants(contact(n)))
            table.add(entry(n))
        self.assertFalse(table.wants(contact(99)))

    def test_networks(self) -> None:
        """One node of an address, two of a /24 in a bucket, eight in all; none of it where there are no rules."""
        table, free = Table(OWN), Table(OWN, ruled=False)
        for one in (table, free):
            one.add(entry(1, host="9.9.9.1"))
        self.assertFalse(table.wants(contact(2, prefix=0x40, host="9.9.9.1")))
        self.assertTrue(table.add(entry(3, host="9.9.9.2")))
        self.assertFalse(table.add(entry(4, host="9.9.9.3")))
        for n in range(3, PER_TABLE_NEAR + 4):
            table.add(entry(n, prefix=0x80 >> (n // 2), host=f"9.9.9.{n + 10}"))
        self.assertEqual(len(table), PER_TABLE_NEAR)
        for n in range(2, 9):
            free.add(Entry(Contact(contact(n).id, "9.9.9.1", 9000 + n)))
        self.assertEqual(len(free), 8)

    def test_one_address_has_one_id_and_one_id_one_address(self) -> None:
        for ruled in (True, False):
            table = Table(OWN, ruled)
            table.add(entry(1))
            self.assertFalse(table.add(Entry(Contact(contact(1).id, "9.9.9.9", 1))))
            self.assertFalse(table.wants(Contact(contact(2).id, *contact(1).peer)))
            table.drop(Contact(contact(1).id, "9.9.9.9", 1))
            self.assertEqual(table.at(contact(1).peer), table.get(contact(1).id))
            self.assertEqual(len(table), 1)

    def test_not_ourselves(self) -> None:
        self.assertFalse(Table(OWN).add(Entry(Contact(OWN, "9.9.9.9", 1))))

    def test_stale(self) -> None:
        table = Table(OWN)
        table.add(entry(1, now=5.0))
        table.add(entry(2, now=3.0))
        self.assertIsNone(table.stale(FRESH))
        self.assertEqual(table.stale(FRESH + 5.0), table.get(contact(2).id))

    @given(st.integers(0, 2**32), st.binary(min_size=20, max_size=20))
    def test_closest(self, seed: int, target: bytes) -> None:
        chance, table = Random(seed), Table(OWN)
        for n in range(60):
            table.add(Entry(Contact(chance.randbytes(20), f"20.{n}.0.1", 9000)))
        wanted = int.from_bytes(target, "big")
        right = sorted(one.contact.number ^ wanted for one in table)[:DHT_K]
        self.assertEqual([one.contact.number ^ wanted for one in table.closest(target)], right)
