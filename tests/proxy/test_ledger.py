"""Changes to registrations: written down, then true for visitors and agents, one at a time."""

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from layer8.control.errors import Conflict
from layer8.core.errors import StorageError
from layer8.proxy import limits
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.ledger import Ledger
from layer8.proxy.orders import Policy, Rotate, Update
from layer8.proxy.registration import Ownership, Registration, proof_wanted
from layer8.proxy.registry import static
from layer8.proxy.wire import Code, Denied
from tests.control.rig import raises
from tests.proxy.desk import HOST, NODE, OTHER, WALL, Desk, asked, key_of, row


@define(eq=False)
class SlowRows:
    """A store that writes when a test lets it."""

    waiting: list[Deferred[None]] = field(factory=list)
    saved: list[Registration] = field(factory=list)

    async def save(self, row: Registration) -> None:
        written: Deferred[None] = Deferred(lambda _: None)
        self.waiting.append(written)
        await written
        self.saved.append(row)

    async def drop(self, row: Registration) -> None:
        self.saved.remove(row)


class WithLedger(TestCase):
    def setUp(self) -> None:
        self.desk = Desk(self.mktemp())
        self.ledger = self.desk.ledger

    async def registered(self, host: str = HOST, owner: str = "ann", free: bool = True) -> Registration:
        return await self.ledger.register(asked(host), owner, free)

    async def again(self) -> Desk:
        """The same server after a restart."""
        self.desk.storage.close().addErrback(lambda reason: reason.trap(StorageError))
        desk = Desk(self.desk.path)
        await desk.ledger.start()
        return desk

    def denied(self, error: Denied, code: Code) -> None:
        self.assertIs(error.code, code)


