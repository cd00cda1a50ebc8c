"""The hidden service of `layer8 demo`: a node of its own, with a page at a Unix socket, visited by its address."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from layer8.cli.demo_network import Hop, Network
from layer8.core.errors import Layer8Error, TimedOut, Unavailable

NAME: Final = "hello"
"""What the service is called in its node's configuration, and what the demo proposes as a petname."""
PORT: Final = 80
OPEN_TIME: Final = 20.0
"""Seconds until the DHT has the service's descriptor; it takes a thirtieth of that."""
STEP: Final = 0.02  # seconds between looks

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>layer8 demo</title>
<h1>This page is hidden</h1>
<p>It stands on no port of any machine: a node reads it from a Unix socket. That node has come to a relay that you had
chosen, and you have come there as well. You do not know where it is, and it does not know where you are. The address
that you have asked for is its key, so it was nobody else who has answered.</p>
<pre>{marker}</pre>
</html>
"""


@frozen
class HiddenFetch:
    """The hidden page, as the visitor got it; times in milliseconds.

    `hops` are all relays from the visitor to the service, as each of them says itself; that at `meeting` has joined the
    visitor's circuit to the service's.
    """

    url: str
    program: str
    status: int
    size: int
    right: bool
    first_ms: float
    total_ms: float
    meeting: int
    hops: tuple[Hop, ...]


@frozen
class HiddenFacts:
    """What the hidden service is, and how the fetch went."""

    address: str
    host: str
    published_ms: int
    points: tuple[str, ...]
    fetch: HiddenFetch | None


@define(eq=False)
class HiddenPage:
    """The service and its visit; `folder` is the state folder of its node."""

    network: Network
    folder: Path
    fetched: HiddenFetch | None = field(default=None, init=False)
    published_ms: int = field(default=0, init=False)
    _marker: str = field(factory=lambda: secrets.token_hex(32), init=False)
    _web: Any = field(default=None, init=False)
    _frame: Any = field(default=None, init=False)
    _node: Any = field(default=None, init=False)  # a layer8.node.service.Node

    async def open(self) -> None:
        """Start the page and its node, and wait until its descriptor is in the DHT."""
        from layer8.cli.demo_web import Page, site

        begun = time.monotonic()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        socket = self.folder / "page.sock"
        self._web = self.network.reactor.listenUNIX(str(socket), site(Page(self._body)), mode=0o600)
        said = {
            "socks.listen": [],
            "debug.listen": [],
            "control.listen": [],
            "rendezvous.enabled": False,
            f"service.{NAME}.ports": {PORT: f"unix:{socket}"},
        }
        self._frame, self._node = self.network.node(self.folder, said)
        await self._published()
        self.published_ms = int((time.monotonic() - begun) * 1000)

    @property
    def _hosting(self) -> Any:
        return self._node.hosts.get(NAME)

    async def _published(self) -> None:
        from twisted.internet.task import deferLater

        until = time.monotonic() + OPEN_TIME
        while self._hosting.state != "published":
            if time.monotonic() > until:
                raise TimedOut(f"the hidden service is not published after {OPEN_TIME:g} s: {self._hosting.state}")
            await deferLater(self.network.reactor, STEP)

    def _body(self) -> bytes:
        return _PAGE.format(marker=self._marker).encode()

    async def fetch(self) -> Layer8Error | None:
        """Fetch the page by its address; gives what went wrong."""
        from layer8.cli.demo_visit import visit_by_socks

        network, url = self.network, f"http://{self._hosting.address}/"
        try:
            seen = await visit_by_socks(network.reactor, shutil.which("curl"), self.folder, url, network.socks_port)
            meeting, hops = way(network, *(_joined(node) for node in (network.client, self._node)))
        except Layer8Error as error:
            return error
        digest = hashlib.sha256(self._body()).hexdigest()
        right = seen.status == 200 and seen.digest == digest
        self.fetched = HiddenFetch(
            url=url,
            program=seen.program,
            status=seen.status,
            size=seen.size,
            right=right,
            first_ms=seen.first_ms,
            total_ms=seen.total_ms,
            meeting=meeting,
            hops=hops,
        )
        if not right:
            return Unavailable(f"{url}: status {seen.status} and {seen.size} bytes, which are not the hidden page")
        if not all(hop.agrees for hop in hops):
            return Unavailable("the relays have seen another way to the hidden service than the one that was built")
        return None

    def facts(self) -> HiddenFacts:
        """Say what was found out."""
        points = self._hosting.service.points.values()
        return HiddenFacts(
            address=self._hosting.address.partition(".")[0],
            host=self._hosting.address,
            published_ms=self.published_ms,
            points=tuple(self.network.nodes[point.hop.identity][0] for point in points),
            fetch=self.fetched,
        )

    async def close(self) -> None:
        """Stop whatever has started."""
        from twisted.internet.defer import maybeDeferred

        if self._frame is not None and self._frame.process.running:
            await self._frame.process.stopService()
        if self._web is not None:
            await maybeDeferred(self._web.stopListening)


def _joined(node: Any) -> Any:
    """Give the circuit of a node that is joined to somebody's, the last one if there are several."""
    found = [one.origin for one in node.relay.pool.rows() if one.origin.joined]
    if not found:
        raise Unavailable("the hidden page came, but by no circuit that is joined to another one")
    return max(found, key=lambda one: one.since)


def way(network: Network, mine: Any, theirs: Any) -> tuple[int, tuple[Hop, ...]]:
    """Follow two circuits from both ends through the tables of their relays, to the one that has joined them."""
    (*first, near), (*last, far) = (
        network.stations(one.hops, [round(seconds * 1000, 3) for seconds in one.times], one.slot.circ, "")
        for one in (mine, theirs)
    )
    here, there = ([*network.views(one.slot.circ, [hop.identity for hop in one.hops])][-1] for one in (mine, theirs))
    joined = here is not None and there is not None and here.across is there
    meeting = evolve(near, after=far.before, agrees=joined and near.agrees and far.agrees)
    return len(first), (*first, meeting, *(evolve(hop, before=hop.after, after=hop.before) for hop in reversed(last)))
