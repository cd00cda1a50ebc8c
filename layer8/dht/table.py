"""Which nodes are known: buckets of 8 by the length of the prefix that an id shares with ours, old nodes first.

Who is in a bucket stays there while it answers; newcomers wait in the bucket's replacement cache and come in when
somebody has failed. In networks with rules one address has one place, a /24 (or /48) two in a bucket and eight in all.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from heapq import nsmallest
from typing import Final

from attrs import define, field

from layer8.core.datagram import Peer
from layer8.core.place import networks
from layer8.dht.limits import DHT_K, FAILURES, FRESH, PER_BUCKET_NEAR, PER_TABLE_NEAR, REPLACEMENTS
from layer8.dht.wire import Contact

BITS: Final = 160


@define(eq=False)
class Entry:
    """A node that has answered, with its key where it has proved one."""

    contact: Contact
    key: bytes = field(default=b"", repr=False)
    since: float = 0.0
    seen: float = 0.0  # when it answered last
    rtt: float = 0.0  # seconds, 0: not measured
    failures: int = 0


@define(eq=False)
class Bucket:
    """Entries from the oldest to the youngest, and who waits for a place."""

    entries: dict[bytes, Entry] = field(factory=dict)
    waiting: OrderedDict[bytes, Entry] = field(factory=OrderedDict)


@define(eq=False)
class Table:
    """The nodes around `own`; `ruled`: whether networks of addresses count."""

    own: bytes
    ruled: bool = True
    _buckets: dict[int, Bucket] = field(factory=dict, init=False, repr=False)
    _addresses: dict[Peer, bytes] = field(factory=dict, init=False, repr=False)
    _hosts: Counter[str] = field(factory=Counter, init=False, repr=False)
    _near: Counter[str] = field(factory=Counter, init=False, repr=False)
    _number: int = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Keep our id as a number."""
        self._number = int.from_bytes(self.own, "big")

    def __len__(self) -> int:
        """Count the nodes that have a place."""
        return len(self._addresses)

    def __iter__(self) -> Iterator[Entry]:
        """Give every entry, far ones first."""
        for _, bucket in sorted(self._buckets.items()):
            yield from bucket.entries.values()

    def get(self, node: bytes) -> Entry | None:
        """Give the entry of an id."""
        bucket = self._buckets.get(self._index(node))
        return None if bucket is None else bucket.entries.get(node)

    def at(self, peer: Peer) -> Entry | None:
        """Give the entry of an address."""
        node = self._addresses.get(peer)
        return None if node is None else self.get(node)

    def closest(self, target: bytes, count: int = DHT_K) -> list[Entry]:
        """Give the nodes that are nearest to a target."""
        wanted = int.from_bytes(target, "big")
        return nsmallest(count, self, key=lambda one: one.contact.number ^ wanted)

    def wants(self, contact: Contact) -> bool:
        """Say whether a node would get a place, or one in a cache that is not full."""
        if contact.id == self.own or self.get(contact.id) is not None or contact.peer in self._addresses:
            return False
        bucket = self._buckets.get(self._index(contact.id), Bucket())
        if len(bucket.entries) >= DHT_K:
            return len(bucket.waiting) < REPLACEMENTS and contact.id not in bucket.waiting
        return self._allowed(contact, bucket)

    def add(self, entry: Entry) -> bool:
        """Take a node that has answered, or let it wait; False where the rules leave it no place."""
        contact = entry.contact
        if contact.id == self.own:
            return False
        bucket = self._buckets.setdefault(self._index(contact.id), Bucket())
        known = bucket.entries.get(contact.id)
        if known is not None:
            return known.contact == contact  # the one that was here first keeps its id
        if len(bucket.entries) < DHT_K and self._allowed(contact, bucket):
            self._enter(bucket, entry)
            return True
        if len(bucket.entries) >= DHT_K:
            bucket.waiting[contact.id] = entry
            bucket.waiting.move_to_end(contact.id)
            while len(bucket.waiting) > REPLACEMENTS:
                bucket.waiting.popitem(last=False)
        return False

    def answered(self, contact: Contact, now: float, rtt: float = 0.0) -> Entry | None:
        """Note an answer."""
        entry = self.get(contact.id)
        if entry is None or entry.contact != contact:
            return None
        entry.seen, entry.failures = now, 0
        if rtt:
            entry.rtt = rtt if not entry.rtt else entry.rtt * 0.75 + rtt * 0.25
        return entry

    def failed(self, contact: Contact) -> None:
        """Note that none came; after FAILURES of them the node's place is another's."""
        entry = self.get(contact.id)
        if entry is None or entry.contact != contact:
            self._waits_no_more(contact)
            return
        entry.failures += 1
        if entry.failures >= FAILURES:
            self.drop(contact)

    def drop(self, contact: Contact) -> None:
        """Take a node out; who waits longest in vain is the last to come in: the youngest is likely alive."""
        bucket = self._buckets.get(self._index(contact.id))
        entry = None if bucket is None else bucket.entries.get(contact.id)
        if bucket is None or entry is None or entry.contact != contact:
            self._waits_no_more(contact)
            return
        self._leave(bucket, entry)
        while bucket.waiting and len(bucket.entries) < DHT_K:
            _, newest = bucket.waiting.popitem()
            if self._allowed(newest.contact, bucket):
                self._enter(bucket, newest)

    def stale(self, now: float) -> Entry | None:
        """Give the node that has been silent longest of those that hold a place somebody waits for, or are due."""
        old = [one for one in self if now - one.seen >= FRESH]
        return min(old, key=lambda one: one.seen, default=None)

    def _waits_no_more(self, contact: Contact) -> None:
        bucket = self._buckets.get(self._index(contact.id))
        waiting = None if bucket is None else bucket.waiting.get(contact.id)
        if bucket is not None and waiting is not None and waiting.contact == contact:
            del bucket.waiting[contact.id]

    def _enter(self, bucket: Bucket, entry: Entry) -> None:
        bucket.entries[entry.contact.id] = entry
        self._addresses[entry.contact.peer] = entry.contact.id
        self._hosts[entry.contact.host] += 1
        self._near[networks(entry.contact.host)[0]] += 1

    def _leave(self, bucket: Bucket, entry: Entry) -> None:
        del bucket.entries[entry.contact.id]
        del self._addresses[entry.contact.peer]
        for counter, name in ((self._hosts, entry.contact.host), (self._near, networks(entry.contact.host)[0])):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def _allowed(self, contact: Contact, bucket: Bucket) -> bool:
        if contact.peer in self._addresses:
            return False
        if not self.ruled:
            return True
        near = networks(contact.host)[0]
        here = sum(networks(one.contact.host)[0] == near for one in bucket.entries.values())
        return not self._hosts[contact.host] and here < PER_BUCKET_NEAR and self._near[near] < PER_TABLE_NEAR

    def _index(self, node: bytes) -> int:
        return BITS - (int.from_bytes(node, "big") ^ self._number).bit_length()
