"""Connections that an agent dials ahead: only a valid header makes one a visitor's, and nothing is left behind."""

import contextlib
import socket
from typing import Any

from layer8.core.address import HostPort
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.dial import Dialer, Where
from layer8.net.leg import Leg
from layer8.net.tls import Pinned, client_context, server_context
from layer8.proxy import reserve
from layer8.proxy.carry import Carrier, Secured
from layer8.proxy.limits import CALL_LIFE
from layer8.proxy.pp import CLAIM_MOST, Claim, claim, v2
from layer8.proxy.reserve import KEPT, Dials, Kept, Reserve
from layer8.proxy.wire import DATA_ALPN, NOD, Code
from tests.net.test_dial import DialCase
from tests.proxy.test_carry import Teller

TOKEN = bytes(range(32))
CLAIM = Claim(80, 7, "app.test", "http")


class Keeper:
    """A link to a server that serves subscription 1 and sends its visitors to one target."""

    def __init__(self, carrier: Carrier, server: Where, target: Where | None, secured: Secured | None) -> None:
        self.carrier = carrier
        self.server = server
        self.target = target
        self.secured = secured
        self.teller = Teller()
        self.claims: list[Claim] = []
        self.ignored = 0

    def serves(self, subscription: object) -> bool:
        return subscription == 1

    def data_address(self, host: object, port: object, secure: object) -> Dials | None:
        if host is not None or port != self.server.port or type(secure) is not bool:
            return None
        return self.server, self.secured if secure else None

    def claimed(self, subscription: int, claim: Claim, ahead: Kept) -> bool:
        self.claims.append(claim)
        if claim.host != "app.test":
            return False
        if self.target is None:
            ahead.refuse()
        else:
            self.carrier.carry_on(self.teller, subscription, claim.conn, claim.host, self.target, ahead)
        return True

    def nonsense(self) -> None:
        self.ignored += 1


class ReserveCase(DialCase):
    secured: Secured | None = None

    def setUp(self) -> None:
        super().setUp()
        self.carrier = Carrier(self.pump, Dialer(self.named, self.pump), Dialer(self.named, self.pump))
        self.target, self.server = self.listener(backlog=100), self.listener(backlog=400)
        for sock in (self.target, self.server):
            sock.settimeout(5)
        self.keeper = Keeper(self.carrier, self.at(self.server), self.at(self.target), self.secured)
        self.reserve = Reserve(self.carrier, self.keeper)

    def at(self, sock: socket.socket) -> Where:
        return Where("127.0.0.1", sock.getsockname()[1])

    def token(self, **more: Any) -> dict[str, Any]:
        port = self.server.getsockname()[1]
        return {"secret": TOKEN.hex(), "expires_ms": 5000, "serverListeningPort": port, "tls": False, **more}

    def tell(self, *tokens: object, subscription: object = 1) -> None:
        self.reserve.told({"subscription": subscription, "tokens": list(tokens)})

    async def accept(self, sock: socket.socket) -> socket.socket:
        sock.setblocking(False)
        for _ in range(250):
            with contextlib.suppress(BlockingIOError):
                taken, _ = sock.accept()
                break
            await self.turn()
        else:
            self.fail("nobody dials")
        taken.settimeout(5)
        self.open.append(taken)
        return taken

    async def waiting(self) -> socket.socket:
        """One connection that has shown its token; the server's end of it."""
        self.tell(self.token())
        server = await self.accept(self.server)
        await self.turn()
        await self.hears(server, TOKEN)
        return server

    async def hears(self, sock: Any, wanted: bytes) -> None:
        """Read what comes, however long it takes on its way; nothing stands for the end."""
        got = b""
        if isinstance(sock, socket.socket):
            sock.setblocking(False)
        for _ in range(250):
            try:
                data = sock.recv(100)
            except BlockingIOError:
                await self.turn()
                continue
            got += data
            if not data or len(got) >= len(wanted) > 0:
                break
        if isinstance(sock, socket.socket):
            sock.settimeout(5)
        self.assertEqual(got, wanted)

    async def closes(self, sock: socket.socket) -> None:
        """See that the agent has closed, and said nothing."""
        await self.turn()
        sock.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(sock.recv(100), b"")

    async def stays(self, sock: socket.socket) -> None:
        await self.turn()
        sock.setblocking(False)
        with self.assertRaises(BlockingIOError):
            sock.recv(100)
        sock.settimeout(5)

    def nothing_left(self) -> None:
        self.assertEqual((self.carrier.open, self.reserve.kept, list(self.pump._table)), (set(), {}, []))
        self.assertEqual(self.pump.failures, 0)


