"""A node and names: it asks the DHT who they are, claims its own, and if it may, knocks at those that others claim."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import define, field

from layer8.config.tree import Config
from layer8.control.service import wall_clock
from layer8.control.table import Table
from layer8.core.errors import ConfigError, TimedOut, Unavailable
from layer8.crypto.items import Items
from layer8.crypto.keys import NodeKey, parse_id
from layer8.crypto.ntor import HandshakeFailed
from layer8.net.storage import Storage
from layer8.node.hidden import hidden_ways
from layer8.node.holding import worker
from layer8.relay.service import Relay
from layer8.rendezvous.address import DOMAIN, address_text
from layer8.rendezvous.archive import Archive
from layer8.rendezvous.attesting import Attesting
from layer8.rendezvous.claiming import Claiming
from layer8.rendezvous.claims import Flag, Witness
from layer8.rendezvous.client import NotMet, Step, meet
from layer8.rendezvous.finding import Finding
from layer8.rendezvous.names import RedFlag
from layer8.rendezvous.naming import Naming
from layer8.rendezvous.operate_names import NamesRows, flag_row
from layer8.rendezvous.shelf import Shelf
from layer8.rendezvous.visits import BAD_DESCRIPTOR, CLIENT_MISSING, CLIENT_WRONG, NO_DESCRIPTOR, NotFound
from layer8.rendezvous.ways import Ways

NAMES: Final = "names.db"
PACE: Final = 60.0  # in networks without rules: a day of an attester is 24 minutes


@define(eq=False)
class NodeNames:
    """All that a node has to do with names; raises `ConfigError` or `StorageError`."""

    relay: Relay
    items: Items
    home: Path
    config: Config
    storage: Storage
    table: Table
    naming: Naming = field(init=False)
    archive: Archive = field(init=False)
    claiming: Claiming = field(init=False)
    attesting: Attesting | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Put everything together."""
        relay, config, items = self.relay, self.config.names, self.items
        ruled, work = relay.network.ruled, worker(relay.reactor)
        shelf = Shelf(self.home, config.petnames)
        shelf.names()  # what is wrong with the files is said now
        signers = tuple(map(parse_id, config.name_signers))
        self.naming = Naming(items, wall_clock, shelf, self.witness, ruled, signers, self._flagged)
        self.archive = Archive(self.storage)
        start = relay.tasks.start
        self.claiming = Claiming(
            items, self.archive, relay.key, self.read_key, work, wall_clock, relay.reactor, start, ruled
        )
        if config.enabled:
            self.attesting = Attesting(
                items,
                relay.key,
                Knocking(hidden_ways(relay), items).knock,
                self.archive,
                work,
                relay.chance,
                wall_clock,
                relay.reactor,
                start,
                ruled,
                1.0 if ruled else PACE,
            )
        self.table.add(
            NamesRows(self.naming, shelf, self.claiming, self.archive, items, work, wall_clock, ruled, self._file_of)
        )

    def start(self) -> None:
        """Read what was kept, and begin."""
        self.archive.load()
        self.claiming.start()
        if self.attesting is not None:
            self.attesting.start()

    def stop(self) -> None:
        """End; what the DHT has said is forgotten."""
        self.naming.forget()
        self.claiming.stop()
        if self.attesting is not None:
            self.attesting.stop()

    def witness(self, identity: bytes) -> Witness | None:
        """Give what this node knows of another one that attests: since when, in which network, and by whom."""
        if identity == self.relay.key.node_id:
            return Witness(0.0, "this node", frozenset((identity,)))
        peer = self.relay.database.get(identity)
        return None if peer is None else Witness(peer.first, min(peer.descriptor.far), peer.told)

    def read_key(self, file: str) -> NodeKey:
        """Read a service's key; raises `ConfigError`, also where there is none."""
        path = self.home / file
        if not path.is_file():
            raise ConfigError(f"{path}: no key of a service is there: layer8 hide makes one, --key names another file")
        return NodeKey.load(path)

    def _file_of(self, name: str) -> str:
        service = self.config.service.get(name)
        return (service.key if service is not None else "") or f"services/{name}.pem"

    def _flagged(self, flag: RedFlag) -> None:
        self.table.publish("names.conflict", flag_row(flag))


@define(eq=False)
class Knocking:
    """Meets services as a stranger does, with a memory of its own: nothing of the user's visits is used or shown."""

    _ways: Ways
    _items: Items

    async def knock(self, key: bytes) -> Flag | None:
        """Say what is wrong with a service; see `layer8.rendezvous.attesting`."""
        finding = Finding(self._items, self._ways.wall)
        try:
            found = await finding.find(address_text(key) + DOMAIN, True)
        except NotFound as error:
            return found_wrong(error)
        try:
            origin = await meet(self._ways, found.service, found.told)
        except NotMet as error:
            return met_wrong(error)
        origin.close()
        return Flag(0)


def found_wrong(error: NotFound) -> Flag | None:
    """Say what it means that no descriptor was read; raises `Unavailable` where nobody could be asked."""
    if isinstance(error.__cause__, Unavailable | TimedOut):
        raise Unavailable(str(error)) from None
    if error.code in (CLIENT_MISSING, CLIENT_WRONG):
        return None
    return {NO_DESCRIPTOR: Flag.NO_DESCRIPTOR, BAD_DESCRIPTOR: Flag.ERRORS}.get(error.code, Flag.ERRORS)


def met_wrong(error: NotMet) -> Flag:
    """Say what it means that a service was not met; raises `Unavailable` where it may be this node's own fault.

    That the network can be asked at all was seen a moment ago: the descriptor came from there.
    """
    if isinstance(error.__cause__, HandshakeFailed):
        return Flag.WRONG_KEY
    if error.step is Step.RENDEZVOUS:
        raise Unavailable(str(error)) from None
    return Flag.SILENT
