"""Whether others reach this node: one that nobody reaches asks and is listed nowhere, or lookups would wait for it.

::

    reach.spoke(host, now)       we have sent something there
    reach.came(host, now)        a query has come from there, and is answered
    reach.hidden(now, nodes)     nobody that we have not spoken to for KEPT comes, though enough know us

A NAT or a firewall lets in answers of those we have just spoken to, and nobody else. So a query of somebody else shows
that the way is open; in a network of some size one comes every few minutes to whoever is listed. After AGAIN a hidden
node lets itself be listed once more: routers are set up, and addresses change.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from attrs import define, field

KEPT: Final = 300.0  # seconds that a way in may stay open behind what we have said
ENOUGH: Final = 8  # nodes that have to know us before it means anything that none comes
PATIENCE: Final = 1800.0  # seconds in which one should have come
AGAIN: Final = 3600.0  # seconds for which a hidden node asks only
SPOKEN: Final = 16_384  # hosts that are remembered


@define(eq=False)
class Reach:
    """See the module; `judges` False: nothing is remembered."""

    judges: bool = True
    _spoken: OrderedDict[str, float] = field(factory=OrderedDict, init=False, repr=False)
    _since: float | None = field(default=None, init=False)  # when we began to wait for somebody
    _until: float | None = field(default=None, init=False)  # when we are listed again

    def spoke(self, host: str, now: float) -> None:
        """Remember that the way from this host is open for a while."""
        if not self.judges:
            return
        self._spoken[host] = now
        self._spoken.move_to_end(host)
        while len(self._spoken) > SPOKEN:
            self._spoken.popitem(last=False)

    def came(self, host: str, now: float) -> None:
        """Take a query for a sign, if it comes from somebody we have not spoken to."""
        spoken = self._spoken.get(host)
        if spoken is None or now - spoken > KEPT:
            self._since, self._until = now, None
        self.spoke(host, now)

    def hidden(self, now: float, nodes: int) -> bool:
        """Say whether this node is to be listed nowhere; `nodes` are those that it knows."""
        if self._until is not None:
            if now < self._until:
                return True
            self._since = self._until = None
        if self._since is None or nodes < ENOUGH:
            self._since = now
        elif now - self._since > PATIENCE:
            self._until = now + AGAIN
            return True
        return False
