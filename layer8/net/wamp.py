"""A session with a WAMP router, made again whenever it ends: 1 to 60 s between tries, for as long as the service runs.

Everything that is done over the session belongs to its users, who are told of each new one: registrations and
subscriptions end with a session and are made again in the next. Autobahn's `Component` is started with our reactor
and never run, JSON is the only serializer. This module is imported where a router is configured and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from autobahn.twisted.component import Component
from autobahn.twisted.wamp import Session as AutobahnSession
from autobahn.wamp.exception import ApplicationError, TransportLost
from autobahn.websocket.util import parse_url as parse_ws_url
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.config.sections import WampConfig
from layer8.core.errors import Layer8Error, TimedOut, Unavailable

RETRY_LEAST = 1.0
RETRY_MOST = 60.0
RETRY_GROWTH = 1.25
PING = 10.0
"""Seconds between pings to the router, and seconds that it has to answer one."""
MESSAGE = 1 << 20
"""Most bytes of one message from the router."""
LEAVE_TIME = 1.0
"""Seconds that saying goodbye may take."""
REASON = 120
"""Characters of the router's reason that we show."""


class Session(AutobahnSession):
    """Autobahn's session with its opinions about other people's errors left out of the log."""

    def onUserError(self, fail: Failure, msg: str) -> None:
        """Let an answer that is an error be an answer; whoever made it has logged what is a bug."""


class User(Protocol):
    """Somebody who does something over the session. Neither call may raise."""

    def joined(self, session: Any) -> None:
        """Begin: there is a session; register and subscribe anew."""

    def parted(self) -> None:
        """Forget the session: it is gone, and with it all that was registered."""


