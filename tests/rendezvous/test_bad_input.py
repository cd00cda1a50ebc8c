"""What comes in wrong to access points, rendezvous hops and services: every row of section 12 that is theirs."""

from __future__ import annotations

import os
from typing import Any

from layer8.crypto.introduction import BLOB, Door, Meeting, knock
from layer8.crypto.keys import NodeKey
from layer8.relay.client import Destroy
from layer8.relay.origin import Origin, State
from layer8.rendezvous import price
from layer8.rendezvous.client import BEFORE_POINT
from layer8.rendezvous.limits import BLOB_AGE, COOKIE_LIFE, SEED_LIFE, SEEN_NONCES
from layer8.rendezvous.points import Held
from layer8.rendezvous.price import Seeds
from layer8.rendezvous.wire import (
    NO_WORK,
    REPLY_LEAST,
    Connect,
    Join,
    Knock,
    Listen,
    Renzv,
    Status,
    Work,
    listen_text,
)
from tests.rendezvous.test_end_to_end import MeetCase
from tests.rendezvous.test_points import Copying


class BadCase(MeetCase):
    def circuit(self, node: int = 0) -> Origin:
        """Give somebody's circuit to one of the nodes with both roles."""
        return self.result(self.here.to(self.relays[node].hop, BEFORE_POINT))

    def ends(self, origin: Origin) -> Destroy:
        """Wait for the circuit's end, and give what its last hop has said of it."""
        reasons: list[Destroy] = []
        origin.at_end = reasons.append
        self.net.run(lambda: bool(reasons))
        return reasons[0]

    def ask(self, origin: Origin, command: int, data: bytes) -> list[Any]:
        """Give what will have been answered."""
        said: list[Any] = []
        origin.ask(command, data, (command + 1,), 30.0, said.append)
        return said

    def answered(self, origin: Origin, command: int, data: bytes) -> bytes:
        said = self.ask(origin, command, data)
        self.net.run(lambda: bool(said))
        answer = said[0][1]
        assert isinstance(answer, bytes)
        return answer


class ListenTests(BadCase):
    def test_a_signature_for_another_circuit(self) -> None:
        key = NodeKey.make()
        one, two = self.circuit(), self.circuit()
        two.tell(Renzv.RES_LISTEN, Listen(key.node_id, key.sign(listen_text(one.binding))).encode())
        self.assertEqual(self.ends(two), Destroy.PROTOCOL)
        self.answered(one, Renzv.RES_LISTEN, Listen(key.node_id, key.sign(listen_text(one.binding))).encode())
        self.assertEqual(set(self.access[0].listeners), {key.node_id})

    def test_an_auth_key_that_is_held(self) -> None:
        """The holder is kept as long as it answers, and the key is free when it has gone."""
        key = NodeKey.make()
        one, two, three = self.circuit(), self.circuit(), self.circuit()

        def text(origin: Origin) -> bytes:
            return Listen(key.node_id, key.sign(listen_text(origin.binding))).encode()

        self.answered(one, Renzv.RES_LISTEN, text(one))
        two.tell(Renzv.RES_LISTEN, text(two))
        self.assertEqual(self.ends(two), Destroy.PROTOCOL)
        self.assertIs(one.state, State.OPEN)
        one.close()
        self.net.run(lambda: not self.access[0].listeners)
        self.answered(three, Renzv.RES_LISTEN, text(three))


class JoinTests(BadCase):
    def test_a_cookie_that_nobody_waits_with(self) -> None:
        origin = self.circuit()
        origin.tell(Renzv.JOIN, Join(bytes(32), bytes(REPLY_LEAST)).encode())
        self.assertEqual(self.ends(origin), Destroy.PROTOCOL)

    def test_a_second_one(self) -> None:
        waits, first, second = self.circuit(), self.circuit(), self.circuit()
        heard: list[bytes] = []
        waits.heard[Renzv.CONNECT_OK] = heard.append
        self.answered(waits, Renzv.LISTEN, b"c" * 32)
        first.tell(Renzv.JOIN, Join(b"c" * 32, bytes(REPLY_LEAST)).encode())
        self.net.run(lambda: bool(heard))
        second.tell(Renzv.JOIN, Join(b"c" * 32, bytes(REPLY_LEAST)).encode())
        self.assertEqual(self.ends(second), Destroy.PROTOCOL)
        self.assertEqual((waits.state, first.state), (State.OPEN, State.OPEN))

    def test_too_late(self) -> None:
        waits, late = self.circuit(), self.circuit()
        self.answered(waits, Renzv.LISTEN, b"c" * 32)
        self.net.settle(COOKIE_LIFE)
        late.tell(Renzv.JOIN, Join(b"c" * 32, bytes(REPLY_LEAST)).encode())
        self.assertEqual(self.ends(late), Destroy.PROTOCOL)


