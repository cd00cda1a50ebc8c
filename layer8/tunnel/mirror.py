"""The files that a relay shows: `l8.js` from the wheel, and the files of apps, each app at an origin of its own.

An app is known by the Host that it is asked for, ID.NAME or ID.localhost, so no app reads what a browser keeps for
another one. What is served is what lies in its folder, with headers that keep a careless page from speaking to anybody
but relays; whether those are the publisher's files, the signed manifest says, and who looks at it (`layer8 verify`, the
service worker).
"""

from __future__ import annotations

import json
import re
import stat
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256, sha384
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from attrs import define, field, frozen

import layer8
from layer8.config import accept
from layer8.core.errors import RemoteProtocolError
from layer8.tunnel import jws
from layer8.tunnel.integrity import BESIDE, csp

SCRIPTS: Final = ("l8.js", "l8-sw.js", "l8.d.ts")
FILE_MOST: Final = 1 << 30  # bytes of one file of an app
MANIFEST: Final = ".well-known/l8/manifest.json"
HEADERS: Final = ".well-known/l8/headers.json"
SETTINGS_MOST: Final = 1 << 20  # bytes of each of these two
PATH_MOST: Final = 1024  # characters
RELAYS_MOST: Final = 16  # of one gateway in a manifest

MAY: Final = frozenset(
    (
        "integrity-policy",
        "integrity-policy-report-only",
        "integrity-policy-waict-v1",
        "permissions-policy",
        "reporting-endpoints",
    )
)
"""Further headers that an app's folder may ask for."""

KINDS: Final = {
    "css": "text/css; charset=utf-8",
    "gif": "image/gif",
    "htm": "text/html; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "map": "application/json",
    "mjs": "text/javascript; charset=utf-8",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "ts": "text/plain; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
    "webm": "video/webm",
    "webmanifest": "application/manifest+json",
    "webp": "image/webp",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "xml": "application/xml",
}
OTHERWISE: Final = "application/octet-stream"

Lines = tuple[tuple[str, str], ...]
"""Field names in lower case, with values."""

_VALUE = re.compile(r"[\x20-\x7e]{1,4096}").fullmatch


@frozen
class Shown:
    """What is answered: fields, and a body that is here or in a file of so many bytes."""

    status: int
    fields: Lines
    body: bytes = field(default=b"", repr=False)
    path: Path | None = None
    size: int = 0


NOT_FOUND: Final = Shown(
    404, (("content-type", "text/plain; charset=utf-8"), *BESIDE), b"there is nothing at this path\n"
)


class Scripts:
    """`/l8/<version>/` and `/l8/sri.json`: the same bytes everywhere, hashed when they are read."""

    def __init__(self) -> None:
        """Read them out of the installed package."""
        folder = files("layer8.web").joinpath("tunnel")
        self._shown: dict[str, Shown] = {}
        hashes: dict[str, str] = {}
        lasting = (
            ("access-control-allow-origin", "*"),
            ("cache-control", "public, max-age=31536000, immutable"),
            ("cross-origin-resource-policy", "cross-origin"),
            ("service-worker-allowed", "/"),
            ("x-content-type-options", "nosniff"),
        )
        for name in SCRIPTS:
            body = folder.joinpath(name).read_bytes()
            hashes[name] = "sha384-" + b64encode(sha384(body).digest()).decode()
            kind = KINDS[name.rpartition(".")[2]]
            fields = (("content-type", kind), ("etag", f'"{sha256(body).hexdigest()[:32]}"'), *lasting)
            self._shown[f"/l8/{layer8.__version__}/{name}"] = Shown(200, fields, body)
        told = json.dumps({"version": layer8.__version__, "integrity": hashes}, indent=1).encode() + b"\n"
        brief = (
            ("access-control-allow-origin", "*"),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
        )
        self._shown["/l8/sri.json"] = Shown(200, (("content-type", "application/json"), *brief), told)

    def find(self, path: str) -> Shown:
        """Give what is at a path, which has no query."""
        return self._shown.get(path, NOT_FOUND)


