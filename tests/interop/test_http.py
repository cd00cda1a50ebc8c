"""What HTTP/1.1 does on one connection, between real clients and nginx, with an agent in between and without."""

import hashlib
import json
import re
import socket
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.daemons import found, missing
from tests.interop.recorder import Recorder
from tests.interop.stage import CURL, MIB, WAYS, pair, sha256, stage

READ_S = 20.0


def heads(data: bytes) -> list[bytes]:
    """Give the status codes of the answers in a stream whose bodies hold no status line."""
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", data)


class HttpTests(SynchronousTestCase):
    skip = missing(nginx="nginx", curl="curl")

    def curl(self, way: str, path: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CURL, *words, *stage().url("web", way, path)], check=True, capture_output=True, text=True
        )

    def exchange(self, way: str, *pieces: bytes, half: bool = True) -> bytes:
        """Send pieces one by one on one connection, end our half if wanted, and give all that comes back."""
        with socket.create_connection(("127.0.0.1", stage().server.http), READ_S) as visitor:
            visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                visitor.sendall(piece.replace(b"HOST", f"web.{way}.test".encode()))
            if half:
                visitor.shutdown(socket.SHUT_WR)
            answer = b""
            while data := visitor.recv(65536):
                answer += data
        return answer

    def test_head(self) -> None:
        for way in WAYS:
            answer = self.curl(way, "/100m", "--head").stdout
            self.assertIn("200 OK", answer)
            self.assertIn(f"Content-Length: {100 * MIB}", answer)

    def test_not_modified_and_ranges(self) -> None:
        for way in WAYS:
            code = self.curl(way, "/1m", "-z", str(stage().nginx.files / "1m"), "-w", "%{http_code}").stdout
            self.assertEqual(code, "304")
            got, size = stage().fetched("-r", "1000-66535", *stage().url("web", way, "/1m"))
            whole = (stage().nginx.files / "1m").read_bytes()
            self.assertEqual((got, size), (hashlib.sha256(whole[1000:66536]).hexdigest(), 65536))

    def test_expect_100_continue(self) -> None:
        for way in WAYS:
            source = str(stage().nginx.files / "1m")
            answer = self.curl(
                way, f"/up/expect-{way}", "-v", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", source
            )
            self.assertIn("< HTTP/1.1 100 Continue", answer.stderr)
            self.assertEqual(sha256(stage().nginx.uploads / f"expect-{way}"), stage().sums["1m"])

    def test_upload_in_chunks(self) -> None:
        for way in WAYS:
            source = (stage().nginx.files / "1m").read_bytes()
            subprocess.run(
                [*CURL, "-H", "Transfer-Encoding: chunked", "-T", "-", *stage().url("web", way, f"/up/chunked-{way}")],
                input=source,
                check=True,
                capture_output=True,
            )
            self.assertEqual(sha256(stage().nginx.uploads / f"chunked-{way}"), stage().sums["1m"])

    def test_chunks_with_trailers(self) -> None:
        for way in WAYS:
            head = (
                f"PUT /up/trailers-{way} HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            )
            after = b"GET /1 HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"
            answer = self.exchange(way, head.encode(), b"5;name=value\r\nhello\r\n", b"0\r\nX-Sum: 5\r\n\r\n" + after)
            self.assertEqual(heads(answer), [b"201", b"200"])
            self.assertEqual((stage().nginx.uploads / f"trailers-{way}").read_bytes(), b"hello")

    def test_pipelining(self) -> None:
        for way in WAYS:
            asked = ["1", "1k", "64k-1", "64k", "64k+1"] * 20
            requests = b"".join(f"GET /{name} HTTP/1.1\r\nHost: HOST\r\n\r\n".encode() for name in asked)
            # nginx leaves a visitor in the middle of an answer who has ended his half, so the last request ends it all.
            requests = requests[:-2] + b"Connection: close\r\n\r\n"
            answer = self.exchange(way, requests, half=False)
            for name in asked:
                head, _, answer = answer.partition(b"\r\n\r\n")
                size = int(re.findall(rb"Content-Length: (\d+)", head)[0])
                body, answer = answer[:size], answer[size:]
                self.assertEqual(hashlib.sha256(body).hexdigest(), stage().sums[name])
            self.assertEqual(answer, b"")

    def test_curl_keeps_one_connection_for_many_requests(self) -> None:
        for way in WAYS:
            words = []
            for name in ("1", "64k", "1m", "64k+1"):
                *options, url = stage().url("web", way, f"/{name}")
                words += [*options, "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\\n", url]
            said = subprocess.run([*CURL, *words], check=True, capture_output=True, text=True).stdout
            self.assertEqual(said.split("\n")[:4], ["200 1", "200 0", "200 0", "200 0"])

    def test_every_byte_of_a_strange_but_legal_request_arrives(self) -> None:
        with Recorder(lambda seen: b"HTTP/1.1 204 No\r\n\r\n" if seen.endswith(b"END") else b"") as backend:
            server, _ = pair(self, plain=backend.port, text='mode = "raw"\n')
            for way in WAYS:
                request = (
                    b"\r\nPOST http://WEB.%b.test/?q=%%00 HTTP/1.1\r\nhost:web.%b.test:80\r\nX-Odd:\t \x80\xff\r\n"
                    b"Content-Length: 1000\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                    b"GET / HTTP/1.1\r\nHost: x\r\n\r\nEND"
                ) % (way.encode(), way.encode())
                with socket.create_connection(("127.0.0.1", server.http), READ_S) as visitor:
                    visitor.sendall(request)
                    self.assertEqual(visitor.recv(100), b"HTTP/1.1 204 No\r\n\r\n")
                self.assertEqual(bytes(backend.connections[-1]), request)


class LoadTests(SynchronousTestCase):
    """Many requests at the same time: not one may fail."""

    skip = missing(nginx="nginx", wrk="wrk", ab="apache2-utils")

    def test_wrk_with_keep_alive_and_without(self) -> None:
        here = stage()
        for way in WAYS:
            for more in ((), ("-H", "Connection: close")):
                wrk = [str(found("wrk")), "-t1", "-c32", "-d2s", "-H", f"Host: web.{way}.test", *more]
                said = subprocess.run(
                    [*wrk, f"http://127.0.0.1:{here.server.http}/1k"], check=True, capture_output=True, text=True
                ).stdout
                requests = re.findall(r"(\d+) requests in", said)
                self.assertGreater(int(requests[0]), 100, said)
                self.assertNotIn("Non-2xx", said)
                self.assertNotIn("Socket errors", said)

    def test_ab_counts_every_request(self) -> None:
        here = stage()
        for way in WAYS:
            for keep in ((), ("-k",)):
                ab = [str(found("ab")), "-q", "-n", "1000", "-c", "20", "-H", f"Host: web.{way}.test", *keep]
                said = subprocess.run(
                    [*ab, f"http://127.0.0.1:{here.server.http}/64k+1"], check=True, capture_output=True, text=True
                ).stdout
                self.assertIn("Complete requests:      1000", said)
                self.assertIn("Failed requests:        0", said)

    def tearDown(self) -> None:
        here = stage()
        self.assertEqual(json.dumps([*here.server.defects(), *here.agent.defects()]), "[]")
        self.assertTrue(Path(f"/proc/{here.server.pid}").exists())
