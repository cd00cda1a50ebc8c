"""The steady load of `layer8 bench soak` for minutes instead of an hour, and what the verdict is made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench.soak import BANDWIDTH, FLAT, Look, drift, rows, verdicts
from tests.interop.daemons import ROOT
from tests.resilience.rig import note

MINUTES = 1.6
SOUND = {"stay begun": 10, "slow begun": 5, "stay served": 100, "crowd served": 100, "crowd refused": 2}
WANTED = {"stay": 10, "slow": 5}


def looks(*server_rss: int) -> list[Look]:
    """Looks at a server whose memory changes so, and nothing else."""
    return [Look(float(at), rss, 100, 50_000_000, 80) for at, rss in enumerate(server_rss)]


class VerdictTests(SynchronousTestCase):
    """What grows is found, and what was let down."""

    def test_growth_after_the_warm_up(self) -> None:
        warm, flat = [1000 * n for n in range(1, 26)], [30_000] * 75
        self.assertEqual(drift(looks(*warm, *flat))["server_rss"], 0)
        grown = drift(looks(*warm, *(30_000 + 40 * n for n in range(75))))
        self.assertGreater(grown["server_rss"], FLAT)
        self.assertEqual((grown["server_fds"], grown["agent_rss"], grown["agent_fds"]), (0, 0, 0))
        self.assertEqual(verdicts(grown, Counter(SOUND), 0.0, WANTED), ["server_rss changed by +7.9%"])

    def test_a_shrinking_process_is_not_flat_either(self) -> None:
        found = drift(looks(*[1] * 25, *range(40_000, 30_000, -100)))
        self.assertEqual(len(verdicts(found, Counter(SOUND), 0.0, WANTED)), 1)

    def test_everybody_counts(self) -> None:
        sound = verdicts({}, Counter(SOUND), BANDWIDTH, WANTED)
        self.assertEqual(sound, [])
        for change in (
            {"broken": 1},
            {"still reading on": 6, "resumed": 10},
            {"stay refused": 1},
            {"crowd refused": 6},
            {"stay begun": 9},
            {"slow begun": 0},
        ):
            self.assertEqual(len(verdicts({}, Counter({**SOUND, **change}), BANDWIDTH, WANTED)), 1, change)
        self.assertEqual(len(verdicts({}, Counter(SOUND), BANDWIDTH * 1.2, WANTED)), 1)

    def test_rows(self) -> None:
        made = rows(looks(*[50_000_000] * 100))
        self.assertEqual(len(made), 10)
        self.assertEqual(made[0], ["0.0-0.1", "50.0", "100", "50.0", "80"])


class SoakTests(SynchronousTestCase):
    """1,000 paused and 100 throttled downloads, 20 visitors a second, and 1 % of 100 agents replaced each second."""

    skip = None if shutil.which("cc") else "needs Debian's gcc"

    def test_minutes(self) -> None:
        argv = [sys.executable, "-m", "bench.soak", "--minutes", str(MINUTES), "--json"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=MINUTES * 60 + 120)
        if "descriptors here" in ran.stderr:
            raise SkipTest(ran.stderr.strip().splitlines()[-1])
        self.assertTrue(ran.stdout, ran.stderr[-2000:])
        found = json.loads(ran.stdout)
        for cells in (found["rows"][2], found["rows"][-1]):
            note("soak, minutes {}: server {} MB and {} descriptors, agent {} MB and {}".format(*cells))
        self.assertEqual(found["wrong"], [], found["counts"])
        self.assertEqual(ran.returncode, 0)
        self.assertGreater(found["counts"]["agents replaced"], MINUTES * 60 / 2)
        self.assertGreater(found["counts"]["resumed"], 500)
        self.assertGreater(found["counts"]["paused to the end"], 950)
