"""Messages that one node seals to another: HPKE in base mode (RFC 9180), signed by the sender's node key.

The suite is DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. Base mode says nothing about who sent, so the
sealed text begins with a signature::

    sealed   sender 32 | enc 32 | ciphertext
    text     signature 64 | number 8 | message        signature over  info | number | message
    info     LABEL | sender | receiver | sender's key

A node's own key is new at each start and is announced as ``key 32 | signature 64``. A message counts once: its number
is looked for among the last WINDOW that came with the sender's key, which no message of an earlier start goes with.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, verify

KEY: Final = 32  # bytes of an X25519 key, and of what HPKE calls enc
TAG: Final = 16  # bytes that sealing adds
NUMBER: Final = 8
WINDOW: Final = 1024  # numbers that may come late
LEAST: Final = NODE_ID + KEY + SIGNATURE + NUMBER + TAG  # bytes of a sealed message that says nothing
LABEL: Final = b"layer8 node message 1"
ANNOUNCED: Final = b"layer8 sealing key 1"

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def seal(message: bytes, key: X25519PublicKey, info: bytes) -> bytes:
    """Seal to the holder of a key, with no word about who did: ``enc | ciphertext``."""
    return _SUITE.encrypt(message, key, info)


def unseal(sealed: bytes, key: X25519PrivateKey, info: bytes) -> bytes:
    """Open what was sealed to our key with the same `info`; raises `RemoteProtocolError`."""
    try:
        return _SUITE.decrypt(sealed, key, info)
    except (InvalidTag, ValueError) as error:
        raise RemoteProtocolError("a sealed message cannot be opened") from error


@define(eq=False)
class _Window:
    """Which numbers of one sender have come."""

    highest: int = -1
    seen: int = 0  # bit n: highest - n has come

    def fresh(self, number: int) -> bool:
        """Take a number; False if it has come before or is too old to tell."""
        ahead = number - self.highest
        if ahead > 0:
            self.seen = ((self.seen << min(ahead, WINDOW)) | 1) & ((1 << WINDOW) - 1)
            self.highest = number
            return True
        if -ahead >= WINDOW or self.seen >> -ahead & 1:
            return False
        self.seen |= 1 << -ahead
        return True


@define(eq=False)
class Sealer:
    """A node's side of it: seals to the nodes it knows, opens what they sealed."""

    key: NodeKey
    announcement: bytes = field(init=False, repr=False)
    _private: X25519PrivateKey = field(factory=X25519PrivateKey.generate, repr=False)
    _known: dict[bytes, tuple[bytes, X25519PublicKey]] = field(factory=dict, init=False, repr=False)
    _windows: dict[bytes, _Window] = field(factory=dict, init=False, repr=False)
    _public: bytes = field(init=False, repr=False)
    _number: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        """Sign the key that others seal to."""
        self._public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.announcement = self._public + self.key.sign(ANNOUNCED + self._public)

    @property
    def node(self) -> bytes:
        """Our own id."""
        return self.key.node_id

    @property
    def nodes(self) -> frozenset[bytes]:
        """The ids of all nodes that we can seal to."""
        return frozenset(self._known)

    def know(self, node: bytes, announcement: bytes) -> None:
        """Take another node's announced key, in place of an older one; raises `RemoteProtocolError`."""
        public, signature = announcement[:KEY], announcement[KEY:]
        if not verify(node, signature, ANNOUNCED + public):
            raise RemoteProtocolError("a sealing key is not signed by its node")
        if self._known.get(node, (b"",))[0] != public:
            self._known[node] = public, X25519PublicKey.from_public_bytes(public)
            self._windows.pop(node, None)

    def forget(self, node: bytes) -> None:
        """Take nothing from a node any more, and send it nothing."""
        self._known.pop(node, None)
        self._windows.pop(node, None)

    def seal(self, node: bytes, message: bytes) -> bytes:
        """Seal a message to a node; raises `Unavailable` for one that is not known."""
        if node not in self._known:
            raise Unavailable("this node has announced no key")
        self._number += 1
        text = self._number.to_bytes(NUMBER, "big") + message
        ends = LABEL + self.node + node + self._public
        return self.node + seal(self.key.sign(ends + text) + text, self._known[node][1], ends)

    def open(self, sealed: bytes) -> tuple[bytes, bytes]:
        """Give the sender and the message; raises `RemoteProtocolError` for anything but a known node's new message."""
        sender = sealed[:NODE_ID]
        if sender not in self._known or len(sealed) < LEAST:
            raise RemoteProtocolError("a message of no node that we know")
        ends = LABEL + sender + self.node + self._known[sender][0]
        opened = unseal(sealed[NODE_ID:], self._private, ends)
        signature, text = opened[:SIGNATURE], opened[SIGNATURE:]
        if not verify(sender, signature, ends + text):
            raise RemoteProtocolError("a message is not its sender's")
        number = int.from_bytes(text[:NUMBER], "big")
        if not self._windows.setdefault(sender, _Window()).fresh(number):
            raise RemoteProtocolError("a message has come before")
        return sender, text[NUMBER:]
