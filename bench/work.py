"""What work costs those who knock at hidden services, and saves those who are knocked at: `layer8 bench work`.

All on one processor, in processor time. `search` and `check` are the work itself. Knocks are refused by the role of an
access point alone, then by a whole relay in memory: its links, onion layers, circuits and the answer, sockets and TLS
left out. An introduction is what a service does on a worker thread: it opens the blob and makes the reply. The circuit
on which it then comes to the client is counted by `layer8 bench hidden`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from attrs import define, frozen

from bench import machine, report
from bench.onion import ntor_round
from bench.report import Column, Layout, Results
from layer8.crypto.introduction import BLOB, Door, Knocked, Meeting, introduced, knock
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import HandshakeFailed, OnionKey, SeenX
from layer8.crypto.work import check, following, search
from layer8.relay.client import OFFER
from layer8.relay.wire import Reason
from layer8.rendezvous.access import Access
from layer8.rendezvous.limits import KNOCKS_PER_CIRC, MAX_EFFORT
from layer8.rendezvous.wire import (
    NO_WORK,
    SEED_HEAD,
    WORK_LABEL,
    Answer,
    Connect,
    Listen,
    Renzv,
    Status,
    Tune,
    Work,
    listen_text,
)
from layer8.testing.network import Network

Clock = Callable[[], float]

EFFORT: Final = 1 << 12  # of the solutions that are searched and shown
ASKED: Final = 1000  # what the access point asks for
REFUSED: Final = 20_000  # knocks a second and core
HANDLED: Final = 500  # introductions a second and core
CIRCUITS: Final = 8  # on each of which KNOCKS_PER_CIRC are refused by a whole relay


@define(eq=False)
class Caller:
    """The far end of a circuit: `layer8.core.roles.Asker`, which keeps the last answer."""

    circuit: int
    neighbour: bytes | None = None
    binding: bytes = bytes(32)
    alive: bool = True
    said: bytes = b""
    passed: int = 0

    def answer(self, command: int, data: bytes) -> None:
        """Keep it."""
        self.said = data
        self.passed += command == Renzv.CONNECT

    def destroy(self) -> None:
        """Stop."""
        self.alive = False


@frozen
class Guarded:
    """An access point at which somebody listens and asks for work."""

    access: Access
    service: Caller
    auth: NodeKey
    seed: bytes

    @classmethod
    def make(cls) -> Guarded:
        """Listen, and ask for ASKED."""
        access, service, auth, seed = Access(), Caller(0), NodeKey.make(), os.urandom(32)
        listen = Listen(auth.node_id, auth.sign(listen_text(service.binding)))
        access.asked(service, Renzv.RES_LISTEN, listen.encode(), 0.0)
        access.asked(service, Renzv.RES_TUNE, Tune(auth.node_id, seed, ASKED, 7200).encode(), 0.0)
        return cls(access, service, auth, seed)

    def refuse(self, knocks: list[bytes], clock: Clock) -> float:
        """Take these knocks, all of which have to be refused: seconds for each."""
        callers = [Caller(1 + number // KNOCKS_PER_CIRC) for number in range(len(knocks))]
        asked, command = self.access.asked, int(Renzv.RES_CONNECT)
        begun = clock()
        for caller, said in zip(callers, knocks, strict=True):
            asked(caller, command, said, 1.0)
        spent = clock() - begun
        for number in range(1, 2 + len(knocks) // KNOCKS_PER_CIRC):
            self.access.gone(number)
        if self.service.passed or {Answer.read(caller.said).status for caller in callers} != {Status.WORK}:
            raise AssertionError("a knock was not refused")
        return spent / len(knocks)

    def said(self, work: bytes) -> bytes:
        """Give a knock with this work."""
        return Connect(self.auth.node_id, work, bytes(BLOB)).encode()

    def claimed(self, nonce: bytes, effort: int) -> bytes:
        """Give a knock that says it has worked so much."""
        return self.said(Work(nonce, effort, self.seed[:SEED_HEAD]).encode())


def solved(context: bytes, seed: bytes, effort: int) -> tuple[bytes, int]:
    """Search until it is found: the nonce, and how many tries it took at most."""
    start, tries = os.urandom(16), 0
    while True:
        nonce = search(WORK_LABEL, context, seed, effort, start, EFFORT)
        tries += EFFORT
        if nonce is not None:
            return nonce, tries
        start = following(start, EFFORT)


def work_round(count: int, clock: Clock) -> dict[str, float]:
    """Search and check: seconds for each try and for each check."""
    context, seed = os.urandom(32), os.urandom(32)
    nonce, _ = solved(context, seed, EFFORT)
    begun = clock()
    for start in range(0, count, EFFORT):
        # So much that nothing is found: every try is made.
        search(WORK_LABEL, context, seed, 2**32 - 1, start.to_bytes(16, "big"), EFFORT)
    searched = clock()
    for _ in range(count):
        check(WORK_LABEL, context, seed, EFFORT, nonce)
    done = clock()
    tries = -(-count // EFFORT) * EFFORT
    return {"search": (searched - begun) / tries, "check": (done - searched) / count}


def refusal_round(count: int, clock: Clock) -> dict[str, float]:
    """Refuse knocks by the role alone: seconds for each, by what is wrong with it."""
    point = Guarded.make()
    none = [point.said(NO_WORK)] * count
    low = [point.claimed(os.urandom(16), ASKED - 1) for _ in range(count)]
    false = [point.claimed(os.urandom(16), 2**32 - 1) for _ in range(count)]
    return {
        "none": point.refuse(none, clock),
        "low": point.refuse(low, clock),
        "false": point.refuse(false, clock),
    }


def relay_round(batches: int, clock: Clock) -> dict[str, float]:
    """Refuse knocks by a whole relay: seconds of it for each, without and with the circuits that bring them."""
    net = Network(recording=False, meter=clock)
    client = net.client("client")
    hops = [net.relay(name) for name in ("guard", "middle", "another", "point")]
    point = hops[-1]
    access, service, auth = Access(), Caller(-1), NodeKey.make()
    access.asked(service, Renzv.RES_LISTEN, Listen(auth.node_id, auth.sign(listen_text(bytes(32)))).encode(), 0.0)
    access.asked(service, Renzv.RES_TUNE, Tune(auth.node_id, os.urandom(32), ASKED, 7200).encode(), 0.0)
    point.circuits.serve(access)
    said = Connect(auth.node_id, NO_WORK, bytes(BLOB)).encode()
    answers: list[tuple[int, bytes] | Reason] = []
    spent = all_in = 0.0
    for _ in range(batches):
        begun = point.spent
        circuits = [net.build(client, *hops) for _ in range(CIRCUITS)]
        before, wanted = point.spent, len(answers)
        for _ in range(KNOCKS_PER_CIRC):
            for circuit in circuits:
                circuit.ask(Renzv.RES_CONNECT, said, (Renzv.RES_CONNECT_OK,), 60.0, answers.append)
            wanted += CIRCUITS
            net.run(lambda wanted=wanted: len(answers) == wanted)  # type: ignore[misc]
        spent += point.spent - before
        for circuit in circuits:
            circuit.close()
        net.settle(0.1)
        all_in += point.spent - begun
    if access.listeners[auth.node_id].refused != len(answers):
        raise AssertionError("a knock was not refused")
    # Handshakes are answered on worker threads, which the relay's own time does not show.
    shaken = median(ntor_round(clock)["relay_answer", "relay"] for _ in range(20))
    return {"relay": spent / len(answers), "circuit": all_in / len(answers) + shaken / KNOCKS_PER_CIRC}


def introduction_round(count: int, clock: Clock) -> dict[str, float]:
    """Knock, open and reply: seconds for each, and for opening what is no knock."""
    service, auth, enc = NodeKey.make(), NodeKey.make(), OnionKey.make()
    door = Door(bytes(8), service.node_id, auth.node_id, enc.public)
    meeting = Meeting(1, 0, os.urandom(32), os.urandom(32), os.urandom(32), "tcp:127.0.0.1:9000")
    login, sm = NodeKey.make(), OFFER.to_bytes()
    begun = clock()
    knocks: list[Knocked] = [knock(door, meeting, login=login) for _ in range(count)]
    knocked = clock()
    seen = SeenX()
    replies = [introduced(door, enc, one.blob, seen).reply(sm)[0] for one in knocks]
    handled = clock()
    for one, reply in zip(knocks, replies, strict=True):
        one.finish(reply)
    finished = clock()
    garbage = [os.urandom(BLOB) for _ in range(count)]
    opened = 0
    before = clock()
    for blob in garbage:
        try:
            introduced(door, enc, blob, seen)
            opened += 1
        except HandshakeFailed:
            pass
    done = clock()
    if opened:
        raise AssertionError("noise was taken for a knock")
    return {
        "knock": (knocked - begun) / count,
        "introduction": (handled - knocked) / count,
        "finish": (finished - handled) / count,
        "garbage": (done - before) / count,
    }


TITLES: Final = {
    "search": "a try of the search",
    "check": "check of a solution",
    "none": "knock without work refused, the role alone",
    "low": "knock with too little work refused, the role alone",
    "false": "knock with a false solution refused, the role alone",
    "relay": "knock without work refused, the whole relay",
    "circuit": f"the same with a new circuit for every {KNOCKS_PER_CIRC} knocks",
    "garbage": "blob that is none dropped by the service",
    "introduction": "introduction handled: blob opened, login checked, reply made",
    "knock": "knock made by a client, with a login",
    "finish": "reply taken by a client",
}
LAYOUT: Final = Layout(
    "Work and introductions, one processor", (Column("us", "us each", True), Column("rate", "per second and core"))
)
TARGET_HEAD: Final = ["figure", "measured", "target", "verdict"]
TARGETS: Final = (("none", REFUSED), ("false", REFUSED), ("relay", REFUSED), ("introduction", HANDLED))


def measure(rounds: int, count: int, clock: Clock = time.process_time) -> Results:
    """Measure everything so often."""
    results = Results(dict(TITLES))
    for _ in range(rounds):
        taken: dict[str, float] = {}
        for found in (
            work_round(10 * count, clock),
            refusal_round(count, clock),
            relay_round(max(1, count // 500), clock),
            introduction_round(max(1, count // 10), clock),
        ):
            taken.update(found)
        for row, seconds in taken.items():
            results.add(row, {"us": seconds * 1e6, "rate": 1 / seconds if seconds else 0.0}, False)
    return results


def tables(results: Results) -> list[tuple[str, list[str], list[list[str]]]]:
    """Give the figures, what a search takes, and the targets."""
    head, body = report.rows(LAYOUT, results, list(TITLES))
    made = [(LAYOUT.title, ["figure", *head[1:]], body)]
    search_us, check_us = (results.summary(row, "us") for row in ("search", "check"))
    if search_us is not None and check_us is not None:
        waits = [
            [f"{effort:,}", f"{effort * search_us.median / 1e6:.3g}", f"{check_us.median:.1f}"]
            for effort in (1000, 100_000, 1_000_000, MAX_EFFORT)
        ]
        made.append(("What an effort means", ["effort", "s of one thread to find, on average", "us to check"], waits))
    verdicts = []
    for row, target in TARGETS:
        summary = results.summary(row, "rate")
        if summary is not None:
            verdict = "met" if summary.median >= target else "MISSED"
            verdicts.append([f"{TITLES[row]}, per second and core", f"{summary.median:.0f}", f">= {target}", verdict])
    return [*made, ("Targets of work", TARGET_HEAD, verdicts)]


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1, max=100), help="How often.")
@click.option("--count", default=2000, show_default=True, type=click.IntRange(min=10), help="Knocks of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the tables to this page, as Markdown.")
def main(rounds: int, count: int, as_json: bool, markdown: Path | None) -> None:
    """Measure work, refused knocks and introductions, in processor time of one core."""
    results = measure(rounds, count)
    facts: dict[str, Any] = {**machine.describe(), "samples": f"{rounds} rounds; medians and (range)"}
    if as_json:
        json.dump({"facts": facts, **results.as_json()}, sys.stdout, indent=1)
        print()
        return
    made = tables(results)
    if markdown is not None:
        report.keep(markdown, made, facts, "work")
    report.show(made, facts)


if __name__ == "__main__":
    main(prog_name="layer8 bench work")
