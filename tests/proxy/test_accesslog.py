"""The access log: each line is one JSON object, as exact as it may be, and nothing of a peer can break it."""

import json
import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.net.lines import LineWriter
from layer8.proxy.accesslog import AccessLog
from layer8.proxy.sniff import Found
from layer8.proxy.sniff_http import HttpSniffer
from layer8.proxy.wire import Reason


class AccessLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        self.addCleanup(os.close, self.file)
        self.blur = 0.0
        self.wall = 1_700_000_123.9
        self.log = AccessLog(LineWriter(self.file), lambda: self.blur, lambda: self.wall)

    def write(self, **more: Any) -> dict[str, Any]:
        said: dict[str, Any] = {
            "conn": 7,
            "host": "app.test",
            "port": 443,
            "scheme": "https",
            "mode": "raw",
            "subscriber": 3,
            "reason": Reason.DONE,
            "sniff_ms": 1,
            "call_ms": 2,
            "ttfb_ms": 3,
            "bytes_in": 1001,
            "bytes_out": 100_001,
            "seconds": 1.23456,
            "address": None,
        }
        said.update(more)
        self.log.tick()
        self.log.write(**said)
        self.log.tick()
        with open(self.path) as lines:
            row: dict[str, Any] = json.loads(lines.readlines()[-1])
        return row

    def test_exact(self) -> None:
        row = self.write()
        self.assertEqual(
            row,
            {
                "t": "2023-11-14T22:15:23Z",
                "level": "info",
                "ns": "layer8.proxy",
                "event": "proxy.closed",
                "conn": "c7",
                "host": "app.test",
                "port": 443,
                "scheme": "https",
                "mode": "raw",
                "subscriber": 3,
                "pooled": False,
                "reason": "done",
                "sniff_ms": 1,
                "call_ms": 2,
                "ttfb_ms": 3,
                "bytes_in": 1001,
                "bytes_out": 100_001,
                "seconds": 1.235,
            },
        )

    def test_blurred(self) -> None:
        self.blur = 60.0
        row = self.write()
        self.assertEqual(row["t"], "2023-11-14T22:15:00Z")
        self.assertEqual((row["bytes_in"], row["bytes_out"], row["seconds"]), (1024, 131_072, 1))

    def test_what_never_happened(self) -> None:
        row = self.write(subscriber=None, sniff_ms=None, call_ms=None, ttfb_ms=None, host="", reason=Reason.NO_NAME)
        for key in ("subscriber", "sniff_ms", "call_ms", "ttfb_ms"):
            self.assertIsNone(row[key])
        self.assertEqual((row["host"], row["reason"]), ("", "no_name"))

    def test_addresses(self) -> None:
        for address in ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0", "ab12cd34"):
            self.assertEqual(self.write(address=address)["address"], address)

    def test_every_reason(self) -> None:
        for reason in Reason:
            self.assertEqual(self.write(reason=reason)["reason"], reason.value)

    @given(st.binary(min_size=1, max_size=60))
    def test_whatever_a_visitor_calls_itself(self, name: bytes) -> None:
        """Only names that the sniffer lets through are written, and none of them needs to be escaped."""
        sniffer = HttpSniffer()
        found = sniffer.feed(b"GET / HTTP/1.1\r\nHost: " + name + b"\r\n\r\n")
        if isinstance(found, Found) and found.host is not None:
            self.assertEqual(self.write(host=found.host)["host"], found.host)