class PlainTests(ReserveCase):
    async def test_whole(self) -> None:
        server = await self.waiting()
        self.assertEqual(len(self.reserve), 1)
        server.sendall(claim(CLAIM) + b"question")
        await self.turn()
        target = await self.accept(self.target)
        self.assertEqual(len(self.reserve), 0)
        self.assertEqual(self.keeper.claims, [CLAIM])
        target.sendall(b"answer")
        await self.turn()
        await self.hears(target, b"question")
        await self.hears(server, NOD + b"answer")
        server.sendall(b"more")
        await self.turn()
        await self.hears(target, b"more")
        server.shutdown(socket.SHUT_WR)
        await self.turn()
        await self.hears(target, b"")
        target.sendall(b"last")
        target.close()
        await self.turn()
        await self.hears(server, b"last")
        await self.hears(server, b"")
        while len(self.keeper.teller.told) < 2:
            await self.turn()
        self.assertEqual(self.keeper.teller.told, [("joined", None), ("ended", "done")])
        totals = self.carrier.totals
        self.assertEqual((totals.called, totals.joined, totals.bytes_in, totals.bytes_out), (1, 1, 12, 10))
        self.nothing_left()

    async def test_a_header_in_pieces(self) -> None:
        server = await self.waiting()
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = claim(CLAIM) + b"question"
        for at in range(len(data)):
            server.sendall(data[at : at + 1])
            await self.turn(0.001)
        target = await self.accept(self.target)
        await self.turn()
        await self.hears(target, b"question")
        self.assertEqual(self.keeper.claims, [CLAIM])
        self.carrier.close_all()
        self.nothing_left()

    async def test_the_visitors_address(self) -> None:
        claimed = Claim(443, 2**53 - 1, "app.test", "https", HostPort("192.0.2.9", 4000))
        server = await self.waiting()
        server.sendall(claim(claimed))
        await self.turn()
        self.assertEqual(self.keeper.claims, [claimed])
        self.carrier.close_all()
        self.nothing_left()

    async def test_nothing_else_than_a_valid_header(self) -> None:
        for data in (
            b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
            b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 80\r\n",
            v2(None),
            v2(HostPort("192.0.2.9", 4000)),
            claim(CLAIM)[:13] + b"\x31" + claim(CLAIM)[14:],
            claim(Claim(80, 7, "other.test", "http")),
            b"\r\n\r\n\0\r\nQUIT\n\x20\0" + (CLAIM_MOST).to_bytes(2, "big"),
        ):
            server = await self.waiting()
            server.sendall(data)
            await self.closes(server)
            self.nothing_left()
        self.assertEqual(self.keeper.ignored, 7)
        self.target.setblocking(False)
        with self.assertRaises(BlockingIOError):
            self.target.accept()

    async def test_the_server_goes(self) -> None:
        server = await self.waiting()
        server.close()
        await self.turn()
        self.nothing_left()
        self.assertEqual(self.keeper.ignored, 0)

    async def test_the_link_goes(self) -> None:
        server = await self.waiting()
        self.tell(self.token(), self.token())
        self.reserve.close()
        await self.closes(server)
        self.nothing_left()

    async def test_a_joined_one_outlives_the_link(self) -> None:
        server = await self.waiting()
        server.sendall(claim(CLAIM))
        await self.turn()
        target = await self.accept(self.target)
        self.reserve.close()
        server.sendall(b"still here")
        await self.turn()
        await self.hears(target, b"still here")
        self.carrier.close_all()
        self.nothing_left()

    async def test_the_server_does_not_answer(self) -> None:
        self.keeper.server = Where("127.0.0.1", self.closed_port())
        self.tell(self.token(serverListeningPort=self.keeper.server.port))
        await self.turn()
        self.nothing_left()
        self.keeper.server = Where("127.0.0.1", self.black_hole())
        self.tell(self.token(serverListeningPort=self.keeper.server.port))
        await self.turn()
        self.assertEqual(len(self.reserve), 1)
        self.carrier.tick(self.pump.look_at_clock() + CALL_LIFE + 1)
        self.nothing_left()

    async def test_waiting_has_no_end_of_ours(self) -> None:
        server = await self.waiting()
        self.carrier.tick(self.pump.look_at_clock() + 1000)
        await self.stays(server)
        self.reserve.close()
        self.nothing_left()


