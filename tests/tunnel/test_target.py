"""Where a sealed request may go: the listed names and paths below their root, however it is written."""

from __future__ import annotations

import contextlib
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.tunnel import target
from layer8.tunnel.bhttp import Fields, Malformed, Request
from layer8.tunnel.limits import MAX_PATH
from layer8.tunnel.target import Allowed, Target, find, normal

NAMES = Allowed.of(["shop.example", "shop.example:8443", "http://localhost"])

# All the ways that are known to write two dots in a path; each with what must become of it: None is refused.
DOTS: tuple[tuple[str, str | None], ...] = (
    ("/a/../b", "/b"),
    ("/a/%2e%2e/b", "/b"),
    ("/a/%2E%2E/b", "/b"),
    ("/a/.%2e/b", "/b"),
    ("/a/%2e./b", "/b"),
    ("/a/./b", "/a/b"),
    ("/a/%2e/b", "/a/b"),
    ("/a/b/..", "/a/"),
    ("/a/b/.", "/a/b/"),
    ("/a/b/%2e%2E", "/a/"),
    ("/..", None),
    ("/../b", None),
    ("/%2e%2e/b", None),
    ("/a/../../b", None),
    ("/a/%2e%2e/%2e%2e/b", None),
    ("/a/..%2fb", None),
    ("/a/..%2Fb", None),
    ("/a/%2e%2e%2fb", None),
    ("/a/b%2f..%2fc", None),
    ("/a/b%2f..", None),
    ("/a/..%5cb", None),
    ("/a/%2e%2e%5Cb", None),
    ("/a/..\\b", None),
    ("/a/..;/b", None),
    ("/a/..;x=1/b", None),
    ("/a/.;/b", None),
    ("/a/%c0%ae%c0%ae/b", None),
    ("/a/%c0%af../b", None),
    ("/a/%e0%80%ae%e0%80%ae/b", None),
    ("/a/%f0%80%80%ae/b", None),
    ("/a/%u002e%u002e/b", None),
    ("/a/..%00/b", None),
    ("/a/%252e%252e/b", "/a/%252e%252e/b"),  # decoded once, as it must be, this is a strange name
    ("/a/.../b", "/a/.../b"),
    ("/a/..b", "/a/..b"),
    ("/.//a", None),
)


def request(
    path: bytes = b"/",
    authority: bytes = b"shop.example",
    fields: Fields = (),
    method: bytes = b"GET",
    scheme: bytes = b"https",
) -> Request:
    return Request(method, scheme, authority, path, fields)


class GoodTests(SynchronousTestCase):
    def test_names(self) -> None:
        self.assertEqual(find(request(b"/a?b=1?&c"), NAMES), Target("https", "shop.example", "/a", "b=1?&c"))
        self.assertEqual(find(request(authority=b"SHOP.example:8443"), NAMES).authority, "shop.example:8443")
        self.assertEqual(find(request(scheme=b"http", authority=b"localhost"), NAMES).origin, "http://localhost")
        self.assertEqual(
            find(request(authority=b"", fields=((b"host", b"shop.example"),)), NAMES).origin, "https://shop.example"
        )
        find(request(fields=((b"host", b"Shop.Example"),)), NAMES)

    def test_paths_that_stay(self) -> None:
        for path in (
            "/",
            "/a",
            "/a/",
            "/a//b",
            "/a%2Fb",
            "/%E2%82%AC",
            "/a;b=1",
            "/a@b:c",
            "/100%",
            "/~a/(b)/*",
            "/a?",
            "/%C3%A9",
        ):
            text, _, _ = path.partition("?")
            self.assertEqual(normal(text), text)


