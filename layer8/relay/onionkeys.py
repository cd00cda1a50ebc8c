"""A relay's onion keys in their private file: one is in use for 28 days, the one before it is taken for 7 more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from layer8.core import bencode
from layer8.core.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from layer8.crypto.keyfile import read_private, write_private
from layer8.crypto.ntor import OnionKey

KEY_LIFE: Final = 28 * 86_400.0  # seconds in use
KEY_AFTER: Final = 7 * 86_400.0  # seconds that the old one is still taken


@define(eq=False)
class OnionKeys:
    """The keys; without a path they last as long as the process. Raises ConfigError or StorageError."""

    path: Path | None
    _now: OnionKey = field(factory=OnionKey.make, init=False, repr=False)
    _old: OnionKey | None = field(default=None, init=False, repr=False)
    _since: float = field(default=0.0, init=False)

    def load(self, now: float) -> None:
        """Read the file, or write a first one; `now` is in seconds since 1970."""
        self._since = now
        if self.path is not None and self.path.exists():
            try:
                told: Any = bencode.decode(read_private(self.path))
                keys = [OnionKey.from_private(bytes(one)) for one in told[b"keys"]]
                self._since = float(told[b"since"])
                self._now, self._old = keys[0], keys[1] if len(keys) > 1 else None
            except (RemoteProtocolError, LocalProtocolError, KeyError, IndexError, TypeError, ValueError):
                raise ConfigError(f"{self.path}: these are no onion keys; move the file away") from None
        if not self.turn(now) and self.path is not None and not self.path.exists():
            self._save()

    def turn(self, now: float) -> bool:
        """Take a new key when it is time, and forget the old one when that is over; say whether there is a new one."""
        fresh = not -KEY_LIFE < now - self._since < KEY_LIFE
        if fresh:
            self._old, self._now, self._since = self._now, OnionKey.make(), now
        elif self._old is not None and now - self._since >= KEY_AFTER:
            self._old = None
        else:
            return False
        self._save()
        return fresh

    @property
    def public(self) -> bytes:
        """The public half of the key in use, 32 bytes."""
        return self._now.public

    @property
    def by_public(self) -> Mapping[bytes, OnionKey]:
        """Every key that is taken."""
        keys = {self._now.public: self._now}
        if self._old is not None:
            keys[self._old.public] = self._old
        return keys

    def _save(self) -> None:
        if self.path is not None:
            keys = [self._now, *([self._old] if self._old is not None else [])]
            told: Any = {b"keys": [key.private for key in keys], b"since": int(self._since)}
            write_private(self.path, bencode.encode(told))
