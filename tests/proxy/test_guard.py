"""The guard: one host per connection, whatever the cuts; upgrades; and that nothing slips by unread."""

from time import perf_counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.http1 import ENDLESS, Malformed, read_request
from layer8.proxy.guard import PIPELINED, Answer, Guard, Over, Owed, Verdict, Why, doubt, plain
from layer8.proxy.sniff import Found
from layer8.proxy.sniff_http import HttpSniffer
from tests.proxy.cuts import mutated, pieces
from tests.proxy.rows_http import HTTP_ROWS

OURS = b"GET /a HTTP/1.1\r\nHost: a.test\r\nAccept: */*\r\n\r\n"
THEIRS = b"GET /b HTTP/1.1\r\nHost: b.test\r\n\r\n"
SPELLED = b"GET /a HTTP/1.1\r\nHost: A.test:80\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 44\r\n\r\n" + THEIRS.ljust(44)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
FRAMES = b"\x81\x05hello"


def passed(*parts: bytes) -> tuple[bytes, Over | None]:
    """What a guard lets through of pieces that come one by one, and how it ended."""
    guard = Guard()
    out = b"".join(guard.feed(part) for part in parts)
    return out, guard.over


def every_cut(data: bytes) -> tuple[bytes, Over | None]:
    """The same at every cut and byte by byte."""
    whole = passed(data)
    for way in [*([data[:at], data[at:]] for at in range(len(data))), [data[at : at + 1] for at in range(len(data))]]:
        if passed(*way) != whole:
            raise AssertionError(f"{way}: {passed(*way)} and not {whole}")
    return whole


