"""Who may visit a host whose policy names users: HTTP's Basic authentication (RFC 7617) against kept hashes.

A check takes tens of milliseconds on purpose, so it is made elsewhere than on the reactor, and what was good once is
remembered by a keyed hash: neither the password nor anything to guess it with stays in memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Collection
from typing import Final

from layer8.crypto.password import fits, is_hash

KNOWN: Final = 10_000  # good credentials remembered, the one used longest ago forgotten first: memory
PASSWORD: Final = 1024  # bytes of a password: hashing it must not be work by itself

SAME_NAME: Final = 2  # passwords of one name, an old and a new one: each costs a check's time

_NOBODY = "$scrypt$ln=14,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def is_user(line: str) -> bool:
    """Say whether this is a line of a policy's `users`: `name:hash`."""
    name, _, kept = line.partition(":")
    return bool(name) and name.isprintable() and is_hash(kept)


def credentials(authorization: bytes) -> tuple[str, bytes] | None:
    """Give name and password out of an Authorization field, None if it holds none."""
    scheme, _, text = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(text.strip(b" "), validate=True).partition(b":")
        return (name.decode("utf-8"), password) if colon and len(password) <= PASSWORD else None
    except (binascii.Error, ValueError):
        return None


def good(users: Collection[str], name: str, password: bytes) -> bool:
    """Say whether one of `users` has this name and password; an unknown name takes as long as a known one.

    Of several lines with one name the first `SAME_NAME` count.
    """
    kept = [line.partition(":")[2] for line in users if line.partition(":")[0] == name][:SAME_NAME]
    return any(fits(password, one) for one in kept or [_NOBODY]) and bool(kept)


class Known:
    """Credentials that were good a while ago; `key` are random bytes of this process."""

    def __init__(self, key: bytes) -> None:
        """Know nobody."""
        self._key = key
        self._good: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        """Count them."""
        return len(self._good)

    def _mark(self, users: Collection[str], authorization: bytes) -> bytes:
        """Say as a keyed hash that these credentials and these users belong together."""
        who = "\n".join(users).encode("utf-8")
        return hmac.digest(self._key, hashlib.sha256(who).digest() + authorization, "sha256")

    def has(self, users: Collection[str], authorization: bytes) -> bool:
        """Say whether these were good for these users."""
        mark = self._mark(users, authorization)
        if mark not in self._good:
            return False
        self._good.move_to_end(mark)
        return True

    def add(self, users: Collection[str], authorization: bytes) -> None:
        """Remember good ones."""
        self._good[self._mark(users, authorization)] = None
        if len(self._good) > KNOWN:
            self._good.popitem(last=False)
