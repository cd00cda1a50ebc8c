"""Oblivious HTTP (RFC 9458) and its chunked form (draft-ietf-ohai-chunked-ohttp-08) as bytes.

A page seals each request to its gateway, in HPKE's base mode; the answer goes under keys that both take out of it::

  page                              relay                             gateway
   |--POST head 39 | sealed---------->|--POST head 39 | sealed---------->|   opens, calls the backend
   |<-200 nonce | sealed--------------|<-200 nonce | sealed--------------|

  configuration   id 1 | KEM 2 = 0020 | public key 32 | length 2 | (KDF 2 = 0001 | AEAD 2) *
  document        length 2 | configuration                          application/ohttp-keys, exactly one
  head            id 1 | KEM 2 | KDF 2 | AEAD 2 | enc 32
  info            "message/bhttp request"         | 00 | first 7 bytes of the head
                  "message/bhttp chunked request" | 00 | ...
  sealed          ciphertext                                        message/ohttp-req, -res
                  (length 17..16400 | ciphertext) * | 00 | ciphertext, to the end        message/ohttp-chunked-req, -res
  nonce           max(12, AEAD's key) random bytes: 16 for AES-128-GCM, 32 for ChaCha20-Poly1305
  answer's keys   secret = Export("message/bhttp [chunked ]response", length of nonce)
                  prk = Extract(enc | nonce, secret); key = Expand(prk, "key"); base nonce = Expand(prk, "nonce", 12)

Lengths of chunks are QUIC's numbers. Chunk i goes under the base nonce XOR i, with no associated data; the last one has
"final", so a message that was cut does not pass for a whole one.
"""

from __future__ import annotations

import json
from typing import Final, Protocol

from attrs import field, frozen

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.hpke_context import (
    ENC,
    KDF,
    KEM,
    NONCE,
    TAG,
    Aead,
    Context,
    Private,
    Sequence,
    expand,
    extract,
    receiver,
    sender,
)
from layer8.tunnel.bhttp import read_varint, varint
from layer8.tunnel.limits import CHUNK_PLAIN, CHUNK_SEALED, MAX_CHUNKS, MAX_MESSAGE, MAX_SINGLE

ALGORITHMS: Final = 7  # bytes of a head before `enc`
HEAD: Final = ALGORITHMS + ENC
KEYS_TYPE: Final = "application/ohttp-keys"
PROBLEM_TYPE: Final = "application/problem+json"
PROBLEM_MOST: Final = 4096  # bytes of a problem that are read

ABOUT_BLANK: Final = "about:blank"
OHTTP_KEY: Final = "https://iana.org/assignments/http-problem-types#ohttp-key"
DATE: Final = "https://iana.org/assignments/http-problem-types#date"
NOT_FORWARDED: Final = "urn:l8:problem:not-forwarded"

_FINAL: Final = b"final"
_STEPS: Final = tuple(512 << step for step in range(8))  # bytes, 512 to 65536


class Refusal(RemoteProtocolError):
    """A message that is not opened; `status` and `problem` are what its sender is told outside of any seal."""

    def __init__(self, why: str, status: int = 400, problem: str = ABOUT_BLANK) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.status = status
        self.problem = problem


@frozen
class Media:
    """One of the two forms, by its types and labels."""

    request: str
    response: str
    info: bytes
    exported: bytes
    chunked: bool


SINGLE: Final = Media(
    "message/ohttp-req", "message/ohttp-res", b"message/bhttp request", b"message/bhttp response", chunked=False
)
CHUNKED: Final = Media(
    "message/ohttp-chunked-req",
    "message/ohttp-chunked-res",
    b"message/bhttp chunked request",
    b"message/bhttp chunked response",
    chunked=True,
)
MEDIA: Final = {one.request: one for one in (SINGLE, CHUNKED)}


