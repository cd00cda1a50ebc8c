"""Drives a real headless Chromium or Firefox from trial, with nothing but Autobahn in between.

Chromium is driven by its DevTools protocol, Firefox by WebDriver BiDi; both are JSON commands and events over one
WebSocket whose address the browser prints when it starts, so one `Wire` serves both. A test reads like this::

    class MyTests(TestCase):
        skip = Chromium.absent()

        async def test_title(self) -> None:
            async with await Chromium.start(reactor, hosts={"shop.test": "127.0.0.1"}) as browser:
                page = await browser.page(f"http://shop.test:{port}/")
                self.assertEqual(await page.evaluate("document.title"), "Shop")

Each browser starts with a fresh profile that is removed at the end, on a debugging port of the kernel's choice, with
everything switched off that would call home. Names that are not in `hosts` do not resolve, or end in a closed port.

Sources: https://chromedevtools.github.io/devtools-protocol/ and https://www.w3.org/TR/webdriver-bidi/
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from layer8.core.errors import TimedOut, Unavailable
from layer8.testing.browser_wire import BrowserError, Wire

START_S = 60.0
"""Seconds a browser may take until it prints the address of its debugging socket; a cold disk makes this long."""
END_S = 5.0
"""Seconds a browser gets to leave by itself before it is killed."""
CONSOLE = 10_000
"""Console messages kept per page; what comes later is dropped."""

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",  # the sandbox refuses to run as root, which is what containers are
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-client-side-phishing-detection",
    "--disable-features=OptimizationHints,MediaRouter,Translate,AutofillServerCommunication,CertificateTransparency"
    "ComponentUpdater",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--metrics-recording-only",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pings",
    "--password-store=basic",
    "--use-mock-keychain",
    "--mute-audio",
)

FIREFOX_PREFERENCES: Mapping[str, bool | int | str] = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.newtabpage.enabled": False,
    "browser.region.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.search.update": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage": "about:blank",
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.min_background_timeout_value": 4,
    "extensions.getAddons.cache.enabled": False,
    "extensions.update.enabled": False,
    "geo.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disablePrefetch": True,
    "network.dns.native_https_query": False,
    "network.dns.upgrade_with_https_rr": False,
    "network.dns.use_https_rr_as_altsvc": False,
    "network.http.http3.enable": False,
    "network.http.speculative-parallel-limit": 0,
    "network.prefetch-next": False,
    "network.trr.mode": 5,
    "remote.active-protocols": 1,
    "security.OCSP.enabled": 0,
    "security.remote_settings.crlite_filters.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
    "toolkit.telemetry.server": "",
}


@frozen
class ConsoleMessage:
    """One line of a page's console; `level` is log, debug, info, warning or error, as the browser names it."""

    level: str
    text: str


class Page(Protocol):
    """One tab."""

    console: list[ConsoleMessage]

    async def goto(self, url: str) -> None:
        """Load `url` and wait for its load event; raises BrowserError if it cannot be loaded."""

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise awaited, through JSON; raises BrowserError if it throws."""

    async def screenshot(self, path: Path) -> None:
        """Write what the tab shows to `path` as PNG."""

    async def close(self) -> None:
        """Close the tab."""


class Browser(Protocol):
    """A running browser; `async with` ends it."""

    wire: Wire
    pid: int

    async def page(self, url: str = "about:blank") -> Page:
        """Open a tab at `url`."""

    async def close(self) -> None:
        """End the process and remove its profile; does nothing the second time."""

    async def __aenter__(self) -> Self:
        """Itself."""

    async def __aexit__(self, *exc: object) -> None:
        """Close."""


@define(eq=False)
class _Process(ProcessProtocol):
    """A browser's process: waits for the line that names its debugging socket, then for its end."""

    transport: Any = field(init=False)
    profile: Path
    url: Deferred[str] = field(factory=Deferred)
    ended: Deferred[None] = field(factory=Deferred)
    said: bytes = b""

    def errReceived(self, data: bytes) -> None:
        self.said = (self.said + data)[-65536:]
        found = re.search(rb"listening on (ws://\S+)\s", self.said)
        if found and not self.url.called:
            self.url.callback(found[1].decode())

    outReceived = errReceived

    def processEnded(self, reason: Failure) -> None:
        if not self.url.called:
            last = self.said.decode(errors="replace").strip()[-500:]
            self.url.errback(BrowserError(f"the browser ended while starting: {last}"))
        self.ended.callback(None)


