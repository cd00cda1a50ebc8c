"""Every event that this package logs: the closed list behind the `event` field of a log line.

A line names its event by the keyword `event`: `self._log.info("a listener opened", event="listen.opened", ...)`.
Fields are numbers, flags and words of our own; `address` and `peer` are reduced by the address policy, fields whose
names begin with `bytes` are blurred in records, and what a peer sent is never a field.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen


@frozen
class Logged:
    """What one event means; a `record` says what a user did, so its time and sizes are blurred."""

    doc: str
    record: bool = False


EVENTS: Mapping[str, Logged] = {
    "log.started": Logged("the process writes a log; says how much it tells"),
    "log.reopened": Logged("the log file was opened anew"),
    "log.lost": Logged("lines were dropped because nobody took them"),
    "process.ready": Logged("everything listens"),
    "process.reload_failed": Logged("a bug of ours while the configuration was read again"),
    "process.stopping": Logged("the process was asked to stop"),
    "control.call_failed": Logged("a bug of ours in a method; the caller was told the id only"),
    "control.page_failed": Logged("a bug of ours in an HTTP page of the control listener"),
    "service.drain_failed": Logged("a bug of ours while a part drained"),
    "service.stop_failed": Logged("a bug of ours while a part stopped; the others stop all the same"),
    "stream.bug": Logged("a bug of ours in a session; its connection was closed"),
    "datagram.bug": Logged("a bug of ours in a datagram session; its port is left"),
    "task.ended": Logged("a task ended with an error that was foreseen"),
    "task.failed": Logged("a bug of ours in a task"),
    "pump.failed": Logged("a bug of ours in the pump; one connection was lost"),
    "pump.starved": Logged("no descriptor is left; accepting rests for a moment"),
    "database.lost": Logged("the database that nodes share is out of reach; it is tried again"),
    "router.joined": Logged("the router has let us in"),
    "router.lost": Logged("there is no session with the router; it is tried again"),
    "router.refused": Logged("the router does not let us register or subscribe: its permissions are wrong"),
    "listen.opened": Logged("something listens; says what and where"),
    "config.reloaded": Logged("the configuration was read again and is used from now on"),
    "config.refused": Logged("the configuration was read again and cannot be used; the old one stands"),
    "certs.loaded": Logged("a certificate for visitors was read and is served"),
    "certs.refused": Logged("a certificate for visitors cannot be used; what its files held before is served on"),
    "acme.issued": Logged("an authority has issued a certificate for a host"),
    "acme.failed": Logged("an authority has issued no certificate; it is asked again later, more and more rarely"),
    "takeover.asked": Logged("another process asks for the listeners, to go on in the place of this one"),
    "takeover.done": Logged("this process has taken over from another; says how many hosts had agents there"),
    "takeover.failed": Logged("taking over did not go as it should; says why"),
    "worker.ready": Logged("a worker process serves"),
    "worker.ended": Logged("a worker process has died and is started again; its connections are lost"),
    "worker.stuck": Logged("a worker process said nothing for a while and is killed"),
    "gateway.ready": Logged("a gateway has its keys; says its name and the pin of its identity key"),
    "gateway.bug": Logged("a bug of ours in an exchange at the gateway; it was cut"),
    "gateway.answer_refused": Logged("a backend's answer has fields that cannot be carried; the page was told 502"),
    "proxy.data_kept": Logged("no other data port could be opened; the old one stays"),
    "proxy.draining": Logged("no new visitors are let in"),
    "proxy.counts_kept": Logged("byte counts could not be written and stay in memory"),
    "proxy.closed": Logged("a visitor's connection ended: the access log", record=True),
    "relay.no_lan": Logged("there is no local network on which this node could find others"),
    "relay.no_list": Logged("the list of relays of snapshot_file is not there or not good: no relay is drawn"),
    "relay.not_saved": Logged("what is known of the network could not be written"),
    "dht.not_saved": Logged("what is kept for the DHT could not be written; it is tried again"),
    "rendezvous.exposed": Logged("a program behind a hidden service listens beyond this machine too"),
    "rendezvous.alert": Logged("something is wrong with a hidden service: its key is used twice, or it is not stored"),
    "tunnel.refused": Logged("a tunnel that was kept cannot be opened; it stays kept"),
    "http.failed": Logged("a bug of ours in what answers a request; the client was told 500, or cut"),
    "tunnel.failed": Logged("a bug of ours in an exchange or a socket of the browser tunnel; it was cut"),
    "tunnel.no_keys": Logged("a gateway of the browser tunnel gives no key set; it is asked again"),
    "tunnel.keys_differ": Logged("another relay has other keys of a gateway, or some that the gateway has not signed"),
    "agent.down": Logged("no target of a host answers; servers let others have its visitors"),
    "agent.up": Logged("a target of a host that was down answers again"),
    "agent.connected": Logged("a server took this agent's subscriptions"),
    "agent.lost": Logged("the connection to a server ended; it is dialled again"),
    "agent.refused": Logged("a server refused a subscription; the agent goes on trying"),
    "agent.fenced": Logged("a server asks us to dial back to places that it may not name; see agent.data_networks"),
    "agent.rejected": Logged("a visitor could not be carried to its target"),
    "agent.draining": Logged("a server drains; what is joined goes on"),
}
FOREIGN = "foreign"
"""The event of lines that other libraries log; only their constant texts are kept."""
