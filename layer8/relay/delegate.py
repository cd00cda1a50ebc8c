"""Going on through peers of ours for somebody else's stream, where both sides want it (`relay.delegate`).

```
 client --circuit--> this node ======= stream <-> stream =======> a circuit of our own, N hops ----> target
```
The client learns nothing of our peers, and they nothing of it. We see the target: it is for those who trust us with it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from attrs import define, evolve, field

from layer8.relay.client import Client
from layer8.relay.limits import MAX_HOPS
from layer8.relay.route import Rand, Route
from layer8.relay.stream import Stream
from layer8.relay.turn import StreamLike
from layer8.relay.wire import Opened, Reason

DELEGATED: Final = 256  # streams at a time, of all circuits together


@define(eq=False)
class _Side:
    """The sink of one stream, which says on the other one what it hears; `accepts` is the client's, on our own side."""

    _owner: Delegates
    accepts: Stream | None = None
    to: StreamLike | None = field(default=None, init=False)

    def opened(self, opened: Opened) -> None:
        """Say yes to the client."""
        if self.accepts is not None:
            self.accepts.accept(opened)

    def data(self, pieces: list[bytes]) -> None:
        """Pass data on."""
        if self.to is not None:
            for piece in pieces:
                self.to.write(piece)

    def ended(self) -> None:
        """Pass the end of one direction on."""
        if self.to is not None:
            self.to.end()

    def closed(self, reason: Reason) -> None:
        """End the other stream too."""
        self._owner.count -= 1
        if self.to is not None:
            self.to.close(reason)

    def hold(self) -> None:
        """Hear no more for now."""
        if self.to is not None:
            self.to.pause()

    def go_on(self) -> None:
        """Hear again."""
        if self.to is not None:
            self.to.resume()


@define(eq=False)
class Delegates:
    """The streams that go on through us."""

    _client: Client
    count: int = field(default=0, init=False)

    def serve(self, stream: Stream, key: Hashable) -> None:
        """Carry a stream on; those with different keys never share a circuit."""
        hops = stream.target.delegate
        if not 0 < hops <= MAX_HOPS:
            stream.close(Reason.PROTOCOL)
            return
        if self.count >= DELEGATED:
            stream.close(Reason.LIMIT)
            return
        self.count += 1
        away, home = _Side(self, stream), _Side(self)
        away.to = stream
        stream.sink = home
        route = Route((Rand(),) * hops)
        home.to = self._client.open(evolve(stream.target, delegate=0), away, route=route, key=("delegated", key))
