"""The HTTP request table, in `raw` mode."""

from hpack import Encoder

from tests.proxy.hellos import hello, records, sni
from tests.proxy.rows import Row, cut, every_byte, row

GET = b"GET /index.html HTTP/1.1\r\n"
HOST = b"Host: www.example.com\r\n"
PLAIN = GET + HOST + b"User-Agent: test\r\nAccept: */*\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\n" + HOST


def head(*lines: bytes, start: bytes = GET) -> bytes:
    return start + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def hosted(value: bytes) -> bytes:
    return head(b"Host: " + value, b"Accept: */*")


def cookie(size: int) -> bytes:
    return b"Cookie: a=" + b"x" * (size - 12) + b"\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = frame(4, 0, 0, bytes.fromhex("000300000064000400a00000000200000000"))
WINDOW_UPDATE = frame(8, 0, 0, bytes.fromhex("3e7f0001"))
REQUEST = [
    (b":method", b"GET"),
    (b":path", b"/"),
    (b":scheme", b"http"),
    (b":authority", b"www.example.com"),
    (b"user-agent", b"curl/7.88.1"),
    (b"accept", b"*/*"),
]


def block(fields: list[tuple[bytes, bytes]] = REQUEST, huffman: bool = True) -> bytes:
    encoded: bytes = Encoder().encode(fields, huffman=huffman)
    return encoded


def h2(*frames: bytes) -> bytes:
    return PREFACE + SETTINGS + b"".join(frames)


H2 = h2(WINDOW_UPDATE, frame(1, 0x05, 1, block()))

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"

HTTP_ROWS: tuple[Row, ...] = (
    row("one segment", PLAIN),
    Row("Host cut mid-name", cut(PLAIN, PLAIN.index(b"example") + 3), "A"),
    Row("1 byte per segment", every_byte(PLAIN), "A"),
    row("Host with port", hosted(b"www.example.com:80")),
    row("upper case", GET + b"HOST: WWW.EXAMPLE.COM\r\n\r\n"),
    row("trailing dot", hosted(b"www.example.com.")),
    row("no space after colon", head(b"Host:www.example.com")),
    row("LF only", PLAIN.replace(b"\r\n", b"\n")),
    row("1.0 without Host", b"GET / HTTP/1.0\r\nAccept: */*\r\n\r\n", "D"),
    row("1.1 without Host", GET + b"Accept: */*\r\n\r\n", "400"),
    row("absolute-form, Host equal", head(HOST[:-2], start=b"GET http://www.example.com/a HTTP/1.1\r\n")),
    row("absolute-form, Host other", head(HOST[:-2], start=b"GET http://evil.example.net/a HTTP/1.1\r\n"), "400"),
    row("absolute-form https:", head(HOST[:-2], start=b"GET https://www.example.com/ HTTP/1.1\r\n"), "400"),
    row("absolute-form with userinfo", head(HOST[:-2], start=b"GET http://u@www.example.com/ HTTP/1.1\r\n"), "400"),
    row("leading CRLF", b"\r\n" + PLAIN),
    row("two leading CRLFs", b"\r\n\r\n" + PLAIN, "400"),
    row("userinfo in Host", hosted(b"user@www.example.com"), "400"),
    row("empty Host", hosted(b""), "400"),
    row("Host a,b", hosted(b"www.example.com,evil.example.net"), "400"),
    row("Host with %41", hosted(b"www.ex%41mple.com"), "400"),
    row("Host with a space", hosted(b"www.example.com evil"), "400"),
    row("Host with 0x80 or more", hosted("www.exämple.com".encode()), "400"),
    row("Host with NUL", hosted(b"www.example.com\x00.evil"), "400"),
    row("IPv6 literal Host", hosted(b"[2001:db8::1]"), "A", "[2001:db8::1]"),
    row("IPv6 literal Host in another spelling", hosted(b"[2001:DB8:0::1]"), "A", "[2001:db8::1]"),
    row("method not a token", b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n", "400"),
    row("HTTP/0.9", b"GET /\r\n" + HOST + b"\r\n", "400"),
    row("HTTP/0.9 spelled out", b"GET / HTTP/0.9\r\n" + HOST + b"\r\n", "400"),
    row("HTTP/3.0", b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", "505"),
    row("second request, same Host", PLAIN + PLAIN),
    row("second request, other Host", PLAIN + hosted(b"other.example.net")),
    row("two Hosts good, evil", head(HOST[:-2], b"Host: evil.example.net"), "400"),
    row("two Hosts evil, good", head(b"Host: evil.example.net", HOST[:-2]), "400"),
    row("two Hosts equal", head(HOST[:-2], HOST[:-2]), "400"),
    row("space before the colon", head(b"Host : www.example.com"), "400"),
    row("obs-fold of Host", head(b"Host:", b" www.example.com"), "400"),
    row("obs-fold of the first line", head(b" Host: www.example.com"), "400"),
    row("obs-fold after Host", head(HOST[:-2], b"\t.evil.example.net"), "400"),
    row("obs-fold of another field", head(HOST[:-2], b"Accept: a,", b" b"), "400"),
    row("Host only in the body", b"POST / HTTP/1.1\r\nContent-Length: 23\r\n\r\n" + HOST, "400"),
    row("5 KB cookie before Host", GET + cookie(5 * 1024) + HOST + b"\r\n"),
    row("20 KB cookie before Host", GET + cookie(20 * 1024) + HOST + b"\r\n"),
    row("33 KiB of header", GET + HOST + cookie(33 * 1024) + b"\r\n", "431"),
    row("100 fields", head(HOST[:-2], *(b"X-%d: y" % i for i in range(99)))),
    row("101 fields", head(HOST[:-2], *(b"X-%d: y" % i for i in range(100))), "431"),
    row("PRI * HTTP/2.0 preface", H2),
    row("CONNECT", b"CONNECT www.example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", "405"),
    row("TLS hello on the HTTP port", records(hello(sni())), "X"),
    row("PROXY v1 first, untrusted", b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 80\r\n" + PLAIN, "400"),
    row("bare CR in a field", head(HOST[:-2], b"A: b\rHost: evil.example.net"), "400"),
    row("NUL in a field", head(HOST[:-2], b"A: b\x00c"), "400"),
    row("both Content-Length and chunked", BODY + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n"),
    row("Expect: 100-continue", BODY + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"),
    row("trailers", BODY + b"Trailer: A\r\n" + CHUNKED + b"A: b\r\n\r\n"),
    row("pipelining", PLAIN * 3),
)
