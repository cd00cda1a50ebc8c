"""The onion layer: a wide-block cipher of UIV+ shape over whole cell bodies, per hop and direction (docs/onion.md).

One changed bit anywhere in a body makes all of it random, and every later body of the layer with it, so nobody between
the two ends can mark a cell and know it again. A layer is five secrets and a chain, T', through all its bodies::

    keys    K_B 32 | K_U 32 | K_C 32 | K_P 32 | N 16        body    left 16 | right 2027
    mask    GMAC-AES256(K_U, nonce 0, T' | cmd | right)     stream  AES256-CTR(K_C) from AES256(K_P, Y), last byte 0
    ENC     m = mask(right), Y = AES256(K_B, left ^ m) ^ m  ->  Y | right ^ stream(Y)
    DEC     right = Z ^ stream(Y), m = mask(right)          ->  AES256inv(K_B, Y ^ m) ^ m | right

Relays only ENC, clients only DEC; a cell is recognised at its end by a left part that is N. Every RATCHET recognised
cells the end takes new keys and N from blocks 128 to 136 of the stream, which no body uses.

This is CGO-shaped (Tor's proposal 359) and not CGO, and nobody has reviewed it: docs/onion.md says what differs.

Where two circuits are joined, one of the clients takes a relay's part in a layer that the two share, and carries whole
bodies through the layers of its own circuit with `client_away` and `client_home`.

The eight functions work on runs of bodies of one circuit, in order, with all of a run's work in flat loops: each body
costs one GMAC and one CTR call per layer, and where the order of things allows it one AES call serves the whole run.
A run that is refused with `LocalProtocolError` or `LimitExceeded` has changed nothing. `tags`, where it is given,
collects the 16-byte tag of each cell that was sent or recognised; `Layer.tag` is the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hmac import compare_digest
from operator import add
from typing import Final

from attrs import define, field
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB

from layer8.core.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError

BLOCK: Final = 16  # bytes of an AES block, of N, of T' and of a tag
KEY: Final = 32
KEYS: Final = 4 * KEY + BLOCK  # bytes that one layer begins with
BODY: Final = 2043
MESSAGE: Final = BODY - BLOCK
RATCHET: Final = 64  # recognised cells between new keys
CELLS_MAX: Final = 2**24  # bodies through one layer, 32 GiB

_ZERO: Final = bytes(BLOCK)
_NONCE: Final = bytes(12)  # of GMAC, whose key makes only secret masks
_NEXT: Final = b"\x80"  # last byte of the block that the next keys begin with: 128 blocks on
_N: Final = 2 ** (8 * BLOCK)  # N counts modulo this

Body = bytes | memoryview


class Unrecognised(RemoteProtocolError):
    """A cell is not what the other end sent next: the circuit dies, and its layers take nothing more.

    `messages` are those of the same run that were recognised before it; they are good.
    """

    def __init__(self, text: str, messages: Sequence[bytes] = ()) -> None:
        """Carry what was recognised before."""
        super().__init__(text)
        self.messages = list(messages)


@define(eq=False, repr=False)
class Layer:
    """One hop's layer in one direction: `tag` of the last cell sent or recognised, and how many `cells` went through.

    It serves one end of one direction for all its life: the first function that it is given to decides.
    """

    _keys: bytes
    tag: bytes = field(default=_ZERO, init=False)
    cells: int = field(default=0, init=False)
    recognised: int = field(default=0, init=False)
    _use: str = field(default="", init=False)
    _chain: bytes = field(default=_ZERO, init=False)  # T'
    _nonce: int = field(default=0, init=False)  # N
    _mask: Callable[[bytes, bytes, bytes], bytes] = field(init=False)
    _block: Callable[[bytes], bytes] = field(init=False)
    _start: Callable[[bytes], bytes] = field(init=False)
    _seek: Callable[[bytes], None] = field(init=False)
    _stream: Callable[[Body], bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Raise `LocalProtocolError` unless there are keys of the right length."""
        if len(self._keys) != KEYS:
            raise LocalProtocolError(f"an onion layer begins with {KEYS} bytes of keys")

    def __repr__(self) -> str:
        """Show how far it is, and no secret."""
        return f"Layer({self._use or 'unused'}, cells={self.cells}, recognised={self.recognised})"

    def _check(self, use: str, count: int) -> None:
        """Raise unless this use of the layer may have `count` bodies more."""
        if self._use != use:
            if self._use == _DEAD:
                raise Unrecognised("a cell of this circuit was not recognised before")
            if self._use:
                raise LocalProtocolError(f"a layer for {self._use} cannot serve for {use}")
        if self.cells + count > CELLS_MAX:
            raise LimitExceeded("CIRC_CELLS", CELLS_MAX)

    def _admit(self, use: str, count: int) -> None:
        """Count `count` bodies for this use, which was checked."""
        if not self._use:
            self._use = use
            self._take(self._keys)
            self._keys = b""
        self.cells += count

    def _take(self, keys: bytes) -> None:
        """Begin with these keys; whatever held the old ones is gone."""
        block = Cipher(AES256(keys[:KEY]), ECB())
        stream = Cipher(AES256(keys[2 * KEY : 3 * KEY]), CTR(_ZERO)).encryptor()
        self._block = block.encryptor().update if self._use in _RELAY else block.decryptor().update
        self._mask = AESGCM(keys[KEY : 2 * KEY]).encrypt
        self._seek = stream.reset_nonce
        self._stream = stream.update
        self._start = Cipher(AES256(keys[3 * KEY : 4 * KEY]), ECB()).encryptor().update
        self._nonce = int.from_bytes(keys[4 * KEY :], "big")

    def _die(self) -> None:
        """Keep no key, and take no cell any more."""
        self._use = _DEAD
        self._take(bytes(KEYS))

    def _nonces(self, count: int) -> list[bytes]:
        """Give the next values of N, which are not yet used up."""
        first = self._nonce
        return [(number % _N).to_bytes(BLOCK, "big") for number in range(first, first + count)]

    def _passed(self, count: int, left: bytes, tag: bytes) -> None:
        """Count cells as sent or recognised, the last one of which has `left` before its stream; ratchet in time."""
        self.tag = tag
        self.recognised += count
        self._nonce = (self._nonce + count) % _N
        if not self.recognised % RATCHET:
            self._seek(self._start(left)[:-1] + _NEXT)
            self._take(self._stream(bytes(KEYS)))


