"""The checks that sections put on their fields: each maker gives a function that gives the reason against a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from layer8.config import endpoint, files
from layer8.config.field import Check
from layer8.core.address import HostPort, Networks, is_address
from layer8.core.errors import ConfigError
from layer8.crypto.password import is_hash

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)\Z")
_GATEWAY = re.compile(r"[a-z0-9-]{1,63}\Z")
_PIN = re.compile(r"[A-Za-z0-9_-]{43}\Z")


def between(least: float, most: float) -> Check:
    """Accept numbers from `least` to `most`."""

    def check(value: float) -> str | None:
        return None if least <= value <= most else f"it has to be from {least:g} to {most:g}"

    return check


def listens(*kinds: str, plain_only_on_loopback: bool = False) -> Check:
    """Accept server endpoint strings of these kinds; with the flag, plain `tcp:` has to name a loopback interface."""

    def check(value: tuple[str, ...]) -> str | None:
        for text in value:
            if reason := _why_not_listen(text, kinds, plain_only_on_loopback):
                return reason if len(value) == 1 else f"{text!r}: {reason}"
        return None

    return check


def _why_not_listen(text: str, kinds: tuple[str, ...], plain_only_on_loopback: bool) -> str | None:
    try:
        found = endpoint.server(text)
    except ConfigError as error:
        return str(error)
    if found.kind not in kinds:
        return f"{found.kind}: cannot be used here, only {', '.join(f'{kind}:' for kind in kinds)}"
    if plain_only_on_loopback and not (found.tls or found.loopback):
        return "it would speak plain text beyond this machine: write tls: or add :interface=127.0.0.1"
    if found.kind == "unix":
        return files.why_not(Path(found.words["address"]), "socket", {})
    return None


def dials(value: str) -> str | None:
    """Accept "" or a client endpoint string."""
    try:
        if value:
            endpoint.client(value)
    except ConfigError as error:
        return str(error)
    return None


def ways(value: str) -> str | None:
    """Accept "" or a string that says how a gateway of the browser tunnel is reached."""
    try:
        if value:
            endpoint.way(value)
    except ConfigError as error:
        return str(error)
    return None


def gateway_id(value: str) -> str | None:
    """Accept the id of a gateway."""
    return None if _GATEWAY.match(value) else "it has 1 to 63 of a-z, 0-9 and -"


def pins(value: tuple[str, ...]) -> str | None:
    """Accept Ed25519 keys in base64url, as pages pin a gateway's identity."""
    wrong = [text for text in value if not _PIN.match(text)]
    return f"{wrong[0]!r}: it has to be the 43 letters of a gateway's identity key" if wrong else None


def origins(value: tuple[str, ...]) -> str | None:
    """Accept origins as browsers write them: `https://HOST[:PORT]`, or `http://` on this machine."""
    return next((f"{text!r}: {why}" for text in value if (why := _why_no_origin(text))), None)


def _why_no_origin(text: str) -> str | None:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not host or port == 0 or text != f"{parts.scheme}://{parts.netloc}":
        return "it has to be https://HOST or https://HOST:PORT"
    if parts.username is not None or parts.netloc != parts.netloc.lower():
        return "it has neither a user nor upper case"
    local = endpoint.is_loopback(host) or host.endswith(".localhost")
    return None if parts.scheme == "https" or local else "it would speak plain text beyond this machine: write https://"


def targets(value: Mapping[int, str]) -> str | None:
    """Accept a map from public port to client endpoint string."""
    for port, text in value.items():
        if not 1 <= port <= 65535:
            return f"{port} is no port"
        reason = dials(text) if text else "it is empty"
        if reason:
            return f"{text!r} for port {port}: {reason}"
    return None


def ports(value: tuple[int, ...]) -> str | None:
    """Accept a list of distinct TCP ports with at least one."""
    if not value:
        return "at least one port is needed"
    if len(set(value)) != len(value):
        return "a port is named twice"
    return next((f"{port} is no port" for port in value if not 1 <= port <= 65535), None)


def networks(value: tuple[str, ...]) -> str | None:
    """Accept a list of CIDR networks or single addresses."""
    try:
        Networks.parse(value)
    except ConfigError as error:
        return str(error)
    return None


