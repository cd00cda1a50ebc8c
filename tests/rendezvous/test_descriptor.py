"""What services publish: its form, who opens it, and what storing nodes see of it."""

from __future__ import annotations

import contextlib
import hashlib
from hashlib import sha1
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.errors import ConfigError, LimitExceeded, LocalProtocolError, RemoteProtocolError
from layer8.crypto.blind import BlindKey, blinded
from layer8.crypto.curtain import AUTH_CLIENTS, TEXT_MAX, ClientKey, NotAuthorised, client_lists, seal
from layer8.crypto.items import V_MAX, Mutable, signed_text
from layer8.crypto.keys import SMALL_ORDER, id_text
from layer8.rendezvous.address import PERIOD, period, published
from layer8.rendezvous.descriptor import (
    CLOCK,
    ENDPOINT,
    LIFE,
    POINTS,
    SALT,
    Point,
    Price,
    ServiceDescriptor,
    clash,
    find_cookie,
    parse_clients,
    publish,
    publish_public,
    read_item,
    read_public,
    targets,
)
from tests.descriptors import NOW, key

SERVICE = key(1)
A = SERVICE.node_id
TODAY = period(NOW)
COOKIE = b"c" * 32

CHANGED = st.dictionaries(st.sampled_from("eimpvx"), st.integers(-(2**62), 2**62) | st.binary() | st.lists(st.binary()))


def point(number: int = 1, endpoint: str = "tcp:192.0.2.1:9000") -> Point:
    return Point(key(100 + number).node_id, b"o" * 32, bytes((number,)) * 32, b"e" * 32, endpoint)


def descriptor(**changed: Any) -> ServiceDescriptor:
    told: dict[str, Any] = {"expires": int(NOW) + 3600, "points": (point(1), point(2), point(3))} | changed
    return ServiceDescriptor(**told)


def text(**changed: Any) -> bytes:
    """Write whatever: the fields of `descriptor` with some changed, or left out where None is given."""
    told: dict[bytes, Any] = dict(bencode.decode(descriptor().encode()))  # type: ignore[arg-type]
    told.update((name.encode(), value) for name, value in changed.items())
    return bencode.encode({name: value for name, value in told.items() if value is not None})


