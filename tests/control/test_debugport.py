"""The debug port: what every word answers, who may speak there, and what netcat sees."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from layer8.control import debugport
from layer8.control.access import Caller
from layer8.control.debugport import DEBUG_CONNS, DEBUG_LINE, DebugPort, escaped, lines
from layer8.control.errors import NotFound
from layer8.control.keyring import Keyring
from layer8.control.service import wall_clock
from layer8.control.table import Nothing, Table, method

PATIENCE = 30.0


def parted(line: socket.socket) -> bytes:
    """Give all that comes until the other side has closed, gently or not."""
    got = b""
    try:
        while data := line.recv(1024):
            got += data
    except ConnectionResetError:
        pass
    return got


@frozen
class Send:
    """A message."""

    to: str
    text: str


@frozen
class Sent:
    """How it went."""

    ms: float
    circuit: int
    new: bool


@frozen
class Number:
    """A circuit."""

    circuit: int


@frozen
class Circuit:
    """A circuit as it is listed."""

    circuit: int
    state: str
    hops: tuple[str, ...]


class Rows:
    """A relay's rows, as far as the port uses them."""

    owns = ("relay",)

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, frozenset[str]]] = []

    @method("relay.send", role="operate")
    async def send(self, caller: Caller, params: Send) -> Sent:
        """Send a message."""
        self.sent.append((params.to, params.text, caller.roles))
        return Sent(1.5, 7, len(self.sent) == 1)

    @method("relay.circuits", role="read")
    async def circuits(self, caller: Caller) -> tuple[Circuit, ...]:
        """List circuits."""
        return (Circuit(3, "open", ("a", "b")), Circuit(12, "\x1b[31mred\x07", ()))

    @method("relay.close", role="operate", errors=(NotFound,))
    async def close(self, caller: Caller, params: Number) -> Nothing:
        """Close a circuit."""
        if params.circuit != 3:
            raise NotFound("circuit")
        return Nothing()

    @method("relay.links", role="admin")
    async def links(self, caller: Caller) -> Nothing:
        """List links, for admins only."""
        return Nothing()

    @method("relay.test", role="operate")
    async def test(self, caller: Caller) -> Nothing:
        """Break."""
        raise ZeroDivisionError


