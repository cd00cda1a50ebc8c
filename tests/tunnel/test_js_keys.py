"""A page's keys over time: rotation, three days, restarts; no request fails, none is sealed to an old key."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from layer8.testing.browser import Firefox
from layer8.tunnel.keys import CACHED, FRESH, HOUR, GatewayKey
from tests.tunnel.crooked import wall
from tests.tunnel.test_js_failures import CrookedCase

DAYS = 3


class JsKeyTests(CrookedCase):
    """Keys."""

    async def test_rotation_during_a_thousand_requests(self) -> None:
        """Gateways change keys while pages ask; what was sealed to the old one opens (L26)."""
        from twisted.internet import reactor

        await self.open()
        end = self.stage.gateways["shop"]
        await self.run_js("await L8.connect(options)", options=self.stage.connect())
        going: Deferred[Any] = Deferred.fromCoroutine(
            self.run_js(
                """
                const said = {};
                let next = 0;
                const one = async () => {
                  while (next < 1000) {
                    const asked = L8.fetch(`/status/200?${next++}`);
                    const answer = await asked.then((one) => one.status, (error) => error.code);
                    said[answer] = (said[answer] ?? 0) + 1;
                  }
                };
                await Promise.all(Array.from({ length: 8 }, one));
                return said;
                """
            )
        )
        for least in (100, 400, 700):
            while len(end.backend.calls) < least and not going.called:
                await deferLater(reactor, 0.01)
            end.rotate()
        self.assertEqual(await going, {"200": 1000})
        self.assertEqual(len(end.backend.calls), 1000)

    async def test_an_emergency(self) -> None:
        """The gateway has thrown its key away: what is safe is sent again to the new one, the rest waits for it."""
        await self.open()
        hour = int(wall() // HOUR)
        crooked = self.relay(key=GatewayKey.make(hour - 1))
        await self.connect(crooked)
        crooked.key = GatewayKey.make(hour)
        found = await self.run_js(
            """
            const all = Array.from({ length: 20 }, (_, at) => L8.fetch(`/${at}`).then((one) => one.status));
            const [first] = await Promise.all(all);
            const post = await L8.fetch("/post", { method: "POST" });
            return [first, post.status, (await L8.status()).tunnels[0].epoch];
            """
        )
        self.assertEqual(found, [200, 200, crooked.key.epoch])
        self.assertEqual((crooked.looks, len(crooked.calls)), (2, 21))

    async def test_three_days(self) -> None:
        """Requests at any hour for three days; keys are looked for half a day before they end (section 10)."""
        await self.open()
        crooked = self.relay()
        epoch = crooked.key.epoch
        await self.run_js(
            "globalThis.ahead = 0; const now = Date.now; Date.now = () => now() + ahead; await L8.connect(options)",
            options=crooked.connect(),
        )
        states, epochs = [], []
        for hour in range(24 * DAYS + 1):
            crooked.ahead = hour * HOUR
            if hour and hour % 24 == 0:  # a day is over
                crooked.old.append(crooked.key)
                crooked.key = GatewayKey.make(epoch + hour)
            # What is beyond its 72 hours opens no more.
            crooked.old = [key for key in crooked.old if hour - (key.epoch - epoch) < 72]
            found = await self.run_js(
                """
                ahead = hours * 3600 * 1000;
                const first = await L8.fetch("/a").then((one) => one.status, (error) => error.code);
                await new Promise((done) => setTimeout(done, 5));
                const { state, epoch, expires } = (await L8.status()).tunnels[0];
                return [first, state, epoch, Date.parse(expires) / 1000];
                """,
                hours=hour,
            )
            self.assertEqual(found[0], 200, hour)
            states.append(found[1])
            epochs.append(found[2])
            self.assertGreater(found[3], wall() + crooked.ahead)
        self.assertEqual(set(states[:30]), {"ready"})
        self.assertEqual(epochs, sorted(epochs))
        first = next(at for at, one in enumerate(epochs) if one != epoch)
        self.assertLessEqual(abs(first - (CACHED - FRESH) // HOUR), 2)
        self.assertEqual(epochs[first], epoch + 24)
        self.assertLessEqual(crooked.looks, 4)
        self.assertEqual(len(crooked.calls), 24 * DAYS + 1)

    async def test_restarts(self) -> None:
        """Each part goes and comes back between two requests of one page, and the session stays (L32)."""
        await self.open()
        stage, end = self.stage, self.stage.gateways["shop"]
        await self.run_js("await L8.connect(o); await L8.fetch('/cookies/set?a=1')", o=stage.connect(session="memory"))
        ask = "return (await (await L8.fetch('/cookies')).json()).cookie"
        self.assertEqual(await self.run_js(ask), ["a=1"])
        await end.stop()
        said = await self.failure("L8.fetch('/cookies', { method: 'POST' })")
        self.assertIn(said["code"], ("busy", "lost"))
        end.start()
        self.assertEqual(await self.run_js(ask), ["a=1"])
        await end.backend.close()
        end.backend.open()
        self.assertEqual(await self.run_js(ask), ["a=1"])
        tap = stage.front[0]
        await tap.close()
        tap.listen(tap.port)
        self.assertEqual(await self.run_js(ask), ["a=1"])


class FirefoxJsKeyTests(JsKeyTests):
    """The same."""

    kind = Firefox
    skip = Firefox.absent()
