"""TLS that ends at the server: openssl, curl and wrk as visitors, plain nginx behind, certificates in a folder."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from functools import cache, partial
from pathlib import Path

from attrs import frozen
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from layer8.net.tls import peer_pin
from tests.interop.backend import serve
from tests.interop.daemons import RUN, Agent, Proxy, Scope, folder, found, missing, until
from tests.interop.stage import CURL, MIB, SIZES, Nginx, pattern, sha256
from tests.proxy.test_certs import put

TIME_S = 20
WAYS = ("static", "agent")
NAMES = ["web.static.test", "web.agent.test", "other.static.test", "*.wild.test"]
TERMINATE = 'tls = "terminate"\n'


@frozen
class Ended:
    """A server that ends TLS for its hosts, an agent, and the folder with the certificate for all of them."""

    server: Proxy
    agent: Agent
    certs: Path

    @classmethod
    def start(cls, scope: Scope, target: int, text: str = "") -> "Ended":
        """Publish what listens in plain text on `target`."""
        certs = folder(scope)
        put(certs, "all", NAMES)
        server = Proxy("proxy", folder(scope), scope, ())
        static = "".join(
            f'[[proxy.host]]\nhost = "{name}"\ntarget = "tcp:127.0.0.1:{target}"\n{TERMINATE}'
            for name in ("web.static.test", "other.static.test", "*.wild.test", "bare.static.test")
        )
        server.write(f'certs = "{certs}"\n{text}\n{static}{server.host("web.agent.test")}{TERMINATE}')
        server.again()
        targets = dict.fromkeys((server.http, server.https), f"tcp:127.0.0.1:{target}")
        return cls(server, Agent.start(scope, server, {"web.agent.test": targets}), certs)

    @property
    def trust(self) -> Path:
        """The certificate, which vouches for itself."""
        return self.certs / "all.pem"

    def url(self, host: str, path: str) -> tuple[str, ...]:
        """Give curl's words for a path of a host."""
        port = self.server.https
        return ("--resolve", f"{host}:{port}:127.0.0.1", "--cacert", str(self.trust), f"https://{host}:{port}{path}")

    def dial(self, host: str) -> SSL.Connection:
        """Shake hands as a visitor of a host."""
        raw = socket.create_connection(("127.0.0.1", self.server.https), TIME_S)
        raw.setblocking(True)
        visitor = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), raw)
        visitor.set_tlsext_host_name(host.encode())
        visitor.set_connect_state()
        visitor.do_handshake()
        return visitor

    def shows(self, host: str, pin: str) -> bool:
        """Say whether a visitor of a host sees that key."""
        visitor = self.dial(host)
        try:
            return peer_pin(visitor) == pin
        finally:
            visitor.sock_shutdown(socket.SHUT_RDWR)
            visitor.close()

    def reasons(self) -> list[str]:
        """Give why connections have ended so far."""
        return [str(line["reason"]) for line in self.server.access()]


def rest(visitor: SSL.Connection) -> bytes:
    """Read to the close_notify; raises `SSL.SysCallError` or `ConnectionResetError` without one."""
    got = b""
    with contextlib.suppress(SSL.ZeroReturnError):
        while True:
            got += visitor.recv(65536)
    return got


@cache
def stage() -> tuple[Ended, Nginx, dict[str, str]]:
    """Give the stage that the tests of this module share, with what nginx serves and its sums."""
    nginx = Nginx.start(RUN, NAMES)
    sums = {name: pattern(nginx.files / name, size) for name, size in (SIZES | {"64m": 64 * MIB}).items()}
    return Ended.start(RUN, nginx.plain), nginx, sums


