"""The small web service of `layer8 demo`: one page over HTTP, and over HTTPS with a certificate of its own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from layer8.crypto.x509 import Identity, self_signed
from layer8.net.tls import TlsServer

LOOPBACK = "127.0.0.1"

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>layer8 demo</title>
<h1>It works</h1>
<p>This page came over {scheme}, from a web service that nobody can reach but an agent beside it.</p>
<p>The agent had dialled a proxy server and waited. When you asked the server for this host, the server called the
agent back with a one-time secret, and joined its connection with yours.</p>
<p>Only this service knows the next line, which is new at every start:</p>
<pre>{marker}</pre>
</html>
"""


class WebService:
    """Listens on two ports of the loopback interface that the system chooses; `name` stands in its certificate."""

    def __init__(self, reactor: Any, name: str) -> None:
        """Make the page and the certificate."""
        self.identity = Identity.from_pem(*self_signed(name))
        self.marker = secrets.token_hex(32)
        self.answered = 0
        self.http_port = self.https_port = 0
        self._reactor = reactor
        self._ports: list[IListeningPort] = []

    def open(self) -> None:
        """Listen."""
        plain, secure = (site(Page(partial(self._answer, scheme))) for scheme in ("http", "https"))
        over_tls = TLSMemoryBIOFactory(TlsServer(self.identity, ("http/1.1",)), False, secure)
        self._ports = [self._reactor.listenTCP(0, site, interface=LOOPBACK) for site in (plain, over_tls)]
        self.http_port, self.https_port = (cast(IPv4Address, port.getHost()).port for port in self._ports)

    async def close(self) -> None:
        """Listen no more."""
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)

    def _answer(self, scheme: str) -> bytes:
        self.answered += 1
        return self.page(scheme)

    def page(self, scheme: str) -> bytes:
        """Give the page as it is sent."""
        return _PAGE.format(scheme=scheme.upper(), marker=self.marker).encode()

    def digest(self, scheme: str) -> str:
        """Give the SHA-256 of the page, in hex."""
        return hashlib.sha256(self.page(scheme)).hexdigest()


class Page(Resource):
    """One page, whatever the path."""

    isLeaf = True

    def __init__(self, give: Callable[[], bytes]) -> None:
        """`give` makes the page."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._give = give

    def render_GET(self, request: Request) -> bytes:
        """Give the page."""
        request.setHeader("content-type", "text/html; charset=utf-8")
        return self._give()


def site(page: Resource) -> Site:
    """Serve a page without a word in any log."""
    served = Site(page)
    served.noisy = False
    # Twisted's own access log would have the address of whoever asks.
    served.log = lambda request: None  # type: ignore[method-assign]
    return served
