"""Many agents in one process, of which some come and go: `python -m bench.crowd CONFIG PER_SECOND`.

Each `[[agent.host]]` of the configuration file gets an agent of its own, with its own connection. It prints how often
an agent was replaced, a line each time.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from layer8.config.load import load
from layer8.config.proxy import AgentConfig
from layer8.proxy.agent import Agent, read_hosts


@define(eq=False)
class Crowd:
    """The agents, and how often one was replaced."""

    reactor: Any
    configs: tuple[AgentConfig, ...]
    agents: dict[int, Agent] = field(factory=dict)
    replaced: int = 0
    chance: random.Random = field(factory=random.Random)

    def start(self, number: int) -> None:
        """Let one agent begin."""
        config = self.configs[number]
        agent = self.agents[number] = Agent(self.reactor, config, read_hosts(config, os.environ))
        agent.startService()

    def replace(self) -> None:
        """End one agent, whatever it carries, and let its successor begin."""
        if not self.agents:
            return
        number = self.chance.choice(list(self.agents))
        gone: Deferred[None] = self.agents.pop(number).stopService()
        gone.addCallback(lambda _: self.start(number))
        self.replaced += 1
        print(self.replaced, flush=True)


def main(path: str, per_second: str) -> None:
    """Run until the process is ended."""
    from twisted.internet import reactor

    config = load(Path(path), os.environ, {}).config.agent
    crowd = Crowd(reactor, tuple(evolve(config, host=(host,)) for host in config.host))
    for number in range(len(crowd.configs)):
        crowd.start(number)
    churn = LoopingCall(crowd.replace)
    churn.start(1 / float(per_second), now=False)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:3])
