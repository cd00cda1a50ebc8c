"""Every row of the shared part: who may call it, over real connections, and that no answer holds a lasting secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import TestCase

from layer8.control.errors import Forbidden, InvalidParams
from tests.control.matrix import MAY_ACT_AS, NO_METHOD_HAS_IT, wrong_cells
from tests.control.rig import BUG, HOST_SECRET, Rig, raises, rig

# The page's table of section 6, written out again; test.* are the rows of the rig.
SHARED: Mapping[str, tuple[str, ...]] = {
    "rpc.discover": ("public",),
    "rpc.ping": ("public",),
    "auth.token": ("public",),
    "auth.whoami": ("public",),
    "token.add": ("admin",),
    "token.list": ("admin",),
    "token.revoke": ("admin",),
    "node.status": ("read",),
    "node.health": ("read",),
    "node.drain": ("operate",),
    "node.resume": ("operate",),
    "node.stop": ("admin",),
    "config.show": ("admin",),
    "config.check": ("admin",),
    "config.reload": ("admin",),
    "events.subscribe": ("public",),
    "events.unsubscribe": ("public",),
    "log.tail": ("operate",),
    "log.level": ("operate",),
    "metrics.snapshot": ("read",),
    "knowledge.table": ("public",),
}
EVENTS: Mapping[str, str] = {
    "node.ready": "read",
    "node.draining": "read",
    "node.health": "read",
    "rpc.changed": "public",
    "config.reloaded": "operate",
    "log.line": "operate",
    "stats.tick": "read",
    "event.lost": "public",
}
PARAMS: Mapping[str, dict[str, Any]] = {
    "token.add": {"name": "made", "roles": ["read"]},
    "token.revoke": {"name": "made"},
    "config.check": {"toml": f'[proxy]\nsecret = "{HOST_SECRET}"\nname = 7\n'},
    "events.subscribe": {"names": ["node.health", "log.line", "stats.tick"]},
    "events.unsubscribe": {"subscription": 1},
    "log.level": {"namespace": "layer8.test"},
    "auth.token": {"token": "wrong"},
}


class MatrixTests(TestCase):
    """Role by method, over the real table."""

    def expected(self, made: Rig) -> dict[str, tuple[str, ...]]:
        ours = {name: row.roles for name, row in made.table.methods.items() if name.startswith("test.")}
        return {**SHARED, **ours}

    async def test_every_cell_of_the_table(self) -> None:
        made = rig(self)
        self.assertEqual(wrong_cells(made.table, self.expected(made)), [])

    async def test_every_cell_over_a_connection(self) -> None:
        """The parameter that no method has comes after the permission and before the method."""
        made = rig(self)
        expected = self.expected(made)
        for role, acts_as in MAY_ACT_AS.items():
            token = None
            if role != "nobody":
                token = made.service.keyring.add(f"is-{role}", frozenset({role}), None)
            client = await made.client("tcp", token)
            for name, roles in expected.items():
                allowed = bool(acts_as & set(roles))
                await raises(InvalidParams if allowed else Forbidden, client.call(name, NO_METHOD_HAS_IT))

    async def test_every_event(self) -> None:
        made = rig(self)
        self.assertEqual({n: e.role for n, e in made.table.announced.items() if not n.startswith("test.")}, EVENTS)
        for role in ("public", "read", "operate", "admin", "agent"):
            client = await made.client("tcp", made.service.keyring.add(f"is-{role}", frozenset({role}), None))
            for name, needed in EVENTS.items():
                call = client.call("events.subscribe", {"names": [name]})
                if needed in MAY_ACT_AS[role]:
                    await call
                else:
                    await raises(Forbidden, call)


class SecretTests(TestCase):
    """C5: what is said by every method, event and page is searched for everything that must stay here."""

    async def test_no_answer_holds_a_secret(self) -> None:
        made = rig(self)
        named = made.service.keyring.add("named", frozenset({"admin"}), None)
        keyring = made.service.keyring
        client = await made.client("tcp", named)
        served: Any = made.service.conversations()[0]
        said: list[bytes] = []
        send = served._socket.send

        def heard(message: bytes) -> bool:
            said.append(message)
            return bool(send(message))

        served._socket.send = heard
        made_token = ""
        called = []
        for name in [*SHARED, "test.bug", "test.odd", "test.refused", "test.peer", "token.list", "config.show"]:
            try:
                answer = await client.call(name, PARAMS.get(name, {}))
            except Exception as error:
                answer = str(error)
            called.append(name)
            if name == "token.add":
                made_token = answer["token"]
        made.health.set("x", False, "y")
        self.flushLoggedErrors(KeyError, TypeError)
        self.assertTrue(made_token and set(called) > set(SHARED))
        everything = b"\n".join(said).decode() + made.metrics.render().decode()
        secrets = {
            "the cookie": keyring.cookie,
            "a named token": named,
            "the hash of the cookie": keyring._cookie_digest.hex(),
            "the private key": made.identity.key_pem.decode().splitlines()[2],
            "a secret in a checked file": HOST_SECRET,
            "a bug's text": BUG,
            **{f"the hash of {token.name}": token.digest.hex() for token in keyring.tokens},
        }
        self.assertEqual([what for what, secret in secrets.items() if secret in everything], [])
        self.assertEqual(everything.count(made_token), 1)

    async def test_a_secret_has_no_repr(self) -> None:
        made = rig(self)
        token = made.service.keyring.add("named", frozenset({"admin"}), None)
        client = await made.client("tcp", token)
        await client.call("auth.token", {"token": token})
        served = made.service.conversations()[0]
        for thing in (served, served.caller(), made.service.keyring.tokens, next(iter(made.service.keyring.tokens))):
            text = repr(thing)
            self.assertFalse(token in text or made.service.keyring.cookie in text, text)
