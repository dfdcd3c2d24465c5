"""What must hold of transactions, whatever happened meanwhile. The anomalies are named as in Jepsen's workload for Kafka.

Plain code: it is told what writers did and what readers of committed records saw, and answers what is wrong with that.
"""

import collections
import dataclasses

COMMITTED, ABORTED, UNKNOWN = "committed", "aborted", "unknown"


@dataclasses.dataclass
class Transaction:
    """What a writer says of one. Values are never used twice."""

    writer: str
    # (topic, partition, value) in the order in which they were sent
    writes: list
    # how it ended, as far as the writer knows
    state: str = UNKNOWN
    # when its commit began, by the clock that readers have; None: it never did
    committing_at: float | None = None
    # when the writer heard how it ended
    ended_at: float | None = None


@dataclasses.dataclass
class Seen:
    """A record that a live reader of committed records was given."""

    reader: str
    at: float
    topic: str
    partition: int
    offset: int
    value: str


def check(transactions, log, seen=()):
    """Answers what is wrong, one line each. `log` has all that can be read in the end: (offset, value) by (topic,
    partition), in order."""
    wrong = []
    owner = {value: number for number, t in transactions.items() for _, _, value in t.writes}
    places = collections.defaultdict(list)
    for (topic, partition), records in log.items():
        for offset, value in records:
            places[value].append((topic, partition, offset))
    for value, found in places.items():
        if value not in owner:
            wrong.append(f"garbage: {value} was never written and is at {found}")
        elif len(found) > 1:
            wrong.append(f"duplicate: {value} is at {found}")
        elif transactions[owner[value]].state == ABORTED:
            wrong.append(f"aborted read: {value} of {owner[value]}, which was aborted, is at {found}")
    for number, transaction in transactions.items():
        wrong += _check_transaction(number, transaction, places)
    wrong += _check_order(transactions, log, owner)
    wrong += _check_seen(transactions, log, owner, seen)
    return wrong


def _check_transaction(number, transaction, places):
    missing = [write for write in transaction.writes if write[2] not in places]
    there = len(transaction.writes) - len(missing)
    wrong = []
    if transaction.state == COMMITTED and missing:
        wrong.append(f"lost write: {number} was committed, {len(missing)} of its {len(transaction.writes)} writes are not "
                     f"there: {missing[:5]}")
    if transaction.state == UNKNOWN and missing and there:
        wrong.append(f"torn: {number} has {there} of its {len(transaction.writes)} writes, without {missing[:5]}")
    for topic, partition, value in transaction.writes:
        astray = [place for place in places.get(value, ()) if place[:2] != (topic, partition)]
        if astray:
            wrong.append(f"astray: {value} was sent to {(topic, partition)} and is at {astray}")
    return wrong


def _check_order(transactions, log, owner):
    """Of one writer, records of a partition are in the order in which they were sent."""
    order, wrong = {}, []
    counts = collections.Counter()
    for number, transaction in transactions.items():
        for _, _, value in transaction.writes:
            counts[transaction.writer] += 1
            order[value] = counts[transaction.writer]
    for place, records in log.items():
        last = {}
        for offset, value in records:
            if value in owner:
                writer = transactions[owner[value]].writer
                if order[value] < last.get(writer, 0):
                    wrong.append(f"order: {value} of {writer} at offset {offset} of {place} comes after a later one")
                last[writer] = order[value]
    return wrong


def _check_seen(transactions, log, owner, seen):
    final = {(place, offset): value for place, records in log.items() for offset, value in records}
    offsets = {place: [offset for offset, _ in records] for place, records in log.items()}
    runs, wrong = collections.defaultdict(list), []
    for record in seen:
        place = (record.topic, record.partition)
        if final.get((place, record.offset)) != record.value:
            wrong.append(f"divergence: {record.reader} saw {record.value} at offset {record.offset} of {place}, where "
                         f"{final.get((place, record.offset))} is in the end")
        began = transactions[owner[record.value]].committing_at if record.value in owner else None
        if record.value in owner and (began is None or record.at < began):
            wrong.append(f"precommitted read: {record.reader} saw {record.value} before its commit began")
        runs[record.reader, place].append(record.offset)
    for (reader, place), run in runs.items():
        between = [offset for offset in offsets.get(place, ()) if run[0] <= offset <= run[-1]]
        if run != between and not any(line.startswith("divergence") for line in wrong):
            missed = sorted(set(between) - set(run))[:5]
            wrong.append(f"internal gap: {reader} read {place} from {run[0]} to {run[-1]} and did not see {missed}, or saw "
                         "offsets out of order")
    return wrong
