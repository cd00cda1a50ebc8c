"""What the options of a policy make of what people type."""

from typing import Any

import click
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from layer8.cli.policy import policy_of, policy_options, shown
from layer8.control.shape import from_json
from layer8.crypto.password import fits, hashed
from layer8.proxy.orders import Policy


class PolicyTests(SynchronousTestCase):
    def said(self, *words: str, typed: str = "") -> dict[str, Any]:
        """The members that a command line says."""
        found: dict[str, Any] = {}

        @click.command()
        @policy_options
        def command(**policy: Any) -> None:
            found.update(policy_of(policy))

        result = CliRunner().invoke(command, words, input=typed)
        if result.exit_code:
            raise ValueError(result.output)
        from_json(Policy, found)
        return found

    def test_nothing(self) -> None:
        self.assertEqual(self.said(), {})

    def test_numbers(self) -> None:
        for text, wanted in (("0", 0), ("200", 200), ("200k", 200_000), ("1.5M", 1_500_000), ("2GB/s", 2 * 10**9)):
            self.assertEqual(self.said("--bandwidth", text), {"bandwidth": wanted})
        for text in ("", "-1", "1e3", "k", "1 M", "1Mi", "1.M"):
            with self.assertRaises(ValueError):
                self.said("--bandwidth", text)
        self.assertEqual(self.said("--rate", "0.5", "--max-conns", "7"), {"rate": 0.5, "max_conns": 7})

    def test_lists(self) -> None:
        self.assertEqual(self.said("--allow", "192.0.2.0/24", "--allow", "::/0")["allow"], ["192.0.2.0/24", "::/0"])
        self.assertEqual(self.said("--allow", "", "--deny", "", "--user", ""), {"allow": [], "deny": [], "users": []})

    def test_users(self) -> None:
        (line,) = self.said("--user", "ann", typed="a secret\na secret\n")["users"]
        name, _, kept = line.partition(":")
        self.assertEqual(name, "ann")
        self.assertTrue(fits(b"a secret", kept))
        ready = f"bob:{hashed('x')}"
        self.assertEqual(self.said("--user", ready), {"users": [ready]})
        for wrong in (":x", "ann:"):
            with self.assertRaises(ValueError):
                self.said("--user", wrong)

    def test_shown(self) -> None:
        lines = shown({"allow": ["::/0"], "deny": [], "rate": 0.5, "visitor": "none", "users": ["ann:$scrypt$x"]})
        self.assertEqual(lines, [("allow", "::/0"), ("rate", "0.5"), ("users", "ann")])
