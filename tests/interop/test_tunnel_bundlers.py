"""A React application (docs/examples/react) as each bundler builds it: signed, mirrored by a relay, and used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel import markup
from tests.interop.daemons import ROOT, no_npm, npm
from tests.tunnel.browsers import BrowserCase, script
from tests.tunnel.stage import End, Stage

SCRIPTS = ROOT / "layer8" / "web" / "tunnel"
EXAMPLE = ROOT / "docs" / "examples" / "react"
PEERS = ("esbuild", "react", "vite", "webpack")
PATIENCE = 90  # seconds for one program
ONCE = "none of the pinned keys has signed the key set"
"""Words of l8.js that no minifier takes apart."""
WATCH = """
globalThis.broken = [];
addEventListener("securitypolicyviolation", (e) => broken.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
"""
UNTIL = """
  const until = async (what) => {
    for (let tries = 0; tries < 1500; tries++) {
      const found = what();
      if (found) return found;
      await new Promise((done) => setTimeout(done, 20));
    }
    throw new Error(`${what}: not within 30 s: ${document.body.innerHTML}`);
  };
  const one = (name) => document.querySelector(name);
  const list = () => [...document.querySelectorAll("li")].map((item) => item.textContent);
"""
USE = """
  await until(() => list().length === 1);
  const told = { first: list(), marker: getComputedStyle(one("ul")).listStyleType };
  one("input").value = text;
  one("form button").click();
  await until(() => list().length === 2);
  told.second = list();
  told.said = await until(() => one("output").textContent);
  one("#root > button").click();
  await until(() => one("#live")?.textContent === "1 2 3 hello");
  return { ...told, live: one("#live").textContent, broken };
"""
TEXT = "Water the plants, all forty-seven of them"
WORKER = """
  await L8.serviceWorker();
  const { active } = await navigator.serviceWorker.ready;
  return [new URL(active.scriptURL).pathname, (await (await fetch("/notes")).json()).length, broken];
"""
AGAIN = """
  await until(() => list().length === 2);
  const worker = navigator.serviceWorker.controller !== null;
  setTimeout(() => { try { eval("globalThis.evil = true"); } catch {} }); // not in a task of the test's own, which may
  return [worker, broken.splice(0), await until(() => broken[0]), globalThis.evil ?? false, await L8.evidence()];
"""


def no_bundlers() -> str | None:
    """Say what is missing of Node and of what comes from npm; None if all is here."""
    if (reason := no_npm()) is not None:
        return reason
    modules = npm()
    assert modules is not None
    absent = [name for name in PEERS if not (modules / "node_modules" / name).is_dir()]
    return f"needs {', '.join(absent)} of the npm peers, which .ci/run installs from .ci/npm" if absent else None


class ExampleTests(SynchronousTestCase):
    """What the example says of its peers is what is installed."""

    def test_the_same_versions(self) -> None:
        theirs = json.loads((EXAMPLE / "package.json").read_text())
        ours = json.loads((ROOT / ".ci" / "npm" / "package.json").read_text())["dependencies"]
        asked = theirs["dependencies"] | theirs["devDependencies"]
        self.assertEqual({name: ours.get(name) for name in asked}, asked)
        self.assertIn("react", theirs["dependencies"])


class ViteTests(BrowserCase):
    """Vite, which is rollup underneath."""

    skip = no_bundlers() or Chromium.absent()
    timeout = 300  # bundlers take a while on a busy machine
    build: ClassVar[str] = "vite"  # of the scripts of package.json
    files: ClassVar[int] = 2  # that it makes at least

    async def run_it(self, *words: str, where: Path, **environ: str) -> str:
        """Run a program to its end, and give what it says."""
        done = await deferToThread(
            subprocess.run,
            words,
            cwd=where,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, f"{words}: {(done.stdout + done.stderr)[-3000:]}")
        said: str = done.stdout
        return said

    async def bundle(self) -> Path:
        """Copy the example, with l8.js as relays serve it, and build it; give the output's folder."""
        here, modules = Path(self.mktemp()).absolute(), npm()
        assert modules is not None
        shutil.copytree(EXAMPLE, here)
        (here / "node_modules").symlink_to(modules / "node_modules")
        (here / "src" / "l8.js").write_text(script())
        line = json.loads((here / "package.json").read_text())["scripts"][self.build]
        path = f"{here / 'node_modules' / '.bin'}:{os.environ.get('PATH', '')}"
        await self.run_it("sh", "-c", line, where=here, PATH=path)
        return here / "dist"

    def looks_built(self, dist: Path) -> None:
        """Hold that it is small, has l8.js once, and has nothing that the policy forbids."""
        scripts = {file.name: file.read_text() for file in dist.rglob("*.js")}
        self.assertGreaterEqual(len(scripts), self.files)
        whole = "".join(scripts.values())
        self.assertEqual(script().count(ONCE), 1)
        self.assertEqual(whole.count(ONCE), 1)
        self.assertLess(len(whole), 400_000)
        for word in ("react-dom.development", str(dist.parent)):
            self.assertFalse(word in whole, f"it has {word}")
        self.assertEqual(re.findall(r"\beval\s*\(|\bnew Function\b|[=(,]Function\(", whole), [])

    async def sign(self, dist: Path) -> str:
        """Make the output an app, by the command; give its publisher's key."""
        end: End = self.stage.gateways["shop"]
        told = f"""[app]
name = "shop"
url = "{self.stage.mirror()}"
key_file = "publisher.pem"
block = true

[[gateway]]
id = "shop"
relays = ["{self.stage.relay}"]
authorities = ["{end.authority}"]
identities = ["{end.pin}"]
"""
        where = dist.parent
        (where / "app.toml").write_text(told)
        command = (sys.executable, "-m", "layer8.tunnel.manifest")
        key = (await self.run_it(*command, "key", "publisher.pem", where=where)).strip()
        built = {f"/{file.relative_to(dist)}" for file in dist.rglob("*.js")} - {"/l8.js", "/l8-sw.js"}
        await self.run_it(*command, "build", "dist", where=where)
        loads = markup.loads((dist / "index.html").read_text())
        self.assertEqual({load.url for load in loads if load.integrity}, built)
        return key

    async def watch(self) -> None:
        """Have an ear for broken policies in each page before its own scripts run."""
        await self.page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

    async def verified(self, key: str) -> dict[str, str]:
        """Give what `layer8 verify` says of each check; it ends with 0."""
        words = ("-c", "from layer8.cli.main import main; main()", "verify", self.stage.mirror(), "--json")
        home = Path(self.mktemp()).absolute()
        said = await self.run_it(sys.executable, *words, "--publisher", key, where=ROOT, LAYER8_HOME=str(home))
        return {check["check"]: check["verdict"] for check in json.loads(said)["checks"]}

    async def use(self) -> None:
        """Read the list, add to it, and open what lives; the page is under the policy, and asks nobody directly."""
        found = await self.run_js(f"{UNTIL}{USE}", text=TEXT)
        self.assertEqual(found.pop("broken"), [])
        self.assertEqual(
            found,
            {
                "first": ["Buy milk"],
                "marker": "square",
                "second": ["Buy milk", TEXT],
                "said": "kept as 8",
                "live": "1 2 3 hello",
            },
        )
        backend = self.stage.gateways["shop"].backend
        self.assertEqual([note["text"] for note in backend.notes], found["second"])
        self.assertEqual({call.method for call in backend.calls if call.uri == "/notes"}, {"GET", "POST"})
        self.assertEqual({tuple(call.all("l8-encapsulated")) for call in backend.calls}, {("?1",)})
        heard = b"".join(tap.up + tap.down for tap in (*self.stage.front, *self.stage.back.values()))
        self.assertIn(b"message/ohttp-chunked-req", heard)
        self.assertNotIn(TEXT.encode(), heard)

    async def test_the_app(self) -> None:
        """Built, signed, found good, used under its policy, and kept by the service worker."""
        from twisted.internet import reactor

        dist = await self.bundle()
        self.looks_built(dist)
        for name in ("l8.js", "l8-sw.js"):  # of which the worker is made; the page has its own
            shutil.copy(SCRIPTS / name, dist)
        self.stage = await Stage.start(reactor, apps={"shop": dist})
        self.addCleanup(self.stage.close)
        key = await self.sign(dist)
        said = await self.verified(key)
        self.assertEqual({name for name, verdict in said.items() if verdict != "good"}, {"wheel", "webcat"}, said)
        self.browser = await self.kind.start(reactor, hosts=self.stage.hosts)
        self.addCleanup(self.browser.close)
        self.page = await self.browser.page()
        await self.watch()
        await self.page.goto(self.stage.mirror())
        await self.use()
        self.assertEqual(await self.run_js(WORKER), ["/l8-sw.js", 2, []])
        said_of_us = [
            line.text for line in self.page.console if line.level == "error" and "'style' is not" not in line.text
        ]
        self.assertEqual(said_of_us, [])
        await self.page.goto(f"{self.stage.mirror()}?again")
        worker, broken, evil, ran, evidence = await self.run_js(f"{UNTIL}{AGAIN}")
        self.assertEqual((worker, broken, ran, evidence), (True, [], False, []))
        self.assertIn("eval", evil)  # so the ear is not deaf


class FirefoxViteTests(ViteTests):
    """The same in Firefox."""

    kind = Firefox
    skip = no_bundlers() or Firefox.absent()

    async def watch(self) -> None:
        """Have the same ear."""
        await self.browser.wire.call("script.addPreloadScript", functionDeclaration=f"() => {{ {WATCH} }}")


class EsbuildTests(ViteTests):
    """esbuild, in modules."""

    build = "esbuild"
    files = 3


class EsbuildScriptTests(ViteTests):
    """esbuild, in one script, as it does by itself: such a script does not know its own address."""

    build = "esbuild-script"
    files = 1


class WebpackTests(ViteTests):
    """webpack, with modules as its output."""

    build = "webpack"
