"""Each anomaly is found, and a history without one is not blamed: python3 -m unittest checker_test."""

import copy
import random
import unittest

from bank import ACCOUNTS, Audit, balances, check_bank
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


def random_history(chance):
    """A history without anything wrong: transactions of two writers, what is in the log in the end, and what was seen."""
    transactions, log, seen, place = {}, {P: [], Q: []}, [], [P, Q]
    for number in range(40):
        state = chance.choice([COMMITTED, COMMITTED, ABORTED, UNKNOWN])
        counts = state == COMMITTED or (state == UNKNOWN and chance.random() < 0.5)
        writes = [(*chance.choice(place), f"{number}-{i}") for i in range(chance.randint(2, 5))]
        began = None if state == ABORTED else float(number)
        transactions[number] = Transaction(f"w{number % 2}", writes, state, began, number + 0.5)
        for topic, partition, value in writes if counts else []:
            records = log[topic, partition]
            records.append((records[-1][0] + chance.randint(1, 3) if records else 0, value))
    for (topic, partition), records in log.items():
        seen += [Seen("r", 100.0, topic, partition, offset, value) for offset, value in records]
    return transactions, log, seen


class MutationTest(unittest.TestCase):
    """One thing is changed in a history without anything wrong: that has to be found."""

    def mutated(self, mutate):
        """Changes many histories, each in one place."""
        for seed in range(200):
            chance = random.Random(seed)
            transactions, log, seen = random_history(chance)
            self.assertEqual(check(transactions, log, seen), [])
            owner = {value: number for number, t in transactions.items() for _, _, value in t.writes}
            told = mutate(chance, transactions, log, seen, owner)
            self.assertNotEqual(check(transactions, log, seen), [], f"seed {seed}: {told}")

    def test_a_record_that_is_lost(self):
        def mutate(chance, _transactions, log, _seen, _owner):
            place = chance.choice([place for place in log if log[place]])
            return log[place].pop(chance.randrange(len(log[place])))
        self.mutated(mutate)

    def test_a_record_that_is_there_twice(self):
        def mutate(chance, _transactions, log, _seen, _owner):
            place = chance.choice([place for place in log if log[place]])
            record = chance.choice(log[place])
            log[place].append((log[place][-1][0] + 1, record[1]))
            return record
        self.mutated(mutate)

    def test_records_that_change_places(self):
        def mutate(chance, _transactions, log, _seen, _owner):
            place = chance.choice([place for place in log if len(log[place]) > 1])
            at = chance.randrange(len(log[place]) - 1)
            (a, x), (b, y) = log[place][at:at + 2]
            log[place][at:at + 2] = [(a, y), (b, x)]
            return x, y
        self.mutated(mutate)

    def test_an_aborted_record_that_is_there(self):
        def mutate(chance, transactions, log, _seen, _owner):
            number = chance.choice([number for number, t in transactions.items() if t.state == ABORTED])
            topic, partition, value = chance.choice(transactions[number].writes)
            records = log[topic, partition]
            records.append((records[-1][0] + 1 if records else 0, value))
            return value
        self.mutated(mutate)

    def test_a_record_that_a_reader_passed_over(self):
        def mutate(chance, _transactions, _log, seen, _owner):
            inner = [i for i in range(1, len(seen) - 1) if seen[i - 1].partition == seen[i].partition == seen[i + 1].partition]
            return seen.pop(chance.choice(inner))
        self.mutated(mutate)

    def test_a_record_that_was_seen_too_early(self):
        def mutate(chance, transactions, _log, seen, owner):
            record = chance.choice(seen)
            record.at = transactions[owner[record.value]].committing_at - 0.1
            return record
        self.mutated(mutate)


def random_bank(chance):
    """Transfers of one writer, and what is in the log in the end."""
    transactions, log, values = {}, {P: [], Q: []}, []
    for number in range(60):
        have = balances(values)
        source = chance.choice([account for account in have if have[account] > 0])
        target = chance.choice([account for account in range(ACCOUNTS) if account != source])
        amount = chance.choice([have[source], chance.randint(1, have[source])])
        legs = [(source, -amount), (target, amount)]
        writes = [("t", account % 2, f"{number}-{i}:{account}:{change}") for i, (account, change) in enumerate(legs)]
        state = chance.choice([COMMITTED, COMMITTED, ABORTED, UNKNOWN])
        transactions[number] = Transaction("w", writes, state, float(number), number + 0.5)
        if state == COMMITTED or (state == UNKNOWN and chance.random() < 0.5):
            for topic, partition, value in writes:
                log[topic, partition].append((len(log[topic, partition]), value))
                values.append(value)
    return transactions, log


def audit(at, log):
    """One of somebody who was given that log."""
    made = Audit(at)
    for place, records in log.items():
        for record in records:
            made.take(*place, *record)
    return made


class BankTest(unittest.TestCase):
    """Money that is made, lost or owed is found."""

    def test_what_is_right(self):
        for seed in range(50):
            transactions, log = random_bank(random.Random(seed))
            # of a transfer under way, an audit may have one half
            at = 30.2
            early = {place: [r for r in records if int(r[1].split("-")[0]) <= 30] for place, records in log.items()}
            early[P] = [r for r in early[P] if not r[1].startswith("30-")]
            self.assertEqual(check_bank(transactions, log, [audit(at, early)]), [])

    def test_half_a_transfer(self):
        for seed in range(50):
            chance = random.Random(seed)
            transactions, log = random_bank(chance)
            place = chance.choice([P, Q])
            halves = copy.deepcopy(log)
            halves[place].pop(chance.randrange(len(halves[place])))
            self.assertIn("money", check_bank(transactions, halves)[0])
            self.assertIn("money", check_bank(transactions, log, [audit(1000.0, halves)])[0])

    def test_an_audit_that_ends_before_what_is_settled(self):
        for seed in range(50):
            transactions, log = random_bank(random.Random(seed))
            early = {place: list(records) for place, records in log.items()}
            last = max(log, key=lambda place: int(log[place][-1][1].split("-")[0]))
            early[last].pop()
            self.assertIn("money", check_bank(transactions, log, [audit(1000.0, early)])[0])

    def test_an_audit_that_counted_what_is_not_there_in_the_end(self):
        transactions, log = random_bank(random.Random(1))
        more = {place: list(records) for place, records in log.items()}
        more[P].insert(0, (-1, "aborted-0:0:5"))
        self.assertIn("counted", check_bank(transactions, log, [audit(1000.0, more)])[0])

    def test_a_transfer_of_what_was_not_there(self):
        writes = [("t", 0, "0-0:0:-101"), ("t", 1, "0-1:1:101")]
        transactions = {0: Transaction("w", writes, COMMITTED, 1.0, 1.5)}
        log = {P: [(0, "0-0:0:-101")], Q: [(0, "0-1:1:101")]}
        self.assertIn("debt", check_bank(transactions, log)[0])


if __name__ == "__main__":
    unittest.main()
