"""What the tunnel signs by Ed25519: a flattened JWS (RFC 7515, section 7.2.2) over the exact bytes of a JSON payload.

::

  {"protected": base64url({"alg":"Ed25519","typ":TYP,"kid":KID}), "payload": base64url(JSON), "signature": base64url}
  KID  the first 11 letters of base64url(SHA-256(key))

Nothing is read of what none of the pinned keys has signed, but by `peek`. One value has one text: base64url has no
padding and nothing beside it, and no member of JSON comes twice.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.keys import SIGNATURE, NodeKey, verify

KID: Final = 11  # letters

_MEMBERS: Final = {"protected", "payload", "signature"}
_NUMBER_MOST: Final = 2**53 - 1


class BadJws(RemoteProtocolError):
    """Something that is not signed, or not in this form; `forged` says that it is the signature."""

    def __init__(self, why: str, *, forged: bool = False) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.forged = forged


def sign(key: NodeKey, kind: str, payload: Mapping[str, Any]) -> bytes:
    """Sign a payload as `kind`, the `typ` of its header."""
    protected = letters(write({"alg": "Ed25519", "typ": kind, "kid": key_name(key.node_id)}))
    body = letters(write(payload))
    signature = letters(key.sign(f"{protected}.{body}".encode()))
    return write({"protected": protected, "payload": body, "signature": signature})


def read(data: bytes, kind: str, pins: Iterable[bytes]) -> tuple[dict[str, Any], bytes]:
    """Give the payload and the pinned key that has signed it; raises `BadJws`."""
    protected, payload, signature = _parts(data)
    signed = f"{protected}.{payload}".encode()
    signer = next((pin for pin in pins if verify(pin, signature, signed)), None)
    if signer is None:
        raise BadJws("it is signed by none of the pinned keys", forged=True)
    if members(unletters(protected)) != {"alg": "Ed25519", "typ": kind, "kid": key_name(signer)}:
        raise BadJws("it has another head")
    return members(unletters(payload)), signer


def peek(data: bytes) -> dict[str, Any]:
    """Give a payload whose signature nobody has looked at; raises `BadJws`."""
    return members(unletters(_parts(data)[1]))


def key_name(key: bytes) -> str:
    """Give the `kid` of a key: for finding it, not for trusting it."""
    return letters(sha256(key).digest())[:KID]


def write(value: Mapping[str, Any]) -> bytes:
    """Write JSON without a space."""
    return json.dumps(value, separators=(",", ":")).encode()


def letters(data: bytes) -> str:
    """Write bytes as base64url without padding."""
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def unletters(text: str, size: int = 0) -> bytes:
    """Read base64url, of so many bytes unless that is 0; raises `BadJws`."""
    try:
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        raise BadJws("base64url that is none") from None
    if letters(data) != text or (size and len(data) != size):
        raise BadJws("base64url of a wrong length, or with something beside it")
    return data


def members(data: bytes) -> dict[str, Any]:
    """Read a JSON object; raises `BadJws`."""
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise BadJws("JSON that is none") from None
    if not isinstance(found, dict):
        raise BadJws("JSON that is no object")
    return found


def string(told: Mapping[str, Any], name: str) -> str:
    """Give a member that has to be a text; raises `BadJws`."""
    value = told.get(name)
    if not isinstance(value, str):
        raise BadJws(f"{name} is no text")
    return value


def strings(told: Mapping[str, Any], name: str, most: int) -> list[str]:
    """Give a member that has to be a list of 1 to `most` texts; raises `BadJws`."""
    value = told.get(name)
    if not isinstance(value, list) or not 0 < len(value) <= most or not all(isinstance(one, str) for one in value):
        raise BadJws(f"{name} is no list of texts")
    return value


def number(told: Mapping[str, Any], name: str, most: int = _NUMBER_MOST) -> int:
    """Give a member that has to be a whole number from 0 on; raises `BadJws`."""
    value = told.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise BadJws(f"{name} is no number")
    return value


def _parts(data: bytes) -> tuple[str, str, bytes]:
    outer = members(data)
    if outer.keys() != _MEMBERS:
        raise BadJws("it has other members than protected, payload and signature")
    return string(outer, "protected"), string(outer, "payload"), unletters(string(outer, "signature"), SIGNATURE)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadJws("JSON with a member twice")
    return found
