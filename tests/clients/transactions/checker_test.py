"""Each anomaly is found, and a history without one is not blamed: python3 -m unittest checker_test."""

import unittest

from checker import ABORTED, COMMITTED, UNKNOWN, Seen, Transaction, check

P, Q = ("t", 0), ("t", 1)


def transaction(state, *writes, writer="w", at=1.0):
    return Transaction(writer, [(*place, value) for place, value in writes], state, at if state != ABORTED else None)


class CheckerTest(unittest.TestCase):
    """One history after the other."""

    def found(self, transactions, log, seen=()):
        """The first words of what is wrong."""
        return sorted({line.split(":")[0] for line in check(dict(enumerate(transactions)), log, seen)})

    def test_what_is_right(self):
        transactions = [
            transaction(COMMITTED, (P, "a"), (Q, "b")),
            transaction(ABORTED, (P, "c")),
            transaction(UNKNOWN, (P, "d"), (Q, "e")),
            transaction(UNKNOWN, (P, "f"), (Q, "g")),
            transaction(COMMITTED, (P, "h"), writer="x"),
        ]
        log = {P: [(0, "h"), (1, "a"), (5, "d")], Q: [(0, "b"), (2, "e")]}
        seen = [Seen("r", 2.0, *P, 0, "h"), Seen("r", 2.0, *P, 1, "a"), Seen("r", 2.0, *P, 5, "d"), Seen("s", 3.0, *P, 1, "a")]
        self.assertEqual(self.found(transactions, log, seen), [])

    def test_what_was_written(self):
        committed = [transaction(COMMITTED, (P, "a"), (P, "b"))]
        self.assertEqual(self.found(committed, {P: [(0, "a")]}), ["lost write"])
        self.assertEqual(self.found(committed, {P: [(0, "a"), (1, "b"), (2, "a")]}), ["duplicate", "order"])
        self.assertEqual(self.found(committed, {P: [(0, "b"), (1, "a")]}), ["order"])
        self.assertEqual(self.found(committed, {P: [(0, "a"), (1, "b"), (2, "z")]}), ["garbage"])
        self.assertEqual(self.found(committed, {P: [(0, "a")], Q: [(0, "b")]}), ["astray"])
        self.assertEqual(self.found([transaction(ABORTED, (P, "a"))], {P: [(0, "a")]}), ["aborted read"])
        self.assertEqual(self.found([transaction(UNKNOWN, (P, "a"), (Q, "b"))], {P: [(0, "a")]}), ["torn"])

    def test_what_was_seen(self):
        committed = [transaction(COMMITTED, (P, "a"), (P, "b"), (P, "c"), at=5.0)]
        log = {P: [(0, "a"), (1, "b"), (2, "c")]}
        record = lambda offset, value, at=6.0: Seen("r", at, *P, offset, value)
        self.assertEqual(self.found(committed, log, [record(0, "a", 4.0)]), ["precommitted read"])
        self.assertEqual(self.found(committed, log, [record(0, "b")]), ["divergence"])
        self.assertEqual(self.found(committed, log, [record(0, "a"), record(2, "c")]), ["internal gap"])
        self.assertEqual(self.found(committed, log, [record(1, "b"), record(0, "a")]), ["internal gap"])


if __name__ == "__main__":
    unittest.main()
