"""Which Host and Origin values a listener lets in: what stops a web page from talking to a port of this machine.

A page that had its own name resolve to 127.0.0.1 (DNS rebinding) still sends that name as `Host`; a page from anywhere
else sends its own `Origin`. Requests with neither problem come from programs, or from pages that this listener served.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from layer8.core.address import is_address

LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})


def host_name(host: str) -> str | None:
    """Give the lower-case name or address of a `Host` value without its port, or None if it is not one."""
    try:
        parts = urlsplit(f"//{host}")
        name, _port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.netloc != host or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    if any(character <= " " or character > "~" for character in host):
        return None
    return name.rstrip(".")


def host_allowed(host: str, names: Collection[str] | None) -> bool:
    """Say whether a `Host` value is a loopback name, an address, or one of `names`; None means any name will do."""
    name = host_name(host)
    if name is None:
        return False
    return names is None or name in LOOPBACK_NAMES or name in names or is_address(name)


def origin_allowed(origin: str, host: str) -> bool:
    """Say whether an `Origin` is the very host that is asked, port included; `null` never is."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.path or parts.query or parts.fragment:
        return False
    return bool(parts.netloc) and parts.netloc.lower() == host.lower()
