"""Hidden services by the programs that people have: curl, git, ssh and netcat, through a network of real nodes."""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.cli.test_main import LAYER8
from tests.interop.daemons import Program, answers, folder, found, free_port, missing, until
from tests.interop.hideout import Hide, git, offered, tracker
from tests.interop.stage import MIB, sha256
from tests.interop.test_demo_tour import curl, demo, layer8, run
from tests.interop.test_socks_ssh import ssh_words

CROWD = 100


def refused(url: str, socks: str = "") -> int:
    """Let curl ask for what it does not get; give the code of the SOCKS port."""
    words = ["curl", "-q", "-sS", "--noproxy", "", "--socks5-hostname", socks or demo().socks, "-o", "/dev/null", url]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    code = re.search(r"\((\d+)\)\s*$", ran.stderr)
    if ran.returncode != 97 or code is None:
        raise AssertionError(f"{url}: curl ended with {ran.returncode}: {ran.stderr}")
    return int(code[1])


class CurlTests(SynchronousTestCase):
    skip = missing(curl="curl", nginx="nginx", sshd="openssh-server")

    def test_by_address(self) -> None:
        web = offered()
        digest = web.sums["1k"]
        self.assertEqual(hashlib.sha256(curl(f"{web.url}/1k")).hexdigest(), digest)
        # Labels in front are the service's business, and so is how the letters are written.
        labels = web.url.replace("http://", "http://www.")
        self.assertEqual(hashlib.sha256(curl(f"{labels}/1k")).hexdigest(), digest)
        shouted = f"http://{web.hide.address.partition('.')[0].upper()}.l8.alt"
        self.assertEqual(hashlib.sha256(curl(f"{shouted}/1k")).hexdigest(), digest)

    def test_bulk_both_ways(self) -> None:
        web, home = offered(), folder(self)
        curl("-o", str(home / "got"), f"{web.url}/16m")
        self.assertEqual(sha256(home / "got"), web.sums["16m"])
        curl("-T", str(web.nginx.files / "16m"), f"{web.url}/up/hidden")
        self.assertEqual(sha256(web.nginx.uploads / "hidden"), web.sums["16m"])

    def test_a_crowd(self) -> None:
        web, home = offered(), folder(self)
        many = ("--no-progress-meter", "--parallel", "--parallel-immediate", "--parallel-max", "40")
        curl(*many, "-o", f"{home}/#1", f"{web.url}/1k?[1-{CROWD}]")
        self.assertEqual([sha256(home / str(n)) for n in range(1, CROWD + 1)], [web.sums["1k"]] * CROWD)

    def test_by_name(self) -> None:
        """G53: a name that only this user knows, given to an address, a magnet link, and a service's own file."""
        web = offered()
        for name, what in (("by-address", web.hide.address), ("by-magnet", web.hide.told["magnet"])):
            shown = re.match(rf"{name}~([a-z2-7]+) is pinned to", layer8("name", "pin", name, what))
            assert shown is not None
            for host in (name, f"{name}~{shown[1]}", f"{name}--{shown[1]}"):
                got = curl(f"http://{host}.l8.alt/1k")
                self.assertEqual(hashlib.sha256(got).hexdigest(), web.sums["1k"], host)
        layer8("name", "pin", "by-file", web.hide.told["file"])
        self.assertEqual(hashlib.sha256(curl("http://by-file.l8.alt/1k")).hexdigest(), web.sums["1k"])

    def test_what_is_not_there(self) -> None:
        address = offered().hide.address
        wrong = ("b" if address[0] == "a" else "a") + address[1:]
        self.assertEqual(refused(f"http://{wrong}/"), 0xF6)
        self.assertEqual(refused("http://n\N{CYRILLIC SMALL LETTER A}me.l8.alt/"), 0xF6)
        self.assertEqual(refused("http://nobody-has-this-name.l8.alt/"), 0xF0)
        # A good address that nobody publishes.
        self.assertEqual(refused("http://" + layer8_address() + "/"), 0xF0)
        # A port that the service does not have: it says no itself, and its other ports are there as before.
        self.assertEqual(refused(f"http://{address}:81/"), 5)
        self.assertEqual(len(curl(f"http://{address}/1k")), 1024)


