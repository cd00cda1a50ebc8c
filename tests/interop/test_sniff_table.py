"""The two sniffing tables against haproxy, nginx and sniproxy, and the first bytes of real clients."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.proxy.sniff import Found
from layer8.proxy.sniff_http import SNIFF_HTTP, HttpSniffer
from layer8.proxy.sniff_tls import SNIFF_TLS, TlsSniffer
from tests.interop.recorder import Recorder
from tests.interop.sniff_peers import Peer, end, marker, missing
from tests.proxy.cuts import Make, at_every_cut, run, shown
from tests.proxy.rows import Row
from tests.proxy.rows_http import HTTP_ROWS
from tests.proxy.rows_tls import TLS_ROWS

# Rows that somebody forwards to the right host and that we refuse, each with the doubt that closes it.
DELIBERATE = {
    "64 KiB + 1": "a limit",
    "two server_name extensions": "two answers to one question; the backend may take the other",
    "two host_names": "two answers to one question (RFC 6066, 3: no more than one of a type)",
    "33rd empty record": "a limit",
    "33rd empty record inside the hello": "a limit",
    "record length 16,385": "RFC 8446, 5.1: at most 2^14",
    "extension length past the end": "lengths that do not add up are read differently by everybody",
    "extension block longer than the hello": "lengths that do not add up are read differently by everybody",
    "extension block shorter than the hello": "lengths that do not add up are read differently by everybody",
    "odd length of cipher suites": "RFC 8446, 4.1.2: pairs of octets",
    "session id of 33": "RFC 8446, 4.1.2: at most 32",
    "server_name list one too long": "lengths that do not add up are read differently by everybody",
    "ALPN lengths that do not add up": "lengths that do not add up are read differently by everybody",
    "absolute-form, Host other": "two answers to one question",
    "absolute-form https:": "a request for another server's port",
    "absolute-form with userinfo": "RFC 9110, 4.2.4: an error, and often an attempt to mislead",
    "two leading CRLFs": "RFC 9112, 2.2 allows for one",
    "Host a,b": "two answers to one question",
    "Host with a space": "RFC 9110, 7.2: not a host",
    "Host with NUL": "a name is cut at NUL by some and not by others",
    "method not a token": "RFC 9110, 9.1",
    "HTTP/0.9": "it has no Host, whatever lines follow",
    "HTTP/0.9 spelled out": "it has no Host, whatever lines follow",
    "HTTP/3.0": "not a version of this syntax",
    "two Hosts good, evil": "RFC 9112, 3.2: 400",
    "two Hosts evil, good": "RFC 9112, 3.2: 400",
    "two Hosts equal": "RFC 9112, 3.2: 400",
    "space before the colon": "RFC 9112, 5.1: 400",
    "obs-fold of Host": "RFC 9112, 5.2: 400",
    "obs-fold of the first line": "RFC 9112, 2.2: 400",
    "obs-fold after Host": "RFC 9112, 5.2: 400",
    "obs-fold of another field": "RFC 9112, 5.2: 400",
    "Host only in the body": "the body is not the head",
    "33 KiB of header": "a limit",
    "101 fields": "a limit",
    "CONNECT": "this is no forward proxy",
    "PROXY v1 first, untrusted": "anybody could claim any address",
    "bare CR in a field": "RFC 9112, 2.2: a line end to some",
    "NUL in a field": "RFC 9110, 5.5: invalid and dangerous",
}


class TableTests(SynchronousTestCase):
    """Each peer gets every row; where it forwards to the right host, so do we, or we say why not."""

    def table(self, name: str, scheme: str, rows: Sequence[Row], make: Make, most: int) -> None:
        if (reason := missing(name)) is not None:
            raise SkipTest(reason)
        peer = Peer.start(name, scheme, Path(self.mktemp()))
        try:
            theirs = {row.name: peer.outcome(row) for row in rows}
        finally:
            peer.stop()
        # A peer that is set up wrongly forwards nothing, and would hold us to nothing.
        self.assertEqual(theirs["one segment"].strip("*"), "A")
        worse = []
        for row in rows:
            ours = shown(run(make, row.pieces, most))
            if theirs[row.name].startswith("A") and not ours.startswith("A") and row.name not in DELIBERATE:
                worse.append(f"{row.name}: {name} forwards it, we say {ours}")
        self.assertEqual(worse, [])

    def test_haproxy_tls(self) -> None:
        self.table("haproxy", "https", TLS_ROWS, TlsSniffer, SNIFF_TLS)

    def test_haproxy_http(self) -> None:
        self.table("haproxy", "http", HTTP_ROWS, HttpSniffer, SNIFF_HTTP)

    def test_nginx_tls(self) -> None:
        self.table("nginx", "https", TLS_ROWS, TlsSniffer, SNIFF_TLS)

    def test_nginx_http(self) -> None:
        self.table("nginx", "http", HTTP_ROWS, HttpSniffer, SNIFF_HTTP)

    def test_sniproxy_tls(self) -> None:
        self.table("sniproxy", "https", TLS_ROWS, TlsSniffer, SNIFF_TLS)

    def test_sniproxy_http(self) -> None:
        self.table("sniproxy", "http", HTTP_ROWS, HttpSniffer, SNIFF_HTTP)

    def test_what_we_refuse_on_purpose_is_refused(self) -> None:
        for rows, make, most in ((TLS_ROWS, TlsSniffer, SNIFF_TLS), (HTTP_ROWS, HttpSniffer, SNIFF_HTTP)):
            for row in rows:
                if row.name in DELIBERATE:
                    self.assertNotIn(shown(run(make, row.pieces, most))[0], "AD", row.name)
        self.assertEqual(DELIBERATE.keys() - {row.name for row in (*TLS_ROWS, *HTTP_ROWS)}, set())


class PageTests(SynchronousTestCase):
    """The page for readers says what the tests say."""

    def test_every_row_is_on_the_page(self) -> None:
        page = Path(__file__).parents[2] / "docs" / "proxy-sniffing.md"
        if not page.exists():
            raise SkipTest("the tests run without the docs")
        lines = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
        written = [(cells[0].replace("`", ""), cells[1]) for cells in lines if len(cells) >= 5 and cells[1] != "layer8"]
        self.assertEqual(written, [(row.name, row.outcome) for row in (*TLS_ROWS, *HTTP_ROWS)])


class ClientTests(SynchronousTestCase):
    """What real clients send first is routed to the name that they were told, at every cut."""

    def first_bytes(self, command: Sequence[str], recorder: Recorder, package: str, patience: float = 20) -> bytes:
        """Run a client until the recorder has its first flight, then end it."""
        if shutil.which(command[0]) is None:
            raise SkipTest(f"{command[0]} is not installed (Debian package {package})")
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        quiet = subprocess.DEVNULL
        client = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
        try:
            until = time.monotonic() + patience
            while time.monotonic() < until:
                for seen in recorder.connections:
                    if len(seen) > 40:
                        time.sleep(0.3)  # the rest of a flight of two segments
                        return bytes(seen)
                time.sleep(0.02)
        finally:
            end(client)
        raise AssertionError(f"{command[0]} sent nothing within {patience} s")

    def found(self, make: Make, data: bytes, most: int) -> Found:
        outcome = at_every_cut(make, data, most)
        assert isinstance(outcome, Found), outcome
        self.assertEqual(outcome.host, "www.example.com")
        return outcome

    def profile(self) -> str:
        """A browser's folder outside the work tree, removed when the test ends."""
        folder = tempfile.mkdtemp(prefix="layer8-browser-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def test_openssl(self) -> None:
        with Recorder() as recorder:
            where = f"127.0.0.1:{recorder.port}"
            names = ["-servername", "www.example.com", "-alpn", "h2,http/1.1"]
            data = self.first_bytes(["openssl", "s_client", "-connect", where, *names], recorder, "openssl")
        self.assertEqual(self.found(TlsSniffer, data, SNIFF_TLS).alpn, (b"h2", b"http/1.1"))

    def test_openssl_tls_1_2(self) -> None:
        with Recorder() as recorder:
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{recorder.port}", "-tls1_2"]
            data = self.first_bytes([*command, "-servername", "www.example.com"], recorder, "openssl")
        self.found(TlsSniffer, data, SNIFF_TLS)

    def test_openssl_without_a_name(self) -> None:
        with Recorder() as recorder:
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{recorder.port}", "-noservername"]
            data = self.first_bytes(command, recorder, "openssl")
        self.assertEqual(shown(at_every_cut(TlsSniffer, data, SNIFF_TLS)), "D")

    def curl(self, recorder: Recorder, scheme: str, *options: str) -> bytes:
        place = f"www.example.com:{recorder.port}"
        command = ["curl", "-s", "-m", "10", *options, "--resolve", f"{place}:127.0.0.1", f"{scheme}://{place}/"]
        return self.first_bytes(command, recorder, "curl")

    def test_curl_tls(self) -> None:
        with Recorder() as recorder:
            data = self.curl(recorder, "https")
        self.assertIn(b"http/1.1", self.found(TlsSniffer, data, SNIFF_TLS).alpn)

    def test_curl_http_1(self) -> None:
        for options in (["--http1.0"], ["--http1.1"], ["-d", "a=b"], ["-H", "Expect: 100-continue", "-d", "a=b"]):
            with Recorder(marker(b"A")) as recorder:
                self.found(HttpSniffer, self.curl(recorder, "http", *options), SNIFF_HTTP)

    def test_curl_upgrade_to_http_2(self) -> None:
        with Recorder(marker(b"A")) as recorder:
            self.found(HttpSniffer, self.curl(recorder, "http", "--http2"), SNIFF_HTTP)

    def test_curl_http_2_prior_knowledge(self) -> None:
        with Recorder() as recorder:
            data = self.curl(recorder, "http", "--http2-prior-knowledge")
        self.assertTrue(data.startswith(b"PRI * HTTP/2.0\r\n"))
        self.found(HttpSniffer, data, SNIFF_HTTP)

    def test_chromium(self) -> None:
        with Recorder() as recorder:
            rule = f"--host-resolver-rules=MAP www.example.com:443 127.0.0.1:{recorder.port}"
            command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", rule]
            command += [f"--user-data-dir={self.profile()}", "https://www.example.com/"]
            data = self.first_bytes(command, recorder, "chromium")
        self.assertIn(b"h2", self.found(TlsSniffer, data, SNIFF_TLS).alpn)
        self.assertGreater(len(data), 1216)  # it holds an ML-KEM-768 key share
        self.assertIn(b"\xfe\x0d", data)  # and an ECH extension, if only grease

    def test_firefox(self) -> None:
        profile = self.profile()
        settings = '"network.dns.localDomains", "www.example.com"'
        Path(profile, "user.js").write_text(f"user_pref({settings});\n")
        with Recorder() as recorder:
            command = ["firefox-esr", "--headless", "--no-remote", "--profile", profile]
            command += [f"https://www.example.com:{recorder.port}/"]
            data = self.first_bytes(command, recorder, "firefox-esr", patience=40)
        self.assertIn(b"h2", self.found(TlsSniffer, data, SNIFF_TLS).alpn)
