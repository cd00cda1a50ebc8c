"""The measurements of hidden services, of work and of the DHT: figures and tables, and what they write for others."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

from attrs import define
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench import dht, hidden_figures, network_figures, work
from bench.hidden_figures import COLD, FIGURES, GATES, GROUP, LAYOUTS, services
from bench.layer8_net import Layer8Net
from bench.load import NoLoad
from bench.network import PEERS
from bench.network_figures import Direct, Effort, Turn, tables, unit
from bench.processes import Child, free_port
from bench.report import Results, into_page
from bench.tor_net import CLIENT, EXITS, RELAYS, SERVICE, VARIANTS, Node, TorNet
from layer8.config.load import load
from layer8.rendezvous.address import DOMAIN, parse_address
from tests.names import ROOT
from tests.test_bench_network import OriginCase


@define(eq=False)
class Hidden(Direct):
    """The origin alone as if it had hidden services and processes."""

    name: str = "layer8"


class FigureTests(OriginCase):
    """What is measured and how it is told."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(hidden_figures, "PORT", self.port)

    def test_every_figure_has_its_columns(self) -> None:
        """What the tables and gates ask for is what the figures give, and nothing is left over."""
        results = Results({"layer8": "layer8, TLS links"})
        hidden = ["127.0.0.1"] * services(2)
        chain = Hidden(chain=[self.origin], hidden=hidden, service=self.origin)
        for figure in FIGURES:
            n, values = figure.measure(Turn(chain, self.load, Effort(1, 32)))
            self.assertGreater(n, 0)
            self.assertEqual(figure.group, GROUP)
            self.assertEqual({name.partition(".")[0] for name in values}, {figure.name})
            results.add("layer8", {name: value for name, value in values.items() if value is not None}, False)
        self.assertEqual(len(hidden), services(1))
        asked = {column.value for layout in LAYOUTS for column in layout.columns}
        self.assertEqual({value for _, value in results.samples}, asked)
        self.assertLessEqual({gate.value for gate in GATES}, asked)
        self.assertLessEqual({gate.theirs for gate in GATES if gate.theirs}, set(PEERS))
        self.assertFalse({figure.name for figure in FIGURES} & {figure.name for figure in network_figures.FIGURES})
        titles = [title for title, _, _ in tables(results, ["layer8"], LAYOUTS, GATES)]
        self.assertEqual(titles, [*(layout.title for layout in LAYOUTS), "Gates"])

    def test_nobody_is_met(self) -> None:
        """Visits that fail are counted; a figure of nothing else is none."""
        chain = Hidden(hidden=["127.0.0.1", "127.0.0.1", "127.0.0.2"])
        cold = FIGURES[1]
        n, values = cold.measure(Turn(chain, self.load, Effort(1)))
        self.assertEqual((n, values["cold.failed"]), (1, 50.0))
        with self.assertRaisesRegex(NoLoad, "no service was met"):
            cold.measure(Turn(chain, self.load, Effort(1)))
        with self.assertRaises(NoLoad):
            FIGURES[0].measure(Turn(Hidden(hidden=["127.0.0.2"]), self.load, Effort(1)))

    def test_units(self) -> None:
        names = (
            "meet.p50",
            "meet.cpu",
            "meet.host",
            "meet.taken",
            "meet.failed",
            "cold.max",
            "down.rate",
            "down.cpu",
            "down.spent",
        )
        self.assertEqual(
            [unit(name) for name in names],
            ["ms", "CPU-ms", "CPU-ms", "1/CPU-s", "%", "ms", "MiB/s", "MiB/CPU-s", "CPU-s"],
        )

    def test_by_name(self) -> None:
        """A SOCKS server that others wrote is asked for a name."""
        if shutil.which("microsocks") is None:
            raise SkipTest("needs Debian's microsocks")
        port = free_port()
        argv = ["microsocks", "-i", "127.0.0.1", "-p", str(port), "-u", "user0", "-P", "user0"]
        server = Child.start("microsocks", argv, self.folder)
        self.addCleanup(server.end)
        server.listening(port)
        self.load.socks = ("127.0.0.1", port)
        self.assertEqual(self.load.at(("localhost", self.port)).fetch("user0", 100).size, 100)


