"""Trackers that are kept busy."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from layer8.core.errors import Unavailable
from layer8.node.tracking import _Lists
from layer8.tracker.asking import Answer
from layer8.tracker.wire import Status
from tests.descriptors import EasyWork, key, told


@frozen
class Says:
    """Trackers that answer so."""

    statuses: tuple[Status | None, ...]

    async def publish(self, descriptor: object) -> list[Answer]:
        return [Answer(bytes(32), status) for status in self.statuses]


class BusyTests(EasyWork):
    def test_who_publishes_tries_again_while_trackers_are_busy(self) -> None:
        for statuses, end in (
            ((Status.BUSY, Status.BUSY, None), Unavailable),
            ((Status.BUSY, Status.LISTED), StopIteration),
            ((Status.UNREACHABLE, None), StopIteration),
        ):
            trackers: Any = Says(statuses)
            self.assertRaises(end, _Lists(trackers, key(1)).publish(told(1)).send, None)
