import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from layer8.config.load import Loaded, load_text
from layer8.control.access import EVERYTHING, Caller
from layer8.control.errors import Forbidden, InvalidParams, NotFound
from layer8.control.frame import Frame
from layer8.core.errors import Layer8Error
from layer8.net.process import Process
from layer8.node.listeners import ports
from layer8.node.service import DATABASE, ONION_KEYS, Node
from layer8.relay.client import Open, Proto, Reason
from layer8.relay.operate import LinkEvent
from tests.interop.daemons import folder

CONFIG = """
[control]
listen = ["tcp:0:interface=127.0.0.1"]
[debug]
listen = ["tcp:0:interface=127.0.0.1"]
[relay]
network = "test-node"
listen = ["tcp:0:interface=127.0.0.1"]
allow_loopback = true
drain_s = 0
exit = {exit}
peers = {peers}
[socks]
listen = [{socks}]
"""
ANYWHERE = '"tcp:0:interface=127.0.0.1"'


def config(peers: list[str] | None = None, exit: str = '["accept 127.0.0.0/8:*"]', socks: str = ANYWHERE) -> str:
    return CONFIG.format(peers=str(peers or []).replace("'", '"'), exit=exit, socks=socks)


@define
class Text:
    loaded: Loaded

    def reload(self) -> Loaded:
        return self.loaded


class Heard:
    """A sink that remembers why its stream ended."""

    def __init__(self) -> None:
        self.reasons: list[Reason] = []

    def opened(self, opened: object) -> None:
        pass

    def data(self, pieces: list[bytes]) -> None:
        pass

    def ended(self) -> None:
        pass

    def closed(self, reason: Reason) -> None:
        self.reasons.append(reason)

    def hold(self) -> None:
        pass

    def go_on(self) -> None:
        pass


class NodeCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.clock: Any = reactor
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))

    def start(self, text: str, home: Path | None = None, **roles: Any) -> Node:
        environ = {"LAYER8_HOME": str(home or folder(self))}
        frame = Frame(self.clock, "node", Text(load_text(text, environ, {})), environ)
        node = Node(frame, socks=frame.source.loaded.config.socks, **roles)
        frame.run(node, node)
        assert isinstance(frame.process, Process)
        frame.daemon.startService()
        self.addCleanup(self.stop, node)
        return node

    async def stop(self, node: Node) -> None:
        if node._frame.daemon.running:
            await node._frame.daemon.stopService()

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        for _ in range(int(seconds / 0.05)):
            if found := condition():
                return found
            await deferLater(self.clock, 0.05)
        raise AssertionError("not in time")

    async def call(self, node: Node, method: str, role: str = "admin", **params: Any) -> Any:
        roles = frozenset((role,))
        caller = Caller("test", roles, EVERYTHING, True, None, (), self)  # type: ignore[arg-type]
        return await node._frame.table.call(caller, method, params)

    def where(self, node: Node) -> str:
        return f"{node.relay.key.text}@{node.relay.listening[0]}"

    async def crowd(self) -> list[Node]:
        """Four nodes that know each other by the first one."""
        first = self.start(config())
        nodes = [first, *(self.start(config([self.where(first)])) for _ in range(3))]
        await self.until(lambda: all(len(one.relay.database) == 3 for one in nodes))
        return nodes


class GuardTests(NodeCase):
    async def test_nothing_that_the_process_serves_itself(self) -> None:
        """Loopback is open here, and still nobody is led to links, SOCKS, tunnels, control or the debug port."""
        node = self.start(config())
        await node.tunnels.open("0>rand>rand>rand>example.com:80")
        lines = node._frame.listening()
        kinds = ["links on", "SOCKS on", "tunnel on", "control on tcp:", "debug port on"]
        for kind in kinds:
            found = [line for line in lines if line.startswith(kind)]
            self.assertNotEqual(found, [], lines)
            for line in found:
                (port,) = ports(line)
                self.assertEqual(node.relay.outward.guard.refusal("127.0.0.1", port), "own listening port", line)
        self.assertIsNone(node.relay.outward.guard.refusal("127.0.0.1", 9))
        self.assertTrue(node._frame.debug.open)

    def test_lines(self) -> None:
        for line, wanted in {
            "links on aaaa@tcp:127.0.0.1:9000:link=noise": {9000},
            "SOCKS on tcp6:1080:interface=\\:\\:1": {1080},
            "control on tls:9751": {9751},
            "debug port on 127.0.0.1:9009": {9009},
            "control on unix:/run/node.sock": set(),
        }.items():
            self.assertEqual(ports(line), wanted, line)


