"""A hidden service among real processes: it, its access points, a rendezvous hop and holders of its descriptor die.

::

    tracker   4 x layer8-rendezvous   8 x layer8-dht   a node with the service   a node with a SOCKS port

Everything is killed with SIGKILL, and what was killed comes back later. A visit is always somebody's first: it needs
the descriptor, an access point and a rendezvous hop of its own. How long each took to heal is printed.
"""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any

from attrs import define
from twisted.trial.unittest import SynchronousTestCase

from tests.interop.backend import serve
from tests.interop.daemons import RUN, free_port, until
from tests.resilience.test_network import Member

PLACES = 4
HOLDERS = 8
HEAL_S = 20.0
"""Seconds until a visit succeeds again; the figures of this machine stand beside each test."""
POINTS_S = 60.0
"""Seconds until there are as many access points as before: mostly two, sixteen if others fail to come by at first."""
FIND_S = 45.0
"""The same where half of all nodes that a client knows from memory are dead: seven seconds here, fifteen when busy."""
SIZE = 32 << 20
VISIT_S = 15.0  # that a visitor waits for anything
USERS = count()


class Refused(Exception):
    """The SOCKS port says no; the number is its answer."""


@define(eq=False)
class Rig:
    """All processes; `body` is what the service has to give."""

    tracker: Member
    places: list[Member]
    holders: list[Member]
    service: Member
    client: Member
    socks: int
    body: bytes

    @property
    def all(self) -> list[Member]:
        """Give every process."""
        return [self.tracker, *self.places, *self.holders, self.service, self.client]

    @property
    def offered(self) -> Any:
        """Give the row of the service."""
        return self.service.ask("rendezvous.services")["services"][0]

    @property
    def points(self) -> list[str]:
        """Give the access points that are listened at, by the first letters of their ids."""
        rows = self.service.ask("rendezvous.points")["points"]
        return sorted(row["node"][:8] for row in rows)

    def named(self, short: str) -> Member:
        """Give the process of a node."""
        return next(one for one in self.places if one.short == short)

    @contextmanager
    def line(self, port: int = 80) -> Iterator[socket.socket]:
        """Come to a port of the service as a user who was never here."""
        host = self.offered["address"].encode()
        with socket.create_connection(("127.0.0.1", self.socks), VISIT_S) as line:
            user = b"user%d" % next(USERS)
            line.sendall(b"\x05\x01\x02" + b"\x01" + bytes((len(user),)) + user + b"\x01x")
            if line.recv(4, socket.MSG_WAITALL) != b"\x05\x02\x01\x00":
                raise Refused("method")
            line.sendall(b"\x05\x01\x00\x03" + bytes((len(host),)) + host + port.to_bytes(2, "big"))
            answer = line.recv(10, socket.MSG_WAITALL)
            if answer[:2] != b"\x05\x00":
                raise Refused(answer[1:2].hex())
            yield line

    def visit(self) -> bool:
        """Ask for the page; say whether it came."""
        try:
            with self.line() as line:
                line.sendall(b"page\n")
                return line.recv(5, socket.MSG_WAITALL) == b"page!"
        except (OSError, Refused):
            return False

    def heals(self, what: str, before: float, seconds: float = HEAL_S) -> float:
        """Wait for a visit that succeeds; gives the seconds since `before`."""
        until(what, self.visit, seconds, 0.05)
        return time.monotonic() - before


def answer(body: bytes) -> Callable[[socket.socket], None]:
    """Make the program behind the service: it has a page, and the body from any byte on."""

    def speak(line: socket.socket) -> None:
        words = line.makefile("rb").readline().split()
        if words == [b"page"]:
            line.sendall(b"page!")
        elif words[:1] == [b"from"]:
            line.sendall(body[int(words[1]) :])

    return speak


def tables(**sections: str) -> str:
    """Write tables of a configuration."""
    return "".join(f"[{name}]\n{text}\n" for name, text in sections.items())


@cache
def rig() -> Rig:
    """Start the one network of this module, and wait until the service can be visited."""
    body = os.urandom(SIZE)
    web = serve(RUN, answer(body))
    tracker = Member.start(RUN, "tracker", _here(free_port()), tables(rendezvous="enabled = false"))
    known = f'trackers = ["{tracker.where}"]\n'
    socks = free_port()
    alone = f"relay = false\nlisten = []\n{known}"

    def place(_: int) -> Member:
        return Member.start(RUN, "rendezvous", _here(free_port()) + known)

    def holder(_: int) -> Member:
        port = free_port()
        more = tables(rendezvous="enabled = false", dht=f'listen = "udp:{port}:interface=127.0.0.1"')
        return Member.start(RUN, "dht", _here(port) + known, more)

    def service(_: int) -> Member:
        offers = f'[socks]\nlisten = []\n[service.web]\nports = {{ 80 = "localhost:{web}" }}\n'
        return Member.start(RUN, "node", alone, offers)

    def client(_: int) -> Member:
        return Member.start(RUN, "node", alone, f'[socks]\nlisten = ["tcp:{socks}:interface=127.0.0.1"]\n')

    kinds = [place] * PLACES + [holder] * HOLDERS + [service, client]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda kind: kind(0), kinds))
    found = Rig(tracker, made[:PLACES], made[PLACES:-2], made[-2], made[-1], socks, body)
    RUN.addCleanup(_end, found)
    until("the service is published", lambda: found.offered["state"] == "published", 40.0)
    until("the service is visited", found.visit, 40.0, 0.2)
    return found