class VisitorTests(SynchronousTestCase):
    skip = missing(nginx="nginx", openssl="openssl", curl="curl")

    def client(self, way: str, *words: str) -> "subprocess.CompletedProcess[bytes]":
        """Run `openssl s_client` with one request."""
        ended, _, _ = stage()
        return subprocess.run(
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{ended.server.https}", "-ign_eof"),
                *("-servername", f"web.{way}.test", "-CAfile", str(ended.trust)),
                *("-verify_return_error", "-verify_hostname", f"web.{way}.test", *words),
            ],
            input=f"GET /1k HTTP/1.1\r\nHost: web.{way}.test\r\nConnection: close\r\n\r\n".encode(),
            capture_output=True,
            timeout=TIME_S,
        )

    def test_openssl_in_both_versions(self) -> None:
        for way in WAYS:
            for version in ("-tls1_2", "-tls1_3"):
                said = self.client(way, version, "-alpn", "h2,http/1.1").stdout.decode("latin-1")
                self.assertIn("Verify return code: 0 (ok)", said)
                self.assertIn("ALPN protocol: http/1.1", said)
                self.assertIn("HTTP/1.1 200 OK", said)

    def test_old_versions_are_refused(self) -> None:
        done = self.client("static", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
        self.assertNotEqual(done.returncode, 0)
        self.assertNotIn(b"200 OK", done.stdout)

    def test_sessions_are_resumed(self) -> None:
        for version in ("-tls1_2", "-tls1_3"):
            kept = str(Path(self.mktemp()).absolute())
            self.assertIn(b"New, TLS", self.client("static", version, "-sess_out", kept).stdout)
            said = self.client("static", version, "-sess_in", kept).stdout
            self.assertIn(b"Reused, TLS", said)
            self.assertIn(b"200 OK", said)

    def test_no_protocol_of_ours(self) -> None:
        done = self.client("static", "-alpn", "h2,spdy/3")
        self.assertIn(b"no application protocol", done.stderr)
        self.assertIn(b"no application protocol", self.client("static", "-alpn", "acme-tls/1").stderr)

    def test_no_certificate(self) -> None:
        ended, _, _ = stage()
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{ended.server.https}", "-servername", "bare.static.test"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_S,
        )
        self.assertIn(b"unrecognized name", done.stderr)
        until("the log says why", lambda: "no_certificate" in ended.reasons())

    def test_curl_gets_and_puts(self) -> None:
        ended, nginx, sums = stage()
        for way in WAYS:
            host = f"web.{way}.test"
            for name in sums if way == "agent" else ("1", "64k+1", "64m"):
                got = Path(self.mktemp())
                subprocess.run([*CURL, "-o", str(got), *ended.url(host, f"/{name}")], check=True, capture_output=True)
                self.assertEqual(sha256(got), sums[name], (way, name))
            upload = nginx.files / "64m"
            subprocess.run([*CURL, "-T", str(upload), *ended.url(host, f"/up/{way}")], check=True, capture_output=True)
            self.assertEqual(sha256(nginx.uploads / way), sums["64m"])
            (nginx.uploads / way).unlink()

    def test_keep_alive_and_both_ports(self) -> None:
        ended, _, _ = stage()
        for way in WAYS:
            host = f"web.{way}.test"
            words = [*ended.url(host, "/1"), ended.url(host, "/1k")[-1], ended.url(host, "/1")[-1]]
            aside = ["-o", os.devnull] * 3  # the files are random, and may hold any count
            done = subprocess.run([*CURL, *aside, "-w", "%{num_connects} ", *words], check=True, capture_output=True)
            self.assertEqual(done.stdout.split(), [b"1", b"0", b"0"])
            plain = f"http://{host}:{ended.server.http}/1k"
            resolve = f"{host}:{ended.server.http}:127.0.0.1"
            done = subprocess.run([*CURL, "--resolve", resolve, plain], check=True, capture_output=True)
            self.assertEqual(len(done.stdout), 1024)

    def test_a_wildcard_serves_its_names(self) -> None:
        ended, _, _ = stage()
        for host in ("a.wild.test", "b.wild.test"):
            done = subprocess.run([*CURL, *ended.url(host, "/1k")], check=True, capture_output=True)
            self.assertEqual(len(done.stdout), 1024)

    def test_no_warning_and_no_defect(self) -> None:
        ended, _, _ = stage()
        self.assertEqual(json.dumps([*ended.server.defects(), *ended.agent.defects()]), "[]")


