"""What stands around an exit in tests: a resolver that answers by hand, a stream that remembers, real targets."""

import contextlib
import socket
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred

from layer8.relay.exit import Guard, LanTargets, NoWay, Policy
from layer8.relay.outward import LocalAddresses, Outward
from layer8.relay.turn import StreamLike
from layer8.relay.wire import Reason
from tests import opened
from tests.net.test_dial import Named
from tests.relay.nodes import PollingCase, left_open


class Stream:
    """A `StreamLike` that remembers what it was told, in order."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.got = bytearray()
        self.pieces: list[bytes] = []
        self.told: list[object] = []

    def write(self, data: bytes) -> None:
        self.got += data
        self.pieces.append(data)

    def end(self) -> None:
        self.told.append("end")

    def close(self, reason: Reason = Reason.DONE) -> None:
        self.told.append(reason)

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


class Target:
    """Listens on loopback and hands over what it accepts."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((host, port))
        self.sock.listen(128)
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def accept(self) -> int:
        """Take who waits, and count them all."""
        with contextlib.suppress(BlockingIOError):
            while True:
                one, _ = self.sock.accept()
                one.setblocking(False)
                self.accepted.append(one)
        return len(self.accepted)

    def close(self) -> None:
        for one in (self.sock, *self.accepted):
            one.close()


class ExitCase(PollingCase):
    """An exit that lets strangers to loopback, as in a network for tries."""

    timeout = 30
    steps = 2000
    RULES: Any = ("accept *:*",)

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.addCleanup(self.nothing_left, set(opened.descriptors()))
        self.named = Named(reactor)
        self.ports: set[int] = set()
        self.exit = self.make()
        self.account = self.exit.account()
        self.stream = Stream()
        checked: StreamLike = self.stream  # the fake has the shape of the real one
        del checked

    async def nothing_left(self, before: set[str]) -> None:
        steps = count()
        await self.until(lambda: not left_open(before, next(steps)))

    def make(self, *, allow: bool = True, reactor: Any = None, lists: LanTargets | None = None, **more: Any) -> Outward:
        more.setdefault("policy", Policy.parse(self.RULES))
        guard = Guard(LocalAddresses(), self.ports, allow_loopback=allow)
        return Outward(
            reactor or self.named, guard=guard, targets=lists or LanTargets(), interfaces=("127.0.0.1", "::1"), **more
        )

    def target(self, host: str = "127.0.0.1", port: int = 0) -> Target:
        target = Target(host, port)
        self.addCleanup(target.close)
        return target

    async def no_way(self, way: Any) -> Reason:
        """Give the reason why a way is refused."""
        try:
            await way
        except NoWay as no:
            for secret in ("127.0.0.1", "a.test", "10.0.0.1"):
                self.assertNotIn(secret, str(no))
            return no.reason
        self.fail("it was allowed")

    async def answered(self, way: Any, *addresses: str) -> Any:
        """Let a way ask for its name, and answer."""
        waiting = Deferred.fromCoroutine(way)
        await self.until(lambda: self.named.receivers)
        self.named.answer(*addresses)
        return await waiting

    async def threaded(self, call: Callable[[], Any]) -> Any:
        """Run a blocking call beside the reactor."""
        done: Deferred[Any] = Deferred()

        def run() -> None:
            try:
                result = call()
            except Exception as error:
                self.reactor.callFromThread(done.errback, error)
            else:
                self.reactor.callFromThread(done.callback, result)

        threading.Thread(target=run, daemon=True).start()
        return await done
