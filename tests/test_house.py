"""House rules that linters cannot see, searched for in the source; each rule first proves that it finds a breach."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.names import ROOT
from tests.test_packaging import setup_cfg

LINES = 450
VAGUE = {"manager", "handler", "processor", "utils", "util", "helpers", "helper", "common", "misc"}
# The only places where a function may import the global reactor.
REACTOR_USERS = re.compile(r"(layer8/\w+/(\w+_)?tap|layer8/cli/\w+|tests/.*|bench/.*|docs/examples/.*)\.py")
# Put together from halves, so that this file does not mention them.
REGISTRIES = ["pypi" + ".org", "python" + "hosted.org", "npmjs" + ".org", "crates" + ".io", "golang" + ".org"]

Rule = Callable[[ast.Module], Iterator[str]]


def tracked(*patterns: str) -> list[Path]:
    """List the files of this tree that belong to it, by git where there is one, else everything that matches."""
    listed = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return [path for pattern in patterns for path in sorted(ROOT.rglob(pattern)) if path.is_file()]


def module(path: Path) -> str:
    """Give the dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def base_names(node: ast.ClassDef) -> list[str]:
    """Give the last word of every base of a class."""
    return [ast.unparse(base).split(".")[-1] for base in node.bases]


def async_tests_that_never_run(tree: ast.Module) -> Iterator[str]:
    """A SynchronousTestCase calls an `async def` test, drops the coroutine and is content."""
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    def synchronous(name: str) -> bool:
        return name == "SynchronousTestCase" or (name in classes and any(map(synchronous, base_names(classes[name]))))

    for node in classes.values():
        if synchronous(node.name):
            for part in node.body:
                if isinstance(part, ast.AsyncFunctionDef) and re.match("test|setUp|tearDown", part.name):
                    yield f"{node.name}.{part.name} is async in a SynchronousTestCase"


def swallowed_cancellations(tree: ast.Module) -> Iterator[str]:
    """CancelledError is an Exception: whoever catches that around an `await` must let it through first."""
    for block in ast.walk(tree):
        if not isinstance(block, ast.Try) or not any(
            isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for part in block.body for node in ast.walk(part)
        ):
            continue
        passed = False
        for catch in block.handlers:
            names = (
                {word.split(".")[-1] for word in re.findall(r"[\w.]+", ast.unparse(catch.type))} if catch.type else {""}
            )
            raises = any(isinstance(node, ast.Raise) and node.exc is None for node in catch.body)
            if "CancelledError" in names and raises:
                passed = True
            elif names & {"Exception", "BaseException"} and not passed and not raises:
                yield f"line {catch.lineno}: catches everything around an await, CancelledError included"


def vague_names(tree: ast.Module) -> Iterator[str]:
    """A name that says nothing about what the thing is for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = re.findall(r"[A-Z]?[a-z]+", node.name)
            vague = VAGUE if isinstance(node, ast.ClassDef) else VAGUE - {"processor"}  # that may be a CPU
            if words and words[-1].lower() in vague:
                yield f"line {node.lineno}: {node.name} is a {words[-1].lower()}"


def more_than_a_docstring(tree: ast.Module) -> Iterator[str]:
    """An `__init__.py` holds a docstring, and at most the package's public names, also such as come when asked for."""
    for node in tree.body[1:] if ast.get_docstring(tree) else tree.body:
        public = isinstance(node, ast.ImportFrom | ast.Import) or (
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "__version__", "__getattr__"}
        )
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse:
            public = all(isinstance(part, ast.ImportFrom) for part in node.body)
        if not public:
            yield f"line {node.lineno}: more than a docstring and public names"
    if not ast.get_docstring(tree):
        yield "no docstring"


def global_reactors(tree: ast.Module) -> Iterator[str]:
    """Anybody who fetches the global reactor."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "twisted.internet":
            if any(name.name == "reactor" for name in node.names):
                yield f"line {node.lineno}: imports the global reactor"
        elif isinstance(node, ast.Import) and any(name.name == "twisted.internet.reactor" for name in node.names):
            yield f"line {node.lineno}: imports the global reactor"


def possessive_groups(tree: ast.Module) -> Iterator[str]:
    """`(...)*+`, `{n}+` and `(?>...)`: the `re` of Python 3.11.0 to 3.11.4, Debian 12's among them, gets them wrong."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if re.search(r"\)[*+?]\+|[0-9,]\}\+|\(\?>", text):
                yield f"line {node.lineno}: a possessive group"


