"""Going on for others: what our own client is asked for, what passes between two streams, and how many there are."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from layer8.relay import delegate
from layer8.relay.delegate import Delegates
from layer8.relay.limits import MAX_HOPS
from layer8.relay.route import Rand, Route
from layer8.relay.turn import Sink
from layer8.relay.wire import Address, Open, Opened, Proto, Reason
from tests.relay.exit_peers import Stream as Far
from tests.relay.slots import Ends, Told


@define(eq=False)
class Opens:
    """Our own client: it remembers what it was asked for."""

    asked: list[tuple[Open, Sink, dict[str, Any]]] = field(factory=list)
    given: list[Far] = field(factory=list)

    def open(self, target: Open, sink: Sink, **more: Any) -> Far:
        self.asked.append((target, sink, more))
        self.given.append(Far())
        return self.given[-1]


class DelegateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ends = Ends()
        self.opens = Opens()
        client: Any = self.opens
        self.delegates = Delegates(client)
        self.key = 1
        self.ends.exit.streams.asked = lambda stream, target: self.delegates.serve(stream, self.key)

    def ask(self, hops: int = 2) -> tuple[Any, Told]:
        heard = Told()
        stream = self.ends.client.streams.open(Open(Proto.TCP, "host.test", 80, hops), heard)
        self.ends.settle()
        return stream, heard

    def test_what_our_own_client_is_asked_for(self) -> None:
        """As many random hops, the same target, and a key that nobody else has: circuits are shared with no one."""
        self.ask(2)
        self.key = 2
        self.ask(3)
        targets, routes, keys = zip(
            *[(one[0], one[2]["route"], one[2]["key"]) for one in self.opens.asked], strict=True
        )
        self.assertEqual(set(targets), {Open(Proto.TCP, "host.test", 80)})
        self.assertEqual(routes, (Route((Rand(),) * 2), Route((Rand(),) * 3)))
        self.assertEqual(len({*keys, None}), 3)

    def test_what_passes(self) -> None:
        stream, heard = self.ask()
        ((_, sink, _),) = self.opens.asked
        (far,) = self.opens.given
        self.assertEqual(heard.words, [])
        sink.opened(Opened(Address("198.51.100.7"), 60))
        sink.data([b"one ", b"two"])
        self.ends.settle()
        self.assertEqual((heard.words, heard.all), (["opened"], b"one two"))
        stream.write(b"back")
        self.ends.settle()
        self.assertEqual(b"".join(far.pieces), b"back")
        sink.closed(Reason.RESET)
        self.ends.settle()
        self.assertEqual((heard.heard[-1], self.delegates.count), (("closed", Reason.RESET), 0))

    def test_as_many_as_may_be(self) -> None:
        self.patch(delegate, "DELEGATED", 3)
        streams = [self.ask() for _ in range(4)]
        self.assertEqual([heard.heard for _, heard in streams], [[], [], [], [("closed", Reason.LIMIT)]])
        streams[0][0].close(Reason.RESET)
        self.ends.settle()
        self.ask()
        self.assertEqual((self.delegates.count, len(self.opens.asked)), (3, 4))

    def test_more_hops_than_a_circuit_has(self) -> None:
        _, heard = self.ask(MAX_HOPS + 1)
        self.assertEqual((heard.heard, self.opens.asked), ([("closed", Reason.PROTOCOL)], []))
        self.ask(MAX_HOPS)
        self.assertEqual(len(self.opens.asked), 1)