class NetworkTests(SynchronousTestCase):
    """What is written for tor and for layer8."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()

    def test_tor_takes_the_configuration(self) -> None:
        net = TorNet(VARIANTS[0], self.folder, 18080, services=services(1))
        if reason := net.absent():
            raise SkipTest(f"needs Debian's tor: {reason}")
        node = Node.make(SERVICE, self.folder, 9)
        path = node.folder / "torrc"
        authority = f"DirAuthority auth0 orport=1 no-v2 v3ident={'A' * 40} 127.0.0.1:2 {'A' * 40}\n"
        path.write_text(node.torrc(18080, authority, VARIANTS[1], 1 + COLD))
        argv = ["tor", "--verify-config", "-f", str(path), "--defaults-torrc", "/dev/null"]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(ran.returncode, 0, ran.stdout)
        self.assertEqual(path.read_text().count("HiddenServicePort 80 127.0.0.1:18080"), 1 + COLD)
        self.assertIn("SocksPort 0\n", path.read_text())

    def test_layer8_takes_every_configuration(self) -> None:
        net = Layer8Net(self.folder, 18080, services=services(1))
        found = []
        for number, text in enumerate(net.configurations()):
            path = self.folder / f"{number}.toml"
            path.write_text(text)
            found.append(load(path, {"LAYER8_HOME": str(self.folder)}, {}).config)
        relays = RELAYS + EXITS
        self.assertEqual([one.dht.enabled for one in found], [True] * relays + [False] * 2)
        self.assertEqual([len(one.service) for one in found], [0] * relays + [1 + COLD, 0])
        self.assertEqual([bool(one.socks.listen) for one in found], [False] * relays + [False, True])
        self.assertEqual(len(set(net.hidden)), 1 + COLD)
        for name in net.hidden:
            self.assertEqual(len(parse_address(name.removesuffix(DOMAIN))), 32)
        self.assertEqual([len(one.relay.listen) for one in found], [1] * relays + [0] * 2)

    def test_who_is_who(self) -> None:
        chain = [Child(str(number), None, self.folder) for number in range(1 + RELAYS + EXITS + 2)]  # type: ignore[arg-type]
        tor = TorNet(VARIANTS[0], self.folder, 1, services=1, chain=chain)
        self.assertEqual((len(tor.relays), tor.service), (RELAYS + EXITS, chain[-2]))
        ours = Layer8Net(self.folder, 1, services=1, chain=chain[1:])
        self.assertEqual((ours.relays, ours.service), (tor.relays, chain[-2]))
        self.assertIsNone(Layer8Net(self.folder, 1, chain=chain[1:-1]).service)
        self.assertNotEqual(CLIENT, SERVICE)


class WorkTests(SynchronousTestCase):
    """What is measured of work."""

    def test_every_row_is_measured(self) -> None:
        """By a clock that goes on by a second whenever it is looked at."""
        seconds = itertools.count(step=1.0)
        results = work.measure(1, 10, lambda: float(next(seconds)))
        self.assertEqual({row for row, _ in results.samples}, set(work.TITLES))
        self.assertEqual(results.samples["introduction", "rate"], [1.0])
        made = work.tables(results)
        self.assertEqual(len(made[0][2]), len(work.TITLES))
        self.assertEqual({row[-1] for row in made[-1][2]}, {"MISSED"})

    def test_a_knock_that_is_passed_on_is_no_refusal(self) -> None:
        point = work.Guarded.make()
        nonce, tries = work.solved(point.auth.node_id, point.seed, work.ASKED)
        self.assertGreater(tries, 0)
        # Measured for the label of knocks, so that it is let in here.
        with self.assertRaisesRegex(AssertionError, "not refused"):
            point.refuse([point.claimed(nonce, work.ASKED)], float)


class DhtTests(SynchronousTestCase):
    """What is told of the DHT."""

    def test_tables(self) -> None:
        results = Results(dict(dht.TITLES))
        spread = dht.spread([3.0, 1.0, 2.0])
        self.assertEqual(spread, {"p50": 2.0, "p95": 3.0, "max": 3.0})
        for what in ("alive", "dead"):
            results.add("layer8", {f"{what}.{name}": value for name, value in spread.items()}, False)
        results.add("layer8", {f"lied.{name}": value for name, value in dht.simulate(30, 0.2, 3).items()}, False)
        made = dht.tables(results, dht.layouts(30, 50, 0.2))
        self.assertEqual([len(body) for _, _, body in made], [1, 1, 1, 4])
        self.assertEqual({row[-1] for row in made[-1][2]}, {"met"})

    def test_the_other_program_is_missing(self) -> None:
        with self.assertRaisesRegex(dht.NotThere, "No such file"):
            dht.theirs("/nowhere/python", 5, 1, 0.0)
        with self.assertRaisesRegex(dht.NotThere, r"No module named 'kademlia' .*BENCH_KADEMLIA"):
            dht.theirs(sys.executable, 5, 1, 0.0)


class PageTests(SynchronousTestCase):
    """The page of hidden services, on which three measurements write."""

    def test_each_has_its_place(self) -> None:
        page = (ROOT / "docs" / "hidden-performance.md").read_text()
        for part in ("hidden", "dht", "work"):
            written = into_page(page, "- new\n", part)
            self.assertIn(f"<!-- measured {part}: begin -->\n- new\n<!-- measured {part}: end -->", written)
            self.assertEqual(len(re.findall("<!-- measured", written)), 6)


class CommandTests(SynchronousTestCase):
    """`layer8 bench hidden | work | dht`."""

    def test_help(self) -> None:
        for name, word in (("hidden", "tor-vanilla"), ("work", "--count"), ("dht", "--real-nodes")):
            argv = [sys.executable, "-c", "from layer8.cli.main import main; main()", "bench", name, "--help"]
            ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual((ran.returncode, ran.stderr), (0, ""))
            self.assertIn(word, ran.stdout)
