import io
import os
import sys
from pathlib import Path

from twisted.application.app import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

import layer8
from layer8.config.field import keys
from layer8.config.proxy import ProxyConfig
from layer8.config.twistd import DaemonOptions, options_class


class OptionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).resolve()
        self.home.mkdir()
        self.patch(os, "environ", {"LAYER8_HOME": str(self.home)})

    def parse(self, role: str, *words: str) -> DaemonOptions:
        options = options_class(role)()
        options.parseOptions(list(words))
        return options

    def refused(self, role: str, *words: str) -> str:
        lines = io.StringIO()
        self.patch(sys, "stderr", lines)
        error = self.assertRaises(SystemExit, self.parse, role, *words)
        self.assertEqual(error.code, 2)
        self.assertTrue(all(line.startswith(f"layer8-{role}: ") for line in lines.getvalue().splitlines()))
        return lines.getvalue()

    def test_no_option_at_all(self) -> None:
        self.assertEqual(self.parse("proxy").config.proxy, ProxyConfig())
        self.assertEqual(self.parse("agent").config.control.listen, ("tcp:9753:interface=127.0.0.1",))

    def test_every_key_is_an_option(self) -> None:
        text = str(options_class("proxy")())
        for key in keys(ProxyConfig):
            if key.section is None:
                self.assertIn("--" + key.name.replace("_", "-"), text)

    def test_version_is_ours(self) -> None:
        lines = io.StringIO()
        self.patch(sys, "stdout", lines)
        self.assertEqual(self.assertRaises(SystemExit, self.parse, "proxy", "--version").code, 0)
        self.assertEqual(lines.getvalue(), f"layer8 {layer8.__version__}\n")

    def test_options_win(self) -> None:
        (self.home / "layer8.toml").write_text('[proxy]\nhttp = "tcp:1"\nhttps = "tcp:2"\n')
        options = self.parse(
            "proxy", "--http", "tcp:3", "--http=tcp:4", "--legacy-open", "--control", "none", "--verbose"
        )
        proxy = options.config.proxy
        self.assertEqual((proxy.http, proxy.https, proxy.legacy_open), (("tcp:3", "tcp:4"), ("tcp:2",), True))
        self.assertEqual((options.config.control.listen, options.config.log.level), ((), "debug"))
        (self.home / "layer8.toml").write_text('[proxy]\nhttps = "tcp:5"\n')
        again = options.reload().config.proxy
        self.assertEqual((again.http, again.https), (("tcp:3", "tcp:4"), ("tcp:5",)))

    def test_another_file(self) -> None:
        path = self.home / "other.toml"
        path.write_text('[proxy]\nname = "a.example"\n')
        self.assertEqual(self.parse("proxy", "-c", str(path)).config.proxy.name, "a.example")
        self.assertIn("No such file", self.refused("proxy", "--config", str(self.home / "none.toml")))

    def test_hosts_of_an_agent(self) -> None:
        secrets = [self.home / "a.secret", self.home / "b.secret"]
        for secret in secrets:
            secret.touch(0o600)
        words = ["--server", "wss://a.example:1", "--server", "wss://b.example:1"]
        for name, secret in zip(("a.example", "b.example"), secrets, strict=True):
            words += ["--host", name, "--secret-file", str(secret), "--target", "80=tcp:127.0.0.1:1"]
        agent = self.parse("agent", *words, "--target", "443=tcp:127.0.0.1:2").config.agent
        self.assertEqual(agent.servers, ("wss://a.example:1", "wss://b.example:1"))
        self.assertEqual([host.host for host in agent.host], ["a.example", "b.example"])
        self.assertEqual(agent.host[1].targets, {80: "tcp:127.0.0.1:1", 443: "tcp:127.0.0.1:2"})

    def test_wrong_usage(self) -> None:
        self.assertIn("--nope not recognized", self.refused("proxy", "--nope"))
        self.assertIn("'word' belongs to no option", self.refused("proxy", "word"))
        self.assertIn("behind a --host", self.refused("agent", "--target", "80=tcp:a:1"))
        self.assertIn("PORT=ENDPOINT", self.refused("agent", "--host", "a.example", "--target", "80"))

    def test_wrong_values_name_the_option(self) -> None:
        text = self.refused("proxy", "--http", "bla", "--drain-s", "x", "--workers", "0")
        self.assertEqual(len(text.splitlines()), 3)
        self.assertIn("layer8-proxy: --http: proxy.http = 'bla': it has to begin with", text)

    def test_a_detached_process_logs_to_a_file(self) -> None:
        options = self.below_twistd(logfile=None, nodaemon=0)
        self.assertEqual(options.config.log.file, os.path.abspath("layer8-proxy.log"))
        options = self.below_twistd(logfile=str(self.home / "x.log"), nodaemon=1)
        self.assertEqual(options.config.log.file, str(self.home / "x.log"))

    def below_twistd(self, **words: object) -> DaemonOptions:
        options = options_class("proxy")()
        twistd = ServerOptions()
        twistd.opts.update(words)
        options.parent = twistd
        options.parseOptions([])
        return options
