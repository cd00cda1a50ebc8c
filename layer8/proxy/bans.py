"""Who is kept out: networks that an operator banned, and sources that guess secrets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from attrs import define, frozen

from layer8.core.address import Networks, canonical, source_key
from layer8.core.errors import ConfigError
from layer8.proxy.limits import FAIL_WINDOW, SOURCES, SubscriberLimits
from layer8.proxy.wire import Code, Denied


@frozen
class Banned:
    """A network that is kept out until a second since 1970."""

    cidr: str
    until: float


def network(text: str) -> str:
    """Give the one text of a network or address; raises `Denied`."""
    address, slash, prefix = text.partition("/")
    try:
        Networks.parse([text])
        return canonical(address) + (f"/{int(prefix)}" if slash else "")
    except ConfigError as error:
        raise Denied(Code.FORBIDDEN_BY_POLICY, str(error)) from error


class Bans:
    """Networks banned by hand; asked for every visitor and every agent, so it costs nothing while there are none."""

    def __init__(self, banned: Iterable[Banned] = ()) -> None:
        """Start with those that were written down."""
        self._until = {ban.cidr: ban.until for ban in banned}
        self._networks = Networks.parse(self._until)

    def __len__(self) -> int:
        """Count the bans."""
        return len(self._until)

    def __contains__(self, address: str) -> bool:
        """Say whether an address is kept out."""
        return bool(self._until) and address in self._networks

    def add(self, ban: Banned) -> None:
        """Keep a network out; `cidr` is what `network` gave. Raises `Denied` when there are too many."""
        if ban.cidr not in self._until and len(self._until) >= SOURCES:
            raise Denied(Code.NO_CAPACITY, f"{SOURCES} networks are banned already", limit="SOURCES")
        self._until[ban.cidr] = ban.until
        self._networks = Networks.parse(self._until)

    def remove(self, cidr: str) -> bool:
        """Let a network in again; False if it was not kept out."""
        if self._until.pop(cidr, None) is None:
            return False
        self._networks = Networks.parse(self._until)
        return True

    def ended(self, now: float) -> list[str]:
        """Take away the bans that are over, and give their networks."""
        over = [cidr for cidr, until in self._until.items() if until <= now]
        for cidr in over:
            del self._until[cidr]
        if over:
            self._networks = Networks.parse(self._until)
        return over


@define(eq=False)
class _Source:
    started: float  # of the window
    wrong: int = 0
    bans: int = 0
    until: float = 0.0


class Guesses:
    """Wrong secrets by source: so many within a minute and the source has to wait, twice as long each time.

    Times are monotonic seconds. A source that was good for as long as its last ban starts anew.
    """

    def __init__(self, limits: SubscriberLimits) -> None:
        """Start with no suspicion."""
        self.limits = limits
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def __len__(self) -> int:
        """Count the sources that are remembered."""
        return len(self._sources)

    def wait(self, address: str | None, now: float) -> float:
        """Give the seconds that an address has to wait before it may try again."""
        source = self._sources.get(source_key(address)) if address else None
        return 0.0 if source is None else max(0.0, source.until - now)

    def wrong(self, address: str | None, now: float) -> None:
        """Count a wrong secret; whoever comes by a Unix socket has no address and is not counted."""
        if not address:
            return
        key = source_key(address)
        source = self._sources.pop(key, None)
        if source is None or now > source.until + self._length(source) + FAIL_WINDOW:
            source = _Source(now, until=now)
        self._sources[key] = source
        if now - source.started > FAIL_WINDOW:
            source.started, source.wrong = now, 0
        source.wrong += 1
        if source.wrong >= self.limits.subscribe_fails:
            source.bans += 1
            source.until = now + self._length(source)
            source.started, source.wrong = source.until, 0
        if len(self._sources) > SOURCES:
            self._sources.popitem(last=False)

    def _length(self, source: _Source) -> float:
        """Give the seconds of a source's latest ban."""
        if not source.bans:
            return 0.0
        doubled = self.limits.ban_shortest * float(2 ** min(source.bans - 1, 16))
        return min(self.limits.ban_longest, doubled)
