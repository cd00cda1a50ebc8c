import os
import random
import tomllib
from pathlib import Path

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.config import load
from layer8.config.load import ConfigProblems, Loaded, load_text
from layer8.config.template import template
from layer8.config.tree import Config
from layer8.core.errors import ConfigError
from layer8.crypto.password import hashed

HERE = Path("/etc/layer8/layer8.toml")


def read(text: str, environ: dict[str, str] | None = None, role: str = "proxy", **options: object) -> Loaded:
    named = {key.replace("__", "."): value for key, value in options.items()}
    return load_text(text, environ or {}, named, role=role, path=HERE)


class ConfigCase(SynchronousTestCase):
    def problems(self, text: str, environ: dict[str, str] | None = None, **options: object) -> list[str]:
        error = self.assertRaises(ConfigProblems, read, text, environ, **options)
        lines = [str(problem) for problem in error.problems]
        self.assertEqual(str(error).splitlines(), lines)
        self.assertIsInstance(error, ConfigError)
        return lines

    def refused(self, text: str, *words: str) -> None:
        lines = self.problems(text)
        self.assertEqual(len(lines), 1, lines)
        for word in words:
            self.assertIn(word, lines[0])


class DefaultTests(ConfigCase):
    def test_nothing_gives_defaults_on_loopback(self) -> None:
        config = read("").config
        self.assertEqual(attrs.evolve(config, control=Config().control), Config())
        for text in (*config.control.listen, *config.proxy.http, *config.proxy.agents, *config.proxy.data):
            self.assertIn("interface=127.0.0.1", text)

    def test_control_port_of_each_role(self) -> None:
        for role, port in [("proxy", 9752), ("agent", 9753), ("node", 9751), ("revproxy", 9759)]:
            self.assertEqual(read("", role=role).config.control.listen, (f"tcp:{port}:interface=127.0.0.1",))
            written = read('[control]\nlisten = ["tls:PORT", "unix:/tmp/PORT"]', role=role).config.control.listen
            self.assertEqual(written, (f"tls:{port}", "unix:/tmp/PORT"))

    def test_template_changes_nothing(self) -> None:
        self.assertEqual(read(template()).config, read("").config)

    def test_template_shows_every_key_with_its_default(self) -> None:
        bare = "\n".join(
            line.removeprefix("#")
            for line in template().splitlines()
            if not line.startswith("# ")
            and not line.startswith(("#[[", "#host =", "#target", "#[service.", "#[visit."))
        )
        cut = bare.index('secret_file = ""', bare.index("[proxy]"))
        found = read(bare[:cut])
        self.assertEqual(found.config, read("").config)
        self.assertEqual({origin.kind for key, origin in found.origins.items() if key.startswith("log.")}, {"file"})
        for word in ("[proxy.limits]", "#[service.NAME]", "#[[proxy.host]]", "#[[agent.host]]", "#half_closed = 60.0"):
            self.assertIn(word, template())
        tomllib.loads(template().replace("#[[", "[["))


