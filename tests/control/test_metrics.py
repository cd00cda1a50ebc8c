"""Metrics: what is counted, how it is spelt, and that no peer can make it grow."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from subprocess import run
from tempfile import mkdtemp
from typing import Any

from attrs import define
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.config.sections import ControlConfig
from layer8.control.limits import AGENTS
from layer8.control.metrics import METRIC_SERIES, METRICS_FRESH, Family, Histogram, Metrics, counter, gauge
from layer8.control.service import ControlService
from layer8.control.table import Table
from tests.control.test_http import UPGRADE


@define(eq=False)
class Counting:
    """A source that counts how often it is asked."""

    asked: int = 0
    wide: int = 0

    def families(self) -> Iterable[Family]:
        self.asked += 1
        yield counter("layer8_test_things_total", "Things.", 3)
        yield gauge("layer8_test_open", "Open things.", 1.5)
        results: dict[tuple[str, ...], float] = {("ok", "in"): 1, ("no", "out"): 2}
        yield Family("layer8_test_results_total", "By result.", "counter", results, ("result", "direction"))
        if self.wide:
            yield Family("layer8_test_wide", "Wide.", "gauge", {(str(n),): n for n in range(self.wide)}, ("n",))


class MetricsTests(SynchronousTestCase):
    """The registry of one process."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics(self.clock.seconds)
        self.source = Counting()
        self.metrics.add(self.source)

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(self.metrics.render().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("layer8_")
        }

    def test_the_text_says_what_was_counted(self) -> None:
        samples = self.samples()
        self.assertEqual(samples["layer8_test_things_total", frozenset()], 3)
        self.assertEqual(samples["layer8_test_open", frozenset()], 1.5)
        labels = frozenset({("result", "no"), ("direction", "out")})
        self.assertEqual(samples["layer8_test_results_total", labels], 2)

    def test_the_snapshot_says_the_same(self) -> None:
        series = self.metrics.snapshot()
        self.assertEqual(series['layer8_test_results_total{result="ok",direction="in"}'], 1)
        ours = {name: value for name, value in series.items() if name.startswith("layer8_")}
        self.assertEqual(len(ours), len(self.samples()))
        self.assertEqual(self.metrics.counters(), {name: v for name, v in ours.items() if "_total" in name})

    def test_a_flood_of_scrapes_costs_one(self) -> None:
        for _ in range(1000):
            self.metrics.render()
        self.assertEqual(self.source.asked, 1)
        self.clock.advance(METRICS_FRESH)
        self.metrics.render()
        self.assertEqual(self.source.asked, 2)

    def test_a_source_that_went(self) -> None:
        self.metrics.remove(self.source)
        self.metrics.remove(self.source)
        self.assertEqual(list(self.samples()), [("layer8_metrics_dropped_series", frozenset())])

    def test_no_more_series_than_the_cap(self) -> None:
        self.source.wide = METRIC_SERIES
        samples = self.samples()
        self.assertEqual(len(samples), 5)
        self.assertEqual(samples["layer8_metrics_dropped_series", frozenset()], METRIC_SERIES)
        self.source.wide = METRIC_SERIES - 4
        self.clock.advance(METRICS_FRESH)
        self.assertEqual(len(self.samples()), METRIC_SERIES + 1)

    def test_a_histogram(self) -> None:
        waits = Histogram((0.1, 1.0))
        for value in (0.05, 0.1, 0.5, 7.0):
            waits.observe(value)
        self.assertEqual(waits.cumulated(), [("0.1", 2), ("1.0", 3), ("+Inf", 4)])

        class Source:
            def families(self) -> Iterable[Family]:
                yield Family("layer8_test_wait_seconds", "Waits.", "histogram", {(): waits})

        self.metrics.add(Source())
        samples = self.samples()
        self.assertEqual(samples["layer8_test_wait_seconds_bucket", frozenset({("le", "+Inf")})], 4)
        self.assertEqual(samples["layer8_test_wait_seconds_count", frozenset()], 4)
        self.assertAlmostEqual(samples["layer8_test_wait_seconds_sum", frozenset()], 7.65)

    def test_names(self) -> None:
        for name in ("requests_total", "layer8_x", "layer8_X_total", "layer8_a-b_total", "layer8_a_b\n"):
            self.assertRaises(ValueError, counter, name, "", 0)


class PeerTests(TestCase):
    """Ten thousand peers change values, never the number of series."""

    def test_ten_thousand_peers(self) -> None:
        from twisted.internet import reactor

        home = Path(mkdtemp(prefix="l8"))
        self.addCleanup(rmtree, home)
        metrics = Metrics(lambda: 0.0)
        config = ControlConfig(listen=(), socket=False)
        service = ControlService(reactor, "test", config, home, Table(lambda: 0.0), metrics, tuple)
        service.startService()
        site = service.site("agents", rules=AGENTS, connections=10_000, per_source=256)
        before = metrics.snapshot()
        ends = []
        for number in range(10_001):
            host = type("Address", (), {"host": f"10.{number >> 8}.{number & 255}.1"})()
            channel: Any = site.buildProtocol(host)
            if channel is None:
                continue
            transport: Any = StringTransport()
            transport.protocol = channel
            channel.makeConnection(transport)
            channel.dataReceived(UPGRADE + b"\r\n")
            ends.append(transport)
        after = metrics.snapshot()
        self.assertEqual((set(before), len(ends)), (set(after), 10_000))
        self.assertEqual(after['layer8_control_connections{listener="agents"}'], 10_000)
        self.assertEqual(after['layer8_control_turned_away_total{listener="agents"}'], 1)
        for transport in ends:
            transport.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(metrics.snapshot()['layer8_control_connections{listener="agents"}'], 0)
        self.assertEqual((site.places.open, service.conversations()), (0, []))
        service.stopService()


class ImportTests(SynchronousTestCase):
    """What control leaves out of memory."""

    def test_no_wamp_component_and_no_reactor(self) -> None:
        script = (
            "import sys, layer8.control.service, layer8.control.client, layer8.control.node, layer8.control.frame\n"
            "bad = [name for name in sys.modules if name in ('autobahn.twisted.component', 'autobahn.twisted.wamp',"
            " 'autobahn.wamp.component', 'twisted.internet.reactor', 'twisted.web.websocket')]\n"
            "print(bad)"
        )
        done = run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        self.assertEqual((done.stdout, done.stderr), ("[]\n", ""))

    def test_a_proxy_of_its_own_needs_no_database_and_no_router(self) -> None:
        script = (
            "import sys, layer8.proxy.tap, layer8.proxy.agent_tap\n"
            "bad = [name for name in sys.modules if name.split('.')[0] == 'psycopg' or name in"
            " ('autobahn.twisted.component', 'autobahn.wamp.component', 'layer8.net.wamp', 'layer8.proxy.bus_wamp')]\n"
            "print(bad)"
        )
        done = run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        self.assertEqual((done.stdout, done.stderr), ("[]\n", ""))
