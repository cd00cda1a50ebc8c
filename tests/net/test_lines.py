import os
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.net.lines import WAITING, LineWriter


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.writer = LineWriter.to_path(self.path)
        self.addCleanup(self.writer.close)

    def test_nothing_is_written_before_the_flush_and_all_of_it_then(self) -> None:
        self.writer.append(b"a\n")
        self.writer.append(b"b\n")
        self.assertEqual(self.path.read_bytes(), b"")
        self.writer.flush()
        self.writer.flush()
        self.assertEqual(self.path.read_bytes(), b"a\nb\n")

    def test_appends_to_what_is_there_and_only_for_this_user(self) -> None:
        self.writer.append(b"a\n")
        self.writer.close()
        again = LineWriter.to_path(self.path)
        again.append(b"b\n")
        again.close()
        self.assertEqual(self.path.read_bytes(), b"a\nb\n")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_reopens_after_a_rename(self) -> None:
        self.writer.append(b"a\n")
        self.assertFalse(self.writer.renamed())
        old = self.path.rename(self.path.with_suffix(".1"))
        self.assertTrue(self.writer.renamed())
        self.writer.reopen()
        self.assertFalse(self.writer.renamed())
        self.writer.append(b"b\n")
        self.writer.flush()
        self.assertEqual((old.read_bytes(), self.path.read_bytes()), (b"a\n", b"b\n"))

    def test_keeps_the_old_file_if_the_new_one_cannot_be_opened(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        writer = LineWriter.to_path(folder / "log")
        moved = folder.rename(folder.with_suffix(".1"))
        self.assertRaises(OSError, writer.reopen)
        writer.append(b"a\n")
        writer.close()
        self.assertEqual((moved / "log").read_bytes(), b"a\n")

    def test_appending_is_cheap(self) -> None:
        line, append = b"x" * 300 + b"\n", self.writer.append
        best = 1.0
        for _ in range(5):
            before = time.process_time()
            for _ in range(10_000):
                append(line)
            best = min(best, time.process_time() - before)
        self.assertLess(best / 10_000, 0.5e-6)

    def test_threads_lose_no_line(self) -> None:
        def write(number: int) -> None:
            for index in range(2000):
                self.writer.append(b"%d %d\n" % (number, index))
                if index % 7 == 0:
                    self.writer.flush()

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.writer.flush()
        lines = self.path.read_bytes().splitlines()
        self.assertEqual(sorted(lines), sorted(b"%d %d" % (a, b) for a in range(4) for b in range(2000)))

    def test_a_full_disk_is_survived_and_counted(self) -> None:
        writer = LineWriter(os.open("/dev/full", os.O_WRONLY))
        writer.append(b"a\nb\n")
        writer.flush()
        self.assertEqual(writer.dropped, 2)
        writer.flush()
        self.assertEqual(writer.dropped, 2)


class PipeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reader, descriptor = os.pipe()
        self.addCleanup(os.close, self.reader)
        self.addCleanup(os.close, descriptor)
        os.set_blocking(self.reader, False)
        self.writer = LineWriter(descriptor)

    def read(self) -> bytes:
        data = b""
        while True:
            try:
                data += os.read(self.reader, 1 << 20)
            except BlockingIOError:
                return data

    def test_a_slow_reader_does_not_stop_us(self) -> None:
        line = b"x" * 999 + b"\n"
        for _ in range(300):
            self.writer.append(line)
        before = time.monotonic()
        self.writer.flush()
        self.assertLess(time.monotonic() - before, 1.0)
        got = b""
        while piece := self.read():
            got += piece
            self.writer.flush()
        self.assertEqual(got, line * 300)
        self.assertEqual(self.writer.dropped, 0)

    def test_what_nobody_takes_is_dropped_by_whole_lines_and_counted(self) -> None:
        line = b"x" * 999 + b"\n"
        for _ in range(5):
            for _ in range(500):
                self.writer.append(line)
            self.writer.flush()
        got = b""
        while piece := self.read():
            got += piece
            self.writer.flush()
        self.assertLess(len(got), WAITING + 200_000)
        self.assertEqual(len(got) % 1000, 0)
        self.assertEqual(self.writer.dropped + len(got) // 1000, 2500)
