"""Backends that know nothing of the tunnel, behind the sidecar; and a Twisted one with the gateway in it."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Layer8Error
from layer8.core.session import Tell
from layer8.crypto.keys import NodeKey
from layer8.tunnel.client_session import Piece
from layer8.tunnel.keys import KeySet, pin_text, read_pin
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH
from tests.interop.daemons import (
    ROOT,
    RUN,
    TWISTD,
    Daemon,
    Program,
    Scope,
    answers,
    folder,
    free_port,
    missing,
    resident,
    until,
)
from tests.interop.test_tunnel_python import Page as Socket
from tests.tunnel.sealed import Page, sealed
from tests.tunnel.test_frameworks import Suite
from tests.tunnel.workers import EXAMPLES

_started: dict[str, Any] = {}


@define(eq=False)
class Sidecar(Daemon):
    """`twistd layer8-gateway` before a backend on a port of loopback."""

    port: int = 0

    @classmethod
    def start(cls, scope: Scope, backend: str, text: str = "", kind: str = "tcp") -> Sidecar:
        """Start it; `text` is more of [gateway]."""
        made = cls("gateway", folder(scope), scope, ())
        made.port = free_port()
        made.write(backend, text, kind)
        made.again()
        return made

    def write(self, backend: str, text: str = "", kind: str = "tcp") -> None:
        """Write the configuration."""
        (self.home / "test.toml").write_text(
            f'[control]\nlisten = []\n[log]\nformat = "json"\nblur = 0\n[gateway]\ngateway = "shop"\n'
            f'authorities = ["shop.example"]\nbackend = "{backend}"\n'
            f'listen = ["{kind}:{self.port}:interface=127.0.0.1"]\n{text}\n'
        )

    def again(self) -> None:
        """Start (again)."""
        self.begin(lambda: self.up() and answers(self.port))

    @property
    def pin(self) -> bytes:
        """Give its identity key."""
        return NodeKey.load(self.home / "gateway" / "identity.pem").node_id

    def page(self) -> Page:
        """Give a page that has its keys."""
        return Page(self.port, self.pin)


def node(scope: Scope) -> int:
    """Start the example with node:http; give its port."""
    port = free_port()
    words = ["node", str(EXAMPLES / "node" / "app.mjs"), str(port)]
    Program.start(scope, "node", words, folder(scope), {}, lambda _: answers(port))
    return port


@define(eq=False)
class Own:
    """The Twisted example, which has its gateway in itself."""

    port: int = field(factory=free_port)
    home: Path = field(factory=lambda: folder(RUN))

    def start(self) -> Own:
        """Start it."""
        told = {"L8_STATE": str(self.home / "state"), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, str(EXAMPLES / "twisted" / "app.py"), str(self.port)]
        Program.start(RUN, "twisted", words, self.home, told, lambda _: answers(self.port))
        return self

    def page(self) -> Page:
        """Give a page that has its keys."""
        return Page(self.port, NodeKey.load(self.home / "state" / "identity.pem").node_id)


def nginx(case: Scope, gateway: int) -> tuple[int, int, Path]:
    """Start the example configuration with other ports and folders; give that of TLS, of files, and the folder."""
    where = folder(case)
    tls, files = free_port(), free_port()
    text = (EXAMPLES / "nginx" / "nginx.conf").read_text()
    for old, new in (
        ("listen 443 ssl http2", f"listen 127.0.0.1:{tls} ssl http2"),
        ("127.0.0.1:8000", f"127.0.0.1:{files}"),
        ("127.0.0.1:5002", f"127.0.0.1:{gateway}"),
        ("/etc/ssl/shop.pem", f"{where}/cert.pem"),
        ("/etc/ssl/shop.key", f"{where}/key.pem"),
        ("/srv/shop", f"{where}/files"),
        ("worker_processes auto", "worker_processes 1; pid nginx.pid; error_log error.log; daemon off"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    text = text.replace("access_log off;", "access_log off; client_body_temp_path b; proxy_temp_path p;", 1)
    (where / "nginx.conf").write_text(text)
    (where / "files").mkdir()
    where.chmod(0o755)  # nginx's worker is another user
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run += ["-subj", "/CN=shop.example", "-keyout", f"{where}/key.pem", "-out", f"{where}/cert.pem"]
    subprocess.run(run, check=True, capture_output=True)
    words = ["nginx", "-p", str(where), "-c", str(where / "nginx.conf"), "-e", str(where / "error.log")]
    Program.start(case, "nginx", words, where, {}, lambda _: answers(tls) and answers(files))
    return tls, files, where


class NginxTests(SynchronousTestCase):
    """Files of nginx behind the sidecar, and nginx with TLS before it: the example as it stands."""

    skip = missing(nginx="nginx", openssl="openssl", curl="curl")

    def test_files(self) -> None:
        gateway = free_port()
        tls, files, where = nginx(self, gateway)
        data = os.urandom(3_000_000)
        (where / "files" / "a.bin").write_bytes(data)
        (where / "files" / "a.css").write_text("p { color: red }")
        sidecar = Sidecar("gateway", folder(self), self, ())
        sidecar.port = gateway
        sidecar.write(f"tcp:127.0.0.1:{files}", 'require = ["/"]')
        sidecar.again()
        page = sidecar.page()
        told = page.ask("GET", "/a.bin")
        self.assertEqual((told.status, told.body == data), (200, True))
        tag = told.field(b"etag")[0]
        self.assertEqual(page.ask("GET", "/a.bin", fields=((b"if-none-match", tag),)).status, 304)
        part = page.ask("GET", "/a.bin", fields=((b"range", b"bytes=1000-1999"),))
        self.assertEqual((part.status, part.body), (206, data[1000:2000]))
        self.assertEqual(page.ask("GET", "/a.css").field(b"content-type"), [b"text/css"])
        head = page.ask("HEAD", "/a.bin")
        self.assertEqual((head.body, head.field(b"content-length")), (b"", [b"3000000"]))
        self.assertEqual(page.ask("GET", "/none").status, 404)
        self.assertEqual(page.plain("GET", "/a.bin")[0], 403)
        # through nginx's TLS and HTTP/2, as a relay comes
        exchange, out = sealed(page.keys, "GET", "/a.bin")
        (where / "sealed").write_bytes(b"".join(out))
        run = ["curl", "-s", "--http2", "--cacert", f"{where}/cert.pem", "--resolve", f"shop.example:{tls}:127.0.0.1"]
        run += ["-H", "content-type: message/ohttp-chunked-req", "--data-binary", f"@{where}/sealed"]
        run += ["-o", f"{where}/answer", "-w", "%{http_code} %{http_version} %{content_type}"]
        run += [f"https://shop.example:{tls}{GATEWAY_PATH}"]
        said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        self.assertEqual(said, "200 2 message/ohttp-chunked-res")
        exchange.answered(200, "message/ohttp-chunked-res", 0.0)
        exchange.received((where / "answer").read_bytes(), 0.0)
        exchange.ended(0.0)
        told_all = [effect.what for effect in exchange.effects() if isinstance(effect, Tell)]
        self.assertTrue(b"".join(one.data for one in told_all if isinstance(one, Piece)) == data)


class DaemonTests(SynchronousTestCase):
    """`twistd layer8-gateway` as a process."""

    skip = missing(node="nodejs")

    def test_nothing_is_lost_on_restart(self) -> None:
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{node(self)}")
        page = sidecar.page()
        exchange, out = sealed(page.keys, "GET", "/notes/7")
        data = b"".join(out)
        self.assertEqual(page.hear(exchange, page.post(data)).status, 200)
        later, other = sealed(page.keys, "GET", "/notes/7")  # sealed before, sent after
        for kill in (False, True):
            if kill:
                sidecar.program.kill()
            else:
                sidecar.stop()
            sidecar.again()
            again = page.post(data)
            self.assertEqual((again.status, len(again.read())), (200, 33 + 512))  # 425 under seal
        self.assertEqual(page.hear(later, page.post(b"".join(other))).status, 200)
        self.assertEqual(sidecar.ask("gateway.stats")["outcomes"]["repeat"], 1)
        self.assertEqual(sidecar.defects(), [])

    def test_rows(self) -> None:
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{node(self)}")
        page = sidecar.page()
        page.ask("GET", "/notes/7")
        told = sidecar.ask("gateway.keys")
        self.assertEqual((told["gateway"], len(told["keys"]), told["keys"][0]["offered"]), ("shop", 1, True))
        self.assertEqual(told["pin"], pin_text(sidecar.pin))
        with self.assertRaises(Layer8Error):
            sidecar.ask("gateway.rotate")  # this hour has its key
        stats = sidecar.ask("gateway.stats")
        self.assertEqual((stats["outcomes"]["answered"], stats["open"], stats["sockets"]), (1, 0, 0))
        self.assertGreater(min(stats[f"{leg}_{way}"] for leg in ("relay", "backend") for way in ("in", "out")), 100)

    def test_a_backend_that_is_away(self) -> None:
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{free_port()}")
        page = sidecar.page()
        self.assertEqual(page.ask("GET", "/notes/7").status, 502)
        self.assertEqual(page.plain("GET", "/notes/7")[0], 502)
        self.assertEqual(sidecar.defects(), [])

    def test_bearer(self) -> None:
        where = folder(self)
        (where / "bearer").write_text("0123456789abcdef0123\n")
        (where / "bearer").chmod(0o600)
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{node(self)}", f'bearer_file = "{where}/bearer"')
        page = sidecar.page()
        _, out = sealed(page.keys, "GET", "/notes/7")
        self.assertEqual(page.post(b"".join(out)).status, 401)
        link = page.connect()
        exchange, out = sealed(page.keys, "GET", "/notes/7")
        fields = {"Content-Type": "message/ohttp-chunked-req", "Authorization": "Bearer 0123456789abcdef0123"}
        link.request("POST", GATEWAY_PATH, b"".join(out), fields)
        self.assertEqual(page.hear(exchange, link.getresponse()).status, 200)
        link.close()

    def test_a_drain_lets_requests_end(self) -> None:
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{node(self)}")
        page = sidecar.page()
        exchange, out = sealed(page.keys, "GET", "/events?n=5&gap=0.2")
        answer = page.post(b"".join(out))
        sidecar.program.process.terminate()
        told = page.hear(exchange, answer)
        self.assertEqual(told.body.count(b"data: tick"), 5)
        sidecar.program.process.wait(10)
        self.assertFalse(answers(sidecar.port))
        self.assertEqual(sidecar.defects(), [])

    def test_a_large_body_takes_no_memory(self) -> None:
        """256 MiB each way, eight of them padding: at no time has the process grown by 16 MiB."""
        port = free_port()
        Program.start(self, "big", [sys.executable, "-c", BIG, str(port)], folder(self), {}, lambda _: answers(port))
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{port}")
        page = sidecar.page()
        size, piece = (256 << 20) + 1, bytes(1 << 18)
        page.ask("POST", "/", bytes(1_000_000))
        page.ask("GET", "/1000000")
        forget_most(sidecar.pid)
        before = resident(sidecar.pid)
        told = page.ask("POST", "/", (piece[: size - at] for at in range(0, size, len(piece))), length=size)
        self.assertEqual(told.body, b"%d" % size)
        self.assertEqual(len(page.ask("GET", f"/{size}").body), size)
        self.assertLess(resident(sidecar.pid, "VmHWM") - before, 16 << 20)

    def test_sets_signed_ahead(self) -> None:
        """The identity stays where the sets are signed; the gateway serves them and opens."""
        home, other = folder(self), folder(self)
        run = [*TWISTD, "layer8-gateway", "--gateway", "shop", "--authorities", "shop.example"]
        told = {**os.environ, "LAYER8_HOME": str(home), "PYTHONPATH": str(ROOT)}
        made = subprocess.run([*run, "--init"], env=told, capture_output=True, text=True, check=True).stdout
        pin = made.split()[-1]
        signed = [*run, "--sign-days", "3", "--sign-to", str(other / "signed")]
        said = subprocess.run(signed, env=told, capture_output=True, text=True, check=True).stdout
        self.assertIn(pin, said)
        self.assertEqual((other / "signed").stat().st_mode & 0o777, 0o600)
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{node(self)}", f'signed_file = "{other}/signed"')
        self.assertFalse((sidecar.home / "gateway" / "identity.pem").exists())
        page = Page(sidecar.port, read_pin(pin))
        self.assertEqual(page.ask("GET", "/notes/7").status, 200)
        self.assertIsNone(sidecar.ask("gateway.keys")["pin"])

    def test_tls_of_its_own(self) -> None:
        sidecar = Sidecar.start(self, f"tcp:127.0.0.1:{node(self)}", kind="tls")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for _ in range(2):
            link = http.client.HTTPSConnection("127.0.0.1", sidecar.port, timeout=10, context=context)
            link.request("GET", KEYS_PATH)
            answer = link.getresponse()
            self.assertEqual(answer.status, 200)
            KeySet.read(answer.read(), [sidecar.pin])
            link.close()
            os.kill(sidecar.pid, signal.SIGHUP)
            until("it has read its configuration again", lambda: "config.reloaded" in sidecar.program.said())
        self.assertEqual(sidecar.defects(), [])

    def test_a_port_that_is_taken(self) -> None:
        first = Sidecar.start(self, "tcp:127.0.0.1:1")
        told = {**os.environ, "LAYER8_HOME": str(folder(self)), "PYTHONPATH": str(ROOT)}
        words = ["layer8-gateway", "--gateway", "shop", "--authorities", "a.example", "--control", "none"]
        words += ["--listen", f"tcp:{first.port}:interface=127.0.0.1"]
        ran = subprocess.run([*TWISTD, *words], env=told, capture_output=True, text=True)
        lines = [line for line in ran.stderr.splitlines() if not line.startswith("{")]
        self.assertEqual((ran.returncode, len(lines)), (1, 1), ran.stderr)
        self.assertIn("choose another with --listen", lines[0])

    def test_wrong_usage_is_one_line(self) -> None:
        home = folder(self)
        told = {**os.environ, "LAYER8_HOME": str(home), "PYTHONPATH": str(ROOT)}
        for words, line in (
            (["--gateway", ""], "a gateway needs a name and what it answers for"),
            (["--gateway", "Shop!", "--authorities", "a.example"], "it has 1 to 63 of a-z, 0-9 and -"),
            (["--gateway", "shop", "--authorities", "a b"], "is no authority"),
            (["--gateway", "shop", "--authorities", "a.example", "--sign-days", "3"], "need each other"),
            (["--gateway", "shop", "--authorities", "a.example", "--listen", "tcp:5002"], "plain text beyond"),
        ):
            ran = subprocess.run([*TWISTD, "layer8-gateway", *words], env=told, capture_output=True, text=True)
            self.assertEqual((ran.returncode, ran.stderr.count("\n")), (2, 1), ran.stderr)
            self.assertIn(line, ran.stderr)


BIG = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Big(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        left = size = int(self.headers["content-length"])
        while left:
            left -= len(self.rfile.read(min(left, 65536)))
        self.answer(b"%d" % size)
    def do_GET(self):
        self.answer(b"", int(self.path[1:]))
    def answer(self, body, size=0):
        self.send_response(200)
        self.send_header("content-length", str(len(body) + size))
        self.end_headers()
        self.wfile.write(body)
        while size:
            self.wfile.write(bytes(min(size, 65536)))
            size -= min(size, 65536)
    def log_message(self, *words):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Big).serve_forever()
"""


