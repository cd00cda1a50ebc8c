"""A relay as a service: keys, apps, scripts, roles, reload, drain, and what it tells of itself."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha384
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

import layer8
from layer8.config.tree import Config
from layer8.config.tunnel import TunnelGatewayConfig
from layer8.core.errors import ConfigError, Unavailable
from layer8.crypto.keys import NodeKey
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.http import Incoming
from layer8.net.http_client import Pool, fetch
from layer8.net.listen import serve
from layer8.net.tls import TlsServer
from layer8.net.ways import connector
from layer8.tunnel import jws, keeping
from layer8.tunnel.integrity import BESIDE, csp
from layer8.tunnel.keys import GatewayKey
from layer8.tunnel.mirror import App
from layer8.tunnel.service import Relay, _Alone, alone
from layer8.tunnel.wire import CHUNKED, OHTTP_KEY, PROBLEM_TYPE, problem
from tests.control.callers import caller
from tests.tunnel.test_relay import HOST, SEALED, RelayCase, post


def get(path: str, host: str = "relay.test", more: str = "", method: str = "GET") -> bytes:
    """Write a request without a body."""
    return f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n".encode()


class KeyTests(RelayCase):
    async def test_a_gateway_that_comes_later(self) -> None:
        self.patch(keeping, "RETRY_FIRST", 0.05)
        good, self.gateway.document = self.gateway.keys(), b"nonsense"
        relay = self.start()
        client = await self.client()
        self.assertEqual((await client.ask(get("/r/shop/keys")))[0], 503)
        health = relay._ground.health.rows()
        self.assertEqual([(row.check, row.ok) for row in health], [("keys", False), ("keys elsewhere", True)])
        self.assertEqual(health[0].why, "1 of 1 gateways give no key set")
        self.assertFalse(any(row.needed for row in health))
        self.gateway.document = good
        await self.settle(lambda: next(iter(relay.rows())).epoch is not None)
        self.assertEqual((await client.ask(get("/r/shop/keys")))[2], good)
        self.assertTrue(all(row.ok for row in relay._ground.health.rows()))

    async def test_keys_that_another_has_signed(self) -> None:
        """What the gateway itself has not signed does not reach a page, if the relay knows the gateway."""
        self.gateway.identity = NodeKey.make()
        self.start()
        self.assertEqual((await (await self.client()).ask(get("/r/shop/keys")))[0], 503)

    async def test_more_than_a_key_set(self) -> None:
        self.gateway.document = self.gateway.keys().ljust(65_537)
        relay = self.start(of={"identity": ()})
        self.assertEqual((await (await self.client()).ask(get("/r/shop/keys")))[0], 503)
        self.assertEqual(relay.keeping.kept["shop"].tried, 1)

    async def test_pages_check_what_the_relay_cannot(self) -> None:
        self.gateway.identity = NodeKey.make()
        self.start(of={"identity": ()})
        self.assertEqual((await (await self.client()).ask(get("/r/shop/keys")))[0], 200)

    async def test_a_hint_that_the_key_is_another_one(self) -> None:
        relay = self.start()
        await self.settle(lambda: next(iter(relay.rows())).epoch is not None)
        kept = relay.keeping.kept["shop"]
        assert kept.timer is not None
        self.assertGreater(kept.timer.getTime() - self.reactor.seconds(), 3000)
        self.gateway.how = lambda one, body: one.answer(400, [("content-type", PROBLEM_TYPE)], problem(400, OHTTP_KEY))
        await (await self.client()).ask(post())
        self.assertLess(kept.timer.getTime() - self.reactor.seconds(), 601)

    async def test_other_relays_are_compared_with(self) -> None:
        """Another key of the same epoch is told of, a later one is not, and who is away says nothing."""
        other = self.kind(self.reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(other.close()))
        theirs = [self.gateway.keys()]
        other.server.handler = lambda one: one.answer(200 if theirs else 404, (), theirs[0] if theirs else b"")
        relay = self.start(of={"compare": (f"http://127.0.0.1:{other.port}", "http://127.0.0.1:9")})
        await self.settle(lambda: next(iter(relay.rows())).epoch is not None)
        kept = relay.keeping.kept["shop"]
        key = self.gateway.key

        async def found(document: bytes | None) -> tuple[str, ...]:
            theirs[:] = [] if document is None else [document]
            await relay.keeping.compare(kept)
            return kept.apart

        apart = (f"http://127.0.0.1:{other.port}",)
        self.assertEqual(await found(self.gateway.keys()), ())
        self.assertEqual(
            await found(GatewayKey.make(key.epoch).key_set("shop", [HOST]).sign(self.gateway.identity)), apart
        )
        (row,) = relay.rows()
        self.assertEqual(row.apart, apart)
        later = GatewayKey.make(key.epoch + 24).key_set("shop", [HOST])
        self.assertEqual(await found(later.sign(self.gateway.identity)), ())
        self.assertEqual(await found(later.sign(NodeKey.make())), apart)
        self.assertEqual(await found(None), ())
        self.assertIn("keys elsewhere", [row.check for row in relay._ground.health.rows()])


class MirrorTests(RelayCase):
    def app(self, **files: bytes) -> Path:
        """Make the folder of an app."""
        folder = Path(self.mktemp()).resolve()
        for name, data in {"index.html": b"<!doctype html>", **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    async def test_an_origin_for_each_app(self) -> None:
        shop, mall = self.app(), self.app(**{"a/b.js": b"1", "big.png": bytes(300_000)})
        self.start(
            name="relay.test",
            of={"app": str(shop)},
            others=(TunnelGatewayConfig(id="mall", app=str(mall)),),
        )
        client = await self.client()
        for host in ("mall.localhost", "mall.localhost:5000", "mall.relay.test", "MALL.relay.test"):
            status, fields, body = await client.ask(get("/a/b.js?x=1", host))
            self.assertEqual((status, body, fields["content-type"]), (200, b"1", "text/javascript; charset=utf-8"))
        self.assertEqual((await client.ask(get("/big.png", "mall.localhost")))[2], bytes(300_000))
        status, fields, body = await client.ask(get("/", "shop.localhost"))
        self.assertEqual((status, body, fields["content-type"]), (200, b"<!doctype html>", "text/html; charset=utf-8"))
        self.assertEqual(fields["content-security-policy"], csp(()))
        for name, value in BESIDE:
            self.assertEqual(fields[name], value)
        self.assertNotIn("access-control-allow-origin", fields)
        again = await client.ask(get("/", "shop.localhost", f"if-none-match: {fields['etag']}\r\n"))
        self.assertEqual((again[0], again[2], again[1]["etag"]), (304, b"", fields["etag"]))
        head = await client.ask(get("/", "shop.localhost", method="HEAD") + get("/", "shop.localhost"))
        self.assertEqual(head[1]["content-length"], "15")
        for host in ("relay.test", "shop.evil.test", "shoplocalhost", "localhost", "x.shop.localhost"):
            self.assertEqual((await (await self.client()).ask(get("/", host)))[0], 404)
        self.assertEqual((await (await self.client()).ask(get("/", "shop.localhost", method="DELETE")))[0], 405)
        self.assertEqual((await (await self.client()).ask(get("/r/shop/keys", "mall.localhost")))[0], 200)

    async def test_nothing_outside_of_the_folder(self) -> None:
        folder = self.app(**{".git/config": b"secret", "a/.env": b"secret", ".well-known/l8/x.json": b"{}"})
        (folder.parent / "secret").write_bytes(b"secret")
        self.addCleanup((folder.parent / "secret").unlink)
        (folder / "link").symlink_to(folder.parent / "secret")
        (folder / "inside").symlink_to(folder / "index.html")
        (folder / "loop").symlink_to(folder / "loop")
        self.start(of={"app": str(folder)})
        client = await self.client()
        for path in (
            *("/../secret", "/%2e%2e/secret", "/a/../../secret", "/a/%2e%2e/%2e%2e/secret", "/..%2fsecret", "//secret"),
            *("/%2e%2e%2fsecret", "/link", "/loop", "/.git/config", "/a/.env", "/a", "/a/", "/%00", "/index.html%00"),
            *("/index.html/", "/%ff", "/\\secret", "/..\\secret", "/%5csecret", "/./index.html", "/a/.well-known"),
            "/" + "a" * 5000,
        ):
            status, _, body = await client.ask(get(path, "shop.localhost"))
            self.assertEqual(status, 404, path)
            self.assertNotIn(b"secret", body)
        for path in ("/inside", "/.well-known/l8/x.json"):
            self.assertEqual((await client.ask(get(path, "shop.localhost")))[0], 200)

    async def test_headers_of_the_manifest(self) -> None:
        policy = csp(["https://relay.example"])
        manifest = jws.sign(NodeKey.make(), "l8-app+jws", {"csp": policy})
        more = {
            "integrity-policy": "blocked-destinations=(script style)",
            "set-cookie": "a=b",
            "permissions-policy": "a\r\nb",
        }
        files = {
            ".well-known/l8/manifest.json": manifest,
            ".well-known/l8/headers.json": json.dumps(more).encode(),
            ".well-known/waict/manifests/app_x": b"{}",
        }
        folder = self.app(**files)
        self.start(of={"app": str(folder)})
        client = await self.client()
        fields = (await client.ask(get("/", "shop.localhost")))[1]
        self.assertEqual(fields["content-security-policy"], policy)
        self.assertEqual(fields["integrity-policy"], more["integrity-policy"])
        self.assertNotIn("set-cookie", fields)
        self.assertNotIn("permissions-policy", fields)
        kind = (await client.ask(get("/.well-known/waict/manifests/app_x", "shop.localhost")))[1]["content-type"]
        self.assertEqual(kind, "application/waict-integrity-manifest")
        kind = (await client.ask(get("/.well-known/l8/manifest.json", "shop.localhost")))[1]["content-type"]
        self.assertEqual(kind, "application/jose+json")
        (folder / ".well-known/l8/manifest.json").write_bytes(b"broken, and longer than before" * 99)
        fields = (await client.ask(get("/", "shop.localhost")))[1]
        self.assertEqual(fields["content-security-policy"], csp(()))

    async def test_relays_of_the_manifest(self) -> None:
        """What a publisher writes down makes a relay ask nobody on its own machine, and nothing that is no relay."""
        relays = [
            "https://a.test",
            "https://b.test:8443",
            *(
                "http://127.0.0.1:22",
                "https://127.0.0.1:9756",
                "https://[::1]",
                "https://localhost",
                "https://x.localhost",
            ),
            *("https://10.0.0.1", "https://169.254.169.254", "https://[fd00::1]:5432", "https://0.0.0.0"),
            "https://c.test/path",
            5,
            "file:///etc",
        ]
        told = {"gateways": {"shop": {"relays": relays}, "many": {"relays": ["https://a.test"] * 99}, "odd": 7}}
        manifest = jws.sign(NodeKey.make(), "l8-app+jws", told)
        app = App(self.app(**{".well-known/l8/manifest.json": manifest}))
        self.assertEqual(app.relays("shop"), ("https://a.test", "https://b.test:8443"))
        for name in ("many", "odd", "none"):
            self.assertEqual(app.relays(name), ())
        (app.folder / ".well-known/l8/manifest.json").write_bytes(b"broken")
        self.assertEqual(app.relays("shop"), ())
        self.assertEqual(App(self.app()).relays("shop"), ())
        known = self.config(of={"app": str(self.app(**{".well-known/l8/manifest.json": manifest}))}, name="a.test")
        relay = alone(self.reactor, known)
        self.assertEqual(relay.keeping.kept["shop"].source.others, ("https://b.test:8443",))

    async def test_the_scripts_of_the_wheel(self) -> None:
        self.start()
        client = await self.client()
        told = json.loads((await client.ask(get("/l8/sri.json")))[2])
        self.assertEqual(told["version"], layer8.__version__)
        self.assertEqual(set(told["integrity"]), {"l8.js", "l8-sw.js", "l8.d.ts"})
        for name, hash_ in told["integrity"].items():
            status, fields, body = await client.ask(get(f"/l8/{layer8.__version__}/{name}?any", "shop.localhost"))
            self.assertEqual(status, 200)
            self.assertEqual("sha384-" + b64encode(sha384(body).digest()).decode(), hash_)
            self.assertEqual(fields["cache-control"], "public, max-age=31536000, immutable")
            self.assertEqual(fields["access-control-allow-origin"], "*")
            self.assertEqual(fields["service-worker-allowed"], "/")
        self.assertEqual((await client.ask(get("/l8/0.0.0/l8.js")))[0], 404)
        self.assertEqual((await client.ask(get(f"/l8/{layer8.__version__}/../../x")))[0], 404)


class RoleTests(RelayCase):
    async def test_a_mirror_relays_nothing(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        (folder / "index.html").write_bytes(b"app")
        self.start(role="mirror", of={"app": str(folder)})
        client = await self.client()
        self.assertEqual((await client.ask(get("/", "shop.localhost")))[0], 200)
        self.assertEqual((await client.ask(get("/l8/sri.json")))[0], 200)
        self.assertEqual((await client.ask(get("/r/shop/keys")))[0], 404)
        self.assertEqual((await client.ask(post()))[0], 404)
        await deferLater(self.reactor, 0.05)
        self.assertEqual(self.gateway.heads, [])

    async def test_a_relay_shows_no_app(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        (folder / "index.html").write_bytes(b"app")
        relay = self.start(role="relay", of={"app": str(folder)})
        client = await self.client()
        self.assertEqual((await client.ask(get("/", "shop.localhost")))[0], 404)
        self.assertEqual((await client.ask(post()))[0], 200)
        self.assertEqual(relay.listening(), (f"relay on 127.0.0.1:{relay.ports[0]}",))

    async def test_a_busy_port(self) -> None:
        relay = self.start()
        busy = alone(self.reactor, evolve(self.config(), listen=(f"tcp:{relay.ports[0]}:interface=127.0.0.1",)))
        error = self.assertRaises(Unavailable, busy.startService)
        self.assertIn("choose another with --listen", str(error))

    async def test_reload(self) -> None:
        """Gateways come, go and move without a restart; what cannot be used changes nothing."""
        relay = self.start(of={"bearer_file": ""})
        client = await self.client()
        self.assertEqual((await client.ask(post()))[0], 200)
        before = relay.stats().bytes
        other = self.kind(self.reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(other.close()))
        token = Path(self.mktemp()).resolve()
        token.write_text("of-the-relay\n")
        token.chmod(0o600)
        fresh = self.config(of={"endpoint": f"tcp:127.0.0.1:{other.port}", "bearer_file": str(token)})
        await relay.apply(evolve(Config(), tunnel=fresh))
        self.assertEqual((await client.ask(post()))[0], 200)
        self.assertIn(b"authorization: Bearer of-the-relay\r\n", other.heads[-1])
        await self.settle(lambda: any(b"keys.json" in head for head in other.heads))
        self.assertGreater(relay.stats().bytes.gateway_out, before.gateway_out)
        token.write_text("two words")
        wrong = evolve(Config(), tunnel=fresh)
        with self.assertRaises(ConfigError) as caught:
            await relay.apply(wrong)
        self.assertIn("a token has", str(caught.exception))
        self.assertNotIn("two words", str(caught.exception))
        self.assertEqual((await client.ask(post()))[0], 200)
        await relay.apply(evolve(Config(), tunnel=evolve(fresh, gateway=())))
        self.assertEqual((await client.ask(post()))[0], 404)
        self.assertEqual(list(relay.rows()), [])
        self.assertEqual((await (await self.client()).ask(get("/r/shop/keys")))[0], 404)

    async def test_what_needs_a_restart(self) -> None:
        relay = self.start()
        port = relay.ports[0]
        fresh = evolve(self.config(role="mirror", of={"app": "/srv"}), listen=("tcp:1:interface=127.0.0.1",))
        await relay.apply(evolve(Config(), tunnel=fresh))
        self.assertEqual((await (await self.client()).ask(post()))[0], 200)
        self.assertEqual(relay.listening(), (f"relay and mirror of apps on 127.0.0.1:{port}",))

    async def test_a_drain_ends_what_is_under_way(self) -> None:
        held: list[Incoming] = []
        self.gateway.how = lambda one, body: held.append(one)
        relay = self.start()
        client, idle = await self.client(), await self.client()
        client.transport.write(post())  # type: ignore[union-attr]
        await self.settle(lambda: bool(held))
        drained = Deferred.fromCoroutine(relay.drain())
        await idle.gone
        await self.settle(lambda: not relay.ports)
        self.assertFalse(drained.called)
        held[0].answer(200, [("content-type", CHUNKED.response)], b"done")
        status, _, body = await client.answer()
        self.assertEqual((status, body), (200, b"done"))
        await drained
        await client.gone
        relay.resume()
        self.gateway.how = lambda one, body: one.answer(200, [("content-type", CHUNKED.response)], b"")
        self.assertEqual((await (await self.client()).ask(post()))[0], 200)

    async def test_the_end_comes_with_a_word(self) -> None:
        """Browsers send again by themselves what has no answer at all."""
        self.gateway.how = lambda one, body: None
        relay = self.start()
        client = await self.client()
        client.transport.write(post())  # type: ignore[union-attr]
        await self.settle(lambda: bool(self.gateway.bodies))
        await relay.stopService()
        self.assertEqual((await client.answer())[0], 502)


class TlsTests(RelayCase):
    async def test_both_legs(self) -> None:
        """Pages come by TLS and the gateway is reached by TLS, under certificates that are checked."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        pairs = {name: self_signed(name) for name in ("relay.test", "gate.test", "fresh.test")}
        for name, (_, chain) in pairs.items():
            (folder / f"{name}.pem").write_bytes(chain)
        tls = TlsServer(Identity.from_pem(*pairs["gate.test"]), ("http/1.1",))
        (port,) = serve(self.reactor, "tcp:0:interface=127.0.0.1", "", self.gateway.server, tls=tls)
        self.addCleanup(port.stopListening)
        number = port.getHost().port  # type: ignore[attr-defined]
        way = f"tls:127.0.0.1:{number}:name=gate.test:ca={folder}/gate.test.pem"
        config = evolve(self.config(of={"endpoint": way}), listen=("tls:0:interface=127.0.0.1",), name="relay.test")
        shown = ["relay.test"]

        class Ground(_Alone):
            def identity(self, name: str = "", cert_file: str = "", key_file: str = "") -> Identity:
                return Identity.from_pem(*pairs[shown[0]])

        relay = self.relay = Relay(Ground(self.reactor), config)
        relay.startService()
        self.addCleanup(self.stop)

        async def ask(name: str) -> int:
            way = f"tls:127.0.0.1:{relay.ports[0]}:name={name}:ca={folder}/{name}.pem"
            pool = Pool(self.reactor, connector(self.reactor, way))
            self.addCleanup(pool.abort)
            kind = [("content-type", CHUNKED.request)]
            return (await fetch(pool, "POST", "/r/shop", name, kind, SEALED, most=1 << 16)).status

        self.assertEqual(await ask("relay.test"), 200)
        self.assertEqual(self.gateway.bodies, [SEALED])
        shown[0] = "fresh.test"
        await relay.apply(evolve(Config(), tunnel=config))
        self.assertEqual(await ask("fresh.test"), 200)
        await self.assertFailure(Deferred.fromCoroutine(ask("relay.test")), Unavailable)
        wrong = self.config(of={"endpoint": f"tls:127.0.0.1:{number}:name=gate.test:ca={folder}/relay.test.pem"})
        await relay.apply(evolve(Config(), tunnel=evolve(wrong, listen=config.listen)))
        self.assertEqual(await ask("fresh.test"), 503)
        self.assertEqual(self.gateway.bodies, [SEALED] * 2)


