"""What a tracker lists, and how much of it anybody gets."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from layer8.crypto.descriptor import DESC_LIFE, LISTED, Descriptor, Role
from layer8.crypto.keys import NodeKey
from layer8.tracker import index
from layer8.tracker.index import Index
from layer8.tracker.limits import EXCUSED, PRUNE_EVERY
from layer8.tracker.wire import GetRelays, Status, Unpublish
from tests.descriptors import MAIN, NOW, TEST, EasyWork, key, told


def web(descriptor: Descriptor, port: int) -> bool:
    """Take everybody whose summary is this port."""
    return descriptor.exits == str(port).encode()


def listing(*descriptors: Descriptor, seed: int = 1) -> Index:
    """Make an index that lists these."""
    made = Index(MAIN, random.Random(seed), web)
    for one in descriptors:
        made.enlist(one, NOW)
    return made


class PublishTests(EasyWork):
    def test_a_relay_is_dialled_and_then_listed(self) -> None:
        one = told(1)
        made = listing()
        self.assertIsNone(made.judge(one, NOW))
        self.assertEqual(len(made), 0)
        self.assertIs(made.enlist(one, NOW), Status.LISTED)
        self.assertEqual((list(made), made.get(one.identity)), ([one], one))
        self.assertIs(made.judge(one, NOW), Status.LISTED)  # once more: nothing to do

    def test_rules_of_descriptors(self) -> None:
        made = listing()
        for bad in (told(1, TEST), told(2, now=NOW - DESC_LIFE), told(3, roles=Role.TRACKER), told(4, endpoints=())):
            self.assertIs(made.judge(bad, NOW), Status.BAD)
            self.assertIs(made.enlist(bad, NOW), Status.BAD)
        self.assertIsNone(made.judge(told(5, endpoints=(), via=(bytes(32),)), NOW))
        self.assertEqual(len(made), 0)

    def test_a_serial_only_rises(self) -> None:
        made = listing(told(1, serial=5))
        for serial in (4, 5):
            again = told(1, serial=serial, endpoints=("tcp:61.0.0.1:1",))
            self.assertIs(made.judge(again, NOW), Status.OLDER)
        self.assertIsNone(made.judge(told(1, serial=6, endpoints=("tcp:61.0.0.1:1",)), NOW))

    def test_the_same_addresses_need_no_dial_for_an_hour(self) -> None:
        made = listing(told(1))
        newer = told(1, serial=2, roles=Role.RELAY | Role.EXIT)
        self.assertIs(made.judge(newer, NOW + 60), Status.LISTED)
        self.assertEqual(list(made), [newer])
        self.assertIsNone(made.judge(told(1, serial=3), NOW + EXCUSED))

    def test_four_of_a_24_and_sixteen_of_a_16(self) -> None:
        near = [told(number, endpoints=(f"tcp:60.0.0.{number + 1}:9000",)) for number in range(5)]
        made = listing(*near[:4])
        self.assertIs(made.judge(near[4], NOW), Status.FULL)
        far = [told(number, endpoints=(f"tcp:60.0.{number}.1:9000",)) for number in range(10, 23)]
        for one in far[:12]:
            self.assertIs(made.enlist(one, NOW), Status.LISTED)
        self.assertIs(made.enlist(far[12], NOW), Status.FULL)
        again = told(0, serial=2, endpoints=("tcp:60.0.0.1:9001",))
        self.assertIs(made.enlist(again, NOW), Status.LISTED)  # its own place is free for it
        self.assertEqual(len(made), 16)

    def test_no_caps_in_a_network_for_tries(self) -> None:
        made = Index(TEST, random.Random(1), web)
        for number in range(30):
            made.enlist(told(number, TEST, endpoints=("tcp:127.0.0.1:9000",)), NOW)
        self.assertEqual(len(made), 30)

    def test_a_tracker_has_an_end(self) -> None:
        self.patch(index, "TRACKER_RELAYS", 3)
        made = listing(*map(told, range(3)))
        self.assertIs(made.judge(told(4), NOW), Status.FULL)
        self.assertIs(made.enlist(told(2, serial=2), NOW), Status.LISTED)

    def test_unpublish(self) -> None:
        """G28; what was signed before stays out, what is signed after comes back."""
        made = listing(told(1), told(2))
        self.assertIs(made.remove(Unpublish.make(key(3), MAIN, NOW), NOW), Status.UNKNOWN)
        forged = Unpublish(key(1).node_id, int(NOW), Unpublish.make(NodeKey.make(), MAIN, NOW).signature)
        self.assertIs(made.remove(forged, NOW), Status.BAD)
        self.assertIs(made.remove(Unpublish.make(key(1), MAIN, NOW - 700), NOW), Status.BAD)
        self.assertIs(made.remove(Unpublish.make(key(1), MAIN, NOW - 60), NOW), Status.OLDER)
        self.assertIs(made.remove(Unpublish.make(key(1), MAIN, NOW + 60), NOW + 60), Status.REMOVED)
        self.assertEqual(list(made), [told(2)])
        self.assertIs(made.judge(told(1), NOW + 60), Status.OLDER)
        self.assertIsNone(made.judge(told(1, serial=2, now=NOW + 61), NOW + 61))

    def test_until_it_expires(self) -> None:
        second = told(2, now=NOW + 20)
        made = listing(told(1), second)
        later = NOW + DESC_LIFE
        self.assertEqual(made.sample(GetRelays(), later), [second.raw])
        self.assertEqual(made.prune(later), [key(1).node_id])
        self.assertEqual(len(made), 1)
        soon = later + PRUNE_EVERY - 1  # it has expired, and nobody looks before a minute is over
        self.assertEqual((made.prune(soon), len(made), made.sample(GetRelays(), soon)), ([], 1, []))
        self.assertEqual((made.prune(later + PRUNE_EVERY), len(made)), ([key(2).node_id], 0))

    def test_those_that_are_remembered_as_gone_have_an_end(self) -> None:
        self.patch(index, "TRACKER_RELAYS", 3)
        made = listing()
        for number in range(5):
            made.enlist(told(number), NOW)
            made.remove(Unpublish.make(key(number), MAIN, NOW), NOW)
        self.assertEqual(list(made._gone), [key(number).node_id for number in (2, 3, 4)])
        self.assertIs(made.judge(told(4), NOW), Status.OLDER)

    def test_restore(self) -> None:
        made = Index(MAIN, random.Random(1), web)
        made.restore([told(1), told(1), told(2, now=NOW - 600), told(3, TEST)], NOW + DESC_LIFE - 60)
        self.assertEqual(list(made), [told(1)])
        self.assertIsNone(made.judge(told(1, serial=2, now=NOW + DESC_LIFE - 60), NOW + DESC_LIFE - 60))


class SampleTests(EasyWork):
    def test_never_more_than_25(self) -> None:
        """G1, whatever is asked."""
        made = listing(*map(told, range(60)))
        self.assertEqual(len(made.sample(GetRelays(25), NOW)), LISTED)
        self.assertEqual(len(made.sample(GetRelays(200), NOW)), LISTED)
        self.assertEqual(len(set(made.sample(GetRelays(7), NOW))), 7)

    def test_random(self) -> None:
        made = listing(*map(told, range(60)))
        counts = Counter(raw for _ in range(600) for raw in made.sample(GetRelays(10), NOW))
        self.assertEqual(len(counts), 60)
        self.assertLess(max(counts.values()), 2 * min(counts.values()))

    def test_roles_and_port(self) -> None:
        exits = [told(number, roles=Role.RELAY | Role.EXIT, exits=b"443") for number in (70, 71)]
        made = listing(*map(told, range(60)), *exits)
        raws = {one.raw for one in exits}
        self.assertEqual(set(made.sample(GetRelays(25, int(Role.EXIT)), NOW)), raws)
        self.assertEqual(set(made.sample(GetRelays(25, 0, 443), NOW)), raws)
        self.assertEqual(made.sample(GetRelays(25, int(Role.EXIT | Role.DHT)), NOW), [])
        self.assertEqual(len(made.sample(GetRelays(1, int(Role.EXIT)), NOW)), 1)
        self.assertEqual(listing().sample(GetRelays(), NOW), [])

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=30))
    @settings(max_examples=30)
    def test_places_after_anything(self, steps: list[tuple[bool, int]]) -> None:
        """However relays come and go, a sample is what is listed."""
        made = listing()
        there: dict[int, int] = {}
        for at, (comes, number) in enumerate(steps):
            now = NOW + at
            if comes:
                made.enlist(told(number, now=now, serial=at + 1), now)
                there[number] = at + 1
            else:
                made.remove(Unpublish.make(key(number), MAIN, now), now)
                there.pop(number, None)
        found = {Descriptor.parse(raw).identity for raw in made.sample(GetRelays(), NOW + 100)}
        self.assertEqual(found, {key(number).node_id for number in there})
