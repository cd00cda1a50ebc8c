"""The page of `layer8 expose --inspect`: who gets in, what leaves, what a repetition does; all of it in Chromium."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from layer8.cli.inspector import GATHER, PORT, Inspector
from layer8.control.service import wall_clock
from layer8.core.errors import ConfigError, Unavailable
from layer8.proxy.record import BODY, Record
from layer8.proxy.replay import Inspection
from layer8.testing.browser import Chromium, ChromiumPage, Firefox, Page
from tests.interop.daemons import free_port
from tests.proxy.pair import PairCase, published

HOST = "app.test"
SECRET = "tell-nobody"
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


class Web(ThreadingHTTPServer):
    """A target that remembers what it was asked, head and body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        web = self

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                web.asked.append((self.command, self.path, dict(self.headers), body))
                self.send_response(404 if "missing" in self.path else 200)
                self.send_header("Content-Length", "5")
                self.send_header("X-Count", str(len(web.asked)))
                self.send_header("X-Evil", EVIL)
                self.send_header("Set-Cookie", f"id={SECRET}")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(b"hello")

            do_GET = do_POST = do_PUT = do_HEAD = answer

            def log_message(self, *words: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class InspectorCase(PairCase):
    """A server, an agent whose visitors are looked at, and the page."""

    mode: Literal["", "raw", "guard", "proxy"] = "raw"

    async def open(self, port: int = 0) -> None:
        self.web = Web()
        self.addCleanup(self.web.close)
        self.server = self.serve()
        secret, path = self.secret()
        await self.server.ledger.set_static([*self.static(path)])
        self.target = port or self.web.server_port
        self.agent = await self.publish(self.server, published(HOST, secret, self.target))
        carrier = self.agent.carrier
        carrier.looks = self.inspection = Inspection(self.reactor, carrier.pump, carrier.local, Record(), wall_clock)
        self.record = self.inspection.record
        self.page = Inspector(self.reactor, self.record, f"{HOST} -> here", self.inspection.replay)
        self.page.listen("tcp:0:interface=127.0.0.1")
        self.addCleanup(lambda: self.agent.tasks.run("close", self.page.close()))
        self.port = int(self.page.url.split(":")[2].split("/")[0])

    def static(self, path: Path) -> Any:
        from layer8.config.proxy import ProxyHostConfig
        from layer8.proxy.service import _registration

        row = ProxyHostConfig(host=HOST, secret_file=str(path), mode=self.mode)
        yield _registration(row, self.environ, self.server.config)

    async def visit(self, path: str, method: str = "GET", body: bytes | None = None, **fields: str) -> int:
        """Visit the published host as anybody would; gives the status."""

        def run() -> int:
            visitor = http.client.HTTPConnection("127.0.0.1", self.server.door.port_of("http"), timeout=20)
            visitor.request(method, path, body, {"Host": HOST, "Authorization": f"Basic {SECRET}", **fields})
            answer = visitor.getresponse()
            answer.read()
            visitor.close()
            return answer.status

        status: int = await self.thread(run)
        await self.until(lambda: all(row["state"] != "sent" for row in self.record.rows(0)))
        return status

    async def ask(
        self, path: str, body: object = None, *, token: str | None = None, method: str = "", **fields: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Ask the page's listener for something, with its token unless another is given."""
        headers = {"Authorization": f"Bearer {self.page.token if token is None else token}"}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}

        def run() -> tuple[int, bytes, dict[str, str]]:
            asker = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            data = None if body is None else json.dumps(body)
            asker.request(method or ("GET" if body is None else "POST"), path, data, headers)
            answer = asker.getresponse()
            found = answer.status, answer.read(), dict(answer.getheaders())
            asker.close()
            return found

        found: tuple[int, bytes, dict[str, str]] = await self.thread(run)
        return found

    async def shows(self, page: Page, expression: str, wanted: object) -> None:
        """Wait until an expression has a value."""
        found: object = None
        for _ in range(400):
            found = await page.evaluate(expression)
            if found == wanted:
                return
            await self.pause(0.025)
        self.assertEqual(found, wanted, expression)

    async def pause(self, seconds: float) -> None:
        await deferLater(self.reactor, seconds)

    async def news(self, after: int = -1) -> Any:
        status, body, _ = await self.ask(f"/api/exchanges?after={after}")
        self.assertEqual(status, 200, body)
        return json.loads(body)


class ListenerTests(InspectorCase):
    async def test_only_who_has_the_token(self) -> None:
        await self.open()
        await self.visit("/")
        self.assertEqual(self.page.url, f"http://127.0.0.1:{self.port}/#{self.page.token}")
        for token in ("", "x", self.page.token[:-1], self.page.token + "x"):
            for path, body in (("/api/exchanges", None), ("/api/replay", {"id": 1}), ("/api/clear", {})):
                status, text, _ = await self.ask(path, body, token=token)
                self.assertEqual((status, b"app.test" in text), (401, False), (token, path))
        self.assertEqual((len(self.record.kept), len(self.web.asked)), (1, 1))

    async def test_no_page_of_another_origin(self) -> None:
        await self.open()
        await self.visit("/")
        for fields in (
            {"Origin": "http://evil.test"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{self.port + 1}"},
            {"Host": "evil.test"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
        ):
            for path in ("/", "/inspect.js", "/api/exchanges"):
                status, text, headers = await self.ask(path, **fields)
                self.assertEqual(status, 403, fields)
                self.assertNotIn(b"exchanges", text)
                self.assertNotIn("Access-Control-Allow-Origin", headers)
        status, _, _ = await self.ask("/api/exchanges", Origin=f"http://127.0.0.1:{self.port}")
        self.assertEqual(status, 200)
        status, _, headers = await self.ask("/", token="")
        self.assertEqual((status, headers["Cross-Origin-Resource-Policy"]), (200, "same-origin"))
        self.assertIn("default-src 'none'; script-src 'self'", headers["Content-Security-Policy"])

    async def test_what_is_hidden_never_leaves(self) -> None:
        await self.open()
        await self.visit("/a", Cookie=f"c={SECRET}", Proxy_Authorization=SECRET)
        more: dict[str, Any] = {"proxy-authorization": SECRET}
        await self.visit("/b", "POST", f"password={SECRET}".encode(), **more)
        _, body, _ = await self.ask("/api/exchanges")
        self.assertEqual(len(json.loads(body)["exchanges"]), 2)
        self.assertNotIn(SECRET.encode(), body)
        self.assertIn(["Set-Cookie", None], json.loads(body)["exchanges"][0]["answer"])
        self.assertIn(SECRET, str(self.web.asked), "the target got them all the same")

    async def test_news_come_when_there_are_any(self) -> None:
        await self.open()
        first = await self.news()
        self.assertEqual((first["exchanges"], first["route"]), ([], f"{HOST} -> here"))
        waiting = self.agent.tasks.run("news", self.news(first["serial"]))
        await self.visit("/late")
        news = await waiting
        self.assertEqual([row["path"] for row in news["exchanges"]], ["/late"])
        self.assertEqual((await self.news())["kept"], [1])

    async def test_a_flood_is_told_in_few_words(self) -> None:
        await self.open()
        asked = 0
        serial = (await self.news())["serial"]
        begun = self.reactor.seconds()
        flood = self.agent.tasks.run("flood", self.flood(60))
        while serial < 60:
            serial = (await self.news(serial))["serial"]
            asked += 1
        await flood
        self.assertLessEqual(asked, (self.reactor.seconds() - begun) / GATHER + 1)

    async def flood(self, count: int) -> None:
        for number in range(count):
            await self.visit(f"/{number}")

    async def test_a_repetition_is_one_more_request_with_the_real_values(self) -> None:
        await self.open()
        await self.visit("/form?a=b", "POST", b"c=d" * 1000, Cookie=f"c={SECRET}")
        status, body, _ = await self.ask("/api/replay", {"id": 1})
        self.assertEqual((status, json.loads(body)), (200, {"id": 2, "why": ""}))
        self.assertEqual(len(self.web.asked), 2)
        self.assertEqual(self.web.asked[0], self.web.asked[1])
        first, second = (await self.news())["exchanges"]
        self.assertEqual((second["replay_of"], second["status"], second["state"]), (1, 200, "done"))
        self.assertEqual(first["request"], second["request"])
        self.assertEqual(second["answer"][3], ["X-Count", "2"])
        status, body, _ = await self.ask("/api/replay", {"id": 2})
        self.assertEqual(self.record.rows(0)[2]["replay_of"], 1)

    async def test_what_cannot_be_sent_again(self) -> None:
        await self.open()
        await self.visit("/big", "PUT", b"x" * (BODY + 1))
        for number, why in ((1, "longer than 64 KiB"), (7, "not kept any more")):
            status, body, _ = await self.ask("/api/replay", {"id": number})
            self.assertEqual(status, 409)
            self.assertIn(why, body.decode())
        wrong: object
        for wrong in ([], {"id": "1"}, {"id": True}, {}):
            self.assertEqual((await self.ask("/api/replay", wrong))[0], 400, wrong)
        self.assertEqual(len(self.web.asked), 1)

    async def test_a_target_that_has_gone(self) -> None:
        await self.open()
        await self.visit("/")
        self.web.close()
        status, body, _ = await self.ask("/api/replay", {"id": 1})
        self.assertEqual((status, body), (409, b"connection refused"))

    async def test_a_target_that_cuts_its_answer_short(self) -> None:
        cut = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(cut.close)

        def serve() -> None:
            for answer in (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-L"):
                connection, _ = cut.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        await self.open(cut.getsockname()[1])
        await self.visit("/")
        status, body, _ = await self.ask("/api/replay", {"id": 1})
        self.assertEqual((status, json.loads(body)["why"]), (200, "cut off by the target"))
        self.assertEqual(self.record.rows(0)[1]["state"], "cut")

    async def test_clear(self) -> None:
        await self.open()
        await self.visit("/")
        self.assertEqual((await self.ask("/api/clear", {}))[0], 200)
        self.assertEqual((await self.news())["kept"], [])

    async def test_methods_and_paths(self) -> None:
        await self.open()
        self.assertEqual((await self.ask("/api/replay"))[0], 405)
        self.assertEqual((await self.ask("/api/exchanges", {}))[0], 405)
        self.assertEqual((await self.ask("/../pyproject.toml"))[0], 404)

    async def test_the_next_free_port(self) -> None:
        await self.open()
        busy = []
        for port in (PORT, PORT + 1):
            taken = socket.socket()
            self.addCleanup(taken.close)
            try:
                taken.bind(("127.0.0.1", port))
                taken.listen()
            except OSError:
                pass  # somebody else has it, which is as good
            busy.append(port)
        other = Inspector(self.reactor, Record(), "", self.inspection.replay)
        other.listen()
        self.addCleanup(lambda: self.agent.tasks.run("close", other.close()))
        self.assertGreater(int(other.url.split(":")[2].split("/")[0]), busy[-1])
        third = Inspector(self.reactor, Record(), "", self.inspection.replay)
        self.assertRaises(Unavailable, third.listen, f"tcp:{self.port}:interface=127.0.0.1")
        for beyond in ("tcp:4040", "tcp:4040:interface=0.0.0.0", "unix:/tmp/x"):
            self.assertRaises(ConfigError, third.listen, beyond)

    async def test_bytes_go_on_as_they_are(self) -> None:
        """A download that is spliced for the most part, then an upgrade, and what is no HTTP any more behind it."""
        await self.open(port := free_port())
        body = random.Random(7).randbytes(8 << 20)
        switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"
        heard: list[bytes] = []
        with socket.create_server(("127.0.0.1", port)) as target:

            def serve() -> None:
                connection, _ = target.accept()
                with connection:
                    heard.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    heard.append(connection.recv(65536))
                    connection.sendall(switched)
                    while data := connection.recv(65536):
                        connection.sendall(data)

            def talk() -> bytes:
                public = "127.0.0.1", self.server.door.port_of("http")
                with socket.create_connection(public, 20) as visitor:
                    visitor.sendall(f"GET /big HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                    got = b""
                    while not got.endswith(body[-64:]):
                        got += visitor.recv(1 << 20)
                    self.assertEqual(got.partition(b"\r\n\r\n")[2], body)
                    visitor.sendall(
                        f"GET /up HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n".encode()
                    )
                    self.assertEqual(visitor.recv(65536), switched)
                    visitor.sendall(b"\x00\xffGET / HTTP/1.1\r\n\r\n")
                    visitor.shutdown(socket.SHUT_WR)
                    return b"".join(iter(lambda: visitor.recv(65536), b""))

            threading.Thread(target=serve, daemon=True).start()
            self.assertEqual(await self.thread(talk), b"\x00\xffGET / HTTP/1.1\r\n\r\n")
        first, second = self.record.rows(0)
        self.assertEqual((first["answer_size"], first["state"]), (len(body), "done"))
        self.assertEqual((second["status"], second["state"]), (101, "upgraded"))


class ChromiumTests(InspectorCase):
    """The page in a real browser."""

    skip = Chromium.absent()
    timeout = 120

    async def look(self, width: int = 1200, height: int = 760) -> ChromiumPage:
        await self.open()
        browser = await Chromium.start(
            self.reactor, hosts={"evil.test": "127.0.0.1"}, arguments=[f"--window-size={width},{height}"]
        )
        self.addCleanup(browser.close)
        self.browser = browser
        page = await browser.page()
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await page.goto(self.page.url)
        await self.shows(page, "document.querySelector('#link').dataset.state", "live")
        return page

    async def key(self, page: ChromiumPage, key: str, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            await page.call("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")

    PATHS = "[...document.querySelectorAll('#list .path')].map(cell => cell.textContent)"

    async def test_requests_appear_and_nothing_hidden_does(self) -> None:
        page = await self.look()
        self.assertEqual(await page.evaluate("location.hash + location.href"), f"http://127.0.0.1:{self.port}/")
        self.assertEqual(await page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length"), 0)
        await self.visit("/one", Cookie=f"c={SECRET}")
        await self.visit("/missing", "POST", b"x=y")
        await self.shows(page, self.PATHS, ["/missing", "/one"])
        await page.evaluate("document.querySelectorAll('#list li')[1].click()")
        await self.shows(page, "document.querySelector('#path').textContent", "/one")
        text = await page.evaluate("document.documentElement.outerHTML")
        self.assertNotIn(SECRET, text)
        self.assertIn("not shown", text)
        self.assertEqual([line for line in page.console if line.level in ("error", "warning")], [])

    async def test_a_repetition_stands_beside_the_first_answer(self) -> None:
        page = await self.look()
        await self.visit("/again", Cookie=f"c={SECRET}")
        await self.shows(page, self.PATHS, ["/again"])
        await page.evaluate("document.querySelector('#list').focus()")
        await self.key(page, "ArrowDown")
        await self.shows(page, "document.querySelector('#detail').hidden", False)
        await self.key(page, "r", "r")
        await self.shows(page, "document.querySelector('#second').hidden", False)
        await self.shows(page, self.PATHS, ["/again", "/again"])
        await self.shows(page, "document.querySelector('#second .line').textContent", "HTTP/1.1 200 OK")
        self.assertEqual([asked[1] for asked in self.web.asked], ["/again", "/again"])
        self.assertEqual(self.web.asked[0][2], self.web.asked[1][2])
        differing = "[...document.querySelectorAll('#second .differs dt')].map(cell => cell.textContent)"
        self.assertIn("X-Count", await page.evaluate(differing))
        self.assertNotIn(SECRET, await page.evaluate("document.documentElement.outerHTML"))

    async def test_hostile_values_are_text(self) -> None:
        page = await self.look()
        fields: dict[str, Any] = {"X-From": EVIL, "X-B": "<svg/onload=alert(1)>"}
        await self.visit("/%3Cscript%3E?<b>", **fields)
        await self.shows(page, "document.querySelectorAll('#list li').length", 1)
        await page.evaluate("document.querySelector('#list li').click()")
        await self.shows(page, "document.querySelector('#detail').hidden", False)
        await self.pause(0.2)
        self.assertEqual(await page.evaluate("document.title"), "layer8 inspect")
        self.assertEqual(await page.evaluate("document.querySelectorAll('#detail img, #detail script, b b').length"), 0)
        self.assertIn(EVIL, await page.evaluate("document.querySelector('#asked').textContent"))
        self.assertEqual([line for line in page.console if line.level in ("error", "warning")], [])

    async def test_keys_filter_and_a_lost_program(self) -> None:
        page = await self.look()
        for path in ("/a", "/missing", "/b"):
            await self.visit(path)
        await self.shows(page, "document.querySelectorAll('#list li').length", 3)
        await self.key(page, "/", "/")
        self.assertEqual(await page.evaluate("document.activeElement.id"), "filter")
        for letter in "404":
            await self.key(page, letter, letter)
        await self.shows(page, self.PATHS, ["/missing"])
        await self.key(page, "Escape")
        await self.shows(page, "document.querySelectorAll('#list li').length", 3)
        self.assertEqual(await page.evaluate("document.activeElement.id"), "list")
        for _ in range(2):
            await self.key(page, "ArrowDown")
        await self.shows(page, "document.querySelector('#path').textContent", "/missing")
        await self.key(page, "Escape")
        await self.shows(page, "document.querySelector('#detail').hidden", True)
        await page.evaluate("document.querySelector('#clear').click()")
        await self.shows(page, "document.querySelectorAll('#list li').length", 0)
        await self.page.close()
        await self.shows(page, "document.querySelector('#link').dataset.state", "lost")

    async def test_a_page_of_another_origin_gets_nothing(self) -> None:
        page = await self.look()
        await self.visit("/here")
        root = Resource()
        root.putChild(b"", Data(b"<!doctype html><title>evil</title>", "text/html"))
        site: Any = Site(root)
        port = self.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        evil: Any = port.getHost()
        other = await self.browser.page(f"http://evil.test:{evil.port}/")
        url = f"http://127.0.0.1:{self.port}"
        for path, mode in (("/", "cors"), ("/api/exchanges", "cors"), ("/api/exchanges", "no-cors"), ("/", "no-cors")):
            script = f"""fetch("{url}{path}", {{mode: "{mode}", headers: {{}}}})
                .then(answer => answer.text().then(text => answer.status + text), () => "nothing")"""
            self.assertIn(await other.evaluate(script), ("nothing", "0"), (path, mode))
        with_token = f"""fetch("{url}/api/exchanges", {{headers: {{Authorization: "Bearer {self.page.token}"}}}})
            .then(() => "something", () => "nothing")"""
        self.assertEqual(await other.evaluate(with_token), "nothing")
        framed = f"""new Promise(done => {{ const frame = document.createElement("iframe");
            const text = () => frame.contentDocument.body.textContent;
            frame.onload = () => {{ try {{ done(text()) }} catch {{ done("nothing") }} }};
            frame.src = "{url}/"; document.body.append(frame); }})"""
        self.assertEqual(await other.evaluate(framed), "nothing")
        script = f"""new Promise(done => {{ const part = document.createElement("script");
            part.onload = () => done("loaded"); part.onerror = () => done("nothing");
            part.src = "{url}/inspect.js"; document.body.append(part); }})"""
        self.assertEqual(await other.evaluate(script), "nothing")
        await self.shows(page, self.PATHS, ["/here"])

    async def test_a_telephone(self) -> None:
        page = await self.look(360, 640)
        await self.visit("/a/rather/long/path/that/does/not/fit?into=one&line=of&a=telephone")
        await self.shows(page, "document.querySelectorAll('#list li').length", 1)
        narrow = "document.documentElement.scrollWidth"
        self.assertLessEqual(await page.evaluate(narrow), 360)
        await page.evaluate("document.querySelector('#list li').click()")
        await self.shows(page, "getComputedStyle(document.querySelector('#back')).display", "block")
        self.assertLessEqual(await page.evaluate(narrow), 360)
        await page.evaluate("document.querySelector('#back').click()")
        await self.shows(page, "document.querySelector('#detail').hidden", True)


class FirefoxTests(InspectorCase):
    """The same page in the other browser, once through."""

    skip = Firefox.absent()
    timeout = 120

    async def test_a_request_and_its_repetition(self) -> None:
        await self.open()
        browser = await Firefox.start(self.reactor)
        self.addCleanup(browser.close)
        page = await browser.page(self.page.url)
        await self.shows(page, "document.querySelector('#link').dataset.state", "live")
        await self.visit("/here", Cookie=f"c={SECRET}")
        await self.shows(page, "document.querySelectorAll('#list li').length", 1)
        await page.evaluate("document.querySelector('#list li').click()")
        await page.evaluate("document.querySelector('#replay').click()")
        await self.shows(page, "document.querySelector('#second').hidden", False)
        await self.shows(page, "document.querySelector('#second .line').textContent", "HTTP/1.1 200 OK")
        self.assertEqual([asked[1] for asked in self.web.asked], ["/here", "/here"])
        self.assertNotIn(SECRET, await page.evaluate("document.documentElement.outerHTML"))
