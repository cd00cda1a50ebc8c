"""The page about exits says what is so."""

import ipaddress
import re
import tomllib

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.address import SPECIAL
from layer8.relay import carried, limits, outward, outward_udp
from layer8.relay import exit as rules
from layer8.relay.exit import NOT_RESOLVED, REDUCED, Policy
from layer8.relay.wire import Reason
from tests.names import ROOT
from tests.test_docs import rows


class Page(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "docs" / "exit.md").read_text()

    def test_limits(self) -> None:
        listed = {row[0].strip("`"): row[1] for row in rows(self.text) if re.fullmatch(r"`[A-Z_]+`", row[0])}
        for name, module, text in (
            ("EXIT_CONNECTS", limits, "{:g}/s, burst " + str(limits.EXIT_CONNECTS_BURST)),
            ("EXIT_SAME_DEST", limits, "{}"),
            ("EXIT_OPEN", limits, "{}"),
            ("EXIT_TIME", rules, "{:g} s"),
            ("UDP_DESTS", limits, "{}"),
            ("UDP_UNANSWERED", limits, "{}"),
            ("UDP_IDLE", limits, "{:g} s"),
            ("UDP_MOST", outward_udp, "{} B"),
            ("T_LINGER", limits, "{:g} s"),
        ):
            self.assertEqual(listed.pop(name), text.format(getattr(module, name)), name)
        self.assertEqual(listed.pop("CIRC_BYTES"), f"{limits.CIRC_BYTES >> 30} GiB")
        self.assertEqual(listed.pop("WRITE_MOST"), f"{carried.WRITE_MOST >> 20} MiB")
        self.assertEqual(listed, {})
        self.assertIn(f"each has {outward.EACH_TIME:g} s", self.text)
        self.assertIn(f"for {outward.TTL} seconds", self.text)
        self.assertEqual(outward.ADDRESSES, 4, "at most four")

    def test_the_guards_table(self) -> None:
        shown = self.text.partition("## What no rule opens")[2].partition("IPv4 inside IPv6")[0]
        listed = set()
        for word in re.findall(r"[0-9a-f.:]+/[0-9]+", shown):
            address, _, bits = word.partition("/")
            if ":" not in address:
                address += ".0" * (3 - address.count("."))
            listed.add(ipaddress.ip_network(f"{address}/{bits}"))
        listed |= {ipaddress.ip_network(word) for word in ("::", "::1") if f"`{word}`" in shown}
        beyond = ipaddress.ip_network("2000::/3")
        inside = ipaddress.ip_network("64:ff9b:1::/48")  # one of those outside of 2000::/3 that need no row
        self.assertEqual(listed, {ipaddress.ip_network(text) for text, _ in SPECIAL} - {inside} | {beyond})

    def test_reduced(self) -> None:
        for rule in REDUCED:
            host, _, port = rule.split()[1].rpartition(":")
            self.assertIn("anywhere" if host == "*" else host.strip("[]"), self.text)
            self.assertRegex(self.text, rf"\b{port}\b")

    def test_the_examples_are_read(self) -> None:
        blocks = re.findall(r"```toml\n(.*?)```", self.text, re.DOTALL)
        self.assertEqual(len(blocks), 3)
        read = [tomllib.loads(block)["relay"] for block in blocks]
        for one in read[:2]:
            self.assertTrue(Policy.parse(one["exit"]))

    def test_names_and_reasons(self) -> None:
        for last in NOT_RESOLVED:
            self.assertIn(f"`.{last}`", self.text)
        for reason in Reason:
            named = f"{reason.value} {reason.name.lower()}" in self.text
            self.assertEqual(named, reason not in (Reason.DONE, Reason.NO_PORT), reason.name)
