"""A cluster of real processes, and what it does when parts of it are killed.

::

    visitors ──▶ node 0, node 1, node 2     twistd layer8-proxy, bus = wamp, on Crossbar.io and PostgreSQL 15
    agent 0  ──▶ node 0, node 1             HOST
    agent 1  ──▶ node 1, node 2             HOST and OTHER
    agents   ──▶ nginx

`python -m tests.resilience.cluster` starts it, kills one part after the other with SIGKILL under the load of wrk, and
prints a table. Visitors come through nodes that are not killed; a failed one is any error that wrk counts.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import define, field, frozen

from layer8.core.errors import Layer8Error
from layer8.crypto.secret import HostSecret
from tests.accepting import Accepting, pass_on
from tests.control.router import TICKET, Router
from tests.interop.daemons import Agent, Program, Proxy, Scope, answers, folder, found, free_port, missing, until
from tests.interop.daemons import no_crossbar as _no_crossbar
from tests.privacy.relay import Recorded
from tests.proxy.postgres import Postgres, no_postgres

HOST = "app.cluster.test"
OTHER = "other.cluster.test"
"""Served by agent 1 alone, so that node 0 has it from another node."""
BODY = b"served by the cluster\n"
CONNECTIONS = 4
"""Of wrk, for each node."""


def absent() -> str | None:
    """Say what is missing for a cluster; None if nothing is."""
    return missing(nginx="nginx", wrk="wrk") or no_postgres() or _no_crossbar()


class Tap:
    """Stands between the nodes and the router and keeps every byte."""

    def __init__(self, scope: Scope, port: int) -> None:
        self.connections: list[Recorded] = []
        self._onward = port
        accepting = Accepting(self._talk)
        self.port = accepting.port
        scope.addCleanup(accepting.close)

    def texts(self) -> list[bytes]:
        """Give every message that the router could read or has written."""
        return [text for one in list(self.connections) for text in one.texts()]

    def _talk(self, sock: socket.socket) -> None:
        onward = socket.create_connection(("127.0.0.1", self._onward), 5)
        recorded = Recorded(self._onward)
        self.connections.append(recorded)
        pass_on(sock, onward, recorded.sent, recorded.got)


@frozen
class Outcome:
    """What wrk saw at one node."""

    requests: int
    failed: int
    said: str


@define(eq=False)
class Load:
    """wrk at some nodes, each request on a connection of its own."""

    programs: list[subprocess.Popen[str]]

    @classmethod
    def start(cls, ports: list[int], seconds: int, host: str = HOST, connections: int = CONNECTIONS) -> Load:
        """Begin."""
        words = [str(found("wrk")), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        words += ["-H", f"Host: {host}", "-H", "Connection: close"]
        return cls(
            [
                subprocess.Popen([*words, f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, text=True)
                for port in ports
            ]
        )

    def wait(self) -> list[Outcome]:
        """Give what each has seen when all are done."""
        outcomes = []
        for program in self.programs:
            said, _ = program.communicate(timeout=60)
            errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
            bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
            failed = sum(map(int, errors.groups())) if errors else 0
            failed += int(bad.group(1)) if bad else 0
            count = re.search(r"(\d+) requests in", said)
            outcomes.append(Outcome(int(count.group(1)) if count else 0, failed, said))
        return outcomes


@define(eq=False)
class Cluster:
    """See the module."""

    scope: Scope
    router: Router = field(init=False)
    tap: Tap = field(init=False)
    postgres: Postgres = field(init=False)
    nodes: list[Proxy] = field(factory=list, init=False)
    agents: list[Agent] = field(factory=list, init=False)
    secrets: dict[str, HostSecret] = field(factory=dict, init=False)
    target: int = field(init=False)

    @classmethod
    def start(cls, scope: Scope) -> Cluster:
        """Start everything, register two hosts at different nodes, and wait until both are served everywhere."""
        made = cls(scope)
        made.router = Router.start(scope)
        made.tap = Tap(scope, made.router.port)
        made.postgres = Postgres.start(scope)
        made.target = _nginx(scope)
        conninfo = made.postgres.database()
        for number in range(3):
            made.nodes.append(made._node(number, conninfo))
        for host, first in ((HOST, 0), (OTHER, 2)):
            made.register(host, first)
        for number, hosts in ((0, (HOST,)), (1, (HOST, OTHER))):
            made.agents.append(made._agent(number, hosts))
        for node in made.nodes:
            for host in (HOST, OTHER):
                until(f"{host} is served", partial(fetched, node.http, host))
        return made

    def _node(self, number: int, conninfo: str) -> Proxy:
        node = Proxy("proxy", folder(self.scope), self.scope, ())
        for name, text in (("database", conninfo), ("ticket", TICKET)):
            path = node.home / name
            path.write_text(text)
            path.chmod(0o600)
        node.write(
            f'bus = "wamp"\ndatabase_file = "{node.home}/database"\n'
            "[control.wamp]\n"
            f'url = "ws://127.0.0.1:{self.tap.port}/ws"\nsecret_file = "{node.home}/ticket"\nauth_id = "node{number}"\n'
        )
        text = (node.home / "test.toml").read_text()
        node.again()
        # the ports that it got are its own from now on
        for name in ("http", "https", "agents"):
            usual = f'{name} = ["tcp:0:interface=127.0.0.1"]'
            text = text.replace(usual, usual.replace("tcp:0", f"tcp:{getattr(node, name)}"))
        (node.home / "test.toml").write_text(text)
        return node

    def _agent(self, number: int, hosts: tuple[str, ...]) -> Agent:
        agent = Agent("agent", folder(self.scope), self.scope, ())
        servers = [node.url for node in self.nodes[number : number + 2]]
        targets = {node.http: f"tcp:127.0.0.1:{self.target}" for node in self.nodes}
        tables = ""
        for host in hosts:
            self.secrets[host].save(agent.home / f"{host}.secret")
            lines = ", ".join(f'{port} = "{target}"' for port, target in targets.items())
            tables += (
                f'[[agent.host]]\nhost = "{host}"\nsecret_file = "{agent.home}/{host}.secret"\n'
                f"targets = {{ {lines} }}\n"
            )
        (agent.home / "test.toml").write_text(
            f'[control]\nlisten = []\n[log]\nformat = "json"\n[agent]\nservers = {json.dumps(servers)}\n{tables}'
        )
        agent.begin(lambda: agent.serves(*hosts))
        return agent

    def register(self, host: str, node: int) -> None:
        """Register a host at one node."""
        secret = self.secrets[host] = HostSecret.make()
        self.nodes[node].ask("proxy.register", host=host, secret_hash=secret.key.hex())

    def registered(self, node: int) -> list[Any]:
        """Give the registrations that a node serves."""
        rows: list[Any] = self.nodes[node].ask("proxy.list")["hosts"]
        return rows

    def knows(self, node: int, host: str) -> bool:
        """Say whether a host is registered, as a node sees it."""
        return any(row["host"] == host for row in self.registered(node))

    def ok(self, node: int, check: str) -> bool:
        """Give the state of a node's health row."""
        with contextlib.suppress(Layer8Error):
            return any(row["check"] == check and row["ok"] for row in self.nodes[node].ask("node.health"))
        return False

    def ports(self, *nodes: int) -> list[int]:
        """Give where visitors enter."""
        return [self.nodes[number].http for number in nodes]


