"""Sockets inside the tunnel: from the first message to the close frame, and every way to break the rules."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError
from layer8.core.session import Close, Effect, Send, Tell
from layer8.tunnel import socket_session
from layer8.tunnel.bhttp import Request
from layer8.tunnel.frames import FIRST_SIZE, SECOND_SIZE, SIZES, Kind, Message
from layer8.tunnel.keys import GatewayKey
from layer8.tunnel.limits import HEAD_TIME, SOCKET_DEAD, SOCKET_PING
from layer8.tunnel.socket_session import Closed, GatewaySocket, Open, Opened, PageSocket, Refused, Routed
from layer8.tunnel.target import Allowed
from tests.tunnel.pair import EPOCH, NOW, Seen, asked

TAG = 16


class Wire:
    """Both sides of a socket, with a relay that carries whole messages and counts them."""

    def __init__(
        self, request: Request | None = None, keys: list[GatewayKey] | None = None, gateway: str = "shop"
    ) -> None:
        self.keys = keys or [GatewayKey.make(EPOCH)]
        self.allowed = Allowed.of(["shop.example"])
        self.page_saw, self.gateway_saw = Seen(), Seen()
        self.carried: list[bytes] = []
        self.page = PageSocket(self.keys[-1].key_set("shop", ["shop.example"]), request or asked(path=b"/chat"), NOW)
        self.gateway = GatewaySocket(gateway, self.keys, self.allowed, NOW)

    def turn(self, now: float = NOW) -> None:
        """Carry messages until neither side has more to say."""
        while True:
            moved = self.carry(self.page, self.page_saw, self.gateway, now)
            moved += self.carry(self.gateway, self.gateway_saw, self.page, now)
            if not moved:
                return

    def carry(self, of: Any, saw: Seen, to: Any, now: float) -> int:
        effects: list[Effect] = list(of.effects())
        saw.take(effects)
        for effect in effects:
            if isinstance(effect, Send):
                self.carried.append(effect.data)
                to.received(effect.data, now)
        return len(effects)

    def open(self) -> Wire:
        self.turn()
        self.gateway.status(200, NOW)
        self.turn()
        self.gateway.opened(NOW)
        self.turn()
        return self

    @property
    def ended(self) -> tuple[bool, bool]:
        return self.page.deadline() is None, self.gateway.deadline() is None


class GoodTests(SynchronousTestCase):
    def test_whole(self) -> None:
        wire = Wire()
        wire.turn()
        (routed,) = wire.gateway_saw.told(Routed)
        self.assertEqual((routed.target.path, routed.request.method), ("/chat", b"GET"))
        self.assertEqual(wire.gateway_saw.told(Open), [])
        wire.gateway.status(200, NOW)
        wire.turn()
        self.assertEqual((len(wire.gateway_saw.told(Open)), wire.page_saw.told(Opened)), (1, []))
        wire.gateway.opened(NOW, "chat.v2")
        wire.turn()
        self.assertEqual(wire.page_saw.told(Opened), [Opened("chat.v2")])
        self.assertEqual([len(data) for data in wire.carried], [FIRST_SIZE, SECOND_SIZE, 256 + TAG, 256 + TAG])
        for message in (Message(Kind.TEXT, "é".encode()), Message(Kind.BINARY, bytes(200_000)), Message(Kind.BINARY)):
            wire.page.send(message)
            wire.gateway.send(message)
            wire.turn()
            self.assertEqual(wire.gateway_saw.told(Message)[-1], message)
            self.assertEqual(wire.page_saw.told(Message)[-1], message)
        self.assertLessEqual({len(data) - TAG for data in wire.carried[2:]}, set(SIZES))
        wire.page.close(1000, "bye", NOW)
        wire.turn()
        self.assertEqual(wire.gateway_saw.told(Closed), [Closed(1000, "bye")])
        self.assertEqual(wire.page_saw.told(Closed), [Closed(1000, "bye")])
        self.assertEqual(wire.ended, (True, True))

    def test_a_new_key_after_so_many(self) -> None:
        self.patch(socket_session, "SOCKET_REKEY", 3)
        wire = Wire().open()
        for number in range(20):
            wire.page.send(Message(Kind.TEXT, b"%d" % number))
            wire.gateway.send(Message(Kind.TEXT, b"%d" % -number))
            wire.turn()
        self.assertEqual(wire.gateway_saw.told(Message)[-1].data, b"19")
        self.assertEqual(wire.page_saw.told(Message)[-1].data, b"-19")

    def test_keys_of_other_days(self) -> None:
        wire = Wire(keys=[GatewayKey.make(EPOCH + 48), GatewayKey.make(EPOCH + 24), GatewayKey.make(EPOCH)]).open()
        self.assertEqual(len(wire.page_saw.told(Opened)), 1)

    def test_idle_but_there(self) -> None:
        """Two minutes without a message: both are asked, both answer, nothing ends."""
        wire, now = Wire().open(), NOW
        carried = len(wire.carried)
        while now < NOW + 120:
            now += 1
            for side in (wire.page, wire.gateway):
                side.wake(now)
            wire.turn(now)
        self.assertEqual(wire.ended, (False, False))
        self.assertGreaterEqual(len(wire.carried) - carried, 2 * (120 // SOCKET_PING) - 2)
        self.assertEqual({len(data) for data in wire.carried[carried:]}, {256 + TAG})

    def test_refusals(self) -> None:
        for status in (403, 404, 503):
            wire = Wire()
            wire.turn()
            wire.gateway.status(status, NOW)
            wire.turn()
            self.assertEqual(wire.page_saw.told(Refused), [Refused(status)])
            self.assertEqual((wire.ended, wire.gateway_saw.told(Open)), ((True, True), []))
            wire.gateway.status(200, NOW)

    def test_a_backend_that_is_not_there(self) -> None:
        wire = Wire()
        wire.turn()
        wire.gateway.status(200, NOW)
        wire.turn()
        wire.gateway.close(1011, "no backend", NOW)
        wire.turn()
        wire.gateway.opened(NOW)
        self.assertEqual((wire.page_saw.told(Closed), wire.page_saw.told(Opened)), ([Closed(1011, "no backend")], []))

    def test_before_it_is_open(self) -> None:
        wire = Wire()
        for side in (wire.page, wire.gateway):
            self.assertRaises(LocalProtocolError, side.send, Message(Kind.TEXT, b""))
        wire.open()
        self.assertRaises(LocalProtocolError, wire.page.send, Message(Kind.PING))
        wire.page.close(1000, "", NOW)
        wire.page.send(Message(Kind.TEXT, b"too late"))
        wire.turn()
        self.assertEqual(wire.gateway_saw.told(Message), [])

    def test_a_request_that_does_not_fit(self) -> None:
        self.assertRaises(LocalProtocolError, Wire, asked(path=b"/" + b"a" * 500))

    def test_left_before_anything(self) -> None:
        wire = Wire()
        wire.page.close(1000, "", NOW)
        self.assertIsNone(wire.page.deadline())
        wire.page.received(b"", NOW)


class BadTests(SynchronousTestCase):
    def test_a_recording_opens_nothing(self) -> None:
        """The first message again, to another session: the route is looked up, and that is all."""
        first = Wire()
        first.turn()
        again = Wire(keys=first.keys)
        again.gateway.received(first.carried[0], NOW)
        again.gateway.status(200, NOW)
        again.gateway_saw.take(again.gateway.effects())
        self.assertEqual(len(again.gateway_saw.told(Routed)), 1)
        first.gateway.status(200, NOW)
        first.turn()
        again.gateway.received(first.carried[2], NOW)  # the recorded `open` frame
        again.gateway_saw.take(again.gateway.effects())
        self.assertEqual((again.gateway_saw.told(Open), again.gateway_saw.told(Closed)), ([], [Closed(1002)]))

    def test_another_gateway_epoch_or_key(self) -> None:
        key = GatewayKey.make(EPOCH)
        for wire in (
            Wire(keys=[key], gateway="mall"),
            Wire(),
        ):
            if wire.keys != [key]:
                wire.gateway = GatewaySocket("shop", [evolve(wire.keys[0], epoch=EPOCH + 1), key], wire.allowed, NOW)
            wire.turn()
            self.assertEqual((wire.gateway_saw.told(Routed), wire.gateway_saw.closed), ([], [Close("protocol")]))
            self.assertEqual(wire.gateway_saw.sent, b"")

    def test_requests_that_go_nowhere(self) -> None:
        for request, status in (
            (Request(b"GET", b"https", b"other.example", b"/"), 400),
            (asked(path=b"/../a"), 400),
            (asked(b"POST"), 405),
            (asked(fields=((b"upgrade", b"websocket"),)), 400),
        ):
            wire = Wire(request)
            wire.turn()
            self.assertEqual((wire.gateway_saw.told(Routed), wire.page_saw.told(Refused)), ([], [Refused(status)]))

    def test_lengths(self) -> None:
        for size in (0, 1, FIRST_SIZE - 1, FIRST_SIZE + 1):
            wire = Wire()
            wire.gateway.received(bytes(size), NOW)
            self.assertIsNone(wire.gateway.deadline())
            wire = Wire()
            wire.page.received(bytes(size), NOW)
            self.assertIsNone(wire.page.deadline())
        wire = Wire()
        wire.turn()
        wire.gateway.received(wire.carried[0], NOW)
        self.assertIsNone(wire.gateway.deadline())

    def test_changed_repeated_and_lost_frames(self) -> None:
        for change in range(3):
            wire = Wire().open()
            wire.page.send(Message(Kind.TEXT, b"one"))
            wire.page.send(Message(Kind.TEXT, b"two"))
            one, two = (effect.data for effect in wire.page.effects() if isinstance(effect, Send))
            for data in ((bytes((one[0] ^ 1,)) + one[1:],), (one, one), (two,))[change]:
                wire.gateway.received(data, NOW)
            wire.gateway_saw.take(wire.gateway.effects())
            self.assertEqual(wire.gateway_saw.told(Closed), [Closed(1002)])
            self.assertEqual(wire.ended[1], True)

    def test_frames_out_of_turn(self) -> None:
        for kind in (Kind.OPEN, Kind.OPENED):
            for page in (True, False):
                wire = Wire().open()
                side = wire.page if page else wire.gateway
                side._side.say(Message(kind))
                wire.turn()
                other = wire.gateway_saw if page else wire.page_saw
                self.assertEqual(other.told(Closed), [Closed(1002)])
        wire = Wire()
        wire.turn()
        wire.gateway.status(200, NOW)
        wire.carry(wire.gateway, wire.gateway_saw, wire.page, NOW)
        wire.page._side.say(Message(Kind.TEXT, b"before it is open"))
        wire.turn()
        self.assertEqual((wire.gateway_saw.told(Closed), wire.page_saw.told(Closed)), ([Closed(1002)], [Closed(1002)]))

    def test_codes_of_bad_frames(self) -> None:
        wire = Wire().open()
        wire.page._side.say(Message(Kind.TEXT, b"\xff"))
        wire.turn()
        self.assertEqual((wire.gateway_saw.told(Closed), wire.page_saw.told(Closed)), ([Closed(1007)], [Closed(1007)]))
        wire = Wire().open()
        wire.gateway.send(Message(Kind.BINARY, bytes((1 << 20) + 1)))
        wire.turn()
        self.assertEqual(wire.page_saw.told(Closed), [Closed(1009)])

    @given(st.lists(st.binary(max_size=600), min_size=1, max_size=4), st.booleans(), st.booleans())
    def test_any_noise(self, messages: list[bytes], page: bool, opened: bool) -> None:
        wire = Wire().open() if opened else Wire()
        side: PageSocket | GatewaySocket = wire.page if page else wire.gateway
        for data in messages:
            side.received(data, NOW)
        self.assertIsNone(side.deadline())
        list(side.effects())
        side.received(b"more", NOW)
        side.lost(NOW)
        self.assertEqual(list(side.effects()), [])

    def test_nothing_secret_on_the_wire(self) -> None:
        wire = Wire(asked(path=b"/marker-of-the-path")).open()
        wire.page.send(Message(Kind.TEXT, b"marker of the text"))
        wire.turn()
        self.assertNotIn(b"marker", b"".join(wire.carried))


class TimeTests(SynchronousTestCase):
    def test_no_handshake(self) -> None:
        for name in ("page", "gateway"):
            wire = Wire()
            side = getattr(wire, name)
            self.assertEqual(side.deadline(), NOW + HEAD_TIME)
            side.wake(NOW + HEAD_TIME)
            effects = side.effects()
            self.assertEqual(effects[-1], Close("timeout", abort=True))
            self.assertIn(Tell(Closed(1006)), effects)

    def test_nobody_there(self) -> None:
        wire = Wire().open()
        self.assertEqual(wire.page.deadline(), NOW + SOCKET_PING)
        wire.page.wake(NOW + SOCKET_PING)
        self.assertEqual(len(wire.page.effects()), 1)
        self.assertEqual(wire.page.deadline(), NOW + SOCKET_DEAD)
        wire.page.wake(NOW + SOCKET_DEAD - 1)
        self.assertEqual(list(wire.page.effects()), [])
        wire.page.wake(NOW + SOCKET_DEAD)
        self.assertEqual(list(wire.page.effects()), [Tell(Closed(1006)), Close("timeout", abort=True)])

    def test_a_close_frame_that_nobody_answers(self) -> None:
        wire = Wire().open()
        wire.page.close(1000, "", NOW)
        list(wire.page.effects())
        self.assertEqual(wire.page.deadline(), NOW + HEAD_TIME)
        wire.gateway._side.say(Message(Kind.PING))
        wire.carry(wire.gateway, wire.gateway_saw, wire.page, NOW)
        self.assertEqual(wire.page.deadline(), NOW + HEAD_TIME)
        wire.page.wake(NOW + HEAD_TIME)
        self.assertEqual(list(wire.page.effects()), [Tell(Closed(1006)), Close("timeout", abort=True)])

    def test_lost(self) -> None:
        wire = Wire().open()
        for side in (wire.page, wire.gateway):
            side.lost(NOW)
            side.lost(NOW)
            self.assertEqual(list(side.effects()), [Tell(Closed(1006))])
            side.wake(NOW + 1000)
            side.close(1000, "", NOW)
            self.assertEqual(list(side.effects()), [])
