"""An agent's conversation with the server: every row of the state table, and every no."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Layer8Error
from layer8.crypto.keys import parse_id
from layer8.proxy.registration import Ownership
from layer8.proxy.subscriber import Agent
from layer8.proxy.wire import Code, Denied, Health, Hello, OutOfOrder, Reject, Subscribe, Unsubscribe
from tests.proxy.desk import HOST, NODE, NONCE, OTHER, SECRET, Desk, proof, row


class SubscriberTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = Desk(self.mktemp())
        self.desk.registry.put(row())

    def denied(self, code: Code, does: Callable[[], object]) -> Denied:
        error: Denied = self.assertRaises(Denied, does)
        self.assertIs(error.code, code)
        return error

    def subscribe(self, agent: Agent, host: str = HOST, **more: Any) -> Callable[[], object]:
        if not more.keys() & {"proof", "secret"}:
            more["proof"] = proof(host)
        said = Subscribe(host, **more)
        return lambda: agent.subscribe(said, self.desk.clock.seconds())


class HelloTests(SubscriberTests):
    def test_what_is_told(self) -> None:
        agent, _ = self.desk.agent(hello=None)
        told = agent.hello(Hello((3, 1), "instance 1", ("pp2", "unheard-of")))
        self.assertEqual((told.version, told.heartbeat_s), (1, 15))
        self.assertEqual((parse_id(told.node), bytes.fromhex(told.nonce)), (NODE, NONCE))
        self.assertEqual(told.limits, {"SUBSCRIPTIONS": 64, "SUBSCRIBERS": 16})
        self.assertEqual(told.features, ())
        self.assertEqual(told.data, self.desk.house.data)

    def test_connections_dialled_ahead(self) -> None:
        """Only for an agent that knows how, as many as it wishes; a server that does not hear of it has none."""
        for features, legacy, pool in (((), False, 0), (("pool",), False, 7), (("pool", "x"), False, 7), ((), True, 0)):
            agent, _ = self.desk.agent(hello=None, legacy=legacy)
            if not legacy:
                told = agent.hello(Hello((1,), "instance 1", features))
                self.assertEqual(told.features, features[:1])
            self.assertEqual(self.desk.seat(agent, pool=7).pool, pool)

    def test_no_common_version(self) -> None:
        agent, _ = self.desk.agent(hello=None)
        self.denied(Code.NO_COMMON_VERSION, lambda: agent.hello(Hello((2,), "instance 1")))
        agent.hello(Hello((1,), "instance 1"))

    def test_once_and_first(self) -> None:
        agent, _ = self.desk.agent()
        self.assertRaises(OutOfOrder, agent.hello, Hello((1,), "instance 1"))
        self.desk.seat(agent)
        self.assertRaises(OutOfOrder, agent.hello, Hello((1,), "instance 1"))

    def test_subscribe_before_hello(self) -> None:
        agent, _ = self.desk.agent(hello=None)
        self.assertRaises(OutOfOrder, self.subscribe(agent))
        self.assertEqual(len(self.desk.seats), 0)

    def test_legacy_needs_no_hello(self) -> None:
        agent, _ = self.desk.agent(hello=None, private=False, legacy=True)
        self.subscribe(agent, secret=SECRET.hex())()
        self.assertEqual(len(self.desk.seats), 1)


class SubscribeTests(SubscriberTests):
    def test_by_proof(self) -> None:
        agent, _ = self.desk.agent()
        told = agent.subscribe(Subscribe(HOST, proof=proof(), weight=3, priority=2, max_conns=9), 5.0)
        self.assertEqual((told.lease_s, told.subscription), (60, 1))
        seat = self.desk.seats.by_number(1)
        assert seat is not None
        self.assertEqual((seat.host, seat.weight, seat.priority, seat.max_conns), (HOST, 3, 2, 9))
        self.assertEqual((seat.address, seat.instance, seat.since), ("192.0.2.7", "instance 1", 5.0))
        self.assertIs(self.desk.seats.best(HOST), seat)

    def test_numbers_are_never_used_again(self) -> None:
        agent, _ = self.desk.agent()
        first = self.desk.seat(agent)
        agent.unsubscribe(Unsubscribe(first.number))
        self.assertGreater(self.desk.seat(agent).number, first.number)

    def test_wrong_and_unknown_are_one_answer(self) -> None:
        agent, _ = self.desk.agent()
        wrong = self.denied(Code.WRONG_SECRET, self.subscribe(agent, proof=proof(secret=OTHER)))
        unknown = self.denied(Code.WRONG_SECRET, self.subscribe(agent, "unknown.example.com"))
        noise = self.denied(Code.WRONG_SECRET, self.subscribe(agent, "\ud800 no host", proof="0" * 64))
        self.assertEqual({(str(one), str(one.data)) for one in (wrong, unknown, noise)}, {(str(wrong), "{}")})

    def test_a_recorded_proof_is_worth_nothing_elsewhere(self) -> None:
        agent, _ = self.desk.agent()
        for shown in (proof(nonce=bytes(32)), proof(node=bytes(32)), proof("b.example.com")):
            self.denied(Code.WRONG_SECRET, self.subscribe(agent, proof=shown))

    def test_secret_itself_only_where_nobody_reads_along(self) -> None:
        open_, _ = self.desk.agent(private=False)
        self.denied(Code.FORBIDDEN_BY_POLICY, self.subscribe(open_, secret=SECRET.hex()))
        self.subscribe(open_)()
        private, _ = self.desk.agent(hello="instance 2")
        self.subscribe(private, secret=SECRET.hex())()
        self.denied(Code.WRONG_SECRET, self.subscribe(private, secret=OTHER.hex()))

    def test_either_proof_or_secret(self) -> None:
        self.assertRaises(ValueError, Subscribe, HOST)
        self.assertRaises(ValueError, Subscribe, HOST, proof=proof(), secret=SECRET.hex())

    def test_not_proven(self) -> None:
        agent, _ = self.desk.agent()
        self.desk.registry.put(row("claimed.example.com", state=Ownership.PENDING))
        self.desk.registry.put(row("lost.example.com", state=Ownership.SUSPENDED))
        for host in ("claimed.example.com", "lost.example.com"):
            self.denied(Code.NOT_PROVEN, self.subscribe(agent, host))
            self.denied(Code.WRONG_SECRET, self.subscribe(agent, host, proof=proof(host, OTHER)))

    def test_draining(self) -> None:
        agent, _ = self.desk.agent()
        self.desk.house.draining = ("wss://b.example.net:9081",)
        told = self.denied(Code.DRAINING, self.subscribe(agent))
        self.assertEqual(told.data["alternatives"], ("wss://b.example.net:9081",))
        self.desk.house.draining = None
        self.subscribe(agent)()

    def test_guessing(self) -> None:
        agent, _ = self.desk.agent()
        for _ in range(20):
            self.denied(Code.WRONG_SECRET, self.subscribe(agent, proof="0" * 64))
        for shown in ("0" * 64, proof()):
            told = self.denied(Code.RATE_LIMITED, self.subscribe(agent, proof=shown))
            self.assertEqual(told.data["retry_after_ms"], 60_001)
        neighbour, _ = self.desk.agent(address="198.51.100.1")
        self.subscribe(neighbour)()
        self.desk.clock.advance(60.0)
        self.subscribe(agent)()

    def test_subscribing_again_replaces(self) -> None:
        agent, _ = self.desk.agent()
        first = self.desk.seat(agent)
        second = self.desk.seat(agent, weight=5)
        self.assertEqual(self.desk.gone, [(first.number, False)])
        self.assertEqual(list(self.desk.seats), [second])


class LimitTests(SubscriberTests):
    def test_per_connection(self) -> None:
        agent, _ = self.desk.agent()
        for number in range(65):
            self.desk.registry.put(row(f"h{number}.example.com"))
        for number in range(64):
            self.desk.seat(agent, f"h{number}.example.com")
        told = self.denied(Code.NO_CAPACITY, self.subscribe(agent, "h64.example.com"))
        self.assertEqual(told.data["limit"], "SUBSCRIPTIONS")
        self.desk.seat(agent, "h3.example.com", weight=2)
        agent.unsubscribe(Unsubscribe(agent.subscriptions[0]))
        self.desk.seat(agent, "h64.example.com")

    def test_per_host(self) -> None:
        for number in range(16):
            self.desk.seat(self.desk.agent(hello=f"instance {number}")[0])
        late, _ = self.desk.agent(hello="too late")
        told = self.denied(Code.NO_CAPACITY, self.subscribe(late))
        self.assertEqual(told.data["limit"], "SUBSCRIBERS")

    def test_a_full_host_lets_its_agents_come_back(self) -> None:
        resumes = []
        for number in range(16):
            resumes.append(self.desk.seat(self.desk.agent(hello=f"instance {number}")[0]).resume)
        again, _ = self.desk.agent(hello="instance 3")
        self.desk.seat(again, resume=resumes[3])
        self.assertEqual(len(self.desk.seats), 16)


class StateTests(SubscriberTests):
    """The subscription states of proxy.md section 4, row by row."""

    def test_none_right_proof_active(self) -> None:
        agent, _ = self.desk.agent()
        self.assertTrue(self.desk.seat(agent).free())

    def test_resume_replaces_the_old_one_of_the_same_instance_at_once(self) -> None:
        dead, _ = self.desk.agent()
        old = self.desk.seat(dead)
        again, _ = self.desk.agent()
        new = self.desk.seat(again, resume=old.resume)
        self.assertEqual(self.desk.gone, [(old.number, False)])
        self.assertEqual(list(self.desk.seats), [new])
        self.assertNotEqual(new.resume, old.resume)
        dead.lost()
        self.assertEqual(self.desk.gone, [(old.number, False)])
        self.assertIs(self.desk.seats.best(HOST), new)

    def test_resume_of_another_instance_or_host_replaces_nothing(self) -> None:
        self.desk.registry.put(row("b.example.com"))
        one, _ = self.desk.agent()
        old = self.desk.seat(one)
        other, _ = self.desk.agent(hello="instance 2")
        self.desk.seat(other, resume=old.resume)
        same, _ = self.desk.agent()
        self.desk.seat(same, "b.example.com", resume=old.resume)
        self.desk.seat(same, resume="made up")
        self.assertEqual(self.desk.gone, [])

    def test_health_down_and_up(self) -> None:
        agent, _ = self.desk.agent()
        seat = self.desk.seat(agent)
        agent.health(Health(seat.number, "down"))
        self.assertIsNone(self.desk.seats.best(HOST))
        agent.health(Health(seat.number, "up"))
        self.assertIs(self.desk.seats.best(HOST), seat)

    def test_close_is_gone(self) -> None:
        self.desk.registry.put(row("b.example.com"))
        agent, _ = self.desk.agent()
        first, second = self.desk.seat(agent), self.desk.seat(agent, "b.example.com")
        self.desk.seats.called(first)
        agent.lost()
        agent.lost()
        self.assertEqual(self.desk.gone, [(first.number, False), (second.number, False)])
        self.assertEqual(agent.subscriptions, ())

    def test_health_drain(self) -> None:
        agent, _ = self.desk.agent()
        seat = self.desk.seat(agent)
        self.desk.seats.called(seat)
        self.desk.seats.joined(seat)
        agent.health(Health(seat.number, "drain"))
        self.assertIsNone(self.desk.seats.best(HOST))
        self.assertEqual(self.desk.gone, [])
        self.desk.seats.left(seat)
        self.assertEqual(self.desk.gone, [(seat.number, False)])
        self.denied(Code.LEASE_EXPIRED, lambda: agent.unsubscribe(Unsubscribe(seat.number)))

    def test_unsubscribe(self) -> None:
        agent, _ = self.desk.agent()
        first = self.desk.seat(agent)
        agent.unsubscribe(Unsubscribe(first.number))
        self.denied(Code.LEASE_EXPIRED, lambda: agent.unsubscribe(Unsubscribe(first.number)))
        second = self.desk.seat(agent)
        agent.unsubscribe(Unsubscribe(second.number, kill=True))
        self.assertEqual(self.desk.gone, [(first.number, False), (second.number, True)])

    def test_what_is_another_connections(self) -> None:
        mine, _ = self.desk.agent()
        seat = self.desk.seat(mine)
        other, _ = self.desk.agent(hello="instance 2")
        self.denied(Code.LEASE_EXPIRED, lambda: other.unsubscribe(Unsubscribe(seat.number)))
        other.health(Health(seat.number, "down"))
        self.assertIsNone(other.rejects(Reject(seat.number, 1, -20008)))
        self.assertEqual(self.desk.house.nonsense, 2)
        self.assertIs(self.desk.seats.best(HOST), seat)
        self.assertIs(mine.rejects(Reject(seat.number, 1, -20008)), seat)

    def test_revoked(self) -> None:
        agent, voice = self.desk.agent()
        self.desk.seat(agent)
        self.desk.seats.drop_host(HOST)
        self.assertEqual(voice.closed, ["revoked"])
        self.assertEqual(agent.subscriptions, ())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hello", "subscribe", "wrong", "unsubscribe", "health", "reject", "lost"]), st.integers(0, 5)
    ),
    max_size=30,
)


class NoiseTests(SubscriberTests):
    @given(STEPS)
    def test_any_order(self, steps: list[tuple[str, int]]) -> None:
        """Whatever an agent says in whatever order: a typed error or nothing, and the tables agree."""
        self.setUp()
        agent, _ = self.desk.agent(hello=None)
        does: dict[str, Callable[[int], object]] = {
            "hello": lambda number: agent.hello(Hello((number,), "instance 1")),
            "subscribe": lambda number: self.subscribe(agent)(),
            "wrong": lambda number: self.subscribe(agent, proof="0" * 64)(),
            "unsubscribe": lambda number: agent.unsubscribe(Unsubscribe(number)),
            "health": lambda number: agent.health(Health(number, "drain" if number % 2 else "down")),
            "reject": lambda number: agent.rejects(Reject(number, number, 0)),
            "lost": lambda number: agent.lost(),
        }
        for word, number in steps:
            try:
                does[word](number)
            except Layer8Error as error:
                self.assertIsInstance(error, Denied | OutOfOrder)
            self.assertEqual({seat.number for seat in self.desk.seats}, set(agent.subscriptions))
            self.assertLessEqual(len(self.desk.seats), 1)
