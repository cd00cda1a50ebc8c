"""The measurements of networks: their load, their arithmetic and tables, and that tor takes what they write for it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

from attrs import define, field
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench.layer8_net import NETWORK, Layer8Net
from bench.load import NoLoad
from bench.loopback import other_tors, stay_inside, strays
from bench.network import PEERS, USUAL
from bench.network_figures import (
    FIGURES,
    GATES,
    GROUPS,
    LAYOUTS,
    Direct,
    Effort,
    Turn,
    chain_cpu_s,
    gate_rows,
    percentile,
    sample_lines,
    tables,
    unit,
)
from bench.processes import Child, DidNotStart, free_port
from bench.report import Results
from bench.socks_load import BLOCK, MIB, Moved, SocksLoad, start_origin
from bench.tor_net import AUTHORITY, CLIENT, VARIANTS, Control, Node, TorNet, authority_line, port_near, progress
from layer8.config.load import load
from tests.names import ROOT


class OriginCase(SynchronousTestCase):
    """With an origin."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self.port = free_port()
        self.origin = start_origin(self.port, self.folder)
        self.addCleanup(self.origin.end)
        self.load = SocksLoad(None, ("127.0.0.1", self.port))


class LoadTests(OriginCase):
    """The load generator."""

    def test_sizes(self) -> None:
        for size in (0, 1, 100, BLOCK, BLOCK + 1, 3 * BLOCK):
            got = self.load.fetch("ann", size)
            self.assertEqual(got.size, size)
            self.assertTrue(0 < got.first_s <= got.all_s, got)

    def test_several(self) -> None:
        users = self.load.users(3)
        self.assertEqual(len({*users, *self.load.users(3)}), 6)
        self.assertEqual(self.load.several(users, 3 * MIB).size, 3 * MIB)
        self.assertEqual(Moved(MIB, 0.5).rate, 2.0)
        waits, failed, seconds = self.load.small(users, 30, 10)
        self.assertEqual((len(waits), failed), (30, 0))
        self.assertGreaterEqual(seconds * 3, sum(waits) * 0.5)

    def test_nobody_there(self) -> None:
        load = SocksLoad(None, ("127.0.0.1", free_port()))
        with self.assertRaisesRegex(NoLoad, "refused"):
            load.warm(load.users(2))
        self.assertEqual(load.small(load.users(2), 4, 1)[:2], ([], 4))

    def test_over(self) -> None:
        """Nothing begins after the end."""
        self.load.end = 0.0
        with self.assertRaisesRegex(NoLoad, "no time left"):
            self.load.fetch("ann", 1)

    def test_short_answer(self) -> None:
        """An answer that ends too early is no measurement."""
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)

        def answer() -> None:
            visitor, _ = server.accept()
            with visitor:
                visitor.recv(100)
                visitor.sendall(b"HTTP/1.0 200 OK\r\n\r\n123")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with self.assertRaisesRegex(NoLoad, "7 bytes too early"):
            SocksLoad(None, server.getsockname()).fetch("ann", 10)
        thread.join(5)

    def test_socks(self) -> None:
        """A SOCKS server that others wrote understands us, and refuses whom it does not know."""
        if shutil.which("microsocks") is None:
            raise SkipTest("needs Debian's microsocks")
        port = free_port()
        argv = ["microsocks", "-i", "127.0.0.1", "-p", str(port), "-u", "user0", "-P", "user0"]
        server = Child.start("microsocks", argv, self.folder)
        self.addCleanup(server.end)
        server.listening(port)
        load = SocksLoad(("127.0.0.1", port), self.load.origin)
        known, stranger = load.users(2)
        self.assertEqual(load.fetch(known, BLOCK + 1).size, BLOCK + 1)
        with self.assertRaisesRegex(NoLoad, f"{stranger}: not let in"):
            load.fetch(stranger, 1)
        with self.assertRaisesRegex(NoLoad, "the server answers 5"):
            SocksLoad(("127.0.0.1", port), ("127.0.0.1", free_port())).fetch("user0", 1)


