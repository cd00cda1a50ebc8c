"""The modes on real sockets: a server in this process, visitors and hosts in threads."""

import hashlib
import os
import re
import socket
import time
from collections.abc import Callable

from attrs import evolve

from layer8.crypto.password import hashed
from layer8.proxy import forwarding, modes
from layer8.proxy.service import Server
from layer8.proxy.wire import Reason
from tests.interop.backend import serve
from tests.proxy.pair import PairCase
from tests.proxy.test_users import basic

MIB = 1 << 20
READ_S = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LAST = b"0\r\n\r\n"
LIE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nlie"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n"
Talk = Callable[[socket.socket], None]


def get(host: str = "a.test", *fields: str, path: str = "/", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


def everything(sock: socket.socket) -> bytes:
    """Read to the end, and close."""
    parts = []
    with sock:
        while got := sock.recv(1 << 18):
            parts.append(got)
    return b"".join(parts)


def some(sock: socket.socket, end: bytes, step: int = 65536) -> bytes:
    data = b""
    while not data.endswith(end):
        got = sock.recv(step)
        if not got:
            raise AssertionError(f"{data!r} and not {end!r}")
        data += got
    return data


def statuses(data: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+) ", data)


def echo(name: bytes) -> Talk:
    """A host that answers with its name and the head it got; a path says how."""

    def talk(sock: socket.socket) -> None:
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                got = sock.recv(1)
                if not got:
                    return
                head += got
            size = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            if b"100-continue" in head:
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = sock.recv(int(size[1]), socket.MSG_WAITALL) if size else b""
            said = name + b"\n" + head + body
            path = head.split(b" ")[1]
            if path == b"/endless":
                sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + said)
                return
            if path == b"/short":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + said)
                return
            if path == b"/leave":
                return
            close = b"Connection: close\r\n" if path == b"/close" else b"Connection: keep-alive\r\n"
            out = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (close, len(said))
            sock.sendall(out if head.startswith(b"HEAD") else out + said)
            if path in (b"/close", b"/once"):
                return

    return talk


class ModeCase(PairCase):
    def start(self, mode: str, more: str = "", **hosts: Talk) -> Server:
        """A server with a static host NAME.test for each of `hosts`; `more` goes into the first one's table."""
        tables = [
            f'[[proxy.host]]\nhost = "{name}.test"\ntarget = "tcp:127.0.0.1:{serve(self, talk)}"\n'
            for name, talk in hosts.items()
        ]
        return self.serve(f'mode = "{mode}"', f"{tables[0]}{more}\n{''.join(tables[1:])}")

    def dial(self, server: Server) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", server.door.port_of("http")), READ_S)
        self.addCleanup(sock.close)
        return sock

    async def talk(self, server: Server, data: bytes) -> bytes:
        """Say all of it on a new connection and give what comes until its end."""

        def run() -> bytes:
            sock = self.dial(server)
            sock.sendall(data)
            return everything(sock)

        said = await self.thread(run)
        assert isinstance(said, bytes)
        return said

    async def ended(self, server: Server, reason: Reason) -> None:
        await self.until(lambda: server.traffic.totals.ended[reason] > 0 and not server.traffic.visits)
        self.assertEqual(server.pump.failures, 0)


