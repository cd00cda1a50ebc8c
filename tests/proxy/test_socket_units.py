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
    def test_the_proxy_serves_on_the_sockets_that_the_units_open(self) -> None:
        home = tempfile.mkdtemp(prefix="l8-")
        self.addCleanup(rmtree, home)
        sockets: dict[str, socket.socket] = {}
        for path in sorted(UNITS.glob("*.socket")):
            found = re.search(r"^FileDescriptorName=(.+)$", path.read_text(), re.MULTILINE)
            assert found is not None
            sockets[found.group(1)] = listener = socket.create_server(("127.0.0.1", 0))
            self.addCleanup(listener.close)
        self.assertEqual(set(sockets), {"http", "https", "agents", "data"})
        service = (UNITS / "layer8-proxy.service").read_text()
        environ = dict(re.findall(r"^Environment=(\w+)=(.+)$", service, re.MULTILINE))
        words = re.findall(r"^ExecStart=/opt/layer8/bin/twistd (.+)$", service, re.MULTILINE)[0].split()
        self.assertEqual(words, ["-n", "--pidfile=", "layer8-proxy"])
        # Above the places that they are moved to.
        high = [fcntl.fcntl(listener, fcntl.F_DUPFD, 64) for listener in sockets.values()]
        process = subprocess.Popen(
            [
                *[sys.executable, "-c", CHILD, ",".join(map(str, high)), sys.executable],
                *["-c", "from twisted.scripts.twistd import run; run()", *words],
                *["--control", "none", "--unknown", "answer"],
            ],
            env={
                **os.environ,
                **environ,
                "LISTEN_FDS": str(len(sockets)),
                "LISTEN_FDNAMES": ":".join(sockets),
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

        # No waiting for readiness: the sockets are there before the service is.
        with socket.create_connection(sockets["http"].getsockname(), timeout=30) as visitor:
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n")
            self.assertTrue(visitor.recv(1000).startswith(b"HTTP/1.1 404 "))
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection(sockets["agents"].getsockname(), timeout=30) as line,
            context.wrap_socket(line) as agent,
        ):
            # Agents of another machine arrive here, so it has to speak TLS.
            self.assertIn(agent.version(), ("TLSv1.2", "TLSv1.3"))
