"""A private Tor network on this machine's loopback: an authority, six relays, two exits and a client.

Where hidden services are measured, an eleventh process has them.

Nothing in it knows the public network: its only authority is its own, every address is 127.0.0.1, and names are
resolved nowhere. The lines are those of `chutney`'s networks; what took time to find out stands beside the line.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import define, field, frozen

from bench.processes import Child, DidNotStart, free_port

AUTHORITY, RELAYS, EXITS, SERVICE, CLIENT = "auth0", 6, 2, "service0", "client0"
UP_S = 120.0
"""Seconds in which all nodes have to have bootstrapped."""
KEY_S = 60.0
"""Seconds in which the authority's keys have to be made."""
BUILD_S = 5.0
"""Seconds after which a circuit counts as failed."""
ASK_S = 10.0
"""Seconds for one answer of a control port."""

COMMON = """TestingTorNetwork 1
PathsNeededToBuildCircuits 0.67
TestingDirAuthVoteHSDir *
TestingDirAuthVoteGuard *
TestingMinExitFlagThreshold 0
V3AuthNIntervalsValid 2
DataDirectory {folder}
Nickname {name}
PidFile {folder}/pid
Log notice file {folder}/notice.log
RunAsDaemon 0
ConnLimit 60
ShutdownWaitLength 0
DisableDebuggerAttachment 0
SafeLogging 0
ProtocolWarnings 1
ControlPort 127.0.0.1:{control}
CookieAuthentication 0
Address 127.0.0.1
OutboundBindAddress 127.0.0.1
ServerDNSDetectHijacking 0
ServerDNSAllowBrokenConfig 1
ServerDNSTestAddresses
"""
SERVER = """SocksPort 0
ORPort 127.0.0.1:{onion} IPv4Only
DirPort 127.0.0.1:{directory}
AssumeReachable 1
ContactInfo x@test.test
ServerDNSResolvConfFile {resolver}
"""
VOTES = """AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
TestingV3AuthInitialVotingInterval 20
TestingV3AuthInitialVoteDelay 4
TestingV3AuthInitialDistDelay 4
V3AuthVotingInterval 20
V3AuthVoteDelay 4
V3AuthDistDelay 4
"""
NO_EXIT = "ExitRelay 0\nExitPolicy reject *:*\n"
# Clients know exit policies by port only, so the origin's has to be allowed everywhere, though it is on 127.0.0.1; and
# an exit without a consensus drops the streams of those that it does not know.
EXIT = """ExitRelay 1
RefuseUnknownExits 0
ExitPolicyRejectPrivate 0
ExitPolicyRejectLocalInterfaces 0
ExitPolicy accept 127.0.0.0/8:*
ExitPolicy accept *:{origin}
ExitPolicy reject *:*
"""


ONION = """HiddenServiceDir {folder}
HiddenServiceVersion 3
HiddenServicePort 80 127.0.0.1:{origin}
"""


@frozen
class Variant:
    """What one network has that the default has not: lines for every node, for the authority, and for the client."""

    name: str
    title: str
    every: str = ""
    authority: str = ""
    client: str = "ConfluxEnabled 0\n"


VARIANTS = (
    Variant("tor", "Tor, default scheduler (KIST)"),
    Variant("tor-vanilla", "Tor, Schedulers Vanilla", "Schedulers Vanilla\n"),
    Variant("tor-window", "Tor, Vanilla, fixed window", "Schedulers Vanilla\n", "ConsensusParams cc_alg=0\n"),
    Variant("tor-conflux", "Tor, default, Conflux", client="ConfluxEnabled 1\n"),
)


@frozen
class Node:
    """One process, and its ports."""

    name: str
    folder: Path
    onion: int
    directory: int
    control: int
    socks: int

    @classmethod
    def make(cls, name: str, folder: Path, number: int) -> Node:
        """Make its folder; the ports are 5100, 7100, 8100 and 9100 and the number, where nobody has them."""
        place = folder / name
        place.mkdir(mode=0o700)
        return cls(name, place, *(port_near(base + number) for base in (5100, 7100, 8100, 9100)))

    def hidden(self, services: int) -> list[Path]:
        """The folders of its hidden services."""
        return [self.folder / f"hs{number}" for number in range(services)]

    def torrc(self, origin: int, authority: str, variant: Variant, services: int = 0) -> str:
        """Its configuration; `authority` is the line that names the only one."""
        text = COMMON.format(folder=self.folder, name=self.name, control=self.control) + variant.every + authority
        if self.name == CLIENT:
            return f"{text}SocksPort 127.0.0.1:{self.socks} IsolateSOCKSAuth\n{variant.client}"
        if self.name == SERVICE:
            lines = "".join(ONION.format(folder=place, origin=origin) for place in self.hidden(services))
            return f"{text}SocksPort 0\n{lines}"
        resolver = self.folder / "resolv.conf"
        text += SERVER.format(onion=self.onion, directory=self.directory, resolver=resolver)
        if self.name == AUTHORITY:
            text += VOTES + variant.authority
        return text + (EXIT.format(origin=origin) if self.name.startswith("exit") else NO_EXIT)


