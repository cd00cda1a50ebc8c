"""The onion layer's reference: its parts against printed numbers, CGO against Tor's, and the file that it makes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.crypto.onion_reference import CGO, OURS, State, aes, aes_inverse, gmac, parted, polyval, xor
from tests.crypto.onion_vectors import FILE, made
from tests.names import ROOT

TOR: dict[str, Any] = json.loads((ROOT / "tests" / "vectors" / "cgo-tor.json").read_text())


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def cgo(state: dict[str, str]) -> State:
    return State(CGO, parted(CGO, unhex(state["keys"] + state["nonce"])), unhex(state["chain"]))


class PartTests(SynchronousTestCase):
    def test_polyval_as_printed(self) -> None:
        """RFC 8452, appendix A."""
        blocks = unhex("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362")
        self.assertEqual(
            polyval(unhex("25629347589242761d31f826ba4b757b"), blocks).hex(), "f7a3b47b846119fae5b7866cf5e5b77e"
        )

    @given(st.binary(min_size=32, max_size=32), st.binary(max_size=80))
    def test_gmac_is_the_library_s(self, key: bytes, data: bytes) -> None:
        self.assertEqual(gmac(key, data), AESGCM(key).encrypt(bytes(12), b"", data))


class TorTests(SynchronousTestCase):
    """The reference with Tor's parameters gives the numbers that Tor tests its own CGO with."""

    def same(self, result: bytes, expected: str) -> None:
        if expected.startswith("sha256:"):
            expected = expected.removeprefix("sha256:")
            result = hashlib.sha256(result).digest()
        self.assertEqual(result.hex(), expected)

    def after(self, state: State, expected: dict[str, str]) -> None:
        self.assertEqual(b"".join(state.keys).hex(), expected["keys"] + expected["nonce"])
        self.assertEqual(state.chain.hex(), expected["chain"])

    def test_there_are_numbers_for_every_part(self) -> None:
        counts = {name: len(rows) for name, rows in TOR.items() if name != "about"}
        self.assertEqual(
            counts,
            {"et": 2, "prf": 4, "uiv": 2, "update": 4, "relay": 2, "relay_originate": 1, "client_originate": 2},
        )

    def test_tweaked_block(self) -> None:
        for row in TOR["et"]:
            keys = unhex(row["keys"])
            mask = polyval(keys[16:], unhex(row["tweak"]))
            cipher = aes if row["encrypt"] else aes_inverse
            self.same(xor(cipher(keys[:16], xor(unhex(row["in"]), mask)), mask), row["out"])

    def test_stream(self) -> None:
        for row in TOR["prf"]:
            keys = unhex(row["keys"])
            state = State(CGO, [b"", b"", keys[:16], keys[16:], b""])
            self.same(state.keystream(unhex(row["in"]), CGO.offset * row["t"], row["length"]), row["out"])

    def test_wide_block(self) -> None:
        for row in TOR["uiv"]:
            tweak = unhex(row["tweak"])
            state = State(CGO, parted(CGO, unhex(row["keys"]) + bytes(16)), tweak[:16])
            self.same((state.enc if row["encrypt"] else state.dec)(tweak[16], unhex(row["in"])), row["out"])

    def test_update(self) -> None:
        for row in TOR["update"]:
            state = State(CGO, parted(CGO, unhex(row["keys"] + row["nonce"])))
            state.update(unhex(row["nonce"]))
            self.same(b"".join(state.keys), row["next"])

    def test_relay(self) -> None:
        for row in TOR["relay"]:
            state, cmd, body = cgo(row["state"]), unhex(row["cmd"])[0], unhex(row["in"])
            self.same(state.enc(cmd, body) if row["inbound"] else state.relay_forward(cmd, body)[0], row["out"])
            self.after(state, row["after"])

    def test_relay_s_own(self) -> None:
        for row in TOR["relay_originate"]:
            state = cgo(row["state"])
            self.same(state.relay_originate(unhex(row["cmd"])[0], unhex(row["message"]))[0], row["out"])
            self.after(state, row["after"])

    def test_client(self) -> None:
        for row in TOR["client_originate"]:
            states, cmd = [cgo(state) for state in row["states"]], unhex(row["cmd"])[0]
            body, _ = states[row["hop"] - 1].client_originate(cmd, unhex(row["message"]))
            for state in reversed(states[: row["hop"] - 1]):
                body = state.dec(cmd, body)
            self.same(body, row["out"])
            for state, expected in zip(states, row["after"], strict=True):
                self.after(state, expected)


class FrozenTests(SynchronousTestCase):
    def test_our_parameters(self) -> None:
        self.assertEqual((sum(OURS.lengths) + 16, OURS.offset, CGO.offset), (144, 128, 31))

    def test_the_reference_makes_the_file(self) -> None:
        self.assertEqual(made(), json.loads(FILE.read_text()))
