"""Where a user's state lives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CONFIG_NAME = "layer8.toml"
NODE_KEY = "node.key"
"""The node's own Ed25519 key (see `layer8.crypto.keys`)."""
CONTROL_PEM = "control.pem"
"""Key and self-signed certificate that peers pin (see `layer8.crypto.x509`)."""
TOKENS = "tokens.toml"
"""The named tokens of the control API, as hashes."""
SECRETS = "secrets"
"""Folder of the secrets of hosts."""


def home(environ: Mapping[str, str]) -> Path:
    """Give the state folder: $LAYER8_HOME, else systemd's $STATE_DIRECTORY, else layer8 in the XDG state folder."""
    if given := environ.get("LAYER8_HOME"):
        return Path(given)
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environ.get("XDG_STATE_HOME"):
        return Path(given) / "layer8"
    return Path(environ.get("HOME", "/")) / ".local" / "state" / "layer8"


def run_dir(environ: Mapping[str, str]) -> Path:
    """Give the folder of the daemons' sockets and cookies; each daemon has NAME.sock and NAME.token there."""
    return home(environ) / "run"


def secret_path(host: str, environ: Mapping[str, str]) -> Path:
    """Give where the secret of a registered host is kept, unless somebody says otherwise."""
    return home(environ) / SECRETS / f"{host.replace('*', '_')}.secret"


def config_paths(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Give where the configuration file may be, best first: the state folder, then systemd's configuration folder."""
    folders = [home(environ)]
    if given := environ.get("CONFIGURATION_DIRECTORY"):
        folders.append(Path(given.split(":")[0]))
    return tuple(folder / CONFIG_NAME for folder in folders)
