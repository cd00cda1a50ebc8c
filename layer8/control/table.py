"""The one table of methods and events that every binding, the command line and the OpenRPC file are made from.

A module is any object that names the words it owns and whose methods are decorated::

    class Registrations:
        owns = ("proxy",)
        events = (Event("proxy.subscribed", Subscribed, role="read"),)

        @method("proxy.register", role=("owner", "admin"), errors=(HostTaken,))
        async def register(self, caller: Caller, params: Register) -> Registered: ...

`Table.call` is the only way to run one, so who may call what is checked in exactly one place, `Table._check`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, get_type_hints

from attrs import frozen

from layer8.control.access import ROLES, Caller, reach
from layer8.control.errors import ControlError, Forbidden, InvalidParams, MethodNotFound, NotFound, translate
from layer8.control.events import EventLost, Hub, Note, Subscriber
from layer8.control.jsonrpc import encode
from layer8.control.scalars import Shape, ShapeError
from layer8.control.shape import shape_of
from layer8.core.errors import Layer8Error

CALL_TIME: Final = 30.0  # seconds a method may take unless it says otherwise

F = TypeVar("F", bound=Callable[..., Any])
_MARK: Final = "__layer8_method__"


@frozen
class Declaration:
    """What the decorator was told."""

    name: str
    roles: tuple[str, ...]
    errors: tuple[type[ControlError], ...]
    timeout: float
    within: str | None
    anywhere: bool


@frozen
class Method:
    """One row: a name, its parameters and result, who may call it and how long it may take, in seconds.

    `anywhere`: every node of a cluster gives the same answer, so a router may choose one.
    """

    name: str
    params: Any
    result: Any
    roles: tuple[str, ...]
    errors: tuple[type[ControlError], ...]
    timeout: float
    within: str | None
    doc: str
    run: Callable[..., Awaitable[Any]]
    takes: Shape
    gives: Shape
    anywhere: bool = False


@frozen
class Event:
    """Something that happens, told to those who subscribed; `key` names the data member that `every_ms` goes by."""

    name: str
    data: type[Any]
    role: str = "read"
    key: str | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse a role that does not exist."""
        _known_roles((self.role,))


