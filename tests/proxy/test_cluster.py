"""What a node of a cluster has to be told, and what it says of itself."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.load import load_text
from layer8.config.problem import ConfigProblems
from layer8.config.proxy import ProxyConfig
from layer8.core.errors import ConfigError
from layer8.proxy.cluster import agents_url, reached_as


class ConfigTests(SynchronousTestCase):
    """`bus = "wamp"`."""

    def test_it_needs_a_router_and_a_database(self) -> None:
        problems = self.assertRaises(ConfigProblems, load_text, '[proxy]\nbus = "wamp"\n', {}, {}, role="proxy")
        self.assertEqual({row.key for row in problems.problems}, {"control.wamp.url", "proxy.database_file"})

    def test_a_node_is_one_process(self) -> None:
        text = '[proxy]\nbus = "wamp"\nworkers = 2\n'
        problems = self.assertRaises(ConfigProblems, load_text, text, {}, {}, role="proxy")
        self.assertIn("proxy.workers", {row.key for row in problems.problems})


class NameTests(SynchronousTestCase):
    """Where agents of other nodes dial it back, and where they may subscribe instead."""

    config = ProxyConfig()

    def url(self, host: str = "node0.example.net", **more: Any) -> str:
        return agents_url(evolve(self.config, **more), host, 9081, lambda: "PIN")

    def test_reached_as(self) -> None:
        named: tuple[tuple[dict[str, Any], str], ...] = (
            ({"data_public": "data.example.net:9082", "name": "node0.example.net"}, "data.example.net"),
            ({"name": "node0.example.net", "data": ("tcp:0",)}, "node0.example.net"),
            ({"data": ("tcp:0:interface=192.0.2.7",)}, "192.0.2.7"),
        )
        for more, host in named:
            self.assertEqual(reached_as(evolve(self.config, **more)), host)

    def test_nobody_can_guess_it(self) -> None:
        for data in (("tcp:9082",), ("tcp:0:interface=0.0.0.0",), ("tcp:1:interface=127.0.0.1", "tcp:1:interface=::1")):
            self.assertRaises(ConfigError, reached_as, evolve(self.config, data=data))

    def test_where_agents_connect(self) -> None:
        self.assertEqual(self.url(agents=("tls:9081",)), "wss://node0.example.net:9081/agent?pin=PIN")
        self.assertEqual(self.url(agents=("tls:9081",), tls_cert_file="c"), "wss://node0.example.net:9081/agent")
        self.assertEqual(self.url("2001:db8::1", agents=("tls:9081",)), "wss://[2001:db8::1]:9081/agent?pin=PIN")
        self.assertEqual(self.url("127.0.0.1"), "ws://127.0.0.1:9081/agent")

    def test_where_it_is_not_known(self) -> None:
        self.assertEqual(self.url(), "", "plain text beyond this machine")
        self.assertEqual(self.url(agents=("systemd:domain=INET:name=agents",)), "", "somebody else opened it")
        self.assertEqual(agents_url(evolve(self.config, agents=("tls:9081",)), "h", 0, lambda: ""), "")
