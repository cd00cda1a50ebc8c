"""The keys in the state folder, made when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layer8.config import files
from layer8.config.home import CONTROL_PEM, NODE_KEY
from layer8.crypto.keyfile import write_private
from layer8.crypto.keys import NodeKey
from layer8.crypto.x509 import Identity, self_signed

_LOCAL = ("localhost", "127.0.0.1", "::1")


def node_key(folder: Path) -> NodeKey:
    """Give the node's own key; raises ConfigError or StorageError."""
    return NodeKey.load_or_make(folder / NODE_KEY)


def identity(
    folder: Path, environ: Mapping[str, str], *, name: str = "", cert_file: str = "", key_file: str = ""
) -> Identity:
    """Give the certificate of this daemon's TLS listeners.

    It is the configured pair if there is one, else `control.pem`, which is self-signed: peers know it by its pin.
    Raises ConfigError or StorageError.
    """
    if key_file:
        key = Path(key_file)
        return Identity.load(key, Path(cert_file) if cert_file else None, forbidden=files.forbidden(key, environ))
    path = folder / CONTROL_PEM
    if not path.exists():
        key_pem, cert_pem = self_signed([name, *_LOCAL] if name else list(_LOCAL))
        write_private(path, Identity.from_pem(key_pem, cert_pem).pem())
    return Identity.load(path)