@define(eq=False)
class TorNet:
    """One such network: a peer of `bench.network`."""

    variant: Variant
    folder: Path
    origin: int
    number: int = 0
    """Networks that run beside each other have different ones."""
    services: int = 0
    """Hidden services, all of one process."""
    hidden: list[str] = field(factory=list)
    chain: list[Child] = field(factory=list)
    _nodes: list[Node] = field(factory=list)

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.variant.name

    @property
    def title(self) -> str:
        """What the row says."""
        return self.variant.title

    @property
    def socks(self) -> tuple[str, int]:
        """Where the client listens."""
        return "127.0.0.1", self._nodes[-1].socks

    @property
    def relays(self) -> list[Child]:
        """The processes that carry what others send: all but the authority, the service and the client."""
        return self.chain[1 : 1 + RELAYS + EXITS]

    @property
    def service(self) -> Child | None:
        """The process that has the hidden services."""
        return self.chain[-2] if self.services else None

    def absent(self) -> str | None:
        """The program that is not installed; None if nothing is missing."""
        missing = (program for program in ("tor", "tor-gencert") if not shutil.which(program))
        return next((f"{program} is not installed" for program in missing), None)

    def start(self) -> None:
        """Make the authority's keys and start all processes; raises DidNotStart."""
        names = [AUTHORITY, *(f"relay{n}" for n in range(RELAYS)), *(f"exit{n}" for n in range(EXITS))]
        names += [SERVICE] * bool(self.services) + [CLIENT]
        self._nodes = [Node.make(name, self.folder, 20 * self.number + at) for at, name in enumerate(names)]
        line = authority_line(self._nodes[0])
        for node in self._nodes:
            (node.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            (node.folder / "torrc").write_text(node.torrc(self.origin, line, self.variant, self.services))
            argv = ["tor", "-f", str(node.folder / "torrc"), "--defaults-torrc", "/dev/null"]
            self.chain.append(Child.start(node.name, argv, self.folder))

    def ready(self) -> None:
        """Wait until every node, and not only the client, has bootstrapped; raises DidNotStart."""
        end = time.monotonic() + UP_S
        waiting = list(zip(self._nodes, self.chain, strict=True))
        while waiting:
            for node, child in waiting:
                if child.popen.poll() is not None:
                    raise DidNotStart(f"{self.name} {node.name}: {child.last_words()}")
            waiting = [(node, child) for node, child in waiting if progress(_log(node)) < 100]
            if time.monotonic() > end:
                said = ", ".join(f"{node.name} {progress(_log(node))} %" for node, _ in waiting)
                raise DidNotStart(f"{self.name}: not up within {UP_S:g} s: {said}")
            time.sleep(0.2)
        if self.services:
            places = self._nodes[-2].hidden(self.services)
            self.hidden = [(place / "hostname").read_text().strip() for place in places]

    def builds(self, wanted: int, at_once: int) -> list[float | None]:
        """Build circuits of Tor's own choice and close them: seconds for each, None for one that failed."""
        with Control.dial(self._nodes[-1].control) as control:
            return control.builds(wanted, at_once)

    def crowd(self, circuits: int) -> None:
        """Not tried: Tor's relays build no circuits on demand, and a client refuses to keep so many."""

    def end(self) -> None:
        """End every process."""
        for child in reversed(self.chain):
            child.end()


@define(eq=False)
class Control:
    """A conversation with a control port: one command at a time, or several whose answers come in order."""

    sock: socket.socket
    _rest: bytes = b""

    @classmethod
    def dial(cls, port: int) -> Control:
        """Connect and log in, for which nothing is needed here; raises OSError or DidNotStart."""
        control = cls(socket.create_connection(("127.0.0.1", port), ASK_S))
        control.ask("AUTHENTICATE")
        return control

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *raised: object) -> None:
        self.sock.close()

    def ask(self, command: str) -> None:
        """Send a command that is answered with 250; raises DidNotStart."""
        self._send(command)
        for line in self._lines(time.monotonic() + ASK_S):
            if line.startswith("650"):
                continue
            if line.startswith("250 "):
                return
            raise DidNotStart(f"tor says to {command}: {line}")
        raise DidNotStart(f"tor does not answer {command}")

    def builds(self, wanted: int, at_once: int) -> list[float | None]:
        """Build `wanted` circuits, `at_once` at a time; seconds, or None where it failed or took too long."""
        self.ask("SETEVENTS CIRC")
        self.ask("SETCONF __DisablePredictedCircuits=1")
        try:
            return self._builds(wanted, at_once)
        finally:
            self.ask("SETEVENTS")
            self.ask("RESETCONF __DisablePredictedCircuits")

    def _builds(self, wanted: int, at_once: int) -> list[float | None]:
        found: list[float | None] = []
        asked: deque[float] = deque()  # when, for commands that are not answered yet; 0 for others than to build
        building: dict[str, float] = {}
        begun = 0
        while len(found) < wanted:
            while begun < wanted and begun - len(found) < at_once:
                self._send("EXTENDCIRCUIT 0")
                asked.append(time.monotonic())
                begun += 1
            end = min((*filter(None, asked), *building.values())) + BUILD_S
            line = next(self._lines(end), "")
            now = time.monotonic()
            event = re.match(r"650 CIRC (\d+) (\w+)", line)
            if event:
                number, state = event.groups()
                if state in ("BUILT", "FAILED", "CLOSED") and number in building:
                    since = building.pop(number)
                    found.append(now - since if state == "BUILT" else None)
                    if state == "BUILT":
                        self._close(number, asked)
            elif line:
                since = asked.popleft()
                if since and (extended := re.match(r"250 EXTENDED (\d+)", line)):
                    building[extended[1]] = since
                elif since:
                    found.append(None)
            for number in [number for number, since in building.items() if now - since >= BUILD_S]:
                del building[number]
                found.append(None)
                self._close(number, asked)
            if any(since and now - since >= ASK_S for since in asked):
                raise DidNotStart("tor's control port does not answer")
        while asked and (line := next(self._lines(time.monotonic() + ASK_S), "")):
            if not line.startswith("650"):
                asked.popleft()
        return found

    def _close(self, number: str, asked: deque[float]) -> None:
        self._send(f"CLOSECIRCUIT {number}")
        asked.append(0.0)

    def _send(self, command: str) -> None:
        self.sock.settimeout(ASK_S)
        self.sock.sendall(command.encode() + b"\r\n")

    def _lines(self, end: float) -> Iterator[str]:
        """Lines as they come, until `end`."""
        while True:
            line, found, rest = self._rest.partition(b"\r\n")
            if found:
                self._rest = rest
                yield line.decode(errors="replace")
                continue
            self.sock.settimeout(max(0.001, end - time.monotonic()))
            try:
                got = self.sock.recv(65536)
            except TimeoutError:
                return
            if not got:
                raise DidNotStart("tor closed its control port")
            self._rest += got


