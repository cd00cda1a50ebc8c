"""Who learns what of a hidden service: everything that each node of a network in memory has seen is searched.

A service for everybody, one for known clients, a client that visits both under a key for each, another one, and a
stranger who has an address and nothing else. Each search also looks for something that has to be there, so that one
that finds nothing by mistake fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from attrs import define
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.curtain import ClientKey
from layer8.crypto.items import Mutable, sha1
from layer8.crypto.keys import NodeKey, id_text
from layer8.dht.wire import compact
from layer8.relay.origin import Origin
from layer8.relay.wire import Open, Proto
from layer8.rendezvous.address import address_text, period
from layer8.rendezvous.client import meet
from layer8.rendezvous.descriptor import find_cookie, read_item, targets
from layer8.rendezvous.limits import SETUP_CELLS, T_INTRO
from layer8.rendezvous.ways import ask
from layer8.rendezvous.wire import NO_WORK, Answer, Connect, Renzv, Status
from layer8.testing.network import Heard, Node, View
from tests.privacy.hidden_net import HiddenNet, Hosted, Kept, Party

SAID = b"MARK-of-what-the-client-says-4715"
OTHER = b"MARK-of-what-another-one-says-4716"
SECRET = b"MARK-of-what-known-clients-say-4717"
COOKIE = b"MARK-of-the-cookie-that-they-use"
TIMES = 300  # that each is said
PORT = Open(Proto.TCP, "", 80)


@define(eq=False)
class Scene:
    """Everybody, when everything has happened."""

    world: HiddenNet
    service: Hosted
    closed: Hosted  # the one for known clients
    client: Party
    other: Party
    stranger: Party
    login: NodeKey  # the client's at the first service
    second: NodeKey  # and at the other one
    number: int  # of the period
    refused: str  # what the stranger heard of the descriptor

    @property
    def parties(self) -> tuple[Party, ...]:
        """Everybody at the ends of circuits."""
        return self.service.party, self.closed.party, self.client, self.other, self.stranger

    @property
    def points(self) -> list[Node]:
        """The access points."""
        used = {point.node for one in (self.service, self.closed) for point in one.points}
        return [node for node in self.world.meetings if node.identity in used]

    @property
    def meetings(self) -> list[Node]:
        """The rendezvous hops."""
        return [node for node in self.world.meetings if self.world.meeting[node.name].joined]

    @property
    def tokens(self) -> list[bytes]:
        """The cookies with which clients have waited."""
        reads = [one for node in self.meetings for one in self.world.reads[node.name]]
        return [data for one in reads for command, data in one.heard if command == Renzv.LISTEN]

    def items(self, one: Hosted, number: int) -> list[Mutable]:
        """Give what stands in the DHT of a service and a period."""
        wanted, lists = targets(one.key.node_id, number)
        places = {wanted, *lists}
        held = (held.item for kept in self.world.kept.values() for held in kept.session.store)
        return [item for item in dict.fromkeys(held) if isinstance(item, Mutable) and item.target in places]


def say(party: Party, origin: Origin, mark: bytes) -> None:
    """Say something at port 80, and hear it again."""
    sink = Heard()
    stream = origin.open(PORT, sink)
    stream.write(mark * TIMES)
    party.net.net.run(lambda: len(sink.all) == len(mark) * TIMES)
    party.node.view.add(sink.all)
    stream.end()


@cache
def scene() -> Scene:
    """Let it all happen."""
    world = HiddenNet()
    at, visiting = world.meetings[:3], world.meetings[3:]
    known = ClientKey.make()
    service = Hosted(Party(world, "service", at), NodeKey.make(), {})
    closed = Hosted(Party(world, "closed service", at), NodeKey.make(), {"cookie": COOKIE}, {"known": known.public})
    for one in (service, closed):
        one.start()
    client, other, stranger = (Party(world, name, visiting) for name in ("client", "other", "stranger"))
    world.net.settle(1000.0)  # the next period's items wait a while
    number = period(client.ways.wall())
    login, second = NodeKey.make(), NodeKey.make()

    def found(party: Party, hosted: Hosted, cookie: bytes = b"") -> Origin:
        key, now = hosted.key.node_id, party.ways.wall()
        item = world.result(party.items.get(targets(key, number)[0], b"d"))
        assert item is not None
        told = read_item(key, number, item, now, cookie=cookie)
        party.ways.see(told)
        party.ways.see(told.points)
        who = {client: login if hosted is service else second}.get(party)
        return world.result(meet(party.ways, key, told, cookie=cookie, login=who))

    say(client, found(client, service), SAID)
    say(other, found(other, service), OTHER)
    lists = [
        world.result(client.items.get(one, b"a%d" % at))
        for at, one in enumerate(targets(closed.key.node_id, number)[1])
    ]
    cookie = find_cookie(closed.key.node_id, number, [one for one in lists if one is not None], known)
    say(client, found(client, closed, cookie), SECRET)
    refused = ""
    try:
        found(stranger, closed)
    except RemoteProtocolError as error:
        refused = str(error)
    world.net.settle(10.0)
    return Scene(world, service, closed, client, other, stranger, login, second, number, refused)


class HiddenCase(SynchronousTestCase):
    """Searches of one party's view: raw bytes, hexadecimal digits, ids and addresses as they are written."""

    def setUp(self) -> None:
        self.scene = scene()

    def sees(self, view: View, *what: bytes | str) -> None:
        for one in what:
            self.assertTrue(self.found(view, one), f"{one!r} has to be there")

    def sees_no(self, view: View, what: Iterable[bytes | str]) -> None:
        text = b"".join(view.pieces)
        self.assertGreater(len(text), 1000)
        for one in what:
            for form in self.forms(one):
                self.assertNotIn(form, text, f"{one!r} is there")

    def found(self, view: View, what: bytes | str) -> bool:
        return any(view.has(form) for form in self.forms(what))

    def forms(self, what: bytes | str) -> list[bytes]:
        if isinstance(what, str):
            return [what.encode()]
        written = [what, what.hex().encode()]
        return [*written, id_text(what).encode()] if len(what) == 32 else written

    def names(self, *parties: Party) -> list[bytes | str]:
        """Give everything that names somebody at an end, or his guard."""
        found: list[bytes | str] = []
        for one in parties:
            for node in (one.node, one.guard):
                found += [node.identity, node.address.host, node.endpoint, compact(node.address.host, 9000)]
        return found

    def services(self, *hosted: Hosted) -> list[bytes | str]:
        """Give everything that says which service it is, on whatever day."""
        found: list[bytes | str] = []
        for one in hosted:
            key = one.key.node_id
            found += [key, sha1(key), address_text(key), address_text(key)[:16]]
        return found

    def said(self) -> list[bytes | str]:
        """Give which services there are, who logs in, and every word that is said."""
        services = self.services(self.scene.service, self.scene.closed)
        return [*services, self.scene.login.node_id, self.scene.second.node_id, SAID, OTHER, SECRET, COOKIE]

    def keys(self) -> list[bytes | str]:
        """Give the keys of all access points."""
        points = [point for one in (self.scene.service, self.scene.closed) for point in one.points]
        return [key for point in points for key in (point.auth_key, point.enc_key)]


