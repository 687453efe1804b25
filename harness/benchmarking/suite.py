"""What a user can write into a suite: policies × budgets × seeds × data, and the baselines beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat

from harness.spec.block import Block, whole
from harness.spec.models import LARGEST_EPSILON, NAME, SMALLEST_EPSILON

NON_PRIVATE, LOOSEST, STRICTEST, DROPPING = "non-private", "uniform-loosest", "uniform-strictest", "drop-strict"
Baseline = Literal["non-private", "uniform-loosest", "uniform-strictest", "drop-strict"]
BASELINES: dict[str, str] = {
    NON_PRIVATE: "trained without noise: what can be learnt at all; public data alone",
    LOOSEST: "the same noise for everybody, at the budget: nobody gets more protection",
    STRICTEST: "the same noise for everybody, at the strictest ε that a policy of the suite gives any group",
    DROPPING: "uniform at the budget, and groups that a policy promises less are not trained on at all",
}
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Short = Annotated[str, Field(pattern=NAME, max_length=40)]
Budget = Annotated[FiniteFloat, Field(ge=SMALLEST_EPSILON, le=LARGEST_EPSILON)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class Suite(Block):
    """A whole suite. What is set here is merged into the specs as key=value is on the command line."""

    version: Annotated[Literal[1], BeforeValidator(whole)] = Field(description="of the suite's format")
    suite: Short = Field(description="its name: the folder of its results, and the beginning of its runs' names")
    title: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="for people; left out: the name"
    )
    spec: Text | None = Field(
        default=None, description="the spec of all cells: a file beside the suite, or a packaged one's name"
    )
    specs: dict[str, Text] | None = Field(
        default=None, min_length=1, description="in place of spec: one for each data set, by a short name"
    )
    set: dict[str, Any] = Field(
        default={}, description="keys of the spec for all cells, as train.steps; a policy's own come before them"
    )
    policies: dict[str, dict[str, Any] | None] = Field(
        min_length=1,
        description="keys of the spec that make each policy, by its name; below noise, 50 % is half of a cell's budget",
    )
    budgets: tuple[Budget, ...] = Field(min_length=1, max_length=50, description="privacy.epsilon of the cells")
    seeds: tuple[Seed, ...] = Field(
        default=(0,),
        min_length=1,
        max_length=1000,
        description="seed of the cells: initialisation; cohorts and noise are drawn anew in each anyway",
    )
    baselines: tuple[Baseline, ...] = Field(default=(), description="what the policies are compared with")
    concurrent: Annotated[int, Field(ge=1, le=1000, strict=True)] | Literal["auto"] = Field(
        default="auto", description="cells at a time; auto: as many as there are cores, or GPUs, and memory"
    )


def suite_schema() -> dict[str, Any]:
    """The JSON schema of a suite file."""
    schema = Suite.model_json_schema()
    for field in schema["properties"].values():
        field.pop("title", None)
        if field.get("default", "") is None:  # an editor would write `key: null`
            del field["default"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "uudp suite"}
