"""The PROXY protocol, versions 1 and 2: who a connection is really from, said in front of its first byte.

::

    v1   PROXY TCP4|TCP6 SP source SP destination SP port SP port CR LF       at most 107 bytes
         PROXY UNKNOWN ... CR LF                                              what follows the word is ignored

    v2   signature 12 | version and command u8 = 0x20 LOCAL, 0x21 PROXY | family u8 | length u16 | length bytes:
         family 0x00 UNSPEC   nothing
                0x11 TCP4     source 4  | destination 4  | source port u16 | destination port u16
                0x21 TCP6     source 16 | destination 16 | source port u16 | destination port u16
         and then TLVs:  type u8 | length u16 | value

LOCAL, UNSPEC and UNKNOWN say nothing about where a connection is from. Datagrams and Unix sockets have no place here
and are refused, as is everything that leaves doubt: a wrong header could claim any address.

Layer8's own TLVs say what a pooled data connection is to carry, since no notification did:

    0xE0   port u16 | conn u64 | host, ASCII, the rest        the public port, the visitor's number, the asked host
    0xE1   scheme u8 = 0 http, 1 https

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt (2023-05-12); proxy.md sections 3 and 8.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, Literal

from attrs import define, field, frozen

from layer8.core.address import HostPort, canonical
from layer8.core.errors import ConfigError, LocalProtocolError
from layer8.proxy.sniff import Reason, Refused
from layer8.proxy.wire import LARGEST_ID, NAME_MOST, Scheme

LONGEST_1: Final = 107  # bytes of a v1 line with its CR LF (section 2.1)
LONGEST_2: Final = 16 + 0xFFFF  # bytes of a v2 header: its sender is trusted, or an agent's own server

TLV_CRC: Final = 0x03  # CRC-32C of the whole header, counted with this value as zeros (section 2.2.3)
TLV_CLAIM: Final = 0xE0
TLV_SCHEME: Final = 0xE1

Kind = Literal["none", "v1", "v2"]

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LINE: Final = b"PROXY "
_FIXED: Final = 16  # bytes before the addresses
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPEC: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_TLV: Final = Struct(">BH")
_PORTS: Final = Struct(">HH")
_CLAIM: Final = Struct(">HQ")
_QUICK: Final = Struct(">12sBBHBHHQ")  # of a LOCAL header, up to the host of its first TLV
_ONE_SCHEME: Final = _TLV.pack(TLV_SCHEME, 1)
_SCHEMES: Final[tuple[Scheme, ...]] = ("http", "https")

_REFUSED = Refused(Reason.PROXY_HEADER)
_PORT = b"(0|[1-9][0-9]{0,4})"
_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP4) ([0-9.]{7,15}) ([0-9.]{7,15}) %b %b"
    rb"|(TCP6) ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45}) %b %b)\r\n" % ((_PORT,) * 4)
)


@frozen
class Header:
    """What a header says: `source` is None where it says nothing, and then the connection's own end counts."""

    source: HostPort | None = None
    destination: HostPort | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def tlv(self, kind: int) -> bytes | None:
        """Give the value of the first TLV of a kind."""
        return next((value for known, value in self.tlvs if known == kind), None)


@frozen
class Claim:
    """What a pooled connection is to carry: a visitor of `host` on the public `port`.

    `remote` is the visitor's own end, and there only where server and host say `visitor = "full"`.
    """

    port: int
    conn: int
    host: str
    scheme: Scheme
    remote: HostPort | None = None