@frozen
class KeyConfig:
    """A gateway's public key with the AEADs that it opens; the KEM is X25519, the KDF is HKDF-SHA256."""

    key_id: int
    public: bytes
    aeads: tuple[Aead, ...] = (Aead.AES_128_GCM,)

    def encode(self) -> bytes:
        """Give the configuration, without a length before it."""
        suites = b"".join(KDF.to_bytes(2, "big") + aead.to_bytes(2, "big") for aead in self.aeads)
        head = bytes((self.key_id,)) + KEM.to_bytes(2, "big") + self.public
        return head + len(suites).to_bytes(2, "big") + suites

    def document(self) -> bytes:
        """Give what is served as KEYS_TYPE."""
        config = self.encode()
        return len(config).to_bytes(2, "big") + config

    @classmethod
    def read(cls, data: bytes) -> KeyConfig:
        """Read a configuration; raises `RemoteProtocolError`, also if it has no AEAD that we know."""
        start = 3 + ENC + 2
        if len(data) < start or int.from_bytes(data[1:3], "big") != KEM:
            raise RemoteProtocolError("a key configuration that is cut or of another KEM")
        suites = data[start:]
        if int.from_bytes(data[start - 2 : start], "big") != len(suites) or len(suites) % 4:
            raise RemoteProtocolError("a key configuration of a wrong length")
        aeads: list[Aead] = []
        for at in range(0, len(suites), 4):
            number = int.from_bytes(suites[at + 2 : at + 4], "big")
            known = int.from_bytes(suites[at : at + 2], "big") == KDF and number in Aead._value2member_map_
            if known and number not in aeads:
                aeads.append(Aead(number))
        if not aeads:
            raise RemoteProtocolError("a key configuration without an AEAD that we know")
        return cls(data[0], bytes(data[3 : 3 + ENC]), tuple(aeads))

    @classmethod
    def read_document(cls, data: bytes) -> KeyConfig:
        """Read KEYS_TYPE; raises `RemoteProtocolError`, also for two of them: they would part a gateway's users."""
        if len(data) < 2 or int.from_bytes(data[:2], "big") != len(data) - 2:
            raise RemoteProtocolError("not exactly one key configuration")
        return cls.read(data[2:])


@frozen
class Head:
    """The head of a sealed request: which key and AEAD, and what the key is found with."""

    key_id: int
    aead: Aead
    enc: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give its HEAD bytes."""
        return algorithms(self.key_id, self.aead) + self.enc

    @classmethod
    def read(cls, data: bytes) -> Head:
        """Read HEAD bytes; raises `Refusal` for algorithms that no configuration of ours has offered."""
        if len(data) != HEAD:
            raise Refusal("a sealed request without its head")
        aead = _BY_ALGORITHMS.get(bytes(data[1:ALGORITHMS]))
        if aead is None:
            raise Refusal("a sealed request of other algorithms", 400, OHTTP_KEY)
        return cls(data[0], aead, bytes(data[ALGORITHMS:]))


def algorithms(key_id: int, aead: Aead) -> bytes:
    """Give the first ALGORITHMS bytes of a head."""
    return bytes((key_id,)) + _ALGORITHMS[aead]


_ALGORITHMS: Final = {aead: b"".join(number.to_bytes(2, "big") for number in (KEM, KDF, aead)) for aead in Aead}
_BY_ALGORITHMS: Final = {written: aead for aead, written in _ALGORITHMS.items()}


def info(media: Media, key_id: int, aead: Aead) -> bytes:
    """Give what HPKE binds a request to."""
    return media.info + b"\0" + algorithms(key_id, aead)


class Sealer(Protocol):
    """One side's message on its way out."""

    def seal(self, text: bytes | memoryview) -> bytes:
        """Give what of the sealed message goes out now; it may be nothing."""

    def finish(self, text: bytes = b"") -> bytes:
        """Give the rest, with the last of the text in it; nothing is sealed afterwards."""


class Opener(Protocol):
    """The other side's message on its way in, cut anywhere; both raise `Refusal`, and go on doing so."""

    def feed(self, data: bytes) -> list[bytes]:
        """Give the pieces of the text that are whole now; a flaw behind them is raised by the next call."""

    def end(self) -> bytes:
        """Give the last piece: the message was whole."""


class _ChunkSealer:
    __slots__ = ("_done", "_messages", "_prefix")

    def __init__(self, messages: Sequence, prefix: bytes) -> None:
        self._messages = messages
        self._prefix = prefix
        self._done = False

    def seal(self, text: bytes | memoryview) -> bytes:
        out = [self._begin()]
        view = memoryview(text)
        for at in range(0, len(text), CHUNK_PLAIN):
            sealed = self._messages.seal(view[at : at + CHUNK_PLAIN])
            out += (varint(len(sealed)), sealed)
        return b"".join(out)

    def finish(self, text: bytes = b"") -> bytes:
        last = (len(text) - 1) // CHUNK_PLAIN * CHUNK_PLAIN if text else 0
        out = self.seal(text[:last]) + b"\0" + self._messages.seal(text[last:], _FINAL)
        self._done = True
        return out

    def _begin(self) -> bytes:
        if self._done:
            raise LocalProtocolError("more of a message that is finished")
        prefix, self._prefix = self._prefix, b""
        return prefix


