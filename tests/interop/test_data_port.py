"""The port where agents dial back: secrets late, wrong, used or shown twice, scanners, and a port that moves."""

import re
import socket
import ssl
import subprocess
import time
from itertools import pairwise
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.interop.backend import buffers
from tests.interop.byhand import TIME_S, AgentByHand, Told, exactly, rest
from tests.interop.daemons import Agent, Proxy, answers, found, missing, until
from tests.interop.stage import MIB, Nginx

SECRET_S = 1.0
HEAD = b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 9999999999\r\n\r\n"
LIMITS = f"[proxy.limits]\nsecret_time = {SECRET_S}\ncall_step = 1.0\ncall_time = 1.5\n"


class SecretTests(TestCase):
    timeout = 60

    async def stand(self) -> None:
        self.server = Proxy.start(self, LIMITS, secrets=["app.test"])
        self.agent = await AgentByHand.connect(self.server, "app.test")
        self.addCleanup(self.agent.client.close)

    def visitor(self) -> socket.socket:
        visitor = socket.create_connection(("127.0.0.1", self.server.http), TIME_S)
        self.addCleanup(visitor.close)
        visitor.sendall(HEAD)
        return visitor

    def dial(self, told: Told, *pieces: bytes) -> socket.socket:
        line = told.dial()
        self.addCleanup(line.close)
        for piece in pieces:
            line.sendall(piece)
        return line

    async def end(self, line: socket.socket) -> tuple[bytes, float]:
        """Read to the end, in a thread so that the agent stays alive; give bytes and seconds."""
        began = time.monotonic()
        got = await deferToThread(rest, line)
        return got, time.monotonic() - began

    async def test_the_33rd_byte_is_content(self) -> None:
        await self.stand()
        for pieces in ((32, 33), (1, 33), (31, 32)):
            visitor = self.visitor()
            told = await self.agent.told()
            data = told.secret + b"first words"
            cuts = (0, *pieces, len(data))
            line = self.dial(told, *(data[a:b] for a, b in pairwise(cuts)))
            self.assertEqual(await deferToThread(exactly, visitor, 11), b"first words")
            self.assertEqual(exactly(line, len(HEAD)), HEAD)

    async def test_wrong_used_and_late(self) -> None:
        await self.stand()
        visitor = self.visitor()
        told = await self.agent.told()
        for wrong in (bytes(32), told.secret[:31] + bytes([told.secret[31] ^ 1]), told.secret[::-1], b"x" * 64):
            got, seconds = await self.end(self.dial(told, wrong))
            self.assertEqual(got, b"")
            self.assertLess(seconds, SECRET_S / 2)
        line = self.dial(told, told.secret)
        self.assertEqual(exactly(line, len(HEAD)), HEAD)
        # Whoever recorded it on the way cannot use it again, while the visitor is there or afterwards.
        self.assertEqual((await self.end(self.dial(told, told.secret)))[0], b"")
        line.sendall(b"answer")
        line.close()
        self.assertEqual((await self.end(visitor))[0], b"answer")
        self.assertEqual((await self.end(self.dial(told, told.secret)))[0], b"")
        late = self.visitor()
        told = await self.agent.told()
        got, seconds = await self.end(late)
        self.assertEqual(got, b"")
        self.assertTrue(0.9 < seconds < 2.5, seconds)
        got, seconds = await self.end(self.dial(told, told.secret))
        self.assertEqual(got, b"")
        self.assertLess(seconds, SECRET_S / 2)

    async def test_31_bytes_and_silence(self) -> None:
        await self.stand()
        self.visitor()
        told = await self.agent.told()
        got, seconds = await self.end(self.dial(told, told.secret[:31]))
        self.assertEqual(got, b"")
        self.assertTrue(SECRET_S * 0.9 < seconds < SECRET_S + 5, seconds)

    async def test_a_whole_secret_that_comes_too_slowly(self) -> None:
        await self.stand()
        self.visitor()
        told = await self.agent.told()
        line = self.dial(told, told.secret[:1])
        began = time.monotonic()
        for byte in told.secret[1:]:
            time.sleep(0.05)
            try:
                line.sendall(bytes([byte]))
            except OSError:
                break
        self.assertEqual((await self.end(line))[0], b"")
        self.assertLess(time.monotonic() - began, SECRET_S + 5)

    async def test_the_right_secret_twice_at_the_same_time(self) -> None:
        await self.stand()
        visitor = self.visitor()
        told = await self.agent.told()
        first, second = self.dial(told, told.secret[:31]), self.dial(told, told.secret[:31])
        for line in (first, second):
            line.sendall(told.secret[31:])
        heads = [await deferToThread(exactly, line, len(HEAD)) for line in (first, second)]
        self.assertEqual(sorted(heads), [b"", HEAD])
        winner = (first, second)[heads.index(HEAD)]
        winner.sendall(b"only one")
        winner.close()
        self.assertEqual((await self.end(visitor))[0], b"only one")

    async def test_secrets_inside_tls(self) -> None:
        await self.stand()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        visitor = self.visitor()
        told = await self.agent.told()
        with context.wrap_socket(self.dial(told)) as wrong:
            wrong.sendall(bytes(32))
            with self.assertRaises((ssl.SSLEOFError, ConnectionResetError)):
                if not wrong.recv(1):
                    raise ConnectionResetError
        with context.wrap_socket(self.dial(told)) as line:
            line.sendall(told.secret)
            self.assertEqual(exactly(line, len(HEAD)), HEAD)
            line.sendall(b"through TLS")
            finished = deferToThread(line.unwrap)  # says that it has ended, and waits for the other side's end
            self.assertEqual((await self.end(visitor))[0], b"through TLS")
            visitor.close()
            await finished

    async def test_scanners_get_nothing(self) -> None:
        await self.stand()
        self.visitor()
        told = await self.agent.told()
        words = (
            b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
            b"\x16\x03\x01" + b"\x00" * 60,
            b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 600,
            bytes(100_000),
        )
        for said in words:
            got, _ = await self.end(self.dial(told, said))
            # What looks like TLS gets TLS's own alert, all else nothing.
            self.assertEqual((got[:2], len(got)), (b"\x15\x03", 7) if said[:2] == b"\x16\x03" else (b"", 0))
        self.assertEqual(self.server.defects(), [])

    async def test_one_network_cannot_take_every_place(self) -> None:
        await self.stand()
        self.visitor()
        told = await self.agent.told()
        scans = []
        for _ in range(80):
            line = told.dial("127.3.0.9")
            self.addCleanup(line.close)
            line.sendall(b"?")
            scans.append(line)
        line = self.dial(told, told.secret)
        self.assertEqual(exactly(line, len(HEAD)), HEAD)
        for scan in scans:
            self.assertEqual((await self.end(scan))[0], b"")

    async def test_an_agent_that_never_reads_makes_the_visitor_wait(self) -> None:
        await self.stand()
        visitor = self.visitor()
        told = await self.agent.told()
        self.dial(told, told.secret)
        until("it is joined", lambda: self.server.ask("proxy.connections")["connections"][0]["state"] == "joined")
        self.stuffed(visitor)

    async def test_a_visitor_who_talks_before_anybody_listens(self) -> None:
        await self.stand()
        visitor = self.visitor()
        await self.agent.told()
        self.stuffed(visitor)

    def stuffed(self, visitor: socket.socket) -> None:
        """Send until nothing goes any more: it stays in the kernel's buffers, and the server does not grow."""
        before = self.memory()
        visitor.settimeout(0.5)
        block, sent = bytes(MIB), 0
        with self.assertRaises(TimeoutError):
            while sent < 1 << 30:
                sent += visitor.send(block)
        self.assertLess(sent, buffers(2))
        self.assertLess(self.memory() - before, 4 * MIB)

    def memory(self) -> int:
        found = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.server.pid}/status").read_text())
        return int(found[0]) * 1024

    async def test_a_no_for_somebody_elses_visitor_is_ignored(self) -> None:
        await self.stand()
        visitor = self.visitor()
        told = await self.agent.told()
        self.agent.client.notify(
            "proxy.reject", {"subscription": told.subscription, "conn": told.conn + 1, "code": -20008}
        )
        self.agent.client.notify("proxy.reject", {"subscription": told.subscription + 1, "conn": told.conn, "code": 0})
        line = self.dial(told, told.secret)
        self.assertEqual(exactly(line, len(HEAD)), HEAD)
        line.close()
        await self.end(visitor)
        visitor = self.visitor()
        told = await self.agent.told()
        self.agent.client.notify("proxy.reject", {"subscription": told.subscription, "conn": told.conn, "code": -20008})
        got, seconds = await self.end(visitor)
        self.assertEqual(got, b"")
        self.assertLess(seconds, 0.5)


