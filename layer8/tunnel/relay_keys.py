"""A relay's one copy of a gateway's key set: the same bytes for everybody, looked for on the relay's own clock.

So a gateway cannot hand out a key for each person, and cannot time its answers by who asks. A relay that knows the
gateway's identity takes nothing else; one that does not passes on what pages check themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from layer8.core.errors import LimitExceeded
from layer8.tunnel.keys import BadKeys, Flaw, KeySet
from layer8.tunnel.limits import KEYS_HURRY, KEYS_MAX, KEYS_REFRESH
from layer8.tunnel.wire import OHTTP_KEY


class KeyCopy:
    """See the module; `now` is monotonic seconds, `wall` seconds since 1970."""

    def __init__(self, gateway: str, identities: Iterable[bytes] = ()) -> None:
        """Begin with none."""
        self.gateway = gateway
        self.document: bytes | None = None
        self.keys: KeySet | None = None  # where the identity is known
        self.identities = tuple(identities)
        self._looked: float | None = None
        self._hurried = False

    def due(self, now: float) -> bool:
        """Say whether to look now, and count it as done if so."""
        if self._looked is not None and now - self._looked < (KEYS_HURRY if self._hurried else KEYS_REFRESH):
            return False
        self._looked, self._hurried = now, False
        return True

    def answered(self, problem: str) -> None:
        """Take the type of a problem that the gateway has answered with: the key may be a new one."""
        if problem == OHTTP_KEY:
            self._hurried = True

    def deadline(self, now: float) -> float:
        """Give the time at which `due` says yes."""
        return now if self._looked is None else self._looked + (KEYS_HURRY if self._hurried else KEYS_REFRESH)

    def genuine(self, document: bytes) -> bool:
        """Say whether a set, of whatever time, is signed by the gateway; anything is if nobody knows its identity."""
        try:
            return not self.identities or KeySet.read(document, self.identities).gateway == self.gateway
        except BadKeys:
            return False

    def take(self, document: bytes, wall: float) -> bool:
        """Take what the gateway has given, and say whether it is new.

        Raises `RemoteProtocolError` and keeps the old one for what pages would not take.
        """
        if len(document) > KEYS_MAX:
            raise LimitExceeded("KEYS_MAX", KEYS_MAX)
        if self.identities:
            found = KeySet.read(document, self.identities)
            found.check(self.gateway, wall, seen=0 if self.keys is None else self.keys.epoch)
            if self.keys is not None and found.epoch == self.keys.epoch and found.config != self.keys.config:
                raise BadKeys(Flaw.DIFFERENT, "two keys of one epoch")
            self.keys = found
        fresh, self.document = document != self.document, bytes(document)
        return fresh
