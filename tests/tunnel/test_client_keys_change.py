"""A gateway changes its keys while a client asks it, a thousand times and by several relays."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from layer8.tunnel.client import L8Client
from layer8.tunnel.limits import KEYS_HURRY
from tests.tunnel.test_client import ClientCase

REQUESTS = 1000
AT_ONCE = 10
CHANGES = 4


class ChangeTests(ClientCase):
    async def test_a_thousand_requests(self) -> None:
        """L26: what is sealed to a key that is no longer offered still opens; nobody has to ask again."""
        client = await self.client()
        await (await client.get("/bytes/1")).content()
        clients: list[L8Client] = [client]
        asked = 0

        async def some(number: int) -> None:
            nonlocal asked
            for _ in range(REQUESTS // AT_ONCE):
                answer = await clients[(asked + number) % len(clients)].post("/echo", b"%d" % asked)
                self.assertEqual(answer.status, 200)
                await answer.content()
                asked += 1

        async def change() -> None:
            for number in range(CHANGES):
                while asked < REQUESTS * (number + 1) // (CHANGES + 2):
                    await self.pause()
                await self.rotate()
                clients.append(self.another())

        tasks = [Deferred.fromCoroutine(some(number)) for number in range(AT_ONCE)]
        await gatherResults([*tasks, Deferred.fromCoroutine(change())])
        self.assertEqual(asked, REQUESTS)
        self.assertEqual(len(self.calls), REQUESTS + 1)
        self.assertEqual(len({one.epoch for one in clients}), CHANGES + 1)

    async def test_a_key_that_was_stolen(self) -> None:
        """The old one opens nothing any more: what changes nothing is asked again by itself, the rest is told."""
        client = await self.client()
        await (await client.get("/echo")).content()
        before = client.epoch
        await self.rotate(client, drop=True)
        self.assertEqual((await client.get("/echo")).status, 200)
        self.assertNotEqual(client.epoch, before)
        await self.rotate(client, drop=True)
        calls = len(self.calls)
        error = await self.fails("keys", client.post("/echo", b"once"))
        self.assertTrue(error.retryable)
        self.assertEqual(len(self.calls), calls)
        self.assertEqual((await client.post("/echo", b"again")).status, 200)
        await self.rotate(client, drop=True)
        answer = await client.post("/echo", b"x", headers={"Idempotency-Key": "1"})
        self.assertEqual((answer.status, len(self.calls)), (200, calls + 2))

    async def rotate(self, client: L8Client | None = None, *, drop: bool = False) -> None:
        """Change the key, and let relays and a client look at the next occasion: they do so every few minutes only."""
        keeping = self.stage.relay_services[0].keeping
        kept = keeping.kept["shop"]
        before = kept.document
        self.stage.gateways["shop"].rotate(drop=drop)
        kept.copy._looked = None
        keeping.hurry("shop")
        while kept.document == before:
            await self.pause()
        if client is not None:
            client._keys._asked -= KEYS_HURRY

    async def pause(self) -> None:
        from twisted.internet import reactor

        await deferLater(reactor, 0.01, lambda: None)