def code_lines(text: str) -> int:
    """Count the lines that hold code: no blank line, no comment, no docstring."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        prose = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if isinstance(node, ast.stmt) and not prose:
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or node.lineno
            lines.update(range(node.lineno, max(end, node.lineno) + 1))
    blank = {number for number, line in enumerate(text.splitlines(), 1) if not line.strip() or line.strip()[0] == "#"}
    return len(lines - blank)


def unfinished(text: str) -> Iterator[str]:
    """Notes to self, stubs, banners, and ignores that would hide anything."""
    for pattern, why in (
        (r"\b(TODO|FIXME|XXX)\b", "a note to self"),
        (r"raise NotImplementedError", "a stub"),
        (r"^\s*#\s*[-=*#~]{4,}", "a banner"),
        (r"#\s*noqa(?!: ?[A-Z]+\d)", "an ignore without a code"),
        (r"#\s*type:\s*ignore(?!\[)", "an ignore without a code"),
        (r"#\s*(mypy: ignore-errors|ruff: noqa|flake8: noqa)", "an ignore of a whole file"),
    ):
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(pattern, line):
                yield f"line {number}: {why}"


class RuleTests(SynchronousTestCase):
    """Each rule finds its breach and leaves the lawful alone."""

    def check(self, rule: Rule, bad: str, good: str) -> None:
        self.assertNotEqual(list(rule(ast.parse(bad))), [])
        self.assertEqual(list(rule(ast.parse(good))), [])

    def test_async_tests(self) -> None:
        body = "\n async def test_a(self): pass\n"
        self.check(
            async_tests_that_never_run,
            f"class Base(unittest.SynchronousTestCase): pass\nclass ATests(Mixin, Base):{body}",
            f"class ATests(TestCase):{body}\nclass BTests(SynchronousTestCase):{body.replace('test_a', 'wait')}",
        )

    def test_cancellation(self) -> None:
        good = "async def f():\n try:\n  await g()\n except CancelledError:\n  raise\n except Exception:\n  pass\n"
        bad = good.replace(" except CancelledError:\n  raise\n", "")
        self.check(swallowed_cancellations, bad, good)
        self.check(
            swallowed_cancellations, bad.replace("except Exception", "except (A, Exception)"), bad.replace("await ", "")
        )

    def test_names(self) -> None:
        self.check(vague_names, "class LinkManager: pass", "class NoCommonVersion: pass")
        self.check(vague_names, "def http_utils(): pass", "def handled(): pass")

    def test_package_files(self) -> None:
        self.check(more_than_a_docstring, '"""Doc."""\nx = 1', '"""Doc."""\nfrom layer8.a import b\n__all__ = ["b"]')
        self.check(more_than_a_docstring, "", '"""Doc."""')
        names = "if TYPE_CHECKING:\n from layer8.a import b\n"
        lazy = f'"""Doc."""\n{names}__getattr__ = lazily(__name__, b="a")'
        self.check(more_than_a_docstring, f"{lazy}\nif TYPE_CHECKING:\n b = 1", lazy)

    def test_reactor(self) -> None:
        bad = "def f():\n from twisted.internet import reactor"
        self.check(global_reactors, bad, "def f(reactor): pass")

    def test_possessive_groups(self) -> None:
        for bad in ("r'(?:a|b)*+'", "rb'(?:a){0,4}+'", "r'(?>a)'", "r'(a)?+'"):
            self.check(possessive_groups, bad, "r'[ab]*+(?:c{1,2}d)*'")

    def test_code_lines(self) -> None:
        prose = '"""Doc.\n\nMore.\n"""\n\n# why\n'
        code = 'def f(\n    a,\n):\n    """Doc."""\n    # why\n    return (\n        1\n    )\n'
        self.assertEqual((code_lines(prose), code_lines(prose + code)), (0, 6))

    def test_unfinished(self) -> None:
        for line in (
            "# TODO: later",
            "raise NotImplementedError",
            "# ------ tools ------",
            "import x  # noqa",
            "x = y  # type: ignore",
        ):
            self.assertNotEqual(list(unfinished(line)), [], line)
        self.assertEqual(list(unfinished("x = y  # type: ignore[attr-defined]\nz = 1  # noqa: E501")), [])


class TreeTests(SynchronousTestCase):
    def breaches(self, rule: Rule, paths: list[Path]) -> list[str]:
        self.assertNotEqual(paths, [])
        return [f"{path.relative_to(ROOT)}: {what}" for path in paths for what in rule(ast.parse(path.read_text()))]

    def test_no_async_test_in_a_synchronous_case(self) -> None:
        self.assertEqual(self.breaches(async_tests_that_never_run, tracked("tests/*.py")), [])

    def test_nobody_swallows_a_cancellation(self) -> None:
        self.assertEqual(self.breaches(swallowed_cancellations, tracked("layer8/*.py", "docs/*.py")), [])

    def test_every_name_says_something(self) -> None:
        self.assertEqual(self.breaches(vague_names, tracked("layer8/*.py", "docs/examples/*.py", "bench/*.py")), [])
        modules = [path for path in tracked("*.py") if VAGUE & set(path.stem.split("_"))]
        self.assertEqual(modules, [])

    def test_package_files_are_nearly_empty(self) -> None:
        self.assertEqual(
            self.breaches(more_than_a_docstring, tracked("layer8/__init__.py", "layer8/*/__init__.py")), []
        )

    def test_the_global_reactor_is_fetched_at_the_edge_only(self) -> None:
        inside = [path for path in tracked("*.py") if not REACTOR_USERS.fullmatch(str(path.relative_to(ROOT)))]
        self.assertEqual(self.breaches(global_reactors, inside), [])

    def test_nothing_is_unfinished_or_blindly_ignored(self) -> None:
        """This file holds examples; and a base class of tests may leave a method to those that stand on it."""
        sources = {path.relative_to(ROOT): path.read_text() for path in tracked("*.py") if path != Path(__file__)}
        found = [f"{path} {what}" for path, text in sources.items() for what in unfinished(text)]
        self.assertEqual([line for line in found if not re.fullmatch(r"tests/.* a stub", line)], [])

    def test_no_regular_expression_that_debian_s_python_gets_wrong(self) -> None:
        self.assertEqual(self.breaches(possessive_groups, tracked("layer8/*.py")), [])

    def test_no_module_is_long(self) -> None:
        """Prose is free: what is counted is lines of code."""
        long = {module(path): code_lines(path.read_text()) for path in tracked("layer8/*.py")}
        self.assertEqual({name: lines for name, lines in long.items() if lines > LINES}, {})

    def test_every_folder_of_tests_is_a_package(self) -> None:
        """Without its `__init__.py` trial passes a folder by, and nobody notices."""
        folders = {path.parent for path in tracked("tests/*.py") if path.name.startswith("test_")}
        self.assertEqual([folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()], [])

    def test_no_file_mentions_a_package_registry(self) -> None:
        found = []
        for path in tracked("*"):
            try:
                text = path.read_text()
            except UnicodeDecodeError:
                continue
            found += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRIES if host in text]
        self.assertEqual(found, [])


class ContractTests(SynchronousTestCase):
    """The import contracts in setup.cfg cover the whole tree."""

    SHARED = ("cli", "config", "control", "core", "crypto", "net", "node", "testing", "transports", "web")

    def lines(self, contract: str, key: str) -> list[str]:
        return setup_cfg()[f"importlinter:contract:{contract}"][key].split("\n")[1:]

    def test_every_protocol_package_is_kept_apart_from_the_others(self) -> None:
        packages = {path.parent.name for path in tracked("layer8/*/__init__.py") if path.parent.parent.name == "layer8"}
        protocols = {f"layer8.{name}" for name in packages - set(self.SHARED)}
        self.assertEqual(set(self.lines("protocols", "modules")), protocols)

    def test_every_shared_package_has_its_layer(self) -> None:
        words = {word for line in self.lines("layers", "layers") for word in re.findall(r"[\w.]+", line)}
        for name in self.SHARED:
            if (ROOT / "layer8" / name).is_dir():
                self.assertIn(f"layer8.{name}", words)

    def test_every_module_of_a_protocol_has_its_layer(self) -> None:
        layers = {word for line in self.lines("layers", "layers") for word in re.findall(r"[\w.]+", line)}
        for package in self.lines("protocols", "modules"):
            modules = {module(path) for path in tracked(f"{package.replace('.', '/')}/*.py")} - {package}
            self.assertNotEqual(modules, set())
            self.assertEqual(modules - layers, set())

    def test_every_wire_and_session_module_is_held_pure(self) -> None:
        pure = set(self.lines("pure", "source_modules"))
        paths = [path for path in tracked("layer8/*/wire.py", "layer8/*/session.py") if path.parent.name != "testing"]
        self.assertNotEqual(paths, [])
        for path in paths:
            self.assertTrue(pure & {module(path), module(path.parent)}, f"{module(path)} is not in the contract")
        for words in self.lines("pure", "forbidden_modules"):
            self.assertNotIn("layer8", words)

    def test_the_forbidden_names_are_those_of_the_house(self) -> None:
        forbidden = set(self.lines("pure", "forbidden_modules"))
        self.assertLessEqual({"asyncio", "random", "secrets", "socket", "time", "twisted"}, forbidden)


class DocsTests(SynchronousTestCase):
    def test_every_page_is_in_the_index(self) -> None:
        index = (ROOT / "docs" / "index.md").read_text()
        pages = {path.stem for path in tracked("docs/*.md") if path.parent.name == "docs"} - {"index"}
        self.assertNotEqual(pages, set())
        self.assertEqual({page for page in pages if not re.search(rf"^{re.escape(page)}$", index, re.MULTILINE)}, set())

    def test_links_between_pages_lead_somewhere(self) -> None:
        for path in [*tracked("docs/*.md"), ROOT / "README.md"]:
            for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
                self.assertTrue((path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}")
