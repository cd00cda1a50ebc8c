"""The bus between workers does what every bus does, and takes the end of a process for the end of what it held."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define
from twisted.internet.task import Clock

from layer8.control.errors import CallUnavailable, answer_to, from_wire
from layer8.core.errors import StorageError, Unavailable
from layer8.net.sqlite import Database
from layer8.proxy.bus import Bus, Presence, Put
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.bus_unix import Hub, UnixBus
from layer8.proxy.limits import BUS_LEASE
from layer8.proxy.orders import Policy
from layer8.proxy.packed import pack, unpack
from layer8.proxy.registration import gate
from layer8.proxy.store import SCHEMA, Store
from layer8.testing.storage import InlineStorage
from tests.control.rig import raises
from tests.proxy.bus_suite import Suite
from tests.proxy.desk import HOST, row


def copied(value: Any) -> Any:
    """What is left of a value after a message."""
    return json.loads(json.dumps(value))


@define(eq=False)
class ToHub:
    """An end's connection, delivered at once."""

    hub: Hub
    node: bytes

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        try:
            return copied(await self.hub.serve(self.node, method, copied(params)))
        except Exception as error:
            answer = answer_to(error, "bug")
            raise from_wire(answer.code, answer.message, copied(answer.data)) from error

    def tell(self, method: str, params: Mapping[str, Any]) -> bool:
        self.hub.told(self.node, method, copied(params))
        return True

    def carry(self, message: bytes) -> bool:
        self.hub.raw(self.node, message)
        return True


@define(eq=False)
class ToEnd:
    """The hub's side of it."""

    end: UnixBus
    up: bool = True

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        raise CallUnavailable("nobody calls an end here")

    def tell(self, method: str, params: Mapping[str, Any]) -> bool:
        return self.up and self.end.told(method, copied(params))

    def carry(self, message: bytes) -> bool:
        if self.up:
            self.end.raw(message)
        return self.up


class UnixBusTests(Suite.BusTests):
    nodes = 3

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "proxy.db"
        self.leaving: dict[int, Any] = {}
        super().setUp()

    def make(self, number: int) -> Bus:
        if number == 0:
            self.storage = InlineStorage(Database(self.path, SCHEMA))
            store = Store(self.storage, 64)
            local = LocalBus(getattr(self, "clock", None) or Clock(), store, b"hub".ljust(32), store.load().rows)
            self.local, self.hub = local, Hub(local, self.clock)
        end = UnixBus(self.clock, self.node(number))
        end.connect(ToHub(self.hub, self.node(number)))
        rows = self.at_once(self.local.registrations())
        for what, params in self.hub.snapshot(rows):
            end.told(what, copied(params))
        self.leaving[number] = self.hub.join(self.node(number), ToEnd(end))
        return end

    def at_once(self, waiting: Any) -> Any:
        """Run a coroutine that has nothing to wait for."""
        try:
            waiting.send(None)
        except StopIteration as ended:
            return ended.value
        raise AssertionError("it waits")

    def again(self) -> Bus:
        self.storage.close()
        return self.make(0)

    async def test_a_process_that_ends(self) -> None:
        lease = await self.buses[0].lease(Presence(HOST, self.node(0), 1))
        self.assertEqual(self.buses[2].lookup(HOST), (lease.presence,))
        self.leaving[0]()
        self.assertEqual(self.buses[2].lookup(HOST), (), "at once, not when the lease ends")
        await raises(Unavailable, self.buses[2].notify(self.node(0), b"x"))
        await raises(Unavailable, self.buses[0].register(row()))
        self.leaving[0]()

    async def test_a_process_that_comes_back(self) -> None:
        await self.buses[0].register(row())
        other = await self.buses[2].lease(Presence(HOST, self.node(2), 7, 2, 3, 4))
        lapsed = await self.buses[0].lease(Presence("o.test", self.node(0), 8))
        self.clock.advance(BUS_LEASE / 2)
        await self.buses[2].renew([other])
        self.clock.advance(BUS_LEASE / 2)
        self.leaving[1]()
        back = self.make(1)
        self.assertEqual(await self.stands(back), [row()])
        self.assertEqual(back.lookup(HOST), (other.presence,))
        self.assertEqual(back.lookup(lapsed.presence.host), ())
        old, new = self.leaving[1], self.hub.join(self.node(1), ToEnd(UnixBus(self.clock, self.node(1))))
        old()
        self.assertIn(self.node(1), self.hub.nodes, "the end of an earlier one is not the end of the later")
        new()
        self.assertNotIn(self.node(1), self.hub.nodes)

    async def test_the_hub_ends(self) -> None:
        lease = await self.buses[0].lease(Presence(HOST, self.node(0), 1))
        end = self.buses[1]
        assert isinstance(end, UnixBus)
        end.lost()
        self.assertEqual(end.lookup(HOST), (lease.presence,), "what is known stays known")
        await raises(Unavailable, end.notify(self.node(0), b"x"))
        await raises(Unavailable, end.lease(lease.presence))

    async def test_a_disk_that_fails(self) -> None:
        self.storage.close()
        await raises(Unavailable, self.buses[1].register(row()))
        self.assertEqual(self.told[1], [])
        self.assertNotEqual(StorageError, Unavailable)

    async def test_all_of_a_registration(self) -> None:
        policy = Policy(allow=("10.0.0.0/8",), deny=("10.1.0.0/16",), max_conns=7)
        full = row(policy=policy, gate=gate(policy, 64), ports=(80, 443), expires=9.5, proven=3.25)
        self.assertEqual(unpack(copied(pack(full))), full)
        await self.buses[0].register(full)
        found = (await self.stands(self.buses[2]))[0]
        assert found.gate is not None
        self.assertEqual((found.gate.admits("10.2.0.1"), found.gate.admits("10.1.0.1")), (True, False))
        self.assertEqual(self.told[2], [Put(full)])

    async def test_many_leases_are_renewed_in_several_messages(self) -> None:
        leases = [await self.buses[0].lease(Presence(f"h{n}.test", self.node(0), n)) for n in range(1201)]
        self.clock.advance(BUS_LEASE - 1)
        self.assertEqual(await self.buses[0].renew(leases), ())
        self.clock.advance(BUS_LEASE - 1)
        self.assertEqual(len([n for n in range(1201) if self.buses[1].lookup(f"h{n}.test")]), 1201)
        self.clock.advance(1)
        self.assertEqual(await self.buses[0].renew(leases), tuple(leases))