class _SingleSealer:
    __slots__ = ("_done", "_messages", "_prefix", "_text")

    def __init__(self, messages: Sequence, prefix: bytes) -> None:
        self._messages = messages
        self._prefix = prefix
        self._text = bytearray()
        self._done = False

    def seal(self, text: bytes | memoryview) -> bytes:
        if self._done:
            raise LocalProtocolError("more of a message that is finished")
        if len(self._text) + len(text) > MAX_SINGLE:
            raise LocalProtocolError("more than is sealed in one piece")
        self._text += text
        return b""

    def finish(self, text: bytes = b"") -> bytes:
        self.seal(text)
        self._done = True
        return self._prefix + self._messages.seal(bytes(self._text))


class _ChunkOpener:
    __slots__ = ("_chunks", "_final", "_flaw", "_held", "_messages", "_size", "_total")

    def __init__(self, messages: Sequence) -> None:
        self._messages = messages
        self._held = bytearray()
        self._size = 0  # of the chunk that is awaited, 0 if its length is
        self._final = False
        self._flaw: Refusal | None = None
        self._chunks = 0
        self._total = 0

    def feed(self, data: bytes) -> list[bytes]:
        if self._flaw is not None:
            raise self._flaw
        self._held += data
        texts: list[bytes] = []
        try:
            while (text := self._next()) is not None:
                texts.append(text)
        except Refusal as flaw:
            self._flaw = flaw
            self._held.clear()
            if not texts:
                raise
        return texts

    def end(self) -> bytes:
        if self._flaw is not None:
            raise self._flaw
        if not self._final:
            raise Refusal("a sealed message without its end")
        return self._open(bytes(self._held), _FINAL)

    def _next(self) -> bytes | None:
        """Give the next chunk that is whole, None if none is or only the last is to come."""
        if not self._size and not self._final:
            found = read_varint(self._held)
            if found is None:
                return None
            self._size, end = found
            del self._held[:end]
            self._final = not self._size
            if not self._final and not TAG < self._size <= CHUNK_SEALED:
                raise Refusal("a chunk of a wrong length")
        if self._final:
            if len(self._held) > CHUNK_SEALED:
                raise Refusal("a last chunk of a wrong length")
            return None
        if len(self._held) < self._size:
            return None
        sealed = bytes(self._held[: self._size])
        del self._held[: self._size]
        self._size = 0
        return self._open(sealed, b"")

    def _open(self, sealed: bytes, associated: bytes) -> bytes:
        self._chunks += 1
        self._total += len(sealed) - TAG
        if self._chunks > MAX_CHUNKS or self._total > MAX_MESSAGE:
            raise Refusal("a sealed message longer than MAX_MESSAGE", 413)
        return _open(self._messages, sealed, associated)


class _SingleOpener:
    __slots__ = ("_held", "_messages")

    def __init__(self, messages: Sequence) -> None:
        self._messages = messages
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        if len(self._held) + len(data) > MAX_SINGLE + TAG:
            raise Refusal("a sealed message longer than MAX_SINGLE", 413)
        self._held += data
        return []

    def end(self) -> bytes:
        return _open(self._messages, bytes(self._held), b"")


def _open(messages: Sequence, sealed: bytes, associated: bytes) -> bytes:
    try:
        return messages.open(sealed, associated)
    except RemoteProtocolError:
        raise Refusal("a sealed message that does not open", 422) from None


