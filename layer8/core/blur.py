"""Making what is written down about others less exact: times, byte counts and addresses."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from typing import Literal

AddressPolicy = Literal["none", "prefix", "keyed", "clear"]

DAY = 86400.0
"""How long the key of the `keyed` policy lives, in seconds."""
KEY_SIZE = 32


def blur_time(at: float, step: float) -> float:
    """Round a time in seconds down to a multiple of `step`; 0 keeps it exact."""
    return at if step <= 0 else at // step * step


def blur_bytes(count: int) -> int:
    """Round a byte count up to two significant binary digits: 1 2 3 4 6 8 12 16 24 32 ..."""
    if count <= 0:
        return 0
    unit = 1 << max(count.bit_length() - 2, 0)
    return -(-count // unit) * unit


class AddressBlur:
    """What may be written about an IP address.

    `none` gives nothing; `prefix` the /24 or /48 network; `keyed` eight hex digits that are the same for one address
    until the key is replaced, at most a day later; `clear` the address itself.
    """

    def __init__(self, policy: AddressPolicy, draw: Callable[[int], bytes]) -> None:
        """Take the policy and the source of random keys: `draw(32)` gives 32 bytes."""
        self.policy = policy
        self._draw = draw
        self._key = b""
        self._until = 0.0

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"AddressBlur({self.policy!r})"

    def word(self, address: str, now: float) -> str | None:
        """Give what to write for an address at `now` (monotonic seconds), or None for nothing."""
        if self.policy == "none":
            return None
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return None
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        if self.policy == "clear":
            return str(found)
        if self.policy == "prefix":
            return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False))
        if not self._key or now >= self._until:
            self._key, self._until = self._draw(KEY_SIZE), now + DAY
        return hmac.new(self._key, found.packed, hashlib.sha256).hexdigest()[:8]
