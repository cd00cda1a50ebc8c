"""TLS that only passes through: openssl, curl and ncat at one end, nginx and ncat at the other."""

import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.daemons import Program, answers, folder, found, free_port, missing
from tests.interop.recorder import Recorder
from tests.interop.stage import MIB, WAYS, pair, pattern, stage

TIME_S = 20
VERSIONS = ("-tls1_2", "-tls1_3")


class PassedThroughTests(SynchronousTestCase):
    skip = missing(nginx="nginx", openssl="openssl")

    def client(self, way: str, *words: str, said: bytes = b"") -> str:
        """Run `openssl s_client` to the TLS host of a way, and give all that it prints."""
        request = said or f"GET /1k HTTP/1.1\r\nHost: tls.{way}.test\r\nConnection: close\r\n\r\n".encode()
        done = subprocess.run(
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{stage().server.https}", "-ign_eof"),
                *("-servername", f"tls.{way}.test", "-CAfile", str(stage().nginx.certificate)),
                *("-verify_return_error", "-verify_hostname", f"tls.{way}.test", *words),
            ],
            input=request,
            capture_output=True,
            timeout=TIME_S,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode(errors="replace")[-1000:])
        return done.stdout.decode("latin-1")

    def test_the_backends_certificate_is_seen_from_outside(self) -> None:
        for way in WAYS:
            for version in VERSIONS:
                said = self.client(way, version)
                self.assertIn("Verify return code: 0 (ok)", said)
                self.assertIn("HTTP/1.1 200 OK", said)

    def test_sessions_are_resumed(self) -> None:
        for way in WAYS:
            for version in VERSIONS:
                kept = str(Path(self.mktemp()).absolute())
                self.assertIn("New, TLS", self.client(way, version, "-sess_out", kept))
                self.assertIn("Reused, TLS", self.client(way, version, "-sess_in", kept))

    def test_early_data_arrives_once(self) -> None:
        for way in WAYS:
            kept, early = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
            self.client(way, "-tls1_3", "-sess_out", str(kept))
            early.write_text(f"GET /1k HTTP/1.1\r\nHost: tls.{way}.test\r\nConnection: close\r\n\r\n")
            said = self.client(way, "-tls1_3", "-sess_in", str(kept), "-early_data", str(early), said=b"\n")
            self.assertIn("Early data was accepted", said)
            self.assertEqual(said.count("HTTP/1.1 200 OK"), 1)

    def test_what_the_visitor_offers_reaches_the_backend(self) -> None:
        for way in WAYS:
            self.assertIn("ALPN protocol: http/1.1", self.client(way, "-tls1_3", "-alpn", "acme-tls/1,http/1.1"))
            self.assertIn("Cipher is ECDHE", self.client(way, "-tls1_2", "-cipher", "ECDHE"))
            padded = ",".join(f"protocol-{number:03}-{'x' * 200}" for number in range(30))
            self.assertIn("200 OK", self.client(way, "-alpn", f"{padded},http/1.1"))  # a hello of more than 6 KB

    def test_python_checks_name_and_chain(self) -> None:
        context = ssl.create_default_context(cafile=str(stage().nginx.certificate))
        for way in WAYS:
            with (
                socket.create_connection(("127.0.0.1", stage().server.https), TIME_S) as raw,
                context.wrap_socket(raw, server_hostname=f"tls.{way}.test") as visitor,
            ):
                visitor.sendall(f"GET /1 HTTP/1.0\r\nHost: tls.{way}.test\r\n\r\n".encode())
                self.assertTrue(visitor.recv(100).startswith(b"HTTP/1.1 200 OK"))

    def test_no_warning_and_no_defect(self) -> None:
        self.assertEqual(json.dumps([*stage().server.defects(), *stage().agent.defects()]), "[]")


