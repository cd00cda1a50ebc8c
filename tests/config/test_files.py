import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.config import files
from layer8.config.load import ConfigProblems, load_text
from layer8.config.state import identity, node_key


class SecretFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self.secret = self.folder / "a.secret"
        self.secret.touch(0o600)

    def why_not(self, path: Path | None = None, environ: dict[str, str] | None = None) -> str:
        return files.why_not(path or self.secret, "secret", environ or {}) or ""

    def test_private(self) -> None:
        self.assertEqual(self.why_not(), "")
        self.secret.chmod(0o400)
        self.assertEqual(self.why_not(), "")

    def test_others_can_read_or_write(self) -> None:
        for mode in (0o640, 0o604, 0o620, 0o602, 0o666, 0o601):
            self.secret.chmod(mode)
            self.assertIn("chmod 600", self.why_not(), oct(mode))

    def test_missing_or_no_file(self) -> None:
        self.assertIn("No such file", self.why_not(self.folder / "b"))
        self.assertIn("not a file", self.why_not(self.folder))
        self.assertIn("Not a directory", self.why_not(self.secret / "x"))

    def test_too_large(self) -> None:
        os.truncate(self.secret, files.SECRET_FILE + 1)
        self.assertIn("larger than", self.why_not())

    def test_behind_a_link(self) -> None:
        everybody = self.folder / "everybody"
        everybody.mkdir()
        (everybody / "x").touch(0o600)
        link = self.folder / "link"
        link.symlink_to(everybody / "x")
        self.assertEqual(self.why_not(link), "")
        everybody.chmod(0o777)
        self.assertIn("everybody can write", self.why_not(link))

    def test_credentials_by_name(self) -> None:
        credentials = self.folder / "credentials"
        credentials.mkdir()
        (credentials / "a.secret").touch()
        (credentials / "a.secret").chmod(0o440)
        environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
        found = files.resolve("a.secret", self.folder, environ, "secret")
        self.assertEqual(found, credentials / "a.secret")
        self.assertEqual(self.why_not(found, environ), "")
        self.assertEqual(files.forbidden(found, environ), 0o007)
        (credentials / "a.secret").chmod(0o444)
        self.assertIn("chmod", self.why_not(found, environ))
        self.assertEqual(files.resolve("./a.secret", self.folder, environ, "secret"), self.secret)
        self.assertEqual(files.resolve("b.secret", self.folder, environ, "secret"), self.folder / "b.secret")
        self.assertEqual(files.resolve("..", self.folder, environ, "secret"), self.folder.parent)

    def test_a_wrong_one_stops_the_configuration(self) -> None:
        self.secret.chmod(0o644)
        text = f'[[proxy.host]]\nhost = "a.example"\nsecret_file = "{self.secret}"\n'
        error = self.assertRaises(ConfigProblems, load_text, text, {}, {})
        self.assertIn("layer8.toml:3: proxy.host[0].secret_file", str(error))
        self.assertIn("chmod 600", str(error))

    def test_paths_with_a_nul_or_too_long(self) -> None:
        for bad in ("a\\u0000b", "x" * 5000):
            text = f'[[proxy.host]]\nhost = "a.example"\nsecret_file = "{bad}"\n'
            self.assertRaises(ConfigProblems, load_text, text, {}, {})

    def test_files_to_write(self) -> None:
        self.assertIsNone(files.why_not(self.folder / "log", "write", {}))
        self.assertIn("no folder", files.why_not(self.folder / "x" / "log", "write", {}) or "")
        self.assertIn("folder", files.why_not(self.folder, "write", {}) or "")
        self.assertRaises(ConfigProblems, load_text, f'[log]\nfile = "{self.folder}/x/log"\n', {}, {})
        for where in ("-", ""):
            self.assertEqual(load_text(f'[proxy]\naccess_log = "{where}"\n', {}, {}).config.proxy.access_log, where)

    def test_folder_of_a_socket(self) -> None:
        folder = tempfile.mkdtemp()  # short, wherever the tests run: a socket's path has at most 107 bytes
        self.addCleanup(os.rmdir, folder)
        load_text(f'[control]\nlisten = "unix:{folder}/x.sock"', {}, {})
        self.assertRaises(ConfigProblems, load_text, f'[control]\nlisten = "unix:{folder}/y/x.sock"', {}, {})


class KeyTests(SynchronousTestCase):
    def test_made_once_and_private(self) -> None:
        folder = Path(self.mktemp())
        key, certificate = node_key(folder), identity(folder, {}, name="proxy.example")
        self.assertEqual(node_key(folder).node_id, key.node_id)
        self.assertEqual(identity(folder, {}).pin, certificate.pin)
        for path in folder.iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path)

    def test_configured_pair(self) -> None:
        folder = Path(self.mktemp())
        made = identity(folder, {})
        path = folder / "control.pem"
        given = identity(Path("/nonexistent"), {}, key_file=str(path), cert_file=str(path))
        self.assertEqual(given.pin, made.pin)