class NamedTests(ConfigCase):
    """Tables with names: `[service.NAME]`, `[visit.NAME]`."""

    TEXT = (
        '[service.blog]\nports = { 80 = "localhost:8080" }\n[service.file-2]\nports = {1 = "file:a"}\npublic = true\n'
    )

    def test_each_has_its_defaults(self) -> None:
        loaded = read(self.TEXT)
        self.assertEqual(list(loaded.config.service), ["blog", "file-2"])
        self.assertEqual(loaded.config.service["blog"].ports, {80: "localhost:8080"})
        self.assertFalse(loaded.config.service["blog"].public)
        rows = load.show(loaded)
        self.assertEqual(
            (rows["service.file-2.public"]["value"], rows["service.blog.public"]["origin"]), (True, "default")
        )
        self.assertTrue(str(rows["service.file-2.public"]["where"]).endswith(":5"))

    def test_by_the_environment_and_by_an_option(self) -> None:
        config = read("", {"LAYER8_SERVICE__BLOG__PORTS": '{80 = "localhost:1"}'}).config
        self.assertEqual(config.service["blog"].ports, {80: "localhost:1"})
        options = load.as_options(read(self.TEXT).config)
        self.assertEqual(load_text("", {}, options, role="proxy").config, read(self.TEXT).config)

    def test_they_count_as_one_key(self) -> None:
        self.assertEqual(load.diff(read("").config, read(self.TEXT).config), load.Changes(("service",), ()))

    def test_wrong_ones(self) -> None:
        good = 'ports = {80 = "localhost:1"}'
        self.refused(f"[service.Blog]\n{good}", "service.Blog", "a to z", ":1:")
        self.refused(f"[service.{'a' * 33}]\n{good}", "32 at most")
        self.refused(f"[service.blog]\n{good}\nkeys = 'a'", "service.blog.keys", "service.blog.key", ":3:")
        self.refused("[service.blog]", "service.blog.ports", "needs a port")
        self.refused("[service]\nblog = 3", "it has to be a table, [service.blog]")
        self.refused("service = 3", "[service.NAME]")
        self.refused("[[service]]\nblog = 3", "[service.NAME]")
        self.refused(f"[service.blog]\n{good}\nallow = ['x']", "service.blog.allow")
        for ports in ("{0 = 'a:1'}", "{80 = ''}"):
            self.refused(f"[service.blog]\nports = {ports}", "service.blog.ports")
        ident = "a" * 52
        self.refused(f"[service.blog]\n{good}\nallow = '{ident}'\ndeny = '{ident}'", "is in allow too")
        self.assertEqual(len(self.problems("[visit.blog]\nidentity = ''")), 2)


class PrecedenceTests(ConfigCase):
    TEXT = '[proxy]\nhttp = "tcp:1"\nhttps = "tcp:2"\ndata = "tcp:3"\n'

    def test_option_then_environment_then_file_then_default(self) -> None:
        found = read(
            self.TEXT,
            {"LAYER8_PROXY__HTTP": "tcp:11", "LAYER8_PROXY__HTTPS": "tcp:12"},
            proxy__http="tcp:21",
        )
        proxy = found.config.proxy
        self.assertEqual((proxy.http, proxy.https, proxy.data), (("tcp:21",), ("tcp:12",), ("tcp:3",)))
        rows = load.show(found)
        self.assertEqual(
            [
                (rows[f"proxy.{key}"]["origin"], rows[f"proxy.{key}"]["where"])
                for key in ("http", "https", "data", "name")
            ],
            [
                ("option", "--http"),
                ("environment", "LAYER8_PROXY__HTTPS"),
                ("file", "/etc/layer8/layer8.toml:4"),
                ("default", ""),
            ],
        )

    def test_one_text_and_a_list_are_the_same(self) -> None:
        self.assertEqual(read('[proxy]\nhttp = "tcp:1"').config, read('[proxy]\nhttp = ["tcp:1"]').config)

    def test_empty_text_is_off(self) -> None:
        self.assertEqual(read('[proxy]\nhttp = ""').config.proxy.http, ())
        self.assertEqual(read("", proxy__http="").config.proxy.http, ())

    def test_environment_types(self) -> None:
        found = read(
            "",
            {
                "LAYER8_PROXY__LEGACY_OPEN": "yes",
                "LAYER8_PROXY__LIMITS__IDLE": "7.5",
                "LAYER8_PROXY__DRAIN_S": "5",
                "LAYER8_PROXY__HTTP": '["tcp:1", "tcp:2"]',
                "LAYER8_PROXY__HOST": '[{host = "a.example", target = "tcp:127.0.0.1:1", ports = [80]}]',
                "LAYER8_HOME": "/x",
                "LAYER8_FUZZ": "big",
            },
        ).config.proxy
        self.assertEqual(
            (found.legacy_open, found.limits.idle, found.drain_s, found.http, found.host[0].ports),
            (True, 7.5, 5, ("tcp:1", "tcp:2"), (80,)),
        )

    def test_hosts_by_option(self) -> None:
        host = {"host": "a.example", "target": "tcp:127.0.0.1:1"}
        self.assertEqual(read("", proxy__host=[host]).config.proxy.host[0].host, "a.example")

    def test_windows_line_ends(self) -> None:
        found = read('[proxy]\r\n\r\nname = "a.example"\r\n')
        self.assertEqual(found.origins["proxy.name"].where, f"{HERE}:3")


