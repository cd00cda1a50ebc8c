"""The tunnel's demo: what its columns show is what was recorded, what its bad relay does is done, and it is noticed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.core.errors import Unavailable
from layer8.net.http_client import Pool, fetch
from layer8.net.ways import connector
from layer8.testing.browser import Chromium, Firefox
from layer8.testing.browser_wire import BrowserError
from layer8.tunnel import demo_backend, demo_stage
from layer8.tunnel.demo import finish
from layer8.tunnel.demo_hands import NOTE, Played, by_browser, by_client
from layer8.tunnel.demo_record import Opened, Recorder
from layer8.tunnel.demo_show import columns, judge
from layer8.tunnel.demo_stage import AUTHORITY, ID, Stage
from layer8.tunnel.gateway_session import Remember
from layer8.tunnel.replay import Verdict
from layer8.tunnel.wire import HEAD

PATIENCE = 60
SEALED = bytes(HEAD) + bytes(range(256))
WIDTHS = (320, 400, 700, 1000, 1440, 2200)
TALL = "({ over: document.documentElement.scrollWidth - innerWidth, rows: document.querySelectorAll('.row').length })"


class RecorderTests(SynchronousTestCase):
    def test_a_word_is_found_however_it_is_spelled(self) -> None:
        word = "Meet me at noon?"
        plain = word.encode()
        spelled = [
            *(plain, plain.upper().lower(), word.encode("utf-16-le"), quote(word).encode(), plain.hex().encode()),
            *(b64encode(bytes(shift) + plain + bytes(7)) for shift in range(6)),
            *(urlsafe_b64encode(bytes(shift) + plain + bytes(7)) for shift in range(6)),
        ]
        for one in spelled:
            recorder = Recorder()
            recorder.overhear(os.urandom(50) + one + os.urandom(50))
            self.assertEqual(recorder.search([word, "something else"]), [word], one)
        recorder = Recorder()
        recorder.overhear(os.urandom(100_000))
        self.assertEqual(recorder.search([word]), [])

    def test_halves_are_joined_by_what_only_an_onlooker_of_both_has(self) -> None:
        recorder = Recorder()
        told: list[int] = []
        recorder.changed.append(lambda row: told.append(row.n))
        first, second = (recorder.begin("request", "demo", "127.0.0.1:1", []) for _ in range(2))
        recorder.up(first, SEALED)
        recorder.up(second, bytes(7) + os.urandom(32) + SEALED[HEAD:])
        recorder.judged(second.mark, Verdict.NEW)
        recorder.opened(recorder.find(second.mark), Opened("GET /notes/1", [], ""))
        self.assertEqual((first.verdict, first.opened, second.verdict), ("", None, "opened"))
        self.assertEqual(recorder.calls, 1)
        again = recorder.begin("request", "demo", "127.0.0.1:2", [])
        recorder.up(again, SEALED)
        self.assertEqual((again.kind, recorder.find(first.mark)), ("replayed", again))
        self.assertEqual(told, [1, 2, 2, 2, 3])
        self.assertIsNone(recorder.find(b""))

    def test_what_is_kept_has_an_end(self) -> None:
        recorder = Recorder()
        for _ in range(600):
            recorder.begin("keys", "demo", "", [])
        self.assertEqual((len(recorder.rows), recorder.rows[0].n), (500, 101))
        row = recorder.begin("request", "demo", "", [])
        recorder.up(row, bytes(3 << 20))
        self.assertEqual((row.up.size, len(row.up.kept)), (3 << 20, 1 << 20))
        self.assertEqual(len(json.dumps(row.document())) < 10_000, True)

    def test_chance_looks_like_chance(self) -> None:
        for data, least, most in ((os.urandom(100_000), 7.99, 8.0), (b"words " * 10_000, 2.0, 3.0)):
            recorder = Recorder()
            row = recorder.begin("request", "demo", "", [])
            recorder.up(row, bytes(HEAD) + data)
            self.assertTrue(least <= recorder.entropy() <= most, recorder.entropy())
        self.assertEqual(Recorder().entropy(), 0.0)


class StageCase(TestCase):
    timeout = 60

    async def open(self, port: int = 0) -> Stage:
        from twisted.internet import reactor

        folder = Path(tempfile.mkdtemp(prefix="l8-"))
        self.addCleanup(shutil.rmtree, folder)
        self.patch(demo_backend, "GAP", 0.02)
        self.stage = Stage(reactor, folder, port)
        self.addCleanup(self.stage.close)
        await self.stage.open()
        return self.stage

    async def get(self, path: str, host: str = f"{ID}.localhost", method: str = "GET", body: bytes = b"") -> Any:
        from twisted.internet import reactor

        pool = Pool(reactor, connector(reactor, f"tcp:127.0.0.1:{self.stage.port}"))
        self.addCleanup(pool.abort)
        return await fetch(pool, method, path, host, most=1 << 20)


class PlayTests(StageCase):
    """Played by the Python client, with everything else as it is."""

    async def played(self) -> Played:
        from twisted.internet import reactor

        return await by_client(reactor, await self.open())

    def ended(self, played: Played) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return finish(self.stage, played)

    async def test_every_column_has_what_its_party_had(self) -> None:
        played = await self.played()
        rows = self.stage.recorder.rows
        asked = [row for row in rows if row.opened is not None]
        lines = ["POST /notes", "GET /notes/1", "POST /pictures", "GET /pictures/1", "GET /stream"]
        self.assertEqual([row.opened.line for row in asked if row.opened], lines)
        self.assertEqual([ask.line for ask in played.asks][:5], lines)
        for row in asked:
            assert row.opened is not None
            self.assertEqual((row.opened.client, row.verdict, row.status), ("", "opened", 200))
            self.assertRegex(row.peer, r"^127\.0\.0\.1:\d+$")
            self.assertNotIn("127.0.0.1", str(row.opened.fields))
            self.assertEqual(
                [name for name, _ in row.passed], ["content-length", "content-type", "host", "incremental"]
            )
            # The smallest of the sizes that a plaintext is filled up to, and what sealing costs.
            self.assertIn(row.up.size, (512 + 56, 16_384 + 56))
        assert asked[0].opened is not None
        self.assertEqual((asked[0].opened.text, asked[0].opened.status), (NOTE, 201))
        self.assertNotIn(NOTE.encode(), bytes(self.stage.recorder.heard))

    async def test_every_cheat_is_noticed(self) -> None:
        played = await self.played()
        self.assertEqual(
            [(deed.name, deed.good) for deed in played.deeds],
            [("replay", True), ("keys", True), ("change", True), ("read", True)],
        )
        kinds = [row.kind for row in self.stage.recorder.rows]
        self.assertEqual(kinds, ["keys", *["request"] * 5, "replayed", "swapped", "bent"])
        replayed, swapped, bent = self.stage.recorder.rows[-3:]
        original = next(row for row in reversed(self.stage.recorder.rows[:-3]) if row.kind == "request")
        self.assertEqual(bytes(replayed.up.kept), bytes(original.up.kept))
        # The gateway has seen it, answers under seal, and calls nobody; its answer looks like any other.
        self.assertEqual((replayed.verdict, replayed.status, replayed.opened), ("repeat", 200, None))
        self.assertEqual(replayed.down.size, 545)
        self.assertEqual((swapped.opened, self.stage.recorder.given), (None, 1))
        self.assertNotIn(self.stage.pin, swapped.down.kept.decode())
        self.assertEqual((bent.status, bent.opened, bent.verdict, self.stage.recorder.bent), (422, None, "refused", 1))

    async def test_columns_and_verdict(self) -> None:
        played = await self.played()
        drawn = list(columns(self.stage.recorder, played.asks))
        self.assertEqual(len(drawn), 9)
        you, relay, backend = drawn[1]
        self.assertIn(f"You write a note\n“{NOTE}”\n201", you)
        self.assertRegex(relay, r"(?s)127\.0\.0\.1:\d+\nsomething sealed, 568 up, 545 down\n(\w\w ){11}\w\w\n")
        self.assertEqual(backend, f"POST /notes\n“{NOTE}”\nfrom nobody")
        verdict = judge(self.stage.recorder, played)
        self.assertEqual(verdict.found, ())
        self.assertLessEqual({NOTE, "/notes", "/notes/1", "/stream"}, set(verdict.words))
        self.assertEqual(verdict.size, len(self.stage.recorder.heard))
        self.assertEqual(self.ended(played), 0)

    async def test_a_word_that_got_out(self) -> None:
        played = await self.played()
        self.stage.recorder.overhear(b64encode(b"....." + NOTE.encode()))
        self.assertEqual(judge(self.stage.recorder, played).found, (NOTE,))
        self.assertEqual(self.ended(played), 1)

    async def test_a_gateway_that_forgets(self) -> None:
        """If nobody notices, it is said, and the demo fails."""

        class Forgetful(demo_stage._Gateway):
            def remember(self, asked: Remember) -> Verdict:
                super().remember(asked)
                self.recorder.judged(asked.mark, Verdict.NEW)
                return Verdict.NEW

        self.patch(demo_stage, "_Gateway", Forgetful)
        played = await self.played()
        self.assertEqual([deed.name for deed in played.deeds if not deed.good], ["replay"])
        self.assertEqual(self.ended(played), 1)


class FrontTests(StageCase):
    async def test_only_its_own_page_may_ask(self) -> None:
        stage = await self.open()
        self.assertEqual((await self.get("/demo/counts")).status, 404)
        self.assertEqual((await self.get("/demo/counts", method="POST")).status, 200)
        self.assertEqual((await self.get("/demo/counts", "evil.example", "POST")).status, 403)
        self.assertEqual((await self.get("/demo/nothing", method="POST")).status, 404)
        told = await stage.front.do("replay", {})
        self.assertEqual((told["status"], told["noticed"]), (0, ""))

    async def test_the_page_has_nothing_inline(self) -> None:
        await self.open()
        answer = await self.get("/")
        page = answer.body.decode()
        policy = answer.only("content-security-policy")
        self.assertIn("script-src 'self'; style-src 'self'", policy)
        self.assertIn("require-trusted-types-for 'script'", policy)
        self.assertEqual(re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=|javascript:|=\"https?://", page), [])
        self.assertRegex(page, r'src="/l8/[\w.]+/l8\.js" integrity="sha384-')
        for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
            self.assertEqual((await self.get(path)).status, 200, path)
        self.assertNotIn("@", page)

    async def test_a_busy_port(self) -> None:
        import socket

        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            busy = sock.getsockname()[1]
            self.patch(demo_stage, "PORT", busy)
            stage = await self.open()
            self.assertGreater(stage.port, busy)
            self.patch(demo_stage, "PORTS", 1)
            with self.assertRaises(Unavailable):
                await self.open()


class PageTests(StageCase):
    """The page in a browser, all of its buttons."""

    kind: ClassVar[Any] = Chromium
    skip = Chromium.absent()

    async def test_every_button(self) -> None:
        from twisted.internet import reactor

        stage = await self.open()
        played = await by_browser(reactor, stage, self.kind)
        self.assertEqual([(deed.name, deed.good) for deed in played.deeds], [(one, True) for one in DEEDS])
        rows = stage.recorder.rows
        lines = [row.opened.line for row in rows if row.opened is not None]
        self.assertEqual(
            lines, ["POST /notes", "GET /notes/1", "POST /pictures", "GET /pictures/1", "GET /stream", "GET /chat"]
        )
        self.assertEqual([ask.line for ask in played.asks][:6], lines)
        chat = next(row.opened for row in rows if row.opened is not None and row.opened.frames)
        self.assertEqual(chat.frames[0], (True, "Is anybody there?"))
        self.assertEqual(judge(stage.recorder, played).found, ())
        self.assertGreaterEqual(len(judge(stage.recorder, played).words), 8)
        agents = {value for row in rows for name, value in row.fields if name == "user-agent"}
        self.assertTrue(any("Mozilla" in agent for agent in agents), agents)
        for row in rows:
            if row.opened is not None and row.kind != "socket":
                self.assertEqual([value for name, value in row.opened.fields if name == "user-agent"], ["L8"])
                self.assertEqual(row.opened.client, "")

    async def test_it_is_as_it_says(self) -> None:
        from twisted.internet import reactor

        stage = await self.open()
        async with await self.kind.start(reactor, hosts={f"{ID}.localhost": "127.0.0.1"}) as browser:
            page = await browser.page(stage.url)
            await page.evaluate(
                "(async () => { while (!globalThis.demo) await new Promise((r) => setTimeout(r, 5)); })()"
            )
            self.assertTrue(await page.evaluate("!document.querySelector('#empty').hidden"))
            await page.evaluate("demo.write('A word of mine').then(() => demo.picture())")
            texts = "[...document.querySelectorAll('.row:has(.brief)')].map((row) => [...row.querySelectorAll('.card')]"
            texts += ".map((card) => card.textContent))"
            drawn = await page.evaluate(texts)
            note = next(row for row in drawn if "POST /notes" in row[2])
            self.assertIn("A word of mine", note[0])
            self.assertIn("A word of mine", note[2])
            self.assertNotIn("A word of mine", note[1])
            self.assertIn("nobody", note[2])
            self.assertIn("127.0.0.1:", note[1])
            self.assertNotIn("127.0.0.1", note[2])
            image = "[...document.querySelectorAll('.card img')].map((i) => [new URL(i.src).pathname, i.naturalWidth])"
            self.assertEqual(await page.evaluate(image), [["/pictures/1", 288]])
            self.assertEqual(await page.evaluate("document.querySelectorAll('.row:not(.folded)').length"), 1)
            told = [one.text for one in page.console if one.level in ("error", "warning", "warn")]
            self.assertEqual(told, [])

    async def test_a_second_demo_in_the_same_browser(self) -> None:
        """What the first has left in the browser, its service worker above all, is in nobody's way."""
        from twisted.internet import reactor

        shown = "(async () => { while (!globalThis.demo || navigator.serviceWorker.controller) "
        shown += "await new Promise((r) => setTimeout(r, 5)); await demo.picture(); "
        shown += "return [...document.querySelectorAll('.card img')].map((i) => new URL(i.src).pathname); })()"
        first = await self.open()
        async with await self.kind.start(reactor, hosts={f"{ID}.localhost": "127.0.0.1"}) as browser:
            page = await browser.page(first.url)
            self.assertEqual(await page.evaluate(shown), ["/pictures/1"])
            await first.close()
            second = await self.open(port=first.port)
            self.assertNotEqual(first.pin, second.pin)
            await page.goto(second.url)
            while True:
                try:
                    drawn = await page.evaluate(shown)
                    break
                except BrowserError as error:  # the page loads itself again
                    self.assertNotIn("L8Error", str(error))
            self.assertEqual(drawn, ["/pictures/1"])
            self.assertEqual(second.recorder.calls, 2)


