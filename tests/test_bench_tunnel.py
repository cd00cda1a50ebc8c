"""The measurement of the browser tunnel: what it seals and reads, its tables, and one quick run of all of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench.load import NoLoad
from bench.processes import Child
from bench.report import Results, into_page
from bench.tunnel import (
    FIGURES,
    FULL,
    GATES,
    LAYOUTS,
    QUICK,
    SCRIPT_MOST,
    SMALL_WAYS,
    STREAM_WAYS,
    Watched,
    script_kib,
    tables,
)
from bench.tunnel_backend import AUTHORITY, SMALL, settings
from bench.tunnel_browser import BROWSERS
from bench.tunnel_load import Target, opened, parse, seal, seal_body
from bench.tunnel_stand import FRAMEWORKS, TITLES
from layer8.crypto.keys import NodeKey
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.settings import Settings
from layer8.tunnel.wire import KeyConfig, padded
from tests.names import ROOT


class LoadTests(SynchronousTestCase):
    """What is sent, and what is read of what comes back."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        gateway = Gateway.open(Settings(gateway="bench", authorities=[AUTHORITY], identity=NodeKey.make()))
        self.addCleanup(gateway.close)
        self.keys = KeyConfig.read_document(gateway.ohttp_keys())

    def test_all_requests_are_of_one_size_and_no_two_are_equal(self) -> None:
        made = [seal(self.keys, SMALL) for _ in range(10)]
        self.assertEqual({len(one.body) - one.inner for one in made}, {56})
        self.assertEqual({one.inner for one in made}, {512})
        self.assertEqual(len({one.body[7:39] for one in made}), 10)

    def test_a_body_is_sealed_as_the_page_says(self) -> None:
        size = 300_000
        seal_body(self.keys, "/up", size, self.folder / "body")
        chunks = -(-padded(size + 200) // 16384)
        self.assertLess(abs((self.folder / "body").stat().st_size - padded(size + 200) - 56 - 20 * (chunks - 1)), 16384)

    def test_an_answer_of_others_is_none(self) -> None:
        with self.assertRaisesRegex(NoLoad, "does not open"):
            opened(seal(self.keys, SMALL).context, bytes(600))

    def test_wrk(self) -> None:
        said = 'Running\n  9 requests\n\n{"requests": 90, "us": 3000000, "errors": 1, "p50": 1500, "p99": 9000}\n'
        found = parse(said)
        self.assertEqual((found.rate, found.errors, found.p50, found.p99), (30.0, 1, 1.5, 9.0))
        for nothing in ("unable to connect", '{"requests": 0, "us": 1, "errors": 9, "p50": 0, "p99": 0}'):
            with self.assertRaises(NoLoad):
                parse(nothing)

    def test_urls(self) -> None:
        self.assertEqual(Target("http://127.0.0.1:1").url(SMALL), "http://127.0.0.1:1/small")
        self.assertEqual(Target("http://127.0.0.1:1", "shop").url(SMALL), "http://127.0.0.1:1/r/shop")
        with self.assertRaisesRegex(NoLoad, "no keys"):
            Target("http://127.0.0.1:1", "shop").learn()

    def test_gateways_are_called_as_their_folders(self) -> None:
        self.assertEqual(settings("/a/layer8-flask")["gateway"], "layer8-flask")


class TableTests(SynchronousTestCase):
    """What is asked for is measured, and what is measured is shown."""

    def test_rows_and_values(self) -> None:
        results = Results(dict(TITLES))
        tunnel = {"rate.relay": 200.0, "rate.gateway": 300.0, "down.relay": 1.0, "up.relay": 1.0}
        tunnel |= {"down.gateway": 1.0, "up.gateway": 20.0, "bytes.up": 56.0, "bytes.down": 33.0, "script.kib": 20.0}
        common = {"rate.rps": 1000.0, "rate.backend": 100.0, "down.gbps": 1.0, "up.gbps": 1.0}
        common |= dict.fromkeys(("one.p50", "one.p99", "half.p50", "half.p99", "half.rps"), 1.0)
        for name in TITLES:
            if name in BROWSERS:
                results.add(name, {"page.tunnel": 5.0, "page.plain": 2.0}, False)
            else:
                results.add(name, {**common, **(tunnel if name.startswith("layer8") else {})}, False)
        made = tables(results, list(TITLES))
        titles = [title for title, _, _ in made]
        self.assertEqual(titles[: len(LAYOUTS)], [layout.title for layout in LAYOUTS])
        self.assertEqual(titles[-1], "Targets of the tunnel")
        rows = made[-1][2]
        self.assertEqual(len(rows), len(GATES))
        missed = {text for text, _, _, verdict in rows if verdict == "MISSED"}
        self.assertEqual(missed, {"gateway grows by, up, MiB"})
        units = next(body for title, _, body in made if "units" in title)
        self.assertIn(["layer8: relay, sidecar", "2.00", "3.00", "1.00"], units)

    def test_nothing_measured(self) -> None:
        made = tables(Results(dict(TITLES)), list(TITLES))
        self.assertEqual([title for title, _, body in made if body], [])

    def test_names(self) -> None:
        known = set(TITLES)
        self.assertLessEqual({*SMALL_WAYS, *STREAM_WAYS, *BROWSERS, *FRAMEWORKS}, known)
        for gate in GATES:
            self.assertLessEqual({gate.ours[0], *(gate.theirs or ())[:1]}, known)
        self.assertEqual(len({figure.name for figure in FIGURES}), len(FIGURES))

    def test_a_full_run_is_over_in_ten_minutes(self) -> None:
        """Rounds alone; sealing, streams and browsers are a minute and a half."""
        ways = [name for name in TITLES if name not in BROWSERS]
        small = len([name for name in ways if name in SMALL_WAYS])
        seconds = FULL.rounds * (len(ways) * FULL.seconds + small * (FULL.seconds // 3 + FULL.seconds // 2))
        self.assertLess(seconds, 420)
        self.assertLess(QUICK.rounds * len(ways) * QUICK.seconds, 20)
        self.assertEqual(evolve(FULL, rounds=1).rounds, 1)

    def test_the_script_is_small(self) -> None:
        self.assertLess(script_kib(), SCRIPT_MOST)

    def test_the_page_has_a_place_for_it(self) -> None:
        page = (ROOT / "docs" / "tunnel-performance.md").read_text()
        self.assertIn("\nFIGURES\n", into_page(page, "FIGURES\n", "tunnel"))
        self.assertIn("layer8 bench tunnel --markdown docs/tunnel-performance.md", page)

    def test_growth_is_of_this_moment(self) -> None:
        """What a process had and gave back before does not count."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        body = "import sys; x = b'x' * (64 << 20); del x; print('a', flush=True); sys.stdin.readline()"
        body += "; x = b'y' * (32 << 20); print('b', flush=True); sys.stdin.readline()"
        child = Child.start("grower", [sys.executable, "-c", body], folder, stdin=subprocess.PIPE)
        self.addCleanup(child.end)
        until(child, "a")
        watched = Watched.begin(child)
        self.assertLess(watched.grown(), 1 << 20)
        assert child.popen.stdin is not None
        child.popen.stdin.write(b"\n")
        child.popen.stdin.flush()
        until(child, "b")
        self.assertLess(abs(watched.grown() - (32 << 20)), 4 << 20)


def until(child: Child, word: str) -> None:
    for _ in range(2000):
        if word in child.output.read_text().split():
            return
        if child.popen.poll() is not None:
            break
        subprocess.run(["sleep", "0.01"], check=True)
    raise AssertionError(child.last_words())


class RunTests(SynchronousTestCase):
    """All of it, once, for a second each."""

    timeout = 110

    def test_quick(self) -> None:
        for program in ("wrk", "curl"):
            if shutil.which(program) is None:
                raise SkipTest(f"needs Debian's {program}")
        argv = [sys.executable, "-m", "bench.tunnel", "--quick", "--json", "--only", "layer8"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT, env=environ)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        said = json.loads(ran.stdout)
        self.assertEqual(said["missing"], {})
        ours, direct = said["systems"]["layer8"], said["systems"]["direct"]
        self.assertEqual((ours["bytes.up"]["median"], ours["bytes.down"]["median"]), (56.0, 33.0))
        for name in ("rate.rps", "rate.relay", "rate.gateway", "one.p50", "half.p99", "down.gbps", "up.gbps"):
            self.assertGreater(ours[name]["median"], 0, name)
        for name in ("down.relay", "down.gateway", "up.relay", "up.gateway"):
            self.assertLess(ours[name]["median"], 16, name)
        self.assertGreater(direct["rate.rps"]["median"], ours["rate.rps"]["median"])