class FormTests(SynchronousTestCase):
    def test_as_it_is_written(self) -> None:
        one = descriptor(points=(point(),), price=Price(b"s" * 32, 8, 1_900_000_000))
        self.assertEqual(
            one.encode(),
            b"d1:ei1800003600e1:il146:" + key(101).node_id + b"o" * 32 + b"\1" * 32 + b"e" * 32 + b"tcp:192.0.2.1:9000"
            b"e1:mli1ee1:pl32:" + b"s" * 32 + b"i8ei1900000000ee1:vi1ee",
        )  # fmt: skip
        self.assertEqual(ServiceDescriptor.parse(one.encode()), one)

    def test_as_many_points_as_may_be_always_fit(self) -> None:
        largest = descriptor(
            points=tuple(point(number, "tcp:" + "n" * (ENDPOINT - 9) + ":9000") for number in range(1, POINTS + 1)),
            modes=(0, 1),
            price=Price(b"s" * 32, 2**32 - 1, 9_999_999_999),
            expires=9_999_999_999,
        )
        self.assertLessEqual(len(largest.encode()), TEXT_MAX)
        (item,) = publish(SERVICE, TODAY, largest, int(NOW))
        self.assertLessEqual(len(item.value), V_MAX)

    def test_what_would_be_refused_is_not_published(self) -> None:
        for changed in (
            {"points": ()},
            {"points": tuple(point(number) for number in range(1, POINTS + 2))},
            {"points": (point(1), point(1))},
            {"points": (point(1, ""),)},
            {"points": (point(1, "tcp:" + "n" * ENDPOINT),)},
            {"modes": ()},
            {"modes": (2,)},
            {"modes": (1, 1)},
            {"price": Price(b"short", 1, 1)},
            {"price": Price(b"s" * 32, 2**32, 1)},
            {"expires": -1},
        ):
            with self.assertRaises(ConfigError, msg=str(changed)):
                publish(SERVICE, TODAY, descriptor(**changed), int(NOW))

    def test_bad_ones_are_refused(self) -> None:
        changed: dict[str, Any]
        good = point().encode()
        for changed in (
            {"e": None}, {"e": b"1"}, {"e": 2**63}, {"i": None}, {"i": {}}, {"i": []}, {"i": [good[:128]]}, {"i": [1]},
            {"i": [good[:128] + b"tcp:\xff"]}, {"i": [good[:128] + b"tcp a"]}, {"i": [good + b"x" * ENDPOINT]},
            {"i": [good] * 2}, {"m": None}, {"m": []}, {"m": [b"1"]}, {"m": [0, 1, 0]}, {"m": [1, 1]}, {"m": [2]},
            {"p": 1}, {"p": [b"s" * 32, 1]}, {"p": [b"s", 1, 1]}, {"p": [b"s" * 32, -1, 1]}, {"v": None}, {"v": 2},
            {str(number): 1 for number in range(17)}, {"i": 5}, {"i": b"x"}, {"p": [1, 1, 1]},
            {"p": [b"s" * 32, b"1", 1]},
        ):  # fmt: skip
            with self.assertRaises(RemoteProtocolError, msg=str(changed)):
                ServiceDescriptor.parse(text(**changed))
        with self.assertRaises(LimitExceeded):
            ServiceDescriptor.parse(text(i=[point(number).encode() for number in range(1, POINTS + 2)]))
        with self.assertRaises(LimitExceeded):
            ServiceDescriptor.parse(text(x=b"x" * TEXT_MAX))
        for other in (b"li1ee", b"i1e", b"1:x", b""):
            with self.assertRaises(RemoteProtocolError):
                ServiceDescriptor.parse(other)
        self.assertEqual(ServiceDescriptor.parse(text(x=b"later")), descriptor())

    @given(st.binary(max_size=TEXT_MAX + 2) | CHANGED.map(lambda changed: text(**changed)))
    def test_any_noise(self, data: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            ServiceDescriptor.parse(data)


class ReadTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        (item,) = publish(SERVICE, TODAY, descriptor(), int(NOW))
        self.assertEqual((item.key, item.salt, item.seq), (blinded(A, TODAY), SALT, int(NOW)))
        self.assertEqual(item.target, targets(A, TODAY)[0])
        self.assertEqual(read_item(A, TODAY, item, NOW), descriptor())

    def test_of_another_service_or_day(self) -> None:
        (item,) = publish(SERVICE, TODAY, descriptor(), int(NOW))
        for service, day in ((key(2).node_id, TODAY), (A, TODAY + 1)):
            with self.assertRaises(RemoteProtocolError):
                read_item(service, day, item, NOW)

    def test_signed_by_somebody_else(self) -> None:
        blind = BlindKey.of(key(2), TODAY)
        value = seal(A, blinded(A, TODAY), b"", 1, descriptor().encode())
        made = Mutable.make(blind.public, blind.sign, 1, value, SALT)
        forged = Mutable(blinded(A, TODAY), 1, made.signature, made.value, SALT)
        with self.assertRaises(RemoteProtocolError):
            read_item(A, TODAY, forged, NOW)

    def test_no_byte_string(self) -> None:
        blind = BlindKey.of(SERVICE, TODAY)
        with self.assertRaises(RemoteProtocolError):
            read_item(A, TODAY, Mutable.make(blind.public, blind.sign, 1, [1], SALT), NOW)

    def test_expired_or_from_the_future(self) -> None:
        for expires, now in ((int(NOW), NOW), (int(NOW) + LIFE + CLOCK + 1, NOW)):
            (item,) = publish(SERVICE, TODAY, descriptor(expires=expires), int(NOW))
            with self.assertRaises(RemoteProtocolError):
                read_item(A, TODAY, item, now)

    def test_two_services_with_one_key(self) -> None:
        one, two = (publish(SERVICE, TODAY, descriptor(expires=int(NOW) + more), int(NOW))[0] for more in (60, 90))
        later = publish(SERVICE, TODAY, descriptor(), int(NOW) + 1)[0]
        self.assertTrue(clash(one, two))
        self.assertFalse(clash(one, one) or clash(one, later))
        self.assertFalse(clash(one, publish(SERVICE, TODAY + 1, descriptor(), int(NOW))[0]))


class PublicTests(SynchronousTestCase):
    """A resource: 20 bytes are enough to find and to read it (G39)."""

    def test_round_trip(self) -> None:
        item = publish_public(SERVICE, descriptor(), int(NOW))
        name = sha1(A).digest()
        self.assertEqual((item.target, item.key, item.salt, item.seq), (name, A, b"", int(NOW)))
        self.assertEqual(read_public(name, item, NOW), descriptor())

    def test_the_key_is_the_one_that_was_asked_for(self) -> None:
        name, other = sha1(A).digest(), publish_public(key(2), descriptor(), int(NOW))
        with self.assertRaisesRegex(RemoteProtocolError, "another key"):
            read_public(name, other, NOW)
        forged = Mutable(A, other.seq, other.signature, other.value)
        with self.assertRaisesRegex(RemoteProtocolError, "wrong signature"):
            read_public(name, forged, NOW)
        salted = Mutable.make(A, SERVICE.sign, int(NOW), descriptor().encode(), b"d")
        for target in (name, salted.target):
            with self.assertRaises(RemoteProtocolError):
                read_public(target, salted, NOW)

    def test_a_key_of_small_order(self) -> None:
        """Everybody can sign for it."""
        for small in SMALL_ORDER:
            item = Mutable(small, 1, b"\1" + bytes(63), bencode.encode(descriptor().encode()))
            with self.assertRaises(RemoteProtocolError):
                read_public(item.target, item, NOW)

    def test_a_key_that_is_mixed_with_small_order(self) -> None:
        """Who has a key can sign for eight of them, and each would be a name of its own for one resource."""
        digest = hashlib.sha512(bytes(32)).digest()
        secret = bindings.crypto_core_ed25519_scalar_reduce(digest)
        torsion = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
        mixed = bindings.crypto_core_ed25519_add(bindings.crypto_scalarmult_ed25519_base_noclamp(secret), torsion)
        value = bencode.encode(descriptor().encode())
        for number in range(200):
            nonce = bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(b"%d" % number).digest())
            start = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
            factor = bindings.crypto_core_ed25519_scalar_reduce(
                hashlib.sha512(start + mixed + signed_text(b"", 1, value)).digest()
            )
            if factor[0] % 8 == 0:  # then the part of small order is not seen
                break
        rest = bindings.crypto_core_ed25519_scalar_mul(factor, secret)
        item = Mutable(mixed, 1, start + bindings.crypto_core_ed25519_scalar_add(nonce, rest), value)
        self.assertTrue(item.good())
        with self.assertRaisesRegex(RemoteProtocolError, "prime order"):
            read_public(item.target, item, NOW)

    def test_what_is_bad_in_it_is_refused(self) -> None:
        for told in (
            text(i=[point(number).encode() for number in range(1, POINTS + 2)]),
            text(e=int(NOW)),
            text(e=int(NOW) + LIFE + CLOCK + 1),
            text(v=2),
            b"",
            [1],
        ):
            item = Mutable.make(A, SERVICE.sign, int(NOW), told)
            with self.assertRaises(RemoteProtocolError, msg=str(told)):
                read_public(item.target, item, NOW)

    def test_a_hidden_service_is_none(self) -> None:
        (item,) = publish(SERVICE, TODAY, descriptor(), int(NOW))
        with self.assertRaises(RemoteProtocolError):
            read_public(item.target, item, NOW)


