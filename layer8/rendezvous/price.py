"""What knocking costs: the work that a service asks for, and who has done it.

`Seeds` are at both ends of RES_TUNE, so that an access point drops what the service would drop. `Pricing` is how a
service finds the effort: those with most work are answered first, so whoever is in a hurry does more, and the effort
that is suggested follows what those had done who were answered::

 every LOOK:  one was dropped, or waits, who had done as much as was suggested --> what the answered did on average
              next to nobody waits                                             --> two thirds of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from attrs import define, field

from layer8.crypto.work import EFFORT_MOST, SEED, check
from layer8.rendezvous.limits import SEED_LIFE, SEEN_NONCES
from layer8.rendezvous.wire import SEED_HEAD, WORK_LABEL, Work

LOOK: Final = 300.0  # seconds
FEW: Final = 125  # introductions, a quarter of a second of work
RUSH_LEAST: Final = 64  # what is asked for first when more come than may be passed on
CHANGE: Final = 0.15  # of the effort, below which clients need not hear of it
SEEDS: Final = 2  # the present one and the one before it


@define(eq=False)
class Seed:
    """A seed of work, and the solutions for it that were brought."""

    seed: bytes = field(repr=False)
    until: float
    nonces: set[bytes] = field(factory=set, init=False, repr=False)


class Kept(Protocol):
    """A seed as it was before a restart."""

    @property
    def seed(self) -> bytes:
        """Give it."""

    @property
    def until(self) -> float:
        """Give the second since 1970 until which it is good."""

    @property
    def nonces(self) -> Iterable[bytes]:
        """Give the solutions for it that were brought."""


@define(eq=False)
class Seeds:
    """The seeds that solutions are taken for, each of these once; `effort` is what is asked for, 0 for nothing."""

    effort: int = field(default=0, init=False)
    _seeds: list[Seed] = field(factory=list, init=False, repr=False)  # the newest first

    def tune(self, seed: bytes, effort: int, now: float) -> None:
        """Ask for so much work with this seed; solutions for the one before are still good for a while."""
        self.effort = effort
        if not self._seeds or self._seeds[0].seed != seed:
            self._seeds = [Seed(seed, now + 2 * SEED_LIFE), *self._seeds][:SEEDS]

    def rows(self, apart: float) -> list[tuple[bytes, float]]:
        """Give each seed with the second until which it is good, on a clock that is so far ahead."""
        return [(one.seed, one.until + apart) for one in self._seeds]

    def restore(self, effort: int, seeds: Iterable[Kept], now: float, apart: float) -> None:
        """Ask for what was asked for before a restart; what was good once is not good again."""
        self.effort = effort
        for kept in seeds:
            if kept.until - apart > now:
                seed = Seed(kept.seed, kept.until - apart)
                seed.nonces.update(kept.nonces)
                self._seeds.append(seed)

    def solution(self, text: bytes) -> tuple[bytes, bytes] | None:
        """Give seed and nonce of work that was taken; None for none."""
        work = Work.read(text)
        seed = next((one for one in self._seeds if work is not None and one.seed[:SEED_HEAD] == work.head), None)
        return (seed.seed, work.nonce) if work is not None and seed is not None else None

    def paid(self, auth_key: bytes, text: bytes, now: float) -> int | None:
        """Give the effort of a knock, 0 where none is asked for, None if it is less; a solution is good once."""
        if not self.effort:
            return 0
        work = Work.read(text)
        if work is None or work.effort < self.effort:
            return None
        return work.effort if self.solved(auth_key, work, now) else None

    def solved(self, auth_key: bytes, work: Work, now: float) -> bool:
        """Tell whether this is a solution, and a new one."""
        seed = next((one for one in self._seeds if one.seed[:SEED_HEAD] == work.head and now < one.until), None)
        if seed is None or work.nonce in seed.nonces or len(seed.nonces) >= SEEN_NONCES:
            return False
        if not check(WORK_LABEL, auth_key, seed.seed, work.effort, work.nonce):
            return False
        seed.nonces.add(work.nonce)
        return True


@define(eq=False)
class Pricing:
    """The price that a service asks; `random` gives bytes."""

    _random: Callable[[int], bytes]
    most: int = EFFORT_MOST
    seeds: Seeds = field(factory=Seeds, init=False)
    seed: bytes = field(init=False, repr=False)
    effort: int = field(default=0, init=False)
    _told: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)
    _handled: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)
    _short: bool = field(default=False, init=False)  # one was dropped who had done as much as was suggested

    def __attrs_post_init__(self) -> None:
        """Begin with a seed, and ask for nothing."""
        self.seed = self._random(SEED)

    def restore(self, effort: int, seeds: Sequence[Kept], now: float, wall: float) -> None:
        """Go on as before a restart, if a seed of then is good still."""
        self.seeds.restore(effort, seeds, now, wall - now)
        rows = self.seeds.rows(0.0)
        if rows:
            self.seed, until = rows[0]
            self._since = until - 2 * SEED_LIFE
            self.effort = self._told = effort
        else:
            self.seeds.effort = 0

    def rush(self, now: float) -> bool:
        """Ask for twice as much: more come than may be passed on. Say whether that is anything new."""
        before = self.effort
        self.effort = min(max(2 * before, RUSH_LEAST), self.most)
        if self.effort == before:
            return False
        self._told = self.effort
        self.seeds.tune(self.seed, self.effort, now)
        return True

    def worth(self, auth_key: bytes, text: bytes, now: float) -> int | None:
        """Give the effort of a knock; None for one that lies about it or brings less than is asked for."""
        work = Work.read(text)
        if work is None:
            return None if self.seeds.effort else 0
        if work.effort < self.seeds.effort or not self.seeds.solved(auth_key, work, now):
            return None
        return work.effort

    def handled(self, effort: int) -> None:
        """Count one that is answered."""
        self._handled += 1
        self._total += effort

    def dropped(self, effort: int) -> None:
        """Count one for whom there was no room or no time."""
        self._short |= effort >= self.effort

    def look(self, waiting: Sequence[int], now: float) -> bool:
        """Take stock, every LOOK; `waiting` are the efforts of those who wait. Say whether clients must hear of it."""
        if self._short or (len(waiting) >= FEW and any(effort >= self.effort for effort in waiting)):
            self.effort = min(max(self.effort + 1, self._total // max(self._handled, 1)), self.most)
        elif len(waiting) < FEW:
            self.effort = self.effort * 2 // 3
        self._handled = self._total = 0
        self._short = False
        fresh = now - self._since >= SEED_LIFE
        if fresh:
            self._since = now
            self.seed = self._random(SEED)
        if not (fresh and self.effort) and abs(self.effort - self._told) <= CHANGE * self._told:
            return False
        self._told = self.effort
        self.seeds.tune(self.seed, self.effort, now)
        return True
