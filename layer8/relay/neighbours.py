"""The links of a node: found, dialled once for everybody who waits, and handed out to circuits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from layer8.config.network import dialled
from layer8.core.errors import ConfigError, TimedOut, Unavailable
from layer8.net.tasks import TaskSet
from layer8.relay.carrier import Carriers, NoLink, kind
from layer8.relay.circuit import Circuits, Way
from layer8.relay.exit import NoWay
from layer8.relay.link import Link, Why
from layer8.relay.links import Links
from layer8.relay.route import At
from layer8.relay.securing import TLS
from layer8.relay.slots import Place
from layer8.relay.stream import ENDS
from layer8.relay.wire import Destroy, Reason

VIA: Final = "via:"
IN_USE: Final = "our identity is in use"
DIALS: Final = 3  # addresses of one node that are tried
DIALS_FOR_OTHERS: Final = 256  # nodes that are dialled at a time because a stranger says so

Done = Callable[[Way | Reason], None]


class _Why(Enum):
    """Who says where a node is."""

    NAMED = auto()
    SAID = auto()
    OTHERS = auto()


Checked = Callable[[str, int], Any]
"""`await checked(host, port)` gives the addresses that may be dialled for a stranger, or raises `NoWay`."""


@define(eq=False)
class Neighbours:
    """Hands out links, and takes what links tell. `circuits` is None on a node that does not relay.

    `learn` takes what a neighbour says of itself, `pin` whom the user has named by an address, `moved` hears that there
    are other links than before.
    """

    _tasks: TaskSet
    _checked: Checked
    circuits: Circuits | None = None
    learn: Callable[[bytes, bytes], None] = lambda peer, descriptor: None
    changed: Callable[[Link, str], None] = lambda link, state: None
    alert: Callable[[str, bytes | None], None] = lambda what, peer: None
    pin: Callable[[bytes, str], None] = lambda peer, address: None
    moved: Callable[[], None] = lambda: None
    links: Links = field(init=False)
    carriers: Carriers = field(init=False)
    _waiting: dict[tuple[bytes, _Why], list[Done]] = field(factory=dict, init=False)
    _log = Logger(namespace="layer8.relay.links")

    def reach(self, node: bytes, endpoints: Collection[str], done: Done) -> None:
        """Give a link to a node that the user has named, wherever it is."""
        self._reach((node, _Why.NAMED), endpoints, done)

    def reach_said(self, node: bytes, endpoints: Collection[str], done: Done) -> None:
        """Give a link for a circuit of our own to a node that is where it says itself: nowhere private."""
        self._reach((node, _Why.SAID), endpoints, done)

    def reach_for(self, node: bytes, endpoints: Collection[str], done: Done) -> None:
        """Give a link to a node for somebody else's circuit: what it says must not lead us anywhere private."""
        self._reach((node, _Why.OTHERS), endpoints, done)

    async def prove(self, node: bytes, endpoints: Collection[str]) -> bool:
        """Say whether a node is at one of its addresses; that it has a link with us does not say so."""
        there = self.links.get(node)
        for text in [one for one in endpoints if not one.startswith(VIA)][:DIALS]:
            try:
                found, host = await self._guarded(text)
                if there is not None and there.address.host == host:
                    return True
                await self.carriers.dial(found, node, again=True)
            except NoLink as error:
                if error.peer != node:
                    continue  # by Noise a second link is refused before anybody has said who he is
            except (NoWay, TimedOut, Unavailable, ConfigError):
                continue
            return True
        return False

    def meet(self, at: At, done: Callable[[bytes | Reason], None]) -> None:
        """Dial an address whose owner is unknown; `done` gets the id that it has shown."""
        self._tasks.start("dial", self._meet(at, done))

    async def _meet(self, at: At, done: Callable[[bytes | Reason], None]) -> None:
        found: bytes | Reason = Reason.UNREACHABLE
        try:
            link = await self.carriers.dial(f"tcp:{_quoted(at.host)}:{at.port}")
            if link.peer is not None:
                found = link.peer
                self.pin(found, f"{_quoted(at.host)}:{at.port}")
        except TimedOut:
            found = Reason.TIMEOUT
        except (NoLink, Unavailable, ConfigError):
            pass
        done(found)

    def _reach(self, what: tuple[bytes, _Why], endpoints: Collection[str], done: Done) -> None:
        node, why = what
        there = self.links.get(node)
        if there is not None:
            done(there)
        elif what in self._waiting:
            self._waiting[what].append(done)
        elif why is _Why.OTHERS and sum(one is why for _, one in self._waiting) >= DIALS_FOR_OTHERS:
            done(Reason.LIMIT)
        else:
            self._waiting[what] = [done]
            self._tasks.start("dial", self._dial(what, tuple(endpoints)))

    async def _dial(self, what: tuple[bytes, _Why], endpoints: tuple[str, ...]) -> None:
        node, why = what
        found: Link | Reason = Reason.UNREACHABLE
        try:
            for text in [one for one in endpoints if not one.startswith(VIA)][:DIALS]:
                try:
                    where = text if why is _Why.NAMED else (await self._guarded(text))[0]
                    found = await self.carriers.dial(where, node)
                    break
                except NoLink as error:
                    found = ENDS.get(error.reason, Reason.UNREACHABLE)
                    if error.why is Why.IN_USE:
                        self.alert(IN_USE, node)
                except TimedOut:
                    found = Reason.TIMEOUT
                except (NoWay, Unavailable, ConfigError):
                    found = Reason.UNREACHABLE
        except CancelledError:
            found = Reason.INTERNAL
            raise
        finally:
            for done in self._waiting.pop(what, []):
                done(found)

    async def _guarded(self, text: str) -> tuple[str, str]:
        """Give an endpoint of the one address that was looked up and may be dialled, and that; raises `NoWay`."""
        where = dialled(text)
        host: str = (await self._checked(where.words["host"], where.port))[0]
        return f"tcp:{_quoted(host)}:{where.port}:link={kind(text, TLS)}", host

    # What links tell: `layer8.relay.links.User`.

    def opened(self, link: Link, now: float) -> None:
        """Use the link, and take what the peer says of itself."""
        if link.peer is not None and link.descriptor:
            self.learn(link.peer, link.descriptor)
        self.changed(link, "open")
        self.moved()

    def on_create(self, link: Link, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        """Take a circuit that the peer begins, unless this node does not relay."""
        if self.circuits is None:
            slot.close(Destroy.PROTOCOL)
        else:
            self.circuits.on_create(link, slot, kind, handshake, now)

    def noticed(self, link: Link, notice: int, now: float) -> None:
        """Tell whoever looks after this node."""
        self.alert(
            {1: IN_USE, 2: "somebody tried our identity", 3: "clocks differ"}.get(notice, ""),
            link.peer,
        )

    def refused(self, link: Link, now: float) -> None:
        """Tell that a second node came with the identity of a neighbour."""
        self.alert("a neighbour's identity came twice", link.peer)

    def closed(self, link: Link, why: Why, now: float) -> None:
        """Forget the link."""
        if self.circuits is not None:
            self.circuits.lost(link)
        self.changed(link, "closed")
        self.moved()


def _quoted(address: str) -> str:
    return address.replace(":", "\\:")
