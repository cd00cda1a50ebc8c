"""Endpoint strings as far as their text says where they lead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.core.place import PER_FAR, PER_NEAR, Crowd, Place, networks, place


class PlaceTests(SynchronousTestCase):
    def test_forms(self) -> None:
        for text, there in (
            ("tcp:192.0.2.1:9000", Place("tcp", "192.0.2.1", 9000)),
            ("tcp:host=192.0.2.1:port=9000", Place("tcp", "192.0.2.1", 9000)),
            ("tcp:port=9000:host=Relay.Example", Place("tcp", "relay.example", 9000)),
            (r"tcp:2001\:DB8\:\:1:9000:link=noise", Place("tcp", "2001:db8::1", 9000)),
            (r"quic:\:\:ffff\:192.0.2.1:9", Place("quic", "192.0.2.1", 9)),
            ("tor:abc.onion:80", Place("tor", "abc.onion", 80)),
            ("tcp:a:x", Place("tcp", "a", 0)),
            ("tcp:a:70000", Place("tcp", "a", 0)),
            ("memory", Place("memory", "", 0)),
        ):
            self.assertEqual(place(text), there, text)

    def test_whatever_is_none(self) -> None:
        for text in ("", ":", "T:a", "tcp:a\\", "tcp:\xe9", "tcp:a b", "tcp:a\n", "9:a"):
            with self.assertRaises(RemoteProtocolError, msg=repr(text)):
                place(text)

    def test_networks(self) -> None:
        self.assertEqual(networks("192.0.2.77"), ("192.0.2.0/24", "192.0.0.0/16"))
        self.assertEqual(networks("2001:db8:1:2::3"), ("2001:db8:1::/48", "2001:db8::/32"))

    @given(st.text(max_size=40) | st.lists(st.sampled_from(["tcp", ":", "\\", "1", "=", "host=", "::1"])).map("".join))
    def test_any_noise(self, text: str) -> None:
        try:
            found = place(text)
        except RemoteProtocolError:
            return
        if found.address:
            networks(found.host)


class CrowdTests(SynchronousTestCase):
    def test_four_of_a_near_network_and_sixteen_of_a_far_one(self) -> None:
        crowd = Crowd()
        for number in range(PER_FAR):
            near = (f"192.0.{number // PER_NEAR}.0/24",)
            self.assertTrue(crowd.room(near, ("192.0.0.0/16",)))
            crowd.add(near, ("192.0.0.0/16",))
            self.assertEqual(crowd.room(near, ("198.51.0.0/16",)), number % PER_NEAR < PER_NEAR - 1)
        self.assertFalse(crowd.room(("192.0.99.0/24",), ("192.0.0.0/16",)))
        crowd.drop(("192.0.0.0/24",), ("192.0.0.0/16",))
        self.assertTrue(crowd.room(("192.0.0.0/24",), ("192.0.0.0/16",)))
