"""An agent looks after its own targets, so that visitors go where one answers.

::

    every EVERY seconds, soon after a target has refused a visitor, and each second while it is down:
        tcp    dial, and close
        http   dial, GET check_path, and an answer below 500

A target is down after `FAILURES` looks in a row that failed, and up again after one that did not. A host whose every
target is down tells its servers, which let other agents have its visitors. A target for the public port 443 is looked
at by tcp in any case: TLS ends in it, and what it says inside is not for us.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from layer8.net.dial import Attempt, Dialer, Where, reason
from layer8.net.entries import Dialing
from layer8.net.pump import Pump

EVERY: Final = 10.0
"""Seconds between two looks at a target."""
TURN: Final = 1.0
"""Seconds between two looks at a target that is down, or has just failed."""
PATIENCE: Final = 5.0
"""Seconds that a target has for one look."""
FAILURES: Final = 2
"""Looks in a row that have to fail until a target is down."""
DOUBT: Final = 1.0
"""Seconds between two looks for which visitors that were refused are the reason."""
HEAD: Final = 4096
"""Bytes of an answer in which its first line has to end."""
_TLS = 443


class Looked(Protocol):
    """A host that is looked after."""

    @property
    def host(self) -> str:
        """Its name."""

    @property
    def targets(self) -> Mapping[int, Where]:
        """Where its visitors go, by public port."""

    @property
    def check(self) -> str:
        """How its targets are looked at: none, tcp or http."""

    @property
    def check_path(self) -> str:
        """What an http look asks for."""

    def introduce(self, remote: None, port: int) -> bytes:
        """Give what the target hears before anything else."""


@define(eq=False)
class Health:
    """One target: `why` says what was wrong at the last look, nothing if all was well."""

    port: int
    where: Where
    up: bool = True
    why: str = ""
    ms: int = 0
    failures: int = 0
    due: float = 0.0
    looking: bool = False

    def looked(self, why: str, ms: int) -> bool:
        """Take the outcome of a look; True if the target is up now and was down before, or the other way round."""
        before = self.up
        self.why, self.ms = why, ms
        self.failures = self.failures + 1 if why else 0
        self.up = self.failures < FAILURES if before else not why
        return self.up is not before


@define(eq=False)
class Checks:
    """All targets of an agent; `changed` is told of a host that is down now, or up again."""

    clock: IReactorTime
    pump: Pump
    dialer: Dialer
    hosts: Mapping[str, Looked]
    changed: Callable[[str, bool], None]
    down: set[str] = field(factory=set, init=False)
    _healths: dict[str, dict[int, Health]] = field(factory=dict, init=False)
    _doubted: dict[str, float] = field(factory=dict, init=False)
    _looks: set[Look] = field(factory=set, init=False)
    _loop: LoopingCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the clockwork."""
        self._loop = LoopingCall(self._turn)
        self._loop.clock = self.clock

    def start(self) -> None:
        """Look now, and again and again."""
        self._loop.start(TURN, now=True)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()
        for look in list(self._looks):
            look.abandon()

    def _turn(self) -> None:
        self.down &= self.hosts.keys()
        for name in self._healths.keys() - self.hosts.keys():
            del self._healths[name]
        now = self.clock.seconds()
        for host in list(self.hosts.values()):
            if host.check == "none":
                self._judge(host)
                continue
            for health in list(self._of(host).values()):
                if not health.looking and (health.why or now >= health.due):
                    self._look(host, health)

    def doubt(self, name: str) -> None:
        """Take that a target of a host has refused a visitor: it is looked at soon, if at all."""
        host, now = self.hosts.get(name), self.clock.seconds()
        if host is None or host.check == "none" or not self._loop.running:
            return
        if now - self._doubted.get(name, -DOUBT) >= DOUBT:
            if len(self._doubted) > len(self.hosts):
                self._doubted.clear()
            self._doubted[name] = now
            self._look_at(host)

    def now(self, host: Looked) -> Deferred[list[Health]]:
        """Look at every target of a host now, by tcp if it is not looked after."""
        done: Deferred[Any] = DeferredList(self._look_at(host))
        done.addCallback(lambda _: list(self._of(host).values()))
        return done

    def _of(self, host: Looked) -> dict[int, Health]:
        known = self._healths.setdefault(host.host, {})
        for port in known.keys() - host.targets.keys():
            del known[port]
        for port, where in host.targets.items():
            if port not in known or known[port].where != where:
                known[port] = Health(port, where)
        return known

    def _look_at(self, host: Looked) -> list[Deferred[None]]:
        return [self._look(host, health) for health in list(self._of(host).values())]

    def _look(self, host: Looked, health: Health) -> Deferred[None]:
        asked = b""
        if host.check == "http" and health.port != _TLS:
            name = host.host.replace("*", "layer8-check", 1)
            asked = host.introduce(None, health.port or 80) + request(name, host.check_path)
        done: Deferred[None] = Deferred()
        begun = self.clock.seconds()
        health.looking, health.due = True, begun + EVERY

        def looked(why: str) -> None:
            self._looks.discard(look)
            health.looking = False
            health.looked(why, int((self.clock.seconds() - begun) * 1000))
            self._judge(host)
            done.callback(None)

        look = Look(self.clock, self.pump, asked, looked)
        self._looks.add(look)
        look.begin(self.dialer, health.where)
        return done

    def _judge(self, host: Looked) -> None:
        """Say so if a host has gone down or come up; one that is not looked after is up."""
        healths = self._healths.get(host.host, {}).values()
        down = host.check != "none" and bool(healths) and not any(health.up for health in healths)
        if host.host in self.hosts and down is not (host.host in self.down):
            if down:
                self.down.add(host.host)
            else:
                self.down.discard(host.host)
            self.changed(host.host, not down)


