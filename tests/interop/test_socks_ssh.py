"""ssh through the SOCKS port with OpenBSD's netcat, and through a tunnel into a node's local network."""

import getpass
import hashlib
import os
import subprocess
from pathlib import Path

from twisted.trial.unittest import TestCase

from layer8.crypto.keys import id_text
from tests.interop.daemons import Program, Scope, answers, folder, found, free_port, missing
from tests.interop.stage import MIB
from tests.socks.net import Net, Ran

SIZE = 4 * MIB


def start_sshd(case: Scope, port: int) -> Path:
    """Start an sshd of our own for whoever runs the tests; gives the folder of its keys."""
    home = folder(case)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True, timeout=30)
    (home / "authorized").write_bytes((home / "user.pub").read_bytes())
    (home / "sshd.conf").write_text(f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host
PidFile none
AuthorizedKeysFile {home}/authorized
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
""")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what sshd separates its privileges in
    words = [str(found("sshd")), "-D", "-e", "-f", str(home / "sshd.conf")]
    Program.start(case, "sshd", words, home, ready=lambda _: answers(port))
    return home


def ssh_words(home: Path) -> tuple[str, ...]:
    """Give the command that logs in there, without its target."""
    return (
        "ssh", "-F", "none", "-i", str(home / "user"), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
        "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={home}/known", "-o", "LogLevel=ERROR",
        "-l", getpass.getuser(),
    )  # fmt: skip


class SshTests(TestCase):
    skip = missing(sshd="openssh-server", ssh="openssh-client", nc="netcat-openbsd")
    timeout = 120

    async def ssh(self, *words: str, said: bytes = b"") -> Ran:
        return await self.net.run(*ssh_words(self.home), *words, said=said)

    async def test_through_netcat(self) -> None:
        port = free_port()
        self.home = start_sshd(self, port)
        self.net = await Net.start(self, names={"shell.example.org": "127.0.0.1"})
        proxy = f"ProxyCommand={found('nc')} -X 5 -x 127.0.0.1:{self.net.port} %h %p"
        body = os.urandom(SIZE)
        ran = await self.ssh("-o", proxy, "-p", str(port), "shell.example.org", "sha256sum", said=body)
        self.assertEqual((ran.code, ran.out.split()[:1]), (0, [hashlib.sha256(body).hexdigest().encode()]), ran.text)
        ran = await self.ssh("-o", proxy, "-p", str(port), "shell.example.org", f"head -c {SIZE} /dev/zero; exit 7")
        self.assertEqual((ran.code, len(ran.out)), (7, SIZE), ran.text)
        self.assertEqual(set(self.net.asked), {"shell.example.org"})

    async def test_through_a_tunnel_into_a_local_network(self) -> None:
        """G46: `2222>[hash]>192.168.0.2:22`."""
        port = free_port()
        self.home = start_sshd(self, port)
        self.net = await Net.start(self, lan=f"127.0.0.1:{port}")
        node = id_text(self.net.relays[0].key.node_id)
        row = await self.net.tunnels.open(f"0>[{node}]>127.0.0.1:{port}")
        ran = await self.ssh("-p", row.listening[0].split(":")[1], "127.0.0.1", "cat", said=b"words " * 1000)
        self.assertEqual((ran.code, ran.out), (0, b"words " * 1000), ran.text)
        row = await self.net.tunnels.open(f"0>[{id_text(self.net.relays[1].key.node_id)}]>127.0.0.1:{port}")
        ran = await self.ssh("-p", row.listening[0].split(":")[1], "127.0.0.1", "true")
        self.assertEqual(ran.code, 255, ran.text)
