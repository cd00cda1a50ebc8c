"""A visitor's address goes on only if server and host both say so: into notifications, claims and targets' headers."""

import json
import socket
from itertools import product
from typing import Any

from layer8.core.address import HostPort
from layer8.net.dial import Where
from layer8.proxy.orders import Policy
from layer8.proxy.pp import Header, Kind, Reader, introduction, v2
from layer8.proxy.service import Server
from layer8.proxy.uplink import ANY_PORT, Published, Uplink
from tests.accepting import Accepting
from tests.proxy import pair
from tests.proxy.desk import row
from tests.proxy.pair import PairCase, get, visit

SOURCE = "127.0.0.77"  # of visitors: the marker that must not be found anywhere


class Target:
    """A web server that wants a PROXY header, or none, before each request; remembers both."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.heard: list[tuple[bytes, Header | None]] = []
        accepting = Accepting(self._talk)
        self.port, self.close = accepting.port, accepting.close

    def _talk(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        data, header, rest, reader = b"", None, b"", Reader()
        while b"\r\n\r\n" not in rest:
            part = sock.recv(65536)
            if not part:
                return
            data += part
            if self.kind != "none" and header is None:
                found = reader.feed(part)
                header = found if isinstance(found, Header) else None
                rest = reader.data if header is not None else b""
            else:
                rest += part
        self.heard.append((data, header))
        if self.kind == "none" or header is not None:
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + rest)


class PassingCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.notified: list[str] = []
        notified = Uplink._notified

        def note(uplink: Uplink, method: str, params: dict[str, Any]) -> None:
            self.notified.append(json.dumps([method, params]))
            notified(uplink, method, params)

        self.patch(Uplink, "_notified", note)

    def target(self, kind: Kind) -> Target:
        target = Target(kind)
        self.addCleanup(target.close)
        return target

    async def start(self, server_says: str, host_says: Any, target: Target, pool: int) -> Server:
        server = self.serve(f'visitor = "{server_says}"')
        secret, _ = self.secret()
        server.registry.put(row("app.test", secret.value, policy=Policy(visitor=host_says)))
        published = Published(
            "app.test",
            secret.key,
            {ANY_PORT: Where("127.0.0.1", target.port)},
            proxy_protocol=target.kind,
            pool=pool,
        )
        await self.publish(server, published)
        if pool:
            await self.until(lambda: server.ahead.pools.idle > 0)
        return server

    async def visited(self, server: Server, target: Target) -> tuple[bytes, Header | None]:
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"), source=SOURCE)
        self.assertTrue(got.endswith(get("app.test")), got)
        await self.until(lambda: not server.traffic.visits)
        return target.heard.pop()


class AgentTests(PassingCase):
    async def check(self, server_says: str, host_says: str, kind: Kind, pool: int) -> None:
        target = self.target(kind)
        server = await self.start(server_says, host_says, target, pool)
        data, header = await self.visited(server, target)
        passed = server_says == host_says == "full"
        self.assertEqual(SOURCE in "".join(self.notified), passed and not pool)
        if kind == "none":
            self.assertEqual(data, get("app.test"))
            return
        assert header is not None
        if not passed:
            self.assertEqual(data, introduction(kind, None, None) + get("app.test"))
            self.assertEqual(header, Header())
            return
        assert header.source is not None
        assert header.destination is not None
        self.assertEqual((header.source.host, header.destination.host), (SOURCE, "0.0.0.0"))
        self.assertEqual(header.destination.port, server.door.port_of("http"))


def _case(server_says: str, host_says: str, kind: Kind, pool: int) -> Any:
    async def test(self: AgentTests) -> None:
        await self.check(server_says, host_says, kind, pool)

    return test


for _server, _host, _kind, _pool in product(("none", "full"), ("none", "full"), ("none", "v1", "v2"), (0, 2)):
    _name = f"test_server_{_server}_host_{_host}_target_{_kind}_{'pooled' if _pool else 'called'}"
    setattr(AgentTests, _name, _case(_server, _host, _kind, _pool))  # type: ignore[arg-type]


class StaticTests(PassingCase):
    async def test_a_target_of_the_server_itself(self) -> None:
        for kind, host_says, server_says in product(("v1", "v2"), ("none", "full"), ("none", "full")):
            target = self.target("v1" if kind == "v1" else "v2")
            server = self.serve(
                f'visitor = "{server_says}"',
                f'[[proxy.host]]\nhost = "app.test"\ntarget = "tcp:127.0.0.1:{target.port}"\n'
                f'proxy_protocol = "{kind}"\nvisitor = "{host_says}"\n',
            )
            _, header = await self.visited(server, target)
            assert header is not None
            if server_says == host_says == "full":
                assert header.source is not None
                self.assertEqual(header.source.host, SOURCE)
                self.assertEqual(header.destination, HostPort("127.0.0.1", server.door.port_of("http")))
            else:
                self.assertEqual(header, Header())
            totals = server.traffic.totals
            self.assertEqual(totals.bytes_in, len(get("app.test")), "the header is ours, not the visitor's")
            await self.stop_server()

    async def test_what_a_balancer_has_said(self) -> None:
        target = self.target("v2")
        server = self.serve(
            'visitor = "full"\nproxy_from = ["127.0.0.77"]',
            f'[[proxy.host]]\nhost = "app.test"\ntarget = "tcp:127.0.0.1:{target.port}"\n'
            'proxy_protocol = "v2"\nvisitor = "full"\n',
        )
        source, destination = HostPort("2001:db8::7", 7), HostPort("2001:db8::80", 80)
        said = v2(source, destination) + get("app.test")
        await self.thread(visit, server.door.port_of("http"), said, source=SOURCE)
        self.assertEqual(target.heard.pop()[1], Header(source, destination))
        said = v2(None) + get("app.test")
        await self.thread(visit, server.door.port_of("http"), said, source=SOURCE)
        _, header = target.heard.pop()
        assert header is not None
        assert header.source is not None
        self.assertEqual(header.source.host, SOURCE)


class ForwardedTests(PassingCase):
    async def test_in_mode_proxy_the_field_goes_by_the_same_rule(self) -> None:
        for host_says, server_says in product(("none", "full"), ("none", "full")):
            target = self.target("none")
            server = self.serve(
                f'visitor = "{server_says}"',
                f'[[proxy.host]]\nhost = "app.test"\ntarget = "tcp:127.0.0.1:{target.port}"\n'
                f'mode = "proxy"\nvisitor = "{host_says}"\n',
            )
            asked = get("app.test").replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
            await self.thread(visit, server.door.port_of("http"), asked, source=SOURCE)
            data = target.heard.pop()[0].decode()
            self.assertNotIn("203.0.113.9", data, "what the visitor says of itself is not believed")
            if server_says == host_says == "full":
                self.assertIn(f"x-forwarded-for: {SOURCE}\r\n", data.lower())
            else:
                self.assertNotIn(SOURCE, data)
            await self.stop_server()


class PrivacyTests(PassingCase):
    async def everything(self, server_says: str, host_says: str) -> dict[str, str]:
        """All that anybody but the server itself gets to see, by where it is seen."""
        log = self.folder / "access.log"
        self.patch(pair, "BASE", pair.BASE.replace('access_log = ""', f'access_log = "{log}"'))
        target = self.target("v2")
        server = await self.start(server_says, host_says, target, 0)
        data, _ = await self.visited(server, target)
        server.traffic.tick()
        return {
            "notifications": "".join(self.notified),
            "target": data.decode("latin-1") + data.hex(),
            "log": log.read_text(),
            "metrics": str(list(server.metrics.families())),
        }

    async def test_nowhere_unless_both_say_so(self) -> None:
        marks = SOURCE, socket.inet_aton(SOURCE).hex()
        for server_says, host_says in (("none", "none"), ("none", "full"), ("full", "none")):
            found = await self.everything(server_says, host_says)
            self.assertIn("app.test", found["log"])
            for where, text in found.items():
                for mark in marks:
                    self.assertNotIn(mark, text, f"{where}, {server_says}, {host_says}")
            await self.stop_server()
            self.notified.clear()
            self.told.clear()

    async def test_with_both_it_is_there_and_the_log_still_goes_by_its_own_rule(self) -> None:
        found = await self.everything("full", "full")
        self.assertIn(SOURCE, found["notifications"])
        self.assertIn(socket.inet_aton(SOURCE).hex(), found["target"])
        self.assertNotIn(SOURCE, found["log"])
        self.assertNotIn(SOURCE, found["metrics"])
