"""Host secrets: which are taken, how they are written, that they do not show."""

import hashlib
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.crypto.secret import HostSecret


class Secrets(SynchronousTestCase):
    def test_made(self) -> None:
        one, other = HostSecret.make(), HostSecret.make()
        self.assertEqual(len(one.value), 32)
        self.assertNotEqual(one.value, other.value)
        self.assertEqual(one.key, hashlib.sha256(one.value).digest())
        self.assertEqual(one.shown, one.key.hex()[:8])

    def test_refused(self) -> None:
        for value in (b"", bytes(range(31)), bytes(256) + b"1", bytes(range(256)) + b"1", b"\x07" * 32, b"abcdefg" * 6):
            with self.assertRaises(ConfigError) as caught:
                HostSecret(value)
            if value:
                self.assertNotIn(repr(value)[2:-1], str(caught.exception))

    def test_taken_at_the_edges(self) -> None:
        for value in (bytes(range(32)), bytes(range(256)), b"abcdefgh" * 4):
            self.assertEqual(HostSecret(value).value, value)

    def test_repr_hides(self) -> None:
        secret = HostSecret(b"0123456789abcdef0123456789abcdef")
        self.assertNotIn("0123456789abcdef", repr(secret))
        self.assertNotIn("0123456789abcdef", f"{secret}")

    @given(st.binary(min_size=32, max_size=256))
    def test_round_trip(self, value: bytes) -> None:
        if len(set(value)) < 8:
            return
        path = Path(self.mktemp()).absolute()
        HostSecret(value).save(path)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(HostSecret.load(path).value, value)

    def test_files_refused(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        for number, (content, mode, reason) in enumerate(
            (
                (b"", 0o600, "hex digits"),
                (b"00" * 32, 0o600, "byte values"),
                (b"0" * 63, 0o600, "hex digits"),
                (b"zz" * 32, 0o600, "hex digits"),
                (bytes(range(32)).hex().encode() + b"\n\nmore", 0o600, "hex digits"),
                (bytes(range(32)).hex().encode() + b"\n", 0o640, "chmod 600"),
                (bytes(range(32)).hex().encode() + b"\n", 0o604, "chmod 600"),
                (b"0" * 70_000, 0o600, "larger"),
            )
        ):
            path = folder / str(number)
            path.write_bytes(content)
            path.chmod(mode)
            with self.assertRaises(ConfigError) as caught:
                HostSecret.load(path)
            self.assertIn(reason, str(caught.exception))
            self.assertIn(str(path), str(caught.exception))

    def test_no_file(self) -> None:
        path = Path(self.mktemp())
        with self.assertRaises(ConfigError):
            HostSecret.load(path)
        os.mkfifo(path, 0o600)
        with self.assertRaises(ConfigError) as caught:
            HostSecret.load(path)
        self.assertIn("not a file", str(caught.exception))
