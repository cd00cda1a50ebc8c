"""Every proof of who calls that one process takes: the cookie, named tokens, certificates by key, the peer's uid.

Wrong tokens count against the address they came from; a banned address gets RateLimited for right ones too, so that
a ban cannot be used to find out whether a token is right.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from hmac import compare_digest
from pathlib import Path
from secrets import token_bytes
from typing import Final

from layer8.control.conversation import Known
from layer8.control.errors import RateLimited
from layer8.control.tokens import SECRET_SIZE, Token, Tokens, digest_of, dump_tokens, parse_tokens, token_text
from layer8.core.errors import ConfigError
from layer8.core.guesses import Guesses
from layer8.crypto.keyfile import read_private, write_private

TOKENS_FILE: Final = "tokens.toml"
TOKENS_SIZE: Final = 4 * 1024 * 1024  # bytes; TOKENS entries fit
ADMIN: Final = frozenset({"admin"})


class Keyring:
    """The proofs of one process; named tokens live in a file that `layer8 init --token` writes too."""

    def __init__(
        self,
        folder: Path,
        seconds: Callable[[], float],
        wall: Callable[[], float],
        certificates: Mapping[str, Known] | None = None,
    ) -> None:
        """Take the state folder, the monotonic and the wall clock's seconds, and callers by the pin of their key.

        Reads the named tokens; raises ConfigError if their file is no good.
        """
        self._path = folder / TOKENS_FILE
        self._seconds = seconds
        self._wall = wall
        self._guesses = Guesses()
        self._certificates = dict(certificates or {})
        self.cookie = token_text(token_bytes(SECRET_SIZE))
        self._cookie_digest = digest_of(self.cookie)
        self.tokens = read_tokens(self._path)
        self.changed: Callable[[], None] = _nobody
        """Told when a named token was added or revoked."""

    def read(self) -> Tokens:
        """Read the named tokens again, for whoever sets `tokens` to them; raises ConfigError."""
        return read_tokens(self._path)

    def by_token(self, text: str, address: str | None) -> Known | None:
        """Find who shows this token, None if nobody; raises RateLimited for an address that has guessed too much.

        Both comparisons are always made, in constant time over SHA-256.
        """
        now = self._seconds()
        wait = self._guesses.wait(address, now)
        if wait:
            raise RateLimited(int(wait * 1000) + 1)
        token = self.tokens.check(text, self._wall())
        if compare_digest(digest_of(text), self._cookie_digest):
            return Known("cookie", ADMIN)
        if token is not None:
            return Known(token.name, token.roles, token.hosts)
        self._guesses.wrong(address, now)
        return None

    def by_certificate(self, pin: str | None) -> Known | None:
        """Find who has the key with this pin."""
        return None if pin is None else self._certificates.get(pin)

    @property
    def knows_certificates(self) -> bool:
        """Whether it is of any use to ask a client for a certificate."""
        return bool(self._certificates)

    def add(self, name: str, roles: frozenset[str], ttl: float | None, hosts: tuple[str, ...] = ()) -> str:
        """Make a named token, keep its hash, and give its text, this once; ValueError for what cannot be."""
        text = token_text(token_bytes(SECRET_SIZE))
        now = int(self._wall())
        token = Token(name, digest_of(text), roles, now, None if ttl is None else now + int(ttl), hosts)
        self._keep(self.tokens.with_token(token))
        return text

    def revoke(self, name: str) -> bool:
        """Forget a named token; False if there is none."""
        if name not in self.tokens:
            return False
        self._keep(self.tokens.without(name))
        return True

    def _keep(self, tokens: Tokens) -> None:
        """Write first, so that what is believed is what a restart would find."""
        write_private(self._path, dump_tokens(tokens).encode())
        self.tokens = tokens
        self.changed()


def _nobody() -> None:
    pass


def read_tokens(path: Path) -> Tokens:
    """Read a token file, none being an empty one; raises ConfigError with the path."""
    if not path.exists():
        return Tokens()
    try:
        return parse_tokens(read_private(path, most=TOKENS_SIZE).decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: it is not UTF-8 text") from None
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def peer_is_us(end: socket.socket) -> bool:
    """Say whether the other end of a Unix socket runs as our user or as root (SO_PEERCRED, unix(7))."""
    _pid, uid, _gid = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (0, os.getuid())
