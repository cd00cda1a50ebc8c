"""What an app is made of, signed by its publisher: the manifest that visitors, workers and `layer8 verify` trust.

It is signed as `jws` has it, with the `typ` l8-app+jws, and served as /.well-known/l8/manifest.json; earlier ones stay
at /.well-known/l8/manifests/VERSION.json::

  payload   v 1, app, publisher, version, files {path: {sha256, size}}, csp, gateways {id: gateway}, issuer, prev
            [, next] [, wheel {version [, sha256]}]
  gateway   relays [base URL], authorities, identities [pin]
  prev      base64url SHA-256 of the manifest before, as it was served; empty in the first
  next      the publisher's key that is going to sign after this one

Hashes and keys are base64url. `files` has what the publisher has made, and of /l8/VERSION/ what the app takes from the
wheel; of /.well-known/ nothing. Besides, what tells browsers to look at it: one Content-Security-Policy,
Integrity-Policy, and the files of WAICT and WEBCAT. Nothing here reads a clock or a disk.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256, sha384
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import frozen

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.keys import NODE_ID, NodeKey
from layer8.tunnel import jws
from layer8.tunnel.jws import BadJws
from layer8.tunnel.limits import AUTHORITIES

PATH: Final = "/.well-known/l8/manifest.json"
OLD: Final = "/.well-known/l8/manifests/{}.json"
HEADERS: Final = "/.well-known/l8/headers.json"
WAICT: Final = "/.well-known/waict/manifests/app_{}"
MANIFEST_TYPE: Final = "application/jose+json"
WAICT_TYPE: Final = "application/waict-integrity-manifest"
MANIFEST_MOST: Final = 1 << 20  # bytes
FILES_MOST: Final = 4096
GATEWAYS_MOST: Final = 64
RELAYS_MOST: Final = 16

_KIND: Final = "l8-app+jws"
_HASH: Final = 32  # bytes
_NAME: Final = re.compile(r"[a-z0-9-]{1,63}").fullmatch
_FILE: Final = re.compile(r"(/[A-Za-z0-9_~@!$&'()+*,;=.-]+)+").fullmatch
_BASE: Final = re.compile(r"https?://[a-z0-9.:\[\]-]+", re.IGNORECASE).fullmatch
_MEMBERS: Final = {"v", "app", "publisher", "version", "files", "csp", "gateways", "issuer", "prev"}

BESIDE: Final = (
    ("referrer-policy", "same-origin"),  # the service worker has to know the app's own forms from those of other sites
    ("cross-origin-opener-policy", "same-origin-allow-popups"),
    ("x-content-type-options", "nosniff"),
    ("x-dns-prefetch-control", "off"),
)
"""The fields that go with the policy."""


class BadManifest(RemoteProtocolError):
    """A manifest that is not trusted; `forged` says that it is for its signature."""

    def __init__(self, why: str, *, forged: bool = False) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.forged = forged


@frozen
class File:
    """What a path is served with."""

    sha256: bytes
    size: int

    @classmethod
    def of(cls, data: bytes) -> File:
        """Measure a file."""
        return cls(sha256(data).digest(), len(data))


@frozen
class AppGateway:
    """A gateway that the app talks to, by which relays, and whose word on its keys counts."""

    relays: tuple[str, ...]  # base URLs, without a slash at the end
    authorities: tuple[str, ...]
    identities: tuple[bytes, ...]  # Ed25519 keys

    def check(self) -> None:
        """Raise `BadManifest` unless it is of this form."""
        counts = ((self.relays, RELAYS_MOST), (self.authorities, AUTHORITIES), (self.identities, RELAYS_MOST))
        if any(not 0 < len(values) <= most for values, most in counts):
            raise BadManifest("a gateway with no relay, authority or identity, or with too many")
        if any(_BASE(one) is None for one in self.relays):
            raise BadManifest("a relay is written https://HOST, without a path")


@frozen
class Manifest:
    """See the module; made by `of` and `read` only."""

    app: str
    publisher: bytes
    version: int
    files: Mapping[str, File]
    csp: str
    gateways: Mapping[str, AppGateway]
    issuer: str = ""
    prev: bytes = b""
    next: bytes = b""
    wheel: tuple[str, bytes] | None = (
        None  # the version of layer8 that /l8/ is from, and the wheel's hash if it is known
    )

    def sign(self, key: NodeKey) -> bytes:
        """Give the manifest as it is served; raises `BadManifest` if it is no manifest, or the key is another's."""
        if key.node_id != self.publisher:
            raise BadManifest("a manifest is signed by the publisher that it names")
        payload: dict[str, Any] = {
            "v": 1,
            "app": self.app,
            "publisher": jws.letters(self.publisher),
            "version": self.version,
            "files": {
                path: {"sha256": jws.letters(file.sha256), "size": file.size}
                for path, file in sorted(self.files.items())
            },
            "csp": self.csp,
            "gateways": {
                name: {
                    "relays": list(one.relays),
                    "authorities": list(one.authorities),
                    "identities": [jws.letters(identity) for identity in one.identities],
                }
                for name, one in self.gateways.items()
            },
            "issuer": self.issuer,
            "prev": jws.letters(self.prev),
        }
        if self.next:
            payload["next"] = jws.letters(self.next)
        if self.wheel is not None:
            version, digest = self.wheel
            payload["wheel"] = {"version": version} | ({"sha256": jws.letters(digest)} if digest else {})
        signed = jws.sign(key, _KIND, payload)
        Manifest.read(signed, [key.node_id])
        return signed

    @classmethod
    def read(cls, data: bytes, pins: Iterable[bytes]) -> Manifest:
        """Read a manifest that one of the pinned publishers has signed; raises `BadManifest`."""
        if len(data) > MANIFEST_MOST:
            raise BadManifest(f"over the limit MANIFEST_MOST of {MANIFEST_MOST}")
        try:
            payload, signer = jws.read(data, _KIND, pins)
            found = cls._of(payload)
        except BadJws as error:
            raise BadManifest(f"a manifest: {error}", forged=error.forged) from None
        if found.publisher != signer:
            raise BadManifest("a manifest that names another publisher than the one who has signed it", forged=True)
        return found

    @classmethod
    def first(cls, data: bytes) -> Manifest:
        """Read a manifest of whoever says in it that he is the publisher: at the first visit. Raises `BadManifest`."""
        if len(data) > MANIFEST_MOST:
            raise BadManifest(f"over the limit MANIFEST_MOST of {MANIFEST_MOST}")
        try:
            claimed = jws.unletters(jws.string(jws.peek(data), "publisher"), NODE_ID)
        except BadJws as error:
            raise BadManifest(f"a manifest: {error}") from None
        return cls.read(data, [claimed])

    @classmethod
    def _of(cls, told: dict[str, Any]) -> Manifest:
        if not told.keys() >= _MEMBERS or told["v"] != 1 or isinstance(told["v"], bool):
            raise BadManifest("a manifest of another version, or with members missing")
        app, policy = jws.string(told, "app"), jws.string(told, "csp")
        if _NAME(app) is None or not policy.isascii() or not policy.isprintable():
            raise BadManifest("a manifest whose name or policy is none")
        prev = jws.string(told, "prev")
        wheel = told.get("wheel")
        if wheel is not None:
            wheel = _members(told, "wheel", 2)
            digest = jws.unletters(jws.string(wheel, "sha256"), _HASH) if "sha256" in wheel else b""
            wheel = jws.string(wheel, "version"), digest
        return cls(
            app,
            jws.unletters(jws.string(told, "publisher"), NODE_ID),
            jws.number(told, "version"),
            {path: _file(path, told["files"]) for path in _members(told, "files", FILES_MOST)},
            policy,
            {name: _gateway(name, told["gateways"]) for name in _members(told, "gateways", GATEWAYS_MOST)},
            jws.string(told, "issuer"),
            jws.unletters(prev, _HASH) if prev else b"",
            jws.unletters(jws.string(told, "next"), NODE_ID) if "next" in told else b"",
            wheel,
        )

    def follows(self, data: bytes) -> None:
        """Raise `BadManifest` unless this one may come after an earlier one, of which the bytes are given.

        The same publisher, or the key that he has named as the next; a higher version; and the hash of the earlier.
        """
        before = Manifest.first(data)
        if before.app != self.app or self.publisher not in (before.publisher, before.next or before.publisher):
            raise BadManifest("it is signed by another key than the manifest before it allows", forged=True)
        if self.version <= before.version or self.prev != sha256(data).digest():
            raise BadManifest("it does not follow the manifest before it")

    @property
    def relays(self) -> tuple[str, ...]:
        """Give every relay once."""
        return tuple(dict.fromkeys(relay for one in self.gateways.values() for relay in one.relays))


