from pathlib import Path

from attrs import fields
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.gateway import GatewayConfig
from layer8.config.load import ConfigProblems, load_text
from layer8.core.errors import ConfigError
from layer8.tunnel.gateway_service import FOLDER, settings_of
from layer8.tunnel.settings import Settings

HERE = Path("/etc/layer8/layer8.toml")


def read(text: str) -> GatewayConfig:
    return load_text(f"[gateway]\n{text}", {}, {}, role="gateway", path=HERE).config.gateway


class GatewayConfigTests(SynchronousTestCase):
    def refused(self, text: str, *words: str) -> None:
        error = self.assertRaises(ConfigProblems, read, text)
        self.assertEqual(len(error.problems), 1, error.problems)
        for word in words:
            self.assertIn(word, str(error))

    def test_nothing_at_all(self) -> None:
        """It runs on this machine, for this machine."""
        found = settings_of(read(""), Path("/home"))
        self.assertEqual((found.gateway, found.authorities), ("local", ("localhost",)))
        for text in ('gateway = ""', "authorities = []"):
            with self.assertRaises(ConfigError):
                settings_of(read(text), Path("/home"))

    def test_settings(self) -> None:
        """Every key that the middlewares take too has the same name, and means the same."""
        text = 'gateway = "shop"\nauthorities = ["shop.example", "http://localhost"]\nrequire = ["/api"]\n'
        found = settings_of(read(text + "pad_events = true\nrequire_date = false\nchunked = false"), Path("/home"))
        self.assertEqual((found.gateway, found.require, found.state), ("shop", ("/api",), Path("/home") / FOLDER))
        self.assertEqual((found.pad_events, found.require_date, found.chunked, found.pad), (True, False, False, True))
        self.assertEqual(settings_of(read(text + 'state = "/var/shop"'), Path("/home")).state, Path("/var/shop"))
        ours = {field.name for field in fields(GatewayConfig)}
        theirs = {field.name for field in fields(Settings) if field.init}
        self.assertEqual(theirs - ours, {"identity", "database"})  # objects, for programs
        self.assertEqual(ours - theirs, {"listen", "backend", "tls_cert_file", "tls_key_file", "drain_s"})

    def test_backends(self) -> None:
        for text in ("tcp:127.0.0.1:8000", "tcp:backend.internal:80", "unix:/run/app.sock", "tls:app.example:443"):
            self.assertEqual(read(f'backend = "{text}"').backend, text)

    def test_what_cannot_work(self) -> None:
        self.refused('listen = "tcp:5002"', "plain text beyond this machine")
        self.refused('gateway = "A"', "1 to 63")
        self.refused('authorities = "a b"', "is no authority")
        self.refused('authorities = "https://a/b"', "is no authority")
        for text in ("", "http://127.0.0.1:8000", "tcp:127.0.0.1", "tls:a", "udp:127.0.0.1:1"):
            self.refused(f'backend = "{text}"', "gateway.backend")
        self.refused('require = "api"', "is no path")
        self.refused('next_identity = "x"', "43 letters")
        self.refused('tls_cert_file = "/etc/hostname"', "need each other")
        self.refused('state = "/a"\ndatabase_file = "/etc/nothing"', "gateway.database_file")
