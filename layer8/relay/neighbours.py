"""The links of a node: found, dialled once for everybody who waits, and handed out to circuits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from layer8.config.network import dialled
from layer8.core.errors import ConfigError, TimedOut, Unavailable
from layer8.net.tasks import TaskSet
from layer8.relay.carrier import Carriers, NoLink
from layer8.relay.circuit import Circuits, Way
from layer8.relay.exit import NoWay
from layer8.relay.link import Link, Why
from layer8.relay.links import Links
from layer8.relay.route import At
from layer8.relay.slots import Place
from layer8.relay.stream import ENDS
from layer8.relay.wire import Destroy, Reason

VIA: Final = "via:"
DIALS: Final = 3  # addresses of one node that are tried

Done = Callable[[Way | Reason], None]
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
    _waiting: dict[tuple[bytes, bool], list[Done]] = field(factory=dict, init=False)
    _log = Logger(namespace="layer8.relay.links")

    def reach(self, node: bytes, endpoints: Collection[str], done: Done) -> None:
        """Give a link to a node for a circuit of our own."""
        self._reach(node, endpoints, done, ours=True)

    def reach_for(self, node: bytes, endpoints: Collection[str], done: Done) -> None:
        """Give a link to a node for somebody else's circuit: what it says must not lead us anywhere private."""
        self._reach(node, endpoints, done, ours=False)

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

    def _reach(self, node: bytes, endpoints: Collection[str], done: Done, *, ours: bool) -> None:
        there = self.links.get(node)
        if there is not None:
            done(there)
            return
        waiting = self._waiting.setdefault((node, ours), [])
        waiting.append(done)
        if len(waiting) == 1:
            self._tasks.start("dial", self._dial(node, tuple(endpoints), ours=ours))

    async def _dial(self, node: bytes, endpoints: tuple[str, ...], *, ours: bool) -> None:
        found: Link | Reason = Reason.UNREACHABLE
        try:
            for text in [one for one in endpoints if not one.startswith(VIA)][:DIALS]:
                try:
                    found = await self._link(text, node, ours=ours)
                    break
                except NoLink as error:
                    found = ENDS.get(error.reason, Reason.UNREACHABLE)
                except TimedOut:
                    found = Reason.TIMEOUT
                except (NoWay, Unavailable, ConfigError):
                    found = Reason.UNREACHABLE
        except CancelledError:
            found = Reason.INTERNAL
            raise
        finally:
            for done in self._waiting.pop((node, ours), []):
                done(found)

    async def _link(self, text: str, node: bytes, *, ours: bool) -> Link:
        where = dialled(text)
        host, port = where.words["host"], where.port
        if not ours:
            address = (await self._checked(host, port))[0]
            if address != host:
                text = text.replace(f":{host}:", f":{_quoted(address)}:", 1)
        link: Link = await self.carriers.dial(text, node)
        return link

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
            {1: "our identity is in use", 2: "somebody tried our identity", 3: "clocks differ"}.get(notice, ""),
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
