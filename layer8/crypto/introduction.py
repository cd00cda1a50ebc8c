r"""How a client is introduced to a hidden service, and both agree on keys, in one message each way.

The service is known by its key A, from which its address is made; what the client read under A names, for each access
point, an auth key and an enc key b, B. The shape is that of `layer8.crypto.ntor`, and so is the end of it::

    P        "layer8/1 hidden x25519 mlkem768 sha256" | network 8 | A 32 | auth key 32 | B 32
    blob     X 32 | AEAD(k, aad auth key | X, plain), BLOB bytes always
             k = HKDF-SHA256(DH(x, B), "layer8/1 intro" | auth key | B | X | cookie 32 of known clients, or zeros)
    plain    mode u8 | time u32 | cookie 32 | hop: node id 32, onion key 32, len u8, endpoint | ek 1184
             | login: key 32, signature 64, or zeros | zeros
    reply    Y 32 | ct 1088 | auth 32 | AEAD(km, aad auth, SM), with T = SHA-256(P | blob | Y | ct)
    keys     forward 144 | backward 144 | binding 32

Only who holds b answers, and since P holds A, the client knows that it is the service that it meant. A login signs
"layer8/1 visit\0" | X | auth key | A: it is good for one introduction to one service. Nothing here may run where the
reactor waits.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from layer8.core.errors import LocalProtocolError
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, verify
from layer8.crypto.ntor import (
    CT,
    EK,
    KEY,
    NETWORK,
    HandshakeFailed,
    Keys,
    OnionKey,
    SeenX,
    encapsulate,
    encapsulated,
    schedule,
)

BLOB: Final = 1600  # bytes
COOKIE: Final = 32
ENDPOINT_MOST: Final = 128  # bytes

_TAG: Final = 16
_PLAIN: Final = BLOB - KEY - _TAG
_LABEL: Final = b"layer8/1 hidden x25519 mlkem768 sha256"
_INTRO: Final = b"layer8/1 intro"
_LOGIN: Final = b"layer8/1 visit\0"
_NONCE: Final = bytes(12)
_HEAD = struct.Struct(">BI32s32s32sB")
_NOBODY: Final = bytes(NODE_ID + SIGNATURE)


@frozen
class Door:
    """Where a client knocks: the service's key A and one access point's two keys, in a network of this id."""

    network: bytes
    service: bytes
    auth_key: bytes
    enc_key: bytes

    @property
    def place(self) -> bytes:
        """Give P; raises `LocalProtocolError` for parts of wrong length."""
        if len(self.network) != NETWORK or {len(self.service), len(self.auth_key), len(self.enc_key)} != {KEY}:
            raise LocalProtocolError("a door has a network id of 8 bytes and three keys of 32")
        return _LABEL + self.network + self.service + self.auth_key + self.enc_key


@frozen
class Meeting:
    """What a client proposes: a rendezvous hop, and the cookie that it waits with there."""

    mode: int
    time: int  # seconds since 1970
    cookie: bytes = field(repr=False)
    node: bytes = field(repr=False)
    onion_key: bytes = field(repr=False)
    endpoint: str = field(repr=False)


@define(eq=False)
class Knocked:
    """A client's side while it waits for the reply; `blob` is what to send."""

    blob: bytes = field(repr=False)
    _x: OnionKey = field(repr=False)
    _dk: MLKEM768PrivateKey = field(repr=False)
    _e1: bytes = field(repr=False)
    _place: bytes = field(repr=False)

    def finish(self, reply: bytes) -> Keys:
        """Take the reply; raises `HandshakeFailed` unless it is the service's own to this very knock."""
        y, ct = reply[:KEY], reply[KEY : KEY + CT]
        auth, sealed = reply[KEY + CT : 2 * KEY + CT], reply[2 * KEY + CT :]
        if len(sealed) < _TAG:
            raise HandshakeFailed
        try:
            shared = self._e1 + self._x.agree(y) + self._dk.decapsulate(ct)
        except ValueError as error:
            raise HandshakeFailed from error
        expected, km, keys = schedule(self._place + self.blob + y + ct, shared)
        if not hmac.compare_digest(auth, expected):
            raise HandshakeFailed
        try:
            return Keys.cut(keys, AESGCM(km).decrypt(_NONCE, sealed, auth))
        except InvalidTag as error:
            raise HandshakeFailed from error


