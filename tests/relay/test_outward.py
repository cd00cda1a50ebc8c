"""The way out over TCP, with real targets on loopback."""

import contextlib
import hashlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from layer8.core.errors import LimitExceeded
from layer8.crypto.keys import id_text
from layer8.net import lookup as lookup_module
from layer8.relay import outward
from layer8.relay.carried import WRITE_MOST
from layer8.relay.exit import EXIT_TIME, LanTargets, NoWay, Policy
from layer8.relay.limits import CIRC_BYTES, EXIT_CONNECTS_BURST, EXIT_SAME_DEST, T_LINGER
from layer8.relay.outward import LocalAddresses
from layer8.relay.turn import Sink
from layer8.relay.wire import Reason
from tests.interop.daemons import missing
from tests.relay.exit_peers import ExitCase

FRIEND = bytes(range(32))


class Elsewhere:
    """A reactor whose connections go to another address than they were asked for, as a packet filter's might."""

    def __init__(self, reactor: Any, host: str) -> None:
        self._reactor = reactor
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, *rest: Any) -> Any:
        return self._reactor.connectTCP(self._host, *rest)


class ChoiceTests(ExitCase):
    async def test_an_address_is_dialled_and_nothing_is_looked_up(self) -> None:
        target = self.target()
        made = await self.exit.dial("127.0.0.1", target.port, self.account)
        self.assertEqual((made.address, made.port), ("127.0.0.1", target.port))
        await self.until(target.accept)
        self.assertEqual(self.named.asked, [])
        made.closed(Reason.RESET)
        await self.until(lambda: not self.account._open)
        self.assertEqual(self.exit.counts.dialled, 1)

    async def test_a_name_is_looked_up_once_and_as_it_stands(self) -> None:
        target = self.target()
        made = await self.answered(self.exit.dial("A.Test", target.port, self.account), "127.0.0.1")
        self.assertEqual(self.named.asked, ["a.test."])
        self.assertEqual(made.address, "127.0.0.1")
        made.closed(Reason.DONE)

    async def test_the_second_answer_is_of_no_use(self) -> None:
        """A zone that changes its mind: only what was checked is dialled, and it is checked each time."""
        self.patch(lookup_module, "KEPT", -1.0)
        target = self.target()
        made = await self.answered(self.exit.dial("a.test", target.port, self.account), "127.0.0.1")
        made.closed(Reason.DONE)
        self.assertEqual(len(self.named.asked), 1)
        way = self.no_way(self.exit.dial("a.test", target.port, self.account))
        self.assertIs(await self.answered(way, "10.0.0.1"), Reason.POLICY)
        self.assertEqual(len(self.named.asked), 2)

    async def test_a_kept_answer_is_judged_anew(self) -> None:
        target = self.target()
        made = await self.answered(self.exit.dial("a.test", target.port, self.account), "127.0.0.1")
        made.closed(Reason.DONE)
        self.ports.add(target.port)
        self.assertIs(await self.no_way(self.exit.dial("a.test", target.port, self.account)), Reason.POLICY)
        self.assertEqual(len(self.named.asked), 1)

    async def test_one_private_answer_spoils_all(self) -> None:
        target = self.target()
        for number, mixed in enumerate(
            (("127.0.0.1", "10.0.0.1"), ("10.0.0.1", "127.0.0.1"), ("127.0.0.1", "fd00::1"))
        ):
            way = self.no_way(self.exit.dial(f"a{number}.test", target.port, self.account))
            self.assertIs(await self.answered(way, *mixed), Reason.POLICY)
        await self.sleep(0.05)
        self.assertEqual(target.accept(), 0, "nothing was dialled")
        self.assertEqual(self.exit.counts.refused, 3)

    async def test_loopback_is_closed_by_default(self) -> None:
        target = self.target()
        shut = self.make(allow=False)
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "64:ff9b::7f00:1", "10.0.0.1"):
            self.assertIs(await self.no_way(shut.dial(host, target.port, self.account)), Reason.POLICY, host)
        self.assertIs(
            await self.answered(self.no_way(shut.dial("a.test", target.port, self.account)), "127.0.0.1"), Reason.POLICY
        )
        for host in ("localhost", "a.localhost", "printer", "a.local", "a.onion", "127.1", "2130706433", ""):
            self.assertIs(await self.no_way(shut.dial(host, target.port, self.account)), Reason.RESOLVE, host)
        self.assertEqual(self.named.asked, ["a.test."])
        self.assertEqual(target.accept(), 0)

    async def test_localhost_where_loopback_is_open(self) -> None:
        target = self.target()
        made = await self.answered(self.exit.dial("localhost", target.port, self.account), "127.0.0.1")
        self.assertEqual(self.named.asked, ["localhost"])
        made.closed(Reason.DONE)

    async def test_the_resolver_of_this_machine(self) -> None:
        target = self.target()
        made = await self.make(reactor=self.reactor).dial("localhost", target.port, self.account)
        self.assertEqual(made.address, "127.0.0.1")
        made.closed(Reason.DONE)

    async def test_own_ports(self) -> None:
        target = self.target()
        self.ports.add(target.port)
        for host in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0"):
            self.assertIs(await self.no_way(self.exit.dial(host, target.port, self.account)), Reason.POLICY, host)
        lists = LanTargets.parse({id_text(FRIEND): [f"127.0.0.1:{target.port}"]})
        friendly = self.make(lists=lists)
        way = friendly.dial("127.0.0.1", target.port, self.account, FRIEND)
        self.assertIs(await self.no_way(way), Reason.POLICY, "not even for a friend")

    async def test_off_looks_nothing_up(self) -> None:
        off = self.make(policy=Policy.parse("off"))
        for host in ("a.test", "127.0.0.1"):
            self.assertIs(await self.no_way(off.dial(host, 80, self.account)), Reason.POLICY)
            self.assertIs(await self.no_way(off.associate(host, 80, self.account)), Reason.POLICY)
        self.assertIs(await self.no_way(off.associate("", 0, self.account)), Reason.POLICY)
        self.assertEqual(self.named.asked, [])

    async def test_rules_about_addresses_choose_among_the_answers(self) -> None:
        target = self.target()
        some = self.make(policy=Policy.parse(["reject 127.0.0.2:*", "accept *:*"]))
        made = await self.answered(some.dial("a.test", target.port, self.account), "127.0.0.2", "127.0.0.1")
        self.assertEqual(made.address, "127.0.0.1")
        made.closed(Reason.DONE)
        way = self.no_way(some.dial("b.test", target.port, self.account))
        self.assertIs(await self.answered(way, "127.0.0.2"), Reason.POLICY)

    async def test_a_list_is_for_one_identity(self) -> None:
        target = self.target()
        lists = LanTargets.parse({id_text(FRIEND): [f"127.0.0.1:{target.port}", f"nas:{target.port}"]})
        shut = self.make(allow=False, policy=Policy.parse("off"), lists=lists)
        made = await shut.dial("127.0.0.1", target.port, self.account, FRIEND)
        made.closed(Reason.DONE)
        made = await self.answered(shut.dial("NAS", target.port, self.account, FRIEND), "127.0.0.1")
        self.assertEqual(self.named.asked, ["nas"])
        made.closed(Reason.DONE)
        for host, port, identity in (
            ("127.0.0.1", target.port, None),
            ("127.0.0.1", target.port, bytes(32)),
            ("127.0.0.1", target.port ^ 1, FRIEND),
            ("127.0.0.2", target.port, FRIEND),
            ("nas", target.port, None),
        ):
            self.assertIs(await self.no_way(shut.dial(host, port, self.account, identity)), Reason.POLICY)
        self.assertEqual(len(self.named.asked), 1)

    async def test_another_address_has_answered(self) -> None:
        target = self.target("127.0.0.2")
        exit_ = self.make(reactor=Elsewhere(self.named, "127.0.0.2"))
        self.assertIs(await self.no_way(exit_.dial("127.0.0.1", target.port, self.account)), Reason.POLICY)
        await self.until(lambda: not self.account._open)
        await self.until(target.accept)
        await self.until(lambda: _over(target.accepted[0]))

    async def test_where_links_may_go(self) -> None:
        """No rule counts for them, the guard does."""
        off = self.make(policy=Policy.parse("off"))
        self.assertEqual(await off.addresses("::ffff:8.8.8.8", 9000), ["8.8.8.8"])
        self.assertEqual(
            await self.answered(off.addresses("a.test", 9000), "8.8.8.8", "2600::1"), ["8.8.8.8", "2600::1"]
        )
        self.assertIs(await self.no_way(off.addresses("10.0.0.1", 9000)), Reason.POLICY)
        way = self.no_way(off.addresses("b.test", 9000))
        self.assertIs(await self.answered(way, "8.8.8.8", "10.0.0.1"), Reason.POLICY)
        self.ports.add(9000)
        self.assertIs(await self.no_way(off.addresses("127.0.0.1", 9000)), Reason.POLICY)

    async def test_addresses_of_this_machine(self) -> None:
        local = LocalAddresses(["198.51.100.7"])
        for address in ("127.0.0.1", "::1", "198.51.100.7"):
            self.assertIn(address, local)
        others: tuple[object, ...] = ("8.8.8.8", "192.0.2.1", "2600::1", "", "a.test", 7)
        for other in others:
            self.assertNotIn(other, local)
        local._any = True  # as where every address can be bound
        self.assertIn("127.0.0.1", local)
        self.assertNotIn("192.0.2.1", local)


