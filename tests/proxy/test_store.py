"""What a restart must not lose, and what a damaged file must not become."""

import os
import stat
from pathlib import Path

from twisted.trial.unittest import TestCase

from layer8.core.errors import StorageError
from layer8.crypto.password import hashed
from layer8.net.sqlite import Database
from layer8.net.storage import Put, Value
from layer8.proxy.bans import Banned
from layer8.proxy.orders import Policy
from layer8.proxy.registration import Ownership, gate
from layer8.proxy.store import SCHEMA, Carried, Store
from layer8.testing.storage import InlineStorage
from tests.control.rig import raises
from tests.proxy.desk import HOST, OTHER, key_of, row


class StoreTests(TestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "proxy.db"
        self.open()

    def open(self) -> None:
        self.storage = InlineStorage(Database(self.path, SCHEMA))
        self.store = Store(self.storage, 64)

    def again(self) -> Store:
        self.storage.close()
        self.open()
        return self.store

    async def test_everything_of_a_registration(self) -> None:
        users = (f"ann:{hashed('a secret')}",)
        policy = Policy(("192.0.2.0/24",), ("192.0.2.1",), 3, 0.5, 200_000, "full", "terminate", users)
        whole = row(
            "*.example.com",
            b"\0" * 32,
            OTHER,
            ports=(80, 443),
            mode="proxy",
            policy=policy,
            state=Ownership.PROVEN,
            created=1.5,
            proven=2.5,
            expires=3.5,
            version=9,
            gate=gate(policy, 64),
        )
        await self.store.save(whole)
        (found,) = self.again().load().rows
        self.assertEqual(found, whole)
        assert found.gate is not None
        self.assertFalse(found.gate.admits("192.0.2.1"))

    async def test_saved_again_keeps_no_old_secret(self) -> None:
        await self.store.save(row(HOST, b"a" * 32, b"b" * 32, OTHER))
        await self.store.save(row(HOST, OTHER))
        (found,) = self.again().load().rows
        self.assertEqual([secret.key for secret in found.secrets], [key_of(OTHER)])
        self.assertEqual(len(self.storage.rows("secret")), 1)

    async def test_dropped(self) -> None:
        await self.store.save(row())
        await self.store.save(row(owner="bob", state=Ownership.PENDING))
        await self.store.carry({HOST: Carried(5, 6)})
        await self.store.drop(row(owner="bob", state=Ownership.PENDING))
        self.assertEqual(self.again().load().carried, {HOST: Carried(5, 6)})
        await self.store.drop(row())
        kept = self.again().load()
        self.assertEqual((kept.rows, kept.carried, self.storage.rows("secret")), ((), {}, []))

    async def test_bans(self) -> None:
        await self.store.ban(Banned("192.0.2.0/24", 10.0))
        await self.store.ban(Banned("192.0.2.0/24", 20.0))
        await self.store.ban(Banned("2001:db8::/32", 30.0))
        self.assertEqual(set(self.again().load().bans), {Banned("192.0.2.0/24", 20.0), Banned("2001:db8::/32", 30.0)})
        await self.store.unban(["192.0.2.0/24", "198.51.100.0/24"])
        self.assertEqual(self.again().load().bans, (Banned("2001:db8::/32", 30.0),))

    async def test_private_file_without_secrets(self) -> None:
        secret = bytes(range(100, 132))
        await self.store.save(row(HOST, secret))
        self.again()
        for file in self.path.parent.iterdir():
            self.assertEqual(stat.S_IMODE(os.stat(file).st_mode) & 0o077, 0)
            self.assertNotIn(secret, file.read_bytes())

    async def test_damaged_rows_are_named(self) -> None:
        good: dict[str, Value] = {
            "host": HOST, "owner": "ann", "ports": "[80]", "mode": "raw", "policy": "{}", "state": "owned",
            "created": 1.0, "proven": 0.0, "expires": None, "version": 1,
        }  # fmt: skip
        for column, wrong in (
            ("ports", "[0.5]"),
            ("ports", "80"),
            ("policy", '{"allow": ["nowhere"]}'),
            ("policy", "["),
            ("mode", "glass"),
            ("state", "sold"),
        ):
            await self.storage.write(Put("registration", good | {column: wrong}))
            error = self.assertRaises(StorageError, self.store.load)
            self.assertIn(HOST, str(error))

    async def test_a_closed_store_says_why(self) -> None:
        await self.storage.close()
        self.assertTrue(str(await raises(StorageError, self.store.save(row()))))
