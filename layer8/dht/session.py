"""One node of the DHT: its socket, table and store, and the searches that it has under way.

::

    session = Dht(key, network, chance, randbytes, epoch=wall - now)
    number = session.get(target, now)         -> Tell(Done(number, ...)) when it is over
    session.put(item, now), .records(target, now), .find(target, now)
    session.seed((peer, ...), now)            who is asked while nobody is known

It is a `layer8.core.datagram.DatagramSession`; `now` is monotonic, and `now + epoch` is seconds since 1970.

A node enters a bucket when it has answered, at its address, a challenge of ours to it (see `wire`): so ids cannot be
chosen without making keys, and nobody is listed by a forged address. `open` lets others in too, those of other
networks and those that know nothing of keys: for tests with other programs. In networks with rules a node that nobody
reaches becomes `read_only` by itself (see `reach`).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from attrs import define, field

from layer8.core import bencode
from layer8.core.address import Scope, scope
from layer8.core.chance import Chance
from layer8.core.datagram import DatagramEffect, Peer, SendTo
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.core.network import Network
from layer8.core.session import Tell
from layer8.crypto.items import RECORD_EFFORT, TARGET, Immutable, Item, Mutable, Record, sha1
from layer8.crypto.keys import NodeKey, verify
from layer8.dht.jobs import Aim, Done, Job, Pending, Stats
from layer8.dht.limits import (
    BOOTSTRAP,
    DHT_K,
    LATE,
    LOOKUP_TIME,
    LOOKUPS,
    PATHS,
    PENDING,
    PROOFS,
    REFRESH,
    REPUT,
    REPUTS,
    RTT_TIMES,
    TIMEOUT_LEAST,
    TIMEOUT_MOST,
)
from layer8.dht.lookup import Lookup
from layer8.dht.rates import Rates, Votes
from layer8.dht.reach import Reach
from layer8.dht.replies import Replies
from layer8.dht.store import Held, Name, Store, name
from layer8.dht.table import Entry, Table
from layer8.dht.wire import (
    CHALLENGE,
    PROTOCOL,
    Answer,
    Contact,
    Failure,
    Mark,
    Query,
    Refusal,
    compact,
    proof_text,
    read,
    read_nodes,
    text,
)

TID: Final = 4  # bytes
_JOB: Final = b"search %d"  # the time of a search, among those of queries
UPKEEP: Final = 10.0  # seconds
FIRST: Final = 0.1
PROVED: Final = 4096  # nodes whose proof is remembered
SEEDS: Final = DHT_K * PATHS


@define(eq=False)
class Dht:
    """See the module. `bound` is our address where one is known before others tell."""

    key: NodeKey
    network: Network
    chance: Chance
    randbytes: Callable[[int], bytes] = field(repr=False)
    epoch: float = 0.0
    open: bool = False
    read_only: bool = False
    bound: Peer | None = None
    bootstrap: Sequence[Peer] = ()
    id: bytes = field(init=False)
    table: Table = field(init=False)
    store: Store = field(init=False)
    rates: Rates = field(init=False)
    queries: int = field(default=0, init=False)  # that came
    answered: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)
    _replies: Replies = field(init=False, repr=False)
    _effects: list[DatagramEffect] = field(factory=list, init=False, repr=False)
    _pending: dict[bytes, Pending] = field(factory=dict, init=False, repr=False)
    _times: list[tuple[float, bytes]] = field(factory=list, init=False, repr=False)
    _jobs: dict[int, Job] = field(factory=dict, init=False, repr=False)
    _moved: dict[int, Job] = field(factory=dict, init=False, repr=False)
    _number: int = field(default=0, init=False, repr=False)
    _rtt: float = field(default=TIMEOUT_MOST / RTT_TIMES, init=False, repr=False)
    _proved: OrderedDict[Contact, bytes] = field(factory=OrderedDict, init=False, repr=False)
    _proving: set[Peer] = field(factory=set, init=False, repr=False)
    _votes: Votes = field(factory=Votes, init=False, repr=False)
    _reach: Reach = field(init=False, repr=False)
    _own: dict[Name, tuple[Item, float]] = field(factory=dict, init=False, repr=False)
    _upkeep: float = field(default=0.0, init=False, repr=False)
    _refresh: float = field(default=0.0, init=False, repr=False)
    _boot: float = field(default=0.0, init=False, repr=False)
    _mark: Mark = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Put the parts together."""
        self.id = sha1(self.key.node_id)
        self.table = Table(self.id, self.network.ruled)
        self.store = Store(self.randbytes(32), self.network.ruled)
        self.rates = Rates(self.network.ruled)
        self._replies = Replies(self.id, self.table, self.store, self.open)
        self._mark = Mark(self.network.mark)
        self._reach = Reach(self.network.ruled and not self.read_only)

    # What others want of it.

    def received(self, data: bytes, peer: Peer, now: float) -> None:
        """Take a datagram from an address that may be forged."""
        try:
            message = read(data)
        except RemoteProtocolError:
            if self.rates.error(peer[0], now):
                self._send(Failure(b"", PROTOCOL).encode(), peer)
            return
        match message:
            case Query():
                self._asked(message, peer, now)
            case Answer():
                self._told(message, peer, now)
            case Failure():
                self._denied(message, peer, now)
        self._go_on(now)

    def wake(self, now: float) -> None:
        """Let queries time out, and look after table and store."""
        while self._times and self._times[0][0] <= now:
            tid = heapq.heappop(self._times)[1]
            job = self._jobs.get(int(tid[7:])) if tid.startswith(b"search ") else None
            if job is not None:
                self._moved[job.number] = job
            self._timed_out(tid, now)
        if now >= self._upkeep:
            self._upkeep = now + UPKEEP
            self._look_after(now)
        self._go_on(now)

    def effects(self) -> Sequence[DatagramEffect]:
        """Give what has to be done and forget it."""
        taken, self._effects = self._effects, []
        return taken

    def deadline(self) -> float | None:
        """Give the next time at which something is due."""
        return min(self._upkeep, self._times[0][0]) if self._times else self._upkeep

    # What it wants of others.

    def find(self, target: bytes, now: float) -> int:
        """Look for the nodes nearest to a target."""
        return self._begin(Aim.NODES, target, now)

    def get(self, target: bytes, now: float, *, salt: bytes = b"") -> int:
        """Look for an item; of a mutable one with a salt that has to be known to check it."""
        return self._begin(Aim.ITEM, target, now, salt=salt)

    def records(self, target: bytes, now: float) -> int:
        """Look for records of a set."""
        return self._begin(Aim.RECORDS, target, now)

    def put(self, item: Item, now: float, *, cas: int | None = None, age: int = 0) -> int:
        """Store an item at the nodes nearest to its target."""
        aim = Aim.RECORDS if isinstance(item, Record) else Aim.ITEM
        salt = item.salt if isinstance(item, Mutable) else b""
        return self._begin(aim, item.target, now, salt=salt, put=item, cas=cas, age=age)

    def offer(self, item: Item, now: float) -> None:
        """Put an item now, and every hour again until it is taken back."""
        self._own[name(item)] = item, now + REPUT
        self.put(item, now)

    def take_back(self, key: Name) -> None:
        """Put an item of ours no more; others forget it within two hours."""
        self._own.pop(key, None)

    def cancel(self, number: int) -> None:
        """Forget a search."""
        self._jobs.pop(number, None)

    def stats(self) -> Stats:
        """Give the counts of now."""
        counts = self.queries, self.answered, self.refused, self.rates.dropped
        return Stats(len(self.table), len(self.store), self.store.size, len(self._jobs), *counts, self.read_only)

    @property
    def least(self) -> int:
        """The work that a record needs here."""
        return RECORD_EFFORT if self.network.ruled else 0

    def seed(self, peers: Sequence[Peer], now: float) -> None:
        """Take where nodes may be; while nobody is known, those that were not named before are asked at once."""
        if not (len(self.table) or set(peers) <= set(self.bootstrap)):
            self._boot, self._upkeep = 0.0, min(self._upkeep, now + FIRST)
        self.bootstrap = peers

    def know(self, contacts: Sequence[Contact], now: float) -> None:
        """Ask nodes for a proof that were known before a restart, or that somebody has named."""
        for contact in contacts:
            self._prove(contact.peer, contact, now)

    @property
    def outside(self) -> bytes:
        """Our compact address as others see it; empty while nobody has said."""
        if self.bound is not None:
            return compact(*self.bound)
        return self._votes.most

    # Queries of others.

    def _asked(self, query: Query, peer: Peer, now: float) -> None:
        if not self.rates.query(peer[0], now):
            return
        self.queries += 1
        self._reach.came(peer[0], now)
        try:
            values = self._replies.to(query, peer, now + self.epoch)
        except Refusal as refusal:
            self.refused += 1
            self._send(Failure(query.tid, refusal.code, str(refusal)[:100]).encode(), peer)
            return
        outside = compact(*peer)
        mark = self._mark
        if query.mark is not None and query.mark.challenge and self._ours(query.mark):
            signature = self.key.sign(proof_text(query.mark.challenge, outside, self.id))
            mark = Mark(self.network.mark, key=self.key.node_id, signature=signature)
        self._send(Answer(query.tid, values, mark, outside).encode(), peer)
        if not query.read_only and (self.open or self._ours(query.mark)):
            contact = Contact(text(query.args, b"id", TARGET), *peer)
            if self._abroad(peer[0]) and self.table.wants(contact):
                self._prove(peer, contact, now)

    def _abroad(self, host: str) -> bool:
        """Say whether a node may be there, where others say so: in networks with rules only on the internet."""
        return not self.network.ruled or scope(host) is Scope.INTERNET

    def _ours(self, mark: Mark | None) -> bool:
        return mark is not None and mark.network == self.network.mark

    def _prove(self, peer: Peer, contact: Contact | None, now: float, method: bytes = b"ping") -> None:
        """Ask a node for a proof of its key; when it comes, the node may enter the table."""
        if peer in self._proving or len(self._proving) >= PROOFS or peer == self.bound:
            return
        self._proving.add(peer)
        args: dict[bytes, bencode.Value] = {b"target": self.id} if method == b"find_node" else {}
        self._query(method, args, Pending(peer, contact, None, now), now)

    # Answers to ours.

    def _query(
        self, method: bytes, args: dict[bytes, bencode.Value], pending: Pending, now: float, age: int = 0
    ) -> None:
        if len(self._pending) >= PENDING:
            self._failed(pending, lied=False)
            return
        tid = self.randbytes(TID)
        while tid in self._pending:
            tid = self.randbytes(TID)
        contact = pending.contact
        if contact is None or (self._key(contact) is None and not pending.storing):
            pending.challenge = self.randbytes(CHALLENGE)
        mark = Mark(self.network.mark, challenge=pending.challenge, age=age)
        self._pending[tid] = pending
        self._reach.spoke(pending.peer[0], now)
        heapq.heappush(self._times, (now + self._patience(contact), tid))
        self._send(Query(tid, method, {**args, b"id": self.id}, mark, self.read_only).encode(), pending.peer)

    def _patience(self, contact: Contact | None) -> float:
        entry = None if contact is None else self.table.get(contact.id)
        rtt = entry.rtt if entry is not None and entry.rtt else self._rtt
        return min(max(RTT_TIMES * rtt, TIMEOUT_LEAST), TIMEOUT_MOST)

    def _key(self, contact: Contact) -> bytes | None:
        """Give the key that a node has proved at this address."""
        entry = self.table.get(contact.id)
        if entry is not None and entry.contact == contact:
            return entry.key
        return self._proved.get(contact)

    def _mine(self, tid: bytes, peer: Peer) -> Pending | None:
        pending = self._pending.get(tid)
        if pending is None or pending.peer != peer:
            return None
        del self._pending[tid]
        self._proving.discard(peer)
        if pending.job is not None:
            self._moved[pending.job.number] = pending.job
        return pending

    def _told(self, answer: Answer, peer: Peer, now: float) -> None:
        pending = self._mine(answer.tid, peer)
        if pending is None:
            return
        node = answer.values.get(b"id")
        if not isinstance(node, bytes) or len(node) != TARGET or node == self.id:
            self._failed(pending, lied=True)
            return
        contact = Contact(node, *peer)
        if pending.contact is not None and pending.contact.id != node:
            self._failed(pending, lied=True)
            return
        if answer.outside and self.bound is None:
            self._votes.add(peer[0], answer.outside)
        key = self._known_key(pending, contact, answer)
        if key is None:
            self._failed(pending, lied=True)
            return
        self._alive(pending, contact, key, now)
        self._used(pending, contact, answer, now)

    def _known_key(self, pending: Pending, contact: Contact, answer: Answer) -> bytes | None:
        """Give the key of who answers: proved now or before; empty in an open node, None for a stranger."""
        if not pending.challenge:
            return self._key(contact) or b""
        mark = answer.mark
        if mark is not None and self._ours(mark) and mark.key and mark.signature:
            signed = proof_text(pending.challenge, self.outside or answer.outside, contact.id)
            if sha1(mark.key) == contact.id and verify(mark.key, mark.signature, signed):
                return mark.key
        return b"" if self.open else None

    def _alive(self, pending: Pending, contact: Contact, key: bytes, now: float) -> None:
        rtt = now - pending.sent
        self._rtt = self._rtt * 0.9 + min(rtt, TIMEOUT_MOST) * 0.1
        if key:
            self._proved[contact] = key
            self._proved.move_to_end(contact)
            while len(self._proved) > PROVED:
                self._proved.popitem(last=False)
        if self.table.answered(contact, now, rtt) is None:
            self.table.add(Entry(contact, key, since=now, seen=now, rtt=rtt))
        if not self._refresh:
            self._upkeep = min(self._upkeep, now + FIRST)  # the first ones are known: look for our place

    def _used(self, pending: Pending, contact: Contact, answer: Answer, now: float) -> None:
        job = pending.job
        try:
            listed = read_nodes(answer.values, 2 * DHT_K)
            named = [one for one in listed if one.peer != self.bound and self._abroad(one.host)]
            if job is None:
                if pending.contact is None:
                    self._boot = 0.0  # somebody is there
                    for one in named:
                        if self.table.wants(one):
                            self._prove(one.peer, one, now)
            elif pending.storing:
                self._stored(job, contact, True)
            else:
                job.heard(contact, answer.values, now + self.epoch)
                job.lookup.answered(contact, named)
        except RemoteProtocolError:
            self.table.drop(contact)
            if job is not None:
                job.lookup.failed(contact, lied=True)

    def _denied(self, failure: Failure, peer: Peer, now: float) -> None:
        pending = self._mine(failure.tid, peer)
        if pending is None:
            return
        job = pending.job
        if job is not None and pending.storing and pending.contact is not None:
            job.refused = failure.code
            self._stored(job, pending.contact, False)
        else:
            self._failed(pending, lied=False)

    def _timed_out(self, tid: bytes, now: float) -> None:
        pending = self._pending.get(tid)
        if pending is None:
            return
        if not pending.slow:
            pending.slow = True
            if pending.job is not None and pending.contact is not None:
                self._moved[pending.job.number] = pending.job
                if pending.storing:
                    self._stored(pending.job, pending.contact, False)
                else:
                    pending.job.lookup.slow(pending.contact)
            heapq.heappush(self._times, (pending.sent + LATE, tid))
            return
        del self._pending[tid]
        self._proving.discard(pending.peer)
        self._failed(pending, lied=False)

    def _failed(self, pending: Pending, *, lied: bool) -> None:
        contact, job = pending.contact, pending.job
        if contact is None:
            return
        if lied:
            self.table.drop(contact)
            self._proved.pop(contact, None)
        else:
            self.table.failed(contact)
        if job is None:
            return
        self._moved[job.number] = job
        if pending.storing:
            self._stored(job, contact, False)
        else:
            job.lookup.failed(contact, lied=lied)

    # Searches.

    def _begin(
        self,
        aim: Aim,
        target: bytes,
        now: float,
        *,
        salt: bytes = b"",
        put: Item | None = None,
        cas: int | None = None,
        age: int = 0,
    ) -> int:
        if len(self._jobs) >= LOOKUPS:
            raise LimitExceeded("LOOKUPS", LOOKUPS)
        wide = put is not None and not age
        lookup = Lookup(target, self.id, now, wide, self.network.ruled)
        lookup.seed(one.contact for one in self.table.closest(target, SEEDS if wide else DHT_K))
        self._number += 1
        job = Job(self._number, aim, lookup, salt, put, age, cas, self.least)
        if put is None and aim is Aim.ITEM:
            kept = self.store.get(target, now + self.epoch)
            job.found(kept)
        elif put is None and aim is Aim.RECORDS:
            job.records = {one.name: one for one in self.store.records(target, now + self.epoch)}
        self._jobs[job.number] = job
        heapq.heappush(self._times, (now + LOOKUP_TIME, _JOB % job.number))
        self._moved[job.number] = job
        self._go_on(now)
        return job.number

    def _go_on(self, now: float) -> None:
        """Let every search about which there is news ask, store, or end."""
        while self._moved:
            number, job = self._moved.popitem()
            if number not in self._jobs:
                continue
            if job.storing is None:
                self._search(job, now)
            if job.storing is not None and not job.storing:
                self._end(job, now)

    def _search(self, job: Job, now: float) -> None:
        lookup = job.lookup
        if job.put is None and isinstance(job.item, Immutable):
            self._end(job, now)
            return
        if lookup.over(now):
            missing = job.put is None and job.aim is not Aim.NODES and job.item is None and not job.records
            if missing and not lookup.wide and now - lookup.begun < LOOKUP_TIME:
                lookup.widen(one.contact for one in self.table.closest(lookup.target, SEEDS))
            else:
                self._finish(job, now)
                return
        for contact in lookup.next(now):
            self._query(job.aim.value, job.args(), Pending(contact.peer, contact, job, now), now)
        if lookup.over(now) and lookup.wide:
            self._finish(job, now)

    def _finish(self, job: Job, now: float) -> None:
        job.storing = set()
        if job.put is None:
            return
        takers = [one for one in job.lookup.nearest(2 * DHT_K) if one.id in job.tokens][:DHT_K]
        job.storing.update(one.id for one in takers)
        for one in takers:
            method, args = job.arguments(one)
            self._query(method, args, Pending(one.peer, one, job, now, storing=True), now, age=job.age)

    def _stored(self, job: Job, contact: Contact, well: bool) -> None:
        if job.storing is not None and contact.id in job.storing:
            job.storing.discard(contact.id)
            job.stored += well

    def _end(self, job: Job, now: float) -> None:
        if self._jobs.pop(job.number, None) is None or job.own:
            return
        item = job.item if job.put is None else None
        records = () if job.put is not None else tuple(job.records.values())
        near = tuple(job.lookup.nearest())
        took = now - job.lookup.begun
        done = Done(job.number, near, item, records, job.stored, job.refused, took, job.lookup.asked)
        self._effects.append(Tell(done))

    # Upkeep.

    def _look_after(self, now: float) -> None:
        wall = now + self.epoch
        self.store.prune(wall)
        if self._reach.judges:
            self.read_only = self._reach.hidden(now, len(self.table))
        if not len(self.table):
            if now >= self._boot:
                self._boot = now + BOOTSTRAP
                for peer in self.bootstrap:
                    self._prove(peer, None, now, b"find_node")
            return
        stale = self.table.stale(now)
        if stale is not None:
            self._prove(stale.contact.peer, stale.contact, now)
        if now >= self._refresh:
            first = not self._refresh
            self._refresh = now + REFRESH * self.chance.uniform(0.8, 1.2)
            self._upkeep_job(self.find(self.id if first else self._somewhere(), now))
            if first:
                self._upkeep_job(self.find(self._somewhere(), now))
        for key, (item, at) in tuple(self._own.items()):
            if at <= now:
                self._own[key] = item, now + REPUT
                self._upkeep_job(self.put(item, now))
        self._put_again(now)

    def _put_again(self, now: float) -> None:
        """Put what nobody has put for an hour; not all holders at once, so that mostly the first one does it."""
        running = sum(job.own and job.put is not None for job in self._jobs.values())
        for held in self.store.due(now + self.epoch):
            if running >= REPUTS:
                break
            if held.name in self._own or self.chance.random() > 0.1:
                continue
            running += 1
            self._again(held, now)

    def _again(self, held: Held, now: float) -> None:
        wall = now + self.epoch
        self.store.refresh(held, wall)
        self._upkeep_job(self.put(held.item, now, age=max(1, int(wall - held.born))))

    def _upkeep_job(self, number: int) -> None:
        job = self._jobs.get(number)
        if job is not None:
            job.own = True

    def _somewhere(self) -> bytes:
        return self.randbytes(TARGET)

    def _send(self, data: bytes, peer: Peer) -> None:
        self._effects.append(SendTo(data, peer))
        self.answered += 1
