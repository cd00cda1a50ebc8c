"""Visitors who are not carried: what they get, how soon, and what the access log says of it."""

import contextlib
import socket
import subprocess
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.backend import serve
from tests.interop.daemons import Agent, Proxy, free_port, missing, until
from tests.interop.test_idle import hello

TIME_S = 20.0
SNIFF_S = 1.0
SOON_S = 2.0
LOG = '[log]\nformat = "json"\naddresses = "clear"\n'


def request(host: str, version: str = "1.1") -> bytes:
    return f"GET / HTTP/{version}\r\nHost: {host}\r\n\r\n".encode()


def answered(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


def named(connection: socket.socket) -> None:
    """Answer a ClientHello with something that is no TLS: it shows who was reached."""
    connection.recv(65536)
    connection.sendall(b"reached")


class Case(SynchronousTestCase):
    def visit(self, port: int, first: bytes) -> tuple[bytes, float]:
        """Say something, and give all that comes back until the end and the seconds that took."""
        began = time.monotonic()
        answer = b""
        with socket.create_connection(("127.0.0.1", port), TIME_S) as visitor:
            visitor.sendall(first)
            with contextlib.suppress(ConnectionResetError):
                while data := visitor.recv(65536):
                    answer += data
        return answer, time.monotonic() - began

    def status(self, server: Proxy, first: bytes) -> int:
        """Give the status code of the answer on the http port, 0 for a close without a byte; it must come soon."""
        answer, seconds = self.visit(server.http, first)
        self.assertLess(seconds, SOON_S)
        return int(answer.split(b" ")[1]) if answer else 0

    def reasons(self, server: Proxy, count: int) -> list[str]:
        """Give why visitors ended, oldest first, once `count` have."""
        until("the access log is written", lambda: len(server.access()) >= count)
        return [line["reason"] for line in server.access()]


class RefusalTests(Case):
    def server(self, text: str = "", tables: str = "", secrets: tuple[str, ...] = ()) -> Proxy:
        return Proxy.start(self, f"{text}\n{LOG}{tables}", secrets=secrets)

    def test_a_beginning_that_never_ends(self) -> None:
        for unknown in ("close", "answer"):
            server = self.server(f'unknown = "{unknown}"\n', f"[proxy.limits]\nsniff_time = {SNIFF_S}\n")
            answer, seconds = self.visit(server.http, b"GET / HTTP/1.1\r\nHost: web")
            self.assertEqual(answer.split(b"\r\n")[0], b"HTTP/1.1 408 Request Timeout")
            self.assertTrue(SNIFF_S * 0.9 < seconds < SNIFF_S + 5, seconds)
            answer, seconds = self.visit(server.https, hello("web.test")[:50])
            self.assertEqual(answer, b"")
            self.assertTrue(SNIFF_S * 0.9 < seconds < SNIFF_S + 5, seconds)
            self.assertEqual(self.reasons(server, 2), ["sniff_time", "sniff_time"])

    def test_an_unknown_host_is_closed_without_a_byte(self) -> None:
        server = self.server()
        self.assertEqual(self.status(server, request("nobody.test")), 0)
        answer, seconds = self.visit(server.https, hello("nobody.test"))
        self.assertEqual(answer, b"")
        self.assertLess(seconds, SOON_S)
        self.assertEqual(self.reasons(server, 2), ["unknown_host", "unknown_host"])

    def test_strangers_leave_no_line_in_the_usual_log(self) -> None:
        server = Proxy.start(self)
        self.visit(server.http, request("nobody.test"))
        self.visit(server.https, hello("nobody.test"))
        time.sleep(0.6)  # two ticks of the log
        self.assertEqual(server.access(), [])
        self.assertNotIn("nobody.test", server.program.said())

    def test_an_unknown_host_is_told_if_one_likes(self) -> None:
        server = self.server('unknown = "answer"\n')
        self.assertEqual(self.status(server, request("nobody.test")), 404)
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{server.https}", "-servername", "nobody.test"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=TIME_S,
        )
        self.assertIn(b"alert number 112", done.stderr)

    test_an_unknown_host_is_told_if_one_likes.skip = missing(openssl="openssl")  # type: ignore[attr-defined]

    def test_who_names_no_host_gets_the_default_one(self) -> None:
        web, tls = serve(self, answered), serve(self, named)
        for default in ("", "home.test"):
            public = "public_http = 80\npublic_https = 443\n"
            table = (
                f'[[proxy.host]]\nhost = "home.test"\ntarget = "tcp:127.0.0.1:{web}"\nports = [80]\n'
                f'[[proxy.host]]\nhost = "tls.test"\ntarget = "tcp:127.0.0.1:{tls}"\nports = [443]\n'
            )
            server = self.server(f'{public}default_host = "{default}"\n', table)
            self.assertEqual(self.status(server, request("home.test")), 200)
            self.assertEqual(self.status(server, b"GET / HTTP/1.0\r\n\r\n"), 200 if default else 0)
            self.assertEqual(self.status(server, b"GET / HTTP/1.1\r\n\r\n"), 400)
            server = self.server(f'{public}default_host = "{"tls.test" if default else ""}"\n', table)
            self.assertEqual(self.visit(server.https, hello("tls.test"))[0], b"reached")
            self.assertEqual(self.visit(server.https, hello("127.0.0.1"))[0], b"reached" if default else b"")

    def test_a_host_that_nobody_serves(self) -> None:
        for unknown, status in (("close", 0), ("answer", 503)):
            server = self.server(f'unknown = "{unknown}"\n', secrets=("app.test",))
            self.assertEqual(self.status(server, request("app.test")), status)
            self.assertEqual(self.visit(server.https, hello("app.test"))[0], b"")
            self.assertEqual(self.reasons(server, 2), ["no_subscriber", "no_subscriber"])

    def test_a_target_that_is_not_there(self) -> None:
        nobody = free_port()
        for unknown, status in (("close", 0), ("answer", 502)):
            table = f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:127.0.0.1:{nobody}"\n'
            server = self.server(f'unknown = "{unknown}"\n', table, secrets=("app.test",))
            agent = Agent.start(self, server, {"app.test": {server.http: f"tcp:127.0.0.1:{nobody}"}})
            self.assertEqual(self.status(server, request("static.test")), status)
            self.assertEqual(self.status(server, request("app.test")), status)
            self.assertEqual(self.visit(server.https, hello("app.test"))[0], b"")  # a port without a target
            self.assertEqual(self.reasons(server, 3), ["target_refused", "rejected", "rejected"])
            self.assertEqual(agent.ask("agent.status")["rejected"], 1)

    def test_a_host_registered_for_other_ports(self) -> None:
        web = serve(self, answered)
        table = f'[[proxy.host]]\nhost = "app.test"\ntarget = "tcp:127.0.0.1:{web}"\nports = [443]\n'
        for unknown, status in (("close", 0), ("answer", 404)):
            server = self.server(f'unknown = "{unknown}"\npublic_http = 80\npublic_https = 443\n', table)
            self.assertEqual(self.status(server, request("app.test")), status)
            self.assertTrue(self.visit(server.https, hello("app.test"))[0].startswith(b"HTTP/1.1 200 OK"))
            self.assertEqual(self.reasons(server, 2), ["wrong_port", "done"])

    def test_allow_and_deny(self) -> None:
        web = serve(self, answered)
        target = f'target = "tcp:127.0.0.1:{web}"\n'
        tables = "".join(
            f'[[proxy.host]]\nhost = "{name}.test"\n{target}{policy}\n'
            for name, policy in (
                ("denied", 'deny = ["127.0.0.0/8"]'),
                ("elsewhere", 'allow = ["192.0.2.0/24"]'),
                ("here", 'allow = ["127.0.0.1"]'),
                ("both", 'allow = ["127.0.0.0/8"]\ndeny = ["127.0.0.1/32"]'),
            )
        )
        server = self.server("", tables)
        self.assertEqual([self.status(server, request(f"{n}.test")) for n in ("denied", "elsewhere", "both")], [0] * 3)
        self.assertEqual(self.status(server, request("here.test")), 200)
        self.assertEqual(self.reasons(server, 4), ["denied", "denied", "denied", "done"])

    def test_no_more_than_a_host_may_have(self) -> None:
        def talk(connection: socket.socket) -> None:
            answered(connection)
            connection.recv(1)

        table = f'[[proxy.host]]\nhost = "small.test"\ntarget = "tcp:127.0.0.1:{serve(self, talk)}"\nmax_conns = 2\n'
        server = self.server('unknown = "answer"\n', table)
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", server.http), TIME_S))
                one.sendall(request("small.test"))
                self.assertTrue(one.recv(100).startswith(b"HTTP/1.1 200"))
            self.assertEqual(self.status(server, request("small.test")), 503)
        until("they have left", lambda: not server.ask("proxy.connections")["connections"])
        with socket.create_connection(("127.0.0.1", server.http), TIME_S) as one:
            one.sendall(request("small.test"))
            self.assertTrue(one.recv(100).startswith(b"HTTP/1.1 200"))
