"""A network of real processes: a page is fetched through it while its relays are killed, one after the other."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from tests.interop.backend import serve
from tests.interop.daemons import Daemon, Scope, folder, free_port, until

HEAL_S = 20.0
"""Seconds until a page comes again: half a second here after a relay was killed, nine after one hangs."""
PROGRAMS = 3
RELAYS = 4
EXITS = 2


@define(eq=False)
class Member(Daemon):
    """One node under twistd, on ports of the kernel's choice."""

    @classmethod
    def start(cls, scope: Scope, role: str, text: str, more: str = "") -> "Member":
        """Start one with the keys of [relay] in `text`; `more` is more TOML."""
        member = cls(role, folder(scope), scope, ())
        network = 'network = "test-processes"\nallow_loopback = true\ndrain_s = 0\n'
        quiet = '[control]\nlisten = []\n[log]\nformat = "json"\nblur = 0\n'
        (member.home / "test.toml").write_text(f"{quiet}[relay]\n{network}{text}\n{more}")
        member.begin(member.up)
        return member

    @property
    def where(self) -> str:
        """Its id and address, as others are told."""
        found = [line for line in self.ask("node.status")["listening"] if line.startswith("links on ")]
        return str(found[0].removeprefix("links on "))

    @property
    def short(self) -> str:
        """The first letters of its id."""
        return str(self.ask("node.status")["id"])


def here() -> str:
    """Listen at a port that stays the same when the node comes back."""
    return f'listen = ["tcp:{free_port()}:interface=127.0.0.1"]\n'


@define(eq=False)
class Load:
    """Programs that ask for the page by SOCKS, again and again, and when it came last."""

    port: int
    target: int
    good: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    last: float = field(default=0.0, init=False)
    _end: Event = field(factory=Event, init=False)

    def begin(self) -> None:
        """Begin in threads."""
        for _ in range(PROGRAMS):
            Thread(target=self._run, daemon=True).start()

    def end(self) -> None:
        """Ask no more."""
        self._end.set()

    def fetch(self) -> bool:
        """Ask once; say whether the page came."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 15) as line:
                line.sendall(b"\x05\x01\x00")
                host = b"127.0.0.1"
                ask = b"\x05\x01\x00\x03" + bytes((len(host),)) + host + self.target.to_bytes(2, "big")
                if line.recv(2, socket.MSG_WAITALL) != b"\x05\x00":
                    return False
                line.sendall(ask)
                if line.recv(10, socket.MSG_WAITALL)[:2] != b"\x05\x00":
                    return False
                line.sendall(b"page?")
                return line.recv(5, socket.MSG_WAITALL) == b"page!"
        except OSError:
            return False

    def _run(self) -> None:
        while not self._end.is_set():
            if self.fetch():
                self.good += 1
                self.last = time.monotonic()
            else:
                self.failed += 1
            self._end.wait(0.05)


class NetworkTests(SynchronousTestCase):
    """One network for all of it: starting it is what takes time."""

    def setUp(self) -> None:
        def page(line: socket.socket) -> None:
            if line.recv(5, socket.MSG_WAITALL) == b"page?":
                line.sendall(b"page!")

        self.page = serve(self, page)
        self.tracker = Member.start(self, "tracker", here())
        known = f'trackers = ["{self.tracker.where}"]\n'
        self.relays = [Member.start(self, "relay", here() + known) for _ in range(RELAYS)]
        out = f'{known}exit = ["accept 127.0.0.0/8:*"]\n'
        self.relays += [Member.start(self, "relay", here() + out) for _ in range(EXITS)]
        self.by_id = {one.short: one for one in (self.tracker, *self.relays)}
        port = free_port()
        self.client = Member.start(
            self,
            "node",
            f'relay = false\nlisten = []\ntrackers = ["{self.tracker.where}"]\n',
            f'[socks]\nlisten = ["tcp:{port}:interface=127.0.0.1"]\n',
        )
        self.load = Load(port, self.page)
        until("a page comes through the network", self.load.fetch, 40.0, 0.2)
        until("the client knows every relay", lambda: len(self.ask("relay.peers")["peers"]) > RELAYS + EXITS, 40.0)
        self.addCleanup(self.load.end)

    def ask(self, method: str, **params: Any) -> Any:
        return self.client.ask(method, **params)

    def path(self) -> list[str]:
        """Give the hops that pages come by."""
        rows = self.ask("relay.circuits")["circuits"]
        used = [row for row in rows if row["purpose"] == "streams" and row["state"] == "open"]
        return str(used[-1]["path"]).split(">") if used else []

    def killed(self) -> Iterator[tuple[str, float]]:
        """Kill what the pages come by, and let it come back when pages do; give how long each took to heal."""
        for place, name in ((1, "middle"), (0, "guard"), (2, "exit")):
            path = until("there is a circuit for pages", self.path, 20.0)
            dead = self.by_id[path[place]]
            dead.program.kill()
            yield name, self.heals(f"pages come again without the {name}")
            dead.begin(dead.up)

    def hangs(self) -> float:
        """Let the middle relay hang, whose links look well for a minute yet; give how long it took to heal."""
        dead = self.by_id[until("there is a circuit for pages", self.path, 20.0)[1]]
        os.kill(dead.pid, signal.SIGSTOP)
        try:
            return self.heals("pages come again without the relay that hangs")
        finally:
            os.kill(dead.pid, signal.SIGCONT)

    def heals(self, what: str) -> float:
        """Wait for a page that was asked for after now; give how long it took."""
        begun = time.monotonic()
        until(what, lambda: self.load.last > begun + 0.1, HEAL_S)
        return self.load.last - begun

    def test_relays_are_killed_and_trackers_stopped(self) -> None:
        self.load.begin()
        healed = dict(self.killed())
        self.assertEqual(list(healed), ["middle", "guard", "exit"])
        healed["hanging"] = self.hangs()
        self.assertLess(max(healed.values()), HEAL_S, healed)
        self.assertGreater(self.load.good, 3)
        # A program that asked in that moment may have heard of it; hardly anybody else.
        self.assertLess(self.load.failed, 10, healed)
        # G1: without any tracker circuits are built all the same.
        self.tracker.program.kill()
        self.heals("pages come again without the tracker")
        row = until("a circuit without trackers", self.built, 30.0)
        self.assertEqual(len(row["path"].split(">")), 3)
        self.load.end()
        # G11: and so they are after a restart, from memory.
        self.client.stop()
        self.client.begin(self.client.up)
        begun = time.monotonic()
        until("a page comes from what was remembered", self.load.fetch, 20.0)
        self.assertLess(time.monotonic() - begun, 6.0)  # a third of a second here
        self.assertEqual([line for one in (self.client, *self.relays) for line in one.defects()], [])

    def built(self) -> Any:
        from layer8.core.errors import Layer8Error

        try:
            return self.ask("relay.test")
        except Layer8Error:
            return None