class RowTests(NodeCase):
    async def test_tables(self) -> None:
        nodes = await self.crowd()
        node = nodes[1]
        row = await self.until_built(node)
        self.assertEqual(len(row["path"].split(">")), 3)
        self.assertEqual((len(row["ms"]), row["state"], row["purpose"]), (3, "open", "by hand"))
        links = await self.call(node, "relay.links", full=True)
        self.assertTrue(all(link["address"].startswith("127.0.0.1:") for link in links["links"]))
        links = await self.call(node, "relay.links", "read")
        self.assertEqual({link["address"] for link in links["links"]}, {"127.0.0.0/24"})
        peers = (await self.call(node, "relay.peers", "read", limit=2))["peers"]
        more = (await self.call(node, "relay.peers", "read", cursor="2"))["peers"]
        self.assertEqual(
            {peer["node"] for peer in peers + more}, {one.relay.key.short for one in nodes} - {node.relay.key.short}
        )
        guards = (await self.call(node, "relay.guards", "operate"))["guards"]
        self.assertIn(row["path"].split(">")[0], [guard["node"] for guard in guards])
        policy = await self.call(node, "relay.policy", "read")
        self.assertEqual((policy["exit"], policy["rules"]), (True, ["accept 127.0.0.0/8:1-65535"]))
        stats = await self.call(node, "relay.stats", "read")
        self.assertGreater(min(stats["links"], stats["circuits"], stats["built"], stats["cells_in"]), 0)
        self.assertEqual((await self.call(node, "relay.streams", "read"))["streams"], [])
        await self.call(node, "relay.close", "operate", circuit=row["circuit"])
        await self.refused(NotFound, node, "relay.close", "operate", circuit=row["circuit"])
        names = {family.name for family in node.metrics.families()}
        self.assertTrue(names >= {"layer8_relay_links", "layer8_relay_circuits", "layer8_relay_cells_total"})

    async def test_targets_are_shown_to_who_asks_for_them_and_may(self) -> None:
        node = (await self.crowd())[1]
        port = self.clock.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        where = port.getHost().port
        stream = node.relay.client.open(Open(Proto.TCP, "127.0.0.1", where), Heard())

        async def shown(role: str, **params: Any) -> list[tuple[str, str]]:
            rows = (await self.call(node, "relay.streams", role, **params))["streams"]
            return [(row["state"], row["target"]) for row in rows]

        for _ in range(400):
            if await shown("read") == [("open", "")]:
                break
            await deferLater(self.clock, 0.05)
        self.assertEqual(await shown("read"), [("open", "")])
        self.assertEqual(await shown("admin"), [("open", "")])
        self.assertEqual(await shown("admin", full=True), [("open", f"127.0.0.1:{where}")])
        await self.refused(Forbidden, node, "relay.streams", "operate", full=True)
        stream.close()

    async def test_events(self) -> None:
        nodes = await self.crowd()
        node = nodes[2]
        told: list[tuple[str, Any]] = []
        self.patch(node._frame.table, "publish", lambda name, data: told.append((name, data)))
        await self.until_built(node)
        self.assertIn(("relay.circuit", "open"), {(name, data.state) for name, data in told if name == "relay.circuit"})
        await self.until(lambda: any(one.need is None for one in node.relay.pool.rows()))
        heard = Heard()
        stream = node.relay.client.open(Open(Proto.TCP, "127.0.0.1", 9), heard)
        await self.until(lambda: heard.reasons)
        self.assertIn(("relay.stream", "failed"), [(name, data.state) for name, data in told if name == "relay.stream"])
        stream.close()
        await self.stop(nodes[0])
        short = nodes[0].relay.key.short
        await self.until(lambda: ("relay.link", LinkEvent(short, "closed")) in told)
        node.relay.neighbours.alert("a neighbour's identity came twice", nodes[1].relay.key.node_id)
        self.assertEqual(told[-1][1].node, nodes[1].relay.key.short)

    async def until_built(self, node: Node) -> Any:
        for _ in range(20):
            try:
                return await self.call(node, "relay.build", path="rand>rand>rand")
            except Layer8Error:
                await deferLater(self.clock, 0.5)
        raise AssertionError("no circuit")

    async def test_what_is_for_whom(self) -> None:
        node = self.start(config())
        for method in ("relay.links", "relay.streams", "relay.peers", "relay.circuits"):
            await self.refused(Forbidden, node, method, "operate", full=True)
        for method in ("relay.guards", "relay.test", "relay.inbox"):
            await self.refused(Forbidden, node, method, "read")
        await self.refused(InvalidParams, node, "relay.build", path="rand>>rand")
        await self.refused(InvalidParams, node, "relay.dial", peer="nobody")

    async def refused(self, kind: type[Exception], node: Node, method: str, role: str = "admin", **params: Any) -> None:
        try:
            await self.call(node, method, role, **params)
        except kind:
            return
        raise AssertionError(f"{method} was not refused")

    async def test_messages_and_dialling(self) -> None:
        one, other = self.start(config()), self.start(config())
        answer = await self.call(one, "relay.dial", "operate", peer=self.where(other))
        self.assertEqual(answer["node"], other.relay.key.text)
        await self.until(lambda: other.relay.key.node_id in {link.peer for link in one.relay.links})
        one.relay.client.hops = 1
        sent = await self.call(one, "relay.send", "operate", to=other.relay.key.text, text="a line", signed=True)
        self.assertGreater(sent["ms"], 0)
        (letter,) = (await self.call(other, "relay.inbox", "operate"))["letters"]
        self.assertEqual((letter["text"], letter["sender"]), ("a line", one.relay.key.text))


