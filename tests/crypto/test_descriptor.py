"""Descriptors: the form, the signature, the rules, and every way to break them."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.errors import ConfigError, LimitExceeded, RemoteProtocolError
from layer8.core.network import Network
from layer8.crypto import descriptor
from layer8.crypto.descriptor import CLOCK, DESC_LIFE, DESC_MAX, LISTED, Descriptor, Role, find_work, make, pack, unpack
from layer8.crypto.keys import NodeKey, id_text

NOW = 1_800_000_000.0
KEY = NodeKey.from_seed(bytes(range(32)))
TEST = Network("test")
MAIN = Network("main")


def made(network: Network = TEST, **changed: Any) -> Descriptor:
    """Make a descriptor as a small relay has it."""
    told: dict[str, Any] = {
        "onion_key": b"B" * 32,
        "endpoints": ("tcp:127.0.0.1:9000",),
        "now": NOW,
        "serial": 7,
    } | changed
    return make(KEY, network, **told)


def signed(**changed: object) -> bytes:
    """Sign whatever: the fields of `made` with some changed, or left out where None is given."""
    told: dict[bytes, Any] = dict(bencode.decode(made().raw[64:]))  # type: ignore[arg-type]
    told.update((name.encode(), value) for name, value in changed.items())
    text = bencode.encode({name: value for name, value in told.items() if value is not None})
    return KEY.sign(b"layer8/1 node\0" + text) + text


class NetworkTests(SynchronousTestCase):
    def test_networks(self) -> None:
        self.assertNotEqual(MAIN.mark, TEST.mark)
        self.assertEqual(
            [Network(name).ruled for name in ("main", "demo-1", "test", "testing", "a-test", "Demo")],
            [True, False, False, False, True, True],
        )


class MakeTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        gate = bytes(range(1, 33))
        one = made(
            endpoints=("tcp:192.0.2.1:9000", r"tcp:2001\:db8\:\:1:9000:link=noise", "ws:relay.example:443"),
            via=(gate,),
            roles=Role.RELAY | Role.EXIT | 1 << 20,
            family=(b"F" * 32, b"A" * 32),
            exits=b"80,443",
            versions=(1, 2),
        )
        again = Descriptor.read(one.raw)
        self.assertEqual(again, one)
        for name in ("identity", "onion_key", "endpoints", "via", "roles", "family", "network", "exits", "versions"):
            self.assertEqual(getattr(again, name), getattr(one, name))
        self.assertEqual((again.identity, again.via, again.serial), (KEY.node_id, (gate,), 7))
        self.assertEqual((again.made, again.expires), (int(NOW), int(NOW) + DESC_LIFE))
        self.assertEqual(again.addresses, ("192.0.2.1", "2001:db8::1"))
        self.assertEqual(again.near, {"192.0.2.0/24", "2001:db8::/48"})
        self.assertEqual(again.far, {"192.0.0.0/16", "2001:db8::/32"})
        self.assertEqual([(one.kind, one.port) for one in again.places], [("tcp", 9000), ("tcp", 9000), ("ws", 443)])
        self.assertNotIn(repr(one.raw)[2:20], repr(one))
        again.check(TEST, NOW)

    def test_as_it_is_written(self) -> None:
        one = made()
        self.assertEqual(
            one.raw[64:],
            b"d1:al18:tcp:127.0.0.1:9000e1:b32:" + b"B" * 32 + b"1:ei1800064800e1:fi1e1:i32:" + KEY.node_id
            + b"1:n8:" + TEST.mark + b"1:si7e1:ti1800000000e1:vli1eee",
        )  # fmt: skip

    def test_where_it_is_counted_without_an_address(self) -> None:
        name = made(endpoints=("ws:relay.example:443",))
        self.assertEqual((name.near, name.far), ({"relay.example"}, {"relay.example"}))
        dark = made(endpoints=(), via=(b"G" * 32,))
        self.assertEqual(dark.far, {id_text(b"G" * 32)})
        self.assertEqual(made(endpoints=()).near, {KEY.text})

    def test_family_is_mutual(self) -> None:
        other = NodeKey.from_seed(b"o" * 32)

        def of(key: NodeKey, *family: bytes) -> Descriptor:
            return make(key, TEST, onion_key=bytes(32), endpoints=(), now=NOW, serial=1, family=family)

        self.assertTrue(of(KEY, other.node_id).related(of(other, KEY.node_id)))
        self.assertFalse(of(KEY, other.node_id).related(of(other)))
        self.assertFalse(of(KEY).related(of(other, KEY.node_id)))

    def test_what_would_be_refused_is_not_made(self) -> None:
        full = tuple(f"tcp:{'n' * 116}{number}:9000" for number in range(8))
        for changed in (
            {"endpoints": full},  # more than DESC_MAX
            {"endpoints": (*full[:1], "tcp:" + "n" * 130)},
            {"endpoints": tuple(f"tcp:192.0.2.{number}:1" for number in range(9))},
            {"endpoints": ("tcp:192.0.2.1:1",) * 2},
            {"family": tuple(bytes((number,)) * 32 for number in range(17))},
            {"family": (b"short",)},
            {"exits": b"1" * 257},
            {"versions": (0,)},
            {"serial": -1},
            {"life": DESC_LIFE + 1},
            {"life": 0},
            {"onion_key": b"short"},
        ):
            with self.assertRaises(ConfigError, msg=str(changed)):
                made(**changed)

    def test_as_much_as_there_may_be(self) -> None:
        one = made(family=tuple(bytes((number,)) * 32 for number in range(16)), exits=b"1" * 150)
        self.assertLess(len(one.raw), DESC_MAX)


class ReadTests(SynchronousTestCase):
    """Section 13: oversized, non-canonical, expired, wrong network, bad signature, no work."""

    def refused(self, raw: bytes) -> None:
        with self.assertRaises(RemoteProtocolError):
            Descriptor.read(raw)

    def test_oversized(self) -> None:
        with self.assertRaises(LimitExceeded):
            Descriptor.read(signed(x=b"x" * DESC_MAX))

    def test_what_later_versions_say_is_kept(self) -> None:
        raw = signed(z=[1, b"more"])
        self.assertEqual(Descriptor.read(raw).raw, raw)
        self.refused(signed(**{f"z{number}": 1 for number in range(40)}))

    def test_not_canonical(self) -> None:
        text = made().raw[64:].replace(b"1:si7e", b"1:si07e")
        self.refused(KEY.sign(b"layer8/1 node\0" + text) + text)
        self.refused(KEY.sign(b"layer8/1 node\0le") + b"le")
        self.refused(made().raw + b"e")

    def test_every_bit_is_signed(self) -> None:
        raw = made().raw
        for at in range(0, len(raw), 7):
            flipped = bytearray(raw)
            flipped[at] ^= 1 << at % 8
            self.refused(bytes(flipped))
        other = NodeKey.from_seed(b"o" * 32)
        self.refused(other.sign(b"layer8/1 node\0" + raw[64:]) + raw[64:])
        self.refused(KEY.sign(raw[64:]) + raw[64:])  # without what it is signed as

    def test_every_field(self) -> None:
        wrong: tuple[dict[str, object], ...] = (
            {"a": None}, {"a": b""}, {"a": [1]}, {"a": [b""]}, {"a": [b"\xff"]}, {"a": [b"x" * 129]},
            {"a": [b"tcp:192.0.2.1:%d" % number for number in range(9)]}, {"a": [b"via:short"]},
            {"a": [b"via:" + KEY.text.upper().encode()]}, {"a": [b":a"]}, {"a": [b"tcp:a\\"]}, {"a": [b"tcp:a b"]},
            {"b": None}, {"b": b"x" * 31}, {"b": 1}, {"e": None}, {"e": b""}, {"e": -1}, {"e": int(NOW)},
            {"e": int(NOW) + DESC_LIFE + 1}, {"f": None}, {"f": -1}, {"f": b"1"}, {"fam": []}, {"fam": [b"x"]},
            {"fam": [b"F" * 32, b"F" * 32]}, {"fam": 1}, {"i": None}, {"i": b"x" * 33}, {"n": None}, {"n": b"x" * 7},
            {"p": b""}, {"p": 1}, {"p": b"x" * 257}, {"s": None}, {"s": -1}, {"s": 2**63}, {"t": None}, {"v": None},
            {"v": [b"1"]}, {"v": [0]}, {"v": [65536]}, {"v": list(range(1, 10))}, {"w": b""}, {"w": b"\1" + b"x" * 15},
            {"w": b"\2" + b"x" * 16}, {"w": 1},
        )  # fmt: skip
        for changed in wrong:
            with self.assertRaises(RemoteProtocolError, msg=str(changed)):
                Descriptor.read(signed(**changed))

    def test_time_and_network(self) -> None:
        one = made()
        for network, now in (
            (MAIN, NOW),
            (Network("test-other"), NOW),
            (TEST, NOW + DESC_LIFE),
            (TEST, NOW - CLOCK - 1),
        ):
            with self.assertRaises(RemoteProtocolError):
                one.check(network, now)
        one.check(TEST, NOW + DESC_LIFE - 1)
        one.check(TEST, NOW - CLOCK)

    @given(st.binary(max_size=1000))
    def test_any_noise(self, raw: bytes) -> None:
        with self.assertRaises(RemoteProtocolError):
            Descriptor.read(raw)

    @given(
        st.dictionaries(
            st.sampled_from([b"a", b"b", b"e", b"f", b"fam", b"i", b"n", b"p", b"s", b"t", b"v", b"w"]),
            st.integers(-1, 2**64) | st.binary(max_size=33) | st.lists(st.binary(max_size=33) | st.integers(0, 70_000)),
        )
    )
    def test_noise_in_form(self, changed: dict[bytes, object]) -> None:
        with contextlib.suppress(RemoteProtocolError):
            Descriptor.read(signed(**{name.decode(): value for name, value in changed.items()}))


class WorkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(descriptor, "EFFORT", 50)

    def worked(self, now: float = NOW) -> bytes:
        """Find the work of a day."""
        work, start = None, bytes(16)
        while work is None:
            work, start = find_work(KEY.node_id, now, start, 16)
        return work

    def test_work_is_needed_where_there_are_rules(self) -> None:
        there: dict[str, Any] = {"endpoints": ("tcp:192.0.2.1:9000",)}
        with self.assertRaises(ConfigError):
            made(MAIN, **there)
        work = self.worked()
        made(MAIN, work=work, **there).check(MAIN, NOW)
        with self.assertRaises(ConfigError):
            made(MAIN, work=self.worked(NOW + 86_400), **there)  # another day's
        with self.assertRaises(ConfigError):
            make(NodeKey.make(), MAIN, onion_key=bytes(32), now=NOW, serial=1, work=work, **there)  # another one's

    def test_no_address_of_the_reader_s_own(self) -> None:
        for there in ("tcp:127.0.0.1:9000", r"tcp:\:\:1:9000", r"tcp:\:\:ffff\:127.0.0.1:9000", "tcp:0.0.0.0:9000"):
            with self.assertRaises(ConfigError, msg=there):
                made(MAIN, work=self.worked(), endpoints=(there,))


class ListTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        raws = [b"one", b"", b"three" * 100]
        self.assertEqual(unpack(pack(raws)), raws)
        self.assertEqual(unpack(b""), [])

    def test_never_more_than_25(self) -> None:
        self.assertEqual(len(unpack(pack([b"x"] * LISTED))), 25)
        with self.assertRaises(ValueError):
            pack([b"x"] * (LISTED + 1))
        with self.assertRaises(LimitExceeded):
            unpack(b"\0\1x" * (LISTED + 1))

    @given(st.binary(max_size=80))
    def test_any_noise(self, data: bytes) -> None:
        try:
            raws = unpack(data)
        except RemoteProtocolError:
            return
        self.assertEqual(pack(raws), data)
