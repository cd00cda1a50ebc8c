"""Who gets the next visitor: live subscriptions by host, and the choice among them.

Lowest priority number first, then the least (open + calling + 1) / weight, then whoever was asked longest ago.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

from attrs import define, field

from layer8.crypto.proof import same
from layer8.proxy.wire import Up


class Voice(Protocol):
    """What the server may do with an agent's control connection."""

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        """Send a notification; False, and nothing sent, when the write buffer is full."""

    def close(self, reason: str) -> None:
        """End the connection; `reason` is for the log."""


@define(eq=False)
class Seat:
    """One live subscription. `key` is the hash that its agent proved; `since` is monotonic seconds.

    `open` and `calling` count the visitors joined to it and those that wait for its dial-back: whoever has the
    visitors keeps them through `Seats`. A `remote` one is held by another node (`layer8.proxy.remote`). `pool` is how
    many connections its agent would dial ahead.
    """

    number: int
    host: str
    voice: Voice = field(repr=False)
    instance: str
    address: str | None
    key: bytes = field(repr=False)
    resume: str = field(repr=False)
    weight: int
    priority: int
    max_conns: int
    since: float
    legacy: bool = False
    remote: bool = False
    pool: int = 0
    state: Up = "up"
    open: int = 0
    calling: int = 0
    gone: bool = False
    turn: int = 0

    def free(self) -> bool:
        """Say whether it may be asked to carry one more visitor."""
        if self.state != "up" or self.gone:
            return False
        return not self.max_conns or self.open + self.calling < self.max_conns


class Seats:
    """All live subscriptions of this node; `gone` is told of each that ends, once, with what to do with its visitors.

    `gone(seat, kill)`: visitors that still wait for a dial-back go to the next subscriber; with `kill` the joined ones
    are closed too, else they go on.
    """

    def __init__(self, gone: Callable[[Seat, bool], None]) -> None:
        """Start with nobody."""
        self._gone = gone
        self.elsewhere: Callable[[str], Collection[Seat]] | None = None
        """Gives the subscriptions that other nodes hold for a registered name."""
        self.changed: Callable[[Seat], None] | None = None
        """Told of one that is new, or whose agent has said how its target is."""
        self._by_number: dict[int, Seat] = {}
        self._by_host: dict[str, list[Seat]] = {}
        self._turn = 0

    def __len__(self) -> int:
        """Count the subscriptions."""
        return len(self._by_number)

    def __iter__(self) -> Iterator[Seat]:
        """Give all of them, oldest first."""
        return iter(self._by_number.values())

    def add(self, seat: Seat) -> None:
        """Let a subscription take visitors."""
        self._by_number[seat.number] = seat
        self._by_host.setdefault(seat.host, []).append(seat)
        if self.changed is not None:
            self.changed(seat)

    def by_number(self, number: int) -> Seat | None:
        """Find one that is live."""
        return self._by_number.get(number)

    def of(self, host: str) -> Collection[Seat]:
        """Give the subscriptions of a registered name."""
        return self._by_host.get(host, ())

    def best(self, host: str, tried: Collection[Seat] = ()) -> Seat | None:
        """Choose for one visitor of a registered name among those not tried yet; None if nobody is left.

        Of the same priority, one of ours comes before any that another node holds.
        """
        seats: Collection[Seat] = self._by_host.get(host, ())
        if self.elsewhere is not None and (away := self.elsewhere(host)):
            seats = [*seats, *away]
        chosen: Seat | None = None
        rank = (0, False, 0.0, 0)
        for seat in seats:
            if not seat.free() or seat in tried:
                continue
            this = (seat.priority, seat.remote, (seat.open + seat.calling + 1) / seat.weight, seat.turn)
            if chosen is None or this < rank:
                chosen, rank = seat, this
        if chosen is not None:
            self._turn += 1
            chosen.turn = self._turn
        return chosen

    def called(self, seat: Seat) -> None:
        """Count a visitor that waits for the dial-back."""
        seat.calling += 1

    def joined(self, seat: Seat) -> None:
        """Count a called visitor as carried."""
        seat.calling -= 1
        seat.open += 1

    def uncalled(self, seat: Seat) -> None:
        """Count a called visitor as gone or given to another."""
        seat.calling -= 1
        self._leave_if_idle(seat)

    def left(self, seat: Seat) -> None:
        """Count a carried visitor as gone."""
        seat.open -= 1
        self._leave_if_idle(seat)

    def turned(self, seat: Seat, state: Up) -> None:
        """Take what an agent says of its target; a draining subscription never comes back and leaves when idle."""
        if seat.state != "drain":
            seat.state = state
            if self.changed is not None:
                self.changed(seat)
            self._leave_if_idle(seat)

    def drop(self, seat: Seat, kill: bool = False) -> None:
        """End a subscription; ending it twice does nothing."""
        if self._by_number.pop(seat.number, None) is None:
            return
        seat.gone = True
        seats = self._by_host[seat.host]
        seats.remove(seat)
        if not seats:
            del self._by_host[seat.host]
        self._gone(seat, kill)

    def drop_host(self, host: str, kill: bool = False) -> int:
        """End all subscriptions of a name that is not registered any more, and send their agents away to learn it."""
        return self._send_away(list(self.of(host)), kill)

    def keep_keys(self, host: str, keys: Collection[bytes]) -> int:
        """End the subscriptions of a name that were proven with none of `keys`; the number of them."""
        return self._send_away([seat for seat in self.of(host) if not any(same(seat.key, key) for key in keys)], False)

    def _send_away(self, seats: list[Seat], kill: bool) -> int:
        # There is no message that ends one subscription; an agent that comes back is told by its `proxy.subscribe`.
        for seat in seats:
            self.drop(seat, kill)
            seat.voice.close("revoked")
        return len(seats)

    def _leave_if_idle(self, seat: Seat) -> None:
        if seat.state == "drain" and not seat.open and not seat.calling:
            self.drop(seat)