@define(eq=False)
class Chain(Direct):
    """The origin alone as if it were a chain, with times of circuits that it never builds."""

    name: str = "layer8"
    times: list[float | None] = field(factory=partial(list, (0.002, 0.004, None, 0.006)))

    def builds(self, wanted: int, at_once: int) -> list[float | None]:
        return (self.times * wanted)[:wanted]

    def crowd(self, circuits: int) -> tuple[int, float]:
        return circuits, 80.0 * MIB


class FigureTests(OriginCase):
    """What is measured and how it is told."""

    def test_every_figure_has_its_columns(self) -> None:
        """What the tables and gates ask for is what the figures give, and nothing is left over."""
        results = Results({"layer8": "layer8, TLS links"})
        at_rest = ("idle.relay", "idle.client", "idle.cpu", "after.relay", "after.client")
        results.add("layer8", dict.fromkeys(at_rest, 50.0), False)
        chain = Chain(chain=[self.origin])
        before = chain_cpu_s(chain.chain)
        for figure in FIGURES:
            turn = Turn(chain, self.load, Effort(1, 20))
            n, values = figure.measure(turn)
            self.assertGreater(n, 0)
            self.assertIn(figure.group, GROUPS)
            self.assertEqual({name.partition(".")[0] for name in values}, {figure.name})
            results.add("layer8", {name: value for name, value in values.items() if value is not None}, False)
        self.assertGreater(chain_cpu_s(chain.chain), before)
        self.assertEqual(results.samples["layer8", "build.p50"], [4.0])
        self.assertEqual(results.samples["layer8", "twenty.failed"], [20.0])
        asked = {column.value for layout in LAYOUTS for column in layout.columns}
        # A rate of one at a time is one over the median.
        self.assertEqual({value for _, value in results.samples} - asked, {"build.rate"})
        self.assertLessEqual(asked, {value for _, value in results.samples})
        self.assertLessEqual({gate.value for gate in GATES}, asked)
        self.assertLessEqual({gate.theirs for gate in GATES if gate.theirs} | set(USUAL), set(PEERS))
        titles = [title for title, _, _ in tables(results, ["layer8"])]
        self.assertEqual(titles, [*(layout.title for layout in LAYOUTS), "Gates"])

    def test_no_chain_costs_nothing(self) -> None:
        turn = Turn(Direct(), self.load, Effort(1, 64))
        _, values = FIGURES[0].measure(turn)
        self.assertIsNone(values["one.cpu"])
        with self.assertRaises(NoLoad):
            turn.peer.builds(1, 1)

    def test_no_circuit(self) -> None:
        with self.assertRaisesRegex(NoLoad, "no circuit"):
            FIGURES[4].measure(Turn(Chain(times=[None]), self.load, Effort(1, 10)))


class TellTests(SynchronousTestCase):
    """Numbers, gates and lines."""

    def test_percentile(self) -> None:
        values = [float(n) for n in range(100, 0, -1)]
        self.assertEqual((percentile(values, 0.95), percentile([3.0], 0.95)), (96.0, 3.0))

    def test_gates(self) -> None:
        """A gate is judged in its own direction, alone or against the named row, and left out without both."""
        results = Results({})
        for value in (39.0, 40.0, 41.0):
            results.add("layer8", {"one.rate": value, "build.p50": 8.1, "users.rate": 30.0}, False)
        results.add("tor", {"users.rate": 7.5}, False)
        self.assertEqual(
            gate_rows(results),
            [
                ["one stream, 64 MiB, MiB/s", "40.00", ">= 40", "met"],
                ["one stream over Tor, default", "4.00", ">= 5", "MISSED"],
                ["circuit build p50, ms", "8.10", "<= 8", "MISSED"],
            ],
        )

    def test_lines(self) -> None:
        (line,) = sample_lines("tor-vanilla", 2, 14, {"users.rate": 25.5}, 1.23456)
        found = json.loads(line)
        self.assertGreaterEqual(found.pop("load"), 0)
        self.assertEqual(
            found,
            {
                "figure": "users.rate",
                "peer": "tor",
                "variant": "vanilla",
                "round": 2,
                "n": 14,
                "value": 25.5,
                "unit": "MiB/s",
                "cpu_s": 1.235,
            },
        )

    def test_units(self) -> None:
        names = ("one.rate", "one.cpu", "users.least", "build.p50", "build.cpu", "twenty.rate", "small.cpu")
        self.assertEqual(
            [unit(name) for name in (*names, "small.failed", "idle.relay", "idle.cpu", "warm.p95")],
            ["MiB/s", "MiB/CPU-s", "MiB/s", "ms", "CPU-ms", "1/s", "CPU-ms", "%", "MiB", "CPU-ms/s", "ms"],
        )