@define(eq=False)
class Reader:
    """Reads one header from the first bytes of a connection; `most` is the longest v2 header that is wanted."""

    most: int = LONGEST_2
    work: int = 0
    _kept: bytearray = field(factory=bytearray, init=False)
    _need: int = 0  # bytes of a v2 header, once known
    _done: bool = False

    @property
    def data(self) -> bytes:
        """Give every byte that was fed, in order, and after a header only what came behind it."""
        return bytes(self._kept)

    def feed(self, data: bytes) -> Header | Refused | None:
        """Take what arrived; None is for more, and raises `LocalProtocolError` after anything else."""
        if self._done:
            raise LocalProtocolError("the header has been read already")
        start = len(self._kept)
        self._kept += data
        outcome = self._line(start) if self._kept[:1] == b"P" else self._binary()
        self._done = outcome is not None
        return outcome

    def _line(self, start: int) -> Header | Refused | None:
        kept = self._kept
        if not kept.startswith(_LINE[: len(kept)]):
            return _REFUSED
        end = kept.find(b"\n", start, LONGEST_1)
        self.work += min(len(kept), LONGEST_1) - min(start, LONGEST_1)
        if end < 0:
            return None if len(kept) < LONGEST_1 else _REFUSED
        self.work += end + 1
        header = _from_line(bytes(kept[: end + 1]))
        del kept[: end + 1]
        return header

    def _binary(self) -> Header | Refused | None:
        kept = self._kept
        if not self._need:
            if not kept.startswith(_SIGNATURE[: len(kept)]):
                return _REFUSED
            if len(kept) < _FIXED:
                return None
            self._need = _FIXED + int.from_bytes(kept[14:16], "big")
            if self._need > self.most:
                return _REFUSED
        if len(kept) < self._need:
            return None
        self.work += self._need
        header = _from_bytes(bytes(kept[: self._need]))
        del kept[: self._need]
        return header


def _from_line(line: bytes) -> Header | Refused:
    """Read a whole v1 line."""
    match = _V1.fullmatch(line)
    if match is None:
        return _REFUSED
    if not match[1] and not match[6]:
        return Header()
    source, destination, source_port, port = match.group(2, 3, 4, 5) if match[1] else match.group(7, 8, 9, 10)
    try:
        make = IPv4Address if match[1] else IPv6Address
        ends = [
            HostPort(canonical(str(make(text.decode("ascii")))), int(digits))
            for text, digits in ((source, source_port), (destination, port))
        ]
    except (ValueError, ConfigError):
        return _REFUSED
    return Header(ends[0], ends[1]) if max(end.port for end in ends) < 1 << 16 else _REFUSED


def _from_bytes(header: bytes) -> Header | Refused:
    """Read a whole v2 header, whose length is right."""
    command, family = header[12], header[13]
    if command not in (_LOCAL, _PROXY):
        return _REFUSED
    if command == _LOCAL or family == _UNSPEC:
        # "must discard the protocol block": what is in it cannot be wrong, but TLVs may be wanted.
        tlvs = _tlvs(header, _FIXED) if family == _UNSPEC else None
        return Header(tlvs=tlvs or ())
    size = {_TCP4: 4, _TCP6: 16}.get(family)
    if size is None:
        return _REFUSED
    ports = _FIXED + 2 * size
    if len(header) < ports + _PORTS.size:
        return _REFUSED
    source, destination = header[_FIXED : _FIXED + size], header[_FIXED + size : ports]
    source_port, port = _PORTS.unpack_from(header, ports)
    tlvs = _tlvs(header, ports + _PORTS.size)
    if tlvs is None:
        return _REFUSED
    return Header(HostPort(_text(source), source_port), HostPort(_text(destination), port), tlvs)


def _tlvs(header: bytes, at: int) -> tuple[tuple[int, bytes], ...] | None:
    """Give the TLVs from `at` to the end, or None if they do not add up or their checksum is wrong."""
    found: list[tuple[int, bytes]] = []
    while at < len(header):
        if len(header) - at < _TLV.size:
            return None
        kind, size = _TLV.unpack_from(header, at)
        at += _TLV.size
        value = header[at : at + size]
        if len(value) < size:
            return None
        if kind == TLV_CRC and (
            size != 4 or crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(value, "big")
        ):
            return None
        found.append((kind, value))
        at += size
    return tuple(found)


def _text(packed: bytes) -> str:
    return canonical(str(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)))


# Writing.


def introduction(kind: Kind, source: HostPort | None, destination: HostPort | None) -> bytes:
    """Write what a target that wants such a header hears first; nothing for `none`."""
    return b"" if kind == "none" else (v1 if kind == "v1" else v2)(source, destination)


