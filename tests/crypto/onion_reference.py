"""The onion layer once more, written to be read beside docs/onion.md and not to be fast; it shares no code with ours.

Its parameters reach from our layer to CGO as Tor's proposal 359 has it, so that Tor's published numbers check it. Only
the AES block itself is a library's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import Factory, define, frozen
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB


def aes(key: bytes, block: bytes) -> bytes:
    """Encrypt one block."""
    return Cipher(AES(key), ECB()).encryptor().update(block)


def aes_inverse(key: bytes, block: bytes) -> bytes:
    """Decrypt one block."""
    return Cipher(AES(key), ECB()).decryptor().update(block)


def xor(one: bytes, other: bytes) -> bytes:
    """Add two texts of one length."""
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def ghash(key: int, data: bytes) -> int:
    """GHASH of NIST SP 800-38D; `data` is filled up with zeros."""
    powers = [key]  # key * x^i, bit i of the field counted from the left
    for _ in range(127):
        powers.append(powers[-1] >> 1 ^ (0xE1 << 120 if powers[-1] & 1 else 0))
    total = 0
    for at in range(0, len(data), 16):
        block = total ^ int.from_bytes(data[at : at + 16].ljust(16, b"\0"), "big")
        total = 0
        for index, power in enumerate(powers):
            if block >> (127 - index) & 1:
                total ^= power
    return total


def gmac(key: bytes, data: bytes) -> bytes:
    """GMAC under the zero nonce."""
    lengths = (8 * len(data)).to_bytes(8, "big") + bytes(8)
    filled = data + bytes(-len(data) % 16)
    hashed = ghash(int.from_bytes(aes(key, bytes(16)), "big"), filled + lengths)
    return xor(hashed.to_bytes(16, "big"), aes(key, bytes(12) + b"\0\0\0\1"))


def polyval(key: bytes, data: bytes) -> bytes:
    """POLYVAL of RFC 8452 section 3, by way of GHASH as its appendix A says; `data` is filled up with zeros."""
    turned = int.from_bytes(key[::-1], "big")
    shifted = turned >> 1 ^ (0xE1 << 120 if turned & 1 else 0)  # times x
    blocks = [data[at : at + 16].ljust(16, b"\0")[::-1] for at in range(0, len(data), 16)]
    return ghash(shifted, b"".join(blocks)).to_bytes(16, "big")[::-1]


@frozen
class Kind:
    """What our layer and Tor's differ in."""

    mask: Callable[[bytes, bytes], bytes]
    start: Callable[[bytes, bytes], bytes]
    lengths: tuple[int, int, int, int]  # of K_B, K_U, K_C, K_P
    cleared: int  # low bits of the first counter block
    ratchet: int
    body: int

    @property
    def offset(self) -> int:
        """The first counter block of the next keys."""
        return 1 << self.cleared - 1 if self.cleared == 8 else -(-(self.body - 16) // 16)


OURS = Kind(gmac, aes, (32, 32, 32, 32), 8, 64, 2043)
CGO = Kind(polyval, polyval, (16, 16, 16, 16), 6, 1, 509)


def parted(kind: Kind, keys: bytes) -> list[bytes]:
    """Cut key bytes into K_B, K_U, K_C, K_P and N."""
    parts = []
    for length in (*kind.lengths, 16):
        parts.append(keys[:length])
        keys = keys[length:]
    assert not keys
    return parts


@define
class State:
    """One layer in one direction, at either end."""

    kind: Kind
    keys: list[bytes]  # with N as the last
    chain: bytes = bytes(16)  # T'
    recognised: int = 0
    seen: dict[str, Any] = Factory(dict)  # the inner values of the last body, for those who test what is kept secret

    def keystream(self, y: bytes, first: int, length: int) -> bytes:
        """Give a part of the stream of Y, from its block `first` on."""
        start = int.from_bytes(self.kind.start(self.keys[3], y), "big") >> self.kind.cleared << self.kind.cleared
        blocks = range(start + first, start + first + -(-length // 16))
        return b"".join(aes(self.keys[2], (block % 2**128).to_bytes(16, "big")) for block in blocks)[:length]

    def mask(self, cmd: int, right: bytes) -> bytes:
        """Give the mask of the left part."""
        return self.kind.mask(self.keys[1], self.chain + bytes([cmd]) + right)

    def enc(self, cmd: int, body: bytes) -> bytes:
        """ENC one body; T' becomes the left part that comes out."""
        left, right = body[:16], body[16:]
        mask = self.mask(cmd, right)
        y = xor(aes(self.keys[0], xor(left, mask)), mask)
        self.seen = {"mask": mask, "y": y}
        self.chain = y
        return y + xor(right, self.keystream(y, 0, len(right)))

    def dec(self, cmd: int, body: bytes) -> bytes:
        """DEC one body; T' becomes the left part that went in."""
        y, hidden = body[:16], body[16:]
        right = xor(hidden, self.keystream(y, 0, len(hidden)))
        mask = self.mask(cmd, right)
        self.seen = {"mask": mask, "y": y}
        self.chain = y
        return xor(aes_inverse(self.keys[0], xor(y, mask)), mask) + right

    def update(self, y: bytes) -> None:
        """Take the next keys and N, which Y gives."""
        self.keys = parted(self.kind, self.keystream(y, self.kind.offset, sum(self.kind.lengths) + 16))

    def count(self, y: bytes) -> None:
        """Count a cell as sent or recognised."""
        self.recognised += 1
        if self.recognised % self.kind.ratchet:
            self.keys[4] = ((int.from_bytes(self.keys[4], "big") + 1) % 2**128).to_bytes(16, "big")
        else:
            self.update(y)

    def relay_forward(self, cmd: int, body: bytes) -> tuple[bytes, bytes | None]:
        """At a relay, away from the client: what goes on, and the tag if it is recognised."""
        out = self.enc(cmd, body)
        if out[:16] != self.keys[4]:
            return out, None
        self.count(out[:16])
        return out, body[:16]

    def relay_originate(self, cmd: int, message: bytes) -> tuple[bytes, bytes]:
        """At a relay, an own message toward the client: the body and its tag."""
        out = self.enc(cmd, self.keys[4] + message)
        self.count(out[:16])
        return out, out[:16]

    def client_originate(self, cmd: int, message: bytes) -> tuple[bytes, bytes]:
        """At the client, in the layer of the hop that a message is for: the body and its tag."""
        n = self.keys[4]
        out = self.dec(cmd, n + message)
        self.count(n)
        return out, out[:16]

    def client_backward(self, cmd: int, body: bytes) -> tuple[bytes, bytes | None]:
        """At the client: what is inside, and the tag if it is recognised."""
        out = self.dec(cmd, body)
        if out[:16] != self.keys[4]:
            return out, None
        self.count(body[:16])
        return out, body[:16]
