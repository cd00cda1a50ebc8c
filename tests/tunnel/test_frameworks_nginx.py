"""FastAPI behind nginx, as the manual of gateways configures it."""

from __future__ import annotations

import hashlib
import os
import re

from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel.frames import Kind, Message
from layer8.tunnel.settings import GATEWAY_PATH
from layer8.tunnel.socket_session import Opened
from tests.interop.daemons import free_port, missing
from tests.interop.test_guard import nginx
from tests.names import ROOT
from tests.tunnel.sealed import Page
from tests.tunnel.test_asgi_sockets import Socket
from tests.tunnel.test_frameworks import multipart
from tests.tunnel.workers import Backend

BLOCK = re.compile(r"```nginx\n(.*?)```", re.DOTALL)


class NginxTests(SynchronousTestCase):
    """The page's lines, without TLS and with other ports."""

    skip = missing(nginx="nginx")

    def setUp(self) -> None:
        backend, port = Backend.start(self, "fastapi"), free_port()
        [text] = BLOCK.findall((ROOT / "docs" / "tunnel-gateway.md").read_text())
        for said, here in (
            ("listen 443 ssl;", f"listen 127.0.0.1:{port};"),
            ("    ssl_certificate     /etc/ssl/shop.pem;\n", ""),
            ("    ssl_certificate_key /etc/ssl/shop.key;\n", ""),
            ("http://127.0.0.1:8000", f"http://127.0.0.1:{backend.port}"),
        ):
            self.assertIn(said, text)
            text = text.replace(said, here)
        nginx(self, "front", text, port)
        self.page = Page(port, backend.identity.node_id)

    def test_requests_events_and_sockets(self) -> None:
        page = self.page
        self.assertEqual(page.ask("GET", "/notes/7").json(), {"note": "Buy milk", "tunnel": True, "address": None})
        content = os.urandom(5_000_000)
        body, fields = multipart(picture=content)
        told = page.ask("POST", "/upload", body, fields=fields)
        self.assertEqual(told.json()["picture"]["sha256"], hashlib.sha256(content).hexdigest())
        told = page.ask("GET", "/events?n=5&gap=0.2")
        self.assertGreater(told.times[-1] - told.times[0], 0.5)
        socket = Socket(page)
        self.addCleanup(socket.link.close)
        self.assertEqual(socket.hear(), Opened(""))
        socket.say(Message(Kind.TEXT, b"hello"))
        self.assertEqual(socket.hear(), Message(Kind.TEXT, b"you said hello"))
        self.assertEqual(page.plain("GET", "/notes/7")[0], 404)
        self.assertEqual(page.plain("GET", GATEWAY_PATH)[0], 200)