class OtherProtocolTests(SynchronousTestCase):
    """Whatever says a name in a ClientHello is carried, and nobody looks inside."""

    skip = missing(ncat="ncat", openssl="openssl")

    def ncat(self, *words: str, said: bytes = b"") -> bytes:
        done = subprocess.run(
            [str(found("ncat")), "--ssl", *words], input=said, capture_output=True, timeout=TIME_S, check=False
        )
        return done.stdout

    def test_ncat_talks_to_ncat(self) -> None:
        where = folder(self)
        port = free_port()
        backend = ["ncat", "--ssl", "--keep-open", "--listen", "--exec", "/bin/cat", "127.0.0.1", str(port)]
        Program.start(self, "ncat", backend, where, ready=lambda _: answers(port))
        server, _ = pair(self, tls=port)
        words = os.urandom(20_000).hex().encode() + b"\n"  # ncat itself loses an echo of more than it buffers
        for way in WAYS:
            name = ("--ssl-servername", f"tls.{way}.test")
            self.assertEqual(
                self.ncat(*name, "-i", "1", "--no-shutdown", "127.0.0.1", str(server.https), said=words), words
            )

    def test_ncat_sends_a_file(self) -> None:
        # Only this way round: an ncat that sends leaves with the server's tickets unread, and TCP throws its tail away.
        where = folder(self)
        port = free_port()
        digest = pattern(where / "file", 20 * MIB + 1)
        backend = ["ncat", "--ssl", "--keep-open", "--listen", "--send-only", "--sh-exec", f"cat {where}/file"]
        Program.start(self, "ncat", [*backend, "127.0.0.1", str(port)], where, ready=lambda _: answers(port))
        server, _ = pair(self, tls=port)
        for way in WAYS:
            got = self.ncat("--ssl-servername", f"tls.{way}.test", "--recv-only", "127.0.0.1", str(server.https))
            self.assertEqual((hashlib.sha256(got).hexdigest(), len(got)), (digest, 20 * MIB + 1))

    def test_a_server_that_speaks_first_inside_tls(self) -> None:
        where = folder(self)
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=mail.test"),
                *("-keyout", "key.pem", "-out", "cert.pem"),
            ],
            cwd=where,
            check=True,
            capture_output=True,
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(where / "cert.pem", where / "key.pem")

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    raw, _ = listener.accept()
                    with context.wrap_socket(raw, server_side=True) as mail:
                        mail.sendall(b"220 mail.test ready\r\n")
                        self.assertEqual(mail.recv(100), b"QUIT\r\n")
                        mail.sendall(b"221 bye\r\n")

        threading.Thread(target=greet, daemon=True).start()
        server, _ = pair(self, tls=listener.getsockname()[1])
        for way in WAYS:
            visitor = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            visitor.check_hostname, visitor.verify_mode = False, ssl.CERT_NONE
            with (
                socket.create_connection(("127.0.0.1", server.https), TIME_S) as raw,
                visitor.wrap_socket(raw, server_hostname=f"tls.{way}.test") as mail,
            ):
                self.assertEqual(mail.recv(100), b"220 mail.test ready\r\n")
                mail.sendall(b"QUIT\r\n")
                self.assertEqual(mail.recv(100), b"221 bye\r\n")

    def test_the_hello_arrives_as_it_was_sent(self) -> None:
        with Recorder(lambda seen: b"seen" if len(seen) > 5 else b"") as backend:
            server, _ = pair(self, tls=backend.port)
            for way in WAYS:
                hello = self.hello_of(f"tls.{way}.test")
                with socket.create_connection(("127.0.0.1", server.https), TIME_S) as visitor:
                    visitor.sendall(hello)
                    self.assertEqual(visitor.recv(100), b"seen")
                self.assertEqual(bytes(backend.connections[-1]), hello)

    def hello_of(self, name: str) -> bytes:
        """Give a ClientHello that OpenSSL wrote."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
        with contextlib.suppress(ssl.SSLWantReadError):
            session.do_handshake()
        hello = outgoing.read()
        self.assertTrue(re.search(name.encode(), hello))
        return hello
