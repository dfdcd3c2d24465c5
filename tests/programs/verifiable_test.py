"""What verifiable.py and share.py must find in a history: python3 -m unittest discover -s tests/programs -p '*_test.py'"""

import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import share  # noqa: E402
import verifiable  # noqa: E402


def history(count=6):
    """A log of two partitions, and what a producer and a consumer say of it when all is well."""
    rows = [(n % 2, n // 2, str(n)) for n in range(count)]
    acked = [{"name": "producer_send_success", "partition": p, "offset": o, "value": v} for p, o, v in rows]
    assigned = {"name": "partitions_assigned", "partitions": [{"partition": 0}, {"partition": 1}]}
    shown = [{"name": "record_data", "partition": p, "offset": o, "value": v} for p, o, v in rows]
    return rows, acked, [assigned, *shown]


def judged(rows, acked):
    return verifiable.wrong_log(verifiable.by_partition(rows), acked)


class Verifiable(unittest.TestCase):
    def test_nothing_is_wrong_with_a_good_history(self):
        rows, acked, shown = history()
        self.assertEqual(judged(rows, acked), [])
        self.assertEqual(verifiable.wrong_reads(verifiable.by_partition(rows), shown, False), [])

    def test_a_log_with_a_fault_is_found(self):
        rows, acked, _ = history()
        swapped = [(0, 0, "2"), (0, 1, "0"), *[row for row in rows if row[2] not in "02"]]
        for name, log in {"lost": rows[:-1], "twice": [*rows, (0, 3, "0")], "gap": [*rows, (0, 4, "8")], "order": swapped}.items():
            self.assertTrue(judged(log, acked), name)
        self.assertTrue(judged(rows, []), "nothing was acknowledged")
        self.assertTrue(judged(rows, [*acked, {"name": "producer_send_error", "exception": "x"}]), "a record was refused")

    def test_a_read_with_a_fault_is_found(self):
        rows, _, shown = history()
        log = verifiable.by_partition(rows)
        again = [*shown, shown[1]]
        self.assertTrue(verifiable.wrong_reads(log, again, False), "back to the start")
        self.assertEqual(verifiable.wrong_reads(log, [*shown, shown[0], *shown[1:]], False), [], "back after an assignment")
        self.assertTrue(verifiable.wrong_reads(log, [shown[0], *shown[3:]], False), "a gap")
        self.assertTrue(verifiable.wrong_reads(log, shown[:-1], False), "the end is missing")
        committed = {"name": "offsets_committed", "success": True, "offsets": [{"partition": 0, "offset": 2}]}
        back = [*shown, committed, shown[0], shown[5]]
        self.assertEqual(verifiable.wrong_reads(log, back, False), [], "back to what is committed")
        back = [*shown, committed, shown[0], *shown[1:]]
        self.assertTrue(verifiable.wrong_reads(log, back, False), "what was committed is lost")
        self.assertEqual(verifiable.wrong_reads(log, back, True), [], "back where the log was cut")
        back = [*shown, committed | {"success": False}, shown[0], *shown[1:]]
        self.assertEqual(verifiable.wrong_reads(log, back, False), [], "back, as nothing was committed")
        other = [*shown[:-1], shown[-1] | {"value": "9"}]
        self.assertTrue(verifiable.wrong_reads(log, other, False), "another record")

    def test_a_member_that_is_shown_what_it_has_accepted_is_found(self):
        rows, _, shown = history(2)
        log, shown = verifiable.by_partition(rows), shown[1:]
        accepted = {"name": "offsets_acknowledged", "success": True,
                    "partitions": [{"partition": 0, "offsets": [0]}, {"partition": 1, "offsets": [0]}]}
        def judge(*members, starts=None):
            return share.judge(log, members, starts or {0: 0, 1: 0})
        self.assertEqual(judge([*shown, accepted], []), [])
        self.assertEqual(judge(shown, [*shown, accepted]), [], "given to another one as well")
        self.assertTrue(judge([*shown, accepted], [shown[0], accepted]), "accepted by another one as well")
        self.assertTrue(judge([*shown, accepted, accepted], []), "accepted twice")
        self.assertTrue(judge([*shown, accepted, shown[0]], []), "shown again")
        self.assertTrue(judge([shown[0], accepted], []), "never shown")

        # a broker was killed after it had taken an acceptance, and before it could answer: nobody is shown the records again
        unknown = [*shown, accepted | {"success": False}]
        self.assertEqual(judge(unknown, [], starts={0: 1, 1: 1}), [], "it stands")
        self.assertTrue(judge(unknown, [], starts={0: 1, 1: 0}), "it does not, and nobody accepted it since")
        self.assertTrue(judge(shown, [], starts={0: 1, 1: 1}), "never accepted, and passed over")


if __name__ == "__main__":
    unittest.main()
