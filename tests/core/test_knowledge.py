"""The who-learns-what table: every test that a row names exists, and the page is made from the same rows."""

from twisted.trial.unittest import SynchronousTestCase

from layer8.core import knowledge
from layer8.core.knowledge_row import Row
from tests.names import find_test


class KnowledgeTests(SynchronousTestCase):
    def test_every_named_test_exists(self) -> None:
        missing = [
            f"{row.part}, {row.party}: {name}"
            for row in knowledge.TABLE
            for name in row.tests
            if not find_test(f"tests.{name}")
        ]
        self.assertEqual(missing, [])

    def test_every_part_and_party_once(self) -> None:
        keys = [(row.part, row.party) for row in knowledge.TABLE]
        self.assertEqual(sorted(set(keys)), sorted(keys))

    def test_what_is_not_built_claims_no_test(self) -> None:
        self.assertEqual([row.party for row in knowledge.TABLE if row.tests and not row.built], [])

    def test_a_row_without_a_test_says_so(self) -> None:
        row = Row(part="x", party="p", learns="l", hidden="h")
        self.assertEqual(row.shown, "not shown yet")
        self.assertEqual(Row("x", "p", "l", "h", built=False).shown, "not built yet")
        self.assertEqual(Row("x", "p", "l", "h", tests=("a.b", "c.d")).shown, "a.b, c.d")

    def test_the_page_holds_every_row(self) -> None:
        for part in {row.part for row in knowledge.TABLE}:
            page = knowledge.markdown(part).splitlines()
            rows = [row for row in knowledge.TABLE if row.part == part]
            self.assertEqual(len(page), 2 + len(rows))
            for line, row in zip(page[2:], rows, strict=True):
                for words in (row.party, row.learns, row.hidden):
                    self.assertIn(words, line)
