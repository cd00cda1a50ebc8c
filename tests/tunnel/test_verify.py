"""`layer8 verify` over real relays: what is as it was signed, and every swap that somebody may plant."""

from __future__ import annotations

import json
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

import layer8
from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.keys import NodeKey
from layer8.tunnel.checks import Seen, Verdict
from layer8.tunnel.integrity import AppGateway, File, Manifest
from layer8.tunnel.keys import GatewayKey, KeySet, pin_text
from layer8.tunnel.manifest import SITE_MOST
from layer8.tunnel.verify import Report, check_url
from tests.tunnel.mirrors import Mirrors

MANIFEST = ".well-known/l8/manifest.json"


class VerifyCase(TestCase):
    timeout = 60

    async def start(self, **more: Any) -> Mirrors:
        from twisted.internet import reactor

        self.mirrors = Mirrors(reactor, Path(self.mktemp()).absolute(), **more)
        self.addCleanup(self.mirrors.stop)
        await self.mirrors.start()
        return self.mirrors

    def verdicts(self, report: Report) -> dict[str, str]:
        return {one.name: one.verdict.value for one in report.checks}

    def bad(self, report: Report) -> dict[str, str]:
        return {one.name: one.text for one in report.checks if one.verdict is Verdict.BAD}


class GoodTests(VerifyCase):
    async def test_all_is_as_it_was_signed(self) -> None:
        mirrors = await self.start()
        report = await mirrors.look(publisher=mirrors.publisher.node_id)
        self.assertEqual(
            self.verdicts(report),
            {
                **dict.fromkeys(("manifest", "signature", "history", "files", "pages", "integrity", "policy"), "good"),
                **dict.fromkeys(("wheel", "keys notes", "waict"), "good"),
                "webcat": "open",
            },
            report.checks,
        )
        self.assertEqual(report.places, ["directly", f"by {mirrors.copy}"])
        first = await mirrors.look()
        self.assertEqual(self.verdicts(first)["signature"], "open")

    async def test_from_version_to_version(self) -> None:
        mirrors = await self.start()
        first = await mirrors.look()
        assert first.manifest is not None
        seen = Seen(mirrors.publisher.node_id, 1, sha256(first.data).digest())
        for number in range(3):
            (mirrors.folders[0] / "style.css").write_text(f"p {{ margin: {number}px }}\n")
            mirrors.build()
        report = await mirrors.look(seen=seen)
        self.assertEqual(self.bad(report), {})
        self.assertIn("from 1, which was seen, to 4", str(report.checks))
        other = evolve(seen, digest=bytes(32))
        self.assertIn("history", self.bad(await mirrors.look(seen=other)))
        later = evolve(seen, version=9)
        self.assertIn("history", self.bad(await mirrors.look(seen=later)))

    async def test_a_publisher_s_next_key(self) -> None:
        mirrors = await self.start()
        following = NodeKey.make()
        first = await mirrors.look()
        seen = Seen(mirrors.publisher.node_id, 1, sha256(first.data).digest())
        mirrors.build(evolve(mirrors.app, next=following.node_id))
        mirrors.build(key=following)
        report = await mirrors.look(seen=seen)
        self.assertEqual(self.bad(report), {})
        self.assertEqual(self.verdicts(report)["signature"], "open")

    async def test_a_gateway_s_next_identity(self) -> None:
        """Whoever looks sees that a changeover is under way, and whether the app is ready for it."""
        following = NodeKey.make().node_id
        mirrors = await self.start(following=pin_text(following))

        async def told() -> str:
            report = await mirrors.look()
            self.assertEqual(self.bad(report), {})
            [text] = [one.text for one in report.checks if one.name == "keys notes"]
            return text

        self.assertIn(f"{pin_text(following)} is going to sign next, not pinned yet", await told())
        one = mirrors.app.gateways["notes"]
        both = AppGateway(one.relays, one.authorities, (*one.identities, following))
        mirrors.build(evolve(mirrors.app, gateways={"notes": both}))
        self.assertIn("is going to sign next, pinned too", await told())

    async def test_webcat(self) -> None:
        mirrors = await self.start()
        unsigned = (mirrors.folder / "first.webcat" / "manifest.json").read_bytes()
        for folder in mirrors.folders:
            (folder / ".well-known/webcat").mkdir()
            (folder / ".well-known/webcat/manifest.json").write_bytes(unsigned)
        self.assertEqual(self.verdicts(await mirrors.look())["webcat"], "good")


