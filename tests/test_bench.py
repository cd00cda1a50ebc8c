"""The measurements' own arithmetic, parsers and tables, and that blast moves the bytes that it counts."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench import cell
from bench.delay import Delay, far_figures, far_systems
from bench.figures import FIGURES
from bench.hotspots import perf_lines
from bench.load import Load, NoLoad, build, parse_iperf3, parse_wrk
from bench.machine import Foreign, busy_s
from bench.onion import measure
from bench.processes import Child, DidNotStart, free_port, rollup
from bench.report import BEGIN, END, Results, into_page, markdown, tables
from bench.stats import Summary, ratio, short
from bench.systems import ONE_HOP, layer8_config
from bench.tunnels import TUNNELS
from layer8.cli.bench import checkout
from layer8.core.errors import Unavailable
from tests.names import ROOT

WRK = """Running 1s test @ http://127.0.0.1:9/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   156.41us   50.79us   1.35ms   80.04%
    Req/Sec   103.5k     2.21k    105.52k    81.82%
  113166 requests in 1.10s, 30.00MB read
{errors}Requests/sec: 102917.19
Transfer/sec:     27.28MB
"""

PERF = """# Overhead  Shared Object
# ........  .............
#
    81.20%  [kernel.kallsyms]
    12.01%  python3.11

     1.50%  libc.so.6
