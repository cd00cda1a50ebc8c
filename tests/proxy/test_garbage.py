"""What a visitor leaves behind: nothing that only the garbage collector would find.

The daemons freeze what is there at the start, so a collection of the oldest objects is rare, and cycles would add up.
"""

from __future__ import annotations

import gc
from collections import Counter

from tests.proxy.test_pooling import PoolCase

VISITORS = 20


class GarbageTests(PoolCase):
    """Server and agent in one process, through connections dialled ahead and without them."""

    async def _left(self, pool: int) -> Counter[str]:
        """Give what is left of `VISITORS`, by type."""
        server, secret = self.start()
        await self.publish(server, self.host(secret, pool=pool))
        if pool:
            await self.full(server, pool)
        row = server.registry.lookup("app.test")
        assert row is not None
        self.assertEqual(row.mode, "guard")
        await self.get(server)
        await self.until(lambda: not server.traffic.visits)
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        self.addCleanup(gc.garbage.clear)
        for _ in range(VISITORS):
            await self.get(server)
        await self.until(lambda: not server.traffic.visits)
        self.addCleanup(gc.set_debug, gc.get_debug())
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = Counter(type(one).__name__ for one in gc.garbage if type(one).__module__.startswith("layer8."))
        return Counter({name: count for name, count in ours.items() if count >= VISITORS // 2})

    async def test_dialled_ahead(self) -> None:
        self.assertEqual(await self._left(2), {})

    async def test_called(self) -> None:
        self.assertEqual(await self._left(0), {})
