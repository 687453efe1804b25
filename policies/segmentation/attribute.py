"""Segments by a public column: a plan, a region, a product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from harness.plugins import Page, PluginError, PluginParameters, PublicSegmenter


class AttributeParameters(PluginParameters):
    """Parameters of `attribute`."""

    column: str = Field(
        min_length=1, max_length=200, description="a public column, constant per user; must be among data.attributes"
    )
    values: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="its public values; left out: those that occur in the public column",
    )
    fallback: str = Field(
        default="other", min_length=1, max_length=200, description="segment of users with any other value, or none"
    )

    @model_validator(mode="after")
    def _distinct(self) -> AttributeParameters:
        names = self.values or ()
        if len(set(names)) != len(names):
            raise ValueError("values: the same value twice")
        return self


class Attribute(PublicSegmenter):
    """One segment per value of a public column, and a fallback for every other value.

    Use it where what you promise differs by something that everybody may know about a user, such as their plan.
    The column's values must not depend on the users' records. Costs no privacy.
    """

    Parameters = AttributeParameters
    parameters: AttributeParameters
    page = Page(
        sees=("One column of `data.attributes`, which the spec declares public and which must be constant per user."),
        when=("What you promise differs by something that anybody may know of a user: a plan, a region, a product."),
        costs=("No privacy. Sizes of the groups may be counted (`data.weights: public`), and the guarantee says so."),
        example="{type: attribute, column: plan, values: [free, paid]}",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column it reads."""
        return (self.parameters.column,)

    @property
    def segments(self) -> tuple[str, ...] | None:
        """The values in their given order, then the fallback."""
        if self.parameters.values is None:
            return None
        rest = () if self.parameters.fallback in self.parameters.values else (self.parameters.fallback,)
        return self.parameters.values + rest

    def bind(self, domain: Mapping[str, Sequence[str]]) -> Attribute:
        """The rule over the values that occur, unless the spec gave them."""
        if self.parameters.values is not None:
            return self
        values = tuple(domain.get(self.parameters.column, ()))
        if not values:
            raise PluginError(f'the column "{self.parameters.column}" has no value in the data', ("column",))
        return Attribute(self.parameters.model_copy(update={"values": values}))

    def assign(self, attributes: Mapping[str, str | None]) -> str:
        """The user's value, or the fallback."""
        value = attributes.get(self.parameters.column)
        if value is None or value not in (self.parameters.values or ()):
            return self.parameters.fallback
        return value
