"""The privacy ledger: budgets of data sets, and what every run on them spent. Append-only, sealed, shared.

`ledger` is what it does, `request` what a run asks of it, `books` what entries add up to, `chain` how they are
sealed, `schema` the tables and their history, `store` the transactions, `address` where it lies, `amounts` the exact
arithmetic.
"""

from __future__ import annotations

from harness.privacy.ledger.address import locate
from harness.privacy.ledger.amounts import Budget
from harness.privacy.ledger.books import Account, Left, RunRow
from harness.privacy.ledger.chain import Entry, Receipt
from harness.privacy.ledger.ledger import Ledger
from harness.privacy.ledger.request import Overspent, Request, refusal

__all__ = [
    "Account",
    "Budget",
    "Entry",
    "Ledger",
    "Left",
    "Overspent",
    "Receipt",
    "Request",
    "RunRow",
    "locate",
    "refusal",
]