class BadTests(SynchronousTestCase):
    def refused(self, asked: Request, status: int = 400) -> None:
        self.assertEqual(self.assertRaises(Malformed, find, asked, NAMES).status, status)

    def test_targets_that_are_no_paths(self) -> None:
        for path in (
            b"@169.254.169.254/",
            b"@host/",
            b"//host/",
            b"///",
            b"\\\\host",
            b"/\\host",
            b"http://host/",
            b"https://shop.example/",
            b"",
            b"*",
            b"a",
            b"?a",
            b"/a\r\nb",
            b"/a\0",
            b"/a%00b",
            b"/a b",
            b"/a#b",
            b"/a?b#c",
            b"/\x7f",
            b"/\xc3\xa9",
        ):
            self.refused(request(path))

    def test_every_way_to_write_dots(self) -> None:
        self.assertGreaterEqual(sum(wanted is None for _, wanted in DOTS), 19)
        self.assertGreaterEqual(len(DOTS), 25)
        for path, wanted in DOTS:
            if wanted is None:
                self.assertRaises(Malformed, normal, path)
            else:
                self.assertEqual(normal(path), wanted, path)

    def test_authorities(self) -> None:
        for authority in (
            b"",
            b"other.example",
            b"shop.example:443",
            b"shop.example:80",
            b"shop.example.",
            b"user@shop.example",
            b"user:pass@shop.example",
            b"shop.example@169.254.169.254",
            b"[fe80::1%25eth0]",
            b"[::1]",
            b"shop.example,other",
            b"shop.example/",
            b"shop.example:8443:1",
            b"localhost",
            b"shop.example:",
            b"127.0.0.1",
            b"\xe2\x80\xae",
            b"a" * 300,
        ):
            self.refused(request(authority=authority))
        self.refused(request(scheme=b"http"))
        self.refused(request(scheme=b"ftp"))
        self.refused(request(scheme=b""))

    def test_hosts(self) -> None:
        for fields in (
            ((b"host", b"shop.example"), (b"host", b"shop.example")),
            ((b"host", b"other.example"),),
            ((b"host", b""),),
        ):
            self.refused(request(fields=fields))
        self.refused(request(authority=b"", fields=((b"host", b"other.example"),)))

    def test_fields_that_speak_for_a_target(self) -> None:
        """They change nothing, and the backend does not hear them."""
        spoofed = (
            *(
                (name, b"evil.example")
                for name in (
                    b"x-forwarded-host",
                    b"x-forwarded-for",
                    b"x-forwarded-proto",
                    b"x-forwarded-server",
                    b"forwarded",
                    b"via",
                    b"x-real-ip",
                    b"l8-token",
                    b"l8-encapsulated",
                    b"proxy-authorization",
                    b"connection",
                    b"te",
                )
            ),
        )
        self.assertEqual(len(spoofed), 12)
        kept = ((b"accept", b"*/*"), (b"cookie", b"a=1"), (b"cookie", b"b=2"))
        self.assertEqual(find(request(fields=spoofed), NAMES), find(request(), NAMES))
        self.assertEqual(target.told((*spoofed, *kept)), kept)

    def test_methods_and_upgrades(self) -> None:
        self.refused(request(method=b"CONNECT"))
        self.refused(request(fields=((b"expect", b"100-continue"),)))
        self.refused(request(fields=((b"upgrade", b"websocket"),)))

    def test_limits(self) -> None:
        normal("/" + "a" * (MAX_PATH - 1))
        self.refused(request(b"/" * 1 + b"a" * MAX_PATH), 414)

    def test_fields_of_a_connection(self) -> None:
        fields = (
            (b"connection", b"X-Hop, close"),
            (b"x-hop", b"1"),
            (b"host", b"a"),
            (b"content-length", b"3"),
            (b"a", b"b"),
        )
        self.assertEqual(target.told(fields), ((b"a", b"b"),))
        answer = (
            (b"connection", b"x-hop"),
            (b"x-hop", b"1"),
            (b"set-cookie", b"a"),
            (b"set-cookie", b"b"),
            (b"transfer-encoding", b"chunked"),
            (b"content-length", b"3"),
        )
        self.assertEqual(target.answered(answer), (*answer[2:4], answer[5]))

    @given(
        st.lists(
            st.sampled_from((".", "..", "%2e", "%2E", "a", "/", "//", "%2f", "\\", "%5c", ";", "", "%", "@")),
            max_size=12,
        )
    )
    def test_no_path_climbs(self, pieces: list[str]) -> None:
        with contextlib.suppress(Malformed):
            found = normal("/" + "".join(pieces))
            self.assertTrue(found.startswith("/") and not found.startswith("//"))
            for part in unquote(found).replace("\\", "/").split("/"):
                self.assertNotIn(part.partition(";")[0], (".", ".."))
            self.assertEqual(normal(found), found)

    @given(st.text(max_size=60))
    def test_any_noise(self, path: str) -> None:
        with contextlib.suppress(Malformed):
            normal(path)

    def test_lists_of_names(self) -> None:
        for names in (
            [],
            [""],
            ["a b"],
            ["a:0"],
            ["a:70000"],
            ["ftp://a"],
            ["a/"],
            ["user@a"],
            ["http://"],
            ["a_b"],
            ["://a"],
            [f"a{number}" for number in range(65)],
        ):
            self.assertRaises(ConfigError, Allowed.of, names)
        Allowed.of(["[::1]", "[::1]:8443", "127.0.0.1:8000"])
