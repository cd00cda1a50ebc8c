"""Mode `proxy` between real clients and nginx, with an agent in between and without, and behind TLS that ends here."""

import json
import re
import socket
import subprocess
from functools import cache

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.password import hashed
from tests.interop.backend import serve
from tests.interop.daemons import RUN, found, missing, until
from tests.interop.stage import CURL, MIB, SIZES, WAYS, Stage, build, pair
from tests.interop.test_terminate import Ended

READ_S = 20.0


@cache
def stage() -> Stage:
    """nginx behind a server whose hosts are all in mode `proxy`, but the one for HTTP/2."""
    return build(RUN, 'mode = "proxy"\n')


def echo(connection: socket.socket) -> None:
    """Answer each request with its own head."""
    data = b""
    while got := connection.recv(65536):
        data += got
        while b"\r\n\r\n" in data:
            head, _, data = data.partition(b"\r\n\r\n")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b\n" % (len(head) + 1, head))


class ProxyModeTests(SynchronousTestCase):
    skip = missing(nginx="nginx", curl="curl", wrk="wrk", ab="apache2-utils")

    def tearDown(self) -> None:
        here = stage()
        self.assertEqual(json.dumps([*here.server.defects(), *here.agent.defects()]), "[]")

    def test_downloads(self) -> None:
        here = stage()
        for way in WAYS:
            for name, size in SIZES.items():
                self.assertEqual(here.fetched(*here.url("web", way, f"/{name}")), (here.sums[name], size), name)

    def test_uploads(self) -> None:
        here = stage()
        for way in WAYS:
            for number, more in enumerate(
                (
                    (),
                    ("-H", "Expect: 100-continue"),
                    ("-H", "Transfer-Encoding: chunked"),
                    ("-H", "Transfer-Encoding: chunked", "-H", "Expect:"),
                    ("--http1.0",),
                )
            ):
                words = (*more, "-T", str(here.nginx.files / "1m"), *here.url("web", way, "/up/"))
                self.assertEqual(here.put(f"p{number}-{way}", *words), (here.sums["1m"], MIB), more)

    def test_head_ranges_and_not_modified(self) -> None:
        here = stage()
        for way in WAYS:
            place = here.url("web", way, "/1m")
            said = subprocess.run([*CURL, "--head", *place, *place], check=True, capture_output=True, text=True).stdout
            self.assertEqual(said.count(f"Content-Length: {MIB}"), 2)
            self.assertEqual(here.fetched("-r", "1000-66535", *place)[1], 65536)
            words = ("-z", str(here.nginx.files / "1m"), "-w", "%{http_code}")
            said = subprocess.run([*CURL, *words, *place], check=True, capture_output=True, text=True).stdout
            self.assertEqual(said, "304")

    def test_one_connection_for_both_hosts(self) -> None:
        """curl would not do this, but a browser's proxy would: each request on one connection names its own host."""
        here = stage()
        with socket.create_connection(("127.0.0.1", here.server.http), READ_S) as visitor:
            for number in range(20):
                host = f"web.{WAYS[number % 2]}.test"
                visitor.sendall(f"GET /1k HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                said = b""
                while len(said) < 1024 or len(said) < said.index(b"\r\n\r\n") + 4 + 1024:
                    got = visitor.recv(65536)
                    self.assertNotEqual(got, b"", number)
                    said += got
                self.assertTrue(said.startswith(b"HTTP/1.1 200 OK\r\n"))
                self.assertEqual(said[-1024:], (here.nginx.files / "1k").read_bytes())

    def test_wrk_and_ab(self) -> None:
        here = stage()
        for way in WAYS:
            url = f"http://127.0.0.1:{here.server.http}/1k"
            for more in ((), ("-H", "Connection: close")):
                words = [str(found("wrk")), "-t1", "-c32", "-d2s", "-H", f"Host: web.{way}.test", *more, url]
                said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                self.assertGreater(int(re.findall(r"(\d+) requests in", said)[0]), 100, said)
                self.assertNotIn("Non-2xx", said)
                self.assertNotIn("Socket errors", said)
            words = [str(found("ab")), "-q", "-n", "500", "-c", "10", "-k", "-H", f"Host: web.{way}.test", url]
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            self.assertIn("Complete requests:      500", said)
            self.assertIn("Failed requests:        0", said)

    def test_behind_tls_that_ends_here(self) -> None:
        ended = Ended.start(self, serve(self, echo), 'mode = "proxy"\n')
        for host in ("web.static.test", "web.agent.test"):
            words = [*CURL, "-H", "X-Forwarded-Proto: http", *ended.url(host, "/x"), *ended.url(host, "/y")]
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            self.assertEqual(
                re.findall(r"X-Forwarded-(\w+): (\S+)", said),
                [
                    ("Proto", "https"),
                    ("Host", f"{host}:{ended.server.https}"),
                ]
                * 2,
            )
        self.assertEqual(json.dumps([*ended.server.defects(), *ended.agent.defects()]), "[]")

    def test_passwords_with_curl(self) -> None:
        lines = json.dumps([f"alice:{hashed('open sesame')}"])
        server, _ = pair(self, plain=serve(self, echo), text='mode = "proxy"\n')
        text = (server.home / "test.toml").read_text()
        server.reload(text.replace('host = "web.static.test"', f'host = "web.static.test"\nusers = {lines}'))

        def code(*words: str) -> str:
            place = ("--resolve", f"web.static.test:{server.http}:127.0.0.1", f"http://web.static.test:{server.http}/")
            curl = [*CURL[:3], "--noproxy", "*", "--max-time", "20", *words, "-w", "\n%{http_code}", *place]
            return subprocess.run(curl, capture_output=True, text=True).stdout.rpartition("\n")[2]

        until("the reload", lambda: code() == "401")
        self.assertEqual(code("-u", "alice:open sesame"), "200")
        self.assertEqual(code("-u", "alice:wrong"), "401")
        self.assertEqual(code("-u", "bob:open sesame"), "401")
