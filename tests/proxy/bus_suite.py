"""What every bus does, whatever carries it. A bus's own tests subclass `Suite.BusTests` and say how to make nodes.

With a bus of one node, the tests that need another are run with one, where that still says something.
"""

from __future__ import annotations

import contextlib
from typing import ClassVar

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from layer8.control.errors import Conflict
from layer8.core.errors import Unavailable
from layer8.proxy.bus import Bus, Change, Gone, Lease, Presence, Put
from layer8.proxy.limits import BUS_LEASE, BUS_RENEW
from layer8.proxy.registration import Ownership, Registration
from layer8.proxy.wire import Code, Denied
from tests.control.rig import raises
from tests.proxy.desk import HOST, OTHER, key_of, row


class Suite:
    """Keeps trial from running the base by itself."""

    class BusTests(TestCase):
        """The contract of `layer8.proxy.bus.Bus`."""

        timeout = 30
        nodes: ClassVar[int] = 1

        def setUp(self) -> None:
            self.clock = Clock()
            self.buses = [self.make(number) for number in range(self.nodes)]
            self.told: list[list[Change]] = []
            for bus in self.buses:
                heard: list[Change] = []
                bus.watch(heard.append)
                self.told.append(heard)

        def make(self, number: int) -> Bus:
            """Make the bus of one node; all of them share what is durable."""
            raise NotImplementedError

        def again(self) -> Bus:
            """Make the first node's bus once more, as after a restart."""
            raise NotImplementedError

        def node(self, number: int = 0) -> bytes:
            """Give a node's id."""
            return bytes([number]) * 32

        async def settle(self) -> None:
            """Wait until what one node did is known to all."""

        async def stands(self, bus: Bus, since: int = 0) -> list[Registration]:
            return list(await bus.registrations(since))

        async def test_registered_everywhere(self) -> None:
            first = row(version=1)
            await self.buses[0].register(first)
            self.assertEqual(self.told[0], [Put(first)], "our own watchers are told before it returns")
            await self.settle()
            for bus, heard in zip(self.buses, self.told, strict=True):
                self.assertEqual(await self.stands(bus), [first])
                self.assertEqual(heard, [Put(first)])

        async def test_changed(self) -> None:
            await self.buses[0].register(row(version=1))
            await self.settle()
            after = row(version=2, ports=(443,))
            await self.buses[-1].register(after)
            await self.settle()
            self.assertEqual(await self.stands(self.buses[0]), [after])
            self.assertEqual(self.told[0][-1], Put(after))

        async def test_since(self) -> None:
            for version in (3, 1, 2):
                await self.buses[0].register(row(f"h{version}.example.com", version=version))
            await self.settle()
            for bus in self.buses:
                self.assertEqual([one.version for one in await self.stands(bus)], [1, 2, 3])
                self.assertEqual([one.version for one in await self.stands(bus, 1)], [2, 3])
                self.assertEqual(await self.stands(bus, 3), [])

        async def test_removed(self) -> None:
            await self.buses[0].register(row())
            await self.settle()
            await self.buses[-1].remove(row())
            await self.settle()
            self.assertEqual(await self.stands(self.buses[0]), [])
            self.assertEqual(self.told[0][1:], [Gone(row())])
            await self.buses[0].remove(row())
            self.assertEqual(len(self.told[0]), 2, "removing twice does nothing")

        async def test_a_name_has_one_owner(self) -> None:
            await self.buses[0].register(row())
            await self.settle()
            error = await raises(Denied, self.buses[-1].register(row(owner="bob", version=2)))
            self.assertIs(error.code, Code.ALREADY_REGISTERED)
            await self.settle()
            self.assertEqual(await self.stands(self.buses[0]), [row()])

        async def test_one_of_two_owners_at_once(self) -> None:
            """Registered on two nodes at the same time, the name is one owner's everywhere."""
            asked = [
                Deferred.fromCoroutine(self.buses[0].register(row(owner="ann"))),
                Deferred.fromCoroutine(self.buses[-1].register(row(owner="bob"))),
            ]
            failed = []
            for waiting in asked:
                try:
                    await waiting
                except Denied as error:
                    failed.append(error.code)
            self.assertEqual(failed, [Code.ALREADY_REGISTERED])
            await self.settle()
            stands = [await self.stands(bus) for bus in self.buses]
            self.assertEqual(len(stands[0]), 1)
            self.assertTrue(all(one == stands[0] for one in stands))

        async def test_nobody_overwrites_what_he_has_not_seen(self) -> None:
            if self.nodes == 1:
                return
            await self.buses[0].register(row())
            await self.settle()
            asked = [
                Deferred.fromCoroutine(bus.register(row(version=2, ports=(port,))))
                for bus, port in zip(self.buses, (80, 443), strict=False)
            ]
            outcome: list[object] = []
            for waiting in asked:
                try:
                    await waiting
                    outcome.append(None)
                except Conflict as error:
                    outcome.append(error.data["version"])
            self.assertEqual(sorted(outcome, key=str), [2, None])
            await self.settle()
            first = (await self.stands(self.buses[0]))[0]
            self.assertEqual([(await self.stands(bus))[0] for bus in self.buses], [first] * self.nodes)
            # whoever lost has seen it now
            await self.buses[outcome.index(2)].register(evolve(first, version=3, ports=(8080,)))

        async def test_nobody_removes_what_he_has_not_seen(self) -> None:
            if self.nodes == 1:
                return
            await self.buses[0].register(row())
            await self.settle()
            changing = Deferred.fromCoroutine(self.buses[0].register(row(version=2, expires=9.0)))
            removing = Deferred.fromCoroutine(self.buses[-1].remove(row()))
            for waiting in (changing, removing):
                with contextlib.suppress(Conflict):
                    await waiting
            await self.settle()
            stands = [await self.stands(bus) for bus in self.buses]
            self.assertTrue(all(one == stands[0] for one in stands))

        async def test_watchers_everywhere_hear_everything_in_order(self) -> None:
            suspended = row(state=Ownership.SUSPENDED)
            taken = row(owner="bob", version=2)
            await self.buses[0].register(suspended)
            await self.settle()
            await self.buses[-1].register(taken)
            await self.settle()
            await self.buses[0].remove(taken)
            await self.settle()
            for heard in self.told:
                self.assertEqual(heard, [Put(suspended), Gone(suspended), Put(taken), Gone(taken)])

        async def test_claims_stand_beside_a_registration(self) -> None:
            claim = row(owner="bob", state=Ownership.PENDING, version=2)
            await self.buses[0].register(row())
            await self.buses[0].register(claim)
            self.assertEqual(await self.stands(self.buses[0]), [row(), claim])
            await self.buses[0].remove(claim)
            self.assertEqual(await self.stands(self.buses[0]), [row()])

        async def test_a_suspended_name_can_be_taken(self) -> None:
            suspended = row(state=Ownership.SUSPENDED)
            await self.buses[0].register(suspended)
            taken = row(owner="bob", version=2)
            await self.buses[0].register(taken)
            self.assertEqual(await self.stands(self.buses[0]), [taken])
            self.assertEqual(self.told[0], [Put(suspended), Gone(suspended), Put(taken)])
            await raises(Denied, self.buses[0].register(evolve(suspended, version=3)))

        async def test_survives_a_restart(self) -> None:
            both = row(HOST, b"a" * 32, OTHER, ports=(80, 443), expires=9.0, version=7)
            await self.buses[0].register(both)
            stands = await self.stands(self.again())
            self.assertEqual(stands, [both])
            self.assertEqual([secret.key for secret in stands[0].secrets], [key_of(b"a" * 32), key_of(OTHER)])

        async def test_removed_stays_removed(self) -> None:
            await self.buses[0].register(row())
            await self.buses[0].remove(row())
            self.assertEqual(await self.stands(self.again()), [])

        async def test_watching_ends(self) -> None:
            heard: list[Change] = []
            stop = self.buses[0].watch(heard.append)
            stop()
            await self.buses[0].register(row())
            await self.settle()
            self.assertEqual(heard, [])

        # Presence

        async def here(self, subscription: int = 1, host: str = HOST) -> Lease:
            return await self.buses[0].lease(Presence(host, self.node(), subscription))

        async def test_present_everywhere(self) -> None:
            first, second = await self.here(1), await self.here(2)
            await self.settle()
            for bus in self.buses:
                self.assertEqual(set(bus.lookup(HOST)), {first.presence, second.presence})
                self.assertEqual(bus.lookup("other.example.com"), ())

        async def test_released(self) -> None:
            first, second = await self.here(1), await self.here(2)
            await self.buses[0].release(first)
            await self.buses[0].release(first)
            await self.settle()
            for bus in self.buses:
                self.assertEqual(bus.lookup(HOST), (second.presence,))

        async def test_lapses_without_renewal(self) -> None:
            lease = await self.here()
            await self.settle()
            self.clock.advance(BUS_LEASE - 0.1)
            self.assertEqual(self.buses[-1].lookup(HOST), (lease.presence,))
            self.clock.advance(0.1)
            for bus in self.buses:
                self.assertEqual(bus.lookup(HOST), ())
            self.assertEqual(await self.buses[0].renew([lease]), (lease,))

        async def test_lives_with_renewal(self) -> None:
            lease = await self.here()
            for _ in range(10):
                self.clock.advance(BUS_RENEW)
                self.assertEqual(await self.buses[0].renew([lease]), ())
            await self.settle()
            for bus in self.buses:
                self.assertEqual(bus.lookup(HOST), (lease.presence,))

        async def test_an_older_generation_is_fenced_out(self) -> None:
            old = await self.here()
            new = await self.here()
            self.assertGreater(new.generation, old.generation)
            self.assertEqual(await self.buses[0].renew([old, new]), (old,))
            await self.buses[0].release(old)
            await self.settle()
            for bus in self.buses:
                self.assertEqual(bus.lookup(HOST), (new.presence,))

        async def test_the_older_lease_is_fenced_out_on_all_nodes(self) -> None:
            old = await self.here()
            await self.settle()
            new = await self.buses[0].lease(evolve(old.presence, weight=7))
            await self.settle()
            self.assertEqual(await self.buses[0].renew([old]), (old,))
            await self.buses[0].release(old)
            await self.settle()
            for bus in self.buses:
                self.assertEqual([one.weight for one in bus.lookup(HOST)], [7])
            await self.buses[0].release(new)
            await self.settle()
            for bus in self.buses:
                self.assertEqual(bus.lookup(HOST), ())

        async def test_each_nodes_leases_are_its_own(self) -> None:
            leases = [await bus.lease(Presence(HOST, self.node(n), 1)) for n, bus in enumerate(self.buses)]
            await self.settle()
            for bus in self.buses:
                self.assertEqual(set(bus.lookup(HOST)), {lease.presence for lease in leases})
            await self.buses[0].release(leases[0])
            await self.settle()
            for bus in self.buses:
                self.assertEqual(set(bus.lookup(HOST)), {lease.presence for lease in leases[1:]})

        async def test_what_is_not_renewed_lapses_beside_what_is(self) -> None:
            kept, lapsed = await self.here(1), await self.here(2)
            await self.settle()
            for _ in range(4):
                self.clock.advance(BUS_RENEW)
                self.assertEqual(await self.buses[0].renew([kept]), ())
                await self.settle()
            for bus in self.buses:
                self.assertEqual(bus.lookup(HOST), (kept.presence,))
            self.assertEqual(await self.buses[0].renew([kept, lapsed]), (lapsed,))

        # Messages

        async def test_notified(self) -> None:
            heard: list[bytes] = []
            stop = self.buses[-1].listen(heard.append)
            target = self.node(self.nodes - 1)
            await self.buses[0].notify(target, b"sealed \0\xff")
            await self.settle()
            self.assertEqual(heard, [b"sealed \0\xff"])
            stop()
            await raises(Unavailable, self.buses[0].notify(target, b"nobody listens"))

        async def test_no_such_node(self) -> None:
            await raises(Unavailable, self.buses[0].notify(b"?" * 32, b"sealed"))
