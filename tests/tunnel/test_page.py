"""The page about the tunnel says what is so, and its numbers stay what they are."""

from __future__ import annotations

import json
import re

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.session import Tell
from layer8.crypto.hpke_context import Aead
from layer8.tunnel import admission, frames, jws, keys, limits, replay, wire
from layer8.tunnel.frames import Kind
from layer8.tunnel.gateway_session import Body, Call, GatewayExchange, Remember, Rules
from layer8.tunnel.keys import GatewayKey, KeySet, Schedule
from layer8.tunnel.replay import Verdict, Window
from layer8.tunnel.target import Allowed
from tests.names import ROOT, find_test
from tests.test_docs import rows
from tests.tunnel import frozen


class Page(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "docs" / "tunnel-wire.md").read_text()

    def section(self, title: str) -> list[list[str]]:
        return rows(self.text.partition(f"\n## {title}\n")[2].partition("\n## ")[0])[1:]

    def test_limits(self) -> None:
        listed = {row[0].strip("`"): float(row[1].removesuffix(" s")) for row in self.section("Limits")}
        for name, value in listed.items():
            self.assertEqual(value, getattr(limits, name), name)
        named = {name for name in vars(limits) if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)}
        # What is said of them is said to those who run the services.
        self.assertEqual(named - listed.keys(), {"BUFFER", "KEYS_REFRESH", "KEYS_HURRY", "SOCKET_SESSIONS"})

    def test_bad_input_names_tests_that_are_there(self) -> None:
        listed = self.section("Bad input")
        self.assertGreaterEqual(len(listed), 25)
        for row in listed:
            names = re.findall(r"`((?:\w+\.)*test_\w+(?:\.\w+)*)`", row[-1])
            self.assertTrue(names, row[0])
            for name in names:
                self.assertTrue(find_test(f"tests.{name}"), f"{row[0]}: there is no tests.{name}")

    def test_numbers_of_the_text(self) -> None:
        flat = " ".join(self.text.split())
        for said in (
            f"at most {limits.KEYS_MAX:,} bytes",
            f"the first {jws.KID} letters",
            f"{keys.FRESH // 3600} hours before `not_after`",
            f"[`not_before` - {keys.EARLY}, `not_after`]",
            f"An id comes back after {keys.IDS} hours",
            f"The first {replay.MARK} bytes of SHA-256(`enc`)",
            f"at most {limits.REPLAY_WINDOW} s off",
            f"17 to {limits.CHUNK_SEALED:,}",
            f"{wire.nonce_size(Aead.AES_128_GCM)} with AES-128-GCM, {wire.nonce_size(Aead.CHACHA20_POLY1305)} with Cha",
            f"{wire.PROBLEM_MOST} bytes are read",
            f"{admission.IN_FLIGHT_NETWORK} exchanges at once",
            f"{admission.RATE:.0f} a second and {admission.BURST:.0f} after a pause",
            f"one gateway {admission.IN_FLIGHT} at once",
            f"with at most {frames.CONTROL} bytes of data",
            f"| 1, page | {frames.FIRST_SIZE} |",
            f"| 2, gateway | {frames.SECOND_SIZE} |",
            ", ".join(f"{size:,}" if size > 9999 else str(size) for size in frames.SIZES[:-1]) + " or 65,519 bytes",
            ", ".join(f"{kind.value} {kind.name.lower()}" for kind in list(Kind)[:3]),
            wire.OHTTP_KEY,
            wire.DATE,
            wire.NOT_FORWARDED,
        ):
            self.assertIn(said, flat)
        for one in (wire.SINGLE, wire.CHUNKED):
            for said in (one.request, one.response, one.info.decode(), one.exported.decode()):
                self.assertIn(f"`{said}`", flat)
        self.assertEqual((keys.OFFERED, keys.CACHED, keys.OPENED), tuple(hours * 3600 for hours in (24, 48, 72)))
        self.assertEqual([step for size in (1, 513, 65_536) for step in [wire.padded(size)]], [512, 1024, 65_536])


class FrozenTests(SynchronousTestCase):
    """`tests/vectors/tunnel-1.json` is what others check against: it does not change."""

    def setUp(self) -> None:
        self.kept = json.loads((ROOT / "tests" / "vectors" / "tunnel-1.json").read_text())

    def test_they_are_made_again(self) -> None:
        self.assertEqual(json.loads(json.dumps(frozen.vector())), self.kept)

    def test_the_set_is_good(self) -> None:
        told = self.kept["keys"]
        found = KeySet.read(told["set"].encode(), [keys.read_pin(told["pin"])])
        found.check("shop", frozen.NOW)
        self.assertEqual(found.config.document().hex(), told["document"])

    def test_a_gateway_takes_the_requests(self) -> None:
        schedule = Schedule(0)
        told = self.kept["keys"]
        schedule.add(GatewayKey.load(told["epoch"], bytes.fromhex(told["private"] + told["noise_private"])))
        rules = Rules(Allowed.of(["shop.example"]), schedule.find, Window())
        for name in ("chunked", "one_piece"):
            row = self.kept[name]
            gateway = GatewayExchange(wire.MEDIA[row["type"]], rules, bytes(32), 0.0, frozen.NOW)
            gateway.received(bytes.fromhex(row["request"]), 0.0)
            gateway.ended(0.0)
            effects = [effect.what for effect in gateway.effects() if isinstance(effect, Tell)]
            self.assertEqual([type(one) for one in effects], [Remember])
            gateway.remembered(Verdict.NEW, 0.0)
            effects = [effect.what for effect in gateway.effects() if isinstance(effect, Tell)]
            assert isinstance(effects[0], Call)
            self.assertEqual((effects[0].target.path, effects[0].length), ("/notes", len(frozen.CONTENT)))
            self.assertEqual(effects[1], Body(frozen.CONTENT))
