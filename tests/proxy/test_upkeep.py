"""What a server does by the clock: leases on the bus, ends of bans, expiry."""

from twisted.internet.defer import Deferred
from twisted.logger import Logger, capturedLogs
from twisted.trial.unittest import TestCase

from layer8.proxy.bans import Banned, Bans
from layer8.proxy.limits import BUS_LEASE, BUS_RENEW, PROVE_AGAIN
from layer8.proxy.upkeep import AGAIN, Presences, Upkeep
from tests.proxy.desk import HOST, NODE, WALL, Desk, Ownership, asked, row


class UpkeepTests(TestCase):
    def setUp(self) -> None:
        self.desk = Desk(self.mktemp())
        self.bans = Bans(self.desk.kept.bans)
        self.presences = Presences(self.desk.bus, self.desk.seats, NODE)
        self.upkeep = Upkeep(
            self.desk.clock,
            Logger(),
            self.desk.ledger,
            self.presences,
            self.bans,
            self.desk.store,
            self.desk.wall,
        )
        self.upkeep.startService()
        self.addCleanup(self.stop)

    def stop(self) -> Deferred[None] | None:
        return self.upkeep.stopService() if self.upkeep.running else None

    def wait(self, seconds: int) -> None:
        self.desk.clock.pump([1.0] * seconds)

    async def test_every_subscription_is_present_while_it_lives(self) -> None:
        await self.desk.ledger.register(asked(), "ann", True)
        agent, _ = self.desk.agent()
        seat = self.desk.seat(agent)
        self.wait(1)
        (there,) = self.desk.bus.lookup(HOST)
        self.assertEqual((there.node, there.subscription), (NODE, seat.number))
        self.wait(2 * int(BUS_LEASE))
        self.assertEqual(self.desk.bus.lookup(HOST), (there,))
        agent.lost()
        self.wait(1)
        self.assertEqual(self.desk.bus.lookup(HOST), ())

    async def test_nobody_is_present_after_the_end(self) -> None:
        await self.desk.ledger.register(asked(), "ann", True)
        self.desk.seat(self.desk.agent()[0])
        self.wait(1)
        await self.upkeep.stopService()
        self.assertEqual(self.desk.bus.lookup(HOST), ())

    async def test_a_lease_that_lapsed_is_taken_again(self) -> None:
        await self.desk.ledger.register(asked(), "ann", True)
        self.desk.seat(self.desk.agent()[0])
        self.wait(1)
        lapsed = await self.desk.bus.lease(self.desk.bus.lookup(HOST)[0])  # fences the upkeep's own one out
        await self.desk.bus.release(lapsed)
        self.assertEqual(self.desk.bus.lookup(HOST), ())
        self.wait(int(BUS_RENEW))
        self.assertEqual(len(self.desk.bus.lookup(HOST)), 1)

    async def test_a_machine_that_slept(self) -> None:
        await self.desk.ledger.register(asked(), "ann", True)
        self.desk.seat(self.desk.agent()[0])
        self.wait(1)
        self.desk.clock.advance(2 * BUS_LEASE)
        self.assertEqual(len(self.desk.bus.lookup(HOST)), 1)

    async def test_proofs_are_looked_at_again_and_hold_nothing_up(self) -> None:
        await self.desk.bus.register(row(state=Ownership.PROVEN, proven=WALL - PROVE_AGAIN))
        self.desk.seat(self.desk.agent()[0])
        looks: list[Deferred[bool]] = []

        class Slow:
            async def look(self, wanted: object) -> bool:
                looks.append(Deferred())
                return await looks[-1]

        self.desk.ledger.prover = Slow()
        self.wait(2 * int(BUS_LEASE))
        self.assertEqual(len(looks), 1)
        self.assertEqual(len(self.desk.bus.lookup(HOST)), 1)
        looks[0].callback(True)
        self.assertGreater(self.desk.registry.of(HOST, "ann").proven, WALL)

    async def test_bans_end_here_and_on_disk(self) -> None:
        ban = Banned("192.0.2.0/24", self.desk.wall() + 3)
        self.bans.add(ban)
        await self.desk.store.ban(ban)
        self.wait(2)
        self.assertIn("192.0.2.1", self.bans)
        self.wait(1)
        self.assertNotIn("192.0.2.1", self.bans)
        self.wait(int(AGAIN))
        self.assertEqual(self.desk.store.load().bans, ())

    async def test_registrations_expire(self) -> None:
        await self.desk.ledger.register(asked(ttl_s=5), "ann", True)
        self.wait(4)
        self.assertIsNotNone(self.desk.registry.lookup(HOST))
        self.wait(1)
        self.assertIsNone(self.desk.registry.lookup(HOST))

    async def test_a_failing_disk_ends_nothing(self) -> None:
        self.desk.storage.close()
        self.bans.add(Banned("192.0.2.0/24", self.desk.wall() + 3))
        with capturedLogs() as logged:
            self.wait(2 * int(AGAIN) + 2)
        self.assertNotIn("192.0.2.1", self.bans)
        self.assertTrue(logged)
        self.assertEqual({(event["event"], event["log_level"].name) for event in logged}, {("task.ended", "info")})
        await self.upkeep.stopService()