_FORWARD: Final = "a relay's forward cells"
_BACKWARD: Final = "a relay's backward cells"
_SENT: Final = "a client's forward cells"
_RECEIVED: Final = "a client's backward cells"
_DEAD: Final = "nothing"
_STRANGE: Final = "a cell was changed, lost or put in on its way to us"
_RELAY: Final = frozenset((_FORWARD, _BACKWARD))


def layer(keys: bytes) -> Layer:
    """Begin a layer from 144 bytes: K_B 32, K_U 32, K_C 32, K_P 32, N 16; raises `LocalProtocolError`."""
    return Layer(keys)


def _ended() -> Layer:
    made = Layer(bytes(KEYS))
    made._die()
    return made


ENDED: Final = _ended()
"""What stands where a layer was whose circuit has ended: it has no key, and takes no cell."""


def relay_forward(layer: Layer, cmd: int, bodies: Sequence[Body]) -> list[bytes]:
    """Pass bodies on at a hop that is not the last, away from the client."""
    return _pass(layer, _FORWARD, cmd, bodies)


def relay_backward(layer: Layer, cmd: int, bodies: Sequence[Body]) -> list[bytes]:
    """Pass bodies on at a hop that did not make them, toward the client."""
    return _pass(layer, _BACKWARD, cmd, bodies)


