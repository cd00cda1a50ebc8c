"""Key sets: who may say what a gateway's key is, and when each key lives."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.hpke_context import Aead
from layer8.crypto.keys import NodeKey
from layer8.tunnel import jws, keys
from layer8.tunnel.keys import CACHED, HOUR, IDS, OFFERED, OPENED, BadKeys, Flaw, GatewayKey, KeySet, Schedule
from layer8.tunnel.limits import KEYS_MAX
from layer8.tunnel.wire import CHUNKED, SINGLE

NOW = 1_800_000_042.0
EPOCH = int(NOW // HOUR)
ME = NodeKey.from_seed(bytes(range(32)))
KEY = GatewayKey.load(EPOCH, bytes(range(64)))
SET = KEY.key_set("shop", ["shop.example"])


def letters(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    outer = json.loads(data)
    return outer, json.loads(urlsafe_b64decode(outer["payload"] + "=="))


def signed(payload: object, head: object | None = None, key: NodeKey = ME) -> bytes:
    """A set with any payload and head, with a signature that is right."""
    head = head or {"alg": "Ed25519", "typ": "l8-keys+jws", "kid": jws.key_name(key.node_id)}
    protected, body = (letters(json.dumps(one).encode()) for one in (head, payload))
    signature = letters(key.sign(f"{protected}.{body}".encode()))
    return json.dumps({"protected": protected, "payload": body, "signature": signature}).encode()


class SetTests(SynchronousTestCase):
    def flaw(self, flaw: Flaw, call: Callable[..., object], *args: Any, **more: Any) -> None:
        self.assertIs(self.assertRaises(BadKeys, call, *args, **more).flaw, flaw)

    def test_round_trip(self) -> None:
        for one in (SET, evolve(SET, next=NodeKey.make().node_id), KEY.key_set("a-1", ["a", "b:1"], chacha=True)):
            self.assertEqual(KeySet.read(one.sign(ME), [NodeKey.make().node_id, ME.node_id]), one)

    def test_the_layout(self) -> None:
        outer, payload = parts(SET.sign(ME))
        head = json.loads(urlsafe_b64decode(outer["protected"] + "=="))
        self.assertEqual(head, {"alg": "Ed25519", "typ": "l8-keys+jws", "kid": jws.key_name(ME.node_id)})
        self.assertEqual(len(head["kid"]), 11)
        self.assertEqual(
            payload,
            {
                "v": 1,
                "gateway": "shop",
                "authorities": ["shop.example"],
                "epoch": EPOCH,
                "not_before": EPOCH * HOUR,
                "not_after": EPOCH * HOUR + 48 * HOUR,
                "ohttp_keys": letters(SET.config.document()),
                "media": [CHUNKED.request, SINGLE.request],
                "noise": letters(KEY.noise.public),
            },
        )
        self.assertEqual(SET.config.key_id, EPOCH % 256)

    def test_what_a_relay_may_try(self) -> None:
        """Another key, another signature, an old epoch, another gateway's set: none is used."""
        pins = [ME.node_id]
        data = SET.sign(ME)
        outer, payload = parts(data)
        swapped = {**payload, "ohttp_keys": letters(GatewayKey.make(EPOCH).config().document())}
        self.flaw(
            Flaw.SIGNATURE,
            KeySet.read,
            json.dumps({**outer, "payload": letters(json.dumps(swapped).encode())}).encode(),
            pins,
        )
        self.flaw(Flaw.SIGNATURE, KeySet.read, json.dumps({**outer, "signature": letters(bytes(64))}).encode(), pins)
        self.flaw(Flaw.SIGNATURE, KeySet.read, SET.sign(NodeKey.make()), pins)
        old = KeySet.read(data, pins)
        self.flaw(Flaw.EPOCH, old.check, "shop", NOW, seen=EPOCH + 1)
        self.flaw(Flaw.GATEWAY, KeySet.read(evolve(SET, gateway="mall").sign(ME), pins).check, "shop", NOW)
        old.check("shop", NOW, seen=EPOCH)

    def test_times(self) -> None:
        begin = EPOCH * HOUR
        for now in (begin - 301, begin + CACHED + 1):
            self.flaw(Flaw.TIME, SET.check, "shop", now)
        for now in (begin - 300, begin, begin + CACHED):
            SET.check("shop", now)
        self.assertEqual([SET.stale(begin + hours * HOUR) for hours in (0, 35, 36, 48)], [False, False, True, True])

    def test_a_changeover(self) -> None:
        """The old key names the next; who has pinned both takes either's word, under the right name."""
        following = NodeKey.make()
        one = KEY.key_set("shop", ["shop.example"], following=following.node_id)
        self.assertEqual(KeySet.read(one.sign(ME), [ME.node_id]).next, following.node_id)
        for key in (ME, following):
            KeySet.read(SET.sign(key), [ME.node_id, following.node_id])
        head = {"alg": "Ed25519", "typ": "l8-keys+jws", "kid": jws.key_name(following.node_id)}
        self.flaw(Flaw.FORM, KeySet.read, signed(parts(SET.sign(ME))[1], head), [ME.node_id])

    def test_heads(self) -> None:
        payload = parts(SET.sign(ME))[1]
        good = {"alg": "Ed25519", "typ": "l8-keys+jws", "kid": jws.key_name(ME.node_id)}
        KeySet.read(signed(payload, good), [ME.node_id])
        for change in ({"alg": "none"}, {"alg": "EdDSA"}, {"typ": "JWT"}, {"kid": ""}, {"crit": ["b64"], "b64": False}):
            self.flaw(Flaw.FORM, KeySet.read, signed(payload, {**good, **change}), [ME.node_id])

    def test_payloads(self) -> None:
        payload = parts(SET.sign(ME))[1]
        KeySet.read(signed({**payload, "later": 1}), [ME.node_id])
        for name in payload:
            self.flaw(Flaw.FORM, KeySet.read, signed({k: v for k, v in payload.items() if k != name}), [ME.node_id])
            wrong: tuple[object, ...] = (None, "", [], {}, -1, 1.5, True, "\u00e9", [1], 2**60)
            for value in wrong:
                self.flaw(Flaw.FORM, KeySet.read, signed({**payload, name: value}), [ME.node_id])
        for change in (
            {"gateway": "Shop"},
            {"gateway": "a" * 64},
            {"gateway": "shop\n"},
            {"media": ["message/else"]},
            {"epoch": EPOCH + 1},
            {"not_after": payload["not_before"]},
            {"noise": letters(KEY.ohttp.public)},
            {"noise": payload["noise"] + "="},
            {"ohttp_keys": letters(SET.config.document() * 2)},
            {"next": "short"},
            {"authorities": ["a"] * 65},
        ):
            self.flaw(Flaw.FORM, KeySet.read, signed({**payload, **change}), [ME.node_id])

    def test_outer_forms(self) -> None:
        data = SET.sign(ME)
        outer = json.loads(data)
        for wrong in (
            b"",
            b"[]",
            b"null",
            b"{}",
            b"[" * 5000,
            json.dumps({**outer, "header": {}}).encode(),
            json.dumps({**outer, "payload": 1}).encode(),
            json.dumps({**outer, "signature": outer["signature"][:-1]}).encode(),
            json.dumps({**outer, "signature": outer["signature"] + "AA"}).encode(),
            data[:-1] + b',"payload":"AA"}',
            data + b" " * KEYS_MAX,
        ):
            self.flaw(Flaw.FORM, KeySet.read, wrong, [ME.node_id])
        self.flaw(Flaw.SIGNATURE, KeySet.read, data, [])

    @given(st.binary(max_size=300))
    def test_any_noise(self, data: bytes) -> None:
        self.assertRaises(BadKeys, KeySet.read, data, [ME.node_id])

    @given(
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5),
        st.sampled_from(sorted((*keys._MEMBERS, "next"))),
    )
    def test_any_member(self, value: object, name: str) -> None:
        payload = {**parts(SET.sign(ME))[1], name: value}
        try:
            KeySet.read(signed(payload), [ME.node_id])
        except BadKeys as error:
            self.assertIs(error.flaw, Flaw.FORM)

    def test_pins_and_ids(self) -> None:
        self.assertEqual(keys.read_pin(keys.pin_text(ME.node_id)), ME.node_id)
        for text in ("", "a" * 42, "a" * 44, "=" * 43, "\u00e9" * 43):
            self.assertRaises(ConfigError, keys.read_pin, text)
        self.assertEqual(keys.gateway_id("shop-1"), "shop-1")
        for text in ("", "a" * 64, "Shop", "a.b", "a/b", "a\n"):
            self.assertRaises(RemoteProtocolError, keys.gateway_id, text)

    def test_signed_in_advance(self) -> None:
        coming = [GatewayKey.make(EPOCH + 24 * day) for day in range(30)]
        made = [KeySet.read(data, [ME.node_id]) for data in keys.ahead(ME, SET, coming)]
        self.assertEqual([one.epoch for one in made], [key.epoch for key in coming])
        for one, key in zip(made, coming, strict=True):
            one.check("shop", key.made + 1)
            self.assertEqual((one.config.public, one.noise), (key.ohttp.public, key.noise.public))
        self.assertRaises(ConfigError, keys.ahead, ME, SET, [*coming, KEY])

    def test_nothing_secret_shows(self) -> None:
        schedule = Schedule(0)
        schedule.add(KEY)
        shown = repr((KEY, SET, schedule, KEY.ohttp, ME))
        for secret in (KEY.ohttp.dump(), KEY.noise.dump()):
            self.assertNotIn(secret.hex(), shown)
            self.assertNotIn(repr(secret)[2:-1], shown)
        self.assertEqual(GatewayKey.load(EPOCH, KEY.dump()).ohttp.public, KEY.ohttp.public)
        self.assertRaises(ValueError, GatewayKey.load, EPOCH, bytes(63))


class ScheduleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.schedule = Schedule(keys.own_hour("shop"))

    def turn(self, now: float) -> None:
        epoch = self.schedule.due(now)
        if epoch is not None:
            self.schedule.add(GatewayKey.make(epoch))

    def test_the_first_key_is_good_at_once(self) -> None:
        self.assertEqual(self.schedule.due(NOW), EPOCH)
        self.assertIsNone(self.schedule.current(NOW))
        self.turn(NOW)
        self.assertIsNone(self.schedule.due(NOW))
        key = self.schedule.current(NOW)
        assert key is not None
        self.assertEqual(key.epoch, EPOCH)

    def test_two_weeks(self) -> None:
        """A new key each day at one hour; each offered a day, good in a cached set two, opened three, then gone."""
        made: dict[int, float] = {}
        offered: dict[int, list[float]] = {}
        opened: dict[int, list[float]] = {}
        deleted: dict[int, float] = {}
        now = NOW
        while now < NOW + 14 * 24 * HOUR:
            self.turn(now)
            for epoch in self.schedule.dead(now):
                deleted[epoch] = now
            key = self.schedule.current(now)
            assert key is not None
            made.setdefault(key.epoch, now)
            offered.setdefault(key.epoch, []).append(now)
            key.key_set("shop", ["shop.example"]).check("shop", now)
            ids = [one.key_id for one in self.schedule.live(now)]
            self.assertEqual(len(ids), len(set(ids)))
            for one in self.schedule.live(now):
                opened.setdefault(one.epoch, []).append(now)
                self.assertIs(self.schedule.find(one.key_id, now), one)
                self.assertIs(self.schedule.for_socket(one.epoch, now), one)
            now += 600
        whole = sorted(made)[1:-3]  # the first one is made at any hour, the last are not over yet
        self.assertEqual(len(whole), 11)
        for epoch in whole:
            self.assertEqual(epoch % 24, self.schedule.hour)
            begin = epoch * HOUR
            self.assertLess(made[epoch] - begin, 600)
            self.assertTrue(all(0 <= at - begin < OFFERED for at in offered[epoch]))
            self.assertEqual(len(offered[epoch]), 144)
            self.assertTrue(all(0 <= at - begin < OPENED for at in opened[epoch]))
            self.assertEqual(len(opened[epoch]), 3 * 144)
            self.assertLessEqual(begin + OPENED, deleted[epoch])
            self.assertLess(deleted[epoch], begin + OPENED + 600)

    def test_an_id_comes_back_when_the_old_one_is_dead(self) -> None:
        self.assertGreater(IDS * HOUR, OPENED + keys.EARLY)
        old, new = GatewayKey.make(EPOCH), GatewayKey.make(EPOCH + IDS)
        self.schedule.add(old)
        self.schedule.add(new)
        self.assertEqual(old.key_id, new.key_id)
        self.assertIs(self.schedule.find(old.key_id, old.made), old)
        self.assertIs(self.schedule.find(old.key_id, new.made), new)
        self.assertIsNone(self.schedule.find(old.key_id, old.made + OPENED))

    def test_whoever_comes_first(self) -> None:
        first, second = GatewayKey.make(EPOCH), GatewayKey.make(EPOCH)
        self.schedule.add(first)
        self.schedule.add(second)
        self.assertIs(self.schedule.current(NOW), first)

    def test_an_emergency(self) -> None:
        self.turn(NOW)
        self.assertIsNone(self.schedule.emergency(NOW))
        later = NOW + HOUR
        epoch = self.schedule.emergency(later)
        assert epoch is not None
        self.schedule.add(GatewayKey.make(epoch))
        self.schedule.drop(EPOCH)
        key = self.schedule.current(later)
        assert key is not None
        self.assertEqual(key.epoch, EPOCH + 1)
        self.assertIsNone(self.schedule.find(EPOCH % IDS, later))
        self.assertIsNone(self.schedule.for_socket(EPOCH, later))
        now, made = later, 0
        while now < later + 24 * HOUR:  # the daily one comes all the same
            made += self.schedule.due(now) is not None
            self.turn(now)
            now += HOUR
        self.assertEqual(made, 1)

    def test_a_gateway_that_was_off_for_a_month(self) -> None:
        self.turn(NOW)
        later = NOW + 30 * 24 * HOUR
        self.assertIsNone(self.schedule.current(later))
        self.turn(later)
        key = self.schedule.current(later)
        assert key is not None
        key.key_set("shop", ["shop.example"]).check("shop", later)
        self.assertEqual(self.schedule.dead(later), [EPOCH])

    def test_wake(self) -> None:
        now = NOW
        for _ in range(20):
            self.turn(now)
            self.schedule.dead(now)
            following = self.schedule.wake(now)
            self.assertGreater(following, now)
            self.assertLessEqual(following - now, 24 * HOUR)
            between = following - 1
            self.assertIsNone(self.schedule.due(between))
            self.assertEqual(self.schedule.dead(between), [])
            now = following

    def test_hours_differ(self) -> None:
        self.assertGreater(len({keys.own_hour(f"gateway-{number}") for number in range(100)}), 12)

    def test_chacha_only_if_asked_for(self) -> None:
        self.assertEqual(KEY.config().aeads, (Aead.AES_128_GCM,))
        self.assertEqual(KEY.config(chacha=True).aeads, tuple(Aead))
        self.assertEqual(KEY.key_set("a", ["a"], chunked=False).media, (SINGLE.request,))
