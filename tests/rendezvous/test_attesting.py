"""Nodes that claim names, and nodes that knock at those who do; what a user visits changes nothing."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from layer8.core.errors import ConfigError, Refused, Unavailable
from layer8.crypto.items import RECORD_LIFE, Draft, Record
from layer8.crypto.keys import NodeKey
from layer8.net.sqlite import Database
from layer8.rendezvous import archive as archives
from layer8.rendezvous import attesting as module
from layer8.rendezvous import claiming as claims_module
from layer8.rendezvous import claims
from layer8.rendezvous.address import WrongName, address_text
from layer8.rendezvous.archive import SCHEMA, Archive
from layer8.rendezvous.attesting import PROBED, TICK, TRIES, Attesting, Knock
from layer8.rendezvous.claiming import RENEW, REPUT, TRY, Claiming
from layer8.rendezvous.claims import (
    CLOCK,
    DAY,
    SHARDS,
    Flag,
    State,
    claim_target,
    listing_target,
    make_claim,
    make_listing,
    read_claim,
    read_seen,
    seen_target,
    shard_of,
)
from layer8.testing.storage import InlineStorage
from tests.descriptors import NOW, key, node
from tests.dht.test_items import paid
from tests.rendezvous.test_naming import NamingCase

A, B = key(1), key(2)


class AttestingCase(NamingCase):
    """An attester on a clock, and a DHT that is a dictionary."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.met: list[bytes] = []
        self.answers: dict[bytes, Flag | Exception | None] = {}
        self.archive = self.archive_of("names.db")
        self.attesting = self.attesting_of(9, self.archive)

    def archive_of(self, name: str) -> Archive:
        """Open an archive."""
        folder = Path(self.mktemp())
        folder.mkdir(mode=0o700)
        found = Archive(InlineStorage(Database(folder / name, SCHEMA)))
        found.load()
        return found

    def attesting_of(self, number: int, archive: Archive, knock: Knock | None = None, **more: Any) -> Attesting:
        """Make an attester."""
        return Attesting(
            self.items,
            key(number),
            knock or self.knock,
            archive,
            self.work,
            Random(number),
            lambda: self.now,
            self.clock,
            lambda name, work: self.run_(work),
            **{"ruled": False, **more},
        )

    def claiming_of(self, archive: Archive, ruled: bool = False) -> Claiming:
        """Make what claims."""
        return Claiming(
            self.items,
            archive,
            key(7),
            self.read_key,
            self.work,
            lambda: self.now,
            self.clock,
            lambda name, work: self.run_(work),
            ruled,
        )

    def read_key(self, file: str) -> NodeKey:
        """Read a key whose file is called by its number."""
        if not file.isdigit():
            raise ConfigError(f"{file}: is no key")
        return key(int(file))

    async def work(self, draft: Draft) -> Record:
        """Do the work here."""
        return paid(draft)

    async def knock(self, service: bytes) -> Flag | None:
        """Answer as it is told to."""
        self.met.append(service)
        answer = self.answers.get(service, Flag(0))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def listed(self, owner: NodeKey, name: str = "blog") -> None:
        """Have a service claim a name, and be found."""
        self.items.add(make_claim(owner, name, self.now, ruled=False), make_listing(owner, name, self.now, ruled=False))

    def look(self, name: str = "blog") -> None:
        """Look at the part of the list where a name stands."""
        self.run_(self.attesting.look(shard_of(name)))

    def said(self, owner: NodeKey, name: str = "blog") -> list[claims.Seen]:
        """Read what stands in a claim's set."""
        records = self.items.sets.get(seen_target(name, owner.node_id), {}).values()
        return [read_seen(one, name, owner.node_id, self.now, ruled=False) for one in records]

    def days(self, number: float) -> None:
        """Let so many days go by, a round every minute."""
        end = self.now + number * DAY
        while self.now < end:
            self.now += 60
            self.run_(self.attesting.round())


