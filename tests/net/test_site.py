"""What is dialled for a URL, and by which name it is asked."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.net.site import Site


class SiteTests(SynchronousTestCase):
    def test_rows(self) -> None:
        for url, via, authority, way in (
            ("https://a.example", "", "a.example", "tls:a.example:443"),
            ("https://A.example:8443/x/", "", "a.example:8443", "tls:a.example:8443"),
            ("http://127.0.0.1:5000", "", "127.0.0.1:5000", "tcp:127.0.0.1:5000"),
            ("http://notes.localhost:5000/", "", "notes.localhost:5000", "tcp:127.0.0.1:5000"),
            ("https://notes.localhost/", "", "notes.localhost", "tls:127.0.0.1:443:name=notes.localhost"),
            ("http://[::1]:5000", "", "[::1]:5000", "tcp:\\:\\:1:5000"),
            (
                "https://a.example",
                "socks5:127.0.0.1:1080",
                "a.example",
                "socks5:a.example:443:proxy=127.0.0.1\\:1080:tls=a.example",
            ),
            ("https://a.example", "tor:", "a.example", "tor:a.example:443:tls=a.example"),
            ("http://x.onion/", "tor:", "x.onion", "tor:x.onion:80"),
            ("https://a.example", "tls:b.example:443", "a.example", "tls:b.example:443:name=a.example"),
            ("https://a.example", "tls:b.example:443:name=c.example", "a.example", "tls:b.example:443:name=c.example"),
            ("http://a.localhost:1", "tcp:127.0.0.1:2", "a.localhost:1", "tcp:127.0.0.1:2"),
            ("http://a.localhost:1", "unix:/run/a.sock", "a.localhost:1", "unix:/run/a.sock"),
        ):
            found = Site.of(url, via=via)
            self.assertEqual((found.authority, found.way), (authority, way), url)
        self.assertEqual(Site.of("https://a.example", ca="/a:b.pem").way, "tls:a.example:443:ca=/a\\:b.pem")
        self.assertEqual(Site.of("https://A.example:8443/x/").url, "https://a.example:8443/x")
        self.assertEqual(Site.of("https://A.example:8443/x/").path, "/x")

    def test_what_is_none(self) -> None:
        for url, via in (
            ("a.example", ""),
            ("ftp://a.example", ""),
            ("https://", ""),
            ("https://u@a.example", ""),
            ("https://a.example/?x", ""),
            ("https://a.example/#x", ""),
            ("https://a.example:99999", ""),
            ("https://a .example", ""),
            ("http://a.example", ""),
            ("http://a.example", "socks5:127.0.0.1:1080"),
            ("https://a.example", "socks5:192.0.2.1:1080"),
            ("https://a.example", "http:127.0.0.1:1080"),
            ("https://a.example", "tcp:192.0.2.1:443"),
        ):
            self.assertRaises(ConfigError, Site.of, url, via=via)