class LedgerTests(WithLedger):
    async def test_registered_and_served(self) -> None:
        made = await self.registered()
        self.assertIs(self.desk.registry.lookup(HOST), made)
        self.assertEqual((made.state, made.created, made.owner), (Ownership.OWNED, WALL, "ann"))
        self.assertIs((await self.again()).registry.lookup(HOST) is None, False)

    async def test_not_written_is_not_served(self) -> None:
        self.desk.storage.close()
        await raises(StorageError, self.registered())
        self.assertIsNone(self.desk.registry.lookup(HOST))

    async def test_what_is_served_stays_served_while_the_disk_fails(self) -> None:
        await self.registered()
        self.desk.storage.close()
        await raises(StorageError, self.ledger.unregister(HOST, "ann"))
        await raises(StorageError, self.ledger.update(Update(HOST, ports=(1,)), "ann"))
        found = self.desk.registry.lookup(HOST)
        assert found is not None
        self.assertEqual(found.ports, ())

    async def test_update(self) -> None:
        made = await self.registered()
        await self.ledger.update(Update(HOST, policy=Policy(max_conns=5), version=made.version), "ann")
        found = (await self.again()).registry.lookup(HOST)
        assert found is not None
        self.assertEqual(found.policy.max_conns, 5)

    async def test_update_of_what_changed_meanwhile(self) -> None:
        made = await self.registered()
        await self.ledger.update(Update(HOST, ports=(80,)), "ann")
        error = await raises(Conflict, self.ledger.update(Update(HOST, ports=(443,), version=made.version), "ann"))
        self.assertEqual(error.data, {"version": made.version + 1})

    async def test_another_owner_changes_nothing(self) -> None:
        await self.registered()
        for change in (
            self.ledger.update(Update(HOST), "bob"),
            self.ledger.rotate(Rotate(HOST, key_of(OTHER).hex()), "bob"),
            self.ledger.unregister(HOST, "bob"),
            self.ledger.prove(HOST, "bob"),
        ):
            self.denied(await raises(Denied, change), Code.WRONG_SECRET)
        await self.ledger.update(Update(HOST, ports=(80,)), None)

    async def test_unregister_sends_agents_away(self) -> None:
        await self.registered()
        agent, voice = self.desk.agent()
        seat = self.desk.seat(agent)
        await self.ledger.unregister(HOST, "ann")
        self.assertIsNone(self.desk.registry.lookup(HOST))
        self.assertEqual((self.desk.gone, voice.closed), ([(seat.number, False)], ["revoked"]))
        self.assertEqual(len((await self.again()).registry), 0)

    async def test_rotate_keeps_agents_until_the_old_secret_retires(self) -> None:
        await self.registered()
        agent, voice = self.desk.agent()
        self.desk.seat(agent)
        await self.ledger.rotate(Rotate(HOST, key_of(OTHER).hex(), grace_s=100), "ann")
        self.desk.clock.advance(99)
        await self.ledger.turn()
        self.assertEqual(voice.closed, [])
        self.desk.clock.advance(1)
        await self.ledger.turn()
        self.assertEqual(voice.closed, ["revoked"])

    async def test_rotate_at_once(self) -> None:
        await self.registered()
        agent, voice = self.desk.agent()
        self.desk.seat(agent)
        await self.ledger.rotate(Rotate(HOST, key_of(OTHER).hex(), grace_s=0), "ann")
        self.assertEqual(voice.closed, ["revoked"])
        found = (await self.again()).registry.lookup(HOST)
        assert found is not None
        self.assertEqual([secret.key for secret in found.secrets], [key_of(OTHER)])

    async def test_expiry(self) -> None:
        await self.ledger.register(asked(ttl_s=60), "ann", True)
        agent, voice = self.desk.agent()
        self.desk.seat(agent)
        self.desk.clock.advance(59)
        await self.ledger.turn()
        self.assertIsNotNone(self.desk.registry.lookup(HOST))
        self.desk.clock.advance(1)
        await self.ledger.turn()
        self.assertIsNone(self.desk.registry.lookup(HOST))
        self.assertEqual(voice.closed, ["revoked"])
        self.assertEqual(len((await self.again()).registry), 0)

    async def test_expiry_while_the_disk_fails(self) -> None:
        await self.ledger.register(asked(ttl_s=60), "ann", True)
        self.desk.storage.close()
        self.desk.clock.advance(60)
        await self.ledger.turn()
        self.assertIsNone(self.desk.registry.lookup(HOST))
        again = await self.again()
        again.clock.advance(60)
        await again.ledger.turn()
        self.assertIsNone(again.registry.lookup(HOST))
        self.assertEqual(again.storage.rows("registration"), [])

    async def test_one_at_a_time_and_to_the_end(self) -> None:
        """Two owners register one name while the disk is slow; the caller of the first one leaves."""
        rows = SlowRows()
        bus = LocalBus(self.desk.clock, rows, NODE)
        ledger = Ledger(self.desk.registry, bus, self.desk.seats, self.desk.prover, self.desk.wall)
        first = Deferred.fromCoroutine(ledger.register(asked(), "ann", True))
        second = Deferred.fromCoroutine(ledger.register(asked(), "bob", True))
        self.assertEqual(len(rows.waiting), 1)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        rows.waiting[0].callback(None)
        self.assertEqual([saved.owner for saved in rows.saved], ["ann"])
        found = self.desk.registry.lookup(HOST)
        assert found is not None
        self.assertEqual(found.owner, "ann")
        self.denied(self.failureResultOf(second, Denied).value, Code.ALREADY_REGISTERED)

    async def test_static_hosts(self) -> None:
        await self.registered()
        agent, voice = self.desk.agent()
        self.desk.seat(agent)
        host = static(HOST, key=None, target="tcp:localhost:80", ports=(), mode="raw", policy=Policy(), rules=64)
        await self.ledger.set_static([host])
        self.assertEqual(voice.closed, ["revoked"])
        found = self.desk.registry.lookup(HOST)
        assert found is not None
        self.assertTrue(found.static)
        await self.ledger.set_static([])
        found = self.desk.registry.lookup(HOST)
        assert found is not None
        self.assertEqual((found.static, found.owner), (False, "ann"))


