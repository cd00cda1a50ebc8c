"""Host names from the wire, at registration and in the table."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.names import (
    InvalidName,
    covers,
    encode,
    from_authority,
    from_sni,
    from_wire,
    keys,
    same_authority,
    wildcard,
)

LABEL_63 = "a" * 63
NAME_253 = ".".join([LABEL_63, LABEL_63, LABEL_63, "b" * 61])
NAME_254 = ".".join([LABEL_63, LABEL_63, LABEL_63, "b" * 62])


class FromWireTests(SynchronousTestCase):
    def test_case_is_folded(self) -> None:
        self.assertEqual(from_wire(b"WWW.Example.COM"), "www.example.com")

    def test_a_label(self) -> None:
        self.assertEqual(from_wire(b"xn--BCHER-kva.example"), "xn--bcher-kva.example")

    def test_reserved_hyphens_are_only_hyphens(self) -> None:
        self.assertEqual(from_wire(b"r3---sn-4g5.example.com"), "r3---sn-4g5.example.com")

    def test_digits_may_lead(self) -> None:
        self.assertEqual(from_wire(b"3com.1a"), "3com.1a")

    def test_single_label(self) -> None:
        self.assertEqual(from_wire(b"localhost"), "localhost")

    def test_longest_label(self) -> None:
        self.assertEqual(from_wire(LABEL_63.encode() + b".com"), LABEL_63 + ".com")
        self.assertIsNone(from_wire(b"a" * 64 + b".com"))

    def test_longest_name(self) -> None:
        self.assertEqual(len(NAME_253), 253)
        self.assertEqual(from_wire(NAME_253.encode()), NAME_253)
        self.assertIsNone(from_wire(NAME_254.encode()))

    def test_not_names(self) -> None:
        for raw in (
            b"",
            b".",
            b"a..b",
            b".a.b",
            b"a.b.",
            b"-a.b",
            b"a-.b",
            b"a_b.com",
            b"a b.com",
            b"a.b ",
            b"a.b\n",
            b"a.b\x00",
            b"www.example.com\x00.evil",
            "bücher.example".encode(),
            b"*.example.com",
            b"a.b:80",
            b"192.0.2.1",
            b"1.2.3",
            b"2130706433",
            b"a.0x7f",
            b"0x7f000001",
            b"::1",
            b"[::1]",
            b"a@b.c",
            b"a%41.c",
        ):
            self.assertIsNone(from_wire(raw), raw)

    @given(st.binary(max_size=300))
    def test_any_noise(self, raw: bytes) -> None:
        name = from_wire(raw)
        if name is not None:
            self.assertEqual(name.encode(), raw.lower())
            self.assertEqual(from_wire(name.encode()), name)

    @given(st.from_regex(rb"[-a-zA-Z0-9.]{1,260}", fullmatch=True))
    def test_against_the_rule_spelled_out(self, raw: bytes) -> None:
        labels = raw.decode().split(".")
        right = len(raw) <= 253 and all(
            1 <= len(label) <= 63 and not label.startswith("-") and not label.endswith("-") for label in labels
        )
        last = labels[-1].lower()
        numeric = last.isdigit() or (last.startswith("0x") and all(c in "0123456789abcdef" for c in last[2:]))
        self.assertEqual(from_wire(raw) is not None, right and not numeric, raw)


class SniTests(SynchronousTestCase):
    def test_trailing_dot_only_when_stripped(self) -> None:
        self.assertIsNone(from_sni(b"a.example."))
        self.assertEqual(from_sni(b"a.example.", strip_dot=True), "a.example")
        self.assertIsNone(from_sni(b"a.example..", strip_dot=True))
        self.assertIsNone(from_sni(b".", strip_dot=True))


class AuthorityTests(SynchronousTestCase):
    def test_forms(self) -> None:
        for raw, wanted in (
            (b"www.Example.com", ("www.example.com", None)),
            (b"www.example.com:80", ("www.example.com", 80)),
            (b"www.example.com:", ("www.example.com", None)),
            (b"www.example.com.", ("www.example.com", None)),
            (b"www.example.com.:8080", ("www.example.com", 8080)),
            (b"192.0.2.1:1", ("192.0.2.1", 1)),
            (b"[2001:DB8:0:0::1]", ("[2001:db8::1]", None)),
            (b"[2001:db8::1]:65535", ("[2001:db8::1]", 65535)),
            (b"[::ffff:192.0.2.1]", ("[::ffff:c000:201]", None)),
        ):
            self.assertEqual(from_authority(raw), wanted, raw)

    def test_not_authorities(self) -> None:
        for raw in (
            b"",
            b":80",
            b"a:65536",
            b"a:123456",
            b"a:+1",
            b"a:1:2",
            b"a..",
            b".",
            b"a@b",
            b"a:b@c",
            b"a,b",
            b"a b",
            b"%41.com",
            b"a\x00",
            b"\xc3\xbc.de",
            b"[::1",
            b"::1",
            b"[::1%eth0]",
            b"[::1%25eth0]",
            b"[v1.a]",
            b"[]",
            b"[:]",
            b"[1.2.3.4]",
            b"[::1].",
            b"999.1.1.1",
            b"01.2.3.4",
            b"1.2.3",
            b"a/b",
        ):
            self.assertIsNone(from_authority(raw), raw)

    def test_same_authority(self) -> None:
        self.assertTrue(same_authority(("a", None), ("a", 80)))
        self.assertFalse(same_authority(("a", None), ("a", 81)))
        self.assertFalse(same_authority(("a", 1), ("b", 1)))
        self.assertFalse(same_authority(("a", 1), None))

    @given(st.binary(max_size=300))
    def test_any_noise(self, raw: bytes) -> None:
        from_authority(raw)


class EncodeTests(SynchronousTestCase):
    def test_names(self) -> None:
        for text, wanted in (
            ("www.Example.com", "www.example.com"),
            ("example.com.", "example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("faß.de", "xn--fa-hia.de"),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
            ("*.bücher.example", "*.xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("r3---sn-4g5.example.com", "r3---sn-4g5.example.com"),
            (NAME_253, NAME_253),
        ):
            self.assertEqual(encode(text), wanted, text)

    def test_what_is_encoded_is_what_the_wire_carries(self) -> None:
        self.assertEqual(from_wire(encode("Bücher.example").encode()), "xn--bcher-kva.example")

    def test_refused(self) -> None:
        for text, why in (
            ("", "not letters"),
            (".", "not letters"),
            ("localhost", "machine itself"),
            ("a.localhost", "machine itself"),
            ("*.localhost", "machine itself"),
            ("com", "two labels"),
            ("*.com", "after the star"),
            ("*", "not letters"),
            ("*.", "not letters"),
            ("a.*.com", "not letters"),
            ("*.*.com", "not letters"),
            ("*a.example.com", "not letters"),
            ("192.0.2.1", "IP address"),
            ("*.192.0.2.1", "not letters"),
            ("::1", "IP address"),
            ("[2001:db8::1]", "IP address"),
            ("1.2.3", "not letters"),
            (NAME_254, "longer than 253"),
            ("*." + NAME_253, "longer than 253"),
            ("x" * 5000, "longer than 253"),
            ("a_b.example", "not letters"),
            ("a b.example", "not letters"),
            ("a..example", "not letters"),
            ("example.com..", "not letters"),
            ("-a.example", "not letters"),
            ("www.example.com:80", "not letters"),
            ("http://a.example", "not letters"),
            ("a\x00.example", "not letters"),
            ("xn--a.example", "bad A-label"),
            ("xn--zzzzzzzzz99.example", "bad A-label"),
            ("a\u200d.example", "cannot be encoded"),
            ("ü" * 64 + ".example", "cannot be encoded"),
            ("\ud800.example", "cannot be encoded"),
            ("🌚.example", "cannot be encoded"),
        ):
            problem = self.assertRaises(InvalidName, encode, text)
            self.assertIn(why, str(problem), text)

    def test_our_own_name(self) -> None:
        own = ("proxy.example.com",)
        self.assertRaises(InvalidName, encode, "Proxy.example.com", own)
        # A tenant with the wildcard could answer for us on the HTTP port, and so be given a certificate for our name.
        self.assertRaises(InvalidName, encode, "*.example.com", own)
        self.assertEqual(encode("www.example.com", own), "www.example.com")

    def test_literals_for_the_operator(self) -> None:
        self.assertEqual(encode("[2001:DB8::1]", literal=True), "[2001:db8::1]")
        self.assertEqual(encode("2001:db8:0::1", literal=True), "[2001:db8::1]")
        self.assertEqual(encode("192.0.2.1", literal=True), "192.0.2.1")

    def test_the_text_cannot_forge_a_log_line(self) -> None:
        self.assertNotIn("\n", str(self.assertRaises(InvalidName, encode, "a\nb.example")))

    @given(st.text(max_size=300))
    def test_any_noise(self, text: str) -> None:
        try:
            name = encode(text)
        except InvalidName:
            return
        self.assertIsNotNone(from_wire(name.removeprefix("*.").encode()))
        self.assertEqual(encode(name), name)


class KeyTests(SynchronousTestCase):
    def test_exact_beats_wildcard(self) -> None:
        self.assertEqual(keys("a.example.com"), ("a.example.com", "*.example.com"))

    def test_star_is_one_label(self) -> None:
        self.assertTrue(covers("*.example.com", "a.example.com"))
        self.assertFalse(covers("*.example.com", "a.b.example.com"))
        self.assertFalse(covers("*.example.com", "example.com"))
        self.assertFalse(covers("*.b.example.com", "*.example.com"))
        self.assertTrue(covers("*.example.com", "*.example.com"))

    def test_no_wildcard_over_a_top_level(self) -> None:
        self.assertIsNone(wildcard("example.com"))
        self.assertIsNone(wildcard("com"))

    def test_no_wildcard_over_addresses(self) -> None:
        self.assertIsNone(wildcard("192.0.2.1"))
        self.assertIsNone(wildcard("[::ffff:c000:201]"))
