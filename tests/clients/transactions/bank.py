"""A bank: accounts are spread over several partitions, a transfer is a transaction, and money is neither made nor lost.

Plain code. A writer moves what an account has, so that one transfer that counts though it was aborted, twice or not at all
soon shows as a debt or as a sum that is wrong. Values are NAME:ACCOUNT:AMOUNT, where NAME is used once.
"""

import collections
import dataclasses

ACCOUNTS = 8
OPENING = 100


@dataclasses.dataclass
class Audit:
    """What a reader of committed records was given, from the start to the end of all partitions."""

    at: float
    # the last offset that it was given, by (topic, partition): only up to there is the log what it has counted
    last: dict = dataclasses.field(default_factory=dict)
    # the balances by all that it was given; all of that itself would be a copy of the log for each audit
    have: collections.Counter = dataclasses.field(default_factory=lambda: balances([]))

    def take(self, topic, partition, offset, value):
        """Counts a record."""
        self.last[topic, partition] = offset
        account, amount = entry(value)
        self.have[account] += amount


def entry(value):
    """The account and the amount of a value."""
    _, account, amount = value.rsplit(":", 2)
    return int(account), int(amount)


def balances(values):
    """What the accounts have after these transfers."""
    found = collections.Counter({account: OPENING for account in range(ACCOUNTS)})
    for value in values:
        account, amount = entry(value)
        found[account] += amount
    return found


def check_bank(transactions, log, audits=()):
    """Answers what is wrong, one line each. `transactions` are those of one writer, in their order; `log` is all that is
    committed in the end."""
    wrong = _check_cut("in the end", transactions, _values(log))
    for audit in audits:
        there = _values(log, audit.last)
        if audit.have != balances(there):
            wrong.append(f"money: an audit at {audit.at:.3f} has counted {dict(audit.have)}, and up to the same offsets there are "
                         f"{dict(balances(there))} in the end")
        # a consistent cut: what was answered as committed before the reader began is there in all partitions, and what was
        # under way meanwhile may be there in some
        settled = {number: t for number, t in transactions.items() if t.ended_at is not None and t.ended_at < audit.at}
        wrong += _check_cut(f"to an audit at {audit.at:.3f}", settled, there)
    return wrong


def _values(log, last=None):
    """The values of a log, or those up to the last offsets of an audit, ends included."""
    return {value for place, records in log.items() for offset, value in records if last is None or offset <= last.get(place, -1)}


def _check_cut(when, transactions, there):
    """Transfers are replayed one after the other: no account is ever in debt, and the sum stays what it was."""
    now, total = balances([]), ACCOUNTS * OPENING
    for number, transaction in transactions.items():
        for _, _, value in transaction.writes:
            if value in there:
                account, amount = entry(value)
                now[account] += amount
                total += amount
        if total != ACCOUNTS * OPENING:
            return [f"money: {when} the accounts have {total} after {number}"]
        if min(now.values()) < 0:
            return [f"debt: {when} the accounts have {dict(now)} after {number}"]
    return []