@define(eq=False)
class _Running:
    """What both browsers share: the process, the wire, and how they end."""

    reactor: Any
    process: _Process
    wire: Wire
    trigger: Any
    closed: bool = False

    @property
    def pid(self) -> int:
        """The process id; 0 once it ended."""
        return int(self.process.transport.pid or 0)

    async def end(self, farewell: Callable[[], Awaitable[Any]]) -> None:
        """Ask the browser to leave, kill it when it does not, and remove its profile."""
        if self.closed:
            return
        self.closed = True
        # One that hangs up before it answers has left as well.
        with contextlib.suppress(BrowserError, TimedOut):
            await farewell()
        await _end(self.reactor, self.process)
        self.wire.drop()
        self.reactor.removeSystemEventTrigger(self.trigger)


def _kill(process: _Process) -> None:
    with contextlib.suppress(ProcessExitedAlready):
        process.transport.signalProcess("KILL")


async def _end(reactor: Any, process: _Process) -> None:
    """Wait for the process, killing it after END_S seconds, then remove its profile."""
    killer = reactor.callLater(END_S, _kill, process)
    await process.ended
    if killer.active():
        killer.cancel()
    shutil.rmtree(process.profile, ignore_errors=True)


async def _launch(reactor: Any, words: Sequence[str], profile: Path) -> tuple[_Running, str]:
    """Start a browser and connect to it; the URL it printed comes back too."""
    process = _Process(profile)
    environ = {**os.environ, "HOME": str(profile), "MOZ_HEADLESS": "1", "MOZ_CRASHREPORTER_DISABLE": "1"}
    reactor.spawnProcess(process, _found(words[:1]) or words[0], words, env=environ, path=str(profile))
    trigger = reactor.addSystemEventTrigger("before", "shutdown", _kill, process)
    try:
        process.url.addTimeout(START_S, reactor)
        url = await process.url
        # Firefox prints where its server is; the session without HTTP lives at /session below it.
        wire = await Wire.connect(reactor, url if "/devtools/" in url else f"{url.rstrip('/')}/session")
    except (Exception, CancelledError):
        _kill(process)
        await _end(reactor, process)
        reactor.removeSystemEventTrigger(trigger)
        raise
    return _Running(reactor, process, wire, trigger), url


def _believe(database: Path, authorities: Sequence[Path]) -> None:
    """Make a database of authorities where Chromium looks for one, below its HOME."""
    program = _found(("certutil",))
    if program is None:
        raise Unavailable("certutil is not installed: apt install libnss3-tools")
    database.mkdir(parents=True)
    where = ("-d", f"sql:{database}")
    subprocess.run([program, "-N", *where, "--empty-password"], check=True, capture_output=True)
    for number, file in enumerate(authorities):
        words = ("-A", *where, "-t", "C,,", "-n", f"layer8-{number}", "-i", str(file))
        subprocess.run([program, *words], check=True, capture_output=True)


def _found(names: Sequence[str]) -> str | None:
    return next((path for path in map(shutil.which, names) if path), None)


def _json(expression: str) -> str:
    """JavaScript that gives the awaited value of `expression` as a JSON text, the same way in both browsers."""
    return f"(async () => JSON.stringify(await (\n{expression}\n)))()"


