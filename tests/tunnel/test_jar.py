"""Cookies as browsers keep them: RFC 6265's own examples, and rows that browsers answer in the same way."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import formatdate

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel.jar import COOKIE, COOKIES, LONGEST, Jar, Place, date
from tests.tunnel.cookies import ROWS

NOW = 1_800_000_042.0
HERE = Place("https", "shop.example", "/a/b")


def sent(lines: list[bytes], at: Place = HERE, to: Place | None = None, later: float = 0.0) -> bytes:
    jar = Jar()
    jar.store(lines, at, NOW)
    return jar.header(to or at, NOW + later)


class RowTests(SynchronousTestCase):
    def test_rows(self) -> None:
        """`tests.tunnel.test_cookies_browsers` gives the same rows to browsers."""
        for lines, wanted in ROWS:
            self.assertEqual(sent([line.encode() for line in lines]), wanted.encode(), lines)


class JarTests(SynchronousTestCase):
    def test_paths(self) -> None:
        rows = [
            (b"x=1", "/a/b", True),
            (b"x=1", "/a/", True),
            (b"x=1", "/a", True),
            (b"x=1", "/ab", False),
            (b"x=1", "/", False),
            (b"x=1; Path=/", "/z", True),
            (b"x=1; Path=/a/b", "/a/b/c", True),
            (b"x=1; Path=/a/b", "/a/bc", False),
            (b"x=1; Path=a", "/a/c", True),
            (b"x=1; Path=", "/a/c", True),
            (b"x=1; Path=/c", "/c", True),
        ]
        for line, path, wanted in rows:
            self.assertEqual(sent([line], to=Place("https", "shop.example", path)), b"x=1" if wanted else b"", line)

    def test_hosts(self) -> None:
        rows = [
            (b"x=1", "shop.example", True),
            (b"x=1", "www.shop.example", False),
            (b"x=1; Domain=shop.example", "www.shop.example", True),
            (b"x=1; Domain=.shop.example", "www.shop.example", True),
            (b"x=1; Domain=SHOP.example", "shop.example", True),
            (b"x=1; Domain=shop.example", "notshop.example", False),
            (b"x=1; Domain=example", "shop.example", False),
            (b"x=1; Domain=other.example", "other.example", False),
            (b"x=1; Domain=www.shop.example", "www.shop.example", False),
            (b"x=1; Domain=", "shop.example", True),
        ]
        for line, host, wanted in rows:
            self.assertEqual(sent([line], to=Place("https", host, "/a/b")), b"x=1" if wanted else b"", (line, host))

    def test_addresses_have_nothing_below_them(self) -> None:
        here = Place("https", "127.0.0.1", "/")
        self.assertEqual(sent([b"x=1; Domain=127.0.0.1"], here), b"x=1")
        self.assertEqual(sent([b"x=1; Domain=0.0.1"], here), b"")
        self.assertEqual(Place.of("https", "[::1]:8443", "/x?y"), Place("https", "::1", "/x"))
        self.assertEqual(Place.of("https", "Shop.example:8443", "").host, "shop.example")

    def test_secure(self) -> None:
        plain = Place("http", "shop.example", "/")
        self.assertEqual(sent([b"x=1; Secure"], plain), b"")
        self.assertEqual(sent([b"x=1; Secure; Path=/"], to=plain), b"")
        self.assertEqual(sent([b"x=1; Secure"], Place("http", "app.localhost", "/")), b"x=1")
        jar = Jar()
        jar.store([b"x=good; Secure; Path=/"], HERE, NOW)
        jar.store([b"x=bad; Path=/"], plain, NOW)
        self.assertEqual((jar.header(HERE, NOW), jar.header(plain, NOW)), (b"x=good", b""))

    def test_prefixes(self) -> None:
        self.assertEqual(sent([b"__Secure-x=1"]), b"")
        self.assertEqual(sent([b"__Secure-x=1; Secure"]), b"__Secure-x=1")
        for end in (b"", b"; Path=/", b"; Secure; Path=/a", b"; Secure; Path=/; Domain=shop.example", b"; Secure"):
            self.assertEqual(sent([b"__Host-x=1" + end]), b"", end)
        self.assertEqual(sent([b"__Host-x=1; Secure; Path=/"]), b"__Host-x=1")

    def test_times(self) -> None:
        def until(seconds: float) -> bytes:
            return formatdate(NOW + seconds, usegmt=True).encode()

        self.assertEqual(sent([b"x=1; Max-Age=10"], later=9), b"x=1")
        self.assertEqual(sent([b"x=1; Max-Age=10"], later=10), b"")
        self.assertEqual(sent([b"x=1; Expires=" + until(10)], later=9), b"x=1")
        self.assertEqual(sent([b"x=1; Expires=" + until(10)], later=11), b"")
        self.assertEqual(sent([b"x=1; Max-Age=10; Expires=" + until(-10)], later=9), b"x=1")
        self.assertEqual(sent([b"x=1; Expires=never"], later=1e9), b"x=1")
        self.assertEqual(sent([b"x=1; Max-Age=9999999999"], later=LONGEST - 1), b"x=1")
        self.assertEqual(sent([b"x=1; Max-Age=9999999999"], later=LONGEST + 1), b"")
        self.assertEqual(sent([b"x=1", b"x=2; Max-Age=0"]), b"")
        self.assertEqual(sent([b"x=1", b"x=; Expires=Thu, 01 Jan 1970 00:00:00 GMT"]), b"")

    def test_dates(self) -> None:
        """The forms of RFC 6265, section 5.1.1, and what is none."""
        wanted = datetime(2027, 1, 15, 8, 0, 42, tzinfo=UTC).timestamp()
        for text in (
            "Fri, 15 Jan 2027 08:00:42 GMT",
            "Friday, 15-Jan-27 08:00:42 GMT",
            "Fri Jan 15 08:00:42 2027",
            "15 january 2027 8:0:42",
            "08:00:42 jan-2027-15",
        ):
            self.assertEqual(date(text), wanted, text)
        for text in (
            "",
            "15 Jan 2027",
            "32 Jan 2027 08:00:42",
            "15 Jan 1600 08:00:42",
            "15 Jan 2027 24:00:42",
            "30 Feb 2027 1:1:1",
        ):
            self.assertIsNone(date(text), text)
        self.assertEqual(date("15 Jan 70 00:00:00"), datetime(1970, 1, 15, tzinfo=UTC).timestamp())
        self.assertEqual(date("15 Jan 69 00:00:00"), datetime(2069, 1, 15, tzinfo=UTC).timestamp())

    def test_order_and_replacement(self) -> None:
        jar = Jar()
        jar.store([b"a=1", b"b=1", b"c=1; Path=/a/b"], HERE, NOW)
        jar.store([b"a=2"], HERE, NOW + 5)
        self.assertEqual(jar.header(HERE, NOW + 5), b"c=1; a=2; b=1")

    def test_sizes(self) -> None:
        self.assertEqual(sent([b"x=" + b"y" * (COOKIE - 1)]), b"x=" + b"y" * (COOKIE - 1))
        self.assertEqual(sent([b"x=" + b"y" * COOKIE]), b"")
        self.assertEqual(sent([b"x=1; Path=/" + b"y" * 1024]), b"x=1")

    def test_the_one_that_is_longest_unused_goes(self) -> None:
        jar = Jar()
        for number in range(COOKIES):
            jar.store([b"x%d=1; Path=/%d" % (number, number)], HERE, NOW + number)
        jar.header(Place("https", "shop.example", "/0"), NOW + 100)
        jar.store([b"new=1; Path=/"], HERE, NOW + 101)
        self.assertEqual(len(jar), COOKIES)
        gone = [n for n in range(COOKIES) if len(jar.header(Place("https", "shop.example", f"/{n}"), NOW + 102)) < 8]
        self.assertEqual(gone, [1])

    def test_kept(self) -> None:
        jar = Jar()
        jar.store([b"a=1; Max-Age=10", "b=\u00e4".encode()], HERE, NOW)
        again = Jar.load(jar.dump())
        self.assertEqual(again.header(HERE, NOW), "a=1; b=\u00e4".encode())
        self.assertEqual(again.header(HERE, NOW + 10), "b=\u00e4".encode())
        again.clear()
        self.assertEqual(len(again), 0)

    def test_secrets_do_not_show(self) -> None:
        jar = Jar()
        jar.store([b"a=hidden"], HERE, NOW)
        self.assertNotIn("hidden", repr(list(jar._cookies.values())))

    @given(st.lists(st.binary(max_size=64), max_size=8), st.binary(max_size=32))
    def test_any_noise(self, lines: list[bytes], path: bytes) -> None:
        """No line raises, and none reaches a request's head that could end it."""
        jar = Jar()
        here = Place("https", "shop.example", path.decode("latin-1"))
        jar.store([b"x=" + line for line in lines] + lines, here, NOW)
        self.assertFalse(set(jar.header(here, NOW)) & set(b"\r\n\0"))
