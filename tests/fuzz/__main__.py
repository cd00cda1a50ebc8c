"""Run every test module that uses Hypothesis, as `python -m tests.fuzz [options of trial]`; see `tox -e fuzz`."""

import sys
from pathlib import Path

from twisted.scripts.trial import run

ROOT = Path(__file__).parents[2]


def modules() -> list[str]:
    """Give the modules below `tests` that import Hypothesis, by their dotted names."""
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if "from hypothesis import" in path.read_text()]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found)


if __name__ == "__main__":
    sys.argv = ["trial", *sys.argv[1:], *modules()]
    run()