class Link(Service):
    """See the module; `report(ok, why)` hears whenever the session comes or goes, for a health row."""

    _log = Logger(namespace="layer8.router")

    def __init__(
        self,
        reactor: Any,
        config: WampConfig,
        name: str,
        ticket: str,
        report: Callable[[bool, str], None] = lambda ok, why: None,
    ) -> None:
        """Take the router's section, and our name at it with what proves it."""
        self.config = config
        self.session: Any = None
        self._reactor = reactor
        self._name = name
        self._ticket = ticket
        self._report = report
        self._users: list[User] = []
        self._calls: set[Deferred[Any]] = set()
        self._component: Any = None
        self._ended: Deferred[None] | None = None
        self._again: IDelayedCall | None = None
        self._pause = RETRY_LEAST
        self._why = "not joined yet"

    def use(self, user: User) -> None:
        """Let somebody use each session from now on, also the one that stands."""
        self._users.append(user)
        if self.session is not None:
            user.joined(self.session)

    def call(self, procedure: str, params: Mapping[str, Any], timeout: float) -> Deferred[Any]:
        """Call a procedure over the session, for at most `timeout` seconds; cancelling asks the router to cancel it.

        Fails with `Unavailable` (no session, or it ended meanwhile), `TimedOut` or `RouterError`.
        """
        session = self.session
        if session is None:
            return fail(Unavailable(f"no router: {self._why}"))

        def cancel(answer: Deferred[Any]) -> None:
            self._calls.discard(answer)
            if self.session is session:  # without its transport Autobahn would stumble
                waiting.cancel()

        answer: Deferred[Any] = Deferred(cancel)
        try:
            waiting: Deferred[Any] = session.call(procedure, **params)
        except TransportLost:
            return fail(Unavailable("the router is gone"))
        self._calls.add(answer)

        def done(result: Any) -> None:
            if answer in self._calls:
                self._calls.discard(answer)
                answer.callback(result)

        waiting.addErrback(_explained)
        waiting.addBoth(done)
        answer.addTimeout(timeout, self._reactor, onTimeoutCancel=lambda result, seconds: _late(result, procedure))
        return answer

    def publish(self, topic: str, params: Mapping[str, Any]) -> bool:
        """Publish an event to everybody else; False if there is no session."""
        try:
            if self.session is not None:
                self.session.publish(topic, **params)
                return True
        except TransportLost:
            pass
        return False

    def startService(self) -> None:
        """Begin to join."""
        Service.startService(self)
        self._report(False, self._why)
        self._start()

    def stopService(self) -> Deferred[None]:
        """Take leave of the router."""
        Service.stopService(self)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        session, ended = self.session, self._ended
        self._parted("stopped")
        if ended is None:
            ended = Deferred()
            ended.callback(None)
            return ended
        if session is not None:
            session.leave().addErrback(lambda _: None)
        waiting: Deferred[None] = Deferred()

        def over(_: None) -> None:
            if not waiting.called:
                waiting.callback(None)

        ended.addCallback(over)
        waiting.addTimeout(LEAVE_TIME, self._reactor)
        return waiting.addErrback(self._cut_off)

    def _cut_off(self, reason: Failure) -> None:
        """Wait no longer for a router that does not answer; a connection that comes later is closed at once."""
        reason.trap(TimeoutError)
        self._abort()

    def _abort(self) -> None:
        transport = getattr(self._component._session, "_transport", None)
        if transport is not None and transport.isOpen():
            transport.abort()

    def _start(self) -> None:
        self._again = None
        self._component = component = Component(
            transports=[
                {
                    "type": "websocket",
                    "url": self.config.url,
                    "serializers": ["json"],
                    **_endpoint(self.config),
                    "max_retries": 0,  # trying again is ours: a pause of Autobahn's own cannot be cut short
                    "options": {
                        "openHandshakeTimeout": PING,
                        "autoPingInterval": PING,
                        "autoPingTimeout": PING,
                        "maxMessagePayloadSize": MESSAGE,
                        "maxFramePayloadSize": MESSAGE,
                    },
                }
            ],
            realm=self.config.realm,
            authentication={"ticket": {"authid": self._name, "ticket": self._ticket}},
            session_factory=Session,
        )
        component.on("join", self._joined)
        component.on("leave", lambda session, details: self._parted(_words(details.message or details.reason)))
        component.on("disconnect", lambda session, was_clean=False: self._parted("the connection was lost"))
        component.on("connectfailure", lambda component, error: self._failed(error))
        self._ended = Deferred()
        component.start(self._reactor).addBoth(self._over, self._ended)

    def _joined(self, session: Any, details: Any) -> None:
        if not self.running:
            session.leave().addErrback(lambda _: None)
            return
        self.session = session
        self._pause = RETRY_LEAST
        self._log.info("joined the router", event="router.joined")
        self._report(True, "")
        for user in self._users:
            user.joined(session)

    def _parted(self, why: str) -> None:
        if self.session is None:
            return
        self.session = None
        self._tell(why)
        calls, self._calls = self._calls, set()
        for answer in calls:
            answer.errback(Unavailable("the router is gone"))
        for user in self._users:
            user.parted()

    def _failed(self, error: BaseException) -> None:
        if self.session is None and self.running:
            words = error.error_message() if isinstance(error, ApplicationError) else str(error)
            self._tell(_words(words or type(error).__name__))

    def _tell(self, why: str) -> None:
        if self.running and why != self._why:
            self._log.info("no router: {why}", event="router.lost", why=why)
        self._why = why
        self._report(False, why)

    def _over(self, _: object, ended: Deferred[None]) -> None:
        self._parted("the router ended the session")
        self._abort()  # what Autobahn leaves to the router to close
        self._ended = None
        if self.running:
            self._again = self._reactor.callLater(self._pause, self._start)
            self._pause = min(self._pause * RETRY_GROWTH, RETRY_MOST)
        ended.callback(None)


def _endpoint(config: WampConfig) -> dict[str, Any]:
    """Say how to connect where the URL alone does not: to a router whose certificate is vouched for by a file."""
    if not config.ca_file:
        return {}
    _, host, port, *_ = parse_ws_url(config.url)
    tls = {"hostname": host, "trust_root": config.ca_file}
    return {"endpoint": {"type": "tcp", "host": host, "port": port, "tls": tls}}


def _words(text: str) -> str:
    """Give the first line of what somebody else says, without anything that is no plain letter."""
    return "".join(letter for letter in text.partition("\n")[0][:REASON] if letter.isprintable())


def _explained(reason: Failure) -> Failure:
    error = reason.value
    if isinstance(error, TransportLost):
        return Failure(Unavailable("the router is gone"))
    if isinstance(error, ApplicationError):
        return Failure(RouterError(error.error, error.error_message(), error))
    return reason


def _late(result: Any, procedure: str) -> Any:
    if isinstance(result, Failure):
        result.trap(CancelledError)
        return Failure(TimedOut(f"{procedure}: no answer in time"))
    return result


class RouterError(Layer8Error):
    """A call over the router failed; `uri` says how."""

    def __init__(self, uri: str, why: str, answer: ApplicationError) -> None:
        """Take the error's URI, the words that came with it, and all of it."""
        super().__init__(f"{uri}: {_words(why)}" if why else uri)
        self.uri = uri
        self.answer = answer


__all__ = ["ApplicationError", "Link", "RouterError", "Session", "TransportLost", "User"]
