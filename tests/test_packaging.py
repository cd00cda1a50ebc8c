"""The packaging traps, each with the test that springs before a user does."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions, version
from pathlib import Path

from twisted.application.service import IService
from twisted.internet import tcp
from twisted.internet.protocol import ServerFactory
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from zope.interface import implementedBy

import layer8
from tests.names import ROOT

PLUGINS = ROOT / "twisted" / "plugins"
# What a wheel is made of. Copying these gives the clean tree of a fresh clone, whatever lies about in this one.
SOURCES = ("layer8", "twisted", "share", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md")
# A plugin file names one ServiceMaker and stops there.
PLUGIN_LINES = 8

BUILD_WHEEL = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
BUILD_EDITABLE = "import sys, setuptools.build_meta as b; print(b.build_editable(sys.argv[1]))"


def setup_cfg() -> configparser.ConfigParser:
    """Read setup.cfg as it stands, without interpolation."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def copy_sources(to: Path) -> None:
    """Copy what a wheel is made of, without anything that running it left behind."""
    litter = shutil.ignore_patterns("__pycache__", "*.pyc", "dropin.cache", "*.egg-info", "build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=litter)
        elif source.exists():
            shutil.copy(source, to / name)


def build(tree: Path, program: str = BUILD_WHEEL) -> zipfile.ZipFile:
    """Build the tree with the setuptools at hand and open the wheel."""
    out = tree / "out"
    out.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", program, str(out)], cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"no wheel was built:\n{done.stdout}\n{done.stderr}")
    return zipfile.ZipFile(out / done.stdout.splitlines()[-1])


def can_build() -> bool:
    """Say whether setuptools here makes wheels by itself."""
    return int(version("setuptools").split(".")[0]) >= 71


class SetupCfgTests(SynchronousTestCase):
    def test_package_dir_is_written_so_that_editable_installs_show_plugins(self) -> None:
        self.assertIn("\npackage_dir =\n    = .\n", (ROOT / "setup.cfg").read_text())

    def test_packages_are_found_as_namespaces(self) -> None:
        self.assertEqual(setup_cfg()["options"]["packages"], "find_namespace:")

    def test_found_packages_are_ours_and_the_plugins_folder(self) -> None:
        found = setup_cfg()["options.packages.find"]
        self.assertEqual(dict(found), {"include": "\nlayer8\nlayer8.*\ntwisted.plugins"})

    def test_pyproject_names_the_build_system(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        self.assertEqual(project["build-system"]["build-backend"], "setuptools.build_meta")
        self.assertIn("ruff", project["tool"])
        self.assertIn("towncrier", project["tool"])
        self.assertNotIn("project", project)

    def test_autobahn_is_pinned_without_its_serialization_extra(self) -> None:
        wanted = setup_cfg()["options"]["install_requires"].split()
        self.assertEqual([line for line in wanted if line.startswith("autobahn")], ["autobahn[twisted]>=26.10.2"])
        self.assertNotIn("serialization", (ROOT / "setup.cfg").read_text())

    def test_what_is_imported_is_required_and_the_other_way_round(self) -> None:
        required = {name.lower() for name in re.findall(r"^[\w.-]+", self.requires(), re.MULTILINE)}
        words: set[str] = set()
        for path in (ROOT / "layer8").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    words |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    words.add((node.module or "").partition(".")[0])
        providers = packages_distributions()
        found: set[str] = set()
        for word in words - set(sys.stdlib_module_names) - {"layer8", "bench"}:
            names = {name.lower().replace("_", "-") for name in providers.get(word, [])}
            self.assertTrue(names & required, f"layer8 imports {word}, which setup.cfg does not ask for")
            found |= names & required
        self.assertEqual(required - found, set())

    def requires(self) -> str:
        """Give what every installation needs, and what extras for users bring."""
        extras = setup_cfg()["options.extras_require"]
        users = [text for name, text in extras.items() if name not in ("test", "lint", "docs", "dev")]
        return "\n".join([setup_cfg()["options"]["install_requires"].strip(), *(text.strip() for text in users)])

    def test_txtorcon_s_socks_client_is_not_used(self) -> None:
        users = [
            str(path.relative_to(ROOT))
            for path in (ROOT / "layer8").rglob("*.py")
            if "txtorcon.socks" in path.read_text() or "TorSocksEndpoint" in path.read_text()
        ]
        self.assertEqual(users, [])

    def test_every_mentioned_extra_exists(self) -> None:
        extras = setup_cfg()["options.extras_require"]
        for name in ("test", "lint", "docs", "dev"):
            self.assertIn(name, extras)


class PluginFileTests(SynchronousTestCase):
    def files(self) -> list[Path]:
        return sorted(PLUGINS.glob("*.py"))

    def test_twisted_is_never_a_regular_package_here(self) -> None:
        self.assertFalse((PLUGINS / "__init__.py").exists())
        self.assertFalse((PLUGINS.parent / "__init__.py").exists())

    def test_there_are_plugins(self) -> None:
        names = [path.stem for path in self.files()]
        self.assertIn("layer8_proxy", names)
        self.assertIn("layer8_agent", names)

    def test_one_command_per_file_and_the_file_is_called_after_it(self) -> None:
        for path in self.files():
            calls = [
                node
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ServiceMaker"
            ]
            self.assertEqual(len(calls), 1, path.name)
            words = [arg.value for arg in calls[0].args if isinstance(arg, ast.Constant)]
            words += [word.value.value for word in calls[0].keywords if isinstance(word.value, ast.Constant)]
            self.assertIn(path.stem.replace("_", "-"), words, path.name)

    def test_a_plugin_file_imports_nothing_but_the_service_maker(self) -> None:
        for path in self.files():
            tree = ast.parse(path.read_text())
            imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            self.assertEqual(imports, ["from twisted.application.service import ServiceMaker"], path.name)

    def test_a_plugin_file_is_thin(self) -> None:
        for path in self.files():
            lines = [line for line in path.read_text().splitlines() if line.strip()]
            self.assertLessEqual(len(lines), PLUGIN_LINES, path.name)


class ServiceTests(SynchronousTestCase):
    def services(self) -> list[type]:
        """Import every module of the package and collect what Twisted would start."""
        found = []
        for info in pkgutil.walk_packages(layer8.__path__, "layer8."):
            module = importlib.import_module(info.name)
            for thing in vars(module).values():
                if inspect.isclass(thing) and thing.__module__ == info.name and implementedBy(thing).extends(IService):
                    found.append(thing)
        return found

    def test_start_service_is_never_async(self) -> None:
        services = self.services()
        self.assertNotEqual(services, [])
        for service in services:
            for name in ("startService", "privilegedStartService"):
                method = getattr(service, name)
                self.assertFalse(inspect.iscoroutinefunction(method), f"{service.__qualname__}.{name} is async")
                returns = inspect.signature(method).return_annotation
                self.assertIn(returns, (None, "None", inspect.Signature.empty), f"{service.__qualname__}.{name}")


class SharedPortTests(TestCase):
    async def test_two_listeners_share_a_port(self) -> None:
        """`SO_REUSEPORT` has no place in endpoint strings; workers will stand on this argument of Twisted's."""
        from twisted.internet import reactor

        ports: list[tcp.Port] = []
        for _ in range(2):
            number = ports[0].getHost().port if ports else 0
            binding = tcp.makeBinding("127.0.0.1", number, reusePort=True)
            port = tcp.Port(binding, ServerFactory(), reactor=reactor)  # type: ignore[arg-type]
            port.startListening()
            self.addCleanup(port.stopListening)
            ports.append(port)
        self.assertEqual(ports[0].getHost().port, ports[1].getHost().port)


class WheelTests(SynchronousTestCase):
    def setUp(self) -> None:
        if not can_build():
            raise SkipTest("setuptools here is older than 71 and builds no wheel by itself (package setuptools)")
        self.tree = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tree)
        copy_sources(self.tree)

    def test_the_wheel_holds_the_package_the_plugins_and_the_units(self) -> None:
        with build(self.tree) as wheel:
            names = set(wheel.namelist())
        modules = {str(path.relative_to(self.tree)) for path in (self.tree / "layer8").rglob("*.py")}
        plugins = {f"twisted/plugins/{path.name}" for path in PLUGINS.glob("*.py")}
        self.assertEqual(modules - names, set())
        self.assertNotEqual(plugins, set())
        self.assertEqual({name for name in names if name.startswith("twisted/")}, plugins)
        self.assertIn("layer8/py.typed", names)
        pages = {str(path.relative_to(self.tree)) for path in (self.tree / "layer8" / "web").rglob("*.*")}
        self.assertNotEqual(pages, set())
        self.assertEqual(pages - names, set())
        units = {path.name for path in (ROOT / "share" / "layer8" / "systemd").iterdir()}
        self.assertNotEqual(units, set())
        folder = f"layer8-{layer8.__version__}.data/data/share/layer8/systemd/"
        self.assertEqual({name.removeprefix(folder) for name in names if "/share/" in name}, units)

    def test_the_wheel_never_overwrites_a_file_of_twisted(self) -> None:
        with build(self.tree) as wheel:
            names = wheel.namelist()
        self.assertEqual([name for name in names if name.endswith(("twisted/__init__.py", "plugins/__init__.py"))], [])
        self.assertEqual([name for name in names if name.endswith("dropin.cache")], [])
        self.assertEqual([name for name in names if name.startswith(("tests/", "docs/", "bench/"))], [])

    def test_a_stale_build_folder_gets_into_a_wheel_so_tox_deletes_it(self) -> None:
        stale = self.tree / "build" / "lib" / "layer8" / "long_gone.py"
        stale.parent.mkdir(parents=True)
        stale.write_text("")
        with build(self.tree) as wheel:
            self.assertIn("layer8/long_gone.py", wheel.namelist())
        shutil.rmtree(self.tree / "build")
        with build(self.tree) as wheel:
            self.assertNotIn("layer8/long_gone.py", wheel.namelist())
        commands = [line.strip() for line in (ROOT / "tox.ini").read_text().splitlines()]
        deletes = [number for number, line in enumerate(commands) if "rmtree('{tox_root}/build'" in line]
        builds = [number for number, line in enumerate(commands) if "pip wheel" in line]
        self.assertEqual(len(builds), 1)
        self.assertIn(builds[0] - 1, deletes)

    def test_an_editable_install_shows_the_plugins(self) -> None:
        with build(self.tree, BUILD_EDITABLE) as wheel:
            paths = [name for name in wheel.namelist() if name.endswith(".pth")]
            self.assertEqual(len(paths), 1)
            self.assertEqual(wheel.read(paths[0]).decode().strip(), str(self.tree.resolve()))

    def test_what_the_wheel_asks_for(self) -> None:
        with build(self.tree) as wheel:
            (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
            headers = Parser().parsestr(wheel.read(metadata).decode())
        self.assertEqual(headers["Requires-Python"], ">=3.11")
        asked = [line for line in headers.get_all("Requires-Dist", []) if "extra ==" not in line]
        self.assertIn("autobahn[twisted]>=26.10.2", asked)
        for tool in ("hypothesis", "mypy", "ruff", "sphinx", "tox"):
            self.assertEqual([line for line in asked if line.lower().startswith(tool)], [])


class CountTests(SynchronousTestCase):
    """`.ci/count` reads what trial wrote; a wrong count there would hide a failure from everybody."""

    SKIP = "=" * 79 + "\n[SKIPPED]\nneeds haproxy (package haproxy)\n\ntests.{where}.test_x.XTests.test_a\n" + "-" * 79

    def count(self, log: str, status: int = 0) -> tuple[int, list[str]]:
        path = Path(self.mktemp())
        path.write_text(log)
        done = subprocess.run(
            [sys.executable, str(ROOT / ".ci" / "count"), str(path), str(status)], capture_output=True, text=True
        )
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout.splitlines()

    def test_all_pass(self) -> None:
        self.assertEqual(self.count("Ran 3 tests\n\nPASSED (successes=3)\n"), (0, ["3 passed, 0 failed, 0 skipped"]))

    def test_several_runs_are_added(self) -> None:
        log = "PASSED (skips=1, successes=3)\n\x1b[31mFAILED\x1b[0m (failures=1, errors=2, successes=4)\n"
        self.assertEqual(self.count(log, 1), (1, ["7 passed, 3 failed, 1 skipped"]))

    def test_an_unexpected_success_is_a_failure(self) -> None:
        self.assertEqual(self.count("FAILED (unexpectedSuccesses=1, successes=2)\n", 1)[0], 1)

    def test_no_test_is_a_failure(self) -> None:
        status, lines = self.count("nothing\n")
        self.assertEqual((status, lines[-1]), (1, "0 passed, 1 failed, 0 skipped"))

    def test_another_step_that_fails_is_a_failure(self) -> None:
        status, lines = self.count("PASSED (successes=3)\n", 1)
        self.assertEqual((status, lines[-1]), (1, "3 passed, 1 failed, 0 skipped"))

    def test_a_skipped_interop_test_is_a_failure(self) -> None:
        log = self.SKIP.format(where="interop") + "\nRan 4 tests\n\nPASSED (skips=1, successes=3)\n"
        status, lines = self.count(log)
        self.assertEqual((status, lines[-1]), (1, "3 passed, 1 failed, 1 skipped"))
        self.assertIn("tests.interop.test_x.XTests.test_a", lines[0])

    def test_another_skipped_test_is_not(self) -> None:
        log = self.SKIP.format(where="net") + "\nRan 4 tests\n\nPASSED (skips=1, successes=3)\n"
        self.assertEqual(self.count(log), (0, ["3 passed, 0 failed, 1 skipped"]))


class ReadmeTests(SynchronousTestCase):
    def commands(self) -> list[str]:
        return [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    ")]

    def test_the_first_command_ends_in_the_demo_and_the_second_in_tox(self) -> None:
        first, second, *_ = self.commands()
        self.assertTrue(first.endswith("layer8 demo"), first)
        self.assertTrue(second.endswith("tox"), second)

    def test_both_make_their_own_environment(self) -> None:
        for line in self.commands()[:2]:
            self.assertIn("python3 -m venv", line)

    def test_ci_runs_the_second_command(self) -> None:
        expression = "sed -n 's/^    \\(.*tox\\)$/\\1/p' README.md | head -n 1"
        self.assertIn(expression, (ROOT / ".ci" / "run").read_text())
        found = subprocess.run(["sh", "-c", expression], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        self.assertEqual(found, self.commands()[1])


class PeerTests(SynchronousTestCase):
    """Programs that tests talk to: named when they are missing, installed by CI."""

    def listed(self) -> list[str]:
        lines = (ROOT / ".ci" / "packages").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def test_the_list_is_sorted_and_says_nothing_twice(self) -> None:
        self.assertEqual(self.listed(), sorted(set(self.listed())))

    def test_ci_installs_the_list(self) -> None:
        script = (ROOT / ".ci" / "run").read_text()
        self.assertIn(".ci/packages", script)
        self.assertIn("policy-rc.d", script)

    def test_every_package_that_a_skip_names_is_installed_by_ci(self) -> None:
        reasons = []
        named = set()
        for path in (ROOT / "tests").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                called = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("SkipTest")
                assigned = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).split(".")[-1] == "skip"
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "missing":  # missing(program="package")
                    named |= {word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
                if called or assigned:
                    reasons += [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        text = "\n".join(reason for reason in reasons if isinstance(reason, str))
        named |= set(re.findall(r"(?:package |Debian's )([a-z0-9][a-z0-9.+-]+)", text))
        named -= set(re.findall(r"^[\w-]+", setup_cfg()["options.extras_require"]["test"], re.MULTILINE))
        self.assertIn("openssl", named)
        self.assertEqual(named - set(self.listed()), set())

    def test_what_no_package_holds_is_installed_from_the_list_that_its_skip_names(self) -> None:
        named = set()
        for path in (ROOT / "tests").rglob("*.py"):
            if path != Path(__file__):
                named |= set(re.findall(r"needs [\w.]+, which \.ci/run installs from (\S+\.txt)", path.read_text()))
        self.assertEqual(named, {".ci/crossbar.txt"})
        script = (ROOT / ".ci" / "run").read_text()
        for name in named:
            wanted = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
            self.assertTrue(wanted and all("==" in line for line in wanted), wanted)
            self.assertIn(f"install -q --disable-pip-version-check -r {name}", script)
            self.assertIn("export LAYER8_CROSSBAR=", script)

    def test_what_comes_from_npm_is_installed_as_it_is_locked(self) -> None:
        folder = ROOT / ".ci" / "npm"
        wanted = json.loads((folder / "package.json").read_text())["dependencies"]
        locked = json.loads((folder / "package-lock.json").read_text())["packages"]
        self.assertEqual({name: locked[f"node_modules/{name}"]["version"] for name in wanted}, wanted)
        for name, package in locked.items():
            self.assertTrue(not name or package["integrity"].startswith("sha512-"), name)
        script = (ROOT / ".ci" / "run").read_text()
        self.assertIn("npm ci ", script)
        self.assertIn("export LAYER8_NPM=", script)

    def test_ci_says_in_one_line_what_it_could_not_install(self) -> None:
        """Where nothing can be downloaded, or the program is not where it is said to be, nothing is tested at all."""
        tree = Path(tempfile.mkdtemp(prefix="l8-ci-"))
        self.addCleanup(shutil.rmtree, tree)
        shutil.copytree(ROOT / ".ci", tree / ".ci")
        (tree / ".ci" / "packages").write_text("# none\n")
        (tree / "README.md").write_text("    echo never; tox\n")
        nowhere = {
            **os.environ,
            "XDG_CACHE_HOME": str(tree / "cache"),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }
        nowhere.pop("PIP_FIND_LINKS", None)
        for crossbar, said in ("", "CI: Crossbar.io could not be installed"), ("/nowhere", "CI: LAYER8_CROSSBAR names"):
            ran = subprocess.run(
                ["bash", str(tree / ".ci" / "run")],
                env={**nowhere, "LAYER8_CROSSBAR": crossbar},
                capture_output=True,
                text=True,
                timeout=120,
            )
            self.assertEqual((ran.returncode, ran.stdout.splitlines()), (1, ["0 passed, 1 failed, 0 skipped"]))
            self.assertIn(said, ran.stderr)
