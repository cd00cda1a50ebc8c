"""Rules, summaries, names and lists of an exit."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.keys import id_text
from layer8.relay.exit import (
    REDUCED,
    RULES,
    SUMMARY,
    LanTargets,
    NoWay,
    Policy,
    Ports,
    parse_summary,
    resolvable,
    target,
)
from layer8.relay.wire import Reason

port_texts = st.one_of(
    st.just("*"),
    st.integers(1, 65535).map(str),
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: f"{min(pair)}-{max(pair)}"),
)
hosts = st.one_of(
    st.just("*"),
    st.sampled_from(("a.test", "b.test", "0.0.0.0/0", "9.0.0.0/8", "9.9.9.9", "[2600::/16]", "[2600::1]")),
)
rules = st.tuples(st.sampled_from(("accept", "reject")), hosts, port_texts).map("{0[0]} {0[1]}:{0[2]}".format)
policies = st.lists(rules, max_size=8).map(Policy.parse)


class Rules(SynchronousTestCase):
    def test_off_and_reduced(self) -> None:
        off, reduced = Policy.parse("off"), Policy.parse("reduced")
        self.assertFalse(off)
        self.assertTrue(reduced)
        for host, address, port, wanted in (
            ("a.test", "8.8.4.4", 80, True),
            ("a.test", "2600::1", 443, True),
            ("a.test", "8.8.4.4", 22, False),
            ("github.com", "8.8.4.4", 22, True),
            ("9.9.9.9", "9.9.9.9", 53, True),
            ("dns.test", "9.9.9.9", 53, True),
            ("a.test", "8.8.4.4", 53, False),
            ("a.test", "8.8.4.4", 25, False),
        ):
            self.assertIs(reduced.allows(host, address, port), wanted, (host, port))
            self.assertFalse(off.allows(host, address, port))
            self.assertFalse(off.may(host, port))
        self.assertEqual(reduced.summary(), b"80,443")
        self.assertEqual(off.summary(), b"")
        for same, text in ((off, "off"), (off, ()), (reduced, "reduced")):
            self.assertEqual(Policy.parse([text] if text else []), same)
        self.assertEqual(Policy.parse(REDUCED), reduced)

    def test_the_first_that_fits_decides(self) -> None:
        policy = Policy.parse(
            ["reject bad.test:*", "accept 9.0.0.0/8:1000-2000", "reject *:25", "accept good.test:25", "accept *:20-30"]
        )
        for host, address, port, wanted in (
            ("bad.test", "9.1.1.1", 1000, False),
            ("a.test", "9.1.1.1", 1000, True),
            ("a.test", "9.1.1.1", 2000, True),
            ("a.test", "9.1.1.1", 2001, False),
            ("a.test", "8.1.1.1", 1500, False),
            ("good.test", "8.1.1.1", 25, False),
            ("a.test", "8.1.1.1", 20, True),
            ("a.test", "8.1.1.1", 30, True),
            ("a.test", "8.1.1.1", 19, False),
            ("a.test", "8.1.1.1", 31, False),
        ):
            self.assertIs(policy.allows(host, address, port), wanted, (host, address, port))
        self.assertEqual(policy.summary(), b"20-24,26-30")
        self.assertTrue(policy.may("a.test", 1500))
        self.assertFalse(policy.may("bad.test", 1500))
        self.assertFalse(policy.may("a.test", 2001))
        self.assertFalse(policy.may("8.1.1.1", 1500))

    def test_networks_of_both_families(self) -> None:
        policy = Policy.parse(["reject [2600:1::/32]:*", "accept [2600::]:80", "accept [2600::/16]:443"])
        self.assertTrue(policy.allows("2600::", "2600::", 80))
        self.assertFalse(policy.allows("2600::1", "2600::1", 80))
        self.assertTrue(policy.allows("2600::1", "2600::1", 443))
        self.assertFalse(policy.allows("2600:1::1", "2600:1::1", 443))

    def test_errors_name_the_rule(self) -> None:
        for bad in (
            "",
            "accept",
            "allow *:80",
            "accept *",
            "accept :80",
            "accept *:0",
            "accept *:080",
            "accept *:65536",
            "accept *:30-20",
            "accept *:-",
            "accept *:1-",
            "accept *:80,443",
            "accept *:80 now",
            "accept 2001:db8::1:80",
            "accept [a.test]:80",
            "accept 9.9.9.9/8:80",
            "accept 9.9.9.0/33:80",
            "accept 9.9.9:80",
            "accept 0x7f.1:80",
            "accept *.test:80",
            "accept bücher.test:80",
        ):
            error = self.assertRaises(ConfigError, Policy.parse, ["accept *:80", bad])
            self.assertIn(f"rule 2, {bad!r}: ", str(error))
        for text in ("", "on", "OFF", "accept *:80"):
            self.assertIn(repr(text), str(self.assertRaises(ConfigError, Policy.parse, text)))
        self.assertRaises(ConfigError, Policy.parse, ["accept *:80"] * (RULES + 1))

    @given(st.text(max_size=60))
    def test_noise(self, text: str) -> None:
        for noise in (text, f"accept {text}", f"reject {text}:80", f"accept *:{text}"):
            with contextlib.suppress(ConfigError):
                Policy.parse([noise])

    @given(policies, st.integers(1, 65535), st.sampled_from(("a.test", "c.test", "8.8.4.4", "2600::1")))
    def test_what_may_not_is_never_allowed(self, policy: Policy, port: int, host: str) -> None:
        if not policy.may(host, port):
            for address in (host,) if "test" not in host else ("8.8.4.4", "9.9.9.9", "2600::1"):
                self.assertFalse(policy.allows(host, address, port))

    @given(policies, st.integers(1, 65535))
    def test_ports_are_what_a_host_without_a_rule_gets(self, policy: Policy, port: int) -> None:
        self.assertIs(policy.allows_port(port), policy.allows("c.test", "8.8.4.4", port))


class Summaries(SynchronousTestCase):
    @given(policies)
    def test_round_trip(self, policy: Policy) -> None:
        text = policy.summary()
        self.assertLessEqual(len(text), SUMMARY)
        self.assertEqual(parse_summary(text), policy.ports())

    def test_a_long_one_leaves_out_the_last(self) -> None:
        policy = Policy.parse([f"accept *:{port}-{port + 5}" for port in range(1000, 3000, 10)])
        read = parse_summary(policy.summary())
        self.assertLessEqual(len(policy.summary()), SUMMARY)
        self.assertGreater(len(read.ranges), 20)
        self.assertEqual(read.ranges, policy.ports().ranges[: len(read.ranges)])
        self.assertTrue(read.allows_port(1003))
        self.assertFalse(read.allows_port(1006))
        self.assertFalse(Ports().allows_port(80))

    @given(st.one_of(st.binary(max_size=SUMMARY + 9), st.text("0123456789,-", max_size=30).map(str.encode)))
    def test_noise(self, data: bytes) -> None:
        try:
            read = parse_summary(data)
        except RemoteProtocolError:
            return
        self.assertEqual(read.encode(), data, "there is one form")

    def test_refused(self) -> None:
        for data in (
            b"0",
            b"80,80",
            b"80,81",
            b"443,80",
            b"80-80",
            b"80-",
            b",",
            b"80,",
            b" 80",
            b"1-70000",
            b"1" * 257,
        ):
            self.assertRaises(RemoteProtocolError, parse_summary, data)


class Targets(SynchronousTestCase):
    def test_one_text(self) -> None:
        for host, wanted in (
            ("A.Test", "a.test"),
            ("a.test.", "a.test"),
            ("::FFFF:9.9.9.9", "9.9.9.9"),
            ("2600:0:0::1", "2600::1"),
            ("_dmarc.a-b.test", "_dmarc.a-b.test"),
            ("printer", "printer"),
            ("3com.test", "3com.test"),
        ):
            self.assertEqual(target(host), wanted)

    def test_neither_name_nor_address(self) -> None:
        for host in (
            *("", ".", "a..test", "-a.test", "a b.test", "a.test\0", "a.test\n", "bücher.test", "x" * 64, "x." * 128),
            *("127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "a.0x1", "1.2.3.4.5", "[::1]", "fe80::1%lo"),
            *("http://a.test", "a.test:80", "a/b", "*"),
        ):
            error = self.assertRaises(NoWay, target, host)
            self.assertIs(error.reason, Reason.RESOLVE, host)

    @given(st.text())
    def test_noise(self, text: str) -> None:
        try:
            found = target(text)
        except NoWay:
            return
        self.assertEqual(target(found), found)

    def test_whose_names_are_looked_up(self) -> None:
        for name in ("a.test", "example.com", "local.com", "home.arpa.com"):
            self.assertTrue(resolvable(name), name)
        for name in (
            "printer",
            "localhost",
            "a.localhost",
            "a.local",
            "a.onion",
            "a.l8.alt",
            "b.home.arpa",
            "a.internal",
        ):
            self.assertFalse(resolvable(name), name)


class Lists(SynchronousTestCase):
    def test_for_one_identity_only(self) -> None:
        one, other = bytes(range(32)), bytes(32)
        lists = LanTargets.parse({id_text(one): ["192.168.0.2:22", "NAS.lan:445", "[fd00::2]:80"], id_text(other): []})
        written = LanTargets.parse({id_text(one): "192.168.0.2:22, nas.lan:445,[fd00::2]:80"})
        self.assertEqual(written._rows[one], lists._rows[one])
        for host, port, wanted in (
            ("192.168.0.2", 22, True),
            ("nas.lan", 445, True),
            ("fd00::2", 80, True),
            ("192.168.0.2", 23, False),
            ("192.168.0.3", 22, False),
        ):
            self.assertIs(lists.opens(one, host, port), wanted)
            self.assertFalse(lists.opens(other, host, port))
            self.assertFalse(lists.opens(None, host, port))
            self.assertFalse(LanTargets().opens(one, host, port))

    def test_errors_name_the_entry(self) -> None:
        node = id_text(bytes(32))
        for table, named in (
            ({"abc": ["10.0.0.1:22"]}, "'abc'"),
            ({node: ["10.0.0.1"]}, "'10.0.0.1'"),
            ({node: ["10.0.0.1:0"]}, "'10.0.0.1:0'"),
            ({node: ["127.1:22"]}, "'127.1:22'"),
        ):
            error = self.assertRaises(ConfigError, LanTargets.parse, table)
            self.assertIn(named, str(error))
