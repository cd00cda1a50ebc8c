import contextlib
import time
import tomllib
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.config import position
from layer8.core.errors import ConfigError

TEXT = '''\
# a comment [not.a.table]
top = 1
[proxy]   # behind
http = ["tcp:80", # inside
  "tcp:81"]
"quoted" = "a # b"
dotted.inner = 2

[proxy.limits]
idle = """
not = a key
[nor.a.table]
"""
next = \'\'\'
x = "
\'\'\'
last = { a = 1, b = { c = 2 } }
[[proxy.host]]
host = "a"
[[proxy.host]]
host = "b"
[proxy.host.sub]
x = 1
'''


class LineTests(SynchronousTestCase):
    def test_every_key_has_its_line(self) -> None:
        found = position.lines(TEXT)
        self.assertEqual(
            found,
            {
                ("top",): 2,
                ("proxy",): 3,
                ("proxy", "http"): 4,
                ("proxy", "quoted"): 6,
                ("proxy", "dotted"): 7,
                ("proxy", "dotted", "inner"): 7,
                ("proxy", "limits"): 9,
                ("proxy", "limits", "idle"): 10,
                ("proxy", "limits", "next"): 14,
                ("proxy", "limits", "last"): 17,
                ("proxy", "host", 0): 18,
                ("proxy", "host", 0, "host"): 19,
                ("proxy", "host", 1): 20,
                ("proxy", "host", 1, "host"): 21,
                ("proxy", "host", 1, "sub"): 22,
                ("proxy", "host", 1, "sub", "x"): 23,
            },
        )

    def test_multi_line_strings_that_end_in_quotes(self) -> None:
        found = position.lines('a = """x"""""\nb = \'\'\'y\'\'\'\'\'\nc = "\\""\nd = 1\n')
        self.assertEqual([found["a",], found["b",], found["c",], found["d",]], [1, 2, 3, 4])

    def test_too_deep(self) -> None:
        for text in (
            "a = " + "[" * 17 + "]" * 17,
            "a" + ".a" * 16 + " = 1",
            "[" + "a." * 16 + "a]",
            "x = { " + "a." * 17 + "a = 1 }",
            'x = { "a"' + ' . "a"' * 17 + " = 1 }",
        ):
            self.assertRaises(ConfigError, position.lines, text)

    def test_deep_enough(self) -> None:
        position.lines("a = " + "[" * 16 + "]" * 16)
        position.lines(".".join("a" * 16) + " = 1")

    def test_bombs_cost_little(self) -> None:
        for text in (
            "a." * 500_000,
            "[" * 1_000_000,
            '"' * 1_000_000,
            "'" * 999_999,
            "a=[" + '""' * 400_000,
            "=" * 10**6,
        ):
            before = time.process_time()
            with contextlib.suppress(ConfigError):
                position.lines(text)
            self.assertLess(time.process_time() - before, 3.0)


def paths(table: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(table, dict):
        for name, value in table.items():
            yield (*path, name)
            yield from paths(value, (*path, name))


NAMES = st.text(alphabet="ab-_1", min_size=1, max_size=4)
VALUES = st.sampled_from(["1", "'x'", '"[#="', "[1,\n2]", "true", '"""\na = 1\n"""', "1979-05-27", "[ 'a', # c\n ]"])


class AgreementTests(SynchronousTestCase):
    @given(st.lists(st.tuples(NAMES, NAMES, VALUES), max_size=8))
    def test_finds_every_key_that_tomllib_finds(self, items: list[tuple[str, str, str]]) -> None:
        text = ""
        for table, key, value in items:
            text += f"[{table}] # t\n\n  {key}  = {value}\n"
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return
        found = position.lines(text)
        for path in paths(document):
            line = text.splitlines()[found[path] - 1]
            self.assertIn(str(path[-1]), line)

    @given(st.text(alphabet="ab.=[]{}\"'#\n\\ ,1", max_size=80))
    def test_any_noise(self, text: str) -> None:
        try:
            position.lines(text)
        except ConfigError as error:
            self.assertIn("deeper", str(error))