class AttestTests(AttestingCase):
    def test_it_finds_a_claim_and_says_what_it_met(self) -> None:
        """G58: address, key, first seen, and flags."""
        self.listed(A)
        self.days(1)
        self.assertEqual(self.met[0], A.node_id)
        first = int(NOW // DAY)
        (said,) = self.said(A)
        self.assertEqual((said.attester, said.first, said.flags), (node(9), first, 0))
        self.assertEqual((said.asked, said.answered), (len(self.met), len(self.met)))

    def test_once_a_day_at_random_times(self) -> None:
        self.listed(A)
        times = []
        before = 0
        end = self.now + 12 * DAY
        while self.now < end:
            self.days(1 / 1440)
            if len(self.met) > before:
                before = len(self.met)
                times.append(self.now)
        self.assertIn(len(times), (11, 12, 13))
        self.assertEqual(len({int(time // DAY) for time in times}), len(times))
        self.assertGreater(len({int(time % DAY) // 3600 for time in times}), 5)
        (said,) = self.said(A)
        self.assertEqual(said.asked, len(times))

    def test_flags(self) -> None:
        """After a forced wrong key its flag is there for others to poll; who lets nobody in has none."""
        for number, (flag, flags, answered) in enumerate(
            (
                (Flag.WRONG_KEY, 2, 0),
                (Flag.SILENT, 1, 0),
                (Flag.NO_DESCRIPTOR, 8, 0),
                (Flag.ERRORS, 4, 0),
                (None, 0, 0),
                (Flag(0), 0, 1),
            )
        ):
            owner, name = key(30 + number), f"name{number}"
            self.answers[owner.node_id] = flag
            self.listed(owner, name)
            self.look(name)
            self.run_(self.attesting.probe(self.archive.probed[name, owner.node_id]))
            (said,) = self.said(owner, name)
            self.assertEqual((said.flags, said.asked, said.answered), (flags, 1, answered), flag)

    def test_polled_by_another_node(self) -> None:
        """G58: three attesters, and somebody who knows them resolves the name and sees the flags."""
        self.listed(A)
        self.answers[A.node_id] = Flag.SILENT
        for number in (10, 11, 12):
            self.attesting = self.attesting_of(number, self.archive_of(str(number)))
            self.days(1)
        verdict = self.run_(self.naming.resolve("blog")).verdict
        self.assertEqual((verdict.state, verdict.candidates[0].flags), (State.DECIDED, {Flag.SILENT: 3}))

    def test_what_fails_here_is_nobody_s_fault(self) -> None:
        self.listed(A)
        self.look()
        self.answers[A.node_id] = Unavailable("no circuit can be built")
        one = self.archive.probed["blog", A.node_id]
        self.failureResultOf(Deferred.fromCoroutine(self.attesting.probe(one)), Unavailable)
        self.assertEqual((self.said(A), self.archive.probed["blog", A.node_id].asked), ([], 0))

    def test_a_hundred_visits_change_no_set(self) -> None:
        """Section 11: what its user looks up and visits never becomes a claim that is knocked at."""
        for number in range(100):
            self.claim(key(100 + number), 10, 11, 12, name=f"name{number}")
        self.listed(A)
        self.look()
        before, rows = self.items.state(), dict(self.archive.probed)
        for number in range(100):
            self.assertEqual(self.run_(self.naming.key(f"name{number}.l8.alt")), node(100 + number))
        self.assertEqual((self.items.state(), self.archive.probed, self.items.puts), (before, rows, 0))
        self.days(2)
        self.assertEqual(set(self.met), {A.node_id})
        self.assertEqual([one for number in range(100) for one in self.said(key(100 + number), f"name{number}")
                          if one.attester == node(9)], [])  # fmt: skip

    def test_without_its_own_work_there_is_none_of_it(self) -> None:
        """The attester of a user who visits and the one of a user who does not do the same, to the minute."""
        self.listed(A)
        self.listed(B, "shop")
        self.days(1)
        idle, self.met = self.met, []
        self.now = NOW
        self.items.sets.clear()
        self.listed(A)
        self.listed(B, "shop")
        self.attesting = self.attesting_of(9, self.archive_of("again"))
        for _ in range(24):
            self.days(1 / 24)
            self.run_(self.naming.key("blog~" + address_text(A.node_id)[:9]))
        self.assertEqual(self.met, idle)

    def test_the_whole_list_is_seen_within_a_day(self) -> None:
        for number in range(40):
            self.listed(key(100 + number), f"name{number}")
        self.days(1)
        self.assertEqual(len(self.archive.probed), 40)
        self.assertLessEqual(set(map(listing_target, range(SHARDS))), set(self.items.asked))

    def test_limits(self) -> None:
        self.patch(module, "PROBED", 3)
        self.patch(module, "PER_NAME", 2)
        for number in range(4):
            self.listed(key(100 + number))
        self.look()
        self.assertEqual(len(self.archive.probed), 2)
        self.listed(A, "shop")
        self.listed(B, "shop")
        self.look("shop")
        self.assertEqual(len(self.archive.probed), 3)
        self.assertGreater(PROBED, 1000)

    def test_services_that_never_answer_make_room(self) -> None:
        """Claims alone cannot fill an attester: each would need a service that is up."""
        self.patch(module, "PROBED", 2)
        for number, answer in ((30, Flag.NO_DESCRIPTOR), (31, Flag(0)), (32, Flag(0))):
            self.answers[node(number)] = answer
            self.listed(key(number), f"name{number}")
        for number in (30, 31, 32):
            self.look(f"name{number}")
        self.assertEqual({name for name, _ in self.archive.probed}, {"name30", "name31"})
        for _ in range(TRIES):
            self.look("name32")
            self.assertNotIn(("name32", node(32)), self.archive.probed)
            for one in tuple(self.archive.probed.values()):
                self.run_(self.attesting.probe(one))
        self.look("name32")
        self.assertEqual({name for name, _ in self.archive.probed}, {"name31", "name32"})

    def test_and_those_of_one_name_for_another_of_it(self) -> None:
        self.patch(module, "PER_NAME", 1)
        self.answers[A.node_id] = Flag.SILENT
        self.listed(A)
        self.look()
        self.listed(B)
        for _ in range(TRIES):
            self.look()
            (one,) = self.archive.probed.values()
            self.assertEqual(one.key, A.node_id)
            self.run_(self.attesting.probe(one))
        self.look()
        self.assertEqual(set(self.archive.probed), {("blog", B.node_id)})

    def test_claims_end(self) -> None:
        self.listed(A)
        self.look()
        before = self.archive.probed["blog", A.node_id].expires
        self.now += 10 * DAY
        self.listed(A)
        self.look()
        self.assertGreater(self.archive.probed["blog", A.node_id].expires, before)
        self.items.sets.clear()
        self.now += RECORD_LIFE
        self.run_(self.attesting.round())
        self.assertEqual(self.archive.probed, {})

    def test_names_in_the_wrong_part_and_noise(self) -> None:
        listing = make_listing(A, "blog", NOW, ruled=False)
        other = (shard_of("blog") + 1) % SHARDS
        self.items.add(evolve(listing, target=listing_target(other)))
        self.run_(self.attesting.look(other))
        self.assertEqual(self.archive.probed, {})

    def test_a_restart(self) -> None:
        self.listed(A)
        self.days(1)
        database = self.archive._storage
        again = Archive(database)
        again.load()
        self.assertEqual((again.probed, again.records), (self.archive.probed, self.archive.records))

    def test_sets_are_archived(self) -> None:
        self.patch(archives, "ARCHIVED", 3)
        self.listed(A)
        self.look()
        self.assertEqual(len(self.archive.records), 2)
        self.listed(B)
        self.look()
        self.assertEqual(len(self.archive.records), 3)
        self.assertEqual(len(self.archive._storage.rows("records")), 3)

    def test_put_again_in_time(self) -> None:
        self.listed(A)
        self.days(1.4)
        (one,) = self.archive.probed.values()
        self.assertLess(self.now - one.put, 12 * 3600)

    def test_its_clock(self) -> None:
        self.attesting.start()
        self.clock.advance(TICK)
        self.assertGreater(len(self.items.asked), 0)
        self.attesting.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ClaimTests(AttestingCase):
    def test_claimed_listed_and_found(self) -> None:
        claiming = self.claiming_of(self.archive)
        own, stored = self.run_(claiming.claim("blog", "1"))
        self.assertEqual((own.name, own.claim.key, stored), ("blog", A.node_id, 8))
        self.look()
        self.assertIn(("blog", A.node_id), self.archive.probed)

    def test_work_in_a_network_with_rules(self) -> None:
        self.patch(claims, "CLAIM_EFFORT", 64)
        self.patch(claims, "SEEN_EFFORT", 32)
        own, _ = self.run_(self.claiming_of(self.archive, True).claim("blog", "1"))
        self.assertEqual((own.claim.effort, own.listing.effort), (64, 32))
        self.assertEqual(read_claim(own.claim, "blog", self.now).key, A.node_id)

    def test_every_hour_and_anew_before_its_end(self) -> None:
        claiming = self.claiming_of(self.archive)
        claiming.start()
        before, _ = self.run_(claiming.claim("blog", "1"))
        puts = self.items.puts
        self.clock.advance(TRY)
        self.assertEqual(self.items.puts, puts)
        self.now += REPUT
        self.clock.advance(TRY)
        self.assertEqual(self.items.puts, puts + 2)
        self.assertEqual(self.archive.claims["blog"], before)
        self.now += RECORD_LIFE - CLOCK - RENEW
        self.clock.advance(TRY)
        after = self.archive.claims["blog"]
        self.assertGreater(after.claim.expires, before.claim.expires)
        self.assertEqual(list(self.items.sets[claim_target("blog")].values()), [after.claim])
        claiming.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_restart(self) -> None:
        self.run_(self.claiming_of(self.archive).claim("blog", "1"))
        again = Archive(self.archive._storage)
        again.load()
        self.assertEqual(again.claims, self.archive.claims)
        self.items.sets.clear()
        claiming = self.claiming_of(again)
        claiming.start()
        self.items.silent = True
        self.clock.advance(TRY)
        self.items.silent = False
        self.clock.advance(TRY)
        self.assertIn(claim_target("blog"), self.items.sets)
        claiming.stop()

    def test_certificates(self) -> None:
        """G60: a signer's node puts them every hour, also after a restart, until they expire."""
        claiming = self.claiming_of(self.archive)
        self.assertEqual(self.run_(claiming.certify("blog", A.node_id, 10)), 8)
        trusting = self.naming_of(self.shelf, signers=(node(7),))
        self.assertEqual(self.run_(trusting.resolve("blog")).key, A.node_id)
        self.assertIsNone(self.run_(self.naming.resolve("blog")).key)
        self.run_(claiming.certify("blog", B.node_id, 10))
        self.assertEqual(self.run_(trusting.resolve("blog")).key, B.node_id)
        self.items.items.clear()
        again = Archive(self.archive._storage)
        again.load()
        self.assertEqual(again.certificates, self.archive.certificates)
        self.run_(self.claiming_of(again).put_all())
        self.assertEqual(self.run_(trusting.resolve("blog")).key, B.node_id)
        self.now += 10 * DAY
        self.assertIsNone(self.run_(trusting.resolve("blog")).key)
        self.run_(claiming.put_all())
        self.assertEqual((self.archive.certificates, self.archive._storage.rows("certificates")), ({}, []))
        self.patch(claims_module, "CERTIFICATES", 0)
        self.fails(claiming.certify("shop", A.node_id, 10), Refused)
        self.fails(claiming.certify("-", A.node_id, 10), Refused)

    def test_so_many_claims(self) -> None:
        self.patch(claims_module, "CLAIMS", 1)
        claiming = self.claiming_of(self.archive)
        self.run_(claiming.claim("blog", "1"))
        self.run_(claiming.claim("blog", "2"))
        self.fails(claiming.claim("shop", "1"), Refused)

    def test_nobody_to_ask_is_no_end(self) -> None:
        claiming = self.claiming_of(self.archive)
        self.run_(claiming.claim("blog", "1"))
        self.items.silent = True
        self.now += REPUT
        self.run_(claiming.put_all())
        self.fails(claiming.claim("shop", "1"), Unavailable)

    def test_what_is_refused(self) -> None:
        claiming = self.claiming_of(self.archive)
        self.fails(claiming.claim("-", "1"), WrongName)
        self.fails(claiming.claim("blog", "no key"), ConfigError)
        self.assertEqual(self.archive.claims, {})
