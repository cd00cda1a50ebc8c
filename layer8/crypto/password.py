"""Passwords of people, kept as salted scrypt (RFC 7914) in the usual text form: ``$scrypt$ln=14,r=8,p=1$SALT$KEY``.

What is stored may come from somebody who is not the operator, so a hash that would cost more than `LN_MOST` is none.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

from layer8.core.errors import LocalProtocolError

LN = 14  # log2 of the cost: about 50 ms and 16 MiB
LN_MOST = 15
SALT = 16  # bytes
KEY = 32  # bytes
MEMORY = 64 << 20  # bytes that one check may use

_FORM = re.compile(r"\$scrypt\$ln=([0-9]{1,2}),r=8,p=1\$([A-Za-z0-9+/]{22})\$([A-Za-z0-9+/]{43})")


def hashed(password: str) -> str:
    """Give the text that is kept instead of a password."""
    salt = secrets.token_bytes(SALT)
    return f"$scrypt$ln={LN},r=8,p=1${_text(salt)}${_text(_key(password.encode('utf-8'), salt, LN))}"


def is_hash(text: str) -> bool:
    """Say whether this is what `hashed` gives, or the same at another cost that is not too high."""
    match = _FORM.fullmatch(text)
    return match is not None and 1 <= int(match[1]) <= LN_MOST


def fits(password: bytes, kept: str) -> bool:
    """Say whether a password (UTF-8) is the one; takes as long whether it is or not.

    Raises `LocalProtocolError` for what is no hash.
    """
    match = _FORM.fullmatch(kept)
    if match is None or not is_hash(kept):
        raise LocalProtocolError("a kept password is not in the form of layer8.crypto.password")
    return hmac.compare_digest(_key(password, _bytes(match[2]), int(match[1])), _bytes(match[3]))


def _key(password: bytes, salt: bytes, ln: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=1 << ln, r=8, p=1, dklen=KEY, maxmem=MEMORY)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
