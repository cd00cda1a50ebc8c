"""What strangers may make real nodes dial, and what they can make them say."""

from __future__ import annotations

from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Unavailable
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.relay.exit import NoWay
from layer8.relay.neighbours import DIALS_FOR_OTHERS, Neighbours
from layer8.relay.wire import Reason, datagram
from tests.relay.exit_peers import Stream
from tests.relay.nodes import NodesCase
from tests.relay.test_outward_udp import UdpCase

PUBLIC = "93.184.216.34"


@define
class NoLinks:
    """A table of links that is empty."""

    def get(self, node: bytes) -> None:
        return None


@define(eq=False)
class Dials:
    """Carriers that note what they are to dial."""

    texts: list[str] = field(factory=list)
    waiting: list[Deferred[Any]] = field(factory=list)

    async def dial(self, text: str, wanted: bytes | None = None, *, again: bool = False) -> Any:
        self.texts.append(text)
        self.waiting.append(Deferred())
        await self.waiting[-1]
        raise Unavailable("nobody")


class DialTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.dials = Dials()
        self.told: list[Any] = []
        tasks = TaskSet(Logger())
        self.neighbours = Neighbours(tasks, self.checked)
        links: Any = NoLinks()
        carriers: Any = self.dials
        self.neighbours.links, self.neighbours.carriers = links, carriers
        self.addCleanup(tasks.stop)

    async def checked(self, host: str, port: int) -> list[str]:
        """Look names up once, as `Outward.addresses` does."""
        self.asked.append((host, port))
        if host.startswith("192.168."):
            raise NoWay(Reason.POLICY, "private")
        return ["2606:2800:220:1::1"] if host == "six.example" else [PUBLIC]

    def test_what_was_checked_is_what_is_dialled_however_it_was_written(self) -> None:
        """A name that is looked up twice may lead to our own network the second time."""
        for number, text in enumerate(
            (
                "tcp:evil.example:443",
                "tcp:host=evil.example:port=443",
                "tcp:port=443:host=evil.example",
                "tcp:evil\\.example:443",
                "tcp:host=evil.example:port=443:bindAddress=10.0.0.1",
                "tcp:evil.example:443:link=noise",
                "tcp:six.example:443",
            )
        ):
            for reach in (self.neighbours.reach_for, self.neighbours.reach_said):
                reach(bytes((number,)) * 32, (text,), self.told.append)
        wanted = [f"tcp:{PUBLIC}:443:link=tls"] * 5
        wanted += [f"tcp:{PUBLIC}:443:link=noise", "tcp:2606\\:2800\\:220\\:1\\:\\:1:443:link=tls"]
        self.assertEqual(self.dials.texts, [text for text in wanted for _ in range(2)])

    def test_descriptors_of_strangers_lead_nowhere_private(self) -> None:
        self.neighbours.reach_said(b"a" * 32, ("tcp:192.168.0.1:80",), self.told.append)
        self.assertEqual((self.dials.texts, self.told), ([], [Reason.UNREACHABLE]))
        self.neighbours.reach(b"a" * 32, ("tcp:192.168.0.1:80",), self.told.append)
        self.assertEqual(self.dials.texts, ["tcp:192.168.0.1:80"])

    def test_who_is_to_prove_addresses_leads_a_tracker_nowhere_private(self) -> None:
        """A dial back is what an exit would do, by the address that was looked up."""
        texts = ("tcp:192.168.0.1:80", f"via:{'a' * 52}", "tcp:evil.example:443")
        proven = Deferred.fromCoroutine(self.neighbours.prove(b"a" * 32, texts))
        self.assertEqual(self.asked, [("192.168.0.1", 80), ("evil.example", 443)])
        self.assertEqual(self.dials.texts, [f"tcp:{PUBLIC}:443:link=tls"])
        self.dials.waiting[0].callback(None)
        self.assertFalse(self.successResultOf(proven))

    def test_strangers_have_so_many_dials_and_our_own_are_not_among_them(self) -> None:
        """Each holds a descriptor for ten seconds, and one neighbour may have 4096 circuits."""
        for number in range(DIALS_FOR_OTHERS + 5):
            self.neighbours.reach_for(number.to_bytes(32, "big"), ("tcp:evil.example:443",), self.told.append)
        self.assertEqual((len(self.dials.texts), self.told), (DIALS_FOR_OTHERS, [Reason.LIMIT] * 5))
        self.neighbours.reach_said(b"a" * 32, ("tcp:good.example:443",), self.told.append)
        self.assertEqual(len(self.dials.texts), DIALS_FOR_OTHERS + 1)
        for waiting in self.dials.waiting:
            waiting.callback(None)
        self.assertEqual(self.told[5:], [Reason.UNREACHABLE] * (DIALS_FOR_OTHERS + 1))