class ProblemTests(ConfigCase):
    def test_all_in_one_go_with_file_line_key_value_and_reason(self) -> None:
        lines = self.problems(
            '[proxy]\nhtp = "x"\nhttp = ["tcp:80", "tcp:99999"]\nworkers = 999\n'
            '[proxy.limits]\nidle = "1h"\n[[proxy.host]]\nhost = "a.example"\ntarget = "tcp:1.2.3.4"\n[prxy]\n',
            {"LAYER8_LOG__LEVEL": "loud"},
            proxy__drain_s="soon",
        )
        wanted = [
            "layer8.toml:10: prxy: unknown section; the nearest known one is proxy",
            "LAYER8_LOG__LEVEL: log.level = 'loud': it has to be one of debug, info, warn, error",
            "layer8.toml:2: proxy.htp: unknown key; the nearest known one is proxy.http",
            "layer8.toml:3: proxy.http = ['tcp:80', 'tcp:99999']: 'tcp:99999': port has to be",
            "layer8.toml:4: proxy.workers = 999: it has to be from 1 to 256",
            "--drain-s: proxy.drain_s = 'soon': it has to be a whole number",
            "layer8.toml:6: proxy.limits.idle = '1h': it has to be a number, not text",
            "layer8.toml:9: proxy.host[0].target = 'tcp:1.2.3.4': tcp: needs host and port",
        ]
        self.assertEqual(len(lines), len(wanted), lines)
        for line, words in zip(lines, wanted, strict=True):
            self.assertIn(words, line)

    def test_a_secret_in_the_wrong_place_is_not_repeated(self) -> None:
        lines = self.problems('[[proxy.host]]\nhost = "a.example"\nsecret = "hunter2hunter2"\n')
        self.assertNotIn("hunter2", "".join(lines))
        self.assertIn("secret_file", lines[0])

    def test_types(self) -> None:
        self.refused("[proxy]\nname = 1", "it has to be text, not a whole number")
        self.refused("[proxy]\ndrain_s = 1.5", "it has to be a whole number, not a number")
        self.refused("[proxy]\ndrain_s = true", "it has to be a whole number, not true or false")
        self.refused("[proxy]\nlegacy_open = 1", "it has to be true or false")
        self.refused("[proxy]\nhttp = [1]", "item 1: it has to be text")
        self.refused("[proxy]\nhttp = ['']", "item 1 is empty")
        self.refused("[proxy]\nname = 1979-05-27", "not a date")
        self.refused("[proxy.limits]\nidle = nan", "finite")
        self.refused("[proxy.limits]\nidle = inf", "finite")
        self.refused("[proxy]\nunknown = 'drop'", "one of close, answer")
        self.refused("proxy = 1", "it has to be a table, [proxy]")
        self.refused("[proxy.host]\nhost = 'a'", "it has to be an array of tables, [[proxy.host]]")
        self.refused("[proxy]\nlimits = [{}]", "it has to be a table")
        self.refused("[log.level]\nx = 1", "{...}", "one of debug")
        self.refused("[[proxy]]", "it has to be a table")

    def test_ranges(self) -> None:
        self.refused("[proxy]\npublic_http = 65536", "from 0 to 65535")
        self.refused("[proxy.limits]\nsniffing = 0", "from 1 to")
        self.refused("[log]\nblur = -1", "from 0 to 86400")
        self.refused("[proxy]\ndrain_s = 9223372036854775808", "too large")

    def test_a_debug_port_for_everybody(self) -> None:
        self.refused("[debug]\nlisten = 'tcp:9009'", "beyond this machine")

    def test_a_socks_port_for_everybody(self) -> None:
        for listen in ("tcp:1080", "tcp:1080:interface=192.0.2.1", "tcp6:1080"):
            self.refused(f"[socks]\nlisten = ['{listen}']", "socks.listen", "a password is needed")
            read(f"[socks]\nlisten = ['{listen}']\npassword = 'geheim'")
        read("[socks]\nlisten = ['tcp:1080:interface=127.0.0.1', 'unix:/run/layer8.socks']")

    def test_networks_and_hosts(self) -> None:
        self.refused("[proxy]\nallow = ['10.0.0.1/8']", "10.0.0.1/8")
        self.refused("[proxy]\ndeny = ['nowhere']", "nowhere")
        self.refused("[proxy]\nname = '127.0.0.1'", "address")
        self.refused("[proxy]\nname = 'a_b.example'", "no host name")
        self.refused("[proxy]\ndata_public = 'example.org'", "host:port")
        for bad in ("", "*.com", "*.*.example.org", "a b", "127.0.0.1", "a" * 64 + ".example"):
            self.refused(f"[[proxy.host]]\nhost = '{bad}'\ntarget = 'tcp:127.0.0.1:1'", "proxy.host[0].host")
        read("[[proxy.host]]\nhost = '*.Bücher.example'\ntarget = 'tcp:127.0.0.1:1'")

    def test_exits(self) -> None:
        self.refused("[relay]\nexit = ['accept *:80', 'accept *:99999']", "relay.exit", "rule 2", "'accept *:99999'")
        self.refused("[relay]\nexit = 'on'", "relay.exit", "'on'")
        self.refused(f"[relay.lan_targets]\n{'a' * 52} = 'nas'", "relay.lan_targets", "nas")
        self.refused("[relay]\nallow_loopback = true", "relay.allow_loopback", "begins with demo or test")
        read("[relay]\nexit = 'reduced'\nallow_loopback = true\nnetwork = 'demo-1'")
        read("[relay]\nexit = ['reject 9.9.9.0/24:*', 'accept *:22']")
        read(f"[relay.lan_targets]\n{'a' * 52} = 'nas:22,[fd00::2]:80'")

    def test_plain_text_stays_on_this_machine(self) -> None:
        self.refused('[control]\nlisten = "tcp:9752"', "plain text", "tls:")
        self.refused('[proxy]\nagents = "tcp:9081:interface=0.0.0.0"', "plain text")
        read('[control]\nlisten = "tls:9752"\n[proxy]\nagents = "tls:9081"')
        self.refused('[agent]\nservers = "ws://proxy.example:9081"', "plain text", "wss://")
        read('[agent]\nservers = "ws://proxy.example:9081"\nlegacy = true')
        read('[agent]\nservers = ["ws://[::1]:9081", "ws://localhost:1"]')

    def test_server_urls(self) -> None:
        pin = "A" * 43
        read(f'[agent]\nservers = ["wss://a.example:1?pin={pin}", "wss://1.2.3.4/agent?pin={pin},{pin}"]')
        for bad in (
            "https://a.example",
            "wss://",
            "wss://a.example:0",
            "wss://a.example:99999",
            "wss://user:pw@a.example",
            "wss://a.example/#x",
            "wss://a.example?pin=short",
            "wss://a.example?pni=" + pin,
            "wss://a.example?pin",
            f"ws://127.0.0.1:1?pin={pin}",
            "wss://[::1",
        ):
            self.refused(f'[agent]\nservers = "{bad}"', "agent.servers")

    def test_ways_out(self) -> None:
        for good in ("", "tor:", "tor:127.0.0.1:9050", "connect:proxy.example:3128", "socks5:[::1]:1080"):
            read(f'[agent]\nvia = "{good}"')
        for bad in ("http:x:1", "connect:", "connect:x", "socks5:x:0", "socks5:u:p@x:1", "direct"):
            self.refused(f'[agent]\nvia = "{bad}"', "agent.via")

    def test_keys_that_do_not_go_together(self) -> None:
        self.refused("[proxy.limits]\nsniffing = 10", "layer8.toml:1: proxy.limits.per_source_sniffing = 200")
        self.refused("[proxy.limits]\ncall_step = 9", "layer8.toml:2: proxy.limits.call_step")
        self.refused("[agent]\nretry_min = 60", "agent.retry_min")
        self.refused('[[proxy.host]]\nhost = "a.example"', "either secret_file", ":1:")
        self.refused('[[agent.host]]\nhost = "a.example"\ntargets = {80 = "tcp:127.0.0.1:1"}', "secret is needed")
        twice = '[[proxy.host]]\nhost = "a.example"\ntarget = "tcp:127.0.0.1:1"\n' * 2
        self.refused(twice, "layer8.toml:5: proxy.host[1].host = 'a.example': this host is registered twice")
        self.refused('[proxy]\nlegacy_open = true\n[control]\nlisten = "tls:1"', "proxy.legacy_open")

    def test_tls_that_ends_without_a_certificate(self) -> None:
        ends = '[[proxy.host]]\nhost = "a.example"\ntarget = "tcp:127.0.0.1:1"\ntls = "terminate"\n'
        self.refused(ends, "proxy.host[0].tls = 'terminate': there is no certificate to show")
        self.refused('[proxy]\nacme = "http://ca.example/dir"\n', "write the authority's directory URL, https://...")

    def test_users(self) -> None:
        host = '[[proxy.host]]\nhost = "a.example"\ntarget = "tcp:127.0.0.1:1"\n'
        users = f'users = ["alice:{hashed("secret")}"]\n'
        self.refused(host + users, "proxy.host[0].users")
        self.refused(host + 'mode = "proxy"\nusers = ["alice:secret"]\n', "user 'alice' has no hash")
        (row,) = load_text(f'[proxy]\nmode = "proxy"\n{host}{users}', {}, {}, role="proxy").config.proxy.host
        self.assertEqual(row.users[0][:15], "alice:$scrypt$l")

    def test_targets(self) -> None:
        for bad in ("{ 0 = 'tcp:a:1' }", "{ http = 'tcp:a:1' }", "{ 80 = 'a' }", "{ 80 = '' }", "{ 80 = 1 }", "'x'"):
            lines = self.problems(f'[[agent.host]]\nhost = "a.example"\ntargets = {bad}')
            self.assertTrue(any("agent.host[0].targets" in line for line in lines), lines)

    def test_environment(self) -> None:
        lines = self.problems("", {"LAYER8_PROXI__HTTP": "x", "LAYER8_PROXY__HTPS": "y", "LAYER8_LOG__LEVEL__X": "z"})
        self.assertEqual(len(lines), 3, lines)
        self.assertTrue(any("LAYER8_PROXI__HTTP" in line and "proxy" in line for line in lines))
        self.assertTrue(any("LAYER8_PROXY__HTPS: proxy.htps: unknown key" in line for line in lines))
        self.problems("log = {level = 'info'}", {"LAYER8_LOG__LEVEL__X": "z"})
        self.problems("", {"LAYER8_PROXY__HOST": "[{host="})
        self.problems("", {"LAYER8_PROXY__": "x"})
        self.problems("", {"LAYER8___HTTP": "x"})

    def test_not_toml(self) -> None:
        self.refused('[proxy]\nhttp = "tcp:80\n', "layer8.toml:2:")
        self.refused("[proxy\n", "layer8.toml:1:")
        self.refused("[proxy]\n[proxy]\n", "layer8.toml:2:")
        self.refused("x = 1" + "0" * 5000, "layer8.toml")

    def test_bombs(self) -> None:
        for text in (
            "a." * 400_000 + "a = 1",
            "x = " + "[" * 100_000,
            "x = " + "{a=" * 50_000,
            "[" + "a." * 9999 + "a]",
        ):
            self.refused(text, "nested deeper than 16")
        self.refused("#" * ((1 << 20) + 1), "larger than 1048576 bytes")

    def test_long_and_strange_names_stay_short_and_printable(self) -> None:
        lines = self.problems('"\\u001b[31m" = 1\n"' + "x" * 10_000 + '" = 2\n"" = 3\n["a\\nb"]\n')
        self.assertEqual(len(lines), 4)
        for line in lines:
            self.assertTrue(line.isprintable() and len(line) < 300, line)


