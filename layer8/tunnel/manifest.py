"""`python -m layer8.tunnel.manifest build DIR`: makes a folder of files into an app that visitors can check.

Into DIR go `integrity` in the pages, the signed manifest with the earlier ones beside it, the fields for the mirror and
WAICT's file; beside DIR, for who signs with WEBCAT, its configuration and manifest. What `app.toml` says::

  [app]
  name = "notes"                               # 1 to 63 of a-z, 0-9 and -
  url = "https://notes.relay.example/"         # where the app is going to be
  key_file = "publisher.pem"                   # python -m layer8.tunnel.manifest key publisher.pem
  next = ""                                    # the key that is going to sign after this one
  block = false                                # Integrity-Policy: true stops what it otherwise reports

  [[gateway]]
  id = "notes"
  relays = ["https://relay.example"]
  authorities = ["notes.example"]
  identities = ["43 letters"]                  # its pin; two while it changes

A build that changes nothing leaves the manifest as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Final

import click
from attrs import evolve, frozen

import layer8
from layer8.core.errors import ConfigError, Layer8Error, StorageError
from layer8.crypto.keys import NodeKey
from layer8.tunnel import integrity, markup
from layer8.tunnel.integrity import HEADERS, OLD, PATH, AppGateway, BadManifest, File, Manifest
from layer8.tunnel.keys import gateway_id, pin_text, read_pin

FILE_MOST: Final = 64 << 20  # bytes of one file of an app
SITE_MOST: Final = 128 << 20  # bytes of all of them
WHEEL: Final = ("l8.js", "l8-sw.js")
"""What an app takes from the wheel, at /l8/VERSION/."""


@frozen
class App:
    """What `app.toml` says."""

    name: str
    url: str
    gateways: Mapping[str, AppGateway]
    next: bytes = b""
    block: bool = False
    issuer: str = ""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> App:
        """Take the file's tables; raises `ConfigError`."""
        app, gateways = told.get("app"), told.get("gateway")
        if not isinstance(app, dict) or not isinstance(gateways, list) or told.keys() - {"app", "gateway"}:
            raise ConfigError("it needs one [app], at least one [[gateway]], and nothing else")
        _known(app, "[app]", {"name": str, "url": str, "key_file": str, "next": str, "block": bool})
        url = app.get("url", "")
        if not url.startswith(("https://", "http://")) or not url.endswith("/"):
            raise ConfigError("[app] url is where the app is going to be, https://HOST/")
        found: dict[str, AppGateway] = {}
        for one in gateways:
            _known(one, "[[gateway]]", {"id": str, "relays": list, "authorities": list, "identities": list})
            try:
                name = gateway_id(one.get("id", ""))
                relays = tuple(relay.rstrip("/") for relay in _texts(one, "relays"))
                pins = tuple(read_pin(pin) for pin in _texts(one, "identities"))
                found[name] = AppGateway(relays, tuple(_texts(one, "authorities")), pins)
                found[name].check()
            except Layer8Error as error:
                raise ConfigError(f"[[gateway]] {one.get('id', '')!r}: {error}") from None
        following = read_pin(app["next"]) if app.get("next") else b""
        return cls(integrity.name_of(app.get("name", "")), url, found, following, app.get("block", False))

    @classmethod
    def load(cls, path: Path) -> tuple[App, Path]:
        """Read a file, and give where the publisher's key is as well; raises `ConfigError`."""
        try:
            told = tomllib.loads(path.read_text("utf-8"))
            found = cls.of(told)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, Layer8Error) as error:
            raise ConfigError(f"{path}: {error}") from None
        return found, path.parent / told["app"].get("key_file", "publisher.pem")


def _known(table: object, where: str, kinds: Mapping[str, type]) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is no table")
    for name, value in table.items():
        if name not in kinds:
            raise ConfigError(f"{where} has no {name}, only {', '.join(kinds)}")
        if not isinstance(value, kinds[name]):
            raise ConfigError(f"{where} {name} is of the wrong kind")


def _texts(table: Mapping[str, Any], name: str) -> list[str]:
    value = table.get(name, [])
    if not value or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{name} is a list of texts, of at least one")
    return list(value)


def wheel_file(name: str) -> bytes | None:
    """Give a file that relays serve at /l8/VERSION/, of the version that is installed here."""
    if name not in WHEEL:
        return None
    found = resources.files("layer8") / "web" / "tunnel" / name
    return found.read_bytes() if found.is_file() else None


def from_wheel(path: str) -> bytes | None:
    """Give what is installed here for a path, None if it is none of the wheel's, or of another version."""
    before = f"/l8/{layer8.__version__}/"
    return wheel_file(path.removeprefix(before)) if path.startswith(before) else None


def build(folder: Path, app: App, key: NodeKey, *, digest: bytes = b"") -> Manifest:
    """Make the folder an app, and give its manifest; `digest` is the wheel's, where it is known.

    Raises `ConfigError` for what the folder or `app.toml` has wrong, `StorageError` when it cannot be written.
    """
    try:
        return _build(folder, app, key, digest)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from None