class HostTests(SynchronousTestCase):
    """What is asked for inside TLS has to belong to the host that the certificate was shown for."""

    skip = missing(nginx="nginx")

    def ask(self, name: str, head: str) -> bytes:
        ended, _, _ = stage()
        visitor = ended.dial(name)
        visitor.sendall(head.encode())
        return rest(visitor)

    def test_another_registration(self) -> None:
        for host in ("other.static.test", "web.agent.test", "unknown.test", "127.0.0.1"):
            said = self.ask("web.static.test", f"GET /1 HTTP/1.1\r\nHost: {host}\r\n\r\n")
            self.assertTrue(said.startswith(b"HTTP/1.1 421 "), said)
        ended, _, _ = stage()
        until("the log says why", lambda: ended.reasons().count("misdirected") >= 4)

    def test_the_same_registration(self) -> None:
        said = self.ask("a.wild.test", "GET /1 HTTP/1.1\r\nHost: b.wild.test\r\nConnection: close\r\n\r\n")
        self.assertTrue(said.startswith(b"HTTP/1.1 200 "), said)

    def test_no_host_is_that_of_tls(self) -> None:
        said = self.ask("web.static.test", "GET /1 HTTP/1.0\r\n\r\n")
        self.assertTrue(said.startswith(b"HTTP/1.1 200 "), said)

    def test_doubts_are_answered_inside(self) -> None:
        for head, status in (
            ("GET / HTTP/1.1\r\n\r\n", b"400"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", b"400"),
            ("CONNECT web.static.test:1 HTTP/1.1\r\nHost: web.static.test\r\n\r\n", b"405"),
        ):
            self.assertEqual(self.ask("web.static.test", head)[9:12], status)


class EndTests(SynchronousTestCase):
    """Half-closes and cuts, each way, through an agent and without."""

    def pair(self, text: str = "") -> tuple[Ended, socket.socket]:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        listener.settimeout(TIME_S)
        return Ended.start(self, listener.getsockname()[1], text), listener

    def both(self, ended: Ended, listener: socket.socket, way: str) -> tuple[SSL.Connection, socket.socket]:
        visitor = ended.dial(f"web.{way}.test")
        visitor.sendall(f"POST / HTTP/1.1\r\nHost: web.{way}.test\r\nContent-Length: 9\r\n\r\nabc".encode())
        target, _ = listener.accept()
        target.settimeout(TIME_S)
        got = b""
        while not got.endswith(b"abc"):
            got += target.recv(1000)
        return visitor, target

    def test_ends_each_way(self) -> None:
        ended, listener = self.pair('data_tls = "always"')
        for way in WAYS:
            visitor, target = self.both(ended, listener, way)
            visitor.shutdown()  # close_notify: the visitor says no more, and wants its answer
            self.assertEqual(target.recv(10), b"")
            target.sendall(b"HTTP/1.1 200 OK\r\n\r\nlate")
            time.sleep(0.2)
            target.sendall(b"r")
            target.close()
            self.assertTrue(rest(visitor).endswith(b"later"))
            visitor, target = self.both(ended, listener, way)
            target.sendall(b"HTTP/1.1 200 OK\r\n\r\nbye")
            target.shutdown(socket.SHUT_WR)
            self.assertTrue(rest(visitor).endswith(b"bye"))  # its close_notify, and the other way goes on
            visitor.sendall(b"def")
            self.assertEqual(target.recv(10), b"def")
            visitor.shutdown()
            self.assertEqual(target.recv(10), b"")
            target.close()

    def test_a_target_that_is_cut_off_is_no_end(self) -> None:
        ended, listener = self.pair()
        for way in WAYS:
            visitor, target = self.both(ended, listener, way)
            target.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf of")
            self.assertTrue(visitor.recv(1000).endswith(b"half of"))
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            target.close()
            with self.assertRaises((SSL.SysCallError, SSL.Error, ConnectionResetError)) as caught:
                visitor.recv(10)
            self.assertNotIsInstance(caught.exception, SSL.ZeroReturnError)

    def test_a_visitor_who_leaves_as_browsers_do(self) -> None:
        ended, listener = self.pair()
        for way in WAYS:
            visitor, target = self.both(ended, listener, way)
            visitor.sock_shutdown(socket.SHUT_WR)  # no close_notify
            self.assertEqual(target.recv(10), b"")
            target.close()
            until("it is over", lambda: ended.server.ask("proxy.stats")["open"] == 0)
        until("the log says so", lambda: ended.reasons() == ["done"] * len(WAYS))

    def test_slow_handshakes(self) -> None:
        ended, listener = self.pair("[proxy.limits]\nsniff_time = 1.0\nper_source_sniffing = 8\n")
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        client.set_tlsext_host_name(b"web.static.test")
        client.set_connect_state()
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        hello = client.bio_read(65536)
        slow = []
        for sent in (hello[:50], hello, hello, hello, hello, hello, hello, hello):
            slow.append(socket.create_connection(("127.0.0.1", ended.server.https), TIME_S))
            slow[-1].sendall(sent)
        time.sleep(0.2)
        began = time.monotonic()
        one_more = socket.create_connection(("127.0.0.1", ended.server.https), TIME_S)
        one_more.sendall(hello)
        self.assertEqual(one_more.recv(10), b"")  # no place
        for sock in slow:
            while sock.recv(65536):
                pass
        self.assertLess(time.monotonic() - began, 8)
        until("all who named a host are told", lambda: len(ended.reasons()) == 8)
        self.assertEqual(sorted(ended.reasons()), ["sniff_time"] * 7 + ["source_limit"])
        visitor, target = self.both(ended, listener, "static")  # and places are free again
        visitor.shutdown()
        target.close()
        self.assertEqual(ended.server.defects(), [])

    def test_noise_instead_of_a_handshake(self) -> None:
        ended, _ = self.pair()
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        client.set_tlsext_host_name(b"web.static.test")
        client.set_connect_state()
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        hello = client.bio_read(65536)
        before = ended.server.program.descriptors()
        for noise in (b"\0" * 100, b"\x15\x03\x03\x00\x02\x02\x28", hello, b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", ended.server.https), TIME_S) as sock:
                sock.sendall(hello)
                sock.recv(65536)
                sock.sendall(noise)
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(65536):
                        pass
        until("all are told", lambda: len(ended.reasons()) == 4)
        self.assertEqual(set(ended.reasons()), {"bad_tls"})
        until("nothing is left", lambda: ended.server.program.descriptors() <= before)
        self.assertEqual(ended.server.defects(), [])


class ModeTests(SynchronousTestCase):
    """What is behind TLS that ended here is HTTP like any other."""

    skip = missing(nginx="nginx")

    def test_a_later_request_for_another_host(self) -> None:
        ended, _, _ = stage()
        for way in WAYS:
            visitor = ended.dial(f"web.{way}.test")
            visitor.sendall(f"GET /1 HTTP/1.1\r\nHost: web.{way}.test\r\n\r\n".encode())
            self.assertTrue(visitor.recv(1000).startswith(b"HTTP/1.1 200 "))
            visitor.sendall(b"GET /1 HTTP/1.1\r\nHost: other.static.test\r\n\r\n")
            said = rest(visitor)
            self.assertEqual(said.count(b"HTTP/1.1 "), 1, said)
            self.assertIn(b"HTTP/1.1 421 ", said)

    def test_mode_proxy_says_that_it_was_https(self) -> None:
        heads: list[bytes] = []

        def show(connection: socket.socket) -> None:
            while head := connection.recv(65536):
                heads.append(head)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        ended = Ended.start(self, serve(self, show), 'mode = "proxy"')
        for way in WAYS:
            visitor = ended.dial(f"web.{way}.test")
            for host, status in ((f"web.{way}.test", b"200"), ("other.static.test", b"421")):
                lie = "X-Forwarded-Proto: http\r\nX-Forwarded-Host: lie.test\r\n"
                visitor.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n{lie}\r\n".encode())
                said = b""
                while b"\r\n\r\n" not in said:
                    said += visitor.recv(65536)
                self.assertEqual(said[9:12], status)
            visitor.sock_shutdown(socket.SHUT_RDWR)
        self.assertEqual(len(heads), len(WAYS))
        for head in heads:
            self.assertEqual(re.findall(rb"(?i)x-forwarded-proto: *(\S*)", head), [b"https"])
            self.assertNotIn(b"lie.test", head)

    def test_behind_a_balancer(self) -> None:
        ended = Ended.start(self, stage()[1].plain, 'proxy_from = ["127.0.0.1/32"]')
        for way in WAYS:
            raw = socket.create_connection(("127.0.0.1", ended.server.https), TIME_S)
            raw.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n")
            raw.setblocking(True)
            visitor = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), raw)
            visitor.set_tlsext_host_name(f"web.{way}.test".encode())
            visitor.set_connect_state()
            visitor.do_handshake()
            visitor.sendall(f"GET /1k HTTP/1.0\r\nHost: web.{way}.test\r\n\r\n".encode())
            self.assertTrue(rest(visitor).startswith(b"HTTP/1.1 200 "))

    def test_a_rate_counts_before_the_handshake(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        ended = Ended.start(self, listener.getsockname()[1], "[proxy.limits]\nhost_rate = 0.1\n")
        done = 0
        for _ in range(20):
            with contextlib.suppress(SSL.Error):
                ended.dial("web.static.test")
                done += 1
        self.assertLess(done, 10)
        until("the log says why", lambda: "host_limit" in ended.reasons())


class RotationTests(SynchronousTestCase):
    skip = missing(wrk="wrk", nginx="nginx")

    def test_certificates_change_under_load(self) -> None:
        nginx = Nginx.start(self, NAMES)
        pattern(nginx.files / "1k", 1024)
        ended = Ended.start(self, nginx.plain)
        script = ended.certs / "wrk.lua"
        script.write_text('wrk.resolve = function(host, port) wrk.addrs = wrk.lookup("127.0.0.1", port) end')
        results: list[str] = []

        def load(*more: str) -> None:
            words = [str(found("wrk")), "-c16", "-t1", "-d8s", "-s", str(script), *more]
            url = f"https://web.static.test:{ended.server.https}/1k"
            done = subprocess.run([*words, url], capture_output=True, text=True)
            results.append(done.stdout + done.stderr)

        threads = [threading.Thread(target=load, args=args) for args in ((), ("-H", "Connection: close"))]
        for thread in threads:
            thread.start()
        for hangup in (True, False, True):  # told to look, or looking by itself
            pin = put(ended.certs, "all", NAMES)
            if hangup:
                os.kill(ended.server.pid, signal.SIGHUP)
            until("the new certificate is shown", partial(ended.shows, "web.static.test", pin), pause=0.1)
        for thread in threads:
            thread.join()
        for text in results:
            self.assertNotIn("Socket errors", text)
            self.assertNotIn("Non-2xx", text)
            self.assertIn("requests in", text)
