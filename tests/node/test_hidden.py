"""Hidden services on whole nodes: offered by a configuration or by a call, visited by SOCKS and by a tunnel."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SkipTest
from twisted.web.server import Site
from twisted.web.static import Data

from layer8.config.load import load_text
from layer8.config.services import ServiceConfig, VisitConfig
from layer8.control.errors import CallUnavailable, Forbidden, InvalidParams, NoCapacity, NotFound
from layer8.core.errors import ConfigError
from layer8.crypto.curtain import AUTH_CLIENTS, ClientKey
from layer8.crypto.descriptor import Role
from layer8.crypto.keys import NodeKey, id_text, parse_id
from layer8.node.counting import RendezvousMetrics
from layer8.node.hidden import read_visits
from layer8.node.service import Node
from layer8.rendezvous import hosting as hosting_module
from layer8.rendezvous.address import address_text, parse_address
from layer8.rendezvous.descriptor import parse_clients
from layer8.rendezvous.hosting import CLIENTS_MOST, SERVICES, read_clients
from layer8.rendezvous.operate import Alert, Published, SessionEvent
from tests.interop.daemons import folder
from tests.node.test_service import NodeCase

RELAY = """
[control]
listen = []
[relay]
network = "test-hidden"
listen = ["tcp:0:interface=127.0.0.1"]
links = 1
drain_s = 0
peers = {peers}
[dht]
enabled = true
listen = "udp:0:interface=127.0.0.1"
bootstrap = {bootstrap}
[socks]
listen = []
"""
CLIENT = """
[control]
listen = []
[relay]
network = "test-hidden"
listen = []
relay = false
drain_s = 0
peers = {peers}
[socks]
listen = {socks}
{more}
"""
HERE = '["tcp:0:interface=127.0.0.1"]'
RELAYS = 7
PAGE = b"It came a long way.\n"


def listed(words: list[str]) -> str:
    return str(words).replace("'", '"')


class HiddenNodeCase(NodeCase):
    """Relays that keep the DHT, and nodes that know them."""

    async def network(self) -> None:
        first = self.start(RELAY.format(peers=[], bootstrap=[]), dht=True)
        assert first.dht is not None
        port = first.dht.listening.split(":")[1]
        known = RELAY.format(peers=listed([self.where(first)]), bootstrap=listed([f"127.0.0.1:{port}"]))
        self.relays = [first, *(self.start(known, dht=True) for _ in range(RELAYS - 1))]
        await self.until(lambda: all(len(one.relay.database) == RELAYS - 1 for one in self.relays))

    async def member(self, more: str = "", socks: str = "[]", home: Path | None = None) -> Node:
        """Start a node that carries nothing, and wait until it knows the others."""
        text = CLIENT.format(peers=listed([self.where(self.relays[0])]), socks=socks, more=more)
        node = self.start(text, home=home)
        await self.until(lambda: len(node.relay.database) == RELAYS)
        return node

    def page(self, text: bytes = PAGE) -> int:
        page = Data(text, "text/plain")
        page.isLeaf = True
        port = self.clock.listenTCP(0, Site(page), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def published(self, node: Node, name: str) -> Any:
        hosting = node.hosts.get(name)
        assert hosting is not None
        await self.until(lambda: hosting.state == "published")
        return hosting

    async def curl(self, node: Node, url: str, *words: str) -> bytes:
        assert node.socks is not None
        return await self.run_curl(
            "--socks5-hostname", f"127.0.0.1:{node.socks.listening[0].split(':')[1]}", url, *words
        )

    async def run_curl(self, *words: str) -> bytes:
        program = shutil.which("curl")
        if program is None:
            raise SkipTest("needs the package curl")
        out, err, code = await getProcessOutputAndValue(
            program, ["-sS", "--noproxy", "", "--max-time", "40", *words], reactor=self.clock
        )
        if code:
            raise AssertionError(err.decode())
        return bytes(out)


class VisitTests(HiddenNodeCase):
    async def test_a_page(self) -> None:
        """G37: offered by a configuration, visited with curl by SOCKS and by a tunnel."""
        lines: list[str] = []
        note: Any = lambda event: lines.append(repr(event))  # noqa: E731
        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        await self.network()
        text = Random(3).randbytes(1 << 20)
        there = await self.member(f'[service.blog]\nports = {{ 80 = "127.0.0.1:{self.page(text)}" }}')
        here = await self.member(socks=HERE)
        hosting = await self.published(there, "blog")
        found = await self.curl(here, f"http://www.{hosting.address}/")
        self.assertEqual(hashlib.sha256(found).digest(), hashlib.sha256(text).digest())
        row = await here.tunnels.open(f"127.0.0.42:0>{hosting.address}>80")
        at = row.listening[0]
        self.assertIn("interface=127.0.0.42", at)
        self.assertEqual(await self.run_curl(f"http://127.0.0.42:{at.split(':')[1]}/"), text)
        for secret in (hosting.address[:56], "127.0.0.42", "blog"):
            self.assertEqual([line for line in lines if secret in line and "layer8" in line], [], secret)
        # G40: it listens nowhere but on its own control socket.
        self.assertEqual([line for line in there._frame.listening() if "unix:" not in line], [])
        # One key, and a file that is for its owner alone.
        path = Path(there._frame.home / "services" / "blog.pem")
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    async def test_a_folder_by_its_hash(self) -> None:
        """G39: 40 hex digits at a SOCKS port, for whoever has them."""
        await self.network()
        site = folder(self)
        (site / "a.txt").write_bytes(PAGE)
        there = await self.member(f'[service.site]\nports = {{ 1 = "dir:{site}" }}\npublic = true')
        here = await self.member(socks=HERE)
        hosting = await self.published(there, "site")
        self.assertEqual(await self.curl(here, f"http://{hosting.resource}:1/a.txt"), PAGE)
        self.assertEqual(await self.curl(here, f"http://{hosting.address}:1/a.txt"), PAGE)

    async def test_data_through_the_access_point(self) -> None:
        """G38: the same page where the service lets clients save a circuit."""
        await self.network()
        more = f'ports = {{ 80 = "127.0.0.1:{self.page()}" }}\ndata_through_access_point = true'
        there, here = await self.member(f"[service.blog]\n{more}"), await self.member(socks=HERE)
        hosting = await self.published(there, "blog")
        self.assertEqual(await self.curl(here, f"http://{hosting.address}/"), PAGE)
        (session,) = hosting.service.sessions.values()
        self.assertEqual(session.mode, 0)


class AccessTests(HiddenNodeCase):
    """Who may come, by keys of clients and by logins."""

    async def test_known_clients(self) -> None:
        """A stranger with the address is refused, a known client comes, and comes no more when it is taken away."""
        await self.network()
        keys, path = folder(self), folder(self) / "clients"
        alice, bob = (pem(keys / f"{name}.pem") for name in ("alice", "bob"))
        path.write_text(f"alice = {alice}  # a friend\n")
        more = f'ports = {{ 80 = "127.0.0.1:{self.page()}" }}\nclient_auth = "{path}"'
        there = await self.member(f"[service.blog]\n{more}")
        hosting = await self.published(there, "blog")
        visit = f'[visit.blog]\naddress = "{hosting.address}"\nclient_key = "{{}}"'
        stranger = await self.member(socks=HERE)
        known = await self.member(visit.format(keys / "alice.pem"), socks=HERE)
        other = await self.member(visit.format(keys / "bob.pem"), socks=HERE)
        url = f"http://{hosting.address}/"
        self.assertEqual(await self.curl(known, url), PAGE)
        self.assertEqual([await self.refusal(one, url) for one in (stranger, other)], ["F4", "F5"])
        told = await self.call(there, "rendezvous.auth_add", service="blog", name="bob", key=bob)
        self.assertEqual(told, {"clients": ["alice", "bob"]})
        self.assertEqual(parse_clients(path.read_text()), {"alice": parse_id(alice), "bob": parse_id(bob)})
        seq = hosting.publishing.published
        await self.until(lambda: hosting.publishing.published > seq)
        self.assertEqual(await self.curl(other, url), PAGE)
        self.assertEqual(len(hosting.service.sessions), 2)
        seq = hosting.publishing.published
        told = await self.call(there, "rendezvous.auth_remove", service="blog", name="alice")
        self.assertEqual(told, {"clients": ["bob"]})
        await self.until(lambda: not hosting.service.sessions and hosting.publishing.published > seq)
        self.assertEqual(await self.curl(other, url), PAGE)
        self.assertEqual(await self.refusal(known, url), "F5")
        for method, words, error in (
            ("auth_add", {"service": "blog", "name": "bob", "key": alice}, InvalidParams),
            ("auth_add", {"service": "none", "name": "bob", "key": alice}, NotFound),
            ("auth_remove", {"service": "blog", "name": "alice"}, NotFound),
        ):
            with self.assertRaises(error):
                await self.call(there, f"rendezvous.{method}", **words)

    async def test_logins(self) -> None:
        """G54: a listed login comes, a stranger does not, and nobody without one."""
        await self.network()
        keys = folder(self)
        mine, others = NodeKey.load_or_make(keys / "mine.pem"), NodeKey.load_or_make(keys / "others.pem")
        more = f'ports = {{ 80 = "127.0.0.1:{self.page()}" }}\nallow = ["{mine.text}"]'
        there = await self.member(f"[service.blog]\n{more}")
        hosting = await self.published(there, "blog")
        visit = f'[visit.blog]\naddress = "{hosting.address}"\nidentity = "{{}}"'
        known = await self.member(visit.format(keys / "mine.pem"), socks=HERE)
        other = await self.member(visit.format(keys / "others.pem"), socks=HERE)
        url = f"http://{hosting.address}/"
        self.assertEqual(await self.curl(known, url), PAGE)
        rows = await self.call(there, "rendezvous.sessions")
        self.assertEqual((rows["all"], [row["login"] for row in rows["sessions"]]), (1, [mine.text]))
        self.assertNotEqual(mine.text, others.text)
        with self.assertRaises(AssertionError):
            await self.curl(other, url, "--max-time", "4")
        self.assertEqual(hosting.service.counted["refused"], 1)

    async def refusal(self, node: Node, url: str) -> str:
        """Give the code with which a SOCKS port refuses a visit."""
        with self.assertRaises(AssertionError) as caught:
            await self.curl(node, url)
        found = re.search(r"\((\d+)\)\s*$", str(caught.exception).strip())
        assert found is not None, caught.exception
        return f"{int(found[1]):X}"


class RowTests(HiddenNodeCase):
    async def test_hide_look_and_unhide(self) -> None:
        await self.network()
        there, here = await self.member(), await self.member()
        heard: list[tuple[str, Any]] = []
        self.patch(there._frame.table, "publish", lambda name, data: heard.append((name, data)))
        path = there._frame.home / "a.txt"
        path.write_bytes(PAGE)
        words: dict[str, Any] = {"name": "a-file", "ports": [{"port": 1, "target": f"file:{path}"}], "public": True}
        told = await self.call(there, "rendezvous.hide", **words)
        hosting = await self.published(there, "a-file")
        self.assertEqual((told["made"], told["exposed"], told["service"]["state"]), (True, [], "picking points"))
        self.assertEqual(told["service"]["resource"], hosting.resource)
        met = await self.call(here, "rendezvous.connect", address=hosting.resource)
        self.assertEqual((met["address"] + ".l8.alt", met["effort"]), (hosting.address, 0))
        self.assertIn(met["points"], (1, 2, 3))  # those that listened when it was published first
        self.assertGreater(met["met_ms"], 0)
        met = await self.call(here, "rendezvous.connect", address=met["address"])
        with self.assertRaises(CallUnavailable):
            await self.call(here, "rendezvous.connect", address=address_text(NodeKey.make().node_id))
        await self.until(lambda: len(hosting.service.points) == 3)
        (row,) = (await self.call(there, "rendezvous.services"))["services"]
        self.assertEqual((row["state"], row["points"], row["ports"], row["clients"]), ("published", 3, [1], None))
        self.assertIn({"result": "met", "count": 2}, row["knocks"])
        (blind,) = (await self.call(there, "rendezvous.services", role="read"))["services"]
        shown = [blind[member] for member in ("address", "resource", "magnet", "seq", "sessions", "knocks")]
        self.assertEqual(shown, ["", "", "", 0, 0, []])
        for role, longest in (("operate", 4), ("read", 3)):  # the fourth hop is a point of ours
            rows = (await self.call(there, "relay.circuits", role=role))["circuits"]
            self.assertEqual(max(row["path"].count(">") + 1 for row in rows if row["purpose"] == "alone"), longest)
        rows = await self.call(there, "rendezvous.points")
        self.assertEqual([point["service"] for point in rows["points"]], ["a-file"] * 3)
        counts = [await self.call(one, "rendezvous.points") for one in self.relays]
        self.assertEqual(sum(one["listening"] for one in counts), 3)
        self.assertEqual(sum(one["joined"] for one in counts), 2)
        (found,) = (await self.call(there, "rendezvous.resources"))["resources"]
        self.assertEqual(found["resource"], hosting.resource)
        families = {one.name: one.values for one in RendezvousMetrics(there.hidden).families()}
        self.assertEqual(families["layer8_rendezvous_points"], {(): 3})
        self.assertEqual(families["layer8_rendezvous_knocks_total"][("met",)], 2)
        for said, error in (
            ({**words}, InvalidParams),
            ({**words, "name": "A"}, InvalidParams),
            ({**words, "name": "other"}, None),
            ({**words, "name": "third", "key": "services/a-file.pem"}, InvalidParams),
            ({**words, "name": "third", "ports": [{"port": 1, "target": "file:/nowhere"}]}, InvalidParams),
            ({**words, "name": "third", "client_auth": "/nowhere"}, InvalidParams),
        ):
            if error is None:
                await self.call(there, "rendezvous.hide", **said)
                continue
            with self.assertRaises(error, msg=str(said)):
                await self.call(there, "rendezvous.hide", **said)
        with self.assertRaises(Forbidden):
            await self.call(there, "rendezvous.hide", role="operate", **{**words, "name": "fourth"})
        self.patch(hosting_module, "open_ports", lambda port: ("192.0.2.1",))
        bare: dict[str, Any] = {"name": "bare", "ports": [{"port": 80, "target": "localhost:8080"}]}
        told = await self.call(there, "rendezvous.hide", **bare)
        self.assertEqual(told["exposed"], ["localhost:8080 also listens on 192.0.2.1"])
        await self.call(there, "rendezvous.unhide", name="bare")
        await self.call(there, "rendezvous.unhide", name="a-file")
        await self.until(lambda: sum(len(one.hidden.access.listeners) for one in self.relays if one.hidden.access) == 3)
        with self.assertRaises(NotFound):
            await self.call(there, "rendezvous.unhide", name="a-file")
        hosting.service.alert("a login twice")
        there.hidden.visits.alert("our login twice")
        alerts = [data for name, data in heard if name == "rendezvous.alert"]
        self.assertEqual(alerts, [Alert("a-file", "a login twice"), Alert("", "our login twice")])
        published = [data for name, data in heard if name == "rendezvous.published"]
        self.assertEqual((type(published[0]), published[0].service), (Published, "a-file"))
        sessions = [data for name, data in heard if name == "rendezvous.session"]
        self.assertEqual({type(data) for data in sessions}, {SessionEvent})
        self.assertEqual([data.state for data in sessions], ["opened", "closed", "opened", "closed"])


class LifeTests(HiddenNodeCase):
    async def test_a_reload(self) -> None:
        """Services come, go and change with the configuration; what does not change goes on."""
        await self.network()
        text = '[service.{}]\nports = {{ 80 = "127.0.0.1:1" }}\n'
        there = await self.member(text.format("one") + text.format("two"))
        one = await self.published(there, "one")
        fresh = CLIENT.format(
            peers=listed([self.where(self.relays[0])]),
            socks="[]",
            more=text.format("one") + text.format("three") + "public = true\n",
        )
        loaded = load_text(fresh, {}, {})
        await there.apply(loaded.config)
        self.assertEqual({hosting.name for hosting in there.hosts}, {"one", "three"})
        self.assertIs(there.hosts.get("one"), one)
        self.assertEqual(one.state, "published")
        bad = load_text(fresh + '[service.four]\nports = { 80 = "file:/nowhere" }', {}, {})
        with self.assertRaises(ConfigError):
            await there.apply(bad.config)
        self.assertEqual({hosting.name for hosting in there.hosts}, {"one", "three"})

    async def test_a_reload_of_who_may_come(self) -> None:
        """A file of clients and a list of logins are read again, and the service goes on."""
        await self.network()
        path, login = folder(self) / "clients", NodeKey.make().text
        path.write_text("")
        text = f'[service.blog]\nports = {{ 80 = "127.0.0.1:1" }}\nclient_auth = "{path}"\n'
        there = await self.member(text)
        hosting = await self.published(there, "blog")
        points, seq, cookie = set(hosting.service.points), hosting.publishing.published, hosting.service.cookie
        known = ClientKey.make().public
        path.write_text(f"alice = {id_text(known)}")
        fresh = CLIENT.format(
            peers=listed([self.where(self.relays[0])]), socks="[]", more=f'{text}allow = ["{login}"]\n'
        )
        await there.apply(load_text(fresh, {}, {}).config)
        self.assertIs(there.hosts.get("blog"), hosting)
        self.assertEqual(hosting.clients, {"alice": known})
        self.assertEqual([hosting.service.allow(one) for one in (None, parse_id(login))], [False, True])
        self.assertEqual(hosting.service.cookie, cookie)
        await self.until(lambda: hosting.publishing.published > seq)
        self.assertLessEqual(points, set(hosting.service.points))
        path.write_text("")
        await there.apply(load_text(fresh, {}, {}).config)
        self.assertNotEqual(hosting.service.cookie, cookie)
        path.write_text("nonsense")
        with self.assertRaises(ConfigError):
            await there.apply(load_text(fresh, {}, {}).config)
        self.assertEqual(hosting.clients, {})

    async def test_a_restart(self) -> None:
        """The same address at the same points, with a higher seq: nobody has to look for it again."""
        await self.network()
        home = folder(self)
        more = '[service.blog]\nports = { 80 = "127.0.0.1:1" }'
        first = await self.member(more, home=home)
        before = await self.published(first, "blog")
        await self.until(lambda: len(before.service.points) == 3)
        points, seq = set(before.service.points), before.publishing.published
        await self.stop(first)
        second = await self.member(more, home=home)
        after = await self.published(second, "blog")
        await self.until(lambda: len(after.service.points) == 3)
        self.assertEqual((after.address, set(after.service.points)), (before.address, points))
        self.assertGreater(after.publishing.published, seq)

    async def test_limits(self) -> None:
        node = self.start(CLIENT.format(peers="[]", socks="[]", more=""))
        for number in range(SERVICES):
            node.hosts.hide(f"s-{number}", ServiceConfig(ports={80: "localhost:80"}))
        with self.assertRaises(NoCapacity):
            await self.call(node, "rendezvous.hide", name="one-more", ports=[{"port": 80, "target": "localhost:80"}])
        self.assertEqual(len(list(node.hosts)), SERVICES)
        path = folder(self) / "clients"
        path.write_text("#" * (CLIENTS_MOST + 1))
        with self.assertRaises(ConfigError) as caught:
            read_clients(path)
        self.assertIn("larger than", str(caught.exception))
        path.write_text("")
        path.chmod(0o620)
        with self.assertRaises(ConfigError) as caught:
            read_clients(path)
        self.assertIn("others may change it", str(caught.exception))
        path.chmod(0o640)
        words: dict[str, Any] = {"name": "s-0", "ports": [{"port": 80, "target": "localhost:80"}]}
        node.hosts.unhide("s-0")
        await self.call(node, "rendezvous.hide", **words, client_auth=str(path))
        hosting = node.hosts.get("s-0")
        assert hosting is not None
        hosting.clients.update({f"c{number}": bytes(32) for number in range(AUTH_CLIENTS)})
        with self.assertRaises(NoCapacity):
            key = id_text(ClientKey.make().public)
            await self.call(node, "rendezvous.auth_add", service="s-0", name="one-more", key=key)

    async def test_a_node_that_offers_nothing(self) -> None:
        node = self.start(RELAY.format(peers=[], bootstrap=[]) + "[rendezvous]\nenabled = false\n")
        self.assertIsNone(node.hidden.access)
        self.assertFalse(self.roles(node) & Role.RENDEZVOUS)
        other = self.start(RELAY.format(peers=[], bootstrap=[]) + "[rendezvous]\nenabled = false\n", rendezvous=True)
        self.assertTrue(self.roles(other) & Role.RENDEZVOUS)

    def roles(self, node: Node) -> int:
        own = node.relay.descriptor
        assert own is not None
        return own.roles

    def test_wrong_visits(self) -> None:
        key = folder(self) / "a.pem"
        NodeKey.load_or_make(key)
        address = address_text(NodeKey.make().node_id)
        good = {"address": address, "identity": str(key)}
        for configs in (
            {"one": VisitConfig(**{**good, "address": "blog"})},
            {"one": VisitConfig(**good), "two": VisitConfig(**good)},
            {"one": VisitConfig(address=address, client_key=str(key))},
        ):
            with self.assertRaises(ConfigError):
                read_visits(configs)
        self.assertEqual(list(read_visits({"one": VisitConfig(**good)})), [parse_address(address)])


def pem(path: Path) -> str:
    """Make a client's key (X25519) as openssl does, and give its public half as a file of clients has it."""
    if shutil.which("openssl") is None:
        raise SkipTest("needs the package openssl")
    subprocess.run(["openssl", "genpkey", "-algorithm", "X25519", "-out", str(path)], check=True, timeout=60)
    path.chmod(0o600)
    words = ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"]
    public = subprocess.run(words, check=True, capture_output=True, timeout=60).stdout[-32:]
    return base64.b32encode(public).decode().rstrip("=").lower()
