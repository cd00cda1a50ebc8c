"""The states of a visitor: every input in every state, and what is asked for."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.session import Close, Join, Send, Tell
from layer8.proxy.choose import Seat
from layer8.proxy.sniff import Found
from layer8.proxy.sniff_http import HttpSniffer
from layer8.proxy.sniff_tls import TlsSniffer
from layer8.proxy.visitor import DOUBTS, Ask, State, Times, Visitor
from layer8.proxy.wire import Reason

HEAD = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"


def seat(number: int) -> Seat:
    return Seat(number, "app.test", Voice(), "", None, b"", "", 1, 0, 0, 0.0)


class Voice:
    def notify(self, method: str, params: object) -> bool:
        return True

    def close(self, reason: str) -> None:
        pass


def visitor(opened: float = 100.0) -> Visitor:
    return Visitor(HttpSniffer(), "http", Times(10.0, 1.5, 5.0), opened)


def routed() -> Visitor:
    made = visitor()
    made.received(HEAD, 100.0)
    made.effects()
    return made


class Line:
    """Seats in order, each given once."""

    def __init__(self, *seats: Seat) -> None:
        self.seats = seats

    def __call__(self, tried: object) -> Seat | None:
        return next((seat for seat in self.seats if seat not in tried), None)  # type: ignore[operator]


class SniffingTests(SynchronousTestCase):
    def test_a_name_at_every_cut(self) -> None:
        for cut in range(1, len(HEAD)):
            made = visitor()
            made.received(HEAD[:cut], 100.0)
            self.assertEqual(list(made.effects()), [])
            self.assertEqual(made.deadline(), 110.0)
            self.assertFalse(made.silent)
            made.received(HEAD[cut:], 101.0)
            (told,) = made.effects()
            assert isinstance(told, Tell) and isinstance(told.what, Found)
            self.assertEqual((told.what.scheme, told.what.host), ("http", "app.test"))
            self.assertEqual(made.state, State.ROUTED)
            self.assertIsNone(made.deadline())
            self.assertEqual(made.data, HEAD)

    def test_doubt_is_answered_and_closed(self) -> None:
        made = visitor()
        made.received(b"GET / HTTP/1.1\r\n\r\n", 100.0)
        answer, close = made.effects()
        assert isinstance(answer, Send)
        self.assertTrue(answer.data.startswith(b"HTTP/1.1 400 "))
        self.assertEqual(close, Close(Reason.BAD_HTTP))
        self.assertEqual(made.state, State.CLOSED)

    def test_late_with_half_a_head_gets_408(self) -> None:
        made = visitor()
        made.received(HEAD[:10], 100.0)
        made.wake(109.9)
        self.assertEqual(list(made.effects()), [])
        made.wake(110.0)
        answer, close = made.effects()
        assert isinstance(answer, Send)
        self.assertTrue(answer.data.startswith(b"HTTP/1.1 408 "))
        self.assertEqual(close, Close(Reason.SNIFF_TIME))

    def test_late_with_half_a_hello_gets_nothing(self) -> None:
        made = Visitor(TlsSniffer(), "https", Times(), 0.0)
        made.received(b"\x16\x03\x01", 0.0)
        made.wake(10.0)
        self.assertEqual(list(made.effects()), [Close(Reason.SNIFF_TIME)])

    def test_late_without_a_byte_gets_nothing(self) -> None:
        """Silence has the same deadline; a first byte that comes late does not lengthen it."""
        made = visitor()
        self.assertTrue(made.silent)
        self.assertEqual(made.deadline(), 110.0)
        made.wake(109.9)
        self.assertEqual(list(made.effects()), [])
        made.wake(110.0)
        self.assertEqual(list(made.effects()), [Close(Reason.SNIFF_TIME)])

    def test_leaving(self) -> None:
        made = visitor()
        made.lost(100.0)
        self.assertEqual(list(made.effects()), [Close(Reason.VISITOR_LEFT)])

    def test_every_doubt_has_a_reason(self) -> None:
        for reason in DOUBTS.values():
            self.assertIsInstance(reason, Reason)


class ReachingTests(SynchronousTestCase):
    def test_a_visitor_who_said_everything_at_once(self) -> None:
        sniffer = HttpSniffer()
        sniffer.feed(HEAD)
        made = Visitor(sniffer, "http", Times(), 100.0, State.ROUTED)
        self.assertIsNone(made.deadline())
        made.call(Line(seat(1)), 100.0)
        made.effects()
        made.reached()
        self.assertEqual(list(made.effects()), [Join(0, HEAD)])

    def test_nobody_to_call(self) -> None:
        made = routed()
        made.call(Line(), 100.0)
        self.assertEqual(list(made.effects()), [Close(Reason.NO_SUBSCRIBER)])

    def test_the_first_answers(self) -> None:
        made, one = routed(), seat(1)
        made.call(Line(one, seat(2)), 100.0)
        self.assertEqual(list(made.effects()), [Tell(Ask(one))])
        self.assertEqual(made.deadline(), 101.5)
        made.reached()
        self.assertEqual(list(made.effects()), [Join(0, HEAD)])
        self.assertIsNone(made.deadline())

    def test_a_rejection_goes_to_the_next_at_once(self) -> None:
        made, one, two = routed(), seat(1), seat(2)
        made.call(Line(one, two), 100.0)
        made.effects()
        made.rejected(two, 100.1)
        self.assertEqual(list(made.effects()), [], "it was not the one that was asked")
        made.rejected(one, 100.1)
        self.assertEqual(list(made.effects()), [Tell(Ask(two))])
        made.rejected(two, 100.2)
        self.assertEqual(list(made.effects()), [Close(Reason.REJECTED)])

    def test_silence_goes_to_the_next_after_a_step(self) -> None:
        made, one, two = routed(), seat(1), seat(2)
        made.call(Line(one, two), 100.0)
        made.effects()
        made.wake(101.4)
        self.assertEqual(list(made.effects()), [])
        made.wake(101.5)
        self.assertEqual(list(made.effects()), [Tell(Ask(two))])
        made.wake(103.0)
        self.assertEqual(list(made.effects()), [Close(Reason.CALL_TIME)])

    def test_all_together_have_five_seconds(self) -> None:
        made = routed()
        seats = [seat(number) for number in range(9)]
        made.call(Line(*seats), 100.0)
        now = 100.0
        while made.deadline() is not None:
            now = made.deadline() or 0.0
            made.wake(now)
        self.assertEqual(now, 105.0)
        self.assertEqual(list(made.effects())[-1], Close(Reason.CALL_TIME))

    def test_one_that_was_reached_and_refuses_after_all(self) -> None:
        made, one, two = routed(), seat(1), seat(2)
        made.call(Line(one, two), 100.0)
        made.effects()
        made.reached()
        made.returned(100.2)
        self.assertEqual(list(made.effects()), [Tell(Ask(two))])
        self.assertEqual((made.state, made.deadline(), made.data), (State.REACHING, 101.7, HEAD))
        made.reached()
        made.effects()
        made.returned(100.3)
        self.assertEqual(list(made.effects()), [Close(Reason.REJECTED)], "nobody is left")
        made.returned(100.4)
        self.assertEqual(list(made.effects()), [])

    def test_one_that_refuses_when_it_is_too_late_for_another(self) -> None:
        made = routed()
        made.call(Line(seat(1), seat(2)), 100.0)
        made.reached()
        made.effects()
        made.returned(105.0)
        self.assertEqual(list(made.effects()), [Close(Reason.REJECTED)])

    def test_leaving_and_refusing(self) -> None:
        for end, reason in (
            (lambda made: made.lost(101.0), Reason.VISITOR_LEFT),
            (lambda made: made.refuse(Reason.KILLED), Reason.KILLED),
        ):
            made = routed()
            made.call(Line(seat(1)), 100.0)
            made.effects()
            end(made)  # type: ignore[no-untyped-call]
            self.assertEqual(list(made.effects()), [Close(reason)])
            self.assertIsNone(made.deadline())


class EveryInputTests(SynchronousTestCase):
    """What makes no sense in a state changes nothing in it."""

    def inputs(self, made: Visitor) -> None:
        made.received(b"more", 200.0)
        made.wake(0.0)
        made.call(Line(seat(1)), 200.0)
        made.rejected(seat(9), 200.0)
        made.reached()
        made.refuse(Reason.KILLED)
        made.lost(200.0)

    def test_joined_and_closed_stay(self) -> None:
        joined = routed()
        joined.call(Line(seat(1)), 100.0)
        joined.reached()
        closed = visitor()
        closed.lost(100.0)
        for made in (joined, closed):
            made.effects()
            before = made.state
            self.inputs(made)
            self.assertEqual(list(made.effects()), [])
            self.assertEqual(made.state, before)
            self.assertIsNone(made.deadline())

    def test_sniffing_is_left_only_by_a_name_or_an_end(self) -> None:
        made = visitor()
        made.call(Line(seat(1)), 100.0)
        made.rejected(seat(1), 100.0)
        made.reached()
        made.wake(109.9)
        self.assertEqual(made.state, State.SNIFFING)
        self.assertEqual(list(made.effects()), [])

    def test_effects_are_given_once(self) -> None:
        made = visitor()
        made.lost(100.0)
        self.assertEqual(len(made.effects()), 1)
        self.assertEqual(len(made.effects()), 0)
