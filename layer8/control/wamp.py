"""The control table over a WAMP router: each session that calls is one `Conversation`, whose socket is the router.

::

    call      layer8.NODE.METHOD, keyword arguments     ─▶  a JSON-RPC call of that caller's conversation
    result    one dict or list                          ◀─  its result
    error     layer8.error.NAME, data by keyword        ◀─  its error
    event     layer8.NODE.event.NAME                    ◀─  to those alone who called events.subscribe
    note      layer8.NODE.note.METHOD                   ◀─  any other notification, to that caller alone

So what a caller sees, and every cap and permission, is the same as over a WebSocket. NODE is the node's short id;
`layer8.any.METHOD` reaches any node, for methods that answer alike on all. Roles come from the caller's role at the
router by `[control.wamp] roles`; a caller that the router does not disclose may do what is public and is told nothing.
The router reads everything: calls are not private, so no token is taken or shown. Source: control.md section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from attrs import define, field
from autobahn.wamp.types import CallDetails, PublishOptions, RegisterOptions, SubscribeOptions
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.control.access import EVERYTHING
from layer8.control.conversation import NOBODY, Conversation, Counts, Known
from layer8.control.errors import (
    CallUnavailable,
    ControlError,
    InvalidParams,
    MethodNotFound,
    NoCapacity,
    ParseFailed,
    RateLimited,
    from_wire,
)
from layer8.control.jsonrpc import decode, encode_call, encode_notification
from layer8.control.limits import SERVER
from layer8.control.table import Table
from layer8.control.websocket import Pulse, Socket
from layer8.net.wamp import ApplicationError, TransportLost

GUESTS = 256
"""Sessions that call at the same time; the one that was quiet for longest makes room."""
ANY = "any"
ERROR = "layer8.error."
_DETAILS = "_call"  # no method's parameter begins with an underscore


class WampBinding:
    """Serves a table over each session that it is given; a `User` of a `Link`."""

    _log = Logger(namespace="layer8.control")

    def __init__(self, pulse: Pulse, table: Table, node: str, roles: Mapping[str, str]) -> None:
        """Take the node's short id, and our role for each role of the router."""
        self.pulse = pulse
        self.table = table
        self.node = node
        self.counts = Counts()
        self.crowd: set[Conversation] = set()
        self.session: Any = None
        self.draining = False
        self._roles = {name: frozenset({role}) for name, role in roles.items()}
        self._guests: dict[int, Guest] = {}

    # As a user of the link.

    def joined(self, session: Any) -> None:
        """Register everything with the router."""
        self.session = session
        prefix = RegisterOptions(match="prefix", details_arg=_DETAILS, force_reregister=True)
        shared = RegisterOptions(match="prefix", invoke="random", details_arg=_DETAILS)
        for waiting in (
            session.register(self._called, f"layer8.{self.node}.", prefix),
            session.register(self._called_any, f"layer8.{ANY}.", shared),
            session.subscribe(self._left, "wamp.session.on_leave", SubscribeOptions()),
        ):
            waiting.addErrback(self._refused)

    def parted(self) -> None:
        """Forget everybody: without the router they are gone."""
        self.session = None
        for guest in list(self._guests.values()):
            guest.leave("gone")

    def drain(self, draining: bool) -> None:
        """Take no new calls but `node.*` from those who come next either."""
        self.draining = draining

    def _refused(self, reason: Failure) -> None:
        if reason.check(TransportLost):
            return
        words = getattr(reason.value, "error", None) or reason.getErrorMessage()
        self._log.error("the router does not let us serve: {why}", event="router.refused", why=str(words)[:120])

    def _left(self, session: Any, *_more: Any, **_words: Any) -> None:
        guest = self._guests.get(session)
        if guest is not None:
            guest.leave("gone")

    # Calls.

    def _called(self, *args: Any, **params: Any) -> Deferred[Any]:
        details = cast(CallDetails, params.pop(_DETAILS))
        return self._call(details, (details.procedure or "").removeprefix(f"layer8.{self.node}."), args, params)

    def _called_any(self, *args: Any, **params: Any) -> Deferred[Any]:
        details = cast(CallDetails, params.pop(_DETAILS))
        method = (details.procedure or "").removeprefix(f"layer8.{ANY}.")
        row = self.table.methods.get(method)
        if row is None or not row.anywhere:
            return fail(_answer(MethodNotFound(method)))
        return self._call(details, method, args, params)

    def _call(self, details: CallDetails, method: str, args: tuple[Any, ...], params: dict[str, Any]) -> Deferred[Any]:
        if args:
            return fail(_answer(InvalidParams("", "parameters go by name")))
        try:
            guest = self._guest(details)
        except ControlError as error:
            return fail(_answer(error))
        answer = guest.call(method, params)
        if details.caller is None:
            answer.addBoth(self._one_call_only, guest)
        return answer

    def _guest(self, details: CallDetails) -> Guest:
        """Find or make the conversation of a caller; raises ControlError when there is no room."""
        caller = details.caller
        if caller is not None and caller in self._guests:
            guest = self._guests.pop(caller)
            self._guests[caller] = guest  # the last to call is the last to make room
            return guest
        if len(self.crowd) >= GUESTS:
            idle = next((each for each in self._guests.values() if not each.busy), None)
            if idle is None:
                raise RateLimited(1000)
            idle.leave("room")
        who = NOBODY if caller is None else self._known(details)
        guest = Guest(self, caller, who)
        if caller is not None:
            self._guests[caller] = guest
        return guest

    def _known(self, details: CallDetails) -> Known:
        roles = self._roles.get(details.caller_authrole or "", NOBODY.roles)
        return Known(str(details.caller_authid or "")[:64] or NOBODY.name, roles)

    def _one_call_only(self, result: Any, guest: Guest) -> Any:
        guest.leave("done")
        return result

    def forget(self, guest: Guest) -> None:
        """Drop a guest whose conversation has ended."""
        if guest.session is not None and self._guests.get(guest.session) is guest:
            del self._guests[guest.session]

    def tell(self, session: int | None, method: str, params: Mapping[str, Any]) -> bool:
        """Send a notification to one caller; False if it cannot be."""
        if self.session is None or session is None:
            return False
        words = dict(params)
        topic = f"event.{words.pop('name')}" if method == "event" else f"note.{method}"
        try:
            self.session.publish(
                f"layer8.{self.node}.{topic}", options=PublishOptions(eligible=[session], exclude_me=False), **words
            )
        except TransportLost:
            return False
        return True