class RefusedTests(ReserveCase):
    async def refused(self) -> socket.socket:
        self.keeper.target = Where("127.0.0.1", self.closed_port())
        server = await self.waiting()
        server.sendall(claim(CLAIM) + b"question")
        await self.turn()
        self.assertEqual(self.keeper.teller.told, [("refused", Code.AGENT_REFUSED)])
        self.assertEqual(self.carrier.open, set())
        return server

    async def test_it_stays_until_the_server_closes(self) -> None:
        server = await self.refused()
        await self.stays(server)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.close()
        await self.turn()
        self.nothing_left()

    async def test_what_the_visitor_goes_on_to_say_is_nobodys(self) -> None:
        server = await self.refused()
        server.sendall(b"more")
        server.shutdown(socket.SHUT_WR)
        await self.stays(server)
        self.pump.stop()
        self.nothing_left()

    async def test_but_not_for_ever(self) -> None:
        server = await self.refused()
        kept = next(iter(self.pump._table.values()))
        assert isinstance(kept, Kept)
        kept._until = 0.0
        self.carrier.tick(self.pump.look_at_clock() + CALL_LIFE + 1)
        await self.closes(server)
        self.nothing_left()

    async def test_no_target_for_it(self) -> None:
        self.keeper.target = None
        server = await self.waiting()
        server.sendall(claim(CLAIM))
        await self.stays(server)
        self.assertEqual(len(self.reserve), 0)
        self.pump.stop()
        self.nothing_left()

    async def test_the_target_does_not_answer(self) -> None:
        self.keeper.target = Where("127.0.0.1", self.black_hole())
        server = await self.waiting()
        server.sendall(claim(CLAIM))
        await self.turn()
        self.carrier.tick(self.pump.look_at_clock() + CALL_LIFE + 1)
        self.assertEqual(self.keeper.teller.told, [("refused", Code.AGENT_REFUSED)])
        await self.stays(server)
        self.pump.stop()
        self.nothing_left()

    async def test_the_agent_stops_while_the_target_is_dialled(self) -> None:
        self.keeper.target = Where("127.0.0.1", self.black_hole())
        server = await self.waiting()
        server.sendall(claim(CLAIM))
        await self.turn()
        self.carrier.close_all()
        self.pump.stop()
        await self.closes(server)
        self.nothing_left()


