"""docs/rendezvous.md says what is so."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from layer8.rendezvous import access, client, folder, limits, memory, points, price, service, visits
from layer8.rendezvous.wire import Renzv, Status
from tests.names import ROOT

PAGE = (ROOT / "docs" / "rendezvous.md").read_text()


class PageTests(SynchronousTestCase):
    def test_every_message(self) -> None:
        for command in Renzv:
            name = command.name if command.name.startswith("RES_") else f"RENZV_{command.name}"
            self.assertIn(name.removesuffix("_OK"), PAGE)
            self.assertRegex(PAGE, rf"\| (\d+, )?{command.value}\b")
        for status in Status:
            self.assertIn(f"{status.value} {status.name.lower()}", PAGE)

    def test_numbers(self) -> None:
        for number in (
            limits.LISTENERS_PER_NODE,
            limits.LISTENERS_PER_CIRC,
            limits.INTRO_RATE,
            limits.INTRO_BURST,
            limits.INTRO_QUEUE,
            limits.INTRO_AGE,
            limits.POINT_INTROS,
            limits.KNOCKS_PER_CIRC,
            limits.COOKIES,
            limits.COOKIE_LIFE,
            limits.BLOB_AGE,
            limits.SEED_LIFE,
            limits.SESSIONS_PER_SERVICE,
            limits.STREAMS_PER_SESSION,
            limits.STREAM_RATE,
            limits.STREAM_BURST,
            limits.BAD_PORTS,
            limits.SETUP_CELLS,
            limits.T_RENDEZVOUS,
            limits.MAX_EFFORT,
            price.LOOK,
            price.FEW,
            price.RUSH_LEAST,
            limits.T_PING,
            access.LEVELS,
            access.ALL_BURST,
            access.ALL_RATE,
            client.ABOVE,
            service.AT_ONCE,
            service.MEETINGS,
            points.RESUMES,
            points.RESUME_TIME,
            service.WATCH,
            service.TELL_AGAIN,
            visits.T_SILENT,
            visits.IDLE,
            visits.KEPT,
            folder.IDLE,
            memory.MARK,
        ):
            self.assertRegex(PAGE, rf"\b{int(number)}\b")
