"""Nodes on real sockets: what goes through them, what falls with them, and who never learns of whom."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from layer8.config.network import RelayConfig
from layer8.control.service import wall_clock
from layer8.crypto.descriptor import Role
from layer8.crypto.keys import NodeKey, id_text
from layer8.relay import delegate
from layer8.relay.client import Need, NoCircuit, Open, Proto, Reason, parse_route
from layer8.relay.limits import PAD_LEAST, PAD_MOST
from layer8.relay.link import Why
from layer8.relay.service import Relay
from tests.relay.nodes import OPEN, Heard, NodesCase, way

MIB = 1 << 20


class Target(Protocol):
    """A service that hashes what it hears, and answers with as much when that has ended."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.heard = hashlib.sha256()
        self.said = hashlib.sha256()
        self.count = 0
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard.update(data)
        self.count += len(data)

    def readConnectionLost(self) -> None:
        """Answer: the other side has said everything."""
        self.transport: Any
        self.left = self.size
        self.transport.registerProducer(self, False)

    def writeConnectionLost(self) -> None:
        """Nothing is left to say."""

    def resumeProducing(self) -> None:
        data = os.urandom(min(self.left, 1 << 16))
        self.left -= len(data)
        self.said.update(data)
        self.transport.write(data)
        if not self.left:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        """The connection is gone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class Hearing(Factory):
    noisy = False

    def __init__(self, size: int) -> None:
        self.size = size
        self.made: list[Target] = []

    def buildProtocol(self, addr: IAddress | None) -> Target:
        from twisted.internet.interfaces import IHalfCloseableProtocol
        from zope.interface import directlyProvides

        made = Target(self.size)
        directlyProvides(made, IHalfCloseableProtocol)
        self.made.append(made)
        return made


class ServiceCase(NodesCase):
    def target(self, size: int = 5) -> tuple[int, Hearing]:
        """Listen on loopback."""
        hearing = Hearing(size)
        port = self.reactor.listenTCP(0, hearing, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return port.getHost().port, hearing


class StreamTests(ServiceCase):
    async def test_a_stream_of_three_hops_carries_both_ways_and_closes_by_halves(self) -> None:
        one, two, leaving, client = self.net()
        port, hearing = self.target(4 * MIB)
        heard = self.open(client.client, port, one, two, leaving)
        assert heard.stream is not None
        said = hashlib.sha256()
        for _ in range(64):
            data = os.urandom(1 << 16)
            said.update(data)
            heard.stream.write(data)
        heard.stream.end()
        await self.until(lambda: heard.reason)
        self.assertEqual(heard.reason, Reason.DONE)
        (target,) = hearing.made
        self.assertEqual((target.count, target.heard.digest()), (4 * MIB, said.digest()))
        self.assertEqual((len(heard.all), hashlib.sha256(heard.all).digest()), (4 * MIB, target.said.digest()))
        self.assertEqual([word for word in heard.words if word not in ("hold", "go on")], ["opened", "ended", "closed"])

    async def test_links_of_one_circuit_by_tls_and_by_noise(self) -> None:
        """G6: which carrier the next link has is of no matter to the circuit."""
        kinds = ("noise", "tls", "noise")
        one, two, leaving = (self.relay(link=kind, **(OPEN if place == 2 else {})) for place, kind in enumerate(kinds))
        client = self.client()
        self.introduce(one, two, leaving, client)
        for node, kind in zip((one, two, leaving), kinds, strict=True):
            assert node.descriptor is not None  # whoever dials by another kind than it says is not answered
            self.assertEqual(node.descriptor.endpoints[0].endswith(":link=noise"), kind == "noise")
        port, hearing = self.target(MIB)
        heard = self.open(client.client, port, one, two, leaving)
        assert heard.stream is not None
        heard.stream.write(bytes(MIB))
        heard.stream.end()
        await self.until(lambda: heard.reason)
        self.assertEqual(heard.reason, Reason.DONE)
        (target,) = hearing.made
        self.assertEqual(target.heard.digest(), hashlib.sha256(bytes(MIB)).digest())
        self.assertEqual(hashlib.sha256(heard.all).digest(), target.said.digest())

    async def test_every_stream_of_a_link_that_is_cut_fails_in_the_same_turn(self) -> None:
        one, two, leaving, client = self.net()
        port, hearing = self.target()
        streams = [self.open(client.client, port, one, two, leaving, key=key) for key in range(5)]
        await self.until(lambda: all("opened" in one.words for one in streams))
        link = client.links.get(one.key.node_id)
        assert link is not None
        link.close(Why.LOST, time.monotonic(), abort=True)
        self.assertEqual([one.reason for one in streams], [Reason.RESET] * 5)
        await self.until(lambda: all(one.lost.called for one in hearing.made))
        await self.until(lambda: not leaving.circuits.all)

    async def test_a_middle_that_dies_takes_its_streams_with_it(self) -> None:
        one, two, leaving, client = self.net()
        port, _ = self.target()
        heard = self.open(client.client, port, one, two, leaving)
        await self.until(lambda: "opened" in heard.words)
        await two.stopService()
        await self.until(lambda: heard.reason)
        self.assertEqual(heard.words[-1], "closed")

    async def test_a_port_of_the_last_hop_itself(self) -> None:
        """There is none; without any port it is no question at all."""
        one, two, leaving, client = self.net()
        for port, reason in ((80, Reason.NO_PORT), (0, Reason.PROTOCOL)):
            heard = self.open(client.client, port, one, two, leaving, host="")
            await self.until(lambda heard=heard: heard.words)  # type: ignore[misc]
            self.assertEqual((heard.words, heard.reason), (["closed"], reason))


class SingleHopTests(ServiceCase):
    async def test_an_exit_is_no_open_proxy_unless_it_says_so(self) -> None:
        closed, opened, client = self.exit(), self.exit(allow_single_hop=True), self.client()
        self.introduce(closed, opened, client)
        port, _ = self.target()
        refused = self.open(client.client, port, closed)
        await self.until(lambda: refused.reason)
        self.assertEqual(refused.reason, Reason.POLICY)
        allowed = self.open(client.client, port, opened)
        await self.until(lambda: "opened" in allowed.words)

    async def test_a_relay_whose_link_has_a_name_is_served(self) -> None:
        leaving, other = self.exit(), self.relay()
        self.introduce(leaving, other)
        port, _ = self.target()
        heard = self.open(other.client, port, leaving)
        await self.until(lambda: "opened" in heard.words)


class InvisibleTests(ServiceCase):
    async def test_who_does_not_relay_is_known_to_nobody(self) -> None:
        nodes = self.net()
        client = nodes[3]
        port, _ = self.target()
        heard = self.open(client.client, port)
        await self.until(lambda: "opened" in heard.words)
        self.assertIsNone(client.descriptor)
        self.assertEqual(client.listening, ())
        self.assertTrue(len(client.links))
        for node in nodes[:3]:
            self.assertIsNone(node.database.get(client.key.node_id))
            self.assertIsNone(node.links.get(client.key.node_id))
        named = {link.peer for node in nodes[:3] for link in node.links}
        self.assertNotIn(client.key.node_id, named)

    async def test_circuits_are_refused_by_it(self) -> None:
        one, client = self.relay(), self.client()
        self.introduce(one, client)
        await client.client.build(Need(route=way(one)))
        (link,) = [link for link in one.links if link.peer is None]
        gone: list[int] = []

        class Taker:
            def created(self, kind: int, handshake: bytes, now: float) -> None:
                raise AssertionError

            def cells(self, cmd: int, bodies: Any, now: float) -> None:
                raise AssertionError

            def room(self, now: float) -> None:
                raise AssertionError

            def gone(self, reason: int, now: float) -> None:
                gone.append(reason)

        link.slot(Taker()).create(1, bytes(1296))
        await self.until(lambda: gone)
        self.assertEqual(gone, [1])


class NetworkTests(ServiceCase):
    async def test_two_networks_never_talk(self) -> None:
        one, other = self.relay(), self.client(network="test-other")
        with self.assertRaises(NoCircuit):
            await other.client.build(Need(route=parse_route(one.listening[0].removeprefix("tcp:"))))
        self.assertEqual((len(other.database), len(one.links)), (0, 0))
        assert one.descriptor is not None
        self.assertEqual(other.database.took(b"s" * 32, [one.descriptor.raw], wall_clock()).bad, 1)

    async def test_an_address_is_dialled_and_its_identity_pinned(self) -> None:
        one, client = self.relay(), self.client()
        route = parse_route(one.listening[0].removeprefix("tcp:"))
        circuit = await client.client.build(Need(route=route))
        self.assertEqual(circuit.path[0].identity, one.key.node_id)
        self.assertEqual(client.database.pins, {one.key.node_id})

    async def test_nobody_at_the_address(self) -> None:
        client = self.client()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            with self.assertRaises(NoCircuit) as caught:
                await client.client.build(Need(route=parse_route(f"127.0.0.1:{sock.getsockname()[1]}")))
        self.assertEqual(caught.exception.reason, Reason.UNREACHABLE)

    def test_loopback_is_neither_published_nor_opened_in_a_network_with_rules(self) -> None:
        def made(network: str, **more: Any) -> Relay:
            return self.node(NodeKey.make(), {"network": network, "allow_loopback": True} | more, start=False)

        real, tries = made("main"), made("test-nodes")
        said = made("main", advertise=("tcp:192.0.2.1:9000",))
        for node in (real, tries, said):
            node.listening = ("tcp:127.0.0.1:9000",)
        self.assertEqual(real._endpoints(), ())
        self.assertEqual((tries._endpoints(), said._endpoints()), (("tcp:127.0.0.1:9000",), ("tcp:192.0.2.1:9000",)))
        guards = [node.outward.guard.refusal("127.0.0.1", 80) for node in (real, tries, said)]
        self.assertEqual(guards, ["own address", None, "own address"])


class LanTests(ServiceCase):
    """G25: what one node has opened to one identity."""

    async def answered(self, client: Relay, port: int, *hops: Relay, **more: Any) -> Heard:
        heard = self.open(client.client, port, *hops, **more)
        await self.until(lambda: heard.words)
        return heard

    async def test_the_identity_that_is_listed_reaches_it_through_others_and_directly(self) -> None:
        port, hearing = self.target()
        key = NodeKey.make()
        one, home = self.relay(), self.relay(lan_targets={id_text(key.node_id): f"127.0.0.1:{port}"})
        listed, stranger = self.client(key=key), self.client()
        self.introduce(one, home, listed, stranger)
        for hops in ((one, home), (home,)):
            heard = await self.answered(listed, port, *hops, known=True)
            self.assertEqual(heard.words, ["opened"])
        for client, more in ((stranger, {"known": True}), (listed, {})):
            for hops in ((one, home), (home,)):
                heard = await self.answered(client, port, *hops, **more)
                self.assertEqual(heard.reason, Reason.POLICY)
        other, _ = self.target()
        heard = await self.answered(listed, other, home, known=True)
        self.assertEqual(heard.reason, Reason.POLICY)
        self.assertEqual(len(hearing.made), 2)

    async def test_who_one_is_stays_untold_where_it_is_of_no_use(self) -> None:
        one, two, leaving, client = self.net()
        port, _ = self.target()
        heard = [
            self.open(client.client, port, one, leaving),  # not asked for
            self.open(client.client, port, known=True),  # the last hop is any
            self.open(client.client, 443, one, leaving, host="192.0.1.1", known=True),  # an address for everybody
        ]
        await self.until(lambda: all(one.words for one in heard))
        for node in (one, two, leaving):
            self.assertEqual(node.logins._known, {})

    async def test_a_neighbours_name_gives_no_right_to_what_is_its_own(self) -> None:
        port, _ = self.target()
        key = NodeKey.make()
        trusted = self.relay(key=key)
        home, client = self.relay(lan_targets={id_text(key.node_id): f"127.0.0.1:{port}"}), self.client()
        self.introduce(trusted, home, client)
        for known in (True, False):  # whoever says who he is, and whoever says nothing
            heard = self.open(client.client, port, trusted, home, known=known)
            await self.until(lambda heard=heard: heard.words)  # type: ignore[misc]
            self.assertEqual(heard.reason, Reason.POLICY)


class DelegateTests(ServiceCase):
    """G13: a peer goes on through its own peers."""

    async def test_a_peer_goes_on_through_its_own(self) -> None:
        port, hearing = self.target(MIB)
        agent, inner, leaving, client = self.relay(delegate=True), self.relay(), self.exit(), self.client()
        first = self.relay()
        self.introduce(agent, inner, leaving)
        self.introduce(first, agent)
        self.introduce(client, first)
        assert agent.descriptor is not None
        client.database.learn(agent.descriptor, b"s" * 32, wall_clock())
        route = parse_route(f"{id_text(first.key.node_id)}>{id_text(agent.key.node_id)}>via:2")
        heard = Heard()
        stream = client.client.open(Open(Proto.TCP, "127.0.0.1", port), heard, route=route)
        stream.write(b"hello")
        stream.end()
        await self.until(lambda: heard.reason)
        self.assertEqual(heard.reason, Reason.DONE)
        self.assertEqual(hashlib.sha256(heard.all).digest(), hearing.made[0].said.digest())
        self.assertEqual(hearing.made[0].heard.digest(), hashlib.sha256(b"hello").digest())
        ways = [one.path for one in agent.pool.rows() if one.need is not None and one.need.key is not None]
        self.assertEqual([(len(path), path[-1].identity) for path in ways], [(2, leaving.key.node_id)])
        self.assertIsNone(client.database.get(leaving.key.node_id))
        self.assertEqual(agent.delegates.count, 0)

    async def test_it_is_refused_by_default(self) -> None:
        one, two, _, client = self.net()
        port, _ = self.target()
        heard = Heard()
        route = parse_route(f"{id_text(one.key.node_id)}>{id_text(two.key.node_id)}>via:1")
        client.client.open(Open(Proto.TCP, "127.0.0.1", port), heard, route=route)
        await self.until(lambda: heard.reason)
        self.assertEqual(heard.reason, Reason.POLICY)

    async def test_so_many_streams_go_on_at_a_time(self) -> None:
        self.patch(delegate, "DELEGATED", 0)
        one, two, client = self.relay(), self.relay(delegate=True), self.client()
        self.introduce(one, two, client)
        heard = Heard()
        route = parse_route(f"{id_text(one.key.node_id)}>{id_text(two.key.node_id)}>via:1")
        client.client.open(Open(Proto.TCP, "127.0.0.1", 9), heard, route=route)
        await self.until(lambda: heard.reason)
        self.assertEqual((heard.reason, two.delegates.count), (Reason.LIMIT, 0))


class GatewayTests(ServiceCase):
    """G16: a node that only its neighbours can reach."""

    async def test_a_dark_node_is_reached_by_the_link_that_it_keeps(self) -> None:
        gateway, first, client = self.relay(), self.relay(), self.client()
        peer = f"{id_text(gateway.key.node_id)}@{gateway.listening[0]}"
        dark = self.relay(listen=(), peers=(peer,))
        await self.until(lambda: dark.descriptor is not None and dark.descriptor.via)
        self.introduce(gateway, first, client, dark)
        self.assertEqual(dark.descriptor and dark.descriptor.endpoints, ())
        circuit = await client.client.build(Need(route=parse_route(f"rand>{id_text(dark.key.node_id)}")))
        self.assertEqual([one.identity for one in circuit.path][-2:], [gateway.key.node_id, dark.key.node_id])
        link = gateway.links.get(dark.key.node_id)
        assert link is not None
        self.assertFalse(link.dialled)

    async def test_two_that_nobody_can_dial_exchange_a_page_through_a_third(self) -> None:
        """G2: neither of them listens; each has dialled the third."""
        gateway, client = self.relay(), self.client()
        peer = f"{id_text(gateway.key.node_id)}@{gateway.listening[0]}"
        dark = self.exit(listen=(), peers=(peer,))
        await self.until(lambda: dark.descriptor is not None and dark.descriptor.via)
        self.introduce(gateway, client, dark)
        port, hearing = self.target(MIB)
        heard = self.open(client.client, port, dark)
        assert heard.stream is not None
        heard.stream.write(b"page?")
        heard.stream.end()
        await self.until(lambda: heard.reason)
        self.assertEqual((heard.reason, len(hearing.made)), (Reason.DONE, 1))
        self.assertEqual(hashlib.sha256(heard.all).digest(), hearing.made[0].said.digest())
        (used,) = [one for one in client.pool.rows() if one.origin.streams.received]
        self.assertEqual([one.identity for one in used.path], [gateway.key.node_id, dark.key.node_id])
        self.assertEqual([client.listening, dark.listening, client.links.get(dark.key.node_id)], [(), (), None])


class IdentityTests(ServiceCase):
    """G55: one identity, twice."""

    async def test_the_newcomer_is_refused_and_the_holder_told(self) -> None:
        key = NodeKey.make()
        hub = self.relay()
        told: dict[str, list[str]] = {"holder": [], "newcomer": [], "hub": []}
        hub.neighbours.alert = lambda what, peer: told["hub"].append(what)
        peers = (f"{id_text(hub.key.node_id)}@{hub.listening[0]}",)
        for name in ("holder", "newcomer"):
            node = self.relay(key=key, peers=peers)
            node.neighbours.alert = lambda what, peer, name=name: told[name].append(what)  # type: ignore[misc]
            await self.until(lambda: hub.links.get(key.node_id))
        link = hub.links.get(key.node_id)
        await self.until(lambda: all(told.values()))
        self.assertIs(hub.links.get(key.node_id), link)
        self.assertEqual(told["holder"][0], "somebody tried our identity")
        self.assertEqual(told["newcomer"][0], "our identity is in use")
        self.assertEqual(told["hub"][0], "a neighbour's identity came twice")


class PaddingTests(ServiceCase):
    async def test_an_idle_link_is_padded_by_draws_of_the_page(self) -> None:
        one, client = self.relay(), self.client()
        self.introduce(one, client)
        await client.client.build(Need(route=way(one)))
        for node in (one, client):
            draws = [node.carriers._ground.pad() for _ in range(300)]
            self.assertTrue(PAD_LEAST <= min(draws) < 2.5 < 8.5 < max(draws) <= PAD_MOST, (min(draws), max(draws)))
            (link,) = node.links
            self.assertLess(link.deadline() or 1e9, node.seconds() + PAD_MOST + 0.1)


class RoleTests(ServiceCase):
    async def test_a_descriptor_says_what_a_node_does(self) -> None:
        leaving = self.exit(peer_hub=True)
        assert leaving.descriptor is not None
        self.assertEqual(leaving.descriptor.roles, Role.RELAY | Role.EXIT | Role.HUB)

    async def test_what_changes_is_said_anew(self) -> None:
        one = self.relay()
        before = one.descriptor
        assert before is not None
        one.config = RelayConfig(network="test-nodes", peer_hub=True)
        one.introduce()
        await self.until(lambda: one.descriptor is not before)
        assert one.descriptor is not None
        self.assertTrue(one.descriptor.roles & Role.HUB and one.descriptor.serial > before.serial)