def _members(told: Mapping[str, Any], name: str, most: int) -> dict[str, Any]:
    value = told[name]
    if not isinstance(value, dict) or not 0 < len(value) <= most:
        raise BadManifest(f"{name} has no members, or too many")
    return value


def _file(path: str, files: Mapping[str, Any]) -> File:
    if not served(path) or path.startswith("/.well-known/"):
        raise BadManifest("files has a path that is none")
    told = _members(files, path, 8)
    return File(jws.unletters(jws.string(told, "sha256"), _HASH), jws.number(told, "size"))


def _gateway(name: str, gateways: Mapping[str, Any]) -> AppGateway:
    if _NAME(name) is None:
        raise BadManifest("a gateway id that is none")
    told = _members(gateways, name, 8)
    pins = jws.strings(told, "identities", RELAYS_MOST)
    found = AppGateway(
        tuple(jws.strings(told, "relays", RELAYS_MOST)),
        tuple(jws.strings(told, "authorities", AUTHORITIES)),
        tuple(jws.unletters(pin, NODE_ID) for pin in pins),
    )
    found.check()
    return found


def served(path: str) -> bool:
    """Whether a path can be one of an app's files: plain letters, no dots to climb by."""
    return _FILE(path) is not None and not any(part in (".", "..") for part in path.split("/"))


