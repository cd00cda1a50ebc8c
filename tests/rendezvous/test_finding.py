"""Finding: from a host to a key and its descriptor, and what a program is told where there is none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.crypto.blind import BlindKey, blinded
from layer8.crypto.curtain import SLOTS, ClientKey, client_lists, seal
from layer8.crypto.items import Mutable, sha1
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.rendezvous.address import DOMAIN, PERIOD, WrongName, address_text, parse_host, period, period_start
from layer8.rendezvous.descriptor import (
    CLOCK,
    LIFE,
    POINTS,
    SALT,
    Point,
    ServiceDescriptor,
    publish,
    publish_public,
    targets,
)
from layer8.rendezvous.finding import REMEMBERED, Finding, Pins, Visit
from layer8.rendezvous.names import Layer
from layer8.rendezvous.publishing import SETTLED, Publishing
from layer8.rendezvous.shelf import Shelf
from layer8.rendezvous.visits import (
    BAD_ADDRESS,
    BAD_DESCRIPTOR,
    CLIENT_MISSING,
    CLIENT_WRONG,
    NO_DESCRIPTOR,
    Found,
    NotFound,
)
from layer8.socks.wire import Code
from layer8.testing.dhtnet import EPOCH, Net
from tests.descriptors import key
from tests.rendezvous.items import MemoryItems, NetItems

SERVICE, OTHER = key(1), key(2)
A = SERVICE.node_id
HOST = address_text(A) + DOMAIN
NAME = sha1(A).hex()
NOW = period_start(20_833) + 6 * 3600
COOKIE = b"c" * 32


def point(number: int = 1) -> Point:
    return Point(key(100 + number).node_id, b"o" * 32, bytes((number,)) * 32, b"e" * 32, "tcp:192.0.2.1:9000")


class FindingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.items = MemoryItems()
        self.now = float(NOW)
        self.visits: dict[bytes, Visit] = {}
        self.finding = self.made()

    def made(self, **more: Any) -> Finding:
        return Finding(self.items, lambda: self.now, visit=self.visits.get, **more)

    def put(self, *items: Mutable) -> None:
        for item in items:
            self.items.kept[item.target] = item

    def descriptor(self, number: int = 1, expires: float = 0.0) -> ServiceDescriptor:
        return ServiceDescriptor(int(expires or self.now + 7200), (point(number),))

    def publish(self, number: int = 1, seq: int = 0, *, service: NodeKey = SERVICE, **more: Any) -> list[Mutable]:
        items = publish(service, period(self.now), self.descriptor(number), seq or int(self.now), **more)
        self.put(*items)
        return items

    def sealed(self, text: bytes) -> None:
        """Let the service say whatever."""
        blind = BlindKey.of(SERVICE, period(self.now))
        value = seal(A, blind.public, b"", 1, text, bytes(12))
        self.put(Mutable.make(blind.public, blind.sign, 1, value, SALT))

    def find(self, host: str = HOST, fresh: bool = False) -> Found:
        return self.successResultOf(Deferred.fromCoroutine(self.finding.find(host, fresh)))

    def fails(self, code: int, host: str = HOST, fresh: bool = False, text: str = "") -> str:
        """Say why it is not found, in one line that names the host."""
        failure = self.failureResultOf(Deferred.fromCoroutine(self.finding.find(host, fresh)), NotFound)
        error = failure.value
        assert isinstance(error, NotFound)
        self.assertEqual(hex(error.code), hex(code), str(error))
        self.assertNotIn("\n", str(error))
        self.assertIn(text, str(error))
        return str(error)

    def points(self, found: Found) -> list[int]:
        return [one.auth_key[0] for one in found.told.points]


class AddressTests(FindingCase):
    def test_an_address(self) -> None:
        self.publish()
        for host in (HOST, HOST.upper(), HOST + ".", "www." + HOST, "a.b." + HOST):
            found = self.find(host)
            self.assertEqual((found.service, self.points(found), found.cookie, found.login), (A, [1], b"", None))
        self.assertEqual(len(self.items.gets), 1)

    def test_bad_addresses(self) -> None:
        """F6 and what is wrong with it, without a word to anybody."""
        text = address_text(A)
        wrong = text[:3] + ("a" if text[3] != "a" else "b") + text[4:]
        other = address_text(OTHER.node_id)
        for host, why in (
            (wrong + DOMAIN, "wrong letter"),
            (text[:-1] + ("c" if text[-1] != "c" else "d") + DOMAIN, "version"),
            (text[:-2] + other[-2:] + DOMAIN, ""),
            ("1" + text[1:] + DOMAIN, "base32"),
            (address_text(bytes(32)) + DOMAIN, "prime order"),
            (address_text(b"\1" + bytes(31)) + DOMAIN, "prime order"),
            ("bl\u043eg" + DOMAIN, "look alike"),
            ("blo\u212a" + DOMAIN, "look alike"),
            ("\uff42log" + DOMAIN, "look alike"),
            ("blög" + DOMAIN, "look alike"),
            ("-blog" + DOMAIN, "name"),
            ("blog~k1" + DOMAIN, "letters of the address"),
            ("b" + DOMAIN, "letters"),
            ("a.." + HOST, "empty label"),
            (DOMAIN, ""),
            ("example.com", DOMAIN),
            (text, DOMAIN),
            ("", ""),
            ("a" * 300 + DOMAIN, ""),
            (NAME[:-1], DOMAIN),
            (NAME[:-1] + "g", DOMAIN),
            (NAME[:-1] + "\u0663", ""),
        ):
            self.fails(BAD_ADDRESS, host, text=why)
        self.assertEqual(self.items.gets, [])

    @given(st.text() | st.text().map(lambda text: text + DOMAIN) | st.text("0123456789abcdef~-.", min_size=38))
    def test_any_host(self, host: str) -> None:
        failure = self.failureResultOf(Deferred.fromCoroutine(self.finding.find(host, False)), NotFound)
        self.assertNotIn("\n", str(failure.value).replace(host, ""))

    def test_codes_are_those_of_the_port(self) -> None:
        self.assertEqual(
            (NO_DESCRIPTOR, BAD_DESCRIPTOR, CLIENT_MISSING, CLIENT_WRONG, BAD_ADDRESS),
            (Code.NO_DESCRIPTOR, Code.BAD_DESCRIPTOR, Code.AUTH_MISSING, Code.AUTH_WRONG, Code.BAD_ADDRESS),
        )


class DescriptorTests(FindingCase):
    def test_none(self) -> None:
        self.fails(NO_DESCRIPTOR, text=HOST)
        self.items.silent = True
        self.fails(NO_DESCRIPTOR, text="try again")

    def test_expired_and_from_the_future(self) -> None:
        for expires, why in ((self.now, "expired"), (self.now + LIFE + CLOCK + 1, "future")):
            self.put(*publish(SERVICE, period(self.now), self.descriptor(expires=expires), int(self.now)))
            self.fails(BAD_DESCRIPTOR, text=why)
        self.publish()
        self.find()

    def test_what_is_wrong_inside(self) -> None:
        good: dict[bytes, Any] = dict(bencode.decode(self.descriptor().encode()))  # type: ignore[arg-type]
        changed: dict[bytes, Any]
        for changed in (
            {b"i": [point(number).encode() for number in range(1, POINTS + 2)]},
            {b"i": [point(1).encode()] * 2},
            {b"i": []},
            {b"i": [b"short"]},
            {b"m": [7]},
            {b"p": [b"s", 1, 1]},
            {b"v": 2},
        ):
            self.sealed(bencode.encode(good | changed))
            self.fails(BAD_DESCRIPTOR, text="not opened")
        self.sealed(b"no bencode")
        self.fails(BAD_DESCRIPTOR)
        self.sealed(bencode.encode(good))
        self.find()

    def test_what_nodes_say_is_not_believed(self) -> None:
        """Another service's, another day's, or a changed one, where ours should be."""
        (item,) = self.publish()
        (other,) = publish(OTHER, period(self.now), self.descriptor(), int(self.now))
        (later,) = publish(SERVICE, period(self.now) + 1, self.descriptor(), int(self.now))
        for wrong in (
            other,
            later,
            Mutable(item.key, item.seq + 1, item.signature, item.value, item.salt),
            Mutable(item.key, item.seq, item.signature, other.value, item.salt),
            Mutable(item.key, item.seq, bytes(64), item.value, item.salt),
        ):
            self.items.kept[item.target] = wrong
            self.fails(BAD_DESCRIPTOR)

    def test_two_with_one_seq(self) -> None:
        (item,) = self.publish()
        self.items.torn.add(item.target)
        self.fails(BAD_DESCRIPTOR)

    def test_two_with_one_seq_one_after_the_other(self) -> None:
        self.publish(1)
        self.find()
        self.publish(2)
        self.fails(BAD_DESCRIPTOR, fresh=True, text="two services")
        self.publish(3, int(self.now) + 1)
        self.assertEqual(self.points(self.find(fresh=True)), [3])

    def test_by_the_day(self) -> None:
        """What is looked for after noon has another key than before."""
        self.publish()
        self.find()
        self.now += PERIOD
        self.fails(NO_DESCRIPTOR)
        self.assertEqual(len(set(self.items.gets)), 2)
        self.publish(2)
        self.assertEqual(self.points(self.find()), [2])


class KeptTests(FindingCase):
    def test_it_is_kept_until_it_expires(self) -> None:
        self.publish(1)
        self.find()
        self.publish(2, int(self.now) + 1)
        self.assertEqual(self.points(self.find()), [1])
        self.now += 7200
        self.publish(3, int(self.now))
        self.assertEqual(self.points(self.find()), [3])

    def test_fresh(self) -> None:
        self.publish(1)
        first = self.find()
        self.assertEqual(self.find(fresh=True), first)
        self.publish(2, int(self.now) + 1)
        self.assertEqual(self.points(self.find(fresh=True)), [2])
        self.assertEqual(self.points(self.find()), [2])
        self.assertEqual(len(self.items.gets), 3)

    def test_none_that_is_older(self) -> None:
        """Nobody gives us back what the service has said before."""
        (old,) = self.publish(1)
        self.publish(2, int(self.now) + 1)
        self.find()
        self.put(old)
        self.assertEqual(self.points(self.find(fresh=True)), [2])
        self.items.kept.clear()
        self.assertEqual(self.points(self.find(fresh=True)), [2])
        self.items.silent = True
        self.assertEqual(self.points(self.find(fresh=True)), [2])
        self.now += 7200
        self.fails(NO_DESCRIPTOR)

    def test_so_many(self) -> None:
        for number in range(1, REMEMBERED + 2):
            service = key(10_000 + number)
            self.put(publish_public(service, self.descriptor(), int(self.now)))
            self.find(sha1(service.node_id).hex())
        self.assertEqual(len(self.finding._kept), REMEMBERED)
        self.finding.forget()
        self.assertEqual(len(self.finding._kept), 0)


class ResourceTests(FindingCase):
    """G39: 40 hex digits."""

    def test_by_its_hash(self) -> None:
        self.put(publish_public(SERVICE, self.descriptor(), int(self.now)))
        login = NodeKey.make()
        self.visits[A] = Visit(login=login)
        for host in (NAME, NAME.upper(), NAME + DOMAIN):
            found = self.find(host)
            self.assertEqual((found.service, self.points(found), found.login), (A, [1], login))
        self.assertEqual(len(self.items.gets), 1)
        self.fails(NO_DESCRIPTOR)

    def test_a_fresh_one(self) -> None:
        self.put(publish_public(SERVICE, self.descriptor(), int(self.now)))
        self.find(NAME)
        self.put(publish_public(SERVICE, self.descriptor(2), int(self.now) + 1))
        self.assertEqual(self.points(self.find(NAME)), [1])
        self.assertEqual(self.points(self.find(NAME, fresh=True)), [2])

    def test_another_key(self) -> None:
        """Who answers with a key that does not hash to what was asked for is refused."""
        self.items.kept[sha1(A)] = publish_public(OTHER, self.descriptor(), int(self.now))
        self.fails(BAD_DESCRIPTOR, NAME, text="another key")

    def test_bad_ones(self) -> None:
        for expires in (self.now, self.now + LIFE + CLOCK + 1):
            self.put(publish_public(SERVICE, self.descriptor(expires=expires), int(self.now)))
            self.fails(BAD_DESCRIPTOR, NAME)
        self.put(Mutable.make(A, SERVICE.sign, 1, [1]))
        self.fails(BAD_DESCRIPTOR, NAME)
        self.items.kept.clear()
        self.fails(NO_DESCRIPTOR, NAME)

    def test_a_hidden_service_is_not_found_by_its_hash(self) -> None:
        self.publish()
        self.fails(NO_DESCRIPTOR, NAME)


class ClientTests(FindingCase):
    """Section 4: for those whom the service knows."""

    def setUp(self) -> None:
        super().setUp()
        self.own = ClientKey.make()

    def test_missing(self) -> None:
        self.publish(cookie=COOKIE, clients=[self.own.public])
        self.fails(CLIENT_MISSING, text="client_key")
        self.visits[A] = Visit(login=NodeKey.make())
        self.fails(CLIENT_MISSING)
        self.assertEqual(len(set(self.items.gets)), 1, "without a key there is nothing to look for in the lists")

    def test_wrong(self) -> None:
        self.publish(cookie=COOKIE, clients=[ClientKey.make().public])
        self.visits[A] = Visit(self.own)
        self.fails(CLIENT_WRONG, text="client_key")

    def test_right(self) -> None:
        self.publish(cookie=COOKIE, clients=[self.own.public])
        login = NodeKey.make()
        self.visits[A] = Visit(self.own, login)
        found = self.find()
        self.assertEqual((found.cookie, found.login, self.points(found)), (COOKIE, login, [1]))
        self.assertEqual(self.find(fresh=True), found)

    def test_in_the_last_of_eight_lists(self) -> None:
        others = [ClientKey.make().public for _ in range(7 * SLOTS + 15)]
        self.publish(cookie=COOKIE, clients=[*others, self.own.public])
        self.visits[A] = Visit(self.own)
        self.assertEqual(self.find().cookie, COOKIE)

    def test_a_key_that_nobody_asks_for(self) -> None:
        self.publish()
        self.visits[A] = Visit(self.own)
        self.assertEqual(self.find().cookie, b"")

    def test_who_was_removed(self) -> None:
        kept, removed = ClientKey.make(), self.own
        many = [ClientKey.make().public for _ in range(SLOTS)]
        self.publish(cookie=COOKIE, clients=[*many, kept.public, removed.public])
        self.visits[A] = Visit(removed)
        self.find()
        self.publish(2, int(self.now) + 1, cookie=b"n" * 32, clients=[kept.public])  # a1 stands still, as it was
        self.fails(CLIENT_WRONG, fresh=True)
        self.visits[A] = Visit(kept)
        self.assertEqual(self.find(fresh=True).cookie, b"n" * 32)

    def test_while_it_is_published_anew(self) -> None:
        """The lists come first: whoever has the old descriptor and the new cookie asks for the descriptor once more."""
        first = self.publish(cookie=COOKIE, clients=[self.own.public])
        second = self.publish(2, int(self.now) + 1, cookie=b"n" * 32, clients=[self.own.public])
        self.visits[A] = Visit(self.own)
        get = MemoryItems.get
        given: list[Mutable] = []

        class Between(MemoryItems):
            async def get(self, target: bytes, salt: bytes = b"", least: int = 0) -> Mutable | None:
                if salt == SALT and not given:
                    given.append(first[0])
                    return first[0]
                return await get(self, target, salt, least)

        self.items = Between(self.items.kept)
        self.finding = self.made()
        found = self.find()
        self.assertEqual((given, found.cookie, self.points(found)), ([first[0]], b"n" * 32, [2]))
        self.assertEqual(len(second), 2)

    def test_lists_that_are_not_the_service_s(self) -> None:
        _, good = self.publish(cookie=COOKIE, clients=[self.own.public])
        self.visits[A] = Visit(self.own)
        forged = bencode.encode(client_lists(blinded(A, period(self.now)), COOKIE, [self.own.public])[0])
        self.items.kept[good.target] = Mutable(good.key, good.seq, good.signature, forged, good.salt)
        self.fails(BAD_DESCRIPTOR)
        del self.items.kept[good.target]
        self.fails(CLIENT_WRONG)

    def test_nobody_answers(self) -> None:
        (item, _) = self.publish(cookie=COOKIE, clients=[self.own.public])
        self.visits[A] = Visit(self.own)

        class Half(MemoryItems):
            async def get(self, target: bytes, salt: bytes = b"", least: int = 0) -> Mutable | None:
                if salt == SALT:
                    return item
                raise Unavailable("no node of the DHT answers")

        self.items = Half()
        self.finding = self.made()
        self.fails(NO_DESCRIPTOR, text="try again")


class NameTests(FindingCase):
    """Names are others' business; that a pinned one leads nowhere else is ours."""

    def setUp(self) -> None:
        super().setUp()
        self.shelf = Shelf(Path(self.mktemp()))
        self.shelf.folder.mkdir(mode=0o700)
        self.asked: list[str] = []
        self.publish()
        self.publish(2, service=OTHER)
        self.knows(A)

    def knows(self, answer: bytes | Exception) -> None:
        async def names(host: str) -> bytes:
            self.asked.append(host)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.finding = self.made(names=names, met=Pins(self.shelf, lambda: self.now))

    def pin(self, service: bytes) -> None:
        book = self.shelf.book()
        book.pin("blog", service, self.now)
        self.shelf.save(book)

    def test_a_name(self) -> None:
        for host in ("blog" + DOMAIN, "www.blog" + DOMAIN, f"blog~{address_text(A)[:6]}{DOMAIN}"):
            self.assertEqual(self.find(host).service, A)
            self.assertEqual(self.asked.pop(), host)
        self.find()
        self.assertEqual(self.asked, [], "an address needs nobody")
        self.assertEqual(self.shelf.book().flags, {})

    def test_a_pinned_one(self) -> None:
        self.pin(A)
        self.assertEqual(self.find("blog" + DOMAIN).service, A)

    def test_a_pinned_one_that_another_key_answers(self) -> None:
        """Never opened, nothing asked about it, and written down."""
        self.pin(A)
        self.knows(OTHER.node_id)
        for times in (1, 2):
            text = self.fails(BAD_ADDRESS, "www.blog" + DOMAIN, text="not opened")
            self.assertIn("blog~", text)
            flag = self.shelf.book().flags["blog", OTHER.node_id]
            self.assertEqual((flag.by, flag.at, flag.times), (Layer.CLAIM, NOW, times))
        self.assertEqual(self.items.gets, [])
        self.assertEqual(self.shelf.book().pins["blog"].key, A)

    def test_a_suffix_that_is_another_key_s(self) -> None:
        self.fails(BAD_ADDRESS, f"blog~{address_text(OTHER.node_id)[:6]}{DOMAIN}")
        self.assertEqual(self.items.gets, [])

    def test_no_key(self) -> None:
        for wrong in (b"", bytes(32), b"\1" + bytes(31)):
            self.knows(wrong)
            self.fails(BAD_ADDRESS, "blog" + DOMAIN)

    def test_what_names_say(self) -> None:
        for error, code in (
            (NotFound("nobody claims the name blog"), NO_DESCRIPTOR),
            (NotFound("blog is claimed by several keys", BAD_ADDRESS), BAD_ADDRESS),
            (WrongName("a name with two dots"), BAD_ADDRESS),
            (Unavailable("no node of the DHT answers"), NO_DESCRIPTOR),
            (RemoteProtocolError("nonsense"), NO_DESCRIPTOR),
        ):
            self.knows(error)
            self.fails(code, "blog" + DOMAIN, text=str(error))

    def test_without_names(self) -> None:
        self.finding = self.made()
        self.fails(NO_DESCRIPTOR, "blog" + DOMAIN, text="address")


