"""The binding of the method table between processes of one daemon: calls both ways over a courier.

::

    call      {"id": 1, "call": "proxy.stats", "params": {...}}
    result    {"id": 1, "result": ...}
    error     {"id": 1, "error": {"code": -32601, "message": "...", "data": {...}}}
    told      {"tell": "bus.changed", "params": {...}}       descriptors may come with it
    raw       a first byte that is not "{"

There is no caller to be checked and no rate to be kept: both ends are this program, one has started the other, and the
socket has no name that a third could open. What takes longer than its time fails, and so does all that waits when the
other process ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from secrets import token_hex
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.control.errors import (
    CallTimedOut,
    CallUnavailable,
    ControlError,
    Internal,
    MethodNotFound,
    NoCapacity,
    answer_to,
    from_wire,
)
from layer8.core.errors import RemoteProtocolError
from layer8.net.courier import MESSAGE, Courier
from layer8.net.tasks import TaskSet

CALL_TIME: Final = 30.0
"""Seconds until a call without a time of its own fails."""

Serve = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Runs a call of the other process and gives its result as a JSON value."""
Told = Callable[[str, dict[str, Any], list[int]], None]
"""Takes what the other process tells; descriptors are the taker's."""


async def serves_nothing(method: str, params: dict[str, Any]) -> Any:
    """Refuse every call."""
    raise MethodNotFound(method)


class Inside:
    """One end of the talk; `sock` is a courier's socket."""

    _log = Logger(namespace="layer8.control.inside")

    def __init__(
        self,
        reactor: Any,
        sock: Any,
        *,
        serve: Serve = serves_nothing,
        told: Told,
        raw: Callable[[bytes], None] | None = None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over the socket; `lost` is called once when the other process has ended."""
        self._clock: IReactorTime = reactor
        self._serve = serve
        self._told = told
        self._raw = raw
        self._when_lost = lost
        self._waiting: dict[int, Deferred[Any]] = {}
        self._last = 0
        self._tasks = TaskSet(self._log)
        self._courier = Courier(reactor, sock, self._heard, self._lost)

    @property
    def open(self) -> bool:
        """Whether the other process is there."""
        return self._courier.open

    async def call(self, method: str, params: Mapping[str, Any] | None = None, seconds: float = CALL_TIME) -> Any:
        """Call the other process and give its result; raises ControlError: its own, CallTimedOut, CallUnavailable."""
        self._last += 1
        ident = self._last

        def forget(_: Deferred[Any]) -> None:
            self._waiting.pop(ident, None)

        waiting: Deferred[Any] = Deferred(forget)
        self._waiting[ident] = waiting
        if not self._say({"id": ident, "call": method, "params": dict(params or {})}):
            self._waiting.pop(ident, None)
            raise CallUnavailable("the other process is gone")
        waiting.addTimeout(seconds, self._clock)
        try:
            return await waiting
        except TimeoutError:
            raise CallTimedOut(method) from None

    def tell(self, method: str, params: Mapping[str, Any], descriptors: Sequence[int] = ()) -> bool:
        """Tell the other process something; False if it is gone."""
        return self._say({"tell": method, "params": dict(params)}, descriptors)

    def carry(self, message: bytes) -> bool:
        """Send bytes of which nothing is known here; they do not begin with a brace."""
        return self._courier.send(message)

    def finish(self) -> None:
        """Take the other process's last words, which has ended, and end the talk."""
        self._courier.finish()
        self.close()

    def close(self) -> None:
        """End the talk; what waits for an answer fails."""
        self._courier.close()
        self._tasks.stop()
        self._fail_all()

    def _say(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
        return self._courier.send(_text(message), descriptors)

    def _heard(self, message: bytes, descriptors: list[int]) -> None:
        if self._raw is not None and not message.startswith(b"{"):
            self._raw(message)
            return
        try:
            said = parse(message)
        except RemoteProtocolError:
            said = {}
        if type(said.get("tell")) is str and type(said.get("params")) is dict:
            self._told(said["tell"], said["params"], descriptors)
            return
        for number in descriptors:
            os.close(number)
        if type(said.get("id")) is not int:
            self._courier.close()
            self._lost()
            return
        if type(said.get("call")) is str and type(said.get("params")) is dict:
            self._tasks.start(said["call"], self._answer(said["id"], said["call"], said["params"]))
            return
        waiting = self._waiting.pop(said["id"], None)
        if waiting is None:
            return
        error = said.get("error")
        if error is None:
            waiting.callback(said["result"])
        else:
            waiting.errback(Failure(from_wire(error["code"], error["message"], error.get("data"))))

    async def _answer(self, ident: int, method: str, params: dict[str, Any]) -> None:
        try:
            result = await self._serve(method, params)
        except CancelledError:
            raise
        except Exception as error:
            answer = answer_to(error, token_hex(8))
            if isinstance(answer, Internal):
                self._log.failure("a call failed", event="control.call_failed", id=answer.data["id"])
            self._say({"id": ident, "error": _wire(answer)})
            return
        text = _text({"id": ident, "result": result})
        if len(text) > MESSAGE:
            text = _text({"id": ident, "error": _wire(NoCapacity("MESSAGE"))})
        self._courier.send(text)

    def _lost(self) -> None:
        self._tasks.stop()
        self._when_lost()
        self._fail_all()

    def _fail_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.errback(Failure(CallUnavailable("the other process is gone")))


def _wire(error: ControlError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "data": error.data}


def _text(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def parse(message: bytes) -> dict[str, Any]:
    """Take a message apart, where it is waited for without a reactor; raises `RemoteProtocolError`."""
    try:
        said = json.loads(message)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise RemoteProtocolError("this is no message of ours")
    return said


def write_call(ident: int, method: str, params: Mapping[str, Any]) -> bytes:
    """Write a call, to be sent without a reactor."""
    return _text({"id": ident, "call": method, "params": dict(params)})


def read(message: bytes) -> tuple[str, dict[str, Any]]:
    """Take apart something told, where it is waited for without a reactor; raises `RemoteProtocolError`."""
    said = parse(message)
    if "tell" not in said:
        raise RemoteProtocolError("something else was to be told")
    return str(said["tell"]), dict(said["params"])


def told(method: str, params: Mapping[str, Any]) -> bytes:
    """Write something told, to be sent without a reactor."""
    return _text({"tell": method, "params": dict(params)})