class ProofTests(NodesCase):
    async def test_a_link_is_no_proof_of_an_address(self) -> None:
        """Whoever is linked could have any address listed that he likes, and clients sent there."""
        tracker, liar = self.relay(), self.relay()
        honest = self.relay(listen=("tcp:0:interface=127.0.0.2",))
        self.introduce(tracker, liar, honest)
        for node in (liar, honest):
            await self.linked(node, tracker)
            self.assertFalse(tracker.links.get(node.key.node_id).dialled)  # type: ignore[union-attr]
        told = liar.descriptor
        assert told is not None and honest.descriptor is not None
        self.assertFalse(await tracker.proves(evolve(told, endpoints=(honest.listening[0],))))
        self.assertFalse(await tracker.proves(evolve(told, endpoints=("tcp:127.0.0.3:1",))))
        self.assertTrue(await tracker.proves(told))  # the host that the link comes from
        self.assertTrue(await tracker.proves(honest.descriptor))
        self.assertFalse(await tracker.proves(evolve(told, endpoints=())))

    async def linked(self, one: Any, other: Any) -> None:
        done: list[Any] = []
        one.neighbours.reach(other.key.node_id, (other.listening[0],), done.append)
        await self.until(lambda: done and tuple(other.links))
        await self.until(lambda: other.links.get(one.key.node_id))


class GatewayTests(NodesCase):
    async def test_guards_are_no_gateways_while_there_is_anybody_else(self) -> None:
        relays = [self.relay() for _ in range(3)]
        dark = self.relay(listen=(), links=0)
        self.introduce(dark, *relays)
        peers = [one.key.node_id for one in relays]
        done: list[Any] = []
        for one in relays:
            dark.neighbours.reach(one.key.node_id, (one.listening[0],), done.append)
        await self.until(lambda: len(done) == 3)
        dark.guards.ids = lambda: frozenset(peers[:2])  # type: ignore[method-assign]
        self.assertEqual(list(dark._gateways()), peers[2:])
        dark.guards.ids = lambda: frozenset(peers)  # type: ignore[method-assign]
        self.assertEqual(list(dark._gateways()), sorted(peers))


class ExitTests(UdpCase):
    async def test_circuits_together_leave_descriptors_for_links(self) -> None:
        """Each may have 256 streams, and a neighbour 4096 circuits."""
        self.exit.sockets.most = 2
        target, far = self.target(), self.far()
        one = await self.exit.dial("127.0.0.1", target.port, self.account)
        made = await self.open()
        made.data([datagram(far.at, b"1")])
        other = self.exit.account()
        self.assertEqual(await self.no_way(self.exit.dial("127.0.0.1", target.port, other)), Reason.LIMIT)
        second = await self.exit.associate("", 0, other)
        self.begin(second, Stream())
        second.data([datagram(far.at, b"2")])
        self.assertEqual(self.exit.counts.dropped, 1)
        one.give_up()
        await self.until(lambda: self.exit.sockets.open == 1)
        second.data([datagram(far.at, b"3")])
        await self.until(lambda: far.hear() == 2)
        for each in (made, second):
            each.closed(Reason.DONE)
        self.assertEqual(self.exit.sockets.open, 0)
        await self.until(lambda: target.accept())


class OwnAddressTests(NodesCase):
    async def test_an_address_that_a_router_gives_us_is_our_own(self) -> None:
        node = self.node(
            NodeKey.make(), {"network": "test-nodes", "listen": (), "advertise": (f"tcp:{PUBLIC}:9000", "tcp:a.test:1")}
        )
        self.assertEqual(node.outward.guard.refusal(PUBLIC, 80), "own address")
        self.assertEqual(node.outward.guard.refusal(f"::ffff:{PUBLIC}", 80), "own address")
        self.assertIsNone(node.outward.guard.refusal("93.184.216.35", 80))
