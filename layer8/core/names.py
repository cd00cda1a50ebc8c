"""Host names: read from the wire strictly, made from what people type once, looked up by exact name and then wildcard.

A name inside the program is a `str`: lower-case A-labels without a trailing dot (RFC 1034, 5890), or an IP literal as
`192.0.2.1` or `[2001:db8::1]`. What comes from the wire is never repaired beyond case; U-labels are encoded only where
a name is registered.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache

import idna

from layer8.core.errors import Layer8Error

NAME = 253  # octets of a whole name in text form (RFC 1035, 2.3.4)
LABEL = 63  # octets of one label
PORT = 65535  # highest port number in an authority
HTTP = 80  # the port that an `http` authority without one means
KEPT = 300  # octets of the longest authority that is remembered
NAMES = 1024  # names and authorities whose reading is remembered: each is read several times per connection

_LABEL = rb"[0-9A-Za-z](?:[-0-9A-Za-z]{0,61}[0-9A-Za-z])?"
# A last label that looks like a number makes the name an IPv4 address to somebody (WHATWG URL, "ends in a number").
_NAME = re.compile(rb"(?:%b\.)*(?!(?:[0-9]+|0[Xx][0-9A-Fa-f]*)\Z)%b" % (_LABEL, _LABEL))
_IPV4 = re.compile(rb"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[-.0-9A-Za-z]{1,254})(?::([0-9]{0,5}))?")


class InvalidName(Layer8Error):
    """A host name that cannot be registered; the text says why."""


def from_wire(raw: bytes) -> str | None:
    """Give the name that these bytes spell, or None if they are not exactly LDH labels without a trailing dot."""
    return _spelled(raw) if len(raw) <= NAME else None


@lru_cache(NAMES)
def _spelled(raw: bytes) -> str | None:
    return None if _NAME.fullmatch(raw) is None else raw.lower().decode("ascii")


def from_sni(raw: bytes, strip_dot: bool = False) -> str | None:
    """Give the name in a TLS host_name, or None; a trailing dot is forbidden there (RFC 6066, 3) unless stripped."""
    if strip_dot and raw.endswith(b"."):
        raw = raw[:-1]
    return from_wire(raw)


def from_authority(raw: bytes) -> tuple[str, int | None] | None:
    """Split `host[:port]` into the name or IP literal and the port, or give None if it is not exactly that.

    RFC 3986, 3.2, without userinfo. One trailing dot is dropped; an empty port is no port.
    """
    return _known(raw) if len(raw) <= KEPT else _split(raw)


def _split(raw: bytes) -> tuple[str, int | None] | None:
    match = _AUTHORITY.fullmatch(raw)
    if match is None:
        return None
    host, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and port > PORT:
        return None
    if host.startswith(b"["):
        name = _ipv6(host[1:-1].decode("ascii"))
    else:
        if host.endswith(b"."):
            host = host[:-1]
        name = _ipv4(host.decode("ascii")) if _IPV4.fullmatch(host) else from_wire(host)
    return None if name is None else (name, port)


_known = lru_cache(NAMES)(_split)


def same_authority(one: tuple[str, int | None], other: tuple[str, int | None] | None) -> bool:
    """Say whether two results of `from_authority` name the same place of the `http` scheme; None is nowhere."""
    return other is not None and one[0] == other[0] and (one[1] or HTTP) == (other[1] or HTTP)


def encode(text: str, own: Collection[str] = (), literal: bool = False) -> str:
    """Give the form under which a host or `*.` wildcard is registered, U-labels encoded.

    IDNA 2008 with the mapping of UTS 46. `own` are names that belong to the server itself. IP literals pass only with
    `literal`, which is for hosts that the operator wrote down. Raises `InvalidName`.
    """
    shown = ascii(text[:NAME])
    if len(text) > NAME + 3:  # no longer than "*." + name + "."
        raise InvalidName(f"host name {shown}... is longer than {NAME} octets")
    wildcard = text.startswith("*.")
    bare = text[2:] if wildcard else text
    if not wildcard and (address := _ipv6(bare.strip("[]")) or _ipv4(bare)):
        if literal:
            return address
        raise InvalidName(f"host {shown} is an IP address, and only names can be registered")
    name = _to_ascii(bare, shown)
    labels = name.split(".")
    if labels[-1] == "localhost":
        raise InvalidName(f"host name {shown} means the machine itself (RFC 6761)")
    if len(labels) < 2:
        what = "a wildcard needs at least two labels after the star" if wildcard else "a host name needs two labels"
        raise InvalidName(f"host name {shown}: {what}")
    if wildcard:
        name = f"*.{name}"
    if len(name) > NAME:
        raise InvalidName(f"host name {shown} is longer than {NAME} octets")
    if any(covers(name, mine) or name == mine for mine in own):
        raise InvalidName(f"host name {shown} is this server's own")
    return name


def wildcard(host: str) -> str | None:
    """Give the only wildcard that can match `host`, or None if it has fewer than three labels or is an IP literal."""
    _, dot, parent = host.partition(".")
    if not dot or "." not in parent or host[-1] == "]" or (host[-1].isdigit() and _ipv4(host)):
        return None
    return f"*.{parent}"


def keys(host: str) -> tuple[str, ...]:
    """Give the table keys under which `host` may be registered, in the order in which they win."""
    star = wildcard(host)
    return (host,) if star is None else (host, star)


def covers(pattern: str, host: str) -> bool:
    """Say whether `pattern` is `host`, or its wildcard; a star is exactly one label and does not match another star."""
    return pattern == host or (not host.startswith("*") and pattern == wildcard(host))


def _to_ascii(text: str, shown: str) -> str:
    """Encode a name label by label; raises `InvalidName`."""
    if text.isascii():
        encoded = text.lower().removesuffix(".")
        # Only what claims to be IDNA is held to IDNA: plain labels may have hyphens in places three and four.
        suspects = [label for label in encoded.split(".") if label.startswith("xn--")]
    else:
        suspects = []
        try:
            encoded = idna.encode(text, uts46=True, std3_rules=True).decode("ascii").removesuffix(".")
        except (idna.IDNAError, UnicodeError) as problem:
            raise InvalidName(f"host name {shown} cannot be encoded: {problem}") from problem
    for label in suspects:
        try:
            idna.ulabel(label)
        except (idna.IDNAError, UnicodeError) as problem:
            raise InvalidName(f"host name {shown} holds a bad A-label: {problem}") from problem
    if len(encoded) > NAME:
        raise InvalidName(f"host name {shown} is longer than {NAME} octets")
    if from_wire(encoded.encode("ascii")) is None:
        raise InvalidName(f"host name {shown} is not letters, digits and hyphens in labels of 1 to {LABEL}")
    return encoded


def _ipv4(text: str) -> str | None:
    """Give a dotted quad in its one form, or None."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return None


def _ipv6(text: str) -> str | None:
    """Give an IPv6 address without zone as `[compressed]`, or None."""
    if "%" in text:
        return None
    try:
        return f"[{ipaddress.IPv6Address(text).compressed}]"
    except ValueError:
        return None
