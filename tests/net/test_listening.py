import socket
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.net.listening import addresses, open_ports

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
ROW = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0"
ANY6 = "0" * 32
MAPPED = "0000000000000000FFFF0000{}"
LAN, LOOP, LOOP6 = "0501A8C0", "0100007F", "00000000000000000000000001000000"


class AddressTests(SynchronousTestCase):
    def setUp(self) -> None:
        if sys.byteorder != "little":
            raise SkipTest("the lines here are those of a little-endian machine")

    def found(self, *rows: tuple[str, int, str]) -> list[str]:
        return list(addresses([HEAD, *(ROW.format(*row) for row in rows)], 80))

    def test_who_listens_beyond_loopback(self) -> None:
        found = self.found(("00000000", 80, "0A"), (LAN, 80, "0A"), (ANY6, 80, "0A"), (MAPPED.format(LAN), 80, "0A"))
        self.assertEqual(found, ["0.0.0.0", "192.168.1.5", "::", "192.168.1.5"])

    def test_loopback_and_others(self) -> None:
        found = self.found(
            (LOOP, 80, "0A"), (LOOP6, 80, "0A"), (MAPPED.format(LOOP), 80, "0A"), (LAN, 80, "01"), (LAN, 8080, "0A")
        )
        self.assertEqual(found, [])
        self.assertEqual(list(addresses(["", "a b"], 80)), [])


class HereTests(SynchronousTestCase):
    def test_a_listener_on_loopback_is_nobodys_business(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.assertEqual(open_ports(server.getsockname()[1]), ())
