"""Visitors on connections that were dialled ahead: server and agent in one process, on real sockets."""

from __future__ import annotations

from typing import Any

from layer8.crypto.secret import HostSecret
from layer8.net.dial import Where
from layer8.proxy.uplink import ANY_PORT, Published
from tests.proxy.pair import Echo, PairCase, get, visit


class PoolCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)

    def start(self, more: str = "") -> tuple[Any, HostSecret]:
        secret, path = self.secret()
        return self.serve(more, f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n'), secret

    def host(self, secret: HostSecret, pool: int = 2, port: int = 0) -> Published:
        return Published("app.test", secret.key, {ANY_PORT: Where("127.0.0.1", port or self.echo.port)}, pool=pool)


class OneTests(PoolCase):
    async def test_whole(self) -> None:
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        await self.until(lambda: server.ahead.pools.idle == 2)
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.endswith(get("app.test")), got)
        self.assertEqual(self.echo.got, [get("app.test")])
        self.assertEqual(server.ahead.pools.hits, 1)
        await self.until(lambda: server.ahead.pools.idle == 2)
        self.assertEqual(len(agent.uplinks[0].reserve), 2)
