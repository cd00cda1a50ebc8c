"""nginx as backend, curl as visitor: every byte as it was sent, both directions, from 1 B to 1 GiB."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.daemons import missing
from tests.interop.stage import GIB, SIZES, WAYS, Stage, ciphered, pattern, sha256, stage


class ByteTests(SynchronousTestCase):
    skip = missing(nginx="nginx", curl="curl")

    def both_directions(self, stage: Stage, kind: str, *words: str) -> None:
        for way in WAYS:
            for name, size in SIZES.items():
                with self.subTest(way=way, name=name, words=words):
                    expected = (stage.sums[name], size)
                    self.assertEqual(stage.fetched(*words, *stage.url(kind, way, f"/{name}")), expected)
                    source = str(stage.nginx.files / name)
                    self.assertEqual(stage.put(name, *words, "-T", source, *stage.url(kind, way, "/up/")), expected)
        self.assertEqual([*stage.server.defects(), *stage.agent.defects()], [])

    def test_http_1_0(self) -> None:
        self.both_directions(stage(), "web", "--http1.0")

    def test_http_1_1(self) -> None:
        self.both_directions(stage(), "web", "--http1.1")

    def test_http_2_without_tls(self) -> None:
        self.both_directions(stage(), "h2c", "--http2-prior-knowledge")

    def test_tls_1_2(self) -> None:
        self.both_directions(stage(), "tls", "--tls-max", "1.2")

    def test_tls_1_3(self) -> None:
        self.both_directions(stage(), "tls", "--tlsv1.3")

    def test_http_inside_tls_to_the_agent(self) -> None:
        self.both_directions(ciphered(), "web", "--http1.1")

    def test_tls_inside_tls_to_the_agent(self) -> None:
        self.both_directions(ciphered(), "tls", "--tlsv1.3")

    def test_a_gibibyte_each_way(self) -> None:
        here = stage()
        source = here.nginx.files / "1g"
        self.addCleanup(source.unlink)
        expected = (pattern(source, GIB), GIB)
        for way in WAYS:
            with self.subTest(way=way):
                self.assertEqual(here.fetched(*here.url("web", way, "/1g")), expected)
                self.assertEqual(here.put("1g", "-T", str(source), *here.url("web", way, "/up/")), expected)

    def test_downloads_that_a_slow_visitor_makes_wait(self) -> None:
        here = stage()
        for way in WAYS:
            with self.subTest(way=way):
                got = here.fetched("--limit-rate", "40m", *here.url("web", way, "/100m"))
                self.assertEqual(got, (here.sums["100m"], SIZES["100m"]))

    def test_parallel_downloads_keep_apart(self) -> None:
        here = stage()
        target = self.mktemp()
        words = ["--parallel", "--parallel-max", "32", "--create-dirs"]
        wanted = [name for name in SIZES if name != "100m"] * 10
        for number, name in enumerate(wanted):
            *options, url = here.url("web", WAYS[number % 2], f"/{name}")
            words += [*options, url, "-o", f"{target}/{number}"]
        here.fetched(*words)
        for number, name in enumerate(wanted):
            self.assertEqual(sha256(Path(target) / str(number)), here.sums[name])
