"""Anything at every listener of a whole server, on real sockets: closed or silent, never a defect, nothing left over.

The server runs in the reactor, Hypothesis in a thread beside it. After each example every count has to be what it was,
and the log may hold no traceback.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test
from twisted.internet.threads import blockingCallFromThread

from layer8.core.address import HostPort
from layer8.crypto.secret import HostSecret
from layer8.proxy.pp import v1, v2
from tests.proxy import pair
from tests.proxy.hellos import alpn, hello, records, sni
from tests.proxy.pair import Echo, PairCase, get, visit
from tests.resilience.rig import abort
from tests.resilience.wire import Line

EXAMPLES = 1500
"""Most examples; the small profile has fewer. Each is some dozen real connections."""
STEPS = 25
SETTLE = 10.0
"""Seconds for everything to be over after an example."""
LISTENERS = ("http", "https", "agents", "legacy", "data", "control", "http behind", "https behind")
BALANCER = "127.0.0.9"
"""From here every connection has to begin with a PROXY header."""
HEADERS = (v1(HostPort("192.0.2.1", 7)), v2(HostPort("2001:db8::1", 7)), v1(None), v2(None, tlvs=((4, b"x"),)))

UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)
OURS = b"Sec-WebSocket-Protocol: jsonrpc.layer8.v1\r\n"
UPGRADES = {
    "agents": UPGRADE % (b"/agent", OURS),
    "control": UPGRADE % (b"/ws", OURS),
    "legacy": UPGRADE % (b"/", b""),
}
WELL_FORMED = (
    get("static.test"),
    get("agent.test"),
    get("unknown.test"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: agent.test\r\nContent-Length: 100\r\n\r\nhalf",
    records(hello(sni(b"static.test"))),
    records(hello(sni(b"agent.test"))),
    records(hello(sni(b"own.test"))),
    records(hello(sni(b"own.test"), alpn(b"layer8-data/1"))),
    records(hello(sni(b"own.test"), alpn(b"http/1.1"))),
    *UPGRADES.values(),
    *(header + get(host) for header in HEADERS for host in ("static.test", "agent.test")),
    HEADERS[1] + records(hello(sni(b"static.test"))),
    HEADERS[1] + records(hello(sni(b"own.test"), alpn(b"layer8-data/1"))),
    HEADERS[1] + records(hello(sni(b"own.test"), alpn(b"http/1.1"))),
    *HEADERS,
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b'POST /api/v1/proxy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n{"host":"x.test"',
)


def frame(opcode: int, data: bytes, first: int = 0x80) -> bytes:
    """A WebSocket frame with a mask of zeros."""
    size = len(data)
    long = size >= 126
    head = bytes([first | opcode, 0xFE if long else 0x80 | size])
    return head + (size.to_bytes(2, "big") if long else b"") + bytes(4) + data


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
METHODS = st.sampled_from(
    (
        *("proxy.hello", "proxy.subscribe", "proxy.unsubscribe", "proxy.reject", "proxy.health", "proxy.register"),
        *("proxy.list", "rpc.ping", "auth.token", "events.subscribe", "webgw_registerClient", "webgw_unregisterClient"),
    )
)
PARAMS = st.sampled_from(
    (
        {"versions": [1], "instance": "some noise"},
        {"host": "agent.test", "proof": "0" * 64},
        {"host": "agent.test", "secret": "00" * 32},
        {"subscription": 1, "conn": 1, "code": -20008},
        {"subscription": 2**53, "state": "down"},
        {"token": "x" * 43},
        ["agent.test", "ab" * 32],
    )
)
CALLS = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": METHODS | st.text(max_size=20), "params": PARAMS | VALUES},
    optional={"id": st.integers(0, 3) | VALUES},
)
MESSAGES = (CALLS | VALUES).map(lambda value: json.dumps(value).encode())
FRAMES = st.builds(
    frame,
    st.sampled_from((1, 1, 1, 1, 2, 0, 8, 9, 10, 3)),
    MESSAGES | st.binary(max_size=140),
    st.sampled_from((0x80, 0x80, 0x80, 0, 0xC0)),
)
NOISE = st.binary(min_size=1, max_size=200) | st.sampled_from((b"\x16\x03\x01", b"\r\n\r\n", b"x" * 32, bytes(20_000)))


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Something well formed, whole, cut short, or with one byte changed."""
    data = draw(st.sampled_from(WELL_FORMED))
    how = draw(st.integers(0, 2))
    at = draw(st.integers(0, len(data) - 1))
    if how == 1:
        return data[: at + 1]
    if how == 2:
        return data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    return data