def v1(source: HostPort | None, destination: HostPort | None = None) -> bytes:
    """Write a line; without a source it says UNKNOWN, and an unknown destination is the family's null address."""
    if source is None:
        return b"PROXY UNKNOWN\r\n"
    version = 6 if ":" in source.host else 4
    end = _like(source, destination)
    return f"PROXY TCP{version} {source.host} {end.host} {source.port} {end.port}\r\n".encode("ascii")


def v2(source: HostPort | None, destination: HostPort | None = None, tlvs: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    """Write a header; without a source it is LOCAL, and an unknown destination is the family's null address."""
    block = b""
    command, family = _LOCAL, _UNSPEC
    if source is not None:
        end = _like(source, destination)
        command, family = _PROXY, _TCP6 if ":" in source.host else _TCP4
        block = _packed(source.host) + _packed(end.host) + _PORTS.pack(source.port, end.port)
    for kind, value in tlvs:
        block += _TLV.pack(kind, len(value)) + value
    return _SIGNATURE + bytes((command, family)) + len(block).to_bytes(2, "big") + block


def _like(source: HostPort, destination: HostPort | None) -> HostPort:
    """Give the destination in the source's family, which a header has only one of."""
    null = "::" if ":" in source.host else "0.0.0.0"
    if destination is None:
        return HostPort(null, 0)
    same = (":" in source.host) == (":" in destination.host)
    return destination if same and destination.host else HostPort(null, destination.port)


def _packed(address: str) -> bytes:
    return IPv6Address(address).packed if ":" in address else IPv4Address(address).packed


# What a pooled connection carries.


def claim(claimed: Claim) -> bytes:
    """Write the header by which a server claims a pooled connection for a visitor."""
    host = claimed.host.encode("ascii")
    return v2(
        claimed.remote,
        HostPort("", claimed.port),
        (
            (TLV_CLAIM, _CLAIM.pack(claimed.port, claimed.conn) + host),
            (TLV_SCHEME, bytes((_SCHEMES.index(claimed.scheme),))),
        ),
    )


CLAIM_MOST: Final = len(v2(HostPort("::", 0))) + 2 * _TLV.size + _CLAIM.size + NAME_MOST + 1
"""Bytes of the longest claim: what an agent's `Reader` is to take at most."""


def read_claim(header: Header) -> Claim | None:
    """Give what a pooled connection is claimed for, or None if the header does not say so."""
    what, scheme = header.tlv(TLV_CLAIM), header.tlv(TLV_SCHEME)
    if what is None or not _CLAIM.size < len(what) <= _CLAIM.size + NAME_MOST or scheme not in (b"\0", b"\1"):
        return None
    (port, conn), host = _CLAIM.unpack_from(what), what[_CLAIM.size :]
    if not port or conn > LARGEST_ID or not host.isascii():
        return None
    return Claim(port, conn, host.decode("ascii"), _SCHEMES[scheme[0]], header.source)


def quick_claim(data: bytes) -> tuple[Claim, bytes] | None:
    """Read a claim that `claim` wrote without a `remote`, whole and in front of `data`, and give what is behind it.

    None says nothing: then a `Reader` has to look, which takes five times as long.
    """
    if len(data) < _QUICK.size:
        return None
    signature, command, family, size, kind, length, port, conn = _QUICK.unpack_from(data)
    end = _FIXED + _TLV.size + length
    if (
        signature != _SIGNATURE
        or (command, family, kind) != (_LOCAL, _UNSPEC, TLV_CLAIM)
        or size != length + 2 * _TLV.size + 1
        or len(data) < _FIXED + size
        or data[end : end + 3] != _ONE_SCHEME
    ):
        return None
    scheme, host = data[end + 3], data[_QUICK.size : end]
    if scheme >= len(_SCHEMES) or not port or conn > LARGEST_ID or not host.isascii() or not 0 < len(host) <= NAME_MOST:
        return None
    return Claim(port, conn, host.decode("ascii"), _SCHEMES[scheme]), data[_FIXED + size :]


def crc32c(data: bytes) -> int:
    """Give the checksum of RFC 3720, appendix B.4 (Castagnoli)."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest = _CRC[(rest ^ byte) & 0xFF] ^ rest >> 8
    return rest ^ 0xFFFFFFFF


def _crc(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC: Final = tuple(_crc(byte) for byte in range(256))
