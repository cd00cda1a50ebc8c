"""Proof that a subscriber knows a host's secret without sending it (proxy protocol, `proxy.subscribe`).

The server hands each connection its own nonce; the agent answers ``HMAC-SHA256(K, nonce | node id | host)`` in hex,
where ``K = SHA-256(secret)`` is all that the server stores. A recorded proof is worth nothing on another connection,
at another node or for another host. Nonce and node id have fixed lengths, so no two inputs share one message.
"""

from __future__ import annotations

import hashlib
import hmac

from layer8.core.errors import LocalProtocolError

NONCE = 32  # bytes, new for each connection
NODE_ID = 32  # bytes, the server's Ed25519 public key
KEY = 32  # bytes, SHA-256 of the secret


def secret_key(secret: bytes) -> bytes:
    """Give K, what the server stores of a secret: 32 bytes of SHA-256."""
    return hashlib.sha256(secret).digest()


def subscribe_proof(key: bytes, nonce: bytes, node_id: bytes, host: str) -> str:
    """Give the proof for `host` (its ASCII form) as 64 hex digits; `key` is K, not the secret.

    Raises `LocalProtocolError` when an argument cannot be what its name says, so that a mistake is no weak proof.
    """
    if len(key) != KEY or len(nonce) != NONCE or len(node_id) != NODE_ID or not host or not host.isascii():
        raise LocalProtocolError("a proof takes a 32-byte key, nonce and node id, and a host name in ASCII")
    return hmac.new(key, nonce + node_id + host.encode("ascii"), hashlib.sha256).hexdigest()


def same(one: str | bytes, other: str | bytes) -> bool:
    """Compare two secrets in a time that does not depend on where they differ; text of any alphabet is fine."""
    return hmac.compare_digest(
        one.encode("utf-8", "surrogatepass") if isinstance(one, str) else one,
        other.encode("utf-8", "surrogatepass") if isinstance(other, str) else other,
    )
