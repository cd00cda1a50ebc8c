"""The wheel is the same for everybody who builds it, so that what an app takes from it can be compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.tunnel import integrity, manifest
from tests.names import ROOT
from tests.test_packaging import BUILD_WHEEL, can_build, copy_sources

EPOCH = "1800000000"


class WheelTests(SynchronousTestCase):
    def setUp(self) -> None:
        if not can_build():
            raise SkipTest("needs setuptools 71 or newer")

    def built(self, *, turned: bool) -> Path:
        """Build it in a folder of its own, with other times of files, and another order of them."""
        tree = Path(self.mktemp()).absolute()
        tree.mkdir()
        copy_sources(tree)
        if turned:
            shutil.move(tree / "layer8", tree / "moved")
            names = sorted((tree / "moved").rglob("*"), reverse=True)
            for path in [path for path in names if path.is_file()]:
                to = tree / "layer8" / path.relative_to(tree / "moved")
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to)
                os.utime(to, (1_000_000_000, 1_700_000_000))
            shutil.rmtree(tree / "moved")
        out = tree / "out"
        out.mkdir()
        words = ["sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, "-c", BUILD_WHEEL, str(out)]
        environ = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TZ": "Asia/Tokyo" if turned else "UTC"}
        done = subprocess.run(words, cwd=tree, env=environ, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        return out / done.stdout.splitlines()[-1]

    def test_built_twice(self) -> None:
        """L14: by two people, in two places."""
        first, second = self.built(turned=False), self.built(turned=True)
        with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
            self.assertEqual([info.filename for info in one.infolist()], [info.filename for info in other.infolist()])
            for info in one.infolist():
                self.assertEqual(one.read(info), other.read(info.filename), info.filename)
            for name in manifest.WHEEL:
                inside = one.read(f"layer8/web/tunnel/{name}")
                self.assertEqual(integrity.sri(inside), integrity.sri((ROOT / "layer8/web/tunnel" / name).read_bytes()))
        self.assertEqual(sha256(first.read_bytes()).hexdigest(), sha256(second.read_bytes()).hexdigest())