@define(eq=False)
class ChromiumPage:
    """A tab of Chromium."""

    wire: Wire
    target: str
    session: str
    console: list[ConsoleMessage] = field(factory=list)

    def _heard(self, method: str, params: dict[str, Any], session: str | None) -> None:
        if session != self.session or len(self.console) >= CONSOLE:
            return
        match method:
            case "Runtime.consoleAPICalled":
                words = (str(arg.get("value", arg.get("description", arg["type"]))) for arg in params["args"])
                self.console.append(ConsoleMessage(params["type"], " ".join(words)))
            case "Runtime.exceptionThrown":
                self.console.append(ConsoleMessage("error", _thrown(params["exceptionDetails"])))
            case "Log.entryAdded":
                self.console.append(ConsoleMessage(params["entry"]["level"], params["entry"]["text"]))

    async def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Send any DevTools command to this tab."""
        return await self.wire.call(method, self.session, **params)

    async def goto(self, url: str) -> None:
        """Load `url` and wait for its load event, which is not that of the page before it, nor of a frame inside."""
        frame = (await self.call("Page.getFrameTree"))["frameTree"]["frame"]

        def ours(params: dict[str, Any]) -> bool:
            here = (params["name"], params["frameId"]) == ("load", frame["id"])
            return here and params["loaderId"] != frame["loaderId"]

        loaded = self.wire.event("Page.lifecycleEvent", ours)
        try:
            answer = await self.call("Page.navigate", url=url)
            if "errorText" in answer:
                raise BrowserError(f"{url}: {answer['errorText']}")
        except BaseException:
            loaded.addErrback(lambda _: None)
            loaded.cancel()
            raise
        await loaded

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise awaited, through JSON."""
        answer = await self.call(
            "Runtime.evaluate", expression=_json(expression), awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(_thrown(answer["exceptionDetails"]))
        text = answer["result"].get("value")
        return None if text is None else json.loads(text)

    async def screenshot(self, path: Path) -> None:
        """Write what the tab shows to `path` as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def close(self) -> None:
        """Close the tab."""
        await self.wire.call("Target.closeTarget", targetId=self.target)


def _thrown(details: dict[str, Any]) -> str:
    exception = details.get("exception", {})
    return str(exception.get("description") or exception.get("value") or details.get("text"))


@define(eq=False)
class Chromium:
    """A headless Chromium."""

    _running: _Running

    @staticmethod
    def absent() -> str | None:
        """Why Chromium cannot be used here, for a test's `skip`; None if it can."""
        return None if _found(("chromium", "chromium-browser", "google-chrome")) else "needs Debian's chromium"

    @classmethod
    async def start(
        cls,
        reactor: Any,
        *,
        hosts: Mapping[str, str] = {},
        insecure: bool = True,
        authorities: Sequence[Path] = (),
        arguments: Sequence[str] = (),
        socks: str = "",
        prefix: Sequence[str] = (),
    ) -> Chromium:
        """Start one: `hosts` maps names to ADDRESS or ADDRESS:PORT, `insecure` takes any certificate.

        `authorities` are PEM files of those whose certificates it believes; that needs the program certutil. With
        `socks`, HOST:PORT of a SOCKS5 port, everything goes there, and no name is kept from being looked up. `prefix`
        is a command that runs another.
        """
        program = _found(("chromium", "chromium-browser", "google-chrome"))
        if program is None:
            raise Unavailable("Chromium is not installed: apt install chromium")
        profile = Path(tempfile.mkdtemp(prefix="layer8-chromium-"))
        # An error page would ask public resolvers whether the network works.
        (profile / "Default").mkdir()
        (profile / "Default" / "Preferences").write_text('{"alternate_error_pages": {"enabled": false}}')
        if authorities:
            _believe(profile / ".pki" / "nssdb", authorities)
        rules = [f"MAP {name} {address}" for name, address in hosts.items()]
        rules += ["MAP * ~NOTFOUND", "EXCLUDE localhost", "EXCLUDE 127.0.0.1", "EXCLUDE ::1"]
        flags = [
            *CHROMIUM_FLAGS,
            *(["--ignore-certificate-errors"] if insecure else []),
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            *(
                [f"--proxy-server=socks5://{socks}", "--proxy-bypass-list=<-loopback>"]
                if socks
                else [f"--host-resolver-rules={','.join(rules)}", "--no-proxy-server"]
            ),
            *arguments,
            "about:blank",
        ]
        running, _ = await _launch(reactor, [*prefix, program, *flags], profile)
        return cls(running)

    @property
    def wire(self) -> Wire:
        """The DevTools socket, for commands this module has no method for."""
        return self._running.wire

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    async def page(self, url: str = "about:blank") -> ChromiumPage:
        """Open a tab at `url`."""
        target = (await self.wire.call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.wire.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = ChromiumPage(self.wire, target, session)
        self.wire.listen(page._heard)
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        await page.call("Page.setLifecycleEventsEnabled", enabled=True)
        if url != "about:blank":
            await page.goto(url)
        return page

    async def close(self) -> None:
        """End the process and remove its profile."""
        await self._running.end(lambda: self.wire.call("Browser.close"))

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()


@define(eq=False)
class FirefoxPage:
    """A tab of Firefox."""

    wire: Wire
    context: str
    console: list[ConsoleMessage] = field(factory=list)

    def _heard(self, method: str, params: dict[str, Any], session: str | None) -> None:
        ours = params.get("source", {}).get("context") == self.context
        if method == "log.entryAdded" and ours and len(self.console) < CONSOLE:
            self.console.append(ConsoleMessage(params.get("method", params["level"]), params["text"] or ""))

    async def goto(self, url: str) -> None:
        """Load `url` and wait for its load event."""
        await self.wire.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise awaited, through JSON."""
        answer = await self.wire.call(
            "script.evaluate",
            expression=_json(expression),
            target={"context": self.context},
            awaitPromise=True,
            userActivation=True,
        )
        if answer["type"] == "exception":
            raise BrowserError(answer["exceptionDetails"]["text"])
        text = answer["result"].get("value")
        return None if text is None else json.loads(text)

    async def screenshot(self, path: Path) -> None:
        """Write what the tab shows to `path` as PNG."""
        answer = await self.wire.call("browsingContext.captureScreenshot", context=self.context)
        path.write_bytes(base64.b64decode(answer["data"]))

    async def close(self) -> None:
        """Close the tab."""
        await self.wire.call("browsingContext.close", context=self.context)


def _through(socks: str) -> dict[str, bool | int | str]:
    """Preferences of a Firefox that sends everything to a SOCKS5 port, as its users set them."""
    host, _, port = socks.rpartition(":")
    return {
        "network.proxy.http": "",
        "network.proxy.http_port": 0,
        "network.proxy.ssl": "",
        "network.proxy.ssl_port": 0,
        "network.proxy.socks": host,
        "network.proxy.socks_port": int(port),
        "network.proxy.socks_version": 5,
        "network.proxy.socks_remote_dns": True,
        "network.proxy.socks5_remote_dns": True,
        "network.proxy.no_proxies_on": "",
        "network.proxy.allow_hijacking_localhost": True,
    }


@define(eq=False)
class Firefox:
    """A headless Firefox."""

    _running: _Running

    @staticmethod
    def absent() -> str | None:
        """Why Firefox cannot be used here, for a test's `skip`; None if it can."""
        return None if _found(("firefox-esr", "firefox")) else "needs Debian's firefox-esr"

    @classmethod
    async def start(
        cls,
        reactor: Any,
        *,
        hosts: Mapping[str, str] = {},
        insecure: bool = True,
        preferences: Mapping[str, bool | int | str] = {},
        socks: str = "",
        prefix: Sequence[str] = (),
    ) -> Firefox:
        """Start one: `hosts` maps names to loopback addresses (no port), `insecure` takes any certificate.

        With `socks`, HOST:PORT of a SOCKS5 port, everything goes there, names too. `prefix` is a command that runs
        another.
        """
        program = _found(("firefox-esr", "firefox"))
        if program is None:
            raise Unavailable("Firefox is not installed: apt install firefox-esr")
        if odd := [name for name, address in hosts.items() if not ipaddress.ip_address(address).is_loopback]:
            raise Unavailable(f"Firefox can map names to loopback only: {', '.join(odd)}")
        profile = Path(tempfile.mkdtemp(prefix="layer8-firefox-"))
        all_preferences = {
            **FIREFOX_PREFERENCES,
            "network.dns.localDomains": ",".join(hosts),
            # Every other name goes to a proxy that is not there, so nothing leaves this machine.
            "network.proxy.type": 1,
            "network.proxy.http": "127.0.0.1",
            "network.proxy.http_port": 9,
            "network.proxy.ssl": "127.0.0.1",
            "network.proxy.ssl_port": 9,
            "network.proxy.allow_bypass": False,
            "network.proxy.failover_direct": False,
            "network.proxy.no_proxies_on": ",".join(("localhost", "127.0.0.0/8", "::1", *hosts)),
            **(_through(socks) if socks else {}),
            **preferences,
        }
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in all_preferences.items())
        (profile / "user.js").write_text("".join(lines))
        flags = ["--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0", "about:blank"]
        running, _ = await _launch(reactor, [*prefix, program, *flags], profile)
        browser = cls(running)
        try:
            await browser.wire.call("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": insecure}})
            await browser.wire.call("session.subscribe", events=["log.entryAdded"])
        except BaseException:
            await browser.close()
            raise
        return browser

    @property
    def wire(self) -> Wire:
        """The BiDi socket, for commands this module has no method for."""
        return self._running.wire

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    async def page(self, url: str = "about:blank") -> FirefoxPage:
        """Open a tab at `url`."""
        context = (await self.wire.call("browsingContext.create", type="tab"))["context"]
        page = FirefoxPage(self.wire, context)
        self.wire.listen(page._heard)
        if url != "about:blank":
            await page.goto(url)
        return page

    async def close(self) -> None:
        """End the process and remove its profile."""
        await self._running.end(lambda: self.wire.call("browser.close"))

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()