class PortCase(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor

        self.nc = shutil.which("nc")
        if self.nc is None:
            raise SkipTest("needs nc of the package netcat-openbsd")
        self.home = Path(mkdtemp(prefix="l8"))
        self.addCleanup(shutil.rmtree, self.home)
        self.rows = Rows()
        table = Table(wall_clock)
        table.add(self.rows)
        self.keyring = Keyring(self.home, lambda: 0.0, wall_clock)
        self.port = DebugPort(
            reactor, table, self.keyring, ("tcp:0:interface=127.0.0.1",), self.home / "test.debug", open=True
        )
        self.port.startService()
        self.addCleanup(self.port.stopService)
        self.where = self.port.listening[0].split(":")

    def say(self, text: str, *where: str) -> Deferred[str]:
        """Say lines by netcat, and give all that comes back until the port has closed."""

        def run() -> str:
            words = [self.nc or "", "-N", *(where or self.where)]
            done = subprocess.run(words, input=text.encode(), capture_output=True, timeout=PATIENCE, check=False)
            return done.stdout.decode()

        made: Deferred[str] = deferToThread(run)
        return made


class WordTests(PortCase):
    """What a line answers."""

    async def test_a_list_is_a_line_for_each(self) -> None:
        told = await self.say("list circuits\n")
        self.assertEqual(told, f"3   open{' ' * 13}a,b\n12  \\x1b[31mred\\x07  -\nok\n")

    async def test_send(self) -> None:
        told = await self.say('send abc hello there\r\nsend abc "a  b"\n')
        self.assertEqual(told, "sent 1.5 ms, circuit 7, new circuit\nok\nsent 1.5 ms, circuit 7\nok\n")
        self.assertEqual([sent[:2] for sent in self.rows.sent], [("abc", "hello there"), ("abc", "a  b")])
        self.assertEqual(self.rows.sent[0][2], {"operate"})

    async def test_mistakes(self) -> None:
        for line, answer in (
            ("close 4", "error not_found "),
            ("close four", "error invalid_params "),
            ("close", "error invalid_params "),
            ("send abc", "error invalid_params "),
            ("list circuits now", "error invalid_params "),
            ("list streams", "error method_not_found "),
            ("rm -rf /", "error method_not_found "),
            ("$(reboot)", "error method_not_found "),
            ('send "abc', "error invalid_params "),
            ("list links", "error forbidden "),
        ):
            told = await self.say(line + "\nclose 3\n")
            self.assertTrue(told.startswith(answer) and told.endswith("\nok\n") and told.count("\n") == 2, (line, told))

    async def test_a_bug_is_an_answer(self) -> None:
        told = await self.say("test\n")
        self.assertRegex(told, "^error internal .*\n$")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_help_and_leaving(self) -> None:
        told = await self.say("help\nhelp list\nquit\nlist circuits\n")
        self.assertIn("send ID MESSAGE  Send a message.\n", told)
        self.assertNotIn("build", told)
        self.assertEqual(told.count("list circuits    List circuits.\n"), 2)
        self.assertTrue(told.endswith("ok\n"))

    async def test_a_prompt_for_who_asks(self) -> None:
        self.assertEqual(await self.say("prompt\nclose 3\n"), "ok\n> ok\n> ")


class WhoTests(PortCase):
    """Who may speak."""

    async def test_the_token(self) -> None:
        self.port.open = False
        self.assertEqual(await self.say("close 3\n"), "")
        self.assertEqual(await self.say("token wrong\nclose 3\n"), "")
        self.assertEqual(await self.say(f"token {self.keyring.cookie}\nclose 3\n"), "ok\nok\n")

    async def test_our_own_user_on_the_unix_socket(self) -> None:
        self.port.open = False
        self.assertEqual((self.home / "test.debug").stat().st_mode & 0o777, 0o600)
        self.assertEqual(await self.say("close 3\n", "-U", str(self.home / "test.debug")), "ok\n")

    async def test_another_user_on_the_unix_socket(self) -> None:
        """Its mode keeps others out; one who comes through all the same, as a descriptor handed on, hears nothing."""
        self.patch(debugport, "peer_is_us", lambda sock: False)
        self.assertEqual(await self.say("close 3\n", "-U", str(self.home / "test.debug")), "")
        self.assertEqual(await self.say("close 3\n"), "ok\n")

    async def test_a_browser(self) -> None:
        for first in ("GET / HTTP/1.1", "POST /x HTTP/1.1", "OPTIONS * HTTP/1.1"):
            told = await self.say(f"{first}\r\nHost: 127.0.0.1\r\n\r\nsend abc forged\r\n")
            self.assertEqual((told, self.rows.sent), ("", []))

    async def test_tls_of_a_browser(self) -> None:
        """A page may have lines of its own in its hello: the session ticket is what its server has given."""
        for hello in ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x16\x03\x01\x02"):
            told = await self.say(f"{hello}\nsend abc forged\n")
            self.assertEqual((told, self.rows.sent), ("", []))
        self.assertEqual(await self.say("close\t3\r\n"), "ok\n")

    async def test_long_lines(self) -> None:
        self.assertEqual(await self.say("send abc " + "x" * DEBUG_LINE + "\nclose 3\n"), "")
        self.assertEqual(self.rows.sent, [])

    async def test_silence(self) -> None:
        """Who does not say the token in time is left, also with a line that is not whole."""
        self.assertEqual((debugport.DEBUG_TOKEN_TIME, debugport.DEBUG_IDLE), (10.0, 3600.0))
        self.port.open = False
        self.patch(debugport, "DEBUG_TOKEN_TIME", 0.05)
        for said in (b"", b"token "):
            with socket.create_connection((self.where[0], int(self.where[1])), PATIENCE) as line:
                line.sendall(said)
                self.assertEqual(await deferToThread(parted, line), b"")
        self.patch(debugport, "DEBUG_TOKEN_TIME", PATIENCE)
        self.patch(debugport, "DEBUG_IDLE", 0.05)
        with socket.create_connection((self.where[0], int(self.where[1])), PATIENCE) as line:
            line.sendall(f"token {self.keyring.cookie}\n".encode())
            self.assertEqual(await deferToThread(parted, line), b"ok\n")

    async def test_too_many(self) -> None:
        held = [object() for _ in range(DEBUG_CONNS)]
        self.port._talks.update(held)  # type: ignore[arg-type]
        self.assertEqual(await self.say("close 3\n"), "")
        self.port._talks.difference_update(held)
        self.assertEqual(await self.say("close 3\n"), "ok\n")


class DrawingTests(TestCase):
    """Results as lines."""

    def test_shapes(self) -> None:
        shown: list[tuple[Any, list[str]]] = [
            ({"series": {"a": 1.0, "b": 0.5}, "cursor": ""}, ["a 1", "b 0.5"]),
            ({"version": "1", "roles": ["relay"], "drain": False}, ["version 1", "roles relay", "drain no"]),
            ([], []),
            ({}, []),
        ]
        for value, told in shown:
            self.assertEqual(lines(value), told)

    def test_nothing_steers_a_terminal(self) -> None:
        self.assertEqual(escaped("a\x1b]0;x\x07\u202eb\x9bc é"), "a\\x1b]0;x\\x07\\u202eb\\x9bc é")
