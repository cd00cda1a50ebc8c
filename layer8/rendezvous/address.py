"""How a hidden service is called, and for which days its key is blinded (docs/names.md).

```
address  base32(key 32 | check 2 | version 1), 56 letters   check = SHA-256("layer8 address" | key | version)[:2]
host     [LABELS.]ADDRESS.l8.alt, or [LABELS.]NAME.l8.alt, NAME~k3f7.l8.alt, NAME--k3f7.l8.alt
name     2 to 32 of a-z, 0-9 and -, which neither begins nor ends it nor stands twice in a row
period   (seconds since 1970 - 43,200) // 86,400: days that change at noon, UTC
```
Labels in front are no part of the name: they reach the service in its Host field or server name.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from typing import Final

from attrs import frozen

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.blind import valid
from layer8.crypto.keys import NODE_ID

LETTERS: Final = 56
VERSION: Final = 1
DOMAIN: Final = ".l8.alt"
NAME_LEAST: Final = 2  # letters
NAME_MOST: Final = 32
SUFFIX: Final = 4  # letters of the address that are shown behind a name at least
HOST_MOST: Final = 253  # letters of a whole host
PERIOD: Final = 86_400  # seconds
PERIOD_OFFSET: Final = 43_200
OVERLAP: Final = 3 * 3600  # seconds before the change from which on both are published

_LABEL: Final = b"layer8 address"
_CHECK: Final = 2
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*\Z")
_SUFFIXED = re.compile(r"(.*?)(?:~|--)([a-z2-7]{1,56})\Z")
_BASE32 = re.compile(r"[a-zA-Z2-7]+\Z")
_VISIBLE = re.compile(r"[!-~]+\Z")


class WrongName(RemoteProtocolError):
    """What somebody wrote is no address or name; the text is one line that says what is wrong with it."""


@frozen
class Address:
    """A service by its key; `labels` are what stood in front."""

    key: bytes
    labels: str = ""

    @property
    def text(self) -> str:
        """The 56 letters."""
        return address_text(self.key)

    @property
    def host(self) -> str:
        """What a program asks for."""
        return f"{self.labels}.{self.text}{DOMAIN}" if self.labels else self.text + DOMAIN


@frozen
class Named:
    """A service by a name, and the beginning of the address that its key has to have; empty: none was given."""

    name: str
    suffix: str = ""
    labels: str = ""


def address_text(key: bytes) -> str:
    """Write a service's key as 56 letters."""
    return base64.b32encode(key + _check(key) + bytes((VERSION,))).decode("ascii").lower()


def parse_address(text: str) -> bytes:
    """Read the key of 56 letters, in either case, with `.l8.alt` or not; raises `WrongName`."""
    word = text[: -len(DOMAIN)] if text.lower().endswith(DOMAIN) else text
    if len(word) != LETTERS or not word.isascii():
        raise WrongName(f"an address has {LETTERS} letters")
    if not _BASE32.match(word):
        raise WrongName("an address is written in base32: a to z and 2 to 7")
    raw = base64.b32decode(word.upper())
    key, check, version = raw[:NODE_ID], raw[NODE_ID:-1], raw[-1]
    if version != VERSION:
        raise WrongName(f"an address of version {version}: this program knows version {VERSION}")
    if check != _check(key):
        raise WrongName("an address with a wrong letter: its check does not fit")
    if not valid(key):
        raise WrongName("an address whose key is no point of prime order: nobody can have that key")
    return key


def check_name(text: str) -> str:
    """Give a name that may be one; raises `WrongName` with the reason."""
    if not text.isascii():
        raise WrongName("a name has no other letters than a to z, so that no two look alike")
    if not NAME_LEAST <= len(text) <= NAME_MOST:
        raise WrongName(f"a name has {NAME_LEAST} to {NAME_MOST} letters")
    if not _NAME.match(text):
        raise WrongName("a name is made of a to z, 0 to 9 and single - in between")
    return text


def parse_host(host: str) -> Address | Named:
    """Read what a browser's address bar or a SOCKS request names, in either case; raises `WrongName`."""
    text = host.lower().removesuffix(".")
    if len(text) > HOST_MOST or not host.isascii() or not _VISIBLE.match(text):
        raise WrongName("a host has no other letters than a to z, so that no two look alike")
    if not text.endswith(DOMAIN):
        raise WrongName(f"a hidden service's host ends in {DOMAIN}")
    labels, dot, last = text.removesuffix(DOMAIN).rpartition(".")
    if dot and not all(labels.split(".")):
        raise WrongName("a host with an empty label")
    if len(last) == LETTERS and "~" not in last and "-" not in last:
        return Address(parse_address(last), labels)
    name, suffix = split_suffix(last)
    return Named(name, suffix, labels)


def parse_who(text: str) -> Address | Named:
    """Read an address, a name, or a host of either: `.l8.alt` may be left out; raises `WrongName`."""
    if len(text) == LETTERS and "." not in text:
        return Address(parse_address(text))
    return parse_host(text if text.lower().endswith((DOMAIN, DOMAIN + ".")) else text + DOMAIN)


def split_suffix(text: str) -> tuple[str, str]:
    """Cut `blog~k3f7` or `blog--k3f7` into the name and the beginning of the address; raises `WrongName`."""
    found = _SUFFIXED.match(text)
    if found is None:
        if "~" in text or "--" in text:
            raise WrongName("behind ~ or -- stand the first letters of the address, a to z and 2 to 7")
        return check_name(text), ""
    return check_name(found[1]), found[2]


def shown(name: str, key: bytes, others: Iterable[bytes] = ()) -> str:
    """Write a name with as many letters of its address as tell it from `others`, SUFFIX at least: `blog~k3f7`."""
    text = address_text(key)
    rest = [address_text(other) for other in others if other != key]
    size = next(size for size in range(SUFFIX, LETTERS + 1) if not any(one[:size] == text[:size] for one in rest))
    return f"{name}~{text[:size]}"


def fits(key: bytes, suffix: str) -> bool:
    """Tell whether a key's address begins with what stood behind the name; an empty suffix fits every key."""
    return address_text(key).startswith(suffix)


def period(now: float) -> int:
    """Give the number of the period at `now`, seconds since 1970."""
    return (int(now) - PERIOD_OFFSET) // PERIOD


def period_start(number: int) -> int:
    """Give the second at which a period begins."""
    return number * PERIOD + PERIOD_OFFSET


def published(now: float) -> tuple[int, ...]:
    """Give the periods for which a service publishes: this one, and the next from OVERLAP before it begins."""
    number = period(now)
    return (number, number + 1) if now >= period_start(number + 1) - OVERLAP else (number,)


def _check(key: bytes) -> bytes:
    return hashlib.sha256(_LABEL + key + bytes((VERSION,))).digest()[:_CHECK]
