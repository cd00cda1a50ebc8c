"""The secret of a published host: made, written, read and hashed here."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from attrs import field, frozen

from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import OTHERS, read_private, write_private
from layer8.crypto.proof import secret_key

SECRET_LEAST = 32  # bytes
SECRET_MOST = 256  # bytes
SECRET_MADE = 32  # bytes of randomness in a secret that we make
DISTINCT_LEAST = 8  # byte values; 32 random bytes have fewer than once in 10^34 tries, a repeated pattern always has
SHOWN = 8  # hex digits of the stored hash that lists may show

_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){%d,%d}\Z" % (SECRET_LEAST, SECRET_MOST))


@frozen
class HostSecret:
    """What proves the right to serve a host: 32 to 256 bytes that are not a pattern."""

    value: bytes = field(repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot be a secret with `ConfigError`."""
        if not SECRET_LEAST <= len(self.value) <= SECRET_MOST:
            raise ConfigError(f"a host secret has {SECRET_LEAST} to {SECRET_MOST} bytes, this one {len(self.value)}")
        if len(set(self.value)) < DISTINCT_LEAST:
            raise ConfigError(f"a host secret needs {DISTINCT_LEAST} different byte values; let us make one instead")

    @classmethod
    def make(cls) -> HostSecret:
        """Make a new one from 32 random bytes."""
        return cls(secrets.token_bytes(SECRET_MADE))

    @classmethod
    def load(cls, path: Path, *, forbidden: int = OTHERS) -> HostSecret:
        """Read one from a private file that holds it as hex digits; raises `ConfigError` with the path."""
        text = read_private(path, forbidden=forbidden).strip()
        if not _HEX.match(text):
            raise ConfigError(f"{path}: a host secret is written as {2 * SECRET_LEAST} to {2 * SECRET_MOST} hex digits")
        try:
            return cls(bytes.fromhex(text.decode("ascii")))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write it as hex digits to a private file; raises `StorageError`."""
        write_private(path, self.hex().encode("ascii") + b"\n")

    def hex(self) -> str:
        """Give the secret itself as hex digits, to be shown once to the one who asked for it."""
        return self.value.hex()

    @property
    def key(self) -> bytes:
        """K, the SHA-256 that a server stores and that proofs are made with."""
        return secret_key(self.value)

    @property
    def shown(self) -> str:
        """The first digits of the stored hash, by which people tell secrets apart."""
        return self.key.hex()[:SHOWN]
