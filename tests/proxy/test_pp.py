"""PROXY protocol headers: every way to write one, every cut, noise, and what a pooled connection is claimed for."""

from collections.abc import Callable, Sequence

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.address import HostPort
from layer8.core.errors import LocalProtocolError
from layer8.proxy import pp
from layer8.proxy.pp import CLAIM_MOST, LONGEST_1, Claim, Header, Reader, claim, crc32c, quick_claim, read_claim, v1, v2
from layer8.proxy.sniff import Reason, Refused
from layer8.proxy.wire import LARGEST_ID, NAME_MOST
from tests.proxy.cuts import mutated, pieces

ONE, TWO = HostPort("192.0.2.1", 40000), HostPort("198.51.100.1", 443)
ONE_6, TWO_6 = HostPort("2001:db8::1", 40000), HostPort("2001:db8::2", 443)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
REST = b"GET / HTTP/1.1\r\n"

# Laid out by hand after sections 2.1 and 2.2 of the specification.
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 443\r\n"
V2 = SIGNATURE + b"\x21\x11\x00\x0c" + bytes.fromhex("c0000201c63364019c4001bb")


def binary(command: int, family: int, block: bytes = b"", length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


ADDRESSES = bytes.fromhex("c0000201c63364019c4001bb")
GOOD = {
    "v1 of IPv4": (V1, Header(ONE, TWO)),
    "v1 of IPv6": (b"PROXY TCP6 2001:DB8:0::1 2001:db8::2 40000 443\r\n", Header(ONE_6, TWO_6)),
    "v1 of IPv4 inside IPv6": (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 40000 443\r\n",
        Header(ONE, TWO),
    ),
    "v1, ports at the ends": (
        b"PROXY TCP4 192.0.2.1 198.51.100.1 0 65535\r\n",
        Header(HostPort("192.0.2.1", 0), HostPort("198.51.100.1", 65535)),
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", Header()),
    "v1 UNKNOWN with addresses": (b"PROXY UNKNOWN 2001:db8::1 ::2 65535 65535\r\n", Header()),
    "v1 of 107 bytes": (b"PROXY UNKNOWN %b\r\n" % (b"f" * 91), Header()),
    "v2 of IPv4": (V2, Header(ONE, TWO)),
    "v2 of IPv6": (
        binary(0x21, 0x21, bytes.fromhex("20010db8" + "00" * 11 + "01" + "20010db8" + "00" * 11 + "02" + "9c4001bb")),
        Header(ONE_6, TWO_6),
    ),
    "v2 LOCAL": (binary(0x20, 0), Header()),
    "v2 LOCAL with a family and bytes": (binary(0x20, 0x31, b"anything"), Header()),
    "v2 LOCAL with what is no TLV": (binary(0x20, 0, b"\1\0"), Header()),
    "v2 UNSPEC": (binary(0x21, 0), Header()),
    "v2 LOCAL with TLVs": (binary(0x20, 0, tlv(0xE0, b"x") + tlv(4, b"")), Header(tlvs=((0xE0, b"x"), (4, b"")))),
    "v2 with TLVs": (
        binary(0x21, 0x11, ADDRESSES + tlv(1, b"h2") + tlv(0xEA, b"")),
        Header(ONE, TWO, ((1, b"h2"), (0xEA, b""))),
    ),
    "v2 of the greatest length": (
        binary(0x21, 0x11, ADDRESSES + tlv(4, bytes(0xFFFF - 15))),
        Header(ONE, TWO, ((4, bytes(0xFFFF - 15)),)),
    ),
}

BAD = {
    "something else": REST,
    "a TLS record": b"\x16\x03\x01\x02\x00",
    "v1 in lower case": b"proxy TCP4 192.0.2.1 198.51.100.1 40000 443\r\n",
    "v1 without its family": b"PROXY \r\n",
    "v1 of another family": b"PROXY UDP4 192.0.2.1 198.51.100.1 40000 443\r\n",
    "v1 UNIX": b"PROXY UNIX /a /b 1 2\r\n",
    "v1 with two spaces": b"PROXY TCP4  192.0.2.1 198.51.100.1 40000 443\r\n",
    "v1 with a tab": b"PROXY TCP4\t192.0.2.1 198.51.100.1 40000 443\r\n",
    "v1 with a space at the end": b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 443 \r\n",
    "v1 with LF only": b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 443\n",
    "v1 UNKNOWN with CR inside": b"PROXY UNKNOWN a\rb\r\n",
    "v1 UNKNOWNX": b"PROXY UNKNOWNX\r\n",
    "v1 without a port": b"PROXY TCP4 192.0.2.1 198.51.100.1 40000\r\n",
    "v1 with a port too many": b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 443 1\r\n",
    "v1 with a leading zero in a port": b"PROXY TCP4 192.0.2.1 198.51.100.1 040 443\r\n",
    "v1 with a port of 65536": b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
    "v1 with a sign": b"PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
    "v1 with a leading zero in an address": b"PROXY TCP4 192.0.2.01 198.51.100.1 40000 443\r\n",
    "v1 with a number too large": b"PROXY TCP4 192.0.2.256 198.51.100.1 40000 443\r\n",
    "v1 with a name": b"PROXY TCP4 example.com 198.51.100.1 40000 443\r\n",
    "v1 with the other family": b"PROXY TCP4 2001:db8::1 2001:db8::2 40000 443\r\n",
    "v1 with IPv4 as TCP6": b"PROXY TCP6 192.0.2.1 198.51.100.1 40000 443\r\n",
    "v1 with a zone": b"PROXY TCP6 fe80::1%1 2001:db8::2 40000 443\r\n",
    "v1 of 108 bytes": b"PROXY UNKNOWN %b\r\n" % (b"f" * 92),
    "v1 without an end": b"PROXY UNKNOWN " + b"f" * 100,
    "v2 of version 1": binary(0x11, 0x11, ADDRESSES),
    "v2 of version 3": binary(0x31, 0x11, ADDRESSES),
    "v2 of command 2": binary(0x22, 0x11, ADDRESSES),
    "v2 of UDP": binary(0x21, 0x12, ADDRESSES),
    "v2 of UDP over IPv6": binary(0x21, 0x22, bytes(36)),
    "v2 of a Unix socket": binary(0x21, 0x31, bytes(216)),
    "v2 of an unknown family": binary(0x21, 0x41, ADDRESSES),
    "v2 of an unknown transport": binary(0x21, 0x13, ADDRESSES),
    "v2 with addresses cut": binary(0x21, 0x11, ADDRESSES[:-1]),
    "v2 of IPv6 with addresses of IPv4": binary(0x21, 0x21, ADDRESSES),
    "v2 with half a TLV head": binary(0x21, 0x11, ADDRESSES + b"\1\0"),
    "v2 with a TLV past the end": binary(0x21, 0x11, ADDRESSES + b"\1\0\2a"),
    "v2 with a wrong signature": b"\r\n\r\n\0\r\nQUIT\r" + V2[12:],
    "v2 with a wrong checksum": binary(0x21, 0x11, ADDRESSES + tlv(3, bytes(4))),
    "v2 with half a checksum": binary(0x21, 0x11, ADDRESSES + tlv(3, bytes(2))),
}


def run(parts: Sequence[bytes]) -> tuple[Header | Refused | None, bytes]:
    """Feed until there is an outcome; give it, and what came behind the header."""
    reader = Reader()
    fed = 0
    for at, part in enumerate(parts):
        outcome = reader.feed(part)
        fed += len(part)
        if reader.work > 2 * fed:
            raise AssertionError(f"{reader.work} bytes of work for {fed} of input")
        if outcome is None and fed > pp.LONGEST_2:
            raise AssertionError(f"{fed} bytes are kept and nothing is decided")
        if outcome is not None:
            return outcome, reader.data + b"".join(parts[at + 1 :])
    return None, reader.data


def refusal(parts: Sequence[bytes]) -> Reason | None:
    """Why the header is refused, if it is."""
    outcome, _ = run(parts)
    return outcome.reason if isinstance(outcome, Refused) else None


class ReaderTests(SynchronousTestCase):
    """One test for each way to write a header, named after it."""

    def test_again(self) -> None:
        reader = Reader()
        reader.feed(V1)
        self.assertRaises(LocalProtocolError, reader.feed, b"x")

    def test_longer_than_wanted(self) -> None:
        self.assertIsInstance(Reader(most=28).feed(V2), Header)
        self.assertIsInstance(Reader(most=27).feed(V2[:16]), Refused)

    def test_checksum(self) -> None:
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)  # RFC 3720's polynomial, the usual check value
        self.assertEqual(crc32c(bytes(32)), 0x8A9136AA)  # RFC 3720, appendix B.4
        blank = binary(0x21, 0x11, ADDRESSES + tlv(3, bytes(4)) + tlv(1, b"h2"))
        at = 16 + len(ADDRESSES) + 3
        right = blank[:at] + crc32c(blank).to_bytes(4, "big") + blank[at + 4 :]
        header, _ = run([right])
        assert isinstance(header, Header)
        self.assertEqual(header.source, ONE)
        for place in (17, len(right) - 1):
            wrong = bytearray(right)
            wrong[place] ^= 1
            self.assertEqual(refusal([bytes(wrong)]), Reason.PROXY_HEADER)

    @given(st.sampled_from([data for data, _ in GOOD.values()]).flatmap(lambda data: pieces(data + REST)))
    def test_any_cut(self, parts: list[bytes]) -> None:
        wanted = next(header for data, header in GOOD.values() if data + REST == b"".join(parts))
        self.assertEqual(run(parts), (wanted, REST))

    @given(
        st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=200).map(lambda data: SIGNATURE + data),
            st.binary(max_size=120).map(lambda data: b"PROXY TCP4 " + data),
            mutated([data for data, _ in GOOD.values() if len(data) < 300]),
        ),
        st.data(),
    )
    def test_any_noise(self, data: bytes, draw: st.DataObject) -> None:
        parts = draw.draw(pieces(data))
        outcome, rest = run(parts)
        whole, whole_rest = run([data])
        if isinstance(outcome, Refused):
            self.assertIsInstance(whole, Refused)
        else:
            self.assertEqual((outcome, rest), (whole, whole_rest))
        if isinstance(outcome, Header) and outcome.source is not None:
            self.assertEqual(
                run([v2(outcome.source, outcome.destination)])[0], Header(outcome.source, outcome.destination)
            )


