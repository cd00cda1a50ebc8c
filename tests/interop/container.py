"""The manual's container file from end to end: `trial tests.interop.container`, by hand and as root.

It needs Debian's debootstrap, podman and crun, and two minutes. The commands are those of docs/tunnel.md. No registry
of images is asked: in the place of the base image stands one of Debian's packages under the same name.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.tunnel.client import L8Client
from tests.interop.daemons import Program, answers, folder, free_port, until
from tests.names import ROOT

FILE = ROOT / "docs" / "examples" / "tunnel" / "Containerfile"
PACKAGES = "ca-certificates,python3,python3-pip"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CONTAINERS = """
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=4096:4096", "nproc=2048:2048"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "crun"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{home}/storage"
runroot = "{home}/run"
"""
CONFIG = """
[gateway]
gateway = "notes"
authorities = ["notes.example"]
backend = "tcp:127.0.0.1:{backend}"
listen = ["tcp:{gateway}:interface=127.0.0.1"]
[tunnel]
listen = ["tcp:{relay}:interface=127.0.0.1"]
[[tunnel.gateway]]
id = "notes"
endpoint = "tcp:127.0.0.1:{gateway}"
host = "notes.example"
[control]
listen = []
"""
UNIFIED = "/sys/fs/cgroup/unified"  # crun takes one version of cgroups, not two


class ContainerFile(TestCase):
    timeout = 600

    def run_line(self, words: str, where: Path) -> str:
        """Run a line of a shell to its end; give what it says."""
        done = subprocess.run(["sh", "-c", words], cwd=where, env=self.environ, stdout=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 0, words)
        return done.stdout

    def build(self) -> None:
        """Make the base image of what Debian has, and ours."""
        home, page = self.home, (ROOT / "docs" / "tunnel.md").read_text()
        (home / "containers.conf").write_text(CONTAINERS)
        (home / "storage.conf").write_text(STORAGE.format(home=home))
        self.environ = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(home),
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        }
        self.run_line(f"debootstrap --variant=minbase --include={PACKAGES} bookworm root >debootstrap.log", home)
        for mark in home.glob("root/usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        shutil.copy(CERTIFICATES, home / f"root{CERTIFICATES}")
        [name] = re.findall(r"(?m)^FROM (\S+)$", FILE.read_text())
        self.run_line(f"tar -C root -c . | podman import -c 'ENV PATH={self.environ['PATH']}' - {name}", home)
        shutil.rmtree(home / "root")
        build, self.relay, self.gateway = re.findall(r"(?m)^ +(podman .+)$", page)
        self.run_line(build.replace("podman build", "podman build --pull=never -q"), ROOT)

    def line(self, text: str, more: str) -> str:
        """Give a line of the page, with more options, as it runs where there are two versions of cgroups."""
        text = text.replace("podman run", f"podman run {more}")
        return f"unshare -m sh -c {shlex.quote(f'test ! -d {UNIFIED} || umount -l {UNIFIED}; exec {text}')}"

    def pin(self) -> str:
        """Have the gateway say its pin, and make what is missing."""
        found = re.search(
            r"(?m)^pin +([\w-]{43})\s*$", self.run_line(self.line(f"{self.gateway} --init", "--rm"), self.home)
        )
        assert found is not None
        return found[1]

    def start(self) -> None:
        """Start a backend, and both containers."""
        ports = {"backend": free_port(), "gateway": free_port(), "relay": free_port()}
        (self.home / "layer8.toml").write_text(CONFIG.format(**ports))
        site = folder(self)
        (site / "hello.txt").write_text("hello")
        words = [sys.executable, "-m", "http.server", str(ports["backend"]), "--bind", "127.0.0.1"]
        Program.start(self, "backend", words, site, None, lambda _: answers(ports["backend"]))
        self.mine, self.port = self.pin(), ports["relay"]
        for name in ("gateway", "relay"):
            words = ["sh", "-c", self.line(getattr(self, name), f"--name {name}")]
            Program.start(self, name, words, self.home, self.environ)
            self.addCleanup(self.run_line, f"podman rm -f -t 0 {name}", self.home)
        until("both answer", lambda: answers(ports["gateway"]) and answers(ports["relay"]))

    def end(self) -> None:
        """Stop both; the keys are still there."""
        for name in ("relay", "gateway"):
            self.run_line(f"podman stop -t 40 {name}", self.home)
            status = self.run_line(f"podman inspect --format '{{{{.State.ExitCode}}}}' {name}", self.home)
            self.assertEqual(status, "0\n")
        self.assertEqual(self.pin(), self.mine)

    async def test_the_manual_s_lines(self) -> None:
        from twisted.internet import reactor

        self.home = folder(self)
        await deferToThread(self.build)
        await deferToThread(self.start)
        async with L8Client(reactor, relay=f"http://127.0.0.1:{self.port}", gateway="notes", pin=self.mine) as client:
            answer = await client.get("/hello.txt")
            self.assertEqual((answer.status, await answer.text()), (200, "hello"))
        await deferToThread(self.end)
