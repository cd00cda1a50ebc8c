"""Who learns what: the one source of the threat model's table, of `knowledge.table` and of the tests that check it.

A row says what one party sees of a part of the system, what it does not see, and which tests show that by searching
what the party really holds: its memory, files, logs and recorded bytes. `tests` are dotted names below `tests`;
one that does not exist fails the build, and a row without any reads "not shown yet".
"""

from __future__ import annotations

from layer8.core.knowledge_row import Row
from layer8.core.knowledge_tunnel import TUNNEL

TABLE: tuple[Row, ...] = (
    Row(
        part="proxy",
        party="visitor",
        learns="the server's address",
        hidden="the agent's address, and that there are other agents",
        tests=(
            "privacy.test_views.VisitorTests.test_only_the_service",
            "privacy.test_views.VisitorTests.test_a_host_without_an_agent_looks_like_none",
        ),
    ),
    Row(
        part="proxy",
        party="server",
        learns="the visitor's address, the host, sizes and times; the content of plain HTTP",
        hidden="the content of TLS that passes through, the host's secret, the address of the target",
        tests=(
            "privacy.test_views.ServerTests.test_memory",
            "privacy.test_views.ServerTests.test_state_folder",
        ),
    ),
    Row(
        part="proxy",
        party="server, for a host with `tls = terminate`",
        learns="everything that its visitors and the host say to each other, and the private key of its certificate",
        hidden="what visitors of other hosts say in TLS",
        tests=("interop.test_terminate.HostTests.test_another_registration",),
    ),
    Row(
        part="proxy",
        party="certificate authority",
        learns="the server's address, the operator's mail address, and the names of hosts whose TLS ends at the "
        "server, which it makes public",
        hidden="all other hosts",
        tests=("interop.test_acme.IssueTests.test_by_http",),
    ),
    Row(
        part="proxy",
        party="agent",
        learns="the host, times, and the content for its own target",
        hidden="the visitor's address, unless the server and the host's policy both say `visitor = full`",
        tests=(
            "privacy.test_views.AgentTests.test_memory",
            "privacy.test_views.PathTests.test_notifications_hold_no_visitor",
            "proxy.test_passing.PrivacyTests.test_nowhere_unless_both_say_so",
            "proxy.test_passing.AgentTests",
            "privacy.test_views.PathTests.test_data_connections_hold_no_visitor_and_no_inner_content",
        ),
    ),
    Row(
        part="proxy",
        party="another tenant",
        learns="nothing: there is no list, and the error for an unknown host is that for a wrong secret",
        hidden="which hosts exist",
        tests=(
            "proxy.test_registry.SecretTests.test_same_work_for_every_answer",
            "proxy.test_subscriber.SubscribeTests.test_wrong_and_unknown_are_one_answer",
            "proxy.test_registry.PlanTests.test_a_claim_does_not_say_that_the_host_exists",
            "proxy.test_legacy.MistakeTests.test_nobody_hears_of_hosts_that_are_not_theirs",
            "privacy.test_views.TenantTests.test_unknown_and_wrong_are_one_answer",
            "privacy.test_views.TenantTests.test_another_owner_sees_nothing",
        ),
    ),
    Row(
        part="proxy",
        party="somebody on the path between server and agent",
        learns="that the two talk; on a plain data connection the visitor's own TLS with its SNI, and a spent secret",
        hidden="any secret that still opens something",
        tests=(
            "proxy.test_server.AgentTests.test_data_port",
            "proxy.test_subscriber.SubscribeTests.test_a_recorded_proof_is_worth_nothing_elsewhere",
            "privacy.test_views.PathTests.test_the_control_connection_holds_no_lasting_secret",
            "privacy.test_views.PathTests.test_recorded_secrets_open_nothing",
        ),
    ),
    Row(
        part="proxy",
        party="the DNS resolver that an ownership proof asks",
        learns="that a host is being claimed",
        hidden="by whom, and with which secret",
    ),
    Row(
        part="proxy",
        party="the router between the nodes of a cluster",
        learns="node ids, the nodes' addresses, times and sizes",
        hidden="hosts and one-time secrets, which are sealed to the node that they are for",
        tests=(
            "resilience.test_cluster.ClusterTests.test_what_the_router_sees",
            "proxy.test_bus_wamp.SwitchTests.test_the_router_learns_no_host_and_no_secret",
            "crypto.test_hpke.SealerTests.test_nothing_of_it_shows",
        ),
    ),
    Row(
        part="proxy",
        party="reader of the access log",
        learns="host, reason, blurred sizes and times",
        hidden="addresses, unless `log.addresses` says otherwise",
        tests=(
            "proxy.test_server.OperatorTests.test_access_log",
            "net.test_logs.RowTests.test_records_are_blurred_and_others_are_not",
            "privacy.test_views.LogTests.test_no_mark",
        ),
    ),
    Row(
        part="proxy",
        party="whoever sees the page of `layer8 expose --inspect`, or its JSON",
        learns="method, target and fields of requests and answers, sizes, times",
        hidden="bodies, and the values of Authorization, Proxy-Authorization, Cookie and Set-Cookie",
        tests=(
            "cli.test_inspector.ListenerTests.test_what_is_hidden_never_leaves",
            "cli.test_inspector.ChromiumTests.test_requests_appear_and_nothing_hidden_does",
            "proxy.test_inspect.RecordTests.test_every_hidden_field_by_any_spelling",
        ),
    ),
    Row(
        part="proxy",
        party="a web page of another site, in the browser of whoever uses `--inspect`",
        learns="whether a connection to the port fails, by its timing",
        hidden="any answer, and a way to have a request sent again",
        tests=(
            "cli.test_inspector.ListenerTests.test_no_page_of_another_origin",
            "cli.test_inspector.ListenerTests.test_only_who_has_the_token",
            "cli.test_inspector.ChromiumTests.test_a_page_of_another_origin_gets_nothing",
        ),
    ),
    Row(
        part="control",
        party="another user of the same machine",
        learns="that a port listens, `/healthz`, `/readyz`",
        hidden="everything else",
        tests=(
            "control.test_service.ProofTests.test_another_users_process",
            "control.test_service.FileTests.test_files_are_private_and_go",
            "control.test_http.PageTests.test_metrics_need_the_role_read",
        ),
    ),
    Row(
        part="control",
        party="a caller with role read",
        learns="counts, states, short ids, blurred times",
        hidden="addresses, targets, the secrets of hosts",
        tests=(
            "control.test_rows.MatrixTests.test_every_cell_over_a_connection",
            "proxy.test_methods.OperatorTests.test_subscribers",
            "node.test_service.RowTests.test_targets_are_shown_to_who_asks_for_them_and_may",
            "privacy.test_views.RoleTests.test_read",
            "control.test_rows.SecretTests.test_no_answer_holds_a_secret",
        ),
    ),
    Row(
        part="control",
        party="a caller with role admin",
        learns="the same unblurred",
        hidden="private keys and secrets: no method returns one",
        tests=(
            "control.test_rows.SecretTests.test_no_answer_holds_a_secret",
            "proxy.test_methods.OwnerTests.test_no_result_holds_a_secret",
            "privacy.test_views.RoleTests.test_admin",
        ),
    ),
    Row(
        part="control",
        party="operator of a WAMP router",
        learns="node ids, method names, parameters, results, times",
        hidden="tokens, which are neither taken nor shown there; one-time secrets, which are sealed; traffic",
        tests=(
            "control.test_wamp.WampTests.test_the_cookie_is_admin",
            "control.test_wamp.WampTests.test_tokens_come_and_go",
            "resilience.test_cluster.ClusterTests.test_what_the_router_sees",
        ),
    ),
    Row(
        part="control",
        party="metrics collector",
        learns="totals",
        hidden="peers, and hosts unless the option that labels by host is on",
        tests=(
            "control.test_metrics.PeerTests.test_ten_thousand_peers",
            "privacy.test_views.RoleTests.test_metrics",
        ),
    ),
    Row(
        part="control",
        party="reader of the log",
        learns="events and their reasons",
        hidden="addresses, targets, secrets, content",
        tests=(
            "net.test_logs.RowTests.test_content_never_gets_in",
            "privacy.test_views.LogTests.test_no_mark",
            "privacy.test_views.LogTests.test_hosts_only_in_access_records",
            "cli.test_demo.StayingTests.test_no_secret_and_no_address_of_the_visitor_in_what_is_left_to_read",
        ),
    ),
    Row(
        part="control",
        party="a web page in the user's browser",
        learns="whether a connection to the port fails, by its timing",
        hidden="any answer",
        tests=(
            "control.test_http.PageTests.test_origins",
            "control.test_http.PageTests.test_a_rebound_name_cannot_upgrade",
        ),
    ),
    Row(
        part="control",
        party="host of the dashboard's files",
        learns="nothing: it is the node itself",
        hidden="that the dashboard is open",
        built=False,
    ),
    Row(
        part="network",
        party="guard: the first hop",
        learns="the client's address, the second hop, times, and how many cells go each way",
        hidden="the target, what is said to it, and the exit",
        tests=(
            "privacy.test_network_views.HopTests.test_guard",
            "relay.test_origin.OpenTests.test_the_guard_hears_no_reason",
        ),
    ),
    Row(
        part="network",
        party="middle: a hop between",
        learns="the hops before and behind it, times, and how many cells go each way",
        hidden="the client, the target, and what is said",
        tests=(
            "privacy.test_network_views.HopTests.test_middle",
            "privacy.test_network_views.ObserverTests.test_the_same_said_twice_looks_different",
        ),
    ),
    Row(
        part="network",
        party="exit: the last hop",
        learns="the hop before it, the target, and what is said to it, unless that is encrypted by itself",
        hidden="the client, and the guard",
        tests=(
            "privacy.test_network_views.HopTests.test_exit",
            "privacy.test_network_views.HopTests.test_clients",
        ),
    ),
    Row(
        part="network",
        party="tracker",
        learns="which relays publish themselves, and that somebody behind a last hop asks for relays",
        hidden="who asks, and that a relay that publishes itself asks too",
        tests=(
            "privacy.test_asking_views.TrackerTests.test_who_asks",
            "relay.test_filling.TrackerTests.test_once_relays_are_known_a_tracker_does_not_see_who_asks",
            "relay.test_hostile.TrackerTests.test_who_publishes_is_not_seen_to_ask",
        ),
    ),
    Row(
        part="network",
        party="node of the DHT that searches for a circuit",
        learns="that somebody asks for a key, or puts an item; of a service's descriptor a key that is good for a day; "
        "of sets, as those about names are, up to eight that one asks for",
        hidden="who it is, which service that is, and that one wants two items",
        tests=(
            "privacy.test_hidden_views.DhtTests.test_hop_that_searches",
            "dht.test_service.CircuitTests.test_put_and_get_by_circuits",
            "dht.test_service.CircuitTests.test_each_item_by_a_circuit_of_its_own",
        ),
    ),
    Row(
        part="network",
        party="node of the DHT that stores an item",
        learns="the item, and the address of the node that searched or stored it for somebody",
        hidden="who has put it there, and who asks for it",
        tests=("privacy.test_hidden_views.DhtTests.test_node_that_stores",),
    ),
    Row(
        part="network",
        party="neighbour that is asked for peers",
        learns="that its neighbour wants to know more nodes",
        hidden="what for: which of them it uses, and for which targets",
        tests=("privacy.test_asking_views.PeerTests.test_what_for",),
    ),
    Row(
        part="network",
        party="recipient of messages (`layer8 send`)",
        learns="the text, and who signs it if somebody does",
        hidden="who sends one that nobody has signed, and that a signed one is of the same hand",
        tests=("relay.test_hostile.InboxTests.test_a_nameless_message_does_not_come_by_the_circuit_of_a_signed_one",),
    ),
    Row(
        part="network",
        party="observer of one link",
        learns="that two nodes speak, and when and how much, in multiples of 2048 bytes, padding among them",
        hidden="which circuits there are, and everything that is said",
        tests=("privacy.test_network_views.ObserverTests",),
    ),
    Row(
        part="network",
        party="program at the SOCKS port",
        learns="what its targets answer, and of datagrams the address that has answered; a code where nobody does",
        hidden="the path: every byte of its answers is that of any other path",
        tests=(
            "socks.test_server.AnswerTests.test_reasons_become_codes",
            "socks.test_program.AnswerTests.test_answered_once_and_early_words_first",
            "socks.test_datagrams.UdpTests.test_questions_by_name_and_by_address",
        ),
    ),
    Row(
        part="network",
        party="hops that change, drop, repeat or mix up cells",
        learns="that the circuit has ended",
        hidden="whether a cell that one of them has touched is the one that another one sees",
        tests=(
            "relay.test_circuit.TamperTests.test_cells_that_were_touched",
            "relay.test_circuit.TamperTests.test_a_relay_that_swaps_two_circuits",
            "relay.test_hostile.ClosedCircuitTests.test_a_reason_is_no_mark_that_a_guard_sends_to_an_exit",
            "relay.test_hostile.ClosedCircuitTests.test_a_reason_is_no_mark_that_an_exit_sends_to_a_guard",
        ),
    ),
    Row(
        part="network",
        party="guard and exit together, or who watches both",
        learns="by times and volume, that a client's circuit and an exit's are one",
        hidden="nothing of that: padding and cells of one length do not stop whoever counts at both ends",
    ),
    Row(
        part="hidden",
        party="node that stores a service's descriptor",
        learns="a key that is good for one day, when it was used, and for how many sixteens of known clients at most",
        hidden="which service it is, its points and clients, and which keys of two days are one service's",
        tests=(
            "privacy.test_hidden_views.DhtTests.test_node_that_stores",
            "privacy.test_hidden_views.DhtTests.test_two_periods_have_nothing_in_common",
            "rendezvous.test_descriptor.StoringNodeTests",
            "crypto.test_curtain.ClientTests.test_lists_tell_nothing",
        ),
    ),
    Row(
        part="hidden",
        party="access point",
        learns="a key that is used there and nowhere else, how many knock and with how much work; the volume of what "
        "is said too, if a service lets it go that way (mode 0)",
        hidden="the service's key and address, who knocks, where the two meet, and what they say",
        tests=(
            "privacy.test_hidden_views.PointTests.test_access_point",
            "privacy.test_hidden_views.PointTests.test_access_point_that_is_the_place_to_meet",
            "rendezvous.test_end_to_end.MeetTests.test_sixteen_mebibytes",
            "rendezvous.test_access.ListenTests.test_a_signature_for_another_circuit",
        ),
    ),
    Row(
        part="hidden",
        party="rendezvous hop",
        learns="a cookie, that two circuits belong together, and how much goes over",
        hidden="both ends, which service it is, and what they say",
        tests=("privacy.test_hidden_views.PointTests.test_rendezvous_hop", "relay.test_joined.ViewTests"),
    ),
    Row(
        part="hidden",
        party="guard of a service",
        learns="its address, that it keeps circuits for long, and how much goes each way",
        hidden="which service it is, and that it is one, as long as nobody counts more than the first cells",
        tests=(
            "privacy.test_hidden_views.GuardTests",
            "rendezvous.test_end_to_end.MeetTests.test_set_ups_look_alike",
            "dht.test_service.CircuitTests.test_a_put_goes_by_second_hops_that_are_kept",
        ),
    ),
    Row(
        part="hidden",
        party="service",
        learns="that somebody has come, what he says, and the key that he logs in with, if he does",
        hidden="his address, that he has other keys, and which other services he visits",
        tests=("privacy.test_hidden_views.EndTests.test_service", "rendezvous.test_end_to_end.MeetTests.test_login"),
    ),
    Row(
        part="hidden",
        party="client",
        learns="that the service has the key of its address, and its access points of the day",
        hidden="the service's address, and who else visits it",
        tests=(
            "privacy.test_hidden_views.EndTests.test_client",
            "privacy.test_hidden_views.EndTests.test_one_client_hears_nothing_of_another",
            "rendezvous.test_oracle.OracleTests.test_every_node_is_a_place_to_meet",
            "rendezvous.test_end_to_end.FailureTests.test_a_wrong_service_key",
        ),
    ),
    Row(
        part="hidden",
        party="somebody who has the address and is not let in",
        learns="that a descriptor exists",
        hidden="the service's points, and so any way to knock",
        tests=(
            "privacy.test_hidden_views.StrangerTests",
            "rendezvous.test_descriptor.ClientTests.test_only_known_clients_get_in",
        ),
    ),
    Row(
        part="hidden",
        party="client that was removed",
        learns="what it knew before",
        hidden="the descriptors of afterwards",
        tests=("rendezvous.test_descriptor.ClientTests.test_who_was_removed_is_out",),
    ),
    Row(
        part="hidden",
        party="reader of a visitor's or a relay's disk, log or metrics",
        learns="which nodes of the network are known; names that the user has pinned, and keys that he has configured",
        hidden="which services were visited, by whom, and what was said",
        tests=(
            "privacy.test_hidden_traces.TraceTests.test_visits_leave_nothing",
            "rendezvous.test_naming.KeyTests.test_no_trace_of_what_was_looked_up",
        ),
    ),
    Row(
        part="hidden",
        party="who owns the guards of both ends",
        learns="by times and volume, that a client visits a service",
        hidden="nothing of that: cells of one length do not stop whoever counts at both ends",
    ),
    Row(
        part="hidden",
        party="reader of attestations",
        learns="that a node with the role names has looked at a service, on which days, and what it found",
        hidden="who visits the service",
        tests=(
            "rendezvous.test_attesting.AttestTests.test_a_hundred_visits_change_no_set",
            "rendezvous.test_claims.RecordTests.test_attestations_name_no_visitor",
        ),
    ),
    *TUNNEL,
)


def markdown(part: str) -> str:
    """Draw the rows of one part as a Markdown table."""
    lines = ["| party | learns | does not learn | shown by |", "|---|---|---|---|"]
    for row in TABLE:
        if row.part == part:
            shown = ", ".join(f"`{name}`" for name in row.tests) or f"*{row.shown}*"
            lines.append(f"| {row.party} | {row.learns} | {row.hidden} | {shown} |")
    return "\n".join(lines) + "\n"