class FaultTests(ExitCase):
    async def test_nobody_listens(self) -> None:
        target = self.target()
        target.close()
        self.assertIs(await self.no_way(self.exit.dial("127.0.0.1", target.port, self.account)), Reason.REFUSED)
        self.assertEqual(self.account._open, {})
        self.assertEqual(self.exit.counts.failed, 1)

    async def test_no_address(self) -> None:
        self.assertIs(await self.answered(self.no_way(self.exit.dial("a.test", 80, self.account))), Reason.RESOLVE)

    async def test_the_next_address_is_tried(self) -> None:
        target = self.target("127.0.0.3")
        way = self.exit.dial("a.test", target.port, self.account)
        made = await self.answered(way, "127.0.0.2", "127.0.0.3")
        self.assertEqual(made.address, "127.0.0.3")
        self.assertEqual(list(self.account._open), ["127.0.0.3"])
        made.closed(Reason.DONE)

    async def test_four_addresses_are_tried_and_no_more(self) -> None:
        target = self.target("127.0.0.6")
        five = [f"127.0.0.{number}" for number in range(2, 7)]
        way = self.no_way(self.exit.dial("a.test", target.port, self.account))
        self.assertIs(await self.answered(way, *five), Reason.REFUSED)
        made = await self.answered(self.exit.dial("b.test", target.port, self.account), *five[1:])
        self.assertEqual(made.address, "127.0.0.6")
        made.closed(Reason.DONE)

    def hole(self) -> int:
        """A port that never answers: its queue is full, and the kernel drops what comes."""
        hole = socket.socket()
        self.addCleanup(hole.close)
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        port: int = hole.getsockname()[1]
        for _ in range(4):
            one = socket.socket()
            self.addCleanup(one.close)
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        return port

    async def test_an_address_that_does_not_answer_has_less_time_where_there_are_more(self) -> None:
        self.patch(outward, "EACH_TIME", 0.1)
        port = self.hole()
        self.target("127.0.0.2", port)
        made = await self.answered(self.exit.dial("a.test", port, self.account), "127.0.0.1", "127.0.0.2")
        self.assertEqual(made.address, "127.0.0.2")
        self.assertEqual(list(self.account._open), ["127.0.0.2"])
        made.closed(Reason.DONE)

    async def test_nobody_answers(self) -> None:
        port = self.hole()
        clock = Clock()
        exit_ = self.make(clock=clock)
        way = Deferred.fromCoroutine(self.no_way(exit_.dial("127.0.0.1", port, self.account)))
        await self.sleep(0.05)
        self.assertEqual(len(self.account._open), 1)
        clock.advance(EXIT_TIME)
        self.assertIs(await way, Reason.TIMEOUT)
        self.assertEqual(self.account._open, {})

    async def test_a_name_that_nobody_answers_for(self) -> None:
        clock = Clock()
        way = Deferred.fromCoroutine(self.no_way(self.make(clock=clock).dial("a.test", 80, self.account)))
        await self.until(lambda: self.named.receivers)
        clock.advance(EXIT_TIME)
        self.assertIs(await way, Reason.TIMEOUT)
        self.named.answer("127.0.0.1")

    async def test_given_up(self) -> None:
        way = Deferred.fromCoroutine(self.exit.dial("a.test", 80, self.account))
        await self.until(lambda: self.named.receivers)
        way.cancel()
        await self.assertFailure(way, CancelledError)
        self.named.answer("127.0.0.1")
        target = self.target()
        way = Deferred.fromCoroutine(self.exit.dial("127.0.0.1", target.port, self.account))
        way.cancel()
        await self.assertFailure(way, CancelledError)
        self.assertEqual(self.account._open, {})

    async def test_limits(self) -> None:
        target = self.target()
        for _ in range(EXIT_SAME_DEST):
            self.account.connect("127.0.0.1")
        self.assertIs(await self.no_way(self.exit.dial("127.0.0.1", target.port, self.account)), Reason.LIMIT)
        other = self.exit.account()
        now = self.exit.seconds()
        self.exit.seconds = lambda: now
        with self.assertRaises(LimitExceeded):
            for _ in range(EXIT_CONNECTS_BURST + 1):
                other.begin(now)
        for host in ("127.0.0.1", "a.test"):
            self.assertIs(await self.no_way(self.exit.dial(host, target.port, other)), Reason.LIMIT)
            self.assertIs(await self.no_way(self.exit.associate(host, target.port, other)), Reason.LIMIT)
        self.assertEqual(self.named.asked, [])
        self.assertEqual(target.accept(), 0)


