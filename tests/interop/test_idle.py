"""Sockets that say nothing, or begin and never end: the visitors among them are served as if they were alone."""

import contextlib
import resource
import socket
import ssl
import time

from twisted.logger import Logger
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.interop.daemons import missing
from tests.interop.stage import WAYS, Stage, stage

NETWORKS = 20
"""/24 networks that the idle ones come from; the limits per network are their own tests'."""
GOOD = 50
SLOWEST_S = 1.0
TIME_S = 20.0
HEAD = b"GET /1k HTTP/1.1\r\nHost: web.agent.te"


def hello(name: str) -> bytes:
    """Give a ClientHello that OpenSSL wrote."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


class IdleTests(SynchronousTestCase):
    skip = missing(nginx="nginx")
    _log = Logger()

    def crowd(self, here: Stage, count: int, http: bytes, https: bytes) -> list[socket.socket]:
        """Connect `count` sockets, half of them to each port, that say a beginning and no more."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < count + 200:
            raise SkipTest(f"at most {hard} descriptors here (ulimit -n), {count} sockets are needed")
        if soft < count + 200:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        sockets: list[socket.socket] = []
        self.addCleanup(close_all, sockets)
        ends = ((here.server.http, http), (here.server.https, https))
        for number in range(count):
            port, first = ends[number % 2]
            source = f"127.1.{number % NETWORKS}.{1 + number // NETWORKS}"
            idle = socket.create_connection(("127.0.0.1", port), TIME_S, (source, 0))
            sockets.append(idle)
            if first:
                idle.sendall(first)
        return sockets

    def visits(self, here: Stage) -> list[float]:
        """Fetch a file `GOOD` times over both ports and both ways, each on a new connection; give sorted seconds."""
        context = ssl.create_default_context(cafile=str(here.nginx.certificate))
        expected = (here.nginx.files / "1k").read_bytes()
        taken = []
        for number in range(GOOD):
            kind, way = ("web", "tls")[number % 2], WAYS[number // 2 % 2]
            name = f"{kind}.{way}.test"
            began = time.monotonic()
            port = here.server.http if kind == "web" else here.server.https
            with contextlib.ExitStack() as stack:
                visitor = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIME_S))
                if kind == "tls":
                    visitor = stack.enter_context(context.wrap_socket(visitor, server_hostname=name))
                visitor.sendall(f"GET /1k HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
                answer = b""
                while data := visitor.recv(65536):
                    answer += data
            taken.append(time.monotonic() - began)
            self.assertEqual(answer.partition(b"\r\n\r\n")[2], expected)
        return sorted(taken)

    def among(self, count: int, http: bytes = b"", https: bytes = b"") -> None:
        here = stage()
        alone = self.visits(here)
        crowd = self.crowd(here, count, http, https)
        taken = self.visits(here)
        self._log.info(
            "p99 {crowded} ms among {count}, {alone} ms alone",
            crowded=round(taken[-1] * 1000, 1),
            count=count,
            alone=round(alone[-1] * 1000, 1),
        )
        self.assertLess(taken[-1], SLOWEST_S)
        for idle in crowd:
            idle.setblocking(False)
            with self.assertRaises(BlockingIOError, msg="an idle one was turned away"):
                idle.recv(1)
        self.assertEqual([*here.server.defects(), *here.agent.defects()], [])

    def test_200_that_say_nothing(self) -> None:
        self.among(200)

    def test_2000_that_say_nothing(self) -> None:
        self.among(2000)

    def test_200_that_begin(self) -> None:
        self.among(200, HEAD, hello("tls.agent.test")[:100])

    def test_2000_that_begin(self) -> None:
        self.among(2000, HEAD, hello("tls.agent.test")[:100])


def close_all(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()