class ToldTests(ReserveCase):
    async def test_nonsense(self) -> None:
        for tokens in (None, dict[str, str](), 7, "x"):
            self.reserve.told({"subscription": 1, "tokens": tokens})
        self.reserve.told({})
        self.tell(self.token(), subscription=2)
        self.tell(self.token(), subscription=True)
        self.tell(self.token(), subscription=[1])
        cases: list[object] = [
            self.token(secret="ab"),
            self.token(secret="zz" * 32),
            self.token(secret=7),
            self.token(serverListeningPort=1),
            self.token(serverListeningPort=[1]),
            self.token(serverListeningHost="10.0.0.1"),
            self.token(tls=1),
            {},
            [],
            "x",
            None,
        ]
        self.tell(*cases)
        self.assertEqual(self.keeper.ignored, 8 + len(cases))
        self.nothing_left()

    async def test_a_server_cannot_have_any_number(self) -> None:
        self.tell(*[self.token()] * (KEPT + 10))
        self.assertEqual((len(self.reserve), self.keeper.ignored), (KEPT, 1))
        self.reserve.close()
        await self.turn()
        self.nothing_left()

    async def test_each_place_has_its_own_number(self) -> None:
        """One server does not use up what another node needs, and all together have an end too."""
        other = self.at(self.listener(backlog=100))
        self.patch(reserve, "KEPT", 3)
        self.patch(reserve, "KEPT_EVERYWHERE", 5)
        self.patch(self.keeper, "data_address", lambda host, port, secure: (Where("127.0.0.1", port), None))
        self.tell(*[self.token()] * 4)
        self.assertEqual((len(self.reserve), self.keeper.ignored), (3, 1))
        self.tell(*[self.token(serverListeningPort=other.port)] * 3)
        self.assertEqual((len(self.reserve), self.keeper.ignored), (5, 2))
        self.reserve.close()
        await self.turn()
        self.nothing_left()
        self.assertEqual(self.reserve.kept, {})

    async def test_what_outlives_its_server(self) -> None:
        """What waits at another node than the one that has gone is good for a moment, and then closed."""
        server = await self.waiting()
        self.reserve.lose()
        self.carrier.tick(self.pump.look_at_clock())
        self.assertEqual(len(self.reserve), 1)
        (kept,) = self.reserve._all()
        kept._until = 0.0
        self.carrier.tick(self.pump.look_at_clock() + CALL_LIFE + 1)
        await self.closes(server)
        self.nothing_left()


class SecureTests(ReserveCase):
    def setUp(self) -> None:
        self.identity = Identity.from_pem(*self_signed(("proxy.test",)))
        self.secured = Secured(client_context(Pinned(frozenset({self.identity.pin})), (DATA_ALPN,)), "proxy.test")
        super().setUp()
        self.legs: list[Leg] = []
        self.errors: list[Exception] = []

    async def shaken(self, identity: Identity | None = None) -> Leg:
        context = server_context(identity or self.identity, (DATA_ALPN,))

        def done(leg: Leg, error: Exception | None) -> None:
            if error is None:
                self.legs.append(leg)
            else:
                self.errors.append(error)

        def accepted(fd: int, peer: object) -> None:
            Leg(self.pump, fd, context, client=False, done=done).start()

        self.server.setblocking(False)
        listener = self.pump.listen(self.server, accepted)
        self.tell(self.token(tls=True))
        for _ in range(100):
            await self.turn(0.01)
            if self.legs or self.errors:
                break
        listener.close()
        return self.legs[-1]

    async def test_whole(self) -> None:
        leg = await self.shaken()
        await self.hears(leg, TOKEN)
        self.assertEqual(len(self.reserve), 1)
        leg.send(claim(CLAIM) + b"question")
        await self.turn(0.05)
        target = await self.accept(self.target)
        await self.turn(0.05)
        await self.hears(target, b"question")
        target.sendall(b"answer")
        await self.turn(0.05)
        await self.hears(leg, NOD + b"answer")
        self.carrier.close_all()
        self.pump.close_fd(leg.fd)
        self.nothing_left()

    async def test_somebody_else(self) -> None:
        """No token is shown to who has another key."""
        with self.assertRaises(IndexError):
            await self.shaken(Identity.from_pem(*self_signed(("proxy.test",))))
        await self.turn(0.05)
        self.nothing_left()