def forget_most(pid: int) -> None:
    """Begin to look for VmHWM anew (proc(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Chat(Suite):
    """What an example with a chat is asked besides."""

    def test_chat(self: Any) -> None:
        keys, port = self.page.keys, self.page.port
        offered = ((b"sec-websocket-protocol", b"chat"), (b"origin", b"https://shop.example"))
        socket = Socket(port, keys.noise, keys.epoch, offered, authority="shop.example", path="/chat")
        socket.say(0x8B)
        self.assertEqual(socket.next(), (0x8C, b"chat"))
        for text in (b"hello", b"", b"a" * 100):
            socket.say(0x81, text)
            self.assertEqual(socket.next(), (0x81, b"you said " + text))
        socket.say(0x88, (1000).to_bytes(2, "big"))
        self.assertEqual(socket.next(), (0x88, (1000).to_bytes(2, "big")))
        socket.socket.close()


class NodeTests(Chat, SynchronousTestCase):
    """An Express-style server on node:http, behind the sidecar."""

    skip = missing(node="nodejs")

    def setUp(self) -> None:
        """Start it once."""
        if "node" not in _started:
            _started["node"] = Sidecar.start(RUN, f"tcp:127.0.0.1:{node(RUN)}", 'require = ["/me"]')
        self.page = _started["node"].page()


class TwistedTests(Chat, SynchronousTestCase):
    """twisted.web with L8Resource."""

    def setUp(self) -> None:
        """Start it once."""
        if "twisted" not in _started:
            _started["twisted"] = Own().start()
        self.page = _started["twisted"].page()
