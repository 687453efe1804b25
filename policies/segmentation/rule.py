"""Segments by conditions that the spec writes."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Self, cast

from pydantic import Field

from harness.plugins import (
    OwnRecordsSegmenter,
    Page,
    PluginError,
    PluginParameters,
    PublicSegmenter,
    Segmenter,
    UserRecords,
)
from policies.segmentation.expressions import MOST_CHARACTERS, ExpressionError, Kind, Names, condition

_STATISTICS: Mapping[str, Callable[[UserRecords], float]] = {
    "records": lambda user: float(len(user.texts)),
    "examples": lambda user: float(user.examples),
    "tokens": lambda user: float(sum(user.token_counts)),
    "characters": lambda user: float(sum(len(text) for text in user.texts)),
    "words": lambda user: float(sum(len(text.split()) for text in user.texts)),
    "longest": lambda user: float(max((len(text) for text in user.texts), default=0)),
}
"""What a condition may ask of a user's own records: totals, and the characters of the longest record."""

SegmentName = Annotated[str, Field(min_length=1, max_length=200)]


class Case(PluginParameters):
    """A condition, and the segment of the users for whom it holds."""

    name: SegmentName = Field(description="the segment of the users for whom it holds")
    when: str = Field(min_length=1, description=f"the condition; at most {MOST_CHARACTERS} characters")


class RuleParameters(PluginParameters):
    """Parameters of `rule`."""

    rules: tuple[Case, ...] = Field(
        min_length=1, max_length=100, description="name and condition (when) of each segment; the first that holds wins"
    )
    otherwise: SegmentName = Field(default="other", description="segment of users for whom no condition holds")
    columns: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        max_length=100,
        description="public columns that conditions are about; left out: they are about users' own records",
    )


class Rule(Segmenter):
    """One segment per condition, such as `records >= 20 and characters > 5000`, and one for everybody else.

    Without `columns`, conditions are about one user's own records: `records`, `examples`, `tokens`, `characters`,
    `words` (totals) and `longest` (characters of the longest record). Which segment a user falls into is then private.
    With `columns`, they are about these public columns alone, which hold texts (`plan in ("team", "enterprise")`); a
    column without a value is the empty text. Numbers in conditions are public constants. Costs no privacy.

    Conditions are made of numbers, texts in quotes, names, + - * /, comparisons, `in (…)`, `and`, `or` and `not`. One
    that divides by zero for a user does not hold for them.
    """

    Parameters = RuleParameters
    parameters: RuleParameters
    page = Page(
        sees="Six totals of the user's own records, or the public columns that it names; never both, and no text.",
        when="No single number tells your groups apart, and you can say in a line what does.",
        costs=(
            "No privacy. About own records, which group a user is in becomes private, and weights of the groups must "
            "be given or noisy."
        ),
        example=(
            "type: rule\n"
            "rules:\n"
            "  - {name: leading, when: records >= 40 and words > 1500}\n"
            "  - {name: talkative, when: records >= 10 and words / records > 15}\n"
            "otherwise: other"
        ),
    )

    @classmethod
    def of(cls, parameters: PluginParameters) -> Self:
        """A rule about public columns or one about own records: it is handed these alone."""
        public = isinstance(parameters, RuleParameters) and bool(parameters.columns)
        return cast("Self", (PublicRule if public else OwnRecordsRule)(parameters))

    def __init__(self, parameters: PluginParameters) -> None:
        super().__init__(parameters)
        _check_columns(self.parameters.columns)
        kinds = _kinds(self.parameters)
        for place, case in enumerate(self.parameters.rules):
            try:
                condition(case.when, kinds)
            except ExpressionError as error:
                raise PluginError(str(error), ("rules", place, "when")) from None

    @property
    def segments(self) -> tuple[str, ...]:
        """In the order of the conditions, then what is left."""
        return tuple(dict.fromkeys([*(case.name for case in self.parameters.rules), self.parameters.otherwise]))


class PublicRule(Rule, PublicSegmenter):
    """A `rule` about public columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the spec."""
        return self.parameters.columns

    def assign(self, attributes: Mapping[str, str | None]) -> str:
        """The segment of the first condition that holds."""
        return _first(self.parameters, {column: attributes.get(column) or "" for column in self.parameters.columns})


class OwnRecordsRule(Rule, OwnRecordsSegmenter):
    """A `rule` about one user's own records."""

    def assign(self, user: UserRecords) -> str:
        """The segment of the first condition that holds."""
        return _first(self.parameters, {name: measure(user) for name, measure in _STATISTICS.items()})


def _kinds(parameters: RuleParameters) -> dict[str, Kind]:
    """What the names of its conditions give."""
    if parameters.columns:
        return dict.fromkeys(parameters.columns, "text")
    return dict.fromkeys(_STATISTICS, "number")


def _first(parameters: RuleParameters, names: Names) -> str:
    kinds = _kinds(parameters)
    found = (case.name for case in parameters.rules if condition(case.when, kinds)(names))
    return next(found, parameters.otherwise)


def _check_columns(columns: tuple[str, ...]) -> None:
    for place, name in enumerate(columns):
        plain = name.isidentifier() and not keyword.iskeyword(name)
        if not plain or unicodedata.normalize("NFKC", name) != name:  # as Python's parser reads names
            raise PluginError(f'a condition can\'t name the column "{name}"', ("columns", place))
        if name in columns[:place]:
            raise PluginError(f'"{name}" is named twice', ("columns", place))