def layer8_address() -> str:
    """Give an address whose key nobody has used."""
    from layer8.crypto.keys import NodeKey
    from layer8.rendezvous.address import DOMAIN, address_text

    return address_text(NodeKey.make().node_id) + DOMAIN


class GitTests(SynchronousTestCase):
    skip = missing(git="git", nginx="nginx", sshd="openssh-server")

    def test_clone(self) -> None:
        web, home = offered(), folder(self)
        (home / "work").mkdir()
        git(home / "work", "init", "-q", ".")
        (home / "work" / "data").write_bytes(os.urandom(MIB))
        git(home / "work", "add", "data")
        git(home / "work", "commit", "-qm", "Add data")
        bare = web.nginx.files / "repo.git"
        git(home, "clone", "-q", "--bare", "work", str(bare))
        git(bare, "update-server-info")
        proxy = f"http.proxy=socks5h://{demo().socks}"
        git(home, "-c", proxy, "clone", "-q", f"{web.url}/repo.git", "cloned")
        self.assertEqual(sha256(home / "cloned" / "data"), sha256(home / "work" / "data"))
        self.assertEqual(git(home / "cloned", "rev-parse", "HEAD"), git(home / "work", "rev-parse", "HEAD"))


class SshTests(SynchronousTestCase):
    skip = missing(sshd="openssh-server", ssh="openssh-client", nc="netcat-openbsd", nginx="nginx")

    def test_through_netcat(self) -> None:
        web = offered()
        body = os.urandom(4 * MIB)
        way = f"ProxyCommand={found('nc')} -X 5 -x {demo().socks} %h %p"
        answer = run(*ssh_words(web.keys), "-o", way, web.hide.address, "sha256sum", said=body)
        self.assertEqual(answer.split()[0].decode(), hashlib.sha256(body).hexdigest())

    def test_through_a_tunnel(self) -> None:
        """`2222>ADDRESS.l8.alt>22`, for programs that know of no SOCKS."""
        web = offered()
        port = free_port()
        layer8("tunnel", f"{port}>{web.hide.address}>22")
        answer = run(*ssh_words(web.keys), "-p", str(port), "127.0.0.1", "cat", said=b"words " * 1000)
        self.assertEqual(answer, b"words " * 1000)


class ResourceTests(SynchronousTestCase):
    skip = missing(nc="netcat-openbsd")

    def read(self, resource: str) -> bytes:
        port = free_port()
        layer8("tunnel", f"{port}>{resource}")
        return run("nc", "-N", "127.0.0.1", str(port))

    def test_a_file_by_its_hash(self) -> None:
        """G39: whoever has 40 hex digits reads the file, and nothing else is said on the way."""
        home = folder(self)
        body = os.urandom(3 * MIB + 1)
        (home / "report.pdf").write_bytes(body)
        hide = Hide.start(self, f"file:{home / 'report.pdf'}")
        resource = hide.told["resource"]
        self.assertRegex(resource, r"\A[0-9a-f]{40}\Z")
        for _ in range(2):
            self.assertEqual(hashlib.sha256(self.read(resource)).digest(), hashlib.sha256(body).digest())

    def test_a_folder(self) -> None:
        """A web server of files, at port 80 for browsers; and by its hash at the one port of a resource."""
        home = folder(self)
        (home / "site" / "deeper").mkdir(parents=True)
        body = os.urandom(MIB)
        (home / "site" / "index.html").write_text("<h1>a folder</h1>")
        (home / "site" / "deeper" / "data").write_bytes(body)
        (home / "secret").write_text("outside")
        hide = Hide.start(self, f"dir:{home / 'site'}")
        self.assertEqual(curl(f"http://{hide.address}/"), b"<h1>a folder</h1>")
        digest = hashlib.sha256(body).digest()
        self.assertEqual(hashlib.sha256(curl(f"http://{hide.address}/deeper/data")).digest(), digest)
        self.assertEqual(curl("-r", "5-9", f"http://{hide.address}/deeper/data"), body[5:10])
        outside = run("curl", "-q", "-s", "--socks5-hostname", demo().socks, "--noproxy", "", "--path-as-is",
                      f"http://{hide.address}/../secret")  # fmt: skip
        self.assertNotIn(b"outside", outside)
        port = free_port()
        layer8("tunnel", f"{port}>{hide.told['resource']}")
        got = run("curl", "-q", "-sS", "--fail", "--noproxy", "*", f"http://127.0.0.1:{port}/deeper/data")
        self.assertEqual(hashlib.sha256(got).digest(), digest)


