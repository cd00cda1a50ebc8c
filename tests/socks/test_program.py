"""A program's connection by itself: what it hears, and how it ends."""

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from layer8.net.stream import CLOSE_TIME
from layer8.relay.carried import WRITE_MOST
from layer8.relay.client import Opened, Reason
from layer8.relay.wire import Address
from layer8.socks.program import CODES, LEAVE_TIME, Program
from layer8.socks.wire import Code, reply
from tests.relay.exit_peers import Stream

OPENED = Opened(Address("192.0.2.1"), 30)


class Transport(StringTransport):
    """A connection whose halves end by themselves; it writes down in `told` how."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.told: list[str] = []

    def loseWriteConnection(self) -> None:
        self.told.append("shut")

    def loseConnection(self) -> None:
        self.told.append("close")

    def abortConnection(self) -> None:
        self.told.append("abort")

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass


class ProgramCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.stream = Stream()
        self.gone: list[Program] = []

    def begin(self, refuse: Reason | None = None, **more: Any) -> Program:
        def way(program: Program) -> Any:
            if refuse is not None:
                program.closed(refuse)
            return self.stream

        program = Program(self.clock, way, self.gone.append, **more)
        self.transport = Transport()
        program.makeConnection(self.transport)  # type: ignore[no-untyped-call]
        return program

    def lose(self, program: Program) -> None:
        program.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((self.gone, self.clock.getDelayedCalls()), ([program], []))


class AnswerTests(ProgramCase):
    def test_reasons_one_by_one(self) -> None:
        for reason in Reason:
            for at_once in (True, False):
                self.setUp()
                program = self.begin(reason if at_once else None)
                if not at_once:
                    program.closed(reason)
                self.assertEqual(self.transport.value(), reply(CODES.get(reason, Code.FAILED)), reason)
                self.assertEqual((self.transport.told, program.state), (["shut"], "closing"))
                self.lose(program)

    def test_codes(self) -> None:
        self.assertEqual(
            {reason.name: CODES.get(reason, Code.FAILED) for reason in Reason},
            {
                "DONE": 1,
                "POLICY": 2,
                "RESOLVE": 4,
                "REFUSED": 5,
                "UNREACHABLE": 3,
                "TIMEOUT": 6,
                "RESET": 1,
                "LIMIT": 1,
                "NO_PORT": 5,
                "PROTOCOL": 1,
                "INTERNAL": 1,
            },
        )

    def test_answered_once_and_early_words_first(self) -> None:
        program = self.begin(early=b"early")
        program.dataReceived(b" words")
        self.assertEqual((self.stream.pieces, program.state), ([b"early", b" words"], "connecting"))
        program.opened(OPENED)
        program.data([b"a", b"b"])
        self.assertEqual((self.transport.value(), program.state), (reply(0) + b"ab", "open"))
        self.assertEqual((program.sent, program.received), (11, 2))
        program.refused(Code.NO_DESCRIPTOR)
        self.assertEqual((self.transport.value(), self.transport.told), (reply(0) + b"ab", ["abort"]))

    def test_a_tunnel_says_nothing_of_its_own(self) -> None:
        program = self.begin(answers=False)
        program.opened(OPENED)
        program.data([b"all"])
        self.assertEqual(self.transport.value(), b"all")
        program = self.begin(Reason.REFUSED, answers=False)
        self.assertEqual((self.transport.value(), self.transport.told), (b"", ["abort"]))


class EndTests(ProgramCase):
    def opened(self) -> Program:
        program = self.begin()
        program.opened(OPENED)
        self.transport.clear()
        return program

    def test_the_stream_first(self) -> None:
        program = self.opened()
        program.ended()
        program.writeConnectionLost()
        self.assertEqual((self.transport.told, program.state), (["shut"], "open"))
        program.dataReceived(b"late")
        program.readConnectionLost()
        self.assertEqual((self.stream.got, self.stream.told, self.transport.told[-1]), (b"late", ["end"], "close"))
        self.lose(program)

    def test_the_program_first(self) -> None:
        program = self.opened()
        program.readConnectionLost()
        program.data([b"late"])
        program.ended()
        program.closed(Reason.DONE)
        self.assertEqual((self.transport.value(), self.stream.told), (b"late", ["end"]))
        self.assertEqual(self.transport.told, ["shut", "close"])
        self.lose(program)

        self.setUp()
        program = self.opened()
        program.readConnectionLost()
        program.closed(Reason.DONE)
        self.assertEqual(self.transport.told, ["close"])
        self.lose(program)

    def test_a_slow_program_has_time_and_then_a_moment(self) -> None:
        program = self.opened()
        program.data([b"x" * 100])
        program.closed(Reason.DONE)
        program.dataReceived(b"nobody hears this")
        self.clock.advance(LEAVE_TIME - 1)
        self.assertEqual((self.transport.told, self.stream.got), (["shut"], b""))
        program.writeConnectionLost()
        self.clock.advance(CLOSE_TIME - 1)
        self.assertEqual(self.transport.told, ["shut"])
        self.clock.advance(1)
        self.assertEqual(self.transport.told, ["shut", "abort"])
        self.lose(program)

    def test_one_that_never_reads_is_left(self) -> None:
        program = self.opened()
        program.closed(Reason.DONE)
        self.clock.advance(LEAVE_TIME)
        self.assertEqual(self.transport.told, ["shut", "abort"])
        self.lose(program)

    def test_broken_streams_break_the_connection(self) -> None:
        for reason in set(Reason) - {Reason.DONE}:
            self.setUp()
            program = self.opened()
            program.closed(reason)
            self.assertEqual(self.transport.told, ["abort"])
            program.data([b"late"])
            program.ended()
            program.hold()
            program.go_on()
            self.assertEqual(self.transport.value(), b"")
            self.lose(program)
            self.assertEqual(self.stream.told, [])

    def test_broken_connections_reset_the_stream(self) -> None:
        program = self.opened()
        self.lose(program)
        self.assertEqual(self.stream.told, [Reason.RESET])
        program.closed(Reason.RESET)
        self.assertEqual(self.transport.told, [])


class PressureTests(ProgramCase):
    def test_both_ways(self) -> None:
        program = self.begin()
        program.opened(OPENED)
        program.hold()
        self.assertEqual(self.transport.producerState, "paused")
        program.go_on()
        self.assertEqual(self.transport.producerState, "producing")
        program.pauseProducing()
        program.data([b"x" * 1000])
        program.resumeProducing()
        self.assertEqual(self.stream.told, ["pause", "resume"])
        program.readConnectionLost()
        program.hold()
        program.go_on()
        self.assertEqual(self.transport.producerState, "paused")

    def test_a_far_end_that_does_not_wait(self) -> None:
        program = self.begin()
        program.opened(OPENED)
        program.pauseProducing()
        program.data([b"x" * WRITE_MOST])
        self.assertEqual(self.transport.told, [])
        program.data([b"x"])
        self.assertEqual((self.transport.told, self.stream.told), (["abort"], ["pause", Reason.LIMIT]))
