"""The beacon: what is said and believed, and two nodes that find each other with nobody's help."""

from __future__ import annotations

import subprocess
import sys
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.core.datagram import Peer, SendTo
from layer8.core.session import Tell
from layer8.crypto.keys import NodeKey
from layer8.relay.beacon import AGAIN, AGE, CHECKS, GROUP, HEARD, PORT, Beacon, Nearby

MARK = b"network1"
FROM: Peer = ("192.168.1.7", PORT)
WALL = 1_700_000_000.0


class Ends(SynchronousTestCase):
    def setUp(self) -> None:
        self.wall = WALL
        self.chance = Random(1)
        self.mine, self.theirs = NodeKey.from_seed(bytes(32)), NodeKey.from_seed(bytes([1]) * 32)
        self.beacon = self.make(self.mine)

    def make(self, key: NodeKey, mark: bytes = MARK, port: int = 9000) -> Beacon:
        return Beacon(key, mark, lambda: port, lambda: self.wall, self.chance.uniform)

    def said(self, beacon: Beacon, now: float = 0.0) -> bytes:
        beacon.wake(now)
        (effect,) = beacon.effects()
        assert isinstance(effect, SendTo)
        self.assertEqual(effect.peer, (GROUP, PORT))
        return effect.data

    def heard(self, data: bytes, peer: Peer = FROM, now: float = 0.0) -> list[object]:
        self.beacon.received(data, peer, now)
        return [effect.what for effect in self.beacon.effects() if isinstance(effect, Tell)]


class SayTests(Ends):
    def test_now_and_every_half_minute(self) -> None:
        self.assertEqual(self.beacon.deadline(), 0.0)
        self.assertEqual(len(self.said(self.beacon)), 120)
        due = self.beacon.deadline()
        assert due is not None
        self.assertTrue(25 <= due <= 35)
        self.beacon.wake(due - 0.1)
        self.assertEqual(self.beacon.effects(), [])
        self.said(self.beacon, due)

    def test_nothing_while_no_link_is_taken(self) -> None:
        silent = self.make(self.mine, port=0)
        silent.wake(0.0)
        self.assertEqual(silent.effects(), [])

    def test_a_newcomer_is_answered_soon(self) -> None:
        self.said(self.beacon)
        self.heard(self.said(self.make(self.theirs)), now=3.0)
        due = self.beacon.deadline()
        assert due is not None
        self.assertTrue(3.2 <= due <= 4.0)


class HearTests(Ends):
    def test_a_node_and_where_it_is(self) -> None:
        data = self.said(self.make(self.theirs, port=9123))
        self.assertEqual(self.heard(data), [Nearby(self.theirs.node_id, "192.168.1.7", 9123)])
        self.assertEqual(self.heard(data, now=AGAIN - 1), [])
        self.assertEqual(len(self.heard(data, now=AGAIN)), 1)

    def test_what_is_not_believed(self) -> None:
        good = self.said(self.make(self.theirs))
        for data, peer in (
            (self.said(self.make(self.theirs, b"network2")), FROM),
            (self.said(self.make(self.mine)), FROM),
            (good[:-1], FROM),
            (good + b"x", FROM),
            (good, ("198.18.0.1x", 1)),
            (good, ("8.8.8.8", PORT)),
            *((good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], FROM) for at in range(len(good))),
        ):
            self.assertEqual(self.make(self.mine).effects(), [])
            self.assertEqual(self.heard(data, peer, now=1000.0 + id(data) % 997), [], (data, peer))
        self.wall += AGE + 1
        self.assertEqual(self.heard(good), [])

    def test_limits(self) -> None:
        told = 0
        for _ in range(CHECKS * 2):
            told += len(self.heard(self.said(self.make(NodeKey.make()))))
        self.assertEqual(told, CHECKS)
        for number in range(HEARD + 10):
            self.heard(self.said(self.make(NodeKey.make())), now=2.0 + number)
        self.assertEqual(len(self.beacon._heard), HEARD)

    @given(st.binary(max_size=200))
    def test_noise(self, data: bytes) -> None:
        self.assertEqual(self.heard(data), [])
        self.assertEqual(self.heard(b"l8lan\x01" + MARK + data), [])


class LanTests(SynchronousTestCase):
    """Two nodes in a network namespace of their own, with nothing in it but multicast."""

    def test_two_nodes_find_each_other(self) -> None:
        inside = 'ip link set lo up multicast on && ip route add 239.0.0.0/8 dev lo && exec "$@"'
        words = ["unshare", "--net", "--map-root-user", "sh", "-c", inside, "sh", sys.executable, "-m", __name__]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        if "unshare" in done.stderr:
            raise SkipTest(f"needs network namespaces (util-linux, iproute2): {done.stderr.strip()}")
        self.assertEqual((done.stdout, done.returncode), ("each has a link to the other\n", 0), done.stderr)


def _find_each_other() -> None:
    from twisted.internet import reactor as wheel
    from twisted.internet.task import LoopingCall

    from layer8.config.network import RelayConfig
    from layer8.control.service import wall_clock
    from layer8.relay.service import Relay

    reactor: Any = wheel
    config = RelayConfig(network="test-lan", listen=("tcp:0:interface=127.0.0.1",), lan=True)
    nodes = [Relay(reactor, NodeKey.make(), config, wall=wall_clock) for _ in range(2)]

    def look() -> None:
        first, second = nodes
        if first.links.get(second.key.node_id) and second.database.get(first.key.node_id):
            print("each has a link to the other")
            reactor.stop()

    for node in nodes:
        node.startService()
    LoopingCall(look).start(0.1, now=False)
    reactor.callLater(40, reactor.stop)
    reactor.run()


if __name__ == "__main__":
    _find_each_other()