"""


class NumberTests(SynchronousTestCase):
    """Medians, ranges and how they are written."""

    def test_short(self) -> None:
        self.assertEqual(
            [short(value) for value in (0, 0.0123, 0.62, 5.873, 58.73, 587.3, 13384.4)],
            ["0", "0.01", "0.62", "5.87", "58.7", "587", "13384"],
        )

    def test_summary(self) -> None:
        found = Summary.of([3.0, 1.0, 2.0], noisy=1)
        self.assertEqual(found, Summary(2.0, 1.0, 3.0, 3, 1))
        assert found is not None
        self.assertEqual(found.text(), "2.00 (1.00-3.00)")
        self.assertEqual(Summary(2.0, 1.0, 3.0, 3, 2).text(), "~2.00 (1.00-3.00)")
        self.assertEqual(Summary(2.0, 2.0, 2.0, 1).text(), "2.00")
        self.assertIsNone(Summary.of([]))

    def test_ratio(self) -> None:
        two, four, none = Summary(2, 2, 2, 1), Summary(4, 4, 4, 1), Summary(0, 0, 0, 1)
        self.assertEqual(ratio(two, four), 0.5)
        self.assertIsNone(ratio(two, none))
        self.assertIsNone(ratio(None, two))


class ParserTests(SynchronousTestCase):
    """What other programs print."""

    def test_wrk(self) -> None:
        clean = parse_wrk(WRK.format(errors=""))
        self.assertEqual((clean.count, clean.per_second, clean.errors), (113166, 102917.19, 0))
        bad = "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n"
        self.assertEqual(parse_wrk(WRK.format(errors=bad)).errors, 54321)
        with self.assertRaisesRegex(NoLoad, "unable to connect"):
            parse_wrk("unable to connect to 127.0.0.1:9 Connection refused")

    def test_iperf3(self) -> None:
        self.assertEqual(parse_iperf3(json.dumps({"end": {"sum_received": {"bits_per_second": 8e9}}})), 1e9)
        with self.assertRaisesRegex(NoLoad, "busy"):
            parse_iperf3(json.dumps({"error": "the server is busy"}))

    def test_proc(self) -> None:
        self.assertEqual(rollup("Rss:  10 kB\nPss:    4 kB\nPss_Anon: 2 kB\n", "Pss"), 4096)
        self.assertEqual(rollup("", "Pss"), 0)
        ticks = busy_s("cpu  100 0 200 5000 70 0 30 0 0 0\ncpu0 1 1 1 1\n")
        self.assertEqual(ticks, busy_s("cpu 330 0 0 1 2 0 0 0 0 0\n"))
        self.assertGreater(ticks, 0)

    def test_perf(self) -> None:
        self.assertEqual([line.split()[0] for line in perf_lines(PERF)], ["81.20%", "12.01%", "1.50%"])


class ReportTests(SynchronousTestCase):
    """The tables."""

    def setUp(self) -> None:
        self.results = Results({"layer8": "layer8 (Host|log)", "haproxy-best": "haproxy, splice", "frp": "frp"})
        for gbps in (5.0, 6.0, 7.0):
            self.results.add("haproxy-best", {"down8.gbps": gbps, "down8.cpu": 60.0}, False)
        for gbps in (5.0, 5.4, 5.8):
            self.results.add("layer8", {"down8.gbps": gbps, "down8.cpu": 90.0}, gbps > 5.0)
        self.results.reasons["frp"] = "frps is not installed"

    def test_rows(self) -> None:
        made = tables(self.results, (("One hop", ("haproxy-best", "layer8", "frp")), ("Tunnel", ("frp",))))
        self.assertEqual(
            [title for title, _, _ in made],
            ["One hop: Bulk, GB/s", "One hop: Proxy processor time per GB, ms", "Targets"],
        )
        _, head, body = made[0]
        self.assertEqual(head, ["system", "8 down", "8 down vs haproxy-best", "n"])
        self.assertEqual(
            body,
            [
                ["haproxy, splice", "6.00 (5.00-7.00)", "1.00", "3"],
                ["layer8 (Host|log)", "~5.40 (5.00-5.80)", "0.90", "3"],
            ],
        )

    def test_targets(self) -> None:
        """A ratio is judged in its own direction."""
        _, _, body = tables(self.results, (("One hop", ("haproxy-best", "layer8")),))[-1]
        self.assertEqual(
            [row[1:] for row in body], [["0.90", ">= 0.85", ">= 1", "met"], ["1.50", "<= 1.4", "<= 1.1", "MISSED"]]
        )

    def test_markdown(self) -> None:
        text = markdown(tables(self.results, (("One hop", ("layer8",)),)), {"kernel": "6.1"})
        self.assertTrue(
            text.startswith("- kernel: 6.1\n\n### One hop: Bulk, GB/s\n\n| system | 8 down |\n| --- | --- |\n")
        )
        self.assertIn("| layer8 (Host/log) | ~5.40 (5.00-5.80) |", text)

    def test_into_page(self) -> None:
        """The next run replaces the last one and leaves the prose alone."""
        page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nProse.\n"
        self.assertEqual(into_page(page, "new\n"), f"# Title\n\n{BEGIN}\nnew\n{END}\n\nProse.\n")
        self.assertEqual(into_page("no marks", "new\n"), "new\n")

    def test_json(self) -> None:
        found = json.loads(json.dumps(self.results.as_json()))
        self.assertEqual(found["systems"]["layer8"]["down8.gbps"]["samples"], [5.0, 5.4, 5.8])
        self.assertEqual(found["missing"], {"frp": "frps is not installed"})

    def test_names(self) -> None:
        """Every name that a target or a base speaks of is a row."""
        from bench.report import LAYOUTS, TARGETS

        link = Delay()
        known = {system.name for system in (*ONE_HOP, *TUNNELS, *far_systems(link))}
        spoken = {name for target in TARGETS for name in (target.ours, target.theirs) if name}
        spoken |= {name for layout in LAYOUTS for name in layout.base}
        self.assertEqual(spoken - known, set())
        figures = {figure.name for figure in (*FIGURES, *far_figures(link))}
        self.assertEqual({name for system in (*ONE_HOP, *TUNNELS) for name in system.only} - figures, set())
        values = {column.value for layout in LAYOUTS for column in layout.columns}
        self.assertEqual({target.value for target in TARGETS} - values, set())


class ProcessTests(SynchronousTestCase):
    """Processes that are measured."""

    def test_cpu_and_end(self) -> None:
        """Time of a forked child counts while it lives and after it was waited for; the end takes the child along."""
        burn = "import time\nend=time.process_time()+0.2\nwhile time.process_time()<end: pass\n"
        code = f"import subprocess,sys\np=[sys.executable,'-c',{burn!r}]\nsubprocess.run(p)\n"
        code += "subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)'])\nprint('on',flush=True)\n"
        code += "import time; time.sleep(60)"
        folder = Path(self.mktemp())
        folder.mkdir()
        child = Child.start("burner", [sys.executable, "-c", code], folder)
        try:
            end = time.monotonic() + 20
            while child.output.read_text().strip() != "on" and time.monotonic() < end:
                time.sleep(0.02)
            self.assertGreater(child.cpu_s(), 0.19)
            pids = child.pids()
            self.assertEqual(len(pids), 2)
            self.assertGreater(child.memory(), 1 << 20)
            self.assertGreater(child.descriptors(), 2)
        finally:
            child.end()
        end = time.monotonic() + 5
        while any(Path(f"/proc/{pid}/exe").exists() for pid in pids) and time.monotonic() < end:
            time.sleep(0.02)
        self.assertFalse([pid for pid in pids if Path(f"/proc/{pid}/exe").exists()])

    def test_last_words(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        child = Child.start("mute", [sys.executable, "-c", "print('no such option'); raise SystemExit(1)"], folder)
        self.addCleanup(child.end)
        with self.assertRaisesRegex(DidNotStart, "mute: no such option"):
            child.listening(free_port())

    def test_foreign(self) -> None:
        """What we say is ours is not foreign."""
        foreign = Foreign(lambda: 1e9 * (time.monotonic() - start))
        start = time.monotonic()
        foreign.begin()
        time.sleep(0.05)
        self.assertEqual(foreign.cores(), 0.0)


class BlastTests(SynchronousTestCase):
    """Our own load generator against its own server."""

    skip = None if shutil.which("cc") else "needs Debian's gcc"

    def setUp(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        blast = build(folder)
        self.port = free_port()
        server = Child.start("serve", [str(blast), "serve", str(self.port)], folder)
        self.addCleanup(server.end)
        server.listening(self.port)
        self.load = Load(folder, blast, [], {})

    def test_modes(self) -> None:
        for mode in ("down", "up"):
            got = self.load.run(mode, self.port, "x", 3, 0.1)
            self.assertEqual(got["failed"], 0)
            self.assertGreater(got["least"], 0)
            self.assertGreaterEqual(got["all_bytes"], got["bytes"])
        got = self.load.run("ping", self.port, "x", 0.1)
        self.assertTrue(0 < got["p50"] <= got["p90"] <= got["p99"] <= got["max"], got)
        got = self.load.run("first", self.port, "x", 50)
        self.assertEqual(got["count"], 50)
        got = self.load.run("rate", self.port, "x", 4, 0.1)
        self.assertGreater(got["count"], 0)
        self.assertEqual(got["failed"], 0)

    def test_hello(self) -> None:
        """What a visitor of tls:NAME begins with is a ClientHello with that name, and no byte of HTTP is in the way."""
        from layer8.proxy.sniff import Found
        from layer8.proxy.sniff_tls import TlsSniffer

        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)
        with self.load.running("first", server.getsockname()[1], "tls:one.bench.test", 1):
            visitor, _ = server.accept()
            with visitor:
                found = TlsSniffer(strip_dot=False).feed(visitor.recv(4096))
                visitor.sendall(b"1")
        assert isinstance(found, Found)
        self.assertEqual((found.scheme, found.host), ("https", "one.bench.test"))
        for mode in ("down", "up"):
            self.assertEqual(self.load.run(mode, self.port, "tls:x.test", 2, 0.1)["failed"], 0)
        self.assertGreater(self.load.run("ping", self.port, "tls:x.test", 0.1)["count"], 0)

    def test_held(self) -> None:
        """Connections are there while the holder is, and the strangers that nobody turns away are told apart."""
        with self.load.running("idle", self.port, "x", 20) as holder:
            assert holder.stdout is not None
            self.assertEqual(json.loads(holder.stdout.readline()), {"count": 20})
        got = self.load.run("scan", self.port, "x", 100, 0.1)
        self.assertEqual((got["closed"], got["open"]), (0, got["opened"]))

    def test_nobody_there(self) -> None:
        with self.assertRaisesRegex(NoLoad, "connect"):
            self.load.run("first", free_port(), "x", 1)


class DelayTests(SynchronousTestCase):
    """The link with a long way, in a network of its own."""

    skip = None if shutil.which("cc") and shutil.which("nsenter") else "needs Debian's gcc, util-linux"

    def test_round_trips(self) -> None:
        """nginx alone needs two round trips to the first byte, and hardly more."""
        code = "import sys; from bench.proxy import main; main(prog_name='bench')"
        argv = [sys.executable, "-c", code, "--quick", "--json", "--only", "far-nginx"]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False, cwd=ROOT)
        found = json.loads(ran.stdout)
        if "far-nginx" in found["missing"]:
            raise SkipTest(f"no link here: {found['missing']['far-nginx']}")
        self.assertEqual(found["missing"], {})
        trips = found["systems"]["far-nginx"]["far40.trips"]
        self.assertGreater(trips["least"], 1.99)
        self.assertLess(trips["least"], 2.5)


class CommandTests(SynchronousTestCase):
    """`layer8 bench`."""

    def test_checkout(self) -> None:
        import layer8

        self.assertTrue((checkout(Path(layer8.__file__).parent) / "bench" / "blast.c").is_file())
        elsewhere = Path(self.mktemp()) / "site-packages" / "layer8"
        elsewhere.mkdir(parents=True)
        with self.assertRaisesRegex(Unavailable, "clone the repository"):
            checkout(elsewhere)

    def _layer8(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", "from layer8.cli.main import main; main()", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    def test_help_and_wrong_row(self) -> None:
        ran = self._layer8("bench", "proxy", "--help")
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertIn("--markdown", ran.stdout)
        ran = self._layer8("bench", "proxy", "--only", "nothing-like-it")
        self.assertEqual(ran.returncode, 2)
        self.assertIn("haproxy-best", ran.stderr)

    def test_configuration(self) -> None:
        """What the measurements write is a configuration that layer8 takes."""
        from layer8.config.load import load

        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        loaded = load(layer8_config(folder, 7001, {"bulk": 7002, "web": 7003}), {"LAYER8_HOME": str(folder)}, {})
        self.assertEqual(
            [host.target for host in loaded.config.proxy.host], ["tcp:127.0.0.1:7002", "tcp:127.0.0.1:7003"]
        )


class OnionTests(SynchronousTestCase):
    def test_each_cost_is_of_one_body_in_one_layer(self) -> None:
        """By a clock that goes on by 12 seconds whenever it is looked at."""
        seconds = itertools.count(step=12.0)
        found = measure(2, 4, lambda: next(seconds))
        costs = {row[0]: cost.least / 1e6 for row, cost in found["runs of 4"].items()}
        self.assertEqual((costs["client_forward"], costs["relay_forward"], costs["relay_receive"]), (1.0, 1.5, 3.0))
        self.assertEqual([len(rows) for rows in found.values()], [6, 6, 3])


class CellTests(SynchronousTestCase):
    def test_each_party_s_time_is_its_own(self) -> None:
        """By a clock that goes on by a second whenever it is looked at: every turn of a party takes one."""
        seconds = itertools.count(step=1.0)
        for down in (True, False):
            costs = cell.bulk(down, 1, lambda: float(next(seconds)))
            self.assertEqual(set(costs), {"client", "relay between", "last relay", "whole chain"})
            self.assertGreater(costs["whole chain"], sum(costs[who] for who in ("client", "last relay")))
            self.assertGreater(min(costs.values()), 0)
        self.assertGreater(cell.single(3, lambda: float(next(seconds)))["client"], 0)

    def test_the_network_builds_every_circuit(self) -> None:
        seconds = itertools.count(step=1.0)
        self.assertEqual(cell.network(lambda: float(next(seconds)), 12, 70), 1.0)