def fetched(port: int, host: str) -> bool:
    """Say whether a visitor gets the page."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while part := sock.recv(65536):
            got += part
        return got.startswith(b"HTTP/1.1 200") and got.endswith(BODY)
    return False


def _nginx(scope: Scope) -> int:
    home, port = folder(scope), free_port()
    home.chmod(0o755)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (home / "nginx.conf").write_text(
        "daemon off; worker_processes 1; pid nginx.pid; error_log error.log;"
        " events { worker_connections 4000; } http { access_log off;"
        f" {' '.join(f'{kind}_temp_path {kind};' for kind in kinds)}"
        f" server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{BODY.decode()}'; }} }} }}"
    )
    words = [str(found("nginx")), "-p", str(home), "-e", "error.log", "-c", "nginx.conf"]
    Program.start(scope, "nginx", words, home, ready=lambda _: answers(port))
    return port


@frozen
class Row:
    """What happened when one part was killed under load."""

    what: str
    requests: int
    failed: int
    noticed: float  # seconds until whoever needs it said that it is gone
    back: float  # seconds from its new start until it is of use again
    said: str = field(default="", repr=False)


def _since(start: float, what: str, true: Callable[[], Any], seconds: float = 30.0) -> float:
    until(what, true, seconds)
    return time.monotonic() - start


@define(eq=False)
class Trial:
    """Kills one part after the other."""

    cluster: Cluster
    seconds: int = 6
    before: float = 1.5
    rows: list[Row] = field(factory=list, init=False)

    def _under_load(
        self, nodes: tuple[int, ...], kill: Callable[[], None], noticed: Callable[[], Any], host: str = HOST
    ) -> Any:
        load = Load.start(self.cluster.ports(*nodes), self.seconds, host)
        time.sleep(self.before)
        start = time.monotonic()
        kill()
        seconds = _since(start, "the loss is noticed", noticed)
        outcomes = load.wait()
        return sum(one.requests for one in outcomes), sum(one.failed for one in outcomes), seconds, outcomes

    def _row(self, what: str, under: Any, back: float) -> Row:
        requests, failed, noticed, outcomes = under
        self.rows.append(Row(what, requests, failed, noticed, back, "\n".join(one.said for one in outcomes)))
        return self.rows[-1]

    def node(self) -> Row:
        """Kill node 0; visitors come through nodes 1 and 2."""
        cluster, node = self.cluster, self.cluster.nodes[0]
        before = cluster.registered(1)
        under = self._under_load((1, 2), node.program.kill, lambda: not answers(node.http))
        start = time.monotonic()
        node.again()
        back = _since(start, "the node serves", lambda: fetched(node.http, HOST) and fetched(node.http, OTHER))
        until("the node knows what is registered", lambda: cluster.registered(0) == before)
        return self._row("a node", under, back)

    def holder(self) -> Row:
        """Kill node 1; visitors come through node 0 to the agent that is subscribed at nodes 1 and 2 only."""
        node = self.cluster.nodes[1]
        under = self._under_load((0,), node.program.kill, lambda: not answers(node.http), OTHER)
        start = time.monotonic()
        node.again()
        back = _since(start, "the node serves", lambda: fetched(node.http, HOST) and fetched(node.http, OTHER))
        return self._row("a holder", under, back)

    def router(self) -> Row:
        """Kill the router; visitors come through all nodes, each of which has an agent."""
        cluster = self.cluster
        under = self._under_load(
            (0, 1, 2), cluster.router.kill, lambda: not any(cluster.ok(number, "router") for number in range(3))
        )
        cluster.register("registered.while.test", 1)  # which needs no router
        start = time.monotonic()
        cluster.router.again()
        back = _since(start, "all have joined", lambda: all(cluster.ok(number, "router") for number in range(3)))
        until("a remote agent is reached again", lambda: fetched(cluster.nodes[0].http, OTHER))
        return self._row("the router", under, back)

    def database(self) -> Row:
        """Kill PostgreSQL; visitors come through all nodes."""
        cluster = self.cluster
        before = [cluster.registered(number) for number in range(3)]
        under = self._under_load(
            (0, 1, 2), cluster.postgres.kill, lambda: not any(cluster.ok(number, "database") for number in range(3))
        )
        try:
            cluster.register("refused.test", 0)
        except Layer8Error as error:
            assert "PostgreSQL" in str(error), error
        else:
            raise AssertionError("registered without a database")
        assert [cluster.registered(number) for number in range(3)] == before, "what is registered is served on"
        start = time.monotonic()
        cluster.postgres.again()
        back = _since(start, "all are connected", lambda: all(cluster.ok(number, "database") for number in range(3)))
        cluster.register("registered.after.test", 2)
        until(
            "registered everywhere",
            lambda: all(cluster.knows(number, "registered.after.test") for number in range(3)),
        )
        return self._row("PostgreSQL", under, back)


def table(rows: list[Row]) -> str:
    """Draw what happened."""
    lines = [f"{'kill -9 of':<12} {'requests':>9} {'failed':>7} {'noticed s':>10} {'back s':>7}"]
    lines += [f"{row.what:<12} {row.requests:>9} {row.failed:>7} {row.noticed:>10.2f} {row.back:>7.2f}" for row in rows]
    return "\n".join(lines)


def main() -> int:
    """Run it alone."""
    reason = absent()
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
        return 2
    with contextlib.ExitStack() as stack:
        trial = Trial(Cluster.start(_Stack(stack)))
        for step in (trial.node, trial.holder, trial.router, trial.database):
            step()
        sys.stdout.write(table(trial.rows) + "\n")
    return 1 if any(row.failed for row in trial.rows) else 0


@frozen
class _Stack:
    """A scope that ends when its `with` does."""

    stack: contextlib.ExitStack

    def addCleanup(self, function: Callable[..., Any], /, *args: Any) -> None:
        """Call `function` at the end."""
        self.stack.callback(function, *args)


if __name__ == "__main__":
    sys.exit(main())
