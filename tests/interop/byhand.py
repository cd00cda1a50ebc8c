"""An agent played by hand: it subscribes as a real one does, and shows a test the secrets that it is told."""

import contextlib
import socket
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred

from layer8.control.client import Client, connect
from layer8.crypto.keys import parse_id
from layer8.crypto.proof import subscribe_proof
from layer8.crypto.secret import HostSecret
from tests.interop.daemons import Proxy

TIME_S = 20.0


@define(eq=False)
class Told:
    """One visitor that the server asks for."""

    subscription: int
    conn: int
    secret: bytes
    port: int
    tls: bool

    def dial(self, source: str = "127.0.0.1") -> socket.socket:
        """Connect to the data port."""
        return socket.create_connection(("127.0.0.1", self.port), TIME_S, (source, 0))


@define(eq=False)
class AgentByHand:
    """A control connection with one subscription; `calls` are what it was told and nobody has waited for yet."""

    client: Client
    calls: list[Told] = field(factory=list)
    waiting: list[Deferred[Told]] = field(factory=list)

    @classmethod
    async def connect(cls, server: Proxy, host: str) -> "AgentByHand":
        """Say hello and subscribe for `host`."""
        from twisted.internet import reactor

        client = await connect(reactor, server.url, path="/agent")
        agent = cls(client)
        client.notified = agent.notified
        hello = await client.call("proxy.hello", {"versions": [1], "instance": "by-hand-" + host})
        key = HostSecret.load(server.secret(host)).key
        proof = subscribe_proof(key, bytes.fromhex(hello["nonce"]), parse_id(hello["node"]), host)
        await client.call("proxy.subscribe", {"host": host, "proof": proof})
        return agent

    def notified(self, method: str, params: dict[str, Any]) -> None:
        """Keep what the server asks for."""
        if method != "proxy.connection":
            return
        call = params["result"]
        told = Told(
            params["subscription"],
            call["conn"],
            bytes.fromhex(call["secret"]),
            call["serverListeningPort"],
            call["tls"],
        )
        if self.waiting:
            self.waiting.pop(0).callback(told)
        else:
            self.calls.append(told)

    async def told(self) -> Told:
        """Wait for the next visitor."""
        if self.calls:
            return self.calls.pop(0)
        from twisted.internet import reactor

        waiting: Deferred[Told] = Deferred()
        self.waiting.append(waiting)
        return await waiting.addTimeout(TIME_S, reactor)


def exactly(connection: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or fewer if the end comes before."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while len(got) < size and (data := connection.recv(size - len(got))):
            got += data
    return got


def rest(connection: socket.socket) -> bytes:
    """Read to the end; a reset is an end as well."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            got += data
    return got
