"""Names on whole nodes: claimed, seen by others that knock, visited by curl, pinned, contested."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Unavailable
from layer8.crypto.ntor import HandshakeFailed
from layer8.node.naming import found_wrong, met_wrong
from layer8.node.service import Node
from layer8.rendezvous.address import address_text
from layer8.rendezvous.claims import Flag, shard_of
from layer8.rendezvous.client import NotMet, Step
from layer8.rendezvous.visits import BAD_ADDRESS, BAD_DESCRIPTOR, CLIENT_MISSING, NotFound
from tests.descriptors import node
from tests.node.test_hidden import HERE, PAGE, HiddenNodeCase


class NameTests(HiddenNodeCase):
    async def attest(self, name: str) -> None:
        """Have every attester do a day's work now."""
        for one in self.attesters:
            assert one.names.attesting is not None
            await one.names.attesting.look(shard_of(name))
            for row in tuple(one.names.archive.probed.values()):
                await one.names.attesting.probe(row)

    async def test_claimed_seen_visited_contested_and_pinned(self) -> None:
        """G57, G58: by three nodes that knock, and with curl; a conflict is shown and opened by nobody."""
        await self.network()
        there = await self.member(f'[service.blog]\nports = {{ 80 = "127.0.0.1:{self.page()}" }}')
        here = await self.member(socks=HERE)
        self.attesters = [await self.member("[names]\nenabled = true") for _ in range(3)]
        hosting = await self.published(there, "blog")
        claimed = await self.call(there, "names.claim", name="blog")
        self.assertEqual(claimed["address"] + ".l8.alt", hosting.address)
        with self.assertRaisesRegex(AssertionError, "curl"):
            await self.curl(here, "http://blog.l8.alt/")
        here.names.naming.forget()
        await self.attest("blog")
        self.assertEqual(await self.curl(here, "http://www.blog.l8.alt/"), PAGE)
        told = await self.call(here, "names.resolve", name="blog")
        self.assertEqual((told["layer"], told["verified"], told["state"]), ("claim", False, "decided"))
        (claim,) = told["claims"]
        self.assertEqual((claim["support"], claim["flags"]["silent"]), (3, 0))
        await self.pinned_to_another(here, told["address"])
        # Somebody else wants the same name: nobody gets it, and both are shown.
        other = await self.member(f'[service.mine]\nports = {{ 80 = "127.0.0.1:{self.page(b"other")}" }}')
        rival = (await self.published(other, "mine")).address
        await self.call(other, "names.claim", name="blog", key="services/mine.pem")
        await self.attest("blog")
        told = await self.call(here, "names.resolve", name="blog")
        self.assertEqual((told["address"], told["state"], len(told["claims"])), ("", "ambiguous", 2))
        with self.assertRaisesRegex(AssertionError, "curl"):
            await self.curl(here, "http://shop.blog.l8.alt/")
        short = next(one["shown"] for one in told["claims"] if one["address"] == rival.removesuffix(".l8.alt"))
        self.assertEqual(await self.curl(here, f"http://{short.replace('~', '--')}.l8.alt/"), b"other")
        # Pinned, it is what it was, and who says otherwise gets a flag.
        await self.call(here, "names.pin", name="blog", address=claimed["address"])
        self.assertEqual(await self.curl(here, "http://blog.l8.alt/"), PAGE)
        await self.call(here, "names.flag", name="blog", address=rival, flag="wrong_key")
        told = await self.call(here, "names.resolve", name="blog")
        self.assertEqual((told["layer"], told["verified"]), ("pin", True))

    async def pinned_to_another(self, here: Node, address: str) -> None:
        """A pin leads to its key, though it is not up; who else has the name is flagged and told."""
        heard: list[tuple[str, Any]] = []
        table = here._frame.table
        publish = table.publish

        def hear(name: str, data: Any) -> None:
            heard.append((name, data))
            publish(name, data)

        self.patch(table, "publish", hear)
        await self.call(here, "names.pin", name="blog", address=address_text(node(1)))
        told = await self.call(here, "names.resolve", name="blog")
        self.assertEqual((told["layer"], told["conflicts"]), ("pin", [{"address": address, "layer": "claim"}]))
        with self.assertRaisesRegex(AssertionError, "curl"):
            await self.curl(here, "http://blog.l8.alt/")
        (flag,) = (await self.call(here, "names.flags"))["flags"]
        self.assertEqual((flag["name"], flag["address"], flag["by"]), ("blog", address, "claim"))
        self.assertEqual([data.address for name, data in heard if name == "names.conflict"], [address])
        self.assertEqual((await self.call(here, "names.list"))["names"][0]["layer"], "pin")
        await self.call(here, "names.unpin", name="blog")

    async def test_a_service_that_is_gone(self) -> None:
        """A claim whose service is not up is attested with a flag, and rows show what was met."""
        await self.network()
        there = await self.member(f'[service.blog]\nports = {{ 80 = "127.0.0.1:{self.page()}" }}')
        self.attesters = [await self.member("[names]\nenabled = true")]
        claimed = await self.call(there, "names.claim", name="blog")
        await self.published(there, "blog")
        await self.attest("blog")
        self.assertEqual((await self.call(self.attesters[0], "names.flags"))["probed"][0]["flags"], [])
        await self.call(there, "rendezvous.unhide", name="blog")
        await self.attest("blog")
        (row,) = (await self.call(self.attesters[0], "names.flags"))["probed"]
        self.assertEqual((row["address"], row["asked"], row["answered"]), (claimed["address"], 2, 1))
        self.assertEqual(row["flags"], ["silent"])
        rows = await self.call(there, "names.list")
        self.assertEqual([one["name"] for one in rows["claims"]], ["blog"])


class KnockTests(SynchronousTestCase):
    """What an error means for an attestation."""

    def test_no_descriptor(self) -> None:
        self.assertIs(found_wrong(NotFound("none")), Flag.NO_DESCRIPTOR)
        self.assertIs(found_wrong(NotFound("bad", BAD_DESCRIPTOR)), Flag.ERRORS)
        self.assertIs(found_wrong(NotFound("bad", BAD_ADDRESS)), Flag.ERRORS)
        self.assertIsNone(found_wrong(NotFound("closed", CLIENT_MISSING)))
        error = NotFound("nobody answers")
        error.__cause__ = Unavailable("no node")
        self.assertRaises(Unavailable, found_wrong, error)

    def test_not_met(self) -> None:
        self.assertIs(met_wrong(NotMet("silent", Step.LATE)), Flag.SILENT)
        self.assertIs(met_wrong(NotMet("unknown", Step.INTRODUCTION)), Flag.SILENT)
        self.assertRaises(Unavailable, met_wrong, NotMet("no hop", Step.RENDEZVOUS))
        error = NotMet("somebody else", Step.RENDEZVOUS)
        error.__cause__ = HandshakeFailed()
        self.assertIs(met_wrong(error), Flag.WRONG_KEY)
