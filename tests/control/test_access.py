"""Roles, ceilings, named tokens and bans."""

from __future__ import annotations

import timeit

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.access import BESIDE, EVERYTHING, LADDER, ROLES, effective, reach
from layer8.control.tokens import (
    Token,
    Tokens,
    digest_of,
    dump_tokens,
    parse_tokens,
    token_text,
)
from layer8.core.errors import ConfigError
from tests.control.callers import caller

ROLE_SETS = st.frozensets(st.sampled_from(sorted(ROLES)))


class Roles(SynchronousTestCase):
    """The ladder, and what stands beside it."""

    def test_each_step_may_what_those_below_may(self) -> None:
        for place, role in enumerate(LADDER):
            self.assertEqual(reach(frozenset({role})), frozenset(LADDER[: place + 1]))

    def test_beside_the_ladder_nothing_is_implied(self) -> None:
        for role in BESIDE:
            self.assertEqual(reach(frozenset({role})), frozenset({"public", role}))
            self.assertFalse(caller("admin").may(role))

    def test_admin_is_nothing_where_the_ceiling_is_agent_and_owner(self) -> None:
        stranger = caller("admin", ceiling=frozenset({"agent", "owner"}))
        self.assertEqual([role for role in sorted(ROLES) if stranger.may(role)], ["public"])

    def test_a_ceiling_on_the_ladder_lets_its_lower_steps_through(self) -> None:
        reader = caller("admin", ceiling=frozenset({"read"}))
        self.assertTrue(reader.may("read"))
        self.assertFalse(reader.may("operate"))

    @given(ROLE_SETS, ROLE_SETS)
    def test_a_ceiling_never_adds(self, roles: frozenset[str], ceiling: frozenset[str]) -> None:
        self.assertLessEqual(effective(roles, ceiling), effective(roles, EVERYTHING))
        self.assertLessEqual(effective(roles, ceiling), reach(ceiling))
        self.assertIn("public", effective(roles, ceiling))

    def test_a_granted_role_stays_under_the_ceiling(self) -> None:
        agent = caller(ceiling=frozenset({"agent"}))
        self.assertTrue(agent.with_role("agent").may("agent"))
        self.assertFalse(agent.with_role("admin").may("read"))
        self.assertFalse(agent.may("agent"))

    def test_repr_of_a_caller_does_not_show_its_connection(self) -> None:
        self.assertNotIn("peer", repr(caller("read")))


def a_token(name: str = "ops", text: str = "secret", **other: object) -> Token:
    fields = {"roles": frozenset({"operate"}), "created": 1_700_000_000, **other}
    return Token(name=name, digest=digest_of(text), **fields)  # type: ignore[arg-type]


class TokenSets(SynchronousTestCase):
    """The check, and the file."""

    def test_right_wrong_expired(self) -> None:
        tokens = Tokens([a_token(), a_token("old", "older", expires=1_700_000_100)])
        self.assertEqual(tokens.check("secret", 1_800_000_000.0), a_token())
        self.assertIsNone(tokens.check("Secret", 1_800_000_000.0))
        self.assertIsNotNone(tokens.check("older", 1_700_000_099.9))
        self.assertIsNone(tokens.check("older", 1_700_000_100.0))

    def test_what_can_be_no_token_is_none(self) -> None:
        tokens = Tokens([a_token()])
        for shown in ("", "s", "secret ", "x" * 1_048_576, "\ud800", "nobody", "\0" * 32):
            self.assertIsNone(tokens.check(shown, 0.0), shown[:20])

    def test_the_digest_itself_is_no_token(self) -> None:
        tokens = Tokens([a_token()])
        self.assertIsNone(tokens.check(a_token().digest.hex(), 0.0))
        self.assertIsNone(Tokens().check("", 0.0))

    def test_same_first_bytes_of_a_digest_are_not_enough(self) -> None:
        digest = digest_of("secret")
        tokens = Tokens([Token("close", digest[:31] + bytes([digest[31] ^ 1]), frozenset({"admin"}), 0)])
        self.assertIsNone(tokens.check("secret", 0.0))

    def test_a_wrong_token_takes_as_long_as_a_right_one(self) -> None:
        tokens = Tokens(a_token(f"t{number}", f"secret {number}") for number in range(2000))

        def took(shown: str) -> float:
            return min(timeit.repeat(lambda: tokens.check(shown, 0.0), number=200, repeat=30))

        self.assertIsNotNone(tokens.check("secret 1999", 0.0))
        times = [took(shown) for shown in ("secret 0", "secret 1999", "", "wrong", "x" * 43, "x" * 1_048_576)]
        self.assertLess(max(times) / min(times), 2.0, times)

    def test_a_set_is_never_changed(self) -> None:
        one = Tokens([a_token()])
        two = one.with_token(a_token("second", "other"))
        self.assertEqual((len(one), len(two), len(two.without("ops")), len(two.without("nobody"))), (1, 2, 1, 2))
        self.assertNotIn("ops", two.without("ops"))
        with self.assertRaises(ValueError):
            two.with_token(a_token())
        with self.assertRaises(ValueError):
            two.with_token(a_token("third", "other"))

    def test_text_of_a_token(self) -> None:
        self.assertEqual(len(token_text(bytes(range(32)))), 43)
        with self.assertRaises(ValueError):
            token_text(b"short")

    def test_repr_hides_the_digest(self) -> None:
        self.assertNotIn("digest", repr(a_token()))

    @given(
        st.lists(
            st.builds(
                Token,
                name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
                digest=st.binary(min_size=32, max_size=32),
                roles=st.frozensets(st.sampled_from(sorted(ROLES)), min_size=1).map(lambda roles: roles | {"owner"}),
                created=st.integers(0, 4_000_000_000),
                expires=st.none() | st.integers(0, 4_000_000_000),
                hosts=st.lists(st.from_regex(r"[!-~]{1,30}", fullmatch=True), max_size=3).map(tuple),
            ),
            unique_by=(lambda token: token.name, lambda token: token.digest[:8]),
            max_size=5,
        )
    )
    def test_what_is_written_is_read_back(self, tokens: list[Token]) -> None:
        self.assertEqual(list(parse_tokens(dump_tokens(Tokens(tokens)))), tokens)

    def test_all_that_is_wrong_is_said_at_once(self) -> None:
        with self.assertRaises(ConfigError) as raised:
            parse_tokens(
                'colour = 1\n[[token]]\nname = "a"\nsha256 = "00"\n'
                '[[token]]\nname = "b"\nsha256 = "' + "0" * 64 + '"\nroles = ["king"]\ncreated = 2026-01-01T00:00:00Z\n'
                '[[token]]\nname = "c"\nsha256 = "' + "1" * 64 + '"\nroles = ["read"]\ncreated = 2026-01-01T00:00:00\n'
                '[[token]]\nname = "d"\nsha256 = "' + "2" * 64 + '"\nroles = ["read"]\nhosts = ["x"]\n'
                "created = 2026-01-01T00:00:00Z\n[[token]]\nshape = 3\n"
            )
        lines = str(raised.exception).splitlines()
        self.assertEqual(
            [line.partition(": ")[0] for line in lines],
            ["unknown key colour", "token 1", "token 2", "token 3", "token 4", "token 5"],
        )

    def test_files_that_are_none(self) -> None:
        for text in ("[[token]", "token = 3", "token = [3]", "x = [" * 10_000):
            with self.assertRaises(ConfigError):
                parse_tokens(text)

    def test_two_of_one_name(self) -> None:
        written = dump_tokens(Tokens([a_token()]))
        with self.assertRaises(ConfigError):
            parse_tokens(written + written)