class LifeTests(NodeCase):
    async def test_reload(self) -> None:
        node = self.start(config())
        assert node.socks is not None
        before = node.socks.listening
        fresh = load_text(config(exit='["off"]', socks=f"{ANYWHERE}, {ANYWHERE}"), node._frame.environ, {})
        await node.apply(fresh.config)
        self.assertFalse(node.relay.outward.policy)
        self.assertEqual(len(node.socks.listening), 2)
        self.assertNotEqual(node.socks.listening[0], before[0])

    async def test_what_cannot_be_changes_nothing(self) -> None:
        node = self.start(config())
        assert node.socks is not None
        taken = ports(node.relay.listening[0]).pop()
        busy = load_text(config(exit='["off"]', socks=f'"tcp:{taken}:interface=127.0.0.1"'), node._frame.environ, {})
        try:
            await node.apply(busy.config)
        except Layer8Error:
            pass
        else:
            raise AssertionError("a port that is taken was taken")
        self.assertTrue(node.relay.outward.policy)
        self.assertEqual(len(node.socks.listening), 1)

    async def test_drain_and_resume(self) -> None:
        nodes = await self.crowd()
        node, *others = nodes
        node.wind_down(1)
        for other in others:
            other.relay.pool.spares = 0

        def quiet() -> bool:
            for other in others:
                for circuit in other.relay.pool.rows():
                    circuit.close()
            return not node.connections()

        await self.until(quiet)
        await Deferred.fromCoroutine(node.drain())
        node.resume()
        await self.until(lambda: list(node.relay.links))

    async def test_files(self) -> None:
        node = self.start(config(), tracker=True)
        home = node._frame.home
        await self.stop(node)
        for name in (DATABASE, ONION_KEYS, "node.key"):
            self.assertEqual((home / name).stat().st_mode & 0o777, 0o600, name)
        self.assertEqual(home.stat().st_mode & 0o777, 0o700)