class _AnswerOpener:
    """Waits for the nonce that an answer begins with."""

    __slots__ = ("_aead", "_context", "_held", "_media", "_opener")

    def __init__(self, media: Media, context: Context, aead: Aead) -> None:
        self._media = media
        self._context = context
        self._aead = aead
        self._held = b""
        self._opener: Opener | None = None

    def feed(self, data: bytes) -> list[bytes]:
        if self._opener is None:
            self._held += data
            size = nonce_size(self._aead)
            if len(self._held) < size:
                return []
            nonce, data, self._held = self._held[:size], self._held[size:], b""
            self._opener = _opener(self._media, answer_keys(self._media, self._context, self._aead, nonce).messages())
        return self._opener.feed(data)

    def end(self) -> bytes:
        if self._opener is None:
            raise Refusal("a sealed answer without its nonce")
        return self._opener.end()


def _opener(media: Media, messages: Sequence) -> Opener:
    return _ChunkOpener(messages) if media.chunked else _SingleOpener(messages)


def _sealer(media: Media, messages: Sequence, prefix: bytes) -> Sealer:
    return _ChunkSealer(messages, prefix) if media.chunked else _SingleSealer(messages, prefix)


def seal_request(media: Media, config: KeyConfig, aead: Aead, ephemeral: Private) -> tuple[Sealer, Context]:
    """Begin a request to a gateway; raises `RemoteProtocolError` for a key of low order. The pair is used once."""
    context = sender(aead, config.public, info(media, config.key_id, aead), ephemeral)
    head = Head(config.key_id, aead, context.enc)
    return _sealer(media, context.messages, head.encode()), context


def open_request(media: Media, head: Head, key: Private) -> tuple[Opener, Context]:
    """Begin to open what follows a head; raises `Refusal` for an `enc` of low order."""
    try:
        context = receiver(head.aead, head.enc, key, info(media, head.key_id, head.aead))
    except RemoteProtocolError:
        raise Refusal("a key of low order", 422) from None
    return _opener(media, context.messages), context


@frozen(eq=False)
class AnswerKeys:
    """What the keys of an answer come from, and they; all of it is secret."""

    aead: Aead
    secret: bytes = field(repr=False)
    prk: bytes = field(repr=False)
    key: bytes = field(repr=False)
    nonce: bytes = field(repr=False)

    def messages(self) -> Sequence:
        """Begin to count the chunks of the answer."""
        return Sequence(self.aead, self.key, self.nonce)


def nonce_size(aead: Aead) -> int:
    """Give how many random bytes an answer begins with."""
    return _NONCES[aead]


_NONCES: Final = {aead: max(NONCE, aead.key) for aead in Aead}


def answer_keys(media: Media, context: Context, aead: Aead, nonce: bytes) -> AnswerKeys:
    """Make the keys of the answer to a request."""
    secret = context.export(media.exported, nonce_size(aead))
    prk = extract(context.enc + nonce, secret)
    return AnswerKeys(aead, secret, prk, expand(prk, b"key", aead.key), expand(prk, b"nonce", NONCE))


def seal_answer(media: Media, context: Context, aead: Aead, nonce: bytes) -> Sealer:
    """Begin the answer to an opened request; `nonce` is random, of `nonce_size` bytes, used once."""
    if len(nonce) != nonce_size(aead):
        raise LocalProtocolError("a nonce of a wrong length")
    return _sealer(media, answer_keys(media, context, aead, nonce).messages(), nonce)


def open_answer(media: Media, context: Context, aead: Aead) -> Opener:
    """Begin to open the answer to a request of ours."""
    return _AnswerOpener(media, context, aead)


def padded(size: int) -> int:
    """Give the length that a plaintext of `size` bytes is filled up to with zeros.

    512, 1024, ... 65536; above that Padmé, which lets log log of the size show and adds at most 3.2 percent.
    """
    for step in _STEPS:
        if size <= step:
            return step
    exponent = size.bit_length() - 1
    unit = 1 << (exponent - exponent.bit_length())
    return -(-size // unit) * unit


def problem(status: int, kind: str = ABOUT_BLANK) -> bytes:
    """Write a problem (RFC 9457), to be sent as PROBLEM_TYPE."""
    return json.dumps({"type": kind, "status": status}, separators=(",", ":")).encode()


def read_problem(body: bytes) -> str:
    """Give the type of a problem, ABOUT_BLANK for whatever is none."""
    try:
        told = json.loads(body[:PROBLEM_MOST]) if len(body) <= PROBLEM_MOST else None
    except (ValueError, RecursionError):
        return ABOUT_BLANK
    kind = told.get("type") if isinstance(told, dict) else None
    return kind if isinstance(kind, str) else ABOUT_BLANK
