import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
from twisted.trial.unittest import SynchronousTestCase

from layer8.cli import main, run
from layer8.core.errors import ConfigError, Unavailable

LAYER8 = [sys.executable, "-c", "from layer8.cli.main import main; main()"]


def layer8(*words: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main.run(words)
    return code, out.getvalue(), err.getvalue()


class UsageTests(SynchronousTestCase):
    def test_help_names_every_command_and_imports_none(self) -> None:
        code, out, err = layer8("--help")
        self.assertEqual((code, err), (0, ""))
        for name in main.COMMANDS:
            if (Path(main.__file__).parent / f"{name}.py").exists():
                self.assertIn(f"  {name} ", out)
        found = subprocess.run(
            [sys.executable, "-X", "importtime", *LAYER8[1:], "--help"], capture_output=True, text=True, timeout=60
        )
        imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
        self.assertIn("layer8.cli.main", imported)
        self.assertFalse(imported & {"twisted", "rich", "cryptography", "autobahn", "attrs", "layer8.cli.init"})

    def test_every_command_of_the_table_can_be_imported(self) -> None:
        context = click.Context(main.layer8)
        group = main.layer8
        assert isinstance(group, click.Group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            self.assertEqual(command.name, name)

    def test_wrong_usage_is_2(self) -> None:
        for words in (["nope"], ["status", "--nope"], ["init", "a", "b"], ["--nope"], []):
            code, out, err = layer8(*words)
            self.assertEqual((code, out), (2, ""), words)
            self.assertNotIn("Traceback", err)
        self.assertEqual(len(layer8("status", "--nope")[2].splitlines()), 1)

    def test_version(self) -> None:
        import layer8 as package

        self.assertIn(package.__version__, layer8("--version")[1])


class FailureTests(SynchronousTestCase):
    def fail_with(self, error: BaseException, *words: str) -> tuple[int, str, str]:
        @click.command()
        def status() -> None:
            raise error

        self.patch(main, "import_module", lambda name: type("Module", (), {"status": status}))
        return layer8(*words, "status")

    def test_known_errors_are_one_line(self) -> None:
        for error, code, text in [
            (Unavailable("nobody is there; start it"), 1, "layer8: nobody is there; start it\n"),
            (ConfigError("wrong"), 2, "layer8: wrong\n"),
            (PermissionError(13, "Permission denied", "/x"), 1, "layer8: /x: Permission denied\n"),
            (click.ClickException("no"), 1, "layer8: no\n"),
            (KeyboardInterrupt(), 1, "\n"),
        ]:
            self.assertEqual(self.fail_with(error), (code, "", text))

    def test_a_bug_is_one_line_and_verbose_shows_more(self) -> None:
        code, _, err = self.fail_with(ZeroDivisionError("x"))
        self.assertEqual(code, 1)
        self.assertEqual(len(err.splitlines()), 1)
        self.assertIn("ZeroDivisionError in status (test_main.py:", err)
        self.patch(run, "show_log", lambda: None)
        code, _, err = self.fail_with(ZeroDivisionError("x"), "--verbose")
        self.assertIn("Traceback", err)

    def test_a_reader_that_leaves(self) -> None:
        environ = {**os.environ, "LAYER8_HOME": str(Path(self.mktemp()).resolve())}
        process = subprocess.Popen(
            [*LAYER8, "init"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        with process.stderr:
            self.assertEqual(process.stderr.read(), "")
        self.assertEqual(process.wait(30), 1)


class ReactorTests(SynchronousTestCase):
    def run_script(self, body: str) -> subprocess.Popen[str]:
        script = f"""
import sys
from layer8.cli.run import on_reactor
from layer8.core.errors import Unavailable
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
async def main(reactor):
{body}
print(on_reactor(main))
"""
        return subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def check(self, body: str, ending: Callable[[str, str], object]) -> None:
        out, err = self.run_script(body).communicate(timeout=60)
        ending(out, err)

    def test_result_and_error(self) -> None:
        self.check("    return 5", lambda out, err: self.assertEqual((out, err), ("5\n", "")))
        self.check(
            "    await deferLater(reactor, 0.01)\n    return 6",
            lambda out, err: self.assertEqual((out, err), ("6\n", "")),
        )
        self.check("    raise Unavailable('x')", lambda out, err: self.assertIn("Unavailable: x", err))

    def test_interrupt_cancels_and_cleans_up(self) -> None:
        process = self.run_script(
            "    print('begun', flush=True)\n"
            "    try:\n        await Deferred()\n"
            "    except CancelledError:\n        await deferLater(reactor, 0.1)\n"
            "        print('cleaned', flush=True)\n        raise"
        )
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), "begun\n")
        time.sleep(0.1)
        process.send_signal(2)
        out, err = process.communicate(timeout=30)
        self.assertEqual(out, "cleaned\n")
        self.assertIn("KeyboardInterrupt", err)
