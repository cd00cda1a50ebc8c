import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.cli import ask
from layer8.core.errors import Layer8Error, RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.x509 import Identity
from tests.cli.test_main import LAYER8, layer8

ANYWHERE = "tcp:0:interface=127.0.0.1"
TWISTD = "from twisted.scripts.twistd import run; run()"


class HomeCase(SynchronousTestCase):
    def setUp(self) -> None:
        # The path of a trial folder may be too long for a socket.
        self.home = Path(tempfile.mkdtemp(prefix="l8-"))
        self.addCleanup(shutil.rmtree, self.home)
        self.environ = {**os.environ, "LAYER8_HOME": str(self.home)}
        self.patch(os, "environ", self.environ)


class RunningTests(HomeCase):
    """Against a real server; one is started for each test, so there are few."""

    def setUp(self) -> None:
        super().setUp()
        words = [word for name in ("http", "https", "control") for word in (f"--{name}", ANYWHERE)]
        words += ["--agents", ANYWHERE.replace("tcp", "tls")]
        self.daemon = subprocess.Popen(
            [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "layer8-proxy", *words],
            env=self.environ,
            cwd=self.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

        def end() -> None:
            self.daemon.kill()
            self.daemon.communicate()

        self.addCleanup(end)
        assert self.daemon.stderr is not None
        for line in self.daemon.stderr:
            if b"process.ready" in line:
                return
        self.fail("the server did not start")

    def test_what_runs(self) -> None:
        code, out, err = layer8("status")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"\Aproxy  well\n  version    \S+\n  id         [a-z2-7]{8}\n  roles      proxy\n")
        pin = Identity.load(self.home / "control.pem").pin
        self.assertIn(f"  note       TLS key: pin={pin}\n", out)
        code, out, err = layer8("status", "proxy", "--json")
        state = json.loads(out)["daemons"]["proxy"]
        self.assertEqual((code, err, state["roles"], state["drain"]), (0, "", ["proxy"], False))

        code, url, err = layer8("status", "--url")
        self.assertEqual((code, err), (0, ""))
        address, _, token = url.strip().partition("/#")
        self.assertRegex(address, r"\Ahttp://127\.0\.0\.1:\d+\Z")
        self.assertEqual(token, (self.home / "run" / "proxy.token").read_text().strip())

        token_file = self.home / "run" / "proxy.token"
        words = ["status", "--json", "--server", address.replace("http", "ws"), "--token-file", str(token_file)]
        found = subprocess.run([*LAYER8, *words], env=self.environ, capture_output=True, text=True, timeout=60)
        self.assertEqual((found.returncode, found.stderr), (0, ""))
        self.assertEqual(next(iter(json.loads(found.stdout)["daemons"].values()))["id"], state["id"])

        self.assertIn("nope does not run here", layer8("status", "nope")[2])
        path = self.home / "run" / "proxy.sock"
        self.assertRaises(Layer8Error, ask.ask, path, "no.such")
        self.assertRaises(Layer8Error, ask.ask, path, "node.status", {"x": "y" * 40_000})

    def test_is_quick(self) -> None:
        best = 9.0
        for _ in range(5):
            before = time.monotonic()
            subprocess.run([*LAYER8, "status"], env=self.environ, stdout=subprocess.DEVNULL, check=True, timeout=60)
            best = min(best, time.monotonic() - before)
        self.assertLess(best, 0.3)

    def test_a_killed_daemon_is_not_there(self) -> None:
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait(30)
        self.assertTrue((self.home / "run" / "proxy.sock").exists())
        code, _, err = layer8("status")
        self.assertEqual(code, 1)
        self.assertIn("no daemon of this user runs here", err)


class NobodyTests(HomeCase):
    def test_nothing_runs(self) -> None:
        code, out, err = layer8("status")
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(len(err.splitlines()), 1)

    def test_wrong_usage(self) -> None:
        for words in (["--pin", "x"], ["--token-file", "x"], ["../x"]):
            self.assertEqual(layer8("status", *words)[0], 2)


class StrangerTests(HomeCase):
    """What listens on the socket is not what it should be."""

    def answer(self, *pieces: bytes, hold: bool = False) -> Path:
        path = self.home / "x.sock"
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(path))
        listener.listen()
        done = threading.Event()
        self.addCleanup(done.set)

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                head = line.recv(65536)
                key = next(text for text in head.split(b"\r\n") if text.lower().startswith(b"sec-websocket-key"))
                accept = ask.accept_word(key.split(b": ")[1])
                for piece in pieces:
                    line.sendall(piece.replace(b"ACCEPT", accept))
                if hold:
                    done.wait(10)

        threading.Thread(target=serve, daemon=True).start()
        return path

    HELLO = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ACCEPT\r\n\r\n"

    def test_answers(self) -> None:
        text = b'{"jsonrpc":"2.0","id":1,"result":{"a":1}}'
        frame = bytes([0x81, len(text)]) + text
        long = b'{"jsonrpc":"2.0","id":1,"result":"' + b"x" * 70_000 + b'"}'
        for pieces, wanted in [
            ((self.HELLO, frame), {"a": 1}),
            ((self.HELLO + frame,), {"a": 1}),
            ((self.HELLO, b"\x89\x02hi", frame), {"a": 1}),
            ((self.HELLO, bytes([0x01, 5]) + text[:5], bytes([0x80, len(text) - 5]) + text[5:]), {"a": 1}),
            ((self.HELLO, b"\x81\x02{}", frame), {"a": 1}),
            ((self.HELLO, b"\x81\x7f" + len(long).to_bytes(8, "big") + long), "x" * 70_000),
        ]:
            path = self.answer(*pieces, hold=True)
            self.assertEqual(ask.ask(path, "node.status"), wanted)
            path.unlink()

    def test_nonsense(self) -> None:
        for pieces, kind in [
            ((b"",), RemoteProtocolError),
            ((b"HTTP/1.1 403 Forbidden\r\n\r\n",), Unavailable),
            ((self.HELLO.replace(b"ACCEPT", b"nothing"),), RemoteProtocolError),
            ((b"x" * 20_000,), RemoteProtocolError),
            ((self.HELLO,), RemoteProtocolError),
            ((self.HELLO, b"\x88\x00"), RemoteProtocolError),
            ((self.HELLO, b"\x81\x03{,}"), RemoteProtocolError),
            ((self.HELLO, b"\x81\x7f" + b"\xff" * 8), RemoteProtocolError),
            ((self.HELLO, b"\x81\x16" + b'{"id":1,"error":"no!"}'), Layer8Error),
        ]:
            path = self.answer(*pieces)
            # Unavailable too where the other end may be gone before we have asked.
            error = self.assertRaises(Layer8Error, ask.ask, path, "node.status")
            self.assertIsInstance(error, (kind, Unavailable))
            path.unlink()

    def test_silence(self) -> None:
        path = self.answer(self.HELLO, hold=True)
        before = time.monotonic()
        self.assertRaises(TimedOut, ask.ask, path, "node.status", seconds=0.2)
        self.assertLess(time.monotonic() - before, 5)

    def test_a_daemon_that_does_not_answer_is_told(self) -> None:
        (self.home / "run").mkdir()
        path = self.answer(b"HTTP/1.1 200 OK\r\n\r\n" + self.HELLO)
        path.rename(self.home / "run" / "x.sock")
        code, _, err = layer8("status", "x")
        self.assertEqual(code, 1)
        self.assertIn("x does not run here", err)
