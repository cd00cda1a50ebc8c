"""What one control connection may do, by kind of listener, and how it is told that it was too much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

MESSAGE: Final = 64 * 1024  # bytes of one message, local and admin listeners, from their callers
ANSWER: Final = 128 * 1024  # to their callers: a node's description of itself is longer than any call
MESSAGE_AGENT: Final = 16 * 1024  # on the agent listener, from its peers
ANSWER_AGENT: Final = 32 * 1024  # on the agent listener, to its peers: our own description is longer than any call
MESSAGE_LEGACY: Final = 1024  # on the listener for webgw agents
CALLS_OPEN: Final = 64  # running at once
CALL_RATE: Final = 200.0  # per second
CALL_BURST: Final = 400.0
CALL_RETRY_MS: Final = 50  # when CALLS_OPEN run: the time most calls need is far below it
ERRORS: Final = 20  # unreadable messages in a row
AUTH_TIME: Final = 5.0  # seconds until a caller has to be known where only known callers may do anything
DEAD: Final = 40.0  # seconds of silence
AUTH_FAILS: Final = 3  # wrong tokens per connection

# why we close, as a WebSocket close code; other reasons are for the log only and go as 1000
CLOSE_CODES: Final[Mapping[str, int]] = {
    "done": 1000,
    "going_away": 1001,
    "frame": 1002,
    "binary": 1003,
    "utf8": 1007,
    "errors": 1008,
    "wrong_token": 1008,
    "unproven": 1008,
    "slow_reader": 1008,
    "message_size": 1009,
    "silent": 1001,
}


@frozen
class Rules:
    """What one kind of connection takes.

    `message` is the largest message in bytes that is taken, `answer` that is sent, 0 being the same. `serves`: the
    peer's calls are run, else they get method_not_found. `runs_notifications`: they are run like calls, else they are
    told. `positional`: parameters may come in an array. `must_prove`: nothing here is public, so AUTH_TIME applies
    until the caller is known.
    """

    message: int = MESSAGE
    answer: int = 0
    serves: bool = True
    runs_notifications: bool = True
    positional: bool = False
    must_prove: bool = False

    @property
    def most(self) -> int:
        """The largest message that is sent."""
        return self.answer or self.message


SERVER: Final = Rules(answer=ANSWER)
AGENTS: Final = Rules(message=MESSAGE_AGENT, answer=ANSWER_AGENT)
LEGACY: Final = Rules(message=MESSAGE_LEGACY, positional=True)
CLIENT: Final = Rules(serves=False, runs_notifications=False)
