"""The play-book fails when it should."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.session import Close, Dial, Send, Tell
from layer8.testing.playbook import Do, Lost, Playbook, Received, Some, Wait
from tests.net.toy import Greeted, Toy


class Books(SynchronousTestCase):
    def test_a_whole_conversation(self) -> None:
        for cut in (None, 1, 3):
            with Playbook(Toy(), cut=cut) as book:
                book << Send(b"hello\n")
                book >> Received(b"echo a\necho b\n") << Send(b"a\nb\n")
                book >> Received(b"name me\n") << Tell(Greeted(b"me"))
                book >> Received(b"dial tcp:192.0.2.1:80\n") << Dial(7, "tcp:192.0.2.1:80")
                book >> Do(lambda toy, now: toy.answered(b"ok")) << Send(b"dialled ok\n")
                book >> Wait(9.9)
                book >> Wait(0.1) << Close("idle")
                book >> Lost() << Tell("lost") << Send(b"nobody gets this")

    def test_wrong_effect(self) -> None:
        book = Playbook(Toy()).__enter__()
        with self.assertRaises(AssertionError) as caught:
            book << Send(b"good bye\n")
        self.assertIn("hello", str(caught.exception))

    def test_missing_effect(self) -> None:
        book = Playbook(Toy()).__enter__() << Send(b"hello\n")
        with self.assertRaises(AssertionError):
            book >> Received(b"name me") << Tell(Greeted(b"me"))

    def test_effect_that_nobody_wrote_down(self) -> None:
        with self.assertRaises(AssertionError):
            Playbook(Toy()).__enter__() >> Received(b"echo a\n")
        with self.assertRaises(AssertionError), Playbook(Toy()) as book:
            book << Send(b"hello\n")
            book >> Received(b"echo a\n")

    def test_an_error_inside_is_not_hidden(self) -> None:
        with self.assertRaises(ZeroDivisionError), Playbook(Toy()):
            raise ZeroDivisionError

    def test_some(self) -> None:
        tell: Some = Some(Tell)
        with Playbook(Toy()) as book:
            book << Some(Send)
            book >> Received(b"name me\n") << tell
            with self.assertRaises(AssertionError):
                book >> Received(b"echo a\n") << Some(Tell)
        self.assertEqual(tell.effect, Tell(Greeted(b"me")))

    def test_a_deadline_that_never_moves(self) -> None:
        class Stuck(Toy):
            def wake(self, now: float) -> None:
                pass

        with self.assertRaises(AssertionError) as caught, Playbook(Stuck()) as book:
            book << Send(b"hello\n")
            book >> Received(b"name") >> Wait(20)
        self.assertIn("again", str(caught.exception))

    def test_wakes_at_each_deadline(self) -> None:
        with Playbook(Toy()) as book:
            book << Send(b"hello\n")
            book >> Received(b"ticks\n") >> Wait(3.5) << Send(b"tick" * 150_000)
