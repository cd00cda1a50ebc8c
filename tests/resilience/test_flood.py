"""A flood of knocks at a hidden service: who has worked gets in as fast as without it, whoever asks for nothing waits.

The flood comes to the access points themselves, as many knocks as an attacker can bring; everybody else's cells go
through the network in memory, whose links take a millisecond each way.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from attrs import define, field

from layer8.crypto.introduction import BLOB
from layer8.crypto.work import search
from layer8.rendezvous.client import NotMet, Step
from layer8.rendezvous.limits import INTRO_BURST, INTRO_RATE, KNOCKS_PER_CIRC
from layer8.rendezvous.price import LOOK, RUSH_LEAST
from layer8.rendezvous.service import WATCH
from layer8.rendezvous.wire import NO_WORK, SEED_HEAD, WORK_LABEL, Connect, Renzv, Work
from tests.rendezvous.net import HiddenCase, Told
from tests.resilience.rig import note

EFFORT: Final = 500
TICK: Final = 0.002  # seconds
EACH: Final = 1  # knocks of the flood in that time, at every point: twenty times what one passes on
SLOWER: Final = 1.5  # times as long as without a flood, at most


@define(eq=False)
class Stranger:
    """One of the flood's circuits at an access point: `layer8.core.roles.Asker`."""

    circuit: int
    neighbour: bytes | None = None
    binding: bytes = bytes(32)
    alive: bool = True
    answers: list[bytes] = field(factory=list)

    def answer(self, command: int, data: bytes) -> None:
        self.answers.append(data)

    def destroy(self) -> None:
        self.alive = False


class FloodCase(HiddenCase):
    def setUp(self) -> None:
        super().setUp()
        self.knocks = 0
        self.start()

    def raise_price(self, effort: int) -> None:
        """Let the service ask for work, as it does when introductions have been dropped."""
        self.service.pricing.dropped(0)
        self.service.pricing.handled(effort)
        self.net.settle(LOOK + 1)
        self.net.run(lambda: self.told.price is not None)

    def flood(self, work: dict[bytes, list[bytes]] | None = None) -> None:
        """Knock at every point from now on, with what solutions there are for each, then with none."""
        for access in self.access:
            for listener in list(access.listeners.values()):
                own = (work or {}).get(listener.auth_key, [])
                for _ in range(EACH):
                    self.knocks += 1
                    asker = Stranger(-1 - self.knocks // KNOCKS_PER_CIRC)
                    solved = own.pop() if own else NO_WORK
                    said = Connect(listener.auth_key, solved, os.urandom(BLOB)).encode()
                    access._knocks.pop(asker.circuit, None)
                    access.asked(asker, Renzv.RES_CONNECT, said, self.net.clock.seconds())
        self.net.clock.callLater(TICK, self.flood, work)

    def connect_time(self) -> float:
        """Meet the service: simulated milliseconds."""
        before = self.net.clock.seconds()
        self.meet()
        return (self.net.clock.seconds() - before) * 1000

    def refused(self) -> int:
        return sum(one.refused for access in self.access for one in access.listeners.values())

    def passed(self) -> int:
        return sum(one.passed for access in self.access for one in access.listeners.values())


class FloodTests(FloodCase):
    def test_without_work_most_find_the_points_busy(self) -> None:
        """The service itself never gets more than its points pass on; a visitor's chance is that of a flood's knock."""
        before = self.connect_time()
        begun, passed = self.net.clock.seconds(), self.passed()
        self.flood()
        self.net.settle(INTRO_BURST / (EACH / TICK - INTRO_RATE) + 1)
        steps = []
        for _ in range(20):
            with contextlib.suppress(NotMet):
                self.meet()
                steps.append(1)
        self.assertLess(len(steps), 10)
        seconds = self.net.clock.seconds() - begun
        self.assertLess(self.passed() - passed, 3 * (INTRO_BURST + INTRO_RATE * seconds) + 1)
        note(f"nobody floods: met in {before:.0f} ms; flood and no work asked for: {len(steps)} of 20 met")

    def test_who_has_worked_gets_in(self) -> None:
        """Shown by 5: a visitor who pays connects as fast as without the flood, none of which the service sees."""
        self.raise_price(EFFORT)
        before = self.connect_time()
        handled = dict(self.service.counted)
        self.flood()
        self.net.settle(10)
        times = sorted(self.connect_time() for _ in range(8))
        self.assertLess(times[4], SLOWER * before)
        self.assertEqual(self.service.counted, {**handled, "met": handled["met"] + len(times)})
        self.assertGreater(self.refused(), 1000)
        note(
            f"met in {before:.0f} ms with work {EFFORT}; under {self.refused()} refused knocks p50 {times[4]:.0f}, "
            f"max {times[-1]:.0f} ms (links of 1 ms; the search itself takes {EFFORT * 0.36e-3:.1f} ms more)"
        )

    def test_without_work_nobody_gets_in_who_does_none(self) -> None:
        self.raise_price(EFFORT)
        self.told = Told(self.told.points)
        self.flood()
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertEqual(caught.exception.step, Step.INTRODUCTION)

    def test_the_service_asks_for_work_by_itself(self) -> None:
        """A flood that points can just not pass on would leave it idle, and its visitors outside."""
        before = self.connect_time()
        self.flood()
        begun = self.net.clock.seconds()
        self.net.run(lambda: self.told.price is not None)
        waited = self.net.clock.seconds() - begun
        self.assertLess(waited, 2 * WATCH)
        self.net.settle(1)
        times = sorted(self.connect_time() for _ in range(8))
        self.assertLess(times[4], SLOWER * before)
        note(f"asks for work {waited:.0f} s after the flood began; then met in {times[4]:.0f} ms (p50)")

    def test_who_does_more_than_a_flood_that_works_gets_in(self) -> None:
        """Those who have done twice as much have a rate of their own at a point; a visitor finds out by himself."""
        self.raise_price(RUSH_LEAST)
        price = self.told.price
        assert price is not None
        before = self.connect_time()
        work = {
            point.auth_key: [self.solution(point.auth_key, price.seed, price.effort) for _ in range(1000)]
            for point in self.told.points
        }
        passed = self.passed()
        self.flood(work)
        self.net.settle(1)
        self.assertGreaterEqual(self.passed() - passed, 3 * INTRO_BURST)
        refused = self.refused()
        time = self.connect_time()
        self.assertLess(time, 2 * before)
        self.assertLess(self.refused() - refused, 3)  # most find room at the first point, with more work
        note(f"met in {before:.0f} ms; while a flood does as much as is asked for {time:.0f} ms, with twice that")

    def solution(self, auth_key: bytes, seed: bytes, effort: int) -> bytes:
        nonce = None
        while nonce is None:
            nonce = search(WORK_LABEL, auth_key, seed, effort, os.urandom(16), 1000)
        return Work(nonce, effort, seed[:SEED_HEAD]).encode()
