"""The bus of one node does what every bus does, and a store that fails changes nothing."""

from pathlib import Path

from twisted.internet.task import Clock

from layer8.core.errors import StorageError
from layer8.net.sqlite import Database
from layer8.proxy.bus import Bus
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.store import SCHEMA, Store
from layer8.testing.storage import InlineStorage
from tests.control.rig import raises
from tests.proxy.bus_suite import Suite
from tests.proxy.desk import row


class LocalBusTests(Suite.BusTests):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "proxy.db"
        super().setUp()

    def make(self, number: int) -> Bus:
        self.storage = InlineStorage(Database(self.path, SCHEMA))
        store = Store(self.storage, 64)
        return LocalBus(getattr(self, "clock", None) or Clock(), store, self.node(number), store.load().rows)

    def again(self) -> Bus:
        self.storage.close()
        return self.make(0)

    async def test_a_failed_write_changes_nothing(self) -> None:
        await self.buses[0].register(row())
        self.storage.close()
        await raises(StorageError, self.buses[0].register(row("b.example.com")))
        await raises(StorageError, self.buses[0].remove(row()))
        self.assertEqual(await self.stands(self.buses[0]), [row()])
        self.assertEqual(len(self.told[0]), 1)