class StoringNodeTests(SynchronousTestCase):
    """What a node sees that stores them."""

    def test_two_periods_have_no_eight_bytes_in_common(self) -> None:
        one, two = (self.seen(day, int(NOW) + at) for at, day in enumerate((TODAY, TODAY + 1)))
        self.assertEqual(pieces(one) & pieces(two), set())

    def test_neither_the_service_nor_its_points_are_in_it(self) -> None:
        seen = pieces(self.seen(TODAY, int(NOW)))
        for secret in (A, id_text(A).encode(), point().encode(), b"192.0.2.1", COOKIE):
            self.assertEqual(pieces(secret) & seen, set())

    def test_all_are_of_one_length(self) -> None:
        sizes = set()
        for count in range(1, POINTS + 1):
            points = tuple(point(number) for number in range(1, count + 1))
            sizes.add(len(publish(SERVICE, TODAY, descriptor(points=points), int(NOW))[0].data))
        self.assertEqual(len(sizes), 1)

    def seen(self, day: int, seq: int) -> bytes:
        clients = [ClientKey.make().public for _ in range(3)]
        items = publish(SERVICE, day, descriptor(), seq, cookie=COOKIE, clients=clients)
        return b"\xff\0\xff".join(item.key + item.value + item.signature for item in items)