class GuardTests(SynchronousTestCase):
    def test_what_stays_with_its_host_passes_as_it_came(self) -> None:
        data = OURS + SPELLED + POST + CHUNKED + b"\r\n" + OURS
        self.assertEqual(every_cut(data), (data, None))
        self.assertEqual(passed(OURS, SPELLED, POST, CHUNKED, OURS), (OURS + SPELLED + POST + CHUNKED + OURS, None))

    def test_another_host_goes_no_further(self) -> None:
        over = Over(Why.MISDIRECTED, 421)
        for before in (OURS, POST, CHUNKED, SPELLED + POST):
            self.assertEqual(every_cut(before + THEIRS + OURS), (before, over))
            self.assertEqual(passed(before, THEIRS, OURS), (before, over))

    def test_another_subdomain_is_another_host(self) -> None:
        self.assertEqual(passed(OURS, OURS.replace(b"a.test", b"x.a.test"))[1], Over(Why.MISDIRECTED, 421))

    def test_a_host_and_none(self) -> None:
        old = b"GET / HTTP/1.0\r\n\r\n"
        self.assertEqual(every_cut(old + old), (old + old, None))
        self.assertEqual(passed(old, OURS), (old, Over(Why.MISDIRECTED, 421)))
        self.assertEqual(passed(OURS, old), (OURS, Over(Why.MISDIRECTED, 421)))

    def test_doubt_ends_it(self) -> None:
        for bad, status in (
            (OURS[:-2] + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (OURS[:-2] + b"Host: a.test\r\n\r\n", 400),
            (OURS.replace(b"GET", b"CONNECT"), 405),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0),
            (OURS[:-2] + b"X: y\r\n" * 100 + b"\r\n", 431),
        ):
            self.assertEqual(every_cut(POST + bad), (POST, Over(Why.DOUBT, status)), bad)
            self.assertEqual(passed(OURS, bad), (OURS, Over(Why.DOUBT, status)), bad)
            self.assertEqual(doubt(bad), status, bad)
            self.assertIsNone(doubt(OURS + bad))
        head, _, _ = CHUNKED.partition(b"5\r\n")
        self.assertEqual(passed(head + b"5\r\nhello!!")[1], Over(Why.DOUBT, 400))

    def test_no_head_takes_long(self) -> None:
        """A head that almost fits the plain form is given up as fast as one that fits it."""
        for lines in (b"X: y\r\n" * 98, b"Cookie: y\r\n" * 98, b"Host:\r\n" * 50, b"T: y\r\nX: y\r\n" * 49):
            for end in (b"X\r\n\r\n", b"X: \x00\r\n\r\n", b"Host: a.test\r\nHost: a.test\r\n\r\n", b"X: y"):
                start = perf_counter()
                first = OURS[: OURS.index(b"Host")] + lines + end
                self.assertEqual((plain(first), passed(OURS, first)[0][: len(OURS)]), (b"", OURS))
                self.assertLess(perf_counter() - start, 0.1)

    def test_bodies_pass_unseen(self) -> None:
        guard = Guard()
        head = b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n"
        self.assertEqual((guard.feed(head), guard.free), (head, 1_000_000))
        guard.skipped(999_999)
        self.assertEqual(guard.free, 1)
        self.assertEqual((guard.feed(b"x" + OURS), guard.free), (b"x" + OURS, 0))
        self.assertEqual((guard.feed(head), guard.free), (head, 1_000_000))
        guard.skipped(1_000_000)
        self.assertEqual((guard.free, guard.feed(THEIRS), guard.over), (0, b"", Over(Why.MISDIRECTED, 421)))

    def test_chunks_pass_unseen(self) -> None:
        guard = Guard()
        head = CHUNKED.partition(b"5\r\n")[0] + b"100000\r\n"
        self.assertEqual((guard.feed(head), guard.free), (head, 1 << 20))
        guard.skipped(1 << 20)
        self.assertEqual(guard.free, 0)
        self.assertEqual(guard.feed(b"\r\n0\r\n\r\n" + OURS), b"\r\n0\r\n\r\n" + OURS)

    def test_a_head_that_is_not_whole_waits(self) -> None:
        guard = Guard()
        self.assertEqual((guard.feed(OURS + OURS[:-1]), guard.feed(OURS[-1:])), (OURS, OURS))

    def test_upgrade_waits_for_its_answer(self) -> None:
        guard = Guard()
        self.assertEqual((guard.feed(UPGRADE + FRAMES), guard.asks), (UPGRADE, True))
        self.assertEqual((guard.feed(FRAMES), guard.free), (b"", 0))
        self.assertEqual((guard.opened(), guard.free, guard.asks), (FRAMES * 2, ENDLESS, False))
        guard.skipped(1 << 30)
        self.assertEqual((guard.feed(THEIRS), guard.free, guard.over), (THEIRS, ENDLESS, None))

    def test_upgrade_declined_goes_on_guarded(self) -> None:
        for waiting, out, over in (
            (OURS + POST, OURS + POST, None),
            (OURS + THEIRS, OURS, Over(Why.MISDIRECTED, 421)),
            (b"", b"", None),
        ):
            guard = Guard()
            self.assertEqual(guard.feed(UPGRADE + waiting), UPGRADE)
            self.assertEqual((guard.declined(), guard.over), (out, over))
            if over is None:
                self.assertEqual((guard.feed(THEIRS), guard.over), (b"", Over(Why.MISDIRECTED, 421)))

    def test_upgrade_answered_before_its_body_has_come(self) -> None:
        guard = Guard()
        head = UPGRADE[:-2] + b"Content-Length: 5\r\n\r\n"
        self.assertEqual(guard.feed(head + b"he"), head + b"he")
        self.assertEqual((guard.declined(), guard.asks), (b"", False))
        self.assertEqual((guard.feed(b"llo" + OURS), guard.asks), (b"llo" + OURS, False))

    def test_upgrade_with_a_body_that_passes_unseen(self) -> None:
        guard = Guard()
        head = UPGRADE[:-2] + b"Content-Length: 5\r\n\r\n"
        self.assertEqual((guard.feed(head), guard.free), (head, 5))
        guard.skipped(5)
        self.assertEqual((guard.asks, guard.feed(FRAMES)), (True, b""))

    def test_a_later_upgrade_begins_anew(self) -> None:
        self.assertEqual(passed(OURS + UPGRADE + FRAMES), (OURS, Over(Why.ANEW, 0, UPGRADE + FRAMES)))
        self.assertEqual(passed(OURS, UPGRADE), (OURS, Over(Why.ANEW, 0, UPGRADE)))
        other = UPGRADE.replace(b"a.test", b"b.test")
        self.assertEqual(passed(OURS, other), (OURS, Over(Why.MISDIRECTED, 421)))

    @given(st.data())
    def test_any_cut(self, data: st.DataObject) -> None:
        whole = OURS + POST + CHUNKED + data.draw(st.sampled_from((OURS, THEIRS, UPGRADE, b"")))
        self.assertEqual(passed(*data.draw(pieces(whole))), passed(whole))

    @given(st.data())
    def test_whatever_passes_is_for_the_first_host(self, data: st.DataObject) -> None:
        """In noise: the fast way and the careful way agree, and every head that passed names one host."""
        piece = st.one_of(
            st.sampled_from((OURS, THEIRS, SPELLED)), mutated((OURS, SPELLED, THEIRS, *(r.data for r in HTTP_ROWS[:9])))
        )
        parts = [part for part in data.draw(st.lists(piece, min_size=1, max_size=4)) if len(part) < 1000]
        out, over = passed(*parts)
        self.assertEqual((out, over), passed(*(bytes([octet]) for octet in b"".join(parts))))
        if over is None and parts:
            try:
                read = [read_request(part) for part in parts]
            except Malformed:
                return  # they are no heads one by one
            self.assertEqual(len({None if request.host is None else request.host[0] for request in read}), 1)

    @given(mutated((OURS, SPELLED, THEIRS, POST, UPGRADE, OURS + THEIRS)))
    def test_what_goes_unread_is_what_would_have_passed(self, first: bytes) -> None:
        """A guard that was told of a plain first request is as one that has read it."""
        if spelled := plain(first):
            told = Guard()
            told.begin(first, spelled)
            read = Guard()
            self.assertEqual(read.feed(first), first)
            for guard in (told, read):
                self.assertEqual((guard.over, guard.free, guard.upgrading, len(guard.owed)), (None, 0, False, 1))
            for later in (OURS, SPELLED, POST, THEIRS):
                self.assertEqual((told.feed(later), told.over), (read.feed(later), read.over))

    def test_what_is_plain(self) -> None:
        self.assertEqual([plain(one) for one in (OURS, SPELLED, THEIRS)], [b"a.test", b"A.test:80", b"b.test"])
        for other in (b"", OURS[:-1], OURS + OURS, POST, CHUNKED, UPGRADE, OURS.replace(b"a.test", b"a..test")):
            self.assertEqual(plain(other), b"", other)
        guard = Guard()
        guard.begin(OURS.replace(b"GET", b"HEAD"), b"a.test")
        self.assertEqual(guard.owed.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")[-4:], b"\r\n\r\n")
        self.assertEqual((len(guard.owed), guard.owed.free), (0, 0))

    def test_doubt_agrees_with_the_sniffer(self) -> None:
        for row in HTTP_ROWS:
            sniffed = HttpSniffer().feed(row.data)
            if isinstance(sniffed, Found):
                wanted = {"both Content-Length and chunked": 400}.get(row.name, 0 if row.data[:4] == b"PRI " else None)
                self.assertEqual(doubt(row.data), wanted, row.name)


class AnswerTests(SynchronousTestCase):
    def answered(self, data: bytes) -> tuple[bytes, Verdict | None]:
        """At every cut the same verdict; what went on differs only in what an answer without verdict holds back."""
        verdicts = set()
        for at in range(len(data)):
            answer = Answer()
            out = answer.feed(data[:at])
            if answer.verdict is None:
                out += answer.feed(data[at:])
            else:
                out += data[at:]
            verdicts.add((out, answer.verdict))
        self.assertEqual(len(verdicts), 1, verdicts)
        return verdicts.pop()

    def test_switched(self) -> None:
        self.assertEqual(self.answered(SWITCHED + FRAMES), (SWITCHED + FRAMES, Verdict.OPENED))

    def test_declined(self) -> None:
        for answer in (b"HTTP/1.1 426 Upgrade Required\r\n\r\nno", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"):
            self.assertEqual(self.answered(answer), (answer, Verdict.DECLINED))

    def test_interim_answers_are_none(self) -> None:
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        self.assertEqual(self.answered(interim), (interim, None))
        self.assertEqual(self.answered(interim + SWITCHED), (interim + SWITCHED, Verdict.OPENED))

    def test_what_would_hide_requests(self) -> None:
        for bad in (
            SWITCHED.replace(b"websocket", b"h2c"),
            SWITCHED.replace(b"websocket", b"websocket, H2"),
            SWITCHED.replace(b"Upgrade: websocket\r\n", b""),
            b"SSH-2.0-x\r\n\r\n",
        ):
            answer = Answer()
            answer.feed(bad)
            self.assertEqual((answer.feed(b""), answer.verdict), (b"", Verdict.BROKEN), bad)


class OwedTests(SynchronousTestCase):
    HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    PIECES = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    BARE = b"HTTP/1.1 204 No Content\r\n\r\n"
    BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"  # to HEAD
    CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

    def told(self, asked: str, *parts: bytes) -> tuple[bytes, int, bool]:
        """What passes of pieces that come one by one, how many answers are owed then, and whether it was too much.

        `asked` is a letter per request that was let through, H for HEAD.
        """
        owed = Owed()
        for letter in asked:
            owed.ask(letter == "H")
        return b"".join(owed.feed(part) for part in parts), len(owed), owed.extra

    def test_every_cut(self) -> None:
        for asked, data in (
            ("GG", self.HI + self.CONTINUE + self.HI),
            ("GHG", self.PIECES + self.BODY + self.HI),
            ("HGGG", self.BODY + self.BARE + self.CONTINUE * 2 + self.PIECES + self.HI),
        ):
            for more, extra in ((b"", False), (b"\r\n", False), (self.HI, True), (b"x", True)):
                whole = data + more
                self.assertEqual(self.told(asked, whole), (data, 0, extra))
                self.assertEqual(
                    self.told(asked, data, more, self.HI) if more else None, (data, 0, True) if more else None
                )
                for at in range(len(whole)):
                    self.assertEqual(self.told(asked, whole[:at], whole[at:]), (data, 0, extra), (asked, more, at))
                self.assertEqual(self.told(asked + "G", data), (data, 1, False))

    def test_bodies_pass_unseen(self) -> None:
        owed = Owed()
        for _ in range(2):
            owed.ask(False)
            owed.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\nx")
            self.assertEqual(owed.free, 4_999_999)
            owed.skipped(4_999_998)
            self.assertEqual((owed.free, len(owed)), (1, 1))
            owed.skipped(1)
            self.assertEqual((owed.free, len(owed), owed.between), (0, 0, True))
        owed.ask(False)
        owed.feed(b"HTTP/1.1 200 OK\r\n\r\n")
        self.assertEqual((owed.free, len(owed), owed.between), (ENDLESS, 1, False))

    def test_what_cannot_be_counted_passes(self) -> None:
        for odd in (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi", b"220 hello\r\n\r\n", SWITCHED + FRAMES):
            for at in range(len(odd)):
                self.assertEqual(self.told("G", odd[:at], odd[at:], self.HI), (odd + self.HI, 0, False))
        owed = Owed()
        for _ in range(PIPELINED + 1):
            owed.ask(False)
        self.assertFalse(owed.known)