class GuardTests(ModeCase):
    async def test_a_host_that_never_ends_is_given_up(self) -> None:
        def deaf(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(OK)
            time.sleep(3)

        self.patch(modes, "GIVE_UP", 0.3)
        server = self.start("guard", a=deaf)
        began = time.monotonic()
        self.assertEqual(await self.talk(server, get() + get() + get("b.test")), OK)
        self.assertLess(time.monotonic() - began, 2)
        await self.ended(server, Reason.MISDIRECTED)

    async def test_a_host_answers_for_itself_only(self) -> None:
        """What a host says at the end, or at once, is no answer to a request that it was not given."""

        def liar(sock: socket.socket) -> None:
            try:
                while head := sock.recv(65536):
                    size = re.search(rb"\r\nX-Size: (\d+)", head)
                    length = int(size[1]) if size else 2
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length)
                    if b"/more" in head:
                        sock.sendall(LIE)
                sock.sendall(LIE)
            except OSError:
                pass  # nobody listens any more

        def run() -> list[bytes]:
            said = []
            for more in ("X: y", "X-Size: 1000000"):
                sock = self.dial(server)
                sock.sendall(get("a.test", more))
                some(sock, b"xx" if more == "X: y" else b"x" * 100_000)
                time.sleep(0.1)
                sock.sendall(get("b.test"))
                said.append(everything(sock))
            sock = self.dial(server)
            sock.sendall(get(path="/more"))
            return [*said, everything(sock)]

        server = self.start("guard", a=liar)
        for said in await self.thread(run):
            self.assertNotIn(b"lie", said)
        self.assertEqual(statuses(said), [b"200"])
        await self.ended(server, Reason.AGENT_RESET)

    async def test_the_last_words_are_in_no_answer(self) -> None:
        """What an answer is cut short by, or ends with, is the end of the connection, and no 421 inside it."""
        whole = await self.talk(self.start("guard", a=echo(b"a")), get(path="/endless") + get("b.test"))
        self.assertEqual(statuses(whole), [b"200"])
        self.assertTrue(whole.endswith(b"Host: a.test\r\n\r\n"))

    async def test_an_answer_that_is_cut_short_before_the_last_words(self) -> None:
        server = self.start("guard", a=echo(b"a"))
        with self.assertRaises(ConnectionError):
            await self.talk(server, get(path="/short") + get("b.test"))

    async def test_a_switch_that_nobody_asked_for(self) -> None:
        def switches(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(SWITCHED % b"h2c")
            sock.recv(65536)

        server = self.start("guard", a=switches)
        with self.assertRaises(ConnectionError):
            await self.talk(server, get())

    async def test_answers_that_nobody_can_count_pass(self) -> None:
        """They pass as they came; but what comes for another host then ends the connection without a word."""
        odd = b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi"

        def sloppy(sock: socket.socket) -> None:
            while sock.recv(65536):
                sock.sendall(odd)

        def run() -> bytes:
            sock = self.dial(server)
            for _ in range(3):
                sock.sendall(get())
                some(sock, b"hi")
            sock.sendall(get("b.test"))
            return everything(sock)

        server = self.start("guard", a=sloppy)
        with self.assertRaises(ConnectionError):
            await self.thread(run)

    async def test_websocket(self) -> None:
        def websocket(sock: socket.socket) -> None:
            sock.recv(65536)
            time.sleep(0.1)
            sock.sendall(SWITCHED % b"websocket" + b"welcome")
            sock.sendall(sock.recv(65536))

        server = self.start("guard", a=websocket)
        asked = get("a.test", "Connection: Upgrade", "Upgrade: websocket")
        frames = get("b.test")  # whatever they look like, they are nobody's requests
        self.assertEqual(await self.talk(server, asked + frames), SWITCHED % b"websocket" + b"welcome" + frames)
        await self.ended(server, Reason.DONE)

    async def test_an_upgrade_that_would_hide_requests(self) -> None:
        def h2c(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(SWITCHED % b"h2c")
            sock.recv(65536)

        server = self.start("guard", a=h2c)
        with self.assertRaises(ConnectionError):
            await self.talk(server, get("a.test", "Connection: Upgrade", "Upgrade: h2c"))

    async def test_a_refused_upgrade_stays_guarded(self) -> None:
        server = self.start("guard", a=echo(b"a"))
        said = await self.talk(server, get("a.test", "Connection: Upgrade", "Upgrade: x") + get() + get("b.test"))
        self.assertEqual(statuses(said), [b"200", b"200", b"421"])
        await self.ended(server, Reason.MISDIRECTED)

    async def test_doubt_is_answered_before_anybody_is_asked(self) -> None:
        asked: list[socket.socket] = []
        server = self.start("guard", a=asked.append)
        for data, status in (
            (get("a.test", "Transfer-Encoding: chunked", "Content-Length: 1"), b"400"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
        ):
            self.assertEqual((await self.talk(server, data))[9:12], status)
        self.assertEqual(asked, [])

    async def test_a_gigabyte_stays_in_the_kernel(self) -> None:
        """What arrives is what was sent, and of its body hardly a byte was seen."""
        size = 1 << 30

        def hashing(sock: socket.socket) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            digest, left, buffer = hashlib.sha256(), size, memoryview(bytearray(MIB))
            while left:
                got = sock.recv_into(buffer[: min(MIB, left)])
                digest.update(buffer[:got])
                left -= got
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest.hexdigest().encode())

        server = self.start("guard", a=hashing)
        block = os.urandom(MIB)

        def put() -> tuple[str, bytes]:
            sock, digest = self.dial(server), hashlib.sha256()
            sock.sendall(get("a.test", f"Content-Length: {size}", method="PUT"))
            for number in range(size // MIB):
                part = number.to_bytes(8, "big") + block[8:]
                sock.sendall(part)
                digest.update(part)
            return digest.hexdigest(), some(sock, digest.hexdigest().encode())[-64:]

        sent, got = await self.thread(put)
        self.assertEqual(got.decode(), sent)
        if server.pump.splices:
            self.assertGreater(server.pump.spliced, 0.95 * size)

    async def test_downloads_stay_in_the_kernel(self) -> None:
        """Answers are counted, and hardly a byte of their bodies is seen for that."""
        size, chunk = 256 * MIB, b"100000\r\n" + bytes(MIB) + b"\r\n"

        def sends(sock: socket.socket) -> None:
            for _ in range(2):
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                for _ in range(size // MIB):
                    sock.sendall(bytes(MIB))
            sock.recv(65536)
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(size // MIB):
                sock.sendall(chunk)
            sock.sendall(LAST)
            sock.recv(1)

        server = self.start("guard", a=sends)

        def run() -> list[int]:
            sock, got = self.dial(server), []
            for much in (size, size, len(chunk) * (size // MIB) + len(LAST)):
                sock.sendall(get())
                some(sock, b"\r\n\r\n", 1)
                count = 0
                while count < much and (part := sock.recv(1 << 18)):
                    count += len(part)
                got.append(count)
            sock.sendall(get("b.test"))
            return [*got, len(everything(sock))]

        got = await self.thread(run)
        self.assertEqual(got[:2], [size, size])
        self.assertGreater(got[3], 0)
        if server.pump.splices:
            self.assertGreater(server.pump.spliced, 0.9 * 3 * size)
        await self.ended(server, Reason.MISDIRECTED)


class ProxyTests(ModeCase):
    async def test_each_request_goes_to_its_own_host(self) -> None:
        server = self.start("proxy", a=echo(b"a"), b=echo(b"b"))
        asked = [("a", "/"), ("a", "/close"), ("b", "/"), ("b", "/once"), ("b", "/"), ("a", "/")]

        def run() -> list[bytes]:
            sock, names = self.dial(server), []
            for name, path in asked:
                sock.sendall(get(f"{name}.test", path=path))
                names.append(some(sock, f"X-Forwarded-Host: {name}.test\r\n\r\n".encode()))
                time.sleep(0.02)
            sock.close()
            return [said.partition(b"\r\n\r\n")[2][:1] for said in names]

        self.assertEqual(await self.thread(run), [name.encode() for name, _ in asked])
        pipelined = b"".join(get(f"{name}.test", path=path) for name, path in asked)
        said = await self.talk(server, pipelined + get("a.test", "Connection: close"))
        self.assertEqual(re.findall(rb"\r\n\r\n([ab])\n", said), [name.encode() for name, _ in [*asked, ("a", "")]])
        await self.ended(server, Reason.DONE)

    async def test_a_whole_answer_arrives_whatever_comes_behind_it(self) -> None:
        """A host that says more than it was asked for, or a body to HEAD, spoils its own next words only."""

        def talks(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(OK + LIE)
            time.sleep(1)

        server = self.start("proxy", a=talks)
        self.assertTrue((await self.talk(server, get())).endswith(b"\r\n\r\nhi"))
        self.assertTrue((await self.talk(server, get(method="HEAD"))).endswith(b"\r\n\r\n"))
        await self.ended(server, Reason.DONE)

    async def test_an_unknown_host_later(self) -> None:
        server = self.start("proxy", a=echo(b"a"))
        server.traffic._answers = True
        self.assertEqual(statuses(await self.talk(server, get() + get("b.test"))), [b"200", b"404"])

    async def test_head_and_continue_and_upload(self) -> None:
        server = self.start("proxy", a=echo(b"a"))
        said = await self.talk(
            server,
            get(method="HEAD")
            + get("a.test", "Content-Length: 5", "Expect: 100-continue", method="POST")
            + b"hello"
            + get("a.test", "Connection: close"),
        )
        self.assertEqual(statuses(said), [b"200", b"100", b"200", b"200"])
        self.assertIn(b"X-Forwarded-Host: a.test\r\n\r\nhello", said)

    async def test_a_body_without_a_length_ends_the_visit(self) -> None:
        server = self.start("proxy", a=echo(b"a"))
        said = await self.talk(server, get(path="/endless"))
        self.assertIn(b"Connection: close\r\n", said)
        self.assertIn(b"a\nGET /endless", said)
        await self.ended(server, Reason.DONE)

    async def test_what_a_host_breaks_off(self) -> None:
        server = self.start("proxy", a=echo(b"a"))
        with self.assertRaises(ConnectionError):
            await self.talk(server, get(path="/short"))
        self.assertEqual(statuses(await self.talk(server, get(path="/leave"))), [b"502"])
        self.assertEqual(statuses(await self.talk(server, get() + get(path="/leave", method="POST"))), [b"200", b"502"])

    async def test_nobody_there(self) -> None:
        server = self.start("proxy", a=echo(b"a"))
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        rest = f'[[proxy.host]]\nhost = "a.test"\ntarget = "tcp:127.0.0.1:{port}"\n'
        await self.stop_server()
        server = self.serve('mode = "proxy"', rest)
        self.assertEqual(statuses(await self.talk(server, get())), [b"502"])

    async def test_websocket(self) -> None:
        def websocket(sock: socket.socket) -> None:
            some(sock, b"Upgrade: websocket\r\n\r\n")
            sock.sendall(SWITCHED % b"websocket" + b"welcome")
            sock.sendall(some(sock, b"ping").replace(b"i", b"o"))

        server = self.start("proxy", a=websocket)
        asked = get("a.test", "Connection: Upgrade", "Upgrade: websocket")

        def run(sock: socket.socket) -> bytes:
            sock.sendall(asked + b"pi")
            said = some(sock, b"welcome")
            sock.sendall(b"ng")
            return said + everything(sock)

        said = await self.thread(run, self.dial(server))
        self.assertTrue(said.endswith(b"\r\n\r\nwelcomepong"), said)
        self.assertIn(b"Upgrade: websocket\r\n", said)

    async def test_a_slow_visitor_gets_everything_before_it_is_parted(self) -> None:
        """A body far above what the kernel keeps, from a host that closes after it; then the next request."""
        size = 64 * MIB

        def big(sock: socket.socket) -> None:
            some(sock, b"\r\n\r\n")
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
            sock.sendall(bytes(size))

        server = self.start("proxy", a=big, b=echo(b"b"))

        def run(sock: socket.socket) -> int:
            sock.sendall(get() + get("b.test", "Connection: close"))
            time.sleep(0.5)
            return len(everything(sock))

        got = await self.thread(run, self.dial(server))
        self.assertGreater(got, size + 100)

    async def test_addresses_are_passed_on_only_where_both_sides_say_so(self) -> None:
        lie = "X-Forwarded-For: 192.0.2.9"
        for server_says, host_says, wanted in (
            ("none", "none", b""),
            ("none", "full", b""),
            ("full", "full", b"127.0.0.1"),
        ):
            server = self.serve(
                f'mode = "proxy"\nvisitor = "{server_says}"',
                f'[[proxy.host]]\nhost = "a.test"\nvisitor = "{host_says}"\n'
                f'target = "tcp:127.0.0.1:{serve(self, echo(b"a"))}"\n',
            )
            said = await self.talk(server, get("a.test", lie, "Connection: close"))
            self.assertEqual(re.findall(rb"X-Forwarded-For: (.*)\r\n", said), [wanted] if wanted else [])
            await self.stop_server()


class UserTests(ModeCase):
    def setUp(self) -> None:
        super().setUp()
        self.asked: list[bytes] = []

        def host(sock: socket.socket) -> None:
            while data := sock.recv(65536):
                self.asked.append(data)
                sock.sendall(OK)

        self.host = host
        self.users = f'users = ["alice:{hashed("secret")}"]\n'

    def get(self, password: str, *fields: str) -> bytes:
        return get("a.test", f"Authorization: {basic('alice', password).decode()}", *fields)

    async def test_only_users_come_in(self) -> None:
        server = self.start("proxy", self.users, a=self.host)
        for data in (get(), self.get("wrong"), get("a.test", "Authorization: Bearer x")):
            said = await self.talk(server, data)
            self.assertEqual(statuses(said), [b"401"])
            self.assertIn(b"WWW-Authenticate: Basic", said)
        self.assertEqual(self.asked, [])
        said = await self.talk(server, self.get("secret") * 3 + self.get("secret", "Connection: close"))
        self.assertEqual(statuses(said), [b"200"] * 4)
        self.assertNotIn(b"Authorization", b"".join(self.asked))
        await self.ended(server, Reason.DENIED)

    async def test_a_later_request_has_to_know_it_too(self) -> None:
        server = self.start("proxy", self.users, a=self.host)
        self.assertEqual(statuses(await self.talk(server, self.get("secret") + get())), [b"200", b"401"])
        self.assertEqual(len(self.asked), 1)

    async def test_who_may_come_in_no_more(self) -> None:
        """On a connection that has been let in, too; and a host that is locked meanwhile is locked for everybody."""
        server = self.start("proxy", self.users, a=self.host, b=echo(b"b"))
        sock, other = self.dial(server), self.dial(server)

        def ask(which: socket.socket, data: bytes) -> bytes:
            which.sendall(data)
            return which.recv(65536)[9:12]

        registry = server.traffic.registry
        self.assertEqual(await self.thread(ask, sock, self.get("secret")), b"200")
        self.assertEqual(await self.thread(ask, other, get("b.test")), b"200")
        rows = {host: registry.lookup(host) for host in ("a.test", "b.test")}
        for row in rows.values():
            assert row is not None
            registry.put(evolve(row, policy=evolve(row.policy, users=(f"bob:{hashed('other')}",))))
        self.assertEqual(await self.thread(ask, sock, self.get("secret")), b"401")
        self.assertEqual(await self.thread(ask, other, get("b.test")), b"401")
        self.assertEqual(len(self.asked), 1)

    async def test_a_check_that_fails_is_answered(self) -> None:
        def fails(*_: object) -> bool:
            raise MemoryError("scrypt")

        self.patch(forwarding, "good", fails)
        server = self.start("proxy", self.users, a=self.host)
        self.assertEqual(statuses(await self.talk(server, self.get("secret"))), [b"503"])
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 1)

    async def test_who_guesses_has_to_wait(self) -> None:
        server = self.start("proxy", self.users, a=self.host)
        checks = server.traffic.modes.checks  # type: ignore[union-attr]
        checks._guesses.allow(2, 60, 60)
        for _ in range(3):
            self.assertEqual(statuses(await self.talk(server, self.get("wrong"))), [b"401"])
        self.assertEqual(statuses(await self.talk(server, self.get("secret"))), [b"401"])
        self.assertEqual(self.asked, [])

    async def test_a_mode_that_cannot_ask_lets_nobody_in(self) -> None:
        """No such host can be registered; if there is one all the same, it is closed."""
        for mode in ("raw", "guard"):
            server = self.start("proxy", self.users, a=self.host)
            row = server.registry.lookup("a.test")
            assert row is not None
            server.registry.put(evolve(row, mode=mode))
            self.assertEqual(await self.talk(server, self.get("secret")), b"")
            await self.ended(server, Reason.DENIED)
            await self.stop_server()
        self.assertEqual(self.asked, [])
