"""Segments of two segmentations at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Self, cast

from pydantic import Field

from harness.plugins import (
    MixedSegmenter,
    OwnRecordsSegmenter,
    Page,
    PluginError,
    PluginParameters,
    PublicSegmenter,
    Segmenter,
    UserRecords,
    segmentation,
    suggest,
)
from policies.parts import Part, built

SEPARATOR = "+"
"""Between the names of two segments; ``/`` stands between segment and tier."""
MOST_SEGMENTS = 1000

Name = Annotated[str, Field(min_length=1, max_length=500)]


class ProductParameters(PluginParameters):
    """Parameters of `product`."""

    first: Part = Field(description="a segmentation: its type and parameters")
    second: Part = Field(description="another one")
    merge: dict[Name, Annotated[tuple[Name, ...], Field(min_length=1)]] = Field(
        default={},
        description='segments that become one: its name, and theirs, as in {rest: ["free+few", "free+many"]}',
    )


class Product(Segmenter):
    """One segment for every segment of one segmentation and every one of another, such as `free+many`.

    Use it where what you promise differs by two things at once, such as a user's plan and how much they wrote. Each
    part is handed what its own access tier may see: public columns, or one user's records. If either reads records,
    which segment a user falls into is private. Parts that learn from noisy answers can't be combined yet. Small
    combinations can be made one by `merge`, a public constant. Costs no privacy.
    """

    Parameters = ProductParameters
    parameters: ProductParameters
    page = Page(
        sees="What its two parts see, each for itself.",
        when="What you promise differs by two things at once, such as a plan and how much somebody wrote.",
        costs=(
            "No privacy. Every combination is a group of its own: small ones are learnt from badly, and `merge` makes "
            "them one."
        ),
        example=(
            "type: product\n"
            "first: {type: attribute, column: plan, values: [free, paid], fallback: free}\n"
            "second: {type: usage, measure: examples, edges: [6], names: [few, many]}\n"
            "merge: {paid: [paid+few, paid+many]}"
        ),
    )

    @classmethod
    def of(cls, parameters: PluginParameters) -> Self:
        """A product of the higher access tier of its parts."""
        parts = _parts(cast("ProductParameters", parameters))
        public = [isinstance(part, PublicSegmenter) for part in parts]
        tier = PublicProduct if all(public) else MixedProduct if any(map(_columns_of, parts)) else OwnRecordsProduct
        return cast("Self", tier(parameters, parts))

    def __init__(self, parameters: PluginParameters, parts: tuple[Segmenter, Segmenter] | None = None) -> None:
        super().__init__(parameters)
        self.parts = parts or _parts(self.parameters)
        if not all(isinstance(part, PublicSegmenter) for part in self.parts):
            for key, part in zip(("first", "second"), self.parts, strict=True):
                if part.segments is None:  # what occurs is looked up for wholly public rules alone
                    raise PluginError("beside a part that reads records, its segments must be given", (key,))
        self._merged = _merged(self.parts, self.parameters.merge)

    @property
    def uses_times(self) -> bool:
        """Whether a part does."""
        return any(part.uses_times for part in self.parts)

    @property
    def uses_model(self) -> bool:
        """Whether a part does."""
        return any(part.uses_model for part in self.parts)

    @property
    def segments(self) -> tuple[str, ...] | None:
        """The first part's segments in their order, each with all of the second's; merged ones where first met."""
        return None if self._merged is None else tuple(dict.fromkeys(self._merged.values()))

    def named(self, segments: tuple[str, str]) -> str:
        """The segment of a user for whom the parts say this."""
        joined = SEPARATOR.join(segments)
        return joined if self._merged is None else self._merged[joined]

    def with_parts(self, parts: tuple[Segmenter, Segmenter]) -> Self:
        """The same product of other parts."""
        made = copy.copy(self)
        made.parts = parts
        made._merged = _merged(parts, self.parameters.merge)
        return made


class PublicProduct(Product, PublicSegmenter):
    """A `product` of two public rules."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of both."""
        return _columns(self.parts)

    def bind(self, domain: Mapping[str, Sequence[str]]) -> PublicProduct:
        """The product of both, bound."""
        bound = []
        for key, part in zip(("first", "second"), self.parts, strict=True):
            try:
                bound.append(cast("PublicSegmenter", part).bind(domain))
            except PluginError as error:
                raise PluginError(error.message, (key, *error.key), error.candidates) from None
        return self.with_parts((bound[0], bound[1]))

    def assign(self, attributes: Mapping[str, str | None]) -> str:
        """What both say of these public columns."""
        first, second = (_asked(part, None, attributes) for part in self.parts)
        return self.named((first, second))


