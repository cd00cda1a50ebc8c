"""The gateway without a network: keys over days, in the hands of several workers, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from attrs import fields
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, Unavailable
from layer8.crypto.keyfile import write_private
from layer8.crypto.keys import NodeKey
from layer8.tunnel import wire
from layer8.tunnel.gateway import UPKEEP, Gateway, Outcome, pad_event
from layer8.tunnel.gateway_session import Remember, Reply
from layer8.tunnel.keys import CACHED, EARLY, FRESH, HOUR, OPENED, KeySet, own_hour, pin_text
from layer8.tunnel.limits import SOCKET_SESSIONS
from layer8.tunnel.replay import MARK, Verdict
from layer8.tunnel.settings import Settings, read_bearers
from layer8.tunnel.signed import sign_ahead
from tests.names import ROOT

WALL = 1_800_000_042.0
IDENTITY = NodeKey.make()


class Hands:
    """A clock by hand."""

    now = WALL

    def __call__(self) -> float:
        return self.now


def settings(**more: Any) -> Settings:
    more.setdefault("identity", IDENTITY)
    return Settings(gateway="shop", authorities=["shop.example"], **more)


class KeyTests(SynchronousTestCase):
    """Section 10 of the design, on a clock by hand."""

    def setUp(self) -> None:
        self.clock = Hands()
        self.folder = Path(self.mktemp())

    def worker(self, **more: Any) -> Gateway:
        gateway = Gateway.open(settings(state=self.folder, **more), wall=self.clock)
        self.addCleanup(gateway.close)
        return gateway

    def served(self, gateway: Gateway, identity: NodeKey = IDENTITY) -> KeySet:
        found = KeySet.read(gateway.keys_document(), [identity.node_id])
        found.check("shop", self.clock.now)
        self.assertEqual(gateway.ohttp_keys(), found.config.document())
        return found

    def test_seventy_two_hours(self) -> None:
        """Three workers, one upkeep a minute each, four days: pages with any set that is good are always served."""
        workers = [self.worker() for _ in range(3)]
        sets: dict[int, KeySet] = {}
        cached = self.served(workers[0])
        gone: set[int] = set()
        for step in range(96 * 60):
            self.clock.now = WALL + step * UPKEEP
            worker = workers[step % 3]
            self.assertTrue(worker.due() or step < 3)
            worker.upkeep()
            told = self.served(worker)
            sets.setdefault(told.epoch, told)
            if cached.stale(self.clock.now):
                cached = told
            for found in sets.values():
                for one in workers:
                    key_id = found.config.key_id
                    if one.lacks(key_id):
                        one.reload()
                    known = one.rules.find(key_id, self.clock.now)
                    if self.clock.now < found.not_after:
                        assert known is not None and known.config() == found.config, (step, found.epoch)
                    elif self.clock.now >= found.epoch * HOUR + OPENED:
                        self.assertIsNone(known)
                        gone.add(found.epoch)
            self.assertLessEqual(self.clock.now, cached.not_after)
        self.assertGreaterEqual(len(sets), 5)
        self.assertGreaterEqual(len(gone), 1)
        self.assertEqual(CACHED - FRESH, 36 * HOUR)
        for epoch in list(sets)[1:]:
            self.assertEqual(epoch % 24, own_hour("shop"), "once a day, at the gateway's own hour")
        for path in self.folder.iterdir():
            for found in sets.values():
                self.assertNotIn(found.config.public, path.read_bytes(), "only private halves are kept")

    def test_deleted_keys_are_nowhere(self) -> None:
        gateway = self.worker()
        first = gateway.rules.find(gateway.keys()[0].key_id, WALL)
        assert first is not None
        self.clock.now += OPENED
        gateway.upkeep()
        for path in self.folder.iterdir():
            data = path.read_bytes()
            self.assertNotIn(first.ohttp.dump(), data)
            self.assertNotIn(first.noise.dump(), data)

    def test_emergency(self) -> None:
        one, two = self.worker(), self.worker()
        old = self.served(one)
        with self.assertRaises(Unavailable):
            one.rotate()
        self.clock.now += HOUR
        epoch = one.rotate()
        self.assertEqual(self.served(one).epoch, epoch)
        self.clock.now += 2
        self.assertTrue(two.lacks(self.served(one).config.key_id))
        two.reload()
        self.assertEqual(self.served(two).epoch, epoch)
        self.assertIsNotNone(two.rules.find(old.config.key_id, self.clock.now))
        self.clock.now += HOUR
        one.rotate(drop=True)
        two.upkeep()
        for worker in (one, two):
            self.assertIsNone(worker.rules.find(old.config.key_id, self.clock.now))
            self.assertEqual(len(worker.keys()), 1)

    def test_no_look_at_the_disk_for_each_unknown_key(self) -> None:
        gateway = self.worker()
        unknown = (gateway.keys()[0].key_id + 7) % 256
        self.assertTrue(gateway.lacks(unknown))
        gateway.reload()
        self.assertFalse(gateway.lacks(unknown), "it has just looked")
        self.assertTrue(gateway.lacks((unknown + 1) % 256), "nobody keeps us from looking for another one")
        self.clock.now += 1.5
        self.assertTrue(gateway.lacks(unknown))

    def test_restart_keeps_keys_and_marks(self) -> None:
        gateway = Gateway.open(settings(state=self.folder), wall=self.clock)
        document, asked = gateway.keys_document(), Remember(bytes(MARK), int(WALL), 500_000)
        self.assertIs(gateway.remember(asked), Verdict.NEW)
        gateway.close()
        gateway = self.worker()
        self.assertEqual(gateway.keys_document(), document)
        self.assertIs(gateway.remember(asked), Verdict.REPEAT)
        self.assertEqual((gateway.counts()["repeat"], gateway.counts()["opened"]), (1, 0))

    def test_identity_is_made_once(self) -> None:
        first = Gateway.open(Settings(gateway="shop", authorities="shop.example", state=self.folder))
        second = Gateway.open(Settings(gateway="shop", authorities="shop.example", state=self.folder))
        self.assertEqual(first.pin, second.pin)
        self.assertEqual((self.folder / "identity.pem").stat().st_mode & 0o777, 0o600)
        for gateway in (first, second):
            gateway.close()

    def test_identity_elsewhere(self) -> None:
        """Sets for 30 days: the gateway runs them down without the identity, then has nothing to offer."""
        told = Settings(gateway="shop", authorities=["shop.example"], next_identity=pin_text(bytes(range(32))))
        elsewhere, path = NodeKey.make(), self.folder / "signed"
        write_private(path, sign_ahead(told, elsewhere, WALL, 30))
        gateway = self.worker(identity=None, signed_file=path, next_identity=told.next_identity)
        with self.assertRaises(Unavailable):
            gateway.rotate()
        with self.assertRaises(Unavailable):
            _ = gateway.pin
        epochs = []
        for day in range(30):
            self.clock.now = WALL + day * 24 * HOUR
            gateway.upkeep()
            found = self.served(gateway, elsewhere)
            self.assertEqual(found.next, bytes(range(32)))
            epochs.append(found.epoch)
            self.assertEqual(len(gateway.keys()), min(day + 1, 3))
        self.assertEqual(len(set(epochs)), 30)
        assert gateway.ends is not None
        self.clock.now = gateway.ends
        gateway.upkeep()
        with self.assertRaises(Unavailable):
            gateway.keys_document()
        write_private(path, sign_ahead(told, elsewhere, self.clock.now, 2))
        gateway.upkeep()
        self.served(gateway, elsewhere)

    def test_identity_goes_elsewhere(self) -> None:
        self.worker().close()
        elsewhere, path = NodeKey.make(), self.folder / "signed"
        write_private(path, sign_ahead(settings(), elsewhere, WALL, 3))
        gateway = self.worker(identity=None, signed_file=path)
        self.clock.now += 24 * HOUR
        gateway.upkeep()
        self.served(gateway, elsewhere)

    def test_signed_file_of_others(self) -> None:
        path = self.folder / "signed"
        for data, why in (
            (b"", "empty"),
            (b"{}\n", "damaged"),
            (b"\xff\n", "damaged"),
            (sign_ahead(Settings(gateway="other", authorities="a.example"), IDENTITY, WALL, 1), "another gateway"),
            (sign_ahead(settings(chacha=True), IDENTITY, WALL, 1), "other settings"),
        ):
            write_private(path, data)
            with self.assertRaisesRegex(ConfigError, why):
                self.worker(identity=None, signed_file=path)
        for days in (0, 31):
            with self.assertRaises(ConfigError):
                sign_ahead(settings(), IDENTITY, WALL, days)

    def test_key_that_is_early(self) -> None:
        gateway = self.worker()
        key = gateway.keys()[0]
        self.assertIsNotNone(gateway.rules.find(key.key_id, key.made - EARLY))


class GatewayTests(SynchronousTestCase):
    """What it takes and refuses."""

    def setUp(self) -> None:
        self.gateway = Gateway.open(settings(), wall=Hands())

    def test_media(self) -> None:
        for kind in ("message/ohttp-chunked-req", b"Message/OHTTP-req ; x=y"):
            self.assertIsNotNone(self.gateway.exchange(kind, 0.0))
        for other in (None, "", b"text/plain", "message/ohttp-res", "message/ohttp-chunked-req2"):
            self.assertIsNone(self.gateway.exchange(other, 0.0))
        plain = Gateway.open(settings(chunked=False))
        self.assertIsNone(plain.exchange("message/ohttp-chunked-req", 0.0))
        self.assertEqual(KeySet.read(plain.keys_document(), [IDENTITY.node_id]).media, ("message/ohttp-req",))

    def test_memory_is_for_one_process(self) -> None:
        child = os.fork()
        if not child:
            told = 1
            try:
                self.gateway.exchange("message/ohttp-req", 0.0)
            except ConfigError:
                told = 0
            finally:
                os._exit(told)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertIsNotNone(self.gateway.exchange("message/ohttp-req", 0.0))

    def test_chacha_is_offered_where_it_is_asked_for(self) -> None:
        self.assertEqual(len(self.gateway.ohttp_keys()), 43)
        self.assertEqual(len(Gateway.open(settings(chacha=True)).ohttp_keys()), 47)

    def test_sockets_are_limited(self) -> None:
        for _ in range(SOCKET_SESSIONS):
            self.assertIsNotNone(self.gateway.socket(0.0))
        self.assertIsNone(self.gateway.socket(0.0))
        self.gateway.socket_over()
        self.assertIsNotNone(self.gateway.socket(0.0))
        self.assertEqual(self.gateway.counts()["socket_full"], 1)

    def test_bearer(self) -> None:
        path = Path(self.mktemp())
        write_private(path, b"# relays\n" + b"a" * 32 + b"\n" + b"b" * 32 + b"\n")
        gateway = Gateway.open(settings(bearer_file=path))
        for text in ("Bearer " + "a" * 32, b"bearer " + b"b" * 32):
            self.assertTrue(gateway.admits(text))
        for other in (None, "", "Bearer", "Bearer " + "c" * 32, "Basic " + "a" * 32, "a" * 32):
            self.assertFalse(gateway.admits(other))
        self.assertTrue(self.gateway.admits(None))
        for wrong in ("", "short", "a" * 32 + " b"):
            with self.assertRaises(ConfigError):
                read_bearers(wrong)

    def test_refusals_are_counted(self) -> None:
        self.assertEqual(self.gateway.refused(Reply(422))[0], 422)
        status, kind, body = self.gateway.refused(Reply(400, wire.OHTTP_KEY))
        self.assertEqual((status, kind, wire.read_problem(body)), (400, wire.PROBLEM_TYPE, wire.OHTTP_KEY))
        self.gateway.count(Outcome.BROKEN, 3)
        counts = self.gateway.counts()
        self.assertEqual((counts["refused"], counts["unknown_key"], counts["broken"]), (1, 1, 3))

    def test_padded_events(self) -> None:
        gateway = Gateway.open(settings(pad_events=True))
        self.assertTrue(gateway.event_padding(((b"Content-Type", b"text/event-stream; charset=utf-8"),)))
        self.assertFalse(gateway.event_padding(((b"content-type", b"text/plain"),)))
        self.assertFalse(self.gateway.event_padding(((b"content-type", b"text/event-stream"),)))
        for size in (1, 100, 505, 508, 600, 70_000):
            event = b"data: " + b"x" * size + b"\n\n"
            filled = pad_event(event)
            self.assertEqual(len(filled), wire.padded(len(event) + 2))
            self.assertTrue(filled.startswith(event))
            self.assertRegex(filled[len(event) :], rb"\A:0*\n\Z")
        self.assertEqual(pad_event(b"data: half"), b"data: half")

    def test_text_forms_show_no_secret(self) -> None:
        told = settings(database="password=hidden")
        self.assertNotIn("hidden", repr(told))
        secret = self.gateway.rules.find(self.gateway.keys()[0].key_id, WALL)
        assert secret is not None
        self.assertNotIn(secret.ohttp.dump().hex(), repr(secret) + repr(self.gateway.rules))


class SettingsTests(SynchronousTestCase):
    """What cannot be is refused before anything is opened."""

    def test_refused(self) -> None:
        for more, why in (
            ({"gateway": "Shop"}, "gateway id"),
            ({"authorities": []}, "authorities"),
            ({"authorities": ["https://a/b"]}, "no authority"),
            ({"require": ["api"]}, "no path"),
            ({"state": "a", "database_file": "b"}, "exclude"),
            ({"database": "a", "database_file": "b"}, "exclude"),
            ({"database": "a"}, "identity_file"),
            ({"signed_file": "a", "identity_file": "b"}, "without its identity"),
            ({"next_identity": "short"}, "43 letters"),
        ):
            with self.assertRaisesRegex(ConfigError, why):
                Settings(**({"gateway": "shop", "authorities": ["shop.example"]} | more))  # type: ignore[arg-type]

    def test_guarded_paths(self) -> None:
        guarded = Settings(gateway="shop", authorities="shop.example", require=["/api", "/Pay/now/"])
        for path in (
            *("/api", "/api/", "/api/x", "//api", "/./api", "/x/../api", "/%61pi", "/%2561pi", "/API", "/api;x=y/z"),
            *("\\api", "/x\\..\\api", "/x/%2e%2e/api", "/api?x", "/pay/now", "/pay//now/x", "/;x/api", "/x;y/..;/api"),
        ):
            self.assertTrue(guarded.guards(path), path)
        for path in ("/", "/apis", "/x/api", "/pay", "/pay/nowhere", "/?x=/api"):
            self.assertFalse(guarded.guards(path), path)
        everything = Settings(gateway="shop", authorities="shop.example", require="/")
        self.assertTrue(everything.guards("/") and everything.guards("/anything"))
        self.assertFalse(Settings(gateway="shop", authorities="shop.example").guards("/"))

    def test_every_setting_is_in_the_manual(self) -> None:
        text = (ROOT / "docs" / "tunnel-gateway.md").read_text().partition("\n## Settings\n")[2].partition("\n## ")[0]
        for one in fields(Settings):
            if one.init:
                self.assertIn(f"`{one.name}`", text)
