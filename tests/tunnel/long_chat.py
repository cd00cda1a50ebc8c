"""A chat of 2^20 + 1 messages through a relay and a gateway, ten minutes long: `trial tests.tunnel.long_chat`."""

from __future__ import annotations

from twisted.internet.task import deferLater

from layer8.tunnel.limits import SOCKET_REKEY
from tests.tunnel import test_js_chat

COUNT = SOCKET_REKEY + 1
HOUR = 3600


class LongChat(test_js_chat.JsChatTests):
    """Both sides take new keys on the way, as they would for anybody."""

    timeout = HOUR

    async def test_chat(self) -> None:
        await self.begin()
        await self.run_js(
            "globalThis.told = null; chat(L8, count, 20).then((t) => (told = t), (error) => (told = [String(error)]))",
            count=COUNT,
        )
        told = None
        while told is None:
            await deferLater(self.stage.reactor, 1)
            for tap in (*self.stage.front, *self.stage.back.values()):
                tap.clear()
            told = await self.run_js("return told")
        self.assertEqual(told[:2], [COUNT, 1000])
        print(f"{COUNT} messages in {told[2] / 1000:.0f} s")
