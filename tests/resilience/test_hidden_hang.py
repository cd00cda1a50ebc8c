"""A hidden service among real processes that say nothing any more, and whose links look well all the same."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.interop.daemons import until
from tests.resilience.test_hidden import HEAL_S, SIZE, HiddenCase, Refused
from tests.resilience.test_network import Member

NOTICED_S = 15.0
"""Seconds until a transfer ends that somebody on its way has forgotten; eight on an idle machine."""
HEALED_S = 60.0
"""Seconds until a visit succeeds while a relay hangs, which may be on anybody's way; two on an idle machine."""


class HangTests(HiddenCase):
    @contextmanager
    def silent(self, member: Member) -> Iterator[None]:
        """Stop a process, and let it go on afterwards as if nothing had been."""
        pid = member.program.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def breaks(self, who: str) -> float:
        """Begin a transfer, stop whoever is meant, and give the seconds until the transfer breaks and a visit works."""
        rig = self.rig
        size = 0
        try:
            with rig.line() as line:
                line.settimeout(NOTICED_S)
                line.sendall(b"from 0\n")
                while size < SIZE // 8:
                    size += len(line.recv(1 << 18))
                member = rig.service if who == "service" else rig.named(self.hop())
                with self.silent(member):
                    begun = time.monotonic()
                    try:
                        while data := line.recv(1 << 18):
                            size += len(data)
                    except ConnectionError:
                        pass
                    noticed = time.monotonic() - begun
                    if who == "hop":
                        until("the service is visited by another hop", rig.visit, HEALED_S, 0.05)
                        self.healed = time.monotonic() - begun
        except Refused as answer:
            self.fail(f"the transfer did not begin: {answer}")
        self.assertLess(size, SIZE, "the transfer was over before")
        return noticed

    def hop(self) -> str:
        """Give the last hop of the client's circuit that carries a stream."""
        rows = self.rig.client.ask("relay.circuits")["circuits"]
        return str(next(row for row in reversed(rows) if row["streams"] and row["purpose"] == "alone")["path"])[-8:]

    def test_the_service(self) -> None:
        noticed = self.breaks("service")
        healed = self.rig.heals("the service is visited again", time.monotonic())
        print(f"  service hangs: noticed after {noticed:.2f} s, visited {healed:.2f} s after it goes on")
        self.assertLess(noticed, NOTICED_S)
        self.assertLess(healed, HEAL_S)

    def test_the_rendezvous_hop(self) -> None:
        noticed = self.breaks("hop")
        print(
            f"  rendezvous hop hangs: noticed after {noticed:.2f} s, visited by another one after {self.healed:.2f} s"
        )
        self.assertLess(noticed, NOTICED_S)
