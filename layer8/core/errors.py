"""The error tree: everything this package raises on purpose."""

from __future__ import annotations


class Layer8Error(Exception):
    """Base of every error raised on purpose; its text is one line that says what and what to do."""


class ConfigError(Layer8Error):
    """A configured value cannot work; raised before anything listens."""


class LocalProtocolError(Layer8Error):
    """Our own side asked a session for something that its state does not allow."""


class RemoteProtocolError(Layer8Error):
    """A peer broke the protocol; it costs the peer its connection."""


class LimitExceeded(RemoteProtocolError):
    """A peer would have made something grow past a named limit."""

    def __init__(self, limit: str, most: int) -> None:
        """Name the limit (upper case, as in the limits table) and its value in its own unit."""
        super().__init__(f"over the limit {limit} of {most}")
        self.limit = limit
        self.most = most


class Refused(Layer8Error):
    """Policy says no; the text is the policy in words."""


class Unavailable(Layer8Error):
    """What was asked for is switched off, starting, or draining."""


class TimedOut(Layer8Error):
    """A peer or a service did not answer within its named time."""


class StorageError(Layer8Error):
    """Durable state could not be read or written; the text says why."""