def authority_line(node: Node) -> str:
    """Make an authority's keys, and the line by which all nodes know it; raises DidNotStart."""
    keys = node.folder / "keys"
    keys.mkdir(mode=0o700)
    argv = ["tor-gencert", "--create-identity-key", "--passphrase-fd", "0", "-m", "12"]
    argv += ["-a", f"127.0.0.1:{node.directory}", "-i", "authority_identity_key"]
    argv += ["-s", "authority_signing_key", "-c", "authority_certificate"]
    _run(argv, keys, "pass\n")
    certificate = (keys / "authority_certificate").read_text()
    argv = ["tor", "--ignore-missing-torrc", "-f", str(node.folder / "none"), "--defaults-torrc", "/dev/null"]
    argv += ["--list-fingerprint", "--orport", str(node.onion), "--datadirectory", str(node.folder)]
    # Any authority but the public ones, which are never even named.
    argv += ["--dirserver", f"xyzzy 127.0.0.1:1 {'f' * 40}", "--nickname", node.name, "--quiet"]
    said = _run(argv, node.folder, "")
    identity = re.search(r"^fingerprint (\w{40})$", certificate, re.MULTILINE)
    fingerprint = re.search(rf"^{node.name} ([0-9A-F ]+)$", said, re.MULTILINE)
    if not identity or not fingerprint:
        raise DidNotStart(f"no fingerprint of the authority: {said.strip()[-200:]}")
    where = f"{node.name} orport={node.onion} no-v2 v3ident={identity[1]} 127.0.0.1:{node.directory}"
    return f"DirAuthority {where} {fingerprint[1]}\n"


def progress(log: str) -> int:
    """How far a node has bootstrapped, in percent, by its log."""
    return max(map(int, re.findall(r"Bootstrapped (\d+)%", log)), default=0)


def port_near(wanted: int) -> int:
    """A loopback port that nobody listens on: the wanted one, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
    return wanted


def _log(node: Node) -> str:
    path = node.folder / "notice.log"
    return path.read_text(errors="replace") if path.exists() else ""


def _run(argv: Sequence[str], folder: Path, said: str) -> str:
    ran = subprocess.run(argv, cwd=folder, input=said, capture_output=True, text=True, timeout=KEY_S, check=False)
    if ran.returncode:
        raise DidNotStart(f"{argv[0]}: {(ran.stdout + ran.stderr).strip()[-300:]}")
    return ran.stdout
