"""A proxy server and an agent in this process, on real loopback sockets with ports of their own."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.config.load import Loaded, load_text
from layer8.control.frame import Frame
from layer8.crypto.secret import HostSecret
from layer8.net.dial import Where
from layer8.proxy.agent import Agent
from layer8.proxy.service import Server
from layer8.proxy.uplink import ANY_PORT, Published
from layer8.testing.pair import get, visit
from tests.accepting import Accepting

__all__ = ["Echo", "PairCase", "Text", "get", "published", "visit"]

BASE = """
[proxy]
http = ["tcp:0:interface=127.0.0.1"]
https = ["tcp:0:interface=127.0.0.1"]
agents = ["tcp:0:interface=127.0.0.1"]
access_log = ""
drain_s = 0
{proxy}
[control]
listen = []
{rest}
"""


@define
class Text:
    """A configuration that is a text."""

    text: str
    role: str
    loaded: Loaded

    @classmethod
    def of(cls, text: str, role: str) -> Text:
        return cls(text, role, load_text(text, {}, {}, role=role))

    def reload(self) -> Loaded:
        return load_text(self.text, {}, {}, role=self.role)


class PairCase(TestCase):
    """`serve()` starts a server, `publish()` an agent; what was started is stopped at the end."""

    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.folder = Path(tempfile.mkdtemp(prefix="l8", dir="/tmp"))
        self.addCleanup(self._remove)
        self.told: list[tuple[str, str]] = []
        self.environ = {"LAYER8_HOME": str(self.folder)}

    def _remove(self) -> None:
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.folder.rmdir()

    def serve(self, proxy: str = "", rest: str = "") -> Server:
        """Start a server; `proxy` are more lines of its section, `rest` more of the file."""
        source = Text.of(BASE.format(proxy=proxy, rest=rest), "proxy")
        self.frame = Frame(self.reactor, "proxy", source, self.environ)
        self.source = source
        server = Server(self.frame)
        self.frame.run(server, server)
        self.frame.daemon.startService()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop_server()))
        return server

    def secret(self, name: str = "app.secret") -> tuple[HostSecret, Path]:
        """Make a host's secret in a private file."""
        secret, path = HostSecret.make(), self.folder / name
        secret.save(path)
        return secret, path

    async def publish(self, server: Server, *hosts: Published, options: str = "", scheme: str = "ws") -> Agent:
        """Start an agent of `hosts`, and wait until it has subscribed to all of them."""
        url = f"{scheme}://127.0.0.1:{server.door.agents_port()}"
        config = load_text(f'[agent]\nservers = ["{url}"]\n{options}\n', {}, {}, role="agent").config.agent
        agent = Agent(self.reactor, config, hosts, lambda what, _, word: self.told.append((what, word)))
        agent.startService()
        self.addCleanup(agent.stopService)
        await self.until(lambda: all(("subscribed", one.host) in self.told for one in hosts))
        return agent

    async def until(self, true: Callable[[], bool], seconds: float = 20.0) -> None:
        """Let the reactor turn until something is true."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                self.fail("it did not become true in time")
            waiting: Deferred[None] = Deferred()
            self.reactor.callLater(0.01, waiting.callback, None)
            await waiting

    def thread(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Deferred[Any]:
        """Run something that blocks."""
        return maybeDeferred(deferToThread, call, *arguments, **named)

    async def stop_server(self) -> None:
        """Stop the server before the test's end."""
        if self.frame.daemon.running:
            await self.frame.daemon.stopService()


def published(host: str, secret: HostSecret, port: int) -> Published:
    """A host whose plain HTTP visitors go to a port of this machine, each by a call; `test_pooling` has pools."""
    return Published(host, secret.key, {ANY_PORT: Where("127.0.0.1", port)}, pool=0)


class Echo:
    """A service in a thread: answers with what it got, after `greeting`; remembers every request."""

    def __init__(self, greeting: bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n") -> None:
        self.got: list[bytes] = []
        self._greeting = greeting
        accepting = Accepting(self._talk)
        self.port, self.close = accepting.port, accepting.close

    def _talk(self, sock: socket.socket) -> None:
        data = sock.recv(65536)
        self.got.append(data)
        if data:
            sock.sendall(self._greeting + data)
