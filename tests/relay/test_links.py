"""All links of a node: identities that come twice, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from layer8.relay.limits import LINKS_PER_PREFIX, PROBE_TIME, T_LINK
from layer8.relay.link import Link, State, Why
from layer8.relay.links import Links, prefix
from layer8.relay.turn import Turn
from layer8.relay.wire import Address, Destroy, Notice
from tests.relay.links import ALICE, BOB, Taken, Thread, Time, Watch, ground


@define(eq=False, slots=False)
class User(Watch):
    """A watch that hears of refused newcomers."""

    refusals: int = 0

    def refused(self, link: Link, now: float) -> None:
        self.refusals += 1


@define(eq=False, slots=False)
class Node:
    """A node with its table, on a clock that all share."""

    me: bytes
    time: Time
    user: User = field(factory=User)
    links: Links = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ground = ground(self.time, pad=lambda: 1e6)
        self.links = Links(self.me, self.user, prefixes=False)

    def make(self, *, dialled: bool, host: str = "192.0.2.1") -> tuple[Link, Thread]:
        wire = Thread()
        link = Link(self.ground, self.links, wire, dialled=dialled, address=Address(host, 9))
        self.links.add(link)
        return link, wire


class Net:
    """Some nodes and the connections among them."""

    def __init__(self) -> None:
        self.time = Time()
        self.wires: list[tuple[Link, Thread, Link, Thread]] = []
        self.nodes: list[Node] = []
        self.dead: set[Link] = set()

    def node(self, me: bytes) -> Node:
        node = Node(me, self.time)
        self.nodes.append(node)
        return node

    def connect(self, near: Node, far: Node, *, secure: bool = True, named: bool = True) -> tuple[Link, Link]:
        """Let `near` dial `far`."""
        (ours, there), (theirs, back) = near.make(dialled=True), far.make(dialled=False)
        self.wires.append((ours, there, theirs, back))
        if secure:
            theirs.secured(self.time.now, peer=near.me if named else None, named=True)
            ours.secured(self.time.now, peer=far.me, named=named)
            self.settle()
        return ours, theirs

    def settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for node in self.nodes:
                node.ground.turn.end()
            for ours, there, theirs, back in self.wires:
                for source, wire, target, other in ((ours, there, theirs, back), (theirs, back, ours, there)):
                    ready = target.state is not State.SECURING and not other.held
                    if wire.written and ready and not self.dead & {source, target}:
                        target.received(wire.take(), self.time.now)
                        moved = True
                    if wire.ended is not None and not wire.written and not target.ended and source not in self.dead:
                        target.lost(self.time.now)
                        moved = True

    def pass_time(self, seconds: float) -> None:
        end = self.time.now + seconds
        while self.time.now < end:
            self.time.now = min(end, self.time.now + 0.25)
            for ours, _, theirs, _ in self.wires:
                for link in (ours, theirs):
                    due = link.deadline()
                    if due is not None and due <= self.time.now:
                        link.wake(self.time.now)
            self.settle()


class TwiceTests(SynchronousTestCase):
    """One identity used twice (G55)."""

    def setUp(self) -> None:
        self.net = Net()
        self.bob = self.net.node(BOB)
        self.alice = self.net.node(ALICE)
        self.old, self.old_there = self.net.connect(self.alice, self.bob)
        self.thief = self.net.node(ALICE)

    def test_while_the_holder_is_alive_the_newcomer_is_refused(self) -> None:
        new, new_there = self.net.connect(self.thief, self.bob)
        self.assertEqual((new_there.state, new_there.cells_in), (State.CLOSED, 0))
        self.assertEqual(self.thief.user.events, [])
        self.assertEqual(new.state, State.CLOSED)
        self.assertEqual((self.old.state, self.old_there.state), (State.OPEN, State.OPEN))
        self.assertIn(("noticed", Notice.TRIED), self.alice.user.events)
        self.assertEqual(self.bob.user.refusals, 1)
        self.assertIs(self.bob.links.get(ALICE), self.old_there)
        self.assertEqual(len(self.thief.links), 0)

    def test_the_newcomer_hears_why(self) -> None:
        told: list[Why | None] = []
        new, _ = self.net.connect(self.thief, self.bob, secure=False)
        new._told = lambda link, why: told.append(why)
        new.secured(self.net.time.now, peer=BOB, named=True)
        self.net.wires[-1][2].secured(self.net.time.now, peer=ALICE, named=True)
        self.net.settle()
        self.assertEqual(told, [Why.IN_USE])

    def test_when_the_holder_is_dead_the_newcomer_replaces_it(self) -> None:
        self.net.dead.add(self.old)
        _, circuit = self.old_there, Taken()
        self.old_there.slot(circuit).create(1, b"")
        new, new_there = self.net.connect(self.thief, self.bob)
        self.assertEqual((new.state, new_there.state), (State.HELLO, State.MET))
        self.net.pass_time(PROBE_TIME - 0.25)
        self.assertEqual(new_there.state, State.MET)
        self.net.pass_time(0.25)
        self.assertEqual((new.state, new_there.state, self.old_there.state), (State.OPEN, State.OPEN, State.CLOSED))
        self.assertEqual((self.bob.user.ends, circuit.ends), ([Why.REPLACED], [Destroy.LINK_LOST]))
        self.assertIs(self.bob.links.get(ALICE), new_there)

    def test_the_holder_is_lost_meanwhile(self) -> None:
        self.net.dead.add(self.old)
        new, new_there = self.net.connect(self.thief, self.bob)
        self.old_there.lost(self.net.time.now)
        self.net.settle()
        self.assertEqual((new.state, new_there.state), (State.OPEN, State.OPEN))
        self.assertIs(self.bob.links.get(ALICE), new_there)

    def test_the_newcomer_is_lost_meanwhile(self) -> None:
        self.net.dead.add(self.old)
        _, new_there = self.net.connect(self.thief, self.bob)
        new_there.lost(self.net.time.now)
        self.net.pass_time(PROBE_TIME)
        self.assertEqual((self.old_there.state, self.bob.user.refusals), (State.OPEN, 0))
        self.net.dead.clear()
        self.net.settle()
        again, _ = self.net.connect(self.thief, self.bob)
        self.assertEqual((again.state, self.bob.user.refusals), (State.CLOSED, 1))

    def test_many_newcomers_at_once(self) -> None:
        self.net.dead.add(self.old)
        one, _ = self.net.connect(self.thief, self.bob)
        two, _ = self.net.connect(self.net.node(ALICE), self.bob)
        self.net.pass_time(PROBE_TIME)
        self.assertEqual((one.state, two.state), (State.OPEN, State.CLOSED))

    def test_nameless_ones_are_many(self) -> None:
        links = [self.net.connect(self.net.node(bytes((n,)) * 32), self.bob, named=False)[0] for n in range(5)]
        self.assertEqual({link.state for link in links}, {State.OPEN})
        self.assertEqual(len(self.bob.links), 6)

    def test_oneself(self) -> None:
        ours, theirs = self.net.connect(self.net.node(BOB), self.bob)
        self.assertEqual((ours.state, theirs.state), (State.CLOSED, State.CLOSED))


class BothDialledTests(SynchronousTestCase):
    """Two nodes that dial each other at once keep the link that the smaller id dialled, whatever comes first."""

    def test_every_order(self) -> None:
        for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1), (0, 2, 1, 3), (1, 0, 3, 2)):
            net = Net()
            alice, bob = net.node(ALICE), net.node(BOB)
            kept = net.connect(alice, bob, secure=False)
            gone = net.connect(bob, alice, secure=False)
            ends = [(kept[0], BOB), (kept[1], ALICE), (gone[0], ALICE), (gone[1], BOB)]
            for number in order:
                link, peer = ends[number]
                link.secured(net.time.now, peer=peer, named=True)
                net.settle()
            self.assertEqual([link.state for link in kept], [State.OPEN, State.OPEN], order)
            self.assertEqual([link.state for link in gone], [State.CLOSED, State.CLOSED], order)
            self.assertEqual((alice.links.get(BOB), bob.links.get(ALICE)), kept)
            self.assertNotIn("noticed", [event[0] for node in (alice, bob) for event in node.user.events])

    def test_an_old_link_is_no_tie(self) -> None:
        net = Net()
        alice, bob = net.node(ALICE), net.node(BOB)
        old, _ = net.connect(bob, alice)
        net.pass_time(T_LINK + 1)
        new, _ = net.connect(alice, bob)
        self.assertEqual((old.state, new.state), (State.OPEN, State.CLOSED))


class CountTests(SynchronousTestCase):
    def test_how_many(self) -> None:
        node = Node(BOB, Time())
        node.links = Links(BOB, node.user, prefixes=False, most=3)
        made = [node.make(dialled=False)[0] for _ in range(3)]
        self.assertFalse(node.links.admits("192.0.2.1"))
        made[0].lost(0.0)
        self.assertTrue(node.links.admits("192.0.2.1"))
        self.assertEqual((len(node.links), list(node.links), node.user.events), (2, [], []))

    def test_how_many_of_one_network(self) -> None:
        for host, same, other in (
            ("192.0.2.1", "192.0.2.255", "192.0.3.1"),
            ("2001:db8:1::1", "2001:db8:1:ffff::2", "2001:db8:2::1"),
        ):
            node = Node(BOB, Time())
            node.links = Links(BOB, node.user)
            made = [node.make(dialled=False, host=host)[0] for _ in range(LINKS_PER_PREFIX)]
            self.assertEqual((node.links.admits(same), node.links.admits(other)), (False, True))
            made[3].lost(0.0)
            self.assertTrue(node.links.admits(same))

    def test_prefixes(self) -> None:
        self.assertEqual(prefix("198.51.100.77"), "198.51.100.0/24")
        self.assertEqual(prefix("::ffff:198.51.100.77"), "198.51.100.0/24")
        self.assertEqual(prefix("2001:db8:1:2::3"), "2001:db8:1::/48")
        self.assertEqual(prefix("fe80::1%eth0"), "fe80::/48")
        self.assertEqual(prefix("relay.example"), "relay.example")

    def test_draining(self) -> None:
        net = Net()
        alice, bob = net.node(ALICE), net.node(BOB)
        ours, _ = net.connect(alice, bob)
        slot = ours.slot(Taken())
        slot.create(1, b"")
        net.settle()
        bob.links.drain(net.time.now)
        net.settle()
        self.assertFalse(bob.links.admits("192.0.2.1"))
        self.assertEqual(ours.state, State.OPEN)
        slot.close(Destroy.ASKED)
        net.settle()
        self.assertEqual((ours.state, len(bob.links)), (State.CLOSED, 0))

    def test_the_end_of_all(self) -> None:
        net = Net()
        alice, bob = net.node(ALICE), net.node(BOB)
        net.connect(alice, bob)
        bob.links.close(Why.DOWN, net.time.now)
        net.settle()
        self.assertEqual((len(alice.links), len(bob.links), alice.user.ends), (0, 0, [Why.LOST]))


class TurnTests(SynchronousTestCase):
    def test_asked_once(self) -> None:
        asked: list[Callable[[], None]] = []
        turn = Turn(asked.append)
        flushed: list[object] = []

        class One:
            def flush(self) -> None:
                flushed.append(self)

        one, two = One(), One()
        turn.note(one)
        turn.note(two)
        self.assertEqual(len(asked), 1)
        asked[0]()
        self.assertEqual(flushed, [one, two])
        turn.begin()
        turn.note(one)
        self.assertEqual(len(asked), 1)
        turn.end()
        turn.note(two)
        self.assertEqual(len(asked), 2)

    def test_a_failure_does_not_stop_the_next_turn(self) -> None:
        asked: list[Callable[[], None]] = []
        turn = Turn(asked.append)

        class Bad:
            def flush(self) -> None:
                raise ValueError("a bug")

        class Good:
            flushed = 0

            def flush(self) -> None:
                self.flushed += 1

        good = Good()
        turn.note(Bad())
        turn.note(good)
        self.assertRaises(ValueError, turn.end)
        self.assertEqual(good.flushed, 0)
        turn.note(Good())
        self.assertEqual(len(asked), 2)
        asked[1]()
        self.assertEqual(good.flushed, 1)

    def test_an_end_within_an_end(self) -> None:
        """A write that ends another link's turn, as a connection that breaks does, loses nobody who notes later."""
        turn = Turn(lambda end: None)
        flushed: list[str] = []

        class Last:
            def flush(self) -> None:
                flushed.append("last")

        class First:
            def flush(self) -> None:
                turn.begin()
                turn.end()
                turn.note(Last())
                flushed.append("first")

        turn.note(First())
        turn.note(Last())
        turn.end()
        self.assertEqual(flushed, ["first", "last", "last"])
