"""A bank: accounts are keys in several partitions, a transfer is a transaction, and money is neither made nor lost.

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
    # (offset, value) by (topic, partition), in order
    log: dict


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
        # a consistent cut: what was answered as committed before the reader began is there in all partitions, and what was
        # under way meanwhile may be there in some
        settled = {number: t for number, t in transactions.items() if t.ended_at is not None and t.ended_at < audit.at}
        there = _values(audit.log)
        counted = [value for t in settled.values() for _, _, value in t.writes if value in there]
        wrong += _check_cut(f"to an audit at {audit.at:.3f}", settled, set(counted))
    return wrong


def _values(log):
    return {value for records in log.values() for _, value in records}


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