class ClientTests(SynchronousTestCase):
    def test_only_known_clients_get_in(self) -> None:
        known, stranger = ClientKey.make(), ClientKey.make()
        item, *lists = publish(SERVICE, TODAY, descriptor(), int(NOW), cookie=COOKIE, clients=[known.public])
        self.assertEqual([one.target for one in lists], list(targets(A, TODAY)[1][:1]))
        cookie = find_cookie(A, TODAY, lists, known)
        self.assertEqual(read_item(A, TODAY, item, NOW, cookie=cookie), descriptor())
        with self.assertRaises(NotAuthorised):
            read_item(A, TODAY, item, NOW)
        with self.assertRaises(NotAuthorised):
            find_cookie(A, TODAY, lists, stranger)

    def test_who_was_removed_is_out(self) -> None:
        """With the new cookie that a removal makes, the old one opens nothing."""
        removed, kept = ClientKey.make(), ClientKey.make()
        before = publish(SERVICE, TODAY, descriptor(), 1, cookie=COOKIE, clients=[removed.public, kept.public])
        old = find_cookie(A, TODAY, before[1:], removed)
        item, *lists = publish(SERVICE, TODAY, descriptor(), 2, cookie=b"n" * 32, clients=[kept.public])
        with self.assertRaises(NotAuthorised):
            read_item(A, TODAY, item, NOW, cookie=old)
        with self.assertRaises(NotAuthorised):
            find_cookie(A, TODAY, lists, removed)
        self.assertEqual(read_item(A, TODAY, item, NOW, cookie=find_cookie(A, TODAY, lists, kept)), descriptor())

    def test_lists_of_another_service_or_place(self) -> None:
        clients = [ClientKey.make() for _ in range(20)]
        _, *lists = publish(SERVICE, TODAY, descriptor(), 1, cookie=COOKIE, clients=[one.public for one in clients])
        for one in clients:
            self.assertEqual(find_cookie(A, TODAY, lists, one), COOKIE)
        last = clients[-1]
        self.assertEqual(len([one for one in clients if finds(one, lists[1:])]), 4, "the other list was not found")
        other = publish(key(2), TODAY, descriptor(), 1, cookie=COOKIE, clients=[last.public])
        for wrong in (other[1:], publish(SERVICE, TODAY, descriptor(), 1)[:1]):
            with self.assertRaises(RemoteProtocolError):
                find_cookie(A, TODAY, wrong, last)

    def test_lists_that_the_service_has_not_signed(self) -> None:
        """Else whoever stores them could hand a client another cookie, or see by its coming back that it tried."""
        own = ClientKey.make()
        _, good = publish(SERVICE, TODAY, descriptor(), 1, cookie=COOKIE, clients=[own.public])
        forged = bencode.encode(client_lists(good.key, b"f" * 32, [own.public])[0])
        for value, signature in ((forged, good.signature), (good.value, bytes(64))):
            with self.assertRaises(RemoteProtocolError):
                find_cookie(A, TODAY, [Mutable(good.key, good.seq, signature, value, good.salt)], own)

    def test_clients_need_a_cookie(self) -> None:
        with self.assertRaises(LocalProtocolError):
            publish(SERVICE, TODAY, descriptor(), 1, clients=[ClientKey.make().public])

    def test_file(self) -> None:
        ann, bob = ClientKey.make().public, ClientKey.make().public
        told = f"# who may come\nann = {id_text(ann)}\n\n  bob smith={id_text(bob).upper()}  # a friend\n"
        self.assertEqual(parse_clients(told), {"ann": ann, "bob smith": bob})
        self.assertEqual(parse_clients(""), {})

    def test_wrong_files(self) -> None:
        good = id_text(ClientKey.make().public)
        for told in (
            good, f"= {good}", f"{'n' * 33} = {good}", "ann = abc", "ann =", f"ann = {good[:-1]}!",
            f"ann = {id_text(bytes(32))}",
            f"ann = {good}\nann = {id_text(A)}", f"ann = {good}\nbob = {good}", f"a\x07n = {good}",
        ):  # fmt: skip
            with self.assertRaises(ConfigError, msg=told) as caught:
                parse_clients(told)
            self.assertIn("line ", str(caught.exception))
        many = "\n".join(f"n{number} = {id_text(ClientKey.make().public)}" for number in range(AUTH_CLIENTS + 1))
        self.assertIn("AUTH_CLIENTS", str(self.assertRaises(ConfigError, parse_clients, many)))

    @given(st.text())
    def test_any_text(self, told: str) -> None:
        with contextlib.suppress(ConfigError):
            parse_clients(told)


class PeriodTests(SynchronousTestCase):
    def test_what_is_published_before_noon_is_found_after_it(self) -> None:
        noon = (TODAY + 1) * PERIOD + 43_200
        before = {
            day: publish(SERVICE, day, descriptor(expires=noon + 60), noon - 60)[0] for day in published(noon - 60)
        }
        read_item(A, period(noon - 1), before[period(noon - 1)], noon - 1)
        read_item(A, period(noon), before[period(noon)], noon)


def pieces(data: bytes) -> set[bytes]:
    """Give every eight bytes in a row."""
    return {data[at : at + 8] for at in range(len(data) - 7)}


def finds(client: ClientKey, lists: list[Mutable]) -> bool:
    """Say whether a client finds the cookie."""
    try:
        return find_cookie(A, TODAY, lists, client) == COOKIE
    except NotAuthorised:
        return False