def users(value: tuple[str, ...]) -> str | None:
    """Accept lines of a user's name and kept password."""
    wrong = [line.partition(":")[0] for line in value if not (line[:1] != ":" and is_hash(line.partition(":")[2]))]
    return f"user {wrong[0]!r} has no hash as `layer8 proxy register --user` makes them" if wrong else None


def host_name(value: str) -> str | None:
    """Accept "" or a lower-case host name in its ASCII form, not an address."""
    if not value:
        return None
    labels = value.split(".")
    if len(value) > 253 or not all(_LABEL.match(label) for label in labels):
        return "it is no host name (letters, digits, hyphens and dots; other scripts in their xn-- form)"
    return "it is an address, not a name" if labels[-1].isdigit() else None


def host_pattern(value: str) -> str | None:
    """Accept a host name, or `*.` and one with at least two labels (Unicode is encoded at registration)."""
    if not value:
        return "a host is needed"
    name = value.removeprefix("*.")
    if name != value and "." not in name:
        return "a wildcard needs at least two labels after *."
    try:
        encoded = name if name.isascii() else _idna(name)
    except ConfigError as error:
        return str(error)
    return host_name(encoded.lower())


def _idna(name: str) -> str:
    import idna

    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise ConfigError(f"it cannot be encoded as a host name: {error}") from None


def host_and_port(value: str) -> str | None:
    """Accept "" or `host:port`, with an IPv6 address in brackets."""
    if not value:
        return None
    try:
        HostPort.parse(value)
    except ConfigError as error:
        return str(error).removeprefix(f"{value!r}: ")
    return None


def http_host(value: str) -> str | None:
    """Accept "" or what stands in HTTP's Host: a lower-case name or an address, with a port or without one."""
    host, colon, port = value.rpartition(":")
    if not colon or value.endswith("]"):
        host, port = value, "80"
    if not value or (reason := host_and_port(f"{host}:{port}")):
        return reason if value else None
    name = host.strip("[]")
    return None if is_address(name) else host_name(name)


def servers(value: tuple[str, ...]) -> str | None:
    """Accept control URLs of proxy servers: `wss://HOST:PORT/PATH?pin=KEYHASH`; see AgentConfig for `ws://`."""
    for text in value:
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            return f"{text!r}: {error}"
        if parts.scheme not in ("ws", "wss") or not host or port == 0:
            return f"{text!r}: it has to be wss://HOST:PORT, with ?pin=KEYHASH for a server without a public name"
        if parts.username is not None or parts.fragment:
            return f"{text!r}: no user and no fragment belong in it"
        try:
            words = parse_qs(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
        except ValueError:
            return f"{text!r}: the part after ? has to be pin=KEYHASH"
        if set(words) - {"pin"}:
            return f"{text!r}: only pin= is known after the question mark"
        if not all(_PIN.match(pin) for pins in words.get("pin", ()) for pin in pins.split(",")):
            return f"{text!r}: a pin is the 43 letters of a base64url SHA-256"
        if "pin" in words and parts.scheme == "ws":
            return f"{text!r}: a pin needs wss://"
    return None


def router(value: str) -> str | None:
    """Accept the URL of a router: wss://HOST[:PORT][/PATH], or ws:// on this machine."""
    if not value:
        return None
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("ws", "wss") or not host or port == 0 or parts.username or parts.query or parts.fragment:
        return "it has to be wss://HOST:PORT/PATH"
    if parts.scheme == "ws" and not endpoint.is_loopback(host):
        return "it would speak plain text beyond this machine: write wss://"
    return None


def authority(value: str) -> str | None:
    """Accept the directory URL of a certificate authority (RFC 8555), and none."""
    parts = urlsplit(value)
    if not value or (parts.scheme == "https" and parts.hostname):
        return None
    return "write the authority's directory URL, https://..."


def via(value: str) -> str | None:
    """Accept "" (dial directly), `connect:HOST:PORT`, `socks5:HOST:PORT`, `tor:` or `tor:HOST:PORT`."""
    kind, _, rest = value.partition(":")
    if not value or value == "tor:":
        return None
    if kind not in ("connect", "socks5", "tor"):
        return "it has to be connect:HOST:PORT, socks5:HOST:PORT or tor:"
    return host_and_port(rest) if rest else "host and port are missing"


def names(value: tuple[str, ...]) -> str | None:
    """Accept a list of host names."""
    return next((f"{name!r}: {why}" for name in value if (why := host_name(name) if name else "it is empty")), None)
