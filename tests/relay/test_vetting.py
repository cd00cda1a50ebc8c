"""Networks with rules: nodes are tried before they carry anything."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from layer8.config.network import RelayConfig
from layer8.core.network import Network as Name
from layer8.relay.client import Need, NoPath
from layer8.relay.database import VETTED
from layer8.relay.filling import FEW, VET_EVERY, Filling
from tests.relay.pools import PoolCase


class VettingTests(PoolCase):
    """G19: a node is used after three good circuits through it, which carry nothing of the user's."""

    def setUp(self) -> None:
        super().setUp()
        self.database.network = Name("main")
        self.config = RelayConfig()
        none: Any = None
        self.filling = Filling(
            self.net.clock,
            lambda: self.config,
            self.me.identity,
            self.database,
            self.client,
            none,
            none,
            self.net.chance,
            self.wall,
            self.net.clock.seconds,
        )
        self.pool.start()

    def vet(self) -> None:
        for peer in list(self.database):
            self.database.learn(peer.descriptor, b"t" * 32, self.wall())  # nobody is known from one source alone
        done: list[Any] = []
        Deferred.fromCoroutine(self.filling._vet()).addBoth(done.append)
        self.fill(done)
        self.assertEqual(done, [None])

    def test_whoever_is_new_is_tried_before_anybody_uses_it(self) -> None:
        self.small()
        with self.assertRaises(NoPath):
            self.get(Need(port=80))
        self.vet()
        self.assertTrue(all(peer.good >= VETTED and not peer.bad for peer in self.database))
        self.assertEqual(self.pool.rows(), [])
        self.assertEqual(len(self.get(Need(port=80)).path), 3)

    def test_who_does_not_answer_is_not_used(self) -> None:
        self.small()
        dead = self.dead("dead", leaving=True)
        for _ in range(30):
            self.vet()
            self.net.settle(2)
        peer = self.database.get(dead.identity)
        assert peer is not None
        self.assertTrue(peer.bad and not self.database.vetted(peer))
        self.assertEqual(sum(1 for one in self.database if self.database.vetted(one)), 6)
        for key in range(12):
            self.assertNotIn(dead.identity, [one.identity for one in self.get(Need(key=key, port=80)).path])

    def test_where_many_are_known_one_is_tried_a_minute(self) -> None:
        for number in range(FEW + 3):
            self.relay(f"relay {number}")
        self.vet()
        left = sum(not self.database.vetted(peer) for peer in self.database)
        self.assertTrue(0 < left <= 3, left)
        built = self.pool.built
        for _ in range(10):
            self.vet()
        self.assertEqual(self.pool.built, built)
        self.net.settle(VET_EVERY)
        self.vet()
        self.assertEqual(self.pool.built, built + 1)
