"""The proxy's own control errors: one class per code of `layer8.proxy.wire.Code`, as the method table wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from layer8.control.errors import ControlError, InvalidRequest, from_wire
from layer8.proxy.wire import Code, Denied, OutOfOrder


class UnknownHost(ControlError):
    """Nothing is registered under that name; only webgw's own methods say so."""

    code = Code.UNKNOWN_HOST.value
    name = "unknown_host"


class WrongSecret(ControlError):
    """The secret or proof is wrong, or there is no such host."""

    code = Code.WRONG_SECRET.value
    name = "wrong_secret"


class AlreadyRegistered(ControlError):
    """The name is taken."""

    code = Code.ALREADY_REGISTERED.value
    name = "already_registered"


class NotProven(ControlError):
    """The registration waits until its owner shows that the name is theirs: `proxy.prove`."""

    code = Code.NOT_PROVEN.value
    name = "not_proven"


class TooManyTries(ControlError):
    """Too many wrong secrets from this address; `retry_after_ms` says how long to wait."""

    code = Code.RATE_LIMITED.value
    name = "too_many_tries"


class Quota(ControlError):
    """The owner has as much as an owner may have; `limit` names it."""

    code = Code.QUOTA.value
    name = "quota"


class InvalidHost(ControlError):
    """Not a name that can be published here."""

    code = Code.INVALID_HOST.value
    name = "invalid_host"


class LeaseExpired(ControlError):
    """The subscription is over, or never was this connection's."""

    code = Code.LEASE_EXPIRED.value
    name = "lease_expired"


class AgentRefused(ControlError):
    """The agent's target does not answer."""

    code = Code.AGENT_REFUSED.value
    name = "agent_refused"


class NoRoom(ControlError):
    """The server, the host or this connection has as many as it may; `limit` names it."""

    code = Code.NO_CAPACITY.value
    name = "no_room"


class Draining(ControlError):
    """The server takes nothing new; `alternatives` are other servers."""

    code = Code.DRAINING.value
    name = "draining"


class NoCommonVersion(ControlError):
    """None of the agent's protocol versions is spoken here."""

    code = Code.NO_COMMON_VERSION.value
    name = "no_common_version"


class ForbiddenByPolicy(ControlError):
    """The policy of the server or the host says no."""

    code = Code.FORBIDDEN_BY_POLICY.value
    name = "forbidden_by_policy"


@contextmanager
def answering() -> Iterator[None]:
    """Turn what the pure parts raise into the control error with its code."""
    try:
        yield
    except Denied as denied:
        raise from_wire(denied.code, str(denied), denied.data) from denied
    except OutOfOrder as error:
        raise InvalidRequest(str(error)) from error
