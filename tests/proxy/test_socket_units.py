import fcntl
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import rmtree

from twisted.trial.unittest import SynchronousTestCase

UNITS = Path(__file__).parents[2] / "share" / "layer8" / "systemd"
# LISTEN_PID has to be the service's own, which only the child knows, and the sockets begin at descriptor 3.
CHILD = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
for place, descriptor in enumerate(sys.argv[1].split(","), 3):
    os.dup2(int(descriptor), place, inheritable=True)
os.execv(sys.argv[2], sys.argv[2:])
"""


class UnitTests(SynchronousTestCase):
    def names(self) -> set[str]:
        """Give the names of the sockets that the units open."""
        found = set()
        for path in sorted(UNITS.glob("*.socket")):
            name = re.search(r"^FileDescriptorName=(.+)$", path.read_text(), re.MULTILINE)
            assert name is not None
            found.add(name.group(1))
        return found

    def start(self, names: list[str], *options: str) -> list[socket.socket]:
        """Start the proxy as its unit does, with a socket for each name."""
        home = tempfile.mkdtemp(prefix="l8-")
        self.addCleanup(rmtree, home)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        for listener in sockets:
            self.addCleanup(listener.close)
        service = (UNITS / "layer8-proxy.service").read_text()
        environ = dict(re.findall(r"^Environment=(\w+)=(.+)$", service, re.MULTILINE))
        words = re.findall(r"^ExecStart=/opt/layer8/bin/twistd (.+)$", service, re.MULTILINE)[0].split()
        self.assertEqual(words, ["-n", "--pidfile=", "layer8-proxy"])
        # Above the places that they are moved to.
        high = [fcntl.fcntl(listener, fcntl.F_DUPFD, 64) for listener in sockets]
        self.process = process = subprocess.Popen(
            [
                *[sys.executable, "-c", CHILD, ",".join(map(str, high)), sys.executable],
                *["-c", "from twisted.scripts.twistd import run; run()", *words],
                *["--control", "none", "--unknown", "answer", *options],
            ],
            env={
                **os.environ,
                **environ,
                "LISTEN_FDS": str(len(sockets)),
                "LISTEN_FDNAMES": ":".join(names),
                "LAYER8_HOME": home,
            },
            cwd=home,
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def end() -> None:
            process.kill()
            process.wait()

        self.addCleanup(end)
        for descriptor in high:
            os.close(descriptor)
        return sockets

    def serves(self, http: socket.socket) -> None:
        # No waiting for readiness: the sockets are there before the service is.
        with socket.create_connection(http.getsockname(), timeout=30) as visitor:
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n")
            self.assertTrue(visitor.recv(1000).startswith(b"HTTP/1.1 404 "))

    def speaks_tls(self, agents: socket.socket) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection(agents.getsockname(), timeout=30) as line,
            context.wrap_socket(line) as agent,
        ):
            # Agents of another machine arrive here, so it has to speak TLS.
            self.assertIn(agent.version(), ("TLSv1.2", "TLSv1.3"))

    def test_the_proxy_serves_on_the_sockets_that_the_units_open(self) -> None:
        names = ["http", "https", "agents", "data"]
        self.assertEqual(set(names), self.names())
        sockets = self.start(names)
        self.serves(sockets[0])
        self.speaks_tls(sockets[2])

    def test_so_do_its_workers(self) -> None:
        """All on the same ones but for data, of which each has its own."""
        sockets = self.start(["http", "https", "agents", "data", "data"], "--workers", "2")
        for _ in range(8):
            self.serves(sockets[0])
        self.speaks_tls(sockets[2])

    def test_workers_without_data_sockets_of_their_own(self) -> None:
        self.start(["http", "https", "agents", "data"], "--workers", "2")
        self.assertEqual(self.process.wait(30), 1)
