"""What several workers answer, joined: sums, pages in order, counters that never fall."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.config.load import ConfigProblems, load_text
from layer8.config.proxy import ProxyLimits
from layer8.control.access import EVERYTHING, Caller
from layer8.control.errors import NotFound
from layer8.control.metrics import Family, Histogram
from layer8.control.shape import to_json
from layer8.control.table import Table
from layer8.proxy.bans import Bans
from layer8.proxy.fanout import Counted, FanoutRows, unpack
from layer8.proxy.orders import ConnectionRow, ConnectionRows
from layer8.proxy.paging import fit
from layer8.proxy.registry import Registry
from layer8.proxy.worker import options_for, pack
from tests.control.rig import raises
from tests.proxy.desk import WALL, Voice, row


def connection(conn: int) -> ConnectionRow:
    return ConnectionRow(conn, "a.test", 80, "http", "joined", 1, 5, 1000 + conn, 2000, "192.0.2.7")


@define(eq=False)
class Crew:
    """Two workers by hand: one has the odd connections, the other the even ones."""

    conns: list[list[int]]
    draining: bool = False

    async def ask(self, method: str, params: Mapping[str, Any]) -> Sequence[Any]:
        answers: list[Any] = []
        for mine in self.conns:
            if method == "proxy.connections":
                after = int(params.get("cursor") or -1)
                rows = ((str(conn), connection(conn)) for conn in mine if conn > after)
                answers.append(to_json(ConnectionRows(*fit(rows, params["limit"]))))
            elif method == "proxy.kill":
                answers += [{"closed": 1}] if params.get("conn") in mine else []
            elif method == "proxy.hosts":
                count = {"host": "a.test", "state": "owned", "subscribers": 1, "open": len(mine)}
                answers.append({"hosts": [{**count, "bytes_in": 10, "bytes_out": 1000}]})
        return json.loads(json.dumps(answers))  # type: ignore[no-any-return]

    def carried(self, host: str) -> tuple[int, int]:
        return 5, 7

    def drain_for(self, seconds: float | None, alternatives: tuple[str, ...]) -> None:
        self.draining = True

    def undrain(self) -> None:
        self.draining = False


class RowsTests(TestCase):
    def setUp(self) -> None:
        self.crew = Crew([list(range(1, 40, 2)), list(range(2, 20, 2))])
        self.registry = Registry(ProxyLimits(), bytes(32), [])
        self.registry.put(row("a.test"))
        self.table = Table(lambda: WALL)
        self.table.add(FanoutRows(self.registry, Bans(), self.crew))

    async def call(self, name: str, role: str = "admin", **params: Any) -> Any:
        caller = Caller("x", frozenset({role}), EVERYTHING, True, None, (), Voice())  # type: ignore[arg-type]
        return await self.table.call(caller, name, params)

    async def test_pages_lose_and_repeat_nothing(self) -> None:
        for limit in (1, 2, 3, 7, 500):
            seen, cursor = [], None
            while True:
                page = await self.call("proxy.connections", limit=limit, **({"cursor": cursor} if cursor else {}))
                self.assertLessEqual(len(page["connections"]), limit)
                seen += [one["conn"] for one in page["connections"]]
                cursor = page.get("cursor")
                if cursor is None:
                    break
            self.assertEqual(seen, sorted([*self.crew.conns[0], *self.crew.conns[1]]), f"{limit} at a time")

    async def test_who_may_see_what(self) -> None:
        (shown, *_) = (await self.call("proxy.connections"))["connections"]
        (blurred, *_) = (await self.call("proxy.connections", "read"))["connections"]
        self.assertEqual(shown["address"], "192.0.2.7")
        self.assertNotIn("address", blurred)
        self.assertNotEqual(blurred["bytes_in"], shown["bytes_in"])

    async def test_hosts(self) -> None:
        (found,) = (await self.call("proxy.hosts"))["hosts"]
        self.assertEqual((found["open"], found["subscribers"]), (29, 2))
        self.assertEqual((found["bytes_in"], found["bytes_out"]), (25, 2007), "with what was counted before")

    async def test_kill(self) -> None:
        self.assertEqual(await self.call("proxy.kill", conn=4), {"closed": 1})
        await raises(NotFound, self.call("proxy.kill", conn=404))


def copied(family: Family) -> Family:
    """What is left of a family after a message."""
    return unpack(json.loads(json.dumps(pack(family))))


class CountedTests(SynchronousTestCase):
    def counter(self, **values: float) -> Family:
        return Family("layer8_test_x_total", "X.", "counter", {(k,): v for k, v in values.items()}, ("kind",))

    def gauge(self, value: float) -> Family:
        return Family("layer8_test_open", "Open.", "gauge", {(): value})

    def histogram(self, *seen: float) -> Family:
        made = Histogram((1.0, 2.0))
        for value in seen:
            made.observe(value)
        return Family("layer8_test_seconds", "S.", "histogram", {(): made})

    def test_counters_are_summed_and_never_fall(self) -> None:
        counted = Counted.nothing()
        counted.take(1, [copied(self.counter(a=3, b=1))])
        counted.take(2, [copied(self.counter(a=4))])
        (found,) = counted.merge([])
        self.assertEqual(found.values, {("a",): 7, ("b",): 1})
        counted.end(1)
        (found,) = counted.merge([])
        self.assertEqual(found.values, {("a",): 7, ("b",): 1})
        counted.take(1, [copied(self.counter(a=1))])
        counted.end(1)
        (found,) = counted.merge([self.counter(a=100)])
        self.assertEqual(found.values, {("a",): 108, ("b",): 1})

    def test_gauges_are_told_apart(self) -> None:
        counted = Counted.nothing()
        counted.take(1, [copied(self.gauge(3))])
        counted.take(2, [copied(self.gauge(4))])
        (found,) = counted.merge([self.gauge(9)])
        self.assertEqual((found.labels, found.values), (("worker",), {("main",): 9, ("1",): 3, ("2",): 4}))
        counted.end(2)
        (found,) = counted.merge([])
        self.assertEqual(found.values, {("1",): 3}, "a worker that is gone has none open")

    def test_histograms(self) -> None:
        counted = Counted.nothing()
        counted.take(1, [copied(self.histogram(0.5, 1.5))])
        counted.take(2, [copied(self.histogram(1.5, 9))])
        (found,) = counted.merge([])
        histogram = found.values[()]
        assert isinstance(histogram, Histogram)
        self.assertEqual((histogram.counts, histogram.total), ([1, 2, 1], 12.5))

    def test_ours_alone_stay_as_they_are(self) -> None:
        self.assertEqual(list(Counted.nothing().merge([self.gauge(1)])), [self.gauge(1)])


class OptionsTests(SynchronousTestCase):
    def test_a_worker_goes_by_the_same_but_for_its_own_ports(self) -> None:
        text = (
            '[control]\nlisten = ["tcp:0:interface=127.0.0.1"]\n[log]\nlevel = "debug"\n'
            '[proxy]\nworkers = 3\ntakeover = "/tmp/x"\ndata = ["tcp:9082", "tcp:0"]\nname = "p.example"\n'
            '[proxy.limits]\nagents = 7\n[[proxy.host]]\nhost = "a.test"\ntarget = "tcp:127.0.0.1:1"\nports = [80]\n'
        )
        whole = load_text(text, {}, {}, role="proxy").config
        options = json.loads(json.dumps(options_for(whole, 3)))
        mine = load_text("", {}, options, role="proxy").config
        self.assertEqual((mine.control.listen, mine.control.socket), ((), False))
        self.assertEqual((mine.proxy.workers, mine.proxy.takeover), (1, ""))
        self.assertEqual(mine.proxy.data[1], "tcp:0")
        self.assertIn("9084", mine.proxy.data[0])
        self.assertEqual(
            (mine.proxy.host, mine.proxy.limits, mine.log), (whole.proxy.host, whole.proxy.limits, whole.log)
        )
        self.assertEqual((mine.proxy.name, mine.proxy.http), (whole.proxy.name, whole.proxy.http))

    def test_what_does_not_go_together(self) -> None:
        router = '[control.wamp]\nurl = "ws://127.0.0.1:1/ws"\n[proxy]\nbus = "wamp"\n'
        for text, key in (
            ('[proxy]\nworkers = 2\ndata_public = "p.example:9082"\n', "proxy.data_public"),
            (f"{router}workers = 2\n", "proxy.workers"),
            (f'{router}takeover = "/tmp/x"\n', "proxy.takeover"),
        ):
            with self.assertRaises(ConfigProblems) as caught:
                load_text(text, {}, {}, role="proxy")
            self.assertIn(key, [problem.key for problem in caught.exception.problems])