class DhtTests(HiddenCase):
    def test_hop_that_searches(self) -> None:
        """That somebody asks for a key of the day; neither who nor for which service."""
        scene = self.scene
        blinded = [scene.items(one, scene.number)[0].key for one in (scene.service, scene.closed)]
        views = [node.view for node in scene.world.hops]
        for key in blinded:
            self.assertTrue(any(self.found(view, key) for view in views))
        self.assertTrue(any(self.found(view, scene.world.middles[0].identity) for view in views))
        for view in views:
            self.sees_no(view, [*self.names(*scene.parties), *self.said(), *self.keys()])

    def test_node_that_stores(self) -> None:
        """The item, and the hop that has put it there or asks for it."""
        scene = self.scene
        item = scene.items(scene.service, scene.number)[0]
        having = [one for one in scene.world.holders if self.holds(one, item)]
        self.assertTrue(having)
        hops = [hop.address.host for hop in scene.world.hops]
        for one in having:
            self.sees(one.view, item.key, item.data)
            self.assertTrue(any(self.found(one.view, host) for host in hops))
        for one in scene.world.holders:
            middles = [node.address.host for node in scene.world.middles]
            self.sees_no(one.view, [*self.names(*scene.parties), *middles, *self.said(), *self.keys()])

    def holds(self, one: Kept, item: Mutable) -> bool:
        return item in {held.item for held in one.session.store}

    def test_two_periods_have_nothing_in_common(self) -> None:
        """Not eight bytes of keys, values and signatures, and no number by which they could be paired."""
        for one in (self.scene.service, self.scene.closed):
            now, then = (self.scene.items(one, self.scene.number + later) for later in (0, 1))
            self.assertEqual(len(now), len(then))
            self.assertGreater(len(now), 0)
            self.assertEqual(self.eights(now) & self.eights(then), set())
            self.assertEqual({item.seq for item in now} & {item.seq for item in then}, set())
            self.assertTrue(self.eights(now) & self.eights(now[:1]))  # what has something in common is found out

    def eights(self, items: Iterable[Mutable]) -> set[bytes]:
        texts = [text for one in items for text in (one.key, one.signature, one.data)]
        return {text[at : at + 8] for text in texts for at in range(len(text) - 7)}


