"""`layer8 expose` as a user runs it, against a real server."""

import contextlib
import hashlib
import http.client
import json
import os
import pty
import random
import re
import signal
import socket
import ssl
import stat
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.cli import expose_probe
from layer8.cli.expose import target
from layer8.core.errors import ConfigError, Layer8Error, Unavailable
from layer8.crypto.secret import HostSecret
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.dial import Where
from tests.cli.test_main import LAYER8
from tests.interop.backend import serve
from tests.interop.daemons import Proxy, folder, free_port, until

HOST = "app.test"
BODY = random.Random(1).randbytes(1 << 20)
PATIENCE = 60


class Running:
    """A `layer8 expose` that goes on, and what it has said so far on either channel."""

    def __init__(self, case: SynchronousTestCase, home: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [*LAYER8, "expose", *words],
            env={**os.environ, "LAYER8_HOME": str(home)},
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(channel, lines), daemon=True)
            for channel, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()
        case.addCleanup(self._kill)

    def _read(self, channel: Any, lines: list[str]) -> None:
        for line in channel:
            lines.append(line.rstrip("\n"))

    def _kill(self) -> None:
        self.process.kill()
        self._gone()

    def _gone(self) -> int:
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        for channel in (self.process.stdout, self.process.stderr):
            if channel is not None:
                channel.close()
        return code

    def wait(self, pattern: str) -> str:
        """Wait for a line."""

        def found() -> str | None:
            if self.process.poll() is not None:
                raise AssertionError(f"it has ended: {self.out} {self.err}")
            return next((line for line in self.out + self.err if re.search(pattern, line)), None)

        line: str = until(f"{pattern} in {self.out} {self.err}", found, PATIENCE)
        return line

    def interrupt(self) -> int:
        """Press Ctrl-C and give the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self._gone()


class ExposeCase(SynchronousTestCase):
    def home(self) -> Path:
        return folder(self)

    def web(self, body: bytes = BODY) -> int:
        """Start a web service; give its port."""

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server.server_port

    def run_expose(self, home: Path, *words: str) -> tuple[int, list[str], list[str]]:
        found = subprocess.run(
            [*LAYER8, "expose", *words],
            env={**os.environ, "LAYER8_HOME": str(home)},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertNotIn("Traceback", found.stderr)
        return found.returncode, found.stdout.splitlines(), found.stderr.splitlines()

    def alone(self, server: Proxy) -> None:
        """Wait until no visitor is left, so that counts are what they will be."""
        until("no visitor is left", lambda: not server.ask("proxy.connections")["connections"], PATIENCE)

    def get(self, port: int, host: str = HOST) -> bytes:
        visitor = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(visitor):
            visitor.request("GET", "/", headers={"Host": f"{host}:{port}"})
            return visitor.getresponse().read()


class LocalServerTests(ExposeCase):
    """Beside a server of the same user: no token, no secret, no registration by hand."""

    def setUp(self) -> None:
        self.server = Proxy.start(self)
        self.secret = self.server.home / "secrets" / f"{HOST}.secret"

    def words(self, local: object, *more: str) -> list[str]:
        return [str(local), "--host", HOST, "--server", self.server.url, *more]

    def test_it_just_works_and_works_again(self) -> None:
        port = self.web()
        for _ in range(2):
            running = Running(self, self.server.home, *self.words(port))
            self.assertEqual(running.wait("^http://"), f"http://{HOST}:{self.server.http}")
            self.assertEqual(hashlib.sha256(self.get(self.server.http)).digest(), hashlib.sha256(BODY).digest())
            self.alone(self.server)
            self.assertEqual(running.interrupt(), 0)
            self.assertEqual(running.err, [])
            self.assertRegex(running.out[-1], r"^visitors: 0 open, 2 in all, 0 turned away; \d+B in, 1\.0MB out$")
            self.assertEqual(stat.S_IMODE(self.secret.stat().st_mode), 0o600)
        self.assertEqual([row["host"] for row in self.server.ask("proxy.list")["hosts"]], [HOST])
        self.assertEqual(self.server.defects(), [])

    def test_for_programs(self) -> None:
        running = Running(self, self.server.home, *self.words(self.web(), "--json"))
        running.wait('"url"')
        self.get(self.server.http)
        running.wait('"counts".*"total": 2')
        running.wait('"ended"')
        self.assertEqual(running.interrupt(), 0)
        self.assertEqual(running.err, [])
        events = [json.loads(line) for line in running.out]
        names = [event["event"] for event in events]
        self.assertEqual(names[:3], ["connected", "serving", "joined"])
        # The probe's answer and the end of its connection are told as they come, in either order.
        self.assertGreater(names.index("url"), 2)
        self.assertGreater(names.index("ended"), 2)
        url = next(event for event in events if event["event"] == "url")
        self.assertEqual(url["urls"], [f"http://{HOST}:{self.server.http}"])
        self.assertEqual([event["seconds"] for event in events], sorted(event["seconds"] for event in events))

    def test_on_a_terminal_there_is_a_table(self) -> None:
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        process = subprocess.Popen(
            [*LAYER8, "expose", *self.words(self.web())],
            env={**os.environ, "LAYER8_HOME": str(self.server.home), "TERM": "xterm", "COLUMNS": "100"},
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        wanted = [b"1 in all", f"http://{HOST}:{self.server.http}".encode(), "│ serving".encode()]
        os.set_blocking(ours, False)
        seen = b""

        def shown() -> bool:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(ours, 4096)
            plain = re.sub(rb"\x1b\[[0-9;]*m", b"", seen)
            return all(part in plain for part in wanted)

        until("address, state and count are shown", shown, PATIENCE)
        os.set_blocking(ours, True)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # what Linux says when the other end of a terminal has gone
            while os.read(ours, 4096):
                pass
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_requests_are_shown_on_a_page(self) -> None:
        port = free_port()
        where = f"tcp:{port}:interface=127.0.0.1"
        running = Running(self, self.server.home, *self.words(self.web(b"short"), "--inspect-at", where))
        url = running.wait("^requests are shown at ").split()[-1]
        self.assertRegex(url, rf"^http://127\.0\.0\.1:{port}/#[\w-]{{32}}$")
        running.wait("^http://app")
        self.get(self.server.http)

        def rows() -> list[tuple[str, int]]:
            asker = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            asker.request("GET", "/api/exchanges", headers={"Authorization": f"Bearer {url.partition('#')[2]}"})
            with contextlib.closing(asker):
                shown = json.load(asker.getresponse())["exchanges"]
            return [(row["method"], row["status"]) for row in shown]

        until("both are shown", lambda: rows() == [("HEAD", 200), ("GET", 200)], PATIENCE)
        self.assertEqual(running.interrupt(), 0)
        self.assertEqual(running.err, [])
        code, _, err = self.run_expose(self.server.home, *self.words(1, "--inspect-at", "tcp:0"))
        self.assertEqual((code, len(err)), (2, 1))
        self.assertIn("for this machine only", err[0])

    def test_the_target_hears_who_comes(self) -> None:
        heard: list[bytes] = []

        def talk(connection: socket.socket) -> None:
            heard.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

        self.server = Proxy.start(self, 'visitor = "full"\n')
        for version, pattern in (
            ("v2", rb"^\r\n\r\n\x00\r\nQUIT\n\x21\x11..\x7f\x00\x00\x01"),
            ("v1", rb"^PROXY TCP4 127\.0\.0\.1 "),
        ):
            running = Running(self, self.server.home, *self.words(serve(self, talk), "--pass-address", version))
            running.wait("^http://")
            self.get(self.server.http)
            self.assertRegex(heard[-1], re.compile(pattern, re.DOTALL))
            self.assertEqual(running.interrupt(), 0)
        (row,) = self.server.ask("proxy.list")["hosts"]
        self.assertEqual(row["policy"]["visitor"], "full")

    def test_a_target_that_comes_up_later(self) -> None:
        port = free_port()
        running = Running(self, self.server.home, *self.words(port))
        running.wait("sends us the visitors")
        running.wait("does not answer")
        self.server_closes()
        self.server_closes()
        warned = [line for line in running.err if "does not answer" in line]
        self.assertEqual(len(warned), 1, running.err)
        self.assertEqual([line for line in running.out if line.startswith("http")], [])
        late = socket.create_server(("127.0.0.1", port))
        self.addCleanup(late.close)
        threading.Thread(target=self.answer_late, args=(late,), daemon=True).start()
        self.assertEqual(self.get(self.server.http), b"late")
        running.wait("^http://")
        self.assertEqual(running.interrupt(), 0)

    def test_a_target_that_is_looked_after(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        running = Running(self, self.server.home, *self.words(port, "--health", "tcp"))
        running.wait("sends us the visitors")
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        until("the server knows", lambda: self.states() == ["down"], PATIENCE)
        back = socket.create_server(("127.0.0.1", port))
        self.addCleanup(back.close)
        until("the server knows", lambda: self.states() == ["up"], PATIENCE)
        running.wait("turned away until it does")
        running.wait(f"^{port} answers again")
        self.assertEqual(len([line for line in running.err if "turned away until it does" in line]), 1, running.err)
        self.assertEqual(running.interrupt(), 0)

    def states(self) -> list[str]:
        return [row["state"] for row in self.server.ask("proxy.subscribers")["subscribers"]]

    def server_closes(self) -> None:
        self.assertRaises((http.client.RemoteDisconnected, ConnectionResetError), self.get, self.server.http)

    def answer_late(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:  # expose itself may be the first that comes
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nlate")

    def test_a_server_that_goes_and_comes_back(self) -> None:
        running = Running(self, self.server.home, *self.words(self.web()))
        running.wait("^http://")
        self.server.program.kill()
        running.wait("not connected to .*trying again")
        self.server.write("")
        self.server.again()
        until("it serves again", lambda: len([line for line in running.out if "sends us" in line]) == 2, PATIENCE)
        self.assertEqual(len(self.get(self.server.http)), len(BODY))
        self.assertEqual(running.interrupt(), 0)
        self.assertEqual(len([line for line in running.err if "not connected" in line]), 1)

    def test_a_registered_host_whose_secret_is_not_here(self) -> None:
        self.server.ask("proxy.register", host=HOST, secret_hash=HostSecret.make().key.hex())
        code, _, err = self.run_expose(self.server.home, *self.words(1))
        self.assertEqual((code, len(err)), (1, 1))
        self.assertRegex(err[0], "is registered already .*--secret-file.*layer8 proxy rotate")
        self.assertFalse(self.secret.exists())
        HostSecret.make().save(self.secret)
        code, _, err = self.run_expose(self.server.home, *self.words(1))
        self.assertEqual((code, len(err)), (1, 1))
        self.assertIn("with another secret", err[0])

    def test_a_wrong_secret(self) -> None:
        path = self.server.home / "wrong"
        HostSecret.make().save(path)
        code, _, err = self.run_expose(self.server.home, *self.words(self.web(), "--secret-file", str(path)))
        self.assertEqual((code, len(err)), (1, 1))
        self.assertRegex(err[0], rf"refuses {HOST}: wrong secret.*{path}.*layer8 proxy")

    def test_a_target_that_is_the_server_itself(self) -> None:
        for local in (f"127.0.0.1:{self.server.agents}", f"localhost:{self.server.http}"):
            code, _, err = self.run_expose(self.server.home, *self.words(local))
            self.assertEqual((code, len(err)), (1, 1))
            self.assertIn("is the server itself", err[0])
        self.assertEqual(self.server.access(), [])

    def test_checks(self) -> None:
        keys = [Identity.from_pem(*self_signed(HOST)) for _ in range(2)]
        shown = [keys[0]]
        turn = threading.Lock()
        for number, key in enumerate(keys):
            (self.server.home / f"key{number}.pem").write_bytes(key.pem())

        def shake(connection: socket.socket) -> None:
            if not connection.recv(1, socket.MSG_PEEK):
                return  # who only looks whether somebody listens is shown nothing
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with turn:
                number = keys.index(shown[0])
                # With two in the list every connection gets another key than the one before it.
                shown.reverse()
            context.load_cert_chain(self.server.home / f"key{number}.pem")
            with context.wrap_socket(connection, server_side=True) as line:
                line.recv(1)

        secure = serve(self, shake)
        words = self.words(self.web(), "--port", f"443={secure}", "--check")
        code, out, err = self.run_expose(self.server.home, *words)
        self.assertEqual((code, err), (0, []), out)
        rows = [re.split("  +", line, maxsplit=2) for line in out]
        self.assertEqual(
            [row[:2] for row in rows],
            [
                ["local", "ok"],
                ["local", "ok"],
                ["dns", "not checked"],
                ["ports", "ok"],
                ["ports", "ok"],
                ["clock", "ok"],
                ["certificate", "ok"],
                ["dial-back", "ok"],
            ],
        )
        self.assertIn(keys[0].pin, rows[6][2])

        shown.append(keys[1])
        code, out, err = self.run_expose(self.server.home, *words, "--json")
        self.assertEqual((code, err), (1, []))
        rows_of_json = [json.loads(line) for line in out]
        self.assertEqual([bool(row["advice"]) for row in rows_of_json], [row["ok"] is False for row in rows_of_json])
        verdicts = {row["check"]: row["ok"] for row in rows_of_json}
        wanted = {"local": True, "dns": None, "ports": True, "clock": True, "certificate": False, "dial-back": True}
        self.assertEqual(verdicts, wanted)

    def test_checks_without_a_target_or_a_server(self) -> None:
        code, out, err = self.run_expose(self.server.home, *self.words(free_port(), "--check"))
        self.assertEqual((code, err), (1, []))
        self.assertRegex(out[0], r"^local +failed +127\.0\.0\.1:\d+: connection refused; start what ")
        self.assertRegex(out[-1], r"^dial-back +failed +the target does not answer: connection refused; start")
        url = f"ws://127.0.0.1:{free_port()}"
        code, _, err = self.run_expose(self.server.home, "1", "--host", HOST, "--server", url, "--check")
        self.assertEqual((code, len(err)), (1, 1))
        self.assertIn(f"{url} cannot be reached: connection refused", err[0])

    def test_a_wildcard(self) -> None:
        words = [str(self.web()), "--host", "*.app.test", "--server", self.server.url]
        running = Running(self, self.server.home, *words)
        self.assertEqual(running.wait("^http://"), f"http://*.app.test:{self.server.http}")
        self.assertEqual(len(self.get(self.server.http, "any.app.test")), len(BODY))
        self.assertEqual(running.interrupt(), 0)


class OwnerTests(ExposeCase):
    """From another machine, as it were: another state folder, a token, TLS and a pin."""

    def setUp(self) -> None:
        self.server = Proxy.start(self, 'agents = ["tls:0:interface=127.0.0.1"]\n')
        pin = Identity.load(self.server.home / "control.pem").pin
        self.url = f"wss://127.0.0.1:{self.server.agents}?pin={pin}"
        made = self.server.ask("token.add", name="ann", roles=["owner"], hosts=["*.ann.test"])
        self.away = self.home()
        self.token = self.away / "token"
        self.token.write_text(made["token"])
        self.token.chmod(0o600)

    def words(self, host: str, local: object, *more: str) -> list[str]:
        return [str(local), "--host", host, "--server", self.url, *more]

    def test_the_token_registers(self) -> None:
        host, port = "www.ann.test", self.web()
        with_token = ["--owner-token-file", str(self.token)]
        running = Running(self, self.away, *self.words(host, port, *with_token))
        running.wait(f"^http://{host}:")
        self.assertEqual(len(self.get(self.server.http, host)), len(BODY))
        self.assertEqual(running.interrupt(), 0)
        rows = [(row["host"], row["owner"], row["state"]) for row in self.server.ask("proxy.list")["hosts"]]
        self.assertEqual(rows, [(host, "ann", "owned")])
        # The secret that was made is enough from now on.
        code, out, err = self.run_expose(self.away, *self.words(host, port, "--check"))
        self.assertEqual((code, err), (0, []), out)
        self.assertIn("clock        ok           the server's and ours agree", out)
        said = self.server.program.said() + "".join(running.out)
        self.assertNotIn((self.away / "secrets" / f"{host}.secret").read_text().strip(), said)

    def test_a_name_outside_the_token_has_to_be_proven(self) -> None:
        code, _, err = self.run_expose(self.away, *self.words("www.bob.test", 1, "--owner-token-file", str(self.token)))
        self.assertEqual((code, len(err)), (1, 1))
        self.assertRegex(err[0], r"TXT record _layer8\.www\.bob\.test hold l8=\w+, .* --prove")

    def test_a_wrong_token(self) -> None:
        self.token.write_text("l8t_" + "A" * 43)
        code, _, err = self.run_expose(self.away, *self.words("www.ann.test", 1, "--owner-token-file", str(self.token)))
        self.assertEqual((code, len(err)), (1, 1))
        self.assertIn("does not know this token", err[0])
        self.assertFalse((self.away / "secrets").exists())

    def test_neither_token_nor_secret(self) -> None:
        code, _, err = self.run_expose(self.away, *self.words("www.ann.test", 1))
        self.assertEqual((code, len(err)), (1, 1))
        self.assertRegex(err[0], "there is no secret for .*--secret-file.*--owner-token-file")


class UsageTests(ExposeCase):
    def test_wrong_usage_is_2_and_one_line(self) -> None:
        here = self.home()
        HostSecret.make().save(here / "secrets" / f"{HOST}.secret")
        for words, said in (
            ([], "Missing argument 'LOCAL'"),
            (["8000"], "Missing option '--host'"),
            (["8000", "--host", HOST, "--check", "--inspect"], "leaves at once"),
            (["8000", "--host", HOST, "--pass-address", "v3"], "'v1', 'v2'"),
            (["70000", "--host", HOST], "1 to 65535"),
            (["nope", "--host", HOST], "write host:port"),
            (["tcp:1", "--host", HOST], "'tcp:1'"),
            (["8000", "--host", "not a name"], "not a name"),
            (["8000", "--host", HOST, "--port", "443"], "for example 443=8443"),
            (["8000", "--host", HOST, "--port", "0=1"], "for example 443=8443"),
            (["8000", "--host", HOST, "--server", "ws://proxy.example.org"], "plain text"),
            (["8000", "--host", HOST, "--server", "http://127.0.0.1"], "wss://"),
        ):
            code, out, err = self.run_expose(here, *words)
            self.assertEqual((code, out, len(err)), (2, [], 1), f"{words}: {err}")
            self.assertIn(said, err[0])

    def test_no_server_yet(self) -> None:
        here = self.home()
        HostSecret.make().save(here / "secrets" / f"{HOST}.secret")
        running = Running(self, here, "1", "--host", HOST, "--server", f"ws://127.0.0.1:{free_port()}")
        running.wait("^layer8: not connected to .*connection refused; trying again")
        self.assertEqual(running.interrupt(), 0)


class TargetTests(SynchronousTestCase):
    def test_ports_addresses_and_endpoints(self) -> None:
        for text, where in (
            ("8000", Where("127.0.0.1", 8000)),
            ("box:80", Where("box", 80)),
            ("[::1]:80", Where("::1", 80)),
            ("tcp:box:80", Where("box", 80)),
            ("unix:/run/app.sock", Where("", 0, "/run/app.sock")),
        ):
            self.assertEqual(target(text), where)

    def test_what_is_none(self) -> None:
        for text in ("", "0", "65536", "box", "::1:80", "ssl:box:443", "tcp:", "-1", "8000 "):
            self.assertRaises(ConfigError, target, text)


class ProbeTests(SynchronousTestCase):
    """What stands at the other end may be anything."""

    def at(self, answer: bytes) -> Where:
        def talk(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(answer)

        return Where("127.0.0.1", serve(self, talk))

    def test_answers(self) -> None:
        head = b"HTTP/1.1 204 No Content\r\nDate: Sat, 01 Jan 2022 00:00:00 GMT\r\n\r\n"
        found = expose_probe.ask(self.at(head), HOST)
        self.assertEqual((found.line, found.nothing), ("HTTP/1.1 204 No Content", False))
        assert found.date is not None
        self.assertEqual(found.date.isoformat(), "2022-01-01T00:00:00+00:00")
        self.assertLess(expose_probe.skew(found.date), -1e6)
        for answer in (b"SSH-2.0-x\r\n", b"\xff" * 40_000):
            self.assertEqual(expose_probe.ask(self.at(answer), HOST).line, "(not HTTP)")
        self.assertTrue(expose_probe.ask(self.at(b""), HOST).nothing)
        for odd in (b"Date: yesterday", b"Date:", b"\xff:\xff", b":"):
            found = expose_probe.ask(self.at(b"HTTP/1.0 200 OK\r\n" + odd + b"\r\n\r\n"), HOST)
            self.assertEqual((found.line, found.date), ("HTTP/1.0 200 OK", None))

    def test_nobody_and_no_tls(self) -> None:
        nobody = Where("127.0.0.1", free_port())
        self.assertEqual(expose_probe.knock(nobody), "connection refused")
        self.assertRaises(Unavailable, expose_probe.ask, nobody, HOST)
        self.assertRaises(Unavailable, expose_probe.key_at, nobody, HOST)
        self.assertRaises(Unavailable, expose_probe.clock_of, nobody, True, None)
        self.assertRaises(Layer8Error, expose_probe.key_at, self.at(b"HTTP/1.0 400 Bad Request\r\n\r\n"), HOST)
        self.assertEqual(expose_probe.addresses("no-such-name.invalid"), frozenset())
        self.assertIn("127.0.0.1", expose_probe.addresses("localhost"))

    def test_a_clock_over_tls_is_believed_of_the_right_server_only(self) -> None:
        identity = Identity.from_pem(*self_signed("localhost"))
        pem = folder(self) / "key.pem"
        pem.write_bytes(identity.pem())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)

        def talk(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as line:
                line.recv(65536)
                line.sendall(b"HTTP/1.1 404 x\r\nDate: Sat, 01 Jan 2022 00:00:00 GMT\r\n\r\n")

        where = Where("127.0.0.1", serve(self, talk))
        self.assertIsNotNone(expose_probe.clock_of(where, True, identity.pin))
        other = Identity.from_pem(*self_signed("localhost")).pin
        self.assertRaises(Layer8Error, expose_probe.clock_of, where, True, other)
        self.assertRaises(Layer8Error, expose_probe.clock_of, where, True, None)
