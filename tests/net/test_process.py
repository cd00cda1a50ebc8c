import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parents[2]
PLUGIN = """
from twisted.application.service import ServiceMaker
under_test = ServiceMaker("under test", "tests.net.daemon_under_test", "only for tests", "layer8-test")
"""


class ProcessCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        plugins = self.folder / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "layer8_under_test.py").write_text(PLUGIN)
        self.environ = {
            "PATH": os.environ["PATH"],
            "LAYER8_HOME": str(self.folder / "home"),
            "PYTHONPATH": f"{self.folder}:{ROOT}",
        }

    def words(self, *words: str) -> list[str]:
        return [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=twistd.pid",
            "layer8-test",
            *words,
        ]

    def run_to_end(self, *words: str) -> tuple[int, str, str]:
        found = subprocess.run(
            self.words(*words), cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60
        )
        return found.returncode, found.stdout, found.stderr

    def begin(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.words(*words),
            cwd=self.folder,
            env={**self.environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def wait_for(self, process: subprocess.Popen[bytes], word: bytes) -> bytes:
        assert process.stderr is not None
        text = b""
        while word not in text:
            line = process.stderr.readline()
            if not line:
                self.fail(f"{word!r} never came: {text!r}")
            text += line
        return text


class StartTests(ProcessCase):
    def test_a_busy_port_is_one_line_and_exit_code_1(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as busy:
            text = f"tcp:{busy.getsockname()[1]}:interface=127.0.0.1"
            code, out, err = self.run_to_end("--http", text)
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(
            err, f"layer8-test: cannot listen on {text}: address already in use; choose another with --http\n"
        )
        self.assertFalse((self.folder / "twistd.pid").exists())

    def test_a_wrong_configuration_is_exit_code_2_and_nothing_listens(self) -> None:
        code, out, err = self.run_to_end("--http", "nonsense")
        self.assertEqual((code, out), (2, ""))
        self.assertEqual(len(err.splitlines()), 1)
        self.assertIn("layer8-proxy: --http: proxy.http = 'nonsense': it has to begin with", err)

    def test_a_late_error_is_one_line_and_exit_code_1(self) -> None:
        code, out, err = self.run_to_end("--http", "tcp:0:interface=127.0.0.1", "--default-host", "late.example")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("layer8-test: it failed later; try again\n", err)
        self.assertNotIn("Traceback", err)

    def test_a_bug_keeps_its_traceback(self) -> None:
        code, _, err = self.run_to_end("--http", "", "--default-host", "bug.example")
        self.assertEqual(code, 1)
        self.assertIn("ZeroDivisionError", err)

    def test_lines_are_ours_alone(self) -> None:
        process = self.begin("--http", "tcp:0:interface=127.0.0.1")
        text = self.wait_for(process, b"process.ready")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        rows = [json.loads(line) for line in (text + err).splitlines()]
        self.assertEqual(out, b"")
        self.assertEqual(
            [row["event"] for row in rows], ["log.started", "pump.starved", "process.ready", "process.stopping"]
        )
        self.assertEqual(rows[1]["mark"], "marked")
        self.assertNotIn("PLAIN", str(rows))


class SystemdTests(ProcessCase):
    """We play systemd: it opens the sockets, passes them by name and listens to what the service says."""

    def setUp(self) -> None:
        super().setUp()
        self.name = f"l8-{os.getpid()}-{time.monotonic_ns()}"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind("\0" + self.name)
        self.notify.settimeout(30)
        self.addCleanup(self.notify.close)

    def begin_with_socket(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        # LISTEN_PID has to be the service's own, which only the child knows.
        script = (
            "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.dup2(int(sys.argv[1]), 3);"
            "os.set_inheritable(3, True); os.execv(sys.argv[2], sys.argv[2:])"
        )
        words = [sys.executable, "-c", script, str(listener.fileno())]
        words += self.words("--http", "systemd:domain=INET:name=http")
        environ = {
            **self.environ,
            "LISTEN_FDS": "1",
            "LISTEN_FDNAMES": "http",
            "NOTIFY_SOCKET": "@" + self.name,
            "WATCHDOG_USEC": "400000",
        }
        process = subprocess.Popen(
            words, cwd=self.folder, env=environ, pass_fds=[listener.fileno()], stderr=subprocess.PIPE
        )

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def told(self, word: bytes) -> None:
        while True:
            found = self.notify.recv(1000)
            if word in found:
                return
            self.assertEqual(found, b"WATCHDOG=1", f"{found!r} instead of {word!r}")

    def echo(self, address: tuple[str, int]) -> socket.socket:
        visitor = socket.create_connection(address, timeout=30)
        self.addCleanup(visitor.close)
        visitor.sendall(b"ping")
        return visitor

    def test_sockets_by_name_and_no_visit_lost_in_a_restart(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            first = self.begin_with_socket(listener)
            self.told(b"READY=1")
            self.told(b"WATCHDOG=1")
            self.assertEqual(self.echo(address).recv(10), b"ping")
            first.send_signal(signal.SIGHUP)
            self.told(b"RELOADING=1\nMONOTONIC_USEC=")
            self.told(b"READY=1")
            first.send_signal(signal.SIGTERM)
            self.told(b"STOPPING=1")
            first.communicate(timeout=30)
            between = [self.echo(address) for _ in range(5)]
            self.begin_with_socket(listener)
            self.told(b"READY=1")
            self.assertEqual([visitor.recv(10) for visitor in between], [b"ping"] * 5)
