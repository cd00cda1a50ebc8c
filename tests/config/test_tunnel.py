from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.config.load import ConfigProblems, load_text
from layer8.config.tunnel import TunnelConfig

HERE = Path("/etc/layer8/layer8.toml")
PIN = "1oHnLaVgqY7hv2FHqpg3vFbXGcpZoPu9gGLlxG2fZxs"


def read(text: str) -> TunnelConfig:
    return load_text(text, {}, {}, role="tunnel", path=HERE).config.tunnel


class TunnelConfigTests(SynchronousTestCase):
    def refused(self, text: str, *words: str) -> None:
        error = self.assertRaises(ConfigProblems, read, text)
        self.assertEqual(len(error.problems), 1, error.problems)
        for word in words:
            self.assertIn(word, str(error))

    def test_nothing_at_all(self) -> None:
        self.assertEqual(read(""), TunnelConfig())
        self.assertEqual(TunnelConfig().listen, ("tcp:5000:interface=127.0.0.1",))

    def test_a_gateway(self) -> None:
        found = read(
            f'[[tunnel.gateway]]\nid = "shop"\nendpoint = "tls:shop.example:443"\nhost = "shop.example:8443"\n'
            f'identity = ["{PIN}"]\ncompare = ["https://relay.example.net", "http://127.0.0.1:5000"]'
        )
        self.assertEqual((found.gateway[0].id, found.gateway[0].host), ("shop", "shop.example:8443"))

    def test_what_cannot_work(self) -> None:
        gateway = '[[tunnel.gateway]]\nid = "shop"\nendpoint = "tls:shop.example:443"\n'
        self.refused('[tunnel]\nlisten = "tcp:5000"', "plain text beyond this machine")
        self.refused('[[tunnel.gateway]]\nendpoint = "unix:/run/a"', "a gateway needs a name")
        self.refused('[[tunnel.gateway]]\nid = "a"', "where is it?")
        self.refused('[[tunnel.gateway]]\nid = "A"\nendpoint = "unix:/run/a"', "1 to 63")
        self.refused('[[tunnel.gateway]]\nid = "a"\nendpoint = "tcp:a.example:80"', "plain text beyond this machine")
        self.refused(gateway + gateway, "this gateway is there twice")
        self.refused(gateway + 'host = "a b"', "host")
        self.refused(gateway + 'host = "A"', "no host name")
        self.refused(gateway + 'identity = "x"', "43 letters")
        self.refused(gateway + 'path = "a"', "begins with /")
        self.refused(gateway + 'keys_path = "/a b"', "spaces")
        for text in (
            "https://a/",
            "https://a/b",
            "ftp://a",
            "http://a.example",
            "https://u@a",
            "https://A",
            "https://a:0",
        ):
            self.refused(gateway + f'compare = "{text}"', "compare")
        self.refused('[tunnel]\nrole = "mirror"\n' + gateway, "folder of the app")
        self.refused('[tunnel]\nforwarded_from = "nobody"', "forwarded_from")
        self.refused('[tunnel]\nrole = "oracle"', "role")
