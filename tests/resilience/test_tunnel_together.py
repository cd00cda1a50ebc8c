"""Relay and workers of the browser tunnel that are restarted and killed at the same time, while clients go on asking.

What changes something is asked once: only after `unreachable`, which says that nothing was sent, is the same number
asked again. What changes nothing is asked until it is answered. The backend notes each number that it hears.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.tunnel.client import CODES, L8Client, L8Error
from layer8.tunnel.keys import pin_text
from tests.interop.daemons import folder, free_port, until
from tests.interop.tunnels import Part
from tests.tunnel.sealed import AUTHORITY
from tests.tunnel.workers import Backend

WORKERS = 4
LANES = 6
"""Requests at a time, half of them with a body."""
BETWEEN = 20
"""Answers of either kind before, between and after what is done to relay and workers."""
PAUSE_S = 0.01
AGAIN_S = 0.1
LIMIT_S = 60.0


@define(eq=False)
class Load:
    """Lanes of numbered requests, and what became of them."""

    reactor: Any
    clients: list[L8Client]
    going: bool = True
    got: list[int] = field(factory=list)
    posted: list[int] = field(factory=list)
    failed: dict[int, str] = field(factory=dict)  # of those with a body
    errors: Counter[str] = field(factory=Counter)  # of all, by code
    _next: int = 0

    async def lane(self, number: int) -> None:
        """Ask one after the other."""
        client, posts = self.clients[number % len(self.clients)], number % 2 == 0
        while self.going:
            self._next += 1
            await (self._post if posts else self._get)(client, self._next)
            await self._rest(PAUSE_S)

    async def _get(self, client: L8Client, number: int) -> None:
        while not await self._asked(client, "GET", number):
            await self._rest(AGAIN_S)
        self.got.append(number)

    async def _post(self, client: L8Client, number: int) -> None:
        while not await self._asked(client, "POST", number):
            if self.failed[number] != "unreachable":
                return
            del self.failed[number]
            await self._rest(AGAIN_S)
        self.posted.append(number)

    async def _asked(self, client: L8Client, method: str, number: int) -> bool:
        body = f"body of {number}" if method == "POST" else None
        try:
            answer = await client.request(method, f"/note/{number}", data=body, timeout=LIMIT_S)
            await answer.content()
        except L8Error as error:
            assert error.retryable and error.code in CODES, error
            self.errors[error.code] += 1
            if method == "POST":
                self.failed[number] = error.code
            return False
        assert answer.status == 200, answer.status
        return True

    def _rest(self, seconds: float) -> Deferred[None]:
        return deferLater(self.reactor, seconds, lambda: None)


class TogetherTests(TestCase):
    """L15, L32."""

    timeout = 110

    async def begin(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.notes = folder(self) / "notes"
        self.backend: Backend = await deferToThread(
            lambda: Backend.start(
                self,
                "tiny",
                workers=WORKERS,
                worker="--threads 4 --graceful-timeout 5",
                environ={"L8_NOTES": str(self.notes)},
            )
        )
        self.pin = pin_text(self.backend.identity.node_id)
        self.port, home = free_port(), folder(self)
        (home / "test.toml").write_text(
            '[control]\nlisten = []\n[log]\nformat = "json"\n'
            f'[tunnel]\nlisten = ["tcp:{self.port}:interface=127.0.0.1"]\n[[tunnel.gateway]]\nid = "shop"\n'
            f'endpoint = "tcp:127.0.0.1:{self.backend.port}"\nhost = "{AUTHORITY}"\nidentity = ["{self.pin}"]\n'
        )
        self.relay = Part("tunnel", home, self, (), ports=(self.port,))
        await deferToThread(self.relay.start)

    def client(self) -> L8Client:
        relay = f"http://127.0.0.1:{self.port}"
        client = L8Client(self.reactor, relay=relay, gateway="shop", pin=self.pin, authority=AUTHORITY)
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    def workers(self) -> list[int]:
        """Give the process ids of the workers that there are."""
        pid = self.backend.program.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def heard(self) -> list[tuple[int, str, int, str]]:
        """Give what the backend has noted: worker, method, number and body."""
        lines = [line.split(" ", 3) for line in self.notes.read_text().splitlines()]
        return [(int(pid), method, int(number), body) for pid, method, number, body in lines]

    async def more(self, load: Load) -> None:
        """Wait until more of either kind was answered."""
        got, posted = len(load.got) + BETWEEN, len(load.posted) + BETWEEN

        def answered() -> bool:
            return len(load.got) >= got and len(load.posted) >= posted

        await deferToThread(until, "more is answered", answered, LIMIT_S)

    async def both(self, *, kill: bool) -> None:
        """Restart the relay while the workers are replaced, of which one is killed."""
        before = self.workers()
        self.assertEqual(len(before), WORKERS)
        so_far = len(self.heard())

        def asked() -> list[int]:
            return [pid for pid, method, *_ in self.heard()[so_far:] if method == "POST" and pid in before]

        [pid, *_] = await deferToThread(until, "one has something to do", asked, LIMIT_S, 0.001)
        os.kill(pid, signal.SIGKILL)
        os.kill(self.backend.program.pid, signal.SIGHUP)
        await deferToThread(self.relay.again, kill=kill)

        def replaced() -> bool:
            now = self.workers()
            return len(now) == WORKERS and not set(now) & set(before)

        await deferToThread(until, "all workers are new", replaced, LIMIT_S)

    def empty(self) -> bool:
        """Say whether the relay has nothing under way."""
        told = self.relay.ask("ohttp.stats")
        return (told["under_way"], told["open_sockets"]) == (0, 0)

    async def test_at_the_same_time(self) -> None:
        await self.begin()
        clients = [self.client(), self.client()]
        load = Load(self.reactor, clients)
        lanes = gatherResults([Deferred.fromCoroutine(load.lane(n)) for n in range(LANES)], consumeErrors=True)
        await self.more(load)
        epochs = [client.epoch for client in clients]
        for kill in (False, True):
            await self.both(kill=kill)
            await self.more(load)
        load.going = False
        await lanes

        heard = self.heard()
        posts = Counter(number for _, method, number, _ in heard if method == "POST")
        self.assertEqual([number for number, times in posts.items() if times > 1], [], "nothing is done twice")
        self.assertEqual([body for _, _, number, body in heard if body not in ("", f"body of {number}")], [])
        self.assertEqual(set(load.posted) - set(posts), set(), "what was answered was done")
        self.assertEqual(set(posts) - set(load.posted) - set(load.failed), set(), "what was done was asked")
        self.assertEqual({number for _, method, number, _ in heard if method == "GET"}, set(load.got))
        # The relay, the worker that is killed and those that close idle connections: each may take along a lane's.
        self.assertLessEqual(len(load.failed), 3 * LANES, load.errors)
        self.assertIn("unreachable", load.errors, "it was noticed")
        self.assertLessEqual(set(load.errors), {"unreachable", "lost", "cut", "busy"}, load.errors)

        self.assertEqual([(client.state, client.epoch) for client in clients], [("ready", epoch) for epoch in epochs])
        self.assertEqual((await self.client().get("/")).status, 200, "somebody who is new, with the same pin")
        for client in clients:
            await client.close()
        await deferToThread(until, "nothing is under way", self.empty)
        self.assertEqual(self.relay.defects(), [])
        self.assertNotIn("Traceback", self.backend.program.said())