@define(eq=False)
class Guest:
    """One caller's conversation; it is the `Socket` of that too, as far as one is asked of it."""

    binding: WampBinding
    session: int | None
    who: Known
    blocked: bool = field(default=False, init=False)
    _conversation: Conversation = field(init=False)
    _waiting: dict[int, Deferred[Any]] = field(factory=dict, init=False)
    _last: int = field(default=0, init=False)
    _over: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        """Open the conversation."""
        binding = self.binding
        self._conversation = Conversation(
            pulse=binding.pulse,
            rules=SERVER,
            table=binding.table,
            who=self.who,
            ceiling=EVERYTHING,
            counts=binding.counts,
            crowd=binding.crowd,
        )
        self._conversation.opened(cast(Socket, self))
        if binding.draining:
            self._conversation.drain(True)

    @property
    def busy(self) -> bool:
        """Whether a call waits for its answer."""
        return bool(self._waiting)

    @property
    def heard(self) -> float:
        """When there was a sign of life: the router would have told us of the caller's end."""
        return self.binding.pulse.seconds()

    def call(self, method: str, params: Mapping[str, Any]) -> Deferred[Any]:
        """Run a call as if it had come in a message; fails with `ApplicationError`."""
        self._last += 1
        ident = self._last
        try:
            message = encode_call(ident, method, params)
        except (TypeError, ValueError):
            return fail(_answer(ParseFailed("not JSON")))
        if len(message) > SERVER.message:
            return fail(_answer(NoCapacity("MESSAGE")))
        answer: Deferred[Any] = Deferred(lambda _: self._cancel(ident))
        self._waiting[ident] = answer
        self._conversation.received(message)
        return answer

    def leave(self, reason: str) -> None:
        """End: cancel what runs, forget what the caller subscribed to."""
        if self._over:
            return
        self._over = True
        self.binding.forget(self)
        self._conversation.lost(reason)
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.errback(_answer(CallUnavailable("the conversation has ended")))

    # As the conversation's socket.

    def send(self, message: bytes) -> bool:
        """Take what the conversation says: an answer to a call, or a notification."""
        said = decode(message)
        if "method" in said:
            return self.binding.tell(self.session, said["method"], said["params"])
        ident = said["id"]
        # an answer to nobody is one to what has just come and could not be read
        answer = self._waiting.pop(self._last if ident is None else ident, None)
        if answer is None:
            return True
        if "error" in said:
            error = said["error"]
            answer.errback(_answer(from_wire(error["code"], error["message"], error.get("data"))))
        else:
            answer.callback(said["result"])
        return True

    def end(self, reason: str) -> None:
        """End when the conversation has done what it is doing."""
        self.binding.pulse.clock.callLater(0, self.leave, reason)

    def abort(self, reason: str) -> None:
        """End likewise."""
        self.end(reason)

    def _cancel(self, ident: int) -> None:
        if self._waiting.pop(ident, None) is not None and not self._over:
            self._conversation.received(encode_notification("cancel", {"id": ident}))


def _answer(error: ControlError) -> ApplicationError:
    """Give an error as WAMP carries it."""
    return ApplicationError(ERROR + error.name, error.message, **error.data)