class NetTests(SynchronousTestCase):
    """A service publishes, and a client finds it, in a DHT of thirty nodes."""

    def test_from_one_to_the_other(self) -> None:
        net, clock = Net(30), Clock()

        def wall() -> float:
            return EPOCH + 8 * 3600 + net.swarm.now

        own = ClientKey.make()
        with_list = Publishing(
            NetItems(net, 3), SERVICE, TaskSet(Logger()), clock.callLater, wall, chance=Random(1),
            clients={"ann": own.public}, cookie=COOKIE,
        )  # fmt: skip
        public = Publishing(
            NetItems(net, 4), OTHER, TaskSet(Logger()), clock.callLater, wall, chance=Random(1), public=True
        )
        for one in (with_list, public):
            one.changed((point(1), point(2)), None)
        net.swarm.run(seconds=SETTLED)
        clock.advance(SETTLED)
        finding = Finding(NetItems(net, 20), wall, visit=lambda key: Visit(own) if key == A else None)
        self.assertEqual(self.found(finding.find, HOST).cookie, COOKIE)
        for host in (sha1(OTHER.node_id).hex(), address_text(OTHER.node_id) + DOMAIN):
            found = self.found(finding.find, host)
            self.assertEqual((found.service, len(found.told.points)), (OTHER.node_id, 2))
        stranger = Finding(NetItems(net, 21), wall)
        failure = self.failureResultOf(Deferred.fromCoroutine(stranger.find(HOST, False)), NotFound)
        self.assertIn("client_key", str(failure.value))
        self.assertTrue(net.holders(targets(A, period(wall()))[0]))

    def found(self, find: Callable[[str, bool], Awaitable[Found]], host: str) -> Found:
        async def ask() -> Found:
            return await find(host, False)

        return self.successResultOf(Deferred.fromCoroutine(ask()))


class HostTests(SynchronousTestCase):
    def test_letters_that_become_ascii(self) -> None:
        """A kelvin sign is a k in lower case."""
        with self.assertRaises(WrongName):
            parse_host("blo\u212a" + DOMAIN)
