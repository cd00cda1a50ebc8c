"""Connections dialled ahead where an agent is connected to one worker and its visitors come to all, under wrk."""

from __future__ import annotations

import os
import signal
import time

from tests.interop.daemons import Agent, Proxy, missing, until
from tests.resilience.rig import note
from tests.resilience.test_takeover import Wrk
from tests.resilience.test_workers import AGENTLESS, WorkersCase

HANDS = 8
"""Connections of wrk: as many can be in the hands of a worker that is killed."""
SHARE = 0.8
"""Of the visitors, at least, that are carried on a connection which was dialled ahead."""


class PoolTests(WorkersCase):
    skip = missing(wrk="wrk")

    def begin(self) -> tuple[Proxy, Agent, int, int]:
        """Start all, let both workers have visitors; and give the ids of who holds the agent and of who does not."""
        server = self.two()
        agent = self.agent(server, "web.test")
        self.assertEqual(set(self.everywhere(server, "web.test")), {True})
        held = server.ask("proxy.subscribers")["subscribers"][0]["subscription"]
        pids = self.pids(server)
        return server, agent, pids[(held - 1) % 2], pids[held % 2]

    def share(self, server: Proxy, since: int) -> tuple[float, list[str]]:
        """Give which part of the visitors after the first ones was carried so, and how all ended."""
        time.sleep(0.6)  # the log is written four times a second
        rows = server.access()[since:]
        return sum(row["pooled"] for row in rows) / max(len(rows), 1), sorted({row["reason"] for row in rows})

    def test_visitors_of_both_workers(self) -> None:
        server, agent, _, _ = self.begin()
        time.sleep(0.6)
        since = len(server.access())
        answered, errors, said = Wrk(self, server.http, "web.test", 4, connections=HANDS).result()
        share, reasons = self.share(server, since)
        note(f"one agent, two workers: {answered} requests, errors {errors}, {share:.0%} on connections dialled ahead")
        self.assertEqual({kind for kind, count in errors.items() if count}, set(), said)
        self.assertGreater(answered, 200, said)
        self.assertGreater(share, SHARE)
        self.assertLessEqual(set(reasons), {"done", "visitor_reset", "visitor_left"})  # wrk leaves at its end
        self.both_had_visitors(server)
        self.quiet(server, agent)

    def killed(self, server: Proxy, agent: Agent, victim: int) -> None:
        wrk = Wrk(self, server.http, "web.test", 7, connections=HANDS)
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        until("it is started again", lambda: victim not in self.pids(server))
        self.all_serve(server)
        answered, errors, said = wrk.result()
        turned = sum(line["reason"] in AGENTLESS for line in server.access())
        note(f"a worker killed under load: {answered} requests, errors {errors}, {turned} found no agent")
        self.assertEqual((errors.get("connect", 0), errors.get("write", 0), errors.get("timeout", 0)), (0, 0, 0), said)
        self.assertLessEqual(errors.get("read", 0), HANDS, "at most what was in its hands")
        self.assertEqual(turned, 0)
        self.assertEqual(set(self.everywhere(server, "web.test")), {True})
        time.sleep(0.6)
        since = len(server.access())
        self.assertEqual(set(self.everywhere(server, "web.test")), {True})
        self.assertGreater(self.share(server, since)[0], SHARE, "and all is as it was")
        self.quiet(server, agent)

    def test_the_worker_that_holds_the_agent_is_killed(self) -> None:
        server, agent, holder, _ = self.begin()
        self.killed(server, agent, holder)

    def test_the_other_worker_is_killed(self) -> None:
        server, agent, _, other = self.begin()
        self.killed(server, agent, other)