class SwapTests(VerifyCase):
    """Each is planted at one relay; whoever looks there and at the other sees it."""

    async def found(self, *names: str, **more: Any) -> dict[str, str]:
        bad = self.bad(await self.mirrors.look(publisher=self.mirrors.publisher.node_id, **more))
        self.assertEqual(set(bad), set(names), bad)
        return bad

    async def test_a_file(self) -> None:
        for number in (0, 1):
            mirrors = await self.start()
            (mirrors.folders[number] / "js/word.js").write_text('export const word = "swapped";\n')
            bad = await self.found("files", "integrity")
            self.assertIn("/js/word.js is another file", bad["files"])
            self.assertIn(("directly", f"by {mirrors.copy}")[number], bad["files"])
            (mirrors.folders[number] / "style.css").unlink()
            self.assertIn("/style.css is missing", (await self.found("files", "integrity"))["files"])

    async def test_a_page_with_a_script_inside(self) -> None:
        mirrors = await self.start()
        page = mirrors.folders[1] / "index.html"
        page.write_text(page.read_text().replace("</head>", "<script>steal()</script></head>"))
        bad = await self.found("files", "pages")
        self.assertIn("/index.html has <script> inside", bad["pages"])

    async def test_a_page_of_other_letters(self) -> None:
        """Browsers would read it otherwise than we do."""
        mirrors = await self.start()
        (mirrors.folders[1] / "index.html").write_bytes("<script>1</script>".encode("utf-16"))
        self.assertIn("other than UTF-8", (await self.found("files", "pages"))["pages"])

    async def test_a_page_without_integrity(self) -> None:
        mirrors = await self.start()
        page = mirrors.folders[1] / "index.html"
        page.write_text(page.read_text().replace("integrity=", "data-x="))
        await self.found("files", "integrity")

    async def test_a_manifest_of_somebody_else(self) -> None:
        """Swapped everywhere, files and all: the key of the publisher is what tells."""
        mirrors = await self.start()
        (mirrors.folders[0] / "js/word.js").write_text('export const word = "swapped";\n')
        (mirrors.folders[0] / MANIFEST).unlink()
        mirrors.build(key=NodeKey.make())
        self.assertIn("not by the publisher", (await self.found("signature"))["signature"])

    async def test_a_manifest_for_one_place(self) -> None:
        """The publisher himself has signed another one for some."""
        mirrors = await self.start()
        made = Manifest.first((mirrors.folders[1] / MANIFEST).read_bytes())
        (mirrors.folders[1] / MANIFEST).write_bytes(evolve(made, version=2).sign(mirrors.publisher))
        self.assertIn("another one by", (await self.found("manifest"))["manifest"])
        (mirrors.folders[1] / MANIFEST).write_bytes(
            (mirrors.folders[1] / MANIFEST).read_bytes().replace(b'":"', b'": "')
        )
        await self.found("manifest")
        (mirrors.folders[1] / MANIFEST).unlink()
        self.assertIn("none by", (await self.found("manifest", "policy"))["manifest"])

    async def test_an_old_manifest(self) -> None:
        mirrors = await self.start()
        old = (mirrors.folders[0] / MANIFEST).read_bytes()
        before = (mirrors.folders[0] / "js/word.js").read_bytes()
        (mirrors.folders[0] / "js/word.js").write_text("export const word = 1;\n")
        mirrors.build()
        new = await mirrors.look()
        seen = Seen(mirrors.publisher.node_id, 2, sha256(new.data).digest())
        for folder in mirrors.folders:
            (folder / MANIFEST).write_bytes(old)
            (folder / "js/word.js").write_bytes(before)
            (folder / "index.html").write_bytes((folder / "index.html").read_bytes())
        bad = self.bad(await mirrors.look(seen=seen))
        self.assertIn("version 1, after 2 was seen", bad["history"])

    async def test_a_policy(self) -> None:
        """A manifest with a policy that lets pages speak to the provider, or to anybody."""
        mirrors = await self.start()
        made = Manifest.first((mirrors.folders[0] / MANIFEST).read_bytes())
        for change, wanted in (
            ("connect-src 'self' https://notes.test", "the provider's host https://notes.test"),
            ("connect-src 'self' https://other.example", "https://other.example, which is no relay"),
            ("connect-src 'self' *", "connect-src *"),
        ):
            policy = made.csp.replace("connect-src 'self'", change)
            for folder in mirrors.folders:
                (folder / MANIFEST).write_bytes(evolve(made, csp=policy).sign(mirrors.publisher))
            self.assertIn(wanted, (await self.found("policy"))["policy"])

    async def test_a_policy_that_is_not_the_signed_one(self) -> None:
        mirrors = await self.start()
        made = Manifest.first((mirrors.folders[1] / MANIFEST).read_bytes())
        other = evolve(made, csp=made.csp.replace("connect-src 'self'", "connect-src 'self' https://evil.example"))
        (mirrors.folders[1] / MANIFEST).write_bytes(other.sign(mirrors.publisher))
        bad = await self.found("manifest", "policy")
        self.assertIn("is served with another policy by", bad["policy"])

    async def test_fields_that_say_more_than_the_page(self) -> None:
        """A mirror that sends visitors elsewhere, or has them load a style of its own, by a field."""
        mirrors = await self.start()
        app = mirrors.relays[1]._hosts["notes.localhost"]
        fields = type(app).fields
        for name, value in (("refresh", "0;url=https://evil.example/"), ("link", "</evil.css>; rel=stylesheet")):
            self.patch(type(app), "fields", lambda one, more=(name, value): (*fields(one), *([more] * (one is app))))
            self.assertIn(f"is served with {name} by", (await self.found("policy"))["policy"])

    async def test_a_first_page_that_nobody_signed(self) -> None:
        """An app without an index.html, and a mirror that has one."""
        mirrors = await self.start()
        made = Manifest.first((mirrors.folders[0] / MANIFEST).read_bytes())
        files = {path: file for path, file in made.files.items() if path != "/index.html"}
        for folder in mirrors.folders:
            (folder / MANIFEST).write_bytes(evolve(made, files=files).sign(mirrors.publisher))
            for name in (".well-known/waict", ".well-known/l8/headers.json"):
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
        self.assertIn("/ is no file of the manifest", (await self.found("files"))["files"])

    async def test_the_script_of_the_wheel(self) -> None:
        """What the manifest says, and mirrors serve, is another l8.js than the package has."""
        mirrors = await self.start()
        made = Manifest.first((mirrors.folders[0] / MANIFEST).read_bytes())
        path = f"/l8/{layer8.__version__}/l8.js"
        files = {**made.files, path: evolve(made.files[path], sha256=bytes(32))}
        for folder in mirrors.folders:
            (folder / MANIFEST).write_bytes(evolve(made, files=files).sign(mirrors.publisher))
        bad = await self.found("files", "wheel", "waict")
        self.assertIn(f"{path} is not as it is installed here", bad["wheel"])

    async def test_a_key_set(self) -> None:
        """The app pins another identity than the one that the relays' copies are signed with."""
        mirrors = await self.start()
        app = mirrors.app
        one = app.gateways["notes"]
        pinned = evolve(app, gateways={"notes": AppGateway(one.relays, one.authorities, (bytes(31) + b"\1",))})
        mirrors.build(pinned)
        bad = await self.found("keys notes")
        self.assertIn("signed by none of the pinned keys", bad["keys notes"])

    async def test_a_key_set_for_one_relay(self) -> None:
        """One relay has another key of the same hour: both are signed, and one of them is for somebody alone."""
        mirrors = await self.start()
        await mirrors.look()
        told = KeySet.read(mirrors.gateway.gateway.keys_document(), [mirrors.identity.node_id])
        swapped = GatewayKey.make(told.epoch).key_set("notes", ["notes.test"]).sign(mirrors.identity)
        mirrors.relays[1].keeping.kept["notes"].copy.document = swapped
        bad = await self.found("keys notes")
        self.assertIn("two key sets for one epoch", bad["keys notes"])

    async def test_waict_and_webcat(self) -> None:
        mirrors = await self.start()
        folder = mirrors.folders[1]
        [waict] = (folder / ".well-known/waict/manifests").iterdir()
        waict.write_bytes(b"{}\n\n")
        await self.found("waict")
        (folder / ".well-known/webcat").mkdir()
        (folder / ".well-known/webcat/manifest.json").write_text('{"manifest": {"files": {}}}')
        await self.found("waict", "webcat")
        (folder / ".well-known/webcat/manifest.json").write_text("[]")
        await self.found("waict", "webcat")

    async def test_a_manifest_of_too_much(self) -> None:
        """It costs whoever looks nothing."""
        mirrors = await self.start()
        made = Manifest.first((mirrors.folders[0] / MANIFEST).read_bytes())
        files = {**made.files, "/big": File(bytes(32), SITE_MOST)}
        (mirrors.folders[0] / MANIFEST).write_bytes(evolve(made, files=files).sign(mirrors.publisher))
        await self.assertFailure(Deferred.fromCoroutine(mirrors.look()), RemoteProtocolError)
        (mirrors.folders[0] / "js/word.js").write_bytes(bytes(200_000))
        (mirrors.folders[0] / MANIFEST).write_bytes(made.sign(mirrors.publisher))
        self.assertIn("/js/word.js is another file", (await self.found("files", "integrity"))["files"])

    async def test_a_mirror_that_is_gone(self) -> None:
        mirrors = await self.start()
        await mirrors.relays[1].stopService()
        bad = self.bad(await mirrors.look())
        self.assertIn("none by", bad["manifest"])
        self.assertIn("gives none", bad["keys notes"])


