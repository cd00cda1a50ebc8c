"""One run of `layer8 expose`: the agent, what is told about it, and the visits that show whether it works."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from layer8.cli import expose_probe as probe
from layer8.cli.expose_secret import Registrar, from_file
from layer8.cli.expose_show import Screen
from layer8.cli.inspector import Inspector
from layer8.config.endpoint import is_loopback
from layer8.config.files import forbidden
from layer8.config.proxy import AgentConfig
from layer8.control.service import wall_clock
from layer8.core.errors import Layer8Error, Refused, Unavailable
from layer8.crypto.secret import HostSecret
from layer8.net.dial import Where
from layer8.proxy.agent import Agent
from layer8.proxy.pp import Kind
from layer8.proxy.record import Record
from layer8.proxy.replay import Inspection
from layer8.proxy.uplink import ANY_PORT, Published, ServerLink

LOOK = 0.5
"""Seconds between two looks at what has changed."""
SETTLE = 0.2
"""Seconds after which a server that has refused us and is still there has meant it."""
CLOCK_SKEW = 60.0
"""Seconds by which clocks may differ; certificates and expiry dates are off by as much."""

TRY_AGAIN = "layer8 --verbose expose shows whether the server calls and what is dialled then"

_ENDS = {"peer": "the connection was lost", "going_away": "the server has stopped"}
_DEFAULT = {"http": 80, "https": 443}


@frozen
class Plan:
    """What is to be published: `targets` by public port, with `ANY_PORT` for plain HTTP.

    `inspect` is where the page of requests is to be, empty for the usual place and None for no page.
    With a `proxy_protocol` targets hear who comes. `health` says how they are looked after.
    """

    host: str
    local: str
    targets: dict[int, Where]
    secret_file: Path
    config: AgentConfig
    inspect: str | None = None
    proxy_protocol: Kind = "none"
    health: Literal["none", "tcp", "http"] = "none"

    @property
    def visited(self) -> str:
        """A name that visitors may ask for: the host, or one that its wildcard covers."""
        return f"layer8-check.{self.host[2:]}" if self.host.startswith("*.") else self.host


@frozen
class Verdict:
    """How one look at the published host ended; `good` is None for what could not be looked at.

    `advice` says what to do if it is not good.
    """

    check: str
    good: bool | None
    why: str
    advice: str = ""


async def run(reactor: Any, plan: Plan, registrar: Registrar | None, screen: Screen, check: bool) -> int:
    """Publish until cancelled, or until all checks are done; gives the exit code, raises Layer8Error."""
    mode = forbidden(plan.secret_file, os.environ)
    if registrar is None:
        secret = from_file(plan.secret_file, plan.host, mode)
    else:
        secret = await registrar.secret(reactor, plan.host, plan.secret_file, mode)
    exposure = Exposure(reactor, plan, secret, screen, check)
    try:
        await exposure.open()
        if check:
            return await exposure.check_all()
        with suppress(CancelledError):  # Ctrl-C is how this is meant to end
            await exposure.ended
        return 0
    finally:
        await exposure.close()


@define(eq=False)
class Exposure:
    """A running agent; `ended` fails when it makes no sense to go on."""

    reactor: Any
    plan: Plan
    secret: HostSecret
    screen: Screen
    checking: bool
    ended: Deferred[None] = field(factory=Deferred, init=False)
    agent: Agent = field(init=False)
    _targets: dict[int, Where] = field(init=False)
    _names: dict[str, frozenset[str]] = field(factory=dict, init=False)
    _serving: Deferred[ServerLink] = field(factory=Deferred, init=False)
    _shown: tuple[str, ...] = field(default=(), init=False)
    _warned: bool = field(default=False, init=False)
    _down: bool = field(default=False, init=False)
    _away: set[str] = field(factory=set, init=False)
    _looker: LoopingCall | None = field(default=None, init=False)
    _page: Inspector | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Make the agent, which dials nowhere yet."""
        self._targets = dict(self.plan.targets)
        published = Published(
            self.plan.host,
            self.secret.key,
            self._targets,
            secret=self.secret.value,
            proxy_protocol=self.plan.proxy_protocol,
            check=self.plan.health,
        )
        self.agent = Agent(self.reactor, self.plan.config, [published], self._told)

    async def open(self) -> None:
        """Look at the targets and start; raises Refused if one of them is a server that is to be dialled."""
        hosts = {where.host for where in self._targets.values() if not where.path}
        hosts |= {uplink.address.host for uplink in self.agent.uplinks}
        for host in sorted(hosts):
            self._names[host] = await deferToThread(probe.addresses, host)
        for uplink in self.agent.uplinks:
            self._refuse_loop(uplink, [uplink.address.port])
        what = f"{self.plan.host} -> {', '.join(where.words for where in self._targets.values())}"
        if not self.checking:
            self.screen.begin(self.agent, what)
            if self.plan.inspect is not None:
                self._inspect(what, self.plan.inspect)
            await self._knock()
        self.agent.startService()
        self._looker = LoopingCall(self._look)
        self._looker.clock = self.reactor
        self._looker.start(LOOK, now=False)

    async def close(self) -> None:
        """Stop the agent and show the last of it."""
        if self._looker is not None and self._looker.running:
            self._looker.stop()
        if self._page is not None:
            await self._page.close()
        if self.agent.running:
            await self.agent.stopService()
        with suppress(BrokenPipeError):
            self.screen.end()

    def _inspect(self, what: str, where: str) -> None:
        """Keep a record of requests, and open the page that shows it."""
        carrier = self.agent.carrier
        carrier.looks = inspection = Inspection(self.reactor, carrier.pump, carrier.local, Record(), wall_clock)
        self._page = Inspector(self.reactor, inspection.record, what, inspection.replay)
        self._page.listen(where)
        self.screen.say("inspect", f"requests are shown at {self._page.url}", url=self._page.url)

    def _refuse_loop(self, uplink: ServerLink, ports: Iterable[int]) -> None:
        """Raise Refused if a target is the server itself, by whatever name."""
        server = uplink.address.host
        for where in self._targets.values():
            same = where.host == server or (is_loopback(where.host) and is_loopback(server))
            same = same or bool(self._names.get(where.host, frozenset()) & self._names.get(server, frozenset()))
            if same and not where.path and where.port in ports:
                raise Refused(f"{where.words} is the server itself: visitors would go round in a circle")

    async def _knock(self) -> None:
        """Warn once of targets that do not answer; they may come up later."""
        for where in dict.fromkeys(self._targets.values()):
            why = await deferToThread(probe.knock, where)
            if why:
                self._warned = True
                line = f"{where.words} does not answer ({why}); visitors are turned away until it does"
                self.screen.say("target", line, warning=True, target=where.words, why=why)

    # What the agent tells.

    def _told(self, what: str, uplink: ServerLink, word: str) -> None:
        try:
            self._take(what, uplink, word)
        except (OSError, Layer8Error) as error:
            self._fail(error)

    def _take(self, what: str, uplink: ServerLink, word: str) -> None:
        server = uplink.address.url
        if what == "connected":
            self._adopt_ports(uplink)
            self._away.discard(server)
            self._say("connected", "", server=server)
        elif what == "subscribed":
            self._say("serving", f"{server} sends us the visitors of {word}", server=server, host=word)
            if not self._serving.called:
                self._serving.callback(uplink)
            if not self.checking:
                self.agent.tasks.start("visit", self._try_out(uplink))
        elif what == "lost":
            if self.checking:
                self._fail(Unavailable(f"{server} cannot be reached: {_reason(server, word)}"))
            elif server not in self._away:
                self._away.add(server)
                line = f"not connected to {server}: {_reason(server, word)}; trying again for as long as it takes"
                self._say("lost", line, warning=True, server=server, why=_reason(server, word))
        elif what == "refused":
            self.reactor.callLater(SETTLE, self._refused, uplink)
        elif what == "draining":
            self._say("draining", f"{server} is about to stop", warning=True, server=server)
        elif what == "joined":
            self._say("joined", "", host=word)
            if uplink.subscriptions:
                self._publish(uplink)
        elif what == "ended":
            self._say("ended", "", host=word)
        elif what == "rejected":
            # The counts tell people enough: with a target that is down there may be thousands.
            self._say("rejected", "", host=self.plan.host, why=word.partition(": ")[2])

    def _say(self, event: str, line: str, *, warning: bool = False, **facts: object) -> None:
        if not self.checking:
            self.screen.say(event, line, warning=warning, **facts)

    def _adopt_ports(self, uplink: ServerLink) -> None:
        """Let 80 and 443 mean the server's ports for HTTP and TLS where these have other numbers; look for loops."""
        for scheme, usual in _DEFAULT.items():
            port = uplink.public.get(scheme)
            if port is not None and usual in self._targets:
                self._targets.setdefault(port, self._targets[usual])
        try:
            self._refuse_loop(uplink, uplink.public.values())
        except Refused:
            # One visitor would be enough to set it turning: there must not be a subscription at all.
            self.agent.hosts.clear()
            raise

    def _refused(self, uplink: ServerLink) -> None:
        """End if the server that has refused us is still there, and no other one serves us."""
        why = uplink.refusals.get(self.plan.host)
        if why is None or not uplink.connected:
            return
        server = uplink.address.url
        if any(other.subscriptions for other in self.agent.uplinks):
            self._say("refused", f"{server} refuses {self.plan.host}: {why}", warning=True, server=server, why=why)
            return
        self._say("refused", "", server=server, why=why)
        self._fail(
            Refused(
                f"{server} refuses {self.plan.host}: {why}; the secret is from {self.plan.secret_file}: "
                f"see what is registered with layer8 proxy list, or make a new one with "
                f"layer8 proxy rotate {self.plan.host}"
            )
        )

    def _fail(self, error: Exception) -> None:
        """End, but not from within the agent's own call: it would not notice that it is being stopped."""
        self.reactor.callLater(0, self._end, error)

    def _end(self, error: Exception) -> None:
        waiting: Deferred[Any] = self._serving if self.checking else self.ended
        if not waiting.called:
            waiting.errback(Failure(error))

    def _look(self) -> None:
        try:
            if not self.checking:
                self._look_at_targets()
                self.screen.look()
        except OSError as error:
            self._fail(error)

    def _look_at_targets(self) -> None:
        """Say when no target answers any more, and when one does again; the first look of all was said already."""
        down = self.plan.host in self.agent.checks.down
        if down is self._down:
            return
        self._down = down
        if down:
            line = "" if self._warned else f"{self.plan.local} does not answer; visitors are turned away until it does"
            self._say("down", line, warning=True, host=self.plan.host)
        else:
            self._say("up", f"{self.plan.local} answers again", host=self.plan.host)
        self._warned = False

    # Looking at it from outside.

    async def _try_out(self, uplink: ServerLink) -> None:
        """Visit the host as others would, once, and say its address when that works."""
        verdict = await self._dial_back(uplink)
        if verdict.good:
            self._publish(uplink)
            return
        try:
            if verdict.good is None:
                self._say("unchecked", f"not tried out: {verdict.why}", why=verdict.why)
                self._publish(uplink)
            else:
                line = "" if self._warned else f"a first visit failed: {verdict.why}"
                self._say("failed", line, warning=True, why=verdict.why)
        except OSError as error:
            self._fail(error)

    def _publish(self, uplink: ServerLink) -> None:
        """Say the public addresses, once for each set of them."""
        urls = tuple(self.urls(uplink))
        if urls and urls != self._shown:
            self._shown = urls
            self._say("url", "  ".join(urls), urls=urls, host=self.plan.host)

    def urls(self, uplink: ServerLink) -> Iterator[str]:
        """Give the addresses that visitors may use."""
        for scheme, port in self._served(uplink):
            number = "" if port == _DEFAULT[scheme] else f":{port}"
            yield f"{scheme}://{self.plan.host}{number}"

    def _served(self, uplink: ServerLink) -> Iterator[tuple[str, int]]:
        for scheme in _DEFAULT:
            port = uplink.public.get(scheme)
            if port is not None and (scheme == "http" or port in self._targets):
                yield scheme, port

    async def _dial_back(self, uplink: ServerLink) -> Verdict:
        """Visit the host through the server's public port for plain HTTP."""
        port = uplink.public.get("http")
        if port is None:
            return Verdict("dial-back", None, "the server has no port for plain HTTP")
        before = self.agent.carrier.totals.joined
        try:
            answer = await deferToThread(probe.ask, Where(uplink.address.host, port), self.plan.visited)
        except Unavailable as error:
            return Verdict(
                "dial-back", None, f"port {port} of {uplink.address.host} cannot be reached from here: {error}"
            )
        except Layer8Error as error:
            return Verdict("dial-back", False, str(error), TRY_AGAIN)
        if not answer.nothing:
            return Verdict("dial-back", True, f"{answer.line} after {answer.ms:.1f} ms")
        if self.agent.carrier.totals.joined > before:
            return Verdict("dial-back", True, "carried; the target closed without an answer")
        knocked = await deferToThread(probe.knock, self._targets.get(port, self._targets[ANY_PORT]))
        if knocked:
            return Verdict("dial-back", False, f"the target does not answer: {knocked}", "start the target")
        return Verdict("dial-back", False, "the server closed it", TRY_AGAIN)

    async def check_all(self) -> int:
        """Look at everything that has to be right, one line each; gives 0 if nothing is wrong."""
        uplink = await self._serving
        good = True
        for look in (self._check_local, self._check_dns, self._check_ports, self._check_clock, self._check_key):
            for verdict in await look(uplink):
                good = self._judge(verdict) and good
        good = self._judge(await self._dial_back(uplink)) and good
        return 0 if good else 1

    def _judge(self, verdict: Verdict) -> bool:
        word = {True: "ok", False: "failed", None: "not checked"}[verdict.good]
        advice = verdict.advice if verdict.good is False else ""
        line = f"{verdict.check:12} {word:11}  {verdict.why}{'; ' if advice else ''}{advice}"
        self.screen.say("check", line.rstrip(), check=verdict.check, ok=verdict.good, why=verdict.why, advice=advice)
        return verdict.good is not False

    async def _check_local(self, uplink: ServerLink) -> list[Verdict]:
        found = []
        for where in dict.fromkeys(self._targets.values()):
            why = await deferToThread(probe.knock, where)
            shown = f"{where.words}: {why}" if why else where.words
            found.append(Verdict("local", not why, shown, "start what is to be published, or name another LOCAL"))
        return found

    async def _check_dns(self, uplink: ServerLink) -> list[Verdict]:
        host, server = self.plan.visited, uplink.address.host
        if is_loopback(server):
            return [Verdict("dns", None, "the server is on this machine")]
        ours = await deferToThread(probe.addresses, host)
        theirs = await deferToThread(probe.addresses, server)
        if not ours:
            advice = f"at the DNS of {host}, let a CNAME, A or AAAA record lead to {server}"
            return [Verdict("dns", False, f"{host} has no address", advice)]
        shown = ", ".join(sorted(ours))
        if not ours & theirs:
            why = f"{host} leads to {shown}, the server is at {', '.join(sorted(theirs))}"
            return [Verdict("dns", False, why, "correct the record, unless something in front passes visitors on")]
        return [Verdict("dns", True, f"{host} leads to {shown}")]

    async def _check_ports(self, uplink: ServerLink) -> list[Verdict]:
        found = []
        for scheme, port in self._served(uplink):
            why = await deferToThread(probe.knock, Where(uplink.address.host, port))
            shown = f"{scheme} at port {port}{': ' if why else ''}{why}"
            found.append(Verdict("ports", not why, shown, "open it in the firewalls between here and the server"))
        return found or [Verdict("ports", None, "the server does not say where visitors come")]

    async def _check_clock(self, uplink: ServerLink) -> list[Verdict]:
        address = uplink.address
        try:
            date = await deferToThread(probe.clock_of, Where(address.host, address.port), address.secure, address.pin)
        except Layer8Error as error:
            return [Verdict("clock", None, str(error))]
        if date is None:
            return [Verdict("clock", None, "the server does not say what time it has")]
        ahead = probe.skew(date)
        way = "ahead of" if ahead > 0 else "behind"
        close = abs(ahead) <= 1
        why = "the server's and ours agree" if close else f"the server's is {abs(ahead):.0f} s {way} ours"
        return [Verdict("clock", abs(ahead) <= CLOCK_SKEW, why, "let both machines get the time by NTP")]

    async def _check_key(self, uplink: ServerLink) -> list[Verdict]:
        """Compare the key that visitors see with the target's own: another one means that somebody ends TLS."""
        port = uplink.public.get("https")
        local = None if port is None else self._targets.get(port)
        if port is None or local is None:
            return [Verdict("certificate", None, "nothing is published over TLS; see --port 443=LOCAL")]
        name = self.plan.visited
        try:
            ours = await deferToThread(probe.key_at, local, name)
        except Layer8Error as error:
            return [Verdict("certificate", False, f"{local.words}: {error}", "let the target behind 443 speak TLS")]
        try:
            seen = await deferToThread(probe.key_at, Where(uplink.address.host, port), name)
        except Unavailable as error:
            return [Verdict("certificate", None, f"port {port} of {uplink.address.host}: {error}")]
        except Layer8Error as error:
            why = f"port {port} of {uplink.address.host}: {error}"
            return [Verdict("certificate", False, why, "the other lines say whether visitors get through at all")]
        if seen != ours:
            why = f"visitors see the key {seen}, {local.words} has {ours}"
            advice = (
                "somebody on the way ends TLS: the server if the host is registered with tls = terminate, else ask who"
            )
            return [Verdict("certificate", False, why, advice)]
        return [Verdict("certificate", True, f"visitors see the target's own key {seen}")]


def _reason(server: str, word: str) -> str:
    """Say why in words of its own; the address that it may begin with is said already."""
    word = word.removeprefix(f"{server}: ").removeprefix("cannot connect: ")
    return _ENDS.get(word, word)