class LoopbackTests(SynchronousTestCase):
    """Whoever leaves the machine ends the run."""

    def test_table(self) -> None:
        head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        row = "   0: {} {} 0A 00000000:00000000 00:00000000 00000000     0        0 {} 1\n"

        def of(local: str, far: str, inode: str = "7") -> list[str]:
            return list(strays(head + row.format(local, far, inode), {"7"}))

        nobody, nobody6 = "00000000:0000", f"{'0' * 32}:0000"
        self.assertEqual(of("0100007F:1F90", nobody), [])
        self.assertEqual(of("0100007F:1F90", "0200007F:0050"), [])
        self.assertEqual(of(nobody.replace(":0000", ":0050"), nobody), ["0.0.0.0 port 80"])
        self.assertEqual(of("0100007F:1F90", "08080808:0035"), ["8.8.8.8 port 53"])
        self.assertEqual(of("0100007F:1F90", "08080808:0035", "8"), [])
        self.assertEqual(of("00000000000000000000000001000000:0050", nobody6), [])
        self.assertEqual(of("0000000000000000FFFF00000100007F:0050", nobody6), [])
        self.assertEqual(of(nobody6.replace(":0000", ":0050"), nobody6), [":: port 80"])

    def test_process(self) -> None:
        inside = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(inside.close)
        stay_inside([os.getpid()])
        self.assertNotIn(os.getpid(), other_tors([]))
        # One that listens everywhere, in a network of its own.
        code = """import os, socket
from bench.loopback import Outside, stay_inside
from bench.machine import private_network
if private_network().private:
    everywhere = socket.create_server(("0.0.0.0", 0))
    try:
        stay_inside([os.getpid()])
    except Outside as problem:
        print(problem)
else:
    print("no network of its own")
"""
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT)
        if "no network of its own" in ran.stdout:
            raise SkipTest("no network namespace can be made here")
        self.assertRegex(ran.stdout, r"has opened 0\.0\.0\.0 port \d+", ran.stderr)


class ControlTests(SynchronousTestCase):
    """Circuits of tor, from what its control port says."""

    def said(self, *lines: str) -> tuple[Control, socket.socket]:
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        theirs.sendall("".join(f"{line}\r\n" for line in lines).encode())
        return Control(ours), theirs

    def test_builds(self) -> None:
        """Built, refused, failed, and closed by a relay; events of others and late ones are passed over."""
        ok = "250 OK"
        control, theirs = self.said(
            *(ok, ok, "250 EXTENDED 7", "650 CIRC 7 LAUNCHED", "551 Couldn't start circuit", "650 CIRC 3 BUILT x"),
            *("650 CIRC 7 EXTENDED a", "650 CIRC 7 BUILT a,b,c", "250 EXTENDED 8", "250 EXTENDED 9", ok),
            *("650 CIRC 7 CLOSED a,b,c REASON=REQUESTED", "650 CIRC 9 CLOSED REASON=DESTROYED", "650 CIRC 8 FAILED"),
            *(ok, ok),
        )
        found = control.builds(4, 2)
        self.assertEqual([one is None for one in found], [True, False, True, True])
        theirs.setblocking(False)
        self.assertEqual(
            theirs.recv(4096).decode().split("\r\n")[:-1],
            [
                *("SETEVENTS CIRC", "SETCONF __DisablePredictedCircuits=1"),
                *("EXTENDCIRCUIT 0", "EXTENDCIRCUIT 0", "EXTENDCIRCUIT 0", "CLOSECIRCUIT 7", "EXTENDCIRCUIT 0"),
                *("SETEVENTS", "RESETCONF __DisablePredictedCircuits"),
            ],
        )

    def test_refused(self) -> None:
        control, _ = self.said("515 Authentication failed")
        with self.assertRaisesRegex(DidNotStart, "515"):
            control.ask("AUTHENTICATE")

    def test_gone(self) -> None:
        control, theirs = self.said("250 OK", "250 OK")
        theirs.shutdown(socket.SHUT_WR)
        with self.assertRaisesRegex(DidNotStart, "closed its control port"):
            control.builds(1, 1)


