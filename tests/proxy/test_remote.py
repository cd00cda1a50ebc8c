"""Three nodes on one clock: a visitor at any of them gets an agent of any other, and numbers never get mixed up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Unavailable
from layer8.proxy import remote
from layer8.proxy.bus import Presence
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.limits import CALL_LIFE
from layer8.proxy.remote import (
    AHEAD_NUMBER,
    FIRST_NUMBER,
    MARK_BITS,
    OWN_BITS,
    Plain,
    Remote,
    ahead_numbers,
)
from layer8.proxy.wire import LARGEST_ID, DataAddress
from tests.proxy.desk import HOST, Voice


@define(eq=False)
class Net:
    """What joins the nodes; messages wait until they are delivered."""

    nodes: dict[bytes, Node] = field(factory=dict)
    present: dict[str, tuple[Presence, ...]] = field(factory=dict)
    waiting: list[tuple[bytes, bytes, Any]] = field(factory=list)
    down: set[bytes] = field(factory=set)

    def node(self, number: int, port: int, host: str = "") -> Node:
        """Add a node that is dialled back at a port."""
        made = Node(self, bytes([number]) * 32, [DataAddress(host, port)])
        self.nodes[made.ident] = made
        return made

    def deliver(self) -> None:
        """Deliver everything, also what comes of it."""
        while self.waiting:
            node, sealed, failed = self.waiting.pop(0)
            if node in self.down:
                failed()
            else:
                self.nodes[node].remote.received(sealed)


@define(eq=False)
class Node:
    """One node: its own seats, its end of the talk, and what it was told."""

    net: Net
    ident: bytes
    data: list[DataAddress]
    gone: list[Seat] = field(factory=list)
    rejected: list[tuple[Seat, int]] = field(factory=list)
    refused: list[Seat] = field(factory=list)
    announced: list[tuple[DataAddress, ...]] = field(factory=list)
    seats: Seats = field(init=False)
    remote: Remote = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.seats = Seats(lambda seat, kill: self.remote.left(seat))
        self.remote = Remote(
            self.ident,
            lambda host: self.net.present.get(host, ()),
            Plain(self.ident),
            lambda node, sealed, failed: self.net.waiting.append((node, sealed, failed)),
            self.seats,
            lambda: tuple(self.data),
            lambda seat, conn: self.rejected.append((seat, conn)),
            self.refused.append,
            self.gone.append,
            lambda: self.announced.append(self.remote.addresses),
        )
        self.seats.elsewhere = self.remote.of

    def seat(self, number: int, host: str = HOST, **more: Any) -> Seat:
        """Let an agent subscribe here, and all nodes know."""
        fields: dict[str, Any] = {"weight": 1, "priority": 0, "max_conns": 0} | more
        seat = Seat(number, host, Voice(), "i", None, b"k", "r", since=0.0, **fields)
        self.seats.add(seat)
        known = Presence(host, self.ident, number, seat.weight, seat.priority, seat.pool)
        self.net.present[host] = (*self.net.present.get(host, ()), known)
        return seat


def call(seat: Seat, conn: int, port: int = 7001, **more: Any) -> Mapping[str, Any]:
    """What a node tells an agent of a visitor."""
    result = {"secret": "ab" * 32, "port": 80, "serverListeningPort": port, "conn": conn, "host": HOST, **more}
    return {"subscription": seat.number, "result": result}


def told(seat: Seat) -> list[Any]:
    """Everything that a seat's agent was told."""
    assert isinstance(seat.voice, Voice)
    return seat.voice.told


class RemoteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.net = Net()
        self.a, self.b, self.c = (self.net.node(number, 7000 + number) for number in (1, 2, 3))

    def ask(self, node: Node, conn: int, seat: Seat | None = None) -> Seat:
        """Let a visitor of a node be carried by the best seat there is."""
        chosen = seat or node.seats.best(HOST)
        assert chosen is not None
        self.assertTrue(chosen.voice.notify("proxy.connection", call(chosen, conn, node.data[0].port)))
        self.net.deliver()
        return chosen

    def test_an_agent_of_another_node_is_called(self) -> None:
        held = self.b.seat(5)
        chosen = self.ask(self.a, 1)
        self.assertTrue(chosen.remote)
        ((method, params),) = told(held)
        self.assertEqual(method, "proxy.connection")
        self.assertEqual(params["subscription"], 5)
        self.assertEqual(params["result"]["serverListeningPort"], 7001)
        self.assertNotIn("serverListeningHost", params["result"], "the agent reaches all of them by the same host")
        self.assertGreater(params["result"]["conn"], FIRST_NUMBER)
        self.assertEqual(self.b.announced, [(DataAddress("", 7001),)], "before the agent is told")
        self.ask(self.a, 2)
        self.assertEqual(len(self.b.announced), 1, "once")

    def test_the_other_nodes_host_is_named(self) -> None:
        a = self.net.node(9, 7009, "a.example.org")
        held = self.b.seat(5, pool=2)
        chosen = self.ask(a, 1)
        self.assertEqual(told(held)[0][1]["result"]["serverListeningHost"], "a.example.org")
        token = {"secret": "cd" * 32, "serverListeningPort": 7009}
        self.assertTrue(chosen.voice.notify("proxy.pool", {"subscription": 5, "tokens": [token]}))
        self.net.deliver()
        self.assertEqual(told(held)[1][0], "proxy.pool")
        self.assertEqual(told(held)[1][1]["tokens"][0]["serverListeningHost"], "a.example.org")

    def test_ours_first_then_by_priority(self) -> None:
        self.b.seat(5)
        ours = self.a.seat(1)
        self.assertIs(self.a.seats.best(HOST), ours)
        second = self.a.seats.best(HOST, [ours])
        assert second is not None
        self.assertTrue(second.remote)
        self.assertIs(self.a.seats.best(HOST, [ours]), second, "the same seat each time")
        self.assertIsNone(self.a.seats.best(HOST, [ours, second]))
        self.c.seat(1, "o.test", priority=0)
        self.a.seat(2, "o.test", priority=1)
        first = self.a.seats.best("o.test")
        assert first is not None
        self.assertTrue(first.remote, "a lower number comes first wherever it is")

    def test_rejects_find_their_way_back(self) -> None:
        held = self.b.seat(5)
        first, second = self.ask(self.a, 1), self.ask(self.c, 1)
        numbers = [params["result"]["conn"] for _, params in told(held)]
        self.assertEqual(len(set(numbers)), 2, "both nodes have a visitor 1")
        self.assertFalse(self.b.remote.rejects(held, 1, -20008), "a visitor of the holder itself")
        self.assertTrue(self.b.remote.rejects(held, numbers[1], -20008))
        self.net.deliver()
        self.assertEqual((self.a.rejected, self.c.rejected), ([], [(second, 1)]))
        self.assertTrue(self.b.remote.rejects(held, numbers[1], -20008), "twice is nonsense, and not ours")
        self.assertTrue(self.b.remote.rejects(self.b.seat(6), numbers[0], -20008), "as of somebody else")
        self.assertEqual(self.b.remote.nonsense, 2)
        self.assertTrue(self.b.remote.rejects(held, numbers[0], -20008))
        self.net.deliver()
        self.assertEqual(self.a.rejected, [(first, 1)])

    def test_an_agent_that_leaves(self) -> None:
        held = self.b.seat(5)
        chosen = self.ask(self.a, 4)
        self.b.seats.drop(held)
        self.net.deliver()
        self.assertEqual(self.a.rejected, [(chosen, 4)], "at once, not by the timer")
        self.ask(self.a, 5, chosen)
        self.assertEqual(self.a.rejected[1:], [(chosen, 5)], "and whoever still asks is told")
        self.net.present[HOST] = ()
        self.a.remote.tick(1.0)
        self.assertEqual(self.a.gone, [chosen])
        self.assertTrue(chosen.gone)

    def test_a_seat_that_is_full_or_down(self) -> None:
        held = self.b.seat(5)
        held.state = "down"
        chosen = self.ask(self.a, 1)
        self.assertEqual((told(held), self.a.rejected), ([], [(chosen, 1)]))

    def test_a_slow_agent_is_sent_away(self) -> None:
        held = self.b.seat(5)
        assert isinstance(held.voice, Voice)
        held.voice.closed.append("its buffer is full")
        chosen = self.ask(self.a, 1)
        self.assertEqual(self.a.rejected, [(chosen, 1)])
        self.assertEqual(held.voice.closed[1:], ["slow_reader"])

    def test_a_node_out_of_reach(self) -> None:
        self.b.seat(5)
        self.net.down.add(self.b.ident)
        chosen = self.ask(self.a, 1)
        self.assertEqual(self.a.rejected, [(chosen, 1)])

        class Nobody(Plain):
            def seal(self, node: bytes, message: bytes) -> bytes:
                raise Unavailable("no key")

        self.a.remote.sealer = Nobody(self.a.ident)
        self.assertFalse(chosen.voice.notify("proxy.connection", call(chosen, 2)))

    def pool(self, node: Node, seat: Seat) -> bool:
        """Let a node want one connection of an agent of another one."""
        token = {"secret": "cd" * 32, "serverListeningPort": node.data[0].port, "tls": False}
        wanted = seat.voice.notify("proxy.pool", {"subscription": seat.number, "tokens": [token]})
        self.net.deliver()
        return wanted

    def test_tokens_are_passed_on(self) -> None:
        held = self.b.seat(5, pool=3)
        (seat,) = self.a.remote.of(HOST)
        self.assertEqual(seat.pool, 3)
        self.assertTrue(self.pool(self.a, seat))
        ((method, params),) = told(held)
        self.assertEqual((method, params["subscription"]), ("proxy.pool", 5))
        self.assertEqual(params["tokens"][0]["serverListeningPort"], 7001)
        self.assertEqual(self.b.announced, [(DataAddress("", 7001),)], "before the agent is told")
        self.assertEqual(self.a.refused, [])

    def test_tokens_that_nobody_wants(self) -> None:
        """The agent is gone, its target is down, it does not dial ahead, it reads too slowly, its node is away."""
        held = self.b.seat(5, pool=2)
        (seat,) = self.a.remote.of(HOST)
        held.state = "down"
        self.pool(self.a, seat)
        held.state, held.pool = "up", 0
        self.pool(self.a, seat)
        held.pool = 2
        assert isinstance(held.voice, Voice)
        held.voice.closed.append("its buffer is full")
        self.pool(self.a, seat)
        self.b.seats.drop(held)
        self.pool(self.a, seat)
        self.net.down.add(self.b.ident)
        self.pool(self.a, seat)
        self.assertEqual((self.a.refused, self.a.rejected), ([seat] * 5, []))

    def test_who_has_claimed_a_connection(self) -> None:
        """The number that the agent has leads to its node, whoever else has a visitor of the same number."""
        held = self.b.seat(5, pool=2)
        first, second = (next(iter(node.remote.of(HOST))) for node in (self.a, self.c))
        self.pool(self.a, first)
        self.pool(self.c, second)
        ours, theirs = (ahead_numbers(node.ident) + 7 for node in (self.a, self.c))
        self.assertEqual(len({ours, theirs, 7}), 3)
        self.assertFalse(self.b.remote.rejects(held, 7, -20008), "a visitor of the holder itself")
        self.assertTrue(self.b.remote.rejects(held, theirs, -20008))
        self.net.deliver()
        self.assertEqual((self.a.rejected, self.c.rejected), ([], [(second, theirs)]))
        self.assertTrue(self.b.remote.rejects(held, ahead_numbers(bytes(32)), -20008), "nobody's")
        self.assertEqual((self.b.remote.nonsense, self.net.waiting), (1, []))

    def test_numbers(self) -> None:
        for ident in (bytes(32), b"\xff" * 32, bytes(range(32))):
            self.assertLessEqual(AHEAD_NUMBER, ahead_numbers(ident))
            self.assertLessEqual(ahead_numbers(ident) + 2**OWN_BITS - 1, LARGEST_ID)
        self.assertEqual(AHEAD_NUMBER + ((2**MARK_BITS - 1) << OWN_BITS) + 2**OWN_BITS - 1, LARGEST_ID)
        self.b.remote._last = AHEAD_NUMBER - 1
        held = self.b.seat(5)
        self.ask(self.a, 1)
        self.assertEqual(told(held)[0][1]["result"]["conn"], FIRST_NUMBER, "they begin anew")

    def test_two_nodes_with_one_mark(self) -> None:
        """The second gets no tokens: nobody could say whose visitor is turned away."""
        self.patch(remote, "mark", lambda node: 5)
        held = self.b.seat(5, pool=2)
        first, second = (next(iter(node.remote.of(HOST))) for node in (self.a, self.c))
        self.pool(self.a, first)
        self.pool(self.c, second)
        self.assertEqual((self.a.refused, self.c.refused, len(told(held))), ([], [second], 1))
        self.ask(self.c, 1, second)
        self.assertEqual(len(told(held)), 2, "its calls are passed on")
        self.patch(remote, "NODES", 1)
        self.ask(self.c, 2, second)
        self.assertEqual(self.b.remote.addresses, (DataAddress("", 7003),), "the first was silent for longer")
        self.pool(self.c, second)
        self.assertEqual((len(self.c.refused), len(told(held))), (1, 4), "the mark is the second one's now")

    def test_calls_are_forgotten(self) -> None:
        held = self.b.seat(5)
        self.ask(self.a, 1)
        number = told(held)[0][1]["result"]["conn"]
        self.b.remote.tick(CALL_LIFE + 1)
        self.assertTrue(self.b.remote.rejects(held, number, -20008))
        self.net.deliver()
        self.assertEqual(self.a.rejected, [])

    def test_only_what_agents_may_be_told(self) -> None:
        held = self.b.seat(5)
        for method, params in (("proxy.drain", {}), ("node.stop", {}), ("proxy.connection", {"result": 1})):
            message = {"tell": {"subscription": 5, "method": method, "params": params, "data": []}}
            self.b.remote.received(self.a.ident + json.dumps(message).encode())
        self.assertEqual((told(held), self.b.remote.nonsense), ([], 3))

    @given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: bytes(32) + text.encode())))
    def test_any_noise(self, noise: bytes) -> None:
        before = self.b.remote.nonsense
        self.b.remote.received(noise)
        self.assertLessEqual(self.b.remote.nonsense - before, 1)
        self.assertEqual(self.net.waiting, [])
