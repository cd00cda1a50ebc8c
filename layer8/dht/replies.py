"""What a node answers to the queries of others, out of its table and its store."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from layer8.core import bencode
from layer8.core.bencode import Read
from layer8.core.datagram import Peer
from layer8.core.errors import RemoteProtocolError
from layer8.crypto.items import RECORD_MAX, SALT_MAX, SEQ_MOST, TARGET, V_MAX, Immutable, Item, Mutable, Record
from layer8.crypto.keys import NODE_ID, SIGNATURE
from layer8.dht.limits import DHT_K, KRPC_MAX
from layer8.dht.store import TOKEN, Store
from layer8.dht.table import Table
from layer8.dht.wire import PROTOCOL, SALT_TOO_BIG, TOO_BIG, UNKNOWN, Query, Refusal, compact, nodes, number, text

Values = dict[bytes, bencode.Value]
Args = Mapping[bytes, "bencode.Value | Read"]


@define(eq=False)
class Replies:
    """The values of an answer; raises `Refusal` for an error. `now` is seconds since 1970."""

    _own: bytes
    _table: Table = field(repr=False)
    _store: Store = field(repr=False)
    _open: bool = False

    def to(self, query: Query, peer: Peer, now: float) -> Values:
        """Answer one query."""
        text(query.args, b"id", TARGET)
        match query.method:
            case b"ping":
                return {b"id": self._own}
            case b"find_node":
                target = text(query.args, b"target", TARGET)
                return {b"id": self._own, **self._near(target, query.args, peer)}
            case b"get_peers" if self._open:
                # Mainline's nodes begin with it; there are no peers here, but nodes.
                target = text(query.args, b"info_hash", TARGET)
                token = self._store.tokens.make(peer[0], now)
                return {b"id": self._own, b"token": token, **self._near(target, query.args, peer)}
            case b"get":
                return self._get(query.args, peer, now)
            case b"put":
                return self._put(query, peer, now)
            case b"l8_list":
                target = text(query.args, b"target", TARGET)
                values = self._near(target, query.args, peer)
                values[b"recs"] = [record.raw for record in self._store.records(target, now)]
                values[b"token"] = self._store.tokens.make(peer[0], now)
                return {b"id": self._own, **values}
            case b"l8_add":
                return self._add(query, peer, now)
        raise Refusal(UNKNOWN)

    def _get(self, args: Args, peer: Peer, now: float) -> Values:
        target = text(args, b"target", TARGET)
        newer = number(args, b"seq", SEQ_MOST) if b"seq" in args else -1
        values: Values = {b"id": self._own, b"token": self._store.tokens.make(peer[0], now)}
        values |= self._near(target, args, peer)
        item = self._store.get(target, now)
        if isinstance(item, Mutable):
            values[b"seq"] = item.seq
            if item.seq > newer:
                values |= {b"k": item.key, b"sig": item.signature, b"v": bencode.decode(item.value)}
        elif item is not None:
            values[b"v"] = bencode.decode(item.value)
        return values

    def _put(self, query: Query, peer: Peer, now: float) -> Values:
        args = query.args
        if b"v" not in args:
            raise Refusal(PROTOCOL, "a wrong v")
        value = bencode.encode(args[b"v"])
        if len(value) > V_MAX:
            raise Refusal(TOO_BIG)
        token = text(args, b"token", 0, KRPC_MAX)
        cas = number(args, b"cas", SEQ_MOST) if b"cas" in args else None
        item: Item = Immutable(value)
        if b"k" in args:
            salt = text(args, b"salt", 0, KRPC_MAX) if b"salt" in args else b""
            if len(salt) > SALT_MAX:
                raise Refusal(SALT_TOO_BIG)
            key, signature = text(args, b"k", NODE_ID), text(args, b"sig", SIGNATURE)
            item = Mutable(key, number(args, b"seq", SEQ_MOST), signature, value, salt)
        return self._take(item, query, peer, token, now, cas)

    def _add(self, query: Query, peer: Peer, now: float) -> Values:
        token = text(query.args, b"token", 0, KRPC_MAX)
        raw = text(query.args, b"rec", 0, KRPC_MAX)
        if len(raw) > RECORD_MAX:
            raise Refusal(TOO_BIG)
        try:
            record = Record.parse(text(query.args, b"target", TARGET), raw)
        except RemoteProtocolError as error:
            raise Refusal(PROTOCOL, str(error)) from None
        return self._take(record, query, peer, token, now)

    def _take(self, item: Item, query: Query, peer: Peer, token: bytes, now: float, cas: int | None = None) -> Values:
        age = 0 if query.mark is None else query.mark.age
        # A token of another length is none: comparing takes as long for each.
        self._store.put(item, peer[0], token if len(token) == TOKEN else b"", now, cas=cas, age=age)
        return {b"id": self._own}

    def _near(self, target: bytes, args: Args, peer: Peer) -> Values:
        wanted = args.get(b"want")
        families = {one for one in wanted if isinstance(one, bytes)} if isinstance(wanted, list) else set()
        if not families & {b"n4", b"n6"}:
            families = {b"n4"} if len(compact(*peer)) == 6 else {b"n6"}
        near: Values = {}
        found = nodes(one.contact for one in self._table.closest(target, 2 * DHT_K))
        for family, name, size in ((b"n4", b"nodes", TARGET + 6), (b"n6", b"nodes6", TARGET + 18)):
            listed = found.get(name, b"")
            if family in families and isinstance(listed, bytes):
                near[name] = listed[: DHT_K * size]
        return near
