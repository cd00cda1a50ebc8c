"""docs/circuits.md says what is so."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from layer8.relay import limits
from layer8.relay.wire import Command, Destroy, Proto, Reason
from tests.names import ROOT

PAGE = (ROOT / "docs" / "circuits.md").read_text()


class PageTests(SynchronousTestCase):
    def test_the_example_runs(self) -> None:
        code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        self.assertEqual(len(code), 1)
        exec(compile(code[0], "docs/circuits.md", "exec"), {})

    def test_every_reason_and_command(self) -> None:
        for reason in Destroy:
            self.assertIn(f"{reason.value} {reason.name.lower().replace('_', ' ')}", PAGE)
        names = {Reason.NO_PORT: "no such port"}
        for why in Reason:
            self.assertIn(f"{why.value} {names.get(why, why.name.lower())}", PAGE)
        for proto in Proto:
            self.assertIn(f"{proto.value} {proto.name}", PAGE)
        for command in Command:
            if command <= Command.DROP:
                self.assertIn(f"| {command.value} | RELAY_{command.name} |", PAGE)

    def test_numbers(self) -> None:
        for number in (
            limits.CIRC_WINDOW,
            limits.STREAM_WINDOW,
            limits.STALLED,
            limits.CIRC_QUEUE,
            limits.EARLY_CELLS,
            limits.HANDSHAKES,
            int(limits.HANDSHAKE_RATE),
            limits.HANDSHAKE_BURST,
            int(limits.T_STREAM),
            int(limits.T_LINGER),
            limits.BURST,
        ):
            self.assertRegex(PAGE, rf"\b{number}\b")
        self.assertIn(f"**{limits.ACK_EVERY}nd**", PAGE)