class FileTests(ConfigCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder.resolve() / "layer8.toml"

    def test_reads_a_file_and_relative_paths_from_there(self) -> None:
        secret = self.path.with_name("a.secret")
        secret.touch(0o600)
        self.path.write_text('[[proxy.host]]\nhost = "a.example"\nsecret_file = "a.secret"\n')
        found = load.load(self.path, {}, {}, role="proxy")
        self.assertEqual(found.config.proxy.host[0].secret_file, str(secret))
        self.assertEqual(found.path, self.path)

    def test_the_state_folder_and_then_the_configuration_folder(self) -> None:
        self.path.write_text('[proxy]\nname = "a.example"\n')
        environ = {"LAYER8_HOME": str(self.path.parent)}
        self.assertEqual(load.load(None, environ, {}).config.proxy.name, "a.example")
        environ = {"LAYER8_HOME": "/nonexistent", "CONFIGURATION_DIRECTORY": str(self.path.parent)}
        self.assertEqual(load.load(None, environ, {}).config.proxy.name, "a.example")
        self.assertIsNone(load.load(None, {"LAYER8_HOME": "/nonexistent"}, {}).path)

    def file_problem(self, path: Path) -> str:
        error = self.assertRaises(ConfigProblems, load.load, path, {}, {})
        self.assertEqual(len(error.problems), 1)
        return str(error)

    def test_missing_or_no_file_or_too_large(self) -> None:
        self.assertIn("No such file", self.file_problem(self.path))
        self.assertIn("Is a directory", self.file_problem(self.path.parent))
        fifo = self.path.with_name("fifo")
        os.mkfifo(fifo)
        self.assertIn("not a file", self.file_problem(fifo))
        self.path.write_bytes(b"#" * ((1 << 20) + 1))
        self.assertIn("larger than", self.file_problem(self.path))
        self.path.write_bytes(b"[proxy]\nname = '\xff'\n")
        self.assertIn("layer8.toml:2: it is not UTF-8", self.file_problem(self.path))

    def test_through_a_link_into_a_folder_of_everybody(self) -> None:
        everybody = self.path.with_name("everybody")
        everybody.mkdir()
        everybody.chmod(0o1777)
        (everybody / "layer8.toml").write_text("")
        self.path.symlink_to(everybody / "layer8.toml")
        self.assertIn("everybody can write", self.file_problem(self.path))
        everybody.chmod(0o755)
        load.load(self.path, {}, {})


class DiffTests(ConfigCase):
    def test_hot_and_restart(self) -> None:
        old = read("").config
        new = read('[proxy]\nname = "a.example"\nunknown = "answer"\n[proxy.limits]\nidle = 5\n[log]\nblur = 0').config
        changes = load.diff(old, new)
        self.assertEqual(changes.changed, ("log.blur", "proxy.name", "proxy.unknown", "proxy.limits.idle"))
        self.assertEqual(changes.restart_needed, ("proxy.name",))
        self.assertEqual(load.diff(new, new), load.Changes((), ()))

    def test_hosts_are_one_key(self) -> None:
        new = read('[[proxy.host]]\nhost = "a.example"\ntarget = "tcp:127.0.0.1:1"').config
        self.assertEqual(load.diff(read("").config, new).changed, ("proxy.host",))


class NoiseTests(SynchronousTestCase):
    TEXT = (
        template().replace("\n#", "\n").replace("\n ", "\n# ").encode()
        + b'[[agent.host]]\nhost = "a"\ntargets = { 80 = "tcp:a:1" }\n'
    )

    def check(self, data: bytes) -> None:
        path = Path(self.mktemp())
        path.write_bytes(data)
        try:
            load.load(path, {}, {}, role="agent")
        except ConfigProblems as error:
            self.assertTrue(error.problems)
            for problem in error.problems:
                self.assertTrue(str(problem).isprintable(), problem)
                self.assertLess(len(str(problem)), 1000)
        finally:
            path.unlink()

    @given(st.binary(max_size=400))
    def test_any_bytes(self, data: bytes) -> None:
        self.check(data)

    @given(st.text(alphabet="[proxy.host]=\"'{},\n1 \\x", max_size=120))
    def test_any_text(self, text: str) -> None:
        self.check(text.encode())

    @given(st.integers(0, 1 << 30))
    def test_mutated_files(self, seed: int) -> None:
        dice = random.Random(seed)
        data = bytearray(self.TEXT)
        for _ in range(dice.randint(1, 12)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at : at + dice.randrange(20)]
                case 2:
                    data[at:at] = dice.choice(
                        [b"[", b"]", b'"', b"\n[[proxy.host]]\n", b"= [", b"\0", b"nan", b"-1", b"''"]
                    )
                case _:
                    other = dice.randrange(len(data))
                    data[at:at] = data[other : other + 30]
        self.check(bytes(data))

    @given(
        st.dictionaries(
            st.sampled_from(["LAYER8_PROXY__HTTP", "LAYER8_LOG__BLUR", "LAYER8_AGENT__HOST", "LAYER8_A__B"]),
            st.text(max_size=30),
        )
    )
    def test_any_environment(self, environ: dict[str, str]) -> None:
        try:
            load_text("", environ, {})
        except ConfigProblems as error:
            self.assertTrue(all(str(problem).isprintable() for problem in error.problems))
