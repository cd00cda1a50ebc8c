"""`layer8 hide`: a service in front of a program, with a node of its own; and of a file, by the node that runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.cli.hide import own_port, usual_name, whole
from layer8.cli.network import offered
from layer8.crypto.keys import NodeKey
from layer8.node.service import Node
from layer8.rendezvous.address import address_text
from layer8.rendezvous.files import Magnet, ServiceFile
from tests.cli.test_main import LAYER8, layer8
from tests.interop.daemons import folder
from tests.node.test_hidden import HERE, PAGE, HiddenNodeCase


class Program(ProcessProtocol):
    """A command that stays, and what it says."""

    def __init__(self) -> None:
        self.out, self.err = b"", b""
        self.ended: Deferred[int | None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.out += data

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(getattr(reason.value, "exitCode", None))

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class HideTests(HiddenNodeCase):
    async def run_hide(self, home: Path, *words: str) -> Program:
        """Start the command, and wait until it has said everything or has ended."""
        program = Program()
        environ = {**os.environ, "LAYER8_HOME": str(home)}
        process = self.clock.spawnProcess(program, LAYER8[0], [*LAYER8, "hide", *words], environ)

        async def end() -> None:
            if not program.ended.called:
                process.signalProcess("KILL")
                await program.ended

        self.addCleanup(end)
        await self.until(lambda: program.ended.called or (b"}\n" in program.out or b"Ctrl-C" in program.out), 60)
        if program.ended.called:
            raise AssertionError(program.err.decode())
        return program

    async def run_layer8(self, home: Path, *words: str) -> str:
        environ = {**os.environ, "LAYER8_HOME": str(home)}
        out, err, code = await getProcessOutputAndValue(LAYER8[0], [*LAYER8[1:], *words], environ, reactor=self.clock)
        self.assertEqual((code, err), (0, b""))
        return str(out.decode())

    async def end(self, program: Program, signal: str) -> int | None:
        assert program.transport is not None
        program.transport.signalProcess(signal)
        return await program.ended

    def alone(self) -> tuple[str, ...]:
        return "--peer", self.where(self.relays[0]), "--network", "test-hidden", "--json"

    async def test_a_page_by_a_node_of_its_own(self) -> None:
        """G37: visited with curl by SOCKS, and gone when the command ends; the same key the next time."""
        await self.network()
        home, here = folder(self), await self.member(socks=HERE)
        local = f"127.0.0.1:{self.page()}"
        program = await self.run_hide(home, local, "--name", "blog", "--port", "8080=" + local, *self.alone())
        told = program.told
        self.assertEqual((told["name"], told["state"], told["made"]), ("blog", "published", True))
        self.assertEqual(sorted(told["ports"]), [80, 8080])
        self.assertIsNone(told["resource"])
        key = NodeKey.load(Path(told["key"]))
        self.assertEqual(Path(told["key"]), home / "services" / "blog.pem")
        self.assertEqual(told["address"], address_text(key.node_id) + ".l8.alt")
        file = ServiceFile.read(Path(told["file"]).read_bytes())
        self.assertEqual((file.key, file.name, dict(file.ports)), (key.node_id, "blog", {80: "http", 8080: "tcp"}))
        self.assertEqual(Magnet.parse(told["magnet"]).key, key.node_id)
        for port in (80, 8080):
            self.assertEqual(await self.curl(here, f"http://{told['address']}:{port}/"), PAGE)
        self.assertEqual((await self.end(program, "INT"), program.err), (0, b""))
        again = await self.run_hide(home, local, "--name", "blog", *self.alone())
        self.assertEqual((again.told["address"], again.told["made"]), (told["address"], False))
        self.assertEqual(await self.curl(here, f"http://{told['address']}/"), PAGE)

    async def test_a_file_by_the_node_that_runs(self) -> None:
        """G39: a file read back by `nc` through a tunnel to the hash of its key, SHA-256 equal."""
        if shutil.which("nc") is None:
            raise SkipTest("needs the package netcat-openbsd")
        await self.network()
        there, here = await self.member(), await self.member()
        path = there._frame.home / "a.pdf"
        path.write_bytes(Random(5).randbytes(3 << 20))
        program = await self.run_hide(there._frame.home, f"file:{path}", "--json")
        told = program.told
        self.assertEqual((told["name"], told["ports"]), ("a-pdf", [1]))
        row = await here.tunnels.open(f"0>{told['resource']}")
        words = ["-d", "127.0.0.1", row.listening[0].split(":")[1]]
        out, _, code = await getProcessOutputAndValue(shutil.which("nc"), words, reactor=self.clock)
        self.assertEqual(code, 0)
        self.assertEqual(hashlib.sha256(out).digest(), hashlib.sha256(path.read_bytes()).digest())
        self.assertEqual([row.resource for row in await self.resources(there)], [told["resource"]])
        self.assertEqual(await self.end(program, "TERM"), 0)
        self.assertEqual(list(there.hosts), [])
        program = await self.run_hide(there._frame.home, f"file:{path}", "--json")
        self.assertEqual(await self.end(program, "HUP"), 0)  # the terminal is closed
        self.assertEqual(list(there.hosts), [])

    async def resources(self, node: Node) -> Any:
        rows = await self.call(node, "rendezvous.resources")
        return [_Row(**row) for row in rows["resources"]]

    async def test_what_people_read(self) -> None:
        await self.network()
        there = await self.member()
        program = await self.run_hide(there._frame.home, f"127.0.0.1:{self.page()}", "--name", "blog")
        text = program.out.decode()
        hosting = there.hosts.get("blog")
        assert hosting is not None
        listed = await self.run_layer8(there._frame.home, "hide", "--list")
        self.assertRegex(listed, rf"(?m)^blog +published +\d +0 +{hosting.address}$")
        (row,) = json.loads(await self.run_layer8(there._frame.home, "hide", "--list", "--json"))["services"]
        self.assertEqual((row["name"], row["address"]), ("blog", hosting.address))
        self.assertEqual(await offered(there), [f"hidden service blog at {hosting.address}"])  # what `up` says
        for word in (
            hosting.address,
            hosting.magnet,
            "80 = 127.0.0.1:",
            "blog.l8",
            "whoever loses it loses the address",
            "can be found",
        ):
            self.assertIn(word, text)
        told = await self.run_layer8(there._frame.home, "hide", "--end", "blog")
        self.assertEqual(told, "blog is not offered any more; its key stays where it is\n")
        self.assertEqual(list(there.hosts), [])
        await self.until(lambda: program.ended.called)
        self.assertEqual(program.err, b"layer8: the node does not offer blog any more\n")


class _Row:
    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


class WordTests(SynchronousTestCase):
    def test_ports(self) -> None:
        for local, port in (
            ("localhost:80", 80),
            ("localhost:22", 22),
            ("localhost:8080", 80),
            ("22", 22),
            ("unix:/run/web.sock", 80),
            ("file:a.pdf", 1),
            ("dir:.", 1),
        ):
            self.assertEqual(own_port(local), port, local)

    def test_names(self) -> None:
        for local, name in (
            ("localhost:8080", "port-8080"),
            ("8080", "port-8080"),
            ("file:/tmp/A Report.pdf", "a-report-pdf"),
            ("file:/tmp/" + "a" * 60, "a" * 32),
            ("file:x", "file-x"),
            ("dir:/srv/www/", "www"),
            ("file:/tmp/ü", "file-hidden"),
        ):
            self.assertEqual(usual_name(local), name, local)

    def test_paths_are_found_from_anywhere(self) -> None:
        self.assertEqual(whole("file:a"), f"file:{os.getcwd()}/a")
        self.assertEqual(whole("8080"), "localhost:8080")
        self.assertEqual(whole("localhost:8080"), "localhost:8080")

    def test_wrong_usage(self) -> None:
        self.patch(os, "environ", {**os.environ, "LAYER8_HOME": str(folder(self))})
        for words, code, text in (
            ((), 2, "what shall it lead to"),
            (("--list",), 1, "layer8 up starts one"),
            (("localhost:80", "--list"), 2, "--list"),
            (("--end", "blog", "--list"), 2, "--end"),
            (("--end", "blog"), 1, "layer8 up starts one"),
            (("nonsense",), 2, "HOST:PORT"),
            (("file:/nowhere/at/all",), 2, "no such file"),
            (("localhost:80", "--name", "A"), 2, "--name A"),
            (("localhost:80", "--port", "80=localhost:81"), 2, "same port"),
            (("localhost:80", "--port", "0=localhost:81"), 2, "PORT=LOCAL"),
            (("localhost:80", "--allow", "nobody"), 2, "nobody"),
            (("localhost:80", "--client-auth", "/nowhere"), 2, "/nowhere"),
            (("localhost:80", "--client-auth", __file__), 2, "line 1"),
            (("localhost:80", "--key", __file__), 2, "test_hide.py"),
            (("localhost:80", "--mode", "2"), 2, "mode"),
        ):
            found, out, err = layer8("hide", *words)
            self.assertEqual((found, out), (code, ""), f"{words}: {err}")
            self.assertEqual(len(err.splitlines()), 1, err)
            self.assertIn(text, err)
