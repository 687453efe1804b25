"""What is true of a made user, for audits, reports and tests to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.data.synthetic.parameters import OutlierKind


@dataclass(frozen=True)
class UserTruth:
    """What puts a made user at risk. Of a made user only: nobody's privacy is touched.

    Attributes:
        user: The user's id.
        records: How many records they have.
        topics: Their own topics, the first one preferred.
        secrets: Numbers of the records that hold their planted secret.
        identifiers: Number of their own texts that hold an identifier, by kind; kinds without any are left out.
        household: Number of their household; None: they live alone.
        copied: Of every record copied from another user: its number, the other user, and the other record's number.
        outlier: What is unusual about them; None: nothing.
    """

    user: str
    records: int
    topics: tuple[str, ...]
    secrets: tuple[int, ...]
    identifiers: Mapping[str, int]
    household: int | None
    copied: tuple[tuple[int, str, int], ...]
    outlier: OutlierKind | None

    @property
    def flags(self) -> frozenset[str]:
        """Names of all risks: secret, identifiers, household, copies, outlier."""
        risks = {
            "secret": bool(self.secrets),
            "identifiers": bool(self.identifiers),
            "household": self.household is not None,
            "copies": bool(self.copied),
            "outlier": self.outlier is not None,
        }
        return frozenset(name for name, there in risks.items() if there)
