"""Node keys against RFC 8032, as files and as text."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.keys import SMALL_ORDER, NodeKey, id_text, parse_id, verify
from layer8.crypto.x509 import self_signed

# RFC 8032 section 7.1, tests 1 to 3: seed, public key, message, signature
RFC_8032 = (
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
)


class Keys(SynchronousTestCase):
    def test_rfc_8032(self) -> None:
        for seed, public, message, signature in RFC_8032:
            key = NodeKey.from_seed(bytes.fromhex(seed))
            self.assertEqual(key.node_id.hex(), public)
            self.assertEqual(key.sign(bytes.fromhex(message)).hex(), signature)
            self.assertTrue(verify(key.node_id, bytes.fromhex(signature), bytes.fromhex(message)))

    def test_bad_signatures(self) -> None:
        _, public, message, signature = (bytes.fromhex(part) for part in RFC_8032[1])
        self.assertFalse(verify(public, signature, message + b"x"))
        self.assertFalse(verify(public, signature[:-1], message))
        self.assertFalse(verify(public, bytes([signature[0] ^ 1]) + signature[1:], message))
        self.assertFalse(verify(public[:-1], signature, message))
        self.assertFalse(verify(b"\xff" * 32, signature, message))

    def test_nobody_signs_for_points_of_small_order(self) -> None:
        """With the neutral point in R and S = 0 such a key verifies anything, or one message of two, four or eight."""
        signature = b"\x01" + bytes(63)
        for point in SMALL_ORDER:
            for identity in (point, point[:-1] + bytes((point[-1] | 0x80,))):
                taken = [number for number in range(64) if verify(identity, signature, bytes((number,)))]
                self.assertEqual(taken, [], identity.hex())

    def test_file(self) -> None:
        path = Path(self.mktemp()) / "deep" / "node.key"
        made = NodeKey.load_or_make(path)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(path.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual(NodeKey.load_or_make(path).node_id, made.node_id)
        self.assertEqual([entry.name for entry in path.parent.iterdir()], ["node.key"])
        before = path.stat().st_ino
        NodeKey.make().save(path)
        self.assertNotEqual(path.stat().st_ino, before)  # replaced, not written over

    def test_files_refused(self) -> None:
        path = Path(self.mktemp())
        NodeKey.make().save(path)
        path.chmod(0o644)
        self.assertIn("chmod 600", str(self.assertRaises(ConfigError, NodeKey.load, path)))
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:40])
        self.assertIn(str(path), str(self.assertRaises(ConfigError, NodeKey.load, path)))
        path.write_bytes(self_signed("a.example")[0])
        self.assertIn("Ed25519", str(self.assertRaises(ConfigError, NodeKey.load, path)))
        self.assertRaises(ConfigError, NodeKey.load, Path(self.mktemp()))

    def test_hides(self) -> None:
        key = NodeKey.from_seed(bytes.fromhex(RFC_8032[0][0]))
        self.assertEqual(repr(key), f"NodeKey({key.short})")
        self.assertEqual(len(key.short), 8)
        self.assertTrue(key.text.startswith(key.short))

    @given(st.binary(min_size=32, max_size=32))
    def test_text(self, node_id: bytes) -> None:
        text = id_text(node_id)
        self.assertEqual(len(text), 52)
        self.assertEqual(parse_id(text), node_id)
        self.assertEqual(parse_id(text.upper()), node_id)

    def test_one_text_per_id(self) -> None:
        text = id_text(bytes(32))
        for bad in (text[:-1] + "b", text[:-1], text + "a", "1" * 52, "\u0131" * 52, text[:-1] + "="):
            self.assertRaises(RemoteProtocolError, parse_id, bad)

    @given(st.text())
    def test_noise(self, text: str) -> None:
        try:
            self.assertEqual(id_text(parse_id(text)), text.lower())
        except RemoteProtocolError:
            return
