"""The table of hosts: look-ups, names, claims, secrets, limits, and that nobody learns which hosts exist."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.proxy import ProxyLimits
from layer8.crypto.password import hashed
from layer8.proxy import limits
from layer8.proxy.orders import Policy, Rotate, Update
from layer8.proxy.registration import Ownership, Registration, StoredSecret, gate, looked, proof_wanted, rotated, shown
from layer8.proxy.registry import Registry, inside, static
from layer8.proxy.wire import Code, Denied
from tests.proxy.desk import HOST, NODE, NONCE, OTHER, SECRET, WALL, asked, key_of, proof, row


def registry(*rows: Registration, **some: int) -> Registry:
    made = Registry(ProxyLimits(**some), b"\xff" * 32, ("proxy.example.net",))
    for one in rows:
        made.put(one)
    return made


def plan(table: Registry, host: str = HOST, owner: str = "ann", free: bool = True, **more: Any) -> Registration:
    return table.plan_register(asked(host, **more), owner=owner, free=free, mode="raw", now=WALL)


class RegistryTests(SynchronousTestCase):
    def denied(self, code: Code, does: Callable[[], object]) -> Denied:
        error: Denied = self.assertRaises(Denied, does)
        self.assertIs(error.code, code)
        return error


class LookupTests(RegistryTests):
    def test_exact_beats_wildcard(self) -> None:
        table = registry(row("*.example.com"), row("a.example.com"))
        self.assertEqual(getattr(table.lookup("a.example.com"), "host", None), "a.example.com")
        self.assertEqual(getattr(table.lookup("b.example.com"), "host", None), "*.example.com")

    def test_star_is_one_label(self) -> None:
        table = registry(row("*.example.com"))
        self.assertIsNone(table.lookup("a.b.example.com"))
        self.assertIsNone(table.lookup("example.com"))
        self.assertIsNone(table.lookup("com"))
        self.assertIsNone(table.lookup(""))

    def test_dropped_is_not_found(self) -> None:
        for host, visitor in ((HOST, HOST), ("*.example.com", "x.example.com")):
            table = registry(row(host))
            self.assertIsNotNone(table.lookup(visitor))
            table.drop(row(host))
            self.assertIsNone(table.lookup(visitor))
            table.drop(row(host))
            self.assertEqual(len(table), 0)

    def test_suspended_is_not_found_but_known(self) -> None:
        table = registry(row(state=Ownership.PROVEN))
        table.put(row(state=Ownership.SUSPENDED))
        self.assertIsNone(table.lookup(HOST))
        self.assertTrue(table.suspended(HOST))
        table.put(row(state=Ownership.PROVEN))
        self.assertIsNotNone(table.lookup(HOST))
        self.assertFalse(table.suspended(HOST))

    def test_pending_is_not_found(self) -> None:
        table = registry(row(state=Ownership.PENDING))
        self.assertIsNone(table.lookup(HOST))
        self.assertFalse(table.suspended(HOST))

    def test_ten_thousand_registrations(self) -> None:
        table = registry()
        for number in range(10_000):
            table.put(row(f"host{number}.example.com" if number % 10 else f"*.zone{number}.example.com"))
        self.assertEqual(len(table), 10_000)
        self.assertEqual(getattr(table.lookup("host4321.example.com"), "host", None), "host4321.example.com")
        self.assertEqual(getattr(table.lookup("x.zone4320.example.com"), "host", None), "*.zone4320.example.com")
        began = perf_counter()
        for _ in range(10_000):
            table.lookup("host4321.example.com")
            table.lookup("unknown.example.org")
        # 1 us each here; 50 us would be a scan, and leaves room for a machine that does other things too
        self.assertLess(perf_counter() - began, 1.0)
        for number in range(10_000):
            table.drop(row(f"host{number}.example.com" if number % 10 else f"*.zone{number}.example.com"))
        self.assertEqual(len(table), 0)


class NameTests(RegistryTests):
    def test_what_cannot_be_registered(self) -> None:
        long = "a" * 63
        for name in (
            "localhost",
            "x.localhost",
            "192.0.2.1",
            "[2001:db8::1]",
            "2001:db8::1",
            "*.com",
            "com",
            "*",
            "*.*.example.com",
            "a.*.example.com",
            "proxy.example.net",
            "*.example.net",
            "a b.example.com",
            "a_b.example.com",
            "-a.example.com",
            f"{long}.{long}.{long}.{long[:62]}",
            "a" * 64 + ".example.com",
            "a..example.com",
            "xn--a.example.com",
            "x" * 512,
        ):
            self.denied(Code.INVALID_HOST, lambda name=name: plan(registry(), name))  # type: ignore[misc]

    def test_one_form(self) -> None:
        for name in ("APP.Example.com", "app.example.com.", "b\u00fccher.example", "*.Example.COM"):
            host = plan(registry(), name).host
            self.assertTrue(host.isascii())
            self.assertEqual(host, host.lower().rstrip("."))
        self.assertEqual(plan(registry(), "b\u00fccher.example").host, "xn--bcher-kva.example")

    @given(st.text(max_size=40))
    def test_any_noise(self, name: str) -> None:
        try:
            host = plan(registry(), name).host
        except Denied as denied:
            self.assertIs(denied.code, Code.INVALID_HOST)
        else:
            self.assertEqual(plan(registry(), host).host, host)


class PlanTests(RegistryTests):
    def test_registered_already(self) -> None:
        table = registry(plan(registry()))
        self.denied(Code.ALREADY_REGISTERED, lambda: plan(table))
        self.denied(Code.ALREADY_REGISTERED, lambda: plan(table, owner="bob"))
        self.denied(Code.ALREADY_REGISTERED, lambda: plan(table, host="APP.example.com.", owner="bob"))

    def test_a_claim_does_not_say_that_the_host_exists(self) -> None:
        claimed = plan(registry(row()), owner="bob", free=False)
        self.assertEqual(claimed.state, Ownership.PENDING)
        self.assertEqual(evolve(claimed, version=0), evolve(plan(registry(), owner="bob", free=False), version=0))

    def test_claims_stand_beside_each_other_and_the_oldest_goes(self) -> None:
        table = registry()
        owners = [f"owner{number}" for number in range(limits.HOST_CLAIMS + 1)]
        for owner in owners:
            table.put(plan(table, owner=owner, free=False))
        self.assertIsNone(table.claim(HOST, owners[0]))
        self.assertIsNotNone(table.claim(HOST, owners[1]))
        self.assertEqual(len(table), limits.HOST_CLAIMS)

    def test_hosts_limit(self) -> None:
        table = registry(row(), hosts=1)
        denied = self.denied(Code.NO_CAPACITY, lambda: plan(table, "b.example.com"))
        self.assertEqual(denied.data["limit"], "HOSTS")

    def test_owner_hosts_limit(self) -> None:
        table = registry(*(row(f"h{number}.example.com") for number in range(limits.OWNER_HOSTS)))
        self.denied(Code.QUOTA, lambda: plan(table, "more.example.com"))
        self.assertEqual(plan(table, "more.example.com", owner="bob").owner, "bob")
        table.drop(row("h0.example.com"))
        self.assertEqual(plan(table, "more.example.com").owner, "ann")

    def test_claims_limit(self) -> None:
        table = registry(*(row(f"h{n}.example.com", state=Ownership.PENDING) for n in range(limits.CLAIMS)))
        self.denied(Code.QUOTA, lambda: plan(table, "more.example.com", free=False))
        self.assertEqual(plan(table, "h1.example.com", free=False).state, Ownership.PENDING)

    def test_users_need_a_mode_that_can_ask_them(self) -> None:
        policy = Policy(users=("alice:" + hashed("secret"),))
        table = registry()
        for mode in (None, "raw", "guard"):
            with self.assertRaises(Denied) as denied:
                plan(table, policy=policy, mode=mode)
            self.assertEqual(denied.exception.code, Code.FORBIDDEN_BY_POLICY)
        row = plan(table, policy=policy, mode="proxy")
        self.assertRaises(Denied, table.plan_update, row, Update(HOST, mode="guard"), WALL)
        self.assertEqual(table.plan_update(row, Update(HOST, mode="guard", policy=Policy()), WALL).mode, "guard")
        self.assertRaises(Denied, table.plan_update, plan(table), Update(HOST, policy=policy), WALL)

    def test_policy_rules(self) -> None:
        rules = tuple(f"192.0.2.{number}/32" for number in range(65))
        self.denied(Code.QUOTA, lambda: plan(registry(), policy=Policy(allow=rules)))
        self.assertIsNotNone(plan(registry(), policy=Policy(allow=rules[:64])).gate)
        for wrong in ("example.com", "192.0.2.1/33", "192.0.2.1/24", "", "::1/129"):
            self.denied(
                Code.FORBIDDEN_BY_POLICY,
                lambda wrong=wrong: plan(registry(), policy=Policy(deny=(wrong,))),  # type: ignore[misc]
            )

    def test_ports(self) -> None:
        made = plan(registry(), ports=(443, 443, 80))
        self.assertEqual(made.ports, (80, 443))
        self.assertTrue(made.serves(443))
        self.assertFalse(plan(registry(), ports=(443,)).serves(80))
        self.assertTrue(plan(registry()).serves(12345))

    def test_update_replaces_what_is_given(self) -> None:
        table = registry(plan(registry(), ports=(80,), policy=Policy(deny=("192.0.2.0/24",))))
        before = table.of(HOST, "ann")
        after = table.plan_update(before, Update(HOST, ports=(443,), ttl_s=60), WALL)
        self.assertEqual((after.ports, after.policy, after.expires), ((443,), before.policy, WALL + 60))
        self.assertIsNotNone(after.gate)
        self.assertGreater(after.version, before.version)
        self.assertIsNone(table.plan_update(before, Update(HOST, policy=Policy()), WALL).gate)

    def test_another_owner_sees_nothing(self) -> None:
        table = registry(row())
        mine = self.denied(Code.WRONG_SECRET, lambda: table.of(HOST, "bob"))
        none = self.denied(Code.WRONG_SECRET, lambda: table.of("none.example.com", "bob"))
        self.assertEqual(str(mine), str(none))
        self.assertEqual(table.of(HOST, None), row())
        self.assertEqual([placed[1].host for placed in table.page("bob", None, 10)], [])

    def test_pages(self) -> None:
        table = registry(*(row(f"h{number}.example.com") for number in range(10)))
        table.put(row("h3.example.com", owner="bob", state=Ownership.PENDING))
        seen: list[str] = []
        cursor: str | None = None
        while page := table.page(None, cursor, 3)[:3]:
            seen += [found.host for _, found in page]
            cursor = page[-1][0]
        self.assertEqual(seen, sorted([*(f"h{number}.example.com" for number in range(10)), "h3.example.com"]))

    def test_static_hosts(self) -> None:
        stood = row(owner="bob")
        table = registry(stood)
        host = static(HOST, key=None, target="tcp:127.0.0.1:80", ports=(80,), mode="raw", policy=Policy(), rules=64)
        self.assertEqual(table.put_static([host]), [])
        found = table.lookup(HOST)
        assert found is not None
        self.assertEqual((found.owner, found.target), ("config", "tcp:127.0.0.1:80"))
        self.denied(Code.FORBIDDEN_BY_POLICY, lambda: table.plan_update(found, Update(HOST), WALL))
        self.denied(Code.FORBIDDEN_BY_POLICY, lambda: table.plan_rotate(found, Rotate(HOST, "0" * 64), WALL))
        self.denied(Code.ALREADY_REGISTERED, lambda: plan(table))
        self.assertEqual([gone.host for gone in table.put_static([])], [HOST])
        self.assertIsNone(table.lookup(HOST))


class SecretTests(RegistryTests):
    def shown(self, table: Registry, host: str, shows: str, now: float = WALL) -> Registration | None:
        found = table.by_proof(host, shows, NONCE, NODE, now)
        return None if found is None else found.row

    def test_right_proof(self) -> None:
        for host in (HOST, "*.example.com"):
            table = registry(row(host))
            self.assertEqual(self.shown(table, host, proof(host)), row(host))
            self.assertEqual(self.shown(table, host.upper(), proof(host)), row(host))

    def test_wrong_proofs(self) -> None:
        table = registry(row(), row("b.example.com", OTHER))
        for shows in (
            proof(secret=OTHER),
            proof("b.example.com"),
            proof(nonce=bytes(32)),
            proof(node=bytes(32)),
            proof().upper(),
            proof()[:-1],
            "",
            "\ud800",
        ):
            self.assertIsNone(self.shown(table, HOST, shows))
        self.assertIsNone(self.shown(table, "b.example.com", proof()))

    def test_raw_secret(self) -> None:
        table = registry(row())
        found = table.by_secret(HOST, SECRET, WALL)
        assert found is not None
        self.assertEqual((found.row, found.key), (row(), key_of()))
        self.assertIsNone(table.by_secret(HOST, OTHER, WALL))
        # K is what the server stores: knowing it must not be enough where the secret itself is asked for
        self.assertIsNone(table.by_secret(HOST, key_of(), WALL))

    def test_the_dummy_opens_nothing(self) -> None:
        table = Registry(ProxyLimits(), key_of())
        self.assertIsNone(self.shown(table, HOST, proof()))
        self.assertIsNone(table.by_secret(HOST, SECRET, WALL))

    def test_same_work_for_every_answer(self) -> None:
        """Unknown host, wrong secret, right secret, one or four secrets, claims, nonsense: as many hashes each."""
        table = registry(
            row(),
            row("four.example.com", *(bytes([number]) * 32 for number in range(limits.HASHES))),
            row("claimed.example.com", state=Ownership.PENDING),
            row("claimed.example.com", owner="bob", state=Ownership.PENDING),
        )
        works: set[int] = set()
        for host in (
            HOST,
            "four.example.com",
            "claimed.example.com",
            "unknown.example.com",
            "",
            "no host",
            "*.x",
            "\ud800",
        ):
            for shows in (proof(), "0" * 64):
                before = table.hashed
                table.by_proof(host, shows, NONCE, NODE, WALL)
                works.add(table.hashed - before)
        self.assertEqual(works, {limits.HASHES + limits.HOST_CLAIMS})
        works.clear()
        for host in (HOST, "four.example.com", "claimed.example.com", "unknown.example.com", ""):
            for secret in (SECRET, OTHER):
                before = table.hashed
                table.by_secret(host, secret, WALL)
                works.add(table.hashed - before)
        self.assertEqual(works, {1})

    def test_rotation(self) -> None:
        table = registry(row())
        both = rotated(table.of(HOST, "ann"), key_of(OTHER), 100.0, 2, WALL)
        table.put(both)
        for secret in (SECRET, OTHER):
            self.assertIsNotNone(table.by_secret(HOST, secret, WALL + 99))
        self.assertIsNone(table.by_secret(HOST, SECRET, WALL + 100))
        self.assertIsNotNone(table.by_secret(HOST, OTHER, WALL + 100))
        self.assertIsNone(self.shown(table, HOST, proof(), WALL + 100))

    def test_rotation_without_grace(self) -> None:
        only = rotated(row(), key_of(OTHER), 0.0, 2, WALL)
        self.assertEqual(only.secrets, (StoredSecret(key_of(OTHER)),))

    def test_rotation_never_prolongs(self) -> None:
        once = rotated(row(), key_of(OTHER), 10.0, 2, WALL)
        twice = rotated(once, key_of(b"x" * 32), 1000.0, 3, WALL)
        self.assertEqual(twice.secrets[0].retires, WALL + 10)
        self.assertEqual(twice.secrets[1].retires, WALL + 1000)

    def test_too_many_secrets(self) -> None:
        full = row()
        for number in range(limits.HASHES - 1):
            full = rotated(full, key_of(bytes([number]) * 32), 100.0, 2, WALL)
        self.denied(Code.QUOTA, lambda: rotated(full, key_of(OTHER), 100.0, 3, WALL))
        self.assertEqual(len(rotated(full, key_of(OTHER), 100.0, 3, WALL + 101).secrets), 2)

    def test_rotating_to_the_same_secret(self) -> None:
        self.denied(Code.FORBIDDEN_BY_POLICY, lambda: rotated(row(), key_of(), 100.0, 2, WALL))

    def test_no_secret_is_shown(self) -> None:
        table = registry(row())
        for text in (repr(row()), repr(shown(row(), WALL)), repr(asked()), repr(table.by_secret(HOST, SECRET, WALL))):
            self.assertNotIn(key_of().hex(), text)
            self.assertNotIn(repr(key_of())[2:-1], text)
        self.assertEqual(shown(row(), WALL).secrets[0].starts_with, key_of().hex()[:8])


class TimeTests(RegistryTests):
    def test_expiry(self) -> None:
        table = registry(row(expires=WALL + 10))
        self.assertEqual(table.ended(WALL + 9), [])
        self.assertEqual([gone.host for gone in table.ended(WALL + 10)], [HOST])
        self.assertIsNone(table.lookup(HOST))

    def test_prolonged(self) -> None:
        table = registry(row(expires=WALL + 10))
        table.put(row(expires=WALL + 20))
        self.assertEqual(table.ended(WALL + 10), [])
        self.assertEqual(len(table.ended(WALL + 20)), 1)

    def test_claims_expire(self) -> None:
        table = registry(row(state=Ownership.PENDING, created=WALL))
        self.assertEqual(table.ended(WALL + limits.CLAIM_TIME - 1), [])
        self.assertEqual(len(table.ended(WALL + limits.CLAIM_TIME)), 1)
        self.assertEqual(len(table), 0)

    def test_looked_at_every_day(self) -> None:
        table = registry(row(state=Ownership.PROVEN, proven=WALL), row("owned.example.com"))
        self.assertEqual(table.to_look_at(WALL + limits.PROVE_AGAIN - 1, 8), [])
        self.assertEqual([due.host for due in table.to_look_at(WALL + limits.PROVE_AGAIN, 8)], [HOST])
        self.assertEqual(table.to_look_at(WALL + limits.PROVE_AGAIN, 8), [])
        self.assertEqual(len(table.to_look_at(WALL + 2 * limits.PROVE_AGAIN, 8)), 1)

    def test_lost_for_a_week(self) -> None:
        proven = row(state=Ownership.PROVEN, proven=WALL)
        self.assertIsNone(looked(proven, False, 2, WALL + limits.PROVE_LOST))
        suspended = looked(proven, False, 2, WALL + limits.PROVE_LOST + 1)
        assert suspended is not None
        self.assertEqual(suspended.state, Ownership.SUSPENDED)
        again = looked(suspended, True, 3, WALL + limits.PROVE_LOST + 2)
        assert again is not None
        self.assertEqual((again.state, again.proven), (Ownership.PROVEN, WALL + limits.PROVE_LOST + 2))


class PolicyTests(SynchronousTestCase):
    def test_deny_beats_allow(self) -> None:
        made = gate(Policy(allow=("192.0.2.0/24",), deny=("192.0.2.128/25",)), 64)
        assert made is not None
        self.assertTrue(made.admits("192.0.2.1"))
        self.assertFalse(made.admits("192.0.2.200"))
        self.assertFalse(made.admits("198.51.100.1"))
        self.assertTrue(made.admits("::ffff:192.0.2.1"))
        self.assertFalse(made.admits("::ffff:192.0.2.200"))

    def test_only_deny(self) -> None:
        made = gate(Policy(deny=("2001:db8::/32",)), 64)
        assert made is not None
        self.assertTrue(made.admits("192.0.2.1"))
        self.assertFalse(made.admits("2001:db8::1"))
        self.assertFalse(made.admits("no address"))
        self.assertFalse(made.admits(""))


class OwnershipTests(SynchronousTestCase):
    def test_patterns(self) -> None:
        self.assertTrue(inside("a.example.com", ["*.example.com"]))
        self.assertTrue(inside("*.example.com", ["*.example.com"]))
        self.assertTrue(inside("a.example.com", ["A.example.com"]))
        self.assertFalse(inside("a.b.example.com", ["*.example.com"]))
        self.assertFalse(inside("*.b.example.com", ["*.example.com"]))
        self.assertFalse(inside("a.example.com", []))

    def test_what_has_to_be_found(self) -> None:
        wanted = proof_wanted("app.example.com", "ann")
        self.assertEqual(wanted.txt_name, "_layer8.app.example.com")
        self.assertRegex(wanted.txt_value, r"\Al8=[a-z2-7]{32}\Z")
        self.assertEqual(wanted.url, f"http://app.example.com/.well-known/layer8/{wanted.txt_value[3:]}")
        self.assertNotEqual(wanted.txt_value, proof_wanted("app.example.com", "bob").txt_value)

    def test_wildcards_only_by_dns(self) -> None:
        wanted = proof_wanted("*.example.com", "ann")
        self.assertEqual((wanted.txt_name, wanted.url, wanted.body), ("_layer8.example.com", "", ""))
        self.assertNotEqual(wanted.txt_value, proof_wanted("example.com", "ann").txt_value)
