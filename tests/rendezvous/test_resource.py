"""Resources: a file that is read through a hidden service, and how targets are written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

from twisted.logger import Logger

from layer8.core.errors import ConfigError
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.relay.flow import Stream
from layer8.relay.wire import Open, Proto, Reason
from layer8.rendezvous.resource import PORT, Resource, of
from layer8.rendezvous.target import Ports
from layer8.testing.network import Echo, Heard
from tests.rendezvous.net import HiddenCase

TARGET = Open(Proto.TCP, "", PORT)


class FileTests(HiddenCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())
        self.path.write_bytes(Random(3).randbytes(3 * 2**20 + 7))
        self.resource = Resource(self.key, of(f"file:{self.path}"))
        self.ports = Ports(self.net.clock, TaskSet(Logger()), self.resource.targets)

    def asked(self, stream: Stream, port: int, login: bytes | None) -> None:
        self.ports.asked(stream, port, login)

    def test_a_file(self) -> None:
        """G39: bytes equal, for each client from the beginning, also for one that says its end at once."""
        self.start()
        for _ in range(2):
            sink = Heard()
            self.meet().open(TARGET, sink).end()
            self.until_closed(sink)
            self.assertEqual(sink.reason, Reason.DONE)
            self.assertEqual(hashlib.sha256(sink.all).digest(), hashlib.sha256(self.path.read_bytes()).digest())

    def until_closed(self, sink: Heard) -> None:
        self.net.run(lambda: "closed" in sink.words)

    def test_a_client_that_does_not_read(self) -> None:
        """No more of the file is read than its windows hold."""
        self.start()
        sink = Heard(slow=True)
        origin = self.meet()
        sink.stream = origin.open(TARGET, sink)
        self.net.settle()
        self.assertLess(len(sink.all), 2**20)
        session = next(iter(self.service.sessions.values()))
        self.assertLess(session.origin.streams.held, 2**20)
        sink.slow = False
        sink.stream.resume()
        self.net.run(lambda: "ended" in sink.words)
        self.assertEqual(len(sink.all), 3 * 2**20 + 7)

    def test_a_client_that_leaves(self) -> None:
        self.start()
        sink = Heard(slow=True)
        origin = self.meet()
        sink.stream = origin.open(TARGET, sink)
        self.net.settle()
        origin.close()
        self.net.run(lambda: not self.service.sessions)

    def test_a_file_that_has_gone(self) -> None:
        self.start()
        self.path.unlink()
        sink = Heard()
        self.meet().open(TARGET, sink)
        self.net.run(lambda: sink.reason is not None)
        self.assertEqual(sink.reason, Reason.INTERNAL)

    def test_a_function(self) -> None:
        self.ports = Ports(self.net.clock, TaskSet(Logger()), Resource(self.key, Echo).targets)
        self.start()
        sink = Heard()
        self.meet().open(TARGET, sink).write(b"hello")
        self.net.run(lambda: sink.all == b"hello")

    def test_names(self) -> None:
        self.assertEqual(Resource(self.key, Echo).name, hashlib.sha1(self.key.node_id).digest())
        self.assertNotEqual(Resource(NodeKey.make(), Echo).name, self.resource.name)

    def test_targets(self) -> None:
        for text, target in (
            ("localhost:80", "tcp:localhost:80"),
            ("127.0.0.1:8000", "tcp:127.0.0.1:8000"),
            (":80", "tcp:localhost:80"),
            ("unix:/run/x", "unix:/run/x"),
            ("tcp:localhost:80", "tcp:localhost:80"),
        ):
            self.assertEqual(of(text), target)
        for text in ("", "localhost", "localhost:0", "localhost:65536", "file:/nowhere/at/all", "unix:"):
            with self.assertRaises(ConfigError):
                of(text)
