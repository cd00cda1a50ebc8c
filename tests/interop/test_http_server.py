"""Our HTTP server before clients that others wrote: curl, wrk, Python's http.client, and nginx in front of it."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase

from layer8.net.http import Incoming, Server
from tests.interop.daemons import found, free_port, missing
from tests.net.test_http_client import clock, echo

NGINX = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log crit;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; client_max_body_size 0;
    server {{ listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{back}; }}
        location /new {{ proxy_pass http://127.0.0.1:{back}; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering off; proxy_buffering off; }} }}
}}
"""


def handler(exchange: Incoming) -> None:
    if exchange.path.endswith("/early"):
        exchange.answer(413)
    elif exchange.path.endswith("/none"):
        exchange.answer(204)
    elif exchange.path.endswith("/chunks"):
        exchange.begin(200, [("content-type", "text/plain")])
        for number in range(3):
            clock().callLater(0.01 * number, exchange.write, b"%d\n" % number)
        clock().callLater(0.05, exchange.finish)
    elif exchange.path.endswith("/cut"):
        exchange.begin(200, [("content-type", "text/plain")])
        exchange.write(b"some")
        clock().callLater(0.05, exchange.abort)
    else:
        echo(exchange)


class Case(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.server = Server(clock(), handler)
        port = clock().listenTCP(0, self.server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(self.gone)
        self.port = port.getHost().port
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)  # nginx's worker may run as another user

    async def gone(self) -> None:
        self.server.abort()
        await self.server.stop()


class Ended(ProcessProtocol):
    """Tells the end of a program."""

    def __init__(self, told: Deferred[None]) -> None:
        self.told = told

    def processEnded(self, reason: Failure) -> None:
        self.told.callback(None)


class CurlTests(Case):
    skip = missing(curl="curl")

    async def curl(self, path: str, *words: str, origin: str = "") -> tuple[str, bytes, int]:
        """Give what was asked to be written, the body, and the exit status."""
        body = self.folder / "body"
        body.write_bytes(b"")
        argv = ["-sS", "-m", "20", "-o", str(body), "-w", "%{http_code} %{num_connects}", *words]
        argv.append(f"{origin or f'http://127.0.0.1:{self.port}'}{path}")
        out, _, code = await getProcessOutputAndValue("curl", argv)
        return out.decode(), body.read_bytes(), code

    async def test_bodies(self) -> None:
        data = bytes(range(256)) * 8192
        (self.folder / "up").write_bytes(data)
        up = str(self.folder / "up")
        for words in (
            ("--data-binary", f"@{up}"),
            ("--data-binary", f"@{up}", "-H", "Expect: 100-continue"),
            ("-T", up, "-X", "POST", "-H", "Transfer-Encoding: chunked"),
            ("-0", "--data-binary", f"@{up}"),
        ):
            said, body, code = await self.curl("/", *words)
            self.assertEqual((said.split()[0], code), ("200", 0), words)
            self.assertEqual(hashlib.sha256(body).digest(), hashlib.sha256(data).digest(), words)

    async def test_answers(self) -> None:
        for path, words, wanted in (
            ("/chunks", (), ("200", b"0\n1\n2\n", 0)),
            ("/chunks", ("-0",), ("200", b"0\n1\n2\n", 0)),
            ("/none", (), ("204", b"", 0)),
            ("/chunks", ("-I",), ("200", b"", 0)),
        ):
            said, body, code = await self.curl(path, *words)
            content = body if "-I" not in words else b""
            self.assertEqual((said.split()[0], content, code), wanted, (path, words))
        await deferLater(clock(), 0.1)

    async def test_a_cut_answer_is_none(self) -> None:
        """With chunks and, for old clients, without: curl knows that it is not whole."""
        for words in ((), ("-0",)):
            _, body, code = await self.curl("/cut", *words)
            self.assertEqual(body, b"some")
            self.assertIn(code, (18, 56))

    async def test_an_early_answer(self) -> None:
        (self.folder / "up").write_bytes(bytes(8 << 20))
        said, _, code = await self.curl("/early", "--data-binary", f"@{self.folder / 'up'}", "-H", "Expect:")
        self.assertEqual((said.split()[0], code), ("413", 0))

    async def test_one_connection(self) -> None:
        url = f"http://127.0.0.1:{self.port}/none"
        said, _, _ = await self.curl("/none", url, url)
        self.assertEqual(said, "204 1204 0204 0")

    async def test_behind_nginx(self) -> None:
        if (reason := missing(nginx="nginx")) is not None:
            raise SkipTest(reason)
        port = free_port()
        config = self.folder / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder, port=port, back=self.port))
        ended: Deferred[None] = Deferred()
        argv = ["nginx", "-p", str(self.folder), "-c", str(config)]
        nginx: Any = clock().spawnProcess(Ended(ended), found("nginx"), argv, env=None)
        self.addCleanup(lambda: ended)
        self.addCleanup(nginx.signalProcess, "TERM")
        origin = f"http://127.0.0.1:{port}"
        for _ in range(200):
            if (await self.curl("/none", origin=origin))[2] == 0:
                break
            await deferLater(clock(), 0.05)
        data = bytes(range(256)) * 2048
        (self.folder / "up").write_bytes(data)
        for prefix in ("", "/new"):
            for words in ((), ("-H", "Transfer-Encoding: chunked")):
                said, body, code = await self.curl(
                    f"{prefix}/", "-T", str(self.folder / "up"), "-X", "POST", *words, origin=origin
                )
                self.assertEqual((said.split()[0], body == data, code), ("200", True, 0), (prefix, words))
            said, body, code = await self.curl(f"{prefix}/chunks", origin=origin)
            self.assertEqual((said.split()[0], body, code), ("200", b"0\n1\n2\n", 0))
            self.assertNotEqual((await self.curl(f"{prefix}/cut", origin=origin))[2], 0)


class StandardClientTests(Case):
    async def test_many_on_one_connection(self) -> None:
        def work() -> list[tuple[int, bytes]]:
            client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            heard = []
            for number in range(20):
                client.request("POST", "/", body=iter([b"a", b"%d" % number]), encode_chunked=True)
                answer = client.getresponse()
                heard.append((answer.status, answer.read()))
            client.close()
            return heard

        heard = await deferToThread(work)
        self.assertEqual(heard, [(200, b"a%d" % number) for number in range(20)])
        self.assertGreater(self.server.tally.heard, 0)