@define(eq=False)
class Introduced:
    """A service's side once it has opened a blob: who wants to meet it where, and what answers him."""

    meeting: Meeting
    login: bytes | None  # the client's key, if it has said who it is; its signature is good
    _x: bytes = field(repr=False)
    _ek: bytes = field(repr=False)
    _e1: bytes = field(repr=False)
    _before: bytes = field(repr=False)

    def reply(self, sm: bytes) -> tuple[bytes, Keys]:
        """Give what to send and the keys; raises `HandshakeFailed` for keys that no client has made."""
        y = OnionKey.make()
        try:
            e2 = y.agree(self._x)
        except ValueError as error:
            raise HandshakeFailed from error
        ss, ct, fits = encapsulated(encapsulate, self._ek)
        if not fits:
            raise HandshakeFailed
        auth, km, keys = schedule(self._before + y.public + ct, self._e1 + e2 + ss)
        return y.public + ct + auth + AESGCM(km).encrypt(_NONCE, sm, auth), Keys.cut(keys, sm)


def knock(door: Door, meeting: Meeting, *, cookie: bytes = b"", login: NodeKey | None = None) -> Knocked:
    """Make the blob for a door, with the cookie that known clients have there, as somebody or nobody.

    Raises `LocalProtocolError` for what does not go into a blob, `HandshakeFailed` for an enc key of low order.
    """
    endpoint = meeting.endpoint.encode("ascii")
    if len(endpoint) > ENDPOINT_MOST or len(meeting.cookie) != COOKIE or len(meeting.node + meeting.onion_key) != 64:
        raise LocalProtocolError("a meeting that does not go into a blob")
    x, dk = OnionKey.make(), MLKEM768PrivateKey.generate()
    try:
        e1 = x.agree(door.enc_key)
    except ValueError as error:
        raise HandshakeFailed from error
    who = _NOBODY if login is None else login.node_id + login.sign(_login(x.public, door))
    head = _HEAD.pack(meeting.mode, meeting.time, meeting.cookie, meeting.node, meeting.onion_key, len(endpoint))
    plain = (head + endpoint + dk.public_key().public_bytes_raw() + who).ljust(_PLAIN, b"\0")
    sealed = AESGCM(_key(e1, door, x.public, cookie)).encrypt(_NONCE, plain, door.auth_key + x.public)
    return Knocked(x.public + sealed, x, dk, e1, door.place)


def introduced(door: Door, key: OnionKey, blob: bytes, seen: SeenX, *, cookie: bytes = b"") -> Introduced:
    """Open a blob at the door whose enc key is `key`; raises `HandshakeFailed` for any other and for one again."""
    if len(blob) != BLOB:
        raise HandshakeFailed
    x = blob[:KEY]
    try:
        e1 = key.agree(x)
        plain = AESGCM(_key(e1, door, x, cookie)).decrypt(_NONCE, blob[KEY:], door.auth_key + x)
    except (ValueError, InvalidTag) as error:
        raise HandshakeFailed from error
    mode, time, token, node, onion_key, size = _HEAD.unpack_from(plain)
    at = _HEAD.size + size
    endpoint, ek, who = plain[_HEAD.size : at], plain[at : at + EK], plain[at + EK : at + EK + len(_NOBODY)]
    if size > ENDPOINT_MOST or not endpoint.isascii():
        raise HandshakeFailed
    known = who != _NOBODY
    if known and not verify(who[:NODE_ID], who[NODE_ID:], _login(x, door)):
        raise HandshakeFailed
    if not seen.fresh(door.enc_key, x):
        raise HandshakeFailed
    meeting = Meeting(mode, time, token, node, onion_key, endpoint.decode("ascii"))
    return Introduced(meeting, who[:NODE_ID] if known else None, x, ek, e1, door.place + blob)


def _login(x: bytes, door: Door) -> bytes:
    return _LOGIN + x + door.auth_key + door.service


def _key(e1: bytes, door: Door, x: bytes, cookie: bytes) -> bytes:
    info = _INTRO + door.auth_key + door.enc_key + x + (cookie or bytes(COOKIE))
    return HKDF(SHA256(), KEY, None, info).derive(e1)
