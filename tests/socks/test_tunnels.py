"""Tunnels end to end, with the paths of the proposal: each names every hop, and each hop is the one that is used."""

import socket
from typing import Any

from layer8.control.errors import CallUnavailable, Forbidden, InvalidParams, NoCapacity, NotFound
from layer8.control.table import Table as Methods
from layer8.core.errors import ConfigError, Unavailable
from layer8.crypto.keys import id_text
from layer8.net.sqlite import Database as File
from layer8.relay.memory import SCHEMA, Memory
from layer8.relay.service import Relay
from layer8.socks import tunnels
from layer8.socks.operate import SocksRows
from layer8.socks.tunnels import Tunnels
from layer8.socks.wire import Code, reply
from layer8.testing.storage import InlineStorage
from tests.control.callers import caller
from tests.interop.daemons import folder, free_port
from tests.socks.net import wall
from tests.socks.test_server import HELLO, Dialled, Services, SocksCase, connect, login


class TunnelCase(SocksCase):
    def program(self, row: Any) -> Dialled:
        return self.dial(int(row.listening[0].split(":")[1]))

    def address(self, node: Relay) -> str:
        return node.listening[0].removeprefix("tcp:")

    def hops(self) -> list[bytes]:
        (circuit,) = [one for one in self.net.circuits if one.opened]
        return [node.identity for node in circuit.path]

    async def echoes(self, program: Dialled) -> None:
        """Say something through a tunnel, and hear the answer of the newest target."""
        count = len(self.targets.all)
        program.say(b"hello")
        await self.net.until(lambda: len(self.targets.all) > count and self.targets.all[-1].got == b"hello")
        self.targets.all[-1].transport.write(b"welcome")
        await program.hear(b"welcome")