class PointTests(HiddenCase):
    def test_access_point(self) -> None:
        """The key that it is known by there, and that somebody knocks; no service, no client, no word."""
        scene = self.scene
        self.assertEqual(len(scene.points), 3)
        for node in scene.points:
            mine = [
                point for one in (scene.service, scene.closed) for point in one.points if point.node == node.identity
            ]
            self.sees(node.view, *(point.auth_key for point in mine))
            self.sees_no(node.view, [point.enc_key for point in mine])
            self.sees_no(node.view, [*self.names(*scene.parties), *self.said()])
            self.sees_no(node.view, [*scene.tokens, *(one.address.host for one in scene.meetings)])
        knocks = [one.passed for access in scene.world.access.values() for one in access.listeners.values()]
        self.assertEqual(sum(knocks), 3)

    def test_rendezvous_hop(self) -> None:
        """A cookie, two circuits and their volume."""
        scene = self.scene
        self.assertEqual(sum(scene.world.meeting[node.name].joined for node in scene.meetings), 3)
        for node in scene.meetings:
            self.assertTrue(any(self.found(node.view, one) for one in scene.tokens))
            self.assertGreater(len(b"".join(node.view.pieces)), 2 * TIMES * len(OTHER))
            self.sees_no(node.view, [*self.names(*scene.parties), *self.said(), *self.keys()])
            self.sees_no(node.view, [one.address.host for one in scene.points])
            items = [item for one in (scene.service, scene.closed) for item in scene.items(one, scene.number)]
            self.sees_no(node.view, [item.key for item in items])

    def test_access_point_that_is_the_place_to_meet(self) -> None:
        """Mode 0: it carries everything, so it sees how much; still no service, no client, no word."""
        world = HiddenNet()
        service = Hosted(Party(world, "service", world.meetings[:3]), NodeKey.make(), {"modes": (0, 1)})
        service.start()
        client, login, key = Party(world, "client", []), NodeKey.make(), service.key.node_id
        number = period(client.ways.wall())
        item = world.result(client.items.get(targets(key, number)[0], b"d"))
        assert item is not None
        told = read_item(key, number, item, client.ways.wall())
        say(client, world.result(meet(client.ways, key, told, login=login)), SAID)
        self.assertEqual(service.logins, [login.node_id])
        (point,) = (node for node in world.meetings if world.meeting[node.name].joined)
        (mine,) = (one for one in told.points if one.node == point.identity)
        self.sees(point.view, mine.auth_key)
        self.assertGreater(len(b"".join(point.view.pieces)), 2 * TIMES * len(SAID))
        parties = self.names(service.party, client)
        self.sees_no(point.view, [*parties, *self.services(service), login.node_id, SAID, mine.enc_key, item.key])


