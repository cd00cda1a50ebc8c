r"""A key for one day that only those who know the lasting one can tell from any other (docs/names.md).

```
h   = clamp(SHA-512("layer8/1 blind\0" | A | period u64)[:32])      A = the service's Ed25519 key, a point of order l
A'  = h * A          a' = h * a mod l                               what everybody sees; what its owner signs with
a'' = SHA-512("layer8/1 blind nonce\0" | prefix of A | A')[:32]     prefix of the nonces of A'
```
Signatures by (a', a'') are those of RFC 8032, so whoever checks one needs to know nothing of this. Multiplication is
libsodium's, which refuses points outside of the group of order l; that it does what others do is shown by the table of
keys, parameters and blinded keys that Tor publishes. About 0.25 ms for A', and 0.08 ms for a signature.
"""

from __future__ import annotations

import hashlib
from typing import Final

from attrs import define, field
from nacl import bindings

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.keys import NODE_ID, NodeKey, verify

PERIODS: Final = 2**64 - 1  # the last one

_LABEL: Final = b"layer8/1 blind\0"
_NONCE: Final = b"layer8/1 blind nonce\0"


def valid(public: bytes) -> bool:
    """Tell whether 32 bytes are a point of prime order in its one form, as every service's key has to be."""
    return len(public) == NODE_ID and bindings.crypto_core_ed25519_is_valid_point(public)


def blinded(public: bytes, period: int) -> bytes:
    """Give A' of a key for a period; raises `RemoteProtocolError` for a key that is not a good point."""
    return multiplied(public, factor(public, period))


def factor(public: bytes, period: int) -> bytes:
    """Give h before it is clamped."""
    if not 0 <= period <= PERIODS:
        raise ValueError("a period outside of 64 bits")
    return hashlib.sha512(_LABEL + public + period.to_bytes(8, "big")).digest()[:NODE_ID]


def multiplied(public: bytes, parameter: bytes) -> bytes:
    """Give clamp(parameter) * A; raises `RemoteProtocolError`."""
    if not valid(public):
        raise RemoteProtocolError("a service's key that is no point of prime order")
    return bindings.crypto_scalarmult_ed25519_noclamp(clamped(parameter), public)


def clamped(parameter: bytes) -> bytes:
    """Clear three low bits and the highest, and set the one below it (RFC 8032 section 5.1.5)."""
    return bytes((parameter[0] & 248, *parameter[1:31], parameter[31] & 127 | 64))


@define(eq=False)
class BlindKey:
    """A service's key for one period."""

    period: int
    public: bytes  # A'
    _scalar: bytes = field(repr=False)
    _prefix: bytes = field(repr=False)

    @classmethod
    def of(cls, key: NodeKey, period: int) -> BlindKey:
        """Make it of the service's own key."""
        scalar, prefix = key.expanded()
        parameter = factor(key.node_id, period)
        public = multiplied(key.node_id, parameter)
        return cls(
            period,
            public,
            bindings.crypto_core_ed25519_scalar_mul(clamped(parameter), scalar),
            hashlib.sha512(_NONCE + prefix + public).digest()[:NODE_ID],
        )

    def sign(self, message: bytes) -> bytes:
        """Give a signature that `layer8.crypto.keys.verify` takes for A'."""
        nonce = _reduced(self._prefix + message)
        point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
        challenge = _reduced(point + self.public + message)
        answer = bindings.crypto_core_ed25519_scalar_add(
            nonce, bindings.crypto_core_ed25519_scalar_mul(challenge, self._scalar)
        )
        return point + answer


def signed(public: bytes, period: int, signature: bytes, message: bytes) -> bool:
    """Tell whether a service signed a message with its key of a period."""
    return valid(public) and verify(blinded(public, period), signature, message)


def _reduced(text: bytes) -> bytes:
    return bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(text).digest())
