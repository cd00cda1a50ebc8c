"""One side has said all it has to say and the other goes on: `nc -N`, ncat and plain sockets, both ways."""

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.backend import TIME_S, drained, serve, summed
from tests.interop.daemons import Agent, Program, Proxy, folder, found, free_port, missing, until
from tests.interop.stage import MIB, WAYS, pair

HEAD = "POST / HTTP/1.1\r\nHost: web.{}.test\r\nContent-Length: 99999999\r\n\r\n"
SIZES = (0, 1, 65536, 10 * MIB + 1)
LEGS = ("auto", "always")
VISITORS = {"nc": ("nc", "-N"), "ncat": ("ncat",), "socat": ("socat", "-t30", "-")}


class HalfCloseTests(SynchronousTestCase):
    skip = missing(nc="netcat-openbsd", ncat="ncat", socat="socat")

    def connect(self, server: Proxy, way: str, first: bytes = b"") -> socket.socket:
        visitor = socket.create_connection(("127.0.0.1", server.http), TIME_S)
        self.addCleanup(visitor.close)
        visitor.sendall(HEAD.format(way).encode() + first)
        return visitor

    def through(self, talk: Callable[[socket.socket], None], leg: str = "auto") -> tuple[Proxy, Agent]:
        return pair(self, plain=serve(self, talk), text=f'data_tls = "{leg}"\n')

    def carried(self, server: Proxy) -> bool:
        """Say whether there is a visitor, all of whose words so far have gone on."""
        rows = server.ask("proxy.connections")["connections"]
        return bool(rows) and all(row["bytes_in"] > 1000 for row in rows)

    def nothing_left(self, server: Proxy, agent: Agent) -> None:
        """Every connection has ended, none was killed, and nobody complains."""
        until("no visitor is left", lambda: not server.ask("proxy.connections")["connections"])
        until("the agent carries nobody", lambda: not agent.ask("agent.status")["open"])
        self.assertEqual([*server.defects(), *agent.defects()], [])

    def test_the_visitor_ends_first_and_is_answered(self) -> None:
        for leg in LEGS:
            server, agent = self.through(summed, leg)
            for way in WAYS:
                for name, words in VISITORS.items():
                    where = (f"tcp:127.0.0.1:{server.http}",) if name == "socat" else ("127.0.0.1", str(server.http))
                    for size in SIZES:
                        sent = HEAD.format(way).encode() + os.urandom(size)
                        done = subprocess.run(
                            [str(found(words[0])), *words[1:], *where], input=sent, capture_output=True, timeout=TIME_S
                        )
                        expected = f"{hashlib.sha256(sent).hexdigest()} {len(sent)}\n"
                        self.assertEqual(done.stdout.decode(), expected, (leg, way, name, size, done.stderr))
            self.nothing_left(server, agent)

    def test_the_backend_ends_first_and_goes_on_listening(self) -> None:
        for leg in LEGS:
            where, port = folder(self), free_port()

            def listening(_: Program, port: int = port) -> bool:
                return listens(port)

            (where / "file").write_bytes(os.urandom(10 * MIB + 1))
            server, agent = pair(self, plain=port, text=f'data_tls = "{leg}"\n')
            for way in WAYS:
                for size in SIZES:
                    words = f"exec nc -lN 127.0.0.1 {port} < {where}/file > {where}/got"
                    backend = Program.start(self, "nc", ["sh", "-c", words], where, ready=listening)
                    visitor = self.connect(server, way)
                    got, length = drained(visitor)  # to the end: the backend has ended its half
                    expected = hashlib.sha256((where / "file").read_bytes()).hexdigest()
                    self.assertEqual((got, length), (expected, 10 * MIB + 1), (leg, way, size))
                    rest = os.urandom(size)
                    visitor.sendall(rest)
                    visitor.shutdown(socket.SHUT_WR)
                    self.assertEqual(backend.process.wait(TIME_S), 0)
                    self.assertEqual((where / "got").read_bytes(), HEAD.format(way).encode() + rest, (leg, way, size))
            self.nothing_left(server, agent)

    def test_both_talk_at_the_same_time_and_end_when_they_like(self) -> None:
        words = os.urandom(12 * MIB)

        def talk(connection: socket.socket) -> None:
            head = connection.recv(len(HEAD.format("agent")) + 1, socket.MSG_PEEK)
            size = SIZES[head.count(b"agent") * 2 + 1]

            def say() -> None:
                connection.sendall(words[:size])
                connection.shutdown(socket.SHUT_WR)

            saying = threading.Thread(target=say)
            saying.start()
            heard.append(drained(connection))
            saying.join()

        heard: list[tuple[str, int]] = []
        for leg in LEGS:
            server, agent = self.through(talk, leg)
            for way in WAYS:
                for size in SIZES:
                    heard.clear()
                    visitor = self.connect(server, way)

                    def say(visitor: socket.socket = visitor, size: int = size) -> None:
                        visitor.sendall(words[:size])
                        visitor.shutdown(socket.SHUT_WR)

                    saying = threading.Thread(target=say)
                    saying.start()
                    expected = words[: SIZES[3 if way == "agent" else 1]]
                    self.assertEqual(drained(visitor), (hashlib.sha256(expected).hexdigest(), len(expected)))
                    saying.join()
                    until("the backend has heard all", lambda: heard)
                    sent = HEAD.format(way).encode() + words[:size]
                    self.assertEqual(heard, [(hashlib.sha256(sent).hexdigest(), len(sent))])
            self.nothing_left(server, agent)

    def test_a_reset_is_passed_on_and_leaves_nothing_behind(self) -> None:
        begun: list[bytes] = []
        ends: list[str] = []

        def talk(connection: socket.socket) -> None:
            try:
                begun.append(connection.recv(4096))
                if b"/backend" in begun[-1]:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                drained(connection)
                ends.append("end")
            except ConnectionResetError:
                ends.append("reset")

        server, agent = self.through(talk)
        before = (server.program.descriptors(), agent.program.descriptors())
        for way in WAYS:
            for _ in range(20):
                begun.clear()
                visitor = self.connect(server, way, b"x" * 1000)
                # The server joins a visitor with a connection that was dialled ahead before its target is there.
                until("the visitor is carried", lambda: self.carried(server) and begun)
                visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                visitor.close()
                until("the backend knows", lambda: ends)
                self.assertEqual(ends.pop(), "reset")
                with socket.create_connection(("127.0.0.1", server.http), TIME_S) as visitor:
                    visitor.sendall(HEAD.format(way).replace("POST /", "POST /backend").encode())
                    with self.assertRaises(ConnectionResetError):
                        visitor.recv(100)
        self.nothing_left(server, agent)
        until(
            "no descriptor is left behind",
            lambda: (server.program.descriptors(), agent.program.descriptors()) <= before,
            5,
        )

    def test_a_target_that_ends_at_once(self) -> None:
        server, agent = self.through(lambda connection: None)
        for way in WAYS:
            visitor = self.connect(server, way)
            with contextlib.suppress(ConnectionResetError):  # it may leave our words unread
                self.assertEqual(visitor.recv(100), b"")
            visitor.close()  # else its half may stay open for as long as it likes to talk, up to HALF_CLOSED seconds
        self.nothing_left(server, agent)


def listens(port: int) -> bool:
    """Say whether a port is listened on, without connecting: some listeners take one connection only."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text()
