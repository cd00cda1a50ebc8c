"""Streams between two ends of a circuit, with nothing else between them."""

from __future__ import annotations

import hashlib
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.relay.limits import (
    ACK_EVERY,
    BURST,
    CIRC_WINDOW,
    LINGERING,
    STALLED,
    STREAM_WINDOW,
    STREAMS_PER_CIRC,
    T_STREAM,
)
from layer8.relay.stream import State
from layer8.relay.wire import (
    DATA,
    DATA_TAGGED,
    MESSAGE,
    TAG,
    Address,
    Command,
    Destroy,
    Extend,
    Open,
    Opened,
    Proto,
    Reason,
    disconnect,
    message,
    read_head,
)
from tests.relay.slots import Ends, PlainEnd


def heads(end: PlainEnd) -> list[tuple[int, int, int]]:
    """Give command, stream and length of what an end has sent and nobody has carried yet."""
    return [read_head(body)[:3] for _, body in end.slot.sent]


def data(number: int, size: int = DATA_TAGGED) -> bytes:
    return message(Command.DATA, number, bytes(size))


class TransitionTests(SynchronousTestCase):
    """connecting -> open -> half local | half remote -> lingering -> closed."""

    def setUp(self) -> None:
        self.ends = Ends()

    def test_connecting_to_open(self) -> None:
        near, heard = self.ends.open()
        self.assertIs(near.state, State.CONNECTING)
        self.ends.settle()
        self.assertIs(near.state, State.OPEN)
        self.assertIs(self.ends.streams[0].state, State.OPEN)
        self.assertEqual(heard.heard, [("opened", self.ends.opened)])
        self.assertEqual(self.ends.streams[0].target, Open(Proto.TCP, "host.test", 80))

    def test_half_local_and_half_remote(self) -> None:
        near, heard, far, told = self.ends.pair()
        near.write(b"the last")
        near.end()
        self.ends.settle()
        self.assertEqual((near.state, far.state), (State.HALF_LOCAL, State.HALF_REMOTE))
        self.assertEqual((told.all, told.words), (b"the last", ["ended"]))
        far.write(b"answer")
        self.ends.settle()
        self.assertEqual(heard.all, b"answer")
        far.end()
        self.ends.settle()
        self.assertEqual((near.state, far.state), (State.CLOSED, State.CLOSED))
        self.assertEqual(heard.heard[-2:], [("ended", None), ("closed", Reason.DONE)])
        self.assertEqual(told.heard[-1], ("closed", Reason.DONE))

    def test_both_ends_at_once(self) -> None:
        near, heard, far, told = self.ends.pair()
        near.end()
        far.end()
        self.ends.settle()
        self.assertEqual((near.state, far.state), (State.CLOSED, State.CLOSED))
        self.assertEqual((heard.words[-1], told.words[-1]), ("closed", "closed"))

    def test_close_lets_what_was_written_leave(self) -> None:
        near, heard, _, told = self.ends.pair()
        text = bytes(3 * STREAM_WINDOW * DATA)
        near.write(text)
        near.close()
        self.ends.carry()
        self.assertIs(near.state, State.LINGERING)
        self.ends.settle()
        self.assertIs(near.state, State.CLOSED)
        self.assertEqual(len(told.all), len(text))
        self.assertEqual(told.heard[-1], ("closed", Reason.DONE))
        self.assertNotIn("closed", heard.words, "a sink that closes hears no more")

    def test_data_for_somebody_who_lingers(self) -> None:
        """It is dropped, and given no credit."""
        near, _, far, told = self.ends.pair()
        near.write(bytes(2 * STREAM_WINDOW * DATA))
        near.close()
        far.pause()
        far.write(bytes(STREAM_WINDOW * DATA))
        self.ends.settle()
        self.assertEqual((near.state, far.credit), (State.LINGERING, 0))
        far.resume()
        self.ends.settle()
        self.assertEqual((near.state, len(told.all)), (State.CLOSED, 2 * STREAM_WINDOW * DATA))

    def test_any_other_reason_drops_what_waits(self) -> None:
        near, _, _, told = self.ends.pair()
        near.write(bytes(STREAM_WINDOW * DATA))
        near.close(Reason.RESET)
        self.ends.settle()
        self.assertEqual((told.all, told.heard), (b"", [("closed", Reason.RESET)]))

    def test_close_of_both_at_once(self) -> None:
        near, _, far, _ = self.ends.pair()
        near.close()
        far.close(Reason.TIMEOUT)
        self.ends.settle()
        self.assertEqual((near.state, far.state), (State.CLOSED, State.CLOSED))

    def test_refused(self) -> None:
        self.ends.accept = False
        near, heard = self.ends.open()
        near.write(b"early")
        self.ends.settle()
        self.ends.streams[0].close(Reason.POLICY)
        self.ends.settle()
        self.assertEqual(heard.heard, [("closed", Reason.POLICY)])
        self.assertEqual((self.ends.client.streams.live, self.ends.exit.streams.live), ({}, {}))

    def test_early_data_waits_for_the_yes(self) -> None:
        self.ends.accept = False
        near, heard = self.ends.open()
        near.write(b"early ")
        near.write(b"words")
        near.end()
        self.ends.settle()
        far, told = self.ends.streams[0], self.ends.sinks[0]
        self.assertEqual((told.all, told.heard, self.ends.exit.streams.held), (b"", [], 11))
        far.accept(self.ends.opened)
        self.assertEqual((told.all, told.words), (b"early words", ["ended"]))
        self.ends.settle()
        self.assertEqual(heard.words, ["opened"])

    def test_the_client_goes_before_the_yes(self) -> None:
        self.ends.accept = False
        near, _ = self.ends.open()
        self.ends.settle()
        near.close()
        self.ends.settle()
        self.assertEqual(self.ends.sinks[0].heard, [("closed", Reason.DONE)])
        self.ends.streams[0].accept(self.ends.opened)
        self.ends.settle()
        self.assertEqual(self.ends.client.broken, "")

    def test_no_answer(self) -> None:
        self.ends.accept = False
        near, heard = self.ends.open()
        self.ends.settle()
        self.ends.clock.pump([5.0] * int(T_STREAM // 5 + 1))
        self.assertEqual(heard.heard, [("closed", Reason.TIMEOUT)])
        self.ends.settle()
        self.assertIs(near.state, State.CLOSED)
        self.assertEqual(self.ends.sinks[0].heard, [("closed", Reason.TIMEOUT)])

    def test_a_late_answer_is_passed_by(self) -> None:
        self.ends.accept = False
        near, _ = self.ends.open()
        self.ends.settle()
        near.close(Reason.RESET)
        self.ends.streams[0].accept(self.ends.opened)
        self.ends.settle()
        self.assertEqual((self.ends.client.broken, self.ends.exit.broken), ("", ""))

    def test_last_bytes_that_nobody_takes(self) -> None:
        near, _, far, _ = self.ends.pair()
        far.pause()
        near.write(bytes(2 * STREAM_WINDOW * DATA))
        near.close()
        self.ends.settle()
        self.assertIs(near.state, State.LINGERING)
        self.ends.clock.pump([5.0] * 8)
        self.ends.settle()
        self.assertIs(near.state, State.CLOSED)
        self.assertEqual(self.ends.sinks[0].heard[-1], ("closed", Reason.RESET))

    def test_nothing_is_left_of_closed_streams(self) -> None:
        for _ in range(3):
            near, _, _, _ = self.ends.pair()
            near.close()
            self.ends.settle()
        self.ends.clock.pump([5.0] * 8)
        for end in (self.ends.client, self.ends.exit):
            self.assertEqual((end.streams.live, end.streams._gone, end.streams._waiting), ({}, {}, {}))
        self.assertEqual(self.ends.clock.getDelayedCalls(), [])

    def test_the_circuit_is_lost(self) -> None:
        _, heard, _, _ = self.ends.pair()
        _, other = self.ends.open()
        self.ends.client.streams.lost(Destroy.LINK_LOST)
        self.assertEqual((heard.heard[-1], other.heard[-1]), (("closed", Reason.RESET), ("closed", Reason.RESET)))
        self.assertRaises(LocalProtocolError, self.ends.open)

    def test_words_that_cannot_be(self) -> None:
        self.ends.accept = False
        near, _ = self.ends.open()
        self.ends.settle()
        far = self.ends.streams[0]
        self.assertRaises(LocalProtocolError, far.write, b"before the yes")
        self.assertRaises(LocalProtocolError, near.accept, self.ends.opened)
        far.accept(self.ends.opened)
        self.assertRaises(LocalProtocolError, far.accept, self.ends.opened)
        near.end()
        self.assertRaises(LocalProtocolError, near.write, b"behind the end")
        near.end()
        near.close()
        near.close(Reason.RESET)
        near.write(b"nobody hears this")
        self.ends.settle()
        self.assertEqual(self.ends.sinks[0].all, b"")


class CellTests(SynchronousTestCase):
    def test_a_turn_is_one_run(self) -> None:
        ends = Ends()
        near, _ = ends.open()
        other, _ = ends.open()
        for _ in range(10):
            near.write(b"abc")
            other.write(b"de")
        self.assertEqual(ends.client.slot.sent, [])
        ends.clock.advance(0)
        self.assertEqual(
            heads(ends.client),
            [(Command.CONNECT, 1, 14), (Command.CONNECT, 2, 14), (Command.DATA, 1, 30), (Command.DATA, 2, 20)],
        )

    def test_every_32nd_cell_has_random_bytes(self) -> None:
        ends = Ends()
        near, _ = ends.open()
        near.write(b"\0" * 100 * DATA)
        ends.clock.advance(0)
        cells = [body for _, body in ends.client.slot.sent[1:101]]
        for place, body in enumerate(cells, 1):
            size = read_head(body)[2]
            if place % ACK_EVERY:
                self.assertEqual((size, body[5:]), (DATA, bytes(DATA)))
            else:
                self.assertEqual((size, body[5 : 5 + size]), (DATA_TAGGED, bytes(DATA_TAGGED)))
                self.assertNotEqual(body[5 + size :], bytes(TAG))
        self.assertNotEqual(cells[31][-TAG:], cells[63][-TAG:])

    def test_a_small_32nd_cell(self) -> None:
        ends = Ends()
        near, _, _, told = ends.pair()
        for number in range(ACK_EVERY):
            near.write(bytes((number,)))
            ends.clock.advance(0)
        last = ends.client.slot.sent[-1][1]
        self.assertEqual(read_head(last)[2], 1)
        self.assertNotEqual(last[6 : 6 + TAG], bytes(TAG))
        ends.settle()
        self.assertEqual(told.all, bytes(range(ACK_EVERY)))

    def test_sizes_of_writes_do_not_matter(self) -> None:
        sizes = [0, 1, DATA_TAGGED, DATA - 1, DATA, DATA + 1, 65_536, 31 * DATA, 32 * DATA, 64 * DATA]
        text = Random(4).randbytes(sum(sizes))
        for turns in (False, True):
            ends = Ends()
            near, _, _, told = ends.pair()
            at = 0
            for size in sizes:
                near.write(text[at : at + size])
                at += size
                if turns:
                    ends.settle()
            near.end()
            ends.settle()
            self.assertEqual(told.all, text)
            self.assertEqual(told.words, ["ended"])


class WindowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ends = Ends()

    def test_a_stream_s_window(self) -> None:
        near, heard, far, told = self.ends.pair()
        far.pause()
        near.write(bytes((STREAM_WINDOW + 10) * DATA))
        self.ends.settle()
        self.assertEqual(len(told.pieces), STREAM_WINDOW)
        self.assertEqual(heard.words[1:], ["hold"])
        other, _ = self.ends.open()
        other.write(b"is not held up")
        self.ends.settle()
        self.assertEqual(self.ends.sinks[1].all, b"is not held up")
        far.resume()
        self.ends.settle()
        self.assertEqual(len(told.all), (STREAM_WINDOW + 10) * DATA)
        self.assertEqual(heard.words[1:], ["hold", "go_on"])

    def test_a_circuit_s_window(self) -> None:
        streams = [self.ends.open()[0] for _ in range(3)]
        for near in streams:
            near.write(bytes((STREAM_WINDOW - 1) * DATA))
        self.ends.clock.pump([0.0] * 20)
        sent = [command for command, _, _ in heads(self.ends.client)].count(Command.DATA)
        self.assertEqual(sent, CIRC_WINDOW)
        self.ends.settle()
        self.assertEqual([len(told.all) for told in self.ends.sinks], [(STREAM_WINDOW - 1) * DATA] * 3)

    def test_out_of_credit(self) -> None:
        """Who has run out waits for a long run."""
        near, _, far, told = self.ends.pair()
        far.pause()
        near.write(bytes((STREAM_WINDOW + 100) * DATA))
        self.ends.settle()
        far.resume()
        self.assertEqual(near.credit, 0)
        self.ends.carry(1)
        self.ends.clock.advance(0)
        self.assertEqual((near.credit, self.ends.client.slot.sent), (ACK_EVERY, []))
        self.ends.carry(1)
        self.ends.clock.advance(0)
        self.assertEqual((near.credit, len(self.ends.client.slot.sent)), (0, 2 * ACK_EVERY))
        self.ends.settle()
        self.assertEqual(len(told.all), (STREAM_WINDOW + 100) * DATA)

    def test_out_of_a_circuits_credit(self) -> None:
        """The same where it is the circuit that has run out."""
        streams = [self.ends.open()[0] for _ in range(3)]
        self.ends.settle()
        for near in streams:
            near.write(bytes(STREAM_WINDOW * DATA))
        while self.ends.clock_busy():
            self.ends.clock.advance(0)
        self.assertEqual(self.ends.client.streams._window, 0)
        gone, self.ends.client.slot.sent = self.ends.client.slot.sent, []
        self.ends.exit.take([body for _, body in gone])
        self.ends.clock.advance(0)
        acks = [body for _, body in self.ends.exit.slot.sent if read_head(body)[:2] == (Command.ACK, 0)]
        self.assertEqual(len(acks), CIRC_WINDOW // ACK_EVERY)
        self.ends.client.take(acks[:1])
        self.ends.clock.advance(0)
        self.assertEqual(self.ends.client.slot.sent, [])
        self.ends.client.take(acks[1:2])
        self.ends.clock.advance(0)
        self.assertEqual(len(self.ends.client.slot.sent), BURST)

    def test_a_turn_has_a_burst(self) -> None:
        """After so many cells it is asked again whether the link is full."""
        near, _, _, told = self.ends.pair()
        near.write(bytes(3 * BURST * DATA))
        sizes: list[int] = []
        while self.ends.clock_busy():
            self.ends.client.streams.flush()
            sizes.append(len(self.ends.client.slot.sent))
            if len(sizes) == 2:
                self.ends.client.slot.full = True
                break
        self.assertEqual(sizes, [BURST, 2 * BURST])
        self.ends.clock.advance(0)
        self.assertEqual(len(self.ends.client.slot.sent), 2 * BURST)
        self.ends.client.slot.full = False
        self.ends.client.streams.room()
        self.ends.settle()
        self.assertEqual(len(told.all), 3 * BURST * DATA)

    def test_streams_take_turns(self) -> None:
        streams = [self.ends.open()[0] for _ in range(4)]
        self.ends.settle()
        for near in streams:
            near.write(bytes(100 * DATA))
        self.ends.clock.advance(0)
        first = [number for _, number, _ in heads(self.ends.client)][:64]
        self.assertEqual({number: first.count(number) for number in first}, dict.fromkeys((1, 2, 3, 4), 16))

    def test_a_full_link(self) -> None:
        near, heard, _, told = self.ends.pair()
        self.ends.client.slot.full = True
        near.write(b"waits")
        near.write(b" here")
        self.ends.clock.advance(0)
        self.assertEqual((self.ends.client.slot.sent, heard.words[1:]), ([], ["hold"]))
        self.ends.client.slot.full = False
        self.ends.client.streams.room()
        self.ends.settle()
        self.assertEqual((told.all, heard.words[1:]), (b"waits here", ["hold", "go_on"]))

    def test_go_on_may_write(self) -> None:
        near, heard, _, told = self.ends.pair()
        left = [bytes(STREAM_WINDOW * DATA)] * 4

        def more() -> None:
            if left:
                near.write(left.pop())

        heard.on_go = more
        near.write(bytes(STREAM_WINDOW * DATA + 1))
        self.ends.settle()
        self.assertEqual(len(told.all), 5 * STREAM_WINDOW * DATA + 1)

    def test_a_sink_that_closes_while_it_is_told(self) -> None:
        near, heard, far, told = self.ends.pair()
        told.on_data = far.close
        near.write(bytes(100 * DATA))
        self.ends.settle()
        self.assertEqual(heard.heard[-1], ("closed", Reason.DONE))
        self.assertEqual((self.ends.client.broken, self.ends.exit.broken), ("", ""))

    def test_stalled_sinks_of_a_whole_circuit(self) -> None:
        """Some slow readers do not stop the others; very many do, so that memory has an end."""
        count = STALLED // STREAM_WINDOW + 4
        for _ in range(count):
            near, _, far, _ = self.ends.pair()
            far.pause()
            near.write(bytes(2 * STREAM_WINDOW * DATA))
        self.ends.settle()
        kept = sum(len(told.pieces) for told in self.ends.sinks)
        self.assertGreaterEqual(kept, STALLED)
        self.assertLess(kept, STALLED + CIRC_WINDOW + ACK_EVERY)
        for far in self.ends.streams:
            far.resume()
        self.ends.settle()
        self.assertEqual(sum(len(told.all) for told in self.ends.sinks), count * 2 * STREAM_WINDOW * DATA)

    def test_stalled_sinks_that_go(self) -> None:
        """What a closed stream kept stalls nobody any more."""
        for _ in range(STALLED // STREAM_WINDOW + 4):
            near, _, far, _ = self.ends.pair()
            far.pause()
            near.write(bytes(STREAM_WINDOW * DATA))
        self.ends.settle()
        for far in self.ends.streams:
            far.close(Reason.RESET)
        self.ends.settle()
        near, _, _, told = self.ends.pair()
        near.write(bytes(STREAM_WINDOW * DATA))
        self.ends.settle()
        self.assertEqual(len(told.all), STREAM_WINDOW * DATA)
        self.assertEqual((self.ends.client.broken, self.ends.exit.broken), ("", ""))

    def test_four_mebibytes_each_way(self) -> None:
        near, heard, far, told = self.ends.pair()
        there, back = Random(1).randbytes(4 << 20), Random(2).randbytes(4 << 20)
        near.write(there)
        far.write(back)
        near.end()
        far.end()
        self.ends.settle(50)
        for got, sent in ((told.all, there), (heard.all, back)):
            self.assertEqual(hashlib.sha256(got).digest(), hashlib.sha256(sent).digest())


class DatagramTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ends = Ends()
        self.near, self.heard = self.ends.open(Proto.UDP)
        self.ends.settle()
        self.told = self.ends.sinks[0]

    def test_one_write_is_one_piece(self) -> None:
        for text in (b"one", b"", b"three", bytes(DATA_TAGGED)):
            self.near.write(text)
        self.ends.settle()
        self.assertEqual(self.told.pieces, [b"one", b"", b"three", bytes(DATA_TAGGED)])

    def test_longer_than_a_cell(self) -> None:
        self.near.write(bytes(DATA_TAGGED + 1))
        self.near.write(b"next")
        self.ends.settle()
        self.assertEqual(self.told.pieces, [b"next"])

    def test_no_credit(self) -> None:
        self.ends.streams[0].pause()
        for number in range(STREAM_WINDOW + 50):
            self.near.write(number.to_bytes(2, "big"))
            self.ends.settle()
        self.assertEqual(len(self.told.pieces), STREAM_WINDOW)
        self.ends.streams[0].resume()
        self.ends.settle()
        self.near.write(b"again")
        self.ends.settle()
        self.assertEqual(self.told.pieces[-1], b"again")
        self.assertEqual((self.ends.client.broken, self.ends.exit.broken), ("", ""))

    def test_a_full_link(self) -> None:
        self.ends.client.slot.full = True
        self.near.write(b"lost")
        self.ends.client.slot.full = False
        self.near.write(b"sent")
        self.ends.settle()
        self.assertEqual(self.told.pieces, [b"sent"])


class BadInputTests(SynchronousTestCase):
    """Rows of network.md section 13 that are about streams."""

    def setUp(self) -> None:
        self.ends = Ends()
        self.near, self.heard, self.far, self.told = self.ends.pair()

    def dies(self, end: PlainEnd, *texts: bytes) -> None:
        end.take(list(texts))
        self.assertNotEqual(end.broken, "")

    def answers(self, end: PlainEnd, *texts: bytes) -> list[tuple[int, int, bytes]]:
        """Give what an end answers to messages, which it survives."""
        end.take(list(texts))
        self.assertEqual(end.broken, "")
        self.ends.clock.advance(0)
        said = [body for _, body in end.slot.sent]
        end.slot.sent.clear()
        return [(text[0], read_head(text)[1], text[5 : 5 + read_head(text)[2]]) for text in said]

    def test_an_acknowledgement_with_a_wrong_tag(self) -> None:
        self.near.write(bytes(ACK_EVERY * DATA))
        self.ends.clock.advance(0)
        self.dies(self.ends.client, message(Command.ACK, 0, bytes(TAG)))
        self.assertEqual(self.heard.heard[-1], ("closed", Reason.PROTOCOL))

    def test_an_early_acknowledgement(self) -> None:
        self.near.write(bytes((ACK_EVERY - 1) * DATA))
        self.ends.clock.advance(0)
        self.dies(self.ends.client, message(Command.ACK, 0, (33).to_bytes(TAG, "big")))

    def test_an_acknowledgement_twice(self) -> None:
        self.near.write(bytes(ACK_EVERY * DATA))
        self.ends.clock.advance(0)
        ack = message(Command.ACK, 0, (33).to_bytes(TAG, "big"))
        self.ends.client.take([ack])
        self.assertEqual(self.ends.client.broken, "")
        self.dies(self.ends.client, ack)

    def test_early_credit_of_a_stream(self) -> None:
        self.dies(self.ends.client, message(Command.ACK, 1))

    def test_data_beyond_the_stream_s_window(self) -> None:
        self.far.pause()
        self.ends.exit.take([data(1)] * STREAM_WINDOW)
        self.assertEqual(self.ends.exit.broken, "")
        self.dies(self.ends.exit, data(1))

    def test_data_beyond_the_circuit_s_window(self) -> None:
        self.dies(self.ends.exit, *[data(number % 8 + 1) for number in range(CIRC_WINDOW + 1)])

    def test_a_32nd_cell_without_random_bytes(self) -> None:
        self.dies(self.ends.exit, *[data(1, DATA)] * ACK_EVERY)

    def test_a_length_beyond_the_cell(self) -> None:
        self.dies(self.ends.exit, bytes((Command.DATA,)) + b"\0\1" + (DATA + 1).to_bytes(2, "big") + bytes(DATA))

    def test_fragments_of_data(self) -> None:
        self.dies(self.ends.exit, message(Command.DATA, 1, b"x", more=True))

    def test_fragments_of_what_has_none(self) -> None:
        self.dies(self.ends.exit, message(Command.DISCONNECT, 1, disconnect(1), more=True))

    def test_data_without_a_stream(self) -> None:
        self.dies(self.ends.exit, data(0))

    def test_messages_that_end_too_early(self) -> None:
        for command, text in ((Command.CONNECT, b"\1"), (Command.DISCONNECT, b"\1")):
            with self.subTest(command=command):
                ends = Ends()
                ends.pair()
                ends.exit.take([message(command, 1 if command == Command.DISCONNECT else 2, text)])
                self.assertNotEqual(ends.exit.broken, "")

    def test_an_extension_on_a_stream(self) -> None:
        self.dies(self.ends.exit, message(Command.CONNECT, 5, Extend(bytes(32), ("tcp:a:1",), 1, b"x").encode()))

    def test_a_stream_that_nobody_may_open(self) -> None:
        self.dies(self.ends.client, message(Command.CONNECT, 5, Open(Proto.TCP, "a", 1).encode()))

    def test_data_before_the_answer(self) -> None:
        self.ends.open()
        self.dies(self.ends.client, data(2))

    def test_an_answer_twice(self) -> None:
        self.dies(self.ends.client, message(Command.CONNECT_OK, 1, Opened(Address(""), 0).encode()))

    def test_an_answer_to_who_was_asked(self) -> None:
        self.dies(self.ends.exit, message(Command.CONNECT_OK, 1, Opened(Address(""), 0).encode()))

    def test_the_same_end_twice(self) -> None:
        half = message(Command.DISCONNECT, 1, disconnect(Reason.DONE, half=True))
        self.dies(self.ends.exit, half, half)

    def test_data_behind_the_end(self) -> None:
        half = message(Command.DISCONNECT, 1, disconnect(Reason.DONE, half=True))
        refusal = [(Command.DISCONNECT, 1, disconnect(Reason.PROTOCOL))]
        self.assertEqual(self.answers(self.ends.exit, half, data(1), data(1)), refusal)
        self.assertEqual(self.told.heard[-1], ("closed", Reason.PROTOCOL))

    def test_data_on_a_closed_stream(self) -> None:
        self.far.close()
        self.ends.settle()
        self.assertEqual(self.answers(self.ends.exit, data(1)), [])
        self.ends.clock.pump([5.0] * 8)
        refusal = [(Command.DISCONNECT, 1, disconnect(Reason.PROTOCOL))]
        self.assertEqual(self.answers(self.ends.exit, data(1), data(1)), refusal)

    def test_a_number_that_is_used_again(self) -> None:
        again = message(Command.CONNECT, 1, Open(Proto.TCP, "other", 1).encode())
        refusal = [(Command.DISCONNECT, 1, disconnect(Reason.PROTOCOL))]
        self.assertEqual(self.answers(self.ends.exit, again), refusal)
        self.assertEqual(self.told.heard[-1], ("closed", Reason.PROTOCOL))
        self.assertEqual(self.answers(self.ends.exit, again), [], "during linger nothing is said")
        self.assertEqual(len(self.ends.streams), 1)
        self.ends.clock.pump([5.0] * 8)
        self.assertEqual([command for command, _, _ in self.answers(self.ends.exit, again)], [Command.CONNECT_OK])

    def test_words_about_streams_that_never_were(self) -> None:
        for text in (
            message(Command.ACK, 77),
            message(Command.DISCONNECT, 77, disconnect(1)),
            message(Command.CONNECT_OK, 77, Opened(Address(""), 0).encode()),
            message(Command.DROP, 77),
            message(Command.DROP, 0),
        ):
            self.assertEqual(self.answers(self.ends.client, text), [])

    def test_too_many_streams(self) -> None:
        opens = [message(Command.CONNECT, n, Open(Proto.TCP, "a", 1).encode()) for n in range(2, STREAMS_PER_CIRC + 2)]
        said = self.answers(self.ends.exit, *opens)
        self.assertEqual(said[-1], (Command.DISCONNECT, STREAMS_PER_CIRC + 1, disconnect(Reason.LIMIT)))
        self.assertEqual(len(self.ends.exit.streams.live), STREAMS_PER_CIRC)
        for _ in range(STREAMS_PER_CIRC - 1):
            self.ends.open()
        self.assertRaises(LocalProtocolError, self.ends.open)

    def test_numbers_of_closed_streams_are_remembered_up_to_a_limit(self) -> None:
        for start in range(1000, 1000 + 2 * LINGERING, 100):
            self.answers(self.ends.exit, *[message(Command.DATA, number) for number in range(start, start + 100)])
        self.assertEqual(len(self.ends.exit.streams._gone), LINGERING)

    def test_what_is_no_stream_s_goes_to_the_circuit(self) -> None:
        self.ends.exit.take([message(Command.MESSAGE, 9, b"text"), message(Command.CONNECT, 0, b"x"), message(0, 3)])
        self.assertEqual(
            self.ends.exit.others,
            [(7, 9, b"text", False, False), (1, 0, b"x", False, False), (0, 3, b"", False, False)],
        )


MESSAGES = st.builds(
    lambda head, text: (head + text + bytes(MESSAGE))[:MESSAGE],
    st.builds(
        lambda command, stream, size: bytes((command,)) + stream.to_bytes(2, "big") + size.to_bytes(2, "big"),
        st.integers(0, 8),
        st.integers(0, 4),
        st.one_of(st.integers(0, 80), st.integers(0, 65_535)),
    ),
    st.binary(max_size=80),
)


class NoiseTests(SynchronousTestCase):
    @given(st.lists(MESSAGES, max_size=40), st.booleans())
    def test_any_messages(self, texts: list[bytes], at_client: bool) -> None:
        """A typed error that costs the circuit, or nothing; both ends come to rest."""
        ends = Ends()
        near = ends.pair()[0]
        near.write(bytes(40 * DATA))
        (ends.client if at_client else ends.exit).take(texts)
        ends.settle()
        for end in (ends.client, ends.exit):
            self.assertLessEqual(len(end.streams.live), 5)
        ends.clock.pump([5.0] * 20)
        ends.settle()

    @given(
        st.lists(st.tuples(st.sampled_from("wrectpgWRECTPG"), st.integers(0, 70_000)), max_size=30), st.integers(1, 99)
    )
    def test_any_order_of_words(self, words: list[tuple[str, int]], most: int) -> None:
        """Whatever the two sinks do, what arrives is a beginning of what was said, and all of it if nobody reset."""
        ends = Ends()
        near, heard, far, told = ends.pair()
        said = {near: bytearray(), far: bytearray()}
        reset = False
        for word, size in words:
            stream = near if word.islower() else far
            match word.lower():
                case "w" if stream.state in (State.OPEN, State.HALF_REMOTE):
                    text = Random(size).randbytes(size)
                    said[stream] += text
                    stream.write(text)
                case "r":
                    stream.resume()
                case "p":
                    stream.pause()
                case "e":
                    stream.end()
                case "c":
                    reset = True
                    stream.close(Reason.RESET)
                case "t":
                    ends.carry(most)
                case "g":
                    ends.settle(most)
        near.resume()
        far.resume()
        ends.settle(most)
        self.assertEqual((ends.client.broken, ends.exit.broken), ("", ""))
        for stream, sink in ((near, told), (far, heard)):
            self.assertTrue(bytes(said[stream]).startswith(sink.all))
            if not reset:
                self.assertEqual(len(said[stream]), len(sink.all))
