import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.net.systemd import Notifier

UNITS = Path(__file__).parents[2] / "share" / "layer8" / "systemd"
SERVICES = [f"layer8-{role}.service" for role in ("agent", "dht", "gateway", "proxy", "relay", "rendezvous", "tunnel")]


class NotifierTests(SynchronousTestCase):
    def listen(self, address: str) -> socket.socket:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.bind(address)
        ours.settimeout(5)
        self.addCleanup(ours.close)
        return ours

    def test_says_what_happens(self) -> None:
        path = Path(self.mktemp()).resolve()
        path.mkdir()
        # The path of a trial folder may be too long for a socket.
        os.symlink(path, link := f"/tmp/l8-{os.getpid()}-{time.monotonic_ns()}")
        self.addCleanup(os.unlink, link)
        ours = self.listen(f"{link}/notify")
        notifier = Notifier({"NOTIFY_SOCKET": f"{link}/notify"})
        notifier.ready()
        notifier.status("two\nlines")
        notifier.alive()
        before = time.monotonic_ns() // 1000
        notifier.reloading()
        notifier.stopping()
        words = [ours.recv(1000).decode() for _ in range(5)]
        self.assertEqual(words[:3] + words[4:], ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"])
        found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", words[3])
        assert found is not None
        self.assertTrue(before <= int(found.group(1)) <= time.monotonic_ns() // 1000)

    def test_abstract_address(self) -> None:
        name = f"l8-{os.getpid()}-{time.monotonic_ns()}"
        ours = self.listen("\0" + name)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        self.assertEqual(ours.recv(100), b"READY=1")

    def test_without_systemd_or_with_one_that_is_gone(self) -> None:
        Notifier({}).ready()
        Notifier({"NOTIFY_SOCKET": "/nonexistent/notify"}).ready()

    def test_watchdog(self) -> None:
        pid = str(os.getpid())
        self.assertEqual(Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": pid}).watchdog, 30.0)
        self.assertEqual(Notifier({"WATCHDOG_USEC": "30000000"}).watchdog, 30.0)
        self.assertEqual(Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog, 0.0)
        self.assertEqual(Notifier({"WATCHDOG_USEC": "soon"}).watchdog, 0.0)
        self.assertEqual(Notifier({}).watchdog, 0.0)


class UnitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        shutil.copytree(UNITS, self.folder)
        for path in self.folder.glob("*.service"):
            text = path.read_text()
            self.assertIn("ExecStart=/opt/layer8/bin/twistd -n --pidfile= layer8-", text)
            path.write_text(text.replace("/opt/layer8/bin/twistd", sys.executable))

    def analyze(self, *words: str) -> str:
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd-analyze is missing: install the Debian package systemd")
        found = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60)
        self.assertEqual((found.returncode, found.stderr), (0, ""), found.stdout + found.stderr)
        return found.stdout

    def test_verify(self) -> None:
        units = sorted(self.folder.iterdir())
        self.assertEqual([unit.name for unit in units if unit.suffix == ".service"], SERVICES)
        for unit in units:
            self.assertEqual(self.analyze("verify", str(unit)), "")

    def test_exposure(self) -> None:
        for name in SERVICES:
            text = self.analyze("security", "--offline=yes", str(self.folder / name))
            found = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
            assert found is not None
            self.assertLessEqual(float(found.group(1)), 3.0)

    def test_sockets_and_services_agree(self) -> None:
        service = (UNITS / "layer8-proxy.service").read_text()
        for path in UNITS.glob("*.socket"):
            name = path.stem.removeprefix("layer8-proxy-")
            text = path.read_text()
            self.assertIn(f"FileDescriptorName={name}\nService=layer8-proxy.service\n", text)
            self.assertIn(f"LAYER8_PROXY__{name.upper()}=systemd:domain=INET:name={name}\n", service)
            self.assertIn(path.name, service)

    def test_what_the_page_promises(self) -> None:
        for name in SERVICES:
            lines = (UNITS / name).read_text().splitlines()
            for line in (
                "Type=notify",
                "ExecReload=/bin/kill -HUP $MAINPID",
                "WatchdogSec=30",
                "TimeoutStopSec=45",
                "DynamicUser=yes",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                "PrivateTmp=yes",
                "PrivateDevices=yes",
                "ProtectKernelTunables=yes",
                "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
                "SystemCallFilter=@system-service",
                "CapabilityBoundingSet=",
            ):
                self.assertIn(line, lines)
            self.assertTrue(any(line.startswith("MemoryMax=") for line in lines))
