"""What makes a link's bytes secret: TLS 1.3 with a vouching certificate, or Noise. Bytes in, bytes out, no sockets.

Both begin with `start`, take what comes with `feed`, which gives plaintext once `done`, and leave what is to be sent
in `take`. `feed` raises `RemoteProtocolError` for a peer that is none; then nothing is sent, not even an alert.
"""

from __future__ import annotations

import datetime
from typing import Final, Protocol

from attrs import frozen
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, dump_certificate

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.keys import NodeKey
from layer8.crypto.noise import LINK, Handshake, Keys, Records, new_static
from layer8.crypto.vouch import certificate, sign, vouched
from layer8.net.tls import open_client, open_server, unnamed_context
from layer8.relay.wire import ALPN

TLS: Final = "tls"
NOISE: Final = "noise"
GROUP: Final = "X25519MLKEM768"  # what both ends agree on wherever OpenSSL knows it

_READ: Final = 1 << 14  # bytes of one TLS record
_RECORD: Final = 22  # bytes that a record has besides: header 5, type 1, tag 16


@frozen
class Shown:
    """Who the peer is: certified already, or to be said in HELLO about `binding`; `proof` is our own part of that."""

    peer: bytes | None
    binding: bytes = b""
    proof: tuple[bytes, bytes] = (b"", b"")


class Secure(Protocol):
    """One connection's security."""

    done: bool

    def start(self) -> None:
        """Begin."""

    def feed(self, data: bytes) -> bytes:
        """Take what has come, give the plaintext; raises `RemoteProtocolError`."""

    def seal(self, data: bytes) -> bytes:
        """Give what to send for a plaintext, once `done`."""

    def take(self) -> bytes:
        """Give what the handshake wants to send."""

    def shown(self) -> Shown:
        """Say who the peer is, once `done`; raises `RemoteProtocolError`."""

    def end(self) -> bytes:
        """Give the last words."""