class Look:
    """One look at a target; an entry of the pump while its answer is awaited."""

    __slots__ = ("_asked", "_attempt", "_done", "_fd", "_got", "_pump", "_timer")

    def __init__(self, clock: IReactorTime, pump: Pump, asked: bytes, done: Callable[[str], None]) -> None:
        """Ask nothing if `asked` is empty; `done` gets what was wrong, or nothing."""
        self._pump = pump
        self._asked = asked
        self._done: Callable[[str], None] | None = done
        self._fd = -1
        self._got = b""
        self._attempt: Attempt | Dialing | None = None
        self._timer = clock.callLater(PATIENCE, self._end, "no answer in time")

    def begin(self, dialer: Dialer, where: Where) -> None:
        """Dial."""
        attempt = dialer.dial(where, self._there)
        if self._done is not None and self._fd < 0:
            self._attempt = attempt

    def _there(self, fd: int, error: Exception | None) -> None:
        self._attempt = None
        if error is not None:
            self._end(reason(error))
            return
        self._fd = fd
        if not self._asked:
            self._end("")
            return
        try:
            os.write(fd, self._asked)
        except OSError as broken:
            self._end(reason(broken))
            return
        self._pump.watch(fd, self)

    def ready(self, fd: int, events: int) -> None:
        """Read until there is a first line."""
        while self._done is not None:
            try:
                data = os.read(self._fd, HEAD)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(reason(error))
                return
            self._got += data
            if not data or b"\n" in self._got or len(self._got) >= HEAD:
                self._end(judge(self._got))

    def abandon(self) -> None:
        """Give up and say so."""
        self._end("given up")

    def _end(self, why: str) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if self._timer.active():
            self._timer.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
        if self._fd >= 0:
            self._pump.close_fd(self._fd)
        done(why)


def request(host: str, path: str) -> bytes:
    """Write what an http look asks."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: layer8-check\r\nConnection: close\r\n\r\n".encode()


def judge(answer: bytes) -> str:
    """Say what is wrong with an answer, if anything."""
    line = answer.partition(b"\n")[0].split()
    if len(line) < 2 or not line[0].startswith(b"HTTP/1.") or not line[1].isdigit() or len(line[1]) != 3:
        return "no HTTP" if answer else "closed without an answer"
    return "" if line[1] < b"500" else f"status {line[1].decode()}"