def relay_receive(layer: Layer, cmd: int, bodies: Sequence[Body], tags: list[bytes] | None = None) -> list[bytes]:
    """Read the 2027-byte messages at the last hop; raises `Unrecognised`, after which the layer is dead."""
    _admit((layer,), _FORWARD, bodies, BODY)
    messages: list[bytes] = []
    lefts, rights = _split(bodies)
    for piece in _pieces(layer, len(bodies)):
        marked = lefts[piece]
        nonces, read = _encrypt(layer, cmd, marked, rights[piece])
        good = _known(layer, nonces)
        messages += read[:good]
        if tags is not None:
            tags += map(bytes, marked[:good])
        if good < len(read):
            layer._die()
            raise Unrecognised(_STRANGE, messages)
        layer._passed(good, nonces[-1], bytes(marked[-1]))
    return messages


def relay_send(layer: Layer, cmd: int, messages: Sequence[bytes], tags: list[bytes] | None = None) -> list[bytes]:
    """Make the bodies of 2027-byte messages at the last hop, toward the client."""
    _admit((layer,), _BACKWARD, messages, MESSAGE)
    bodies: list[bytes] = []
    for piece in _pieces(layer, len(messages)):
        rights = messages[piece]
        lefts, hidden = _encrypt(layer, cmd, layer._nonces(len(rights)), rights)
        bodies += map(add, lefts, hidden)
        if tags is not None:
            tags += lefts
        layer._passed(len(lefts), lefts[-1], lefts[-1])
    return bodies


def client_forward(
    layers: Sequence[Layer], cmd: int, messages: Sequence[bytes], tags: list[bytes] | None = None
) -> list[bytes]:
    """Make the bodies of 2027-byte messages for the last of `layers`, which begin with the first hop's."""
    _admit(layers, _SENT, messages, MESSAGE)
    last = layers[-1]
    lefts: list[bytes] = []
    rights: list[bytes] = []
    for piece in _pieces(last, len(messages)):
        read = messages[piece]
        nonces = last._nonces(len(read))
        marked, hidden = _decrypt(last, cmd, nonces, read)
        lefts += marked
        rights += hidden
        last._passed(len(read), nonces[-1], marked[-1])
    if tags is not None:
        tags += lefts
    for each in layers[-2::-1]:
        lefts, rights = _decrypt(each, cmd, lefts, rights)
    return list(map(add, lefts, rights))


def client_backward(
    layers: Sequence[Layer], cmd: int, bodies: Sequence[Body], tags: list[bytes] | None = None
) -> list[bytes]:
    """Read the 2027-byte messages of the last of `layers`, which begin with the first hop's.

    Raises `Unrecognised`, after which all these layers are dead.
    """
    _admit(layers, _RECEIVED, bodies, BODY)
    lefts, rights = _split(bodies)
    for each in layers[:-1]:
        lefts, rights = _decrypt(each, cmd, lefts, rights)
    messages: list[bytes] = []
    last = layers[-1]
    for piece in _pieces(last, len(bodies)):
        marked = lefts[piece]
        nonces, read = _decrypt(last, cmd, marked, rights[piece])
        good = _known(last, nonces)
        messages += read[:good]
        if tags is not None:
            tags += map(bytes, marked[:good])
        if good < len(read):
            for each in layers:
                each._die()
            raise Unrecognised(_STRANGE, messages)
        tag = bytes(marked[-1])
        last._passed(good, tag, tag)
    return messages


def client_away(layers: Sequence[Layer], cmd: int, bodies: Sequence[Body]) -> list[bytes]:
    """Make bodies that come out of the last of `layers` as these, at a hop that passes them on."""
    return _through(layers[::-1], _SENT, cmd, bodies)


def client_home(layers: Sequence[Layer], cmd: int, bodies: Sequence[Body]) -> list[bytes]:
    """Give bodies as they went into the last of `layers`, at a hop that has passed them on."""
    return _through(layers, _RECEIVED, cmd, bodies)


def _through(layers: Sequence[Layer], use: str, cmd: int, bodies: Sequence[Body]) -> list[bytes]:
    _admit(layers, use, bodies, BODY)
    lefts, rights = _split(bodies)
    for each in layers:
        lefts, rights = _decrypt(each, cmd, lefts, rights)
    return list(map(add, map(bytes, lefts), map(bytes, rights)))