@define(eq=False)
class App:
    """The folder of one app; what it says of headers is read again whenever those files change."""

    folder: Path
    _read: tuple[object, ...] = field(factory=tuple, init=False)
    _fields: Lines = field(factory=tuple, init=False)

    def find(self, path: str, known: str = "") -> Shown:
        """Give what is at a path, which has no query; `known` is the request's If-None-Match."""
        found = self._find(path)
        if found is None:
            return NOT_FOUND
        place, size, changed = found
        tag = f'"{changed:x}-{size:x}"'
        fields = (("etag", tag), ("cache-control", "no-cache"), *self.fields())
        if known == tag:
            return Shown(304, fields)
        return Shown(200, (("content-type", kind(path, place)), *fields), path=place, size=size)

    def fields(self) -> Lines:
        """Give the headers that every file of this app has."""
        looked = tuple(_mark(self.folder / name) for name in (MANIFEST, HEADERS))
        if looked != self._read or not self._fields:
            policy = _policy(self.folder / MANIFEST)
            self._fields = (("content-security-policy", policy), *BESIDE, *_further(self.folder / HEADERS))
            self._read = looked
        return self._fields

    def relays(self, gateway: str) -> tuple[str, ...]:
        """Give the relays that its manifest names for a gateway, none of this machine; nobody has checked it."""
        try:
            told = jws.peek((self.folder / MANIFEST).read_bytes()).get("gateways")
        except (OSError, RemoteProtocolError):
            return ()
        words = told.get(gateway) if isinstance(told, dict) else None
        relays = words.get("relays") if isinstance(words, dict) else None
        if not isinstance(relays, list) or len(relays) > RELAYS_MOST:
            return ()
        texts = tuple(text for text in relays if isinstance(text, str) and text.startswith("https://"))
        return tuple(text for text in texts if accept.origins((text,)) is None and _public(text))

    def _find(self, path: str) -> tuple[Path, int, int] | None:
        """Give the file, its size and when it changed, without ever leaving the folder."""
        if len(path) > PATH_MOST or not path.startswith("/"):
            return None
        try:
            text = unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            return None
        parts = text[1:].split("/")
        if not parts[-1]:
            parts[-1] = "index.html"
        for number, part in enumerate(parts):
            if not part or "\\" in part or not part.isprintable():
                return None
            if part.startswith(".") and not (number == 0 and part == ".well-known"):
                return None
        place = self.folder.joinpath(*parts)
        try:
            here = place.resolve(strict=True)
            status = here.stat()
        except (OSError, RuntimeError):  # RuntimeError: links that go in circles
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_MOST:
            return None
        return (here, status.st_size, status.st_mtime_ns) if here.is_relative_to(self.folder.resolve()) else None


def kind(path: str, place: Path) -> str:
    """Give the media type of a file, by its name and by where it lies."""
    if path.startswith("/.well-known/waict/manifests/"):
        return "application/waict-integrity-manifest"
    if path.startswith("/.well-known/l8/") and not path.endswith("headers.json"):
        return "application/jose+json"
    return KINDS.get(place.suffix[1:].lower(), OTHERWISE)


def origins(apps: Iterable[str], name: str) -> dict[str, str]:
    """Give the app's id for each host at which apps are, in lower case and without a port."""
    found = {f"{app}.localhost": app for app in apps}
    return found | ({f"{app}.{name}": app for app in apps} if name else {})


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _public(origin: str) -> bool:
    """Whether an origin's host is a name, or an address that everybody can reach: none of this machine or network."""
    host = urlsplit(origin).hostname or ""
    try:
        return ip_address(host).is_global
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")


def _policy(path: Path) -> str:
    try:
        told = jws.peek(path.read_bytes()).get("csp") if path.stat().st_size <= SETTINGS_MOST else None
    except (OSError, RemoteProtocolError):
        return csp(())
    return told if isinstance(told, str) and _VALUE(told) else csp(())


def _further(path: Path) -> Lines:
    try:
        told = json.loads(path.read_bytes()) if path.stat().st_size <= SETTINGS_MOST else None
    except (OSError, ValueError, RecursionError):
        return ()
    if not isinstance(told, dict):
        return ()
    return tuple(
        (name, value) for name, value in told.items() if name in MAY and isinstance(value, str) and _VALUE(value)
    )
