"""A made population: texts of users who don't exist, with a known ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from harness.data.sources.base import (
    BadRecord,
    Columns,
    Record,
    RecordSource,
    attributes_of,
    make_record,
    missing_column,
)
from harness.data.synthetic.parameters import PRIVATE_COLUMNS, SyntheticParameters, check
from harness.data.synthetic.population import Population
from harness.data.synthetic.truth import UserTruth
from harness.errors import ArgumentError
from harness.plugins import PluginParameters


class Synthetic(RecordSource):
    """Made users who write support tickets, chat messages, health notes or code reviews, with known risks.

    Columns: ``user`` (u000000, u000001, …), ``text``, ``time`` (which rises), and those of ``demographics`` (plan,
    region and age_band if none are given). Records are computed as they are read: a million users take no memory.
    Everything is public and follows from the parameters alone, so that results can be repeated; no person is behind
    any of it.
    """

    Parameters = SyntheticParameters
    parameters: SyntheticParameters

    def __init__(self, parameters: PluginParameters) -> None:
        super().__init__(parameters)
        check(self.parameters)

    def records(self, columns: Columns) -> Iterator[Record | BadRecord]:
        """Every record, user by user."""
        self._check(columns)
        made = Population(self.parameters)
        for i in range(len(made)):
            user = made.user(i)
            values: dict[str, object] = {"user": user, **made.attributes(i)}
            times = iter(made.times(i) if columns.time is not None else ())
            for j, text in enumerate(made.texts(i)):
                values["text"] = text
                values["time"] = next(times, None)
                yield make_record(user, text, values, columns, f"user {user} record {j}")

    def public(self, columns: Columns) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        """Every user once (each has a record), with public columns; no text is made."""
        self._check(columns)
        made = Population(self.parameters)
        for i in range(len(made)):
            yield made.user(i), attributes_of(made.attributes(i), columns.attributes)

    def known_risks(self) -> Mapping[str, frozenset[str]]:
        """Identifiers in own texts, planted secrets, households, copied text, outliers."""
        made = Population(self.parameters)
        return {truth.user: _risks(truth) for truth in map(made.truth, range(len(made)))}

    def fingerprint(self, update: Callable[[bytes], None]) -> None:
        """Feeds the parameters and the grammar: they decide every text."""
        update(Population(self.parameters).describe())

    def _check(self, columns: Columns) -> None:
        known = (*PRIVATE_COLUMNS, *self.parameters.demographics)
        for what, expected in (("user", columns.user), ("text", columns.text), ("time", columns.time)):
            if expected not in (what, None):
                raise ArgumentError(f'data.{what}: in the source synthetic, the column of the {what} is "{what}"')
        for name in columns.attributes:
            if name not in self.parameters.demographics:
                raise missing_column("data.attributes", name, known, "the source synthetic")


def _risks(truth: UserTruth) -> frozenset[str]:
    found = {
        "identifiers": bool(truth.identifiers),
        "planted secret": bool(truth.secrets),
        "household": truth.household is not None,
        "copied text": bool(truth.copied),
        f"outlier: {truth.outlier}": truth.outlier is not None,
    }
    return frozenset(name for name, true in found.items() if true)