class BlobTests(BadCase):
    """What is no introduction is dropped without a word and counted; the service goes nowhere for it."""

    def setUp(self) -> None:
        super().setUp()
        self.service = self.serve(self.key, cookie=b"k" * 32)
        self.start()
        self.point: Held = next(iter(self.service.points.values()))
        self.went = len(self.there.paths)

    def blob(self, *, behind: float = 0.0, cookie: bytes = b"k" * 32, mode: int = 1, **keys: bytes) -> bytes:
        told = self.point.told
        doors = {"service": self.key.node_id, "auth_key": told.auth_key, "enc_key": told.enc_key} | keys
        node = self.relays[3].hop
        meeting = Meeting(
            mode, int(self.here.wall() - behind), b"c" * 32, node.identity, node.onion_key, node.endpoints[0]
        )
        return knock(Door(self.net.mark, **doors), meeting, cookie=cookie).blob

    def dropped(self, blob: bytes, why: str) -> None:
        before = self.service.counted[why]
        self.service._knocked(self.point, Knock(self.point.auth.node_id, 1, NO_WORK, blob).encode())
        self.net.run(lambda: self.service.counted[why] == before + 1)
        self.net.settle()
        self.assertEqual((len(self.there.paths), len(self.service.points)), (self.went, 3))

    def test_wrong_keys_and_cookies(self) -> None:
        for blob in (
            os.urandom(BLOB),
            bytes(BLOB),
            self.blob(cookie=b""),
            self.blob(cookie=b"j" * 32),
            self.blob(auth_key=b"a" * 32),
            self.blob(enc_key=self.relays[0].hop.onion_key),
        ):
            self.dropped(blob, "not for us")

    def test_times(self) -> None:
        self.dropped(self.blob(behind=BLOB_AGE + 2), "old")
        self.dropped(self.blob(behind=-BLOB_AGE - 2), "old")

    def test_modes(self) -> None:
        self.dropped(self.blob(mode=0), "another mode")
        self.dropped(self.blob(mode=7), "another mode")
        # In mode 0 the access point is the rendezvous hop, and nobody else.
        self.service.modes = (0, 1)
        others = [one for one in self.service.points.values() if one.hop.identity != self.relays[3].identity]
        self.point = others[0]
        self.dropped(self.blob(mode=0), "another mode")

    def test_one_that_comes_again(self) -> None:
        kept: list[bytes] = []
        for access in self.access:
            for listener in access.listeners.values():
                listener.asker = Copying(listener.asker, kept)
        self.meet(cookie=b"k" * 32)
        knocked = Knock.read(kept[0])
        self.point = self.service.points[knocked.auth_key]
        self.went = len(self.there.paths)
        self.dropped(knocked.blob, "not for us")

    def test_a_wrong_length(self) -> None:
        """The access point does not pass it on, and loses its circuit if it does."""
        origin = self.circuit()
        said = Connect(self.point.auth.node_id, NO_WORK, bytes(BLOB)).encode()
        origin.tell(Renzv.RES_CONNECT, said[:-1])
        self.assertEqual(self.ends(origin), Destroy.PROTOCOL)
        self.service._knocked(self.point, bytes(100))
        self.net.run(lambda: self.point.auth.node_id not in self.service.points)


class NonceTests(BadCase):
    def test_as_many_as_are_remembered(self) -> None:
        """A seed whose solutions are too many to be remembered is good for no more; the next one is."""
        self.patch(price, "check", lambda *words: True)
        seeds = Seeds()
        seeds.tune(b"s" * 32, 1, 0.0)
        seeds._seeds[0].nonces.update(number.to_bytes(16, "big") for number in range(SEEN_NONCES - 1))
        work = [Work(bytes([255]) * 15 + bytes([number]), 1, b"ssss").encode() for number in range(2)]
        self.assertEqual([seeds.paid(bytes(32), one, 1.0) for one in work], [1, None])
        seeds.tune(b"t" * 32, 1, 1.0)
        other = Work(bytes([255]) * 16, 1, b"tttt").encode()
        self.assertEqual(seeds.paid(bytes(32), other, 1.0), 1)
        self.assertIsNone(seeds.paid(bytes(32), other, 1.0 + 2 * SEED_LIFE))

    def test_work_of_no_seed_that_is_known(self) -> None:
        self.start()
        self.service.pricing.rush(self.there.seconds())
        self.service._priced()
        self.net.settle()
        (auth_key, listener) = next(iter(self.access[0].listeners.items() or self.access[1].listeners.items()))
        node = next(number for number, access in enumerate(self.access) if auth_key in access.listeners)
        for work in (NO_WORK, Work(bytes(16), 2**31, b"none").encode(), b"\x09" + bytes(24)):
            said = Connect(auth_key, work, bytes(BLOB)).encode()
            answer = self.answered(self.circuit(node), Renzv.RES_CONNECT, said)
            self.assertEqual((answer[0], int.from_bytes(answer[1:], "big")), (Status.WORK, 64))
        self.assertEqual(self.service.counted, {})
        self.assertEqual(listener.refused, 3)