def sri(data: bytes) -> str:
    """Give what `integrity` says of a file (Subresource Integrity)."""
    return f"sha384-{b64encode(sha384(data).digest()).decode()}"


def csp(relays: Iterable[str]) -> str:
    """Give the one policy of an app: it may connect to itself and its relays, for requests and for sockets."""
    sources = ["'self'"]
    for relay in relays:
        sources += [relay, f"ws{relay.removeprefix('http')}"]
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
        f"connect-src {' '.join(dict.fromkeys(sources))}; worker-src 'self'; frame-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types l8"
    )


def leaks(policy: str, authorities: Iterable[str]) -> list[str]:
    """Name what a policy leaves open: a directive that is weaker than ours, or the provider's own host."""
    ours = _directives(csp(()))
    told = _directives(policy)
    found = []
    for name, sources in ours.items():
        if name not in told:
            if name not in ("img-src", "font-src", "worker-src", "frame-src", "style-src", "script-src", "connect-src"):
                found.append(f"no {name}")
            continue
        beyond = told[name] - sources - {"'none'"}
        if name == "connect-src":
            beyond = {
                one for one in beyond if not one.startswith(("https://", "wss://", "http://", "ws://")) or "*" in one
            }
        found += [f"{name} {one}" for one in sorted(beyond)]
    weak = {"'unsafe-inline'", "'unsafe-eval'", "*", "http:", "https:", "data:"}
    for name in told.keys() - ours.keys():
        beyond = told[name] & weak
        if name.endswith(("-src", "-src-elem", "-src-attr")):  # it counts before the one that ours has
            beyond |= told[name] - {"'none'", "'self'", "blob:"}
        if name.startswith(("script-", "style-")):
            beyond |= told[name] & {"blob:"}
        found += [f"{name} {one}" for one in sorted(beyond)]
    hosts = {host_of(one) for one in authorities}
    named = {one for sources in told.values() for one in sources if host_of(one) in hosts}
    return found + [f"the provider's host {one}" for one in sorted(named)]


def strangers(policy: str, relays: Iterable[str]) -> list[str]:
    """Name the sources that pages may connect to and that are neither themselves nor a relay."""
    known = _directives(csp(relays))["connect-src"]
    return sorted(_directives(policy).get("connect-src", set()) - known - {"'none'"})


def host_of(authority: str) -> str:
    """Give the host, with its port, of an authority or URL."""
    text = authority.lower()
    return urlsplit(text).netloc if "://" in text else text


def _directives(policy: str) -> dict[str, set[str]]:
    parts = [one.split() for one in policy.split(";")]
    return {part[0].lower(): set(part[1:]) for part in reversed(parts) if part}


def waict(files: Mapping[str, File]) -> tuple[str, bytes]:
    """Give the path and the content of the integrity manifest of WAICT, with an empty proof."""
    hashes = {path: b64encode(file.sha256).decode() for path, file in sorted(files.items())}
    told = {"hashes": hashes, "fallback_hashes": sorted(set(hashes.values()))}
    body = json.dumps(told, separators=(",", ":")).encode() + b"\n\n"
    return WAICT.format(jws.letters(sha256(body).digest())[:22]), body


def headers(files: Mapping[str, File], *, block: bool) -> dict[str, str]:
    """Give the fields that an app's files are served with beside the policy, as HEADERS has them.

    `block` is for who has seen no report of what it would have stopped.
    """
    policy = "integrity-policy" if block else "integrity-policy-report-only"
    return {
        policy: "blocked-destinations=(script style)",
        "integrity-policy-waict-v1": f'max-age=0, mode=report, manifest="{waict(files)[0]}"',
    }


def webcat(url: str, version: int, policy: str, files: Mapping[str, File]) -> tuple[bytes, bytes]:
    """Give WEBCAT's configuration and its manifest before it is signed, for a site at a URL."""
    told: dict[str, Any] = {
        "app": url,
        "version": str(version),
        "default_csp": policy,
        "default_index": "index.html",
        "default_fallback": "/index.html",
        "wasm": [],
        "extra_csp": {},
    }
    listed = {path: jws.letters(file.sha256) for path, file in sorted(files.items())}
    return _pretty(told), _pretty({"manifest": {**told, "files": listed}})


def name_of(text: str) -> str:
    """Check the name of an app, 1 to 63 of `[a-z0-9-]`; raises `ConfigError`."""
    if _NAME(text) is None:
        raise ConfigError("an app's name has 1 to 63 of a-z, 0-9 and -")
    return text


def _pretty(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