def _good(data: bytes, wanted: Header) -> Callable[[ReaderTests], None]:
    def test(self: ReaderTests) -> None:
        self.assertEqual(run([data + REST]), (wanted, REST))
        few = range(1, len(data)) if len(data) < 300 else (1, 15, 16, 17, len(data) - 1)
        for at in few:
            self.assertIsNone(run([data[:at]])[0])
            self.assertEqual(run([data[:at], data[at:] + REST]), (wanted, REST))
        if len(data) < 300:
            self.assertEqual(run([data[at : at + 1] for at in range(len(data))]), (wanted, b""))

    return test


def _bad(data: bytes) -> Callable[[ReaderTests], None]:
    def test(self: ReaderTests) -> None:
        for parts in ([data], [data[at : at + 1] for at in range(len(data))]):
            self.assertEqual(refusal(parts), Reason.PROXY_HEADER)

    return test


for _name, (_data, _header) in GOOD.items():
    setattr(ReaderTests, "test_good_" + "".join(c if c.isalnum() else "_" for c in _name), _good(_data, _header))
for _name, _data in BAD.items():
    setattr(ReaderTests, "test_bad_" + "".join(c if c.isalnum() else "_" for c in _name), _bad(_data))


class WriterTests(SynchronousTestCase):
    def test_the_bytes_of_the_specification(self) -> None:
        self.assertEqual(v1(ONE, TWO), V1)
        self.assertEqual(v2(ONE, TWO), V2)
        self.assertEqual(v1(None), b"PROXY UNKNOWN\r\n")
        self.assertEqual(v2(None), binary(0x20, 0))
        self.assertEqual(v1(ONE_6, TWO_6), b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 443\r\n")

    def test_a_destination_that_is_not_known(self) -> None:
        self.assertEqual(v1(ONE, HostPort("", 80)), b"PROXY TCP4 192.0.2.1 0.0.0.0 40000 80\r\n")
        self.assertEqual(v1(ONE_6), b"PROXY TCP6 2001:db8::1 :: 40000 0\r\n")
        self.assertEqual(run([v2(ONE, TWO_6)])[0], Header(ONE, HostPort("0.0.0.0", 443)))

    def test_the_longest_line(self) -> None:
        longest = HostPort("ffff:" * 7 + "ffff", 65535)
        self.assertLessEqual(len(v1(longest, longest)), LONGEST_1)

    @given(
        st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
        st.integers(0, 65535),
        st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=20)), max_size=4),
    )
    def test_round_trip(self, address: object, port: int, tlvs: list[tuple[int, bytes]]) -> None:
        header, _ = run([v1(HostPort(str(address), port), TWO)])
        assert isinstance(header, Header)
        source = header.source
        assert source is not None
        self.assertEqual(source.port, port)
        again, _ = run([v2(source, None, tuple(tlvs))])
        assert isinstance(again, Header)
        self.assertEqual((again.source, again.tlvs), (source, tuple(tlvs)))


class ClaimTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        for claimed in (
            Claim(443, 7, "www.example.com", "https"),
            Claim(80, LARGEST_ID, "[2001:db8::1]", "http", ONE),
            Claim(1, 0, "a", "http", ONE_6),
        ):
            header, rest = run([claim(claimed) + REST])
            assert isinstance(header, Header)
            self.assertEqual((read_claim(header), rest), (claimed, REST))

    def test_the_quick_way_agrees_with_the_long_one(self) -> None:
        """Whatever is changed in a claim, the quick way says what the reader says, or nothing."""
        for claimed in (Claim(443, 7, "www.example.com", "https"), Claim(80, LARGEST_ID, "a", "http")):
            good = claim(claimed)
            self.assertEqual(quick_claim(good + REST), (claimed, REST))
            self.assertIsNone(quick_claim(claim(evolve(claimed, remote=ONE)) + REST), "not its affair")
            for cut in range(len(good)):
                self.assertIsNone(quick_claim(good[:cut]))
            for at in range(len(good)):
                for value in (0, 1, 2, 0x20, 0x21, 0xE0, 0xFF, good[at] ^ 1, good[at] + 1 & 0xFF):
                    data = good[:at] + bytes((value,)) + good[at + 1 :] + REST
                    quick = quick_claim(data)
                    if quick is not None:
                        header, rest = run([data])
                        assert isinstance(header, Header)
                        self.assertEqual(quick, (read_claim(header), rest))

    def test_the_bytes(self) -> None:
        self.assertEqual(
            claim(Claim(443, 7, "a.example", "https")),
            binary(0x20, 0, tlv(0xE0, b"\x01\xbb" + bytes(7) + b"\7a.example") + tlv(0xE1, b"\1")),
        )

    def test_the_longest(self) -> None:
        longest = claim(Claim(443, LARGEST_ID, "a" * NAME_MOST, "https", ONE_6))
        self.assertEqual(len(longest), CLAIM_MOST)

    def test_what_is_no_claim(self) -> None:
        good = b"\x01\xbb" + bytes(7) + b"\7a.example"
        for tlvs in (
            (),
            ((0xE0, good),),
            ((0xE1, b"\1"),),
            ((0xE0, good), (0xE1, b"\2")),
            ((0xE0, good), (0xE1, b"")),
            ((0xE0, good), (0xE1, b"\1\1")),
            ((0xE0, good[:10]), (0xE1, b"\1")),
            ((0xE0, b"\0\0" + good[2:]), (0xE1, b"\1")),
            ((0xE0, good[:2] + b"\xff" * 8 + b"a"), (0xE1, b"\1")),
            ((0xE0, good + b"\x80"), (0xE1, b"\1")),
            ((0xE0, good + b"a" * NAME_MOST), (0xE1, b"\1")),
        ):
            self.assertIsNone(read_claim(Header(tlvs=tlvs)), tlvs)


class IntroductionTests(SynchronousTestCase):
    def test_what_targets_hear(self) -> None:
        self.assertEqual(pp.introduction("none", ONE, TWO), b"")
        self.assertEqual(pp.introduction("v1", ONE, TWO), V1)
        self.assertEqual(pp.introduction("v2", ONE, TWO), V2)
        self.assertEqual(pp.introduction("v1", None, TWO), b"PROXY UNKNOWN\r\n")
        self.assertEqual(pp.introduction("v2", None, TWO), binary(0x20, 0))