@frozen
class Changed:
    """Names of methods and events that came or went."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@frozen
class Nothing:
    """The parameters of a method that takes none, the result of one that gives none."""


def method(
    name: str,
    *,
    role: str | tuple[str, ...],
    errors: tuple[type[ControlError], ...] = (),
    timeout: float = CALL_TIME,
    within: str | None = None,
    anywhere: bool = False,
) -> Callable[[F], F]:
    """Make `async def f(self, caller[, params: P]) -> R` a row of the table.

    Any of `role` may call it. `within` limits it to listeners whose ceiling has that role, whatever the caller may
    do elsewhere: `proxy.hello` is public, on an agent listener. `anywhere`: all nodes of a cluster answer alike.
    """
    roles = (role,) if isinstance(role, str) else role
    _known_roles(roles if within is None else (*roles, within))

    def declare(function: F) -> F:
        setattr(function, _MARK, Declaration(name, roles, errors, timeout, within, anywhere))
        return function

    return declare


def _known_roles(roles: Iterable[str]) -> None:
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"{role!r} is not a role")


class Table:
    """All methods and events of the roles that run in this process."""

    owns = ("rpc", "event")
    events = (Event("rpc.changed", Changed, role="public"), Event("event.lost", EventLost, role="public"))

    def __init__(self, wall: Callable[[], float]) -> None:
        """Take the clock that stamps events: seconds since 1970."""
        self._wall = wall
        self._hub = Hub()
        self._methods: dict[str, Method] = {}
        self._events: dict[str, Event] = {}
        self._owners: dict[str, str] = {}
        self.add(self)

    @property
    def methods(self) -> Mapping[str, Method]:
        """Every row, by name, in the order in which they were added."""
        return self._methods

    @property
    def announced(self) -> Mapping[str, Event]:
        """Every event, by name."""
        return self._events

    def add(self, module: Any) -> None:
        """Add a module's rows and events, all or none; raises ValueError for a duplicate or unowned name."""
        owner = type(module).__module__.rpartition(".")[0]
        owns = getattr(module, "owns", ())
        for word in owns:
            if self._owners.get(word, owner) != owner:
                raise ValueError(f"{word}.* already belongs to {self._owners[word]}")
        rows = _rows(module)
        news = tuple(getattr(module, "events", ()))
        # a method and an event may share a name: `node.health` asks once, or is told
        methods, events = [row.name for row in rows], [event.name for event in news]
        for names, there in ((methods, self._methods), (events, self._events)):
            for name in names:
                if name.partition(".")[0] not in owns or not name.partition(".")[2]:
                    raise ValueError(f"{type(module).__qualname__} does not own {name}")
                if name in there or names.count(name) > 1:
                    raise ValueError(f"{name} is there already")
        names = list(dict.fromkeys(methods + events))
        self._owners.update(dict.fromkeys(owns, owner))
        self._methods.update((row.name, row) for row in rows)
        self._events.update((event.name, event) for event in news)
        if names:
            self.publish("rpc.changed", Changed(added=tuple(names)))

    def remove(self, module: Any) -> None:
        """Take a module's rows and events out again; calls that run are left to end."""
        names = [row.name for row in _rows(module)] + [event.name for event in getattr(module, "events", ())]
        for name in names:
            self._methods.pop(name, None)
            self._events.pop(name, None)
        words = {name.partition(".")[0] for name in (*self._methods, *self._events)}
        for word in getattr(module, "owns", ()):
            if word not in words:
                self._owners.pop(word, None)
        if names:
            self.publish("rpc.changed", Changed(removed=tuple(names)))

    async def call(self, caller: Caller, name: str, params: Mapping[str, Any]) -> Any:
        """Run one method and give its result as a JSON value.

        Raises ControlError for everything that is an answer. Any other exception is our own bug: whoever calls
        turns it into an answer with `errors.answer_to`, after letting cancellation pass, and keeps `Method.timeout`.
        """
        row = self._methods.get(name)
        if row is None:
            raise MethodNotFound(name)
        self._check(caller, row.roles, row.within)
        try:
            taken = row.takes.load(params)
        except ShapeError as error:
            raise InvalidParams(error.path, error.why) from None
        try:
            result = await row.run(caller, taken)
        except Layer8Error as error:
            answer = translate(error)
            if answer is None:
                raise
            raise answer from error
        dump = row.gives.dump
        return result if dump is None else dump(result)

    def may(self, caller: Caller, row: Method | Event) -> bool:
        """Say whether `_check` would let this caller pass; for lists of what there is."""
        try:
            if isinstance(row, Event):
                self._check(caller, (row.role,), None)
            else:
                self._check(caller, row.roles, row.within)
        except Forbidden:
            return False
        return True

    def _check(self, caller: Caller, roles: tuple[str, ...], within: str | None) -> None:
        """Raise Forbidden unless the caller may act in one of the roles; nothing else decides about permission."""
        if within is not None and within not in reach(caller.ceiling):
            raise Forbidden(within)
        for role in roles:
            if caller.may(role):
                return
        raise Forbidden(roles[0])

    def subscribe(
        self,
        caller: Caller,
        subscriber: Subscriber,
        names: Iterable[str],
        every_ms: int = 0,
        match: Mapping[str, Any] | None = None,
    ) -> int:
        """Subscribe to events and give the subscription's number; raises NotFound, Forbidden, NoCapacity."""
        wanted = tuple(names)
        for name in wanted:
            event = self._events.get(name)
            if event is None:
                raise NotFound("event")
            self._check(caller, (event.role,), None)
        return self._hub.subscribe(subscriber, wanted, every_ms / 1000, match or {})

    def unsubscribe(self, subscriber: Subscriber, number: int) -> None:
        """End one subscription; raises NotFound."""
        self._hub.unsubscribe(subscriber, number)

    def leave(self, subscriber: Subscriber) -> None:
        """End all subscriptions of a connection that is gone."""
        self._hub.leave(subscriber)

    def wanted(self, name: str) -> bool:
        """Say whether anybody has subscribed to this event, before computing what it would say."""
        return self._hub.wanted(name)

    def publish(self, name: str, data: Any) -> None:
        """Tell an event to everybody who subscribed; does nothing at all if nobody did."""
        event = self._events.get(name)
        if event is None or not self._hub.wanted(name):
            return  # None: its module has just gone
        if type(data) is not event.data:
            raise TypeError(f"{name} tells a {event.data.__qualname__}, not a {type(data).__qualname__}")
        dump = shape_of(event.data).dump
        told = dump(data) if dump is not None else data
        text = encode(told)
        key = None if event.key is None else told.get(event.key)
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._hub.publish(Note(name, at, told, text, key))


def _rows(module: Any) -> list[Method]:
    rows = []
    for attribute, function in inspect.getmembers_static(type(module)):
        declared = getattr(function, _MARK, None)
        if isinstance(declared, Declaration):
            rows.append(_row(declared, function, getattr(module, attribute)))
    return rows


def _row(declared: Declaration, function: Callable[..., Any], bound: Callable[..., Awaitable[Any]]) -> Method:
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{declared.name} must be an async def")
    hints = get_type_hints(function, include_extras=True)
    names = list(inspect.signature(function).parameters)
    if len(names) not in (2, 3) or "return" not in hints:
        raise TypeError(f"{declared.name} must be async def f(self, caller[, params: P]) -> R")
    params = Nothing if len(names) == 2 else hints[names[2]]
    result = Nothing if hints["return"] is type(None) else hints["return"]
    doc = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    run = bound if len(names) == 3 else _without_params(bound)
    return Method(
        name=declared.name,
        params=params,
        result=result,
        roles=declared.roles,
        errors=declared.errors,
        timeout=declared.timeout,
        within=declared.within,
        doc=doc,
        run=run,
        takes=shape_of(params),
        gives=shape_of(result),
        anywhere=declared.anywhere,
    )


def _without_params(bound: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    def run(caller: Caller, params: Nothing) -> Awaitable[Any]:
        return bound(caller)

    return run