class ProofTests(WithLedger):
    def prove(self, host: str = HOST, owner: str = "ann") -> None:
        self.desk.prover.there.add(proof_wanted(host, owner).txt_value)

    async def test_outside_the_patterns_waits_for_proof(self) -> None:
        made = await self.registered(free=False)
        self.assertEqual(made.state, Ownership.PENDING)
        self.assertIsNone(self.desk.registry.lookup(HOST))
        error = await raises(Denied, self.ledger.prove(HOST, "ann"))
        self.denied(error, Code.NOT_PROVEN)
        self.assertEqual(error.data["txt_name"], f"_layer8.{HOST}")
        self.prove()
        proven = await self.ledger.prove(HOST, "ann")
        self.assertEqual((proven.state, proven.proven), (Ownership.PROVEN, WALL))
        self.assertIsNotNone(self.desk.registry.lookup(HOST))
        self.assertIsNotNone((await self.again()).registry.lookup(HOST))

    async def test_nothing_is_asked_about_what_is_owned(self) -> None:
        await self.registered()
        self.assertEqual((await self.ledger.prove(HOST, "ann")).state, Ownership.OWNED)
        self.assertEqual(self.desk.prover.asked, [])

    async def test_a_squatter_does_not_keep_the_owner_out(self) -> None:
        await self.registered(owner="squatter", free=False)
        await self.registered(owner="ann", free=False)
        self.prove()
        await self.ledger.prove(HOST, "ann")
        self.denied(await raises(Denied, self.ledger.prove(HOST, "squatter")), Code.NOT_PROVEN)
        self.prove(owner="squatter")
        self.denied(await raises(Denied, self.ledger.prove(HOST, "squatter")), Code.ALREADY_REGISTERED)

    async def test_looked_at_again_every_day_and_lost_after_a_week(self) -> None:
        await self.registered(free=False)
        self.prove()
        await self.ledger.prove(HOST, "ann")
        agent, voice = self.desk.agent()
        self.desk.seat(agent)
        self.desk.prover.there.clear()
        for _ in range(8):
            self.assertIsNotNone(self.desk.registry.lookup(HOST))
            self.desk.clock.advance(limits.PROVE_AGAIN)
            await self.ledger.look_again()
            await self.ledger.look_again()
        self.assertEqual(len(self.desk.prover.asked), 9)
        self.assertIsNone(self.desk.registry.lookup(HOST))
        self.assertTrue(self.desk.registry.suspended(HOST))
        self.assertEqual(voice.closed, ["revoked"])
        self.assertTrue((await self.again()).registry.suspended(HOST))

    async def test_found_again(self) -> None:
        await self.registered(free=False)
        self.prove()
        await self.ledger.prove(HOST, "ann")
        self.desk.registry.put(evolve(self.desk.registry.of(HOST, "ann"), state=Ownership.SUSPENDED))
        self.assertIsNone(self.desk.registry.lookup(HOST))
        await self.ledger.prove(HOST, "ann")
        self.assertIsNotNone(self.desk.registry.lookup(HOST))

    async def test_a_suspended_name_goes_to_who_proves_it(self) -> None:
        suspended = row(state=Ownership.SUSPENDED)
        await self.desk.bus.register(suspended)
        await self.registered(owner="bob", free=False)
        self.prove(owner="bob")
        await self.ledger.prove(HOST, "bob")
        found = (await self.again()).registry.lookup(HOST)
        assert found is not None
        self.assertEqual(found.owner, "bob")

    async def test_gone_while_it_was_looked_for(self) -> None:
        await self.registered(free=False)
        self.prove()
        looked: Deferred[bool] = Deferred()

        class Slow:
            async def look(self, wanted: object) -> bool:
                return await looked

        self.ledger.prover = Slow()
        proving = Deferred.fromCoroutine(self.ledger.prove(HOST, "ann"))
        await self.ledger.unregister(HOST, "ann")
        looked.callback(True)
        self.denied(self.failureResultOf(proving, Denied).value, Code.LEASE_EXPIRED)
        self.assertIsNone(self.desk.registry.lookup(HOST))

    async def test_no_more_look_ups_than_so_many(self) -> None:
        class Never:
            async def look(self, wanted: object) -> bool:
                return await Deferred[bool]()

        self.ledger.prover = Never()
        await self.registered(free=False)
        waiting = [Deferred.fromCoroutine(self.ledger.prove(HOST, "ann")) for _ in range(limits.PROVING)]
        self.denied(await raises(Denied, self.ledger.prove(HOST, "ann")), Code.NO_CAPACITY)
        waiting[0].cancel()
        waiting.append(Deferred.fromCoroutine(self.ledger.prove(HOST, "ann")))
        self.assertNoResult(waiting[-1])
        for one in waiting[1:]:
            one.cancel()
        for one in waiting:
            self.failureResultOf(one, CancelledError)
