"""All links of a node: one for each neighbour, and not too many of one network.

The same identity twice: the old link is probed. If it answers, the newcomer hears IN_USE and the holder TRIED; if not,
the newcomer takes its place. Where both have dialled each other at once the link that the smaller id dialled stays.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from layer8.relay.limits import LINK_BURST, LINK_RATE, LINKS, LINKS_PER_PREFIX, T_LINK
from layer8.relay.link import Link, State, Why
from layer8.relay.slots import Place
from layer8.relay.wire import Notice

PREFIX_4: Final = 24  # bits
PREFIX_6: Final = 48
COMERS: Final = 4096  # networks whose connections are counted


class User(Protocol):
    """Who uses a node's links; see `layer8.relay.link.Owner`. Only links that were open are told."""

    def opened(self, link: Link, now: float) -> None:
        """Use the link."""

    def on_create(self, link: Link, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        """Take a circuit that the peer begins: set `slot.taker`, or close the slot."""

    def noticed(self, link: Link, notice: int, now: float) -> None:
        """Hear what the peer says of the link (`Notice`)."""

    def refused(self, link: Link, now: float) -> None:
        """Hear that somebody else has come with the identity of this link, which is alive."""

    def closed(self, link: Link, why: Why, now: float) -> None:
        """Forget the link; its circuits have been told."""


class Links:
    """The owner of every link of the node `me`; `prefixes` counts them by network, `most` is LINKS or less."""

    def __init__(self, me: bytes, user: User, *, prefixes: bool = True, most: int = LINKS) -> None:
        """Start with none."""
        self._me = me
        self._user = user
        self._prefixes = prefixes
        self._most = most
        self._all: dict[Link, str] = {}
        self._by_peer: dict[bytes, Link] = {}
        self._by_prefix: Counter[str] = Counter()
        self._probing: set[bytes] = set()
        self._comers: dict[str, tuple[float, float]] = {}  # what a network has left, and when; who came last is last
        self._draining = False

    def __len__(self) -> int:
        """Count the links, those on their way included."""
        return len(self._all)

    def __iter__(self) -> Iterator[Link]:
        """Give the links that are open."""
        return iter([link for link in self._all if link.state in (State.OPEN, State.DRAINING)])

    def get(self, peer: bytes) -> Link | None:
        """Give the open link with a neighbour."""
        link = self._by_peer.get(peer)
        return link if link is not None and link.state is State.OPEN else None

    def admits(self, host: str) -> bool:
        """Say whether there may be one more link with this address."""
        if self._draining or len(self._all) >= self._most:
            return False
        return not self._prefixes or self._by_prefix[prefix(host)] < LINKS_PER_PREFIX

    def welcomes(self, host: str, now: float) -> bool:
        """Say whether somebody may come from this address: not too many have lately, who stay or not."""
        if not self._prefixes:
            return True
        key = prefix(host)
        left, at = self._comers.pop(key, (float(LINK_BURST), now))
        left = min(left + (now - at) * LINK_RATE, float(LINK_BURST))
        self._comers[key] = (left - 1 if left >= 1 else left), now
        while len(self._comers) > COMERS:
            del self._comers[next(iter(self._comers))]
        return left >= 1

    def add(self, link: Link) -> None:
        """Count a link that has just been made."""
        key = prefix(link.address.host)
        self._all[link] = key
        self._by_prefix[key] += 1

    def drain(self, now: float) -> None:
        """Take no new links and no new circuits; those that are there may end in peace."""
        self._draining = True
        for link in list(self._all):
            link.drain(now)

    def resume(self) -> None:
        """Take new links again; those that have drained are dialled anew."""
        self._draining = False

    def close(self, why: Why, now: float) -> None:
        """End all links."""
        self._draining = True
        for link in list(self._all):
            link.close(why, now)

    # The owner of a link.

    def met(self, link: Link, now: float) -> None:
        """Decide on a peer that has said HELLO."""
        peer = link.peer
        if self._draining:
            link.close(Why.DOWN, now)
        elif peer is None:
            link.admit(now)
        elif peer == self._me:
            link.close(Why.IDENTITY, now)
        elif peer in self._probing:
            link.close(Why.IN_USE, now)
        elif (old := self.get(peer)) is None:
            link.admit(now)
        elif old.dialled != link.dialled and now - old.opened_at < T_LINK:
            smaller = self._me < peer
            if old.dialled == smaller:
                link.close(Why.IN_USE, now)
            else:
                old.close(Why.REPLACED, now)
                link.admit(now)
        else:
            self._probe(peer, old, link, now)

    def opened(self, link: Link, now: float) -> None:
        """Take a link into the table."""
        if link.peer is not None:
            self._by_peer[link.peer] = link
        self._user.opened(link, now)

    def on_create(self, link: Link, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        """Pass on."""
        self._user.on_create(link, slot, kind, handshake, now)

    def noticed(self, link: Link, notice: int, now: float) -> None:
        """Pass on."""
        self._user.noticed(link, notice, now)

    def closed(self, link: Link, why: Why, now: float) -> None:
        """Take a link out of the table."""
        key = self._all.pop(link, None)
        if key is not None:
            self._by_prefix[key] -= 1
            if not self._by_prefix[key]:
                del self._by_prefix[key]
        if link.peer is not None and self._by_peer.get(link.peer) is link:
            del self._by_peer[link.peer]
        if link.was_open:
            self._user.closed(link, why, now)

    def _probe(self, peer: bytes, old: Link, newcomer: Link, now: float) -> None:
        self._probing.add(peer)

        def answered(alive: bool, then: float) -> None:
            self._probing.discard(peer)
            if newcomer.ended:
                return
            if alive:
                newcomer.notice(Notice.IN_USE)
                newcomer.close(Why.IN_USE, then)
                old.notice(Notice.TRIED)
                self._user.refused(old, then)
            else:
                old.close(Why.REPLACED, then, abort=True)
                newcomer.admit(then)

        old.probe(now, answered)


def prefix(host: str) -> str:
    """Give the network that links are counted under: the /24, or the /48 of IPv6; what is no address is its own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    bits = PREFIX_4 if address.version == 4 else PREFIX_6
    return str(ipaddress.ip_network((address, bits), strict=False))


def doubt(link: Link, now: float, hangs: Callable[[], None]) -> None:
    """Ask a neighbour whether it is still there; if it says nothing at all, call `hangs` and close the link."""
    before = link.cells_in

    def answered(alive: bool, now: float) -> None:
        if not alive and link.cells_in == before and not link.ended:
            hangs()
            link.close(Why.TIMEOUT, now, abort=True)

    link.probe(now, answered)
