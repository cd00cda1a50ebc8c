r"""A list of relays that people whom the user has chosen have signed together: who is not on it is not used.

A file of canonical bencode: `l` is the list, itself bencode, and `s` maps keys to Ed25519 signatures over
`"layer8/1 snapshot\0" | l`. The list holds `e` expiry, `i` ids of 32 bytes one behind the other, `n` mark of the
network and `t` time. It counts while `need` of the user's keys have signed it, and until it expires. It takes nothing
from the other rules: a relay on it is vetted, weighed and kept apart from its family as any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from layer8.core import bencode
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.core.network import Network
from layer8.crypto.descriptor import CLOCK
from layer8.crypto.keys import NODE_ID, NodeKey, verify

SNAPSHOT_MAX: Final = 1 << 20  # bytes
SIGNERS: Final = 64

_SIGNED: Final = b"layer8/1 snapshot\0"


def write(ids: Iterable[bytes], network: Network, now: float, expires: float) -> bytes:
    """Make a list that nobody has signed yet."""
    told: dict[bytes, bencode.Value] = {
        b"e": int(expires),
        b"i": b"".join(sorted(set(ids))),
        b"n": network.mark,
        b"t": int(now),
    }
    return bencode.encode({b"l": bencode.encode(told), b"s": {}})


def sign(file: bytes, key: NodeKey) -> bytes:
    """Add a signature to what others may have signed already; raises `RemoteProtocolError`."""
    listed, signatures = _parts(file)
    return bencode.encode({b"l": listed, b"s": signatures | {key.node_id: key.sign(_SIGNED + listed)}})


def read(file: bytes, keys: Collection[bytes], need: int, network: Network, now: float) -> frozenset[bytes]:
    """Give the ids on a list that `need` of `keys` have signed; raises `RemoteProtocolError` for any other."""
    listed, signatures = _parts(file)
    signed = sum(verify(key, signature, _SIGNED + listed) for key, signature in signatures.items() if key in keys)
    if not 0 < need <= signed:
        raise RemoteProtocolError(f"a list that {signed} of the chosen keys have signed; {need} are needed")
    told = bencode.decode(listed)
    if not isinstance(told, dict):
        raise RemoteProtocolError("a list that is no dictionary")
    expires, ids, made = told.get(b"e"), told.get(b"i"), told.get(b"t")
    if not isinstance(expires, int) or not isinstance(made, int) or not isinstance(ids, bytes) or len(ids) % NODE_ID:
        raise RemoteProtocolError("a list without its parts")
    if told.get(b"n") != network.mark:
        raise RemoteProtocolError("a list of another network")
    if expires <= now or made > now + CLOCK:
        raise RemoteProtocolError("a list that has expired, or is from the future")
    return frozenset(ids[at : at + NODE_ID] for at in range(0, len(ids), NODE_ID))


def _parts(file: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    if len(file) > SNAPSHOT_MAX:
        raise LimitExceeded("SNAPSHOT_MAX", SNAPSHOT_MAX)
    told = bencode.decode(file)
    listed, found = (told.get(b"l"), told.get(b"s")) if isinstance(told, dict) else (None, None)
    if not isinstance(listed, bytes) or not isinstance(found, dict):
        raise RemoteProtocolError("a signed list without its parts")
    signatures = {key: one for key, one in found.items() if isinstance(one, bytes)}
    if len(found) > SIGNERS or len(signatures) != len(found):
        raise RemoteProtocolError("a signed list with wrong signatures")
    return listed, signatures
