"""Entries of the ledger, each sealed with a hash of its content and of the one before it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from harness.errors import MachineError
from harness.privacy.ledger import schema

KINDS = ("budget", "reserve", "touch", "refund", "finish", "void", "holdout")


@dataclass(frozen=True)
class Entry:
    """One row. Public; amounts are decimal texts.

    Attributes:
        sequence: 1, 2, 3, …: no number is left out.
        kind: One of `KINDS`.
        at: When, in UTC.
        data_set: Name of the data set.
        run: Id of the run; None for a budget.
        epsilon: ε of a budget or a reservation (``inf`` without noise).
        delta: δ of it.
        renyi_order: The fixed Rényi order, where there is one.
        rdp: At that order: what fits (budget) or what the run costs (reservation).
        details: What else there is, as JSON.
        previous: Hash of the entry before; `schema.GENESIS` for the first.
        hash: SHA-256 (hex) of all the above.
    """

    sequence: int
    kind: str
    at: str
    data_set: str
    run: str | None
    epsilon: str | None
    delta: str | None
    renyi_order: str | None
    rdp: str | None
    details: str
    previous: str
    hash: str = ""

    @property
    def content(self) -> Any:
        """The details, read."""
        return json.loads(self.details)

    def sealed(self) -> str:
        """What `hash` must be."""
        fields = asdict(self)
        del fields["hash"]
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=repr)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def receipt(self) -> Receipt:
        """What proves later that this entry was there."""
        return Receipt(self.sequence, self.hash)


@dataclass(frozen=True)
class Receipt:
    """Number and hash of an entry."""

    sequence: int
    hash: str


def entries_where(connection: Connection, *conditions: Any) -> list[Entry]:
    """Entries in their order."""
    statement = select(schema.entries).where(*conditions).order_by(schema.entries.c.sequence)
    return [Entry(**row._mapping) for row in connection.execute(statement)]


def head_of(connection: Connection) -> Receipt | None:
    """Number of entries and hash of the last one, as noted when it was appended; None where the note is gone."""
    row = connection.execute(select(schema.head.c.entries, schema.head.c.hash)).first()
    if row is None or type(row[0]) is not int:  # SQLite keeps whatever was written
        return None
    return Receipt(row[0], str(row[1]))


def append(connection: Connection, shown: str, **fields: Any) -> Entry:
    """Appends an entry, in a transaction that is alone in writing.

    Args:
        connection: The transaction.
        shown: The ledger's URL without its password.
        fields: Of `Entry`; `details` as plain data.

    Raises:
        MachineError: The end of the chain is damaged.
    """
    last = check_end(connection, shown)
    blank: dict[str, Any] = dict.fromkeys(("run", "epsilon", "delta", "renyi_order", "rdp"))
    details = json.dumps(fields.pop("details", {}), sort_keys=True)
    at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    draft = Entry(last.sequence + 1, at=at, details=details, previous=last.hash, **{**blank, **fields})
    entry = Entry(**{**asdict(draft), "hash": draft.sealed()})
    connection.execute(insert(schema.entries).values(**asdict(entry)))
    connection.execute(update(schema.head).values(entries=entry.sequence, hash=entry.hash))
    return entry


def check_end(connection: Connection, shown: str) -> Receipt:
    """The end of the chain; a ledger whose end does not fit its head admits nothing.

    Raises:
        MachineError: It does not fit.
    """
    noted = head_of(connection)
    table = schema.entries.c
    count, largest = connection.execute(
        select(func.count(), func.max(table.sequence)).select_from(schema.entries)
    ).one()
    last = connection.execute(select(table.hash).where(table.sequence == largest)).scalar() if count else schema.GENESIS
    if noted is None or (count, largest or 0, last) != (noted.sequence, noted.sequence, noted.hash):
        raise MachineError(f"the ledger {shown} was damaged or edited: see uudp ledger verify")
    return noted


def check_seals(entries: list[Entry], shown: str) -> None:
    """Refuses entries that were edited.

    Raises:
        MachineError: One was.
    """
    for entry in entries:
        if entry.hash != entry.sealed():
            raise MachineError(f"the ledger {shown} was edited at entry {entry.sequence}: see uudp ledger verify")


def chain_problems(entries: list[Entry], noted: Receipt | None) -> list[str]:
    """Everything by which a whole chain differs from one that was only appended to; empty for nothing."""
    found: list[str] = []
    previous = schema.GENESIS
    for place, entry in enumerate(entries, start=1):
        if entry.sequence != place:
            found.append(f"entry {place} is missing, or out of its place")
            break
        if entry.hash != entry.sealed():
            found.append(f"entry {place} was edited")
        if entry.previous != previous:
            found.append(f"entry {place} does not follow the one before it")
        previous = entry.hash
    last = entries[-1].hash if entries else schema.GENESIS
    if noted is None:
        found.append("the note of the last entry is missing")
    elif noted != Receipt(len(entries), last):
        found.append(f"the ledger should end with entry {noted.sequence} as it was noted, and does not")
    return found