class KnownClientTests(SynchronousTestCase):
    skip = missing(curl="curl", openssl="openssl", nginx="nginx", sshd="openssh-server")

    def client(self, address: str, key: Path) -> str:
        """Start a node that shows itself to the service with a key; gives its SOCKS port."""
        home, port = folder(self), free_port()
        (home / "layer8.toml").write_text(
            f"[relay]\nnetwork = {json.dumps(demo().network)}\npeers = [{json.dumps(tracker())}]\nrelay = false\n"
            "listen = []\n[control]\nlisten = []\n"
            f'[socks]\nlisten = ["tcp:{port}:interface=127.0.0.1"]\n'
            f'[visit.web]\naddress = "{address}"\nclient_key = "{key}"\n'
        )
        words = [*LAYER8, "up", "--config", str(home / "layer8.toml")]
        Program.start(self, "up", words, home, {"LAYER8_HOME": str(home)}, lambda one: "Ctrl-C" in one.said())
        return f"127.0.0.1:{port}"

    def key(self, path: Path) -> str:
        """Make a key with openssl, and write its public half as a file of clients has it."""
        run("openssl", "genpkey", "-algorithm", "x25519", "-out", str(path))
        path.chmod(0o600)
        public = run("openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER")[-32:]
        return base64.b32encode(public).decode().rstrip("=").lower()

    def test_with_a_key_and_without(self) -> None:
        """G54: a stranger with the address learns nothing but that he is not let in."""
        home, nginx = folder(self), offered().nginx
        known, other = home / "known.pem", home / "other.pem"
        (home / "clients").write_text(f"friend = {self.key(known)}\n")
        self.key(other)
        hide = Hide.start(self, f"localhost:{nginx.plain}", "--client-auth", str(home / "clients"), "--name", "closed")
        url = f"http://{hide.address}/1k"
        socks = self.client(hide.address, known)
        words = ["curl", "-q", "-sS", "--fail", "--noproxy", "", "--socks5-hostname", socks, url]
        until("the friend is let in", lambda: subprocess.run(words, capture_output=True, timeout=60).returncode == 0)
        self.assertEqual(hashlib.sha256(run(*words)).hexdigest(), offered().sums["1k"])
        self.assertEqual(refused(url), 0xF4)
        wrong = self.client(hide.address, other)
        self.assertEqual(refused(url, wrong), 0xF5)


class LifeTests(SynchronousTestCase):
    skip = missing(curl="curl")

    def test_ctrl_c_and_back(self) -> None:
        """`layer8 hide` ends clean, and its address is the same the next time."""
        home = folder(self)
        (home / "page").write_text("hidden\n")
        first = Hide.start(self, f"file:{home / 'page'}", home=home)
        first.program.process.send_signal(signal.SIGINT)
        self.assertEqual(first.program.process.wait(20), 0)
        self.assertNotIn("Traceback", first.program.said())
        again = Hide.start(self, f"file:{home / 'page'}", home=home)
        self.assertEqual((again.address, again.told["made"]), (first.address, False))


class PortTests(SynchronousTestCase):
    skip = missing(nginx="nginx", sshd="openssh-server")

    def test_nothing_listens(self) -> None:
        """G40: the node of a service that is hidden takes connections nowhere, on no protocol."""
        web = offered()
        pid = web.hide.program.pid
        sockets = set()
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(path))
        listening = []
        for kind, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
            for line in Path(f"/proc/{pid}/net", kind).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == state and f"socket:[{words[9]}]" in sockets:
                    listening.append((kind, words[1]))
        self.assertEqual(listening, [])
        # And what is behind it is there for this machine alone.
        self.assertTrue(answers(web.nginx.plain))
        self.assertEqual(outside(web.nginx.plain), [])


def outside(port: int) -> list[str]:
    """Give the addresses of this machine, loopback aside, at which a port answers."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    return [host for host in (*found, "127.0.0.2") if answers(port, host)]