class Tls:
    """TLS over memory: a record is as many bytes as whole cells fill it with."""

    __slots__ = ("_client", "_tls", "done")

    def __init__(self, context: SSL.Context, *, client: bool) -> None:
        """Prepare one connection."""
        self._tls = (open_client if client else open_server)(context, None)
        self._client = client
        self.done = False

    def start(self) -> None:
        """Say hello, on the dialling side."""
        if self._client:
            self._shake()

    def feed(self, data: bytes) -> bytes:
        """Go on with the handshake, or decrypt."""
        tls = self._tls
        tls.bio_write(data)
        if not self.done and not self._shake():
            return b""
        out = []
        try:
            while True:
                out.append(tls.recv(_READ))
        except SSL.WantReadError:
            return out[0] if len(out) == 1 else b"".join(out)
        except SSL.ZeroReturnError:
            return b"".join(out)  # close_notify; the end of the connection follows
        except SSL.Error as error:
            raise RemoteProtocolError("TLS broken") from error

    def seal(self, data: bytes) -> bytes:
        """Encrypt into records."""
        size = len(data)
        self._tls.sendall(data)  # `send` stops after one record
        # As much is asked for as there is, since OpenSSL's binding makes room for all of it before it reads.
        return self._take(size + (size // _READ + 1) * _RECORD + 1)

    def take(self) -> bytes:
        """Fetch what OpenSSL wants to send."""
        return self._take(_READ)

    def _take(self, most: int) -> bytes:
        out = []
        try:
            while True:
                out.append(self._tls.bio_read(most))
                if len(out[-1]) < most:
                    break
        except SSL.WantReadError:
            pass
        return out[0] if len(out) == 1 else b"".join(out)

    def shown(self) -> Shown:
        """Look at the certificate; a client may have shown none."""
        if self._tls.get_alpn_proto_negotiated() != ALPN:
            raise RemoteProtocolError("a peer of another protocol")
        shown = self._tls.get_peer_certificate()
        return Shown(None if shown is None else vouched(dump_certificate(FILETYPE_ASN1, shown)))

    def end(self) -> bytes:
        """Say close_notify."""
        try:
            self._tls.shutdown()
        except SSL.Error:
            return b""
        return self.take()

    @property
    def group(self) -> str:
        """The key exchange that was agreed on."""
        return self._tls.get_group_name() or ""

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise RemoteProtocolError("no TLS 1.3 of ours") from error
        self.done = True
        return True


class Noise:
    """Noise XXhfs: each message and record after its length; the identity comes in HELLO."""

    __slots__ = ("_hand", "_out", "_proof", "_records", "_rest", "done")

    def __init__(self, hand: Handshake, proof: tuple[bytes, bytes]) -> None:
        """Prepare one connection; `proof` vouches for our static key, or is empty."""
        self._hand = hand
        self._proof = proof
        self._records: Records | None = None
        self._rest = b""
        self._out: list[bytes] = []
        self.done = False

    def start(self) -> None:
        """Say the first message, on the dialling side."""
        if self._hand.ours:
            self._write()

    def feed(self, data: bytes) -> bytes:
        """Go on with the handshake, or decrypt."""
        if self._records is not None:
            return self._records.open(data)
        data = self._rest + data
        while not self._hand.done and len(data) >= 2:
            size = int.from_bytes(data[:2], "big")
            if size != self._hand.size:
                raise RemoteProtocolError("no Noise of ours")
            if len(data) < 2 + size:
                break
            self._hand.read(data[2 : 2 + size])
            data = data[2 + size :]
            if self._hand.ours:
                self._write()
        if not self._hand.done:
            self._rest = data
            return b""
        self._records = Records(self._hand.split())
        self._rest, self.done = b"", True
        return self._records.open(data)

    def seal(self, data: bytes) -> bytes:
        """Encrypt into records."""
        if self._records is None:
            return b""
        return self._records.seal(data)

    def take(self) -> bytes:
        """Give the handshake's messages."""
        out, self._out = self._out, []
        return b"".join(out)

    def shown(self) -> Shown:
        """Give the static key that HELLO may vouch for."""
        return Shown(None, self._hand.remote, self._proof)

    def end(self) -> bytes:
        """Say nothing: TCP's end is the end."""
        return b""

    def _write(self) -> None:
        message = self._hand.write()
        self._out += (len(message).to_bytes(2, "big"), message)


class Security:
    """Makes the security of a node's links; without `key` it is nameless on the links that it dials.

    Certificate and static key live as long as this object; a nameless side takes a new static key for each link.
    """

    def __init__(self, key: NodeKey | None, network: bytes, now: datetime.datetime) -> None:
        """Make what lasts; `now` only fills the dates of the certificate, which nobody reads."""
        self.named = key is not None
        self._prologue = ALPN + network
        identity = None if key is None else certificate(key, now)
        alpn = ALPN.decode()
        self._client = unnamed_context(identity, alpn, server=False)
        self._server = None if identity is None else unnamed_context(identity, alpn, server=True)
        self._static = new_static()
        self._proof = (b"", b"")
        if key is not None:
            self._proof = key.node_id, sign(key, self._static.public_key().public_bytes_raw())

    def dialling(self, kind: str) -> Secure:
        """Give the dialling side of one connection."""
        return self._noise(initiator=True) if kind == NOISE else Tls(self._client, client=True)

    def accepting(self, kind: str) -> Secure:
        """Give the accepting side of one connection; raises `LocalProtocolError` on a node that has no name."""
        if self._server is None:
            raise LocalProtocolError("a node without a key accepts nobody")
        if kind == NOISE:
            return self._noise(initiator=False)
        return Tls(self._server, client=False)

    def _noise(self, *, initiator: bool) -> Noise:
        static = self._static if self.named else new_static()
        return Noise(Handshake(LINK, Keys(static), self._prologue, initiator=initiator), self._proof)