class FirefoxPageTests(PageTests):
    kind = Firefox
    skip = Firefox.absent()


class FitTests(StageCase):
    skip = Chromium.absent()

    async def test_it_fits(self) -> None:
        from twisted.internet import reactor

        stage = await self.open()
        async with await Chromium.start(reactor, hosts={f"{ID}.localhost": "127.0.0.1"}) as browser:
            page = await browser.page(stage.url)
            await page.evaluate(
                "(async () => { while (!globalThis.demo) await new Promise((r) => setTimeout(r, 5)); })()"
            )
            await page.evaluate("demo.write().then(() => demo.picture()).then(() => demo.replay())")
            for width in WIDTHS:
                await page.call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
                )
                told = await page.evaluate(TALL)
                self.assertLessEqual(told["over"], 0, width)
                self.assertGreaterEqual(told["rows"], 4)


DEEDS = ("replay", "keys", "change", "read")


class CommandTests(SynchronousTestCase):
    """As anybody runs it."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="l8-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.environ = {**os.environ, "TMPDIR": str(self.folder)}
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            self.environ.pop(name, None)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "layer8.tunnel.demo", *words]

    def test_once(self) -> None:
        ran = subprocess.run(
            self.command("--once", "--no-browser"), env=self.environ, capture_output=True, text=True, timeout=PATIENCE
        )
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        for said in (
            "You",
            "The relay saw",
            "The backend saw",
            NOTE,
            "from nobody",
            "none found",
            "The gateway noticed.",
        ):
            self.assertIn(said, ran.stdout)
        self.assertNotIn(AUTHORITY, ran.stdout)
        self.assertEqual(os.listdir(self.folder), [])

    def test_it_stays_until_it_is_told_to_go(self) -> None:
        import urllib.request

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            running = subprocess.Popen(
                self.command("--no-browser"),
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert running.stdout is not None
            try:
                line = running.stdout.readline()
                port = re.search(r"http://demo\.localhost:(\d+)/", line)
                assert port is not None, line
                request = urllib.request.Request(f"http://127.0.0.1:{port[1]}/", headers={"Host": "demo.localhost"})
                with urllib.request.urlopen(request, timeout=10) as answer:
                    self.assertIn(b"One knows who.", answer.read())
            finally:
                running.send_signal(number)
                _, said = running.communicate(timeout=PATIENCE)
            self.assertEqual((running.returncode, said), (0, ""), number)
            self.assertEqual(os.listdir(self.folder), [])
