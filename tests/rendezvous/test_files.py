"""Files of services and magnet links: round trips, and everything that is refused."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.errors import ConfigError, LimitExceeded, RemoteProtocolError
from layer8.crypto.keys import id_text
from layer8.rendezvous.address import WrongName, address_text
from layer8.rendezvous.files import FILE_MAX, PORTS, TEXT, TRACKERS, Magnet, ServiceFile, Tracker
from tests.descriptors import NOW, key, node

SERVICE = key(1)
ADDRESS = address_text(SERVICE.node_id)
TRACKER = Tracker(node(7), "tcp:192.0.2.7:9000")


def made(**changed: Any) -> ServiceFile:
    told: dict[str, Any] = {
        "trackers": (TRACKER,),
        "ports": {80: "http", 22: "ssh"},
        "title": "A blog \u00fcber all",
        "text": "Two\nlines",
    } | changed
    name = told.pop("name", "blog")
    created, expires = told.pop("created", int(NOW)), told.pop("expires", int(NOW) + 3600)
    return ServiceFile.make(SERVICE, name, created, expires, **told)


def signed(**changed: Any) -> bytes:
    """Sign whatever: the fields of `made` with some changed, or left out where None is given."""
    told: dict[bytes, Any] = dict(bencode.decode(made().raw[64:]))  # type: ignore[arg-type]
    told.update((name.encode(), value) for name, value in changed.items())
    text = bencode.encode({name: value for name, value in told.items() if value is not None})
    return SERVICE.sign(b"layer8/1 file\0" + text) + text


class FileTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        one = made()
        again = ServiceFile.read(one.raw)
        self.assertEqual((again, again.raw), (one, one.raw))
        self.assertEqual((again.key, again.name, again.title), (SERVICE.node_id, "blog", "A blog \u00fcber all"))
        self.assertEqual((again.trackers, again.ports), ((TRACKER,), {80: "http", 22: "ssh"}))
        self.assertEqual(ServiceFile.read(signed(later=b"more")), one)
        bare = ServiceFile.make(SERVICE, "blog", 1, 2)
        self.assertEqual((bare.trackers, bare.ports, bare.title, bare.text), ((), {}, "", ""))

    def test_as_it_is_written(self) -> None:
        self.assertEqual(
            made(trackers=(), title="", text="", ports={80: "http"}).raw[64:],
            b"d7:createdi1800000000e7:expiresi1800003600e3:key32:" + SERVICE.node_id + b"4:name4:blog5:portsd2:80"
            b"4:httpee",
        )  # fmt: skip

    def test_every_byte_counts(self) -> None:
        raw = made().raw
        for at in range(0, len(raw), 3):
            wrong = bytearray(raw)
            wrong[at] ^= 1
            with self.assertRaises(RemoteProtocolError, msg=str(at)):
                ServiceFile.read(bytes(wrong))

    def test_bad_signature_is_said(self) -> None:
        body = made().raw[64:]
        for signature in (bytes(64), key(2).sign(b"layer8/1 file\0" + body), SERVICE.sign(body)):
            error = self.assertRaises(RemoteProtocolError, ServiceFile.read, signature + body)
            self.assertIn("wrong signature", str(error))

    def test_huge(self) -> None:
        error = self.assertRaises(LimitExceeded, ServiceFile.read, signed(later=b"x" * FILE_MAX))
        self.assertEqual(error.limit, "FILE_MAX")

    def test_expired(self) -> None:
        made().check(NOW)
        error = self.assertRaises(RemoteProtocolError, made().check, NOW + 3600)
        self.assertIn("expired", str(error))

    def test_what_is_refused(self) -> None:
        changed: dict[str, Any]
        for changed in (
            {"key": None}, {"key": b"k"}, {"key": (1).to_bytes(32, "little")}, {"name": None},
            {"name": b"B"}, {"name": 1},
            {"name": "bl\u043eg".encode()}, {"created": None}, {"created": -1}, {"expires": int(NOW)}, {"trackers": 1},
            {"trackers": [b"x"]}, {"trackers": [b"x@tcp:a:1"]}, {"trackers": [id_text(node(7)).encode() + b"@"]},
            {"trackers": [str(TRACKER).encode()] * (TRACKERS + 1)}, {"ports": []}, {"ports": {b"0": b"x"}},
            {"ports": {b"65536": b"x"}}, {"ports": {b"080": b"x"}}, {"ports": {b"http": b"x"}}, {"ports": {b"80": 1}},
            {"ports": {b"%d" % number: b"x" for number in range(1, PORTS + 2)}}, {"title": b"\xff"},
            {"title": b"t" * 257}, {"text": b"t" * (TEXT + 1)}, {"text": []},
            {str(number): 1 for number in range(40)},
        ):  # fmt: skip
            with self.assertRaises(RemoteProtocolError, msg=str(changed)):
                ServiceFile.read(signed(**changed))

    def test_what_would_be_refused_is_not_written(self) -> None:
        for changed in ({"name": "B"}, {"expires": 1}, {"trackers": (TRACKER,) * 17}, {"text": "t" * 5000}):
            with self.assertRaises(ConfigError, msg=str(changed)):
                made(**changed)

    @given(st.binary(max_size=400) | st.dictionaries(
        st.sampled_from(("key", "name", "created", "expires", "trackers", "ports", "title", "text", "x")),
        st.integers(-(2**62), 2**62) | st.binary() | st.lists(st.binary()) | st.dictionaries(st.binary(), st.binary()),
    ).map(lambda changed: signed(**changed)))  # fmt: skip
    def test_any_noise(self, data: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            ServiceFile.read(data)


class MagnetTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        link = str(made().magnet)
        self.assertEqual(link, f"magnet:?xt=urn:l8:{ADDRESS}&dn=blog&tr={id_text(node(7))}@tcp%3A192.0.2.7%3A9000")
        self.assertEqual(Magnet.parse(link), Magnet(SERVICE.node_id, "blog", (TRACKER,)))

    def test_other_forms_of_the_same(self) -> None:
        bare = f"magnet:?xt=urn:l8:{ADDRESS}"
        for link, name in (
            (bare, ""),
            (bare.upper().replace("XT=", "xt="), ""),
            (f"magnet:?xt=urn:btih:abc&xt=urn:l8:{ADDRESS}&xl=1&as=x&dn=", ""),
            (f"{bare}&dn=blog&dn=blog", "blog"),
            (f"{bare}&dn=blog~{ADDRESS[:6]}", "blog"),
            (f"{bare}&dn=blog--{ADDRESS[:6]}.l8.alt", "blog"),
            (f"{bare}&dn={ADDRESS}.l8.alt", ""),
            (f"{bare}&xt=urn:l8:{ADDRESS}", ""),
        ):
            self.assertEqual(Magnet.parse(link), Magnet(SERVICE.node_id, name), link)

    def test_contradictions_are_refused_with_the_reason(self) -> None:
        bare, other = f"magnet:?xt=urn:l8:{ADDRESS}", address_text(node(2))
        for link, word in (
            (f"{bare}&dn=blog~{other[:6]}", "another key"),
            (f"{bare}&dn={other}.l8.alt", "another key"),
            (f"{bare}&xt=urn:l8:{other}", "two keys"),
            (f"{bare}&dn=blog&dn=shop", "two names"),
            (f"{bare}&dn=bl%D0%BEg", "look alike"),
            (f"{bare}&dn=%FF", "UTF-8"),
            (f"magnet:?xt=urn:l8:{ADDRESS[:-4]}aaab", "check"),
            ("magnet:?xt=urn:btih:abc", "something else"),
            (f"http://{ADDRESS}.l8.alt/", "begins with"),
        ):
            error = self.assertRaises(WrongName, Magnet.parse, link)
            self.assertIn(word, str(error), link)

    def test_limits(self) -> None:
        bare = f"magnet:?xt=urn:l8:{ADDRESS}"
        many = "".join(f"&tr={Tracker(node(number), 'tcp:a:1')}" for number in range(1, TRACKERS + 2))
        for link in (bare + many, bare + "&x=" + "y" * FILE_MAX, bare + "&a=b" * 100, f"{bare}&tr=x"):
            with self.assertRaises(RemoteProtocolError):
                Magnet.parse(link)
        self.assertEqual(len(Magnet.parse(bare + f"&tr={TRACKER}" * 30).trackers), 1)

    @given(st.lists(st.tuples(st.sampled_from(("xt", "dn", "tr", "x")), st.text(max_size=70)), max_size=6))
    def test_any_noise(self, parts: list[tuple[str, str]]) -> None:
        link = f"magnet:?xt=urn:l8:{ADDRESS}&" + "&".join(
            f"{word}={quote(text, errors='replace')}" for word, text in parts
        )
        for text in (link, link[10:], "magnet:?" + link[30:]):
            with contextlib.suppress(RemoteProtocolError):
                found = Magnet.parse(text)
                self.assertEqual(Magnet.parse(str(found)), found)