def _end(rig: Rig) -> None:
    """Tell all of them to end at the same time; each is waited for by whoever has started it."""
    for one in rig.all:
        one.program.process.terminate()


def _here(port: int) -> str:
    return f'listen = ["tcp:{port}:interface=127.0.0.1"]\n'


class HiddenCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = rig()
        until("three access points", lambda: len(self.rig.points) == 3, HEAL_S)

    def tearDown(self) -> None:
        self.assertEqual([line for one in self.rig.all for line in one.defects()], [])


class FirstTests(HiddenCase):
    def test_it_is_found_and_visited(self) -> None:
        """Everybody who keeps the DHT holds the descriptor; the first visitors wait for circuits, and no more."""
        rig = self.rig
        until("all hold it", lambda: all(one.ask("dht.stats")["items"] for one in rig.holders), HEAL_S)
        times = []
        for _ in range(5):
            begun = time.monotonic()
            self.assertTrue(rig.visit())
            times.append(time.monotonic() - begun)
        print(f"  first visits of five users: {', '.join(f'{one * 1000:.0f}' for one in times)} ms")
        self.assertLess(sorted(times)[2], 5.0)


class KillTests(HiddenCase):
    def test_the_service(self) -> None:
        """Its address and its access points are the same after a restart."""
        rig = self.rig
        address, points = rig.offered["address"], rig.points
        begun = time.monotonic()
        rig.service.program.kill()
        rig.service.begin(rig.service.up)
        healed = rig.heals("the service is visited again", begun)
        print(f"  service killed and started again: visited after {healed:.2f} s")
        self.assertEqual((rig.offered["address"], rig.points), (address, points))

    def test_each_access_point(self) -> None:
        """Visits go on by the other two; one that stays away is replaced, one that comes back is taken up again."""
        rig = self.rig
        for place, short in enumerate(rig.points):
            dead = rig.named(short)
            begun = time.monotonic()
            dead.program.kill()
            healed = rig.heals("the service is visited by another access point", begun)
            if place:
                dead.begin(dead.up)
            until("there are three again", lambda: self.three(short, bool(place)), POINTS_S)  # noqa: B023
            again = time.monotonic() - begun
            print(f"  access point killed: visited after {healed:.2f} s, three of them after {again:.2f} s")
            if not place:
                dead.begin(dead.up)

    def three(self, short: str, back: bool) -> bool:
        """Say whether there are three access points that work, without one that is gone."""
        now = self.rig.points
        return len(now) == 3 and (back or short not in now)

    def test_the_rendezvous_hop_during_a_transfer(self) -> None:
        """The transfer breaks, at once and not wrongly: what has come is the beginning, and the rest can be had."""
        rig = self.rig
        digest, size = hashlib.sha256(), 0
        dead: Member | None = None
        begun = healed = 0.0
        while size < SIZE:
            try:
                with rig.line() as line:
                    again = dead is not None
                    line.sendall(b"from %d\n" % size)
                    while data := line.recv(1 << 18):
                        if again and not healed:
                            healed = time.monotonic() - begun
                        digest.update(data)
                        size += len(data)
                        if dead is None and size > SIZE // 8:
                            dead = rig.named(self.hop())
                            begun = time.monotonic()
                            dead.program.kill()
                    self.assertEqual(size, SIZE, "a transfer that broke has ended as if it were whole")
            except (OSError, Refused):
                self.assertLess(time.monotonic() - begun, HEAL_S)
        assert dead is not None
        self.assertGreater(healed, 0, "the transfer has not broken at all")
        print(f"  rendezvous hop killed: the transfer goes on after {healed:.2f} s")
        self.assertEqual(digest.digest(), hashlib.sha256(rig.body).digest())
        dead.begin(dead.up)

    def hop(self) -> str:
        """Give the last hop of the client's circuit that carries a stream."""
        rows = self.rig.client.ask("relay.circuits")["circuits"]
        return str(next(row for row in reversed(rows) if row["streams"] and row["purpose"] == "alone")["path"])[-8:]

    def test_seven_of_eight_holders_of_the_descriptor(self) -> None:
        """Whoever knows nothing but the address finds it all the same."""
        rig = self.rig
        holding = [one for one in rig.holders if one.ask("dht.stats")["items"]]
        self.assertEqual(len(holding), HOLDERS)
        rig.client.stop()
        for one in holding[1:]:
            one.program.kill()
        rig.client.begin(rig.client.up)
        healed = rig.heals("the service is found by one who has its descriptor", time.monotonic(), FIND_S)
        print(f"  seven of eight holders killed: found after {healed:.2f} s")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda one: one.begin(one.up), holding[1:]))