class GuardTests(HiddenCase):
    def test_what_it_sees(self) -> None:
        """Its neighbour's address, and nothing that says what that one is."""
        scene = self.scene
        far = [node.address.host for node in (*scene.points, *scene.meetings, *scene.world.hops)]
        for one in (scene.service, scene.closed):
            view = one.party.guard.view
            self.sees(view, one.party.node.address.host)
            self.assertTrue(all(self.found(view, node.endpoint) for node in self.middles(one.party)))
            others = [party for party in scene.parties if party is not one.party]
            self.sees_no(view, [*self.names(*others), *self.said(), *self.keys(), *scene.tokens, *far])

    def middles(self, party: Party) -> list[Node]:
        """Give the second hops of somebody's circuits."""
        found = [self.scene.world.net.nodes[path[1]] for path in party.ways.paths]
        self.assertGreater(len(found), 3)
        return found

    def test_circuits_look_like_a_client_s(self) -> None:
        """Until ten cells have gone out: how many, of which kind, and when one comes back."""
        scene = self.scene
        clients = self.shapes(scene.client)
        for one in (scene.service, scene.closed):
            mine = self.shapes(one.party)
            self.assertGreater(len(mine), 1)
            self.assertLessEqual(mine, clients)
        self.assertIn(SETUP_CELLS, {sum(way == ">" for way, _ in shape) for shape in clients})
        self.assertFalse(self.shapes(scene.service.party, 40) <= self.shapes(scene.client, 40))  # more of them tells

    def shapes(self, party: Party, count: int = SETUP_CELLS) -> set[tuple[tuple[str, int], ...]]:
        """Give way and command of the cells of each circuit, until so many have gone out."""
        found = set()
        for cells in party.cells().values():
            out = [at for at, (way, _) in enumerate(cells) if way == ">"]
            found.add(tuple(cells[: out[count - 1] + 1] if len(out) >= count else cells))
        return found


class EndTests(HiddenCase):
    def test_service(self) -> None:
        """That one client came, and the key that he has logged in with there."""
        scene = self.scene
        view = scene.service.party.node.view
        self.sees(view, scene.login.node_id, SAID, OTHER)
        visitors = (scene.client, scene.other, scene.stranger)
        self.sees_no(view, [*self.names(*visitors), scene.second.node_id, SECRET, *self.services(scene.closed)])
        self.assertEqual(scene.service.logins, [scene.login.node_id, None])
        self.assertEqual(scene.closed.logins, [scene.second.node_id])
        view = scene.closed.party.node.view
        self.sees(view, scene.second.node_id, SECRET)
        self.sees_no(view, [*self.names(*visitors), scene.login.node_id, SAID, OTHER, *self.services(scene.service)])

    def test_client(self) -> None:
        """Where to knock; not where the service is."""
        scene = self.scene
        for party, said, not_said in ((scene.client, SAID, OTHER), (scene.other, OTHER, SAID)):
            view = party.node.view
            self.sees(view, said, scene.service.points[0].auth_key)
            others = [one for one in scene.parties if one is not party]
            self.sees_no(view, [*self.names(*others), not_said])

    def test_one_client_hears_nothing_of_another(self) -> None:
        scene = self.scene
        logins = [scene.login.node_id, scene.second.node_id]
        self.sees_no(scene.other.node.view, [*logins, *self.services(scene.closed), SECRET, COOKIE])


class StrangerTests(HiddenCase):
    """Somebody who has the address of a service that knows its clients."""

    def test_what_he_sees(self) -> None:
        """That there is a descriptor; neither where to knock nor how."""
        scene = self.scene
        view = scene.stranger.node.view
        self.assertNotEqual(scene.refused, "")
        item = next(one for one in scene.items(scene.closed, scene.number) if one.salt == b"d")
        self.sees(view, item.data)
        points = [key for one in scene.closed.points for key in (one.auth_key, one.enc_key)]
        self.sees_no(view, [*points, COOKIE, *self.names(scene.closed.party), scene.closed.points[0].endpoint])

    def test_knocking_anywhere(self) -> None:
        """Whatever he knows opens nothing, and is answered as for a service that never was."""
        scene, answers = self.scene, set()
        key = scene.closed.key.node_id
        item = next(one for one in scene.items(scene.closed, scene.number) if one.salt == b"d")
        for node in scene.points:
            for guess in (key, item.key, bytes(32)):
                origin = scene.world.result(scene.stranger.ways.to(node.hop, 3))
                said = Connect(guess, NO_WORK, bytes(1600)).encode()
                work = ask(scene.stranger.ways, origin, Renzv.RES_CONNECT, said, Renzv.RES_CONNECT_OK, T_INTRO)
                answers.add(scene.world.result(work))
        self.assertEqual(answers, {Answer(Status.UNKNOWN).encode()})
