"""Three nodes of real processes: what their router sees, and what it costs when a part of the cluster is killed."""

from __future__ import annotations

from functools import cache, partial

from twisted.trial.unittest import TestCase

from layer8.crypto.keys import SHORT
from tests.interop.daemons import RUN, Proxy, until
from tests.resilience.cluster import OTHER, Cluster, Row, Trial, absent, fetched
from tests.resilience.rig import note
from tests.resilience.wire import Line, Refused

SECONDS = 5
"""Of load, for each part that is killed."""


@cache
def running() -> tuple[Cluster, list[bytes]]:
    """Give the cluster of this run, and what its router saw while it started and while remote agents were called."""
    cluster = Cluster.start(RUN)
    for _ in range(5):
        assert fetched(cluster.nodes[0].http, OTHER)
    return cluster, cluster.tap.texts()


class ClusterTests(TestCase):
    """P36; the tests do not build on each other, but they have one cluster."""

    skip = absent()
    timeout = 120

    def setUp(self) -> None:
        self.cluster, self.seen = running()

    def survives(self, row: Row) -> None:
        note(f"kill -9 of {row.what}: {row.requests} requests, noticed {row.noticed:.2f} s, back {row.back:.2f} s")
        self.assertGreater(row.requests, 100, row.said)
        self.assertEqual(row.failed, 0, row.said)
        for node in (*self.cluster.nodes, *self.cluster.agents):
            self.assertEqual(node.defects(), [])

    def test_a_node_is_killed(self) -> None:
        self.survives(Trial(self.cluster, SECONDS).node())

    def test_a_node_is_killed_whose_agents_visitors_of_others_want(self) -> None:
        self.survives(Trial(self.cluster, SECONDS).holder())

    def test_the_router_is_killed(self) -> None:
        self.survives(Trial(self.cluster, SECONDS).router())

    def test_postgresql_is_killed(self) -> None:
        self.survives(Trial(self.cluster, SECONDS).database())

    def test_registered_at_one_node_is_known_at_all(self) -> None:
        host, cluster = "everywhere.test", self.cluster
        cluster.register(host, 1)
        until("it is known", lambda: all(cluster.knows(number, host) for number in range(3)))
        version = next(row["version"] for row in cluster.registered(2) if row["host"] == host)
        cluster.nodes[2].ask("proxy.update", host=host, ports=[81], version=version)
        cluster.nodes[2].ask("proxy.unregister", host=host)
        until("it is gone", lambda: not any(cluster.knows(number, host) for number in range(3)))

    def test_an_agent_of_another_node(self) -> None:
        """Visitors enter where the agent is not; its bytes come straight to that node."""
        node = self.cluster.nodes[0]
        self.assertTrue(fetched(node.http, OTHER))
        hosts = {row["host"] for row in node.ask("proxy.subscribers")["subscribers"]}
        self.assertNotIn(OTHER, hosts)

    def test_who_is_drained_names_the_others(self) -> None:
        node, others = self.cluster.nodes[2], {f"{one.url}/agent" for one in self.cluster.nodes[:2]}
        line = Line(node.agents)
        self.addCleanup(line.close)
        line.hello()
        until("the others are known", partial(self.names, node, line, others))

    def names(self, node: Proxy, line: Line, others: set[str]) -> bool:
        """Drain a node for a moment, and look at what it tells its agents."""
        node.ask("proxy.drain", deadline_s=60)
        try:
            with self.assertRaises(Refused) as caught:
                line.call("proxy.subscribe", host=OTHER, proof="00" * 32)
        finally:
            node.ask("proxy.undrain")
        return set(caught.exception.error["data"]["alternatives"]) == others

    def test_what_the_router_sees(self) -> None:
        """Node ids and times; no host, no secret, no address, and not even what is said."""
        text = b"\n".join(self.seen)
        ids = {str(node.ask("node.status")["id"])[:SHORT].encode() for node in self.cluster.nodes}
        for mark in (b"layer8.proxy.news", *(b"layer8." + one + b".proxy.call" for one in ids)):
            self.assertTrue(mark in text, mark)
        hidden = [b"cluster.test", b"proxy.connection", b"serverListening", b"expires_ms", b'"secret"', b'"host"']
        for host, secret in self.cluster.secrets.items():
            hidden += [host.encode(), secret.value, secret.hex().encode(), secret.key.hex().encode(), secret.key]
        hidden += [f'"127.0.0.1:{port}"'.encode() for node in self.cluster.nodes for port in node.data_ports()]
        self.assertEqual([word for word in hidden if word in text], [])
