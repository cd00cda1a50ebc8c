"""Calls both ways between processes of one daemon."""

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from layer8.control.errors import CallTimedOut, CallUnavailable, Internal, MethodNotFound, NoCapacity, NotFound
from layer8.control.inside import Inside, read, told
from layer8.core.errors import RemoteProtocolError
from layer8.net.courier import pair
from tests.control.rig import raises


class InsideTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.told: list[tuple[str, dict[str, Any], list[int]]] = []
        self.raw: list[bytes] = []
        self.lost: list[str] = []
        ours, theirs = pair()
        self.one = Inside(reactor, ours, told=self.heard, lost=lambda: self.lost.append("one"))
        self.two = Inside(
            reactor,
            theirs,
            serve=self.serve,
            told=self.heard,
            raw=self.raw.append,
            lost=lambda: self.lost.append("two"),
        )
        self.addCleanup(self.one.close)
        self.addCleanup(self.two.close)

    def heard(self, what: str, params: dict[str, Any], numbers: list[int]) -> None:
        self.told.append((what, params, numbers))

    async def serve(self, method: str, params: dict[str, Any]) -> Any:
        match method:
            case "add":
                return params["a"] + params["b"]
            case "absent":
                raise NotFound("thing")
            case "large":
                return "x" * 200_000
            case "never":
                await Deferred()
            case "bug":
                raise ZeroDivisionError
        raise MethodNotFound(method)

    async def test_calls(self) -> None:
        self.assertEqual(await self.one.call("add", {"a": 1, "b": 2}), 3)
        error = await raises(NotFound, self.one.call("absent"))
        self.assertEqual(error.data, {"what": "thing"})
        await raises(MethodNotFound, self.one.call("other"))
        await raises(MethodNotFound, self.two.call("add"))
        await raises(NoCapacity, self.one.call("large"))
        await raises(CallTimedOut, self.one.call("never", seconds=0.05))

    async def test_our_own_bug(self) -> None:
        error = await raises(Internal, self.one.call("bug"))
        self.assertEqual(len(error.data["id"]), 16)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_told_and_raw(self) -> None:
        read_end, write_end = os.pipe()
        self.one.tell("here", {"n": 1}, [write_end])
        self.one.carry(b"\x00raw")
        await self.one.call("add", {"a": 0, "b": 0})
        ((what, params, (number,)),) = self.told
        self.assertEqual((what, params, self.raw), ("here", {"n": 1}, [b"\x00raw"]))
        for one in (read_end, write_end, number):
            os.close(one)
        self.assertEqual(read(told("a", {"b": 1})), ("a", {"b": 1}))
        self.assertRaises(RemoteProtocolError, read, b"{}")

    async def test_the_end(self) -> None:
        waiting = Deferred.fromCoroutine(self.one.call("never"))
        self.two.close()
        error = None
        try:
            await waiting
        except CallUnavailable as raised:
            error = raised
        self.assertIsNotNone(error)
        self.assertEqual((self.lost, self.one.open), (["one"], False))
        await raises(CallUnavailable, self.one.call("add"))
        self.assertFalse(self.one.tell("x", {}))