class CommandTests(VerifyCase):
    async def run_it(self, *words: str) -> tuple[int, str, str]:
        command = ["-c", "from layer8.cli.main import main; main()", "verify", *words]
        environ = {**os.environ, "LAYER8_HOME": str(self.mirrors.folder / "home"), "NO_COLOR": "1"}
        out, err, code = await getProcessOutputAndValue(sys.executable, command, env=environ)
        return code, out.decode(), err.decode()

    async def test_the_command(self) -> None:
        mirrors = await self.start()
        key = pin_text(mirrors.publisher.node_id)
        code, out, err = await self.run_it(mirrors.url, "--via", mirrors.copy, "--publisher", key)
        self.assertEqual((code, err), (0, ""), out)
        self.assertIn("ok  manifest", out)
        kept = mirrors.folder / "home" / "verify" / f"notes.localhost_{mirrors.ports[0]}.json"
        self.assertEqual(json.loads(kept.read_text())["version"], 1)
        (mirrors.folders[1] / "js/word.js").write_text("export const word = 2;\n")
        code, out, err = await self.run_it(mirrors.url, "--via", mirrors.copy, "--json")
        told = json.loads(out)
        self.assertEqual((code, told["good"], told["version"], told["publisher"]), (1, False, 1, key))
        verdicts = {one["check"]: one["verdict"] for one in told["checks"]}
        self.assertEqual((verdicts["files"], verdicts["signature"], verdicts["history"]), ("bad", "good", "good"))

    async def test_wrong_usage(self) -> None:
        self.mirrors = Mirrors(None, Path(self.mktemp()).absolute())
        for words in (
            ["http://relay.example/"],
            ["nonsense"],
            ["https://a.example/path"],
            ["https://a.example", "--publisher", "x"],
        ):
            code, out, err = await self.run_it(*words)
            self.assertEqual((code, out, len(err.splitlines())), (2, "", 1), err)

    def test_urls(self) -> None:
        self.assertEqual(check_url("https://Notes.example/"), "https://notes.example")
        self.assertRaises(ConfigError, check_url, "https://notes.example/app")
