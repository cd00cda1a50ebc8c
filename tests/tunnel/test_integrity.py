"""The signed manifest of an app, its policy, and what its pages load."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Callable
from hashlib import sha256, sha384
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.keys import NodeKey
from layer8.tunnel import integrity, jws, markup
from layer8.tunnel.integrity import AppGateway, BadManifest, File, Manifest

ME = NodeKey.from_seed(bytes(range(32)))
OTHER = NodeKey.from_seed(bytes(32))
RELAY = "https://relay.example"
FILES = {"/index.html": File.of(b"<!doctype html>"), "/a/b.js": File.of(b"1")}
GATEWAY = AppGateway((RELAY,), ("shop.example",), (bytes(32),))
ONE = Manifest("notes", ME.node_id, 1, FILES, integrity.csp([RELAY]), {"shop": GATEWAY})


def payload(data: bytes) -> dict[str, Any]:
    told = json.loads(data)["payload"]
    found = json.loads(urlsafe_b64decode(told + "=" * (-len(told) % 4)))
    assert isinstance(found, dict)
    return found


class ManifestTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        for one in (
            ONE,
            evolve(ONE, next=OTHER.node_id, version=7, prev=bytes(32)),
            evolve(ONE, wheel=("1.2", b"")),
            evolve(ONE, wheel=("1.2", bytes(32))),
        ):
            self.assertEqual(Manifest.read(one.sign(ME), [OTHER.node_id, ME.node_id]), one)
            self.assertEqual(Manifest.first(one.sign(ME)), one)

    def test_the_layout(self) -> None:
        data = ONE.sign(ME)
        head = json.loads(urlsafe_b64decode(json.loads(data)["protected"] + "=="))
        self.assertEqual(head, {"alg": "Ed25519", "typ": "l8-app+jws", "kid": jws.key_name(ME.node_id)})
        told = payload(data)
        digest = jws.letters(sha256(b"<!doctype html>").digest())
        self.assertEqual(told["files"]["/index.html"], {"sha256": digest, "size": 15})
        self.assertEqual(
            told["gateways"],
            {"shop": {"relays": [RELAY], "authorities": ["shop.example"], "identities": ["A" * 43]}},
        )
        self.assertEqual((told["v"], told["app"], told["version"], told["prev"]), (1, "notes", 1, ""))
        self.assertEqual(told["publisher"], jws.letters(ME.node_id))

    def test_only_the_publisher_s_word_counts(self) -> None:
        data = ONE.sign(ME)
        for call in (
            lambda: Manifest.read(data, [OTHER.node_id]),
            lambda: Manifest.read(jws.sign(OTHER, "l8-app+jws", payload(data)), [OTHER.node_id]),
            lambda: Manifest.first(jws.sign(OTHER, "l8-app+jws", payload(data))),
        ):
            self.assertTrue(self.assertRaises(BadManifest, call).forged)
        self.assertRaises(BadManifest, Manifest.first, jws.sign(ME, "l8-keys+jws", payload(data)))
        self.assertRaises(BadManifest, ONE.sign, OTHER)

    def test_what_follows_what(self) -> None:
        first = ONE.sign(ME)
        second = evolve(ONE, version=2, prev=sha256(first).digest())
        second.follows(first)
        evolve(second, version=9).follows(first)
        for wrong in (
            evolve(second, version=1),
            evolve(second, prev=bytes(32)),
            evolve(second, publisher=OTHER.node_id),
            evolve(second, app="other"),
        ):
            self.assertRaises(BadManifest, wrong.follows, first)
        told = evolve(ONE, next=OTHER.node_id).sign(ME)
        evolve(ONE, version=2, prev=sha256(told).digest(), publisher=OTHER.node_id).follows(told)
        evolve(ONE, version=2, prev=sha256(told).digest()).follows(told)

    def test_payloads(self) -> None:
        good = payload(ONE.sign(ME))
        Manifest.read(jws.sign(ME, "l8-app+jws", {**good, "more": 1}), [ME.node_id])
        changes: tuple[dict[str, Any], ...] = (
            {"v": 2},
            {"v": True},
            {"app": "No"},
            {"version": -1},
            {"version": "1"},
            {"files": {}},
            {"files": {"index.html": good["files"]["/index.html"]}},
            {"files": {"/../x": good["files"]["/index.html"]}},
            {"files": {"/.well-known/x": good["files"]["/index.html"]}},
            {"files": {"/x": {"sha256": "AA", "size": 1}}},
            {"files": {"/x": {"sha256": "A" * 43}}},
            {"files": []},
            {"csp": "a\nb"},
            {"gateways": {}},
            {"gateways": {"shop": {}}},
            {"gateways": {"NO": good["gateways"]["shop"]}},
            {"gateways": {"shop": {**good["gateways"]["shop"], "relays": ["https://a/b"]}}},
            {"gateways": {"shop": {**good["gateways"]["shop"], "identities": ["A"]}}},
            {"prev": "AA"},
            {"next": ""},
            {"wheel": []},
            {"wheel": {"sha256": "AA", "version": "1"}},
            {"issuer": None},
            {"publisher": "A"},
        )
        for change in changes:
            data = jws.sign(ME, "l8-app+jws", {**good, **change})
            self.assertRaises(BadManifest, Manifest.read, data, [ME.node_id])
        for name in good:
            data = jws.sign(ME, "l8-app+jws", {key: value for key, value in good.items() if key != name})
            self.assertRaises(BadManifest, Manifest.read, data, [ME.node_id])

    @given(st.binary(max_size=200), st.integers(0, 2000))
    def test_any_noise(self, noise: bytes, at: int) -> None:
        good = ONE.sign(ME)
        for data in (noise, good[: at % len(good)] + noise):
            self.assertRaises(BadManifest, Manifest.first, data)
            self.assertRaises(BadManifest, Manifest.read, data, [ME.node_id])

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        ),
        st.sampled_from(sorted(payload(ONE.sign(ME)))),
    )
    def test_any_noise_that_is_signed(self, value: object, name: str) -> None:
        data = jws.sign(ME, "l8-app+jws", {**payload(ONE.sign(ME)), name: value})
        with contextlib.suppress(BadManifest):
            Manifest.read(data, [ME.node_id])


class PolicyTests(SynchronousTestCase):
    def test_the_policy(self) -> None:
        policy = integrity.csp([RELAY, "http://127.0.0.1:5000"])
        self.assertIn(
            f"connect-src 'self' {RELAY} wss://relay.example http://127.0.0.1:5000 ws://127.0.0.1:5000;", policy
        )
        self.assertEqual(integrity.leaks(policy, ["shop.example"]), [])

    def test_what_leaks(self) -> None:
        policy = integrity.csp([RELAY])
        for before, after in (
            ("script-src 'self'", "script-src 'self' 'unsafe-inline'"),
            ("script-src 'self'", "script-src 'self' https://cdn.example"),
            ("style-src 'self'", "style-src 'self' 'unsafe-inline'"),
            ("img-src 'self'", "img-src 'self' https:"),
            ("default-src 'none'", "default-src *"),
            ("default-src 'none'; ", ""),
            ("connect-src 'self'", "connect-src 'self' *"),
            ("connect-src 'self'", "connect-src 'self' https://*.example"),
            ("connect-src 'self'", "connect-src 'self' https://shop.example"),
            ("connect-src 'self'", "connect-src 'self' wss://SHOP.example"),
            ("frame-ancestors 'none'; ", ""),
            ("base-uri 'none'; ", ""),
            ("form-action 'self'; ", ""),
            ("; trusted-types l8", ""),
            ("; trusted-types l8", "; trusted-types l8; script-src-elem 'unsafe-inline'"),
            ("; trusted-types l8", "; trusted-types l8; media-src shop.example"),
            ("; trusted-types l8", "; trusted-types l8; script-src-elem https://cdn.example"),
            ("; trusted-types l8", "; trusted-types l8; script-src-elem 'self' blob:"),
            ("; trusted-types l8", "; trusted-types l8; style-src-elem cdn.example"),
            ("; trusted-types l8", "; trusted-types l8; object-src https://cdn.example"),
        ):
            self.assertIn(before, policy)
            self.assertNotEqual(integrity.leaks(policy.replace(before, after), ["shop.example"]), [], after)

    def test_of_two_directives_the_first_counts(self) -> None:
        policy = "script-src 'unsafe-inline'; " + integrity.csp([RELAY])
        self.assertNotEqual(integrity.leaks(policy, []), [])

    def test_what_browsers_and_webcat_are_given(self) -> None:
        path, body = integrity.waict(FILES)
        told, proof, end = body.split(b"\n")
        self.assertEqual((proof, end), (b"", b""))
        wanted = b64encode(sha256(b"1").digest()).decode()
        self.assertEqual(json.loads(told)["hashes"]["/a/b.js"], wanted)
        self.assertEqual(path, f"/.well-known/waict/manifests/app_{jws.letters(sha256(body).digest())[:22]}")
        fields = integrity.headers(FILES, block=False)
        self.assertEqual(fields["integrity-policy-report-only"], "blocked-destinations=(script style)")
        self.assertEqual(fields["integrity-policy-waict-v1"], f'max-age=0, mode=report, manifest="{path}"')
        self.assertIn("integrity-policy", integrity.headers(FILES, block=True))
        config, manifest = map(json.loads, integrity.webcat("https://a.example/", 3, ONE.csp, FILES))
        self.assertEqual(manifest["manifest"]["files"]["/a/b.js"], jws.letters(sha256(b"1").digest()))
        self.assertEqual(config["default_csp"], ONE.csp)
        self.assertEqual(integrity.sri(b"1"), f"sha384-{b64encode(sha384(b'1').digest()).decode()}")


PAGE = """<!doctype html>
<html><head><meta charset="utf-8">
<link rel="stylesheet" href="style.css"/>
<script type="module" src="/js/main.js" INTEGRITY='sha384-old'></script>
<script src=plain.js></script></head>
<body><p>x &lt; <!-- a comment --> 1 <2 </p></body></html>
"""
SITE = {
    "/style.css": b"p{}",
    "/plain.js": b"1",
    "/js/main.js": b'import {a,\n b} from "./a.js";\nimport "../c.js"; import("./lazy.js"); import(`./late.js`);'
    b'export * from "./d.js"',
    "/js/a.js": b'export const x = 1; // from "./nothing.js"\nimport y from "bare"',
    "/c.js": b'import"/js/a.js"',
    "/js/lazy.js": b"",
    "/js/late.js": b"",
    "/js/d.js": b"",
}


class PageTests(SynchronousTestCase):
    def test_completed(self) -> None:
        done = markup.complete("/index.html", PAGE, SITE.get, integrity.sri)
        self.assertEqual(markup.missing("/index.html", done, SITE.get, integrity.sri), [])
        self.assertEqual(markup.inline(done), [])
        self.assertNotIn("sha384-old", done)
        named = [(load.kind, load.url) for load in markup.loads(done)]
        self.assertEqual(named[0], ("style", "style.css"))
        preloads = ["/c.js", "/js/a.js", "/js/d.js", "/js/late.js", "/js/lazy.js"]
        self.assertEqual(sorted(named[1:6]), [("preload", one) for one in preloads])
        self.assertEqual(named[6:], [("module", "/js/main.js"), ("script", "plain.js")])
        again = markup.complete("/index.html", done, SITE.get, integrity.sri)
        self.assertEqual(again, done)

    def test_what_is_missing(self) -> None:
        done = markup.complete("/index.html", PAGE, SITE.get, integrity.sri)

        def check(text: str, wanted: str, read: Callable[[str], bytes | None] = SITE.get) -> None:
            self.assertIn(wanted, markup.missing("/index.html", text, read, integrity.sri))

        check(PAGE, "style.css has no integrity")
        check(PAGE, "/js/main.js has another integrity")
        check(PAGE, "/js/a.js has no integrity")
        check(
            done.replace("style.css", "https://cdn.example/style.css"),
            "https://cdn.example/style.css is no file of the app",
        )
        check(done, "plain.js has another integrity", {**SITE, "/plain.js": b"2"}.get)
        self.assertRaises(LookupError, markup.complete, "/", '<script src="x.js">', SITE.get, integrity.sri)

    def test_scripts_of_old_types(self) -> None:
        """Browsers run them, so they need integrity like any other."""
        for kind in ("text/ecmascript", "application/x-javascript", "text/livescript", "text/javascript1.0"):
            text = f'<script type="{kind}" src="/evil.js"></script>'
            self.assertEqual(
                markup.missing("/x.html", text, SITE.get, integrity.sri), ["/evil.js is no file of the app"]
            )

    def test_what_belongs_into_a_file(self) -> None:
        for text in (
            "<script>1</script>",
            "<SCRIPT>1</SCRIPT>",
            '<script type="importmap">{}</script>',
            '<script type="text/ecmascript">1</script>',
            '<script type=" Application/X-JavaScript ">1</script>',
            '<script type="text/javascript1.5">1</script>',
            '<p onclick="x()">',
            "<p ONCLICK=x()>",
            '<a href="java&#115;cript:x()">',
            '<a href=" java\nscript:x()">',
            "<style>p{}</style>",
            '<p style="color:red">',
            '<base href="https://evil.example/">',
            '<iframe src="x">',
            '<meta http-equiv="refresh" content="0">',
            "<object data=x>",
            '<link rel="preconnect" href="https://shop.example">',
            '<link rel="stylesheet Pre&#99;onnect" href="x.css">',
            # What browsers take for tags and other programs may not, and the other way round.
            "<!--><script src=x.js></script>-->",
            "<!-- --!><script src=x.js></script>-->",
            "<![CDATA[><script src=x.js></script>]]>",
            "<script src=a.js></script x><script src=x.js></script>",
            "<script src=a.js></script/><script src=x.js></script>",
            "<!-- <script src=x.js></script> -->",
            "<title><!--</title><SCRIPT/src=x.js></SCRIPT><!-- -->",
        ):
            self.assertNotEqual(markup.inline(text), [], text)
        for text in (
            "<script src=x.js></script>",
            '<script type="application/json">{}</script>',
            '<a href="/x">',
            "on=1",
        ):
            self.assertEqual(markup.inline(text), [], text)

    @given(st.text(alphabet="<>/= \"'scriptlnk-!hefua\n", max_size=80))
    def test_any_text(self, text: str) -> None:
        markup.inline(text)
        markup.missing("/x.html", text, SITE.get, integrity.sri)
        try:
            done = markup.complete("/x.html", text, SITE.get, integrity.sri)
        except LookupError:
            return
        if not markup.loads(text):
            self.assertEqual(done, text)