def _build(folder: Path, app: App, key: NodeKey, digest: bytes) -> Manifest:
    names = _walk(folder)
    data = {name: (folder / name[1:]).read_bytes() for name in names}
    if sum(map(len, data.values())) > SITE_MOST:
        raise ConfigError(f"{folder}: holds more than {SITE_MOST} bytes, which nobody checks")
    if "/index.html" not in data:
        raise ConfigError(f"{folder}: an app begins with index.html")

    def read(path: str) -> bytes | None:
        return data[path] if path in data else from_wheel(path)

    for name in [name for name in names if name.endswith(".html")]:
        data[name] = _page(folder, name, data[name], read)
    taken = any(read(load) is not None and load not in data for name in names for load in _loaded(name, data[name]))
    files = {name: File.of(content) for name, content in data.items()}
    if taken:
        files |= {
            f"/l8/{layer8.__version__}/{name}": File.of(content)
            for name in WHEEL
            if (content := wheel_file(name)) is not None
        }
    policy = integrity.csp(dict.fromkeys(relay for one in app.gateways.values() for relay in one.relays))
    wheel = (layer8.__version__, digest) if taken else None
    made = Manifest(app.name, key.node_id, 1, files, policy, app.gateways, app.issuer, b"", app.next, wheel)
    signed, made = _after(folder, made, key)
    for name in names:
        if name.endswith(".html"):
            _write(folder / name[1:], data[name])
    shutil.rmtree(folder / ".well-known" / "waict", ignore_errors=True)
    waict, content = integrity.waict(files)
    _write(folder / waict[1:], content)
    told = integrity.headers(files, block=app.block)
    _write(folder / HEADERS[1:], json.dumps(told, indent=2).encode() + b"\n")
    config, unsigned = integrity.webcat(app.url, made.version, policy, files)
    beside = folder.resolve().with_name(f"{folder.resolve().name}.webcat")
    _write(beside / "webcat.config.json", config)
    _write(beside / "manifest.json", unsigned)
    _write(folder / OLD.format(made.version)[1:], signed)
    _write(folder / PATH[1:], signed)  # last: what it speaks of is there
    return made


def _walk(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.rglob("*")):
        name = "/" + path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.is_symlink() or not path.is_file() or not integrity.served(name) or name.startswith(("/l8/", "/r/")):
            raise ConfigError(f"{path}: is no plain file with a plain name, or its place is the relay's own")
        if path.stat().st_size > FILE_MOST:
            raise ConfigError(f"{path}: is larger than {FILE_MOST} bytes")
        found.append(name)
    return found


def _page(folder: Path, name: str, data: bytes, read: markup.Read) -> bytes:
    try:
        text = data.decode("utf-8")
        done = markup.complete(name, text, read, integrity.sri)
    except UnicodeDecodeError:
        raise ConfigError(f"{folder}{name}: is no UTF-8") from None
    except LookupError as error:
        raise ConfigError(f"{folder}{name}: loads {error.args[0]}, which is not there") from None
    if found := markup.inline(done) + markup.missing(name, done, read, integrity.sri):
        raise ConfigError(f"{folder}{name}: {found[0]}: a page has no script or style but its own files'")
    return done.encode()


def _loaded(name: str, data: bytes) -> list[str]:
    if not name.endswith(".html"):
        return []
    return [found for load in markup.loads(data.decode()) if (found := markup.resolve(name, load.url)) is not None]


def _after(folder: Path, made: Manifest, key: NodeKey) -> tuple[bytes, Manifest]:
    """Give the manifest as the next after the one that is there, or that one if it says the same."""
    path = folder / PATH[1:]
    if not path.exists():
        return made.sign(key), made
    data = path.read_bytes()
    try:
        before = Manifest.first(data)
        if made == evolve(before, version=made.version, prev=made.prev):
            return data, before
        made = evolve(made, version=before.version + 1, prev=sha256(data).digest())
        made.follows(data)
    except BadManifest as error:
        raise ConfigError(f"{path}: {error}: move it away to begin anew") from None
    return made.sign(key), made


def _write(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(data)
    os.replace(draft, path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make a folder of files an app that visitors can check."""


@main.command("build")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--config", type=click.Path(path_type=Path), default="app.toml", show_default=True, help="What it is.")
@click.option("--wheel", type=click.Path(path_type=Path, exists=True), help="The wheel of layer8, to name its hash.")
def build_command(folder: Path, config: Path, wheel: Path | None) -> None:
    """Write the integrity of DIR's files into its pages, and the signed manifest with all that belongs to it."""
    try:
        app, key_file = App.load(config)
        digest = sha256(wheel.read_bytes()).digest() if wheel is not None else b""
        made = build(folder, app, NodeKey.load(key_file), digest=digest)
    except Layer8Error as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{made.app} {made.version}: {len(made.files)} files, signed by {pin_text(made.publisher)}")


@main.command("key")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def key_command(path: Path) -> None:
    """Make a publisher's key in FILE, unless it is there, and print its public half."""
    try:
        click.echo(pin_text(NodeKey.load_or_make(path).node_id))
    except Layer8Error as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