class OwnRecordsProduct(Product, OwnRecordsSegmenter):
    """A `product` of two own-records rules."""

    def assign(self, user: UserRecords) -> str:
        """What both say of these records."""
        first, second = (_asked(part, user, user.attributes) for part in self.parts)
        return self.named((first, second))


class MixedProduct(OwnRecordsProduct, MixedSegmenter):
    """A `product` of a public rule and an own-records rule."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the parts that read public columns."""
        return _columns(self.parts)


def _parts(parameters: ProductParameters) -> tuple[Segmenter, Segmenter]:
    return _part("first", parameters.first), _part("second", parameters.second)


def _part(key: str, wanted: Part) -> Segmenter:
    """The segmentation that a part names.

    Raises:
        PluginError: There is none, it refuses its parameters, or it can't be combined; the key is that of the product.
    """
    part = built(segmentation, wanted, (key,))
    if not isinstance(part, PublicSegmenter | OwnRecordsSegmenter):
        raise PluginError(f'"{wanted.type}" learns from noisy answers: it can\'t be combined yet', (key, "type"))
    return part


def _columns_of(part: Segmenter) -> tuple[str, ...]:
    """The public columns that a part reads."""
    return tuple(part.columns) if isinstance(part, PublicSegmenter | MixedSegmenter) else ()


def _columns(parts: Sequence[Segmenter]) -> tuple[str, ...]:
    """Those of all parts, each once."""
    return tuple(dict.fromkeys(column for part in parts for column in _columns_of(part)))


def _asked(part: Segmenter, user: UserRecords | None, attributes: Mapping[str, str | None]) -> str:
    """What a part says of a user of whom it is shown what its tier may see, and no column but its own."""
    shown = {column: attributes.get(column) for column in _columns_of(part)}
    if isinstance(part, PublicSegmenter):
        return part.assign(shown)
    if isinstance(part, OwnRecordsSegmenter) and user is not None:
        model, times = user.model if part.uses_model else None, user.times if part.uses_times else ()
        return part.assign(replace(user, attributes=shown, model=model, times=times))
    raise TypeError("a part has no access tier")


def _merged(parts: tuple[Segmenter, Segmenter], merge: Mapping[str, Sequence[str]]) -> dict[str, str] | None:
    """The segment of every combination; None while a part's segments are not known.

    Raises:
        PluginError: There are too many, two are called alike, or `merge` makes no sense.
    """
    first, second = (part.segments for part in parts)
    if first is None or second is None:
        return None
    if len(first) * len(second) > MOST_SEGMENTS:
        raise PluginError(f"{len(first)} × {len(second)} segments are more than {MOST_SEGMENTS}")
    joined = [SEPARATOR.join((a, b)) for a in first for b in second]
    if twice := [name for name in joined if joined.count(name) > 1]:
        raise PluginError(f'two combinations are called "{twice[0]}"; name the parts\' segments without "{SEPARATOR}"')
    found = {name: name for name in joined}
    for target, names in merge.items():
        for name in names:
            if name not in found:
                near = suggest(name, joined)
                rest = f'; did you mean "{near}"?' if near else f" (there are: {', '.join(joined[:20])})"
                raise PluginError(f'there is no combination "{name}"{rest}', ("merge", target))
            if found[name] != name:
                raise PluginError(f'"{name}" is merged twice', ("merge", target))
            found[name] = target
    for target, names in merge.items():
        if target in joined and target not in names:
            raise PluginError(f'"{target}" is a combination itself, and not among those merged', ("merge", target))
    return found