class ServerNoiseTests(PairCase):
    timeout = 3600

    async def test_every_listener(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            control = free.getsockname()[1]
        base = pair.BASE.replace("listen = []", f'listen = ["tcp:{control}:interface=127.0.0.1"]')
        self.patch(pair, "BASE", base)
        echo = Echo()
        self.addCleanup(echo.close)
        secret, path = self.secret()
        server: Any = self.serve(
            f'legacy = ["tcp:0:interface=127.0.0.1"]\nname = "own.test"\nproxy_from = ["{BALANCER}"]\n'
            "[proxy.limits]\nsecret_time = 3600\nsniff_time = 3600\n",
            f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:127.0.0.1:{echo.port}"\n'
            f'[[proxy.host]]\nhost = "agent.test"\nsecret_file = "{path}"\n',
        )
        agents, legacy = (held[0].getHost().port for held in server.door._ports)
        ports = {
            "http": server.door.port_of("http"),
            "https": server.door.port_of("https"),
            "agents": agents,
            "legacy": legacy,
            "data": server.door.addresses()[0].port,
            "control": control,
        }
        ports |= {f"{scheme} behind": ports[scheme] for scheme in ("http", "https")}
        await self.thread(self.fuzz, server, ports, secret)
        self.assertEqual(self.flushLoggedErrors(), [])

    def fuzz(self, server: Any, ports: dict[str, int], secret: HostSecret) -> None:
        """Run all examples; in a thread of its own."""
        case, reactor = self, self.reactor
        line = Line(ports["agents"])
        line.hello()
        line.subscribe("agent.test", secret.key)

        def counts() -> dict[str, int]:
            traffic, frame = server.traffic, case.frame
            return {
                "visitors": len(traffic.visits),
                "without a header": len(traffic.balancers.waiting),
                "without a name": len(traffic.waiting),
                "waiting for an agent": len(traffic.pending),
                "places": traffic.open.open,
                "places of sniffing": traffic.sniffing.open,
                "dial-backs": server.door.data.places.open,
                "joined": server.pump.links,
                "descriptors of the pump": len(server.pump._table),
                "pipes": server.pump.pipes.used,
                "agents": len(server._agent_rows),
                "subscriptions": len(server.seats),
                "calling": sum(seat.calling + seat.open for seat in server.seats),
                "conversations": len(frame.control.conversations()),
                "counted by host": sum(tally.calling + tally.open for tally in traffic.tallies.values()),
            }

        before = blockingCallFromThread(reactor, counts)

        class Noise(RuleBasedStateMachine):
            connections = Bundle("connections")

            def __init__(self) -> None:
                super().__init__()
                self.socks: list[socket.socket] = []

            @rule(target=connections, where=st.sampled_from(LISTENERS), first=st.none() | spoilt() | NOISE)
            def connect(self, where: str, first: bytes | None) -> socket.socket:
                return self.opened(where, first)

            @rule(target=connections, where=st.sampled_from(sorted(UPGRADES)), said=st.lists(FRAMES, max_size=4))
            def talk(self, where: str, said: list[bytes]) -> socket.socket:
                """A WebSocket that says something."""
                return self.opened(where, UPGRADES[where] + b"".join(said))

            def opened(self, where: str, first: bytes | None) -> socket.socket:
                source = (BALANCER if where.endswith("behind") else "127.0.0.1", 0)
                sock = socket.create_connection(("127.0.0.1", ports[where]), 5, source)
                sock.settimeout(0.2)
                self.socks.append(sock)
                if first is not None:
                    self.send(sock, first)
                return sock

            @rule(sock=connections, data=spoilt() | NOISE | FRAMES)
            def say(self, sock: socket.socket, data: bytes) -> None:
                self.send(sock, data)

            @rule(sock=connections)
            def end_half(self, sock: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)

            @rule(sock=connections)
            def read(self, sock: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    sock.setblocking(False)
                    while sock.recv(65536):
                        continue

            @rule(sock=consumes(connections))
            def leave(self, sock: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    abort(sock)

            @rule(seconds=st.sampled_from((0.001, 0.01)))
            def wait(self, seconds: float) -> None:
                time.sleep(seconds)

            @rule(target=connections, after=st.binary(max_size=20), reject=st.booleans())
            def agent_does_its_work(self, after: bytes, reject: bool) -> socket.socket:
                """Answer a call, with the right secret and anything after it, or say no."""
                sock = socket.create_connection(("127.0.0.1", ports["data"]), 5)
                sock.settimeout(0.2)
                self.socks.append(sock)
                with contextlib.suppress(TimeoutError):
                    call = line.hear(seconds=0.02)
                    if reject:
                        note = {"subscription": call["subscription"], "conn": call["result"]["conn"], "code": -20008}
                        line.say("proxy.reject", note)
                    else:
                        self.send(sock, bytes.fromhex(call["result"]["secret"]) + after)
                return sock

            def send(self, sock: socket.socket, data: bytes) -> None:
                with contextlib.suppress(OSError):
                    sock.sendall(data)

            def teardown(self) -> None:
                for sock in self.socks:
                    with contextlib.suppress(OSError):
                        abort(sock)
                end = time.monotonic() + SETTLE
                while (now := blockingCallFromThread(reactor, counts)) != before:
                    if time.monotonic() > end:
                        wrong = {name: (before[name], value) for name, value in now.items() if value != before[name]}
                        raise AssertionError(f"left over: {wrong}")
                    time.sleep(0.005)
                with contextlib.suppress(TimeoutError):
                    while True:
                        line.hear(seconds=0.001)
                assert server.pump.failures == 0
                assert blockingCallFromThread(reactor, case.flushLoggedErrors) == []
                assert visit(ports["http"], get("static.test")).endswith(get("static.test"))

        run_state_machine_as_test(
            Noise,
            settings=settings(
                settings(),
                max_examples=min(EXAMPLES, settings().max_examples),
                stateful_step_count=STEPS,
                suppress_health_check=list(HealthCheck),
            ),
        )
        line.close()
