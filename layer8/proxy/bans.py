"""Who is kept out: networks that an operator banned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from layer8.core.address import Networks, canonical
from layer8.core.errors import ConfigError
from layer8.proxy.limits import SOURCES
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

    def __iter__(self) -> Iterator[Banned]:
        """Give the bans."""
        return (Banned(cidr, until) for cidr, until in self._until.items())

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
