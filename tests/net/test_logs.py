import json
import os
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.sections import LogConfig
from layer8.core.errors import Layer8Error, RemoteProtocolError, Unavailable
from layer8.net.logs import LOG_LINE, LOG_TAIL, Logs, json_line, on_journal, size_words, text_line

MARK = "MARKED-CONTENT"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.now = 0.0
        self.make()

    def make(self, **words: Any) -> None:
        config = LogConfig(file=str(self.path), format="json")
        self.logs = Logs(attrs.evolve(config, **words), {}, clock=lambda: self.now, draw=bytes)
        self.addCleanup(self.logs.close)
        self.publisher = LogPublisher(self.logs)

    def logger(self, namespace: str = "layer8.proxy") -> Logger:
        return Logger(namespace=namespace, observer=self.publisher)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]


class RowTests(Case):
    def test_one_line_per_event_with_its_fields(self) -> None:
        self.logger().info("a sentence", event="pump.starved", n=3, ok=True, ratio=0.5, word="done", names=("a", "b"))
        (row,) = self.rows()
        self.assertRegex(row.pop("t"), r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
        self.assertEqual(
            row,
            {
                "level": "info",
                "ns": "layer8.proxy",
                "event": "pump.starved",
                "n": 3,
                "ok": True,
                "ratio": 0.5,
                "word": "done",
                "names": ["a", "b"],
            },
        )

    def test_records_are_blurred_and_others_are_not(self) -> None:
        for blur, seconds, size in ((60, ":00.000Z", 1024), (0, "", 1000)):
            self.make(blur=blur)
            self.logger().info("x", event="proxy.closed", bytes_in=1000)
            self.logger().info("x", event="pump.starved", bytes_in=1000)
            record, other = self.logs.tail()
            self.assertTrue(record["t"].endswith(seconds))
            self.assertEqual((record["bytes_in"], other["bytes_in"]), (size, 1000))

    def test_addresses_by_policy(self) -> None:
        wanted = {"none": None, "prefix": "192.0.2.0/24", "clear": "192.0.2.77"}
        for policy, word in wanted.items():
            self.make(addresses=policy)
            self.logger().info("x", event="pump.starved", address="192.0.2.77", peer="192.0.2.77")
            (row,) = self.logs.tail()
            self.assertEqual((row.get("address"), row.get("peer")), (word, word))
        self.make(addresses="keyed")
        self.logger().info("x", event="pump.starved", address="192.0.2.77")
        self.assertRegex(self.logs.tail()[0]["address"], r"\A[0-9a-f]{8}\Z")

    def test_the_first_line_says_how_much_is_told(self) -> None:
        self.make(addresses="clear")
        self.patch(Logs, "_log", self.logger("layer8.net.logs"))
        self.logs.announce()
        self.assertEqual(self.rows(), [])
        self.logger().info("x", event="pump.starved")
        self.assertEqual([row["event"] for row in self.rows()], ["log.started", "pump.starved"])
        self.assertEqual(self.rows()[0]["addresses"], "clear")

    def test_content_never_gets_in(self) -> None:
        class Thing:
            def __repr__(self) -> str:
                return MARK

        marked: dict[str, Any] = {
            "token": MARK,
            "secret": MARK,
            "body": MARK,
            "thing": Thing(),
            "raw": MARK.encode(),
            "table": {MARK: MARK},
            "address": MARK,
        }
        log = self.logger()
        log.info(f"{MARK} {{thing}}", event="pump.starved", **marked)
        for error in (ValueError(MARK), RemoteProtocolError(MARK), OSError(MARK)):
            try:
                raise error
            except Exception:
                log.failure("a bug: {thing}", event="pump.failed", thing=Thing())
        foreign = self.logger("twisted.internet")
        foreign.warn("peer {peer} sent {data}", peer="192.0.2.77", data=MARK)
        foreign.failure("unhandled {data}", Failure(ValueError(MARK)), data=MARK)
        foreign.info(MARK)
        self.logs.addresses.policy = "clear"
        self.assertNotIn(MARK, self.path.read_text())
        self.assertNotIn("192.0.2.77", self.path.read_text())
        self.assertEqual(len(self.rows()), 6)

    def test_a_bug_tells_its_type_and_place(self) -> None:
        try:
            raise KeyError("x")
        except KeyError:
            self.logger().failure("a bug", event="pump.failed")
        (row,) = self.rows()
        self.assertEqual((row["error"], row["level"]), ("KeyError", "critical"))
        self.assertIn("test_logs.py", row["frames"][-1])
        self.assertIn("test_a_bug_tells", row["frames"][-1])

    def test_our_own_words_are_told(self) -> None:
        self.logger().failure("x", Failure(Unavailable("draining")), event="pump.failed")
        self.logger().info("x", event="task.ended", why="draining")
        self.assertEqual([row["why"] for row in self.rows()], ["draining", "draining"])

    def test_what_is_not_in_the_book_is_foreign(self) -> None:
        self.logger().warn("plain {x}", x=1)
        self.logger().warn("named", event="no.such", x=1)
        self.assertEqual(
            [(row["event"], row["text"]) for row in self.rows()], [("foreign", "plain {x}"), ("foreign", "named")]
        )

    @given(
        st.dictionaries(
            st.text(min_size=1, max_size=20), st.one_of(st.text(max_size=2000), st.integers(), st.none()), max_size=30
        )
    )
    def test_any_fields_make_one_short_line(self, fields: dict[str, Any]) -> None:
        event = {"log_level": None, "log_namespace": "layer8.x", "log_time": 1e9, "event": "pump.starved"}
        self.logs({**fields, **event})
        row = self.logs.tail()[-1]
        for line in (json_line(row), text_line(row)):
            self.assertLessEqual(len(line), LOG_LINE)
            self.assertEqual(line.count(b"\n"), 1)
            self.assertTrue(line.endswith(b"\n"))
            self.assertTrue(line[:-1].decode().isprintable())
        json.loads(json_line(row))


class LevelTests(Case):
    def said(self) -> list[str]:
        return [row["word"] for row in self.rows()]

    def test_least_level(self) -> None:
        self.make(level="warn")
        log = self.logger()
        log.debug("x", event="pump.starved", word="debug")
        log.info("x", event="pump.starved", word="info")
        log.warn("x", event="pump.starved", word="warn")
        log.error("x", event="pump.starved", word="error")
        self.assertEqual(self.said(), ["warn", "error"])

    def test_a_namespace_for_a_time(self) -> None:
        self.logs.set_level("layer8.proxy", "debug", 60)
        self.logger("layer8.proxy.visitor").debug("x", event="pump.starved", word="below")
        self.logger("layer8.proxyx").debug("x", event="pump.starved", word="beside")
        self.logger("layer8.net").debug("x", event="pump.starved", word="other")
        self.now = 61
        self.logger("layer8.proxy").debug("x", event="pump.starved", word="late")
        self.assertEqual(self.said(), ["below"])
        self.logs.set_level("layer8.proxy", "debug", 60)
        self.logs.set_level("layer8.proxy", "debug", 0)
        self.logger("layer8.proxy").debug("x", event="pump.starved", word="ended")
        self.assertEqual(self.said(), ["below"])

    def test_the_longest_name_wins_and_names_are_limited(self) -> None:
        self.logs.set_level("layer8", "error", 60)
        self.logs.set_level("layer8.proxy", "debug", 60)
        self.logger("layer8.proxy").debug("x", event="pump.starved", word="yes")
        self.logger("layer8.net").info("x", event="pump.starved", word="no")
        self.assertEqual(self.said(), ["yes"])
        with self.assertRaises(Layer8Error):
            for index in range(100):
                self.logs.set_level(f"layer8.x{index}", "debug", 60)

    def test_tail(self) -> None:
        for index in range(LOG_TAIL + 10):
            self.logger("layer8.a" if index % 2 else "layer8.b").info("x", event="pump.starved", n=index)
        self.logger("layer8.a").warn("x", event="pump.starved", n="warned")
        self.assertEqual(len(self.logs.tail()), LOG_TAIL)
        self.assertEqual([row["n"] for row in self.logs.tail(namespace="layer8.a", lines=2)], [LOG_TAIL + 9, "warned"])
        self.assertEqual([row["n"] for row in self.logs.tail("warn")], ["warned"])
        self.assertEqual(self.logs.tail(lines=0), [])

    def test_watchers(self) -> None:
        rows: list[Any] = []

        def watch(row: Any) -> None:
            rows.append(row)
            # What a watcher logs must not call it again.
            self.logger().info("x", event="pump.starved")

        stop = self.logs.watch(watch)
        self.logger().info("x", event="pump.starved", n=1)
        stop()
        self.logger().info("x", event="pump.starved", n=2)
        self.assertEqual([row["n"] for row in rows], [1])

    def test_reload(self) -> None:
        other = self.path.with_suffix(".2")
        self.logs.apply(LogConfig(file=str(other), level="debug", format="text"))
        self.logger().debug("x", event="pump.starved", word="a b\n")
        self.assertEqual(self.path.read_bytes(), b"")
        self.assertRegex(other.read_text(), r"\A\d\d:\d\d:\d\d debug pump starved word=a b\\n\n\Z")
        self.assertRaises(OSError, self.logs.apply, LogConfig(file="/nonexistent/x"))
        self.assertEqual(self.logs.config.level, "debug")

    def test_files_that_were_renamed_are_opened_anew(self) -> None:
        access = self.logs.access_writer(self.mktemp())
        assert access is not None
        self.path.rename(self.path.with_suffix(".1"))
        self.logs.flush()
        self.logger().info("x", event="pump.starved", n=1)
        self.assertEqual(self.rows()[-1]["n"], 1)
        self.assertIsNone(self.logs.access_writer(""))
        self.assertIs(self.logs.access_writer("-"), self.logs.writer)


class PlaceTests(SynchronousTestCase):
    def line(self, environ: dict[str, str]) -> bytes:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        found = os.fstat(writer)
        environ = {name: value.format(here=f"{found.st_dev}:{found.st_ino}") for name, value in environ.items()}
        self.assertEqual(on_journal(environ, writer), environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}")
        logs = Logs(LogConfig(), environ, descriptor=writer)
        Logger(namespace="layer8.x", observer=LogPublisher(logs)).warn("x", event="pump.starved")
        return os.read(reader, 10_000)

    def test_json_where_nobody_reads_it_live(self) -> None:
        self.assertTrue(self.line({}).startswith(b'{"t":'))
        self.assertTrue(self.line({"JOURNAL_STREAM": "1:1"}).startswith(b'{"t":'))

    def test_priority_under_the_journal(self) -> None:
        self.assertTrue(self.line({"JOURNAL_STREAM": "{here}"}).startswith(b'<4>{"t":'))

    def test_text_on_a_terminal(self) -> None:
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        logs = Logs(LogConfig(), {}, descriptor=theirs)
        log = Logger(namespace="layer8.x", observer=LogPublisher(logs))
        log.info("x", event="proxy.closed", host="a.example", reason="done", bytes_in=1_200_000, seconds=3)
        self.assertRegex(
            os.read(ours, 10_000),
            rb"\A\d\d:\d\d:00 info proxy closed host=a\.example reason=done bytes_in=1\.6MB seconds=3\r\n\Z",
        )

    def test_sizes_for_people(self) -> None:
        self.assertEqual(
            [size_words(n) for n in (0, 999, 1000, 123_456, 10**9, 10**15)],
            ["0B", "999B", "1.0kB", "123kB", "1.0GB", "1000.0TB"],
        )