class RotationTests(SynchronousTestCase):
    """P23: the server swaps its data port whenever it likes."""

    skip = missing(nginx="nginx", wrk="wrk")

    def test_the_data_port_moves_every_second_under_load(self) -> None:
        nginx = Nginx.start(self, ["app.test"])
        (nginx.files / "small").write_bytes(b"x" * 1000)
        server = Proxy.start(self, f"data_rotate = 1\n{LIMITS}", secrets=["app.test"])
        agent = Agent.start(self, server, {"app.test": {server.http: f"tcp:127.0.0.1:{nginx.plain}"}})
        first = server.data_ports()[0]
        for more in (("-H", "Connection: close"), ()):
            wrk = [str(found("wrk")), "-t1", "-c8", "-d3s", "-H", "Host: app.test", *more]
            said = subprocess.run(
                [*wrk, f"http://127.0.0.1:{server.http}/small"], check=True, capture_output=True, text=True
            ).stdout
            self.assertNotIn("Non-2xx", said)
            self.assertNotIn("Socket errors", said)
            self.assertGreater(int(re.findall(r"(\d+) requests in", said)[0]), 100)
        self.assertNotIn(first, server.data_ports())
        until("the first port is closed", lambda: not answers(first))
        self.assertEqual(agent.ask("agent.status")["rejected"], 0)
        # wrk has seen no error; what it leaves open when its time is up ends as the two ends happen to notice.
        cut = [line["reason"] for line in server.access() if line["reason"] != "done"]
        self.assertEqual(set(cut) - {"visitor_reset", "agent_reset"}, set())
        self.assertLessEqual(len(cut), 2 * 8, "the connections of wrk")
        self.assertEqual([*server.defects(), *agent.defects()], [])
