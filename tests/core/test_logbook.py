import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import layer8
from layer8.core.logbook import EVENTS

LEVELS = {"debug", "info", "warn", "error", "critical", "failure", "emit"}
ROOT = Path(layer8.__file__).parent


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call that looks like one of twisted.logger: `something.log.info(...)`, `_log.warn(...)`."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                named = ast.unparse(node.func.value).rpartition(".")[2].strip("_")
                if named in ("log", "logger", "failures"):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


class EventTests(SynchronousTestCase):
    def test_every_logged_event_is_in_the_book(self) -> None:
        strangers = []
        for place, call in calls():
            words = [word.value for word in call.keywords if word.arg == "event"]
            names = [node.value for word in words for node in ast.walk(word) if isinstance(node, ast.Constant)]
            if not names or not all(name in EVENTS for name in names if isinstance(name, str)):
                strangers.append(f"{place}: {names or 'no event='}")
        self.assertEqual(strangers, [])

    def test_every_event_in_the_book_is_logged(self) -> None:
        sources = "".join(path.read_text() for path in ROOT.rglob("*.py") if path.name != "logbook.py")
        self.assertEqual([name for name in EVENTS if f'"{name}"' not in sources], [])
