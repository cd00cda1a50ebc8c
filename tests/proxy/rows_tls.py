"""The ClientHello table."""

from tests.proxy.hellos import (
    ALERT,
    CHANGE_CIPHER_SPEC,
    EARLY_DATA,
    ECH,
    GREASE_FIRST,
    GREASE_LAST,
    HOST,
    PSK,
    SIGNATURES,
    SSLV2_HELLO,
    SUITES,
    TICKET,
    USUAL,
    VERSIONS,
    X25519_MLKEM768,
    alpn,
    entry,
    extension,
    hello,
    hello_of,
    message,
    padding,
    record,
    records,
    server_name,
    sni,
)
from tests.proxy.rows import Row, cut, every_byte, row

PLAIN = hello(sni(), *USUAL)
WHOLE = records(PLAIN)
INSIDE = PLAIN.index(HOST) + 5  # a place inside the SNI
POST_QUANTUM = hello(
    GREASE_FIRST, SIGNATURES, VERSIONS, X25519_MLKEM768, alpn(b"h2", b"http/1.1"), padding(24), GREASE_LAST, sni()
)
LONGEST = hello_of(64 * 1024 - 5 * 4, sni(), *USUAL)  # four records: 64 KiB on the wire
ACME = hello(sni(), alpn(b"acme-tls/1"), VERSIONS)
LABEL_64 = b"a" * 64 + b".example.com"
NAME_254 = b".".join((b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 50, b"example.com"))
PROXY_V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 443\r\n"
PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes.fromhex("c0000201c63364019c4001bb")


def named(name: bytes) -> bytes:
    return records(hello(sni(name), *USUAL))


def in_full_records(handshake: bytes) -> bytes:
    return records(handshake, range(16384, len(handshake), 16384))


TLS_ROWS: tuple[Row, ...] = (
    row("one segment", WHOLE),
    Row("2 TCP segments", cut(WHOLE, WHOLE.index(HOST) + 5), "A"),
    Row("1 byte per segment", every_byte(WHOLE), "A"),
    row("2 records, cut inside the SNI", records(PLAIN, [INSIDE])),
    row("first record of 1 byte", records(PLAIN, [1])),
    row("every record of 1 byte", records(PLAIN, range(1, len(PLAIN)))),
    Row("post-quantum 1.4 KB, SNI last, 2 segments", cut(records(POST_QUANTUM), 1300), "A"),
    row("5 KB", records(hello_of(5 * 1024, sni(), *USUAL))),
    row("15 KB", records(hello_of(15 * 1024, sni(), *USUAL))),
    row("17 KB in 2 records", in_full_records(hello_of(17 * 1024, sni(), *USUAL))),
    row("64 KiB", in_full_records(LONGEST)),
    row("64 KiB + 1", in_full_records(hello_of(len(LONGEST) + 1, sni(), *USUAL)), "X"),
    row("SSLv2 hello", SSLV2_HELLO, "X"),
    row("two server_name extensions", records(hello(sni(), *USUAL, sni())), "X"),
    row("two host_names", records(hello(server_name(entry(HOST), entry(HOST)), *USUAL)), "X"),
    row("SNI an IPv4 literal", named(b"192.0.2.1"), "X"),
    row("SNI an IPv6 literal", named(b"2001:db8::1"), "X"),
    row("SNI a bracketed IPv6 literal", named(b"[2001:db8::1]"), "X"),
    row("SNI with a space", named(b"www.exa mple.com"), "X"),
    row("SNI with an underscore", named(b"www_1.example.com"), "X"),
    row("SNI with 0x80 or more", named("wüw.example.com".encode()), "X"),
    row("empty SNI", named(b""), "X"),
    row("empty record", record(b"") + WHOLE),
    row("32 empty records", record(b"") * 32 + WHOLE),
    row("33rd empty record", record(b"") * 33 + WHOLE, "X"),
    row("33rd empty record inside the hello", records(PLAIN, [9] * 34), "X"),
    row("alert before the hello", ALERT + WHOLE, "X"),
    row("ChangeCipherSpec before the hello", CHANGE_CIPHER_SPEC + WHOLE, "X"),
    row("alert inside the hello", record(PLAIN[:50]) + ALERT + record(PLAIN[50:]), "X"),
    row("handshake type not 1", records(hello(sni(), *USUAL, kind=2)), "X"),
    row("session ticket", records(hello(sni(), TICKET, *USUAL))),
    row("PSK", records(hello(sni(), *USUAL, PSK))),
    row("100 extensions", records(hello(*(extension(0x4000 + i, bytes(i)) for i in range(99)), sni()))),
    row("UPPER-case SNI", named(HOST.upper())),
    row("trailing-dot SNI", named(HOST + b"."), "X"),
    row("no SNI", records(hello(*USUAL)), "D"),
    row("no extensions at all", records(message(hello()[4:-2])), "D"),
    row("empty extension block", records(hello()), "D"),
    row("NUL in SNI", named(b"www.example.com\x00.evil"), "X"),
    row("GREASE extensions", records(hello(GREASE_FIRST, sni(), *USUAL, GREASE_LAST))),
    row("record version 0x0303", records(PLAIN, version=b"\x03\x03")),
    row("ECH extension", records(hello(GREASE_FIRST, sni(), *USUAL, ECH))),
    row("acme-tls/1 ALPN", records(ACME)),
    row("PROXY v1 line first, untrusted", PROXY_V1 + WHOLE, "X"),
    row("PROXY v2 header first, untrusted", PROXY_V2 + WHOLE, "X"),
    row("name_type other than 0 only", records(hello(server_name(entry(HOST, kind=1)), *USUAL)), "D"),
    row("label of 64", named(LABEL_64), "X"),
    row("name of 254", named(NAME_254), "X"),
    row("record length 16,385", record(hello_of(16385, sni(), *USUAL)), "X"),
    row("extension length past the end", records(hello(sni(), u := USUAL[0], u[:2] + b"\x00\xff" + u[4:])), "X"),
    row("extension block longer than the hello", records(hello(sni(), *USUAL, length_off=1)), "X"),
    row("extension block shorter than the hello", records(hello(sni(), *USUAL, length_off=-1)), "X"),
    row("odd length of cipher suites", records(hello(sni(), *USUAL, suites=SUITES + b"\x00")), "X"),
    row("session id of 33", records(hello(sni(), *USUAL, session_id=bytes(33))), "X"),
    row("server_name list one too long", records(hello(extension(0, b"\x00\x13" + entry(HOST)), *USUAL)), "X"),
    row("host_name length past its list", records(hello(extension(0, b"\x00\x12\x00\x00\x10" + HOST), *USUAL)), "X"),
    row("ALPN lengths that do not add up", records(hello(sni(), extension(16, b"\x00\x04\x02h2x"))), "X"),
    row("hello followed at once by early data", WHOLE + CHANGE_CIPHER_SPEC + EARLY_DATA),
    row("HTTP on the TLS port", b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n", "X"),
)