class CarryTests(ExitCase):
    async def pair(self) -> tuple[Any, socket.socket]:
        """A connection that is carried, and the target's end of it."""
        target = self.target()
        made = await self.exit.dial("127.0.0.1", target.port, self.account)
        sink: Sink = made
        made.start(self.stream)
        await self.until(target.accept)
        return sink, target.accepted[0]

    async def test_nothing_is_read_before_the_start(self) -> None:
        target = self.target()
        made = await self.exit.dial("127.0.0.1", target.port, self.account)
        await self.until(target.accept)
        target.accepted[0].sendall(b"early")
        await self.sleep(0.05)
        made.start(self.stream)
        await self.until(lambda: self.stream.got == b"early")
        made.closed(Reason.DONE)

    async def test_both_ways_and_both_halves(self) -> None:
        sink, far = await self.pair()
        sink.data([b"a", b"bc", b"", b"d"])
        await self.until(lambda: _read(far) == b"abcd")
        sink.ended()
        await self.until(lambda: _over(far))
        far.sendall(b"still here")
        await self.until(lambda: self.stream.got == b"still here")
        self.assertEqual(self.stream.told, [])
        far.close()
        await self.until(lambda: self.stream.told == ["end"])
        await self.until(lambda: not self.account._open)
        self.assertEqual(self.stream.told, ["end"])
        self.assertEqual(self.account.moved, 14)

    async def test_the_target_ends_first(self) -> None:
        sink, far = await self.pair()
        far.sendall(b"all")
        far.shutdown(socket.SHUT_WR)
        await self.until(lambda: self.stream.told == ["end"])
        self.assertEqual(self.stream.got, b"all")
        sink.hold()
        sink.go_on()
        await self.sleep(0.05)
        self.assertEqual(self.stream.told, ["end"])
        sink.data([b"more"])
        await self.until(lambda: _read(far) == b"more")
        sink.ended()
        sink.ended()
        await self.until(lambda: _over(far))
        await self.until(lambda: not self.account._open)
        self.assertEqual(self.stream.told, ["end"])

    async def test_the_end_waits_for_what_was_said(self) -> None:
        for how in ("ended", "closed"):
            sink, far = await self.pair()
            text = bytes(range(256)) * 2048  # more than the kernel and the transport take at once
            sink.data([text])
            if how == "ended":
                sink.ended()
            else:
                sink.closed(Reason.DONE)
            got = await self.threaded(lambda far=far: _all(far))  # type: ignore[misc]
            self.assertEqual(got, text, how)
            far.close()
            await self.until(lambda: not self.account._open)

    async def test_a_reset_is_one(self) -> None:
        _, far = await self.pair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        await self.until(lambda: self.stream.told == [Reason.RESET])

    async def test_a_stream_that_fails_resets(self) -> None:
        sink, far = await self.pair()
        sink.closed(Reason.RESET)
        await self.until(lambda: not self.account._open)
        self.assertRaises(ConnectionResetError, far.recv, 9)
        self.assertEqual(self.stream.told, [])
        for call in (lambda: sink.data([b"x"]), sink.ended, sink.hold, sink.go_on):
            call()

    async def test_a_target_that_does_not_read(self) -> None:
        sink, far = await self.pair()
        for _ in range(1000):
            sink.data([bytes(16384)])
            await self.sleep(0)
            if self.stream.told:
                break
        self.assertEqual(self.stream.told, ["pause"])
        got = await self.threaded(lambda: _some(far, 1 << 20))
        self.assertGreater(got, 0)
        await self.until(lambda: self.stream.told == ["pause", "resume"])
        for _ in range(WRITE_MOST // 16384 + 400):  # nobody heeds the pause
            sink.data([bytes(16384)])
        self.assertEqual(self.stream.told[-1], Reason.LIMIT)
        await self.until(lambda: not self.account._open)

    async def test_a_stream_that_does_not_take(self) -> None:
        sink, far = await self.pair()
        sink.hold()
        far.setblocking(True)
        far.settimeout(0.2)
        sent = 0
        with self.assertRaises(TimeoutError):
            while sent < 64 << 20:
                sent += await self.threaded(lambda: far.send(bytes(65536)))
        self.assertEqual(self.stream.got, b"")
        sink.go_on()
        await self.until(lambda: len(self.stream.got) == sent)
        sink.closed(Reason.DONE)

    async def test_bytes_of_a_circuit(self) -> None:
        sink, far = await self.pair()
        self.account.moved = CIRC_BYTES - 4
        sink.data([b"abcd"])
        await self.until(lambda: _read(far) == b"abcd")
        far.sendall(b"e")
        await self.until(lambda: self.stream.told == [Reason.LIMIT])
        self.assertEqual(self.stream.got, b"")

    async def test_one_who_does_not_take_the_last_words(self) -> None:
        target = self.target()
        clock = Clock()
        exit_ = self.make(clock=clock)
        made = await exit_.dial("127.0.0.1", target.port, self.account)
        made.start(self.stream)
        made.data([bytes(8 << 20)])
        made.closed(Reason.DONE)
        await self.sleep(0.05)
        self.assertEqual(len(self.account._open), 1)
        clock.advance(T_LINGER)
        await self.until(lambda: not self.account._open)
        self.assertEqual(clock.getDelayedCalls(), [])

    async def test_lost_before_the_start(self) -> None:
        target = self.target()
        made = await self.exit.dial("127.0.0.1", target.port, self.account)
        made.transport.abortConnection()
        await self.until(lambda: not self.account._open)
        made.start(self.stream)
        self.assertEqual(self.stream.told, [Reason.RESET])


class PeerCase(ExitCase):
    """Programs that others wrote."""

    async def there(self, port: int) -> Any:
        """Dial until somebody listens."""
        for _ in range(200):
            with contextlib.suppress(NoWay):
                return await self.exit.dial("127.0.0.1", port, self.exit.account())
            await self.sleep(0.05)
        self.fail("the server does not come up")


class WebTests(PeerCase):
    async def test_a_page(self) -> None:
        probe = self.target()
        probe.close()
        server = subprocess.Popen(
            [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(probe.port)],
            cwd=self.folder(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(server.wait, 10)
        self.addCleanup(server.terminate)

        made = await self.there(probe.port)
        made.start(self.stream)
        made.data([b"GET /big HTTP/1.0\r\n\r\n"])
        made.ended()
        await self.until(lambda: "end" in self.stream.told)
        head, _, body = bytes(self.stream.got).partition(b"\r\n\r\n")
        self.assertIn(b"200 OK", head)
        self.assertEqual(hashlib.sha256(body).hexdigest(), hashlib.sha256(self.big).hexdigest())

    def folder(self) -> str:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.big = bytes(range(251)) * 40000
        (folder / "big").write_bytes(self.big)
        return str(folder)


class NcTests(PeerCase):
    skip = missing(nc="netcat-openbsd")

    async def test_both_halves(self) -> None:
        probe = self.target()
        probe.close()
        server = subprocess.Popen(
            ["nc", "-l", "-N", "127.0.0.1", str(probe.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert server.stdin is not None
        assert server.stdout is not None
        self.addCleanup(server.stdout.close)
        made = await self.there(probe.port)
        made.start(self.stream)
        made.data([b"question"])
        made.ended()
        server.stdin.write(b"answer")
        server.stdin.close()
        await self.until(lambda: "end" in self.stream.told)
        self.assertEqual(self.stream.got, b"answer")
        self.assertEqual(await self.threaded(server.stdout.read), b"question")
        self.assertEqual(await self.threaded(lambda: server.wait(10)), 0)


def _read(far: socket.socket) -> bytes:
    try:
        return far.recv(65536)
    except BlockingIOError:
        return b"nothing yet"


def _over(far: socket.socket) -> bool:
    try:
        return far.recv(65536) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def _all(far: socket.socket) -> bytes:
    far.setblocking(True)
    far.settimeout(10)
    got = bytearray()
    while data := far.recv(1 << 16):
        got += data
    return bytes(got)


def _some(far: socket.socket, least: int) -> int:
    far.setblocking(True)
    far.settimeout(0.5)
    got = 0
    try:
        while True:
            got += len(far.recv(1 << 16))
    except TimeoutError:
        return got
