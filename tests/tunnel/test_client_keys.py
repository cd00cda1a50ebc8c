"""A page's view of a gateway's keys, state by state; and a relay's one copy of them."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.core.session import Tell
from layer8.crypto.keys import NodeKey
from layer8.tunnel.client_keys import Ask, Changed, ClientKeys, State
from layer8.tunnel.keys import HOUR, BadKeys, Flaw, GatewayKey
from layer8.tunnel.limits import KEYS_HURRY, KEYS_MAX, KEYS_REFRESH
from layer8.tunnel.relay_keys import KeyCopy
from layer8.tunnel.wire import ABOUT_BLANK, OHTTP_KEY

EPOCH = 500_000
NOW = EPOCH * HOUR + 100.0
ME = NodeKey.from_seed(bytes(range(32)))


def served(epoch: int = EPOCH, *, by: NodeKey = ME, gateway: str = "shop") -> bytes:
    return GatewayKey.make(epoch).key_set(gateway, ["shop.example"]).sign(by)


class ClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = ClientKeys("shop", [ME.node_id])

    def told(self) -> list[object]:
        return [effect.what for effect in self.client.effects() if isinstance(effect, Tell)]

    def ready(self) -> None:
        self.client.wanted(NOW)
        self.client.came([served()], NOW)
        self.told()

    def test_the_first_request_gets_the_keys(self) -> None:
        self.assertIsNone(self.client.wanted(NOW))
        self.assertEqual(self.told(), [Changed(State.KEYS), Ask()])
        self.assertIsNone(self.client.wanted(NOW))
        self.assertEqual(self.told(), [])
        document = served()
        self.client.came([document, document], NOW)
        self.assertEqual(self.told(), [Changed(State.READY)])
        keys = self.client.wanted(NOW)
        assert keys is not None
        self.assertEqual((keys.epoch, self.client.seen), (EPOCH, EPOCH))

    def test_new_ones_before_the_old_are_over(self) -> None:
        self.ready()
        soon = NOW + 36 * HOUR
        self.assertIsNotNone(self.client.wanted(soon - 200))
        self.assertEqual(self.told(), [])
        self.assertIsNotNone(self.client.wanted(soon))
        self.assertEqual(self.told(), [Changed(State.REFRESHING), Ask()])
        self.client.came([served(EPOCH + 24)], soon)
        keys = self.client.wanted(soon)
        assert keys is not None
        self.assertEqual((keys.epoch, self.told()), (EPOCH + 24, [Changed(State.READY)]))

    def test_relays_that_have_not_looked_yet(self) -> None:
        """For an hour after a change their copies are of two epochs; the later counts."""
        self.client.seen = EPOCH
        self.client.wanted(NOW)
        self.client.came([served(EPOCH - 24), served(EPOCH)], NOW)
        keys = self.client.wanted(NOW)
        assert keys is not None
        self.assertEqual(keys.epoch, EPOCH)

    def test_relays_that_do_not_answer(self) -> None:
        self.client.wanted(NOW)
        self.client.came([], NOW)
        self.assertEqual(self.client.state, State.IDLE)
        self.ready()
        soon = NOW + 36 * HOUR
        for number in range(5):
            self.assertIsNotNone(self.client.wanted(soon + number))
            self.client.missing(soon)
        self.assertEqual(self.told().count(Ask()), 1)
        self.assertIsNotNone(self.client.wanted(soon + KEYS_HURRY))
        self.assertEqual(self.client.state, State.REFRESHING)
        late = NOW + 48 * HOUR
        self.assertIsNone(self.client.wanted(late))
        self.assertEqual(self.client.state, State.KEYS)
        self.client.missing(late)
        self.assertIsNone(self.client.wanted(late))
        self.assertEqual(self.client.state, State.KEYS)

    def test_every_refusal_is_final(self) -> None:
        document = served()
        for documents, flaw in (
            ([served(by=NodeKey.make())], Flaw.SIGNATURE),
            ([served(EPOCH - 1)], Flaw.EPOCH),
            ([served(gateway="mall")], Flaw.GATEWAY),
            ([served(EPOCH + 1)], Flaw.TIME),
            ([b"{}"], Flaw.FORM),
            ([document, served()], Flaw.DIFFERENT),
            ([served(EPOCH - 24), document, served(EPOCH - 48)], Flaw.DIFFERENT),
            ([document, document, b""], Flaw.FORM),
            ([document, served(EPOCH - 24, gateway="mall")], Flaw.GATEWAY),
            ([document, served(EPOCH - 24, by=NodeKey.make())], Flaw.SIGNATURE),
            ([document, served(EPOCH + 1)], Flaw.TIME),
        ):
            for refreshing in (True, False):
                self.client = ClientKeys("shop", [ME.node_id], EPOCH)
                self.client.wanted(NOW)
                if refreshing:
                    self.ready()
                    self.client.unknown(NOW + KEYS_HURRY)
                self.told()
                self.client.came(documents, NOW)
                self.assertEqual(self.told(), [Changed(State.FAILED, flaw)])
                for _ in range(3):
                    self.assertIsNone(self.client.wanted(NOW))
                    self.client.came([document], NOW)
                    self.client.unknown(NOW + 10_000)
                self.assertEqual((self.told(), self.client.flaw), ([], flaw))
                self.client.connect(NOW)
                self.assertEqual(self.told(), [Changed(State.KEYS), Ask()])

    def test_a_key_that_the_gateway_does_not_know(self) -> None:
        self.ready()
        self.client.unknown(NOW + KEYS_HURRY - 1)
        self.assertEqual(self.told(), [])
        self.client.unknown(NOW + KEYS_HURRY)
        self.assertEqual(self.told(), [Changed(State.REFRESHING), Ask()])

    @given(st.lists(st.sampled_from(("wanted", "came", "bad", "missing", "unknown", "connect", "late")), max_size=20))
    def test_closed_is_closed(self, calls: list[str]) -> None:
        client, now = ClientKeys("shop", [ME.node_id]), NOW
        client.close()
        client.close()
        client.effects()
        for call in calls:
            self.call(client, call, now)
            self.assertIsNone(client.wanted(now))
        self.assertEqual((client.state, list(client.effects())), (State.CLOSED, []))

    @given(st.lists(st.sampled_from(("wanted", "came", "bad", "missing", "unknown", "connect", "late")), max_size=20))
    def test_any_order(self, calls: list[str]) -> None:
        """There are keys exactly where requests may go, and they are good then."""
        client, now = ClientKeys("shop", [ME.node_id]), NOW
        for call in calls:
            now += 20 * HOUR if call == "late" else 1
            self.call(client, call, now)
            keys = client.wanted(now)
            self.assertEqual(keys is not None, client.state in (State.READY, State.REFRESHING))
            if keys is not None:
                keys.check("shop", now)

    def call(self, client: ClientKeys, call: str, now: float) -> None:
        match call:
            case "came":
                client.came([served(int(now // HOUR))], now)
            case "bad":
                client.came([served(by=NodeKey.make())], now)
            case "missing" | "unknown" | "connect" | "wanted":
                getattr(client, call)(now)


class RelayTests(SynchronousTestCase):
    def test_once_an_hour_or_every_ten_minutes(self) -> None:
        copy = KeyCopy("shop")
        self.assertEqual(copy.deadline(5.0), 5.0)
        looks = [second for second in range(0, 8000, 10) if copy.due(second)]
        self.assertEqual(looks, [0, KEYS_REFRESH, 2 * KEYS_REFRESH])
        copy.answered(ABOUT_BLANK)
        self.assertEqual(copy.deadline(8000), 3 * KEYS_REFRESH)
        looks = []
        for second in range(8000, 10_000, 10):
            copy.answered(OHTTP_KEY)
            if copy.due(second):
                looks.append(second)
        self.assertEqual(looks, [8000, 8600, 9200, 9800])

    def test_only_what_the_identity_has_signed(self) -> None:
        copy = KeyCopy("shop", [ME.node_id])
        document = served(EPOCH + 1)
        self.assertTrue(copy.take(document, NOW + HOUR))
        self.assertFalse(copy.take(document, NOW + HOUR))
        assert copy.keys is not None
        for wrong in (
            served(by=NodeKey.make()),
            served(EPOCH),
            served(gateway="mall"),
            served(EPOCH + 30),
            b"",
            b"x" * (KEYS_MAX + 1),
        ):
            self.assertRaises(RemoteProtocolError, copy.take, wrong, NOW + HOUR)
            self.assertEqual(copy.document, document)

    def test_two_keys_of_one_epoch(self) -> None:
        """A gateway that gives a relay another key each time is found out."""
        copy = KeyCopy("shop", [ME.node_id])
        copy.take(served(), NOW)
        self.assertRaises(RemoteProtocolError, copy.take, served(), NOW)
        assert copy.keys is not None
        self.assertTrue(copy.take(evolve(copy.keys, next=bytes(range(32))).sign(ME), NOW))

    def test_without_an_identity(self) -> None:
        copy = KeyCopy("shop")
        self.assertTrue(copy.take(b"anything", NOW))
        self.assertIsNone(copy.keys)
        self.assertRaises(RemoteProtocolError, copy.take, bytes(KEYS_MAX + 1), NOW)
        self.assertRaises(BadKeys, KeyCopy("shop", [ME.node_id]).take, b"anything", NOW)