class ToldTests(RelayCase):
    async def call(self, name: str, **params: Any) -> Any:
        assert self.relay is not None
        return await self.relay._ground.table.call(caller("read"), name, params)

    async def test_rows_and_metrics(self) -> None:
        relay = self.start(others=(TunnelGatewayConfig(id="away", endpoint="tcp:127.0.0.1:9"),))
        client = await self.client()
        await client.ask(post())
        await client.ask(post(path="/r/mall"))
        await self.settle(lambda: bool(relay.keeping.kept["shop"].document))
        rows = (await self.call("ohttp.gateways"))["gateways"]
        self.assertEqual([row["gateway"] for row in rows], ["away", "shop"])
        self.assertEqual(rows[1]["epoch"], self.gateway.key.epoch)
        self.assertEqual((await self.call("ohttp.gateways", limit=1))["next"], "away")
        self.assertEqual((await self.call("ohttp.gateways", cursor="away"))["gateways"], rows[1:])
        told = await self.call("ohttp.stats")
        self.assertEqual(told["exchanges"], {"answered": 1, "404": 1})
        text = relay._ground.metrics.render().decode()
        self.assertIn('layer8_tunnel_exchanges_total{outcome="answered"} 1.0', text)
        self.assertIn("layer8_tunnel_gateways_keyless 1.0", text)
        for word in ("127.0.0.1", "shop", "/r/"):
            self.assertNotIn(word, text)
