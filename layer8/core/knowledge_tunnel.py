"""Who learns what in the browser tunnel; see `layer8.core.knowledge`."""

from __future__ import annotations

from layer8.core.knowledge_row import Row

TUNNEL: tuple[Row, ...] = (
    Row(
        part="tunnel",
        party="relay",
        learns="the client's address and what its browser says of itself, the id of the gateway, the time of each "
        "request, and its size, one of eight steps below 64 KiB",
        hidden="method, path, fields, cookies, content and answer; which of the names behind one gateway is meant; the "
        "keys of either end",
        tests=(
            "privacy.test_tunnel_views.RelayTests.test_nothing_of_what_is_asked_and_answered",
            "privacy.test_tunnel_views.RelayTests.test_nothing_of_a_socket",
            "privacy.test_tunnel_views.RelayTests.test_no_key_of_either_end",
            "privacy.test_tunnel_views.SizeTests",
        ),
    ),
    Row(
        part="tunnel",
        party="reader of a relay's disk, log or metrics",
        learns="which gateways it knows, how many requests there were and how they ended",
        hidden="who has asked, for which gateway, and when",
        tests=(
            "privacy.test_tunnel_views.RelayTests.test_its_log_and_metrics_name_nobody",
            "tunnel.test_relay_service.ToldTests.test_rows_and_metrics",
        ),
    ),
    Row(
        part="tunnel",
        party="gateway and backend",
        learns="what is asked, its exact size and time; who it is if the page says so (session, login)",
        hidden="the client's address, its browser, languages and Origin; that two requests are one person's",
        tests=(
            "privacy.test_tunnel_views.GatewayTests",
            "tunnel.test_relay_hard.FieldTests.test_forty_fields_that_tell_who_asks",
            "tunnel.test_relay_sockets.PipeTests.test_nothing_of_the_handshake_goes_on",
        ),
    ),
    Row(
        part="tunnel",
        party="another provider on the same page",
        learns="what the page asks of it",
        hidden="cookies, sessions and keys of the others",
        tests=(
            "tunnel.test_js_fetch.JsFetchTests.test_two_gateways",
            "tunnel.test_client.AskingTests.test_two_gateways_and_their_cookies",
        ),
    ),
    Row(
        part="tunnel",
        party="observer of either leg",
        learns="that a client speaks with a relay, or a relay with a gateway, when and how much; without TLS the "
        "gateway's id",
        hidden="what is said, and any token or id that would name a client, a session or a tunnel",
        tests=(
            "privacy.test_tunnel_views.RelayTests.test_no_token_or_id_on_its_wire",
            "privacy.test_tunnel_views.RelayTests.test_nothing_of_what_is_asked_and_answered",
        ),
    ),
    Row(
        part="tunnel",
        party="mirror of an app",
        learns="who loads the app, and when",
        hidden="what the app then asks of its provider, unless the mirror is the relay too and serves other files",
        tests=("tunnel.test_relay_service.RoleTests.test_a_mirror_relays_nothing",),
    ),
    Row(
        part="tunnel",
        party="relay and provider together, or who watches both legs",
        learns="by times and sizes, who has asked what",
        hidden="nothing of that: times are not hidden",
    ),
)