def _admit(layers: Sequence[Layer], use: str, run: Sequence[Body], length: int) -> None:
    """Let a run in at all of these layers, or raise and change nothing."""
    if not layers:
        raise LocalProtocolError("a circuit has at least one layer")
    if run and {*map(len, run)} != {length}:
        raise LocalProtocolError(f"this run consists of {length} bytes each")
    for each in layers:
        each._check(use, len(run))
    for each in layers:
        each._admit(use, len(run))


def _split(bodies: Sequence[Body]) -> tuple[Sequence[Body], Sequence[Body]]:
    """Part bodies into what goes through the block cipher and what goes through the stream."""
    return [body[:BLOCK] for body in bodies], [body[BLOCK:] for body in bodies]


def _pieces(layer: Layer, count: int) -> Iterator[slice]:
    """Cut a run where the layer gets new keys; each piece counts as passed before the next is asked for."""
    begin = 0
    while begin < count:
        end = begin + RATCHET - layer.recognised % RATCHET
        yield slice(begin, min(end, count))
        begin = end


def _known(layer: Layer, nonces: Sequence[bytes]) -> int:
    """Tell how many of these left parts, from the first on, are the next of N."""
    expected = layer._nonces(len(nonces))
    if compare_digest(b"".join(nonces), b"".join(expected)):
        return len(nonces)
    return [compare_digest(*pair) for pair in zip(nonces, expected, strict=True)].index(False)


def _pass(layer: Layer, use: str, cmd: int, bodies: Sequence[Body]) -> list[bytes]:
    """Encrypt a run whose messages are not ours to read."""
    _admit((layer,), use, bodies, BODY)
    return list(map(add, *_encrypt(layer, cmd, *_split(bodies))))


def _encrypt(layer: Layer, cmd: int, lefts: Sequence[Body], rights: Sequence[Body]) -> tuple[list[bytes], list[bytes]]:
    """ENC a run. Each body's chain is the left part that came out before it, so one follows the other."""
    mask, block, start, seek, stream = layer._mask, layer._block, layer._start, layer._seek, layer._stream
    number = int.from_bytes
    command = bytes((cmd,))
    chain = layer._chain
    made: list[bytes] = []
    hidden: list[bytes] = []
    for left, right in zip(lefts, rights, strict=True):
        masked = number(mask(_NONCE, b"", chain + command + right))
        chain = (number(block((number(left) ^ masked).to_bytes(16))) ^ masked).to_bytes(16)
        seek(start(chain)[:15] + b"\0")
        made.append(chain)
        hidden.append(stream(right))
    layer._chain = chain
    return made, hidden


def _decrypt(layer: Layer, cmd: int, lefts: Sequence[Body], rights: Sequence[Body]) -> tuple[list[bytes], list[bytes]]:
    """DEC a run. All left parts are known at the outset, so each block cipher is called once."""
    if not lefts:
        return [], []
    mask, seek, stream = layer._mask, layer._seek, layer._stream
    command = bytes((cmd,))
    joined = b"".join(lefts)
    starts = bytearray(layer._start(joined))
    starts[15::16] = bytes(len(lefts))
    ends = range(16, len(joined) + 16, 16)
    masks: list[bytes] = []
    read: list[bytes] = []
    chain: Body = layer._chain
    begins = bytes(starts)
    for end, left, right in zip(ends, lefts, rights, strict=True):
        seek(begins[end - 16 : end])
        plain = stream(right)
        masks.append(mask(_NONCE, b"", b"".join((chain, command, plain))))
        read.append(plain)
        chain = left
    layer._chain = bytes(chain)
    masked = int.from_bytes(b"".join(masks), "big")
    opened = layer._block((int.from_bytes(joined, "big") ^ masked).to_bytes(len(joined), "big"))
    whole = (int.from_bytes(opened, "big") ^ masked).to_bytes(len(joined), "big")
    return [whole[end - 16 : end] for end in ends], read