class PathTests(TunnelCase):
    async def test_g45_peers_by_name_and_by_address(self) -> None:
        """`localhost:1000>peer1>peer2:8080>peer3>google.com:80`."""
        await self.begin()
        peer1, peer2 = self.net.relays[:2]
        peer3 = self.net.exit
        self.net.client.aliases.update(peer1=peer1.key.node_id, peer3=peer3.key.node_id)
        path = f"localhost:0>peer1>{self.address(peer2)}>peer3>echo.example.org:{self.port}"
        row = await self.net.tunnels.open(path)
        self.assertRegex(row.listening[0], r"\Atcp:\d+:interface=127\.0\.0\.1\Z")
        await self.echoes(self.program(row))
        self.assertEqual(self.hops(), [node.key.node_id for node in (peer1, peer2, peer3)])
        self.assertEqual(self.net.asked, ["echo.example.org"])

    async def test_g46_a_local_network_by_the_hash_of_its_node(self) -> None:
        """`2222>[hash]>192.168.0.2:22`, for whom the node has listed and for nobody else."""
        lan = free_port()
        await self.begin(lan=f"127.0.0.1:{lan}")
        port = self.net.reactor.listenTCP(lan, self.targets, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        listed, stranger = self.net.relays[:2]
        for count, way in enumerate((f"[{id_text(listed.key.node_id)}]", f"rand>{id_text(listed.key.node_id)[:10]}")):
            row = await self.net.tunnels.open(f"0>{way}>127.0.0.1:{lan}")
            await self.echoes(self.program(row))
            self.assertEqual(len(self.targets.all), count + 1)
        for node, number in ((stranger, lan), (listed, self.port)):
            row = await self.net.tunnels.open(f"0>[{id_text(node.key.node_id)}]>127.0.0.1:{number}")
            program = self.program(row)
            await program.ends()
            self.assertEqual((program.over, len(self.targets.all)), ("reset", 2))

    async def test_g47_five_hops_and_the_internet(self) -> None:
        """`8080>rand>rand>rand>rand>rand>internet` is a SOCKS port."""
        await self.begin()
        row = await self.net.tunnels.open("0>rand>rand>rand>rand>rand>internet")
        program = self.program(row)
        program.say(HELLO + connect("echo.example.org", self.port))
        await program.hear(b"\x05\x00" + reply(Code.GRANTED))
        self.assertEqual(len(set(self.hops())), 5)

    async def test_g48_stars_are_random_hops(self) -> None:
        await self.begin()
        row = await self.net.tunnels.open(f"0>*>rand>*>*>echo.example.org:{self.port}")
        await self.echoes(self.program(row))
        self.assertEqual(len(set(self.hops())), 4)

    async def test_without_hops_it_is_as_long_as_usual(self) -> None:
        await self.begin()
        row = await self.net.tunnels.open(f"0>echo.example.org:{self.port}")
        await self.echoes(self.program(row))
        self.assertEqual(len(self.hops()), 3)

    async def test_hidden_services(self) -> None:
        services = Services()
        await self.begin(hidden=services)
        program = self.program(await self.net.tunnels.open("0>blog.l8.alt>22"))
        program.say(b"words")
        await program.hear(b"WORDS")
        self.assertEqual(services.asked, [("blog.l8.alt", 22, ("tunnel 1",))])
        program = self.program(await self.net.tunnels.open("0>" + "AB" * 20))
        program.say(b"resource")
        await program.hear(b"RESOURCE")
        self.assertEqual(services.asked[1:], [("ab" * 20, 1, ("tunnel 2",))])
        program = self.program(await self.net.tunnels.open("0>locked.l8.alt>22"))
        await program.ends()
        self.assertEqual((program.over, bytes(program.got)), ("reset", b""))

    async def test_half_close(self) -> None:
        await self.begin()
        program = self.program(await self.net.tunnels.open(f"0>echo.example.org:{self.port}"))
        program.say(b"question")
        program.sock.shutdown(socket.SHUT_WR)
        await self.net.until(lambda: self.targets.all and self.targets.all[0].half)
        self.targets.all[0].transport.write(b"answer")
        self.targets.all[0].transport.loseConnection()
        self.assertEqual((await program.ends(), program.over), (b"answer", "end"))


class RefusalTests(TunnelCase):
    async def test_what_cannot_be_is_refused_at_once(self) -> None:
        await self.begin()
        node = id_text(self.net.relays[0].key.node_id)
        for path, error in (
            ("", ConfigError),
            ("1000", ConfigError),
            (f"0>{'rand>' * 9}example.org:80", ConfigError),
            ("0>via:2>rand>example.org:80", ConfigError),
            ("tls:0>rand>example.org:80", ConfigError),
            ("0.0.0.0:0>rand>internet", ConfigError),
            (f"0>{'ab' * 20}", Unavailable),
            ("0>blog.l8.alt>80", Unavailable),
            (f"0>{node}>22", Unavailable),
            (f"{self.net.port}>rand>example.org:80", Unavailable),
        ):
            with self.assertRaises(error, msg=path):
                await self.net.tunnels.open(path)
        self.assertEqual(list(self.net.tunnels), [])

    async def test_an_unknown_node_resets_who_comes(self) -> None:
        await self.begin()
        program = self.program(await self.net.tunnels.open(f"0>nobody-we-know>echo.example.org:{self.port}"))
        await program.ends()
        self.assertEqual((program.over, self.targets.all), ("reset", []))

    async def test_as_many_as_may_be(self) -> None:
        await self.begin()
        self.patch(tunnels, "TUNNELS", 2)
        rows = SocksRows((), self.net.tunnels, self.net.reactor.seconds)
        methods = Methods(wall)
        methods.add(rows)
        for _ in range(2):
            await methods.call(caller("operate"), "tunnel.open", {"path": "0>example.org:80"})
        with self.assertRaises(NoCapacity):
            await methods.call(caller("operate"), "tunnel.open", {"path": "0>example.org:80"})


class KeptTests(TunnelCase):
    def memory(self) -> Memory:
        storage = InlineStorage(File(self.home / "node.db", SCHEMA))
        self.addCleanup(storage.close)
        return Memory(storage)

    async def begin(self, **more: Any) -> Any:
        self.home = folder(self)
        self.keeper = self.memory()
        return await super().begin(keeper=self.keeper, **more)

    def kept(self) -> tuple[str, ...]:
        client = self.net.client
        return self.memory().load(client.database, client.guards, client.layer2, wall()).tunnels

    async def test_kept_tunnels_come_back(self) -> None:
        await self.begin()
        there = free_port()
        path = f"{there}>echo.example.org:{self.port}"
        row = await self.net.tunnels.open(path, keep=True)
        await self.net.tunnels.open(f"0>echo.example.org:{self.port}")
        self.assertEqual((row.kept, self.kept()), (True, (path,)))
        await self.net.tunnels.stopService()
        self.assertEqual(list(self.net.tunnels), [])

        again = Tunnels(
            self.net.reactor, self.net.tunnels._config, self.net.client.client, wall=wall, keeper=self.keeper
        )
        again.restore(self.kept())
        again.startService()
        self.addCleanup(again.stopService)
        (row,) = again
        self.assertEqual((row.path, row.listening), (path, (f"tcp:{there}:interface=127.0.0.1",)))
        await self.echoes(self.program(row))
        self.assertTrue(await again.close(row.number))
        self.assertFalse(await again.close(row.number))
        self.assertEqual((list(again), self.kept()), ([], ()))

    async def test_one_whose_port_is_taken_stays_kept(self) -> None:
        await self.begin()
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        path = f"{taken.getsockname()[1]}>example.org:80"
        await self.keeper.keep_tunnel(path, wall())
        await self.net.tunnels.stopService()
        self.net.tunnels.restore(self.kept())
        self.net.tunnels.startService()
        (row,) = self.net.tunnels
        self.assertEqual((row.path, row.listening, row.kept), (path, (), True))
        self.assertEqual(self.kept(), (path,))
        self.assertTrue(await self.net.tunnels.close(row.number))
        self.assertEqual(self.kept(), ())


class RowTests(TunnelCase):
    async def begin(self, **more: Any) -> Any:
        net = await super().begin(**more)
        self.methods = Methods(wall)
        self.methods.add(SocksRows((net.socks.clients, net.tunnels.clients), net.tunnels, net.socks.clients.seconds))
        return net

    async def call(self, name: str, *roles: str, **params: Any) -> Any:
        return await self.methods.call(caller(*(roles or ("operate",))), name, params)

    async def test_tunnels(self) -> None:
        await self.begin()
        path = f"0>rand>rand>echo.example.org:{self.port}"
        opened = await self.call("tunnel.open", path=path)
        self.assertEqual((opened["tunnel"], opened["path"], opened["kept"]), (1, path, False))
        self.assertEqual(await self.call("tunnel.list"), {"tunnels": [opened]})
        self.assertEqual(await self.call("tunnel.list", "read"), {"tunnels": [opened | {"path": ""}]})
        await self.echoes(self.dial(int(opened["listening"][0].split(":")[1])))
        await self.call("tunnel.close", tunnel=1)
        self.assertEqual(await self.call("tunnel.list", "read"), {"tunnels": []})
        await self.net.until(lambda: self.targets.all[0].over)
        for name, params, error in (
            ("tunnel.close", {"tunnel": 1}, NotFound),
            ("tunnel.open", {"path": "nonsense"}, InvalidParams),
            ("tunnel.open", {"path": "0>blog.l8.alt>80"}, CallUnavailable),
        ):
            with self.assertRaises(error):
                await self.call(name, **params)
        for name in ("tunnel.open", "tunnel.close"):
            with self.assertRaises(Forbidden):
                await self.call(name, "read", path=path)

    async def test_clients_are_blurred(self) -> None:
        await self.begin()
        program = await self.joined(login(b"alice", b"geheim"))
        program.say(bytes(100_001))
        await self.net.until(lambda: len(self.targets.all[0].got) == 100_001)
        ((row,), (full,)) = [
            (await self.call("socks.clients", "admin", full=full))["clients"] for full in (False, True)
        ]
        (circuit,) = self.net.circuits
        for shown in (row, full):
            self.assertEqual((shown["client"], shown["state"], shown["circuit"]), (1, "open", circuit.number))
            self.assertNotIn("alice", str(shown))
        self.assertEqual((row.get("address"), row.get("target"), row["bytes_in"]), (None, None, 131_072))
        self.assertEqual(
            (full["address"], full["target"], full["bytes_in"], full["bytes_out"]),
            ("127.0.0.1", f"echo.example.org:{self.port}", 100_001, 0),
        )
        with self.assertRaises(Forbidden):
            await self.call("socks.clients", "operate", full=True)
        program.sock.close()
        self.targets.all[0].transport.loseConnection()
        await self.net.until(lambda: not len(self.net.socks.clients))
        self.assertEqual(await self.call("socks.clients", "read"), {"clients": []})
