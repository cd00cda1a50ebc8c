"""Run the suite in two lanes at once, as `python -m tests.lanes --temp-directory=DIR tests`, which tox does.

Half of the suite waits for other programs, so two processors do both halves in the time of one. The second lane has a
network namespace of its own: no test is given a port that a program of the other lane takes. Where that cannot be had
(it takes root), and for anything else than `tests`, there is one lane, which is trial itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAITING = ("tests.interop", "tests.resilience")
"""Packages that run other programs most of the time: the lane in the namespace."""

NETWORK = "ip link set lo up && ip address add 127.77.7.8/8 dev lo"
"""What is in the namespace: with nothing but 127.0.0.1, glibc looks up no name at all (AI_ADDRCONFIG)."""


NAME = re.compile(rb"tests(\.\w+)*\.test_\w+\.[A-Z]\w*\.test_\w+")


def lanes(names: list[str]) -> tuple[list[str], list[str]]:
    """Split what is to be run; the second lane is empty if it is not the whole suite or cannot be apart."""
    if names != ["tests"] or not apart():
        return names, []
    everything = [
        f"tests.{path.name}" for path in sorted((ROOT / "tests").iterdir()) if (path / "__init__.py").exists()
    ]
    modules = [f"tests.{path.stem}" for path in sorted((ROOT / "tests").glob("test_*.py"))]
    return [name for name in everything + modules if name not in WAITING], list(WAITING)


def apart() -> bool:
    """Say whether this process may make network namespaces."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    tried = subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return tried.returncode == 0


def trial(folder: str, names: list[str]) -> list[str]:
    """Give the command of one lane."""
    return [sys.executable, "-m", "twisted.trial", f"--temp-directory={folder}", *names]


def passed_on(said: Iterable[bytes], failed: list[str]) -> None:
    """Print what a lane says, and keep the names of tests by which trial ends what it tells of each failure."""
    for line in said:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        if NAME.fullmatch(line.strip()):
            failed.append(line.decode().strip())


def main(words: list[str]) -> int:
    """Run; what the second lane says comes after the first has ended, and last of all which tests have failed."""
    options = [word for word in words if word.startswith("--temp-directory=")]
    folder = options[-1].partition("=")[2] if options else "_trial_temp"
    first, second = lanes([word for word in words if word not in options])
    if not second:
        return subprocess.call(trial(folder, first))
    failed: list[str] = []
    with tempfile.TemporaryFile() as said:
        inside = ["unshare", "--net", "sh", "-c", f'{NETWORK} && exec "$@"', "sh"]
        other = subprocess.Popen([*inside, *trial(f"{folder}-2", second)], stdout=said, stderr=subprocess.STDOUT)
        try:
            with subprocess.Popen(trial(folder, first), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as lane:
                assert lane.stdout is not None
                passed_on(lane.stdout, failed)
            code = other.wait() or lane.returncode
        finally:
            if other.poll() is None:
                other.terminate()
                other.wait()
            said.seek(0)
            passed_on(said, failed)
            print(*(f"failed: {name}" for name in failed), sep="\n", flush=True)
    return code


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(sys.argv[1:]))
