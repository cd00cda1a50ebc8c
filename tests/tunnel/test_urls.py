"""URLs as browsers read them; rows are of the URL Standard's own tests, and checked in browsers by the table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.tunnel.urls import Url, resolve

BASE = Url("https", "a.example", "/b/c/d", "q")
ROWS = [
    ("", "https://a.example/b/c/d?q"),
    ("#x", "https://a.example/b/c/d?q"),
    ("?", "https://a.example/b/c/d?"),
    ("?y#x", "https://a.example/b/c/d?y"),
    ("g", "https://a.example/b/c/g"),
    ("./g", "https://a.example/b/c/g"),
    ("g/", "https://a.example/b/c/g/"),
    ("/g", "https://a.example/g"),
    ("//g", "https://g/"),
    ("..", "https://a.example/b/"),
    ("../..", "https://a.example/"),
    ("../../../../g", "https://a.example/g"),
    ("%2E%2e/g", "https://a.example/b/g"),
    ("g/.", "https://a.example/b/c/g/"),
    ("g/..", "https://a.example/b/c/"),
    ("\\g\\h", "https://a.example/g/h"),
    ("https:g", "https://a.example/b/c/g"),
    ("https:/g", "https://a.example/g"),
    ("https://\\g", "https://g/"),
    ("http:g", "http://g/"),
    ("HTTPS://G.EXAMPLE", "https://g.example/"),
    ("https://g.example:443/x", "https://g.example/x"),
    ("https://g.example:/x", "https://g.example/x"),
    ("https://g.example:8443?y", "https://g.example:8443/?y"),
    ("http://g.example:80", "http://g.example/"),
    ("https://[::1]:8443/", "https://[::1]:8443/"),
    ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),
    ("  g\n\t", "https://a.example/b/c/g"),
    ("g h", "https://a.example/b/c/g%20h"),
    ("\u00e9?\u00e9", "https://a.example/b/c/%C3%A9?%C3%A9"),
    ("g;x=1/../y", "https://a.example/b/c/y"),
    ("//g//h", "https://g//h"),
    ("g?\"<>'", "https://a.example/b/c/g?%22%3C%3E%27"),
]


class UrlTests(SynchronousTestCase):
    def test_rows(self) -> None:
        for text, wanted in ROWS:
            self.assertEqual(str(resolve(BASE, text)), wanted, text)

    def test_what_leads_nowhere(self) -> None:
        for text in (
            "ftp://g/",
            "javascript:1",
            "data:,x",
            "https://",
            "https://u@g/",
            "https://u:p@g/",
            "https://[/",
            "https://g:99999/",
            "https://g:x/",
            "https://a b/",
            "https://a<b/",
            "https://a%41/",
        ):
            self.assertRaises(ConfigError, resolve, BASE, text)

    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        try:
            found = resolve(BASE, text)
        except ConfigError:
            return
        self.assertTrue(str(found).isascii() and str(found).isprintable() and " " not in str(found))
        self.assertEqual(resolve(BASE, str(found)), found)