class TorTests(SynchronousTestCase):
    """What is written for tor."""

    def test_progress(self) -> None:
        self.assertEqual(progress(""), 0)
        self.assertEqual(progress("Bootstrapped 0% (starting)\nBootstrapped 75% (enough)\nBootstrapped 50%\n"), 75)

    def test_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.assertNotEqual(port_near(port), port)
        self.assertEqual(port_near(port), port)

    def test_tor_takes_every_configuration(self) -> None:
        """Also the public network is nowhere in them."""
        if reason := TorNet(VARIANTS[0], Path(), 1).absent():
            raise SkipTest(f"needs Debian's tor: {reason}")
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        nodes = [Node.make(name, folder, number) for number, name in enumerate((AUTHORITY, "relay0", "exit0", CLIENT))]
        line = authority_line(nodes[0])
        self.assertRegex(line, r"DirAuthority auth0 orport=\d+ no-v2 v3ident=\w{40} 127.0.0.1:\d+( [0-9A-F]{4}){10}\n")
        for variant in VARIANTS:
            for node in nodes:
                path = node.folder / "torrc"
                path.write_text(node.torrc(18080, line, variant))
                (node.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
                argv = ["tor", "--verify-config", "-f", str(path), "--defaults-torrc", "/dev/null"]
                ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
                self.assertEqual(ran.returncode, 0, f"{variant.name} {node.name}: {ran.stdout}")
                self.assertIn("Configuration was valid", ran.stdout)
                text = path.read_text()
                self.assertEqual(text.count("DirAuthority "), 1)
                self.assertEqual(text.count("SocksPort 127.0.0.1"), node.name == CLIENT)


class Layer8Tests(SynchronousTestCase):
    """What is written for our own network."""

    def test_nobody_there(self) -> None:
        """Circuits are asked for from a thread that is not the reactor's; here by a process that has none yet."""
        code = """import tempfile
from pathlib import Path
from bench.layer8_net import Layer8Net
from bench.processes import DidNotStart
with tempfile.TemporaryDirectory() as folder:
    net = Layer8Net(Path(folder), 18080)
    net.configurations()
    for _ in range(2):
        try:
            net.builds(3, 2)
        except DidNotStart as problem:
            print(problem)
"""
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT)
        self.assertEqual(ran.stdout.count("layer8: unix:"), 2, ran.stderr)
        self.assertEqual(ran.stderr, "")

    def test_layer8_takes_every_configuration(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        found = []
        for number, text in enumerate(Layer8Net(folder, 18080).configurations()):
            path = folder / f"{number}.toml"
            path.write_text(text)
            found.append(load(path, {"LAYER8_HOME": str(folder)}, {}).config)
        self.assertEqual([one.tracker.enabled for one in found], [True] + [False] * 8)
        self.assertEqual([len(one.relay.trackers) for one in found], [0] + [1] * 8)
        self.assertEqual([one.relay.exit[0][:6] for one in found], ["off"] * 6 + ["accept"] * 2 + ["off"])
        self.assertEqual([bool(one.socks.listen) for one in found], [False] * 8 + [True])
        self.assertEqual([one.relay.relay for one in found], [True] * 8 + [False])
        self.assertEqual({(one.relay.network, one.relay.allow_loopback) for one in found}, {(NETWORK, True)})


class CommandTests(SynchronousTestCase):
    """`layer8 bench stream | build | web`."""

    def test_help(self) -> None:
        for name in GROUPS:
            argv = [sys.executable, "-c", "from layer8.cli.main import main; main()", "bench", name, "--help"]
            ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual((ran.returncode, ran.stderr), (0, ""))
            self.assertIn("tor-vanilla", ran.stdout)
